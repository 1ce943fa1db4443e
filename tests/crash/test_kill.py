# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of the daemon under load: what a write(2) was answered is there, nothing is mixed, the log can be read."""

import os
import random
import struct
import subprocess
import threading
import zlib

import pytest

from mounted import SECTOR, pread_all

FULL = bool(os.environ.get("CRASH_FULL"))
WRITERS, AREA = 4, 256      # sectors each writer has
SIZE = WRITERS * AREA
MAGIC = 0x6a736677736872


def stamp(writer, sector, number):
    body = struct.pack("<8sIII", b"killtest", writer, sector, number).ljust(SECTOR - 4, bytes([number & 255]))
    return body + struct.pack("<I", zlib.crc32(body))


def read_stamp(data):
    """(writer, sector, number); None for zeroes."""
    if not data.strip(b"\0"):
        return None
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4]), "a mixture"
    magic, writer, sector, number = struct.unpack_from("<8sIII", data)
    assert magic == b"killtest"
    return writer, sector, number


class Writer(threading.Thread):
    """Writes to its own area until the daemon is gone; knows what was answered and what was under way."""

    def __init__(self, writer, image, seed, answered):
        super().__init__()
        self.writer, self.image, self.answered = writer, image, answered
        self.rand = random.Random(seed)
        self.sure = {}      # sector -> number
        self.open = {}      # what was being written at the end
        self.marks = 0

    def run(self):
        fd = os.open(self.image, os.O_RDWR)
        try:
            for number in range(1, 1 << 30):
                length = self.rand.choice((1, 2, 8, 17, 64))
                first = self.writer * AREA + self.rand.randrange(AREA - length + 1)
                sectors = range(first, first + length)
                self.open = {s: number for s in sectors}
                data = b"".join(stamp(self.writer, s, number) for s in sectors)
                written = os.pwrite(fd, data, first * SECTOR)
                self.sure |= {s: number for s in sectors[:written // SECTOR]}
                if written < len(data):
                    return      # a kernel that sends a write in pieces: the daemon went between two of them
                self.open = {}
                if self.rand.random() < 0.2:
                    os.fsync(fd)
                self.answered()
        except OSError:
            pass
        finally:
            try:
                os.close(fd)
            except OSError:
                pass


class Marker(threading.Thread):
    def __init__(self, dev):
        super().__init__()
        self.dev, self.marks = dev, 0

    def run(self):
        try:
            while True:
                self.dev.message(f"mark m{self.marks}")
                self.marks += 1
        except OSError:
            pass


def tables(work):
    """A stack of linear, striped and log-writes."""
    return [
        ("a", f"0 {SIZE // 2} linear {work}/disk 100"),
        ("b", f"0 {SIZE // 2} linear {work}/disk {100 + SIZE}"),
        ("low", f"0 {SIZE} striped 2 8 a 0 b 0"),
        ("vol", f"0 {SIZE} log-writes low {work}/log"),
    ]


def check_log(path, marks, tool, work):
    """All that the super block counts is there and whole; so are the marks that were answered."""
    with open(path, "rb") as f:
        log = f.read()
    magic, version, count, size = struct.unpack_from("<QQQI", log)
    assert (magic, version, size) == (MAGIC, 1, SECTOR)
    at, seen = SECTOR, 0
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", log, at)
        at += SECTOR
        if flags & 8:
            assert log[at - SECTOR + 32:at - SECTOR + 32 + length] == b"m%d" % seen
            seen += 1
        elif not flags & 1:
            for i in range(sectors):
                writer, where, number = read_stamp(log[at + i * SECTOR:at + (i + 1) * SECTOR])
                assert where == sector + i
            at += sectors * SECTOR
    assert seen >= marks
    with open(f"{work}/copy", "wb") as f:
        f.truncate(SIZE * SECTOR)
    subprocess.run([tool("dmfs-replay-log"), "--log", path, "--replay", f"{work}/copy"], check=True, timeout=300)


@pytest.mark.parametrize("seed", range(20 if FULL else 4))
def test_kill(dmfs, work, tool, seed):
    rand = random.Random(seed)
    goal, count = rand.randrange(50, 1500), 0
    reached, lock = threading.Event(), threading.Lock()

    def answered():
        nonlocal count
        with lock:
            count += 1
            if count >= goal:
                reached.set()

    for name, sectors in (("disk", 4 * SIZE), ("log", 1 << 21)):
        with open(f"{work}/{name}", "wb") as f:
            f.truncate(sectors * SECTOR)
    first = dmfs()
    for name, table in tables(work):
        first.mkdir(name, table)
    writers = [Writer(i, first["vol"].image, seed * 100 + i, answered) for i in range(WRITERS)]
    marker = Marker(first["vol"])
    for t in [*writers, marker]:
        t.start()
    reached.wait()
    first.kill()
    for t in [*writers, marker]:
        t.join()
    first.close(check=False)
    check_log(f"{work}/log", marker.marks, tool, work)

    second = dmfs()
    for name, table in tables(work)[:3]:
        second.mkdir(name, table)
    with second["low"].open(os.O_RDONLY) as fd:
        data = pread_all(fd, SIZE * SECTOR, 0)
    for sector in range(SIZE):
        writer = writers[sector // AREA]
        seen = read_stamp(data[sector * SECTOR:(sector + 1) * SECTOR])
        allowed = {(writer.writer, sector, part[sector]) for part in (writer.sure, writer.open) if sector in part}
        if sector not in writer.sure:
            allowed.add(None)
        assert seen in allowed, f"sector {sector}: {seen}, not one of {allowed}"
    assert sum(len(w.sure) for w in writers) > 100
