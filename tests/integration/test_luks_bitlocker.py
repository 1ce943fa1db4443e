# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: BitLocker volumes."""

import os
import re

import pytest

import bitlocker
from bitlocker import CLEAR, PASSPHRASE, RECOVERY, STARTUP
from luks import Luks
from mounted import SECTOR, Device, pattern


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


def lines(dev):
    """(start, sectors, type, where in the file) of each line of the table."""
    out = []
    for line in dev.table().splitlines():
        word = line.split()
        out.append((*map(int, word[:2]), word[2], int(word[7]) if word[2] == "crypt" else None))
        assert word[2] == "zero" or (re.fullmatch("0{32,}", word[4]) and word[5] == word[7])
    return out


@pytest.mark.parametrize("method,sector_size,protection", [
    (0x8000, 512, CLEAR), (0x8001, 512, STARTUP), (0x8002, 512, CLEAR), (0x8003, 4096, STARTUP), (0x8004, 4096, CLEAR),
    (0x8004, 512, STARTUP), (0x8005, 512, CLEAR)])
def test_methods(luks, work, method, sector_size, protection):
    volume = bitlocker.Volume(luks.fs, work, method=method, sector_size=sector_size, protections=[protection])
    given = ["--key-file", volume.bek] if protection == STARTUP else []
    dev = luks.open(volume.path, "v", *given, given=b"")
    assert dev.pread(len(volume.plain), 0) == volume.plain
    assert lines(dev) == [(0, 16, "crypt", 640), (16, 496, "crypt", 16), (512, 128, "zero", None),
                          (640, 16, "zero", None), (656, 368, "crypt", 656), (1024, 128, "zero", None),
                          (1152, 704, "crypt", 1152), (1856, 128, "zero", None),
                          (1984, 64, "crypt", 1984)]
    assert ("iv_large_sectors" in dev.table()) == (sector_size > 512)
    assert dev.read("uuid").startswith("CRYPT-BITLK-")
    with open(volume.path, "rb") as f:
        before = f.read()
    data = pattern(64, 1)
    for at in (0, 4096, 656 * SECTOR):
        dev.pwrite(data[:8192], at, sync=True)
    status = luks.run("status", "v").stdout.decode()
    for part in ("type:        BITLK", f"cipher:      {volume.cipher}", f"device:      {volume.path}",
                 f"sector size: {sector_size}", "size:        2048 sectors"):
        assert part in status, status
    luks.run("close", "v")
    with open(volume.path, "rb") as f:
        after = f.read()
    for start, end in ((0, 512), (256 << 10, 320 << 10), (512 << 10, 576 << 10), (928 << 10, 992 << 10)):
        assert after[start:end] == before[start:end]
    dev = luks.open(volume.path, "v", "--readonly", "--type", "bitlk", *given, given=b"")
    assert dev.pread(4096, 0) == data[:4096] and dev.pread(8192, 656 * SECTOR) == data[:8192]
    luks.run("close", "v")


def test_passphrase_and_recovery_password(luks, work):
    volume = bitlocker.Volume(luks.fs, work, protections=[RECOVERY, PASSPHRASE], passphrase="sesame!", to_go=True)
    for given in ("sesame!", bitlocker.RECOVERY_PASSWORD):
        dev = luks.open(volume.path, "v", given=given.encode() + b"\n")
        assert dev.pread(len(volume.plain), 0) == volume.plain
        luks.run("close", "v")
    done = luks.run("open", volume.path, "v", given=b"sesame\n", check=False)
    assert done.returncode == 2 and b"no key is available with this passphrase" in done.stderr


def test_passphrase_that_is_not_ascii(luks, work):
    volume = bitlocker.Volume(luks.fs, work, protections=[RECOVERY, PASSPHRASE], passphrase="Schlüssel €")
    dev = luks.open(volume.path, "v", given="Schlüssel €\n".encode())
    assert dev.pread(len(volume.plain), 0) == volume.plain
    luks.run("close", "v")
    for given in ("Schlüsel €\n".encode(), b"Schl\xfcssel\n"):
        luks.refuse("open", volume.path, "v", given=given, match="no key is available", code=2)


@pytest.mark.parametrize("metadata,header,expected", [
    # the copies next to each other; the first sectors behind, in the middle
    ((64 << 10, 128 << 10, 192 << 10), (512 << 10, 4096),
     [(0, 8, "crypt", 1024), (8, 120, "crypt", 8), (128, 128, "zero", None), (256, 128, "zero", None),
      (384, 128, "zero", None), (512, 512, "crypt", 512), (1024, 8, "zero", None), (1032, 1016, "crypt", 1032)]),
    # the last copy at the very end
    ((256 << 10, 512 << 10, 960 << 10), (704 << 10, 8192),
     [(0, 16, "crypt", 1408), (16, 496, "crypt", 16), (512, 128, "zero", None), (640, 384, "crypt", 640),
      (1024, 128, "zero", None), (1152, 256, "crypt", 1152), (1408, 16, "zero", None), (1424, 496, "crypt", 1424),
      (1920, 128, "zero", None)]),
    # not in order, and right behind the first sectors
    ((512 << 10, 8 << 10, 256 << 10), (128 << 10, 8192),
     [(0, 16, "crypt", 256), (16, 128, "zero", None), (144, 112, "crypt", 144), (256, 16, "zero", None),
      (272, 240, "crypt", 272), (512, 128, "zero", None), (640, 384, "crypt", 640), (1024, 128, "zero", None),
      (1152, 896, "crypt", 1152)])])
def test_layouts(luks, work, metadata, header, expected):
    volume = bitlocker.Volume(luks.fs, work, metadata=metadata, header=header, protections=[CLEAR])
    dev = luks.open(volume.path, "v", given=b"")
    assert lines(dev) == expected
    assert dev.pread(len(volume.plain), 0) == volume.plain
    luks.run("close", "v")


def test_refusals(luks, work):
    def refuse(match, **kw):
        volume = bitlocker.Volume(luks.fs, work, **kw)
        luks.refuse("open", volume.path, "v", "--key-file", volume.bek, match=match)

    refuse(r"not wholly encrypted \(BitLocker state 5", state=5)
    refuse("encrypted on write", guid=bitlocker.ON_WRITE)
    refuse("overlaps the file system's first sectors", metadata=(4096, 256 << 10, 512 << 10))
    refuse("does not say where the file system's first sectors are", header=(0, 0))
    volume = bitlocker.Volume(luks.fs, work)
    luks.refuse("open", volume.path, "v", match="no key is available", code=2)
    os.truncate(volume.path, 768 << 10)
    luks.refuse("open", volume.path, "v", "--key-file", volume.bek, match="too few .* was it cut short")
    luks.refuse("open", volume.path, "v", "--type", "luks2", match=".")
    with open(volume.path, "r+b") as f:
        f.seek(256 << 10)
        f.write(bytes(4096))
    luks.refuse("open", volume.path, "v", match="Failed to read BITLK FVE metadata")
    volume = bitlocker.Volume(luks.fs, work, protections=[CLEAR])
    with open(volume.path, "r+b") as f:
        f.seek((256 << 10) + 112 + 36 + 8 + 4)
        f.write(bytes(4))
    luks.refuse("open", volume.path, "v", match="its clear key does not open it", code=2)


def test_damaged_metadata(luks, work):
    """Refused or opened, never more: a byte at a time is another."""
    volume = bitlocker.Volume(luks.fs, work)
    with open(volume.path, "rb") as f:
        good = f.read()
    for at in [3, 11, 160, 176, 183, *((256 << 10) + i for i in (0, 10, 12, 64, 67, 100, 112, 114, 116, 148, 150))]:
        data = bytearray(good)
        data[at] ^= 0xFF
        with open(volume.path, "wb") as f:
            f.write(data)
        done = luks.open(volume.path, "v", "--key-file", volume.bek, given=b"", check=False)
        assert done.returncode in (0, 1, 2), done
        if done.returncode == 0:
            luks.run("close", "v")
    assert isinstance(Device(luks.fs, "v"), Device) and not luks.fs.devices()
