/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fuzzers of the engine's languages share: an engine without a
 * mount, in an empty directory of its own with four files, which are zeroes for every input.
 *
 * Absolute names and block devices' numbers are kept out of what is fuzzed, and relative names
 * begin in that directory, so that no fuzzer opens anything else.
 */
#ifndef DMFS_FUZZ_H
#define DMFS_FUZZ_H

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/devices.h"
#include "core/type.h"
#include "targets/list.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define FUZZ_FILES 4u /* for inputs: f0 to f3 */
#define FUZZ_OWN 2u   /* f4 and f5, for the fuzzer itself: never zeroed */
#define FUZZ_FILE_BYTES (1 << 20)

static char fuzz_dir[32];
static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	pid_t tid; /* of a thread that stands in the directory */
} fuzz_cwd = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static inline char *fuzz_file(unsigned i)
{
	return g_strdup_printf("%s/f%u", fuzz_dir, i);
}

static inline void fuzz_clean_up(void)
{
	for (unsigned i = 0; i < FUZZ_FILES + FUZZ_OWN; i++) {
		g_autofree char *path = fuzz_file(i);

		unlink(path);
	}
	rmdir(fuzz_dir);
}

static inline void fuzz_zero(unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++) {
		g_autofree char *path = fuzz_file(i);
		int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

		if (fd < 0 || ftruncate(fd, FUZZ_FILE_BYTES) < 0)
			abort();
		close(fd);
	}
}

/* Zeroes in all files of the inputs. */
static inline void fuzz_reset(void)
{
	fuzz_zero(0, FUZZ_FILES);
}

static void *fuzz_stand(void *unused)
{
	if (unshare(CLONE_FS) || chdir(fuzz_dir))
		abort();
	pthread_mutex_lock(&fuzz_cwd.lock);
	fuzz_cwd.tid = gettid();
	pthread_cond_signal(&fuzz_cwd.cond);
	pthread_mutex_unlock(&fuzz_cwd.lock);
	for (;;)
		pause();
	return unused;
}

static inline void fuzz_start(void)
{
	pthread_t thread;

	dm_register_targets(dm_target_list);
	strcpy(fuzz_dir, "/dev/shm/dmfs-fuzz-XXXXXX");
	if (!mkdtemp(fuzz_dir)) {
		strcpy(fuzz_dir, "/tmp/dmfs-fuzz-XXXXXX");
		if (!mkdtemp(fuzz_dir))
			abort();
	}
	atexit(fuzz_clean_up);
	fuzz_zero(0, FUZZ_FILES + FUZZ_OWN);
	if (pthread_create(&thread, NULL, fuzz_stand, NULL))
		abort();
	pthread_mutex_lock(&fuzz_cwd.lock);
	while (!fuzz_cwd.tid)
		pthread_cond_wait(&fuzz_cwd.cond, &fuzz_cwd.lock);
	pthread_mutex_unlock(&fuzz_cwd.lock);
}

/* Whoever writes tables here: relative names begin in the directory. */
static inline struct dm_opener fuzz_opener(void)
{
	struct dm_opener who = dm_opener_self();

	who.pid = fuzz_cwd.tid;
	return who;
}

/* Whether a ':' at this place may make a MAJ:MIN, other than dmfs's own 0:MIN. */
static inline bool fuzz_number_before(const uint8_t *data, size_t at)
{
	while (at && data[at - 1] == '\\')
		at--;
	if (!at || !g_ascii_isdigit(data[at - 1]))
		return false;
	return data[at - 1] != '0' || (at > 1 && data[at - 2] != ' ');
}

/* The input as a text; every '/' becomes "@", and the word f0 to f3 the file's path. */
static inline char *fuzz_text(const uint8_t *data, size_t size)
{
	GString *out = g_string_new(NULL);

	for (size_t i = 0; i < size; i++) {
		bool word = !i || !g_ascii_isalnum(data[i - 1]);
		bool file =
		    word && data[i] == 'f' && i + 1 < size && data[i + 1] >= '0' && data[i + 1] < '0' + (int)FUZZ_FILES;

		if (file)
			g_string_append_printf(out, "%s/f%c", fuzz_dir, data[++i]);
		else if (data[i] == ':' && fuzz_number_before(data, i))
			g_string_append_c(out, ';');
		else
			g_string_append_c(out, data[i] == '/' ? '@' : data[i] ? (char)data[i] : ' ');
	}
	return g_string_free(out, FALSE);
}

/* Builds a table of these lines, a read-only one for the target that wants it; NULL if it is refused. */
static inline struct dm_table *fuzz_build(struct dm_mapped *md, const char *text)
{
	struct dm_opener who = fuzz_opener();
	enum dm_mode mode = strstr(text, " verity ") ? DM_MODE_READ : DM_MODE_RW;
	struct dm_table *t = dm_table_new(md, mode, &who);
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
	int error = 0;

	for (unsigned i = 0; lines[i] && !error; i++)
		if (*lines[i])
			error = dm_table_add_line(t, lines[i], NULL);
	if (error || dm_table_complete(t, NULL)) {
		dm_table_unref(t);
		return NULL;
	}
	return t;
}

/* A device with this table; aborts where it cannot be. */
static inline struct dm_mapped *fuzz_make(const char *name, const char *table)
{
	g_autofree char *text = fuzz_text((const uint8_t *)table, strlen(table));
	struct dm_mapped *md;
	struct dm_table *t;

	if (dm_create(name, -1, &md, NULL))
		abort();
	t = fuzz_build(md, text);
	if (!t || dm_mapped_swap(md, t, NULL, NULL, NULL))
		abort();
	return md;
}

#endif
