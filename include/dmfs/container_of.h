/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From a pointer to an embedded struct to the struct around it: works, timers and waiters are found back so. */
#ifndef DMFS_CONTAINER_OF_H
#define DMFS_CONTAINER_OF_H

#include <stddef.h>

/* ptr must point to a `member` of a `type`; the compiler checks that it has the member's type. */
#ifndef container_of
#define container_of(ptr, type, member)                                                                 \
	({                                                                                              \
		__typeof__(((type *)0)->member) *member_ = (ptr);                                       \
		(type *)(void *)((char *)member_ - offsetof(type, member));                             \
	})
#endif

#endif
