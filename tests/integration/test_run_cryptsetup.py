# SPDX-License-Identifier: GPL-2.0-or-later
"""cryptsetup, veritysetup and integritysetup unchanged, under dmfs-run: from end to end, without a complaint."""

import os
import re

import pytest

import bitlocker
import veracrypt
from luks import Luks
from mounted import pattern
from run import FAST, fields, filled, needs, needs_targets


def test_luks2(run, crypt):
    disk = run.disk("luks.img", 40)
    crypt("luksFormat", "--type", "luks2", *FAST, disk)
    crypt("open", disk, "vol")
    data = filled(run, "vol")
    status = fields(crypt("status", "vol"))
    assert (status["type"], status["device"], status["mode"]) == ("LUKS2", disk, "read/write")
    assert 'TYPE="crypto_LUKS"' in run("blkid", "-p", disk)
    tree = run("lsblk", "-rno", "NAME,TYPE,SIZE,MAJ:MIN")
    assert re.search(r"^luks\.img disk 40M ", tree, re.M) and re.search(r"^vol crypt 24M ", tree, re.M)

    crypt("resize", "vol", "--size", "1024")
    assert run.fs["vol"].size() == 1024 * 512
    crypt("resize", "vol")
    assert run.fs["vol"].size() == 24 << 20
    assert run.fs["vol"].pread(len(data), 0) == data

    crypt("luksSuspend", "vol")
    assert run.fs["vol"].suspended()
    crypt("luksResume", "vol")
    assert run.fs["vol"].pread(len(data), 0) == data
    crypt("reencrypt", disk, *FAST)         # while it is open
    assert run.fs["vol"].pread(len(data), 0) == data
    crypt("close", "vol")
    run.fails("cryptsetup", "status", "vol", match="is inactive")
    crypt("open", "--readonly", disk, "vol")
    assert run.fs["vol"].pread(len(data), 0) == data
    assert fields(crypt("status", "vol"))["mode"] == "readonly"
    crypt("close", "vol")
    assert not run.fs.devices()


def test_luks1_and_plain(run, crypt):
    disk = run.disk("one.img", 16)
    crypt("luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", disk)
    crypt("open", disk, "vol")
    data = filled(run, "vol")
    assert fields(crypt("status", "vol"))["type"] == "LUKS1"
    crypt("close", "vol")
    crypt("open", disk, "vol")
    assert run.fs["vol"].pread(len(data), 0) == data
    crypt("resize", "vol", "--size", "2048")
    assert run.fs["vol"].size() == 1 << 20
    crypt("close", "vol")
    crypt("reencrypt", disk, "--pbkdf-force-iterations", "1000", cwd=os.path.dirname(run.runtime))
    crypt("open", disk, "vol")
    assert run.fs["vol"].pread(len(data), 0) == data
    crypt("close", "vol")

    run("cryptsetup", "-q", "open", "--type", "plain", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256",
        "--hash", "sha256", disk, "raw", given="sesame\n", quiet=False)
    assert run.fs["raw"].table().split()[:4] == ["0", "32768", "crypt", "aes-cbc-essiv:sha256"]
    assert fields(crypt("status", "raw"))["type"] == "PLAIN"
    crypt("resize", "raw", "--size", "4096")
    assert run.fs["raw"].size() == 2 << 20
    crypt("close", "raw")


@pytest.mark.parametrize("ciphers", [["aes"], ["aes", "twofish", "serpent"], ["camellia"]])
def test_tcrypt(run, fs, work, ciphers):
    needs("cryptsetup")
    data = pattern(2048, 4)
    path = veracrypt.volume(fs, work, ciphers, b"sesame", data, pim=1)
    run.disks.append(path)
    disk = "/dev/" + os.path.basename(path)
    run("cryptsetup", "open", "--type", "tcrypt", "--veracrypt-pim", "1", disk, "v", given="sesame\n")
    assert fs["v"].pread(len(data), 0) == data
    run("cryptsetup", "close", "v")
    assert not fs.devices()


def test_bitlk(run, fs, work):
    needs("cryptsetup")
    volume = bitlocker.Volume(fs, work, protections=[bitlocker.PASSPHRASE])
    run.disks.append(volume.path)
    run("cryptsetup", "open", "--type", "bitlk", "/dev/" + os.path.basename(volume.path), "b",
        given="sesame\n")
    assert fs["b"].pread(len(volume.plain), 0) == volume.plain
    run("cryptsetup", "close", "b")


def test_veritysetup(run, backing):
    needs("veritysetup")
    data = pattern(2048, 3)
    run.disks += [backing(2048, data, name="data.img"), backing(2048, name="hash.img")]
    root = re.search(r"Root hash:\s+(\w+)", run("veritysetup", "format", "/dev/data.img", "/dev/hash.img")).group(1)
    run("veritysetup", "open", "/dev/data.img", "v", "/dev/hash.img", root)
    assert fields(run("veritysetup", "status", "v"))["status"] == "verified"
    assert run.fs["v"].pread(len(data), 0) == data
    run("veritysetup", "close", "v")
    run.fails("veritysetup", "verify", "/dev/data.img", "/dev/hash.img", "0" * 64,
              match="Verification of root hash failed")


def test_integritysetup_and_luks_with_integrity(run, fs, crypt):
    needs("integritysetup")
    needs_targets(fs, "integrity")
    disk = run.disk("i.img", 24)
    run("integritysetup", "format", "-q", "--no-wipe", disk)
    run("integritysetup", "open", disk, "i")
    assert fields(run("integritysetup", "status", "i"))["type"] == "INTEGRITY"
    run("integritysetup", "close", "i")
    disk = run.disk("a.img", 40)
    crypt("luksFormat", "--type", "luks2", "--integrity", "hmac-sha256", "--integrity-no-wipe", *FAST, disk)
    crypt("open", disk, "vol")
    data = filled(run, "vol", 64)
    assert fs["vol"].pread(len(data), 0) == data
    crypt("close", "vol")
    # wiped by them
    disk = run.disk("w.img", 24)
    run("integritysetup", "format", "-q", disk, "-I", "sha256", "-s", "4096")
    run("integritysetup", "open", disk, "i", "-I", "sha256")
    assert not any(fs["i"].pread(fs["i"].size(), 0)) and fs["i"].status().split()[3] == "0"
    run("integritysetup", "close", "i")
    disk = run.disk("aw.img", 40)
    crypt("luksFormat", "--type", "luks2", "--integrity", "hmac-sha256", *FAST, disk)
    crypt("open", disk, "vol")
    assert not any(fs["vol"].pread(fs["vol"].size(), 0))
    crypt("close", "vol")


def test_luks_that_is_not_wiped_yet(run, fs, crypt, tool, work):
    """cryptsetup opens it, and leaves the note of it; dmfs-luks goes on, and what was written stays."""
    disk = run.disk("l.img", 40)
    luks = Luks(tool("dmfs-luks"), fs)
    luks.format(run.disks[-1], "-I", "aead", "--integrity-wipe-later", "--batch", size=None, given=b"sesame\n")
    assert re.search(r"Tokens:\s+0: dmfs-wipe\n", run("cryptsetup", "luksDump", disk))
    crypt("open", disk, "vol")
    data = filled(run, "vol", 64)
    crypt("close", "vol")
    dev = luks.open(run.disks[-1], "vol")
    luks.run("wait-wipe", "vol")
    assert dev.pread(dev.size(), 0) == data + bytes(dev.size() - len(data))
    luks.run("close", "vol")


@pytest.mark.parametrize("cipher,integrity,bits", [
    ("aes-gcm-random", "aead", "256"), ("chacha20-random", "poly1305", "256"),
    ("serpent-xts-plain64", "hmac-sha256", "512")])
def test_luks_with_other_ciphers_and_tags(run, fs, crypt, cipher, integrity, bits):
    """Whether there is such a cipher cryptsetup asks a kernel that need not have any; key slots are in serpent then."""
    needs_targets(fs, "integrity")
    disk = run.disk("a.img", 40)
    crypt("luksFormat", "--type", "luks2", "--cipher", cipher, "--integrity", integrity, "--key-size", bits,
          "--integrity-no-wipe", *FAST, disk)
    crypt("open", disk, "vol")
    data = filled(run, "vol", 64)
    crypt("close", "vol")
    crypt("open", disk, "vol")
    assert fs["vol"].pread(len(data), 0) == data
    crypt("close", "vol")
