/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Buffers of the device mapper's ioctls, as a program under dmfs-run gives them: the first byte is the command, the
 * rest the buffer.  The mount is a directory of ordinary files that say what a tree says, or what the input made of
 * them.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../tools/dmfs-run/preload/base.c"
#include "../../tools/dmfs-run/preload/control.c"
#include "../../tools/dmfs-run/preload/keys.c"
#include "../../tools/dmfs-run/preload/table.c"
#include "../../tools/dmfs-run/preload/tree.c"
#include "../../tools/dmfs-run/preload/words.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define MAX_SIZE 65536

/* --- what the commands call of the rest ------------------------------------------------------------ */

bool place_is_virtual(const char *path)
{
	return !strncmp(path, "/dev/", 5);
}

const char *place(const char *path, char out[PATH_MAX], enum place_for what)
{
	(void)what;
	return path_format(out, "%s/%s/image", run.mount, path + 5) ? out : path;
}

int disk_add(const char *target, unsigned *minor_nr)
{
	*minor_nr = (unsigned)strlen(target);
	return 0;
}

bool disk_by_minor(unsigned minor_nr, struct disk *out)
{
	snprintf(out->target, sizeof out->target, "/a disk/%u", minor_nr);
	return minor_nr < 8;
}

void disks_load(void)
{
}

/* --- the mount ------------------------------------------------------------------------------------- */

static const char *const texts[][2] = {
    {"info",
     "Name:              a\nState:             ACTIVE\nRead Ahead:        256\nTables present:    LIVE & INACTIVE\n"
     "Open count:        1\nEvent number:      2\nMajor, minor:      0, 3\nNumber of targets: 2\n"},
    {"uuid", "LVM-a uuid\n"},
    {"dev", "0:3\n"},
    {"table", "0 8 linear 0:1 0\n8 8 zero\n"},
    {"inactive", "0 8 linear /a\\ file 0\n"},
    {"message", ""},
    {"suspend", "0\n"},
    {"readonly", "0\n"},
    {"events", ""},
};

static void put(const char *dir, const char *name, const char *text)
{
	char path[PATH_MAX];

	path_format(path, "%s/%s/%s", run.mount, dir, name);
	if (file_write(path, text, strlen(text), O_CREAT | O_TRUNC))
		abort();
}

static void make_device(const char *name)
{
	char path[PATH_MAX];

	path_format(path, "%s/%s", run.mount, name);
	mkdir(path, 0700);
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		put(name, texts[i][0], texts[i][1]);
}

/* A device that an input made or renamed. */
static void clean(void)
{
	DIR *dir = opendir(run.mount);
	struct dirent *e;
	char path[PATH_MAX], file[PATH_MAX];

	while (dir && (e = readdir(dir))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.' || !strcmp(e->d_name, "a"))
			continue;
		path_format(path, "%s/%s", run.mount, e->d_name);
		for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
			if (path_format(file, "%s/%s", path, texts[i][0]))
				unlink(file);
		rmdir(path);
	}
	if (dir)
		closedir(dir);
	make_device("a");
	put(".", "control", "");
	put(".", "targets", "linear v1.4.0\nzero v1.1.0\n");
	put(".", ".devices", "0:3 2 a LVM-a\\ uuid\n0:4 0 gone\n");
}

static void remove_mount(void)
{
	char path[PATH_MAX];

	clean();
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		path_format(path, "%s/a/%s", run.mount, texts[i][0]);
		unlink(path);
	}
	path_format(path, "%s/a", run.mount);
	rmdir(path);
	path_format(path, "%s/control", run.mount);
	unlink(path);
	path_format(path, "%s/targets", run.mount);
	unlink(path);
	path_format(path, "%s/.devices", run.mount);
	unlink(path);
	rmdir(run.mount);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	strcpy(run.mount, access("/dev/shm", W_OK) ? "/tmp/dmfs-fuzz-run-XXXXXX" : "/dev/shm/dmfs-fuzz-run-XXXXXX");
	if (!mkdtemp(run.mount))
		abort();
	run.mount_len = strlen(run.mount);
	strcpy(run.shadow, "/nonexistent");
	run.shadow_len = strlen(run.shadow);
	run.dm_major = 252;
	run.disk_major = 251;
	run.on = true;
	atexit(remove_mount);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dm_ioctl *io;
	size_t room;

	if (size < 1 || size > MAX_SIZE)
		return 0;
	clean();
	size--;
	room = size < sizeof *io ? sizeof *io : size;
	io = calloc(1, room);
	if (!io)
		abort();
	memcpy(io, data + 1, size);
	if (!control_command(data[0], io, size) && io->data_size > size && size >= HEAD)
		abort();
	free(io);
	return 0;
}
