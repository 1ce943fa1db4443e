/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The state database (registry.h).
 *
 *   device   a row a device, by minor
 *   row      targets' own rows; the 64-bit keys are stored with the top bit
 *            turned over, so that SQLite's signed order is the keys' order
 *
 * application_id "dmfs" and user_version tell our file from others.  They are read from the file's header (bytes 60 and
 * 68) before SQLite is let near it, so that a file that is not ours is not touched at all.
 *
 * journal_mode=TRUNCATE keeps all in one file; synchronous=EXTRA makes a transaction durable at its end;
 * locking_mode=EXCLUSIVE keeps others out.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "registry.h"

#include <dmfs/error.h>
#include <dmfs/le.h>
#include <dmfs/log.h>

#define APPLICATION_ID 0x646d6673 /* "dmfs" */
#define VERSION 1

static sqlite3 *db;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *db_path;

enum {
	SAVE,
	REMOVE,
	DROP_ROWS,
	PUT_ROW,
	DELETE_ROW,
	CLEAR_ROWS,
	LOAD_ROWS,
	AGAIN,
	BEGIN,
	COMMIT,
	ROLLBACK,
	STATEMENTS,
};

static const char *const sql[STATEMENTS] = {
	[SAVE] = "REPLACE INTO device VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
	[REMOVE] = "DELETE FROM device WHERE minor=?",
	[DROP_ROWS] = "DELETE FROM row WHERE id=?",
	[PUT_ROW] = "REPLACE INTO row VALUES (?,?,?,?,?)",
	[DELETE_ROW] = "DELETE FROM row WHERE id=? AND begin=? AND name=? AND key=?",
	[CLEAR_ROWS] = "DELETE FROM row WHERE id=? AND begin=? AND name=?",
	[LOAD_ROWS] = "SELECT key, value FROM row WHERE id=? AND begin=? AND name=? ORDER BY key",
	[AGAIN] = "UPDATE device SET readonly=readonly",
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
};

static sqlite3_stmt *statements[STATEMENTS];

/* A SQLite result as an errno with a text. */
static int fail(GError **err, int rc)
{
	const char *text = db ? sqlite3_errmsg(db) : sqlite3_errstr(rc);

	switch (rc & 0xff) {
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return dm_fail(err, EBUSY, "%s is in use by another daemon", db_path);
	case SQLITE_NOTADB:
	case SQLITE_CORRUPT:
		return dm_fail(err, EINVAL, "%s is damaged: %s", db_path, text);
	case SQLITE_FULL:
		return dm_fail(err, ENOSPC, "%s: %s", db_path, text);
	case SQLITE_READONLY:
		return dm_fail(err, EROFS, "%s: %s", db_path, text);
	case SQLITE_CANTOPEN:
	case SQLITE_PERM:
		return dm_fail(err, EACCES, "%s: %s", db_path, text);
	default:
		return dm_fail(err, EIO, "%s: %s", db_path, text);
	}
}

/* --- opening ---------------------------------------------------------------------------- */

static bool has_journal(const char *path)
{
	g_autofree char *journal = g_strdup_printf("%s-journal", path);
	struct stat st;

	return !stat(journal, &st) && st.st_size > 0;
}

/* Looks at the header of a file that exists and is not empty. */
static int check_header(const char *path, GError **err)
{
	unsigned char header[100] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 0 : dm_fail(err, errno, "%s: %s", path, g_strerror(errno));
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return dm_fail(err, EINVAL, "%s is not a regular file", path);
	}
	n = pread(fd, header, sizeof header, 0);
	close(fd);
	if (n == 0 || has_journal(path)) /* new, or SQLite must tidy up first */
		return 0;
	if (n != sizeof header || memcmp(header, "SQLite format 3", 16))
		return dm_fail(err, EINVAL, "%s is not a state database (no SQLite file)", path);
	if (get_be32(header + 68) != APPLICATION_ID)
		return dm_fail(err, EINVAL, "%s is an SQLite database, but not a state database of dmfs", path);
	if (get_be32(header + 60) > VERSION)
		return dm_fail(err, EINVAL, "%s was written by a newer dmfs (format %u, this one knows %d)", path,
			       get_be32(header + 60), VERSION);
	return 0;
}

/*
 * Makes a new one for the owner alone, whatever the umask is; the journal gets the file's mode.  What is there stays.
 */
static void make_private(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return; /* SQLite says why */
	fchmod(fd, 0600);
	close(fd);
}

static int run(const char *text, GError **err)
{
	int rc = sqlite3_exec(db, text, NULL, NULL, NULL);

	return rc == SQLITE_OK ? 0 : fail(err, rc);
}

/* The one number or word that a pragma answers. */
static int ask(const char *pragma, char **answer, GError **err)
{
	sqlite3_stmt *stmt;
	int rc = sqlite3_prepare_v2(db, pragma, -1, &stmt, NULL);

	if (rc == SQLITE_OK)
		rc = sqlite3_step(stmt);
	if (rc == SQLITE_ROW)
		*answer = g_strdup((const char *)sqlite3_column_text(stmt, 0));
	sqlite3_finalize(stmt);
	return rc == SQLITE_ROW ? 0 : fail(err, rc);
}

static int make_tables(GError **err)
{
	return run("CREATE TABLE device (minor INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, uuid TEXT NOT NULL,"
		   " readonly INT NOT NULL,"
		   " live TEXT, live_id INT NOT NULL, live_readonly INT NOT NULL, live_secret INT NOT NULL,"
		   " inactive TEXT, inactive_id INT NOT NULL, inactive_readonly INT NOT NULL,"
		   " inactive_secret INT NOT NULL,"
		   " image_mode INT NOT NULL, image_uid INT NOT NULL, image_gid INT NOT NULL);"
		   "CREATE TABLE row (id INT NOT NULL, begin INT NOT NULL, name TEXT NOT NULL, key INT NOT NULL,"
		   " value BLOB NOT NULL, PRIMARY KEY (id, begin, name, key)) WITHOUT ROWID;"
		   "PRAGMA application_id=1684891251; PRAGMA user_version=1;",
		   err);
}

static int check_or_make(GError **err)
{
	g_autofree char *id = NULL, *version = NULL, *check = NULL, *objects = NULL;
	int error = ask("SELECT count(*) FROM sqlite_master", &objects, err);

	if (error)
		return error;
	error = ask("PRAGMA application_id", &id, err);
	if (!error && !strcmp(objects, "0") && !strcmp(id, "0"))
		return make_tables(err);
	if (!error)
		error = ask("PRAGMA user_version", &version, err);
	if (!error && g_ascii_strtoull(id, NULL, 10) != APPLICATION_ID)
		error = dm_fail(err, EINVAL, "%s is an SQLite database, but not a state database of dmfs", db_path);
	if (!error && g_ascii_strtoull(version, NULL, 10) > VERSION)
		error = dm_fail(err, EINVAL, "%s was written by a newer dmfs (format %s)", db_path, version);
	if (!error)
		error = ask("PRAGMA quick_check(1)", &check, err);
	if (!error && strcmp(check, "ok"))
		error = dm_fail(err, EINVAL, "%s is damaged: %s", db_path, check);
	return error;
}

static int prepare(GError **err)
{
	for (unsigned i = 0; i < STATEMENTS; i++) {
		int rc = sqlite3_prepare_v3(db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &statements[i], NULL);

		if (rc != SQLITE_OK) {
			if (rc == SQLITE_ERROR)
				return dm_fail(err, EINVAL, "%s is damaged: %s", db_path, sqlite3_errmsg(db));
			return fail(err, rc);
		}
	}
	return 0;
}

int dm_registry_open(const char *path, GError **err)
{
	int error = check_header(path, err), rc;

	if (error)
		return error;
	make_private(path);
	db_path = g_strdup(path);
	rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, NULL);
	if (rc != SQLITE_OK)
		error = fail(err, rc);
	if (!error)
		error = run("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=EXTRA;"
			    "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; BEGIN EXCLUSIVE",
			    err);
	if (!error) {
		error = check_or_make(err);
		if (run(error ? "ROLLBACK" : "COMMIT", error ? NULL : err) && !error)
			error = -EIO;
	}
	if (!error)
		error = prepare(err);
	if (error)
		dm_registry_close();
	return error;
}

void dm_registry_close(void)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < STATEMENTS; i++) {
		sqlite3_finalize(statements[i]);
		statements[i] = NULL;
	}
	sqlite3_close(db);
	db = NULL;
	g_clear_pointer(&db_path, g_free);
	pthread_mutex_unlock(&lock);
}

bool dm_registry_is_open(void)
{
	return db != NULL;
}

/* --- transactions -------------------------------------------------------------------------- */

/* Runs a statement whose values are bound, and makes it ready for the next time. */
static int step(int which, GError **err)
{
	sqlite3_stmt *stmt = statements[which];
	int rc = sqlite3_step(stmt), error = rc == SQLITE_DONE ? 0 : fail(err, rc);

	sqlite3_reset(stmt);
	sqlite3_clear_bindings(stmt);
	return error;
}

static int begin(GError **err)
{
	pthread_mutex_lock(&lock);
	if (!db) {
		pthread_mutex_unlock(&lock);
		return dm_fail(err, EIO, "the state database is closed");
	}
	int error = step(BEGIN, err);

	if (error)
		pthread_mutex_unlock(&lock);
	return error;
}

/* What a transaction was to do. */
struct goal {
	bool (*done)(const struct goal *, sqlite3 *file);
	const struct dm_registry_device *devices;
	size_t n;
	unsigned minor;
	uint64_t id, begin;
	const char *name;
	bool clear;
	const struct dm_registry_change *changes;
};

/* The one number a statement with bound values gives, or -1; ends the statement. */
static int64_t count(sqlite3_stmt *stmt)
{
	int64_t n = stmt && sqlite3_step(stmt) == SQLITE_ROW ? sqlite3_column_int64(stmt, 0) : -1;

	sqlite3_finalize(stmt);
	return n;
}

static sqlite3_stmt *look(sqlite3 *file, const char *text)
{
	sqlite3_stmt *stmt = NULL;

	sqlite3_prepare_v2(file, text, -1, &stmt, NULL);
	return stmt;
}

/* Whether the open journal would take a transaction back: asked of the file itself, wherever SQLite keeps it. */
static bool journal_holds_something(void)
{
	sqlite3_file *journal = NULL;
	sqlite3_int64 size;

	if (sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &journal) == SQLITE_OK && journal &&
	    journal->pMethods)
		return journal->pMethods->xFileSize(journal, &size) != SQLITE_OK || size > 0;
	return has_journal(db_path);
}

/*
 * After a COMMIT that failed: whether it has happened.  A transaction is made by emptying the journal, and what failed
 * may be the sync of that.  The connection may not be able to tell any more; the file is, if no journal takes it back.
 */
static bool has_happened(const struct goal *goal)
{
	g_autofree char *escaped = g_uri_escape_string(db_path, "/", FALSE);
	g_autofree char *uri = g_strdup_printf("file:%s?immutable=1", escaped);
	sqlite3 *file = NULL;
	bool done = false;

	if (!goal->done || journal_holds_something())
		return false;
	if (sqlite3_open_v2(uri, &file, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL) == SQLITE_OK)
		done = goal->done(goal, file);
	sqlite3_close(file);
	return done;
}

/* It cannot be undone any more than another, and only has to become durable. */
static void make_durable(void)
{
	g_autoptr(GError) err = NULL;

	if (step(BEGIN, &err) || step(AGAIN, &err) || step(COMMIT, &err)) {
		step(ROLLBACK, NULL);
		dm_log_err("state: a change is made, but may not outlive a power loss: %s", err->message);
	}
}

static int end(int error, const struct goal *goal, GError **err)
{
	g_autoptr(GError) why = NULL;

	if (error) {
		step(ROLLBACK, NULL);
	} else if (step(COMMIT, &why)) {
		step(ROLLBACK, NULL);
		if (has_happened(goal)) {
			make_durable();
		} else {
			error = -why->code;
			g_propagate_error(err, g_steal_pointer(&why));
		}
	}
	pthread_mutex_unlock(&lock);
	return error;
}

static int drop_rows(const uint64_t ids[2], GError **err)
{
	int error = 0;

	for (int i = 0; i < 2 && !error; i++) {
		if (!ids[i])
			continue;
		sqlite3_bind_int64(statements[DROP_ROWS], 1, (int64_t)ids[i]);
		error = step(DROP_ROWS, err);
	}
	return error;
}

static void bind_table(sqlite3_stmt *stmt, int column, const struct dm_registry_table *t)
{
	if (t->text)
		sqlite3_bind_text64(stmt, column, t->text, strlen(t->text), SQLITE_STATIC, SQLITE_UTF8);
	sqlite3_bind_int64(stmt, column + 1, (int64_t)t->id);
	sqlite3_bind_int(stmt, column + 2, t->readonly);
	sqlite3_bind_int(stmt, column + 3, t->secret);
}

/* A device's 15 columns. */
static void bind_device(sqlite3_stmt *stmt, const struct dm_registry_device *d)
{
	sqlite3_bind_int64(stmt, 1, d->minor);
	sqlite3_bind_text(stmt, 2, d->name, -1, SQLITE_STATIC);
	sqlite3_bind_text(stmt, 3, d->uuid, -1, SQLITE_STATIC);
	sqlite3_bind_int(stmt, 4, d->readonly);
	bind_table(stmt, 5, &d->live);
	bind_table(stmt, 9, &d->inactive);
	sqlite3_bind_int64(stmt, 13, d->image_mode);
	sqlite3_bind_int64(stmt, 14, d->image_uid);
	sqlite3_bind_int64(stmt, 15, d->image_gid);
}

static int save_one(const struct dm_registry_device *d, const uint64_t drop_ids[2], GError **err)
{
	int error;

	bind_device(statements[SAVE], d);
	error = step(SAVE, err);
	return error ? error : drop_rows(drop_ids, err);
}

static bool is_saved(const struct goal *goal, sqlite3 *file)
{
	bool all = true;

	for (size_t i = 0; i < goal->n && all; i++) {
		sqlite3_stmt *stmt =
			look(file, "SELECT count(*) FROM device WHERE minor IS ? AND name IS ? AND uuid IS ?"
				   " AND readonly IS ?"
				   " AND live IS ? AND live_id IS ? AND live_readonly IS ? AND live_secret IS ?"
				   " AND inactive IS ? AND inactive_id IS ? AND inactive_readonly IS ?"
				   " AND inactive_secret IS ?"
				   " AND image_mode IS ? AND image_uid IS ? AND image_gid IS ?");

		bind_device(stmt, &goal->devices[i]);
		all = count(stmt) == 1;
	}
	return all;
}

static bool is_removed(const struct goal *goal, sqlite3 *file)
{
	sqlite3_stmt *stmt = look(file, "SELECT count(*) FROM device WHERE minor=?");

	sqlite3_bind_int64(stmt, 1, goal->minor);
	return count(stmt) == 0;
}

int dm_registry_save(const struct dm_registry_device *d, const uint64_t (*drop_ids)[2], size_t n, GError **err)
{
	int error = begin(err);

	if (error)
		return error;
	for (size_t i = 0; i < n && !error; i++)
		error = save_one(&d[i], drop_ids[i], err);
	return end(error, &(struct goal){.done = is_saved, .devices = d, .n = n}, err);
}

int dm_registry_remove(unsigned minor, const uint64_t drop_ids[2], GError **err)
{
	int error = begin(err);

	if (error)
		return error;
	sqlite3_bind_int64(statements[REMOVE], 1, minor);
	error = step(REMOVE, err);
	if (!error)
		error = drop_rows(drop_ids, err);
	return end(error, &(struct goal){.done = is_removed, .minor = minor}, err);
}

/* --- reading -------------------------------------------------------------------------------- */

void dm_registry_device_clear(struct dm_registry_device *d)
{
	g_free(d->name);
	g_free(d->uuid);
	g_free(d->live.text);
	g_free(d->inactive.text);
	memset(d, 0, sizeof *d);
}

static char *column_text(sqlite3_stmt *stmt, int column)
{
	return g_strdup((const char *)sqlite3_column_text(stmt, column));
}

static struct dm_registry_table column_table(sqlite3_stmt *stmt, int column)
{
	return (struct dm_registry_table){
		.text = column_text(stmt, column),
		.id = (uint64_t)sqlite3_column_int64(stmt, column + 1),
		.readonly = sqlite3_column_int(stmt, column + 2),
		.secret = sqlite3_column_int(stmt, column + 3),
	};
}

int dm_registry_each(int (*fn)(struct dm_registry_device *, void *), void *data, GError **err)
{
	sqlite3_stmt *stmt;
	int rc, error = 0;

	rc = sqlite3_prepare_v2(db, "SELECT * FROM device ORDER BY minor", -1, &stmt, NULL);
	if (rc != SQLITE_OK)
		return fail(err, rc);
	while (!error && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
		struct dm_registry_device d = {
			.minor = (unsigned)CLAMP(sqlite3_column_int64(stmt, 0), -1, UINT32_MAX),
			.name = column_text(stmt, 1),
			.uuid = column_text(stmt, 2),
			.readonly = sqlite3_column_int(stmt, 3),
			.live = column_table(stmt, 4),
			.inactive = column_table(stmt, 8),
			.image_mode = (unsigned)sqlite3_column_int64(stmt, 12),
			.image_uid = (unsigned)sqlite3_column_int64(stmt, 13),
			.image_gid = (unsigned)sqlite3_column_int64(stmt, 14),
		};

		error = fn(&d, data);
	}
	if (!error && rc != SQLITE_DONE)
		error = fail(err, rc);
	sqlite3_finalize(stmt);
	return error;
}

int dm_registry_max_id(uint64_t *id, GError **err)
{
	g_autofree char *text = NULL;
	int error = ask("SELECT max(coalesce(max(live_id),0), coalesce(max(inactive_id),0),"
			" coalesce((SELECT max(id) FROM row),0)) FROM device",
			&text, err);

	*id = text ? g_ascii_strtoull(text, NULL, 10) : 0;
	return error;
}

/* --- rows ------------------------------------------------------------------------------------- */

#define FLIP(key) ((int64_t)((key) ^ (UINT64_C(1) << 63)))

static void bind_set(sqlite3_stmt *stmt, uint64_t id, uint64_t begin_sector, const char *name)
{
	sqlite3_bind_int64(stmt, 1, (int64_t)id);
	sqlite3_bind_int64(stmt, 2, (int64_t)begin_sector);
	sqlite3_bind_text(stmt, 3, name, -1, SQLITE_STATIC);
}

int dm_registry_rows_load(uint64_t id, uint64_t begin_sector, const char *name,
			  int (*fn)(uint64_t key, const void *value, size_t len, void *data), void *data,
			  GError **err)
{
	sqlite3_stmt *stmt = statements[LOAD_ROWS];
	int error = begin(err), rc = SQLITE_DONE;

	if (error)
		return error;
	bind_set(stmt, id, begin_sector, name);
	while (!error && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
		error = fn((uint64_t)sqlite3_column_int64(stmt, 0) ^ (UINT64_C(1) << 63),
			   sqlite3_column_blob(stmt, 1), (size_t)sqlite3_column_bytes(stmt, 1), data);
	if (!error && rc != SQLITE_DONE)
		error = fail(err, rc);
	sqlite3_reset(stmt);
	sqlite3_clear_bindings(stmt);
	return end(error, &(struct goal){.done = NULL}, err);
}

static bool are_rows_saved(const struct goal *goal, sqlite3 *file)
{
	bool all = true;
	int64_t left = 0;
	sqlite3_stmt *stmt;

	for (size_t i = 0; i < goal->n && all; i++) {
		const struct dm_registry_change *c = &goal->changes[i];

		stmt = look(file, "SELECT count(*) FROM row WHERE id=? AND begin=? AND name=? AND key=?"
				  " AND (?5 IS NULL OR value=?5)");
		bind_set(stmt, goal->id, goal->begin, goal->name);
		sqlite3_bind_int64(stmt, 4, FLIP(c->key));
		if (c->value)
			sqlite3_bind_blob64(stmt, 5, c->value, c->len, SQLITE_STATIC);
		all = count(stmt) == (c->value != NULL);
		left += c->value != NULL;
	}
	if (all && goal->clear) {
		stmt = look(file, "SELECT count(*) FROM row WHERE id=? AND begin=? AND name=?");
		bind_set(stmt, goal->id, goal->begin, goal->name);
		all = count(stmt) == left;
	}
	return all;
}

static int change_row(uint64_t id, uint64_t begin_sector, const char *name, const struct dm_registry_change *c,
		      GError **err)
{
	int which = c->value ? PUT_ROW : DELETE_ROW;
	sqlite3_stmt *stmt = statements[which];

	bind_set(stmt, id, begin_sector, name);
	sqlite3_bind_int64(stmt, 4, FLIP(c->key));
	if (c->value)
		sqlite3_bind_blob64(stmt, 5, c->value, c->len, SQLITE_STATIC);
	return step(which, err);
}

int dm_registry_rows_save(uint64_t id, uint64_t begin_sector, const char *name, bool clear,
			  const struct dm_registry_change *changes, size_t n, GError **err)
{
	int error = begin(err);

	if (error)
		return error;
	if (clear) {
		bind_set(statements[CLEAR_ROWS], id, begin_sector, name);
		error = step(CLEAR_ROWS, err);
	}
	for (size_t i = 0; i < n && !error; i++)
		error = change_row(id, begin_sector, name, &changes[i], err);
	return end(error,
		   &(struct goal){.done = are_rows_saved,
				  .id = id,
				  .begin = begin_sector,
				  .name = name,
				  .clear = clear,
				  .changes = changes,
				  .n = n},
		   err);
}
