/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * striped: chunks spread over several devices in turn (striped.txt).
 *
 *   <num devs> <chunk size> [<dev path> <offset>]+
 *
 * Chunk c of the target lies on stripe c % n, as the c / n-th chunk there.  What a bio has on one stripe is one range
 * there, however many chunks it is: each stripe gets one bio for all of its part.  For discards and write-zeroes the
 * engine sends as many; reads and writes over several chunks are dealt out here, their data as a list of chunks.
 */
#include <inttypes.h>
#include <stdatomic.h>

#include <dmfs/target.h>

struct stripe {
	struct dm_dev *dev;
	uint64_t start;
	_Atomic unsigned errors;
};

struct striped {
	unsigned n;
	uint32_t chunk_sectors;
	uint64_t stripe_sectors; /* how much of each device is used */
	struct stripe stripes[];
};

static void striped_free(struct dm_target *ti, struct striped *s, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		dm_put_device(ti, s->stripes[i].dev);
	g_free(s);
}

static int striped_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct striped *s;
	unsigned n, chunk;

	if (argc < 2)
		return dm_fail(err, EINVAL, "striped: Not enough arguments: %d, <num devs> <chunk size> are needed",
			       argc);
	if (!dm_parse_uint(argv[0], &n) || !n)
		return dm_fail(err, EINVAL, "striped: Invalid stripe count '%s', 1 is the least", argv[0]);
	/* as the kernel reads it: a '+' may stand before the number */
	if (!dm_parse_uint(argv[1] + (*argv[1] == '+'), &chunk) || !chunk)
		return dm_fail(err, EINVAL, "striped: Invalid chunk_size '%s', 1 sector is the least", argv[1]);
	if (ti->len % n || ti->len / n % chunk)
		return dm_fail(err, EINVAL,
			       "striped: length %" PRIu64 " is not a multiple of %u stripes of %u sectors: "
			       "Target length not divisible by %s",
			       ti->len, n, chunk, ti->len % n ? "number of stripes" : "chunk size");
	if ((uint64_t)argc != 2 + 2 * (uint64_t)n)
		return dm_fail(err, EINVAL,
			       "striped: Not enough destinations specified: %u stripes need %" PRIu64
			       " arguments, there are %d",
			       n, 2 + 2 * (uint64_t)n, argc);

	s = g_malloc0(sizeof *s + n * sizeof s->stripes[0]);
	s->n = n;
	s->chunk_sectors = chunk;
	s->stripe_sectors = ti->len / n;
	for (unsigned i = 0; i < n; i++) {
		int error = dm_read_u64(argv[3 + 2 * i], 0, UINT64_MAX, "striped", "device sector",
					&s->stripes[i].start, err);

		if (!error)
			error = dm_get_device(ti, argv[2 + 2 * i], dm_target_mode(ti), &s->stripes[i].dev, err);
		if (error) {
			striped_free(ti, s, i);
			return error;
		}
	}
	ti->private = s;
	ti->num_discard_bios = n;
	ti->num_write_zeroes_bios = n;
	ti->provisions = true;
	return 0;
}

static void striped_dtr(struct dm_target *ti)
{
	struct striped *s = ti->private;

	striped_free(ti, s, s->n);
}

/* Where a sector of the target lies: its stripe, and the sector of the stripe. */
static unsigned map_sector(const struct striped *s, uint64_t offset, uint64_t *sector)
{
	uint64_t chunk = offset / s->chunk_sectors;

	*sector = chunk / s->n * s->chunk_sectors + offset % s->chunk_sectors;
	return (unsigned)(chunk % s->n);
}

/* The first sector of stripe nr at or after an offset of the target. */
static uint64_t first_on_stripe(const struct striped *s, uint64_t offset, unsigned nr)
{
	uint64_t sector;
	unsigned on = map_sector(s, offset, &sector);

	if (on == nr)
		return sector;
	sector -= sector % s->chunk_sectors; /* the row's begin */
	return on < nr ? sector : sector + s->chunk_sectors;
}

static enum dm_mapio map_range(struct dm_target *ti, struct dm_bio *bio)
{
	struct striped *s = ti->private;
	struct stripe *stripe = &s->stripes[bio->nr];
	uint64_t offset = dm_target_offset(ti, bio->sector);
	uint64_t begin = first_on_stripe(s, offset, bio->nr);
	uint64_t end = first_on_stripe(s, offset + bio->sectors, bio->nr);

	if (begin >= end) { /* nothing on this stripe */
		dm_bio_end(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	bio->dev = stripe->dev;
	bio->sector = stripe->start + begin;
	bio->sectors = end - begin;
	return DM_MAPIO_REMAPPED;
}

/* Counts a device's errors for the status. */
static void count_error(struct dm_target *ti, const struct dm_dev *dev, int error)
{
	struct striped *s = ti->private;

	if (!error || error == -EOPNOTSUPP)
		return;
	for (unsigned i = 0; i < s->n; i++)
		if (s->stripes[i].dev == dev && atomic_fetch_add(&s->stripes[i].errors, 1) == 0)
			dm_target_event(ti, NULL, NULL);
}

/* --- reads and writes over several chunks --------------------------------------------------- */

struct deal {
	struct dm_parts counted; /* first */
	struct dm_target *ti;
	struct part {
		struct dm_bio bio; /* first */
		struct deal *deal;
		const struct dm_dev *dev;
	} parts[];
};

static void part_end(struct dm_bio *bio)
{
	struct part *p = (struct part *)bio;

	count_error(p->deal->ti, p->dev, bio->error);
	dm_parts_end(&p->deal->counted, bio->error);
}

/* Goes through a bio's data in pieces that lie in one chunk and in one entry of its iov. */
struct walk {
	const struct iovec *iov;
	size_t at;          /* in *iov */
	uint64_t byte, end; /* of the target */
};

static bool walk_next(const struct striped *s, struct walk *w, uint64_t *chunk, struct iovec *piece)
{
	uint64_t chunk_bytes = (uint64_t)s->chunk_sectors << DM_SECTOR_SHIFT, len;

	if (w->byte == w->end)
		return false;
	while (w->at == w->iov->iov_len) {
		w->iov++;
		w->at = 0;
	}
	len = MIN(chunk_bytes - w->byte % chunk_bytes, w->end - w->byte);
	len = MIN(len, w->iov->iov_len - w->at);
	*chunk = w->byte / chunk_bytes;
	*piece = (struct iovec){(char *)w->iov->iov_base + w->at, len};
	w->at += len;
	w->byte += len;
	return true;
}

/* Gives the n parts their data, as entries in the room at iov; part k begins with chunk first + k. */
static void deal_data(struct deal *d, struct walk walk, uint64_t first, unsigned n, struct iovec *iov)
{
	const struct striped *s = d->ti->private;
	struct walk again = walk;
	struct iovec piece;
	uint64_t chunk;

	while (walk_next(s, &walk, &chunk, &piece))
		d->parts[(chunk - first) % n].bio.iovcnt++;
	for (unsigned k = 0; k < n; k++) {
		d->parts[k].bio.iov = iov;
		iov += d->parts[k].bio.iovcnt;
		d->parts[k].bio.iovcnt = 0;
	}
	while (walk_next(s, &again, &chunk, &piece)) {
		struct dm_bio *bio = &d->parts[(chunk - first) % n].bio;

		bio->iov[bio->iovcnt++] = piece;
	}
	for (unsigned k = 0; k < n; k++) {
		struct dm_bio *bio = &d->parts[k].bio;

		bio->sectors = dm_iov_bytes(bio->iov, bio->iovcnt) >> DM_SECTOR_SHIFT;
	}
}

static void deal_out(struct dm_target *ti, struct dm_bio *orig, uint64_t first, uint64_t last)
{
	struct striped *s = ti->private;
	/* tags are one run of memory, so then each chunk is a part */
	unsigned n = (unsigned)(orig->tags.data ? last - first + 1 : MIN(last - first + 1, s->n));
	size_t pieces = (size_t)(last - first) + (size_t)orig->iovcnt; /* at most: each border adds one */
	struct deal *d = g_malloc(sizeof *d + n * sizeof d->parts[0] + pieces * sizeof(struct iovec));
	uint64_t offset = dm_target_offset(ti, orig->sector), sector;

	d->ti = ti;
	dm_parts_init(&d->counted, orig, n);
	for (unsigned k = 0; k < n; k++) {
		struct part *p = &d->parts[k];
		struct stripe *stripe =
			&s->stripes[map_sector(s, k ? (first + k) * s->chunk_sectors : offset, &sector)];

		p->deal = d;
		p->dev = stripe->dev;
		p->bio = (struct dm_bio){
			.op = orig->op,
			.flags = orig->flags,
			.dev = stripe->dev,
			.sector = stripe->start + sector,
			.tags = dm_tags_from(orig->tags, k ? (first + k) * s->chunk_sectors - offset : 0),
			.end = part_end,
		};
	}
	deal_data(d, (struct walk){orig->iov, 0, offset << DM_SECTOR_SHIFT, (offset + orig->sectors) << DM_SECTOR_SHIFT},
		  first, n, (struct iovec *)&d->parts[n]);
	for (unsigned k = 0; k < n; k++)
		dm_submit(&d->parts[k].bio);
}

/* --- map ------------------------------------------------------------------------------------- */

static enum dm_mapio striped_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct striped *s = ti->private;
	uint64_t offset, first, last, sector;
	struct stripe *stripe;

	if (!dm_op_has_data(bio->op))
		return map_range(ti, bio);
	offset = dm_target_offset(ti, bio->sector);
	first = offset / s->chunk_sectors;
	last = (offset + bio->sectors - 1) / s->chunk_sectors;
	if (last > first) {
		deal_out(ti, bio, first, last);
		return DM_MAPIO_SUBMITTED;
	}
	stripe = &s->stripes[map_sector(s, offset, &sector)];
	bio->dev = stripe->dev;
	bio->sector = stripe->start + sector;
	return DM_MAPIO_REMAPPED;
}

/* bio->dev is where the bio went; the parts of one that was dealt out are counted already. */
static enum dm_endio striped_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	count_error(ti, bio->dev, bio->error);
	return DM_ENDIO_DONE;
}

static void striped_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct striped *s = ti->private;

	if (type == DM_STATUS_TABLE) {
		g_string_append_printf(out, "%u %" PRIu32, s->n, s->chunk_sectors);
		for (unsigned i = 0; i < s->n; i++) {
			g_string_append_c(out, ' ');
			dm_dev_print(s->stripes[i].dev, out);
			g_string_append_printf(out, " %" PRIu64, s->stripes[i].start);
		}
		return;
	}
	g_string_append_printf(out, "%u ", s->n);
	for (unsigned i = 0; i < s->n; i++) {
		dm_dev_print(s->stripes[i].dev, out);
		g_string_append_c(out, ' ');
	}
	g_string_append(out, "1 ");
	for (unsigned i = 0; i < s->n; i++)
		g_string_append_c(out, s->stripes[i].errors ? 'D' : 'A');
}

static int striped_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct striped *s = ti->private;
	int error = 0;

	for (unsigned i = 0; i < s->n && !error; i++)
		error = fn(ti, s->stripes[i].dev, s->stripes[i].start, s->stripe_sectors, data);
	return error;
}

static void striped_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct striped *s = ti->private;
	uint64_t chunk = (uint64_t)s->chunk_sectors << DM_SECTOR_SHIFT;

	limits->io_min = (unsigned)MIN(chunk, UINT32_MAX);
	limits->io_opt = (unsigned)MIN(chunk * s->n, UINT32_MAX);
	if (limits->tag_block && chunk % limits->tag_block)
		limits->tag_bytes = limits->tag_block = 0;
}

static int striped_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct striped *s = ti->private;
	uint64_t at;
	unsigned nr = map_sector(s, sector, &at);

	sectors = MIN(sectors, s->chunk_sectors - sector % s->chunk_sectors);
	return dm_dev_extent(s->stripes[nr].dev, s->stripes[nr].start + at, sectors, out);
}

static uint64_t striped_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct striped *s = ti->private;
	uint64_t sum = 0;

	for (unsigned i = 0; i < s->n; i++) {
		uint64_t from = first_on_stripe(s, sector, i), to = first_on_stripe(s, sector + sectors, i);

		if (to > from)
			sum += dm_dev_provisioned(s->stripes[i].dev, s->stripes[i].start + from, to - from);
	}
	return sum;
}

const struct dm_target_type striped_target = {
	.name = "striped",
	.version = {1, 6, 0},
	.features = DM_TARGET_FLUSH_DEVICES | DM_TARGET_PASSES_TAGS | DM_TARGET_STRAIGHT,
	.ctr = striped_ctr,
	.dtr = striped_dtr,
	.map = striped_map,
	.end_io = striped_end_io,
	.status = striped_status,
	.iterate_devices = striped_iterate_devices,
	.io_hints = striped_io_hints,
	.extent = striped_extent,
	.provisioned = striped_provisioned,
};
