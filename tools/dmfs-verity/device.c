/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Devices on images, in a mounted dmfs. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "verity.h"

#define UUID_PREFIX "CRYPT-VERITY-" /* as cryptsetup's */

static char *device_uuid(const struct image *im, const char *name)
{
	g_auto(GStrv) parts = g_strsplit(im->sb.uuid, "-", -1);
	g_autofree char *plain = g_strjoinv("", parts);

	return g_strconcat(UUID_PREFIX, plain, *plain ? "-" : "", name, NULL);
}

int device_open(const char *mount, const char *name, const struct image *im, const char *root, const struct options *o,
		GError **err)
{
	g_autofree char *uuid = device_uuid(im, name);
	g_autofree char *line = image_line(im, root, o);

	return client_make(mount, name, uuid, true, line, strlen(line), err);
}

static int close_deferred(const char *mount, const char *name, GError **err)
{
	g_autofree char *word = tree_quote(name);
	g_autofree char *text = g_strdup_printf("remove %s deferred\n", word);
	g_autofree char *path = tree_path(mount, "control", NULL);
	int r = tree_write_text(path, text);

	return r ? fail(err, -r, "%s: %s", name, g_strerror(-r)) : 0;
}

static int cancel_deferred(const char *mount, const char *name, GError **err)
{
	g_autofree char *reply = NULL;
	int r = tree_message(mount, name, "@cancel_deferred_remove", &reply);

	return r ? fail(err, -r, "%s: %s", name, g_strerror(-r)) : 0;
}

int device_close(const char *mount, const char *name, const struct options *o, GError **err)
{
	int r = client_check_maker(mount, name, "dmfs-verity", UUID_PREFIX, err);

	if (r)
		return r;
	if (o->cancel_deferred)
		return cancel_deferred(mount, name, err);
	return o->deferred ? close_deferred(mount, name, err) : client_remove(mount, name, err);
}

/* --- status ----------------------------------------------------------------------------------------------- */

/* The value behind a word, from w[from] on; or NULL. */
static const char *value_of(char **w, unsigned from, const char *word)
{
	for (unsigned n = g_strv_length(w); from + 1 < n; from++)
		if (!strcmp(w[from], word))
			return w[from + 1];
	return NULL;
}

static void print_fec(char **w, unsigned block)
{
	const char *device = value_of(w, 14, "use_fec_from_device");
	const char *start = value_of(w, 14, "fec_start"), *roots = value_of(w, 14, "fec_roots");

	if (!device || !start || !roots)
		return;
	printf("  FEC device:  %s\n", device);
	printf("  FEC offset:  %" PRIu64 " sectors\n", g_ascii_strtoull(start, NULL, 10) * (block / 512));
	printf("  FEC roots:   %s\n", roots);
}

/* The options without a value. */
static void print_flags(char **w)
{
	static const char *const flags[] = {"ignore_corruption",  "restart_on_corruption", "panic_on_corruption",
					    "ignore_zero_blocks", "check_at_most_once",	   "try_verify_in_tasklet"};
	g_autoptr(GString) out = g_string_new(NULL);

	for (unsigned i = 14; i < g_strv_length(w); i++)
		for (size_t f = 0; f < G_N_ELEMENTS(flags); f++)
			if (!strcmp(w[i], flags[f]))
				g_string_append_printf(out, "%s ", w[i]);
	if (out->len)
		printf("  flags:       %s\n", out->str);
}

/* Words of "START LENGTH verity VERSION DATA HASHES DATABLOCK HASHBLOCK BLOCKS START HASH ROOT SALT [N OPTIONS]". */
static void print_table(char **w, bool corrupted)
{
	unsigned data_block = (unsigned)g_ascii_strtoull(w[6], NULL, 10), hash_block = (unsigned)g_ascii_strtoull(w[7], NULL, 10);

	printf("  status:      %s\n", corrupted ? "corrupted" : "verified");
	printf("  hash type:   %s\n", w[3]);
	printf("  data block:  %s\n", w[6]);
	printf("  hash block:  %s\n", w[7]);
	printf("  hash name:   %s\n", w[10]);
	printf("  salt:        %s\n", w[12]);
	printf("  data device: %s\n", w[4]);
	printf("  size:        %s sectors\n", w[1]);
	printf("  mode:        readonly\n");
	printf("  hash device: %s\n", w[5]);
	printf("  hash offset: %" PRIu64 " sectors\n", g_ascii_strtoull(w[9], NULL, 10) * (hash_block / 512));
	if (g_strv_length(w) > 13) {
		const char *key = value_of(w, 14, "root_hash_sig_key_desc");

		print_fec(w, data_block);
		printf("  root hash:   %s\n", w[11]);
		if (key)
			printf("  root hash signature: %s\n", key);
		print_flags(w);
	} else {
		printf("  root hash:   %s\n", w[11]);
	}
}

int device_status(const char *mount, const char *name, GError **err)
{
	g_autofree char *table = NULL, *status = NULL, *info = NULL, *image = NULL;
	g_auto(GStrv) words = NULL;

	if (!tree_has_device(mount, name)) {
		printf("%s/%s is inactive.\n", mount, name);
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	}
	table = client_read(mount, name, "table");
	status = client_read(mount, name, "status");
	info = client_read(mount, name, "info");
	if (!table || !status || !info)
		return fail(err, EIO, "%s/%s cannot be read", mount, name);
	words = client_split(g_strchomp(table));
	if (g_strv_length(words) < 13 || strcmp(words[2], "verity"))
		return fail(err, EINVAL, "%s is no verity device", name);
	image = g_build_filename(mount, name, "image", NULL);
	printf("%s is active%s.\n", image, strstr(info, "SUSPENDED") ? " and suspended" : "");
	printf("  type:        VERITY\n");
	print_table(words, g_str_has_suffix(g_strchomp(status), " C"));
	return 0;
}
