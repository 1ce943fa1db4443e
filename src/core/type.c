/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The registry of target types. */
#include <string.h>

#include "type.h"

static const struct dm_target_type *const *types;

void dm_register_targets(const struct dm_target_type *const *list)
{
	types = list;
}

const struct dm_target_type *dm_find_type(const char *name)
{
	for (unsigned i = 0; types && types[i]; i++)
		if (!strcmp(types[i]->name, name))
			return types[i]->alias_of ? types[i]->alias_of : types[i];
	return NULL;
}

void dm_print_types(GString *out)
{
	for (unsigned i = 0; types && types[i]; i++) {
		const struct dm_target_type *t = types[i];

		if (!t->alias_of)
			g_string_append_printf(out, "%-16s v%u.%u.%u\n", t->name, t->version[0], t->version[1],
					       t->version[2]);
	}
}
