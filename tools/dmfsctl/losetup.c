/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * losetup NAME: a loop device over the image, with direct I/O (the image has a page cache above it already: the loop
 * device's) and the sector size of what is below.
 *
 * That sector size is the largest that a table below asks for, or a block device has.  If the device takes no discards,
 * neither does the loop device, which else would find out at the first one, or never.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "dmfsctl.h"

#include <dmfs/rounding.h>

#define MAX_DEPTH 256 /* of a stack of dmfs devices */
#define TRIES 16      /* another may take the loop device that was free */

/* --- the sector size ------------------------------------------------------------------- */

/* KEY:BYTES in a table line, as crypt, integrity, ... have it; 0 if there is none. */
static unsigned named_size(const char *line)
{
	static const char *const keys[] = {"sector_size:", "block_size:"};
	g_auto(GStrv) words = tree_words(line);

	for (unsigned i = 0; words[i]; i++)
		for (unsigned k = 0; k < G_N_ELEMENTS(keys); k++)
			if (g_str_has_prefix(words[i], keys[k]))
				return (unsigned)g_ascii_strtoull(words[i] + strlen(keys[k]), NULL, 10);
	return 0;
}

/* The word of a table line that is the target's block size in bytes: verity's data blocks, writecache's blocks. */
static unsigned positional_size(const char *line)
{
	g_auto(GStrv) words = tree_words(line);
	guint n = g_strv_length(words);

	if (n > 6 && !strcmp(words[2], "verity"))
		return (unsigned)g_ascii_strtoull(words[6], NULL, 10);
	if (n > 6 && !strcmp(words[2], "writecache"))
		return (unsigned)g_ascii_strtoull(words[6], NULL, 10);
	return 0;
}

static unsigned block_device_size(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), size = 0;

	if (fd < 0)
		return 0;
	if (ioctl(fd, BLKSSZGET, &size))
		size = 0;
	close(fd);
	return (unsigned)size;
}

static unsigned sector_size(const char *name, unsigned depth)
{
	g_autofree char *path = tree_path(ctl_root(), name, "table"), *text = NULL;
	g_auto(GStrv) lines = NULL;
	unsigned size = 512;
	struct device *d;
	int error;

	if (!tree_read(path, &text))
		lines = tree_lines(text);
	for (unsigned i = 0; lines && lines[i]; i++)
		size = MAX(size, MAX(named_size(lines[i]), positional_size(lines[i])));
	d = depth < MAX_DEPTH ? device_get(name, &error) : NULL;
	for (unsigned i = 0; d && i < device_deps(d)->len; i++) {
		struct dep *dep = d->deps->pdata[i];

		size = MAX(size, dep->mapped ? sector_size(dep->text, depth + 1) : block_device_size(dep->text));
	}
	device_free(d);
	return size <= 4096 && dm_is_pow2(size) ? size : 512;
}

/* --- the loop device ------------------------------------------------------------------------ */

static int configure(int loop, int image, const char *path, unsigned size, bool readonly)
{
	struct loop_config config = {
		.fd = (__u32)image,
		.block_size = size,
		.info = {.lo_flags = LO_FLAGS_DIRECT_IO | (readonly ? LO_FLAGS_READ_ONLY : 0)},
	};

	g_strlcpy((char *)config.info.lo_file_name, path, LO_NAME_SIZE);
	return ioctl(loop, LOOP_CONFIGURE, &config) ? -errno : 0;
}

static void check_direct(int loop, const char *device)
{
	struct loop_info64 info;

	if (!ioctl(loop, LOOP_GET_STATUS64, &info) && !(info.lo_flags & LO_FLAGS_DIRECT_IO))
		say("%s: the kernel does no direct I/O on it", device);
}

/* Asked with a range beyond the end, where nothing would be discarded. */
static bool takes_discards(int image)
{
	off_t end = lseek(image, 0, SEEK_END);

	return !fallocate(image, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end, 4096) || errno != EOPNOTSUPP;
}

/*
 * Linux 6.11 and later take a discard that the file refuses for an answer until the loop device is attached again.
 * Before 6.9 what is written to sysfs is forgotten then as well; in between it would stay, for whoever comes next.
 */
static void refuse_discards(int number)
{
	g_autofree char *device = g_strdup_printf("/dev/loop%d", number);
	g_autofree char *limit = g_strdup_printf("/sys/block/loop%d/queue/discard_max_bytes", number);
	uint64_t range[2] = {0, 4096};
	int fd = open(device, O_RDWR | O_CLOEXEC);
	unsigned major = 0, minor = 0;
	struct utsname kernel;

	if (fd < 0)
		return;
	if (ioctl(fd, BLKDISCARD, range) && errno == EOPNOTSUPP && !uname(&kernel) &&
	    sscanf(kernel.release, "%u.%u", &major, &minor) == 2 && (major < 6 || (major == 6 && minor < 9)))
		tree_write_text(limit, "0\n");
	close(fd);
}

/* A free loop device made ours; its number, or a negative errno. */
static int attach_free(int image, const char *path, unsigned size, bool readonly)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), error = -EBUSY, number = -1;

	if (control < 0)
		return -errno;
	for (int i = 0; error == -EBUSY && i < TRIES; i++) {
		g_autofree char *device = NULL;
		int loop;

		number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0) {
			error = -errno;
			break;
		}
		device = g_strdup_printf("/dev/loop%d", number);
		loop = open(device, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		error = loop < 0 ? -errno : configure(loop, image, path, size, readonly);
		if (!error)
			check_direct(loop, device);
		if (loop >= 0)
			close(loop);
	}
	close(control);
	return error ? error : number;
}

bool cmd_losetup(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	g_autofree char *path = NULL;
	bool readonly = opt.readonly;
	struct device *d;
	int image, number, error = -ENXIO;

	(void)argc;
	if (!ident_need(*argv, &id))
		return false;
	d = id.name ? device_get(id.name, &error) : NULL;
	if (!d)
		return say("Device does not exist.");
	readonly |= d->readonly;
	device_free(d);
	path = tree_path(ctl_root(), id.name, "image");
	image = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (image < 0)
		return say("%s: %s", path, g_strerror(errno));
	number = attach_free(image, path, sector_size(id.name, 0), readonly);
	if (number >= 0 && !readonly && !takes_discards(image))
		refuse_discards(number);
	close(image);
	if (number < 0)
		return say("%s: no loop device for it: %s", id.name, g_strerror(-number));
	printf("/dev/loop%d\n", number);
	return true;
}
