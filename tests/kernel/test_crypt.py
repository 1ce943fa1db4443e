# SPDX-License-Identifier: GPL-2.0-or-later
"""crypt beside dm-crypt: the same lines taken, the same text printed, and every combination both ways."""

import json
import os
import random
import shutil


from crypt_combos import BYTES, PLAIN, SECTORS, combos, stream, table
from mounted import SECTOR, quote

KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
MODULES = """serpent_generic twofish_generic camellia_generic cast5_generic blowfish_generic des_generic seed
    chacha_generic lrw md4 rmd160 wp512 sha3_generic streebog_generic crypto_null""".split()

# In the guest: COMMAND OFFSET LENGTH of each device is run with direct I/O, 100 devices at a time.
GUEST = r"""
import json, mmap, os, subprocess, sys
for m in %(modules)r:
    subprocess.run(["modprobe", "-q", m])
jobs = json.load(open(sys.argv[1]))
for at in range(0, len(jobs), 100):
    part = jobs[at:at + 100]
    lines = ";".join(f"c{at + i},,,rw," + job["table"].replace(",", "\\,").replace("\n", ",")
                     for i, job in enumerate(part))
    done = subprocess.run(["dmsetup", "create", "--concise", lines], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"dmsetup: {done.stderr}")
    for i, job in enumerate(part):
        fd = os.open(f"/dev/mapper/c{at + i}", os.O_RDWR | os.O_DIRECT)
        for op, offset, length, path in job["io"]:
            buf = mmap.mmap(-1, max(length, 4096))
            with open(path, "r+b") as f:
                f.seek(offset)
                if op == "write":
                    buf[:length] = f.read(length)
                    assert os.pwritev(fd, [memoryview(buf)[:length]], offset) == length
                else:
                    assert os.preadv(fd, [memoryview(buf)[:length]], offset) == length
                    f.write(buf[:length])
        os.close(fd)
    subprocess.run(["dmsetup", "remove_all"], check=True)
"""


def in_kernel(kernel, work, disk, jobs):
    """jobs: (table, [(op, offset, length, file)]); data comes from and goes to the same offset of the file."""
    with open(os.path.join(work, "jobs"), "w", encoding="utf-8") as f:
        json.dump([{"table": t, "io": io} for t, io in jobs], f)
    with open(os.path.join(work, "guest.py"), "w", encoding="utf-8") as f:
        f.write(GUEST % {"modules": MODULES})
    kernel.run(f"exec /usr/bin/python3 {work}/guest.py {work}/jobs", [disk], timeout=600)


def pieces(combo, seed):
    """Cuts of the device at odd places, in sectors of the combination, in a mixed order."""
    rng = random.Random(seed)
    unit = combo.sector_size // SECTOR
    cuts = sorted({0, SECTORS, *(unit * rng.randrange(1, SECTORS // unit) for _ in range(3))})
    parts = [(a * SECTOR, (b - a) * SECTOR) for a, b in zip(cuts, cuts[1:])]
    rng.shuffle(parts)
    return parts


def test_every_combination_both_ways(kernel, fs, backing, work):
    """The kernel writes and dmfs reads, in other pieces; then the other way round.  The ciphertext is the same."""
    every = list(combos())
    assert len(every) > 1000
    size = len(every) * SECTORS
    theirs, ours = backing(size, name="theirs"), backing(size, name="ours")
    plain = os.path.join(work, "plain")
    with open(plain, "wb") as f:
        f.write(PLAIN)
    in_kernel(kernel, work, theirs, [
        (table(c, "/dev/ubda", i * SECTORS), [("write", at, n, plain) for at, n in pieces(c, i)])
        for i, c in enumerate(every)])
    wrong = []
    dev = fs.mkdir("c")
    for i, c in enumerate(every):
        dev.load(table(c, quote(theirs), i * SECTORS))
        with dev.open(os.O_RDWR) as fd:
            if any(os.pread(fd, n, at) != PLAIN[at:at + n] for at, n in pieces(c, i + 5000)):
                wrong.append(f"dmfs does not read what the kernel wrote: {c}")
        dev.load(table(c, quote(ours), i * SECTORS))
        with dev.open(os.O_RDWR) as fd:
            for at, n in pieces(c, i + 9000):
                os.pwrite(fd, PLAIN[at:at + n], at)
    dev.remove()
    with open(theirs, "rb") as a, open(ours, "rb") as b:
        for c in every:
            if a.read(BYTES) != b.read(BYTES):
                wrong.append(f"other ciphertext than the kernel's: {c}")
    back = []
    for i, c in enumerate(every):
        path = os.path.join(work, f"back{i}")
        with open(path, "wb") as f:
            f.truncate(BYTES)
        back.append((table(c, "/dev/ubda", i * SECTORS), [("read", at, n, path) for at, n in pieces(c, i + 13000)]))
    in_kernel(kernel, work, ours, back)
    for i, c in enumerate(every):
        with open(os.path.join(work, f"back{i}"), "rb") as f:
            if f.read() != PLAIN:
                wrong.append(f"the kernel does not read what dmfs wrote: {c}")
    if os.environ.get("CRYPT_KEEP"):
        shutil.copy(theirs, os.environ["CRYPT_KEEP"])
    assert not wrong, "\n".join(wrong)


def test_offsets_and_sizes(kernel, fs, backing, work):
    """iv_offset, start offset, a table of several lines, requests over the ends of lines and bigger than 1 MiB."""
    size, length = 8192, 2600
    data = stream("big", length * SECTOR)
    disk = backing(size)
    plain, back = os.path.join(work, "plain"), os.path.join(work, "back")
    for path, content in ((plain, data), (back, bytes(len(data)))):
        with open(path, "wb") as f:
            f.write(content)
    # beyond the first line pages are split between requests, of which the guest's disk makes slow work: so it is short
    lines = [f"0 2201 crypt aes-xts-plain64 {KEY} 77 %s 5", f"2201 7 crypt aes-cbc-essiv:sha256 {KEY} 0 %s 5009",
             f"2208 392 crypt aes-cbc-plain64 {KEY} {(1 << 64) - 100} %s 6006"]
    table_text = "\n".join(lines).replace("%s", "/dev/ubda")
    in_kernel(kernel, work, disk, [(table_text, [("write", at, n, plain) for at, n in
                                                 [(0, len(data)), (512, 1 << 20), (2200 * 512, 512 * 9)]])])
    dev = fs.mkdir("c", *(line % quote(disk) for line in lines))
    assert dev.pread(len(data), 0) == data
    for at, n in [(0, 1 << 20), (2199 * 512, 5000), (1234567, 3)]:
        assert dev.pread(n, at) == data[at:at + n]
    other = stream("other", len(data))
    for at, n in [(0, len(data)), (1000, 12345), (2201 * 512 - 100, 5000), (1536, (1 << 20) + 1024)]:
        dev.pwrite(other[at:at + n], at)
    dev.remove()
    in_kernel(kernel, work, disk, [(table_text, [("read", 0, len(data), back)])])
    with open(back, "rb") as f:
        assert f.read() == other


def lines_of(*tails):
    return [f"0 1024 crypt {tail}" for tail in tails]


def test_lines(kernel, fs, backing):
    """Taken, printed and refused as by the kernel, which prints the key, so ours is zeroes here."""
    zero = "0" * 64
    known_better = lines_of(
        f"aes:4294967297-cbc-plain {zero} 0 $D0 0",                     # 32 bits run over
        f"aes-xts-lmk {zero} 0 $D0 0",                                  # could not be read back
        f"aes-cbc-plain64 {zero}0 0 $D0 0",                             # an odd digit
        f"aes-xts-plain64 {zero} 0 $D0 0 2 sector_size:512 sector_size:4096",
        f"aes-xts-plain64 {zero} 0 $D0 0 0 allow_discards",
        f"aes-xts-plain64 {zero} 0 $D0 0 1 allow_discards more",
        f"capi:cbc(aes) {zero} 0 $D0 0",                                # no IV: the kernel's are accidental
        f"twofish-cbc-plain {'0' * 48} 0 $D0 0",                        # libgcrypt has it not
        f"cast5-cbc-plain {'0' * 16} 0 $D0 0",
        f"aes-xts-plain64 {zero} {(1 << 64) + 8} $D0 0",
        f"aes-xts-plain64 {zero} 0 $D0 {(1 << 64) + 8}")
    kernel.compare(fs, lines_of(
        *(f"{spec} {zero} 0 $D0 0" for spec in """aes aes-plain aes-cbc-plain aes-cbc-plain64 aes-cbc-essiv:sha256
            aes-xts-plain64 aes-ctr-plain64be aes-ecb aes-ecb-null aes-cbc-null aes:2-cbc-plain
            aes-cbc-benbi aes-cbc-eboiv aes-cbc-plain:opts aes-ecb-whatever:at-all
            capi:xts(aes)-plain64 capi:cbc(aes)-essiv:sha256 capi:ecb(aes) aes-cbc aes-xts aes- aes-- -aes-cbc-plain
            aes-cbc-plain65 aes-cbc- aes-cbc-essiv aes-cbc-essiv: aes-cbc-essiv:md5 aes-cbc-essiv:sha1
            aes-cbc-essiv:sha512 aes-cbc-essiv:rot13 aes-ecb-essiv:sha256 aes-foo-plain foo-cbc-plain foo
            aes:0-cbc-plain aes:3-cbc-plain aes:-1-cbc-plain aes:x-cbc-plain aes:64-cbc-plain
            aes-cbc-random aes-ctr-eboiv aes-ctr-elephant des-xts-plain64 blowfish-xts-plain64 cbc(aes)-plain
            capi:aes-plain capi:cbc(aes-plain capi:cbc(aes)-essiv capi:foo(aes)-plain capi:xts(ecb(aes))-plain64
            cipher_null-ecb""".split()),
        *(f"aes-cbc-plain64 {key} 0 $D0 0" for key in
          ("-", zero[:32], zero[:48], zero[:30], zero + "00", "0", "zz" * 16, "0" * 31 + "g", ":32:user", ":32:foo:bar",
           ":x:user:foo", "::user:foo", ":32:user:", ":32:user:not-there", ":32:logon:not:there")),
        *(f"aes-cbc-plain64 {zero} {rest}" for rest in
          ("0 $D0 0", "17 $D0 5", "18446744073709551615 $D0 0", "x $D0 0", "-1 $D0 0", "0 $D0 x", "0 $D0 -1", "0 $D0",
           "0 $D0 7168", "0 $D0 7169", "0 $D0 18446744073709551615", "0 /nonexistent 0", "0", "")),
        *(f"aes-cbc-plain64 {zero} 8 $D0 0 {opts}" for opts in
          ("0", "1 allow_discards", "3 allow_discards same_cpu_crypt submit_from_crypt_cpus", "1 ALLOW_DISCARDS",
           "5 no_write_workqueue no_read_workqueue submit_from_crypt_cpus same_cpu_crypt allow_discards",
           "1 sector_size:512", "1 sector_size:4096", "2 iv_large_sectors sector_size:1024", "1 iv_large_sectors",
           "2 allow_discards allow_discards", "8 allow_discards allow_discards allow_discards allow_discards "
           "allow_discards allow_discards allow_discards sector_size:2048",
           "1", "2 allow_discards", "x", "9 a b c d e f g h i", "1 foo", "1 sector_size:0", "1 sector_size:513",
           "1 sector_size:8192", "1 sector_size:65536", "1 sector_size:x", "1 sector_size:", "1 sector_size:4096x",
           "1 integrity:0:aead", "1 integrity:x", "1 integrity:28:foo")),
        f"aes-cbc-plain64 {zero} 4 $D0 0 1 sector_size:4096",
        f"aes-cbc-lmk {zero} 0 $D0 0 1 sector_size:4096",
        f"aes-cbc-tcw {zero}{zero} 0 $D0 0",
        f"aes-cbc-tcw {zero}{zero} 0 $D0 0 1 sector_size:1024",
        f"aes-cbc-tcw {zero} 0 $D0 0",
        f"aes-cbc-elephant {zero} 0 $D0 0",
        f"aes-cbc-elephant {zero}{zero}00 0 $D0 0",
        f"aes:64-cbc-lmk {zero * 32} 0 $D0 0",
        f"aes:64-cbc-lmk {zero * 32}{zero[:32]} 0 $D0 0",
        f"aes:64-cbc-lmk {zero * 33} 0 $D0 0",
    ) + [f"0 1001 crypt aes-cbc-plain64 {zero} 0 $D0 0 1 sector_size:1024",
         f"0 8 crypt aes-cbc-plain64 {zero} 0 $D0 0 1 sector_size:4096\n8 4 crypt aes-cbc-plain64 {zero} 0 $D0 8",
         ] + known_better, [backing(8192)], except_for=known_better, timeout=600)
