/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-run [-m MOUNT] [-d DISK]... COMMAND...: runs a program so that it sees the device mapper of a mount.
 *
 * It makes the shadow (preload/shadow.c says what is in it) of the mount, or finds the one that is there, and becomes
 * the program, with libdmfs-run.so loaded into it.  The shadow is the user's alone, in $XDG_RUNTIME_DIR or
 * /tmp/dmfs-run-UID, named after the mount's device number; that of an earlier mount of this number is removed.
 */
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../common/tree.h"
#include "program.h"
#include "shadow.h"

#define CANNOT_RUN 126
#define NOT_FOUND 127

static int fail(int code, const char *format, ...) G_GNUC_PRINTF(2, 3);
static int fail(int code, const char *format, ...)
{
	g_autofree char *text = NULL;
	va_list ap;

	va_start(ap, format);
	text = g_strdup_vprintf(format, ap);
	va_end(ap);
	fprintf(stderr, "dmfs-run: %s\n", text);
	return code;
}

static void usage(FILE *to)
{
	fputs("usage: dmfs-run [-m MOUNT] [-d DISK]... [--] COMMAND [ARGUMENT]...\n"
	      "Runs a program so that it sees the device mapper of a dmfs mount.\n"
	      "  -m MOUNT  the mount; without it $DMFS_MOUNT, or the only one there is\n"
	      "  -d DISK   a disk image that is to be a block device, /dev/NAME of its file's name\n",
	      to);
}

/* --- the library ----------------------------------------------------------------------------------- */

/* Beside this program, as where it is built, or in ../lib/dmfs. */
static char *find_library(void)
{
	g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
	g_autofree char *dir = self ? g_path_get_dirname(self) : g_strdup("/usr/bin");
	char *path = g_build_filename(dir, "libdmfs-run.so", NULL);

	if (!access(path, R_OK))
		return path;
	g_free(path);
	path = g_build_filename(dir, "..", "lib", "dmfs", "libdmfs-run.so", NULL);
	if (!access(path, R_OK))
		return path;
	g_free(path);
	return NULL;
}

static void preload(const char *library)
{
	const char *before = g_getenv("LD_PRELOAD");
	g_autofree char *all = NULL;

	if (before && strstr(before, library))
		return;
	all = before && *before ? g_strconcat(library, ":", before, NULL) : g_strdup(library);
	g_setenv("LD_PRELOAD", all, TRUE);
}

/* LVM locks its memory for a while; without leave for more, as much as there is. */
static void raise_limits(void)
{
	struct rlimit l;

	if (!getrlimit(RLIMIT_MEMLOCK, &l) && l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_MEMLOCK, &l);
	}
}

/* An ordinary user's PATH lacks the directories that most of these programs are in. */
static void complete_path(void)
{
	const char *before = g_getenv("PATH");
	g_autoptr(GString) path = g_string_new(before ? before : "/usr/local/bin:/usr/bin:/bin");
	g_auto(GStrv) there = g_strsplit(path->str, ":", -1);

	for (const char *const *p = (const char *const[]){"/usr/local/sbin", "/usr/sbin", "/sbin", NULL}; *p; p++)
		if (!g_strv_contains((const char *const *)there, *p))
			g_string_append_printf(path, ":%s", *p);
	g_setenv("PATH", path->str, TRUE);
}

/* Not one's own that was set for another mount. */
static void configure_lvm(const char *shadow, const char *outer)
{
	const char *before = g_getenv("LVM_SYSTEM_DIR");
	g_autofree char *dir = g_build_filename(shadow, "lvm", NULL);

	if (!before || (outer && g_str_has_prefix(before, outer)))
		g_setenv("LVM_SYSTEM_DIR", dir, TRUE);
}

static int run(const char *mount, char **disks, char **command)
{
	g_autofree char *library = find_library(), *shadow = NULL, *program = NULL, *why = NULL;
	g_autofree char *outer = g_strdup(g_getenv("DMFS_RUN"));
	g_autoptr(GError) err = NULL;

	if (!library)
		return fail(CANNOT_RUN, "libdmfs-run.so is neither beside this program nor in ../lib/dmfs");
	if (strpbrk(library, ": "))
		return fail(CANNOT_RUN, "%s: a path with a colon or a blank in it cannot be preloaded", library);
	complete_path();
	program = g_find_program_in_path(command[0]);
	if (!program)
		return fail(NOT_FOUND, "%s: command not found", command[0]);
	why = program_why_not(program);
	if (why)
		return fail(CANNOT_RUN, "%s", why);
	shadow = shadow_make(mount, &err);
	if (!shadow)
		return fail(CANNOT_RUN, "%s", err->message);
	for (; *disks; disks++)
		if (!shadow_add_disk(shadow, *disks, &err))
			return fail(CANNOT_RUN, "%s", err->message);
	g_setenv("DM_DISABLE_UDEV", "1", FALSE); /* there is none; whatever the configuration, names are made without it */
	g_setenv("DMFS_RUN", shadow, TRUE);
	g_setenv("DMFS_MOUNT", mount, TRUE);
	configure_lvm(shadow, outer);
	preload(library);
	raise_limits();
	execvp(program, command);
	return fail(errno == ENOENT ? NOT_FOUND : CANNOT_RUN, "%s: %s", program, g_strerror(errno));
}

int main(int argc, char **argv)
{
	g_autoptr(GPtrArray) disks = g_ptr_array_new();
	g_autoptr(GError) err = NULL;
	g_autofree char *mount = NULL;
	const char *wanted = NULL;
	int c;

	if (argc > 1 && !strcmp(argv[1], "--help")) {
		usage(stdout);
		return 0;
	}
	while ((c = getopt(argc, argv, "+m:d:h")) != -1) {
		switch (c) {
		case 'm':
			wanted = optarg;
			break;
		case 'd':
			g_ptr_array_add(disks, optarg);
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return CANNOT_RUN;
		}
	}
	g_ptr_array_add(disks, NULL);
	if (optind == argc) {
		usage(stderr);
		return CANNOT_RUN;
	}
	mount = tree_find_mount(wanted, &err);
	if (!mount)
		return fail(CANNOT_RUN, "%s", err->message);
	return run(mount, (char **)disks->pdata, argv + optind);
}
