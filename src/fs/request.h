/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A request for an image as a bio: read, write, FLUSH and ranges (request.c). */
#ifndef DMFS_FS_REQUEST_H
#define DMFS_FS_REQUEST_H

#include "coherence.h"
#include "image.h"
#include "loop.h"
#include "waiting.h"

#include <dmfs/hold.h>
#include <dmfs/work.h>

struct request {
	struct dm_bio bio;
	struct iovec iov;
	struct dm_origin origin;
	struct dmfs_waiting waiting; /* references: the worker's while it submits, the bio's, that of who gives it up */
	fuse_req_t req;
	struct dmfs_handle *h; /* until it is answered */
	struct dmfs_channel *channel;
	atomic_bool answered;
	struct dm_mapped *orphan_of; /* answered before its end: the device, opened once more */
	struct dmfs_buf *buf;
	struct dmfs_change change; /* of what changes something */
	struct dm_work work;
	char *bounce; /* for an unaligned read that has no room in the buffer */
	const char *reply;
	size_t reply_len;
	bool gated; /* inside image->writes */
	bool listed_early; /* while it was submitted */
};

/* In the worker's buffer.  Sectors of the bio are set from offset and bytes. */
struct request *request_new(fuse_req_t req, struct dmfs_handle *h, enum dm_op op, uint64_t offset, uint64_t bytes);
/* Sends it on its way; it is the worker's no more. */
void request_submit(struct request *r);

/* The image is used: it is not about to be closed. */
void request_uses(struct dmfs_handle *h);

#endif
