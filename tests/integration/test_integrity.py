# SPDX-License-Identifier: GPL-2.0-or-later
"""integrity through the mount: every mode, what a wrong byte does, what survives a crash, a reload, a remount."""

import errno
import mmap
import os
import struct

import pytest

from mounted import SECTOR, pattern, quote

DEVICE = 16384              # sectors
HASH = {"crc32c": 4, "sha256": 32}


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
    with dev.open(os.O_RDONLY | os.O_DIRECT) as direct:
        with pytest.raises(OSError) as e:
            os.preadv(direct, [page], 4096)
        assert e.value.errno == errno.EILSEQ
        assert os.preadv(direct, [page], 0) == 4096 and page[:] == pattern(64, 1)[:4096]
        assert os.preadv(direct, [page], 8192) == 4096
    assert int(v.words()[0]) >= 1
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
