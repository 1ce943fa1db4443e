/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices that take bios, and dm-io: I/O to regions of them (dm-io.txt).
 *
 * A struct dm_dev is a backing store (a file, a block device, …) or another dmfs device; a target cannot tell and need
 * not know.  It is reference counted; targets get and put theirs through their table (target.h).
 */
#ifndef DMFS_IO_H
#define DMFS_IO_H

#include <glib.h>
#include <stdatomic.h>

#include <dmfs/bio.h>
#include <dmfs/zone.h>

enum dm_mode {
	DM_MODE_READ = 1,
	DM_MODE_WRITE = 2,
	DM_MODE_RW = 3,
};

/* What a device wants of the bios it gets.  Bytes unless said otherwise. */
struct dm_limits {
	unsigned logical_block_size;  /* every bio is a multiple of and aligned to this; >= 512, power of two */
	unsigned physical_block_size;
	unsigned io_min, io_opt;      /* 0: no wish */
	uint64_t max_discard_sectors; /* 0: discards are refused with -EOPNOTSUPP */
	unsigned discard_granularity;
	bool discard_zeroes;          /* a discarded range is known to read as zeroes */
	/* Reads and writes may carry tags of tag_bytes for each block of tag_block bytes (bio.h); 0, 0: none. */
	unsigned tag_bytes, tag_block;
	/* Zones (zone.h), in sectors; all 0 without.  The capacity is the least of any sequential zone. */
	enum dm_zone_model zone_model;
	unsigned zone_sectors, zone_capacity;
	unsigned max_open_zones, max_active_zones; /* 0: any number */
	unsigned max_append_sectors;               /* 0: appends are refused with -EOPNOTSUPP */
};

/* What dm_dev_extent() says of the run that starts at a sector. */
struct dm_extent {
	bool data;        /* false: a hole, reads as zeroes and takes no space */
	uint64_t sectors; /* length of the run, at least 1, at most what was asked */
};

struct dm_dev;

struct dm_dev_ops {
	void (*submit)(struct dm_dev *, struct dm_bio *);
	uint64_t (*sectors)(struct dm_dev *);
	int (*extent)(struct dm_dev *, uint64_t sector, uint64_t sectors, struct dm_extent *);
	uint64_t (*provisioned)(struct dm_dev *, uint64_t sector, uint64_t sectors);
	void (*limits)(struct dm_dev *, struct dm_limits *);
	int (*report_zones)(struct dm_dev *, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data);
	void (*print)(struct dm_dev *, GString *);
	void (*identity)(struct dm_dev *, uint64_t id[3]);
	int (*file)(struct dm_dev *); /* a descriptor of it, to lock the file with; absent: it is none */
	void (*free)(struct dm_dev *);
};

struct dm_dev {
	const struct dm_dev_ops *ops;
	atomic_int refs;
	enum dm_mode mode;
};

struct dm_dev *dm_dev_get(struct dm_dev *dev);
void dm_dev_put(struct dm_dev *dev);

/* Its size in sectors, now. */
uint64_t dm_dev_sectors(struct dm_dev *dev);
/* Data or hole at a sector; devices that cannot tell say data.  May block on I/O. */
int dm_dev_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out);
/*
 * How many sectors of a range take space, at most: what is known without I/O and without waiting; devices that cannot
 * tell say all.  0 only if the whole range reads as zeroes.
 */
uint64_t dm_dev_provisioned(struct dm_dev *dev, uint64_t sector, uint64_t sectors);
void dm_dev_limits(struct dm_dev *dev, struct dm_limits *out);
/* Appends what a table line calls it: a dmfs device's current name, else an absolute path, quoted to load again. */
void dm_dev_print(struct dm_dev *dev, GString *out);
/* Quotes a string so that it is one word of a table line (a backslash before each special byte). */
void dm_quote_word(const char *s, GString *out);
/* Whether both are the same device underneath, however each was named or opened; and a hash to match. */
bool dm_dev_same(struct dm_dev *a, struct dm_dev *b);
guint dm_dev_hash(struct dm_dev *dev);

struct dm_region {
	struct dm_dev *dev;
	uint64_t sector, sectors;
};

/*
 * error: 0, or a negative errno of one of the regions that failed, the lowest; errors: each region's, 0 or a negative
 * errno, for the length of the call.
 */
typedef void (*dm_io_notify)(int error, const int *errors, void *context);

/*
 * Reads one region, or does a write, flush, discard or write-zeroes on any number (at least one), all of the same
 * length, with the same data.  The iov must stay until the call is over.  dm_io_sync(), which must not be called inside
 * map(), returns 0 or the negative errno of the lowest region that failed; errors (may be NULL; room for nr) gets
 * each region's.  dm_io_async() returns at once and notifies from any thread, perhaps before it returns.
 */
int dm_io_sync(enum dm_op op, unsigned flags, unsigned nr, const struct dm_region *where,
	       const struct iovec *iov, int iovcnt, int *errors);
void dm_io_async(enum dm_op op, unsigned flags, unsigned nr, const struct dm_region *where,
		 const struct iovec *iov, int iovcnt, dm_io_notify fn, void *context);

/* The common one-region calls; buf holds sectors * 512 bytes.  0 or a negative errno. */
int dm_read_sync(struct dm_dev *dev, uint64_t sector, uint64_t sectors, void *buf, unsigned flags);
int dm_write_sync(struct dm_dev *dev, uint64_t sector, uint64_t sectors, const void *buf, unsigned flags);
int dm_flush_sync(struct dm_dev *dev);

/*
 * Around anything that may keep the calling thread waiting for long (a disk, a lock held across I/O), so that the front
 * end can put another thread to work.  They nest.  dm_io_sync() and the backing stores do it themselves.
 */
void dm_block_begin(void);
void dm_block_end(void);
/*
 * Between the two this thread must not wait so: dm_block_begin() would end the program, whose fault it is.  They nest.
 */
void dm_wait_forbid(void);
void dm_wait_allow(void);
/* The front end's way to hear of them (outermost calls only); thread-local, may be NULL. */
void dm_block_set_hooks(void (*begin)(void *), void (*end)(void *), void *context);

#endif
