# SPDX-License-Identifier: GPL-2.0-or-later
"""writecache beside the kernel's: the lines taken, the text printed, counters, and full caches handed back and forth."""

import mmap
import os
import re

from mounted import SECTOR, pattern, quote

SECTORS, CACHE = 8192, 6000

# Each a table's end and a device size; the caches are fresh.  All are loaded in one boot.
OPTIONS = ["4096 0", "512 0", "4096 2 start_sector 24", "512 2 start_sector 24", "1024 0", "4096 4 HIGH_watermark 60 low_watermark 60",
           "4096 18 writeback_jobs 5 autocommit_blocks 7 autocommit_time 9 max_age 10000 start_sector 8 high_watermark 90 "
           "low_watermark 10 cleaner metadata_only pause_writeback 4", "4096 1 cleaner", "4096 3 metadata_only max_age 5000",
           "4096 0 what else", "4096 2 fua nofua", "4096 1 fua", "4096 2 high_watermark 101", "4096 2 low_watermark 51",
           "4096 1 low_watermark", "4096 19", "4096", "4096 x", "768 0", "8192 0", "256 0", "4096 2 start_sector 6000",
           "4096 2 start_sector 5995", "4096 2 autocommit_time 3600001", "4096 2 pause_writeback 60001", "4096 1 bad"]

# (op, block, blocks): what one process does on both sides, in this order.
OPS = [("write", b, 1) for b in range(4)] + [
    ("write", 2, 1), ("flush", 0, 0), ("write", 2, 1), ("write", 100, 16), ("write", 103, 3), ("write", 300, 1),
    ("flush", 0, 0), ("read", 0, 1), ("read", 98, 4), ("read", 500, 3), ("read", 100, 16), ("discard", 300, 1),
    ("write", 301, 2), ("flush", 0, 0)]


def test_lines(kernel, fs, backing):
    lines = [f"0 {SECTORS} writecache s $D0 $D{1 + i % 7} {options}" for i, options in enumerate(OPTIONS)]
    lines += ["0 8192 writecache x $D0 $D1 4096 0", "0 8192 writecache s $D0", "0 8192 writecache s /nonexistent $D1 4096 0",
              "0 8192 writecache s $D0 /nonexistent 4096 0"]
    answers = []
    for side in (kernel.tables, lambda lines, disks: kernel.tables_dmfs(fs, lines, disks)):
        answers.append(side(lines, [backing(SECTORS)] + [backing(CACHE) for _ in range(7)]))
    for line, theirs, ours in zip(lines, *answers):
        assert theirs == ours, (line, theirs, ours)


def guest_ops(dev, block, disk_seed):
    """The same operations as a script for the guest."""
    out = []
    for op, at, n in OPS:
        if op == "write":
            out.append(f"dd if={disk_seed} of={dev} bs={block} seek={at} skip={at} count={n} oflag=direct iflag=fullblock "
                       f"conv=notrunc status=none" if n == 1 else
                       f"dd if={disk_seed} of={dev} bs={n * block} seek={at * block}B skip={at * block}B count=1 oflag=direct "
                       "iflag=fullblock conv=notrunc status=none")
        elif op == "read":
            out.append(f"dd if={dev} of=/dev/null bs={n * block} skip={at * block}B count=1 iflag=direct status=none")
        elif op == "discard":
            out.append(f"blkdiscard -f -o {at * block} -l {n * block} {dev}")
        else:
            out.append(f"sync -d {dev}")
    return "\n".join(out)


def our_ops(dev, block, data):
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 16 * 4096)
        for op, at, n in OPS:
            view = memoryview(buf)[:n * block]
            if op == "write":
                view[:] = data[at * block:(at + n) * block]
                os.pwritev(fd, [view], at * block)
            elif op == "read":
                os.preadv(fd, [view], at * block)
            elif op == "discard":
                dev.discard(at * block, n * block)
            else:
                os.fsync(fd)
            del view


def expected(block, data):
    want = bytearray(SECTORS * SECTOR)
    for op, at, n in OPS:
        if op == "write":
            want[at * block:(at + n) * block] = data[at * block:(at + n) * block]
        elif op == "discard":
            want[at * block:(at + n) * block] = bytes(n * block)
    return bytes(want)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def entries(cache):
    """Superblock and entries, of a device of one block size; free entries without the sector they once had."""
    data = read(cache)
    blocks = int.from_bytes(data[16:24], "little")
    found = [(data[64 + 16 * i:72 + 16 * i], data[72 + 16 * i:80 + 16 * i]) for i in range(blocks)]
    return data[:64], [e if e[1] != b"\xff" * 8 else None for e in found]


def test_there_and_back(kernel, fs, backing):
    """Left full by a crash of the kernel's and drained here; left full here and drained there; counters alike.

    One boot: the kernel drains two of ours, fills two, and goes down without an end.
    """
    data = pattern(SECTORS, 5)
    source = backing(SECTORS, data)
    ours, theirs = {}, {}
    for block in (512, 4096):
        ours[block] = backing(SECTORS), backing(CACHE)
        theirs[block] = backing(SECTORS), backing(CACHE)
        dev = fs.mkdir("w", f"0 {SECTORS} writecache s {quote(ours[block][0])} {quote(ours[block][1])} {block} 0")
        our_ops(dev, block, data)
        status = dev.status()
        theirs[block] += (status,)
        dev.remove()
        ours[block] += (entries(ours[block][1]),)
    script = ["set -e"]
    for n, block in enumerate((512, 4096)):
        script.append(f"""
            dmsetup create o{block} --table "0 {SECTORS} writecache s $D{2 * n} $D{2 * n + 1} {block} 0"
            dmsetup message o{block} 0 flush; dmsetup status o{block}; dmsetup remove --retry o{block}
            dmsetup create t{block} --table "0 {SECTORS} writecache s $D{4 + 2 * n} $D{5 + 2 * n} {block} 0"
            {guest_ops(f'/dev/mapper/t{block}', block, source)}
            dmsetup status t{block}""")
    script.append("echo 0 >rc; echo o >/proc/sysrq-trigger; sleep 60")
    out = kernel.run("\n".join(script), [f for block in (512, 4096) for f in ours[block][:2]] +
                     [f for block in (512, 4096) for f in theirs[block][:2]]).out
    lines = re.findall(r"^0 .*writecache.*$", out, re.M)
    assert len(lines) == 4, out
    for n, block in enumerate((512, 4096)):
        blocks = lines[2 * n].split()[4]
        assert lines[2 * n].split()[3:7] == ["0", blocks, blocks, "0"]
        assert read(ours[block][0]) == expected(block, data), "drained by the kernel"
        assert lines[2 * n + 1].split() == theirs[block][2].split(), (block, "the counters are the kernel's")
        assert entries(theirs[block][1]) == ours[block][2], "and so are the superblock and the entries"
        dev = fs.mkdir("w", f"0 {SECTORS} writecache s {quote(theirs[block][0])} {quote(theirs[block][1])} {block} 0")
        assert dev.status().split()[5] == lines[2 * n + 1].split()[5]
        assert dev.pread(SECTORS * SECTOR, 0) == expected(block, data)
        dev.message("flush")
        dev.remove()
        assert read(theirs[block][0]) == expected(block, data), "drained here"
