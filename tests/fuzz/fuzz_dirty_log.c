/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk log with anything in it.  The input: two bytes of length, one of
 * region size and how the table begins, the rest stands on the log's device.
 * A mirror comes up on it or not; if it does, the log has the right header afterwards, and no more regions are in
 * sync than there are.
 */
#include <inttypes.h>
#include <stdio.h>

#include "fuzz.h"

static struct dm_mapped *md;
static int log_fd;

static void stop(void)
{
	dm_mapped_unref(md);
	dm_remove_all();
	close(log_fd);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	g_autofree char *path = NULL;

	fuzz_start();
	path = g_build_filename(fuzz_dir, "f0", NULL);
	log_fd = open(path, O_RDWR);
	if (log_fd < 0 || dm_create("m", -1, &md, NULL))
		abort();
	atexit(stop);
	return 0;
}

static struct dm_table *make_table(unsigned len, unsigned region, const char *how)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_autofree char *line = g_strdup_printf("0 %u mirror disk %d %s/f0 %u %s 2 %s/f1 0 %s/f1 512", len,
						*how ? 3 : 2, fuzz_dir, region, how, fuzz_dir, fuzz_dir);
	g_autoptr(GError) err = NULL;

	if (dm_table_add_line(t, line, &err)) {
		if (!err || !*err->message)
			abort();
		dm_table_unref(t);
		return NULL;
	}
	if (dm_table_complete(t, NULL))
		abort();
	return t;
}

static void check(struct dm_table *t, uint64_t regions)
{
	g_autoptr(GString) status = g_string_new(NULL);
	uint64_t sync, total, header[2];
	const char *p;

	dm_table_print(t, DM_STATUS_INFO, status);
	p = strstr(status->str, "/f1 ");
	p = p ? strstr(p + 4, "/f1 ") : NULL;
	if (!p || sscanf(p + 4, "%" SCNu64 "/%" SCNu64, &sync, &total) != 2 || total != regions || sync > total)
		abort();
	if (pread(log_fd, header, sizeof header, 0) != sizeof header || header[1] != GUINT64_TO_LE(regions) ||
	    header[0] != GUINT64_TO_LE(0x24d695272))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const hows[] = {"", "", "sync", "nosync"};
	unsigned len, region;
	struct dm_table *t;

	if (size < 3 || size > 4096)
		return -1;
	len = 1 + (data[0] | (data[1] & 1u) << 8);
	region = 2u << (data[2] & 7);
	if (ftruncate(log_fd, 0) || ftruncate(log_fd, 1 << 20) ||
	    pwrite(log_fd, data + 3, size - 3, 0) != (ssize_t)(size - 3))
		abort();
	t = make_table(len, region, hows[data[2] >> 6]);
	if (!t)
		return 0;
	if (dm_mapped_swap(md, t, NULL, NULL, NULL))
		return 0; /* which waits until it alone has the table */
	t = dm_mapped_live(md);
	check(t, (len + region - 1) / region);
	dm_table_unref(t);
	return 0;
}
