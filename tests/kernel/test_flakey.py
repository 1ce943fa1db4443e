# SPDX-License-Identifier: GPL-2.0-or-later
"""flakey beside the kernel's (6.1: error_reads, random_read_corrupt and random_write_corrupt came later)."""

import errno
import mmap
import os

import pytest

from mounted import SECTOR, pattern, quote

OVER = 1 << 64


def test_lines(kernel, fs, backing):
    wrapped = [f"0 100 flakey $D0 {OVER} 1 1", f"0 100 flakey $D0 0 {1 << 32} 1", f"0 100 flakey $D0 0 1 {(1 << 32) + 1}"]
    kernel.compare(fs, [
        "0 100 flakey $D0 0 5 10",
        "0 100 flakey $D0 17 0 1",
        "0 100 flakey $D0 0 1 0",
        "0 100 flakey $D0 0 0 0",
        "0 100 flakey $D0 0 4294967295 0",
        "0 100 flakey $D0 0 4294967295 1",
        "0 100 flakey $D0 0 4294967295 2",
        "0 100 flakey $D0 0 2147483648 2147483648",
        "0 100 flakey $D0 0 1 1 0",
        "0 100 flakey $D0 0 1 1 0 and more",
        "0 100 flakey $D0 0 1 1 1 drop_writes",
        "0 100 flakey $D0 0 1 1 1 error_writes",
        "0 100 flakey $D0 0 1 1 1 DROP_writes",
        "0 100 flakey $D0 0 1 1 1 drop_writes and more",
        "0 100 flakey $D0 0 1 1 2 drop_writes drop_writes",
        "0 100 flakey $D0 0 1 1 2 drop_writes error_writes",
        "0 100 flakey $D0 0 1 1 2 error_writes drop_writes",
        "0 100 flakey $D0 0 1 1 2 error_writes error_writes",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 32 r 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 224 w 0 32",
        "0 100 flakey $D0 0 1 1 5 Corrupt_Bio_Byte 224 W 0 32",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 4294967295 w 255 4294967295",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 32 r 1 0 drop_writes",
        "0 100 flakey $D0 0 1 1 6 corrupt_bio_byte 32 r 1 0 drop_writes",
        "0 100 flakey $D0 0 1 1 6 drop_writes corrupt_bio_byte 32 r 1 0",
        "0 100 flakey $D0 0 1 1 6 error_writes corrupt_bio_byte 32 r 1 0",
        "0 100 flakey $D0 0 1 1 6 drop_writes corrupt_bio_byte 32 w 1 0",
        "0 100 flakey $D0 0 1 1 6 error_writes corrupt_bio_byte 32 w 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 0 r 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte x r 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 x 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 rw 1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 r 256 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 r -1 0",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 r 1 x",
        "0 100 flakey $D0 0 1 1 1 corrupt_bio_byte 1 r 1 0",
        "0 100 flakey $D0 0 1 1 2 corrupt_bio_byte 1 r 1 0",
        "0 100 flakey $D0 0 1 1 3 corrupt_bio_byte 1 r 1 0",
        "0 100 flakey $D0 0 1 1 4 corrupt_bio_byte 1 r 1 0",
        "0 100 flakey $D0 0 1 1 4 corrupt_bio_byte 1 r 1 0 drop_writes",
        "0 100 flakey $D0 0 1 1 1 corrupt_bio_byte",
        "0 100 flakey $D0 0 1 1 5 corrupt_bio_byte 1 r 1",
        "0 100 flakey $D0 0 1 1 1",
        "0 100 flakey $D0 0 1 1 2 drop_writes",
        "0 100 flakey $D0 0 1 1 x",
        "0 100 flakey $D0 0 1 1 -1",
        "0 100 flakey $D0 0 1 1 1 nosuch",
        "0 100 flakey $D0 0 1 1 7 drop_writes corrupt_bio_byte 32 r 1 0",
        "0 100 flakey $D0 0 1 1 12 drop_writes",
        "0 100 flakey",
        "0 100 flakey $D0",
        "0 100 flakey $D0 0",
        "0 100 flakey $D0 0 1",
        "0 100 flakey $D0 0 -1 1",
        "0 100 flakey $D0 0 1 x",
        "0 100 flakey $D0 x 1 1",
        "0 100 flakey /nonexistent 0 1 1",
        "0 8192 flakey $D0 0 1 1",
        "0 8192 flakey $D0 1 1 1",
        *wrapped,
    ], [backing(8192)], except_for=wrapped, later=lambda text: text.replace(" 2 error_reads error_writes", " 0"))


# Features, always down, and which byte of a read of 4 KiB becomes what.  The kernel of our harness forgets to do
# that (by the time of its end_io the bio has no data left; mended in later ones), so the document decides.
DOWN = {
    "": None,
    "1 drop_writes": None,
    "1 error_writes": None,
    "5 corrupt_bio_byte 700 w 65 0": None,
    "5 corrupt_bio_byte 700 w 65 1": None,          # bit 0: writes
    "5 corrupt_bio_byte 4097 w 65 0": None,         # beyond the bio
    "5 corrupt_bio_byte 4096 w 66 0": None,
    "5 corrupt_bio_byte 1 r 67 0": (1, 67),
    "5 corrupt_bio_byte 4096 r 67 0": (4096, 67),
    "5 corrupt_bio_byte 1 r 67 1": None,            # no read has bit 0
    "6 drop_writes corrupt_bio_byte 9 r 68 0": (9, 68),
    "6 error_writes corrupt_bio_byte 9 r 68 0": (9, 68),
}


def test_same_bytes_when_down(kernel, fs, backing, work):
    """Every feature: the same result of a direct write of 4 KiB, of a flush and a read, and the same bytes beneath."""
    old, new = pattern(64, seed=1), pattern(8, seed=2)
    with open(f"{work}/new", "wb") as f:
        f.write(new)
    ours, theirs = [], []
    script = ""
    disk = backing(64, old)
    told = []
    for i, features in enumerate(DOWN):
        with open(disk, "wb") as f:
            f.write(old)
        dev = fs.mkdir(f"d{i}", f"0 64 flakey {quote(disk)} 0 0 1 {features}")
        told.append(attempt(dev, new))
        with open(disk, "rb") as f:
            ours.append(f.read())
        script += f"""
            cp $DIR/old $DIR/disk; l=$(losetup -f --show $DIR/disk)
            dmsetup create t --table "0 64 flakey $l 0 0 1 {features}"
            w=ok f=ok r=ok
            dd if=$DIR/new of=/dev/mapper/t bs=4096 seek=1 oflag=direct conv=notrunc 2>/dev/null || w=no
            dd if=/dev/null of=/dev/mapper/t bs=1 count=0 conv=notrunc,fsync 2>/dev/null || f=no
            dd if=/dev/mapper/t of=$DIR/read.{i} bs=4096 count=1 skip=1 iflag=direct 2>/dev/null || r=no
            echo $w $f $r
            dmsetup remove --retry t; losetup -d $l; cp $DIR/disk $DIR/disk.{i}
            """
    with open(f"{work}/old", "wb") as f:
        f.write(old)
    out = kernel.run(script, env={"DIR": work}).out.splitlines()
    assert len(out) == len(DOWN), out
    for i, (features, corrupted) in enumerate(DOWN.items()):
        with open(f"{work}/disk.{i}", "rb") as f:
            theirs.append(f.read())
        with open(f"{work}/read.{i}", "rb") as f:
            read = bytearray(f.read())
        if corrupted:
            read[corrupted[0] - 1] = corrupted[1]
        assert (out[i], read) == told[i], features
        assert ours[i] == theirs[i], features


def attempt(dev, new):
    """A write, a flush and a read, directly: 'ok no ok' and the bytes read."""
    def went(act):
        try:
            return "ok", act()
        except OSError as e:
            assert e.errno == errno.EIO
            return "no", b""

    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        buf.write(new)
        wrote, _ = went(lambda: os.pwrite(fd, buf, 4096))
        flushed, _ = went(lambda: os.fsync(fd))
        read, _ = went(lambda: os.preadv(fd, [buf], 4096))
        return f"{wrote} {flushed} {read}", bytes(buf) if read == "ok" else b""


@pytest.mark.parametrize("features", ["", "1 drop_writes", "5 corrupt_bio_byte 1 w 1 0"])
def test_up_it_is_linear(kernel, fs, backing, work, features):
    ours, theirs = backing(128), backing(128)
    data = pattern(64)
    with open(f"{work}/data", "wb") as f:
        f.write(data)
    dev = fs.mkdir("d", f"0 100 flakey {quote(ours)} 9 1 0 {features}")
    dev.pwrite(data, 3 * SECTOR, sync=True)
    kernel.run(f"""set -e
        dmsetup create t --table "0 100 flakey $D0 9 1 0 {features}"
        dd if=$DIR/data of=/dev/mapper/t bs=512 seek=3 oflag=direct conv=notrunc 2>/dev/null
        dmsetup remove --retry t""", [theirs], env={"DIR": work})
    with open(ours, "rb") as f, open(theirs, "rb") as g:
        assert f.read() == g.read()
    assert dev.pread(64 * SECTOR, 3 * SECTOR) == data
