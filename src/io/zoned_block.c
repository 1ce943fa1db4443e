/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A zoned block device, by the ioctls of linux/blkzoned.h.
 *
 * Linux takes writes to a sequential zone by direct I/O only, from aligned memory, and in the order of the write
 * pointer.  So they are copied, and written by the thread that submits them, one who sends two in order has them
 * written in order.  All else goes to the plain store.  Appends there are none: no call tells a program where one has
 * gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/blkzoned.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dmfs/error.h>
#include <dmfs/rounding.h>

#include "zoned.h"

#define REPORT_ZONES 512u
#define ALIGNMENT 4096u
#define PIECE ((size_t)1 << 20)

static int system_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

int (*zoned_block_ioctl)(int fd, unsigned long request, void *arg) = system_ioctl;

struct zoned_block {
	struct dm_dev dev;
	struct dm_dev *inner;
	int fd, direct_fd; /* the plain store's, and one with O_DIRECT; -1: nothing is written */
	uint64_t sectors;
	unsigned zone_sectors, n;
	uint8_t *sequential; /* a bit a zone */
	enum dm_zone_model model;
	unsigned capacity, max_open, max_active;
};

static struct zoned_block *to_block(struct dm_dev *dev)
{
	return (struct zoned_block *)dev;
}

static bool is_sequential(const struct zoned_block *b, uint64_t sector)
{
	uint64_t i = sector / b->zone_sectors;

	return b->sequential[i / 8] & 1u << i % 8;
}

/* --- reports --------------------------------------------------------------------------------- */

static void convert(const struct blk_zone *from, bool has_capacity, struct dm_zone *to)
{
	*to = (struct dm_zone){
	    .type = from->type,
	    .condition = from->cond,
	    .start = from->start,
	    .sectors = from->len,
	    .capacity = has_capacity ? from->capacity : from->len,
	    .wp = from->type == BLK_ZONE_TYPE_CONVENTIONAL ? from->start : from->wp,
	};
}

static int report(int fd, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	g_autofree struct blk_zone_report *r = g_malloc(sizeof *r + REPORT_ZONES * sizeof(struct blk_zone));
	int error = 0;

	while (max && !error) {
		memset(r, 0, sizeof *r);
		r->sector = sector;
		r->nr_zones = (uint32_t)MIN(max, REPORT_ZONES);
		if (zoned_block_ioctl(fd, BLKREPORTZONE, r) < 0)
			return -errno;
		if (!r->nr_zones)
			return 0;
		for (uint32_t i = 0; i < MIN(r->nr_zones, REPORT_ZONES) && !error; i++) {
			struct dm_zone zone;

			convert(&r->zones[i], r->flags & BLK_ZONE_REP_CAPACITY, &zone);
			if (!zone.sectors || zone.start + zone.sectors <= sector)
				return -EIO;
			sector = zone.start + zone.sectors;
			max--;
			error = fn(&zone, data);
		}
	}
	return error;
}

static int block_report(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct zoned_block *b = to_block(dev);
	int error;

	dm_block_begin();
	error = report(b->fd, dm_round_down(sector, b->zone_sectors), max, fn, data);
	dm_block_end();
	return error;
}

/* --- writes to sequential zones ------------------------------------------------------------------ */

static int write_piece(struct zoned_block *b, const void *buf, size_t len, uint64_t at, bool fua)
{
	struct iovec iov = {(void *)buf, len};

	while (iov.iov_len) {
		ssize_t n = pwritev2(b->direct_fd, &iov, 1, (off_t)at, fua ? RWF_DSYNC : 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		iov.iov_base = (char *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
		at += (uint64_t)n;
	}
	return 0;
}

static int write_in_order(struct zoned_block *b, const struct dm_bio *bio)
{
	size_t bytes = bio->sectors << DM_SECTOR_SHIFT, piece = MIN(bytes, PIECE);
	void *buf = NULL;
	int error = 0;

	if (posix_memalign(&buf, ALIGNMENT, piece))
		return -ENOMEM;
	for (size_t done = 0; done < bytes && !error; done += piece) {
		size_t len = MIN(piece, bytes - done);

		dm_iov_read(bio->iov, bio->iovcnt, done, buf, len);
		error = write_piece(b, buf, len, (bio->sector << DM_SECTOR_SHIFT) + done, bio->flags & DM_FUA);
	}
	free(buf);
	return error;
}

static void submit_write(struct zoned_block *b, struct dm_bio *bio)
{
	int error = b->direct_fd < 0 ? -EROFS : 0;

	if (!error && (bio->flags & DM_PREFLUSH))
		error = dm_flush_sync(b->inner);
	dm_block_begin();
	if (!error)
		error = write_in_order(b, bio);
	dm_block_end();
	dm_bio_end(bio, error);
}

/* --- what is done with zones ------------------------------------------------------------------------ */

static int change(struct zoned_block *b, unsigned long request, uint64_t sector, uint64_t sectors)
{
	struct blk_zone_range range = {sector, sectors};

	return zoned_block_ioctl(b->fd, request, &range) < 0 ? -errno : 0;
}

/* Linux resets all of a disk at once, and of a part no conventional zones. */
static int reset_all(struct zoned_block *b, const struct dm_bio *bio)
{
	int error = 0;

	if (!bio->sector && bio->sectors == b->sectors)
		return change(b, BLKRESETZONE, 0, b->sectors);
	for (uint64_t at = bio->sector; at < bio->sector + bio->sectors && !error; at += b->zone_sectors)
		if (is_sequential(b, at))
			error = change(b, BLKRESETZONE, at, MIN(b->zone_sectors, b->sectors - at));
	return error;
}

static void manage(struct zoned_block *b, struct dm_bio *bio)
{
	static const unsigned long requests[] = {
	    [DM_ZONE_OPEN] = BLKOPENZONE,
	    [DM_ZONE_CLOSE] = BLKCLOSEZONE,
	    [DM_ZONE_FINISH] = BLKFINISHZONE,
	    [DM_ZONE_RESET] = BLKRESETZONE,
	};
	int error = b->direct_fd < 0 ? -EROFS : 0;

	dm_block_begin();
	if (!error)
		error = bio->op == DM_ZONE_RESET_ALL ? reset_all(b, bio)
						     : change(b, requests[bio->op], bio->sector, bio->sectors);
	dm_block_end();
	dm_bio_end(bio, error);
}

static void block_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct zoned_block *b = to_block(dev);
	uint64_t end;

	if (bio->op != DM_FLUSH && (__builtin_add_overflow(bio->sector, bio->sectors, &end) || end > b->sectors)) {
		dm_bio_end(bio, -EIO);
	} else if (bio->op == DM_ZONE_APPEND) {
		dm_bio_end(bio, -EOPNOTSUPP);
	} else if (dm_op_manages_zones(bio->op)) {
		manage(b, bio);
	} else if (bio->op == DM_WRITE && bio->sectors && is_sequential(b, bio->sector)) {
		submit_write(b, bio);
	} else {
		bio->dev = b->inner;
		b->inner->ops->submit(b->inner, bio);
	}
}

/* --- what it is ---------------------------------------------------------------------------------------- */

static uint64_t block_sectors(struct dm_dev *dev)
{
	return to_block(dev)->sectors;
}

static void block_limits(struct dm_dev *dev, struct dm_limits *out)
{
	struct zoned_block *b = to_block(dev);

	dm_dev_limits(b->inner, out);
	out->zone_model = b->model;
	out->zone_sectors = b->zone_sectors;
	out->zone_capacity = b->capacity;
	out->max_open_zones = b->max_open;
	out->max_active_zones = b->max_active;
	out->max_append_sectors = 0;
}

static void block_print(struct dm_dev *dev, GString *out)
{
	dm_dev_print(to_block(dev)->inner, out);
}

static void block_identity(struct dm_dev *dev, uint64_t id[3])
{
	struct zoned_block *b = to_block(dev);

	b->inner->ops->identity(b->inner, id);
}

static int block_file(struct dm_dev *dev)
{
	return to_block(dev)->fd;
}

static void block_free(struct dm_dev *dev)
{
	struct zoned_block *b = to_block(dev);

	if (b->direct_fd >= 0)
		close(b->direct_fd);
	dm_dev_put(b->inner);
	g_free(b->sequential);
	g_free(b);
}

static const struct dm_dev_ops block_ops = {
    .submit = block_submit,
    .sectors = block_sectors,
    .limits = block_limits,
    .report_zones = block_report,
    .print = block_print,
    .identity = block_identity,
    .file = block_file,
    .free = block_free,
};

/* --- opening --------------------------------------------------------------------------------------------- */

static int note_zone(const struct dm_zone *zone, void *data)
{
	struct zoned_block *b = data;
	uint64_t i = zone->start / b->zone_sectors;

	if (zone->start % b->zone_sectors || i >= b->n)
		return -EIO;
	if (zone->type == DM_ZONE_CONVENTIONAL)
		return 0;
	b->sequential[i / 8] |= (uint8_t)(1u << i % 8);
	b->capacity = (unsigned)MIN(b->capacity, zone->capacity);
	if (zone->type == DM_ZONE_SEQUENTIAL)
		b->model = DM_ZONES_HOST_MANAGED;
	return 0;
}

/* A number of the device's queue, 0 if it is not told. */
static unsigned queue_number(int fd, const char *name)
{
	g_autofree char *path = NULL, *text = NULL;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return 0;
	path = g_strdup_printf("/sys/dev/block/%u:%u/queue/%s", major(st.st_rdev), minor(st.st_rdev), name);
	if (!g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	return (unsigned)MIN(g_ascii_strtoull(text, NULL, 10), UINT32_MAX);
}

/* Any block device has it; a file in a test's memory may not. */
static int open_direct(int fd)
{
	g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", fd);
	int direct = open(self, O_RDWR | O_DIRECT | O_CLOEXEC);

	return direct < 0 && errno == EINVAL ? open(self, O_RDWR | O_CLOEXEC) : direct;
}

static int look(struct zoned_block *b, uint32_t zone_sectors, GError **err)
{
	uint64_t n;
	int error;

	b->sectors = dm_dev_sectors(b->inner);
	n = dm_div_up(b->sectors, zone_sectors);
	if (!b->sectors || n > INT32_MAX)
		return dm_fail(err, EINVAL, "%" PRIu64 " zones are none, or too many", n);
	b->zone_sectors = b->capacity = zone_sectors;
	b->n = (unsigned)n;
	b->sequential = g_malloc0(n / 8 + 1);
	b->model = DM_ZONES_HOST_AWARE;
	error = report(b->fd, 0, n, note_zone, b);
	if (error)
		return dm_fail(err, -error, "the zones cannot be told: %s", g_strerror(-error));
	b->max_open = queue_number(b->fd, "max_open_zones");
	b->max_active = queue_number(b->fd, "max_active_zones");
	if (b->dev.mode & DM_MODE_WRITE && (b->direct_fd = open_direct(b->fd)) < 0)
		return dm_fail(err, errno, "direct I/O: %s", g_strerror(errno));
	return 0;
}

int dm_zoned_block_wrap(struct dm_dev **dev, GError **err)
{
	int fd = (*dev)->ops->file(*dev), error;
	struct zoned_block *b;
	uint32_t zone_sectors = 0;
	GString *name;

	if (zoned_block_ioctl(fd, BLKGETZONESZ, &zone_sectors) < 0 || !zone_sectors)
		return 0;
	b = g_new0(struct zoned_block, 1);
	b->dev.ops = &block_ops;
	b->dev.mode = (*dev)->mode;
	atomic_init(&b->dev.refs, 1);
	b->inner = *dev;
	b->fd = fd;
	b->direct_fd = -1;
	dm_block_begin();
	error = look(b, zone_sectors, err);
	dm_block_end();
	if (!error) {
		*dev = &b->dev;
		return 0;
	}
	name = g_string_new(NULL);
	dm_dev_print(*dev, name);
	g_prefix_error(err, "%s: ", name->str);
	g_string_free(name, TRUE);
	block_free(&b->dev);
	return error;
}
