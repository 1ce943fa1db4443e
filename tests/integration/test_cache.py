# SPDX-License-Identifier: GPL-2.0-or-later
"""cache through the mount; cache_check judges the metadata after every test, cache_dump says what it holds."""

import errno
import mmap
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from mounted import SECTOR, pattern, quote, wait_status

BLOCK = 64                  # sectors
BYTES = BLOCK * SECTOR
FAST = 32                   # blocks
ALIGNED = mmap.mmap(-1, 4096)
SECTORS = 16384             # of the origin: 256 blocks


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class Status:
    """The words of an info line."""

    def __init__(self, line):
        w = line.split()
        assert w[2] == "cache", line
        self.used, self.total = (int(n) for n in w[4].split("/"))
        self.resident, self.blocks = (int(n) for n in w[6].split("/"))
        (self.read_hits, self.read_misses, self.write_hits, self.write_misses, self.demotions, self.promotions,
         self.dirty) = (int(n) for n in w[7:14])
        n = int(w[14])
        self.features, rest = w[15:15 + n], w[15 + n:]
        self.threshold, self.policy, self.mode, self.check = rest[2], rest[3], rest[-2], rest[-1]


@pytest.fixture
def cache(fs, backing, tool):
    """cache.load(FEATURES, POLICY): the device; cache.st(): its status; cache.until(CONDITION) waits for one."""

    class Cache:
        def __init__(self):
            self.meta, self.fast, self.origin = backing(4096), backing(FAST * BLOCK), backing(SECTORS)
            self.dev = fs.mkdir("c")

        def line(self, features="", policy="smq 0", sectors=SECTORS, block=BLOCK, meta=None, fast=None, origin=None):
            devs = " ".join(quote(d) for d in (meta or self.meta, fast or self.fast, origin or self.origin))
            return f"0 {sectors} cache {devs} {block} {len(features.split())} {features} {policy}".replace("  ", " ")

        def load(self, *args, **kw):
            self.dev.load(self.line(*args, **kw))
            return self.dev

        def st(self):
            return Status(self.dev.status())

        def until(self, condition, deadline=300):
            end = time.monotonic() + deadline
            while not condition(self.st()):
                assert time.monotonic() < end, self.dev.status()
                time.sleep(0.02)
            return self.st()

        def write(self, block, seed, blocks=1):
            self.dev.pwrite(pattern(BLOCK * blocks, seed), block * BYTES, sync=True)

        def dump(self):
            """The metadata of a moment when nothing is written."""
            self.dev.suspend()
            xml = run(tool("cache_dump"), self.meta)
            self.dev.resume()
            return xml

        def close(self):
            self.dev.remove()
            run(tool("cache_check"), self.meta)
            return run(tool("cache_dump"), self.meta)

    c = Cache()
    yield c
    if "c" in fs.devices():
        c.dev.remove()
    if os.path.getsize(c.meta) and open(c.meta, "rb").read(4096) != bytes(4096):
        run(tool("cache_check"), c.meta)


def at(path, block, blocks=1):
    with open(path, "rb") as f:
        f.seek(block * BYTES)
        return f.read(blocks * BYTES)


def mappings(xml):
    return {int(o): (int(c), d == "true") for c, o, d in
            re.findall(r'cache_block="(\d+)" origin_block="(\d+)" dirty="(\w+)"', xml)}


def keep_dirty(cache):
    cache.dev.message("migration_threshold 0")


def warm(cache, blocks):
    """Reads these until all of them are in the cache."""
    def resident(st):
        with cache.dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
            for b in blocks:
                os.preadv(fd, [ALIGNED], b * BYTES)
        return st.resident >= len(blocks)
    cache.until(resident)


# --- table and status ---------------------------------------------------------------------------------


@pytest.mark.parametrize("features,shown", [
    ("", "1 writeback"), ("writeback", "1 writeback"), ("WriteThrough", "1 writethrough"), ("passthrough", "1 passthrough"),
    ("metadata2", "2 metadata2 writeback"), ("metadata2 metadata2 writethrough", "2 metadata2 writethrough"),
    ("no_discard_passdown metadata2 writeback", "3 metadata2 writeback no_discard_passdown")])
def test_features(cache, features, shown):
    dev = cache.load(features)
    assert dev.table() == cache.line(features) + "\n"
    assert f" 0/32 0 0 0 0 0 0 0 {shown} 2 migration_threshold 2048 smq 0 rw -\n" in dev.status()


@pytest.mark.parametrize("policy,shown", [
    ("default 0", "smq 0"), ("cleaner 0", "cleaner 0"), ("smq 2 migration_threshold 100", "smq 0"),
    ("mq 4 sequential_threshold 1024 random_threshold 8",
     "mq 10 random_threshold 0 sequential_threshold 0 discard_promote_adjustment 0 read_promote_adjustment 0 "
     "write_promote_adjustment 0")])
def test_policies(cache, policy, shown):
    dev = cache.load("", policy)
    assert dev.table() == cache.line("", policy) + "\n"
    threshold = "100" if "migration" in policy else "2048"
    assert dev.status().endswith(f" migration_threshold {threshold} {shown} rw -\n")


# --- the three modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["", "metadata2"])
def test_writeback(cache, features):
    dev = cache.load(features)
    keep_dirty(cache)
    cache.write(5, 1)
    cache.write(7, 2)
    st = cache.st()
    assert (st.resident, st.dirty, st.promotions, st.write_hits, st.write_misses) == (2, 2, 2, 0, 0)
    dev.pwrite(pattern(8, 3), 5 * BYTES, sync=True)
    assert cache.st().write_hits == 1
    assert at(cache.origin, 5) == bytes(BYTES), "a dirty block is in the cache alone"
    assert dev.pread(BYTES, 5 * BYTES) == pattern(8, 3) + pattern(BLOCK, 1)[4096:]
    found = mappings(cache.close())
    assert set(found) == {5, 7}
    cache.dev = cache.dev.mount.mkdir("c")
    dev = cache.load(features, "cleaner 0")
    st = cache.until(lambda st: not st.dirty)
    assert st.resident == 2 and st.write_hits == 1, "the counters go on"
    assert at(cache.origin, 5) == dev.pread(BYTES, 5 * BYTES) and at(cache.origin, 7) == pattern(BLOCK, 2)


def test_dirty_bits_survive_a_clean_end(cache, fs):
    for features in ("", "metadata2"):
        cache.load(features)
        keep_dirty(cache)
        cache.write(1, 1)
        cache.dev.load(cache.line(features, "cleaner 0"))
        cache.until(lambda st: not st.dirty)
        cache.dev.load(cache.line(features, "smq 2 migration_threshold 0"))
        assert (cache.st().resident, cache.st().dirty) == (1, 0)
        cache.write(2, 2)
        cache.dev.load(cache.line(features, "smq 2 migration_threshold 0"))
        assert (cache.st().resident, cache.st().dirty) == (2, 1)
        cache.close()
        os.truncate(cache.meta, 0)
        os.truncate(cache.meta, 4096 * SECTOR)
        cache.dev = fs.mkdir("c")


def test_idle_smq_writes_back(cache):
    cache.load()
    cache.write(3, 1, 4)
    cache.until(lambda st: not st.dirty)
    assert at(cache.origin, 3, 4) == pattern(4 * BLOCK, 1) and cache.st().resident == 4


def test_writethrough(cache):
    dev = cache.load("writethrough")
    warm(cache, [3, 9])
    cache.write(3, 1)
    dev.pwrite(pattern(8, 2), 9 * BYTES + 4096)
    cache.write(20, 4)
    assert at(cache.origin, 3) == pattern(BLOCK, 1)
    assert at(cache.origin, 9)[4096:8192] == pattern(8, 2)
    assert at(cache.origin, 20) == pattern(BLOCK, 4)
    st = cache.st()
    assert st.dirty == 0 and st.write_hits == 2 and st.write_misses == 1
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1)
    c = mappings(cache.close())[3][0]
    assert at(cache.fast, c) == pattern(BLOCK, 1), "both have it"


def test_passthrough(cache):
    cache.load()
    cache.write(3, 1)
    cache.write(4, 1)
    cache.write(6, 6)
    with pytest.raises(OSError) as e:
        keep_dirty(cache)
        cache.write(6, 7)
        cache.load("passthrough")
    assert e.value.errno == errno.EBUSY and "clean" in cache.dev.error()
    assert cache.dev.pread(BYTES, 6 * BYTES) == pattern(BLOCK, 7), "the device is as it was"
    cache.load("", "cleaner 0")
    cache.until(lambda st: not st.dirty)
    with open(cache.origin, "r+b") as f:
        f.seek(4 * BYTES)
        f.write(pattern(BLOCK, 9))
    dev = cache.load("passthrough")
    assert dev.pread(BYTES, 4 * BYTES) == pattern(BLOCK, 9), "reads come from the origin"
    cache.write(3, 2)
    assert at(cache.origin, 3) == pattern(BLOCK, 2) and cache.st().resident == 2, "a written block leaves the cache"
    with pytest.raises(OSError) as e:
        dev.message("invalidate_cblocks 40")
    assert e.value.errno == errno.EINVAL and "'40'" in dev.error()
    for bad in ("invalidate_cblocks 5-3", "invalidate_cblocks 0-33", "invalidate_cblocks x", "invalidate_cblocks 3-3"):
        with pytest.raises(OSError):
            dev.message(bad)
    dev.message("invalidate_cblocks 30 0-2 1-32")
    assert cache.st().resident == 0
    dev = cache.load("writeback")
    assert dev.pread(BYTES, 4 * BYTES) == pattern(BLOCK, 9)


def test_invalidation_wants_passthrough(cache):
    dev = cache.load()
    with pytest.raises(OSError) as e:
        dev.message("invalidate_cblocks 0-1")
    assert e.value.errno == errno.EPERM and "passthrough" in dev.error()


# --- promotion, demotion --------------------------------------------------------------------------------------


def test_hot_blocks_are_promoted(cache):
    with open(cache.origin, "r+b") as f:
        f.write(pattern(SECTORS, 8))
    dev = cache.load()
    warm(cache, [10, 50, 90, 130])
    st = cache.st()
    assert st.promotions >= 4 and st.dirty == 0
    dev.pread(4096, 50 * BYTES)
    for b in (10, 50, 90, 130):
        assert dev.pread(BYTES, b * BYTES) == pattern(SECTORS, 8)[b * BYTES:(b + 1) * BYTES]


def test_replacement(cache):
    """A full cache gives way to what has become hot, and nothing is lost of what was dirty."""
    cache.load()
    cache.write(0, 1, FAST)
    assert cache.st().resident == FAST
    hot = list(range(100, 104))
    def replaced(st):
        with cache.dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
            for b in hot:
                os.preadv(fd, [ALIGNED], b * BYTES)
        return st.demotions >= 4
    cache.until(replaced)
    assert cache.dev.pread(FAST * BYTES, 0) == pattern(FAST * BLOCK, 1)


def test_a_whole_block_is_not_read_first(cache, fs, backing):
    """With an origin that cannot be read."""
    fs.mkdir("broken", f"0 {SECTORS} flakey {quote(cache.origin)} 0 0 100 1 error_reads")
    cache.load("", "smq 2 migration_threshold 0", origin="broken")
    cache.write(3, 1)
    cache.write(90, 2, 3)
    assert cache.dev.pread(3 * BYTES, 90 * BYTES) == pattern(3 * BLOCK, 2)
    assert cache.st().resident == 4


def test_discarded_blocks_are_promoted_by_any_write(cache):
    with open(cache.origin, "r+b") as f:
        f.write(pattern(SECTORS, 8))
    with open(cache.fast, "r+b") as f:
        f.write(b"\xee" * FAST * BYTES)
    dev = cache.load("no_discard_passdown", "smq 2 migration_threshold 0")
    dev.discard(10 * BYTES, 4 * BYTES)
    dev.pwrite(pattern(8, 1), 11 * BYTES + 8192, sync=True)
    st = cache.st()
    assert (st.promotions, st.write_misses, st.resident) == (1, 0, 1)
    got = dev.pread(BYTES, 11 * BYTES)
    assert got[8192:12288] == pattern(8, 1) and b"\xee" * 32 not in got, "nothing of what the cache block held before"
    dev.pwrite(pattern(8, 1), 60 * BYTES, sync=True)
    assert cache.st().write_misses == 1
    dev.load(cache.line("no_discard_passdown", "smq 2 migration_threshold 0"))
    dev.pwrite(pattern(8, 2), 12 * BYTES, sync=True)
    assert cache.st().resident == 2, "discards are remembered over a clean end"


def test_discards_are_passed_down(cache):
    with open(cache.origin, "r+b") as f:
        f.write(pattern(SECTORS, 8))
    dev = cache.load()
    before = os.stat(cache.origin).st_blocks
    dev.discard(0, 128 * BYTES)
    assert os.stat(cache.origin).st_blocks < before
    dev = cache.load("no_discard_passdown")
    before = os.stat(cache.origin).st_blocks
    dev.discard(128 * BYTES, 64 * BYTES)
    assert os.stat(cache.origin).st_blocks == before


@pytest.mark.parametrize("features", ["", "no_discard_passdown"])
def test_a_dirty_block_is_discarded(cache, features):
    """A wish, as to the kernel: the block stays cached and dirty, and no write before or after it is lost."""
    dev = cache.load(features, "smq 2 migration_threshold 0")
    cache.write(2, 1, 3)
    assert cache.st().dirty == 3
    dev.discard(2 * BYTES, 3 * BYTES)
    st = cache.st()
    assert (st.resident, st.dirty) == (3, 3)
    assert dev.pread(3 * BYTES, 2 * BYTES) == pattern(3 * BLOCK, 1)
    dev.pwrite(pattern(8, 2), 3 * BYTES + 4096, sync=True)
    want = bytearray(pattern(3 * BLOCK, 1))
    want[BYTES + 4096:BYTES + 8192] = pattern(8, 2)
    assert dev.pread(3 * BYTES, 2 * BYTES) == want
    cache.load(features, "cleaner 0")
    cache.until(lambda st: not st.dirty)
    assert at(cache.origin, 2, 3) == want
    assert dev.pread(3 * BYTES, 2 * BYTES) == want


def test_the_tail_is_the_origins(cache):
    dev = cache.load(sectors=BLOCK * 5 + 8)
    dev.pwrite(pattern(8, 1), 5 * BYTES, sync=True)
    assert at(cache.origin, 5)[:4096] == pattern(8, 1) and dev.pread(4096, 5 * BYTES) == pattern(8, 1)


# --- sizes ------------------------------------------------------------------------------------------------------


def test_resizing(cache):
    keep = "smq 2 migration_threshold 0"
    cache.load("", keep)
    cache.write(0, 1, FAST)
    assert cache.st().resident == FAST
    os.truncate(cache.fast, 2 * FAST * BYTES)
    dev = cache.load("", keep)
    assert cache.st().blocks == 2 * FAST and cache.st().dirty == FAST
    cache.write(100, 2, FAST)
    assert cache.st().resident == 2 * FAST
    small = os.path.join(os.path.dirname(cache.fast), "small")
    with open(small, "wb") as f:
        f.write(at(cache.fast, 0, 8))
    with pytest.raises(OSError):
        cache.load("", keep, fast=small)
    assert "too short" in dev.error() and "dirty" in dev.error()
    assert dev.pread(FAST * BYTES, 100 * BYTES) == pattern(FAST * BLOCK, 2)
    cache.load("", "cleaner 0")
    cache.until(lambda st: not st.dirty)
    cache.load("", "smq 0", fast=small)
    st = cache.st()
    assert st.blocks == 8 and st.resident == 8
    assert dev.pread(FAST * BYTES, 100 * BYTES) == pattern(FAST * BLOCK, 2)
    assert dev.pread(FAST * BYTES, 0) == pattern(FAST * BLOCK, 1)


def test_the_cache_file_is_cut_while_it_is_used(cache):
    """What was there alone cannot be read, nor is it said to be anything else; all else goes on, and so does the table."""
    keep = "smq 2 migration_threshold 0"
    dev = cache.load("", keep)
    cache.write(0, 1, FAST)
    where = {o: c for o, (c, _) in mappings(cache.dump()).items()}
    os.truncate(cache.fast, FAST // 2 * BYTES)
    for block in range(FAST):
        if where[block] < FAST // 2:
            assert dev.pread(BYTES, block * BYTES) == pattern(FAST * BLOCK, 1)[block * BYTES:(block + 1) * BYTES]
            continue
        with pytest.raises(OSError) as e:
            dev.pread(BYTES, block * BYTES)
        assert e.value.errno == errno.EIO
    assert (cache.st().dirty, cache.st().mode) == (FAST, "rw")
    with pytest.raises(OSError):
        cache.load("", keep)
    assert "too short" in dev.error() and "dirty" in dev.error()
    os.truncate(cache.fast, FAST * BYTES)
    dev.resume()        # suspended till then: neither table could be resumed
    dev.pwrite(pattern(8, 3), 200 * BYTES, sync=True)
    assert dev.pread(4096, 200 * BYTES) == pattern(8, 3)


def test_the_origin_grows_and_shrinks(cache):
    cache.load("", "smq 2 migration_threshold 0")
    cache.write(200, 1)
    os.truncate(cache.origin, 2 * SECTORS * SECTOR)
    dev = cache.load("", "smq 2 migration_threshold 0", sectors=2 * SECTORS)
    cache.write(400, 2)
    assert cache.st().resident == 2
    with pytest.raises(OSError):
        cache.load("", "smq 2 migration_threshold 0")
    assert "origin is too short" in dev.error() and "400" in dev.error()
    cache.load("", "cleaner 0", sectors=2 * SECTORS)
    cache.until(lambda st: not st.dirty)
    cache.load()
    assert cache.st().resident == 1 and dev.pread(BYTES, 200 * BYTES) == pattern(BLOCK, 1)


# --- crashes, broken devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["", "metadata2", "writethrough"])
def test_crash(dmfs, backing, tool, features):
    meta, fast, origin = backing(4096), backing(FAST * BLOCK), backing(SECTORS)
    line = (f"0 {SECTORS} cache {quote(meta)} {quote(fast)} {quote(origin)} {BLOCK} {len(features.split())} {features} "
            "smq 2 migration_threshold 0")
    one = dmfs()
    dev = one.mkdir("c", line)
    for b in (3, 9, 11):
        dev.pwrite(pattern(BLOCK, b), b * BYTES, sync=True)
    one.kill()
    run(tool("cache_check"), meta)
    two = dmfs()
    dev = two.mkdir("c", line)
    st = Status(dev.status())
    assert st.resident == st.dirty == (0 if features == "writethrough" else 3)
    for b in (3, 9, 11):
        assert dev.pread(BYTES, b * BYTES) == pattern(BLOCK, b)
    dev.remove()
    run(tool("cache_check"), meta)


def test_failing_metadata(cache, fs):
    """Read-only, and needs_check on the disk; nothing that was answered is lost, and cache_check's flag brings it back."""
    fs.mkdir("meta", f"0 4096 linear {quote(cache.meta)} 0")
    dev = cache.load("", "smq 2 migration_threshold 0", meta="meta")
    cache.write(3, 1)
    fs["meta"].load(f"0 4096 flakey {quote(cache.meta)} 0 0 100 1 error_writes")
    dev.pwrite(pattern(BLOCK, 2), 9 * BYTES)
    with pytest.raises(OSError) as e, dev.open() as fd:
        os.fsync(fd)
    assert e.value.errno == errno.EIO
    assert dev.status() == f"0 {SECTORS} cache Fail\n"
    dev.remove()
    fs["meta"].load(f"0 4096 linear {quote(cache.meta)} 0")
    cache.dev = dev = fs.mkdir("c")
    cache.load(meta="meta")
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1)


def test_metadata_that_fails_but_for_its_superblock(cache, fs, tool):
    """Read-only: what is cached is used on, clean blocks are written through, and the disk says needs_check."""
    whole = f"0 4096 linear {quote(cache.meta)} 0"
    fs.mkdir("meta", whole)
    dev = cache.load(meta="meta")
    cache.write(3, 1)
    cache.until(lambda st: not st.dirty)
    dev.message("migration_threshold 0")
    cache.write(5, 2)
    fs["meta"].load(f"0 8 linear {quote(cache.meta)} 0", "8 4088 error")
    dev.pwrite(pattern(BLOCK, 2), 9 * BYTES)
    for _ in range(2):
        with pytest.raises(OSError) as e, dev.open() as fd:
            os.fsync(fd)
        assert e.value.errno == errno.EIO
    st = cache.st()
    assert (st.mode, st.check, st.resident) == ("ro", "needs_check", 3)
    with pytest.raises(OSError) as e:
        dev.message("migration_threshold 5")
    assert e.value.errno == errno.EOPNOTSUPP
    dev.pwrite(pattern(BLOCK, 7), 3 * BYTES)
    dev.pwrite(pattern(BLOCK, 8), 5 * BYTES)
    assert at(cache.origin, 3) == pattern(BLOCK, 7) and at(cache.origin, 5) == bytes(BYTES)
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 7) and dev.pread(BYTES, 5 * BYTES) == pattern(BLOCK, 8)
    dev.remove()
    fs["meta"].load(whole)
    cache.dev = fs.mkdir("c")
    cache.load(meta="meta")
    assert (cache.st().mode, cache.st().check) == ("ro", "needs_check")
    cache.dev.remove()
    run(tool("cache_check"), "--clear-needs-check-flag", cache.meta)
    cache.dev = fs.mkdir("c")
    dev = cache.load(meta="meta")
    assert (cache.st().mode, cache.st().resident) == ("rw", 2)
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 7) and dev.pread(BYTES, 5 * BYTES) == pattern(BLOCK, 8)


@pytest.mark.parametrize("blocks", [4, 8, 16])
def test_metadata_device_too_small(fs, backing, blocks):
    dev = fs.mkdir("c")
    with pytest.raises(OSError) as e:
        dev.load(f"0 {16 * SECTORS} cache {quote(backing(8 * blocks))} {quote(backing(2048 * BLOCK))} "
                 f"{quote(backing(16 * SECTORS))} {BLOCK} 1 metadata2 smq 0")
    assert e.value.errno == errno.ENOSPC and dev.table() == ""


@pytest.mark.parametrize("blocks", [17, 19])
def test_full_metadata(fs, backing, tool, blocks):
    """With 17 blocks a commit of much fails, and says so; with 19 the clean end does.  What was flushed is there."""
    meta, fast, origin = backing(8 * blocks), backing(2048 * BLOCK), backing(16 * SECTORS)
    line = f"0 {16 * SECTORS} cache {quote(meta)} {quote(fast)} {quote(origin)} {BLOCK} 1 metadata2 smq 2 migration_threshold 0"
    dev, flushed, failed = fs.mkdir("c", line), [], 0
    for blocks_of_one in ([1, 900, 1801], range(2, 2000, 3)):
        try:
            with dev.open(os.O_RDWR) as fd:
                for b in blocks_of_one:
                    os.pwrite(fd, pattern(BLOCK, b), b * BYTES)
                os.fsync(fd)
            flushed += blocks_of_one
        except OSError as e:
            failed = e.errno
    st = Status(dev.status())   # where commits come in time there is room for each
    assert (failed, st.mode, st.check) in ((0, "rw", "-"), (errno.ENOSPC, "ro", "needs_check"))
    assert flushed[:3] == [1, 900, 1801] and not (failed and blocks == 19)
    for b in flushed:
        assert dev.pread(BYTES, b * BYTES) == pattern(BLOCK, b)
    dev.remove()
    run(tool("cache_check"), "--clear-needs-check-flag", meta)
    dev = fs.mkdir("c", line)
    assert Status(dev.status()).mode == "rw" and Status(dev.status()).resident >= len(flushed)
    for b in flushed:
        assert dev.pread(BYTES, b * BYTES) == pattern(BLOCK, b)
    dev.remove()


def needs_check(path):
    """Sets the flag in a superblock, with the checksum that belongs to it."""
    import struct
    with open(path, "r+b") as f:
        block = bytearray(f.read(4096))
        block[4:8] = struct.pack("<I", struct.unpack_from("<I", block, 4)[0] | 2)
        block[:4] = struct.pack("<I", crc32c(block[4:]) ^ 0xffffffff ^ 9031977)
        f.seek(0)
        f.write(block)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def test_needs_check(cache, fs, tool):
    cache.load("", "smq 2 migration_threshold 0")
    cache.write(3, 1)
    cache.close()
    needs_check(cache.meta)
    cache.dev = fs.mkdir("c")
    dev = cache.load("", "smq 2 migration_threshold 0")
    st = cache.st()
    assert (st.mode, st.check) == ("ro", "needs_check")
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1)
    dev.pwrite(pattern(BLOCK, 2), 4 * BYTES, sync=True)
    assert at(cache.origin, 4) == pattern(BLOCK, 2) and cache.st().resident == 1
    cache.dev.remove()
    run(tool("cache_check"), "--clear-needs-check-flag", cache.meta)
    cache.dev = fs.mkdir("c")
    cache.load()
    assert (cache.st().mode, cache.st().check) == ("rw", "-")


def test_failing_origin(cache, fs):
    """A write-back that fails leaves the block dirty; later it succeeds."""
    fs.mkdir("origin", f"0 {SECTORS} flakey {quote(cache.origin)} 0 0 100 1 error_writes")
    dev = cache.load(origin="origin")
    dev.pwrite(pattern(BLOCK, 1), 3 * BYTES)
    for _ in range(2):
        with pytest.raises(OSError), dev.open() as fd:
            os.fsync(fd)
    assert cache.st().dirty == 1 and cache.st().mode == "rw" and dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1)
    fs["origin"].load(f"0 {SECTORS} linear {quote(cache.origin)} 0")
    cache.until(lambda st: not st.dirty)
    assert at(cache.origin, 3) == pattern(BLOCK, 1)


def test_writes_wait_for_their_block_alone(cache, fs):
    """While a block is written back to a slow origin reads of it and writes of others pass; a write of it waits."""
    fs.mkdir("origin", f"0 {SECTORS} linear {quote(cache.origin)} 0")
    dev = cache.load(origin="origin")
    cache.write(20, 4)
    cache.until(lambda st: not st.dirty)
    dev.message("migration_threshold 0")
    cache.write(3, 1)
    fs["origin"].load(f"0 {SECTORS} delay {quote(cache.origin)} 0 0 {quote(cache.origin)} 0 3600000 "
                      f"{quote(cache.origin)} 0 0")
    dev.load(cache.line("", "cleaner 0", origin="origin"))
    wait_status(fs["origin"], " delay 0 [1-9]", every=0.02)     # it is on its way
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        own = threading.Thread(target=os.pwritev, args=(fd, [ALIGNED], 3 * BYTES + 4096))
        try:
            os.preadv(fd, [ALIGNED], 3 * BYTES)
            os.pwritev(fd, [ALIGNED], 20 * BYTES)
            own.start()
            own.join(0.3)
            assert own.is_alive()
            os.preadv(fd, [mmap.mmap(-1, 4096)], 3 * BYTES)
        finally:
            fs["origin"].load(f"0 {SECTORS} linear {quote(cache.origin)} 0")
        own.join()
    cache.until(lambda st: not st.dirty)
    assert at(cache.origin, 3)[4096:8192] == ALIGNED[:] and at(cache.origin, 3)[:4096] == pattern(8, 1)
    assert at(cache.origin, 20)[:4096] == ALIGNED[:]


def test_killed_while_its_block_is_on_its_way(cache, fs):
    """A write that waits for a write-back which takes an hour: its process leaves at once, and nothing has changed."""
    fs.mkdir("origin", f"0 {SECTORS} linear {quote(cache.origin)} 0")
    dev = cache.load("", "smq 2 migration_threshold 0", origin="origin")
    cache.write(3, 1)
    fs["origin"].load(f"0 {SECTORS} delay {quote(cache.origin)} 0 0 {quote(cache.origin)} 0 3600000 "
                      f"{quote(cache.origin)} 0 0")
    dev.load(cache.line("", "cleaner 0", origin="origin"))
    wait_status(fs["origin"], " delay 0 [1-9]", every=0.02)
    script = ("import mmap, os, sys\nfd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)\nprint('now', flush=True)\n"
              f"os.pwritev(fd, [mmap.mmap(-1, 4096)], {3 * BYTES})")
    writer = subprocess.Popen([sys.executable, "-c", script, dev.image], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "now\n"
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.5)
    writer.kill()
    writer.wait(300)
    writer.stdout.close()
    fs["origin"].load(f"0 {SECTORS} linear {quote(cache.origin)} 0")
    cache.until(lambda st: not st.dirty)
    assert dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1) == at(cache.origin, 3)


def test_many_threads(cache):
    """Each in a part of its own, with all kinds of writes, above a cache far too small."""
    dev, errors, per = cache.load(), [], SECTORS // 8

    def work(i):
        try:
            for n in range(60):
                block = (n * 7) % (per // BLOCK)
                data = pattern(BLOCK, i * 100 + n)
                place = (i * per + block * BLOCK) * SECTOR
                dev.pwrite(data if n % 3 else data[:4096], place, sync=n % 10 == 0)
                if n % 3 and dev.pread(BYTES, place) != data:
                    errors.append((i, n))
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for _ in range(4):
        dev.suspend()
        dev.resume()
    for t in threads:
        t.join()
    assert not errors
    whole = dev.pread(SECTORS * SECTOR, 0)
    cache.load("", "cleaner 0")
    cache.until(lambda st: not st.dirty)
    assert at(cache.origin, 0, SECTORS // BLOCK) == whole


def test_tables_change_while_blocks_move(dmfs, backing, tool):
    """Above a slow origin, below writes; then the daemon is killed, and what was flushed is there."""
    meta, fast, origin = backing(4096), backing(FAST * BLOCK), backing(SECTORS)
    one = dmfs()
    slow = f"0 {SECTORS} delay {quote(origin)} 0 3 {quote(origin)} 0 3"
    one.mkdir("slow", slow)
    lines = [f"0 {SECTORS} cache {quote(meta)} {quote(fast)} slow {BLOCK} 1 {rest}" for rest in (
        "writeback smq 0", "writeback cleaner 0", "writethrough smq 2 migration_threshold 128", "writeback mq 2 random_threshold 1",
        "writethrough cleaner 0")]
    dev, model, errors = one.mkdir("c", lines[0]), {}, []
    stop = threading.Event()

    def write(first):
        n = 0
        try:
            while not stop.is_set():
                block = first + 4 * (n * n % 16)
                data = pattern(BLOCK, 1000 * first + n)
                dev.pwrite(data, block * BYTES, sync=True)
                model[block] = data
                if dev.pread(4096, block * BYTES) != data[:4096]:
                    errors.append((block, n))
                n += 1
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for t in threads:
        t.start()
    try:
        for i in range(10):
            dev.load(lines[i % len(lines)])
            assert len(dev.status().split()) > 20
            used = len(model)
            end = time.monotonic() + 300
            while i < 4 and len(model) == used and time.monotonic() < end and not errors:
                time.sleep(0.01)
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors and model
    one.kill()
    run(tool("cache_check"), meta)
    two = dmfs()
    two.mkdir("slow", slow)
    dev = two.mkdir("c", lines[0])
    for block, data in model.items():
        assert dev.pread(BYTES, block * BYTES) == data, block
    dev.load(lines[1])
    end = time.monotonic() + 300
    while Status(dev.status()).dirty:
        assert time.monotonic() < end, dev.status()
        time.sleep(0.02)
    dev.remove()
    run(tool("cache_check"), meta)
    for block, data in model.items():
        assert at(origin, block) == data, block


# --- tools ---------------------------------------------------------------------------------------------------------


def test_restored_and_repaired(cache, fs, work, tool):
    cache.load("metadata2")
    cache.write(3, 1)
    cache.write(5, 2)
    cache.until(lambda st: not st.dirty)
    cache.close()
    xml = os.path.join(work, "xml")
    run(tool("cache_dump"), "-o", xml, cache.meta)
    for how in ("restore", "repair"):
        if how == "restore":
            with open(cache.meta, "r+b") as f:
                f.write(b"\xff" * 8192)
            run(tool("cache_restore"), "-i", xml, "-o", cache.meta)
        else:
            other = os.path.join(work, "other")
            with open(other, "wb") as f:
                f.truncate(4096 * SECTOR)
            run(tool("cache_repair"), "-i", cache.meta, "-o", other)
            cache.meta = other
        cache.dev = fs.mkdir("c")
        cache.load()
        assert cache.st().resident == 2, how
        assert cache.dev.pread(BYTES, 3 * BYTES) == pattern(BLOCK, 1), how
        cache.close()


def test_restored_without_hints(cache, fs, work, tool):
    xml = os.path.join(work, "xml")
    with open(xml, "w", encoding="ascii") as f:
        f.write('<superblock uuid="" block_size="64" nr_cache_blocks="32" policy="smq" hint_width="4"><mappings>'
                '<mapping cache_block="3" origin_block="7" dirty="true"/></mappings><hints></hints></superblock>')
    run(tool("cache_restore"), "-i", xml, "-o", cache.meta)
    for _ in range(2):
        cache.load("", "smq 2 migration_threshold 0")
        st = cache.st()
        assert (st.resident, st.dirty, st.mode, st.check) == (1, 1, "rw", "-")
        assert mappings(cache.close()) == {7: (3, True)}
        cache.dev = fs.mkdir("c")


@pytest.mark.parametrize("features", ["", "metadata2"])
def test_written_back_by_the_tool(cache, tool, features):
    writeback = tool("cache_writeback")
    old = run(writeback, "--version").startswith("0.")
    if old and features:
        pytest.skip("cache_writeback 0.9 does not look at the dirty bits of metadata2")
    cache.load(features, "smq 2 migration_threshold 0")
    cache.write(3, 1)
    cache.write(77, 2, 2)
    cache.close()
    # 0.9 crashes when it updates metadata, the kernel's as well
    run(writeback, *["--no-metadata-update"] * old, "--metadata-device", cache.meta, "--fast-device", cache.fast,
        "--origin-device", cache.origin)
    assert at(cache.origin, 3) == pattern(BLOCK, 1) and at(cache.origin, 77, 2) == pattern(2 * BLOCK, 2)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args,why", [
    ("", "Insufficient"), ("{m} {f} {o}", "Insufficient"), ("{m} {f} {o} 64", "cache feature arguments"),
    ("{m} {f} {o} 64 0", "policy"), ("{m} {f} {o} 64 0 smq", "policy arguments"), ("{m} {f} {o} 0 0 smq 0", "'0'"),
    ("{m} {f} {o} 32 0 smq 0", "'32'"), ("{m} {f} {o} 96 0 smq 0", "'96'"), ("{m} {f} {o} 2097216 0 smq 0", "2097216"),
    ("{m} {f} {o} x 0 smq 0", "'x'"), ("{m} {f} {o} 4096 0 smq 0", "larger than the cache device"),
    ("/nonexistent {f} {o} 64 0 smq 0", "metadata device"), ("{m} /nonexistent {o} 64 0 smq 0", "cache device"),
    ("{m} {f} /nonexistent 64 0 smq 0", "origin device"), ("{m} {f} {short} 64 0 smq 0", "larger than cached device"),
    ("{m} {f} {o} 64 4 a b c d smq 0", "cache feature arguments"), ("{m} {f} {o} 64 1 nonsense smq 0", "'nonsense'"),
    ("{m} {f} {o} 64 2 writeback writethrough smq 0", "Duplicate"), ("{m} {f} {o} 64 0 lru 0", "'lru'"),
    ("{m} {f} {o} 64 0 smq 1 x", "even"), ("{m} {f} {o} 64 0 smq 2 x 1", "x 1"), ("{m} {f} {o} 64 0 smq 3 x 1", "policy arguments"),
    ("{m} {f} {o} 64 0 smq 2 migration_threshold x", "migration_threshold"),
    ("{m} {f} {o} 64 0 smq 2 random_threshold 4", "random_threshold"),
    ("{m} {m} {o} 64 0 smq 0", "in use"), ("{m} {o} {o} 64 0 smq 0", "three"),
    ("{foreign} {f} {o} 64 0 smq 0", "metadata"), ("{short} {f} {o} 64 0 smq 0", "metadata"),
    ("{other} {f} {o} 64 0 smq 0", "128"),
])
def test_refused(fs, backing, args, why):
    m, f, o, short = backing(4096), backing(2048), backing(SECTORS), backing(4)
    foreign, other = backing(4096, os.urandom(8192)), backing(4096)
    fs.mkdir("first", f"0 {SECTORS} cache {quote(other)} {quote(f)} {quote(o)} 128 0 smq 0")
    fs["first"].remove()
    dev = fs.mkdir("c")
    with pytest.raises(OSError):
        dev.load(f"0 {SECTORS} cache " + args.format(m=quote(m), f=quote(f), o=quote(o), short=quote(short),
                                                     foreign=quote(foreign), other=quote(other)))
    assert why in dev.error(), dev.error()
    assert dev.table() == ""


def test_metadata_used_by_two(cache, fs, backing):
    cache.load()
    dev = fs.mkdir("second")
    with pytest.raises(OSError) as e:
        dev.load(cache.line(fast=backing(2048), origin=backing(SECTORS)))
    assert e.value.errno == errno.EBUSY and "metadata device" in dev.error()


def test_messages(cache):
    dev = cache.load()
    dev.message("migration_threshold 4096")
    assert cache.st().threshold == "4096"
    for text in ("nonsense", "nonsense 1", "migration_threshold", "migration_threshold x", "migration_threshold -1",
                 "sequential_threshold 5", "migration_threshold 1 2"):
        with pytest.raises(OSError) as e:
            dev.message(text)
        assert e.value.errno == errno.EINVAL, text
    cache.load("", "mq 0")
    dev.message("sequential_threshold 5")
    assert "no longer has any effect" in dev.mount.read("log")
