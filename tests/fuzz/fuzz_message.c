/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages to targets: the first byte says to which, the rest is messages,
 * a line each, with a little I/O between them and everything printed at the end.
 */
#include "core/message.h"
#include "fuzz.h"

static const char *const tables[] = {
    "0 1024 dust f0 0 512",
    "0 1024 switch 3 7 0 f0 0 f1 5 f2 8",
    "0 1024 flakey f0 0 1 1 2 random_write_corrupt 1000",
    "0 1024 delay f0 0 0",
    "0 1024 log-writes f0 f1",
    "0 1024 mirror core 2 64 nosync 2 f0 0 f1 0 1 handle_errors",
    "0 1024 clone f0 f1 f2 8 1 no_hydration",
    "0 1024 snapshot f0 f1 P 8",
    "0 1024 crypt aes-xts-plain64 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff 0 f0 0",
    "0 1024 thin-pool f0 f1 128 0",
    "0 1024 thin 0:0 0",
    "0 512 linear f0 0\n512 512 dust f1 0 4096",
    "0 1024 writecache s f0 f1 512 0",
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	return 0;
}

static void send(struct dm_mapped *md, const char *line)
{
	g_autofree char *copy = g_strdup(line);
	g_autoptr(GString) reply = g_string_new(NULL);
	g_autoptr(GError) err = NULL;
	struct dm_opener who = fuzz_opener();
	int error = dm_mapped_message(md, copy, &who, reply, &err);

	if (error > 0 || (error && !err))
		g_error("'%s': %d, and no text", line, error);
}

static void print(struct dm_mapped *md)
{
	g_autoptr(GString) out = g_string_new(NULL);
	struct dm_table *t = dm_mapped_live(md);

	dm_table_print(t, DM_STATUS_TABLE, out);
	dm_table_print(t, DM_STATUS_INFO, out);
	dm_table_unref(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char buffer[8 * 512];
	struct dm_mapped *md, *pool = NULL;
	g_autofree char *text = NULL;
	g_auto(GStrv) lines = NULL;
	unsigned which;

	if (!size)
		return 0;
	which = data[0] % G_N_ELEMENTS(tables);
	text = fuzz_text(data + 1, size - 1);
	lines = g_strsplit(text, "\n", 32);
	fuzz_reset();
	if (strstr(tables[which], "thin 0:0")) {
		pool = fuzz_make("pool", "0 1024 thin-pool f0 f1 128 0");
		send(pool, "create_thin 0");
	}
	md = fuzz_make("fuzz", tables[which]);
	for (unsigned i = 0; lines[i]; i++) {
		send(pool && i % 2 ? pool : md, lines[i]);
		if (i % 2)
			dm_read_sync(&md->dev, i * 17 % 1016, 8, buffer, 0);
		else
			dm_write_sync(&md->dev, i * 29 % 1016, 8, buffer, 0);
	}
	print(md);
	if (dm_remove(md, NULL))
		abort();
	dm_mapped_unref(md);
	if (pool) {
		print(pool);
		if (dm_remove(pool, NULL))
			abort();
		dm_mapped_unref(pool);
	}
	return 0;
}
