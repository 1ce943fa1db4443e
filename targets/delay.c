/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * delay: holds reads, writes and flushes back for a time, each kind on a device of its own (delay.rst).
 *
 *   <device> <offset> <delay> [<write_device> <write_offset> <write_delay>
 *                              [<flush_device> <flush_offset> <flush_delay>]]
 *
 * Offsets are sectors, delays milliseconds.
 *
 * The bios of a class (read, write, flush) all wait equally long, so a class
 * is a queue in the order of due times, and one timer that is armed for its
 * head.  A bio that is due goes to the list of ready ones, which all delay
 * targets share: it is taken off in the order of due times by one runner, a work that
 * submits bios until there are none.  Should a submission wait for a disk,
 * the runner first gives the bios it has not come to back, and another one
 * goes on; so a slow disk holds up neither other bios nor the timers.
 *
 * A held bio costs no thread.  Nothing of a target is touched after its bio
 * has gone to the ready list, for the target may end with its last bio.
 */
#include <inttypes.h>
#include <pthread.h>

#include <dmfs/container_of.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#define MAX_RUNNERS 64 /* that wait for disks at a time */

enum { READ, WRITE, FLUSH, CLASSES };

struct class {
	struct delay *owner;
	struct dm_dev *dev;
	uint64_t start;
	unsigned delay_ms;
	struct dm_timer timer;
	struct dm_bio_list waiting; /* by due time; guarded, with count, by the owner's lock */
	unsigned count;
};

struct delay {
	pthread_mutex_t lock;
	bool may_delay; /* not between presuspend and resume */
	bool ending;    /* not any more */
	int argc;
	struct class classes[CLASSES];
};

/* A bio's private bytes. */
struct delayed {
	uint64_t due_ns;
};

/* --- the ready bios ---------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	struct dm_bio_list list;
	bool running; /* a runner is there that will come back to the list */
	struct dm_wq *wq;
} ready = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What a runner has taken off the list. */
struct runner {
	struct dm_bio_list bios;
	bool leads; /* no other has been started in its place */
};

static void run(struct dm_work *work);

static void make_queue(void)
{
	dm_bio_list_init(&ready.list);
	ready.wq = dm_wq_new("delay", MAX_RUNNERS);
}

static void start_runner(void)
{
	struct dm_work *work = g_new0(struct dm_work, 1);

	work->fn = run;
	dm_wq_queue(ready.wq, work);
}

/* Appends list `from`, which ends empty, to `to`. */
static void move_all(struct dm_bio_list *to, struct dm_bio_list *from)
{
	if (dm_bio_list_empty(from))
		return;
	*to->tail = from->head;
	to->tail = from->tail;
	dm_bio_list_init(from);
}

static void submit_later(struct dm_bio_list *bios)
{
	bool start;

	if (dm_bio_list_empty(bios))
		return;
	pthread_mutex_lock(&ready.lock);
	move_all(&ready.list, bios);
	start = !ready.running;
	ready.running = true;
	pthread_mutex_unlock(&ready.lock);
	if (start)
		start_runner();
}

/* The runner's thread is about to wait: what it has not come to is for another. */
static void hand_over(void *context)
{
	struct runner *r = context;
	bool start;

	if (!r->leads)
		return;
	r->leads = false;
	pthread_mutex_lock(&ready.lock);
	move_all(&r->bios, &ready.list);
	move_all(&ready.list, &r->bios);
	start = ready.running = !dm_bio_list_empty(&ready.list);
	pthread_mutex_unlock(&ready.lock);
	if (start)
		start_runner();
}

static void run(struct dm_work *work)
{
	struct runner r = {.leads = true};
	struct dm_bio *bio;

	g_free(work);
	dm_bio_list_init(&r.bios);
	dm_block_set_hooks(hand_over, NULL, &r);
	while (r.leads) {
		pthread_mutex_lock(&ready.lock);
		move_all(&r.bios, &ready.list);
		r.leads = ready.running = !dm_bio_list_empty(&r.bios);
		pthread_mutex_unlock(&ready.lock);
		while ((bio = dm_bio_list_pop(&r.bios)))
			dm_submit(bio);
	}
	dm_block_set_hooks(NULL, NULL, NULL);
}

/* --- waiting --------------------------------------------------------------------------- */

static uint64_t due_ns(const struct dm_bio *bio)
{
	return ((const struct delayed *)bio->private)->due_ns;
}

/*
 * The head of a class is due: it goes, with those due at the same time.  The
 * others wait for their own turn, even if they are late by now, so that
 * what several classes and targets hold comes out in order.
 */
static void class_due(struct dm_timer *timer)
{
	struct class *c = container_of(timer, struct class, timer);
	uint64_t due = 0, now = dm_now_ns();
	struct dm_bio_list out;

	dm_bio_list_init(&out);
	pthread_mutex_lock(&c->owner->lock);
	if (c->waiting.head)
		due = due_ns(c->waiting.head);
	while (c->waiting.head && due <= now && due_ns(c->waiting.head) == due) {
		dm_bio_list_add(&out, dm_bio_list_pop(&c->waiting));
		c->count--;
	}
	if (c->waiting.head)
		dm_timer_arm(&c->timer, due_ns(c->waiting.head));
	pthread_mutex_unlock(&c->owner->lock);
	submit_later(&out);
}

/* Holds a bio back; false when it must not be. */
static bool hold(struct class *c, struct dm_bio *bio)
{
	struct delayed *delayed = bio->private;
	struct delay *d = c->owner;
	bool held;

	pthread_mutex_lock(&d->lock);
	held = d->may_delay && !d->ending;
	if (held) {
		bool first = dm_bio_list_empty(&c->waiting);

		delayed->due_ns = dm_now_ns() + (uint64_t)c->delay_ms * 1000000;
		dm_bio_list_add(&c->waiting, bio);
		c->count++;
		if (first)
			dm_timer_arm(&c->timer, delayed->due_ns);
	}
	pthread_mutex_unlock(&d->lock);
	return held;
}

static void let_all_go(struct delay *d, bool ending)
{
	struct dm_bio_list out;

	dm_bio_list_init(&out);
	pthread_mutex_lock(&d->lock);
	d->may_delay = false;
	d->ending |= ending;
	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *c = &d->classes[i];

		dm_timer_cancel(&c->timer);
		move_all(&out, &c->waiting);
		c->count = 0;
	}
	pthread_mutex_unlock(&d->lock);
	submit_later(&out);
}

static void delay_presuspend(struct dm_target *ti)
{
	let_all_go(ti->private, false);
}

static void delay_end_waiting(struct dm_target *ti)
{
	let_all_go(ti->private, true);
}

static void delay_resume(struct dm_target *ti)
{
	struct delay *d = ti->private;

	pthread_mutex_lock(&d->lock);
	d->may_delay = true;
	pthread_mutex_unlock(&d->lock);
}

/* --- the target ------------------------------------------------------------------------ */

static void delay_free(struct dm_target *ti, struct delay *d)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		dm_timer_cancel_sync(&d->classes[i].timer);
		if (d->classes[i].dev)
			dm_put_device(ti, d->classes[i].dev);
	}
	pthread_mutex_destroy(&d->lock);
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
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct delay *d;

	if (argc != 3 && argc != 6 && argc != 9)
		return dm_fail(err, EINVAL, "delay: Requires exactly 3, 6 or 9 arguments, there are %d", argc);
	pthread_once(&once, make_queue);
	d = g_new0(struct delay, 1);
	pthread_mutex_init(&d->lock, NULL);
	d->may_delay = true;
	d->argc = argc;
	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *c = &d->classes[i];
		int error;

		c->owner = d;
		c->timer.fn = class_due;
		dm_bio_list_init(&c->waiting);
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

	bio->dev = c->dev;
	bio->sector = c->start + dm_target_offset(ti, bio->sector);
	if (c->delay_ms && hold(c, bio))
		return DM_MAPIO_SUBMITTED;
	return DM_MAPIO_REMAPPED;
}

static void delay_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct delay *d = ti->private;

	if (type == DM_STATUS_INFO) {
		pthread_mutex_lock(&d->lock);
		g_string_append_printf(out, "%u %u %u", d->classes[READ].count, d->classes[WRITE].count,
				       d->classes[FLUSH].count);
		pthread_mutex_unlock(&d->lock);
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

const struct dm_target_type delay_target = {
	.name = "delay",
	.version = {1, 3, 0},
	.per_bio_size = sizeof(struct delayed),
	.ctr = delay_ctr,
	.dtr = delay_dtr,
	.map = delay_map,
	.presuspend = delay_presuspend,
	.presuspend_undo = delay_resume,
	.resume = delay_resume,
	.end_waiting = delay_end_waiting,
	.status = delay_status,
	.iterate_devices = delay_iterate_devices,
	.extent = delay_extent,
};
