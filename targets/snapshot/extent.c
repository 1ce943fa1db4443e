/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data and holes of a snapshot: those of the COW device where there is an exception, of the origin elsewhere.
 *
 * Asked from outside of bios, at any time; so the exceptions are looked at under a lock of the origin, which keeps them
 * from being handed over.
 */
#include "snapshot.h"

#define FEW_EXCEPTIONS 65536u /* to look at all of them; with more, look at so many chunks at most */

struct place {
	bool exception;
	uint64_t cow_sector;  /* where it lies if so */
	uint64_t sectors;     /* how far that goes */
};

static bool find(struct snapshot *s, uint64_t chunk, uint64_t *new_chunk)
{
	struct shard *shard = snap_shard(s, chunk);
	struct exception *e;

	pthread_mutex_lock(&shard->lock);
	e = exceptions_find(&shard->complete, chunk);
	if (e)
		*new_chunk = e->new_chunk;
	pthread_mutex_unlock(&shard->lock);
	return e;
}

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
	uint64_t next = end, unused;

	if (end - chunk > FEW_EXCEPTIONS && count(s) <= FEW_EXCEPTIONS) {
		for (unsigned i = 0; i < SHARDS; i++) {
			struct shard *shard = &s->cow->shards[i];

			pthread_mutex_lock(&shard->lock);
			next = MIN(next, exceptions_next(&shard->complete, chunk));
			pthread_mutex_unlock(&shard->lock);
		}
		return next;
	}
	end = chunk + MIN(end - chunk, FEW_EXCEPTIONS);
	for (next = chunk; next < end && !find(s, next, &unused); next++)
		;
	return next;
}

static struct place locate(struct snapshot *s, uint64_t sector, uint64_t sectors)
{
	struct place p = {false, 0, sectors};
	uint64_t chunk, end, new_chunk;
	pthread_mutex_t *slot = origin_slot(s->origin);

	pthread_mutex_lock(slot);
	if (s->cow) {
		unsigned shift = s->cow->shift;
		uint64_t in_chunk = sector & (s->cow->chunk_sectors - 1);

		chunk = sector >> shift;
		if (find(s, chunk, &new_chunk)) {
			p.exception = true;
			p.cow_sector = (new_chunk << shift) + in_chunk;
			p.sectors = MIN(sectors, s->cow->chunk_sectors - in_chunk);
		} else {
			end = ((sector + sectors - 1) >> shift) + 1;
			end = unchanged_up_to(s, chunk + 1, end);
			p.sectors = MIN(sectors, (end << shift) - sector);
		}
	}
	pthread_mutex_unlock(slot);
	return p;
}

int snapshot_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct snapshot *s = ti->private;
	struct place p;

	sector += ti->begin;
	p = locate(s, sector, sectors);
	if (p.exception)
		return dm_dev_extent(s->cow_dev, p.cow_sector, p.sectors, out);
	return dm_dev_extent(s->origin_dev, sector, p.sectors, out);
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
