/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Spreading runs over cores (dmfs/spread.h).
 *
 * A job belongs to its run and to the helpers that are queued for it: who drops the last reference frees it.  The run's
 * context is the caller's, who may free it as soon as the last piece is done, so only a piece() looks at it.
 */
#include <dmfs/container_of.h>
#include <dmfs/spread.h>

#include <dmfs/work.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define WORTH_NS 60000 /* runs shorter than this are over before a helper is there */
#define MAX_HELPERS 15

struct job;

struct helper {
	struct dm_work work;
	struct job *job;
};

struct job {
	struct dm_spread_run run;
	atomic_uint next;
	atomic_int refs;
	struct helper helpers[];
};

static struct {
	struct dm_wq *wq;
	unsigned cpus;
	atomic_uint running; /* runs with helpers at the moment: with one for each CPU there is nobody to help */
} spread;

static void prepare(void)
{
	spread.cpus = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
	spread.wq = dm_wq_new("spread", spread.cpus);
}

static void work_on(struct job *j)
{
	unsigned nr;

	while ((nr = atomic_fetch_add(&j->next, 1)) < j->run.pieces)
		j->run.piece(j->run.context, nr);
	if (atomic_fetch_sub(&j->refs, 1) == 1) {
		atomic_fetch_sub(&spread.running, 1);
		g_free(j);
	}
}

static void help_with(struct dm_work *work)
{
	work_on(container_of(work, struct helper, work)->job);
}

bool dm_spread_pays(size_t ns)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	if (ns < WORTH_NS)
		return false;
	pthread_once(&once, prepare); /* GLib's cannot be seen by ThreadSanitizer */
	return atomic_load(&spread.running) + 1 < spread.cpus;
}

static void start_with_helpers(const struct dm_spread_run *run)
{
	unsigned helpers = MIN(MIN(run->pieces, spread.cpus) - 1, MAX_HELPERS);
	struct job *j = g_malloc(sizeof(*j) + helpers * sizeof(j->helpers[0]));

	j->run = *run;
	atomic_init(&j->next, 0);
	atomic_init(&j->refs, (int)helpers + 1);
	atomic_fetch_add(&spread.running, 1);
	for (unsigned i = 0; i < helpers; i++) {
		j->helpers[i] = (struct helper){.work.fn = help_with, .job = j};
		dm_wq_queue(spread.wq, &j->helpers[i].work);
	}
	work_on(j);
}

void dm_spread_start(const struct dm_spread_run *run, bool help)
{
	if (help) {
		start_with_helpers(run);
		return;
	}
	for (unsigned nr = 0, pieces = run->pieces; nr < pieces; nr++)
		run->piece(run->context, nr);
}
