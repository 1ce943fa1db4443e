/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors of /dev/fuse (channel.h), and the system calls on them. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/fuse.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "channel.h"

static _Thread_local struct dmfs_channel *current;

struct dmfs_channel *dmfs_channel_new(struct dmfs_channels *all)
{
	struct dmfs_channel *c;
	uint32_t source = (uint32_t)all->fd;
	int fd;

	pthread_mutex_lock(&all->lock);
	c = all->spare;
	if (c) {
		all->spare = c->next;
		all->n_spare--;
	}
	pthread_mutex_unlock(&all->lock);
	if (c) {
		atomic_store(&c->refs, 1);
		return c;
	}
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd >= 0 && ioctl(fd, FUSE_DEV_IOC_CLONE, &source) < 0) {
		close(fd);
		fd = -1;
	}
	if (fd < 0) /* the session's own queue then */
		fd = fcntl(all->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	c = g_new0(struct dmfs_channel, 1);
	c->all = all;
	c->fd = fd;
	atomic_init(&c->refs, 1);
	return c;
}

struct dmfs_channel *dmfs_channel_get(struct dmfs_channel *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

void dmfs_channel_put(struct dmfs_channel *c)
{
	struct dmfs_channels *all;

	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	all = c->all;
	pthread_mutex_lock(&all->lock);
	if (all->n_spare < all->most_spare) {
		c->next = all->spare;
		all->spare = c;
		all->n_spare++;
		c = NULL;
	}
	pthread_mutex_unlock(&all->lock);
	if (!c)
		return;
	close(c->fd);
	g_free(c);
}

struct dmfs_channel *dmfs_channel_now(void)
{
	return current;
}

struct dmfs_channel *dmfs_channel_use(struct dmfs_channel *c)
{
	struct dmfs_channel *before = current;

	current = c;
	return before;
}

/*
 * The system calls themselves: libc's are cancellation points, and cost two atomic operations each in a program with
 * threads.  None of ours is cancelled.
 *
 * ThreadSanitizer needs libc's: only through them it sees that what a request did comes before what the kernel sends
 * after the answer, a RELEASE or a FORGET.
 */
#if defined(__has_feature)
#define WITH_TSAN __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#else
#define WITH_TSAN 0
#endif

/* What is no answer, but a notification to another session than the request's, goes by that one's own descriptor. */
static ssize_t custom_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	int to = current && current->all->owner == userdata ? current->fd : fd;

	return WITH_TSAN ? writev(to, iov, count) : syscall(SYS_writev, to, iov, count);
}

void dmfs_channel_answer(struct dmfs_channel *c, uint64_t unique, const void *data, size_t len)
{
	struct fuse_out_header out = {.len = (uint32_t)(sizeof out + len), .unique = unique};
	struct iovec iov[2] = {{&out, sizeof out}, {(void *)data, len}};

	if ((WITH_TSAN ? writev(c->fd, iov, 2) : syscall(SYS_writev, c->fd, iov, 2)) < 0)
		return; /* whoever asked is gone */
}

static ssize_t read_fd(int fd, void *buf, size_t len)
{
	return WITH_TSAN ? read(fd, buf, len) : syscall(SYS_read, fd, buf, len);
}

static ssize_t custom_read(int fd, void *buf, size_t len, void *userdata)
{
	return read_fd(fd, buf, len);
}

ssize_t dmfs_channel_read(struct dmfs_channel *c, void *buf, size_t len)
{
	return read_fd(c->fd, buf, len);
}

int dmfs_channels_init(struct dmfs_channels *all, struct fuse_session *session, void *owner, unsigned most_spare)
{
	static const struct fuse_custom_io io = {.writev = custom_writev, .read = custom_read};
	int error;

	all->fd = fcntl(fuse_session_fd(session), F_DUPFD_CLOEXEC, 0);
	if (all->fd < 0)
		return -errno;
	all->owner = owner;
	all->most_spare = most_spare;
	pthread_mutex_init(&all->lock, NULL);
	error = fuse_session_custom_io(session, &io, fuse_session_fd(session));
	return !error ? 0 : error < -1 ? error : -EINVAL;
}

void dmfs_channels_end(struct dmfs_channels *all)
{
	struct dmfs_channel *list;

	pthread_mutex_lock(&all->lock);
	all->most_spare = 0;
	list = all->spare;
	all->spare = NULL;
	pthread_mutex_unlock(&all->lock);
	close(all->fd);
	for (struct dmfs_channel *c; (c = list); g_free(c)) {
		list = c->next;
		close(c->fd);
	}
}
