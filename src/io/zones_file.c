/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The zones file beside a file (zones_text.h): reading it, adding to it, and writing it anew.
 *
 * Two programs that write one disk would each believe their own write pointers.  So who writes has the file locked
 * (fcntl(2), F_OFD_SETLK).  Written anew it is another file that takes the name by rename(2): it is locked before that,
 * and who opens a file and gets its lock looks whether it still has the name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dmfs/error.h>
#include <dmfs/log.h>

#include "opener.h"
#include "zoned.h"

#define NEW_SUFFIX ".new"

struct zones_file {
	struct zones_keeper keeper;
	struct dm_opener who;
	char *path;
	int fd;
	off_t end; /* of what is good */
	bool trim; /* there is something behind it, which a crash has left */
};

static int lock_file(int fd)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	if (!fcntl(fd, F_OFD_SETLK, &fl))
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

static int write_all(int fd, const GString *text, off_t at)
{
	size_t done = 0;

	while (done < text->len) {
		ssize_t n = pwrite(fd, text->str + done, text->len - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int file_append(struct zones_keeper *k, const GString *batch)
{
	struct zones_file *f = (struct zones_file *)k;
	int error = f->trim && ftruncate(f->fd, f->end) < 0 ? -errno : 0;

	if (error)
		return error;
	f->trim = false;
	error = write_all(f->fd, batch, f->end);
	if (!error && fdatasync(f->fd) < 0)
		error = -errno;
	if (!error)
		f->end += (off_t)batch->len;
	else
		f->trim = true;
	return error;
}

static int sync_directory(const char *path)
{
	g_autofree char *dir = g_path_get_dirname(path);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0 && errno != EINVAL)
		error = -errno;
	close(fd);
	return error;
}

/* The new file, locked and with the old one's owner and mode; or a negative errno. */
static int create_new(struct zones_file *f, const char *name)
{
	struct stat st;
	int fd, error;

	if (fstat(f->fd, &st) < 0)
		return -errno;
	unlink(name); /* of a crash: who has the lock is the only one to make it */
	fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	error = lock_file(fd);
	if (fchown(fd, st.st_uid, st.st_gid) < 0 && geteuid() == 0 && !f->who.uid)
		dm_log_warn("zoned: %s: its owner cannot be kept: %s", f->path, g_strerror(errno));
	if (!error && fchmod(fd, st.st_mode & 07777) < 0)
		error = -errno;
	if (!error)
		return fd;
	close(fd);
	unlink(name);
	return error;
}

/* Writes and names the new file; its descriptor or a negative errno. */
static int replace(struct zones_file *f, const char *name, const GString *text)
{
	int fd = create_new(f, name), error;

	if (fd < 0)
		return fd;
	error = write_all(fd, text, 0);
	if (!error && (fsync(fd) < 0 || rename(name, f->path) < 0))
		error = -errno;
	if (!error)
		return fd;
	unlink(name);
	close(fd);
	return error;
}

static int file_rewrite(struct zones_keeper *k, const GString *text)
{
	struct zones_file *f = (struct zones_file *)k;
	g_autofree char *name = g_strconcat(f->path, NEW_SUFFIX, NULL);
	struct dm_opener_saved saved;
	int fd = -EPERM, error = 0;

	if (dm_opener_assume(&f->who, &saved))
		fd = replace(f, name, text);
	if (fd >= 0)
		error = sync_directory(f->path);
	dm_opener_restore(&saved);
	if (fd < 0)
		return fd;
	close(f->fd);
	f->fd = fd;
	f->end = (off_t)text->len;
	f->trim = false;
	return error;
}

static void file_close(struct zones_keeper *k)
{
	struct zones_file *f = (struct zones_file *)k;

	close(f->fd);
	g_free(f->path);
	g_free(f);
}

/* --- opening ----------------------------------------------------------------------------------- */

/* Opens what was found, as its opener; a descriptor or a negative errno. */
static int open_found(const struct dm_opener *who, const struct dm_store_path *p, bool write)
{
	g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", p->fd);
	struct dm_opener_saved saved;
	int fd = -EPERM;

	if (dm_opener_assume(who, &saved)) {
		fd = open(self, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
		if (fd < 0)
			fd = -errno;
	}
	dm_opener_restore(&saved);
	return fd;
}

/* Whether the name is still this file's: 0, or -ESTALE. */
static int same_file(int fd, const char *path)
{
	struct stat a, b;

	if (fstat(fd, &a) < 0 || stat(path, &b) < 0)
		return errno == ENOENT ? -ESTALE : 0; /* else we may not look there */
	return a.st_dev != b.st_dev || a.st_ino != b.st_ino ? -ESTALE : 0;
}

/* -ESTALE: it was written anew meanwhile. */
static int open_once(const struct dm_opener *who, const char *path, bool write, int *out, GError **err)
{
	g_autoptr(GError) why = NULL;
	struct dm_store_path found;
	int fd, error = dm_store_find(who, path, &found, &why);

	if (error == -ENOENT || error == -ENAMETOOLONG) /* then there can be none either */
		return -ENOENT;
	if (error) {
		g_propagate_error(err, g_steal_pointer(&why));
		return error;
	}
	if (!S_ISREG(found.st.st_mode)) {
		dm_store_path_clear(&found);
		return dm_fail(err, EINVAL, "%s is not a regular file", path);
	}
	fd = open_found(who, &found, write);
	dm_store_path_clear(&found);
	if (fd < 0)
		return dm_fail(err, -fd, "%s: %s", path, g_strerror(-fd));
	error = write ? lock_file(fd) : 0;
	if (error == -EAGAIN)
		dm_fail(err, EBUSY, "%s: the zoned disk is in use by another program: its zones file is locked", path);
	else if (error)
		dm_log_warn("zoned: %s cannot be locked (%s): other programs are not kept from it", path,
			    g_strerror(-error));
	error = error == -EAGAIN ? -EBUSY : same_file(fd, path);
	if (error)
		close(fd);
	else
		*out = fd;
	return error;
}

static int read_text(int fd, const char *path, GString *out, GError **err)
{
	char buf[65536];
	ssize_t n;

	while ((n = pread(fd, buf, sizeof buf, (off_t)out->len)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return dm_fail(err, errno, "%s: %s", path, g_strerror(errno));
		g_string_append_len(out, buf, n);
		if (out->len > ZONES_TEXT_MAX)
			return dm_fail(err, EFBIG, "%s has more than %zu bytes", path, ZONES_TEXT_MAX);
	}
	return 0;
}

int zones_file_open(const struct dm_opener *who, const char *path, bool write, struct zones *z,
		    struct zones_keeper **keeper, GError **err)
{
	g_autoptr(GString) text = g_string_new(NULL);
	struct zones_file *f;
	int fd, error;

	do {
		error = open_once(who, path, write, &fd, err);
	} while (error == -ESTALE);
	if (error)
		return error;
	error = read_text(fd, path, text, err);
	if (!error)
		error = zones_parse(text->str, text->len, path, z, err);
	*keeper = NULL;
	if (error || !write) {
		close(fd);
		return error;
	}
	f = g_new0(struct zones_file, 1);
	f->keeper.append = file_append;
	f->keeper.rewrite = file_rewrite;
	f->keeper.close = file_close;
	f->who = *who;
	f->path = g_strdup(path);
	f->fd = fd;
	f->end = (off_t)z->bytes;
	f->trim = text->len > z->bytes;
	*keeper = &f->keeper;
	return 0;
}
