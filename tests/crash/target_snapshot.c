/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LVM's life of a snapshot: a volume is used, a snapshot is taken of it, both
 * are written, other snapshots come, and it is merged back while the volume is
 * in use.  The COW slices are full of rubbish at first, but for the header.
 *
 * Steps: "making" before a store is made, "snap" when the snapshot is there,
 * "merge" when there is no base any more but "merged", which is what the
 * snapshot was ("no merge" if that was refused), and "NAME is lost" when a fault has made a snapshot invalid: on a
 * disk that fails for good not even that could be written to it.
 */
#include "lab.h"

#define COW_SECTORS 2048u

struct shape {
	unsigned chunk, size, io, second_chunk;
};

static char *snapshot_line(const struct shape *sh, const char *target, const char *cow, unsigned chunk)
{
	return g_strdup_printf("0 %u %s origin %s P %u", sh->size, target, cow, chunk);
}

static int make_snapshot(struct lab *lab, const struct shape *sh, const char *name, const char *cow, unsigned chunk,
			 GError **err)
{
	g_autofree char *line = snapshot_line(sh, "snapshot", cow, chunk);

	return lab_device(lab, name, err, line, NULL);
}

static int make_base(struct lab *lab, const struct shape *sh, const char *target, GError **err)
{
	g_autofree char *line = g_strdup_printf("0 %u %s origin%s", sh->size, target,
						!strcmp(target, "linear") ? " 0" : "");

	return lab_device(lab, "base", err, line, NULL);
}

static int prepare(struct lab *lab, GError **err)
{
	g_autofree char *rubbish = g_malloc(COW_SECTORS * 512);
	int error = 0;

	for (unsigned i = 0; i < COW_SECTORS * 512; i++)
		rubbish[i] = (char)(i < 512 ? 0 : 1 + i % 7);
	for (unsigned i = 0; !error && i < 2; i++)
		error = lab_write_raw(lab, i ? "cow2" : "cow", 0, rubbish, COW_SECTORS * 512, err);
	return error;
}

static bool is_merging(struct lab *lab)
{
	return lab_reached(lab, "merge") && !lab_reached(lab, "no merge");
}

/* A store that power loss met in the making is one, or becomes one. */
static int open_snap(struct lab *lab, const struct shape *sh, const char *name, const char *cow, unsigned chunk,
			 GError **err)
{
	int error = lab_reached(lab, "making") ? make_snapshot(lab, sh, name, cow, chunk, err) : 0;

	if (!error && lab_reached(lab, "snap") && !lab_reached(lab, "%s is lost", name))
		error = lab_volume(lab, name, LAB_ZEROES, err);
	return error;
}

static int open_stack(struct lab *lab, const struct shape *sh, GError **err)
{
	g_autofree char *line = snapshot_line(sh, "snapshot-merge", "cow", sh->chunk);
	int error = 0;

	/* Before the origin changes. */
	if (sh->second_chunk)
		error = open_snap(lab, sh, "snap2", "cow2", sh->second_chunk, err);
	if (!error && !is_merging(lab))
		error = open_snap(lab, sh, "snap", "cow", sh->chunk, err);
	if (error)
		return error;
	if (is_merging(lab))
		error = lab_device(lab, "merged", err, line, NULL);
	else
		error = make_base(lab, sh, lab_reached(lab, "snap") ? "snapshot-origin" : "linear", err);
	return error ? error : lab_volume(lab, is_merging(lab) ? "merged" : "base", LAB_ZEROES, err);
}

static bool take_snapshots(struct lab *lab, const struct shape *sh)
{
	g_autofree char *origin = g_strdup_printf("0 %u snapshot-origin origin", sh->size);
	GError *err = NULL;

	lab_step(lab, "making");
	if (!lab_ok(lab, make_snapshot(lab, sh, "snap", "cow", sh->chunk, &err), &err))
		return false;
	if (sh->second_chunk &&
	    !lab_ok(lab, make_snapshot(lab, sh, "snap2", "cow2", sh->second_chunk, &err), &err))
		return false;
	if (!lab_ok(lab, lab_load(lab, "base", &err, origin, NULL), &err))
		return false;
	lab_step(lab, "snap");
	lab_inherit(lab, "snap", "base");
	if (!lab_ok(lab, lab_volume(lab, "snap", LAB_ZEROES, &err), &err))
		return false;
	if (sh->second_chunk) {
		lab_inherit(lab, "snap2", "base");
		if (!lab_ok(lab, lab_volume(lab, "snap2", LAB_ZEROES, &err), &err))
			return false;
	}
	return true;
}

static void use_one(struct lab *lab, unsigned i, void *data)
{
	const struct shape *sh = data;

	lab_random_io(lab, sh->io, i ? "snap" : "base", NULL);
}

static bool is_lost(struct lab *lab, const char *name)
{
	g_autofree char *status = lab_status(lab, name);

	if (!status || !strstr(status, "Invalid"))
		return false;
	if (!lab_faulty(lab))
		lab_fail(lab, "%s is '%s'", name, status);
	lab_step(lab, "%s is lost", name);
	return true;
}

static bool start_merge(struct lab *lab, const struct shape *sh)
{
	g_autofree char *line = snapshot_line(sh, "snapshot-merge", "cow", sh->chunk);
	GError *err = NULL;

	if (is_lost(lab, "snap") || !lab_ok(lab, lab_suspend(lab, "snap", &err), &err) ||
	    !lab_ok(lab, lab_remove(lab, "base", &err), &err))
		return false;
	lab_step(lab, "merge");
	lab_inherit(lab, "merged", "snap");
	if (!lab_ok(lab, lab_device(lab, "merged", &err, line, NULL), &err)) {
		lab_step(lab, "no merge");
		g_clear_error(&err);
		lab_ok(lab, lab_resume(lab, "snap", &err), &err);
		return false;
	}
	return lab_ok(lab, lab_remove(lab, "snap", &err), &err) &&
	       lab_ok(lab, lab_volume(lab, "merged", LAB_ZEROES, &err), &err);
}

static void use(struct lab *lab, const struct shape *sh)
{
	g_autofree char *merged = g_strdup_printf(" %u/%u %u", 2 * sh->chunk, COW_SECTORS, 2 * sh->chunk);
	GError *err = NULL;

	lab_random_io(lab, sh->io / 2, "base", NULL);
	if (!take_snapshots(lab, sh))
		return;
	lab_threads(lab, 2, use_one, (void *)sh);
	if (sh->second_chunk)
		lab_random_io(lab, sh->io / 2, "snap2", "base", NULL);
	if (start_merge(lab, sh)) {
		lab_random_io(lab, sh->io / 2, "merged", NULL);
		if (!lab_faulty(lab))
			lab_ok(lab, lab_wait_status(lab, "merged", merged, &err), &err);
	}
	is_lost(lab, "snap2");
}

/*
 * In a faulty run the merge is still under way when the workload ends, and may
 * yet lose the other snapshot: it is stopped before the last look.
 */
static void last_look(struct lab *lab)
{
	g_autofree char *merged = lab_faulty(lab) ? lab_status(lab, "merged") : NULL;
	GError *err = NULL;

	if (!merged)
		return;
	lab_suspend(lab, "merged", &err);
	g_clear_error(&err);
	if (!lab_reached(lab, "snap2 is lost"))
		is_lost(lab, "snap2");
}

/* A merge that goes on after power loss ends right: then the origin is what base is. */
static int check_shape(struct lab *lab, const struct shape *sh, GError **err)
{
	g_autofree char *merged = g_strdup_printf(" %u/%u %u", 2 * sh->chunk, COW_SECTORS, 2 * sh->chunk);
	g_autofree char *now = g_malloc(sh->size * 512), *origin = g_malloc(sh->size * 512);
	int error;

	if (!is_merging(lab))
		return 0;
	error = lab_wait_status(lab, "merged", merged, err);
	if (!error)
		error = lab_read_raw(lab, "merged", 0, now, sh->size * 512, err);
	if (!error)
		error = lab_read_raw(lab, "origin", 0, origin, sh->size * 512, err);
	if (!error && memcmp(now, origin, sh->size * 512))
		error = dm_fail(err, EIO, "the merge is over, but merged is not what the origin is");
	return error;
}

/* A fault on the COW slice makes a snapshot invalid, for good. */
static bool excuse(struct lab *lab, const char *volume)
{
	return volume && g_str_has_prefix(volume, "snap");
}

#define SNAPSHOT_CUSTOMER(id, ...)                                                 \
	static const struct shape shape_##id = __VA_ARGS__;                        \
	static int open_##id(struct lab *lab, GError **err)                        \
	{                                                                          \
		return open_stack(lab, &shape_##id, err);                          \
	}                                                                          \
	static void use_##id(struct lab *lab)                                      \
	{                                                                          \
		use(lab, &shape_##id);                                             \
	}                                                                          \
	static void use_shortly_##id(struct lab *lab)                              \
	{                                                                          \
		struct shape shortly = shape_##id;                                 \
                                                                           \
		shortly.io = 8;                                                    \
		use(lab, &shortly);                                                \
	}                                                                          \
	static int check_##id(struct lab *lab, GError **err)                       \
	{                                                                          \
		return check_shape(lab, &shape_##id, err);                         \
	}                                                                          \
	LAB_CUSTOMER(id) = {                                                       \
		.slices = {{"origin", 512}, {"cow", COW_SECTORS}, {"cow2", COW_SECTORS}}, \
		.prepare = prepare,                                                \
		.open = open_##id,                                                 \
		.close = last_look,                                                \
		.workload = use_##id,                                              \
		.fault_workload = use_shortly_##id,                                \
		.check = check_##id,                                               \
		.excuse = excuse,                                                  \
	}

/* 8 sectors a chunk; another snapshot beside it, of larger chunks. */
SNAPSHOT_CUSTOMER(snapshot, {.chunk = 8, .size = 512, .io = 60, .second_chunk = 16});
/* One sector a chunk: 32 exceptions fill an area, so there are many. */
SNAPSHOT_CUSTOMER(snapshot_areas, {.chunk = 1, .size = 256, .io = 40});
