/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tables of a volume group's logical volumes, as LVM2 itself would load them, with its names: GROUP-VOLUME, each
 * dash in a name doubled, and -real, -cow, -tpool for what is beneath.
 *
 * Each segment is a line.  A volume is made after all it stands on; who stands on himself is refused.  What is on a
 * physical volume that is missing reads as errors; raid and mirrors do without it.
 *
 * Without -w nothing may be written: of a mirror its first good leg is taken then.  Caches and their like are in
 * lvm_cache.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../common/tree.h"
#include "lvm_table.h"

enum { FRESH, BUSY, DONE, BAD };

#define MAX_LAYERS 64u /* of volumes on volumes */

/* --- names and devices ------------------------------------------------------------------------------- */

static char *doubled(const char *s)
{
	g_auto(GStrv) parts = g_strsplit(s, "-", -1);

	return g_strjoinv("--", parts);
}

static char *name_of(const struct lvm_ctx *c, const char *lv, const char *layer)
{
	g_autofree char *group = doubled(c->vg->name), *volume = doubled(lv);

	return g_strconcat(group, "-", volume, layer ? "-" : "", layer ? layer : "", NULL);
}

uint64_t lvm_sectors(const struct lvm_ctx *c, const struct vg_lv *lv)
{
	return lv->extents * c->vg->extent;
}

static char *id_of(const struct lvm_ctx *c, const struct vg_lv *lv, const char *layer)
{
	g_autoptr(GString) id = g_string_new("LVM-");

	for (const char *p = c->vg->id; *p; p++)
		if (*p != '-')
			g_string_append_c(id, *p);
	for (const char *p = lv->id; *p; p++)
		if (*p != '-')
			g_string_append_c(id, *p);
	if (layer)
		g_string_append_printf(id, "-%s", layer);
	return g_strdup(id->str);
}

void lvm_add_device(struct lvm_ctx *c, GString *line, const char *device)
{
	g_autofree char *word = tree_quote(device);

	g_string_append_printf(line, " %s", word);
	g_ptr_array_add(c->uses, (gpointer)device);
}

const char *lvm_make_line(struct lvm_ctx *c, const struct vg_lv *lv, const char *layer, const char *type,
			  const GString *rest, uint64_t sectors, bool writable, GError **err)
{
	g_autofree char *name = name_of(c, lv->name, layer), *id = id_of(c, lv, layer);
	g_autofree char *table = g_strdup_printf("0 %" PRIu64 " %s\n", sectors, rest->str);

	return c->m->make(c->m->data, name, id, type, table, sectors, writable, c->uses, err);
}

GPtrArray *lvm_begin_uses(struct lvm_ctx *c)
{
	GPtrArray *outer = c->uses;

	c->uses = g_ptr_array_new();
	return outer;
}

void lvm_end_uses(struct lvm_ctx *c, GPtrArray *outer)
{
	g_ptr_array_unref(c->uses);
	c->uses = outer;
}

static const char *missing_device(struct lvm_ctx *c, const struct vg_lv *lv, uint64_t sectors, GError **err)
{
	g_autoptr(GString) line = g_string_new("error");
	GPtrArray *outer = lvm_begin_uses(c);
	const char *device = lvm_make_line(c, lv, "missing", "error", line, sectors, false, err);

	lvm_end_uses(c, outer);
	return device;
}

/* --- areas: what a stripe or a leg is on -------------------------------------------------------------- */

struct area {
	const char *device; /* NULL: it is missing */
	uint64_t start;	    /* sector */
};

/* The pair at an index of an array like ["pv0", 17, "lv", 0]. */
static int area_of(struct lvm_ctx *c, const GArray *values, unsigned i, uint64_t extents, struct area *out,
		   GError **err)
{
	const struct lvm_value *name, *at;
	const struct vg_pv *pv;
	const struct vg_lv *lv;
	uint64_t end, room;

	*out = (struct area){0};
	if (i + 1 >= values->len)
		return fail(err, EINVAL, "a list of areas has no pair %u", i / 2);
	name = &g_array_index(values, struct lvm_value, i);
	at = &g_array_index(values, struct lvm_value, i + 1);
	if (!name->text || at->text || at->number < 0)
		return fail(err, EINVAL, "a list of areas has no name and number at %u", i);
	pv = g_hash_table_lookup(c->vg->pv_by_key, name->string);
	lv = pv ? NULL : g_hash_table_lookup(c->vg->lv_by_name, name->string);
	if (!pv && !lv)
		return fail(err, EINVAL, "there is no '%s' in the group", name->string);
	room = pv ? pv->pe_count : lv->extents;
	if (__builtin_add_overflow((uint64_t)at->number, extents, &end) || end > room)
		return fail(err, EINVAL, "extents %" PRId64 " to %" PRIu64 " of %s, which has %" PRIu64, at->number,
			    end, name->string, room);
	out->start = (uint64_t)at->number * c->vg->extent;
	if (lv) {
		out->device = lvm_device(c, lv->name, err);
		return out->device ? 0 : -EINVAL;
	}
	out->start += pv->pe_start;
	if (!pv->device)
		return 0;
	end = pv->pe_start + end * c->vg->extent;
	if (end > pv->have)
		return fail(err, EINVAL, "extents up to sector %" PRIu64 " of %s, which ends at %" PRIu64, end,
			    pv->device, pv->have);
	out->device = pv->device;
	return 0;
}

/* Whether something of a volume is on a physical volume that is missing. */
static bool is_missing(struct lvm_ctx *c, const char *name, unsigned depth)
{
	struct vg_lv *lv = g_hash_table_lookup(c->vg->lv_by_name, name);

	if (!lv || lv->missing != MISSING_UNKNOWN || depth == MAX_LAYERS)
		return lv && lv->missing == MISSING_YES;
	lv->missing = MISSING_NO; /* also for who asks within */
	for (unsigned s = 0; s < lv->segments->len; s++) {
		const GArray *areas = lvm_values(lv->segments->pdata[s], "stripes");

		for (unsigned i = 0; areas && i < areas->len; i += 2) {
			const struct lvm_value *v = &g_array_index(areas, struct lvm_value, i);
			const struct vg_pv *pv = v->text ? g_hash_table_lookup(c->vg->pv_by_key, v->string) : NULL;

			if (pv ? !pv->device : v->text && is_missing(c, v->string, depth + 1))
				lv->missing = MISSING_YES;
		}
	}
	return lv->missing == MISSING_YES;
}

int lvm_number_or_0(const struct lvm_item *seg, const char *key, uint64_t max, uint64_t *out, GError **err)
{
	int r = lvm_number(seg, key, out);

	if (r == -ENOENT)
		*out = 0;
	else if (r || *out > max)
		return fail(err, EINVAL, "%s of %s cannot be", key, seg->key);
	return 0;
}

const char *lvm_named_device(struct lvm_ctx *c, const struct lvm_item *seg, const char *key, const struct vg_lv **lv,
			     GError **err)
{
	const char *name = lvm_string(seg, key);

	if (!name || !(*lv = g_hash_table_lookup(c->vg->lv_by_name, name))) {
		fail(err, EINVAL, "%s names no %s in the group", seg->key, key);
		return NULL;
	}
	return lvm_device(c, name, err);
}

const char *lvm_spare_device(struct lvm_ctx *c, const struct lvm_item *seg, const char *key, const struct vg_lv **lv,
			     GError **err)
{
	const char *device = lvm_named_device(c, seg, key, lv, err);

	return device && !c->m->write ? c->m->overlay(c->m->data, device, lvm_sectors(c, *lv), err) : device;
}

/* --- segments: each adds what is behind "START LENGTH " -------------------------------------------------- */

static int seg_striped(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		       GError **err)
{
	const GArray *areas = lvm_values(seg, "stripes");
	uint64_t n = areas ? areas->len / 2 : 0, size, missing = 0;
	struct area a;
	int r;

	if (!n || extents % n)
		return fail(err, EINVAL, "%s: %" PRIu64 " extents in %" PRIu64 " stripes", seg->key, extents, n);
	r = lvm_number_or_0(seg, "stripe_size", UINT32_MAX, &size, err);
	if (!r && n > 1 && !size)
		r = fail(err, EINVAL, "%s has no stripe_size", seg->key);
	if (n > 1)
		g_string_append_printf(line, "striped %" PRIu64 " %" PRIu64, n, size);
	for (unsigned i = 0; !r && i < n; i++) {
		r = area_of(c, areas, 2 * i, extents / n, &a, err);
		if (r)
			break;
		missing += !a.device;
		if (!a.device && n == 1) {
			g_string_append(line, "error");
			break;
		}
		if (n == 1)
			g_string_append(line, "linear");
		if (!a.device) {
			a.start = 0;
			a.device = missing_device(c, lv, extents / n * c->vg->extent, err);
		}
		if (!a.device)
			return -EINVAL;
		lvm_add_device(c, line, a.device);
		g_string_append_printf(line, " %" PRIu64, a.start);
	}
	if (!r && missing) {
		g_autofree char *text =
		    g_strdup_printf("%s of it is on a physical volume that is missing: reads as errors", seg->key);
		g_autofree char *name = name_of(c, lv->name, NULL);

		c->m->note(c->m->data, name, text);
	}
	return r;
}

static int seg_mirror(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		      GError **err)
{
	const GArray *areas = lvm_values(seg, "mirrors");
	g_autoptr(GString) legs = g_string_new(NULL);
	unsigned n = 0;
	uint64_t region;
	const struct vg_lv *log;
	int r = lvm_number_or_0(seg, "region_size", UINT32_MAX, &region, err);

	for (unsigned i = 0; !r && areas && i < areas->len; i += 2) {
		const struct lvm_value *v = &g_array_index(areas, struct lvm_value, i);
		struct area a;

		if (v->text && is_missing(c, v->string, 0))
			continue;
		r = area_of(c, areas, i, extents, &a, err);
		if (r || !a.device)
			continue;
		lvm_add_device(c, legs, a.device);
		g_string_append_printf(legs, " %" PRIu64, a.start);
		if (!n++ && !c->m->write)
			break; /* one in sync is all a reader needs; resynchronisation begins with the first */
	}
	if (r)
		return r;
	if (!n)
		return fail(err, ENODEV, "%s: all legs of the mirror are missing", seg->key);
	if (!c->m->write || n == 1) {
		g_string_append_printf(line, "linear%s", legs->str);
		return 0;
	}
	g_string_append(line, "mirror");
	if (lvm_string(seg, "mirror_log")) {
		const char *device = lvm_named_device(c, seg, "mirror_log", &log, err);

		if (!device)
			return -EINVAL;
		g_string_append(line, " disk 2");
		lvm_add_device(c, line, device);
	} else {
		g_string_append(line, " core 1");
	}
	g_string_append_printf(line, " %" PRIu64 " %u%s 1 handle_errors", region, n, legs->str);
	return 0;
}

static const char *raid_type(const char *type)
{
	return !strcmp(type, "raid5")	      ? "raid5_ls"
	       : !strcmp(type, "raid6")	      ? "raid6_zr"
	       : !strcmp(type, "raid0_meta")  ? "raid0"
	       : !strcmp(type, "raid10_near") ? "raid10"
					      : type;
}

/* One device of an array: its metadata, or -, and its data. */
static int raid_member(struct lvm_ctx *c, const struct lvm_value *meta, const struct lvm_value *data, GString *line,
		       unsigned *missing, GError **err)
{
	const char *device;

	if ((meta && !meta->text) || !data->text)
		return fail(err, EINVAL, "the list of the array's devices has no names");
	if ((meta && is_missing(c, meta->string, 0)) || is_missing(c, data->string, 0)) {
		g_string_append(line, " - -");
		++*missing;
		return 0;
	}
	if (meta) {
		device = lvm_device(c, meta->string, err);
		if (!device)
			return -EINVAL;
		lvm_add_device(c, line, device);
	} else {
		g_string_append(line, " -");
	}
	device = lvm_device(c, data->string, err);
	if (!device)
		return -EINVAL;
	lvm_add_device(c, line, device);
	return 0;
}

static int raid_params(const struct lvm_item *seg, const char *type, GString *line, GError **err)
{
	static const struct {
		const char *key, *word;
	} numbers[] = {{"region_size", "region_size"},
		       {"data_copies", "raid10_copies"},
		       {"writebehind", "max_write_behind"},
		       {"min_recovery_rate", "min_recovery_rate"},
		       {"max_recovery_rate", "max_recovery_rate"}};
	bool striped = g_str_has_prefix(type, "raid0");
	g_autoptr(GString) words = g_string_new(NULL);
	unsigned n = 1;
	uint64_t chunk, v;
	int r = lvm_number_or_0(seg, "stripe_size", UINT32_MAX, &chunk, err);

	for (size_t i = 0; !r && !striped && i < G_N_ELEMENTS(numbers); i++) {
		r = lvm_number_or_0(seg, numbers[i].key, UINT32_MAX, &v, err);
		if (r || !v || (!strcmp(numbers[i].key, "data_copies") && !g_str_has_prefix(type, "raid10")))
			continue;
		g_string_append_printf(words, " %s %" PRIu64, numbers[i].word, v);
		n += 2;
	}
	if (!r)
		g_string_append_printf(line, "raid %s %u %" PRIu64 "%s", raid_type(type), n, chunk, words->str);
	return r;
}

static int seg_raid(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		    GError **err)
{
	const char *type = lvm_string(seg, "type");
	const GArray *bare = lvm_values(seg, "raid0_lvs"), *pairs = lvm_values(seg, "raids");
	unsigned n = bare ? bare->len : pairs ? pairs->len / 2 : 0, missing = 0;
	uint64_t offset;
	int r = lvm_number_or_0(seg, "data_offset", UINT32_MAX, &offset, err);

	if (!n)
		return fail(err, EINVAL, "%s has no devices", seg->key);
	if (!r && (offset || lvm_values(seg, "delta_disks")))
		return fail(err, ENOTSUP, "%s is being reshaped: let LVM finish that", seg->key);
	if (!r)
		r = raid_params(seg, type, line, err);
	g_string_append_printf(line, " %u", n);
	for (unsigned i = 0; !r && i < n; i++)
		r = bare ? raid_member(c, NULL, &g_array_index(bare, struct lvm_value, i), line, &missing, err)
			 : raid_member(c, &g_array_index(pairs, struct lvm_value, 2 * i),
				       &g_array_index(pairs, struct lvm_value, 2 * i + 1), line, &missing, err);
	if (!r && missing) {
		g_autofree char *text = g_strdup_printf("degraded: %u of %u devices are missing", missing, n);
		g_autofree char *name = name_of(c, lv->name, NULL);

		c->m->note(c->m->data, name, text);
	}
	return r;
}

static int seg_thin_pool(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents,
			 GString *line, GError **err)
{
	const char *meta, *data, *discards = lvm_string(seg, "discards");
	g_autoptr(GString) features = g_string_new(NULL);
	const struct vg_lv *other;
	uint64_t chunk, zero;
	unsigned n = 0;

	if (lvm_number_or_0(seg, "chunk_size", UINT32_MAX, &chunk, err) ||
	    lvm_number_or_0(seg, "zero_new_blocks", 1, &zero, err))
		return -EINVAL;
	meta = lvm_named_device(c, seg, "metadata", &other, err);
	data = meta ? lvm_named_device(c, seg, "pool", &other, err) : NULL;
	if (!data)
		return -EINVAL;
	if (!zero && ++n)
		g_string_append(features, " skip_block_zeroing");
	if (discards && !strcmp(discards, "ignore") && ++n)
		g_string_append(features, " ignore_discard");
	if (discards && !strcmp(discards, "nopassdown") && ++n)
		g_string_append(features, " no_discard_passdown");
	if (!c->m->write && ++n)
		g_string_append(features, " read_only");
	g_string_append(line, "thin-pool");
	lvm_add_device(c, line, meta);
	lvm_add_device(c, line, data);
	g_string_append_printf(line, " %" PRIu64 " 0 %u%s", chunk, n, features->str);
	return 0;
}

static int seg_thin(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		    GError **err)
{
	const struct vg_lv *other;
	const char *pool, *origin;
	uint64_t id;

	if (lvm_number_or_0(seg, "device_id", 0xffffff, &id, err))
		return -EINVAL;
	pool = lvm_named_device(c, seg, "thin_pool", &other, err);
	if (!pool)
		return -EINVAL;
	g_string_append(line, "thin");
	lvm_add_device(c, line, pool);
	g_string_append_printf(line, " %" PRIu64, id);
	if (lvm_string(seg, "external_origin")) {
		origin = lvm_named_device(c, seg, "external_origin", &other, err);
		if (!origin)
			return -EINVAL;
		lvm_add_device(c, line, origin);
	}
	return 0;
}

static int seg_word(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		    GError **err)
{
	g_string_append(line, lvm_string(seg, "type"));
	return 0;
}

static const struct seg_type {
	const char *type;
	int (*add)(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		   GError **err);
	const char *layer; /* of the device */
	bool writable;	   /* the target is in no read-only table, though what is beneath may be read-only */
} seg_types[] = {
    {"striped", seg_striped, NULL, false},
    {"linear", seg_striped, NULL, false},
    {"mirror", seg_mirror, NULL, false},
    {"raid", seg_raid, NULL, false}, /* and all that begin so */
    {"thin-pool", seg_thin_pool, "tpool", true},
    {"thin", seg_thin, NULL, false},
    {"cache", lvm_seg_cache, NULL, false},
    {"writecache", lvm_seg_writecache, NULL, false},
    {"integrity", lvm_seg_integrity, NULL, false},
    {"error", seg_word, NULL, false},
    {"zero", seg_word, NULL, false},
};

static const struct seg_type *type_of(const char *type)
{
	for (size_t i = 0; i < G_N_ELEMENTS(seg_types); i++)
		if (!strcmp(type, seg_types[i].type) ||
		    (!strcmp(seg_types[i].type, "raid") && g_str_has_prefix(type, "raid")))
			return &seg_types[i];
	return NULL;
}

/* --- volumes -------------------------------------------------------------------------------------------- */

/* The device of a volume's own segments; layer: of its name, where something is above. */
static const char *make_segments(struct lvm_ctx *c, struct vg_lv *lv, const char *layer, GError **err)
{
	g_autoptr(GString) table = g_string_new(NULL);
	g_autofree char *id = NULL, *name = NULL;
	const char *device = NULL, *shown = "lvm";
	GPtrArray *outer = lvm_begin_uses(c);
	bool writable = false;
	uint64_t at = 0;
	int r = 0;

	for (unsigned i = 0; !r && i < lv->segments->len; i++) {
		const struct lvm_item *seg = lv->segments->pdata[i];
		const char *type = lvm_string(seg, "type");
		const struct seg_type *t = type_of(type);
		g_autoptr(GString) line = g_string_new(NULL);
		uint64_t extents = 0;

		lvm_number(seg, "extent_count", &extents);
		if (!t)
			r = fail(err, ENOTSUP, "%s is of type %s, which is not supported", seg->key, type);
		else
			r = t->add(c, lv, seg, extents, line, err);
		if (r)
			break;
		g_string_append_printf(table, "%" PRIu64 " %" PRIu64 " %s\n", at, extents * c->vg->extent, line->str);
		at += extents * c->vg->extent;
		writable |= t->writable;
		layer = layer ? layer : t->layer;
		shown = t->add == seg_striped ? shown : type;
	}
	if (!r) {
		name = name_of(c, lv->name, layer);
		id = id_of(c, lv, layer);
		device = c->m->make(c->m->data, name, id, shown, table->str, at, writable, c->uses, err);
	}
	lvm_end_uses(c, outer);
	return device;
}

/* What an origin's snapshots stand on. */
static const char *real_device(struct lvm_ctx *c, struct vg_lv *origin, GError **err)
{
	const char *device = g_hash_table_lookup(c->reals, origin->name);

	if (!device) {
		device = make_segments(c, origin, "real", err);
		if (device)
			g_hash_table_insert(c->reals, origin->name, g_strdup(device));
	}
	return device;
}

/* A snapshot of an origin, whose exceptions are in the volume cow. */
static const char *make_snapshot(struct lvm_ctx *c, struct vg_lv *shown, const struct lvm_item *seg, struct vg_lv *cow,
				 bool merge, GError **err)
{
	const char *name = lvm_string(seg, "origin"), *real, *store, *device;
	struct vg_lv *origin = name ? g_hash_table_lookup(c->vg->lv_by_name, name) : NULL;
	g_autoptr(GString) line = g_string_new(merge && c->m->write ? "snapshot-merge" : "snapshot");
	GPtrArray *outer;
	uint64_t chunk;

	if (!origin || origin->why || origin == cow || lvm_number_or_0(seg, "chunk_size", UINT32_MAX, &chunk, err)) {
		fail(err, EINVAL, "%s names no origin in the group that can be", seg->key);
		return NULL;
	}
	real = real_device(c, origin, err);
	store = real ? make_segments(c, cow, "cow", err) : NULL;
	if (!store)
		return NULL;
	outer = lvm_begin_uses(c);
	lvm_add_device(c, line, real);
	lvm_add_device(c, line, store);
	g_string_append_printf(line, " P %" PRIu64, chunk);
	device = lvm_make_line(c, shown, NULL, "snapshot", line, lvm_sectors(c, origin), false, err);
	lvm_end_uses(c, outer);
	return device;
}

static const char *make_origin(struct lvm_ctx *c, struct vg_lv *lv, GError **err)
{
	const struct lvm_item *merging = g_hash_table_lookup(c->merge_into, lv->name);
	g_autoptr(GString) line = g_string_new("snapshot-origin");
	const char *real, *device;
	GPtrArray *outer;

	if (merging) {
		const char *name = lvm_string(merging, "merging_store");
		struct vg_lv *cow = name ? g_hash_table_lookup(c->vg->lv_by_name, name) : NULL;

		if (!cow || cow->why) {
			fail(err, EINVAL, "%s names no merging_store in the group that can be", merging->key);
			return NULL;
		}
		return make_snapshot(c, lv, merging, cow, true, err);
	}
	real = real_device(c, lv, err);
	if (!real)
		return NULL;
	outer = lvm_begin_uses(c);
	lvm_add_device(c, line, real);
	device = lvm_make_line(c, lv, NULL, "lvm", line, lvm_sectors(c, lv), false, err);
	lvm_end_uses(c, outer);
	return device;
}

static const char *make_volume(struct lvm_ctx *c, struct vg_lv *lv, GError **err)
{
	const struct lvm_item *cow = g_hash_table_lookup(c->cow_of, lv->name);

	if (cow)
		return make_snapshot(c, lv, cow, lv, false, err);
	if (g_hash_table_contains(c->origin_of, lv->name))
		return make_origin(c, lv, err);
	return make_segments(c, lv, NULL, err);
}

const char *lvm_device(struct lvm_ctx *c, const char *name, GError **err)
{
	struct vg_lv *lv = g_hash_table_lookup(c->vg->lv_by_name, name);
	g_autoptr(GError) why = NULL;
	const char *device = NULL;

	if (!lv) {
		fail(err, EINVAL, "there is no %s in the group", name);
		return NULL;
	}
	if (lv->state == DONE)
		return lv->device;
	if (lv->state == BUSY || c->depth == MAX_LAYERS) {
		fail(err, ELOOP, lv->state == BUSY ? "%s stands on itself" : "%s: volumes on volumes are too deep",
		     name);
		return NULL;
	}
	if (lv->state == FRESH && !lv->why) {
		lv->state = BUSY;
		c->depth++;
		device = make_volume(c, lv, &why);
		c->depth--;
		if (!device)
			lv->why = g_strdup(why ? why->message : "it cannot be made");
	}
	lv->state = device ? DONE : BAD;
	lv->device = g_strdup(device);
	if (!device)
		fail(err, EINVAL, "%s: %s", name, lv->why);
	return lv->device;
}

/* --- the group -------------------------------------------------------------------------------------------- */

static void note_snapshots(struct lvm_ctx *c)
{
	for (unsigned i = 0; i < c->vg->lvs->len; i++) {
		struct vg_lv *lv = c->vg->lvs->pdata[i];
		struct lvm_item *seg = lv->segments->len ? lv->segments->pdata[0] : NULL;
		const char *origin = seg ? lvm_string(seg, "origin") : NULL,
			   *type = seg ? lvm_string(seg, "type") : NULL;
		const char *cow = seg ? lvm_string(seg, "cow_store") : NULL,
			   *merging = seg ? lvm_string(seg, "merging_store") : NULL;

		if (!origin || g_strcmp0(type, "snapshot") || (!cow && !merging))
			continue;
		lv->state = DONE; /* a description of two others */
		lv->visible = false;
		g_hash_table_insert(c->origin_of, (gpointer)origin, seg);
		if (cow) {
			struct vg_lv *shown = g_hash_table_lookup(c->vg->lv_by_name, cow);

			g_hash_table_insert(c->cow_of, (gpointer)cow, seg);
			if (shown)
				shown->visible = true;
		} else {
			g_hash_table_insert(c->merge_into, (gpointer)origin, seg);
		}
	}
}

static bool is_of_type(const struct vg_lv *lv, const char *type)
{
	return lv->segments->len && !g_strcmp0(lvm_string(lv->segments->pdata[0], "type"), type);
}

static bool is_pool(const struct vg_lv *lv)
{
	return is_of_type(lv, "thin-pool");
}

/* Volumes that are parts of others only are made with these. */
static bool is_wanted(const struct vg_lv *lv)
{
	return lv->visible && !is_of_type(lv, "cache-pool") && !(is_of_type(lv, "snapshot") && lv->state == DONE);
}

void vg_make(struct vg *vg, const struct vg_maker *m)
{
	struct lvm_ctx c = {.vg = vg, .m = m};

	c.cow_of = g_hash_table_new(g_str_hash, g_str_equal);
	c.origin_of = g_hash_table_new(g_str_hash, g_str_equal);
	c.merge_into = g_hash_table_new(g_str_hash, g_str_equal);
	c.reals = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, g_free);
	note_snapshots(&c);
	for (unsigned i = 0; i < vg->lvs->len; i++) {
		struct vg_lv *lv = vg->lvs->pdata[i];
		g_autofree char *name = name_of(&c, lv->name, NULL), *text = NULL;
		g_autoptr(GError) err = NULL;
		const char *device;

		if (!is_wanted(lv))
			continue;
		device = lvm_device(&c, lv->name, &err);
		if (!device)
			text = g_strdup_printf("not opened: %s", lv->why ? lv->why : err->message);
		if (text)
			m->note(m->data, name, text);
		else if (!is_pool(lv))
			m->look(m->data, device);
	}
	g_hash_table_unref(c.cow_of);
	g_hash_table_unref(c.origin_of);
	g_hash_table_unref(c.merge_into);
	g_hash_table_unref(c.reals);
}
