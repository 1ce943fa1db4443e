/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multipath: one device by several ways, of which some may fail (dm-queue-length.rst, dm-service-time.rst,
 * dm-uevent.rst).
 *
 * The table line is in params.c, the way of a request in io.c.  A path is whatever a table can name: two NBD URIs of
 * one server, or of two servers of one disk, are what it is for.
 *
 * Hardware handlers, queue modes and the pg_init features are about SCSI and the kernel's request queues: they are
 * read, kept and printed as the kernel does, and there is one way of working whatever they say.
 */
#include <inttypes.h>
#include <strings.h>

#include "multipath.h"

static void make_queue(void)
{
	multipath_wq = dm_wq_new("multipath", 16);
}

static void group_free(void *data)
{
	struct group *g = data;

	if (g->ps.context && g->ps.type->destroy)
		g->ps.type->destroy(&g->ps);
	g_ptr_array_free(g->ps.paths, TRUE);
	g_free(g);
}

static void multipath_free(struct multipath *m)
{
	multipath_check_end(m);
	dm_wq_flush_work(multipath_wq, &m->retry);
	g_ptr_array_free(m->groups, TRUE); /* first: a selector's end may look at its paths */
	for (unsigned i = 0; i < m->paths->len; i++) {
		struct path *path = m->paths->pdata[i];

		if (path->p.dev)
			dm_put_device(m->ti, path->p.dev);
		g_free(path->p.context);
		g_free(path);
	}
	g_ptr_array_free(m->paths, TRUE);
	dm_hold_destroy(&m->held);
	pthread_cond_destroy(&m->checked);
	pthread_mutex_destroy(&m->lock);
	g_free(m->hw_handler);
	g_free(m);
}

static int multipath_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct multipath *m = g_new0(struct multipath, 1);
	int error;

	pthread_once(&once, make_queue);
	m->ti = ti;
	m->groups = g_ptr_array_new_with_free_func(group_free);
	m->paths = g_ptr_array_new();
	m->pg_init_delay_ms = MULTIPATH_DEFAULT_DELAY;
	m->retry.fn = multipath_retry_work;
	m->check_timer.fn = multipath_check_timer;
	m->check_work.fn = multipath_check_work;
	atomic_init(&m->queue_io, true);
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->checked, NULL);
	dm_hold_init(&m->held, NULL, 0);
	dm_hold_close(&m->held);
	error = multipath_parse(m, argc, argv, err);
	if (error) {
		multipath_free(m);
		return error;
	}
	atomic_init(&m->valid_paths, m->paths->len);
	ti->private = m;
	ti->num_flush_bios = m->paths->len > 1 ? 1 + m->paths->len : 1;
	ti->num_discard_bios = 1;
	ti->provisions = true;
	ti->num_write_zeroes_bios = 1;
	return 0;
}

static void multipath_dtr(struct dm_target *ti)
{
	multipath_free(ti->private);
}

/* --- waiting for a path ------------------------------------------------------------------- */

static void set_queue_if_no_path(struct multipath *m, bool queue)
{
	pthread_mutex_lock(&m->lock);
	m->queue_if_no_path = queue;
	pthread_mutex_unlock(&m->lock);
	if (!queue)
		multipath_retry(m);
}

/* A suspension waits for what is held: it fails, or goes back to the engine in a noflush one. */
static void multipath_presuspend(struct dm_target *ti)
{
	struct multipath *m = ti->private;

	if (m->queue_mode == QUEUE_MODE_BIO || !dm_target_noflush(ti)) {
		pthread_mutex_lock(&m->lock);
		m->saved_queue_if_no_path |= m->queue_if_no_path;
		m->queue_if_no_path = false;
		pthread_mutex_unlock(&m->lock);
	}
	multipath_retry(m);
}

static void multipath_resume(struct dm_target *ti)
{
	struct multipath *m = ti->private;

	pthread_mutex_lock(&m->lock);
	m->queue_if_no_path |= m->saved_queue_if_no_path;
	m->saved_queue_if_no_path = false;
	pthread_mutex_unlock(&m->lock);
}

static void multipath_postsuspend(struct dm_target *ti)
{
	struct multipath *m = ti->private;

	dm_wq_flush_work(multipath_wq, &m->retry);
}

/* --- messages ------------------------------------------------------------------------------- */

static struct group *find_group(struct multipath *m, const char *word, GError **err)
{
	unsigned number;

	if (dm_parse_uint(word, &number) && number && number <= m->groups->len)
		return m->groups->pdata[number - 1];
	dm_fail(err, EINVAL, "multipath: invalid PG number '%s', there are %u priority groups", word, m->groups->len);
	return NULL;
}

static void bypass(struct multipath *m, struct group *g, bool bypassed)
{
	pthread_mutex_lock(&m->lock);
	g->bypassed = bypassed;
	atomic_store(&m->current, NULL);
	pthread_mutex_unlock(&m->lock);
	dm_target_event(m->ti, NULL, NULL);
}

static void switch_group(struct multipath *m, struct group *g)
{
	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < g->number; i++)
		((struct group *)m->groups->pdata[i])->bypassed = false;
	m->next = g;
	atomic_store(&m->current, NULL);
	pthread_mutex_unlock(&m->lock);
	dm_target_event(m->ti, NULL, NULL);
}

static int group_message(struct multipath *m, const char *word, const char *number, GError **err)
{
	struct group *g = find_group(m, number, err);

	if (!g)
		return -EINVAL;
	if (!strcasecmp(word, "switch_group"))
		switch_group(m, g);
	else
		bypass(m, g, !strcasecmp(word, "disable_group"));
	return 0;
}

/* A device may be several paths. */
static int path_message(struct multipath *m, void (*action)(struct multipath *, struct path *), const char *name,
			GError **err)
{
	g_autoptr(GError) why = NULL;
	struct dm_dev *dev = NULL;
	bool any = false;
	int error;

	error = dm_find_device(m->ti, name, &dev, &why);
	if (error)
		return dm_fail(err, -error, "multipath: message: error getting device '%s': %s", name,
			       why ? why->message : "");
	for (unsigned i = 0; i < m->paths->len; i++) {
		struct path *path = m->paths->pdata[i];

		if (!dm_dev_same(path->p.dev, dev))
			continue;
		any = true;
		action(m, path);
	}
	return any ? 0 : dm_fail(err, EINVAL, "multipath: '%s' is no path of this device", name);
}

static int multipath_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct multipath *m = ti->private;
	const char *word = argv[0];

	if (dm_target_suspending(ti))
		return dm_fail(err, EBUSY, "multipath: the device is suspended");
	if (argc == 1 && !strcasecmp(word, "queue_if_no_path")) {
		set_queue_if_no_path(m, true);
		return 0;
	}
	if (argc == 1 && !strcasecmp(word, "fail_if_no_path")) {
		set_queue_if_no_path(m, false);
		return 0;
	}
	if (argc != 2)
		return dm_fail(err, EINVAL, "multipath: Invalid multipath message arguments. Expected 2 arguments, got %d.",
			       argc);
	if (!strcasecmp(word, "disable_group") || !strcasecmp(word, "enable_group") || !strcasecmp(word, "switch_group"))
		return group_message(m, word, argv[1], err);
	if (!strcasecmp(word, "fail_path"))
		return path_message(m, multipath_fail_path, argv[1], err);
	if (!strcasecmp(word, "reinstate_path"))
		return path_message(m, multipath_reinstate_path, argv[1], err);
	return dm_fail(err, EINVAL, "multipath: Unrecognised multipath message received: '%s'", word);
}

/* --- status ----------------------------------------------------------------------------------- */

static void print_features(const struct multipath *m, GString *out)
{
	bool delay = m->pg_init_delay_ms != MULTIPATH_DEFAULT_DELAY, bio = m->queue_mode == QUEUE_MODE_BIO;

	g_string_append_printf(out, "%u", m->queue_if_no_path + (m->pg_init_retries ? 2 : 0) + (delay ? 2 : 0) +
						  m->retain_attached_hw_handler + (bio ? 2 : 0));
	if (m->queue_if_no_path)
		g_string_append(out, " queue_if_no_path");
	if (m->pg_init_retries)
		g_string_append_printf(out, " pg_init_retries %u", m->pg_init_retries);
	if (delay)
		g_string_append_printf(out, " pg_init_delay_msecs %u", m->pg_init_delay_ms);
	if (m->retain_attached_hw_handler)
		g_string_append(out, " retain_attached_hw_handler");
	if (bio)
		g_string_append(out, " queue_mode bio");
	if (m->hw_handler) {
		g_string_append(out, " 1 ");
		dm_quote_word(m->hw_handler, out);
	} else {
		g_string_append(out, " 0");
	}
}

static char group_state(struct multipath *m, struct group *g)
{
	return g->bypassed ? 'D' : atomic_load(&m->current) == g ? 'A' : 'E';
}

static void print_group(struct multipath *m, struct group *g, enum dm_status_type type, GString *out)
{
	const struct dm_path_selector_type *ps = g->ps.type;

	if (type == DM_STATUS_INFO)
		g_string_append_printf(out, " %c", group_state(m, g));
	else
		g_string_append_printf(out, " %s", ps->name);
	ps->status(&g->ps, NULL, type, out);
	g_string_append_printf(out, " %u %u", g->ps.paths->len, type == DM_STATUS_INFO ? ps->info_args : ps->table_args);
	for (unsigned i = 0; i < g->ps.paths->len; i++) {
		struct path *path = g->ps.paths->pdata[i];

		g_string_append_c(out, ' ');
		dm_dev_print(path->p.dev, out);
		if (type == DM_STATUS_INFO)
			g_string_append_printf(out, " %c %u", atomic_load(&path->p.failed) ? 'F' : 'A', path->fails);
		ps->status(&g->ps, &path->p, type, out);
	}
}

/* Which group is, or will be, current. */
static unsigned next_number(struct multipath *m)
{
	struct group *g = m->next ? m->next : atomic_load(&m->current);

	return g ? g->number : m->groups->len ? 1 : 0;
}

static void multipath_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct multipath *m = ti->private;

	pthread_mutex_lock(&m->lock);
	if (type == DM_STATUS_INFO)
		g_string_append_printf(out, "2 %u 0 0", atomic_load(&m->queue_io));
	else
		print_features(m, out);
	g_string_append_printf(out, " %u %u", m->groups->len, next_number(m));
	for (unsigned i = 0; i < m->groups->len; i++)
		print_group(m, m->groups->pdata[i], type, out);
	pthread_mutex_unlock(&m->lock);
}

/* --- the rest ------------------------------------------------------------------------------------ */

static int multipath_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct multipath *m = ti->private;
	int error = 0;

	for (unsigned i = 0; i < m->paths->len && !error; i++)
		error = fn(ti, ((struct path *)m->paths->pdata[i])->p.dev, 0, ti->len, data);
	return error;
}

static int multipath_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct multipath *m = ti->private;

	*out = (struct dm_extent){.data = true, .sectors = sectors};
	for (unsigned i = 0; i < m->paths->len; i++) {
		struct path *path = m->paths->pdata[i];

		if (dm_path_usable(&path->p))
			return dm_dev_extent(path->p.dev, sector, sectors, out);
	}
	return 0;
}

static uint64_t multipath_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct multipath *m = ti->private;

	for (unsigned i = 0; i < m->paths->len; i++) {
		struct path *path = m->paths->pdata[i];

		if (dm_path_usable(&path->p))
			return dm_dev_provisioned(path->p.dev, sector, sectors);
	}
	return sectors;
}

const struct dm_target_type multipath_target = {
	.name = "multipath",
	.version = {1, 14, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_IMMUTABLE | DM_TARGET_STRAIGHT,
	.per_bio_size = sizeof(struct multipath_bio),
	.ctr = multipath_ctr,
	.dtr = multipath_dtr,
	.map = multipath_map,
	.end_io = multipath_end_io,
	.presuspend = multipath_presuspend,
	.presuspend_undo = multipath_resume,
	.postsuspend = multipath_postsuspend,
	.resume = multipath_resume,
	.status = multipath_status,
	.message = multipath_message,
	.iterate_devices = multipath_iterate_devices,
	.extent = multipath_extent,
	.provisioned = multipath_provisioned,
};
