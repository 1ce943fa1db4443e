/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stores on NBD servers: nbd://, nbds://, nbd+unix://, nbds+unix://, through libnbd.
 *
 * A store has one connection, or up to NBD_CONNECTIONS if the server says that a FLUSH on one covers all (multi-conn);
 * nbd_connection.c has what they do with requests.  While a server has been away for as long as the timeout new
 * requests fail at once.
 */
#include "opener.h"
#include "store.h"

#include <dmfs/error.h>

unsigned dm_nbd_timeout_ms = 60000;

#ifdef HAVE_LIBNBD

#include <errno.h>
#include <libnbd.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "nbd.h"
#include "nbd_connection.h"

#include <dmfs/work.h>

static struct nbd_store *to_store(struct dm_dev *dev)
{
	return (struct nbd_store *)dev;
}

/* --- the device -------------------------------------------------------------------------------- */

static struct nbd_connection *idlest(struct nbd_store *s)
{
	struct nbd_connection *c = NULL;

	for (unsigned i = 0; i < s->n_conns; i++)
		if (atomic_load(&s->conns[i].ready) &&
		    (!c || atomic_load(&s->conns[i].load) < atomic_load(&c->load)))
			c = &s->conns[i];
	return c;
}

/* Sends a request or queues it; fails it at once if the server has been away too long. */
static void queue(struct nbd_store *s, struct nbd_request *r)
{
	uint64_t now = dm_now_ns();
	struct nbd_connection *c = idlest(s);
	bool away, first;
	int error;

	r->deadline_ns = now + dm_nbd_timeout_ms * NS_PER_MS;
	r->link.data = r;
	pthread_mutex_lock(&s->lock);
	away = s->away_since_ns && now - s->away_since_ns > dm_nbd_timeout_ms * NS_PER_MS;
	first = !s->waiting.length;
	pthread_mutex_unlock(&s->lock);
	if (away) {
		dm_nbd_end_request(s, r, -EIO);
		return;
	}
	if (c && first && dm_nbd_send_now(c, r))
		return;
	pthread_mutex_lock(&s->lock);
	error = dm_nbd_will_not_wait(s, r) ? -ENOTCONN : dm_nbd_put_in(s, r, false);
	pthread_mutex_unlock(&s->lock);
	if (error)
		dm_nbd_end_request(s, r, error);
	else
		dm_nbd_wake(c ? c : &s->conns[0]);
}

static void remote_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct nbd_store *s = to_store(dev);
	struct nbd_request *r;
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
	r = g_new0(struct nbd_request, 1);
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
	struct nbd_request r = {.kind = NBD_EXTENT,
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
		struct nbd_connection *c = &s->conns[i];

		if (c->started) {
			dm_nbd_wake(c);
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
	for (unsigned i = 0; i < NBD_CONNECTIONS; i++)
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
	struct nbd_handle *h = dm_nbd_begin_connect(s);
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
	dm_nbd_learn(s, h);
	s->n_conns = nbd_can_multi_conn(h) > 0 ? NBD_CONNECTIONS : 1;
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
	for (unsigned i = 0; i < NBD_CONNECTIONS; i++) {
		s->conns[i].store = s;
		s->conns[i].wake_fd = -1;
		s->conns[i].poll_until_ns = UINT64_MAX;
		pthread_mutex_init(&s->conns[i].lock, NULL);
	}
	for (unsigned i = 0; i < s->n_conns && !error; i++) {
		struct nbd_connection *c = &s->conns[i];

		c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		error = c->wake_fd < 0 ? -errno : -pthread_create(&c->thread, NULL, dm_nbd_connection_main, c);
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
