/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The workload's requests, their marks and their place in the model.
 *
 * A write goes into the model before it is sent; marks and the model are under
 * one lock, so marks stand in the log and in the disk's record in the order of their numbers.
 */
#include "core/message.h"
#include "internal.h"

#define MAX_IO 64u /* sectors of a random request */

/* --- randomness: each thread has its own, so that threads do not change each other's choices --- */

static _Thread_local GRand *thread_rand;

static void rand_free(gpointer r)
{
	g_rand_free(r);
}

void lab_seed_thread(uint32_t seed)
{
	static GPrivate owner = G_PRIVATE_INIT(rand_free);

	thread_rand = g_rand_new_with_seed(seed);
	g_private_replace(&owner, thread_rand);
}

unsigned lab_random(struct lab *lab, unsigned n)
{
	return n ? g_rand_int(thread_rand) % n : 0;
}

struct thread {
	pthread_t id;
	struct lab *lab;
	unsigned i;
	uint32_t seed;
	void (*fn)(struct lab *, unsigned, void *);
	void *data;
};

static void *run_thread(void *data)
{
	struct thread *t = data;

	lab_seed_thread(t->seed);
	t->fn(t->lab, t->i, t->data);
	return NULL;
}

void lab_threads(struct lab *lab, unsigned n, void (*fn)(struct lab *, unsigned i, void *data), void *data)
{
	g_autofree struct thread *threads = g_new0(struct thread, n);

	for (unsigned i = 0; i < n; i++) {
		threads[i] = (struct thread){.lab = lab, .i = i, .seed = g_rand_int(thread_rand), .fn = fn, .data = data};
		if (pthread_create(&threads[i].id, NULL, run_thread, &threads[i]))
			g_error("no thread");
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i].id, NULL);
}

/* --- marks and steps ---------------------------------------------------------------------------- */

uint64_t lab_mark(struct lab *lab)
{
	uint64_t mark = ++lab->model.now;
	g_autoptr(GError) err = NULL;

	disk_mark(lab->disk, mark);
	if (lab->log) {
		struct dm_opener self = dm_opener_self();
		g_autofree char *text = g_strdup_printf("mark %" PRIu64, mark);
		g_autoptr(GString) reply = g_string_new(NULL);

		if (dm_mapped_message(lab->log, text, &self, reply, &err))
			lab_fail(lab, "mark %" PRIu64 ": %s", mark, err->message);
	}
	return mark;
}

void lab_step(struct lab *lab, const char *fmt, ...)
{
	uint64_t *mark;
	va_list ap;

	if (lab->at_crash_point)
		return;
	mark = g_new(uint64_t, 1);
	va_start(ap, fmt);
	pthread_mutex_lock(&lab->model.lock);
	*mark = lab_mark(lab);
	g_hash_table_insert(lab->model.steps, g_strdup_vprintf(fmt, ap), mark);
	pthread_mutex_unlock(&lab->model.lock);
	va_end(ap);
}

bool lab_reached(struct lab *lab, const char *fmt, ...)
{
	g_autofree char *name = NULL;
	const uint64_t *mark;
	bool reached;
	va_list ap;

	va_start(ap, fmt);
	name = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&lab->model.lock);
	mark = g_hash_table_lookup(lab->model.steps, name);
	reached = mark && *mark <= lab->time;
	pthread_mutex_unlock(&lab->model.lock);
	return reached;
}

/* --- volumes --------------------------------------------------------------------------------------- */

int lab_volume(struct lab *lab, const char *name, enum lab_initial initial, GError **err)
{
	struct dm_mapped *md = dm_find_name(name);
	struct volume *v;
	int error = 0;

	if (!md)
		return dm_fail(err, ENOENT, "there is no device '%s' to be a volume", name);
	pthread_mutex_lock(&lab->model.lock);
	v = model_volume(&lab->model, name);
	if (!v)
		v = model_add_volume(&lab->model, name, dm_mapped_sectors(md), initial);
	if (v->sectors != dm_mapped_sectors(md))
		error = dm_fail(err, EINVAL, "volume '%s' has %" PRIu64 " sectors, it had %" PRIu64, name,
				dm_mapped_sectors(md), v->sectors);
	else
		v->md = md; /* the device list's reference */
	pthread_mutex_unlock(&lab->model.lock);
	dm_mapped_unref(md);
	return error;
}

void lab_inherit(struct lab *lab, const char *name, const char *from)
{
	struct volume *source, *v;

	if (lab->at_crash_point)
		return;
	pthread_mutex_lock(&lab->model.lock);
	source = model_volume(&lab->model, from);
	if (!source)
		g_error("lab_inherit: '%s' is no volume", from);
	v = model_volume(&lab->model, name);
	if (!v)
		v = model_add_volume(&lab->model, name, source->sectors, source->initial);
	model_copy_volume(&lab->model, v, source);
	pthread_mutex_unlock(&lab->model.lock);
}

struct volume *lab_open_volume(struct lab *lab, const char *name)
{
	struct volume *v;

	pthread_mutex_lock(&lab->model.lock);
	v = model_volume(&lab->model, name);
	pthread_mutex_unlock(&lab->model.lock);
	return v && v->md ? v : NULL;
}

/* --- requests ---------------------------------------------------------------------------------------- */

int lab_submit(struct volume *v, enum dm_op op, unsigned flags, uint64_t sector, uint64_t sectors, void *buf)
{
	struct dm_region where = {&v->md->dev, sector, sectors};
	struct iovec iov = {buf, sectors * DM_SECTOR_SIZE};

	return dm_io_sync(op, flags, 1, &where, &iov, dm_op_has_data(op), NULL);
}

static int no_volume(struct lab *lab, const char *name)
{
	/* After a fault its device may not have come up again. */
	if (!lab->faulty)
		lab_fail(lab, "the workload uses '%s', which is not open", name);
	return -ENODEV;
}

/* What a flush that begins now covers. */
static GArray *take_undurable(struct lab *lab, struct volume *v)
{
	GArray *covered = g_array_new(FALSE, FALSE, sizeof(unsigned));

	for (unsigned i = 0; i < v->undurable->len; i++) {
		unsigned id = g_array_index(v->undurable, unsigned, i);
		const struct op *o = lab->model.ops->pdata[id];

		if (o->end != NEVER)
			g_array_append_val(covered, id);
	}
	return covered;
}

static void set_durable(struct lab *lab, struct volume *v, const GArray *covered, uint64_t mark)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < covered->len; i++) {
		struct op *o = lab->model.ops->pdata[g_array_index(covered, unsigned, i)];

		o->durable = MIN(o->durable, mark);
	}
	for (unsigned i = 0; i < v->undurable->len; i++) {
		unsigned id = g_array_index(v->undurable, unsigned, i);

		if (((struct op *)lab->model.ops->pdata[id])->durable == NEVER)
			g_array_index(v->undurable, unsigned, kept++) = id;
	}
	g_array_set_size(v->undurable, kept);
}

static void report(struct lab *lab, const char *volume, const char *what, uint64_t sector, int error)
{
	if (error && (!lab->faulty || lab->bears))
		lab_fail(lab, "%s of %s sector %" PRIu64 ": %s", what, volume, sector, g_strerror(-error));
}

/* A write, discard or write-zeroes; with DM_PREFLUSH a flush before it. */
static int change(struct lab *lab, const char *name, enum dm_op op, uint64_t sector, uint64_t sectors,
		  unsigned flags)
{
	struct volume *v = lab_open_volume(lab, name);
	g_autofree uint8_t *data = NULL;
	GArray *covered = NULL;
	unsigned id, volume;
	uint64_t mark;
	struct op *o;
	int error;

	if (!v)
		return no_volume(lab, name);
	pthread_mutex_lock(&lab->model.lock);
	lab->requests++;
	mark = lab_mark(lab);
	if (flags & DM_PREFLUSH)
		covered = take_undurable(lab, v);
	id = model_begin(&lab->model, v, op, sector, sectors, mark);
	o = lab->model.ops->pdata[id];
	volume = o->volume;
	pthread_mutex_unlock(&lab->model.lock);
	if (op == DM_WRITE) {
		data = g_malloc(sectors * DM_SECTOR_SIZE);
		for (uint64_t i = 0; i < sectors; i++)
			stamp(data + i * DM_SECTOR_SIZE, lab->model.run, volume, sector + i, id);
	}
	error = lab_submit(v, op, flags, sector, sectors, data);
	pthread_mutex_lock(&lab->model.lock);
	if (!error) {
		o->end = lab_mark(lab);
		if (covered)
			set_durable(lab, v, covered, o->end);
		if (flags & DM_FUA)
			o->durable = o->end;
	}
	pthread_mutex_unlock(&lab->model.lock);
	if (covered)
		g_array_free(covered, TRUE);
	return error;
}

int lab_write(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors, unsigned flags)
{
	int error = change(lab, volume, DM_WRITE, sector, sectors, flags);

	report(lab, volume, "a write", sector, error);
	return error;
}

int lab_zero(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors)
{
	int error = change(lab, volume, DM_WRITE_ZEROES, sector, sectors, 0);

	report(lab, volume, "a write-zeroes", sector, error);
	return error;
}

int lab_discard(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors)
{
	int error = change(lab, volume, DM_DISCARD, sector, sectors, 0);

	/* it is a wish */
	report(lab, volume, "a discard", sector, error == -EOPNOTSUPP || lab->faulty ? 0 : error);
	return error;
}

int lab_flush(struct lab *lab, const char *volume)
{
	struct volume *v = lab_open_volume(lab, volume);
	GArray *covered;
	int error;

	if (!v)
		return no_volume(lab, volume);
	pthread_mutex_lock(&lab->model.lock);
	lab->requests++;
	lab_mark(lab);
	covered = take_undurable(lab, v);
	pthread_mutex_unlock(&lab->model.lock);
	error = lab_submit(v, DM_FLUSH, 0, 0, 0, NULL);
	pthread_mutex_lock(&lab->model.lock);
	if (!error)
		set_durable(lab, v, covered, lab_mark(lab));
	pthread_mutex_unlock(&lab->model.lock);
	g_array_free(covered, TRUE);
	report(lab, volume, "a flush", 0, error);
	return error;
}

int lab_read(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors)
{
	struct volume *v = lab_open_volume(lab, volume);
	g_autofree uint8_t *data = g_malloc(sectors * DM_SECTOR_SIZE);
	bool settled;
	uint64_t before;
	int error;

	if (!v)
		return no_volume(lab, volume);
	pthread_mutex_lock(&lab->model.lock);
	lab->requests++;
	before = lab->model.now;
	pthread_mutex_unlock(&lab->model.lock);
	error = lab_submit(v, DM_READ, 0, sector, sectors, data);
	report(lab, volume, "a read", sector, error);
	if (error)
		return error;
	settled = !lab->customer->goes_back || !disk_has_failed(lab->disk);
	pthread_mutex_lock(&lab->model.lock);
	for (uint64_t i = 0; i < sectors; i++) {
		g_autofree char *wrong = model_check(&lab->model, v, sector + i, data + i * DM_SECTOR_SIZE, settled,
						     before, lab->model.now);

		if (wrong) {
			lab_fail(lab, "%s", wrong);
			break;
		}
	}
	pthread_mutex_unlock(&lab->model.lock);
	return 0;
}

/* --- random requests ------------------------------------------------------------------------------------- */

void lab_whole_blocks(const struct volume *v, uint64_t *sector, uint64_t *len)
{
	struct dm_limits limits;
	uint64_t block, end = *sector + *len;

	dm_dev_limits(&v->md->dev, &limits);
	block = MAX(limits.logical_block_size >> DM_SECTOR_SHIFT, 1);
	*sector -= *sector % block;
	*len = (end + block - 1) / block * block - *sector;
}

static void random_request(struct lab *lab, const char *volume, const struct volume *v)
{
	uint64_t size = v->sectors;
	unsigned kind = lab_random(lab, 100);
	uint64_t max = MIN(MAX_IO, size);
	uint64_t len = lab_random(lab, 2) ? 1 + lab_random(lab, 8) : 1 + lab_random(lab, (unsigned)max);
	uint64_t sector;

	len = MIN(len, max);
	sector = lab_random(lab, (unsigned)(size - len + 1));
	if (lab_random(lab, 3) == 0) /* often in one place, so that much is written over */
		sector = lab_random(lab, (unsigned)MIN(size - len + 1, MAX_IO));
	lab_whole_blocks(v, &sector, &len);
	if (kind < 50)
		lab_write(lab, volume, sector, len, 0);
	else if (kind < 58)
		lab_write(lab, volume, sector, len, DM_FUA);
	else if (kind < 62)
		lab_write(lab, volume, sector, len, DM_FUA | DM_PREFLUSH | DM_META);
	else if (kind < 70)
		lab_flush(lab, volume);
	else if (kind < 90)
		lab_read(lab, volume, sector, len);
	else if (kind < 95)
		lab_discard(lab, volume, sector, len);
	else
		lab_zero(lab, volume, sector, len);
}

void lab_random_io(struct lab *lab, unsigned count, const char *volume, ...)
{
	g_autoptr(GPtrArray) names = g_ptr_array_new();
	va_list ap;

	va_start(ap, volume);
	for (; volume; volume = va_arg(ap, const char *))
		g_ptr_array_add(names, (gpointer)volume);
	va_end(ap);
	for (unsigned i = 0; i < count; i++) {
		const char *name = names->pdata[lab_random(lab, names->len)];
		struct volume *v = lab_open_volume(lab, name);

		if (v)
			random_request(lab, name, v);
		else
			no_volume(lab, name);
	}
}
