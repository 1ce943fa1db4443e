# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything at once, with the data verified: also the test that ThreadSanitizer and AddressSanitizer watch."""

import mmap
import os
import random
import threading

import pytest

import mounted
from mounted import SECTOR, quote

BLOCK = 4096
BLOCKS = 512        # of the volume
WRITERS = 4
SWAPS = 15 if mounted.sanitized() else 60


class Writers:
    """Each owns every WRITERS-th block, rewrites its blocks and reads them back, until told to stop."""

    def __init__(self, image, flags=0):
        self.stop = threading.Event()
        self.failures, self.rounds = [], 0
        self.version = [0] * BLOCKS
        self.fds = [os.open(image, os.O_RDWR | (flags if i % 2 else 0)) for i in range(WRITERS)]
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(WRITERS)]
        for t in self.threads:
            t.start()

    @staticmethod
    def block(number, version):
        word = b"%08x.%08x" % (number, version)
        return (word * (BLOCK // len(word) + 1))[:BLOCK]

    def run(self, me):
        try:
            rnd = random.Random(me)
            buf = mmap.mmap(-1, BLOCK)
            mine = range(me, BLOCKS, WRITERS)
            while not self.stop.is_set():
                number = rnd.choice(mine)
                if rnd.random() < 0.6:
                    buf[:] = self.block(number, self.version[number] + 1)
                    assert os.pwritev(self.fds[me], [buf], number * BLOCK) == BLOCK
                    self.version[number] += 1
                    if rnd.random() < 0.05:
                        os.fsync(self.fds[me])
                assert os.preadv(self.fds[me], [buf], number * BLOCK) == BLOCK
                want = self.block(number, self.version[number]) if self.version[number] else bytes(BLOCK)
                assert buf[:] == want, (number, self.version[number], bytes(buf[:40]))
                self.rounds += 1
        except BaseException as e:      # noqa: BLE001: whatever it is, the test must see it
            self.failures.append(e)

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join()
        for fd in self.fds:
            os.close(fd)
        assert not self.failures, self.failures
        assert self.rounds

    def content(self):
        return b"".join(self.block(n, v) if v else bytes(BLOCK) for n, v in enumerate(self.version))


def layouts(path, below):
    """Tables that all put the same bytes at the same places of the file."""
    p, sectors = quote(path), BLOCKS * BLOCK // SECTOR
    rnd = random.Random(5)
    cuts = sorted(rnd.sample(range(1, sectors), 100))
    pieces = [(a, b - a) for a, b in zip([0, *cuts], [*cuts, sectors])]
    half = sectors // 2
    return [
        [f"0 {sectors} linear {p} 0"],
        [f"{start} {length} linear {p} {start}" for start, length in pieces],
        [f"0 {sectors} linear {below} 0"],
        [f"0 {half} linear {below} 0", f"{half} {half} linear {p} {half}"],
        [f"0 {sectors} striped 1 7 {p} 0"] if sectors % 7 == 0 else [f"0 {sectors} striped 1 8 {p} 0"],
    ]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_io_with_swaps_suspends_and_renames(fs, backing, flags):
    path = backing(BLOCKS * BLOCK // SECTOR)
    sectors = BLOCKS * BLOCK // SECTOR
    below = fs.mkdir("below", f"0 {sectors} linear {quote(path)} 0")
    fs.mkdir("vol", f"0 {sectors} linear {quote(path)} 0")
    name = ["vol"]
    lock = threading.Lock()     # whoever uses the name against whoever changes it
    failures = []
    writers = Writers(fs["vol"].image, flags)

    def guarded(fn):
        def run():
            try:
                for i in range(SWAPS):
                    fn(i)
            except BaseException as e:      # noqa: BLE001
                failures.append(e)
        return threading.Thread(target=run)

    tables = layouts(path, "below")

    def swap(i):
        with lock:
            dev = fs[name[0]]
            if i % 3:
                dev.load(*tables[i % len(tables)])
            else:
                dev.load(*tables[i % len(tables)], to="inactive")
                dev.suspend(noflush=i % 2 == 0)
                dev.resume()

    def suspend(i):
        if i % 2:
            below.suspend(noflush=i % 4 == 1)
            below.resume()
        else:
            below.load(*tables[i % 2])

    def rename(i):
        with lock:
            new = f"vol{i}"
            os.rename(fs.path(name[0]), fs.path(new))
            name[0] = new
        fs.read("targets")

    def look(i):
        fs.devices()
        for file in ("status", "table", "info", "deps"):
            below.read(file)
        extra = fs.mkdir(f"extra{i}", f"0 8 linear below {i * 8}")
        extra.pread(BLOCK, 0)
        extra.remove()

    threads = [guarded(fn) for fn in (swap, suspend, rename, look)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    writers.end()
    assert not failures, failures
    dev = fs[name[0]]
    want = writers.content()
    assert dev.pread(len(want), 0) == want
    with open(path, "rb") as f:
        assert f.read() == want


def test_swaps_between_files_are_atomic(fs, backing):
    """Every read of a large range sees one table or the other, never some of each."""
    sectors = 128
    paths = [backing(sectors, bytes([i + 1]) * sectors * SECTOR) for i in range(2)]
    dev = fs.mkdir("vol", f"0 {sectors} linear {quote(paths[0])} 0")
    stop, failures, seen = threading.Event(), [], set()

    def reader():
        try:
            fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
            buf = mmap.mmap(-1, sectors * SECTOR)
            while not stop.is_set():
                assert os.preadv(fd, [buf], 0) == sectors * SECTOR
                kinds = set(buf[:])
                assert len(kinds) == 1, kinds
                seen.update(kinds)
            os.close(fd)
        except BaseException as e:      # noqa: BLE001
            failures.append(e)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for t in threads:
        t.start()
    for i in range(SWAPS * 2):
        p = quote(paths[i % 2])
        if i % 3:
            dev.load(*(f"{s} 16 linear {p} {s}" for s in range(0, sectors, 16)))
        else:
            dev.load(f"0 {sectors} linear {p} 0")
    stop.set()
    for t in threads:
        t.join()
    assert not failures, failures
    assert seen


def test_making_and_removing_from_many_threads(fs, backing):
    path = quote(backing(4096))
    failures = []

    def work(me):
        try:
            for i in range(SWAPS):
                dev = fs.mkdir(f"t{me}-{i}", f"0 8 linear {path} {me * 8}")
                top = fs.mkdir(f"top{me}-{i}", f"0 8 linear t{me}-{i} 0")
                top.pwrite(bytes([me + 1]) * BLOCK, 0)
                os.rename(dev.path, fs.path(f"r{me}-{i}"))
                assert top.pread(BLOCK, 0) == bytes([me + 1]) * BLOCK
                assert top.table() == f"0 8 linear r{me}-{i} 0\n"
                top.pwrite(b"odd", 1001)        # part of a sector, answered just before all of it goes
                top.remove()
                fs[f"r{me}-{i}"].remove()
        except BaseException as e:      # noqa: BLE001
            failures.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures
    assert fs.devices() == []


def test_a_signal_under_load(dmfs, backing):
    """What was fsynced before the daemon was told to end is in the file."""
    for _ in range(3):
        d = dmfs()
        path = backing(BLOCKS * BLOCK // SECTOR)
        dev = d.mkdir("vol", f"0 {BLOCKS * BLOCK // SECTOR} linear {quote(path)} 0")
        synced = [0] * WRITERS
        started = threading.Barrier(WRITERS + 1)

        def writer(me, dev=dev, synced=synced, started=started):
            try:
                with dev.open() as fd:
                    for i in range(10000):
                        os.pwrite(fd, Writers.block(me, i + 1), me * BLOCK)
                        os.fsync(fd)
                        synced[me] = i + 1
                        if i == 3:
                            started.wait()
            except OSError:
                pass

        threads = [threading.Thread(target=writer, args=(i,)) for i in range(WRITERS)]
        for t in threads:
            t.start()
        started.wait()
        d.signal(15)
        for t in threads:
            t.join()
        assert d.wait() == 0
        with open(path, "rb") as f:
            for me in range(WRITERS):
                block = f.read(BLOCK)
                version = int(block[9:17], 16)
                assert block == Writers.block(me, version) and version >= synced[me]
