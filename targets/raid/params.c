/* SPDX-License-Identifier: GPL-2.0-or-later */
/* raid's table line: reading and printing it (params.h). */
#include "params.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>

#include <dmfs/claim.h>

#define MIN_JOURNAL_SECTORS (4u << 11)
#define MIN_RESHAPE_SECTORS 32u
#define MAX_REGIONS (1u << 21)
#define DEFAULT_REGION_SECTORS 8192u
#define MAX_WRITE_BEHIND 16383 /* KiB */

/* --- types ------------------------------------------------------------------------------------- */

static const struct raid_type types[] = {
	{"raid0", 0, 0, 0, 2},
	{"raid1", 1, 0, 0, 2},
	{"raid10", 10, RAID_NEAR, 0, 2},
	{"raid10_near", 10, RAID_NEAR, 0, 2},
	{"raid10_far", 10, RAID_FAR, 0, 2},
	{"raid10_offset", 10, RAID_OFFSET, 0, 2},
	{"raid4", 5, RAID5_FIRST, 1, 2},
	{"raid5_n", 5, RAID5_N, 1, 2},
	{"raid5_ls", 5, RAID5_LS, 1, 2},
	{"raid5_rs", 5, RAID5_RS, 1, 2},
	{"raid5_la", 5, RAID5_LA, 1, 2},
	{"raid5_ra", 5, RAID5_RA, 1, 2},
	{"raid6_zr", 6, RAID6_ZR, 2, 4},
	{"raid6_nr", 6, RAID6_NR, 2, 4},
	{"raid6_nc", 6, RAID6_NC, 2, 4},
	{"raid6_la", 6, RAID5_LA, 2, 4},
	{"raid6_ra", 6, RAID5_RA, 2, 4},
	{"raid6_ls", 6, RAID5_LS, 2, 4},
	{"raid6_rs", 6, RAID5_RS, 2, 4},
	{"raid6_n_6", 6, RAID5_N, 2, 4},
	{"raid6_ls_6", 6, RAID6_LS_6, 2, 4},
	{"raid6_rs_6", 6, RAID6_RS_6, 2, 4},
	{"raid6_la_6", 6, RAID6_LA_6, 2, 4},
	{"raid6_ra_6", 6, RAID6_RA_6, 2, 4},
};

const struct raid_type *raid_type_by_name(const char *name)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(types); i++)
		if (!g_ascii_strcasecmp(types[i].name, name))
			return &types[i];
	return NULL;
}

const struct raid_type *raid_type_of(unsigned level, unsigned layout)
{
	if (level == 10) {
		enum raid_format format = raid10_format_of(layout);

		return raid_type_by_name(format == RAID_NEAR  ? "raid10"
					 : format == RAID_FAR ? "raid10_far"
							      : "raid10_offset");
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(types); i++)
		if (types[i].level == level && types[i].layout == layout)
			return &types[i];
	return NULL;
}

unsigned raid10_layout(enum raid_format format, unsigned copies, bool near_sets)
{
	unsigned sets = near_sets ? 0 : RAID10_FAR_SETS;

	if (format == RAID_NEAR)
		return 1u << 8 | copies;
	return (format == RAID_OFFSET ? RAID10_OFFSET : 0) | sets | copies << 8 | 1;
}

enum raid_format raid10_format_of(unsigned layout)
{
	if (layout & RAID10_OFFSET)
		return RAID_OFFSET;
	return (layout & 0xff) > 1 ? RAID_NEAR : RAID_FAR;
}

unsigned raid10_copies_of(unsigned layout)
{
	unsigned near = layout & 0xff;

	return near > 1 ? near : layout >> 8 & 0xff;
}

/* --- parameters --------------------------------------------------------------------------------- */

enum kind { WORD, NUMBER, INDEX, DEVICE, NAME };

#define OF_0 1u
#define OF_1 2u
#define OF_10 4u
#define OF_45 8u
#define OF_6 16u
#define OF_456 (OF_45 | OF_6)
#define OF_REDUNDANT (OF_1 | OF_10 | OF_456)

static const struct {
	const char *name;
	enum kind kind;
	unsigned levels; /* that take it */
} params[RAID_NR_PARAMS] = {
	[RAID_SYNC] = {"sync", WORD, OF_REDUNDANT},
	[RAID_NOSYNC] = {"nosync", WORD, OF_1 | OF_10 | OF_45},
	[RAID_REBUILD] = {"rebuild", INDEX, OF_REDUNDANT},
	[RAID_DAEMON_SLEEP] = {"daemon_sleep", NUMBER, OF_REDUNDANT},
	[RAID_MIN_RATE] = {"min_recovery_rate", NUMBER, OF_REDUNDANT},
	[RAID_MAX_RATE] = {"max_recovery_rate", NUMBER, OF_REDUNDANT},
	[RAID_MOSTLY] = {"write_mostly", INDEX, OF_1},
	[RAID_WRITE_BEHIND] = {"max_write_behind", NUMBER, OF_1},
	[RAID_STRIPE_CACHE] = {"stripe_cache", NUMBER, OF_456},
	[RAID_REGION_SIZE] = {"region_size", NUMBER, OF_REDUNDANT},
	[RAID_COPIES] = {"raid10_copies", NUMBER, OF_10},
	[RAID_FORMAT] = {"raid10_format", NAME, OF_10},
	[RAID_DELTA_DISKS] = {"delta_disks", NUMBER, OF_REDUNDANT},
	[RAID_DATA_OFFSET] = {"data_offset", NUMBER, OF_0 | OF_REDUNDANT},
	[RAID_JOURNAL_DEV] = {"journal_dev", DEVICE, OF_456},
	[RAID_JOURNAL_MODE] = {"journal_mode", NAME, OF_456},
	[RAID_NEAR_SETS] = {"raid10_use_near_sets", WORD, OF_10},
	[RAID_FAIL_STOP] = {"fail_stop", WORD, OF_REDUNDANT},
};

static const char *const formats[] = {[RAID_NEAR] = "near", [RAID_FAR] = "far", [RAID_OFFSET] = "offset"};
static const char *const modes[] = {"writethrough", "writeback"};

static unsigned level_bit(const struct raid_type *t)
{
	return t->level == 0 ? OF_0 : t->level == 1 ? OF_1 : t->level == 10 ? OF_10 : t->level == 5 ? OF_45 : OF_6;
}

/* A number as the kernel reads one: an int, with a sign if one likes. */
static bool read_int(const char *s, int *out)
{
	const char *digits = s + (*s == '+' || *s == '-');
	uint64_t v;

	if (!dm_parse_u64(digits, &v) || v > INT_MAX)
		return false;
	*out = *s == '-' ? -(int)v : (int)v;
	return true;
}

static int bad_level(enum raid_param which, const char *value, GError **err)
{
	switch (which) {
	case RAID_MOSTLY:
	case RAID_WRITE_BEHIND:
		return dm_fail(err, EINVAL, "raid: %s option is only valid for RAID1", params[which].name);
	case RAID_STRIPE_CACHE:
		return dm_fail(err, EINVAL, "raid: Inappropriate argument: stripe_cache, it is raid4/5/6's");
	default:
		return dm_fail(err, EINVAL, "raid: '%s' is an invalid parameter for this RAID type",
			       params[which].name);
	}
}

static int read_name(const char *word, const char *const *names, unsigned n, unsigned *out)
{
	for (unsigned i = 0; i < n; i++) {
		if (!g_ascii_strcasecmp(word, names[i])) {
			*out = i;
			return 0;
		}
	}
	return -EINVAL;
}

static int read_journal(struct raid_params *p, struct dm_target *ti, const char *value, GError **err)
{
	int error = dm_get_device(ti, value, dm_target_mode(ti), &p->journal, err);
	uint64_t sectors;

	if (error) {
		g_prefix_error(err, "raid: raid4/5/6 journal device lookup failure: ");
		return error;
	}
	error = dm_claim_device(ti, p->journal, dm_target_mode(ti), "journal device", err);
	if (error)
		return error;
	sectors = dm_dev_sectors(p->journal);
	if (sectors < MIN_JOURNAL_SECTORS)
		return dm_fail(err, ENOSPC,
			       "raid: No space for raid4/5/6 journal: '%s' has %" PRIu64 " sectors, %u "
			       "are the least",
			       value, sectors, MIN_JOURNAL_SECTORS);
	return 0;
}

/* What stands behind journal_dev, journal_mode, raid10_format. */
static int read_text(struct raid_params *p, struct dm_target *ti, enum raid_param which, const char *value,
		     GError **err)
{
	unsigned mode;

	if (!(params[which].levels & level_bit(p->type)) && which != RAID_JOURNAL_MODE)
		return bad_level(which, value, err);
	if (which == RAID_JOURNAL_DEV)
		return read_journal(p, ti, value, err);
	if (which == RAID_FORMAT) {
		if (read_name(value, formats, G_N_ELEMENTS(formats), &p->format))
			return dm_fail(err, EINVAL,
				       "raid: Invalid 'raid10_format' value given: '%s', near, far or "
				       "offset would be right",
				       value);
		return 0;
	}
	if (!raid_given(p, RAID_JOURNAL_DEV))
		return dm_fail(err, EINVAL,
			       "raid: raid4/5/6 'journal_mode' is invalid without 'journal_dev' before it");
	if (read_name(value, modes, G_N_ELEMENTS(modes), &mode))
		return dm_fail(err, EINVAL,
			       "raid: Invalid 'journal_mode' argument '%s', writethrough or writeback "
			       "would be right",
			       value);
	p->write_back = mode == 1;
	return 0;
}

static int read_index(struct raid_params *p, enum raid_param which, int v, GError **err)
{
	struct raid_set *set = which == RAID_REBUILD ? &p->rebuild : &p->write_mostly;

	if (which == RAID_MOSTLY && p->type->level != 1)
		return bad_level(which, NULL, err);
	if (v < 0 || (unsigned)v >= p->disks)
		return dm_fail(err, EINVAL, "raid: Invalid %s index given: %d, 0 to %u would be right",
			       params[which].name, v, p->disks - 1);
	if (which == RAID_REBUILD && raid_set_has(set, (unsigned)v))
		return dm_fail(err, EINVAL, "raid: rebuild for this index already given: %d", v);
	raid_set_add(set, (unsigned)v);
	return 0;
}

static int check_number(struct raid_params *p, enum raid_param which, int v, GError **err)
{
	int most = (int)(RAID_MAX_DISKS - p->type->min_disks);

	if ((which == RAID_WRITE_BEHIND || which == RAID_STRIPE_CACHE) && !(params[which].levels & level_bit(p->type)))
		return bad_level(which, NULL, err);
	switch (which) {
	case RAID_WRITE_BEHIND:
		if (v < 0 || v / 2 > MAX_WRITE_BEHIND)
			return dm_fail(err, EINVAL,
				       "raid: Max write-behind limit out of range: %d sectors, 0 to %d would "
				       "be right",
				       v, 2 * MAX_WRITE_BEHIND + 1);
		break;
	case RAID_DATA_OFFSET:
		if (v < 0 || (v && v < (int)MIN_RESHAPE_SECTORS) || v % 8)
			return dm_fail(err, EINVAL,
				       "raid: Bogus data_offset value %d, a multiple of 8 sectors would be "
				       "right",
				       v);
		break;
	case RAID_DELTA_DISKS:
		if (v == 0 || abs(v) > most)
			return dm_fail(err, EINVAL,
				       "raid: Too many delta_disk requested: %d, 1 to %d more or fewer would "
				       "be right",
				       v, most);
		p->delta_disks = v;
		return 0;
	case RAID_COPIES:
		if (v < 2 || (unsigned)v > p->disks)
			return dm_fail(err, EINVAL,
				       "raid: Bad value for 'raid10_copies': %d, 2 to %u (the devices) would "
				       "be right",
				       v, p->disks);
		break;
	default:
		if (v < 0)
			return dm_fail(err, EINVAL, "raid: %s out of range: %d", params[which].name, v);
		break;
	}
	p->value[which] = (unsigned)v;
	return 0;
}

static int find_param(const char *key, enum raid_param *which, GError **err)
{
	for (unsigned i = 0; i < RAID_NR_PARAMS; i++) {
		if (!g_ascii_strcasecmp(key, params[i].name)) {
			*which = (enum raid_param)i;
			return 0;
		}
	}
	return dm_fail(err, EINVAL, "raid: Unable to parse RAID parameter '%s'", key);
}

/* One parameter; *left counts the words there are. */
static int read_param(struct raid_params *p, struct dm_target *ti, struct dm_args *as, unsigned *left, GError **err)
{
	const char *key = dm_shift_arg(as), *value;
	enum raid_param which = RAID_SYNC;
	int v, error = find_param(key, &which, err);

	--*left;
	if (error)
		return error;
	if (raid_given(p, which) && params[which].kind != INDEX)
		return dm_fail(err, EINVAL, "raid: Only one %s argument allowed", params[which].name);
	p->given |= 1u << which;
	if (params[which].kind == WORD)
		return 0;
	if (!*left)
		return dm_fail(err, EINVAL, "raid: Wrong number of raid parameters given: '%s' wants a value", key);
	value = dm_shift_arg(as);
	--*left;
	if (params[which].kind == NAME || params[which].kind == DEVICE) {
		p->given &= ~(1u << which);
		error = read_text(p, ti, which, value, err);
		p->given |= 1u << which;
		return error;
	}
	if (!read_int(value, &v))
		return dm_fail(err, EINVAL, "raid: Bad numerical argument given in raid params: '%s' of %s", value,
			       key);
	return params[which].kind == INDEX ? read_index(p, which, v, err) : check_number(p, which, v, err);
}

static int read_chunk(struct raid_params *p, const char *word, GError **err)
{
	int v;

	if (!read_int(word, &v))
		return dm_fail(err, EINVAL, "raid: Bad numerical argument given for chunk_size: '%s'", word);
	if (p->type->level == 1) {
		if (v)
			dm_log_info("raid: Ignoring chunk size parameter for RAID 1");
		return 0;
	}
	if (v <= 0 || (v & (v - 1)))
		return dm_fail(err, EINVAL, "raid: Chunk size must be a power of 2, not %d", v);
	if (v < 8)
		return dm_fail(err, EINVAL, "raid: Chunk size value is too small: %d sectors, 8 are the least", v);
	p->chunk = (unsigned)v;
	return 0;
}

/* --- what goes together --------------------------------------------------------------------------- */

static uint64_t power_of_two_from(uint64_t v)
{
	uint64_t p = 1;

	while (p < v)
		p <<= 1;
	return p;
}

static int check_region(struct raid_params *p, uint64_t len, GError **err)
{
	uint64_t least = len / MAX_REGIONS, region = p->value[RAID_REGION_SIZE];

	if (p->type->level == 0)
		return 0;
	if (!region) {
		p->region_sectors = least > DEFAULT_REGION_SECTORS ? power_of_two_from(least) : DEFAULT_REGION_SECTORS;
		return 0;
	}
	if (region > len)
		return dm_fail(err, EINVAL,
			       "raid: Supplied region size is too large: %" PRIu64 " of %" PRIu64 " sectors", region,
			       len);
	if (region < least)
		return dm_fail(err, EINVAL,
			       "raid: Supplied region size is too small: %" PRIu64 " sectors, %" PRIu64
			       " are the least here",
			       region, least);
	if (region & (region - 1))
		return dm_fail(err, EINVAL, "raid: Region size is not a power of 2: %" PRIu64, region);
	if (region < p->chunk)
		return dm_fail(err, EINVAL,
			       "raid: Region size is smaller than the chunk size: %" PRIu64 ", %u would be "
			       "the least",
			       region, p->chunk);
	p->region_sectors = region;
	return 0;
}

static int check_raid10(struct raid_params *p, GError **err)
{
	p->copies = raid_given(p, RAID_COPIES) ? p->value[RAID_COPIES] : 2;
	if (p->copies > p->disks)
		return dm_fail(err, EINVAL,
			       "raid: Not enough devices to satisfy specification: %u copies on %u devices", p->copies,
			       p->disks);
	if (!raid_given(p, RAID_FORMAT))
		p->format = p->type->layout;
	if (p->format == RAID_NEAR && raid_given(p, RAID_NEAR_SETS))
		return dm_fail(err, EINVAL, "raid: RAID10 format 'near' and 'raid10_use_near_sets' are incompatible");
	p->layout = raid10_layout(p->format, p->copies, raid_given(p, RAID_NEAR_SETS));
	return 0;
}

static int check_together(struct raid_params *p, uint64_t len, GError **err)
{
	unsigned level = level_bit(p->type);
	int error;

	if (raid_given(p, RAID_SYNC) && raid_given(p, RAID_NOSYNC))
		return dm_fail(err, EINVAL, "raid: sync and nosync are mutually exclusive");
	if (raid_given(p, RAID_REBUILD) && (raid_given(p, RAID_SYNC) || raid_given(p, RAID_NOSYNC)))
		return dm_fail(err, EINVAL, "raid: sync/nosync and rebuild are mutually exclusive");
	if (raid_set_count(&p->write_mostly) >= p->disks)
		return dm_fail(err, EINVAL, "raid: Can't set all raid1 devices to write_mostly");
	if (p->value[RAID_MAX_RATE] && p->value[RAID_MIN_RATE] > p->value[RAID_MAX_RATE])
		return dm_fail(err, EINVAL, "raid: Bogus recovery rates: the least, %u, is above the most, %u",
			       p->value[RAID_MIN_RATE], p->value[RAID_MAX_RATE]);
	error = check_region(p, len, err);
	if (!error && p->type->level == 10)
		error = check_raid10(p, err);
	if (raid_given(p, RAID_FAIL_STOP) && raid_given(p, RAID_NOSYNC)) /* whoever keeps the state knows */
		level |= level & OF_6 ? OF_45 : 0;
	for (unsigned i = 0; i < RAID_NR_PARAMS && !error; i++)
		if (raid_given(p, (enum raid_param)i) && !(params[i].levels & level))
			error = dm_fail(err, EINVAL, "raid: Invalid flags combination: %s with %s", params[i].name,
					p->type->name);
	return error;
}

/* --- devices --------------------------------------------------------------------------------------- */

static int read_pair(struct raid_params *p, struct dm_target *ti, struct dm_args *as, unsigned i, GError **err)
{
	const char *meta = dm_shift_arg(as), *data = dm_shift_arg(as);
	struct raid_pair *pair = &p->pairs[i];
	int error;

	if (strcmp(meta, "-")) {
		if (raid_given(p, RAID_FAIL_STOP))
			return dm_fail(err, EINVAL,
				       "raid: fail_stop is for arrays whose state is kept elsewhere: metadata device "
				       "'%s', - would be right",
				       meta);
		error = dm_get_device(ti, meta, dm_target_mode(ti), &pair->meta, err);
		if (error) {
			g_prefix_error(err, "raid: RAID metadata device lookup failure: ");
			return error;
		}
		error = dm_claim_device(ti, pair->meta, dm_target_mode(ti), "metadata device", err);
		if (error)
			return error;
	}
	if (!strcmp(data, "-")) {
		if (raid_set_has(&p->rebuild, i))
			return dm_fail(err, EINVAL, "raid: Drive designated for rebuild not specified: %u", i);
		if (pair->meta)
			return dm_fail(err, EINVAL, "raid: No data device supplied with metadata device '%s'", meta);
		return 0;
	}
	error = dm_get_device(ti, data, dm_target_mode(ti), &pair->data, err);
	if (error)
		g_prefix_error(err, "raid: RAID device lookup failure: ");
	return error;
}

static int read_counts(struct raid_params *p, int argc, char **argv, unsigned *count, GError **err)
{
	unsigned disks;
	uint64_t most;

	if (!argc)
		return dm_fail(err, EINVAL, "raid: No arguments");
	p->type = raid_type_by_name(argv[0]);
	if (!p->type)
		return dm_fail(err, EINVAL, "raid: Unrecognised raid_type '%s'", argv[0]);
	if (argc < 2 || !dm_parse_uint(argv[1], count) || *count > (unsigned)argc - 2)
		return dm_fail(err, EINVAL, "raid: Cannot understand number of raid parameters '%s', %d words follow",
			       argc < 2 ? "" : argv[1], argc < 2 ? 0 : argc - 2);
	if (!*count)
		return dm_fail(err, EINVAL,
			       "raid: Bad numerical argument given for chunk_size: it is the first of the "
			       "parameters, 1 is the least number of them");
	most = ((unsigned)argc - 2 - *count) / 2; /* if there is a number first */
	if (argc < 3 + (int)*count || !dm_parse_uint(argv[2 + *count], &disks) || !disks ||
	    disks > ((unsigned)argc - 3 - *count) / 2)
		return dm_fail(err, EINVAL,
			       "raid: Cannot understand number of raid devices parameters '%s', %" PRIu64
			       " pairs follow",
			       argc < 3 + (int)*count ? "" : argv[2 + *count], most);
	if (disks > RAID_MAX_DISKS)
		return dm_fail(err, EINVAL, "raid: Invalid number of supplied raid devices: %u, %u are the most", disks,
			       RAID_MAX_DISKS);
	p->disks = disks;
	return 0;
}

int raid_params_read(struct raid_params *p, struct dm_target *ti, int argc, char **argv, GError **err)
{
	unsigned count, left;
	struct dm_args as;
	int error;

	*p = (struct raid_params){0};
	error = read_counts(p, argc, argv, &count, err);
	if (error)
		return error;
	p->pairs = g_new0(struct raid_pair, p->disks);
	p->layout = p->type->layout;
	as = (struct dm_args){argc - 2, argv + 2};
	error = read_chunk(p, dm_shift_arg(&as), err);
	for (left = count - 1; left && !error;)
		error = read_param(p, ti, &as, &left, err);
	if (!error)
		error = check_together(p, ti->len, err);
	dm_shift_arg(&as);
	for (unsigned i = 0; i < p->disks && !error; i++)
		error = read_pair(p, ti, &as, i, err);
	return error;
}

void raid_params_clear(struct raid_params *p, struct dm_target *ti)
{
	for (unsigned i = 0; p->pairs && i < p->disks; i++) {
		if (p->pairs[i].meta)
			dm_put_device(ti, p->pairs[i].meta);
		if (p->pairs[i].data)
			dm_put_device(ti, p->pairs[i].data);
	}
	if (p->journal)
		dm_put_device(ti, p->journal);
	g_clear_pointer(&p->pairs, g_free);
}

/* --- printing --------------------------------------------------------------------------------------- */

static unsigned printed_value(const struct raid_params *p, enum raid_param which, unsigned layout,
			      unsigned stripe_cache)
{
	unsigned v = p->value[which];

	switch (which) {
	case RAID_DAEMON_SLEEP:
		return v ? v : 500;
	case RAID_WRITE_BEHIND:
		return v / 2; /* kept in KiB */
	case RAID_STRIPE_CACHE:
		return stripe_cache;
	case RAID_COPIES:
		return raid10_copies_of(layout);
	case RAID_REGION_SIZE:
		return (unsigned)p->region_sectors;
	default:
		return v;
	}
}

static void print_dev(struct dm_dev *dev, GString *out)
{
	g_string_append_c(out, ' ');
	if (dev)
		dm_dev_print(dev, out);
	else
		g_string_append_c(out, '-');
}

static void print_param(const struct raid_params *p, enum raid_param which, unsigned layout, unsigned stripe_cache,
			GString *out)
{
	const struct raid_set *set = which == RAID_REBUILD ? &p->rebuild : &p->write_mostly;
	const char *name = params[which].name;

	if (params[which].kind == INDEX) {
		for (unsigned i = 0; i < p->disks; i++)
			if (raid_set_has(set, i))
				g_string_append_printf(out, " %s %u", name, i);
		return;
	}
	g_string_append_printf(out, " %s", name);
	if (which == RAID_JOURNAL_DEV)
		print_dev(p->journal, out);
	else if (which == RAID_JOURNAL_MODE)
		g_string_append_printf(out, " %s", modes[p->write_back]);
	else if (which == RAID_FORMAT)
		g_string_append_printf(out, " %s", formats[raid10_format_of(layout)]);
	else if (which == RAID_DELTA_DISKS)
		g_string_append_printf(out, " %d", p->delta_disks);
	else if (params[which].kind == NUMBER)
		g_string_append_printf(out, " %u", printed_value(p, which, layout, stripe_cache));
}

void raid_params_print(const struct raid_params *p, unsigned chunk, unsigned layout, unsigned stripe_cache,
		       GString *out)
{
	unsigned count = 1;

	for (unsigned i = 0; i < RAID_NR_PARAMS; i++) {
		if (!raid_given(p, (enum raid_param)i))
			continue;
		if (params[i].kind == INDEX)
			count += 2 * raid_set_count(i == RAID_REBUILD ? &p->rebuild : &p->write_mostly);
		else
			count += params[i].kind == WORD ? 1 : 2;
	}
	g_string_append_printf(out, "%s %u %u", p->type->name, count, chunk);
	for (unsigned i = 0; i < RAID_NR_PARAMS; i++)
		if (raid_given(p, (enum raid_param)i))
			print_param(p, (enum raid_param)i, layout, stripe_cache, out);
	g_string_append_printf(out, " %u", p->disks);
	for (unsigned i = 0; i < p->disks; i++) {
		print_dev(p->pairs[i].meta, out);
		print_dev(p->pairs[i].data, out);
	}
}
