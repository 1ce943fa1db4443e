# SPDX-License-Identifier: GPL-2.0-or-later
"""raid through the mount: every type made, used, degraded, rebuilt, scrubbed; what is refused."""

import errno
import os
import random
import threading

import pytest

from mounted import SECTOR, pattern, quote
from raid import (Array, NONE, change_superblock, check, content, damage, dirty_regions, status, superblock, wait_status,
                  wait_whole)

MIRRORS = [("raid1", 2, ()), ("raid1", 3, ()), ("raid10", 2, ()), ("raid10", 3, ()), ("raid10", 4, ()),
           ("raid10_near", 4, ("raid10_copies 4",)), ("raid10", 4, ("raid10_format far",)),
           ("raid10", 5, ("raid10_format far",)), ("raid10", 4, ("raid10_format offset",)),
           ("raid10", 3, ("raid10_format offset", "raid10_copies 3"))]
STRIPES = [("raid4", 3, ()), ("raid5_n", 4, ()), ("raid5_la", 4, ()), ("raid5_ra", 3, ()), ("raid5_ls", 4, ()),
           ("raid5_ls", 2, ()), ("raid5_rs", 5, ()), ("raid6_zr", 5, ()), ("raid6_nr", 4, ()), ("raid6_nc", 6, ()),
           ("raid6_n_6", 5, ()), ("raid6_la_6", 5, ()), ("raid6_ra_6", 4, ()), ("raid6_ls_6", 6, ()),
           ("raid6_rs_6", 5, ())]
TYPES = [("raid0", 3, ()), *MIRRORS, *STRIPES]
SIZE = 3840     # sectors of a device: whole chunks for 2, 3, 4 and 5 copies


def ids(t):
    return "-".join([t[0], str(t[1]), *t[2]]).replace(" ", "=")


def copies_of(params):
    return next((int(p.split()[1]) for p in params if p.startswith("raid10_copies")), 2)


def redundancy(kind, disks, params):
    return {"0": 0, "4": 1, "5": 1, "6": 2}.get(kind[4:5]) if not kind.startswith("raid1") else (
        disks - 1 if kind == "raid1" else copies_of(params) - 1)


def make(fs, backing, t, name="r", size=SIZE, chunk=64, extra=()):
    kind, disks, params = t
    a = Array(backing, kind, disks, size, chunk, name=name)
    a.params, a.copies = params, copies_of(params)
    line = a.line(*params, *extra, copies=a.copies)
    return a, fs.mkdir(name, line)


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


@pytest.mark.parametrize("t", TYPES, ids=ids)
def test_make_use_reload(fs, backing, t):
    a, dev = make(fs, backing, t)
    wait_whole(dev)
    model = scribble(dev, 1)
    assert dev.pread(len(model), 0) == model
    if t[0] != "raid0":
        assert check(dev) == 0
    line = dev.table()
    dev.remove()
    dev = fs.mkdir("again", line.strip())
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model
    assert superblock(a.meta[0])["resync"] == NONE


@pytest.mark.parametrize("t", MIRRORS + STRIPES, ids=ids)
def test_degraded_and_rebuilt(fs, backing, t):
    a, dev = make(fs, backing, t)
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.remove()
    for gone in range(a.disks):
        dev = fs.mkdir(f"without{gone}", a.line(*a.params, copies=a.copies, missing=(gone,)))
        assert status(dev)["health"] == "".join("-" if i == gone else "A" for i in range(a.disks))
        assert dev.pread(len(model), 0) == model
        scribble(dev, gone + 2, model=model)
        assert dev.pread(len(model), 0) == model
        dev.remove()
        damage(a.data[gone], 0, SIZE)
        dev = fs.mkdir(f"rebuilt{gone}", a.line(*a.params, f"rebuild {gone}", copies=a.copies))
        wait_whole(dev)
        assert dev.pread(len(model), 0) == model
        assert check(dev) == 0
        dev.remove()
