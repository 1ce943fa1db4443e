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

/* --- modprobe -------------------------------------------------------------------------------------- */

/* The device mapper's modules, without "dm-" and with '-' for '_': for who loads them first all are there. */
static const char *const modules[] = {
    "mod",
    "bio-prison",
    "bufio",
    "persistent-data",
    "log",
    "log-userspace",
    "region-hash",
    "cache",
    "cache-smq",
    "clone",
    "crypt",
    "delay",
    "dust",
    "era",
    "flakey",
    "integrity",
    "log-writes",
    "mirror",
    "multipath",
    "raid",
    "round-robin",
    "snapshot",
    "switch",
    "thin-pool",
    "unstriped",
    "verity",
    "writecache",
    "zoned",
    "zero",
    "io-affinity",
    "queue-length",
    "service-time",
    "historical-service-time",
};

static bool is_module(const char *word)
{
	if (strncmp(word, "dm-", 3) && strncmp(word, "dm_", 3))
		return false;
	for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
		const char *a = word + 3, *b = modules[i];

		for (; *a && (*a == *b || (*a == '_' && *b == '-')); a++)
			b++;
		if (!*a && !*b)
			return true;
	}
	return false;
}

/* The program to run: modprobe has nothing to do if all it is to load are modules of ours. */
static const char *program(const char *path, char *const argv[])
{
	const char *base = strrchr(path, '/');
	bool some = false;

	if (!run.on || strcmp(base ? base + 1 : path, "modprobe"))
		return path;
	for (size_t i = 1; argv && argv[0] && argv[i]; i++) {
		if (*argv[i] == '-')
			continue;
		if (!is_module(argv[i]))
			return path;
		some = true;
	}
	return some ? "/bin/true" : path;
}

/* --- running --------------------------------------------------------------------------------------- */

#define WITH(env)                                                                                                      \
	(run.on ? complete(env, alloca((count(env) + CARRIED + 1) * sizeof(char *))) : (char **)(uintptr_t)(env))

PUBLIC int execve(const char *path, char *const argv[], char *const env[])
{
	char to[PATH_MAX];

	return NEXT(execve)(place(program(path, argv), to, PLACE_LOOK), argv, WITH(env));
}

PUBLIC int execvpe(const char *file, char *const argv[], char *const env[])
{
	return NEXT(execvpe)(program(file, argv), argv, WITH(env));
}

PUBLIC int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

PUBLIC int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

PUBLIC int fexecve(int fd, char *const argv[], char *const env[])
{
	return NEXT(fexecve)(fd, argv, WITH(env));
}

PUBLIC int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	return NEXT(posix_spawn)(pid, program(path, argv), actions, attr, argv, WITH(env));
}

PUBLIC int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attr, char *const argv[], char *const env[])
{
	return NEXT(posix_spawnp)(pid, program(file, argv), actions, attr, argv, WITH(env));
}
