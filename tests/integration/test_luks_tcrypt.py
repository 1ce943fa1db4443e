# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: VeraCrypt volumes (TrueCrypt's differ in the derivation of the key, and are not made here)."""

import os

import pytest

import veracrypt
from crypt_combos import stream
from luks import Luks
from mounted import pattern

TCRYPT = ["--type", "tcrypt"]
DATA = pattern(2048, 4)
PIM = ["--veracrypt-pim", "1"]      # which is quick


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


def check(luks, path, data, *options, given=b"sesame\n", layers=1):
    dev = luks.open(path, "v", *TCRYPT, *options, given=given)
    assert dev.size() == len(data)
    assert dev.pread(len(data), 0) == data
    assert dev.read("uuid").startswith("CRYPT-TCRYPT-")
    assert len(luks.fs.devices()) == layers
    luks.run("close", "v")
    assert not luks.fs.devices()


@pytest.mark.parametrize("ciphers", [["aes"], ["serpent"], ["twofish"], ["camellia"], ["twofish", "aes"],
                                     ["serpent", "camellia"], ["aes", "twofish", "serpent"]])
def test_ciphers(luks, work, ciphers):
    """A cascade is layers of devices, closed as one."""
    path = veracrypt.volume(luks.fs, work, ciphers, b"sesame", DATA, pim=1)
    check(luks, path, DATA, *PIM, layers=len(ciphers))


def test_default_iterations(luks, work):
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA)
    check(luks, path, DATA)
    luks.refuse("open", path, "v", match="has no LUKS or BitLocker header .* use --type tcrypt")
    luks.refuse("open", path, "v", *TCRYPT, "--disable-veracrypt", match="no header can be read with this", code=2)


@pytest.mark.parametrize("digest", ["sha256", "blake2s"])
def test_hashes(luks, work, digest):
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA, pim=1, digest=digest)
    check(luks, path, DATA, *PIM)
    check(luks, path, DATA, *PIM, "--hash", "blake2s-256" if digest == "blake2s" else digest)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--hash", "sha512", match="no header can be read", code=2)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--hash", "md5", match="hash 'md5' is not one of")


def test_hidden_and_backup(luks, work):
    hidden = stream("hidden", 64 << 10)
    path = veracrypt.volume(luks.fs, work, ["twofish", "aes"], b"sesame", DATA, pim=1, hidden=(b"deep", hidden))
    outer = DATA[:-len(hidden)]
    dev = luks.open(path, "v", *TCRYPT, *PIM)
    assert dev.size() == len(DATA) and dev.pread(len(outer), 0) == outer
    luks.run("close", "v")
    for options in (["--tcrypt-hidden"], ["--tcrypt-hidden", "--tcrypt-backup"]):
        check(luks, path, hidden, *PIM, *options, given=b"deep\n", layers=2)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--tcrypt-hidden", match="no header can be read", code=2)
    with open(path, "r+b") as f:
        f.write(bytes(512))
    luks.refuse("open", path, "v", *TCRYPT, *PIM, match="no header can be read", code=2)
    luks.open(path, "v", *TCRYPT, *PIM, "--tcrypt-backup")
    luks.run("close", "v")
    os.truncate(path, 200 << 10)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--tcrypt-hidden", given=b"deep\n", match="too few .* was it cut short")


@pytest.mark.parametrize("passphrase", [b"", b"sesame", b"long" * 20])
def test_key_files(luks, work, passphrase):
    contents = [stream("one", 100), stream("two", 3000)]
    paths = [os.path.join(work, f"key {i}") for i in range(2)]
    for name, content in zip(paths, contents):
        with open(name, "wb") as f:
            f.write(content)
    secret = veracrypt.keyfile_pool(passphrase, contents)
    path = veracrypt.volume(luks.fs, work, ["aes"], secret, DATA, pim=1)
    check(luks, path, DATA, *PIM, "-d", paths[0], "-d", paths[1], given=passphrase + b"\n")
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "-d", paths[0], given=passphrase + b"\n", match="no header", code=2)
