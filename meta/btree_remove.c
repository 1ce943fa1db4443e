/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Removal: down the tree, shadowing; a child at its least size is first merged with a neighbour, or the two share their
 * entries evenly, so that what is taken out below leaves it at a third of the most entries or above.  A root with one
 * child gives way to it.  Of a range, leaves that lie wholly in it go as they are, as many of one parent as that can
 * lose.
 */
#include "btree_internal.h"

#include <errno.h>

static int shadow_child(struct dm_btree_info *info, unsigned level, struct node *parent, uint32_t i, struct node *child)
{
	int r = node_shadow(info, level, node_child(parent, i), child);

	if (!r)
		put_le64(node_value(parent, i), node_where(child));
	return r;
}

/* Moves entries between neighbours so that left has want of them. */
static void shift(struct node *left, struct node *right, uint32_t want)
{
	if (left->nr < want) {
		uint32_t n = want - left->nr;

		node_append(left, right, 0, n);
		node_close(right, 0, n);
	} else if (left->nr > want) {
		uint32_t n = left->nr - want;

		node_open(right, 0, n);
		memcpy(node_key_at(right, 0), node_key_at(left, want), 8 * (size_t)n);
		memcpy(node_value(right, 0), node_value(left, want), (size_t)right->value_size * n);
		node_set_nr(left, want);
	}
}

/* Joins or evens out the children i and i + 1 of a locked parent. */
static int balance(struct dm_btree_info *info, unsigned level, struct node *parent, uint32_t i)
{
	struct node left, right;
	int r = shadow_child(info, level, parent, i, &left);

	if (r)
		return r;
	r = shadow_child(info, level, parent, i + 1, &right);
	if (r) {
		node_unlock(info, &left);
		return r;
	}
	if (left.leaf != right.leaf || left.max != right.max) {
		r = -EILSEQ;
	} else if (left.nr + right.nr <= left.max) {
		dm_block_t gone = node_where(&right);

		node_append(&left, &right, 0, right.nr);
		node_close(parent, i + 1, 1);
		node_unlock(info, &right);
		r = dm_tm_dec(info->tm, gone);
	} else {
		shift(&left, &right, (left.nr + right.nr) / 2);
		put_le64(node_key_at(parent, i + 1), node_key(&right, 0));
	}
	node_unlock(info, &right);
	node_unlock(info, &left);
	return r;
}

static int child_nr(struct dm_btree_info *info, unsigned level, const struct node *parent, uint32_t i, uint32_t *nr,
		    uint32_t *max)
{
	struct node child;
	int r = node_read(info, node_child(parent, i), level_value_size(info, level), &child);

	if (r)
		return r;
	*nr = child.nr;
	*max = child.max;
	node_unlock(info, &child);
	return 0;
}

/* Makes the child for key of a locked node stand the loss of an entry. */
static int prepare_child(struct dm_btree_info *info, unsigned level, struct node *n, uint64_t key)
{
	int at = MAX(node_search(n, key), 0);
	uint32_t nr, max;
	int r;

	if (!n->nr)
		return -EILSEQ;
	if (n->nr == 1)
		return 0;
	r = child_nr(info, level, n, at, &nr, &max);
	if (r || nr > max / 3)
		return r;
	return balance(info, level, n, at ? at - 1 : 0);
}

/* A locked inner node with one child becomes its child. */
static int collapse(struct dm_btree_info *info, struct node *n, dm_block_t *root)
{
	dm_block_t gone = node_where(n);

	*root = node_child(n, 0);
	node_unlock(info, n);
	return dm_tm_dec(info->tm, gone);
}

static int has_leaves(struct dm_btree_info *info, unsigned level, const struct node *n, bool *leaves)
{
	struct node child;
	int r = n->nr ? node_read(info, node_child(n, 0), level_value_size(info, level), &child) : -EILSEQ;

	if (r)
		return r;
	*leaves = child.leaf;
	node_unlock(info, &child);
	return 0;
}

/*
 * Down to the leaf for key, or (above) to the node above it if there is one, left locked in *out.
 * *slack: how many entries it can lose; of a leaf at least one, all of them if it is the root.
 */
static int find_node(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, bool above,
		     struct node *out, dm_block_t *new_root, uint32_t *slack)
{
	struct node parent = {0};
	dm_block_t child = root;

	*new_root = root;
	for (unsigned depth = 0; depth < 2 * MAX_DEPTH; depth++) {
		bool found = false;
		struct node n;
		int r = node_shadow(info, level, child, &n);

		if (!r && parent.block)
			put_le64(node_value(&parent, MAX(node_search(&parent, key), 0)), node_where(&n));
		else if (!r)
			*new_root = node_where(&n);
		if (!r && n.leaf)
			found = true;
		else if (!r && above)
			r = has_leaves(info, level, &n, &found);
		if (!r && found) {
			uint32_t least = parent.block ? n.max / 3 : n.leaf ? 0 : 2;

			*slack = n.nr > least ? n.nr - least : n.leaf;
			node_unlock(info, &parent);
			*out = n;
			return 0;
		}
		if (!r)
			r = prepare_child(info, level, &n, key);
		if (!r && !parent.block && n.nr == 1) {
			r = collapse(info, &n, &child);
			*new_root = child;
			if (!r)
				continue;
		}
		node_unlock(info, &parent);
		if (r) {
			node_unlock(info, &n);
			return r;
		}
		parent = n;
		child = node_child(&n, MAX(node_search(&n, key), 0));
	}
	node_unlock(info, &parent);
	return -EILSEQ;
}

/* Removes up to max entries with keys from key to last out of the one leaf where key would be. */
static int remove_in_leaf(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, uint64_t last,
			  uint64_t max, dm_block_t *new_root, uint64_t *removed)
{
	struct node leaf;
	uint32_t slack, n = 0;
	int at, r = find_node(info, level, root, key, false, &leaf, new_root, &slack);

	*removed = 0;
	if (r)
		return r;
	at = node_search(&leaf, key);
	if (at < 0 || node_key(&leaf, at) < key)
		at++;
	max = MIN(max, slack);
	while (n < max && at + n < leaf.nr && node_key(&leaf, at + n) <= last)
		n++;
	r = btree_dec_values(info, level, node_value(&leaf, at), n);
	if (!r)
		node_close(&leaf, at, n);
	node_unlock(info, &leaf);
	*removed = n;
	return r;
}

/*
 * Takes whole leaves out of their locked parent, from its child at on, while it can lose one and they hold
 * nothing but keys from key to last, at most max.  A leaf that another tree has too is not even copied.
 */
static int drop_leaves(struct dm_btree_info *info, unsigned level, struct node *parent, uint32_t slack, uint32_t at,
		       uint64_t key, uint64_t last, uint64_t max, uint64_t *removed)
{
	for (; slack && at < parent->nr; slack--) {
		dm_block_t child = node_child(parent, at);
		struct node leaf;
		bool whole;
		int r = node_read(info, child, level_value_size(info, level), &leaf);

		if (r)
			return r;
		whole = leaf.leaf && leaf.nr && leaf.nr <= max - *removed && node_key(&leaf, 0) >= key &&
			node_key(&leaf, leaf.nr - 1) <= last;
		node_unlock(info, &leaf);
		if (!whole)
			return 0;
		r = btree_del_node(info, level, child);
		if (r)
			return r;
		node_close(parent, at, 1);
		*removed += leaf.nr;
	}
	return 0;
}

/* What can be removed leaf by leaf around key, in the lowest inner node above it; *removed: 0 where that is nothing. */
static int remove_leaves(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, uint64_t last,
			 uint64_t max, dm_block_t *new_root, uint64_t *removed)
{
	struct node parent;
	uint32_t slack;
	int at, r = find_node(info, level, root, key, true, &parent, new_root, &slack);

	*removed = 0;
	if (r)
		return r;
	at = MAX(node_search(&parent, key), 0);
	if (!parent.leaf)
		r = drop_leaves(info, level, &parent, slack, at, key, last, max, removed);
	node_unlock(info, &parent);
	return r;
}

/* Removes keys from key to last in the last level's subtree. */
static int remove_range(struct dm_btree_info *info, dm_block_t subtree, uint64_t key, uint64_t last, uint64_t max,
			dm_block_t *new_root, uint64_t *removed)
{
	unsigned level = info->levels - 1;
	uint32_t least = node_max_entries(info->vt.size) / 3; /* of a leaf that is not the root */
	struct dm_btree_info one = *info;

	one.levels = 1;
	*removed = 0;
	*new_root = subtree;
	while (*removed < max && key <= last) {
		uint64_t n, first;
		uint8_t value[DM_BTREE_MAX_VALUE];
		int r = dm_btree_lookup_next(&one, *new_root, &key, &first, value);

		if (r == -ENODATA || (!r && first > last))
			return 0;
		if (r)
			return r;
		n = 0;
		if (max - *removed >= least && last - first >= least - 1)
			r = remove_leaves(info, level, *new_root, first, last, max - *removed, new_root, &n);
		if (!r && !n)
			r = remove_in_leaf(info, level, *new_root, first, last, max - *removed, new_root, &n);
		if (r)
			return r;
		if (!n)
			return -EILSEQ; /* found by the lookup, gone for the removal: damaged keys */
		*removed += n;
		key = first;
	}
	return 0;
}

/* The entry of keys[] in an upper level's tree, whose leaf is shadowed and left locked. */
static int shadow_way(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, struct node *leaf,
		      uint8_t **value, dm_block_t *new_root)
{
	struct node parent = {0};
	dm_block_t child = root;

	*new_root = root;
	for (unsigned depth = 0; depth < MAX_DEPTH; depth++) {
		struct node n;
		int at, r = node_shadow(info, level, child, &n);

		if (!r && parent.block)
			put_le64(node_value(&parent, MAX(node_search(&parent, key), 0)), node_where(&n));
		else if (!r)
			*new_root = node_where(&n);
		node_unlock(info, &parent);
		if (r)
			return r;
		at = node_search(&n, key);
		if (at < 0 || (n.leaf && node_key(&n, at) != key)) {
			node_unlock(info, &n);
			return -EILSEQ;
		}
		if (n.leaf) {
			*leaf = n;
			*value = node_value(leaf, at);
			return 0;
		}
		parent = n;
		child = node_child(&n, at);
	}
	node_unlock(info, &parent);
	return -EILSEQ;
}

static int remove_level(struct dm_btree_info *info, unsigned level, dm_block_t root, const uint64_t *keys,
			uint64_t last, uint64_t max, dm_block_t *new_root, uint64_t *removed)
{
	struct node leaf;
	uint8_t *place;
	dm_block_t subtree;
	int r;

	if (level + 1 == info->levels)
		return remove_range(info, root, keys[level], last, max, new_root, removed);
	r = shadow_way(info, level, root, keys[level], &leaf, &place, new_root);
	if (r)
		return r;
	r = remove_level(info, level + 1, get_le64(place), keys, last, max, &subtree, removed);
	put_le64(place, subtree);
	node_unlock(info, &leaf);
	return r;
}

int dm_btree_remove(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, dm_block_t *new_root)
{
	uint8_t value[DM_BTREE_MAX_VALUE];
	uint64_t removed;
	int r = dm_btree_lookup(info, root, keys, value);

	*new_root = root;
	if (r)
		return r;
	r = remove_level(info, 0, root, keys, keys[info->levels - 1], 1, new_root, &removed);
	return r ? r : removed == 1 ? 0 : -EILSEQ;
}

int dm_btree_remove_range(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, uint64_t end,
			  uint64_t max, dm_block_t *new_root, uint64_t *removed)
{
	uint64_t first;
	uint8_t value[DM_BTREE_MAX_VALUE];
	int r = dm_btree_lookup_next(info, root, keys, &first, value);

	*removed = 0;
	*new_root = root;
	if (r == -ENODATA || (!r && first >= end) || !max) /* nothing to do: change nothing */
		return r == -ENODATA ? 0 : r;
	return r ? r : remove_level(info, 0, root, keys, end - 1, max, new_root, removed);
}
