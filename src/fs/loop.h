/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The threads that read requests from /dev/fuse.
 *
 * Each has a descriptor of its own (a clone) and a buffer of its own.  A request is
 * answered on the descriptor it came by: the kernel keeps it there.
 *
 * How many: as many as make the machine busy, plus one for each that waits
 * (dm_block_begin()).
 */
#ifndef DMFS_FS_LOOP_H
#define DMFS_FS_LOOP_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

#define DMFS_MAX_WRITE (1024u * 1024)
#define DMFS_DATA_ROOM (DMFS_MAX_WRITE + 65536u)

/*
 * A thread's buffer.  A request is read so that a write's data begins at
 * `data`, which is page aligned; a read's data goes there too.
 */
struct dmfs_buf {
	char *map;
	size_t map_size;
	bool large, huge; /* it has seen a large request; it has got a huge page for that */
	char *data; /* DMFS_DATA_ROOM bytes */
	char request[256] __attribute__((aligned(16))); /* for who handles the request: as long as it has the buffer */
	struct dmfs_buf *next;
};

/* A request of this size makes it worth a huge page: tell so, for the worker's next ones. */
#define DMFS_LARGE (128 * 1024)
void dmfs_loop_large(void);
/* The calling worker's buffer. */
struct dmfs_buf *dmfs_loop_buf(void);
/*
 * Leaves the buffer to a request that is not answered yet; the worker takes
 * another.  dmfs_loop_release() gives it back, from any thread.
 */
void dmfs_loop_keep(void);
void dmfs_loop_release(struct dmfs_buf *buf);
/* The same for requests that keep no buffer: one is answered after its handler has returned; it was answered. */
void dmfs_loop_later(void);
void dmfs_loop_answered(void);

/* Where the request being handled must be answered; dmfs_loop_answer() sets it for the calling thread and returns the one before. */
int dmfs_loop_channel(void);
int dmfs_loop_answer(int channel);

int dmfs_loop_start(struct fuse_session *se, unsigned threads);
/* Waits until the file system is unmounted or dmfs_loop_stop() was called. */
void dmfs_loop_wait(void);
/* Wakes dmfs_loop_wait().  Async-signal-unsafe. */
void dmfs_loop_stop(void);
/* Ends all workers. */
void dmfs_loop_end(void);
/* Waits for what was left to be answered later; after dmfs_loop_end() then none uses the session. */
void dmfs_loop_settle(void);

#endif
