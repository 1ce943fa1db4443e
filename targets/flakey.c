/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * flakey: linear, except that it misbehaves for a while, again and again (dm-flakey.rst).
 *
 *   <dev path> <offset> <up interval> <down interval> [<num_features> [<feature arguments>]]
 *
 * Intervals are seconds from the time the table is loaded.  Features, which act in the down interval; without any all
 * I/O fails then:
 *
 *   error_reads                                    reads fail
 *   drop_writes                                    writes (discards and flushes too) do nothing
 *   error_writes                                   they fail
 *   corrupt_bio_byte <Nth_byte> <r|w> <value> <flags>
 *                                                  byte N, from 1, of each bio's data that has the flags becomes value
 *   random_read_corrupt <p>, random_write_corrupt <p>
 *                                                  with a chance of p in 10^9, a random byte gets a random value
 *
 * What is written is corrupted in a copy: the data is the writer's.  Features can be given in any case, and arguments
 * behind them are not looked at, as in the kernel.
 *
 * The flags are those of the kernel's bios (bi_opf).  Ours have these, and no other ever matches:
 *
 *   bit 0           writes
 *   bit 12 (4096)   DM_META; also bit 5 (32), which was it when dm-flakey.rst was written
 *   bit 17 (131072) DM_FUA
 *   bit 20 (1048576) DM_BACKGROUND
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <strings.h>
#include <sys/random.h>

#include <dmfs/target.h>
#include <dmfs/work.h>

#define CERTAIN 1000000000u /* the probability 1 */
#define MAX_FEATURE_ARGS 11u

#define OPF_WRITE (1u << 0)
#define OPF_META ((1u << 12) | (1u << 5))
#define OPF_FUA (1u << 17)
#define OPF_BACKGROUND (1u << 20)
#define OPF_KNOWN (OPF_WRITE | OPF_META | OPF_FUA | OPF_BACKGROUND)

struct flakey {
	struct dm_dev *dev;
	uint64_t start;
	uint64_t loaded_ns;
	unsigned up_seconds, down_seconds;
	bool error_reads, drop_writes, error_writes;
	unsigned corrupt_byte; /* 0: none */
	bool corrupt_writes;   /* else reads */
	uint8_t corrupt_value;
	uint32_t corrupt_flags;
	bool random_reads, random_writes; /* given; the chance may be 0 */
	unsigned random_read_chance, random_write_chance;
	atomic_uint_fast64_t random;
};

/* A bio's private bytes. */
struct per_bio {
	bool corrupt_fixed; /* read: when it comes back */
	bool may_corrupt;
	char *copy; /* write: what is written instead of the data */
	struct iovec iov;
	struct iovec *own_iov;
	int own_iovcnt;
};

/* --- arguments ------------------------------------------------------------------------ */

static int parse_corrupt_byte(struct flakey *f, struct dm_args *as, GError **err)
{
	unsigned value;
	const char *word;
	int error;

	if (f->corrupt_byte)
		return dm_fail(err, EINVAL, "flakey: Feature corrupt_bio_byte duplicated");
	if (as->argc < 4)
		return dm_fail(err, EINVAL,
			       "flakey: Feature corrupt_bio_byte requires parameters: <Nth_byte> <direction> <value> "
			       "<flags>, there are %d",
			       as->argc);
	error = dm_read_uint(dm_shift_arg(as), 1, UINT32_MAX, "flakey", "corrupt bio byte", &f->corrupt_byte, err);
	if (error)
		return error;
	word = dm_shift_arg(as);
	if (strcasecmp(word, "r") && strcasecmp(word, "w"))
		return dm_fail(err, EINVAL, "flakey: Invalid corrupt bio direction '%s' (r or w)", word);
	f->corrupt_writes = g_ascii_tolower(*word) == 'w';
	error = dm_read_uint(dm_shift_arg(as), 0, 255, "flakey", "corrupt value to write into bio byte", &value, err);
	if (error)
		return error;
	f->corrupt_value = (uint8_t)value;
	return dm_read_uint(dm_shift_arg(as), 0, UINT32_MAX, "flakey", "corrupt bio flags mask", &f->corrupt_flags, err);
}

static int parse_chance(struct dm_args *as, const char *feature, bool *given, unsigned *chance, GError **err)
{
	if (*given)
		return dm_fail(err, EINVAL, "flakey: Feature %s duplicated", feature);
	if (!as->argc)
		return dm_fail(err, EINVAL, "flakey: Feature %s requires a parameter, 0 to %u", feature, CERTAIN);
	*given = true;
	return dm_read_uint(dm_shift_arg(as), 0, CERTAIN, "flakey", feature, chance, err);
}

static int parse_flag(const char *feature, bool *flag, GError **err)
{
	if (*flag)
		return dm_fail(err, EINVAL, "flakey: Feature %s duplicated", feature);
	*flag = true;
	return 0;
}

static int parse_feature(struct flakey *f, struct dm_args *as, GError **err)
{
	const char *word = dm_shift_arg(as);

	if (!strcasecmp(word, "error_reads"))
		return parse_flag("error_reads", &f->error_reads, err);
	if (!strcasecmp(word, "drop_writes"))
		return parse_flag("drop_writes", &f->drop_writes, err);
	if (!strcasecmp(word, "error_writes"))
		return parse_flag("error_writes", &f->error_writes, err);
	if (!strcasecmp(word, "corrupt_bio_byte"))
		return parse_corrupt_byte(f, as, err);
	if (!strcasecmp(word, "random_read_corrupt"))
		return parse_chance(as, "random_read_corrupt", &f->random_reads, &f->random_read_chance, err);
	if (!strcasecmp(word, "random_write_corrupt"))
		return parse_chance(as, "random_write_corrupt", &f->random_writes, &f->random_write_chance, err);
	return dm_fail(err, EINVAL, "flakey: Unrecognised flakey feature requested: '%s'", word);
}

static int check_features(const struct flakey *f, GError **err)
{
	const char *writes = f->drop_writes ? "drop_writes" : f->error_writes ? "error_writes" : NULL;

	if (f->drop_writes && f->error_writes)
		return dm_fail(err, EINVAL, "flakey: Feature drop_writes conflicts with feature error_writes");
	if (writes && ((f->corrupt_byte && f->corrupt_writes) || f->random_write_chance))
		return dm_fail(err, EINVAL,
			       "flakey: %s is incompatible with random_write_corrupt or corrupt_bio_byte with the WRITE "
			       "flag set",
			       writes);
	if (f->error_reads && ((f->corrupt_byte && !f->corrupt_writes) || f->random_read_chance))
		return dm_fail(err, EINVAL,
			       "flakey: error_reads is incompatible with random_read_corrupt or corrupt_bio_byte with the "
			       "READ flag set");
	return 0;
}

static int parse_features(struct flakey *f, struct dm_args *as, GError **err)
{
	struct dm_args group;
	unsigned n;
	int error;

	error = dm_read_arg_group(as, 0, MAX_FEATURE_ARGS, true, "flakey", "feature args", &n, err);
	group = (struct dm_args){(int)n, as->argv};
	while (!error && group.argc)
		error = parse_feature(f, &group, err);
	if (!error)
		error = check_features(f, err);
	if (error)
		return error;
	if ((int)n < as->argc)
		dm_log_warn("flakey: '%s' and what follows is behind the %u feature args and not looked at", as->argv[n], n);
	if (f->corrupt_flags & ~OPF_KNOWN)
		dm_log_warn("flakey: no bio has all flags of %" PRIu32 ": corrupt_bio_byte will do nothing",
			    f->corrupt_flags);
	return 0;
}

static int parse(struct dm_target *ti, struct flakey *f, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - 4, argv + 4};
	unsigned total;
	int error;

	error = dm_read_u64(argv[1], 0, UINT64_MAX, "flakey", "device sector", &f->start, err);
	if (!error)
		error = dm_read_uint(argv[2], 0, UINT32_MAX, "flakey", "up interval", &f->up_seconds, err);
	if (!error)
		error = dm_read_uint(argv[3], 0, UINT32_MAX, "flakey", "down interval", &f->down_seconds, err);
	if (error)
		return error;
	if (__builtin_add_overflow(f->up_seconds, f->down_seconds, &total))
		return dm_fail(err, EINVAL, "flakey: Interval overflow: %u + %u seconds, the most together is %u",
			       f->up_seconds, f->down_seconds, UINT32_MAX);
	if (!total)
		return dm_fail(err, EINVAL, "flakey: Total (up + down) interval is zero");
	error = parse_features(f, &as, err);
	return error ? error : dm_get_device(ti, argv[0], dm_target_mode(ti), &f->dev, err);
}

static int flakey_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct flakey *f;
	uint64_t seed;
	int error;

	if (argc < 4)
		return dm_fail(err, EINVAL,
			       "flakey: Invalid argument count: %d, <dev path> <offset> <up interval> <down interval> are "
			       "the least",
			       argc);
	f = g_new0(struct flakey, 1);
	error = parse(ti, f, argc, argv, err);
	if (error) {
		g_free(f);
		return error;
	}
	f->loaded_ns = dm_now_ns();
	if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed)
		seed = f->loaded_ns;
	atomic_init(&f->random, seed);
	ti->private = f;
	ti->num_discard_bios = 1;
	ti->provisions = true;
	return 0;
}

static void flakey_dtr(struct dm_target *ti)
{
	struct flakey *f = ti->private;

	dm_put_device(ti, f->dev);
	g_free(f);
}

/* --- corruption ------------------------------------------------------------------------ */

/* splitmix64, a counter made random: threads need share nothing else. */
static uint64_t random64(struct flakey *f)
{
	uint64_t x = atomic_fetch_add_explicit(&f->random, 0x9e3779b97f4a7c15u, memory_order_relaxed);

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static bool happens(struct flakey *f, unsigned chance)
{
	return chance && random64(f) % CERTAIN < chance;
}

static bool flags_match(const struct flakey *f, const struct dm_bio *bio)
{
	uint32_t opf = (bio->op != DM_READ ? OPF_WRITE : 0) | (bio->flags & DM_META ? OPF_META : 0) |
		       (bio->flags & DM_FUA ? OPF_FUA : 0) | (bio->flags & DM_BACKGROUND ? OPF_BACKGROUND : 0);

	return (opf & f->corrupt_flags) == f->corrupt_flags;
}

static void corrupt_fixed(struct flakey *f, const struct iovec *iov, int iovcnt, size_t len)
{
	if (f->corrupt_byte <= len)
		dm_iov_write(iov, iovcnt, f->corrupt_byte - 1, &f->corrupt_value, 1);
}

static void corrupt_random(struct flakey *f, const struct iovec *iov, int iovcnt, size_t len)
{
	uint64_t r = random64(f);
	uint8_t value = (uint8_t)r;

	dm_iov_write(iov, iovcnt, (size_t)((r >> 8) % len), &value, 1);
}

/* Gives a write a corrupted copy of its data. */
static int corrupt_write(struct flakey *f, struct dm_bio *bio, struct per_bio *pb)
{
	bool fixed = f->corrupt_byte && f->corrupt_writes && flags_match(f, bio);
	bool random = happens(f, f->random_write_chance);
	size_t len = bio->sectors << DM_SECTOR_SHIFT;

	if (!fixed && !random)
		return 0;
	pb->copy = g_try_malloc(len);
	if (!pb->copy)
		return -ENOMEM;
	dm_iov_read(bio->iov, bio->iovcnt, 0, pb->copy, len);
	pb->iov = (struct iovec){pb->copy, len};
	if (fixed)
		corrupt_fixed(f, &pb->iov, 1, len);
	if (random)
		corrupt_random(f, &pb->iov, 1, len);
	pb->own_iov = bio->iov;
	pb->own_iovcnt = bio->iovcnt;
	bio->iov = &pb->iov;
	bio->iovcnt = 1;
	return 0;
}

/* --- the target ------------------------------------------------------------------------ */

static bool is_down(const struct flakey *f)
{
	uint64_t elapsed = (dm_now_ns() - f->loaded_ns) / 1000000000;

	return elapsed % ((uint64_t)f->up_seconds + f->down_seconds) >= f->up_seconds;
}

/* No feature at all: everything fails. */
static bool errors_all(const struct flakey *f)
{
	return !f->error_reads && !f->drop_writes && !f->error_writes && !f->corrupt_byte && !f->random_reads &&
	       !f->random_writes;
}

static enum dm_mapio remap(struct dm_target *ti, struct dm_bio *bio)
{
	struct flakey *f = ti->private;

	bio->dev = f->dev;
	bio->sector = f->start + dm_target_offset(ti, bio->sector);
	return DM_MAPIO_REMAPPED;
}

static enum dm_mapio finish(struct dm_bio *bio, int error)
{
	dm_bio_end(bio, error);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_mapio flakey_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct flakey *f = ti->private;
	struct per_bio *pb = bio->private;
	int error;

	*pb = (struct per_bio){0};
	if (dm_op_manages_zones(bio->op) || !is_down(f))
		return remap(ti, bio);
	if (errors_all(f))
		return DM_MAPIO_KILL;
	if (bio->op == DM_READ) {
		if (f->error_reads)
			return DM_MAPIO_KILL;
		pb->may_corrupt = true;
		pb->corrupt_fixed = f->corrupt_byte && !f->corrupt_writes && flags_match(f, bio);
		return remap(ti, bio);
	}
	if (f->drop_writes)
		return finish(bio, 0);
	if (f->error_writes)
		return DM_MAPIO_KILL;
	error = dm_op_has_data(bio->op) ? corrupt_write(f, bio, pb) : 0;
	return error ? finish(bio, error) : remap(ti, bio);
}

static enum dm_endio flakey_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct flakey *f = ti->private;
	struct per_bio *pb = bio->private;
	size_t len = bio->sectors << DM_SECTOR_SHIFT;

	if (pb->may_corrupt && !bio->error) {
		if (pb->corrupt_fixed)
			corrupt_fixed(f, bio->iov, bio->iovcnt, len);
		if (happens(f, f->random_read_chance))
			corrupt_random(f, bio->iov, bio->iovcnt, len);
	}
	if (pb->copy) {
		bio->iov = pb->own_iov;
		bio->iovcnt = pb->own_iovcnt;
		g_free(pb->copy);
	}
	return DM_ENDIO_DONE;
}

static void flakey_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct flakey *f = ti->private;

	if (type == DM_STATUS_INFO)
		return;
	dm_dev_print(f->dev, out);
	g_string_append_printf(out, " %" PRIu64 " %u %u %d", f->start, f->up_seconds, f->down_seconds,
			       f->error_reads + f->drop_writes + f->error_writes + (f->corrupt_byte ? 5 : 0) +
				       2 * f->random_reads + 2 * f->random_writes);
	if (f->error_reads)
		g_string_append(out, " error_reads");
	if (f->drop_writes)
		g_string_append(out, " drop_writes");
	if (f->error_writes)
		g_string_append(out, " error_writes");
	if (f->corrupt_byte)
		g_string_append_printf(out, " corrupt_bio_byte %u %c %u %" PRIu32, f->corrupt_byte,
				       f->corrupt_writes ? 'w' : 'r', f->corrupt_value, f->corrupt_flags);
	if (f->random_reads)
		g_string_append_printf(out, " random_read_corrupt %u", f->random_read_chance);
	if (f->random_writes)
		g_string_append_printf(out, " random_write_corrupt %u", f->random_write_chance);
}

static int flakey_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct flakey *f = ti->private;

	return fn(ti, f->dev, f->start, ti->len, data);
}

static int flakey_report_zones(struct dm_target *ti, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct flakey *f = ti->private;

	return dm_target_report_zones(ti, f->dev, f->start, sector, max, fn, data);
}

const struct dm_target_type flakey_target = {
	.name = "flakey",
	.version = {1, 5, 0},
	.features = DM_TARGET_ZONES | DM_TARGET_STRAIGHT,
	.per_bio_size = sizeof(struct per_bio),
	.ctr = flakey_ctr,
	.dtr = flakey_dtr,
	.map = flakey_map,
	.end_io = flakey_end_io,
	.status = flakey_status,
	.iterate_devices = flakey_iterate_devices,
	.report_zones = flakey_report_zones,
};
