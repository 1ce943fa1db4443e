/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices that integritysetup made.  The superblock does not say which checksum there is: a tag of 4 bytes is crc32c, as
 * integritysetup's own default, and --integrity names another.
 *
 * Superblock, little-endian: 0 "integrt\0", 8 version, 9 log2 of the interleave, 10 bytes of a tag (u16), 12 sections of the
 * journal, 16 sectors of data (u64), 24 flags (1: the journal has a MAC), 28 log2 of a block in sectors.
 *
 * Without -w a journal cannot be replayed: if it holds something, the device is opened in recovery mode, in which what it
 * holds is not there, and no checksum is compared.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>

#include "../common/tree.h"
#include "open.h"

#define FLAG_JOURNAL_MAC 1u

int integrity_read(const struct src *s, struct integrity_sb *sb, GPtrArray *notes)
{
	uint8_t p[512];

	*sb = (struct integrity_sb){0};
	if (src_read(s, 0, p, sizeof(p)) || memcmp(p, "integrt\0", 8))
		return -ENOENT;
	*sb = (struct integrity_sb){.version = p[8],
				    .log2_interleave = p[9],
				    .tag = get_le16(p + 10),
				    .sectors = get_le64(p + 16),
				    .flags = get_le32(p + 24),
				    .log2_block = p[28]};
	if (!sb->version || sb->version > 5 || !sb->tag || sb->tag > 256 || sb->log2_block > 3 || !sb->sectors ||
	    sb->sectors > s->size / 512) {
		g_ptr_array_add(notes, g_strdup("integrity: the superblock is damaged"));
		return -EINVAL;
	}
	return 0;
}

char *integrity_table(const struct integrity_sb *sb, const char *device, const char *hash, char mode)
{
	g_autofree char *word = tree_quote(device);

	return g_strdup_printf("0 %" PRIu64 " integrity %s 0 %u %c 2 internal_hash:%s block_size:%u\n", sb->sectors, word, sb->tag,
			       mode, hash, 512u << sb->log2_block);
}

void integrity_open(struct plan *p, struct node *n, const struct integrity_sb *sb)
{
	const char *hash = p->o->integrity ? p->o->integrity : sb->tag == 4 ? "crc32c" : NULL;
	g_autofree char *wanted = g_strconcat(n->name, "-integrity", NULL);
	g_autoptr(GError) err = NULL;
	struct node *c;

	if (!hash || sb->flags & FLAG_JOURNAL_MAC) {
		node_note(p, n, hash ? "integrity: its journal has a key" :
				       "integrity: its tags have %u bytes, and --integrity does not name the checksum", sb->tag);
		p->failed = true;
		return;
	}
	c = node_new(p, NODE_INTEGRITY, "integrity", wanted);
	node_stand_on(c, n);
	c->sectors = sb->sectors;
	c->table = integrity_table(sb, n->name, hash, 'J');
	if (p->o->write && !n->readonly) {
		node_make(p, c, "INTEGRITY", false);
	} else if (node_try(p, c, "INTEGRITY", true, &err)) {
		node_note(p, c, "opened without checks, and without what is in its journal: %s", err->message);
		g_free(c->table);
		c->table = integrity_table(sb, n->name, hash, 'R');
		node_make(p, c, "INTEGRITY", true);
	}
}
