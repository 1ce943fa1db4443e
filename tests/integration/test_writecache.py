# SPDX-License-Identifier: GPL-2.0-or-later
"""writecache through the mount: what the cache holds, when it is on the disk, when it is on the origin, and what is refused."""

import array
import errno
import mmap
import os
import random
import struct
import subprocess
import sys
import threading

import pytest

from mounted import SECTOR, pattern, quote, sanitized, until, wait_until_waiting

SECTORS = 8192
BLOCK = 8               # sectors, of 4096 bytes
HEAD = struct.Struct("<IIIIQQ")
COUNTS = ("reads", "read_hits", "writes", "hits_uncommitted", "hits_committed", "around", "allocated", "blocked", "flushes",
          "discards")


class Cache:
    """A device c of an origin and a cache file, and words of its status as attributes."""

    def __init__(self, fs, backing, kind="s", options="0", cache=6000, block=4096, origin=None, cache_file=None):
        self.fs, self.origin = fs, origin or backing(SECTORS, pattern(SECTORS, 99))
        self.cache = cache_file or backing(cache)
        self.line = f"0 {SECTORS} writecache {kind} {quote(self.origin)} {quote(self.cache)} {block} {options}"
        self.dev = fs.mkdir("c", self.line)

    def words(self):
        return [int(word) for word in self.dev.status().split()[3:]]

    def counts(self, *names):
        values = dict(zip(COUNTS, self.words()[4:]))
        return tuple(values[name] for name in names)

    def free(self):
        return self.words()[2]

    def write(self, block, count=1, seed=0, sync=False):
        self.dev.pwrite(pattern(count * BLOCK, seed), block * 4096, sync=sync)

    def holds(self, block, count=1, seed=0):
        return self.dev.pread(count * 4096, block * 4096) == pattern(count * BLOCK, seed)

    def below(self, block, count=1):
        with open(self.origin, "rb") as f:
            f.seek(block * 4096)
            return f.read(count * 4096)

    def untouched(self, block, count=1):
        return self.below(block, count) == pattern(SECTORS, 99)[block * 4096:(block + count) * 4096]


@pytest.fixture
def make(fs, backing):
    made = []

    def cache(*args, **kw):
        made.append(Cache(fs, backing, *args, **kw))
        return made[-1]

    yield cache
    if "c" in fs.devices():
        fs["c"].remove()


KINDS = ["s", "p"]


def test_the_sequence_of_the_kernels(make):
    c = make()
    assert c.dev.table() == c.line + "\n"
    assert c.words() == [0, 747, 747, 0] + [0] * 10
    with c.dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 16 * 4096)

        def write(block, count):
            os.pwritev(fd, [memoryview(buf)[:count * 4096]], block * 4096)

        for block in range(4):
            write(block, 1)
        write(2, 1)
        os.fsync(fd)
        write(2, 1)
        write(100, 16)
        write(103, 3)
        write(300, 1)
        os.fsync(fd)
        for block in (0, 1, 2, 3, 500, 501, 502, 100):
            os.preadv(fd, [memoryview(buf)[:4096]], block * 4096)
    assert c.words() == [0, 747, 726, 0, 8, 5, 26, 2, 1, 0, 23, 0, 2, 0]
    c.dev.message("CLEAR_stats")
    assert c.words() == [0, 747, 726, 0] + [0] * 10


def super_of(cache, start=0):
    """block size, blocks, sequence; and the entries: (sector, sequence)"""
    with open(cache, "rb") as f:
        f.seek(start * SECTOR)
        magic, version, block, pad, blocks, seq = HEAD.unpack(f.read(HEAD.size))
        assert (magic, version, pad) == (0x23489321, 1, 0) and f.read(32) == bytes(32)
        entries = struct.unpack(f"<{2 * blocks}Q", f.read(16 * blocks))
    return block, blocks, seq, list(zip(entries[::2], entries[1::2]))


@pytest.mark.parametrize("kind", KINDS)
def test_data_comes_back_and_goes_down(make, kind):
    c = make(kind)
    c.write(3, 5, seed=1)
    assert c.holds(3, 5, seed=1) and c.dev.pread(4096, 2 * 4096) == c.below(2)
    assert c.untouched(3, 5), "a write is in the cache first"
    c.write(4, seed=2)
    assert c.holds(3, seed=1) and c.holds(4, seed=2)
    c.dev.message("flush")
    assert c.words()[:4] == [0, 747, 747, 0]
    assert c.below(4) == pattern(BLOCK, 2) and c.below(3) == pattern(BLOCK, 1) and c.untouched(8)
    assert c.holds(4, seed=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block,start", [(512, 0), (512, 24), (1024, 7), (2048, 8), (4096, 64)])
def test_layout(make, kind, block, start):
    c = make(kind, f"2 start_sector {start}", block=block)
    room = (6000 - start) * SECTOR
    size, blocks, seq, entries = super_of(c.cache, start)
    meta = -(-(64 + 16 * blocks) // block) * block
    assert size == block and seq == 0 and set(entries) == {(2**64 - 1, 2**64 - 1)}
    assert meta + blocks * block <= room < -(-(64 + 16 * (blocks + 1)) // block) * block + (blocks + 1) * block
    c.dev.pwrite(pattern(8, 5), 40960, sync=True)
    _, _, seq, entries = super_of(c.cache, start)
    used = {sector: i for i, (sector, s) in enumerate(entries) if s < seq}
    assert sorted(used) == list(range(80, 88, block // SECTOR))
    with open(c.cache, "rb") as f:
        for sector, i in used.items():
            f.seek(start * SECTOR + meta + i * block)
            assert f.read(block) == pattern(8, 5)[(sector - 80) * SECTOR:][:block]
    c.dev.message("flush")
    _, _, seq, entries = super_of(c.cache, start)
    assert all(s >= seq for _, s in entries)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_flushed_survives_a_crash(dmfs, backing, kind):
    fs = dmfs()
    c = Cache(fs, backing, kind, "2 autocommit_time 3600000")
    c.write(7, 3, seed=1, sync=True)
    c.write(7, seed=2)
    c.write(100, seed=3)
    fs.kill()
    again = Cache(dmfs(), backing, kind, origin=c.origin, cache_file=c.cache)
    assert again.untouched(7, 3) and again.words()[4:] == [0] * 10
    assert again.free() == 744, "what was not committed has gone"
    assert again.dev.pread(8192, 8 * 4096) == pattern(3 * BLOCK, 1)[4096:]
    assert again.dev.pread(4096, 100 * 4096) == again.below(100)
    if kind == "p":     # what is committed is not written over there
        assert again.dev.pread(4096, 7 * 4096) == pattern(BLOCK, 1)[:4096]


@pytest.mark.parametrize("kind", KINDS)
def test_autocommit(make, kind):
    c = make(kind, "4 autocommit_blocks 4 autocommit_time 3600000")
    c.write(1, 4)
    until(lambda: super_of(c.cache)[2] == 1, "four blocks are committed by themselves")
    c.dev.load(c.line.replace("4 autocommit_blocks 4 autocommit_time 3600000", "4 autocommit_blocks 1000 autocommit_time 50"))
    c.write(9)
    until(lambda: super_of(c.cache)[2] == 2, "so is what is 50 ms old")


def test_fua_commits(make):
    c = make("s", "2 autocommit_time 3600000")
    with c.dev.open(os.O_RDWR | os.O_DSYNC) as fd:
        os.pwrite(fd, pattern(BLOCK, 3), 4096)
    assert super_of(c.cache)[2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_watermarks(make, kind):
    c = make(kind, "4 high_watermark 40 low_watermark 20" + (" nofua" if kind == "p" else ""))
    c.fs["c"].load(c.line.replace("4 high", "5 high" if kind == "p" else "4 high"))
    n = c.words()[1]
    for block in range(0, 2 * (n * 35 // 100), 2):  # none next to another
        c.write(block)
    c.dev.message("clear_stats")
    assert c.free() == n - n * 35 // 100 and c.words()[3] == 0
    c.write(600, n // 10, seed=1)   # one request: the mark is passed once
    until(lambda: c.words()[3] == 0 and c.free() > n * 79 // 100, "written back to the low watermark")
    assert c.free() < n * 82 // 100
    c.dev.message("flush")
    assert c.below(600) == pattern(BLOCK, 1)


def test_max_age(make):
    c = make("s", "2 max_age 100")
    c.write(5, seed=4)
    until(lambda: c.free() == 747, "what is old goes")
    assert c.below(5) == pattern(BLOCK, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_cleaner(make, kind):
    c = make(kind)
    c.write(5, 2, seed=4)
    c.dev.message("cleaner")
    until(lambda: c.free() == 747, "a cleaner empties the cache")
    c.write(20, seed=5, sync=True)
    assert c.free() == 747 and c.below(20) == pattern(BLOCK, 5) and c.counts("around") == (1,)
    assert "cleaner" not in c.dev.table()
    c.dev.load(c.line[:-1] + "1 cleaner")
    c.write(21, seed=6, sync=True)
    assert c.below(21) == pattern(BLOCK, 6) and c.dev.table().endswith(" 1 cleaner\n")


def test_metadata_only_goes_around(make):
    c = make("s", "1 metadata_only")
    c.write(5, 3, seed=4, sync=True)
    assert c.below(5, 3) == pattern(3 * BLOCK, 4) and c.counts("writes", "around", "allocated") == (3, 3, 0)


def test_a_full_cache_is_gone_around(make):
    c = make("s", "4 high_watermark 100 low_watermark 100", cache=88)
    n = c.words()[1]
    c.dev.pwrite(pattern(8 * BLOCK * n, 2), 0)
    assert c.counts("around") >= (7 * n // 2,)
    assert c.dev.pread(8 * n * 4096, 0) == pattern(8 * BLOCK * n, 2)
    c.dev.message("flush")
    assert c.below(0, 8 * n) == pattern(8 * BLOCK * n, 2)


def test_a_full_memory_makes_writes_wait(make):
    c = make("p", "0", cache=88)
    c.dev.pwrite(pattern(80 * BLOCK, 2), 0)
    assert c.dev.pread(80 * 4096, 0) == pattern(80 * BLOCK, 2)
    assert c.counts("around") == (0,) and c.counts("blocked")[0] > 0
    c.dev.message("flush")
    assert c.below(0, 80) == pattern(80 * BLOCK, 2) and c.free() == c.words()[1]


@pytest.mark.parametrize("ends", ["the writer", "the daemon", "the wait"])
def test_who_waits_for_room_leaves(fs, backing, ends):
    """The cache is full and the origin does not answer: other devices are served, and nobody has to stay."""
    data = backing(SECTORS, pattern(SECTORS, 99))
    below = fs.mkdir("below", f"0 {SECTORS} linear {quote(data)} 0")
    c = Cache(fs, backing, "p", "4 high_watermark 100 low_watermark 100", cache=88, origin="below")
    n = c.words()[1]
    below.suspend()
    c.write(0, n, seed=1, sync=True)
    code = f"import os; fd = os.open({c.dev.image!r}, os.O_RDWR); os.pwrite(fd, b'w' * 4096, {500 * 4096})"
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        wait_until_waiting(writer)
        until(lambda: c.counts("blocked")[0] > 0, "it waits")
        assert below.suspended() and c.words()[3] > 0
        if ends == "the writer":
            writer.kill()
            assert writer.wait(300) == -9
        elif ends == "the daemon":
            fs.signal(15)
            fs.wait()
            assert writer.wait(300) == 1
            return
        below.resume()
        assert ends == "the writer" or writer.wait(300) == 0
    assert (c.dev.pread(4096, 500 * 4096) == b"w" * 4096) == (ends == "the wait")
    c.dev.message("flush")
    c.dev.remove()
    below.remove()
    with open(data, "rb") as f:
        assert f.read(n * 4096) == pattern(n * BLOCK, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_discard(make, kind):
    c = make(kind)
    c.write(4, 3, seed=1, sync=True)
    c.write(8, seed=2)
    c.dev.discard(5 * 4096, 4 * 4096)
    assert c.dev.pread(4 * 4096, 5 * 4096) == bytes(4 * 4096) and c.holds(4, seed=1)
    assert c.counts("discards") == (4,) and c.free() == 746
    c.dev.discard(0, SECTORS * SECTOR)
    assert c.free() == 747 and not any(c.dev.pread(SECTORS * SECTOR, 0))


def test_unaligned_writes_are_whole(make):
    c = make("s")
    c.dev.pwrite(b"x" * 700, 5000)
    expected = bytearray(pattern(SECTORS, 99)[4096:8192])
    expected[904:1604] = b"x" * 700
    assert c.dev.pread(4096, 4096) == bytes(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_reload_suspend_and_status(make, kind):
    c = make(kind)
    c.write(4, 3, seed=1)
    c.dev.suspend()
    assert c.free() == 744
    for message in ("flush",):
        with pytest.raises(OSError) as e:
            c.dev.message(message)
        assert e.value.errno == errno.EBUSY
    c.dev.resume()
    assert c.holds(4, 3, seed=1)
    c.dev.load(c.dev.table())
    assert c.holds(4, 3, seed=1) and c.free() == 744
    c.dev.message("flush_on_suspend")
    c.dev.suspend()
    assert c.free() == 747 and c.below(4, 3) == pattern(3 * BLOCK, 1)
    c.dev.resume()


def test_where_data_is(fs, backing):
    origin = backing(SECTORS)
    c = Cache(fs, backing, origin=origin)
    c.write(100, 2, seed=1)
    with c.dev.open() as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 100 * 4096
        assert os.lseek(fd, 100 * 4096, os.SEEK_HOLE) == 102 * 4096
    assert os.stat(c.dev.image).st_blocks >= 16
    c.dev.remove()


def test_pause_writeback(make):
    c = make("s", "3 metadata_only pause_writeback 60000", cache=88)
    c.write(50)      # around: writeback has to wait now
    c.dev.load(c.line.replace("3 metadata_only", "6 high_watermark 0 low_watermark 0"))
    c.dev.load(c.line.replace("3 metadata_only pause_writeback 60000", "4 high_watermark 0 low_watermark 0"))
    c.write(1, seed=3, sync=True)
    until(lambda: c.words()[2] == c.words()[1], "with a mark of 0 all goes down at once")


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads(make, kind):
    """Each thread has blocks of its own, next to the others'; the cache is small, messages come in between."""
    c = make(kind, "6 high_watermark 30 low_watermark 10 autocommit_blocks 16", cache=700)
    last = {}

    def work(n):
        with c.dev.open() as fd:
            for i in range(150):
                block = n + 4 * ((i * 7919) % 60)
                last[block] = seed = n * 1000 + i
                os.pwrite(fd, pattern(BLOCK, seed), block * 4096)
                if i % 20 == 0:
                    os.fsync(fd)
                assert os.pread(fd, 4096, block * 4096) == pattern(BLOCK, seed)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for w in workers:
        w.start()
    for _ in range(5):
        c.dev.message("flush")
    for w in workers:
        w.join()
    assert all(c.holds(block, seed=seed) for block, seed in last.items())
    c.dev.message("flush")
    assert all(c.below(block) == pattern(BLOCK, seed) for block, seed in last.items())


# --- what is refused -----------------------------------------------------------------------------

BAD = [
    ("", "Bad arguments"), ("x O C 4096 0", "Bad arguments"), ("s O C", "Bad arguments"),
    ("s O C 4096", "Invalid number of feature args"), ("s O C 4096 19", "Invalid number of feature args"),
    ("s O C 4096 2 cleaner", "Invalid number of feature args"), ("s O C 4096 x", "Invalid number of feature args"),
    ("s O C 100 0", "Invalid block size '100'"), ("s O C 8192 0", "Invalid block size"), ("s O C 768 0", "Invalid block size"),
    ("s O C -512 0", "Invalid block size"),
    ("s O C 4096 1 nonsense", "Invalid optional argument 'nonsense'"),
    ("s O C 4096 1 high_watermark", "its value is missing"),
    ("s O C 4096 2 high_watermark 101", "high_watermark 101"), ("s O C 4096 2 low_watermark -1", "low_watermark -1"),
    ("s O C 4096 2 low_watermark 60", "High watermark must be"), ("s O C 4096 2 high_watermark 40", "High watermark must be"),
    ("s O C 4096 2 autocommit_time 3600001", "autocommit_time"), ("s O C 4096 2 max_age 86400001", "max_age"),
    ("s O C 4096 2 pause_writeback 60001", "pause_writeback"), ("p O C 4096 2 pause_writeback 1", "for type s only"),
    ("s O C 4096 1 fua", "for type p only"), ("s O C 4096 1 NOFUA", "for type p only"),
    ("s O C 4096 2 start_sector 6000", "start_sector 6000"),
    ("s O C 4096 2 writeback_jobs 4294967296", "writeback_jobs"),
    ("s O O 4096 0", "is the origin, too"),
]


@pytest.mark.parametrize("args,text", BAD)
def test_refused(fs, backing, args, text):
    names = {"O": quote(backing(SECTORS)), "C": quote(backing(6000))}
    line = " ".join(names.get(word, word) for word in args.split(" "))
    fs.mkdir("bad").refuse(f"0 {SECTORS} writecache {line}\n", match=text)
    fs["bad"].remove()


def test_refused_devices(fs, backing):
    origin, cache = quote(backing(SECTORS)), quote(backing(6000))
    dev = fs.mkdir("bad")
    dev.refuse(f"0 {SECTORS} writecache s /nonexistent {cache} 4096 0\n", errno.ENOENT, match="Origin data device lookup failed")
    dev.refuse(f"0 {SECTORS} writecache s {origin} /nonexistent 4096 0\n", errno.ENOENT, match="Cache data device lookup failed")
    dev.refuse(f"0 {SECTORS} writecache s {origin} {quote(backing(8))} 4096 0\n", errno.ENOSPC, match="Invalid device size")
    dev.refuse(f"0 {SECTORS} writecache s {origin} {cache} 4096 2 start_sector 5999\n", errno.ENOSPC, match="Invalid device size")
    dev.refuse(f"0 {SECTORS + 8} writecache s {origin} {cache} 4096 0\n", match="too small for target")
    fs.mkdir("zeroes", f"0 {SECTORS} zero")
    dev.refuse(f"0 {SECTORS} writecache p {origin} zeroes 4096 0\n", errno.EOPNOTSUPP, match="Persistent memory")
    dev.remove()


@pytest.mark.parametrize("at,value,text", [
    (0, b"\1\2\3\4", "Invalid magic"), (4, b"\2", "Invalid version"), (8, b"\0\2", "Block size does not match"),
    (16, b"\0\0\1", "Memory area is too small"), (22, b"\1", "Overflow in size"), (20, b"\xff\xff\xff\xff", "Overflow in size"),
])
def test_foreign_superblocks(fs, backing, at, value, text):
    origin, cache = backing(SECTORS), backing(6000)
    line = f"0 {SECTORS} writecache s {quote(origin)} {quote(cache)} 4096 0"
    dev = fs.mkdir("c", line)
    dev.remove()
    with open(cache, "r+b") as f:
        f.seek(at)
        f.write(value)
    fs.mkdir("c").refuse(line + "\n", match=text)
    fs["c"].remove()


@pytest.mark.parametrize("wreck", ["two alike", "no block begins there"])
def test_corrupt_entries_stop_all_writes(make, wreck):
    c = make()
    c.write(5, 2, seed=1, sync=True)
    c.dev.write("inactive", c.line + "\n")
    c.dev.suspend()
    with open(c.cache, "r+b") as f:
        f.seek(64)
        entry = f.read(16)
        f.seek(64 + 16 * 2)
        f.write(entry if wreck == "two alike" else struct.pack("<QQ", 41, 0))
    before = open(c.cache, "rb").read()
    c.dev.resume()
    assert c.words()[0] == -22 and c.holds(5, 2, seed=1)
    for call in (lambda: c.write(9, sync=True), lambda: c.dev.message("flush")):
        with pytest.raises(OSError) as e:
            call()
        assert e.value.errno == errno.EIO
    c.dev.remove()
    assert open(c.cache, "rb").read() == before


def test_many_entries(fs, backing):
    """As many as several threads load: of two versions the newer one, of what was not committed none, the rest is free."""
    n, seq, none = 300000, 10, 2**64 - 1
    meta = -(-(64 + 16 * n) // 512) * 512
    origin, cache = backing(2 * n), backing(meta // SECTOR + n)
    entries, newest, lost = array.array("Q"), {}, set()
    for i in range(n):
        sector, s = (i * 7919) % (n // 2), (none, i % 17)[i % 5 > 0]
        if s < seq:
            if (other := newest.get(sector)) and other[0] == s:
                s = none
            elif other and other[0] > s:
                lost.add(i)
            else:
                lost |= {other[1]} if other else set()
                newest[sector] = (s, i)
        elif s != none:
            lost.add(i)
        entries.extend((sector, s))
    with open(cache, "r+b") as f:
        f.write(HEAD.pack(0x23489321, 1, 512, 0, n, seq) + bytes(32) + entries.tobytes())
        sample = random.Random(5).sample(sorted(newest), 200)
        for sector in sample:
            f.seek(meta + newest[sector][1] * 512)
            f.write(pattern(1, sector))
    dev = fs.mkdir("c", f"0 {2 * n} writecache s {quote(origin)} {quote(cache)} 512 4 high_watermark 100 low_watermark 100")
    assert dev.status().split()[3:7] == ["0", str(n), str(n - len(newest)), "0"]
    assert all(dev.pread(512, sector * 512) == pattern(1, sector) for sector in sample)
    after = super_of(cache)[3]
    for i, (was, now) in enumerate(zip(zip(entries[::2], entries[1::2]), after)):
        assert now == ((was[0], none) if i in lost else was), i
    dev.remove()


def test_a_second_user(make, backing):
    c = make()
    line = f"0 {SECTORS} writecache s {quote(backing(SECTORS))} {quote(c.cache)} 4096 0"
    c.fs.mkdir("other").refuse(line + "\n", errno.EBUSY)
    c.fs["other"].remove()


def test_a_shorter_origin(fs, backing):
    """What lies behind its end has nowhere to go; the rest does."""
    origin, cache = backing(SECTORS), backing(6000)
    c = Cache(fs, backing, origin=origin, cache_file=cache)
    c.write(10, seed=1)
    c.write(900, seed=2)
    c.dev.remove()
    os.truncate(origin, 512 * 4096)
    dev = fs.mkdir("c", f"0 4096 writecache s {quote(origin)} {quote(cache)} 4096 0")
    assert dev.status().split()[5] == "745"
    dev.message("flush")
    assert dev.status().split()[3:7] == ["0", "747", "747", "0"] and c.below(10) == pattern(BLOCK, 1)
    dev.remove()


@pytest.mark.parametrize("fails", ["origin", "cache"])
def test_failing_devices(fs, backing, fails):
    files = {"origin": backing(SECTORS), "cache": backing(6000)}
    for name, path in files.items():
        fs.mkdir(name, f"0 {os.path.getsize(path) // SECTOR} linear {quote(path)} 0")
    line = f"0 {SECTORS} writecache s origin cache 4096 0"
    c = fs.mkdir("c", line)
    c.pwrite(pattern(BLOCK, 1), 0, sync=True)
    size = os.path.getsize(files[fails]) // SECTOR
    fs[fails].load(f"0 {size} error")
    if fails == "cache":
        with pytest.raises(OSError):
            c.pwrite(pattern(BLOCK, 2), 4096, sync=True)
    with pytest.raises(OSError) as e:
        c.message("flush")
    assert e.value.errno == errno.EIO
    assert int(c.status().split()[3]) == -5
    with pytest.raises(OSError):
        c.pwrite(pattern(BLOCK, 2), 8192, sync=True)
    fs[fails].load(f"0 {size} linear {quote(files[fails])} 0")
    c.load(line)    # a new table begins without the error, and nothing is lost
    assert c.status().split()[3] == "0" and c.pread(4096, 0) == pattern(BLOCK, 1)
    c.message("flush")
    for name in ("c", "origin", "cache"):
        fs[name].remove()
    with open(files["origin"], "rb") as f:
        assert f.read(4096) == pattern(BLOCK, 1)


@pytest.mark.skipif("thread" in sanitized(), reason="ThreadSanitizer does not take a jump out of a signal's handler")
def test_memory_that_goes_away(make):
    """Somebody truncates the mapped file: errors, and the daemon lives."""
    c = make("p")
    c.write(5, 2, seed=1, sync=True)
    os.truncate(c.cache, 4096)
    with pytest.raises(OSError):
        c.dev.pread(2 * 4096, 5 * 4096)
    with pytest.raises(OSError):
        c.write(9, sync=True)
    assert c.fs.devices() == ["c"]


def test_messages_refused(make):
    c = make()
    for message in ("nonsense", "flush now", "cleaner 1", "clear_stats all", "flush_on_suspend 2"):
        with pytest.raises(OSError) as e:
            c.dev.message(message)
        assert e.value.errno == errno.EINVAL and "writecache: " in c.dev.error()
