/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory for keys: locked, not dumped, wiped when freed; and libgcrypt made ready to use it.
 */
#ifndef DMFS_SECMEM_H
#define DMFS_SECMEM_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Before anything else of libgcrypt or of this file, as often as one likes, from any thread.  libgcrypt's own secure
 * memory (GCRY_CIPHER_SECURE, …) is here, too.
 */
int dm_gcrypt_init(GError **err);

/*
 * Zeroed memory that is neither swapped out nor dumped; NULL: no more room.  From the first call on the process leaves
 * no core dump and cannot be traced by other processes of its user.  Freeing wipes; NULL is fine.
 */
void *dm_secmem_alloc(size_t len);
void dm_secmem_free(void *p);

/*
 * Overwrites the stack below the caller: compilers and the dynamic linker put registers there, and what was a key may
 * have been in one.  At the end of a function whose callees have worked with a key.
 */
void dm_burn_stack(void);

/* Bytes handed out at the moment; whether p lies inside; whether all of it could be locked. */
size_t dm_secmem_used(void);
bool dm_secmem_owns(const void *p);
bool dm_secmem_locked(void);

#endif
