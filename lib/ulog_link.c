/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A userspace log's connection to its server (ulog_link.h). */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <dmfs/io.h>
#include <dmfs/log.h>
#include <dmfs/work.h>

#include "ulog_link.h"

#define MS 1000000u
#define AGAIN_MS 10 /* before a request that was answered with -EAGAIN is sent again */

struct ulog_link {
	char *path;
	char uuid[DM_UUID_LEN];
	uint64_t luid;
	unsigned timeout_ms;
	int fd, wake; /* wake: an eventfd that is readable in a hurry */
	atomic_bool hurry;
	bool silent; /* in this hurry it has not answered in time */
	unsigned late_type;
	void (*late)(void *context, const struct ulog *answer);
	void *late_context;
	GHashTable *given_up; /* seqs of such requests without an answer */
	uint8_t message[ULOG_MAX + 1];
};

static _Atomic uint32_t next_seq; /* one count for all logs, as the kernel's */
static _Atomic uint64_t next_luid = 1;

struct ulog_link *ulog_link_new(const char *path, const char *uuid, unsigned timeout_ms)
{
	struct ulog_link *l = g_new0(struct ulog_link, 1);

	l->path = g_strdup(path);
	g_strlcpy(l->uuid, uuid, sizeof l->uuid);
	l->luid = atomic_fetch_add(&next_luid, 1) | (uint64_t)getpid() << 32;
	l->timeout_ms = timeout_ms;
	l->fd = -1;
	l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->given_up = g_hash_table_new(NULL, NULL);
	return l;
}

static void disconnect(struct ulog_link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
	g_hash_table_remove_all(l->given_up);
}

void ulog_link_free(struct ulog_link *l)
{
	if (!l)
		return;
	disconnect(l);
	if (l->wake >= 0)
		close(l->wake);
	g_hash_table_destroy(l->given_up);
	g_free(l->path);
	g_free(l);
}

void ulog_link_set_late(struct ulog_link *l, unsigned type, void (*fn)(void *context, const struct ulog *answer),
			void *context)
{
	l->late_type = type;
	l->late = fn;
	l->late_context = context;
}

int ulog_link_connect(struct ulog_link *l)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int fd, error;

	if (l->fd >= 0)
		return 0;
	if (strlen(l->path) >= sizeof to.sun_path)
		return -ENAMETOOLONG;
	strcpy(to.sun_path, l->path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
		error = -errno;
		close(fd);
		return error;
	}
	l->fd = fd;
	return 0;
}

bool ulog_link_connected(const struct ulog_link *l)
{
	return l->fd >= 0;
}

/* --- waiting ---------------------------------------------------------------------------- */

void ulog_link_hurry(struct ulog_link *l, bool hurry)
{
	uint64_t one = 1;
	ssize_t n;

	if (atomic_exchange(&l->hurry, hurry) == hurry)
		return;
	do
		n = hurry ? write(l->wake, &one, sizeof one) : read(l->wake, &one, sizeof one);
	while (n < 0 && errno == EINTR);
}

bool ulog_link_in_hurry(struct ulog_link *l)
{
	return atomic_load(&l->hurry);
}

void ulog_link_pause(struct ulog_link *l, unsigned ms)
{
	struct pollfd p = {l->wake, POLLIN, 0};

	dm_block_begin();
	poll(&p, 1, (int)ms);
	dm_block_end();
}

/* Until the socket is ready, time is over (-ETIMEDOUT), or a hurry begins (-EINTR). */
static int wait_ready(struct ulog_link *l, short events, uint64_t until_ns, short *got)
{
	bool hurry = atomic_load(&l->hurry);
	struct pollfd p[2] = {{l->fd, events, 0}, {l->wake, POLLIN, 0}};
	uint64_t now = dm_now_ns();
	int n, ms = now >= until_ns ? 0 : (int)((until_ns - now + MS - 1) / MS);

	dm_block_begin();
	n = poll(p, hurry ? 1 : 2, ms);
	dm_block_end();
	*got = p[0].revents;
	if (n < 0 && errno != EINTR)
		return -errno;
	if (dm_now_ns() >= until_ns) /* before all else: it may send nonsense without end */
		return -ETIMEDOUT;
	return n > 0 && !p[0].revents ? -EINTR : 0;
}

/* --- a request -------------------------------------------------------------------------- */

static int send_message(struct ulog_link *l, const uint8_t *message, size_t len, uint64_t until_ns)
{
	for (;;) {
		short got;
		int error;

		if (send(l->fd, message, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != ENOBUFS)
			return -ENOTCONN;
		error = wait_ready(l, POLLOUT, until_ns, &got);
		if (error && error != -EINTR)
			return error;
		if (error && l->silent)
			return -ETIMEDOUT;
	}
}

/* A packet into l->message: its length; 0: none yet; -ENOTCONN: the server has gone. */
static ssize_t receive_message(struct ulog_link *l, short events)
{
	ssize_t n = recv(l->fd, l->message, sizeof l->message, MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -ENOTCONN;
	if (n > 0)
		return n;
	if (events & (POLLHUP | POLLRDHUP | POLLERR))
		return -ENOTCONN;
	dm_log_err_limit("log server %s: an empty message was dropped", l->path);
	return 0;
}

static bool is_late(struct ulog_link *l, const struct ulog *m)
{
	return l->late && m->type == l->late_type && g_hash_table_remove(l->given_up, GUINT_TO_POINTER(m->seq + 1));
}

/* Whether a message is the answer to a request. */
static bool answers(struct ulog_link *l, size_t len, const struct ulog *request, struct ulog *answer)
{
	const char *why = ulog_parse(l->message, len, answer);

	if (!why && (answer->luid != l->luid || strcmp(answer->uuid, l->uuid)))
		why = "it is for another log";
	if (why) {
		dm_log_err_limit("log server %s: a message was dropped: %s", l->path, why);
		return false;
	}
	if (answer->seq == request->seq && answer->type == request->type)
		return true;
	if (is_late(l, answer))
		l->late(l->late_context, answer);
	else
		dm_log_err_limit("log server %s: an answer to %s %u was dropped: it is late, or was never asked for", l->path,
				 ulog_name(answer->type), answer->seq);
	return false;
}

/* Not to be taken for what happens on this side. */
static int server_error(int error)
{
	return error == -ENOTCONN || error == -ETIMEDOUT || error == -EINTR ? -EREMOTEIO : error;
}

static int await_answer(struct ulog_link *l, const struct ulog *request, uint64_t until_ns, struct ulog *answer)
{
	for (;;) {
		short got;
		int error = wait_ready(l, POLLIN | POLLRDHUP, until_ns, &got);
		ssize_t n;

		if (error == -EINTR) { /* a hurry has begun */
			until_ns = MIN(until_ns, dm_now_ns() + ULOG_HURRY_MS * (uint64_t)MS);
			continue;
		}
		if (error)
			return error;
		n = got ? receive_message(l, got) : 0;
		if (n < 0)
			return (int)n;
		if (n && answers(l, (size_t)n, request, answer))
			return server_error(answer->error);
	}
}

static int one_request(struct ulog_link *l, const struct ulog *request, uint64_t until, struct ulog *answer)
{
	uint8_t message[ULOG_MAX];
	size_t len = ulog_pack(request, message);
	int error = send_message(l, message, len, until);

	return error ? error : await_answer(l, request, until, answer);
}

int ulog_link_request(struct ulog_link *l, unsigned type, const void *data, size_t size, struct ulog *answer)
{
	struct ulog request = {.luid = l->luid, .type = type, .data = data, .size = size};
	unsigned ms = atomic_load(&l->hurry) ? MIN(l->timeout_ms, ULOG_HURRY_MS) : l->timeout_ms;
	uint64_t until = dm_now_ns() + ms * (uint64_t)MS;
	int error;

	if (!atomic_load(&l->hurry))
		l->silent = false;
	if (l->fd < 0)
		return -ENOTCONN;
	if (l->silent)
		return -ETIMEDOUT;
	memcpy(request.uuid, l->uuid, sizeof request.uuid);
	for (;;) {
		request.seq = atomic_fetch_add(&next_seq, 1);
		error = one_request(l, &request, until, answer);
		if (error != -EAGAIN || atomic_load(&l->hurry))
			break;
		ulog_link_pause(l, AGAIN_MS);
	}
	if (error == -ENOTCONN)
		disconnect(l);
	if (error == -ETIMEDOUT && atomic_load(&l->hurry))
		l->silent = true;
	if (error == -ETIMEDOUT && type == l->late_type)
		g_hash_table_add(l->given_up, GUINT_TO_POINTER(request.seq + 1));
	return error;
}
