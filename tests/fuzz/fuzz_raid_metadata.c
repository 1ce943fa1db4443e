/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Superblocks and bitmaps of a raid's devices as anybody may have written them: what is made of them must be an
 * array whose every sector lies within its devices, or a refusal with a text.
 */
#include <stdlib.h>
#include <string.h>

#include <dmfs/le.h>

#include "../../targets/raid/assemble.h"
#include "../../targets/raid/bitmap.h"
#include "../../targets/raid/reshape.h"

#define DISKS 5u
#define DEV_SECTORS 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const types[] = {"raid0",	"raid1",   "raid10",   "raid4",
				    "raid5_ls", "raid5_n", "raid6_zr", "raid6_n_6"};

struct input {
	const uint8_t *data;
	size_t size;
};

static unsigned take(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

/* What all superblocks say; of a reshape too, or of what the line would make one of. */
static struct raid_super common(struct input *in, const struct raid_params *p, uint64_t dev, uint64_t array)
{
	struct raid_super sb = {.features = 1,
				.disks = p->disks,
				.events = 7,
				.recovery_offset = RAID_NONE,
				.resync_offset = RAID_NONE,
				.level = p->type->level,
				.layout = p->layout,
				.chunk = p->chunk,
				.reshape_position = RAID_NONE,
				.new_level = p->type->level,
				.new_layout = p->layout,
				.new_chunk = p->chunk,
				.array_sectors = array,
				.dev_sectors = dev};
	unsigned kind = take(in) % 4;

	if (kind > 1) {
		sb.layout =
		    p->type->level == 10 ? raid10_layout((enum raid_format)(take(in) % 3), 2, false) : take(in) % 20;
		sb.chunk = 8u << take(in) % 4;
	}
	if (kind > 2) {
		sb.reshape_flags = RAID_RESHAPE_ACTIVE | take(in) % 4;
		sb.reshape_position = (take(in) | (uint64_t)take(in) << 8) * (take(in) % 2 ? 1 : 8);
		sb.delta_disks = (int32_t)(take(in) % 4) - 1;
		sb.data_offset = take(in) % 2 * 8 * take(in);
		sb.new_data_offset = take(in) % 2 * 8 * take(in);
	}
	return sb;
}

/* And then some bytes changed. */
static void make_super(struct input *in, const struct raid_super *all, unsigned i, struct raid_found *f)
{
	struct raid_super sb = *all;
	uint8_t block[RAID_SUPER_BYTES];

	sb.index = i;
	raid_super_encode(&sb, block);
	for (unsigned n = take(in) % 6; n; n--) {
		unsigned at = 4 + take(in) % 144, len = take(in) % 9;

		for (; len && at < sizeof block; at++, len--)
			block[at] = (uint8_t)take(in);
	}
	f->has_data = take(in) % 16 != 1;
	f->has_meta = f->has_data && take(in) % 16 != 1;
	f->readable = take(in) % 16 != 1;
	f->data_sectors = DEV_SECTORS + 8 * take(in);
	f->has_super = f->readable && take(in) % 16 != 1 && raid_super_decode(block, &f->sb);
}

static void within(const struct raid_geo *g, uint64_t sector)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	uint64_t at;

	if (raid_geo_rows(g)) {
		if (raid_row_map(g, sector, &at) >= g->disks || at >= g->dev_sectors)
			abort();
		return;
	}
	raid_copies(g, sector, copies);
	for (unsigned i = 0; i < g->copies; i++)
		if (copies[i].disk >= g->disks || copies[i].sector >= g->dev_sectors)
			abort();
}

/* A reshape: each window goes on, and lies where there is something. */
static void walk(const struct raid_state *s, const struct raid_params *p, const struct raid_found *found)
{
	struct raid_member members[DISKS] = {0};
	struct raid r = {
	    .state = *s, .members = members, .disks = DISKS, .params = *p, .reshape_waits = s->begin_reshape};
	g_autoptr(GError) err = NULL;
	uint64_t done, total;

	if (s->level != 5 && s->level != 6 && s->level != 10)
		return;
	if (s->begin_reshape) {
		r.state.disks += (unsigned)s->delta_disks;
		r.state.reshape_position = s->backwards ? raid_reshape_now(&r.state) : 0;
	}
	for (unsigned i = 0; i < DISKS; i++) {
		members[i].data_offset = s->m[i].data_offset;
		members[i].new_data_offset = s->m[i].new_data_offset;
	}
	raid_geo_init(&r.geo, s->level, s->layout, DISKS, s->chunk, s->dev_sectors);
	if (raid_reshape_ops.start(&r, &err)) {
		if (!err)
			abort();
	} else {
		const struct reshape *rs = r.family;

		raid_reshape_where(&r, &done, &total);
		for (uint64_t n; done < total; done += n) {
			n = raid_reshape_window(&r, done);
			if (!n || n > total - done)
				abort();
			within(&rs->to_geo, s->backwards ? total - done - n : done + n - 1);
			if (raid_is_raid10(rs) && done < rs->moves)
				raid10_hits_old(&r, rs, s->backwards ? total - done - n : done,
						s->backwards ? total - done : done + n);
		}
		for (unsigned i = 0; i < DISKS; i++)
			if (found[i].has_data &&
			    members[i].new_data_offset + rs->to_geo.dev_sectors > found[i].data_sectors)
				abort();
	}
	raid_reshape_ops.stop(&r);
}

static void look_at(const struct raid_state *s, const struct raid_found *found, unsigned disks)
{
	struct raid_geo g;
	uint64_t array;

	if (!raid_geo_init(&g, s->level, s->layout, s->disks, s->chunk, s->dev_sectors))
		abort();
	array = MIN(s->array_sectors, raid_geo_array_sectors(&g));
	for (uint64_t sector = 0; sector < array; sector += array / 7 + 1)
		within(&g, sector);
	if (array)
		within(&g, array - 1);
	for (unsigned i = 0; i < disks; i++)
		if (found[i].has_data && s->m[i].data_offset + s->dev_sectors > found[i].data_sectors)
			abort();
	if (s->disks > disks)
		abort();
}

static void assemble(struct input *in)
{
	struct raid_params p = {
	    .type = raid_type_by_name(types[take(in) % G_N_ELEMENTS(types)]), .disks = DISKS, .region_sectors = 128};
	struct raid_found found[DISKS] = {0};
	g_autoptr(GError) err = NULL;
	struct raid_super all;
	struct raid_state s;
	uint64_t len;
	int error;

	p.chunk = p.type->level == 1 ? 0 : 8u << take(in) % 4;
	p.copies = 2;
	p.format = p.type->layout;
	p.layout =
	    p.type->level == 10 ? raid10_layout((enum raid_format)(take(in) % 3), 2, take(in) % 2) : p.type->layout;
	p.given = (take(in) | take(in) << 8) & (1u << RAID_SYNC | 1u << RAID_NOSYNC | 1u << RAID_REBUILD |
						1u << RAID_DELTA_DISKS | 1u << RAID_DATA_OFFSET);
	if (raid_given(&p, RAID_REBUILD))
		raid_set_add(&p.rebuild, take(in) % DISKS);
	if (raid_given(&p, RAID_DELTA_DISKS))
		p.delta_disks = (int)take(in) % 5 - 2;
	if (raid_given(&p, RAID_DATA_OFFSET))
		p.value[RAID_DATA_OFFSET] = take(in) * 8;
	len = (p.type->level == 1 ? 1 : DISKS - p.type->parity) * (DEV_SECTORS / 2);
	if (p.type->level == 10)
		len /= 2;
	all = common(in, &p, DEV_SECTORS / 2, len);
	for (unsigned i = 0; i < DISKS; i++)
		make_super(in, &all, i, &found[i]);
	error = raid_assemble(&p, len, found, &s, &err);
	if (!error != !err)
		abort();
	if (!error)
		look_at(&s, found, DISKS);
	if (!error && (s.begin_reshape || s.reshape_position != RAID_NONE))
		walk(&s, &p, found);
	raid_state_clear(&s);
}

static void bitmap(struct input *in)
{
	uint64_t sectors = 1 + (take(in) | take(in) << 8), region = 1ull << take(in) % 10;
	struct raid_bitmap *b = raid_bitmap_new(sectors, region);
	struct raid_bitmap_head head = {
	    .sectors = sectors, .region_bytes = (uint32_t)region * 512, .daemon_sleep_s = 5};
	g_autoptr(GError) err = NULL;
	g_autofree uint8_t *image = NULL;
	size_t len = b->bytes;

	raid_bitmap_put_head(b, &head);
	image = g_memdup2(b->image, len);
	for (unsigned n = take(in) % 8; n; n--)
		image[take(in) % 80] = (uint8_t)take(in);
	len = take(in) % 8 ? len : take(in) % len;
	if (!raid_bitmap_get_head(image, len, &head, &err))
		raid_bitmap_load(b, image, len, &head);
	else if (!err)
		abort();
	raid_bitmap_free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (take(&in) % 4)
		assemble(&in);
	else
		bitmap(&in);
	return 0;
}
