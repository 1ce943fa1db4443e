/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes the shadow: what is in it that the library does not make itself, when it looks at the mount.
 *
 *	mount, numbers           links: preload/base.c says which
 *	identity                 a link: the device number of the mount and when it was made
 *	proc/devices, proc/misc  the kernel's, with the device mapper in them
 *	dev/                     links to what is in the real /dev but block devices, so that a listing has them
 *	lvm/lvm.conf             for LVM
 *
 * It is made beside its place and renamed, so that it is there whole or not at all.
 */
#include "shadow.h"

#include <dirent.h>
#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool failed(GError **err, const char *path)
{
	g_set_error(err, G_FILE_ERROR, g_file_error_from_errno(errno), "%s: %s", path, g_strerror(errno));
	return false;
}

static bool put(const char *dir, const char *name, const char *text, GError **err)
{
	g_autofree char *path = g_build_filename(dir, name, NULL);

	return g_file_set_contents(path, text, -1, err);
}

static bool put_link(const char *dir, const char *name, const char *target, GError **err)
{
	g_autofree char *path = g_build_filename(dir, name, NULL);

	return !symlink(target, path) || failed(err, path);
}

/* --- where it is ----------------------------------------------------------------------------------- */

/* Nobody else's, and no link. */
static bool own_dir(const char *path, GError **err)
{
	struct stat st;

	if (mkdir(path, 0700) && errno != EEXIST)
		return failed(err, path);
	if (lstat(path, &st))
		return failed(err, path);
	if (S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 022))
		return true;
	g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_PERM, "%s is not a directory that is this user's alone", path);
	return false;
}

static char *parent(GError **err)
{
	const char *runtime = g_getenv("XDG_RUNTIME_DIR");
	g_autofree char *path = NULL;

	if (runtime && *runtime == '/' && !access(runtime, W_OK | X_OK))
		path = g_build_filename(runtime, "dmfs-run", NULL);
	else
		path = g_strdup_printf("/tmp/dmfs-run-%u", (unsigned)geteuid());
	return own_dir(path, err) ? g_steal_pointer(&path) : NULL;
}

static void remove_tree(const char *path)
{
	struct dirent *e;
	DIR *dir;

	if (!unlink(path))
		return;
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		g_autofree char *below = g_build_filename(path, e->d_name, NULL);

		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			remove_tree(below);
	}
	if (dir)
		closedir(dir);
	rmdir(path);
}

/* --- what is in it --------------------------------------------------------------------------------- */

/* A block device's major number that the kernel has not given away. */
static unsigned free_major(const char *devices, unsigned except)
{
	const char *blocks = strstr(devices, "Block devices:");

	for (unsigned nr = 254; nr >= 234; nr--) {
		g_autofree char *line = g_strdup_printf("\n%3u ", nr);

		if (nr != except && !strstr(blocks ? blocks : devices, line))
			return nr;
	}
	for (unsigned nr = 511;; nr--)
		if (nr != except)
			return nr;
}

/* A ramdisk is what LVM and lsblk take for a disk without partitions. */
static bool put_devices(const char *dir, const char *mount, GError **err)
{
	g_autofree char *text = NULL, *all = NULL, *numbers = NULL, *misc = NULL;
	g_autofree char *control = g_build_filename(mount, "control", NULL),
			*events = g_build_filename(mount, "events", NULL);
	struct stat of_control, of_events;
	unsigned dm, disk;

	if (stat(control, &of_control))
		return failed(err, control);
	if (stat(events, &of_events))
		return failed(err, events);

	if (!g_file_get_contents("/proc/devices", &text, NULL, NULL))
		text = g_strdup("Character devices:\n 10 misc\n\nBlock devices:\n");
	dm = free_major(text, 0);
	disk = free_major(text, dm);
	numbers = g_strdup_printf("%u:%u %u:%u %lu %lu", dm, disk, major(of_control.st_dev), minor(of_control.st_dev),
				  (unsigned long)of_control.st_ino, (unsigned long)of_events.st_ino);
	{
		g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
		g_autoptr(GString) out = g_string_new(NULL);

		for (unsigned i = 0; lines[i]; i++)
			if (*lines[i] && !g_str_has_suffix(lines[i], " device-mapper"))
				g_string_append_printf(out, "%s%s\n", strcmp(lines[i], "Block devices:") ? "" : "\n",
						       lines[i]);
		g_string_append_printf(out, "%3u ramdisk\n%3u device-mapper\n", disk, dm);
		all = g_string_free(g_steal_pointer(&out), FALSE);
	}
	g_clear_pointer(&text, g_free);
	if (!g_file_get_contents("/proc/misc", &text, NULL, NULL))
		text = g_strdup("");
	misc = strstr(text, "device-mapper") ? g_strdup("236 device-mapper\n")
					     : g_strconcat("236 device-mapper\n", text, NULL);
	return put_link(dir, "numbers", numbers, err) && put(dir, "proc/devices", all, err) &&
	       put(dir, "proc/misc", misc, err);
}

static void put_real_dev(const char *shadow)
{
	g_autofree char *dev = g_build_filename(shadow, "dev", NULL);
	struct dirent *e;
	DIR *dir = opendir("/dev");

	while (dir && (e = readdir(dir))) {
		g_autofree char *target = g_build_filename("/dev", e->d_name, NULL);

		if (e->d_name[0] != '.' && e->d_type != DT_BLK && strcmp(e->d_name, "mapper") &&
		    strcmp(e->d_name, "disk") && strcmp(e->d_name, "block"))
			put_link(dev, e->d_name, target, NULL);
	}
	if (dir)
		closedir(dir);
}

static bool put_lvm(const char *shadow, const char *final, GError **err)
{
	g_autofree char *text = g_strdup_printf(
	    "# made by dmfs-run\n"
	    "config { checks = 0 }\n"
	    "devices {\n"
	    "\tdir = \"/dev\"\n\tscan = [ \"/dev\" ]\n\tobtain_device_list_from_udev = 0\n"
	    "\texternal_device_info_source = \"none\"\n\tuse_devicesfile = 0\n\thints = \"none\"\n"
	    "\tmultipath_component_detection = 0\n\tmd_component_detection = 0\n\tfw_raid_component_detection = 0\n"
	    "}\n"
	    "backup { backup = 1\n\tarchive = 1\n\tbackup_dir = \"%s/lvm/backup\"\n\tarchive_dir = \"%s/lvm/archive\" "
	    "}\n"
	    "global {\n"
	    "\tlocking_dir = \"/run/lock/lvm\"\n\tuse_lvmpolld = 0\n\tuse_lvmlockd = 0\n\tevent_activation = 0\n"
	    "\tnotify_dbus = 0\n\tsystem_id_source = \"none\"\n"
	    "}\n"
	    "activation {\n"
	    "\tudev_sync = 0\n\tudev_rules = 0\n\tverify_udev_operations = 0\n\tmonitoring = 0\n"
	    "\tuse_mlockall = 0\n\tmlock_filter = [ \" \" ]\n\treserved_memory = 0\n\treserved_stack = "
	    "64\n\tprocess_priority = 19\n"
	    "}\n",
	    final, final);

	return put(shadow, "lvm/lvm.conf", text, err);
}

static char *identity_of(const char *mount, GError **err)
{
	struct stat st;

	if (stat(mount, &st)) {
		failed(err, mount);
		return NULL;
	}
	/* the access time of a mount's root is that of the mount */
	return g_strdup_printf("%u:%u %" PRId64 ".%09ld", major(st.st_dev), minor(st.st_dev),
			       (int64_t)st.st_atim.tv_sec, (long)st.st_atim.tv_nsec);
}

static bool fill(const char *shadow, const char *final, const char *mount, const char *identity, GError **err)
{
	static const char *const dirs[] = {"dev/mapper",
					   "disk",
					   "name",
					   "geometry",
					   "proc",
					   "lvm/backup",
					   "lvm/archive",
					   "lvm/profile",
					   "run/cryptsetup",
					   "run/lvm",
					   "run/lock/lvm",
					   "var/lock",
					   "sys/block",
					   "sys/class/block",
					   "sys/dev/block",
					   "sys/devices/virtual/block",
					   "sys/module/dm_cache_smq",
					   "sys/module/dm_cache_mq",
					   NULL};
	g_autofree char *control = g_build_filename(mount, "control", NULL);

	for (const char *const *d = dirs; *d; d++) {
		g_autofree char *path = g_build_filename(shadow, *d, NULL);

		if (g_mkdir_with_parents(path, 0700))
			return failed(err, path);
	}
	put_real_dev(shadow);
	return put_devices(shadow, mount, err) && put_lvm(shadow, final, err) &&
	       put_link(shadow, "mount", mount, err) && put_link(shadow, "dev/mapper/control", control, err) &&
	       put_link(shadow, "var/lock/lvm", "../../run/lock/lvm", err) &&
	       put_link(shadow, "identity", identity, err);
}

/* Those of mounts that are no more. */
static void remove_stale(const char *parent_dir)
{
	struct dirent *e;
	DIR *dir = opendir(parent_dir);

	while (dir && (e = readdir(dir))) {
		g_autofree char *shadow = g_build_filename(parent_dir, e->d_name, NULL);
		g_autofree char *link = g_build_filename(shadow, "mount", NULL), *mount = NULL, *now = NULL,
				*then = NULL;
		g_autofree char *identity = g_build_filename(shadow, "identity", NULL);

		if (e->d_name[0] == '.' || strchr(e->d_name, '-')) /* in the making */
			continue;
		mount = g_file_read_link(link, NULL);
		then = g_file_read_link(identity, NULL);
		now = mount ? identity_of(mount, NULL) : NULL;
		if (!now || !then || strcmp(now, then))
			remove_tree(shadow);
	}
	if (dir)
		closedir(dir);
}

char *shadow_make(const char *mount, GError **err)
{
	g_autofree char *dir = parent(err), *identity = identity_of(mount, dir ? err : NULL);
	g_autofree char *shadow = NULL, *making = NULL, *link = NULL;
	struct stat st;

	if (!dir || !identity || stat(mount, &st))
		return NULL;
	remove_stale(dir);
	shadow = g_strdup_printf("%s/%u.%u", dir, major(st.st_dev), minor(st.st_dev));
	link = g_build_filename(shadow, "identity", NULL);
	if (!access(shadow, F_OK))
		return g_steal_pointer(&shadow);
	making = g_strdup_printf("%s-%d", shadow, (int)getpid());
	if (g_mkdir(making, 0700)) {
		failed(err, making);
		return NULL;
	}
	if (!fill(making, shadow, mount, identity, err)) {
		remove_tree(making);
		return NULL;
	}
	if (!rename(making, shadow))
		return g_steal_pointer(&shadow);
	if (errno != EEXIST && errno != ENOTEMPTY) {
		failed(err, shadow);
		remove_tree(making);
		return NULL;
	}
	remove_tree(making); /* another one was quicker */
	return g_steal_pointer(&shadow);
}

/* --- disks ----------------------------------------------------------------------------------------- */

static char *name_for(const char *shadow, const char *disk)
{
	g_autofree char *base = g_path_get_basename(disk);

	for (unsigned n = 1;; n++) {
		g_autofree char *name = n == 1 ? g_strdup(base) : g_strdup_printf("%s-%u", base, n);
		g_autofree char *real = g_build_filename("/dev", name, NULL),
				*path = g_build_filename(shadow, "dev", name, NULL);

		if (access(real, F_OK) && !symlink(disk, path))
			return g_steal_pointer(&name);
		if (n > 10000)
			return NULL;
	}
}

static bool number(const char *shadow, const char *disk, GError **err)
{
	for (unsigned n = 0; n < 1u << 20; n++) {
		g_autofree char *path = g_strdup_printf("%s/disk/%u", shadow, n), *there = g_file_read_link(path, NULL);
		g_autofree char *name = NULL, *name_path = NULL, *stamp = NULL;

		if (there && !strcmp(there, disk))
			return true;
		if (there || symlink(disk, path))
			continue;
		name = name_for(shadow, disk);
		name_path = g_strdup_printf("%s/name/%u", shadow, n);
		if (name && symlink(name, name_path))
			return failed(err, name_path);
		stamp = g_build_filename(shadow, "stamp", NULL); /* the library is to look anew */
		unlink(stamp);
		return true;
	}
	errno = ENOSPC;
	return failed(err, disk);
}

bool shadow_add_disk(const char *shadow, const char *disk, GError **err)
{
	g_autofree char *path = realpath(disk, NULL);
	struct stat st;

	if (!path || stat(path, &st))
		return failed(err, disk);
	if (S_ISREG(st.st_mode))
		return number(shadow, path, err);
	g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_INVAL, "-d %s: a disk is a regular file", disk);
	return false;
}
