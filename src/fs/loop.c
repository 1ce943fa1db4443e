/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The threads that read requests from /dev/fuse (loop.h).
 *
 * A worker reads a request, handles it and reads the next.  When it is about to wait, another is put to work.  Who
 * comes next at /dev/fuse cannot be chosen: so a worker that reads a request for an image while IMAGE_WORKERS wait for
 * images already hands it over, unread, to a queue with threads of its own, and reads on.
 */
#include <errno.h>
#include <glib.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "fs.h"
#include "loop.h"
#include "waiting.h"

#include <dmfs/container_of.h>
#include <dmfs/io.h>
#include <dmfs/log.h>
#include <dmfs/work.h>

#define MAX_WORKERS 4096u  /* each but IMAGE_WORKERS and a few stands for a process that waits at a control file */
#define IMAGE_WORKERS 128u /* may wait for images */
#define QUEUE_THREADS 64u  /* what is beyond them */
#define IN_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define WAKE_SIGNAL SIGUSR2

static struct loop {
	struct fuse_session *session;
	struct dmfs_channels channels;
	unsigned target; /* workers that should not be waiting */
	atomic_uint workers, blocked, image_blocked;
	atomic_bool exiting;
	atomic_uint later;  /* requests to be answered by somebody else */
	struct dm_wq *queue; /* requests that no worker handles */
	/* under `lock` */
	bool ready, stopped;
	GPtrArray *threads; /* running: struct worker * */
} loops[DMFS_MOUNTS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool told;
static atomic_bool watched; /* somebody waits: tell when nothing is left to be answered later */

struct worker {
	struct loop *loop;
	pthread_t thread;
	struct dmfs_channel *channel;
	struct dmfs_buf *buf;
	bool image; /* the request is for an image */
	unsigned requests, timed, at_once; /* see set_policy() */
	bool batch;
};

static _Thread_local struct worker *self;

static void set(bool *flag)
{
	pthread_mutex_lock(&lock);
	__atomic_store_n(flag, true, __ATOMIC_RELAXED); /* some look without the lock */
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* --- requests that are answered later --------------------------------------------------- */

struct dmfs_channel *dmfs_loop_later(void)
{
	atomic_fetch_add(&self->loop->later, 1);
	return dmfs_channel_get(self->channel);
}

void dmfs_loop_answered(struct dmfs_channel *c)
{
	struct loop *l = container_of(c->all, struct loop, channels);

	dmfs_channel_put(c);
	if (atomic_fetch_sub(&l->later, 1) > 1 || !atomic_load(&watched))
		return;
	pthread_mutex_lock(&lock);
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

struct dmfs_channel *dmfs_loop_keep(void)
{
	self->buf = NULL;
	return dmfs_loop_later();
}

void dmfs_loop_release(struct dmfs_buf *buf, struct dmfs_channel *c)
{
	dmfs_buf_free(buf);
	dmfs_loop_answered(c);
}

void dmfs_loop_large(void)
{
	if (self->buf)
		self->buf->large = true;
}

struct dmfs_buf *dmfs_loop_buf(void)
{
	return self->buf;
}

/* --- workers --------------------------------------------------------------------------- */

static void *worker_main(void *arg);

static void start_worker(struct loop *l)
{
	struct worker *w = g_new0(struct worker, 1);
	pthread_attr_t attr;
	sigset_t all, old;
	int error = ENFILE;

	w->loop = l;
	w->channel = dmfs_channel_new(&l->channels);
	if (w->channel) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, 1024 * 1024);
		sigfillset(&all);
		sigdelset(&all, WAKE_SIGNAL);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		pthread_mutex_lock(&lock);
		error = pthread_create(&w->thread, &attr, worker_main, w);
		if (!error)
			g_ptr_array_add(l->threads, w);
		pthread_mutex_unlock(&lock);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		pthread_attr_destroy(&attr);
	}
	if (error) {
		atomic_fetch_sub(&l->workers, 1);
		dm_log_err_limit("no further thread for requests: %s", g_strerror(error));
		dmfs_channel_put(w->channel);
		g_free(w);
	}
}

static void add_worker_if_few(struct loop *l)
{
	unsigned n = atomic_load(&l->workers);

	while (n < atomic_load(&l->blocked) + l->target && n < MAX_WORKERS && !atomic_load(&l->exiting))
		if (atomic_compare_exchange_weak(&l->workers, &n, n + 1)) {
			start_worker(l);
			return;
		}
}

static void block_begin(void *worker)
{
	struct worker *w = worker;

	dmfs_request_blocks();
	atomic_fetch_add(&w->loop->blocked, 1);
	if (w->image)
		atomic_fetch_add(&w->loop->image_blocked, 1);
	add_worker_if_few(w->loop);
}

static void block_end(void *worker)
{
	struct worker *w = worker;

	atomic_fetch_sub(&w->loop->blocked, 1);
	if (w->image)
		atomic_fetch_sub(&w->loop->image_blocked, 1);
}

/* Whether this worker is one too many; if so it does not count any more. */
static bool surplus(struct loop *l)
{
	unsigned n = atomic_load_explicit(&l->workers, memory_order_relaxed);

	while (n > atomic_load_explicit(&l->blocked, memory_order_relaxed) + 2 * l->target)
		if (atomic_compare_exchange_weak(&l->workers, &n, n - 1))
			return true;
	return false;
}

/*
 * With several requests at a time a worker that wakes had better not push whoever woke it off the CPU (SCHED_BATCH):
 * the submitter gets to send more of them first, and a request costs fewer switches.  With one at a time it had better.
 * Which it is shows in how often a request is there already when a worker asks for one: of every so many one is timed.
 * Only in place of the default policy.
 */
#define TIMED_EVERY 8u
#define TIMED 64u
#define AT_ONCE_NS 2000u
#define MANY_AT_ONCE 6u
#define FEW_AT_ONCE 1u

static void set_policy(struct worker *w, bool batch)
{
	struct sched_param param = {0};
	int policy, was = batch ? SCHED_OTHER : SCHED_BATCH;

	w->batch = batch;
	if (!pthread_getschedparam(pthread_self(), &policy, &param) && policy == was)
		pthread_setschedparam(pthread_self(), batch ? SCHED_BATCH : SCHED_OTHER, &param);
}

static void count_wait(struct worker *w, uint64_t ns)
{
	w->at_once += ns < AT_ONCE_NS;
	if (++w->timed < TIMED)
		return;
	if (!w->batch && w->at_once >= MANY_AT_ONCE)
		set_policy(w, true);
	else if (w->batch && w->at_once <= FEW_AT_ONCE)
		set_policy(w, false);
	w->timed = w->at_once = 0;
}

static const struct fuse_in_header *header_of(const struct dmfs_buf *buf)
{
	return (const struct fuse_in_header *)(buf->data - IN_HEADER);
}

static bool is_image_io(const struct fuse_in_header *in)
{
	switch (in->opcode) {
	case FUSE_READ:
	case FUSE_WRITE:
	case FUSE_FSYNC:
	case FUSE_FALLOCATE:
	case FUSE_LSEEK:
		return dmfs_is_image(in->nodeid);
	default:
		return false;
	}
}

static void process(struct worker *w, size_t size)
{
	struct fuse_buf in = {.mem = w->buf->data - IN_HEADER, .size = size};

	fuse_session_process_buf(w->loop->session, &in);
}

static void queued_blocks(void *unused)
{
	dmfs_request_blocks();
}

static void process_queued(struct dm_work *work)
{
	struct dmfs_buf *buf = container_of(work, struct dmfs_buf, work);
	struct dmfs_channel *c = buf->channel;
	struct worker w = {.loop = container_of(c->all, struct loop, channels), .channel = c, .buf = buf, .image = true};

	self = &w;
	dmfs_channel_use(c);
	dm_block_set_hooks(queued_blocks, NULL, NULL);
	process(&w, buf->size);
	dm_block_set_hooks(NULL, NULL, NULL);
	dmfs_channel_use(NULL);
	self = NULL;
	if (w.buf)
		dmfs_buf_free(w.buf);
	dmfs_loop_answered(c);
}

static void hand_over(struct worker *w, size_t size)
{
	struct dmfs_buf *buf = w->buf;

	buf->size = size;
	buf->work = (struct dm_work){.fn = process_queued};
	buf->channel = dmfs_loop_keep();
	dm_wq_queue(w->loop->queue, &buf->work);
}

static void handle(struct worker *w, size_t size)
{
	/*
	 * An image is always ready.  io_uring asks before each request, and waits for this answer.  (Not where there
	 * are images alone: that there is no poll is told once, by libfuse.)
	 */
	static const struct fuse_poll_out ready = {.revents = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM};
	const struct fuse_in_header *in = header_of(w->buf);
	uint32_t opcode = in->opcode;

	if (opcode == FUSE_POLL && w->loop == &loops[DMFS_TREE] && dmfs_is_image(in->nodeid)) {
		dmfs_channel_answer(w->channel, in->unique, &ready, sizeof ready);
		return;
	}
	w->image = is_image_io(in);
	if (w->image && atomic_load_explicit(&w->loop->image_blocked, memory_order_relaxed) >= IMAGE_WORKERS) {
		hand_over(w, size);
		return;
	}
	if (size >= DMFS_LARGE)
		dmfs_loop_large();
	process(w, size);
	if (opcode == FUSE_INTERRUPT)
		dmfs_waiting_look();
	/* Who has answered INIT may come here late; any other request says as well that the answer was good. */
	if (!__atomic_load_n(&w->loop->ready, __ATOMIC_RELAXED) &&
	    (opcode != FUSE_INIT || !fuse_session_exited(w->loop->session)))
		set(&w->loop->ready);
}

/* Reads and handles one request; false at the end. */
static bool one_request(struct worker *w)
{
	uint64_t asked = 0;
	ssize_t n;

	if (!w->buf)
		w->buf = dmfs_buf_new();
	dmfs_buf_ready(w->buf);
	if (++w->requests % TIMED_EVERY == 0)
		asked = dm_now_ns();
	n = dmfs_channel_read(w->channel, w->buf->data - IN_HEADER, IN_HEADER + DMFS_DATA_ROOM);
	if (asked)
		count_wait(w, dm_now_ns() - asked);
	if (atomic_load_explicit(&w->loop->exiting, memory_order_relaxed))
		return false;
	if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
		return true;
	if (n < 0 && errno != ENODEV && errno != ECONNABORTED)
		dm_log_err("reading from /dev/fuse: %s", g_strerror(errno));
	if (n >= 0)
		handle(w, (size_t)n);
	/* Unmounted, aborted, or libfuse could not come to terms with the kernel. */
	if (n < 0 || fuse_session_exited(w->loop->session)) {
		set(&w->loop->stopped);
		return false;
	}
	return true;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct loop *l = w->loop;
	bool leave_early = false;

	self = w;
	dmfs_channel_use(w->channel);
	dm_block_set_hooks(block_begin, block_end, w);
	while (!leave_early && one_request(w))
		leave_early = surplus(l);
	dmfs_channel_put(w->channel);
	if (w->buf)
		dmfs_buf_free(w->buf);
	pthread_mutex_lock(&lock);
	if (leave_early && !atomic_load(&l->exiting)) {
		g_ptr_array_remove_fast(l->threads, w);
		pthread_detach(w->thread);
		g_free(w);
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* --- start and end ------------------------------------------------------------------------ */

static void wake_handler(int sig)
{
}

int dmfs_loop_start(unsigned nr, struct fuse_session *session, void *owner, unsigned threads)
{
	struct sigaction wake = {.sa_handler = wake_handler};
	struct loop *l = &loops[nr];
	int error;

	l->session = session;
	l->target = threads;
	l->threads = g_ptr_array_new();
	l->queue = dm_wq_new("images", QUEUE_THREADS);
	sigaction(WAKE_SIGNAL, &wake, NULL);
	error = dmfs_channels_init(&l->channels, session, owner, threads);
	if (error)
		return error;
	for (unsigned i = 0; i < threads; i++) {
		atomic_fetch_add(&l->workers, 1);
		start_worker(l);
	}
	return l->threads->len ? 0 : -EAGAIN;
}

bool dmfs_loop_ready(unsigned nr)
{
	return __atomic_load_n(&loops[nr].ready, __ATOMIC_RELAXED);
}

bool dmfs_loop_stopped(unsigned nr)
{
	return __atomic_load_n(&loops[nr].stopped, __ATOMIC_RELAXED);
}

bool dmfs_loop_settled(unsigned nr)
{
	return !atomic_load(&loops[nr].later);
}

bool dmfs_loop_told(void)
{
	return told;
}

void dmfs_loop_wait(bool (*is_so)(void))
{
	pthread_mutex_lock(&lock);
	atomic_store(&watched, true);
	while (!is_so())
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

void dmfs_loop_stop(void)
{
	set(&told);
}

void dmfs_loop_end(unsigned nr)
{
	struct loop *l = &loops[nr];

	if (!l->session || atomic_exchange(&l->exiting, true)) /* not there, or ended before */
		return;
	fuse_session_exit(l->session);
	pthread_mutex_lock(&lock);
	while (l->threads->len) {
		struct worker *w = l->threads->pdata[l->threads->len - 1];
		struct timespec soon;

		/* It may be about to read when the signal comes: repeat until it has seen the flag. */
		pthread_kill(w->thread, WAKE_SIGNAL);
		pthread_mutex_unlock(&lock);
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 5000000;
		soon.tv_sec += soon.tv_nsec / 1000000000;
		soon.tv_nsec %= 1000000000;
		if (!pthread_timedjoin_np(w->thread, NULL, &soon)) {
			pthread_mutex_lock(&lock);
			g_ptr_array_remove(l->threads, w);
			g_free(w);
		} else {
			pthread_mutex_lock(&lock);
		}
	}
	g_ptr_array_free(l->threads, TRUE);
	pthread_mutex_unlock(&lock);
	dmfs_channels_end(&l->channels);
}
