/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dust: linear, with bad blocks on demand (dm-dust.txt).
 *
 *   <device_path> <offset> <blksz>
 *
 * The offset is in sectors, blksz in bytes.  Blocks are counted from the begin of the device
 * beneath, not of the target: block n is its sectors from n * blksz / 512 on.
 *
 * While `enabled`, a read that touches a bad block fails with EIO.  A write makes the bad blocks it touches good,
 * except that a block with a write fail count fails that many writes before.  As the kernel's, a bio is judged piece by
 * piece: the pieces are blksz long from the target's begin, and a piece's block is the one its first sector lies in.  A
 * write with a piece that fails fails as a whole, but its good pieces are written.  A discard is judged by its first
 * piece only, and a FLUSH touches no block.
 *
 * Unlike the kernel's bios, ours are not split into pieces: I/O that touches no bad block (see blocks.h: no lock) goes
 * on in one.  A write that does is taken off the way, and a work, one at a time, judges it: the block that it makes
 * good is so in the state database too before the write goes on.
 *
 * Everything that changes the list does so under `lock`; what it changes in the database is committed before the
 * message returns.
 */
#include <inttypes.h>
#include <pthread.h>
#include <strings.h>

#include <dmfs/container_of.h>
#include <dmfs/rounding.h>
#include <dmfs/rows.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "blocks.h"

#define MAX_BLOCK_SECTORS 2097152u /* 1 GiB */

/* The one row of "mode": a byte of these. */
#define MODE_ENABLED 1u
#define MODE_QUIET 2u

struct dust {
	struct dm_dev *dev;
	uint64_t start;
	uint32_t block_bytes;
	unsigned block_shift; /* log2 of its sectors */
	atomic_bool enabled, quiet;
	struct bad_blocks bad;
	pthread_mutex_t lock; /* of who changes the list, the mode or the rows */
	struct dm_rows *bad_rows; /* key: block, value: a byte, its write fail count */
	struct dm_rows *mode_rows;
	pthread_mutex_t writes_lock;
	struct dm_bio_list writes; /* to bad blocks, to be judged */
	struct dm_work judge;
	struct dm_wq *wq;
};

/* --- which blocks ---------------------------------------------------------------------- */

/* The block of the piece that begins at a sector of the target. */
static uint64_t block_at(const struct dust *d, uint64_t offset)
{
	return (d->start + offset) >> d->block_shift;
}

/* The sector of the target at which the piece with this sector ends. */
static uint64_t piece_end(const struct dust *d, uint64_t offset)
{
	return ((offset >> d->block_shift) + 1) << d->block_shift;
}

/* Whether a bio for the device, with data or a discard, touches a bad block. */
static bool touches_bad(struct dust *d, const struct dm_bio *bio)
{
	uint64_t offset = bio->sector - d->start, first = block_at(d, offset), last = first;
	uint64_t last_piece = (offset + bio->sectors - 1) >> d->block_shift << d->block_shift;

	if (bio->op != DM_DISCARD && last_piece > offset)
		last = block_at(d, last_piece);
	return bad_blocks_any(&d->bad, first, last);
}

/* --- writes to bad blocks ---------------------------------------------------------------- */

/* A bad block as it was, to put it back. */
struct undo {
	uint64_t block;
	uint8_t fail_count;
};

struct range {
	uint64_t sector, sectors;
};

/* A write and what of it fails. */
struct judged {
	struct dm_bio *bio;
	GArray *failed; /* of struct range, sectors of the device, ascending; NULL: none */
};

static void judge_piece(struct dust *d, struct judged *j, uint64_t offset, uint64_t sectors, GArray *undo)
{
	uint64_t block = block_at(d, offset);
	struct undo was = {block, bad_blocks_fail_count(&d->bad, block)};

	if (!bad_blocks_any(&d->bad, block, block))
		return;
	g_array_append_val(undo, was);
	if (was.fail_count) {
		struct range failed = {d->start + offset, sectors};
		uint8_t left = (uint8_t)(was.fail_count - 1);

		bad_blocks_add(&d->bad, block, left);
		dm_rows_put(d->bad_rows, block, &left, 1);
		if (!j->failed)
			j->failed = g_array_new(FALSE, FALSE, sizeof failed);
		g_array_append_val(j->failed, failed);
		return;
	}
	bad_blocks_remove(&d->bad, block);
	dm_rows_delete(d->bad_rows, block);
	if (!atomic_load(&d->quiet))
		dm_log_info("dust: block %" PRIu64 " removed from badblocklist by write", block);
}

static void judge_bio(struct dust *d, struct judged *j, GArray *undo)
{
	uint64_t at = j->bio->sector - d->start, end = at + j->bio->sectors;

	if (j->bio->op == DM_DISCARD) {
		judge_piece(d, j, at, end - at, undo);
		return;
	}
	while (at < end) {
		uint64_t next = MIN(piece_end(d, at), end);

		judge_piece(d, j, at, next - at, undo);
		at = next;
	}
}

/* Makes the changes of judge_bio() durable, or undoes them. */
static int save(struct dust *d, GArray *undo)
{
	g_autoptr(GError) err = NULL;
	int error = dm_rows_commit(d->bad_rows, &err);

	if (!error)
		return 0;
	dm_log_err("dust: the bad block list cannot be saved, so writes to bad blocks fail: %s",
		   err ? err->message : g_strerror(-error));
	dm_rows_rollback(d->bad_rows);
	for (guint i = undo->len; i-- > 0;) {
		struct undo *was = &g_array_index(undo, struct undo, i);

		bad_blocks_add(&d->bad, was->block, was->fail_count);
	}
	return error;
}

/* The good parts of a write of which others fail. */
struct part {
	struct dm_bio bio; /* first */
	struct dm_parts *parts;
	struct iovec iov[];
};

static void part_end(struct dm_bio *bio)
{
	struct part *part = (struct part *)bio;
	struct dm_parts *parts = part->parts;

	g_free(part);
	dm_parts_end(parts, 0);
}

static void write_part(struct dm_parts *parts, uint64_t sector, uint64_t end)
{
	struct dm_bio *whole = parts->whole;
	struct part *part;

	if (sector == end)
		return;
	part = g_malloc(sizeof *part + (size_t)whole->iovcnt * sizeof part->iov[0]);
	part->parts = parts;
	part->bio = (struct dm_bio){
		.op = whole->op,
		.flags = whole->flags,
		.dev = whole->dev,
		.sector = sector,
		.sectors = end - sector,
		.iov = part->iov,
		.end = part_end,
	};
	part->bio.iovcnt = dm_iov_slice(whole->iov, whole->iovcnt, (sector - whole->sector) << DM_SECTOR_SHIFT,
					(end - sector) << DM_SECTOR_SHIFT, part->iov);
	dm_parts_add(parts);
	dm_submit(&part->bio);
}

static void write_around(struct dm_bio *bio, const GArray *failed)
{
	struct dm_parts *parts = g_new(struct dm_parts, 1);
	uint64_t at = bio->sector, end = bio->sector + bio->sectors;

	dm_parts_init(parts, bio, 1);
	for (guint i = 0; bio->op == DM_WRITE && i < failed->len; i++) {
		struct range *range = &g_array_index(failed, struct range, i);

		write_part(parts, at, range->sector);
		at = range->sector + range->sectors;
	}
	if (bio->op == DM_WRITE)
		write_part(parts, at, end);
	dm_parts_end(parts, -EIO);
}

static void go_on(struct judged *j, int error)
{
	if (error)
		dm_bio_end(j->bio, error);
	else if (j->failed)
		write_around(j->bio, j->failed);
	else
		dm_submit(j->bio);
	if (j->failed)
		g_array_free(j->failed, TRUE);
}

static void judge_writes(struct dm_work *work)
{
	struct dust *d = container_of(work, struct dust, judge);
	g_autoptr(GArray) judged = g_array_new(FALSE, TRUE, sizeof(struct judged));
	g_autoptr(GArray) undo = g_array_new(FALSE, FALSE, sizeof(struct undo));
	struct judged one = {0};
	int error;

	pthread_mutex_lock(&d->writes_lock);
	while ((one.bio = dm_bio_list_pop(&d->writes)))
		g_array_append_val(judged, one);
	pthread_mutex_unlock(&d->writes_lock);

	pthread_mutex_lock(&d->lock);
	for (guint i = 0; i < judged->len; i++)
		judge_bio(d, &g_array_index(judged, struct judged, i), undo);
	error = undo->len ? save(d, undo) : 0;
	pthread_mutex_unlock(&d->lock);

	for (guint i = 0; i < judged->len; i++)
		go_on(&g_array_index(judged, struct judged, i), error);
}

static enum dm_mapio dust_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct dust *d = ti->private;

	bio->dev = d->dev;
	bio->sector = d->start + dm_target_offset(ti, bio->sector);
	if (bio->op == DM_FLUSH || !atomic_load_explicit(&d->enabled, memory_order_relaxed) || !touches_bad(d, bio))
		return DM_MAPIO_REMAPPED;
	if (bio->op == DM_READ)
		return DM_MAPIO_KILL;
	pthread_mutex_lock(&d->writes_lock);
	dm_bio_list_add(&d->writes, bio);
	pthread_mutex_unlock(&d->writes_lock);
	dm_wq_queue(d->wq, &d->judge);
	return DM_MAPIO_SUBMITTED;
}

/* No bio is there that could be looking at the list. */
static void dust_postsuspend(struct dm_target *ti)
{
	struct dust *d = ti->private;

	pthread_mutex_lock(&d->lock);
	bad_blocks_trim(&d->bad);
	pthread_mutex_unlock(&d->lock);
}

/* --- messages ------------------------------------------------------------------------- */

/* What the kernel logs, unless quiet, is the reason as well. */
#define REFUSE(d, err, ...)                        \
	({                                         \
		if (!atomic_load(&(d)->quiet))     \
			dm_log_err("dust: " __VA_ARGS__); \
		dm_fail(err, EINVAL, "dust: " __VA_ARGS__); \
	})

static int commit(struct dm_rows *rows, GError **err)
{
	int error = dm_rows_commit(rows, err);

	if (error) {
		dm_rows_rollback(rows);
		g_prefix_error(err, "dust: the change cannot be saved: ");
	}
	return error;
}

static int add_block(struct dust *d, uint64_t block, uint8_t fail_count, GError **err)
{
	int error;

	if (bad_blocks_any(&d->bad, block, block))
		return REFUSE(d, err, "dust_add_block: block %" PRIu64 " already in badblocklist", block);
	dm_rows_put(d->bad_rows, block, &fail_count, 1);
	error = commit(d->bad_rows, err);
	if (error)
		return error;
	bad_blocks_add(&d->bad, block, fail_count);
	if (!atomic_load(&d->quiet))
		dm_log_info("dust: dust_add_block: badblock added at block %" PRIu64 " with write fail count %u", block,
			    fail_count);
	return 0;
}

static int remove_block(struct dust *d, uint64_t block, GError **err)
{
	int error;

	if (!bad_blocks_any(&d->bad, block, block))
		return REFUSE(d, err, "dust_remove_block: block %" PRIu64 " not found in badblocklist", block);
	dm_rows_delete(d->bad_rows, block);
	error = commit(d->bad_rows, err);
	if (error)
		return error;
	bad_blocks_remove(&d->bad, block);
	if (!atomic_load(&d->quiet))
		dm_log_info("dust: dust_remove_block: badblock removed at block %" PRIu64, block);
	return 0;
}

/* A reply is logged as well, as dm-dust.txt has it (there without the function's name). */
static int query_block(struct dust *d, uint64_t block, GString *reply)
{
	const char *not = bad_blocks_any(&d->bad, block, block) ? "" : "not ";

	g_string_append_printf(reply, "dust_query_block: block %" PRIu64 " %sfound in badblocklist", block, not);
	dm_log_info("dust: queryblock: block %" PRIu64 " %sfound in badblocklist", block, not);
	return 0;
}

static int count_blocks(struct dust *d, GString *reply)
{
	g_string_append_printf(reply, "countbadblocks: %" PRIu64 " badblock(s) found", bad_blocks_count(&d->bad));
	dm_log_info("dust: %s", reply->str);
	return 0;
}

static int clear_blocks(struct dust *d, GString *reply, GError **err)
{
	const char *done = bad_blocks_count(&d->bad) ? "badblocks cleared" : "no badblocks found";
	int error = 0;

	if (bad_blocks_count(&d->bad)) {
		dm_rows_clear(d->bad_rows);
		error = commit(d->bad_rows, err);
	}
	if (error)
		return error;
	bad_blocks_clear(&d->bad);
	g_string_append_printf(reply, "dust_clear_badblocks: %s", done);
	dm_log_info("dust: clearbadblocks: %s", done);
	return 0;
}

static int list_blocks(struct dust *d, GString *reply)
{
	g_autoptr(GArray) list = bad_blocks_list(&d->bad);

	if (!list->len)
		g_string_append(reply, "No blocks in badblocklist");
	for (guint i = 0; i < list->len; i++)
		g_string_append_printf(reply, "%" PRIu64 "\n", g_array_index(list, uint64_t, i));
	return 0;
}

static int set_mode(struct dust *d, bool enabled, bool quiet, GError **err)
{
	uint8_t mode = (uint8_t)((enabled ? MODE_ENABLED : 0) | (quiet ? MODE_QUIET : 0));
	int error;

	dm_rows_put(d->mode_rows, 0, &mode, 1);
	error = commit(d->mode_rows, err);
	if (error)
		return error;
	atomic_store(&d->enabled, enabled);
	atomic_store(&d->quiet, quiet);
	return 0;
}

/* These are logged in quiet mode too. */
#define FAIL(err, ...)                                      \
	({                                                  \
		dm_log_err("dust: " __VA_ARGS__);           \
		dm_fail(err, EINVAL, "dust: " __VA_ARGS__); \
	})

static int unrecognized(const char *word, GError **err)
{
	return FAIL(err, "unrecognized message '%.64s' received", word);
}

static int message_1(struct dust *d, const char *word, GString *reply, GError **err)
{
	bool enabled = atomic_load(&d->enabled), quiet = atomic_load(&d->quiet);

	if (!strcasecmp(word, "addbadblock") || !strcasecmp(word, "removebadblock") || !strcasecmp(word, "queryblock"))
		return FAIL(err, "%s requires an additional argument", word);
	if (!strcasecmp(word, "disable")) {
		dm_log_info("dust: disabling read failures on bad sectors");
		return set_mode(d, false, quiet, err);
	}
	if (!strcasecmp(word, "enable")) {
		dm_log_info("dust: enabling read failures on bad sectors");
		return set_mode(d, true, quiet, err);
	}
	if (!strcasecmp(word, "quiet"))
		return set_mode(d, enabled, !quiet, err);
	if (!strcasecmp(word, "countbadblocks"))
		return count_blocks(d, reply);
	if (!strcasecmp(word, "clearbadblocks"))
		return clear_blocks(d, reply, err);
	if (!strcasecmp(word, "listbadblocks"))
		return list_blocks(d, reply);
	return unrecognized(word, err);
}

static int parse_block(struct dust *d, const char *word, uint64_t *block, GError **err)
{
	uint64_t blocks = dm_dev_sectors(d->dev) >> d->block_shift;

	if (!dm_parse_u64(word, block))
		return dm_fail(err, EINVAL, "dust: block '%s' is not a number that fits in 64 bits", word);
	if (*block > blocks) { /* the kernel takes the first one behind the end too */
		dm_log_err("dust: selected block value out of range");
		return dm_fail(err, EINVAL, "dust: selected block value out of range: %s, the device has %" PRIu64
			       " blocks", word, blocks);
	}
	return 0;
}

static int message_2(struct dust *d, char **argv, GString *reply, GError **err)
{
	uint64_t block;
	int error = parse_block(d, argv[1], &block, err);

	if (error)
		return error;
	if (!strcasecmp(argv[0], "addbadblock"))
		return add_block(d, block, 0, err);
	if (!strcasecmp(argv[0], "removebadblock"))
		return remove_block(d, block, err);
	if (!strcasecmp(argv[0], "queryblock"))
		return query_block(d, block, reply);
	return unrecognized(argv[0], err);
}

static int message_3(struct dust *d, char **argv, GError **err)
{
	unsigned fail_count;
	uint64_t block;
	int error;

	if (!dm_parse_uint(argv[2], &fail_count))
		return dm_fail(err, EINVAL, "dust: write fail count '%s' is not a number, 0 to 255", argv[2]);
	if (fail_count > UINT8_MAX) {
		dm_log_err("dust: selected write fail count out of range");
		return dm_fail(err, EINVAL, "dust: selected write fail count out of range: %u, 255 is the most",
			       fail_count);
	}
	error = parse_block(d, argv[1], &block, err);
	if (error)
		return error;
	if (!strcasecmp(argv[0], "addbadblock"))
		return add_block(d, block, (uint8_t)fail_count, err);
	return unrecognized(argv[0], err);
}

static int dust_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct dust *d = ti->private;
	int error;

	pthread_mutex_lock(&d->lock);
	if (argc == 1)
		error = message_1(d, argv[0], reply, err);
	else if (argc == 2)
		error = message_2(d, argv, reply, err);
	else if (argc == 3)
		error = message_3(d, argv, err);
	else
		error = FAIL(err, "invalid number of arguments '%d'", argc);
	pthread_mutex_unlock(&d->lock);
	return error;
}

/* --- the target ------------------------------------------------------------------------ */

static int load_bad(uint64_t key, const void *value, size_t len, void *data)
{
	struct dust *d = data;

	if (len != 1 || key > dm_dev_sectors(d->dev) >> d->block_shift)
		return -EINVAL;
	bad_blocks_add(&d->bad, key, *(const uint8_t *)value);
	return 0;
}

static int load_mode(uint64_t key, const void *value, size_t len, void *data)
{
	struct dust *d = data;
	uint8_t mode = len == 1 ? *(const uint8_t *)value : UINT8_MAX;

	if (key || (mode & ~(MODE_ENABLED | MODE_QUIET)))
		return -EINVAL;
	atomic_init(&d->enabled, mode & MODE_ENABLED);
	atomic_init(&d->quiet, mode & MODE_QUIET);
	return 0;
}

static int load_rows(struct dm_target *ti, struct dust *d, GError **err)
{
	int error;

	d->bad_rows = dm_rows_open(ti, "bad-blocks");
	d->mode_rows = dm_rows_open(ti, "mode");
	error = dm_rows_load(d->bad_rows, load_bad, d, err);
	if (!error)
		error = dm_rows_load(d->mode_rows, load_mode, d, err);
	if (error && err && !*err)
		dm_fail(err, -error, "dust: the saved bad block list or mode is damaged");
	return error;
}

static void dust_free(struct dm_target *ti, struct dust *d)
{
	dm_wq_free(d->wq);
	if (d->bad_rows)
		dm_rows_close(d->bad_rows);
	if (d->mode_rows)
		dm_rows_close(d->mode_rows);
	bad_blocks_destroy(&d->bad);
	pthread_mutex_destroy(&d->lock);
	pthread_mutex_destroy(&d->writes_lock);
	dm_put_device(ti, d->dev);
	g_free(d);
}

static int parse_block_size(struct dm_target *ti, const char *word, uint32_t *bytes, GError **err)
{
	uint64_t most = MIN(ti->len, MAX_BLOCK_SECTORS) << DM_SECTOR_SHIFT;

	/* as the kernel reads it: a '+' may stand before the number */
	if (!dm_parse_uint(word + (*word == '+'), bytes) || !*bytes)
		return dm_fail(err, EINVAL, "dust: Invalid block size parameter '%s', bytes are wanted", word);
	if (*bytes < DM_SECTOR_SIZE)
		return dm_fail(err, EINVAL, "dust: Block size must be at least 512, not %u", *bytes);
	if (*bytes && !dm_is_pow2(*bytes))
		return dm_fail(err, EINVAL, "dust: Block size must be a power of 2, not %u", *bytes);
	if (*bytes > most)
		return dm_fail(err, EINVAL, "dust: Block size is too large: %u, the most is %" PRIu64, *bytes, most);
	return 0;
}

static int dust_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	uint32_t block_bytes;
	struct dm_dev *dev;
	struct dust *d;
	uint64_t start, end;
	int error;

	if (argc != 3)
		return dm_fail(err, EINVAL, "dust: Invalid argument count: %d, <device_path> <offset> <blksz> are 3",
			       argc);
	error = parse_block_size(ti, argv[2], &block_bytes, err);
	if (!error)
		error = dm_read_u64(argv[1], 0, UINT64_MAX, "dust", "device offset sector", &start, err);
	if (error)
		return error;
	if (__builtin_add_overflow(start, ti->len, &end))
		return dm_fail(err, EINVAL, "dust: device offset sector %" PRIu64 " and %" PRIu64
			       " more are beyond 2^64 sectors", start, ti->len);
	error = dm_get_device(ti, argv[0], dm_target_mode(ti), &dev, err);
	if (error)
		return error;
	d = g_new0(struct dust, 1);
	d->dev = dev;
	d->start = start;
	d->block_bytes = block_bytes;
	d->block_shift = dm_log2(block_bytes) - DM_SECTOR_SHIFT;
	pthread_mutex_init(&d->lock, NULL);
	pthread_mutex_init(&d->writes_lock, NULL);
	dm_bio_list_init(&d->writes);
	bad_blocks_init(&d->bad);
	d->wq = dm_wq_new("dust", 1);
	d->judge.fn = judge_writes;
	error = load_rows(ti, d, err);
	if (error) {
		dust_free(ti, d);
		return error;
	}
	ti->private = d;
	ti->num_discard_bios = 1;
	return 0;
}

static void dust_dtr(struct dm_target *ti)
{
	dust_free(ti, ti->private);
}

static void dust_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct dust *d = ti->private;

	dm_dev_print(d->dev, out);
	if (type == DM_STATUS_INFO)
		g_string_append_printf(out, " %s %s", atomic_load(&d->enabled) ? "fail_read_on_bad_block" : "bypass",
				       atomic_load(&d->quiet) ? "quiet" : "verbose");
	else
		g_string_append_printf(out, " %" PRIu64 " %" PRIu32, d->start, d->block_bytes);
}

static int dust_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct dust *d = ti->private;

	return fn(ti, d->dev, d->start, ti->len, data);
}

/* A hole with a bad block in it is none; with any about, no hole is told. */
static int dust_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct dust *d = ti->private;

	if (atomic_load(&d->enabled) && bad_blocks_count(&d->bad)) {
		*out = (struct dm_extent){.data = true, .sectors = sectors};
		return 0;
	}
	return dm_dev_extent(d->dev, d->start + sector, sectors, out);
}

static uint64_t dust_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct dust *d = ti->private;

	if (atomic_load(&d->enabled) && bad_blocks_count(&d->bad)) /* these read as errors, not as zeroes */
		return sectors;
	return dm_dev_provisioned(d->dev, d->start + sector, sectors);
}

const struct dm_target_type dust_target = {
	.name = "dust",
	.version = {1, 0, 0},
	.features = DM_TARGET_STRAIGHT,
	.ctr = dust_ctr,
	.dtr = dust_dtr,
	.map = dust_map,
	.postsuspend = dust_postsuspend,
	.status = dust_status,
	.message = dust_message,
	.iterate_devices = dust_iterate_devices,
	.extent = dust_extent,
	.provisioned = dust_provisioned,
};
