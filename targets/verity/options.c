/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The optional words of a verity line, in any order and of any case:
 *
 *   ignore_corruption | restart_on_corruption | panic_on_corruption
 *   ignore_zero_blocks, check_at_most_once, try_verify_in_tasklet
 *   use_fec_from_device DEV, fec_blocks N, fec_start N, fec_roots N
 *   root_hash_sig_key_desc TEXT
 *
 * FEC's numbers are checked without a FEC device too, but then mean nothing.
 */
#include <inttypes.h>

#include "rs.h"
#include "verity.h"

#define MAX_WORDS 14

static const struct {
	const char *word;
	enum verity_mode mode;
} modes[] = {
	{"ignore_corruption", VERITY_MODE_LOGGING},
	{"restart_on_corruption", VERITY_MODE_RESTART},
	{"panic_on_corruption", VERITY_MODE_PANIC},
};

static bool same(const char *a, const char *b)
{
	return !g_ascii_strcasecmp(a, b);
}

/* 1: it is a mode's word, taken. */
static int read_mode(struct verity *v, const char *word, GError **err)
{
	for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
		if (!same(word, modes[i].word))
			continue;
		if (v->mode)
			return dm_fail(err, EINVAL, "verity: Conflicting error handling parameters: %s after another one",
				       word);
		v->mode = modes[i].mode;
		return 1;
	}
	return 0;
}

static int read_blocks(const struct verity *v, const char *what, const char *word, uint64_t *out, GError **err)
{
	uint64_t max = (uint64_t)INT64_MAX >> v->f.data_bits;

	if (!dm_parse_u64(word, out) || *out > max)
		return dm_fail(err, EINVAL, "verity: Invalid %s '%s': a number of blocks up to %" PRIu64, what, word, max);
	return 0;
}

static int read_roots(const char *word, unsigned *out, GError **err)
{
	if (!dm_parse_uint(word, out) || *out < RS_MIN_ROOTS || *out > RS_MAX_ROOTS)
		return dm_fail(err, EINVAL, "verity: Invalid fec_roots '%s': a number from %d to %d", word, RS_MIN_ROOTS,
			       RS_MAX_ROOTS);
	return 0;
}

static int get_fec_device(struct dm_target *ti, struct verity_fec *fec, const char *name, GError **err)
{
	dm_put_device(ti, fec->dev);
	fec->dev = NULL;
	return dm_get_device(ti, name, DM_MODE_READ, &fec->dev, err);
}

/* 1: it is a word of FEC's, taken with its value. */
static int read_fec(struct dm_target *ti, struct verity *v, const char *word, const char *value, GError **err)
{
	struct verity_fec *fec = v->fec;
	int r;

	if (!same(word, "use_fec_from_device") && !same(word, "fec_blocks") && !same(word, "fec_start") &&
	    !same(word, "fec_roots"))
		return 0;
	if (!value)
		return dm_fail(err, EINVAL, "verity: FEC feature arguments require a value: %s", word);
	if (same(word, "use_fec_from_device"))
		r = get_fec_device(ti, fec, value, err);
	else if (same(word, "fec_roots"))
		r = read_roots(value, &fec->roots, err);
	else
		r = read_blocks(v, word, value, same(word, "fec_blocks") ? &fec->blocks : &fec->start, err);
	return r ? r : 1;
}

static int use_validated(struct verity *v, GError **err)
{
	if (v->f.data_blocks > INT32_MAX)
		return dm_fail(err, E2BIG,
			       "verity: device too large to use check_at_most_once: %" PRIu64 " blocks, %d is the most",
			       v->f.data_blocks, INT32_MAX);
	if (!v->validated)
		v->validated = verity_validated_new(v->f.data_blocks);
	return v->validated ? 0 : dm_fail(err, ENOMEM, "verity: failed to allocate bitset for check_at_most_once");
}

static int read_signature_key(struct verity *v, const char *value, GError **err)
{
	if (!value)
		return dm_fail(err, EINVAL, "verity: DM Verity Sig Verification Signature key not specified");
	g_free(v->signature_key);
	v->signature_key = g_strdup(value);
	return 0;
}

/* Its value, if it has one, is taken by shifting *as. */
static int read_word(struct dm_target *ti, struct verity *v, const char *word, struct dm_args *as, GError **err)
{
	int r = read_mode(v, word, err);

	if (r)
		return MIN(r, 0);
	r = read_fec(ti, v, word, as->argc ? as->argv[0] : NULL, err);
	if (r > 0)
		dm_shift_arg(as);
	if (r)
		return MIN(r, 0);
	if (same(word, "root_hash_sig_key_desc"))
		return read_signature_key(v, dm_shift_arg(as), err);
	if (same(word, "check_at_most_once"))
		return use_validated(v, err);
	if (same(word, "ignore_zero_blocks"))
		v->ignore_zero_blocks = true;
	else if (same(word, "try_verify_in_tasklet"))
		v->tasklet = true;
	else
		return dm_fail(err, EINVAL, "verity: Unrecognized verity feature request: %s", word);
	return 0;
}

/* Words beyond the number of them that is said mean nothing, as in the kernel. */
int verity_read_options(struct dm_target *ti, struct verity *v, struct dm_args *as, GError **err)
{
	struct dm_args words;
	unsigned n;
	int r;

	if (!as->argc)
		return 0;
	if (!dm_parse_uint(as->argv[0], &n) || n > MAX_WORDS || n > (unsigned)as->argc - 1)
		return dm_fail(err, EINVAL,
			       "verity: Invalid number of feature args '%s': at most %d, and %d words follow", as->argv[0],
			       MAX_WORDS, as->argc - 1);
	words = (struct dm_args){(int)n, as->argv + 1};
	v->fec = g_new0(struct verity_fec, 1);
	for (r = 0; !r && words.argc;)
		r = read_word(ti, v, dm_shift_arg(&words), &words, err);
	if (!r && !v->fec->dev)
		g_clear_pointer(&v->fec, verity_fec_free);
	return r;
}

static const char *mode_word(const struct verity *v)
{
	for (size_t i = 0; i < G_N_ELEMENTS(modes); i++)
		if (modes[i].mode == v->mode)
			return modes[i].word;
	return NULL;
}

void verity_print_options(const struct verity *v, GString *out)
{
	const char *mode = mode_word(v);
	unsigned n = (mode != NULL) + v->ignore_zero_blocks + (v->validated != NULL) + v->tasklet +
		     (v->fec ? 8 : 0) + (v->signature_key ? 2 : 0);

	if (!n)
		return;
	g_string_append_printf(out, " %u", n);
	if (mode)
		g_string_append_printf(out, " %s", mode);
	if (v->ignore_zero_blocks)
		g_string_append(out, " ignore_zero_blocks");
	if (v->validated)
		g_string_append(out, " check_at_most_once");
	if (v->tasklet)
		g_string_append(out, " try_verify_in_tasklet");
	if (v->fec) {
		g_string_append(out, " use_fec_from_device ");
		dm_dev_print(v->fec->dev, out);
		g_string_append_printf(out, " fec_blocks %" PRIu64 " fec_start %" PRIu64 " fec_roots %u", v->fec->blocks,
				       v->fec->start, v->fec->roots);
	}
	if (v->signature_key) {
		g_string_append(out, " root_hash_sig_key_desc ");
		dm_quote_word(v->signature_key, out);
	}
}
