# SPDX-License-Identifier: GPL-2.0-or-later
"""multipath beside linear, over NBD by one path and by two, and how long a failover takes."""

import contextlib
import os
import time

from benchlib import DIRECT, DIRECT_4K, Limit, device, nbdkit, row, subject
from mounted import quote


def line(sectors, paths, selector="queue-length"):
    return f"0 {sectors} multipath 0 0 1 1 {selector} 0 {len(paths)} 0 {' '.join(quote(p) for p in paths)}"


@subject("multipath")
def multipath(b):
    """On linear's own file: what memory a file lies in makes more of a difference than multipath does."""
    yield from device(b, "multipath", line(b.sectors(), [b.file("linear.img")]))


@row("multipath")
def one_path(b):
    """one path, a file"""
    b.compare(["multipath", "linear"], DIRECT, [Limit("* 4k d16", "multipath", "linear", 0.95)])


@contextlib.contextmanager
def nbdkits(b, count):
    """So many nbdkits of one file."""
    with contextlib.ExitStack() as stack:
        servers = [nbdkit(b, f"multipath{i}", b.file("multipath-nbd.img")) for i in range(count)]
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield servers


def over_nbd(b, name, count):
    with nbdkits(b, count) as servers:
        yield from device(b, name, line(b.sectors(), [s.uri for s in servers]))


@subject("multipath 1 nbd")
def nbd_one(b):
    yield from over_nbd(b, "mp1", 1)


@subject("multipath 2 nbd")
def nbd_two(b):
    yield from over_nbd(b, "mp2", 2)


@row("multipath-nbd")
def two_paths(b):
    """two servers of one file beside one; with two processors for servers, daemon and fio there is little to gain: shown"""
    b.compare(["multipath 2 nbd", "multipath 1 nbd"], DIRECT_4K)


@row("multipath-failover")
def failover(b):
    """the longest read at depth 1 while the path in use is killed, ten times"""
    worst = 0
    for _ in range(10):
        with nbdkits(b, 2) as servers:
            dev = b.dmfs().mkdir("failover", line(b.sectors(), [s.uri for s in servers], "round-robin"))
            with dev.open(os.O_RDONLY) as fd:
                for i in range(2000):
                    if i == 1000:
                        servers[0].process.kill()       # and go on at once
                    begin = time.monotonic()
                    os.preadv(fd, [bytearray(4096)], (i * 37 % 4096) * 4096)
                    worst = max(worst, time.monotonic() - begin)
            dev.remove()
    b.measure("longest read during a failover", worst * 1000, "ms", at_most=50)
