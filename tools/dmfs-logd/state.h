/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a log knows, without sockets and disks: which regions are in sync, and which client has what in hand.
 *
 * A client has a region if it has marked it, has got it to copy, or has been let write to it while it is out of sync;
 * until it clears it, suspends, or goes.  What a client has when it suspends or goes is out of sync from then on.  The
 * rules:
 *
 *   - A region out of sync is handed out, to be copied or written to, only to a client that is alone in having it.
 *     That it is out of sync and that nobody else has it are one question: between two it may have been copied.
 *   - A region is clean if it is in sync and nobody has it.
 *
 * After a restart there are clients that the server does not know yet.  In the time of grace they come back and mark
 * what they had; until it is over nothing is handed out.
 *
 * One thread at a time.  Regions are below `regions`; the caller checks.
 */
#ifndef DMFS_LOGD_STATE_H
#define DMFS_LOGD_STATE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct log_state {
	uint64_t regions, in_sync;
	uint8_t *sync_bits;
	GHashTable *holders; /* region to how many clients have it */
	GPtrArray *clients;
	uint64_t window; /* where the next client that looks for work begins */
	bool grace;
	/* Told of each region whose cleanness may have changed.  May be NULL. */
	void (*changed)(void *context, uint64_t region, bool clean);
	void *context;
};

struct log_client {
	struct log_state *state;
	bool resumed;
	GHashTable *has;            /* set of regions */
	GHashTable *given;            /* of these, those handed out to it, not marked */
	GHashTable *copying, *failed; /* handed out to be copied; those it could not copy, until its next resume */
	GQueue urgent;              /* regions others wait for: of uint64_t in pointers */
	uint64_t pos, window_end;   /* where it goes on looking for work */
};

/* in_sync: whether all regions are at first.  NULL: no memory for so many. */
struct log_state *log_state_new(uint64_t regions, bool in_sync);
void log_state_free(struct log_state *s);

struct log_client *log_join(struct log_state *s);
void log_leave(struct log_client *c);
void log_resume(struct log_client *c);
void log_postsuspend(struct log_client *c);

bool log_in_sync(const struct log_state *s, uint64_t region);
bool log_is_clean(const struct log_state *s, uint64_t region);
/* As a disk log knows it, before there are clients. */
void log_set_known(struct log_state *s, uint64_t region, bool in_sync);
void log_mark(struct log_client *c, uint64_t region);
void log_clear(struct log_client *c, uint64_t region);
/* A copy's end, or a leg that has missed something.  False: it is not this client's to say. */
bool log_set_sync(struct log_client *c, uint64_t region, bool in_sync);
/* A region to copy; false: there is none now. */
bool log_work(struct log_client *c, uint64_t *region);
/*
 * Whether a write to the region, which was out of sync a moment ago, must wait, and ask anew whether it is in sync:
 * another client has it, or has copied it meanwhile.  False: it is handed out to this client.
 */
bool log_is_remote(struct log_client *c, uint64_t region);
/* The lowest region out of sync. */
uint64_t log_hint(const struct log_state *s);

#endif
