/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * CRC-32C: ISA-L, which works on several streams at once, for what is longer than a few words; the processor's
 * instruction where there is one; else eight tables of 256 words.
 */
#include <dmfs/crc32c.h>

#include <glib.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#ifdef HAVE_LIBISAL
#include <isa-l/crc.h>
#endif

#define POLYNOMIAL 0x82f63b78u /* 0x1edc6f41, bits reversed */

static uint32_t tables[8][256];

static void fill_tables(void)
{
	for (unsigned i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
		tables[0][i] = crc;
	}
	for (unsigned i = 0; i < 256; i++)
		for (int t = 1; t < 8; t++)
			tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 0xff];
}

uint32_t dm_crc32c_table(uint32_t crc, const void *data, size_t len)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const uint8_t *p = data;

	pthread_once(&once, fill_tables);
	for (; len >= 8; len -= 8, p += 8) {
		uint64_t word;

		memcpy(&word, p, 8);
		word = GUINT64_FROM_LE(word) ^ crc;
		crc = 0;
		for (int byte = 0; byte < 8; byte++)
			crc ^= tables[7 - byte][word >> 8 * byte & 0xff];
	}
	while (len--)
		crc = crc >> 8 ^ tables[0][(crc ^ *p++) & 0xff];
	return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;
	uint64_t crc64 = crc;

	for (; len >= 8; len -= 8, p += 8) {
		uint64_t word;

		memcpy(&word, p, 8);
		crc64 = __builtin_ia32_crc32di(crc64, word);
	}
	crc = (uint32_t)crc64;
	while (len--)
		crc = __builtin_ia32_crc32qi(crc, *p++);
	return crc;
}
#endif

uint32_t dm_crc32c(uint32_t crc, const void *data, size_t len)
{
#ifdef HAVE_LIBISAL
	if (len >= 256 && len <= INT_MAX)
		return crc32_iscsi((unsigned char *)data, (int)len, crc);
#endif
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return crc32c_sse(crc, data, len);
#endif
	return dm_crc32c_table(crc, data, len);
}
