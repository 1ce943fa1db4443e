/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The userspace log: a server has it, and other hosts ask the same one (dm-log.rst, dm-log-userspace.h).
 *
 *   userspace <#params> <UUID> [integrated_flush] <log type> <params>*
 *
 * The server is behind the socket that the mount was told of (-o log_server).  What follows UUID and integrated_flush
 * is the server's to understand; it gets the target's length and those words, as in a table, in CTR.
 *
 * Marks and clears are collected and sent, in groups, by flush; with integrated_flush the marks travel in FLUSH itself.
 * SET_REGION_SYNC goes with the next request of any kind, before it, in order.
 *
 * A server may go and come again; userspace_request.c tells it then what it must know.
 *
 * `marks` are the regions that the server has as ours: those marked, those got to copy, and those out of sync that it
 * let us write to; until they are cleared or we suspend.
 */
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "userspace_log.h"

#include <dmfs/options.h>
#include <dmfs/rounding.h>
#include <dmfs/work.h>

#define CTR_ATTEMPTS 2
#define MAX_STATUS 4096u
#define LEASE_MS 2000u /* in touch for so long; dmfs-logd's time of grace is longer by what I/O under way may take */

/* --- contact ------------------------------------------------------------------------------- */

static bool far_in_touch(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	return dm_now_ns() - atomic_load(&f->contact_ns) < MIN(LEASE_MS, dm_options.log_timeout_ms) * UINT64_C(1000000);
}

static uint64_t far_introductions(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	return atomic_load(&f->introductions);
}

/* --- what has been noted ------------------------------------------------------------------- */

/* As far as that goes without asking: only the server says that all are in sync. */
static void count_sync(struct far_log *f)
{
	uint64_t count = atomic_load(&f->sync_count);

	if (count + 1 < f->log->regions)
		atomic_store(&f->sync_count, count + 1);
}

static int send_syncs(struct far_log *f, enum patience patience)
{
	unsigned sent = 0;
	int error = 0;

	for (; sent < f->syncs->len; sent++) {
		struct ulog answer;

		error = far_request(f, patience, DM_ULOG_SET_REGION_SYNC, &g_array_index(f->syncs, struct ulog_sync, sent),
				sizeof(struct ulog_sync), &answer);
		if (far_is_gone(error))
			break;
		if (!error && g_array_index(f->syncs, struct ulog_sync, sent).in_sync)
			count_sync(f);
		if (error)
			dm_log_err_limit("%s: log server %s: SET_REGION_SYNC failed: %s", f->log->ti->type->name,
					 dm_options.log_server, g_strerror(-error));
		error = 0;
	}
	if (sent)
		g_array_remove_range(f->syncs, 0, sent);
	return error;
}

/* The regions that are to be marked, or cleared. */
static GArray *collect(struct far_log *f, int what)
{
	GArray *out = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	GHashTableIter iter;
	gpointer p, type;

	g_hash_table_iter_init(&iter, f->pending);
	while (g_hash_table_iter_next(&iter, &p, &type)) {
		uint64_t region = GPOINTER_TO_SIZE(p);

		if (GPOINTER_TO_INT(type) == what)
			g_array_append_val(out, region);
	}
	return out;
}

/* Sends them, in groups; those that have arrived are not pending any more.  type: of the request. */
static int send_pending(struct far_log *f, enum patience patience, int what, unsigned type)
{
	GArray *regions = collect(f, what);
	const uint64_t *r = (const uint64_t *)regions->data;
	int error = 0;

	for (unsigned i = 0; i < regions->len && !error; i += ULOG_GROUP) {
		unsigned n = MIN(regions->len - i, ULOG_GROUP);
		struct ulog answer;

		error = far_request(f, patience, type, r + i, n * sizeof *r, &answer);
		for (unsigned k = i; k < i + n && !error; k++) {
			g_hash_table_remove(f->pending, far_key(r[k]));
			if (what == DM_ULOG_MARK_REGION)
				g_hash_table_add(f->marks, far_key(r[k]));
			else
				g_hash_table_remove(f->marks, far_key(r[k]));
		}
	}
	g_array_free(regions, TRUE);
	return error;
}

static bool any_pending(struct far_log *f, int what)
{
	GHashTableIter iter;
	gpointer p, type;

	g_hash_table_iter_init(&iter, f->pending);
	while (g_hash_table_iter_next(&iter, &p, &type))
		if (GPOINTER_TO_INT(type) == what)
			return true;
	return false;
}

static int send_marks_and_clears(struct far_log *f, enum patience patience, bool marks)
{
	bool clears = any_pending(f, DM_ULOG_CLEAR_REGION), integrated = f->args.integrated_flush && marks;
	struct ulog answer;
	int error = send_pending(f, patience, DM_ULOG_CLEAR_REGION, DM_ULOG_CLEAR_REGION);

	f->flush_due |= clears && !error;
	if (!error && marks)
		error = send_pending(f, patience, DM_ULOG_MARK_REGION,
				     integrated ? DM_ULOG_FLUSH : DM_ULOG_MARK_REGION);
	if (!error && !integrated && (marks || f->flush_due))
		error = far_request(f, patience, DM_ULOG_FLUSH, NULL, 0, &answer);
	f->flush_due &= error != 0;
	return error;
}

/* Marks that failed are the caller's to note again; clears stay noted. */
static int far_flush(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;
	bool marks = any_pending(f, DM_ULOG_MARK_REGION);
	enum patience patience = marks ? HOLD : ONCE;
	int error = send_syncs(f, patience);

	if (!error && (g_hash_table_size(f->pending) || f->flush_due))
		error = send_marks_and_clears(f, patience, marks);
	if (!error)
		return 0;
	if (!far_is_gone(error) || marks) {
		dm_log_err_limit("%s: log server %s: flush failed: %s", log->ti->type->name, dm_options.log_server,
				 g_strerror(-error));
		dm_target_event(log->ti, NULL, NULL);
	}
	if (marks) {
		GArray *list = collect(f, DM_ULOG_MARK_REGION);

		for (unsigned i = 0; i < list->len; i++)
			g_hash_table_remove(f->pending, far_key(g_array_index(list, uint64_t, i)));
		g_array_free(list, TRUE);
	}
	return error;
}

static void far_mark_region(struct dm_dirty_log *log, uint64_t region)
{
	struct far_log *f = log->context;

	g_hash_table_insert(f->pending, far_key(region), GINT_TO_POINTER(DM_ULOG_MARK_REGION));
}

static void far_clear_region(struct dm_dirty_log *log, uint64_t region)
{
	struct far_log *f = log->context;

	g_hash_table_insert(f->pending, far_key(region), GINT_TO_POINTER(DM_ULOG_CLEAR_REGION));
}

static void far_set_region_sync(struct dm_dirty_log *log, uint64_t region, bool in_sync)
{
	struct far_log *f = log->context;
	struct ulog_sync s = {region, in_sync};

	g_array_append_val(f->syncs, s);
	if (in_sync)
		g_hash_table_remove(f->lost, far_key(region));
	else
		g_hash_table_add(f->lost, far_key(region));
}

/* --- questions ------------------------------------------------------------------------------ */

static int ask_flag(struct far_log *f, enum patience patience, unsigned type, uint64_t region)
{
	struct ulog answer;
	uint64_t flag;
	int error = far_request(f, patience, type, &region, sizeof region, &answer);

	if (error)
		return error;
	if (!ulog_u64(&answer, &flag) || flag > 1)
		return far_nonsense(f, type, "0 or 1 would be right, in 8 bytes");
	return (int)flag;
}

static bool far_is_clean(struct dm_dirty_log *log, uint64_t region)
{
	return false; /* that would wait */
}

static int far_in_sync(struct dm_dirty_log *log, uint64_t region, bool may_wait)
{
	struct far_log *f = log->context;
	int error;

	if (!may_wait)
		return -EWOULDBLOCK;
	error = send_syncs(f, HOLD);
	if (!error)
		error = ask_flag(f, HOLD, DM_ULOG_IN_SYNC, region);
	if (error < 0)
		dm_log_err_limit("%s: log server %s: IN_SYNC %" PRIu64 " failed: %s", log->ti->type->name,
				 dm_options.log_server, region, g_strerror(-error));
	return error;
}

/* A clear that has not been sent yet would give it back. */
static void got(struct far_log *f, uint64_t region)
{
	g_hash_table_add(f->marks, far_key(region));
	g_hash_table_remove(f->pending, far_key(region));
}

static bool far_is_remote_recovering(struct dm_dirty_log *log, uint64_t region)
{
	struct far_log *f = log->context;
	struct ulog_remote remote;
	struct ulog answer;
	int error = far_request(f, ONCE, DM_ULOG_IS_REMOTE_RECOVERING, &region, sizeof region, &answer);

	if (!error && answer.size != sizeof remote)
		error = far_nonsense(f, DM_ULOG_IS_REMOTE_RECOVERING, "16 bytes would be right");
	if (error)
		return true;
	memcpy(&remote, answer.data, sizeof remote);
	if (!remote.is_recovering)
		got(f, region);
	return remote.is_recovering;
}

static bool read_work(struct far_log *f, const struct ulog *answer, uint64_t *region)
{
	struct ulog_work work;

	if (answer->size != sizeof work) {
		far_nonsense(f, DM_ULOG_GET_RESYNC_WORK, "16 bytes would be right");
		return false;
	}
	memcpy(&work, answer->data, sizeof work);
	if (!work.any)
		return false;
	if (work.region >= f->log->regions) {
		far_nonsense(f, DM_ULOG_GET_RESYNC_WORK, "there is no such region");
		return false;
	}
	*region = work.region;
	return true;
}

static void late_work(void *context, const struct ulog *answer)
{
	struct far_log *f = context;
	uint64_t region;

	if (answer->error || !read_work(f, answer, &region))
		return;
	/* A clear that may be on its way already gives it back, and then it is handed out anew. */
	if (g_hash_table_lookup(f->pending, far_key(region)) == GINT_TO_POINTER(DM_ULOG_CLEAR_REGION))
		return;
	got(f, region);
	g_array_append_val(f->late_work, region);
}

static bool far_get_resync_work(struct dm_dirty_log *log, uint64_t *region)
{
	struct far_log *f = log->context;
	struct ulog answer;

	if (f->late_work->len) {
		*region = g_array_index(f->late_work, uint64_t, f->late_work->len - 1);
		g_array_set_size(f->late_work, f->late_work->len - 1);
		return true;
	}
	if (f->no_work || send_syncs(f, ONCE))
		return false;
	f->no_work = far_request(f, ONCE, DM_ULOG_GET_RESYNC_WORK, NULL, 0, &answer) || !read_work(f, &answer, region);
	if (!f->no_work) {
		got(f, *region);
		return true;
	}
	log->type->refresh(log);
	f->no_work = true;
	return false;
}

/* --- what is told without asking ------------------------------------------------------------- */

static void set_status(struct far_log *f, const struct ulog *answer)
{
	size_t len = MIN(answer->size, MAX_STATUS);
	char *text = g_strndup((const char *)answer->data, len);

	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	pthread_mutex_lock(&f->lock);
	g_free(f->status);
	f->status = text;
	pthread_mutex_unlock(&f->lock);
}

static int refresh(struct far_log *f)
{
	struct ulog answer;
	uint64_t count;
	int error = send_syncs(f, ONCE);

	if (!error && (any_pending(f, DM_ULOG_CLEAR_REGION) || f->flush_due)) /* what got no answer before */
		error = send_marks_and_clears(f, ONCE, false);
	if (!error)
		error = far_request(f, ONCE, DM_ULOG_GET_SYNC_COUNT, NULL, 0, &answer);
	if (error)
		return error;
	if (!ulog_u64(&answer, &count) || count > f->log->regions)
		return far_nonsense(f, DM_ULOG_GET_SYNC_COUNT, "8 bytes would be right, and no more regions than there are");
	atomic_store(&f->sync_count, count);
	error = far_request(f, ONCE, DM_ULOG_STATUS_INFO, NULL, 0, &answer);
	if (!error)
		set_status(f, &answer);
	return error;
}

static void far_refresh(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	far_set_failing(f, refresh(f) != 0);
	f->no_work = atomic_load(&f->sync_count) == log->regions;
}

static uint64_t far_sync_count(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	return atomic_load(&f->sync_count);
}

static void far_status(struct dm_dirty_log *log, enum dm_status_type type, GString *out)
{
	struct far_log *f = log->context;

	if (type == DM_STATUS_TABLE) {
		g_string_append_printf(out, "userspace %u %s %s", f->words_count + 1 + f->args.integrated_flush, log->prefix,
				       f->words->str);
		return;
	}
	pthread_mutex_lock(&f->lock);
	g_string_append(out, atomic_load(&f->failing) || !f->status ? "userspace 1 COM_FAILURE" : f->status);
	pthread_mutex_unlock(&f->lock);
}

/* --- life --------------------------------------------------------------------------------------- */

static void far_end_waiting(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	ulog_link_hurry(f->link, true);
}

static void far_go_on_waiting(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;

	ulog_link_hurry(f->link, false);
}

static void forget_all(struct far_log *f)
{
	g_hash_table_remove_all(f->marks);
	g_hash_table_remove_all(f->lost);
	g_hash_table_remove_all(f->pending);
	g_array_set_size(f->syncs, 0);
	g_array_set_size(f->late_work, 0);
	f->flush_due = f->no_work = false;
}

static int far_presuspend(struct dm_dirty_log *log)
{
	struct ulog answer;

	return far_request(log->context, ONCE, DM_ULOG_PRESUSPEND, NULL, 0, &answer);
}

/* What was not cleared by now is out of sync for the server, so there is nothing to remember. */
static int far_postsuspend(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;
	struct ulog answer;
	int error = send_syncs(f, ONCE);

	if (!error)
		error = far_request(f, ONCE, DM_ULOG_POSTSUSPEND, NULL, 0, &answer);
	f->resumed = false;
	forget_all(f);
	return error;
}

static int far_resume(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;
	struct ulog answer;
	int error;

	forget_all(f);
	error = far_request(f, ONCE, DM_ULOG_RESUME, NULL, 0, &answer);
	f->resumed = true;
	if (error)
		f->known = false; /* the next request says it again */
	far_refresh(log);
	return error;
}

static void far_dtr(struct dm_dirty_log *log)
{
	struct far_log *f = log->context;
	struct ulog answer;

	if (f->link) {
		ulog_link_hurry(f->link, true);
		if (f->known)
			far_ask(f, DM_ULOG_DTR, NULL, 0, &answer);
	}
	if (f->dev)
		dm_put_device(log->ti, f->dev);
	ulog_link_free(f->link);
	g_string_free(f->words, TRUE);
	g_string_free(f->ctr_words, TRUE);
	g_hash_table_destroy(f->marks);
	g_hash_table_destroy(f->lost);
	g_hash_table_destroy(f->pending);
	g_array_free(f->syncs, TRUE);
	g_array_free(f->late_work, TRUE);
	pthread_mutex_destroy(&f->lock);
	g_free(f->args.prefix);
	g_free(f->status);
	g_free(f);
}

static struct far_log *far_new(struct dm_dirty_log *log)
{
	struct far_log *f = g_new0(struct far_log, 1);

	f->log = log;
	f->words = g_string_new(NULL);
	f->ctr_words = g_string_new(NULL);
	f->marks = g_hash_table_new(NULL, NULL);
	f->lost = g_hash_table_new(NULL, NULL);
	f->pending = g_hash_table_new(NULL, NULL);
	f->syncs = g_array_new(FALSE, FALSE, sizeof(struct ulog_sync));
	f->late_work = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	pthread_mutex_init(&f->lock, NULL);
	log->context = f;
	return f;
}

/* The same device may be the server's log, which has a claim on it: we only have it open. */
static int take_device(struct far_log *f, const struct ulog *answer, GError **err)
{
	const char *name = (const char *)answer->data;

	if (!answer->size)
		return 0;
	if (name[answer->size - 1] || !*name || strlen(name) + 1 != answer->size)
		return dm_fail(err, EINVAL, "%s: log server %s: the device's name in its answer to CTR does not end, or ends too "
					    "soon", f->log->ti->type->name, dm_options.log_server);
	return dm_get_device(f->log->ti, name, dm_target_mode(f->log->ti), &f->dev, err);
}

static int take_region_size(struct far_log *f, const struct ulog *answer, GError **err)
{
	struct dm_dirty_log *log = f->log;
	uint64_t size = 0, len = log->ti->len;

	if (!ulog_u64(answer, &size) || size < 2 || size > UINT32_MAX || !dm_is_pow2(size))
		return dm_fail(err, EINVAL, "%s: log server %s: region size %" PRIu64 " in %zu bytes, a power of two of sectors "
					    "in 8 bytes would be right", log->ti->type->name, dm_options.log_server, size,
			       answer->size);
	log->region_sectors = (uint32_t)size;
	log->regions = len / size + (len % size != 0);
	if (log->regions > UINT32_MAX)
		return dm_fail(err, EINVAL, "%s: log server %s: region count %" PRIu64 " exceeds the limit of %u",
			       log->ti->type->name, dm_options.log_server, log->regions, UINT32_MAX);
	return 0;
}

/* In ctr somebody waits for the table: no answer, several times, is one as well. */
static int ask_in_ctr(struct far_log *f, unsigned type, const void *data, size_t size, struct ulog *answer, GError **err)
{
	const char *who = f->log->ti->type->name;
	int error = ulog_link_connect(f->link);

	if (error)
		return dm_fail(err, ESRCH, "%s: userspace log server not found: %s: %s", who, dm_options.log_server,
			       g_strerror(-error));
	error = -ETIMEDOUT;
	for (unsigned i = 0; i < CTR_ATTEMPTS && error == -ETIMEDOUT; i++)
		error = far_ask(f, type, data, size, answer);
	if (error == -ETIMEDOUT)
		return dm_fail(err, ETIMEDOUT, "%s: log server %s did not answer to %s, %d times within %u ms", who,
			       dm_options.log_server, ulog_name(type), CTR_ATTEMPTS, dm_options.log_timeout_ms);
	if (error == -ENOTCONN)
		return dm_fail(err, ESRCH, "%s: log server %s closed the connection at %s", who, dm_options.log_server,
			       ulog_name(type));
	if (error)
		return dm_fail(err, -error, "%s: log server %s refused %s '%s': %s; what it prints may say why", who,
			       dm_options.log_server, ulog_name(type), f->ctr_words->str, g_strerror(-error));
	return 0;
}

static int far_ctr(struct dm_dirty_log *log, int argc, char **argv, GError **err)
{
	struct far_log *f = far_new(log);
	const char *who = log->ti->type->name;
	struct ulog answer;
	int error = dm_userspace_args(who, argc, argv, &f->args, err);

	for (int i = 0; i < f->args.all_argc && !error; i++) {
		g_string_append(f->words, i ? " " : "");
		dm_quote_word(f->args.all_argv[i], f->words);
	}
	f->words_count = (unsigned)f->args.all_argc;
	g_string_printf(f->ctr_words, "%" PRIu64 " %s", log->ti->len, f->words->str);
	if (!error && f->ctr_words->len >= ULOG_MAX_DATA)
		error = dm_fail(err, EINVAL, "%s: the userspace log's arguments are too long: %zu bytes, %u are the most", who,
				f->ctr_words->len, ULOG_MAX_DATA - 1);
	if (!error) {
		f->link = ulog_link_new(dm_options.log_server, f->args.uuid, dm_options.log_timeout_ms);
		ulog_link_set_late(f->link, DM_ULOG_GET_RESYNC_WORK, late_work, f);
		/* Without its NUL, as the kernel sends it; with it when it introduces itself again. */
		error = ask_in_ctr(f, DM_ULOG_CTR, f->ctr_words->str, f->ctr_words->len, &answer, err);
	}
	f->known = !error;
	if (!error)
		error = take_device(f, &answer, err);
	if (!error)
		error = ask_in_ctr(f, DM_ULOG_GET_REGION_SIZE, NULL, 0, &answer, err);
	if (!error)
		error = take_region_size(f, &answer, err);
	if (error)
		far_dtr(log);
	return error;
}

const struct dm_dirty_log_type dm_userspace_log_type = {
	.name = "userspace",
	.ctr = far_ctr,
	.dtr = far_dtr,
	.presuspend = far_presuspend,
	.postsuspend = far_postsuspend,
	.resume = far_resume,
	.is_clean = far_is_clean,
	.in_sync = far_in_sync,
	.flush = far_flush,
	.mark_region = far_mark_region,
	.clear_region = far_clear_region,
	.get_resync_work = far_get_resync_work,
	.set_region_sync = far_set_region_sync,
	.is_remote_recovering = far_is_remote_recovering,
	.end_waiting = far_end_waiting,
	.go_on_waiting = far_go_on_waiting,
	.refresh = far_refresh,
	.in_touch = far_in_touch,
	.introductions = far_introductions,
	.sync_count = far_sync_count,
	.status = far_status,
};
