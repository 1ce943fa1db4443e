/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages between a userspace dirty log and its server (ulog.h). */
#include <string.h>

#include "ulog.h"

G_STATIC_ASSERT(ULOG_HEADER == 160);
G_STATIC_ASSERT(offsetof(struct dm_ulog_request, version) == 140);

#define MAX_ERRNO 4095

size_t ulog_pack(const struct ulog *m, uint8_t out[ULOG_MAX])
{
	struct dm_ulog_request r = {
		.luid = m->luid,
		.version = DM_ULOG_REQUEST_VERSION,
		.error = m->error,
		.seq = m->seq,
		.request_type = m->type,
		.data_size = (uint32_t)m->size,
	};

	g_assert(m->size <= ULOG_MAX_DATA);
	g_strlcpy(r.uuid, m->uuid, sizeof r.uuid);
	memcpy(out, &r, ULOG_HEADER);
	if (m->size)
		memcpy(out + ULOG_HEADER, m->data, m->size);
	return ULOG_HEADER + m->size;
}

const char *ulog_parse(const uint8_t *message, size_t len, struct ulog *out)
{
	struct dm_ulog_request r;

	if (len < ULOG_HEADER)
		return "it is shorter than its header";
	if (len > ULOG_MAX)
		return "it is too long";
	memcpy(&r, message, ULOG_HEADER);
	if (!r.version || r.version > DM_ULOG_REQUEST_VERSION)
		return "its version is not 1 to 3";
	if (r.data_size != len - ULOG_HEADER)
		return "its data are not as long as it says";
	if (!memchr(r.uuid, 0, sizeof r.uuid))
		return "its UUID does not end";
	if (r.error > 0 || r.error < -MAX_ERRNO)
		return "its error is no errno";
	out->type = DM_ULOG_REQUEST_TYPE(r.request_type);
	if (!out->type || out->type > ULOG_TYPES)
		return "its type is not known";
	out->luid = r.luid;
	memcpy(out->uuid, r.uuid, sizeof out->uuid);
	out->error = r.error;
	out->seq = r.seq;
	out->data = message + ULOG_HEADER;
	out->size = r.data_size;
	return NULL;
}

const char *ulog_name(unsigned type)
{
	static const char *const names[] = {
		"?",	    "CTR",	     "DTR",		"PRESUSPEND",	   "POSTSUSPEND",    "RESUME",
		"GET_REGION_SIZE", "IS_CLEAN", "IN_SYNC",	"FLUSH",	   "MARK_REGION",    "CLEAR_REGION",
		"GET_RESYNC_WORK", "SET_REGION_SYNC", "GET_SYNC_COUNT", "STATUS_INFO", "STATUS_TABLE", "IS_REMOTE_RECOVERING",
	};

	return names[type <= ULOG_TYPES ? type : 0];
}

bool ulog_u64(const struct ulog *m, uint64_t *out)
{
	if (m->size != sizeof *out)
		return false;
	memcpy(out, m->data, sizeof *out);
	return true;
}
