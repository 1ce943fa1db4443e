/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-open: opens whole disk images as devices of a mounted dmfs, as an ordinary user. */
#include <errno.h>
#include <glib/gstdio.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "open.h"

#define STATUS_PARTLY 6 /* open, but not all that was found */

/* --- opening ------------------------------------------------------------------------------------------ */

/* Takes mount; the exit status. */
static int open_images(const struct options *o, char *mount, char **images, GError **err)
{
	struct plan *p = plan_new(o, mount);
	int r = plan_open(p, images, err), status;

	if (!r && o->fs_dir)
		r = fs_mount_all(p, err);
	if (r)
		close_run(mount, p->run, NULL);
	else if (o->dry_run)
		show_script(p);
	else if (o->json)
		show_json(p);
	else
		show_tree(p);
	status = r ? exit_status(r) : p->failed ? STATUS_PARTLY : 0;
	fflush(stdout);
	if (o->dry_run)
		close_run(mount, p->run, NULL);
	run_dir_done();
	plan_free(p);
	return status;
}

/* --- --dry-run: in a mount of its own -------------------------------------------------------------------- */

static volatile sig_atomic_t child;

static void pass_on(int sig)
{
	if (child > 0)
		kill((pid_t)child, sig);
}

static void unmount(const char *dir)
{
	char *program = run_find(geteuid() ? "fusermount3" : "umount");
	char *user[] = {program, (char *)"-u", (char *)"-z", (char *)dir, NULL}, *root[] = {program, (char *)"-l", (char *)dir, NULL};

	if (program)
		run(geteuid() ? user : root, true, NULL, NULL);
	g_free(program);
	g_rmdir(dir);
}

/* The parent only waits, so that whatever ends the child, the mount goes. */
static int dry_run(const struct options *o, char **images, GError **err)
{
	g_autofree char *dir = g_dir_make_tmp("dmfs-open-mount-XXXXXX", err), *program = run_find("dmfs"), *why = NULL;
	char *argv[] = {program, dir, NULL};
	const struct sigaction action = {.sa_handler = pass_on};
	int status = 1;

	if (!dir)
		return 1;
	if (!program || run(argv, true, NULL, &why)) {
		g_rmdir(dir);
		return exit_status(fail(err, ENODEV, "no dmfs can be mounted: %s", why ? why : "the program is not there"));
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	child = fork();
	if (!child) {
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		signal(SIGHUP, SIG_DFL);
		status = open_images(o, g_strdup(dir), images, err);
		if (*err)
			say_error("dmfs-open", (*err)->message);
		fflush(stdout);
		_exit(status);
	}
	while (child > 0 && waitpid((pid_t)child, &status, 0) < 0 && errno == EINTR)
		;
	unmount(dir);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* --- the command line --------------------------------------------------------------------------------------- */

static int parse(int *argc, char ***argv, struct options *o, GError **err)
{
	gboolean write = FALSE, json = FALSE, dry = FALSE, closing = FALSE, no_ask = FALSE;
	const GOptionEntry entries[] = {
		{"at", 'm', 0, G_OPTION_ARG_FILENAME, &o->mount, "The dmfs ($DMFS_MOUNT, or the only one)", "MOUNTPOINT"},
		{"write", 'w', 0, G_OPTION_ARG_NONE, &write, "Open it for writing, too", NULL},
		{"key-file", 'd', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->key_files,
		 "Try this passphrase for encrypted volumes (several times)", "FILE"},
		{"no-passphrase", 0, 0, G_OPTION_ARG_NONE, &no_ask, "Ask for none: what no key file opens stays locked", NULL},
		{"root-hash", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->root_hashes, "What to trust of verity (several times)", "[UUID=]HEX"},
		{"integrity", 0, 0, G_OPTION_ARG_STRING, &o->integrity, "The checksum of integrity devices (crc32c)", "HASH"},
		{"mount", 0, 0, G_OPTION_ARG_FILENAME, &o->fs_dir, "Mount the file systems in it", "DIR"},
		{"json", 'J', 0, G_OPTION_ARG_NONE, &json, "Print JSON", NULL},
		{"dry-run", 'n', 0, G_OPTION_ARG_NONE, &dry, "Print the tables, as a script, and open nothing", NULL},
		{"close", 0, 0, G_OPTION_ARG_NONE, &closing, "Take down what was opened with IMAGE, or all", NULL},
		{0},
	};
	g_autoptr(GOptionContext) context = g_option_context_new("IMAGE... | --close [IMAGE...]");
	bool ok;

	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Opens disk images and all that is in them as devices of a mounted dmfs.");
	ok = g_option_context_parse(context, argc, argv, err);
	o->write = write;
	o->json = json;
	o->dry_run = dry;
	o->close = closing;
	o->no_ask = no_ask;
	if (!ok)
		return -EINVAL;
	if (closing && (write || o->key_files || no_ask || o->root_hashes || o->integrity || o->fs_dir || json || dry))
		return fail(err, EINVAL, "--close takes no other option than -m");
	if (!closing && *argc < 2)
		return fail(err, EINVAL, "an image is needed (--help for all)");
	if (dry && (o->fs_dir || json || o->mount))
		return fail(err, EINVAL, "--dry-run is without -m, --mount and --json: it uses a dmfs of its own");
	if (o->integrity && strpbrk(o->integrity, " \\\n"))
		return fail(err, EINVAL, "'%s' is no name of a checksum", o->integrity);
	return 0;
}

static int go(const struct options *o, char **images, GError **err)
{
	char *mount;
	int r;

	if (o->dry_run)
		return dry_run(o, images, err);
	mount = client_mount(o->mount, err);
	if (!mount)
		return exit_status(-ENODEV);
	if (!o->close)
		return open_images(o, mount, images, err);
	r = close_all(mount, images, err);
	g_free(mount);
	return exit_status(r);
}

int main(int argc, char **argv)
{
	struct options o = {0};
	g_autoptr(GError) err = NULL;
	int status;

	setlocale(LC_ALL, "");
	status = parse(&argc, &argv, &o, &err) ? 1 : go(&o, argv + 1, &err);
	if (err)
		say_error("dmfs-open", err->message);
	g_free(o.mount);
	g_strfreev(o.key_files);
	g_strfreev(o.root_hashes);
	g_free(o.fs_dir);
	g_free(o.integrity);
	return status;
}
