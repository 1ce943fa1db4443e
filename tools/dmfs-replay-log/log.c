/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading a log of log-writes (log.h). */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/rounding.h>
#include <dmfs/target.h>

#include "log.h"

#define KNOWN_FLAGS (LOG_WRITES_FLUSH | LOG_WRITES_FUA | LOG_WRITES_DISCARD | LOG_WRITES_MARK | LOG_WRITES_META)
#define MAX_BLOCK 65536u

int log_read(const struct log *log, void *buf, size_t len, uint64_t pos, GError **err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(log->fd, (char *)buf + done, len - done, (off_t)(pos + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return dm_fail(err, errno, "%s: reading at byte %" PRIu64 ": %s", log->name, pos + done,
				       g_strerror(errno));
		if (!n)
			return dm_fail(err, EINVAL, "%s: ends at byte %" PRIu64 ", %zu more are needed", log->name,
				       pos + done, len - done);
		done += (size_t)n;
	}
	return 0;
}

static int check_super(struct log *log, const struct log_writes_super *super, GError **err)
{
	if (le64toh(super->magic) != LOG_WRITES_MAGIC)
		return dm_fail(err, EINVAL, "%s: is no log: its magic is 0x%" PRIx64 ", not 0x%llx", log->name,
			       le64toh(super->magic), LOG_WRITES_MAGIC);
	if (le64toh(super->version) != LOG_WRITES_VERSION)
		return dm_fail(err, EINVAL, "%s: is of version %" PRIu64 ", only %llu is known", log->name,
			       le64toh(super->version), LOG_WRITES_VERSION);
	log->block = le32toh(super->block_size);
	log->entries = le64toh(super->entries);
	log->pos = log->block;
	if (log->block < 512 || log->block > MAX_BLOCK || !dm_is_pow2(log->block))
		return dm_fail(err, EINVAL, "%s: its block size is %" PRIu32 ", not a power of two from 512 to %u",
			       log->name, log->block, MAX_BLOCK);
	return 0;
}

int log_open_fd(struct log *log, int fd, const char *name, GError **err)
{
	struct log_writes_super super;
	off_t end = lseek(fd, 0, SEEK_END);
	int error = 0;

	*log = (struct log){.fd = fd, .name = name, .bytes = (uint64_t)end};
	if (end < 0)
		error = dm_fail(err, errno, "%s: is not seekable: %s", name, g_strerror(errno));
	else if (log->bytes < sizeof super)
		error = dm_fail(err, EINVAL, "%s: is no log: it has %" PRIu64 " bytes, the super block alone has %zu", name,
				log->bytes, sizeof super);
	if (!error)
		error = log_read(log, &super, sizeof super, 0, err);
	if (!error)
		error = check_super(log, &super, err);
	if (error)
		log_close(log);
	return error;
}

int log_open(struct log *log, const char *name, GError **err)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? dm_fail(err, errno, "%s: %s", name, g_strerror(errno)) : log_open_fd(log, fd, name, err);
}

void log_close(struct log *log)
{
	close(log->fd);
}

static int G_GNUC_PRINTF(4, 5) corrupt(const struct log *log, const struct entry *e, GError **err, const char *fmt, ...)
{
	g_autofree char *what = NULL;
	va_list ap;

	va_start(ap, fmt);
	what = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	return dm_fail(err, EINVAL, "%s: entry %" PRIu64 " of %" PRIu64 ", at block %" PRIu64 ", %s", log->name,
		       e->number, log->entries, log->pos / log->block, what);
}

static int read_mark(const struct log *log, struct entry *e, uint64_t len, GError **err)
{
	if (len > log->block - sizeof(struct log_writes_entry))
		return corrupt(log, e, err, "is a mark of %" PRIu64 " bytes, more than a block holds", len);
	g_free(e->mark);
	e->mark = g_malloc0(len + 1);
	return log_read(log, e->mark, len, log->pos + sizeof(struct log_writes_entry), err);
}

/* Where the entry's data is, and whether it can be. */
static int place_data(const struct log *log, struct entry *e, GError **err)
{
	uint64_t room;

	if (e->flags & ~(uint64_t)KNOWN_FLAGS)
		return corrupt(log, e, err, "has unknown flags, 0x%" PRIx64, e->flags);
	if (!e->flags && !e->sectors)
		return corrupt(log, e, err, "is empty");
	if (e->sector > INT64_MAX / log->block || e->sectors > INT64_MAX / log->block - e->sector)
		return corrupt(log, e, err, "has an impossible place: %" PRIu64 " blocks at %" PRIu64, e->sectors,
			       e->sector);
	e->data = log->pos + log->block;
	room = log->bytes - e->data;
	e->len = e->flags & LOG_WRITES_DISCARD ? 0 : e->sectors * log->block;
	if (e->len > room)
		return corrupt(log, e, err, "has %" PRIu64 " bytes of data, %" PRIu64 " are left: the log is truncated",
			       e->len, room);
	return 0;
}

int log_next(struct log *log, struct entry *e, GError **err)
{
	struct log_writes_entry head;
	int error;

	if (log->next >= log->entries)
		return 0;
	e->number = log->next;
	if (log->pos > log->bytes || log->bytes - log->pos < log->block)
		return corrupt(log, e, err,
			       "is beyond the end of the log, which has %" PRIu64 " bytes: the log is truncated",
			       log->bytes);
	error = log_read(log, &head, sizeof head, log->pos, err);
	if (error)
		return error;
	e->sector = le64toh(head.sector);
	e->sectors = le64toh(head.sectors);
	e->flags = le64toh(head.flags);
	error = place_data(log, e, err);
	if (!error && (e->flags & LOG_WRITES_MARK))
		error = read_mark(log, e, le64toh(head.data_len), err);
	if (error)
		return error;
	log->pos = e->data + e->len;
	log->next++;
	return 1;
}
