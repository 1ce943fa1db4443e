/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table lines of logical volumes with a cache, a writecache or checksums: cache, writecache, integrity.
 *
 * None of these can be opened without being written to.  So without -w they get overlays, which take the writes; and a
 * cache that has nothing which its origin lacks is left out.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../common/tree.h"
#include "lvm_table.h"

/* " POLICY #ARGS KEY VALUE..." */
static void cache_policy(const struct lvm_item *seg, GString *line)
{
	const struct lvm_item *settings = lvm_section(seg, "policy_settings");
	const char *policy = lvm_string(seg, "policy");
	g_autoptr(GString) words = g_string_new(NULL);
	unsigned n = 0;

	for (unsigned i = 0; settings && i < settings->items->len; i++) {
		const struct lvm_item *item = settings->items->pdata[i];
		uint64_t v;

		if (!lvm_number(settings, item->key, &v) && ++n)
			g_string_append_printf(words, " %s %" PRIu64, item->key, v);
	}
	g_string_append_printf(line, " %s %u%s", policy && *policy && !strpbrk(policy, " \\\n") ? policy : "default",
			       2 * n, words->str);
}

/* A piece of a cache volume as a device of its own. */
static const char *cachevol_piece(struct lvm_ctx *c, const struct vg_lv *lv, const char *device, const char *layer,
				  uint64_t start, uint64_t sectors, GError **err)
{
	g_autoptr(GString) line = g_string_new("linear");
	GPtrArray *outer = lvm_begin_uses(c);
	const char *made;

	lvm_add_device(c, line, device);
	g_string_append_printf(line, " %" PRIu64, start);
	made = lvm_make_line(c, lv, layer, "lvm", line, sectors, false, err);
	lvm_end_uses(c, outer);
	return made && !c->m->write ? c->m->overlay(c->m->data, made, sectors, err) : made;
}

/* A cache's two devices: of a pool with two volumes, or pieces of one. */
static int cache_devices(struct lvm_ctx *c, const struct lvm_item *seg, const struct lvm_item **of, const char **meta,
			 const char **data, GError **err)
{
	const char *name = lvm_string(seg, "cache_pool"), *device;
	const struct vg_lv *pool = name ? g_hash_table_lookup(c->vg->lv_by_name, name) : NULL, *other;
	const struct lvm_item *first = pool && pool->segments->len ? pool->segments->pdata[0] : NULL;
	uint64_t meta_start, meta_len, data_start, data_len, sum;

	if (!first)
		return fail(err, EINVAL, "%s names no cache_pool in the group", seg->key);
	if (!g_strcmp0(lvm_string(first, "type"), "cache-pool")) {
		*of = first;
		*meta = lvm_spare_device(c, first, "metadata", &other, err);
		*data = *meta ? lvm_spare_device(c, first, "data", &other, err) : NULL;
		return *data ? 0 : -EINVAL;
	}
	*of = seg;
	if (lvm_number(seg, "metadata_start", &meta_start) || lvm_number(seg, "metadata_len", &meta_len) ||
	    lvm_number(seg, "data_start", &data_start) || lvm_number(seg, "data_len", &data_len) || !meta_len ||
	    !data_len || __builtin_add_overflow(meta_start, meta_len, &sum) || sum > lvm_sectors(c, pool) ||
	    __builtin_add_overflow(data_start, data_len, &sum) || sum > lvm_sectors(c, pool))
		return fail(err, EINVAL, "%s: the places in the cache volume cannot be", seg->key);
	device = lvm_device(c, pool->name, err);
	*meta = device ? cachevol_piece(c, pool, device, "cmeta", meta_start, meta_len, err) : NULL;
	*data = *meta ? cachevol_piece(c, pool, device, "cdata", data_start, data_len, err) : NULL;
	return *data ? 0 : -EINVAL;
}

/* What is in force: the volume's own, else the pool's. */
static const char *cache_mode(const struct lvm_ctx *c, const struct lvm_item *seg)
{
	const char *mode = lvm_string(seg, "cache_mode"), *name = lvm_string(seg, "cache_pool");
	const struct vg_lv *pool = name ? g_hash_table_lookup(c->vg->lv_by_name, name) : NULL;

	if (!mode && pool && pool->segments->len)
		mode = lvm_string(pool->segments->pdata[0], "cache_mode");
	return mode && (!strcmp(mode, "writeback") || !strcmp(mode, "passthrough")) ? mode : "writethrough";
}

int lvm_seg_cache(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		  GError **err)
{
	const char *mode = cache_mode(c, seg), *meta = NULL, *data = NULL, *origin;
	const struct lvm_item *of = NULL;
	const struct vg_lv *other;
	uint64_t chunk, format;

	if (!c->m->write && strcmp(mode, "writeback")) {
		origin = lvm_named_device(c, seg, "origin", &other, err);
		if (!origin)
			return -EINVAL;
		g_string_append(line, "linear");
		lvm_add_device(c, line, origin);
		g_string_append(line, " 0");
		return 0;
	}
	if (cache_devices(c, seg, &of, &meta, &data, err))
		return -EINVAL;
	origin = lvm_spare_device(c, seg, "origin", &other, err);
	if (!origin || lvm_number_or_0(of, "chunk_size", UINT32_MAX, &chunk, err) ||
	    lvm_number_or_0(of, "metadata_format", 2, &format, err))
		return -EINVAL;
	g_string_append(line, "cache");
	lvm_add_device(c, line, meta);
	lvm_add_device(c, line, data);
	lvm_add_device(c, line, origin);
	g_string_append_printf(line, " %" PRIu64 " %s %s", chunk, format == 2 ? "2 metadata2" : "1", mode);
	cache_policy(of, line);
	return 0;
}

int lvm_seg_writecache(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		       GError **err)
{
	const struct vg_lv *other;
	const char *cache = lvm_spare_device(c, seg, "writecache", &other, err);
	const char *origin = cache ? lvm_spare_device(c, seg, "origin", &other, err) : NULL;
	uint64_t block;

	if (!origin || lvm_number_or_0(seg, "writecache_block_size", 1u << 20, &block, err))
		return -EINVAL;
	g_string_append(line, "writecache s");
	lvm_add_device(c, line, origin);
	lvm_add_device(c, line, cache);
	g_string_append_printf(line, " %" PRIu64 " 0", block ? block : 4096);
	return 0;
}

int lvm_seg_integrity(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		      GError **err)
{
	const struct vg_lv *other;
	const char *origin = lvm_spare_device(c, seg, "origin", &other, err), *mode = lvm_string(seg, "mode");
	const char *hash = lvm_string(seg, "internal_hash"), *meta = NULL;
	uint64_t tag, block;

	if (origin && lvm_string(seg, "meta_dev"))
		meta = lvm_spare_device(c, seg, "meta_dev", &other, err);
	if (!origin || (!meta && lvm_string(seg, "meta_dev")) || lvm_number_or_0(seg, "tag_size", 256, &tag, err) ||
	    lvm_number_or_0(seg, "block_size", 4096, &block, err))
		return -EINVAL;
	if (!hash || strpbrk(hash, " \\\n"))
		return fail(err, EINVAL, "%s has no internal_hash", seg->key);
	g_string_append(line, "integrity");
	lvm_add_device(c, line, origin);
	g_string_append_printf(line, " 0 %" PRIu64 " %s %u internal_hash:%s", tag, mode && *mode == 'b' ? "B" : "J",
			       1 + !!meta + !!block, hash);
	if (meta) {
		g_autofree char *word = tree_quote(meta);

		g_string_append_printf(line, " meta_device:%s", word);
		g_ptr_array_add(c->uses, (gpointer)meta);
	}
	if (block)
		g_string_append_printf(line, " block_size:%" PRIu64, block);
	return 0;
}
