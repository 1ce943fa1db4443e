/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which store a name that is not a path belongs to. */
#include <string.h>

#include "store.h"

static const struct dm_store_scheme *const schemes[] = {NULL};

const struct dm_store_scheme *dm_store_scheme_find(const char *name)
{
	for (unsigned i = 0; schemes[i]; i++)
		if (!strncmp(name, schemes[i]->prefix, strlen(schemes[i]->prefix)))
			return schemes[i];
	return NULL;
}
