/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests of the userspace log to its server (userspace_log.h).
 *
 * A server that goes and comes again has forgotten who we are.  So it is told: CTR, RESUME, what is out of sync by our
 * doing, and all that we have marked; then the request that found it gone is sent again.  What bios wait for, which
 * regions are in sync and marks, waits for as long as that takes.  All else fails, and is done again later.
 */
#include "userspace_log.h"

#include <dmfs/options.h>
#include <dmfs/work.h>

#define FIRST_PAUSE_MS 20 /* between attempts to find the server again; doubled up to */
#define LAST_PAUSE_MS 1000

/* What follows is the server's fault, and what it means for us is up to the caller. */
int far_nonsense(struct far_log *f, unsigned type, const char *what)
{
	dm_log_err_limit("%s: log server %s: its answer to %s makes no sense: %s", f->log->ti->type->name,
			 dm_options.log_server, ulog_name(type), what);
	return -EPROTO;
}

/* --- one request --------------------------------------------------------------------------- */

int far_ask(struct far_log *f, unsigned type, const void *data, size_t size, struct ulog *answer)
{
	uint64_t now = dm_now_ns();
	int error = ulog_link_request(f->link, type, data, size, answer);

	if (error != -ENOTCONN && error != -ETIMEDOUT)
		atomic_store(&f->contact_ns, now);
	return error;
}

/* Sends a set of regions, in groups. */
static int send_regions(struct far_log *f, unsigned type, const uint64_t *regions, size_t n)
{
	struct ulog answer;
	int error = 0;

	for (size_t i = 0; i < n && !error; i += ULOG_GROUP)
		error = far_ask(f, type, regions + i, MIN(n - i, ULOG_GROUP) * sizeof *regions, &answer);
	return error;
}

static GArray *regions_of(GHashTable *set)
{
	GArray *out = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	GHashTableIter iter;
	gpointer p;

	g_hash_table_iter_init(&iter, set);
	while (g_hash_table_iter_next(&iter, &p, NULL)) {
		uint64_t region = GPOINTER_TO_SIZE(p);

		g_array_append_val(out, region);
	}
	return out;
}

static int tell_lost(struct far_log *f)
{
	GArray *lost = regions_of(f->lost);
	int error = 0;

	for (unsigned i = 0; i < lost->len && !error; i++) {
		struct ulog_sync s = {g_array_index(lost, uint64_t, i), 0};
		struct ulog answer;

		error = far_ask(f, DM_ULOG_SET_REGION_SYNC, &s, sizeof s, &answer);
	}
	g_array_free(lost, TRUE);
	return error;
}

static int tell_marks(struct far_log *f)
{
	GArray *marks = regions_of(f->marks);
	struct ulog answer;
	int error = send_regions(f, DM_ULOG_MARK_REGION, (const uint64_t *)marks->data, marks->len);

	if (!error && marks->len)
		error = far_ask(f, DM_ULOG_FLUSH, NULL, 0, &answer);
	g_array_free(marks, TRUE);
	return error;
}

static int check_region_size(struct far_log *f)
{
	struct ulog answer;
	uint64_t size;
	int error = far_ask(f, DM_ULOG_GET_REGION_SIZE, NULL, 0, &answer);

	if (error)
		return error;
	if (!ulog_u64(&answer, &size) || size != f->log->region_sectors)
		return far_nonsense(f, DM_ULOG_GET_REGION_SIZE, "the regions were of another size before");
	return 0;
}

/* To a server that has forgotten us, or is a new one. */
static int introduce(struct far_log *f)
{
	struct ulog answer;
	int error;

	atomic_fetch_add(&f->introductions, 1);
	g_array_set_size(f->late_work, 0); /* it may be another's by now, and comes again if not */
	error = far_ask(f, DM_ULOG_CTR, f->ctr_words->str, f->ctr_words->len + 1, &answer);
	if (!error)
		error = check_region_size(f);
	if (!error && f->resumed)
		error = far_ask(f, DM_ULOG_RESUME, NULL, 0, &answer);
	if (!error && f->resumed)
		error = tell_lost(f);
	if (!error && f->resumed)
		error = tell_marks(f);
	return error;
}

void far_set_failing(struct far_log *f, bool failing)
{
	if (atomic_exchange(&f->failing, failing) != failing)
		dm_target_event(f->log->ti, NULL, NULL);
}

static void complain(struct far_log *f, int error)
{
	far_set_failing(f, true);
	if (!f->complained)
		dm_log_err("%s: log server %s not found (%s): attempting to contact it", f->log->ti->type->name,
			   dm_options.log_server, g_strerror(-error));
	f->complained = true;
}

/* Finds the server (again); -ENOTCONN if it is not there. */
static int reach(struct far_log *f)
{
	int error = ulog_link_connect(f->link);

	if (error) {
		f->known = false;
		complain(f, error);
		return -ENOTCONN;
	}
	if (f->known)
		return 0;
	error = introduce(f);
	if (error) {
		complain(f, error);
		return -ENOTCONN;
	}
	f->known = true;
	if (f->complained)
		dm_log_info("%s: reconnected to log server %s", f->log->ti->type->name, dm_options.log_server);
	f->complained = false;
	f->no_work = false;
	return 0;
}

bool far_is_gone(int error)
{
	return error == -ENOTCONN || error == -ETIMEDOUT || error == -ESRCH;
}

int far_request(struct far_log *f, enum patience patience, unsigned type, const void *data, size_t size,
		struct ulog *answer)
{
	unsigned pause = FIRST_PAUSE_MS;

	for (;;) {
		int error = reach(f);

		if (!error)
			error = far_ask(f, type, data, size, answer);
		if (error == -ESRCH || error == -ENOTCONN)
			f->known = false;
		if (!far_is_gone(error) || patience == ONCE || ulog_link_in_hurry(f->link))
			return error;
		if (error == -ETIMEDOUT) {
			far_set_failing(f, true);
			dm_log_warn("%s: log server %s: %s timed out: retrying", f->log->ti->type->name,
				    dm_options.log_server, ulog_name(type));
			continue;
		}
		ulog_link_pause(f->link, pause);
		pause = MIN(2 * pause, LAST_PAUSE_MS);
	}
}
