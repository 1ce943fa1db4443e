/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeping devices in the state database (state.h). */
#include <errno.h>
#include <string.h>

#include "devices.h"
#include "registry.h"
#include "state.h"
#include "type.h"

#include <dmfs/options.h>

#define MAX_WORD (1u << 20) /* bytes: twice a table's longest line, for what is quoted in it */
#define MAX_SHOWN 4096      /* of a table, in an error text */

_Thread_local bool dm_print_minors;

static bool restoring;
static _Thread_local bool held;

/* One change at a time, from storing to publishing; md->unloaded, md->saved_ids and the like are its, too. */
static pthread_mutex_t saving = PTHREAD_MUTEX_INITIALIZER;

/* What could not be loaded at the start: stays in the database until a new table takes its place. */
struct dm_unloaded {
	struct dm_registry_table live, inactive;
	struct dm_table *stand_in; /* for the live one: lines of types that have an absent one */
};

/* --- saving ----------------------------------------------------------------------------- */

static struct dm_registry_table describe(struct dm_table *t, const struct dm_registry_table *unloaded)
{
	struct dm_registry_table out = {0};
	g_autoptr(GString) text = g_string_new(NULL);

	if (!t) {
		if (unloaded && unloaded->text) {
			out = *unloaded;
			out.text = g_strdup(unloaded->text);
		}
		return out;
	}
	dm_print_minors = true;
	dm_table_print(t, DM_STATUS_TABLE, text);
	dm_print_minors = false;
	out.text = g_strdup(text->str);
	out.id = t->id;
	out.readonly = !(t->mode & DM_MODE_WRITE);
	out.secret = atomic_load(&t->secret);
	return out;
}

/* Which of the ids saved before are not any more. */
static void dropped_ids(struct dm_mapped *md, uint64_t live, uint64_t inactive, uint64_t drop[2])
{
	for (int i = 0; i < 2; i++)
		drop[i] = md->saved_ids[i] != live && md->saved_ids[i] != inactive ? md->saved_ids[i] : 0;
}

/* A device on its way into the database. */
struct kept {
	struct dm_mapped *md;
	struct dm_table *live, *inactive;
};

static struct dm_table *ref_or_null(struct dm_table *t)
{
	return t ? dm_table_ref(t) : NULL;
}

/* What a device is; with a change, what it will be. */
static struct kept gather(struct dm_mapped *md, const struct dm_change *c, struct dm_registry_device *d, uint64_t drop[2])
{
	unsigned what = c ? c->what : 0;
	struct dm_unloaded *u = md->unloaded;
	struct kept k = {.md = md};
	struct dm_owner image;

	k.live = what & DM_CHANGE_LIVE ? ref_or_null(c->live) : dm_mapped_live(md);
	k.inactive = what & DM_CHANGE_INACTIVE ? ref_or_null(c->inactive) : dm_mapped_inactive(md);
	memset(d, 0, sizeof *d);
	d->minor = md->minor;
	d->name = what & DM_CHANGE_NAME ? g_strdup(c->name) : dm_mapped_dup_name(md);
	d->uuid = what & DM_CHANGE_UUID ? g_strdup(c->uuid) : dm_mapped_dup_uuid(md);
	d->readonly = what & DM_CHANGE_READONLY ? c->readonly : atomic_load(&md->readonly);
	d->live = describe(k.live, u && !(what & DM_CHANGE_LIVE) ? &u->live : NULL);
	d->inactive = describe(k.inactive, u && !(what & DM_CHANGE_INACTIVE) ? &u->inactive : NULL);
	dm_mapped_owner(md, &image);
	d->image_mode = what & DM_CHANGE_MODE ? c->image.mode : image.mode;
	d->image_uid = what & DM_CHANGE_UID ? c->image.uid : image.uid;
	d->image_gid = what & DM_CHANGE_GID ? c->image.gid : image.gid;
	dropped_ids(md, d->live.id, d->inactive.id, drop);
	return k;
}

static void settle(struct kept *k, struct dm_registry_device *d, bool stored)
{
	if (stored) {
		k->md->stored = true;
		k->md->saved_ids[0] = d->live.id;
		k->md->saved_ids[1] = d->inactive.id;
	}
	dm_registry_device_clear(d);
	dm_table_unref(k->live);
	dm_table_unref(k->inactive);
}

static int save_change(struct dm_change *c, GError **err)
{
	struct dm_registry_device d;
	uint64_t drop[1][2];
	struct kept k = gather(c->md, c, &d, drop[0]);
	int error = dm_registry_save(&d, (const uint64_t(*)[2])drop, 1, err);

	settle(&k, &d, !error);
	return error;
}

/* The text of a table that could not be brought back goes when another takes its place, or it is cleared. */
static void drop_unloaded(struct dm_change *c)
{
	struct dm_unloaded *u = c->md->unloaded;

	if (u && (c->what & DM_CHANGE_LIVE)) {
		g_clear_pointer(&u->live.text, g_free);
		c->stand_in = g_steal_pointer(&u->stand_in);
	}
	if (u && (c->what & DM_CHANGE_INACTIVE))
		g_clear_pointer(&u->inactive.text, g_free);
}

int dm_state_change(struct dm_change *c, GError **err)
{
	int error = 0;

	dm_block_begin();
	pthread_mutex_lock(&saving);
	if (held && !c->what)
		c->md->held = true;
	/*
	 * What is removed is not stored again: dm_state_remove() comes when it is marked so, and under the same lock.
	 */
	if (dm_mapped_removed(c->md))
		error = dm_fail(err, ENXIO, "the device was removed");
	else if (!restoring && !held && !c->md->held && dm_registry_is_open())
		error = save_change(c, err);
	if (!error) {
		c->publish(c);
		drop_unloaded(c);
	}
	pthread_mutex_unlock(&saving);
	dm_block_end();
	return error;
}

/* All of them, as they are. */
static int save_all(struct dm_mapped *const *devices, size_t n, GError **err)
{
	g_autofree struct dm_registry_device *d = g_new0(struct dm_registry_device, n);
	g_autofree uint64_t(*drop)[2] = g_malloc0_n(n, sizeof *drop);
	g_autofree struct kept *kept = g_new0(struct kept, n);
	size_t m = 0;
	int error;

	for (size_t i = 0; i < n; i++) {
		if (dm_mapped_removed(devices[i]))
			continue;
		kept[m] = gather(devices[i], NULL, &d[m], drop[m]);
		m++;
	}
	error = m ? dm_registry_save(d, (const uint64_t(*)[2])drop, m, err) : 0;
	for (size_t i = 0; i < m; i++)
		settle(&kept[i], &d[i], !error);
	return error;
}

void dm_state_hold(void)
{
	held = true;
}

int dm_state_save_held(GPtrArray *devices, GError **err)
{
	int error = 0;

	held = false;
	if (!devices)
		return 0;
	dm_block_begin();
	pthread_mutex_lock(&saving);
	if (!restoring && dm_registry_is_open())
		error = save_all((struct dm_mapped *const *)devices->pdata, devices->len, err);
	for (unsigned i = 0; i < devices->len && !error; i++)
		((struct dm_mapped *)devices->pdata[i])->held = false;
	pthread_mutex_unlock(&saving);
	dm_block_end();
	return error;
}

int dm_state_remove(struct dm_mapped *md, GError **err)
{
	int error;

	if (restoring || !dm_registry_is_open())
		return 0;
	dm_block_begin();
	pthread_mutex_lock(&saving);
	error = md->stored ? dm_registry_remove(md->minor, md->saved_ids, err) : 0;
	pthread_mutex_unlock(&saving);
	dm_block_end();
	return error;
}

void dm_state_forget(struct dm_mapped *md)
{
	struct dm_table *t = NULL;

	pthread_mutex_lock(&saving);
	if (md->unloaded)
		t = g_steal_pointer(&md->unloaded->stand_in);
	pthread_mutex_unlock(&saving);
	dm_table_unref(t);
}

void dm_unloaded_free(struct dm_unloaded *u)
{
	if (!u)
		return;
	g_free(u->live.text);
	g_free(u->inactive.text);
	g_free(u);
}

/* --- bringing back ------------------------------------------------------------------------ */

struct restored {
	struct dm_mapped *md;
	struct dm_registry_device d;
	GArray *needs; /* of minors */
	unsigned waits_for;
	GPtrArray *needed_by;
	unsigned comes_after; /* those that are to be there first, if that can be */
	GPtrArray *before;    /* who comes after this one */
	bool done;
};

static int make_device(struct dm_registry_device *d, void *data)
{
	GPtrArray *all = data;
	g_autoptr(GError) err = NULL;
	struct restored *r;
	struct dm_mapped *md;
	int error;

	if (!d->name || !d->uuid || d->minor > DM_MINOR_MAX) {
		dm_log_err("state: minor %u: no device can be so", d->minor);
		dm_registry_device_clear(d);
		return 0;
	}
	error = dm_create(d->name, (int)d->minor, &md, &err);
	if (!error && *d->uuid) {
		error = dm_set_uuid(md, d->uuid, &err);
		if (error) {
			dm_remove(md, NULL);
			dm_mapped_unref(md);
		}
	}
	if (error) {
		dm_log_err("state: device '%.*s', minor %u: %s", DM_NAME_MAX, d->name, d->minor, err->message);
		dm_registry_device_clear(d);
		return 0;
	}
	atomic_store(&md->readonly, d->readonly);
	md->stored = true;
	md->saved_ids[0] = d->live.id;
	md->saved_ids[1] = d->inactive.id;
	md->image = (struct dm_owner){d->image_mode & 0777, d->image_uid, d->image_gid};
	r = g_new0(struct restored, 1);
	r->md = md;
	r->d = *d;
	r->needs = g_array_new(FALSE, FALSE, sizeof(unsigned));
	r->needed_by = g_ptr_array_new();
	r->before = g_ptr_array_new();
	g_ptr_array_add(all, r);
	return 0;
}

/* Words like 0:MINOR in a table. */
static void scan_needs(const char *text, GArray *needs)
{
	while (text && (text = strstr(text, " 0:"))) {
		char *end;
		unsigned long minor_nr = strtoul(text + 3, &end, 10);

		if (end > text + 3 && (*end == ' ' || *end == '\n' || !*end) && minor_nr <= UINT32_MAX) {
			unsigned m = (unsigned)minor_nr;

			g_array_append_val(needs, m);
		}
		text += 3;
	}
}

static void free_restored(gpointer p)
{
	struct restored *r = p;

	dm_mapped_unref(r->md);
	dm_registry_device_clear(&r->d);
	g_array_free(r->needs, TRUE);
	g_ptr_array_free(r->needed_by, TRUE);
	g_ptr_array_free(r->before, TRUE);
	g_free(r);
}

/* The next line of a table's text, to be freed, or NULL. */
static char *next_line(const char **text)
{
	const char *p = *text;
	size_t len = 0;

	if (!*p)
		return NULL;
	while (p[len] && p[len] != '\n')
		len += p[len] == '\\' && p[len + 1] ? 2 : 1;
	*text = p + len + (p[len] == '\n');
	return g_strndup(p, len);
}

static struct dm_table *new_table(struct dm_mapped *md, const struct dm_registry_table *saved)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, saved->readonly ? DM_MODE_READ : DM_MODE_RW, &self);

	t->restoring = true;
	t->id = saved->id;
	return t;
}

static struct dm_table *build(struct dm_mapped *md, const struct dm_registry_table *saved, GError **err)
{
	struct dm_table *t = new_table(md, saved);
	const char *text = saved->text;
	int error = 0;
	char *line;

	while (!error && (line = next_line(&text))) {
		error = dm_table_add_line(t, line, err);
		g_free(line);
	}
	if (!error)
		error = dm_table_complete(t, err);
	t->restoring = false;
	if (error) {
		dm_table_unref(t);
		return NULL;
	}
	return t;
}

static void keep_unloaded(struct restored *r, bool live, const char *why)
{
	struct dm_registry_table *from = live ? &r->d.live : &r->d.inactive, *to;
	g_autofree char *text = g_strdup_printf("0: %s%s\n", live ? "" : "inactive table: ", why);

	if (!r->md->unloaded)
		r->md->unloaded = g_new0(struct dm_unloaded, 1);
	to = live ? &r->md->unloaded->live : &r->md->unloaded->inactive;
	*to = *from;
	from->text = NULL;
	dm_mapped_set_error(r->md, text);
	dm_log_err("state: %s: %s", r->d.name, why);
}

/* The longest word, in bytes; nothing that could be loaded has a longer one than MAX_WORD. */
static size_t longest_word(const char *text)
{
	size_t longest = 0, len = 0;

	for (const char *p = text; *p; p++) {
		len = g_ascii_isspace(*p) ? 0 : len + 1;
		if (*p == '\\' && p[1]) {
			p++;
			len++;
		}
		longest = MAX(longest, len);
	}
	return longest;
}

/* --- absent ones ---------------------------------------------------------------------------- */

/* The type of a table's line, and the word after it as it stands there, to be freed; NULL: there is none. */
static const struct dm_target_type *parse_line(const char *line, char **first)
{
	const char *word[4];
	size_t len[4] = {0};
	g_autofree char *type = NULL;

	for (int i = 0; i < 4; i++) {
		while (g_ascii_isspace(*line))
			line++;
		word[i] = line;
		while (*line && !g_ascii_isspace(*line))
			line += *line == '\\' && line[1] ? 2 : 1;
		len[i] = (size_t)(line - word[i]);
	}
	if (!len[3])
		return NULL;
	type = g_strndup(word[2], len[2]);
	*first = g_strndup(word[3], len[3]);
	return dm_find_type(type);
}

/* Calls fn for the types of a live table's lines, with the first argument. */
static void each_type(struct restored *r, void (*fn)(struct restored *, const struct dm_target_type *, const char *, void *),
		      void *data)
{
	const char *text = r->d.live.text ? r->d.live.text : "";
	char *line;

	while ((line = next_line(&text))) {
		g_autofree char *first = NULL;
		const struct dm_target_type *type = parse_line(line, &first);

		if (type)
			fn(r, type, first, data);
		g_free(line);
	}
}

/* Enters a device under the first arguments of its lines whose types have an absent one. */
static void enter_watcher(struct restored *r, const struct dm_target_type *type, const char *first, void *watchers)
{
	GPtrArray *list;

	if (!type->absent)
		return;
	list = g_hash_table_lookup(watchers, first);
	if (!list) {
		list = g_ptr_array_new();
		g_hash_table_insert(watchers, g_strdup(first), list);
	}
	if (!list->len || list->pdata[list->len - 1] != r)
		g_ptr_array_add(list, r);
}

/* A device that may miss some comes after them. */
static void follow_watchers(struct restored *r, const struct dm_target_type *type, const char *first, void *watchers)
{
	GPtrArray *list = type->misses ? g_hash_table_lookup(watchers, first) : NULL;

	for (guint i = 0; list && i < list->len; i++) {
		struct restored *before = list->pdata[i];

		if (before == r)
			continue;
		g_ptr_array_add(before->before, r);
		r->comes_after++;
	}
}

/* Puts in a table's stead what sees what it misses. */
static struct dm_table *build_stand_in(struct restored *r)
{
	struct dm_table *t = new_table(r->md, &r->d.live);
	const char *text = r->d.live.text;
	char *line;

	t->standing_in = true;
	while ((line = next_line(&text))) {
		g_autoptr(GError) err = NULL;

		dm_table_add_line(t, line, &err); /* one that cannot stand in has nothing to see */
		g_free(line);
	}
	t->restoring = false;
	if (t->n)
		return t;
	dm_table_unref(t);
	return NULL;
}

/* Whether an absent one holds a table up. */
static bool must_wait(struct dm_table *t, GError **err)
{
	g_autoptr(GString) who = g_string_new(NULL);

	for (unsigned i = 0; i < t->n; i++) {
		struct dm_target *ti = dm_table_target(t, i);

		if (!ti->type->misses || !ti->type->misses(ti, who))
			continue;
		if (dm_options.wait_for_missing) {
			dm_fail(err, EAGAIN,
				"it waits for '%s', which could not be loaded (missing-snapshots=wait); load the table "
				"again to go on without", who->str);
			return true;
		}
		dm_log_warn("state: '%s' could not be loaded: the first write to the origin makes it invalid", who->str);
		g_string_truncate(who, 0);
	}
	return false;
}

/* --- one after the other ---------------------------------------------------------------------- */

static void restore_table(struct restored *r, bool live)
{
	const struct dm_registry_table *saved = live ? &r->d.live : &r->d.inactive;
	g_autoptr(GError) err = NULL;
	struct dm_table *t;
	int error;

	if (!saved->text)
		return;
	if (saved->secret) { /* of a type that has no absent one */
		g_autofree char *why = g_strdup_printf("the table needs its key, which is not kept in the state; "
						       "load it again with the key: %.*s",
						       (int)MIN(strcspn(saved->text, "\n"), MAX_SHOWN), saved->text);

		keep_unloaded(r, live, why);
		return;
	}
	if (longest_word(saved->text) > MAX_WORD)
		dm_fail(&err, E2BIG, "a word of its table has %zu bytes, %u are the most", longest_word(saved->text), MAX_WORD);
	t = err ? NULL : build(r->md, saved, &err);
	if (t && live && must_wait(t, &err)) {
		dm_table_unref(t);
		t = NULL;
	}
	if (t) {
		error = live ? dm_mapped_swap(r->md, t, NULL, NULL, &err) : dm_mapped_load(r->md, t, &err);
		if (!error)
			return;
	}
	t = live ? build_stand_in(r) : NULL;
	keep_unloaded(r, live, err ? err->message : "it cannot be loaded");
	if (live)
		r->md->unloaded->stand_in = t;
}

static bool is_ready(const struct restored *r)
{
	return !r->waits_for && !r->comes_after;
}

static void restore(struct restored *r, GQueue *ready)
{
	r->done = true;
	restore_table(r, true);
	restore_table(r, false);
	for (unsigned i = 0; i < r->needed_by->len; i++) {
		struct restored *above = r->needed_by->pdata[i];

		above->waits_for--;
		if (is_ready(above))
			g_queue_push_tail(ready, above);
	}
	for (unsigned i = 0; i < r->before->len; i++) {
		struct restored *next = r->before->pdata[i];

		next->comes_after--;
		if (is_ready(next))
			g_queue_push_tail(ready, next);
	}
}

static void find_order(GPtrArray *all)
{
	g_autoptr(GHashTable) by_minor = g_hash_table_new(NULL, NULL);
	g_autoptr(GHashTable) watchers =
		g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_ptr_array_unref);

	for (unsigned i = 0; i < all->len; i++) {
		struct restored *r = all->pdata[i];

		g_hash_table_insert(by_minor, GUINT_TO_POINTER(r->d.minor), r);
		each_type(r, enter_watcher, watchers);
	}
	for (unsigned i = 0; i < all->len; i++) {
		struct restored *r = all->pdata[i];

		scan_needs(r->d.live.text, r->needs);
		scan_needs(r->d.inactive.text, r->needs);
		for (unsigned n = 0; n < r->needs->len; n++) {
			unsigned minor_nr = g_array_index(r->needs, unsigned, n);
			struct restored *below = g_hash_table_lookup(by_minor, GUINT_TO_POINTER(minor_nr));

			if (below && below != r) {
				g_ptr_array_add(below->needed_by, r);
				r->waits_for++;
			}
		}
		if (g_hash_table_size(watchers))
			each_type(r, follow_watchers, watchers);
	}
}

/* Of those that wait for each other, one that needs nothing more but to be second; else any: it cannot, and says so. */
static struct restored *break_loop(GPtrArray *all)
{
	struct restored *any = NULL;

	for (unsigned i = 0; i < all->len; i++) {
		struct restored *r = all->pdata[i];

		if (r->done)
			continue;
		if (!r->waits_for)
			return r;
		any = any ? any : r;
	}
	return any;
}

/* Devices come back when those they stand on have. */
static void restore_all(GPtrArray *all)
{
	GQueue ready = G_QUEUE_INIT;
	struct restored *r;

	find_order(all);
	for (unsigned i = 0; i < all->len; i++)
		if (is_ready(all->pdata[i]))
			g_queue_push_tail(&ready, all->pdata[i]);
	for (;;) {
		while ((r = g_queue_pop_head(&ready)))
			if (!r->done)
				restore(r, &ready);
		r = break_loop(all);
		if (!r)
			break;
		restore(r, &ready);
	}
}

int dm_state_open(const char *path, GError **err)
{
	g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func(free_restored);
	uint64_t max_id = 0;
	int error = dm_registry_open(path, err);

	if (error)
		return error;
	restoring = true;
	error = dm_registry_max_id(&max_id, err);
	if (!error)
		error = dm_registry_each(make_device, all, err);
	if (!error) {
		dm_table_ids_from(max_id + 1);
		restore_all(all);
	}
	restoring = false;
	if (error)
		dm_registry_close();
	return error;
}

void dm_state_close(void)
{
	dm_registry_close();
}
