/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the two halves of a store on an NBD server share: its requests and its connections.  nbd.c makes the store and
 * gives it requests, nbd_connection.c carries them to the server and back.
 *
 * Locks: store->lock guards the list and what is known of the server; a connection's lock, taken before it, its libnbd
 * handle and what it has.  Nobody ends a request with a lock, nor waits for a connection's but its own thread.
 */
#ifndef DM_IO_NBD_CONNECTION_H
#define DM_IO_NBD_CONNECTION_H

#include <glib.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "opener.h"
#include "store.h"

#include <dmfs/hold.h>

#define NBD_CONNECTIONS 4
#define NS_PER_MS UINT64_C(1000000)

struct nbd_store;

enum nbd_kind { NBD_BIO, NBD_EXTENT };

/* A bio, or a question for an extent, on its way. */
struct nbd_request {
	enum nbd_kind kind;
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
	/* NBD_EXTENT: who asks waits for `done`. */
	bool done, data;
	pthread_cond_t *wake;
};

struct nbd_connection {
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
	struct nbd_connection conns[NBD_CONNECTIONS];
	unsigned n_conns, n_ready;
	bool ending, can_flush, can_fua, can_trim, can_zero, can_extents;
	uint64_t bytes, away_since_ns; /* 0: some connection is ready */
	struct dm_limits limits;
};

/* Ends a request, with no lock held: a bio, or the wait of who asked for an extent. */
void dm_nbd_end_request(struct nbd_store *s, struct nbd_request *r, int error);
/* Puts it in the store's list; store->lock held.  0, or -EINTR: whoever asked is dying. */
int dm_nbd_put_in(struct nbd_store *s, struct nbd_request *r, bool first);
/* Whether it is not to wait for the server to come back; store->lock held. */
bool dm_nbd_will_not_wait(const struct nbd_store *s, const struct nbd_request *r);
/* Sends it from this thread, if the connection's lock is free and it has room. */
bool dm_nbd_send_now(struct nbd_connection *c, struct nbd_request *r);
/* Makes the connection's thread look at the list and the deadlines. */
void dm_nbd_wake(struct nbd_connection *c);
/* Begins to connect; NULL: nbd_get_error() says why not. */
struct nbd_handle *dm_nbd_begin_connect(const struct nbd_store *s);
/* Notes what the server offers, from a connection that is ready; store->lock held, or nobody else has the store. */
void dm_nbd_learn(struct nbd_store *s, struct nbd_handle *h);
/* The thread of a connection (void *: struct nbd_connection *), until store->ending. */
void *dm_nbd_connection_main(void *arg);

#endif
