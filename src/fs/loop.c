/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that read requests from /dev/fuse (loop.h). */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "loop.h"

#include <dmfs/io.h>
#include <dmfs/log.h>
#include <dmfs/work.h>

#define MAX_WORKERS 256
#define PAGE 4096
#define HUGE_PAGE ((size_t)2 << 20)
#define IN_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define FREE_BUFS 8
#define WAKE_SIGNAL SIGUSR2

struct channel {
	int fd;
	struct channel *next;
};

static struct {
	struct fuse_session *se;
	unsigned target; /* workers that should not be waiting */
	atomic_uint workers, blocked;
	atomic_bool exiting;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool stopped;             /* unmounted, or told to */
	struct channel *channels; /* free ones */
	struct dmfs_buf *bufs;    /* free ones */
	unsigned n_bufs;
	atomic_uint later;  /* requests to be answered by somebody else; made less under lock */
	GPtrArray *threads; /* running: struct worker * */
} loop = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

struct worker {
	pthread_t thread;
	struct channel *channel;
	struct dmfs_buf *buf;
	unsigned requests, timed, at_once; /* see set_policy() */
	bool batch;
};

static _Thread_local struct worker *self;
static _Thread_local int answer_channel = -1;

/* --- buffers ---------------------------------------------------------------------- */

/* Small pages: only what is touched takes memory. */
static void buf_map(struct dmfs_buf *buf)
{
	buf->map_size = PAGE + DMFS_DATA_ROOM;
	buf->map = mmap(NULL, buf->map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buf->map == MAP_FAILED)
		g_error("no memory for a request buffer");
	buf->data = buf->map + PAGE;
}

/*
 * One huge page, for a worker that has seen a large request: copies to and from
 * it miss the TLB no more.  Where there are none it is small pages again.
 */
static void buf_map_huge(struct dmfs_buf *buf)
{
	char *map = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *page;

	if (map == MAP_FAILED)
		return;
	page = (char *)(((uintptr_t)map + HUGE_PAGE - 1) & ~((uintptr_t)HUGE_PAGE - 1));
	madvise(page, HUGE_PAGE, MADV_HUGEPAGE);
	munmap(buf->map, buf->map_size);
	buf->map = map;
	buf->map_size = 2 * HUGE_PAGE;
	buf->data = page + PAGE;
}

G_STATIC_ASSERT(PAGE + DMFS_DATA_ROOM <= HUGE_PAGE);

static struct dmfs_buf *buf_new(void)
{
	struct dmfs_buf *buf;

	pthread_mutex_lock(&loop.lock);
	buf = loop.bufs;
	if (buf) {
		loop.bufs = buf->next;
		loop.n_bufs--;
	}
	pthread_mutex_unlock(&loop.lock);
	if (buf)
		return buf;
	buf = g_new0(struct dmfs_buf, 1);
	buf_map(buf);
	return buf;
}

static void buf_free(struct dmfs_buf *buf)
{
	munmap(buf->map, buf->map_size);
	g_free(buf);
}

/* Puts a buffer among the free ones, loop.lock held; NULL: it is there, else there are enough. */
static struct dmfs_buf *put_buf(struct dmfs_buf *buf)
{
	if (loop.n_bufs >= FREE_BUFS)
		return buf;
	buf->next = loop.bufs;
	loop.bufs = buf;
	loop.n_bufs++;
	return NULL;
}

static void answered_locked(void)
{
	if (atomic_fetch_sub(&loop.later, 1) == 1)
		pthread_cond_broadcast(&loop.changed);
}

void dmfs_loop_release(struct dmfs_buf *buf)
{
	pthread_mutex_lock(&loop.lock);
	buf = put_buf(buf);
	answered_locked();
	pthread_mutex_unlock(&loop.lock);
	if (buf)
		buf_free(buf);
}

void dmfs_loop_later(void)
{
	atomic_fetch_add(&loop.later, 1);
}

void dmfs_loop_answered(void)
{
	pthread_mutex_lock(&loop.lock);
	answered_locked();
	pthread_mutex_unlock(&loop.lock);
}

void dmfs_loop_settle(void)
{
	pthread_mutex_lock(&loop.lock);
	while (atomic_load(&loop.later))
		pthread_cond_wait(&loop.changed, &loop.lock);
	pthread_mutex_unlock(&loop.lock);
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

void dmfs_loop_keep(void)
{
	dmfs_loop_later();
	self->buf = NULL;
}

/* --- channels ------------------------------------------------------------------------ */

static struct channel *channel_new(void)
{
	struct channel *c;
	int session_fd = fuse_session_fd(loop.se), fd;
	uint32_t source = (uint32_t)session_fd;

	pthread_mutex_lock(&loop.lock);
	c = loop.channels;
	if (c)
		loop.channels = c->next;
	pthread_mutex_unlock(&loop.lock);
	if (c)
		return c;
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd >= 0 && ioctl(fd, FUSE_DEV_IOC_CLONE, &source) < 0) {
		close(fd);
		fd = -1;
	}
	if (fd < 0) /* the session's own queue then */
		fd = fcntl(session_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	c = g_new0(struct channel, 1);
	c->fd = fd;
	return c;
}

/* Requests that came by it may still be under way, so it is kept for the next worker. */
static void channel_free(struct channel *c)
{
	pthread_mutex_lock(&loop.lock);
	c->next = loop.channels;
	loop.channels = c;
	pthread_mutex_unlock(&loop.lock);
}

int dmfs_loop_channel(void)
{
	return answer_channel;
}

int dmfs_loop_answer(int channel)
{
	int before = answer_channel;

	answer_channel = channel;
	return before;
}

/*
 * The system calls themselves: libc's are cancellation points, and cost two
 * atomic operations each in a program with threads.  None of ours is cancelled.
 *
 * ThreadSanitizer needs libc's: only through them it sees that what a request
 * did comes before what the kernel sends after the answer, a RELEASE or a FORGET.
 */
#if defined(__has_feature)
#define WITH_TSAN __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#else
#define WITH_TSAN 0
#endif

static ssize_t custom_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	int to = answer_channel >= 0 ? answer_channel : fd;

	return WITH_TSAN ? writev(to, iov, count) : syscall(SYS_writev, to, iov, count);
}

static ssize_t custom_read(int fd, void *buf, size_t len, void *userdata)
{
	return WITH_TSAN ? read(fd, buf, len) : syscall(SYS_read, fd, buf, len);
}

/* --- workers --------------------------------------------------------------------------- */

static void *worker_main(void *arg);

static void start_worker(void)
{
	struct worker *w = g_new0(struct worker, 1);
	pthread_attr_t attr;
	sigset_t all, old;
	int error = ENFILE;

	w->channel = channel_new();
	if (w->channel) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, 1024 * 1024);
		sigfillset(&all);
		sigdelset(&all, WAKE_SIGNAL);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		pthread_mutex_lock(&loop.lock);
		error = pthread_create(&w->thread, &attr, worker_main, w);
		if (!error)
			g_ptr_array_add(loop.threads, w);
		pthread_mutex_unlock(&loop.lock);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		pthread_attr_destroy(&attr);
	}
	if (error) {
		atomic_fetch_sub(&loop.workers, 1);
		dm_log_err_limit("no further thread for requests: %s", g_strerror(error));
		if (w->channel)
			channel_free(w->channel);
		g_free(w);
	}
}

static void add_worker_if_few(void)
{
	unsigned n = atomic_load(&loop.workers);

	while (n < atomic_load(&loop.blocked) + loop.target && n < MAX_WORKERS && !atomic_load(&loop.exiting))
		if (atomic_compare_exchange_weak(&loop.workers, &n, n + 1)) {
			start_worker();
			return;
		}
}

static void block_begin(void *unused)
{
	atomic_fetch_add(&loop.blocked, 1);
	add_worker_if_few();
}

static void block_end(void *unused)
{
	atomic_fetch_sub(&loop.blocked, 1);
}

/* Whether this worker is one too many; if so it does not count any more. */
static bool surplus(void)
{
	unsigned n = atomic_load_explicit(&loop.workers, memory_order_relaxed);

	while (n > atomic_load_explicit(&loop.blocked, memory_order_relaxed) + 2 * loop.target)
		if (atomic_compare_exchange_weak(&loop.workers, &n, n - 1))
			return true;
	return false;
}

static void stopped(void)
{
	pthread_mutex_lock(&loop.lock);
	loop.stopped = true;
	pthread_cond_broadcast(&loop.changed);
	pthread_mutex_unlock(&loop.lock);
}

/*
 * With several requests at a time a worker that wakes had better not push
 * whoever woke it off the CPU (SCHED_BATCH): the submitter gets to send more of
 * them first, and a request costs fewer switches.  With one at a time it had better.
 * Which it is shows in how often a request is there already when a worker asks for one:
 * of every so many one is timed.  Only in place of the default policy.
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

/* Reads and handles one request; false at the end. */
static bool one_request(struct worker *w)
{
	struct fuse_buf in = {0};
	uint64_t asked = 0;
	ssize_t n;

	if (!w->buf)
		w->buf = buf_new();
	if (w->buf->large && !w->buf->huge) {
		w->buf->huge = true;
		buf_map_huge(w->buf);
	}
	in.mem = w->buf->data - IN_HEADER;
	if (++w->requests % TIMED_EVERY == 0)
		asked = dm_now_ns();
	n = custom_read(w->channel->fd, in.mem, IN_HEADER + DMFS_DATA_ROOM, NULL);
	if (asked)
		count_wait(w, dm_now_ns() - asked);
	if (atomic_load_explicit(&loop.exiting, memory_order_relaxed) || fuse_session_exited(loop.se))
		return false;
	if (n < 0) {
		if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
			return true;
		if (errno != ENODEV)
			dm_log_err("reading from /dev/fuse: %s", g_strerror(errno));
		stopped();
		return false;
	}
	in.size = (size_t)n;
	if (n >= DMFS_LARGE)
		dmfs_loop_large();
	fuse_session_process_buf(loop.se, &in);
	return true;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	bool leave_early = false;

	self = w;
	answer_channel = w->channel->fd;
	dm_block_set_hooks(block_begin, block_end, NULL);
	while (!leave_early && one_request(w))
		leave_early = surplus();
	channel_free(w->channel);
	pthread_mutex_lock(&loop.lock);
	w->buf = w->buf ? put_buf(w->buf) : NULL;
	if (w->buf)
		buf_free(w->buf);
	if (leave_early && !atomic_load(&loop.exiting)) {
		g_ptr_array_remove_fast(loop.threads, w);
		pthread_detach(w->thread);
		g_free(w);
	}
	pthread_mutex_unlock(&loop.lock);
	return NULL;
}

/* --- start and end ------------------------------------------------------------------------ */

static void wake_handler(int sig)
{
}

int dmfs_loop_start(struct fuse_session *se, unsigned threads)
{
	static const struct fuse_custom_io io = {.writev = custom_writev, .read = custom_read};
	struct sigaction wake = {.sa_handler = wake_handler};
	int error;

	loop.se = se;
	loop.target = threads;
	loop.threads = g_ptr_array_new();
	sigaction(WAKE_SIGNAL, &wake, NULL);
	error = fuse_session_custom_io(se, &io, fuse_session_fd(se));
	if (error)
		return error < -1 ? error : -EINVAL;
	for (unsigned i = 0; i < threads; i++) {
		atomic_fetch_add(&loop.workers, 1);
		start_worker();
	}
	return loop.threads->len ? 0 : -EAGAIN;
}

void dmfs_loop_wait(void)
{
	pthread_mutex_lock(&loop.lock);
	while (!loop.stopped)
		pthread_cond_wait(&loop.changed, &loop.lock);
	pthread_mutex_unlock(&loop.lock);
}

void dmfs_loop_stop(void)
{
	stopped();
}

void dmfs_loop_end(void)
{
	atomic_store(&loop.exiting, true);
	fuse_session_exit(loop.se);
	pthread_mutex_lock(&loop.lock);
	while (loop.threads->len) {
		struct worker *w = loop.threads->pdata[loop.threads->len - 1];
		struct timespec soon;

		/* It may be about to read when the signal comes: repeat until it has seen the flag. */
		pthread_kill(w->thread, WAKE_SIGNAL);
		pthread_mutex_unlock(&loop.lock);
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 5000000;
		soon.tv_sec += soon.tv_nsec / 1000000000;
		soon.tv_nsec %= 1000000000;
		if (!pthread_timedjoin_np(w->thread, NULL, &soon)) {
			pthread_mutex_lock(&loop.lock);
			g_ptr_array_remove(loop.threads, w);
			g_free(w);
		} else {
			pthread_mutex_lock(&loop.lock);
		}
	}
	for (struct channel *c; (c = loop.channels); g_free(c)) {
		loop.channels = c->next;
		close(c->fd);
	}
	for (struct dmfs_buf *b; (b = loop.bufs);) {
		loop.bufs = b->next;
		buf_free(b);
	}
	loop.n_bufs = FREE_BUFS;
	g_ptr_array_free(loop.threads, TRUE);
	pthread_mutex_unlock(&loop.lock);
}
