# SPDX-License-Identifier: GPL-2.0-or-later
"""thin-pool and thin on devices that fail."""

import errno
import os

import pytest

from mounted import pattern, quote
from thinpool import BLOCK, BS, Pool, tool as thin_tool


@pytest.fixture
def stacked(fs, backing):
    """A pool whose metadata and data are linear devices, which a test can turn to errors and back."""

    class Stacked:
        def __init__(self):
            self.files = {"meta": (backing(META := 8192), META), "data": (backing(200 * BS), 200 * BS)}
            for name in self.files:
                fs.mkdir(name)
                self.heal(name)
            self.pool = fs.mkdir("pool", f"0 {200 * BS} thin-pool meta data {BS} 0")
            self.pool.message("create_thin 0")
            self.thin = fs.mkdir("thin", f"0 {100 * BS} thin pool 0")

        def heal(self, name):
            path, sectors = self.files[name]
            fs[name].load(f"0 {sectors} linear {quote(path)} 0")

        def break_(self, name):
            fs[name].load(f"0 {self.files[name][1]} error")

        def again(self):
            """Everything anew; the metadata must be clean."""
            self.thin.remove()
            self.pool.remove()
            thin_tool("thin_check", self.files["meta"][0])
            os.mkdir(self.pool.path)
            self.pool.load(f"0 {200 * BS} thin-pool meta data {BS} 0")
            os.mkdir(self.thin.path)
            self.thin.load(f"0 {100 * BS} thin pool 0")

    return Stacked()


def test_metadata_device_fails(stacked):
    s = stacked
    s.thin.pwrite(pattern(5 * BS), 0, sync=True)
    s.break_("meta")
    with pytest.raises(OSError) as e:
        s.thin.pwrite(b"x" * 512, 50 * BLOCK, sync=True)
    assert e.value.errno == errno.EIO
    assert s.pool.status().split()[3:] == ["Fail"]
    assert s.thin.status().split()[3:] == ["Fail"]
    s.heal("meta")
    with pytest.raises(OSError) as e:
        s.thin.pwrite(b"x" * 512, 0, sync=True)
    assert e.value.errno == errno.EIO
    with pytest.raises(OSError) as e:
        s.pool.message("create_thin 1")
    assert e.value.errno == errno.EOPNOTSUPP
    s.again()
    assert s.thin.pread(5 * BLOCK, 0) == pattern(5 * BS)
    assert s.pool.status().split()[7] == "rw"


def test_a_status_that_flushes_finds_a_broken_metadata_device(stacked, tool, sh):
    """Also when nothing has changed, as in the kernel; `status` never waits, and does not look."""
    s, ctl = stacked, {"DMFS_MOUNT": stacked.pool.mount.mountpoint, "CTL": tool("dmfsctl")}
    s.thin.pwrite(pattern(5 * BS), 0, sync=True)

    def mode(*options):
        return sh(f'"$CTL" status {" ".join(options)} pool', **ctl).stdout.split()[3:8][-1]

    assert mode() == "rw" == s.pool.message("@flush status").split()[7]
    s.break_("meta")
    assert s.pool.status().split()[7] == mode("--noflush") == "rw"
    sh('"$CTL" status thin', **ctl)
    s.pool.suspend()
    assert mode() == "rw"               # not while it is suspended
    s.heal("meta")
    s.pool.resume()
    s.break_("meta")
    assert mode() == mode("--noflush") == "Fail" and s.thin.status().split()[3:] == ["Fail"]
    s.heal("meta")
    s.again()
    assert s.thin.pread(5 * BLOCK, 0) == pattern(5 * BS)


def test_asking_leaves_error_and_the_last_reply(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.message("@stats_create - /1")
    dev.refuse("0 8 nosuch\n")
    reply, error = dev.read("message"), dev.error()
    assert dev.message("@flush status") == "0 8 zero\n" and dev.message("@inactive deps") == ""
    assert (dev.read("message"), dev.error()) == (reply, error) and "nosuch" in error
    for text in ("@flush", "@flush table", "@flush status status"):
        with pytest.raises(OSError) as e:
            dev.message(text)
        assert e.value.errno == errno.EINVAL and "@flush takes status" in dev.error()


def test_data_device_fails(stacked):
    s = stacked
    s.thin.pwrite(pattern(5 * BS), 0, sync=True)
    s.break_("data")
    with pytest.raises(OSError) as e:
        s.thin.pwrite(b"x" * 512, 50 * BLOCK)
    assert e.value.errno == errno.EIO
    assert s.pool.status().split()[7] == "rw"
    s.heal("data")
    s.thin.pwrite(b"y" * 512, 50 * BLOCK, sync=True)
    s.again()
    assert s.thin.pread(5 * BLOCK, 0) == pattern(5 * BS)
    assert s.thin.pread(BLOCK, 50 * BLOCK) == b"y" * 512 + bytes(BLOCK - 512)


def test_data_device_fails_to_flush(stacked):
    """Metadata must not become durable before the data it leads to: the transaction is abandoned."""
    s = stacked
    s.thin.pwrite(pattern(5 * BS), 0, sync=True)
    s.break_("data")
    s.pool.message("create_thin 1")
    words = s.pool.status().split()
    assert (words[7], words[10]) == ("ro", "needs_check")
    s.heal("data")
    assert s.thin.pread(5 * BLOCK, 0) == pattern(5 * BS)
    s.thin.remove()
    s.pool.remove()
    thin_tool("thin_check", s.files["meta"][0])
    assert 'dev_id="1"' not in thin_tool("thin_dump", s.files["meta"][0]).stdout


def test_devices_that_have_shrunk_are_refused(fs, backing):
    p = Pool(fs, backing)
    p.thin(0).pwrite(pattern(BS), 0, sync=True)
    p.close()
    length = p.blocks * BS
    dev = fs.mkdir("again")
    for meta, code in ((4096, errno.EINVAL), (BLOCK // 512 // 2, errno.EIO), (8, errno.EIO)):
        short = fs.mkdir("short", f"0 {meta} linear {quote(p.meta)} 0")
        dev.refuse(f"0 {length} thin-pool short {quote(p.data)} {BS} 0\n", code=code)
        short.remove()
    dev.refuse(f"0 {length - BS} thin-pool {quote(p.meta)} {quote(p.data)} {BS} 0\n", match="too small")
    dev.refuse(f"0 {length} thin-pool {quote(p.meta)} {quote(p.data)} {2 * BS} 0\n", match="the table says 256")
    short = fs.mkdir("short", f"0 {length - BS} linear {quote(p.data)} 0")
    dev.refuse(f"0 {length} thin-pool {quote(p.meta)} short {BS} 0\n")
    short.remove()
    dev.load(p.line())
    assert fs.mkdir("thin", f"0 {BS} thin again 0").pread(BLOCK, 0) == pattern(BS)


def test_a_damaged_mapping_tree(fs, backing):
    """The kernel's errors; and as nothing could be changed, the pool stays as it was."""
    p = Pool(fs, backing)
    p.thin(0).pwrite(pattern(BS), 0, sync=True)
    p.close()
    with open(p.meta, "r+b") as f:
        f.seek(320)
        root = int.from_bytes(f.read(8), "little")
        f.seek(root * 4096 + 100)
        f.write(b"garbage")
    p.dev = fs.mkdir("pool", p.line())
    thin = p.thin(0, create=False)
    for access in (lambda: thin.pread(512, 0), lambda: thin.pwrite(b"x" * 512, 0)):
        with pytest.raises(OSError) as e:
            access()
        assert e.value.errno == errno.EIO
    assert thin.status().split()[3:] == ["Error"]
    assert f"thin: pool: dm_thin_find_block() failed: error = -{errno.EILSEQ}" in fs.read("log")
    for message in ("create_thin 1", "create_snap 1 0"):
        with pytest.raises(OSError) as e:
            p.message(message)
        assert e.value.errno == errno.EILSEQ
    assert p.status()["mode"] == "rw" and p.status()["check"] == "-"
