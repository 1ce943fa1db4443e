/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rules about locks, asserted where they matter. */
#ifndef DMFS_LOCKED_H
#define DMFS_LOCKED_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>

/* The caller, or at least somebody, holds the mutex.  Costs a failed attempt to take it. */
#define dm_assert_locked(mutex) assert(pthread_mutex_trylock(mutex) == EBUSY)

#endif
