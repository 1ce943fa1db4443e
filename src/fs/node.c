/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Inodes and the operations on the tree.
 *
 * Names are never cached by the kernel (entry timeout 0): a device may come or
 * go by `control` as well as by mkdir.  An image's attributes are cached until a swap says otherwise.
 *
 * The kernel's lookup counts of all inodes of a device are one count; while it
 * is not 0 the device's md is kept.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/state.h"
#include "fs.h"
#include "loop.h"
#include "node.h"

#define IMAGE_ATTR_SECONDS (24.0 * 3600)

struct dmfs_options dmfs_options;
struct fuse_session *dmfs_session;

static pthread_rwlock_t nodes_lock = PTHREAD_RWLOCK_INITIALIZER;
static GHashTable *devices; /* id -> struct dmfs_device */
static uint64_t next_id = 1;
static struct timespec mounted;

/* --- devices as nodes ---------------------------------------------------------------- */

struct dmfs_device *dmfs_device_of(struct dm_mapped *md)
{
	struct dmfs_device *d;

	pthread_rwlock_wrlock(&nodes_lock);
	d = md->front;
	if (!d) {
		d = g_new0(struct dmfs_device, 1);
		d->md = md;
		d->id = next_id++;
		pthread_mutex_init(&d->lock, NULL);
		clock_gettime(CLOCK_REALTIME, &d->created);
		g_hash_table_insert(devices, &d->id, d);
		md->front = d;
	}
	pthread_rwlock_unlock(&nodes_lock);
	return d;
}

static void device_freed(struct dm_mapped *md)
{
	struct dmfs_device *d = md->front;

	if (!d)
		return;
	pthread_rwlock_wrlock(&nodes_lock);
	g_hash_table_remove(devices, &d->id);
	pthread_rwlock_unlock(&nodes_lock);
	dmfs_image_free(d);
	pthread_mutex_destroy(&d->lock);
	g_free(d);
}

void dmfs_device_put(struct dmfs_device *d)
{
	if (d)
		dm_mapped_unref(d->md);
}

fuse_ino_t dmfs_ino(struct dmfs_device *d, unsigned kind)
{
	return d->id * DMFS_INODES + kind;
}

/* The device an inode belongs to, with a reference to its md. */
static struct dmfs_device *device_by_ino(fuse_ino_t ino)
{
	uint64_t id = ino / DMFS_INODES;
	struct dmfs_device *d;

	pthread_rwlock_rdlock(&nodes_lock);
	d = g_hash_table_lookup(devices, &id);
	if (d) {
		int refs = atomic_load(&d->md->dev.refs);

		while (refs > 0 && !atomic_compare_exchange_weak(&d->md->dev.refs, &refs, refs + 1))
			;
		if (!refs) /* about to be freed */
			d = NULL;
	}
	pthread_rwlock_unlock(&nodes_lock);
	return d;
}

unsigned dmfs_count_files(const struct dmfs_file *const *files)
{
	unsigned n = 0;

	while (files[n])
		n++;
	return n;
}

unsigned dmfs_kind_of(const struct dmfs_file *const *files, const struct dmfs_file *file)
{
	unsigned n = 0;

	while (files[n] != file)
		n++;
	return n + 1;
}

bool dmfs_inode(fuse_ino_t ino, const struct dmfs_file **file, struct dmfs_device **device)
{
	unsigned kind = ino % DMFS_INODES;

	*file = NULL;
	*device = NULL;
	if (ino == FUSE_ROOT_ID)
		return true;
	if (ino < DMFS_INODES) {
		if (ino - 2 >= dmfs_count_files(dmfs_root_files))
			return false;
		*file = dmfs_root_files[ino - 2];
		return true;
	}
	if (kind > dmfs_count_files(dmfs_device_files))
		return false;
	*device = device_by_ino(ino);
	if (!*device)
		return false;
	*file = kind ? dmfs_device_files[kind - 1] : NULL;
	return true;
}

struct dm_mapped *dmfs_find_inode(ino_t ino)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;

	if (!dmfs_inode(ino, &file, &d) || !d)
		return NULL;
	if (!file || file == &dmfs_image_file)
		return d->md;
	dmfs_device_put(d);
	return NULL;
}

void dmfs_lookup_count(struct dmfs_device *d, int64_t change)
{
	bool get, put;

	pthread_rwlock_wrlock(&nodes_lock);
	get = !d->nlookup && change > 0;
	d->nlookup += (uint64_t)change;
	put = !d->nlookup && change < 0;
	pthread_rwlock_unlock(&nodes_lock);
	if (get)
		dm_mapped_ref(d->md);
	if (put)
		dm_mapped_unref(d->md);
}

/* --- attributes ------------------------------------------------------------------------- */

static void fill_attr(fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	st->st_uid = dmfs_options.uid;
	st->st_gid = dmfs_options.gid;
	st->st_nlink = file ? 1 : 2;
	st->st_blksize = 4096;
	st->st_mode = file ? S_IFREG | file->mode : S_IFDIR | 0755;
	st->st_atim = st->st_mtim = st->st_ctim = d ? d->created : mounted;
	if (file == &dmfs_image_file) {
		uint64_t sectors = dm_mapped_sectors(d->md);
		struct dm_owner owner;

		dm_mapped_owner(d->md, &owner); /* an image can be given away, the rest stays the owner's */
		st->st_mode = S_IFREG | owner.mode;
		st->st_uid = owner.uid;
		st->st_gid = owner.gid;
		st->st_size = (off_t)(sectors << DM_SECTOR_SHIFT);
		st->st_blocks = (blkcnt_t)sectors;
	}
}

static double attr_timeout(const struct dmfs_file *file)
{
	return file == &dmfs_image_file ? IMAGE_ATTR_SECONDS : 0;
}

/* Answers a lookup (or mkdir); takes the reference to the device's md. */
static void reply_entry(fuse_req_t req, fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d)
{
	struct fuse_entry_param e = {.ino = ino, .attr_timeout = attr_timeout(file)};

	fill_attr(ino, file, d, &e.attr);
	if (d)
		dmfs_lookup_count(d, 1);
	if (fuse_reply_entry(req, &e) && d) /* interrupted: the kernel does not know it */
		dmfs_lookup_count(d, -1);
	dmfs_device_put(d);
}

static const struct dmfs_file *find_file(const struct dmfs_file *const *files, const char *name)
{
	for (unsigned i = 0; files[i]; i++)
		if (!strcmp(files[i]->name, name))
			return files[i];
	return NULL;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	const struct dmfs_file *file = NULL;
	struct dmfs_device *d = NULL;

	if (parent == FUSE_ROOT_ID) {
		struct dm_mapped *md;

		file = find_file(dmfs_root_files, name);
		if (file) {
			reply_entry(req, 1 + dmfs_kind_of(dmfs_root_files, file), file, NULL);
			return;
		}
		md = dm_find_name(name);
		if (!md) {
			fuse_reply_err(req, strlen(name) > DM_NAME_MAX ? ENAMETOOLONG : ENOENT);
			return;
		}
		d = dmfs_device_of(md);
		reply_entry(req, dmfs_ino(d, 0), NULL, d);
		return;
	}
	if (!dmfs_inode(parent, &file, &d) || file || !d || !(file = find_file(dmfs_device_files, name))) {
		dmfs_device_put(d);
		fuse_reply_err(req, ENOENT);
		return;
	}
	reply_entry(req, dmfs_ino(d, dmfs_kind_of(dmfs_device_files, file)), file, d);
}

static void forget(fuse_ino_t ino, uint64_t n)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;

	if (ino >= DMFS_INODES && dmfs_inode(ino, &file, &d)) {
		dmfs_lookup_count(d, -(int64_t)n);
		dmfs_device_put(d);
	}
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	forget(ino, nlookup);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		forget(forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct stat st;

	if (!dmfs_inode(ino, &file, &d)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill_attr(ino, file, d, &st);
	fuse_reply_attr(req, &st, attr_timeout(file));
	dmfs_device_put(d);
}

static int change_image(struct dmfs_device *d, const struct stat *st, int to_set)
{
	struct dm_owner to = {st->st_mode & 0777, st->st_uid, st->st_gid};
	unsigned what = 0;

	if (to_set & FUSE_SET_ATTR_MODE)
		what |= DM_CHANGE_MODE;
	if (to_set & FUSE_SET_ATTR_UID)
		what |= DM_CHANGE_UID;
	if (to_set & FUSE_SET_ATTR_GID)
		what |= DM_CHANGE_GID;
	return dm_mapped_set_owner(d->md, what, &to, NULL);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct stat now;
	int error = 0;

	if (!dmfs_inode(ino, &file, &d)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	if (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) {
		if (file == &dmfs_image_file)
			error = change_image(d, st, to_set);
		else
			error = -EPERM; /* control files are the owner's alone */
	}
	if (!error && (to_set & FUSE_SET_ATTR_SIZE) && file && file->truncate && st->st_size == 0)
		file->truncate(fi ? (struct dmfs_handle *)(uintptr_t)fi->fh : NULL, d, req);
	/* Any other size: a device keeps its own; so do the times. */
	if (error) {
		fuse_reply_err(req, -error);
	} else {
		fill_attr(ino, file, d, &now);
		fuse_reply_attr(req, &now, attr_timeout(file));
	}
	dmfs_device_put(d);
}

/* --- directories --------------------------------------------------------------------------- */

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	g_autoptr(GError) err = NULL;
	struct dmfs_device *d;
	struct dm_mapped *md;
	int error;

	if (parent != FUSE_ROOT_ID) {
		fuse_reply_err(req, EPERM);
		return;
	}
	error = dm_create(name, -1, &md, &err);
	if (error) {
		dm_log_err("mkdir: %s", err->message);
		fuse_reply_err(req, -error);
		return;
	}
	d = dmfs_device_of(md);
	reply_entry(req, dmfs_ino(d, 0), NULL, d);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct dm_mapped *md = parent == FUSE_ROOT_ID ? dm_find_name(name) : NULL;
	g_autoptr(GError) err = NULL;
	int error;

	if (!md) {
		bool is_file = find_file(parent == FUSE_ROOT_ID ? dmfs_root_files : dmfs_device_files, name);

		fuse_reply_err(req, is_file ? ENOTDIR : ENOENT);
		return;
	}
	error = dmfs_remove(md, &err);
	if (error)
		dm_log_err("rmdir: %s", err->message);
	fuse_reply_err(req, -error);
	dm_mapped_unref(md);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
		      unsigned flags)
{
	struct dm_mapped *md;
	g_autoptr(GError) err = NULL;
	int error;

	if (parent != FUSE_ROOT_ID || newparent != FUSE_ROOT_ID || find_file(dmfs_root_files, name) ||
	    (flags & ~(unsigned)RENAME_NOREPLACE)) {
		fuse_reply_err(req, (flags & ~(unsigned)RENAME_NOREPLACE) ? EINVAL : EPERM);
		return;
	}
	md = dm_find_name(name);
	if (!md) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	error = dm_rename(md, newname, &err);
	if (error)
		dm_log_err("rename: %s", err->message);
	fuse_reply_err(req, -error);
	dm_mapped_unref(md);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	fuse_reply_err(req, EPERM);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EPERM);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = DM_NAME_MAX};

	fuse_reply_statfs(req, &st);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	conn->max_write = DMFS_MAX_WRITE;
	conn->max_readahead = DMFS_MAX_WRITE;
	conn->max_background = 256;
	conn->congestion_threshold = 192;
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
				  FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS);
	conn->want |= conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS |
				       FUSE_CAP_EXPLICIT_INVAL_DATA);
	if (dmfs_options.writeback)
		conn->want |= conn->capable & FUSE_CAP_WRITEBACK_CACHE;
}

/* --- what the engine tells ---------------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t none;
	unsigned under_way;
	bool ending;
} invalidations = {.lock = PTHREAD_MUTEX_INITIALIZER, .none = PTHREAD_COND_INITIALIZER};

void dmfs_invalidate(fuse_ino_t ino, off_t offset, off_t bytes)
{
	bool ending;

	pthread_mutex_lock(&invalidations.lock);
	ending = invalidations.ending;
	invalidations.under_way += !ending;
	pthread_mutex_unlock(&invalidations.lock);
	if (ending)
		return;
	dm_block_begin();
	fuse_lowlevel_notify_inval_inode(dmfs_session, ino, offset, bytes);
	dm_block_end();
	pthread_mutex_lock(&invalidations.lock);
	if (!--invalidations.under_way)
		pthread_cond_broadcast(&invalidations.none);
	pthread_mutex_unlock(&invalidations.lock);
}

void dmfs_end_invalidations(void)
{
	pthread_mutex_lock(&invalidations.lock);
	invalidations.ending = true;
	while (invalidations.under_way)
		pthread_cond_wait(&invalidations.none, &invalidations.lock);
	pthread_mutex_unlock(&invalidations.lock);
}

static void forget_cached(struct dm_mapped *md)
{
	struct dmfs_device *d;
	fuse_ino_t ino = 0;

	pthread_rwlock_rdlock(&nodes_lock);
	d = md->front;
	if (d && d->nlookup)
		ino = dmfs_ino(d, dmfs_kind_of(dmfs_device_files, &dmfs_image_file));
	pthread_rwlock_unlock(&nodes_lock);
	if (ino && dmfs_session)
		dmfs_invalidate(ino, 0, 0);
}

static void swapped(struct dm_mapped *md)
{
	dmfs_image_swapped(md);
	forget_cached(md);
}

static const struct dm_front_ops front_ops = {
	.swapped = swapped,
	.freed = device_freed,
};

void dmfs_nodes_init(void)
{
	static const char *names[DMFS_INODES];

	dmfs_opened_init();
	devices = g_hash_table_new(g_int64_hash, g_int64_equal);
	clock_gettime(CLOCK_REALTIME, &mounted);
	for (unsigned i = 0; dmfs_root_files[i]; i++)
		names[i] = dmfs_root_files[i]->name;
	dm_reserve_names(names);
	dm_front = &front_ops;
}

const struct fuse_lowlevel_ops dmfs_ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.mkdir = op_mkdir,
	.rmdir = op_rmdir,
	.unlink = op_unlink,
	.create = op_create,
	.rename = op_rename,
	.opendir = dmfs_op_opendir,
	.readdir = dmfs_op_readdir,
	.releasedir = dmfs_op_releasedir,
	.open = dmfs_op_open,
	.read = dmfs_op_read,
	.write = dmfs_op_write,
	.flush = dmfs_op_flush,
	.release = dmfs_op_release,
	.fsync = dmfs_op_fsync,
	.fallocate = dmfs_op_fallocate,
	.lseek = dmfs_op_lseek,
	.poll = dmfs_op_poll,
	.statfs = op_statfs,
};
