/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Other programs, which do what they know better: dmfs-luks, dmfs-verity, qemu-nbd, fuse2fs and the like. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "open.h"

char *run_find(const char *program)
{
	g_autofree char *own = g_file_read_link("/proc/self/exe", NULL);
	g_autofree char *dir = own ? g_path_get_dirname(own) : NULL;
	g_autofree char *beside = dir ? g_build_filename(dir, program, NULL) : NULL;
	char *found;

	if (beside && !access(beside, X_OK))
		return g_steal_pointer(&beside);
	found = g_find_program_in_path(program);
	if (!found) {
		g_autofree char *sbin = g_build_filename("/usr/sbin", program, NULL);

		if (!access(sbin, X_OK))
			found = g_steal_pointer(&sbin);
	}
	return found;
}

static void quiet(gpointer no_input)
{
	int null;

	if (!GPOINTER_TO_INT(no_input))
		return;
	null = open("/dev/null", O_RDONLY);
	dup2(null, STDIN_FILENO);
}

int run(char *const *argv, bool quiet_input, char **out, char **why)
{
	GSpawnFlags flags = G_SPAWN_CHILD_INHERITS_STDIN | (out ? 0 : G_SPAWN_STDOUT_TO_DEV_NULL);
	g_autoptr(GError) err = NULL;
	int status;

	if (!g_spawn_sync(NULL, (char **)argv, NULL, flags, quiet, GINT_TO_POINTER(quiet_input), out, why, &status, &err)) {
		if (why)
			*why = g_strdup(err->message);
		return -ENOENT;
	}
	if (why)
		g_strchomp(*why);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
}

static char *dir;

void run_dir_done(void)
{
	if (dir)
		rmdir(dir);
}

const char *run_dir(GError **err)
{
	const char *base = g_getenv("XDG_RUNTIME_DIR");
	g_autofree char *template = NULL;

	if (dir)
		return dir;
	template = g_build_filename(base && !access(base, W_OK | X_OK) ? base : g_get_tmp_dir(), "dmfs-open-XXXXXX", NULL);
	if (!mkdtemp(template)) {
		fail(err, errno, "%s: %s", template, g_strerror(errno));
		return NULL;
	}
	dir = g_steal_pointer(&template);
	return dir;
}

char *run_shell_text(char *const *argv)
{
	g_autoptr(GString) text = g_string_new(NULL);

	for (; *argv; argv++) {
		g_autofree char *word = g_shell_quote(*argv);
		bool plain = **argv && strspn(*argv, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%") ==
					       strlen(*argv);

		g_string_append_printf(text, "%s%s", text->len ? " " : "", plain ? *argv : word);
	}
	return g_strdup(text->str);
}
