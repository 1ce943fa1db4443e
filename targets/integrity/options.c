/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table line and back (dm-integrity.rst):
 *
 *   <dev> <reserved sectors> <tag size>|- D|J|B|R <#args> [<arg>…]
 *
 * What is beyond the announced number of arguments is ignored, as the kernel does.
 */
#include <inttypes.h>

#include <dmfs/rounding.h>

#include "integrity.h"

#define DIRECT_ARGS 4
#define MAX_ARGS 18
#define TICK_MS 10u /* what bitmap_flush_interval is rounded to */

/* --- algorithms ------------------------------------------------------------------------------- */

static void alg_clear(struct integrity_alg *a)
{
	dm_hash_free(a->hash);
	dm_key_clear(&a->key);
	g_free(a->name);
	*a = (struct integrity_alg){0};
}

/* "ALGORITHM[:KEY]", where an algorithm's name has no colon. */
static int read_alg(const char *word, const char *value, struct integrity_alg *a, GError **err)
{
	g_autofree char *what = g_strdup_printf("Invalid %.20s argument: its key", word);
	const char *colon = strchr(value, ':');

	alg_clear(a);
	a->name = colon ? g_strndup(value, (gsize)(colon - value)) : g_strdup(value);
	if (!colon)
		return 0;
	a->has_key = true;
	return dm_key_from_hex("integrity", what, colon + 1, &a->key, err);
}

static int make_hash(struct integrity_alg *a, const char *what, GError **err)
{
	int r;

	if (!a->name)
		return 0;
	r = dm_hash_new(a->name, &a->hash, err);
	if (r) {
		g_prefix_error(err, "integrity: Invalid %s: ", what);
		return r;
	}
	if (!a->has_key && dm_hash_needs_key(a->hash))
		return dm_fail(err, ENOKEY, "integrity: Error setting %s key: %s needs one, as in %s:0123456789abcdef",
			       what, a->name, a->name);
	r = a->has_key ? dm_hash_set_key(a->hash, a->key.data, a->key.size, err) : 0;
	if (r)
		g_prefix_error(err, "integrity: Error setting %s key: ", what);
	return r;
}

/* --- single words ----------------------------------------------------------------------------- */

static int read_block_size(struct integrity *ic, const char *value, GError **err)
{
	unsigned size;

	if (!dm_parse_uint(value, &size) || size < DM_SECTOR_SIZE || size > MAX_SPB * DM_SECTOR_SIZE ||
	    !dm_is_pow2(size))
		return dm_fail(err, EINVAL, "integrity: Invalid block_size argument '%s': 512, 1024, 2048 or 4096",
			       value);
	ic->l.log2_spb = dm_log2(size) - DM_SECTOR_SHIFT;
	return 0;
}

static int read_sectors_per_bit(struct integrity *ic, const char *value, GError **err)
{
	uint64_t sectors;

	if (!dm_parse_u64(value, &sectors))
		return dm_fail(err, EINVAL,
			       "integrity: Invalid argument sectors_per_bit:%s: a number of sectors is needed", value);
	ic->log2_bit = sectors ? dm_log2(sectors) : 0;
	return 0;
}

static int read_meta_device(struct integrity *ic, const char *value, GError **err)
{
	if (ic->meta_dev)
		dm_put_device(ic->ti, ic->meta_dev);
	ic->meta_dev = NULL;
	return dm_get_device(ic->ti, value, dm_target_mode(ic->ti), &ic->meta_dev, err);
}

static int read_number(const char *word, const char *value, unsigned max, unsigned *out, GError **err)
{
	if (dm_parse_uint(value, out) && *out <= max)
		return 0;
	return dm_fail(err, EINVAL, "integrity: Invalid argument %s:%s: a number from 0 to %u is needed", word, value,
		       max);
}

static int read_flag(struct integrity *ic, const char *word, GError **err)
{
	const struct {
		const char *word;
		bool *flag;
	} flags[] = {
	    {"recalculate", &ic->recalculate}, {"reset_recalculate", &ic->reset_recalculate},
	    {"allow_discards", &ic->discards}, {"fix_padding", &ic->fix_padding},
	    {"fix_hmac", &ic->fix_hmac},       {"legacy_recalculate", &ic->legacy_recalculate},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++)
		if (!strcmp(word, flags[i].word)) {
			*flags[i].flag = true;
			ic->recalculate |= ic->reset_recalculate;
			return 0;
		}
	return dm_fail(err, EINVAL, "integrity: Invalid argument '%.*s'", (int)strcspn(word, ":"), word);
}

static int read_value(struct integrity *ic, const char *word, const char *value, GError **err)
{
	const struct {
		const char *word;
		unsigned max, *out;
	} numbers[] = {
	    {"journal_sectors", UINT32_MAX, &ic->journal_sectors},
	    {"interleave_sectors", UINT32_MAX, &ic->interleave},
	    {"buffer_sectors", UINT32_MAX, &ic->buffer_sectors},
	    {"journal_watermark", 100, &ic->watermark},
	    {"commit_time", UINT32_MAX, &ic->commit_ms},
	    {"bitmap_flush_interval", UINT32_MAX - TICK_MS, &ic->flush_ms},
	};
	const struct {
		const char *word;
		struct integrity_alg *alg;
	} algs[] = {
	    {"internal_hash", &ic->internal_hash},
	    {"journal_crypt", &ic->journal_crypt},
	    {"journal_mac", &ic->journal_mac},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++)
		if (!strcmp(word, numbers[i].word))
			return read_number(word, value, numbers[i].max, numbers[i].out, err);
	for (unsigned i = 0; i < G_N_ELEMENTS(algs); i++)
		if (!strcmp(word, algs[i].word))
			return read_alg(word, value, algs[i].alg, err);
	if (!strcmp(word, "meta_device"))
		return read_meta_device(ic, value, err);
	if (!strcmp(word, "block_size"))
		return read_block_size(ic, value, err);
	if (!strcmp(word, "sectors_per_bit"))
		return read_sectors_per_bit(ic, value, err);
	return dm_fail(err, EINVAL, "integrity: Invalid argument '%s'", word);
}

static int read_word(struct integrity *ic, const char *arg, GError **err)
{
	const char *colon = strchr(arg, ':');
	g_autofree char *word = NULL;

	if (!colon)
		return read_flag(ic, arg, err);
	word = g_strndup(arg, (gsize)(colon - arg));
	return read_value(ic, word, colon + 1, err);
}

/* --- the line --------------------------------------------------------------------------------- */

static int read_mode(struct integrity *ic, const char *word, GError **err)
{
	if (strlen(word) != 1 || !strchr("JBDR", *word))
		return dm_fail(err, EINVAL, "integrity: Invalid mode '%s' (expecting J, B, D, R)", word);
	ic->mode = *word;
	ic->writes = ic->mode != 'R' && dm_target_mode(ic->ti) & DM_MODE_WRITE;
	return 0;
}

static int read_direct(struct integrity *ic, char **argv, GError **err)
{
	if (!dm_parse_u64(argv[1], &ic->l.start))
		return dm_fail(err, EINVAL, "integrity: Invalid starting offset '%s': a number of sectors is needed",
			       argv[1]);
	if (strcmp(argv[2], "-") && (!dm_parse_uint(argv[2], &ic->l.tag_size) || !ic->l.tag_size))
		return dm_fail(err, EINVAL, "integrity: Invalid tag size '%s': 1 to %u bytes, or - for the hash's",
			       argv[2], MAX_TAG);
	return read_mode(ic, argv[3], err);
}

static int check_tag_size(struct integrity *ic, GError **err)
{
	if (!ic->l.tag_size && !ic->internal_hash.hash)
		return dm_fail(err, EINVAL, "integrity: Unknown tag size: - needs an internal_hash");
	if (!ic->l.tag_size)
		ic->l.tag_size = dm_hash_size(ic->internal_hash.hash);
	if (ic->l.tag_size > MAX_TAG)
		return dm_fail(err, EINVAL, "integrity: Too big tag size %u, %u bytes at most", ic->l.tag_size,
			       MAX_TAG);
	return 0;
}

static int check_words(struct integrity *ic, GError **err)
{
	int r = make_hash(&ic->internal_hash, "internal hash", err);

	if (!r)
		r = make_hash(&ic->journal_mac, "journal mac", err);
	if (!r)
		r = check_tag_size(ic, err);
	if (r)
		return r;
	if (ic->mode == 'B' && !ic->internal_hash.hash)
		return dm_fail(err, EINVAL, "integrity: Bitmap mode can be only used with internal hash");
	if (ic->discards && !ic->internal_hash.hash)
		return dm_fail(err, EINVAL, "integrity: Discard can be only used with internal hash");
	ic->l.journal_mac = ic->journal_mac.name;
	ic->l.fix_padding = ic->fix_padding;
	ic->l.log2_buffer = MIN(ic->buffer_sectors ? dm_log2(ic->buffer_sectors) : 0, MAX_LOG2_BUFFER);
	ic->ti->secret = ic->internal_hash.has_key || ic->journal_mac.has_key || ic->journal_crypt.has_key;
	return 0;
}

static void set_defaults(struct integrity *ic)
{
	ic->interleave = DEFAULT_INTERLEAVE;
	ic->buffer_sectors = 128;
	ic->watermark = 50;
	ic->commit_ms = ic->flush_ms = 10000;
	ic->log2_bit = 15;
}

int integrity_read_line(struct integrity *ic, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - DIRECT_ARGS, argv + DIRECT_ARGS};
	unsigned n;
	int r;

	if (argc <= DIRECT_ARGS)
		return dm_fail(
		    err, EINVAL,
		    "integrity: Invalid argument count: %d, <dev> <reserved sectors> <tag size> <mode> <#args> are 5",
		    argc);
	set_defaults(ic);
	r = dm_get_device(ic->ti, argv[0], dm_target_mode(ic->ti), &ic->dev, err);
	if (!r)
		r = read_direct(ic, argv, err);
	if (!r)
		r = dm_read_arg_group(&as, 0, MAX_ARGS, false, "integrity", "feature args", &n, err);
	while (!r && n--)
		r = read_word(ic, dm_shift_arg(&as), err);
	if (!r)
		r = check_words(ic, err);
	return r;
}

void integrity_free_options(struct integrity *ic)
{
	alg_clear(&ic->internal_hash);
	alg_clear(&ic->journal_mac);
	alg_clear(&ic->journal_crypt);
	if (ic->meta_dev)
		dm_put_device(ic->ti, ic->meta_dev);
	if (ic->dev)
		dm_put_device(ic->ti, ic->dev);
}

/* --- printing --------------------------------------------------------------------------------- */

/* As it is used: whole entries of the journal. */
static unsigned watermark(const struct integrity *ic)
{
	uint64_t entries = ic->l.entries, free = (entries * (100 - ic->watermark) + 50) / 100;

	return (unsigned)(((entries - free) * 100 + entries / 2) / entries);
}

static void print_alg(const struct integrity_alg *a, const char *word, GPtrArray *words)
{
	GString *s;

	if (!a->name)
		return;
	s = g_string_sized_new(256 + 2 * a->key.size); /* no copies of the key are left behind */
	g_string_append_printf(s, "%s:%s%s", word, a->name, a->has_key ? ":" : "");
	dm_key_print(a->key.data, a->key.size, s);
	g_ptr_array_add(words, g_string_free(s, false));
}

static void free_word(gpointer word)
{
	explicit_bzero(word, strlen(word));
	g_free(word);
}

static void print_flag(bool flag, const char *word, GPtrArray *words)
{
	if (flag)
		g_ptr_array_add(words, g_strdup(word));
}

static void print_meta_device(struct integrity *ic, GPtrArray *words)
{
	g_autoptr(GString) name = g_string_new("meta_device:");

	dm_dev_print(ic->meta_dev, name);
	g_ptr_array_add(words, g_strdup(name->str));
}

static void print_number(const char *word, uint64_t n, GPtrArray *words)
{
	g_ptr_array_add(words, g_strdup_printf("%s:%" PRIu64, word, n));
}

static void print_words(struct integrity *ic, GPtrArray *words)
{
	unsigned flags = atomic_load(&ic->flags);

	if (ic->meta_dev)
		print_meta_device(ic, words);
	if (ic->l.log2_spb)
		print_number("block_size", integrity_block_bytes(ic), words);
	print_flag(flags & SB_RECALCULATING, "recalculate", words);
	print_flag(ic->reset_recalculate, "reset_recalculate", words);
	print_flag(ic->discards, "allow_discards", words);
	print_number("journal_sectors", ic->l.initial - SB_SECTORS, words);
	print_number("interleave_sectors", 1ull << ic->l.log2_interleave, words);
	print_number("buffer_sectors", 1ull << ic->l.log2_buffer, words);
	if (ic->mode == 'J') {
		print_number("journal_watermark", watermark(ic), words);
		print_number("commit_time", ic->commit_ms, words);
	}
	if (ic->mode == 'B') {
		print_number("sectors_per_bit", 1ull << ic->l.log2_bit, words);
		print_number("bitmap_flush_interval", dm_round_up(ic->flush_ms, TICK_MS), words);
	}
	print_flag(flags & SB_FIXED_PADDING, "fix_padding", words);
	print_flag(flags & SB_FIXED_HMAC, "fix_hmac", words);
	print_flag(ic->legacy_recalculate, "legacy_recalculate", words);
	print_alg(&ic->internal_hash, "internal_hash", words);
	print_alg(&ic->journal_crypt, "journal_crypt", words);
	print_alg(&ic->journal_mac, "journal_mac", words);
}

void integrity_print_line(struct integrity *ic, GString *out)
{
	g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(free_word);

	print_words(ic, words);
	dm_dev_print(ic->dev, out);
	g_string_append_printf(out, " %" PRIu64 " %u %c %u", ic->l.start, ic->l.tag_size, ic->mode, words->len);
	for (guint i = 0; i < words->len; i++)
		g_string_append_printf(out, " %s", (char *)words->pdata[i]);
}
