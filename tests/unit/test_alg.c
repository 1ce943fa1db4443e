/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * AF_ALG sockets by libgcrypt, through the calls that libcryptsetup makes.  The vectors are the standards': NIST
 * SP 800-38A (F.1.1, F.2.1, F.5.1), IEEE 1619 (vector 2) and RFC 3713 (appendix A).
 *
 * socket(2) fails here as on a kernel without AF_ALG, or bind(2) as on one without the algorithm.
 */
#include <linux/if_alg.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"

#include "../../tools/dmfs-run/preload/alg.c"
#include "../../tools/dmfs-run/preload/alg_calls.c"

static int open_socket(void)
{
	int fd = make_socket(SOCK_SEQPACKET);

	assert_true(fd >= 0);
	return fd;
}

static int bind_to(int fd, const char *type, const char *name)
{
	struct sockaddr_alg sa = {.salg_family = AF_ALG};

	strcpy((char *)sa.salg_type, type);
	strcpy((char *)sa.salg_name, name);
	return bind(fd, (struct sockaddr *)&sa, sizeof sa) ? -errno : 0;
}

static size_t from_hex(const char *hex, unsigned char *out)
{
	size_t n = strlen(hex) / 2;

	for (size_t i = 0; i < n; i++)
		assert_int_equal(sscanf(hex + 2 * i, "%2hhx", out + i), 1);
	return n;
}

static ssize_t give(int fd, uint32_t op, const void *iv, size_t iv_len, const void *data, size_t len)
{
	union {
		char bytes[CMSG_SPACE(sizeof(uint32_t)) + CMSG_SPACE(sizeof(uint32_t) + 16)];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov[2] = {{(void *)(uintptr_t)data, len / 2}, {(char *)(uintptr_t)data + len / 2, len - len / 2}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = &control};
	struct cmsghdr *c = &control.align;
	uint32_t n = (uint32_t)iv_len;

	msg.msg_controllen = CMSG_SPACE(sizeof op) + (iv ? CMSG_SPACE(sizeof n + iv_len) : 0);
	*c = (struct cmsghdr){CMSG_LEN(sizeof op), SOL_ALG, ALG_SET_OP};
	memcpy(CMSG_DATA(c), &op, sizeof op);
	if (iv) {
		c = CMSG_NXTHDR(&msg, c);
		*c = (struct cmsghdr){CMSG_LEN(sizeof n + iv_len), SOL_ALG, ALG_SET_IV};
		memcpy(CMSG_DATA(c), &n, sizeof n);
		memcpy(CMSG_DATA(c) + sizeof n, iv, iv_len);
	}
	return sendmsg(fd, &msg, 0);
}

static void test_vectors(void **state)
{
	static const struct {
		const char *name, *key, *iv, *plain, *secret;
	} v[] = {
		{"ecb(aes)", "2b7e151628aed2a6abf7158809cf4f3c", "", "6bc1bee22e409f96e93d7e117393172a",
		 "3ad77bb40d7a3660a89ecaf32466ef97"},
		{"cbc(aes)", "2b7e151628aed2a6abf7158809cf4f3c", "000102030405060708090a0b0c0d0e0f",
		 "6bc1bee22e409f96e93d7e117393172a", "7649abac8119b246cee98e9b12e9197d"},
		{"ctr(aes)", "2b7e151628aed2a6abf7158809cf4f3c", "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
		 "6bc1bee22e409f96e93d7e117393172a", "874d6191b620e3261bef6864990db6ce"},
		{"xts(aes)", "1111111111111111111111111111111122222222222222222222222222222222",
		 "33333333330000000000000000000000", "4444444444444444444444444444444444444444444444444444444444444444",
		 "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0"},
		{"ecb(camellia)", "0123456789abcdeffedcba9876543210", "", "0123456789abcdeffedcba9876543210",
		 "67673138549669730857065648eabe43"},
	};

	(void)state;
	for (size_t i = 0; i < N_OF(v); i++) {
		unsigned char key[64], iv[16], plain[64], secret[64], out[64];
		size_t key_len = from_hex(v[i].key, key), iv_len = from_hex(v[i].iv, iv);
		size_t len = from_hex(v[i].plain, plain);
		int fd = open_socket(), op;

		from_hex(v[i].secret, secret);
		assert_int_equal(bind_to(fd, "skcipher", v[i].name), 0);
		assert_int_equal(setsockopt(fd, SOL_ALG, ALG_SET_KEY, key, (socklen_t)key_len), 0);
		op = accept(fd, NULL, 0);
		assert_true(op >= 0);
		close(fd); /* what was accepted lives on */
		for (int round = 0; round < 2; round++) {
			assert_int_equal(give(op, ALG_OP_ENCRYPT, iv_len ? iv : NULL, iv_len, plain, len), len);
			assert_int_equal(read(op, out, sizeof out), len);
			assert_memory_equal(out, secret, len);
			assert_int_equal(give(op, ALG_OP_DECRYPT, iv_len ? iv : NULL, iv_len, secret, len), len);
			assert_int_equal(read(op, out, sizeof out), len);
			assert_memory_equal(out, plain, len);
		}
		close(op);
	}
	assert_int_equal(atomic_load(&n_sockets), 0);
}

static void test_what_there_is(void **state)
{
	static const struct {
		const char *type, *name;
		size_t key_len;
		int bind_error, key_error;
	} v[] = {
		{"skcipher", "xts(serpent)", 64, 0, 0},
		{"skcipher", "xts(twofish)", 32, 0, 0},
		{"skcipher", "cbc(des3_ede)", 24, 0, 0},
		{"skcipher", "cbc(cast5)", 16, 0, 0},
		{"skcipher", "ecb(cipher_null)", 0, 0, 0},
		{"skcipher", "ecb(cipher_null)", 16, 0, -EINVAL},
		{"skcipher", "xts(aes)", 33, 0, -EINVAL},
		{"skcipher", "xts(aes)", 16, 0, -EINVAL},
		{"skcipher", "cbc(aes)", 0, 0, -EINVAL},
		{"skcipher", "xts(blowfish)", 32, -ENOENT, 0},
		{"skcipher", "cbc(cipher_null)", 0, -ENOENT, 0},
		{"skcipher", "adiantum(xchacha12,aes)", 32, -ENOENT, 0},
		{"skcipher", "xts(aes", 32, -ENOENT, 0},
		{"skcipher", "xts()", 32, -ENOENT, 0},
		{"skcipher", "", 32, -ENOENT, 0},
		{"skcipher", "(aes)", 32, -ENOENT, 0},
		{"skcipher", "gcm(aes)", 32, -ENOENT, 0},
		{"hash", "sha256", 0, -ENOENT, 0},
		{"aead", "gcm(aes)", 24, 0, 0},
		{"aead", "gcm(aes)", 20, 0, -EINVAL},
		{"aead", "rfc7539(chacha20,poly1305)", 32, 0, 0},
		{"aead", "aegis128", 16, -ENOENT, 0},
	};
	unsigned char key[64];

	(void)state;
	for (size_t i = 0; i < sizeof key; i++)
		key[i] = (unsigned char)(37 * i + 1);
	for (size_t i = 0; i < N_OF(v); i++) {
		int fd = open_socket();

		assert_int_equal(bind_to(fd, v[i].type, v[i].name), v[i].bind_error);
		if (!v[i].bind_error)
			assert_int_equal(setsockopt(fd, SOL_ALG, ALG_SET_KEY, key, (socklen_t)v[i].key_len) ? -errno : 0,
					 v[i].key_error);
		close(fd);
	}
	assert_int_equal(atomic_load(&n_sockets), 0);
}

static void test_misuse(void **state)
{
	unsigned char key[32], data[32] = {0}, iv[16] = {0};
	static unsigned char large[MAX_MESSAGE + 1];
	int fd = open_socket(), op, pair[2];

	(void)state;
	memset(key, 7, sizeof key);
	errno = 0;
	assert_int_equal(accept(fd, NULL, NULL), -1);
	assert_int_equal(errno, EINVAL); /* not bound */
	assert_int_equal(setsockopt(fd, SOL_ALG, ALG_SET_KEY, key, 32), -1);
	assert_int_equal(bind_to(fd, "skcipher", "cbc(aes)"), 0);
	op = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(fcntl(op, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, iv, 16, data, 32), -1);
	assert_int_equal(errno, ENOKEY);
	close(op);
	assert_int_equal(setsockopt(fd, SOL_ALG, ALG_SET_KEY, key, 32), 0);
	assert_int_equal(give(fd, ALG_OP_ENCRYPT, iv, 16, data, 32), -1); /* not accepted */
	op = accept(fd, NULL, NULL);
	assert_int_equal(give(op, 7, iv, 16, data, 32), -1);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, iv, 8, data, 32), -1);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, NULL, 0, data, 32), -1);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, iv, 16, data, 31), -1);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, iv, 16, large, sizeof large), -1);
	assert_int_equal(errno, EMSGSIZE);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, iv, 16, large, MAX_MESSAGE), MAX_MESSAGE);
	while (give(op, ALG_OP_ENCRYPT, iv, 16, large, MAX_MESSAGE) > 0)
		; /* results nobody reads come to an end */
	assert_int_equal(errno, EAGAIN);

	/* a number that was closed behind our back and is another socket now */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(dup2(pair[0], op), op);
	assert_int_equal(give(op, ALG_OP_ENCRYPT, NULL, 0, data, 32), 32);
	assert_int_equal(read(pair[1], data, sizeof data), 32); /* it went there as it is */
	assert_true(data[0] == 0 && data[31] == 0);
	assert_int_equal(atomic_load(&n_sockets), 1);
	close(op);
	close(pair[0]);
	close(pair[1]);
	close(fd);
	assert_int_equal(atomic_load(&n_sockets), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vectors),
		cmocka_unit_test(test_what_there_is),
		cmocka_unit_test(test_misuse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
