/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The policies there are. */
#ifndef CACHE_POLICIES_H
#define CACHE_POLICIES_H

#include <string.h>

#include <dmfs/cache_policy.h>

extern const struct cache_policy_type cache_policy_smq, cache_policy_mq, cache_policy_cleaner;

#endif
