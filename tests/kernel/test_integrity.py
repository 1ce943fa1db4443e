# SPDX-License-Identifier: GPL-2.0-or-later
"""integrity beside the kernel's: the lines taken, the text printed, the bytes written, and volumes handed back and forth."""

import re

import pytest

from mounted import SECTOR, pattern, quote

SLICE = 16384       # sectors of a volume's device

# Each formats a device of its own: the volume begins before all that were formatted before it.
FRESH = [
    "4 J 1 internal_hash:crc32c", "- J 1 internal_hash:sha256", "- B 1 internal_hash:hmac(sha256):00112233",
    "- D 2 internal_hash:crc32c block_size:4096", "16 J 0", "28 D 2 block_size:4096 fix_padding", "32 J 1 fix_padding",
    "128 J 2 internal_hash:sha512 block_size:1024", "129 D 1 internal_hash:sha512", "2 J 1 internal_hash:crc32c",
    "40 J 1 internal_hash:sha256", "255 D 0", "1 J 1 internal_hash:crc32", "- J 2 internal_hash:xxhash64 buffer_sectors:100",
    "- J 3 internal_hash:crc32c journal_sectors:1000 interleave_sectors:1000",
    "- J 3 internal_hash:crc32c journal_watermark:37 commit_time:77", "- J 2 internal_hash:crc32c journal_sectors:0",
    "- B 3 internal_hash:crc32c sectors_per_bit:1000 bitmap_flush_interval:777",
    "- B 3 internal_hash:crc32c sectors_per_bit:0 interleave_sectors:8192",
    "- J 2 internal_hash:crc32c allow_discards", "- J 2 internal_hash:crc32c journal_mac:crc32c",
    "- J 2 internal_hash:crc32c journal_mac:hmac(sha256):55aa", "- J 2 internal_hash:sha1 journal_mac:hmac(sha512):01",
    "- J 2 internal_hash:crc32c journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:cbc(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:ecb(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:chacha20:" + "5a" * 32,
    "- J 3 internal_hash:crc32c journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f journal_mac:sha256",
    "- J 2 internal_hash:crc32c buffer_sectors:1", "- J 2 internal_hash:hmac(sha256):00 legacy_recalculate",
    "- J 2 internal_hash:hmac(sha1):00 recalculate",
]
# How far these have come when they are asked is a matter of time.
RECALCULATED = ["- B 2 internal_hash:crc32c recalculate", "- J 2 internal_hash:crc32c recalculate",
                "- D 2 internal_hash:crc32c reset_recalculate", "- J 3 internal_hash:crc32c fix_padding fix_hmac",
                "- J 3 internal_hash:hmac(sha1):00 recalculate legacy_recalculate",
                "- J 4 internal_hash:hmac(sha256):00 recalculate fix_hmac journal_mac:hmac(sha256):01"]
# Nothing is written by these.
REFUSED = [
    "0 8 integrity $D0", "0 8 integrity $D0 0 4 J", "0 8 integrity $D0 x 4 J 1 internal_hash:crc32c",
    "0 8 integrity $D0 0 0 J 1 internal_hash:crc32c", "0 8 integrity $D0 0 256 J 0", "0 8 integrity $D0 0 - J 0",
    "0 8 integrity $D0 0 4 X 0", "0 8 integrity $D0 0 4 JJ 0", "0 8 integrity $D0 0 4 J 19 internal_hash:crc32c",
    "0 8 integrity $D0 0 4 J 2 internal_hash:crc32c", "0 8 integrity $D0 0 4 J 1 rubbish",
    "0 8 integrity $D0 0 4 J 1 journal_watermark:101", "0 8 integrity $D0 0 4 J 1 block_size:256",
    "0 8 integrity $D0 0 4 J 1 block_size:8192", "0 8 integrity $D0 0 4 J 1 block_size:1000", "0 8 integrity $D0 0 4 B 0",
    "0 8 integrity $D0 0 4 J 1 allow_discards", "0 8 integrity $D0 0 4 J 1 recalculate",
    "0 8 integrity $D0 0 4 J 1 internal_hash:nonsense", "0 8 integrity $D0 0 4 J 1 internal_hash:crc32c:0",
    "0 8 integrity $D0 0 4 J 1 internal_hash:hmac(sha256)", "0 8 integrity $D0 0 4 J 1 internal_hash:sha256:00",
    "0 8 integrity $D0 0 4 J 1 journal_mac:nonsense", "0 8 integrity $D0 0 4 J 1 journal_crypt:nonsense:00",
    "0 8 integrity $D0 0 4 J 1 meta_device:/nonexistent", "0 8 integrity /nonexistent 0 4 J 0",
    "0 8 integrity $D0 16380 4 J 0", "0 8 integrity $D0 99999999 4 J 0", "0 99999 integrity $D0 0 4 J 0",
    "0 8 integrity $D1 0 4 J 1 internal_hash:crc32c",
]




def printed(answer):
    """What is printed: the metadata device's number made a name, keys zeroes as here, how far a recalculation has come N."""
    table = re.sub(r"meta_device:(98:16|\S*/\S+)", "meta_device:D1", answer.table)
    return answer.accepted, re.sub(r" \d+$", " N", answer.status, flags=re.M), table


def test_lines_and_bytes(kernel, fs, backing):
    start = [64 * (len(FRESH) - i) for i in range(len(FRESH))]
    lines = [f"0 8 integrity $D0 {s} {rest}" for s, rest in zip(start, FRESH)]
    lines += [f"0 {n} integrity $D2 {s} {rest}" for n, s, rest in [
        (8, 640, "4 J 2 internal_hash:crc32c meta_device:$D1"),
        (8, 384, "- D 3 internal_hash:sha256 meta_device:$D1 block_size:4096"),
        (8, 128, "- B 3 internal_hash:crc32c meta_device:$D1 buffer_sectors:2048"),
        (2000, 0, "16 J 3 internal_hash:crc32c meta_device:$D1 journal_sectors:8000".replace("internal_hash:crc32c ", "")
         .replace("J 3", "J 2"))]]
    lines += [line.replace("$D0", "$D3") for line in REFUSED]
    lines += [f"0 8 integrity $D4 {64 * (len(RECALCULATED) - i)} {rest}" for i, rest in enumerate(RECALCULATED)]
    theirs, ours = ([backing(SLICE), backing(8192), backing(4096), backing(64, b"rubbish" + bytes(4089)), backing(SLICE)]
                    for _ in range(2))
    k, d = kernel.tables(lines, theirs), kernel.tables_dmfs(fs, lines, ours)
    wrong = [(line, a, b) for line, a, b in zip(lines, k, d) if printed(a) != printed(b)]
    assert not wrong, "\n".join(f"{line}\n kernel {a!r}\n dmfs   {b!r}" for line, a, b in wrong)
    assert sum(a.accepted for a in k) >= 38
    for n, (a, b) in enumerate(zip(theirs[:4], ours)):
        with open(a, "rb") as f, open(b, "rb") as g:
            x, y = f.read(), g.read()
        differ = [i // SECTOR for i in range(0, len(x), SECTOR) if x[i:i + SECTOR] != y[i:i + SECTOR]]
        assert not differ, f"D{n}: {len(differ)} sectors differ, {differ[:20]}"
