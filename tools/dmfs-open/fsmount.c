/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --mount: file systems by FUSE programs, which need no privileges; and unmounting them. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common/tree.h"
#include "open.h"

#define SERVER_MS 10000

static const struct {
	const char *fstype, *program, *options, *package;
} helpers[] = {
	{"ext2", "fuse2fs", "fakeroot", "fuse2fs"},	   {"ext3", "fuse2fs", "fakeroot", "fuse2fs"},
	{"ext4", "fuse2fs", "fakeroot", "fuse2fs"},	   {"ntfs", "ntfs-3g", NULL, "ntfs-3g"},
	{"vfat", "fusefat", "rw+", "fusefat"},		   {"exfat", "mount.exfat-fuse", NULL, "exfat-fuse"},
	{"squashfs", "squashfuse", NULL, "squashfuse"},	   {"erofs", "erofsfuse", NULL, "erofsfuse"},
	{"iso9660", "fuseiso", NULL, "fuseiso"},	   {"hfsplus", "lklfuse", "type=hfsplus", "lklfuse"},
	{"btrfs", "lklfuse", "type=btrfs", "lklfuse"},	   {"xfs", "lklfuse", "type=xfs", "lklfuse"},
	{"apfs", "apfs-fuse", NULL, "apfs-fuse"},	   {"f2fs", "lklfuse", "type=f2fs", "lklfuse"},
};

static int helper_of(const char *fstype)
{
	for (size_t i = 0; i < G_N_ELEMENTS(helpers); i++)
		if (!strcmp(fstype, helpers[i].fstype))
			return (int)i;
	return -1;
}

static char *options_of(const struct plan *p, const struct node *n, int i)
{
	bool ext = g_str_has_prefix(helpers[i].fstype, "ext");
	const char *mode = !p->o->write || n->readonly ? (ext ? "ro,norecovery" : "ro") : "rw";
	const char *more = helpers[i].options;

	if (more && !strcmp(more, "rw+")) /* fusefat has an option of its own for writing */
		return g_strdup(!strcmp(mode, "rw") ? "rw+" : "ro");
	return g_strconcat(mode, more ? "," : "", more ? more : "", NULL);
}

static void mount_one(struct plan *p, struct node *n)
{
	int i = helper_of(n->fstype);
	g_autofree char *program = i < 0 ? NULL : run_find(helpers[i].program), *dir = NULL, *options = NULL, *why = NULL;
	g_autofree char *image = node_image(p, n);
	char *argv[6];
	int status;

	if (!program) {
		node_note(p, n, i < 0 ? "not mounted: no program is known for %s" : "not mounted: for %s the package %s is needed",
			  n->fstype, i < 0 ? "" : helpers[i].package);
		return;
	}
	dir = g_build_filename(p->o->fs_dir, n->name, NULL);
	if (mkdir(dir, 0700) && errno != EEXIST) {
		node_note(p, n, "not mounted: %s: %s", dir, g_strerror(errno));
		return;
	}
	options = options_of(p, n, i);
	argv[0] = program;
	argv[1] = (char *)"-o";
	argv[2] = options;
	argv[3] = image;
	argv[4] = dir;
	argv[5] = NULL;
	status = run(argv, true, NULL, &why);
	if (status) {
		node_note(p, n, "not mounted: %s: %s", helpers[i].program, why && *why ? why : "it failed");
		rmdir(dir);
		return;
	}
	n->mounted = g_steal_pointer(&dir);
}

int fs_mount_all(struct plan *p, GError **err)
{
	char *real;

	if (mkdir(p->o->fs_dir, 0700) && errno != EEXIST)
		return fail(err, errno, "%s: %s", p->o->fs_dir, g_strerror(errno));
	real = realpath(p->o->fs_dir, NULL);
	if (!real)
		return fail(err, errno, "%s: %s", p->o->fs_dir, g_strerror(errno));
	free(real);
	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];

		if (n->open && n->swap_or_fs && n->fstype)
			mount_one(p, n);
	}
	return 0;
}

/* --- unmounting ------------------------------------------------------------------------------------------- */

/* Where the kernel says a file system comes from: the image, as its program was given it. */
static bool is_from(const char *source, const char *mount, const GPtrArray *names)
{
	for (unsigned i = 0; i < names->len; i++) {
		g_autofree char *image = tree_path(mount, names->pdata[i], "image");

		if (!strcmp(source, image))
			return true;
	}
	return false;
}

/* Descriptors of the processes of ours that were started with an argument like that. */
static GArray *servers_of(const char *image)
{
	GArray *found = g_array_new(FALSE, FALSE, sizeof(struct pollfd));
	GDir *proc = g_dir_open("/proc", 0, NULL);
	const char *pid;

	while (proc && (pid = g_dir_read_name(proc))) {
		g_autofree char *path = g_build_filename("/proc", pid, "cmdline", NULL), *text = NULL;
		struct pollfd pfd = {.events = POLLIN};
		gsize len, word;

		if (!g_ascii_isdigit(*pid) || !g_file_get_contents(path, &text, &len, NULL))
			continue;
		for (gsize at = 0; at < len; at += word + 1) {
			word = strlen(text + at);
			if (strcmp(text + at, image))
				continue;
			pfd.fd = (int)syscall(SYS_pidfd_open, atoi(pid), 0);
			if (pfd.fd >= 0)
				g_array_append_val(found, pfd);
			break;
		}
	}
	if (proc)
		g_dir_close(proc);
	return found;
}

/* Until they have ended, which close the image last. */
static void wait_for(GArray *servers, int ms)
{
	for (unsigned i = 0; i < servers->len; i++) {
		struct pollfd *pfd = &g_array_index(servers, struct pollfd, i);

		poll(pfd, 1, ms);
		close(pfd->fd);
	}
	g_array_unref(servers);
}

static int unmount(const char *dir, GError **err)
{
	g_autofree char *program = run_find(geteuid() ? "fusermount3" : "umount"), *why = NULL;
	char *user[] = {program, (char *)"-u", (char *)dir, NULL}, *root[] = {program, (char *)dir, NULL};

	if (!program)
		return fail(err, ENOENT, "no %s to unmount %s", geteuid() ? "fusermount3" : "umount", dir);
	if (run(geteuid() ? user : root, true, NULL, &why))
		return fail(err, EBUSY, "%s cannot be unmounted: %s", dir, why ? why : "");
	rmdir(dir);
	return 0;
}

int fs_unmount(const char *mount, GPtrArray *names, GError **err)
{
	g_autofree char *text = NULL;
	g_auto(GStrv) lines = NULL;
	int r = 0;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
		return 0;
	lines = g_strsplit(text, "\n", -1);
	for (char **line = lines; !r && *line; line++) {
		const char *dash = strstr(*line, " - ");
		g_auto(GStrv) words = g_strsplit(*line, " ", 6), behind = dash ? g_strsplit(dash + 3, " ", 4) : NULL;
		g_autofree char *source = NULL, *dir = NULL;

		if (!behind || g_strv_length(behind) < 2 || g_strv_length(words) < 5)
			continue;
		source = g_strcompress(behind[1]);
		dir = g_strcompress(words[4]);
		if (is_from(source, mount, names)) {
			GArray *servers = servers_of(source);

			r = unmount(dir, err);
			wait_for(servers, r ? 0 : SERVER_MS);
		}
	}
	return r;
}
