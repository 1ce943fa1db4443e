/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connections to NBD servers, and requests on their way there and back.
 *
 * A connection is a thread that sleeps in poll(2) on its socket and an eventfd.  Who submits a request sends it
 * himself, if the idlest connection has room and its lock is free; else it waits in the store's list, from which a
 * connection that has room takes.  It keeps what it has until the answer, which its thread reads.
 *
 * A connection that breaks puts what it had back at the head of the list (all requests may be repeated) and connects
 * again, every RETRY_MS.  A request that is older than the timeout fails with EIO.  A bio with DM_FAILFAST does not
 * wait for a server: it fails with ENOTCONN when the last connection breaks.
 *
 * What waits in the list and has not changed anything, a read or what was never sent, ends with EINTR when its origin
 * is cancelled (hold.h).
 */
#ifdef HAVE_LIBNBD

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "nbd.h"
#include "nbd_connection.h"

#include <dmfs/container_of.h>
#include <dmfs/log.h>
#include <dmfs/work.h>

#define IN_FLIGHT 64u /* of one connection */
#define RETRY_MS 500
#define MAX_DATA (16u << 20)
#define MAX_RANGE (1u << 30)

void dm_nbd_wake(struct nbd_connection *c)
{
	uint64_t one = 1;

	if (write(c->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
		dm_log_err_limit("nbd: waking a connection: %s", g_strerror(errno));
}

/* --- the end of a request ---------------------------------------------------------------- */

/* Without the lock. */
void dm_nbd_end_request(struct nbd_store *s, struct nbd_request *r, int error)
{
	struct dm_bio *bio = r->bio;

	if (r->kind == NBD_EXTENT) {
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
static void end_over(struct nbd_connection *c)
{
	GList *l;

	while ((l = g_queue_pop_head_link(&c->over))) {
		struct nbd_request *r = l->data;

		dm_nbd_end_request(c->store, r, r->error);
	}
}

/* --- the store's list; store->lock held ----------------------------------------------------- */

static void cancel_waiting(struct dm_held *held)
{
	struct nbd_request *r = container_of(held, struct nbd_request, held);
	struct nbd_store *s = held->keeper;

	pthread_mutex_lock(&s->lock);
	if (r->waits)
		g_queue_unlink(&s->waiting, &r->link);
	pthread_mutex_unlock(&s->lock);
	dm_nbd_end_request(s, r, -EINTR);
}

/*
 * 0, or -EINTR: whoever asked is dying.  A write that was sent may have been done, or not: it is repeated
 * until that is known, whoever dies.
 */
int dm_nbd_put_in(struct nbd_store *s, struct nbd_request *r, bool first)
{
	if (r->kind == NBD_BIO && !(r->sent && dm_op_is_write(r->bio->op))) {
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
static bool take_out(struct nbd_store *s, struct nbd_request *r)
{
	g_queue_unlink(&s->waiting, &r->link);
	r->waits = false;
	if (!r->is_held)
		return true;
	r->is_held = false;
	return dm_held_end(&r->held);
}

/* The first, or NULL. */
static struct nbd_request *take_first(struct nbd_store *s)
{
	while (s->waiting.head) {
		struct nbd_request *r = s->waiting.head->data;

		if (take_out(s, r))
			return r;
	}
	return NULL;
}

/* One that a connection has had goes to the head of the list, or is over. */
static void put_back(struct nbd_connection *c, struct nbd_request *r)
{
	struct nbd_store *s = c->store;

	pthread_mutex_lock(&s->lock);
	r->error = dm_nbd_put_in(s, r, true);
	pthread_mutex_unlock(&s->lock);
	if (r->error)
		g_queue_push_tail_link(&c->over, &r->link);
}

/* --- a request's parts ------------------------------------------------------------------------ */

/* A part of a request was answered: go on with the rest, or it is over. */
static void part_done(struct nbd_connection *c, struct nbd_request *r)
{
	g_queue_unlink(&c->taken, &r->link);
	atomic_store(&c->load, c->taken.length);
	r->answered = false;
	if (!r->error) {
		r->offset += r->chunk;
		r->bytes -= r->chunk;
		if (r->bytes && r->kind == NBD_BIO && !dm_op_has_data(r->bio->op))
			r->error = dm_bio_stop_long(r->bio);
	}
	if (!r->error && r->kind == NBD_BIO && (r->bytes || r->flush_after)) {
		put_back(c, r);
		return;
	}
	g_queue_push_tail_link(&c->over, &r->link);
}

/* libnbd's: an answer, or the connection broke (then conn_broken() takes it back). */
static int completed(void *data, int *error)
{
	struct nbd_request *r = data;

	r->error = *error ? -*error : 0;
	r->answered = true;
	return 1; /* libnbd may forget the command */
}

static int extent_answer(void *data, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
	struct nbd_request *r = data;
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

static char *data_at(struct nbd_request *r)
{
	struct dm_bio *bio = r->bio;
	uint64_t done = r->offset - (bio->sector << DM_SECTOR_SHIFT);

	return (r->bounce ? r->bounce : (char *)bio->iov[0].iov_base) + done;
}

static int64_t send_bio(struct nbd_connection *c, struct nbd_request *r)
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

static int64_t send_extent(struct nbd_connection *c, struct nbd_request *r)
{
	nbd_extent_callback extent = {.callback = extent_answer, .user_data = r};
	nbd_completion_callback cb = {.callback = completed, .user_data = r};

	r->data = true;
	r->chunk = MIN(r->bytes, MAX_RANGE);
	return nbd_aio_block_status(c->h, r->chunk, r->offset, extent, cb, 0);
}

static void send_one(struct nbd_connection *c, struct nbd_request *r)
{
	r->sent = true;
	g_queue_push_tail_link(&c->taken, &r->link);
	atomic_store(&c->load, c->taken.length);
	if ((r->kind == NBD_EXTENT ? send_extent(c, r) : send_bio(c, r)) < 0) {
		r->error = nbd_get_errno() ? -nbd_get_errno() : -EIO;
		r->answered = !nbd_aio_is_dead(c->h) && !nbd_aio_is_closed(c->h);
		if (!r->answered)
			r->error = 0;
	}
}

/* Takes requests off the store's list while there is room. */
static void send_waiting(struct nbd_connection *c)
{
	struct nbd_store *s = c->store;

	while (c->ready && c->taken.length < IN_FLIGHT) {
		struct nbd_request *r;

		pthread_mutex_lock(&s->lock);
		r = take_first(s);
		pthread_mutex_unlock(&s->lock);
		if (!r)
			break;
		send_one(c, r);
	}
}

/* For any thread: sends a request, and wakes the connection's if it has to do more than to read the answer. */
bool dm_nbd_send_now(struct nbd_connection *c, struct nbd_request *r)
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
		dm_nbd_wake(c);
	return sent;
}

/* --- connections ------------------------------------------------------------------------------ */

/* What the server offers, from a connection that is ready; store->lock held. */
void dm_nbd_learn(struct nbd_store *s, struct nbd_handle *h)
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
struct nbd_handle *dm_nbd_begin_connect(const struct nbd_store *s)
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

static void set_ready(struct nbd_connection *c, bool ready)
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
bool dm_nbd_will_not_wait(const struct nbd_store *s, const struct nbd_request *r)
{
	return !s->n_ready && r->kind == NBD_BIO && (r->bio->flags & DM_FAILFAST);
}

/* Gives up the connection; what it had goes back to the head of the list, in order. */
static void conn_broken(struct nbd_connection *c, const char *why)
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
		struct nbd_request *r = l->data;

		r->answered = false;
		r->error = 0;
		if (r->kind == NBD_BIO && (r->bio->flags & DM_FUA) && !s->can_fua)
			r->flush_after = true;
		put_back(c, r); /* expire() comes next, for those that will not wait */
	}
}

static bool size_shrunk(struct nbd_connection *c)
{
	int64_t size = nbd_get_size(c->h);

	return size >= 0 && (uint64_t)size < c->store->bytes;
}

static void check_connection(struct nbd_connection *c)
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
static uint64_t expire(struct nbd_connection *c)
{
	struct nbd_store *s = c->store;
	uint64_t now = dm_now_ns(), next = 0;
	GList *l, *after;

	for (l = c->taken.head; l; l = l->next)
		if (((struct nbd_request *)l->data)->deadline_ns <= now) {
			conn_broken(c, "no answer in time");
			break;
		}
	for (l = c->taken.head; l; l = l->next)
		next = next ? MIN(next, ((struct nbd_request *)l->data)->deadline_ns) :
			      ((struct nbd_request *)l->data)->deadline_ns;
	pthread_mutex_lock(&s->lock);
	for (l = s->waiting.head; l; l = after) {
		struct nbd_request *r = l->data;

		after = l->next;
		if (dm_nbd_will_not_wait(s, r)) {
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
static void wait_for_news(struct nbd_connection *c, uint64_t next_ns)
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

static void finish_answered(struct nbd_connection *c)
{
	GList *l, *next;

	if (c->h && (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h)))
		return; /* these "answers" are the connection's end */
	for (l = c->taken.head; l; l = next) {
		struct nbd_request *r = l->data;

		next = l->next;
		if (r->answered && r->error == -ESHUTDOWN) {
			conn_broken(c, "the server is going away");
			return;
		}
		if (r->answered)
			part_done(c, r);
	}
}

void *dm_nbd_connection_main(void *arg)
{
	struct nbd_connection *c = arg;

	pthread_mutex_lock(&c->lock);
	while (!is_ending(c->store)) {
		if (!c->h && dm_now_ns() >= c->retry_ns) {
			c->h = dm_nbd_begin_connect(c->store);
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

#endif
