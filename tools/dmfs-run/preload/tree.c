/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mount's control tree, dmfs(1): its devices and their files. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

#define NAME_BYTES 127

bool tree_valid_name(const char *name)
{
	return *name && *name != '.' && !strchr(name, '/') && strlen(name) <= NAME_BYTES;
}

/* A directory's file; a removed device's, or one that is none, is not there. */
static int path_of(char path[PATH_MAX], const char *name, const char *file)
{
	if (!tree_valid_name(name) || !path_format(path, "%s/%s/%s", run.mount, name, file))
		return -ENXIO;
	return 0;
}

static int no_device(int error)
{
	return error == -ENOENT || error == -ENOTDIR || error == -ENODEV ? -ENXIO : error;
}

int tree_read(const char *name, const char *file, struct text *out)
{
	char path[PATH_MAX];
	int error = path_of(path, name, file);

	return error ? error : no_device(file_read(path, out));
}

int tree_write(const char *name, const char *file, const void *data, size_t len, int more_flags)
{
	char path[PATH_MAX];
	int error = path_of(path, name, file);

	return error ? error : file_write(path, data, len, more_flags);
}

int tree_message(const char *name, const char *text, size_t len, struct text *reply)
{
	char path[PATH_MAX], part[4096];
	int error = path_of(path, name, "message"), fd;
	ssize_t n = 0;

	if (error)
		return error;
	fd = NEXT(open)(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return no_device(-errno);
	for (size_t at = 0; at < len; at += (size_t)n) {
		n = NEXT(write)(fd, text + at, len - at);
		if (n < 0 && errno != EINTR)
			break;
		n = n < 0 ? 0 : n;
	}
	for (off_t at = 0; n >= 0 && (n = NEXT(pread)(fd, part, sizeof part, at)) > 0; at += n)
		text_add(reply, part, (size_t)n);
	error = n < 0 ? -errno : reply->failed ? -ENOMEM : 0;
	explicit_bzero(part, sizeof part);
	NEXT(close)(fd);
	return error;
}

/* --- lists ----------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct listed *)a)->name, ((const struct listed *)b)->name);
}

/* One quoted word, and the blanks before it; returns what is behind it, or NULL if it is too long. */
static const char *take_word(const char *s, char *out, size_t size)
{
	size_t n = 0;

	while (*s == ' ')
		s++;
	while (*s && *s != ' ' && *s != '\n') {
		s += *s == '\\' && s[1];
		if (n + 1 >= size)
			return NULL;
		out[n++] = *s++;
	}
	out[n] = '\0';
	return s;
}

/* "0:MINOR EVENT-NUMBER NAME [UUID]"; returns what is behind the line, or NULL if it is none. */
static const char *take_line(const char *s, struct listed *out)
{
	int n = 0;

	if (sscanf(s, "0:%u %u %n", &out->minor, &out->events, &n) != 2 || !n)
		return NULL;
	s = take_word(s + n, out->name, sizeof out->name);
	s = s ? take_word(s, out->uuid, sizeof out->uuid) : NULL;
	return s && *s == '\n' ? s + 1 : NULL;
}

static int read_devices(struct listed **list, size_t *count)
{
	AUTO_TEXT text = {0};
	char path[PATH_MAX];
	size_t room = 0;
	int error;

	*list = NULL;
	*count = 0;
	path_format(path, "%s/.devices", run.mount);
	error = file_read(path, &text);
	for (const char *line = text_get(&text); !error && *line;) {
		if (*count == room) {
			struct listed *more = reallocarray(*list, room = room ? 2 * room : 16, sizeof **list);

			if (!more)
				return -ENOMEM;
			*list = more;
		}
		line = take_line(line, &(*list)[*count]);
		if (!line)
			return -EIO;
		(*count)++;
	}
	return error;
}

int tree_each(int (*fn)(const struct listed *d, void *data), void *data)
{
	struct listed *list;
	size_t count;
	int result = read_devices(&list, &count);

	if (!result && count)
		qsort(list, count, sizeof *list, by_name);
	for (size_t i = 0; !result && i < count; i++)
		result = fn(&list[i], data);
	free(list);
	return result;
}

/* --- one device ------------------------------------------------------------------------------------ */

long tree_minor(const char *name)
{
	AUTO_TEXT t = {0};
	unsigned nr;

	return !tree_read(name, "dev", &t) && sscanf(text_get(&t), "0:%u", &nr) == 1 ? (long)nr : -1;
}

struct wanted {
	unsigned minor;
	const char *uuid;
	char *name;
};

static int matches(const struct listed *d, void *data)
{
	struct wanted *w = data;

	if (w->uuid ? strcmp(w->uuid, d->uuid) : w->minor != d->minor)
		return 0;
	strcpy(w->name, d->name);
	return 1;
}

static int find(struct wanted *w)
{
	int r = tree_each(matches, w);

	return r > 0 ? 0 : r < 0 ? r : -ENXIO;
}

int tree_by_minor(unsigned minor_nr, char name[128])
{
	struct wanted w = {.minor = minor_nr, .name = name};

	return find(&w);
}

int tree_by_uuid(const char *uuid, char name[128])
{
	struct wanted w = {.uuid = uuid, .name = name};

	return find(&w);
}

/* The value of a line of `info`, which is as `dmsetup info NAME` prints it. */
static const char *value(const char *info, const char *key)
{
	size_t len = strlen(key);

	for (const char *line = info; line; line = strchr(line, '\n'), line += line ? 1 : 0) {
		if (strncmp(line, key, len) || line[len] != ':')
			continue;
		line += len + 1;
		return line + strspn(line, " ");
	}
	return "";
}

static bool line_has(const char *line, const char *word)
{
	const char *found = strstr(line, word);

	return found && (size_t)(found - line) < strcspn(line, "\n");
}

int tree_device(const char *name, struct device *d)
{
	AUTO_TEXT info = {0};
	AUTO_TEXT uuid = {0};
	int error = tree_read(name, "info", &info);
	const char *state, *tables, *number;
	size_t len;

	if (error)
		return error;
	*d = (struct device){0};
	strcpy(d->name, name);
	if (!tree_read(name, "uuid", &uuid) && uuid.len) {
		len = uuid.len - (uuid.s[uuid.len - 1] == '\n');
		memcpy(d->uuid, uuid.s, len < sizeof d->uuid ? len : sizeof d->uuid - 1);
	}
	state = value(text_get(&info), "State");
	tables = value(text_get(&info), "Tables present");
	number = value(text_get(&info), "Major, minor");
	number += strcspn(number, ",");
	if (*number != ',')
		return -EIO;
	d->minor = (unsigned)strtoul(number + 1, NULL, 10);
	d->suspended = !strncmp(state, "SUSPENDED", 9);
	d->readonly = line_has(state, "READ-ONLY");
	d->deferred = line_has(state, "DEFERRED REMOVE");
	d->live = line_has(tables, "LIVE");
	d->inactive = line_has(tables, "INACTIVE");
	d->open = (unsigned)strtoul(value(text_get(&info), "Open count"), NULL, 10);
	d->events = (unsigned)strtoul(value(text_get(&info), "Event number"), NULL, 10);
	d->targets = (unsigned)strtoul(value(text_get(&info), "Number of targets"), NULL, 10);
	return 0;
}

void tree_quote(struct text *out, const char *word)
{
	for (; *word; word++) {
		if (isspace((unsigned char)*word) || strchr("\\\"'#", *word))
			text_add(out, "\\", 1);
		text_add(out, word, 1);
	}
}
