/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * AF_ALG sockets where the kernel has none, or not this algorithm: the calls on them, as libc names them.
 *
 *   socket, bind           a socket that is nothing else yet stands for the algorithm
 *   setsockopt             ALG_SET_KEY, ALG_SET_AEAD_AUTHSIZE
 *   accept                 one end of a pair: what sendmsg() gives is worked on at once, and the result put into the
 *                          other end, where read() finds it
 *   close                  wipes the key
 *
 * A descriptor is known by its number and inode, so one that was closed behind our back is not taken for another.
 * While there is no such socket each call costs one look at a counter.  The kernel's own sockets are never touched.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_alg.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alg.h"

#define PUBLIC __attribute__((visibility("default")))
#define MAX_MESSAGE 65536u /* bytes; the kernel takes 16 pages at once, too */

#define NEXT(name)                                                                                                     \
	({                                                                                                             \
		static __typeof__(&name) next_##name;                                                                  \
		if (!next_##name)                                                                                      \
			next_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                      \
		next_##name;                                                                                           \
	})

/* --- which descriptors ----------------------------------------------------------------------------- */

struct alg_socket {
	struct alg_socket *next;
	int fd;
	ino_t ino;
	struct alg *alg; /* NULL: not bound */
	int peer;	 /* of one that was accepted, else -1 */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct alg_socket *sockets; /* lock */
static atomic_uint n_sockets;

static void socket_free(struct alg_socket *s)
{
	alg_free(s->alg);
	if (s->peer >= 0)
		NEXT(close)(s->peer);
	free(s);
	atomic_fetch_sub(&n_sockets, 1);
}

/* The entry of fd, or NULL; one whose descriptor has become another file is forgotten.  lock is held. */
static struct alg_socket **find(int fd)
{
	struct stat st;

	for (struct alg_socket **p = &sockets; *p; p = &(*p)->next) {
		struct alg_socket *s = *p;

		if (s->fd != fd)
			continue;
		if (!fstat(fd, &st) && S_ISSOCK(st.st_mode) && st.st_ino == s->ino)
			return p;
		*p = s->next;
		socket_free(s);
		return NULL;
	}
	return NULL;
}

/* The entry with the lock held, or NULL without it. */
static struct alg_socket *get(int fd)
{
	struct alg_socket **p;

	if (!atomic_load(&n_sockets))
		return NULL;
	pthread_mutex_lock(&lock);
	p = find(fd);
	if (!p)
		pthread_mutex_unlock(&lock);
	return p ? *p : NULL;
}

/* Takes alg and peer, also when it fails; then fd is as before. */
static int add(int fd, struct alg *alg, int peer)
{
	struct alg_socket *s = calloc(1, sizeof *s);
	struct stat st;

	if (!s || fstat(fd, &st)) {
		free(s);
		alg_free(alg);
		if (peer >= 0)
			NEXT(close)(peer);
		errno = ENOMEM;
		return -1;
	}
	*s = (struct alg_socket){.fd = fd, .ino = st.st_ino, .alg = alg, .peer = peer};
	pthread_mutex_lock(&lock);
	find(fd);
	s->next = sockets;
	sockets = s;
	atomic_fetch_add(&n_sockets, 1);
	pthread_mutex_unlock(&lock);
	return 0;
}

static void forget(int fd)
{
	struct alg_socket **p, *s;

	pthread_mutex_lock(&lock);
	p = find(fd);
	if (p) {
		s = *p;
		*p = s->next;
		socket_free(s);
	}
	pthread_mutex_unlock(&lock);
}

PUBLIC int close(int fd)
{
	int before = errno;

	if (atomic_load(&n_sockets)) {
		forget(fd);
		errno = before;
	}
	return NEXT(close)(fd);
}

/* --- making one ------------------------------------------------------------------------------------ */

static int make_socket(int type)
{
	int fd = NEXT(socket)(AF_UNIX, type, 0);

	if (fd >= 0 && add(fd, NULL, -1)) {
		NEXT(close)(fd);
		return -1;
	}
	return fd;
}

PUBLIC int socket(int domain, int type, int protocol)
{
	int fd = NEXT(socket)(domain, type, protocol);

	if (fd >= 0 || domain != AF_ALG || (type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) != SOCK_SEQPACKET)
		return fd;
	return errno == EAFNOSUPPORT || errno == EPERM || errno == EACCES ? make_socket(type) : fd;
}

/* The kernel has sockets, but no such algorithm: ours takes the descriptor's place. */
static int replace(int fd, struct alg *alg)
{
	int flags = fcntl(fd, F_GETFD), own = NEXT(socket)(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), r;

	if (own < 0) {
		alg_free(alg);
		return -1;
	}
	r = dup3(own, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
	NEXT(close)(own);
	if (r >= 0)
		return add(fd, alg, -1);
	alg_free(alg);
	return -1;
}

static struct alg *look_up(const struct sockaddr *addr, socklen_t len)
{
	struct sockaddr_alg sa;

	if (len < sizeof sa) {
		errno = EINVAL;
		return NULL;
	}
	memcpy(&sa, addr, sizeof sa);
	sa.salg_type[sizeof sa.salg_type - 1] = sa.salg_name[sizeof sa.salg_name - 1] = '\0';
	return alg_new((const char *)sa.salg_type, (const char *)sa.salg_name);
}

static int bind_ours(struct alg_socket *s, const struct sockaddr *addr, socklen_t len)
{
	struct alg *alg = look_up(addr, len);

	if (alg) {
		alg_free(s->alg);
		s->alg = alg;
	}
	pthread_mutex_unlock(&lock);
	return alg ? 0 : -1;
}

PUBLIC int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct alg_socket *s;
	struct alg *alg;
	int r;

	if (!addr || len < sizeof addr->sa_family || addr->sa_family != AF_ALG)
		return NEXT(bind)(fd, addr, len);
	s = get(fd);
	if (s)
		return bind_ours(s, addr, len);
	r = NEXT(bind)(fd, addr, len);
	if (!r || errno != ENOENT)
		return r;
	alg = look_up(addr, len);
	return alg ? replace(fd, alg) : -1;
}

/* --- using it -------------------------------------------------------------------------------------- */

static int set_option(struct alg_socket *s, int name, const void *value, socklen_t len)
{
	if (!s->alg)
		return -EINVAL;
	if (name == ALG_SET_KEY)
		return alg_set_key(s->alg, value, len);
	if (name == ALG_SET_AEAD_AUTHSIZE)
		return alg_has_tag(s->alg, len) ? 0 : -EINVAL;
	return -ENOPROTOOPT;
}

PUBLIC int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct alg_socket *s = level == SOL_ALG ? get(fd) : NULL;
	int r;

	if (!s)
		return NEXT(setsockopt)(fd, level, name, value, len);
	r = set_option(s, name, value, len);
	pthread_mutex_unlock(&lock);
	errno = r ? -r : errno;
	return r ? -1 : 0;
}

static int accept_ours(struct alg_socket *s, int flags)
{
	struct alg *alg = s->alg ? alg_clone(s->alg) : NULL;
	int pair[2], size = MAX_MESSAGE;

	if (!alg)
		errno = s->alg ? ENOMEM : EINVAL;
	pthread_mutex_unlock(&lock);
	if (!alg)
		return -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		alg_free(alg);
		return -1;
	}
	/* the system doubles it for its own needs */
	NEXT(setsockopt)(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	if ((!(flags & SOCK_CLOEXEC) && fcntl(pair[0], F_SETFD, 0)) ||
	    ((flags & SOCK_NONBLOCK) && fcntl(pair[0], F_SETFL, O_NONBLOCK)) || add(pair[0], alg, pair[1])) {
		NEXT(close)(pair[0]);
		return -1;
	}
	return pair[0];
}

PUBLIC int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	struct alg_socket *s = get(fd);

	return s ? accept_ours(s, flags) : NEXT(accept4)(fd, addr, len, flags);
}

PUBLIC int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	struct alg_socket *s = get(fd);

	return s ? accept_ours(s, 0) : NEXT(accept)(fd, addr, len);
}

struct request {
	uint32_t op;
	const unsigned char *iv;
	uint32_t iv_len;
};

static int read_control(const struct msghdr *msg, struct request *rq)
{
	*rq = (struct request){.op = UINT32_MAX};
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, c)) {
		size_t len = c->cmsg_len - CMSG_LEN(0);
		const unsigned char *data = CMSG_DATA(c);

		if (c->cmsg_len < CMSG_LEN(0) || c->cmsg_level != SOL_ALG)
			return -EINVAL;
		if (c->cmsg_type == ALG_SET_OP && len >= sizeof rq->op) {
			memcpy(&rq->op, data, sizeof rq->op);
		} else if (c->cmsg_type == ALG_SET_IV && len >= sizeof rq->iv_len) {
			memcpy(&rq->iv_len, data, sizeof rq->iv_len);
			rq->iv = data + sizeof rq->iv_len;
			if (rq->iv_len > len - sizeof rq->iv_len)
				return -EINVAL;
		} else {
			return -EINVAL;
		}
	}
	return rq->op == ALG_OP_ENCRYPT || rq->op == ALG_OP_DECRYPT ? 0 : -EINVAL;
}

/* All data, copied; NULL: too much of it, or no memory. */
static unsigned char *gather(const struct msghdr *msg, size_t *len)
{
	unsigned char *all, *to;

	*len = 0;
	for (size_t i = 0; i < msg->msg_iovlen; i++)
		if (msg->msg_iov[i].iov_len > MAX_MESSAGE - *len) {
			errno = EMSGSIZE;
			return NULL;
		} else {
			*len += msg->msg_iov[i].iov_len;
		}
	all = to = malloc(*len + 1);
	for (size_t i = 0; all && i < msg->msg_iovlen; i++) {
		memcpy(to, msg->msg_iov[i].iov_base, msg->msg_iov[i].iov_len);
		to += msg->msg_iov[i].iov_len;
	}
	return all;
}

static ssize_t work(struct alg_socket *s, const struct msghdr *msg)
{
	struct request rq;
	size_t len;
	unsigned char *data;
	int r;

	if (s->peer < 0) {
		errno = EOPNOTSUPP;
		return -1;
	}
	data = gather(msg, &len);
	if (!data)
		return -1;
	r = read_control(msg, &rq);
	if (!r)
		r = alg_crypt(s->alg, rq.op == ALG_OP_ENCRYPT, rq.iv, rq.iv_len, data, len);
	if (!r && send(s->peer, data, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
		r = -EAGAIN; /* results were not read */
	explicit_bzero(data, len);
	free(data);
	errno = r ? -r : errno;
	return r ? -1 : (ssize_t)len;
}

PUBLIC ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	struct alg_socket *s = get(fd);
	ssize_t n;

	if (!s)
		return NEXT(sendmsg)(fd, msg, flags);
	n = work(s, msg);
	pthread_mutex_unlock(&lock);
	return n;
}
