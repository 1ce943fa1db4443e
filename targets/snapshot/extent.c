/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data and holes of a snapshot: those of the COW device where there is an exception, of the origin elsewhere.
 *
 * Asked from outside of bios, at any time; so the exceptions are looked at under a lock of the origin, which keeps them
 * from being handed over.
 */
#include "snapshot.h"

#define FEW_EXCEPTIONS 65536u /* to look at all of them; with more, look at so many chunks at most */

static uint64_t count(struct snapshot *s)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *shard = &s->cow->shards[i];

		pthread_mutex_lock(&shard->lock);
		n += shard->complete.used;
		pthread_mutex_unlock(&shard->lock);
	}
	return n;
}

/* A chunk at or after `chunk`, not after `end`, before which there are no exceptions. */
static uint64_t unchanged_up_to(struct snapshot *s, uint64_t chunk, uint64_t end)
{
	struct dm_index_entry unused;
	uint64_t next = end;

	if (end - chunk > FEW_EXCEPTIONS && count(s) <= FEW_EXCEPTIONS) {
		for (unsigned i = 0; i < SHARDS; i++) {
			struct shard *shard = &s->cow->shards[i];

			pthread_mutex_lock(&shard->lock);
			next = MIN(next, dm_index_next(&shard->complete, chunk));
			pthread_mutex_unlock(&shard->lock);
		}
		return next;
	}
	end = chunk + MIN(end - chunk, FEW_EXCEPTIONS);
	for (next = chunk; next < end && !snap_find(s, next, &unused); next++)
		;
	return next;
}

int snapshot_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct snapshot *s = ti->private;
	pthread_mutex_t *slot = origin_slot(s->origin);
	struct dm_dev *dev = s->origin_dev;
	uint64_t at = ti->begin + sector;

	pthread_mutex_lock(slot);
	if (s->cow) {
		unsigned shift = s->cow->shift;
		uint64_t in_chunk = at & (s->cow->chunk_sectors - 1), end;
		struct dm_index_entry e;

		if (snap_find(s, at >> shift, &e)) {
			dev = s->cow_dev;
			sectors = MIN(sectors, s->cow->chunk_sectors - in_chunk);
			at = ((uint64_t)e.value << shift) + in_chunk;
		} else {
			end = unchanged_up_to(s, (at >> shift) + 1, ((at + sectors - 1) >> shift) + 1);
			sectors = MIN(sectors, (end << shift) - at);
		}
	}
	pthread_mutex_unlock(slot);
	return dm_dev_extent(dev, at, sectors, out);
}

uint64_t snapshot_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct snapshot *s = ti->private;
	pthread_mutex_t *slot = origin_slot(s->origin);
	uint64_t sum;

	pthread_mutex_lock(slot);
	sum = s->cow ? MIN(count(s) << s->cow->shift, sectors) : 0;
	pthread_mutex_unlock(slot);
	return sum + dm_dev_provisioned(s->origin_dev, ti->begin + sector, sectors);
}
