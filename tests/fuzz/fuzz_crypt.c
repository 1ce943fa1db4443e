/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crypt's cipher strings and keys: "SECTOR_SIZE LARGE SECTOR CIPHER KEY".  What is taken can be read back, and all
 * of it is gone from the locked memory at the end.  LARGE is 0 or 1, or 2 or 3 and what is stored beside a sector:
 * "228" is an authenticated mode with 28 bytes, "328" the same with large IVs.
 */
#include <dmfs/target.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "targets/crypt/crypt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BYTES 8192

static void round_trip(struct crypt_engine *e, uint64_t sector)
{
	static uint8_t plain[BYTES], out[BYTES], meta[BYTES / 512 * CRYPT_MAX_META];
	uint64_t bad;
	struct iovec iov[2] = {{plain, 700}, {plain + 700, BYTES - 700}}, back = {out, BYTES};

	for (unsigned i = 0; i < BYTES; i++)
		plain[i] = (uint8_t)(i * 7 + (i >> 8));
	if (crypt_engine_encrypt(e, sector, iov, 2, 0, out, meta, BYTES) ||
	    crypt_engine_decrypt(e, sector, &back, 1, 0, meta, BYTES, &bad) || memcmp(plain, out, BYTES))
		abort();
	if (!e->spec.auth)
		return;
	crypt_engine_encrypt(e, sector, iov, 2, 0, out, meta, BYTES);
	meta[0] ^= 1;
	if (crypt_engine_decrypt(e, sector, &back, 1, 0, meta, BYTES, &bad) != -EILSEQ || bad != sector)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = g_strndup((const char *)data, size);
	g_auto(GStrv) words = g_strsplit(text, " ", 5);
	struct crypt_engine *e = NULL;
	struct dm_key key = {0};
	struct crypt_spec spec;
	unsigned sector_size, meta = 0;
	uint64_t sector;
	bool aead, large;

	if (g_strv_length(words) < 5 || *words[4] == ':' || !dm_parse_uint(words[0], &sector_size) ||
	    !dm_parse_u64(words[2], &sector) || sector_size < 512 || sector_size > CRYPT_MAX_SECTOR ||
	    (sector_size & (sector_size - 1)))
		return 0;
	sector -= sector % (sector_size / 512);
	aead = *words[1] == '2' || *words[1] == '3';
	large = *words[1] == '1' || *words[1] == '3';
	if (*words[1] && words[1][1] && (!dm_parse_uint(words[1] + 1, &meta) || meta > CRYPT_MAX_META))
		return 0;
	if (!crypt_spec_parse(words[3], aead, &spec, NULL) && spec.keycount <= 64 && !dm_key_read("crypt", words[4], &key, NULL) &&
	    !crypt_engine_new(&spec, key.size, sector_size, large, &e, NULL) && !crypt_engine_store(e, meta, NULL) &&
	    !crypt_engine_set_key(e, &key, NULL))
		round_trip(e, sector);
	crypt_engine_free(e);
	dm_key_clear(&key);
	if (dm_secmem_used())
		abort();
	return 0;
}
