/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files that are a text, like those of /proc: a read at offset 0 takes a fresh
 * text, reads at other offsets go on in it.
 */
#include <errno.h>
#include <string.h>

#include "fs.h"

struct dm_opener dmfs_opener(fuse_req_t req)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return (struct dm_opener){ctx->pid, ctx->uid, ctx->gid};
}

bool dmfs_interrupted(void *req)
{
	return fuse_req_interrupted(req);
}

char *dmfs_strip(char *text)
{
	return g_strstrip(text);
}

void dmfs_text_read(fuse_req_t req, struct dmfs_handle *h, size_t size, off_t off)
{
	int error = 0;

	pthread_mutex_lock(&h->lock);
	if (off == 0 || !h->text) {
		GString *text = g_string_new(NULL);

		error = h->file->read_text ? h->file->read_text(h, text) : 0;
		if (h->text)
			g_string_free(h->text, TRUE);
		h->text = text;
	}
	if (error)
		fuse_reply_err(req, -error);
	else if (off < 0 || (size_t)off >= h->text->len)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, h->text->str + off, MIN(size, h->text->len - (size_t)off));
	pthread_mutex_unlock(&h->lock);
}

void dmfs_text_write(fuse_req_t req, struct dmfs_handle *h, const char *buf, size_t size)
{
	g_autofree char *text = g_strndup(buf, size);
	g_autoptr(GError) err = NULL;
	int error;

	if (memchr(buf, '\0', size))
		error = dm_fail(&err, EINVAL, "%s: a NUL byte in the text", h->file->name);
	else
		error = h->file->write_text(h, req, text, size, &err);
	if (h->device) {
		g_autofree char *line = err ? g_strdup_printf("0: %s\n", err->message) : NULL;

		dm_mapped_set_error(h->device->md, error ? line : NULL);
	}
	if (error && err)
		dm_log_err("%s: %s", h->file->name, err->message);
	if (error)
		fuse_reply_err(req, -error);
	else
		fuse_reply_write(req, size);
}
