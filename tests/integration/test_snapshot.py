# SPDX-License-Identifier: GPL-2.0-or-later
"""snapshot, snapshot-origin and snapshot-merge through the mount."""

import os
import random
import struct
import threading

import pytest

import mounted
from mounted import SECTOR, pattern, quote

MAGIC = 0x70416e53
SIZE = 2048         # sectors of an origin
COW = 4096


class Volume:
    """LVM's quartet: real, cow, snap and base, on two files."""

    def __init__(self, fs, backing, chunk=8, kind="P", size=SIZE, cow=COW, features="", data=None):
        self.fs, self.size, self.chunk, self.kind, self.features = fs, size, chunk, kind, features
        self.old = data if data is not None else pattern(size, seed=1)
        self.origin_file = backing(size, self.old)
        self.cow_file = backing(cow)
        self.real = fs.mkdir("real", f"0 {size} linear {quote(self.origin_file)} 0")
        self.cow = fs.mkdir("cow", f"0 {cow} linear {quote(self.cow_file)} 0")
        self.base = fs.mkdir("base", f"0 {size} linear real 0")
        self.snap = fs.mkdir("snap", self.line())
        self.base.load(f"0 {size} snapshot-origin real")

    def line(self, target="snapshot", cow="cow", kind=None):
        return f"0 {self.size} {target} real {cow} {kind or self.kind} {self.chunk}{self.features}"

    def all(self, dev):
        return dev.pread(self.size * SECTOR, 0)

    def usage(self, dev=None):
        """allocated, total and metadata sectors."""
        words = (dev or self.snap).status().split()
        allocated, total = words[3].split("/")
        return int(allocated), int(total), int(words[4])


def wait_for_merge(dev):
    """The seed's loop, waiting on the file instead of sleeping."""
    import select
    with open(dev.file("status"), encoding="ascii") as f:
        poller = select.poll()
        poller.register(f, select.POLLPRI)
        while True:
            poller.poll(100)
            f.seek(0)
            words = f.read().split()
            assert words[2] == "snapshot-merge", words
            if words[3].split("/")[0] == words[4]:
                return


def test_provisioning_fills_no_cow(fs, backing):
    v = Volume(fs, backing)
    v.snap.pwrite(b"x" * 4096, 0)
    before = v.usage()
    for dev in (v.snap, v.base):
        with dev.open() as fd:
            os.posix_fallocate(fd, 0, SIZE * SECTOR)
            mounted.fallocate(fd, mounted.FALLOC_KEEP_SIZE, 512, 8192)
    assert v.usage() == before
    assert v.all(v.snap) == b"x" * 4096 + v.old[4096:] and v.all(v.base) == v.old


def test_blocks_are_the_origins_and_the_exceptions(fs, backing):
    v = Volume(fs, backing, chunk=16, size=1 << 20, data=pattern(64))

    def blocks(path):
        return os.stat(path).st_blocks

    of_origin = blocks(v.origin_file)
    assert of_origin < 1024 and blocks(v.snap.image) == blocks(v.base.image) == of_origin
    v.snap.pwrite(b"x" * 512, 1 << 20)
    v.snap.pwrite(b"x" * 512, 2 << 20)
    assert blocks(v.snap.image) == of_origin + 32 and blocks(v.base.image) == of_origin
    v.base.pwrite(b"y" * 8192, 3 << 20)
    assert blocks(v.snap.image) == blocks(v.origin_file) + 48


@pytest.mark.parametrize("kind", ["P", "PO", "N", "p", "po", "n"])
@pytest.mark.parametrize("chunk", [1, 8, 16, 128, 256])
def test_each_sees_its_own(fs, backing, kind, chunk):
    v = Volume(fs, backing, chunk, kind)
    assert v.all(v.snap) == v.old and v.all(v.base) == v.old
    base, snap = bytearray(v.old), bytearray(v.old)
    rng = random.Random(chunk)
    for i in range(40):
        at = rng.randrange(v.size) * SECTOR
        data = os.urandom(min(rng.choice((512, 4096, 65536)), v.size * SECTOR - at))
        if i % 2:
            v.base.pwrite(data, at)
            base[at:at + len(data)] = data
        else:
            v.snap.pwrite(data, at)
            snap[at:at + len(data)] = data
    assert v.all(v.base) == base
    assert v.all(v.snap) == snap
    with open(v.origin_file, "rb") as f:
        assert f.read() == base


def merge(v):
    """lvconvert --merge: base takes over the snapshot's store."""
    v.snap.suspend()
    v.base.load(v.line("snapshot-merge"))
    wait_for_merge(v.base)


@pytest.mark.parametrize("chunk", [1, 8, 16, 128])
def test_merge_brings_the_snapshot_back(fs, backing, chunk):
    v = Volume(fs, backing, chunk, cow=3 * SIZE)
    snap = bytearray(v.old)
    rng = random.Random(chunk)
    for i in range(60):
        at = rng.randrange(v.size) * SECTOR
        data = os.urandom(min(rng.choice((512, 4096, 65536)), v.size * SECTOR - at))
        (v.base if i % 2 else v.snap).pwrite(data, at)
        if not i % 2:
            snap[at:at + len(data)] = data
    assert v.all(v.snap) == snap
    merge(v)
    assert v.all(v.base) == snap
    allocated, total, metadata = v.usage(v.base)
    assert (allocated, total, metadata) == (2 * chunk, 3 * SIZE, 2 * chunk)
    # The old snapshot is still there and of no use any more.
    v.snap.resume()
    assert v.snap.status().split()[3] == "Invalid"
    with pytest.raises(OSError):
        v.snap.pread(512, 0)
    # LVM's next step
    v.base.load(f"0 {v.size} linear real 0")
    v.snap.remove()
    assert v.all(v.base) == snap
    with open(v.origin_file, "rb") as f:
        assert f.read() == snap


def test_base_is_written_while_it_merges(fs, backing):
    v = Volume(fs, backing, 8, size=65536, cow=3 * 65536)
    want = bytearray(v.old)
    rng = random.Random(3)
    for _ in range(500):
        at = rng.randrange(v.size - 8) * SECTOR
        data = os.urandom(2048)
        v.snap.pwrite(data, at)
        want[at:at + 2048] = data
    v.snap.suspend()
    v.base.load(v.line("snapshot-merge"))
    for _ in range(500):
        at = rng.randrange(v.size - 8) * SECTOR
        data = os.urandom(2048)
        v.base.pwrite(data, at)
        want[at:at + 2048] = data
        assert v.base.pread(2048, at) == data
    wait_for_merge(v.base)
    assert v.all(v.base) == want


def test_merge_goes_on_after_a_suspend(fs, backing):
    v = Volume(fs, backing, 8, size=65536, cow=3 * 65536)
    v.snap.pwrite(new := pattern(32768, seed=5), 0)
    v.snap.suspend()
    v.base.load(v.line("snapshot-merge"))
    for _ in range(20):
        v.base.suspend()
        before = v.base.status()
        assert v.base.status() == before
        v.base.resume()
    wait_for_merge(v.base)
    assert v.all(v.base) == new + v.old[len(new):]


def test_other_snapshots_are_saved_from_a_merge(fs, backing):
    v = Volume(fs, backing, 16)
    other = fs.mkdir("other", f"0 {SIZE} snapshot real {quote(backing(COW))} P 8")
    v.snap.pwrite(new := os.urandom(100 * SECTOR), 300 * SECTOR)
    merge(v)
    assert v.all(other) == v.old
    assert v.all(v.base) == v.old[:300 * SECTOR] + new + v.old[400 * SECTOR:]


@pytest.mark.parametrize("kind", ["P", "PO", "N"])
def test_full_by_a_write_to_the_snapshot(fs, backing, kind):
    v = Volume(fs, backing, 8, kind, cow=8 * 20)
    written = 0
    with pytest.raises(OSError):
        for n in range(30):
            v.snap.pwrite(b"x" * 4096, n * 4096, sync=True)
            written += 1
    assert written == (20 if kind == "N" else 18)
    state = v.snap.status().split()[3]
    if kind == "PO":
        assert state == "Overflow"
        assert v.snap.pread(4096, 0) == b"x" * 4096         # still good for reading
        assert v.snap.pread(4096, 29 * 4096) == v.old[29 * 4096:30 * 4096]
    else:
        assert state == "Invalid"
        with pytest.raises(OSError):
            v.snap.pread(4096, 0)
    assert v.all(v.base) == v.old


@pytest.mark.parametrize("kind", ["P", "PO", "N"])
def test_full_by_a_write_to_the_origin(fs, backing, kind):
    v = Volume(fs, backing, 8, kind, cow=8 * 20)
    new = os.urandom(30 * 4096)
    v.base.pwrite(new, 0)           # never fails
    assert v.base.pread(len(new), 0) == new
    assert v.snap.status().split()[3] == "Invalid"
    with pytest.raises(OSError):
        v.snap.pread(4096, 40 * 4096)
    if kind != "N":
        with open(v.cow_file, "rb") as f:
            assert struct.unpack("<IIII", f.read(16)) == (MAGIC, 0, 1, 8)
        # and stays so
        v.snap.load(v.line())
        assert v.snap.status().split()[3] == "Invalid"


def test_the_event_number_counts_a_full_snapshot(fs, backing):
    v = Volume(fs, backing, 8, cow=8 * 20)
    before = int(v.snap.info()["Event number"])
    v.base.pwrite(os.urandom(30 * 4096), 0)
    assert int(v.snap.info()["Event number"]) == before + 1


def test_the_event_number_counts_a_merge(fs, backing):
    v = Volume(fs, backing, 8)
    v.snap.pwrite(b"x" * 4096, 0)
    before = int(v.base.info()["Event number"])
    merge(v)
    v.base.suspend()                # waits for the merge's last words
    assert int(v.base.info()["Event number"]) == before + 1


def test_a_cow_file_that_grows_in_time(fs, backing):
    origin, cow = backing(SIZE, old := pattern(SIZE)), backing(8 * 20)
    snap = fs.mkdir("s", f"0 {SIZE} snapshot {quote(origin)} {quote(cow)} PO 8")
    snap.pwrite(b"x" * 4096 * 18, 0)
    os.truncate(cow, 8 * 25 * SECTOR)
    snap.pwrite(b"y" * 4096 * 5, 4096 * 18)
    assert snap.status().split()[3:] == ["200/200", "16"]
    with pytest.raises(OSError):
        snap.pwrite(b"z" * 4096, 4096 * 23, sync=True)
    os.truncate(cow, 8 * 100 * SECTOR)      # too late
    assert snap.status().split()[3] == "Overflow"
    assert snap.pread(SIZE * SECTOR, 0) == b"x" * 4096 * 18 + b"y" * 4096 * 5 + old[4096 * 23:]


def test_growing_by_reload(fs, backing):
    v = Volume(fs, backing, 8, cow=8 * 20)
    new = os.urandom(4096 * 15)
    v.snap.pwrite(new, 0)
    os.truncate(v.cow_file, 8 * 100 * SECTOR)
    v.snap.suspend()
    v.cow.load(f"0 {8 * 100} linear {quote(v.cow_file)} 0")
    v.snap.load(v.line())
    assert not v.snap.suspended()
    assert v.usage()[1] == 800
    more = os.urandom(4096 * 15)
    v.snap.pwrite(more, len(new))
    v.base.pwrite(b"y" * 4096, 200 * SECTOR * 8)
    assert v.all(v.snap) == new + more + v.old[len(new + more):]


def test_a_store_survives(dmfs, backing):
    fs = dmfs()
    v = Volume(fs, backing, 16)
    v.snap.pwrite(b"snap" * 1024, 0)
    v.base.pwrite(b"base" * 1024, 4096)
    want = v.all(v.snap)
    base = v.all(v.base)
    fs.close()
    fs = dmfs()
    snap = fs.mkdir("s", f"0 {SIZE} snapshot {quote(v.origin_file)} {quote(v.cow_file)} P 16")
    assert snap.pread(SIZE * SECTOR, 0) == want
    assert fs.mkdir("o", f"0 {SIZE} snapshot-origin {quote(v.origin_file)}").pread(SIZE * SECTOR, 0) == base


def test_many_snapshots_of_one_origin(fs, backing):
    size = 1024
    origin = backing(size, pattern(size))
    base = fs.mkdir("base", f"0 {size} snapshot-origin {quote(origin)}")
    snaps, wants = [], []
    rng = random.Random(5)
    now = bytearray(pattern(size))
    for n in range(8):
        snap = fs.mkdir(f"snap{n}",
                        f"0 {size} snapshot {quote(origin)} {quote(backing(4 * size))} {'PN'[n % 2]} {1 << n % 5}")
        snaps.append(snap)
        wants.append(bytes(now))
        for _ in range(10):
            at = rng.randrange(size - 40)
            data = os.urandom(rng.randrange(1, 40) * SECTOR)
            base.pwrite(data, at * SECTOR)
            now[at * SECTOR:at * SECTOR + len(data)] = data
    assert base.pread(size * SECTOR, 0) == now
    for snap, want in zip(snaps, wants):
        assert snap.pread(size * SECTOR, 0) == want
    for snap, want in zip(snaps[::2], wants[::2]):
        snap.remove()
    base.pwrite(bytes(size * SECTOR), 0)
    for snap, want in zip(snaps[1::2], wants[1::2]):
        assert snap.pread(size * SECTOR, 0) == want


def test_a_snapshot_of_a_snapshot(fs, backing):
    size = 1024
    origin = backing(size, old := pattern(size))
    fs.mkdir("s1-real", f"0 {size} snapshot {quote(origin)} {quote(backing(4 * size))} P 8")
    s1 = fs.mkdir("s1", f"0 {size} snapshot-origin s1-real")
    s2 = fs.mkdir("s2", f"0 {size} snapshot s1-real {quote(backing(4 * size))} P 16")
    base = fs.mkdir("base", f"0 {size} snapshot-origin {quote(origin)}")
    base.pwrite(b"b" * 4096, 0)
    s1.pwrite(b"1" * 4096, 8192)
    s2.pwrite(b"2" * 4096, 16384)
    assert s1.pread(size * SECTOR, 0) == old[:8192] + b"1" * 4096 + old[12288:]
    assert s2.pread(size * SECTOR, 0) == old[:16384] + b"2" * 4096 + old[20480:]
    assert base.pread(size * SECTOR, 0) == b"b" * 4096 + old[4096:]


def test_discard_zeroes_cow(fs, backing):
    v = Volume(fs, backing, 8, features=" 1 discard_zeroes_cow")
    assert v.snap.table().strip().endswith("P 8 1 discard_zeroes_cow")
    v.snap.pwrite(b"x" * 4096 * 4, 0)
    v.snap.discard(4096, 8192)
    assert v.snap.pread(16384, 0) == b"x" * 4096 + bytes(8192) + b"x" * 4096
    v.snap.discard(4096 * 10, 8192)         # no exceptions there: nothing happens
    assert v.all(v.snap)[16384:] == v.old[16384:]
    assert v.usage()[0] == 8 * 6


def test_discard_passdown_origin(fs, backing):
    size = 1024
    origin, cow = backing(size, b"o" * size * SECTOR), backing(size)
    snap = fs.mkdir("s", f"0 {size} snapshot {quote(origin)} {quote(cow)} P 8 "
                         "2 discard_zeroes_cow discard_passdown_origin")
    snap.pwrite(b"x" * 4096, 0)
    snap.discard(0, 8192)
    with open(origin, "rb") as f:
        assert f.read() == bytes(8192) + b"o" * (size * SECTOR - 8192)
    assert snap.pread(8192, 0) == bytes(8192)
    assert snap.status().split()[3] == f"{8 * 3}/{size}"


def test_without_the_features_discards_are_refused(fs, backing):
    v = Volume(fs, backing)
    for dev in (v.snap, v.base):
        with pytest.raises(OSError):
            dev.discard(0, 4096)


def test_data_and_holes(fs, backing):
    origin, cow = backing(65536), backing(65536)
    with open(origin, "r+b") as f:
        f.seek(1 << 20)
        f.write(b"o" * 65536)
    snap = fs.mkdir("s", f"0 65536 snapshot {quote(origin)} {quote(cow)} P 128")
    with snap.open() as fd:
        os.pwrite(fd, b"s" * 65536, 4 << 20)
        os.fsync(fd)
        runs, at = [], 0
        while True:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, data, os.SEEK_HOLE)
            runs.append((data, at))
    assert runs == [(1 << 20, (1 << 20) + 65536), (4 << 20, (4 << 20) + 65536)]


def test_handover_needs_a_suspended_source(fs, backing):
    v = Volume(fs, backing)
    v.base.refuse(v.line("snapshot-merge") + "\n", match="suspended")
    assert v.all(v.base) == v.old
    v.snap.pwrite(b"x" * 4096, 0)
    merge(v)


def test_a_source_that_goes_away_cancels_the_handover(fs, backing):
    v = Volume(fs, backing)
    v.base.load(v.line("snapshot-merge"), to="inactive")
    v.snap.remove()
    v.base.resume()
    assert v.base.status().split()[3] == "Invalid"
    assert v.all(v.base) == v.old           # an invalid one is its origin


def test_a_merge_of_a_store_from_disk(fs, backing):
    v = Volume(fs, backing)
    v.snap.pwrite(b"x" * 4096, 4096)
    v.snap.remove()
    v.base.load(v.line("snapshot-merge"))
    wait_for_merge(v.base)
    assert v.all(v.base) == v.old[:4096] + b"x" * 4096 + v.old[8192:]


def test_one_merge_at_a_time(fs, backing):
    v = Volume(fs, backing)
    fs.mkdir("other", f"0 {SIZE} snapshot real {quote(backing(COW))} P 8").suspend()
    merge(v)
    dev = fs.mkdir("m")
    other_cow = fs["other"].table().split()[4]
    dev.refuse(f"0 {SIZE} snapshot-merge real {other_cow} P 8\n", match="already merging")


def test_writers_everywhere(fs, backing):
    """Several threads write base and snap, each its own blocks, while the others do; nothing gets lost or mixed up."""
    v = Volume(fs, backing, 16, size=8192, cow=4 * 8192)
    base, snap = bytearray(v.old), bytearray(v.old)
    errors = []

    def writer(n, dev, want):
        rng = random.Random(n)
        try:
            with dev.open() as fd:
                for _ in range(150):
                    block = rng.randrange(v.size // 8 // 4) * 4 + n % 4
                    data = bytes([rng.randrange(256)]) * 4096
                    os.pwrite(fd, data, block * 4096)
                    want[block * 4096:(block + 1) * 4096] = data
                    assert os.pread(fd, 4096, block * 4096) == data
        except BaseException as e:      # noqa: B902
            errors.append(e)

    threads = [threading.Thread(target=writer, args=(n, v.base if n < 4 else v.snap, base if n < 4 else snap))
               for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert v.all(v.base) == base and v.all(v.snap) == snap


def test_readers_of_the_snapshot_never_see_the_origins_writes(fs, backing):
    v = Volume(fs, backing, 8, size=8192, cow=4 * 8192)
    errors, over = [], threading.Event()

    def reader():
        fd = os.open(v.snap.image, os.O_RDONLY | os.O_DIRECT)
        import mmap
        buf = mmap.mmap(-1, 4096)
        rng = random.Random()
        while not over.is_set():
            at = rng.randrange(v.size // 8) * 4096
            os.preadv(fd, [buf], at)
            if buf[:] != v.old[at:at + 4096]:
                errors.append(at)
                break
        os.close(fd)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for t in threads:
        t.start()
    with v.base.open() as fd:
        order = list(range(v.size // 8))
        random.Random(1).shuffle(order)
        for block in order:
            os.pwrite(fd, b"z" * 4096, block * 4096)
    over.set()
    for t in threads:
        t.join()
    assert not errors
    assert v.all(v.snap) == v.old


# --- the seed's examples -----------------------------------------------------------------

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../contrib/examples")


def test_lvms_quartet_and_its_merge(fs, backing, sh):
    size = 8192
    base_file, cow_file = backing(size, old := pattern(size)), backing(2 * size)
    out = sh(f'{EXAMPLES}/snapshot-lvm "$@"', base_file, cow_file, DMFS_MOUNT=fs.mountpoint).stdout
    assert out.splitlines()[2:] == [f"0 {size} snapshot base-real snap-cow P 16", f"0 {size} snapshot-origin base-real"]
    base, snap = fs["base"], fs["snap"]
    base.pwrite(b"b" * 70000, 3000)
    snap.pwrite(b"s" * 50000, 9000)
    want = old[:9000] + b"s" * 50000 + old[59000:]
    assert snap.pread(size * SECTOR, 0) == want
    sh(f"{EXAMPLES}/snapshot-lvm-merge", DMFS_MOUNT=fs.mountpoint)
    assert fs.devices() == ["base"]
    assert base.pread(size * SECTOR, 0) == want
    with open(base_file, "rb") as f:
        assert f.read() == want


def test_merge_wait_says_what_is_wrong(fs, backing, sh):
    fs.mkdir("d", "0 8 zero")
    done = sh(f'{EXAMPLES}/snapshot-merge-wait d', check=False, DMFS_MOUNT=fs.mountpoint)
    assert done.returncode == 1 and "no snapshot-merge" in done.stderr


def test_ten_terabytes(fs, backing, sh):
    cow = backing(128 * 20)
    sh(f'{EXAMPLES}/snapshot-sparse "$1"', cow, DMFS_MOUNT=fs.mountpoint)
    dev = fs["sparse1"]
    assert dev.size() == 10 << 40
    places = [0, 5 << 40, (10 << 40) - 65536]
    with dev.open() as fd:
        for at in places:
            os.pwrite(fd, b"%020d" % at * 3000, at)
        os.fsync(fd)
        for at in places:
            assert os.pread(fd, 60000, at) == b"%020d" % at * 3000
            assert os.pread(fd, 4096, at ^ 1 << 30) == bytes(4096)
        found, at = [], 0
        while True:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            found.append(at)
            at = os.lseek(fd, at, os.SEEK_HOLE)
    assert found == places
    # More than there is room for: it starts returning I/O errors.
    with dev.open() as fd, pytest.raises(OSError):
        for n in range(20):
            os.pwrite(fd, bytes(65536), (1 << 40) + n * 65536)
            os.fsync(fd)


# --- bad input ------------------------------------------------------------------------------

def header(magic=MAGIC, valid=1, version=1, chunk=8):
    return struct.pack("<IIII", magic, valid, version, chunk)


def store(*pairs, head=header(), chunk=8):
    return head.ljust(chunk * SECTOR, b"\0") + b"".join(struct.pack("<QQ", *p) for p in pairs)


@pytest.mark.parametrize("data,sectors,match", [
    (header(magic=0x12345678), 4096, "Invalid or corrupt snapshot"),
    (header(version=2), 4096, "version 2"),
    (header(chunk=0), 4096, "power of 2"),
    (header(chunk=24), 4096, "24 is not a power of 2"),
    (header(chunk=1 << 30), 4096, "too high"),
    (header(chunk=4096), 4096, "too small"),
    (b"", 15, "too small"),
    (b"", 1, "too small"),
    (store((SIZE // 8, 2)), 4096, "the origin has 256"),
    (store((1 << 63, 2)), 4096, "the origin has 256"),
    (store((1, 512)), 4096, "the COW device has 512"),
    (store((1, (1 << 64) - 1)), 4096, "the COW device has 512"),
    (store((1, 1)), 4096, "metadata"),
    (store((1, 2), (2, 2)), 4096, "another has already"),
    (store((1, 2), (1, 3)), 4096, "has one already"),
    (store(*((n, n + 2) for n in range(256))), 8 * 258, "cut short"),
])
@pytest.mark.parametrize("target", ["snapshot", "snapshot-merge"])
def test_bad_stores(fs, backing, data, sectors, match, target):
    origin, cow = backing(SIZE, old := pattern(SIZE)), backing(sectors, data)
    with open(cow, "rb") as f:
        before = f.read()
    dev = fs.mkdir("d", f"0 {SIZE} linear {quote(origin)} 0")
    dev.refuse(f"0 {SIZE} {target} {quote(origin)} {quote(cow)} P 8\n", code=(22, 6), match=match)
    assert dev.pread(SIZE * SECTOR, 0) == old
    with open(cow, "rb") as f:
        assert f.read() == before, "a store that is refused stays as it was"


def test_bad_lines(fs, backing):
    origin, cow = quote(backing(SIZE)), quote(backing(SIZE))
    dev = fs.mkdir("d", "0 8 zero")
    for line, match in [
        (f"0 {SIZE} snapshot-merge {origin} {cow} N 8", "only type P"),
        (f"0 {SIZE + 1} snapshot {origin} {cow} N 8", "too small for target"),
        (f"0 {SIZE} snapshot {origin} {origin} N 8", "same as origin"),
        (f"0 {SIZE} snapshot {origin} {cow} X 8", "'X' is not P or N"),
        (f"0 {SIZE} snapshot {origin} {cow} PX 8", "store option 'X'"),
        (f"0 {SIZE} snapshot {origin} {cow} P 12", "12 is not a power of 2"),
        (f"0 {SIZE} snapshot {origin} {cow} P 4194304", "too high"),
        (f"0 {SIZE} snapshot {origin} {cow} N 0", "not set"),
        (f"0 {SIZE} snapshot {origin} {cow} N 8 1 what", "'what'"),
        (f"0 {SIZE} snapshot {origin} {cow} N 8 1 discard_passdown_origin", "depends on"),
        (f"0 {SIZE} snapshot-origin {origin} x", "number of arguments"),
    ]:
        dev.refuse(line + "\n", match=match)


def test_bit_flips_in_the_metadata(fs, backing):
    """Any bit of the header or the first exceptions: refused, invalid, or a snapshot that can be read; origin untouched."""
    v = Volume(fs, backing)
    for n in range(5):
        v.snap.pwrite(os.urandom(4096), n * 8192)
    v.snap.remove()
    with open(v.cow_file, "rb") as f:
        good = f.read()
    dev = fs.mkdir("d")
    rng = random.Random(1)
    for byte in [*range(16), *range(4096, 4096 + 96)]:
        data = bytearray(good)
        data[byte] ^= 1 << rng.randrange(8)
        with open(v.cow_file, "r+b") as f:
            f.write(data)
        try:
            dev.load(v.line())
        except OSError:
            assert dev.error()
            continue
        try:
            v.all(dev)
        except OSError:
            assert dev.status().split()[3] == "Invalid"
        dev.suspend()
        os.rmdir(dev.path)
        dev = fs.mkdir("d")
    assert v.all(v.base) == v.old
