/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The laboratory's own tests: stacks with a mistake, each of which must be
 * found by the check that is there for it; and the same stack without one, which must pass.
 */
#include "internal.h"

const struct dm_target_type *const lab_extra_types[] = {&lab_shadow_target, NULL};

const struct proof lab_proofs[] = {
	{"shadow:none", NULL, false},
	{"shadow:none", NULL, true},
	{"shadow:flush-lies", "the oldest it may hold is op", false},
	{"shadow:fua-lies", "the oldest it may hold is op", false},
	{"shadow:commit-before-data", "the oldest it may hold is op", false},
	{"shadow:map-not-flushed", "the oldest it may hold is op", false},
	{"shadow:one-map", "does not open", false},
	{"shadow:reuse", "what belongs to", false},
	{"shadow:mixture", "a mixture or garbage", false},
	{"shadow:count", "its own check", false},
	{"shadow:forgets", "after new writes", false},
	{"shadow:recovery", "into the recovery", false},
	{"shadow:stale", "read while running", false},
	{"shadow:unlogged", "the log has", false},
	{"shadow:swallow", "at I/O", true},
	{"shadow:dies", "died", true},
	{"shadow:hangs", "hung", true},
	{"state:no-sync", "after change", false},
	{NULL, NULL, false},
};

static const char *mistake(struct lab *lab)
{
	return lab->customer->name + strlen("shadow:");
}

static int prepare_shadow(struct lab *lab, GError **err)
{
	return shadow_format(lab, "base", mistake(lab), err);
}

static int open_shadow(struct lab *lab, GError **err)
{
	g_autofree char *line = g_strdup_printf("0 256 lab-shadow base %s", mistake(lab));
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void use_shadow(struct lab *lab)
{
	lab_random_io(lab, 120, "vol", NULL);
	if (!strcmp(mistake(lab), "unlogged")) {
		g_autoptr(GError) err = NULL;
		uint8_t zeroes[DM_SECTOR_SIZE] = {0};

		lab_ok(lab, lab_write_raw(lab, "lab-disk", 5 * DM_SECTOR_SIZE, zeroes, sizeof zeroes, &err), &err);
	}
}

static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 25, "vol", NULL);
}

static int check_shadow(struct lab *lab, GError **err)
{
	g_autofree char *status = lab_status(lab, "vol");
	uint64_t count = 0;
	int error = lab_read_raw(lab, "base", 4 * DM_SECTOR_SIZE, &count, sizeof count, err);

	if (error || strcmp(mistake(lab), "count"))
		return error;
	if (strtoull(strrchr(g_strchomp(status), ' ') + 1, NULL, 10) != count)
		return dm_fail(err, EINVAL, "%" PRIu64 " places in use, says the count, '%s' the status", count,
			       status);
	return 0;
}

static void __attribute__((constructor)) register_shadows(void)
{
	for (const struct proof *p = lab_proofs; p->customer; p++) {
		struct lab_customer *c;

		if (!g_str_has_prefix(p->customer, "shadow:") ||
		    (p > lab_proofs && !strcmp(p[-1].customer, p->customer)))
			continue;
		c = g_new(struct lab_customer, 1);
		*c = (struct lab_customer){
			.name = p->customer,
			.slices = {{"base", 8 + 72 * 8}},
			.prepare = prepare_shadow,
			.open = open_shadow,
			.workload = use_shadow,
			.fault_workload = use_shortly,
			.check = check_shadow,
			.hidden = true,
		};
		lab_register(c);
	}
}
