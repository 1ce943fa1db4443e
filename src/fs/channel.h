/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Descriptors of /dev/fuse.
 *
 * Each worker reads by one of its own, a clone of its session's.  A request must be answered by the one it came by: the
 * kernel keeps it there, and fails it when that is closed.  So a channel is counted: the worker's reference,
 * and one of each request that is answered later.  Of those that nobody holds a few are kept for the next workers.
 */
#ifndef DMFS_FS_CHANNEL_H
#define DMFS_FS_CHANNEL_H

#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdatomic.h>

/* A session's channels. */
struct dmfs_channels {
	int fd;      /* the session's, to clone: libfuse closes its own when it unmounts */
	void *owner; /* what the session was made with, as its userdata */
	pthread_mutex_t lock;
	struct dmfs_channel *spare;
	unsigned n_spare, most_spare;
};

struct dmfs_channel {
	struct dmfs_channels *all;
	int fd;
	atomic_uint refs;
	struct dmfs_channel *next;
};

/* Answers of this session go where dmfs_channel_use() says from now on.  0 or a negative errno. */
int dmfs_channels_init(struct dmfs_channels *all, struct fuse_session *session, void *owner, unsigned most_spare);
/* Closes what is kept, and from now on each with its last reference. */
void dmfs_channels_end(struct dmfs_channels *all);

/* One with a reference, or NULL: no descriptor can be had. */
struct dmfs_channel *dmfs_channel_new(struct dmfs_channels *all);
struct dmfs_channel *dmfs_channel_get(struct dmfs_channel *c);
void dmfs_channel_put(struct dmfs_channel *c); /* NULL is fine */

/*
 * Where the request being handled must be answered; dmfs_channel_use() sets it for this thread, and returns the one
 * before.
 */
struct dmfs_channel *dmfs_channel_now(void);
struct dmfs_channel *dmfs_channel_use(struct dmfs_channel *c);

/* Answers a request that libfuse has not seen: a header and `len` bytes.  Errors are the kernel's own affair. */
void dmfs_channel_answer(struct dmfs_channel *c, uint64_t unique, const void *data, size_t len);
/* Reads one request, as read(2). */
ssize_t dmfs_channel_read(struct dmfs_channel *c, void *buf, size_t len);

#endif
