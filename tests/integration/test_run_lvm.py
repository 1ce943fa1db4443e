# SPDX-License-Identifier: GPL-2.0-or-later
"""LVM unchanged, under dmfs-run: nothing it prints is an error."""

import re

import pytest

from mounted import pattern, wait_status
from run import needs, needs_targets

SIZE = 64


@pytest.fixture
def lvm(run):
    """Two disks of 64 MiB, and a function that runs a command of LVM's."""
    needs("lvm")
    disks = [run.disk(name, SIZE) for name in ("pv0", "pv1")]

    def command(*args, quiet=True):
        return run("lvm", *args, quiet=quiet)

    command("pvcreate", *disks)
    command("vgcreate", "-s", "1m", "vg", *disks)
    return command


def lvs(lvm, *columns):
    """What lvs says of each volume: {NAME: (COLUMN, ...)}."""
    out = lvm("lvs", "-a", "--noheadings", "--separator", "|", "-o", ",".join(("lv_name", *columns)), "vg")
    rows = [[word.strip() for word in line.split("|")] for line in out.splitlines()]
    return {row[0].strip("[]"): tuple(row[1:]) for row in rows}


def write(run, name, data):
    run.python("import sys; open(sys.argv[1], 'r+b').write(sys.stdin.buffer.read())", f"/dev/vg/{name}", given=data)


def read(run, name, length):
    return run.fs[f"vg-{name}"].pread(length, 0)


def test_volumes(run, lvm):
    lvm("lvcreate", "-y", "-n", "lin", "-L", "4m", "vg")
    lvm("lvcreate", "-y", "-n", "str", "-i", "2", "-I", "64k", "-L", "4m", "vg")
    assert lvs(lvm, "segtype", "lv_size", "devices") == {
        "lin": ("linear", "4.00m", "/dev/pv0(0)"), "str": ("striped", "4.00m", "/dev/pv0(4),/dev/pv1(0)")}
    assert run("dmsetup", "ls", "--target", "striped").startswith("vg-str")
    data = pattern(512, 1)
    write(run, "lin", data)
    assert read(run, "lin", len(data)) == data
    run("mkfs.ext4", "-q", "/dev/vg/str")
    assert 'TYPE="ext4"' in run("blkid", "-p", "/dev/vg/str")
    run("fsck.ext4", "-fn", "/dev/vg/str", quiet=False)

    lvm("lvresize", "-y", "-L", "8m", "vg/lin")
    assert run.fs["vg-lin"].size() == 8 << 20
    lvm("lvrename", "vg", "lin", "other")
    assert read(run, "other", len(data)) == data
    tree = run("lsblk", "-rno", "NAME,TYPE,PKNAME")
    assert re.search(r"^vg-other lvm pv0$", tree, re.M), tree

    lvm("lvremove", "-y", "vg/str")
    lvm("pvmove", "-i", "1", "/dev/pv0", "/dev/pv1")
    assert lvs(lvm, "devices")["other"] == ("/dev/pv1(0)",)
    assert read(run, "other", len(data)) == data
    lvm("vgchange", "-an", "vg")
    assert not run.fs.devices()
    lvm("vgchange", "-ay", "vg")
    assert read(run, "other", len(data)) == data
    lvm("vgremove", "-y", "vg")
    lvm("pvremove", "/dev/pv0", "/dev/pv1")
    assert not run.fs.devices()


def test_snapshot_and_merge(run, lvm):
    lvm("lvcreate", "-y", "-n", "base", "-L", "4m", "vg")
    old, new = pattern(512, 1), pattern(512, 2)
    write(run, "base", old)
    lvm("lvcreate", "-y", "-s", "-n", "snap", "-L", "4m", "vg/base")
    write(run, "base", new)
    assert read(run, "snap", len(old)) == old and read(run, "base", len(new)) == new
    assert float(lvs(lvm, "snap_percent")["snap"][0]) > 0
    # LVM loads the snapshot, with its exceptions, before what is to be its origin is resumed
    lvm("vgchange", "-an", "vg")
    lvm("vgchange", "-ay", "vg")
    assert read(run, "snap", len(old)) == old and read(run, "base", len(new)) == new
    lvm("lvconvert", "-i", "1", "--merge", "vg/snap")
    assert read(run, "base", len(old)) == old
    assert list(lvs(lvm)) == ["base"]


@pytest.mark.parametrize("kind", ["raid", "mirror", "cache"])
def test_snapshot_of_what_keeps_metadata(run, fs, lvm, kind):
    """LVM puts the volume under a new name while the old one is live, and takes that away without suspending it."""
    needs_targets(fs, kind)
    if kind == "cache":
        needs("cache_check")
        lvm("lvcreate", "-y", "-n", "base", "-L", "8m", "vg")
        lvm("lvcreate", "-y", "--type", "cache", "-n", "pool", "-L", "8m", "vg/base", quiet=False)
    else:
        lvm("lvcreate", "-y", "--type", {"raid": "raid1"}.get(kind, kind), "-m1", "-n", "base", "-L", "8m", "vg")
    old, new = pattern(512, 1), pattern(512, 2)
    write(run, "base", old)
    lvm("lvcreate", "-y", "-s", "-n", "snap", "-L", "4m", "vg/base", quiet=False)
    assert run("dmsetup", "table", "vg-base-real").split()[2] == kind
    write(run, "base", new)
    assert read(run, "snap", len(old)) == old and read(run, "base", len(new)) == new
    lvm("lvremove", "-y", "vg/snap")
    assert run("dmsetup", "table", "vg-base").split()[2] == kind
    assert read(run, "base", len(new)) == new
    lvm("lvremove", "-y", "vg/base", quiet=False)
    assert not fs.devices()


def test_thin(run, lvm):
    needs("thin_check")
    lvm("lvcreate", "-y", "--type", "thin-pool", "-n", "pool", "-L", "16m", "vg", quiet=False)
    lvm("lvcreate", "-y", "-V", "32m", "-T", "vg/pool", "-n", "thin", quiet=False)
    data = pattern(512, 1)
    write(run, "thin", data)
    lvm("lvcreate", "-y", "-s", "-n", "snap", "vg/thin", quiet=False)
    lvm("lvchange", "-ay", "-K", "vg/snap")
    write(run, "thin", pattern(512, 2))
    assert read(run, "snap", len(data)) == data
    lvm("lvextend", "-L", "+8m", "vg/pool", quiet=False)
    assert lvs(lvm, "lv_size")["pool"] == ("24.00m",)
    assert float(lvs(lvm, "data_percent")["pool"][0]) > 0
    lvm("vgchange", "-an", "vg")
    lvm("vgchange", "-ay", "vg")
    lvm("lvremove", "-y", "vg/pool")


def test_mirror_and_raid(run, fs, lvm):
    lvm("lvcreate", "-y", "--type", "mirror", "-m1", "--mirrorlog", "core", "-n", "mir", "-L", "4m", "vg")
    assert lvs(lvm, "segtype")["mir"] == ("mirror",)
    needs_targets(fs, "raid")
    lvm("lvcreate", "-y", "--type", "raid1", "-m1", "-n", "r1", "-L", "4m", "vg")
    data = pattern(512, 1)
    write(run, "r1", data)
    lvm("lvchange", "--syncaction", "check", "vg/r1")
    assert read(run, "r1", len(data)) == data
    lvm("lvconvert", "-y", "-m0", "vg/r1")
    assert read(run, "r1", len(data)) == data


def test_raid_levels(run, fs, lvm):
    """With parity and in stripes; what is discarded is, and a new one has its size."""
    needs("blkdiscard")
    needs_targets(fs, "raid")
    disks = [run.disk(name, SIZE) for name in ("pv2", "pv3", "pv4")]
    lvm("pvcreate", *disks)
    lvm("vgextend", "vg", *disks)
    data = pattern(512, 1)
    for level, how in ("raid5", ["-i", "2"]), ("raid6", ["-i", "3"]), ("raid10", ["-i", "2", "-m", "1"]):
        lvm("lvcreate", "-y", "--type", level, *how, "-n", level, "-L", "6m", "vg")
        write(run, level, data)
        wait_status(fs[f"vg-{level}"], r" A+ (\d+)/\1 idle ", every=0.2)
    assert [row[0] for row in lvs(lvm, "copy_percent").values() if row[0]] == ["100.00"] * 3
    lvm("lvextend", "-L", "+4m", "vg/raid10")
    run("blkdiscard", "-o", "131072", "-l", "131072", "/dev/vg/raid10")
    assert fs["vg-raid10"].size() == 10 << 20 and read(run, "raid10", len(data)) == data[:131072] + bytes(131072)
    lvm("vgchange", "-an", "vg")
    lvm("vgchange", "-ay", "vg")
    assert read(run, "raid5", len(data)) == read(run, "raid6", len(data)) == data


def test_cache(run, fs, lvm):
    needs("cache_check")
    needs_targets(fs, "cache")
    lvm("lvcreate", "-y", "-n", "slow", "-L", "8m", "vg")
    data = pattern(512, 1)
    write(run, "slow", data)
    lvm("lvcreate", "-y", "--type", "cache-pool", "-n", "fast", "-L", "8m", "vg", "/dev/pv1", quiet=False)
    lvm("lvconvert", "-y", "--type", "cache", "--cachepool", "vg/fast", "vg/slow", quiet=False)
    assert read(run, "slow", len(data)) == data
    lvm("lvconvert", "-y", "--uncache", "vg/slow", quiet=False)
    assert read(run, "slow", len(data)) == data


def test_writecache(run, fs, lvm):
    needs_targets(fs, "writecache")
    lvm("lvcreate", "-y", "-n", "slow", "-L", "8m", "vg")
    lvm("lvcreate", "-y", "-n", "fast", "-L", "8m", "vg", "/dev/pv1")
    lvm("lvchange", "-an", "vg/fast")
    lvm("lvconvert", "-y", "--type", "writecache", "--cachevol", "fast", "vg/slow", quiet=False)
    data = pattern(512, 1)
    write(run, "slow", data)
    assert read(run, "slow", len(data)) == data
    lvm("lvconvert", "-y", "--splitcache", "vg/slow", quiet=False)
    assert read(run, "slow", len(data)) == data


def test_a_group_goes_elsewhere(run, lvm, dmfs):
    """vgexport, another mount, vgimport."""
    lvm("lvcreate", "-y", "-n", "v", "-L", "4m", "vg")
    data = pattern(512, 1)
    write(run, "v", data)
    lvm("vgchange", "-an", "vg")
    lvm("vgexport", "vg")
    run.fs = dmfs()
    lvm("vgimport", "vg")
    lvm("vgchange", "-ay", "vg")
    assert read(run, "v", len(data)) == data
    lvm("vgchange", "-an", "vg")
