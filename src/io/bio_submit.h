/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_IO_BIO_SUBMIT_H
#define DMFS_IO_BIO_SUBMIT_H

#include <dmfs/bio.h>

/*
 * dm_submit() that is on its way (or done) at return even inside map() or
 * end().  Only for who waits for this very bio; it must not depend on bios
 * that the thread has queued before.
 */
void dm_submit_now(struct dm_bio *bio);

#endif
