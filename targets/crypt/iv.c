/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Initial vectors, and one sector.  N is the sector's number:
 *
 *   plain      N as 32 bits, little-endian, then zeroes
 *   plain64    N as 64 bits, little-endian, then zeroes
 *   plain64be  zeroes, then N as 64 bits, big-endian
 *   essiv      plain64, encrypted by the block cipher under hash(key)
 *   benbi      zeroes, then the number of the sector's first cipher block plus 1, 64 bits, big-endian
 *   null       zeroes
 *   eboiv      the byte offset, little-endian, encrypted as a block of zeroes is under it as the IV
 *   elephant   eboiv; and BitLocker's diffuser around the cipher
 *   random     what the system's generator gives; it is stored beside the sector, behind its tag
 *   lmk        Loop-AES: the MD5 of the plaintext from byte 16 on and of 56 bits
 *              of N; with a seed, it goes before them, and is not counted in
 *              MD5's length.  When reading, decryption with a zero IV
 *              gives all but the first block, which then lacks that IV.
 *   tcw        TrueCrypt before 4.1: seed xor N; and the ciphertext whitened by
 *              8 bytes made with CRC32 from a part of the key and N
 *
 * tcw and lmk: gitlab.com/cryptsetup/cryptsetup/wikis/TrueCryptOnDiskFormat, loop-aes.sourceforge.net; elephant: N.
 * Ferguson, "AES-CBC + Elephant diffuser", Microsoft 2006; MD5: RFC 1321.
 */
#include "crypt.h"

#include <dmfs/le.h>
#include <dmfs/target.h>
#include <sys/random.h>

static void xor_bytes(uint8_t *dst, const uint8_t *src, size_t len)
{
	for (size_t i = 0; i < len; i++)
		dst[i] ^= src[i];
}

/* --- lmk ------------------------------------------------------------------------------------- */

/* One step of MD5 (RFC 1321, 3.4) over 64 bytes. */
static void md5_block(uint32_t state[4], const uint8_t *p)
{
	static const uint8_t turns[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
	static const uint32_t sines[64] = {
	    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
	    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
	    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
	    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
	    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
	    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
	    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
	    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
	};
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3], x[16];

	memcpy(x, p, sizeof(x));
	for (unsigned i = 0; i < 64; i++) {
		unsigned round = i / 16, turn = turns[round][i % 4], k;
		uint32_t f;

		if (round == 0) {
			f = (b & c) | (~b & d);
			k = i;
		} else if (round == 1) {
			f = (b & d) | (c & ~d);
			k = (5 * i + 1) % 16;
		} else if (round == 2) {
			f = b ^ c ^ d;
			k = (3 * i + 5) % 16;
		} else {
			f = c ^ (b | ~d);
			k = 7 * i % 16;
		}
		f += a + sines[i] + GUINT32_FROM_LE(x[k]);
		a = d;
		d = c;
		c = b;
		b += f << turn | f >> (32 - turn);
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
}

static void lmk_iv(const struct crypt_lane *lane, uint64_t n, const uint8_t *plain, uint8_t iv[DM_CIPHER_MAX_IV])
{
	uint32_t state[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
	uint8_t last[64];

	if (lane->seeded)
		md5_block(state, lane->seed);
	/* 496 bytes of data, 7 of the number, MD5's 80 and length (in bits): 8 blocks */
	for (unsigned i = 0; i < 7; i++)
		md5_block(state, plain + 16 + 64 * i);
	memcpy(last, plain + 16 + 64 * 7, 48);
	put_le32(last + 48, n);
	put_le32(last + 52, ((n >> 32) & 0xffffff) | 0x80000000);
	put_le32(last + 56, 503 * 8);
	put_le32(last + 60, 0);
	md5_block(state, last);
	for (unsigned i = 0; i < 4; i++)
		put_le32(iv + 4 * i, state[i]);
	explicit_bzero(last, sizeof(last));
}

/* --- tcw ------------------------------------------------------------------------------------- */

/* The CRC of Ethernet (reflected polynomial edb88320) without its two complements. */
static uint32_t bare_crc32(uint32_t word)
{
	for (unsigned bit = 0; bit < 32; bit++)
		word = word & 1 ? word >> 1 ^ 0xedb88320 : word >> 1;
	return word;
}

static void tcw_whiten(const struct crypt_lane *lane, uint64_t n, uint8_t *data)
{
	uint8_t mask[16], number[8];
	uint32_t word[4];

	put_le64(number, n);
	memcpy(mask, lane->whitening, sizeof(mask));
	xor_bytes(mask, number, 8);
	xor_bytes(mask + 8, number, 8);
	memcpy(word, mask, sizeof(word));
	for (unsigned i = 0; i < 4; i++)
		word[i] = GUINT32_TO_LE(bare_crc32(GUINT32_FROM_LE(word[i])));
	word[0] ^= word[3];
	word[1] ^= word[2];
	for (unsigned i = 0; i < 512; i += 8)
		xor_bytes(data + i, (uint8_t *)word, 8);
	explicit_bzero(mask, sizeof(mask));
	explicit_bzero(word, sizeof(word));
}

static void tcw_iv(const struct crypt_lane *lane, uint64_t n, unsigned size, uint8_t iv[DM_CIPHER_MAX_IV])
{
	uint8_t number[8];

	put_le64(number, n);
	memcpy(iv, lane->seed, size);
	for (unsigned i = 0; i < size; i++)
		iv[i] ^= number[i % 8];
}

/* --- elephant -------------------------------------------------------------------------------- */

/*
 * The diffusers of the paper, decryption: for cycles * words values of i,
 *   d[i] += d[i + near] ^ rotl(d[i + far], turn[i % 4])     (indices modulo the number of words)
 * with A: near -2, far -5, turns 9 0 13 0, 5 cycles; B: near 2, far 5, turns 0 10 0 25, 3 cycles.
 * Encryption undoes it in the reverse order.
 */
static const struct diffuser {
	int near, far;
	unsigned turn[4], cycles;
} diffuser_a = {-2, -5, {9, 0, 13, 0}, 5}, diffuser_b = {2, 5, {0, 10, 0, 25}, 3};

static inline uint32_t diffuse_one(const struct diffuser *f, const uint32_t *d, unsigned i, unsigned mask)
{
	uint32_t far = d[(i + f->far) & mask];
	unsigned turn = f->turn[i % 4];

	return d[(i + f->near) & mask] ^ (far << turn | far >> ((32 - turn) & 31));
}

static void diffuse_decrypt(const struct diffuser *f, uint32_t *d, unsigned words)
{
	for (unsigned c = 0; c < f->cycles; c++)
		for (unsigned i = 0; i < words; i++)
			d[i] += diffuse_one(f, d, i, words - 1);
}

static void diffuse_encrypt(const struct diffuser *f, uint32_t *d, unsigned words)
{
	for (unsigned c = 0; c < f->cycles; c++)
		for (unsigned i = words; i-- > 0;)
			d[i] -= diffuse_one(f, d, i, words - 1);
}

static void words_swap(uint32_t *d, unsigned words)
{
	for (unsigned i = 0; i < words; i++)
		d[i] = GUINT32_FROM_LE(d[i]);
}

/* dst may be src.  The work is done on a copy of the lane's, which is aligned. */
static int elephant(const struct crypt_engine *e, struct crypt_lane *lane, bool encrypt, uint64_t n, const uint8_t *src,
		    uint8_t *dst)
{
	unsigned words = e->sector_size / 4;
	uint32_t *d = (uint32_t *)(void *)lane->work;
	uint8_t key[32] = {0};

	/* the sector's key: the byte offset, encrypted twice, told apart by the last byte */
	put_le64(key, n * e->sector_size);
	put_le64(key + 16, n * e->sector_size);
	key[31] = 0x80;
	if (gcry_cipher_encrypt(lane->elephant, key, sizeof(key), NULL, 0))
		return -EIO;
	memcpy(d, src, e->sector_size);
	if (!encrypt) {
		words_swap(d, words);
		diffuse_decrypt(&diffuser_b, d, words);
		diffuse_decrypt(&diffuser_a, d, words);
		words_swap(d, words);
	}
	for (unsigned i = 0; i < e->sector_size; i += sizeof(key))
		xor_bytes((uint8_t *)d + i, key, sizeof(key));
	if (encrypt) {
		words_swap(d, words);
		diffuse_encrypt(&diffuser_a, d, words);
		diffuse_encrypt(&diffuser_b, d, words);
		words_swap(d, words);
	}
	memcpy(dst, d, e->sector_size);
	explicit_bzero(d, e->sector_size);
	explicit_bzero(key, sizeof(key));
	return 0;
}

/* --- one sector ------------------------------------------------------------------------------ */

static int essiv_step(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, uint8_t *iv)
{
	return lane->essiv && gcry_cipher_encrypt(lane->essiv[key], iv, e->spec.iv_size, NULL, 0) ? -EIO : 0;
}

int crypt_iv_set(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, const uint8_t *iv)
{
	gcry_cipher_hd_t hd = lane->data[key];

	if (!e->spec.iv_size || !hd)
		return 0;
	if (lane->lrw) {
		crypt_lrw_set_iv(&lane->lrw[key], iv);
		return 0;
	}
	if (e->spec.mode == DM_CIPHER_CTR)
		return gcry_cipher_setctr(hd, iv, e->spec.iv_size) ? -EIO : 0;
	return gcry_cipher_setiv(hd, iv, e->spec.iv_size) ? -EIO : 0;
}

/* libgcrypt works in place when it is given no input. */
static int run_cipher(struct crypt_lane *lane, unsigned key, bool encrypt, const uint8_t *src, uint8_t *dst, size_t len)
{
	size_t in_len = src == dst ? 0 : len;
	const uint8_t *in = src == dst ? NULL : src;
	gcry_error_t r;

	if (!lane->data[key]) {
		memmove(dst, src, len); /* the null cipher */
		return 0;
	}
	if (lane->lrw)
		r = crypt_lrw_run(&lane->lrw[key], lane->data[key], encrypt, src, dst, len);
	else
		r = encrypt ? gcry_cipher_encrypt(lane->data[key], dst, len, in, in_len)
			    : gcry_cipher_decrypt(lane->data[key], dst, len, in, in_len);
	return r ? -EIO : 0;
}

/* A block of zeroes, encrypted under the byte offset as its IV. */
static int eboiv_iv(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, uint64_t n, uint8_t *iv)
{
	uint8_t offset[DM_CIPHER_MAX_IV] = {0};

	put_le64(offset, n * e->sector_size);
	if (essiv_step(e, lane, key, offset) || crypt_iv_set(e, lane, key, offset))
		return -EIO;
	memset(iv, 0, e->spec.iv_size);
	return run_cipher(lane, key, true, iv, iv, e->spec.iv_size);
}

/* A system call for each sector would cost as much as its encryption. */
static int random_iv(struct crypt_lane *lane, unsigned size, uint8_t *iv)
{
	if (lane->random_left < size) {
		/* so few bytes come whole, once the generator is ready */
		if (getrandom(lane->random, sizeof(lane->random), 0) != sizeof(lane->random))
			return -EIO;
		lane->random_left = sizeof(lane->random);
	}
	lane->random_left -= size;
	memcpy(iv, lane->random + lane->random_left, size);
	return 0;
}

/* The IV is behind the tag. */
static int stored_iv(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u, bool encrypt,
		     uint8_t *iv)
{
	uint8_t *place = u->meta + e->tag_size;

	if (encrypt && random_iv(lane, e->spec.iv_size, place))
		return -EIO;
	memcpy(iv, place, e->spec.iv_size);
	return 0;
}

int crypt_iv_make(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		  const uint8_t *plain, uint8_t iv[DM_CIPHER_MAX_IV])
{
	unsigned size = e->spec.iv_size, key = u->key;
	uint64_t n = u->iv_sector;

	memset(iv, 0, DM_CIPHER_MAX_IV);
	switch (e->spec.iv) {
	case CRYPT_IV_NONE:
		return 0;
	case CRYPT_IV_PLAIN:
		put_le32(iv, n);
		break;
	case CRYPT_IV_PLAIN64:
		put_le64(iv, n);
		break;
	case CRYPT_IV_PLAIN64BE:
		put_be64(iv + size - 8, n);
		break;
	case CRYPT_IV_BENBI:
		put_be64(iv + size - 8, (n << (9 - g_bit_nth_lsf(e->spec.granule, -1))) + 1);
		break;
	case CRYPT_IV_NULL:
		break;
	case CRYPT_IV_LMK:
		if (plain)
			lmk_iv(lane, n, plain, iv);
		break;
	case CRYPT_IV_TCW:
		tcw_iv(lane, n, size, iv);
		break;
	case CRYPT_IV_EBOIV:
	case CRYPT_IV_ELEPHANT:
		if (eboiv_iv(e, lane, key, n, iv))
			return -EIO;
		break;
	case CRYPT_IV_RANDOM:
		if (stored_iv(e, lane, u, plain != NULL, iv))
			return -EIO;
		break;
	}
	return essiv_step(e, lane, key, iv);
}

static int make_iv(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		   const uint8_t *plain)
{
	uint8_t iv[DM_CIPHER_MAX_IV];

	return crypt_iv_make(e, lane, u, plain, iv) || crypt_iv_set(e, lane, u->key, iv) ? -EIO : 0;
}

int crypt_cipher_run(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, bool encrypt,
		     const uint8_t *src, uint8_t *dst)
{
	return run_cipher(lane, key, encrypt, src, dst, e->sector_size);
}

int crypt_sector_encrypt(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
			 const uint8_t *src, uint8_t *dst)
{
	if (e->spec.iv == CRYPT_IV_ELEPHANT) {
		if (elephant(e, lane, true, u->iv_sector, src, dst))
			return -EIO;
		src = dst;
	}
	if (make_iv(e, lane, u, src) || crypt_cipher_run(e, lane, u->key, true, src, dst))
		return -EIO;
	if (e->spec.iv == CRYPT_IV_TCW)
		tcw_whiten(lane, u->iv_sector, dst);
	return 0;
}

int crypt_sector_decrypt(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
			 const uint8_t *src, uint8_t *dst)
{
	uint8_t iv[DM_CIPHER_MAX_IV];

	if (e->spec.iv == CRYPT_IV_TCW) {
		memmove(dst, src, e->sector_size);
		tcw_whiten(lane, u->iv_sector, dst);
		src = dst;
	}
	if (make_iv(e, lane, u, NULL) || crypt_cipher_run(e, lane, u->key, false, src, dst))
		return -EIO;
	if (e->spec.iv == CRYPT_IV_LMK) {
		lmk_iv(lane, u->iv_sector, dst, iv);
		xor_bytes(dst, iv, e->spec.iv_size);
	}
	return e->spec.iv == CRYPT_IV_ELEPHANT ? elephant(e, lane, false, u->iv_sector, dst, dst) : 0;
}
