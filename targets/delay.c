/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * delay: holds reads, writes and flushes back for a time, each kind on a device of its own (delay.rst).
 *
 *   <device> <offset> <delay> [<write_device> <write_offset> <write_delay>
 *                              [<flush_device> <flush_offset> <flush_delay>]]
 *
 * Offsets are sectors, delays milliseconds.  What is delayed when the device is suspended or the daemon ends goes at
 * once.
 */
#include <inttypes.h>

#include <dmfs/later.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

enum { READ, WRITE, FLUSH, CLASSES };

struct class {
	struct dm_dev *dev;
	uint64_t start;
	unsigned delay_ms;
	struct dm_later *later;
};

struct delay {
	int argc;
	struct class classes[CLASSES];
};

/* --- the target ------------------------------------------------------------------------ */

static void delay_free(struct dm_target *ti, struct delay *d)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		dm_later_free(d->classes[i].later);
		if (d->classes[i].dev)
			dm_put_device(ti, d->classes[i].dev);
	}
	g_free(d);
}

static int class_ctr(struct dm_target *ti, struct class *c, char **argv, GError **err)
{
	int error;

	error = dm_read_u64(argv[1], 0, UINT64_MAX, "delay", "device sector", &c->start, err);
	if (!error)
		error = dm_read_uint(argv[2], 0, UINT32_MAX, "delay", "delay in milliseconds", &c->delay_ms, err);
	if (!error)
		error = dm_get_device(ti, argv[0], dm_target_mode(ti), &c->dev, err);
	return error;
}

static int delay_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct delay *d;

	if (argc != 3 && argc != 6 && argc != 9)
		return dm_fail(err, EINVAL, "delay: Requires exactly 3, 6 or 9 arguments, there are %d", argc);
	d = g_new0(struct delay, 1);
	d->argc = argc;
	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *c = &d->classes[i];
		int error;

		c->later = dm_later_new();
		/* a class without arguments of its own shares those of the one before */
		error = class_ctr(ti, c, argv + MIN(3 * (int)i, argc - 3), err);
		if (error) {
			delay_free(ti, d);
			return error;
		}
	}
	ti->private = d;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->provisions = true;
	return 0;
}

static void delay_dtr(struct dm_target *ti)
{
	delay_free(ti, ti->private);
}

static enum dm_mapio delay_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct delay *d = ti->private;
	struct class *c = &d->classes[bio->op == DM_READ ? READ : bio->op == DM_FLUSH ? FLUSH : WRITE];
	int error;

	bio->dev = c->dev;
	bio->sector = c->start + dm_target_offset(ti, bio->sector);
	if (!c->delay_ms)
		return DM_MAPIO_REMAPPED;
	error = dm_later_submit(c->later, bio, dm_now_ns() + (uint64_t)c->delay_ms * 1000000);
	if (error == -EAGAIN)
		return DM_MAPIO_REMAPPED;
	if (error)
		dm_bio_end(bio, error);
	return DM_MAPIO_SUBMITTED;
}

static void delay_let_go(struct dm_target *ti)
{
	struct delay *d = ti->private;

	for (unsigned i = 0; i < CLASSES; i++)
		dm_later_go(d->classes[i].later);
}

static void delay_resume(struct dm_target *ti)
{
	struct delay *d = ti->private;

	for (unsigned i = 0; i < CLASSES; i++)
		dm_later_keep(d->classes[i].later);
}

static void delay_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct delay *d = ti->private;

	if (type == DM_STATUS_INFO) {
		g_string_append_printf(out, "%u %u %u", dm_later_count(d->classes[READ].later),
				       dm_later_count(d->classes[WRITE].later), dm_later_count(d->classes[FLUSH].later));
		return;
	}
	for (int i = 0; i < d->argc / 3; i++) {
		struct class *c = &d->classes[i];

		if (i)
			g_string_append_c(out, ' ');
		dm_dev_print(c->dev, out);
		g_string_append_printf(out, " %" PRIu64 " %u", c->start, c->delay_ms);
	}
}

static int delay_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct delay *d = ti->private;
	int error = 0;

	for (unsigned i = 0; i < CLASSES && !error; i++)
		error = fn(ti, d->classes[i].dev, d->classes[i].start, ti->len, data);
	return error;
}

static int delay_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct delay *d = ti->private;

	return dm_dev_extent(d->classes[READ].dev, d->classes[READ].start + sector, sectors, out);
}

static uint64_t delay_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct delay *d = ti->private;

	return dm_dev_provisioned(d->classes[READ].dev, d->classes[READ].start + sector, sectors);
}

const struct dm_target_type delay_target = {
	.name = "delay",
	.version = {1, 3, 0},
	.features = DM_TARGET_PASSES_TAGS | DM_TARGET_STRAIGHT,
	.ctr = delay_ctr,
	.dtr = delay_dtr,
	.map = delay_map,
	.presuspend = delay_let_go,
	.presuspend_undo = delay_resume,
	.resume = delay_resume,
	.end_waiting = delay_let_go,
	.status = delay_status,
	.iterate_devices = delay_iterate_devices,
	.extent = delay_extent,
	.provisioned = delay_provisioned,
};
