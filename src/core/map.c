/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bio's way through a dmfs device: gate, table lookup, splitting, map().
 *
 * What goes to one target is a clone of the bio, with an end call of ours.  Nearly every bio fits one target and has
 * one clone; it is allocated together with the io, which counts parts.  Other bios are cut up as they go: at most
 * WINDOW parts are under way, and one that ends makes room for the next.  So a discard of a whole disk takes no more
 * memory than one of a chunk.
 *
 * A discard or zeroes may be of a size that takes for ever.  So after MANY parts what is left is issued by a queue's
 * thread; and between parts it stops when the caller is dying, when the daemon ends, or after an error.
 *
 * The io stays inside the gate until its parts have ended.  It leaves before the bio's own end call, for after that the
 * device may be gone.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "mapped.h"
#include "state.h"
#include "stats.h"

#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <dmfs/rounding.h>

#define WINDOW 32
#define MANY 64u
#define LONG_THREADS 64
#define ZERO_SECTORS 2048u /* write-zeroes to a target without them: writes of this many */
#define ZERO_BYTES 65536u

struct io;

struct clone {
	struct dm_bio bio; /* first */
	struct io *io;
	struct dm_target *ti;
	uint64_t sector, sectors; /* of the device, to come back to after a requeue */
	enum dm_op op;
	struct dm_part_data data; /* iov: the whole bio's, or its own */
	char per_bio[] __attribute__((aligned(16)));
};

enum phase { PHASE_FLUSH, PHASE_DATA, PHASE_DONE };

struct io {
	struct dm_mapped *md;
	struct dm_table *table;
	struct dm_bio *bio;
	pthread_mutex_t lock; /* only with several parts */
	enum phase phase;
	uint64_t next;   /* first sector no part was made of yet */
	unsigned target; /* of a flush: the next target */
	unsigned nr;     /* flush and ranges: the target's next bio */
	unsigned under_way, window;
	unsigned issued; /* parts of a discard and the like, so far, up to MANY */
	bool is_long;    /* there were so many: the rest is the work's */
	struct dm_work work;
	uint64_t appended; /* where in its zone an append's data went */
	bool single, issuing, merged;
	struct dm_stats *stats; /* NULL: nobody counts */
	uint64_t start_ns;
	atomic_bool requeue;
	int error;
	struct clone first; /* last member: per_bio follows */
};

static char zero_page[ZERO_BYTES];

static void clone_end(struct dm_bio *bio);
static void issue(struct io *io);

/* --- the end ------------------------------------------------------------------------ */

static void io_free(struct io *io)
{
	if (!io->single)
		pthread_mutex_destroy(&io->lock);
	g_free(io);
}

static void io_finish(struct io *io)
{
	struct dm_mapped *md = io->md;
	struct dm_bio *bio = io->bio;
	bool again = atomic_load_explicit(&io->requeue, memory_order_relaxed) && !io->error;
	uint64_t appended = bio->op == DM_ZONE_APPEND ? io->appended : 0;
	int error = io->error;

	if (__builtin_expect(io->stats != NULL, 0))
		dm_stats_end(io->stats, bio, io->start_ns, io->merged);
	io_free(io);
	if (again) {
		/* Before leaving the gate: the suspend cannot be over while we are inside. */
		dm_mapped_ref(md);
		if (!dm_mapped_defer(md, bio))
			dm_submit(bio);
		dm_gate_exit(&md->gate);
		dm_mapped_unref(md);
		return;
	}
	dm_gate_exit(&md->gate);
	if (!error)
		bio->sector += appended;
	dm_bio_end(bio, error);
}

static void free_clone(struct clone *c)
{
	if (c->data.iov != c->io->bio->iov)
		dm_part_data_clear(&c->data);
	if (c != &c->io->first)
		g_free(c);
}

static struct dm_wq *long_wq;

static void make_long_wq(void)
{
	long_wq = dm_wq_new("long", LONG_THREADS);
}

static void issue_work(struct dm_work *work)
{
	issue(container_of(work, struct io, work));
}

/* Has a thread of the queue issue more; io->issuing is set and goes with it. */
static void issue_later(struct io *io)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_long_wq);
	io->work = (struct dm_work){.fn = issue_work};
	dm_wq_queue(long_wq, &io->work);
}

/* A part of a bio with several has ended. */
static void part_done(struct clone *c, int error)
{
	struct io *io = c->io;
	bool finished, more;

	free_clone(c);
	pthread_mutex_lock(&io->lock);
	if (error && !io->error)
		io->error = error;
	io->under_way--;
	finished = io->phase == PHASE_DONE && !io->under_way && !io->issuing;
	more = io->phase != PHASE_DONE && !io->issuing;
	if (more)
		io->issuing = true;
	pthread_mutex_unlock(&io->lock);
	if (more && io->is_long)
		issue_later(io);
	else if (more)
		issue(io);
	else if (finished)
		io_finish(io);
}

static void clone_done(struct clone *c, int error)
{
	if (c->op == DM_ZONE_APPEND && !error) /* a place in a zone is the same on all devices */
		c->io->appended = c->bio.sector % c->io->table->limits.zone_sectors;
	if (c->io->single) {
		c->io->error = error;
		io_finish(c->io);
	} else {
		part_done(c, error);
	}
}

/*
 * A target gave a part back.  In a noflush suspend the whole bio waits for the resume (once its other parts have
 * ended).  When that suspend was given up meanwhile it goes through map() again at once.
 */
static void requeue(struct clone *c)
{
	atomic_store(&c->io->requeue, true);
	clone_done(c, 0);
}

void dm_bio_requeue(struct dm_bio *bio)
{
	assert(bio->end == clone_end);
	requeue((struct clone *)bio);
}

static void clone_end(struct dm_bio *bio)
{
	struct clone *c = (struct clone *)bio;
	const struct dm_target_type *type = c->ti ? c->ti->type : NULL;

	if (type && type->end_io) {
		switch (type->end_io(c->ti, bio)) {
		case DM_ENDIO_INCOMPLETE:
			return;
		case DM_ENDIO_REQUEUE:
			requeue(c);
			return;
		case DM_ENDIO_DONE:
			break;
		}
	}
	clone_done(c, bio->error);
}

/* --- parts ------------------------------------------------------------------------------ */

static struct clone *clone_new(struct io *io, struct dm_target *ti)
{
	struct clone *c = g_malloc(sizeof *c + (ti ? ti->per_bio_size : 0));

	c->io = io;
	c->ti = ti;
	return c;
}

static void clone_init(struct clone *c, enum dm_op op, uint64_t sector, uint64_t sectors)
{
	struct io *io = c->io;

	c->op = op;
	c->sector = sector;
	c->sectors = sectors;
	c->data.iov = NULL;
	/* One by one: compilers clear what is left of a bio by an instruction that costs more than all of this. */
	G_STATIC_ASSERT(sizeof(struct dm_bio) <= 104); /* whoever adds a member sees this */
	c->bio.op = op;
	c->bio.flags = io->bio->flags & ~DM_PREFLUSH;
	c->bio.dev = &io->md->dev;
	c->bio.sector = sector;
	c->bio.sectors = sectors;
	c->bio.iov = NULL;
	c->bio.iovcnt = 0;
	c->bio.nr = 0;
	c->bio.tags.data = NULL;
	c->bio.origin = io->bio->origin;
	c->bio.end = clone_end;
	c->bio.error = 0;
	c->bio.private = c->per_bio;
	c->bio.next = NULL;
}

/* Gives the clone the data from byte offset of the whole bio on. */
static void clone_data(struct clone *c, uint64_t offset)
{
	struct dm_bio *bio = c->io->bio;
	size_t len = c->sectors << DM_SECTOR_SHIFT;

	if (!offset && c->sectors == bio->sectors) {
		c->data.iov = c->bio.iov = bio->iov;
		c->bio.iovcnt = bio->iovcnt;
	} else {
		dm_part_data_init(&c->data, &c->bio, bio, offset, len);
	}
	if (__builtin_expect(bio->tags.data != NULL, 0))
		c->bio.tags = dm_tags_from(bio->tags, offset >> DM_SECTOR_SHIFT);
}

static void clone_zeroes(struct clone *c)
{
	size_t len = c->sectors << DM_SECTOR_SHIFT;
	int n = (int)dm_div_up(len, ZERO_BYTES);

	c->data.iov = g_new(struct iovec, n);
	for (int i = 0; i < n; i++, len -= MIN(len, ZERO_BYTES))
		c->data.iov[i] = (struct iovec){zero_page, MIN(len, ZERO_BYTES)};
	c->bio.iov = c->data.iov;
	c->bio.iovcnt = n;
}

static void map_clone(struct clone *c)
{
	enum dm_mapio what;

	dm_map_begin();
	what = c->ti->type->map(c->ti, &c->bio);
	dm_map_end();
	switch (what) {
	case DM_MAPIO_SUBMITTED:
		break;
	case DM_MAPIO_REMAPPED:
		dm_submit(&c->bio);
		break;
	case DM_MAPIO_KILL:
		clone_done(c, -EIO);
		break;
	case DM_MAPIO_REQUEUE:
		requeue(c);
		break;
	}
}

/* How far a bio at a sector may go in its target before it must be split. */
static uint64_t part_len(const struct dm_target *ti, uint64_t sector, uint64_t sectors, bool split)
{
	uint32_t max = __atomic_load_n(&ti->max_io_sectors, __ATOMIC_RELAXED); /* once: it may become 0 at any time */
	uint64_t offset = sector - ti->begin;

	sectors = MIN(sectors, ti->len - offset);
	if (split && max)
		sectors = MIN(sectors, max - offset % max);
	return sectors;
}

/* The next part of a read or write, or NULL. */
static struct clone *next_data(struct io *io)
{
	struct dm_bio *bio = io->bio;
	uint64_t left = bio->sector + bio->sectors - io->next;
	struct dm_target *ti;
	struct clone *c;

	if (!left)
		return NULL;
	ti = dm_table_find(io->table, io->next);
	c = clone_new(io, ti);
	clone_init(c, bio->op, io->next, part_len(ti, io->next, left, true));
	clone_data(c, (io->next - bio->sector) << DM_SECTOR_SHIFT);
	io->next += c->sectors;
	return c;
}

/* How many bios a target wants for a range without data. */
static unsigned range_bios(const struct dm_target *ti, enum dm_op op)
{
	if (op == DM_PROVISION)
		return ti->provisions ? MAX(ti->num_write_zeroes_bios, 1) : 0;
	return op == DM_DISCARD ? ti->num_discard_bios : op == DM_WRITE_ZEROES ? ti->num_write_zeroes_bios : 1;
}

/* The next part of what has a range and no data: a target may want several bios for the same range. */
static struct clone *next_range(struct io *io)
{
	struct dm_bio *bio = io->bio;
	uint64_t left = bio->sector + bio->sectors - io->next, len;
	bool zoned = io->table->limits.zone_model && !dm_op_manages_zones(bio->op);
	struct dm_target *ti;
	unsigned bios;
	struct clone *c;

	for (;;) {
		if (!left)
			return NULL;
		ti = dm_table_find(io->table, io->next);
		bios = range_bios(ti, bio->op);
		len = part_len(ti, io->next, left, ti->split_discards || zoned || (bios && bio->op == DM_PROVISION));
		if (bios || (bio->op != DM_DISCARD && bio->op != DM_PROVISION))
			break;
		if (bio->op == DM_DISCARD)
			io->error = io->error ? io->error : -EOPNOTSUPP;
		io->next += len;
		left -= len;
	}
	c = clone_new(io, ti);
	if (!bios) { /* write-zeroes as writes */
		len = MIN(part_len(ti, io->next, left, true), ZERO_SECTORS);
		clone_init(c, DM_WRITE, io->next, len);
		clone_zeroes(c);
	} else {
		clone_init(c, bio->op, io->next, len);
		c->bio.nr = io->nr++;
	}
	if (io->nr >= bios) {
		io->nr = 0;
		io->next += len;
	}
	return c;
}

/* The next FLUSH: first by map() of the targets that want it, then of devices. */
static struct clone *next_flush(struct io *io)
{
	struct dm_table *t = io->table;
	struct clone *c;

	while (t->own_flush && io->target < t->n) {
		struct dm_target *ti = dm_table_target(t, io->target);

		if ((ti->type->features & DM_TARGET_FLUSH_DEVICES) || io->nr >= ti->num_flush_bios ||
		    ((ti->type->features & DM_TARGET_FLUSH_LAST) && t->has_flush)) {
			io->target++;
			io->nr = 0;
			continue;
		}
		c = clone_new(io, ti);
		clone_init(c, DM_FLUSH, ti->begin, 0);
		c->bio.nr = io->nr++;
		return c;
	}
	if (io->target < t->n)
		io->target = t->n, io->nr = 0;
	if (io->nr < t->n_flush_devs) {
		c = clone_new(io, NULL);
		clone_init(c, DM_FLUSH, 0, 0);
		c->bio.dev = t->flush_devs[io->nr++];
		return c;
	}
	return NULL;
}

/* Whether not to go on with the next part, and why. */
static int must_stop(const struct io *io)
{
	if (dm_op_has_data(io->bio->op))
		return dm_bio_stop(io->bio);
	/* A target that takes no discards does not keep the others from theirs. */
	return io->error && io->error != -EOPNOTSUPP ? io->error : dm_bio_stop_long(io->bio);
}

/* The next part of any kind; NULL when there is none at the moment.  io->lock held. */
static struct clone *next_part(struct io *io)
{
	struct clone *c;
	int stop;

	if (io->phase == PHASE_FLUSH) {
		c = next_flush(io);
		if (c)
			return c;
		if (io->under_way) /* the data waits for the flush */
			return NULL;
		io->phase = io->bio->op == DM_FLUSH || io->error ? PHASE_DONE : PHASE_DATA;
		io->nr = 0;
	}
	stop = must_stop(io);
	if (stop && io->phase == PHASE_DATA) {
		io->error = io->error ? io->error : stop;
		io->phase = PHASE_DONE;
	}
	if (io->phase == PHASE_DATA) {
		io->issued += !dm_op_has_data(io->bio->op) && io->issued < MANY;
		c = dm_op_has_data(io->bio->op) ? next_data(io) : next_range(io);
		if (c)
			return c;
		io->phase = PHASE_DONE;
	}
	return NULL;
}

/* Sends parts out while there is room; io->issuing is set and this thread's. */
static void issue(struct io *io)
{
	bool finished;

	for (;;) {
		struct clone *c = NULL;

		pthread_mutex_lock(&io->lock);
		if (io->under_way < io->window)
			c = next_part(io);
		if (!c)
			break;
		io->under_way++;
		pthread_mutex_unlock(&io->lock);
		if (c->ti)
			map_clone(c);
		else
			dm_submit(&c->bio);
		if (io->issued == MANY && !io->is_long) {
			io->is_long = true;
			issue_later(io);
			return;
		}
	}
	io->issuing = false;
	finished = io->phase == PHASE_DONE && !io->under_way;
	pthread_mutex_unlock(&io->lock);
	if (finished)
		io_finish(io);
}

/* --- the beginning ------------------------------------------------------------------------ */

static struct io *io_new(struct dm_mapped *md, struct dm_table *t, struct dm_bio *bio, size_t per_bio)
{
	struct io *io = g_malloc(sizeof *io + per_bio);

	io->md = md;
	io->table = t;
	io->bio = bio;
	io->error = 0;
	atomic_init(&io->requeue, false);
	io->first.io = io;
	io->stats = atomic_load_explicit(&md->stats, memory_order_acquire);
	if (__builtin_expect(io->stats != NULL, 0))
		io->merged = dm_stats_start(io->stats, bio, &io->start_ns);
	return io;
}

static void submit_split(struct dm_mapped *md, struct dm_table *t, struct dm_bio *bio)
{
	struct io *io = io_new(md, t, bio, 0);

	io->single = false;
	pthread_mutex_init(&io->lock, NULL);
	io->phase = bio->op == DM_FLUSH || (bio->flags & DM_PREFLUSH) ? PHASE_FLUSH : PHASE_DATA;
	io->next = bio->sector;
	io->target = io->nr = io->under_way = io->issued = 0;
	io->is_long = false;
	io->window = t && t->limits.zone_model && dm_op_is_write(bio->op) ? 1 : WINDOW; /* a zone is written in order */
	io->issuing = true;
	issue(io);
}

static int check_tags(const struct dm_table *t, const struct dm_bio *bio)
{
	unsigned block = t->limits.tag_block >> DM_SECTOR_SHIFT;

	return dm_op_has_data(bio->op) && block && bio->tags.block_sectors == block &&
			       bio->tags.bytes == t->limits.tag_bytes && !(bio->sector % block) && !(bio->sectors % block) ?
		       0 :
		       -EINVAL;
}

/* The range lies in the table. */
static int check_zone_op(const struct dm_table *t, const struct dm_bio *bio)
{
	unsigned zone = t->limits.zone_sectors;
	uint64_t left = t->sectors - bio->sector;

	if (!t->limits.zone_model || (bio->op == DM_ZONE_APPEND && !t->limits.max_append_sectors))
		return -EOPNOTSUPP;
	if (bio->sector % zone)
		return -EINVAL;
	if (bio->op == DM_ZONE_APPEND)
		return bio->sectors > MIN(t->limits.max_append_sectors, left) ? -EINVAL : 0;
	if (bio->op == DM_ZONE_RESET_ALL)
		return bio->sectors % zone && bio->sectors != left ? -EINVAL : 0;
	return bio->sectors != MIN(zone, left) ? -EINVAL : 0;
}

static int check_bio(struct dm_table *t, struct dm_bio *bio)
{
	uint64_t end;

	if (!t)
		return -EIO;
	if (dm_op_is_write(bio->op) && !(t->mode & DM_MODE_WRITE))
		return -EROFS;
	if (bio->op == DM_FLUSH)
		return 0;
	if (bio->op == DM_DISCARD && !t->limits.max_discard_sectors)
		return -EOPNOTSUPP;
	if (__builtin_expect(bio->tags.data != NULL, 0) && check_tags(t, bio))
		return -EINVAL;
	if (__builtin_add_overflow(bio->sector, bio->sectors, &end) ||
	    end > atomic_load_explicit(&t->capacity, memory_order_relaxed))
		return -EIO;
	return __builtin_expect(bio->op > DM_PROVISION, 0) ? check_zone_op(t, bio) : 0;
}

static void mapped_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct dm_mapped *md = dm_to_mapped(dev);
	struct dm_target *ti;
	struct dm_table *t;
	struct io *io;
	int error;

	while (!dm_gate_enter(&md->gate))
		if (dm_mapped_defer(md, bio))
			return;
	t = atomic_load_explicit(&md->live, memory_order_acquire);
	error = check_bio(t, bio);
	if (error || (bio->op != DM_FLUSH && !bio->sectors)) {
		dm_gate_exit(&md->gate);
		dm_bio_end(bio, error);
		return;
	}
	if (!dm_op_has_data(bio->op) || (bio->flags & DM_PREFLUSH)) {
		submit_split(md, t, bio);
		return;
	}
	ti = dm_table_find(t, bio->sector);
	if (part_len(ti, bio->sector, bio->sectors, true) < bio->sectors) {
		submit_split(md, t, bio);
		return;
	}
	io = io_new(md, t, bio, ti->per_bio_size);
	io->single = true;
	io->first.ti = ti;
	clone_init(&io->first, bio->op, bio->sector, bio->sectors);
	clone_data(&io->first, 0);
	map_clone(&io->first);
}

static uint64_t mapped_sectors(struct dm_dev *dev)
{
	return dm_mapped_sectors(dm_to_mapped(dev));
}

static int mapped_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct dm_table *t = dm_mapped_live(dm_to_mapped(dev));
	uint64_t all = t ? atomic_load(&t->capacity) : 0;
	int error = 0;

	*out = (struct dm_extent){.data = true, .sectors = sectors};
	if (sector < all)
		error = dm_table_extent(t, sector, MIN(sectors, all - sector), out);
	dm_table_unref(t);
	return error;
}

static uint64_t mapped_provisioned(struct dm_dev *dev, uint64_t sector, uint64_t sectors)
{
	struct dm_table *t = dm_mapped_live(dm_to_mapped(dev));
	uint64_t n = sectors;

	if (t && sectors <= t->sectors && sector <= t->sectors - sectors)
		n = dm_table_provisioned(t, sector, sectors);
	dm_table_unref(t);
	return n;
}

static void mapped_limits(struct dm_dev *dev, struct dm_limits *out)
{
	struct dm_table *t = dm_mapped_live(dm_to_mapped(dev));

	if (t)
		*out = t->limits;
	dm_table_unref(t);
}

static int mapped_report_zones(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct dm_mapped *md = dm_to_mapped(dev);
	struct dm_table *t = dm_mapped_live(md);
	int error = -EOPNOTSUPP;

	if (t && t->limits.zone_model)
		error = atomic_load(&md->suspended) ? -EAGAIN : dm_table_report_zones(t, sector, max, fn, data);
	dm_table_unref(t);
	return error;
}

static void mapped_print(struct dm_dev *dev, GString *out)
{
	g_autoptr(GString) name = g_string_new(NULL);

	if (dm_print_minors) {
		g_string_append_printf(out, "0:%u", dm_to_mapped(dev)->minor);
		return;
	}
	dm_mapped_name(dm_to_mapped(dev), name);
	dm_quote_word(name->str, out);
}

static void mapped_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = UINT64_MAX;
	id[1] = (uintptr_t)dev;
	id[2] = 0;
}

static void mapped_free(struct dm_dev *dev)
{
	dm_mapped_free(dm_to_mapped(dev));
}

const struct dm_dev_ops dm_mapped_ops = {
	.submit = mapped_submit,
	.sectors = mapped_sectors,
	.extent = mapped_extent,
	.provisioned = mapped_provisioned,
	.limits = mapped_limits,
	.report_zones = mapped_report_zones,
	.print = mapped_print,
	.identity = mapped_identity,
	.free = mapped_free,
};

struct dm_mapped *dm_dev_mapped(struct dm_dev *dev)
{
	return dev->ops == &dm_mapped_ops ? dm_to_mapped(dev) : NULL;
}
