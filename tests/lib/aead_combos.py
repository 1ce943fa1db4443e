# SPDX-License-Identifier: GPL-2.0-or-later
"""
crypt's authenticated modes, with keys made from their names.

    python3 tests/lib/aead_combos.py DIRECTORY    prints tests/unit/crypt_aead_vectors.h

DIRECTORY has, of each combination with number I, what the kernel wrote: I.data, the ciphertext, and I.tags
(tests/kernel/test_aead.py leaves them where $AEAD_KEEP says).
"""

import collections
import hashlib
import os
import sys

from crypt_combos import BYTES, PLAIN, SECTORS, key_of

# meta: bytes beside each sector; profile: aead or none
Combo = collections.namedtuple("Combo", "spec key_len meta sector_size large iv_offset profile")


def table(c, dev, sectors=SECTORS):
    opts = [f"integrity:{c.meta}:{c.profile}"]
    if c.sector_size != 512:
        opts.append(f"sector_size:{c.sector_size}")
    if c.large:
        opts.append("iv_large_sectors")
    return f"0 {sectors} crypt {c.spec} {key_of(c).hex()} {c.iv_offset} {dev} 0 {len(opts)} {' '.join(opts)}"


def aead(spec, key_len, meta, sector_size=512, large=0, iv_offset=0):
    return Combo("capi:" + spec, key_len, meta, sector_size, large, iv_offset, "aead")


def stored(spec, key_len, meta, sector_size=512):
    return Combo(spec, key_len, meta, sector_size, 0, 0, "none")


COMBOS = [
    aead("gcm(aes)-random", 32, 28),
    aead("gcm(aes)-random", 16, 28, 4096),
    aead("gcm(aes)-random", 24, 24),
    aead("gcm(aes)-plain64", 32, 16),
    aead("gcm(aes)-plain64", 32, 16, 4096, 1, 16),
    aead("gcm(aes)-plain64", 32, 16, 4096, 0, 16),
    aead("gcm(aes)-plain64", 32, 16, 512, 0, 7),
    aead("gcm(aes)-plain64", 32, 12, 4096),
    aead("gcm(aes)-plain64", 32, 4),
    aead("gcm(aes)-plain", 32, 16),
    aead("gcm(aes)-plain64be", 32, 16),
    aead("gcm(aes)-benbi", 32, 16),
    aead("gcm(aes)-null", 32, 16),
    aead("gcm(serpent)-plain64", 32, 16),
    aead("gcm(camellia)-plain64", 32, 13),
    aead("rfc7539(chacha20,poly1305)-random", 32, 28),
    aead("rfc7539(chacha20,poly1305)-plain64", 32, 16),
    aead("rfc7539(chacha20,poly1305)-plain64", 32, 16, 4096),
    aead("authenc(hmac(sha256),xts(aes))-plain64", 96, 32),
    aead("authenc(hmac(sha256),xts(aes))-plain64", 96, 20),
    aead("authenc(hmac(sha256),xts(aes))-random", 96, 48),
    aead("authenc(hmac(sha256),xts(aes))-random", 64, 48, 4096),
    aead("authenc(hmac(sha256),xts(aes))-random", 64, 32),
    aead("authenc(hmac(sha256),xts(aes))-benbi", 96, 32),
    aead("authenc(hmac(sha1),xts(aes))-plain64", 84, 20),
    aead("authenc(hmac(sha512),xts(aes))-plain64", 128, 64),
    aead("authenc(hmac(sha256),xts(serpent))-random", 96, 48),
    aead("authenc(hmac(sha256),cbc(aes))-plain64", 64, 32),
    aead("authenc(hmac(sha256),cbc(aes))-essiv:sha256", 64, 32),
    aead("authenc(hmac(sha256),cbc(aes))-essiv:sha256", 48, 32, 4096),
    aead("authenc(hmac(sha256),cbc(aes))-essiv:sha256", 64, 32, 4096, 1, 8),
    aead("authenc(hmac(sha256),cbc(des3_ede))-random", 56, 40),
    aead("authenc(hmac(sha256),ctr(aes))-random", 64, 48),
    aead("authenc(hmac(sha256),ctr(aes))-plain64", 64, 32),
    aead("authenc(hmac(sha256),chacha20)-random", 64, 48),
    aead("authenc(hmac(sha3-256),xts(aes))-plain64", 96, 32),
    aead("authenc(hmac(rmd160),xts(aes))-plain64", 84, 20),
    aead("authenc(hmac(md5),xts(aes))-plain64", 80, 16),
    aead("authenc(cmac(aes),xts(aes))-random", 80, 32),
    aead("authenc(cmac(aes),xts(aes))-plain64", 80, 16),
    aead("authenc(crc32c,xts(aes))-plain64", 68, 4),
    aead("authenc(blake2b-256,xts(aes))-plain64", 96, 32),
    stored("aes-xts-random", 64, 16),
    stored("aes-cbc-random", 32, 16, 4096),
    stored("capi:xts(aes)-random", 64, 16),
    stored("capi:chacha20-random", 32, 16),
    stored("blowfish-cbc-random", 16, 8),
    stored("aes-xts-plain64", 64, 20),
]

MODULES = """ghash-generic gcm ctr ecb cbc xts essiv authenc cmac chacha20poly1305 poly1305_generic chacha_generic
    serpent_generic camellia_generic des_generic blowfish_generic sha3_generic rmd160 md5 blake2b_generic crc32c_generic""".split()


def header(directory):
    print("/* SPDX-License-Identifier: GPL-2.0-or-later */")
    print("/*")
    print(f" * Made by tests/lib/aead_combos.py: what Linux 6.1's dm-crypt writes for a plaintext of {BYTES} bytes, and its tags")
    print(" * behind it; the first half of the SHA-256 of both.  Those without a random IV.")
    print(" */")
    print("/* clang-format off */")
    for i, c in enumerate(COMBOS):
        if "random" in c.spec or c.profile == "none":
            continue
        digest = hashlib.sha256()
        for end in ("data", "tags"):
            with open(os.path.join(directory, f"{i}.{end}"), "rb") as f:
                digest.update(f.read(BYTES if end == "data" else BYTES // c.sector_size * c.meta))
        print(f'{{"{c.spec}", {c.key_len}, {c.meta}, {c.sector_size}, {c.large}, {c.iv_offset}, '
              f'"{digest.hexdigest()[:32]}"}},')


if __name__ == "__main__":
    header(sys.argv[1])
