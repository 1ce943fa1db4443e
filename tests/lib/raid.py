# SPDX-License-Identifier: GPL-2.0-or-later
"""raid arrays for tests: their files, lines, status and superblocks."""

import os
import random
import struct

from mounted import SECTOR, quote, wait_status

META = 88       # sectors of a metadata device here
NONE = (1 << 64) - 1


class Array:
    """The files of an array, and its lines."""

    def __init__(self, backing, kind, disks, per_disk, chunk=64, data=None, meta=True, name="a"):
        self.kind, self.disks, self.per_disk, self.chunk = kind, disks, per_disk, chunk
        self.meta = [backing(META, name=f"{name}m{i}") for i in range(disks)] if meta else [None] * disks
        self.data = [backing(per_disk, data and data(i), name=f"{name}d{i}") for i in range(disks)]

    @property
    def data_disks(self):
        if self.kind.startswith("raid1"):
            return None
        return self.disks - {"0": 0, "4": 1, "5": 1, "6": 2}[self.kind[4]]

    def length(self, copies=2):
        if self.kind == "raid1":
            return self.per_disk
        if self.kind.startswith("raid10"):
            return self.per_disk * self.disks // copies
        return self.per_disk * self.data_disks

    def line(self, *params, missing=(), length=None, copies=2, names=quote, kind=None, pairs=None):
        words = [str(p) for p in params]
        chunk = 0 if self.kind == "raid1" and kind is None else self.chunk
        pairs = pairs or list(zip(self.meta, self.data))
        devs = " ".join("- -" if i in missing else f"{names(m) if m else '-'} {names(d)}"
                        for i, (m, d) in enumerate(pairs))
        count = 1 + sum(len(w.split()) for w in words)
        return " ".join(["0", str(length or self.length(copies)), "raid", kind or self.kind, str(count), str(chunk),
                         *words, str(len(pairs)), devs])


def status(dev):
    """The fields of a raid's status line."""
    words = dev.status().split()
    names = ("type", "disks", "health", "ratio", "action", "mismatches", "offset", "journal")
    return dict(zip(names, words[3:]))


def wait_whole(dev):
    """Until all devices are in sync and nothing goes on."""
    return wait_status(dev, r" raid \S+ \d+ A+ (\d+)/\1 idle ")


def check(dev):
    """Runs a check and returns the mismatches."""
    dev.message("check")
    wait_status(dev, " idle ")
    return int(status(dev)["mismatches"])


FIELDS = "<4sIIIQQQQIIIIQIIIiQQQQQQQI"
NAMES = ("magic features disks index events failed recovery resync level layout chunk flags reshape new_level new_layout "
         "new_chunk delta array_sectors data_offset new_data_offset sectors failed1 failed2 failed3 incompat").split()


def superblock(path):
    with open(path, "rb") as f:
        return dict(zip(NAMES, struct.unpack(FIELDS, f.read(struct.calcsize(FIELDS)))))


def change_superblock(path, **fields):
    sb = superblock(path) | fields
    with open(path, "r+b") as f:
        f.write(struct.pack(FIELDS, *(sb[name] for name in NAMES)))


def dirty_regions(path, regions):
    """The set bits of a metadata device's bitmap."""
    with open(path, "rb") as f:
        f.seek(4096)
        image = f.read(256 + (regions + 7) // 8)
    assert image[:4] == b"bitm", image[:4]
    return {r for r in range(regions) if image[256 + r // 8] >> r % 8 & 1}


def content(path):
    with open(path, "rb") as f:
        return f.read()


def damage(path, sector, sectors=1):
    with open(path, "r+b") as f:
        f.seek(sector * SECTOR)
        old = f.read(sectors * SECTOR)
        f.seek(sector * SECTOR)
        f.write(bytes(b ^ 0x5a for b in old))


def scribble(dev, seed, count=60, size=None, model=None):
    """Random writes, and what the device must then hold."""
    rand = random.Random(seed)
    size = size or dev.size()
    model = model if model is not None else bytearray(dev.pread(size, 0))
    with dev.open() as fd:
        for _ in range(count):
            n = rand.choice([1, 7, 8, 16, 100, 300]) * SECTOR
            at = rand.randrange(size // SECTOR) * SECTOR
            data = rand.randbytes(min(n, size - at))
            os.pwrite(fd, data, at)
            model[at:at + len(data)] = data
        os.fsync(fd)
    return model
