/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A btree's node, one block, little endian:
 *
 *   u32 checksum (of all after it)   u32 flags: 1 inner node, 2 leaf   u64 own block number
 *   u32 entries   u32 most entries   u32 bytes of a value   u32 0
 *   u64 keys[most entries], ascending; then the values
 *
 * The most entries is the greatest multiple of 3 that fits.  An inner node's values are 8 bytes: the child that holds
 * the keys from its key up to the next one's.  Every node but a root has at least a third of the most entries.
 */
#ifndef DMFS_BTREE_INTERNAL_H
#define DMFS_BTREE_INTERNAL_H

#include <dmfs/btree.h>

#include <dmfs/le.h>

#define NODE_HEADER 32
#define NODE_INNER 1u
#define NODE_LEAF 2u
#define MAX_DEPTH 16 /* of one level's tree: 84 to the power of 10 is more than there are keys */

struct node { /* a locked node, its numbers checked */
	struct dm_block *block;
	uint8_t *data;
	uint32_t nr, max, value_size;
	bool leaf;
};

extern const struct dm_validator btree_validator;

uint32_t node_max_entries(uint32_t value_size);
/* The size of a leaf's values in a level. */
static inline uint32_t level_value_size(const struct dm_btree_info *info, unsigned level)
{
	return level + 1 == info->levels ? info->vt.size : 8;
}

/* Takes a node's numbers from its block; -EILSEQ if a leaf's values are not of that size. */
int node_init(struct node *n, struct dm_block *block, uint32_t leaf_value_size);
/* These leave n->block NULL if they fail. */
int node_read(struct dm_btree_info *info, dm_block_t b, uint32_t leaf_value_size, struct node *n);
int node_new(struct dm_btree_info *info, bool leaf, uint32_t value_size, struct node *n);
void node_unlock(struct dm_btree_info *info, struct node *n);
void node_set_nr(struct node *n, uint32_t nr);

static inline uint8_t *node_key_at(const struct node *n, uint32_t i)
{
	return n->data + NODE_HEADER + 8 * (size_t)i;
}

static inline uint64_t node_key(const struct node *n, uint32_t i)
{
	return get_le64(node_key_at(n, i));
}

static inline uint8_t *node_value(const struct node *n, uint32_t i)
{
	return n->data + NODE_HEADER + 8 * (size_t)n->max + (size_t)n->value_size * i;
}

static inline dm_block_t node_child(const struct node *n, uint32_t i)
{
	return get_le64(node_value(n, i));
}

static inline dm_block_t node_where(const struct node *n)
{
	return dm_block_location(n->block);
}

/* The last entry whose key is not above key, or -1. */
int node_search(const struct node *n, uint64_t key);

/* Makes room for, or takes out, count entries at i. */
void node_open(struct node *n, uint32_t i, uint32_t count);
void node_close(struct node *n, uint32_t i, uint32_t count);
/* Appends entries of another node. */
void node_append(struct node *to, const struct node *from, uint32_t i, uint32_t count);

/* Shadows a node; its children's counts follow. */
int node_shadow(struct dm_btree_info *info, unsigned level, dm_block_t b, struct node *n);
/* Drops a reference to a node of a level: with the last one go its own. */
int btree_del_node(struct dm_btree_info *info, unsigned level, dm_block_t b);
/* Drops references of n values of a level. */
int btree_dec_values(struct dm_btree_info *info, unsigned level, const void *values, unsigned n);

/* One level's tree: the root of the subtree to use for keys[level]. */
int btree_descend_levels(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, unsigned levels,
			 dm_block_t *subtree);
int btree_lookup_one(struct dm_btree_info *info, unsigned level, dm_block_t root, uint64_t key, void *value);

#endif
