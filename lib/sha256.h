/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 of several messages of one length at once (hash.c). */
#ifndef DMFS_LIB_SHA256_H
#define DMFS_LIB_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define SHA256_SIZE 32
#define SHA256_LANES 16

/*
 * How many of n messages sha256_lanes() takes at once on this processor: up to SHA256_LANES; 0 or 1: it would be no
 * faster.
 */
unsigned sha256_lanes_pay(unsigned n);
/* The digests of prefix, data[i] (len bytes), suffix, for as many as that. */
void sha256_lanes(const struct iovec *prefix, const void *const *data, size_t len, const struct iovec *suffix,
		  unsigned n, uint8_t *digests);

/* Of what this processor has, use only these; any at first.  For tests. */
#define SHA256_TWO 2u
#define SHA256_SIXTEEN 4u
void sha256_lanes_allow(unsigned which);

#endif
