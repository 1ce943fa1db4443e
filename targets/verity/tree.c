/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Digests, out of a bounded cache of the tree's hash blocks.
 *
 * A hash block is a node: read once however many wait for it, verified against the block above it when it is
 * first needed, kept until others are needed more.  Nodes are found by their block's number in shards, each with a
 * lock that is never held during I/O or hashing.
 *
 *   LOADING    its read is under way
 *   READ       not yet verified; whoever needs it does that, perhaps two at once
 *   MENDING    its digest was wrong: it is being mended or given up
 *   VERIFIED   its content does not change any more
 *   BAD        corrupted, but used all the same (ignore_corruption)
 *   FAILED     not in the cache any more: whoever waits for it gets its error
 *
 * Who needs a digest walks up from its hash block to the first that is verified, then down again.  He pins the nodes of
 * this path (refs, w->path) while he waits, so they are there when he tries again; nodes nobody pins are in their
 * shard's list, the one used last in front, and the one that was used longest ago goes first when there is no room.
 * Time is counted in nodes made.
 */
#include <inttypes.h>
#include <pthread.h>

#include "verity.h"

#define SHARDS 16u
#define CLUSTER_BYTES ((size_t)256 << 10) /* read at once, in the level above the data */
#define CLUSTER_MAX 64u                   /* blocks of it */
#define MAX_NESTED 4u

enum state { LOADING, READ, MENDING, VERIFIED, BAD, FAILED };

struct verity_node {
	struct verity_node *hash_next; /* the shard's */
	struct verity_node *newer, *older;
	struct verity_tree *tree;
	uint64_t block;
	unsigned level;
	enum state state;
	unsigned refs; /* 0: in the shard's list */
	int error;
	uint64_t used; /* time */
	struct verity_wait *waiters;
	struct dm_work work;         /* mending */
	uint8_t *data;               /* own, or what was mended */
	uint8_t want[DM_HASH_MAX_SIZE]; /* MENDING: its digest */
	uint8_t own[] __attribute__((aligned(16)));
};

struct shard {
	pthread_mutex_t lock;
	struct verity_node **buckets;
	struct verity_node *newest, *oldest;
} __attribute__((aligned(64)));

struct verity_tree {
	struct verity *v;
	const struct verity_format *f;
	uint64_t buckets; /* a shard, a power of two */
	size_t limit;     /* bytes */
	atomic_size_t bytes;
	_Atomic uint64_t time;
	pthread_mutex_t lock; /* with idle: loads */
	pthread_cond_t idle;
	unsigned loads; /* under way */
	struct shard shards[SHARDS];
};

/* A read of neighbouring nodes; each is pinned by it. */
struct load {
	struct dm_bio bio; /* first */
	struct verity_tree *t;
	unsigned n;
	struct verity_node **nodes;
	struct iovec *iov;
};

/* --- shards ---------------------------------------------------------------------------------- */

static uint64_t scatter(uint64_t block)
{
	return block * 0x9e3779b97f4a7c15u;
}

static struct shard *shard_of(struct verity_tree *t, uint64_t block)
{
	return &t->shards[scatter(block) >> 60];
}

static struct verity_node **bucket_of(struct verity_tree *t, struct shard *s, uint64_t block)
{
	return &s->buckets[scatter(block) >> 20 & (t->buckets - 1)];
}

/* All of these hold the shard's lock. */

static struct verity_node *find(struct verity_tree *t, struct shard *s, uint64_t block)
{
	struct verity_node *n = *bucket_of(t, s, block);

	while (n && n->block != block)
		n = n->hash_next;
	return n;
}

static void list_remove(struct shard *s, struct verity_node *n)
{
	*(n->newer ? &n->newer->older : &s->newest) = n->older;
	*(n->older ? &n->older->newer : &s->oldest) = n->newer;
}

static void list_add(struct verity_tree *t, struct shard *s, struct verity_node *n)
{
	n->used = atomic_load_explicit(&t->time, memory_order_relaxed);
	n->newer = NULL;
	n->older = s->newest;
	*(s->newest ? &s->newest->newer : &s->oldest) = n;
	s->newest = n;
}

static void touch(struct verity_tree *t, struct shard *s, struct verity_node *n)
{
	n->used = atomic_load_explicit(&t->time, memory_order_relaxed);
	if (n->refs || s->newest == n)
		return;
	list_remove(s, n);
	list_add(t, s, n);
}

static void pin(struct shard *s, struct verity_node *n)
{
	if (!n->refs++)
		list_remove(s, n);
}

static void unhash(struct verity_tree *t, struct shard *s, struct verity_node *n)
{
	struct verity_node **p = bucket_of(t, s, n->block);

	while (*p != n)
		p = &(*p)->hash_next;
	*p = n->hash_next;
}

static size_t node_bytes(const struct verity_tree *t)
{
	return sizeof(struct verity_node) + t->f->hash_block;
}

static void node_free(struct verity_node *n)
{
	atomic_fetch_sub(&n->tree->bytes, node_bytes(n->tree));
	if (n->data != n->own)
		g_free(n->data);
	g_free(n);
}

/* --- room ------------------------------------------------------------------------------------ */

/* Drops the node that was used longest ago; false if all are pinned. */
static bool drop_one(struct verity_tree *t)
{
	struct verity_node *n = NULL;
	struct shard *best = NULL;
	uint64_t used = UINT64_MAX;

	for (unsigned i = 0; i < SHARDS; i++) {
		struct shard *s = &t->shards[i];

		pthread_mutex_lock(&s->lock);
		if (s->oldest && s->oldest->used <= used) {
			used = s->oldest->used;
			best = s;
		}
		pthread_mutex_unlock(&s->lock);
	}
	if (!best)
		return false;
	pthread_mutex_lock(&best->lock);
	n = best->oldest;
	if (n) {
		list_remove(best, n);
		unhash(t, best, n);
	}
	pthread_mutex_unlock(&best->lock);
	if (n)
		node_free(n);
	return true;
}

static bool has_room(struct verity_tree *t, size_t bytes)
{
	return atomic_load(&t->bytes) + bytes <= t->limit;
}

static void make_room(struct verity_tree *t, size_t bytes)
{
	while (!has_room(t, bytes) && drop_one(t))
		;
}

static void unpin(struct verity_node *n)
{
	struct verity_tree *t = n->tree;
	struct shard *s = shard_of(t, n->block);
	bool gone = false;

	pthread_mutex_lock(&s->lock);
	if (!--n->refs) {
		gone = n->state == FAILED;
		if (!gone)
			list_add(t, s, n);
	}
	pthread_mutex_unlock(&s->lock);
	if (gone)
		node_free(n);
	make_room(t, 0);
}

static void unpin_path(struct verity_wait *w)
{
	for (unsigned i = 0; i < VERITY_MAX_LEVELS; i++)
		if (w->path[i])
			unpin(g_steal_pointer(&w->path[i]));
}

/* --- waiting --------------------------------------------------------------------------------- */

/* Lock held: nobody who asks from now on waits. */
static struct verity_wait *set_state(struct shard *s, struct verity_node *n, enum state state)
{
	n->state = state;
	if (state == FAILED)
		unhash(n->tree, s, n);
	return g_steal_pointer(&n->waiters);
}

static void wake(struct verity_wait *list)
{
	while (list) {
		struct verity_wait *w = list;

		list = w->next;
		w->ready(w);
	}
}

/*
 * With the caller's pin, which goes.  The last who is woken may end the last bio, and the tree with it: nothing
 * follows.
 */
static void settle(struct verity_node *n, enum state state)
{
	struct shard *s = shard_of(n->tree, n->block);
	struct verity_wait *list;

	pthread_mutex_lock(&s->lock);
	list = set_state(s, n, state);
	pthread_mutex_unlock(&s->lock);
	unpin(n);
	wake(list);
}

/* --- loading --------------------------------------------------------------------------------- */

static void mend(struct dm_work *work);

/* Pinned once for the caller, if it is new; else NULL.  error: there is no memory. */
static struct verity_node *make_node(struct verity_tree *t, uint64_t block, unsigned level, int *error)
{
	struct shard *s = shard_of(t, block);
	struct verity_node *n = g_try_malloc(node_bytes(t)), **bucket;

	if (!n) {
		*error = -ENOMEM;
		return NULL;
	}
	*n = (struct verity_node){
		.tree = t, .block = block, .level = level, .state = LOADING, .refs = 1, .data = n->own, .work.fn = mend};
	atomic_fetch_add(&t->bytes, node_bytes(t));
	pthread_mutex_lock(&s->lock);
	if (find(t, s, block)) {
		pthread_mutex_unlock(&s->lock);
		node_free(n);
		return NULL;
	}
	bucket = bucket_of(t, s, block);
	n->hash_next = *bucket;
	*bucket = n;
	pthread_mutex_unlock(&s->lock);
	atomic_fetch_add_explicit(&t->time, 1, memory_order_relaxed);
	return n;
}

static void load_done(struct verity_tree *t)
{
	pthread_mutex_lock(&t->lock);
	if (!--t->loads)
		pthread_cond_signal(&t->idle);
	pthread_mutex_unlock(&t->lock);
}

static void start_load(struct verity_tree *t, struct verity_node *const *nodes, unsigned n, bool now);

static void loaded(struct dm_bio *bio)
{
	struct load *l = (struct load *)bio;
	struct verity_tree *t = l->t;

	for (unsigned i = 0; i < l->n; i++) {
		struct verity_node *n = l->nodes[i];

		if (bio->error && l->n > 1) { /* one of them cannot be read: which? */
			start_load(t, &n, 1, false);
			continue;
		}
		n->error = bio->error;
		if (bio->error && t->v->fec) /* is mended when it is found to be wrong */
			memset(n->own, 0, t->f->hash_block);
		settle(n, bio->error && !t->v->fec ? FAILED : READ);
	}
	g_free(l);
	load_done(t);
}

/*
 * Sends it out at once, so that with a file beneath it is over at return, even in map(): unless in an end(), where it
 * cannot be, or below several others that were sent so.
 */
static void submit_now(struct dm_bio *bio)
{
	static _Thread_local unsigned nested;

	if (dm_in_end() || nested >= MAX_NESTED) {
		dm_submit(bio);
		return;
	}
	nested++;
	dm_submit_now(bio);
	nested--;
}

/* The nodes are neighbours, and pinned for the load. */
static void start_load(struct verity_tree *t, struct verity_node *const *nodes, unsigned n, bool now)
{
	struct load *l = g_malloc(sizeof(*l) + n * (sizeof(struct verity_node *) + sizeof(struct iovec)));
	unsigned shift = t->f->hash_bits - DM_SECTOR_SHIFT;

	l->t = t;
	l->n = n;
	l->iov = (struct iovec *)(l + 1);
	l->nodes = (struct verity_node **)(l->iov + n);
	for (unsigned i = 0; i < n; i++) {
		l->nodes[i] = nodes[i];
		l->iov[i] = (struct iovec){nodes[i]->own, t->f->hash_block};
	}
	l->bio = (struct dm_bio){
		.op = DM_READ,
		.flags = DM_META,
		.dev = t->v->hash_dev,
		.sector = nodes[0]->block << shift,
		.sectors = (uint64_t)n << shift,
		.iov = l->iov,
		.iovcnt = (int)n,
		.end = loaded,
	};
	pthread_mutex_lock(&t->lock);
	t->loads++;
	pthread_mutex_unlock(&t->lock);
	if (now)
		submit_now(&l->bio);
	else
		dm_submit(&l->bio);
}

/*
 * How many hash blocks from a multiple of that are read together; one by one where they would push out others for
 * nothing.
 */
static uint64_t cluster_blocks(struct verity_tree *t, uint64_t block)
{
	uint64_t n = MIN(CLUSTER_BYTES >> t->f->hash_bits, CLUSTER_MAX);
	struct shard *s = shard_of(t, block - 1);
	bool sequential;

	while (n > 1 && n * node_bytes(t) > t->limit / 4)
		n /= 2;
	if (n <= 1 || has_room(t, n * node_bytes(t)))
		return MAX(n, 1);
	pthread_mutex_lock(&s->lock);
	sequential = find(t, s, block - 1);
	pthread_mutex_unlock(&s->lock);
	return sequential ? n : 1;
}

/* Makes room for a node, and the node. */
static struct verity_node *add_node(struct verity_tree *t, uint64_t block, unsigned level, int *error)
{
	make_room(t, node_bytes(t));
	return make_node(t, block, level, error);
}

/*
 * Starts the load of a hash block that was not in the cache, and of its absent neighbours.  Returns it, pinned
 * for the caller; NULL if somebody has made it by now, or *error.
 */
static struct verity_node *load_new(struct verity_tree *t, uint64_t block, unsigned level, bool now, int *error)
{
	uint64_t cluster = level ? 1 : cluster_blocks(t, block), first, end;
	struct verity_node *nodes[2 * CLUSTER_MAX], *n;
	unsigned from = CLUSTER_MAX, to = CLUSTER_MAX;
	int unused;

	n = nodes[to++] = add_node(t, block, level, error);
	if (!n)
		return NULL;
	pthread_mutex_lock(&shard_of(t, block)->lock);
	n->refs++; /* for the caller, besides the load's */
	pthread_mutex_unlock(&shard_of(t, block)->lock);
	first = MAX(block & ~(cluster - 1), t->f->level_start[level]);
	end = MIN((block & ~(cluster - 1)) + cluster, t->f->level_start[level] + t->f->level_blocks[level]);
	for (uint64_t b = block + 1; b < end && (nodes[to] = add_node(t, b, level, &unused)); b++)
		to++;
	for (uint64_t b = block; b > first && (nodes[from - 1] = add_node(t, b - 1, level, &unused)); b--)
		from--;
	start_load(t, nodes + from, to - from, now);
	return n;
}

/* --- digests --------------------------------------------------------------------------------- */

static bool usable(enum state state)
{
	return state == VERIFIED || state == BAD;
}

/* Where the digest of a data block, or of the block above it in level - 1, lies in a level. */
static void place(const struct verity_tree *t, uint64_t data_block, unsigned level, uint64_t *hash_block, size_t *offset)
{
	verity_digest_place(t->f, level, data_block >> level * t->f->per_block_bits, hash_block, offset);
}

/* Puts the node of a level into the path, and starts its load if need be; *state is its state.  0 or -ENOMEM. */
static int enter_path(struct verity_tree *t, uint64_t data_block, unsigned level, struct verity_wait *w,
		      enum state *state)
{
	struct shard *s;
	uint64_t block;
	size_t offset;
	int error = 0;

	place(t, data_block, level, &block, &offset);
	s = shard_of(t, block);
	while (!error) {
		struct verity_node *n = w->path[level];

		pthread_mutex_lock(&s->lock);
		if (!n && (n = find(t, s, block))) {
			pin(s, n);
			w->path[level] = n;
		}
		if (n)
			*state = n->state;
		pthread_mutex_unlock(&s->lock);
		if (n)
			return 0;
		w->path[level] = load_new(t, block, level, false, &error);
	}
	return error;
}

/* Of a node that nobody changes: it is usable, and pinned or its shard locked. */
static void copy_digest(const struct verity_tree *t, uint64_t data_block, unsigned level, const struct verity_node *n,
			uint8_t *digest)
{
	uint64_t block;
	size_t offset;

	place(t, data_block, level, &block, &offset);
	memcpy(digest, n->data + offset, t->f->digest_size);
}

/*
 * As above, of up to n data blocks that follow each other: how many.  What lies in a bad node is asked for one by one.
 */
static unsigned copy_digests(const struct verity_tree *t, uint64_t data_block, const struct verity_node *node, unsigned n,
			     uint8_t *digests)
{
	unsigned size = t->f->digest_size, in_block = 1u << t->f->per_block_bits;
	uint64_t block;
	size_t offset;

	n = node->state == BAD ? 1 : MIN(n, in_block - (unsigned)(data_block & (in_block - 1)));
	place(t, data_block, 0, &block, &offset);
	for (unsigned i = 0; i < n; i++)
		memcpy(digests + i * size, node->data + offset + i * t->f->digest_step, size);
	return n;
}

static void give_up(struct verity_node *n)
{
	n->error = -EIO;
	settle(n, verity_block_corrupted(n->tree->v, VERITY_METADATA, n->block) ? FAILED : BAD);
}

/* A node in state MENDING, pinned for this. */
static void mend(struct dm_work *work)
{
	struct verity_node *n = (struct verity_node *)((char *)work - offsetof(struct verity_node, work));
	struct verity *v = n->tree->v;
	uint8_t *out = g_try_malloc(n->tree->f->hash_block);

	if (out && !verity_fec_mend(v, VERITY_METADATA, n->block, n->want, out)) {
		n->data = out;
		settle(n, VERIFIED);
	} else {
		g_free(out);
		give_up(n);
	}
}

static void wait_for(struct verity_node *n, struct verity_wait *w)
{
	w->next = n->waiters;
	n->waiters = w;
}

/* A node was not what its digest says; false: it has changed meanwhile. */
static bool start_mending(struct verity_tree *t, struct shard *s, struct verity_node *n, const uint8_t *want,
			  struct verity_wait *w)
{
	bool mine;

	pthread_mutex_lock(&s->lock);
	mine = n->state == READ;
	if (mine) {
		n->state = MENDING;
		n->refs++;
		memcpy(n->want, want, t->f->digest_size);
		wait_for(n, w);
	}
	pthread_mutex_unlock(&s->lock);
	if (!mine)
		return false;
	if (t->v->fec)
		dm_wq_queue(t->v->mending, &n->work);
	else
		give_up(n);
	return true;
}

/* Hashes a node that was read; true: the caller goes on, whatever the node is now. */
static bool verify(struct verity_tree *t, uint64_t data_block, unsigned level, struct verity_wait *w)
{
	struct verity_node *n = w->path[level];
	struct shard *s = shard_of(t, n->block);
	uint8_t want[DM_HASH_MAX_SIZE], is[DM_HASH_MAX_SIZE];

	if (level + 1 == t->f->levels)
		memcpy(want, t->f->root, t->f->digest_size);
	else
		copy_digest(t, data_block, level + 1, w->path[level + 1], want);
	verity_hash_block(t->f, n->own, t->f->hash_block, is);
	if (memcmp(is, want, t->f->digest_size))
		return !start_mending(t, s, n, want, w);
	pthread_mutex_lock(&s->lock);
	if (n->state == READ)
		n->state = VERIFIED;
	pthread_mutex_unlock(&s->lock);
	return true;
}

/* Brings the node of a level, the one above it being usable, to where its digests can be used. */
static enum verity_answer pass(struct verity_tree *t, uint64_t data_block, unsigned level, struct verity_wait *w)
{
	struct verity_node *n = w->path[level];
	struct shard *s = shard_of(t, n->block);

	for (;;) {
		enum state state;

		pthread_mutex_lock(&s->lock);
		state = n->state;
		if (state == LOADING || state == MENDING)
			wait_for(n, w);
		pthread_mutex_unlock(&s->lock);
		if (state == LOADING || state == MENDING)
			return VERITY_WAIT;
		if (usable(state))
			return VERITY_DIGEST;
		if (state == FAILED) {
			w->error = n->error;
			return VERITY_FAILED;
		}
		if (!verify(t, data_block, level, w))
			return VERITY_WAIT;
	}
}

/* Nothing of *w is looked at after VERITY_WAIT. */
static enum verity_answer walk(struct verity_tree *t, uint64_t block, unsigned *n, uint8_t *digests,
			       struct verity_wait *w)
{
	enum verity_answer answer = VERITY_DIGEST;
	enum state state;
	unsigned level;

	w->error = 0;
	for (level = 0; level < t->f->levels; level++) {
		w->error = enter_path(t, block, level, w, &state);
		if (w->error || usable(state))
			break;
	}
	if (w->error)
		answer = VERITY_FAILED;
	while (answer == VERITY_DIGEST && level-- > 0)
		answer = pass(t, block, level, w);
	if (answer == VERITY_DIGEST)
		*n = copy_digests(t, block, w->path[0], *n, digests);
	if (answer != VERITY_WAIT)
		unpin_path(w);
	return answer;
}

enum verity_answer verity_tree_digests(struct verity_tree *t, uint64_t block, unsigned *n, uint8_t *digests,
				       struct verity_wait *w)
{
	enum state state = READ;
	struct verity_node *node;
	uint64_t hash_block;
	struct shard *s;
	size_t offset;

	if (!t->f->levels) {
		memcpy(digests, t->f->root, t->f->digest_size);
		*n = 1;
		return VERITY_DIGEST;
	}
	place(t, block, 0, &hash_block, &offset);
	s = shard_of(t, hash_block);
	pthread_mutex_lock(&s->lock);
	node = find(t, s, hash_block);
	if (node && usable(node->state)) {
		state = node->state;
		*n = copy_digests(t, block, node, *n, digests);
		touch(t, s, node);
	}
	pthread_mutex_unlock(&s->lock);
	if (state == BAD && !verity_has_waited(w)) /* each use is told of; of the one that has found it out it was */
		verity_block_corrupted(t->v, VERITY_METADATA, hash_block);
	if (usable(state)) {
		unpin_path(w);
		return VERITY_DIGEST;
	}
	return walk(t, block, n, digests, w);
}

bool verity_tree_peek(struct verity_tree *t, uint64_t hash_block, size_t offset, void *out, size_t len)
{
	struct shard *s = shard_of(t, hash_block);
	struct verity_node *n;
	bool is;

	pthread_mutex_lock(&s->lock);
	n = find(t, s, hash_block);
	is = n && n->state == VERIFIED;
	if (is)
		memcpy(out, n->data + offset, len);
	pthread_mutex_unlock(&s->lock);
	return is;
}

/* --- read-ahead ------------------------------------------------------------------------------ */

/* False: it was in the cache already. */
static bool prefetch_one(struct verity_tree *t, uint64_t block, unsigned level)
{
	struct shard *s = shard_of(t, block);
	struct verity_node *n;
	int unused = 0;

	pthread_mutex_lock(&s->lock);
	n = find(t, s, block);
	pthread_mutex_unlock(&s->lock);
	if (n)
		return false;
	n = load_new(t, block, level, true, &unused);
	if (n)
		unpin(n);
	return n;
}

void verity_tree_prefetch(struct verity_tree *t, uint64_t block, uint64_t blocks)
{
	for (unsigned level = 0; level < t->f->levels; level++) {
		uint64_t first, last;
		bool any = false;
		size_t offset;

		place(t, block, level, &first, &offset);
		place(t, block + blocks - 1, level, &last, &offset);
		for (uint64_t b = first; b <= last; b++)
			any |= prefetch_one(t, b, level);
		if (!any) /* what is above was needed for these */
			break;
	}
}

/* --- life ------------------------------------------------------------------------------------ */

size_t verity_tree_bytes(struct verity_tree *t)
{
	return atomic_load(&t->bytes);
}

struct verity_tree *verity_tree_new(struct verity *v)
{
	struct verity_tree *t = g_aligned_alloc0(1, sizeof(*t), 64);
	uint64_t nodes;

	t->v = v;
	t->f = &v->f;
	t->limit = MAX(VERITY_CACHE_BYTES, (v->f.levels + 2) * node_bytes(t));
	nodes = MIN(t->limit / node_bytes(t), v->f.hash_end - v->f.hash_start) / SHARDS;
	for (t->buckets = 4; t->buckets < nodes; t->buckets *= 2)
		;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->idle, NULL);
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_init(&t->shards[i].lock, NULL);
		t->shards[i].buckets = g_new0(struct verity_node *, t->buckets);
	}
	return t;
}

void verity_tree_settle(struct verity_tree *t)
{
	pthread_mutex_lock(&t->lock);
	while (t->loads)
		pthread_cond_wait(&t->idle, &t->lock);
	pthread_mutex_unlock(&t->lock);
}

void verity_tree_free(struct verity_tree *t)
{
	if (!t)
		return;
	while (drop_one(t))
		;
	g_assert(!atomic_load(&t->bytes));
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_destroy(&t->shards[i].lock);
		g_free(t->shards[i].buckets);
	}
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->idle);
	g_aligned_free(t);
}
