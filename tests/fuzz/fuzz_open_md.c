/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-open reading what should be md's superblocks, and making a table of the array; checksums are made right. */
#include "fuzz_open.h"

#include "../../tools/dmfs-open/md.c"
#include "../../tools/dmfs-open/md_array.c"
#include "../../tools/dmfs-open/md_state.c"
#include "../../tools/dmfs-open/src.c"

char *tree_quote(const char *word)
{
	return g_strdup(word);
}

static void mend_1(uint8_t *p, size_t left)
{
	uint32_t roles;

	if (left < 256 || get_le32(p) != MAGIC)
		return;
	roles = get_le32(p + 220);
	if (roles <= MAX_ROLES && 256 + 2 * (size_t)roles <= left)
		put_le32(p + 216, md_sum_1(p, 256 + 2 * (size_t)roles));
}

static void mend_090(uint8_t *p)
{
	put_le32(p + 152, md_sum_090(p));
}

/* With each member but every n-th, whose superblocks are all this one's. */
static void make(const struct md_super *sb, unsigned n)
{
	g_autofree struct md_member *members = g_new0(struct md_member, sb->disks);
	g_autoptr(GPtrArray) notes = fuzz_notes();
	g_autoptr(GString) table = g_string_new(NULL);
	g_autoptr(GError) err = NULL;
	uint64_t sectors, at = 0;
	struct md_shape shape;

	for (unsigned i = 0; i < sb->disks; i++)
		if (!n || i % n)
			members[i] = (struct md_member){sb, "d"};
	md_shape(sb, &shape);
	if (md_table(sb, members, (enum md_use)(n % 3), table, &sectors, notes, &err)) {
		if (!err)
			abort();
		return;
	}
	for (char *line = table->str; *line; line = strchr(line, '\n') + 1) {
		uint64_t start = strtoull(line, &line, 10), len = strtoull(line, NULL, 10);

		if (start != at || !len)
			abort();
		at += len;
	}
	if (at != sectors || !sectors || sectors > INT64_MAX / 512)
		abort();
}

/* What it would have in its place when the array is written to: readable, and as was meant. */
static void change_state(const struct src *s, uint8_t *disk, const struct md_super *sb, bool clean)
{
	g_autofree uint8_t *as = g_malloc0((size_t)sb->number + 1);
	g_autoptr(GPtrArray) notes = fuzz_notes();
	struct md_super after = {0};

	as[sb->number] = sb->role < 0 ? MD_SPARE : MD_USED;
	md_put_state(disk + sb->at, sb, 77, clean, as, sb->number + 1);
	if (md_read(s, &after, notes) || after.at != sb->at || after.events != 77 || after.role != sb->role ||
	    (after.resync == UINT64_MAX) != clean)
		abort();
	md_clear(&after);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree uint8_t *disk = g_memdup2(data, size);
	struct src s = fuzz_src(disk, size);
	g_autoptr(GPtrArray) notes = fuzz_notes();
	int64_t old = md_090_place(size);
	struct md_super sb = {0};

	if (size > 1 << 20)
		return 0;
	mend_1(disk, size);
	if (size > 4096)
		mend_1(disk + 4096, size - 4096);
	if (old >= 0)
		mend_090(disk + old);
	if (!md_read(&s, &sb, notes)) {
		if (md_usable(&sb, &sb) != md_usable(&sb, &sb))
			abort();
		for (unsigned n = 0; n < 4; n++)
			make(&sb, n);
		change_state(&s, disk, &sb, size & 1);
	}
	md_clear(&sb);
	return 0;
}
