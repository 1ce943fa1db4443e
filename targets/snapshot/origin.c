/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * snapshot-origin: a device whose chunks are saved in every snapshot of it before they are first written
 * (snapshot.rst).
 *
 *   <origin>
 *
 * And the origins: one for each device that a snapshot or snapshot-origin names, whatever names it goes by.  A write
 * looks at the snapshots under one of several locks, chosen by thread; who changes the list takes all of them.
 *
 * A write is sent when all its chunks are complete in all snapshots.  At first copies of all of them are begun; then it
 * waits for one after the other.
 */
#include <inttypes.h>

#include "snapshot.h"

struct origin_target {
	struct origin *origin;
	struct dm_dev *dev;
};

/* --- the registry --------------------------------------------------------------------- */

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *registry; /* of struct origin, by device */

static guint hash_origin(gconstpointer p)
{
	return dm_dev_hash(((const struct origin *)p)->dev);
}

static gboolean same_origin(gconstpointer a, gconstpointer b)
{
	return dm_dev_same(((const struct origin *)a)->dev, ((const struct origin *)b)->dev);
}

static struct origin *origin_new(struct dm_dev *dev)
{
	struct origin *o = aligned_alloc(64, sizeof *o);

	g_assert(o);
	*o = (struct origin){.dev = dm_dev_get(dev), .snapshots = g_ptr_array_new(), .targets = g_ptr_array_new()};
	o->absents = g_ptr_array_new();
	pthread_mutex_init(&o->absent_lock, NULL);
	pthread_mutex_init(&o->control, NULL);
	for (unsigned i = 0; i < ORIGIN_SLOTS; i++)
		pthread_mutex_init(&o->slots[i].lock, NULL);
	return o;
}

struct origin *origin_get(struct dm_dev *dev)
{
	struct origin key = {.dev = dev}, *o;

	pthread_mutex_lock(&registry_lock);
	if (!registry)
		registry = g_hash_table_new(hash_origin, same_origin);
	o = g_hash_table_lookup(registry, &key);
	if (!o) {
		o = origin_new(dev);
		g_hash_table_add(registry, o);
	}
	o->refs++;
	pthread_mutex_unlock(&registry_lock);
	return o;
}

void origin_put(struct origin *o)
{
	bool last;

	pthread_mutex_lock(&registry_lock);
	last = --o->refs == 0;
	if (last)
		g_hash_table_remove(registry, o);
	pthread_mutex_unlock(&registry_lock);
	if (!last)
		return;
	dm_dev_put(o->dev);
	g_ptr_array_free(o->snapshots, TRUE);
	g_ptr_array_free(o->targets, TRUE);
	g_ptr_array_free(o->absents, TRUE);
	pthread_mutex_destroy(&o->absent_lock);
	pthread_mutex_destroy(&o->control);
	for (unsigned i = 0; i < ORIGIN_SLOTS; i++)
		pthread_mutex_destroy(&o->slots[i].lock);
	free(o);
}

void origin_lock_all(struct origin *o)
{
	for (unsigned i = 0; i < ORIGIN_SLOTS; i++)
		pthread_mutex_lock(&o->slots[i].lock);
}

void origin_unlock_all(struct origin *o)
{
	for (unsigned i = 0; i < ORIGIN_SLOTS; i++)
		pthread_mutex_unlock(&o->slots[i].lock);
}

pthread_mutex_t *origin_slot(struct origin *o)
{
	static atomic_uint threads;
	static _Thread_local unsigned mine;

	if (!mine)
		mine = 1 + atomic_fetch_add(&threads, 1) % ORIGIN_SLOTS;
	return &o->slots[mine - 1].lock;
}

/* --- guarding writes ----------------------------------------------------------------------- */

/* Whether a chunk is complete, and nobody reads it from the origin. */
static bool is_saved(struct snapshot *s, uint64_t chunk)
{
	struct dm_index_entry e;

	return snap_find(s, chunk, &e) && !e.flag;
}

/*
 * Whether a chunk of the origin is complete in a snapshot.  If not, its copy is begun if need be, and bio (if not NULL)
 * is kept by what it has to wait for.
 */
static bool guard_chunk(struct snapshot *s, uint64_t chunk, struct dm_bio *bio, struct to_start *start)
{
	struct pending *pe;
	bool wait;
	int r;

	if (snap_state(s) == SNAP_VALID) {
		if (is_saved(s, chunk))
			return true;
		r = pending_claim(s, chunk, bio, &pe);
		if (r < 0)
			dm_bio_list_add(&start->dead, bio);
		if (r)
			return false;
		if (is_saved(s, chunk)) { /* since we looked */
			pending_drop(pe, start);
			return true;
		}
		if (pending_begin(pe, NULL, bio, start))
			return false;
		snap_invalidate(s, "Unable to allocate exception");
	}
	/* Not before the store says that it is invalid. */
	pthread_mutex_lock(&s->lock);
	wait = atomic_load(&s->state) == SNAP_INVALIDATING;
	if (wait && bio)
		dm_bio_list_add(&s->wait_invalid, bio);
	pthread_mutex_unlock(&s->lock);
	return !wait;
}

/* Guards what lies from `sector` on and before *end, which it lowers to where every snapshot has the same chunk. */
static bool guard_sector(struct origin *o, uint64_t sector, uint64_t *end, struct dm_bio *bio, struct to_start *start)
{
	bool safe = true;

	for (guint i = 0; i < o->snapshots->len; i++) {
		struct snapshot *s = o->snapshots->pdata[i];
		uint64_t chunk;

		/* A merging one is on its way out; what is past its end is none of it. */
		if (!s->active || s->merging || !s->cow || sector >= s->ti->begin + s->ti->len)
			continue;
		chunk = sector >> s->cow->shift;
		*end = MIN(*end, (chunk + 1) << s->cow->shift);
		if (guard_chunk(s, chunk, bio, start))
			continue;
		safe = false;
		if (bio) /* another's from now on */
			break;
	}
	return safe;
}

/*
 * Guards the chunks of a bio; true if there is nothing to wait for.  waits: the bio, to leave it with the first exception
 * it has to wait for; NULL: begins the copies of all of them.
 */
static bool guard(struct origin *o, struct dm_bio *bio, struct dm_bio *waits, struct to_start *start)
{
	struct snap_bio *sb = bio->private;
	pthread_mutex_t *slot = origin_slot(o);
	uint64_t end = bio->sector + bio->sectors, next;
	bool safe = true;

	pthread_mutex_lock(slot);
	for (uint64_t sector = sb->safe_to; sector < end && (safe || !waits); sector = next) {
		next = end;
		safe &= guard_sector(o, sector, &next, waits, start);
		if (safe)
			sb->safe_to = next;
	}
	pthread_mutex_unlock(slot);
	return safe;
}

void guard_init(struct origin *o, struct dm_bio *bio, void (*go)(struct dm_bio *))
{
	struct snap_bio *sb = bio->private;

	sb->origin = o;
	sb->safe_to = bio->sector;
	sb->guarded = false;
	sb->go = go;
}

bool origin_guard(struct origin *o, struct dm_bio *bio)
{
	struct snap_bio *sb = bio->private;
	struct to_start start;
	bool safe = false;

	if (atomic_load_explicit(&o->unmarked, memory_order_relaxed) && !absent_guard(o, bio))
		return false;
	to_start_init(&start);
	if (!sb->guarded)
		safe = guard(o, bio, NULL, &start);
	sb->guarded = true;
	if (!safe)
		safe = guard(o, bio, bio, &start);
	to_start_run(&start);
	return safe;
}

/* --- snapshot-origin ------------------------------------------------------------------------- */

static int origin_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct origin_target *ot;
	struct dm_dev *dev;
	int error;

	if (argc != 1)
		return dm_fail(err, EINVAL,
			       "snapshot-origin: incorrect number of arguments: %d, <origin> is the only one", argc);
	error = dm_get_device(ti, argv[0], dm_target_mode(ti), &dev, err);
	if (error)
		return error;
	ot = g_new(struct origin_target, 1);
	ot->dev = dev;
	ot->origin = origin_get(dev);
	ti->private = ot;
	return 0;
}

static void origin_dtr(struct dm_target *ti)
{
	struct origin_target *ot = ti->private;

	origin_put(ot->origin);
	dm_put_device(ti, ot->dev);
	g_free(ot);
}

static enum dm_mapio origin_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct origin_target *ot = ti->private;

	bio->dev = ot->dev;
	if (bio->op == DM_READ || bio->op == DM_FLUSH)
		return DM_MAPIO_REMAPPED;
	guard_init(ot->origin, bio, dm_submit);
	return origin_guard(ot->origin, bio) ? DM_MAPIO_REMAPPED : DM_MAPIO_SUBMITTED;
}

static void origin_resume(struct dm_target *ti)
{
	struct origin_target *ot = ti->private;

	pthread_mutex_lock(&ot->origin->control);
	g_ptr_array_add(ot->origin->targets, ti);
	pthread_mutex_unlock(&ot->origin->control);
}

static void origin_postsuspend(struct dm_target *ti)
{
	struct origin_target *ot = ti->private;

	pthread_mutex_lock(&ot->origin->control);
	g_ptr_array_remove(ot->origin->targets, ti);
	pthread_mutex_unlock(&ot->origin->control);
}

static void origin_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct origin_target *ot = ti->private;

	if (type == DM_STATUS_TABLE)
		dm_dev_print(ot->dev, out);
}

static bool origin_misses(struct dm_target *ti, GString *who)
{
	struct origin_target *ot = ti->private;

	return absent_names(ot->origin, who);
}

static int origin_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct origin_target *ot = ti->private;

	return fn(ti, ot->dev, ti->begin, ti->len, data);
}

static int origin_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct origin_target *ot = ti->private;

	return dm_dev_extent(ot->dev, ti->begin + sector, sectors, out);
}

static uint64_t origin_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct origin_target *ot = ti->private;

	return dm_dev_provisioned(ot->dev, ti->begin + sector, sectors);
}

const struct dm_target_type snapshot_origin_target = {
	.name = "snapshot-origin",
	.version = {1, 9, 0},
	.features = DM_TARGET_STRAIGHT,
	.per_bio_size = sizeof(struct snap_bio),
	.ctr = origin_ctr,
	.dtr = origin_dtr,
	.map = origin_map,
	.resume = origin_resume,
	.postsuspend = origin_postsuspend,
	.status = origin_status,
	.misses = origin_misses,
	.iterate_devices = origin_iterate_devices,
	.extent = origin_extent,
	.provisioned = origin_provisioned,
};
