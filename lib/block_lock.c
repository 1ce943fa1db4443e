/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Block locks (dmfs/block_lock.h).
 *
 * A shard has a tree of nodes, one for each different range that somebody has or waits for, and every node has a
 * queue of claims in the order they came.  The tree is a treap by (first, last); each node knows the largest last
 * of its subtree, so those that overlap a range are found without looking at the others.
 *
 * A claim counts its blockers: earlier claims of other nodes that it has to wait for, one each, and one for its own
 * queue if it does not stand at the front there (or among shared ones at the front).  So a thousand claims for one
 * block cost a step each.  Who leaves takes himself off the counts of those who came after him; with the last
 * blocker a claim is granted.
 *
 * A claim over several shards counts in all of them.  Such claims must meet in the same order everywhere, or two
 * would wait for each other: l->wide makes them enter one after the other.  While it enters, or is
 * being cancelled, a claim counts one blocker more, so that nobody grants it.
 */
#include <assert.h>
#include <glib.h>
#include <pthread.h>
#include <stdlib.h>

#include <dmfs/block_lock.h>
#include <dmfs/container_of.h>
#include <dmfs/hold.h>

#define SHARDS 64u /* as many as a claim's set of them has bits */

struct dm_block_node {
	uint64_t first, last;
	uint64_t max_last; /* of the subtree */
	struct dm_block_node *left, *right;
	uint32_t priority;
	struct dm_block_place *head, *tail;
	struct dm_block_place *behind; /* the first that waits for the queue; so do all after it */
	unsigned n, exclusive;         /* claims; of them exclusive */
};

struct shard {
	pthread_mutex_t lock;
	struct dm_block_node *root;
	uint64_t seq;
} __attribute__((aligned(64)));

struct dm_block_lock {
	struct shard shards[SHARDS];
	pthread_mutex_t wide;
	unsigned shift;
};

/* --- the tree ------------------------------------------------------------------------ */

static int compare(const struct dm_block_node *node, uint64_t first, uint64_t last)
{
	if (first != node->first)
		return first < node->first ? -1 : 1;
	return last < node->last ? -1 : last > node->last;
}

static void update(struct dm_block_node *node)
{
	node->max_last = node->last;
	if (node->left)
		node->max_last = MAX(node->max_last, node->left->max_last);
	if (node->right)
		node->max_last = MAX(node->max_last, node->right->max_last);
}

static struct dm_block_node *rotate_right(struct dm_block_node *node)
{
	struct dm_block_node *up = node->left;

	node->left = up->right;
	up->right = node;
	update(node);
	update(up);
	return up;
}

static struct dm_block_node *rotate_left(struct dm_block_node *node)
{
	struct dm_block_node *up = node->right;

	node->right = up->left;
	up->left = node;
	update(node);
	update(up);
	return up;
}

/* Adds a node that is not there yet; returns the subtree's root. */
static struct dm_block_node *tree_add(struct dm_block_node *root, struct dm_block_node *node)
{
	if (!root)
		return node;
	if (compare(root, node->first, node->last) < 0) {
		root->left = tree_add(root->left, node);
		if (root->left->priority > root->priority)
			return rotate_right(root);
	} else {
		root->right = tree_add(root->right, node);
		if (root->right->priority > root->priority)
			return rotate_left(root);
	}
	update(root);
	return root;
}

static struct dm_block_node *merge(struct dm_block_node *a, struct dm_block_node *b)
{
	if (!a || !b)
		return a ? a : b;
	if (a->priority > b->priority) {
		a->right = merge(a->right, b);
		update(a);
		return a;
	}
	b->left = merge(a, b->left);
	update(b);
	return b;
}

static struct dm_block_node *tree_remove(struct dm_block_node *root, struct dm_block_node *node)
{
	int way = compare(root, node->first, node->last);

	if (!way)
		return merge(root->left, root->right);
	if (way < 0)
		root->left = tree_remove(root->left, node);
	else
		root->right = tree_remove(root->right, node);
	update(root);
	return root;
}

static struct dm_block_node *tree_find(struct dm_block_node *root, uint64_t first, uint64_t last)
{
	int way;

	while (root && (way = compare(root, first, last)))
		root = way < 0 ? root->left : root->right;
	return root;
}

/* Calls fn for every node that overlaps first to last, until it returns false. */
static bool for_overlapping(struct dm_block_node *node, uint64_t first, uint64_t last,
			    bool (*fn)(struct dm_block_node *, void *), void *data)
{
	for (; node && node->max_last >= first; node = node->right) {
		if (!for_overlapping(node->left, first, last, fn, data))
			return false;
		if (node->first > last)
			break;
		if (node->last >= first && !fn(node, data))
			return false;
	}
	return true;
}

static uint32_t priority_of(const struct dm_block_node *node)
{
	uint64_t x = ((uintptr_t)node >> 4) * UINT64_C(0x9e3779b97f4a7c15);

	return (uint32_t)(x >> 32);
}

static struct dm_block_node *node_get(struct shard *s, uint64_t first, uint64_t last)
{
	struct dm_block_node *node = tree_find(s->root, first, last);

	if (node)
		return node;
	node = g_new0(struct dm_block_node, 1);
	node->first = first;
	node->last = node->max_last = last;
	node->priority = priority_of(node);
	s->root = tree_add(s->root, node);
	return node;
}

/* --- one shard's part of a claim; the shard's lock held ----------------------------------- */

/* What leaving one made of others. */
struct made_way {
	struct dm_block_claim *head, **tail;
};

static bool is_exclusive(const struct dm_block_place *p)
{
	return p->claim->mode == DM_BLOCK_EXCLUSIVE;
}

static void unblock(struct dm_block_claim *claim, struct made_way *way)
{
	bool tell = claim->granted; /* who only tries looks himself, and may be gone with the last blocker */

	if (atomic_fetch_sub(&claim->blockers, 1) > 1 || !tell)
		return;
	claim->next = NULL;
	*way->tail = claim;
	way->tail = &claim->next;
}

static bool count_blockers(struct dm_block_node *node, void *data)
{
	struct dm_block_place *p = data;

	if (node != p->node)
		atomic_fetch_add(&p->claim->blockers, is_exclusive(p) ? node->n : node->exclusive);
	return true;
}

static void enter(struct shard *s, struct dm_block_place *p)
{
	struct dm_block_node *node = node_get(s, p->claim->first, p->claim->last);

	p->node = node;
	p->seq = s->seq++;
	p->parked = NULL;
	p->parked_tail = &p->parked;
	for_overlapping(s->root, node->first, node->last, count_blockers, p);
	p->behind = node->head && (node->behind || is_exclusive(p) || is_exclusive(node->head));
	if (p->behind) {
		atomic_fetch_add(&p->claim->blockers, 1);
		if (!node->behind)
			node->behind = p;
	}
	p->next = NULL;
	p->prev = node->tail;
	*(p->prev ? &p->prev->next : &node->head) = p;
	node->tail = p;
	node->n++;
	node->exclusive += is_exclusive(p);
}

/* Those at the front of a queue need not wait for it. */
static void advance(struct dm_block_node *node, struct made_way *way)
{
	struct dm_block_place *p;

	while ((p = node->behind) && (p == node->head || (!is_exclusive(p) && !is_exclusive(node->head)))) {
		node->behind = p->next;
		p->behind = false;
		unblock(p->claim, way);
	}
}

struct leaving {
	struct dm_block_place *p;
	struct made_way *way;
};

static bool unblock_later_ones(struct dm_block_node *node, void *data)
{
	struct leaving *l = data;
	bool exclusive = is_exclusive(l->p);

	if (node == l->p->node || (!exclusive && !node->exclusive))
		return true;
	for (struct dm_block_place *p = node->tail, *prev; p && p->seq > l->p->seq; p = prev) {
		prev = p->prev;
		if (exclusive || is_exclusive(p))
			unblock(p->claim, l->way);
	}
	return true;
}

static void leave(struct shard *s, struct dm_block_place *p, struct made_way *way)
{
	struct dm_block_node *node = p->node;

	for_overlapping(s->root, node->first, node->last, unblock_later_ones, &(struct leaving){p, way});
	if (node->behind == p)
		node->behind = p->next;
	*(p->prev ? &p->prev->next : &node->head) = p->next;
	*(p->next ? &p->next->prev : &node->tail) = p->prev;
	node->n--;
	node->exclusive -= is_exclusive(p);
	if (node->n) {
		advance(node, way);
	} else {
		s->root = tree_remove(s->root, node);
		g_free(node);
	}
}

/* --- bios that wait with a claim ------------------------------------------------------------ */

struct dm_block_parked {
	struct dm_held held; /* its keeper is the shard */
	struct dm_block_place *place;
	struct dm_block_parked *next, **prev;
};

static void unpark(struct dm_block_parked *w)
{
	*w->prev = w->next;
	*(w->next ? &w->next->prev : &w->place->parked_tail) = w->prev;
	w->held.kept = false;
}

static void cancel_parked(struct dm_held *held)
{
	struct dm_block_parked *w = container_of(held, struct dm_block_parked, held);
	struct shard *s = held->keeper;
	struct dm_bio *bio = held->bio;

	pthread_mutex_lock(&s->lock);
	if (held->kept)
		unpark(w);
	pthread_mutex_unlock(&s->lock);
	g_free(w);
	dm_bio_end(bio, -EINTR);
}

struct parking {
	struct shard *shard;
	struct dm_bio *bio;
	int error;
};

/* Leaves the bio with the one who came last. */
static bool park(struct dm_block_node *node, void *data)
{
	struct dm_block_place *p = node->tail;
	struct parking *parking = data;
	struct dm_block_parked *w;

	if (!parking->bio)
		return false;
	w = g_new(struct dm_block_parked, 1);
	w->held.keeper = parking->shard;
	parking->error = dm_held_begin(&w->held, parking->bio, cancel_parked);
	if (parking->error) {
		g_free(w);
		return false;
	}
	w->held.kept = true;
	w->place = p;
	w->next = NULL;
	w->prev = p->parked_tail;
	*p->parked_tail = w;
	p->parked_tail = &w->next;
	return false;
}

/* The place's shard is locked. */
static void take_parked(struct dm_block_place *p, struct dm_bio_list *out)
{
	assert(out || !p->parked);
	while (p->parked) {
		struct dm_block_parked *w = p->parked;

		unpark(w);
		if (!dm_held_end(&w->held))
			continue;
		dm_bio_list_add(out, w->held.bio);
		g_free(w);
	}
}

/* --- claims ------------------------------------------------------------------------------- */

static unsigned shard_of(uint64_t stripe)
{
	return (unsigned)(stripe ^ stripe >> 6 ^ stripe >> 12) & (SHARDS - 1);
}

static uint64_t shards_of(const struct dm_block_lock *l, uint64_t first, uint64_t last)
{
	uint64_t from = first >> l->shift, to = last >> l->shift, set = 0;

	if (to - from >= SHARDS) /* not all of them, perhaps, but who is that wide does not mind */
		return UINT64_MAX;
	for (uint64_t stripe = from; stripe <= to && stripe >= from; stripe++)
		set |= UINT64_C(1) << shard_of(stripe);
	return set;
}

static unsigned take_shard(uint64_t *set)
{
	unsigned nr = (unsigned)__builtin_ctzll(*set);

	*set &= *set - 1;
	return nr;
}

static struct dm_block_place *place_of(struct dm_block_claim *claim, unsigned i)
{
	return claim->places ? &claim->places[i] : &claim->place;
}

static void claim_init(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t first, uint64_t last,
		       enum dm_block_mode mode, dm_block_granted granted)
{
	unsigned n;

	assert(first <= last);
	claim->first = first;
	claim->last = last;
	claim->mode = mode;
	claim->granted = granted;
	atomic_init(&claim->blockers, 1);
	claim->shards = shards_of(l, first, last);
	n = (unsigned)__builtin_popcountll(claim->shards);
	claim->places = n > 1 ? g_new(struct dm_block_place, n) : NULL;
}

/* granted() calls do not nest: those that become due inside one are run by who runs that one. */
static void run_granted(struct made_way *way)
{
	static _Thread_local struct made_way *running;
	struct dm_block_claim *claim;

	if (!way->head)
		return;
	if (running) {
		*running->tail = way->head;
		running->tail = way->tail;
		return;
	}
	running = way;
	while ((claim = way->head)) {
		if (!(way->head = claim->next))
			way->tail = &way->head;
		if (claim->granted)
			claim->granted(claim);
	}
	running = NULL;
}

static void leave_all(struct dm_block_lock *l, struct dm_block_claim *claim, struct dm_bio_list *parked)
{
	struct made_way way = {NULL, &way.head};
	uint64_t set = claim->shards;

	for (unsigned i = 0; set; i++) {
		struct shard *s = &l->shards[take_shard(&set)];
		struct dm_block_place *p = place_of(claim, i);

		pthread_mutex_lock(&s->lock);
		leave(s, p, &way);
		take_parked(p, parked);
		pthread_mutex_unlock(&s->lock);
	}
	g_free(claim->places);
	run_granted(&way);
}

bool dm_block_lock(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t first, uint64_t last,
		   enum dm_block_mode mode, dm_block_granted granted)
{
	uint64_t set;
	bool wide;

	claim_init(l, claim, first, last, mode, granted);
	set = claim->shards;
	wide = claim->places;
	if (wide)
		pthread_mutex_lock(&l->wide);
	for (unsigned i = 0; set; i++) {
		struct shard *s = &l->shards[take_shard(&set)];
		struct dm_block_place *p = place_of(claim, i);

		p->claim = claim;
		pthread_mutex_lock(&s->lock);
		enter(s, p);
		pthread_mutex_unlock(&s->lock);
	}
	if (wide)
		pthread_mutex_unlock(&l->wide);
	return atomic_fetch_sub(&claim->blockers, 1) == 1;
}

bool dm_block_cancel(struct dm_block_lock *l, struct dm_block_claim *claim, struct dm_bio_list *parked)
{
	unsigned blockers = atomic_load(&claim->blockers);

	do
		if (!blockers)
			return false;
	while (!atomic_compare_exchange_weak(&claim->blockers, &blockers, blockers + 1));
	leave_all(l, claim, parked);
	return true;
}

bool dm_block_trylock(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t first, uint64_t last,
		      enum dm_block_mode mode, struct dm_bio_list *parked)
{
	return dm_block_lock(l, claim, first, last, mode, NULL) || !dm_block_cancel(l, claim, parked);
}

void dm_block_unlock(struct dm_block_lock *l, struct dm_block_claim *claim, struct dm_bio_list *parked)
{
	assert(!atomic_load(&claim->blockers));
	leave_all(l, claim, parked);
}

static void sync_granted(struct dm_block_claim *claim)
{
	dm_complete(&container_of(claim, struct dm_block_sync_claim, claim)->granted);
}

void dm_block_lock_sync(struct dm_block_lock *l, struct dm_block_sync_claim *c, uint64_t first, uint64_t last,
			enum dm_block_mode mode)
{
	c->granted = DM_COMPLETION_INIT;
	if (!dm_block_lock(l, &c->claim, first, last, mode, sync_granted))
		dm_completion_wait(&c->granted);
}

int dm_block_lock_or_park(struct dm_block_lock *l, struct dm_block_claim *claim, uint64_t block, struct dm_bio *bio)
{
	struct shard *s = &l->shards[shard_of(block >> l->shift)];
	struct parking parking = {s, bio, 0};
	bool mine;

	claim_init(l, claim, block, block, DM_BLOCK_EXCLUSIVE, NULL);
	claim->place.claim = claim;
	atomic_init(&claim->blockers, 0);
	pthread_mutex_lock(&s->lock);
	mine = for_overlapping(s->root, block, block, park, &parking);
	if (mine)
		enter(s, &claim->place);
	pthread_mutex_unlock(&s->lock);
	return mine ? 0 : parking.error ? parking.error : 1;
}

struct dm_block_lock *dm_block_lock_new(unsigned shift)
{
	struct dm_block_lock *l = aligned_alloc(64, sizeof *l);

	assert(shift < 64);
	if (!l)
		g_error("out of memory");
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_init(&l->shards[i].lock, NULL);
		l->shards[i].root = NULL;
		l->shards[i].seq = 0;
	}
	pthread_mutex_init(&l->wide, NULL);
	l->shift = shift;
	return l;
}

void dm_block_lock_free(struct dm_block_lock *l)
{
	if (!l)
		return;
	for (unsigned i = 0; i < SHARDS; i++) {
		/* Who left last may not be out of it yet. */
		pthread_mutex_lock(&l->shards[i].lock);
		assert(!l->shards[i].root);
		pthread_mutex_unlock(&l->shards[i].lock);
		pthread_mutex_destroy(&l->shards[i].lock);
	}
	pthread_mutex_destroy(&l->wide);
	free(l);
}
