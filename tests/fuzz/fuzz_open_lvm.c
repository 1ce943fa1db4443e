/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-open reading what should be LVM2's: an input that begins with a zero byte is a disk, else it is the metadata's
 * text, of which tables are made.
 */
#include "fuzz_open.h"

#include "../../tools/dmfs-open/lvm_cache.c"
#include "../../tools/dmfs-open/lvm_disk.c"
#include "../../tools/dmfs-open/lvm_table.c"
#include "../../tools/dmfs-open/lvm_text.c"
#include "../../tools/dmfs-open/lvm_vg.c"
#include "../../tools/dmfs-open/src.c"

char *tree_quote(const char *word)
{
	return g_strdup(word);
}

static GPtrArray *made;

static const char *make(void *data, const char *name, const char *id, const char *type, const char *table, uint64_t sectors,
			bool writable, const GPtrArray *uses, GError **err)
{
	uint64_t at = 0;

	for (const char *line = table; *line; line = strchr(line, '\n') + 1) {
		char *rest;
		uint64_t start = strtoull(line, &rest, 10), len = strtoull(rest, NULL, 10);

		if (start != at || !len)
			abort();
		at += len;
	}
	if (at != sectors || sectors > INT64_MAX / 512)
		abort();
	for (unsigned i = 0; i < uses->len; i++)
		if (!uses->pdata[i])
			abort();
	g_ptr_array_add(made, g_strdup(name));
	return made->pdata[made->len - 1];
}

static const char *overlay(void *data, const char *device, uint64_t sectors, GError **err)
{
	return device;
}

static void note(void *data, const char *device, const char *text)
{
}

static void look(void *data, const char *device)
{
	if (!device)
		abort();
}

static void read_text(const char *text, size_t len, bool write)
{
	const struct vg_maker m = {make, overlay, note, look, write, NULL};
	g_autoptr(GPtrArray) notes = fuzz_notes();
	g_autoptr(GError) err = NULL;
	struct vg *vg = vg_parse(text, len, notes, &err);

	if (!vg) {
		if (!err)
			abort();
		return;
	}
	for (unsigned i = 0; i < vg->pvs->len; i++) {
		struct vg_pv *pv = vg->pvs->pdata[i];

		if (i % 3 != 2)
			pv->device = pv->key;
		pv->have = pv->pe_start + pv->pe_count * vg->extent;
	}
	made = g_ptr_array_new_with_free_func(g_free);
	vg_make(vg, &m);
	g_ptr_array_unref(made);
	vg_free(vg);
}

static void read_disk(uint8_t *disk, size_t size)
{
	g_autoptr(GPtrArray) notes = fuzz_notes();
	struct src s = fuzz_src(disk, size);
	struct lvm_pv pv;

	if (size >= 1024)
		put_le32(disk + 512 + 16, lvm_crc(disk + 512 + 20, 512 - 20));
	for (size_t at = 1024; at + 512 <= size && at < 8192; at += 512)
		if (!memcmp(disk + at + 4, mda_magic, 16))
			put_le32(disk + at, lvm_crc(disk + at + 4, 508));
	if (!lvm_pv_read(&s, &pv, notes) && pv.text)
		read_text(pv.text, pv.len, false);
	lvm_pv_clear(&pv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree uint8_t *copy = g_malloc(size + 1);

	memcpy(copy, data, size);
	copy[size] = 0;
	if (size && !*data) {
		read_disk(copy, size);
	} else if (size <= 65536) {
		read_text((char *)copy, size, false);
		read_text((char *)copy, size, true);
	}
	return 0;
}
