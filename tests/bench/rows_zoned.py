# SPDX-License-Identifier: GPL-2.0-or-later
"""zoned, on a zoned file, beside linear on a plain one: in order, at random into buffers, and reads of both."""

import mmap
import os
import random
import time

import zones
from benchlib import MIB, row
from mounted import quote

ZONE = 64 * 1024        # sectors, 32 MiB


def fresh(b, name, data_zones, random_zones):
    path = os.path.join(b.dir, name)
    zones.make(path, data_zones + random_zones + 2, ZONE, random_zones + 2)
    return path


def timed(dev, write, offsets, length):
    """Seconds for requests of this length at these offsets, one after the other; then a flush."""
    buf = mmap.mmap(-1, length)
    buf.write(os.urandom(length))
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        begin = time.monotonic()
        for at in offsets:
            if write:
                os.pwrite(fd, buf, at)
            else:
                os.preadv(fd, [buf], at)
        os.fsync(fd)
        return time.monotonic() - begin


def ratio(b, pairs):
    """Of the median round; each gives linear's seconds and zoned's."""
    found = sorted(plain / ours for plain, ours in pairs)
    return found[len(found) // 2]


@row("zoned")
def zoned_row(b):
    """direct I/O at depth 1 on files that begin as holes; there are as many conventional zones as random writes need"""
    size = min(b.size, 256 * MIB)
    chunks = size // (ZONE * 512)
    path = fresh(b, "zoned.img", chunks + 20, chunks + 8)
    plain = b.file("zoned-plain.img", size, filled=False)
    dm = b.dmfs()
    order = list(range(0, size, MIB))
    scattered = random.Random(1).sample(range(0, size, 4096), min(8000, size // 4096))
    rounds = {"writes in order": [], "reads": [], "random 4 KiB writes into buffers": [], "random 4 KiB reads": []}
    for _ in range(b.rounds):
        os.truncate(plain, 0)
        os.truncate(plain, size)
        lin = dm.mkdir("zoned-linear", f"0 {size // 512} linear {quote(plain)} 0")
        sectors = int(zones.run("dm-format", path).stdout)
        dev = dm.mkdir("zoned", f"0 {sectors} zoned {quote(path)}")
        for name, write, at, length in (("writes in order", True, order, MIB), ("reads", False, order, MIB),
                                        ("random 4 KiB writes into buffers", True, scattered, 4096),
                                        ("random 4 KiB reads", False, scattered, 4096)):
            rounds[name].append((timed(lin, write, at, length), timed(dev, write, at, length)))
        dev.remove()
        lin.remove()
    os.unlink(path)
    os.unlink(path + ".zones")
    for name, least in (("writes in order", 0.7), ("reads", 0.8), ("random 4 KiB writes into buffers", 0.4),
                        ("random 4 KiB reads", 0.8)):
        b.measure(f"zoned: {name}, of linear's", ratio(b, rounds[name]), "", at_least=least)
