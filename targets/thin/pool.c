/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pool object: its life, its modes, what failures and lack of space do to it. */
#include "pool.h"

#include <dmfs/rounding.h>

static struct {
	pthread_mutex_t lock;
	struct thin_pool *first;
} pools = {PTHREAD_MUTEX_INITIALIZER, NULL};

const char *pool_name(struct thin_pool *pool, GString *buf)
{
	g_string_truncate(buf, 0);
	dm_mapped_name(pool->mapped, buf);
	return buf->str;
}

/* One line of the log, begun with the pool's name. */
static void pool_log(struct thin_pool *pool, void (*log)(const char *fmt, ...), const char *text)
{
	g_autoptr(GString) name = g_string_new(NULL);

	log("thin: %s: %s", pool_name(pool, name), text);
}

void pool_event(struct thin_pool *pool)
{
	/* The lock keeps the table that is told. */
	pthread_mutex_lock(&pool->lock);
	if (pool->bound)
		dm_target_event(pool->bound->ti, NULL, NULL);
	pthread_mutex_unlock(&pool->lock);
}

/* --- modes --- */

static const char *mode_text(struct thin_pool *pool, enum pool_mode mode)
{
	switch (mode) {
	case PM_WRITE:
		return "write";
	case PM_OUT_OF_DATA_SPACE:
		return atomic_load(&pool->error_if_no_space) ? "out-of-data-space (error IO)"
							     : "out-of-data-space (queue IO)";
	case PM_OUT_OF_METADATA_SPACE:
		return "out-of-metadata-space";
	case PM_READ_ONLY:
		return "read-only";
	case PM_FAIL:
		break;
	}
	return "fail";
}

static void mode_changed(struct thin_pool *pool, enum pool_mode mode)
{
	g_autofree char *text = g_strdup_printf("switching pool to %s mode", mode_text(pool, mode));

	pool_log(pool, dm_log_info, text);
	pool_event(pool);
}

/* What the mode will really be. */
static enum pool_mode possible_mode(struct thin_pool *pool, enum pool_mode old, enum pool_mode mode)
{
	struct thin_md_stats st;

	thin_md_get_stats(pool->meta, &st);
	if (old == PM_FAIL)
		return PM_FAIL;
	if (mode == PM_WRITE && st.needs_check) {
		pool_log(pool, dm_log_err, "unable to switch pool to write mode until repaired.");
		return old != PM_WRITE ? old : PM_READ_ONLY;
	}
	return mode;
}

static void set_patience(struct thin_pool *pool, bool error_if_no_space)
{
	atomic_store(&pool->error_if_no_space, error_if_no_space || atomic_load(&pool->ending));
}

static void set_mode_locked(struct thin_pool *pool, enum pool_mode mode)
{
	enum pool_mode old = pool_mode(pool);
	struct pool_target *pt = pool->bound;

	mode = possible_mode(pool, old, mode);
	if (mode == PM_WRITE && pt)
		set_patience(pool, pt->requested.error_if_no_space);
	if (mode == PM_WRITE)
		thin_md_set_read_only(pool->meta, false);
	atomic_store_explicit(&pool->mode, mode, memory_order_release);
	if (pt)
		pt->adjusted.mode = mode;
	if (mode > PM_OUT_OF_DATA_SPACE) /* after the mode: who is refused finds it changed */
		thin_md_set_read_only(pool->meta, true);
	pool_arm_no_space(pool, mode == PM_OUT_OF_DATA_SPACE && !atomic_load(&pool->error_if_no_space));
	if (mode >= PM_OUT_OF_METADATA_SPACE)
		dm_hold_fail(&pool->retry, -EIO);
	if (old != mode)
		mode_changed(pool, mode);
}

void pool_set_mode(struct thin_pool *pool, enum pool_mode mode)
{
	pthread_mutex_lock(&pool->mode_lock);
	set_mode_locked(pool, mode);
	pthread_mutex_unlock(&pool->mode_lock);
}

void pool_metadata_failed(struct thin_pool *pool, const char *what, int error)
{
	g_autofree char *text = g_strdup_printf("metadata operation '%s' failed: error = %d", what, error);

	pthread_mutex_lock(&pool->mode_lock);
	if (pool_mode(pool) >= PM_READ_ONLY) { /* another thread has seen to it */
		pthread_mutex_unlock(&pool->mode_lock);
		return;
	}
	pool_log(pool, dm_log_err, text);
	pool_log(pool, dm_log_err, "aborting current metadata transaction");
	if (thin_md_abort(pool->meta)) {
		pool_log(pool, dm_log_err, "failed to abort metadata transaction");
		set_mode_locked(pool, PM_FAIL);
	}
	if (thin_md_set_needs_check(pool->meta)) {
		pool_log(pool, dm_log_err, "failed to set 'needs_check' flag in metadata");
		set_mode_locked(pool, PM_FAIL);
	}
	set_mode_locked(pool, PM_READ_ONLY);
	pthread_mutex_unlock(&pool->mode_lock);
}

/* --- space --- */

uint64_t pool_meta_threshold(struct dm_dev *meta_dev)
{
	return MIN(1024, dm_md_dev_blocks(meta_dev) / 4);
}

/* Whether a mark has just been passed. */
static bool passed(bool below, bool *triggered)
{
	bool now = below && !*triggered;

	*triggered = *triggered || below;
	return now;
}

void pool_check_marks(struct thin_pool *pool)
{
	uint64_t meta_free = atomic_load(&pool->meta->meta_free);
	bool data_low, meta_low;

	pthread_mutex_lock(&pool->lock);
	data_low = pool->bound && passed(thin_md_free_data(pool->meta) <= pool->bound->low_water, &pool->low_water_triggered);
	if (meta_free > pool_meta_threshold(pool->meta_dev))
		pool->meta_low_triggered = false;
	meta_low = passed(meta_free <= pool_meta_threshold(pool->meta_dev), &pool->meta_low_triggered);
	pthread_mutex_unlock(&pool->lock);
	if (data_low) {
		pool_log(pool, dm_log_warn, "reached low water mark for data device: sending event.");
		pool_event(pool);
	}
	if (meta_low) {
		pool_log(pool, dm_log_warn, "reached low water mark for metadata device: sending event.");
		pool_event(pool);
	}
	if (!thin_md_free_meta(pool->meta)) /* before the reserve is used up */
		pool_commit(pool, NULL);
}

/* Not while it is stopped, when the space may be about to grow: the next commit looks again. */
static void check_metadata_space(struct thin_pool *pool)
{
	if (atomic_load(&pool->stopping))
		return;
	if (thin_md_free_meta(pool->meta) || pool_mode(pool) >= PM_OUT_OF_METADATA_SPACE)
		return;
	pool_log(pool, dm_log_err, "no free metadata blocks");
	pool_set_mode(pool, PM_OUT_OF_METADATA_SPACE);
}

void pool_check_data_space(struct thin_pool *pool)
{
	if (pool_mode(pool) != PM_OUT_OF_DATA_SPACE || !thin_md_has_space(pool->meta))
		return;
	pool_set_mode(pool, PM_WRITE);
	pool_retry_all(pool);
}

int pool_commit(struct thin_pool *pool, bool *did)
{
	int r;

	if (did)
		*did = false;
	if (pool_mode(pool) >= PM_OUT_OF_METADATA_SPACE)
		return -EINVAL;
	r = thin_md_commit(pool->meta, did);
	if (r) {
		pool_metadata_failed(pool, "commit", r);
		return r;
	}
	check_metadata_space(pool);
	pool_check_data_space(pool);
	return 0;
}

bool pool_out_of_space(struct thin_pool *pool)
{
	bool did;

	if (pool_mode(pool) != PM_WRITE || pool_commit(pool, &did))
		return false;
	if (did && thin_md_has_space(pool->meta))
		return true;
	pool_set_mode(pool, PM_OUT_OF_DATA_SPACE);
	pool_check_data_space(pool); /* some may have come back just before */
	return false;
}

/* --- metadata's calls --- */

static int flush_data(void *context)
{
	struct thin_pool *pool = context;
	struct dm_dev *dev;
	int r;

	pthread_mutex_lock(&pool->lock);
	dev = dm_dev_get(pool->data_dev);
	pthread_mutex_unlock(&pool->lock);
	r = dm_flush_sync(dev);
	dm_dev_put(dev);
	return r;
}

static void drain(void *context)
{
	struct thin_pool *pool = context;

	thin_epoch_drain(&pool->epoch);
}

static void changed(void *context)
{
	pool_commit_soon(context);
}

static const struct thin_md_ops meta_ops = {flush_data, drain, changed};

/* --- suspend, resume, tables --- */

/* The same devices, as the new table has opened them. */
static void take_devices(struct thin_pool *pool, struct pool_target *pt)
{
	struct dm_dev *data = pool->data_dev, *meta = pool->meta_dev;

	pthread_mutex_lock(&pool->lock);
	pool->data_dev = dm_dev_get(pt->data_dev);
	pool->meta_dev = dm_dev_get(pt->meta_dev);
	pthread_mutex_unlock(&pool->lock);
	thin_md_set_dev(pool->meta, pt->meta_dev);
	dm_dev_put(data);
	dm_dev_put(meta);
}

void pool_end_waiting(struct dm_target *ti)
{
	struct thin_pool *pool = ((struct pool_target *)ti->private)->pool;

	pthread_mutex_lock(&pool->mode_lock);
	atomic_store(&pool->ending, true);
	set_patience(pool, true);
	pool_arm_no_space(pool, false);
	dm_hold_fail(&pool->retry, -ENOSPC);
	pthread_mutex_unlock(&pool->mode_lock);
	pool_fail_parked(pool);
}

void pool_bind(struct thin_pool *pool, struct pool_target *pt)
{
	pthread_mutex_lock(&pool->mode_lock);
	pthread_mutex_lock(&pool->lock);
	pool->bound = pt;
	pthread_mutex_unlock(&pool->lock);
	take_devices(pool, pt);
	atomic_store(&pool->zero, pt->adjusted.zero);
	atomic_store(&pool->discard, pt->adjusted.discard);
	atomic_store(&pool->passdown, pt->adjusted.passdown);
	set_patience(pool, pt->adjusted.error_if_no_space);
	set_mode_locked(pool, pt->adjusted.mode);
	pthread_mutex_unlock(&pool->mode_lock);
}

void pool_unbind(struct thin_pool *pool, struct pool_target *pt)
{
	pthread_mutex_lock(&pool->mode_lock);
	pthread_mutex_lock(&pool->lock);
	if (pool->bound == pt)
		pool->bound = NULL;
	pthread_mutex_unlock(&pool->lock);
	pthread_mutex_unlock(&pool->mode_lock);
}

int pool_add_thin(struct thin_pool *pool, struct thin *t)
{
	int r = 0;

	pthread_mutex_lock(&pool->lock);
	if (atomic_load(&pool->stopping))
		r = -EBUSY;
	else
		g_ptr_array_add(pool->thins, t);
	pthread_mutex_unlock(&pool->lock);
	return r;
}

void pool_remove_thin(struct thin_pool *pool, struct thin *t)
{
	pthread_mutex_lock(&pool->lock);
	g_ptr_array_remove_fast(pool->thins, t);
	if (t->frozen)
		dm_mapped_thaw(dm_target_mapped(t->ti));
	pthread_mutex_unlock(&pool->lock);
}

/* While the pool is suspended nobody suspends or resumes a volume of it, as in the kernel.  pool->lock is held. */
static void freeze_thins(struct thin_pool *pool, bool freeze)
{
	for (unsigned i = 0; i < pool->thins->len; i++) {
		struct thin *t = pool->thins->pdata[i];

		if (t->frozen == freeze)
			continue;
		t->frozen = freeze;
		if (freeze)
			dm_mapped_freeze(dm_target_mapped(t->ti));
		else
			dm_mapped_thaw(dm_target_mapped(t->ti));
	}
}

void pool_suspend(struct dm_target *ti)
{
	struct thin_pool *pool = ((struct pool_target *)ti->private)->pool;

	pthread_mutex_lock(&pool->lock);
	freeze_thins(pool, true);
	if (!atomic_exchange(&pool->stopping, true)) {
		dm_hold_close(&pool->parked);
		dm_gate_close(&pool->changes);
	}
	pthread_mutex_unlock(&pool->lock);
	dm_gate_wait(&pool->changes, NULL, NULL);
	atomic_store(&pool->suspended, true);
	thin_epoch_drain(&pool->epoch);
	pool_fail_parked(pool);
}

void pool_resume(struct dm_target *ti)
{
	struct thin_pool *pool = ((struct pool_target *)ti->private)->pool;
	struct dm_bio_list parked;

	dm_bio_list_init(&parked);
	pthread_mutex_lock(&pool->lock);
	pool->low_water_triggered = false;
	atomic_store(&pool->suspended, false);
	if (atomic_exchange(&pool->stopping, false)) {
		dm_hold_open(&pool->parked, &parked);
		dm_gate_open(&pool->changes);
	}
	freeze_thins(pool, false);
	pthread_mutex_unlock(&pool->lock);
	pool_defer_all(pool, &parked);
	pool_retry_all(pool);
	pool_kick(pool);
	dm_wq_queue(pool->discard_wq, &pool->discard_work);
}

/* --- life --- */

static int pool_new(struct dm_mapped *mapped, struct dm_dev *meta_dev, struct dm_dev *data_dev, uint32_t block_sectors,
		    bool read_only, struct thin_pool **out, GError **err)
{
	struct thin_pool *pool = g_new0(struct thin_pool, 1);
	int r;

	pool->refs = 1;
	pool->mapped = mapped;
	pool->meta_dev = dm_dev_get(meta_dev);
	pool->data_dev = dm_dev_get(data_dev);
	pool->block_sectors = block_sectors;
	pool->block_shift = dm_is_pow2(block_sectors) ? (int)dm_log2(block_sectors) : -1;
	pthread_mutex_init(&pool->mode_lock, NULL);
	pthread_mutex_init(&pool->lock, NULL);
	dm_gate_init(&pool->changes);
	dm_gate_close(&pool->changes);
	pool->thins = g_ptr_array_new();
	atomic_store(&pool->stopping, true);
	atomic_store(&pool->suspended, true);
	atomic_store(&pool->mode, read_only ? PM_READ_ONLY : PM_WRITE);
	thin_epoch_init(&pool->epoch);
	pool_queue_init(pool);
	r = thin_md_open(meta_dev, block_sectors, !read_only, &meta_ops, pool, &pool->meta, err);
	if (r) {
		pool_put(pool);
		return r;
	}
	*out = pool;
	return 0;
}

static void pool_free(struct thin_pool *pool)
{
	dm_group_commit_settle(pool->commits);
	if (pool->meta && pool_mode(pool) < PM_OUT_OF_METADATA_SPACE)
		pool_commit(pool, NULL);
	pool_queue_destroy(pool);
	thin_md_close(pool->meta);
	thin_epoch_destroy(&pool->epoch);
	dm_dev_put(pool->meta_dev);
	dm_dev_put(pool->data_dev);
	pthread_mutex_destroy(&pool->mode_lock);
	pthread_mutex_destroy(&pool->lock);
	dm_gate_destroy(&pool->changes);
	g_ptr_array_free(pool->thins, TRUE);
	g_free(pool);
}

static struct thin_pool *lookup(struct dm_mapped *mapped)
{
	struct thin_pool *pool = pools.first;

	while (pool && pool->mapped != mapped)
		pool = pool->next;
	return pool;
}

/* Whether a pool's devices, of which take_devices() may just put others in their place, are these; NULL: any. */
static bool has_devices(struct thin_pool *pool, struct dm_dev *meta_dev, struct dm_dev *data_dev)
{
	bool same;

	pthread_mutex_lock(&pool->lock);
	same = (!meta_dev || dm_dev_same(pool->meta_dev, meta_dev)) && (!data_dev || dm_dev_same(pool->data_dev, data_dev));
	pthread_mutex_unlock(&pool->lock);
	return same;
}

static struct thin_pool *lookup_meta(struct dm_dev *meta_dev)
{
	struct thin_pool *pool = pools.first;

	while (pool && !has_devices(pool, meta_dev, NULL))
		pool = pool->next;
	return pool;
}

struct thin_pool *pool_find(struct dm_mapped *mapped)
{
	struct thin_pool *pool;

	pthread_mutex_lock(&pools.lock);
	pool = lookup(mapped);
	if (pool)
		pool->refs++;
	pthread_mutex_unlock(&pools.lock);
	return pool;
}

/* Whether a pool that is there already is the one a table means. */
static int check_same(struct thin_pool *pool, struct dm_mapped *mapped, struct dm_dev *meta_dev, struct dm_dev *data_dev,
		      uint32_t block_sectors, GError **err)
{
	if (pool->mapped != mapped)
		return dm_fail(err, EBUSY, "thin-pool: metadata device already in use by a pool");
	if (!has_devices(pool, meta_dev, NULL))
		return dm_fail(err, EINVAL, "thin-pool: different pool cannot replace a pool: it has another metadata device");
	if (!has_devices(pool, NULL, data_dev))
		return dm_fail(err, EBUSY, "thin-pool: different pool cannot replace a pool: it has another data device");
	return 0;
}

int pool_get(struct dm_mapped *mapped, struct dm_dev *meta_dev, struct dm_dev *data_dev, uint32_t block_sectors,
	     bool read_only, struct thin_pool **out, bool *created, GError **err)
{
	struct thin_pool *pool;
	int r = 0;

	*created = false;
	pthread_mutex_lock(&pools.lock);
	pool = lookup_meta(meta_dev);
	if (!pool)
		pool = lookup(mapped);
	if (pool) {
		r = check_same(pool, mapped, meta_dev, data_dev, block_sectors, err);
		if (!r)
			pool->refs++;
	} else {
		r = pool_new(mapped, meta_dev, data_dev, block_sectors, read_only, &pool, err);
		if (!r) {
			*created = true;
			pool->next = pools.first;
			pools.first = pool;
		}
	}
	pthread_mutex_unlock(&pools.lock);
	if (!r)
		*out = pool;
	return r;
}

void pool_put(struct thin_pool *pool)
{
	bool listed = pool->meta;
	bool last;

	if (listed)
		pthread_mutex_lock(&pools.lock);
	last = !--pool->refs;
	for (struct thin_pool **p = &pools.first; last && listed && *p; p = &(*p)->next)
		if (*p == pool) {
			*p = pool->next;
			break;
		}
	if (last)
		pool_free(pool);
	if (listed)
		pthread_mutex_unlock(&pools.lock);
}
