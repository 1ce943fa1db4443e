/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One crash point: the stack is opened on a disk and everything is looked at. */
#include "internal.h"

#define NEW_WRITES 24u

/* Reads a whole volume; NULL if that fails, which has been told unless it is excused. */
static uint8_t *read_volume(struct lab *lab, const struct volume *v)
{
	uint8_t *data = g_malloc(v->sectors * DM_SECTOR_SIZE);
	int error = lab_submit((struct volume *)v, DM_READ, 0, 0, v->sectors, data);

	if (!error)
		return data;
	if (!(lab->after_fault && lab->customer->excuse && lab->customer->excuse(lab, v->name)))
		lab_fail(lab, "%s cannot be read: %s", v->name, g_strerror(-error));
	g_free(data);
	return NULL;
}

static bool is_lost(struct lab *lab, struct volume *v, uint64_t sector)
{
	if (v->lost && v->lost[sector])
		return true;
	if (!lab->customer->lost || !lab->customer->lost(lab, v->name, sector))
		return false;
	if (!v->lost)
		v->lost = g_malloc0(v->sectors);
	v->lost[sector] = 1;
	return true;
}

static void verify_volume(struct lab *lab, struct volume *v, bool settled)
{
	uint64_t time = MIN(lab->time, lab->model.now);
	g_autofree uint8_t *data = read_volume(lab, v);
	unsigned wrong = 0;

	g_clear_pointer(&v->expect, g_free);
	if (!data)
		return;
	v->expect = g_new(uint64_t, v->sectors);
	pthread_mutex_lock(&lab->model.lock);
	for (uint64_t i = 0; i < v->sectors; i++) {
		const uint8_t *at = data + i * DM_SECTOR_SIZE;
		g_autofree char *text = model_check(&lab->model, v, i, at, settled, time, time);

		v->expect[i] = hash_sector(at);
		if (text && is_lost(lab, v, i))
			continue;
		if (text && !wrong++)
			lab_fail(lab, "%s", text);
	}
	pthread_mutex_unlock(&lab->model.lock);
	lab->sectors_checked += v->sectors;
	if (wrong > 1)
		lab_fail(lab, "%s: and %u more sectors are wrong", v->name, wrong - 1);
}

bool lab_verify(struct lab *lab, bool settled)
{
	unsigned before = lab->failures->len;

	for (unsigned i = 0; i < lab->model.volumes->len; i++) {
		struct volume *v = lab->model.volumes->pdata[i];

		if (v->md)
			verify_volume(lab, v, settled);
	}
	return lab->failures->len == before;
}

/* --- new writes: the stack must be of use, and nothing else may change ---------------------- */

static void write_anew(struct lab *lab, struct volume *v, unsigned number, GRand *rand)
{
	uint64_t len = MIN(1 + g_rand_int(rand) % 32, v->sectors);
	uint64_t sector = g_rand_int(rand) % (v->sectors - len + 1);
	g_autofree uint8_t *data = NULL;
	int error;

	lab_whole_blocks(v, &sector, &len);
	data = g_malloc(len * DM_SECTOR_SIZE);
	for (uint64_t i = 0; i < len; i++)
		stamp(data + i * DM_SECTOR_SIZE, ~lab->model.run, 0, sector + i, number);
	error = lab_submit(v, DM_WRITE, 0, sector, len, data);
	if (error)
		lab_fail(lab, "a new write to %s sector %" PRIu64 ": %s", v->name, sector, g_strerror(-error));
	for (uint64_t i = 0; i < len; i++)
		v->expect[sector + i] = error ? 0 : hash_sector(data + i * DM_SECTOR_SIZE);
}

static void compare_expected(struct lab *lab, const struct volume *v, const char *when)
{
	g_autofree uint8_t *data = read_volume(lab, v);

	for (uint64_t i = 0; data && i < v->sectors; i++)
		if (v->expect[i] && v->expect[i] != hash_sector(data + i * DM_SECTOR_SIZE)) {
			lab_fail(lab, "%s sector %" PRIu64 " is not what it was after new writes %s", v->name, i, when);
			return;
		}
}

static void each_expected(struct lab *lab, const char *when)
{
	for (unsigned i = 0; i < lab->model.volumes->len; i++) {
		struct volume *v = lab->model.volumes->pdata[i];

		if (v->md && v->expect)
			compare_expected(lab, v, when);
	}
}

static void new_writes(struct lab *lab, GRand *rand)
{
	g_autoptr(GPtrArray) open = g_ptr_array_new();
	g_autoptr(GError) err = NULL;

	for (unsigned i = 0; i < lab->model.volumes->len; i++) {
		struct volume *v = lab->model.volumes->pdata[i];

		if (v->md && v->expect)
			g_ptr_array_add(open, v);
	}
	for (unsigned i = 0; open->len && i < NEW_WRITES; i++)
		write_anew(lab, open->pdata[g_rand_int(rand) % open->len], i, rand);
	for (unsigned i = 0; i < open->len; i++) {
		int error = lab_submit(open->pdata[i], DM_FLUSH, 0, 0, 0, NULL);

		if (error)
			lab_fail(lab, "a flush after new writes: %s", g_strerror(-error));
	}
	each_expected(lab, "were made");
	lab_close_devices(lab);
	if (lab_open_stack(lab, &err))
		lab_fail(lab, "does not open after new writes: %s", err ? err->message : "(no text)");
	else
		each_expected(lab, "and another open");
}

/* --- the point ---------------------------------------------------------------------------------- */

static void look(struct lab *lab, GRand *rand)
{
	g_autoptr(GError) err = NULL;
	int error = lab_open_stack(lab, &err);

	if (error) {
		if (!(lab->after_fault && lab->customer->excuse && lab->customer->excuse(lab, NULL)))
			lab_fail(lab, "does not open: %s", err ? err->message : g_strerror(-error));
		return;
	}
	if (!lab_verify(lab, false))
		return;
	if (lab->customer->check && lab->customer->check(lab, &err)) {
		lab_fail(lab, "its own check: %s", err ? err->message : "(no text)");
		return;
	}
	if (rand && !lab->customer->no_new_writes)
		new_writes(lab, rand);
}

bool lab_look(struct lab *lab, struct disk *disk, uint64_t time, GRand *rand)
{
	unsigned before = lab->failures->len;
	g_autoptr(GError) err = NULL;

	lab->disk = disk;
	lab->time = time;
	lab->points++;
	if (lab_open_slices(lab, &err))
		lab_fail(lab, "slices: %s", err->message);
	else
		look(lab, rand);
	lab_close_devices(lab);
	lab_close_slices(lab);
	lab->disk = NULL;
	return lab->failures->len == before;
}
