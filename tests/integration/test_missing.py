# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots that have missed a write to their origin stay invalid, whatever failed at that moment."""

import errno
import os
import signal
import sqlite3

import pytest

from mounted import SECTOR, pattern

SIZE = 2048
OLD, NEW = pattern(64, 1), pattern(64, 2)


@pytest.fixture
def state(work):
    return os.path.join(work, "state")


class Set:
    """An origin with a snapshot whose COW device is a dmfs one."""

    def __init__(self, dmfs, state, backing, work):
        self.dmfs, self.state = dmfs, state
        self.cow_path = backing(SIZE, name="cow")
        self.base_line = f"0 {SIZE} linear {backing(SIZE, data=OLD, name='base')} 0"
        self.cow_line = f"0 {SIZE} linear {self.cow_path} 0"
        self.snap_line = f"0 {SIZE} snapshot base cow P 8"
        self.start()
        d = self.d
        d.mkdir("vol")      # comes before the others by its minor
        d.mkdir("snap")
        d.mkdir("base", self.base_line)
        d.mkdir("cow", self.cow_line)
        d["vol"].load(f"0 {SIZE} snapshot-origin base")
        d["snap"].load(self.snap_line)

    def start(self, **kw):
        self.d = self.dmfs(state=self.state, **kw)
        return self.d

    def stop(self, end):
        d = self.d
        if end == "kill":
            d.kill()
        elif end == "term":
            d.signal(signal.SIGTERM)
        else:
            assert d.unmount() == 0
        d.wait()
        d.close()

    def status(self):
        return self.d["snap"].status().split()[3]

    def write_origin(self):
        self.d["vol"].pwrite(NEW, 0, sync=True)


@pytest.fixture
def things(dmfs, state, backing, work):
    return Set(dmfs, state, backing, work)


def header_is_invalid(path):
    with open(path, "rb") as f:
        return f.read(8) == b"SnAp\0\0\0\0"


@pytest.mark.parametrize("back", [True, False], ids=["cow-back", "cow-away"])
@pytest.mark.parametrize("end", ["term", "kill"])
def test_the_cow_device_fails(things, end, back):
    d = things.d
    assert things.status() != "Invalid"
    d["cow"].load(f"0 {SIZE} error")
    things.write_origin()
    assert things.status() == "Invalid"
    assert not header_is_invalid(things.cow_path)
    if back:
        d["cow"].load(things.cow_line)
    things.stop(end)
    assert header_is_invalid(things.cow_path) == (back and end == "term")
    d = things.start()
    if not back:
        assert d["snap"].table() == ""
        d["cow"].load(things.cow_line)
        things.stop(end)
        d = things.start()
    assert things.status() == "Invalid"
    with pytest.raises(OSError):
        d["snap"].pread(SECTOR, 0)
    assert d["vol"].pread(len(NEW), 0) == NEW
    d["snap"].suspend()     # at the latest now
    assert header_is_invalid(things.cow_path)
    d["snap"].resume()
    assert things.status() == "Invalid"


def test_a_handover_takes_it_along(things):
    d = things.d
    d["cow"].load(f"0 {SIZE} error")
    things.write_origin()
    d["snap"].load(things.snap_line)
    assert things.status() == "Invalid"
    d["cow"].load(things.cow_line)
    things.stop("kill")
    things.start()
    assert things.status() == "Invalid"


def test_a_new_store_is_valid(things):
    """What the state knows belongs to the table that was loaded then."""
    d = things.d
    d["cow"].load(f"0 {SIZE} error")
    things.write_origin()
    d["cow"].load(things.cow_line)
    d["snap"].remove()
    with open(things.cow_path, "r+b") as f:
        f.write(bytes(4096))
    d.mkdir("snap", things.snap_line)
    assert things.status() != "Invalid"
    things.stop("kill")
    things.start()
    assert things.status() != "Invalid"


def away(things, **kw):
    """A start without the COW file."""
    things.stop("unmount")
    os.rename(things.cow_path, things.cow_path + ".away")
    return things.start(**kw)


def back(things, end="unmount", **kw):
    things.stop(end)
    os.rename(things.cow_path + ".away", things.cow_path)
    return things.start(**kw)


@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_missing_at_one_start(things, end):
    d = away(things)
    assert d["snap"].table() == "" and d["snap"].error()
    assert d["vol"].pread(len(OLD), 0) == OLD
    d = back(things, end)       # nothing was written
    assert things.status() != "Invalid"
    assert d["snap"].pread(len(OLD), 0) == OLD
    d = away(things)
    things.write_origin()
    assert "'snap' is missing and its origin is written to" in d.read("log")
    d = back(things, end)
    assert things.status() == "Invalid"
    assert d["vol"].pread(len(NEW), 0) == NEW
    things.stop("unmount")
    assert header_is_invalid(things.cow_path)


def test_loaded_again_by_hand(things):
    """The same start: the COW file is back before, or after, the origin is written to."""
    d = away(things)
    os.rename(things.cow_path + ".away", things.cow_path)
    d["cow"].load(things.cow_line)
    d["snap"].load(things.snap_line)
    things.write_origin()
    assert d["snap"].pread(len(OLD), 0) == OLD
    d = away(things)
    things.write_origin()
    os.rename(things.cow_path + ".away", things.cow_path)
    d["cow"].load(things.cow_line)
    d["snap"].load(things.snap_line)
    assert things.status() == "Invalid"


def test_removed_while_it_is_missing(things):
    d = away(things)
    with pytest.raises(OSError):
        d["base"].remove()
    d["snap"].remove()
    things.write_origin()
    assert "'snap' is missing" not in d.read("log")
    for name in "vol", "cow", "base":
        d[name].remove()


def test_the_state_cannot_be_told(things):
    """Then the write fails: it would make a snapshot valid that is not."""
    import resource
    d = away(things)
    resource.prlimit(d.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    with pytest.raises(OSError) as e:
        things.write_origin()
    assert e.value.errno == errno.EIO
    resource.prlimit(d.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert d["vol"].pread(len(OLD), 0) == OLD
    things.write_origin()
    back(things, "kill")
    assert things.status() == "Invalid"


def test_the_origin_waits(things):
    d = away(things, options="missing-snapshots=wait")
    assert d["vol"].table() == ""
    assert "waits for 'snap'" in d["vol"].error()
    assert d["base"].table() == things.base_line + "\n"
    d = back(things, options="missing-snapshots=wait")
    assert things.status() != "Invalid" and d["vol"].error() == ""
    things.write_origin()
    assert d["snap"].pread(len(OLD), 0) == OLD
    d = away(things, options="missing-snapshots=wait")
    d["vol"].load(f"0 {SIZE} snapshot-origin base")     # to go on without
    d["vol"].pwrite(OLD, 0, sync=True)
    back(things)
    assert things.status() == "Invalid"


def test_a_merge_waits_for_its_sibling(things, backing):
    """A merge goes on at the start by itself: not before the other snapshot is there, or is told."""
    d = things.d
    d.mkdir("cow2", f"0 {SIZE} linear {backing(SIZE, name='cow2')} 0")
    d.mkdir("snap2", f"0 {SIZE} snapshot base cow2 P 8")
    d["snap2"].pwrite(NEW, 0, sync=True)
    d["snap2"].remove()
    d["vol"].suspend()
    d["vol"].load(f"0 {SIZE} error")
    d["vol"].suspend()
    d["vol"].load(f"0 {SIZE} snapshot-merge base cow2 P 8", to="inactive")
    things.stop("kill")     # the merge is stored as the inactive table, and not begun
    with sqlite3.connect(things.state) as db:
        db.execute("UPDATE device SET live=inactive, live_id=inactive_id, inactive=NULL, inactive_id=0 WHERE name='vol'")
    db.close()
    os.rename(things.cow_path, things.cow_path + ".away")
    d = things.start(options="missing-snapshots=wait")
    assert d["vol"].table() == "" and "waits for 'snap'" in d["vol"].error()
    d = back(things, "kill")
    assert d["snap"].pread(len(OLD), 0) == OLD
    fields = d["vol"].status().split()
    assert fields[2] == "snapshot-merge"


def test_the_option(dmfs):
    with pytest.raises(RuntimeError, match="missing-snapshots=maybe: invalidate or wait"):
        dmfs(options="missing-snapshots=maybe")
