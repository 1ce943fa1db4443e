/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The daemon's life, from its mounts to its end.  Called by main. */
#ifndef DMFS_FS_SERVE_H
#define DMFS_FS_SERVE_H

/* Mounts what has options (dmfs_mount_options()), and serves.  0, or -1 with the reason on stderr and all ended. */
int dmfs_serve_begin(void);
/* Until the mount is gone, or dmfs_loop_stop(); then ends all.  The daemon's exit status. */
int dmfs_serve(void);
/* Told again to end: does not wait for long for a store that hangs.  Any thread. */
void dmfs_end_in_a_hurry(void);

#endif
