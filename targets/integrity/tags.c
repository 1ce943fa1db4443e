/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Buffers of the tag area (tags.h).
 *
 * They are spread over shards, each with a lock, a hash, and a clock that finds one to give up.  A buffer that somebody
 * uses is pinned; pins are taken under the shard's lock.  Its content changes under its own lock, which the write-back
 * takes to copy what is dirty: it writes from the copy, so nobody waits for the disk.
 *
 * A miss reads the buffer while others who want it wait in its list.  If the shard is full and nothing in it is clean,
 * who comes waits for a write-back.
 *
 * Locks: shard, then buffer.  write_lock (one write-back at a time, held across I/O) before both.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <dmfs/completion.h>
#include <dmfs/container_of.h>
#include <dmfs/rounding.h>
#include <dmfs/work.h>

#include "tags.h"

#define SHARDS 16u
#define BUDGET ((size_t)32 << 20) /* bytes of all buffers */
#define MIN_BUFFERS 4u		  /* a shard's, whatever their size */
#define MAX_LOG2_IO 11u		  /* sectors of a buffer at most: what is asked for beyond is read in parts */
#define BATCH_BYTES ((size_t)4 << 20)

struct buffer {
	uint64_t nr;
	uint8_t *data;
	struct shard *shard;
	struct buffer *prev, *next; /* the clock's ring */
	atomic_uint pins;
	bool used; /* since the clock's hand was here */
	bool reading;
	size_t dirty_from, dirty_to; /* bytes; none if they are equal */
	struct integrity_tag_io *waiting;
	pthread_mutex_t lock; /* the content */
	struct dm_bio bio;    /* reads it */
	struct iovec iov;
};

struct shard {
	pthread_mutex_t lock;
	GHashTable *buffers; /* nr to buffer */
	struct buffer *hand;
	struct integrity_tag_io *no_room;
} __attribute__((aligned(64)));

struct integrity_tags {
	struct integrity_layout l;
	struct dm_dev *dev;
	unsigned log2_bytes; /* of a buffer */
	unsigned most;	     /* buffers of a shard */
	struct shard shards[SHARDS];
	struct dm_wq *wq;
	struct dm_work make_room;
	pthread_mutex_t write_lock;
};

static struct shard *shard_of(struct integrity_tags *t, uint64_t nr)
{
	return &t->shards[nr % SHARDS];
}

static guint hash_nr(gconstpointer key)
{
	uint64_t nr = *(const uint64_t *)key;

	return (guint)((nr * 0x9e3779b97f4a7c15ull) >> 32);
}

static gboolean same_nr(gconstpointer a, gconstpointer b)
{
	return *(const uint64_t *)a == *(const uint64_t *)b;
}

static uint64_t first_sector(const struct integrity_tags *t, uint64_t nr)
{
	return t->l.start + t->l.initial + (nr << (t->log2_bytes - DM_SECTOR_SHIFT));
}

/* --- the clock; the shard's lock is held ------------------------------------------------------ */

static void ring_add(struct shard *s, struct buffer *b)
{
	if (!s->hand) {
		s->hand = b->prev = b->next = b;
		return;
	}
	b->next = s->hand;
	b->prev = s->hand->prev;
	b->prev->next = b->next->prev = b;
}

static void drop(struct shard *s, struct buffer *b)
{
	if (s->hand == b)
		s->hand = b->next == b ? NULL : b->next;
	b->prev->next = b->next;
	b->next->prev = b->prev;
	g_hash_table_remove(s->buffers, &b->nr);
	pthread_mutex_destroy(&b->lock);
	free(b->data);
	g_free(b);
}

static bool clean_and_free(const struct buffer *b)
{
	return !b->reading && b->dirty_from == b->dirty_to && !atomic_load(&b->pins);
}

/* Twice around: in the first, who was used is spared. */
static bool give_one_up(struct shard *s)
{
	guint n = 2 * g_hash_table_size(s->buffers);

	for (guint i = 0; i < n; i++) {
		struct buffer *b = s->hand;

		if (clean_and_free(b) && !b->used) {
			drop(s, b);
			return true;
		}
		b->used = false;
		s->hand = b->next;
	}
	return false;
}

/* --- reading a buffer ------------------------------------------------------------------------- */

static void wake(struct integrity_tag_io *list, int error)
{
	while (list) {
		struct integrity_tag_io *io = list;

		list = io->next;
		io->error = error;
		io->ready(io);
	}
}

static void buffer_read(struct dm_bio *bio)
{
	struct buffer *b = bio->private;
	struct shard *s = b->shard;
	struct integrity_tag_io *list;
	int error = bio->error;

	pthread_mutex_lock(&s->lock);
	list = b->waiting;
	b->waiting = NULL;
	b->reading = false;
	if (error)
		drop(s, b);
	pthread_mutex_unlock(&s->lock);
	wake(list, error);
}

static struct buffer *new_buffer(struct integrity_tags *t, struct shard *s, uint64_t nr)
{
	size_t bytes = (size_t)1 << t->log2_bytes;
	struct buffer *b;
	uint8_t *data;

	if (g_hash_table_size(s->buffers) >= t->most && !give_one_up(s))
		return NULL;
	data = aligned_alloc(4096, MAX(bytes, 4096));
	if (!data)
		return NULL;
	b = g_new0(struct buffer, 1);
	b->nr = nr;
	b->data = data;
	b->shard = s;
	b->reading = true;
	pthread_mutex_init(&b->lock, NULL);
	b->iov = (struct iovec){b->data, bytes};
	b->bio = (struct dm_bio){
	    .op = DM_READ,
	    .flags = DM_META,
	    .dev = t->dev,
	    .sector = first_sector(t, nr),
	    .sectors = bytes >> DM_SECTOR_SHIFT,
	    .iov = &b->iov,
	    .iovcnt = 1,
	    .end = buffer_read,
	    .private = b,
	};
	g_hash_table_insert(s->buffers, &b->nr, b);
	ring_add(s, b);
	return b;
}

/* Pinned, or NULL: io waits. */
static struct buffer *get(struct integrity_tags *t, uint64_t nr, struct integrity_tag_io *io)
{
	struct shard *s = shard_of(t, nr);
	bool submit = false, no_room = false;
	struct buffer *b;

	pthread_mutex_lock(&s->lock);
	b = g_hash_table_lookup(s->buffers, &nr);
	if (b && !b->reading) {
		atomic_fetch_add(&b->pins, 1);
		b->used = true;
		pthread_mutex_unlock(&s->lock);
		return b;
	}
	if (!b) {
		b = new_buffer(t, s, nr);
		submit = b;
		no_room = !b;
	}
	io->next = b ? b->waiting : s->no_room;
	*(b ? &b->waiting : &s->no_room) = io;
	pthread_mutex_unlock(&s->lock);
	if (submit)
		dm_submit(&b->bio);
	if (no_room)
		dm_wq_queue(t->wq, &t->make_room);
	return NULL;
}

static void put(struct buffer *b)
{
	atomic_fetch_sub(&b->pins, 1);
}

/* --- transfers -------------------------------------------------------------------------------- */

static void write_to(struct buffer *b, size_t at, const uint8_t *data, size_t len)
{
	pthread_mutex_lock(&b->lock);
	memcpy(b->data + at, data, len);
	pthread_mutex_unlock(&b->lock);
	pthread_mutex_lock(&b->shard->lock);
	if (b->dirty_from == b->dirty_to) {
		b->dirty_from = at;
		b->dirty_to = at + len;
	} else {
		b->dirty_from = MIN(b->dirty_from, at);
		b->dirty_to = MAX(b->dirty_to, at + len);
	}
	pthread_mutex_unlock(&b->shard->lock);
}

int integrity_tags_io(struct integrity_tags *t, struct integrity_tag_io *io)
{
	uint64_t total = (uint64_t)io->blocks * t->l.tag_size, begin = integrity_tag_at(&t->l, io->block);

	if (io->error)
		return io->error;
	while (io->done < total) {
		uint64_t at = begin + io->done;
		size_t in = at & (((size_t)1 << t->log2_bytes) - 1);
		size_t len = MIN(total - io->done, ((size_t)1 << t->log2_bytes) - in);
		struct buffer *b = get(t, at >> t->log2_bytes, io);

		if (!b)
			return 0;
		if (io->write)
			write_to(b, in, io->data + io->done, len);
		else
			memcpy(io->data + io->done, b->data + in, len);
		io->done += len;
		put(b);
	}
	return 1;
}

struct sync_io {
	struct integrity_tag_io io;
	struct dm_completion ready;
};

static void sync_ready(struct integrity_tag_io *io)
{
	dm_complete(&container_of(io, struct sync_io, io)->ready);
}

int integrity_tags_io_sync(struct integrity_tags *t, uint64_t block, unsigned blocks, bool write, uint8_t *data)
{
	struct sync_io s = {
	    .io = {.block = block, .blocks = blocks, .write = write, .data = data, .ready = sync_ready},
	    .ready = DM_COMPLETION_INIT,
	};
	int r;

	while (!(r = integrity_tags_io(t, &s.io)))
		dm_completion_wait(&s.ready);
	return r < 0 ? r : 0;
}

/* --- write-back ------------------------------------------------------------------------------- */

struct write_back {
	struct dm_bio bio;
	struct iovec iov;
	struct buffer *b;
	size_t from, to;
	struct batch *batch;
	struct write_back *next;
	uint8_t *copy;
};

struct batch {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned under_way;
	size_t bytes;
	int error;
};

static void written(struct dm_bio *bio)
{
	struct write_back *w = bio->private;
	struct shard *s = w->b->shard;
	struct batch *batch = w->batch;

	if (bio->error) {
		pthread_mutex_lock(&s->lock); /* it is dirty still */
		if (w->b->dirty_from == w->b->dirty_to) {
			w->b->dirty_from = w->from;
			w->b->dirty_to = w->to;
		} else {
			w->b->dirty_from = MIN(w->b->dirty_from, w->from);
			w->b->dirty_to = MAX(w->b->dirty_to, w->to);
		}
		pthread_mutex_unlock(&s->lock);
	}
	put(w->b);
	pthread_mutex_lock(&batch->lock);
	if (bio->error && !batch->error)
		batch->error = bio->error;
	batch->bytes -= w->iov.iov_len;
	batch->under_way--;
	pthread_cond_signal(&batch->cond);
	pthread_mutex_unlock(&batch->lock);
	free(w->copy);
	g_free(w);
}

/* Waits until so many bytes or fewer are under way. */
static void batch_wait(struct batch *batch, size_t bytes)
{
	pthread_mutex_lock(&batch->lock);
	if (batch->bytes > bytes) {
		dm_block_begin();
		while (batch->bytes > bytes)
			pthread_cond_wait(&batch->cond, &batch->lock);
		dm_block_end();
	}
	pthread_mutex_unlock(&batch->lock);
}

/* The shard's dirty buffers, pinned and taken for clean, each with what was dirty in whole sectors. */
static struct write_back *take_dirty(struct shard *s, struct batch *batch)
{
	struct write_back *list = NULL;
	struct buffer *b;
	GHashTableIter iter;
	gpointer value;

	pthread_mutex_lock(&s->lock);
	g_hash_table_iter_init(&iter, s->buffers);
	while (g_hash_table_iter_next(&iter, NULL, &value)) {
		struct write_back *w;

		b = value;
		if (b->reading || b->dirty_from == b->dirty_to)
			continue;
		w = g_new0(struct write_back, 1);
		w->b = b;
		w->from = dm_round_down(b->dirty_from, DM_SECTOR_SIZE);
		w->to = dm_round_up(b->dirty_to, DM_SECTOR_SIZE);
		w->batch = batch;
		w->next = list;
		list = w;
		b->dirty_from = b->dirty_to = 0;
		atomic_fetch_add(&b->pins, 1);
	}
	pthread_mutex_unlock(&s->lock);
	return list;
}

static void write_one(struct integrity_tags *t, struct write_back *w)
{
	struct batch *batch = w->batch;
	size_t len = w->to - w->from;

	batch_wait(batch, BATCH_BYTES);
	w->copy = aligned_alloc(4096, dm_round_up(len, 4096));
	pthread_mutex_lock(&w->b->lock);
	memcpy(w->copy, w->b->data + w->from, len);
	pthread_mutex_unlock(&w->b->lock);
	w->iov = (struct iovec){w->copy, len};
	w->bio = (struct dm_bio){
	    .op = DM_WRITE,
	    .flags = DM_META,
	    .dev = t->dev,
	    .sector = first_sector(t, w->b->nr) + (w->from >> DM_SECTOR_SHIFT),
	    .sectors = len >> DM_SECTOR_SHIFT,
	    .iov = &w->iov,
	    .iovcnt = 1,
	    .end = written,
	    .private = w,
	};
	pthread_mutex_lock(&batch->lock);
	batch->bytes += len;
	batch->under_way++;
	pthread_mutex_unlock(&batch->lock);
	dm_submit(&w->bio);
}

static int by_nr(const void *a, const void *b)
{
	uint64_t x = (*(struct write_back *const *)a)->b->nr, y = (*(struct write_back *const *)b)->b->nr;

	return x < y ? -1 : x > y;
}

int integrity_tags_write_back(struct integrity_tags *t)
{
	struct batch batch = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	g_autoptr(GPtrArray) all = g_ptr_array_new();

	dm_block_begin();
	pthread_mutex_lock(&t->write_lock);
	dm_block_end();
	for (unsigned i = 0; i < SHARDS; i++)
		for (struct write_back *w = take_dirty(&t->shards[i], &batch); w; w = w->next)
			g_ptr_array_add(all, w);
	if (all->len)
		qsort(all->pdata, all->len, sizeof(void *), by_nr);
	for (guint i = 0; i < all->len; i++)
		write_one(t, all->pdata[i]);
	batch_wait(&batch, 0);
	pthread_mutex_lock(&batch.lock); /* the last one has let go of it */
	pthread_mutex_unlock(&batch.lock);
	pthread_mutex_unlock(&t->write_lock);
	return batch.error;
}

/* Who waits for room tries again: there is some now, unless writing has failed. */
static void make_room(struct dm_work *work)
{
	struct integrity_tags *t = container_of(work, struct integrity_tags, make_room);
	int error = integrity_tags_write_back(t);

	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &t->shards[i];
		struct integrity_tag_io *list;

		pthread_mutex_lock(&s->lock);
		list = s->no_room;
		s->no_room = NULL;
		pthread_mutex_unlock(&s->lock);
		wake(list, error);
	}
}

/* --- making ----------------------------------------------------------------------------------- */

struct integrity_tags *integrity_tags_new(const struct integrity_layout *l, struct dm_dev *dev)
{
	struct integrity_tags *t = g_aligned_alloc0(1, sizeof *t, 64);

	t->l = *l;
	t->dev = dev;
	t->log2_bytes = MIN(l->log2_buffer, MAX_LOG2_IO) + DM_SECTOR_SHIFT;
	t->most = (unsigned)MAX((BUDGET >> t->log2_bytes) / SHARDS, MIN_BUFFERS);
	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &t->shards[i];

		pthread_mutex_init(&s->lock, NULL);
		s->buffers = g_hash_table_new(hash_nr, same_nr);
	}
	pthread_mutex_init(&t->write_lock, NULL);
	t->make_room.fn = make_room;
	t->wq = dm_wq_new("integrity-tags", 1);
	return t;
}

void integrity_tags_forget(struct integrity_tags *t)
{
	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &t->shards[i];

		pthread_mutex_lock(&s->lock);
		while (s->hand)
			drop(s, s->hand);
		pthread_mutex_unlock(&s->lock);
	}
}

void integrity_tags_free(struct integrity_tags *t)
{
	if (!t)
		return;
	dm_wq_free(t->wq);
	integrity_tags_forget(t);
	for (unsigned i = 0; i < SHARDS; i++) {
		g_hash_table_destroy(t->shards[i].buffers);
		pthread_mutex_destroy(&t->shards[i].lock);
	}
	pthread_mutex_destroy(&t->write_lock);
	g_aligned_free(t);
}
