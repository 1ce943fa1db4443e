# SPDX-License-Identifier: GPL-2.0-or-later
"""thin-pool and thin through the mount; thin_check judges the metadata after every test."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from mounted import FALLOC_KEEP_SIZE, SECTOR, fallocate, pattern, quote, until, wait_until_waiting
from thinpool import BLOCK, BS, Pool, tool


# --- the basics -----------------------------------------------------------------------------


def test_status_and_table(pool):
    p = pool(low=5, features="1 skip_block_zeroing")
    st = p.status()
    assert (st["transaction"], st["data"], st["held"], st["mode"]) == ("0", "0/200", "-", "rw")
    assert (st["discard"], st["no_space"], st["check"], st["meta_low"]) == \
        ("discard_passdown", "queue_if_no_space", "-", "256")
    assert p.dev.table().strip() == f"0 25600 thin-pool {p.meta} {p.data} 128 5 1 skip_block_zeroing"
    t = p.thin(0)
    assert t.status().strip() == "0 12800 thin 0 -"
    assert t.table().strip() == "0 12800 thin pool 0"
    t.pwrite(b"x" * 4096, 7 * BLOCK)
    assert t.status().strip() == f"0 12800 thin 128 {8 * BS - 1}"
    assert p.used() == 1


def test_unprovisioned_reads_zero_and_stays_so(pool):
    p = pool()
    t = p.thin(0)
    assert t.pread(10 * BLOCK, 0) == bytes(10 * BLOCK)
    assert p.used() == 0


def test_zeroing_hides_what_was_on_the_data_device(pool):
    p = pool(fill=b"S" * (200 * BLOCK))
    t = p.thin(0)
    t.pwrite(b"x" * 4096, 3 * BLOCK + 8192)
    assert t.pread(BLOCK, 3 * BLOCK) == bytes(8192) + b"x" * 4096 + bytes(BLOCK - 12288)


def test_without_zeroing_the_rest_is_as_it_was(pool):
    p = pool(fill=b"S" * (200 * BLOCK), features="1 skip_block_zeroing")
    t = p.thin(0)
    t.pwrite(b"x" * 4096, 3 * BLOCK + 8192)
    assert t.pread(BLOCK, 3 * BLOCK) == b"S" * 8192 + b"x" * 4096 + b"S" * (BLOCK - 12288)


def mapped(dev):
    return int(dev.status().split()[3]) // BS


def provision(dev, offset, length, mode=0):
    with dev.open() as fd:
        fallocate(fd, mode, offset, length)


@pytest.mark.parametrize("features", ["", "1 skip_block_zeroing"])
@pytest.mark.parametrize("mode", [0, FALLOC_KEEP_SIZE])
def test_provisioning(pool, features, mode):
    """fallocate maps blocks as a write would, and what they hold stays: nothing else."""
    p = pool(fill=b"S" * (200 * BLOCK), features=features)
    t = p.thin(0)
    t.pwrite(b"x" * 4096, 3 * BLOCK)
    provision(t, 2 * BLOCK + 100, 3 * BLOCK, mode)      # touches the blocks 2 to 5
    assert mapped(t) == 4 and p.used() == 4
    assert t.pread(4096, 3 * BLOCK) == b"x" * 4096
    if not features:
        assert t.pread(BLOCK, 2 * BLOCK) == bytes(BLOCK) and t.pread(2 * BLOCK, 4 * BLOCK) == bytes(2 * BLOCK)
    provision(t, 0, 100 * BLOCK, mode)
    assert mapped(t) == 100 == p.used()
    t.pwrite(b"y" * (10 * BLOCK), 50 * BLOCK)
    assert p.used() == 100 and t.pread(10 * BLOCK, 50 * BLOCK) == b"y" * (10 * BLOCK)


def blocks(dev):
    return os.stat(dev.image).st_blocks


def test_blocks_are_those_mapped(pool, fs, backing, sh, work):
    p = pool(blocks=2000)
    t = p.thin(0, blocks=16384)         # 1 GiB
    assert blocks(t) == 0
    data = pattern(512)
    t.pwrite(data, 5 * BLOCK)
    assert blocks(t) == 4 * BS and blocks(p.dev) == os.stat(p.data).st_blocks
    sh('cp "$1" copy; tar -cSf archive -C "${1%/*}" image', t.image)
    assert os.stat(os.path.join(work, "copy")).st_blocks < 4096
    assert os.path.getsize(os.path.join(work, "archive")) < 1 << 20
    with open(os.path.join(work, "copy"), "rb") as f:
        assert f.read(10 * BLOCK) == bytes(5 * BLOCK) + data + bytes(BLOCK)
    s = p.snap(1, 0, t, blocks=16384)
    assert blocks(s) == 4 * BS
    s.pwrite(b"x" * 512, 0)
    t.discard(5 * BLOCK, 3 * BLOCK)
    assert (blocks(s), blocks(t)) == (5 * BS, BS)
    above = fs.mkdir("above", f"0 {1000 * BS} linear thin1 {BS}", f"{1000 * BS} {BS} error")
    assert blocks(above) == 6 * BS      # at most all of the volume's
    origin = backing(64 * BS)
    e = p.thin(2, extra=f" {quote(origin)}")
    assert blocks(e) == 0
    with open(origin, "r+b") as f:
        f.write(data)
        os.fsync(f.fileno())
    assert blocks(e) == os.stat(origin).st_blocks
    e.pwrite(b"x" * 512, 90 * BLOCK)
    assert blocks(e) == os.stat(origin).st_blocks + BS


def test_provisioning_shared_blocks_and_those_of_an_origin(pool, backing):
    """The writes to come must find room, so what is shared is copied now."""
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(4 * BS, 7), 0)
    s = p.snap(1, 0, t)
    provision(s, 0, 6 * BLOCK)
    assert p.used() == 4 + 6 and s.pread(4 * BLOCK, 0) == t.pread(4 * BLOCK, 0) == pattern(4 * BS, 7)
    t.pwrite(b"z" * BLOCK, 0)
    assert p.used() == 10 and s.pread(BLOCK, 0) == pattern(4 * BS, 7)[:BLOCK]
    origin = backing(3 * BS + 8, pattern(3 * BS + 8, 9))
    o = p.thin(2, extra=f" {quote(origin)}")
    provision(o, 0, 5 * BLOCK)
    assert o.pread(5 * BLOCK, 0) == pattern(3 * BS + 8, 9) + bytes((2 * BS - 8) * SECTOR)
    assert mapped(o) == 5


def test_provisioning_without_room(pool):
    p = pool(blocks=10, features="1 error_if_no_space")
    t = p.thin(0)
    with pytest.raises(OSError) as e:
        provision(t, 0, 100 * BLOCK)
    assert e.value.errno == errno.ENOSPC and p.used() == 10 and p.status()["mode"] == "out_of_data_space"
    provision(t, 0, 10 * BLOCK)
    t.discard(0, 5 * BLOCK)
    provision(t, 95 * BLOCK, BLOCK)
    assert mapped(t) == 6


@pytest.mark.parametrize("table", [
    "0 6400 linear thin0 0", "0 6400 striped 2 128 thin0 0 thin0 6400", "0 6400 crypt aes-xts-plain64 KEY 0 thin0 0",
    "0 6400 delay thin0 0 0", "0 6400 switch 1 128 0 thin0 0", "0 6400 flakey thin0 0 1000 0",
    "0 6400 unstriped 2 128 1 thin0 0", "0 6400 multipath 0 0 1 1 round-robin 0 1 0 thin0",
])
def test_provisioning_goes_down_a_stack(pool, fs, table):
    p = pool()
    t = p.thin(0)
    dev = fs.mkdir("above", table.replace("KEY", "33" * 32))
    provision(dev, 10 * BLOCK, 7 * BLOCK)
    assert mapped(t) == 7
    provision(dev, 0, dev.size())
    assert mapped(t) == 50


@pytest.mark.parametrize("bs", [128, 384, 4096])
def test_blocks_of_other_sizes(pool, bs):
    p = pool(bs=bs, blocks=40, fill=b"S" * (40 * bs * SECTOR))
    t = p.thin(0, blocks=20)
    data = pattern(3 * bs, seed=bs)
    t.pwrite(data, bs * SECTOR - 2048)
    assert t.pread(len(data) + 4096, bs * SECTOR - 4096) == bytes(2048) + data + bytes(2048)
    p.message("create_snap 1 0")
    s = p.thin(1, blocks=20, create=False)
    t.pwrite(b"y" * 1024, 2 * bs * SECTOR + 512)
    assert s.pread(len(data), bs * SECTOR - 2048) == data
    at = bs * SECTOR + 2048 + 512
    assert t.pread(len(data), bs * SECTOR - 2048) == data[:at] + b"y" * 1024 + data[at + 1024:]


def test_survives_remount(pool, backing, dmfs):
    p = pool()
    t = p.thin(3)
    t.pwrite(pattern(5 * BS), 2 * BLOCK)
    p.message("set_transaction_id 0 17")
    p.close()
    p.dev = p.fs.mkdir("pool", p.line())
    assert p.status()["transaction"] == "17" and p.used() == 5
    t = p.thin(3, create=False)
    assert t.pread(5 * BLOCK, 2 * BLOCK) == pattern(5 * BS)


def test_kill_after_fsync_loses_nothing(dmfs, backing):
    p = Pool(dmfs(), backing)
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0, sync=True)
    t.pwrite(pattern(10 * BS, seed=9), 50 * BLOCK)
    p.fs.kill()
    p.fs.wait()
    tool("thin_check", p.meta)
    p.fs = dmfs()
    p.dev = p.fs.mkdir("pool", p.line())
    t = p.thin(0, create=False)
    assert t.pread(10 * BLOCK, 0) == pattern(10 * BS)
    late = t.pread(10 * BLOCK, 50 * BLOCK)
    for i in range(10):
        block = late[i * BLOCK:(i + 1) * BLOCK]
        assert block in (bytes(BLOCK), pattern(10 * BS, seed=9)[i * BLOCK:(i + 1) * BLOCK])
    p.close()


# --- snapshots --------------------------------------------------------------------------------


def test_snapshots_are_apart(pool):
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(20 * BS), 0)
    s = p.snap(1, 0, t)
    assert p.used() == 20
    t.pwrite(b"t" * 5000, 3 * BLOCK + 100)
    s.pwrite(b"s" * 5000, 4 * BLOCK + 100)
    assert p.used() == 22
    want_t, want_s = bytearray(pattern(20 * BS)), bytearray(pattern(20 * BS))
    want_t[3 * BLOCK + 100:3 * BLOCK + 5100] = b"t" * 5000
    want_s[4 * BLOCK + 100:4 * BLOCK + 5100] = b"s" * 5000
    assert t.pread(20 * BLOCK, 0) == want_t
    assert s.pread(20 * BLOCK, 0) == want_s
    t.remove()
    p.message("delete 0")
    assert p.used() == 20
    assert s.pread(20 * BLOCK, 0) == want_s


def test_a_long_chain_of_snapshots(pool):
    p = pool(blocks=400)
    dev = p.thin(0)
    dev.pwrite(pattern(4 * BS), 0)
    images = [bytearray(pattern(4 * BS))]
    for i in range(1, 40):
        dev = p.snap(i, i - 1, dev)
        at = i % 4 * BLOCK + i * 512
        dev.pwrite(bytes([i]) * 512, at)
        images.append(bytearray(images[-1]))
        images[-1][at:at + 512] = bytes([i]) * 512
    for i in range(40):
        assert p.fs[f"thin{i}"].pread(4 * BLOCK, 0) == images[i], i
    for i in range(0, 40, 2):
        p.fs[f"thin{i}"].remove()
        p.message(f"delete {i}")
    for i in range(1, 40, 2):
        assert p.fs[f"thin{i}"].pread(4 * BLOCK, 0) == images[i], i


def test_random_writes_snapshots_and_discards_against_a_model(pool):
    rng = random.Random(5)
    p = pool(blocks=1500)
    size = 60 * BLOCK
    devs, model = {0: p.thin(0, blocks=60)}, {0: bytearray(size)}
    for step in range(500):
        i = rng.choice(sorted(devs))
        what = rng.random()
        if what < 0.7:
            at = rng.randrange(size // 512 - 1) * 512
            data = rng.randbytes(min(rng.choice([512, 4096, BLOCK, 3 * BLOCK]), size - at))
            devs[i].pwrite(data, at)
            model[i][at:at + len(data)] = data
        elif what < 0.8:
            first = rng.randrange(60)
            n = rng.randrange(1, 61 - first)
            devs[i].discard(first * BLOCK, n * BLOCK)
            model[i][first * BLOCK:(first + n) * BLOCK] = bytes(n * BLOCK)
        elif what < 0.9 and len(devs) < 6:
            new = max(devs) + 1
            devs[new] = p.snap(new, i, devs[i], blocks=60)
            model[new] = bytearray(model[i])
        elif len(devs) > 1:
            devs.pop(i).remove()
            model.pop(i)
            p.message(f"delete {i}")
    for i in devs:
        assert devs[i].pread(size, 0) == model[i]


def test_external_origin(pool, backing):
    origin = backing(10 * BS + 8, data=pattern(10 * BS + 8, seed=3))
    p = pool()
    p.message("create_thin 0")
    t = p.thin(0, blocks=30, create=False, extra=f" {quote(origin)}")
    assert t.table().strip() == f"0 {30 * BS} thin pool 0 {origin}"
    want = bytearray(pattern(10 * BS + 8, seed=3) + bytes(30 * BLOCK - 10 * BLOCK - 4096))
    assert t.pread(30 * BLOCK, 0) == want
    assert p.used() == 0
    for at in (3 * BLOCK + 512, 10 * BLOCK + 512, 10 * BLOCK + 8192, 20 * BLOCK):
        t.pwrite(b"w" * 512, at)
        want[at:at + 512] = b"w" * 512
    assert t.pread(30 * BLOCK, 0) == want
    with open(origin, "rb") as f:
        assert f.read() == pattern(10 * BS + 8, seed=3)
    assert p.used() == 3


# --- discards and holes -----------------------------------------------------------------------


@pytest.mark.parametrize("features, passes", [("", True), ("1 no_discard_passdown", False)])
def test_discard_gives_space_back(pool, features, passes):
    p = pool(features=features)
    t = p.thin(0)
    t.pwrite(pattern(40 * BS), 0, sync=True)
    before = os.stat(p.data).st_blocks
    t.discard(10 * BLOCK - 4096, 20 * BLOCK + 8192)     # parts of blocks stay
    assert p.used() == 20
    assert t.pread(20 * BLOCK, 10 * BLOCK) == bytes(20 * BLOCK)
    assert t.pread(10 * BLOCK, 0)[:-4096] == pattern(40 * BS)[:10 * BLOCK - 4096]
    assert (os.stat(p.data).st_blocks < before) == passes


def test_shared_blocks_are_not_discarded_below(pool):
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0, sync=True)
    s = p.snap(1, 0, t)
    t.discard(0, 10 * BLOCK)
    assert p.used() == 10
    assert s.pread(10 * BLOCK, 0) == pattern(10 * BS)
    s.discard(0, 10 * BLOCK)
    assert p.used() == 0


def test_ignore_discard(pool):
    p = pool(features="1 ignore_discard")
    assert p.status()["discard"] == "ignore_discard"
    t = p.thin(0)
    t.pwrite(pattern(BS), 0)
    with pytest.raises(OSError) as e:
        t.discard(0, BLOCK)
    assert e.value.errno == errno.EOPNOTSUPP
    assert p.used() == 1


def test_holes_are_seen(pool):
    p = pool()
    t = p.thin(0)
    t.pwrite(b"a" * 512, 5 * BLOCK)
    t.pwrite(b"a" * (2 * BLOCK), 20 * BLOCK)
    with t.open(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 5 * BLOCK
        assert os.lseek(fd, 5 * BLOCK, os.SEEK_HOLE) == 6 * BLOCK
        assert os.lseek(fd, 6 * BLOCK, os.SEEK_DATA) == 20 * BLOCK
        assert os.lseek(fd, 20 * BLOCK, os.SEEK_HOLE) == 22 * BLOCK
        with pytest.raises(OSError) as e:
            os.lseek(fd, 22 * BLOCK, os.SEEK_DATA)
        assert e.value.errno == errno.ENXIO


@pytest.mark.root
def test_fstrim_gives_space_back(pool, sh, loop):
    p = pool(blocks=1000)
    t = p.thin(0, blocks=900)
    sh(f"mke2fs -q -F -E nodiscard {t.image}")
    dev = loop(t.image)
    sh(f"mkdir -p mnt; mount {dev} mnt && dd if=/dev/urandom of=mnt/big bs=1M count=20 && sync && rm mnt/big && sync")
    try:
        full = p.used()
        sh("fstrim mnt")
        assert p.used() < full - 200
    finally:
        sh("umount mnt")
    sh(f"e2fsck -fn {t.image}")


# --- no space -----------------------------------------------------------------------------------


def test_error_if_no_space(pool):
    p = pool(blocks=10, features="1 error_if_no_space")
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0)
    with pytest.raises(OSError) as e:
        t.pwrite(b"x" * 512, 50 * BLOCK, sync=True)
    assert e.value.errno == errno.ENOSPC
    assert p.status()["mode"] == "out_of_data_space"
    assert t.pread(10 * BLOCK, 0) == pattern(10 * BS)
    t.pwrite(b"y" * 512, 0, sync=True)                  # what is mapped can still be written
    t.discard(0, 2 * BLOCK)                             # and given back
    assert p.status()["mode"] == "rw"
    t.pwrite(b"x" * 512, 50 * BLOCK, sync=True)


def direct_write(dev, data, offset, result):
    """A write in a thread of its own; result gets 0 or the errno."""

    def run():
        try:
            dev.pwrite(data, offset, sync=True)
            result.append(0)
        except OSError as e:
            result.append(e.errno)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_event(dev, fn):
    """Reads the device's events until fn() is true."""
    fd = os.open(dev.file("events"), os.O_RDONLY)
    try:
        while not fn():
            os.read(fd, 4096)
    finally:
        os.close(fd)


def test_queued_writes_go_on_when_the_pool_grows(pool):
    p = pool(blocks=10)
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0, sync=True)
    result = []
    thread = direct_write(t, b"q" * 4096, 50 * BLOCK, result)
    wait_event(p.dev, lambda: p.status()["mode"] == "out_of_data_space")
    assert not result
    os.truncate(p.data, 20 * BLOCK)
    p.reload(blocks=20)
    thread.join()
    assert result == [0]
    assert p.status()["mode"] == "rw" and p.status()["data"] == "11/20"
    assert t.pread(4096, 50 * BLOCK) == b"q" * 4096


def test_queued_writes_go_on_after_a_discard(pool):
    p = pool(blocks=10)
    t, other = p.thin(0), p.thin(1)
    t.pwrite(pattern(8 * BS), 0, sync=True)
    other.pwrite(pattern(2 * BS), 0, sync=True)
    result = []
    thread = direct_write(t, b"q" * 4096, 50 * BLOCK, result)
    wait_event(p.dev, lambda: p.status()["mode"] == "out_of_data_space")
    other.discard(0, BLOCK)       # not the same image: its inode is locked by the write
    thread.join()
    assert result == [0]


def test_queued_writes_fail_when_the_time_is_up(dmfs, pool):
    p = pool(blocks=10, fs=dmfs(env={"DMFS_THIN_NO_SPACE_TIMEOUT": "1"}))
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0, sync=True)
    result = []
    direct_write(t, b"q" * 4096, 50 * BLOCK, result).join()
    assert result == [errno.ENOSPC]
    assert p.status()["no_space"] == "error_if_no_space"
    p.reload()
    assert p.status()["no_space"] == "queue_if_no_space"


def test_noflush_suspend_with_queued_writes(pool):
    p = pool(blocks=10)
    t = p.thin(0)
    t.pwrite(pattern(10 * BS), 0, sync=True)
    result = []
    thread = direct_write(t, b"q" * 4096, 50 * BLOCK, result)
    wait_event(p.dev, lambda: p.status()["mode"] == "out_of_data_space")
    t.suspend(noflush=True)
    p.dev.suspend()
    os.truncate(p.data, 20 * BLOCK)
    p.reload(blocks=20)
    assert not result
    t.resume()
    thread.join()
    assert result == [0]


def test_low_water_mark_event(pool):
    p = pool(blocks=20, low=10)
    t = p.thin(0)
    t.pwrite(pattern(8 * BS), 0)
    before = int(p.dev.info()["Event number"])
    t.pwrite(pattern(8 * BS), 8 * BLOCK)
    until(lambda: int(p.dev.info()["Event number"]) == before + 1)


def test_metadata_runs_out_and_grows(pool, backing):
    p = pool(blocks=60000, meta_sectors=128 * 8)
    p.message("create_thin 0")
    t = p.thin(0, blocks=60000, create=False)
    rng = random.Random(1)
    with t.open() as fd, pytest.raises(OSError) as e:
        for _ in range(100000):
            os.pwrite(fd, b"m" * 512, rng.randrange(60000) * BLOCK)
    assert e.value.errno == errno.EIO
    st = p.status()
    assert st["mode"] == "ro"
    with pytest.raises(OSError) as e:
        p.message("create_thin 1")
    assert e.value.errno == errno.EOPNOTSUPP
    if st["check"] == "-":
        os.truncate(p.meta, 4096 * SECTOR)
        p.reload()
        assert p.status()["mode"] == "rw"
        assert p.status()["meta"].endswith("/512")
        t.pwrite(b"m" * 512, 59999 * BLOCK, sync=True)


# --- messages -------------------------------------------------------------------------------------


def test_messages_are_refused(pool):
    p = pool()
    t = p.thin(0)
    p.message("create_thin 1")

    def refused(text, code, match=None):
        with pytest.raises(OSError) as e:
            p.message(text)
        assert e.value.errno == code, text
        if match:
            assert re.search(match, p.dev.error())

    refused("create_thin 0", errno.EEXIST, "exists")
    refused("create_thin 1", errno.EEXIST)
    refused("create_thin 16777216", errno.EINVAL, "16777215")
    refused("create_thin x", errno.EINVAL)
    refused("create_thin", errno.EINVAL)
    refused("create_thin 1 2", errno.EINVAL)
    refused("create_snap 1 0", errno.EEXIST)
    refused("create_snap 2 99", errno.ENODATA)
    refused("create_snap 2", errno.EINVAL)
    refused("delete 0", errno.EBUSY)
    refused("delete 77", errno.ENODATA)
    refused("set_transaction_id 5 6", errno.EINVAL)
    refused("set_transaction_id x 6", errno.EINVAL)
    refused("release_metadata_snap", errno.EINVAL)
    refused("frobnicate", errno.EINVAL)
    p.message("create_thin 16777215")
    p.message("reserve_metadata_snap")
    refused("reserve_metadata_snap", errno.EBUSY)
    p.message("release_metadata_snap")
    p.message("delete 1")
    assert t.status()


def test_tables_are_refused(fs, pool, backing):
    p = pool()
    p.message("create_thin 0")
    dev = fs.mkdir("d")
    meta, data, small, garbage = backing(8192), backing(2560), backing(16), backing(8192, data=os.urandom(65536))
    for line in (f"0 2560 thin-pool {meta} {data} 127 0", f"0 2560 thin-pool {meta} {data} 64 0",
                 f"0 2560 thin-pool {meta} {data} 2097280 0", f"0 2560 thin-pool {meta} {data} 128 x",
                 f"0 2560 thin-pool {meta} {data} 128", f"0 2560 thin-pool {meta} {meta} 128 0",
                 f"0 2560 thin-pool {meta} {data} 128 0 1 no_such_thing", f"0 2560 thin-pool {meta} {data} 128 0 2 read_only",
                 f"0 2560 thin-pool {meta} {data} 128 0 5 read_only read_only read_only read_only read_only",
                 f"0 5120 thin-pool {meta} {data} 128 0",
                 f"0 128 thin {meta} 0", "0 128 thin pool", "0 128 thin pool x", "0 128 thin pool 16777216",
                 "0 128 thin pool 0 pool"):
        dev.refuse(line + "\n")
    dev.refuse("0 128 thin pool 5\n", code=errno.ENODATA)
    dev.refuse(f"0 2560 thin-pool {p.meta} {data} 128 0\n", code=errno.EBUSY, match="in use")
    dev.refuse(f"0 2560 thin-pool {small} {data} 128 0\n", code=errno.ENOSPC)
    dev.refuse(f"0 2560 thin-pool {garbage} {data} 128 0\n", code=errno.ENOTBLK)
    dev.refuse(f"0 2560 thin-pool {meta} {data} 128 0 1 read_only\n", code=errno.EPERM)


def test_pool_is_in_use_while_thins_are(pool):
    p = pool()
    p.thin(0)
    with pytest.raises(OSError) as e:
        p.dev.remove()
    assert e.value.errno == errno.EBUSY


@pytest.mark.parametrize("then", ["back", "killed", "end"])
def test_errors_in_a_pools_place(pool, fs, then):
    """wipe_table of a pool: its volumes wait as while it is suspended, until it is back, or they and who waits go."""
    p, data = pool(), os.urandom(BLOCK)
    dev = p.thin(1)
    dev.pwrite(data, 0, sync=True)
    p.dev.load(f"0 {p.blocks * BS} error")
    with pytest.raises(OSError) as e:
        p.dev.pread(4096, 0)
    assert e.value.errno == errno.EIO
    code = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR | os.O_SYNC), bytes(4096), 0)"
    with subprocess.Popen([sys.executable, "-c", code, dev.image], stderr=subprocess.DEVNULL) as writer:
        wait_until_waiting(writer)
        assert writer.poll() is None
        if then == "back":
            p.reload()
            assert writer.wait(300) == 0
            assert dev.pread(BLOCK, 0) == bytes(4096) + data[4096:]
        elif then == "killed":
            writer.kill()
            assert writer.wait(300) == -signal.SIGKILL
            dev.remove()
            p.dev.remove()
            again = fs.mkdir("again", p.line())
            assert fs.mkdir("thin1", f"0 {BS} thin again 1").pread(BLOCK, 0) == data
            fs["thin1"].remove()
            again.remove()
        else:
            fs.signal(15)
            assert fs.wait() == 0
            assert writer.wait(300) == 1


def test_read_only_pool(pool):
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(3 * BS), 0, sync=True)
    p.snap(1, 0, t)
    p.close()
    with open(p.meta, "rb") as f:
        before = f.read()
    p.features = "1 read_only"
    p.dev = p.fs.mkdir("pool", p.line())
    assert p.status()["mode"] == "ro"
    t = p.thin(0, create=False)
    assert t.pread(4 * BLOCK, 0) == pattern(3 * BS) + bytes(BLOCK)
    for at in (0, 50 * BLOCK):
        with pytest.raises(OSError) as e:
            t.pwrite(b"x" * 512, at, sync=True)
        assert e.value.errno == errno.EIO
    p.close()
    with open(p.meta, "rb") as f:
        assert f.read() == before


# --- userspace's tools ------------------------------------------------------------------------------


def test_tools_work_on_our_metadata_and_we_on_theirs(pool, work):
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(30 * BS), 0)
    s = p.snap(1, 0, t)
    s.pwrite(pattern(5 * BS, seed=2), 2 * BLOCK)
    s.discard(20 * BLOCK, 3 * BLOCK)
    p.message("reserve_metadata_snap")
    held = p.status()["held"]
    assert held != "-"
    ls = tool("thin_ls", "--metadata-snap", "--no-headers", "-o", "DEV,MAPPED_BLOCKS", p.meta).stdout.split()
    assert ls == ["0", "30", "1", "27"]
    delta = tool("thin_delta", "--metadata-snap", "--snap1", 0, "--snap2", 1, p.meta).stdout
    assert re.search(r'<different begin="2" length="5"/>', delta) and re.search(r'<left_only begin="20" length="3"/>', delta)
    p.message("release_metadata_snap")
    p.close()
    dump = tool("thin_dump", p.meta).stdout
    assert re.search(r'dev_id="1" mapped_blocks="27"', dump)
    repaired = os.path.join(work, "repaired")
    for make in ("repair", "restore"):
        with open(repaired, "wb") as f:
            f.truncate(8192 * SECTOR)
        if make == "repair":
            tool("thin_repair", "-i", p.meta, "-o", repaired)
        else:
            with open(os.path.join(work, "xml"), "w", encoding="ascii") as f:
                f.write(dump)
            tool("thin_restore", "-i", os.path.join(work, "xml"), "-o", repaired)
        shutil.copy(repaired, p.meta)
        p.dev = p.fs.mkdir("pool", p.line())
        t, s = p.thin(0, create=False), p.thin(1, create=False)
        assert t.pread(30 * BLOCK, 0) == pattern(30 * BS)
        want = bytearray(pattern(30 * BS))
        want[2 * BLOCK:7 * BLOCK] = pattern(5 * BS, seed=2)
        want[20 * BLOCK:23 * BLOCK] = bytes(3 * BLOCK)
        assert s.pread(30 * BLOCK, 0) == want
        p.snap(2, 1, s).pwrite(b"n" * BLOCK, 40 * BLOCK)
        p.fs["thin2"].remove()
        p.message("delete 2")
        p.close()


def test_needs_check_keeps_the_pool_read_only(pool):
    tool("thin_check", "--version")
    p = pool()
    t = p.thin(0)
    t.pwrite(pattern(2 * BS), 0)
    p.close()
    with open(p.meta, "r+b") as f:
        sb = bytearray(f.read(4096))
        sb[4] |= 1
        sb[0:4] = crc(bytes(sb[4:]), 160774).to_bytes(4, "little")
        f.seek(0)
        f.write(sb)
    p.dev = p.fs.mkdir("pool", p.line())
    assert (p.status()["mode"], p.status()["check"]) == ("ro", "needs_check")
    with pytest.raises(OSError) as e:
        p.message("create_thin 1")
    assert e.value.errno == errno.EOPNOTSUPP
    p.dev.remove()
    tool("thin_check", "--clear-needs-check-flag", p.meta)
    p.dev = p.fs.mkdir("pool", p.line())
    assert p.status()["mode"] == "rw"


def crc(data, seed):
    """CRC-32C as the metadata has it."""
    table = []
    for i in range(256):
        c = i
        for _ in range(8):
            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
        table.append(c)
    c = 0xffffffff
    for b in data:
        c = c >> 8 ^ table[(c ^ b) & 255]
    return c ^ seed


# --- the seed's cookbook --------------------------------------------------------------------------------


def test_cookbook(fs, backing, sh):
    examples = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../contrib/examples")
    meta, data, origin = backing(4096), backing(20 * BS), backing(BS, data=pattern(BS, seed=4))
    env = {"DMFS_MOUNT": fs.mountpoint}
    sh(f'{examples}/thin-pool "$@"', meta, data, BS, 2, **env)
    sh(f'{examples}/thin-volume thin 0 {100 * BS}', **env)
    fs["thin"].pwrite(pattern(3 * BS), 0)
    sh(f'{examples}/thin-snapshot snap 1 thin 0', **env)
    fs["thin"].pwrite(b"x" * 512, 0)
    assert fs["snap"].pread(3 * BLOCK, 0) == pattern(3 * BS)
    sh(f'{examples}/thin-volume image 2 {10 * BS} "$1"', origin, **env)
    assert fs["image"].pread(2 * BLOCK, 0) == pattern(BS, seed=4) + bytes(BLOCK)
    daemon = subprocess.Popen([f"{examples}/thin-grow"], env=os.environ | env, stdout=subprocess.PIPE, text=True)
    try:
        fs["thin"].pwrite(pattern(30 * BS, seed=8), 20 * BLOCK, sync=True)
        assert fs["thin"].pread(30 * BLOCK, 20 * BLOCK) == pattern(30 * BS, seed=8)
        for name in ("snap", "thin", "image", "pool"):
            fs[name].remove()
        out = daemon.communicate(timeout=300)[0]
        assert "22 blocks" in out
    finally:
        daemon.kill()
        daemon.wait()
    tool("thin_check", meta)
