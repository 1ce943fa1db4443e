/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files that stores share (shared_file.h).  The hash's lock is taken to open and close, never for I/O. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "fs_share.h"
#include "shared_file.h"

#include <dmfs/locked.h>

int (*shared_file_fdatasync)(int fd) = fdatasync;

static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *files;

static guint hash_file(gconstpointer p)
{
	const struct shared_file *f = p;

	return g_str_hash(f->path) ^ (guint)f->st_ino ^ (guint)f->mode << 20;
}

static gboolean equal_file(gconstpointer a, gconstpointer b)
{
	const struct shared_file *x = a, *y = b;

	return x->st_ino == y->st_ino && x->st_dev == y->st_dev && x->mode == y->mode &&
	       x->block_device == y->block_device && !strcmp(x->path, y->path);
}

/* --- open and close ------------------------------------------------------------------------ */

/* With the lock: one that is being freed is none. */
static struct shared_file *find(const struct shared_file *key)
{
	struct shared_file *f = files ? g_hash_table_lookup(files, key) : NULL;
	int refs = f ? atomic_load(&f->refs) : 0;

	dm_assert_locked(&files_lock);
	while (refs > 0)
		if (atomic_compare_exchange_weak(&f->refs, &refs, refs + 1))
			return f;
	return NULL;
}

struct shared_file *shared_file_find(const struct shared_file *key)
{
	struct shared_file *f;

	pthread_mutex_lock(&files_lock);
	f = find(key);
	pthread_mutex_unlock(&files_lock);
	return f;
}

static void file_free(struct shared_file *f)
{
	fs_share_enter_anyway(f->share); /* a close waits for its server */
	close(f->fd);
	if (f->dsync_fd >= 0)
		close(f->dsync_fd);
	fs_share_leave(f->share);
	fs_share_put(f->share);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->synced);
	g_free(f->path);
	g_free(f);
}

struct shared_file *shared_file_new(const struct shared_file *opened)
{
	struct shared_file *f = g_new0(struct shared_file, 1), *other;

	f->mode = opened->mode;
	f->block_device = opened->block_device;
	f->st_dev = opened->st_dev;
	f->st_ino = opened->st_ino;
	f->path = opened->path;
	f->share = opened->share;
	f->fd = opened->fd;
	f->dsync_fd = opened->dsync_fd;
	atomic_init(&f->refs, 1);
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->synced, NULL);
	pthread_mutex_lock(&files_lock);
	if (!files)
		files = g_hash_table_new(hash_file, equal_file);
	other = find(f);
	if (!other)
		g_hash_table_replace(files, f, f);
	pthread_mutex_unlock(&files_lock);
	if (!other)
		return f;
	file_free(f);
	return other;
}

void shared_file_put(struct shared_file *f)
{
	if (atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	pthread_mutex_lock(&files_lock);
	if (g_hash_table_lookup(files, f) == f) /* else another has taken its place already */
		g_hash_table_remove(files, f);
	pthread_mutex_unlock(&files_lock);
	file_free(f);
}

/* --- errors -------------------------------------------------------------------------------- */

unsigned shared_file_errors(struct shared_file *f)
{
	unsigned errors;

	pthread_mutex_lock(&f->lock);
	errors = f->errors;
	pthread_mutex_unlock(&f->lock);
	return errors;
}

/* One fsync(2), the lock dropped around it. */
static void sync_once(struct shared_file *f)
{
	uint64_t nr = ++f->begun;
	int error;

	f->syncing = true;
	pthread_mutex_unlock(&f->lock);
	error = shared_file_fdatasync(f->fd) < 0 ? -errno : 0;
	pthread_mutex_lock(&f->lock);
	f->syncing = false;
	f->done = nr;
	if (error) {
		f->errors++;
		f->error = error;
	}
	pthread_cond_broadcast(&f->synced);
}

int shared_file_sync(struct shared_file *f, unsigned *seen, bool tell)
{
	uint64_t wanted;
	int error = 0;

	pthread_mutex_lock(&f->lock);
	wanted = f->begun + 1; /* one that is under way may have begun before what was written last */
	while (f->done < wanted) {
		if (f->syncing)
			pthread_cond_wait(&f->synced, &f->lock);
		else
			sync_once(f);
	}
	if (*seen != f->errors) {
		error = f->error;
		if (tell)
			*seen = f->errors;
	}
	pthread_mutex_unlock(&f->lock);
	return error;
}

int shared_files_sync(void)
{
	GHashTableIter iter;
	gpointer key;
	int error = 0;

	pthread_mutex_lock(&files_lock);
	if (files) {
		g_hash_table_iter_init(&iter, files);
		while (g_hash_table_iter_next(&iter, &key, NULL)) {
			struct shared_file *f = key;
			unsigned seen = shared_file_errors(f);
			int one = 0;

			if (f->mode & DM_MODE_WRITE) {
				fs_share_enter_anyway(f->share);
				one = shared_file_sync(f, &seen, true);
				fs_share_leave(f->share);
			}
			error = error ? error : one;
		}
	}
	pthread_mutex_unlock(&files_lock);
	return error;
}
