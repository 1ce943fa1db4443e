/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The list of path selectors, and what they share. */
#include <string.h>

#include <dmfs/path_selector.h>

extern const struct dm_path_selector_type dm_round_robin, dm_queue_length, dm_service_time, dm_historical_service_time,
	dm_io_affinity;

static const struct dm_path_selector_type *const types[] = {
	&dm_round_robin, &dm_queue_length, &dm_service_time, &dm_historical_service_time, &dm_io_affinity,
};

const struct dm_path_selector_type *dm_path_selector_find(const char *name)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(types); i++)
		if (!strcmp(types[i]->name, name))
			return types[i];
	return NULL;
}

int dm_path_read_repeat_count(const char *selector, int argc, char **argv, int max, unsigned *count, GError **err)
{
	*count = 1;
	if (argc > max)
		return dm_fail(err, EINVAL, "multipath: %s ps: incorrect number of arguments: %d, %d are the most", selector,
			       argc, max);
	if (argc && !dm_parse_uint(argv[0], count))
		return dm_fail(err, EINVAL, "multipath: %s ps: invalid repeat count '%s'", selector, argv[0]);
	if (*count > 1) {
		dm_log_warn("multipath %s: repeat_count > 1 is deprecated, using 1 instead", selector);
		*count = 1;
	}
	return 0;
}
