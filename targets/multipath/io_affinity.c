/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io-affinity: the path that the table gives to the processor that sends the request.
 *
 *   each path: <cpumask>    hexadecimal, groups of 32 bits separated by commas
 *   its status: <map misses>    requests from processors that no path was given to, of the whole group
 *
 * A processor that several masks hold belongs to the first.  A request from a processor without a path, or whose path
 * has failed, goes by any other.
 */
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/path_selector.h>

struct io_affinity {
	unsigned cpus;
	struct dm_path **of_cpu;
	atomic_uint misses;
};

struct io_affinity_path {
	uint8_t *cpus; /* one byte a processor, behind this */
};

static int io_affinity_create(struct dm_path_selector *ps, int argc, char **argv, GError **err)
{
	struct io_affinity *s = ps->context = g_new0(struct io_affinity, 1);

	s->cpus = (unsigned)MAX(sysconf(_SC_NPROCESSORS_CONF), 1);
	s->of_cpu = g_new0(struct dm_path *, s->cpus);
	return 0;
}

static void io_affinity_destroy(struct dm_path_selector *ps)
{
	struct io_affinity *s = ps->context;

	g_free(s->of_cpu);
	g_free(s);
}

/* Sets a byte of cpus for each bit of the mask; false if it is no mask or names a processor beyond them. */
static bool parse_mask(const char *mask, uint8_t *cpus, unsigned n)
{
	unsigned bit = 0, digits = 0;

	for (const char *p = mask + strlen(mask); p-- > mask;) {
		int digit = g_ascii_xdigit_value(*p);

		if (*p == ',' && digits) {
			bit = (bit + 31) / 32 * 32;
			digits = 0;
			continue;
		}
		if (digit < 0 || ++digits > 8)
			return false;
		for (int i = 0; i < 4; i++, bit++)
			if (digit >> i & 1) {
				if (bit >= n)
					return false;
				cpus[bit] = 1;
			}
	}
	return digits > 0;
}

static int io_affinity_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct io_affinity *s = ps->context;
	struct io_affinity_path *p;
	bool any = false;

	if (argc != 1)
		return dm_fail(err, EINVAL, "multipath: io-affinity ps: invalid number of arguments: %d, one mask of processors",
			       argc);
	p = path->context = g_malloc0(sizeof *p + s->cpus);
	p->cpus = (uint8_t *)(p + 1);
	if (!parse_mask(argv[0], p->cpus, s->cpus))
		return dm_fail(err, EINVAL, "multipath: io-affinity ps: invalid cpumask '%s' for %u processors", argv[0],
			       s->cpus);
	for (unsigned cpu = 0; cpu < s->cpus; cpu++) {
		if (!p->cpus[cpu])
			continue;
		if (s->of_cpu[cpu]) {
			dm_log_warn("multipath io-affinity: CPU mapping for %u exists. Ignoring.", cpu);
			continue;
		}
		s->of_cpu[cpu] = path;
		any = true;
	}
	if (!any)
		return dm_fail(err, EINVAL, "multipath: io-affinity ps: No new/valid CPU mapping found in '%s'", argv[0]);
	return 0;
}

static struct dm_path *io_affinity_select(struct dm_path_selector *ps, uint64_t bytes)
{
	struct io_affinity *s = ps->context;
	unsigned cpu = (unsigned)MAX(sched_getcpu(), 0);
	struct dm_path *path = cpu < s->cpus ? s->of_cpu[cpu] : NULL;

	if (path && dm_path_usable(path))
		return path;
	if (!path)
		atomic_fetch_add_explicit(&s->misses, 1, memory_order_relaxed);
	for (unsigned i = 0; i < ps->paths->len; i++) {
		path = ps->paths->pdata[i];
		if (dm_path_usable(path))
			return path;
	}
	return NULL;
}

static void print_mask(const struct io_affinity *s, const struct io_affinity_path *p, GString *out)
{
	g_string_append_c(out, ' ');
	for (unsigned digit = (s->cpus + 3) / 4; digit-- > 0;) {
		unsigned value = 0;

		for (unsigned i = 0; i < 4; i++)
			if (digit * 4 + i < s->cpus)
				value |= (unsigned)p->cpus[digit * 4 + i] << i;
		g_string_append_printf(out, "%x", value);
		if (digit && digit % 8 == 0)
			g_string_append_c(out, ',');
	}
}

static void io_affinity_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	struct io_affinity *s = ps->context;

	if (!path)
		g_string_append(out, " 0");
	else if (type == DM_STATUS_TABLE)
		print_mask(s, path->context, out);
	else
		g_string_append_printf(out, " %u", atomic_load(&s->misses));
}

extern const struct dm_path_selector_type dm_io_affinity;
const struct dm_path_selector_type dm_io_affinity = {
	.name = "io-affinity",
	.table_args = 1,
	.info_args = 1,
	.create = io_affinity_create,
	.destroy = io_affinity_destroy,
	.add_path = io_affinity_add_path,
	.select = io_affinity_select,
	.status = io_affinity_status,
};
