/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A clustered-disk log's disk (store.h). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dmfs/dirty_log.h>
#include <dmfs/error.h>

#include "lib/dirty_log_format.h"
#include "store.h"

#define BLOCK 4096u
#define SECTOR 512u

struct log_store {
	int fd;
	bool is_log, marked;
	uint8_t *area;
	size_t bytes;
	uint8_t *changed; /* a bit a block */
	size_t changed_first, changed_last; /* none: first > last */
	char letter;
};

static bool read_all(int fd, void *buf, size_t len, off_t at)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (char *)buf + done, len - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		if (!n) {
			errno = EIO;
			return false;
		}
		done += (size_t)n;
	}
	return true;
}

static bool write_all(int fd, const void *buf, size_t len, off_t at)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* --- opening ------------------------------------------------------------------------ */

static int open_locked(const char *path, GError **err)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct stat st;
	int fd;

	if (*path != '/')
		return dm_fail(err, EINVAL, "log device '%s': an absolute path would be right", path);
	if (stat(path, &st))
		return dm_fail(err, errno, "log device %s: %s", path, g_strerror(errno));
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return dm_fail(err, EINVAL, "log device %s: a file or a block device would be right", path);
	fd = open(path, O_RDWR | O_CLOEXEC | (S_ISBLK(st.st_mode) ? O_EXCL : 0));
	if (fd < 0)
		return dm_fail(err, errno, "log device %s: %s", path, g_strerror(errno));
	if (!fcntl(fd, F_OFD_SETLK, &lock) || (errno != EAGAIN && errno != EACCES))
		return fd;
	close(fd);
	return dm_fail(err, EBUSY, "log device %s: it is in use by another program: it is locked", path);
}

static bool check(struct log_store *s, const char *path, uint64_t regions, bool anew, GError **err)
{
	const uint8_t *p = s->area;

	if (dm_log_header_is_log(p) && dm_log_header_regions(p) == regions) {
		s->is_log = true;
		return true;
	}
	if (anew || dm_log_header_is_new(p))
		return true;
	if (!dm_log_header_is_log(p))
		dm_fail(err, EINVAL, "log device %s holds no dirty log of version 1 or %u: zeroes would be right, or sync or "
				     "nosync in the table", path, DM_LOG_VERSION);
	else
		dm_fail(err, EINVAL, "the log on %s is of %" PRIu64 " regions, here there are %" PRIu64
				     ": sync or nosync in the table begins it anew", path, dm_log_header_regions(p), regions);
	return false;
}

static bool fill(struct log_store *s, const char *path, uint64_t regions, bool anew, GError **err)
{
	off_t end = lseek(s->fd, 0, SEEK_END);

	s->bytes = (DM_LOG_BITMAP_OFFSET + dm_log_bitmap_bytes(regions) + SECTOR - 1) / SECTOR * SECTOR;
	if (end < 0 || (uint64_t)end < s->bytes)
		return dm_fail(err, EINVAL, "log device %s too small: need %zu bytes for %" PRIu64 " regions, it has %lld", path,
			       s->bytes, regions, (long long)end), false;
	s->area = g_try_malloc0(s->bytes);
	s->changed = g_try_malloc0(s->bytes / BLOCK / 8 + 1);
	if (!s->area || !s->changed)
		return dm_fail(err, ENOMEM, "no memory for a log of %zu bytes", s->bytes), false;
	if (!read_all(s->fd, s->area, s->bytes, 0))
		return dm_fail(err, errno, "log device %s: %s", path, g_strerror(errno)), false;
	if (!check(s, path, regions, anew, err))
		return false;
	if (!s->is_log)
		memset(s->area + DM_LOG_BITMAP_OFFSET, 0, s->bytes - DM_LOG_BITMAP_OFFSET);
	for (uint64_t r = regions; r < dm_log_bitmap_bytes(regions) * 8; r++)
		dm_region_bit_clear(s->area + DM_LOG_BITMAP_OFFSET, r);
	dm_log_put_header(s->area, regions);
	return true;
}

struct log_store *log_store_open(const char *path, uint64_t regions, bool anew, GError **err)
{
	struct log_store *s;
	int fd = open_locked(path, err);

	if (fd < 0)
		return NULL;
	s = g_new0(struct log_store, 1);
	s->fd = fd;
	s->letter = 'A';
	s->changed_first = 1;
	if (fill(s, path, regions, anew, err))
		return s;
	log_store_free(s);
	return NULL;
}

void log_store_free(struct log_store *s)
{
	if (!s)
		return;
	close(s->fd);
	g_free(s->area);
	g_free(s->changed);
	g_free(s);
}

/* --- bits ----------------------------------------------------------------------------- */

bool log_store_is_log(const struct log_store *s)
{
	return s->is_log;
}

bool log_store_is_clean(const struct log_store *s, uint64_t region)
{
	return dm_region_bit_test(s->area + DM_LOG_BITMAP_OFFSET, region);
}

static void note(struct log_store *s, size_t block)
{
	bool none = s->changed_first > s->changed_last;

	dm_region_bit_set(s->changed, block);
	s->changed_first = none ? block : MIN(s->changed_first, block);
	s->changed_last = none ? block : MAX(s->changed_last, block);
}

void log_store_set_clean(struct log_store *s, uint64_t region, bool clean)
{
	uint8_t *bits = s->area + DM_LOG_BITMAP_OFFSET;

	if (dm_region_bit_test(bits, region) == clean)
		return;
	if (clean)
		dm_region_bit_set(bits, region);
	else
		dm_region_bit_clear(bits, region);
	s->marked |= !clean;
	note(s, (DM_LOG_BITMAP_OFFSET + region / 8) / BLOCK);
}

void log_store_set_all(struct log_store *s)
{
	for (size_t block = 0; block * BLOCK < s->bytes; block++)
		note(s, block);
	s->marked = true;
}

int log_store_commit(struct log_store *s)
{
	for (size_t b = s->changed_first; b <= s->changed_last; b++) {
		size_t at = b * BLOCK;

		if (!dm_region_bit_test(s->changed, b))
			continue;
		if (!write_all(s->fd, s->area + at, MIN(BLOCK, s->bytes - at), (off_t)at)) {
			s->letter = 'D';
			s->changed_first = b;
			return -(errno ? errno : EIO);
		}
		dm_region_bit_clear(s->changed, b);
	}
	s->changed_first = 1;
	s->changed_last = 0;
	if (s->marked && fdatasync(s->fd)) {
		s->letter = 'F';
		return -errno;
	}
	s->marked = false;
	return 0;
}

char log_store_letter(const struct log_store *s)
{
	return s->letter;
}
