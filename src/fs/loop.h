/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The threads that read requests from /dev/fuse: workers, of each connection its own.
 *
 * How many: as many as make the machine busy, plus one for each that waits (dm_block_begin()).  Of those that wait for
 * an image at most so many (see loop.c): then there is always one for a control file.
 */
#ifndef DMFS_FS_LOOP_H
#define DMFS_FS_LOOP_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

#include "buf.h"
#include "channel.h"

/* --- for who handles a request ------------------------------------------------------- */

/* A large request was seen: tell so, for the worker's next ones. */
void dmfs_loop_large(void);
/* The calling worker's buffer. */
struct dmfs_buf *dmfs_loop_buf(void);
/*
 * The request being handled is answered later, with dmfs_channel_use() of what this returns.  dmfs_loop_answered() says
 * that it was, from any thread.
 */
struct dmfs_channel *dmfs_loop_later(void);
void dmfs_loop_answered(struct dmfs_channel *c);
/* The same, and leaves the buffer to the request; dmfs_loop_release() gives both back, from any thread. */
struct dmfs_channel *dmfs_loop_keep(void);
void dmfs_loop_release(struct dmfs_buf *buf, struct dmfs_channel *c);

/* --- for main ------------------------------------------------------------------------- */

/* 0 or a negative errno.  `owner` is the session's userdata. */
int dmfs_loop_start(unsigned nr, struct fuse_session *session, void *owner, unsigned threads);
/*
 * Waits until is_so() returns true.  It is called with a lock held, at first and whenever what one of the functions
 * below says has changed.
 */
void dmfs_loop_wait(bool (*is_so)(void));
bool dmfs_loop_ready(unsigned nr);   /* the kernel has got its first answer */
bool dmfs_loop_stopped(unsigned nr); /* the connection is gone, or never came about */
bool dmfs_loop_settled(unsigned nr); /* nothing is left to be answered later */
bool dmfs_loop_told(void);           /* dmfs_loop_stop() was called */
/* Async-signal-unsafe. */
void dmfs_loop_stop(void);
/* Ends all workers of a connection; what is to be answered later may still be. */
void dmfs_loop_end(unsigned nr);

#endif
