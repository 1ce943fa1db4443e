/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Submitting and finishing bios, and iov arithmetic.
 *
 * A bio remapped to the device beneath is a turn of a loop here, not a
 * recursion: while a thread is inside dm_submit(), bios it submits go to a
 * list of its own, before what was there already: what has been mapped goes all the way
 * down before the next bio is mapped.  dm_submit_now() is the way out for who wants its bio gone at
 * return: it starts a list of its own.
 * End calls nest no deeper than the same way: an end() that finishes another bio has it
 * ended after itself.
 */
#include <assert.h>
#include <glib.h>
#include <string.h>

#include <dmfs/bio.h>

#include <dmfs/io.h>

static _Thread_local struct dm_bio_list *submitting, *ending;
static _Thread_local unsigned ends; /* end() calls this thread is inside, not counting those in lists */
static _Thread_local unsigned maps; /* the same of map() calls */

static void run_list(struct dm_bio_list *list)
{
	struct dm_bio_list below, *outer_submitting = submitting, *outer_ending = ending;
	struct dm_bio *bio;

	submitting = &below;
	ending = NULL;
	while ((bio = dm_bio_list_pop(list))) {
		dm_bio_list_init(&below);
		bio->dev->ops->submit(bio->dev, bio);
		dm_bio_list_take(list, &below);
		dm_bio_list_take(&below, list);
	}
	submitting = outer_submitting;
	ending = outer_ending;
}

void dm_submit_now(struct dm_bio *bio)
{
	struct dm_bio_list list;

	dm_bio_list_init(&list);
	dm_bio_list_add(&list, bio);
	run_list(&list);
}

void dm_submit(struct dm_bio *bio)
{
	if (submitting)
		dm_bio_list_add(submitting, bio);
	else
		dm_submit_now(bio);
}

void dm_bio_end(struct dm_bio *bio, int error)
{
	struct dm_bio_list list;

	assert(error <= 0);
	bio->error = error;
	if (ending) {
		dm_bio_list_add(ending, bio);
		return;
	}
	dm_bio_list_init(&list);
	ending = &list;
	ends++;
	do
		bio->end(bio);
	while ((bio = dm_bio_list_pop(&list)));
	ends--;
	ending = NULL;
}

bool dm_in_end(void)
{
	return ends > 0;
}

bool dm_in_map(void)
{
	return maps > 0;
}

bool dm_may_wait(void)
{
	return !ends && !maps;
}

void dm_map_begin(void)
{
	maps++;
}

void dm_map_end(void)
{
	maps--;
}

void dm_parts_init(struct dm_parts *parts, struct dm_bio *whole, unsigned n)
{
	parts->whole = whole;
	atomic_init(&parts->left, n);
	atomic_init(&parts->error, 0);
}

void dm_parts_add(struct dm_parts *parts)
{
	atomic_fetch_add(&parts->left, 1);
}

void dm_parts_end(struct dm_parts *parts, int error)
{
	struct dm_bio *whole = parts->whole;

	if (error)
		atomic_store(&parts->error, error);
	if (atomic_fetch_sub(&parts->left, 1) > 1)
		return;
	error = atomic_load(&parts->error);
	g_free(parts);
	dm_bio_end(whole, error);
}

size_t dm_iov_bytes(const struct iovec *iov, int iovcnt)
{
	size_t bytes = 0;

	for (int i = 0; i < iovcnt; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

/* Calls fn for every piece of [offset, offset + len), in order. */
static void for_pieces(const struct iovec *iov, int iovcnt, size_t offset, size_t len,
		       void (*fn)(void *piece, size_t len, void **cursor), void *cursor)
{
	for (int i = 0; i < iovcnt && len; i++) {
		size_t n;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		n = iov[i].iov_len - offset;
		if (n > len)
			n = len;
		fn((char *)iov[i].iov_base + offset, n, &cursor);
		offset = 0;
		len -= n;
	}
	assert(!len);
}

static void piece_out(void *piece, size_t len, void **cursor)
{
	memcpy(*cursor, piece, len);
	*cursor = (char *)*cursor + len;
}

static void piece_in(void *piece, size_t len, void **cursor)
{
	memcpy(piece, *cursor, len);
	*cursor = (char *)*cursor + len;
}

static void piece_zero(void *piece, size_t len, void **cursor)
{
	(void)cursor;
	memset(piece, 0, len);
}

void dm_iov_read(const struct iovec *iov, int iovcnt, size_t offset, void *buf, size_t len)
{
	for_pieces(iov, iovcnt, offset, len, piece_out, buf);
}

void dm_iov_write(const struct iovec *iov, int iovcnt, size_t offset, const void *buf, size_t len)
{
	for_pieces(iov, iovcnt, offset, len, piece_in, (void *)buf);
}

void dm_iov_zero(const struct iovec *iov, int iovcnt, size_t offset, size_t len)
{
	for_pieces(iov, iovcnt, offset, len, piece_zero, NULL);
}

int dm_iov_slice(const struct iovec *iov, int iovcnt, size_t offset, size_t len, struct iovec *out)
{
	int n = 0;

	for (int i = 0; i < iovcnt && len; i++) {
		size_t take;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		take = iov[i].iov_len - offset;
		if (take > len)
			take = len;
		out[n].iov_base = (char *)iov[i].iov_base + offset;
		out[n++].iov_len = take;
		offset = 0;
		len -= take;
	}
	assert(!len);
	return n;
}

void dm_part_data_init(struct dm_part_data *data, struct dm_bio *part, const struct dm_bio *whole, size_t offset,
		       size_t len)
{
	data->iov = whole->iovcnt == 1 ? &data->one : g_new(struct iovec, whole->iovcnt);
	part->iov = data->iov;
	part->iovcnt = dm_iov_slice(whole->iov, whole->iovcnt, offset, len, data->iov);
}

void dm_part_data_clear(struct dm_part_data *data)
{
	if (data->iov != &data->one)
		g_free(data->iov);
}
