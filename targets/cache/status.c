/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is seen of a cache and said to it: status, table, messages. */
#include <inttypes.h>

#include "cache.h"

#define INVALIDATIONS 256u /* at once */

static void status_info(struct cache *c, GString *out)
{
	struct cache_meta_counters n = c->base;
	enum cache_mode mode = atomic_load(&c->mode);
	bool passdown = atomic_load(&c->passdown);
	uint64_t used, total;

	if (mode == CACHE_FAIL) {
		g_string_append(out, "Fail");
		return;
	}
	cache_meta_usage(c->meta, &used, &total);
	g_string_append_printf(out, "8 %" PRIu64 "/%" PRIu64 " %u %u/%u", used, total, c->block_sectors,
			       resident_count(c->resident), c->cblocks);
	g_string_append_printf(out, " %u %u %u %u %u %u %u", n.read_hits + (uint32_t)cache_sum(c, READ_HITS),
			       n.read_misses + (uint32_t)cache_sum(c, READ_MISSES),
			       n.write_hits + (uint32_t)cache_sum(c, WRITE_HITS),
			       n.write_misses + (uint32_t)cache_sum(c, WRITE_MISSES), atomic_load(&c->demotions),
			       atomic_load(&c->promotions), resident_nr_dirty(c->resident));
	g_string_append_printf(out, " %d %s%s%s", 1 + (c->meta_version == 2) + !passdown,
			       c->meta_version == 2 ? "metadata2 " : "", cache_io_modes[c->io_mode],
			       passdown ? "" : " no_discard_passdown");
	g_string_append_printf(out, " 2 migration_threshold %" PRIu64 " %s ", atomic_load(&c->migration_threshold),
			       c->type->name);
	c->type->print(c->policy, out);
	g_string_append_printf(out, " %s %s", mode == CACHE_RW ? "rw" : "ro",
			       cache_meta_needs_check(c->meta) ? "needs_check" : "-");
}

void cache_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct cache *c = ti->private;

	if (type == DM_STATUS_INFO) {
		status_info(c, out);
		return;
	}
	dm_dev_print(c->meta_dev, out);
	g_string_append_c(out, ' ');
	dm_dev_print(c->fast, out);
	g_string_append_c(out, ' ');
	dm_dev_print(c->origin, out);
	g_string_append_printf(out, " %u %s", c->block_sectors, c->args);
}

void cache_commit(struct dm_target *ti)
{
	struct cache *c = ti->private;

	if (!atomic_load(&c->suspended) && cache_is_rw(c) && cache_meta_changed(c->meta))
		dm_group_commit_sync(c->commits);
}

struct range {
	uint64_t begin, end;
};

static bool parse_range(struct cache *c, const char *word, struct range *out)
{
	g_auto(GStrv) ends = g_strsplit(word, "-", 2);

	if (!dm_parse_u64(ends[0], &out->begin))
		return false;
	out->end = out->begin + 1;
	if (ends[1] && !dm_parse_u64(ends[1], &out->end))
		return false;
	return out->begin < out->end && out->end <= c->cblocks;
}

static int invalidate(struct cache *c, unsigned n, char **words, GError **err)
{
	g_autofree struct range *ranges = g_new0(struct range, n + 1);

	if (c->io_mode != CACHE_PASSTHROUGH)
		return dm_fail(err, EPERM, "cache: cache has to be in passthrough mode for invalidation");
	if (atomic_load(&c->suspended))
		return dm_fail(err, EBUSY, "cache: the device is suspended");
	for (unsigned i = 0; i < n; i++)
		if (!parse_range(c, words[i], &ranges[i]))
			return dm_fail(err, EINVAL,
				       "cache: '%s' is not a range of cache blocks: <begin>-<one past the end> or one "
				       "number, below %u",
				       words[i], c->cblocks);
	for (unsigned i = 0; i < n; i++)
		for (uint64_t b = ranges[i].begin; b < ranges[i].end; b++) {
			uint64_t oblock = resident_oblock(c->resident, (uint32_t)b);

			if (oblock == RESIDENT_NONE)
				continue;
			cache_wait_migrations(c, INVALIDATIONS);
			cache_invalidate(c, oblock, NULL);
		}
	cache_wait_migrations(c, 0);
	return cache_is_rw(c) ? 0 : dm_fail(err, EIO, "cache: the metadata has failed");
}

int cache_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct cache *c = ti->private;

	if (!cache_is_rw(c))
		return dm_fail(err, EOPNOTSUPP,
			       "cache: unable to service cache target messages in READ_ONLY or FAIL mode");
	if (!g_ascii_strcasecmp(argv[0], "invalidate_cblocks"))
		return invalidate(c, (unsigned)argc - 1, argv + 1, err);
	if (argc != 2)
		return dm_fail(err, EINVAL,
			       "cache: '%s' has %d words: <key> <value>, or invalidate_cblocks <range>*, are known",
			       argv[0], argc);
	if (cache_set_value(c, c->policy, argv[0], argv[1]))
		return dm_fail(err, EINVAL, "cache: bad config value for %s: %s", argv[0], argv[1]);
	cache_wake(c);
	return 0;
}
