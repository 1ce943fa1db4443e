/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid with metadata devices: mirrors, raid10, raid5 and raid6; made, resynchronised, written, rebuilt.
 *
 * Before an array is built on what a power loss has left its devices are compared
 * wherever the bitmap says clean: copies are equal, the sum of raid5's devices is
 * zero.  When all is in sync a check must find nothing.
 */
#include "lab.h"

#define DEV_SECTORS 256u
#define META_SECTORS 16u
#define REGION 32u
#define REGIONS (DEV_SECTORS / REGION)
#define BITMAP 4096u

struct kind {
	const char *name, *type;
	unsigned disks, chunk, length;
	bool mirror; /* device 2k + 1 is device 2k's copy */
};

struct kept {
	bool hole; /* parity without a device: a power loss may have cost what was on it, so the volume is not looked at
		    */
};

static const struct kind kinds[] = {
	{"raid1", "raid1", 2, 0, DEV_SECTORS, true},
	{"raid1_rebuild", "raid1", 2, 0, DEV_SECTORS, true},
	{"raid10", "raid10", 4, 8, 2 * DEV_SECTORS, true},
	{"raid5", "raid5_ls", 3, 8, 2 * DEV_SECTORS, false},
	{"raid5_rebuild", "raid5_ls", 3, 16, 2 * DEV_SECTORS, false},
	{"raid6", "raid6_zr", 4, 8, 2 * DEV_SECTORS, false},
	{"raid5_journal", "raid5_ls", 3, 8, 2 * DEV_SECTORS, false},
	{"raid5_writeback", "raid5_ls", 3, 16, 2 * DEV_SECTORS, false},
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

/* The newest superblock; whether all devices are in sync by their own. */
static int newest(struct lab *lab, const struct kind *k, char *name, uint8_t *best, bool *whole, GError **err)
{
	uint64_t most = 0;

	*whole = true;
	for (unsigned i = 0; i < k->disks; i++) {
		char meta[3] = {'m', (char)('0' + i), 0};
		uint64_t events, recovery;
		uint8_t super[512];
		int error = lab_read_raw(lab, meta, 0, super, sizeof super, err);

		if (error)
			return error;
		memcpy(&events, super + 16, sizeof events);
		memcpy(&recovery, super + 32, sizeof recovery);
		*whole &= !memcmp(super, "DmRd", 4) && recovery == UINT64_MAX;
		if (events <= most)
			continue;
		most = events;
		strcpy(name, meta);
		memcpy(best, super, sizeof super);
	}
	return 0;
}

static int compare_clean(struct lab *lab, const struct kind *k, GError **err)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	uint8_t image[256 + 8], super[512] = {0};
	uint64_t failed;
	char name[3] = "m0";
	bool whole;
	int error = newest(lab, k, name, super, &whole, err);

	memcpy(&failed, super + 24, sizeof failed);
	kept->hole |= failed != 0 && !k->mirror;
	if (error || !whole || failed) /* what is to be rebuilt may hold anything */
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
	struct kept *kept = lab_private(lab, sizeof *kept);
	int error = lab_first_open(lab) ? 0 : compare_clean(lab, k, err);

	if (!error)
		error = lab_device(lab, "vol", err, line, NULL);
	if (error || (kept->hole && !lab_first_open(lab)))
		return error;
	/* what is on a device that fails before the first synchronisation is over nobody knows, if there is but parity
	 */
	return lab_volume(lab, "vol", lab_faulty(lab) && !k->mirror ? LAB_ANYTHING : LAB_ZEROES, err);
}

static int check_raid(struct lab *lab, GError **err)
{
	const struct kind *k = kind_of(lab);
	static const char *const letters[] = {"", "", "AA", "AAA", "AAAA"};
	g_autofree char *whole = g_strdup_printf(" %u %s ", k->disks, letters[k->disks]), *status = NULL;
	int error = lab_wait_status(lab, "vol", whole, err);

	if (!error)
		error = lab_wait_status(lab, "vol", " idle ", err);
	if (!error)
		error = lab_message(lab, "vol", NULL, err, "check");
	if (!error)
		error = lab_wait_status(lab, "vol", " idle ", err);
	status = lab_status(lab, "vol");
	if (!error && !strstr(status, " idle 0 0 "))
		error = dm_fail(err, EIO, "a check finds: %s", status);
	return error;
}

/* A suspend leaves all regions clean, so that the next writes mark them anew. */
static void pause_volume(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	if (lab_ok(lab, lab_suspend(lab, "vol", &err), &err))
		lab_ok(lab, lab_resume(lab, "vol", &err), &err);
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
	/* a write to raid5 that a crash interrupts while a device is missing may cost what is on that: the write hole
	 */
	if (kind_of(lab)->mirror)
		lab_random_io(lab, 20, "vol", NULL);
	g_clear_error(&err);
	lab_ok(lab, lab_wait_status(lab, "vol", " idle ", &err), &err);
	lab_random_io(lab, 10, "vol", NULL);
}

static void use_shortly(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	g_autofree char *status = NULL;

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

#define SLICES2                                                                                                        \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"d0", DEV_SECTORS},                                       \
		{                                                                                                      \
			"d1", DEV_SECTORS                                                                              \
		}                                                                                                      \
	}
#define SLICES3                                                                                                        \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"m2", META_SECTORS}, {"d0", DEV_SECTORS},                 \
		    {"d1", DEV_SECTORS},                                                                               \
		{                                                                                                      \
			"d2", DEV_SECTORS                                                                              \
		}                                                                                                      \
	}
#define SLICES4                                                                                                        \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"m2", META_SECTORS}, {"m3", META_SECTORS},                \
		    {"d0", DEV_SECTORS}, {"d1", DEV_SECTORS}, {"d2", DEV_SECTORS},                                     \
		{                                                                                                      \
			"d3", DEV_SECTORS                                                                              \
		}                                                                                                      \
	}

#define CUSTOMER(id, disks_, use)                                                                                      \
	LAB_CUSTOMER(id) = {                                                                                           \
	    .slices = SLICES##disks_,                                                                                  \
	    .open = open_raid,                                                                                         \
	    .workload = use,                                                                                           \
	    .check = check_raid,                                                                                       \
	    .fault_workload = use_shortly,                                                                             \
	}

CUSTOMER(raid1, 2, use_raid);
CUSTOMER(raid1_rebuild, 2, use_rebuild);
CUSTOMER(raid10, 4, use_raid);
CUSTOMER(raid5, 3, use_raid);
CUSTOMER(raid5_rebuild, 3, use_rebuild);
CUSTOMER(raid6, 4, use_raid);

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
