/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The daemon's end. */
#ifndef DMFS_FS_ENDING_H
#define DMFS_FS_ENDING_H

/* Unmounts, waits for what is under way, flushes.  The daemon's exit status. */
int dmfs_end(void);
/* Told again to end: does not wait for long for a store that hangs.  Any thread. */
void dmfs_end_in_a_hurry(void);

#endif
