/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `message`: a write sends a target message; a read gives the reply to the last one sent through this open file, or, if
 * there was none, the device's last reply.
 */
#include <errno.h>
#include <string.h>

#include "core/message.h"
#include "files.h"

static int message_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	struct dm_mapped *md = h->device->md;
	GString *reply = g_string_new(NULL);
	bool asks = dm_message_asks(text);
	int error;

	dm_block_begin();
	error = dm_mapped_message(md, text, &h->writer, reply, err);
	dm_block_end();
	if (error) /* the last message of this open file has no reply */
		g_string_truncate(reply, 0);
	if (reply->len && reply->str[reply->len - 1] != '\n')
		g_string_append_c(reply, '\n');
	pthread_mutex_lock(&h->lock);
	dmfs_text_free(h->data); /* there may be keys in it */
	h->data = g_string_new(reply->str);
	pthread_mutex_unlock(&h->lock);
	if (error || asks) {
		dmfs_text_free(reply);
		return error;
	}
	pthread_mutex_lock(&md->lock);
	if (md->reply)
		g_string_free(md->reply, TRUE);
	md->reply = reply;
	pthread_mutex_unlock(&md->lock);
	return 0;
}

/* h->lock is held by the reader of texts. */
static int message_text(struct dmfs_handle *h, GString *out)
{
	struct dm_mapped *md = h->device->md;

	if (h->data) {
		g_string_append(out, ((GString *)h->data)->str);
		return 0;
	}
	pthread_mutex_lock(&md->lock);
	if (md->reply)
		g_string_append(out, md->reply->str);
	pthread_mutex_unlock(&md->lock);
	return 0;
}

static void message_release(struct dmfs_handle *h)
{
	dmfs_text_free(h->data);
}

const struct dmfs_file dmfs_message_file = {
	.name = "message",
	.mode = 0600,
	.read_text = message_text,
	.write_text = message_write,
	.asks = dm_message_asks,
	.long_text = true,
	.release = message_release,
};
