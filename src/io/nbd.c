/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stores on NBD servers: nbd://, nbds://, nbd+unix://, nbds+unix://, through
 * libnbd.
 *
 * A store has one connection, or up to CONNECTIONS if the server says that a
 * FLUSH on one covers all (multi-conn).  A connection is a thread that sleeps in poll(2)
 * on its socket and an eventfd.  Who submits a request sends it himself, if the idlest connection has room and
 * its lock is free; else it waits in the store's list, from which a connection that has room takes.  It keeps what
 * it has until the answer, which its thread reads.
 *
 * A connection that breaks puts what it had back at the head of the list (all
 * requests may be repeated) and connects again, every RETRY_MS.  A request that is
 * older than the timeout fails with EIO, and while a server has been away that long new ones
 * fail at once.  A bio with DM_FAILFAST does not wait for a server: it fails with ENOTCONN when the last connection
 * breaks, or while there is none.
 *
 * What waits in the list and has not changed anything, a read or what was never sent, ends with EINTR when its origin is
 * cancelled (hold.h).
 *
 * Locks: store->lock guards the list and what is known of the server; a connection's
 * lock, taken before it, its libnbd handle and what it has.  Nobody ends a request with a lock, nor waits for a
 * connection's but its own thread.
 */
#include "opener.h"
#include "store.h"

#include <dmfs/error.h>
#include <dmfs/hold.h>
#include <dmfs/log.h>

unsigned dm_nbd_timeout_ms = 60000;

#ifdef HAVE_LIBNBD

#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "nbd.h"

#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <dmfs/work.h>

#define CONNECTIONS 4
#define IN_FLIGHT 64u /* of one connection */
#define RETRY_MS 500
#define MAX_DATA (16u << 20)
#define MAX_RANGE (1u << 30)
#define NS_PER_MS UINT64_C(1000000)

struct nbd_store;

enum kind { BIO, EXTENT };

/* A bio, or a question for an extent, on its way. */
struct request {
	enum kind kind;
	struct dm_bio *bio;
	uint64_t offset, bytes; /* what is left, in bytes */
	size_t chunk;           /* of that, what is under way */
	char *bounce;           /* the data of a bio with several pieces */
	uint64_t deadline_ns;
	bool flush_after, answered;
	bool sent; /* at least once, or a part of it */
	int error;
	GList link;
	struct dm_held held; /* while it waits: for an origin that is dying */
	bool is_held, waits; /* under store->lock */
	/* EXTENT: who asks waits for `done`. */
	bool done, data;
	pthread_cond_t *wake;
};

struct connection {
	struct nbd_store *store;
	pthread_t thread;
	int wake_fd;
	bool started;
	pthread_mutex_t lock; /* for all below */
	struct nbd_handle *h; /* NULL: not connected */
	atomic_bool ready;
	uint64_t poll_until_ns; /* when its thread looks at the deadlines again, UINT64_MAX: never */
	GQueue taken;     /* requests it has */
	GQueue over;      /* requests to be ended; its own thread's */
	atomic_uint load; /* how many, for others to see */
	uint64_t retry_ns;
};

struct nbd_store {
	struct dm_dev dev;
	char *uri;
	struct dm_opener who; /* who connects; its process may end, so later it is without supplementary groups */
	pthread_mutex_t lock;
	GQueue waiting;
	struct connection conns[CONNECTIONS];
	unsigned n_conns, n_ready;
	bool ending, can_flush, can_fua, can_trim, can_zero, can_extents;
	uint64_t bytes, away_since_ns; /* 0: some connection is ready */
	struct dm_limits limits;
};

static struct nbd_store *to_store(struct dm_dev *dev)
{
	return (struct nbd_store *)dev;
}

static void kick(struct connection *c)
{
	uint64_t one = 1;

	if (write(c->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
		dm_log_err_limit("nbd: waking a connection: %s", g_strerror(errno));
}

/* --- the end of a request ---------------------------------------------------------------- */

/* Without the lock. */
static void request_end(struct nbd_store *s, struct request *r, int error)
{
	struct dm_bio *bio = r->bio;

	if (r->kind == EXTENT) {
		pthread_mutex_lock(&s->lock);
		r->error = error;
		r->done = true;
		pthread_cond_signal(r->wake);
		pthread_mutex_unlock(&s->lock);
		return;
	}
	if (!error && bio->op == DM_READ && r->bounce)
		dm_iov_write(bio->iov, bio->iovcnt, 0, r->bounce, bio->sectors << DM_SECTOR_SHIFT);
	g_free(r->bounce);
	g_free(r);
	dm_bio_end(bio, error);
}

/* Ends what is over; without the locks. */
static void end_over(struct connection *c)
{
	GList *l;

	while ((l = g_queue_pop_head_link(&c->over))) {
		struct request *r = l->data;

		request_end(c->store, r, r->error);
	}
}

/* --- the store's list; store->lock held ----------------------------------------------------- */

static void cancel_waiting(struct dm_held *held)
{
	struct request *r = container_of(held, struct request, held);
	struct nbd_store *s = held->keeper;

	pthread_mutex_lock(&s->lock);
	if (r->waits)
		g_queue_unlink(&s->waiting, &r->link);
	pthread_mutex_unlock(&s->lock);
	request_end(s, r, -EINTR);
}

/*
 * 0, or -EINTR: whoever asked is dying.  A write that was sent may have been done, or not: it is repeated
 * until that is known, whoever dies.
 */
static int put_in(struct nbd_store *s, struct request *r, bool first)
{
	if (r->kind == BIO && !(r->sent && dm_op_is_write(r->bio->op))) {
		int error;

		r->held.keeper = s;
		error = dm_held_begin(&r->held, r->bio, cancel_waiting);
		if (error)
			return error;
		r->is_held = true;
	}
	r->waits = true;
	if (first)
		g_queue_push_head_link(&s->waiting, &r->link);
	else
		g_queue_push_tail_link(&s->waiting, &r->link);
	return 0;
}

/* False: it is cancel_waiting()'s. */
static bool take_out(struct nbd_store *s, struct request *r)
{
	g_queue_unlink(&s->waiting, &r->link);
	r->waits = false;
	if (!r->is_held)
		return true;
	r->is_held = false;
	return dm_held_end(&r->held);
}

/* The first, or NULL. */
static struct request *take_first(struct nbd_store *s)
{
	while (s->waiting.head) {
		struct request *r = s->waiting.head->data;

		if (take_out(s, r))
			return r;
	}
	return NULL;
}

/* One that a connection has had goes to the head of the list, or is over. */
static void put_back(struct connection *c, struct request *r)
{
	struct nbd_store *s = c->store;

	pthread_mutex_lock(&s->lock);
	r->error = put_in(s, r, true);
	pthread_mutex_unlock(&s->lock);
	if (r->error)
		g_queue_push_tail_link(&c->over, &r->link);
}

/* --- a request's parts ------------------------------------------------------------------------ */

/* A part of a request was answered: go on with the rest, or it is over. */
static void part_done(struct connection *c, struct request *r)
{
	g_queue_unlink(&c->taken, &r->link);
	atomic_store(&c->load, c->taken.length);
	r->answered = false;
	if (!r->error) {
		r->offset += r->chunk;
		r->bytes -= r->chunk;
		if (r->bytes && r->kind == BIO && !dm_op_has_data(r->bio->op))
			r->error = dm_bio_stop_long(r->bio);
	}
	if (!r->error && r->kind == BIO && (r->bytes || r->flush_after)) {
		put_back(c, r);
		return;
	}
	g_queue_push_tail_link(&c->over, &r->link);
}

/* libnbd's: an answer, or the connection broke (then conn_broken() takes it back). */
static int completed(void *data, int *error)
{
	struct request *r = data;

	r->error = *error ? -*error : 0;
	r->answered = true;
	return 1; /* libnbd may forget the command */
}

static int extent_answer(void *data, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
	struct request *r = data;
	uint64_t len = 0;

	if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) || *error || n < 2)
		return 0;
	r->data = !(entries[1] & 2 /* zero */);
	for (size_t i = 0; i + 1 < n && r->data == !(entries[i + 1] & 2); i += 2)
		len += entries[i];
	r->chunk = MIN(len, r->bytes);
	return 0;
}

/* --- sending ------------------------------------------------------------------------------- */

static const char zeroes[1 << 20]; /* for servers that cannot zero */

static char *data_at(struct request *r)
{
	struct dm_bio *bio = r->bio;
	uint64_t done = r->offset - (bio->sector << DM_SECTOR_SHIFT);

	return (r->bounce ? r->bounce : (char *)bio->iov[0].iov_base) + done;
}

static int64_t send_bio(struct connection *c, struct request *r)
{
	nbd_completion_callback cb = {.callback = completed, .user_data = r};
	struct nbd_store *s = c->store;
	struct dm_bio *bio = r->bio;
	uint32_t fua = (bio->flags & DM_FUA) && s->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;

	if (bio->op == DM_FLUSH || (!r->bytes && r->flush_after)) {
		r->flush_after = false;
		r->chunk = 0;
		return nbd_aio_flush(c->h, cb, 0);
	}
	r->chunk = MIN(r->bytes, dm_op_has_data(bio->op) ? MAX_DATA : MAX_RANGE);
	switch (bio->op) {
	case DM_READ:
		return nbd_aio_pread(c->h, data_at(r), r->chunk, r->offset, cb, 0);
	case DM_WRITE:
		return nbd_aio_pwrite(c->h, data_at(r), r->chunk, r->offset, cb, fua);
	case DM_DISCARD:
		return nbd_aio_trim(c->h, r->chunk, r->offset, cb, fua);
	default:
		if (!s->can_zero) {
			r->chunk = MIN(r->bytes, sizeof zeroes);
			return nbd_aio_pwrite(c->h, zeroes, r->chunk, r->offset, cb, fua);
		}
		return nbd_aio_zero(c->h, r->chunk, r->offset, cb,
				    fua | (bio->flags & DM_NOUNMAP ? LIBNBD_CMD_FLAG_NO_HOLE : 0));
	}
}

static int64_t send_extent(struct connection *c, struct request *r)
{
	nbd_extent_callback extent = {.callback = extent_answer, .user_data = r};
	nbd_completion_callback cb = {.callback = completed, .user_data = r};

	r->data = true;
	r->chunk = MIN(r->bytes, MAX_RANGE);
	return nbd_aio_block_status(c->h, r->chunk, r->offset, extent, cb, 0);
}

static void send_one(struct connection *c, struct request *r)
{
	r->sent = true;
	g_queue_push_tail_link(&c->taken, &r->link);
	atomic_store(&c->load, c->taken.length);
	if ((r->kind == EXTENT ? send_extent(c, r) : send_bio(c, r)) < 0) {
		r->error = nbd_get_errno() ? -nbd_get_errno() : -EIO;
		r->answered = !nbd_aio_is_dead(c->h) && !nbd_aio_is_closed(c->h);
		if (!r->answered)
			r->error = 0;
	}
}

/* Takes requests off the store's list while there is room. */
static void send_waiting(struct connection *c)
{
	struct nbd_store *s = c->store;

	while (c->ready && c->taken.length < IN_FLIGHT) {
		struct request *r;

		pthread_mutex_lock(&s->lock);
		r = take_first(s);
		pthread_mutex_unlock(&s->lock);
		if (!r)
			break;
		send_one(c, r);
	}
}

/* For any thread: sends a request, and wakes the connection's if it has to do more than to read the answer. */
static bool send_now(struct connection *c, struct request *r)
{
	bool sent, more = false;

	if (pthread_mutex_trylock(&c->lock))
		return false;
	sent = c->ready && c->taken.length < IN_FLIGHT;
	if (sent) {
		more = r->deadline_ns < c->poll_until_ns;
		send_one(c, r);
		more |= r->answered || nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h) ||
			(nbd_aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE);
	}
	pthread_mutex_unlock(&c->lock);
	if (more)
		kick(c);
	return sent;
}

/* --- connections ------------------------------------------------------------------------------ */

/* What the server offers, from a connection that is ready; store->lock held. */
static void learn(struct nbd_store *s, struct nbd_handle *h)
{
	int64_t size = nbd_get_size(h), block = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t wish = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);

	s->bytes = size > 0 ? (uint64_t)size : 0;
	s->can_flush = nbd_can_flush(h) > 0;
	s->can_fua = nbd_can_fua(h) > 0;
	s->can_trim = nbd_can_trim(h) > 0;
	s->can_zero = nbd_can_zero(h) > 0;
	s->can_extents = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	s->limits = (struct dm_limits){
		.logical_block_size = block > DM_SECTOR_SIZE ? (unsigned)block : DM_SECTOR_SIZE,
		.physical_block_size = wish > DM_SECTOR_SIZE && wish <= 1 << 20 ? (unsigned)wish : DM_SECTOR_SIZE,
		.max_discard_sectors = s->can_trim ? UINT64_MAX : 0,
		.discard_granularity = DM_SECTOR_SIZE,
	};
}

/* A local socket is connected to as the table's writer; the handshake's own files are for the daemon's user alone. */
static struct nbd_handle *begin_connect(const struct nbd_store *s)
{
	struct nbd_handle *h = nbd_create();
	struct dm_opener_saved saved;
	bool connected;

	if (!h)
		return NULL;
	nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION);
	nbd_set_strict_mode(h, 0);
	connected = dm_opener_assume(&s->who, &saved);
	if (connected) {
		nbd_set_uri_allow_local_file(h, !saved.assumed);
		connected = nbd_aio_connect_uri(h, s->uri) >= 0;
	}
	dm_opener_restore(&saved);
	if (!connected) {
		nbd_close(h);
		return NULL;
	}
	return h;
}

static void set_ready(struct connection *c, bool ready)
{
	struct nbd_store *s = c->store;

	if (c->ready == ready)
		return;
	c->ready = ready;
	pthread_mutex_lock(&s->lock);
	s->n_ready += ready ? 1 : -1u;
	s->away_since_ns = s->n_ready ? 0 : dm_now_ns();
	pthread_mutex_unlock(&s->lock);
}

static bool is_ending(struct nbd_store *s)
{
	bool ending;

	pthread_mutex_lock(&s->lock);
	ending = s->ending;
	pthread_mutex_unlock(&s->lock);
	return ending;
}

/* Whether a request is not to wait for the server to come back; store->lock held. */
static bool will_not_wait(const struct nbd_store *s, const struct request *r)
{
	return !s->n_ready && r->kind == BIO && (r->bio->flags & DM_FAILFAST);
}

/* Gives up the connection; what it had goes back to the head of the list, in order. */
static void conn_broken(struct connection *c, const char *why)
{
	struct nbd_store *s = c->store;
	GList *l;

	if (c->ready && !is_ending(s))
		dm_log_warn("nbd: %s: %s; connecting again", s->uri, why);
	set_ready(c, false);
	if (c->h && c->ready && is_ending(s))
		nbd_aio_disconnect(c->h, 0);
	if (c->h)
		nbd_close(c->h); /* it calls completed() of what is under way */
	c->h = NULL;
	c->retry_ns = dm_now_ns() + RETRY_MS * NS_PER_MS;
	atomic_store(&c->load, 0);
	while ((l = g_queue_pop_tail_link(&c->taken))) {
		struct request *r = l->data;

		r->answered = false;
		r->error = 0;
		if (r->kind == BIO && (r->bio->flags & DM_FUA) && !s->can_fua)
			r->flush_after = true;
		put_back(c, r); /* expire() comes next, for those that will not wait */
	}
}

static bool size_shrunk(struct connection *c)
{
	int64_t size = nbd_get_size(c->h);

	return size >= 0 && (uint64_t)size < c->store->bytes;
}

static void check_connection(struct connection *c)
{
	if (!c->h)
		return;
	if (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h)) {
		conn_broken(c, "the connection broke");
	} else if (!c->ready && nbd_aio_is_ready(c->h)) {
		if (size_shrunk(c))
			conn_broken(c, "the server's export has become shorter");
		else
			set_ready(c, true);
	}
}

/* Takes out requests that are too old; returns when the next will be, or 0. */
static uint64_t expire(struct connection *c)
{
	struct nbd_store *s = c->store;
	uint64_t now = dm_now_ns(), next = 0;
	GList *l, *after;

	for (l = c->taken.head; l; l = l->next)
		if (((struct request *)l->data)->deadline_ns <= now) {
			conn_broken(c, "no answer in time");
			break;
		}
	for (l = c->taken.head; l; l = l->next)
		next = next ? MIN(next, ((struct request *)l->data)->deadline_ns) :
			      ((struct request *)l->data)->deadline_ns;
	pthread_mutex_lock(&s->lock);
	for (l = s->waiting.head; l; l = after) {
		struct request *r = l->data;

		after = l->next;
		if (will_not_wait(s, r)) {
			if (!take_out(s, r))
				continue;
			r->error = -ENOTCONN;
			g_queue_push_tail_link(&c->over, l);
		} else if (r->deadline_ns <= now || s->ending) {
			if (!take_out(s, r))
				continue;
			r->error = -EIO;
			g_queue_push_tail_link(&c->over, l);
			dm_log_err_limit("nbd: %s: no answer in %u ms", s->uri, dm_nbd_timeout_ms);
		} else {
			next = next ? MIN(next, r->deadline_ns) : r->deadline_ns;
		}
	}
	pthread_mutex_unlock(&s->lock);
	return next;
}

/*
 * Lets go of the lock, ends what is over and waits.  A deadline that is none any more still counts, so
 * that not every request sent by another thread has to wake this one for its own.
 */
static void wait_for_news(struct connection *c, uint64_t next_ns)
{
	struct pollfd fds[2] = {{.fd = c->wake_fd, .events = POLLIN}, {.fd = -1}};
	uint64_t now = dm_now_ns(), count;
	int timeout = -1;

	if (!next_ns && c->poll_until_ns != UINT64_MAX && c->poll_until_ns > now)
		next_ns = c->poll_until_ns;
	if (!c->h && (!next_ns || c->retry_ns < next_ns))
		next_ns = c->retry_ns;
	c->poll_until_ns = next_ns ? next_ns : UINT64_MAX;
	if (next_ns)
		timeout = next_ns > now ? (int)MIN((next_ns - now) / NS_PER_MS + 1, 3600000) : 0;
	if (c->h) {
		unsigned direction = nbd_aio_get_direction(c->h);

		fds[1].fd = nbd_aio_get_fd(c->h);
		fds[1].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
					(direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
	}
	pthread_mutex_unlock(&c->lock);
	end_over(c);
	if (poll(fds, 2, timeout) < 0)
		fds[0].revents = fds[1].revents = 0;
	if ((fds[0].revents & POLLIN) && read(c->wake_fd, &count, sizeof count) < 0)
		fds[1].revents = 0;
	pthread_mutex_lock(&c->lock);
	if (!c->h)
		return;
	if (fds[1].revents & (POLLIN | POLLHUP | POLLERR))
		nbd_aio_notify_read(c->h);
	else if (fds[1].revents & POLLOUT)
		nbd_aio_notify_write(c->h);
}

static void finish_answered(struct connection *c)
{
	GList *l, *next;

	if (c->h && (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h)))
		return; /* these "answers" are the connection's end */
	for (l = c->taken.head; l; l = next) {
		struct request *r = l->data;

		next = l->next;
		if (r->answered && r->error == -ESHUTDOWN) {
			conn_broken(c, "the server is going away");
			return;
		}
		if (r->answered)
			part_done(c, r);
	}
}

static void *connection_main(void *arg)
{
	struct connection *c = arg;

	pthread_mutex_lock(&c->lock);
	while (!is_ending(c->store)) {
		if (!c->h && dm_now_ns() >= c->retry_ns) {
			c->h = begin_connect(c->store);
			c->retry_ns = dm_now_ns() + RETRY_MS * NS_PER_MS;
		}
		check_connection(c);
		send_waiting(c);
		finish_answered(c);
		check_connection(c);
		wait_for_news(c, expire(c));
		finish_answered(c);
	}
	conn_broken(c, "end");
	expire(c);
	pthread_mutex_unlock(&c->lock);
	end_over(c);
	return NULL;
}

/* --- the device -------------------------------------------------------------------------------- */

static struct connection *idlest(struct nbd_store *s)
{
	struct connection *c = NULL;

	for (unsigned i = 0; i < s->n_conns; i++)
		if (atomic_load(&s->conns[i].ready) &&
		    (!c || atomic_load(&s->conns[i].load) < atomic_load(&c->load)))
			c = &s->conns[i];
	return c;
}

/* Sends a request or queues it; fails it at once if the server has been away too long. */
static void queue(struct nbd_store *s, struct request *r)
{
	uint64_t now = dm_now_ns();
	struct connection *c = idlest(s);
	bool away, first;
	int error;

	r->deadline_ns = now + dm_nbd_timeout_ms * NS_PER_MS;
	r->link.data = r;
	pthread_mutex_lock(&s->lock);
	away = s->away_since_ns && now - s->away_since_ns > dm_nbd_timeout_ms * NS_PER_MS;
	first = !s->waiting.length;
	pthread_mutex_unlock(&s->lock);
	if (away) {
		request_end(s, r, -EIO);
		return;
	}
	if (c && first && send_now(c, r))
		return;
	pthread_mutex_lock(&s->lock);
	error = will_not_wait(s, r) ? -ENOTCONN : put_in(s, r, false);
	pthread_mutex_unlock(&s->lock);
	if (error)
		request_end(s, r, error);
	else
		kick(c ? c : &s->conns[0]);
}

static void remote_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct nbd_store *s = to_store(dev);
	struct request *r;
	int error = 0;

	if ((bio->op == DM_FLUSH && !s->can_flush) || (bio->op != DM_FLUSH && !bio->sectors)) {
		dm_bio_end(bio, 0);
		return;
	}
	if ((bio->op == DM_DISCARD && !s->can_trim) || bio->op > DM_PROVISION)
		error = -EOPNOTSUPP;
	else if (dm_op_is_write(bio->op) && !(dev->mode & DM_MODE_WRITE))
		error = -EROFS;
	else if (bio->op != DM_FLUSH && (bio->sector > s->bytes >> DM_SECTOR_SHIFT ||
					 bio->sectors > (s->bytes >> DM_SECTOR_SHIFT) - bio->sector))
		error = -EIO;
	if (error) {
		dm_bio_end(bio, error);
		return;
	}
	if (bio->op == DM_PROVISION) { /* the protocol has none; and what a server does with its file is its owner's */
		dm_bio_end(bio, 0);
		return;
	}
	r = g_new0(struct request, 1);
	r->bio = bio;
	r->offset = bio->sector << DM_SECTOR_SHIFT;
	r->bytes = bio->op == DM_FLUSH ? 0 : bio->sectors << DM_SECTOR_SHIFT;
	r->flush_after = dm_op_is_write(bio->op) && (bio->flags & DM_FUA) && !s->can_fua && s->can_flush;
	if (dm_op_has_data(bio->op) && bio->iovcnt > 1) {
		r->bounce = g_malloc(r->bytes);
		if (bio->op == DM_WRITE)
			dm_iov_read(bio->iov, bio->iovcnt, 0, r->bounce, r->bytes);
	}
	queue(s, r);
}

static uint64_t remote_sectors(struct dm_dev *dev)
{
	return to_store(dev)->bytes >> DM_SECTOR_SHIFT;
}

static int remote_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct nbd_store *s = to_store(dev);
	pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
	struct request r = {.kind = EXTENT,
			    .offset = sector << DM_SECTOR_SHIFT,
			    .bytes = sectors << DM_SECTOR_SHIFT,
			    .wake = &wake};

	*out = (struct dm_extent){.data = true, .sectors = sectors};
	if (!s->can_extents || !sectors)
		return 0;
	queue(s, &r);
	dm_block_begin();
	pthread_mutex_lock(&s->lock);
	while (!r.done)
		pthread_cond_wait(&wake, &s->lock);
	pthread_mutex_unlock(&s->lock);
	dm_block_end();
	pthread_cond_destroy(&wake);
	/* A hole that ends inside a sector is not one there. */
	if (!r.error && r.chunk >= DM_SECTOR_SIZE) {
		out->data = r.data;
		out->sectors = r.data ? MIN(sectors, (r.chunk + DM_SECTOR_SIZE - 1) >> DM_SECTOR_SHIFT) :
					r.chunk >> DM_SECTOR_SHIFT;
	}
	return 0;
}

static void remote_limits(struct dm_dev *dev, struct dm_limits *out)
{
	*out = to_store(dev)->limits;
}

static void remote_print(struct dm_dev *dev, GString *out)
{
	dm_quote_word(to_store(dev)->uri, out);
}

static void remote_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = UINT64_MAX - 1;
	id[1] = g_str_hash(to_store(dev)->uri);
	id[2] = 0;
}

static void end_connections(struct nbd_store *s)
{
	pthread_mutex_lock(&s->lock);
	s->ending = true;
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->n_conns; i++) {
		struct connection *c = &s->conns[i];

		if (c->started) {
			kick(c);
			pthread_join(c->thread, NULL);
		} else if (c->h) {
			nbd_close(c->h);
		}
		if (c->wake_fd >= 0)
			close(c->wake_fd);
	}
}

static void remote_free(struct dm_dev *dev)
{
	struct nbd_store *s = to_store(dev);

	end_connections(s);
	for (unsigned i = 0; i < CONNECTIONS; i++)
		pthread_mutex_destroy(&s->conns[i].lock);
	pthread_mutex_destroy(&s->lock);
	g_free(s->uri);
	g_free(s);
}

static const struct dm_dev_ops nbd_ops = {
	.submit = remote_submit,
	.sectors = remote_sectors,
	.extent = remote_extent,
	.limits = remote_limits,
	.print = remote_print,
	.identity = remote_identity,
	.free = remote_free,
};

/* The first connection is made here, so that a wrong URI is told at once. */
static int first_connection(struct nbd_store *s, enum dm_mode mode, GError **err)
{
	uint64_t deadline = dm_now_ns() + dm_nbd_timeout_ms * NS_PER_MS;
	struct nbd_handle *h = begin_connect(s);
	const char *why = nbd_get_error();
	int error = nbd_get_errno() ? nbd_get_errno() : EIO;

	while (h && !nbd_aio_is_ready(h)) {
		uint64_t now = dm_now_ns();

		if (nbd_aio_is_dead(h) || nbd_aio_is_closed(h) || now >= deadline) {
			if (now >= deadline)
				error = ETIMEDOUT;
			else if (nbd_get_errno())
				error = nbd_get_errno();
			why = nbd_get_error();
			nbd_close(h);
			h = NULL;
			break;
		}
		nbd_poll(h, (int)MIN((deadline - now) / NS_PER_MS + 1, 1000));
		if (nbd_get_errno())
			error = nbd_get_errno();
	}
	if (!h)
		return dm_fail(err, error, "%s: %s", s->uri, why ? why : g_strerror(error));
	if (nbd_is_read_only(h) > 0 && (mode & DM_MODE_WRITE)) {
		nbd_close(h);
		return dm_fail(err, EROFS, "%s: the server lets nobody write; make the device read-only first", s->uri);
	}
	learn(s, h);
	s->n_conns = nbd_can_multi_conn(h) > 0 ? CONNECTIONS : 1;
	s->conns[0].h = h;
	s->conns[0].ready = true;
	s->n_ready = 1;
	return 0;
}

int dm_nbd_open(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err)
{
	struct nbd_store *s = g_new0(struct nbd_store, 1);
	int error;

	s->dev.ops = &nbd_ops;
	s->dev.mode = mode;
	atomic_init(&s->dev.refs, 1);
	s->uri = g_strdup(uri);
	s->who = *who;
	pthread_mutex_init(&s->lock, NULL);
	dm_block_begin();
	error = first_connection(s, mode, err);
	s->who.pid = 0;
	dm_block_end();
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		s->conns[i].store = s;
		s->conns[i].wake_fd = -1;
		s->conns[i].poll_until_ns = UINT64_MAX;
		pthread_mutex_init(&s->conns[i].lock, NULL);
	}
	for (unsigned i = 0; i < s->n_conns && !error; i++) {
		struct connection *c = &s->conns[i];

		c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		error = c->wake_fd < 0 ? -errno : -pthread_create(&c->thread, NULL, connection_main, c);
		c->started = !error;
		if (error)
			dm_fail(err, -error, "%s: no thread: %s", uri, g_strerror(-error));
	}
	if (error) {
		remote_free(&s->dev);
		return error;
	}
	*out = &s->dev;
	return 0;
}

#else

#include <errno.h>

#include "nbd.h"

int dm_nbd_open(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err)
{
	return dm_fail(err, EOPNOTSUPP, "%s: this dmfs was built without libnbd", uri);
}

#endif
