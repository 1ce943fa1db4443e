# SPDX-License-Identifier: GPL-2.0-or-later
"""snapshot, snapshot-origin and snapshot-merge through the mount."""

import os
import random
import struct
import threading

import pytest

from mounted import SECTOR, pattern, quote

MAGIC = 0x70416e53
SIZE = 2048         # sectors of an origin
COW = 4096


class Volume:
    """LVM's quartet: real, cow, snap and base, on two files."""

    def __init__(self, fs, backing, chunk=8, kind="P", size=SIZE, cow=COW, features="", data=None):
        self.fs, self.size, self.chunk, self.kind, self.features = fs, size, chunk, kind, features
        self.old = data if data is not None else pattern(size, seed=1)
        self.origin_file = backing(size, self.old)
        self.cow_file = backing(cow)
        self.real = fs.mkdir("real", f"0 {size} linear {quote(self.origin_file)} 0")
        self.cow = fs.mkdir("cow", f"0 {cow} linear {quote(self.cow_file)} 0")
        self.base = fs.mkdir("base", f"0 {size} linear real 0")
        self.snap = fs.mkdir("snap", self.line())
        self.base.load(f"0 {size} snapshot-origin real")

    def line(self, target="snapshot", cow="cow", kind=None):
        return f"0 {self.size} {target} real {cow} {kind or self.kind} {self.chunk}{self.features}"

    def all(self, dev):
        return dev.pread(self.size * SECTOR, 0)

    def usage(self, dev=None):
        """allocated, total and metadata sectors."""
        words = (dev or self.snap).status().split()
        allocated, total = words[3].split("/")
        return int(allocated), int(total), int(words[4])


def wait_for_merge(dev):
    """The seed's loop, waiting on the file instead of sleeping."""
    import select
    with open(dev.file("status"), encoding="ascii") as f:
        poller = select.poll()
        poller.register(f, select.POLLPRI)
        while True:
            poller.poll(100)
            f.seek(0)
            words = f.read().split()
            assert words[2] == "snapshot-merge", words
            if words[3].split("/")[0] == words[4]:
                return


@pytest.mark.parametrize("kind", ["P", "PO", "N", "p", "po", "n"])
@pytest.mark.parametrize("chunk", [1, 8, 16, 128, 256])
def test_each_sees_its_own(fs, backing, kind, chunk):
    v = Volume(fs, backing, chunk, kind)
    assert v.all(v.snap) == v.old and v.all(v.base) == v.old
    base, snap = bytearray(v.old), bytearray(v.old)
    rng = random.Random(chunk)
    for i in range(40):
        at = rng.randrange(v.size) * SECTOR
        data = os.urandom(min(rng.choice((512, 4096, 65536)), v.size * SECTOR - at))
        if i % 2:
            v.base.pwrite(data, at)
            base[at:at + len(data)] = data
        else:
            v.snap.pwrite(data, at)
            snap[at:at + len(data)] = data
    assert v.all(v.base) == base
    assert v.all(v.snap) == snap
    with open(v.origin_file, "rb") as f:
        assert f.read() == base
