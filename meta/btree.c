/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Nodes, lookups, walks and the deletion of whole trees.  A lookup holds one read lock at a time: who changes the tree
 * keeps lookups out altogether.
 */
#include "btree_internal.h"

#include <dmfs/log.h>

#include <errno.h>

#define BTREE_SEED 121107

/* --- nodes --- */

uint32_t node_max_entries(uint32_t value_size)
{
	return (DM_META_BLOCK_SIZE - NODE_HEADER) / (8 + value_size) / 3 * 3;
}

static void btree_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64(data + 8, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, BTREE_SEED));
}

static int btree_check(void *context, dm_block_t where, const void *data, size_t size)
{
	uint32_t flags = get_le32(data + 4), nr = get_le32(data + 16), max = get_le32(data + 20);
	uint32_t value_size = get_le32(data + 24);

	if (get_le64(data + 8) != where) {
		dm_log_err_limit("btree: block %" G_GUINT64_FORMAT " says it is block %" G_GUINT64_FORMAT, where,
				 get_le64(data + 8));
		return -ENOTBLK;
	}
	if (get_le32(data) != dm_bm_checksum(data + 4, size - 4, BTREE_SEED)) {
		dm_log_err_limit("btree: block %" G_GUINT64_FORMAT ": the checksum is not that of its content", where);
		return -EILSEQ;
	}
	if (value_size > DM_BTREE_MAX_VALUE || max != node_max_entries(value_size) || nr > max ||
	    (flags != NODE_INNER && flags != NODE_LEAF) || (flags == NODE_INNER && value_size != 8)) {
		dm_log_err_limit("btree: block %" G_GUINT64_FORMAT ": %u of %u entries with values of %u bytes, flags %u, cannot be",
				 where, nr, max, value_size, flags);
		return -EILSEQ;
	}
	for (uint32_t i = 1; i < nr; i++)
		if (get_le64(data + NODE_HEADER + 8 * i) <= get_le64(data + NODE_HEADER + 8 * (i - 1))) {
			dm_log_err_limit("btree: block %" G_GUINT64_FORMAT ": key %u is not above the one before", where, i);
			return -EILSEQ;
		}
	return 0;
}

const struct dm_validator btree_validator = {"btree node", btree_prepare, btree_check, NULL};

int node_init(struct node *n, struct dm_block *block, uint32_t leaf_value_size)
{
	n->block = block;
	n->data = dm_block_data(block);
	n->leaf = get_le32(n->data + 4) == NODE_LEAF;
	n->nr = get_le32(n->data + 16);
	n->max = get_le32(n->data + 20);
	n->value_size = get_le32(n->data + 24);
	if (n->leaf && n->value_size != leaf_value_size) {
		dm_log_err_limit("btree: block %" G_GUINT64_FORMAT " has values of %u bytes, %u are expected",
				 dm_block_location(block), n->value_size, leaf_value_size);
		return -EILSEQ;
	}
	return 0;
}

int node_read(struct dm_btree_info *info, dm_block_t b, uint32_t leaf_value_size, struct node *n)
{
	struct dm_block *block;
	int r = dm_tm_read_lock(info->tm, b, &btree_validator, &block);

	n->block = NULL;
	if (r)
		return r;
	r = node_init(n, block, leaf_value_size);
	if (r)
		node_unlock(info, n);
	return r;
}

int node_new(struct dm_btree_info *info, bool leaf, uint32_t value_size, struct node *n)
{
	struct dm_block *block;
	int r = dm_tm_new_block(info->tm, &btree_validator, &block);

	n->block = NULL;
	if (r)
		return r;
	*n = (struct node){block, dm_block_data(block), 0, node_max_entries(value_size), value_size, leaf};
	put_le32(n->data + 4, leaf ? NODE_LEAF : NODE_INNER);
	put_le64(n->data + 8, dm_block_location(block));
	put_le32(n->data + 20, n->max);
	put_le32(n->data + 24, value_size);
	return 0;
}

void node_unlock(struct dm_btree_info *info, struct node *n)
{
	if (n->block)
		dm_tm_unlock(info->tm, n->block);
	n->block = NULL;
}

void node_set_nr(struct node *n, uint32_t nr)
{
	n->nr = nr;
	put_le32(n->data + 16, nr);
}

int node_search(const struct node *n, uint64_t key)
{
	int low = -1, high = n->nr; /* key[low] <= key < key[high] */

	while (high - low > 1) {
		int mid = low + (high - low) / 2;

		if (node_key(n, mid) <= key)
			low = mid;
		else
			high = mid;
	}
	return low;
}

void node_open(struct node *n, uint32_t i, uint32_t count)
{
	memmove(node_key_at(n, i + count), node_key_at(n, i), 8 * (size_t)(n->nr - i));
	memmove(node_value(n, i + count), node_value(n, i), (size_t)n->value_size * (n->nr - i));
	node_set_nr(n, n->nr + count);
}

void node_close(struct node *n, uint32_t i, uint32_t count)
{
	uint32_t after = n->nr - i - count;

	memmove(node_key_at(n, i), node_key_at(n, i + count), 8 * (size_t)after);
	memmove(node_value(n, i), node_value(n, i + count), (size_t)n->value_size * after);
	node_set_nr(n, n->nr - count);
}

void node_append(struct node *to, const struct node *from, uint32_t i, uint32_t count)
{
	memcpy(node_key_at(to, to->nr), node_key_at(from, i), 8 * (size_t)count);
	memcpy(node_value(to, to->nr), node_value(from, i), (size_t)to->value_size * count);
	node_set_nr(to, to->nr + count);
}

static int inc_children(struct dm_btree_info *info, unsigned level, const struct node *n)
{
	if (!n->nr)
		return 0;
	if (!n->leaf || level + 1 < info->levels)
		return dm_tm_inc_many(info->tm, (const uint64_t *)node_value(n, 0), n->nr);
	return info->vt.inc ? info->vt.inc(info->vt.context, node_value(n, 0), n->nr) : 0;
}

int node_shadow(struct dm_btree_info *info, unsigned level, dm_block_t b, struct node *n)
{
	struct dm_block *block;
	bool inc;
	int r = dm_tm_shadow_block(info->tm, b, &btree_validator, &block, &inc);

	n->block = NULL;
	if (r)
		return r;
	r = node_init(n, block, level_value_size(info, level));
	if (!r && inc)
		r = inc_children(info, level, n);
	if (r)
		node_unlock(info, n);
	return r;
}

/* --- empty and del --- */

int dm_btree_empty(struct dm_btree_info *info, dm_block_t *root)
{
	struct node n;
	int r = node_new(info, true, level_value_size(info, 0), &n);

	if (r)
		return r;
	*root = node_where(&n);
	node_unlock(info, &n);
	return 0;
}

static int del_node(struct dm_btree_info *info, unsigned level, dm_block_t b, unsigned depth);

/* The node's own reference has gone; now those it has. */
static int del_children(struct dm_btree_info *info, unsigned level, const struct node *n, unsigned depth)
{
	if (n->leaf)
		return btree_dec_values(info, level, node_value(n, 0), n->nr);
	for (uint32_t i = 0; i < n->nr; i++) {
		int r = del_node(info, level, node_child(n, i), depth + 1);

		if (r)
			return r;
	}
	return 0;
}

static int del_node(struct dm_btree_info *info, unsigned level, dm_block_t b, unsigned depth)
{
	g_autofree uint8_t *copy = NULL;
	struct node n;
	uint32_t count;
	int r = depth >= MAX_DEPTH ? -EILSEQ : dm_tm_ref(info->tm, b, &count);

	if (r)
		return r;
	if (count > 1)
		return dm_tm_dec(info->tm, b);
	r = node_read(info, b, level_value_size(info, level), &n);
	if (r)
		return r;
	copy = g_memdup2(n.data, DM_META_BLOCK_SIZE); /* no lock is held further down */
	node_unlock(info, &n);
	n.data = copy;
	r = dm_tm_dec(info->tm, b);
	return r ? r : del_children(info, level, &n, depth);
}

int btree_dec_values(struct dm_btree_info *info, unsigned level, const void *values, unsigned n)
{
	if (level + 1 == info->levels)
		return info->vt.dec && n ? info->vt.dec(info->vt.context, values, n) : 0;
	for (unsigned i = 0; i < n; i++) {
		int r = del_node(info, level + 1, get_le64(values + 8 * i), 0);

		if (r)
			return r;
	}
	return 0;
}

int btree_del_node(struct dm_btree_info *info, unsigned level, dm_block_t b)
{
	return del_node(info, level, b, 0);
}

int dm_btree_del(struct dm_btree_info *info, dm_block_t root)
{
	return del_node(info, 0, root, 0);
}

/* --- lookups --- */

/*
 * The leaf that would hold key, locked, and the place of the last entry not above it (-1: none).  *next: a key of the
 * leaf after it, at least; *has_next: there is one.
 */
static int find_leaf(struct dm_btree_info *info, unsigned level, dm_block_t b, uint64_t key, struct node *n, int *at,
		     bool *has_next, uint64_t *next)
{
	*has_next = false;
	for (unsigned depth = 0; depth < MAX_DEPTH; depth++) {
		int r = node_read(info, b, level_value_size(info, level), n);

		if (r)
			return r;
		*at = node_search(n, key);
		if (n->leaf)
			return 0;
		if (*at + 1 < (int)n->nr && *at >= 0) {
			*has_next = true;
			*next = node_key(n, *at + 1);
		} else if (*at < 0 && n->nr > 1) { /* key is below the first: still in the first child */
			*has_next = true;
			*next = node_key(n, 1);
		}
		if (!n->nr) {
			node_unlock(info, n);
			return -EILSEQ;
		}
		b = node_child(n, MAX(*at, 0));
		node_unlock(info, n);
	}
	return -EILSEQ;
}

int btree_lookup_one(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, void *value)
{
	struct node n;
	bool has_next;
	uint64_t next;
	int at, r = find_leaf(info, level, root, key, &n, &at, &has_next, &next);

	if (r)
		return r;
	if (at >= 0 && node_key(&n, at) == key)
		memcpy(value, node_value(&n, at), n.value_size);
	else
		r = -ENODATA;
	node_unlock(info, &n);
	return r;
}

int btree_descend_levels(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, unsigned levels,
			 dm_block_t *subtree)
{
	for (unsigned level = 0; level < levels; level++) {
		uint8_t le[8];
		int r = btree_lookup_one(info, level, root, keys[level], le);

		if (r)
			return r;
		root = get_le64(le);
	}
	*subtree = root;
	return 0;
}

int dm_btree_lookup(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, void *value)
{
	int r = btree_descend_levels(info, root, keys, info->levels - 1, &root);

	return r ? r : btree_lookup_one(info, info->levels - 1, root, keys[info->levels - 1], value);
}

int dm_btree_lookup_run(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, unsigned want,
			uint64_t *keys_out, void *values)
{
	unsigned level = info->levels - 1;
	uint64_t key = keys[level];
	int r = btree_descend_levels(info, root, keys, level, &root);

	if (r)
		return r;
	for (;;) {
		struct node n;
		bool has_next;
		uint64_t next;
		int at;

		r = find_leaf(info, level, root, key, &n, &at, &has_next, &next);
		if (r)
			return r;
		if (at < 0 || node_key(&n, at) < key)
			at++;
		r = MIN(want, n.nr - at);
		for (int i = 0; i < r; i++)
			keys_out[i] = node_key(&n, at + i);
		memcpy(values, node_value(&n, at), (size_t)n.value_size * r);
		if (r && (keys_out[0] < key || keys_out[r - 1] < keys_out[0])) /* two damaged leaves have been merged */
			r = -EILSEQ;
		node_unlock(info, &n);
		if (r)
			return r;
		if (!has_next || next <= key)
			return -ENODATA;
		key = next;
	}
}

int dm_btree_lookup_next(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, uint64_t *key,
			 void *value)
{
	int r = dm_btree_lookup_run(info, root, keys, 1, key, value);

	return MIN(r, 0);
}

int dm_btree_highest(struct dm_btree_info *info, dm_block_t root, uint64_t *key)
{
	struct node n;
	bool has_next;
	uint64_t next;
	int at, r = find_leaf(info, 0, root, UINT64_MAX, &n, &at, &has_next, &next);

	if (r)
		return r;
	if (at < 0)
		r = -ENODATA;
	else
		*key = node_key(&n, at);
	node_unlock(info, &n);
	return r;
}

/* --- cursor and walk --- */

static int cursor_fill(struct dm_btree_cursor *c, uint64_t from)
{
	int r = dm_btree_lookup_run(c->info, c->root, &from, G_N_ELEMENTS(c->keys), c->keys, c->values);

	c->at = 0;
	c->n = MAX(r, 0);
	return MIN(r, 0);
}

int dm_btree_cursor_begin(struct dm_btree_info *info, dm_block_t root, uint64_t from, struct dm_btree_cursor *c)
{
	c->info = info;
	c->root = root;
	return cursor_fill(c, from);
}

int dm_btree_cursor_next(struct dm_btree_cursor *c)
{
	if (++c->at < c->n)
		return 0;
	if (!c->n || c->keys[c->n - 1] == UINT64_MAX)
		return -ENODATA;
	return cursor_fill(c, c->keys[c->n - 1] + 1);
}

uint64_t dm_btree_cursor_get(const struct dm_btree_cursor *c, const void **value)
{
	*value = c->values + (size_t)c->info->vt.size * c->at;
	return c->keys[c->at];
}

int dm_btree_walk(struct dm_btree_info *info, dm_block_t root,
		  int (*fn)(void *context, uint64_t key, const void *value), void *context)
{
	g_autofree struct dm_btree_cursor *c = g_new(struct dm_btree_cursor, 1);
	int r = dm_btree_cursor_begin(info, root, 0, c);

	while (!r) {
		const void *value;
		uint64_t key = dm_btree_cursor_get(c, &value);

		r = fn(context, key, value);
		if (!r)
			r = dm_btree_cursor_next(c);
	}
	return r == -ENODATA ? 0 : r;
}

/* --- the value type of metadata blocks --- */

static int block_inc(void *tm, const void *values, unsigned n)
{
	return dm_tm_inc_many(tm, values, n);
}

static int block_dec(void *tm, const void *values, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		int r = dm_tm_dec(tm, get_le64(values + 8 * i));

		if (r)
			return r;
	}
	return 0;
}

static bool block_equal(void *tm, const void *a, const void *b)
{
	return !memcmp(a, b, 8);
}

struct dm_btree_value_type dm_btree_block_type(struct dm_tm *tm)
{
	return (struct dm_btree_value_type){tm, 8, block_inc, block_dec, block_equal};
}
