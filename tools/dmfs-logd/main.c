/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-logd [-d] [--grace SECONDS] SOCKET
 *
 * The server of userspace dirty logs (dm-log.rst), for mirrors of several dmfs daemons on one store (dmfs -o
 * log_server).
 *
 * SOCKET is removed at the end if no log is in use by then.  Where it is there already, and nobody listens, a server
 * has ended without its clients knowing: then there is a time of grace for them (state.h).  SOCKET.lock keeps a second
 * server out.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glib.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include <dmfs/target.h>

#include "serve.h"
#include "version.h"

#define GRACE_SECONDS 4u /* a client that has had no answer for 2 waits; the rest is for what it has under way */
#define MAX_GRACE 3600u
#define BACKLOG 128

static bool in_background;

void say(const char *fmt, ...)
{
	g_autofree char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	text = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	if (in_background)
		syslog(LOG_WARNING, "%s", text);
	else
		fprintf(stderr, "dmfs-logd: %s\n", text);
}

static void usage(FILE *to)
{
	fputs("usage: dmfs-logd [-d] [--grace SECONDS] SOCKET\n"
	      "\n"
	      "Serves the userspace dirty logs of mirrors: dmfs -o log_server=SOCKET.\n"
	      "\n"
	      "  -d, --daemon          go into the background once SOCKET is there, and write to syslog\n"
	      "  -g, --grace SECONDS   after a crash, how long clients have to come back (4; fractions are taken)\n"
	      "  -h, --help\n"
	      "  -V, --version\n",
	      to);
}

static bool parse_grace(const char *text, unsigned *ms)
{
	char *end;
	double seconds = g_ascii_strtod(text, &end);

	if (end == text || *end || !(seconds >= 0 && seconds <= MAX_GRACE)) {
		say("--grace %s: a number of seconds up to %u", text, MAX_GRACE);
		return false;
	}
	*ms = (unsigned)(seconds * 1000);
	return true;
}

/* Held until the end.  The file stays: who removed it would let two in. */
static bool lock_out_others(const char *path)
{
	g_autofree char *name = g_strconcat(path, ".lock", NULL);
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0) {
		say("%s: %s", name, g_strerror(errno));
		return false;
	}
	if (!flock(fd, LOCK_EX | LOCK_NB))
		return true;
	say("%s: another dmfs-logd serves it", path);
	close(fd);
	return false;
}

/* The lock is ours, so a socket that is there is one left behind. */
static int listen_at(const char *path, bool *left_behind)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	struct stat st;
	mode_t mask;
	int fd, error;

	if (strlen(path) >= sizeof at.sun_path) {
		say("%s: a socket's path has at most %zu bytes", path, sizeof at.sun_path - 1);
		return -1;
	}
	strcpy(at.sun_path, path);
	*left_behind = !lstat(path, &st);
	if (*left_behind && !S_ISSOCK(st.st_mode)) {
		say("%s: it is there and no socket", path);
		return -1;
	}
	if (*left_behind)
		unlink(path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	mask = umask(0177);
	error = fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, BACKLOG);
	umask(mask);
	if (!error)
		return fd;
	say("%s: %s", path, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static int stop_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

static int run(const char *path, bool background, struct serve_options *options)
{
	g_autofree char *absolute = g_canonicalize_filename(path, NULL);
	int listener, stop = stop_signals();

	if (stop < 0 || !lock_out_others(absolute))
		return 1;
	listener = listen_at(absolute, &options->after_crash);
	if (listener < 0)
		return 1;
	if (background && daemon(0, 0)) {
		say("daemon: %s", g_strerror(errno));
		return 1;
	}
	in_background = background;
	if (!serve(listener, stop, options))
		unlink(absolute);
	close(listener);
	close(stop);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"daemon", no_argument, NULL, 'd'}, {"grace", required_argument, NULL, 'g'},
					      {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {0}};
	struct serve_options options = {.grace_ms = GRACE_SECONDS * 1000};
	bool background = false;
	int o;

	while ((o = getopt_long(argc, argv, "dg:hV", longs, NULL)) != -1) {
		switch (o) {
		case 'd':
			background = true;
			break;
		case 'g':
			if (!parse_grace(optarg, &options.grace_ms))
				return 2;
			break;
		case 'h':
			usage(stdout);
			return 0;
		case 'V':
			puts("dmfs-logd " DMFS_VERSION);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (argc - optind != 1) {
		usage(stderr);
		return 2;
	}
	return run(argv[optind], background, &options);
}
