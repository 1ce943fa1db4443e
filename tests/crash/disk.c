/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk in memory, as a target that only the laboratory has:
 *
 *   lab-disk <id>
 *
 * It records what it is told in the order it comes, fails when asked to, and
 * knows which pages were touched, so that putting it back costs what was
 * changed.  A slow disk answers from a thread of its own, in any order; so
 * there are writes under way when a flush comes.
 */
#include <sys/mman.h>

#include "internal.h"

static GPtrArray *disks; /* by id; NULL where one was freed */

struct disk *disk_new(uint64_t sectors, uint32_t seed)
{
	struct disk *d = g_new0(struct disk, 1);

	d->sectors = sectors;
	d->data = mmap(NULL, sectors * DM_SECTOR_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (d->data == MAP_FAILED)
		g_error("no address space for a disk of %" PRIu64 " sectors", sectors);
	d->dirty = g_malloc0(sectors * DM_SECTOR_SIZE / DISK_PAGE + 1);
	d->rand = g_rand_new_with_seed(seed);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	if (!disks)
		disks = g_ptr_array_new();
	for (d->id = 0; d->id < disks->len && disks->pdata[d->id];)
		d->id++;
	if (d->id == disks->len)
		g_ptr_array_add(disks, NULL);
	disks->pdata[d->id] = d;
	return d;
}

void disk_free(struct disk *d)
{
	if (!d)
		return;
	if (d->slow) {
		pthread_mutex_lock(&d->lock);
		d->stop = true;
		pthread_cond_signal(&d->wake);
		pthread_mutex_unlock(&d->lock);
		pthread_join(d->thread, NULL);
		g_ptr_array_free(d->waiting, TRUE);
	}
	disks->pdata[d->id] = NULL;
	munmap(d->data, d->sectors * DM_SECTOR_SIZE);
	trace_free(d->record);
	g_free(d->dirty);
	g_free(d->unsure);
	g_rand_free(d->rand);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	g_free(d);
}

void disk_touch(struct disk *d, uint64_t sector, uint64_t sectors)
{
	uint64_t first = sector * DM_SECTOR_SIZE / DISK_PAGE;
	uint64_t last = ((sector + sectors) * DM_SECTOR_SIZE - 1) / DISK_PAGE;

	memset(d->dirty + first, 1, last - first + 1);
}

void disk_put_back(struct disk *d, const uint8_t *image)
{
	uint64_t bytes = d->sectors * DM_SECTOR_SIZE;

	for (uint64_t at = 0; at < bytes; at += DISK_PAGE)
		if (d->dirty[at / DISK_PAGE]) {
			memcpy(d->data + at, image + at, MIN(DISK_PAGE, bytes - at));
			d->dirty[at / DISK_PAGE] = 0;
		}
}

void disk_mark(struct disk *d, uint64_t mark)
{
	pthread_mutex_lock(&d->lock);
	if (d->record)
		trace_add(d->record, &(struct trace_io){.kind = TRACE_MARK, .mark = mark});
	pthread_mutex_unlock(&d->lock);
}

bool disk_has_failed(struct disk *d)
{
	bool failed;

	pthread_mutex_lock(&d->lock);
	failed = d->failed > 0;
	pthread_mutex_unlock(&d->lock);
	return failed;
}

/* --- I/O; the lock is held --------------------------------------------------------- */

/* Which part of the disk; -1: a flush is everyone's. */
static int part_of(const struct disk *d, const struct dm_bio *bio)
{
	for (int i = 0; bio->op != DM_FLUSH && d->parts && d->parts[i + 1]; i++)
		if (bio->sector >= d->parts[i] && bio->sector < d->parts[i + 1])
			return i;
	return -1;
}

/* The first part is the failing I/O's, the next the next other one that is met; each fails once, or from then on. */
static bool fails_in_parts(struct disk *d, const struct dm_bio *bio)
{
	int part = part_of(d, bio);

	if (part < 0)
		return false;
	for (unsigned i = 0; i < d->nr_bad; i++)
		if (d->bad_parts[i] == part)
			return d->fail_count > 1;
	if (d->nr_bad == d->fail_parts || (!d->nr_bad && d->ios != d->fail_at))
		return false;
	d->bad_parts[d->nr_bad++] = part;
	return true;
}

/* Whether this I/O is one that shall fail. */
static bool fails(struct disk *d, const struct dm_bio *bio)
{
	if (d->fail_writes_only && !dm_op_is_write(bio->op))
		return false;
	d->ios++;
	if (!d->fail_at || d->ios < d->fail_at)
		return false;
	if (d->fail_parts ? !fails_in_parts(d, bio) : d->ios - d->fail_at >= d->fail_count)
		return false;
	d->failed++;
	if (dm_op_is_write(bio->op)) {
		if (!d->unsure)
			d->unsure = g_malloc0(d->sectors);
		memset(d->unsure + bio->sector, 1, bio->sectors);
	}
	return true;
}

/* What comes, where a write is sent: its entry in the record. */
static unsigned record_start(struct disk *d, const struct dm_bio *bio, bool partial)
{
	struct trace_io io = {.kind = TRACE_WRITE, .sector = bio->sector, .sectors = bio->sectors, .done = UINT_MAX};

	if (!d->record)
		return 0;
	if (!dm_op_is_write(bio->op))
		return d->record->ios->len;
	io.fua = (bio->flags & DM_FUA) && !partial;
	if (partial)
		io.sectors = bio->sectors / 2;
	if (bio->op == DM_WRITE) {
		io.data = g_malloc(io.sectors * DM_SECTOR_SIZE);
		dm_iov_read(bio->iov, bio->iovcnt, 0, io.data, io.sectors * DM_SECTOR_SIZE);
	}
	return trace_add(d->record, &io);
}

static void note_done(struct disk *d, struct trace_io *io)
{
	io->done = d->record->ios->len;
	io->order = d->order++;
}

static void record_done(struct disk *d, const struct dm_bio *bio, unsigned start)
{
	if (!d->record)
		return;
	if (bio->op == DM_FLUSH)
		trace_add(d->record, &(struct trace_io){.kind = TRACE_FLUSH, .start = start});
	else if (dm_op_is_write(bio->op))
		note_done(d, trace_at(d->record, start));
}

static void carry_out(struct disk *d, const struct dm_bio *bio, uint64_t sectors)
{
	uint8_t *at = d->data + bio->sector * DM_SECTOR_SIZE;
	size_t len = sectors * DM_SECTOR_SIZE;

	if (!len)
		return;
	if (bio->op == DM_READ) {
		dm_iov_write(bio->iov, bio->iovcnt, 0, at, len);
		return;
	}
	if (bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, at, len);
	else
		memset(at, 0, len);
	disk_touch(d, bio->sector, sectors);
}

/* --- a slow disk ---------------------------------------------------------------------- */

struct waiting {
	struct dm_bio *bio;
	unsigned start;
};

static void *answer_slowly(void *data)
{
	struct disk *d = data;

	pthread_mutex_lock(&d->lock);
	for (;;) {
		struct waiting *w;

		while (!d->waiting->len && !d->stop)
			pthread_cond_wait(&d->wake, &d->lock);
		if (!d->waiting->len)
			break;
		w = g_ptr_array_remove_index_fast(d->waiting,
						  (guint)g_rand_int_range(d->rand, 0, (gint32)d->waiting->len));
		if (w->bio->op != DM_FLUSH)
			carry_out(d, w->bio, w->bio->sectors);
		record_done(d, w->bio, w->start);
		pthread_mutex_unlock(&d->lock);
		dm_bio_end(w->bio, 0);
		g_free(w);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

void disk_slow(struct disk *d)
{
	d->slow = true;
	d->waiting = g_ptr_array_new();
	if (pthread_create(&d->thread, NULL, answer_slowly, d))
		g_error("no thread for a slow disk");
}

/* --- the target ----------------------------------------------------------------------- */

static int lab_disk_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	unsigned id;

	if (argc != 1 || !dm_parse_uint(argv[0], &id) || !disks || id >= disks->len || !disks->pdata[id])
		return dm_fail(err, EINVAL, "lab-disk: there is no such disk");
	ti->private = disks->pdata[id];
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static enum dm_mapio lab_disk_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct disk *d = ti->private;
	unsigned start = 0;
	int error = 0;

	pthread_mutex_lock(&d->lock);
	if (fails(d, bio)) {
		/* Some of it may have happened; not where there is no space. */
		bool partial = dm_op_is_write(bio->op) && d->fail_error != -ENOSPC && g_rand_boolean(d->rand);

		error = d->fail_error;
		if (partial && bio->sectors > 1) {
			start = record_start(d, bio, true);
			carry_out(d, bio, bio->sectors / 2);
			record_done(d, bio, start); /* it is over, and later writes come later */
		}
	} else {
		start = record_start(d, bio, false);
		if (d->slow && bio->op != DM_READ) {
			struct waiting *w = g_new(struct waiting, 1);

			*w = (struct waiting){bio, start};
			g_ptr_array_add(d->waiting, w);
			pthread_cond_signal(&d->wake);
			pthread_mutex_unlock(&d->lock);
			return DM_MAPIO_SUBMITTED;
		}
		if (bio->op != DM_FLUSH)
			carry_out(d, bio, bio->sectors);
		record_done(d, bio, start);
	}
	pthread_mutex_unlock(&d->lock);
	dm_bio_end(bio, error);
	return DM_MAPIO_SUBMITTED;
}

static void lab_disk_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct disk *d = ti->private;

	if (type == DM_STATUS_TABLE)
		g_string_append_printf(out, "%u", d->id);
}

const struct dm_target_type lab_disk_target = {
	.name = "lab-disk",
	.version = {1, 0, 0},
	.ctr = lab_disk_ctr,
	.map = lab_disk_map,
	.status = lab_disk_status,
};
