/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Claims: what a target keeps something of its own on (metadata, exceptions, a log, a journal), nobody else may use so.
 *
 *	error = dm_claim_device(ti, dev, DM_MODE_RW, "metadata device", err);
 *
 * in ctr, after dm_get_device() and before the first look at what is there.  The engine ends it after dtr.
 *
 * It reaches down: a claim on a dmfs device is one on the devices and sectors beneath it, through all targets that
 * say they are straight (DM_TARGET_STRAIGHT), and moves along when a device there gets another table, which is refused
 * where it would meet another claim.  So two names, links, bind mounts or stacks of one file are one.
 *
 * Claims meet if they have sectors in common and one of them is for writing (mode); then the later one is refused,
 * -EBUSY.  Those of several tables of one device do not meet, for only one of them is live at a time: a reload is
 * no conflict.  Where tables of several devices settle among themselves who is active, as snapshots do that hand over,
 * the later one joins the claim of the earlier one.  Two targets of a type that hands over (DM_TARGET_HANDS_OVER) do not
 * meet in what they both claim as the same (device, range and what) while one of them is not active, which is loaded but
 * not resumed, or suspended: so LVM moves a volume below another name.  Who is to be resumed while the other one is
 * active is refused then; but if that one's device is used by nobody but a table that the resume replaces, it is
 * suspended first.
 *
 * Other programs are kept out by a lock on the file (fcntl(2), F_OFD_SETLK, for writing or reading as the mode says):
 * another daemon, and whoever else locks files, such as QEMU.  Where a file system has no locks this is logged and
 * goes without.  Block devices opened for writing are the daemon's alone anyway (O_EXCL).
 *
 * Any thread; may wait for I/O.
 */
#ifndef DMFS_CLAIM_H
#define DMFS_CLAIM_H

#include <dmfs/target.h>

/* what: what the device is to the target, for the error text. */
int dm_claim_device(struct dm_target *ti, struct dm_dev *dev, enum dm_mode mode, const char *what, GError **err);
/* A part of it: [sector, +sectors). */
int dm_claim_range(struct dm_target *ti, struct dm_dev *dev, uint64_t sector, uint64_t sectors, enum dm_mode mode,
		   const char *what, GError **err);
/* Joins the claims of another target (which may end before this one's), as if both were tables of one device. */
int dm_claim_with(struct dm_target *ti, struct dm_dev *dev, enum dm_mode mode, const char *what,
		  struct dm_target *other, GError **err);
/* Before the target's end, as when it lets a device go by a message. */
void dm_unclaim_device(struct dm_target *ti, struct dm_dev *dev);

#endif
