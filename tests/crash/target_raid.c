/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid with metadata devices: mirrors, raid10, raid5 and raid6; made, resynchronised, written, rebuilt.  (What becomes
 * of them in a reshape is target_raid_reshape.c's.)
 *
 * Before an array is built on what a power loss has left its devices are compared
 * wherever the bitmap says clean: copies are equal, the sum of raid5's devices is
 * zero.  When all is in sync a check must find nothing.
 *
 * What a device that is out held may be lost where parity was being written (the write hole); all else must be right.
 */
#include "raid.h"

#define REGION 32u
#define BITMAP 4096u

struct kind {
	const char *name, *type;
	unsigned disks, chunk, length;
	bool mirror; /* device 2k + 1 is device 2k's copy */
};

static const struct kind kinds[] = {
    {"raid1", "raid1", 2, 0, DEV_SECTORS, .mirror = true},
    {"raid1_rebuild", "raid1", 2, 0, DEV_SECTORS, .mirror = true},
    {"raid10", "raid10", 4, 8, 2 * DEV_SECTORS, .mirror = true},
    {"raid5", "raid5_ls", 3, 8, 2 * DEV_SECTORS, .mirror = false},
    {"raid5_rebuild", "raid5_ls", 3, 16, 2 * DEV_SECTORS, .mirror = false},
    {"raid6", "raid6_zr", 4, 8, 2 * DEV_SECTORS, .mirror = false},
    {"raid5_journal", "raid5_ls", 3, 8, 2 * DEV_SECTORS, .mirror = false},
    {"raid5_writeback", "raid5_ls", 3, 16, 2 * DEV_SECTORS, .mirror = false},
};

static const struct kind *kind_of(struct lab *lab)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (lab_is(lab, kinds[i].name))
			return &kinds[i];
	return NULL;
}

/* --- what the devices must hold ------------------------------------------------------------------ */

static int compare(struct lab *lab, const struct kind *k, const uint8_t *bits, GError **err)
{
	size_t len = DEV_SECTORS * DM_SECTOR_SIZE;
	g_autofree uint8_t *all = g_malloc(k->disks * len);

	for (unsigned i = 0; i < k->disks; i++) {
		char name[3] = {'d', (char)('0' + i), 0};
		int error = lab_read_raw(lab, name, 0, all + i * len, len, err);

		if (error)
			return error;
	}
	for (size_t at = 0; at < len; at++) {
		/* raid10's bitmap is about the array, which two devices side by side make up */
		unsigned region = (unsigned)(at / DM_SECTOR_SIZE / REGION) * (k->chunk && k->mirror ? 2 : 1);
		bool dirty = bits[region / 8] >> (region % 8) & 1;
		uint8_t sum = 0;

		if (k->chunk && k->mirror)
			dirty |= bits[(region + 1) / 8] >> ((region + 1) % 8) & 1;
		if (dirty)
			continue;
		for (unsigned i = 0; i < k->disks; i++) {
			sum ^= all[i * len + at];
			if (k->mirror && i % 2 && all[i * len + at] != all[(i - 1) * len + at])
				return dm_fail(err, EIO, "byte %zu differs on d%u and d%u though the bitmap says clean",
					       at, i - 1, i);
		}
		if (!k->mirror && sum && k->disks == 3)
			return dm_fail(err, EIO, "byte %zu: the parity is wrong though the bitmap says clean", at);
	}
	return 0;
}

int raid_newest(struct lab *lab, unsigned disks, char *name, GError **err)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	uint64_t most = 0, behind = 0;

	*kept = (struct kept){.position = UINT64_MAX};
	for (unsigned i = 0; i < disks; i++) {
		char meta[3] = {'m', (char)('0' + i), 0};
		uint64_t events, recovery;
		uint8_t super[512];
		int error = lab_read_raw(lab, meta, 0, super, sizeof super, err);

		if (error)
			return error;
		memcpy(&events, super + 16, sizeof events);
		memcpy(&recovery, super + 32, sizeof recovery);
		if (memcmp(super, "DmRd", 4) || recovery != UINT64_MAX)
			behind |= 1ull << i;
		if (events <= most)
			continue;
		most = events;
		strcpy(name, meta);
		memcpy(&kept->failed, super + 24, sizeof kept->failed);
		memcpy(&kept->resync, super + 40, sizeof kept->resync);
		memcpy(&kept->layout, super + 52, sizeof kept->layout);
		memcpy(&kept->chunk, super + 56, sizeof kept->chunk);
		memcpy(&kept->position, super + 64, sizeof kept->position);
	}
	kept->behind = behind;
	return 0;
}

static int compare_clean(struct lab *lab, const struct kind *k, GError **err)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	uint8_t image[256 + 8];
	char name[3] = "m0";
	int error = raid_newest(lab, k->disks, name, err);

	if (error || kept->behind || kept->failed) /* what is to be rebuilt may hold anything */
		return error;
	error = lab_read_raw(lab, name, BITMAP, image, sizeof image, err);
	return error ? error : compare(lab, k, image + 256, err);
}

/* --- the stack -------------------------------------------------------------------------------------- */

static char *make_line(const struct kind *k, const char *params, unsigned count)
{
	GString *line = g_string_new(NULL);

	g_string_printf(line, "0 %u raid %s %u %u %s region_size %u daemon_sleep 5 %u", k->length, k->type, 5 + count,
			k->chunk, params, REGION, k->disks);
	for (unsigned i = 0; i < k->disks; i++)
		g_string_append_printf(line, " m%u d%u", i, i);
	return g_string_free(line, FALSE);
}

static int open_raid(struct lab *lab, GError **err)
{
	const struct kind *k = kind_of(lab);
	g_autofree char *line = make_line(k, "", 0);
	int error = lab_first_open(lab) ? 0 : compare_clean(lab, k, err);

	if (!error)
		error = lab_device(lab, "vol", err, line, NULL);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

/* --- the write hole --------------------------------------------------------------------------------- */

/*
 * What a failed device held is what the others sum up to.  Where the power failed while one of them was written, the
 * sum may be anything; a journal alone closes that hole.  All that was on devices that are there must be right.
 */

/* Where raid5_ls, raid5_ra, raid6_zr or raid6_nr keep a sector of the array. */
static unsigned device_of(const char *type, unsigned n, unsigned chunk_sectors, uint64_t sector, uint64_t *at)
{
	unsigned parity = type[4] - '4', data = n - parity;
	uint64_t chunk = sector / chunk_sectors, row = chunk / data;
	unsigned slot = (unsigned)(chunk % data), p = (unsigned)(row % n);

	*at = row * chunk_sectors + sector % chunk_sectors;
	if (g_str_has_suffix(type, "_ls"))
		return (n - p + slot) % n; /* parity goes down from the last device on; data follows it, around */
	if (g_str_has_suffix(type, "_ra"))
		return slot + (slot >= p);
	if (g_str_has_suffix(type, "_nr"))
		p = (unsigned)(n - 1 - (row + 1) % n);
	return p == n - 1 ? slot + 1 : slot < p ? slot : slot + 2; /* Q is behind P, around */
}

bool raid_in_hole(struct lab *lab, const char *type, unsigned disks, unsigned chunk, uint64_t sector, uint64_t offset)
{
	const struct kept *kept = lab_private(lab, sizeof *kept);
	uint64_t at;
	unsigned disk = device_of(type, disks, chunk, sector, &at);
	bool unsure = false;

	if (!((kept->failed | kept->behind) >> disk & 1))
		return false;
	for (unsigned i = 0; i < disks; i++) {
		char name[3] = {'d', (char)('0' + i), 0};

		unsure |= lab_unsure(lab, name, offset + at);
	}
	return unsure;
}

bool raid_excuse(struct lab *lab, const char *volume)
{
	const struct kept *kept = lab_private(lab, sizeof *kept);

	return !volume && (lab_is(lab, "raid6") || lab_is(lab, "raid6_reshape")) && kept->failed &&
	       kept->resync != UINT64_MAX;
}

static bool lost_raid(struct lab *lab, const char *volume, uint64_t sector)
{
	const struct kind *k = kind_of(lab);

	return !k->mirror && raid_in_hole(lab, k->type, k->disks, k->chunk, sector, 0);
}

int raid_check_array(struct lab *lab, const char *name, unsigned disks, GError **err)
{
	static const char *const letters[] = {"", "", "AA", "AAA", "AAAA"};
	g_autofree char *whole = g_strdup_printf(" %u %s ", disks, letters[disks]), *status = NULL;
	int error = lab_wait_status(lab, name, whole, err);

	if (!error)
		error = lab_wait_status(lab, name, " idle ", err);
	if (!error)
		error = lab_message(lab, name, NULL, err, "check");
	if (!error)
		error = lab_wait_status(lab, name, " idle ", err);
	status = lab_status(lab, name);
	if (!error && !strstr(status, " idle 0 "))
		error = dm_fail(err, EIO, "a check finds: %s", status);
	return error;
}

static int check_raid(struct lab *lab, GError **err)
{
	return raid_check_array(lab, "vol", kind_of(lab)->disks, err);
}

bool raid_pause(struct lab *lab, const char *name)
{
	g_autoptr(GError) err = NULL;

	return lab_ok(lab, lab_suspend(lab, name, &err), &err) && lab_ok(lab, lab_resume(lab, name, &err), &err);
}

/* A suspend leaves all regions clean, so that the next writes mark them anew. */
static bool pause_volume(struct lab *lab)
{
	return raid_pause(lab, "vol");
}

static void use_raid(struct lab *lab)
{
	lab_random_io(lab, 40, "vol", NULL);
	pause_volume(lab);
	for (unsigned i = 0; i < 4; i++) {
		lab_random_io(lab, 10, "vol", NULL);
		pause_volume(lab);
	}
	lab_reopen(lab);
	lab_random_io(lab, 20, "vol", NULL);
}

static void use_rebuild(struct lab *lab)
{
	g_autofree char *line = make_line(kind_of(lab), "rebuild 1", 2);
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 30, "vol", NULL);
	lab_ok(lab, lab_wait_status(lab, "vol", " idle ", &err), &err);
	pause_volume(lab);
	g_clear_error(&err);
	if (!lab_ok(lab, lab_load(lab, "vol", &err, line, NULL), &err))
		return;
	lab_random_io(lab, 20, "vol", NULL);
	g_clear_error(&err);
	lab_ok(lab, lab_wait_status(lab, "vol", " idle ", &err), &err);
	lab_random_io(lab, 10, "vol", NULL);
}

static void use_shortly(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	g_autofree char *status = NULL;

	/* at once, while it is synchronised for the first time */
	if (lab_reopen(lab))
		return;
	if (kind_of(lab)->mirror)
		lab_random_io(lab, 12, "vol", NULL);
	lab_wait_status(lab, "vol", " idle ", &err);
	status = lab_status(lab, "vol");
	if (!kind_of(lab)->mirror && (!status || !strstr(status, "AAA")))
		return;
	lab_random_io(lab, 24, "vol", NULL);
}

/* --- with a journal there is no write hole: a power loss while a device is missing costs nothing ------------- */

static char *journal_line(const struct kind *k, const char *params, unsigned count, bool missing)
{
	GString *line = g_string_new(NULL);

	g_string_printf(line, "0 %u raid %s %u %u %s journal_dev log journal_mode %s %u m0 d0", k->length, k->type, 5 + count,
			k->chunk, params, k->chunk == 16 ? "writeback" : "writethrough", k->disks);
	g_string_append(line, missing ? " - -" : " m1 d1");
	g_string_append(line, " m2 d2");
	return g_string_free(line, FALSE);
}

static int open_journal(struct lab *lab, GError **err)
{
	bool missing = lab_reached(lab, "missing") && !lab_reached(lab, "back");
	g_autofree char *line = journal_line(kind_of(lab), "", 0, missing);
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int check_journal(struct lab *lab, GError **err)
{
	g_autofree char *status = lab_status(lab, "vol");

	if (status && strstr(status, " 3 A-A "))
		return 0;
	return check_raid(lab, err);
}

static void use_journal(struct lab *lab)
{
	const struct kind *k = kind_of(lab);
	g_autofree char *without = journal_line(k, "", 0, true), *again = journal_line(k, "rebuild 1", 2, false);
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 30, "vol", NULL);
	pause_volume(lab);
	lab_ok(lab, lab_wait_status(lab, "vol", " idle ", &err), &err);
	lab_random_io(lab, 20, "vol", NULL);
	/* the table without the device and with it again both open what the other has left */
	lab_step(lab, "missing");
	g_clear_error(&err);
	if (!lab_ok(lab, lab_load(lab, "vol", &err, without, NULL), &err))
		return;
	lab_random_io(lab, 30, "vol", NULL);
	g_clear_error(&err);
	if (!lab_ok(lab, lab_load(lab, "vol", &err, again, NULL), &err))
		return;
	lab_step(lab, "back");
	lab_random_io(lab, 10, "vol", NULL);
	g_clear_error(&err);
	lab_ok(lab, lab_wait_status(lab, "vol", " idle ", &err), &err);
	lab_random_io(lab, 10, "vol", NULL);
}

#define CUSTOMER(id, disks_, use, ...)                                                                                 \
	LAB_CUSTOMER(id) = {.slices = RAID_SLICES##disks_(0),                                                          \
			    .open = open_raid,                                                                         \
			    .workload = use,                                                                           \
			    .check = check_raid,                                                                       \
			    .fault_workload = use_shortly,                                                             \
			    .excuse = raid_excuse,                                                                     \
			    .lost = lost_raid,                                                                         \
			    __VA_ARGS__}

CUSTOMER(raid1, 2, use_raid, .bears = 1);
CUSTOMER(raid1_rebuild, 2, use_rebuild);
CUSTOMER(raid10, 4, use_raid, .bears = 1);
CUSTOMER(raid5, 3, use_raid, .bears = 1);
CUSTOMER(raid5_rebuild, 3, use_rebuild);
CUSTOMER(raid6, 4, use_raid, .bears = 2);

#define JOURNALED(id)                                                                                             \
	LAB_CUSTOMER(id) = {                                                                                      \
		.slices = {{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"m2", META_SECTORS}, {"d0", DEV_SECTORS}, \
			   {"d1", DEV_SECTORS}, {"d2", DEV_SECTORS}, {"log", 8192}},                              \
		.open = open_journal,                                                                             \
		.workload = use_journal,                                                                          \
		.check = check_journal,                                                                           \
		.fault_workload = use_shortly,                                                                    \
	}

JOURNALED(raid5_journal);
JOURNALED(raid5_writeback);
