/* SPDX-License-Identifier: GPL-2.0-or-later */
/* crypt's authenticated modes: against the kernel's vectors, above a device that stores tags, and tampered with. */
#include "device.h"
#include "memdev.h"

#include <stdlib.h>

#include <dmfs/target.h>

#include "targets/crypt/crypt.h"
#include "targets/list.h"

#define BYTES 16384
#define SECTORS 8192u
#define GCM "capi:gcm(aes)-random"
#define KEY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

static const struct vector {
	const char *spec;
	unsigned key_len, meta, sector_size, large;
	uint64_t iv_offset;
	const char *digest;
} vectors[] = {
#include "crypt_aead_vectors.h"
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

/* --- the engine -------------------------------------------------------------------------------- */

static struct crypt_engine *make_engine(const struct vector *v)
{
	g_autofree char *tag = g_strdup_printf("%s%u", v->spec, v->key_len);
	g_autofree uint8_t *data = g_malloc(v->key_len);
	struct dm_key key = {.size = v->key_len, .data = data};
	struct crypt_engine *e = NULL;
	struct crypt_spec spec;
	GError *err = NULL;

	stream(tag, data, v->key_len);
	if (crypt_spec_parse(v->spec, true, &spec, &err) ||
	    crypt_engine_new(&spec, key.size, v->sector_size, v->large, &e, &err) ||
	    crypt_engine_store(e, v->meta, &err) || crypt_engine_set_key(e, &key, &err))
		fail_msg("%s: %s", v->spec, err->message);
	e->iv_offset = v->iv_offset;
	return e;
}

static void as_the_kernel(const struct vector *v)
{
	static uint8_t plain[BYTES], buf[BYTES + BYTES / 512 * CRYPT_MAX_META], digest[32];
	struct crypt_engine *e = make_engine(v);
	struct iovec in = {plain, BYTES}, back = {buf, BYTES};
	g_autoptr(GString) hex = g_string_new(NULL);
	uint64_t bad = 0;

	stream("plain", plain, BYTES);
	assert_int_equal(crypt_engine_encrypt(e, v->iv_offset, &in, 1, 0, buf, buf + BYTES, BYTES), 0);
	gcry_md_hash_buffer(GCRY_MD_SHA256, digest, buf, BYTES + BYTES / v->sector_size * v->meta);
	for (unsigned k = 0; k < 16; k++)
		g_string_append_printf(hex, "%02x", digest[k]);
	if (strcmp(hex->str, v->digest))
		fail_msg("%s, key of %u, sectors of %u: not what the kernel writes", v->spec, v->key_len,
			 v->sector_size);
	assert_int_equal(crypt_engine_decrypt(e, v->iv_offset, &back, 1, 0, buf + BYTES, BYTES, &bad), 0);
	assert_memory_equal(buf, plain, BYTES);
	crypt_engine_free(e);
}

static void sectors_and_tags_are_the_kernels(void **state)
{
	assert_true(G_N_ELEMENTS(vectors) > 25);
	for (size_t i = 0; i < G_N_ELEMENTS(vectors); i++)
		as_the_kernel(&vectors[i]);
	assert_int_equal(dm_secmem_used(), 0);
}

/* What is beside a sector: 16 bytes of tag, 12 of IV; the tag is of the number, the IV and the ciphertext. */
static void tag_first_then_the_iv(void **state)
{
	static const struct vector v = {GCM, 32, 28, 512, 0, 7, NULL};
	struct crypt_engine *e = make_engine(&v);
	uint8_t plain[1024], out[1024], meta[56], head[20] = {0}, key[32], again[512], tag[16];
	struct iovec in = {plain, sizeof(plain)};
	gcry_cipher_hd_t hd;

	stream("plain", plain, sizeof(plain));
	stream(GCM "32", key, sizeof(key));
	assert_int_equal(crypt_engine_encrypt(e, 7 + 0x1234, &in, 1, 0, out, meta, sizeof(plain)), 0);
	crypt_engine_free(e);
	assert_int_equal(gcry_cipher_open(&hd, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_GCM, 0), 0);
	gcry_cipher_setkey(hd, key, sizeof(key));
	gcry_cipher_setiv(hd, meta + 28 + 16, 12);
	head[0] = 0x35; /* the second sector's number without iv_offset */
	head[1] = 0x12;
	memcpy(head + 8, meta + 28 + 16, 12);
	gcry_cipher_authenticate(hd, head, sizeof(head));
	gcry_cipher_encrypt(hd, again, 512, plain + 512, 512);
	gcry_cipher_gettag(hd, tag, 16);
	gcry_cipher_close(hd);
	assert_memory_equal(again, out + 512, 512);
	assert_memory_equal(tag, meta + 28, 16);
}

static void no_iv_comes_twice(void **state)
{
	static const struct vector v = {GCM, 32, 28, 512, 0, 0, NULL};
	g_autoptr(GHashTable) seen =
	    g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
	struct crypt_engine *e = make_engine(&v);
	static uint8_t data[64 * 512], out[64 * 512], meta[64 * 28];
	struct iovec in = {data, sizeof(data)};

	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(crypt_engine_encrypt(e, 0, &in, 1, 0, out, meta, sizeof(data)), 0);
		for (unsigned k = 0; k < 64; k++)
			assert_true(g_hash_table_add(seen, g_bytes_new(meta + k * 28 + 16, 12)));
	}
	crypt_engine_free(e);
}

/* --- the target -------------------------------------------------------------------------------- */

static struct memdev *beneath(unsigned bytes, unsigned block)
{
	struct memdev *m = memdev_new(SECTORS);

	if (bytes)
		memdev_tags(m, bytes, block);
	unit_store("d", &m->dev);
	return m;
}

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return dm_gcrypt_init(NULL);
}

static int teardown(void **state)
{
	unit_stores_forget();
	return 0;
}

static void fill(uint8_t *buf, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rand_r(&seed);
}

/* Writes and reads of many sizes, which are cut and spread in every way. */
static void round_trips(const char *spec, const char *key, unsigned meta, unsigned block, const char *options)
{
	static const unsigned lens[] = {8, 16, 64, 512, 2048, 4096};
	static uint8_t data[4096 * 512], back[4096 * 512];
	struct memdev *m = beneath(meta, block);
	struct dm_mapped *md = unit_device("vol", "0 8000 crypt %s %s 16 unit:d 64 %s", spec, key, options);

	for (unsigned i = 0; i < G_N_ELEMENTS(lens); i++) {
		size_t bytes = lens[i] * 512;
		uint64_t sector = 2048 - 8 * i;

		fill(data, bytes, i);
		assert_int_equal(dm_write_sync(&md->dev, sector, lens[i], data, i % 2 ? DM_FUA : 0), 0);
		assert_int_equal(dm_read_sync(&md->dev, sector, lens[i], back, 0), 0);
		assert_memory_equal(back, data, bytes);
		for (size_t k = 0; k < bytes; k += 512)
			assert_memory_not_equal(m->data + (sector + 64) * 512 + k, data + k, 512);
	}
	assert_int_equal(dm_flush_sync(&md->dev), 0);
	unit_remove(md);
	memdev_put(m);
}

static void what_is_written_is_read(void **state)
{
	round_trips(GCM, KEY, 28, 512, "1 integrity:28:aead");
	round_trips(GCM, KEY, 28, 4096, "2 integrity:28:aead sector_size:4096");
	round_trips(GCM, KEY, 28, 512, "2 integrity:28:aead same_cpu_crypt");
	round_trips("capi:rfc7539(chacha20,poly1305)-random", KEY, 28, 512, "1 integrity:28:aead");
	round_trips("capi:authenc(hmac(sha256),xts(serpent))-random", KEY KEY KEY, 48, 512, "1 integrity:48:aead");
	round_trips("capi:authenc(hmac(sha256),cbc(aes))-plain64", KEY KEY, 32, 1024,
		    "2 integrity:32:aead sector_size:1024");
	round_trips("aes-xts-random", KEY KEY, 16, 512, "1 integrity:16:none");
	round_trips("aes-xts-plain64", KEY KEY, 0, 512, "1 integrity:20:none");
}

static void the_table_is_the_kernels(void **state)
{
	struct memdev *m = beneath(28, 4096);
	struct dm_mapped *md = unit_device("vol", "0 8000 crypt %s %s 8 unit:d 0 %s", GCM, KEY,
					   "4 iv_large_sectors sector_size:4096 integrity:28:AEAD no_read_workqueue");
	g_autofree char *table = NULL;
	struct dm_limits limits;

	table = unit_status(md, DM_STATUS_TABLE);
	assert_true(g_str_has_prefix(table, "0 8000 crypt " GCM " " ZEROS " 8 "));
	assert_true(
	    g_str_has_suffix(table, " 0 4 no_read_workqueue integrity:28:AEAD sector_size:4096 iv_large_sectors\n"));
	dm_dev_limits(&md->dev, &limits);
	assert_int_equal(limits.tag_bytes, 0); /* they are ours */
	assert_int_equal(limits.logical_block_size, 4096);
	unit_remove(md);
	memdev_put(m);
}

/* Flips each bit of a byte and sees the sector fail, alone, until it is as it was. */
static void flip(struct dm_mapped *md, uint8_t *byte, uint64_t sector)
{
	uint8_t buf[3 * 512];

	for (unsigned bit = 0; bit < 8; bit++) {
		*byte ^= 1u << bit;
		assert_int_equal(dm_read_sync(&md->dev, sector, 1, buf, 0), -EILSEQ);
		assert_int_equal(dm_read_sync(&md->dev, sector - 1, 3, buf, 0), -EILSEQ);
		assert_int_equal(dm_read_sync(&md->dev, sector - 1, 1, buf, 0), 0);
		assert_int_equal(dm_read_sync(&md->dev, sector + 1, 1, buf, 0), 0);
		*byte ^= 1u << bit;
		assert_int_equal(dm_read_sync(&md->dev, sector, 1, buf, 0), 0);
	}
}

/* Bytes all over the data, and every one of tag and IV. */
static void tamper(const char *spec, const char *key, unsigned meta)
{
	struct memdev *m = beneath(meta, 512);
	struct dm_mapped *md =
	    unit_device("vol", "0 8000 crypt %s %s 16 unit:d 64 1 integrity:%u:aead", spec, key, meta);
	uint8_t data[16 * 512], copy[512], tag[64];

	fill(data, sizeof(data), 3);
	assert_int_equal(dm_write_sync(&md->dev, 0, 16, data, 0), 0);
	for (unsigned i = 0; i < 512; i += 73)
		flip(md, m->data + (64 + 5) * 512 + i, 5);
	for (unsigned i = 0; i < meta; i++)
		flip(md, m->tags + (64 + 5) * meta + i, 5);
	/* a sector with its tag in another place */
	memcpy(copy, m->data + (64 + 5) * 512, 512);
	memcpy(tag, m->tags + (64 + 5) * meta, meta);
	memcpy(m->data + (64 + 5) * 512, m->data + (64 + 6) * 512, 512);
	memcpy(m->tags + (64 + 5) * meta, m->tags + (64 + 6) * meta, meta);
	assert_int_equal(dm_read_sync(&md->dev, 5, 1, data, 0), -EILSEQ);
	memcpy(m->data + (64 + 5) * 512, copy, 512);
	memcpy(m->tags + (64 + 5) * meta, tag, meta);
	assert_int_equal(dm_read_sync(&md->dev, 0, 16, data, 0), 0);
	/* never written */
	assert_int_equal(dm_read_sync(&md->dev, 16, 1, data, 0), -EILSEQ);
	/* writing it anew heals */
	m->data[(64 + 5) * 512] ^= 1;
	assert_int_equal(dm_read_sync(&md->dev, 5, 1, data, 0), -EILSEQ);
	assert_int_equal(dm_write_sync(&md->dev, 5, 1, copy, 0), 0);
	assert_int_equal(dm_read_sync(&md->dev, 0, 16, data, 0), 0);
	unit_remove(md);
	memdev_put(m);
}

static void tampering_is_noticed(void **state)
{
	tamper(GCM, KEY, 28);
	tamper(GCM, KEY, 24);
	tamper("capi:gcm(aes)-plain64", KEY, 16);
	tamper("capi:gcm(aes)-plain64", KEY, 4);
	tamper("capi:rfc7539(chacha20,poly1305)-random", KEY, 28);
	tamper("capi:authenc(hmac(sha256),xts(aes))-random", KEY KEY, 48);
	tamper("capi:authenc(hmac(sha256),cbc(aes))-essiv:sha256", KEY KEY, 32);
	tamper("capi:authenc(hmac(sha256),cbc(aes))-plain64", KEY KEY, 12);
}

/* A large read that is spread over the cores fails for one sector of it. */
static void one_bad_sector_of_many(void **state)
{
	static uint8_t data[4096 * 512];
	struct memdev *m = beneath(28, 512);
	struct dm_mapped *md = unit_device("vol", "0 8000 crypt %s %s 0 unit:d 0 1 integrity:28:aead", GCM, KEY);
	g_autoptr(GString) log = g_string_new(NULL);

	assert_int_equal(dm_write_sync(&md->dev, 0, 4096, data, 0), 0);
	for (unsigned i = 0; i < 20; i++) {
		m->tags[(100 + 200 * i) * 28] ^= 1;
		assert_int_equal(dm_read_sync(&md->dev, 0, 4096, data, 0), -EILSEQ);
		m->tags[(100 + 200 * i) * 28] ^= 1;
	}
	assert_int_equal(dm_read_sync(&md->dev, 0, 4096, data, 0), 0);
	dm_log_read(log);
	assert_non_null(strstr(log->str, "crypt: vol: INTEGRITY AEAD ERROR, sector "));
	unit_remove(md);
	memdev_put(m);
}

/* A read's error is not made one of tampering, and nothing of it is decrypted. */
static void errors_beneath_stay_what_they_are(void **state)
{
	uint8_t data[512] = {0};
	struct memdev *m = beneath(28, 512);
	struct dm_mapped *md = unit_device("vol", "0 8000 crypt %s %s 0 unit:d 0 1 integrity:28:aead", GCM, KEY);

	assert_int_equal(dm_write_sync(&md->dev, 0, 1, data, 0), 0);
	m->fail_at = 1;
	m->fail_error = -ENODATA;
	assert_int_equal(dm_read_sync(&md->dev, 0, 1, data, 0), -ENODATA);
	assert_int_equal(dm_write_sync(&md->dev, 0, 1, data, 0), -ENODATA);
	m->fail_at = 0;
	assert_int_equal(dm_read_sync(&md->dev, 0, 1, data, 0), 0);
	unit_remove(md);
	memdev_put(m);
}

static void another_key_opens_nothing(void **state)
{
	uint8_t data[512] = {0};
	struct memdev *m = beneath(48, 512);
	struct dm_mapped *md = unit_device("vol", "0 8000 crypt %s %s 0 unit:d 0 1 integrity:48:aead",
					   "capi:authenc(hmac(sha256),xts(aes))-random", KEY KEY);

	assert_int_equal(dm_write_sync(&md->dev, 0, 1, data, 0), 0);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(unit_message(md, "key set " KEY ZEROS, NULL), 0);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(dm_read_sync(&md->dev, 0, 1, data, 0), -EILSEQ);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(unit_message(md, "key wipe", NULL), 0);
	assert_int_equal(unit_message(md, "key set " KEY KEY, NULL), 0);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(dm_read_sync(&md->dev, 0, 1, data, 0), 0);
	unit_remove(md);
	memdev_put(m);
	assert_int_equal(dm_secmem_used(), 0);
}

/* --- what is refused ----------------------------------------------------------------------------- */

static void refused(const char *spec, const char *key, const char *place, const char *why)
{
	g_autofree char *table = g_strdup_printf("0 8000 crypt %s %s 0 unit:d %s", spec, key, place);
	struct dm_mapped *md = unit_device("vol", "0 8000 zero");
	GError *err = NULL;

	if (!unit_load(md, table, &err))
		fail_msg("taken: %s %s", spec, place);
	if (!strstr(err->message, why) || !strstr(err->message, "crypt: "))
		fail_msg("says '%s', not '%s'", err->message, why);
	assert_null(strstr(err->message, "0b0c"));
	g_error_free(err);
	unit_remove(md);
}

static void refused_by_its_device(void **state)
{
	struct memdev *m = beneath(28, 512);

	refused(GCM, KEY, "0 2 integrity:28:aead sector_size:4096", "which stores a tag for each 512 bytes");
	refused("capi:gcm(aes)-plain64", KEY, "0 1 integrity:16:aead", "which stores tags of 28 bytes");
	refused("aes-cbc-random", KEY, "0 1 integrity:16:none", "integrity:16:none does not fit");
	memdev_put(m);
	m = beneath(28, 4096);
	refused(GCM, KEY, "4 2 integrity:28:aead sector_size:4096", "device sector 4 is not a multiple");
	memdev_put(m);
	m = beneath(0, 0);
	refused(GCM, KEY, "0 1 integrity:28:aead", "stores no tags; integrity:28:aead takes a device that does");
	memdev_put(m);
}

static void refused_by_itself(void **state)
{
	struct memdev *m = beneath(28, 512);

	refused(GCM, KEY, "0", "'gcm(aes)' is an authenticated mode, which needs integrity:BYTES:aead");
	refused("aes-gcm-random", KEY, "0 1 integrity:28:aead", "such as capi:gcm(aes)-random");
	refused("aes-xts-plain64", KEY KEY, "0 1 integrity:28:aead", "'aes-xts-plain64' is not an authenticated mode");
	refused("capi:xts(aes)-random", KEY KEY, "0 1 integrity:28:aead",
		"'xts(aes)' is not an authenticated mode there is: gcm(");
	refused("capi:aegis128-random", KEY, "0 1 integrity:32:aead", "no library here has aegis128");
	refused("capi:ccm(aes)-random", KEY, "0 1 integrity:32:aead",
		"'ccm(aes)' is not an authenticated mode there is");
	refused("capi:rfc7539(chacha20,poly1306)-random", KEY, "0 1 integrity:28:aead",
		"is not an authenticated mode there is");
	refused("capi:gcm(blowfish)-random", KEY, "0 1 integrity:28:aead", "gcm takes ciphers with blocks of 16 bytes");
	refused("capi:gcm()-random", KEY, "0 1 integrity:28:aead", "cipher '' is not one of");
	refused("capi:gcm(aes)", KEY, "0 1 integrity:28:aead", "an IV mode is needed");
	refused("capi:gcm(aes)-lmk", KEY, "0 1 integrity:28:aead", "IV mode lmk");
	refused("capi:authenc(hmac(sha256),cbc(aes))-tcw", KEY KEY KEY, "0 1 integrity:32:aead",
		"tcw does not go with");
	refused("capi:authenc(hmac(sha256),cbc(aes))-eboiv", KEY KEY, "0 1 integrity:32:aead",
		"eboiv does not go with");
	refused("capi:gcm(aes)-essiv:sha256", KEY, "0 1 integrity:28:aead", "essiv takes a mode whose IV is one block");
	refused("capi:essiv(authenc(hmac(sha256),cbc(aes)),sha256)-plain64", KEY KEY, "0 1 integrity:32:aead",
		"is not an authenticated mode there is");
	refused("capi:authenc(hmac(sha256))-random", KEY, "0 1 integrity:28:aead",
		"is not of the form authenc(MAC,MODE(CIPHER))");
	refused("capi:authenc(,cbc(aes))-random", KEY, "0 1 integrity:28:aead",
		"is not of the form authenc(MAC,MODE(CIPHER))");
	refused("capi:authenc(hmac(sha257),cbc(aes))-random", KEY, "0 1 integrity:28:aead",
		"MAC 'hmac(sha257)' is not");
	refused("capi:authenc(hmac(sha256),ecb(aes))", KEY KEY, "0 1 integrity:28:aead",
		"authenc takes a mode that has an IV");
	refused("capi:authenc(sha256,cbc(aes))-plain64", KEY KEY, "0 1 integrity:28:aead", "authenc: ");
	refused("capi:authenc(hmac(sha256),xts(aes))-plain64", "0b0c0d", "0 1 integrity:28:aead",
		"the key has 3 bytes, it needs the cipher's and then 32");
	refused("capi:authenc(hmac(sha256),xts(aes))-plain64", KEY "0b0c", "0 1 integrity:28:aead",
		"half of the xts key has 1 bytes");
	refused(GCM, "0b0c", "0 1 integrity:28:aead", "the key has 2 bytes");
	memdev_put(m);
}

static void refused_sizes(void **state)
{
	struct memdev *m = beneath(28, 512);

	refused(GCM, KEY, "0 1 integrity:12:aead",
		"12 bytes for each sector have no room for a tag beside an IV of 12");
	refused(GCM, KEY, "0 1 integrity:17:aead", "leaves 5 bytes for the tag, gcm has 4, 8 or 12 to 16");
	refused(GCM, KEY, "0 1 integrity:29:aead", "leaves 17 bytes for the tag");
	refused("capi:rfc7539(chacha20,poly1305)-plain64", KEY, "0 1 integrity:12:aead", "poly1305 has 16");
	refused("capi:authenc(hmac(sha256),xts(aes))-plain64", KEY KEY, "0 1 integrity:33:aead",
		"leaves 33 bytes for the tag, hmac(sha256) has 32");
	refused("aes-cbc-random", KEY, "0 1 integrity:28:none", "28 bytes for each sector, the IV has 16");
	refused("aes-cbc-random", KEY, "0", "IV mode random needs integrity:BYTES:aead or integrity:16:none");
	refused(GCM, KEY, "0 1 integrity:0:aead", "'integrity:0:aead' is not of the form");
	refused(GCM, KEY, "0 1 integrity:481:aead", "1 to 480 bytes");
	refused(GCM, KEY, "0 1 integrity:28", "'integrity:28' is not of the form");
	refused(GCM, KEY, "0 1 integrity:x:aead", "is not of the form");
	refused(GCM, KEY, "0 1 integrity:28:foo", "'foo' is not one of aead, none");
	memdev_put(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sectors_and_tags_are_the_kernels),
	    cmocka_unit_test(tag_first_then_the_iv),
	    cmocka_unit_test(no_iv_comes_twice),
	    cmocka_unit_test(what_is_written_is_read),
	    cmocka_unit_test(the_table_is_the_kernels),
	    cmocka_unit_test(tampering_is_noticed),
	    cmocka_unit_test(one_bad_sector_of_many),
	    cmocka_unit_test(errors_beneath_stay_what_they_are),
	    cmocka_unit_test(another_key_opens_nothing),
	    cmocka_unit_test(refused_by_its_device),
	    cmocka_unit_test(refused_by_itself),
	    cmocka_unit_test(refused_sizes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
