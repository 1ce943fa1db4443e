# SPDX-License-Identifier: GPL-2.0-or-later
"""clone: data while it hydrates, metadata, messages, failures."""

import errno
import os
import random
import select

import pytest

import mounted
from mounted import SECTOR

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECTORS = 8192          # 4 MiB: 1024 regions of 8 sectors


@pytest.fixture
def disks(backing):
    """Metadata, destination full of rubbish, source full of data."""
    return (backing(8192, name="meta"), backing(SECTORS, os.urandom(SECTORS * SECTOR), name="dest"),
            backing(SECTORS, os.urandom(SECTORS * SECTOR), name="source"))


def line(disks, region=8, rest="", length=SECTORS):
    return f"0 {length} clone {disks[0]} {disks[1]} {disks[2]} {region} {rest}".rstrip()


def content(path):
    with open(path, "rb") as f:
        return f.read()


def fields(dev):
    """hydrated, total, hydrating"""
    words = dev.status().split()
    hydrated, total = words[6].split("/")
    return int(hydrated), int(total), int(words[7])


def wait_status(dev, condition, seconds=60):
    """Waits on the pollable status until the condition holds."""
    fd = os.open(dev.file("status"), os.O_RDONLY)
    try:
        p = select.poll()
        p.register(fd, select.POLLIN)
        for _ in range(seconds * 20):
            p.poll(50)
            if condition(os.pread(fd, 4096, 0).decode()):
                return
        raise AssertionError(dev.status())
    finally:
        os.close(fd)


def hydrate(dev):
    dev.message("enable_hydration")
    wait_status(dev, lambda text: "1024/1024" in text)


def test_reads_come_from_the_source(fs, disks):
    dev = fs.mkdir("c", line(disks, rest="1 no_hydration"))
    assert dev.pread(SECTORS * SECTOR, 0) == content(disks[2])
    assert fields(dev) == (0, 1024, 0)
    assert dev.status() == (f"0 {SECTORS} clone 8 6/1024 8 0/1024 0 1 no_hydration 4 hydration_threshold 1 "
                            "hydration_batch_size 1 rw\n")
    assert dev.table() == line(disks, rest="1 no_hydration") + "\n"


@pytest.mark.parametrize("region", [8, 64, 2048])
def test_writes_hydrate_their_regions_only(fs, disks, region):
    expected = bytearray(content(disks[2]))
    dev = fs.mkdir("c", line(disks, region, "1 no_hydration"))
    rnd = random.Random(region)
    for _ in range(200):
        at, size = rnd.randrange(SECTORS * SECTOR - 40000), rnd.choice([1, 100, 512, 4096, 8192, 40000])
        if rnd.random() < 0.5:
            at = at // 4096 * 4096
        data = rnd.randbytes(size)
        dev.pwrite(data, at)
        expected[at:at + size] = data
        assert dev.pread(size + 100, max(at - 50, 0)) == expected[max(at - 50, 0):max(at - 50, 0) + size + 100]
    assert dev.pread(len(expected), 0) == bytes(expected)
    hydrated, total, _ = fields(dev)
    assert 0 < hydrated < total or region == 2048
    source = content(disks[2])
    dev.message("enable_hydration")
    wait_status(dev, lambda text: f"{total}/{total}" in text)
    assert dev.pread(len(expected), 0) == bytes(expected)
    dev.remove()
    assert content(disks[1]) == bytes(expected), "the destination is the clone"
    assert content(disks[2]) == source, "the source is never written to"


def test_background_hydration_with_io(fs, disks):
    expected = bytearray(content(disks[2]))
    dev = fs.mkdir("c", line(disks, 8, "0 4 hydration_threshold 4 hydration_batch_size 3"))
    rnd = random.Random(1)
    with dev.open() as fd:
        while fields(dev)[0] < 1024:
            at = rnd.randrange(SECTORS - 1) * SECTOR
            data = rnd.randbytes(SECTOR)
            os.pwrite(fd, data, at)
            expected[at:at + SECTOR] = data
    assert dev.pread(len(expected), 0) == bytes(expected)
    dev.remove()
    assert content(disks[1]) == bytes(expected)


def test_hydration_survives_a_remount(dmfs, disks):
    d = dmfs()
    dev = d.mkdir("c", line(disks, rest="1 no_hydration"))
    dev.pwrite(b"x" * 4096, 8192, sync=True)
    dev.pwrite(b"y", 100001, sync=True)
    before = fields(dev)
    d.kill()
    d.wait()
    d.close()
    dev = dmfs().mkdir("c", line(disks, rest="1 no_hydration"))
    assert fields(dev) == before == (2, 1024, 0)
    assert dev.pread(4096, 8192) == b"x" * 4096 and dev.pread(1, 100001) == b"y"


def test_discards_skip_hydration(fs, disks):
    dev = fs.mkdir("c", line(disks, rest="2 no_hydration no_discard_passdown"))
    dev.discard(4096 * 10 + 512, 4096 * 5)
    assert fields(dev)[0] == 4, "whole regions only"
    dev.load(line(disks, rest="1 no_hydration"))
    dev.discard(0, 4096 * 4)
    assert fields(dev)[0] == 8
    assert dev.pread(4096 * 4, 0) == bytes(4096 * 4), "passed down to the destination"


def test_holes_of_the_source_are_not_copied(fs, backing):
    disks = (backing(8192), backing(SECTORS), backing(SECTORS))
    with open(disks[2], "r+b") as f:
        f.seek(1 << 20)
        f.write(b"d" * 8192)
    dev = fs.mkdir("c", line(disks))
    hydrate(dev)
    dev.pwrite(b"", 0)
    with dev.open() as fd:
        os.fsync(fd)
    assert content(disks[1]) == content(disks[2])
    assert os.stat(disks[1]).st_blocks * SECTOR <= 65536


def test_blocks_are_both_devices_until_all_is_hydrated(fs, backing):
    meta, dest, source = backing(8192), backing(SECTORS), backing(SECTORS)

    def blocks(path):
        return os.stat(path).st_blocks

    dev = fs.mkdir("c", line((meta, dest, source), rest="1 no_hydration"))
    assert blocks(dev.image) == 0
    with open(source, "r+b") as f:
        f.write(os.urandom(100 * SECTOR))
        os.fsync(f.fileno())
    assert blocks(dev.image) == blocks(source)
    dev.pwrite(b"x" * 4096, 2 << 20)
    assert blocks(dev.image) == blocks(source) + blocks(dest)
    hydrate(dev)
    assert blocks(dev.image) == blocks(dest)


def test_rubbish_under_a_hole_is_gone(fs, backing):
    disks = (backing(8192), backing(SECTORS, b"r" * SECTORS * SECTOR), backing(SECTORS))
    dev = fs.mkdir("c", line(disks))
    hydrate(dev)
    assert dev.pread(SECTORS * SECTOR, 0) == bytes(SECTORS * SECTOR)


def test_the_end_is_an_event(fs, disks):
    dev = fs.mkdir("c", line(disks, rest="1 no_hydration"))
    fd = os.open(dev.file("events"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        before = int(dev.info()["Event number"])
        hydrate(dev)
        text = os.read(fd, 65536).decode()
    finally:
        os.close(fd)
    assert "DM_TARGET=clone DM_ACTION=HYDRATED" in text
    assert int(dev.info()["Event number"]) == before + 1


def test_swapped_to_linear_in_use(fs, disks):
    dev = fs.mkdir("c", line(disks, rest="1 no_hydration"))
    with dev.open() as fd:
        os.pwrite(fd, b"mine" * 1024, 0)
        hydrate(dev)
        dev.load(f"0 {SECTORS} linear {disks[1]} 0")
        assert os.pread(fd, 4096, 0) == b"mine" * 1024
        assert os.pread(fd, 4096, 4096) == content(disks[2])[4096:8192]


def test_messages(fs, disks):
    dev = fs.mkdir("c", line(disks, rest="1 no_hydration"))
    dev.message("hydration_threshold 30")
    dev.message("hydration_batch_size 7")
    assert "4 hydration_threshold 30 hydration_batch_size 7 rw" in dev.status()
    for bad in ("hydration_threshold", "hydration_threshold x", "hydration_threshold 1 2", "hydration_batch_size -1", "foo"):
        with pytest.raises(OSError) as e:
            dev.message(bad)
        assert e.value.errno == errno.EINVAL and dev.error()
    dev.message("hydration_threshold 0")
    dev.message("enable_hydration")
    assert "0 4 hydration_threshold 0" in dev.status()
    dev.message("disable_hydration")
    assert "1 no_hydration" in dev.status()


@pytest.mark.parametrize("change, match", [
    (lambda d: line(d, 4), "Invalid region size '4'"), (lambda d: line(d, 12), "power of 2"),
    (lambda d: line(d, 4194304), "Invalid region size"), (lambda d: line(d, "x"), "Invalid region size"),
    (lambda d: line(d, 16), "don't match"), (lambda d: line(d, 8, length=4096), "don't match"),
    (lambda d: line(d, 8, length=SECTORS + 8), "larger than"), (lambda d: line(d, 8, "1 foo"), "feature argument 'foo'"),
    (lambda d: line(d, 8, "3 no_hydration"), "out of range"), (lambda d: line(d, 8, "2 no_hydration"), "announced"),
    (lambda d: line(d, 8, "0 1 hydration_threshold"), "even"), (lambda d: line(d, 8, "0 2 foo 3"), "core argument 'foo'"),
    (lambda d: line(d, 8, "0 2 hydration_threshold x"), "not a number"),
    (lambda d: line(d, 8, "0 0 more"), "too many"), (lambda d: line(d)[:-2], "number of arguments"),
    (lambda d: line((d[1], d[1], d[2])), "is the destination, too"), (lambda d: line((d[2], d[1], d[2])), "is the source, too"),
    (lambda d: line((d[0], d[0] + "s", d[2])), "than destination device"), (lambda d: line((d[0], d[1], d[0] + "s")), "than source device"),
    (lambda d: line((d[0] + "s", d[1], d[2])), "is too small"), (lambda d: line(d, -8), "Invalid region size"),
    (lambda d: line(d, 8, "0 2 hydration_threshold 4294967296"), "out of range"),
    (lambda d: line((d[0], d[1], d[2] + ".no")), "No such file"), (lambda d: line((d[0] + ".no", d[1], d[2])), "No such file"),
])
def test_bad_lines(fs, disks, change, match):
    fs.mkdir("first", line(disks, rest="1 no_hydration")).remove()
    with open(disks[0] + "s", "wb") as small:
        small.truncate(7 * SECTOR)
    fs.mkdir("c", "0 8 zero").refuse(change(disks) + "\n", code={errno.EINVAL, errno.ENOENT, errno.ENOSPC}, match=match, line=1)


def test_bad_metadata(fs, disks, backing):
    fs.mkdir("c", line(disks, rest="1 no_hydration")).remove()
    good = content(disks[0])
    dev = fs.mkdir("c", "0 8 zero")
    rnd = random.Random(7)
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(rnd.choice([1, 5])):
            at = rnd.randrange(8 * 4096)
            bad[at] ^= 1 << rnd.randrange(8)
        with open(disks[0], "r+b") as f:
            f.write(bad)
        try:
            dev.load(line(disks, rest="1 no_hydration"))
        except OSError:
            assert dev.error()
        else:
            dev.pread(4096, 0)
            dev.load("0 8 zero")
    dev.refuse(line((backing(8), disks[1], disks[2])) + "\n",
               code={errno.ENOSPC, errno.EINVAL, errno.EIO, errno.ENXIO}, line=1)
    dev.refuse(line((backing(8192, os.urandom(1 << 20)), disks[1], disks[2])) + "\n",
               code={errno.EINVAL, errno.EILSEQ, errno.ENOTBLK}, line=1)


def test_a_failing_source_stops_the_hydration_until_told(fs, disks):
    src = fs.mkdir("src", f"0 4000 linear {disks[2]} 0", "4000 192 error", f"4192 4000 linear {disks[2]} 4192")
    dev = fs.mkdir("c", line((disks[0], disks[1], "src"), rest="1 no_hydration"))
    fd = os.open(dev.file("events"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        dev.message("enable_hydration")
        wait_status(dev, lambda text: "hydration_stopped" in text)
        assert b"DM_ACTION=HYDRATION_STOPPED" in os.read(fd, 65536)
    finally:
        os.close(fd)
    hydrated = fields(dev)[0]
    assert 0 < hydrated < 1024
    with pytest.raises(OSError):
        dev.pread(4096, 4000 * SECTOR)
    with pytest.raises(OSError):
        dev.pwrite(b"z", 4001 * SECTOR)
    assert dev.pread(4096, 0) == content(disks[2])[:4096]
    dev.pwrite(b"w" * 4096, 4000 * SECTOR)
    assert dev.pread(4096, 4000 * SECTOR) == b"w" * 4096, "a whole region needs no source"
    src.load(f"0 {SECTORS} linear {disks[2]} 0")
    hydrate(dev)
    assert "hydration_stopped" not in dev.status()
    expected = bytearray(content(disks[2]))
    expected[4000 * SECTOR:4000 * SECTOR + 4096] = b"w" * 4096
    assert dev.pread(len(expected), 0) == bytes(expected)


def test_a_source_cut_short_is_no_hole(fs, disks):
    """What cannot be read is retried when it is back, not taken for zeroes."""
    expected = content(disks[2])
    dev = fs.mkdir("c", line(disks, rest="1 no_hydration"))
    os.truncate(disks[2], 1000 * SECTOR)
    dev.message("enable_hydration")
    wait_status(dev, lambda text: "hydration_stopped" in text)
    assert fields(dev)[0] == 125
    with pytest.raises(OSError):
        dev.pread(4096, 2 << 20)
    with open(disks[2], "r+b") as f:
        f.write(expected)
    hydrate(dev)
    assert dev.pread(len(expected), 0) == expected == content(disks[1])


def test_a_failing_destination_loses_nothing(fs, disks):
    dst = fs.mkdir("dst", f"0 4000 linear {disks[1]} 0", "4000 192 error", f"4192 4000 linear {disks[1]} 4192")
    dev = fs.mkdir("c", line((disks[0], "dst", disks[2])))
    wait_status(dev, lambda text: "hydration_stopped" in text)
    assert dev.pread(SECTORS * SECTOR, 0) == content(disks[2])
    with pytest.raises(OSError):
        dev.pwrite(b"z" * 4096, 4000 * SECTOR)
    assert dev.pread(4096, 4000 * SECTOR) == content(disks[2])[4000 * SECTOR:4000 * SECTOR + 4096]
    dst.load(f"0 {SECTORS} linear {disks[1]} 0")
    hydrate(dev)
    assert dev.pread(SECTORS * SECTOR, 0) == content(disks[2])


NO_WRITES = "0 8192 flakey {} 0 0 60 1 error_writes"


def test_metadata_that_cannot_be_written_makes_it_read_only(fs, disks):
    meta = fs.mkdir("meta", f"0 8192 linear {disks[0]} 0")
    dev = fs.mkdir("c", line(("meta", disks[1], disks[2]), rest="1 no_hydration"))
    dev.pwrite(b"d" * 4096, 4096, sync=True)
    meta.load(NO_WRITES.format(disks[0]))
    events = dev.info()["Event number"]
    with dev.open() as fd:
        os.pwrite(fd, b"a" * 4096, 0)
        with pytest.raises(OSError):
            os.fsync(fd)
        assert dev.status().rstrip().endswith(" ro")
        assert fields(dev)[0] == 1, "what is on the disk"
        assert dev.info()["Event number"] != events
        assert os.pread(fd, 4096, 0) == b"a" * 4096, "what was written is read"
        os.pwrite(fd, b"b" * 4096, 4096)
        with pytest.raises(OSError):
            os.pwrite(fd, b"a" * 4096, 65536)
            os.fsync(fd)
        assert os.pread(fd, 4096, 131072) == content(disks[2])[131072:135168]
    dev.message("enable_hydration")
    meta.load(f"0 8192 linear {disks[0]} 0")
    with dev.open() as fd, pytest.raises(OSError):
        os.fsync(fd)
    assert dev.status().rstrip().endswith(" ro"), "until it is loaded again"
    dev.load(line(("meta", disks[1], disks[2]), rest="1 no_hydration"))
    assert dev.status().rstrip().endswith(" rw") and fields(dev)[0] == 1
    assert dev.pread(8192, 0) == content(disks[2])[:4096] + b"b" * 4096
    dev.pwrite(b"c" * 4096, 65536, sync=True)
    assert fields(dev)[0] == 2


def test_metadata_that_cannot_be_read_back_either_makes_it_fail(fs, disks):
    meta = fs.mkdir("meta", f"0 8192 linear {disks[0]} 0")
    dev = fs.mkdir("c", line(("meta", disks[1], disks[2]), rest="1 no_hydration"))
    dev.pwrite(b"d" * 4096, 4096, sync=True)
    meta.load("0 8192 error")
    events = dev.info()["Event number"]
    with dev.open() as fd:
        os.pwrite(fd, b"a" * 4096, 0)
        with pytest.raises(OSError):
            os.fsync(fd)
    assert dev.status() == f"0 {SECTORS} clone Fail\n"
    assert dev.info()["Event number"] != events
    for at in (0, 4096, 131072):
        with pytest.raises(OSError):
            dev.pread(4096, at)
        with pytest.raises(OSError):
            dev.pwrite(b"x" * 4096, at, sync=True)
    meta.load(f"0 8192 linear {disks[0]} 0")
    assert dev.status() == f"0 {SECTORS} clone Fail\n", "until it is loaded again"
    dev.load(line(("meta", disks[1], disks[2])))
    wait_status(dev, lambda text: "1024/1024" in text)
    expected = bytearray(content(disks[2]))
    expected[4096:8192] = b"d" * 4096
    assert dev.pread(len(expected), 0) == bytes(expected), "nothing hydrated is lost, the rest is retried"


def test_a_status_that_flushes_commits_what_has_changed(fs, disks):
    """As the kernel's: what is hydrated is on the disk then, or the metadata is found broken."""
    meta = fs.mkdir("meta", f"0 8192 linear {disks[0]} 0")
    dev = fs.mkdir("c", line(("meta", disks[1], disks[2]), rest="1 no_hydration"))
    dev.pwrite(b"d" * 4096, 4096)
    assert "1/1024" in dev.message("@flush status")
    before = content(disks[0])
    assert dev.message("@flush status") == dev.status() and content(disks[0]) == before
    meta.load("0 8192 error")
    assert "1/1024" in dev.message("@flush status"), "nothing has changed"
    dev.pwrite(b"d" * 4096, 65536)
    assert dev.message("@flush status") == dev.status() == f"0 {SECTORS} clone Fail\n"


def test_a_terabyte_opens_at_once(fs, backing):
    sectors = 1 << 31
    disks = (backing(1 << 18), backing(sectors), backing(sectors))
    dev = fs.mkdir("c", line(disks, 8, "1 no_hydration", sectors))
    before = fs.rss_kib()
    other = fs.mkdir("d", line((backing(1 << 18), disks[1], disks[2]), 8, "1 no_hydration", sectors))
    if not mounted.sanitized():     # they have shadows of it
        assert (fs.rss_kib() - before) * 1024 * 8 <= 2 * (sectors // 8)
    dev.pwrite(b"end", (1 << 40) - 3)
    assert dev.pread(3, (1 << 40) - 3) == b"end" and fields(dev)[0] == 1
    other.remove()


# --- the document's example, and a source that is far away ---------------------------------------


@pytest.fixture
def filesystem(work, sh):
    """Metadata, destination, and a source with a file system of 16 MiB that holds a file of 2 MiB; and where to mount."""
    data = os.urandom(2 << 20)
    os.makedirs(os.path.join(work, "root"))
    os.mkdir(os.path.join(work, "mnt"))
    with open(os.path.join(work, "root/file"), "wb") as f:
        f.write(data)
    sh("truncate -s 16M source dest; truncate -s 4M meta; mke2fs -q -t ext4 -F -d root source")
    yield data
    sh("umount mnt", check=False)


@pytest.mark.root
@pytest.mark.parametrize("example", ["clone-filesystem meta dest source mnt", "clone-slow 5 meta dest source mnt"])
def test_the_clone_of_a_mounted_file_system(fs, sh, work, filesystem, example):
    script = f'exec {TOP}/contrib/examples/{example} "$@"'.replace(" source mnt", f" {work}/source mnt")
    done = sh(script, "sh", "-c", 'cat "$DMFS_MOUNT/clone/status"; cmp mnt/file root/file && cp mnt/file mnt/copy',
              DMFS_MOUNT=fs.mountpoint, PATH=f"{mounted.build_dir()}:{os.environ['PATH']}:/usr/sbin:/sbin")
    assert " clone 8 " in done.stdout
    assert fs["clone"].table() == f"0 32768 linear {work}/dest 0\n"
    sh("cmp mnt/copy root/file; echo more >mnt/more; umount mnt; e2fsck -fn dest")
    assert filesystem in content(os.path.join(work, "dest"))
    assert os.stat(os.path.join(work, "dest")).st_blocks < 12 << 11, "what is not used was not copied"
    fs["clone"].remove()
