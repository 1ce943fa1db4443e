# SPDX-License-Identifier: GPL-2.0-or-later
"""cache through the mount; cache_check judges the metadata after every test, cache_dump says what it holds."""

import errno
import os

import pytest

from caches import ALIGNED, BLOCK, BYTES, FAST, SECTORS, at, keep_dirty, mappings, warm
from mounted import SECTOR, pattern, quote


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
