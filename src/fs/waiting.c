/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests that wait (waiting.h): lists with a lock each, by address, so that workers do not meet.
 *
 * Looking goes in three steps: which threads are there; what /proc says of each, without a lock, once for a thread
 * however many requests it has; which requests are theirs.
 */
#include <glib.h>
#include <pthread.h>

#include "fs.h"
#include "waiting.h"

#include <dmfs/work.h>

#define LISTS 16
#define SOON_NS UINT64_C(50000000)
#define PERIOD_NS UINT64_C(500000000)

static struct list {
	pthread_mutex_t lock;
	struct dmfs_waiting *head;
	GHashTable *tgids; /* of threads, since the last look: a thread may end before its asynchronous requests */
	char pad[64];
} lists[LISTS];

static atomic_uint count;
static atomic_bool armed; /* the timer is, or a look is under way that will see to it */
static struct dm_timer timer;
static struct dm_work work;
static struct dm_wq *wq;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static struct list *list_of(const struct dmfs_waiting *w)
{
	return &lists[((uintptr_t)w >> 8) % LISTS];
}

static void take_out(struct dmfs_waiting *w)
{
	*w->prev = w->next;
	if (w->next)
		w->next->prev = w->prev;
	w->prev = NULL;
	atomic_fetch_sub(&count, 1);
}

/* --- looking ---------------------------------------------------------------------------- */

struct asker {
	pid_t tgid;
	bool dying;
};

/* The threads that ask. */
static GHashTable *collect(void)
{
	GHashTable *askers = g_hash_table_new_full(NULL, NULL, NULL, g_free);

	for (unsigned i = 0; i < LISTS; i++) {
		pthread_mutex_lock(&lists[i].lock);
		for (struct dmfs_waiting *w = lists[i].head; w; w = w->next) {
			struct asker *a = g_hash_table_lookup(askers, GINT_TO_POINTER(w->tid));

			if (!a && w->tid > 0) {
				a = g_new0(struct asker, 1);
				g_hash_table_insert(askers, GINT_TO_POINTER(w->tid), a);
			}
			if (a)
				a->tgid = w->tgid ? w->tgid : a->tgid;
		}
		g_hash_table_remove_all(lists[i].tgids);
		pthread_mutex_unlock(&lists[i].lock);
	}
	return askers;
}

static void judge(gpointer tid, gpointer asker, gpointer unused)
{
	struct asker *a = asker;

	a->dying = dmfs_process_dying(GPOINTER_TO_INT(tid), &a->tgid);
}

/* Takes out those of the dying, with a reference to each. */
static struct dmfs_waiting *take_dying(GHashTable *askers)
{
	struct dmfs_waiting *dying = NULL;

	for (unsigned i = 0; i < LISTS; i++) {
		struct dmfs_waiting *w, *next;

		pthread_mutex_lock(&lists[i].lock);
		for (w = lists[i].head; w; w = next) {
			const struct asker *a = g_hash_table_lookup(askers, GINT_TO_POINTER(w->tid));
			unsigned refs = atomic_load(&w->refs);

			next = w->next;
			if (a)
				w->tgid = a->tgid;
			if (w->unseen ? !fuse_req_interrupted(w->unseen) : !a || !a->dying)
				continue;
			while (refs && !atomic_compare_exchange_weak(&w->refs, &refs, refs + 1))
				;
			if (!refs) /* it has just ended */
				continue;
			take_out(w);
			w->next = dying;
			dying = w;
		}
		pthread_mutex_unlock(&lists[i].lock);
	}
	return dying;
}

static void arm(uint64_t ns)
{
	if (!atomic_exchange(&armed, true))
		dm_timer_arm(&timer, dm_now_ns() + ns);
}

static void look(struct dm_work *unused)
{
	GHashTable *askers = collect();
	struct dmfs_waiting *w, *next;

	g_hash_table_foreach(askers, judge, NULL);
	for (w = take_dying(askers); w; w = next) {
		next = w->next;
		w->give_up(w);
		dmfs_waiting_put(w);
	}
	g_hash_table_destroy(askers);
	atomic_store(&armed, false);
	if (atomic_load(&count))
		arm(PERIOD_NS);
}

static void timer_fired(struct dm_timer *unused)
{
	dm_wq_queue(wq, &work);
}

static void prepare(void)
{
	for (unsigned i = 0; i < LISTS; i++) {
		pthread_mutex_init(&lists[i].lock, NULL);
		lists[i].tgids = g_hash_table_new(NULL, NULL);
	}
	timer.fn = timer_fired;
	work.fn = look;
	wq = dm_wq_new("waiting", 1);
}

void dmfs_waiting_look(void)
{
	if (atomic_load(&count))
		dm_wq_queue(wq, &work);
}

/* --- requests ----------------------------------------------------------------------------- */

void dmfs_waiting_init(struct dmfs_waiting *w, pid_t tid, void (*give_up)(struct dmfs_waiting *),
		       void (*free)(struct dmfs_waiting *))
{
	atomic_init(&w->refs, 1);
	w->tid = tid;
	w->tgid = 0;
	w->unseen = NULL;
	w->give_up = give_up;
	w->free = free;
	w->prev = NULL;
}

void dmfs_waiting_get(struct dmfs_waiting *w)
{
	atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
}

void dmfs_waiting_put(struct dmfs_waiting *w)
{
	if (atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) != 1)
		return;
	dmfs_waiting_unlist(w);
	w->free(w);
}

void dmfs_waiting_list(struct dmfs_waiting *w)
{
	struct list *l = list_of(w);

	if (w->tid <= 0 && !w->unseen)
		return;
	pthread_once(&once, prepare);
	pthread_mutex_lock(&l->lock);
	w->tgid = GPOINTER_TO_INT(g_hash_table_lookup(l->tgids, GINT_TO_POINTER(w->tid)));
	if (!w->tgid && w->tid > 0) {
		pthread_mutex_unlock(&l->lock);
		w->tgid = dmfs_process_of(w->tid);
		pthread_mutex_lock(&l->lock);
		g_hash_table_insert(l->tgids, GINT_TO_POINTER(w->tid), GINT_TO_POINTER(w->tgid));
	}
	w->next = l->head;
	w->prev = &l->head;
	if (w->next)
		w->next->prev = &w->next;
	l->head = w;
	atomic_fetch_add(&count, 1);
	pthread_mutex_unlock(&l->lock);
	arm(SOON_NS);
}

void dmfs_waiting_unlist(struct dmfs_waiting *w)
{
	struct list *l = list_of(w);

	if (w->tid <= 0 && !w->unseen)
		return;
	pthread_once(&once, prepare);
	pthread_mutex_lock(&l->lock);
	if (w->prev)
		take_out(w);
	pthread_mutex_unlock(&l->lock);
}
