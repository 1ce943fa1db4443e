/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A raid journal as anybody may have written it, behind good checksums: whatever is in it, its replay ends, and
 * writes nothing outside the devices' data.
 */
#include <stdlib.h>

#define SECTORS 1024u
#include "fuzz_mem.h"

#include <dmfs/crc32c.h>

#include "../../targets/raid/journal.h"

#define DISKS 4u
#define DEV_SECTORS 256u
#define PAGE 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct mem journal, disks[DISKS];

static void mem_init(struct mem *m)
{
	m->dev.ops = &mem_ops;
	m->dev.mode = DM_MODE_RW;
	atomic_init(&m->dev.refs, 1);
	memset(m->data, 0, sizeof m->data);
}

/* The input's blocks; what looks like a meta block gets the right checksum, place and pages' checksums. */
static void make_log(const uint8_t *data, size_t size)
{
	static const uint8_t uuid[16];
	uint32_t seed = dm_crc32c(~0u, uuid, sizeof uuid);
	size_t at = 0;
	uint64_t seq = 7;

	while (size > 4 && at + PAGE <= sizeof journal.data) {
		uint8_t *meta = journal.data + at;
		size_t used = 32 + (data[0] | data[1] << 8) % (PAGE - 32), take = MIN(size - 4, used - 32), pages = 0;

		seq += 1 + (data[2] == 255 ? data[3] : 0);
		put_le32(meta, 0x6433c509);
		meta[8] = 1;
		put_le32(meta + 12, (uint32_t)used);
		put_le64(meta + 16, seq);
		put_le64(meta + 24, at / 512);
		memcpy(meta + 32, data + 4, take);
		data += 4 + take;
		size -= 4 + take;
		for (size_t p = 32; p + 24 <= used; p += 20) {
			size_t page = at + PAGE * (1 + pages);

			if (get_le16(meta + p) > 1 || get_le32(meta + p + 4) != 8 || page + PAGE > sizeof journal.data)
				break;
			put_le32(meta + p + 16, dm_crc32c(seed, journal.data + page, PAGE));
			pages++;
		}
		put_le32(meta + 4, 0);
		put_le32(meta + 4, dm_crc32c(seed, meta, PAGE));
		at += PAGE * (1 + pages);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct raid_member members[DISKS] = {0};
	struct raid r = {.writable = true, .disks = DISKS, .members = members, .stripe_cache = 64};
	struct raid_journal *j;
	g_autoptr(GError) err = NULL;
	bool six = size && data[0] & 1;

	if (size < 2)
		return 0;
	if (!raid_geo_init(&r.geo, six ? 6 : 5, six ? RAID6_ZR : RAID5_LS, DISKS, 16, DEV_SECTORS))
		abort();
	pthread_mutex_init(&r.lock, NULL);
	r.state.events = 9;
	r.state.ours = data[1] & 1;
	r.params.journal = &journal.dev;
	mem_init(&journal);
	for (unsigned i = 0; i < DISKS; i++) {
		mem_init(&disks[i]);
		members[i].data = &disks[i].dev;
		members[i].data_offset = DEV_SECTORS;
		atomic_store(&members[i].flags, RAID_IN_SYNC);
	}
	make_log(data + 2, size - 2);
	r.family = raid_stripes_new(&r, &r.geo, false);
	j = raid_journal_open(&r, &err);
	if (!j || !raid_journal_start(j, &err) != !err)
		abort();
	raid_journal_close(j);
	raid_stripes_free(r.family);
	for (unsigned i = 0; i < DISKS; i++)
		for (size_t at = 0; at < sizeof disks[i].data; at++)
			if (disks[i].data[at] && (at < DEV_SECTORS * 512 || at >= 2 * DEV_SECTORS * 512))
				abort();
	return 0;
}
