# SPDX-License-Identifier: GPL-2.0-or-later
"""Write-back errors: who shares a file or device with others learns at his next fsync of every one since his last."""

import errno
import os

import pytest

from mounted import SECTOR, quote

SECTORS = 2048


def fsync(image):
    """The errno of an fsync, 0 if all is well."""
    fd = os.open(image, os.O_RDWR)
    try:
        os.fsync(fd)
        return 0
    except OSError as e:
        return e.errno
    finally:
        os.close(fd)


@pytest.mark.root
def test_both_devices_on_one_disk_are_told_that_its_write_back_failed(fs, backing, loop):
    """A disk (a loop device on a dmfs device) fails while what was written to it is still in its cache."""
    disk = fs.mkdir("disk", f"0 {SECTORS} linear {quote(backing(SECTORS))} 0")
    good = disk.read("table")
    lo = loop(disk.image)
    names = ("a", "b", "c")
    a, b, c = (fs.mkdir(name, f"0 {SECTORS // 4} linear {quote(lo)} {SECTORS // 4 * i}") for i, name in enumerate(names))
    try:
        assert [fsync(d.image) for d in (a, b, c)] == [0, 0, 0]
        for round_ in range(2):
            b.pwrite(b"x" * 8 * SECTOR, round_ * 8 * SECTOR)
            disk.load(f"0 {SECTORS} error")
            first = fsync(a.image)
            disk.load(good)
            assert first == errno.EIO
            assert fsync(b.image) == errno.EIO      # whose data it was: Linux told a of it
            assert fsync(a.image) == 0
            assert fsync(b.image) == 0
        assert fsync(c.image) == errno.EIO          # once, for both
        assert fsync(c.image) == 0
    finally:
        for d in (a, b, c):
            os.rmdir(d.path)
