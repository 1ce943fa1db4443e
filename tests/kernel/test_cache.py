# SPDX-License-Identifier: GPL-2.0-or-later
"""cache beside the kernel's: the lines taken, the text printed, and caches handed back and forth, clean and dirty."""

import bisect
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time

from mounted import SECTOR, pattern, quote

SECTORS, BLOCK, FAST = 16384, 64, 32
BYTES = BLOCK * SECTOR
KEEP = "smq 2 migration_threshold 0"


def test_lines(kernel, fs, backing):
    devs = "$D0 $D1 $D2"
    lines = [f"0 {SECTORS} cache {devs} {rest}" for rest in (
        "64 0 default 0", "64 0 smq 0", "64 1 writeback smq 0", "64 1 WRITETHROUGH smq 0", "64 1 passthrough smq 0",
        "64 1 metadata2 smq 0", "64 3 metadata2 metadata2 writethrough smq 0", "64 2 no_discard_passdown writeback smq 0",
        "64 0 cleaner 0", "64 0 mq 0", "64 0 mq 4 sequential_threshold 1024 random_threshold 8",
        "64 0 smq 2 migration_threshold 100", "64 0 smq 0 and more", "64 0 mq 2 write_promote_adjustment 3",
        # refused
        "64", "64 0", "64 0 smq", "64 0 lru 0", "64 1 nonsense smq 0", "64 2 writeback writethrough smq 0",
        "64 2 writeback writeback smq 0", "64 4 metadata2 metadata2 metadata2 writeback smq 0", "64 0 smq 1 x", "64 0 smq 2 x 1",
        "64 0 smq 2 random_threshold 4", "64 0 smq 2 migration_threshold x", "64 0 smq 2 migration_threshold", "0 0 smq 0",
        "32 0 smq 0", "96 0 smq 0", "2097216 0 smq 0", "x 0 smq 0", "1088 0 smq 0", "128 0 smq 0")]
    lines += [f"0 {SECTORS} cache $D3 $D1 $D2 128 0 smq 0", f"0 {SECTORS} cache $D3 $D1 $D2 64 0 smq 0",
              f"0 {SECTORS + 8} cache {devs} 64 0 smq 0", f"0 {SECTORS - 8} cache {devs} 64 0 smq 0",
              f"0 {SECTORS} cache /nonexistent $D1 $D2 64 0 smq 0", f"0 {SECTORS} cache $D0 /nonexistent $D2 64 0 smq 0",
              f"0 {SECTORS} cache $D0 $D1 /nonexistent 64 0 smq 0", f"0 {SECTORS} cache $D0 $D1"]
    sizes = [4096, FAST * BLOCK // 2, SECTORS, 4096]
    answers = list(zip(lines, kernel.tables(lines, [backing(n) for n in sizes]),
                       kernel.tables_dmfs(fs, lines, [backing(n) for n in sizes])))
    wrong = []
    for line, k, d in answers:
        # files take discards, the guest's disks do not; how much metadata is in use is a matter of when it is freed
        for a in (k, d):
            a.status = re.sub(r" 8 \d+/", " 8 N/", a.status.replace(" no_discard_passdown", ""))
            a.status = re.sub(r" \d+ ((?:metadata2 )?\w+ 2 migration)", r" N \1", a.status)
        if (k.accepted, k.table, k.status) != (d.accepted, d.table, d.status):
            wrong.append((line, k, d))
    assert not wrong, wrong


# --- the same trace ---------------------------------------------------------------------------------

TRACE_BLOCKS, TRACE_FAST, TRACE = 1024, 102, 40000
META = 4096     # sectors

REPLAY = """
import mmap, os, subprocess, sys
def hits():
    print("hits", *subprocess.getoutput(sys.argv[3]).split()[7:9])
buf, fd = mmap.mmap(-1, 4096), os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
for n, word in enumerate(open(sys.argv[2]).read().split()):
    if n in (0, int(sys.argv[4])):
        hits()
    os.preadv(fd, [buf], int(word))
hits()
"""


def zipf_trace(path):
    """4 KiB reads, their blocks by Zipf(1.1) scattered over the origin, every fifth one of a scan."""
    rng, sums, total = random.Random(7), [], 0.0
    for i in range(TRACE_BLOCKS):
        total += (i + 1) ** -1.1
        sums.append(total)
    places, scan = rng.sample(range(TRACE_BLOCKS), TRACE_BLOCKS), 0
    with open(path, "w", encoding="ascii") as f:
        for n in range(TRACE):
            if n % 5 == 4:
                at, scan = scan, (scan + 4096) % (TRACE_BLOCKS * BYTES)
            else:
                at = places[min(bisect.bisect(sums, rng.random() * total), TRACE_BLOCKS - 1)] * BYTES + rng.randrange(8) * 4096
            f.write(f"{at}\n")


def hit_ratio(out):
    """Of the second half of the trace."""
    seen = [tuple(map(int, m)) for m in re.findall(r"^hits (\d+) (\d+)", out, re.M)]
    assert len(seen) == 3, out
    hits, misses = (b - a for a, b in zip(seen[1], seen[2]))
    return hits / (hits + misses)


def trace_in_guest(trace, replay):
    line = f"0 {TRACE_BLOCKS * BLOCK} cache /dev/mapper/m /dev/mapper/f $D6 {BLOCK} 0 smq 0"
    return f"""
        dmsetup create m --table "0 {META} linear $D7 0"
        dmsetup create f --table "0 {TRACE_FAST * BLOCK} linear $D7 {META}"
        dmsetup create t --table "{line}"
        python3 {replay} /dev/mapper/t {trace} "dmsetup status t" {TRACE // 2}
        dmsetup remove --retry t; dmsetup remove --retry f; dmsetup remove --retry m"""


def trace_in_ours(fs, backing, trace, replay):
    parts = [backing(META), backing(TRACE_FAST * BLOCK), backing(TRACE_BLOCKS * BLOCK)]
    dev = fs.mkdir("t", f"0 {TRACE_BLOCKS * BLOCK} cache {' '.join(quote(p) for p in parts)} {BLOCK} 0 smq 0")
    out = subprocess.run([sys.executable, replay, dev.image, trace, "cat " + dev.file("status"), str(TRACE // 2)], check=True,
                         capture_output=True, text=True, timeout=120).stdout
    dev.remove()
    return hit_ratio(out)


def dump(meta):
    """What is cached: {origin block: cache block}."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    for name in ("cache_check", "cache_dump"):
        done = subprocess.run([shutil.which(name, path=path), meta], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
    return {int(o): int(c) for c, o in re.findall(r'cache_block="(\d+)" origin_block="(\d+)"', done.stdout)}


def wait_clean(dev):
    end = time.monotonic() + 30
    while dev.status().split()[13] != "0":
        assert time.monotonic() < end, dev.status()
        time.sleep(0.02)


class Passthrough:
    """A clean cache in passthrough mode: ours first, then the kernel's, then ours.  Who writes a block drops it.

    Its three devices are parts of one disk of the guest's, for which there are few.
    """

    SIZES = (4096, FAST * BLOCK, SECTORS)

    def __init__(self, fs, backing, disk, begin):
        self.fs, self.files, self.disk, self.begin = fs, [backing(n) for n in self.SIZES], disk, begin
        self.model = {b: pattern(BLOCK, 50 + b) for b in (3, 9, 20, 77)}

    def line(self, mode, policy=KEEP, devs=None):
        return f"0 {SECTORS} cache {devs or ' '.join(quote(p) for p in self.files)} {BLOCK} 1 {mode} {policy}"

    def ours(self):
        dev = self.fs.mkdir("p", self.line("writeback"))
        for b, data in self.model.items():
            dev.pwrite(data, b * BYTES, sync=True)
        dev.load(self.line("writeback", "cleaner 0"))
        wait_clean(dev)
        dev.load(self.line("passthrough"))
        self.model[9] = pattern(BLOCK, 59)
        dev.pwrite(self.model[9], 9 * BYTES, sync=True)
        dev.remove()
        self.cached = dump(self.files[0])
        assert set(self.cached) == {3, 20, 77}
        self.copy(into=True)

    def copy(self, into):
        with open(self.disk, "r+b") as whole:
            whole.seek(self.begin * SECTOR)
            for path, sectors in zip(self.files, self.SIZES):
                with open(path, "r+b") as part:
                    if into:
                        whole.write(part.read())
                    else:
                        part.write(whole.read(sectors * SECTOR))

    def in_guest(self, disk):
        self.model[77] = b"\xee" * 4096 + self.model[77][4096:]
        devs, at, parts = ["/dev/mapper/p0", "/dev/mapper/p1", "/dev/mapper/p2"], self.begin, ""
        for i, sectors in enumerate(self.SIZES):
            parts += f'dmsetup create p{i} --table "0 {sectors} linear {disk} {at}"\n'
            at += sectors
        return parts + f"""
            dmsetup create p --table "{self.line('passthrough', devs=' '.join(devs))}"
            echo passthrough $(dmsetup status p)
            for b in 3 9; do dd if=/dev/mapper/p bs=32k count=1 skip=$b iflag=direct 2>/dev/null | md5sum; done
            tr '\\0' '\\356' </dev/zero | dd of=/dev/mapper/p bs=4k count=1 seek={77 * 8} oflag=direct iflag=fullblock 2>/dev/null
            dmsetup message p 0 invalidate_cblocks {self.cached[20]}-{self.cached[20] + 1}
            echo passthrough $(dmsetup status p)
            for d in p p0 p1 p2; do dmsetup remove --retry $d; done"""

    def check(self, out):
        self.copy(into=False)
        seen = re.findall(r"^passthrough 0 \d+ cache \S+ \S+ 64 (\d+)/32 .* (\d+) \d+ (?:\w+ )*?passthrough ", out, re.M)
        assert seen == [("3", "0"), ("1", "0")], out
        for b in (3, 9):
            assert hashlib.md5(self.model[b]).hexdigest() in out, (b, out)
        assert dump(self.files[0]) == {3: self.cached[3]}
        dev = self.fs.mkdir("p", self.line("passthrough"))
        assert dev.status().split()[6] == "1/32" and dev.status().split()[13] == "0", dev.status()
        for mode in ("passthrough", "writeback"):
            dev.load(self.line(mode))
            for b, data in self.model.items():
                assert dev.pread(BYTES, b * BYTES) == data, (mode, b)
        dev.remove()


def test_there_and_back(kernel, fs, backing, work):
    """Ours, left clean, dirty or by a crash; the kernel goes on with it, and we with what it leaves.

    And in the same guest, for a boot takes long: a cache in passthrough mode, and what smq hits of the same trace.
    """
    trace, replay = os.path.join(work, "trace"), os.path.join(work, "replay.py")
    zipf_trace(trace)
    with open(replay, "w", encoding="ascii") as f:
        f.write(REPLAY)
    sets = [[backing(4096), backing(FAST * BLOCK), backing(SECTORS)] for _ in range(2)]
    steps, model = [trace_in_guest(trace, replay)], {}

    def features(mode, version):
        words = [mode] + ["metadata2"] * (version == 2)
        return f"{len(words)} {' '.join(words)}"

    for version, s in zip((1, 2), sets):
        dev = fs.mkdir("c", f"0 {SECTORS} cache {' '.join(quote(p) for p in s)} {BLOCK} {features('writeback', version)} {KEEP}")
        for b in (3, 9, 77):
            dev.pwrite(pattern(BLOCK, b), b * BYTES, sync=True)
            model[version, b] = pattern(BLOCK, b)
        dev.remove()
        assert set(dump(s[0])) == {3, 9, 77}
        d = "$D0 $D1 $D2" if version == 1 else "$D3 $D4 $D5"
        model[version, 9] = b"\xaa" * 4096 + model[version, 9][4096:]
        model[version, 100] = b"\xbb" * BYTES
        model[version, 5] = b"\xcc" * 4096
        for mode in ("writeback", "writethrough"):
            steps.append(f"""
            dmsetup create c --table "0 {SECTORS} cache {d} {BLOCK} {features(mode, version)} {KEEP}"
            echo status {version} {mode} $(dmsetup status c)
            for b in 3 77; do dd if=/dev/mapper/c bs=32k count=1 skip=$b iflag=direct 2>/dev/null | md5sum; done""")
            if mode == "writeback":
                steps.append("""
                tr '\\0' '\\252' </dev/zero | dd of=/dev/mapper/c bs=4k count=1 seek=72 oflag=direct iflag=fullblock 2>/dev/null
                tr '\\0' '\\273' </dev/zero | dd of=/dev/mapper/c bs=32k count=1 seek=100 oflag=direct iflag=fullblock 2>/dev/null""")
            else:
                steps.append("""
                tr '\\0' '\\314' </dev/zero | dd of=/dev/mapper/c bs=4k count=1 seek=40 oflag=direct iflag=fullblock 2>/dev/null""")
            steps.append("dmsetup remove --retry c")
    steps.append(f"""
        dmsetup create c --table "0 {SECTORS} cache $D0 $D1 $D2 {BLOCK} 1 passthrough {KEEP}" || echo not clean, refused""")
    own = META + TRACE_FAST * BLOCK
    spare = [backing(TRACE_BLOCKS * BLOCK), backing(own + sum(Passthrough.SIZES))]
    passthrough = Passthrough(fs, backing, spare[1], own)
    passthrough.ours()
    steps.append(passthrough.in_guest("$D7"))
    # and at the end a crash with dirty blocks
    steps.append(f"""
        dmsetup create c --table "0 {SECTORS} cache $D0 $D1 $D2 {BLOCK} 1 writeback {KEEP}"
        tr '\\0' '\\335' </dev/zero | dd of=/dev/mapper/c bs=32k count=1 seek=120 oflag=direct iflag=fullblock 2>/dev/null
        dmsetup status c >/dev/null; sync /dev/mapper/c
        dmesg | grep cache
        sync; echo 0 >rc; sync""")
    out = kernel.run("\n".join(steps), sets[0] + sets[1] + spare).out
    passthrough.check(out)
    assert "not clean, refused" in out
    theirs, ours = hit_ratio(out), trace_in_ours(fs, backing, trace, replay)
    print(f"hits of the same trace: the kernel {theirs:.3f}, dmfs {ours:.3f}")
    assert ours >= 0.9 * theirs
    model[1, 120] = b"\xdd" * BYTES
    seen = re.findall(r"^status (\d) (\w+) 0 \d+ cache \S+ \S+ 64 (\d+)/32 \d+ \d+ \d+ \d+ \d+ \d+ (\d+)", out, re.M)
    assert seen == [("1", "writeback", "3", "3"), ("1", "writethrough", "4", "4"), ("2", "writeback", "3", "3"),
                    ("2", "writethrough", "4", "4")], out
    for b in (3, 77):
        assert out.count(hashlib.md5(pattern(BLOCK, b)).hexdigest()) == 4, (b, out)
    for version, s in zip((1, 2), sets):
        line = f"0 {SECTORS} cache {' '.join(quote(p) for p in s)} {BLOCK} {features('writeback', version)} "
        dev = fs.mkdir("c", line + KEEP)
        words = dev.status().split()
        assert words[6] == ("5/32" if version == 1 else "4/32"), words
        assert words[13] == ("5" if version == 1 else "4"), "dirty, or all after a crash"
        for (v, b), data in model.items():
            if v == version:
                assert dev.pread(len(data), b * BYTES) == data, (v, b)
        dev.load(line + "cleaner 0")
        wait_clean(dev)
        dev.remove()
        with open(s[2], "rb") as f:
            for (v, b), data in model.items():
                if v == version:
                    f.seek(b * BYTES)
                    assert f.read(len(data)) == data, (v, b)
