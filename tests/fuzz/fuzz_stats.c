/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Statistics: a line is a @stats_ message without that prefix, or one byte below a blank and two more: I/O,
 * of so many sectors at that sector.  Two regions of ours must count it all, whatever else is asked.
 */
#include <stdio.h>

#include "core/message.h"
#include "fuzz.h"

#define SECTORS 1024u

static struct dm_mapped *md;
static char buffer[32 * 512];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	g_autofree char *table = NULL;
	struct dm_table *t;

	fuzz_start();
	table = g_strdup_printf("0 512 linear %s/f0 0\n512 512 linear %s/f1 0", fuzz_dir, fuzz_dir);
	if (dm_create("fuzz", -1, &md, NULL))
		abort();
	t = fuzz_build(md, table);
	if (!t || dm_mapped_swap(md, t, NULL, NULL, NULL))
		abort();
	return 0;
}

/* A statistics message; its reply, for g_free(), or NULL if it was refused. */
static char *send(const char *text)
{
	g_autofree char *line = g_strdup_printf("@stats_%s", text);
	g_autoptr(GString) reply = g_string_new(NULL);
	g_autoptr(GError) err = NULL;
	struct dm_opener who = fuzz_opener();
	int error = dm_mapped_message(md, line, &who, reply, &err);

	if (error > 0 || (error && !err))
		g_error("'%s': %d, and no text", text, error);
	return error ? NULL : g_strdup(reply->str);
}

/* A region of very many areas is slow to make and print, not wrong. */
static bool is_huge(const char *text)
{
	g_auto(GStrv) words = g_strsplit_set(text, " \t", 4);
	const char *plus;
	double len, step;

	if (g_ascii_strncasecmp(text, "create", 6) || !words[1] || !words[2])
		return false;
	plus = strchr(words[1], '+');
	len = plus ? g_ascii_strtod(plus + 1, NULL) : SECTORS;
	step = words[2][0] == '/' ? MAX(len / MAX(g_ascii_strtod(words[2] + 1, NULL), 1), 1)
				  : g_ascii_strtod(words[2], NULL);
	return len / MAX(step, 1) > 10000;
}

static unsigned sum(const char *region, uint64_t sectors[2])
{
	g_autofree char *message = g_strdup_printf("print %s", region), *text = send(message);
	g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
	unsigned n = 0;

	for (; lines[n] && *lines[n]; n++) {
		unsigned long long r, w, flight;

		if (sscanf(lines[n], "%*u+%*u %*u %*u %llu %*u %*u %*u %llu %*u %llu", &r, &w, &flight) != 3 || flight)
			g_error("not a line of counters: %s", lines[n]);
		sectors[0] += r;
		sectors[1] += w;
	}
	return n;
}

static void do_io(const char *line, uint64_t done[2])
{
	uint64_t at = ((unsigned char)line[1] * 7u) % SECTORS, n = (unsigned char)line[0] % 31u + 1;

	if (at + n > SECTORS)
		return;
	if (line[0] & 1)
		dm_read_sync(&md->dev, at, n, buffer, 0);
	else
		dm_write_sync(&md->dev, at, n, buffer, 0);
	done[!(line[0] & 1)] += n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size), *whole = send("create - /1"), *areas = send("create - 13");
	g_auto(GStrv) lines = g_strsplit(text, "\n", 64);
	uint64_t done[2] = {0}, one[2] = {0}, many[2] = {0};
	bool touched = false;

	if (!whole || !areas)
		abort();
	for (unsigned i = 0; lines[i]; i++) {
		const char *line = lines[i];
		bool read_only = !g_ascii_strncasecmp(line, "list", 4) || !g_ascii_strncasecmp(line, "create", 6) ||
				 !g_ascii_strncasecmp(line, "print ", 6);

		if (line[0] && (unsigned char)line[0] < ' ' && line[1]) {
			do_io(line, done);
		} else if (!is_huge(line)) {
			touched |= !read_only;
			g_free(send(line));
		}
	}
	if (!touched) {
		if (sum(whole, one) != 1 || sum(areas, many) != (SECTORS + 12) / 13 || memcmp(one, done, sizeof one) ||
		    memcmp(many, done, sizeof many))
			g_error("I/O was not counted");
	}
	for (;;) {
		g_autofree char *list = send("list"), *delete = g_strdup_printf("delete %d", atoi(list)), *reply = NULL;

		if (!*list)
			break;
		reply = send(delete);
		if (!reply)
			g_error("a region that is listed cannot be deleted: %s", list);
	}
	if (atomic_load(&md->stats))
		abort();
	return 0;
}
