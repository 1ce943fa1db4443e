/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Verifies a whole image: dmfs's engine makes the device inside this process, and threads read all of it, one for each
 * core.  So what is good here is good in a mount, and FEC mends here what it mends there.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/devices.h"
#include "core/type.h"

#include "verity.h"

#define READ_BYTES ((uint64_t)1 << 20)
#define MAX_TOLD 10 /* corrupted blocks that are told of one by one */

extern const struct dm_target_type verity_target;

struct job {
	struct dm_dev *dev;
	uint64_t sectors;
	unsigned block_sectors;
	atomic_uint_fast64_t next; /* sector */
	atomic_uint_fast64_t bad;  /* blocks */
	pthread_mutex_t lock;		   /* of what is printed */
};

static void tell(struct job *j, uint64_t block)
{
	uint64_t nr = atomic_fetch_add(&j->bad, 1);

	pthread_mutex_lock(&j->lock);
	if (nr < MAX_TOLD)
		fprintf(stderr, "data block %" PRIu64 " is corrupted, or its digest is\n", block);
	pthread_mutex_unlock(&j->lock);
}

static void find_bad(struct job *j, uint64_t sector, uint64_t sectors, void *buf)
{
	for (uint64_t s = sector; s < sector + sectors; s += j->block_sectors)
		if (dm_read_sync(j->dev, s, j->block_sectors, buf, 0))
			tell(j, s / j->block_sectors);
}

static void *read_all(void *data)
{
	const uint64_t step = READ_BYTES / DM_SECTOR_SIZE;
	struct job *j = data;
	g_autofree void *buf = g_malloc(READ_BYTES);

	for (;;) {
		uint64_t sector = atomic_fetch_add(&j->next, step), n;

		if (sector >= j->sectors)
			return NULL;
		n = MIN(step, j->sectors - sector);
		if (dm_read_sync(j->dev, sector, n, buf, 0))
			find_bad(j, sector, n, buf);
	}
}

static int load(struct dm_mapped *md, char *line, GError **err)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_READ, &self);
	int r = dm_table_add_line(t, line, err);

	if (!r)
		r = dm_table_complete(t, err);
	if (r)
		dm_table_unref(t);
	else
		r = dm_mapped_swap(md, t, NULL, NULL, err);
	return r;
}

static void print_mended(void)
{
	g_autoptr(GString) log = g_string_new(NULL);
	unsigned n = 0;

	dm_log_read(log);
	for (const char *p = log->str; (p = strstr(p, ": corrected ")); p++)
		n++;
	if (n)
		fprintf(stderr, "%u blocks or more were mended by forward error correction\n", n);
}

static void run(struct job *j)
{
	unsigned n = g_get_num_processors();
	g_autofree GThread **threads = g_new(GThread *, n);

	for (unsigned i = 1; i < n; i++)
		threads[i] = g_thread_new("verify", read_all, j);
	read_all(j);
	for (unsigned i = 1; i < n; i++)
		g_thread_join(threads[i]);
}

int verify(const struct image *im, const char *root, const struct options *o, GError **err)
{
	static const struct dm_target_type *const types[] = {&verity_target, NULL};
	g_autofree char *line = image_line(im, root, o);
	struct dm_mapped *md;
	struct job j = {.sectors = im->sb.data_blocks * (im->sb.data_block / DM_SECTOR_SIZE),
			.block_sectors = im->sb.data_block / DM_SECTOR_SIZE,
			.lock = PTHREAD_MUTEX_INITIALIZER};
	int r;

	dm_register_targets(types);
	r = dm_create("verify", -1, &md, err);
	if (r)
		return r;
	r = load(md, line, err);
	if (!r) {
		j.dev = &md->dev;
		run(&j);
		print_mended();
	}
	dm_remove(md, NULL);
	dm_mapped_unref(md);
	if (!r && j.bad)
		r = fail(err, EPERM, "verification failed: of %" PRIu64 " data blocks %" PRIu64 " cannot be read",
			 im->sb.data_blocks, (uint64_t)j.bad);
	return r;
}
