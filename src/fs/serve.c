/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The daemon's life (serve.h).
 *
 * The tree's end is its own.  Images alone may be unmounted, and the tree goes on.  If the tree goes, nobody can open
 * an image any more; but those that are in use through the other mount, below a mounted file system perhaps, are served
 * until they are closed.
 *
 * The end waits for requests that are under way, and for everything to be flushed.  A store may hang, though: a file of
 * a server that is away.  The mount is gone by then, other devices are flushed or will be by the kernel, and whoever
 * waits for the store's answer waits in vain.  So after PATIENCE_MS without a sign of it, after HURRY_MS if it was told
 * again to end, the daemon gives up: it fails what the kernel waits for, lets go of the state and exits.  (Threads that
 * the kernel does not let go of may keep its corpse for as long as the store hangs; they hold nothing that a next
 * daemon needs.)
 */
#include <glib.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/events.h"
#include "core/state.h"
#include "fs.h"
#include "io/fs_share.h"
#include "mount.h"
#include "node.h"
#include "serve.h"

#include <dmfs/work.h>

#define PATIENCE_MS 10000u
#define HURRY_MS 2000u

static atomic_bool hurry, state_closed;

static void close_state(void)
{
	if (!atomic_exchange(&state_closed, true))
		dm_state_close();
}

/* With the last of them the kernel fails all requests that have no answer. */
static void close_connections(void)
{
	g_autoptr(GDir) fds = g_dir_open("/proc/self/fd", 0, NULL);
	const char *name;

	while (fds && (name = g_dir_read_name(fds))) {
		g_autofree char *path = g_build_filename("/proc/self/fd", name, NULL);
		g_autofree char *target = g_file_read_link(path, NULL);

		if (target && !strcmp(target, "/dev/fuse"))
			close(atoi(name));
	}
}

static void give_up(const char *why)
{
	fprintf(stderr, "dmfs: %s: ending without waiting for it\n", why);
	close_connections();
	close_state();
	_exit(1);
}

static void *watch(void *unused)
{
	uint64_t began_ns = dm_now_ns();

	for (;;) {
		bool soon = atomic_load(&hurry);
		g_autofree char *path = fs_share_hanging(began_ns, soon ? HURRY_MS : PATIENCE_MS, !soon);

		if (path) {
			g_autofree char *why = g_strdup_printf("%s does not answer", path);

			give_up(why);
		}
		sleep(1);
	}
	return unused;
}

void dmfs_end_in_a_hurry(void)
{
	atomic_store(&hurry, true);
}

static bool settled(void)
{
	return dmfs_loop_settled(DMFS_TREE) && dmfs_loop_settled(DMFS_IMAGES);
}

static void end_images(void)
{
	dmfs_mount_detach(DMFS_IMAGES); /* if it was aborted */
	dmfs_end_invalidations(DMFS_IMAGES);
	dmfs_loop_end(DMFS_IMAGES);
	dmfs_nodes_end(DMFS_IMAGES);
	dmfs_forget_all(DMFS_IMAGES);
	dmfs_mount_free(DMFS_IMAGES);
}

static int end(void)
{
	pthread_t watcher;
	int error;

	/* Unmounting first lets the kernel write back what it has cached, while we still serve. */
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		dmfs_mount_detach(nr);
	if (!pthread_create(&watcher, NULL, watch, NULL))
		pthread_detach(watcher);
	dm_end_waiting();
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		dmfs_end_invalidations(nr);
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		dmfs_loop_end(nr);
	dmfs_loop_wait(settled);
	dm_end_removals();
	close_state(); /* what follows is no change the user made */
	dm_remove_all();
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		dmfs_nodes_end(nr);
	error = dm_store_flush_all();
	dm_events_settle(); /* they use the session */
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		dmfs_mount_free(nr);
	dmfs_buf_end();
	if (error)
		fprintf(stderr, "dmfs: flushing: %s\n", g_strerror(-error));
	return error ? 1 : 0;
}

/* --- from the beginning on -------------------------------------------------------------------- */

static bool over(void)
{
	return dmfs_loop_told() || dmfs_loop_stopped(DMFS_TREE);
}

static bool images_over(void)
{
	return dmfs_loop_stopped(DMFS_IMAGES) && dmfs_loop_settled(DMFS_IMAGES);
}

static bool over_or_images_over(void)
{
	return over() || images_over();
}

static bool told_or_images_over(void)
{
	return dmfs_loop_told() || images_over();
}

static bool begun(unsigned nr)
{
	return !dmfs_mounts[nr].session || dmfs_loop_ready(nr) || dmfs_loop_stopped(nr);
}

static bool begun_or_told(void)
{
	return dmfs_loop_told() || (begun(DMFS_TREE) && begun(DMFS_IMAGES));
}

int dmfs_serve_begin(void)
{
	/* The tree last: who sees it finds the directory of images, too. */
	for (unsigned nr = DMFS_MOUNTS; nr-- > 0;)
		if (dmfs_mounts[nr].session && dmfs_mount_up(nr, dmfs_options.threads)) {
			end();
			return -1;
		}
	dmfs_loop_wait(begun_or_told);
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		if (dmfs_mounts[nr].session && !dmfs_loop_ready(nr) && dmfs_loop_stopped(nr)) {
			end();
			return -1;
		}
	if (!dmfs_mounts[DMFS_TREE].path)
		dmfs_mount_find(DMFS_TREE);
	return 0;
}

int dmfs_serve(void)
{
	dmfs_loop_wait(over_or_images_over);
	if (!over()) {
		end_images();
		dmfs_loop_wait(over);
	}
	if (dmfs_mounts[DMFS_IMAGES].session && !dmfs_loop_told()) {
		dmfs_mount_detach(DMFS_IMAGES);
		dmfs_loop_wait(told_or_images_over);
	}
	return end();
}
