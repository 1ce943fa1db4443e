/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Wiping (wipe.h): part after part is locked and read; each sector whose tag does not fit is written with zeroes.  How
 * far it is is told after a flush, so that who keeps it never keeps too much.
 */
#include <inttypes.h>
#include <stdatomic.h>

#include <dmfs/block_lock.h>
#include <dmfs/container_of.h>
#include <dmfs/work.h>

#include "wipe.h"

#define PART_SECTORS 1024u
#define PARTS_PER_FLUSH 64u

struct crypt_wipe {
	struct crypt_wipe_place place;
	struct dm_block_lock *locks; /* of sectors */
	struct dm_wq *wq;
	struct dm_work work;
	atomic_bool stopped, failed;
	uint64_t next;	       /* the work's: wiped up to here, */
	unsigned parts;	       /* in so many parts since the flush */
	_Atomic uint64_t told; /* and durably up to here */
	uint8_t *data, *zeroes, *meta;
};

struct crypt_wipe_guest {
	struct dm_block_claim claim;
	struct crypt_wipe *w;
	struct dm_bio *bio;
	void (*go)(struct dm_target *ti, struct dm_bio *bio);
};

/* --- I/O that is waited for ------------------------------------------------------------------- */

struct own_bio {
	struct dm_bio bio;
	struct dm_completion done;
};

static void ended(struct dm_bio *bio)
{
	dm_complete(&container_of(bio, struct own_bio, bio)->done);
}

/* A read or write of sectors and their tags, which are those of the part from `at` bytes of its data on. */
static int io_sync(struct crypt_wipe *w, enum dm_op op, uint64_t sector, size_t at, size_t len)
{
	const struct crypt_engine *e = w->place.engine;
	struct iovec iov = {w->data + at, len};
	struct own_bio own = {
	    .bio = {.op = op,
		    .flags = DM_BACKGROUND,
		    .dev = w->place.dev,
		    .sector = w->place.start + sector,
		    .sectors = len >> DM_SECTOR_SHIFT,
		    .iov = &iov,
		    .iovcnt = 1,
		    .tags = {w->meta + at / e->sector_size * e->meta_size, e->meta_size,
			     e->sector_size >> DM_SECTOR_SHIFT},
		    .end = ended},
	    .done = DM_COMPLETION_INIT,
	};

	dm_submit(&own.bio);
	dm_completion_wait(&own.done);
	return own.bio.error;
}

/* --- a part ----------------------------------------------------------------------------------- */

/* Whether the sector at some bytes of the part is what was written there once; or a negative errno. */
static int reads(struct crypt_wipe *w, uint64_t sector, size_t at)
{
	struct crypt_engine *e = w->place.engine;
	struct iovec iov = {w->data, PART_SECTORS * DM_SECTOR_SIZE};
	uint64_t bad;
	int r = crypt_engine_decrypt(e, w->place.iv_offset + sector, &iov, 1, at,
				     w->meta + at / e->sector_size * e->meta_size, e->sector_size, &bad);

	return r == -EILSEQ ? 0 : r ? r : 1;
}

static int write_zeroes(struct crypt_wipe *w, uint64_t sector, size_t at, size_t len)
{
	struct crypt_engine *e = w->place.engine;
	struct iovec iov = {w->zeroes, len};
	int r = crypt_engine_encrypt(e, w->place.iv_offset + sector, &iov, 1, 0, w->data + at,
				     w->meta + at / e->sector_size * e->meta_size, len);

	return r ? r : io_sync(w, DM_WRITE, sector, at, len);
}

static int wipe_locked(struct crypt_wipe *w, uint64_t sector, uint64_t sectors)
{
	unsigned step = w->place.engine->sector_size, n = (unsigned)(sectors * DM_SECTOR_SIZE / step), run;
	bool good[PART_SECTORS];
	int r = io_sync(w, DM_READ, sector, 0, (size_t)n * step);

	for (unsigned i = 0; i < n && !r; i++) {
		int sound = reads(w, sector + ((uint64_t)i * step >> DM_SECTOR_SHIFT), (size_t)i * step);

		good[i] = sound > 0;
		r = MIN(sound, 0);
	}
	for (unsigned i = 0; i < n && !r; i += run + 1) {
		for (run = 0; i + run < n && !good[i + run]; run++)
			;
		if (run)
			r = write_zeroes(w, sector + ((uint64_t)i * step >> DM_SECTOR_SHIFT), (size_t)i * step,
					 (size_t)run * step);
	}
	return r;
}

/* All that was wiped so far stays. */
static int tell(struct crypt_wipe *w)
{
	int error = w->parts ? dm_flush_sync(w->place.dev) : 0;

	if (!error) {
		w->parts = 0;
		atomic_store(&w->told, w->next);
	}
	return error;
}

static void finished(struct crypt_wipe *w)
{
	dm_log_info("crypt: all sectors that could not be read were wiped");
	dm_target_event(w->place.ti, "WIPED", NULL);
}

static int one_part(struct crypt_wipe *w, uint64_t sectors)
{
	struct dm_block_sync_claim c;
	int error;

	dm_block_lock_sync(w->locks, &c, w->next, w->next + sectors - 1, DM_BLOCK_EXCLUSIVE);
	error = wipe_locked(w, w->next, sectors);
	dm_block_unlock(w->locks, &c.claim, NULL);
	if (error)
		return error;
	w->next += sectors;
	w->parts++;
	return 0;
}

static void go_on(struct dm_work *work)
{
	struct crypt_wipe *w = container_of(work, struct crypt_wipe, work);
	uint64_t len = w->place.ti->len, told;
	int error = 0;

	if (atomic_load(&w->stopped) || !crypt_wipe_left(w, &told))
		return;
	if (w->next < len)
		error = one_part(w, MIN(PART_SECTORS, len - w->next));
	if (!error && (w->next == len || w->parts >= PARTS_PER_FLUSH))
		error = tell(w);
	if (error) {
		atomic_store(&w->failed, true);
		dm_log_err("crypt: wiping stops at sector %" PRIu64 ": %s", w->next, g_strerror(-error));
		dm_target_event(w->place.ti, "WIPE_FAILED", NULL);
	} else if (w->next == len) {
		finished(w);
	} else {
		dm_wq_queue(w->wq, &w->work);
	}
}

/* --- from outside ----------------------------------------------------------------------------- */

struct crypt_wipe *crypt_wipe_new(const struct crypt_wipe_place *place, uint64_t from)
{
	struct crypt_wipe *w = g_new0(struct crypt_wipe, 1);

	w->place = *place;
	w->work.fn = go_on;
	w->next = from;
	atomic_init(&w->told, from);
	atomic_init(&w->stopped, true);
	w->locks = dm_block_lock_new((unsigned)__builtin_ctz(PART_SECTORS));
	w->wq = dm_wq_new("crypt-wipe", 1);
	w->data = g_malloc(PART_SECTORS * DM_SECTOR_SIZE);
	w->zeroes = g_malloc0(PART_SECTORS * DM_SECTOR_SIZE);
	w->meta = g_malloc((size_t)PART_SECTORS * place->engine->meta_size);
	return w;
}

void crypt_wipe_free(struct crypt_wipe *w)
{
	if (!w)
		return;
	dm_wq_free(w->wq);
	dm_block_lock_free(w->locks);
	explicit_bzero(w->data, PART_SECTORS * DM_SECTOR_SIZE); /* what was read */
	g_free(w->data);
	g_free(w->zeroes);
	g_free(w->meta);
	g_free(w);
}

void crypt_wipe_start(struct crypt_wipe *w)
{
	atomic_store(&w->failed, false);
	atomic_store(&w->stopped, false);
	dm_wq_queue(w->wq, &w->work);
}

void crypt_wipe_stop(struct crypt_wipe *w)
{
	atomic_store(&w->stopped, true);
}

void crypt_wipe_wait(struct crypt_wipe *w)
{
	int error;

	crypt_wipe_stop(w);
	dm_wq_flush(w->wq);
	error = tell(w);
	if (error)
		dm_log_err("crypt: wiping: the device cannot be flushed: %s", g_strerror(-error));
}

bool crypt_wipe_left(const struct crypt_wipe *w, uint64_t *at)
{
	*at = atomic_load(&w->told);
	return *at < w->place.ti->len;
}

bool crypt_wipe_failed(const struct crypt_wipe *w)
{
	return atomic_load(&w->failed);
}

/* --- writes ----------------------------------------------------------------------------------- */

static void may_go(struct dm_block_claim *claim)
{
	struct crypt_wipe_guest *g = container_of(claim, struct crypt_wipe_guest, claim);

	g->go(g->w->place.ti, g->bio);
}

bool crypt_wipe_enter(struct crypt_wipe *w, struct dm_bio *bio, void (*go)(struct dm_target *ti, struct dm_bio *bio),
		      struct crypt_wipe_guest **guest)
{
	uint64_t first = dm_target_offset(w->place.ti, bio->sector), at;
	struct crypt_wipe_guest *g;

	*guest = NULL;
	if (!crypt_wipe_left(w, &at) || !bio->sectors)
		return true;
	*guest = g = g_new(struct crypt_wipe_guest, 1);
	g->w = w;
	g->bio = bio;
	g->go = go;
	return dm_block_lock(w->locks, &g->claim, first, first + bio->sectors - 1, DM_BLOCK_SHARED, may_go);
}

void crypt_wipe_leave(struct crypt_wipe_guest *g)
{
	dm_block_unlock(g->w->locks, &g->claim, NULL);
	g_free(g);
}
