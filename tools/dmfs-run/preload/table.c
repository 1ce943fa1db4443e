/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device mapper's commands about tables: load, clear, deps, status, wait, message.
 *
 * Data of load, from data_start on, target_count times (<linux/dm-ioctl.h>):
 *	struct dm_target_spec { u64 start, length; s32 status; u32 next; char type[16]; } char arguments[];
 * next is from this spec to the next one.  In an answer it is from the data's beginning.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

/* --- load ------------------------------------------------------------------------------------------ */

/* One target as a line of a table. */
static int add_line(struct text *table, const struct dm_target_spec *spec, const char *params)
{
	size_t len = strnlen(spec->target_type, sizeof spec->target_type);
	AUTO_TEXT with_keys = {0};
	int error;

	if (!len || len == sizeof spec->target_type)
		return -EINVAL;
	for (size_t i = 0; i < len; i++)
		if (isspace((unsigned char)spec->target_type[i]) || spec->target_type[i] == '\\')
			return -EINVAL;
	error = keys_in(&with_keys, spec->target_type, params);
	if (error)
		return error;
	text_printf(table, "%" PRIu64 " %" PRIu64 " %s ", (uint64_t)spec->sector_start, (uint64_t)spec->length,
		    spec->target_type);
	words_in(table, text_get(&with_keys));
	text_str(table, "\n");
	return table->failed ? -ENOMEM : 0;
}

static int read_specs(struct dm_ioctl *io, size_t size, struct text *table)
{
	size_t offset = 0;
	int error = 0;

	if (!io->target_count)
		return -EINVAL;
	for (unsigned i = 0; !error && i < io->target_count; i++) {
		struct dm_target_spec spec;
		size_t at, end;
		const char *params;

		if (io->data_start < offsetof(struct dm_ioctl, data) ||
		    __builtin_add_overflow((size_t)io->data_start, offset, &at) ||
		    __builtin_add_overflow(at, sizeof spec, &end) || end > size)
			return -EINVAL;
		memcpy(&spec, (char *)io + at, sizeof spec);
		params = command_string(io, size, offset + sizeof spec);
		if (!params)
			return -EINVAL;
		error = add_line(table, &spec, params);
		if (spec.next < sizeof spec && i + 1 < io->target_count)
			return -EINVAL;
		offset += spec.next;
	}
	return error;
}

static int set_readonly(const char *name, bool readonly, bool *before)
{
	AUTO_TEXT t = {0};
	int error = tree_read(name, "readonly", &t);

	if (error)
		return error;
	*before = *text_get(&t) == '1';
	return *before == readonly ? 0 : tree_write(name, "readonly", readonly ? "1\n" : "0\n", 2, 0);
}

int command_load(struct dm_ioctl *io, size_t size)
{
	AUTO_TEXT table = {0};
	bool before, unused;
	struct device d;
	int error = command_find(io, &d);

	if (!error)
		error = read_specs(io, size, &table);
	if (!error)
		error = set_readonly(d.name, io->flags & DM_READONLY_FLAG, &before);
	if (error)
		return error;
	error = tree_write(d.name, "inactive", table.s, table.len, 0);
	if (error) {
		set_readonly(d.name, before, &unused);
		return error == -ENOENT ? -ENODEV : error; /* a path in a table that is not there */
	}
	return command_state(io, d.name);
}

int command_clear(struct dm_ioctl *io, size_t size)
{
	struct device d;
	int error = command_find(io, &d);

	(void)size;
	if (!error)
		error = tree_write(d.name, "inactive", "", 0, O_TRUNC);
	return error ? error : command_state(io, d.name);
}

/* --- texts of a table ------------------------------------------------------------------------------ */

/* What the tree tells, with devices as numbers. */
static int ask(const struct device *d, const char *what, bool inactive, struct text *out)
{
	AUTO_TEXT message = {0};

	text_printf(&message, "@numbers %s%s", inactive ? "inactive " : "", what);
	return tree_message(d->name, text_get(&message), message.len, out);
}

int command_deps(struct dm_ioctl *io, size_t size)
{
	bool inactive = io->flags & DM_QUERY_INACTIVE_TABLE_FLAG;
	AUTO_TEXT lines = {0};
	AUTO_TEXT out = {0};
	uint32_t head[2] = {0, 0};
	struct device d;
	int error = command_find(io, &d);

	if (!error)
		error = command_state(io, d.name);
	if (!error)
		error = ask(&d, "deps", inactive, &lines);
	if (error)
		return error;
	text_add(&out, head, sizeof head);
	for (char *line = lines.s; line && *line;) {
		size_t len = strcspn(line, "\n");
		bool more = line[len];
		dev_t dev;
		uint64_t number;

		line[len] = '\0';
		if (word_to_dev(line, &dev)) {
			number = dev;
			text_add(&out, &number, sizeof number);
			head[0]++;
		}
		line += len + more;
	}
	if (out.failed)
		return -ENOMEM;
	memcpy(out.s, head, sizeof head);
	if (inactive ? d.inactive : d.live)
		command_result(io, size, &out);
	return 0;
}

/* A line "START LENGTH TYPE REST" as a spec. */
static bool add_spec(struct text *out, const char *line, size_t len)
{
	struct dm_target_spec spec = {0};
	char *end;
	const char *type;
	size_t n, at = out->len;

	spec.sector_start = strtoull(line, &end, 10);
	spec.length = strtoull(end, &end, 10);
	type = end + strspn(end, " ");
	n = strcspn(type, " \n");
	if (!n || n >= sizeof spec.target_type || type + n > line + len)
		return false;
	memcpy(spec.target_type, type, n);
	type += n + (type[n] == ' ');
	text_add(out, &spec, sizeof spec);
	if (type < line + len)
		words_out(out, type, (size_t)(line + len - type));
	text_add(out, "", 1);
	command_align(out);
	if (out->failed)
		return false;
	spec.next = (uint32_t)out->len;
	memcpy(out->s + at, &spec, sizeof spec);
	return true;
}

/* A line's length; a quoted newline is one of a word. */
static size_t line_length(const char *text)
{
	size_t i = 0;

	for (; text[i] && text[i] != '\n'; i++)
		i += text[i] == '\\' && text[i + 1];
	return i;
}

static int put_specs(struct dm_ioctl *io, size_t size, const char *text)
{
	AUTO_TEXT out = {0};
	unsigned count = 0;

	while (*text) {
		size_t len = line_length(text);

		count += add_spec(&out, text, len);
		text += len + (text[len] == '\n');
	}
	if (out.failed)
		return -ENOMEM;
	io->target_count = count;
	command_result(io, size, &out);
	return 0;
}

/* The targets' lines, or their status, after the header has been filled in. */
static int put_table(struct dm_ioctl *io, size_t size, const struct device *d)
{
	bool inactive = io->flags & DM_QUERY_INACTIVE_TABLE_FLAG, table = io->flags & DM_STATUS_TABLE_FLAG;
	AUTO_TEXT text = {0};
	int error;

	if (!(inactive ? d->inactive : d->live))
		return 0;
	if (table)
		error = ask(d, "keys", inactive, &text);
	else
		error = ask(d, io->flags & DM_NOFLUSH_FLAG || inactive ? "status" : "flush status", inactive, &text);
	return error ? error : put_specs(io, size, text_get(&text));
}

int command_table(struct dm_ioctl *io, size_t size)
{
	struct device d;
	int error = command_find(io, &d);

	if (!error)
		error = command_state(io, d.name);
	return error ? error : put_table(io, size, &d);
}

/* --- wait ------------------------------------------------------------------------------------------ */

/* Reads what there is: 0, or -ENXIO after the last line of a removed device. */
static int drain(int fd)
{
	char lines[4096];
	ssize_t n;

	do
		n = NEXT(read)(fd, lines, sizeof lines);
	while (n > 0);
	return n ? (errno == EAGAIN ? 0 : -errno) : -ENXIO;
}

int command_wait(struct dm_ioctl *io, size_t size)
{
	unsigned number = io->event_nr;
	char path[PATH_MAX];
	struct device d;
	struct pollfd p = {.events = POLLIN | POLLPRI};
	int error = command_find(io, &d);

	if (error)
		return error;
	if (!path_format(path, "%s/%s/events", run.mount, d.name))
		return -ENXIO;
	p.fd = NEXT(open)(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (p.fd < 0)
		return errno == ENOENT ? -ENXIO : -errno;
	for (;;) {
		char name[128];

		error = drain(p.fd);
		if (!error)
			error = tree_by_minor(d.minor, name); /* a new name is an event, too */
		if (!error)
			error = tree_device(name, &d);
		if (error || d.events != number)
			break;
		if (NEXT(poll)(&p, 1, -1) < 0) {
			error = errno == EINTR ? -ERESTART : -errno;
			break;
		}
	}
	NEXT(close)(p.fd);
	if (error == -ERESTART)
		return -EINTR;
	if (error == -ENXIO) { /* removed: that ends the wait, too */
		io->flags &= ~(DM_ACTIVE_PRESENT_FLAG | DM_INACTIVE_PRESENT_FLAG);
		return 0;
	}
	if (!error)
		error = command_state(io, d.name);
	return error ? error : put_table(io, size, &d);
}

/* --- message --------------------------------------------------------------------------------------- */

/* There is a reply, be it empty. */
static bool answers(const char *words)
{
	return !strncmp(words, "@stats_list", 11) || !strncmp(words, "@stats_print", 12) ||
	       !strncmp(words, "@stats_create", 13);
}

int command_message(struct dm_ioctl *io, size_t size)
{
	uint64_t sector;
	const char *words = command_string(io, size, sizeof sector);
	AUTO_TEXT with_keys = {0};
	AUTO_TEXT text = {0};
	AUTO_TEXT reply = {0};
	struct device d;
	int error = command_find(io, &d);

	if (error)
		return error;
	if (!words || io->data_start + sizeof sector > size)
		return -EINVAL;
	memcpy(&sector, (char *)io + io->data_start, sizeof sector);
	if (!words[strspn(words, " \t\n\v\f\r")])
		return -EINVAL;
	error = keys_in_message(&with_keys, words);
	if (error)
		return error;
	text_printf(&text, "%" PRIu64 " ", sector);
	words_in(&text, text_get(&with_keys));
	error = text.failed ? -ENOMEM : tree_message(d.name, text.s, text.len, &reply);
	if (error)
		return error;
	if ((error = command_state(io, d.name)))
		return error;
	if (reply.len || answers(words)) {
		text_add(&reply, "", 1);
		io->flags |= DM_DATA_OUT_FLAG;
		command_result(io, size, &reply);
	}
	return 0;
}
