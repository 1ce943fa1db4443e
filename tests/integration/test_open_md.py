# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-open: md arrays made by hand, read and written to.  tests/kernel/test_open.py has those that md made."""

import os
import struct

import pytest

from disks import content, md_member, md_super, raid5, same
from mounted import SECTOR
from raid import check, wait_whole

MIB = 1 << 20


# --- md by hand -----------------------------------------------------------------------------------------------------


def test_md_by_hand(opener, work):
    paths, data = raid5(work)
    for use in (paths, paths[1:], [paths[0], paths[2]], paths[:2]):
        got = opener.open(*use)
        assert same(got.read("md-arr"), data) and got["md-arr"]["ro"]
        assert ("degraded: 2 of 3" in got.stderr) == (len(use) == 2)
        opener.close()
    got = opener.open(paths[0], check=6)
    assert "1 of 3 devices are there, 2 are needed" in got.stderr
    opener.close()


@pytest.mark.parametrize("change,why", [
    (dict(events=7), "left out of its array"), (dict(roles=[0, 0xfffe, 2]), "spare"), (dict(roles=[0, 0xffff, 2]), "spare"),
    (dict(uuid=bytes(16)), "degraded"), (dict(level=77), "not supported"), (dict(disks=0), "cannot be"),
    (dict(chunk=7), "no power of two"), (dict(size=1 << 60), "not on the device"), (dict(number=9), "cannot be"),
    (dict(data_size=1 << 50), "not on the device"), (dict(features=1 << 30), "not known"),
])
def test_hostile_md(opener, work, change, why):
    """A member that is old, wrong or hostile: named, the array opens without it."""
    paths, data = raid5(work)
    body = open(paths[1], "rb").read()[2048 * SECTOR:-64 * SECTOR]
    args = dict(role=1, disks=3, level=5, size=48, layout=2, chunk=8) | change
    os.unlink(paths[1])
    md_member(paths[1], body, md_super(args.pop("role"), args.pop("disks"), args.pop("level"), args.pop("size"), **args))
    got = opener.open(*paths, check=False)
    assert why in got.stderr, got.stderr
    assert same(got.read([d["name"] for d in got.of_type("raid5") if d["open"]][0]), data)
    opener.close()


def test_reshaping_md_is_refused(opener, work):
    paths, _ = raid5(work, features=4)
    got = opener.open(*paths, check=6)
    assert "being reshaped" in got.stderr
    opener.close()


# --- md, written to (tests/kernel/test_open.py has what md says of it) ----------------------------------------------


def md_state(path, at=8):
    """Events, whether it is clean, and the roles."""
    with open(path, "rb") as f:
        f.seek(at * SECTOR)
        sb = f.read(1024)
    events, resync = struct.unpack_from("<QQ", sb, 200)
    return events, resync == 2**64 - 1, struct.unpack_from(f"<{struct.unpack_from('<I', sb, 220)[0]}H", sb, 256)


def test_md_is_written(opener, work):
    """Dirty while it is open, clean when it is closed, and the data is in it; a spare counts along; in use it stays."""
    paths, data = raid5(work, roles=[0, 1, 2, 0xffff])
    spare = md_member(os.path.join(work, "spare"), bytes(48 * SECTOR),
                      md_super(3, 3, 5, 48, layout=2, chunk=8, roles=[0, 1, 2, 0xffff]))
    got = opener.open(*paths, spare, write=True)
    assert not got["md-arr"]["ro"] and "nosync fail_stop" in opener.fs["md-arr"].table()
    assert {md_state(p) for p in (*paths, spare)} == {(12, False, (0, 1, 2, 0xffff))}
    new = content(len(data), 77)
    opener.fs["md-arr"].pwrite(bytes(len(data)), 0)
    opener.close()
    assert {md_state(p) for p in (*paths, spare)} == {(13, True, (0, 1, 2, 0xffff))}
    got = opener.open(*paths, write=True)
    with open(got["md-arr"]["image"], "rb"):
        opener.run("--close", check=5)
    assert {md_state(p)[:2] for p in paths} == {(15, False)}
    twice = opener.open(*paths, write=True)
    assert "it is written to as md-arr" in twice.stderr and twice["md-arr_2"]["ro"]
    opener.fs["md-arr"].pwrite(new, 0)     # it goes on
    opener.close()
    assert {md_state(p)[:2] for p in paths} == {(16, True)}
    for use in (paths, paths[1:], paths[:2]):
        got = opener.open(*use)
        assert same(got.read("md-arr"), new)
        opener.close()


def test_md_written_without_one(opener, work):
    """A member that is missing is out of date afterwards, whether or not it was closed; one that is an event behind is not."""
    paths, data = raid5(work, bad=lambda n: {"events": 9} if n == 2 else {})
    opener.open(paths[0], paths[2], write=True)
    opener.fs["md-arr"].pwrite(b"new" * 512, 0, sync=True)
    assert [md_state(p) for p in paths] == [(12, False, (0, 0xffff, 2)), (10, True, (0, 1, 2)), (12, False, (0, 0xffff, 2))]
    opener.close()
    assert [md_state(p) for p in paths] == [(13, True, (0, 0xffff, 2)), (10, True, (0, 1, 2)), (13, True, (0, 0xffff, 2))]
    got = opener.open(*paths)
    assert "m1: left out of its array" in got.stderr
    assert got.read("md-arr")[:1536] == b"new" * 512 and same(got.read("md-arr")[1536:], data[1536:])
    opener.close()


def test_md_member_fails_while_it_is_written(opener, work):
    """Writes fail from then on; closed, the others say of it that it is faulty."""
    paths, data = raid5(work)
    got = opener.open(*paths, write=True)
    opener.fs["md-arr-dev1"].load("0 48 error")
    with pytest.raises(OSError):
        for at in range(0, len(data), 4096):
            opener.fs["md-arr"].pwrite(bytes(4096), at, sync=True)
    opener.fs["md-arr-dev1"].load("0 48 linear m1 2048")
    opener.close()
    assert [md_state(p) for p in paths] == [(14, True, (0, 0xfffe, 2)), (12, False, (0, 1, 2)), (14, True, (0, 0xfffe, 2))]
    got = opener.open(*paths)
    assert "m1: left out of its array" in got.stderr and "degraded: 2 of 3" in got.stderr
    opener.close()


def test_md_not_clean(opener, work):
    """What was left by a crash is synchronised first, and clean when that is done; without a member it is not written to."""
    paths, data = raid5(work, resync=0)
    with open(paths[2], "r+b") as f:
        f.seek(2048 * SECTOR)
        f.write(bytes(4096))    # its parity
    got = opener.open(paths[0], paths[1], write=True)
    assert got["md-arr"]["ro"] and "neither synchronised nor whole" in got.stderr
    opener.close()
    assert md_state(paths[0])[:2] == (10, False)
    got = opener.open(*paths, write=True)
    wait_whole(opener.fs["md-arr"])
    assert check(opener.fs["md-arr"]) == 0
    opener.close()
    assert {md_state(p)[:2] for p in paths} == {(13, True)}
    got = opener.open(*paths[1:])
    assert same(got.read("md-arr"), data)
    opener.close()


@pytest.mark.parametrize("change,why", [
    (dict(features=512), "a journal"), (dict(features=1024), "partial parity log"), (dict(features=8), "list of bad blocks"),
    (dict(features=256), "a cluster's"), (dict(number=0, roles=[1, 0, 2]), "disagree"),
])
def test_md_that_only_md_writes(opener, work, change, why):
    paths, data = raid5(work, bad=lambda n: change if n == 1 else {})
    got = opener.open(*paths, write=True, check=False)
    arrays = [d for d in got.of_type("raid5") if d["open"]]
    assert why in got.stderr and all(d["ro"] for d in arrays), got.stderr
    opener.close()
    assert [md_state(p)[:2] for p in paths] == [(10, True)] * 3


def test_md_dry_run_writes_nothing(opener, work):
    paths, _ = raid5(work)
    done = opener.run("--dry-run", "-w", *paths)
    assert b"opened for reading only: a script" in done.stderr and b"fail_stop" not in done.stdout
    assert [md_state(p)[:2] for p in paths] == [(10, True)] * 3


def test_md_below_what_is_written(opener, work, disk):
    """A partition of an array, written to; and of an array that is not, which is not written to either."""
    table = disk(80 * 4096, "label: dos\nstart=8, size=100\n", name="table")
    with open(table, "rb") as f:
        inner = f.read()
    for change, ro in ({}, False), ({"features": 8}, True):
        sb = [md_super(n, 2, 1, len(inner) // SECTOR, **change) for n in (0, 1)]
        paths = [md_member(os.path.join(work, f"half{n}"), inner, sb[n]) for n in (0, 1)]
        got = opener.open(*paths, write=True)
        assert got["md-arr-part1"]["ro"] == ro and got["md-arr"]["ro"] == ro
        if not ro:
            opener.fs["md-arr-part1"].pwrite(b"inside", 0, sync=True)
        opener.close()
        assert [md_state(p)[:2] for p in paths] == [(10 if ro else 13, True)] * 2
        for path in paths:
            with open(path, "rb") as f:
                f.seek((2048 + 8) * SECTOR)
                assert (f.read(6) == b"inside") != ro
