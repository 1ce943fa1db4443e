/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-zone format: makes a file a zoned disk, by a zones file beside it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dmfs/rounding.h>

#include "../common/fail.h"
#include "io/zoned.h"
#include "zone.h"

#define SIZE_MAX_BYTES ((uint64_t)INT64_MAX)

int parse_size(const char *text, const char *what, uint64_t *out, GError **err)
{
	static const char units[] = "KMGT";
	bool hex = g_str_has_prefix(text, "0x");
	const char *unit;
	char *end;
	uint64_t n;

	errno = 0;
	n = g_ascii_strtoull(hex ? text + 2 : text, &end, hex ? 16 : 10);
	if (errno || !(hex ? g_ascii_isxdigit(text[2]) : g_ascii_isdigit(text[0])))
		return fail(err, EINVAL, "%s '%s' is not a number", what, text);
	unit = *end ? strchr(units, g_ascii_toupper(*end)) : NULL;
	if (*end && (!unit || end[1]))
		return fail(err, EINVAL, "%s '%s': K, M, G or T may follow a number", what, text);
	for (const char *u = units; unit && u <= unit; u++)
		if (__builtin_mul_overflow(n, 1024, &n))
			return fail(err, EINVAL, "%s '%s' is too large", what, text);
	*out = n;
	return 0;
}

/* The size: the option's, or the file's. */
static int find_size(const char *file, const struct options *o, uint64_t *bytes, GError **err)
{
	struct stat st;

	if (o->size)
		return parse_size(o->size, "--size", bytes, err);
	if (stat(file, &st) < 0)
		return fail(err, errno, "%s: %s; --size makes a new one", file, g_strerror(errno));
	*bytes = (uint64_t)st.st_size;
	return 0;
}

static int parse_zones(const char *file, const struct options *o, struct zones *z, uint64_t *capacity, GError **err)
{
	uint64_t bytes, zone;
	int r = find_size(file, o, &bytes, err);

	if (!r && !o->zone_size)
		r = fail(err, EINVAL, "--zone-size is needed: a power of two, 4K and more");
	if (!r)
		r = parse_size(o->zone_size, "--zone-size", &zone, err);
	if (r)
		return r;
	if (!dm_is_pow2(zone) || zone < 4096 || zone >> DM_SECTOR_SHIFT > 1u << 31)
		return fail(err, EINVAL, "--zone-size=%s: a power of two from 4K to 1T", o->zone_size);
	if (!bytes || bytes % 4096 || bytes > SIZE_MAX_BYTES || bytes / zone > INT32_MAX - 1)
		return fail(err, EINVAL, "a size of %" PRIu64 " bytes: a multiple of 4096, and less than 2^31 zones",
			    bytes);
	*capacity = zone;
	if (o->capacity && (r = parse_size(o->capacity, "--zone-capacity", capacity, err)))
		return r;
	if (!*capacity || *capacity > zone || *capacity % 4096)
		return fail(err, EINVAL, "--zone-capacity=%s: a multiple of 4096, up to the zone size", o->capacity);
	z->zone_sectors = (uint32_t)(zone >> DM_SECTOR_SHIFT);
	z->sectors = bytes >> DM_SECTOR_SHIFT;
	z->n = (unsigned)dm_div_up(bytes, zone);
	if (o->conventional < 0 || (unsigned)o->conventional > z->n)
		return fail(err, EINVAL, "--conventional=%d: 0 to the %u zones there are", o->conventional, z->n);
	return 0;
}

static int parse_rest(const struct options *o, struct zones *z, GError **err)
{
	bool aware = o->model && !strcmp(o->model, "host-aware");

	if (o->model && !aware && strcmp(o->model, "host-managed"))
		return fail(err, EINVAL, "--model=%s: host-managed or host-aware", o->model);
	if (o->max_open < 0 || o->max_active < 0 || (o->max_active && o->max_open > o->max_active))
		return fail(err, EINVAL, "--max-open=%d, --max-active=%d: numbers, and not more open than active",
			    o->max_open, o->max_active);
	z->model = aware ? DM_ZONES_HOST_AWARE : DM_ZONES_HOST_MANAGED;
	z->logical_block = o->block_size ? (unsigned)o->block_size : DM_SECTOR_SIZE;
	if (o->block_size < 0 || !dm_is_pow2(z->logical_block) || z->logical_block < 512 || z->logical_block > 4096)
		return fail(err, EINVAL, "--block-size=%d: 512, 1024, 2048 or 4096", o->block_size);
	z->max_open = (unsigned)o->max_open;
	z->max_active = (unsigned)o->max_active;
	z->reads_fail = o->constrained_reads;
	return 0;
}

static void fill_zones(struct zones *z, unsigned conventional, uint64_t capacity)
{
	z->zone = g_new0(struct zones_zone, z->n);
	for (unsigned i = 0; i < z->n; i++) {
		bool plain = i < conventional;

		z->zone[i].type = plain				    ? DM_ZONE_CONVENTIONAL
				  : z->model == DM_ZONES_HOST_AWARE ? DM_ZONE_SEQUENTIAL_PREFERRED
								    : DM_ZONE_SEQUENTIAL;
		z->zone[i].condition = plain ? DM_ZONE_NOT_WP : DM_ZONE_EMPTY;
		z->zone[i].capacity = zones_length(z, i);
		if (!plain)
			z->zone[i].capacity = (uint32_t)MIN(z->zone[i].capacity, capacity >> DM_SECTOR_SHIFT);
	}
}

/* A file of this length, whose sequential zones have no data. */
static int make_data(const char *file, const struct zones *z, const struct options *o, GError **err)
{
	off_t first = (off_t)(MIN(zones_start(z, (unsigned)o->conventional), z->sectors) << DM_SECTOR_SHIFT);
	off_t bytes = (off_t)(z->sectors << DM_SECTOR_SHIFT);
	int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0666), r = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	else if (!S_ISREG(st.st_mode))
		r = fail(err, EINVAL, "%s is not a regular file", file);
	else if (st.st_blocks && !o->force)
		r = fail(err, EEXIST, "%s has data, of which only those in conventional zones would stay: --force",
			 file);
	else if (ftruncate(fd, bytes) < 0)
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	else if (st.st_blocks && bytes > first &&
		 fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, bytes - first) < 0 &&
		 errno != EOPNOTSUPP)
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	else if (fsync(fd) < 0)
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return r;
}

/* Whoever has the disk now keeps it: then the zones file is locked. */
static int lock_old(const char *path, const struct options *o, struct zones_keeper **keeper, GError **err)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *absolute = dm_opener_absolute(&self, path, err);
	g_autoptr(GError) why = NULL;
	struct zones old = {0};
	int r;

	if (!absolute)
		return -ENOENT;
	if (!access(path, F_OK) && !o->force)
		return fail(err, EEXIST, "%s is there already: --force", path);
	r = zones_file_open(&self, absolute, true, &old, keeper, &why);
	zones_clear(&old);
	if (r == -ENOENT || r == -EINVAL) { /* none, or none that can be read */
		unlink(path);
		return 0;
	}
	return r ? fail(err, -r, "%s", why->message) : 0;
}

static int write_new(const char *path, const GString *text, GError **err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666), r = 0;

	if (fd < 0)
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	for (size_t done = 0; done < text->len && !r;) {
		ssize_t n = write(fd, text->str + done, text->len - done);

		if (n > 0)
			done += (size_t)n;
		else if (errno != EINTR)
			r = fail(err, errno, "%s: %s", path, g_strerror(errno));
	}
	if (!r && fsync(fd) < 0)
		r = fail(err, errno, "%s: %s", path, g_strerror(errno));
	close(fd);
	if (r)
		unlink(path);
	return r;
}

int format_file(const char *file, const struct options *o, GError **err)
{
	g_autofree char *path = g_strconcat(file, ZONES_SUFFIX, NULL);
	g_autoptr(GString) text = g_string_new(NULL);
	struct zones_keeper *keeper = NULL;
	struct zones z = {0};
	uint64_t capacity;
	int r = parse_zones(file, o, &z, &capacity, err);

	if (!r)
		r = parse_rest(o, &z, err);
	if (!r)
		r = lock_old(path, o, &keeper, err);
	if (!r)
		r = make_data(file, &z, o, err);
	if (!r) {
		fill_zones(&z, (unsigned)o->conventional, capacity);
		zones_print_head(&z, text);
		for (unsigned i = 0; i < z.n; i++)
			zones_print_zone(&z, i, z.zone[i], text);
		r = keeper ? keeper->rewrite(keeper, text) : write_new(path, text, err);
		if (r && !*err)
			fail(err, -r, "%s: %s", path, g_strerror(-r));
	}
	if (keeper)
		keeper->close(keeper);
	zones_clear(&z);
	return r;
}
