/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bits in an array of words; one word is kept at hand. */
#include <dmfs/bitset.h>

#include <dmfs/le.h>

#include <errno.h>

void dm_bitset_info_init(struct dm_bitset_info *info, struct dm_tm *tm)
{
	struct dm_btree_value_type word = {.size = 8};

	dm_array_info_init(&info->array, tm, &word);
	info->valid = info->dirty = false;
}

int dm_bitset_empty(struct dm_bitset_info *info, dm_block_t *root)
{
	return dm_array_empty(&info->array, root);
}

struct packer {
	uint32_t size;
	int (*fn)(void *context, uint32_t index, bool *value);
	void *context;
};

static int pack(void *context, uint32_t word, void *value)
{
	struct packer *p = context;
	uint64_t bits = 0;

	for (uint64_t i = (uint64_t)word * 64; i < MIN((uint64_t)word * 64 + 64, p->size); i++) {
		bool bit;
		int r = p->fn(p->context, i, &bit);

		if (r)
			return r;
		bits |= (uint64_t)bit << i % 64;
	}
	put_le64(value, bits);
	return 0;
}

static uint32_t words(uint32_t size)
{
	return ((uint64_t)size + 63) / 64;
}

int dm_bitset_new(struct dm_bitset_info *info, dm_block_t *root, uint32_t size,
		  int (*fn)(void *context, uint32_t index, bool *value), void *context)
{
	struct packer p = {size, fn, context};

	info->valid = info->dirty = false;
	return dm_array_new(&info->array, root, words(size), pack, &p);
}

int dm_bitset_flush(struct dm_bitset_info *info, dm_block_t *root)
{
	uint64_t le = GUINT64_TO_LE(info->bits);
	int r;

	if (!info->valid || !info->dirty)
		return 0;
	r = dm_array_set(&info->array, *root, info->word, &le, root);
	if (!r)
		info->dirty = false;
	return r;
}

static int use_word(struct dm_bitset_info *info, dm_block_t *root, uint32_t word)
{
	uint64_t le;
	int r;

	if (info->valid && info->word == word)
		return 0;
	r = dm_bitset_flush(info, root);
	if (r)
		return r;
	info->valid = false;
	r = dm_array_get(&info->array, *root, word, &le);
	if (r)
		return r;
	info->bits = GUINT64_FROM_LE(le);
	info->word = word;
	info->valid = true;
	return 0;
}

int dm_bitset_set(struct dm_bitset_info *info, dm_block_t *root, uint32_t index, bool value)
{
	uint64_t mask = 1ull << index % 64;
	int r = use_word(info, root, index / 64);

	if (r || !!(info->bits & mask) == value)
		return r;
	info->bits ^= mask;
	info->dirty = true;
	return 0;
}

int dm_bitset_test(struct dm_bitset_info *info, dm_block_t *root, uint32_t index, bool *value)
{
	int r = use_word(info, root, index / 64);

	if (!r)
		*value = info->bits >> index % 64 & 1;
	return r;
}

int dm_bitset_resize(struct dm_bitset_info *info, dm_block_t root, uint32_t old_size, uint32_t new_size, bool value,
		     dm_block_t *new_root)
{
	uint64_t fill = value ? UINT64_MAX : 0;
	int r = dm_bitset_flush(info, &root);

	*new_root = root;
	/* The rest of a word that was the last one: the new bits in it. */
	for (uint64_t i = old_size; !r && i % 64 && i < new_size; i++)
		r = dm_bitset_set(info, new_root, i, value);
	if (!r)
		r = dm_bitset_flush(info, new_root);
	info->valid = false;
	return r ? r : dm_array_resize(&info->array, *new_root, words(old_size), words(new_size), &fill, new_root);
}

int dm_bitset_del(struct dm_bitset_info *info, dm_block_t root)
{
	info->valid = info->dirty = false;
	return dm_array_del(&info->array, root);
}

/* --- cursor --- */

static void take_word(struct dm_bitset_cursor *c)
{
	c->bits = get_le64(dm_array_cursor_get(&c->words));
}

int dm_bitset_cursor_begin(struct dm_bitset_info *info, dm_block_t root, uint32_t size, struct dm_bitset_cursor *c)
{
	int r;

	g_assert(!info->dirty);
	c->index = 0;
	c->size = size;
	r = dm_array_cursor_begin(&info->array, root, words(size), &c->words);
	if (!r)
		take_word(c);
	return r;
}

int dm_bitset_cursor_skip(struct dm_bitset_cursor *c, uint32_t n)
{
	uint32_t word = c->index / 64;
	int r = 0;

	if (n >= c->size - c->index) {
		c->index = c->size;
		return -ENODATA;
	}
	c->index += n;
	if (c->index / 64 != word)
		r = dm_array_cursor_skip(&c->words, c->index / 64 - word);
	if (!r && c->index / 64 != word)
		take_word(c);
	return r;
}

int dm_bitset_cursor_next(struct dm_bitset_cursor *c)
{
	return dm_bitset_cursor_skip(c, 1);
}
