/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Insertion: down the tree, shadowing each node and splitting those that are full on the way, so that a parent always
 * has room for one more child.
 */
#include "btree_internal.h"

#include <errno.h>

/* The way down one level's tree: the locked node and its parent's entry for it. */
struct way {
	struct dm_btree_info *info;
	unsigned level;
	struct node parent, here; /* parent.block NULL: here is the root */
	uint32_t index;           /* of here in parent */
	dm_block_t root;
};

static void way_end(struct way *w)
{
	node_unlock(w->info, &w->parent);
	node_unlock(w->info, &w->here);
}

/* Links a child into an entry of its (locked) parent, or as the root. */
static void link_child(struct way *w, dm_block_t child)
{
	if (w->parent.block)
		put_le64(node_value(&w->parent, w->index), child);
	else
		w->root = child;
}

static int step_down(struct way *w, dm_block_t child)
{
	int r = node_shadow(w->info, w->level, child, &w->here);

	if (r)
		w->here.block = NULL;
	else
		link_child(w, node_where(&w->here));
	return r;
}

/* How many entries stay in the left half: keys in ascending order leave fuller nodes behind. */
static uint32_t split_at(const struct node *n, uint64_t key)
{
	return key > node_key(n, n->nr - 1) ? n->nr - n->max / 3 : n->nr / 2;
}

static void insert_entry(struct node *n, uint32_t i, uint64_t key, const void *value)
{
	node_open(n, i, 1);
	put_le64(node_key_at(n, i), key);
	memcpy(node_value(n, i), value, n->value_size);
}

static void insert_child(struct node *parent, uint32_t i, const struct node *child)
{
	uint64_t le = GUINT64_TO_LE(node_where(child));

	insert_entry(parent, i, node_key(child, 0), &le);
}

/* Splits the root: it becomes the parent of its two halves, keeping its place. */
static int split_root(struct way *w, uint64_t key)
{
	struct dm_btree_info *info = w->info;
	struct node *n = &w->here, left, right;
	uint32_t stay = split_at(n, key);
	int r = node_new(info, n->leaf, n->value_size, &left);

	if (r)
		return r;
	r = node_new(info, n->leaf, n->value_size, &right);
	if (r) {
		node_unlock(info, &left);
		return r;
	}
	node_append(&left, n, 0, stay);
	node_append(&right, n, stay, n->nr - stay);

	put_le32(n->data + 4, NODE_INNER);
	put_le32(n->data + 20, node_max_entries(8));
	put_le32(n->data + 24, 8);
	node_set_nr(n, 0);
	r = node_init(n, n->block, 8);
	insert_child(n, 0, &left);
	insert_child(n, 1, &right);
	if (key < node_key(n, 0))
		put_le64(node_key_at(n, 0), key);

	w->parent = *n;
	w->index = key >= node_key(n, 1);
	w->here = w->index ? right : left;
	node_unlock(info, w->index ? &left : &right);
	return r;
}

/* Splits a node below a parent that has room. */
static int split_child(struct way *w, uint64_t key)
{
	struct dm_btree_info *info = w->info;
	struct node *n = &w->here, right;
	uint32_t stay = split_at(n, key);
	int r;

	if (w->parent.nr >= w->parent.max)
		return -EILSEQ;
	r = node_new(info, n->leaf, n->value_size, &right);
	if (r)
		return r;
	node_append(&right, n, stay, n->nr - stay);
	node_set_nr(n, stay);
	insert_child(&w->parent, w->index + 1, &right);
	if (key >= node_key(&right, 0)) {
		node_unlock(info, n);
		*n = right;
		w->index++;
	} else {
		node_unlock(info, &right);
	}
	return 0;
}

static bool must_split(const struct node *n, uint64_t key)
{
	int at;

	if (n->nr < n->max)
		return false;
	if (!n->leaf)
		return true;
	at = node_search(n, key);
	return at < 0 || node_key(n, at) != key;
}

/* Down to the leaf for key, which is left locked in w->here with room for it. */
static int find_place(struct way *w, dm_block_t root, uint64_t key)
{
	dm_block_t child = root;

	for (unsigned depth = 0; depth < MAX_DEPTH; depth++) {
		struct node *n = &w->here;
		int at, r = step_down(w, child);

		if (r)
			return r;
		if (must_split(n, key)) {
			r = w->parent.block ? split_child(w, key) : split_root(w, key);
			if (r)
				return r;
		}
		if (n->leaf)
			return 0;
		at = node_search(n, key);
		if (!n->nr)
			return -EILSEQ;
		if (at < 0) { /* the new first key of all below */
			at = 0;
			put_le64(node_key_at(n, 0), key);
		}
		node_unlock(w->info, &w->parent);
		w->parent = *n;
		n->block = NULL;
		w->index = at;
		child = node_child(&w->parent, at);
	}
	return -EILSEQ;
}

/* Puts a value of the last level into the locked leaf. */
static int put_value(struct way *w, uint64_t key, const void *value, bool *inserted)
{
	struct dm_btree_value_type *vt = &w->info->vt;
	struct node *n = &w->here;
	int at = node_search(n, key), r = 0;

	*inserted = at < 0 || node_key(n, at) != key;
	if (*inserted) {
		insert_entry(n, at + 1, key, value);
		return 0;
	}
	if (vt->dec && !(vt->equal && vt->equal(vt->context, node_value(n, at), value)))
		r = vt->dec(vt->context, node_value(n, at), 1);
	if (!r)
		memcpy(node_value(n, at), value, n->value_size);
	return r;
}

/* The next level's tree for key, made if there is none; *value: where its root stands in the locked leaf. */
static int get_subtree(struct way *w, uint64_t key, uint8_t **value, dm_block_t *root)
{
	struct node *n = &w->here, fresh;
	int at = node_search(n, key), r;
	uint64_t le;

	if (at >= 0 && node_key(n, at) == key) {
		*value = node_value(n, at);
		*root = get_le64(*value);
		return 0;
	}
	r = node_new(w->info, true, level_value_size(w->info, w->level + 1), &fresh);
	if (r)
		return r;
	*root = node_where(&fresh);
	node_unlock(w->info, &fresh);
	le = GUINT64_TO_LE(*root);
	insert_entry(n, at + 1, key, &le);
	*value = node_value(n, at + 1);
	return 0;
}

static int insert_level(struct dm_btree_info *info, unsigned level, dm_block_t root, const uint64_t *keys,
			const void *value, dm_block_t *new_root, bool *inserted)
{
	struct way w = {.info = info, .level = level, .root = root};
	int r = find_place(&w, root, keys[level]);

	if (!r && level + 1 == info->levels) {
		r = put_value(&w, keys[level], value, inserted);
	} else if (!r) {
		dm_block_t subtree;
		uint8_t *place;

		r = get_subtree(&w, keys[level], &place, &subtree);
		if (!r)
			r = insert_level(info, level + 1, subtree, keys, value, &subtree, inserted);
		if (!r)
			put_le64(place, subtree);
	}
	way_end(&w);
	*new_root = w.root;
	return r;
}

int dm_btree_insert(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, const void *value,
		    dm_block_t *new_root, bool *inserted)
{
	bool ignored;

	return insert_level(info, 0, root, keys, value, new_root, inserted ? inserted : &ignored);
}
