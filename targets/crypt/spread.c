/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Spreading runs over cores (spread.h).
 *
 * A job belongs to its run and to the helpers that are queued for it: who
 * drops the last reference frees it, which may be after done().  A helper touches the
 * run's memory only while it has a piece, and done() comes after the last piece.
 */
#include "spread.h"

#include <dmfs/bio.h>
#include <dmfs/work.h>
#include <stdatomic.h>
#include <unistd.h>

#define WORTH_NS 70000 /* runs shorter than this are over before a helper is there */
#define PIECE_NS 12000
#define MAX_HELPERS 15

struct job;

struct helper {
	struct dm_work work;
	struct job *job;
};

struct job {
	struct spread_run run;
	struct spreader *spreader;
	size_t piece;
	unsigned pieces;
	atomic_uint next, left;
	atomic_int refs, error;
	struct helper helpers[];
};

struct spreader {
	struct dm_wq *wq;
	unsigned cpus;
	atomic_uint running; /* large runs at the moment: with one for each CPU there is nobody to help */
};

static void job_put(struct job *j)
{
	if (atomic_fetch_sub(&j->refs, 1) == 1)
		g_free(j);
}

static void do_piece(struct job *j, unsigned nr)
{
	const struct spread_run *r = &j->run;
	size_t at = nr * j->piece, len = MIN(j->piece, r->len - at);
	uint64_t sector = r->sector + (at >> DM_SECTOR_SHIFT);
	int error = r->encrypt ?
			    crypt_engine_encrypt(r->engine, sector, r->iov, r->iovcnt, at, r->dst + at, len) :
			    crypt_engine_decrypt(r->engine, sector, r->iov, r->iovcnt, at, len);

	if (error)
		atomic_store(&j->error, error);
}

static void work_on(struct job *j)
{
	unsigned nr;

	while ((nr = atomic_fetch_add(&j->next, 1)) < j->pieces) {
		do_piece(j, nr);
		if (atomic_fetch_sub(&j->left, 1) == 1) {
			atomic_fetch_sub(&j->spreader->running, 1);
			j->run.done(j->run.context, atomic_load(&j->error));
			return;
		}
	}
}

static void help(struct dm_work *work)
{
	struct job *j = ((struct helper *)((char *)work - offsetof(struct helper, work)))->job;

	work_on(j);
	job_put(j);
}

bool spread_pays(struct spreader *s, const struct crypt_engine *e, size_t len)
{
	return s->cpus > 1 && len / 1024 * e->ns_per_kib >= WORTH_NS && atomic_load(&s->running) + 1 < s->cpus;
}

void spread_start(struct spreader *s, const struct spread_run *run)
{
	size_t piece = (size_t)PIECE_NS * 1024 / MAX(run->engine->ns_per_kib, 1) / 4096 * 4096;
	unsigned pieces, helpers;
	struct job *j;

	piece = MAX(piece, 4096);
	pieces = (unsigned)((run->len + piece - 1) / piece);
	helpers = MIN(MIN(pieces, s->cpus) - 1, MAX_HELPERS);
	j = g_malloc(sizeof(*j) + helpers * sizeof(j->helpers[0]));
	j->run = *run;
	j->spreader = s;
	j->piece = piece;
	j->pieces = pieces;
	atomic_init(&j->next, 0);
	atomic_init(&j->left, pieces);
	atomic_init(&j->refs, (int)helpers + 1);
	atomic_init(&j->error, 0);
	atomic_fetch_add(&s->running, 1);
	for (unsigned i = 0; i < helpers; i++) {
		j->helpers[i] = (struct helper){.work.fn = help, .job = j};
		dm_wq_queue(s->wq, &j->helpers[i].work);
	}
	work_on(j);
	job_put(j);
}

struct spreader *spreader_new(void)
{
	struct spreader *s = g_new0(struct spreader, 1);

	s->cpus = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
	s->wq = dm_wq_new("crypt", s->cpus);
	return s;
}

void spreader_free(struct spreader *s)
{
	if (!s)
		return;
	dm_wq_free(s->wq);
	g_free(s);
}
