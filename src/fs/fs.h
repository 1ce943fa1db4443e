/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The FUSE face: the control tree over the engine.
 *
 * Inodes: 1 is the root; 2 and on are the root's files; a device has a block of INODES inodes, of which the first is
 * its directory and the others its files, in the order of the tables of kinds below.  A device's inodes are never used
 * again.
 *
 * One kind of file is one struct dmfs_file, mostly in a file of its own.  Texts are made by read_text() at each read at
 * offset 0.
 */
#ifndef DMFS_FS_FS_H
#define DMFS_FS_FS_H

#include <fuse_lowlevel.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "core/devices.h"

/* Connections, by number: the tree, and images alone (mount.h). */
enum { DMFS_TREE, DMFS_IMAGES, DMFS_MOUNTS };

#define DMFS_INODES 32
#define DMFS_IMAGE_KIND 1 /* its place in a device's files */

struct dmfs_handle;
struct dmfs_device;

/* Options of the mount. */
struct dmfs_options {
	int writeback;
	unsigned threads, nbd_timeout;
	unsigned max_read; /* bytes; 0: no limit */
	size_t max_waiting; /* bytes of writes that wait */
	int allow_other;
	uid_t uid;
	gid_t gid;
};
extern struct dmfs_options dmfs_options;

struct dmfs_file {
	const char *name;
	mode_t mode; /* permission bits */
	/* Makes the text a reader gets. */
	int (*read_text)(struct dmfs_handle *, GString *);
	/* A text comes in, of h->writer's; files whose writes act at once.  0 or a negative errno. */
	int (*write_text)(struct dmfs_handle *, fuse_req_t, char *text, size_t len, GError **);
	/* A text that only asks, so that `error` goes on to tell of what was done before; NULL: none does. */
	bool (*asks)(const char *text);
	bool long_text; /* it may come in several pieces: see text.c */
	/* A long text that ends so (len > 0) goes on in the next write; NULL: none does. */
	bool (*unfinished)(const char *text, size_t len);
	bool answers_last; /* an answer is the last that read and write do: they need no reference to the handle */
	/* Files that do more than that. */
	void (*open)(fuse_req_t, struct dmfs_handle *, struct fuse_file_info *);
	void (*read)(fuse_req_t, struct dmfs_handle *, size_t size, off_t off, struct fuse_file_info *);
	void (*write)(fuse_req_t, struct dmfs_handle *, const char *buf, size_t size, off_t off, struct fuse_file_info *);
	void (*flush)(fuse_req_t, struct dmfs_handle *);
	void (*fsync)(fuse_req_t, struct dmfs_handle *); /* without: nothing to do */
	void (*fallocate)(fuse_req_t, struct dmfs_handle *, int mode, off_t off, off_t len);
	void (*lseek)(fuse_req_t, struct dmfs_handle *, off_t off, int whence);
	/* ph may be NULL; else it is the file's to notify and destroy. */
	void (*poll)(fuse_req_t, struct dmfs_handle *, struct fuse_pollhandle *ph);
	void (*truncate)(struct dmfs_handle *, struct dmfs_device *, fuse_req_t); /* handle may be NULL */
	void (*release)(struct dmfs_handle *);
};

/* Opens of a device's image; closing.c's. */
struct dmfs_closing {
	unsigned opens, flushed, releases;
};

/* A device as the kernel's inodes know it; lives as long as the engine's device. */
struct dmfs_device {
	struct dm_mapped *md;
	uint64_t id;
	uint64_t nlookup[DMFS_MOUNTS]; /* of all its inodes; while one is not 0 md has a reference; under nodes lock */
	struct timespec created;
	struct dmfs_image *image; /* image.c's, made at the first open */
	struct dmfs_closing closing;
	_Atomic unsigned cached_opens[DMFS_MOUNTS]; /* opens of the image that use the page cache */
	GList *drafts; /* open files that build tables; table.c's */
	pthread_mutex_t lock;
};

/* An open control file or image. */
struct dmfs_handle {
	const struct dmfs_file *file;
	atomic_uint refs; /* the open file's, and requests' that may touch it after their answer */
	struct dmfs_device *device; /* NULL for the root's files; holds a reference to its md */
	unsigned mount;             /* that it was opened through */
	int flags;                  /* of open(2) */
	atomic_bool closing;        /* an image flushed and not used since; closing.c's */
	pthread_mutex_t lock;
	GString *text;    /* what the reader goes on reading */
	GString *partial; /* what a writer of a long text has written so far */
	struct dm_opener writer; /* of the text */
	int refused;      /* the error of its last piece, which was at refused_at */
	off_t refused_at;
	void *data;    /* the kind's */
};

extern const struct dmfs_file *const dmfs_root_files[], *const dmfs_device_files[];

/* front.c, opened.c, inode.c, session.c */
/*
 * Has the kernel forget what it has cached of a file: of bytes from offset on, 0 for all.  Waits for pages that are
 * being read or written, so not from a thread that bios wait for.
 */
void dmfs_invalidate(unsigned mount, fuse_ino_t ino, off_t offset, off_t bytes);
/*
 * Waits for those under way and makes further ones do nothing: while the workers still serve what holds the pages, and
 * nothing else waits for ever (dm_end_waiting()).
 */
void dmfs_end_invalidations(unsigned mount);
/* Before that they do nothing: the connection is not there yet. */
void dmfs_begin_invalidations(unsigned mount);
void dmfs_nodes_init(void);
/* Frees what was open when the session ended; the kernel does not tell of these any more. */
void dmfs_nodes_end(unsigned mount);
/* The connection that a request came by. */
unsigned dmfs_mount_of(fuse_req_t req);
/* How many opens of a device's image use a page cache. */
unsigned dmfs_cached_opens(const struct dmfs_device *d);
struct dmfs_device *dmfs_device_of(struct dm_mapped *md); /* makes it if need be */
struct dm_mapped *dmfs_find_inode(ino_t ino);             /* of an image or directory, with a reference, or NULL */
/*
 * What an inode is: the file or NULL for a directory, and the device with a reference to its md (or NULL). False: no
 * such inode.
 */
bool dmfs_inode(fuse_ino_t ino, const struct dmfs_file **file, struct dmfs_device **device);
bool dmfs_is_image(fuse_ino_t ino);
fuse_ino_t dmfs_ino(struct dmfs_device *d, unsigned kind);
unsigned dmfs_kind_of(const struct dmfs_file *const *files, const struct dmfs_file *file);
void dmfs_lookup_count(struct dmfs_device *d, unsigned mount, int64_t change);
void dmfs_device_put(struct dmfs_device *d);
extern const struct fuse_lowlevel_ops dmfs_ops, dmfs_images_ops;

/* text.c: files that are a text */
void dmfs_text_read(fuse_req_t req, struct dmfs_handle *h, size_t size, off_t off);
/* Frees a text that may hold a key; NULL is fine. */
void dmfs_text_free(GString *text);
void dmfs_text_write(fuse_req_t req, struct dmfs_handle *h, const char *buf, size_t size, off_t off);
void dmfs_text_flush(fuse_req_t req, struct dmfs_handle *h);
/* The last close: what no FLUSH has taken. */
void dmfs_text_release(fuse_req_t req, struct dmfs_handle *h);
/* The opener that a request stands for. */
struct dm_opener dmfs_opener(fuse_req_t req);
bool dmfs_interrupted(void *req);
/* The first word and whether there is just that (blanks around it aside). */
char *dmfs_strip(char *text);

/*
 * Ends an open(): with an error it could not be done, which is answered; with 0 it was done, but nobody is there any
 * more to take it, and the file is released.
 */
void dmfs_open_failed(fuse_req_t req, struct dmfs_handle *h, int error);

/* writer.c */
/*
 * Whether a thread, or the process it is of, is dying by a signal: it has SIGKILL pending, or is on its way out.  *tgid
 * is its process; 0 on entry if that is not known yet, and left so if the thread is gone.
 */
bool dmfs_process_dying(pid_t tid, pid_t *tgid);
/* The process that a thread is of; 0 if it is gone. */
pid_t dmfs_process_of(pid_t tid);
/* Whether the process that closes is dying by a signal. */
bool dmfs_writer_killed(fuse_req_t req);
/* Whether it has the file open by another descriptor still, as a shell has that redirects: it closes one of two. */
bool dmfs_writer_has_open(fuse_req_t req, struct dmfs_handle *h);

/* image.c */
extern const struct dmfs_file dmfs_image_file;
void dmfs_image_swapped(struct dm_mapped *md);
void dmfs_image_free(struct dmfs_device *d);

/* request.c: the thread is about to wait, perhaps for a request that it submits. */
void dmfs_request_blocks(void);

/* closing.c */
void dmfs_closing_opened(struct dmfs_device *d);
void dmfs_closing_flushed(struct dmfs_handle *h);
void dmfs_closing_not(struct dmfs_handle *h);
void dmfs_closing_released(struct dmfs_handle *h);
/* dm_remove(), after the closes of its image that are still on their way. */
int dmfs_remove(struct dm_mapped *md, GError **err);
/* dm_remove_deferred() after the same wait, so that one nobody uses any more is gone at the return. */
int dmfs_remove_deferred(struct dm_mapped *md, GError **err);

#endif
