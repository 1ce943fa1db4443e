/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A hostile state database.  First byte even: the rest patches bytes of a good one (three bytes: where,
 * one: to what).  Odd: lines of "d\tMINOR\tNAME\tUUID\tLIVE\tINACTIVE" ("|" between a table's lines) and of
 * "r\tID\tBEGIN\tNAME\tKEY\tVALUE" become its rows.  It is opened or refused; refused, it is left as it
 * was; opened, it holds the same when it is opened once more.
 */
#include <sqlite3.h>

#include "core/message.h"
#include "core/state.h"
#include "fuzz.h"

static char path[64];
static gchar *good;
static gsize good_len;

static void clean_up(void)
{
	g_autofree char *journal = g_strconcat(path, "-journal", NULL);

	unlink(journal);
	unlink(path);
}

static void send(struct dm_mapped *md, const char *text)
{
	g_autofree char *line = g_strdup(text);
	g_autoptr(GString) reply = g_string_new(NULL);
	struct dm_opener who = fuzz_opener();

	if (dm_mapped_message(md, line, &who, reply, NULL))
		abort();
}

/* A database with devices on devices, and targets' rows. */
static void make_good(void)
{
	struct dm_mapped *dust, *sw, *top;

	if (dm_state_open(path, NULL))
		abort();
	dust = fuzz_make("dust", "0 1024 dust f0 0 512");
	sw = fuzz_make("switch", "0 1000 switch 2 5 0 f1 0 f2 0");
	top = fuzz_make("top", "0 512 linear 0:0 0\n512 512 linear 0:1 0");
	for (unsigned i = 0; i < 300; i++) {
		g_autofree char *text = g_strdup_printf("addbadblock %u", i * 3);

		send(dust, text);
	}
	send(dust, "enable");
	send(sw, "set_region_mappings 0:1 :0 :1 R3,60");
	dm_state_close();
	dm_mapped_unref(top);
	dm_mapped_unref(dust);
	dm_mapped_unref(sw);
	dm_remove_all();
	if (!g_file_get_contents(path, &good, &good_len, NULL))
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	g_snprintf(path, sizeof path, "%s.state", fuzz_dir);
	atexit(clean_up);
	make_good();
	return 0;
}

static void put(const gchar *contents)
{
	clean_up();
	if (!g_file_set_contents_full(path, contents, (gssize)good_len, G_FILE_SET_CONTENTS_NONE, 0600, NULL))
		abort();
}

static void patch(const uint8_t *data, size_t size)
{
	g_autofree gchar *bad = g_memdup2(good, good_len);

	for (; size >= 4; data += 4, size -= 4)
		bad[(data[0] | data[1] << 8 | data[2] << 16) % good_len] = (gchar)data[3];
	put(bad);
}

static void bind(sqlite3_stmt *stmt, char **words)
{
	for (int i = 1; words[i] && i <= sqlite3_bind_parameter_count(stmt); i++) {
		char *word = words[i], *end;
		long long n = g_ascii_strtoll(word, &end, 10);

		for (char *p = word; (p = strchr(p, '|'));)
			*p = '\n';
		if (*word && !*end)
			sqlite3_bind_int64(stmt, i, n);
		else
			sqlite3_bind_text(stmt, i, word, -1, SQLITE_STATIC);
	}
}

static void put_rows(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size);
	g_auto(GStrv) lines = g_strsplit(text, "\n", 32);
	sqlite3_stmt *device, *row;
	sqlite3 *db;

	put(good);
	if (sqlite3_open(path, &db) ||
	    sqlite3_exec(db, "PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY; DELETE FROM device WHERE minor=2",
			 NULL, NULL, NULL) ||
	    sqlite3_prepare_v2(db, "REPLACE INTO device VALUES (?,?,?,0,?,7,0,0,?,8,0,0,384,0,0)", -1, &device, NULL) ||
	    sqlite3_prepare_v2(db, "REPLACE INTO row VALUES (?,?,?,?,?)", -1, &row, NULL))
		abort();
	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) words = g_strsplit(lines[i], "\t", 8);
		sqlite3_stmt *stmt = lines[i][0] == 'r' ? row : device;

		if (words[0])
			bind(stmt, words);
		sqlite3_step(stmt); /* not all can be a row */
		sqlite3_reset(stmt);
		sqlite3_clear_bindings(stmt);
	}
	sqlite3_finalize(device);
	sqlite3_finalize(row);
	sqlite3_close(db);
}

/* All devices that came back. */
static char *print(void)
{
	g_autoptr(GPtrArray) all = dm_list_devices();
	GString *out = g_string_new(NULL);

	for (unsigned i = 0; i < all->len; i++) {
		struct dm_mapped *md = all->pdata[i];
		g_autofree char *name = dm_mapped_dup_name(md), *uuid = dm_mapped_dup_uuid(md);
		struct dm_table *t = dm_mapped_live(md);

		g_string_append_printf(out, "%u %s %s\n", md->minor, name, uuid);
		if (t) {
			dm_table_print(t, DM_STATUS_TABLE, out);
			dm_table_print(t, DM_STATUS_INFO, out);
		}
		dm_table_unref(t);
	}
	return g_string_free(out, FALSE);
}

static void save_all(void)
{
	g_autoptr(GPtrArray) all = dm_list_devices();

	for (unsigned i = 0; i < all->len; i++) {
		struct dm_owner owner;

		dm_mapped_owner(all->pdata[i], &owner);
		dm_mapped_set_owner(all->pdata[i], DM_CHANGE_MODE, &owner, NULL);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *first = NULL, *again = NULL, *before = NULL, *after = NULL;
	g_autoptr(GError) err = NULL;
	gsize before_len, after_len;
	bool rows;
	int error;

	if (!size)
		return 0;
	rows = data[0] % 2;
	fuzz_reset();
	(rows ? put_rows : patch)(data + 1, size - 1);
	if (!g_file_get_contents(path, &before, &before_len, NULL))
		abort();
	error = dm_state_open(path, &err);
	if (error) {
		dm_remove_all();
		if (!err || error > 0)
			g_error("%d, and no text", error);
		if (!g_file_get_contents(path, &after, &after_len, NULL) || before_len != after_len ||
		    memcmp(before, after, after_len))
			g_error("refused (%s), and changed", err->message);
		return 0;
	}
	first = print();
	if (rows)
		save_all();
	dm_state_close();
	dm_remove_all();
	if (dm_state_open(path, NULL)) {
		if (rows)
			abort();
	} else {
		again = print();
		dm_state_close();
		dm_remove_all();
		if (strcmp(first, again))
			g_error("it held\n%sand then\n%s", first, again);
	}
	return 0;
}
