# SPDX-License-Identifier: GPL-2.0-or-later
"""writecache beside linear on such a file as its cache, before a slow origin, with FLUSHes, and with 16 million blocks."""

import array
import os
import statistics
import struct
import time

from benchlib import DIRECT_4K, MIB, Job, Limit, device, row, subject
from mounted import quote

SPAN = 64 * MIB     # fits into the cache
WRITE = Job("write 4k d16", "randwrite", 4096, 16, span=SPAN)
ROOM = "high_watermark 100 low_watermark 100"


def line(b, name, origin):
    cache = b.file(f"{name}-cache.img", 2 * SPAN)
    with open(cache, "r+b") as f:
        f.write(bytes(4096))    # a new one
    return f"0 {SPAN // 512} writecache s {origin} {quote(cache)} 4096 4 {ROOM}"


@subject("writecache")
def writecache(b):
    yield from device(b, "writecache", line(b, "wc", quote(b.file("wc.img", SPAN))))


@subject("writecache, empty")
def empty(b):
    yield from device(b, "wc-empty", line(b, "wc-empty", quote(b.file("wc-empty.img", SPAN))))


@subject("linear, as its cache")
def linear(b):
    yield from device(b, "wc-linear", f"0 {SPAN // 512} linear {quote(b.file('wc-linear.img', SPAN))} 0")


@subject("delay of 2 ms")
def delay(b):
    yield from device(b, "wc-delay", f"0 {SPAN // 512} delay {quote(b.file('wc-slow.img', SPAN))} 0 2")


@subject("writecache before it")
def before_delay(b):
    b.open("delay of 2 ms")
    yield from device(b, "wc-slow", line(b, "wc-slow", "wc-delay"))


@row("writecache")
def writes(b):
    """random writes into a cache with room, and reads through an empty one"""
    b.compare(["writecache", "linear, as its cache"], [WRITE], [Limit("*", "writecache", "linear, as its cache", 0.7)])
    reads = [Job(j.name, j.rw, j.bs, j.depth, span=SPAN) for j in DIRECT_4K if "read" in j.name]
    b.compare(["writecache, empty", "linear, as its cache"], reads,
              [Limit("*", "writecache, empty", "linear, as its cache", 0.9)])


@row("writecache-slow")
def slow(b):
    """before an origin whose writes take 2 ms"""
    b.compare(["writecache before it", "delay of 2 ms"], [WRITE], [Limit("*", "writecache before it", "delay of 2 ms", 5)])


@row("writecache-flush")
def flushes(b):
    """a FLUSH after each write of 4 KiB: to blocks that are in the cache, and, for comparison, to such as are not: a commit each"""
    span = SPAN // 4    # all of it is written once, however long that takes
    job, once = Job("write 4k d1", "randwrite", 4096, span=span), Job("write 4k", "write", 4096, span=span)
    cached, plain = b.open("writecache"), b.open("linear, as its cache")
    ratios, new = [], []
    for _ in range(b.rounds):
        b.dmfs()["writecache"].message("flush")
        extra = ["--fsync=1", "--time_based=0", "--ramp_time=0", "--runtime=120s"]
        new.append(b.fio(cached, once, extra=extra) / b.fio(plain, once, extra=extra))
        ratios.append(b.fio(cached, job, extra=["--fsync=1"]) / b.fio(plain, job, extra=["--fsync=1"]))
    b.measure("a FLUSH after each write, of linear's", statistics.median(ratios), "", at_least=0.5)
    b.measure("the same, each to a new block", statistics.median(new), "")


@row("writecache-index")
def index(b):
    """16 million blocks, all but one in use (none is written back then), far apart on the origin"""
    n, block = 16 << 20, 512
    meta = -(-(64 + 16 * n) // block) * block
    origin, cache = b.file("wc-big.img", 1 << 40, filled=False), b.file("wc-big-cache.img", meta + n * block, filled=False)
    with open(cache, "r+b") as f:
        f.write(struct.pack("<IIIIQQ", 0x23489321, 1, block, 0, n, 1) + bytes(32))
        for first in range(0, n, 1 << 16):
            entries = array.array("Q", bytes(16 << 16))
            entries[::2] = array.array("Q", ((i * 0x9E3779B1) % (1 << 31) for i in range(first, first + (1 << 16))))
            if not first:
                entries[:2] = array.array("Q", [2**64 - 1] * 2)
            f.write(entries.tobytes())
    dm = b.own_dmfs()
    before, began = dm.rss_kib(), time.monotonic()
    dev = dm.mkdir("wc-big", f"0 {1 << 31} writecache s {quote(origin)} {quote(cache)} {block} 4 high_watermark 100 "
                             "low_watermark 100")
    seconds, used = time.monotonic() - began, (dm.rss_kib() - before) * 1024
    assert dev.status().split()[4:6] == [str(n), "1"], dev.status()
    dev.remove()
    dm.close()
    os.unlink(cache)
    b.measure("16 million blocks open", seconds, "s", at_most=3)
    b.measure("memory a block", used / n, "bytes", at_most=64)
