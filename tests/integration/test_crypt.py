# SPDX-License-Identifier: GPL-2.0-or-later
"""crypt through the mount: data, keys and where they are (not), messages, the state, the seed's examples."""

import errno
import os
import re
import sqlite3

import pytest

from crypt_combos import stream
import mounted
from mounted import SECTOR, Device, memory, pattern, quote

KEY = "c0ffee0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d"
RAW = bytes.fromhex(KEY)
ZEROS = "0" * len(KEY)
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def line(path, sectors, cipher="aes-xts-plain64", key=KEY, iv_offset=0, start=0, options=""):
    return f"0 {sectors} crypt {cipher} {key} {iv_offset} {quote(path)} {start} {options}".rstrip()


def content(path):
    with open(path, "rb") as f:
        return f.read()


@pytest.mark.parametrize("options", ["", "1 sector_size:4096", "2 sector_size:2048 iv_large_sectors"])
def test_any_offset_and_size(fs, backing, options):
    """Bytes at odd places, buffered and synchronous: what is read is what was written, and none of it is in the file."""
    size = 4096
    path = backing(size)
    dev = fs.mkdir("c", line(path, size, options=options))
    expect = bytearray(pattern(size, 1))
    dev.pwrite(expect, 0)
    for at, length in [(0, 1), (511, 2), (4095, 4098), (100000, 1), (size * SECTOR - 3, 3), (1 << 20, 700000)]:
        part = stream(f"{at}", length)
        dev.pwrite(part, at)
        expect[at:at + length] = part
    assert dev.pread(size * SECTOR, 0) == expect
    with dev.open(os.O_RDWR | os.O_SYNC) as fd:
        os.pwrite(fd, b"x" * 5000, 12345)
    expect[12345:17345] = b"x" * 5000
    dev.load(line(path, size, options=options))     # what was cached is gone
    assert dev.pread(size * SECTOR, 0) == expect
    below = content(path)
    assert all(below[i:i + 64] not in expect for i in range(0, len(below), SECTOR))


def test_layers(fs, backing):
    """crypt on crypt on linear, and two lines with different ciphers."""
    path = backing(2048)
    fs.mkdir("a", f"0 2048 linear {quote(path)} 0")
    fs.mkdir("b", line("a", 2000, cipher="serpent-cbc-essiv:sha256", start=48))
    top = fs.mkdir("c", line("b", 1000), line("b", 1000, start=1000, cipher="twofish-xts-plain64").replace("0", "1000", 1))
    data = pattern(2000, 3)
    top.pwrite(data, 0, sync=True)
    assert top.pread(len(data), 0) == data
    assert top.read("deps").split() == ["b"]
    for name in "cba":
        Device(fs, name).remove()


def test_discards_only_if_allowed(fs, backing):
    path = backing(2048, pattern(2048))
    dev = fs.mkdir("c", line(path, 2048))
    with pytest.raises(OSError) as e:
        dev.discard(0, 1 << 20)
    assert e.value.errno == errno.EOPNOTSUPP
    dev.load(line(path, 2048, options="1 allow_discards"))
    dev.discard(0, 1 << 20)
    assert content(path) == bytes(1 << 20)
    dev.zero(0, 4096)           # zeroes in the volume are no zeroes in the file
    assert dev.pread(4096, 0) == bytes(4096)
    assert content(path)[:4096] != bytes(4096)


def test_readonly(fs, backing):
    path = backing(64)
    os.chmod(path, 0o400)
    dev = fs.mkdir("c")
    dev.write("readonly", "1")
    dev.load(line(path, 64))
    assert len(dev.pread(64 * SECTOR, 0)) == 64 * SECTOR
    with pytest.raises(OSError) as e:
        dev.pwrite(b"x", 0)
    assert e.value.errno == errno.EROFS


BAD = [
    ("rot13-cbc-plain", KEY, "0 {} 0", "cipher 'rot13' is not one of aes,"),
    ("aes-pcbc-plain", KEY, "0 {} 0", "chaining mode 'pcbc' is not one of ecb, cbc, ctr, xts, lrw"),
    ("aes-lrw-benbi", KEY[:-2], "0 {} 0", "lrw key without its last 16 bytes has 15 bytes, aes takes 16 or 24 or 32"),
    ("aes-lrw-benbi", KEY[:24], "0 {} 0", "lrw takes the cipher's key and 16 bytes, not 12"),
    ("blowfish-lrw-benbi", KEY, "0 {} 0", "lrw takes ciphers with blocks of 16 bytes, blowfish has 8"),
    ("aes-cbc-plain63", KEY, "0 {} 0", "IV mode 'plain63'"),
    ("aes-cbc-essiv:sha0", KEY, "0 {} 0", "hash 'sha0' is not one of"),
    ("aes-cbc-random", KEY, "0 {} 0", "random needs integrity:BYTES:aead or integrity:16:none"),
    ("capi:gcm(aes)-random", KEY, "0 {} 0", "authenticated mode"),
    ("aes-cbc-plain", KEY[:-2], "0 {} 0", "the key has 31 bytes, aes takes 16 or 24 or 32"),
    ("aes-cbc-plain", KEY[:-1], "0 {} 0", "63 hexadecimal digits, an even number"),
    ("aes-cbc-plain", KEY[:-1] + "x", "0 {} 0", "not hexadecimal at digit 64 of 64"),
    ("aes-cbc-plain", ":32:user:dmfs:not-there", "0 {} 0", "not in the keyrings"),
    ("aes-cbc-plain", ":32:logon:dmfs:x", "0 {} 0", "only the kernel can read keys of type logon"),
    ("aes-cbc-plain", ":" + KEY, "0 {} 0", "has the form :SIZE:user:DESCRIPTION"),
    ("aes-cbc-plain", KEY, "0 {} 1", "too small for target"),
    ("aes-cbc-plain", KEY, "0 {} 18446744073709551615", "too small for target"),
    ("aes-cbc-plain", KEY, "0 {} 0 1 sector_size:4096", "length 1001 is not a multiple"),
    ("aes-cbc-plain", KEY, "0 {} 0 2 sector_size:512 sector_size:1024", "given as 512 and as 1024"),
    ("aes-cbc-lmk", KEY, "0 {} 0 1 sector_size:1024", "1001 is not a multiple|lmk takes sectors"),
    ("aes-cbc-random", KEY, "0 {} 0 1 integrity:16:none", "stores no tags; integrity:16:none takes a device that does"),
    ("capi:gcm(aes)-random", KEY, "0 {} 0 1 integrity:28:aead", "stores no tags; integrity:28:aead"),
    ("capi:gcm(aes)-random", KEY, "0 {} 0 1 integrity:17:aead", "leaves 5 bytes for the tag"),
    ("aes-gcm-random", KEY, "0 {} 0 1 integrity:28:aead", r"such as capi:gcm\(aes\)-random"),
    ("capi:aegis128-random", KEY, "0 {} 0 1 integrity:32:aead", "no library here has aegis128"),
]


@pytest.mark.parametrize("cipher,key,rest,why", BAD)
def test_bad_lines(fs, backing, cipher, key, rest, why):
    """Refused with the reason, the device as before, and nothing of the key in `error` or the log."""
    path = backing(1001)
    dev = fs.mkdir("c", "0 8 zero")
    text = dev.refuse(f"0 1001 crypt {cipher} {key} {rest.format(quote(path))}\n", match=why, line=1,
                      code=(errno.EINVAL, errno.ENOKEY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM))
    assert "c0ffee" not in text
    assert "c0ffee" not in fs.read("log")


@pytest.mark.parametrize("text", [
    "0 64 crypt KEY 0 DEV 0", "0 64 crypt KEY aes-xts-plain64 0 DEV 0", "0 64 crypt aes-xts-plain64 0 KEY DEV 0",
    "0 64 crypt aes-xts-plain64 KEY DEV 0", "0 64 crypt aes-xts-plain64 KEY KEY DEV 0", "0 64 crypt aes-xts-plain64 KEY 0 KEY 0",
    "0 64 crypt aes-xts-plain64 KEY 0 DEV KEY", "0 64 crypt aes-xts-plain64 KEY 0 DEV 0 1 sector_size:KEY",
    "0 64 crypt aes-xts-plain64 KEY 0 DEV 0 1 KEY", "0 64 crypt aes-xts-plain64 :32:user:KEY 0 DEV 0",
    "0 64 KEY 0 DEV 0", "KEY 64 crypt", "0 KEY crypt aes-xts-plain64"])
def test_a_key_in_the_wrong_place_is_not_shown(fs, backing, text):
    dev = fs.mkdir("c", "0 8 zero")
    text = text.replace("DEV", quote(backing(64)))
    for key in (KEY, KEY.upper()):
        said = dev.refuse(text.replace("KEY", key) + "\n", line=1, code=(errno.EINVAL, errno.ENOENT, errno.ENOKEY))
        assert "c0ffee" not in said.lower(), said
        with pytest.raises(OSError):
            fs.write("concise", "d,,,rw," + text.replace("KEY", key) + "\n")
    assert "c0ffee" not in fs.read("log").lower()


def test_keys_are_never_shown(fs, backing):
    path = backing(1000)
    dev = fs.mkdir("c", line(path, 1000))
    dev.load(line(path, 500), to="inactive")
    assert dev.table() == f"0 1000 crypt aes-xts-plain64 {ZEROS} 0 {quote(path)} 0\n"
    assert dev.inactive() == f"0 500 crypt aes-xts-plain64 {ZEROS} 0 {quote(path)} 0\n"
    assert dev.status() == "0 1000 crypt\n"
    dev.suspend()
    with pytest.raises(OSError):
        dev.message(f"key set {KEY}00")
    with pytest.raises(OSError):
        dev.message(f"key sat {KEY}")
    with pytest.raises(OSError):
        dev.message(KEY)
    dev.resume()
    for name in ("concise", "log", "c/error", "c/info", "c/message"):
        assert "c0ffee" not in fs.read(name).lower()


@pytest.mark.skipif("address" in mounted.sanitized() or "thread" in mounted.sanitized(),
                    reason="sanitizers make mlock(2) a function that does nothing")
def test_no_dump_and_locked(fs, backing):
    """After the first key the daemon is not dumpable (so /proc's files of it are root's) and has locked memory."""

    def locked():
        with open(f"/proc/{fs.pid}/status", encoding="ascii") as f:
            return int(re.search(r"VmLck:\s+(\d+) kB", f.read()).group(1))

    dev = fs.mkdir("c")
    before = locked()
    dev.load(line(backing(64), 64))
    assert locked() > before
    assert os.stat(f"/proc/{fs.pid}/environ").st_uid == 0


@pytest.mark.root
@pytest.mark.skipif("address" in mounted.sanitized() or "thread" in mounted.sanitized(),
                    reason="sanitizers map terabytes, keep freed memory, and let none be locked")
def test_where_the_key_is_in_memory(fs, backing):
    """Only in locked memory while it is in use, and its text nowhere; nowhere at all after a wipe or removal."""

    def where(needle):
        return [name for name, part in memory(fs.pid) if needle in part]

    path = backing(64)
    dev = fs.mkdir("c")
    dev.load(line(path, 64))
    dev.pwrite(b"x" * 5000, 77)
    dev.pread(9000, 0)
    found = where(RAW[:16])
    assert found and not any(found), found
    assert not where(KEY[:40].encode())
    dev.suspend()
    dev.message("key wipe")
    assert not where(RAW[:16])
    dev.message(f"key set {KEY}")
    assert where(RAW[:16])
    dev.resume()
    dev.remove()
    assert not where(RAW[:16])
    assert not where(KEY[:40].encode())
    fs.write("concise", f"d,,,rw,{line(path, 64)}\n")
    assert not where(KEY[:40].encode())
    dev = Device(fs, "d")
    with pytest.raises(OSError):        # refused for what comes behind the key
        dev.load(line("/nonexistent", 64))
    with pytest.raises(OSError):
        dev.load(line(path, 64) + f"\n64 8 crypt aes {KEY}")
    dev.remove()
    assert not where(RAW[:16])
    assert not where(KEY[:40].encode())


def test_messages(fs, backing):
    path = backing(64)
    dev = fs.mkdir("c", line(path, 64))
    data = pattern(64, 5)
    dev.pwrite(data, 0, sync=True)
    dev.refuse("key wipe", to="message", match="not suspended during key manipulation")
    dev.suspend()
    dev.message("key wipe")
    dev.refuse("0", to="suspend", code=errno.EAGAIN, match="crypt key is not set")
    assert dev.suspended()
    dev.refuse("key set 00", to="message", match="the key has 1 bytes, it must have 32")
    dev.refuse("key set :32:user:dmfs:nothing-there", to="message", code=(errno.ENOKEY, errno.EINVAL, errno.ENOSYS),
               match="keyring")
    dev.message(f"key set {'11' * 32}")
    dev.resume()
    assert dev.pread(SECTOR, 0) != data[:SECTOR]
    dev.suspend()
    dev.message(f"KEY SET {KEY.upper()}")
    dev.resume()
    assert dev.pread(len(data), 0) == data


def test_keyring(keyring, fs, backing):
    path = backing(64)
    keyring("dmfs-test:key", RAW)
    dev = fs.mkdir("c")
    dev.refuse(line(path, 64, key=":16:user:dmfs-test:key") + "\n", match="has 32 bytes, not 16")
    dev.load(line(path, 64, key=":32:user:dmfs-test:key"))
    assert dev.table() == f"0 64 crypt aes-xts-plain64 :32:user:dmfs-test:key 0 {quote(path)} 0\n"
    data = pattern(64, 6)
    dev.pwrite(data, 0, sync=True)
    dev.load(line(path, 64))
    assert dev.pread(len(data), 0) == data
    dev.suspend()
    dev.message("key set :32:user:dmfs-test:key")
    dev.resume()
    assert " :32:user:dmfs-test:key " in dev.table()


def test_the_state_holds_no_key(dmfs, backing, work):
    """The device comes back without its table and says why; loaded again it is the same volume."""
    state, path = os.path.join(work, "state"), backing(64)
    fs = dmfs(state)
    dev = fs.mkdir("c", line(path, 64))
    dev.pwrite(b"secret" * 100, 0, sync=True)
    fs.unmount()
    for name in os.listdir(work):
        if name.startswith("state"):
            assert b"c0ffee" not in content(os.path.join(work, name)).lower()
            assert RAW not in content(os.path.join(work, name))
    assert sqlite3.connect(state).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    fs = dmfs(state)
    dev = Device(fs, "c")
    assert dev.table() == "" and dev.size() == 0
    assert "key" in dev.error()
    dev.load(line(path, 64))
    assert dev.pread(600, 0) == b"secret" * 100


def test_seed_examples(fs, backing, sh, tool, keyring):
    examples = os.path.join(TOP, "contrib/examples")
    env = {"DMFS_MOUNT": fs.mountpoint, "PATH": os.path.dirname(tool("dmfs-luks")) + ":" + os.environ["PATH"]}
    path = backing(2048)
    sh(f'{examples}/crypt-aes-cbc "$1"', path, **env)
    dev = Device(fs, "crypt1")
    assert " crypt aes-cbc-essiv:sha256 00000000000000000000000000000000 0 " in dev.table()
    dev.pwrite(b"hello", 100, sync=True)
    dev.remove()
    keyring("my_prefix:my_key", RAW)
    sh(f'{examples}/crypt-keyring "$1"', path, **env)
    assert Device(fs, "crypt2").pread(5, 100) != b"hello"
    Device(fs, "crypt2").remove()
    # the way the examples give the key of the first: the same volume by hand
    fs.mkdir("c", line(path, 2048, cipher="aes-cbc-essiv:sha256", key="babe" * 8))
    assert Device(fs, "c").pread(5, 100) == b"hello"
