/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * /dev/mapper/control: the device mapper's ioctls (<linux/dm-ioctl.h>, interface 4.47), done in the control tree.
 *
 * A command has a buffer: struct dm_ioctl, whose data_size is how large all of it is, and the command's own data from
 * data_start on.  It is copied, so that a program that changes it meanwhile changes nothing, checked, given to the
 * command's function, and what that left is copied back.  Results that do not fit set DM_BUFFER_FULL_FLAG.
 *
 * Which errors, and which fields an answer fills in, is as the kernel does it: programs rely on that.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "command.h"

#define INTERFACE_MINOR 47
#define MAX_BUFFER (64u * 1024 * 1024)
#define HEAD offsetof(struct dm_ioctl, data)
#define LATER_FLAGS (DM_BUFFER_FULL_FLAG | DM_UEVENT_GENERATED_FLAG | DM_SECURE_DATA_FLAG | DM_DATA_OUT_FLAG)

/* --- devices --------------------------------------------------------------------------------------- */

uint64_t command_dev(unsigned minor_nr)
{
	return makedev(run.dm_major, minor_nr);
}

static int find_name(const struct dm_ioctl *io, char name[128])
{
	if (*io->uuid)
		return *io->name || io->dev ? -ENXIO : tree_by_uuid(io->uuid, name);
	if (*io->name) {
		if (io->dev || !tree_valid_name(io->name))
			return -ENXIO;
		strcpy(name, io->name);
		return 0;
	}
	if (!io->dev || major(io->dev) != run.dm_major)
		return -ENXIO;
	return tree_by_minor(minor(io->dev), name);
}

int command_find(struct dm_ioctl *io, struct device *d)
{
	char name[128];
	int error = find_name(io, name);

	if (!error)
		error = tree_device(name, d);
	if (error)
		return error;
	memset(io->name, 0, sizeof io->name);
	memset(io->uuid, 0, sizeof io->uuid);
	strcpy(io->name, d->name);
	strcpy(io->uuid, d->uuid);
	return 0;
}

static unsigned count_lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

/* The header's part of an answer. */
static void fill(struct dm_ioctl *io, const struct device *d)
{
	io->flags &= ~(DM_SUSPEND_FLAG | DM_READONLY_FLAG | DM_ACTIVE_PRESENT_FLAG | DM_INACTIVE_PRESENT_FLAG |
		       DM_INTERNAL_SUSPEND_FLAG | DM_DEFERRED_REMOVE);
	io->flags |= (d->suspended ? DM_SUSPEND_FLAG : 0) | (d->inactive ? DM_INACTIVE_PRESENT_FLAG : 0) |
		     (d->deferred ? DM_DEFERRED_REMOVE : 0) | (d->live ? DM_ACTIVE_PRESENT_FLAG : 0);
	io->dev = command_dev(d->minor);
	io->open_count = (int)d->open;
	io->event_nr = d->events;
	io->target_count = 0;
	if (io->flags & DM_QUERY_INACTIVE_TABLE_FLAG) {
		AUTO_TEXT t = {0};

		if (d->inactive && !tree_read(d->name, "inactive", &t))
			io->target_count = count_lines(text_get(&t));
		return;
	}
	io->target_count = d->targets;
	io->flags |= d->live && d->readonly ? DM_READONLY_FLAG : 0;
}

int command_state(struct dm_ioctl *io, const char *name)
{
	struct device d;
	int error = tree_device(name, &d);

	if (!error)
		fill(io, &d);
	return error;
}

/* --- results --------------------------------------------------------------------------------------- */

void *command_room(struct dm_ioctl *io, size_t size, size_t *room)
{
	size_t start = (sizeof *io + 7) & ~(size_t)7;

	io->data_start = (uint32_t)start;
	if (start < size) {
		*room = size - start;
	} else {
		*room = 0;
		io->flags |= DM_BUFFER_FULL_FLAG;
	}
	return (char *)io + start;
}

bool command_result(struct dm_ioctl *io, size_t size, const struct text *result)
{
	size_t room;
	void *to = command_room(io, size, &room);

	if (result->len > room) {
		io->flags |= DM_BUFFER_FULL_FLAG;
		return false;
	}
	memcpy(to, text_get(result), result->len);
	io->data_size = (uint32_t)(io->data_start + result->len);
	return true;
}

void command_align(struct text *t)
{
	static const char zeros[8];

	text_add(t, zeros, -t->len & 7);
}

/* The string that begins at data_start, if it ends within the buffer. */
const char *command_string(struct dm_ioctl *io, size_t size, size_t offset)
{
	size_t start;

	if (io->data_start < HEAD || __builtin_add_overflow((size_t)io->data_start, offset, &start) || start >= size ||
	    !memchr((char *)io + start, '\0', size - start))
		return NULL;
	return (char *)io + start;
}

/* --- commands on all devices ----------------------------------------------------------------------- */

static int version(struct dm_ioctl *io, size_t size)
{
	(void)size;
	io->data_size = 0;
	return 0;
}

static int try_remove(const char *name, bool deferred)
{
	AUTO_TEXT t = {0};
	char path[PATH_MAX];
	int error;

	if (!tree_valid_name(name))
		return -ENXIO;
	if (deferred) {
		text_str(&t, "remove ");
		tree_quote(&t, name);
		text_str(&t, " deferred\n");
		path_format(path, "%s/control", run.mount);
		error = file_write(path, text_get(&t), t.len, 0);
	} else {
		error = path_format(path, "%s/%s", run.mount, name) && !NEXT(rmdir)(path) ? 0 : -errno;
	}
	return error == -ENOENT || error == -ENOTDIR ? -ENXIO : error;
}

struct round {
	bool deferred;
	unsigned removed, left;
};

static int remove_next(const struct listed *d, void *data)
{
	struct round *r = data;
	int error = try_remove(d->name, r->deferred);

	r->removed += !error;
	r->left += error == -EBUSY;
	return 0;
}

static int remove_all(struct dm_ioctl *io, size_t size)
{
	struct round r;

	(void)size;
	do {
		r = (struct round){.deferred = io->flags & DM_DEFERRED_REMOVE};
		tree_each(remove_next, &r);
	} while (r.removed && r.left && !r.deferred);
	io->data_size = 0;
	return 0;
}

struct listing {
	const struct dm_ioctl *io;
	struct text out;
	size_t last; /* where the last entry begins */
	bool any;
};

/* struct dm_name_list { u64 dev; u32 next; char name[]; }, then aligned to 8: u32 event number, u32 flags, uuid. */
static int list_next(const struct listed *d, void *data)
{
	struct listing *l = data;
	size_t pfx = strlen(l->io->name), upfx = strlen(l->io->uuid), at = l->out.len;
	uint64_t dev = command_dev(d->minor);
	uint32_t next = 0, more[2] = {d->events, 0};

	if ((pfx && strncmp(l->io->name, d->name, pfx)) || (upfx && strncmp(l->io->uuid, d->uuid, upfx)))
		return 0;
	text_add(&l->out, &dev, sizeof dev);
	text_add(&l->out, &next, sizeof next);
	text_add(&l->out, d->name, strlen(d->name) + 1);
	command_align(&l->out);
	if (l->io->flags & DM_UUID_FLAG)
		more[1] = *d->uuid ? DM_NAME_LIST_FLAG_HAS_UUID : DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID;
	text_add(&l->out, more, sizeof more);
	if (more[1] == DM_NAME_LIST_FLAG_HAS_UUID)
		text_add(&l->out, d->uuid, strlen(d->uuid) + 1);
	command_align(&l->out);
	if (l->out.failed)
		return -ENOMEM;
	if (l->any) {
		next = (uint32_t)(at - l->last);
		memcpy(l->out.s + l->last + 8, &next, sizeof next);
	}
	l->last = at;
	l->any = true;
	return 0;
}

static int list_devices(struct dm_ioctl *io, size_t size)
{
	struct listing l = {.io = io};
	static const char none[16];
	int error = tree_each(list_next, &l);

	if (!error) {
		if (!l.any)
			text_add(&l.out, none, sizeof none);
		command_result(io, size, &l.out);
	}
	text_free(&l.out);
	return error;
}

/* "NAME vX.Y.Z" lines become struct dm_target_versions { u32 next, version[3]; char name[]; }. */
static int versions(struct dm_ioctl *io, size_t size, const char *only)
{
	AUTO_TEXT in = {0};
	AUTO_TEXT out = {0};
	char path[PATH_MAX];
	size_t last = 0;
	bool any = false;
	int error;

	path_format(path, "%s/targets", run.mount);
	error = file_read(path, &in);
	if (error)
		return error;
	for (const char *line = text_get(&in); *line; line += strcspn(line, "\n"), line += *line == '\n') {
		uint32_t v[4] = {0}, next;
		size_t len = strcspn(line, " \n"), at = out.len;

		if (sscanf(line + len, " v%u.%u.%u", &v[1], &v[2], &v[3]) != 3 ||
		    (only && (strlen(only) != len || memcmp(line, only, len))))
			continue;
		text_add(&out, v, sizeof v);
		text_add(&out, line, len);
		text_add(&out, "", 1);
		command_align(&out);
		if (out.failed)
			return -ENOMEM;
		next = (uint32_t)(at - last);
		if (any)
			memcpy(out.s + last, &next, sizeof next);
		last = at;
		any = true;
	}
	if (only && !any)
		return -EINVAL;
	command_result(io, size, &out);
	return 0;
}

static int list_versions(struct dm_ioctl *io, size_t size)
{
	return versions(io, size, NULL);
}

static int get_target_version(struct dm_ioctl *io, size_t size)
{
	char only[sizeof io->name];

	strcpy(only, io->name);
	return versions(io, size, only);
}

/* --- making and removing one ----------------------------------------------------------------------- */

static int make(const struct dm_ioctl *io)
{
	AUTO_TEXT t = {0};
	char path[PATH_MAX];

	if (!(io->flags & DM_PERSISTENT_DEV_FLAG))
		return path_format(path, "%s/%s", run.mount, io->name) && !NEXT(mkdir)(path, 0700) ? 0 : -errno;
	text_str(&t, "create ");
	tree_quote(&t, io->name);
	text_printf(&t, " %u\n", minor(io->dev));
	path_format(path, "%s/control", run.mount);
	return file_write(path, text_get(&t), t.len, 0);
}

static int create(struct dm_ioctl *io, size_t size)
{
	char other[128];
	int error;

	(void)size;
	if (!tree_valid_name(io->name))
		return -EINVAL;
	if (*io->uuid && !tree_by_uuid(io->uuid, other))
		return -EBUSY;
	error = make(io);
	if (error)
		return error == -EEXIST || error == -EISDIR ? -EBUSY : error;
	if (*io->uuid)
		error = tree_write(io->name, "uuid", io->uuid, strlen(io->uuid), 0);
	if (error) {
		try_remove(io->name, false);
		return error;
	}
	return command_state(io, io->name);
}

static int remove_one(struct dm_ioctl *io, size_t size)
{
	struct device d;
	int error = command_find(io, &d);

	(void)size;
	if (!error)
		error = try_remove(d.name, io->flags & DM_DEFERRED_REMOVE);
	if (!error)
		io->data_size = 0;
	return error;
}

static int new_name(const char *name, const char *to)
{
	char from_path[PATH_MAX], to_path[PATH_MAX];
	struct stat st;

	if (!tree_valid_name(to))
		return -EINVAL;
	if (!path_format(from_path, "%s/%s", run.mount, name) || !path_format(to_path, "%s/%s", run.mount, to))
		return -EINVAL;
	if (!NEXT(lstat)(to_path, &st)) /* itself, too, which rename(2) takes for done */
		return -EBUSY;
	if (!NEXT(rename)(from_path, to_path))
		return 0;
	return errno == EEXIST || errno == ENOTDIR ? -EBUSY : errno == ENOENT ? -ENXIO : -errno;
}

static int new_uuid(const char *name, const char *to)
{
	char other[128];

	return tree_by_uuid(to, other) ? tree_write(name, "uuid", to, strlen(to), 0) : -EBUSY;
}

static int rename_one(struct dm_ioctl *io, size_t size)
{
	const char *to = command_string(io, size, 0);
	bool uuid = io->flags & DM_UUID_FLAG;
	struct device d;
	int error;

	if (!to || !*to || strlen(to) > (uuid ? DM_UUID_LEN : DM_NAME_LEN) - 1)
		return -EINVAL;
	if (!uuid && strchr(to, '/'))
		return -EINVAL;
	error = command_find(io, &d);
	if (!error)
		error = uuid ? new_uuid(d.name, to) : new_name(d.name, to);
	if (!error)
		error = command_state(io, uuid ? d.name : to);
	io->data_size = HEAD;
	return error;
}

static int status(struct dm_ioctl *io, size_t size)
{
	struct device d;
	int error = command_find(io, &d);

	(void)size;
	if (!error)
		fill(io, &d);
	return error;
}

/* --- suspend, resume ------------------------------------------------------------------------------- */

static int suspend(struct dm_ioctl *io, size_t size)
{
	bool noflush = io->flags & DM_NOFLUSH_FLAG, to = io->flags & DM_SUSPEND_FLAG;
	const char *word = to ? (noflush ? "1 noflush\n" : "1\n") : (noflush ? "0 noflush\n" : "0\n");
	struct device d;
	int error = command_find(io, &d);

	(void)size;
	if (!error && !to && d.suspended && !d.live && !d.inactive)
		error = -EINVAL;
	if (!error)
		error = tree_write(d.name, "suspend", word, strlen(word), 0);
	return error ? error : command_state(io, d.name);
}

/* --- geometry -------------------------------------------------------------------------------------- */

/* Cylinders, heads, sectors, start.  No dmfs device has one that anyone could ask for but by HDIO_GETGEO. */
static int set_geometry(struct dm_ioctl *io, size_t size)
{
	const char *text = command_string(io, size, 0);
	unsigned long n[4];
	char path[PATH_MAX], rest;
	struct device d;
	int error = command_find(io, &d);

	if (error)
		return error;
	if (!d.live)
		return -ENXIO;
	if (!text || sscanf(text, "%lu %lu %lu %lu%c", &n[0], &n[1], &n[2], &n[3], &rest) != 4 || n[0] > 65535 ||
	    n[1] > 255 || n[2] > 255 || n[3] > n[0] * n[1] * n[2])
		return -EINVAL;
	if (path_format(path, "%s/geometry/%u", run.shadow, d.minor))
		file_write(path, text, strlen(text) + 1, O_CREAT | O_TRUNC);
	io->data_size = 0;
	return 0;
}

/* --- which ----------------------------------------------------------------------------------------- */

static const struct command {
	unsigned nr;
	int (*fn)(struct dm_ioctl *io, size_t size);
	bool on_all; /* name and uuid are not one device's */
} commands[] = {
    {DM_VERSION_CMD, version, true},
    {DM_REMOVE_ALL_CMD, remove_all, true},
    {DM_LIST_DEVICES_CMD, list_devices, true},
    {DM_DEV_CREATE_CMD, create, false},
    {DM_DEV_REMOVE_CMD, remove_one, false},
    {DM_DEV_RENAME_CMD, rename_one, false},
    {DM_DEV_SUSPEND_CMD, suspend, false},
    {DM_DEV_STATUS_CMD, status, false},
    {DM_DEV_WAIT_CMD, command_wait, false},
    {DM_TABLE_LOAD_CMD, command_load, false},
    {DM_TABLE_CLEAR_CMD, command_clear, false},
    {DM_TABLE_DEPS_CMD, command_deps, false},
    {DM_TABLE_STATUS_CMD, command_table, false},
    {DM_LIST_VERSIONS_CMD, list_versions, true},
    {DM_TARGET_MSG_CMD, command_message, false},
    {DM_DEV_SET_GEOMETRY_CMD, set_geometry, false},
    {DM_DEV_ARM_POLL_CMD, version, true},
    {DM_GET_TARGET_VERSION_CMD, get_target_version, false},
};

int control_command(unsigned command, void *buffer, size_t size)
{
	struct dm_ioctl *io = buffer;
	const struct command *c = NULL;

	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (commands[i].nr == command)
			c = &commands[i];
	if (!c)
		return -ENOTTY;
	if (size < HEAD)
		return -EINVAL;
	io->flags &= ~LATER_FLAGS;
	io->name[sizeof io->name - 1] = '\0';
	io->uuid[sizeof io->uuid - 1] = '\0';
	if (command == DM_DEV_CREATE_CMD ? !*io->name : !c->on_all && *io->uuid && *io->name)
		return -EINVAL;
	io->data_size = HEAD;
	return c->fn(io, size);
}

/* poll(2) tells of events that came since: the descriptor becomes one of `events`, all that was before read. */
static int arm_poll(int fd)
{
	char path[PATH_MAX], lines[4096];
	struct stat st;
	int events = fd, flags = NEXT(fcntl)(fd, F_GETFD);

	if (NEXT(fstat)(fd, &st))
		return -errno;
	if (st.st_ino != run.events_ino) {
		path_format(path, "%s/events", run.mount);
		events = NEXT(open)(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (events < 0)
			return -errno;
	}
	while (NEXT(read)(events, lines, sizeof lines) > 0)
		;
	if (events == fd)
		return 0;
	if (NEXT(dup3)(events, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
		return -errno;
	NEXT(close)(events);
	return 0;
}

static bool put_version(struct dm_ioctl *io)
{
	bool ok = io->version[0] == DM_VERSION_MAJOR && io->version[1] <= INTERFACE_MINOR;

	io->version[0] = DM_VERSION_MAJOR;
	io->version[1] = INTERFACE_MINOR;
	io->version[2] = 0;
	return ok;
}

int control_ioctl(int fd, unsigned long request, void *arg)
{
	struct dm_ioctl *user = arg, *io;
	unsigned command = _IOC_NR(request);
	size_t size, back;
	int error;

	if (_IOC_TYPE(request) != DM_IOCTL)
		return -ENOTTY;
	if (!arg)
		return -EFAULT;
	if (!put_version(user))
		return -EINVAL;
	if (command == DM_VERSION_CMD)
		return 0;
	size = user->data_size;
	if (size < HEAD || size > MAX_BUFFER)
		return size < HEAD ? -EINVAL : -ENOMEM;
	if (command == DM_DEV_ARM_POLL_CMD)
		return arm_poll(fd);
	io = calloc(1, size < sizeof *io ? sizeof *io : size);
	if (!io)
		return -ENOMEM;
	memcpy(io, user, size);
	error = control_command(command, io, size);
	if (!error) {
		back = io->flags & DM_BUFFER_FULL_FLAG ? HEAD : io->data_size < HEAD ? HEAD : io->data_size;
		memcpy(user, io, back > size ? size : back);
	}
	explicit_bzero(io, size);
	free(io);
	return error;
}
