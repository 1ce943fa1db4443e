/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Table lines of the options, and the superblock that says the rest. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../common/tree.h"
#include "integrity.h"

#define MAX_KEY 4096 /* bytes */

int super_load(const char *device, struct integrity_super *sb, GError **err)
{
	guint8 bytes[SB_BYTES];
	int fd = open(device, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, bytes, sizeof bytes, 0);
	int saved = errno;

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return fail(err, saved, "%s: %s", device, g_strerror(saved));
	if (n != sizeof bytes || integrity_super_parse(bytes, sb) != SUPER_FOUND)
		return fail(err, EINVAL, "%s is not an integrity volume", device);
	return 0;
}

/* cryptsetup's names: hmac-sha256 is hmac(sha256). */
static char *kernels_name(const char *name)
{
	static const char *const wrappers[] = {"hmac-", "cmac-"};

	for (size_t i = 0; i < G_N_ELEMENTS(wrappers); i++)
		if (g_str_has_prefix(name, wrappers[i]))
			return g_strdup_printf("%.4s(%s)", wrappers[i], name + 5);
	return g_strdup(name);
}

static int read_key(const char *path, int size, guint8 *key, size_t *len, GError **err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = 0;

	if (fd < 0)
		return fail(err, errno, "key file %s: %s", path, g_strerror(errno));
	for (*len = 0; *len < MAX_KEY && (n = read(fd, key + *len, MAX_KEY - *len)) > 0; *len += (size_t)n)
		;
	close(fd);
	if (n < 0)
		return fail(err, EIO, "key file %s cannot be read", path);
	if (size < 0 || size > MAX_KEY || *len < (size_t)size || !*len)
		return fail(err, EINVAL, "key file %s has %zu bytes, %d are wanted (%d at most)", path, *len, size, MAX_KEY);
	if (size)
		*len = (size_t)size;
	return 0;
}

/* " WORD:ALGORITHM[:KEY]", if the algorithm is given. */
static int add_alg(GString *out, unsigned *n, const char *word, const char *alg, const char *file, int size, GError **err)
{
	g_autofree char *name = NULL;
	guint8 key[MAX_KEY];
	size_t len = 0;
	int r;

	if (!alg)
		return file ? fail(err, EINVAL, "a key file without the algorithm (%s) that it is for", word) : 0;
	name = kernels_name(alg);
	if (strpbrk(name, " \t\n\\:"))
		return fail(err, EINVAL, "'%s' is no algorithm", alg);
	r = file ? read_key(file, size, key, &len, err) : 0;
	if (!r) {
		g_string_append_printf(out, " %s:%s%s", word, name, file ? ":" : "");
		for (size_t i = 0; i < len; i++)
			g_string_append_printf(out, "%02x", key[i]);
		++*n;
	}
	explicit_bzero(key, sizeof key);
	return r;
}

static void add_flag(GString *out, unsigned *n, bool given, const char *word)
{
	if (!given)
		return;
	g_string_append_printf(out, " %s", word);
	++*n;
}

static void add_number(GString *out, unsigned *n, const char *word, gint64 value)
{
	if (value <= 0)
		return;
	g_string_append_printf(out, " %s:%" G_GINT64_FORMAT, word, value);
	++*n;
}

static void add_format(GString *out, unsigned *n, const struct options *o)
{
	add_number(out, n, "journal_sectors", o->journal_size / 512);
	add_number(out, n, "interleave_sectors", o->interleave);
	add_flag(out, n, !o->legacy_padding, "fix_padding");
	add_flag(out, n, !o->legacy_hmac && (o->integrity_key_file || o->journal_integrity_key_file), "fix_hmac");
}

static int add_words(GString *out, unsigned *n, const char *device, const struct integrity_super *sb,
		     const struct options *o, GError **err)
{
	int r;

	if (o->data_device) {
		g_autofree char *meta = tree_quote(device);

		g_string_append_printf(out, " meta_device:%s", meta);
		++*n;
	}
	if (sb ? sb->log2_spb != 0 : o->sector_size > 512)
		add_number(out, n, "block_size", sb ? 512ll << sb->log2_spb : o->sector_size);
	if (!sb)
		add_format(out, n, o);
	add_number(out, n, "buffer_sectors", o->buffer);
	add_number(out, n, "journal_watermark", o->watermark);
	add_number(out, n, "commit_time", o->commit_time);
	add_number(out, n, "sectors_per_bit", o->sectors_per_bit);
	add_number(out, n, "bitmap_flush_interval", o->flush_time);
	add_flag(out, n, o->recalculate, "recalculate");
	add_flag(out, n, o->recalculate_reset, "reset_recalculate");
	add_flag(out, n, o->legacy_recalculate, "legacy_recalculate");
	add_flag(out, n, o->discards, "allow_discards");
	r = add_alg(out, n, "internal_hash", o->integrity ? o->integrity : "crc32c", o->integrity_key_file, o->integrity_key_size,
		    err);
	if (!r)
		r = add_alg(out, n, "journal_mac", o->journal_integrity, o->journal_integrity_key_file,
			    o->journal_integrity_key_size, err);
	if (!r)
		r = add_alg(out, n, "journal_crypt", o->journal_crypt, o->journal_crypt_key_file, o->journal_crypt_key_size, err);
	return r;
}

char *table_line(const char *device, const struct integrity_super *sb, guint64 sectors, const struct options *o, GError **err)
{
	const char *mode = o->recovery ? "R" : o->bitmap ? "B" : o->no_journal ? "D" : "J";
	g_autofree char *data = tree_quote(o->data_device ? o->data_device : device);
	/* room for the longest keys: nothing that holds one is moved */
	GString *words = g_string_sized_new(6 * MAX_KEY + 8192), *line = g_string_sized_new(6 * MAX_KEY + 16384);
	int tag = sb ? (int)sb->tag_size : o->tag_size;
	unsigned n = 0;
	int r = add_words(words, &n, device, sb, o, err);

	g_string_printf(line, "0 %" G_GUINT64_FORMAT " integrity %s 0 ", sectors, data);
	if (tag)
		g_string_append_printf(line, "%d", tag);
	else
		g_string_append_c(line, '-');
	g_string_append_printf(line, " %s %u%s", mode, n, words->str);
	explicit_bzero(words->str, words->len);
	g_string_free(words, TRUE);
	if (!r)
		return g_string_free(line, FALSE);
	explicit_bzero(line->str, line->len);
	g_string_free(line, TRUE);
	return NULL;
}

void table_free(char *line)
{
	if (line)
		explicit_bzero(line, strlen(line));
	g_free(line);
}
