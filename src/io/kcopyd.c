/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copier (kcopyd.txt).
 *
 * A job is cut into pieces of at most PIECE_SECTORS.  A piece is read into a buffer and written to every destination.
 * Up to JOB_PIECES of one job are under way at once; one, if its destinations must be written in order.
 *
 * Buffers count against the client's memory from the moment a piece is started.  Pieces that do not fit wait, first
 * come first served; a client always has room for one.
 *
 * A piece is a small state machine in the client's queue, and its bios go out from there.  A backing store does its
 * system calls in that very thread, and the piece goes on without a hand-over.  Over a device that ends bios later, the
 * last one puts the piece back on the queue.  So no thread waits for a device.
 *
 * A piece's buffer comes from the thread that starts it and goes to the thread that ends it, which keeps one.  Over
 * backing stores that is the same thread: the buffer is still in its core's cache, and the kernel need not map and zero
 * another.  It goes when the thread ends, and idle threads end.
 *
 * copy_file_range(2) is not used.  Between two files on tmpfs it costs as much as reading and writing pieces of this
 * size, on ext4 half as much again.  Where it is cheap (XFS, btrfs) it shares the blocks: then the first write to each
 * pays for the copy and may find no space in a file that was allocated, and the legs of a mirror would be one copy.
 *
 * A throttle bounds the share of time in which its clients have pieces under way.  After BUSY_SLICE_NS of work no piece
 * is started until those running have ended and a pause in proportion is over.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <dmfs/container_of.h>
#include <dmfs/kcopyd.h>
#include <dmfs/locked.h>
#include <dmfs/rounding.h>
#include <dmfs/work.h>

#define PIECE_SECTORS 512u
#define PIECE_BYTES ((size_t)PIECE_SECTORS << DM_SECTOR_SHIFT)
#define JOB_PIECES 8u
#define THREADS 8u
#define DEFAULT_BYTES (8u << 20)
#define BUFFER_ALIGN 4096u
#define SMALL_BYTES (64u << 10)
#define BUSY_SLICE_NS 10000000u
#define MAX_PAUSE_NS 1000000000u

enum job_kind { JOB_COPY, JOB_ZERO, JOB_CALLBACK };
enum step { STEP_READ, STEP_WRITE, STEP_DONE };

struct job;

struct piece {
	struct dm_work work; /* first */
	struct job *job;
	uint64_t offset, sectors; /* of the source */
	enum step step;
	char *buffer;
	bool whole_buffer; /* of PIECE_BYTES, may be kept for another */
	atomic_uint pending; /* bios under way, and 1 while they are being sent */
	atomic_int read_error;
	atomic_ulong write_errors;
	bool throttled; /* counted in the throttle */
	struct bio_of {
		struct dm_bio bio; /* first */
		struct piece *piece;
		struct iovec iov; /* a destination that ends before the source */
		unsigned nr;
	} bios[]; /* as many as destinations */
};

struct job {
	struct dm_kcopyd_client *kc;
	enum job_kind kind;
	unsigned flags, nr;
	dm_kcopyd_notify fn;
	void *context;
	/* Under the client's lock. */
	uint64_t next; /* sectors of the source that pieces were made of */
	unsigned under_way;
	bool listed;
	int read_error;
	unsigned long write_errors;
	struct job *next_job;
	struct dm_work work; /* the callback of a job without pieces */
	struct dm_region from;
	struct dm_region dests[];
};

struct dm_kcopyd_client {
	pthread_mutex_t lock;
	pthread_cond_t idle;
	struct dm_wq *wq;
	struct dm_kcopyd_throttle *throttle;
	size_t max_bytes, used_bytes;
	struct job *head, **tail; /* jobs that may start a piece */
	unsigned long jobs;
	struct dm_timer timer; /* a throttle's pause is over */
	struct dm_work wake;
};

/* Guards what the throttles count; taken only for clients below 100 percent. */
static pthread_mutex_t throttle_lock = PTHREAD_MUTEX_INITIALIZER;

static void run_piece(struct dm_work *work);
static void start_pieces(struct dm_kcopyd_client *kc);

/* --- buffers ---------------------------------------------------------------------- */

static pthread_key_t spare_key; /* a buffer of PIECE_BYTES, the thread's own */

static void make_spare_key(void)
{
	if (pthread_key_create(&spare_key, free))
		abort(); /* more keys than a process can have: never at the start of one */
}

/* Small pieces take the spare buffer too, but none is made for them: malloc has those at hand. */
static bool get_buffer(struct piece *p)
{
	size_t bytes = p->sectors << DM_SECTOR_SHIFT;

	p->buffer = pthread_getspecific(spare_key);
	p->whole_buffer = p->buffer || bytes > SMALL_BYTES;
	if (p->buffer)
		pthread_setspecific(spare_key, NULL);
	else
		p->buffer = aligned_alloc(BUFFER_ALIGN, p->whole_buffer ? PIECE_BYTES : dm_round_up(bytes, BUFFER_ALIGN));
	return p->buffer;
}

static void put_buffer(struct piece *p)
{
	if (!p->buffer || !p->whole_buffer || pthread_getspecific(spare_key) ||
	    pthread_setspecific(spare_key, p->buffer))
		free(p->buffer);
}

/* --- throttle --------------------------------------------------------------------- */

static unsigned throttle_percent(struct dm_kcopyd_client *kc)
{
	return kc->throttle ? CLAMP(atomic_load(&kc->throttle->percent), 1, 100) : 100;
}

/* Whether a piece may start now; if not, *again_ns is when to ask again. */
static bool throttle_start(struct dm_kcopyd_client *kc, bool *counted, uint64_t *again_ns)
{
	struct dm_kcopyd_throttle *th = kc->throttle;
	uint64_t now;
	bool ok = true;

	*counted = false;
	if (throttle_percent(kc) == 100)
		return true;
	now = dm_now_ns();
	pthread_mutex_lock(&throttle_lock);
	if (now < th->pause_until_ns) {
		*again_ns = th->pause_until_ns;
		ok = false;
	} else if (!th->running) {
		th->busy_since_ns = now;
	} else if (now - th->busy_since_ns >= BUSY_SLICE_NS) {
		*again_ns = now + BUSY_SLICE_NS;
		ok = false;
	}
	if (ok) {
		th->running++;
		*counted = true;
	}
	pthread_mutex_unlock(&throttle_lock);
	return ok;
}

static void throttle_end(struct dm_kcopyd_client *kc)
{
	struct dm_kcopyd_throttle *th = kc->throttle;
	unsigned percent = throttle_percent(kc);
	uint64_t now = dm_now_ns(), busy, pause;

	pthread_mutex_lock(&throttle_lock);
	if (--th->running == 0) {
		busy = MIN(now - th->busy_since_ns, MAX_PAUSE_NS);
		pause = busy * (100 - percent) / percent;
		th->pause_until_ns = now + MIN(pause, MAX_PAUSE_NS);
	}
	pthread_mutex_unlock(&throttle_lock);
}

static void pause_over(struct dm_timer *t)
{
	struct dm_kcopyd_client *kc = container_of(t, struct dm_kcopyd_client, timer);

	dm_wq_queue(kc->wq, &kc->wake);
}

static void wake_client(struct dm_work *work)
{
	struct dm_kcopyd_client *kc = container_of(work, struct dm_kcopyd_client, wake);

	pthread_mutex_lock(&kc->lock);
	start_pieces(kc);
	pthread_mutex_unlock(&kc->lock);
}

/* --- the end of jobs --------------------------------------------------------------- */

/* Runs the callback and drops the job; in the client's queue, without locks. */
static void finish_job(struct job *job)
{
	struct dm_kcopyd_client *kc = job->kc;

	job->fn(job->read_error, job->write_errors, job->context);
	g_free(job);
	pthread_mutex_lock(&kc->lock);
	if (--kc->jobs == 0)
		pthread_cond_broadcast(&kc->idle);
	pthread_mutex_unlock(&kc->lock);
}

static void run_callback(struct dm_work *work)
{
	finish_job(container_of(work, struct job, work));
}

static bool job_stopped(const struct job *job)
{
	return job->read_error || (job->write_errors && !(job->flags & DM_KCOPYD_IGNORE_ERROR));
}

static bool job_has_more(const struct job *job)
{
	return job->next < job->from.sectors && !job_stopped(job);
}

static void list_job(struct dm_kcopyd_client *kc, struct job *job)
{
	job->listed = true;
	job->next_job = NULL;
	*kc->tail = job;
	kc->tail = &job->next_job;
}

static void end_piece(struct piece *p)
{
	struct job *job = p->job;
	struct dm_kcopyd_client *kc = job->kc;
	int read_error = atomic_load(&p->read_error);
	bool finished;

	if (p->throttled)
		throttle_end(kc);
	put_buffer(p);
	pthread_mutex_lock(&kc->lock);
	if (job->kind == JOB_COPY)
		kc->used_bytes -= p->sectors << DM_SECTOR_SHIFT;
	job->under_way--;
	if (read_error && !job->read_error)
		job->read_error = read_error;
	job->write_errors |= atomic_load(&p->write_errors);
	if (job_has_more(job) && !job->listed)
		list_job(kc, job);
	finished = !job_has_more(job) && !job->under_way && !job->listed;
	start_pieces(kc);
	pthread_mutex_unlock(&kc->lock);
	g_free(p);
	if (finished)
		finish_job(job);
}

/* --- a piece ------------------------------------------------------------------------ */

/* One of a piece's bios, or the sending of them, is over: whether that was the last. */
static bool piece_drop(struct piece *p)
{
	return atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel) == 1;
}

static void piece_bio_end(struct dm_bio *bio)
{
	struct bio_of *b = (struct bio_of *)bio;
	struct piece *p = b->piece;

	if (bio->error && bio->op == DM_READ)
		atomic_store(&p->read_error, bio->error);
	else if (bio->error)
		atomic_fetch_or(&p->write_errors, 1ul << b->nr);
	if (piece_drop(p))
		dm_wq_queue(p->job->kc->wq, &p->work);
}

static void send(struct piece *p, unsigned i, enum dm_op op, const struct dm_region *where, uint64_t sectors)
{
	struct bio_of *b = &p->bios[i];

	b->piece = p;
	b->nr = i;
	b->iov = (struct iovec){p->buffer, sectors << DM_SECTOR_SHIFT};
	b->bio = (struct dm_bio){
		.op = op,
		.flags = DM_BACKGROUND,
		.dev = where->dev,
		.sector = where->sector + p->offset,
		.sectors = sectors,
		.iov = &b->iov,
		.iovcnt = dm_op_has_data(op),
		.end = piece_bio_end,
	};
	atomic_fetch_add_explicit(&p->pending, 1, memory_order_relaxed);
	dm_submit(&b->bio);
}

static void send_writes(struct piece *p)
{
	struct job *job = p->job;
	enum dm_op op = job->kind == JOB_ZERO ? DM_WRITE_ZEROES : DM_WRITE;

	for (unsigned i = 0; i < job->nr; i++)
		if (job->dests[i].sectors > p->offset)
			send(p, i, op, &job->dests[i], MIN(p->sectors, job->dests[i].sectors - p->offset));
}

/* The next step; the step after it follows at once if all bios have ended meanwhile. */
static void run_piece(struct dm_work *work)
{
	struct piece *p = (struct piece *)work;
	struct job *job = p->job;

	do {
		/* The sending itself counts, so that nobody else can go on with the piece before it is over. */
		atomic_store_explicit(&p->pending, 1, memory_order_relaxed);
		if (p->step == STEP_READ) {
			p->step = STEP_WRITE;
			if (get_buffer(p))
				send(p, 0, DM_READ, &job->from, p->sectors);
			else
				atomic_store(&p->read_error, -ENOMEM);
		} else if (p->step == STEP_WRITE && !atomic_load(&p->read_error)) {
			p->step = STEP_DONE;
			send_writes(p);
		} else {
			end_piece(p);
			return;
		}
	} while (piece_drop(p));
}

/* --- starting ------------------------------------------------------------------------- */

static void start_piece(struct job *job, uint64_t sectors, bool throttled)
{
	struct piece *p = g_malloc(sizeof *p + job->nr * sizeof p->bios[0]);

	p->work = (struct dm_work){.fn = run_piece};
	p->job = job;
	p->offset = job->next;
	p->sectors = sectors;
	p->step = job->kind == JOB_COPY ? STEP_READ : STEP_WRITE;
	p->buffer = NULL;
	atomic_init(&p->read_error, 0);
	atomic_init(&p->write_errors, 0);
	p->throttled = throttled;
	job->next += sectors;
	job->under_way++;
	if (job->kind == JOB_COPY)
		job->kc->used_bytes += sectors << DM_SECTOR_SHIFT;
	dm_wq_queue(job->kc->wq, &p->work);
}

static uint64_t piece_sectors(const struct job *job)
{
	uint64_t left = job->from.sectors - job->next;

	if (job->kind == JOB_ZERO)
		return left;
	return MIN(left, MIN(PIECE_SECTORS, job->kc->max_bytes >> DM_SECTOR_SHIFT));
}

/* Starts what has room and may run; the client's lock is held. */
static void start_pieces(struct dm_kcopyd_client *kc)
{
	struct job *job;

	dm_assert_locked(&kc->lock);
	while ((job = kc->head)) {
		unsigned most = job->flags & DM_KCOPYD_WRITE_SEQ ? 1 : JOB_PIECES;
		uint64_t sectors = piece_sectors(job), again_ns;
		size_t bytes = job->kind == JOB_COPY ? sectors << DM_SECTOR_SHIFT : 0;
		bool throttled;

		if (job_has_more(job) && job->under_way < most) {
			if (kc->used_bytes && kc->used_bytes + bytes > kc->max_bytes)
				return; /* a piece that ends makes room and comes here */
			if (!throttle_start(kc, &throttled, &again_ns)) {
				dm_timer_arm(&kc->timer, again_ns);
				return;
			}
			start_piece(job, sectors, throttled);
			continue;
		}
		if (!(kc->head = job->next_job))
			kc->tail = &kc->head;
		job->listed = false;
		if (!job->under_way) /* stopped by an error while it waited */
			dm_wq_queue(kc->wq, &job->work);
	}
}

static struct job *job_new(struct dm_kcopyd_client *kc, enum job_kind kind, unsigned nr, const struct dm_region *dests,
			   unsigned flags, dm_kcopyd_notify fn, void *context)
{
	struct job *job = g_malloc(sizeof *job + nr * sizeof job->dests[0]);

	*job = (struct job){
		.kc = kc,
		.kind = kind,
		.flags = flags,
		.nr = nr,
		.fn = fn,
		.context = context,
		.work.fn = run_callback,
	};
	for (unsigned i = 0; i < nr; i++)
		job->dests[i] = dests[i];
	return job;
}

static void start_job(struct job *job)
{
	struct dm_kcopyd_client *kc = job->kc;

	pthread_mutex_lock(&kc->lock);
	kc->jobs++;
	if (job->from.sectors) {
		list_job(kc, job);
		start_pieces(kc);
	} else {
		dm_wq_queue(kc->wq, &job->work);
	}
	pthread_mutex_unlock(&kc->lock);
}

void dm_kcopyd_copy(struct dm_kcopyd_client *kc, const struct dm_region *from, unsigned nr,
		    const struct dm_region *dests, unsigned flags, dm_kcopyd_notify fn, void *context)
{
	struct job *job;

	assert(nr > 0 && nr <= DM_KCOPYD_MAX_REGIONS);
	job = job_new(kc, JOB_COPY, nr, dests, flags, fn, context);
	job->from = *from;
	start_job(job);
}

void dm_kcopyd_zero(struct dm_kcopyd_client *kc, unsigned nr, const struct dm_region *dests, unsigned flags,
		    dm_kcopyd_notify fn, void *context)
{
	struct job *job;

	assert(nr > 0 && nr <= DM_KCOPYD_MAX_REGIONS);
	job = job_new(kc, JOB_ZERO, nr, dests, flags, fn, context);
	for (unsigned i = 0; i < nr; i++)
		job->from.sectors = MAX(job->from.sectors, dests[i].sectors);
	start_job(job);
}

void dm_kcopyd_callback(struct dm_kcopyd_client *kc, dm_kcopyd_notify fn, void *context, int read_error,
			unsigned long write_errors)
{
	struct job *job = job_new(kc, JOB_CALLBACK, 0, NULL, 0, fn, context);

	job->read_error = read_error;
	job->write_errors = write_errors;
	start_job(job);
}

/* --- clients ---------------------------------------------------------------------------- */

struct dm_kcopyd_client *dm_kcopyd_client_new(struct dm_kcopyd_throttle *throttle, size_t max_bytes)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct dm_kcopyd_client *kc = g_new0(struct dm_kcopyd_client, 1);

	pthread_once(&once, make_spare_key);
	pthread_mutex_init(&kc->lock, NULL);
	pthread_cond_init(&kc->idle, NULL);
	kc->wq = dm_wq_new("kcopyd", THREADS);
	kc->throttle = throttle;
	kc->max_bytes = MAX(max_bytes ? max_bytes : DEFAULT_BYTES, DM_SECTOR_SIZE);
	kc->tail = &kc->head;
	kc->timer.fn = pause_over;
	kc->wake.fn = wake_client;
	return kc;
}

void dm_kcopyd_client_free(struct dm_kcopyd_client *kc)
{
	if (!kc)
		return;
	dm_wq_assert_outside(kc->wq);
	pthread_mutex_lock(&kc->lock);
	while (kc->jobs)
		pthread_cond_wait(&kc->idle, &kc->lock);
	pthread_mutex_unlock(&kc->lock);
	dm_timer_cancel_sync(&kc->timer);
	dm_wq_free(kc->wq);
	pthread_mutex_destroy(&kc->lock);
	pthread_cond_destroy(&kc->idle);
	g_free(kc);
}
