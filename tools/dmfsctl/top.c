/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * top: live I/O, queue and progress of all devices.
 *
 * The numbers come from a statistics region of our own in each device, which is deleted at the end.  On a terminal the
 * screen is drawn anew each interval until q or a signal; else each round is printed, --count of them (1 if not said).
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <unistd.h>

#include "dmfsctl.h"
#include "progress.h"
#include "stats.h"

#define PROGRAM "dmfsctl_top"

struct watched {
	char *name;
	int region; /* -1: its device takes no statistics */
	bool seen;  /* it was there in this round */
	bool fresh; /* no sample yet to compare with */
	guint64 counter[COUNTERS], delta[COUNTERS];
	guint64 first_left; /* of its work */
};

static GHashTable *watched;

static void free_watched(gpointer data)
{
	struct watched *w = data;

	g_free(w->name);
	g_free(w);
}

/* --- regions ------------------------------------------------------------------------------- */

static int make_region(const char *name)
{
	g_autofree char *reply = NULL;
	char *end;
	gint64 id;

	if (stats_message(name, &reply, "@stats_create - /1 1 precise_timestamps %s", PROGRAM))
		return -1;
	id = g_ascii_strtoll(reply, &end, 10);
	return end == reply || id < 0 || id > G_MAXINT ? -1 : (int)id;
}

static void delete_regions(void)
{
	GHashTableIter iter;
	gpointer data;

	g_hash_table_iter_init(&iter, watched);
	while (g_hash_table_iter_next(&iter, NULL, &data)) {
		struct watched *w = data;
		g_autofree char *reply = NULL;

		if (w->region >= 0)
			stats_message(w->name, &reply, "@stats_delete %d", w->region);
	}
}

static struct watched *watch(const char *name)
{
	struct watched *w = g_hash_table_lookup(watched, name);

	if (!w) {
		w = g_new0(struct watched, 1);
		w->name = g_strdup(name);
		w->region = make_region(name);
		w->fresh = true;
		g_hash_table_insert(watched, w->name, w);
	}
	w->seen = true;
	return w;
}

/* A region is as long as the device was when it was made; one that is gone is made again. */
static bool sample(struct watched *w)
{
	g_autofree char *reply = NULL;
	g_autoptr(GPtrArray) areas = NULL;
	int error = w->region < 0 ? -ENOENT : stats_message(w->name, &reply, "@stats_print %d", w->region);

	if (error) {
		w->region = make_region(w->name);
		w->fresh = true;
		return false;
	}
	areas = areas_parse(reply);
	if (!areas || !areas->len)
		return false;
	for (unsigned c = 0; c < COUNTERS; c++) {
		guint64 now = ((struct area *)areas->pdata[0])->counter[c];

		w->delta[c] = c == IN_FLIGHT || now < w->counter[c] ? now : now - w->counter[c];
		w->counter[c] = now;
	}
	error = w->fresh;
	w->fresh = false;
	return !error;
}

/* --- drawing ---------------------------------------------------------------------------------- */

static void append_size(GString *out, double bytes)
{
	g_autoptr(GString) text = g_string_new(NULL);

	size_print(text, (guint64)bytes, NULL);
	g_string_append_printf(out, " %9s", text->str);
}

static void append_rates(GString *out, const struct watched *w, double interval)
{
	double ops = (double)(w->delta[READS] + w->delta[WRITES]);

	g_string_append_printf(out, " %9.0f %9.0f", (double)w->delta[READS] / interval,
			       (double)w->delta[WRITES] / interval);
	append_size(out, (double)w->delta[READ_SECTORS] * 512 / interval);
	append_size(out, (double)w->delta[WRITE_SECTORS] * 512 / interval);
	g_string_append_printf(out, " %5" G_GUINT64_FORMAT " %5.0f %8.3f", w->delta[IN_FLIGHT],
			       MIN(100, (double)w->delta[IO_MS] / 1e7 / interval),
			       ops > 0 ? (double)(w->delta[READ_MS] + w->delta[WRITE_MS]) / 1e6 / ops : 0);
}

static void append_progress(GString *out, struct watched *w)
{
	g_autofree char *path = tree_path(ctl_root(), w->name, "status"), *status = NULL;
	struct progress p;

	if (tree_read(path, &status))
		return;
	progress_of_status(&p, status);
	if (!p.what)
		return;
	w->first_left = MAX(w->first_left, p.left);
	if (p.failed)
		g_string_append_printf(out, " %s failed", p.what);
	else
		g_string_append_printf(out, " %s %.1f %%", p.what, progress_fraction(&p, w->first_left) * 100);
}

static bool draw(double interval, bool terminal, unsigned rows)
{
	g_autoptr(GPtrArray) list = device_list(true);
	g_autoptr(GString) out = g_string_new(terminal ? "\033[H" : NULL);
	GHashTableIter iter;
	gpointer data;

	if (!list)
		return false;
	g_string_append_printf(out, "%-16s %-4s %9s %9s %9s %9s %5s %5s %8s %s%s\n", "Name", "Stat", "R/s", "W/s", "RSz/s",
			       "WSz/s", "Queue", "Util%", "Await/ms", "Progress", terminal ? "\033[K" : "");
	for (unsigned i = 0; i < list->len; i++) {
		struct device *d = list->pdata[i];
		struct watched *w = watch(d->name);

		if (terminal && i + 2 >= rows)
			break;
		g_string_append_printf(out, "%-16s %c%c%c%c", d->shown, d->live ? 'L' : '-', d->inactive ? 'I' : '-',
				       d->suspended ? 's' : '-', d->readonly ? 'r' : 'w');
		if (sample(w))
			append_rates(out, w, interval);
		else
			g_string_append_printf(out, " %9s %9s %9s %9s %5s %5s %8s", "-", "-", "-", "-", "-", "-", "-");
		append_progress(out, w);
		g_string_append(out, terminal ? "\033[K\n" : "\n");
	}
	g_string_append(out, terminal ? "\033[J" : "");
	fputs(out->str, stdout);
	fflush(stdout);
	g_hash_table_iter_init(&iter, watched);
	while (g_hash_table_iter_next(&iter, NULL, &data)) {
		struct watched *w = data;

		if (!w->seen) /* its device is gone, and the region with it */
			g_hash_table_iter_remove(&iter);
		w->seen = false;
	}
	return true;
}

/* --- the loop -------------------------------------------------------------------------------------- */

static struct termios saved;

static void raw_mode(bool on)
{
	struct termios t = saved;

	t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, on ? &t : &saved);
	fputs(on ? "\033[?1049h\033[?25l" : "\033[?25h\033[?1049l", stdout);
	fflush(stdout);
}

static unsigned terminal_rows(void)
{
	struct winsize size;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row ? 24 : size.ws_row;
}

enum happened { NEXT_ROUND, QUIT };

static enum happened wait_round(int timer, int signals, bool keys)
{
	struct pollfd fds[] = {{signals, POLLIN, 0}, {timer, POLLIN, 0}, {keys ? STDIN_FILENO : -1, POLLIN, 0}};
	uint64_t expired;
	char key;

	for (;;) {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			return QUIT;
		if (fds[0].revents)
			return QUIT;
		if (fds[2].revents && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q'))
			return QUIT;
		if (fds[1].revents)
			return read(timer, &expired, sizeof expired) == sizeof expired ? NEXT_ROUND : QUIT;
	}
}

static int every(double seconds)
{
	struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
	struct itimerspec spec = {t, t};
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

	if (timer >= 0 && timerfd_settime(timer, 0, &spec, NULL)) {
		close(timer);
		return -1;
	}
	return timer;
}

/* SIGINT, SIGTERM and SIGHUP end it cleanly: regions left behind would go on counting. */
static int watch_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

bool cmd_top(int argc, char **argv)
{
	bool terminal = isatty(STDOUT_FILENO) && isatty(STDIN_FILENO), ok = true;
	double interval = opt.interval > 0 ? opt.interval : 1;
	int64_t count = opt.count >= 0 ? opt.count : terminal ? 0 : 1;
	int timer, signals;

	(void)argc;
	(void)argv;
	if (!ctl_root())
		return false;
	signals = watch_signals();
	timer = every(interval);
	if (signals < 0 || timer < 0)
		return say("timerfd: %s", g_strerror(errno));
	watched = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, free_watched);
	if (terminal && !tcgetattr(STDIN_FILENO, &saved))
		raw_mode(true);
	/* The first round only begins the counting, but a person wants to see something at once. */
	if (terminal) {
		ok = draw(interval, true, terminal_rows());
	} else {
		g_autoptr(GPtrArray) list = device_list(true);

		ok = list;
		for (unsigned i = 0; list && i < list->len; i++)
			sample(watch(((struct device *)list->pdata[i])->name));
	}
	for (int64_t i = 0; ok && (!count || i < count) && wait_round(timer, signals, terminal) == NEXT_ROUND; i++)
		ok = draw(interval, terminal, terminal_rows());
	delete_regions();
	if (terminal)
		raw_mode(false);
	close(timer);
	close(signals);
	return ok;
}
