/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stripes of raid4/5/6: what stripe.c, plan.c, rows.c and journal.c share.
 *
 * A stripe is the same range of sectors on every device, a chunk or a part of one (64 KiB at most), and the unit of
 * parity: it is worked on by one operation at a time, which takes all the pieces of bios that have come meanwhile.  Its
 * data is kept in pages of 4 KiB that are there only where they are needed; a column is the pages of the same place on
 * all devices.  What a page holds is known sector by sector: masks of 8 bits, one for each page.
 */
#ifndef DMFS_TARGETS_RAID_STRIPE_H
#define DMFS_TARGETS_RAID_STRIPE_H

#include "raid.h"

#define PAGE_BYTES 4096u
#define PAGE_SECTORS 8u
#define STRIPE_SECTORS 128u /* the most */

struct raid_request;

/* A part of a bio that lies in one stripe, on one device; or a stripe to synchronise. */
struct raid_piece {
	struct raid_piece *next;
	struct raid_request *req;
	uint64_t nr; /* the stripe's */
	unsigned disk;
	unsigned first, sectors; /* of the stripe */
	uint64_t offset;	 /* sectors into the bio */
};

enum raid_request_kind { RAID_REQ_READ, RAID_REQ_WRITE, RAID_REQ_SYNC };

/* Whoever wants something of stripes. */
struct raid_request {
	struct raid *r;
	struct raid_stripes *c;
	enum raid_request_kind kind;
	struct dm_bio *bio;
	struct raid_window *window; /* RAID_REQ_SYNC */
	void *private;
	struct raid_wait mark;
	atomic_uint left; /* pieces */
	atomic_int error;
	atomic_ulong mismatches;
	atomic_bool need; /* the stripes' parity may be wrong now */
	void (*done)(struct raid_request *);
	unsigned pieces;
	struct raid_piece piece[];
};

/* Masks, one of each for every page of a stripe. */
enum raid_mask {
	RAID_VALID, /* the page holds what the device should; kept between operations */
	RAID_WRITE, /* is written for bios; with a journal whole pages */
	RAID_COVER, /* comes from bios */
	RAID_ASK,   /* bios want to read it */
	RAID_WANT,  /* to be read from the device */
	RAID_BAD,   /* could not be read there */
	RAID_OUT,   /* to be written to the device */
	RAID_NR_MASKS,
};

enum raid_mode { RAID_NOTHING, RAID_RMW, RAID_RCW };

struct raid_ring {
	struct raid_ring *next, *prev;
};

struct raid_stripe {
	struct raid_stripes *c;
	uint64_t nr; /* its first device sector is nr * c->sectors */
	int p, q;    /* devices of parity */
	struct raid_stripe *hash_next, *starved_next;
	struct raid_ring lru; /* of stripes at rest */
	bool busy, in_lru;
	unsigned users;			    /* who is about to kick it */
	struct raid_piece *pending, **tail; /* for the next operation */
	/* the operation */
	struct raid_piece *pieces;
	struct raid_request *sync;
	atomic_uint ios;
	atomic_bool read_failed, write_failed, dropped;
	bool fua, paged;
	struct raid_wait wait;
	void (*then)(struct raid_stripe *); /* once the ios have ended */
	void (*step)(struct raid_stripe *); /* what a thread's list of stripes is to do with it */
	struct raid_stripe *step_next;
	struct raid_stripe *journal_next; /* journal.c's */
	struct dm_work work;
	int journal_error;
	bool journaled;	       /* it is in the journal, and not on the devices */
	uint8_t *mode, *recon; /* of each column: enum raid_mode; the sectors to bring back */
	void **page;	       /* [disk * pages + column] */
	uint8_t masks[];       /* [mask][disk * pages + column], mode, recon */
};

struct raid_shard {
	pthread_mutex_t lock;
	struct raid_stripe *bucket[64];
	struct raid_ring lru; /* the next is the oldest */
	void *free_pages;     /* linked by their first word */
	unsigned active;      /* who is to kick a stripe, and stripes that are busy; counted with the lock held anyhow */
	pthread_cond_t quiet; /* there are none */
} __attribute__((aligned(64)));

#define RAID_SHARDS 16u

struct raid_stripes {
	struct raid *r;
	struct raid_geo geo;
	bool moved;			/* at the devices' new data offsets: a reshape's other side */
	struct raid_journal *journal;	/* or NULL */
	unsigned disks, sectors, pages; /* sectors and pages of a stripe on one device */
	unsigned most;			/* pages, of stripe_cache columns */
	atomic_uint used;
	pthread_mutex_t starve_lock;
	unsigned running; /* operations that have their pages */
	struct raid_stripe *starved, **starved_tail;
	struct raid_shard shards[RAID_SHARDS];
};

static inline uint8_t *raid_mask(struct raid_stripe *s, enum raid_mask which, unsigned disk)
{
	return s->masks + ((size_t)which * s->c->disks + disk) * s->c->pages;
}

static inline uint8_t *raid_page(const struct raid_stripe *s, unsigned disk, unsigned column)
{
	return s->page[disk * s->c->pages + column];
}

static inline bool raid_stripe_readable(const struct raid_stripe *s, unsigned disk)
{
	return raid_member_readable(&s->c->r->members[disk], (s->nr + 1) * s->c->sectors);
}

/* --- plan.c: pure but for the members' flags ------------------------------------------------------- */

/*
 * Says what must be read (RAID_WANT) for the operation's pieces, and for each column how it is done.
 * False: too many devices are lost for it.
 */
bool raid_plan(struct raid_stripe *s);
/* Everything wanted is there: brings back what is lost. */
void raid_plan_recover(struct raid_stripe *s);
/* Takes the bios' data in, computes parity, and says what must be written (RAID_OUT). */
void raid_plan_write(struct raid_stripe *s);
/* The same for synchronising; the sectors that did not match.  False: too many devices are lost. */
bool raid_plan_sync(struct raid_stripe *s);
uint64_t raid_plan_compare(struct raid_stripe *s, enum raid_action action);
/* Gives bios what they asked for. */
void raid_plan_answer(struct raid_stripe *s);

/* --- stripe_cache.c ------------------------------------------------------------------------------------ */

/* Checks stripe_cache and sets what is in use. */
int raid_stripes_check(struct raid *r, GError **err);
struct raid_stripes *raid_stripes_new(struct raid *r, const struct raid_geo *geo, bool moved);
/* Waits until nobody is at work on a stripe: a bio is answered before its stripe is at rest.  No bio comes. */
void raid_stripes_settle(struct raid_stripes *c);
void raid_stripes_free(struct raid_stripes *c);
/* Whether a device's sectors are being written: their newest content may be in a stripe alone. */
bool raid_stripes_busy(struct raid_stripes *c, uint64_t sector, uint64_t sectors);
struct raid_shard *raid_stripe_shard(struct raid_stripes *c, uint64_t nr);
/* Finds or makes one; its shard's lock held. */
struct raid_stripe *raid_stripe_get(struct raid_shard *shard, struct raid_stripes *c, uint64_t nr);
/* Nobody has anything to do with it, or somebody has again; its shard's lock held. */
void raid_stripe_rest(struct raid_shard *shard, struct raid_stripe *s);
void raid_stripe_wake(struct raid_stripe *s);
/* What its operation needs of pages.  False: it waits in line, and raid_stripe_fed() will have it. */
bool raid_stripe_pages(struct raid_stripe *s);
/* The next in line that gets its pages, now that another operation has ended; or NULL. */
struct raid_stripe *raid_stripe_fed(struct raid_stripes *c);

/* --- stripe.c ------------------------------------------------------------------------------------------ */

/* From now on all writes go through a journal. */
void raid_stripes_set_journal(struct raid_stripes *c, struct raid_journal *j);
/* A stripe is in the journal, or with an error is not. */
void raid_stripe_journaled(struct raid_stripe *s, int error);
/* Sends a request's pieces to their stripes. */
void raid_stripes_submit(struct raid_request *req);
void raid_stripes_sync(struct raid_window *w);
struct raid_request *raid_request_new(struct raid_stripes *c, enum raid_request_kind kind, unsigned pieces);

/* --- rows.c -------------------------------------------------------------------------------------------- */

/*
 * Cuts a read or write into pieces, and for a write waits for the bitmap; done() is called at the end with
 * the request, which it frees.
 */
void raid_stripes_bio(struct raid_stripes *c, struct dm_bio *bio, uint64_t sector, void (*done)(struct raid_request *),
		      void *private);
/* Reads or writes sectors of the array and waits.  Not from map or an end. */
int raid_stripes_read(struct raid_stripes *c, uint64_t sector, uint64_t sectors, void *data);
int raid_stripes_write(struct raid_stripes *c, uint64_t sector, uint64_t sectors, const void *data);
/* What every done() of a write does: gives the regions back.  The request's error. */
int raid_request_finish(struct raid_request *req);

#endif
