/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libdmfs-run.so: what a program under dmfs-run sees of a mount.
 *
 * Calls (calls.h) come in by their libc names.  A path into /dev, /sys and a few other places is led to the shadow
 * (place.c), a directory that dmfs-run keeps for each mount (shadow.c): its /sys has the files that tools read there.
 * What is a device is found by what a file is, not by its name (node.c), so a descriptor that was inherited is one,
 * too. ioctl(2) then goes to control.c (the device mapper) or block.c (block devices).
 *
 * Nothing here is trusted by the daemon: all that a program asks for is written to the tree as anyone would.
 * A call that is not about devices costs a look at the path's first bytes, or a comparison of st_dev.
 * Everything may be called from any thread, from a signal's handler and after fork(): the fast ways take no lock and
 * no memory, but for the walk over a shadow that is out of date.
 */
#ifndef DMFS_RUN_H
#define DMFS_RUN_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>

#define ENV_SHADOW "DMFS_RUN"

/* --- base.c: a mount and its shadow; libc's own calls; texts --------------------------------------- */

extern struct run {
	bool on; /* there are a mount and a shadow */
	char mount[PATH_MAX], shadow[PATH_MAX];
	size_t mount_len, shadow_len;
	dev_t mount_dev;
	ino_t control_ino, events_ino;
	unsigned dm_major, disk_major;
} run;

/* Reads the environment and the shadow; once, at start. */
void run_init(void);

/* libc's own function of a name; it is there. */
void *run_next(const char *name);
#define NEXT(name)                                                                                                     \
	({                                                                                                             \
		static __typeof__(&name) next_##name;                                                                  \
		if (!next_##name)                                                                                      \
			next_##name = (__typeof__(&name))run_next(#name);                                              \
		next_##name;                                                                                           \
	})

/* A text that grows; once memory is short it stays as it is and failed is set. */
struct text {
	char *s;
	size_t len, room;
	bool failed;
};

#define AUTO_TEXT __attribute__((cleanup(text_free))) struct text
void text_free(struct text *t); /* wipes it: it may hold a key */
void text_add(struct text *t, const void *s, size_t len);
void text_str(struct text *t, const char *s);
void text_printf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Its string, "" if there is none. */
const char *text_get(const struct text *t);

/* Whole files; 0 or a negative errno. */
int file_read(const char *path, struct text *out);
int file_write(const char *path, const void *data, size_t len, int more_flags);
/* A symbolic link's target; false: none. */
bool link_read(const char *path, char *out, size_t size);
/* As snprintf; false if it does not fit. */
bool path_format(char out[PATH_MAX], const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- tree.c: devices of the mount ------------------------------------------------------------------ */

struct device {
	char name[128], uuid[129];
	unsigned minor, open, events, targets;
	bool suspended, readonly, live, inactive, deferred;
};

/* What the root tells of each. */
struct listed {
	char name[128], uuid[129];
	unsigned minor, events;
};

/* Calls fn with each device, in strcmp's order of names, until it returns not 0, and returns that; or a negative errno.
 */
int tree_each(int (*fn)(const struct listed *d, void *data), void *data);
bool tree_valid_name(const char *name);
int tree_read(const char *name, const char *file, struct text *out);
int tree_write(const char *name, const char *file, const void *data, size_t len, int more_flags);
int tree_message(const char *name, const char *text, size_t len, struct text *reply);
/* 0, -ENXIO (no such device) or another errno. */
int tree_device(const char *name, struct device *d);
int tree_by_minor(unsigned minor_nr, char name[128]);
int tree_by_uuid(const char *uuid, char name[128]);
/* A device's minor number; -1: there is none. */
long tree_minor(const char *name);
/* Quotes a word for a table or for `control`. */
void tree_quote(struct text *out, const char *word);

/* --- shadow.c, disks.c ----------------------------------------------------------------------------- */

/* Makes the shadow as the mount is now, if it has changed. */
void shadow_sync(void);
/* The same, changed or not. */
void shadow_sync_now(void);

#define READ_AHEAD_KB 128 /* of a device at first */
#define DISK_NONE UINT_MAX

struct disk {
	unsigned minor;
	dev_t dev; /* of the file; 0: it is none, or not there */
	ino_t ino;
	char name[256], target[PATH_MAX];
};

/* What a table calls target (an absolute path, or another kind of store) has a number, a name in /dev; it gets them. */
int disk_add(const char *target, unsigned *minor_nr);
bool disk_by_minor(unsigned minor_nr, struct disk *out);
/* The number of the disk that a file is, or DISK_NONE; no system calls if there are none. */
unsigned disk_of_file(dev_t dev, ino_t ino);
/* Reads the list anew. */
void disks_load(void);
/* Calls fn with each disk until it returns false. */
void disks_each(bool (*fn)(const struct disk *d, void *data), void *data);

/* --- node.c: what is a device ---------------------------------------------------------------------- */

enum node_kind { NODE_NONE, NODE_CONTROL, NODE_MAPPED, NODE_DISK };

struct node {
	enum node_kind kind;
	unsigned minor;
	char name[128]; /* of a mapped device, if the node was asked for with one */
};

/* What a file is of which st was read, by descriptor fd or (fd < 0) by path. */
enum node_kind node_find(const struct stat *st, int fd, const char *path, unsigned *minor_nr);
enum node_kind node_of_fd(int fd, struct node *out);
/* Makes what stat(2) said of a device that of a device. */
void node_stat(struct stat *st, int fd, const char *path);
/* Whether somebody has it for himself: a table, or another O_EXCL. */
bool node_is_held(const struct node *n);

/* --- writes.c: a descriptor has been opened, or inherited. ----------------------------------------- */

void writes_mark(int fd);

/* --- place.c: where paths lead --------------------------------------------------------------------- */

/* PLACE_LINK: a link is asked for itself; PLACE_MAKE: a name is about to be made or removed there. */
enum place_for { PLACE_LOOK, PLACE_LINK, PLACE_MAKE };

/* The path to give to libc: path itself, or out. */
const char *place(const char *path, char out[PATH_MAX], enum place_for what);
/* The same of a path that may be relative to an open directory. */
const char *place_at(int dir, const char *path, char out[PATH_MAX], enum place_for what);
/* Back: a path in the shadow becomes the one that the program knows, in place. */
void place_back(char *path);
bool place_is_virtual(const char *path);

/* --- control.c, block.c ---------------------------------------------------------------------------- */

/* ioctl(2) on /dev/mapper/control: 0 or a negative errno.  fd may become another open file (arm_poll). */
int control_ioctl(int fd, unsigned long request, void *arg);
/* The same for a copy of the argument that is size bytes large and 8 aligned: what the fuzzer calls. */
int control_command(unsigned command, void *buffer, size_t size);
/* ioctl(2) on a block device. */
int block_ioctl(int fd, const struct node *n, unsigned long request, void *arg);

/* --- keys.c: keys of the kernel's keyrings --------------------------------------------------------- */

/* add_key(2), request_key(2) and keyctl(2), as syscall(2) with these arguments. */
long keys_call(long number, const long a[6]);
/*
 * A target's arguments, appended with the keys that they name in front of the names; 0 or a negative errno, ENOKEY if
 * there is no such logon key above all.
 */
int keys_in(struct text *out, const char *type, const char *params);
/* The same of a message. */
int keys_in_message(struct text *out, const char *words);

/* --- words.c: words of a table's text, and devices in it ------------------------------------------- */

/* Where a word ends that begins a text of len bytes: at a blank that is not quoted. */
size_t word_length(const char *s, size_t len);
/* The word without its quotes; false: it is longer than a path. */
bool word_unquote(const char *s, size_t len, char out[PATH_MAX]);

/* A target's arguments as a program gives them to the device mapper, appended as dmfs wants them. */
void words_in(struct text *out, const char *params);
/* The other way round: MAJ:MIN for all devices. */
void words_out(struct text *out, const char *params, size_t len);
/* One device as deps prints it; false: it has no number. */
bool word_to_dev(const char *word, dev_t *dev);

#endif
