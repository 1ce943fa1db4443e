/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `table` and `inactive`: reading prints a table, writing builds one.
 *
 * Each open file has a draft of its own: the text so far and the table that the complete lines in it have built.  A bad
 * line spoils the draft for good.  At FLUSH (every close of a descriptor) a draft that has grown is loaded.  The table
 * then is the device's; if the draft goes on growing it is built anew from the text.
 *
 * A process that dies by a signal closes its files as well.  Its flags in /proc tell; its draft is dropped.
 *
 * A table may hold keys: no copy of its text is freed, or left in a request's buffer, without being wiped.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "files.h"

#define MAX_DRAFT (96u * 1024 * 1024)
#define MAX_LINE (512u * 1024)
#define TEXT_ROOM ((size_t)16 * 1024) /* at first; a power of two of pages */

struct text {
	char *str; /* not terminated */
	size_t len, room;
};

struct draft {
	struct text text;
	struct dm_table *table; /* of the lines before `parsed`; NULL: none yet */
	size_t parsed;          /* bytes of the text that are in the table */
	unsigned lines;         /* complete lines parsed */
	struct dm_opener opener;
	bool grown;     /* since the last load */
	bool loaded;    /* the table was given away: build it anew */
	bool truncated; /* the open, or ftruncate, asked for an empty slot */
	int error;      /* spoiled, and why */
};

/* --- the text: pages of its own, which the kernel moves when it grows and empties when they go --------- */

static void text_clear(struct text *t)
{
	if (t->room)
		munmap(t->str, t->room);
	*t = (struct text){0};
}

static int text_append(struct text *t, const char *buf, size_t size)
{
	size_t room = t->room ? t->room : TEXT_ROOM;
	void *p;

	while (room - t->len < size)
		room *= 2;
	if (room != t->room) {
		p = t->room ? mremap(t->str, t->room, room, MREMAP_MAYMOVE) :
			      mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return -ENOMEM;
		madvise(p, room, MADV_DONTDUMP);
		t->str = p;
		t->room = room;
	}
	memcpy(t->str + t->len, buf, size);
	t->len += size;
	return 0;
}

static void draft_free(struct draft *d)
{
	dm_table_unref(d->table);
	text_clear(&d->text);
	g_free(d);
}

static void set_error(struct dmfs_handle *h, unsigned line, const char *text)
{
	g_autofree char *whole = g_strdup_printf("%u: %s\n", line, text);

	dm_mapped_set_error(h->device->md, whole);
	if (line)
		dm_log_err("table: line %u: %s", line, text);
	else
		dm_log_err("table: %s", text);
}

/* Spoils the draft. */
static int spoil(struct dmfs_handle *h, struct draft *d, unsigned line, int error, const char *text)
{
	set_error(h, line, text);
	dm_table_unref(d->table);
	d->table = NULL;
	text_clear(&d->text);
	d->error = error;
	return error;
}

/*
 * The line that begins at `from`: its length without the newline, and the length of what stands before a comment, which
 * a word that begins with # begins.  A quoted newline does not end a line, but in a comment nothing is quoted.  False
 * if the newline has not come yet.
 */
static bool find_line(const struct text *text, size_t from, size_t *len, size_t *words)
{
	bool comment = false, blank = true;

	*words = text->len - from;
	for (size_t i = from; i < text->len; i++) {
		char c = text->str[i];

		if (c == '\n') {
			*len = i - from;
			*words = MIN(*words, *len);
			return true;
		}
		if (c == '#' && blank && !comment) {
			comment = true;
			*words = i - from;
		}
		blank = g_ascii_isspace(c);
		if (c == '\\' && !comment)
			i++;
	}
	*len = text->len - from;
	return false;
}

/* Of the line's `len` bytes the first `words` are before a comment. */
static int parse_line(struct dmfs_handle *h, struct draft *d, const char *line, size_t len, size_t words)
{
	g_autoptr(GError) err = NULL;
	g_autofree char *copy = NULL;
	size_t blank = 0;
	int error;

	d->lines++;
	if (len > MAX_LINE)
		return spoil(h, d, d->lines, -E2BIG, "the line is longer than 512 KiB");
	if (memchr(line, '\0', len))
		return spoil(h, d, d->lines, -EINVAL, "a NUL byte in the table");
	while (blank < words && g_ascii_isspace(line[blank]))
		blank++;
	if (blank == words)
		return 0;
	copy = g_strndup(line, words);
	error = dm_table_add_line(d->table, copy, &err);
	explicit_bzero(copy, words);
	return error ? spoil(h, d, d->lines, error, err->message) : 0;
}

/* Parses what is complete; at_close, a last line without a newline too. */
static int parse(struct dmfs_handle *h, struct draft *d, bool at_close)
{
	int error = 0;

	if (!d->table) {
		enum dm_mode mode = atomic_load(&h->device->md->readonly) ? DM_MODE_READ : DM_MODE_RW;

		d->table = dm_table_new(h->device->md, mode, &d->opener);
		d->parsed = 0;
		d->lines = 0;
	}
	while (!error && d->parsed < d->text.len) {
		size_t len, words;
		bool whole = find_line(&d->text, d->parsed, &len, &words);

		if (!whole && !at_close) {
			if (len > MAX_LINE)
				error = spoil(h, d, d->lines + 1, -E2BIG, "the line is longer than 512 KiB");
			break;
		}
		error = parse_line(h, d, d->text.str + d->parsed, len, words);
		if (!error)
			d->parsed += len + whole;
	}
	return error;
}

static void draft_write(fuse_req_t req, struct dmfs_handle *h, const char *buf, size_t size, off_t off,
			struct fuse_file_info *fi)
{
	struct draft *d = h->data;
	struct dm_opener opener = dmfs_opener(req);
	int error;

	pthread_mutex_lock(&h->lock);
	error = d->error;
	if (!error && !(h->flags & O_APPEND) && (off < 0 || (size_t)off != d->text.len)) {
		g_autofree char *text = g_strdup_printf("a write at offset %lld does not append to the draft's %zu bytes",
							(long long)off, d->text.len);

		set_error(h, 0, text);
		error = -EINVAL;
	} else if (!error && size > MAX_DRAFT - d->text.len) {
		error = spoil(h, d, 0, -EFBIG, "the table's text is longer than 96 MiB");
	}
	if (!error) {
		if (d->opener.uid != opener.uid || d->opener.gid != opener.gid || d->opener.pid != opener.pid) {
			d->opener = opener;
			if (d->table) /* names already resolved were another's */
				dm_table_set_opener(d->table, &opener);
		}
		if (d->loaded) {
			d->loaded = false;
			d->table = NULL;
		}
		d->grown = true;
		error = text_append(&d->text, buf, size);
		error = error ? spoil(h, d, 0, error, "no memory for the table's text") : parse(h, d, false);
	}
	pthread_mutex_unlock(&h->lock);
	explicit_bzero((char *)buf, size); /* the request's buffer is this thread's */
	if (error)
		fuse_reply_err(req, -error);
	else
		fuse_reply_write(req, size);
}

/* --- loading -------------------------------------------------------------------------------- */

static int load(struct dmfs_handle *h, struct draft *d, fuse_req_t req, bool live)
{
	g_autoptr(GError) err = NULL;
	struct dm_table *t;
	int error;

	if (d->text.len == 0)
		return 0;
	if (d->loaded) {
		d->table = NULL;
		d->loaded = false;
	}
	error = parse(h, d, true);
	if (error)
		return error;
	error = dm_table_complete(d->table, &err);
	if (error)
		return spoil(h, d, 0, error, err->message);
	t = d->table;
	d->table = NULL;
	d->loaded = true;
	d->parsed = 0;
	if (live)
		error = dm_mapped_swap(h->device->md, t, dmfs_interrupted, req, &err);
	else
		error = dm_mapped_load(h->device->md, t, &err);
	if (error) {
		set_error(h, 0, err ? err->message : g_strerror(-error));
		return error;
	}
	dm_mapped_set_error(h->device->md, NULL);
	return 0;
}

static void draft_flush(fuse_req_t req, struct dmfs_handle *h)
{
	struct draft *d = h->data;
	bool live = h->file == &dmfs_table_file;
	int error = 0;

	if (!d) {
		fuse_reply_err(req, 0);
		return;
	}
	pthread_mutex_lock(&h->lock);
	if (d->grown && !d->error && dmfs_writer_killed(req))
		spoil(h, d, 0, -EINTR, "the writer was killed before it closed the file");
	if (d->grown && !d->error) {
		d->grown = false;
		error = load(h, d, req, live);
		d->truncated = false;
	} else if (d->truncated && !live && !d->error && !dmfs_writer_has_open(req, h)) {
		d->truncated = false;
		error = dm_mapped_load(h->device->md, NULL, NULL);
	}
	pthread_mutex_unlock(&h->lock);
	fuse_reply_err(req, -error);
}

/*
 * A truncation that comes with an open names no file handle, and the open did not tell of it: it belongs to the newest
 * open file of the same thread that nothing was written to.  Any other truncates the slot at once.
 */
static void draft_truncate(struct dmfs_handle *h, struct dmfs_device *device, fuse_req_t req)
{
	pid_t pid = dmfs_opener(req).pid;

	pthread_mutex_lock(&device->lock);
	for (GList *l = h ? NULL : device->drafts; l; l = l->next) {
		struct dmfs_handle *other = l->data;
		struct draft *d = other->data;

		if (d->opener.pid == pid && !d->text.len && !d->error && !d->truncated) {
			h = other;
			break;
		}
	}
	if (h && h->data)
		((struct draft *)h->data)->truncated = true;
	pthread_mutex_unlock(&device->lock);
	if (!h)
		dm_mapped_load(device->md, NULL, NULL);
}

static void draft_open(fuse_req_t req, struct dmfs_handle *h, struct fuse_file_info *fi)
{
	struct draft *d;

	if ((fi->flags & O_ACCMODE) != O_RDONLY) {
		d = g_new0(struct draft, 1);
		d->opener = dmfs_opener(req);
		h->data = d;
		pthread_mutex_lock(&h->device->lock);
		h->device->drafts = g_list_prepend(h->device->drafts, h);
		pthread_mutex_unlock(&h->device->lock);
	}
	fi->direct_io = 1;
	if (fuse_reply_open(req, fi))
		dmfs_open_failed(req, h, 0);
}

static void draft_release(struct dmfs_handle *h)
{
	if (!h->data)
		return;
	pthread_mutex_lock(&h->device->lock);
	h->device->drafts = g_list_remove(h->device->drafts, h);
	pthread_mutex_unlock(&h->device->lock);
	draft_free(h->data);
}

static int print(struct dm_table *t, GString *out)
{
	if (t)
		dm_table_print(t, DM_STATUS_TABLE, out);
	dm_table_unref(t);
	return 0;
}

static int table_text(struct dmfs_handle *h, GString *out)
{
	return print(dm_mapped_live(h->device->md), out);
}

static int inactive_text(struct dmfs_handle *h, GString *out)
{
	return print(dm_mapped_inactive(h->device->md), out);
}

const struct dmfs_file dmfs_table_file = {
	.name = "table",
	.mode = 0600,
	.read_text = table_text,
	.open = draft_open,
	.write = draft_write,
	.flush = draft_flush,
	.release = draft_release,
};

const struct dmfs_file dmfs_inactive_file = {
	.name = "inactive",
	.mode = 0600,
	.read_text = inactive_text,
	.open = draft_open,
	.write = draft_write,
	.flush = draft_flush,
	.truncate = draft_truncate,
	.release = draft_release,
};
