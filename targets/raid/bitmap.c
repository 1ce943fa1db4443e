/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The write-intent bitmap's format and bits (bitmap.h). */
#include "bitmap.h"

#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>
#include <dmfs/rounding.h>
#include <dmfs/target.h>

#define MAGIC 0x6d746962u /* "bitm" */
#define VERSION 4u
#define OLDEST_VERSION 3u
#define MAX_SLEEP_S (1u << 20)
#define MAX_WRITE_BEHIND 16383u

size_t raid_bitmap_bytes(uint64_t sectors, uint64_t region_sectors)
{
	return dm_round_up(RAID_BITMAP_HEAD + dm_div_up(dm_div_up(sectors, region_sectors), 8), 512);
}

struct raid_bitmap *raid_bitmap_new(uint64_t sectors, uint64_t region_sectors)
{
	struct raid_bitmap *b = g_new0(struct raid_bitmap, 1);

	b->sectors = sectors;
	b->shift = dm_log2(region_sectors);
	b->regions = dm_div_up(sectors, region_sectors);
	b->words = g_malloc(b->regions * sizeof *b->words);
	for (uint64_t r = 0; r < b->regions; r++)
		atomic_init(&b->words[r], RAID_REGION_DURABLE | RAID_REGION_NEEDED);
	b->bytes = raid_bitmap_bytes(sectors, region_sectors);
	b->image = g_malloc(b->bytes);
	memset(b->image, 0xff, b->bytes);
	memset(b->image, 0, RAID_BITMAP_HEAD);
	b->stale = g_malloc(b->bytes / 512);
	memset(b->stale, 1, b->bytes / 512);
	return b;
}

void raid_bitmap_free(struct raid_bitmap *b)
{
	if (!b)
		return;
	g_free(b->words);
	g_free(b->image);
	g_free(b->stale);
	g_free(b);
}

void raid_bitmap_put_head(struct raid_bitmap *b, const struct raid_bitmap_head *head)
{
	memset(b->image, 0, RAID_BITMAP_HEAD);
	put_le32(b->image, MAGIC);
	put_le32(b->image + 4, VERSION);
	put_le64(b->image + 24, head->events);
	put_le64(b->image + 32, head->events_cleared);
	put_le64(b->image + 40, head->sectors);
	put_le32(b->image + 52, head->region_bytes);
	put_le32(b->image + 56, head->daemon_sleep_s);
	put_le32(b->image + 60, head->write_behind);
	b->stale[0] = 1;
}

int raid_bitmap_get_head(const uint8_t *image, size_t len, struct raid_bitmap_head *head, GError **err)
{
	uint32_t version;
	uint64_t regions;

	*head = (struct raid_bitmap_head){0};
	if (len < RAID_BITMAP_HEAD)
		return dm_fail(err, EINVAL, "raid: invalid bitmap file superblock: cut short, %zu bytes", len);
	if (get_le32(image) != MAGIC)
		return dm_fail(err, EINVAL, "raid: invalid bitmap file superblock: bad magic 0x%08x", get_le32(image));
	version = get_le32(image + 4);
	if (version < OLDEST_VERSION || version > VERSION)
		return dm_fail(err, EINVAL, "raid: invalid bitmap file superblock: unrecognized superblock version %u",
			       version);
	head->events = get_le64(image + 24);
	head->events_cleared = get_le64(image + 32);
	head->sectors = get_le64(image + 40);
	head->region_bytes = get_le32(image + 52);
	head->daemon_sleep_s = get_le32(image + 56);
	head->write_behind = get_le32(image + 60);
	if (head->region_bytes < 512 || !dm_is_pow2(head->region_bytes))
		return dm_fail(err, EINVAL,
			       "raid: invalid bitmap file superblock: bitmap chunksize not a power of 2 or "
			       "too small: %u",
			       head->region_bytes);
	if (!head->daemon_sleep_s || head->daemon_sleep_s > MAX_SLEEP_S)
		return dm_fail(err, EINVAL,
			       "raid: invalid bitmap file superblock: daemon sleep period out of range: %u s",
			       head->daemon_sleep_s);
	if (head->write_behind > MAX_WRITE_BEHIND)
		return dm_fail(err, EINVAL, "raid: invalid bitmap file superblock: write-behind limit out of range: %u",
			       head->write_behind);
	regions = dm_div_up(head->sectors, head->region_bytes / 512);
	if (head->sectors >> 54 || len - RAID_BITMAP_HEAD < dm_div_up(regions, 8))
		return dm_fail(err, EINVAL,
			       "raid: bitmap cut short: %" PRIu64 " regions of %u bytes do not fit in %zu "
			       "bytes",
			       regions, head->region_bytes, len);
	return 0;
}

bool raid_bitmap_set(struct raid_bitmap *b, uint64_t region, bool on)
{
	size_t at = RAID_BITMAP_HEAD + region / 8;
	uint8_t bit = (uint8_t)(1u << (region % 8)), was = b->image[at];

	b->image[at] = on ? was | bit : was & (uint8_t)~bit;
	if (b->image[at] == was)
		return false;
	b->stale[at / 512] = 1;
	return true;
}

static bool bit_in(const uint8_t *image, uint64_t region)
{
	return image[RAID_BITMAP_HEAD + region / 8] >> (region % 8) & 1;
}

void raid_bitmap_load(struct raid_bitmap *b, const uint8_t *image, size_t len, const struct raid_bitmap_head *head)
{
	uint64_t from_sectors = head->region_bytes / 512, from_regions = dm_div_up(head->sectors, from_sectors);
	bool same = from_sectors == 1ull << b->shift && head->sectors == b->sectors;

	for (uint64_t r = 0; r < b->regions; r++) {
		uint64_t first = (r << b->shift) / from_sectors, last;
		bool on = false;

		last = (MIN((r + 1) << b->shift, b->sectors) - 1) / from_sectors;
		for (uint64_t i = first; i <= last && !on; i++)
			on = i >= from_regions || bit_in(image, i);
		atomic_store(&b->words[r], on ? RAID_REGION_DURABLE | RAID_REGION_NEEDED : 0);
		raid_bitmap_set(b, r, on);
	}
	if (same)
		memset(b->stale, 0, b->bytes / 512);
}
