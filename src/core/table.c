/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Building tables, and finding a sector's target.
 *
 * The index is a btree without child pointers: all keys are known before the first lookup, so the tree is complete,
 * every level is one array, and the children of node n are nodes n * CHILDREN and on of the next level.  A node's keys
 * fill one cache line.  Keys past the end of a level are UINT64_MAX.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "claim.h"
#include "mapped.h"
#include "table.h"
#include "type.h"

#include <dmfs/rounding.h>

#define KEYS 8 /* a cache line of them */
#define CHILDREN (KEYS + 1)
#define HUGE_PAGE ((size_t)2 << 20)

/* --- words ---------------------------------------------------------------------- */

GPtrArray *dm_split_words(char *line)
{
	GPtrArray *words = g_ptr_array_new();
	char *in = line, *out;

	for (;;) {
		while (g_ascii_isspace(*in))
			in++;
		if (!*in)
			break;
		g_ptr_array_add(words, out = in);
		while (*in && !g_ascii_isspace(*in)) {
			if (*in == '\\' && in[1])
				in++;
			*out++ = *in++;
		}
		if (*in)
			in++;
		*out = '\0';
	}
	g_ptr_array_add(words, NULL);
	return words;
}

/* --- life -------------------------------------------------------------------------- */

static _Atomic uint64_t next_id = 1;

void dm_table_ids_from(uint64_t id)
{
	atomic_store(&next_id, id);
}

/*
 * Memory, uninitialised, whose cache lines a lookup misses one by one: begins with one, and large pieces are in
 * huge pages where there are any, so that the TLB is not missed as well.  free() frees it.
 */
static void *aligned_new(size_t bytes)
{
	size_t align = bytes < HUGE_PAGE ? DM_TARGET_LINE : HUGE_PAGE;
	void *p;

	if (posix_memalign(&p, align, bytes))
		g_error("no memory for a table");
	if (align == HUGE_PAGE)
		madvise(p, bytes, MADV_HUGEPAGE);
	return p;
}

struct dm_table *dm_table_new(struct dm_mapped *md, enum dm_mode mode, const struct dm_opener *opener)
{
	struct dm_table *t = g_new0(struct dm_table, 1);

	atomic_init(&t->refs, 1);
	t->md = dm_mapped_ref(md);
	t->mode = mode;
	t->opener = *opener;
	t->id = atomic_fetch_add(&next_id, 1);
	atomic_init(&t->capacity, UINT64_MAX);
	t->blocks = g_ptr_array_new();
	t->memory = g_ptr_array_new_with_free_func(free);
	dm_table_devs_init(t);
	return t;
}

struct dm_table *dm_table_ref(struct dm_table *t)
{
	atomic_fetch_add(&t->refs, 1);
	return t;
}

static void destroy_target(struct dm_target *ti)
{
	if (ti->type->dtr)
		ti->type->dtr(ti);
	dm_claims_end(ti);
}

#define DROPPING (1 << 30) /* in refs: somebody waits for the other references */

static pthread_mutex_t drop_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t dropped = PTHREAD_COND_INITIALIZER;

void dm_table_drop(struct dm_table *t)
{
	if (!t)
		return;
	if (atomic_fetch_or(&t->refs, DROPPING) != 1) {
		dm_block_begin();
		pthread_mutex_lock(&drop_lock);
		while (atomic_load(&t->refs) != (DROPPING | 1))
			pthread_cond_wait(&dropped, &drop_lock);
		pthread_mutex_unlock(&drop_lock);
		dm_block_end();
	}
	atomic_store(&t->refs, 1);
	dm_table_unref(t);
}

void dm_table_unref(struct dm_table *t)
{
	int refs = t ? atomic_fetch_sub(&t->refs, 1) : 0;

	if (refs == (DROPPING | 2)) { /* from here on it may be gone */
		pthread_mutex_lock(&drop_lock);
		pthread_cond_broadcast(&dropped);
		pthread_mutex_unlock(&drop_lock);
	}
	if (refs != 1)
		return;
	for (unsigned i = 0; i < t->n; i++)
		destroy_target(dm_table_target(t, i));
	dm_table_devs_free(t);
	for (unsigned i = 0; i < t->depth; i++)
		free(t->levels[i]);
	g_free(t->levels);
	g_free(t->level_nodes);
	g_free(t->flush_devs);
	g_ptr_array_free(t->blocks, TRUE);
	g_ptr_array_free(t->memory, TRUE);
	dm_mapped_unref(t->md);
	g_free(t);
}

void dm_table_set_opener(struct dm_table *t, const struct dm_opener *opener)
{
	t->opener = *opener;
	g_hash_table_remove_all(t->devs_names);
}

enum dm_mode dm_table_mode(struct dm_table *t)
{
	return t->mode;
}

struct dm_mapped *dm_target_mapped(struct dm_target *ti)
{
	return ti->table->md;
}

/* --- adding a target ----------------------------------------------------------------- */

struct area_check {
	GError **err;
	const char *type;
};

static char *dev_name(struct dm_dev *dev)
{
	GString *name = g_string_new(NULL);

	dm_dev_print(dev, name);
	return g_string_free(name, FALSE);
}

/*
 * How large a device is or is about to be.  LVM loads all tables of a stack before it resumes the first, and the kernel
 * looks at sizes no sooner than at resume.
 */
static uint64_t future_sectors(struct dm_dev *dev)
{
	uint64_t sectors = dm_dev_sectors(dev);
	struct dm_mapped *md = dm_dev_mapped(dev);
	struct dm_table *next = md ? dm_mapped_inactive(md) : NULL;

	if (next)
		sectors = MAX(sectors, next->sectors);
	dm_table_unref(next);
	return sectors;
}

/* The device must hold the area, and the area must fit its blocks. */
static int check_area(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	struct area_check *check = data;
	uint64_t sectors = future_sectors(dev), end;
	struct dm_limits limits;
	g_autofree char *name = NULL;
	unsigned block;

	if (__builtin_add_overflow(start, len, &end) || end > sectors) {
		name = dev_name(dev);
		return dm_fail(check->err, EINVAL,
			       "%s: %s too small for target: start=%" PRIu64 ", len=%" PRIu64 ", dev_size=%" PRIu64,
			       check->type, name, start, len, sectors);
	}
	dm_dev_limits(dev, &limits);
	if (limits.zone_model && (start % limits.zone_sectors || len % limits.zone_sectors)) {
		name = dev_name(dev);
		return dm_fail(check->err, EINVAL,
			       "%s: start=%" PRIu64 ", len=%" PRIu64 " not aligned to the h/w zone size %u of %s",
			       check->type, start, len, limits.zone_sectors, name);
	}
	block = limits.logical_block_size >> DM_SECTOR_SHIFT;
	if (block > 1 && (start % block || len % block)) {
		name = dev_name(dev);
		return dm_fail(check->err, EINVAL,
			       "%s: start=%" PRIu64 ", len=%" PRIu64 " not aligned to the logical block size %u of %s",
			       check->type, start, len, limits.logical_block_size, name);
	}
	return 0;
}

static int check_place(struct dm_table *t, uint64_t start, uint64_t len, const struct dm_target_type *type,
		       GError **err)
{
	if (!len)
		return dm_fail(err, EINVAL, "%s: zero-length target at sector %" PRIu64, type->name, start);
	if (start != t->sectors)
		return dm_fail(err, EINVAL, "%s: %s in table: the target begins at sector %" PRIu64
			       ", the one before ends at %" PRIu64,
			       type->name, start > t->sectors ? "Gap" : "Overlap", start, t->sectors);
	if (len > ((uint64_t)INT64_MAX >> DM_SECTOR_SHIFT) - start)
		return dm_fail(err, EOVERFLOW, "%s: the table's end, sector %" PRIu64 " + %" PRIu64
			       ", is beyond 2^63 bytes", type->name, start, len);
	if (t->n && ((type->features & DM_TARGET_SINGLETON) ||
		     (dm_table_target(t, 0)->type->features & DM_TARGET_SINGLETON)))
		return dm_fail(err, EINVAL, "%s: target type %s must appear alone in table", type->name, type->name);
	if (t->n && dm_table_target(t, 0)->type != type &&
	    ((type->features | dm_table_target(t, 0)->type->features) & DM_TARGET_IMMUTABLE))
		return dm_fail(err, EINVAL, "%s: immutable target type cannot be mixed with other target types: %s and %s",
			       type->name, dm_table_target(t, 0)->type->name, type->name);
	if ((type->features & DM_TARGET_ALWAYS_WRITEABLE) && !(t->mode & DM_MODE_WRITE))
		return dm_fail(err, EINVAL, "%s: target type %s may not be included in a read-only table", type->name,
			       type->name);
	if (t->n == UINT32_MAX)
		return dm_fail(err, E2BIG, "%s: more than 2^32 targets", type->name);
	return 0;
}

/* Room for further targets: a block, or as many as there are in a huge page once there is one of them. */
static void add_blocks(struct dm_table *t)
{
	size_t block = DM_TABLE_BLOCK * sizeof(struct dm_target);
	unsigned n = t->blocks->len * block < HUGE_PAGE ? 1 : HUGE_PAGE / block;
	char *room = aligned_new(n * block);

	g_ptr_array_add(t->memory, room);
	for (unsigned i = 0; i < n; i++)
		g_ptr_array_add(t->blocks, room + i * block);
}

int dm_table_add(struct dm_table *t, uint64_t start, uint64_t len, const char *type_name, int argc, char **argv,
		 GError **err)
{
	const struct dm_target_type *type = dm_find_type(type_name);
	struct dm_target *ti;
	int error;

	if (!type) {
		g_autofree char *shown = g_strndup(type_name, 64);

		return dm_fail(err, EINVAL, "%s: unknown target type", shown);
	}
	if (t->standing_in) {
		type = type->absent;
		t->sectors = start; /* there may be nothing before it */
	}
	if (!type)
		return 0;
	error = check_place(t, start, len, type, err);
	if (error)
		return error;
	if (t->n % DM_TABLE_BLOCK == 0 && t->n / DM_TABLE_BLOCK == t->blocks->len)
		add_blocks(t);
	ti = dm_table_target(t, t->n);
	*ti = (struct dm_target){
		.type = type,
		.table = t,
		.begin = start,
		.len = len,
		.per_bio_size = (uint32_t)type->per_bio_size,
		.num_flush_bios = 1,
	};
	error = type->ctr(ti, argc, argv, err);
	if (error) {
		dm_claims_end(ti);
		if (err && !*err)
			dm_fail(err, -error, "%s: %s", type->name, g_strerror(-error));
		return error;
	}
	if (type->iterate_devices) {
		struct area_check check = {err, type->name};

		error = type->iterate_devices(ti, check_area, &check);
		if (error) {
			destroy_target(ti);
			return error;
		}
	}
	t->n++;
	t->sectors += len;
	if (ti->secret)
		atomic_store(&t->secret, true);
	return 0;
}

void dm_table_count_secrets(struct dm_table *t)
{
	bool secret = false;

	for (unsigned i = 0; i < t->n; i++)
		secret |= dm_table_target(t, i)->secret;
	atomic_store(&t->secret, secret);
}

void dm_hide_keys(char *text)
{
	while (*text) {
		size_t len = strspn(text, "0123456789abcdefABCDEF");

		if (len >= 32 || (len >= 16 && strspn(text, "0123456789") < len))
			memset(text, '*', len);
		text += MAX(len, 1);
	}
}

static int add_words(struct dm_table *t, unsigned n, char **w, GError **err)
{
	uint64_t start, len;

	if (n < 3)
		return dm_fail(err, EINVAL, "a table line is START LENGTH TYPE ARGS, this one has %u word%s", n,
			       n == 1 ? "" : "s");
	/* dmsetup reads these with sscanf(3): a '+' may stand before them */
	if (!dm_parse_u64(w[0] + (*w[0] == '+'), &start))
		return dm_fail(err, EINVAL, "start sector '%.32s' is not a number that fits in 64 bits", w[0]);
	if (!dm_parse_u64(w[1] + (*w[1] == '+'), &len))
		return dm_fail(err, EINVAL, "length '%.32s' is not a number that fits in 64 bits", w[1]);
	return dm_table_add(t, start, len, w[2], (int)n - 3, w + 3, err);
}

int dm_table_add_line(struct dm_table *t, char *line, GError **err)
{
	g_autoptr(GPtrArray) words = dm_split_words(line);
	unsigned n = words->len - 1;
	char **w = (char **)words->pdata;
	int error = add_words(t, n, w, err);

	if (error && err && *err && n >= 3) {
		const struct dm_target_type *type = dm_find_type(w[2]);

		if (!type || type->features & DM_TARGET_TAKES_KEYS)
			dm_hide_keys((*err)->message);
	}
	return error;
}

/* --- the index ------------------------------------------------------------------------- */

/* The largest key in the subtree of a node. */
static uint64_t high(const struct dm_table *t, unsigned level, unsigned node)
{
	for (; level < t->depth - 1; level++)
		node = node * CHILDREN + CHILDREN - 1;
	return node < t->level_nodes[level] ? t->levels[level][node * KEYS + KEYS - 1] : UINT64_MAX;
}

static void build_index(struct dm_table *t)
{
	unsigned leaves = (unsigned)dm_div_up(t->n, KEYS), nodes;

	t->depth = 1;
	for (nodes = leaves; nodes > 1; nodes = (unsigned)dm_div_up(nodes, CHILDREN))
		t->depth++;
	t->levels = g_new(uint64_t *, t->depth);
	t->level_nodes = g_new(unsigned, t->depth);
	nodes = leaves;
	for (unsigned level = t->depth; level-- > 0; nodes = (unsigned)dm_div_up(nodes, CHILDREN)) {
		t->level_nodes[level] = nodes;
		t->levels[level] = aligned_new((size_t)nodes * KEYS * sizeof(uint64_t));
	}
	for (size_t i = 0; i < (size_t)leaves * KEYS; i++) {
		struct dm_target *ti = i < t->n ? dm_table_target(t, (unsigned)i) : NULL;

		t->levels[t->depth - 1][i] = ti ? ti->begin + ti->len - 1 : UINT64_MAX;
	}
	for (unsigned level = t->depth - 1; level-- > 0;)
		for (unsigned node = 0; node < t->level_nodes[level]; node++)
			for (unsigned k = 0; k < KEYS; k++)
				t->levels[level][node * KEYS + k] = high(t, level + 1, node * CHILDREN + k);
}

/* Where a sector's target is if all are as long as the middle one; n or more: nowhere. */
static uint64_t guess(const struct dm_table *t, uint64_t sector)
{
	return (sector + (uint64_t)t->stride_shift) / t->stride;
}

/*
 * Tables with many lines have mostly lines of one length, and then a division does for the tree: it is used if it is
 * right for most targets.
 */
static void build_guess(struct dm_table *t)
{
	unsigned middle = t->n / 2, right = 0;

	t->stride = dm_table_target(t, middle)->len;
	t->stride_shift = (int64_t)(middle * t->stride - dm_table_target(t, middle)->begin);
	for (unsigned i = 0; i < t->n; i++) {
		const struct dm_target *ti = dm_table_target(t, i);

		right += guess(t, ti->begin) == i && guess(t, ti->begin + ti->len - 1) == i;
	}
	if (right <= t->n / 2)
		t->stride = 0;
}

/* A target for a bio: both its cache lines are asked for at once. */
static struct dm_target *target_at(const struct dm_table *t, unsigned i)
{
	struct dm_target *ti = dm_table_target(t, i);

	__builtin_prefetch(ti->room);
	return ti;
}

struct dm_target *dm_table_find(const struct dm_table *t, uint64_t sector)
{
	unsigned node = 0, k = 0;

	if (t->stride) {
		uint64_t i = guess(t, sector);

		if (i < t->n) {
			struct dm_target *ti = target_at(t, (unsigned)i);

			if (sector - ti->begin < ti->len)
				return ti;
		}
	}
	for (unsigned level = 0; level < t->depth; level++) {
		const uint64_t *keys;

		node = level ? node * CHILDREN + k : 0;
		keys = t->levels[level] + (size_t)node * KEYS;
		for (k = 0; k < KEYS && keys[k] < sector; k++)
			;
	}
	return target_at(t, node * KEYS + k);
}

/* --- flushing ----------------------------------------------------------------------------- */

static int collect_flush_dev(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	g_hash_table_add(data, dev);
	return 0;
}

static void complete_flush(struct dm_table *t)
{
	g_autoptr(GHashTable) set = g_hash_table_new(NULL, NULL);
	GHashTableIter iter;
	gpointer dev;

	for (unsigned i = 0; i < t->n; i++) {
		struct dm_target *ti = dm_table_target(t, i);

		if (!(ti->type->features & DM_TARGET_FLUSH_DEVICES)) {
			t->own_flush |= ti->num_flush_bios > 0;
			t->has_flush |= ti->num_flush_bios > 0 && !(ti->type->features & DM_TARGET_FLUSH_LAST);
		} else if (ti->type->iterate_devices) {
			ti->type->iterate_devices(ti, collect_flush_dev, set);
		}
	}
	t->flush_devs = g_new(struct dm_dev *, g_hash_table_size(set));
	t->has_flush |= g_hash_table_size(set) > 0;
	g_hash_table_iter_init(&iter, set);
	while (g_hash_table_iter_next(&iter, &dev, NULL))
		t->flush_devs[t->n_flush_devs++] = dev;
}

int dm_table_complete(struct dm_table *t, GError **err)
{
	int error;

	if (!t->n)
		return dm_fail(err, EINVAL, "the table is empty");
	error = dm_table_limits(t, err);
	if (error)
		return error;
	if (atomic_load(&t->capacity) > t->sectors)
		atomic_store(&t->capacity, t->sectors);
	build_index(t);
	build_guess(t);
	complete_flush(t);
	dm_table_devs_seal(t);
	return 0;
}

/* --- all targets ------------------------------------------------------------------------- */

static void ask_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	pthread_rwlock_rdlock(&ti->table->md->shown);
	dm_wait_forbid();
	ti->type->status(ti, type, out);
	dm_wait_allow();
	pthread_rwlock_unlock(&ti->table->md->shown);
}

static _Thread_local bool tells_keys;

bool dm_status_tells_keys(void)
{
	return tells_keys;
}

void dm_table_print_keys(struct dm_table *t, GString *out)
{
	tells_keys = true;
	dm_table_print(t, DM_STATUS_TABLE, out);
	tells_keys = false;
}

void dm_table_print(struct dm_table *t, enum dm_status_type type, GString *out)
{
	for (unsigned i = 0; i < t->n; i++) {
		struct dm_target *ti = dm_table_target(t, i);
		gsize before;

		g_string_append_printf(out, "%" PRIu64 " %" PRIu64 " %s ", ti->begin, ti->len, ti->type->name);
		before = out->len;
		if (ti->type->status)
			ask_status(ti, type, out);
		if (out->len == before || out->str[out->len - 1] == ' ')
			while (out->len && out->str[out->len - 1] == ' ')
				g_string_truncate(out, out->len - 1);
		g_string_append_c(out, '\n');
	}
}

#define EACH_TARGET(name, hook, rule)                                \
	void name(struct dm_table *t)                                \
	{                                                            \
		assert(rule);                                        \
		for (unsigned i = 0; i < t->n; i++) {                \
			struct dm_target *ti = dm_table_target(t, i); \
                                                                     \
			if (ti->type->hook)                          \
				ti->type->hook(ti);                  \
		}                                                    \
	}

/* The gate is closed and was waited on; who comes now counts himself for a moment, finds it closed and goes. */
static bool is_quiet(struct dm_table *t)
{
	return dm_mapped_hooks_locked(t->md) && atomic_load(&t->md->gate.closed);
}

EACH_TARGET(dm_table_presuspend, presuspend, dm_mapped_hooks_locked(t->md))
EACH_TARGET(dm_table_presuspend_undo, presuspend_undo, dm_mapped_hooks_locked(t->md))
EACH_TARGET(dm_table_postsuspend, postsuspend, is_quiet(t))
EACH_TARGET(dm_table_resume, resume, is_quiet(t))
EACH_TARGET(dm_table_end_waiting, end_waiting, true)

int dm_table_preresume(struct dm_table *t, GError **err)
{
	assert(is_quiet(t));
	for (unsigned i = 0; i < t->n; i++) {
		struct dm_target *ti = dm_table_target(t, i);
		int error = ti->type->preresume ? ti->type->preresume(ti, err) : 0;

		if (error) {
			if (err && !*err)
				dm_fail(err, -error, "%s: preresume failed: %s", ti->type->name, g_strerror(-error));
			return error;
		}
	}
	return 0;
}

int dm_table_extent(struct dm_table *t, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct dm_target *ti = dm_table_find(t, sector);
	uint64_t offset = sector - ti->begin;

	*out = (struct dm_extent){.data = true, .sectors = MIN(sectors, ti->len - offset)};
	if (ti->type->extent)
		return ti->type->extent(ti, offset, out->sectors, out);
	return 0;
}

uint64_t dm_table_provisioned(struct dm_table *t, uint64_t sector, uint64_t sectors)
{
	uint64_t sum = 0, end = sector + sectors;

	while (sector < end && dm_provisioned_step()) {
		struct dm_target *ti = dm_table_find(t, sector);
		uint64_t offset = sector - ti->begin, len = MIN(end - sector, ti->len - offset);

		sum += ti->type->provisioned ? MIN(ti->type->provisioned(ti, offset, len), len) : len;
		sector += len;
	}
	return sum + (end - sector);
}
