/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Buffers that requests are read into, one at a time.
 *
 * A worker has one.  A request that is answered later keeps it, and the worker takes another.  What then
 * takes memory is a page, and the data of a write; the room for a read's data is touched when there is data.
 *
 * What bounds it: the data of writes that wait, all together, may take so much (dmfs_options.max_waiting); beyond that
 * a write is refused.  The number of all requests is bounded by the kernel (MAX_BACKGROUND in session.c) and by the
 * number of threads that wait for one each.
 */
#ifndef DMFS_FS_BUF_H
#define DMFS_FS_BUF_H

#include <stdbool.h>
#include <stddef.h>

#include <dmfs/work.h>

struct dmfs_channel;

#define DMFS_MAX_WRITE (1024u * 1024)
#define DMFS_DATA_ROOM (DMFS_MAX_WRITE + 65536u)

/*
 * A request is read so that a write's data begins at `data`, which is page aligned; a read's data goes there too.
 */
struct dmfs_buf {
	char *map;
	size_t map_size;
	bool large, huge; /* it has seen a large request; it has got a huge page for that */
	char *data; /* DMFS_DATA_ROOM bytes */
	char request[512] __attribute__((aligned(16))); /* for who handles the request: as long as it has the buffer */
	size_t charged; /* see dmfs_buf_charge() */
	struct dmfs_buf *next;
	/* A request in it that a worker hands over unread: see loop.c. */
	struct dm_work work;
	struct dmfs_channel *channel;
	size_t size;
};

/* A request of this size makes it worth a huge page for the next ones. */
#define DMFS_LARGE (128 * 1024)

struct dmfs_buf *dmfs_buf_new(void);
/* Any thread. */
void dmfs_buf_free(struct dmfs_buf *buf);
/* Before it is read into again: gives it a huge page if it has seen a large request. */
void dmfs_buf_ready(struct dmfs_buf *buf);
/* Whether there is no room for so many bytes more of data that waits. */
bool dmfs_buf_full(size_t bytes);
/* So many bytes of data wait in it until it is freed; NULL: in a buffer of another kind, until dmfs_buf_uncharge(). */
void dmfs_buf_charge(struct dmfs_buf *buf, size_t bytes);
void dmfs_buf_uncharge(size_t bytes);
/* At the end: keeps none for others any more. */
void dmfs_buf_end(void);

#endif
