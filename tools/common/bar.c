/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How far a long work is (bar.h). */
#include <glib.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "bar.h"

#define SHOW_US 200000

static volatile sig_atomic_t interrupted;
static struct sigaction old_int, old_term;
static const char *work;
static gint64 begun, shown;
static uint64_t first; /* what was done already when it was shown first */
static bool line;      /* is on the terminal, unfinished */

static void interrupt(int signal)
{
	interrupted = 1;
}

void bar_begin(const char *what)
{
	struct sigaction action = {.sa_handler = interrupt};

	work = what;
	interrupted = 0;
	begun = shown = 0;
	sigaction(SIGINT, &action, &old_int);
	sigaction(SIGTERM, &action, &old_term);
}

bool bar_interrupted(void)
{
	return interrupted;
}

void bar_show(uint64_t done, uint64_t all)
{
	gint64 now = g_get_monotonic_time();
	double rate;

	if (!begun) {
		begun = now;
		first = done;
	}
	if (!isatty(STDERR_FILENO) || (now - shown < SHOW_US && done < all))
		return;
	shown = now;
	rate = (double)(done - first) / 2048 / ((double)MAX(now - begun, 1) / 1e6);
	line = done < all;
	fprintf(stderr, "\r%s: %3u %%  %" PRIu64 " of %" PRIu64 " MiB, %.0f MiB/s \033[K%s", work,
		all ? (unsigned)((double)done / (double)all * 100) : 100, done / 2048, all / 2048, rate,
		line ? "" : "\n");
}

void bar_end(void)
{
	if (line)
		fputc('\n', stderr);
	line = false;
	sigaction(SIGINT, &old_int, NULL);
	sigaction(SIGTERM, &old_term, NULL);
}
