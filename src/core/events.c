/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Events (events.h).
 *
 * A channel without readers keeps nothing.  Locks: the channel's own; wake-ups are work of a queue, so whoever raises
 * an event (a target, in the middle of its I/O) waits for nobody.
 */
#include <inttypes.h>
#include <string.h>

#include "devices.h"
#include "events.h"

#include <dmfs/container_of.h>
#include <dmfs/work.h>

#define KEEP_LINES 4096u /* in a channel */

struct dm_events {
	pthread_mutex_t lock;
	GQueue lines;       /* of char *, the newest at the tail */
	uint64_t next;      /* number of the line after the newest */
	GHashTable *readers;
	GQueue armed;       /* of readers */
	bool ended;
};

struct dm_event_reader {
	struct dm_events *channel;
	uint64_t next; /* number of the first unread line */
	void (*wake)(void *);
	void *context;
	bool is_armed;
	GList link; /* in armed */
	struct dm_work work;
	struct dm_wq *wq;
};

static pthread_mutex_t make_lock = PTHREAD_MUTEX_INITIALIZER;
static struct dm_events *root;

static struct dm_wq *wake_wq;

static void make_wake_queue(void)
{
	wake_wq = dm_wq_new("dm-events", 2);
}

static struct dm_wq *wake_queue(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_wake_queue);
	return wake_wq;
}

void dm_events_settle(void)
{
	dm_wq_flush(wake_queue());
}

static struct dm_events *channel_of(struct dm_mapped *md, bool make)
{
	struct dm_events **place = md ? &md->events : &root, *c;

	pthread_mutex_lock(&make_lock);
	c = *place;
	if (!c && make) {
		c = g_new0(struct dm_events, 1);
		pthread_mutex_init(&c->lock, NULL);
		c->readers = g_hash_table_new(NULL, NULL);
		*place = c;
	}
	pthread_mutex_unlock(&make_lock);
	return c;
}

void dm_events_free(struct dm_mapped *md)
{
	struct dm_events *c = md->events;

	if (!c)
		return;
	g_queue_clear_full(&c->lines, g_free);
	g_hash_table_destroy(c->readers);
	pthread_mutex_destroy(&c->lock);
	g_free(c);
}

/* --- raising --------------------------------------------------------------------------- */

/* Holds c->lock. */
static void wake_armed(struct dm_events *c)
{
	GList *l;

	dm_assert_locked(&c->lock);
	while ((l = g_queue_pop_head_link(&c->armed))) {
		struct dm_event_reader *r = l->data;

		r->is_armed = false;
		dm_wq_queue(wake_queue(), &r->work);
	}
}

static void post(struct dm_mapped *md, const char *line, bool last)
{
	struct dm_events *c = channel_of(md, false);

	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	if (g_hash_table_size(c->readers)) {
		g_queue_push_tail(&c->lines, g_strdup(line));
		c->next++;
		if (c->lines.length > KEEP_LINES)
			g_free(g_queue_pop_head(&c->lines));
	}
	c->ended |= last;
	wake_armed(c);
	pthread_mutex_unlock(&c->lock);
}

void dm_event_value(GString *out, const char *value)
{
	for (const unsigned char *p = (const unsigned char *)value; *p; p++) {
		if (*p <= ' ' || *p == '\\' || *p == 0x7f)
			g_string_append_printf(out, "\\x%02x", *p);
		else
			g_string_append_c(out, (char)*p);
	}
}

static void raise_event(struct dm_mapped *md, const char *action, const char *target, const char *dm_action,
		  const char *words, bool last)
{
	g_autofree char *name = dm_mapped_dup_name(md), *uuid = dm_mapped_dup_uuid(md);
	/* At once: growing would leave copies behind, and somebody may have taken a key for a name. */
	g_autoptr(GString) line = g_string_sized_new(4 * (strlen(name) + strlen(uuid)) + 256);

	g_string_append_printf(line, "ACTION=%s DM_NAME=", action);
	dm_event_value(line, name);
	g_string_append(line, " DM_UUID=");
	dm_event_value(line, uuid);
	g_string_append_printf(line, " DM_SEQNUM=%lu", atomic_fetch_add(&md->uevent_seq, 1) + 1);
	if (target)
		g_string_append_printf(line, " DM_TARGET=%s", target);
	if (dm_action)
		g_string_append_printf(line, " DM_ACTION=%s", dm_action);
	if (words && *words)
		g_string_append_printf(line, " %s", words);
	g_string_append_printf(line, " MAJOR=0 MINOR=%u\n", md->minor);
	post(NULL, line->str, false);
	post(md, line->str, last);
	explicit_bzero(line->str, line->len);
	explicit_bzero(name, strlen(name));
	explicit_bzero(uuid, strlen(uuid));
}

static atomic_uint_least64_t changed_ns;

/* Each change has a time of its own, whatever the clock's steps. */
void dm_devices_touch(void)
{
	uint64_t before = atomic_load(&changed_ns), now;
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	do
		now = MAX((uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec, before + 1);
	while (!atomic_compare_exchange_weak(&changed_ns, &before, now));
}

struct timespec dm_devices_changed(void)
{
	uint64_t ns = atomic_load(&changed_ns);

	return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

void dm_event_added(struct dm_mapped *md)
{
	dm_devices_touch();
	raise_event(md, "add", NULL, NULL, NULL, false);
}

void dm_event_removed(struct dm_mapped *md)
{
	dm_devices_touch();
	raise_event(md, "remove", NULL, NULL, NULL, true);
}

/* The kernel counts a new name or uuid as an event of the live table. */
static void count_if_live(struct dm_mapped *md)
{
	if (atomic_load(&md->live))
		atomic_fetch_add(&md->event_nr, 1);
}

void dm_event_renamed(struct dm_mapped *md, const char *old_name)
{
	g_autoptr(GString) words = g_string_new("DM_OLD_NAME=");

	dm_devices_touch();
	dm_event_value(words, old_name);
	count_if_live(md);
	raise_event(md, "change", NULL, NULL, words->str, false);
}

/* Of a device without a table it is but a step in making it. */
void dm_event_uuid_set(struct dm_mapped *md)
{
	dm_devices_touch();
	if (!atomic_load(&md->live))
		return;
	count_if_live(md);
	raise_event(md, "change", NULL, NULL, NULL, false);
}

void dm_event_resumed(struct dm_mapped *md)
{
	dm_devices_touch();
	raise_event(md, "change", NULL, NULL, NULL, false);
}

void dm_event_run_resized(struct dm_work *work)
{
	struct dm_mapped *md = container_of(work, struct dm_mapped, resized);

	if (dm_front && dm_front->resized)
		dm_front->resized(md);
	dm_devices_touch();
	if (!dm_mapped_removed(md))
		raise_event(md, "change", NULL, NULL, "RESIZE=1", false);
	dm_mapped_unref(md);
}

void dm_event_resized(struct dm_mapped *md)
{
	dm_mapped_ref(md);
	if (!dm_wq_queue(wake_queue(), &md->resized))
		dm_mapped_unref(md);
}

void dm_target_event(struct dm_target *ti, const char *action, const char *words)
{
	struct dm_mapped *md = ti->table->md;

	atomic_fetch_add(&md->event_nr, 1);
	raise_event(md, "change", ti->type->name, action, words, false);
}

void dm_target_uevent(struct dm_target *ti, const char *words)
{
	raise_event(ti->table->md, "change", NULL, NULL, words, false);
}

/* --- readers ------------------------------------------------------------------------------ */

static void run_wake(struct dm_work *work)
{
	struct dm_event_reader *r =
		container_of(work, struct dm_event_reader, work);

	r->wake(r->context);
}

struct dm_event_reader *dm_event_reader_new(struct dm_mapped *md, void (*wake)(void *), void *context)
{
	struct dm_event_reader *r = g_new0(struct dm_event_reader, 1);
	struct dm_events *c = channel_of(md, true);
	bool removed = false;

	r->channel = c;
	r->wake = wake;
	r->context = context;
	r->link.data = r;
	r->work.fn = run_wake;
	if (md) {
		dm_topology_lock();
		removed = md->removed;
		dm_topology_unlock();
	}
	pthread_mutex_lock(&c->lock);
	r->next = c->next;
	c->ended |= removed;
	g_hash_table_add(c->readers, r);
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void disarm_locked(struct dm_event_reader *r)
{
	if (r->is_armed)
		g_queue_unlink(&r->channel->armed, &r->link);
	r->is_armed = false;
}

void dm_event_reader_free(struct dm_event_reader *r)
{
	struct dm_events *c = r->channel;

	pthread_mutex_lock(&c->lock);
	disarm_locked(r);
	g_hash_table_remove(c->readers, r);
	if (!g_hash_table_size(c->readers))
		g_queue_clear_full(&c->lines, g_free);
	pthread_mutex_unlock(&c->lock);
	dm_wq_flush_work(wake_queue(), &r->work);
	g_free(r);
}

/* Moves a reader that the ring has run over; holds the lock.  How many lines it missed. */
static uint64_t catch_up(struct dm_event_reader *r)
{
	uint64_t oldest = r->channel->next - r->channel->lines.length, missed = 0;

	if (r->next < oldest) {
		missed = oldest - r->next;
		r->next = oldest;
	}
	return missed;
}

bool dm_event_read(struct dm_event_reader *r, GString *out, size_t max)
{
	struct dm_events *c = r->channel;
	gsize begin = out->len;
	uint64_t missed;
	GList *l;

	pthread_mutex_lock(&c->lock);
	missed = catch_up(r);
	if (missed)
		g_string_append_printf(out, "ACTION=lost DM_COUNT=%" PRIu64 "\n", missed);
	l = g_queue_peek_nth_link(&c->lines, (guint)(c->lines.length - (c->next - r->next)));
	for (; l; l = l->next, r->next++) {
		if (out->len > begin && out->len - begin + strlen(l->data) > max)
			break;
		g_string_append(out, l->data);
	}
	pthread_mutex_unlock(&c->lock);
	return out->len > begin;
}

bool dm_event_skip(struct dm_event_reader *r)
{
	bool any;

	pthread_mutex_lock(&r->channel->lock);
	any = r->next != r->channel->next;
	r->next = r->channel->next;
	pthread_mutex_unlock(&r->channel->lock);
	return any;
}

bool dm_event_pending(struct dm_event_reader *r)
{
	bool any;

	pthread_mutex_lock(&r->channel->lock);
	any = r->next != r->channel->next || r->channel->ended;
	pthread_mutex_unlock(&r->channel->lock);
	return any;
}

void dm_event_arm(struct dm_event_reader *r)
{
	struct dm_events *c = r->channel;

	pthread_mutex_lock(&c->lock);
	if (!r->is_armed) {
		r->is_armed = true;
		g_queue_push_tail_link(&c->armed, &r->link);
	}
	if (r->next != c->next || c->ended) {
		disarm_locked(r);
		dm_wq_queue(wake_queue(), &r->work);
	}
	pthread_mutex_unlock(&c->lock);
}

void dm_event_disarm(struct dm_event_reader *r)
{
	pthread_mutex_lock(&r->channel->lock);
	disarm_locked(r);
	pthread_mutex_unlock(&r->channel->lock);
}

void dm_event_kick(struct dm_event_reader *r)
{
	dm_wq_queue(wake_queue(), &r->work);
}

bool dm_event_ended(struct dm_event_reader *r)
{
	bool ended;

	pthread_mutex_lock(&r->channel->lock);
	ended = r->channel->ended && r->next == r->channel->next;
	pthread_mutex_unlock(&r->channel->lock);
	return ended;
}
