/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files that are a text, like those of /proc: a read at offset 0 takes a fresh text, reads at other offsets go on in
 * it.
 *
 * A text that is written acts at its write(2).  Long ones come in pieces: stdio and cat write multiples of 4096 bytes
 * until the last piece, and the kernel cuts a large write(2) at the largest request or, if the writer's buffer begins
 * within a page, somewhat less.  A file that takes long texts collects such pieces, and those whose end says that there
 * is more (a shell writes line by line), and acts at the first that is none, or at close.  If that fails, the writer is
 * told that the pieces before were written; he then tries to write the rest, and that is when he learns the error.
 */
#include <errno.h>
#include <string.h>

#include "fs.h"
#include "loop.h"

#include <dmfs/secmem.h>

#define PART 4096u
#define MAX_TEXT (64u * 1024 * 1024)

struct dm_opener dmfs_opener(fuse_req_t req)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	/* 0: a process that cannot be seen from here.  It is not the daemon, so -1. */
	return (struct dm_opener){ctx->pid ? ctx->pid : -1, ctx->uid, ctx->gid};
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
		dmfs_text_free(h->text);
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

/* Hands a whole text to the file; its error goes to `error` and the log. */
static int text_take(struct dmfs_handle *h, fuse_req_t req, const char *buf, size_t size)
{
	g_autofree char *text = g_strndup(buf, size);
	g_autoptr(GError) err = NULL;
	bool asks = h->file->asks && h->file->asks(text);
	int error;

	if (memchr(buf, '\0', size))
		error = dm_fail(&err, EINVAL, "%s: a NUL byte in the text", h->file->name);
	else
		error = h->file->write_text(h, req, text, size, &err);
	if (h->device && (error || !asks)) {
		g_autofree char *line = err ? g_strdup_printf("0: %s\n", err->message) : NULL;

		dm_mapped_set_error(h->device->md, error ? line : NULL);
	}
	if (error && err)
		dm_log_err("%s: %s", h->file->name, err->message);
	explicit_bzero(text, size); /* a message may hold a key */
	dm_burn_stack();
	return error;
}

void dmfs_text_free(GString *text)
{
	if (!text)
		return;
	explicit_bzero(text->str, text->len);
	g_string_free(text, TRUE);
}

/* A text so long that it comes in several writes; h->lock held. */
static int collect(struct dmfs_handle *h, const char *buf, size_t size)
{
	GString *old = h->partial;

	if (!old || size >= old->allocated_len - old->len) {
		h->partial = g_string_sized_new(old ? 2 * old->len + size : 2 * size);
		g_string_append_len(h->partial, old ? old->str : "", old ? (gssize)old->len : 0);
		dmfs_text_free(old);
	}
	if (size > MAX_TEXT - h->partial->len) {
		dmfs_text_free(h->partial);
		h->partial = NULL;
		return -EFBIG;
	}
	g_string_append_len(h->partial, buf, (gssize)size);
	return 0;
}

/* Takes what has been collected, if there is anything; h->lock held, and dropped around it. */
static int take_partial(struct dmfs_handle *h, fuse_req_t req)
{
	GString *text = h->partial;
	int error;

	h->partial = NULL;
	if (!text)
		return 0;
	pthread_mutex_unlock(&h->lock);
	error = text_take(h, req, text->str, text->len);
	dmfs_text_free(text);
	pthread_mutex_lock(&h->lock);
	return error;
}

/* The last piece was refused a moment ago and comes again: 0 or the same error. */
static int refused_again(struct dmfs_handle *h, off_t off)
{
	int error = off == h->refused_at ? h->refused : 0;

	h->refused = 0;
	return error;
}

/* Whether more of a long text will come, by its newest piece and by how all of it ends; size > 0. */
static bool goes_on(struct dmfs_handle *h, size_t size, const char *all, size_t len)
{
	return size % PART == 0 || size > DMFS_MAX_WRITE - PART ||
	       (h->file->unfinished && h->file->unfinished(all, len));
}

/* h->lock held, and dropped while the file acts. */
static int write_piece(struct dmfs_handle *h, fuse_req_t req, const char *buf, size_t size, off_t off)
{
	int error = refused_again(h, off);

	if (error)
		return error;
	h->writer = dmfs_opener(req);
	if (h->file->long_text && (h->partial || goes_on(h, size, buf, size))) {
		error = collect(h, buf, size);
		if (error || goes_on(h, size, h->partial->str, h->partial->len))
			return error;
		error = take_partial(h, req);
		h->refused = error;
		h->refused_at = off;
		return error;
	}
	pthread_mutex_unlock(&h->lock);
	error = text_take(h, req, buf, size);
	pthread_mutex_lock(&h->lock);
	return error;
}

void dmfs_text_write(fuse_req_t req, struct dmfs_handle *h, const char *buf, size_t size, off_t off)
{
	int error;

	pthread_mutex_lock(&h->lock);
	error = write_piece(h, req, buf, size, off);
	pthread_mutex_unlock(&h->lock);
	explicit_bzero((char *)buf, size); /* the request's buffer is this thread's */
	if (error)
		fuse_reply_err(req, -error);
	else
		fuse_reply_write(req, size);
}

/* A writer that is killed has not written all; one that has the file open still may go on. */
static int text_close(struct dmfs_handle *h, fuse_req_t req, bool last)
{
	int error = 0;

	pthread_mutex_lock(&h->lock);
	if (h->partial && dmfs_writer_killed(req)) {
		dmfs_text_free(h->partial);
		h->partial = NULL;
	} else if (h->partial && (last || !dmfs_writer_has_open(req, h))) {
		error = take_partial(h, req);
	}
	pthread_mutex_unlock(&h->lock);
	return error;
}

void dmfs_text_flush(fuse_req_t req, struct dmfs_handle *h)
{
	fuse_reply_err(req, -text_close(h, req, false));
}

void dmfs_text_release(fuse_req_t req, struct dmfs_handle *h)
{
	text_close(h, req, true);
}
