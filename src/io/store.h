/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Backing stores: the devices at the bottom, outside of dmfs.
 *
 * A store is looked up with an opener's eyes (his user, groups and working directory) and is then the daemon's.
 */
#ifndef DMFS_IO_STORE_H
#define DMFS_IO_STORE_H

#include <sys/stat.h>
#include <sys/types.h>

#include <dmfs/io.h>

/* Who opens: the writer of a table. */
struct dm_opener {
	pid_t pid; /* 0: relative names are the daemon's own; -1: cannot be known */
	uid_t uid;
	gid_t gid;
};

/* The daemon itself. */
struct dm_opener dm_opener_self(void);
/* Makes a name absolute as the opener sees it.  NULL and an error if his working directory cannot be told. */
char *dm_opener_absolute(const struct dm_opener *who, const char *name, GError **err);

struct dm_store_path {
	int fd; /* O_PATH */
	struct stat st;
	char *path; /* absolute */
};

/* Finds a path with the opener's credentials, without opening it.  0 or a negative errno. */
int dm_store_find(const struct dm_opener *who, const char *absolute, struct dm_store_path *out, GError **err);
void dm_store_path_clear(struct dm_store_path *p);
/*
 * Opens what was found, with the opener's credentials: a store of its own, which is told of every write-back error
 * since its last FLUSH.  Stores of one path, inode and mode share the open file.  -EISDIR, -ENOTBLK (not a file or
 * block device), -EACCES, -EROFS, …
 */
int dm_store_open(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode,
		  struct dm_dev **out, GError **err);

/*
 * One step of a dm_dev_provisioned(): false when there have been so many that the rest is taken as provisioned.  A
 * table may have millions of lines, and there may be very many ways from a device down to another.
 */
bool dm_provisioned_step(void);

/*
 * The whole of a regular file of at most max bytes, with the opener's credentials.  -EISDIR, -EINVAL, -EFBIG, -EACCES,
 * …
 */
int dm_store_read_file(const struct dm_opener *who, const struct dm_store_path *p, size_t max, GBytes **out,
		       GError **err);

/* Flushes every open store, as at unmount.  0 or the first negative errno. */
int dm_store_flush_all(void);

/* Names that are not paths (URIs) are for other kinds of stores; NULL if there is none for it. */
struct dm_store_scheme {
	const char *prefix; /* "nbd://" */
	int (*open)(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err);
};
const struct dm_store_scheme *dm_store_scheme_find(const char *name);
/* One kind more, for tests: devices of their own in tables.  Before anything is opened; NULL otherwise. */
extern const struct dm_store_scheme *dm_store_scheme_more;


#endif
