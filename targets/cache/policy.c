/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The policies there are (dmfs/cache_policy.h): one line each. */
#include "policy.h"

static const struct {
	const char *name;
	const struct cache_policy_type *type;
} policies[] = {
	{"smq", &cache_policy_smq},
	{"default", &cache_policy_smq},
	{"mq", &cache_policy_mq},
	{"cleaner", &cache_policy_cleaner},
};

const struct cache_policy_type *cache_policy_find(const char *name)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(policies); i++)
		if (!strcmp(name, policies[i].name))
			return policies[i].type;
	return NULL;
}
