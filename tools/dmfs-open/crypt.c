/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS and BitLocker, which dmfs-luks opens: no passphrase and no key comes near this program.  dmfs-luks reads key files
 * and asks on the terminal, or takes a line of standard input.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "open.h"

#define WRONG_PASSPHRASE 2

/* dmfs-luks's status. */
static int try(struct plan *p, const struct node *c, const char *program, const char *image, const char *key_file, bool ask,
	       char **why)
{
	g_autoptr(GPtrArray) argv = g_ptr_array_new();

	g_ptr_array_add(argv, (gpointer)program);
	g_ptr_array_add(argv, (gpointer) "-m");
	g_ptr_array_add(argv, p->mount);
	if (c->readonly)
		g_ptr_array_add(argv, (gpointer) "--readonly");
	if (key_file) {
		g_ptr_array_add(argv, (gpointer) "--key-file");
		g_ptr_array_add(argv, (gpointer)key_file);
	}
	g_ptr_array_add(argv, (gpointer) "open");
	g_ptr_array_add(argv, (gpointer)image);
	g_ptr_array_add(argv, c->name);
	g_ptr_array_add(argv, NULL);
	/* on a terminal its prompts and errors are for the user */
	return run((char *const *)argv->pdata, !ask, NULL, ask && isatty(STDIN_FILENO) ? NULL : why);
}

static int unlock(struct plan *p, struct node *n, const struct node *c, char **why)
{
	g_autofree char *program = run_find("dmfs-luks"), *image = node_image(p, n);
	int status = -ENOENT;

	if (!program) {
		*why = g_strdup("dmfs-luks is not installed");
		return -ENOENT;
	}
	for (char **key = p->o->key_files; key && *key; key++) {
		g_clear_pointer(why, g_free);
		status = try(p, c, program, image, *key, false, why);
		if (status != WRONG_PASSPHRASE)
			return status;
	}
	if (!p->o->no_ask) {
		g_clear_pointer(why, g_free);
		status = try(p, c, program, image, NULL, true, why);
	}
	return status;
}

void crypt_open(struct plan *p, struct node *n, const char *what, const char *id)
{
	g_autofree char *wanted = g_strconcat(n->name, "-crypt", NULL), *why = NULL, *image = NULL;
	g_autofree char *key = g_strdup_printf("%s %s", what, id ? id : n->name);
	struct node *c;
	struct stat st;
	int status;

	if (!g_hash_table_add(p->seen, g_steal_pointer(&key))) {
		node_note(p, n, "locked: a copy of a volume that was asked for");
		p->failed = true;
		return;
	}
	c = node_new(p, NODE_CRYPT, "crypt", wanted);
	node_stand_on(c, n);
	c->readonly = !p->o->write || n->readonly;
	c->command = g_strdup_printf("dmfs-luks%s open \"$DMFS_MOUNT\"/%s/image %s", c->readonly ? " --readonly" : "", n->name,
				     c->name);
	status = unlock(p, n, c, &why);
	if (status) {
		node_note(p, n, "locked%s%s", why && *why ? ": " : "", why ? why : "");
		p->failed = true;
		return;
	}
	c->open = true;
	image = node_image(p, c);
	if (!stat(image, &st))
		c->sectors = (uint64_t)st.st_size / 512;
}
