/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shares of the threads, by file system (fs_share.h).  They are kept when nobody uses them: there are no more than file
 * systems.
 */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "fs_share.h"

#include <dmfs/container_of.h>
#include <dmfs/io.h>
#include <dmfs/work.h>

#define CALLERS 32u       /* of those that submit */
#define QUEUE_THREADS 32u /* more than a disk does at a time */

struct fs_share {
	uint64_t key[2]; /* the device's number, and whether it is a block device */
	unsigned refs;   /* under shares_lock */
	bool far;
	char *path;
	atomic_uint callers, queued;
	_Atomic uint64_t came_back_ns;
	struct dm_wq *queue;
};

struct queued {
	struct dm_work work;
	struct fs_share *share;
	struct dm_bio *bio;
	void (*fn)(struct dm_bio *);
};

static pthread_mutex_t shares_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *shares;

static guint hash_share(gconstpointer p)
{
	const struct fs_share *s = p;

	return g_int64_hash(&s->key[0]) ^ (guint)s->key[1];
}

static gboolean equal_share(gconstpointer a, gconstpointer b)
{
	const struct fs_share *x = a, *y = b;

	return x->key[0] == y->key[0] && x->key[1] == y->key[1];
}

struct fs_share *fs_share_get(dev_t dev, bool block_device, bool far, const char *path)
{
	struct fs_share key = {.key = {dev, block_device}}, *s;

	pthread_mutex_lock(&shares_lock);
	if (!shares)
		shares = g_hash_table_new(hash_share, equal_share);
	s = g_hash_table_lookup(shares, &key);
	if (!s) {
		s = g_new0(struct fs_share, 1);
		s->key[0] = dev;
		s->key[1] = block_device;
		s->queue = dm_wq_new("store", QUEUE_THREADS);
		g_hash_table_add(shares, s);
	}
	if (!s->refs++) { /* the number may have been another's before */
		s->far = far;
		g_free(s->path);
		s->path = g_strdup(path);
	}
	pthread_mutex_unlock(&shares_lock);
	return s;
}

void fs_share_put(struct fs_share *s)
{
	pthread_mutex_lock(&shares_lock);
	s->refs--;
	pthread_mutex_unlock(&shares_lock);
}

bool fs_share_far(const struct fs_share *s)
{
	return s->far;
}

static void came_back(struct fs_share *s)
{
	atomic_store_explicit(&s->came_back_ns, dm_now_ns(), memory_order_relaxed);
}

bool fs_share_enter(struct fs_share *s)
{
	if (atomic_fetch_add(&s->callers, 1) >= CALLERS) {
		atomic_fetch_sub(&s->callers, 1);
		return false;
	}
	dm_block_begin();
	return true;
}

void fs_share_enter_anyway(struct fs_share *s)
{
	atomic_fetch_add(&s->callers, 1);
	dm_block_begin();
}

void fs_share_leave(struct fs_share *s)
{
	dm_block_end();
	came_back(s);
	atomic_fetch_sub(&s->callers, 1);
}

static void run_queued(struct dm_work *work)
{
	struct queued *q = container_of(work, struct queued, work);
	struct fs_share *s = q->share;
	struct dm_bio *bio = q->bio;
	void (*fn)(struct dm_bio *) = q->fn;

	g_free(q);
	fn(bio);
	came_back(s);
	atomic_fetch_sub(&s->queued, 1);
}

void fs_share_queue(struct fs_share *s, struct dm_bio *bio, void (*fn)(struct dm_bio *))
{
	struct queued *q = g_new(struct queued, 1);

	*q = (struct queued){.work.fn = run_queued, .share = s, .bio = bio, .fn = fn};
	atomic_fetch_add(&s->queued, 1);
	dm_wq_queue(s->queue, &q->work);
}

char *fs_share_hanging(uint64_t since_ns, unsigned ms, bool far_only)
{
	uint64_t now = dm_now_ns();
	GHashTableIter iter;
	gpointer key;
	char *path = NULL;

	pthread_mutex_lock(&shares_lock);
	if (shares) {
		g_hash_table_iter_init(&iter, shares);
		while (!path && g_hash_table_iter_next(&iter, &key, NULL)) {
			struct fs_share *s = key;

			if ((s->far || !far_only) && atomic_load(&s->callers) + atomic_load(&s->queued) &&
			    MAX(atomic_load(&s->came_back_ns), since_ns) + ms * UINT64_C(1000000) < now)
				path = g_strdup(s->path);
		}
	}
	pthread_mutex_unlock(&shares_lock);
	return path;
}
