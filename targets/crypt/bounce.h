/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a write's ciphertext goes: the writer's own memory must not change.
 *
 * A write is a bio with a buffer.  They are kept for reuse, near the CPU that used them last; all of a pool together
 * never take more than BOUNCE_BUDGET.  A bio for which there is none waits in the pool's queue (nobody blocks) until a
 * write that is on its way ends.
 */
#ifndef DMFS_CRYPT_BOUNCE_H
#define DMFS_CRYPT_BOUNCE_H

#include <dmfs/bio.h>

#define BOUNCE_MAX ((size_t)1 << 20) /* bytes of one write */
#define BOUNCE_BUDGET ((size_t)32 << 20)

struct bounce_pool;

struct bounce {
	struct dm_bio bio;   /* to the device beneath; bio.private is the bounce */
	struct iovec iov;    /* buf */
	struct dm_bio *orig; /* the write it stands for */
	struct bounce_pool *pool;
	struct bounce *next; /* the pool's */
	unsigned size_class;
	uint8_t *buf;
	uint8_t *meta; /* room for the pool's meta bytes for each block of buf; NULL if that is 0 */
};

/*
 * start is called with a bounce whose buffer is big enough, in bounce_submit() or bounce_put().  meta: bytes that go
 * with each block of so many bytes, at most as many.
 */
struct bounce_pool *bounce_pool_new(void (*start)(void *context, struct bounce *b, struct dm_bio *orig), void *context,
				    unsigned meta, unsigned block);
/* With all bounces put back. */
void bounce_pool_free(struct bounce_pool *pool);

/* Calls start for a write of at most BOUNCE_MAX bytes, now or when there is a buffer.  Any thread. */
void bounce_submit(struct bounce_pool *pool, struct dm_bio *orig);
/* Gives it back.  Any thread. */
void bounce_put(struct bounce *b);
/* Bytes of all the pool's buffers. */
size_t bounce_pool_bytes(struct bounce_pool *pool);

#endif
