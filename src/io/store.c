/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The store every table begins with: a regular file or a block device.
 *
 * I/O is done by system calls in the submitting thread.  Where a call might wait for the disk it is tried with
 * RWF_NOWAIT first.  If that fails the thread waits in it, unless as many as may do that for one file system
 * (fs_share.h); a file on tmpfs never waits.
 *
 * Each table has stores of its own; those of one path and mode share what is open (shared_file.h).
 *
 * A file is never made longer: what is beyond its end fails with EIO.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fs_share.h"
#include "opener.h"
#include "shared_file.h"
#include "store.h"
#include "zoned.h"

#include <dmfs/error.h>
#include <dmfs/hold.h>

#ifndef FALLOC_FL_PUNCH_HOLE
#include <linux/falloc.h>
#endif

struct store {
	struct dm_dev dev;
	struct shared_file *file;
	int fd; /* the file's */
	unsigned errors_seen; /* of the file's, told by a FLUSH; under the file's lock */
	bool block_device, never_waits;
	atomic_bool no_nowait_read, no_nowait_write, no_discard, no_zero_range;
	uint64_t device_sectors; /* of a block device */
	struct dm_limits limits;
};

static struct store *to_store(struct dm_dev *dev)
{
	return (struct store *)dev;
}

/* --- reads and writes ------------------------------------------------------------- */

#define MAX_IOV 64

/* One preadv2 or pwritev2 of the rest of an iov from `done` on. */
static ssize_t transfer_once(struct store *s, struct dm_bio *bio, size_t done, int flags)
{
	struct iovec rest[MAX_IOV];
	off_t at = (off_t)(bio->sector << DM_SECTOR_SHIFT) + (off_t)done;
	int fd = flags & RWF_DSYNC ? s->file->dsync_fd : s->fd;
	const struct iovec *iov = bio->iov;
	int n = bio->iovcnt;

	if (n == 1) {
		rest[0] = (struct iovec){(char *)iov->iov_base + done, iov->iov_len - done};
		iov = rest;
	} else if (done || n > MAX_IOV) {
		size_t skip = done;

		n = 0;
		for (int i = 0; i < bio->iovcnt && n < MAX_IOV; i++) {
			if (skip >= bio->iov[i].iov_len) {
				skip -= bio->iov[i].iov_len;
				continue;
			}
			rest[n].iov_base = (char *)bio->iov[i].iov_base + skip;
			rest[n++].iov_len = bio->iov[i].iov_len - skip;
			skip = 0;
		}
		iov = rest;
	}
	/* not libc's, a cancellation point that costs two atomic operations; the offset is in halves for 32 bits */
	return syscall(bio->op == DM_READ ? SYS_preadv2 : SYS_pwritev2, fd, iov, n, (long)at,
		       (long)((uint64_t)at >> 32), flags);
}

/*
 * Whether sector `end` is beyond the end that the file has now: it was long enough when the table was loaded, and
 * somebody has cut it since.  Writing there would make it grow again, with holes where data was.  (lseek(2) is the
 * cheapest call that tells; the position is nobody's.)
 */
static bool cut_short(const struct store *s, uint64_t end)
{
	off_t size = s->block_device ? -1 : lseek(s->fd, 0, SEEK_END);

	return size >= 0 && end > (uint64_t)size >> DM_SECTOR_SHIFT;
}

/* Goes on from *done, and waits if flags do not have RWF_NOWAIT.  0, -EAGAIN or what went wrong. */
static int transfer_rest(struct store *s, struct dm_bio *bio, size_t *done, int flags)
{
	size_t want = bio->sectors << DM_SECTOR_SHIFT;

	if (bio->sector > (uint64_t)INT64_MAX >> DM_SECTOR_SHIFT ||
	    want > INT64_MAX - (bio->sector << DM_SECTOR_SHIFT) ||
	    (bio->op == DM_WRITE && cut_short(s, bio->sector + bio->sectors)))
		return -EIO;
	while (*done < want) {
		ssize_t n = transfer_once(s, bio, *done, flags);

		if (n > 0)
			*done += (size_t)n;
		else if (!n)
			return -EIO; /* cut short beneath us */
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

/* Does what can be done without waiting; false if that was not all. */
static bool transfer_now(struct store *s, struct dm_bio *bio, size_t *done, int *error)
{
	atomic_bool *no_nowait = bio->op == DM_READ ? &s->no_nowait_read : &s->no_nowait_write;

	if ((bio->flags & (DM_FUA | DM_PREFLUSH)) || atomic_load_explicit(no_nowait, memory_order_relaxed))
		return false;
	*error = transfer_rest(s, bio, done, RWF_NOWAIT);
	if (*error == -EOPNOTSUPP)
		atomic_store_explicit(no_nowait, true, memory_order_relaxed);
	/* Any error may be NOWAIT's own, as the end of the file may be. */
	return !*error;
}

static int transfer(struct store *s, struct dm_bio *bio, size_t done)
{
	return transfer_rest(s, bio, &done, bio->op == DM_WRITE && (bio->flags & DM_FUA) ? RWF_DSYNC : 0);
}

/* --- the other operations ------------------------------------------------------------ */

#define BLOCK_PIECE ((uint64_t)1 << 30) /* what a block device is asked to do at once with a range */
#define ZERO_PIECE ((size_t)128 << 10)

/* A disk may take hours for all of it. */
static int block_range(struct store *s, const struct dm_bio *bio, unsigned long request)
{
	uint64_t at = bio->sector << DM_SECTOR_SHIFT, end = at + (bio->sectors << DM_SECTOR_SHIFT);
	int error = 0;

	while (at < end && !error) {
		uint64_t range[2] = {at, MIN(end - at, BLOCK_PIECE)};

		error = ioctl(s->fd, request, range) < 0 ? -errno : 0;
		at += range[1];
		if (!error && at < end)
			error = dm_bio_stop_long(bio);
	}
	return error;
}

static int punch(struct store *s, const struct dm_bio *bio)
{
	uint64_t offset = bio->sector << DM_SECTOR_SHIFT, bytes = bio->sectors << DM_SECTOR_SHIFT;

	if (s->block_device)
		return block_range(s, bio, BLKDISCARD);
	return fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) < 0 ? -errno
													  : 0;
}

static int discard(struct store *s, struct dm_bio *bio)
{
	int error;

	if (atomic_load(&s->no_discard))
		return -EOPNOTSUPP;
	error = punch(s, bio);
	if (error == -EOPNOTSUPP || error == -ENOSYS || error == -ENODEV) {
		atomic_store(&s->no_discard, true);
		error = -EOPNOTSUPP;
	}
	return error;
}

static int write_zero_buffers(struct store *s, const struct dm_bio *bio)
{
	uint64_t at = bio->sector << DM_SECTOR_SHIFT, end = at + (bio->sectors << DM_SECTOR_SHIFT);
	g_autofree char *zeroes = g_malloc0(ZERO_PIECE);
	int error = 0;

	while (at < end && !error) {
		ssize_t n = pwrite(s->fd, zeroes, MIN(end - at, ZERO_PIECE), (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (uint64_t)n;
		error = at < end ? dm_bio_stop_long(bio) : 0;
	}
	return error;
}

static int write_zeroes(struct store *s, struct dm_bio *bio)
{
	if (s->block_device)
		return block_range(s, bio, BLKZEROOUT);
	if (!(bio->flags & DM_NOUNMAP) && !atomic_load(&s->no_discard)) {
		/* A hole in a file reads as zeroes. */
		int error = discard(s, bio);

		if (error != -EOPNOTSUPP)
			return error;
	}
	if (!atomic_load(&s->no_zero_range)) {
		if (!fallocate(s->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
			       (off_t)(bio->sector << DM_SECTOR_SHIFT), (off_t)(bio->sectors << DM_SECTOR_SHIFT)))
			return 0;
		if (errno != EOPNOTSUPP && errno != ENOSYS)
			return -errno;
		atomic_store(&s->no_zero_range, true);
	}
	return write_zero_buffers(s, bio);
}

/* A FLUSH tells of all errors since the last one.  What else makes a bio durable leaves them to the next FLUSH, too. */
static int make_durable(struct store *s, bool flush)
{
	return s->never_waits ? 0 /* nothing is written back */ : shared_file_sync(s->file, &s->errors_seen, flush);
}

static int no_data_op(struct store *s, struct dm_bio *bio)
{
	uint64_t end;

	if (bio->op == DM_FLUSH)
		return make_durable(s, true);
	if (dm_op_manages_zones(bio->op))
		return -EOPNOTSUPP;
	if (__builtin_add_overflow(bio->sector, bio->sectors, &end) || end > (uint64_t)INT64_MAX >> DM_SECTOR_SHIFT)
		return -EIO;
	if (!bio->sectors)
		return 0;
	if (cut_short(s, end))
		return -EIO;
	if (bio->op == DM_PROVISION) /* the file is the user's, who may want it sparse */
		return 0;
	return bio->op == DM_DISCARD ? discard(s, bio) : write_zeroes(s, bio);
}

static int no_data(struct store *s, struct dm_bio *bio)
{
	int error = no_data_op(s, bio);

	if (!error && (bio->flags & DM_FUA) && bio->op != DM_FLUSH)
		error = make_durable(s, false);
	return error;
}

/* All that is left of a bio, of which `done` bytes were transferred; may wait. */
static int perform(struct store *s, struct dm_bio *bio, size_t done)
{
	int error = (bio->flags & DM_PREFLUSH) && bio->op == DM_WRITE ? make_durable(s, true) : 0;

	if (error)
		return error;
	if (bio->op == DM_ZONE_APPEND)
		return -EOPNOTSUPP;
	return dm_op_has_data(bio->op) ? transfer(s, bio, done) : no_data(s, bio);
}

static void perform_queued(struct dm_bio *bio)
{
	dm_bio_end(bio, perform(to_store(bio->dev), bio, 0));
}

static bool moves_data(const struct dm_bio *bio)
{
	return bio->op == DM_READ || bio->op == DM_WRITE;
}

static void store_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct store *s = to_store(dev);
	size_t done = 0;
	int error = 0;

	if (s->never_waits) {
		dm_bio_end(bio, perform(s, bio, 0));
	} else if (moves_data(bio) && !fs_share_far(s->file->share) && transfer_now(s, bio, &done, &error)) {
		dm_bio_end(bio, 0);
	} else if (fs_share_enter(s->file->share)) {
		error = perform(s, bio, done);
		fs_share_leave(s->file->share);
		dm_bio_end(bio, error);
	} else {
		fs_share_queue(s->file->share, bio, perform_queued);
	}
}

/* --- what it is ------------------------------------------------------------------------ */

static uint64_t store_sectors(struct dm_dev *dev)
{
	struct store *s = to_store(dev);
	struct stat st;

	if (s->block_device) {
		uint64_t bytes;

		return ioctl(s->fd, BLKGETSIZE64, &bytes) ? s->device_sectors : bytes >> DM_SECTOR_SHIFT;
	}
	return fstat(s->fd, &st) ? 0 : (uint64_t)st.st_size >> DM_SECTOR_SHIFT;
}

/*
 * SEEK_DATA and SEEK_HOLE count in bytes, extents in sectors: a sector is a hole only if all of it is.  What is past
 * the end of a file that was cut short beneath us is none: it cannot be read.
 */
static void find_extent(struct store *s, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	off_t at = (off_t)(sector << DM_SECTOR_SHIFT), data, hole;
	uint64_t all = store_sectors(&s->dev);

	if (sector >= all)
		return;
	sectors = out->sectors = MIN(sectors, all - sector);
	data = lseek(s->fd, at, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return; /* cannot tell */
	if (data < 0) { /* no more data */
		out->data = false;
	} else if ((uint64_t)data >> DM_SECTOR_SHIFT > sector) {
		out->data = false;
		out->sectors = MIN(sectors, ((uint64_t)data >> DM_SECTOR_SHIFT) - sector);
	} else if ((hole = lseek(s->fd, MAX(at, data), SEEK_HOLE)) >= 0) {
		uint64_t end = ((uint64_t)hole + DM_SECTOR_SIZE - 1) >> DM_SECTOR_SHIFT;

		out->sectors = MIN(sectors, MAX(end, sector + 1) - sector);
	}
}

/* What cannot be asked, as too many wait for an answer already, is data. */
static int store_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct store *s = to_store(dev);

	*out = (struct dm_extent){.data = true, .sectors = sectors};
	if (!s->block_device && fs_share_enter(s->file->share)) {
		find_extent(s, sector, sectors, out);
		fs_share_leave(s->file->share);
	}
	return 0;
}

/* Of the whole file: where its blocks lie in it could only be read. */
static uint64_t store_provisioned(struct dm_dev *dev, uint64_t sector, uint64_t sectors)
{
	struct store *s = to_store(dev);
	struct statx st;

	if (s->block_device || statx(s->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BLOCKS, &st) < 0 ||
	    !(st.stx_mask & STATX_BLOCKS))
		return sectors;
	return st.stx_blocks;
}

static void store_limits(struct dm_dev *dev, struct dm_limits *out)
{
	struct store *s = to_store(dev);

	*out = s->limits;
	if (atomic_load(&s->no_discard))
		out->max_discard_sectors = 0;
}

static void store_print(struct dm_dev *dev, GString *out)
{
	dm_quote_word(to_store(dev)->file->path, out);
}

static void store_identity(struct dm_dev *dev, uint64_t id[3])
{
	struct store *s = to_store(dev);

	id[0] = s->block_device;
	id[1] = s->file->st_dev;
	id[2] = s->file->st_ino;
}

static int store_file(struct dm_dev *dev)
{
	return to_store(dev)->fd;
}

static void store_free(struct dm_dev *dev)
{
	struct store *s = to_store(dev);

	shared_file_put(s->file);
	g_free(s);
}

static const struct dm_dev_ops store_ops = {
	.submit = store_submit,
	.sectors = store_sectors,
	.extent = store_extent,
	.provisioned = store_provisioned,
	.limits = store_limits,
	.print = store_print,
	.identity = store_identity,
	.file = store_file,
	.free = store_free,
};

/* --- opening ---------------------------------------------------------------------------- */

/*
 * For another user the links of /proc that are no paths do not count: an open of /proc/self/fd/3, or of a symlink to
 * it, would come by what the daemon has open, through directories that this user may not enter.
 */
static int open_path(const char *absolute, bool own_links)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = own_links ? 0 : RESOLVE_NO_MAGICLINKS};
	long fd = syscall(SYS_openat2, AT_FDCWD, absolute, &how, sizeof how);

	if (fd < 0 && errno == ENOSYS)
		fd = open(absolute, O_PATH | O_CLOEXEC);
	return (int)fd;
}

int dm_store_find(const struct dm_opener *who, const char *absolute, struct dm_store_path *out, GError **err)
{
	struct dm_opener_saved saved;
	int error = 0;

	*out = (struct dm_store_path){.fd = -1};
	dm_block_begin();
	if (!dm_opener_assume(who, &saved))
		error = EPERM;
	else if ((out->fd = open_path(absolute, !saved.assumed)) < 0 || fstat(out->fd, &out->st) < 0)
		error = errno;
	dm_block_end();
	dm_opener_restore(&saved);
	if (error) {
		dm_store_path_clear(out);
		return dm_fail(err, error, "%s: %s", absolute, g_strerror(error));
	}
	out->path = g_strdup(absolute);
	return 0;
}

void dm_store_path_clear(struct dm_store_path *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	g_clear_pointer(&p->path, g_free);
}

/*
 * A file of a server that may be away: FUSE, NFS, SMB in three versions, 9p, Ceph, AFS, Coda, Lustre, GPFS, OCFS2,
 * GFS2.
 */
static bool is_far(unsigned long magic)
{
	static const unsigned long far[] = {0x65735546, 0x6969,	    0x517b,	0xff534d42, 0xfe534d42, 0x01021997, 0x00c36400,
					    0x5346414f, 0x73757245, 0x0bd00bd0, 0x47504653, 0x7461636f, 0x01161970};

	for (unsigned i = 0; i < G_N_ELEMENTS(far); i++)
		if (magic == far[i])
			return true;
	return false;
}

static bool on_memory(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

static struct fs_share *get_share(const struct shared_file *f)
{
	struct statfs fs;
	bool far = !f->block_device && !fstatfs(f->fd, &fs) && is_far((unsigned long)fs.f_type & 0xffffffff);

	return fs_share_get(f->st_dev, f->block_device, far, f->path);
}

/* A number from a block device's queue, which a partition shares with its disk; fallback if it is not told. */
static uint64_t queue_number(dev_t dev, const char *name, uint64_t fallback)
{
	for (unsigned up = 0; up < 2; up++) {
		g_autofree char *path = g_strdup_printf("/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev),
							up ? "../" : "", name);
		g_autofree char *text = NULL;

		if (g_file_get_contents(path, &text, NULL, NULL))
			return g_ascii_strtoull(text, NULL, 10);
	}
	return fallback;
}

static void ask_limits(struct store *s)
{
	uint64_t granularity = 4096, discards = 1;
	int logical = DM_SECTOR_SIZE;
	unsigned physical = DM_SECTOR_SIZE;

	if (s->block_device) {
		discards = queue_number(s->file->st_dev, "discard_max_bytes", 1);
		granularity = queue_number(s->file->st_dev, "discard_granularity", 0);
		if (ioctl(s->fd, BLKSSZGET, &logical) < 0)
			logical = DM_SECTOR_SIZE;
		if (ioctl(s->fd, BLKPBSZGET, &physical) < 0)
			physical = (unsigned)logical;
	}
	s->limits = (struct dm_limits){
		.logical_block_size = (unsigned)logical,
		.physical_block_size = physical,
		.max_discard_sectors = discards ? UINT64_MAX : 0, /* the kernel cuts BLKDISCARD itself */
		.discard_granularity = MAX((unsigned)MIN(granularity, 1u << 31), (unsigned)logical),
		.discard_zeroes = !s->block_device,
	};
}

/* Opens the file itself; the O_PATH descriptor makes sure it is what was looked at.  0 or an errno. */
static int open_fds(const struct dm_opener *who, const struct dm_store_path *p, struct shared_file *f)
{
	g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", p->fd);
	int flags = (f->mode & DM_MODE_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK, error = 0;
	int exclusive = f->block_device && (f->mode & DM_MODE_WRITE) ? O_EXCL : 0; /* not while it is mounted */
	struct dm_opener_saved saved;

	f->fd = f->dsync_fd = -1;
	dm_block_begin();
	if (!dm_opener_assume(who, &saved))
		error = EPERM;
	else if ((f->fd = open(self, flags | exclusive)) < 0)
		error = errno;
	else if ((f->mode & DM_MODE_WRITE) && (f->dsync_fd = open(self, flags)) < 0)
		error = errno;
	dm_block_end();
	dm_opener_restore(&saved);
	if (error && f->fd >= 0)
		close(f->fd);
	return error;
}

static int move_up(int fd)
{
	int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FS_SHARE_FAR_FDS);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

static bool may_open(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode)
{
	g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", p->fd);
	struct dm_opener_saved saved;
	bool ok = dm_opener_assume(who, &saved);

	if (ok && saved.assumed) {
		int fd = open(self, (mode & DM_MODE_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);

		ok = fd >= 0;
		if (ok)
			close(fd);
	} else if (ok) {
		ok = !faccessat(AT_FDCWD, self, R_OK | (mode & DM_MODE_WRITE ? W_OK : 0), AT_EACCESS);
	}
	dm_opener_restore(&saved);
	return ok;
}

/* What is open already, if the opener may open it too, or opened by him. */
static int get_file(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode,
		    struct shared_file **out, GError **err)
{
	bool block = S_ISBLK(p->st.st_mode);
	struct shared_file key = {.mode = mode,
				  .block_device = block,
				  .st_dev = block ? p->st.st_rdev : p->st.st_dev,
				  .st_ino = block ? 0 : p->st.st_ino,
				  .path = p->path};
	int error;

	*out = shared_file_find(&key);
	if (*out && !may_open(who, p, mode)) {
		shared_file_put(*out);
		return dm_fail(err, EACCES, "%s: %s", p->path, g_strerror(EACCES));
	}
	if (*out)
		return 0;
	error = open_fds(who, p, &key);
	if (error)
		return dm_fail(err, error, "%s: %s", p->path, g_strerror(error));
	key.path = g_strdup(p->path);
	key.share = get_share(&key);
	if (fs_share_far(key.share)) {
		key.fd = move_up(key.fd);
		key.dsync_fd = move_up(key.dsync_fd);
	}
	*out = shared_file_new(&key);
	return 0;
}

int dm_store_open(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode, struct dm_dev **out,
		  GError **err)
{
	struct shared_file *file;
	struct store *s;
	int error;

	if (S_ISDIR(p->st.st_mode))
		return dm_fail(err, EISDIR, "%s is a directory, not a file or block device", p->path);
	if (!S_ISREG(p->st.st_mode) && !S_ISBLK(p->st.st_mode))
		return dm_fail(err, ENOTBLK, "%s is neither a regular file nor a block device", p->path);
	dm_block_begin();
	error = get_file(who, p, mode, &file, err);
	dm_block_end();
	if (error)
		return error;
	s = g_new0(struct store, 1);
	s->dev.ops = &store_ops;
	s->dev.mode = mode;
	atomic_init(&s->dev.refs, 1);
	s->file = file;
	s->fd = file->fd;
	s->errors_seen = shared_file_errors(file);
	s->block_device = file->block_device;
	dm_block_begin();
	s->never_waits = !s->block_device && on_memory(s->fd);
	if (s->block_device)
		ioctl(s->fd, BLKGETSIZE64, &s->device_sectors), s->device_sectors >>= DM_SECTOR_SHIFT;
	ask_limits(s);
	dm_block_end();
	*out = &s->dev;
	return s->block_device ? dm_zoned_block_wrap(out, err) : dm_zoned_file_wrap(who, p, mode, out, err);
}

/* As much as there is, up to room bytes; or a negative errno. */
static ssize_t read_whole(int fd, char *buf, size_t room)
{
	size_t done = 0;

	while (done < room) {
		ssize_t n = read(fd, buf + done, room - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int dm_store_read_file(const struct dm_opener *who, const struct dm_store_path *p, size_t max, GBytes **out,
		       GError **err)
{
	struct shared_file file = {.mode = DM_MODE_READ};
	g_autofree char *buf = NULL;
	ssize_t n;
	int error;

	if (!S_ISREG(p->st.st_mode))
		return dm_fail(err, EINVAL, "%s is not a regular file", p->path);
	error = open_fds(who, p, &file);
	if (error)
		return dm_fail(err, error, "%s: %s", p->path, g_strerror(error));
	buf = g_malloc(max + 1);
	dm_block_begin();
	n = read_whole(file.fd, buf, max + 1);
	dm_block_end();
	close(file.fd);
	if (n < 0)
		return dm_fail(err, (int)-n, "%s: %s", p->path, g_strerror((int)-n));
	if ((size_t)n > max)
		return dm_fail(err, EFBIG, "%s has more than %zu bytes", p->path, max);
	*out = g_bytes_new(buf, (gsize)n);
	return 0;
}

int dm_store_flush_all(void)
{
	return shared_files_sync();
}

void dm_quote_word(const char *s, GString *out)
{
	const char *word = s;

	for (; *s; s++) {
		if (strchr(" \t\n\r\v\f\\", *s) || (*s == '#' && s == word))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *s);
	}
}
