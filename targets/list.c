/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The target list: one line a type, in the order `targets` prints them. */
#include "list.h"

#define TARGETS(T) \
	T(cache)           \
	T(clone)           \
	T(crypt)           \
	T(delay)           \
	T(flakey)          \
	T(dust)            \
	T(unstriped)       \
	T(verity)          \
	T(switch)          \
	T(integrity)       \
	T(log_writes)      \
	T(mirror)          \
	T(raid)            \
	T(multipath)       \
	T(snapshot_merge)  \
	T(snapshot_origin) \
	T(snapshot)        \
	T(thin_pool)       \
	T(thin)            \
	T(zero)            \
	T(striped)         \
	T(linear)          \
	T(writecache)      \
	T(era)             \
	T(zoned)           \
	T(error)           \
	T(io_err)

#define DECLARE(name) extern const struct dm_target_type name##_target;
TARGETS(DECLARE)

#define ENTRY(name) &name##_target,
const struct dm_target_type *const dm_target_list[] = {TARGETS(ENTRY) NULL};
