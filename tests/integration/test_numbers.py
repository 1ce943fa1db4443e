# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tree tells dmfs-run: @numbers, @limits, and the root's time of the last change."""

import errno
import os

import pytest

KEY = "0123456789abcdef" * 4


def test_numbers(fs, backing):
    path = backing(64)
    low = fs.mkdir("low", f"0 64 linear {path} 0")
    high = fs.mkdir("high", "0 64 linear low 0")
    high.load("0 32 linear low 32", to="inactive")
    minor = low.read("dev").strip()
    assert high.table() == "0 64 linear low 0\n"
    assert high.message("@numbers table") == f"0 64 linear {minor} 0\n"
    assert high.message("@numbers inactive table") == f"0 32 linear {minor} 32\n"
    assert high.message("@numbers deps") == high.message("@numbers inactive deps") == f"{minor}\n"
    assert low.message("@numbers deps") == f"{path}\n"
    assert high.message("@numbers status") == high.message("@numbers flush status") == high.status()
    assert high.table() == "0 64 linear low 0\n"      # names again
    for bad in "@numbers", "@numbers none", "@numbers inactive", "@numbers inactive none", "@numbers flush", \
            "@numbers table deps", "@numbers inactive table deps":
        with pytest.raises(OSError) as e:
            high.message(bad)
        assert e.value.errno == errno.EINVAL, bad
    fs.mkdir("empty")
    assert fs["empty"].message("@numbers table") == fs["empty"].message("@numbers keys") == ""


def test_keys_are_told_to_who_asks_and_not_kept(fs, backing):
    path = backing(64)
    dev = fs.mkdir("c", f"0 64 crypt aes-xts-plain64 {KEY} 0 {path} 0")
    dev.load(f"0 64 crypt aes-xts-plain64 {KEY[::-1]} 0 {path} 0", to="inactive")
    zeros = f"0 64 crypt aes-xts-plain64 {'0' * len(KEY)} 0 {path} 0\n"
    assert dev.message("@numbers keys") == zeros.replace("0" * len(KEY), KEY)
    assert dev.message("@numbers inactive keys") == zeros.replace("0" * len(KEY), KEY[::-1])
    assert dev.message("@numbers table") == dev.table() == dev.inactive() == zeros
    assert KEY not in dev.read("message") and KEY not in fs.read("log") and KEY not in dev.error()
    # what is told loads again and means the same
    dev.pwrite(b"x" * 512, 0, sync=True)
    with open(path, "rb") as f:
        secret = f.read(512)
    dev.load(dev.message("@numbers keys").rstrip("\n"))
    dev.pwrite(b"x" * 512, 0, sync=True)
    with open(path, "rb") as f:
        assert f.read(512) == secret
    dev.suspend()
    dev.message("key wipe")
    assert dev.message("@numbers keys") == zeros


def test_keys_of_integrity_are_told_too(fs, backing):
    path = backing(4096)
    keys = [c * 64 for c in "abc"]
    words = " ".join(f"{word}:{alg}:{key}" for (word, alg), key in zip(
        (("internal_hash", "hmac(sha256)"), ("journal_crypt", "cbc(aes)"), ("journal_mac", "hmac(sha256)")), keys))
    dev = fs.mkdir("i", f"0 8 integrity {path} 0 - J 3 {words}")
    told, table = dev.message("@numbers keys"), dev.table()
    assert told.endswith(f" {words}\n") and table == dev.message("@numbers table")
    for key in keys:
        assert key not in table and told.count(key) == 1
        told = told.replace(key, "0" * 64)
    assert told == table


def test_limits(fs, backing):
    fs.mkdir("c", f"0 64 crypt aes-xts-plain64 {KEY} 0 {backing(64)} 0 1 sector_size:4096")
    lines = dict(line.split() for line in fs["c"].message("@limits").splitlines())
    assert lines["logical_block_size"] == "4096"
    assert set(lines) == {"logical_block_size", "physical_block_size", "io_min", "io_opt", "discard_granularity",
                          "max_discard_sectors"}
    with pytest.raises(OSError):
        fs["c"].message("@limits x")


def test_the_roots_time_changes_with_its_devices(fs):
    def changes(fn, *args):
        before = os.stat(fs.mountpoint).st_mtime_ns
        fn(*args)
        after = os.stat(fs.mountpoint).st_mtime_ns
        assert after == os.stat(fs.mountpoint).st_ctime_ns
        return after > before

    dev = fs["v"]
    assert changes(os.mkdir, dev.path)
    assert changes(dev.load, "0 8 zero")
    assert changes(dev.write, "uuid", "U1")
    assert changes(lambda: dev.load("0 16 zero", to="inactive"))
    assert changes(dev.suspend)
    assert changes(dev.resume)
    assert not changes(dev.pwrite, b"x" * 512, 0)
    assert not changes(dev.table)
    assert not changes(dev.status)
    assert changes(os.rename, dev.path, fs.path("w"))
    assert changes(os.rmdir, fs.path("w"))


def test_all_devices_in_one_reading(fs):
    fs.mkdir("b", "0 8 zero")
    fs.mkdir("a b").write("uuid", "U 1")
    fs.mkdir("c")
    os.rename(fs["b"].path, fs.path("d"))
    assert sorted(fs.read(".devices").splitlines()) == ["0:0 1 d", r"0:1 0 a\ b U\ 1", "0:2 0 c"]
    with pytest.raises(OSError):
        os.mkdir(fs.path(".devices"))
