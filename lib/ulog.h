/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages between a userspace dirty log and its server: the kernel's dm_ulog_request (linux/dm-log-userspace.h), one a
 * packet of a Unix socket (SOCK_SEQPACKET), without netlink's headers.  Numbers are the host's:
 *
 *   byte 0    u64   luid: which log of this host
 *   8         129   uuid, with a NUL, and three bytes of nothing
 *   140       u32   version, 3
 *   144       s32   error: 0 or a negative errno; an answer's
 *   148       u32   seq: a request's number, the answer's too
 *   152       u32   type, DM_ULOG_…, in the low byte
 *   156       u32   bytes of data
 *   160             data
 *
 * Whoever receives one looks at it with ulog_parse() before anything else.
 */
#ifndef DMFS_LIB_ULOG_H
#define DMFS_LIB_ULOG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#include <linux/dm-log-userspace.h>

#define ULOG_HEADER sizeof(struct dm_ulog_request)
#define ULOG_MAX_DATA 8192u /* the kernel's own limit is about 330 */
#define ULOG_MAX (ULOG_HEADER + ULOG_MAX_DATA)
#define ULOG_TYPES 17u
#define ULOG_GROUP 32u /* regions a message marks or clears at most */

struct ulog {
	uint64_t luid;
	char uuid[DM_UUID_LEN];
	int32_t error;
	uint32_t seq;
	unsigned type;
	const uint8_t *data; /* points into the message */
	size_t size;
};

/* Data of some of them. */
struct ulog_work { /* GET_RESYNC_WORK's answer */
	int64_t any;
	uint64_t region;
};
struct ulog_sync { /* SET_REGION_SYNC */
	uint64_t region;
	int64_t in_sync;
};
struct ulog_remote { /* IS_REMOTE_RECOVERING's answer */
	int64_t is_recovering;
	uint64_t in_sync_hint;
};

/* Makes a message; its data must not be more than ULOG_MAX_DATA.  Returns its length. */
size_t ulog_pack(const struct ulog *m, uint8_t out[ULOG_MAX]);
/* NULL, or what is wrong with it. */
const char *ulog_parse(const uint8_t *message, size_t len, struct ulog *out);
/* "IN_SYNC" */
const char *ulog_name(unsigned type);

/* A number of an answer's data; false: it has another size. */
bool ulog_u64(const struct ulog *m, uint64_t *out);

#endif
