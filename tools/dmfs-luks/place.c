/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a volume's data may be where it is said to be: not on its own
 * header, not on another's, and not where somebody else is writing.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "around.h"
#include "luks.h"
#include "storage.h"

#define LOCK_US 500000
#define LOCK_TRIES 25

/* --- the file alone -------------------------------------------------------------------------------- */

static int open_fail(GError **err, int code, const char *file, bool readonly)
{
	if (!readonly && (code == EACCES || code == EROFS || code == EPERM))
		return fail(err, code, "%s cannot be written (%s): -r opens it for reading only", file,
			    g_strerror(code));
	if (code == EBUSY)
		return fail(err, EBUSY, "%s is in use: it is mounted, or another device is made of it", file);
	return fail(err, code, "%s: %s", file, g_strerror(code));
}

/* Another program's lock on a part of the file, as qemu has it on an image. */
static bool is_locked(int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK;
}

/* Who notes how far wiping is (wipe.c) has it for a moment. */
static bool lock_soon(int fd)
{
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (!flock(fd, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK)
			return true;
		g_usleep(LOCK_US / LOCK_TRIES);
	}
	return false;
}

/* Two that open the same file at the same time must not both find that nobody uses it. */
static int lock_file(int fd, const char *file, const char *way_out, GError **err)
{
	if (!lock_soon(fd))
		return fail(err, EBUSY, "%s is being opened or locked by another program (see lslocks): %s", file, way_out);
	if (is_locked(fd))
		return fail(err, EBUSY, "%s is in use: another program has locked it (see lslocks); %s", file, way_out);
	return 0;
}

int place_claim(const char *file, bool readonly, bool shared, const char *way_out, int *claim, GError **err)
{
	int flags = readonly ? O_RDONLY : O_RDWR, fd = open(file, flags | O_CLOEXEC | O_NONBLOCK), unwritable = 0, r;
	struct stat st;

	*claim = -1;
	if (fd < 0)
		return open_fail(err, errno, file, readonly);
	if (!readonly && !ioctl(fd, BLKROGET, &unwritable) && unwritable) {
		close(fd);
		return open_fail(err, EROFS, file, false);
	}
	if (readonly || shared || fstat(fd, &st)) {
		close(fd);
		return 0;
	}
	if (S_ISBLK(st.st_mode)) {
		close(fd);
		fd = open(file, flags | O_EXCL | O_CLOEXEC | O_NONBLOCK);
		r = fd < 0 ? open_fail(err, errno, file, false) : 0;
		if (fd >= 0)
			close(fd); /* dmfs and libcryptsetup claim it themselves */
		return r;
	}
	r = lock_file(fd, file, way_out, err);
	if (r)
		close(fd);
	else
		*claim = fd;
	return r;
}

/* --- in use ---------------------------------------------------------------------------------------- */

int place_unused(const char *file, uint64_t from, uint64_t to, const char *way_out, GError **err)
{
	g_autoptr(GPtrArray) extents = storage_extents(file, from, to);
	g_autofree char *user = storage_other_user(extents);

	if (user)
		return fail(err, EBUSY, "%s is in use: %s writes to it; %s", file, user, way_out);
	return 0;
}

void place_warn(const char *file)
{
	g_autofree char *silent = around_silent();

	if (silent)
		g_printerr("%s: whether it is in use there is not known, as these do not answer: %s\n", file, silent);
}

/* --- headers --------------------------------------------------------------------------------------- */

static bool reads_as(const char *file, uint64_t at, void *buf, size_t len)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	bool all = fd >= 0 && pread(fd, buf, len, (off_t)at) == (ssize_t)len;

	if (fd >= 0)
		close(fd);
	return all;
}

/* The very same header where the data is: the same storage by a way that nobody sees, or a copy put there by mistake.
 */
static bool has_copy(const struct place *p)
{
	uint8_t header[512], there[512];

	return p->header_from < p->to && p->from < p->header_to && reads_as(p->header, p->header_from, header, 512) &&
	       reads_as(p->file, p->header_from, there, 512) && !memcmp(header, there, 512);
}

static int on_own_header(const struct place *p, GError **err)
{
	if (!strcmp(p->file, p->header))
		return fail(err, EINVAL,
			    "%s: its data would begin at byte %" PRIu64 ", within its own header, which ends at byte "
			    "%" PRIu64 ": it seems to be a detached header; name the file that holds the data, and "
			    "this one with --header",
			    p->file, p->from, p->header_to);
	return fail(err, EINVAL,
		    "%s: its data would be where its header %s is (bytes %" PRIu64 " to %" PRIu64
		    "): both are the same storage; name the file that holds the data",
		    p->file, p->header, p->header_from, p->header_to);
}

int place_check(const struct place *p, const struct options *o, GError **err)
{
	g_autoptr(GPtrArray) data = storage_extents(p->file, p->from, p->to);
	g_autoptr(GPtrArray) header = storage_extents(p->header, p->header_from, p->header_to);
	bool detached = strcmp(p->file, p->header);
	uint8_t start[HEADER_SNIFF_BYTES];
	const char *kind;

	if (storage_overlap(data, header))
		return on_own_header(p, err);
	if (detached && has_copy(p))
		return fail(err, EINVAL,
			    "%s has the very header of %s at byte %" PRIu64 ", where its data would be: both are "
			    "the same storage, or one is a copy of the other; name the file that holds the data",
			    p->file, p->header, p->header_from);
	kind = detached && reads_as(p->file, p->from, start, sizeof(start)) ? header_kind(start) : NULL;
	if (kind)
		return fail(err, EINVAL,
			    "%s has a %s header of its own where the data of %s would be, which would destroy it: "
			    "name the file that holds the data (or wipe the old header, as with wipefs -a)",
			    p->file, kind, p->header);
	if (o->readonly || o->shared)
		return 0;
	return place_unused(p->file, p->from, p->to, PLACE_CLOSE_FIRST, err);
}
