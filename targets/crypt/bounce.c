/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pool of bounce buffers (bounce.h).
 *
 * Buffers have one of a few sizes.  Each CPU has a stash of free ones, last used first (they are in its cache).  Who
 * finds its own stash empty makes a new one within the budget, else takes one from another CPU's stash.
 *
 * The queue: a bio is put into it and then there is another try; a buffer is put back and then the queue is looked at.
 * Whichever comes second sees the other (both sides are sequentially consistent), so no bio is left behind.
 */
#include "bounce.h"

#include <dmfs/rounding.h>
#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static const size_t class_bytes[] = {(size_t)4 << 10, (size_t)32 << 10, (size_t)256 << 10, BOUNCE_MAX};
#define CLASSES G_N_ELEMENTS(class_bytes)
#define STASH_MAX ((size_t)2 << 20) /* bytes a CPU's stash keeps */

struct stash {
	pthread_mutex_t lock;
	struct bounce *free[CLASSES];
	size_t bytes;
} __attribute__((aligned(64)));

struct bounce_pool {
	void (*start)(void *, struct bounce *, struct dm_bio *);
	void *context;
	unsigned meta, block;
	unsigned nr_stashes;
	struct stash *stashes;
	_Atomic size_t bytes; /* of all buffers; changes only when one is made or freed */

	atomic_bool waiting; /* the queue is not empty */
	pthread_mutex_t queue_lock;
	struct dm_bio_list queue;
};

static unsigned class_of(size_t bytes)
{
	unsigned c = 0;

	while (class_bytes[c] < bytes)
		c++;
	return c;
}

/* What a buffer and its meta bytes take. */
static size_t class_size(const struct bounce_pool *pool, unsigned size_class)
{
	return class_bytes[size_class] + class_bytes[size_class] / pool->block * pool->meta;
}

static struct stash *my_stash(struct bounce_pool *pool)
{
	return &pool->stashes[(unsigned)MAX(sched_getcpu(), 0) % pool->nr_stashes];
}

static struct bounce *stash_take(struct bounce_pool *pool, struct stash *s, unsigned size_class)
{
	struct bounce *b;

	pthread_mutex_lock(&s->lock);
	b = s->free[size_class];
	if (b) {
		s->free[size_class] = b->next;
		s->bytes -= class_size(pool, size_class);
	}
	pthread_mutex_unlock(&s->lock);
	return b;
}

static void bounce_destroy(struct bounce *b)
{
	atomic_fetch_sub(&b->pool->bytes, class_size(b->pool, b->size_class));
	free(b->buf);
	g_free(b);
}

/* Takes the bytes from the budget, if there are that many. */
static bool reserve(struct bounce_pool *pool, size_t bytes)
{
	size_t now = atomic_load(&pool->bytes);

	do {
		if (now + bytes > BOUNCE_BUDGET)
			return false;
	} while (!atomic_compare_exchange_weak(&pool->bytes, &now, now + bytes));
	return true;
}

static struct bounce *bounce_make(struct bounce_pool *pool, unsigned size_class)
{
	size_t size = class_size(pool, size_class);
	struct bounce *b;
	uint8_t *buf;

	if (!reserve(pool, size))
		return NULL;
	buf = aligned_alloc(4096, dm_round_up(size, 4096));
	if (!buf) {
		atomic_fetch_sub(&pool->bytes, size);
		return NULL;
	}
	b = g_new0(struct bounce, 1);
	b->pool = pool;
	b->size_class = size_class;
	b->buf = buf;
	b->meta = pool->meta ? buf + class_bytes[size_class] : NULL;
	return b;
}

/* Frees a buffer of another size, to make room in the budget. */
static bool make_room(struct bounce_pool *pool, unsigned but_class)
{
	for (unsigned i = 0; i < pool->nr_stashes; i++)
		for (unsigned c = CLASSES; c-- > 0;) {
			struct bounce *b = c == but_class ? NULL : stash_take(pool, &pool->stashes[i], c);

			if (b) {
				bounce_destroy(b);
				return true;
			}
		}
	return false;
}

static struct bounce *bounce_get(struct bounce_pool *pool, unsigned size_class)
{
	struct bounce *b = stash_take(pool, my_stash(pool), size_class);

	if (b)
		return b;
	do {
		b = bounce_make(pool, size_class);
		for (unsigned i = 0; !b && i < pool->nr_stashes; i++)
			b = stash_take(pool, &pool->stashes[i], size_class);
	} while (!b && make_room(pool, size_class));
	return b;
}

/* The first of the queue and a buffer for it, or false. */
static bool next_waiting(struct bounce_pool *pool, struct bounce **b, struct dm_bio **orig)
{
	*b = NULL;
	pthread_mutex_lock(&pool->queue_lock);
	*orig = pool->queue.head;
	if (*orig)
		*b = bounce_get(pool, class_of((*orig)->sectors << DM_SECTOR_SHIFT));
	if (*b)
		dm_bio_list_pop(&pool->queue);
	atomic_store(&pool->waiting, !dm_bio_list_empty(&pool->queue));
	pthread_mutex_unlock(&pool->queue_lock);
	return *b;
}

/*
 * Starts what waits, as far as there are buffers.  A write that ends inside its start comes back here, deeper on the
 * stack: it leaves the rest to the loop above.
 */
static void drain(struct bounce_pool *pool)
{
	static _Thread_local struct frame {
		struct frame *outer;
		struct bounce_pool *pool;
	} *innermost;
	struct frame frame = {innermost, pool};
	struct bounce *b;
	struct dm_bio *orig;

	for (struct frame *f = innermost; f; f = f->outer)
		if (f->pool == pool)
			return;
	innermost = &frame;
	while (next_waiting(pool, &b, &orig))
		pool->start(pool->context, b, orig);
	innermost = frame.outer;
}

void bounce_submit(struct bounce_pool *pool, struct dm_bio *orig)
{
	struct bounce *b = NULL;

	if (!atomic_load(&pool->waiting))
		b = bounce_get(pool, class_of(orig->sectors << DM_SECTOR_SHIFT));
	if (b) {
		pool->start(pool->context, b, orig);
		return;
	}
	pthread_mutex_lock(&pool->queue_lock);
	dm_bio_list_add(&pool->queue, orig);
	atomic_store(&pool->waiting, true);
	pthread_mutex_unlock(&pool->queue_lock);
	atomic_thread_fence(memory_order_seq_cst);
	drain(pool);
}

void bounce_put(struct bounce *b)
{
	struct bounce_pool *pool = b->pool;
	size_t bytes = class_size(pool, b->size_class);
	struct stash *s = my_stash(pool);
	bool keep;

	b->orig = NULL;
	pthread_mutex_lock(&s->lock);
	keep = s->bytes + bytes <= STASH_MAX;
	if (keep) {
		b->next = s->free[b->size_class];
		s->free[b->size_class] = b;
		s->bytes += bytes;
	}
	pthread_mutex_unlock(&s->lock);
	if (!keep)
		bounce_destroy(b);
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load(&pool->waiting))
		drain(pool);
}

size_t bounce_pool_bytes(struct bounce_pool *pool)
{
	return atomic_load(&pool->bytes);
}

struct bounce_pool *bounce_pool_new(void (*start)(void *context, struct bounce *b, struct dm_bio *orig), void *context,
				    unsigned meta, unsigned block)
{
	struct bounce_pool *pool = g_new0(struct bounce_pool, 1);

	pool->meta = meta;
	pool->block = block;
	pool->start = start;
	pool->context = context;
	pool->nr_stashes = MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
	pool->stashes = g_aligned_alloc0(pool->nr_stashes, sizeof(*pool->stashes), 64);
	for (unsigned i = 0; i < pool->nr_stashes; i++)
		pthread_mutex_init(&pool->stashes[i].lock, NULL);
	pthread_mutex_init(&pool->queue_lock, NULL);
	dm_bio_list_init(&pool->queue);
	return pool;
}

void bounce_pool_free(struct bounce_pool *pool)
{
	struct bounce *b;

	if (!pool)
		return;
	for (unsigned i = 0; i < pool->nr_stashes; i++) {
		for (unsigned c = 0; c < CLASSES; c++)
			while ((b = stash_take(pool, &pool->stashes[i], c)))
				bounce_destroy(b);
		pthread_mutex_destroy(&pool->stashes[i].lock);
	}
	g_assert(!atomic_load(&pool->bytes));
	g_aligned_free(pool->stashes);
	pthread_mutex_destroy(&pool->queue_lock);
	g_free(pool);
}
