# SPDX-License-Identifier: GPL-2.0-or-later
"""zoned through the mount, on zoned files; dmfs-zone dm-check judges the metadata after every test."""

import errno
import os
import random
import struct
import time
import zlib

import pytest

import zones
from mounted import SECTOR, pattern, quote

ZONE = 512              # sectors
BYTES = ZONE * SECTOR
BLOCK = 4096
MAGIC = b"DBZD"


def tool(command, *paths, check=True):
    return zones.run(command, *paths, check=check)


class Disk:
    """paths: the devices; line: the table's."""

    def __init__(self, paths, *options):
        self.paths = paths
        self.sectors = int(zones.run("dm-format", *paths, *options).stdout)
        self.line = f"0 {self.sectors} zoned {' '.join(map(quote, paths))}"

    def check(self):
        return tool("dm-check", *self.paths).stdout


@pytest.fixture
def single(fs, work):
    """single(ZONES, CONVENTIONAL, *OPTIONS): a disk; what of it is in use is removed and checked at the end."""
    made = []

    def make(n=33, conventional=5, *options, disk=()):
        path = zones.make(os.path.join(work, f"disk{len(made)}"), n, ZONE, conventional, *disk)
        made.append(Disk([path], *options))
        return made[-1]

    yield make
    for name in fs.devices():
        fs[name].remove()
    for d in made:
        d.check()


@pytest.fixture
def several(fs, work, backing):
    made = []

    def make(regular=10 * ZONE, disks=(12, 8), conventional=0):
        paths = [backing(regular, name="regular")]
        paths += [zones.make(os.path.join(work, f"part{i}"), n, ZONE, conventional) for i, n in enumerate(disks)]
        made.append(Disk(paths))
        return made[-1]

    yield make
    for name in fs.devices():
        fs[name].remove()
    for d in made:
        d.check()


def free(dev):
    """{kind: (unmapped, total)}, summed over devices."""
    words = dev.status().split()[3:]
    assert words[1] == "zones"
    out = {}
    for count, kind in zip(words[2::2], words[3::2]):
        a, b = map(int, count.split("/"))
        old = out.get(kind, (0, 0))
        out[kind] = old[0] + a, old[1] + b
    return out


def wait_free(dev, kind, enough):
    """Until reclaim has freed so many zones; it raises no event, so it is asked anew."""
    end = time.monotonic() + 300
    while free(dev)[kind][0] < enough:
        assert time.monotonic() < end, dev.status()
        dev.message("@flush status")


def test_status_and_table(fs, single):
    disk = single()
    assert disk.sectors == 27 * ZONE
    dev = fs.mkdir("v", disk.line)
    assert dev.status() == f"0 {disk.sectors} zoned 33 zones 0/0 cache 3/3 random 24/24 sequential\n"
    assert dev.table() == disk.line + "\n" and dev.size() == disk.sectors * SECTOR
    dev.refuse("erase\n", errno.EINVAL, "zoned: unrecognized message 'erase'", to="message", flags=0)
    assert dev.pread(8192, BYTES - 4096) == bytes(8192)


def test_where_writes_go(fs, single):
    dev = fs.mkdir("v", single(40, 12).line)
    dev.pwrite(pattern(ZONE, 1), 0)                             # a chunk from its begin: a sequential zone
    assert free(dev) == {"cache": (0, 0), "random": (10, 10), "sequential": (16, 17)}
    dev.pwrite(pattern(8, 2), BYTES + BLOCK)                    # amid one: a random zone
    assert free(dev)["random"] == (9, 10)
    dev.pwrite(pattern(8, 3), 2 * BLOCK)                        # over what is there: a buffer
    assert free(dev) == {"cache": (0, 0), "random": (8, 10), "sequential": (16, 17)}
    assert dev.pread(BYTES, 0) == pattern(ZONE, 1)[:2 * BLOCK] + pattern(8, 3) + pattern(ZONE, 1)[3 * BLOCK:]
    assert dev.pread(3 * BLOCK, BYTES) == bytes(BLOCK) + pattern(8, 2) + bytes(BLOCK)
    dev.pwrite(pattern(ZONE, 4), 0)                             # the zone has nothing valid any more: the buffer takes its place
    assert free(dev) == {"cache": (0, 0), "random": (8, 10), "sequential": (17, 17)}
    assert dev.pread(BYTES, 0) == pattern(ZONE, 4)
    dev.discard(0, BYTES)
    dev.zero(BYTES, BYTES)
    assert free(dev) == {"cache": (0, 0), "random": (10, 10), "sequential": (17, 17)}
    assert dev.pread(2 * BYTES, 0) == bytes(2 * BYTES)


def test_reclaim(fs, single):
    dev = fs.mkdir("v", single(64, 16).line)
    want = {}
    for chunk in range(3):                                      # buffers before and after write pointers, and gaps
        dev.pwrite(pattern(ZONE // 2, chunk), chunk * BYTES)
        dev.pwrite(pattern(8, 50 + chunk), chunk * BYTES + (BYTES * 3 // 4 if chunk else 0))
        want[chunk] = dev.pread(BYTES, chunk * BYTES)
    for chunk in range(3, 6):
        dev.pwrite(pattern(24, chunk), chunk * BYTES + 10 * BLOCK)
        want[chunk] = dev.pread(BYTES, chunk * BYTES)
    assert free(dev)["random"] == (6, 12)
    dev.message("RECLAIM")
    wait_free(dev, "random", 12)
    for chunk, data in want.items():
        assert dev.pread(BYTES, chunk * BYTES) == data
    dev.load(dev.table())
    for chunk, data in want.items():
        assert dev.pread(BYTES, chunk * BYTES) == data


def test_writes_wait_for_reclaim(fs, single):
    """More chunks are written at random than there are zones for that."""
    dev = fs.mkdir("v", single(40, 4).line)
    rng = random.Random(7)
    want = bytearray(dev.size())
    with dev.open() as fd:
        for i in range(120):
            at, n = rng.randrange(len(want) // BLOCK), rng.choice((1, 1, 1, 2, 8))
            data = pattern(8 * n, i)[:min(n * BLOCK, len(want) - at * BLOCK)]
            os.pwrite(fd, data, at * BLOCK)
            want[at * BLOCK:at * BLOCK + len(data)] = data
            if not i % 30:
                os.fsync(fd)
        os.fsync(fd)
    assert dev.pread(len(want), 0) == want
    dev.load(dev.table())
    assert dev.pread(len(want), 0) == want


def test_the_whole_of_it_can_be_filled(fs, single):
    dev = fs.mkdir("v", single(20, 4).line)
    with dev.open() as fd:
        for chunk in reversed(range(dev.size() // BYTES)):
            os.pwrite(fd, pattern(ZONE, chunk), chunk * BYTES)
        for chunk in range(dev.size() // BYTES):
            os.pwrite(fd, pattern(8, 99 + chunk), chunk * BYTES + 5 * BLOCK)
        os.fsync(fd)
    for chunk in range(dev.size() // BYTES):
        data = pattern(ZONE, chunk)
        assert dev.pread(BYTES, chunk * BYTES) == data[:5 * BLOCK] + pattern(8, 99 + chunk) + data[6 * BLOCK:]


def test_several_devices(fs, several):
    disk = several()
    dev = fs.mkdir("v", disk.line)
    assert dev.status() == f"0 {disk.sectors} zoned 30 zones 8/8 cache 0/0 random 0/4 sequential 0/0 random 7/7 sequential\n" \
        or free(dev)["cache"] == (8, 8)
    dev.pwrite(pattern(ZONE, 1), 0)
    dev.pwrite(pattern(8, 2), BYTES + BLOCK)
    assert free(dev)["cache"][0] == 7
    dev.message("reclaim")
    wait_free(dev, "cache", 8)
    assert dev.pread(BYTES, 0) == pattern(ZONE, 1) and dev.pread(BLOCK, BYTES + BLOCK) == pattern(8, 2)
    dev.remove()
    # in another order, and one of another disk
    a, b, c = map(quote, disk.paths)
    empty = fs.mkdir("w")
    empty.refuse(f"0 {disk.sectors} zoned {a} {c} {b}\n", errno.EINVAL, "wrong place")
    empty.refuse(f"0 {disk.sectors} zoned {b} {a} {c}\n", errno.EINVAL, "First device must be a regular device")
    empty.refuse(f"0 {disk.sectors} zoned {a} {b}\n", errno.EINVAL, "Invalid")
    empty.refuse(f"0 {disk.sectors} zoned {a} {b} {b}\n", errno.EINVAL, "twice")
    empty.refuse(f"0 {disk.sectors} zoned {a}\n", errno.EINVAL, "Invalid regular device")


def test_device_of_another_disk(fs, several, work):
    disk = several(disks=(12,))
    foreign = zones.make(os.path.join(work, "foreign"), 12, ZONE, 0)
    with open(os.path.join(work, "r2"), "wb") as f:
        f.truncate(10 * BYTES)
    Disk([os.path.join(work, "r2"), foreign])
    fs.mkdir("w").refuse(f"0 {disk.sectors} zoned {quote(disk.paths[0])} {quote(foreign)}\n", errno.EINVAL, "another disk")


@pytest.mark.parametrize("args, match", [
    ("", "Invalid argument count"), ("nothing", "Get target device failed"), ("{plain}", "Invalid regular device"),
    ("{blank}", "Invalid meta magic"), ("{conventional}", "Invalid meta magic")])
def test_bad_lines(fs, work, backing, args, match):
    names = {"plain": backing(20 * ZONE), "blank": zones.make(os.path.join(work, "blank"), 8, ZONE, 4),
             "conventional": zones.make(os.path.join(work, "conventional"), 8, ZONE, 8)}
    line = args.format(**{k: quote(v) for k, v in names.items()})
    fs.mkdir("v").refuse(f"0 {4 * ZONE} zoned {line}\n", (errno.EINVAL, errno.ENOENT, errno.ENXIO), match)


def test_one_table_alone(fs, single):
    disk = single()
    fs.mkdir("v", disk.line)
    fs.mkdir("w").refuse(disk.line + "\n", errno.EBUSY, "zoned")


def super_block(path, zone):
    with open(path, "rb") as f:
        f.seek(zone * BYTES)
        return bytearray(f.read(BLOCK))


def crc(block):
    """As the format has it: begun with the generation, not inverted."""
    seed = struct.unpack_from("<Q", block, 8)[0] & 0xffffffff
    data = bytes(block[:44]) + bytes(4) + bytes(block[48:])
    return zlib.crc32(data, seed ^ 0xffffffff) ^ 0xffffffff


def test_superblocks(fs, single):
    disk = single()
    path = disk.paths[0]
    a, b = super_block(path, 0), super_block(path, 1)
    assert a[:4] == MAGIC and struct.unpack_from("<I", a, 44)[0] == crc(a)
    assert struct.unpack_from("<IQQIIIII", a, 4) == (2, 1, 0, 35, 4, 27, 1, 33)
    assert struct.unpack_from("<IQQIIIII", b, 4) == (2, 1, BYTES // BLOCK, 35, 4, 27, 1, 33)
    assert a[48:80].rstrip(b"\0") == b"dmz-disk0" and a[80:96] == b[80:96] != bytes(16) and a[96:112] == b[96:112]
    with open(path, "rb") as f:
        f.seek(BLOCK)
        assert f.read(BLOCK) == b"\xff" * BLOCK and f.read(33 * BLOCK) == bytes(33 * BLOCK)
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(8, 1), 3 * BYTES, sync=True)
    a, b = super_block(path, 0), super_block(path, 1)
    assert struct.unpack_from("<Q", a, 8) == struct.unpack_from("<Q", b, 8) == (2,)
    with open(path, "rb") as f:
        f.seek(BLOCK + 3 * 8)
        assert struct.unpack("<II", f.read(8)) == (9, 0xffffffff)     # the first that is not kept for reclaim
        f.seek(2 * BLOCK + 9 * BLOCK)
        assert f.read(4) == b"\x01\0\0\0"


def test_version_1(fs, single):
    disk = single(33, 5, "--dm-version=1")
    assert struct.unpack_from("<I", super_block(disk.paths[0], 0), 4) == (1,)
    assert super_block(disk.paths[0], 0)[48:] == bytes(BLOCK - 48)
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(8, 1), 0)
    dev.load(dev.table())
    assert dev.pread(BLOCK, 0) == pattern(8, 1)


def damage(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


@pytest.mark.parametrize("zone", (0, 1))
@pytest.mark.parametrize("where", ("super", "all"))
def test_recovery_from_the_other_set(fs, single, zone, where):
    disk = single()
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(8, 1), 5 * BLOCK)
    dev.remove()
    damage(disk.paths[0], zone * BYTES, b"\x5a" * (BLOCK if where == "super" else BYTES))
    done = tool("dm-check", *disk.paths, check=False)
    assert done.returncode
    dev = fs.mkdir("v", disk.line)
    assert dev.pread(BLOCK, 5 * BLOCK) == pattern(8, 1)
    assert "invalid: recovered" in fs.read("log")


def test_a_commit_cut_off(fs, single):
    """A crash amid the first half of a commit: the second set has blocks of no generation."""
    disk = single()
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(8, 1), 0)
    dev.remove()
    damage(disk.paths[0], BYTES + BLOCK, struct.pack("<II", 30, 3))
    dev = fs.mkdir("v", disk.line)
    assert "of a commit that was cut off" in fs.read("log")
    assert dev.pread(BLOCK, 0) == pattern(8, 1)
    dev.remove()
    # with the second half begun it is the second set that is true
    block = super_block(disk.paths[0], 1)
    struct.pack_into("<Q", block, 8, struct.unpack_from("<Q", block, 8)[0] + 1)
    struct.pack_into("<I", block, 44, crc(block))
    damage(disk.paths[0], BYTES, block)
    damage(disk.paths[0], BLOCK, b"\0" * BLOCK)
    dev = fs.mkdir("v", disk.line)
    assert dev.pread(BLOCK, 0) == pattern(8, 1)


def test_both_sets_bad(fs, single, work):
    disk = single()
    for zone in 0, 1:
        damage(disk.paths[0], zone * BYTES + 8, b"\x07")
    fs.mkdir("v").refuse(disk.line + "\n", errno.EINVAL, "zoned: Invalid checksum")
    assert "Invalid checksum" in tool("dm-repair", *disk.paths, check=False).stderr
    tool("dm-format", *disk.paths)


@pytest.mark.parametrize("entry, match", [
    ((99, 0xffffffff), "invalid data zone ID 99"), ((1, 0xffffffff), "holds metadata"), ((9, 10), "invalid buffer zone 10"),
    ((9, 9), "another chunk's"), ((0xffffffff, 3), "no data zone")])
def test_bad_mapping(fs, single, entry, match):
    disk = single()
    good = []
    for zone in 0, 1:
        with open(disk.paths[0], "rb") as f:
            f.seek(zone * BYTES + BLOCK)
            good.append(f.read(8))
        damage(disk.paths[0], zone * BYTES + BLOCK, struct.pack("<II", *entry))
    fs.mkdir("v").refuse(disk.line + "\n", errno.EINVAL, match)
    assert match in tool("dm-check", *disk.paths, check=False).stderr
    for zone in 0, 1:
        damage(disk.paths[0], zone * BYTES + BLOCK, good[zone])


def test_a_write_pointer_that_went_backwards(fs, single):
    disk = single()
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(ZONE, 1), 0)
    dev.remove()
    zone = next(i for i, z in enumerate(zones.report(disk.paths[0])) if z.condition == "fu")
    zones.run("reset", "-o", zone * ZONE, "-c", 1, disk.paths[0])
    assert "beyond its write pointer" in tool("dm-check", *disk.paths, check=False).stdout
    dev = fs.mkdir("v", disk.line)
    with pytest.raises(OSError) as e:
        dev.pread(BLOCK, 0)
    assert e.value.errno == errno.EIO and "they are lost" in fs.read("log")
    dev.pwrite(pattern(8, 2), 0)
    assert dev.pread(BLOCK, 0) == pattern(8, 2)
    dev.remove()
    assert "repaired" in tool("dm-repair", *disk.paths).stdout


def test_check_and_repair(fs, single):
    disk = single()
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(ZONE, 1), 0)
    dev.pwrite(pattern(8, 2), 2 * BLOCK)
    dev.remove()
    disk.check()
    data = next(i for i, z in enumerate(zones.report(disk.paths[0])) if z.condition == "fu")
    for zone in 0, 1:
        damage(disk.paths[0], zone * BYTES + (2 + data) * BLOCK, b"\xff")       # the buffered block is valid twice
        damage(disk.paths[0], zone * BYTES + (2 + 31) * BLOCK, b"\x03")         # of a zone of no chunk
    damage(disk.paths[0], BYTES + (2 + 32) * BLOCK, b"\x01")
    done = tool("dm-check", *disk.paths, check=False)
    assert done.returncode and "valid in zone" in done.stdout and "of no chunk has 2" in done.stdout
    assert "the sets differ in 1 blocks" in done.stdout
    tool("dm-repair", *disk.paths)
    disk.check()
    dev = fs.mkdir("v", disk.line)
    assert dev.pread(BLOCK, 2 * BLOCK) == pattern(8, 2) and dev.pread(BLOCK, 0) == pattern(ZONE, 1)[:BLOCK]


def test_a_killed_daemon_keeps_what_was_flushed(dmfs, work):
    disk = Disk([zones.make(os.path.join(work, "d"), 33, ZONE, 6)])
    fs = dmfs()
    dev = fs.mkdir("v", disk.line)
    for i in range(40):
        dev.pwrite(pattern(8, i), i * 37 * BLOCK, sync=True)
    dev.pwrite(pattern(64, 77), 0)
    fs.kill()
    fs.wait()
    fs.close()
    dev = dmfs().mkdir("v", disk.line)      # a commit that was cut off, which dm-check would tell, is gone back on
    for i in range(1, 40):
        assert dev.pread(BLOCK, i * 37 * BLOCK) == pattern(8, i)
    dev.remove()
    disk.check()


def test_read_only(fs, single):
    disk = single()
    dev = fs.mkdir("v", disk.line)
    dev.pwrite(pattern(8, 1), 0)
    dev.remove()
    with open(disk.paths[0] + ".zones", "rb") as f:
        before = f.read()
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    dev.load(disk.line)
    assert dev.pread(BLOCK, 0) == pattern(8, 1)
    dev.refuse("reclaim", errno.EROFS, "read-only", to="message", flags=0)
    dev.remove()
    with open(disk.paths[0] + ".zones", "rb") as f:
        assert f.read() == before


def test_lines_shorter_and_longer(fs, single):
    """As in the kernel the line's length is not checked; what is beyond the chunks is not there."""
    disk = single()
    dev = fs.mkdir("v", disk.line.replace(f"0 {disk.sectors}", f"0 {disk.sectors + ZONE}"))
    assert dev.size() == disk.sectors * SECTOR and dev.status().startswith(f"0 {disk.sectors + ZONE} zoned")
    dev.load(disk.line.replace(f"0 {disk.sectors}", f"0 {2 * ZONE}"))
    assert dev.size() == 2 * BYTES


@pytest.mark.parametrize("paths, args, match", [
    (("blank",), ["--dm-version=3"], "1 or 2"), (("blank",), ["--label=" + "x" * 40], "up to 31 bytes"),
    (("plain",), [], "Invalid regular device"), (("few",), [], "3 are needed"), (("blank",), ["--size=3"], "only for format")])
def test_bad_format(work, backing, paths, args, match):
    names = {"plain": backing(20 * ZONE), "blank": zones.make(os.path.join(work, "blank"), 8, ZONE, 4),
             "few": zones.make(os.path.join(work, "few"), 8, ZONE, 2)}
    done = zones.run("dm-format", *(names[p] for p in paths), *args, check=False)
    assert done.returncode and match in done.stderr


def test_memory(fs, work):
    """10 TiB with zones of 256 MiB, a disk of 40960 zones: the target takes a few MiB, as the document promises."""
    path = os.path.join(work, "large")
    try:
        zones.run("format", path, "--size=10T", "--zone-size=256M", "--conventional=400")
    except AssertionError as e:
        if "too large" in str(e):
            pytest.skip("the file system has no files of 10 TiB")
        raise
    disk = Disk([path])
    low = fs.mkdir("low", f"0 {10 << 31} linear {quote(path)} 0")     # the store's own memory is not the target's
    with low.open() as fd:                                            # nor are the threads and their buffers
        for i in range(300):
            os.pread(fd, 1 << 20, i * (256 << 20))
    before = fs.rss_kib()
    dev = fs.mkdir("v", disk.line.replace(quote(path), "low"))
    with dev.open() as fd:
        for i in range(300):
            os.pwrite(fd, pattern(8, i), i * (256 << 20) + (8192 if i % 2 else 0))
        os.fsync(fd)
        assert os.pread(fd, BLOCK, 299 * (256 << 20) + 8192) == pattern(8, 299)
    assert fs.rss_kib() - before < 5000 + 5000      # the threads' stacks too, and what the allocator keeps
    dev.remove()
    low.remove()
