/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multipath's table line:
 *
 *   <#features> [<feature>]* <#hw handler args> [<hw handler> [<arg>]*] <#groups> <first group>
 *       [<selector> <#selector args> [<arg>]* <#paths> <#path args> [<path> [<arg>]*]+]*
 *
 *   features: queue_if_no_path, retain_attached_hw_handler, pg_init_retries <1 to 50>,
 *       pg_init_delay_msecs <0 to 60000>, queue_mode bio|rq|mq
 */
#include <strings.h>

#include "multipath.h"

#define MAX_FEATURES 8
#define MAX_COUNT 1024 /* of everything else that is counted */

static int queue_mode(struct multipath *m, const char *word, GError **err)
{
	if (!strcasecmp(word, "bio"))
		m->queue_mode = QUEUE_MODE_BIO;
	else if (!strcasecmp(word, "rq") || !strcasecmp(word, "mq"))
		m->queue_mode = QUEUE_MODE_RQ;
	else
		return dm_fail(err, EINVAL, "multipath: Unknown 'queue_mode' requested: '%s', bio, rq or mq", word);
	return 0;
}

static int feature(struct multipath *m, const char *name, struct dm_args *as, unsigned *left, GError **err)
{
	const char *value;

	if (!strcasecmp(name, "queue_if_no_path")) {
		m->queue_if_no_path = true;
		return 0;
	}
	if (!strcasecmp(name, "retain_attached_hw_handler")) {
		m->retain_attached_hw_handler = true;
		return 0;
	}
	value = *left ? dm_shift_arg(as) : NULL;
	if (!value)
		return dm_fail(err, EINVAL, "multipath: Unrecognised multipath feature request '%s'", name);
	--*left;
	if (!strcasecmp(name, "pg_init_retries"))
		return dm_read_uint(value, 1, 50, "multipath", "pg_init_retries", &m->pg_init_retries, err);
	if (!strcasecmp(name, "pg_init_delay_msecs"))
		return dm_read_uint(value, 0, 60000, "multipath", "pg_init_delay_msecs", &m->pg_init_delay_ms, err);
	if (!strcasecmp(name, "queue_mode"))
		return queue_mode(m, value, err);
	return dm_fail(err, EINVAL, "multipath: Unrecognised multipath feature request '%s'", name);
}

static int features(struct multipath *m, struct dm_args *as, GError **err)
{
	unsigned left = 0;
	int error = dm_read_arg_group(as, 0, MAX_FEATURES, false, "multipath", "feature args", &left, err);

	while (!error && left) {
		const char *name = dm_shift_arg(as);

		left--;
		error = feature(m, name, as, &left, err);
	}
	if (m->queue_mode == QUEUE_MODE_BIO)
		m->retain_attached_hw_handler = true;
	return error;
}

static int hw_handler(struct multipath *m, struct dm_args *as, GError **err)
{
	unsigned n = 0;
	int error = dm_read_arg_group(as, 0, MAX_COUNT, false, "multipath", "hardware handler args", &n, err);

	if (error || !n)
		return error;
	if (m->queue_mode == QUEUE_MODE_BIO)
		dm_log_err("multipath: bio-based multipath doesn't allow hardware handler args");
	else
		m->hw_handler = g_strdup(as->argv[0]);
	while (n--)
		dm_shift_arg(as);
	return 0;
}

static int path(struct group *g, struct dm_args *as, unsigned n_args, GError **err)
{
	struct multipath *m = g->m;
	g_autoptr(GError) why = NULL;
	const char *name = dm_shift_arg(as);
	struct path *path = g_new0(struct path, 1);
	int error;

	path->group = g;
	g_ptr_array_add(m->paths, path);
	g_ptr_array_add(g->ps.paths, &path->p);
	error = dm_get_device(m->ti, name, dm_target_mode(m->ti), &path->p.dev, &why);
	if (error)
		return dm_fail(err, -error, "multipath: error getting device '%s': %s", name, why ? why->message : "");
	error = g->ps.type->add_path(&g->ps, &path->p, (int)n_args, as->argv, err);
	while (n_args--)
		dm_shift_arg(as);
	return error;
}

static int selector(struct group *g, struct dm_args *as, GError **err)
{
	const char *name = dm_shift_arg(as);
	unsigned n = 0;
	int error;

	g->ps.type = dm_path_selector_find(name);
	if (!g->ps.type)
		return dm_fail(err, EINVAL, "multipath: unknown path selector type '%s'", name);
	error = dm_read_arg_group(as, 0, MAX_COUNT, false, "multipath", "path selector args", &n, err);
	if (!error && g->ps.type->create)
		error = g->ps.type->create(&g->ps, (int)n, as->argv, err);
	while (!error && n--)
		dm_shift_arg(as);
	return error;
}

static int group(struct multipath *m, struct dm_args *as, GError **err)
{
	struct group *g = g_new0(struct group, 1);
	unsigned n_paths = 0, n_args = 0;
	const char *word;
	int error;

	g->m = m;
	g->ps.paths = g_ptr_array_new();
	g_ptr_array_add(m->groups, g);
	g->number = m->groups->len;
	if (as->argc < 2)
		return dm_fail(err, EINVAL, "multipath: not enough priority group arguments: %d left for group %u", as->argc,
			       g->number);
	error = selector(g, as, err);
	if (error)
		return error;
	word = dm_shift_arg(as);
	if (!word)
		return dm_fail(err, EINVAL, "multipath: the number of paths of group %u is missing", g->number);
	error = dm_read_uint(word, 1, MAX_COUNT, "multipath", "number of paths", &n_paths, err);
	word = error ? NULL : dm_shift_arg(as);
	if (!error && !word)
		return dm_fail(err, EINVAL, "multipath: the number of path args of group %u is missing", g->number);
	if (!error)
		error = dm_read_uint(word, 0, MAX_COUNT, "multipath", "number of path args", &n_args, err);
	for (unsigned i = 0; i < n_paths && !error; i++) {
		if ((unsigned)as->argc < 1 + n_args)
			return dm_fail(err, EINVAL,
				       "multipath: not enough path parameters: path %u of group %u takes %u words, %d are left",
				       i + 1, g->number, 1 + n_args, as->argc);
		error = path(g, as, n_args, err);
	}
	return error;
}

int multipath_parse(struct multipath *m, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc, argv};
	unsigned n_groups = 0, first = 0;
	const char *groups_word, *first_word;
	int error;

	error = features(m, &as, err);
	if (!error)
		error = hw_handler(m, &as, err);
	if (error)
		return error;
	groups_word = dm_shift_arg(&as);
	first_word = dm_shift_arg(&as);
	if (!first_word)
		return dm_fail(err, EINVAL, "multipath: the numbers of priority groups and of the first one are missing");
	error = dm_read_uint(groups_word, 0, MAX_COUNT, "multipath", "number of priority groups", &n_groups, err);
	if (!error)
		error = dm_read_uint(first_word, 0, MAX_COUNT, "multipath", "initial priority group number", &first, err);
	if (error)
		return error;
	if (!n_groups != !first)
		return dm_fail(err, EINVAL, "multipath: invalid initial priority group %u of %u", first, n_groups);
	while (as.argc && !error)
		error = group(m, &as, err);
	if (error)
		return error;
	if (m->groups->len != n_groups)
		return dm_fail(err, EINVAL, "multipath: priority group count mismatch: %u are announced, %u are there",
			       n_groups, m->groups->len);
	m->next = first && first <= n_groups ? m->groups->pdata[first - 1] : NULL;
	return 0;
}
