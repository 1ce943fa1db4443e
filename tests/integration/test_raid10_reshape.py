# SPDX-License-Identifier: GPL-2.0-or-later
"""raid10 in another shape: more devices, near and offset, other chunks; in use all the way, cut off, degraded."""

import errno
import os
import random

import pytest

from mounted import SECTOR, pattern, quote, wait_status
from raid import META, Array, change_superblock, check, content, damage, status, superblock, wait_whole

GAP = 256
SIZE = 2048
FORMATS = {"near": "", "offset": "raid10_format offset"}
# layout, chunk, devices; the same afterwards; copies
RESHAPES = [("near", 64, 4, "near", 64, 5, 2), ("near", 16, 3, "near", 16, 4, 2), ("offset", 64, 4, "offset", 64, 6, 2),
            ("near", 32, 6, "near", 32, 9, 3), ("near", 32, 4, "near", 128, 6, 2), ("near", 64, 4, "offset", 64, 4, 2),
            ("offset", 64, 5, "near", 64, 5, 2), ("offset", 16, 4, "offset", 128, 4, 2)]
GROWING = RESHAPES[0:1] + RESHAPES[2:3]


def ids(r):
    return "-".join(map(str, r))


class Shapes:
    """An array's files, its content, and the lines before, to begin and to go on with."""

    def __init__(self, fs, backing, r, size=SIZE, name="r"):
        self.r, self.size, self.name = r, size, name
        old, chunk, before, new, new_chunk, after, copies = r
        most = max(before, after)
        self.meta = [backing(META, name=f"{name}m{i}") for i in range(most)]
        self.data = [backing(size + GAP, name=f"{name}d{i}") for i in range(most)]
        self.held = size * before // copies // new_chunk * new_chunk * SECTOR
        dev = fs.mkdir(name, self.line(old, chunk, before))
        wait_whole(dev)
        self.model = bytearray(random.Random(1).randbytes(self.held))
        dev.pwrite(self.model, 0, sync=True)
        dev.remove()
        params = [f"data_offset {GAP}"]
        if after > before:      # as LVM does: the room is put before the data
            params.insert(0, f"delta_disks {after - before}")
            for path in self.data[:before]:
                was = content(path)[:size * SECTOR]
                with open(path, "r+b") as f:
                    f.write(bytes(GAP * SECTOR) + was)
        self.begin = self.line(new, new_chunk, after, *params)
        self.go_on = self.line(new, new_chunk, after)
        # long enough to be seen on a machine that is busy; and in use, but not for long
        self.slow = self.line(new, new_chunk, after, "min_recovery_rate 1", "max_recovery_rate 20")
        self.steady = self.line(new, new_chunk, after, "min_recovery_rate 4000", "max_recovery_rate 16000")

    def line(self, layout, chunk, devices, *params, missing=()):
        copies = self.r[6]
        words = " ".join([f"raid10_copies {copies}" if copies > 2 else "", FORMATS[layout], *params]).split()
        devs = " ".join("- -" if i in missing else f"{quote(m)} {quote(d)}"
                        for i, (m, d) in list(enumerate(zip(self.meta, self.data)))[:devices])
        return (f"0 {self.size * devices // copies} raid raid10 {1 + len(words)} {chunk} {' '.join(words)} {devices} "
                f"{devs}")

    def scribble(self, dev, seed, count=15, size=None):
        rand = random.Random(seed)
        with dev.open() as fd:
            for _ in range(count):
                n = rand.choice([512, 4096, 65536, 50 * 512])
                at = rand.randrange((size or self.held) // 512 - n // 512 + 1) * 512
                data = rand.randbytes(n)
                os.pwrite(fd, data, at)
                self.model[at:at + n] = data
            os.fsync(fd)

    def same(self, dev):
        return dev.pread(self.held, 0) == self.model


@pytest.mark.parametrize("r", RESHAPES, ids=ids)
def test_reshape(fs, backing, r):
    """In use all the way; it is as large as the line says at the end, and all copies agree, also where it has grown."""
    s = Shapes(fs, backing, r)
    before, after, copies = r[2], r[5], r[6]
    name = "raid10_offset" if r[3 if before == after else 0] == "offset" else "raid10"
    dev = fs.mkdir("r", s.begin)
    assert dev.status().rstrip().split(None, 3)[3] == (
        f"{name} {after} {'a' * after} 0/{s.size * before // copies} reshape 0 {GAP if after > before else 0} -")
    assert s.same(dev)
    s.scribble(dev, 2)
    dev.load(s.slow)
    assert status(dev)["action"] == "reshape"
    for turn in range(3):
        s.scribble(dev, 10 + turn, count=6)
        assert s.same(dev)
    dev.load(s.steady)
    turn = 100
    while status(dev)["action"] == "reshape":
        s.scribble(dev, turn, count=6)
        assert s.same(dev)
        turn += 1
    wait_whole(dev)
    assert s.same(dev)
    s.scribble(dev, 3)
    end = s.size * after // copies
    if after > before:
        assert dev.pread(end * SECTOR - s.held, s.held) == bytes(end * SECTOR - s.held)
        dev.pwrite(pattern(64, 3), (end - 64) * SECTOR, sync=True)
    dev.suspend()
    dev.resume()
    assert status(dev)["ratio"] == f"{end}/{end}" and status(dev)["action"] == "idle"
    assert check(dev) == 0
    dev.remove()
    dev = fs.mkdir("again", s.go_on)
    assert status(dev)["action"] == "idle" and status(dev)["offset"] == ("0" if after > before else str(GAP))
    assert s.same(dev)
    if after > before:
        assert dev.pread(64 * SECTOR, (end - 64) * SECTOR) == pattern(64, 3)
    assert check(dev) == 0


@pytest.mark.parametrize("r", RESHAPES[2:6], ids=ids)
def test_goes_on_after_a_kill(dmfs, backing, r):
    fs = dmfs()
    s = Shapes(fs, backing, r)
    fs.mkdir("r", s.begin).remove()
    for turn in range(3):
        dev = fs.mkdir("r", s.slow)
        s.scribble(dev, turn)
        fs.kill()
        fs.wait()
        fs = dmfs()
    dev = fs.mkdir("r", s.steady)
    assert s.same(dev)
    s.scribble(dev, 7)
    wait_whole(dev)
    assert s.same(dev)
    dev.remove()
    dev = fs.mkdir("again", s.go_on)
    wait_whole(dev)
    assert s.same(dev)
    assert check(dev) == 0


@pytest.mark.parametrize("r", RESHAPES[1:3] + RESHAPES[4:7], ids=ids)
def test_goes_on_inside_a_chunk(fs, backing, r):
    """Where the kernel may have left it.  What moved last is still at its old place."""
    s = Shapes(fs, backing, r)
    fs.mkdir("r", s.begin).remove()
    dev = fs.mkdir("r", s.slow)
    backwards = r[2] == r[5]
    begun = s.held // SECTOR if backwards else 0
    while superblock(s.meta[0])["reshape"] == begun:
        pass
    dev.remove()
    at = superblock(s.meta[0])["reshape"]
    for path in s.meta:
        change_superblock(path, reshape=at + 8 if backwards else at - 8)
    dev = fs.mkdir("r", s.steady)
    assert s.same(dev)
    s.scribble(dev, 7)
    at *= SECTOR
    dev.pwrite(bytes(8192), at - 4096, sync=True)   # on both sides of it
    s.model[at - 4096:at + 4096] = bytes(8192)
    wait_whole(dev)
    assert s.same(dev)
    assert check(dev) == 0


@pytest.mark.parametrize("r", [*GROWING, RESHAPES[5]], ids=ids)
def test_a_device_fails(dmfs, backing, r):
    """It goes on without it.  A device that is back is rebuilt when all has moved, and not believed before."""
    fs = dmfs()
    s = Shapes(fs, backing, r)

    def stand(fs):
        legs = [fs.mkdir(f"leg{i}", f"0 {s.size + GAP} linear {quote(path)} 0") for i, path in enumerate(s.data)]
        return legs

    fs.mkdir("r", s.begin).remove()
    legs, line = stand(fs), s.slow
    for i, path in enumerate(s.data):
        line = line.replace(quote(path), f"leg{i}")
    dev = fs.mkdir("r", line)
    legs[1].load(f"0 {s.size + GAP} error")
    s.scribble(dev, 2)
    assert status(dev)["health"][1] == "D"
    assert s.same(dev)
    legs[1].load(f"0 {s.size + GAP} linear {quote(s.data[1])} 0")
    dev.suspend()
    dev.resume()
    assert status(dev)["health"][1] == "a" and status(dev)["action"] == "reshape"
    s.scribble(dev, 3)
    fs.kill()
    fs.wait()
    fs = dmfs()
    stand(fs)
    dev = fs.mkdir("r", line)
    assert s.same(dev)
    s.scribble(dev, 4)
    assert status(dev)["action"] == "reshape"
    dev.load(line.replace("max_recovery_rate 20", "max_recovery_rate 0"))
    wait_status(dev, " idle ")
    assert s.same(dev)
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert s.same(dev)
    assert check(dev) == 0


@pytest.mark.parametrize("r", GROWING, ids=ids)
def test_finished_by_the_kernel(fs, backing, r):
    """Which leaves it as large as it was; it grows when it is loaded again, and what is new there is synchronised."""
    s = Shapes(fs, backing, r)
    fs.mkdir("r", s.begin).remove()
    dev = fs.mkdir("r", s.go_on)
    wait_whole(dev)
    dev.remove()
    for path in s.meta:
        change_superblock(path, array_sectors=s.held // SECTOR)
    damage(s.data[1], s.size - 64, 64)
    dev = fs.mkdir("r", s.go_on)
    wait_whole(dev)
    assert check(dev) == 0 and s.same(dev)
    end = s.size * r[5] // r[6]
    dev.pwrite(pattern(64, 3), (end - 64) * SECTOR, sync=True)
    assert dev.pread(64 * SECTOR, (end - 64) * SECTOR) == pattern(64, 3)


def test_new_devices_that_do_not_know_of_it(fs, backing):
    """The power failed while the superblocks were written for the first time; they join.  Not so later."""
    s = Shapes(fs, backing, RESHAPES[2])
    fs.mkdir("r", s.begin).remove()
    for path in s.meta[4:]:
        with open(path, "r+b") as f:
            f.write(bytes(4096))
    dev = fs.mkdir("r", s.go_on)
    wait_whole(dev)
    assert s.same(dev) and check(dev) == 0
    dev.remove()
    with open(s.meta[4], "r+b") as f:
        f.write(bytes(4096))
    dev = fs.mkdir("r")
    with pytest.raises(OSError):
        dev.load(s.go_on)
    assert "new device(s) injected" in dev.error()


def refuse(fs, line, text, code=errno.EINVAL):
    dev = fs.mkdir("bad")
    with pytest.raises(OSError) as e:
        dev.load(line)
    assert e.value.errno == code and text in dev.error(), dev.error()
    dev.remove()


def test_what_is_refused(fs, backing):
    """As the kernel does; and what it takes without doing it, as nothing is written by that either."""
    far = Array(backing, "raid10", 5, 2048, 64, name="far")
    first = list(zip(far.meta, far.data))
    dev = fs.mkdir("far", far.line("raid10_format far", pairs=first[:4], length=4096))
    wait_whole(dev)
    dev.remove()
    for words in (["data_offset 64"], ["raid10_format offset", "data_offset 64"]):
        refuse(fs, far.line(*words, pairs=first[:4], length=4096), "raid10_far cannot be reshaped")
    refuse(fs, far.line("raid10_format far", "delta_disks 1", "data_offset 64", pairs=first, length=5120),
           "raid10_far cannot be reshaped")

    s = Shapes(fs, backing, RESHAPES[0], name="s")
    kept = [content(path) for path in s.meta + s.data]
    at, gap = "near", f"data_offset {GAP}"
    refuse(fs, s.line(at, 64, 5, "delta_disks 2", gap), "new device(s) injected into existing raid set")
    refuse(fs, s.line(at, 64, 5, gap), "new device(s) injected into existing raid set")
    refuse(fs, s.line(at, 64, 4, "delta_disks -1", gap), "devices can only be added")
    refuse(fs, s.line(at, 64, 5, "delta_disks 1"), "data_offset alone")
    refuse(fs, s.line(at, 64, 5, "delta_disks 1", "data_offset 64", gap), "data_offset")
    refuse(fs, s.line(at, 64, 5, "delta_disks 1", "data_offset 32"), "No space for forward reshape", errno.ENOSPC)
    refuse(fs, s.line(at, 64, 5, "delta_disks 1", "data_offset 512"), "No space for forward reshape", errno.ENOSPC)
    refuse(fs, s.line(at, 4096, 4, gap), "Reshape check failed")
    refuse(fs, s.line(at, 64, 5, "delta_disks 1", gap).replace("0 5120", "0 4096"), "not divisible")
    refuse(fs, s.line("offset", 64, 4, "raid10_copies 4", gap).replace("0 4096", "0 2048"), "it has 2 copies, not 4")
    assert [content(path) for path in s.meta + s.data] == kept

    fs.mkdir("s", s.begin).remove()
    refuse(fs, s.begin, "Reshape requested but raid set is still reshaping")
    refuse(fs, s.line(at, 64, 5, "rebuild 1"), "'rebuild' specified while raid set is being reshaped")
    refuse(fs, s.line(at, 64, 4), "Can't resize a reshaping raid set", errno.EPERM)
    dead = s.line(at, 64, 5, missing=(0, 1))
    refuse(fs, dead, "Insufficient redundancy")
    refuse(fs, s.line(at, 64, 5, missing=(1, 2)), "Insufficient redundancy")    # the new shape alone needs one of them
    for change, text in (({"reshape": 4104}, "reshape_position 4104"), ({"new_level": 5}, "Invalid superblocks"),
                         ({"new_layout": 0x40201}, "cannot get layout"), ({"new_layout": 0x103}, "cannot get layout"),
                         ({"new_data_offset": 248, "sectors": 2056}, "No space for forward reshape"),
                         ({"new_chunk": 1024}, "No space for forward reshape"), ({"flags": 1, "delta": 9}, "Invalid"),
                         ({"level": 5, "layout": 2, "new_level": 10}, "Reshape check failed: level 5")):
        was = [content(path) for path in s.meta]
        for path in s.meta:
            change_superblock(path, **change)
        dev = fs.mkdir("bad")
        with pytest.raises(OSError):
            dev.load(s.go_on)
        assert text in dev.error(), (change, dev.error())
        dev.remove()
        for path, old in zip(s.meta, was):
            with open(path, "wb") as f:
                f.write(old)
    dev = fs.mkdir("s", s.go_on)
    wait_whole(dev)
    assert s.same(dev)
