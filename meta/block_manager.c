/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The block cache: a hash of blocks in shards.  A shard has a mutex and its share of the memory; its unlocked blocks
 * stand in a list, the least recently used first.
 *
 * A block is in the hash from the moment its reading begins.  Until it has been read it is write-locked, by its reader
 * or, read ahead, by nobody.  No I/O is done under a shard's mutex.
 *
 * When a shard is over its share, its oldest blocks go.  Clean ones go at once.  Dirty ones are written first, by
 * whoever needs the room: nothing committed refers to a dirty block, so it may be written early.
 *
 * Memory for blocks comes in slabs of the shard's own and is kept for its next blocks.  From malloc(), aligned as
 * direct I/O wants them, blocks take twice the memory.
 */
#include <dmfs/block_manager.h>
#include <dmfs/crc32c.h>
#include <dmfs/log.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SHARDS 16u
#define FLUSH_RUN 64 /* blocks in one write, at most */
#define SLAB 16      /* blocks */
#define AHEAD_SHARE 4 /* of the cache for blocks that are being read ahead */

struct shard;

struct dm_block {
	struct dm_bm *bm;
	struct shard *shard;
	dm_block_t where;
	const struct dm_validator *validator;
	void *data;
	struct dm_block *chain;       /* of the hash, or of the shard's free ones */
	struct dm_block *prev, *next; /* unlocked blocks, oldest first; NULL, NULL when locked */
	int holders;                  /* readers, or -1: a writer */
	unsigned waiters;
	pthread_t writer;
	int error; /* the reading failed; waiters let go of it */
	bool dirty, gone;
	bool ahead; /* is being read for nobody yet; holders is -1, but there is no writer */
};

struct slab {
	struct slab *next;
	void *data;
	struct dm_block blocks[SLAB];
};

struct shard {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a lock was released */
	struct slab *slabs;
	struct dm_block *free;
	struct dm_block **buckets;
	unsigned mask, blocks, limit;
	unsigned dirty; /* of the hash */
	struct dm_block lru; /* ring head */
	unsigned waiting;
} __attribute__((aligned(64)));

struct dm_bm {
	struct shard shards[SHARDS];
	struct dm_dev *dev;
	unsigned block_size;
	atomic_bool read_only;
	_Atomic dm_block_t nr_blocks; /* as far as is known */
	/* Reading ahead. */
	pthread_mutex_t ahead_lock;
	pthread_cond_t settled;
	unsigned ahead, max_ahead; /* blocks */
};

uint32_t dm_bm_checksum(const void *data, size_t len, uint32_t xor_seed)
{
	return dm_crc32c(~0u, data, len) ^ xor_seed;
}

struct dm_bm *dm_bm_new(struct dm_dev *dev, unsigned block_size, size_t cache_bytes)
{
	struct dm_bm *bm;
	size_t limit = cache_bytes / block_size / SHARDS;
	unsigned buckets = 16;

	if (posix_memalign((void **)&bm, 64, sizeof(*bm)))
		g_error("out of memory");
	memset(bm, 0, sizeof(*bm));
	bm->dev = dev;
	bm->block_size = block_size;
	limit = CLAMP(limit, 4, 1u << 24);
	while (buckets < limit)
		buckets *= 2;
	pthread_mutex_init(&bm->ahead_lock, NULL);
	pthread_cond_init(&bm->settled, NULL);
	bm->max_ahead = limit * SHARDS / AHEAD_SHARE;
	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &bm->shards[i];

		pthread_mutex_init(&s->lock, NULL);
		pthread_cond_init(&s->changed, NULL);
		s->buckets = g_new0(struct dm_block *, buckets);
		s->mask = buckets - 1;
		s->limit = limit;
		s->lru.prev = s->lru.next = &s->lru;
	}
	return bm;
}

/* The lock of its shard is held. */
static void block_free(struct dm_block *b)
{
	b->chain = b->shard->free;
	b->shard->free = b;
}

static void add_slab(struct dm_bm *bm, struct shard *s)
{
	struct slab *slab = g_new0(struct slab, 1);

	char *data = mmap(NULL, (size_t)SLAB * bm->block_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (data == MAP_FAILED)
		g_error("out of memory");
	slab->data = data;
	slab->next = s->slabs;
	s->slabs = slab;
	for (unsigned i = SLAB; i-- > 0;) {
		slab->blocks[i] = (struct dm_block){.bm = bm, .shard = s, .data = data + (size_t)i * bm->block_size};
		block_free(&slab->blocks[i]);
	}
}

static void free_slabs(struct dm_bm *bm, struct shard *s)
{
	for (struct slab *slab = s->slabs, *next; slab; slab = next) {
		next = slab->next;
		munmap(slab->data, (size_t)SLAB * bm->block_size);
		g_free(slab);
	}
}

/* Waits for what is being read ahead. */
static void settle(struct dm_bm *bm)
{
	dm_block_begin();
	pthread_mutex_lock(&bm->ahead_lock);
	while (bm->ahead)
		pthread_cond_wait(&bm->settled, &bm->ahead_lock);
	pthread_mutex_unlock(&bm->ahead_lock);
	dm_block_end();
}

void dm_bm_free(struct dm_bm *bm)
{
	if (!bm)
		return;
	settle(bm);
	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &bm->shards[i];

		for (unsigned h = 0; h <= s->mask; h++)
			for (struct dm_block *b = s->buckets[h]; b; b = b->chain)
				g_assert(!b->holders);
		free_slabs(bm, s);
		g_free(s->buckets);
		pthread_mutex_destroy(&s->lock);
		pthread_cond_destroy(&s->changed);
	}
	pthread_mutex_destroy(&bm->ahead_lock);
	pthread_cond_destroy(&bm->settled);
	free(bm);
}

void dm_bm_set_dev(struct dm_bm *bm, struct dm_dev *dev)
{
	settle(bm);
	bm->dev = dev;
	atomic_store(&bm->nr_blocks, 0);
}

unsigned dm_bm_block_size(struct dm_bm *bm)
{
	return bm->block_size;
}

dm_block_t dm_bm_nr_blocks(struct dm_bm *bm)
{
	return dm_dev_sectors(bm->dev) / (bm->block_size / DM_SECTOR_SIZE);
}

size_t dm_bm_memory(struct dm_bm *bm)
{
	size_t blocks = 0;

	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_lock(&bm->shards[i].lock);
		blocks += bm->shards[i].blocks;
		pthread_mutex_unlock(&bm->shards[i].lock);
	}
	return blocks * (bm->block_size + sizeof(struct dm_block));
}

void dm_bm_set_read_only(struct dm_bm *bm, bool read_only)
{
	atomic_store(&bm->read_only, read_only);
}

bool dm_bm_is_read_only(struct dm_bm *bm)
{
	return atomic_load(&bm->read_only);
}

dm_block_t dm_block_location(const struct dm_block *block)
{
	return block->where;
}

void *dm_block_data(struct dm_block *block)
{
	return block->data;
}

/* --- the hash and the list of a shard, under its lock --- */

static struct shard *shard_of(struct dm_bm *bm, dm_block_t where)
{
	return &bm->shards[where % SHARDS];
}

static struct dm_block **bucket_of(struct shard *s, dm_block_t where)
{
	return &s->buckets[where / SHARDS * 0x9e3779b97f4a7c15ull >> 32 & s->mask];
}

static struct dm_block *find(struct shard *s, dm_block_t where)
{
	struct dm_block *b = *bucket_of(s, where);

	while (b && b->where != where)
		b = b->chain;
	return b;
}

static void list_del(struct dm_block *b)
{
	if (!b->next)
		return;
	b->prev->next = b->next;
	b->next->prev = b->prev;
	b->prev = b->next = NULL;
}

static void list_add(struct shard *s, struct dm_block *b)
{
	b->prev = s->lru.prev;
	b->next = &s->lru;
	b->prev->next = b->next->prev = b;
}

static void set_dirty(struct dm_block *b, bool dirty)
{
	if (dirty != b->dirty)
		b->shard->dirty += dirty ? 1 : -1;
	b->dirty = dirty;
}

static void unhash(struct dm_block *b)
{
	struct dm_block **p = bucket_of(b->shard, b->where);

	set_dirty(b, false);
	while (*p != b)
		p = &(*p)->chain;
	*p = b->chain;
	b->shard->blocks--;
	b->gone = true;
}

static void release(struct dm_block *b)
{
	struct shard *s = b->shard;

	if (b->holders > 0)
		b->holders--;
	else
		b->holders = 0;
	if (b->holders)
		return;
	if (b->waiters)
		pthread_cond_broadcast(&s->changed);
	if (!b->gone)
		list_add(s, b);
	else if (!b->waiters)
		block_free(b);
}

/* Waits until b may be locked; b stays in memory meanwhile. */
static void wait_for(struct dm_block *b, bool write)
{
	struct shard *s = b->shard;

	b->waiters++;
	dm_block_begin();
	while (b->holders < 0 || (write && b->holders))
		pthread_cond_wait(&s->changed, &s->lock);
	dm_block_end();
	b->waiters--;
}

/* --- I/O --- */

static uint64_t sector_of(struct dm_bm *bm, dm_block_t where)
{
	return where * (bm->block_size / DM_SECTOR_SIZE);
}

static void prepare(struct dm_block *b)
{
	if (b->validator)
		b->validator->prepare(b->validator->context, b->where, b->data, b->bm->block_size);
}

/*
 * Makes room in a shard that is over its share.  Called and returns with the lock
 * held, drops it around a write.  A block whose write fails stays, dirty, for the next flush to report.
 */
static void make_room(struct dm_bm *bm, struct shard *s)
{
	struct dm_block *b = s->lru.next;

	while (s->blocks >= s->limit && b != &s->lru) {
		struct dm_block *next = b->next;
		int r;

		if (b->waiters) {
			b = next;
			continue;
		}
		if (!b->dirty) {
			list_del(b);
			unhash(b);
			block_free(b);
			b = next;
			continue;
		}
		if (atomic_load(&bm->read_only))
			return;
		list_del(b);
		b->holders = 1;
		prepare(b);
		pthread_mutex_unlock(&s->lock);
		r = dm_write_sync(bm->dev, sector_of(bm, b->where), bm->block_size / DM_SECTOR_SIZE, b->data, DM_META);
		pthread_mutex_lock(&s->lock);
		if (!r)
			set_dirty(b, false);
		if (!r && b->holders == 1 && !b->waiters) {
			unhash(b);
			block_free(b);
		} else {
			release(b);
		}
		if (r)
			return;
		b = s->lru.next; /* the list may have changed */
	}
}

static int check(struct dm_bm *bm, struct dm_block *b, const struct dm_validator *v)
{
	int r;

	if (b->validator == v || !v)
		return 0;
	if (b->validator)
		return -EINVAL;
	r = v->check(v->context, b->where, b->data, bm->block_size);
	if (!r)
		b->validator = v;
	return r;
}

static struct dm_block *block_new(struct dm_bm *bm, struct shard *s, dm_block_t where)
{
	struct dm_block *b, **bucket = bucket_of(s, where);

	if (!s->free)
		add_slab(bm, s);
	b = s->free;
	s->free = b->chain;
	*b = (struct dm_block){.bm = bm, .shard = s, .data = b->data, .where = where};
	b->chain = *bucket;
	*bucket = b;
	s->blocks++;
	return b;
}

/* Reads a block that is not cached; called with the shard's lock, which it gives up while it reads. */
static int load(struct dm_bm *bm, struct shard *s, struct dm_block *b, const struct dm_validator *v)
{
	int r;

	b->holders = -1;
	b->writer = pthread_self();
	pthread_mutex_unlock(&s->lock);
	r = dm_read_sync(bm->dev, sector_of(bm, b->where), bm->block_size / DM_SECTOR_SIZE, b->data, DM_META);
	if (!r)
		r = check(bm, b, v);
	pthread_mutex_lock(&s->lock);
	if (r) {
		b->error = r;
		unhash(b);
		release(b);
	}
	return r;
}

/* Asks the device for its size only when the block is new to us; a device that has shrunk fails the I/O itself. */
static bool is_beyond(struct dm_bm *bm, dm_block_t where)
{
	if (where < atomic_load_explicit(&bm->nr_blocks, memory_order_relaxed))
		return false;
	atomic_store(&bm->nr_blocks, dm_bm_nr_blocks(bm));
	return where >= atomic_load(&bm->nr_blocks);
}

enum how { READ, WRITE, ZERO };

static void take(struct dm_block *b, enum how how)
{
	list_del(b);
	if (how == READ) {
		b->holders++;
		return;
	}
	b->holders = -1;
	b->writer = pthread_self();
	set_dirty(b, true);
}

/* One try at a cached block: 0 with the block taken, -EAGAIN if it went away while we waited. */
static int lock_cached(struct dm_bm *bm, struct dm_block *b, const struct dm_validator *v, enum how how)
{
	int r = 0;

	if (b->holders < 0 && !b->ahead && pthread_equal(b->writer, pthread_self()))
		return -EDEADLK;
	if (b->holders < 0 || (how != READ && b->holders)) {
		if (!dm_may_wait())
			return -EINPROGRESS;
		wait_for(b, how != READ);
	}
	if (b->gone) {
		r = b->error ? b->error : -EAGAIN;
		if (!b->holders && !b->waiters)
			block_free(b);
		return r;
	}
	if (how == ZERO) {
		memset(b->data, 0, bm->block_size);
		b->validator = v;
	} else {
		r = check(bm, b, v);
	}
	if (!r)
		take(b, how);
	return r;
}

static int lock_block(struct dm_bm *bm, dm_block_t where, const struct dm_validator *v, enum how how,
		      struct dm_block **out)
{
	struct shard *s = shard_of(bm, where);
	struct dm_block *b;
	int r;

	if (how != READ && atomic_load(&bm->read_only))
		return -EPERM;
	pthread_mutex_lock(&s->lock);
again:
	b = find(s, where);
	if (b) {
		r = lock_cached(bm, b, v, how);
		if (r == -EAGAIN)
			goto again;
	} else if (!dm_may_wait()) {
		r = -EINPROGRESS;
	} else if (is_beyond(bm, where)) {
		r = -EIO;
	} else if (s->blocks >= s->limit && (make_room(bm, s), find(s, where))) {
		goto again; /* somebody was quicker */
	} else {
		b = block_new(bm, s, where);
		if (how == ZERO) {
			memset(b->data, 0, bm->block_size);
			b->validator = v;
			r = 0;
		} else {
			r = load(bm, s, b, v);
		}
		if (!r) {
			b->holders = 0;
			take(b, how);
			if (b->waiters)
				pthread_cond_broadcast(&s->changed);
		}
	}
	pthread_mutex_unlock(&s->lock);
	*out = r ? NULL : b;
	return r;
}

int dm_bm_read_lock(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out)
{
	return lock_block(bm, b, v, READ, out);
}

int dm_bm_write_lock(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out)
{
	return lock_block(bm, b, v, WRITE, out);
}

int dm_bm_write_lock_zero(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out)
{
	return lock_block(bm, b, v, ZERO, out);
}

void dm_bm_unlock(struct dm_block *block)
{
	struct shard *s = block->shard;

	pthread_mutex_lock(&s->lock);
	release(block);
	pthread_mutex_unlock(&s->lock);
}

void dm_bm_forget(struct dm_bm *bm, dm_block_t where)
{
	struct shard *s = shard_of(bm, where);
	struct dm_block *b;

	pthread_mutex_lock(&s->lock);
	b = find(s, where);
	if (b && !b->holders && !b->waiters) {
		list_del(b);
		unhash(b);
		block_free(b);
	}
	pthread_mutex_unlock(&s->lock);
}

/* --- reading ahead --- */

struct run {
	struct dm_bm *bm;
	unsigned n;
	struct dm_block *blocks[FLUSH_RUN];
	struct iovec iov[FLUSH_RUN];
};

/* Room for n blocks more that are being read ahead: how many of them there is. */
static unsigned ahead_begin(struct dm_bm *bm, unsigned n)
{
	pthread_mutex_lock(&bm->ahead_lock);
	n = MIN(n, bm->max_ahead - MIN(bm->ahead, bm->max_ahead));
	bm->ahead += n;
	pthread_mutex_unlock(&bm->ahead_lock);
	return n;
}

static void ahead_end(struct dm_bm *bm, unsigned n)
{
	pthread_mutex_lock(&bm->ahead_lock);
	bm->ahead -= n;
	if (!bm->ahead)
		pthread_cond_broadcast(&bm->settled);
	pthread_mutex_unlock(&bm->ahead_lock);
}

/* Whoever waits for a block that could not be read tries himself. */
static void run_read(int error, const int *errors, void *context)
{
	struct run *run = context;

	for (unsigned i = 0; i < run->n; i++) {
		struct dm_block *b = run->blocks[i];
		struct shard *s = b->shard;

		pthread_mutex_lock(&s->lock);
		b->ahead = false;
		if (error)
			unhash(b);
		release(b);
		pthread_mutex_unlock(&s->lock);
	}
	ahead_end(run->bm, run->n);
	g_free(run);
}

static void send_run(struct run *run)
{
	struct dm_bm *bm = run->bm;
	uint64_t sectors = (uint64_t)run->n * (bm->block_size / DM_SECTOR_SIZE);
	struct dm_region where = {bm->dev, sector_of(bm, run->blocks[0]->where), sectors};

	dm_io_async(DM_READ, DM_META, 1, &where, run->iov, (int)run->n, run_read, run);
}

/* A block to be read ahead, or NULL: it is there, or there is no room but by writing. */
static struct dm_block *block_ahead(struct dm_bm *bm, dm_block_t where)
{
	struct shard *s = shard_of(bm, where);
	struct dm_block *b = NULL, *oldest;

	pthread_mutex_lock(&s->lock);
	oldest = s->lru.next;
	if (find(s, where))
		goto out;
	if (s->blocks >= s->limit) {
		if (oldest == &s->lru || oldest->dirty || oldest->waiters)
			goto out;
		list_del(oldest);
		unhash(oldest);
		block_free(oldest);
	}
	b = block_new(bm, s, where);
	b->holders = -1;
	b->ahead = true;
out:
	pthread_mutex_unlock(&s->lock);
	return b;
}

void dm_bm_prefetch(struct dm_bm *bm, dm_block_t first, unsigned n)
{
	struct run *run = NULL;
	unsigned room = ahead_begin(bm, n), used = 0;

	for (dm_block_t where = first; where - first < n && used < room && !is_beyond(bm, where); where++) {
		struct dm_block *b = block_ahead(bm, where);

		if (run && (!b || run->n == FLUSH_RUN)) {
			send_run(run);
			run = NULL;
		}
		if (!b)
			continue;
		if (!run) {
			run = g_new(struct run, 1);
			run->bm = bm;
			run->n = 0;
		}
		run->blocks[run->n] = b;
		run->iov[run->n++] = (struct iovec){b->data, bm->block_size};
		used++;
	}
	if (run)
		send_run(run);
	ahead_end(bm, room - used);
}

/* --- flush --- */

static int by_location(const void *a, const void *b)
{
	const struct dm_block *x = *(struct dm_block *const *)a, *y = *(struct dm_block *const *)b;

	return x->where < y->where ? -1 : x->where > y->where;
}

/* Read-locks every dirty block and returns them in order. */
static GPtrArray *collect_dirty(struct dm_bm *bm)
{
	GPtrArray *dirty = g_ptr_array_new();

	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &bm->shards[i];

		pthread_mutex_lock(&s->lock);
		for (unsigned h = 0; h <= s->mask && s->dirty; h++)
			for (struct dm_block *b = s->buckets[h]; b; b = b->chain) {
				if (!b->dirty || b->holders < 0)
					continue;
				take(b, READ);
				g_ptr_array_add(dirty, b);
			}
		pthread_mutex_unlock(&s->lock);
	}
	g_ptr_array_sort(dirty, by_location);
	return dirty;
}

static int write_run(struct dm_bm *bm, struct dm_block **run, unsigned n)
{
	unsigned sectors = bm->block_size / DM_SECTOR_SIZE;
	struct dm_region where = {bm->dev, sector_of(bm, run[0]->where), (uint64_t)n * sectors};
	struct iovec iov[FLUSH_RUN];

	for (unsigned i = 0; i < n; i++) {
		prepare(run[i]);
		iov[i] = (struct iovec){run[i]->data, bm->block_size};
	}
	return dm_io_sync(DM_WRITE, DM_META, 1, &where, iov, n, NULL);
}

int dm_bm_flush(struct dm_bm *bm)
{
	g_autoptr(GPtrArray) dirty = NULL;
	int error = 0;

	if (atomic_load(&bm->read_only))
		return -EPERM;
	dirty = collect_dirty(bm);
	for (unsigned i = 0, n; i < dirty->len; i += n) {
		struct dm_block **run = (struct dm_block **)&dirty->pdata[i];
		int r;

		for (n = 1; i + n < dirty->len && n < FLUSH_RUN && run[n]->where == run[0]->where + n;)
			n++;
		r = error ? 0 : write_run(bm, run, n);
		for (unsigned j = 0; j < n; j++) {
			struct shard *s = run[j]->shard;

			pthread_mutex_lock(&s->lock);
			if (!r && !error)
				set_dirty(run[j], false);
			release(run[j]);
			pthread_mutex_unlock(&s->lock);
		}
		if (r)
			error = r;
	}
	return error ? error : dm_flush_sync(bm->dev);
}
