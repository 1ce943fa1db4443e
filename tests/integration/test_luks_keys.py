# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: only the volume's own key reaches a table, however it came."""

import os
import subprocess

import pytest

import bitlocker
import veracrypt
from crypt_combos import stream
from luks import Luks, cryptsetup, edit_luks2
from mounted import SECTOR, pattern

KEY = bytes(range(64))
OTHER = bytes(range(64, 128))


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


@pytest.fixture
def key_file(work):
    def make(name, content):
        path = os.path.join(work, name)
        with open(path, "wb") as f:
            f.write(content)
        return path

    return make


@pytest.fixture
def volume(luks, work, tool, key_file):
    """Of a known key, with data; and in the unbound slot 1, for the passphrase 'other', a key that is not its own."""
    def make(kind):
        path = os.path.join(work, f"{kind}.img")
        with open(path, "wb") as f:
            f.truncate(20 << 20)
        cryptsetup(tool, "luksFormat", "--type", kind, "--volume-key-file", key_file("key", KEY), path, given=b"sesame")
        if kind == "luks2":
            cryptsetup(tool, "luksAddKey", "--unbound", "--key-size", 512, "-S", 1, "--volume-key-file",
                       key_file("other", OTHER), path, given=b"other")
        luks.open(path, "v").pwrite(pattern(8, 1), 0, sync=True)
        luks.run("close", "v")
        return path

    return make


def unharmed(luks, path):
    dev = luks.open(path, "v")
    assert dev.pread(8 * SECTOR, 0) == pattern(8, 1)
    luks.run("close", "v")


def test_unbound_slot(luks, volume, work):
    """By its number, by its passphrase alone, from a pipe or a key file: its key is not the volume's."""
    path, key = volume("luks2"), os.path.join(work, "passphrase")
    with open(key, "wb") as f:
        f.write(b"other")
    for given in (b"other\n", b"sesame\n", b""):
        luks.refuse("open", path, "v", "-S", "1", given=given,
                    match="key slot 1 is unbound: the key in it is not the volume's")
    luks.refuse("open", path, "v", "-S", "1", "-d", key, "-r", match="key slot 1 is unbound")
    luks.refuse("open", path, "v", given=b"other\n", match="no key is available", code=2)
    luks.refuse("open", path, "v", "-d", key, match="no key is available", code=2)
    unharmed(luks, path)


def test_unbound_slot_by_token(luks, volume, tool):
    """A token that gives the passphrase of an unbound slot."""
    path, keyctl = volume("luks2"), tool("keyctl")
    probe = subprocess.run([keyctl, "session", "-", keyctl, "add", "user", "dmfs:probe", "x", "@s"], capture_output=True,
                           text=True, timeout=300)
    if probe.returncode:
        pytest.skip(f"no session keyring here: {probe.stderr}")
    token = {"type": "luks2-keyring", "keyslots": ["1"], "key_description": "dmfs:other"}
    edit_luks2(path, lambda m: m.update(tokens={"0": token}))
    for options in (["--token-only"], ["--token-only", "--token-id", "0"], ["--token-only", "-S", "1"], ["-S", "1"]):
        command = f'{keyctl} add user dmfs:other other @s >&2 && exec {luks.program} -m {luks.fs.mountpoint} open "$@"'
        done = subprocess.run([keyctl, "session", "-", "sh", "-c", command, "sh", *options, path, "v"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert done.returncode in (1, 2), done
        assert ("is unbound" if "-S" in options else "no token gives a key") in done.stderr
        assert "v" not in os.listdir(luks.fs.mountpoint)
    unharmed(luks, path)


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_volume_key_file(luks, volume, key_file, kind):
    """The right key opens without a passphrase; another, or a part, does not."""
    path = volume(kind)
    dev = luks.open(path, "v", "--volume-key-file", key_file("k", KEY), given=b"")
    assert dev.pread(8 * SECTOR, 0) == pattern(8, 1)
    luks.run("close", "v")
    luks.open(path, "v", "--volume-key-file", "-", given=KEY)
    luks.run("close", "v")
    flipped = bytes([KEY[0] ^ 1]) + KEY[1:]
    for wrong in (OTHER, flipped, bytes(64)):
        luks.refuse("open", path, "v", "--volume-key-file", key_file("k", wrong), given=b"", code=2,
                    match="this key is not the volume's own: its digest in the header is another")
    for wrong in (b"", KEY[:32], KEY[:63], KEY + b"\n", KEY * 2):
        luks.refuse("open", path, "v", "--volume-key-file", key_file("k", wrong), given=b"",
                    match=f"k has {len(wrong)} bytes, but the volume key has 64|k: .*(empty|[Nn]othing|Cannot read)")
    luks.refuse("open", path, "v", "--volume-key-file", key_file("k", KEY), "-S", "0", match="which it is instead of")
    luks.refuse("open", path, "v", "--volume-key-file", key_file("k", KEY), "-d", "x", match="which it is instead of")
    luks.refuse("open", path, "v", "--volume-key-file", "/no/such", match="no/such")
    luks.refuse("format", path, "--volume-key-file", "/no/such", match="only for open")
    luks.refuse("open", path, "v", "--type", "tcrypt", "--volume-key-file", "/no/such", match="only for LUKS")
    unharmed(luks, path)


def test_digest_of_another_key(luks, volume):
    """A slot with a passphrase that is right, but a header whose digest is another key's."""
    path = volume("luks2")

    def exchange(metadata):
        digests = metadata["digests"]
        own, other = (next(k for k, d in digests.items() if bool(d["segments"]) == bound) for bound in (True, False))
        for member in ("salt", "digest", "iterations", "hash"):
            digests[own][member], digests[other][member] = digests[other][member], digests[own][member]

    edit_luks2(path, exchange)
    luks.refuse("open", path, "v", match="no key is available", code=2)
    luks.refuse("open", path, "v", "-S", "0", match="no key is available", code=2)
    edit_luks2(path, exchange)
    unharmed(luks, path)


def test_slot_numbers(luks, volume):
    for kind, last in (("luks1", 7), ("luks2", 31)):
        path = volume(kind)
        for slot in (last + 1, -3, 1 << 20):
            luks.refuse("open", path, "v", f"--key-slot={slot}",
                        match=f"no key slot {slot}: a {kind.upper()} header has 0 to {last}")
        luks.refuse("open", path, "v", "-S", last, match=f"key slot {last} is not active")
        luks.open(path, "v", "-S", "0")
        luks.run("close", "v")


def test_bitlocker_key_that_was_tampered_with(luks, work):
    """The sealed keys' nonces, tags and bytes count, for the clear key, a startup key and a passphrase."""
    for protection in (bitlocker.CLEAR, bitlocker.STARTUP, bitlocker.PASSPHRASE):
        volume = bitlocker.Volume(luks.fs, work, protections=[protection])
        given = ["--key-file", volume.bek] if protection == bitlocker.STARTUP else []
        # a passphrase takes long
        for at in volume.sealed[2::5] if protection == bitlocker.PASSPHRASE else volume.sealed:
            volume.damage(at)
            luks.refuse("open", volume.path, "v", *given, match="no key is available|does not open it", code=2)


def test_tcrypt_header_that_was_tampered_with(luks, work):
    """Each byte of the header counts."""
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", stream("data", 8192), pim=1)
    with open(path, "rb") as f:
        good = f.read()
    for at in (0, 63, 64, 72, 100, 110, 255, 256, 319, 320, 511):
        data = bytearray(good)
        data[at] ^= 1
        with open(path, "wb") as f:
            f.write(data)
        luks.refuse("open", path, "v", "--type", "tcrypt", "--veracrypt-pim", "1", "--hash", "sha512",
                    match="no header can be read", code=2)
