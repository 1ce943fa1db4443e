/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs [-f] [-o OPTIONS] [--create CONCISE] [STATE] MOUNTPOINT
 *
 * Start-up: the parent waits until the mount is there (or has failed, which the child has told by then) and returns its
 * exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <glib.h>
#include <limits.h>
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
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <dmfs/options.h>

#include "core/concise.h"
#include "core/devices.h"
#include "core/events.h"
#include "core/state.h"
#include "core/type.h"
#include "fs/fs.h"
#include "fs/mount.h"
#include "fs/serve.h"
#include "io/nbd.h"
#include "version.h"

#include "targets/list.h"
#include "targets/verity/mount.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static struct {
	int foreground, help, show_version;
	char *state, *mountpoint, *create, *images;
} opts;

#define MAX_THREADS 128u
#define MAX_NBD_TIMEOUT 1000000u /* seconds */
#define MAX_LOG_TIMEOUT 1000000u /* seconds */
#define LOG_TIMEOUT 15u		 /* the kernel's */
#define MAX_PATH_CHECK 1000000u /* seconds */
#define MAX_WAITING (1u << 24)   /* MiB */

#define FS_OPT(t, member, value) {t, offsetof(struct dmfs_options, member), value}

static const struct fuse_opt fs_opts[] = {
	FS_OPT("writeback", writeback, 1),
	FUSE_OPT_KEY("atime", FUSE_OPT_KEY_DISCARD), /* what is so anyway; newer libfuse does not know the word */
	FUSE_OPT_KEY("threads=", 't'), /* not "%u": that takes "4x" for 4 and -1 for 4294967295 */
	FUSE_OPT_KEY("nbd_timeout=", 'n'),
	FUSE_OPT_KEY("path-check=", 'p'),
	FUSE_OPT_KEY("log_server=", 'l'),
	FUSE_OPT_KEY("log_timeout=", 'T'),
	FUSE_OPT_KEY("max_waiting=", 'w'),
	FUSE_OPT_KEY("images=", 'i'),
	FUSE_OPT_KEY("max_read=", 'r'),
	FUSE_OPT_KEY("debug", 'd'),
	FUSE_OPT_KEY("blkdev", 'b'),
	FUSE_OPT_KEY("blksize=", 'b'),
	FUSE_OPT_KEY("missing-snapshots=", 'm'),
	FUSE_OPT_KEY("verity-keys=", 'k'),
	FUSE_OPT_KEY("on-corruption=", 'x'),
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
	      "     images=DIR   show the images alone in this directory, too\n"
	      "     max_waiting=N  MiB that the data of waiting writes may take (a quarter of the memory)\n"
	      "     nbd_timeout=N  seconds after which a request to an NBD server fails (60)\n"
	      "     log_server=SOCKET  who has the userspace dirty logs of mirrors (dmfs-logd)\n"
	      "     log_timeout=N  seconds after which a request to it is sent again (15)\n"
	      "     path-check=N   multipath looks every N seconds whether a failed path answers again\n"
	      "     missing-snapshots=invalidate|wait  what happens when an origin comes back without them (invalidate)\n"
	      "     verity-keys=FILE.pem  whose signatures of verity's root hashes count\n"
	      "     on-corruption=COMMAND  run when verity finds a corrupted block\n"
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

/* The value of NAME=VALUE, for who says what is wrong with it. */
static int take_value(const char *arg, int (*take)(const char *, GError **))
{
	g_autoptr(GError) err = NULL;

	if (!take(strchr(arg, '=') + 1, &err))
		return 0;
	fprintf(stderr, "dmfs: -o %s\n", err->message);
	return -1;
}

/* The daemon changes its directory. */
static int take_log_server(const char *path)
{
	struct sockaddr_un un;

	g_free(dm_options.log_server);
	dm_options.log_server = *path ? g_canonicalize_filename(path, NULL) : NULL;
	if (dm_options.log_server && strlen(dm_options.log_server) < sizeof un.sun_path)
		return 0;
	fprintf(stderr, "dmfs: -o log_server=%s: a socket's path, of at most %zu bytes\n", path, sizeof un.sun_path - 1);
	return -1;
}

static int take_log_timeout(const char *arg)
{
	const char *number = strchr(arg, '=') + 1;
	char *end;
	double seconds = g_ascii_strtod(number, &end);

	if (end == number || *end || !(seconds >= 0.1 && seconds <= MAX_LOG_TIMEOUT)) {
		fprintf(stderr, "dmfs: -o %s: a number from 0.1 to %u\n", arg, MAX_LOG_TIMEOUT);
		return -1;
	}
	dm_options.log_timeout_ms = (unsigned)(seconds * 1000);
	return 0;
}

static int take_arg(void *data, const char *arg, int key, struct fuse_args *out)
{
	unsigned mib;

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
	case 'p':
		return take_number(arg, MAX_PATH_CHECK, &dm_options.path_check_seconds);
	case 'l':
		return take_log_server(strchr(arg, '=') + 1);
	case 'T':
		return take_log_timeout(arg);
	case 'w':
		if (take_number(arg, MAX_WAITING, &mib))
			return -1;
		dmfs_options.max_waiting = (size_t)mib << 20;
		return 0;
	case 'm':
		arg = strchr(arg, '=') + 1;
		dm_options.wait_for_missing = !strcmp(arg, "wait");
		if (dm_options.wait_for_missing || !strcmp(arg, "invalidate"))
			return 0;
		fprintf(stderr, "dmfs: -o missing-snapshots=%s: invalidate or wait\n", arg);
		return -1;
	case 'r':
		/* The kernel takes at least a page, and 0 for that: leaving it out is no limit. */
		if (!strcmp(arg, "max_read=0"))
			return 0;
		if (take_number(arg, UINT_MAX, &dmfs_options.max_read))
			return -1;
		return 1;
	case 'i':
		g_free(opts.images);
		opts.images = g_strdup(arg + strlen("images="));
		return 0;
	case 'b':
		fprintf(stderr, "dmfs: -o %s: only for file systems that are on a block device\n", arg);
		return -1;
	case 'd':
		opts.foreground = 1; /* where else would it be printed to */
		return 1;
	case 'k':
		return take_value(arg, verity_set_keys);
	case 'x':
		return take_value(arg, verity_set_on_corruption);
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
	sigwait(&end_signals, &sig);
	dmfs_end_in_a_hurry();
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

/* --- mounting --------------------------------------------------------------------------------- */

/* Neither mount point is below the other, which would hide it. */
static bool are_apart(const char *a, const char *b)
{
	g_autofree char *below_a = g_strconcat(a, "/", NULL), *below_b = g_strconcat(b, "/", NULL);

	if (!g_str_has_prefix(below_a, below_b) && !g_str_has_prefix(below_b, below_a))
		return true;
	fprintf(stderr, "dmfs: -o images=%s: not %s itself, nor above or below it\n", b, a);
	return false;
}

static int prepare_mounts(struct fuse_args *args)
{
	const char *source = opts.state ? opts.state : "dmfs";

	if (dmfs_mount_prepare(DMFS_TREE, opts.mountpoint) || dmfs_mount_options(DMFS_TREE, args, source))
		return -1;
	if (!opts.images)
		return 0;
	if (!dmfs_mounts[DMFS_TREE].path) {
		fprintf(stderr, "dmfs: -o images: not for a mount that is given as a descriptor\n");
		return -1;
	}
	if (dmfs_mount_prepare(DMFS_IMAGES, opts.images) ||
	    !are_apart(dmfs_mounts[DMFS_TREE].path, dmfs_mounts[DMFS_IMAGES].path))
		return -1;
	return dmfs_mount_options(DMFS_IMAGES, args, source);
}

static int serve(struct fuse_args *args)
{
	int report;

	if (opts.state) { /* the child changes its directory */
		char *absolute = g_canonicalize_filename(opts.state, NULL);

		g_free(opts.state);
		opts.state = absolute;
	}
	/* What cannot be is refused before anything is opened or mounted. */
	if (prepare_mounts(args))
		return 1;
	report = opts.foreground ? -1 : go_background();

	dmfs_options.uid = getuid();
	dmfs_options.gid = getgid();
	dm_nbd_timeout_ms = dmfs_options.nbd_timeout * 1000;
	if (!dmfs_options.max_waiting)
		dmfs_options.max_waiting = (size_t)sysconf(_SC_PHYS_PAGES) / 4 * (size_t)sysconf(_SC_PAGESIZE);
	if (!dmfs_options.threads)
		dmfs_options.threads = default_threads();
	prepare_process();
	dm_register_targets(dm_target_list);
	dmfs_nodes_init();
	/* Names below the mountpoint in tables are ours before it is mounted, too. */
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		if (dmfs_mounts[nr].path)
			dm_set_mountpoint(nr, dmfs_mounts[nr].path, (dev_t)-1, NULL);
	if (make_devices() || dmfs_serve_begin())
		return 1;
	report_ready(report);
	return dmfs_serve();
}

int main(int argc, char **argv)
{
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
	int status = 2;

	dmfs_options.nbd_timeout = 60;
	dm_options.log_timeout_ms = LOG_TIMEOUT * 1000;
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
		status = serve(&args);
	}
	fuse_opt_free_args(&args);
	g_free(opts.mountpoint);
	g_free(opts.state);
	g_free(opts.create);
	g_free(opts.images);
	g_free(dm_options.log_server);
	return status;
}
