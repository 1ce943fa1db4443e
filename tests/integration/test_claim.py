# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target keeps its own on (metadata, exceptions, a log) is nobody else's, by whatever name and in another daemon."""

import errno
import os
import subprocess

import pytest

SECTORS = 8192
KINDS = {
    "pool": "0 1024 thin-pool {meta} {data} 128 0",
    "snapshot": "0 1024 snapshot {data} {meta} P 8",
    "transient": "0 1024 snapshot {data} {meta} N 8",
    "clone": "0 1024 clone {meta} {data} {other} 8",
    "mirror": "0 1024 mirror disk 2 {meta} 1024 2 {data} 0 {other} 0",
    "log-writes": "0 1024 log-writes {data} {meta}",
    "era": "0 1024 era {meta} {data} 8",
    "writecache": "0 1024 writecache s {data} {meta} 4096 0",
    "raid": "0 1024 raid raid1 3 0 region_size 1024 1 {meta} {data}",
}


@pytest.fixture
def files(backing):
    """Two sets, of which the second has the first one's metadata device."""
    meta = backing(SECTORS, name="meta")
    return [{"meta": meta, "data": backing(SECTORS, name=f"data{i}"), "other": backing(SECTORS, name=f"other{i}")}
            for i in range(2)]


def refuse(dev, line, match):
    dev.refuse(line + "\n", code=errno.EBUSY, match=match)


@pytest.mark.parametrize("kind", KINDS)
def test_one_metadata_device(fs, files, kind, work):
    first, second = files
    fs.mkdir("first", KINDS[kind].format(**first))
    dev = fs.mkdir("second")
    os.symlink(first["meta"], os.path.join(work, "soft"))
    os.link(first["meta"], os.path.join(work, "hard"))
    fs.mkdir("lin", f"0 4096 linear {work}/hard 0")
    fs.mkdir("upper", "0 64 zero", "64 2048 linear lin 1")
    for other in KINDS:
        for meta in first["meta"], os.path.join(work, "soft"), os.path.join(work, "hard"), "lin", "upper":
            refuse(dev, KINDS[other].format(**second | {"meta": meta}), "is in use already: it is the .* of 'first'")
    fs["first"].load(KINDS[kind].format(**first))     # the same again
    fs["first"].remove()
    dev.load(KINDS[kind].format(**second))


def test_slices_of_one_file(fs, backing):
    """Apart they may be: halves of a file, directly or by a stripe."""
    meta = backing(SECTORS, name="meta")
    fs.mkdir("low", f"0 4096 linear {meta} 0")
    fs.mkdir("high", f"0 4096 linear {meta} 4096")
    for name in "low", "high":
        fs.mkdir(f"pool-{name}", f"0 1024 thin-pool {name} {backing(SECTORS, name=name + '-data')} 128 0")
    dev = fs.mkdir("v")
    refuse(dev, f"0 1024 thin-pool {meta} {backing(SECTORS, name='data')} 128 0", "is in use already")
    # a device beneath moves: not into the other's half
    fs["high"].refuse(f"0 4096 linear {meta} 4095\n", code=errno.EBUSY, match="thin-pool: the metadata device high is in use")


@pytest.mark.parametrize("kind", KINDS)
def test_another_daemon(dmfs, files, kind):
    a, b = dmfs(), dmfs()
    first, second = files
    a.mkdir("first", KINDS[kind].format(**first))
    dev = b.mkdir("second")
    refuse(dev, KINDS[kind].format(**second), f"in use by another program: {first['meta']} is locked")
    b.mkdir("lin", f"0 4096 linear {first['meta']} 0")    # to look at it is no claim
    refuse(dev, KINDS[kind].format(**second | {"meta": "lin"}), "in use by another program")
    a.kill()
    a.wait()
    dev.load(KINDS[kind].format(**second))


@pytest.mark.root
def test_a_bind_mount(dmfs, files, work):
    a, b = dmfs(), dmfs()
    first, second = files
    there = os.path.join(work, "there")
    os.mkdir(there)
    subprocess.run(["mount", "--bind", os.path.dirname(first["meta"]), there], check=True, timeout=300)
    try:
        a.mkdir("first", KINDS["pool"].format(**first))
        line = KINDS["pool"].format(**second | {"meta": os.path.join(there, "meta")})
        refuse(a.mkdir("second"), line, "is in use already")
        refuse(b.mkdir("second"), line, "in use by another program")
    finally:
        subprocess.run(["umount", there], check=True, timeout=300)


def test_readers_of_a_pool(dmfs, files):
    """A pool that is only read takes a lock for reading: others may read too, and nobody write."""
    a, b = dmfs(), dmfs()
    first, second = files
    line = KINDS["pool"] + "{}"
    pool = a.mkdir("pool", line.format("", **first))
    pool.message("create_thin 0")
    pool.remove()
    a.mkdir("pool", line.format(" 1 read_only", **first))
    b.mkdir("pool", line.format(" 1 read_only", **first))
    refuse(a.mkdir("writer"), line.format("", **second), "is in use already")
    a["pool"].remove()
    refuse(a["writer"], line.format("", **second), "in use by another program")
