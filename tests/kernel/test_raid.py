# SPDX-License-Identifier: GPL-2.0-or-later
"""raid beside the kernel's: the lines taken, the text printed, and arrays handed back and forth in every state."""

import hashlib
import os
import random
import re
import sys


sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lib"))

from mounted import SECTOR, quote  # noqa: E402
from raid import META, check, status, wait_whole  # noqa: E402

SIZE = 1920     # sectors of a device: whole chunks for 2 and 3 copies
CHUNK = 16
TYPES = [("raid0", 3, ()), ("raid1", 2, ()), ("raid1", 3, ()), ("raid10", 4, ()), ("raid10", 3, ()),
         ("raid10", 4, ("raid10_format far",)), ("raid10", 5, ("raid10_format far",)),
         ("raid10", 4, ("raid10_format offset",)), ("raid10", 6, ("raid10_copies 3",)),
         ("raid4", 3, ()), ("raid5_n", 4, ()), ("raid5_la", 4, ()), ("raid5_ra", 3, ()), ("raid5_ls", 4, ()),
         ("raid5_rs", 5, ()), ("raid6_zr", 5, ()), ("raid6_nr", 4, ()), ("raid6_nc", 6, ()), ("raid6_n_6", 5, ()),
         ("raid6_la_6", 5, ()), ("raid6_ra_6", 4, ()), ("raid6_ls_6", 6, ()), ("raid6_rs_6", 5, ())]


class Slices:
    """Many small devices in two files, by the same names on both sides."""

    def __init__(self, backing, size=SIZE):
        self.files, self.n, self.size, self.backing = [], 0, size, backing
        self.names = []

    def take(self, disks):
        first = self.n
        self.n += disks
        return range(first, self.n)

    def finish(self):
        self.files = [self.backing(self.n * META), self.backing(self.n * self.size)]

    def concise(self):
        return ";".join(f"m{i},,,,0 {META} linear $D0 {i * META};d{i},,,,0 {self.size} linear $D1 {i * self.size}"
                        for i in range(self.n))

    def on(self, fs):
        for i in range(self.n):
            fs.mkdir(f"m{i}", f"0 {META} linear {quote(self.files[0])} {i * META}")
            fs.mkdir(f"d{i}", f"0 {self.size} linear {quote(self.files[1])} {i * self.size}")

    def path(self, fs, kind, i):
        return fs[f"{kind}{i}"].image


class Arrays:
    def __init__(self, backing, types=TYPES, size=SIZE):
        self.slices, self.types, self.size = Slices(backing, size), types, size
        self.members = [self.slices.take(t[1]) for t in types]
        self.slices.finish()

    def length(self, t):
        kind, disks, params = t
        copies = next((int(p.split()[1]) for p in params if "copies" in p), 2)
        if kind == "raid1":
            return self.size
        if kind.startswith("raid10"):
            return self.size * disks // copies
        return self.size * (disks - {"0": 0, "4": 1, "5": 1, "6": 2}[kind[4]])

    def line(self, k, prefix="", extra=(), missing=()):
        t = self.types[k]
        kind, disks, params = t
        words = [*params, *extra]
        devs = " ".join("- -" if j in missing else f"{prefix}m{i} {prefix}d{i}"
                        for j, i in enumerate(self.members[k]))
        return (f"0 {self.length(t)} raid {kind} {1 + sum(len(w.split()) for w in words)} "
                f"{0 if kind == 'raid1' else CHUNK} {' '.join(words)} {disks} {devs}").replace("  ", " ")

    def concise(self, **kw):
        return ";".join(f"r{k},,,,{self.line(k, '/dev/mapper/', **kw)}" for k in range(len(self.types)))


PREPARE = """set -e
whole() {       # until every array is in sync and idle, three times in a row
    for n in 1 2 3; do
        while dmsetup status --target raid | awk '{split($8, r, "/"); if (r[1] != r[2] || $9 != "idle" || $7 ~ /a/) bad = 1}
            END {exit !bad}'; do sleep 0.05; done
    done
}
"""


def fill(fs, arrays, seed):
    """Makes the arrays on dmfs with random content; the digests."""
    sums = []
    for k, t in enumerate(arrays.types):
        dev = fs.mkdir(f"r{k}", arrays.line(k))
        rand = random.Random(seed + k)
        with dev.open() as fd:
            os.pwrite(fd, rand.randbytes(arrays.length(t) * SECTOR), 0)
            for _ in range(20):
                os.pwrite(fd, rand.randbytes(rand.choice([512, 4096, 9000 // 512 * 512])),
                          rand.randrange(arrays.length(t) - 20) * SECTOR)
            os.fsync(fd)
    for k, t in enumerate(arrays.types):
        dev = fs[f"r{k}"]
        wait_whole(dev)
        sums.append(hashlib.sha256(dev.pread(arrays.length(t) * SECTOR, 0)).hexdigest())
        dev.remove()
    return sums


def unload(fs, arrays):
    for i in range(arrays.slices.n):
        fs[f"m{i}"].remove()
        fs[f"d{i}"].remove()


def test_there_and_back(kernel, fs, backing):
    """Every type: made here, read, checked and written there, read and checked here; nothing is ever resynchronised."""
    arrays = Arrays(backing)
    n = len(TYPES)
    arrays.slices.on(fs)
    sums = fill(fs, arrays, 1)
    unload(fs, arrays)
    out = kernel.run(PREPARE + f"""
        dmsetup create --concise "{arrays.slices.concise()}"
        dmsetup create --concise "{arrays.concise()}"
        dmsetup status --target raid
        whole
        echo ==tables; dmsetup table --target raid
        echo ==sums; for k in $(seq 0 {n - 1}); do sha256sum </dev/mapper/r$k; done
        for k in $(seq 1 {n - 1}); do dmsetup message r$k 0 check; done
        whole
        echo ==checked; dmsetup status --target raid
        for k in $(seq 0 {n - 1}); do
            dd if=/dev/urandom of=/dev/mapper/r$k bs=3584 count=200 seek=$k oflag=direct 2>/dev/null
        done
        echo ==sums; for k in $(seq 0 {n - 1}); do sha256sum </dev/mapper/r$k; done
        dmsetup remove_all""", arrays.slices.files, timeout=600).out
    first, tables, theirs, checked, after = re.split(r"==\w+\n", out)
    for line in first.splitlines():
        assert re.search(r" A+ (\d+)/\1 idle ", line), line
    assert [line.split()[0] for line in theirs.splitlines()] == sums
    for line in checked.splitlines():
        assert re.search(r" A+ (\d+)/\1 idle 0 0 -", line), line
    tables = dict(line.split(": ", 1) for line in tables.splitlines())
    arrays.slices.on(fs)
    for k, (t, digest) in enumerate(zip(TYPES, after.splitlines())):
        dev = fs.mkdir(f"r{k}", arrays.line(k))
        assert status(dev)["action"] == "idle", t
        assert re.sub(r"\b[md]\d+", "X", dev.table()).split() == re.sub(r"\b\d+:\d+", "X", tables[f"r{k}"]).split()
        assert hashlib.sha256(dev.pread(arrays.length(t) * SECTOR, 0)).hexdigest() == digest.split()[0], t
        if t[0] != "raid0":
            assert check(dev) == 0, t
        dev.remove()


def test_lines(kernel, fs, backing):
    """Each on metadata that is all zeroes again, so every array is a new one."""
    def line(kind, params, devs, length=1920):
        return f"0 {length} raid {kind} {params} {devs}"

    def n(count, first=0):      # $D6 and $D7 are of other sizes
        return f"{count} " + " ".join(f"- $D{i + first}" for i in range(count))

    ok = [
        line("raid1", "2 64 nosync", n(2)),
        line("raid1", "4 64 nosync write_mostly 1", n(2)),
        line("raid1", "6 64 nosync write_mostly 1 daemon_sleep 1234", n(3)),
        line("RAID1", "2 0 NoSync", n(2)),
        line("raid4", "2 8 nosync", n(3), 3840),
        line("raid5_ls", "8 64 stripe_cache 300 nosync max_recovery_rate 9000 daemon_sleep 1234", n(3), 3840),
        line("raid5_ra", "6 64 nosync min_recovery_rate 5 max_recovery_rate 5 ".replace("6", "6", 1), n(3), 3840),
        line("raid0", "1 64", n(3), 5760),
        line("raid0", "1 64", n(2), 3840),
        line("raid5_n", "2 64 nosync", n(2)),
    ]
    bad = [
        "0 1920 raid", "0 1920 raid raid1", "0 1920 raid raid1 1", "0 1920 raid raid1 1 0",
        line("raid1", "0", n(2)), line("raid1", "x 0", n(2)), line("raid1", "9 0", n(2)),
        *(line(kind, "2 64 nosync", n(3), 3840) for kind in (
            "raid0_meta", "raid5", "raid6", "raid7", "raid5_0", "raid5_zr", "raid6_0_6", "raid2", "")),
        line("raid5_ls", "2 65 nosync", n(3), 3840), line("raid5_ls", "2 0 nosync", n(3), 3840),
        line("raid5_ls", "2 4 nosync", n(3), 3840), line("raid5_ls", "2 -64 nosync", n(3), 3840),
        line("raid5_ls", "2 64k nosync", n(3), 3840), line("raid5_ls", "2 64 nosync", n(3), 3841),
        line("raid5_ls", "2 64 nosync", n(3), 7680),
        line("raid5_ls", "2 64 nosync", n(1), 1920), line("raid6_zr", "1 64", n(3)),
        line("raid6_zr", "2 64 nosync", n(4), 3840),
        line("raid1", "3 64 sync nosync", n(2)), line("raid1", "3 64 nosync nosync", n(2)),
        line("raid1", "3 64 rebuild 2", n(2)), line("raid1", "3 64 rebuild x", n(2)),
        line("raid1", "3 64 rebuild -1", n(2)), line("raid1", "5 64 rebuild 1 rebuild 1", n(2)),
        line("raid1", "4 64 nosync rebuild 1", n(2)),
        line("raid1", "2 64 rebuild", n(2)), line("raid1", "3 64 region_size 24", n(2)),
        line("raid1", "3 64 region_size 4096", n(2)), line("raid5_ls", "3 64 region_size 32", n(3), 3840),
        line("raid5_ls", "3 64 stripe_cache 100000", n(3), 3840), line("raid5_ls", "3 8 stripe_cache 10", n(3), 3840),
        line("raid5_ls", "5 64 min_recovery_rate 10 max_recovery_rate 9", n(3), 3840),
        line("raid5_ls", "3 64 min_recovery_rate -1", n(3), 3840),
        line("raid5_ls", "3 64 write_mostly 0", n(3), 3840), line("raid5_ls", "3 64 max_write_behind 10", n(3), 3840),
        line("raid1", "3 0 write_mostly 2", n(2)), line("raid1", "5 0 write_mostly 0 write_mostly 1", n(2)),
        line("raid1", "3 0 max_write_behind 40000", n(2)), line("raid1", "3 0 stripe_cache 300", n(2)),
        line("raid5_ls", "3 64 raid10_copies 2", n(3), 3840), line("raid0", "2 64 nosync", n(2), 3840),
        line("raid0", "3 64 region_size 64", n(2), 3840), line("raid10", "3 64 raid10_copies 1", n(4), 3840),
        line("raid10", "3 64 raid10_copies 5", n(4), 3840), line("raid10", "3 64 raid10_format nearby", n(4), 3840),
        line("raid10", "3 64 raid10_format", n(4), 3840), line("raid10", "2 64 raid10_use_near_sets", n(4), 3840),
        line("raid5_ls", "3 64 journal_mode writeback", n(3), 3840), line("raid1", "3 64 journal_dev $D7", n(2)),
        line("raid5_ls", "3 64 journal_dev $D7", n(3), 3840), line("raid5_ls", "3 64 journal_dev /nonexistent", n(3), 3840),
        line("raid5_ls", "3 64 delta_disks 0", n(3), 3840), line("raid5_ls", "3 64 delta_disks 300", n(3), 3840),
        line("raid5_ls", "3 64 data_offset 4", n(3), 3840), line("raid5_ls", "3 64 data_offset 12", n(3), 3840),
        line("raid5_ls", "3 64 nosuch 4", n(3), 3840), line("raid5_ls", "2 64 nosuch", n(3), 3840),
        line("raid5_ls", "2 64 nosync", "0"), line("raid5_ls", "2 64 nosync", "4 - $D0 - $D1 - $D2"),
        line("raid5_ls", "2 64 nosync", "x - $D0 - $D1 - $D2"), line("raid5_ls", "2 64 nosync", "3 - $D0 - $D1 -"),
        line("raid5_ls", "2 64 nosync", "3 - $D0 - $D1 $D2 -"), line("raid1", "2 0 nosync", "2 - $D0 - $D6"),
        line("raid1", "2 0 nosync", "2 - $D0 - /nonexistent"), line("raid1", "2 0 nosync", "2 /nonexistent $D1 - $D0"),
        line("raid5_ls", "1 64", "3 - - - $D1 - $D2"), line("raid0", "1 64", "2 - - - $D1", 3840),
        line("raid5_ls", "1 64", "3 $D3 $D0 - - $D4 $D1", 3840),
    ]
    disks = [*(backing(1920) for _ in range(6)), backing(100), backing(4096)]
    # daemon_sleep 0 and halves of max_write_behind: what we print means the same when it is loaded again
    kernel.compare(fs, [*ok, *bad], disks, later=None)


# --- takeover and reshape --------------------------------------------------------------------------

GAP = 128
# from, devices, to, devices, chunk: the reshapes there are
RESHAPES = [("raid5_ls", 3, "raid5_ra", 3), ("raid5_n", 4, "raid5_ls", 4), ("raid6_zr", 5, "raid6_nc", 5),
            ("raid5_ls", 3, "raid5_ls", 4), ("raid10", 4, "raid10", 5), ("raid10_offset", 4, "raid10_offset", 6),
            ("raid10", 4, "raid10_offset", 4), ("raid10_offset", 5, "raid10", 5)]
# the same content under another level at once, or after a rebuild
TAKEOVERS = [("raid0", 3, "raid5_n", 4, "rebuild 3"), ("raid5_ls", 3, "raid6_ls_6", 4, "rebuild 3"),
             ("raid1", 2, "raid5_n", 2, ""), ("raid6_n_6", 4, "raid5_n", 3, ""),
             ("raid10", 2, "raid1", 2, ""), ("raid0", 2, "raid10", 4, "rebuild 1 rebuild 3")]


def length_of(kind, disks):
    if kind.startswith("raid1"):
        return SIZE * disks // 2
    return SIZE * (disks - {"0": 0, "5": 1, "6": 2}[kind[4]])


class Shapes:
    """Arrays that become others, on slices with room for it."""

    def __init__(self, backing, cases, size=SIZE):
        self.cases, self.size = cases, size
        self.slices = Slices(backing, size + GAP)
        self.members = [self.slices.take(max(c[1], c[3])) for c in cases]
        self.slices.finish()

    def line(self, k, kind, disks, params="", prefix=""):
        order = list(self.members[k])[:disks]
        if self.cases[k][0] == "raid0" and kind == "raid10":    # beside each one its copy
            order = [i for pair in zip(order[:disks // 2], order[disks // 2:]) for i in pair]
        devs = " ".join(f"{prefix}m{i} {prefix}d{i}" for i in order)
        length = length_of(kind, disks)
        if kind == "raid10_offset":
            kind, params = "raid10", f"raid10_format offset {params}"
        return (f"0 {length} raid {kind} {1 + len(params.split())} {0 if kind == 'raid1' else CHUNK} {params} "
                f"{disks} {devs}").replace("  ", " ")

    def fill(self, fs, k, seed):
        case = self.cases[k]
        dev = fs.mkdir(f"r{k}", self.line(k, case[0], case[1]))
        wait_whole(dev)
        data = random.Random(seed).randbytes(dev.size())
        dev.pwrite(data, 0, sync=True)
        dev.remove()
        return data

    def put_room_first(self, k):
        """As LVM does for more devices: what lies at 0 lies at GAP then."""
        with open(self.slices.files[1], "r+b") as f:
            for i in list(self.members[k])[:self.cases[k][1]]:
                f.seek(i * self.slices.size * SECTOR)
                old = f.read(self.size * SECTOR)
                f.seek(i * self.slices.size * SECTOR)
                f.write(bytes(GAP * SECTOR) + old)


def reshape_params(case):
    more = case[3] - case[1]
    return (f"delta_disks {more} " if more else "") + f"data_offset {GAP}"


def test_half_reshaped(kernel, fs, backing):
    """Begun and half done here, finished there, and grown here; begun there (raid10: and half done), finished here."""
    n = len(RESHAPES)
    s = Shapes(backing, RESHAPES + RESHAPES)
    s.slices.on(fs)
    sums = []
    for k, case in enumerate(s.cases):
        sums.append(s.fill(fs, k, k))
        if case[3] > case[1]:
            s.put_room_first(k)
    for k, case in enumerate(RESHAPES):
        fs.mkdir(f"r{k}", s.line(k, case[2], case[3], reshape_params(case))).remove()
        dev = fs.mkdir(f"r{k}", s.line(k, case[2], case[3], "min_recovery_rate 1 max_recovery_rate 20"))
        while status(dev)["ratio"].startswith("0/"):
            pass
        assert status(dev)["action"] == "reshape"
        dev.remove()
    unload(fs, s)
    begin = ";".join(f"r{k},,,,{s.line(k, s.cases[k][2], s.cases[k][3], reshape_params(s.cases[k]), '/dev/mapper/')}"
                     for k in range(n, 2 * n))
    half = "\n".join(f"dmsetup create r{k} --table '{s.line(k, c[2], c[3], 'max_recovery_rate 1', '/dev/mapper/')}'; "
                     f"dmsetup remove --retry r{k}" for k, c in enumerate(s.cases) if k >= n and c[0][4] == "1")
    go_on = ";".join(f"r{k},,,,{s.line(k, s.cases[k][2], s.cases[k][3], '', '/dev/mapper/')}" for k in range(n))
    out = kernel.run(PREPARE + f"""
        dmsetup create --concise "{s.slices.concise()}"
        dmsetup create --concise "{go_on}"
        whole
        for k in $(seq 0 {n - 1}); do dmsetup message r$k 0 check; done
        whole
        dmsetup status --target raid
        echo ==sums; for k in $(seq 0 {n - 1}); do
            head -c {SIZE * 2 * SECTOR} /dev/mapper/r$k | sha256sum
        done
        dmsetup remove --retry r0; for k in $(seq 1 {n - 1}); do dmsetup remove --retry r$k; done
        dmsetup create --concise "{begin}"
        echo ==begun; dmsetup status --target raid
        for k in $(seq {n} {2 * n - 1}); do dmsetup remove --retry r$k; done
        {half}
        dmsetup remove_all""", s.slices.files, timeout=600).out
    first, theirs, begun = re.split(r"==\w+\n", out)
    for line in first.splitlines():
        assert re.search(r" A+ (\d+)/\1 idle 0 \d+ -", line), line
    assert len(begun.splitlines()) == n and all(" reshape 0 " in line for line in begun.splitlines()), begun
    assert [line.split()[0] for line in theirs.splitlines()] == [
        hashlib.sha256(sums[k][:SIZE * 2 * SECTOR]).hexdigest() for k in range(n)]
    s.slices.on(fs)
    for k in range(2 * n):
        case = s.cases[k]
        dev = fs.mkdir(f"r{k}", s.line(k, case[2], case[3]))
        wait_whole(dev)
        assert dev.pread(len(sums[k]), 0) == sums[k], case
        dev.suspend()
        dev.resume()
        wait_whole(dev)
        length = length_of(case[2], case[3]) // CHUNK * CHUNK
        dev.pwrite(sums[k][:4096], length * SECTOR - 4096, sync=True)
        assert check(dev) == 0, case
        dev.remove()


def test_takeover(kernel, fs, backing):
    """Each done by either side and then read by the other."""
    n = len(TAKEOVERS)
    s = Shapes(backing, TAKEOVERS + TAKEOVERS)
    s.slices.on(fs)
    data = [s.fill(fs, k, k) for k in range(2 * n)]
    for k, case in enumerate(TAKEOVERS):
        dev = fs.mkdir(f"r{k}", s.line(k, case[2], case[3], case[4]))
        wait_whole(dev)
        assert dev.pread(len(data[k]), 0) == data[k]
        assert check(dev) == 0
        dev.remove()
    unload(fs, s)
    arrays = ";".join(f"r{k},,,,{s.line(k, c[2], c[3], c[4] if k >= n else '', '/dev/mapper/')}"
                      for k, c in enumerate(s.cases))
    out = kernel.run(PREPARE + f"""
        dmsetup create --concise "{s.slices.concise()}"
        dmsetup create --concise "{arrays}"
        whole
        for k in $(seq 0 {2 * n - 1}); do dmsetup message r$k 0 check; done
        whole
        echo ==checked; dmsetup status --target raid
        echo ==sums; for k in $(seq 0 {2 * n - 1}); do sha256sum </dev/mapper/r$k; done
        dmsetup remove_all""", s.slices.files, timeout=600).out
    _, checked, theirs = re.split(r"==\w+\n", out)
    assert len(checked.splitlines()) == 2 * n
    for line in checked.splitlines():
        assert re.search(r" A+ (\d+)/\1 idle 0 0 -", line), line
    assert [line.split()[0] for line in theirs.splitlines()] == [hashlib.sha256(d).hexdigest() for d in data]
    s.slices.on(fs)
    for k in range(n, 2 * n):
        case = s.cases[k]
        dev = fs.mkdir(f"r{k}", s.line(k, case[2], case[3]))
        assert status(dev)["action"] == "idle" and status(dev)["type"] == case[2]
        assert dev.pread(len(data[k]), 0) == data[k]
        assert check(dev) == 0
        dev.remove()


# --- journals ---------------------------------------------------------------------------------------

LOG = 8192
JOURNALED = [("raid4", 3), ("raid5_ls", 4), ("raid6_zr", 5), ("raid6_ls_6", 4)]


def test_journal(kernel, dmfs, backing):
    """Killed here, replayed there; written there twice, replayed here."""
    n = len(JOURNALED)
    arrays = Arrays(backing, [(kind, disks, ()) for kind, disks in JOURNALED])
    logs = backing(n * LOG)

    def line(k, prefix=""):
        return arrays.line(k, prefix, extra=(f"journal_dev {prefix}log{k}", "journal_mode writethrough"))

    def slices(fs):
        arrays.slices.on(fs)
        for k in range(n):
            fs.mkdir(f"log{k}", f"0 {LOG} linear {quote(logs)} {k * LOG}")

    fs, models = dmfs(), []
    slices(fs)
    for k in range(n):
        dev = fs.mkdir(f"r{k}", line(k))
        wait_whole(dev)
        rand = random.Random(k)
        model = bytearray(rand.randbytes(dev.size()))
        dev.pwrite(model, 0, sync=True)
        dev.suspend()       # an empty journal, for the writes that follow
        dev.resume()
        with dev.open() as fd:
            for _ in range(50):
                at, data = rand.randrange(dev.size() // 512 - 30) * 512, rand.randbytes(rand.choice([512, 4096, 10240]))
                os.pwrite(fd, data, at)
                model[at:at + len(data)] = data
            os.fsync(fd)
        models.append(model)
    fs.kill()
    fs.wait()
    out = kernel.run(PREPARE + f"""
        dmsetup create --concise "{arrays.slices.concise()}"
        dmsetup create --concise "{';'.join(f'log{k},,,,0 {LOG} linear $D2 {k * LOG}' for k in range(n))}"
        all="{';'.join(f'r{k},,,,{line(k, "/dev/mapper/")}' for k in range(n))}"
        dmsetup create --concise "$all"
        whole
        echo ==sums; for k in $(seq 0 {n - 1}); do sha256sum </dev/mapper/r$k; done
        for k in $(seq 0 {n - 1}); do dmsetup message r$k 0 check; done
        whole
        echo ==checked; dmsetup status --target raid
        for k in $(seq 0 {n - 1}); do
            dd if=/dev/urandom of=/dev/mapper/r$k bs=3584 count=100 seek=$k oflag=direct 2>/dev/null
            dd if=/dev/urandom of=/dev/mapper/r$k bs=512 count=33 seek=70 oflag=direct 2>/dev/null
        done
        echo ==sums; for k in $(seq 0 {n - 1}); do sha256sum </dev/mapper/r$k; done
        dmsetup remove_all""", [*arrays.slices.files, logs], timeout=600).out
    _, theirs, checked, after = re.split(r"==\w+\n", out)
    assert [line.split()[0] for line in theirs.splitlines()] == [hashlib.sha256(m).hexdigest() for m in models]
    for text in checked.splitlines():
        assert re.search(r" A+ (\d+)/\1 idle 0 0 A", text), text
    fs = dmfs()
    slices(fs)
    for k, digest in enumerate(after.splitlines()):
        dev = fs.mkdir(f"r{k}", line(k))
        assert status(dev)["action"] == "idle"
        assert hashlib.sha256(dev.pread(dev.size(), 0)).hexdigest() == digest.split()[0], JOURNALED[k]
        assert check(dev) == 0
        dev.remove()
