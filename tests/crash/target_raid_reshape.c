/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid in other shapes: layouts and chunks that change behind or before the data, one device more, one less; raid5,
 * raid6 and raid10.
 *
 * The devices have GAP sectors more than the data.  Where a device is added the room is before the data from the
 * beginning: devices e0, e1, … that leave it out make the array.  The volume is what both shapes hold, as the lines of
 * a reshape are as long as all its devices make.
 */
#include "raid.h"

#define GAP 32u

struct form {
	const char *type;
	unsigned chunk, disks;
};

static const struct shape {
	const char *name;
	struct form from, to;
	unsigned layout; /* the old one's number */
	unsigned spare;	 /* devices that may fail */
} shapes[] = {
    {"raid5_reshape", {"raid5_ls", 8, 3}, {"raid5_ra", 8, 3}, 2, 1},
    {"raid5_chunk", {"raid5_ls", 8, 3}, {"raid5_ls", 16, 3}, 2, 1},
    {"raid5_grow", {"raid5_ls", 8, 3}, {"raid5_ls", 8, 4}, 2, 1},
    {"raid5_shrink", {"raid5_ls", 8, 4}, {"raid5_ls", 8, 3}, 2, 1},
    {"raid6_reshape", {"raid6_zr", 8, 4}, {"raid6_nr", 16, 4}, 8, 2},
    {"raid10_reshape", {"raid10", 8, 3}, {"raid10_offset", 8, 3}, 0x102, 1},
    {"raid10_grow", {"raid10", 8, 3}, {"raid10", 8, 4}, 0x102, 1},
};

static const struct shape *shape_of(struct lab *lab)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(shapes); i++)
		if (lab_is(lab, shapes[i].name))
			return &shapes[i];
	return NULL;
}

static int delta(const struct shape *k)
{
	return (int)k->to.disks - (int)k->from.disks;
}

static bool backwards(const struct shape *k)
{
	return delta(k) <= 0;
}

static bool is_mirror(const struct shape *k)
{
	return g_str_has_prefix(k->from.type, "raid10");
}

/* --- lines ------------------------------------------------------------------------------------------ */

/* In the order in which they are right. */
enum { BEFORE, LACKS, BEGINS, GOES, AFTER };

static unsigned length_of(const char *type, unsigned disks)
{
	if (g_str_has_prefix(type, "raid10"))
		return DEV_SECTORS * disks / 2;
	return DEV_SECTORS * (disks - (unsigned)(type[4] - '4'));
}

static unsigned volume_sectors(const struct shape *k)
{
	return MIN(length_of(k->from.type, k->from.disks), length_of(k->to.type, k->to.disks));
}

static char *make_line(const struct shape *k, unsigned which)
{
	const struct form *f = which == BEFORE ? &k->from : &k->to;
	unsigned disks = which == BEFORE || which == AFTER ? f->disks : MAX(k->from.disks, k->to.disks), words = 1;
	bool offset = g_str_has_suffix(f->type, "_offset");
	g_autoptr(GString) params = g_string_new(NULL);
	GString *line = g_string_new(NULL);

	if (offset)
		g_string_append(params, " raid10_format offset");
	if (which == BEGINS && delta(k))
		g_string_append_printf(params, " delta_disks %d", delta(k));
	if (which == BEGINS)
		g_string_append_printf(params, " data_offset %u", GAP);
	for (const char *c = params->str; *c; c++)
		words += *c == ' ';
	g_string_printf(line, "0 %u raid %s %u %u%s %u", length_of(f->type, disks), offset ? "raid10" : f->type, words,
			f->chunk, params->str, disks);
	for (unsigned i = 0; i < disks; i++) {
		if (which == LACKS && i + 1 == disks)
			g_string_append(line, " - -");
		else
			g_string_append_printf(line, " m%u %c%u", i, which == BEFORE && delta(k) > 0 ? 'e' : 'd', i);
	}
	return g_string_free(line, FALSE);
}

/* --- the stack -------------------------------------------------------------------------------------- */

static int open_small(struct lab *lab, const struct shape *k, GError **err)
{
	int error = 0;

	for (unsigned i = 0; delta(k) > 0 && i < k->from.disks && !error; i++) {
		char name[3] = {'e', (char)('0' + i), 0};
		g_autofree char *line = g_strdup_printf("0 %u linear d%u %u", DEV_SECTORS, i, GAP);

		error = lab_device(lab, name, err, line, NULL);
	}
	return error;
}

static int try_line(struct lab *lab, const struct shape *k, unsigned which, GError **err)
{
	g_autofree char *line = make_line(k, which);
	struct kept *kept = lab_private(lab, sizeof *kept);

	kept->line = which;
	return lab_device(lab, "array", err, line, NULL);
}

/*
 * What the superblocks know decides which line is right: one that is not is refused.  A new device lacks, if it failed
 * before it had a superblock; and the array is as before, if another had failed before.  Without data_offset a line
 * never begins a reshape: what the superblocks say goes on.
 */
static int open_array(struct lab *lab, const struct shape *k, GError **err)
{
	int error;

	if (!lab_reached(lab, "reshape"))
		error = 1;
	else if (delta(k) > 0)
		error = try_line(lab, k, GOES, NULL) && try_line(lab, k, BEGINS, NULL) && try_line(lab, k, LACKS, NULL);
	else if (delta(k) < 0)
		error = try_line(lab, k, AFTER, NULL) && try_line(lab, k, GOES, NULL);
	else
		return try_line(lab, k, GOES, err);
	if (!error)
		return 0;
	error = open_small(lab, k, err);
	return error ? error : try_line(lab, k, BEFORE, err);
}

static int open_shape(struct lab *lab, GError **err)
{
	const struct shape *k = shape_of(lab);
	g_autofree char *volume = g_strdup_printf("0 %u linear array 0", volume_sectors(k));
	char name[3];
	int error = raid_newest(lab, MAX(k->from.disks, k->to.disks), name, err);

	if (!error)
		error = open_array(lab, k, err);
	if (!error)
		error = lab_device(lab, "vol", err, volume, NULL);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

/* Whether a sector is where the new shape has it. */
static bool has_moved(const struct shape *k, const struct kept *kept, uint64_t sector)
{
	if (kept->line == BEFORE || kept->line == BEGINS)
		return false;
	if (kept->position != UINT64_MAX)
		return (sector < kept->position) != backwards(k);
	if (delta(k)) /* it has come to its end; of less devices that is told by the line */
		return delta(k) > 0 || kept->line == AFTER;
	return kept->layout != k->layout || kept->chunk != k->from.chunk;
}

static bool lost_shape(struct lab *lab, const char *volume, uint64_t sector)
{
	const struct shape *k = shape_of(lab);
	bool moved = has_moved(k, lab_private(lab, sizeof(struct kept)), sector);
	const struct form *f = moved ? &k->to : &k->from;

	return !is_mirror(k) && raid_in_hole(lab, f->type, f->disks, f->chunk, sector, moved == backwards(k) ? GAP : 0);
}

/* --- what must hold ----------------------------------------------------------------------------------- */

static int load_line(struct lab *lab, const struct shape *k, unsigned which, GError **err)
{
	g_autofree char *line = make_line(k, which);

	return lab_load(lab, "array", err, line, NULL);
}

static bool has_disks(struct lab *lab, unsigned disks)
{
	g_autofree char *status = lab_status(lab, "array"), *words = g_strdup_printf(" %u ", disks);
	const char *type = status ? strstr(status, " raid ") : NULL;

	return type && g_str_has_prefix(strchr(type + strlen(" raid "), ' '), words);
}

/* A device that came back is brought up to date by the array that the reshape has made, after a resume. */
static int check_shape(struct lab *lab, GError **err)
{
	const struct shape *k = shape_of(lab);
	const struct kept *kept = lab_private(lab, sizeof *kept);
	unsigned disks = kept->line == BEFORE ? k->from.disks : k->to.disks;
	/* the line after the one that begins it lets it go on */
	int error = kept->line == BEGINS ? load_line(lab, k, GOES, err) : 0;

	if (!error)
		error = lab_wait_status(lab, "array", " idle ", err);
	if (!error && delta(k) < 0 && kept->line == GOES) {
		if (!has_disks(lab, k->to.disks))
			disks = k->from.disks; /* it had not begun */
		else
			error = load_line(lab, k, AFTER, err);
	}
	if (!error)
		error = lab_suspend(lab, "array", err);
	if (!error)
		error = lab_resume(lab, "array", err);
	if (error || kept->line == LACKS)
		return error;
	return raid_check_array(lab, "array", disks, err);
}

/* --- use --------------------------------------------------------------------------------------------------- */

/*
 * Whether a reshape can come to its end: while more devices cannot be written than it bears it does not.  The last
 * sectors of the metadata devices are nobody's.
 */
static bool can_go_on(struct lab *lab)
{
	static const char nothing[DM_SECTOR_SIZE];
	const struct shape *k = shape_of(lab);
	unsigned bad = 0;

	for (unsigned i = 0; i < MAX(k->from.disks, k->to.disks); i++) {
		char meta[3] = {'m', (char)('0' + i), 0};
		g_autoptr(GError) err = NULL;

		bad +=
		    lab_write_raw(lab, meta, (META_SECTORS - 1) * DM_SECTOR_SIZE, nothing, sizeof nothing, &err) != 0;
	}
	return bad <= k->spare;
}

static bool load(struct lab *lab, unsigned which)
{
	g_autoptr(GError) err = NULL;

	return lab_ok(lab, load_line(lab, shape_of(lab), which, &err), &err);
}

/* times: so many requests at each step. */
static void reshape(struct lab *lab, unsigned times)
{
	const struct shape *k = shape_of(lab);
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, times, "vol", NULL);
	lab_ok(lab, lab_wait_status(lab, "array", " idle ", &err), &err);
	lab_step(lab, "reshape");
	if (!load(lab, BEGINS))
		return;
	lab_random_io(lab, times / 2, "vol", NULL);
	if (!load(lab, GOES))
		return;
	lab_random_io(lab, times, "vol", NULL);
	g_clear_error(&err);
	lab_ok(lab, lab_wait_status_while(lab, "array", " idle ", lab_faulty(lab) ? can_go_on : NULL, &err), &err);
	lab_random_io(lab, times / 2, "vol", NULL);
	if (delta(k) < 0 && has_disks(lab, k->to.disks) ? load(lab, AFTER) : raid_pause(lab, "array"))
		lab_random_io(lab, times / 2, "vol", NULL);
}

static void use_shape(struct lab *lab)
{
	reshape(lab, 24);
}

static void use_shape_shortly(struct lab *lab)
{
	reshape(lab, 10);
}

#define CUSTOMER(id, most, ...)                                                                                        \
	LAB_CUSTOMER(id) = {.slices = RAID_SLICES##most(GAP),                                                          \
			    .open = open_shape,                                                                        \
			    .workload = use_shape,                                                                     \
			    .check = check_shape,                                                                      \
			    .fault_workload = use_shape_shortly,                                                       \
			    .excuse = raid_excuse,                                                                     \
			    .lost = lost_shape,                                                                        \
			    __VA_ARGS__}

CUSTOMER(raid5_reshape, 3, .bears = 1);
CUSTOMER(raid5_chunk, 3, .bears = 1);
CUSTOMER(raid5_grow, 4, .bears = 1);
CUSTOMER(raid5_shrink, 4, .bears = 1);
CUSTOMER(raid6_reshape, 4, .bears = 2);
CUSTOMER(raid10_reshape, 3, .bears = 1);
CUSTOMER(raid10_grow, 4, .bears = 1);
