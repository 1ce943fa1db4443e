# SPDX-License-Identifier: GPL-2.0-or-later
"""crypt's authenticated modes through the mount, above integrity: tampering, linear in between, LUKS2 volumes of them."""

import concurrent.futures
import contextlib
import errno
import json
import mmap
import os
import pty
import random
import re
import struct
import subprocess
import threading
import time

import pytest

from luks import QUICK, Luks, edit_luks2
from mounted import SECTOR, interrupted, pattern, quote, until

KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
LENGTH = 1024  # sectors


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


def read_directly(dev, length, offset):
    """As the device answers, without the page cache: bytes, or the errno."""
    page = mmap.mmap(-1, length)
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        try:
            assert os.preadv(fd, [page], offset) == length
        except OSError as e:
            return e.errno
    return page[:]


class Stack:
    """c on dif, with the data in one file, from its first byte on, and the tags in another."""

    def __init__(self, fs, backing, spec, key, meta, block=512, between=False):
        self.fs, self.spec, self.key, self.meta, self.block, self.between = fs, spec, key, meta, block, between
        self.data, self.tags = backing(LENGTH, name="data"), backing(4096, name="tags")

    def make(self):
        beneath = "dif"
        self.fs.mkdir("dif", f"0 {LENGTH} integrity {quote(self.data)} 0 {self.meta} D 2 meta_device:{quote(self.tags)} "
                             f"block_size:{self.block}")
        if self.between:
            half, beneath = LENGTH // 2, "between"
            self.fs.mkdir("between", f"0 {half} linear dif 0", f"{half} {half} linear dif {half}")
        return self.fs.mkdir("c", f"0 {LENGTH} crypt {self.spec} {self.key} 0 {beneath} 0 2 integrity:{self.meta}:aead "
                                  f"sector_size:{self.block}")

    def remove(self):
        """Where the tags begin in their file."""
        journal = int(re.search(r"journal_sectors:(\d+)", self.fs["dif"].table())[1])
        for name in ("c", *(["between"] if self.between else []), "dif"):
            self.fs[name].remove()
        return (8 + journal) * SECTOR


def flip(path, at, bit=0):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("spec,key,meta,block", [
    ("capi:gcm(aes)-random", KEY, 28, 512),
    ("capi:rfc7539(chacha20,poly1305)-random", KEY, 28, 4096),
    ("capi:authenc(hmac(sha256),xts(aes))-random", KEY * 2, 48, 512),
    ("capi:authenc(hmac(sha256),cbc(aes))-plain64", KEY * 2, 32, 512),
])
def test_tampering(fs, backing, spec, key, meta, block):
    """A bit of the data, the tag or the IV that was changed on the disk: that sector fails, the others read."""
    stack, data = Stack(fs, backing, spec, key, meta, block), pattern(LENGTH)
    stack.make().pwrite(data, 0, sync=True)
    tags = stack.remove()
    with open(stack.data, "rb") as f:
        assert data[:64] not in f.read()
    n = 5
    places = [(stack.data, n * block + at) for at in (0, block // 2, block - 1)]
    places += [(stack.tags, tags + n * meta + at) for at in (0, meta // 2, meta - 1)]
    for bit, (path, at) in enumerate(places):
        flip(path, at, bit)
        dev = stack.make()
        assert read_directly(dev, block, n * block) == errno.EILSEQ, f"{path} {at}"
        assert read_directly(dev, block, (n - 1) * block) == data[(n - 1) * block:n * block]
        assert read_directly(dev, block, (n + 1) * block) == data[(n + 1) * block:(n + 2) * block]
        assert read_directly(dev, 8 * block, 0) == errno.EILSEQ
        stack.remove()
        flip(path, at, bit)
    dev = stack.make()
    assert dev.pread(len(data), 0) == data
    assert f"crypt: c: INTEGRITY AEAD ERROR, sector {n * block // SECTOR}\n" in fs.read("log")
    stack.remove()


def test_an_event_says_which_sector(fs, backing):
    stack = Stack(fs, backing, "capi:gcm(aes)-random", KEY, 28)
    dev = stack.make()
    events = os.open(fs.path("events"), os.O_RDONLY)
    time.sleep(0)  # the log tells of a few a second, which others may have used up: so it is tried again
    for _ in range(50):
        assert read_directly(dev, SECTOR, 7 * SECTOR) == errno.EILSEQ  # it was never written
        if b"INTEGRITY" in os.read(events, 1 << 16):
            break
    else:
        pytest.fail("no event")
    os.close(events)
    stack.remove()


def test_linear_between(fs, backing):
    """Tags go through a table of two lines, and a request over both lines gets its own."""
    stack, data = Stack(fs, backing, "capi:gcm(aes)-random", KEY, 28, 4096, between=True), pattern(LENGTH, 3)
    dev = stack.make()
    dev.pwrite(data, 0, sync=True)
    assert dev.table().split()[3:] == ["capi:gcm(aes)-random", "0" * 64, "0", "between", "0", "2", "integrity:28:aead",
                                       "sector_size:4096"]
    stack.remove()
    dev = stack.make()
    assert read_directly(dev, len(data), 0) == data
    stack.remove()


def test_a_part_of_a_sector(fs, backing):
    """Written over what is there; over what never was, it fails, and leaves all as it was."""
    stack, data = Stack(fs, backing, "capi:gcm(aes)-random", KEY, 28, 4096), pattern(16)
    dev = stack.make()
    dev.pwrite(data, 0, sync=True)
    dev.pwrite(b"x" * 100, 1000, sync=True)
    assert dev.pread(8192, 0) == data[:1000] + b"x" * 100 + data[1100:]
    with pytest.raises(OSError):
        dev.pwrite(b"x" * 100, 65536 + 1000, sync=True)
    assert read_directly(dev, 4096, 65536) == errno.EILSEQ
    stack.remove()


def test_refused_by_what_is_beneath(fs, backing):
    stack = Stack(fs, backing, "capi:gcm(aes)-random", KEY, 28)
    stack.make()
    line = "0 8 crypt {} " + KEY + " 0 {} 0 1 integrity:{}\n"
    x = fs.mkdir("x")
    x.refuse(line.format("capi:gcm(aes)-random", quote(backing(64, name="plain")), "28:aead"), match="stores no tags")
    x.refuse(line.format("capi:gcm(aes)-plain64", "dif", "16:aead"), match="stores tags of 28 bytes")
    x.refuse(line.format("capi:gcm(aes)-random", "dif", "28:aead").replace(" 1 i", " 2 sector_size:4096 i"),
             match="a tag for each 512 bytes")
    x.refuse(line.format("aes-cbc-random", "c", "16:none"), match="stores no tags")  # c keeps its tags for itself
    x.remove()
    stack.remove()


# --- LUKS2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options,cipher,meta", [
    (["--integrity", "aead"], "capi:gcm(aes)-random", "28:aead"),
    (["-I", "hmac-sha256", "--sector-size", "512"], "capi:authenc(hmac(sha256),xts(aes))-plain64", "32:aead"),
    (["-I", "hmac-sha256", "-c", "aes-xts-random", "-s", "256"], "capi:authenc(hmac(sha256),xts(aes))-random", "48:aead"),
    (["-I", "poly1305"], "capi:rfc7539(chacha20,poly1305)-random", "28:aead"),
    (["-I", "none"], "aes-xts-random", "16:none"),
])
def test_luks(luks, work, tool, options, cipher, meta):
    """Formatted, filled to its end, opened as two, shown, written, closed as one, and opened again."""
    path = os.path.join(work, "a volume#1.img")
    luks.format(path, *options, size="24M")
    assert not wipe_record(path, tool)
    dev = luks.open(path, "v")
    beneath = luks.fs["v_dif"]
    size = dev.size()
    assert dev.table().split()[3] == cipher and f" integrity:{meta}" in dev.table() and " v_dif 0 " in dev.table()
    assert re.match(rf"0 {size // SECTOR} integrity .+ 32768 {meta.split(':')[0]} J ", beneath.table())
    assert " fix_padding" in beneath.table()
    assert dev.read("uuid").rsplit("-", 1)[0] == beneath.read("uuid").rsplit("-", 1)[0]
    assert not any(dev.pread(size, 0))
    data = pattern(2048, 7)
    dev.pwrite(data, 512 * SECTOR, sync=True)
    status = luks.run("status", "v").stdout.decode()
    for part in ("type:        LUKS2", f"cipher:      {cipher}", "device:      v_dif", "on v_dif (journal)",
                 f"data device: {path} at 32768 sectors"):
        assert part in status, status
    luks.run("close", "v")
    assert not {"v", "v_dif"} & set(os.listdir(luks.fs.mountpoint))
    dev = luks.open(path, "v", "--integrity-no-journal")
    assert " D " in luks.fs["v_dif"].table()
    assert dev.pread(len(data), 512 * SECTOR) == data
    luks.run("close", "v")
    dev = luks.open(path, "v", "--readonly")
    assert dev.pread(len(data), 512 * SECTOR) == data
    with pytest.raises(OSError):
        dev.pwrite(b"x", 0)
    luks.run("close", "v")


def test_luks_without_journal_or_zeroes(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path, "-I", "aead", "--integrity-no-wipe", "--integrity-no-journal", size="24M")
    dev = luks.open(path, "v")
    assert " D " in luks.fs["v_dif"].table() and "(no journal)" in luks.run("status", "v").stdout.decode()
    assert read_directly(dev, 4096, 0) == errno.EILSEQ
    dev.pwrite(pattern(8), 0, sync=True)
    assert read_directly(dev, 4096, 0) == pattern(8)
    luks.run("close", "v")


def test_luks_that_is_in_use_stays(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path, "-I", "aead", "--integrity-no-wipe", size="24M")
    dev = luks.open(path, "v")
    with dev.open():
        luks.refuse("close", "v", match="v is in use", code=5)
    luks.refuse("open", path, "w", match="in use", code=5)
    luks.refuse("format", path, "-I", "aead", "--batch", match="in use", code=5)
    luks.run("close", "v")
    luks.fs.mkdir("v_dif", "0 8 zero")
    luks.refuse("open", path, "v", match="there is a device v_dif already", code=5)
    luks.fs["v_dif"].remove()


def test_luks_formats_that_are_refused(luks, work):
    """And no file is left, or changed."""
    path, old = os.path.join(work, "new.img"), os.path.join(work, "old.img")
    with open(old, "wb") as f:
        f.write(b"\0" * (24 << 20))
    for options, match in (
            (["-I", "md5"], "integrity 'md5' is not one of aead, poly1305, hmac-sha1"),
            (["-I", "aead", "--type", "luks1"], "only for luks2"),
            (["--integrity-no-wipe"], "only with --integrity"),
            (["--integrity-no-journal"], "for format with --integrity"),
            (["-I", "aead", "-c", "aes-xts-plain64"], r"'xts\(aes\)' is not an authenticated mode"),
            (["-I", "aead", "-c", "aes-gcm-random", "-s", "512"], "key has 64 bytes|bytes, aes takes"),
            (["-I", "poly1305", "-c", "aes-gcm-random"], "not an authenticated mode"),
            (["-I", "hmac-sha256", "-c", "rot13-cbc-plain"], "rot13"),
            (["-I", "hmac-sha256", "-c", "aes"], "cipher 'aes' is not of the form"),
            (["-I", "hmac-sha256", "-c", 'aes-xts-plain64","x":"'], "is not of the form"),
            (["-I", "none", "-c", "aes-xts-plain64"], "stores nothing beside"),
            (["-I", "aead", "--sector-size", "777"], "."),
    ):
        luks.refuse("format", path, "--size", "24M", *QUICK, *options, match=match)
        assert not os.path.exists(path), options
    luks.refuse("format", old, *QUICK, "-I", "hmac-sha256", "-c", "rot13-cbc-plain", match="rot13")
    with open(old, "rb") as f:
        assert not any(f.read())
    luks.refuse("format", path, "--size", "16400K", *QUICK, "-I", "aead", match="too small|no room|Not enough")
    assert not os.path.exists(path)


def test_luks_headers_and_superblocks_that_do_not_fit(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path, "-I", "aead", "--integrity-no-wipe", size="24M")
    luks.refuse("open", path, "v", "--allow-discards", match="a discard would leave sectors")
    with open(path, "r+b") as f:
        f.seek(16 << 20)
        sound = f.read(512)

        def broken(at, new, match):
            f.seek((16 << 20) + at)
            f.write(new)
            f.flush()
            luks.refuse("open", path, "v", match=match)
            f.seek(16 << 20)
            f.write(sound)
            f.flush()

        broken(0, b"x", "no integrity superblock at sector 32768")
        broken(10, struct.pack("<H", 16), "tags of 16 bytes, its header of 28")
        broken(28, b"\0" if sound[28] else b"\3", r"blocks of 2\^. sectors")
        broken(28, b"\xff", r"blocks of 2\^255 sectors")
        broken(16, struct.pack("<Q", 0), "has 0 sectors for data")
        broken(16, struct.pack("<Q", 1 << 60), "too few for")
    plain = os.path.join(work, "plain.img")
    luks.format(plain)
    luks.refuse("open", plain, "v", "--integrity-no-journal", match="has no tags, and so no journal")
    luks.open(path, "v")
    luks.run("close", "v")
    edit_luks2(path, lambda m: m["segments"]["0"].update(size=str(1 << 20)))
    luks.refuse("open", path, "v", match="a size of 1048576 for data with integrity aead|not a valid")


def test_luks_interrupted_filling(luks, work, tool):
    """The volume is there, and what was filled reads; a second signal's default is not asked for."""
    path, key = os.path.join(work, "v.img"), os.path.join(work, "key")
    with open(key, "wb") as f:
        f.write(b"sesame")
    status, text = interrupted([tool("dmfs-luks"), "format", path, "--size", "4G", *QUICK, "-I", "aead", "-d", key], path,
                               48 << 20)
    assert status == 1 and re.search(r"interrupted after \d+ of \d+ MiB: the volume opens.*open goes on with it", text)
    dev = luks.open(path, "v", "--integrity-no-wipe")
    assert read_directly(dev, 4096, 0) == bytes(4096)
    assert read_directly(dev, 4096, dev.size() - 4096) == errno.EILSEQ and dev.status().split()[3:] == []
    luks.run("close", "v")
    dev = luks.open(path, "v", "--readonly")
    assert dev.status().split()[3:] == []
    luks.run("close", "v")
    record = wipe_record(path, tool)
    assert 0 < int(record["sector"]) < dev_sectors(luks, path)
    at, end = map(int, re.match(r"0 \d+ crypt wiping (\d+)/(\d+)\n", luks.open(path, "v").status()).groups())
    assert int(record["sector"]) <= at <= end
    luks.run("close", "v")


def dev_sectors(luks, path):
    dev = luks.open(path, "w", "--readonly")
    sectors = dev.size() // SECTOR
    luks.run("close", "w")
    return sectors


# --- wiping behind the user ---------------------------------------------------------------------------


def metadata(path, tool):
    return json.loads(subprocess.run([tool("cryptsetup"), "luksDump", "--dump-json-metadata", path], check=True,
                                     capture_output=True).stdout)


def wipe_record(path, tool):
    return next((t for t in metadata(path, tool)["tokens"].values() if t["type"] == "dmfs-wipe"), None)


def write_at_random(dev, seed, blocks, stop):
    """4 KiB at a time, each block by one writer; what each block holds at the end."""
    mine, rng, held = [b for b in range(blocks) if b % 2 == seed], random.Random(seed), {}
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        page = mmap.mmap(-1, 4096)
        while len(held) < 64 or not stop.is_set():
            block = rng.choice(mine)
            page[:] = struct.pack("<QQ", block, len(held)) * 256
            os.pwrite(fd, page, block * 4096)
            held[block] = page[:]
    return held


def on_a_terminal(luks, *args):
    """What it shows there."""
    ours, theirs = pty.openpty()
    shown = b""
    with open(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        with subprocess.Popen([luks.program, "-m", luks.fs.mountpoint, *args], stderr=theirs) as process:
            os.close(theirs)
            while part := screen.read(4096):    # EIO when nobody has it any more
                shown += part
    assert process.returncode == 0
    return shown


def test_luks_wiped_later(luks, work, tool):
    """Usable at once; what is written meanwhile stays, the rest becomes zeroes; then nothing of it is in the header."""
    path = os.path.join(work, "v.img")
    luks.format(path, "-I", "aead", "--integrity-wipe-later", size="80M")
    assert wipe_record(path, tool)["sector"] == "0"
    dev = luks.open(path, "v")
    blocks, stop = dev.size() // 4096, threading.Event()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_at_random, dev, seed, blocks, stop) for seed in range(2)]
        try:
            shown = luks.run("status", "v").stdout.decode()
            assert re.search(r"\n  wiping:      (done|\d+ %, \d+ of \d+ sectors)\n", shown)
            assert re.search(rb"\rwiping: 100 %  \d+ of \d+ MiB", on_a_terminal(luks, "wait-wipe", "v"))
        finally:
            stop.set()
        held = {block: data for w in writers for block, data in w.result().items()}
    content = dev.pread(dev.size(), 0)
    for block in range(blocks):
        assert content[block * 4096:(block + 1) * 4096] == held.get(block, bytes(4096)), block
    assert dev.status() == f"0 {dev.size() // SECTOR} crypt wiping {dev.size() // SECTOR}/{dev.size() // SECTOR}\n"
    assert "  wiping:      done\n" in luks.run("status", "v").stdout.decode()
    assert dev.info()["Event number"] != "0"
    until(lambda: not wipe_record(path, tool))
    luks.run("close", "v")
    dev = luks.open(path, "v")
    assert dev.status().split()[3:] == []
    luks.run("wait-wipe", "v")
    luks.run("close", "v")
    luks.refuse("wait-wipe", "v", match="no device v")


def test_luks_wipes_with_the_volumes_key_alone(luks, work, tool):
    """Who changes the header cannot have sectors wiped; a detached header has the note."""
    path, header = os.path.join(work, "v.img"), os.path.join(work, "header")
    luks.format(path, "-I", "hmac-sha256", "--integrity-wipe-later", "--header", header, size="24M")
    assert wipe_record(header, tool)["sector"] == "0"
    for change in ({"sector": "8"}, {"mac": "00" * 32}, {"sector": 8}, {"mac": None}):
        def alter(m):
            next(iter(m["tokens"].values())).update(change)
        with open(header, "rb") as f:
            sound = f.read()
        edit_luks2(header, alter)
        done = luks.run("open", path, "v", "--header", header, given=b"sesame\n")
        assert b"not with the volume's key (token 0, dmfs-wipe): nothing is wiped" in done.stderr
        dev = luks.fs["v"]
        assert dev.status().split()[3:] == [] and read_directly(dev, 4096, 0) == errno.EILSEQ
        luks.run("close", "v")
        with open(header, "wb") as f:
            f.write(sound)
    dev = luks.open(path, "v", "--header", header)
    luks.run("wait-wipe", "v")
    assert not any(dev.pread(dev.size(), 0))
    until(lambda: not wipe_record(header, tool))
    luks.run("close", "v")
    luks.refuse("format", os.path.join(work, "n.img"), "--size", "24M", *QUICK, "-I", "none", "--integrity-wipe-later",
                match="not with --integrity none")
    luks.refuse("format", path, *QUICK, "--integrity-wipe-later", match="only with --integrity")


def test_the_message_wipe(fs, backing):
    stack = Stack(fs, backing, "capi:gcm(aes)-random", KEY, 28)
    c = stack.make()

    def refused(message, code, text):
        with pytest.raises(OSError) as e:
            c.message(message)
        assert e.value.errno == code and text in c.error(), c.error()

    refused("wipe 0", errno.EINVAL, "only while the device is suspended")
    c.suspend()
    for word in ("", " x", " -1", f" {LENGTH + 1}", " 0 0"):
        refused("wipe" + word, errno.EINVAL, "crypt: ")
    c.message("wipe 8")
    refused("wipe 0", errno.EBUSY, "up to sector 8")
    assert c.status() == f"0 {LENGTH} crypt wiping 8/{LENGTH}\n"
    c.resume()
    until(lambda: c.status() == f"0 {LENGTH} crypt wiping {LENGTH}/{LENGTH}\n")
    assert read_directly(c, 4096, 0) == errno.EILSEQ
    assert read_directly(c, LENGTH * SECTOR - 4096, 4096) == bytes(LENGTH * SECTOR - 4096)
    c.suspend()
    c.message("wipe 0")
    c.resume()
    until(lambda: c.status() == f"0 {LENGTH} crypt wiping {LENGTH}/{LENGTH}\n")
    assert not any(c.pread(LENGTH * SECTOR, 0))
    stack.remove()
    plain = fs.mkdir("plain", f"0 8 crypt aes-xts-plain64 {KEY}{KEY} 0 {quote(backing(8))} 0")
    plain.suspend()
    with pytest.raises(OSError):
        plain.message("wipe 0")
    assert "only of an authenticated mode" in plain.error()
    plain.resume()


def test_luks_metadata_of_the_header(luks, work, tool):
    """What a program of libcryptsetup's reads in it."""
    path = os.path.join(work, "v.img")
    luks.format(path, "-I", "hmac-sha512", "-c", "aes-cbc-essiv:sha256", "--sector-size", "512", "--integrity-no-wipe",
                size="24M")
    dump = json.loads(subprocess.run([tool("cryptsetup"), "luksDump", "--dump-json-metadata", path], check=True,
                                     capture_output=True).stdout)
    segment = dump["segments"]["0"]
    assert segment["encryption"] == "aes-cbc-essiv:sha256" and segment["sector_size"] == 512
    assert segment["integrity"] == {"type": "hmac(sha512)", "journal_encryption": "none", "journal_integrity": "none"}
    assert dump["keyslots"]["0"]["key_size"] == 32 + 64
    # its digest is that of the key: it opens by the passphrase, as cryptsetup sees it
    assert subprocess.run([tool("cryptsetup"), "open", "--test-passphrase", "--disable-locks", path], input=b"sesame",
                          capture_output=True).returncode == 0
