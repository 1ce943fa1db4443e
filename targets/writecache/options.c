/* SPDX-License-Identifier: GPL-2.0-or-later */
/* writecache's optional arguments: words in any case, most with a number; `table` shows those that were given, in this order. */
#include "writecache.h"

#include <inttypes.h>

#define MAX_ARGS 18u /* as the kernel counts */
#define HIGH_PERCENT 50u
#define LOW_PERCENT 45u
#define JOBS 65536u
#define PAUSE_MS 3000u

enum option {
	START_SECTOR, HIGH_WATERMARK, LOW_WATERMARK, WRITEBACK_JOBS, AUTOCOMMIT_BLOCKS, AUTOCOMMIT_TIME, MAX_AGE, CLEANER, FUA,
	NOFUA, METADATA_ONLY, PAUSE_WRITEBACK, OPTIONS,
};

enum where {
	ANYWHERE, ONLY_P, ONLY_S,
};

static const struct known {
	const char *word;
	bool number;
	uint64_t max;
	enum where where;
} known[OPTIONS] = {
	[START_SECTOR] = {"start_sector", true, UINT64_MAX, ANYWHERE},
	[HIGH_WATERMARK] = {"high_watermark", true, 100, ANYWHERE},
	[LOW_WATERMARK] = {"low_watermark", true, 100, ANYWHERE},
	[WRITEBACK_JOBS] = {"writeback_jobs", true, UINT_MAX, ANYWHERE},
	[AUTOCOMMIT_BLOCKS] = {"autocommit_blocks", true, UINT_MAX, ANYWHERE},
	[AUTOCOMMIT_TIME] = {"autocommit_time", true, 3600000, ANYWHERE},
	[MAX_AGE] = {"max_age", true, 86400000, ANYWHERE},
	[CLEANER] = {"cleaner", false, 0, ANYWHERE},
	[FUA] = {"fua", false, 0, ONLY_P},
	[NOFUA] = {"nofua", false, 0, ONLY_P},
	[METADATA_ONLY] = {"metadata_only", false, 0, ANYWHERE},
	[PAUSE_WRITEBACK] = {"pause_writeback", true, 60000, ONLY_S},
};

static void take(struct wc_options *o, enum option which, uint64_t n)
{
	unsigned value = (unsigned)n;

	switch (which) {
	case START_SECTOR:
		o->start_sector = n;
		break;
	case HIGH_WATERMARK:
		o->high = value;
		break;
	case LOW_WATERMARK:
		o->low = value;
		break;
	case WRITEBACK_JOBS:
		o->jobs = value;
		break;
	case AUTOCOMMIT_BLOCKS:
		o->autocommit_blocks = value;
		break;
	case AUTOCOMMIT_TIME:
		o->autocommit_ms = value;
		break;
	case MAX_AGE:
		o->max_age_ms = value;
		break;
	case CLEANER:
		o->cleaner = true;
		break;
	case FUA:
	case NOFUA:
		o->fua = which == FUA;
		o->set &= ~(1u << FUA | 1u << NOFUA);
		break;
	case METADATA_ONLY:
		o->metadata_only = true;
		break;
	case PAUSE_WRITEBACK:
		o->pause_ms = value;
		break;
	case OPTIONS:
		break;
	}
	o->set |= 1u << which;
}

static int parse_one(struct wc_options *o, struct dm_args *as, unsigned *left, bool pmem, uint64_t cache_sectors, GError **err)
{
	const char *word = dm_shift_arg(as), *value = NULL;
	unsigned which = 0;
	uint64_t n = 0, max;

	--*left;
	while (which < OPTIONS && g_ascii_strcasecmp(word, known[which].word))
		which++;
	if (which == OPTIONS)
		return dm_fail(err, EINVAL, "writecache: Invalid optional argument '%s': none of start_sector, high_watermark, "
					    "low_watermark, writeback_jobs, autocommit_blocks, autocommit_time, max_age, "
					    "cleaner, fua, nofua, metadata_only, pause_writeback", word);
	if (known[which].where == (pmem ? ONLY_S : ONLY_P))
		return dm_fail(err, EINVAL, "writecache: Invalid optional argument '%s': it is for type %s only", word,
			       pmem ? "s" : "p");
	if (known[which].number) {
		if (!*left)
			return dm_fail(err, EINVAL, "writecache: Invalid optional argument '%s': its value is missing", word);
		value = dm_shift_arg(as);
		--*left;
		max = which == START_SECTOR ? cache_sectors - 1 : known[which].max;
		if (!dm_parse_u64(value, &n) || n > max)
			return dm_fail(err, EINVAL, "writecache: Invalid optional argument '%s %s': a number from 0 to %" PRIu64,
				       word, value, max);
	}
	take(o, (enum option)which, n);
	return 0;
}

int wc_options_parse(struct wc_options *o, struct dm_args *as, bool pmem, uint64_t cache_sectors, GError **err)
{
	unsigned n;
	int error = 0;

	*o = (struct wc_options){
		.high = HIGH_PERCENT, .low = LOW_PERCENT, .jobs = JOBS, .autocommit_blocks = pmem ? 64 : 65536,
		.autocommit_ms = 1000, .max_age_ms = UINT_MAX, .pause_ms = pmem ? 0 : PAUSE_MS, .fua = pmem,
	};
	if (!as->argc || !dm_parse_uint(as->argv[0], &n) || n > MAX_ARGS || n > (unsigned)as->argc - 1)
		return dm_fail(err, EINVAL, "writecache: Invalid number of feature args: %s, of %d that follow; 0 to %u",
			       as->argc ? as->argv[0] : "it is missing", MAX(as->argc - 1, 0), MAX_ARGS);
	dm_shift_arg(as);
	while (n && !error)
		error = parse_one(o, as, &n, pmem, cache_sectors, err);
	if (!error && o->high < o->low)
		error = dm_fail(err, EINVAL, "writecache: High watermark must be greater than or equal to low watermark: %u and %u",
				o->high, o->low);
	return error;
}

static uint64_t value_of(const struct wc_options *o, enum option which)
{
	switch (which) {
	case START_SECTOR:
		return o->start_sector;
	case HIGH_WATERMARK:
		return o->high;
	case LOW_WATERMARK:
		return o->low;
	case WRITEBACK_JOBS:
		return o->jobs;
	case AUTOCOMMIT_BLOCKS:
		return o->autocommit_blocks;
	case AUTOCOMMIT_TIME:
		return o->autocommit_ms;
	case MAX_AGE:
		return o->max_age_ms;
	case PAUSE_WRITEBACK:
		return o->pause_ms;
	default:
		return 0;
	}
}

void wc_options_print(const struct wc_options *o, GString *out)
{
	unsigned words = 0;

	for (unsigned i = 0; i < OPTIONS; i++)
		words += o->set >> i & 1 ? 1 + known[i].number : 0;
	g_string_append_printf(out, "%u", words);
	for (unsigned i = 0; i < OPTIONS; i++) {
		if (!(o->set >> i & 1))
			continue;
		g_string_append_printf(out, " %s", known[i].word);
		if (known[i].number)
			g_string_append_printf(out, " %" PRIu64, value_of(o, (enum option)i));
	}
}
