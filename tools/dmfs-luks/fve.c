/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is where on a BitLocker volume (fve.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../common/fail.h"
#include "fve.h"

#include <dmfs/le.h>

#define BLOCK_HEADER 64 /* in front of the metadata: version, state, volume size */
#define HEADER 48	/* of the metadata: its size, the method */
#define ENTRY_HEADER 8	/* size, type, value type, version */
#define VMK_HEADER 28	/* GUID, time, unknown, protection */

enum { STATE_ENCRYPTED = 4 };
enum { ENTRY_PROPERTY = 0, ENTRY_VMK = 2, ENTRY_FVEK = 3, ENTRY_VOLUME_HEADER = 15 };
enum { VALUE_KEY = 1, VALUE_STRETCH = 3, VALUE_SEALED = 5 };
enum { PROTECTION_CLEAR_KEY = 0, PROTECTION_PASSPHRASE = 0x2000 };

static const uint8_t signature[8] = "-FVE-FS-", signature_to_go[8] = "MSWIN4.1";
static const uint8_t guid_normal[16] = {0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a,
					0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01};
static const uint8_t guid_conversion[16] = {0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d,
					    0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8};

/* --- the boot sector ------------------------------------------------------------------------------ */

/* Of BitLocker To Go, which looks like FAT: the GUID is elsewhere. */
static bool is_to_go(const uint8_t *boot)
{
	const uint8_t *guid = boot + 424;

	return !memcmp(boot + 3, signature_to_go, 8) &&
	       (!memcmp(guid, guid_normal, 16) || !memcmp(guid, guid_conversion, 16));
}

bool fve_is_boot(const uint8_t *boot)
{
	return !memcmp(boot + 3, signature, 8) || is_to_go(boot);
}

int fve_read_boot(const uint8_t *boot, struct fve *v, GError **err)
{
	const uint8_t *guid = boot + (is_to_go(boot) ? 424 : 160);

	if (!fve_is_boot(boot))
		return fail(err, EINVAL, "it has no BitLocker boot sector");
	if (boot[0] == 0xeb && boot[1] == 0x52)
		return fail(err, EOPNOTSUPP, "it is a BitLocker volume of Windows Vista, which is not supported");
	if (!memcmp(guid, guid_conversion, 16))
		return fail(err, EOPNOTSUPP,
			    "it is a BitLocker volume that is encrypted on write, which is not supported");
	if (memcmp(guid, guid_normal, 16))
		return fail(err, EINVAL, "its BitLocker boot sector has an unknown GUID");
	v->sector_size = get_le16(boot + 11) ? get_le16(boot + 11) : 512;
	if (v->sector_size != 512 && v->sector_size != 4096)
		return fail(err, EOPNOTSUPP, "BitLocker sectors of %u bytes are not supported", v->sector_size);
	for (unsigned i = 0; i < 3; i++) {
		v->metadata[i] = get_le64(guid + 16 + 8 * i);
		if (!v->metadata[i] || v->metadata[i] % v->sector_size ||
		    v->metadata[i] > INT64_MAX - FVE_METADATA_BYTES)
			return fail(err, EINVAL, "its BitLocker metadata is said to be at byte %" PRIu64,
				    v->metadata[i]);
	}
	return 0;
}

/* --- the metadata --------------------------------------------------------------------------------- */

/* Any use of an entry: its bytes are p to p + size. */
static struct fve_sealed sealed(const uint8_t *p, size_t size)
{
	struct fve_sealed s = {0};

	if (size > ENTRY_HEADER + FVE_NONCE_BYTES + FVE_MAC_BYTES + FVE_KEY_HEADER_BYTES) {
		s.bytes = p + ENTRY_HEADER;
		s.data_bytes = size - ENTRY_HEADER - FVE_NONCE_BYTES - FVE_MAC_BYTES;
	}
	return s;
}

/* The size of the entry at p, of which there are left bytes; 0: there is none, or it is damaged. */
static size_t entry(const uint8_t *p, size_t left)
{
	size_t size = left >= ENTRY_HEADER ? get_le16(p) : 0;

	return size >= ENTRY_HEADER && size <= left ? size : 0;
}

/* A volume master key that a clear key opens: both are among the properties of the entry. */
static void read_vmk(const uint8_t *p, size_t size, struct fve *v)
{
	const uint8_t *key = NULL;
	struct fve_sealed vmk = {0};

	if (size < ENTRY_HEADER + VMK_HEADER || get_le16(p + ENTRY_HEADER + VMK_HEADER - 2) != PROTECTION_CLEAR_KEY)
		return;
	for (size_t at = ENTRY_HEADER + VMK_HEADER, n; (n = entry(p + at, size - at)); at += n) {
		if (get_le16(p + at + 2) != ENTRY_PROPERTY)
			continue;
		if (get_le16(p + at + 4) == VALUE_KEY && n >= ENTRY_HEADER + 4 + 32)
			key = p + at + ENTRY_HEADER + 4;
		else if (get_le16(p + at + 4) == VALUE_SEALED)
			vmk = sealed(p + at, n);
	}
	if (key && vmk.bytes) {
		v->clear_key = key;
		v->clear_vmk = vmk;
	}
}

static void read_entry(const uint8_t *p, size_t size, struct fve *v)
{
	switch (get_le16(p + 2)) {
	case ENTRY_VMK:
		read_vmk(p, size, v);
		break;
	case ENTRY_FVEK:
		if (get_le16(p + 4) == VALUE_SEALED && !v->fvek.bytes)
			v->fvek = sealed(p, size);
		break;
	case ENTRY_VOLUME_HEADER:
		if (size >= ENTRY_HEADER + 16) {
			v->header_at = get_le64(p + ENTRY_HEADER);
			v->header_bytes = get_le64(p + ENTRY_HEADER + 8);
		}
		break;
	}
}

int fve_read_metadata(const uint8_t *block, size_t len, struct fve *v, GError **err)
{
	size_t size, end;

	if (len < BLOCK_HEADER + HEADER || memcmp(block, signature, 8))
		return fail(err, EINVAL, "its BitLocker metadata is missing");
	if (get_le16(block + 10) != 2)
		return fail(err, EOPNOTSUPP, "its BitLocker metadata has version %u, not 2", get_le16(block + 10));
	if (get_le16(block + 12) != STATE_ENCRYPTED || get_le16(block + 14) != STATE_ENCRYPTED)
		return fail(
		    err, EOPNOTSUPP,
		    "it is not wholly encrypted (BitLocker state %u, going to %u): let Windows finish that first",
		    get_le16(block + 12), get_le16(block + 14));
	v->volume_bytes = get_le64(block + 16);
	size = get_le32(block + BLOCK_HEADER);
	if (size < HEADER || size > len - BLOCK_HEADER)
		return fail(err, EINVAL, "its BitLocker metadata has a size of %zu", size);
	v->method = get_le16(block + BLOCK_HEADER + 36);
	end = BLOCK_HEADER + size;
	for (size_t at = BLOCK_HEADER + HEADER, n; (n = entry(block + at, end - at)); at += n)
		read_entry(block + at, n, v);
	if (!v->header_bytes || v->header_at % v->sector_size || v->header_bytes % v->sector_size ||
	    v->header_at > INT64_MAX / 2 || v->header_bytes > INT64_MAX / 2 || v->header_at < v->header_bytes)
		return fail(err, EINVAL,
			    "its BitLocker metadata does not say where the file system's first sectors are");
	return 0;
}

bool fve_next_passphrase(const uint8_t *block, size_t len, size_t *at, const uint8_t **salt, struct fve_sealed *vmk)
{
	size_t size = get_le32(block + BLOCK_HEADER), end = MIN(len, BLOCK_HEADER + size), n;

	if (!*at)
		*at = BLOCK_HEADER + HEADER;
	for (; *at < end && (n = entry(block + *at, end - *at)); *at += n) {
		const uint8_t *p = block + *at;

		*salt = NULL;
		*vmk = (struct fve_sealed){0};
		if (get_le16(p + 2) != ENTRY_VMK || n < ENTRY_HEADER + VMK_HEADER ||
		    get_le16(p + ENTRY_HEADER + VMK_HEADER - 2) != PROTECTION_PASSPHRASE)
			continue;
		for (size_t i = ENTRY_HEADER + VMK_HEADER, m; (m = entry(p + i, n - i)); i += m) {
			if (get_le16(p + i + 4) == VALUE_STRETCH && m >= ENTRY_HEADER + 4 + 16)
				*salt = p + i + ENTRY_HEADER + 4;
			else if (get_le16(p + i + 4) == VALUE_SEALED)
				*vmk = sealed(p + i, m);
		}
		if (*salt && vmk->bytes) {
			*at += n;
			return true;
		}
	}
	return false;
}

/* --- the segments --------------------------------------------------------------------------------- */

struct hole {
	uint64_t start, end;
};

static int by_start(const void *a, const void *b)
{
	const struct hole *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

int fve_segments(const struct fve *v, uint64_t sectors, GArray **out, GError **err)
{
	uint64_t at = v->header_bytes / 512, unit = v->sector_size / 512;
	struct hole holes[4] = {{v->header_at / 512, (v->header_at + v->header_bytes) / 512}};
	struct fve_segment s = {.sectors = at, .from = v->header_at / 512};

	for (unsigned i = 0; i < 3; i++)
		holes[1 + i] = (struct hole){v->metadata[i] / 512, (v->metadata[i] + FVE_METADATA_BYTES) / 512};
	qsort(holes, 4, sizeof(*holes), by_start);
	sectors -= sectors % unit;
	if (holes[0].start < at)
		return fail(err, EINVAL, "its BitLocker metadata overlaps the file system's first sectors");
	for (unsigned i = 0; i < 4; i++)
		if (holes[i].end > sectors)
			return fail(err, EINVAL,
				    "it has %" PRIu64 " sectors, too few for a BitLocker volume of %" PRIu64
				    ": was it cut short?",
				    sectors, v->volume_bytes / 512);
	*out = g_array_new(FALSE, FALSE, sizeof(s));
	g_array_append_val(*out, s);
	for (unsigned i = 0; i <= 4; i++) {
		uint64_t start = i < 4 ? MAX(holes[i].start, at) : sectors, end = i < 4 ? holes[i].end : sectors;

		if (start > at) {
			s = (struct fve_segment){.start = at, .sectors = start - at, .from = at};
			g_array_append_val(*out, s);
			at = start;
		}
		if (end > at) {
			s = (struct fve_segment){.start = at, .sectors = end - at, .zero = true};
			g_array_append_val(*out, s);
			at = end;
		}
	}
	return 0;
}
