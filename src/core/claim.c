/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Claims (dmfs/claim.h): which sectors of which devices at the bottom they are on.
 *
 * A bottom is a backing store, or a dmfs device beneath which a claim does not reach.  A claim has extents on bottoms,
 * found by going down the live tables, and remembers the devices it came through.  Each bottom has the list of its
 * extents, so that a claim is compared with its neighbours alone.
 *
 * A target with several devices (stripes, legs) is gone through exactly if all of it is claimed; of a part it is not
 * known where it lies, and the extents are too large.  So where one of two is too large, they do not meet if they
 * came through one device with different sectors of it.
 */
#include <errno.h>
#include <string.h>

#include "claim.h"
#include "claim_bottom.h"

#include <dmfs/claim.h>

/* Held across the walk and the system calls that lock files; after md->control and md->hooks, before the topology. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *claims;   /* struct dm_target * -> struct claim */
static GHashTable *passed;   /* struct dm_mapped * -> how many extents came through it */
static struct dm_mapped *moving; /* the device whose next table is being looked at */
static unsigned last_set;

#define FEW 8   /* extents that are put in their places one by one */
#define MANY 64 /* of one claim on one bottom are locked together, with what is between them */

/* --- extents ------------------------------------------------------------------------------------- */

static void count_steps(struct extent *e, int by)
{
	for (unsigned i = 0; i < e->steps; i++) {
		int n = GPOINTER_TO_INT(g_hash_table_lookup(passed, e->way[i].md)) + by;

		if (n)
			g_hash_table_insert(passed, e->way[i].md, GINT_TO_POINTER(n));
		else
			g_hash_table_remove(passed, e->way[i].md);
	}
}

/* All that are gone of a claim.  Devices are put when no lock is held. */
static void sweep(struct claim *c, GPtrArray *put)
{
	guint n = 0;

	for (guint i = 0; i < c->extents->len; i++) {
		struct extent *e = c->extents->pdata[i];

		if (e->gone) {
			e->bottom->unsorted = true;
			e->bottom->leaving++;
		}
	}
	for (guint i = 0; i < c->extents->len; i++) {
		struct extent *e = c->extents->pdata[i];

		if (!e->gone) {
			c->extents->pdata[n++] = e;
			continue;
		}
		dm_bottom_order(e->bottom);
		dm_extent_unlock(e);
		count_steps(e, -1);
		if (!--e->bottom->leaving && !e->bottom->extents->len)
			dm_bottom_drop(e->bottom, put);
		g_ptr_array_add(put, e->dev);
		g_free(e);
	}
	g_ptr_array_set_size(c->extents, (gint)n);
}

/* The way down. */
struct walk {
	struct claim *claim;
	struct dm_mapped *changing; /* takes this table for its live one */
	struct dm_table *table;
	bool exact, fresh;
	GArray *way;
	GPtrArray *extents;
	/* of the target at hand */
	uint64_t start, end;
};

static void walk(struct walk *w, struct dm_dev *dev, uint64_t start, uint64_t end);

static void add_extent(struct walk *w, struct dm_dev *dev, uint64_t start, uint64_t end)
{
	struct extent *e = g_malloc0(sizeof *e + w->way->len * sizeof e->way[0]);

	e->claim = w->claim;
	e->dev = dm_dev_get(dev);
	e->start = start;
	e->end = end;
	e->exact = w->exact;
	e->fresh = w->fresh;
	e->steps = w->way->len;
	if (e->steps)
		memcpy(e->way, w->way->data, e->steps * sizeof e->way[0]);
	g_ptr_array_add(w->extents, e);
}

/* A device of a target of which [w->start, w->end) is claimed. */
static int walk_device(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	struct walk *w = data;
	uint64_t from = w->start, to = w->end;
	bool exact = w->exact;

	if (len == ti->len) {
		walk(w, dev, start + from, start + to);
	} else {
		w->exact = exact && !from && to == ti->len;
		walk(w, dev, start, start + len);
	}
	w->exact = exact;
	w->start = from; /* for its next device */
	w->end = to;
	return 0;
}

static bool is_straight(const struct dm_target *ti)
{
	return (ti->type->features & DM_TARGET_STRAIGHT) && ti->type->iterate_devices;
}

static void walk_table(struct walk *w, struct dm_mapped *md, struct dm_table *t, uint64_t start, uint64_t end)
{
	end = MIN(end, t->sectors);
	while (start < end) {
		struct dm_target *ti = dm_table_find(t, start);
		uint64_t stop = MIN(end, ti->begin + ti->len);

		w->start = start - ti->begin;
		w->end = stop - ti->begin;
		if (is_straight(ti))
			ti->type->iterate_devices(ti, walk_device, w);
		else
			add_extent(w, &md->dev, start, stop);
		start = stop;
	}
}

static void walk(struct walk *w, struct dm_dev *dev, uint64_t start, uint64_t end)
{
	struct dm_mapped *md = dm_dev_mapped(dev);
	struct step step = {md, start, end};
	bool was_fresh = w->fresh;
	struct dm_table *t;

	if (!md) {
		add_extent(w, dev, start, end);
		return;
	}
	w->fresh |= md == w->changing;
	t = md == w->changing ? w->table ? dm_table_ref(w->table) : NULL : dm_mapped_live(md);
	g_array_append_val(w->way, step);
	if (t)
		walk_table(w, md, t, start, end);
	else
		add_extent(w, dev, start, end);
	g_array_set_size(w->way, w->way->len - 1);
	w->fresh = was_fresh;
	dm_table_unref(t);
}

/* Goes down from a claim. */
static GPtrArray *find_extents(struct claim *c, struct dm_mapped *changing, struct dm_table *t)
{
	struct walk w = {.claim = c, .changing = changing, .table = t, .exact = true};

	w.way = g_array_new(FALSE, FALSE, sizeof(struct step));
	w.extents = g_ptr_array_new();
	walk(&w, c->dev, c->start, c->end);
	g_array_free(w.way, TRUE);
	return w.extents;
}

/* --- who meets whom ------------------------------------------------------------------------------ */

/* Whether they came through one device by different sectors. */
static bool apart(const struct extent *a, const struct extent *b)
{
	for (unsigned i = 0; i < a->steps; i++)
		for (unsigned k = 0; k < b->steps; k++) {
			const struct step *x = &a->way[i], *y = &b->way[k];

			if (x->md == y->md && (x->end <= y->start || y->end <= x->start))
				return true;
		}
	return false;
}

static bool through(const struct extent *e, const struct dm_mapped *md)
{
	for (unsigned i = 0; i < e->steps; i++)
		if (e->way[i].md == md)
			return true;
	return false;
}

/* One may be there while the other one is active. */
static bool hand_over(const struct claim *x, const struct claim *y)
{
	return x->ti->type == y->ti->type && (x->ti->type->features & DM_TARGET_HANDS_OVER) &&
	       !(x->active && y->active) && !strcmp(x->what, y->what) && x->start == y->start && x->end == y->end &&
	       dm_dev_same(x->dev, y->dev);
}

static bool meet(struct extent *a, struct extent *b, void *unused)
{
	const struct claim *x = a->claim, *y = b->claim;

	if (x == y || a->cover || b->cover || x->set == y->set || !((x->mode | y->mode) & DM_MODE_WRITE))
		return false;
	if (x->ti->table != y->ti->table && x->ti->table->md == y->ti->table->md)
		return false;
	if (hand_over(x, y))
		return false;
	if (moving && a->fresh != b->fresh && through(a->fresh ? b : a, moving)) /* the one comes, the other goes */
		return false;
	return (a->exact && b->exact) || !apart(a, b);
}

static int refuse(struct extent *e, struct extent *other, GError **err)
{
	g_autoptr(GString) name = g_string_new(NULL), who = g_string_new(NULL);

	dm_dev_print(e->claim->dev, name);
	dm_mapped_name(other->claim->ti->table->md, who);
	return dm_fail(err, EBUSY, "%s: the %s %s is in use already: it is the %s of '%s' (%s)", e->claim->ti->type->name,
		       e->claim->what, name->str, other->claim->what, who->str, other->claim->ti->type->name);
}

/* The device's range that holds all of a claim's pieces on a bottom, to be locked instead of them. */
static void add_cover(struct bottom *b, GPtrArray *extents)
{
	size_t size = sizeof(struct extent) + b->first->steps * sizeof(struct step);
	struct extent *e = g_memdup2(b->first, size);

	e->covered = false;
	dm_dev_get(e->dev);
	e->start = b->start;
	e->end = b->end;
	e->cover = true;
	g_ptr_array_add(extents, e);
}

/* The kernel's list of a file's locks is searched from its begin for each. */
static void cover_many(GPtrArray *extents)
{
	guint n = extents->len;

	for (guint i = 0; i < n; i++) {
		struct extent *e = extents->pdata[i];
		struct bottom *b = e->bottom = dm_bottom_get(e->dev);

		if (!b->first)
			b->first = e;
		b->start = b->pieces ? MIN(b->start, e->start) : e->start;
		b->end = b->pieces ? MAX(b->end, e->end) : e->end;
		b->pieces++;
	}
	for (guint i = 0; i < n; i++) {
		struct extent *e = extents->pdata[i];
		struct bottom *b = e->bottom;

		e->covered = b->pieces > MANY;
		if (e->covered && b->first == e)
			add_cover(b, extents);
	}
	for (guint i = 0; i < n; i++) {
		struct bottom *b = ((struct extent *)extents->pdata[i])->bottom;

		b->first = NULL;
		b->pieces = 0;
	}
}

/* All of a claim's, or none. */
static int enter_all(struct claim *c, GPtrArray *extents, GPtrArray *put, GError **err)
{
	guint before = c->extents->len;
	int error = 0;

	cover_many(extents);
	for (guint i = 0; i < extents->len && !error; i++) {
		struct extent *e = extents->pdata[i], *other = dm_bottom_common(e, meet, NULL);

		error = other ? refuse(e, other, err) : 0;
	}
	for (guint i = 0; i < extents->len; i++) {
		dm_bottom_place(extents->pdata[i], extents->len <= FEW);
		count_steps(extents->pdata[i], 1);
		g_ptr_array_add(c->extents, extents->pdata[i]);
	}
	for (guint i = 0; i < extents->len && !error; i++)
		error = dm_extent_lock(extents->pdata[i], err);
	g_ptr_array_free(extents, TRUE);
	if (!error)
		return 0;
	for (guint i = before; i < c->extents->len; i++)
		((struct extent *)c->extents->pdata[i])->gone = true;
	sweep(c, put);
	return error;
}

/* --- claiming -------------------------------------------------------------------------------------- */

static GPtrArray *lock_claims(void)
{
	dm_block_begin();
	pthread_mutex_lock(&lock);
	if (!claims) {
		claims = g_hash_table_new(NULL, NULL);
		passed = g_hash_table_new(NULL, NULL);
	}
	return g_ptr_array_new_with_free_func((GDestroyNotify)dm_dev_put);
}

static void unlock_claims(GPtrArray *put)
{
	pthread_mutex_unlock(&lock);
	g_ptr_array_free(put, TRUE);
	dm_block_end();
}

static void free_claim(struct claim *c, GPtrArray *put)
{
	for (guint i = 0; i < c->extents->len; i++)
		((struct extent *)c->extents->pdata[i])->gone = true;
	sweep(c, put);
	g_ptr_array_free(c->extents, TRUE);
	g_ptr_array_add(put, c->dev);
	g_free(c);
}

static int claim(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t end, enum dm_mode mode,
		 const char *what, struct dm_target *other, GError **err)
{
	GPtrArray *put = lock_claims();
	struct claim *c = g_new0(struct claim, 1), *joined = other ? g_hash_table_lookup(claims, other) : NULL;
	int error;

	c->ti = ti;
	c->dev = dm_dev_get(dev);
	c->start = start;
	c->end = end;
	c->mode = mode;
	c->what = what;
	c->set = joined ? joined->set : ++last_set;
	c->extents = g_ptr_array_new();
	error = enter_all(c, find_extents(c, NULL, NULL), put, err);
	if (error) {
		free_claim(c, put);
	} else {
		c->next = g_hash_table_lookup(claims, ti);
		g_hash_table_insert(claims, ti, c);
		ti->claims = true;
	}
	unlock_claims(put);
	return error;
}

int dm_claim_device(struct dm_target *ti, struct dm_dev *dev, enum dm_mode mode, const char *what, GError **err)
{
	return claim(ti, dev, 0, UINT64_MAX, mode, what, NULL, err);
}

int dm_claim_range(struct dm_target *ti, struct dm_dev *dev, uint64_t sector, uint64_t sectors, enum dm_mode mode,
		   const char *what, GError **err)
{
	uint64_t end;

	if (__builtin_add_overflow(sector, sectors, &end))
		end = UINT64_MAX;
	return claim(ti, dev, sector, end, mode, what, NULL, err);
}

int dm_claim_with(struct dm_target *ti, struct dm_dev *dev, enum dm_mode mode, const char *what,
		  struct dm_target *other, GError **err)
{
	return claim(ti, dev, 0, UINT64_MAX, mode, what, other, err);
}

/* Those on one device, or (NULL) all. */
static void end_claims(struct dm_target *ti, struct dm_dev *dev)
{
	GPtrArray *put = lock_claims();
	struct claim *first = g_hash_table_lookup(claims, ti), *c;

	for (struct claim **p = &first; (c = *p);) {
		if (dev && c->dev != dev) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		free_claim(c, put);
	}
	if (first)
		g_hash_table_insert(claims, ti, first);
	else
		g_hash_table_remove(claims, ti);
	ti->claims = first;
	unlock_claims(put);
}

void dm_claims_end(struct dm_target *ti)
{
	if (ti->claims)
		end_claims(ti, NULL);
}

void dm_unclaim_device(struct dm_target *ti, struct dm_dev *dev)
{
	if (ti->claims && dev)
		end_claims(ti, dev);
}

/* --- who is active --------------------------------------------------------------------------------- */

static int activate(struct claim *c, struct dm_mapped **who, GError **err)
{
	for (guint i = 0; i < c->extents->len; i++) {
		struct extent *e = c->extents->pdata[i], *other = dm_bottom_common(e, meet, NULL);

		if (other) {
			*who = dm_mapped_ref(other->claim->ti->table->md);
			return refuse(e, other, err);
		}
	}
	return 0;
}

static struct claim *first_of(struct dm_target *ti)
{
	return ti->claims && (ti->type->features & DM_TARGET_HANDS_OVER) ? g_hash_table_lookup(claims, ti) : NULL;
}

static bool any_hands_over(struct dm_table *t)
{
	for (unsigned i = 0; i < t->n; i++)
		if (dm_table_target(t, i)->claims && (dm_table_target(t, i)->type->features & DM_TARGET_HANDS_OVER))
			return true;
	return false;
}

static void set_active(struct dm_table *t, bool active)
{
	for (unsigned i = 0; i < t->n; i++)
		for (struct claim *c = first_of(dm_table_target(t, i)); c; c = c->next)
			c->active = active;
}

int dm_claims_activate(struct dm_table *t, struct dm_mapped **who, GError **err)
{
	GPtrArray *put;
	int error = 0;

	*who = NULL;
	if (!any_hands_over(t))
		return 0;
	put = lock_claims();
	set_active(t, true);
	for (unsigned i = 0; i < t->n && !error; i++)
		for (struct claim *c = first_of(dm_table_target(t, i)); c && !error; c = c->next)
			error = activate(c, who, err);
	if (error)
		set_active(t, false);
	unlock_claims(put);
	return error;
}

void dm_claims_rest(struct dm_table *t)
{
	GPtrArray *put;

	if (!any_hands_over(t))
		return;
	put = lock_claims();
	set_active(t, false);
	unlock_claims(put);
}

/* --- a device on the way gets another table ---------------------------------------------------------- */

static bool passes(const struct claim *c, const struct dm_mapped *md)
{
	bool any = false;

	for (guint i = 0; i < c->extents->len && !any; i++)
		any = through(c->extents->pdata[i], md);
	return any;
}

/* What of a claim's would be beneath the device by the new table. */
static GPtrArray *find_fresh(struct claim *c, struct dm_mapped *md, struct dm_table *t, GPtrArray *put)
{
	GPtrArray *all = find_extents(c, md, t), *fresh = g_ptr_array_new();

	for (guint i = 0; i < all->len; i++) {
		struct extent *e = all->pdata[i];

		if (e->fresh) {
			g_ptr_array_add(fresh, e);
		} else {
			g_ptr_array_add(put, e->dev);
			g_free(e);
		}
	}
	g_ptr_array_free(all, TRUE);
	return fresh;
}

/* Calls fn for every claim that comes through a device, until it returns an error. */
static int each_through(struct dm_mapped *md, int (*fn)(struct claim *, void *), void *data)
{
	GHashTableIter iter;
	gpointer first;
	int error = 0;

	if (!g_hash_table_contains(passed, md))
		return 0;
	g_hash_table_iter_init(&iter, claims);
	while (!error && g_hash_table_iter_next(&iter, NULL, &first))
		for (struct claim *c = first; c && !error; c = c->next)
			if (passes(c, md))
				error = fn(c, data);
	return error;
}

struct move {
	struct dm_mapped *md;
	struct dm_table *table;
	bool moved; /* it has happened */
	GPtrArray *put;
	GError **err;
};

static int follow(struct claim *c, void *data)
{
	struct move *m = data;

	return enter_all(c, find_fresh(c, m->md, m->table, m->put), m->put, m->err);
}

/* Gives up those of the new table, or (moved) those of the old one. */
static int settle(struct claim *c, void *data)
{
	struct move *m = data;

	for (guint i = 0; i < c->extents->len; i++) {
		struct extent *e = c->extents->pdata[i];

		if (!through(e, m->md))
			continue;
		e->gone = e->fresh != m->moved;
		e->fresh = false;
	}
	sweep(c, m->put);
	return 0;
}

int dm_claims_follow(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	struct move m = {.md = md, .table = t, .put = lock_claims(), .err = err};
	int error;

	moving = md;
	error = each_through(md, follow, &m);
	moving = NULL;
	if (error)
		each_through(md, settle, &m);
	unlock_claims(m.put);
	return error;
}

void dm_claims_settle(struct dm_mapped *md, bool moved)
{
	struct move m = {.md = md, .moved = moved, .put = lock_claims()};

	each_through(md, settle, &m);
	unlock_claims(m.put);
}
