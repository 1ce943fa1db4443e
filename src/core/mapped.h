/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A dmfs device ("mapped device"): a name, a live table, perhaps an inactive one, and the way of bios through them.
 *
 * Locks, from the outer to the inner:
 *   md->control   load, clear, suspend, resume, remove of one device; held
 *                 across waits for I/O.
 *   md->hooks     its targets' hooks and messages, which come one at a time; not held while I/O drains.
 *   md->shown     a target's status; targets' own locks come after it.
 *   naming        (devices.c) names, uuids and minors while they are stored.
 *   changes       (state.c) whatever is stored, of all devices.
 *   topology      (devices.c) names, uuids, minors, who uses whom.  Short.
 *   md->lock      which tables there are, the error text. Short.
 * The live table is read without a lock inside md->gate; elsewhere take a
 * reference with dm_mapped_live().
 */
#ifndef DMFS_CORE_MAPPED_H
#define DMFS_CORE_MAPPED_H

#include "table.h"

#include <dmfs/gate.h>
#include <dmfs/hold.h>
#include <dmfs/locked.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

/* Whose a device's image is, and who may open it. */
struct dm_owner {
	unsigned mode; /* permission bits */
	uid_t uid;
	gid_t gid;
};

enum dm_suspend_flags {
	DM_SUSPEND_NOFLUSH = 1u << 0,
};

struct dm_mapped {
	struct dm_dev dev;
	struct dm_gate gate;
	_Atomic(struct dm_table *) live;
	struct dm_table *inactive;
	pthread_mutex_t control, hooks, lock;
	_Atomic(pthread_t) hooking; /* who has md->hooks; 0: nobody */
	pthread_rwlock_t shown;     /* read for a status, written by dm_status_pause() */
	struct dm_hold deferred; /* closed as often as the gate */
	atomic_bool suspended, suspending, noflush;
	atomic_bool rested; /* suspended by the engine, when all that it had passed to another one (dmfs/claim.h) */
	unsigned frozen; /* dm_mapped_freeze()s; its own lock */
	atomic_bool readonly; /* what the next table is loaded as */
	atomic_uint event_nr;
	atomic_ulong uevent_seq;
	unsigned minor;
	_Atomic(struct dm_stats *) stats; /* changed while no bio is inside, under stats_lock */
	pthread_mutex_t stats_lock;
	/* Under the topology lock. */
	char *name, *uuid;
	bool removed;
	bool remove_unused; /* once it is in use no more: a deferred remove */
	unsigned opens; /* of its image */
	GHashTable *used_by; /* tables that use it */
	unsigned depth;      /* at least the longest way down through devices it stands on */
	GHashTable *tables; /* all tables built for it: live, inactive, drafts */
	unsigned visited; /* by the search for loops */
	/* state.c's, under its lock */
	bool stored;
	bool held; /* made by a thread between dm_state_hold() and dm_state_save_held() */
	uint64_t saved_ids[2];
	struct dm_unloaded *unloaded;
	struct dm_events *events; /* events.c's; NULL: nobody ever listened */
	struct dm_work resized;
	_Atomic(void *) front; /* the front end's, once it knows the device */
	struct dm_owner image; /* under md->lock; at first the daemon's alone */
	GString *error; /* text of `error`, under md->lock; NULL: empty */
	GString *reply; /* the last message's */
};

/* What the front end wants to know; any thread, no locks held but md->control. */
struct dm_front_ops {
	/* A table was swapped in: the size and all data may be others. */
	void (*swapped)(struct dm_mapped *);
	/* The size is another, the data are the same. */
	void (*resized)(struct dm_mapped *);
	/* The last reference to it is gone. */
	void (*freed)(struct dm_mapped *);
};
extern const struct dm_front_ops *dm_front;

struct dm_mapped *dm_mapped_new(const char *name, unsigned minor);
struct dm_mapped *dm_mapped_ref(struct dm_mapped *md);
void dm_mapped_unref(struct dm_mapped *md);
void dm_mapped_free(struct dm_mapped *md);
void dm_unloaded_free(struct dm_unloaded *u);
static inline struct dm_mapped *dm_to_mapped(struct dm_dev *dev)
{
	return (struct dm_mapped *)dev;
}
extern const struct dm_dev_ops dm_mapped_ops;

/* A reference to the live or inactive table, or NULL. */
struct dm_table *dm_mapped_live(struct dm_mapped *md);
struct dm_table *dm_mapped_inactive(struct dm_mapped *md);

/* Makes a complete table the inactive one (taking the caller's reference), or clears the slot with NULL. */
int dm_mapped_load(struct dm_mapped *md, struct dm_table *t, GError **err);
int dm_mapped_suspend(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err);
/* What `suspend` says: whether somebody suspended it. */
bool dm_mapped_suspended(struct dm_mapped *md);
/* Swaps in the inactive table if there is one, suspending first if need be, and lets bios flow. */
int dm_mapped_resume(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err);
/*
 * dm_mapped_load() and dm_mapped_resume() as one step: on an error the old table goes on and the inactive slot is as
 * before.
 */
int dm_mapped_swap(struct dm_mapped *md, struct dm_table *t, bool (*interrupted)(void *), void *data, GError **err);
/* What tables loaded from now on are. */
int dm_mapped_set_readonly(struct dm_mapped *md, bool readonly, GError **err);
/* For a hook or a message; may wait for another one.  Interrupted (may be NULL) before that is over: false. */
bool dm_mapped_lock_hooks(struct dm_mapped *md, bool (*interrupted)(void *), void *data);
void dm_mapped_unlock_hooks(struct dm_mapped *md);
/* Whether this thread has them. */
bool dm_mapped_hooks_locked(struct dm_mapped *md);

void dm_mapped_owner(struct dm_mapped *md, struct dm_owner *out);
/* what: of DM_CHANGE_MODE, DM_CHANGE_UID, DM_CHANGE_GID (state.h). */
int dm_mapped_set_owner(struct dm_mapped *md, unsigned what, const struct dm_owner *to, GError **err);
/* At the device's end: nobody uses it any more. */
void dm_mapped_shutdown(struct dm_mapped *md);

void dm_mapped_set_error(struct dm_mapped *md, const char *text);
void dm_mapped_get_error(struct dm_mapped *md, GString *out);

/* Keeps a bio until the device resumes, or ends it if that will not be; false if it is not suspended (any more). */
bool dm_mapped_defer(struct dm_mapped *md, struct dm_bio *bio);
/*
 * All devices there are: none is resumed any more, so bios that wait for it fail, and from now on at once; targets let
 * go of what they hold.
 */
void dm_mapped_no_resume(GPtrArray *devices);

/* table_devs.c: the devices a table holds. */
void dm_table_devs_init(struct dm_table *t);
void dm_table_devs_seal(struct dm_table *t);
void dm_table_devs_free(struct dm_table *t);
/* Names that this thread looks up from now on are this opener's, a message's sender's; NULL: the table's writer's. */
void dm_table_devs_sender(const struct dm_opener *who);

#endif
