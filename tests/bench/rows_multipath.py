# SPDX-License-Identifier: GPL-2.0-or-later
"""multipath beside linear, over NBD by one path and by two, and how long a failover takes."""

import os
import subprocess
import time

from benchlib import DIRECT, DIRECT_4K, Limit, device, linear_line, program, row, subject
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


class Servers:
    """N nbdkits of one file."""

    def __init__(self, b, count):
        self.socks = [os.path.join(b.dir, f"multipath{i}.sock") for i in range(count)]
        path = b.file("multipath-nbd.img")
        self.processes = [subprocess.Popen([program("nbdkit", "nbdkit"), "-f", "-U", sock, "file", path]) for sock in self.socks]
        for sock in self.socks:
            while not os.path.exists(sock):
                time.sleep(0.01)
        self.uris = [f"nbd+unix:///?socket={sock}" for sock in self.socks]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for p in self.processes:
            p.kill()
            p.wait()


def over_nbd(b, name, count):
    with Servers(b, count) as servers:
        yield from device(b, name, line(b.sectors(), servers.uris))


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
        with Servers(b, 2) as servers:
            dev = b.dmfs().mkdir("failover", line(b.sectors(), servers.uris, "round-robin"))
            with dev.open(os.O_RDONLY) as fd:
                for i in range(2000):
                    if i == 1000:
                        servers.processes[0].kill()
                    begin = time.monotonic()
                    os.preadv(fd, [bytearray(4096)], (i * 37 % 4096) * 4096)
                    worst = max(worst, time.monotonic() - begin)
            dev.remove()
    b.measure("longest read during a failover", worst * 1000, "ms", at_most=50)
