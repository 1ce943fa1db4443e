# SPDX-License-Identifier: GPL-2.0-or-later
"""thin-pool and thin beside the kernel's: lines, status, and pools that go from one side to the other and back."""

import os
import re
import shutil
import subprocess

import pytest

from mounted import SECTOR, pattern, quote

BS = 128
BLOCK = BS * SECTOR
BLOCKS = 200
META = 8192
POOL = f"0 {BLOCKS * BS} thin-pool"


def thin_check(path):
    tool = shutil.which("thin_check", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not tool:
        pytest.skip("no thin_check (package thin-provisioning-tools)")
    done = subprocess.run([tool, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def same(status):
    """A status without what differs by nature: metadata blocks used, and whether the disk takes discards (ubd does not)."""
    return re.sub(r" \d+/1024 ", " N/1024 ", status.replace(" no_discard_passdown", " discard_passdown"))


def test_lines(kernel, fs, backing):
    """Both start from empty metadata for every line that is taken; used metadata blocks are each side's own affair."""
    lines = [f"{POOL} $D{i} $D7 {rest}" for i, rest in enumerate([
        "128 0", "128 5 1 skip_block_zeroing", "128 0 2 ignore_discard error_if_no_space",
        "128 0 3 no_discard_passdown skip_block_zeroing ERROR_IF_NO_SPACE", "256 18446744073709551615"])]
    lines += [f"{POOL} $D5 $D7 {rest}" for rest in (
        "127 0", "64 0", "129 0", "2097280 0", "0 0", "x 0", "128 x", "128", "128 0 1", "128 0 1 what", "128 0 x",
        "128 0 5 read_only read_only read_only read_only read_only", "128 0 1 read_only", "128 -1")]
    lines += [f"{POOL} $D5 $D5 128 0", f"{POOL} $D5", f"0 {(BLOCKS + 1) * BS} thin-pool $D5 $D7 128 0",
              "0 128 thin $D5 0", "0 128 thin"]
    disks = [backing(META) for _ in range(7)] + [backing(BLOCKS * BS)]
    theirs = kernel.tables(lines, disks)
    for d in disks[:7]:
        with open(d, "r+b") as f:
            f.write(bytes(4096))
    ours = kernel.tables_dmfs(fs, lines, disks)
    for line, k, d in zip(lines, theirs, ours):
        assert k.accepted == d.accepted, (line, k, d)
        assert same(k.status) == same(d.status), line
        assert k.table == d.table, line
    for d in disks[:5]:
        thin_check(d)


KERNEL_MAKES = f"""
set -e
dmsetup create pool --table "{POOL} $D0 $D1 {BS} 0"
dmsetup message pool 0 create_thin 0
dmsetup create thin --table "0 {100 * BS} thin /dev/mapper/pool 0"
dd if=$IN of=/dev/mapper/thin bs=64k seek=3 count=20 conv=fsync 2>/dev/null
dmsetup suspend thin
dmsetup message pool 0 create_snap 1 0
dmsetup resume thin
dd if=$IN of=/dev/mapper/thin bs=64k seek=10 skip=20 count=5 conv=fsync 2>/dev/null
dmsetup message pool 0 set_transaction_id 0 5
dmsetup status thin
dmsetup status pool
dmsetup remove thin
dmsetup remove pool
"""


def expected():
    src = pattern(40 * BS, seed=7)
    origin = bytearray(100 * BLOCK)
    origin[3 * BLOCK:23 * BLOCK] = src[:20 * BLOCK]
    thin = bytearray(origin)
    thin[10 * BLOCK:15 * BLOCK] = src[20 * BLOCK:25 * BLOCK]
    return src, thin, origin


def test_kernels_pool_is_ours(kernel, fs, backing):
    src, thin, snap = expected()
    meta, data, source = backing(META), backing(BLOCKS * BS), backing(40 * BS, data=src)
    said = kernel.run(KERNEL_MAKES, [meta, data], env={"IN": source}).out.split("\n")
    pool = fs.mkdir("pool", f"{POOL} {quote(meta)} {quote(data)} {BS} 0")
    t = fs.mkdir("thin", f"0 {100 * BS} thin pool 0")
    s = fs.mkdir("snap", f"0 {100 * BS} thin pool 1")
    assert t.status().split() == said[0].split()
    assert same(pool.status()).split()[5:] == same(said[1]).split()[5:]
    assert pool.status().split()[3] == "5"
    assert t.pread(100 * BLOCK, 0) == thin
    assert s.pread(100 * BLOCK, 0) == snap
    # go on: break sharing, extend, snapshot, delete, discard
    s.pwrite(b"ours" * 1024, 4 * BLOCK)
    snap[4 * BLOCK:4 * BLOCK + 4096] = b"ours" * 1024
    t.suspend()
    pool.message("create_snap 2 0")
    t.resume()
    t.pwrite(b"more" * 1024, 50 * BLOCK)
    s.discard(20 * BLOCK, 2 * BLOCK)
    snap[20 * BLOCK:22 * BLOCK] = bytes(2 * BLOCK)
    t.remove()
    pool.message("delete 0")
    s.remove()
    pool.remove()
    thin_check(meta)
    with open(source, "wb") as f:
        f.write(snap + thin)
    out = kernel.run(f"""
set -e
dmsetup create pool --table "{POOL} $D0 $D1 {BS} 0"
dmsetup create snap --table "0 {100 * BS} thin /dev/mapper/pool 1"
dmsetup create thin --table "0 {100 * BS} thin /dev/mapper/pool 2"
cmp -n {100 * BLOCK} /dev/mapper/snap $IN
cmp -n {100 * BLOCK} /dev/mapper/thin $IN 0 {100 * BLOCK}
dd if=/dev/zero of=/dev/mapper/thin bs=64k seek=60 count=10 conv=fsync 2>/dev/null
dd if=/dev/zero of=/dev/mapper/snap bs=64k seek=3 count=10 conv=fsync 2>/dev/null
dmsetup message pool 0 create_thin 9
dmsetup status pool
dmsetup remove thin; dmsetup remove snap; dmsetup remove pool
""", [meta, data], env={"IN": source}).out
    assert " rw " in out and "needs_check" not in out
    thin_check(meta)
    fs.mkdir("pool", f"{POOL} {quote(meta)} {quote(data)} {BS} 0")
    t, s = fs.mkdir("thin", f"0 {100 * BS} thin pool 2"), fs.mkdir("snap", f"0 {100 * BS} thin pool 1")
    thin[60 * BLOCK:70 * BLOCK] = bytes(10 * BLOCK)
    snap[3 * BLOCK:13 * BLOCK] = bytes(10 * BLOCK)
    assert t.pread(100 * BLOCK, 0) == thin
    assert s.pread(100 * BLOCK, 0) == snap


def test_our_pool_is_the_kernels(kernel, fs, backing):
    """Made here, with enough mappings for trees of some depth; used, snapshotted and extended there, and back."""
    meta, data = backing(META), backing(6000 * BS)
    line = f"0 {5000 * BS} thin-pool {quote(meta)} {quote(data)} {BS} 0 1 skip_block_zeroing"
    pool = fs.mkdir("pool", line)
    pool.message("create_thin 0")
    t = fs.mkdir("thin", f"0 {10000 * BS} thin pool 0")
    with t.open() as fd:
        for i in range(3000):
            at = i * 7919 % 10000
            os.pwrite(fd, b"%08d" % at * 64, at * BLOCK)
    t.suspend()
    pool.message("create_snap 1 0")
    t.resume()
    with t.open() as fd:
        for i in range(500):
            at = i * 7919 % 10000
            os.pwrite(fd, b"x%07d" % at * 64, at * BLOCK)
    used = pool.status().split()[5]
    t.remove()
    pool.remove()
    thin_check(meta)
    out = kernel.run(f"""
set -e
dmsetup create pool --table "0 {6000 * BS} thin-pool $D0 $D1 {BS} 0 1 skip_block_zeroing"
dmsetup status pool
dmsetup create thin --table "0 {10000 * BS} thin /dev/mapper/pool 0"
dmsetup message pool 0 create_snap 2 1
dmsetup create snap --table "0 {10000 * BS} thin /dev/mapper/pool 2"
dmsetup status thin
dd if=/dev/mapper/thin bs=64k count=200 skip=1000 2>/dev/null | md5sum
for i in $(seq 0 7 700); do dd if=/dev/zero of=/dev/mapper/snap bs=64k count=1 seek=$i 2>/dev/null; done
dmsetup remove thin
dmsetup message pool 0 delete 0
dmsetup remove snap; dmsetup remove pool
""", [meta, data]).out.splitlines()
    assert out[0].split()[5].split("/")[0] == used.split("/")[0]
    assert out[0].split()[5].endswith("/6000")
    assert out[1].split()[3] == str(3000 * BS)
    thin_check(meta)
    fs.mkdir("pool", line.replace(f"0 {5000 * BS}", f"0 {6000 * BS}"))
    one, two = fs["thin"], fs.mkdir("two")
    os.mkdir(one.path)
    one.load(f"0 {10000 * BS} thin pool 1")
    two.load(f"0 {10000 * BS} thin pool 2")
    mapped = {i * 7919 % 10000 for i in range(3000)}
    with one.open(os.O_RDONLY) as a, two.open(os.O_RDONLY) as b:
        for at in sorted(mapped)[::7]:
            assert os.pread(a, 512, at * BLOCK) == b"%08d" % at * 64
            zeroed = at <= 700 and at % 7 == 0
            assert os.pread(b, 512, at * BLOCK) == (bytes(512) if zeroed else b"%08d" % at * 64)
