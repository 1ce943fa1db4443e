/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shadow: what /dev, /sys and /proc say of the mount's devices and of the disks, as files in a directory.
 *
 *	mount, numbers           links: the mount's path; numbers that do not change (base.c)
 *	disk/, name/             the disks (disks.c)
 *	dev/mapper/NAME          links to MOUNT/NAME/image, as dev/dm-N
 *	sys/devices/virtual/block/{dm-N,DISK}/   attributes, holders/, slaves/, and .state: what they were written from
 *	sys/{block,class/block}/NAME, sys/dev/block/MAJ:MIN   links to these; so are the kernel's own that tables
 *	                         stand on, as they have holders here
 *	stamp -> the time of the mount's root that all this was made at: it changes with its devices
 *
 * Whoever finds the stamp old makes it anew, under a lock on the file `lock`.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "run.h"

#define BLOCKS "sys/devices/virtual/block"

static atomic_uint_least64_t seen; /* the stamp that this process found to be true */
static _Thread_local bool syncing;

/* --- files ----------------------------------------------------------------------------------------- */

/* Never seen empty: it is written over, then cut. */
static void put(const char *dir, const char *name, const char *text)
{
	char path[PATH_MAX];
	size_t len = strlen(text);
	int fd;

	if (!path_format(path, "%s/%s", dir, name))
		return;
	fd = NEXT(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		return;
	if (NEXT(pwrite)(fd, text, len, 0) == (ssize_t)len && NEXT(ftruncate)(fd, (off_t)len))
		errno = 0;
	NEXT(close)(fd);
}

static void put_number(const char *dir, const char *name, uint64_t n)
{
	char text[32];

	snprintf(text, sizeof text, "%" PRIu64 "\n", n);
	put(dir, name, text);
}

static void make_dir(const char *parent, const char *name)
{
	char path[PATH_MAX];

	if (path_format(path, "%s/%s", parent, name))
		NEXT(mkdir)(path, 0755);
}

/* A link of that target, whatever was there. */
static void put_link(const char *dir, const char *name, const char *target)
{
	char path[PATH_MAX], old[PATH_MAX];

	if (!path_format(path, "%s/%s/%s", run.shadow, dir, name))
		return;
	if (link_read(path, old, sizeof old)) {
		if (!strcmp(old, target))
			return;
		NEXT(unlink)(path);
	}
	if (NEXT(symlink)(target, path))
		return;
}

static void drop_link(const char *dir, const char *name)
{
	char path[PATH_MAX];

	if (path_format(path, "%s/%s/%s", run.shadow, dir, name))
		NEXT(unlink)(path);
}

static void each_entry(const char *dir, void (*fn)(const char *dir, const char *name, void *data), void *data)
{
	char path[PATH_MAX];
	struct dirent *e;
	DIR *d;

	if (!path_format(path, "%s/%s", run.shadow, dir))
		return;
	d = NEXT(opendir)(path);
	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			fn(dir, e->d_name, data);
	if (d)
		closedir(d);
}

/* A directory with what is in it, two deep. */
static void remove_entry(const char *dir, const char *name, void *data)
{
	char path[PATH_MAX], sub[PATH_MAX];

	(void)data;
	if (!path_format(path, "%s/%s/%s", run.shadow, dir, name) || !NEXT(unlink)(path))
		return;
	if (path_format(sub, "%s/%s", dir, name))
		each_entry(sub, remove_entry, NULL);
	NEXT(rmdir)(path);
}

/* --- one block device ------------------------------------------------------------------------------ */

/* What its attributes are made of. */
struct block {
	char name[256]; /* in /sys */
	unsigned major, minor;
	uint64_t sectors;
	bool readonly, mapped, suspended;
	char dm_name[128], dm_uuid[129];
	unsigned logical, physical, io_min, io_opt, granularity;
	uint64_t discard;
};

/* It stays what BLKRASET, or who wrote the file, made it, as long as the device is the same.  It changes nothing else. */
static void put_read_ahead(const char *dir, bool anew)
{
	char path[PATH_MAX], rel[PATH_MAX];

	make_dir(dir, "bdi");
	if (!path_format(path, "%s/bdi", dir))
		return;
	if (anew)
		put_number(path, "read_ahead_kb", READ_AHEAD_KB);
	if (path_format(rel, "%s/queue", dir + run.shadow_len + 1))
		put_link(rel, "read_ahead_kb", "../bdi/read_ahead_kb");
}

static void put_queue(const char *dir, const struct block *b, bool anew)
{
	char queue[PATH_MAX];

	make_dir(dir, "queue");
	if (!path_format(queue, "%s/queue", dir))
		return;
	put_number(queue, "logical_block_size", b->logical);
	put_number(queue, "hw_sector_size", b->logical);
	put_number(queue, "physical_block_size", b->physical);
	put_number(queue, "minimum_io_size", b->io_min ? b->io_min : b->physical);
	put_number(queue, "optimal_io_size", b->io_opt);
	put_number(queue, "discard_granularity", b->discard ? b->granularity ? b->granularity : b->logical : 0);
	put_number(queue, "discard_max_bytes", b->discard > UINT32_MAX >> 9 ? UINT32_MAX & ~511u : b->discard << 9);
	put_number(queue, "discard_max_hw_bytes", b->discard > UINT32_MAX >> 9 ? UINT32_MAX & ~511u : b->discard << 9);
	put_number(queue, "write_zeroes_max_bytes", UINT32_MAX & ~511u);
	put_number(queue, "max_sectors_kb", 1024);
	put_number(queue, "max_hw_sectors_kb", 1024);
	put_number(queue, "nr_requests", 128);
	put(queue, "scheduler", "none\n");
	put(queue, "zoned", "none\n");
	put(queue, "write_cache", "write back\n");
	put_number(queue, "fua", 1);
	put_number(queue, "max_segments", 128);
	put_read_ahead(dir, anew);
	for (const char *const *zero =
		 (const char *const[]){"rotational", "discard_zeroes_data", "write_same_max_bytes", "add_random", "dax",
				       "chunk_sectors", "nr_zones", "stable_writes", "nomerges", "iostats", NULL};
	     *zero; zero++)
		put_number(queue, *zero, 0);
}

static void put_attributes(const char *dir, const struct block *b, bool anew)
{
	char text[512], sub[PATH_MAX];

	snprintf(text, sizeof text, "%u:%u\n", b->major, b->minor);
	put(dir, "dev", text);
	snprintf(text, sizeof text, "MAJOR=%u\nMINOR=%u\nDEVNAME=%s\nDEVTYPE=disk\n", b->major, b->minor, b->name);
	put(dir, "uevent", text);
	put_number(dir, "size", b->sectors);
	put_number(dir, "ro", b->readonly);
	put_number(dir, "range", 1);
	put_number(dir, "ext_range", 1);
	for (const char *const *zero = (const char *const[]){"removable", "alignment_offset", "discard_alignment",
							     "capability", "hidden", NULL};
	     *zero; zero++)
		put_number(dir, *zero, 0);
	put(dir, "stat", "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
	put(dir, "inflight", "0 0\n");
	put_queue(dir, b, anew);
	if (!b->mapped)
		return;
	make_dir(dir, "dm");
	path_format(sub, "%s/dm", dir);
	snprintf(text, sizeof text, "%s\n", b->dm_name);
	put(sub, "name", text);
	snprintf(text, sizeof text, "%s\n", b->dm_uuid);
	put(sub, "uuid", text);
	put_number(sub, "suspended", b->suspended);
}

static void state_of(const struct block *b, struct text *out)
{
	text_printf(out, "%u:%u %" PRIu64 " %d%d %u %u %u %u %u %" PRIu64 " %s/%s\n", b->major, b->minor, b->sectors,
		    b->readonly, b->suspended, b->logical, b->physical, b->io_min, b->io_opt, b->granularity,
		    b->discard, b->dm_name, b->dm_uuid);
}

/* Whether a state is not of this device, by its name and uuid, of which one may have changed. */
static bool is_another(const struct text *old, const struct block *b)
{
	const char *slash = strrchr(text_get(old), '/');
	size_t name_len = strlen(b->dm_name), uuid_len = strlen(b->dm_uuid);

	if (!slash)
		return true;
	if (uuid_len && !strncmp(slash + 1, b->dm_uuid, uuid_len) && slash[1 + uuid_len] == '\n')
		return false;
	return (size_t)(slash - old->s) < name_len + 1 || slash[-(ptrdiff_t)name_len - 1] != ' ' ||
	       strncmp(slash - name_len, b->dm_name, name_len);
}

static void put_block(const struct block *b)
{
	AUTO_TEXT state = {0};
	AUTO_TEXT old = {0};
	char dir[PATH_MAX], path[PATH_MAX], target[PATH_MAX], number[32];

	if (!path_format(dir, "%s/" BLOCKS "/%s", run.shadow, b->name) || !path_format(path, "%s/.state", dir))
		return;
	state_of(b, &state);
	if (!file_read(path, &old) && !strcmp(text_get(&old), text_get(&state)))
		return;
	NEXT(mkdir)(dir, 0755);
	make_dir(dir, "holders");
	make_dir(dir, "slaves");
	put_attributes(dir, b, is_another(&old, b));
	snprintf(number, sizeof number, "%u:%u", b->major, b->minor);
	path_format(target, "../../devices/virtual/block/%s", b->name);
	put_link("sys/dev/block", number, target);
	put_link("sys/class/block", b->name, target);
	path_format(target, "../devices/virtual/block/%s", b->name);
	put_link("sys/block", b->name, target);
	path_format(target, BLOCKS "/%s", b->name);
	put_link(target, "subsystem", "../../../../class/block");
	put(dir, ".state", text_get(&state));
}

/* --- who stands on whom ---------------------------------------------------------------------------- */

/*
 * A block device of the kernel's that a table stands on: all that the kernel tells of it, by links, but who holds it.
 * True if it is one; all gets its name.
 */
static bool put_real(dev_t dev, char name[256], struct text *all)
{
	char path[PATH_MAX], target[PATH_MAX], number[32], dir[PATH_MAX];
	const char *base;
	struct dirent *e;
	DIR *d;

	snprintf(number, sizeof number, "%u:%u", major(dev), minor(dev));
	if (!path_format(path, "/sys/dev/block/%s", number) || !link_read(path, target, sizeof target))
		return false;
	base = strrchr(target, '/');
	if (!base || !base[1] || strlen(base + 1) >= 256)
		return false;
	strcpy(name, base + 1);
	path_format(dir, BLOCKS "/%s", name);
	make_dir(run.shadow, dir);
	d = NEXT(opendir)(path);
	while (d && (e = readdir(d)))
		if (*e->d_name != '.' && strcmp(e->d_name, "holders") && strcmp(e->d_name, "slaves") &&
		    path_format(target, "%s/%s", path, e->d_name))
			put_link(dir, e->d_name, target);
	if (d)
		closedir(d);
	path_format(target, "../../devices/virtual/block/%s", name);
	put_link("sys/dev/block", number, target);
	put_link("sys/class/block", name, target);
	path_format(target, "../devices/virtual/block/%s", name);
	if (path_format(path, "/sys/block/%s", name) && !NEXT(access)(path, F_OK))
		put_link("sys/block", name, target);
	text_printf(all, "%s\n", name);
	return true;
}

static bool name_of(dev_t dev, char out[256], struct text *all)
{
	struct disk d;

	if (major(dev) == run.dm_major)
		return snprintf(out, 256, "dm-%u", minor(dev)) > 0;
	if (major(dev) != run.disk_major)
		return put_real(dev, out, all);
	if (!disk_by_minor(minor(dev), &d))
		return false;
	strcpy(out, d.name);
	return true;
}

static void drop_slave(const char *dir, const char *name, void *data)
{
	char holders[PATH_MAX];
	const char *keep = data;
	const char *holder = strrchr(dir, '/') - 1;
	char own[256];
	size_t len;

	while (holder > dir && holder[-1] != '/')
		holder--;
	len = (size_t)(strrchr(dir, '/') - holder);
	if (len >= sizeof own)
		return;
	memcpy(own, holder, len);
	own[len] = '\0';
	for (const char *k = keep; k && *k; k += strcspn(k, "\n") + 1)
		if (!strncmp(k, name, strlen(name)) && k[strlen(name)] == '\n')
			return;
	drop_link(dir, name);
	if (path_format(holders, BLOCKS "/%s/holders", name))
		drop_link(holders, own);
}

static void put_slaves(const char *device, const char *own, struct text *all)
{
	AUTO_TEXT deps = {0};
	AUTO_TEXT keep = {0};
	char dir[PATH_MAX], target[PATH_MAX], name[256];

	if (tree_message(device, "@numbers deps", 13, &deps))
		return;
	for (char *line = deps.s; line && *line;) {
		size_t len = strcspn(line, "\n");
		bool more = line[len];
		dev_t dev;

		line[len] = '\0';
		if (word_to_dev(line, &dev) && name_of(dev, name, all)) {
			path_format(dir, BLOCKS "/%s", name); /* it may come later in the list */
			make_dir(run.shadow, dir);
			path_format(dir, BLOCKS "/%s/holders", name);
			make_dir(run.shadow, dir);
			path_format(target, "../../%s", own);
			put_link(dir, own, target);
			path_format(dir, BLOCKS "/%s/slaves", own);
			path_format(target, "../../%s", name);
			put_link(dir, name, target);
			text_printf(&keep, "%s\n", name);
		}
		line += len + more;
	}
	path_format(dir, BLOCKS "/%s/slaves", own);
	each_entry(dir, drop_slave, (void *)(uintptr_t)text_get(&keep));
}

/* --- all of them ----------------------------------------------------------------------------------- */

static void ask_limits(const char *name, struct block *b)
{
	AUTO_TEXT t = {0};

	b->logical = b->physical = 512;
	if (tree_message(name, "@limits", 7, &t))
		return;
	sscanf(text_get(&t),
	       "logical_block_size %u\nphysical_block_size %u\nio_min %u\nio_opt %u\ndiscard_granularity %u\n"
	       "max_discard_sectors %" SCNu64,
	       &b->logical, &b->physical, &b->io_min, &b->io_opt, &b->granularity, &b->discard);
}

static int put_mapped(const struct listed *listed, void *data)
{
	const char *name = listed->name;
	struct text *all = data;
	struct block b = {.major = run.dm_major, .mapped = true};
	struct device d;
	struct stat st;
	char path[PATH_MAX];

	if (tree_device(name, &d) || (!d.live && !d.inactive))
		return 0; /* before its first table a device has no disk */
	snprintf(b.name, sizeof b.name, "dm-%u", d.minor);
	b.minor = d.minor;
	b.readonly = d.readonly;
	b.suspended = d.suspended;
	strcpy(b.dm_name, d.name);
	strcpy(b.dm_uuid, d.uuid);
	if (!path_format(path, "%s/%s/image", run.mount, name) || NEXT(stat)(path, &st))
		return 0;
	b.sectors = (uint64_t)st.st_size >> 9;
	ask_limits(name, &b);
	put_block(&b);
	put_slaves(name, b.name, all);
	put_link("dev/mapper", name, path);
	put_link("dev", b.name, path);
	text_printf(all, "%s\n", b.name);
	return 0;
}

static bool put_disk(const struct disk *d, void *data)
{
	struct text *all = data;
	struct block b = {.major = run.disk_major, .minor = d->minor, .logical = 512, .physical = 4096};
	struct stat st;

	strcpy(b.name, d->name);
	if (*d->target == '/' && NEXT(stat)(d->target, &st))
		return true; /* gone */
	b.sectors = *d->target == '/' ? (uint64_t)st.st_size >> 9 : 0;
	b.readonly = *d->target == '/' && NEXT(access)(d->target, W_OK);
	b.granularity = 4096;
	b.discard = UINT32_MAX >> 9;
	put_block(&b);
	text_printf(all, "%s\n", b.name);
	return true;
}

static bool listed(const char *all, const char *name)
{
	size_t len = strlen(name);

	for (; *all; all += strcspn(all, "\n") + 1)
		if (!strncmp(all, name, len) && all[len] == '\n')
			return true;
	return false;
}

/* Of what is gone: its attributes, its names. */
static void drop_gone(const char *dir, const char *name, void *data)
{
	AUTO_TEXT number = {0};
	char path[PATH_MAX];

	if (listed(data, name))
		return;
	if (path_format(path, "%s/%s/%s/dev", run.shadow, dir, name) && !file_read(path, &number) && number.len) {
		number.s[strcspn(number.s, "\n")] = '\0';
		drop_link("sys/dev/block", number.s);
	}
	drop_link("sys/block", name);
	drop_link("sys/class/block", name);
	drop_link("dev", name);
	if (path_format(path, "%s/%s/slaves", dir, name))
		each_entry(path, drop_slave, NULL);
	remove_entry(dir, name, NULL);
}

static void drop_dangling(const char *dir, const char *name, void *data)
{
	char path[PATH_MAX];
	struct stat st;

	(void)data;
	if (path_format(path, "%s/%s/%s", run.shadow, dir, name) && NEXT(stat)(path, &st) && errno == ENOENT)
		NEXT(unlink)(path);
}

/* /dev/VG: the links that LVM left. */
static void drop_in_group(const char *dir, const char *name, void *data)
{
	char path[PATH_MAX];
	struct stat st;

	(void)data;
	if (!strcmp(name, "mapper") || !path_format(path, "%s/%s/%s", run.shadow, dir, name) ||
	    NEXT(lstat)(path, &st) || !S_ISDIR(st.st_mode) || !path_format(path, "%s/%s", dir, name))
		return;
	each_entry(path, drop_dangling, NULL);
	path_format(path, "%s/%s/%s", run.shadow, dir, name);
	NEXT(rmdir)(path);
}

static bool put_partition(const struct disk *d, void *data)
{
	struct stat st;

	if (*d->target == '/' && !NEXT(stat)(d->target, &st))
		text_printf(data, "%4u  %7u %10llu %s\n", run.disk_major, d->minor,
			    (unsigned long long)st.st_size >> 10, d->name);
	return true;
}

static int put_mapped_partition(const struct listed *d, void *data)
{
	char path[PATH_MAX];
	struct stat st;

	if (path_format(path, "%s/%s/image", run.mount, d->name) && !NEXT(stat)(path, &st))
		text_printf(data, "%4u  %7u %10llu dm-%u\n", run.dm_major, d->minor,
			    (unsigned long long)st.st_size >> 10, d->minor);
	return 0;
}

static void make_all(void)
{
	AUTO_TEXT all = {0};
	AUTO_TEXT partitions = {0};
	char proc[PATH_MAX];

	tree_each(put_mapped, &all);
	disks_load();
	disks_each(put_disk, &all);
	each_entry(BLOCKS, drop_gone, (void *)(uintptr_t)text_get(&all));
	each_entry("dev/mapper", drop_dangling, NULL);
	each_entry("dev", drop_in_group, NULL);
	text_str(&partitions, "major minor  #blocks  name\n\n");
	disks_each(put_partition, &partitions);
	tree_each(put_mapped_partition, &partitions);
	path_format(proc, "%s/proc", run.shadow);
	put(proc, "partitions", text_get(&partitions));
}

/* --- when ------------------------------------------------------------------------------------------ */

static uint64_t stamp_now(void)
{
	struct stat st;

	if (NEXT(stat)(run.mount, &st))
		return 0;
	return (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
}

static uint64_t stamp_made(void)
{
	char path[PATH_MAX], text[32];

	return path_format(path, "%s/stamp", run.shadow) && link_read(path, text, sizeof text)
		   ? strtoull(text, NULL, 10)
		   : 0;
}

static void sync_to(uint64_t now, bool anyway)
{
	char path[PATH_MAX], text[32];
	int fd;

	if (!path_format(path, "%s/lock", run.shadow))
		return;
	fd = NEXT(open)(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	while (flock(fd, LOCK_EX) && errno == EINTR)
		;
	if (anyway || stamp_made() != now) {
		now = stamp_now();
		make_all();
		snprintf(text, sizeof text, "%" PRIu64, now);
		put_link("", "stamp", text);
	}
	NEXT(close)(fd);
	atomic_store(&seen, now);
}

static void sync_if(bool anyway)
{
	int before = errno;
	uint64_t now;

	if (syncing || !run.on)
		return;
	syncing = true;
	now = stamp_now();
	if (now && (anyway || (now != atomic_load(&seen) && stamp_made() != now)))
		sync_to(now, anyway);
	else
		atomic_store(&seen, now);
	syncing = false;
	errno = before;
}

void shadow_sync(void)
{
	sync_if(false);
}

void shadow_sync_now(void)
{
	sync_if(true);
}
