# SPDX-License-Identifier: GPL-2.0-or-later
"""
Every cipher x mode x IV x key length x sector size of crypt, with keys made from their names.

    python3 tests/lib/crypt_combos.py IMAGE    prints tests/unit/crypt_vectors.h

IMAGE is what the kernel wrote: for each combination the plaintext, encrypted
(tests/kernel/test_crypt.py leaves it where $CRYPT_KEEP says).
"""

import collections
import hashlib
import sys

SECTORS = 32
BYTES = SECTORS * 512

Combo = collections.namedtuple("Combo", "spec key_len iv_offset sector_size large")


def stream(tag, length):
    """length bytes that look random: SHA-256 of the tag and a counter."""
    out = b""
    for i in range((length + 31) // 32):
        out += hashlib.sha256(f"{tag}{i}".encode()).digest()
    return out[:length]


PLAIN = stream("plain", BYTES)


def key_of(combo):
    return stream(f"{combo.spec}{combo.key_len}", combo.key_len)


def key_arg(combo):
    return key_of(combo).hex() or "-"


def options(combo):
    opts = []
    if combo.sector_size != 512:
        opts.append(f"sector_size:{combo.sector_size}")
    if combo.large:
        opts.append("iv_large_sectors")
    return f" {len(opts)} " + " ".join(opts) if opts else ""


def table(combo, dev, start, sectors=SECTORS):
    return f"0 {sectors} crypt {combo.spec} {key_arg(combo)} {combo.iv_offset} {dev} {start}{options(combo)}"


# cipher: block, key lengths
CIPHERS = {
    "aes": (16, [16, 24, 32]),
    "serpent": (16, [5, 16, 24, 32]),
    "twofish": (16, [16, 32]),
    "camellia": (16, [16, 24, 32]),
    "cast5": (8, [11, 16]),
    "blowfish": (8, [4, 56, 16]),
    "des": (8, [8]),
    "des3_ede": (8, [24]),
    "seed": (16, [16]),
}

HASHES = {
    "md4": 16, "md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64, "sha3-224": 28,
    "sha3-256": 32, "sha3-384": 48, "rmd160": 20, "wp256": 32, "wp384": 48, "wp512": 64, "streebog256": 32,
    "streebog512": 64, "blake2b-160": 20, "blake2b-256": 32, "blake2b-384": 48,
}  # fmt: skip


def takes_key(cipher, length):
    if cipher in ("serpent", "blowfish", "cast5"):
        low, high = {"serpent": (0, 32), "blowfish": (4, 56), "cast5": (11, 16)}[cipher]
        return low <= length <= high
    return length in CIPHERS[cipher][1]


def simple(cipher, mode, key, last):
    """The IVs that are only made of the sector's number."""
    for iv in ["plain", "plain64", "plain64be", "benbi", "null"] if last or cipher == "aes" else ["plain64"]:
        wrap = (1 << 32) - 24  # plain's 32 bits run over in the middle
        yield Combo(f"{cipher}-{mode}-{iv}", key, wrap if iv in ("plain", "plain64") else 8, 512, 0)
        if last:
            for size in (1024, 2048, 4096):
                for large in (0, 1):
                    yield Combo(f"{cipher}-{mode}-{iv}", key, 8, size, large)


def keyed(cipher, mode, key, block):
    """The IVs that take part of the key."""
    yield Combo(f"{cipher}-{mode}-tcw", key + block + 16, 8, 512, 0)
    if mode == "cbc":
        yield Combo(f"{cipher}-cbc-lmk", key, 8, 512, 0)
        yield Combo(f"{cipher}:64-cbc-lmk", key * 64, 8, 512, 0)
        if key >= 16:
            yield Combo(f"{cipher}:64-cbc-lmk", key * 65, 1 << 40, 512, 0)
    if mode != "ctr":
        for size, large in ((512, 0), (4096, 0), (4096, 1)):
            yield Combo(f"{cipher}-{mode}-eboiv", key, 8, size, large)
            if key in (16, 24, 32):
                yield Combo(f"{cipher}-{mode}-elephant", key * 2, 8, size, large)


def essiv(cipher, mode, key):
    for name, size in HASHES.items():
        if takes_key(cipher, size) and (mode == "cbc" or name == "sha256"):
            yield Combo(f"{cipher}-{mode}-essiv:{name}", key, 8, 512, 0)


ODD = [
    Combo("aes", 32, 0, 512, 0),
    Combo("aes-plain", 32, 0, 512, 0),
    Combo("des", 8, 0, 512, 0),
    Combo("aes:2-cbc-plain64", 32, 8, 512, 0),
    Combo("aes:2-cbc-plain64", 33, 8, 512, 0),
    Combo("aes:4-xts-plain64", 128, 8, 512, 0),
    Combo("aes:8-cbc-essiv:sha256", 256, 8, 512, 0),
    Combo("aes:4-cbc-plain64", 64, 8, 4096, 0),
    Combo("serpent:64-cbc-essiv:sha256", 1024, 8, 512, 0),
    Combo("aes:2-lrw-benbi", 64, 8, 512, 0),
    Combo("capi:lrw(serpent)-plain64be", 48, 8, 512, 0),
    Combo("capi:xts(aes)-plain64", 64, 8, 512, 0),
    Combo("capi:xts(aes)-plain64", 64, 8, 4096, 1),
    Combo("capi:cbc(aes)-essiv:sha256", 32, 8, 512, 0),
    Combo("capi:cbc(aes)-essiv:sha3-256", 32, 8, 512, 0),
    Combo("capi:essiv(cbc(aes),sha256)-plain64", 32, 8, 512, 0),
    Combo("capi:essiv(cbc(aes),sha256)-plain64be", 32, 8, 512, 0),
    Combo("capi:essiv(cbc(aes),sha256)-eboiv", 32, 8, 512, 0),
    Combo("capi:essiv(cbc(aes),sha256)-tcw", 64, 8, 512, 0),
    Combo("capi:ctr(aes)-plain64be", 32, 8, 512, 0),
    Combo("capi:ecb(aes)", 32, 0, 512, 0),
    Combo("capi:cbc(aes)-lmk", 2048, 8, 512, 0),
    Combo("capi:cbc(aes)-lmk", 2080, 8, 512, 0),
    Combo("capi:chacha20-plain64", 32, 8, 512, 0),
    Combo("capi:chacha20-benbi", 32, 8, 512, 0),
    Combo("capi:ecb(cipher_null)", 0, 0, 512, 0),
    Combo("cipher_null-ecb", 0, 0, 512, 0),
    Combo("serpent-cbc-plain", 0, 0, 512, 0),
    Combo("aes-ecb-foo", 16, 0, 512, 0),
    Combo("aes-cbc-plain:foo", 16, 0, 512, 0),
]


def key_length(mode, length):
    return {"xts": 2 * length, "lrw": length + 16}.get(mode, length)


def combos():
    for cipher, (block, keys) in CIPHERS.items():
        for mode in ("ecb", "cbc", "ctr", "xts", "lrw"):
            if mode in ("xts", "lrw") and block == 8:
                continue
            for length in keys:
                key = key_length(mode, length)
                last = length == keys[-1]
                if mode == "ecb":
                    yield Combo(f"{cipher}-ecb", key, 0, 512, 0)
                    yield Combo(f"{cipher}-ecb", key, 0, 4096, 0)
                    continue
                yield from simple(cipher, mode, key, last)
                if last or cipher == "aes":
                    yield from keyed(cipher, mode, key, block)
                if last:
                    yield from essiv(cipher, mode, key)
    yield from ODD


def for_header(c):
    """A part that still has every cipher, mode and IV: the header stays readable."""
    if c in ODD:
        return True
    cipher, mode = c.spec.split(":")[0].split("-")[0], c.spec.split("-")[1]
    if "essiv" in c.spec:
        return cipher in ("aes", "serpent", "blowfish") or c.spec.endswith("sha256")
    last = key_length(mode, CIPHERS[cipher][1][-1])
    if c.sector_size == 512:
        return cipher == "aes" or c.key_len >= last
    return c.sector_size == 4096 and c.large == 1 and cipher in ("aes", "cast5")


def header(image):
    print("/* SPDX-License-Identifier: GPL-2.0-or-later */")
    print("/*")
    print(" * Made by tests/lib/crypt_combos.py: what Linux 6.1's dm-crypt writes for a plaintext of")
    print(f" * {BYTES} bytes; the first half of its SHA-256.  Plaintext and keys: stream() there and in test_crypt_engine.c.")
    print(" */")
    print('/* clang-format off */')
    for i, c in enumerate(combos()):
        data = image[i * BYTES : (i + 1) * BYTES]
        if for_header(c) and data != bytes(BYTES):
            digest = hashlib.sha256(data).hexdigest()[:32]
            print(f'{{"{c.spec}", {c.key_len}, {c.iv_offset}u, {c.sector_size}, {c.large}, "{digest}"}},')


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        header(f.read())
