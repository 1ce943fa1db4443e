/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-luks reading what should be BitLocker's metadata: first the boot sector, then the metadata. */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../tools/dmfs-luks/fve.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int fail(GError **err, int code, const char *fmt, ...)
{
	(void)err;
	(void)fmt;
	return -code;
}

/* All of it is within the metadata. */
static void check_sealed(const struct fve_sealed *s, const uint8_t *block, size_t len)
{
	if (s->bytes && (s->bytes < block || s->data_bytes <= FVE_KEY_HEADER_BYTES ||
			 s->data_bytes + FVE_NONCE_BYTES + FVE_MAC_BYTES > (size_t)(block + len - s->bytes)))
		abort();
}

/* In order, without gaps, to the end; none from beyond the file. */
static void check_segments(const GArray *segments, uint64_t sectors)
{
	uint64_t at = 0;

	for (unsigned i = 0; i < segments->len; i++) {
		const struct fve_segment *s = &g_array_index(segments, struct fve_segment, i);

		if (s->start != at || !s->sectors ||
		    (!s->zero && (s->from > sectors || s->sectors > sectors - s->from)))
			abort();
		at += s->sectors;
	}
	if (at > sectors || sectors - at >= 8)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint64_t sizes[] = {0, 1, 2048, 2051, 204800, (uint64_t)1 << 40, INT64_MAX / 512};
	g_autofree uint8_t *block = NULL;
	struct fve_sealed vmk;
	struct fve v = {0};
	const uint8_t *salt;
	size_t len, at = 0;

	if (size < FVE_BOOT_BYTES)
		return 0;
	len = MIN(size - FVE_BOOT_BYTES, FVE_METADATA_BYTES);
	block = g_memdup2(data + FVE_BOOT_BYTES, len);
	if (fve_read_boot(data, &v, NULL) || fve_read_metadata(block, len, &v, NULL))
		return 0;
	check_sealed(&v.clear_vmk, block, len);
	check_sealed(&v.fvek, block, len);
	while (fve_next_passphrase(block, len, &at, &salt, &vmk)) {
		check_sealed(&vmk, block, len);
		if (salt < block || salt + 16 > block + len)
			abort();
	}
	if (v.clear_key && (v.clear_key < block || v.clear_key + 32 > block + len))
		abort();
	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		GArray *segments = NULL;

		if (!fve_segments(&v, sizes[i], &segments, NULL))
			check_segments(segments, sizes[i]);
		if (segments)
			g_array_unref(segments);
	}
	return 0;
}
