/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Block locks: who works on a block, or on a range of blocks, and who waits for it.
 *
 * Blocks are numbers; what they stand for (sectors, chunks, regions, stripes, zones) is the owner's to say.  A
 * claim is one request for blocks first to last, shared or exclusive.  It is embedded in its maker's struct, as in
 * a target's bytes of a bio, and must stay in place from dm_block_lock() until dm_block_unlock() is called.
 *
 *	struct my_bio { struct dm_block_claim claim; struct dm_bio *bio; };
 *
 *	map():      my->bio = bio;
 *	            if (dm_block_lock(l, &my->claim, block, block, DM_BLOCK_EXCLUSIVE, my_turn))
 *	                    my_turn(&my->claim);
 *	            return DM_MAPIO_SUBMITTED;
 *	my_turn():  the blocks are ours; sends the bio on.  container_of() leads to my_bio.
 *	end_io():   dm_block_unlock(l, &my->claim, NULL);
 *
 * The rules:
 *   - No call but dm_block_lock_sync() waits.  A claim that does not get its blocks at once gets them later, and
 *     granted() is called then.
 *   - First come, first served: a claim waits for all earlier ones that overlap it, held or waiting, unless both
 *     are shared.  So nobody starves, and claims for blocks apart never wait for each other.
 *   - granted() runs in the thread whose dm_block_unlock() or dm_block_cancel() made way, before that call
 *     returns, or, if that thread is inside another granted(), when this one has returned.  No lock is held.  It may
 *     call everything here, end bios and submit them; it must not block, for others wait behind it in that thread.
 *   - Who has some blocks and asks for more may wait for somebody who waits for him.  Claim all at once, or in
 *     ascending order, or use dm_block_trylock().
 *   - Unlock before you end the bio (or whatever else) that keeps the lock's owner alive.
 *
 * Cost: two short mutexes of one of 64 shards for a claim, and memory only while it is there (a node for each
 * different range).  Blocks whose numbers divided by 2^shift differ are mostly in different shards, and then
 * share no cache line.  A claim over several shards has a place in each; such claims are entered one at a time.
 */
#ifndef DMFS_BLOCK_LOCK_H
#define DMFS_BLOCK_LOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <dmfs/bio.h>
#include <dmfs/completion.h>

struct dm_block_lock;
struct dm_block_claim;

enum dm_block_mode {
	DM_BLOCK_SHARED,
	DM_BLOCK_EXCLUSIVE,
};

typedef void (*dm_block_granted)(struct dm_block_claim *);

/* The lock's own: a claim's place in one shard. */
struct dm_block_place {
	struct dm_block_claim *claim;
	struct dm_block_node *node;
	struct dm_block_place *prev, *next;
	uint64_t seq;
	bool behind;
	struct dm_block_parked *parked, **parked_tail;
};

struct dm_block_claim {
	uint64_t first, last; /* to read, while the claim is there */
	enum dm_block_mode mode;
	/* The lock's own from here on. */
	dm_block_granted granted;
	atomic_uint blockers;
	struct dm_block_claim *next;
	uint64_t shards; /* a bit a shard */
	struct dm_block_place place, *places;
};

/*
 * shift: 0 to 63; 2^shift blocks in a row are in one shard.  0 for single blocks; for ranges about as much as the
 * usual one is long, so that most of them fit into one.
 */
struct dm_block_lock *dm_block_lock_new(unsigned shift);
/* There are no claims any more. */
void dm_block_lock_free(struct dm_block_lock *l);

/*
 * Asks for blocks first to last (both included, first <= last).  True: they are the caller's now, and granted()
 * is not called.  False: granted() will be, exactly once (perhaps before this returns, in another thread).
 */
bool dm_block_lock(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t first, uint64_t last,
		   enum dm_block_mode mode, dm_block_granted granted);
/* Now or not at all: false leaves nothing behind, but what somebody may have parked meanwhile, as after an unlock. */
bool dm_block_trylock(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t first, uint64_t last,
		      enum dm_block_mode mode, struct dm_bio_list *parked);
/*
 * Gives a held claim's blocks up; those whose turn it is get them.  The claim's memory is free to go at return,
 * and already in their granted().  parked: gets the bios that wait with the claim (see below), at its end; may be
 * NULL where nothing is ever parked.
 */
void dm_block_unlock(struct dm_block_lock *l, struct dm_block_claim *claim, struct dm_bio_list *parked);
/*
 * A claim that waits gives up.  True: granted() will not be called, the claim is gone (as after an unlock).
 * False: it has been granted, or is about to be, and is to be unlocked as any other.
 */
bool dm_block_cancel(struct dm_block_lock *l, struct dm_block_claim *claim, struct dm_bio_list *parked);

/* Of a work that waits for its blocks itself. */
struct dm_block_sync_claim {
	struct dm_block_claim claim; /* to unlock */
	struct dm_completion granted;
};

/* dm_block_lock() that returns once the blocks are the caller's; where waiting is allowed (dm_block_begin()). */
void dm_block_lock_sync(struct dm_block_lock *l, struct dm_block_sync_claim *c, uint64_t first, uint64_t last,
			enum dm_block_mode mode);

/*
 * For work that is done once for all who come meanwhile.  0: the claim is made, for one block, exclusive, as by
 * dm_block_trylock().  1: somebody has the block, or waits for it, and the bio (NULL: none) is left with him.  His
 * unlock hands it out, for whoever unlocks to send it on or to have it mapped anew; if its origin is cancelled
 * (hold.h) before that, it ends with -EINTR.  -EINTR: that has happened already, and the bio is the caller's to end.
 */
int dm_block_lock_or_park(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t block, struct dm_bio *bio);

#endif
