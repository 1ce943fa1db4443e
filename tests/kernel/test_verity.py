# SPDX-License-Identifier: GPL-2.0-or-later
"""verity beside the kernel's: the same lines, and the same images, good and corrupted, through both.

(FEC and signatures are not built into the guest's kernel: tests/integration has them.)
"""

import json
import os


from mounted import SECTOR, quote
from verity import Tree

ROOT = "4392712ba01368efdf14b05c76f9e4df0d53664630b5d48632ed17a137f39076"
MODULES = "sha512_generic sha3_generic md4 rmd160 wp512 streebog_generic crc32_generic"


def test_lines(kernel, fs, backing):
    """255 blocks of 4 KiB and 3 of digests on one disk, and lines that are wrong in every place."""
    good = f"0 2040 verity 1 $D0 $D1 4096 4096 255 1 sha256 {ROOT} 1234"

    def but(n, word):
        words = good.split(" ")
        words[n] = word
        return " ".join(words)

    too_long = [but(5 + 3, str(1 << 64)), but(6 + 3, str((1 << 64) + 1))]
    lines = [
        good, good + " 0", but(12, "-"), but(11, ROOT.upper()), but(12, "ABCD"), but(12, "a" * 512), but(12, "a" * 1024),
        but(3, "0"), but(3, "2"), but(3, "x"), but(3, "1x"), but(3, "-1"),
        but(4, "/nonexistent"), but(5, "/nonexistent"), but(5, "$D0"),
        *(but(6, n) for n in ("512", "1024", "2048", "256", "3000", "8192", "0", "x", "4096x")),
        *(but(7, n) for n in ("512", "1024", "8192", "16384", "65536", "256", "3000", "0", "x", "2147483648")),
        but(8, "255x"), but(8, "254"), but(8, "256"), but(8, "1"), but(8, "0"), but(8, "100000"), but(8, "1" + "0" * 18),
        but(8, str(1 << 61)), but(8, str((1 << 60) - 1)),
        but(9, "0"), but(9, "13"), but(9, "14"), but(9, "15"), but(9, "x"), but(9, str(1 << 61)), but(9, str((1 << 61) - 1)),
        *(but(10, h) for h in ("sha1", "sha512", "rot13", "SHA256", "", "hmac(sha256")),
        but(11, ROOT[:-2]), but(11, ROOT[:-1]), but(11, ROOT + "00"), but(11, "g" + ROOT[1:]), but(11, "-"),
        but(12, "123"), but(12, "12g4"), but(12, "x"),
        but(1, "8"), but(1, "2032"), but(1, "2048"),
        "0 8 verity 1 $D0 $D1 4096 4096 1 1 sha256 " + ROOT + " -",
        "0 1 verity 1 $D0 $D1 512 512 1 1 sha256 " + ROOT + " -",
        "0 8 verity 0 $D0 $D1 512 512 8 1 sha1 " + "ab" * 20 + " -",
        "0 8 verity 1 $D0 $D1 512 512 8 1 sha512 " + "ab" * 64 + " -",
        "0 8 verity 1 $D0 $D1 4096 512 1 1 crc32c 01020304 00",
        "0 8 verity 1 $D0 $D1 4096 512 1 1 md5 " + "00" * 16 + " 00",
        " ".join(good.split(" ")[:12]), "0 2040 verity",
        *(f"{good} {rest}" for rest in (
            "1 ignore_corruption", "1 restart_on_corruption", "1 panic_on_corruption", "1 IGNORE_Corruption",
            "1 ignore_zero_blocks", "1 check_at_most_once", "1 try_verify_in_tasklet",
            "4 try_verify_in_tasklet check_at_most_once ignore_zero_blocks panic_on_corruption",
            "2 ignore_zero_blocks ignore_zero_blocks", "2 check_at_most_once check_at_most_once",
            "2 ignore_corruption ignore_corruption", "2 ignore_corruption panic_on_corruption",
            "1 rot13", "1", "x", "2 ignore_corruption", "0 rot13", "1 ignore_corruption rot13", "-1", "99 ignore_corruption",
            "1 root_hash_sig_key_desc")),
        good + "\n2040 8 zero", "0 8 zero\n8 2040 verity 1 $D0 $D1 4096 4096 255 1 sha256 " + ROOT + " -",
    ]
    kernel.compare(fs, lines + too_long, [backing(2048), backing(8 * 16)], except_for=too_long, readonly=True)


def test_must_be_readonly(kernel, fs, backing):
    kernel.compare(fs, [f"0 2040 verity 1 $D0 $D1 4096 4096 255 1 sha256 {ROOT} 1234"], [backing(2048), backing(8 * 16)])


# --- the same images through both ------------------------------------------------------------------------------

VERSIONS = (1, 0)
HASHES = ("sha256", "sha1", "sha512", "md5", "sha224", "sha384", "sha3-256", "sha3-512", "rmd160", "wp512", "wp384",
          "streebog256", "streebog512", "md4", "crc32c")
SIZES = ((4096, 4096), (512, 512), (1024, 4096), (4096, 1024), (2048, 512), (512, 8192), (4096, 16384))
DATA = 64 * 4096            # bytes, at the beginning of each data disk
SALTS = (b"\x5a" * 32, b"", bytes(range(255)), b"x")

# In the guest: each device is read whole, and if that fails block by block; twice, so that what is cached counts too.
GUEST = r"""
import hashlib, json, mmap, os, subprocess, sys
for m in %(modules)r:
    subprocess.run(["modprobe", "-q", m])
buf = mmap.mmap(-1, 1 << 20)
def read(fd, at, length):
    try:
        n = os.preadv(fd, [memoryview(buf)[:length]], at)
        return buf[:n]
    except OSError as e:
        return os.strerror(e.errno).encode()
def status():
    out = subprocess.check_output(["dmsetup", "status"], text=True)
    return {line.split(":")[0]: line.split()[4] for line in out.splitlines()}
jobs = json.load(open(sys.argv[1]))
answers = []
for at in range(0, len(jobs), 60):
    part = jobs[at:at + 60]
    made = set()
    concise = ";".join(f"v{i},,,ro,{table}" for i, (table, block) in enumerate(part))
    if subprocess.run(["dmsetup", "create", "--concise", concise], capture_output=True).returncode == 0:
        made = set(range(len(part)))
    else: # a hash that this kernel has not
        subprocess.run(["dmsetup", "remove_all"])
        for i, (table, block) in enumerate(part):
            if subprocess.run(["dmsetup", "create", "-r", f"v{i}", "--table", table], capture_output=True).returncode == 0:
                made.add(i)
    before = status()
    all_passes = {}
    for i in sorted(made):
        table, block = part[i]
        size = int(table.split()[1]) * 512
        fd = os.open(f"/dev/mapper/v{i}", os.O_RDONLY | os.O_DIRECT)
        passes = []
        for _ in range(2):
            whole = read(fd, 0, size)
            if len(whole) != size:
                whole = b"".join(read(fd, at, block) for at in range(0, size, block))
            passes.append(hashlib.sha256(whole).hexdigest())
        os.close(fd)
        all_passes[i] = passes
    after = status()
    for i in range(len(part)):
        answers.append([all_passes[i], [before[f"v{i}"], after[f"v{i}"]]] if i in made else None)
    subprocess.run(["dmsetup", "remove_all"], check=True)
json.dump(answers, open(sys.argv[2], "w"))
"""


def combinations():
    """(version, hash, data block, hash block, salt, options): each version with each hash, each pair of sizes with each
    version, and options; more than a hundred."""
    n = 0
    for version in VERSIONS:
        for algorithm in HASHES:
            for sizes in (SIZES[0], SIZES[1 + n % (len(SIZES) - 1)]):
                yield version, algorithm, *sizes, SALTS[n % len(SALTS)], ""
                n += 1
        for sizes in SIZES:
            for options in ("1 ignore_corruption", "2 ignore_zero_blocks check_at_most_once",
                            "3 ignore_corruption ignore_zero_blocks try_verify_in_tasklet"):
                yield version, "sha256", *sizes, SALTS[n % len(SALTS)], options
                n += 1


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1]))


def ours(fs, table, block):
    """What the guest's script says of a table, of ours."""
    import hashlib
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    dev.load(table)
    size = dev.size()
    status, passes = [dev.status().split()[3]], []
    fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
    import mmap
    buf = mmap.mmap(-1, 1 << 20)

    def read(at, length):
        try:
            n = os.preadv(fd, [memoryview(buf)[:length]], at)
            return buf[:n]
        except OSError as e:
            return os.strerror(e.errno).encode()

    for _ in range(2):
        whole = read(0, size)
        if len(whole) != size:
            whole = b"".join(read(at, block) for at in range(0, size, block))
        passes.append(hashlib.sha256(whole).hexdigest())
    os.close(fd)
    status.append(dev.status().split()[3])
    dev.remove()
    return [passes, status]


def test_same_images(kernel, fs, backing, work):
    """More than a hundred combinations, each good, with corrupted data, and with corrupted digests."""
    data = bytearray(os.urandom(DATA))
    data[5 * 4096:9 * 4096] = bytes(4 * 4096)           # zero blocks
    good, bad = backing(DATA // SECTOR, bytes(data), name="good"), backing(DATA // SECTOR, bytes(data), name="bad")
    for at in (3, 6 * 4096 + 100, 40 * 4096, DATA - 1):
        flip(bad, at)
    areas, images = bytearray(), []
    for version, algorithm, data_block, hash_block, salt, options in combinations():
        tree = Tree(bytes(data), version, data_block, hash_block, algorithm, salt)
        areas += bytes(-len(areas) % 16384)
        images.append((tree, len(areas) // hash_block, options))
        areas += tree.area
    areas += bytes(-len(areas) % 4096)
    hashes, bad_hashes = (backing(len(areas) // SECTOR, bytes(areas), name=n) for n in ("hashes", "bad-hashes"))
    for tree, start, _ in images:       # in a leaf, and in the middle one of the level above if there are more
        flip(bad_hashes, (start + tree.starts[0]) * tree.hash_block + 5)
        if len(tree.levels) > 1 and len(tree.levels[1]) > 1:
            flip(bad_hashes, (start + tree.starts[1] + len(tree.levels[1]) // 2) * tree.hash_block + 1)
    jobs = []
    for tree, start, options in images:
        for disk, digests in ((good, hashes), (bad, hashes), (good, bad_hashes)):
            jobs.append((tree.line(disk, digests, start, options), tree.data_block))
    assert len(images) > 100
    with open(f"{work}/jobs", "w", encoding="utf-8") as f:
        names = {quote(p): f"/dev/ubd{c}" for p, c in zip((good, bad, hashes, bad_hashes), "abcd")}
        json.dump([[" ".join(names.get(w, w) for w in line.split(" ")), block] for line, block in jobs], f)
    with open(f"{work}/guest.py", "w", encoding="utf-8") as f:
        f.write(GUEST % {"modules": MODULES.split()})
    kernel.run(f"exec /usr/bin/python3 {work}/guest.py {work}/jobs {work}/answers", [good, bad, hashes, bad_hashes],
               timeout=600)
    with open(f"{work}/answers", encoding="utf-8") as f:
        answers = json.load(f)
    unknown = {line.split()[10] for (line, _), answer in zip(jobs, answers) if answer is None}
    assert len(set(HASHES) - unknown) >= 10, f"the guest's kernel refuses {unknown}"
    wrong = []
    for (line, block), theirs in zip(jobs, answers):
        if theirs and (mine := ours(fs, line, block)) != theirs:
            wrong.append(f"{line}\n  kernel: {theirs}\n  dmfs:   {mine}")
    assert not wrong, f"{len(wrong)} of {len(jobs)}:\n" + "\n".join(wrong[:10])
