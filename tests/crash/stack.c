/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Devices: the slices of the disk, and the customer's stack above them. */
#include "core/events.h"
#include "core/message.h"
#include "internal.h"

#include <dmfs/work.h>

#define SLICE_ALIGN 8u
#define WAIT_NS 60000000000ull /* for a status that does not change */

struct lab_customer *lab_customers;

void lab_register(struct lab_customer *customer)
{
	struct lab_customer **at = &lab_customers;

	while (*at && strcmp((*at)->name, customer->name) < 0)
		at = &(*at)->next;
	customer->next = *at;
	*at = customer;
}

static void drop_device(gpointer md)
{
	dm_mapped_unref(md);
}

struct lab *lab_new(const struct lab_customer *customer, uint32_t seed)
{
	struct lab *lab = g_new0(struct lab, 1);

	lab->customer = customer;
	lab->seed = seed;
	lab->time = NEVER;
	lab->first_open = true;
	lab->slices = g_ptr_array_new_with_free_func(drop_device);
	lab->devices = g_ptr_array_new_with_free_func(drop_device);
	lab->failures = g_ptr_array_new_with_free_func(g_free);
	pthread_mutex_init(&lab->fail_lock, NULL);
	model_init(&lab->model, seed);
	lab_seed_thread(seed);
	return lab;
}

void lab_free(struct lab *lab)
{
	g_ptr_array_free(lab->slices, TRUE);
	g_ptr_array_free(lab->devices, TRUE);
	g_ptr_array_free(lab->failures, TRUE);
	pthread_mutex_destroy(&lab->fail_lock);
	model_clear(&lab->model);
	disk_free(lab->disk);
	disk_free(lab->log_disk);
	if (lab->clear_private)
		lab->clear_private(lab->private);
	g_free(lab->private);
	g_free(lab->unsure);
	g_free(lab);
}

void *lab_private_full(struct lab *lab, size_t size, void (*clear)(void *))
{
	if (!lab->private) {
		lab->private = g_malloc0(size);
		lab->clear_private = clear;
	}
	return lab->private;
}

void *lab_private(struct lab *lab, size_t size)
{
	return lab_private_full(lab, size, NULL);
}

bool lab_is(struct lab *lab, const char *name)
{
	return !strcmp(lab->customer->name, name);
}

bool lab_first_open(struct lab *lab)
{
	return lab->first_open;
}

bool lab_faulty(struct lab *lab)
{
	return lab->faulty;
}

void lab_fail(struct lab *lab, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	pthread_mutex_lock(&lab->fail_lock);
	g_ptr_array_add(lab->failures, g_strdup_vprintf(fmt, ap));
	pthread_mutex_unlock(&lab->fail_lock);
	va_end(ap);
}

bool lab_ok(struct lab *lab, int error, GError **err)
{
	if (error && !lab->faulty)
		lab_fail(lab, "%s: %s", g_strerror(-error), err && *err ? (*err)->message : "(no text)");
	g_clear_error(err);
	return !error;
}

/* --- tables ------------------------------------------------------------------------------ */

static struct dm_mapped *find(const char *name, GError **err)
{
	struct dm_mapped *md = dm_find_name(name);

	if (!md)
		dm_fail(err, ENOENT, "there is no device '%s'", name);
	return md;
}

/* Builds a table of the lines and swaps it in. */
static int load_lines(struct dm_mapped *md, const char *line, va_list ap, GError **err)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	int error = 0;

	for (; line && !error; line = va_arg(ap, const char *)) {
		g_autofree char *copy = g_strdup(line);

		error = dm_table_add_line(t, copy, err);
	}
	if (!error)
		error = dm_table_complete(t, err);
	if (error) {
		dm_table_unref(t);
		return error;
	}
	return dm_mapped_swap(md, t, NULL, NULL, err);
}

static int add_device(GPtrArray *list, const char *name, GError **err, const char *line, va_list ap)
{
	struct dm_mapped *md;
	int error = dm_create(name, -1, &md, err);

	if (error)
		return error;
	error = load_lines(md, line, ap, err);
	if (error) {
		dm_remove(md, NULL);
		dm_mapped_unref(md);
		return error;
	}
	g_ptr_array_add(list, md);
	return 0;
}

int lab_device(struct lab *lab, const char *name, GError **err, const char *line, ...)
{
	va_list ap;
	int error;

	va_start(ap, line);
	error = add_device(lab->devices, name, err, line, ap);
	va_end(ap);
	return error;
}

int lab_load(struct lab *lab, const char *name, GError **err, const char *line, ...)
{
	struct dm_mapped *md = find(name, err);
	va_list ap;
	int error;

	if (!md)
		return -ENOENT;
	va_start(ap, line);
	error = load_lines(md, line, ap, err);
	va_end(ap);
	dm_mapped_unref(md);
	return error;
}

int lab_suspend(struct lab *lab, const char *name, GError **err)
{
	struct dm_mapped *md = find(name, err);
	int error = md ? dm_mapped_suspend(md, 0, NULL, NULL, err) : -ENOENT;

	dm_mapped_unref(md);
	return error;
}

int lab_resume(struct lab *lab, const char *name, GError **err)
{
	struct dm_mapped *md = find(name, err);
	int error = md ? dm_mapped_resume(md, 0, NULL, NULL, err) : -ENOENT;

	dm_mapped_unref(md);
	return error;
}

static void forget_md(struct lab *lab, struct dm_mapped *md)
{
	for (unsigned i = 0; i < lab->model.volumes->len; i++) {
		struct volume *v = lab->model.volumes->pdata[i];

		if (v->md == md)
			v->md = NULL;
	}
}

int lab_remove(struct lab *lab, const char *name, GError **err)
{
	struct dm_mapped *md = find(name, err);
	int error = md ? dm_remove(md, err) : -ENOENT;

	if (!error) {
		forget_md(lab, md);
		g_ptr_array_remove(lab->devices, md);
	}
	dm_mapped_unref(md);
	return error;
}

int lab_message(struct lab *lab, const char *name, GString *reply, GError **err, const char *fmt, ...)
{
	struct dm_opener self = dm_opener_self();
	struct dm_mapped *md = find(name, err);
	g_autoptr(GString) unused = g_string_new(NULL);
	g_autofree char *text = NULL;
	va_list ap;
	int error;

	if (!md)
		return -ENOENT;
	va_start(ap, fmt);
	text = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	error = dm_mapped_message(md, text, &self, reply ? reply : unused, err);
	dm_mapped_unref(md);
	return error;
}

char *lab_status(struct lab *lab, const char *name)
{
	struct dm_mapped *md = dm_find_name(name);
	struct dm_table *t = md ? dm_mapped_live(md) : NULL;
	GString *out = t ? g_string_new(NULL) : NULL;

	if (t)
		dm_table_print(t, DM_STATUS_INFO, out);
	dm_table_unref(t);
	dm_mapped_unref(md);
	return out ? g_string_free(out, FALSE) : NULL;
}

struct watch {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool woken;
};

static void wake_watch(void *data)
{
	struct watch *w = data;

	pthread_mutex_lock(&w->lock);
	w->woken = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* Waits for an event, or for a tenth of a second: not every change of a status is one. */
static void wait_event(struct watch *w, struct dm_event_reader *reader)
{
	struct timespec until;

	dm_event_arm(reader);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 100000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&w->lock);
	while (!w->woken && !pthread_cond_timedwait(&w->cond, &w->lock, &until))
		;
	w->woken = false;
	pthread_mutex_unlock(&w->lock);
	dm_event_disarm(reader);
}

int lab_wait_status(struct lab *lab, const char *name, const char *text, GError **err)
{
	return lab_wait_status_while(lab, name, text, NULL, err);
}

int lab_wait_status_while(struct lab *lab, const char *name, const char *text, bool (*may_be)(struct lab *),
			  GError **err)
{
	struct watch w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
	struct dm_mapped *md = find(name, err);
	uint64_t end = dm_now_ns() + WAIT_NS;
	struct dm_event_reader *reader;
	g_autofree char *last = NULL;
	bool seen = false, vain = false;

	if (!md)
		return -ENOENT;
	reader = dm_event_reader_new(md, wake_watch, &w);
	while (!seen && !vain && dm_now_ns() < end) {
		g_autofree char *status = NULL;

		dm_event_skip(reader); /* what has happened by now the status shows */
		status = lab_status(lab, name);
		seen = status && strstr(status, text);
		if (g_strcmp0(status, last)) { /* it goes on, however slowly */
			end = dm_now_ns() + WAIT_NS;
			g_free(last);
			last = g_strdup(status);
		}
		vain = !seen && may_be && !may_be(lab);
		if (!seen && !vain)
			wait_event(&w, reader);
	}
	dm_event_reader_free(reader);
	dm_mapped_unref(md);
	if (vain)
		return dm_fail(err, EIO, "the status of '%s' will not become '%s'", name, text);
	return seen ? 0 : dm_fail(err, ETIME, "the status of '%s' has been '%s' for a minute, not '%s'", name,
				   last ? last : "", text);
}

static int raw(const char *name, enum dm_op op, uint64_t offset, uint8_t *buf, size_t len, GError **err)
{
	struct dm_mapped *md = find(name, err);
	uint64_t first = offset / DM_SECTOR_SIZE, end = (offset + len + DM_SECTOR_SIZE - 1) / DM_SECTOR_SIZE;
	g_autofree uint8_t *sectors = g_malloc0((end - first) * DM_SECTOR_SIZE);
	int error;

	if (!md)
		return -ENOENT;
	error = dm_read_sync(&md->dev, first, end - first, sectors, 0);
	if (!error && op == DM_READ)
		memcpy(buf, sectors + offset % DM_SECTOR_SIZE, len);
	if (!error && op == DM_WRITE) {
		memcpy(sectors + offset % DM_SECTOR_SIZE, buf, len);
		error = dm_write_sync(&md->dev, first, end - first, sectors, 0);
	}
	dm_mapped_unref(md);
	return error ? dm_fail(err, -error, "raw I/O to '%s': %s", name, g_strerror(-error)) : 0;
}

int lab_read_raw(struct lab *lab, const char *name, uint64_t offset, void *buf, size_t len, GError **err)
{
	return raw(name, DM_READ, offset, buf, len, err);
}

int lab_write_raw(struct lab *lab, const char *name, uint64_t offset, const void *buf, size_t len, GError **err)
{
	return raw(name, DM_WRITE, offset, (uint8_t *)buf, len, err);
}

/* --- slices -------------------------------------------------------------------------------- */

uint64_t lab_slice_place(const struct lab_customer *customer, unsigned slice)
{
	uint64_t at = 0;

	for (unsigned i = 0; i < slice && customer->slices[i].name; i++)
		at += (customer->slices[i].sectors + SLICE_ALIGN - 1) / SLICE_ALIGN * SLICE_ALIGN;
	return at;
}

bool lab_unsure(struct lab *lab, const char *slice, uint64_t sector)
{
	const struct lab_customer *c = lab->customer;
	unsigned i = 0;

	while (i < LAB_MAX_SLICES && c->slices[i].name && strcmp(c->slices[i].name, slice))
		i++;
	g_assert(i < LAB_MAX_SLICES && c->slices[i].name && sector < c->slices[i].sectors);
	return lab->unsure && lab->unsure[lab_slice_place(c, i) + sector];
}

uint64_t lab_disk_sectors(const struct lab_customer *customer)
{
	return lab_slice_place(customer, LAB_MAX_SLICES);
}

static int add_lower(struct lab *lab, const char *name, GError **err, const char *line, ...)
{
	va_list ap;
	int error;

	va_start(ap, line);
	error = add_device(lab->slices, name, err, line, ap);
	va_end(ap);
	return error;
}

static int add_disk(struct lab *lab, const char *name, const struct disk *d, GError **err)
{
	g_autofree char *line = g_strdup_printf("0 %" PRIu64 " lab-disk %u", d->sectors, d->id);

	return add_lower(lab, name, err, line, NULL);
}

int lab_open_slices(struct lab *lab, GError **err)
{
	const struct lab_customer *c = lab->customer;
	const char *below = "lab-disk";
	int error = add_disk(lab, below, lab->disk, err);

	if (!error && lab->log_disk) {
		g_autofree char *line =
			g_strdup_printf("0 %" PRIu64 " log-writes lab-disk lab-log-disk", lab->disk->sectors);

		error = add_disk(lab, "lab-log-disk", lab->log_disk, err);
		below = "lab-log";
		if (!error)
			error = add_lower(lab, below, err, line, NULL);
		if (!error)
			lab->log = g_ptr_array_index(lab->slices, lab->slices->len - 1);
	}
	for (unsigned i = 0; !error && i < LAB_MAX_SLICES && c->slices[i].name; i++) {
		g_autofree char *line = g_strdup_printf("0 %" PRIu64 " linear %s %" PRIu64, c->slices[i].sectors,
							below, lab_slice_place(c, i));

		error = add_lower(lab, c->slices[i].name, err, line, NULL);
	}
	return error;
}

/* Removes a list's devices, users before what they use, whatever order they were made in. */
static void close_list(struct lab *lab, GPtrArray *list)
{
	bool any = true;

	while (list->len && any) {
		any = false;
		for (unsigned i = list->len; i-- > 0;) {
			struct dm_mapped *md = list->pdata[i];

			if (dm_remove(md, NULL))
				continue;
			forget_md(lab, md);
			g_ptr_array_remove_index(list, i);
			any = true;
		}
	}
	if (list->len)
		g_error("'%s' and %u more devices cannot be removed", ((struct dm_mapped *)list->pdata[0])->name,
			list->len - 1);
}

void lab_close_devices(struct lab *lab)
{
	if (lab->customer->close)
		lab->customer->close(lab);
	close_list(lab, lab->devices);
}

void lab_close_slices(struct lab *lab)
{
	lab->log = NULL;
	close_list(lab, lab->slices);
}

int lab_open_stack(struct lab *lab, GError **err)
{
	int error = lab->customer->open(lab, err);

	lab->first_open = false;
	return error;
}

int lab_reopen(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_close_devices(lab);
	return lab_ok(lab, lab_open_stack(lab, &err), &err) ? 0 : -EIO;
}
