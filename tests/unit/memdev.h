/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device in memory for tests: it counts, fails at the n-th I/O, and can
 * record writes and flushes, so that a test can look at the disk as a crash
 * after any of them would leave it.
 */
#ifndef DMFS_TESTS_MEMDEV_H
#define DMFS_TESTS_MEMDEV_H

#include <pthread.h>

#include <dmfs/io.h>

struct memdev_write {
	enum dm_op op; /* DM_WRITE, DM_WRITE_ZEROES, DM_DISCARD or DM_FLUSH */
	uint64_t sector, sectors;
	uint8_t *data;
};

struct memdev {
	struct dm_dev dev;
	uint8_t *data;
	uint64_t sectors;
	pthread_mutex_t lock;
	uint64_t reads, writes, flushes, discards;
	uint64_t fail_at; /* the number of the I/O (1 the next) that fails, and all after it; 0: none */
	int fail_error;
	bool fail_writes_only;
	/* Tags (bio.h): tag_bytes for each block of tag_block bytes; 0: it takes none.  memdev_tags() sets them. */
	unsigned tag_bytes, tag_block;
	uint8_t *tags;
	GArray *log; /* struct memdev_write, if recording */
};

struct memdev *memdev_new(uint64_t sectors);
void memdev_tags(struct memdev *m, unsigned bytes, unsigned block);
static inline void memdev_put(struct memdev *m)
{
	dm_dev_put(&m->dev);
}
void memdev_record(struct memdev *m, bool on); /* drops what is recorded */
/*
 * A copy of image with the first n recorded writes done; image is the content
 * when recording began.  Write i is left out if bit i % 64 of lost is set and no flush came after it.
 */
struct memdev *memdev_replay(struct memdev *m, const uint8_t *image, size_t n, uint64_t lost);

#endif
