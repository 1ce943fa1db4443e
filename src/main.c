/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs [-f] [-o OPTIONS] [--create CONCISE] [STATE] MOUNTPOINT
 *
 * Start-up: the parent waits until the mount is there (or has failed, which
 * the child has told by then) and returns its exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <glib.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/concise.h"
#include "core/devices.h"
#include "core/events.h"
#include "core/state.h"
#include "core/type.h"
#include "fs/fs.h"
#include "fs/loop.h"
#include "io/nbd.h"
#include "version.h"

#include "targets/list.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static struct {
	int foreground, help, show_version;
	char *state, *mountpoint, *create;
} opts;

#define MAX_THREADS 128u
#define MAX_NBD_TIMEOUT 1000000u /* seconds */

#define FS_OPT(t, member, value) {t, offsetof(struct dmfs_options, member), value}

static const struct fuse_opt fs_opts[] = {
	FS_OPT("writeback", writeback, 1),
	FUSE_OPT_KEY("threads=", 't'), /* not "%u": that takes "4x" for 4 and -1 for 4294967295 */
	FUSE_OPT_KEY("nbd_timeout=", 'n'),
	FS_OPT("allow_other", allow_other, 1),
	FUSE_OPT_KEY("--create ", 'c'),
	FUSE_OPT_KEY("--create=", 'c'),
	FUSE_OPT_KEY("-f", 'f'),
	FUSE_OPT_KEY("-h", 'h'),
	FUSE_OPT_KEY("--help", 'h'),
	FUSE_OPT_KEY("-V", 'V'),
	FUSE_OPT_KEY("--version", 'V'),
	FUSE_OPT_END,
};

static void usage(FILE *to)
{
	fputs("usage: dmfs [-f] [-o OPTIONS] [--create CONCISE] [STATE] MOUNTPOINT\n"
	      "\n"
	      "  -f              stay in the foreground\n"
	      "  -o OPTIONS      mount options, and of dmfs:\n"
	      "     allow_other  other users may come in; permissions are checked\n"
	      "     writeback    the kernel collects buffered writes (see dmfs(1))\n"
	      "     threads=N    threads that wait for requests\n"
	      "     nbd_timeout=N  seconds after which a request to an NBD server fails (60)\n"
	      "  --create TEXT   create these devices, in dm-init's format (NAME,UUID,MINOR,ro|rw,TABLE...;...)\n"
	      "  STATE           a file that keeps devices and tables until the next time\n"
	      "  -h, --help\n"
	      "  -V, --version\n",
	      to);
}

/* The number of NAME=NUMBER. */
static int take_number(const char *arg, unsigned most, unsigned *out)
{
	const char *number = strchr(arg, '=') + 1;

	if (dm_parse_uint(number, out) && *out >= 1 && *out <= most)
		return 0;
	fprintf(stderr, "dmfs: -o %s: a number from 1 to %u\n", arg, most);
	return -1;
}

static int take_arg(void *data, const char *arg, int key, struct fuse_args *out)
{
	switch (key) {
	case 'f':
		opts.foreground = 1;
		return 0;
	case 'c':
		g_free(opts.create);
		opts.create = g_strdup(arg + strlen("--create") + (arg[strlen("--create")] == '='));
		return 0;
	case 'h':
		opts.help = 1;
		return 0;
	case 'V':
		opts.show_version = 1;
		return 0;
	case 't':
		return take_number(arg, MAX_THREADS, &dmfs_options.threads);
	case 'n':
		return take_number(arg, MAX_NBD_TIMEOUT, &dmfs_options.nbd_timeout);
	case FUSE_OPT_KEY_NONOPT:
		if (opts.state && opts.mountpoint) {
			fprintf(stderr, "dmfs: '%s' is one argument too many\n", arg);
			return -1;
		}
		if (opts.mountpoint) {
			opts.state = opts.mountpoint;
			opts.mountpoint = NULL;
		}
		opts.mountpoint = g_strdup(arg);
		if (opts.state && !strcmp(opts.state, "none")) /* in fstab something must stand there */
			g_clear_pointer(&opts.state, g_free);
		return 0;
	case FUSE_OPT_KEY_OPT:
		if (arg[0] == '-' && strncmp(arg, "-o", 2)) {
			fprintf(stderr, "dmfs: unknown option '%s'; dmfs -h lists them\n", arg);
			return -1;
		}
		return 1;
	default:
		return 1;
	}
}

/* --- the mountpoint ------------------------------------------------------------------- */

static int unmount_dead(const char *path)
{
	g_autofree char *quoted = NULL, *command = NULL;

	if (!umount2(path, MNT_DETACH))
		return 0;
	quoted = g_shell_quote(path);
	command = g_strdup_printf("fusermount3 -u -z -- %s", quoted);
	return system(command) ? -1 : 0;
}

/* Makes the mountpoint absolute; one that a killed daemon has left is freed first. */
static int prepare_mountpoint(void)
{
	struct stat st;
	char *real;

	if (stat(opts.mountpoint, &st) < 0 && errno == ENOTCONN) {
		g_autofree char *absolute = g_canonicalize_filename(opts.mountpoint, NULL);

		if (unmount_dead(absolute)) {
			fprintf(stderr, "dmfs: %s is a dead mount and cannot be taken over\n", opts.mountpoint);
			return -1;
		}
	}
	if (stat(opts.mountpoint, &st) < 0) {
		fprintf(stderr, "dmfs: %s: %s\n", opts.mountpoint, g_strerror(errno));
		return -1;
	}
	if (!S_ISDIR(st.st_mode)) {
		fprintf(stderr, "dmfs: %s is not a directory\n", opts.mountpoint);
		return -1;
	}
	real = realpath(opts.mountpoint, NULL);
	if (!real) {
		fprintf(stderr, "dmfs: %s: %s\n", opts.mountpoint, g_strerror(errno));
		return -1;
	}
	g_free(opts.mountpoint);
	opts.mountpoint = real;
	return 0;
}

/* --- going into the background -------------------------------------------------------- */

/* In the child: the descriptor that tells the parent how it went; in the parent: never returns. */
static int go_background(void)
{
	int fds[2], status = 1;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		perror("dmfs: fork");
		exit(1);
	}
	if (!pid) {
		close(fds[0]);
		setsid();
		return fds[1];
	}
	close(fds[1]);
	if (read(fds[0], &status, sizeof status) != sizeof status)
		waitpid(pid, NULL, 0);
	_exit(status);
}

static void report_ready(int fd)
{
	int ok = 0, null;

	if (fd < 0)
		return;
	if (write(fd, &ok, sizeof ok) != sizeof ok)
		return;
	close(fd);
	null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		if (null > 2)
			close(null);
	}
	if (chdir("/") < 0)
		dm_log_warn("chdir: %s", g_strerror(errno));
}

/* --- running ----------------------------------------------------------------------------- */

static sigset_t end_signals;

static void *wait_for_signal(void *unused)
{
	int sig;

	sigwait(&end_signals, &sig);
	dmfs_loop_stop();
	return unused;
}

static void prepare_process(void)
{
	struct rlimit files;
	pthread_t thread;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); /* only with the capability */
	umask(0);
	sigemptyset(&end_signals);
	sigaddset(&end_signals, SIGTERM);
	sigaddset(&end_signals, SIGINT);
	sigaddset(&end_signals, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &end_signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a write beyond RLIMIT_FSIZE fails, as one on a full disk does */
	if (!pthread_create(&thread, NULL, wait_for_signal, NULL))
		pthread_detach(thread);
}

static unsigned default_threads(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return (unsigned)CLAMP(cpus * 2, 4, 32);
}

static char *escape_option(const char *s)
{
	GString *out = g_string_new(NULL);

	for (; *s; s++) {
		if (*s == ',' || *s == '\\')
			g_string_append_c(out, '\\');
		g_string_append_c(out, *s);
	}
	return g_string_free(out, FALSE);
}

static struct fuse_session *new_session(struct fuse_args *args)
{
	/* A comma would end the option. */
	g_autofree char *source = escape_option(opts.state ? opts.state : "dmfs");
	g_autofree char *fixed = g_strdup_printf("-osubtype=dmfs,fsname=%s,default_permissions%s",
						 source,
						 dmfs_options.allow_other ? ",allow_other" : "");

	fuse_opt_insert_arg(args, 1, fixed);
	return fuse_session_new(args, &dmfs_ops, sizeof dmfs_ops, NULL);
}

/*
 * Tells the engine our st_dev.  It is read from mountinfo: a stat(2) would keep
 * the mount busy for a moment, and wait for workers that are not there yet.
 */
static void tell_mountpoint(void)
{
	g_autofree char *text = NULL;
	g_auto(GStrv) lines = NULL;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
		return;
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++) {
		/* ID PARENT MAJOR:MINOR ROOT MOUNTPOINT ..., blanks in names as \040 */
		g_auto(GStrv) words = g_strsplit(lines[i], " ", 6);
		g_autofree char *path = g_strv_length(words) == 6 ? g_strcompress(words[4]) : NULL;
		unsigned major_nr, minor_nr;

		if (path && !strcmp(path, opts.mountpoint) && sscanf(words[2], "%u:%u", &major_nr, &minor_nr) == 2)
			dm_set_mountpoint(opts.mountpoint, makedev(major_nr, minor_nr), dmfs_find_inode);
	}
}

/* Brings the devices: those of the state, then those of the command line. */
static int make_devices(void)
{
	g_autoptr(GError) err = NULL;
	struct dm_opener self = dm_opener_self();
	int error = opts.state ? dm_state_open(opts.state, &err) : 0;

	if (!error && opts.create)
		error = dm_concise_create(opts.create, &self, &err);
	if (error)
		fprintf(stderr, "dmfs: %s\n", err->message);
	return error;
}

static int serve(struct fuse_args *args)
{
	int report, error;

	if (opts.state) { /* the child changes its directory */
		char *absolute = g_canonicalize_filename(opts.state, NULL);

		g_free(opts.state);
		opts.state = absolute;
	}
	report = opts.foreground ? -1 : go_background();

	dmfs_options.uid = getuid();
	dmfs_options.gid = getgid();
	dm_nbd_timeout_ms = dmfs_options.nbd_timeout * 1000;
	if (!dmfs_options.threads)
		dmfs_options.threads = default_threads();
	prepare_process();
	dm_register_targets(dm_target_list);
	dmfs_nodes_init();
	/* Names below the mountpoint in tables are ours before it is mounted, too. */
	dm_set_mountpoint(opts.mountpoint, (dev_t)-1, NULL);
	if (make_devices())
		return 1;
	dmfs_session = new_session(args);
	if (!dmfs_session)
		return 1;
	if (fuse_session_mount(dmfs_session, opts.mountpoint)) {
		fuse_session_destroy(dmfs_session);
		return 1;
	}
	tell_mountpoint();
	error = dmfs_loop_start(dmfs_session, dmfs_options.threads);
	if (error) {
		fprintf(stderr, "dmfs: cannot serve requests: %s\n", g_strerror(-error));
		fuse_session_unmount(dmfs_session);
		fuse_session_destroy(dmfs_session);
		return 1;
	}
	report_ready(report);
	dmfs_loop_wait();
	/* Unmounting first lets the kernel write back what it has cached, while we still serve. */
	fuse_session_unmount(dmfs_session);
	dm_end_waiting();
	dmfs_end_invalidations();
	dmfs_loop_end();
	dmfs_loop_settle();
	dm_end_removals();
	dm_state_close(); /* what follows is no change the user made */
	dm_remove_all();
	dmfs_nodes_end();
	error = dm_store_flush_all();
	dm_events_settle(); /* they use the session */
	fuse_session_destroy(dmfs_session);
	if (error)
		fprintf(stderr, "dmfs: flushing: %s\n", g_strerror(-error));
	return error ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
	int status = 2;

	dmfs_options.nbd_timeout = 60;
	if (fuse_opt_parse(&args, &dmfs_options, fs_opts, take_arg) < 0)
		return 2;
	if (opts.help || opts.show_version) {
		if (opts.help)
			usage(stdout);
		else
			puts("dmfs " DMFS_VERSION);
		status = 0;
	} else if (!opts.mountpoint) {
		usage(stderr);
	} else {
		status = prepare_mountpoint() ? 1 : serve(&args);
	}
	fuse_opt_free_args(&args);
	g_free(opts.mountpoint);
	g_free(opts.state);
	g_free(opts.create);
	return status;
}
