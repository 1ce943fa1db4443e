# SPDX-License-Identifier: GPL-2.0-or-later
"""Caches that crash or whose devices fail, many threads in one, and what the tools make of them; as in test_cache.py."""

import errno
import mmap
import os
import subprocess
import sys
import threading
import time

import pytest

from caches import ALIGNED, BLOCK, BYTES, FAST, SECTORS, Status, at, mappings, run
from mounted import SECTOR, pattern, quote, wait_status


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
