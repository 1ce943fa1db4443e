/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * wait: until a device's event number is another, or until its work is done.
 *
 * The device's events are polled, and read to the end, before the number is looked at, so that none in between is
 * missed; their end says that the device is removed.  A progress bar polls the status it is drawn from.
 * The device's directory is held open: a new name does not matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dmfsctl.h"
#include "progress.h"

/* How often a progress bar is drawn anew, events or not. */
#define REFRESH_MS 250
#define BAR_WIDTH 40

/* What a wait holds open: the device's directory, and in it what it polls. */
struct watch {
	int directory, polled;
};

static int watch_open(struct watch *w, const char *name, const char *file)
{
	g_autofree char *path = tree_path(ctl_root(), name, NULL);
	int error;

	w->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->directory < 0)
		return -errno;
	w->polled = openat(w->directory, file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (w->polled >= 0)
		return 0;
	error = -errno;
	close(w->directory);
	return error;
}

static void watch_close(struct watch *w)
{
	close(w->polled);
	close(w->directory);
}

/* Reads what events there are: 0, -ENODEV after the last one of a removed device, or another negative errno. */
static int drain_events(struct watch *w)
{
	char lines[4096];
	ssize_t n;

	do
		n = read(w->polled, lines, sizeof lines);
	while (n > 0 || (n < 0 && errno == EINTR));
	if (!n)
		return -ENODEV;
	return errno == EAGAIN ? 0 : -errno;
}

static struct device *watch_info(struct watch *w, int *error)
{
	g_autofree char *info = NULL;
	struct device *d = NULL;

	*error = tree_read_at(w->directory, "info", &info);
	if (!*error && !(d = device_parse(info)))
		*error = -EIO;
	return d;
}

/* A fresh text through the open file. */
static int read_status(int fd, char **text)
{
	GString *all = g_string_new(NULL);
	char part[16384];
	ssize_t n;

	while ((n = pread(fd, part, sizeof part, (off_t)all->len)) > 0)
		g_string_append_len(all, part, n);
	*text = g_string_free(all, FALSE);
	return n < 0 ? -errno : 0;
}

/* 1: something happened; 0: time is up; or a negative errno.  timeout in ms, -1: none. */
static int wait_event(int fd, int timeout)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLPRI};
	int n;

	do
		n = poll(&p, 1, timeout);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static bool is_gone(int error)
{
	return error == -ENOENT || error == -ENXIO || error == -ENODEV;
}

/* --- wait NAME [EVENT] --------------------------------------------------------------------- */

static bool wait_for_number(const struct ident *id, struct watch *w, unsigned number)
{
	int error = 0;

	for (;;) {
		struct device *d;
		bool done;

		error = drain_events(w);
		d = error ? NULL : watch_info(w, &error);
		if (!d && is_gone(error)) /* removed: that ends the wait, too */
			return true;
		if (!d)
			return ioctl_failed("waitevent", id, error);
		done = d->events != number;
		if (done && opt.verbose)
			printf("%s\n", d->info);
		device_free(d);
		if (done)
			return true;
		error = wait_event(w->polled, -1);
		if (error < 0)
			return ioctl_failed("waitevent", id, error);
	}
}

/* --- wait --progress NAME ------------------------------------------------------------------------ */

/* On a terminal a bar, drawn in place; else a line for each whole percent. */
static void draw(const char *name, const struct progress *p, double fraction, int *last)
{
	int percent = (int)floor(fraction * 100), full = (int)floor(fraction * BAR_WIDTH);

	if (isatty(STDOUT_FILENO)) {
		printf("\r%s: %s [", name, p->what);
		for (int i = 0; i < BAR_WIDTH; i++)
			putchar(i < full ? '#' : '.');
		printf("] %5.1f %%\033[K", floor(fraction * 1000) / 10);
	} else if (percent != *last) {
		printf("%s: %s %d %%\n", name, p->what, percent);
	}
	*last = percent;
	fflush(stdout);
}

static bool wait_for_work(const struct ident *id, struct watch *w)
{
	guint64 first_left = 0;
	int last = -1, error;
	bool drawn = false;

	for (;;) {
		g_autofree char *status = NULL;
		struct progress p;

		error = read_status(w->polled, &status);
		if (error)
			break;
		progress_of_status(&p, status);
		if (!p.what && drawn) /* another table has taken its place */
			break;
		if (!p.what)
			return say("%s: nothing in its table is being merged, hydrated or synchronised", id->name);
		if (p.failed)
			return say("%s%s: the %s has failed", drawn && isatty(STDOUT_FILENO) ? "\n" : "", id->name, p.what);
		first_left = MAX(first_left, p.left);
		draw(id->name, &p, progress_fraction(&p, first_left), &last);
		drawn = true;
		if (!p.left)
			break;
		error = wait_event(w->polled, REFRESH_MS);
		if (error < 0)
			break;
	}
	if (drawn && isatty(STDOUT_FILENO))
		putchar('\n');
	return error >= 0 || (drawn && is_gone(error)) || ioctl_failed("waitevent", id, error);
}

bool cmd_wait(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	unsigned long number = 0;
	char *end = NULL;
	struct watch w = {-1, -1};
	bool ok;
	int error;

	if (!ident_need(named_by_option() ? NULL : *argv, &id))
		return false;
	if (!named_by_option())
		argc--, argv++;
	if (argc > 0) {
		errno = 0;
		number = strtoul(*argv, &end, 10);
		if (!g_ascii_isdigit(**argv) || *end || errno || number > UINT32_MAX)
			return say("Invalid event number '%s'.", *argv);
	}
	if (opt.progress && argc > 0)
		return say("--progress waits for the end of the work, not for event %s", *argv);
	error = id.name ? watch_open(&w, id.name, opt.progress ? "status" : "events") : -ENXIO;
	if (error)
		return ioctl_failed("waitevent", &id, error);
	ok = opt.progress ? wait_for_work(&id, &w) : wait_for_number(&id, &w, (unsigned)number);
	watch_close(&w);
	return ok;
}
