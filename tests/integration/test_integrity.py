# SPDX-License-Identifier: GPL-2.0-or-later
"""integrity through the mount: every mode, what a wrong byte does, what survives a crash, a reload, a remount."""

import errno
import mmap
import os
import re
import select
import struct
import time

import pytest

from mounted import SECTOR, pattern, quote

DEVICE = 16384              # sectors
ANY = (errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EIO, errno.EILSEQ)


def superblock(path, start=0):
    with open(path, "rb") as f:
        f.seek(start * SECTOR)
        b = f.read(512)
    assert b[:8] == b"integrt\0"
    tag, sections, provided, flags = struct.unpack("<HIQI", b[10:28])
    return dict(version=b[8], interleave=1 << b[9], tag=tag, sections=sections, provided=provided, flags=flags,
                recalc=struct.unpack("<Q", b[32:40])[0], salt=b[48:64])


class Volume:
    """A device formatted at its first load: v.load(mode, words…); v.dev; v.at(sector): its byte on the file."""

    def __init__(self, fs, path, tag="-", name="i", start=0, meta=None, more=()):
        self.fs, self.path, self.tag, self.start, self.meta, self.more = fs, path, tag, start, meta, list(more)
        self.dev, self.name, self.provided = None, name, 8

    def line(self, mode, *words, sectors=None):
        words = list(words) + self.more + ([f"meta_device:{quote(self.meta)}"] if self.meta else [])
        return (f"0 {sectors or self.provided} integrity {quote(self.path)} {self.start} {self.tag} {mode} "
                f"{len(words)} {' '.join(words)}")

    def load(self, mode, *words):
        if self.dev is None:
            self.dev = self.fs.mkdir(self.name, self.line(mode, *words))
            if self.provided == 8:
                self.provided = superblock(self.meta or self.path, self.start)["provided"]
                self.dev.load(self.line(mode, *words))
        else:
            self.dev.load(self.line(mode, *words))
        return self.dev

    def fill(self):
        """Writes all of it once, in whole blocks: what was never written can be neither read ahead nor rewritten in part."""
        page = mmap.mmap(-1, 1 << 20)
        with self.dev.open() as fd:
            for at in range(0, self.provided * SECTOR, len(page)):
                part = memoryview(page)[:min(len(page), self.provided * SECTOR - at)]
                assert os.pwrite(fd, part, at) == len(part)

    def remove(self):
        self.dev.remove()
        self.dev = None

    def at(self, sector, initial_tags):
        """Where a sector's data lie on the file, of a volume with one run."""
        return (self.start + initial_tags + sector) * SECTOR

    def words(self):
        return self.dev.status().split()[3:]


def data_offset(v):
    """Bytes before the data of the first run, from the table's text."""
    words = dict(w.split(":", 1) for w in v.dev.table().split() if ":" in w)
    sb = superblock(v.path, v.start)
    spb = int(words.get("block_size", 512)) // 512
    pad = 4096 if "fix_padding" in v.dev.table() else 131072
    run = -(-sb["tag"] * sb["interleave"] // spb // pad) * pad
    return (v.start + 8 + int(words["journal_sectors"])) * SECTOR + run


@pytest.fixture
def volume(fs, backing):
    def make(sectors=DEVICE, **kw):
        return Volume(fs, backing(sectors), **kw)
    return make


def spoil(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("mode", "DJB")
@pytest.mark.parametrize("words", [["internal_hash:crc32c"], ["internal_hash:sha256", "block_size:4096"],
                                   ["internal_hash:hmac(sha256):0011", "interleave_sectors:1000", "fix_padding"],
                                   ["internal_hash:xxhash64", "block_size:1024", "interleave_sectors:512"]])
def test_write_read_remount(volume, mode, words):
    v = volume()
    dev = v.load(mode, *words)
    size = v.provided * SECTOR
    v.fill()
    for at, n in ((0, 8), (64, 128), (1000, 2048), (v.provided - 16, 16)):
        dev.pwrite(pattern(n, at), at * SECTOR)
        assert dev.pread(n * SECTOR, at * SECTOR) == pattern(n, at)
    assert dev.size() == size
    v.remove()
    dev = v.load(mode, *words)
    for at, n in ((0, 8), (64, 128), (1000, 2048), (v.provided - 16, 16)):
        assert dev.pread(n * SECTOR, at * SECTOR) == pattern(n, at)
    assert v.words()[0] == "0"


def test_a_wrong_byte(volume, fs):
    v = volume()
    dev = v.load("D", "internal_hash:crc32c")
    dev.pwrite(pattern(64, 1), 0, sync=True)
    v.remove()
    dev = v.load("D", "internal_hash:crc32c")
    spoil(v.path, data_offset(v) + 9 * SECTOR + 5)
    page = mmap.mmap(-1, 4096)
    events = open(dev.file("events"), "rb", buffering=0)
    with dev.open(os.O_RDONLY | os.O_DIRECT) as direct:
        with pytest.raises(OSError) as e:
            os.preadv(direct, [page], 4096)
        assert e.value.errno == errno.EILSEQ
        assert os.preadv(direct, [page], 0) == 4096 and page[:] == pattern(64, 1)[:4096]
        assert os.preadv(direct, [page], 8192) == 4096
    assert v.words()[0] == "1"
    with events:
        assert b"DM_INTEGRITY_ERR_SECTOR=9" in os.read(events.fileno(), 4096)
    assert "integrity: i: Checksum failed at sector 0x9" in fs.read("log")
    dev.pwrite(pattern(1, 7), 9 * SECTOR, sync=True)          # heals it
    assert dev.pread(SECTOR, 9 * SECTOR) == pattern(1, 7)


def test_never_written(volume):
    v = volume()
    dev = v.load("D", "internal_hash:crc32c")
    with pytest.raises(OSError) as e:
        dev.pread(SECTOR, 0)
    assert e.value.errno in (errno.EILSEQ, errno.EIO)
    v.load("R", "internal_hash:crc32c")
    assert dev.pread(SECTOR, 0) == bytes(SECTOR)


# --- crashes, reloads, recalculation -------------------------------------------------------------------------------

def wait_recalculated(v):
    """Asked again at each event until the position is the end."""
    with open(v.dev.file("events"), "rb", buffering=0) as events:
        while v.words()[2] != v.words()[1]:
            select.select([events], [], [], 10)
            os.read(events.fileno(), 4096)


def on(dmfs, v, mode, *words):
    """The volume on another mount."""
    v.fs, v.dev = dmfs(), None
    return v.load(mode, *words)


@pytest.mark.parametrize("mode, words", [("J", ["internal_hash:crc32c"]), ("J", ["internal_hash:sha256", "block_size:4096"]),
                                         ("B", ["internal_hash:crc32c", "sectors_per_bit:64"])])
def test_killed(dmfs, backing, mode, words):
    v = Volume(dmfs(), backing(DEVICE))
    dev = v.load(mode, *words)
    v.fill()
    dev.pwrite(pattern(512, 3), 8192, sync=True)
    v.fs.kill()
    dev = on(dmfs, v, mode, *words)
    assert dev.pread(512 * SECTOR, 8192) == pattern(512, 3)
    if mode == "J":
        assert "replayed from the journal" in v.fs.read("log")
    else:
        wait_recalculated(v)
    assert dev.pread(v.provided * SECTOR, 0)[:8192] == bytes(8192)
    assert v.words()[0] == "0"


def write_directly(dev, data, offset):
    page = mmap.mmap(-1, len(data))
    page[:] = data
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        assert os.pwrite(fd, page, offset) == len(data)


def until_file(path, offset, length, fn):
    """Asks for these bytes until they are so: nothing tells when a time of the table has passed."""
    end = time.monotonic() + 120
    with open(path, "rb", buffering=0) as f:
        while not fn(os.pread(f.fileno(), length, offset)):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_times_and_watermark(dmfs, backing):
    """Without a flush: writes are committed after commit_time, go home beyond the watermark; bits go away."""
    v = Volume(dmfs(), backing(DEVICE))
    words = ["internal_hash:crc32c", "journal_sectors:3520", "commit_time:50", "journal_watermark:90"]
    dev = v.load("J", *words)
    v.fill()
    v.remove()                                          # all is home
    dev = v.load("J", *words)
    journal, home = (v.start + 8) * SECTOR, data_offset(v)
    size = int(re.search(r"journal_sectors:(\d+)", dev.table())[1]) * SECTOR
    write_directly(dev, pattern(8, 1), 4096)
    until_file(v.path, journal, size, lambda b: pattern(8, 1)[:500] in b)
    with open(v.path, "rb") as f:
        f.seek(home + 4096)
        assert f.read(4096) == bytes(4096)
    v.fs.kill()
    dev = on(dmfs, v, "J", *words)
    assert dev.pread(4096, 4096) == pattern(8, 1)
    for at in range(65536, 65536 + 2 * size, 65536):    # more than it holds
        write_directly(dev, pattern(128, 2), at)
    until_file(v.path, home + 65536, 65536, lambda b: b == pattern(128, 2))
    dev = v.load("B", "internal_hash:crc32c", "sectors_per_bit:64", "bitmap_flush_interval:50")
    write_directly(dev, pattern(8, 3), 0)
    until_file(v.path, journal, -(-v.provided // 64 // 8), lambda b: not any(b))
    v.fs.kill()
    dev = on(dmfs, v, "B", "internal_hash:crc32c", "sectors_per_bit:64")
    assert dev.pread(4096, 0) == pattern(8, 3) and v.words()[0] == "0" and "recalculate " not in dev.table()


def test_a_bitmap_has_nothing_else_recalculated(dmfs, backing):
    """After a crash: what was clean is compared with the tag that it had, so that what has rotted there is noticed."""
    v = Volume(dmfs(), backing(DEVICE))
    words = ["internal_hash:crc32c", "sectors_per_bit:64", "bitmap_flush_interval:3600000"]
    v.load("B", *words)
    v.fill()
    v.remove()
    dev = v.load("B", *words)
    home = data_offset(v)
    v.remove()
    spoil(v.path, home + 8192 * SECTOR + 7)
    dev = v.load("B", *words)
    write_directly(dev, pattern(8, 1), 4096)
    v.fs.kill()
    spoil(v.path, home + 8 * SECTOR + 7)                # as if the data had come, the tag not
    dev = on(dmfs, v, "B", *words)
    wait_recalculated(v)
    rotten = pattern(8, 1)
    assert dev.pread(4096, 4096) == rotten[:7] + bytes([rotten[7] ^ 1]) + rotten[8:]
    assert v.words()[0] == "0"
    page = mmap.mmap(-1, 4096)
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        with pytest.raises(OSError) as e:
            os.preadv(fd, [page], 8192 * SECTOR)
        assert e.value.errno == errno.EILSEQ
        assert os.preadv(fd, [page], 8200 * SECTOR) == 4096
    assert v.words()[0] == "1"


def test_reload_changes_the_mode(volume):
    v = volume()
    words = ["internal_hash:crc32c", "fix_padding"]
    v.load("J", *words)
    v.fill()
    for turn, mode in enumerate("JDBJBDRJ"):
        dev = v.load(mode, *words, "buffer_sectors:8", f"commit_time:{turn + 50}")
        assert f" {mode} " in dev.table()
        if mode != "R":
            dev.pwrite(pattern(40, turn), turn * 4096, sync=True)
            last = turn
        assert dev.pread(40 * SECTOR, last * 4096) == pattern(40, last)
    assert dev.pread(v.provided * SECTOR, 0)
    assert v.words()[0] == "0"
    for bad in (["internal_hash:sha256"], ["internal_hash:crc32c", "block_size:1024"],
                ["internal_hash:crc32c", "journal_mac:crc32c"]):
        dev.refuse(v.line("J", *bad), match="integrity: ")
    assert dev.pread(40 * SECTOR, last * 4096) == pattern(40, last)


def test_recalculation(dmfs, backing):
    """Of data that were there before; half of it again after a remount, from the superblock's position."""
    data = pattern(DEVICE, 9)
    v = Volume(dmfs(), backing(DEVICE, data=bytes(4096) + data[4096:]))
    dev = v.load("J", "internal_hash:crc32c", "recalculate")
    wait_recalculated(v)
    offset = data_offset(v)
    assert dev.pread(v.provided * SECTOR, 0) == data[offset:offset + v.provided * SECTOR]
    assert v.words() == ["0", str(v.provided), str(v.provided)]
    assert superblock(v.path)["version"] == 2
    v.remove()
    with open(v.path, "r+b") as f:
        f.seek(32)
        f.write(struct.pack("<Q", 8192))
        f.seek(offset - 131072 + 8192 * 4)
        f.write(bytes(4 * 1000))
    dev = on(dmfs, v, "D", "internal_hash:crc32c")
    wait_recalculated(v)
    assert dev.pread(v.provided * SECTOR, 0) == data[offset:offset + v.provided * SECTOR]
    assert v.words()[0] == "0"
    assert " recalculate " in dev.table()


def test_metadata_device(fs, backing):
    v = Volume(fs, backing(4000), meta=backing(512))
    dev = v.load("J", "internal_hash:crc32c", "block_size:4096")
    assert v.provided == 4000 and superblock(v.meta)["version"] == 2
    v.fill()
    dev.pwrite(pattern(4000, 5), 0, sync=True)
    v.remove()
    dev = v.load("B", "internal_hash:crc32c", "block_size:4096")
    assert dev.pread(4000 * SECTOR, 0) == pattern(4000, 5)
    with open(v.path, "rb") as f:
        assert f.read() == pattern(4000, 5)         # the data device has nothing but the data
    assert f"meta_device:{quote(v.meta)}" in dev.table()


def test_growing(volume):
    """What a longer device provides is there when the table is loaded again; a shorter one is refused, as it was."""
    v = volume(16384)
    v.load("J", "internal_hash:crc32c")
    v.fill()
    v.dev.pwrite(pattern(64, 1), 4096, sync=True)
    before = v.provided
    for turn, mode in enumerate("JBD"):
        os.truncate(v.path, (turn + 2) * 16384 * SECTOR)
        dev = v.load(mode, "internal_hash:crc32c", "recalculate")
        grown = int(v.words()[1])
        assert before + 14000 < grown < (turn + 2) * 16384 and superblock(v.path)["provided"] == grown
        before = grown
        dev.load(v.line(mode, "internal_hash:crc32c", "recalculate", sectors=grown))
        wait_recalculated(v)
        dev.pwrite(pattern(8, turn), (grown - 8) * SECTOR, sync=True)
        assert dev.pread(64 * SECTOR, 4096) == pattern(64, 1) and v.words()[0] == "0"
        assert dev.pread(8 * SECTOR, (grown - 8) * SECTOR) == pattern(8, turn)
        assert dev.pread(8 * SECTOR, (grown - 4096) * SECTOR) == bytes(4096)
    os.truncate(v.path, 8192 * SECTOR)
    dev.refuse(v.line("D", "internal_hash:crc32c", sectors=grown), match="Not enough provided")
    os.truncate(v.path, 4 * 16384 * SECTOR)


def test_discards(volume):
    for mode in "DJB":
        v = volume(name=f"i{mode}")
        dev = v.load(mode, "internal_hash:crc32c", "allow_discards")
        v.fill()
        dev.pwrite(pattern(256, 1), 0, sync=True)
        dev.discard(4096, 65536)
        assert dev.pread(4096, 0) == pattern(8, 1)
        dev.pread(65536, 4096)                      # anything, but no error
        v.remove()
        dev = v.load(mode, "internal_hash:crc32c", "allow_discards")
        dev.pread(65536, 4096)
        assert dev.pread(4096, 0) == pattern(8, 1) and v.words()[0] == "0"
        dev = v.load(mode, "internal_hash:crc32c")  # without the word the tags are compared
        with pytest.raises(OSError):
            dev.pread(65536, 4096)


# --- keys ---------------------------------------------------------------------------------------------------------------

def test_keys(dmfs, backing):
    key = "5ec2e75ec2e75ec2"
    words = [f"internal_hash:hmac(sha256):{key}", f"journal_mac:hmac(sha256):{key}", "fix_hmac",
             f"journal_crypt:ctr(aes):{key * 2}"]
    v = Volume(dmfs(), backing(DEVICE))
    dev = v.load("J", *words)
    v.fill()
    dev.pwrite(pattern(64, 1), 0, sync=True)
    assert "5ec2" not in dev.table() + v.fs.read("log")
    assert f"internal_hash:hmac(sha256):{'0' * len(key)} " in dev.table()
    v.fs.kill()

    before = open(v.path, "rb").read()
    for word in range(3):
        wrong = [w.replace("5ec2", "0bad") if i == (word if word < 2 else 3) else w for i, w in enumerate(words)]
        fs = dmfs()
        bad = fs.mkdir("bad")
        bad.refuse(v.line("J", *wrong), code=ANY, match="integrity: ")
        assert "0bad" not in bad.error() + fs.read("log")
        bad.remove()
    assert open(v.path, "rb").read() == before, "somebody has written"
    dev = on(dmfs, v, "J", *words)
    assert dev.pread(64 * SECTOR, 0) == pattern(64, 1)


# --- what is refused ------------------------------------------------------------------------------------------------------

def test_refused(fs, backing):
    path = backing(DEVICE, data=b"neither" + bytes(4089))
    dev = fs.mkdir("x")
    with open(path, "rb") as f:
        before = f.read()
    for line, match in [
            (f"0 8 integrity {path} 0 4 J 1 internal_hash:crc32c", "not initialized"),
            (f"0 8 integrity {path} 0 4 J", "Invalid argument count"), (f"0 8 integrity {path} 0 4 Q 0", "Invalid mode"),
            (f"0 8 integrity {path} 16380 4 J 0", "too small"), (f"0 8 integrity {path} 18446744073709551615 4 J 0", "too small"),
            (f"0 8 integrity {path} 0 256 J 0", "Too big tag size"), (f"0 8 integrity {path} 0 4 B 0", "Bitmap mode"),
            (f"0 8 integrity {path} 0 4 J 1 internal_hash:nonsense", "internal hash"),
            (f"0 8 integrity {path} 8 4 J 1 journal_crypt:nonsense:00", "journal cipher"),
            (f"0 8 integrity {path} 8 4 J 1 journal_crypt:ctr(aes):0011", "encryption key"),
            (f"0 99999 integrity {path} 8 4 J 0", "Not enough provided"),
            (f"0 8 integrity {path} 0 4 J 1 meta_device:/nowhere", "nowhere"),
            (f"0 16 integrity {path} 8 4 J 1 meta_device:{path}", "is the data device itself"),
            (f"0 8 integrity {path} 0 4 J 1 meta_device:{quote(backing(4))}", "too small"),
            (f"0 8 integrity {path} 0 4 J 1 meta_device:{quote(backing(100))}", "too small"),
            (f"0 8 integrity {quote(backing(4 << 20))} 0 32 D 1 meta_device:{quote(backing(512))}", "too small")]:
        dev.refuse(line, code=ANY, match=match)
    with open(path, "rb") as f:
        assert f.read() == before


def test_read_only(dmfs, backing):
    v = Volume(dmfs(), backing(DEVICE))
    v.load("J", "internal_hash:crc32c")
    v.fill()
    v.dev.pwrite(pattern(8, 1), 0, sync=True)
    v.remove()
    before = open(v.path, "rb").read()
    ro = v.fs.mkdir("ro")
    ro.write("readonly", "1")
    ro.load(v.line("J", "internal_hash:crc32c"))
    assert ro.pread(8 * SECTOR, 0) == pattern(8, 1)
    ro.remove()
    assert open(v.path, "rb").read() == before
    v.load("J", "internal_hash:crc32c")
    v.dev.pwrite(pattern(8, 2), 0, sync=True)
    v.fs.kill()
    fs = dmfs()
    before = open(v.path, "rb").read()
    ro = fs.mkdir("ro")
    ro.write("readonly", "1")
    ro.refuse(v.line("J", "internal_hash:crc32c"), code=errno.EROFS, match="replayed")
    assert open(v.path, "rb").read() == before
    ro.load(v.line("R", "internal_hash:crc32c"))
    assert ro.pread(8 * SECTOR, 0) in (pattern(8, 1), pattern(8, 2))    # it may have come home
