/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Open files and directories, to free them at the end: the kernel does not send a RELEASE for what is open when the
 * connection ends.
 */
#include "node.h"

static pthread_mutex_t opened_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *opened[DMFS_MOUNTS]; /* handle or listing -> its function to free it */

void dmfs_opened_init(void)
{
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		opened[nr] = g_hash_table_new(NULL, NULL);
}

void dmfs_opened_add(unsigned mount, void *p, GDestroyNotify destroy)
{
	pthread_mutex_lock(&opened_lock);
	g_hash_table_insert(opened[mount], p, destroy);
	pthread_mutex_unlock(&opened_lock);
}

void dmfs_opened_remove(unsigned mount, void *p)
{
	pthread_mutex_lock(&opened_lock);
	g_hash_table_remove(opened[mount], p);
	pthread_mutex_unlock(&opened_lock);
}

void dmfs_nodes_end(unsigned mount)
{
	GHashTableIter i;
	gpointer p, destroy;

	g_hash_table_iter_init(&i, opened[mount]);
	while (g_hash_table_iter_next(&i, &p, &destroy)) {
		g_hash_table_iter_steal(&i);
		((GDestroyNotify)destroy)(p);
	}
}
