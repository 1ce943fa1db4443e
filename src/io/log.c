/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The messages the kernel would print, the last MAX_BYTES of them kept for the root's file `log`.  One mutex; logging
 * is rare and off the data path (dm_log_allowed() bounds what I/O errors may log).
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <dmfs/log.h>

#define MAX_BYTES (256 * 1024)
#define PER_SECOND 10

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GQueue lines = G_QUEUE_INIT;
static size_t bytes;

static void append(char *text)
{
	struct timespec now;
	char *line;

	clock_gettime(CLOCK_BOOTTIME, &now);
	line = g_strdup_printf("[%5lld.%06ld] device-mapper: %s\n", (long long)now.tv_sec, now.tv_nsec / 1000, text);
	pthread_mutex_lock(&lock);
	g_queue_push_tail(&lines, line);
	bytes += strlen(line);
	while (bytes > MAX_BYTES) {
		char *old = g_queue_pop_head(&lines);

		bytes -= strlen(old);
		g_free(old);
	}
	pthread_mutex_unlock(&lock);
	g_free(text);
}

#define LOGGER(name)                                \
	void name(const char *fmt, ...)             \
	{                                           \
		va_list ap;                         \
                                                    \
		va_start(ap, fmt);                  \
		append(g_strdup_vprintf(fmt, ap));  \
		va_end(ap);                         \
	}

LOGGER(dm_log_err)
LOGGER(dm_log_warn)
LOGGER(dm_log_info)

gboolean dm_log_allowed(struct dm_log_limit *limit)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	if (atomic_exchange(&limit->second, (guint64)now.tv_sec + 1) != (guint64)now.tv_sec + 1)
		atomic_store(&limit->count, 0);
	return atomic_fetch_add(&limit->count, 1) < PER_SECOND;
}

void dm_log_read(GString *out)
{
	pthread_mutex_lock(&lock);
	for (GList *l = lines.head; l; l = l->next)
		g_string_append(out, l->data);
	pthread_mutex_unlock(&lock);
}
