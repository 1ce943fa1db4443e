/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache on a cache device as anybody may have written it: the first bytes say what superblock and which block size,
 * the rest are entries.  Whatever they are, nothing may crash, and if the table loads without an error the device holds
 * the same before all is written back and after, and so does the origin then.
 */
#include "core/message.h"
#include "fuzz.h"

#include <dmfs/le.h>

#include "../../targets/writecache/format.h"

#define SECTORS 64u
#define BYTES (SECTORS * 512u)

static uint8_t data_of_blocks[1 << 18];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	for (unsigned i = 0; i < sizeof data_of_blocks; i++)
		data_of_blocks[i] = (uint8_t)(i * 7 + i / 512);
	return 0;
}

static void write_file(unsigned i, const void *buf, size_t len)
{
	g_autofree char *path = fuzz_file(i);
	int fd = open(path, O_WRONLY);

	if (fd < 0 || pwrite(fd, buf, len, 0) != (ssize_t)len)
		abort();
	close(fd);
}

/* Mostly where a block begins; some behind the device's end, some in the midst of a block, some nowhere. */
static uint64_t sector_from(uint8_t in, unsigned block_sectors)
{
	if (in < 192)
		return in % (SECTORS + 8) / block_sectors * block_sectors;
	return in < 250 ? in : UINT64_MAX - in;
}

/* A superblock that is good but for what the input wants, and entries near to what is valid. */
static void make_cache(const uint8_t *in, size_t size, unsigned block)
{
	static uint8_t buf[sizeof data_of_blocks];
	struct wc_super super = {block, 1 + in[1] % 64, in[2]};

	memcpy(buf, data_of_blocks, sizeof buf);
	wc_super_write(buf, &super);
	if (in[0] & 8)
		memcpy(buf + in[3] % 57, in + 4, 8);
	for (unsigned i = 0; i < super.blocks; i++) {
		wc_entry_write(buf, i, UINT64_MAX, UINT64_MAX);
		if (size < 12 + 2 * i + 2)
			continue;
		wc_entry_write(buf, i, sector_from(in[12 + 2 * i], block / 512), in[13 + 2 * i]);
	}
	write_file(0, buf, sizeof buf);
}

static void read_all(struct dm_mapped *md, uint8_t *out)
{
	if (dm_read_sync(&md->dev, 0, SECTORS, out, 0))
		g_error("a read fails");
}

static bool has_failed(struct dm_mapped *md)
{
	g_autoptr(GString) out = g_string_new(NULL);
	struct dm_table *t = dm_mapped_live(md);

	dm_table_print(t, DM_STATUS_INFO, out);
	dm_table_unref(t);
	return !strstr(out->str, " writecache 0 ");
}

static void use(struct dm_mapped *md, const uint8_t *in)
{
	static uint8_t before[BYTES], after[BYTES], buf[4096];
	struct dm_opener who = fuzz_opener();
	g_autoptr(GString) reply = g_string_new(NULL);
	char message[] = "flush";
	bool failed = has_failed(md);
	int error;

	read_all(md, before);
	memset(buf, in[2], sizeof buf);
	error = dm_write_sync(&md->dev, in[3] % SECTORS / 8 * 8, 8, buf, in[0] & 16 ? DM_FUA : 0);
	if (!error)
		memcpy(before + in[3] % SECTORS / 8 * 4096, buf, 4096);
	else if (!failed)
		g_error("a write fails: %d", error);
	error = dm_mapped_message(md, message, &who, reply, NULL);
	if (!error != !failed)
		g_error("flush: %d", error);
	read_all(md, after);
	if (memcmp(before, after, BYTES))
		g_error("not the same after writeback");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const unsigned blocks[] = {512, 1024, 2048, 4096};
	g_autofree char *line = NULL, *text = NULL;
	struct dm_mapped *md;
	struct dm_table *t;
	unsigned block;

	if (size < 12)
		return 0;
	block = blocks[data[0] % 4];
	write_file(1, data_of_blocks + 777, BYTES);
	make_cache(data, size, block);
	line = g_strdup_printf("0 %u writecache %c f1 f0 %u 0", SECTORS, data[0] & 32 ? 'p' : 's', block);
	text = fuzz_text((const uint8_t *)line, strlen(line));
	if (dm_create("fuzz", -1, &md, NULL))
		abort();
	t = fuzz_build(md, text);
	if (t && !dm_mapped_swap(md, t, NULL, NULL, NULL))
		use(md, data);
	if (dm_remove(md, NULL))
		abort();
	dm_mapped_unref(md);
	return 0;
}
