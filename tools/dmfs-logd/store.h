/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The clean bits of a clustered-disk log on its disk (lib/dirty_log_format.h): a file or a block device. */
#ifndef DMFS_LOGD_STORE_H
#define DMFS_LOGD_STORE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct log_store;

/*
 * Opens it, locks it against other servers and daemons, and reads it.  anew: it may hold anything.  NULL and *err: it
 * is in use, too small, or holds something else than a log of so many regions.
 */
struct log_store *log_store_open(const char *path, uint64_t regions, bool anew, GError **err);
void log_store_free(struct log_store *s);
/* Whether there was a log; what it says of a region. */
bool log_store_is_log(const struct log_store *s);
bool log_store_is_clean(const struct log_store *s, uint64_t region);
/* In memory; all: every block is to be written. */
void log_store_set_clean(struct log_store *s, uint64_t region, bool clean);
void log_store_set_all(struct log_store *s);
/*
 * Writes what has changed, and if a region was marked has it on the disk.  0 or a negative errno, which stays the
 * state.
 */
int log_store_commit(struct log_store *s);
/* 'A', 'D': it could not be written, 'F': nor flushed. */
char log_store_letter(const struct log_store *s);

#endif
