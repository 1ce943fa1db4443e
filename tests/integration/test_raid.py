# SPDX-License-Identifier: GPL-2.0-or-later
"""raid through the mount: every type made, used, degraded, rebuilt, scrubbed; what is refused."""

import errno
import mmap
import os
import random
import threading
import time

import pytest

from mounted import SECTOR, pattern, quote
from raid import (Array, NONE, change_superblock, check, content, damage, dirty_regions, scribble, status, superblock,
                  wait_status, wait_whole)

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


@pytest.mark.parametrize("t", [t for t in STRIPES if t[0].startswith("raid6")], ids=ids)
def test_two_lost(fs, backing, t):
    """raid6 without any two: read, written, rebuilt."""
    a, dev = make(fs, backing, t, size=1024, chunk=16)
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.remove()
    pairs = [(i, j) for i in range(a.disks) for j in range(i)]
    for n, (i, j) in enumerate(random.Random(7).sample(pairs, 4)):
        dev = fs.mkdir(f"without{n}", a.line(missing=(i, j)))
        assert dev.pread(len(model), 0) == model
        scribble(dev, n, model=model, count=30)
        assert dev.pread(len(model), 0) == model
        dev.remove()
        damage(a.data[i], 0, 1024)
        damage(a.data[j], 0, 1024)
        dev = fs.mkdir(f"rebuilt{n}", a.line(f"rebuild {min(i, j)}", f"rebuild {max(i, j)}"))
        wait_whole(dev)
        assert dev.pread(len(model), 0) == model
        assert check(dev) == 0
        dev.remove()


# --- devices that fail under I/O ----------------------------------------------------------------


class Stack:
    """An array on dmfs devices that can be made to fail."""

    def __init__(self, fs, backing, t, size=SIZE, chunk=64, params=()):
        self.fs, self.size = fs, size
        kind, disks, own = t
        self.a = Array(backing, kind, disks, size, chunk)
        self.a.copies = copies_of(own)
        self.legs = [fs.mkdir(f"leg{i}", f"0 {size} linear {quote(self.a.data[i])} 0") for i in range(disks)]
        self.line = self.a.line(*own, *params, copies=self.a.copies,
                                pairs=list(zip(self.a.meta, (f"leg{i}" for i in range(disks)))))
        self.dev = fs.mkdir("r", self.line)

    def leg(self, i, target):
        self.legs[i].load(f"0 {self.size} {target}")

    def fail(self, i):
        self.leg(i, "error")

    def mend(self, i):
        self.leg(i, f"linear {quote(self.a.data[i])} 0")

    def health(self):
        return status(self.dev)["health"]


FAILING = [("raid1", 2, ()), ("raid10", 4, ()), ("raid10", 4, ("raid10_format far",)), ("raid4", 3, ()),
           ("raid5_ls", 4, ()), ("raid6_zr", 5, ()), ("raid6_ls_6", 5, ())]


@pytest.mark.parametrize("t", FAILING, ids=ids)
def test_fails_and_comes_back(fs, backing, t):
    """A device that fails a write is out, with an event; a suspend and resume brings it back, by the bitmap alone."""
    s = Stack(fs, backing, t, params=("region_size 256",))
    dev = s.dev
    wait_whole(dev)
    model = scribble(dev, 1)
    events = int(dev.info()["Event number"])
    s.fail(1)
    scribble(dev, 2, model=model, size=200 * SECTOR)
    assert s.health()[1] == "D" and s.health().count("D") == 1
    assert int(dev.info()["Event number"]) == events + 1
    assert superblock(s.a.meta[0])["failed"] == 2
    assert dev.pread(len(model), 0) == model
    s.mend(1)
    assert s.health()[1] == "D"
    before = content(s.a.data[1])
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model
    assert check(dev) == 0
    assert superblock(s.a.meta[0])["failed"] == 0
    after = content(s.a.data[1])
    changed = {i // 512 for i in range(0, len(after), 4096) if before[i:i + 4096] != after[i:i + 4096]}
    assert changed and max(changed) * SECTOR < s.size * SECTOR


@pytest.mark.parametrize("t", FAILING, ids=ids)
def test_fail_stop(fs, backing, t):
    """Without superblocks of its own, and one device failing: nothing is answered that another state would lack."""
    kind, disks, params = t
    legs = [fs.mkdir(f"leg{i}", f"0 {SIZE} linear {quote(backing(SIZE))} 0") for i in range(disks)]
    words = [w for p in params for w in p.split()] + ["nosync", "fail_stop"]
    a = Array(backing, kind, disks, SIZE, meta=False)
    dev = fs.mkdir("r", a.line(*words, pairs=[(None, f"leg{i}") for i in range(disks)], names=str))
    size = a.length()
    assert set(status(dev)["health"]) == {"A"}
    model = scribble(dev, 1)
    legs[1].load(f"0 {SIZE} error")
    for at in (0, 64, 128, 192):
        with dev.open() as fd:
            try:
                os.pwrite(fd, pattern(64), at * SECTOR)
                os.fsync(fd)
            except OSError as e:
                assert e.errno == errno.EIO
                continue
        model[at * SECTOR:(at + 64) * SECTOR] = pattern(64)    # none of it was to be on the one that fails
        assert status(dev)["health"][1] == "A"
    assert status(dev)["health"].count("D") == 1 and "fail_stop" in dev.table()
    with pytest.raises(OSError), dev.open() as fd:
        os.fsync(fd)
    at = 1024 * SECTOR
    assert dev.pread(size * SECTOR - at, at) == model[at:]
    s = fs.mkdir("other")
    with pytest.raises(OSError):
        s.load(f"0 {SIZE} raid raid1 2 0 fail_stop 2 {quote(backing(100))} leg0 - leg1")
    assert "state is kept elsewhere" in s.read("error")


@pytest.mark.parametrize("t", FAILING, ids=ids)
def test_read_errors_are_mended(fs, backing, t):
    """Bad blocks that a write mends (dust): reads go on, from the others, and the blocks are good again."""
    s = Stack(fs, backing, t)
    wait_whole(s.dev)
    model = scribble(s.dev, 1)
    s.leg(1, f"dust {quote(s.a.data[1])} 0 512")
    for block in (0, 5, 64, 65, 66, 700):
        s.legs[1].message(f"addbadblock {block}")
    s.legs[1].message("enable")
    for _ in range(3):      # a mirror reads the one or the other
        assert s.dev.pread(len(model), 0) == model
    assert check(s.dev) == 0
    assert s.legs[1].message("countbadblocks").startswith("countbadblocks: 0 ")
    assert "D" not in s.health()
    s.leg(1, f"linear {quote(s.a.data[1])} 0")
    assert s.dev.pread(len(model), 0) == model
    assert check(s.dev) == 0


def test_the_last_leg_stays(fs, backing):
    """With nothing left to take its place a device that fails is not dropped: requests fail, and it may come back."""
    s = Stack(fs, backing, ("raid1", 2, ()))
    wait_whole(s.dev)
    s.dev.pwrite(pattern(8), 0, sync=True)
    s.fail(0)
    s.dev.pwrite(pattern(8, 2), 0, sync=True)
    s.fail(1)
    with pytest.raises(OSError) as e:
        s.dev.pwrite(pattern(8, 3), 0, sync=True)
    assert e.value.errno == errno.EIO
    assert s.health() == "DA"
    s.mend(1)
    assert s.dev.pread(8 * SECTOR, 0) in (pattern(8, 2), pattern(8, 3))


# --- the recipes ---------------------------------------------------------------------------------------


@pytest.fixture
def mounted_array(fs, backing, sh, tool, work):
    """mount(DEV): a file system with a file on a device, mounted; and how to run a recipe."""
    undo = []

    def mount(dev):
        sh('mke2fs -q -F -t ext4 "$1"; mkdir -p mnt', dev.image)
        loop = sh('losetup --find --show "$1"', dev.image).stdout.strip()
        undo.append(f"losetup -d {loop}")
        sh(f"mount {loop} mnt && cp {__file__} mnt/file && sync -f mnt")
        undo.insert(0, "umount mnt")
        return loop

    def recipe(name, *args):
        return sh(f'exec {TOP}/contrib/examples/{name} "$@"', *args, DMFS_MOUNT=fs.mountpoint,
                  PATH=f"{os.path.dirname(tool('dmfsctl'))}:{os.environ['PATH']}:/usr/sbin:/sbin")

    yield mount, recipe
    for command in undo:
        sh(command, check=False)


TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


@pytest.mark.root
def test_recipe_replace(fs, backing, sh, mounted_array):
    """An array loses a file under a mounted file system, goes on, gets a new one, and is whole and scrubbed."""
    mount, recipe = mounted_array
    s = Stack(fs, backing, ("raid5_ls", 4, ()), size=16384)
    mount(s.dev)
    wait_whole(s.dev)
    s.fail(2)
    sh(f"cp {__file__} mnt/more && sync -f mnt")
    assert s.health() == "AADA"
    recipe("raid-replace", "r", "2", backing(88, name="new meta"), backing(16384, name="new data"))
    assert s.health() == "AAAA" and status(s.dev)["mismatches"] == "0"
    sh(f"cmp {__file__} mnt/file && cmp {__file__} mnt/more && umount mnt && e2fsck -fn \"$1\"", s.dev.image)


@pytest.mark.root
@pytest.mark.parametrize("t", [("raid5_ls", 3, ()), ("raid10", 4, ("raid10_format offset",))], ids=ids)
def test_recipe_grow(fs, backing, sh, work, mounted_array, t):
    """One device more under a mounted file system, which then uses the room."""
    mount, recipe = mounted_array
    s = Stack(fs, backing, t, size=16384)
    loop = mount(s.dev)
    wait_whole(s.dev)
    before = s.dev.size()
    recipe("raid-grow", "r", backing(88, name="new meta"), os.path.join(work, "new data"))
    assert s.dev.size() == (before // 2 * 3 if t[1] == 3 else before // 4 * 5)
    wait_status(s.dev, " idle ")
    assert status(s.dev)["disks"] == str(t[1] + 1)
    s.dev.suspend()
    s.dev.resume()
    wait_whole(s.dev)
    assert check(s.dev) == 0
    sh(f"cmp {__file__} mnt/file && cp {__file__} mnt/more && umount mnt")
    sh('e2fsck -fp "$1" && resize2fs "$1" && e2fsck -fn "$1"', s.dev.image)
    sh(f"losetup -c {loop} && mount {loop} mnt && cmp {__file__} mnt/more")
    assert os.statvfs(os.path.join(work, "mnt")).f_blocks * 1024 > before


# --- journals ----------------------------------------------------------------------------------------------

JOURNALED = [("raid4", 3, ()), ("raid5_ls", 4, ()), ("raid6_zr", 5, ()), ("raid6_ls_6", 4, ())]
MODES = ["", "journal_mode writethrough", "journal_mode writeback"]


def journaled(backing, t, mode, size=SIZE, name="r"):
    a = Array(backing, t[0], t[1], size, 64, name=name)
    log = backing(16384, name=f"{name}log")
    return a, log, [f"journal_dev {quote(log)}", *([mode] if mode else [])]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", JOURNALED, ids=ids)
def test_journal(fs, backing, t, mode):
    a, log, params = journaled(backing, t, mode)
    dev = fs.mkdir("r", a.line(*params))
    assert status(dev)["journal"] == ("a" if "back" in mode else "A")
    assert f" {' '.join(params)} " in dev.table()
    wait_whole(dev)
    model = scribble(dev, 1, count=300)     # more than the log has room for
    assert dev.pread(len(model), 0) == model
    assert check(dev) == 0
    dev.suspend()
    dev.resume()
    scribble(dev, 2, model=model)
    dev.remove()
    dev = fs.mkdir("again", a.line(*params))
    assert status(dev)["action"] == "idle"
    assert dev.pread(len(model), 0) == model
    assert check(dev) == 0
    # without the journal it is not the same array
    dev.remove()
    fs.mkdir("bare").refuse(a.line() + "\n", match="bitmap file superblock")


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("t", JOURNALED, ids=ids)
def test_journal_after_a_kill(dmfs, backing, t, mode):
    """Killed while it is written, then without a device: what was flushed is there, and the parity is right."""
    a, log, params = journaled(backing, t, mode, size=1024)
    fs = dmfs()
    dev = fs.mkdir("r", a.line(*params))
    wait_whole(dev)
    model = scribble(dev, 1)
    for turn in range(3):
        scribble(dev, 10 + turn, count=30, model=model)
        fs.kill()
        fs.wait()
        fs = dmfs()
        dev = fs.mkdir("r", a.line(*params))
        assert status(dev)["action"] == "idle"
        assert dev.pread(len(model), 0) == model
        assert check(dev) == 0
    dev.remove()
    dev = fs.mkdir("r", a.line(*params, missing=(1,)))
    assert dev.pread(len(model), 0) == model


def test_journal_that_fails(fs, backing):
    a, log, _ = journaled(backing, ("raid5_ls", 3, ()), "")
    jour = fs.mkdir("jour", f"0 16384 linear {quote(log)} 0")
    dev = fs.mkdir("r", a.line("journal_dev jour"))
    wait_whole(dev)
    model = scribble(dev, 1)
    jour.load("0 16384 error")
    with pytest.raises(OSError) as e:
        dev.pwrite(pattern(8), 0, sync=True)
    assert e.value.errno == errno.EIO
    assert status(dev)["journal"] == "D"
    assert dev.pread(len(model), 0) == model


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.fixture
def whole(fs, backing):
    """A raid5 array that has been used, not loaded now."""
    a, dev = make(fs, backing, ("raid5_ls", 4, ()), size=1024)
    wait_whole(dev)
    scribble(dev, 1, count=5)
    dev.remove()
    return a


def refuse(fs, a, text, *params, code=errno.EINVAL, **kw):
    """A line is refused with a text, and nothing is written."""
    before = [content(path) for path in (*a.meta, *a.data)]
    name = f"bad{len(fs.devices())}"
    dev = fs.mkdir(name)
    dev.refuse(a.line(*params, **kw) + "\n", code=code, match=text)
    dev.remove()
    assert [content(path) for path in (*a.meta, *a.data)] == before


@pytest.mark.parametrize("change,text", [
    ({"features": 3}, "Unknown flag.s. in compatible feature flags of device 1"),
    ({"incompat": 1}, "No incompatible feature flags supported yet, device 1"),
    ({"index": 2}, "Cannot change device positions in raid set: device 1 was number 2"),
    ({"index": 4000000000}, "Cannot change device positions"),
    ({"layout": 3}, "Invalid superblocks: device 1 is of an array with level 5, layout 0x3"),
    ({"chunk": 32}, "Invalid superblocks"), ({"disks": 3}, "Invalid superblocks"), ({"level": 6}, "Invalid superblocks"),
    ({"data_offset": 64}, "Invalid superblocks: data offsets of device 1"),
], ids=str)
def test_superblocks_that_disagree(fs, whole, change, text):
    change_superblock(whole.meta[1], **change)
    refuse(fs, whole, text)


@pytest.mark.parametrize("change,text", [
    ({"level": 7, "new_level": 7}, "Invalid superblocks"), ({"layout": 77}, "Invalid superblocks"),
    ({"chunk": 33}, "Invalid superblocks"), ({"chunk": 0}, "Invalid superblocks"),
    ({"disks": 1 << 31}, "Invalid superblocks"), ({"disks": 0}, "Invalid superblocks"),
    ({"data_offset": 8}, "Component device.s. too small"), ({"data_offset": NONE}, "Component device.s. too small"),
    ({"flags": 1, "reshape": 7, "delta": 5}, "Invalid superblocks"),
    ({"flags": 1, "reshape": 7}, "reshape_position 7 is not at a step"),
    ({"flags": 1, "reshape": 0}, "No space for forward reshape"),
], ids=str)
def test_superblocks_that_make_no_sense(fs, whole, change, text):
    for path in whole.meta:
        change_superblock(path, **change)
    refuse(fs, whole, text, code=(errno.EINVAL, errno.ENOSPC))


def test_arrays_that_are_not_whole(fs, whole, backing):
    refuse(fs, whole, "Insufficient redundancy to activate array: 2 of 4", missing=(0, 2))
    refuse(fs, whole, "Component device.s. too small: device 0", length=whole.length() + 3 * 64)
    refuse(fs, whole, "2 of 4 devices are missing", "rebuild 1", missing=(2,))
    refuse(fs, whole, "Insufficient redundancy", "rebuild 1", "rebuild 2")
    kept = content(whole.meta[1])
    with open(whole.meta[1], "wb") as f:
        f.truncate(88 * SECTOR)
    refuse(fs, whole, "1 new device.s. injected into existing raid set without")
    refuse(fs, whole, "1 'rebuild' devices cannot be injected into a raid set with 1 other", "rebuild 0")
    with open(whole.meta[1], "wb") as f:
        f.write(kept)
    # of another array: the same shape, but not its place
    refuse(fs, whole, "Cannot change device positions",
           pairs=[(m, d) for m, d in zip(whole.meta, whole.data)][::-1])
    # not synchronised, and a device gone
    for path in whole.meta:
        change_superblock(path, resync=64)
    refuse(fs, whole, "cannot start dirty degraded array", code=errno.EIO, missing=(1,))


@pytest.mark.parametrize("kind,disks,new", [("raid5_n", 4, (3,)), ("raid4", 4, (0,)), ("raid6_n_6", 5, (3, 4)),
                                            ("raid6_ls_6", 5, (4,))])
def test_parity_for_what_had_none(fs, backing, kind, disks, new):
    """Devices that are to be made anew may be of an array that was never in sync if they have parity alone."""
    a = Array(backing, kind, disks, SIZE, 64)
    kept = {i: pattern(SIZE, i) for i in range(disks) if i not in new}
    for i, data in kept.items():
        with open(a.data[i], "r+b") as f:
            f.write(data)
    rebuild = [f"rebuild {i}" for i in new]
    other = next(iter(kept))
    refuse(fs, a, "cannot start dirty degraded array", f"rebuild {other}", *rebuild[1:], code=errno.EIO)
    dev = fs.mkdir("r", a.line(*rebuild))
    wait_whole(dev)
    if kind != "raid6_ls_6":    # the others have nothing but data
        assert all(content(a.data[i])[:SIZE * SECTOR] == data for i, data in kept.items())
    assert check(dev) == 0


def test_bitmaps_that_make_no_sense(fs, whole):
    def patch(at, data):
        for path in whole.meta:
            with open(path, "r+b") as f:
                f.seek(4096 + at)
                f.write(data)

    kept = [content(path) for path in whole.meta]
    for at, data, text in ((0, b"bitx", "bad magic"), (4, b"\x63", "unrecognized superblock version 99"),
                           (52, b"\x01\x03\0\0", "not a power of 2"), (52, b"\0\0\0\0", "not a power of 2"),
                           (56, b"\0\0\0\0", "daemon sleep"), (60, b"\xff\xff\xff\x7f", "write-behind"),
                           (40, b"\xff" * 8, "bitmap cut short")):
        patch(at, data)
        refuse(fs, whole, text)
        for path, good in zip(whole.meta, kept):
            with open(path, "wb") as f:
                f.write(good)
    for path in whole.meta:
        os.truncate(path, 4096)
    refuse(fs, whole, "bitmap cut short")
    for path in whole.meta:
        os.truncate(path, 0)
    refuse(fs, whole, "superblock|Insufficient|too small|new device")


def test_a_device_that_missed_events_is_rebuilt(fs, whole):
    """It is not called failed, but it is older than one lost update explains."""
    sb = superblock(whole.meta[2])
    change_superblock(whole.meta[2], events=sb["events"] - 3)
    damage(whole.data[2], 0, 1024)
    dev = fs.mkdir("r", whole.line())
    wait_whole(dev)
    assert check(dev) == 0


# --- in the background ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [("raid1", 2, ()), ("raid5_ls", 3, ()), ("raid10", 4, ())], ids=ids)
def test_more_of_each_device(fs, backing, t):
    """What is new is synchronised, also where it shares a region of the bitmap with what was in sync."""
    a = Array(backing, t[0], t[1], 4096, data=lambda i: random.Random(i).randbytes(4096 * SECTOR))
    length = a.length()
    dev = fs.mkdir("r", a.line(length=length // 2))
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.load(a.line(length=length))
    wait_whole(dev)
    assert status(dev)["ratio"].endswith(f"/{length if t[0] == 'raid10' else 4096}")
    assert dev.pread(len(model), 0) == model
    assert check(dev) == 0


def test_goes_on_after_a_remount(dmfs, backing, work):
    """A rebuild that a restart interrupts goes on where it was, and a line with `rebuild` does not begin it anew."""
    state = os.path.join(work, "state")
    fs = dmfs(state)
    a, dev = make(fs, backing, ("raid1", 2, ()), size=32768)
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.load(a.line("rebuild 1", "max_recovery_rate 4000"))
    while int(status(dev)["ratio"].split("/")[0]) < 8192:
        pass
    assert status(dev)["health"] == "Aa" and status(dev)["action"] == "recover"
    fs.unmount()
    reached = superblock(a.meta[1])["recovery"]
    assert 0 < reached < 32768
    fs = dmfs(state)
    dev = fs["r"]
    assert int(status(dev)["ratio"].split("/")[0]) >= reached
    assert " rebuild 1 " in dev.table()
    dev.message("frozen")
    assert status(dev)["action"] == "frozen"
    wait_status(dev, " frozen ")
    dev.message("idle")
    dev.load(a.line())
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model and check(dev) == 0
    fs.unmount()


def test_messages(fs, backing):
    a, dev = make(fs, backing, ("raid1", 2, ()), extra=("max_recovery_rate 100",))
    assert status(dev)["action"] == "resync" and status(dev)["health"] == "aa"
    for word in ("check", "repair", "resync", "recover", "nonsense"):
        with pytest.raises(OSError) as e:
            dev.message(word)
        assert e.value.errno == errno.EBUSY
    dev.message("frozen")
    assert status(dev)["action"] == "frozen"
    dev.message("idle")
    assert status(dev)["action"] == "resync"
    dev.load(a.line())
    wait_whole(dev)
    with pytest.raises(OSError) as e:
        dev.message("nonsense")
    assert e.value.errno == errno.EINVAL
    damage(a.data[1], 100)
    dev.message("check extra words")
    wait_status(dev, " idle 128 ")
    dev.message("repair")
    wait_status(dev, " idle 0 ")
    assert check(dev) == 0 and content(a.data[0]) == content(a.data[1])


def test_rates(fs, backing):
    """A rate that is asked for is kept, and named devices are compared by it."""
    begin = time.monotonic()
    a, dev = make(fs, backing, ("raid1", 2, ()), size=8192, extra=("max_recovery_rate 2000",))
    wait_whole(dev)
    assert time.monotonic() - begin > 1.2       # 4 MiB at 2 MB/s, less the first window


def test_dirty_regions_alone_are_resynchronised(dmfs, backing):
    fs = dmfs()
    a, dev = make(fs, backing, ("raid1", 2, ()), extra=("region_size 256", "daemon_sleep 60000"))
    wait_whole(dev)
    dev.suspend()
    dev.resume()
    dev.pwrite(pattern(8), 5 * 256 * SECTOR, sync=True)
    fs.kill()
    fs.wait()
    assert dirty_regions(a.meta[0], SIZE // 256) == {5} == dirty_regions(a.meta[1], SIZE // 256)
    damage(a.data[1], 0, SIZE)
    fs = dmfs()
    dev = fs.mkdir("r", a.line("region_size 256"))
    wait_whole(dev)
    one, other = content(a.data[0]), content(a.data[1])
    same = {r for r in range(SIZE // 256) if one[r * 256 * SECTOR:][:256 * SECTOR] == other[r * 256 * SECTOR:][:256 * SECTOR]}
    assert same == {5}


def test_write_behind(fs, backing):
    """A write is answered without the write-mostly leg; a flush of the table waits for it, and reads of it see it."""
    a = Array(backing, "raid1", 2, SIZE)
    slow = fs.mkdir("slow", f"0 {SIZE} linear {quote(a.data[1])} 0")
    dev = fs.mkdir("r", a.line("nosync", "write_mostly 1", "max_write_behind 64",
                               pairs=[(a.meta[0], a.data[0]), (a.meta[1], "slow")]))
    slow.suspend()
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        buf.write(pattern(8))
        for i in range(8):
            os.pwrite(fd, buf, i * 4096)        # it would wait for ever else
    assert content(a.data[1])[:8 * 4096] != pattern(8) * 8
    slow.resume()
    dev.remove()
    slow.remove()
    assert content(a.data[0])[:8 * 4096] == content(a.data[1])[:8 * 4096] == pattern(8) * 8
    assert dirty_regions(a.meta[0], 1) == set()


def test_discards(fs, backing):
    for t in (("raid0", 3, ()), ("raid1", 2, ()), ("raid10", 4, ())):
        a, dev = make(fs, backing, t, name=f"r{t[0]}")
        wait_whole(dev)
        dev.pwrite(pattern(SIZE), 0, sync=True)
        dev.discard(64 * 512, 1024 * 512)
        assert dev.pread(1024 * SECTOR, 64 * 512) == bytes(1024 * SECTOR)
        assert dev.pread(64 * SECTOR, 0) == pattern(SIZE)[:64 * SECTOR]
        if t[0] != "raid0":
            assert check(dev) == 0


def test_many_threads(fs, backing):
    """Overlapping writes from several threads, a device failing and coming back meanwhile: parity stays right."""
    s = Stack(fs, backing, ("raid5_ls", 4, ()), params=("stripe_cache 32",), chunk=64)
    dev, errors = s.dev, []

    def write(seed):
        try:
            scribble(dev, seed, count=150, size=600 * SECTOR, model=bytearray(600 * SECTOR))
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    wait_whole(dev)
    s.fail(3)
    for t in threads:
        t.join()
    s.mend(3)
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert not errors
    assert check(dev) == 0
