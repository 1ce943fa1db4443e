/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Large runs of sectors, spread over the cores.
 *
 * A run is cut into pieces.  The thread that has it works on them one after
 * the other, and so do helpers from a queue's threads, as soon as they get
 * there; whoever ends the last piece calls done().  Nobody waits: a helper that
 * comes too late finds nothing to do.
 */
#ifndef DMFS_CRYPT_SPREAD_H
#define DMFS_CRYPT_SPREAD_H

#include "crypt.h"

struct spreader;

struct spread_run {
	struct crypt_engine *engine;
	bool encrypt;
	uint64_t sector; /* as for crypt_engine_encrypt() */
	const struct iovec *iov; /* stays until done() */
	int iovcnt;
	uint8_t *dst; /* decryption: NULL, in place */
	size_t len;
	void (*done)(void *context, int error);
	void *context;
};

struct spreader *spreader_new(void);
/* With all runs done; waits for helpers that are late. */
void spreader_free(struct spreader *s);
/* Whether a run of this length is worth it now. */
bool spread_pays(struct spreader *s, const struct crypt_engine *e, size_t len);
/* Calls done() once, from any thread, perhaps before it returns. */
void spread_start(struct spreader *s, const struct spread_run *run);

#endif
