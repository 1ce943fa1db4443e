/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Connections (serve.h). */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <dmfs/error.h>
#include <dmfs/work.h>

#include "log.h"
#include "serve.h"

#define AT_ONCE 64   /* messages of a client before it is another's turn */
#define NO_FD_MS 100 /* without descriptors to accept with */
#define MS 1000000u

struct conn {
	int fd;
	char uuid[DM_UUID_LEN];
	uint64_t luid;
	struct log_client *client; /* NULL: it has not joined, or has left */
	struct ulog ctr, dtr;      /* to be answered when it has joined, and when it has left */
	bool gone, leaving;
};

struct served {
	char *uuid;
	struct log *log;
	const struct serve_options *options;
	uint64_t grace_until_ns;
	int wake;
	GPtrArray *incoming; /* of struct conn; under logs_lock */
	GPtrArray *conns;
	GArray *flushes; /* of struct flush: to be answered after a commit */
	pthread_t thread;
};

struct flush {
	struct conn *conn;
	struct ulog in;
};

static pthread_mutex_t logs_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t log_ended = PTHREAD_COND_INITIALIZER;
static GHashTable *logs; /* uuid to struct served */
static unsigned threads;
static bool stopping, left_in_use;

/* --- messages ----------------------------------------------------------------------------- */

static void conn_free(struct conn *c)
{
	close(c->fd);
	g_free(c);
}

/* A client that does not read its answers is none. */
static void send_answer(struct conn *c, const struct ulog *in, int error, const uint8_t *data, size_t size)
{
	uint8_t message[ULOG_MAX];
	struct ulog out = *in;
	size_t len;

	out.error = error;
	out.data = data;
	out.size = size;
	len = ulog_pack(&out, message);
	if (send(c->fd, message, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
		c->gone = true;
}

/* 1: a message; 0: none; or it has gone.  What is no message is answered if that can be. */
static int receive(struct conn *c, uint8_t message[ULOG_MAX + 1], struct ulog *in)
{
	ssize_t n = recv(c->fd, message, ULOG_MAX + 1, MSG_DONTWAIT);
	const char *why;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		c->gone = true; /* also at an empty message: no client of ours sends one */
		return 0;
	}
	why = ulog_parse(message, (size_t)n, in);
	if (!why)
		return 1;
	say("a message was refused: %s", why);
	if ((size_t)n >= ULOG_HEADER) {
		struct dm_ulog_request r;

		memcpy(&r, message, ULOG_HEADER);
		*in = (struct ulog){.luid = r.luid, .seq = r.seq, .type = r.request_type};
		memcpy(in->uuid, r.uuid, sizeof in->uuid);
		in->uuid[sizeof in->uuid - 1] = '\0';
		send_answer(c, in, -EINVAL, NULL, 0);
	}
	return 0;
}

/* --- a log's thread -------------------------------------------------------------------------- */

static void join(struct served *s, struct conn *c)
{
	uint8_t data[ULOG_MAX_DATA];
	struct ulog out = c->ctr;

	if (!c->client)
		c->client = log_join(log_state_of(s->log));
	out.size = 0;
	log_answer_ctr(s->log, &out, data);
	send_answer(c, &c->ctr, 0, data, out.size);
}

static void leave(struct conn *c)
{
	if (c->client)
		log_leave(c->client);
	c->client = NULL;
}

static void take_request(struct served *s, struct conn *c, const struct ulog *in)
{
	uint8_t data[ULOG_MAX_DATA];
	struct ulog out = *in;

	if (strcmp(in->uuid, c->uuid) || in->luid != c->luid) {
		send_answer(c, in, -ENXIO, NULL, 0);
	} else if (in->type == DM_ULOG_DTR) {
		c->leaving = true;
		c->dtr = *in;
	} else if (in->type == DM_ULOG_CTR) { /* once more: it has not heard the answer */
		c->ctr = *in;
		join(s, c);
	} else if (log_request(s->log, c->client, in, &out, data)) {
		struct flush f = {c, *in};

		g_array_append_val(s->flushes, f);
	} else {
		send_answer(c, in, out.error, out.data, out.size);
	}
}

static void read_requests(struct served *s, struct conn *c)
{
	uint8_t message[ULOG_MAX + 1];
	struct ulog in;

	for (unsigned i = 0; i < AT_ONCE && !c->gone && !c->leaving && receive(c, message, &in); i++)
		take_request(s, c, &in);
}

static void commit(struct served *s)
{
	int error;

	if (!s->flushes->len)
		return;
	error = log_commit(s->log);
	if (error)
		say("%s: the log could not be written: %s", s->uuid, g_strerror(-error));
	for (unsigned i = 0; i < s->flushes->len; i++) {
		struct flush *f = &g_array_index(s->flushes, struct flush, i);

		send_answer(f->conn, &f->in, error, NULL, 0);
	}
	g_array_set_size(s->flushes, 0);
}

static void take_incoming(struct served *s)
{
	pthread_mutex_lock(&logs_lock);
	for (guint i = 0; i < s->incoming->len; i++)
		g_ptr_array_add(s->conns, s->incoming->pdata[i]);
	g_ptr_array_set_size(s->incoming, 0);
	pthread_mutex_unlock(&logs_lock);
}

/* The last has left: the log is closed before he, or anybody else, hears of it.  logs_lock held. */
static bool close_if_unused(struct served *s)
{
	if (s->conns->len || s->incoming->len)
		return false;
	g_hash_table_remove(logs, s->uuid);
	log_free(s->log);
	s->log = NULL;
	return true;
}

/* Those that go; true: nobody is left. */
static bool let_leave(struct served *s)
{
	GPtrArray *leaving = g_ptr_array_new();
	bool unused;

	for (guint i = 0; i < s->conns->len;) {
		struct conn *c = s->conns->pdata[i];

		if (!c->gone && !c->leaving) {
			i++;
			continue;
		}
		leave(c);
		g_ptr_array_add(leaving, c);
		g_ptr_array_remove_index_fast(s->conns, i);
	}
	pthread_mutex_lock(&logs_lock);
	unused = close_if_unused(s);
	pthread_mutex_unlock(&logs_lock);
	for (guint i = 0; i < leaving->len; i++) {
		struct conn *c = leaving->pdata[i];

		if (c->leaving && !c->gone)
			send_answer(c, &c->dtr, 0, NULL, 0);
		conn_free(c);
	}
	g_ptr_array_free(leaving, TRUE);
	return unused;
}

/* How long to wait; the time of grace ends by itself. */
static int next_timeout(struct served *s)
{
	uint64_t now = dm_now_ns();

	if (!s->grace_until_ns)
		return -1;
	if (now < s->grace_until_ns)
		return (int)((s->grace_until_ns - now) / MS) + 1;
	s->grace_until_ns = 0;
	log_end_grace(s->log);
	return -1;
}

static void one_round(struct served *s)
{
	g_autofree struct pollfd *p = g_new0(struct pollfd, s->conns->len + 1);
	guint n = s->conns->len;
	uint64_t count;

	p[0] = (struct pollfd){s->wake, POLLIN, 0};
	for (guint i = 0; i < n; i++)
		p[i + 1] = (struct pollfd){((struct conn *)s->conns->pdata[i])->fd, POLLIN, 0};
	if (poll(p, n + 1, next_timeout(s)) < 0)
		return;
	if (p[0].revents && read(s->wake, &count, sizeof count) < 0)
		return;
	for (guint i = 0; i < n; i++)
		if (p[i + 1].revents)
			read_requests(s, s->conns->pdata[i]);
	take_incoming(s);
	for (guint i = n; i < s->conns->len; i++)
		join(s, s->conns->pdata[i]);
	commit(s);
}

static bool is_stopping(void)
{
	bool yes;

	pthread_mutex_lock(&logs_lock);
	yes = stopping;
	pthread_mutex_unlock(&logs_lock);
	return yes;
}

/* With clients: what they have stays marked on the disk, for the next server. */
static void stop_log(struct served *s)
{
	take_incoming(s);
	for (guint i = 0; i < s->conns->len; i++)
		leave(s->conns->pdata[i]);
	pthread_mutex_lock(&logs_lock);
	left_in_use |= s->conns->len != 0;
	g_hash_table_remove(logs, s->uuid);
	pthread_mutex_unlock(&logs_lock);
	for (guint i = 0; i < s->conns->len; i++)
		conn_free(s->conns->pdata[i]);
	log_free(s->log);
}

static void *serve_log(void *data)
{
	struct served *s = data;

	for (;;) {
		one_round(s);
		if (is_stopping()) {
			stop_log(s);
			break;
		}
		if (let_leave(s))
			break;
	}
	close(s->wake);
	g_ptr_array_free(s->incoming, TRUE);
	g_ptr_array_free(s->conns, TRUE);
	g_array_free(s->flushes, TRUE);
	g_free(s->uuid);
	g_free(s);
	pthread_mutex_lock(&logs_lock);
	threads--;
	pthread_cond_broadcast(&log_ended);
	pthread_mutex_unlock(&logs_lock);
	return NULL;
}

/* --- new clients ---------------------------------------------------------------------------------- */

static void wake(struct served *s)
{
	uint64_t one = 1;

	if (write(s->wake, &one, sizeof one) < 0)
		say("eventfd: %s", g_strerror(errno));
}

/* logs_lock held. */
static struct served *start_log(const char *uuid, struct log_shape *shape, const struct serve_options *o, GError **err)
{
	struct log *log = log_new(shape, o->after_crash, err);
	struct served *s;
	int error;

	if (!log)
		return NULL;
	s = g_new0(struct served, 1);
	s->uuid = g_strdup(uuid);
	s->log = log;
	s->options = o;
	s->grace_until_ns = o->after_crash ? dm_now_ns() + o->grace_ms * (uint64_t)MS : 0;
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->incoming = g_ptr_array_new();
	s->conns = g_ptr_array_new();
	s->flushes = g_array_new(FALSE, FALSE, sizeof(struct flush));
	g_hash_table_insert(logs, s->uuid, s);
	error = pthread_create(&s->thread, NULL, serve_log, s);
	if (error)
		g_error("pthread_create: %s", g_strerror(error));
	pthread_detach(s->thread);
	threads++;
	return s;
}

/*
 * Hands a connection over to its log's thread.  Where there was none yet it is in `incoming` before the thread can
 * look.
 */
static int find_log(struct conn *c, const struct ulog *in, const struct serve_options *o, GError **err)
{
	struct log_shape shape;
	struct served *s;
	int error = log_shape_parse(in->data, in->size, &shape, err);

	if (error)
		return error;
	pthread_mutex_lock(&logs_lock);
	s = g_hash_table_lookup(logs, in->uuid);
	if (s)
		error = log_same_shape(s->log, &shape, err);
	else if (!(s = start_log(in->uuid, &shape, o, err)))
		error = -EINVAL;
	if (!error) {
		memcpy(c->uuid, in->uuid, sizeof c->uuid);
		c->luid = in->luid;
		c->ctr = *in;
		g_ptr_array_add(s->incoming, c);
		wake(s);
	}
	pthread_mutex_unlock(&logs_lock);
	g_free(shape.device);
	return error;
}

/* True: the connection is not ours any more. */
static bool introduce(struct conn *c, const struct serve_options *o)
{
	uint8_t message[ULOG_MAX + 1];
	struct ulog in;
	g_autoptr(GError) err = NULL;
	int error;

	if (!receive(c, message, &in))
		return false;
	if (in.type != DM_ULOG_CTR) {
		send_answer(c, &in, -ESRCH, NULL, 0); /* so that it tells us who it is */
		return false;
	}
	error = find_log(c, &in, o, &err);
	if (!error)
		return true;
	say("%s: %s", in.uuid, err ? err->message : g_strerror(-error));
	send_answer(c, &in, error, NULL, 0);
	return false;
}

static void drop_gone(GPtrArray *list)
{
	for (guint i = 0; i < list->len;) {
		struct conn *c = list->pdata[i];

		if (c && !c->gone) {
			i++;
			continue;
		}
		if (c)
			conn_free(c);
		g_ptr_array_remove_index_fast(list, i);
	}
}

/* False: there are no descriptors left. */
static bool take_new(int listener, GPtrArray *list)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct conn *c;

	if (fd < 0)
		return errno != EMFILE && errno != ENFILE;
	c = g_new0(struct conn, 1);
	c->fd = fd;
	g_ptr_array_add(list, c);
	return true;
}

static void stop_all(void)
{
	GHashTableIter iter;
	gpointer s;

	pthread_mutex_lock(&logs_lock);
	stopping = true;
	g_hash_table_iter_init(&iter, logs);
	while (g_hash_table_iter_next(&iter, NULL, &s))
		wake(s);
	while (threads)
		pthread_cond_wait(&log_ended, &logs_lock);
	pthread_mutex_unlock(&logs_lock);
}

bool serve(int listener, int stop, const struct serve_options *options)
{
	GPtrArray *list = g_ptr_array_new(); /* of those that have not said which log they are of */
	bool full = false;

	logs = g_hash_table_new(g_str_hash, g_str_equal);
	for (;;) {
		g_autofree struct pollfd *p = g_new0(struct pollfd, list->len + 2);
		guint n = list->len;

		p[0] = (struct pollfd){stop, POLLIN, 0};
		p[1] = (struct pollfd){listener, full ? 0 : POLLIN, 0};
		for (guint i = 0; i < n; i++)
			p[i + 2] = (struct pollfd){((struct conn *)list->pdata[i])->fd, POLLIN, 0};
		if (poll(p, n + 2, full ? NO_FD_MS : -1) < 0)
			continue;
		if (p[0].revents)
			break;
		full = p[1].revents && !take_new(listener, list);
		for (guint i = 0; i < n; i++)
			if (p[i + 2].revents && introduce(list->pdata[i], options))
				list->pdata[i] = NULL;
		drop_gone(list);
	}
	stop_all();
	for (guint i = 0; i < list->len; i++)
		conn_free(list->pdata[i]);
	g_ptr_array_free(list, TRUE);
	g_hash_table_destroy(logs);
	return left_in_use;
}
