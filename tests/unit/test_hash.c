/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hashes by the kernel's names: published digests, keys, pieces, many threads at once. */
#include "unit.h"

#include <dmfs/crc32c.h>
#include <dmfs/hash.h>
#include <dmfs/secmem.h>
#include <pthread.h>

#include "lib/sha256.h"

static struct dm_hash *make(const char *name)
{
	struct dm_hash *h;
	GError *err = NULL;

	if (dm_hash_new(name, &h, &err))
		fail_msg("%s", err->message);
	return h;
}

static struct dm_hash *make_keyed(const char *name, const void *key, size_t len)
{
	struct dm_hash *h = make(name);
	GError *err = NULL;

	if (dm_hash_set_key(h, key, len, &err))
		fail_msg("%s: %s", name, err->message);
	return h;
}

static char *hex(const uint8_t *p, size_t len)
{
	GString *s = g_string_new(NULL);

	while (len--)
		g_string_append_printf(s, "%02x", *p++);
	return g_string_free(s, FALSE);
}

static char *digest_of(struct dm_hash *h, const void *data, size_t len)
{
	uint8_t digest[DM_HASH_MAX_SIZE];

	dm_hash_buffer(h, data, len, digest);
	return hex(digest, dm_hash_size(h));
}

static void expect_from(struct dm_hash *h, const char *what, const void *data, size_t len, const char *wanted)
{
	g_autofree char *got = digest_of(h, data, len);

	if (strcmp(got, wanted))
		fail_msg("%s: %s, not %s", what, got, wanted);
	dm_hash_free(h);
}

/* Of "abc": FIPS 180 and 202, RFC 1320, 1321, 7693, the RIPEMD-160 and Whirlpool papers, GB/T 32905. */
static void test_published(void **state)
{
	static const struct {
		const char *name, *digest;
	} known[] = {
		{"md4", "a448017aaf21d8525fc10ae87aa6729d"},
		{"md5", "900150983cd24fb0d6963f7d28e17f72"},
		{"sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"},
		{"sha224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"},
		{"sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{"sha384", "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
			   "8086072ba1e7cc2358baeca134c825a7"},
		{"sha512", "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
			   "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"},
		{"sha3-224", "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"},
		{"sha3-256", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"},
		{"sha3-384", "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b2"
			     "98d88cea927ac7f539f1edf228376d25"},
		{"sha3-512", "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e"
			     "10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0"},
		{"rmd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"},
		{"ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"},
		{"wp512", "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c"
			  "7181eebdb6c57e277d0e34957114cbd6c797fc9d95d8b582d225292076d4eef5"},
		{"whirlpool", "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c"
			      "7181eebdb6c57e277d0e34957114cbd6c797fc9d95d8b582d225292076d4eef5"},
		{"wp384", "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c"
			  "7181eebdb6c57e277d0e34957114cbd6"},
		{"wp256", "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c"},
		{"sm3", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"},
		{"blake2b-512", "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
				"7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"},
		{"blake2s-256", "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
		expect_from(make(known[i].name), known[i].name, "abc", 3, known[i].digest);
}

/* RFC 6986, the first message. */
static void test_streebog(void **state)
{
	const char *m = "012345678901234567890123456789012345678901234567890123456789012";

	expect_from(make("streebog256"), "streebog256", m, strlen(m),
		    "9d151eefd8590b89daa6ba6cb74af9275dd051026bb149a452fd84e5e57b5500");
	expect_from(make("streebog512"), "streebog512", m, strlen(m),
		    "1b54d01a4af5b9d5cc3d86d68d285462b19abc2475222f35c085122be4ba1ffa"
		    "00ad30f8767b3a82384c6574f024c311e2a481332b08ef7f41797891c1646f48");
}

/* The checks of the catalogues, as the kernel writes them: little-endian; its crc32 does not invert. */
static void test_checksums(void **state)
{
	uint8_t ones[4] = {0xff, 0xff, 0xff, 0xff}, digest[4];
	struct dm_hash *h = make_keyed("crc32", ones, 4);

	dm_hash_buffer(h, "123456789", 9, digest);
	for (int i = 0; i < 4; i++)
		digest[i] = ~digest[i];
	assert_memory_equal(digest, "\x26\x39\xf4\xcb", 4); /* cbf43926 */
	dm_hash_free(h);
	expect_from(make("crc32"), "crc32", "123456789", 9, "882dfd2d"); /* 2dfd2d88: not inverted at either end */
	expect_from(make("crc32c"), "crc32c", "123456789", 9, "839206e3"); /* e3069283 */
#ifdef HAVE_LIBXXHASH
	expect_from(make("xxhash64"), "xxhash64", "", 0, "99e9d85137db46ef"); /* ef46db3751d8e999 */
	expect_from(make("xxhash64"), "xxhash64", "abc", 3, "990977adf52cbc44"); /* 44bc2cf5ad770999 */
#endif
}

/* RFC 2202 and 4231, the first two messages; RFC 4493; the BLAKE2 known answers. */
static void test_keyed(void **state)
{
	uint8_t key[64], aes[16] = {0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6,
				    0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c};
	const char *what = "what do ya want for nothing?";

	memset(key, 0x0b, sizeof(key));
	expect_from(make_keyed("hmac(md5)", key, 16), "hmac(md5)", "Hi There", 8, "9294727a3638bb1c13f48ef8158bfc9d");
	expect_from(make_keyed("hmac(sha1)", key, 20), "hmac(sha1)", "Hi There", 8,
		    "b617318655057264e28bc0b6fb378c8ef146be00");
	expect_from(make_keyed("hmac(sha256)", key, 20), "hmac(sha256)", "Hi There", 8,
		    "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
	expect_from(make_keyed("hmac(sha256)", "Jefe", 4), "hmac(sha256)", what, strlen(what),
		    "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	expect_from(make_keyed("hmac(sha512)", key, 20), "hmac(sha512)", "Hi There", 8,
		    "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde"
		    "daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854");
	expect_from(make_keyed("cmac(aes)", aes, 16), "cmac(aes)", "", 0, "bb1d6929e95937287fa37d129b756746");
	expect_from(make_keyed("cmac(aes)", aes, 16), "cmac(aes)",
		    "\x6b\xc1\xbe\xe2\x2e\x40\x9f\x96\xe9\x3d\x7e\x11\x73\x93\x17\x2a", 16,
		    "070a16b46b4d4144f79bdd9dd04a287c");
	for (int i = 0; i < 64; i++)
		key[i] = (uint8_t)i;
	expect_from(make_keyed("blake2b-512", key, 64), "blake2b-512", "", 0,
		    "10ebb67700b1868efb4417987acf4690ae9d972fb7a590c2f02871799aaa4786"
		    "b5e996e8f0f4eb981fc214b005f42d2ff4233499391653df7aefcbc13fc51568");
	expect_from(make_keyed("blake2s-256", key, 32), "blake2s-256", "", 0,
		    "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49");
}

static void test_refused(void **state)
{
	static const char *const bad[] = {"",     "sha",	"sha2561",     "SHA256",      "hmac",	     "hmac()",
					  "hmac(sha256", "hmac(crc32c)", "hmac(wp384)", "hmac(hmac(sha1))", "cmac(rot13)", "cmac()"};
	struct dm_hash *h;

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) err = NULL;

		assert_int_equal(dm_hash_new(bad[i], &h, &err), -ENOENT);
		assert_null(h);
		assert_non_null(strstr(err->message, "is not one of md4, md5, sha1"));
	}
}

static void test_keys_refused(void **state)
{
	static const struct {
		const char *name;
		size_t len;
		const char *why;
	} bad[] = {
		{"sha256", 4, "sha256 takes no key"},
		{"crc32c", 3, "3 bytes, 4 are needed"},
		{"blake2b-256", 65, "65 bytes, 1 to 64"},
		{"blake2s-256", 0, "0 bytes, 1 to 32"},
		{"cmac(aes)", 15, "a key of 15 bytes for aes"},
	};
	uint8_t key[80] = {0};

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		struct dm_hash *h = make(bad[i].name);
		g_autoptr(GError) err = NULL;

		assert_int_equal(dm_hash_set_key(h, key, bad[i].len, &err), -EINVAL);
		if (!strstr(err->message, bad[i].why))
			fail_msg("%s: '%s' does not say '%s'", bad[i].name, err->message, bad[i].why);
		dm_hash_free(h);
	}
	assert_int_equal(dm_secmem_used(), 0);
}

/* However a message is cut, more pieces than fit on the stack included, and with the slow CRC for comparison. */
static void test_pieces(void **state)
{
	static const char *const names[] = {"sha256", "wp384", "blake2b-160", "crc32", "crc32c", "hmac(sha3-256)", "cmac(aes)",
#ifdef HAVE_LIBXXHASH
					    "xxhash64",
#endif
	};
	static uint8_t data[5000], whole[DM_HASH_MAX_SIZE], cut[DM_HASH_MAX_SIZE];
	struct iovec iov[50];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	for (size_t n = 0; n < G_N_ELEMENTS(names); n++) {
		struct dm_hash *h = make(names[n]);

		if (dm_hash_needs_key(h))
			assert_int_equal(dm_hash_set_key(h, data, 16, NULL), 0);
		dm_hash_buffer(h, data, sizeof(data), whole);
		for (int pieces = 2; pieces <= 50; pieces += 16) {
			size_t each = sizeof(data) / pieces;

			for (int i = 0; i < pieces; i++)
				iov[i] = (struct iovec){data + i * each, i == pieces - 1 ? sizeof(data) - i * each : each};
			dm_hash_iov(h, iov, pieces, cut);
			assert_memory_equal(cut, whole, dm_hash_size(h));
		}
		dm_hash_free(h);
	}
	for (size_t len = 0; len < 600; len++)
		assert_int_equal(dm_crc32c(1, data + 3, len), dm_crc32c_table(1, data + 3, len));
}

#define MESSAGES 20

/* Hashes the first n messages of len bytes together, and compares with one by one. */
static void compare_many(struct dm_hash *h, const void *const *messages, unsigned n, size_t len, struct iovec prefix,
			 struct iovec suffix)
{
	uint8_t got[MESSAGES * DM_HASH_MAX_SIZE + 1], one[DM_HASH_MAX_SIZE];
	unsigned size = dm_hash_size(h);

	memset(got, 0xa5, sizeof(got));
	dm_hash_many(h, &prefix, messages, len, &suffix, n, got);
	for (unsigned i = 0; i < n; i++) {
		struct iovec pieces[3] = {prefix, {(void *)messages[i], len}, suffix};

		dm_hash_iov(h, pieces, 3, one);
		assert_memory_equal(got + i * size, one, size);
	}
	assert_int_equal(got[n * size], 0xa5);
}

/*
 * Several at once give what one by one do, wherever prefix, data and suffix begin and end, whatever the processor has.
 */
static void test_many_at_once(void **state)
{
	static const char *const names[] = {"sha256", "sha1", "hmac(sha256)", "crc32c"};
	static uint8_t data[MESSAGES][700];
	const void *messages[MESSAGES];

	for (size_t i = 0; i < sizeof(data); i++)
		((uint8_t *)data)[i] = (uint8_t)(i * 11 + i / 256);
	for (unsigned i = 0; i < MESSAGES; i++)
		messages[i] = data[i];
	for (size_t n = 0; n < G_N_ELEMENTS(names); n++) {
		struct dm_hash *h = make(names[n]);

		if (dm_hash_needs_key(h))
			assert_int_equal(dm_hash_set_key(h, data, 16, NULL), 0);
		for (size_t len = 0; len < 700; len += 1 + len / 60) {
			sha256_lanes_allow(len % 4 * 2); /* in turn: nothing, TWO, SIXTEEN, both */
			for (size_t around = 0; around < 260; around += 1 + around / 2)
				compare_many(h, messages, 1 + (len + around) % MESSAGES, len, (struct iovec){data[4], around},
					     (struct iovec){data[3], around / 3 * 2});
		}
		dm_hash_free(h);
	}
	sha256_lanes_allow(SHA256_TWO | SHA256_SIXTEEN);
}

/* Every length up to that of two blocks and more, with salts in front and behind; messages that lie anywhere. */
static void test_every_length(void **state)
{
	static const size_t salts[] = {0, 1, 32, 55, 64, 256};
	struct dm_hash *h = make("sha256");
	static uint8_t data[12000];
	const void *messages[MESSAGES];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 29 + i / 256 * 3 + (i >> 11));
	for (size_t len = 0; len <= 10000; len++) {
		size_t salt = salts[len % G_N_ELEMENTS(salts)];
		struct iovec it = {data + 5, salt}, nothing = {NULL, 0};
		unsigned n = len % 7 ? 2 + (unsigned)(len % 2) : 9 + (unsigned)(len % 11);

		for (unsigned i = 0; i < n; i++)
			messages[i] = data + (i * 97 + len) % (sizeof(data) - len);
		compare_many(h, messages, n, len, len & 8 ? it : nothing, len & 8 ? nothing : it);
	}
	for (size_t len = 512; len <= 4096; len *= 2) /* verity's blocks */
		for (unsigned n = 1; n <= MESSAGES; n++) {
			for (unsigned i = 0; i < n; i++)
				messages[i] = data + i * 64;
			compare_many(h, messages, n, len, (struct iovec){data + 5, 32}, (struct iovec){NULL, 0});
		}
	dm_hash_free(h);
}

static void *hash_many(void *data)
{
	struct dm_hash *h = data;
	char text[16], *first = digest_of(h, "0", 1);
	g_autofree char *wanted = first;

	for (int i = 0; i < 2000; i++) {
		g_autofree char *got = digest_of(h, "0", 1);

		if (strcmp(got, wanted))
			return h;
		g_snprintf(text, sizeof(text), "%d", i);
		g_free(digest_of(h, text, strlen(text)));
	}
	return NULL;
}

/* More threads than there are slots for handles. */
static void test_threads(void **state)
{
	struct dm_hash *h = make_keyed("hmac(sha256)", "Jefe", 4);
	pthread_t threads[80];
	void *wrong;

	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hash_many, h), 0);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
		pthread_join(threads[i], &wrong);
		assert_null(wrong);
	}
	dm_hash_free(h);
	assert_int_equal(dm_secmem_used(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_published), cmocka_unit_test(test_streebog), cmocka_unit_test(test_checksums),
		cmocka_unit_test(test_keyed),	  cmocka_unit_test(test_refused),  cmocka_unit_test(test_keys_refused),
		cmocka_unit_test(test_pieces),	  cmocka_unit_test(test_threads),
		cmocka_unit_test(test_many_at_once), cmocka_unit_test(test_every_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
