/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Verity: a superblock says nothing of where the data is, nor what to trust.
 *
 * The root hash is named with --root-hash, or it is in the numbers of two partitions of one disk, as the Discoverable
 * Partitions Specification has it: the data's number is the first half, the hashes' the second.  What the data is on is
 * tried: its first block must be what the hashes say.  dmfs-verity makes the device.
 *
 * Superblock, little-endian: 0 "verity\0\0", 8 version 1, 12 type, 16 uuid, 32 hash's name, 64 data block's bytes,
 * 68 hash block's, 72 number of data blocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/le.h>

#include "../common/client.h"
#include "open.h"

int verity_read(const struct src *s, struct verity_sb *sb, GPtrArray *notes)
{
	uint8_t p[512];
	char *to = sb->uuid;

	*sb = (struct verity_sb){0};
	if (src_read(s, 0, p, sizeof(p)) || memcmp(p, "verity\0", 8))
		return -ENOENT;
	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*to++ = '-';
		g_snprintf(to, 3, "%02x", p[16 + i]);
		to += 2;
	}
	memcpy(sb->hash, p + 32, 31);
	sb->data_block = get_le32(p + 64);
	sb->hash_block = get_le32(p + 68);
	sb->data_blocks = get_le64(p + 72);
	if (get_le32(p + 8) != 1 || sb->data_block < 512 || sb->data_block > 65536 || sb->data_block & (sb->data_block - 1) ||
	    !sb->data_blocks || sb->data_blocks > INT64_MAX / sb->data_block) {
		g_ptr_array_add(notes, g_strdup("verity: the superblock is damaged"));
		return -EINVAL;
	}
	return 0;
}

/* --- root hashes ------------------------------------------------------------------------------------- */

static char *named_root(const struct plan *p, const struct node *n)
{
	for (char **root = p->o->root_hashes; root && *root; root++) {
		const char *equal = strchr(*root, '=');
		g_autofree char *of = equal ? g_strndup(*root, (gsize)(equal - *root)) : NULL;

		if (!of || !g_ascii_strcasecmp(of, n->verity->uuid) || !strcmp(of, n->name))
			return g_ascii_strdown(equal ? equal + 1 : *root, -1);
	}
	return NULL;
}

static char *without_dashes(const char *uuid)
{
	g_auto(GStrv) parts = g_strsplit(uuid, "-", -1);

	return g_strjoinv("", parts);
}

static bool is_sibling(const struct node *a, const struct node *b)
{
	return a->kind == NODE_PART && b->kind == NODE_PART && a->part_uuid && b->part_uuid &&
	       a->parents->pdata[0] == b->parents->pdata[0];
}

/* What two partitions' numbers make. */
static char *halves(const struct node *data, const struct node *hashes)
{
	g_autofree char *first = without_dashes(data->part_uuid), *second = without_dashes(hashes->part_uuid);

	return strlen(first) == 32 && strlen(second) == 32 ? g_strconcat(first, second, NULL) : NULL;
}

/* --- trying ---------------------------------------------------------------------------------------------- */

static bool first_block_reads(struct plan *p, const char *name, unsigned bytes)
{
	g_autofree char *path = g_build_filename(p->mount, name, "image", NULL);
	g_autofree uint8_t *block = g_malloc(bytes);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool ok = fd >= 0 && pread(fd, block, bytes, 0) == (ssize_t)bytes;

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool try(struct plan *p, struct node *hashes, struct node *data, const char *root, const char *name)
{
	g_autofree char *program = run_find("dmfs-verity"), *on = node_image(p, data), *tree = node_image(p, hashes);
	g_autofree char *why = NULL;
	char *argv[] = {program, (char *)"-m", p->mount, (char *)"open", on, (char *)name, tree, (char *)root, NULL};

	if (!program || run(argv, true, NULL, &why))
		return false;
	if (first_block_reads(p, name, hashes->verity->data_block))
		return true;
	client_remove(p->mount, name, NULL);
	return false;
}

static bool fits(const struct node *n, const struct node *hashes)
{
	return n != hashes && n->open && n->sectors >= hashes->verity->data_blocks * (hashes->verity->data_block / 512) &&
	       n->kind != NODE_VERITY && !n->md && !n->pv;
}

static bool open_one(struct plan *p, struct node *hashes)
{
	g_autofree char *given = named_root(p, hashes), *wanted = NULL, *name = NULL;
	unsigned nr = p->nodes->len;

	for (unsigned i = 0; i < nr; i++) {
		struct node *data = p->nodes->pdata[i], *n;
		g_autofree char *root = given ? g_strdup(given) : NULL;

		if (!fits(data, hashes))
			continue;
		if (!root && is_sibling(data, hashes))
			root = halves(data, hashes);
		if (!root)
			continue;
		if (!name) {
			wanted = g_strconcat(hashes->name, "-verity", NULL);
			name = plan_name(p, wanted);
		}
		if (!try(p, hashes, data, root, name))
			continue;
		g_hash_table_remove(p->names, name);
		n = node_new(p, NODE_VERITY, "verity", "-");
		g_free(n->name);
		n->name = g_strdup(name);
		g_hash_table_add(p->names, g_strdup(name));
		node_stand_on(n, data);
		data->swap_or_fs = false; /* it is looked at through this */
		node_stand_on(n, hashes);
		n->sectors = hashes->verity->data_blocks * (hashes->verity->data_block / 512);
		n->open = n->readonly = true;
		n->command = g_strdup_printf("dmfs-verity open \"$DMFS_MOUNT\"/%s/image %s \"$DMFS_MOUNT\"/%s/image %s", data->name,
					     n->name, hashes->name, root);
		return true;
	}
	return false;
}

void plan_verity(struct plan *p, bool *progress)
{
	unsigned nr = p->nodes->len;

	for (unsigned i = 0; i < nr; i++) {
		struct node *n = p->nodes->pdata[i];

		if (!n->verity || n->taken)
			continue;
		n->taken = true;
		if (open_one(p, n))
			*progress = true;
		else
			node_note(p, n, "verity: no data that fits to these hashes (--root-hash says what to trust)");
	}
}
