/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Directories being listed: what is in them is taken at opendir. */
#include <errno.h>
#include <sys/stat.h>

#include "node.h"

/* What an open directory lists: taken at opendir. */
struct listing {
	unsigned mount;
	GPtrArray *devices; /* of struct dm_mapped, for the root; of a directory of images all there is */
	const struct dmfs_file *const *files;
	struct dmfs_device *device;
};

static const struct dmfs_file *const no_files[] = {NULL};

static void listing_free(void *p)
{
	struct listing *l = p;

	g_ptr_array_unref(l->devices);
	dmfs_device_put(l->device);
	g_free(l);
}

void dmfs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct listing *l;

	if (!dmfs_inode(ino, &file, &d) || file) {
		dmfs_device_put(d);
		fuse_reply_err(req, file ? ENOTDIR : ENOENT);
		return;
	}
	l = g_new0(struct listing, 1);
	l->mount = dmfs_mount_of(req);
	l->device = d;
	l->files = l->mount == DMFS_IMAGES ? no_files : d ? dmfs_device_files : dmfs_root_files;
	l->devices = d ? g_ptr_array_new() : dm_list_devices();
	fi->fh = (uintptr_t)l;
	dmfs_opened_add(l->mount, l, listing_free);
	if (fuse_reply_open(req, fi)) {
		dmfs_opened_remove(l->mount, l);
		listing_free(l);
	}
}

void dmfs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct listing *l = (struct listing *)(uintptr_t)fi->fh;
	unsigned files = dmfs_count_files(l->files);
	g_autofree char *buf = g_malloc(size);
	size_t used = 0;

	for (uint64_t i = (uint64_t)off; i < 2 + files + l->devices->len; i++) {
		g_autofree char *dup = NULL;
		const char *name;
		struct stat st = {.st_mode = S_IFDIR};
		size_t n;

		if (i < 2) {
			name = i ? ".." : ".";
			st.st_ino = i ? FUSE_ROOT_ID : ino;
		} else if (i < 2 + files) {
			name = l->files[i - 2]->name;
			if (*name == '.') /* for programs that know of it */
				continue;
			st.st_mode = S_IFREG;
			st.st_ino = l->device ? dmfs_ino(l->device, (unsigned)i - 1) : i;
		} else {
			struct dm_mapped *md = l->devices->pdata[i - 2 - files];
			bool removed;

			dm_topology_lock();
			removed = md->removed;
			dm_topology_unlock();
			if (removed)
				continue;
			name = dup = dm_mapped_dup_name(md);
			st.st_ino = dmfs_ino(dmfs_device_of(md), l->mount == DMFS_IMAGES ? DMFS_IMAGE_KIND : 0);
			if (l->mount == DMFS_IMAGES)
				st.st_mode = S_IFREG;
		}
		n = fuse_add_direntry(req, buf + used, size - used, name, &st, (off_t)i + 1);
		if (n > size - used)
			break;
		used += n;
	}
	fuse_reply_buf(req, buf, used);
}

void dmfs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct listing *l = (struct listing *)(uintptr_t)fi->fh;

	dmfs_opened_remove(l->mount, l);
	listing_free(l);
	fuse_reply_err(req, 0);
}
