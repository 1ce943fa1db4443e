/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the text of a volume group says, checked: ids, physical volumes, and of each logical volume its segments, which
 * must follow each other without gaps.  A volume that is wrong in itself gets a why, and the others stand.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "open.h"

#define MAX_EXTENTS ((uint64_t)1 << 50)

static void pv_free(gpointer p)
{
	struct vg_pv *pv = p;

	g_free(pv->key);
	g_free(pv->id);
	g_free(pv);
}

static void lv_free(gpointer p)
{
	struct vg_lv *lv = p;

	g_free(lv->name);
	g_free(lv->id);
	g_free(lv->why);
	g_free(lv->device);
	g_ptr_array_unref(lv->segments);
	g_free(lv);
}

void vg_free(struct vg *vg)
{
	if (!vg)
		return;
	g_hash_table_unref(vg->pv_by_key);
	g_hash_table_unref(vg->lv_by_name);
	g_ptr_array_unref(vg->pvs);
	g_ptr_array_unref(vg->lvs);
	lvm_item_free(vg->text);
	g_free(vg->name);
	g_free(vg->id);
	g_free(vg);
}

static bool is_name(const char *s)
{
	size_t len = strlen(s);

	return len && len <= 127 && *s != '-' && strcmp(s, ".") && strcmp(s, "..") && strspn(s, "abcdefghijklmnopqrstuvwxyz"
		"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-") == len;
}

static bool is_id(const char *s)
{
	return s && strlen(s) == LVM_ID && strspn(s, "abcdefghijklmnopqrstuvwxyz"
		"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#-") == LVM_ID;
}

static void add_pv(struct vg *vg, const struct lvm_item *text, GPtrArray *notes)
{
	const char *id = lvm_string(text, "id");
	struct vg_pv *pv;
	uint64_t end;

	if (!text->items)
		return;
	pv = g_new0(struct vg_pv, 1);
	if (!is_id(id) || lvm_number(text, "pe_start", &pv->pe_start) || lvm_number(text, "pe_count", &pv->pe_count) ||
	    pv->pe_count > MAX_EXTENTS || __builtin_mul_overflow(pv->pe_count, vg->extent, &end) ||
	    __builtin_add_overflow(end, pv->pe_start, &end) || end > INT64_MAX / 512 ||
	    g_hash_table_contains(vg->pv_by_key, text->key)) {
		g_ptr_array_add(notes, g_strdup_printf("LVM: %s: the physical volume %s is described wrongly", vg->name, text->key));
		g_free(pv);
		return;
	}
	if (lvm_number(text, "dev_size", &pv->sectors))
		pv->sectors = end;
	pv->key = g_strdup(text->key);
	pv->id = g_strdup(id);
	g_ptr_array_add(vg->pvs, pv);
	g_hash_table_insert(vg->pv_by_key, pv->key, pv);
}

static int by_start(gconstpointer a, gconstpointer b)
{
	uint64_t x = 0, y = 0;

	lvm_number(*(const struct lvm_item *const *)a, "start_extent", &x);
	lvm_number(*(const struct lvm_item *const *)b, "start_extent", &y);
	return x < y ? -1 : x > y;
}

/*
 * "cache+CACHE_USES_CACHEVOL": what is behind the + keeps old versions of LVM away, and says nothing that is not said.
 */
static void drop_flags(const struct lvm_item *seg)
{
	const char *type = lvm_string(seg, "type");

	if (type)
		((char *)type)[strcspn(type, "+")] = 0;
}

/* The segments in order; what is wrong with them; or NULL. */
static char *check_segments(struct vg_lv *lv)
{
	uint64_t at = 0;

	for (unsigned i = 0; i < lv->text->items->len; i++) {
		struct lvm_item *item = lv->text->items->pdata[i];

		if (!item->items || !g_str_has_prefix(item->key, "segment"))
			continue;
		drop_flags(item);
		g_ptr_array_add(lv->segments, item);
	}
	g_ptr_array_sort(lv->segments, by_start);
	for (unsigned i = 0; i < lv->segments->len; i++) {
		const struct lvm_item *seg = lv->segments->pdata[i];
		uint64_t start, count;

		if (lvm_number(seg, "start_extent", &start) || lvm_number(seg, "extent_count", &count) || !count ||
		    count > MAX_EXTENTS || !lvm_string(seg, "type"))
			return g_strdup_printf("%s is described wrongly", seg->key);
		if (start != at)
			return g_strdup_printf("%s begins at extent %" PRIu64 ", not at %" PRIu64, seg->key, start, at);
		at += count;
		if (at > MAX_EXTENTS)
			return g_strdup("it is too long");
	}
	lv->extents = at;
	return at ? NULL : g_strdup("it has no segments");
}

static void add_lv(struct vg *vg, const struct lvm_item *text, GPtrArray *notes)
{
	const char *id = lvm_string(text, "id");
	struct vg_lv *lv;
	uint64_t sectors;

	if (!text->items)
		return;
	if (!is_name(text->key) || !is_id(id) || g_hash_table_contains(vg->lv_by_name, text->key)) {
		g_ptr_array_add(notes, g_strdup_printf("LVM: %s: a logical volume named '%s' is described wrongly", vg->name,
						       text->key));
		return;
	}
	lv = g_new0(struct vg_lv, 1);
	lv->name = g_strdup(text->key);
	lv->id = g_strdup(id);
	lv->text = text;
	lv->segments = g_ptr_array_new();
	lv->visible = lvm_has_word(text, "status", "VISIBLE");
	lv->why = check_segments(lv);
	if (!lv->why && (__builtin_mul_overflow(lv->extents, vg->extent, &sectors) || sectors > INT64_MAX / 512))
		lv->why = g_strdup("it is too long");
	g_ptr_array_add(vg->lvs, lv);
	g_hash_table_insert(vg->lv_by_name, lv->name, lv);
}

/* The one section of the root. */
static const struct lvm_item *group_of(const struct lvm_item *root)
{
	for (unsigned i = 0; i < root->items->len; i++) {
		const struct lvm_item *item = root->items->pdata[i];

		if (item->items)
			return item;
	}
	return NULL;
}

static int check_group(const struct lvm_item *text, struct vg *vg, GError **err)
{
	const char *format = lvm_string(text, "format");

	if (!is_name(text->key) || !is_id(lvm_string(text, "id")))
		return fail(err, EINVAL, "the group's name or id cannot be");
	if (format && strcmp(format, "lvm2"))
		return fail(err, EINVAL, "the format is '%s', lvm2 is known", format);
	if (lvm_number(text, "seqno", &vg->seqno) || lvm_number(text, "extent_size", &vg->extent) || !vg->extent ||
	    vg->extent > UINT32_MAX)
		return fail(err, EINVAL, "the group has no number or extent size that can be");
	vg->name = g_strdup(text->key);
	vg->id = g_strdup(lvm_string(text, "id"));
	return 0;
}

struct vg *vg_parse(const char *text, size_t len, GPtrArray *notes, GError **err)
{
	struct vg *vg = g_new0(struct vg, 1);
	const struct lvm_item *group, *section;

	vg->pvs = g_ptr_array_new_with_free_func(pv_free);
	vg->lvs = g_ptr_array_new_with_free_func(lv_free);
	vg->pv_by_key = g_hash_table_new(g_str_hash, g_str_equal);
	vg->lv_by_name = g_hash_table_new(g_str_hash, g_str_equal);
	vg->text = lvm_text_parse(text, len, err);
	group = vg->text ? group_of(vg->text) : NULL;
	if (vg->text && !group)
		fail(err, EINVAL, "the metadata has no group");
	if (!group || check_group(group, vg, err)) {
		vg_free(vg);
		return NULL;
	}
	section = lvm_section(group, "physical_volumes");
	for (unsigned i = 0; section && i < section->items->len; i++)
		add_pv(vg, section->items->pdata[i], notes);
	section = lvm_section(group, "logical_volumes");
	for (unsigned i = 0; section && i < section->items->len; i++)
		add_lv(vg, section->items->pdata[i], notes);
	return vg;
}
