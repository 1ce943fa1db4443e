/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens when a block is corrupted: it is counted, logged, an event; with restart_on_corruption and
 * panic_on_corruption the volume fails for good; and a command is run if the mount was given one.
 *
 * The command is run without a shell, one at a time, by a thread of a queue, which also waits for it:
 * I/O never does.  It finds in its environment
 *
 *   DM_NAME                  the device
 *   DM_VERITY_ERR_BLOCK_NR   TYPE,BLOCK as in the event: 0 data, 1 metadata
 *   DM_VERITY_MODE           eio, ignore, restart or panic
 */
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "mount.h"
#include "verity.h"

static const char *const mode_names[] = {"eio", "ignore", "restart", "panic"};

/* --- the command -------------------------------------------------------------------------------- */

static char **command; /* its words, or NULL */

struct run {
	struct dm_work work;
	char **environment;
};

int verity_set_on_corruption(const char *line, GError **err)
{
	g_autoptr(GError) why = NULL;

	g_strfreev(g_steal_pointer(&command));
	if (g_shell_parse_argv(line, NULL, &command, &why))
		return 0;
	return dm_fail(err, EINVAL, "on-corruption=%s: %s", line, why->message);
}

static int spawn(char **environment, pid_t *pid)
{
	posix_spawnattr_t attr;
	sigset_t none, defaults;
	int error;

	sigemptyset(&none);
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &defaults);
	error = posix_spawnp(pid, command[0], NULL, &attr, command, environment);
	posix_spawnattr_destroy(&attr);
	return error;
}

static void run_command(struct dm_work *work)
{
	struct run *run = (struct run *)work;
	int error, status = 0;
	pid_t pid;

	error = spawn(run->environment, &pid);
	if (error)
		dm_log_err("verity: on-corruption command %s: %s", command[0], g_strerror(error));
	while (!error && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status)
		dm_log_warn("verity: on-corruption command %s: %s %d", command[0],
			    WIFEXITED(status) ? "exit status" : "signal",
			    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	g_strfreev(run->environment);
	g_free(run);
}

static struct dm_wq *command_queue;

static void make_command_queue(void)
{
	command_queue = dm_wq_new("on-corruption", 1);
}

static void start_command(struct verity *v, const char *block)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	g_autoptr(GString) name = g_string_new(NULL);
	struct run *run;

	if (!command)
		return;
	pthread_once(&once, make_command_queue);
	dm_mapped_name(dm_target_mapped(v->ti), name);
	run = g_new0(struct run, 1);
	run->work.fn = run_command;
	run->environment = g_get_environ();
	run->environment = g_environ_setenv(run->environment, "DM_NAME", name->str, TRUE);
	run->environment = g_environ_setenv(run->environment, "DM_VERITY_ERR_BLOCK_NR", block, TRUE);
	run->environment = g_environ_setenv(run->environment, "DM_VERITY_MODE", mode_names[v->mode], TRUE);
	dm_wq_queue(command_queue, &run->work);
}

/* --- telling ------------------------------------------------------------------------------------ */

/* The errors of a device are counted up to the most that are told of; whether this one is. */
static bool count(struct verity *v, unsigned *nr)
{
	*nr = atomic_load(&v->errors);
	while (*nr < VERITY_MAX_ERRORS)
		if (atomic_compare_exchange_weak(&v->errors, nr, *nr + 1)) {
			++*nr;
			return true;
		}
	return false;
}

static void tell(struct verity *v, enum verity_block_type type, uint64_t block, unsigned nr)
{
	g_autofree char *where = g_strdup_printf("%d,%" PRIu64, type, block);
	g_autofree char *words = g_strconcat("DM_VERITY_ERR_BLOCK_NR=", where, NULL);
	g_autoptr(GString) name = g_string_new(NULL);

	dm_dev_print(v->data_dev, name);
	dm_log_err("verity: %s: %s block %" PRIu64 " is corrupted", name->str, type == VERITY_DATA ? "data" : "metadata",
		   block);
	if (nr == VERITY_MAX_ERRORS)
		dm_log_err("verity: %s: reached maximum errors", name->str);
	dm_target_uevent(v->ti, words);
	start_command(v, where);
}

static void fail_for_good(struct verity *v)
{
	g_autoptr(GString) name = g_string_new(NULL);

	if (atomic_exchange(&v->failed, true))
		return;
	dm_dev_print(v->data_dev, name);
	dm_log_err("verity: %s: dm-verity device corrupted: it fails from now on (%s_on_corruption)", name->str,
		   mode_names[v->mode]);
}

bool verity_block_corrupted(struct verity *v, enum verity_block_type type, uint64_t block)
{
	unsigned nr;

	atomic_store(&v->corrupted, true);
	if (v->mode == VERITY_MODE_RESTART || v->mode == VERITY_MODE_PANIC)
		fail_for_good(v);
	if (count(v, &nr))
		tell(v, type, block, nr);
	return v->mode != VERITY_MODE_LOGGING;
}
