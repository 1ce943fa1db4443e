/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bio: one request to one device.
 *
 * Whoever makes a bio owns its memory and the memory its iov points to until end() is called, which happens exactly
 * once, from any thread, possibly before dm_submit() returns.  Between dm_submit() and end() the bio belongs to the
 * device; `dev`, `sector` and `error` may have changed at end().
 *
 * All errors are 0 or a negative errno.
 */
#ifndef DMFS_BIO_H
#define DMFS_BIO_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define DM_SECTOR_SHIFT 9
#define DM_SECTOR_SIZE 512u

struct dm_dev;
struct dm_origin;

enum dm_op {
	DM_READ,
	DM_WRITE,
	DM_FLUSH,        /* no data, no range: all completed writes become durable */
	DM_DISCARD,      /* no data: the range's content is not needed any more */
	DM_WRITE_ZEROES, /* no data: the range reads as zeroes afterwards */
	DM_PROVISION,    /* no data: later writes to the range find room; what it holds stays */
	/* Of zones (zone.h): only for devices that have them. */
	DM_ZONE_APPEND, /* data for a zone's write pointer; sector is the zone's, and at end() where the data went */
	DM_ZONE_OPEN,   /* no data, these; the range is one zone */
	DM_ZONE_CLOSE,
	DM_ZONE_FINISH,
	DM_ZONE_RESET,
	DM_ZONE_RESET_ALL, /* the range is any number of zones */
};

enum dm_bio_flags {
	DM_FUA = 1u << 0,      /* write: durable before end() */
	DM_PREFLUSH = 1u << 1, /* write: a FLUSH first; the engine splits it off, map() never sees it */
	DM_META = 1u << 2,     /* metadata of a target */
	DM_NOUNMAP = 1u << 3,  /* write-zeroes: keep the space allocated */
	DM_BACKGROUND = 1u << 4, /* nobody waits: copies, resynchronisation */
	DM_FAILFAST = 1u << 5,   /* there is another way: fails rather than waits for a server that has gone */
};

/*
 * The integrity payload of a read or write: a tag of so many bytes for each block of the data, the first block's
 * first.  A read is to fill them, a write to store them with the data.  It says all about itself, so that a part of
 * a bio carries a part of it.  Only a device whose limits say so takes them (dm_limits.tag_bytes), and then
 * tags have that size, and the bio begins and ends with a block; else the bio fails with -EINVAL.
 */
struct dm_tags {
	uint8_t *data; /* the owner's until end(), as the iov's memory; NULL: there are none */
	unsigned bytes, block_sectors;
};

struct dm_bio {
	enum dm_op op;
	unsigned flags;
	struct dm_dev *dev;
	uint64_t sector;  /* where it goes, in sectors of dev; map() rewrites both */
	uint64_t sectors; /* how much; iov holds exactly sectors * 512 bytes for reads and writes */
	struct iovec *iov;
	int iovcnt;
	unsigned nr; /* map(): which of the target's flush, discard, write-zeroes or provision bios this is */
	struct dm_tags tags;
	struct dm_origin *origin; /* who asked, for who may be dying (hold.h); NULL: nobody who could */
	void (*end)(struct dm_bio *);
	int error;     /* set before end() */
	void *private; /* map(), end_io(): the target's per_bio_size bytes; else the owner's */
	struct dm_bio *next; /* for lists of whoever has the bio now */
};

/*
 * Sends a bio to bio->dev.  May be called from any thread.  Inside map() or an end() the bio is queued and goes out
 * when they return; elsewhere it is on its way (or done) when this returns.  Never waits for a suspended device.
 */
void dm_submit(struct dm_bio *bio);
/*
 * dm_submit() that is on its way (or done) at return even inside map() or an end().  For who sends a bio on in pieces
 * and wants each gone before it prepares the next.  It must not depend on bios that the thread has queued before; and
 * as it nests, a bio that was sent so must not be cut so again by each device of a stack.
 */
void dm_submit_now(struct dm_bio *bio);

/* Finishes a bio with 0 or a negative errno.  Any thread; only who has the bio. */
void dm_bio_end(struct dm_bio *bio, int error);

/*
 * Whether this thread may wait for I/O, or for a lock that others hold while they do: not inside map(), nor inside
 * an end(), however deep, for it may be the one that has to send or end the very bios it would wait for.  dm_io_sync()
 * asserts it for map().
 */
bool dm_may_wait(void);
bool dm_in_end(void);
bool dm_in_map(void);
/* Around each call of map(): the engine's. */
void dm_map_begin(void);
void dm_map_end(void);

/*
 * A bio that goes on as several: they are counted, and with the last one the whole ends.  It is the first member of
 * what its maker has g_malloc()ed for the parts, and frees that.
 */
struct dm_parts {
	struct dm_bio *whole;
	atomic_uint left;
	atomic_int error; /* of one of those that failed, 0 if none has */
};

void dm_parts_init(struct dm_parts *parts, struct dm_bio *whole, unsigned n);
/* One part more, before the last one has ended. */
void dm_parts_add(struct dm_parts *parts);
/* A part has ended, with 0 or a negative errno.  Any thread; *parts may be gone at return. */
void dm_parts_end(struct dm_parts *parts, int error);

static inline bool dm_op_has_data(enum dm_op op)
{
	return op == DM_READ || op == DM_WRITE || op == DM_ZONE_APPEND;
}

/* Changes what is on the device. */
static inline bool dm_op_is_write(enum dm_op op)
{
	return op != DM_READ && op != DM_FLUSH;
}

/* Does something to zones as such; an append is a write. */
static inline bool dm_op_manages_zones(enum dm_op op)
{
	return op >= DM_ZONE_OPEN;
}

/* The tags of what begins some sectors into the data, with a block.  None of none. */
static inline struct dm_tags dm_tags_from(struct dm_tags tags, uint64_t sectors)
{
	if (tags.data) {
		assert(sectors % tags.block_sectors == 0);
		tags.data += sectors / tags.block_sectors * tags.bytes;
	}
	return tags;
}

/* The bytes of an iov. */
size_t dm_iov_bytes(const struct iovec *iov, int iovcnt);
/* Copies len bytes, starting offset bytes into the iov, to or from buf.  The range must lie inside. */
void dm_iov_read(const struct iovec *iov, int iovcnt, size_t offset, void *buf, size_t len);
void dm_iov_write(const struct iovec *iov, int iovcnt, size_t offset, const void *buf, size_t len);
void dm_iov_zero(const struct iovec *iov, int iovcnt, size_t offset, size_t len);
/*
 * Writes into out (room for iovcnt entries) the part [offset, offset + len) of iov and returns its number of entries.
 */
int dm_iov_slice(const struct iovec *iov, int iovcnt, size_t offset, size_t len, struct iovec *out);

/* The data of a bio that is a part of another: mostly it lies in one piece. */
struct dm_part_data {
	struct iovec one, *iov;
};

/* Gives part the bytes [offset, offset + len) of whole's data. */
void dm_part_data_init(struct dm_part_data *data, struct dm_bio *part, const struct dm_bio *whole, size_t offset,
		       size_t len);
void dm_part_data_clear(struct dm_part_data *data);

/* A list of bios linked by next, first in, first out.  No locking. */
struct dm_bio_list {
	struct dm_bio *head, **tail;
};

static inline void dm_bio_list_init(struct dm_bio_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static inline void dm_bio_list_add(struct dm_bio_list *l, struct dm_bio *bio)
{
	bio->next = NULL;
	*l->tail = bio;
	l->tail = &bio->next;
}

static inline struct dm_bio *dm_bio_list_pop(struct dm_bio_list *l)
{
	struct dm_bio *bio = l->head;

	if (bio && !(l->head = bio->next))
		l->tail = &l->head;
	return bio;
}

/* Ends all of them with 0 or a negative errno. */
static inline void dm_bio_list_end(struct dm_bio_list *l, int error)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(l)))
		dm_bio_end(bio, error);
}

/* Moves all of it to the end of another list. */
static inline void dm_bio_list_take(struct dm_bio_list *from, struct dm_bio_list *to)
{
	if (!from->head)
		return;
	*to->tail = from->head;
	to->tail = from->tail;
	dm_bio_list_init(from);
}

static inline bool dm_bio_list_empty(const struct dm_bio_list *l)
{
	return !l->head;
}

#endif
