/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs that a program runs see the same: who makes an environment of its own for them gets what the library needs
 * added.  A child of vfork(2) may be here, so nothing is allocated.
 */
#include <alloca.h>
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

#define PUBLIC __attribute__((visibility("default")))

static const char *const carried[] = {"LD_PRELOAD", ENV_SHADOW, "LVM_SYSTEM_DIR"};
#define CARRIED (sizeof carried / sizeof *carried)

/* NAME=VALUE of each, as they were at start. */
static char kept[CARRIED][PATH_MAX];

__attribute__((constructor)) static void start(void)
{
	run_init();
	for (int fd = 0; run.on && fd < 3; fd++)
		writes_mark(fd);
	for (size_t i = 0; run.on && i < CARRIED; i++) {
		const char *value = getenv(carried[i]);

		if (value)
			path_format(kept[i], "%s=%s", carried[i], value);
	}
}

static bool has(char *const *env, const char *name)
{
	size_t len = strlen(name);

	for (; env && *env; env++)
		if (!strncmp(*env, name, len) && (*env)[len] == '=')
			return true;
	return false;
}

static size_t count(char *const *env)
{
	size_t n = 0;

	while (env && env[n])
		n++;
	return n;
}

/* All there, in an array of count() + CARRIED + 1. */
static char **complete(char *const *env, char **out)
{
	size_t n = count(env);

	if (n)
		memcpy(out, env, n * sizeof *out);
	for (size_t i = 0; i < CARRIED; i++)
		if (*kept[i] && !has(env, carried[i]))
			out[n++] = kept[i];
	out[n] = NULL;
	return out;
}

#define WITH(env)                                                                                                      \
	(run.on ? complete(env, alloca((count(env) + CARRIED + 1) * sizeof(char *))) : (char **)(uintptr_t)(env))

PUBLIC int execve(const char *path, char *const argv[], char *const env[])
{
	char to[PATH_MAX];

	return NEXT(execve)(place(path, to, PLACE_LOOK), argv, WITH(env));
}

PUBLIC int execvpe(const char *file, char *const argv[], char *const env[])
{
	return NEXT(execvpe)(file, argv, WITH(env));
}

PUBLIC int fexecve(int fd, char *const argv[], char *const env[])
{
	return NEXT(fexecve)(fd, argv, WITH(env));
}

PUBLIC int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	return NEXT(posix_spawn)(pid, path, actions, attr, argv, WITH(env));
}

PUBLIC int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	return NEXT(posix_spawnp)(pid, file, actions, attr, argv, WITH(env));
}
