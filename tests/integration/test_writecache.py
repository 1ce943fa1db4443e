# SPDX-License-Identifier: GPL-2.0-or-later
"""writecache through the mount: what the cache holds, when it is on the disk, when it is on the origin, and what is refused."""

import errno
import os
import re
import struct
import threading

import pytest

from mounted import SECTOR, pattern, quote

SECTORS = 8192
BLOCK = 8               # sectors, of 4096 bytes
HEAD = struct.Struct("<IIIIQQ")
COUNTS = ("reads", "read_hits", "writes", "hits_uncommitted", "hits_committed", "around", "allocated", "blocked", "flushes",
          "discards")


class Cache:
    """A device c of an origin and a cache file, and words of its status as attributes."""

    def __init__(self, fs, backing, kind="s", options="0", cache=6000, block=4096, origin=None, cache_file=None):
        self.fs, self.origin = fs, origin or backing(SECTORS, pattern(SECTORS, 99))
        self.cache = cache_file or backing(cache)
        self.line = f"0 {SECTORS} writecache {kind} {quote(self.origin)} {quote(self.cache)} {block} {options}"
        self.dev = fs.mkdir("c", self.line)

    def words(self):
        return [int(word) for word in self.dev.status().split()[3:]]

    def counts(self, *names):
        values = dict(zip(COUNTS, self.words()[4:]))
        return tuple(values[name] for name in names)

    def free(self):
        return self.words()[2]

    def write(self, block, count=1, seed=0, sync=False):
        self.dev.pwrite(pattern(count * BLOCK, seed), block * 4096, sync=sync)

    def holds(self, block, count=1, seed=0):
        return self.dev.pread(count * 4096, block * 4096) == pattern(count * BLOCK, seed)

    def below(self, block, count=1):
        with open(self.origin, "rb") as f:
            f.seek(block * 4096)
            return f.read(count * 4096)

    def untouched(self, block, count=1):
        return self.below(block, count) == pattern(SECTORS, 99)[block * 4096:(block + count) * 4096]


@pytest.fixture
def make(fs, backing):
    made = []

    def cache(*args, **kw):
        made.append(Cache(fs, backing, *args, **kw))
        return made[-1]

    yield cache
    if "c" in fs.devices():
        fs["c"].remove()


KINDS = ["s", "p"]


def test_the_sequence_of_the_kernels(make):
    c = make()
    assert c.dev.table() == c.line + "\n"
    assert c.words() == [0, 747, 747, 0] + [0] * 10
    with c.dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        import mmap
        buf = mmap.mmap(-1, 16 * 4096)

        def write(block, count):
            os.pwritev(fd, [memoryview(buf)[:count * 4096]], block * 4096)

        for block in range(4):
            write(block, 1)
        write(2, 1)
        os.fsync(fd)
        write(2, 1)
        write(100, 16)
        write(103, 3)
        write(300, 1)
        os.fsync(fd)
        for block in (0, 1, 2, 3, 500, 501, 502, 100):
            os.preadv(fd, [memoryview(buf)[:4096]], block * 4096)
    assert c.words() == [0, 747, 726, 0, 8, 5, 26, 2, 1, 0, 23, 0, 2, 0]
    c.dev.message("CLEAR_stats")
    assert c.words() == [0, 747, 726, 0] + [0] * 10
