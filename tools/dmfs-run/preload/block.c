/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ioctl(2) of block devices (<linux/fs.h>), on an image or a disk, as the file operations that mean the same.
 * Others are ENOTTY, as of a device that does not know them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/blkzoned.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/hdreg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "run.h"

/* A number of the queue's attributes in the shadow. */
static uint64_t attribute(const struct node *n, const char *name, uint64_t otherwise)
{
	AUTO_TEXT t = {0};
	char path[PATH_MAX];

	shadow_sync();
	path_format(path, "%s/sys/dev/block/%u:%u/%s", run.shadow,
		    n->kind == NODE_MAPPED ? run.dm_major : run.disk_major, n->minor, name);
	return file_read(path, &t) || !t.len ? otherwise : strtoull(t.s, NULL, 10);
}

/* In whole pages, as the kernel keeps it.  The file is where libdevmapper looks first. */
static int set_read_ahead(const struct node *n, unsigned long sectors)
{
	char path[PATH_MAX], text[32];
	int len, error;

	shadow_sync();
	if (!path_format(path, "%s/sys/dev/block/%u:%u/bdi/read_ahead_kb", run.shadow,
			 n->kind == NODE_MAPPED ? run.dm_major : run.disk_major, n->minor))
		return -ENAMETOOLONG;
	len = snprintf(text, sizeof text, "%lu\n", sectors / 8 * 4);
	error = file_write(path, text, (size_t)len, O_TRUNC);
	return error;
}

/*
 * What is in the page cache goes to the device and is forgotten.  The device itself is not told to make it durable, as the
 * kernel does not; a disk's file is written out wholly.
 */
static int flush_buffers(int fd, const struct node *n)
{
	int r = n->kind == NODE_MAPPED ?
			sync_file_range(fd, 0, 0,
					SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) :
			fsync(fd);

	if (r && errno != EROFS && errno != EINVAL && errno != EBADF)
		return -errno;
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return 0;
}

static int size_of(int fd, uint64_t *bytes)
{
	struct stat st;

	if (NEXT(fstat)(fd, &st))
		return -errno;
	*bytes = (uint64_t)st.st_size & ~(uint64_t)511;
	return 0;
}

/* [offset, +length) in bytes, of whole blocks and within the device. */
static int check_range(int fd, const struct node *n, const uint64_t range[2])
{
	uint64_t block = attribute(n, "queue/logical_block_size", 512), size, end;
	int error = size_of(fd, &size), flags = NEXT(fcntl)(fd, F_GETFL);

	if (error)
		return error;
	if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
		return -EBADF;
	if (range[0] % block || range[1] % block || !range[1] || __builtin_add_overflow(range[0], range[1], &end) ||
	    end > size)
		return -EINVAL;
	return 0;
}

static int write_zeroes(int fd, uint64_t offset, uint64_t length)
{
	static const char zeros[1 << 16];

	while (length) {
		ssize_t n = NEXT(pwrite)(fd, zeros, length < sizeof zeros ? length : sizeof zeros, (off_t)offset);

		if (n < 0 && errno != EINTR)
			return -errno;
		offset += n > 0 ? (uint64_t)n : 0;
		length -= n > 0 ? (uint64_t)n : 0;
	}
	return 0;
}

static int discard(int fd, const struct node *n, const uint64_t range[2])
{
	int error = check_range(fd, n, range);

	if (error)
		return error;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]) ? -errno : 0;
}

static int zero_out(int fd, const struct node *n, const uint64_t range[2])
{
	int error = check_range(fd, n, range);

	if (error)
		return error;
	if (!fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]))
		return 0;
	if (errno != EOPNOTSUPP)
		return -errno;
	return write_zeroes(fd, range[0], range[1]);
}

/* What set_geometry left of a mapped device; of a disk what its size makes, as of a loop device. */
static int geometry(int fd, const struct node *n, struct hd_geometry *out)
{
	AUTO_TEXT t = {0};
	char path[PATH_MAX];
	unsigned long v[4] = {0};
	uint64_t size;

	if (n->kind == NODE_MAPPED) {
		path_format(path, "%s/geometry/%u", run.shadow, n->minor);
		if (!file_read(path, &t) && sscanf(text_get(&t), "%lu %lu %lu %lu", &v[0], &v[1], &v[2], &v[3]) != 4)
			return -ENOTTY;
	} else {
		if (size_of(fd, &size))
			return -ENOTTY;
		v[0] = (size >> 9) / (16 * 63);
		v[1] = 16;
		v[2] = 63;
	}
	*out = (struct hd_geometry){.heads = (unsigned char)v[1],
				    .sectors = (unsigned char)v[2],
				    .cylinders = (unsigned short)v[0],
				    .start = v[3]};
	return 0;
}

#define ANSWER(type, value)                                                                                            \
	do {                                                                                                           \
		type answer_ = (type)(value);                                                                          \
		if (!arg)                                                                                              \
			return -EFAULT;                                                                                \
		memcpy(arg, &answer_, sizeof answer_);                                                                 \
		return 0;                                                                                              \
	} while (0)

static int sizes(int fd, unsigned long request, void *arg)
{
	uint64_t size;
	int error = size_of(fd, &size);

	if (error)
		return error;
	if (request == BLKGETSIZE64)
		ANSWER(uint64_t, size);
	if (size >> 9 > ULONG_MAX)
		return -EFBIG;
	ANSWER(unsigned long, size >> 9);
}

int block_ioctl(int fd, const struct node *n, unsigned long request, void *arg)
{
	switch (request) {
	case BLKGETSIZE64:
	case BLKGETSIZE:
		return sizes(fd, request, arg);
	case BLKSSZGET:
		ANSWER(int, attribute(n, "queue/logical_block_size", 512));
	case BLKPBSZGET:
		ANSWER(unsigned, attribute(n, "queue/physical_block_size", 512));
	case BLKBSZGET:
		ANSWER(int, 4096);
	case BLKRASET:
	case BLKFRASET:
		return set_read_ahead(n, (unsigned long)arg);
	case BLKBSZSET:
	case BLKROSET:
		return 0;
	case BLKIOMIN:
		ANSWER(unsigned, attribute(n, "queue/minimum_io_size", 512));
	case BLKIOOPT:
		ANSWER(unsigned, attribute(n, "queue/optimal_io_size", 0));
	case BLKALIGNOFF:
		ANSWER(int, 0);
	case BLKRAGET:
	case BLKFRAGET:
		ANSWER(long, attribute(n, "bdi/read_ahead_kb", READ_AHEAD_KB) * 2);
	case BLKSECTGET:
		ANSWER(unsigned short, 2048);
	case BLKROTATIONAL:
		ANSWER(unsigned short, 0);
	case BLKDISCARDZEROES:
		ANSWER(unsigned, 0);
	case BLKROGET:
		ANSWER(int, attribute(n, "ro", 0));
	case BLKFLSBUF:
		return flush_buffers(fd, n);
	case BLKDISCARD:
		return arg ? discard(fd, n, arg) : -EFAULT;
	case BLKZEROOUT:
		return arg ? zero_out(fd, n, arg) : -EFAULT;
	case BLKSECDISCARD:
		return -EOPNOTSUPP;
	case BLKGETZONESZ:
	case BLKGETNRZONES:
		ANSWER(unsigned, 0);
	case BLKRRPART:
		return -EINVAL; /* as of a device that has no partitions */
	case HDIO_GETGEO:
		return arg ? geometry(fd, n, arg) : -EFAULT;
	default:
		return -ENOTTY;
	}
}
