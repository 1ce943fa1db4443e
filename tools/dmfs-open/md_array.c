/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tables of md's arrays.
 *
 *   linear        the members' data one after the other, whole chunks of each
 *   raid0         stripes over all members, and where they are of different lengths over those that go on: zones.  In
 * the older layout (1) of a zone the chunks go on around where the array's number of the chunk says; in the newer (2)
 * they begin at its first member raid1..10     the raid target, without metadata of its own (each pair begins with -):
 * the state is in md's superblocks (md_state.c), which cannot say of a device that it has failed before writes are
 * answered that it lacks.  So writes fail then (fail_stop)
 *
 * Where a member is missing the raid target makes do without; linear and raid0 have errors there.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "../common/tree.h"
#include "open.h"

bool md_usable(const struct md_super *best, const struct md_super *sb)
{
	return sb && sb->role >= 0 && (unsigned)sb->role < best->disks && sb->recovery == UINT64_MAX &&
	       sb->events + 1 >= best->events && best->active[sb->role];
}

static void add_word(GString *line, const char *device)
{
	g_autofree char *quoted = tree_quote(device);

	g_string_append_printf(line, " %s", quoted);
}

/* Sectors of a member in an array of levels -1 and 0. */
static uint64_t whole_chunks(const struct md_super *sb)
{
	return sb->chunk ? sb->data_sectors - sb->data_sectors % sb->chunk : sb->data_sectors;
}

static void add_line(GString *table, uint64_t *at, uint64_t sectors, const GString *rest)
{
	g_string_append_printf(table, "%" PRIu64 " %" PRIu64 " %s\n", *at, sectors, rest->str);
	*at += sectors;
}

/* --- linear and raid0 ------------------------------------------------------------------------------- */

static int need_all(const struct md_super *best, const struct md_member *members, GError **err)
{
	for (unsigned i = 0; i < best->disks; i++)
		if (!members[i].sb)
			return fail(err, ENODEV, "%s does without none of its %u devices, and number %u is missing",
				    md_level_name(best->level), best->disks, i);
	return 0;
}

/* Only the last of a linear array may be missing without the length of what is before being unknown: errors are no
 * data. */
static int table_linear(const struct md_super *best, const struct md_member *members, GString *table, uint64_t *sectors,
			GPtrArray *notes, GError **err)
{
	unsigned missing = 0;

	for (unsigned i = 0; i < best->disks; i++) {
		g_autoptr(GString) line = g_string_new("linear");

		if (!members[i].sb || !whole_chunks(members[i].sb)) {
			missing = best->disks - i;
			break;
		}
		add_word(line, members[i].device);
		g_string_append_printf(line, " %" PRIu64, members[i].sb->data_offset);
		add_line(table, sectors, whole_chunks(members[i].sb), line);
	}
	if (!*sectors)
		return need_all(best, members, err) ? -ENODEV
						    : fail(err, EINVAL, "its devices are shorter than a chunk");
	if (missing)
		g_ptr_array_add(notes,
				g_strdup_printf("device %u of the linear array is missing: it is open up to there",
						best->disks - missing));
	return 0;
}

static int by_length(gconstpointer a, gconstpointer b)
{
	uint64_t x = whole_chunks((*(const struct md_member *const *)a)->sb),
		 y = whole_chunks((*(const struct md_member *const *)b)->sb);

	return x < y ? -1 : x > y;
}

/* One zone: from a sector of each member that is long enough up to another. */
static void add_zone(const struct md_super *best, const struct md_member *members, uint64_t from, uint64_t to,
		     GString *table, uint64_t *at)
{
	g_autoptr(GPtrArray) in = g_ptr_array_new();
	g_autoptr(GString) line = g_string_new(NULL);
	unsigned first;

	for (unsigned i = 0; i < best->disks; i++)
		if (whole_chunks(members[i].sb) >= to)
			g_ptr_array_add(in, (gpointer)&members[i]);
	first = best->layout == 1 ? (unsigned)(*at / best->chunk % in->len) : 0;
	if (in->len > 1)
		g_string_append_printf(line, "striped %u %u", in->len, best->chunk);
	else
		g_string_append(line, "linear");
	for (unsigned i = 0; i < in->len; i++) {
		const struct md_member *m = in->pdata[(i + first) % in->len];

		add_word(line, m->device);
		g_string_append_printf(line, " %" PRIu64, m->sb->data_offset + from);
	}
	add_line(table, at, (to - from) * in->len, line);
}

static int table_raid0(const struct md_super *best, const struct md_member *members, GString *table, uint64_t *sectors,
		       GPtrArray *notes, GError **err)
{
	g_autoptr(GPtrArray) sorted = g_ptr_array_new();
	unsigned zones = 0;
	uint64_t from = 0;
	int r = need_all(best, members, err);

	if (r)
		return r;
	if (best->layout > 2)
		return fail(err, EINVAL, "layout %u of raid0 is not known", best->layout);
	for (unsigned i = 0; i < best->disks; i++)
		g_ptr_array_add(sorted, (gpointer)&members[i]);
	g_ptr_array_sort(sorted, by_length);
	for (unsigned i = 0; i < sorted->len; i++) {
		uint64_t to = whole_chunks(((const struct md_member *)sorted->pdata[i])->sb);

		if (to == from)
			continue;
		add_zone(best, members, from, to, table, sectors);
		from = to;
		zones++;
	}
	if (zones > 1 && !best->layout)
		g_ptr_array_add(notes,
				g_strdup("the devices are of different lengths and nothing says which layout of raid0 "
					 "that has: taken for that of Linux 3.14 and later"));
	return *sectors ? 0 : fail(err, EINVAL, "its devices are shorter than a chunk");
}

/* --- the raid target --------------------------------------------------------------------------------------- */

static const char *raid_type(const struct md_super *sb)
{
	static const char *const five[] = {"raid5_la", "raid5_ra", "raid5_ls", "raid5_rs", "raid4", "raid5_n"};
	static const char *const six[] = {"raid6_la",  "raid6_ra",   "raid6_ls",   "raid6_rs",	 NULL,
					  "raid6_n_6", NULL,	     NULL,	   "raid6_zr",	 "raid6_nr",
					  "raid6_nc",  NULL,	     NULL,	   NULL,	 NULL,
					  NULL,	       "raid6_la_6", "raid6_ra_6", "raid6_ls_6", "raid6_rs_6"};

	switch (sb->level) {
	case 1:
		return "raid1";
	case 4: /* its parity is on the last device */
		return "raid5_n";
	case 5:
		return sb->layout < G_N_ELEMENTS(five) ? five[sb->layout] : NULL;
	case 6:
		return sb->layout < G_N_ELEMENTS(six) ? six[sb->layout] : NULL;
	default:
		return "raid10";
	}
}

static int raid10_words(const struct md_super *sb, GString *words, unsigned *n, unsigned *copies, GError **err)
{
	unsigned near = sb->layout & 0xff, far = sb->layout >> 8 & 0xff;
	bool offset = sb->layout & 1u << 16, sets = sb->layout & 1u << 18;

	*copies = near * far;
	if (!*copies || *copies > sb->disks || sb->layout >> 19 || sb->layout & 1u << 17 || (near > 1 && far > 1))
		return fail(err, ENOTSUP, "raid10's layout %#x is not supported", sb->layout);
	g_string_append_printf(words, " raid10_copies %u raid10_format %s", *copies,
			       offset	 ? "offset"
			       : far > 1 ? "far"
					 : "near");
	*n += 4;
	if (far > 1 && !sets) {
		g_string_append(words, " raid10_use_near_sets");
		++*n;
	}
	return 0;
}

/* Used sectors of each device, as the array has them. */
static uint64_t used(const struct md_super *sb)
{
	return sb->level == 1 ? sb->size : sb->size - sb->size % sb->chunk;
}

static uint64_t array_sectors(const struct md_super *sb)
{
	unsigned near = sb->layout & 0xff, far = sb->layout >> 8 & 0xff;

	switch (sb->level) {
	case 1:
		return sb->size;
	case 6:
		return used(sb) * (sb->disks - 2);
	case 10:
		return used(sb) / sb->chunk / far * sb->disks / near * sb->chunk;
	default:
		return used(sb) * (sb->disks - 1);
	}
}

/*
 * raid10 whose last row is not full, which the raid target does not know: rows up to one that is, of zeroes; nobody
 * gets at them.
 */
void md_shape(const struct md_super *best, struct md_shape *shape)
{
	unsigned near = best->layout & 0xff, far = best->layout >> 8 & 0xff;
	uint64_t rows;

	*shape = (struct md_shape){0};
	if (best->level <= 0)
		return;
	shape->part = used(best);
	if (best->level != 10 || !near || !far || near > best->disks)
		return;
	shape->sectors = array_sectors(best);
	for (rows = shape->part / best->chunk; rows * best->disks % near; rows++)
		shape->zeroes += best->chunk;
}

static int check_count(const struct md_super *best, unsigned present, GError **err)
{
	unsigned least = best->level == 1    ? 1
			 : best->level == 6  ? best->disks - MIN(best->disks, 2)
			 : best->level == 10 ? 1
					     : best->disks - 1;

	if ((best->level == 6 && best->disks < 4) || (best->level > 1 && best->disks < 2))
		return fail(err, EINVAL, "%u devices are too few for %s", best->disks, md_level_name(best->level));
	if (present < MAX(least, 1))
		return fail(err, ENODEV, "%u of %u devices are there, %u are needed", present, best->disks,
			    MAX(least, 1));
	return 0;
}

static const char *sync_words(const struct md_super *sb, enum md_use use, unsigned *n)
{
	if (use == MD_READ) { /* nothing is synchronised then anyway */
		*n += sb->level != 6;
		return sb->level == 6 ? "" : " nosync";
	}
	*n += use == MD_WRITE ? 2 : 1;
	return use == MD_WRITE ? " nosync fail_stop" : " fail_stop";
}

static int table_engine(const struct md_super *best, const struct md_member *members, enum md_use use, GString *table,
			uint64_t *sectors, GPtrArray *notes, GError **err)
{
	g_autoptr(GString) line = g_string_new(NULL), words = g_string_new(NULL);
	const char *type = raid_type(best), *only = NULL;
	unsigned n = 1, present = 0, copies = 1;
	struct md_shape shape;
	uint64_t length;
	int r;

	if (!type)
		return fail(err, ENOTSUP, "layout %u of raid%d is not supported", best->layout, best->level);
	r = best->level == 10 ? raid10_words(best, words, &n, &copies, err) : 0;
	for (unsigned i = 0; i < best->disks; i++)
		if (members[i].sb && ++present)
			only = members[i].device;
	if (!r)
		r = check_count(best, present, err);
	if (r)
		return r;
	md_shape(best, &shape);
	length = array_sectors(best);
	if (!length)
		return fail(err, EINVAL, "the array has no sectors");
	if (shape.zeroes)
		length = (shape.part + shape.zeroes) / best->chunk * best->disks / copies * best->chunk;
	if (best->level == 1 && present == 1) {
		g_string_append(line, "linear");
		add_word(line, only);
		g_string_append(line, " 0");
	} else {
		g_string_append(words, sync_words(best, use, &n));
		g_string_append_printf(line, "raid %s %u %u%s %u", type, n, best->level == 1 ? 0 : best->chunk,
				       words->str, best->disks);
		for (unsigned i = 0; i < best->disks; i++) {
			g_string_append(line, " -");
			if (members[i].sb)
				add_word(line, members[i].device);
			else
				g_string_append(line, " -");
		}
	}
	add_line(table, sectors, length, line);
	if (present < best->disks)
		g_ptr_array_add(notes, g_strdup_printf("degraded: %u of %u devices are there", present, best->disks));
	if (best->level > 1 && best->resync != UINT64_MAX && present < best->disks)
		g_ptr_array_add(notes, g_strdup("it was not synchronised, too: what was being written may be wrong"));
	return 0;
}

int md_table(const struct md_super *best, const struct md_member *members, enum md_use use, GString *table,
	     uint64_t *sectors, GPtrArray *notes, GError **err)
{
	*sectors = 0;
	if (best->reshape)
		return fail(err, ENOTSUP, "it is being reshaped: let mdadm finish that");
	if (best->journal)
		g_ptr_array_add(notes, g_strdup("it has a journal, which is not replayed"));
	if (best->level == -1)
		return table_linear(best, members, table, sectors, notes, err);
	if (best->level == 0)
		return table_raid0(best, members, table, sectors, notes, err);
	return table_engine(best, members, use, table, sectors, notes, err);
}
