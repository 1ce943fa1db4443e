/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which thing is in a device.
 *
 * First what says that the rest is a part of something larger (md's and LVM's superblocks), then what libblkid knows,
 * then partition tables, since a file system's first sector may look like one.
 */
#include <blkid/blkid.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../common/tree.h"
#include "open.h"

#define MAX_DEPTH 64u /* of things on things */

/* --- partitions ------------------------------------------------------------------------------------- */

static int by_number(gconstpointer a, gconstpointer b)
{
	const struct part *x = a, *y = b;

	return x->nr < y->nr ? -1 : x->nr > y->nr;
}

static void open_part(struct plan *p, struct node *disk, struct part *part)
{
	g_autofree char *name = g_strdup_printf("%s-part%u", disk->name, part->nr), *word = tree_quote(disk->name);
	struct node *n = node_new(p, NODE_PART, "part", name);
	g_autofree char *id = g_strconcat("PART-", part->uuid ? part->uuid : "", NULL);

	node_stand_on(n, disk);
	n->sectors = part->sectors;
	n->at_start = !part->start;
	n->part_type = g_strdup(part->type);
	n->part_uuid = g_strdup(part->uuid);
	n->part_label = g_strdup(part->name);
	n->table = g_strdup_printf("0 %" PRIu64 " linear %s %" PRIu64 "\n", part->sectors, word, part->start);
	node_make(p, n, id, !p->o->write);
}

static void say_notes(struct plan *p, struct node *n, GPtrArray *notes)
{
	for (unsigned i = 0; i < notes->len; i++)
		node_note(p, n, "%s", (char *)notes->pdata[i]);
}

/* Tables that only libblkid reads: Apple's, Sun's, SGI's, BSD's, ... */
static void other_table(const struct src *s, GArray *parts, GPtrArray *notes, char **type)
{
	blkid_probe pr = blkid_new_probe();
	blkid_partlist list;

	if (pr && !blkid_probe_set_device(pr, s->fd, 0, 0) && (list = blkid_probe_get_partitions(pr))) {
		blkid_parttable table = blkid_partlist_get_table(list);

		for (int i = 0; i < blkid_partlist_numof_partitions(list); i++) {
			blkid_partition part = blkid_partlist_get_partition(list, i);
			struct part found = {.nr = (unsigned)blkid_partition_get_partno(part)};

			if (blkid_partition_is_extended(part) || blkid_partition_get_partno(part) <= 0)
				continue;
			found.start = (uint64_t)blkid_partition_get_start(part);
			found.sectors = (uint64_t)blkid_partition_get_size(part);
			found.type = g_strdup(blkid_partition_get_type_string(part));
			found.uuid = g_strdup(blkid_partition_get_uuid(part));
			found.name = g_strdup(blkid_partition_get_name(part));
			part_add(parts, notes, s, found);
		}
		*type = g_strdup(table ? blkid_parttable_get_type(table) : NULL);
	}
	if (pr)
		blkid_free_probe(pr);
}

/* What a table says; what: gpt, dos or another; NULL: there is none. */
static GArray *partitions(const struct src *s, GPtrArray *notes, bool others, char **what)
{
	GArray *parts = part_array();

	if (!gpt_read(s, parts, notes)) {
		*what = g_strdup("gpt");
	} else if (!mbr_read(s, parts, notes)) {
		*what = g_strdup("dos");
	} else if (others) {
		other_table(s, parts, notes, what);
	}
	g_array_sort(parts, by_number);
	return parts;
}

/* --- md and LVM --------------------------------------------------------------------------------------- */

/* A superblock of version 0.90 at a disk's end may be its last partition's. */
static bool is_of_a_partition(const struct src *s, const struct md_super *md)
{
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
	g_autofree char *what = NULL;
	g_autoptr(GArray) parts = NULL;

	if (strcmp(md->version, "0.90") && strcmp(md->version, "1.0"))
		return false;
	parts = partitions(s, notes, false, &what);
	for (unsigned i = 0; i < parts->len; i++) {
		const struct part *part = &g_array_index(parts, struct part, i);
		int64_t place = md_090_place(part->sectors * 512);

		if (!strcmp(md->version, "1.0"))
			place = part->sectors < 24 ? -1 : (int64_t)(((part->sectors - 16) & ~(uint64_t)7) * 512);
		if (place >= 0 && part->start * 512 + (uint64_t)place == md->at)
			return true;
	}
	return false;
}

static bool probe_md(struct plan *p, struct node *n, const struct src *s, GPtrArray *notes)
{
	struct md_super md;
	int r = md_read(s, &md, notes);

	if (!r && !is_of_a_partition(s, &md)) {
		n->md = g_memdup2(&md, sizeof(md));
		n->fstype = g_strdup("linux_raid_member");
		n->uuid = g_strdup(md.id);
		n->label = g_strdup(md.name);
		return true;
	}
	md_clear(&md);
	return r == -EINVAL && md.version[0] && strcmp(md.version, "0.90");
}

static bool probe_lvm(struct plan *p, struct node *n, const struct src *s, GPtrArray *notes)
{
	struct lvm_pv pv;
	int r = lvm_pv_read(s, &pv, notes);

	if (r) {
		lvm_pv_clear(&pv);
		return r != -ENOENT;
	}
	n->pv = g_memdup2(&pv, sizeof(pv));
	n->fstype = g_strdup("LVM2_member");
	n->uuid = g_strdup(pv.id);
	return true;
}

/* --- libblkid -------------------------------------------------------------------------------------------- */

static char *value(blkid_probe pr, const char *name)
{
	const char *data;

	return blkid_probe_lookup_value(pr, name, &data, NULL) ? NULL : g_utf8_make_valid(data, -1);
}

static void probe_blkid(struct node *n, const struct src *s)
{
	blkid_probe pr = blkid_new_probe();
	g_autofree char *usage = NULL;

	if (!pr)
		return;
	if (!blkid_probe_set_device(pr, s->fd, 0, 0)) {
		blkid_probe_enable_superblocks(pr, 1);
		blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL | BLKID_SUBLKS_UUID |
							      BLKID_SUBLKS_USAGE | BLKID_SUBLKS_VERSION);
		if (!blkid_do_safeprobe(pr)) {
			n->fstype = value(pr, "TYPE");
			n->label = value(pr, "LABEL");
			n->uuid = value(pr, "UUID");
			usage = value(pr, "USAGE");
			n->swap_or_fs = usage && !strcmp(usage, "filesystem");
		}
	}
	blkid_free_probe(pr);
}

/* --- all together ------------------------------------------------------------------------------------------ */

static const struct {
	const char *type, *why;
} refused[] = {
	{"LVM1_member", "LVM1's format is not supported: vgconvert makes it LVM2's"},
	{"isw_raid_member", "Intel's RAID metadata is not supported"},
	{"ddf_raid_member", "DDF RAID metadata is not supported"},
	{"nvidia_raid_member", "NVIDIA's RAID metadata is not supported"},
	{"bcache", "bcache is not supported"},
	{"zfs_member", "ZFS is not a matter of devices"},
	{"drbd", "DRBD is not supported: what it holds begins at the device's start"},
	{"DM_snapshot_cow", "a snapshot's exceptions: what they belong to is not said here"},
	{"vdo", "VDO is not supported"},
	{"VMFS_volume_member", "VMFS is not supported"},
	{"stratis", "Stratis is not supported"},
	{"LVM2_member", NULL},
};

static void note_refused(struct plan *p, struct node *n)
{
	for (size_t i = 0; n->fstype && i < G_N_ELEMENTS(refused); i++)
		if (!strcmp(n->fstype, refused[i].type) && refused[i].why)
			node_note(p, n, "%s", refused[i].why);
}

static bool is_type(const struct node *n, const char *type)
{
	return n->fstype && !strcmp(n->fstype, type);
}

static bool probe_small(struct plan *p, struct node *n, const struct src *s, GPtrArray *notes)
{
	struct integrity_sb integrity;
	struct verity_sb verity;

	if (is_type(n, "crypto_LUKS") || is_type(n, "BitLocker")) {
		crypt_open(p, n, n->fstype, n->uuid);
		return true;
	}
	if (!verity_read(s, &verity, notes)) {
		n->verity = g_memdup2(&verity, sizeof(verity));
		g_free(n->fstype);
		g_free(n->uuid);
		n->fstype = g_strdup("DM_verity_hash");
		n->uuid = g_strdup(verity.uuid);
		return true;
	}
	if (!integrity_read(s, &integrity, notes)) {
		g_free(n->fstype);
		n->fstype = g_strdup("DM_integrity");
		integrity_open(p, n, &integrity);
		return true;
	}
	return false;
}

static void probe_table(struct plan *p, struct node *n, const struct src *s, GPtrArray *notes)
{
	g_autofree char *what = NULL;
	g_autoptr(GArray) parts = partitions(s, notes, !n->fstype, &what);

	if (!what)
		return;
	if (!n->fstype)
		n->fstype = g_strdup(what);
	for (unsigned i = 0; i < parts->len; i++)
		open_part(p, n, &g_array_index(parts, struct part, i));
}

void probe(struct plan *p, struct node *n)
{
	g_autofree char *path = node_image(p, n), *backing = NULL;
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GError) err = NULL;
	const char *container;
	struct src s;

	n->probed = true;
	if (n->depth > MAX_DEPTH) {
		node_note(p, n, "not looked into: it is %u deep", n->depth);
		p->failed = true;
		return;
	}
	if (src_open(path, &s, &err)) {
		node_note(p, n, "%s", err->message);
		return;
	}
	container = container_kind(&s, &backing);
	if (container) {
		n->fstype = g_strdup(container);
		container_open(p, n, container, backing);
	} else if (!probe_md(p, n, &s, notes) && !probe_lvm(p, n, &s, notes)) {
		probe_blkid(n, &s);
		note_refused(p, n);
		/* an image of a CD may have partitions, too */
		if (!probe_small(p, n, &s, notes) && !n->at_start && (!n->fstype || is_type(n, "iso9660")))
			probe_table(p, n, &s, notes);
	}
	say_notes(p, n, notes);
	src_close(&s);
}
