/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash [OPTIONS] [CUSTOMER...]
 *
 * Each run is a process of its own, as the engine's devices are global and a
 * crash of the engine is a failure like any other.  The processes report through memory they share with us.
 */
#include <ftw.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <dmfs/work.h>

#include "../../targets/list.h"
#include "core/type.h"
#include "internal.h"

#define HANG_S 300 /* without a crash point: it hangs; longer than any wait in one, on a busy machine too */
#define PROVE_HANG_S 4
#define PROVE_SEEDS 8u
#define FULL_SEEDS 6u
#define MS 1000000ull

static struct {
	unsigned seconds, seeds, jobs;
	uint32_t seed;
	unsigned hang_seconds;
	unsigned io;
	bool full, verbose, list, prove, only_crash, only_faults;
	char **names;
} opts = {.seconds = 100, .seed = 1, .hang_seconds = HANG_S};

struct job {
	const struct lab_customer *customer;
	uint32_t seed;
	bool faults;
};

/* Of a running process. */
struct shared {
	struct run_sum sum;
	_Atomic uint64_t progress;
};

struct worker {
	pid_t pid;
	int pidfd;
	struct job job;
	struct shared *shared;
	uint64_t seen, seen_ns;
};

static struct run_sum total;
static unsigned failed_jobs;
static struct shared *mine;
static GString *said; /* of failures */

static void progress(void)
{
	atomic_fetch_add(&mine->progress, 1);
}

static void register_types(void)
{
	static const struct dm_target_type *types[256];
	unsigned n = 0;

	while (dm_target_list[n] && n < G_N_ELEMENTS(types) - 8) {
		types[n] = dm_target_list[n];
		n++;
	}
	g_assert(!dm_target_list[n]);
	types[n++] = &lab_disk_target;
	for (unsigned i = 0; lab_extra_types[i]; i++)
		types[n++] = lab_extra_types[i];
	dm_register_targets(types);
}

/* In the process of its own. */
static void run_job(const struct job *job, uint64_t deadline)
{
	struct run_limits limits = {
		.deadline = deadline, .io = opts.io, .verbose = opts.verbose, .progress = progress};

	register_types();
	(job->faults ? run_faults : run_crash)(job->customer, job->seed, &limits, &mine->sum);
}

static void start(struct worker *w, const struct job *job, uint64_t deadline)
{
	pid_t parent = getpid();

	w->job = *job;
	w->shared = mmap(NULL, sizeof *w->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	g_assert(w->shared != MAP_FAILED);
	w->seen = 0;
	w->seen_ns = dm_now_ns();
	fflush(NULL);
	w->pid = fork();
	g_assert(w->pid >= 0);
	if (!w->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		mine = w->shared;
		run_job(job, deadline);
		fflush(NULL);
		_exit(0);
	}
	w->pidfd = (int)syscall(SYS_pidfd_open, w->pid, 0);
	g_assert(w->pidfd >= 0);
}

/* Adds up what a process that has ended did. */
static void finish(struct worker *w, const char *why)
{
	struct run_sum *sum = &w->shared->sum;
	int status;

	waitpid(w->pid, &status, 0);
	close(w->pidfd);
	w->pid = 0;
	total.points += sum->points;
	total.fault_points += sum->fault_points;
	total.sectors += sum->sectors;
	total.runs += sum->runs;
	total.failures += sum->failures;
	if (sum->failures)
		g_string_append(said, sum->text);
	if (status || why) {
		g_string_append_printf(said, "%s, seed %u, %s: after %" PRIu64 " points it %s", w->job.customer->name,
				       w->job.seed, w->job.faults ? "faults" : "power losses",
				       sum->points + sum->fault_points,
				       why ? why : WIFSIGNALED(status) ? "died: " : "exited");
		g_string_append_printf(said, "%s\n", !why && WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "");
		total.failures++;
	}
	if (!opts.prove) {
		fputs(said->str, stdout);
		fflush(stdout);
		g_string_truncate(said, 0);
	}
	if (sum->failures || status || why)
		failed_jobs++;
	munmap(w->shared, sizeof *w->shared);
}

/* Waits for some process to end, or to have hung. */
static void wait_some(struct worker *workers, unsigned n)
{
	g_autofree struct pollfd *fds = g_new(struct pollfd, n);
	unsigned used = 0;

	for (unsigned i = 0; i < n; i++)
		if (workers[i].pid)
			fds[used++] = (struct pollfd){workers[i].pidfd, POLLIN, 0};
	poll(fds, used, (int)opts.hang_seconds * 100);
	for (unsigned i = 0; i < n; i++) {
		struct worker *w = &workers[i];
		uint64_t now;

		if (!w->pid)
			continue;
		for (unsigned k = 0; k < used; k++)
			if (fds[k].fd == w->pidfd && fds[k].revents) {
				finish(w, NULL);
				break;
			}
		if (!w->pid)
			continue;
		now = atomic_load(&w->shared->progress);
		if (now != w->seen) {
			w->seen = now;
			w->seen_ns = dm_now_ns();
		} else if (dm_now_ns() - w->seen_ns > opts.hang_seconds * 1000 * MS) {
			kill(w->pid, SIGKILL);
			finish(w, "hung");
		}
	}
}

static unsigned busy(const struct worker *workers, unsigned n)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n; i++)
		count += workers[i].pid != 0;
	return count;
}

static bool is_chosen(const struct lab_customer *c)
{
	if (!opts.names[0])
		return !c->hidden;
	for (char **name = opts.names; *name; name++)
		if (!strcmp(*name, c->name))
			return true;
	return false;
}

static void add_jobs(GArray *jobs, uint32_t first, unsigned seeds)
{
	for (uint32_t i = first; i < first + seeds; i++)
		for (const struct lab_customer *c = lab_customers; c; c = c->next) {
			struct job job = {c, opts.seed + i, false};

			if (!is_chosen(c))
				continue;
			if (!opts.only_faults)
				g_array_append_val(jobs, job);
			job.faults = true;
			if (!opts.only_crash && i % 2 == 0)
				g_array_append_val(jobs, job);
		}
}

/* Runs all jobs; each gets its share of the time that is left.  Time left over is used with further seeds. */
static void run_jobs(GArray *jobs, uint32_t seeds, uint64_t deadline)
{
	g_autofree struct worker *workers = g_new0(struct worker, opts.jobs);

	for (unsigned next = 0; next < jobs->len || busy(workers, opts.jobs);) {
		if (next == jobs->len && dm_now_ns() < deadline && !opts.seeds && !failed_jobs)
			add_jobs(jobs, seeds++, 1);
		if (next < jobs->len && busy(workers, opts.jobs) < opts.jobs) {
			unsigned slot = 0, left = (jobs->len - next + opts.jobs - 1) / opts.jobs;
			uint64_t now = dm_now_ns(), end = 0;

			while (workers[slot].pid)
				slot++;
			if (deadline)
				end = now + MAX(deadline > now ? (deadline - now) / left : 0, 1000 * MS);
			start(&workers[slot], &g_array_index(jobs, struct job, next++), end);
		} else {
			wait_some(workers, opts.jobs);
		}
	}
}

static int run_all(void)
{
	uint64_t begin = dm_now_ns();
	g_autoptr(GArray) jobs = g_array_new(FALSE, FALSE, sizeof(struct job));
	unsigned seeds = opts.seeds ? opts.seeds : opts.full ? FULL_SEEDS : 2;
	double seconds;

	add_jobs(jobs, 0, seeds);
	if (!jobs->len) {
		fprintf(stderr, "crash: there is no such customer; --list tells them\n");
		return 2;
	}
	run_jobs(jobs, seeds, opts.full ? 0 : begin + opts.seconds * 1000 * MS);
	seconds = (double)(dm_now_ns() - begin) / 1e9;
	printf("crash: %" PRIu64 " crash points and %" PRIu64 " fault points in %.0f s (%.0f a minute), %" PRIu64
	       " sectors looked at: %" PRIu64 " failures\n",
	       total.points, total.fault_points, seconds,
	       (double)(total.points + total.fault_points) / seconds * 60, total.sectors, total.failures);
	return total.failures ? 1 : 0;
}

/* --- the laboratory's own tests --------------------------------------------------------- */

static const struct lab_customer *find_customer(const char *name)
{
	for (const struct lab_customer *c = lab_customers; c; c = c->next)
		if (!strcmp(c->name, name))
			return c;
	g_error("there is no customer %s", name);
}

/* Whether what must be found was found by some seed, or nothing by any. */
static bool prove(const struct proof *p)
{
	struct worker w = {0};

	g_string_truncate(said, 0);
	for (uint32_t seed = 1; seed <= PROVE_SEEDS; seed++) {
		struct job job = {find_customer(p->customer), seed, p->faults};

		start(&w, &job, 0);
		while (w.pid)
			wait_some(&w, 1);
		if (said->len && (!p->says || strstr(said->str, p->says)))
			return p->says != NULL;
	}
	return !p->says && !said->len;
}

static int prove_all(void)
{
	unsigned wrong = 0, n = 0;

	opts.prove = true;
	opts.hang_seconds = PROVE_HANG_S;
	for (const struct proof *p = lab_proofs; p->customer; p++, n++) {
		bool good = prove(p);

		if (!good) {
			printf("prove: %s should be told as '%s'; what was said:\n%s\n", p->customer,
			       p->says ? p->says : "nothing", said->str);
			wrong++;
		} else if (opts.verbose) {
			printf("prove: %s: %.*s\n", p->customer, (int)strcspn(said->str, "\n"), said->str);
		}
	}
	printf("prove: %u of %u stacks found to be what they are\n", n - wrong, n);
	opts.prove = false;
	opts.hang_seconds = HANG_S;
	g_string_truncate(said, 0);
	memset(&total, 0, sizeof total);
	failed_jobs = 0;
	return wrong ? 1 : 0;
}

static void usage(FILE *to)
{
	fputs("usage: crash [OPTIONS] [CUSTOMER...]\n"
	      "  --seconds N   for about so long (100)\n"
	      "  --full        every crash point of every customer, however long it takes\n"
	      "  --seed N      the first seed (1); odd seeds have a disk that answers later\n"
	      "  --seeds N     how many\n"
	      "  --crash       power losses only\n"
	      "  --faults      I/O errors only\n"
	      "  --io N        faults of this I/O only\n"
	      "  -j N          so many processes\n"
	      "  --prove       only the laboratory's own tests: mistakes it must find (else they come first)\n"
	      "  --list        the customers\n"
	      "  -v            tell more\n",
	      to);
}

static unsigned number(const char *option, const char *s)
{
	unsigned n;

	if (dm_parse_uint(s, &n))
		return n;
	fprintf(stderr, "crash: %s '%s' is not a number\n", option, s);
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{"seconds", required_argument, NULL, 's'}, {"full", no_argument, NULL, 'F'},
		{"seed", required_argument, NULL, 'S'},    {"seeds", required_argument, NULL, 'n'},
		{"crash", no_argument, NULL, 'c'},         {"faults", no_argument, NULL, 'f'},
		{"prove", no_argument, NULL, 'p'},         {"list", no_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},          {"io", required_argument, NULL, 'i'},
		{NULL, 0, NULL, 0},
	};
	int c;

	opts.jobs = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
	while ((c = getopt_long(argc, argv, "j:vh", longs, NULL)) != -1)
		switch (c) {
		case 's': opts.seconds = number("--seconds", optarg); break;
		case 'F': opts.full = true; break;
		case 'S': opts.seed = number("--seed", optarg); break;
		case 'n': opts.seeds = number("--seeds", optarg); break;
		case 'j': opts.jobs = MAX(number("-j", optarg), 1); break;
		case 'c': opts.only_crash = true; break;
		case 'f': opts.only_faults = true; break;
		case 'i': opts.io = number("--io", optarg); break;
		case 'p': opts.prove = true; break;
		case 'l': opts.list = true; break;
		case 'v': opts.verbose = true; break;
		case 'h': usage(stdout); exit(0);
		default: usage(stderr); exit(2);
		}
	opts.names = argv + optind;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	return remove(path);
}

int main(int argc, char **argv)
{
	g_autofree char *tmp = NULL;
	int status = 0;

	said = g_string_new(NULL);
	parse(argc, argv);
	/* Whatever a process of ours leaves behind when it dies lies here. */
	tmp = g_dir_make_tmp("dmfs-crash-XXXXXX", NULL);
	if (!tmp || setenv("TMPDIR", tmp, 1)) {
		fprintf(stderr, "crash: no temporary directory\n");
		return 2;
	}
	if (opts.list) {
		for (const struct lab_customer *c = lab_customers; c; c = c->next)
			if (!c->hidden)
				puts(c->name);
	} else if (opts.prove) {
		status = prove_all();
	} else {
		if (!opts.names[0])
			status = prove_all();
		status |= run_all();
	}
	g_string_free(said, TRUE);
	nftw(tmp, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	return status;
}
