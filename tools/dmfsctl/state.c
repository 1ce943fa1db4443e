/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands that change what there is: remove, remove_all, suspend, resume, rename, message; and the lists of targets.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../src/version.h"
#include "dmfsctl.h"

/* What scripts look for in `dmsetup version`. */
#define LIBRARY_VERSION "1.02.185"
#define DRIVER_VERSION "4.47.0"

/* --retry: for so long, so long apart at the most.  One try may take a while itself, where an image seems to be
 * closing. */
#define RETRY_FOR_MS 5000
#define RETRY_MS 200

/* --- remove ---------------------------------------------------------------------------- */

/* With --deferred one in use is removed later, when it is used no more. */
static int remove_once(const char *name)
{
	g_autofree char *path = NULL, *quoted = NULL, *command = NULL;

	if (!opt.deferred) {
		path = tree_path(ctl_root(), name, NULL);
		return rmdir(path) ? -errno : 0;
	}
	path = tree_path(ctl_root(), NULL, "control");
	quoted = tree_quote(name);
	command = g_strdup_printf("remove %s deferred\n", quoted);
	return tree_write_text(path, command);
}

/* Until something happens to the device, or for a while: that its image was closed is no event. */
static void wait_a_moment(const char *name)
{
	g_autofree char *path = tree_path(ctl_root(), name, "events");
	struct pollfd p = {.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), .events = POLLPRI};
	char line[4096];

	if (p.fd >= 0)
		while (read(p.fd, line, sizeof line) > 0)
			;
	poll(&p, 1, RETRY_MS);
	if (p.fd >= 0)
		close(p.fd);
}

static int remove_device(const char *name)
{
	gint64 until = g_get_monotonic_time() + RETRY_FOR_MS * 1000;
	int error = remove_once(name);

	while (error == -EBUSY && opt.retry && g_get_monotonic_time() < until) {
		wait_a_moment(name);
		error = remove_once(name);
	}
	return error;
}

bool cmd_remove(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	int error;

	(void)argc;
	if (!ident_need(*argv, &id))
		return false;
	if (opt.force) /* where that fails it may have no table to wipe */
		wipe_table(&id, true);
	error = id.name ? remove_device(id.name) : -ENXIO;
	return !error || ioctl_failed("remove", &id, error);
}

/* One round over all devices; how many it removed, how many are left. */
static bool remove_round(unsigned *removed, unsigned *left)
{
	g_autoptr(GPtrArray) names = NULL;
	int error = 0;

	*removed = *left = 0;
	names = tree_devices(ctl_root(), &error);
	if (!names)
		return say("%s: %s", ctl_root(), g_strerror(-error));
	for (unsigned i = 0; i < names->len; i++) {
		error = remove_once(names->pdata[i]);
		*removed += !error;
		*left += error == -EBUSY;
	}
	return true;
}

static void wipe_all(void)
{
	int error;
	g_autoptr(GPtrArray) names = tree_devices(ctl_root(), &error);

	for (unsigned i = 0; names && i < names->len; i++) {
		struct ident id = {.name = names->pdata[i], .said = names->pdata[i]};
		struct device *d = device_get(names->pdata[i], &error);

		if (d && d->live)
			wipe_table(&id, true);
		device_free(d);
	}
}

/* A round frees what the removed devices stood on for the next one. */
bool cmd_remove_all(int argc, char **argv)
{
	unsigned removed, left;

	(void)argc;
	(void)argv;
	if (!ctl_root())
		return false;
	if (opt.force)
		wipe_all();
	do {
		if (!remove_round(&removed, &left))
			return false;
	} while (removed && left); /* with --deferred nothing is left to us */
	if (left && opt.force)
		return say("Unable to remove %u device(s).", left);
	return true;
}

/* --- suspend, resume ------------------------------------------------------------------------ */

/* A suspended device without a table has nothing to resume with. */
static int check_resume(const char *name, const char *word)
{
	int error;
	struct device *d = device_get(name, &error);

	if (d && *word == '0' && d->suspended && !d->live && !d->inactive)
		error = -EINVAL;
	device_free(d);
	return error;
}

static bool suspend_or_resume(const char *what, const char *word, char **argv)
{
	AUTO_IDENT id = {0};
	int error;

	if (!ident_need(*argv, &id))
		return false;
	error = id.name ? check_resume(id.name, word) : -ENXIO;
	if (!error)
		error = write_suspend(id.name, word);
	if (!error)
		return !opt.verbose || show_info(id.name);
	ioctl_failed(what, &id, error);
	if (id.name)
		show_error_file(id.name);
	return false;
}

bool cmd_suspend(int argc, char **argv)
{
	(void)argc;
	return suspend_or_resume("suspend", opt.noflush ? "1 noflush\n" : "1\n", argv);
}

bool cmd_resume(int argc, char **argv)
{
	(void)argc;
	if (opt.readahead && strcmp(opt.readahead, "auto"))
		say("--readahead %s: a dmfs device has no read-ahead of its own", opt.readahead);
	return suspend_or_resume("resume", opt.noflush ? "0 noflush\n" : "0\n", argv);
}

/* --- rename -------------------------------------------------------------------------------------- */

static int rename_device(const char *name, const char *to)
{
	g_autofree char *from_path = tree_path(ctl_root(), name, NULL), *to_path = tree_path(ctl_root(), to, NULL);

	if (!tree_has_device(ctl_root(), name))
		return -ENXIO;
	if (tree_has_device(ctl_root(), to)) /* also itself, which rename(2) takes for done */
		return -EBUSY;
	if (!rename(from_path, to_path))
		return 0;
	return errno == EEXIST || errno == ENOTDIR ? -EBUSY : -errno;
}

/* One that another device has is refused before that this one has its own. */
static int set_uuid(const char *name, const char *uuid)
{
	g_autofree char *path = tree_path(ctl_root(), name, "uuid"), *owner = device_of_uuid(uuid);

	if (owner)
		return -EBUSY;
	return tree_write_text(path, uuid);
}

bool cmd_rename(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	g_autofree char *to = NULL;
	int error;

	if (!ident_need(argc == 2 ? argv[0] : NULL, &id))
		return false;
	to = name_to_store(argv[argc - 1], opt.setuuid ? "new UUID" : "new name");
	if (!to)
		return false;
	if (!id.name)
		return ioctl_failed("rename", &id, -ENXIO);
	error = opt.setuuid ? set_uuid(id.name, to) : rename_device(id.name, to);
	return !error || ioctl_failed("rename", &id, error);
}

/* --- message ---------------------------------------------------------------------------------------- */

bool cmd_message(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	g_autofree char *words = NULL, *text = NULL, *reply = NULL;
	guint64 sector;
	char *end;
	int error;

	if (!ident_need(named_by_option() ? NULL : *argv, &id))
		return false;
	if (!named_by_option())
		argc--, argv++;
	if (!argc || !isdigit((unsigned char)**argv))
		return say("Invalid sector.");
	errno = 0;
	sector = g_ascii_strtoull(*argv, &end, 10);
	if (errno || *end)
		return say("Invalid sector.");
	if (argc == 1)
		say("No message supplied.");
	words = g_strjoinv(" ", argv + 1);
	text = g_strdup_printf("%" G_GUINT64_FORMAT " %s", sector, words);
	if (!id.name)
		return ioctl_failed("message", &id, -ENXIO);
	error = argc == 1 ? -EINVAL : tree_message(ctl_root(), id.name, text, &reply);
	if (error) {
		ioctl_failed("message", &id, error);
		if (argc > 1)
			show_error_file(id.name);
		return false;
	}
	fputs(reply, stdout);
	return true;
}

/* --- setgeometry -------------------------------------------------------------------------------------- */

static bool geometry_number(const char *text)
{
	return g_ascii_isdigit(*text) && strspn(text, "0123456789") == strlen(text) &&
	       g_ascii_strtoull(text, NULL, 10) <= UINT32_MAX;
}

/* What the kernel keeps for the HDIO_GETGEO ioctl, which an image does not have. */
bool cmd_setgeometry(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	int error = 0;

	if (!ident_need(*argv, &id))
		return false;
	if (!id.name || !tree_has_device(ctl_root(), id.name))
		error = -ENXIO;
	for (int i = 1; !error && i < argc; i++)
		if (!geometry_number(argv[i]))
			error = -EINVAL;
	if (error)
		return ioctl_failed("setgeometry", &id, error);
	say("setgeometry: an image has no geometry");
	return true;
}

/* --- mknodes, mangle ------------------------------------------------------------------------------------ */

/* A device's files are there as long as it is. */
bool cmd_mknodes(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return ctl_root();
}

static void tell_mangled(const struct device *d)
{
	g_autofree char *name = mangle(d->name), *uuid = mangle(d->uuid);

	printf("%s: %s: name %salready in correct form\n", name, *uuid ? uuid : "[no UUID]", *uuid ? "and UUID " : "");
}

/* A dmfs name may hold any character, so there is never anything to do. */
bool cmd_mangle(int argc, char **argv)
{
	g_autoptr(GPtrArray) list = NULL;
	AUTO_IDENT id = {0};
	struct device *d;
	int error;

	(void)argc;
	switch (ident_find(*argv, &id)) {
	case IDENT_BAD:
		return false;
	case IDENT_OK:
		d = id.name ? device_get(id.name, &error) : NULL;
		if (!d)
			return say("Device does not exist.");
		tell_mangled(d);
		device_free(d);
		return true;
	case IDENT_NONE:
		break;
	}
	list = device_list(true);
	for (unsigned i = 0; list && i < list->len; i++)
		tell_mangled(list->pdata[i]);
	return list;
}

/* --- targets, version ---------------------------------------------------------------------------------------- */

static char *read_targets(void)
{
	g_autofree char *path = NULL, *text = NULL;
	int error;

	if (!ctl_root())
		return NULL;
	path = tree_path(ctl_root(), NULL, "targets");
	error = tree_read(path, &text);
	if (error)
		say("%s: %s", path, g_strerror(-error));
	return g_steal_pointer(&text);
}

bool cmd_targets(int argc, char **argv)
{
	g_autofree char *text = read_targets();

	(void)argc;
	(void)argv;
	if (text)
		fputs(text, stdout);
	return text;
}

bool cmd_target_version(int argc, char **argv)
{
	g_autofree char *text = read_targets();
	g_auto(GStrv) lines = NULL;
	size_t len = strlen(*argv);

	(void)argc;
	if (!text)
		return false;
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++)
		if (!strncmp(lines[i], *argv, len) && lines[i][len] == ' ') {
			puts(lines[i]);
			return true;
		}
	return ioctl_failed_on("target-version", *argv, NULL, -1, -EINVAL);
}

bool cmd_version(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("Library version:   " LIBRARY_VERSION " (dmfs " DMFS_VERSION ")");
	if (!ctl_root())
		return false;
	puts("Driver version:    " DRIVER_VERSION);
	return true;
}
