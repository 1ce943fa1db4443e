/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file as memory (mem.h). */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "mem.h"

#include <dmfs/error.h>

struct wc_mem {
	uint8_t *map;
	size_t bytes;
	bool sync;
};

/* --- pages that are not there ---------------------------------------------------------------- */

/*
 * A copy that meets such a page gets SIGBUS, in its own thread.  The handler goes back to where the copy began; a SIGBUS of
 * any other origin is as it was before.
 */
static __thread sigjmp_buf *copying;
static struct sigaction before;

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	if (copying)
		siglongjmp(*copying, 1);
	if ((before.sa_flags & SA_SIGINFO) && before.sa_sigaction)
		before.sa_sigaction(signal, info, context);
	else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
		before.sa_handler(signal);
	else
		sigaction(signal, &before, NULL); /* and the instruction is tried again */
}

static void catch_sigbus(void)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigemptyset(&action.sa_mask);
	sigaction(SIGBUS, &action, &before);
}

/* The daemon's threads block signals; a SIGBUS that is blocked ends the process. */
static void let_sigbus_in(void)
{
	static __thread bool done;
	sigset_t set;

	if (done)
		return;
	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	done = !pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* --- what has left the CPU's caches ------------------------------------------------------------ */

#if defined(__x86_64__)
static void leave_caches(const uint8_t *p, size_t len)
{
	const uint8_t *end = p + len;

	for (p -= (uintptr_t)p % 64; p < end; p += 64)
		__builtin_ia32_clflush(p);
}

static void fence(void)
{
	__builtin_ia32_sfence();
}

#define CAN_LEAVE_CACHES true
#else
static void leave_caches(const uint8_t *p, size_t len)
{
}

static void fence(void)
{
}

#define CAN_LEAVE_CACHES false /* msync() knows how */
#endif

/* --- the map -------------------------------------------------------------------------------------- */

int wc_mem_open(struct dm_dev *dev, uint64_t bytes, struct wc_mem **out, GError **err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int fd = dev->ops->file ? dev->ops->file(dev) : -1;
	struct wc_mem *m;
	void *map = MAP_FAILED;

	if (fd < 0)
		return dm_fail(err, EOPNOTSUPP, "writecache: Persistent memory or DAX not supported on this cache device: type p "
						"maps a file into memory, this is none; use s");
	if (bytes > SIZE_MAX)
		return dm_fail(err, EFBIG, "writecache: Invalid device size: %" PRIu64 " bytes", bytes);
#ifdef MAP_SYNC
	if (CAN_LEAVE_CACHES)
		map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
#endif
	m = g_new0(struct wc_mem, 1);
	m->sync = map != MAP_FAILED;
	if (!m->sync)
		map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		int error = errno;

		g_free(m);
		return dm_fail(err, error, "writecache: Unable to map persistent memory for cache: %s", g_strerror(error));
	}
	madvise(map, bytes, MADV_DONTDUMP);
	m->map = map;
	m->bytes = bytes;
	pthread_once(&once, catch_sigbus);
	*out = m;
	return 0;
}

void wc_mem_close(struct wc_mem *m)
{
	if (!m)
		return;
	munmap(m->map, m->bytes);
	g_free(m);
}

bool wc_mem_direct(const struct wc_mem *m)
{
	return m->sync;
}

static int copy(struct wc_mem *m, uint64_t at, const struct iovec *iov, int iovcnt, bool to_mem)
{
	sigjmp_buf here;
	volatile uint64_t offset = at;

	let_sigbus_in();
	if (sigsetjmp(here, 0)) {
		copying = NULL;
		return -EIO;
	}
	copying = &here;
	for (int i = 0; i < iovcnt; i++) {
		if (to_mem)
			memcpy(m->map + offset, iov[i].iov_base, iov[i].iov_len);
		else
			memcpy(iov[i].iov_base, m->map + offset, iov[i].iov_len);
		if (to_mem && m->sync)
			leave_caches(m->map + offset, iov[i].iov_len);
		offset += iov[i].iov_len;
	}
	copying = NULL;
	if (to_mem && m->sync)
		fence();
	return 0;
}

int wc_mem_read(struct wc_mem *m, uint64_t at, const struct iovec *iov, int iovcnt)
{
	return copy(m, at, iov, iovcnt, false);
}

int wc_mem_write(struct wc_mem *m, uint64_t at, const struct iovec *iov, int iovcnt)
{
	return copy(m, at, iov, iovcnt, true);
}

int wc_mem_persist(struct wc_mem *m)
{
	if (m->sync) {
		fence();
		return 0;
	}
	return msync(m->map, m->bytes, MS_SYNC) ? -errno : 0;
}
