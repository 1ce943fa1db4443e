/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfsctl: dmsetup's command language, spoken to a mounted dmfs.
 *
 * What dmsetup asks the kernel with an ioctl, we read and write in the tree; what it prints, we print, to the letter
 * where there is such a thing here.  A command gets its arguments and returns whether it succeeded, having said why
 * not; main() then adds "Command failed."
 */
#ifndef DMFSCTL_H
#define DMFSCTL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../common/tree.h"
#include "options.h"

extern struct options opt;
extern const char *ctl_program; /* how we were called: dmfsctl or dmsetup */

/* The mount.  Found at the first call; NULL, having said why, if there is none. */
const char *ctl_root(void);

/* --- one device, as `info` and its other files tell (device.c) ------------------------- */

struct dep {
	char *text;       /* as `deps` prints it, unquoted */
	char *shown;      /* as a line of output has it */
	bool mapped;      /* it is a dmfs device, text its name */
	int major, minor; /* of a dmfs or block device; -1: a file */
};

struct device {
	char *name, *uuid, *info;
	char *shown; /* the name as a line of output has it */
	unsigned minor, open, targets, events, read_ahead;
	bool suspended, readonly, live, inactive;
	GPtrArray *deps; /* of struct dep; use device_deps() */
};

/* Reads a device's state; NULL and a negative errno if it is not there. */
struct device *device_get(const char *name, int *error);
/* For what `info` says; NULL if that is not the text of an info file. */
struct device *device_parse(const char *info);
void device_free(struct device *d);
/* What the live table uses; with inactive, the inactive one, which is then the caller's to free. */
GPtrArray *device_deps(struct device *d);
GPtrArray *device_inactive_deps(struct device *d);
/* The status, after targets have written their metadata. */
int device_flushed_status(const char *name, char **text);
/* `status` or `deps`, of the inactive table. */
int device_inactive(const char *name, const char *what, char **text);
/*
 * Of struct device: all, in the order of their names; chosen: only those that --select selects, in --sort's order.
 * NULL: it has been said why.
 */
GPtrArray *device_list(bool chosen);
/* The name of the device with that uuid, or NULL. */
char *device_of_uuid(const char *uuid);
/* The devices whose live tables use it, names in order. */
GPtrArray *device_users(const char *name);
/* The block device's own name (sda1), or NULL. */
char *block_name(int major, int minor);
/*
 * A new device's name or uuid (what: "name", "UUID", "new name" or "new UUID") as it is to be stored, of what the user
 * said; NULL: it has been said why there is none.
 */
char *name_to_store(const char *said, const char *what);
/* The name or uuid with all but a few characters as \xNN. */
char *mangle(const char *name);
char *unmangle(const char *name);

/* --- whom a command is about ---------------------------------------------------------------- */

struct ident {
	char *name; /* of the directory; NULL if there is none such */
	/* what the user said, for error texts */
	const char *said;
	bool by_number;
};

enum ident_result { IDENT_OK, IDENT_NONE /* no device was named */, IDENT_BAD /* it has been said why */ };
/*
 * From an argument, or -u, or -j and -m.  A device need not exist; then name is NULL, but for an argument it is what it
 * says.
 */
enum ident_result ident_find(const char *argument, struct ident *id);
/* The same for commands that need one: says "No device specified." */
bool ident_need(const char *argument, struct ident *id);
void ident_clear(struct ident *id);
#define AUTO_IDENT __attribute__((cleanup(ident_clear))) struct ident
/* -u or -j and -m were given, so that a command's arguments do not begin with a name. */
bool named_by_option(void);

/* --- errors ------------------------------------------------------------------------------------ */

/* "device-mapper: WHAT ioctl on NAME failed: ...", for a negative errno; false. */
bool ioctl_failed(const char *what, const struct ident *id, int error);
bool ioctl_failed_on(const char *what, const char *name, const char *uuid, int minor, int error);
/* Prints a device's `error` file. */
void show_error_file(const char *name);
/* A line on stderr; false. */
bool say(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* --- commands -------------------------------------------------------------------------------------- */

bool cmd_create(int argc, char **argv);
bool cmd_load(int argc, char **argv);
bool cmd_clear(int argc, char **argv);
bool cmd_wipe_table(int argc, char **argv);
bool cmd_remove(int argc, char **argv);
bool cmd_remove_all(int argc, char **argv);
bool cmd_suspend(int argc, char **argv);
bool cmd_resume(int argc, char **argv);
bool cmd_rename(int argc, char **argv);
bool cmd_message(int argc, char **argv);
bool cmd_mknodes(int argc, char **argv);
bool cmd_mangle(int argc, char **argv);
bool cmd_targets(int argc, char **argv);
bool cmd_target_version(int argc, char **argv);
bool cmd_version(int argc, char **argv);
bool cmd_status(int argc, char **argv);
bool cmd_table(int argc, char **argv);
bool cmd_info(int argc, char **argv);
bool cmd_deps(int argc, char **argv);
bool cmd_ls(int argc, char **argv);
bool cmd_tree(void);
bool cmd_wait(int argc, char **argv);
bool cmd_stats(int argc, char **argv);
bool cmd_top(int argc, char **argv);
bool cmd_graph(int argc, char **argv);
bool cmd_setgeometry(int argc, char **argv);
bool cmd_udevcreatecookie(int argc, char **argv);
bool cmd_udevreleasecookie(int argc, char **argv);
bool cmd_udevflags(int argc, char **argv);
bool cmd_udevcomplete(int argc, char **argv);
bool cmd_udevcomplete_all(int argc, char **argv);
bool cmd_udevcookies(int argc, char **argv);
bool cmd_losetup(int argc, char **argv);
/* `info` of a device as -v shows it after another command. */
bool show_info(const char *name);
/* Once, after the last device: prints what `info -c` has gathered.  False on an error. */
bool finish_columns(void);
/* Replaces a device's table by one that fails all I/O; noflush: not waiting for what its targets hold. */
bool wipe_table(const struct ident *id, bool noflush);
/* Writes a word to a device's `suspend`. */
int write_suspend(const char *name, const char *word);

#endif
