/* SPDX-License-Identifier: GPL-2.0-or-later */
/* crypt's sector engine: against vectors, in odd pieces, from many threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/prctl.h>

#include <dmfs/target.h>

#include "../../targets/crypt/crypt.h"

#define BYTES 16384

static const struct vector {
	const char *spec;
	unsigned key_len;
	uint64_t iv_offset;
	unsigned sector_size, large;
	const char *digest;
} vectors[] = {
#include "crypt_vectors.h"
};

/* As in tests/lib/crypt_combos.py. */
static void stream(const char *tag, uint8_t *out, size_t len)
{
	for (unsigned i = 0; len; i++) {
		g_autofree char *text = g_strdup_printf("%s%u", tag, i);
		uint8_t digest[32];
		size_t n = MIN(len, sizeof(digest));

		gcry_md_hash_buffer(GCRY_MD_SHA256, digest, text, strlen(text));
		memcpy(out, digest, n);
		out += n;
		len -= n;
	}
}

static struct crypt_engine *make_engine(const char *spec_text, const uint8_t *key_data, size_t key_len,
					unsigned sector_size, bool large)
{
	struct dm_key key = {.size = key_len, .data = (uint8_t *)key_data};
	struct crypt_engine *e = NULL;
	struct crypt_spec spec;
	GError *err = NULL;

	if (crypt_spec_parse(spec_text, false, &spec, &err) ||
	    crypt_engine_new(&spec, key_len, sector_size, large, &e, &err) || crypt_engine_set_key(e, &key, &err))
		fail_msg("%s: %s", spec_text, err->message);
	return e;
}

static struct crypt_engine *vector_engine(const struct vector *v)
{
	g_autofree char *tag = g_strdup_printf("%s%u", v->spec, v->key_len);
	g_autofree uint8_t *key = g_malloc(v->key_len + 1);

	stream(tag, key, v->key_len);
	return make_engine(v->spec, key, v->key_len, v->sector_size, v->large);
}

static void encrypt(struct crypt_engine *e, uint64_t sector, const uint8_t *src, uint8_t *dst, size_t len)
{
	struct iovec iov = {(void *)src, len};

	assert_int_equal(crypt_engine_encrypt(e, sector, &iov, 1, 0, dst, NULL, len), 0);
}

static void decrypt(struct crypt_engine *e, uint64_t sector, uint8_t *data, size_t len)
{
	struct iovec iov = {data, len};

	assert_int_equal(crypt_engine_decrypt(e, sector, &iov, 1, 0, NULL, len, NULL), 0);
}

static void test_kernel_vectors(void **state)
{
	static uint8_t plain[BYTES], out[BYTES], digest[32];

	stream("plain", plain, BYTES);
	for (size_t i = 0; i < G_N_ELEMENTS(vectors); i++) {
		const struct vector *v = &vectors[i];
		struct crypt_engine *e = vector_engine(v);
		g_autoptr(GString) hex = g_string_new(NULL);

		encrypt(e, v->iv_offset, plain, out, BYTES);
		gcry_md_hash_buffer(GCRY_MD_SHA256, digest, out, BYTES);
		for (unsigned k = 0; k < 16; k++)
			g_string_append_printf(hex, "%02x", digest[k]);
		if (strcmp(hex->str, v->digest))
			fail_msg("%s, key of %u, sectors of %u%s: wrong ciphertext", v->spec, v->key_len, v->sector_size,
				 v->large ? ", large" : "");
		decrypt(e, v->iv_offset, out, BYTES);
		if (memcmp(out, plain, BYTES))
			fail_msg("%s, key of %u, sectors of %u: what is written cannot be read", v->spec, v->key_len,
				 v->sector_size);
		crypt_engine_free(e);
	}
	assert_int_equal(dm_secmem_used(), 0);
}

/* IEEE 1619-2007, annex B, vectors 4 and 10: 512 bytes 00 01 02 ... as data units 0 and 255. */
static void test_ieee_1619(void **state)
{
	static const uint8_t key1[] = {0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60,
				       0x28, 0x74, 0x71, 0x35, 0x26, 0x31, 0x41, 0x59, 0x26, 0x53, 0x58,
				       0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95};
	static const uint8_t head4[] = {0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76,
					0x48, 0x9f, 0x30, 0x8c, 0xd4, 0xcf, 0xa6, 0xe2};
	static const uint8_t key10[] = {
		0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
		0x62, 0x49, 0x77, 0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59, 0x57, 0x49, 0x66, 0x96, 0x76, 0x27,
		0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95,
		0x02, 0x88, 0x41, 0x97, 0x16, 0x93, 0x99, 0x37, 0x51, 0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92};
	static const uint8_t head10[] = {0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86,
					 0xe4, 0x83, 0x6c, 0x99, 0xe3, 0x70, 0xcf, 0x9b};
	uint8_t data[512], out[512];
	struct crypt_engine *e;

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = i;
	e = make_engine("aes-xts-plain64", key1, sizeof(key1), 512, false);
	encrypt(e, 0, data, out, sizeof(out));
	assert_memory_equal(out, head4, sizeof(head4));
	crypt_engine_free(e);
	e = make_engine("aes-xts-plain64", key10, sizeof(key10), 512, false);
	encrypt(e, 255, data, out, sizeof(out));
	assert_memory_equal(out, head10, sizeof(head10));
	crypt_engine_free(e);
}

/* A run cut into any pieces gives the same as in one, and the source is not touched. */
static void test_pieces(void **state)
{
	static const size_t cuts[] = {1, 511, 512, 513, 700, 3000, 4096, 5000};
	static const char *const specs[] = {"aes-xts-plain64", "aes:64-cbc-lmk", "aes-cbc-tcw", "aes-cbc-elephant"};
	static uint8_t plain[BYTES], copy[BYTES], whole[BYTES], out[BYTES], key[2080];

	stream("plain", plain, BYTES);
	memcpy(copy, plain, BYTES);
	stream("key", key, sizeof(key));
	for (size_t s = 0; s < G_N_ELEMENTS(specs); s++) {
		size_t len = strstr(specs[s], "lmk") ? 1040 : 64;
		struct crypt_engine *e = make_engine(specs[s], key, len, 512, false);

		encrypt(e, 7, plain, whole, BYTES);
		for (size_t c = 0; c < G_N_ELEMENTS(cuts); c++) {
			struct iovec iov[BYTES + 1];
			int n = 0;

			for (size_t at = 0; at < BYTES; at += cuts[c])
				iov[n++] = (struct iovec){plain + at, MIN(cuts[c], BYTES - at)};
			memset(out, 0, BYTES);
			assert_int_equal(crypt_engine_encrypt(e, 7, iov, n, 0, out, NULL, 1024), 0);
			assert_int_equal(crypt_engine_encrypt(e, 9, iov, n, 1024, out + 1024, NULL, BYTES - 1024), 0);
			assert_memory_equal(out, whole, BYTES);
			assert_memory_equal(plain, copy, BYTES);
			for (int i = 0; i < n; i++)
				iov[i].iov_base = out + ((uint8_t *)iov[i].iov_base - plain);
			assert_int_equal(crypt_engine_decrypt(e, 7, iov, n, 0, NULL, 1536, NULL), 0);
			assert_int_equal(crypt_engine_decrypt(e, 10, iov, n, 1536, NULL, BYTES - 1536, NULL), 0);
			assert_memory_equal(out, plain, BYTES);
		}
		crypt_engine_free(e);
	}
}

struct worker {
	struct crypt_engine *e;
	const uint8_t *plain, *whole;
	bool failed;
};

static void *work(void *data)
{
	struct worker *w = data;
	g_autofree uint8_t *out = g_malloc(BYTES);

	for (unsigned i = 0; i < 50 && !w->failed; i++) {
		struct iovec iov = {(void *)w->plain, BYTES}, back = {out, BYTES};

		w->failed = crypt_engine_encrypt(w->e, 0, &iov, 1, 0, out, NULL, BYTES) || memcmp(out, w->whole, BYTES) ||
			    crypt_engine_decrypt(w->e, 0, &back, 1, 0, NULL, BYTES, NULL) || memcmp(out, w->plain, BYTES);
	}
	return NULL;
}

static void test_many_threads(void **state)
{
	static uint8_t plain[BYTES], whole[BYTES], key[64];
	struct crypt_engine *e;
	struct worker workers[12];
	pthread_t threads[12];

	stream("plain", plain, BYTES);
	stream("key", key, sizeof(key));
	e = make_engine("aes-xts-plain64", key, sizeof(key), 512, false);
	encrypt(e, 0, plain, whole, BYTES);
	for (unsigned i = 0; i < 12; i++) {
		workers[i] = (struct worker){e, plain, whole, false};
		assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < 12; i++) {
		pthread_join(threads[i], NULL);
		assert_false(workers[i].failed);
	}
	crypt_engine_free(e);
	assert_int_equal(dm_secmem_used(), 0);
}

static bool holds(const void *mem, size_t len, const void *what, size_t what_len)
{
	return memmem(mem, len, what, what_len) != NULL;
}

/* After a wipe nothing of the key is left in the locked memory, and nothing can be encrypted. */
static void test_wipe(void **state)
{
	static uint8_t data[512];
	struct iovec iov = {data, sizeof(data)};
	struct dm_key key;
	struct crypt_spec spec;
	struct crypt_engine *e;
	uint8_t other[32], *arena;

	stream("other", other, sizeof(other));
	assert_int_equal(crypt_spec_parse("aes-cbc-plain64", false, &spec, NULL), 0);
	assert_int_equal(dm_key_read("crypt", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", &key, NULL), 0);
	assert_true(dm_secmem_owns(key.data));
	assert_int_equal(key.size, 32);
	assert_int_equal(key.data[31], 0x1f);
	assert_int_equal(prctl(PR_GET_DUMPABLE), 0);
	arena = key.data;
	assert_int_equal(crypt_engine_new(&spec, 32, 512, false, &e, NULL), 0);
	assert_int_equal(crypt_engine_encrypt(e, 0, &iov, 1, 0, data, NULL, 512), -ENOMEM);
	assert_int_equal(crypt_engine_set_key(e, &key, NULL), 0);
	dm_key_clear(&key);
	assert_true(holds(arena, 16384, "\0\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17", 16)); /* the engine's own */
	assert_int_equal(crypt_engine_encrypt(e, 0, &iov, 1, 0, data, NULL, 512), 0);
	crypt_engine_wipe_key(e);
	assert_false(holds(arena, 16384, "\0\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17", 16));
	assert_int_equal(dm_secmem_used(), 0);
	for (unsigned i = 0; i < 16384; i++)
		assert_int_equal(arena[i], 0);
	assert_int_equal(crypt_engine_encrypt(e, 0, &iov, 1, 0, data, NULL, 512), -ENOMEM);
	crypt_engine_free(e);
}

/* A key of another size is refused, and the old one goes on. */
static void test_wrong_key_keeps_old(void **state)
{
	uint8_t raw[64], a[512] = {1}, b[512], c[512];
	struct dm_key shorter = {.size = 16, .data = raw};
	struct crypt_engine *e;
	GError *err = NULL;

	stream("key", raw, sizeof(raw));
	e = make_engine("aes-xts-plain64", raw, 64, 512, false);
	encrypt(e, 3, a, b, 512);
	assert_int_equal(crypt_engine_set_key(e, &shorter, &err), -EINVAL);
	assert_string_equal(err->message, "crypt: the key has 16 bytes, it must have 64");
	g_error_free(err);
	encrypt(e, 3, a, c, 512);
	assert_memory_equal(b, c, 512);
	crypt_engine_free(e);
}

static void test_secmem(void **state)
{
	GPtrArray *all = g_ptr_array_new();
	unsigned seed = 1;

	assert_int_equal(dm_gcrypt_init(NULL), 0);
	assert_false(dm_secmem_owns(all));
	for (unsigned i = 0; i < 5000; i++) {
		if (all->len && rand_r(&seed) % 5 < 2) {
			unsigned at = rand_r(&seed) % all->len;
			size_t *p = g_ptr_array_remove_index_fast(all, at);

			for (size_t k = sizeof(size_t); k < *p; k++)
				assert_int_equal(((uint8_t *)p)[k], (uint8_t)(uintptr_t)p ^ (uint8_t)*p);
			dm_secmem_free(p);
		} else {
			size_t len = sizeof(size_t) + rand_r(&seed) % 3000, *p = dm_secmem_alloc(len);

			assert_non_null(p);
			for (size_t k = 0; k < len; k++)
				assert_int_equal(((uint8_t *)p)[k], 0);
			memset(p, (uint8_t)(uintptr_t)p ^ (uint8_t)len, len);
			*p = len;
			g_ptr_array_add(all, p);
		}
	}
	while (all->len)
		dm_secmem_free(g_ptr_array_remove_index_fast(all, all->len - 1));
	g_ptr_array_free(all, TRUE);
	assert_int_equal(dm_secmem_used(), 0);
	assert_null(dm_secmem_alloc((size_t)2 << 30));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_secmem),
		cmocka_unit_test(test_wipe),
		cmocka_unit_test(test_kernel_vectors),
		cmocka_unit_test(test_ieee_1619),
		cmocka_unit_test(test_pieces),
		cmocka_unit_test(test_many_threads),
		cmocka_unit_test(test_wrong_key_keeps_old),
	};

	if (dm_gcrypt_init(NULL))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
