/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading what is looked into: a file, an image of the mount, or memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "open.h"

int src_open(const char *path, struct src *out, GError **err)
{
	struct stat st;

	*out = (struct src){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
	if (out->fd < 0)
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	if (!fstat(out->fd, &st) && S_ISREG(st.st_mode)) {
		out->size = (uint64_t)st.st_size;
		return 0;
	}
	if (S_ISBLK(st.st_mode) && !ioctl(out->fd, BLKGETSIZE64, &out->size))
		return 0;
	src_close(out);
	return fail(err, EINVAL, "%s is neither a file nor a block device", path);
}

void src_close(struct src *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

int src_read(const struct src *s, uint64_t at, void *out, size_t len)
{
	uint8_t *to = out;

	if (at > s->size || len > s->size - at)
		return -EIO;
	if (s->mem) {
		memcpy(out, s->mem + at, len);
		return 0;
	}
	while (len) {
		ssize_t n = pread(s->fd, to, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		to += n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
