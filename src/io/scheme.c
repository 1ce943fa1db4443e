/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which store a name that is not a path belongs to. */
#include <glib.h>
#include <string.h>

#include "nbd.h"
#include "store.h"

static const struct dm_store_scheme schemes[] = {
	{"nbd://", dm_nbd_open},
	{"nbds://", dm_nbd_open},
	{"nbd+unix://", dm_nbd_open},
	{"nbds+unix://", dm_nbd_open},
};

const struct dm_store_scheme *dm_store_scheme_more;

const struct dm_store_scheme *dm_store_scheme_find(const char *name)
{
	if (dm_store_scheme_more && g_str_has_prefix(name, dm_store_scheme_more->prefix))
		return dm_store_scheme_more;
	for (unsigned i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
		if (!strncmp(name, schemes[i].prefix, strlen(schemes[i].prefix)))
			return &schemes[i];
	return NULL;
}
