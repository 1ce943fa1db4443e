/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the fuzzers of dmfs-open's readers share: the readers' files, and what these want of the others. */
#ifndef DMFS_FUZZ_OPEN_H
#define DMFS_FUZZ_OPEN_H

#include <errno.h>
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../tools/common/tree.h"
#include "../../tools/dmfs-open/open.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int fail(GError **err, int code, const char *fmt, ...)
{
	va_list ap;

	if (err && !*err) {
		va_start(ap, fmt);
		*err = g_error_new_valist(g_quark_from_static_string("fuzz"), code, fmt, ap);
		va_end(ap);
	}
	return -code;
}

static inline struct src fuzz_src(const uint8_t *data, size_t size)
{
	return (struct src){.fd = -1, .mem = data, .size = size};
}

static inline GPtrArray *fuzz_notes(void)
{
	return g_ptr_array_new_with_free_func(g_free);
}

static inline void fuzz_put_crc32(const uint8_t *from, size_t len, uint8_t *to)
{
	uint32_t crc = ~0u;

	while (len--) {
		crc ^= *from++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	crc = GUINT32_TO_LE(~crc);
	memcpy(to, &crc, 4);
}

#endif
