/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * md's superblocks (md(4); the layouts are those of linux/raid/md_p.h).  Little-endian.
 *
 * 0.90, 4096 bytes, in the last whole 64 KiB but one of a device; words of 32 bits:
 *      0  magic a92b4efc         7  level            38  sum of the words, this one as 0
 *      1  0                      8  KiB of a device  39  events, low then high word
 *      2  90, or 91: reshaping   10 disks            43  synchronised up to, sectors (if not clean)
 *      5  uuid, first word       13 uuid, the rest   64  layout     65  chunk in bytes
 *     33  state: 1 clean         128  disks, 32 words each: number, major, minor, role, state (1 faulty, 2 active,
 *                                     4 in sync)     992  this one, the same
 *
 * 1.x, at the start (1.1), at 4 KiB (1.2) or 8 to 12 KiB before the end (1.0):
 *      0  magic                  72  level, s32      128  where the data begins, sectors, u64
 *      4  1                      76  layout          136  sectors of it, u64
 *      8  features               80  used sectors    144  its own place, sectors, u64
 *     16  uuid, 16 bytes             of a device     152  recovered up to (feature 2), u64
 *     32  name, 32 bytes         88  chunk, sectors  160  number of this device
 *                                92  disks           200  events, u64   208  synchronised up to, u64
 *                                                    216  checksum      220  number of roles
 *    256  roles, u16: ffff spare, fffe faulty, fffd journal
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>

#include "open.h"

#define MAGIC 0xa92b4efcu
#define SB_090_BYTES 4096u
#define MAX_DISKS_090 27u
#define MAX_DISKS 2048u
#define MAX_ROLES 4096u

enum {
	F_BITMAP = 1,
	F_RECOVERY = 2,
	F_RESHAPE = 4,
	F_BAD_BLOCKS = 8,
	F_REPLACEMENT = 16,
	F_CLUSTERED = 256,
	F_JOURNAL = 512,
	F_PPL = 1024,
	F_PPLS = 2048,
	F_RAID0_LAYOUT = 4096
};

#define KNOWN_FEATURES 0x1fffu

void md_clear(struct md_super *sb)
{
	g_free(sb->name);
	g_free(sb->active);
	sb->name = NULL;
	sb->active = NULL;
}

const char *md_level_name(int level)
{
	switch (level) {
	case -1:
		return "linear";
	case 0:
		return "raid0";
	case 1:
		return "raid1";
	case 4:
		return "raid4";
	case 5:
		return "raid5";
	case 6:
		return "raid6";
	case 10:
		return "raid10";
	default:
		return NULL;
	}
}

static int bad(GPtrArray *notes, const char *version, const char *what)
{
	g_ptr_array_add(notes, g_strdup_printf("md: the superblock of version %s is damaged: %s", version, what));
	return -EINVAL;
}

/* What both versions are checked for. */
static int check(struct md_super *sb, GPtrArray *notes)
{
	if (!md_level_name(sb->level)) {
		g_ptr_array_add(notes, g_strdup_printf("md: level %d is not supported", sb->level));
		return -EINVAL;
	}
	if (!sb->disks || sb->disks > MAX_DISKS)
		return bad(notes, sb->version, "its number of disks cannot be");
	if (sb->level != 1 && sb->level != -1 && (!sb->chunk || sb->chunk & (sb->chunk - 1)))
		return bad(notes, sb->version, "its chunk is no power of two");
	if (sb->size > INT64_MAX / 512 / MAX_DISKS || sb->data_sectors > INT64_MAX / 512 / MAX_DISKS)
		return bad(notes, sb->version, "its sizes cannot be");
	if (sb->level > 0 && sb->size > sb->data_sectors)
		return bad(notes, sb->version, "it uses more than the device has");
	return 0;
}

/* --- 0.90 ------------------------------------------------------------------------------------------ */

int64_t md_090_place(uint64_t bytes)
{
	return bytes < 2u * 65536 ? -1 : (int64_t)((bytes & ~(uint64_t)65535) - 65536);
}

static uint32_t word(const uint8_t *p, unsigned i)
{
	return get_le32(p + (size_t)4 * i);
}

uint32_t md_sum_090(const uint8_t *p)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < SB_090_BYTES / 4; i++)
		sum += i == 38 ? 0 : word(p, i);
	return (uint32_t)(sum + (sum >> 32));
}

#define STATE_BITMAP (1u << 8)		/* of the array */
#define STATE_KEPT (1u << 9 | 1u << 10) /* of a disk: write-mostly, failfast */

static int read_090(const struct src *s, struct md_super *sb, GPtrArray *notes)
{
	int64_t at = md_090_place(s->size);
	g_autofree uint8_t *p = g_malloc(SB_090_BYTES);

	if (at < 0 || src_read(s, (uint64_t)at, p, SB_090_BYTES))
		return -ENOENT;
	if (GUINT32_SWAP_LE_BE(word(p, 0)) == MAGIC && !word(p, 1)) {
		g_ptr_array_add(notes, g_strdup("md: a superblock of a big-endian machine is not supported"));
		return -EINVAL;
	}
	if (word(p, 0) != MAGIC || word(p, 1) != 0)
		return -ENOENT;
	strcpy(sb->version, "0.90");
	if (md_sum_090(p) != word(p, 38))
		return bad(notes, sb->version, "its checksum differs");
	g_snprintf(sb->id, sizeof(sb->id), "%08x:%08x:%08x:%08x", word(p, 5), word(p, 13), word(p, 14), word(p, 15));
	for (unsigned i = 0; i < 4; i++)
		memcpy(sb->uuid + (size_t)4 * i, p + (size_t)4 * (i ? 12 + i : 5), 4);
	sb->at = (uint64_t)at;
	sb->bytes = SB_090_BYTES;
	sb->number = word(p, 992);
	sb->spare = !(word(p, 992 + 4) & ~(uint32_t)STATE_KEPT);
	sb->bitmap_at = word(p, 33) & STATE_BITMAP ? sb->at + SB_090_BYTES : 0;
	sb->level = (int)word(p, 7);
	sb->layout = word(p, 64);
	sb->chunk = word(p, 65) / 512;
	sb->disks = word(p, 10);
	sb->size = (uint64_t)word(p, 8) * 2;
	sb->data_sectors = (uint64_t)at / 512;
	sb->events = word(p, 39) | (uint64_t)word(p, 40) << 32;
	sb->resync = word(p, 33) & 1 ? UINT64_MAX : word(p, 43);
	sb->recovery = UINT64_MAX;
	sb->reshape = word(p, 2) > 90;
	sb->role = word(p, 992 + 4) & 4 && !(word(p, 992 + 4) & 1) && word(p, 992 + 3) < sb->disks
		       ? (int)word(p, 992 + 3)
		       : -1;
	if (sb->number >= MAX_DISKS_090)
		return bad(notes, sb->version, "its number among the devices cannot be");
	if (sb->disks > MAX_DISKS_090)
		return bad(notes, sb->version, "its number of disks cannot be");
	sb->active = g_malloc0(MAX_DISKS_090 + 1);
	for (unsigned i = 0; i < MAX_DISKS_090; i++) {
		const uint8_t *d = p + (size_t)4 * (128 + 32 * i);

		if (word(d, 3) < sb->disks && word(d, 4) & 4 && !(word(d, 4) & 1))
			sb->active[word(d, 3)] = 1;
	}
	return check(sb, notes);
}

/* --- 1.x -------------------------------------------------------------------------------------------- */

uint32_t md_sum_1(const uint8_t *p, size_t len)
{
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i + 4 <= len; i += 4)
		sum += i == 216 ? 0 : get_le32(p + i);
	if (i + 2 <= len)
		sum += get_le16(p + i);
	return (uint32_t)((sum & 0xffffffff) + (sum >> 32));
}

static char *name_text(const uint8_t *p)
{
	size_t len = strnlen((const char *)p, 32);

	return len ? g_utf8_make_valid((const char *)p, (gssize)len) : NULL;
}

static int fill_1(const uint8_t *p, uint32_t roles, struct md_super *sb, GPtrArray *notes)
{
	uint32_t features = get_le32(p + 8), number = get_le32(p + 160);
	uint16_t role;

	g_snprintf(sb->id, sizeof(sb->id), "%08x:%08x:%08x:%08x", get_be32(p + 16), get_be32(p + 20), get_be32(p + 24),
		   get_be32(p + 28));
	memcpy(sb->uuid, p + 16, 16);
	sb->number = number;
	sb->name = name_text(p + 32);
	sb->level = (int)get_le32(p + 72);
	sb->layout = get_le32(p + 76);
	sb->size = get_le64(p + 80);
	sb->chunk = get_le32(p + 88);
	sb->disks = get_le32(p + 92);
	sb->data_offset = get_le64(p + 128);
	sb->data_sectors = get_le64(p + 136);
	sb->events = get_le64(p + 200);
	sb->resync = get_le64(p + 208);
	sb->recovery = features & F_RECOVERY ? get_le64(p + 152) : UINT64_MAX;
	sb->only_md = features & (F_PPL | F_PPLS) ? "it has a partial parity log"
		      : features & F_JOURNAL	  ? "it has a journal"
		      : features & F_CLUSTERED	  ? "it is a cluster's"
		      : features & F_BAD_BLOCKS	  ? "it has a list of bad blocks"
						  : NULL;
	sb->reshape = features & F_RESHAPE;
	sb->journal = features & F_JOURNAL;
	if (features & ~KNOWN_FEATURES)
		return bad(notes, sb->version, "it has features that are not known");
	if (sb->level == 0 && !(features & F_RAID0_LAYOUT))
		sb->layout = 0;
	if (number >= roles || !sb->disks || sb->disks > MAX_DISKS)
		return bad(notes, sb->version, "its number among the devices cannot be");
	role = get_le16(p + 256 + 2 * (size_t)number);
	sb->role = role < sb->disks && !(features & F_REPLACEMENT) ? role : -1;
	sb->spare = role == MD_ROLE_SPARE;
	sb->active = g_malloc0(sb->disks);
	for (uint32_t i = 0; i < roles; i++) {
		role = get_le16(p + 256 + 2 * (size_t)i);
		if (role < sb->disks)
			sb->active[role] = 1;
	}
	return check(sb, notes);
}

static int read_1(const struct src *s, const char *version, uint64_t at, struct md_super *sb, GPtrArray *notes)
{
	g_autofree uint8_t *p = g_malloc(256 + 2 * MAX_ROLES);
	uint32_t roles;
	uint64_t end;

	if (src_read(s, at, p, 256) || get_le32(p) != MAGIC || get_le32(p + 4) != 1 || get_le64(p + 144) != at / 512)
		return -ENOENT;
	strcpy(sb->version, version);
	sb->at = at;
	roles = get_le32(p + 220);
	sb->bytes = 256 + 2 * (size_t)roles;
	if (roles > MAX_ROLES || src_read(s, at + 256, p + 256, 2 * (size_t)roles))
		return bad(notes, version, "its number of roles cannot be");
	if (md_sum_1(p, 256 + 2 * (size_t)roles) != get_le32(p + 216))
		return bad(notes, version, "its checksum differs");
	if (__builtin_add_overflow(get_le64(p + 128), get_le64(p + 136), &end) || end > s->size / 512)
		return bad(notes, version, "its data is not on the device");
	if (get_le32(p + 8) & F_BITMAP) {
		int64_t bitmap = (int64_t)at / 512 + (int32_t)get_le32(p + 96);

		if (bitmap <= 0 || (uint64_t)bitmap >= s->size / 512)
			return bad(notes, version, "its bitmap is not on the device");
		sb->bitmap_at = (uint64_t)bitmap * 512;
	}
	return fill_1(p, roles, sb, notes);
}

int md_read(const struct src *s, struct md_super *sb, GPtrArray *notes)
{
	static const char *const versions[] = {"1.1", "1.2", "1.0"};
	uint64_t sectors = s->size / 512;
	uint64_t places[] = {0, 4096, sectors < 24 ? UINT64_MAX : ((sectors - 16) & ~(uint64_t)7) * 512};
	int r;

	for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
		*sb = (struct md_super){0};
		r = read_1(s, versions[i], places[i], sb, notes);
		if (r != -ENOENT)
			return r;
	}
	*sb = (struct md_super){0};
	return read_090(s, sb, notes);
}
