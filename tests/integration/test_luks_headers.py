# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: a header that it does not open is refused with the reason, by name."""

import os
import struct
import subprocess

import pytest

import bitlocker
from luks import Luks, edit_luks2
from mounted import pattern

MIB = 1 << 20


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


@pytest.fixture
def volume(luks, work):
    def make(*options, name="v.img", size="20M"):
        path = os.path.join(work, name)
        luks.format(path, *options, size=size)
        return path

    return make


def overwrite(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


@pytest.mark.parametrize("options", [[], ["--type", "luks"], ["--type", "luks2"]])
def test_damaged_luks2(luks, volume, options):
    """libcryptsetup's own words, with and without --type."""
    path = volume()
    overwrite(path, 5000, b"X")
    with open(path, "rb") as f:
        before = f.read()
    for more in ([], ["-r"]):
        done = luks.run("open", path, "v", *options, *more, given=b"sesame\n")     # its copy will do
        assert b"checksum error (offset 0); cryptsetup repair may mend it" in done.stderr
        luks.run("close", "v")
    with open(path, "rb") as f:
        assert f.read() == before
    overwrite(path, 16384 + 5000, b"X")
    luks.refuse("open", path, "v", *options,
                match=r"is not a valid LUKS device: LUKS2 header checksum error \(offset 0\); "
                r"LUKS2 header checksum error \(offset 16384\)")


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_truncated(luks, volume, kind):
    path = volume("--type", kind)
    os.truncate(path, MIB)
    for options in ([], ["--type", "luks"], ["--type", kind]):
        luks.refuse("open", path, "v", *options,
                    match=r"is too small\. .*(Need at least 16777216|at least 2066432) bytes")
    os.truncate(path, 500)
    luks.refuse("open", path, "v", "--type", kind, match="v.img is too small for any header: it has 0 sectors")
    os.truncate(path, 0)
    luks.refuse("open", path, "v", "--type", kind, match="not a valid|too small")
    luks.refuse("open", path, "v", match="has no LUKS or BitLocker header|too small")


def test_ambiguous_signatures(luks, volume, work, sh, tool):
    """A file system over the first of two headers."""
    path = volume()
    with open(path, "rb") as f:
        header = f.read(64 << 10)
    sh(f'{tool("mke2fs")} -q -F "$1"', path)
    overwrite(path, 16384, header[16384:32768])
    for options in ([], ["--type", "luks"], ["--type", "luks2"]):
        luks.refuse("open", path, "v", *options,
                    match='ambiguous signatures, cannot auto-recover LUKS2. Please run "cryptsetup repair"')


def test_types_that_differ(luks, volume, work, backing):
    two, one, blank = volume(), volume("--type", "luks1", name="one"), backing(4096)
    bde = bitlocker.Volume(luks.fs, work).path
    luks.refuse("open", two, "v", "--type", "luks1", match="is not a valid LUKS1 device: its header is LUKS2's")
    luks.refuse("open", one, "v", "--type", "luks2", match="is not a valid LUKS2 device: its header is LUKS1's")
    for path in (two, one, blank):
        luks.refuse("open", path, "v", "--type", "bitlk", match="is not a valid BITLK device")
    for path in (bde, blank):
        for kind in ("luks", "luks1", "luks2"):
            luks.refuse("open", path, "v", "--type", kind, match="is not a valid LUKS")
    luks.refuse("open", blank, "v", match="has no LUKS or BitLocker header .* use --type tcrypt")
    luks.refuse("open", blank, "v", "--header", bde,
                match="has a BitLocker header, which is always with its data: no --header")
    overwrite(two, 6, struct.pack(">H", 3))
    overwrite(two, 16384, bytes(8))
    luks.refuse("open", two, "v", match="Unsupported LUKS version 3")
    overwrite(one, 0, b"LUKS\xde\xad")
    luks.refuse("open", one, "v", match="a reencryption of LUKS1 is under way: finish it with cryptsetup reencrypt")


@pytest.mark.parametrize("cipher,shown", [
    ("aes-xts-plain64 00 0 /etc/passwd 0",
     "aes-xts-plain64 00 0 /etc/passwd 0, which has a byte 0x20 that no cipher has"),
    ("aes-xts-plain64\n0 8 zero", r"aes-xts-plain64\\n0 8 zero, which has a byte 0x5c"),
    ("aes -xts-plain64", "aes -xts-plain64, which has a byte 0x20"),
    ("aes-xts-plain64\t", "which has a byte 0x5c"),
    ("aes-xts-plain64\x1b[2J", "which has a byte 0x5c"),
    ("aes-xts-pl#in64", "which has a byte 0x23"),
    ('aes-xts-"plain64', "which has a byte 0x5c"),
])
def test_luks2_cipher_that_is_none(luks, volume, cipher, shown):
    path = volume()
    edit_luks2(path, lambda m: m["segments"]["0"].update(encryption=cipher))
    luks.refuse("open", path, "v", match=shown)


@pytest.mark.parametrize("at,text,shown", [
    (8, b"aes 0 0", r"the cipher in its header is aes 0 0-xts-plain64, which has a byte 0x20 that no cipher has"),
    (40, b"xts-plain64\n0 8 zero", r"aes-xts-plain64\\0120 8 zero, which has a byte 0x0a"),
    (40, b"xts-\x1b]0;x\x07", r"aes-xts-\\033\]0;x\\007, which has a byte 0x1b"),
    (8, b"a\\s", r"a\\s-xts-plain64, which has a byte 0x5c"),
])
def test_luks1_cipher_that_is_none(luks, volume, at, text, shown):
    path = volume("--type", "luks1")
    overwrite(path, at, text.ljust(32, b"\0"))
    luks.refuse("open", path, "v", match=shown)


def test_uuid_that_is_none(luks, volume):
    """It goes into the device's uuid, of which nothing but letters and digits is taken."""
    path = volume("--type", "luks1")
    overwrite(path, 168, b"a b\nc-d/..\x1b[2J\xffe".ljust(40, b"\0"))
    done = luks.open(path, "v", check=False)
    if not done.returncode:
        assert luks.fs["v"].read("uuid").strip() == "CRYPT-LUKS1-abcd2Je-v"
        luks.run("close", "v")


@pytest.mark.parametrize("change,match", [
    (lambda m: m["config"].update(requirements={"mandatory": ["opal"]}), r"encrypted by the drive itself \(Opal\)"),
    (lambda m: m["segments"]["0"].update(type="hw-opal-crypt"), r"\(Opal\)|not a valid"),
    (lambda m: m["segments"]["0"].update(type="hw-opal"), r"\(Opal\)|not a valid"),
    (lambda m: m["config"].update(requirements={"mandatory": ["inline-hw-tags"]}), "integrity tags inline"),
    (lambda m: m["config"].update(requirements={"mandatory": ["quantum", "x\ny"]}), r'unknown here: \["quantum","x\\n'),
    (lambda m: m["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
     "a reencryption is under way|not a valid"),
    (lambda m: m["segments"]["0"].update(type="linear"), 'segment of type "linear", not "crypt"|not a valid'),
    (lambda m: m["segments"]["0"].update(integrity={"type": "hmac(sha256)", "journal_encryption": "none",
                                                    "journal_integrity": "none"}),
     "no integrity superblock at sector 32768"),
    (lambda m: m["segments"]["0"].update(integrity={"type": "hmac(sha3-256)", "journal_encryption": "none",
                                                    "journal_integrity": "none"}),
     r"authenticated by hmac\(sha3-256\), which is not known here"),
    (lambda m: m["segments"].update({"1": dict(m["segments"]["0"], offset=str(18 * MIB))}), "2 segments|not a valid"),
])
def test_what_luks2_asks_for_in_vain(luks, volume, change, match):
    path = volume()
    edit_luks2(path, change)
    luks.refuse("open", path, "v", match=match)


def test_tokens_that_cannot_be_had(luks, volume):
    """Named: the plugin, the key, the number.  Without --token-only, the passphrase opens it all the same."""
    path = volume()
    tokens = {"0": {"type": "no-such-kind", "keyslots": ["0"]},
              "3": {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "dmfs:no\x1bne"}}
    edit_luks2(path, lambda m: m.update(tokens=tokens))
    plugin = (r"token 0 \(no-such-kind\) needs libcryptsetup's plugin "
              r"\S*libcryptsetup-token-no-such-kind.so, which is not there")
    key = r"token 3 \(luks2-keyring\) needs the key 'dmfs:no\\033ne', which is in no keyring of this process"
    luks.refuse("open", path, "v", "--token-only", match=f"no token gives a key: {plugin}; {key}$")
    luks.refuse("open", path, "v", "--token-only", "--token-id", "0", match=f"{plugin}$")
    luks.refuse("open", path, "v", "--token-only", "--token-id", "3", match=f"{key}$")
    luks.refuse("open", path, "v", "--token-only", "--token-id", "5", match="it has no token 5$")
    done = luks.run("open", path, "v", "--token-id", "0", given=b"sesame\n")
    assert b"needs libcryptsetup's plugin" in done.stderr
    luks.run("close", "v")
    assert b"token" not in luks.run("open", path, "v", given=b"sesame\n").stderr
    luks.run("close", "v")
    edit_luks2(path, lambda m: m.update(tokens={}))
    luks.refuse("open", path, "v", "--token-only", match="no token gives a key: it has no tokens$")
    luks.refuse("open", volume("--type", "luks1", name="one"), "v", "--token-only",
                match="it is LUKS1, which has no tokens")
    luks.refuse("open", os.path.join(os.path.dirname(path), "one"), "v", "--token-id", "0",
                match="it is LUKS1, which has no tokens")


def test_hash_as_people_spell_it(luks, volume, tool):
    """What is in the header is what other programs know."""
    for spelled, stored in (("SHA-512", "sha512"), ("Sha256", "sha256"), ("SHA3-256", "sha3-256")):
        for kind in ("luks1", "luks2"):
            path = volume("--hash", spelled, "--type", kind, "--batch")
            dump = subprocess.run([tool("cryptsetup"), "luksDump", "--disable-locks", path], capture_output=True, text=True,
                                  check=True, timeout=300).stdout
            assert stored in dump.split() and spelled not in dump
    luks.refuse("format", path, "--batch", "--hash", "sha-5", match="hash 'sha-5' is not one of sha1, sha224")


def test_key_file_windows(luks, volume, work):
    """The newline that an editor put there; more than there is."""
    path, key = volume(), os.path.join(work, "key")
    with open(key, "wb") as f:
        f.write(b"sesame\n")
    text = luks.refuse("open", path, "v", "-d", key, match="no key is available", code=2)
    assert "the newline at its end counts: without it, --keyfile-size 6" in text
    luks.open(path, "v", "-d", key, "--keyfile-size", "6", given=b"")
    luks.run("close", "v")
    text = luks.refuse("open", path, "v", "-d", key, "-l", "5", match="no key is available", code=2)
    assert "newline" not in text
    luks.refuse("open", path, "v", "-d", key, "-l", "8", match="key: Cannot read requested amount of data")
    luks.refuse("open", path, "v", "-d", key, "--keyfile-offset", "100",
                match="key: Cannot seek|Cannot read|Nothing to read|empty|no key")
    luks.refuse("open", path, "v", "-d", key, "--keyfile-offset", "-1", match="must not be negative")
    luks.refuse("open", path, "v", "-d", work, match=".")
    with open(key, "wb") as f:
        f.truncate(9 << 20)
    luks.refuse("open", path, "v", "-d", key, match="Maximum keyfile size exceeded")


def test_messages_are_one_line_of_text(luks, work):
    """Whatever a file is called."""
    path = os.path.join(work, "a\nb\x1b[2J\u202e\u00e9\udcff")
    with open(os.fsencode(path), "wb") as f:
        f.write(pattern(16))
    text = luks.run("open", path, "v", given=b"", check=False).stderr
    assert b"a\\012b\\033[2J\\u202e\xc3\xa9\\377 has no LUKS" in text and text.count(b"\n") == 1
