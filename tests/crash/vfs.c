/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VFS for SQLite whose files lie on devices, so that the laboratory sees
 * each of their writes and flushes (vfs.h).
 *
 * A file on a device: sector 0 is its head, which says whether it exists and
 * how long it is; its bytes follow from sector 1 on, 504 in each sector, and the
 * head's generation when they were written.  Creating and emptying a file makes
 * a new generation, and sectors of others read as zeroes: a file system shows no bytes of
 * a file's past either.  All is written as it comes and becomes durable with the file's sync.
 *
 * What is no such file goes to the system's own VFS.
 */
#include <sqlite3.h>

#include "internal.h"
#include "vfs.h"

#define PAYLOAD (DM_SECTOR_SIZE - sizeof(uint64_t))

struct head {
	uint64_t exists, size, generation;
};

struct file {
	sqlite3_file base;
	struct dm_mapped *md;
	struct head head;
};

static sqlite3_vfs vfs, *system_vfs;
static bool vfs_lies;
static char *vfs_path; /* the database's; its journal is that with -journal */

/* The device a path lies on, with a reference; NULL: none of ours. */
static struct dm_mapped *find_device(const char *path)
{
	size_t len = vfs_path ? strlen(vfs_path) : 0;

	if (!len || !path || strncmp(path, vfs_path, len))
		return NULL;
	if (!path[len])
		return dm_find_name("db");
	return strcmp(path + len, "-journal") ? NULL : dm_find_name("journal");
}

static int read_head(struct dm_mapped *md, struct head *head)
{
	uint8_t sector[DM_SECTOR_SIZE];

	if (dm_read_sync(&md->dev, 0, 1, sector, 0))
		return SQLITE_IOERR;
	memcpy(head, sector, sizeof *head);
	return SQLITE_OK;
}

static int write_head(struct dm_mapped *md, const struct head *head)
{
	uint8_t sector[DM_SECTOR_SIZE] = {0};

	memcpy(sector, head, sizeof *head);
	return dm_write_sync(&md->dev, 0, 1, sector, 0) ? SQLITE_IOERR_WRITE : SQLITE_OK;
}

/* Bytes of a file, read (to) or written (from; both NULL: zeroes), as whole sectors. */
static int move_bytes(struct file *f, uint8_t *to, const uint8_t *from, size_t len, uint64_t offset)
{
	uint64_t first = offset / PAYLOAD, end = (offset + len + PAYLOAD - 1) / PAYLOAD;
	g_autofree uint8_t *sectors = g_malloc((end - first) * DM_SECTOR_SIZE);

	if (end + 1 > dm_mapped_sectors(f->md))
		return SQLITE_FULL;
	if (dm_read_sync(&f->md->dev, first + 1, end - first, sectors, 0))
		return SQLITE_IOERR_READ;
	for (size_t done = 0; done < len;) {
		uint8_t *sector = sectors + ((offset + done) / PAYLOAD - first) * DM_SECTOR_SIZE;
		size_t at = (offset + done) % PAYLOAD, n = MIN(len - done, PAYLOAD - at);

		if (memcmp(sector + PAYLOAD, &f->head.generation, sizeof f->head.generation))
			memset(sector, 0, PAYLOAD);
		if (to)
			memcpy(to + done, sector + at, n);
		else if (from)
			memcpy(sector + at, from + done, n);
		else
			memset(sector + at, 0, n);
		memcpy(sector + PAYLOAD, &f->head.generation, sizeof f->head.generation);
		done += n;
	}
	if (to)
		return SQLITE_OK;
	return dm_write_sync(&f->md->dev, first + 1, end - first, sectors, 0) ? SQLITE_IOERR_WRITE : SQLITE_OK;
}

static int file_close(sqlite3_file *file)
{
	dm_mapped_unref(((struct file *)file)->md);
	return SQLITE_OK;
}

static int file_read(sqlite3_file *file, void *buf, int len, sqlite3_int64 offset)
{
	struct file *f = (struct file *)file;
	uint64_t have = (uint64_t)offset < f->head.size ? MIN(f->head.size - (uint64_t)offset, (uint64_t)len) : 0;
	int rc = have ? move_bytes(f, buf, NULL, have, (uint64_t)offset) : SQLITE_OK;

	if (rc || have == (uint64_t)len)
		return rc;
	memset((char *)buf + have, 0, (size_t)len - have);
	return SQLITE_IOERR_SHORT_READ;
}

static int set_size(struct file *f, uint64_t size)
{
	struct head head = {1, size, f->head.generation + !size};
	int rc = write_head(f->md, &head);

	if (!rc)
		f->head = head;
	return rc;
}

static int file_write(sqlite3_file *file, const void *buf, int len, sqlite3_int64 offset)
{
	struct file *f = (struct file *)file;
	uint64_t end = (uint64_t)offset + (uint64_t)len;
	int rc = SQLITE_OK;

	if ((uint64_t)offset > f->head.size) /* a gap reads as zeroes */
		rc = move_bytes(f, NULL, NULL, (uint64_t)offset - f->head.size, f->head.size);
	if (!rc)
		rc = move_bytes(f, NULL, buf, (size_t)len, (uint64_t)offset);
	if (!rc && end > f->head.size)
		rc = set_size(f, end);
	return rc;
}

static int file_truncate(sqlite3_file *file, sqlite3_int64 size)
{
	return set_size((struct file *)file, (uint64_t)size);
}

static int file_sync(sqlite3_file *file, int flags)
{
	if (vfs_lies)
		return SQLITE_OK;
	return dm_flush_sync(&((struct file *)file)->md->dev) ? SQLITE_IOERR_FSYNC : SQLITE_OK;
}

static int file_size(sqlite3_file *file, sqlite3_int64 *size)
{
	*size = (sqlite3_int64)((struct file *)file)->head.size;
	return SQLITE_OK;
}

static int file_lock(sqlite3_file *file, int level)
{
	return SQLITE_OK;
}

static int file_check_lock(sqlite3_file *file, int *reserved)
{
	*reserved = 0;
	return SQLITE_OK;
}

static int file_control(sqlite3_file *file, int op, void *arg)
{
	return SQLITE_NOTFOUND;
}

static int file_sector(sqlite3_file *file)
{
	return 4096;
}

static int file_characteristics(sqlite3_file *file)
{
	return 0;
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_lock,
	.xCheckReservedLock = file_check_lock,
	.xFileControl = file_control,
	.xSectorSize = file_sector,
	.xDeviceCharacteristics = file_characteristics,
};

static int vfs_open(sqlite3_vfs *v, const char *path, sqlite3_file *file, int flags, int *out_flags)
{
	struct dm_mapped *md = find_device(path);
	struct file *f = (struct file *)file;
	int rc;

	if (!md)
		return system_vfs->xOpen(system_vfs, path, file, flags, out_flags);
	memset(f, 0, sizeof *f);
	rc = read_head(md, &f->head);
	if (!rc && !f->head.exists) {
		f->head = (struct head){1, 0, f->head.generation + 1};
		rc = flags & SQLITE_OPEN_CREATE ? write_head(md, &f->head) : SQLITE_CANTOPEN;
	}
	if (rc) {
		dm_mapped_unref(md);
		return rc;
	}
	f->md = md;
	f->base.pMethods = &methods;
	if (out_flags)
		*out_flags = flags;
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *v, const char *path, int sync_dir)
{
	struct dm_mapped *md = find_device(path);
	struct head head;
	int rc;

	if (!md)
		return system_vfs->xDelete(system_vfs, path, sync_dir);
	rc = read_head(md, &head);
	head.exists = head.size = 0;
	if (!rc)
		rc = write_head(md, &head);
	if (!rc && sync_dir && dm_flush_sync(&md->dev))
		rc = SQLITE_IOERR_DIR_FSYNC;
	dm_mapped_unref(md);
	return rc;
}

static int vfs_access(sqlite3_vfs *v, const char *path, int flags, int *out)
{
	struct dm_mapped *md = find_device(path);
	struct head head = {0, 0, 0};
	int rc;

	if (!md)
		return system_vfs->xAccess(system_vfs, path, flags, out);
	rc = read_head(md, &head);
	*out = head.exists && (flags != SQLITE_ACCESS_EXISTS || head.size > 0);
	dm_mapped_unref(md);
	return rc;
}

void vfs_use(const char *path, bool lies)
{
	vfs_lies = lies;
	if (!system_vfs) {
		sqlite3_initialize();
		system_vfs = sqlite3_vfs_find(NULL);
		vfs = *system_vfs;
		vfs.zName = "lab";
		vfs.pNext = NULL;
		vfs.szOsFile = MAX(system_vfs->szOsFile, (int)sizeof(struct file));
		vfs.xOpen = vfs_open;
		vfs.xDelete = vfs_delete;
		vfs.xAccess = vfs_access;
		sqlite3_vfs_register(&vfs, 1);
	}
	g_free(vfs_path);
	vfs_path = g_strdup(path);
}

int vfs_copy(const char *device, const char *path, GError **err)
{
	struct dm_mapped *md = dm_find_name(device);
	struct file f = {.md = md};
	g_autofree uint8_t *data = NULL;
	int rc = read_head(md, &f.head);

	if (!rc && f.head.exists && f.head.size / PAYLOAD >= dm_mapped_sectors(md))
		rc = SQLITE_IOERR;
	if (!rc && f.head.size) {
		data = g_malloc(f.head.size);
		rc = move_bytes(&f, data, NULL, f.head.size, 0);
	}
	dm_mapped_unref(md);
	if (rc)
		return dm_fail(err, EIO, "'%s' cannot be read", device);
	if (!f.head.exists)
		return 0;
	return g_file_set_contents(path, (char *)data, (gssize)f.head.size, err) ? 0 : -EIO;
}
