/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mount and its shadow, libc's own calls, texts and files. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

struct run run;

void *run_next(const char *name)
{
	void *f = dlsym(RTLD_NEXT, name);

	if (!f) {
		static const char text[] = "libdmfs-run.so: the C library lacks ";
		ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);

		n = write(STDERR_FILENO, name, strlen(name));
		n = write(STDERR_FILENO, "\n", 1);
		(void)n;
		abort();
	}
	return f;
}

/* --- texts ----------------------------------------------------------------------------------------- */

void text_free(struct text *t)
{
	if (t->s)
		explicit_bzero(t->s, t->room);
	free(t->s);
	*t = (struct text){0};
}

static bool text_grow(struct text *t, size_t more)
{
	size_t need, room;
	char *s;

	if (t->failed || __builtin_add_overflow(t->len, more, &need) || __builtin_add_overflow(need, 1, &need))
		return !(t->failed = true);
	if (need <= t->room)
		return true;
	room = t->room > need / 2 ? 2 * t->room : need < 256 ? 256 : need;
	s = malloc(room);
	if (!s)
		return !(t->failed = true);
	if (t->s) {
		memcpy(s, t->s, t->len);
		explicit_bzero(t->s, t->room);
		free(t->s);
	}
	t->s = s;
	t->room = room;
	return true;
}

void text_add(struct text *t, const void *s, size_t len)
{
	if (!text_grow(t, len))
		return;
	memcpy(t->s + t->len, s, len);
	t->len += len;
	t->s[t->len] = '\0';
}

void text_str(struct text *t, const char *s)
{
	text_add(t, s, strlen(s));
}

void text_printf(struct text *t, const char *format, ...)
{
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(NULL, 0, format, ap);
	va_end(ap);
	if (n < 0 || !text_grow(t, (size_t)n))
		return;
	va_start(ap, format);
	vsnprintf(t->s + t->len, (size_t)n + 1, format, ap);
	va_end(ap);
	t->len += (size_t)n;
}

const char *text_get(const struct text *t)
{
	return t->s ? t->s : "";
}

/* --- files ----------------------------------------------------------------------------------------- */

static int read_all(int fd, struct text *out)
{
	char part[4096];
	ssize_t n;

	while ((n = NEXT(read)(fd, part, sizeof part)))
		if (n > 0)
			text_add(out, part, (size_t)n);
		else if (errno != EINTR)
			return -errno;
	explicit_bzero(part, sizeof part);
	return out->failed ? -ENOMEM : 0;
}

static int write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = NEXT(write)(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

int file_read(const char *path, struct text *out)
{
	int fd = NEXT(open)(path, O_RDONLY | O_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = read_all(fd, out);
	NEXT(close)(fd);
	return error;
}

int file_write(const char *path, const void *data, size_t len, int more_flags)
{
	int fd = NEXT(open)(path, O_WRONLY | O_CLOEXEC | more_flags, 0600), error;

	if (fd < 0)
		return -errno;
	error = write_all(fd, data, len);
	if (NEXT(close)(fd) && !error)
		error = -errno;
	return error;
}

bool link_read(const char *path, char *out, size_t size)
{
	ssize_t n = NEXT(readlink)(path, out, size);

	if (n < 0 || (size_t)n >= size)
		return false;
	out[n] = '\0';
	return true;
}

bool path_format(char out[PATH_MAX], const char *format, ...)
{
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(out, PATH_MAX, format, ap);
	va_end(ap);
	return n >= 0 && n < PATH_MAX;
}

/* --- start ----------------------------------------------------------------------------------------- */

/*
 * The shadow has what does not change in two links: mount, and numbers: DM:DISK, the mount's device, and the inodes of
 * its control and events.  So the start of a program asks the mount nothing.
 */
void run_init(void)
{
	const char *shadow = getenv(ENV_SHADOW);
	char path[PATH_MAX], numbers[128];
	unsigned dev_major, dev_minor;
	unsigned long control, events;
	int before = errno;

	if (run.on || !shadow || *shadow != '/' || strlen(shadow) >= sizeof run.shadow - 128)
		return;
	strcpy(run.shadow, shadow);
	run.shadow_len = strlen(shadow);
	if (path_format(path, "%s/mount", shadow) && link_read(path, run.mount, sizeof run.mount - 300) &&
	    path_format(path, "%s/numbers", shadow) && link_read(path, numbers, sizeof numbers) &&
	    sscanf(numbers, "%u:%u %u:%u %lu %lu", &run.dm_major, &run.disk_major, &dev_major, &dev_minor, &control,
		   &events) == 6) {
		run.mount_len = strlen(run.mount);
		run.mount_dev = makedev(dev_major, dev_minor);
		run.control_ino = control;
		run.events_ino = events;
		run.on = true;
		disks_load();
	}
	errno = before;
}
