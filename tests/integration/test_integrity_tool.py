# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-integrity: format, open, close, status, dump; what it refuses.  integritysetup reads what it made."""

import os
import re
import shutil
import subprocess

import pytest

from mounted import SECTOR, build_dir, interrupted, pattern

SECTORS = 16384


@pytest.fixture
def tool(fs):
    def run(*args, check=True):
        done = subprocess.run([os.path.join(build_dir(), "dmfs-integrity"), *map(str, args)], capture_output=True, text=True,
                              timeout=60, check=False, env=os.environ | {"DMFS_MOUNT": fs.mountpoint})
        assert not check or done.returncode == 0, done.stderr
        return done
    return run


@pytest.fixture
def key(work):
    path = os.path.join(work, "key")
    with open(path, "wb") as f:
        f.write(bytes(range(64)))
    return path


def fields(text):
    return dict(line.split(" ", 1) for line in text.split("\n")[1:] if " " in line)


@pytest.mark.parametrize("how", [(), ("-D",), ("-B",), ("-s", 4096, "-I", "sha256"), ("-t", 16, "-j", 65536)])
def test_format_open_close(fs, tool, backing, how):
    path = backing(SECTORS)
    tool("format", path, *how)
    assert fs.devices() == []
    sb = fields(tool("dump", path).stdout)
    same = [a for n, a in enumerate(how) if a in ("-D", "-B", "-I") or (n and how[n - 1] == "-I")]
    assert tool("open", path, "vol", *same).stdout == f"{fs.mountpoint}/vol/image\n"
    dev = fs["vol"]
    size = int(sb["provided_data_sectors"]) * SECTOR
    assert dev.size() == size
    assert dev.pread(size, 0) == bytes(size)        # wiped
    dev.pwrite(pattern(100, 1), 4096, sync=True)
    status = tool("status", "vol").stdout
    assert f"size:               {size // SECTOR} sectors" in status and "failed checks:      0" in status
    tool("close", "vol")
    assert fs.devices() == []
    tool("open", path, "vol", *same)
    assert fs["vol"].pread(100 * SECTOR, 4096) == pattern(100, 1)
    tool("close", "vol")


def test_interrupted(fs, tool, backing):
    """No device of its own is left, the volume opens, and what has no tag gets one when that is asked for."""
    path = backing(8 << 20)
    status, text = interrupted([os.path.join(build_dir(), "dmfs-integrity"), "format", path, "-D"], path, 48 << 20,
                               env=os.environ | {"DMFS_MOUNT": fs.mountpoint})
    assert status == 1 and re.search(r"interrupted after \d+ of \d+ MiB: the volume opens", text), text
    assert fs.devices() == []
    tool("open", path, "vol", "-D")
    dev = fs["vol"]
    assert not any(dev.pread(4096, 0))
    with pytest.raises(OSError):
        dev.pread(4096, dev.size() - 4096)
    tool("close", "vol")
    tool("open", path, "vol", "-D", "--integrity-recalculate")
    assert not any(dev.pread(4096, dev.size() - 4096))
    tool("close", "vol")


def test_keys_and_a_metadata_device(fs, tool, backing, key):
    data, meta = backing(4096), backing(2048)
    args = ("--data-device", data, "-I", "hmac-sha256", "--integrity-key-file", key, "--integrity-key-size", 32,
            "--journal-integrity", "hmac-sha256", "--journal-integrity-key-file", key,
            "--journal-crypt", "ctr(aes)", "--journal-crypt-key-file", key, "--journal-crypt-key-size", 32)
    tool("format", meta, *args)
    assert fields(tool("dump", meta).stdout)["flags"] == "have_journal_mac fix_hmac"
    tool("open", meta, "vol", *args)
    fs["vol"].pwrite(pattern(64, 1), 0, sync=True)
    out = tool("status", "vol").stdout
    assert "journal crypt:      ctr(aes)\n" in out and bytes(range(4)).hex() not in out
    tool("close", "vol")
    wrong = [*args[:7], 31, *args[8:]]
    done = tool("open", meta, "vol", *wrong, check=True)
    with pytest.raises(OSError):
        fs["vol"].pread(SECTOR, 0)
    tool("close", "vol")
    assert done.returncode == 0


def test_refused(fs, tool, backing, work):
    full = backing(SECTORS, data=b"something")
    before = open(full, "rb").read()
    for args, why in [(("format", full), "batch-mode"), (("open", full, "x"), "not an integrity volume"), (("close", "x"), "no device"),
                      (("status", "x"), "no device"), (("dump", full), "not an integrity volume"), (("open", full), "usage"), ((), "command"),
                      (("open", full, "x", "-s", "4096"), "only for format"), (("format", full, "-D", "-B"), "one of them"),
                      (("format", os.path.join(work, "none")), "none"), (("format", full, "-q", "-I", "nonsense"), "nonsense"),
                      (("format", full, "--integrity-key-file", "/nonexistent"), "key file")]:
        done = tool(*args, check=False)
        assert done.returncode and why in done.stderr, (args, done.stderr)
        assert open(full, "rb").read() == before, args
    assert fs.devices() == []
    other = fs.mkdir("other", "0 8 zero")
    assert "was not opened" in tool("close", "other", check=False).stderr
    other.remove()


def test_integritysetup_reads_it(tool, backing):
    theirs = shutil.which("integritysetup", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not theirs:
        pytest.skip("no integritysetup (package cryptsetup-bin)")
    path = backing(SECTORS)
    tool("format", path, "-B", "-I", "sha1")
    done = subprocess.run([theirs, "dump", path], capture_output=True, text=True, timeout=60, check=True).stdout
    ours = fields(tool("dump", path).stdout)
    for word in ("superblock_version", "log2_interleave_sectors", "integrity_tag_size", "journal_sections",
                 "provided_data_sectors", "sector_size"):
        assert f"{word} {ours[word]}\n" in done, done
