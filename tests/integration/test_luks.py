# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: LUKS volumes, as an ordinary user."""

import os
import re
import subprocess

import pytest

from crypt_combos import stream
from luks import QUICK, Luks
from mounted import SECTOR, Device, pattern, quote, wait_mount, unmount

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


@pytest.mark.parametrize("kind,options", [
    ("LUKS2", []),
    ("LUKS2", ["--sector-size", "512"]),
    ("LUKS2", ["--sector-size", "4096", "--cipher", "aes-cbc-essiv:sha256"]),
    ("LUKS2", ["--sector-size", "2048", "--key-size", "256", "--label", "a label"]),
    ("LUKS2", ["--uuid", "8be4df61-93ca-11d2-aa0d-00e098032b8c"]),
    ("LUKS1", ["--type", "luks1"]),
    ("LUKS1", ["--type", "luks1", "--cipher", "aes-cbc-plain64", "--hash", "sha512"]),
    ("LUKS2", ["--cipher", "serpent-xts-plain64"]),
    ("LUKS1", ["--type", "luks1", "--cipher", "twofish-cbc-essiv:sha256", "--key-size", "256"]),
])
def test_format_and_open(luks, work, kind, options):
    """What is written is there after closing and opening, the header stays, and the key is in no text."""
    path = os.path.join(work, "a volume#1.img")
    luks.format(path, *options)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with open(path, "rb") as f:
        header = f.read(1 << 20)
    dev = luks.open(path, "v")
    assert dev.read("uuid").startswith(f"CRYPT-{kind}-")
    assert re.search(r" 0{32,} 0 ", dev.table()) and quote(path).replace("\\#", "#") in dev.table()
    data = pattern(4096, 1)
    dev.pwrite(data, SECTOR, sync=True)
    status = luks.run("status", "v").stdout.decode()
    for part in (f"type:        {kind}", f"device:      {path}", "mode:        read/write", "is active"):
        assert part in status, status
    luks.run("close", "v")
    assert "v" not in os.listdir(luks.fs.mountpoint)
    with open(path, "rb") as f:
        assert f.read(1 << 20) == header
        assert data[SECTOR:2 * SECTOR] not in f.read()
    dev = luks.open(path, "v", "--readonly")
    assert dev.pread(len(data), SECTOR) == data
    assert "mode:        readonly" in luks.run("status", "v").stdout.decode()
    with pytest.raises(OSError):
        dev.pwrite(b"x", 0)
    luks.run("close", "v")


def test_refusals(luks, work, backing):
    path, blank = os.path.join(work, "v.img"), backing(64)
    luks.format(path)
    luks.refuse("open", path, "v", given=b"wrong\n", match="no key is available with this passphrase", code=2)
    luks.refuse("open", path, "v", given=b"", match="no passphrase: the input ended")
    luks.refuse("open", path, "v", "--key-slot", "5", match=".")
    luks.refuse("open", path, "v", given=b"x" * 600 + b"\n", match="longer than 512 bytes")
    luks.refuse("open", path, "v", "--token-only", match="no token gives a key")
    luks.refuse("open", path, "v", "--type", "luks1", match=".")
    luks.refuse("open", path, "v", "--type", "foo", match="type 'foo' is not one of luks, luks1")
    luks.refuse("open", blank, "v", match="has no LUKS or BitLocker header")
    luks.refuse("open", os.path.join(work, "nothing"), "v", match="No such file")
    luks.refuse("open", path, "a/b", match="device name 'a/b'")
    luks.refuse("open", path, ".v", match="device name '.v'")
    luks.refuse("open", path, match="usage: dmfs-luks open FILE NAME", code=1)
    luks.refuse("shut", "v", match="a command is needed")
    luks.refuse("close", "v", match="there is no device v", code=4)
    luks.fs.mkdir("plain", "0 8 zero")
    luks.refuse("open", path, "plain", match="there is a device plain already", code=5)
    luks.refuse("close", "plain", match="was not opened by dmfs-luks")
    luks.refuse("format", path, match="holds data: --batch overwrites it")
    luks.refuse("format", os.path.join(work, "w"), match="is empty: give its size")
    luks.refuse("format", path, "--batch", "--size", "1M", match="--size only makes files longer")
    luks.refuse("format", path, "--batch", "--size", "1X", match="size '1X'")
    luks.refuse("format", path, "--batch", "--type", "luks1", "--sector-size", "4096", match="LUKS1 has sectors of 512")
    luks.refuse("format", path, "--batch", "--cipher", "aes", match="not of the form aes-xts-plain64")
    luks.refuse("open", path, "v", "--key-slot", "1", match="key slot 1 is not active")
    luks.refuse("open", path, "v", "--sector-size", "4096", match="only for format")
    luks.refuse("open", path, "v", "--tcrypt-hidden", match="only for open --type tcrypt")
    luks.refuse("open", path, "v", "--type", "tcrypt", "--key-slot", "1", match="only for LUKS")
    luks.refuse("open", path, "v", "--hash", "sha512", match="--hash: only for")
    luks.refuse("open", path, "v", "--keyfile-size", "5", match="only with --key-file")
    luks.refuse("format", path, "--readonly", match="only for open")
    luks.refuse("close", "v", "--header", path, match="only for open and format")
    os.mkfifo(os.path.join(work, "fifo"))
    for args in (["open", os.path.join(work, "fifo"), "v"], ["open", work, "v"], ["open", "/dev/null", "v"],
                 ["open", path, "v", "--header", os.path.join(work, "fifo")], ["format", os.path.join(work, "fifo")]):
        luks.refuse(*args, match="neither a file nor a block device", code=4)
    dev = luks.open(path, "v")      # unharmed by all that
    with dev.open(os.O_RDONLY):
        luks.refuse("close", "v", match="v is in use", code=5)
    luks.run("close", "v")


def test_cut_short(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path)
    os.truncate(path, 16 << 20)
    luks.refuse("open", path, "v", match="too few for data")


def test_no_room_for_data(luks, work):
    path = os.path.join(work, "v.img")
    luks.refuse("format", path, "--size", "1M", *QUICK, match="no room for data behind the 16384 KiB of its header")


def test_reencryption_under_way(luks, work, tool):
    """Which cryptsetup begins without privileges."""
    path, key = os.path.join(work, "v.img"), os.path.join(work, "key")
    with open(key, "w", encoding="ascii") as f:
        f.write("sesame")
    luks.format(path, size="40M")
    subprocess.run([tool("cryptsetup"), "reencrypt", "-q", "--disable-locks", "--init-only", "--key-file", key, *QUICK, path],
                   check=True, timeout=300)
    luks.refuse("open", path, "v", match="a reencryption is under way: finish it with cryptsetup")


def test_token(luks, work, tool):
    """A passphrase in the session's keyring."""
    path, cryptsetup, keyctl = os.path.join(work, "v.img"), tool("cryptsetup"), tool("keyctl")
    probe = subprocess.run([keyctl, "session", "-", keyctl, "add", "user", "dmfs:probe", "x", "@s"], capture_output=True,
                           text=True, timeout=300)
    if probe.returncode:
        pytest.skip(f"no session keyring here: {probe.stderr}")
    luks.format(path)
    subprocess.run([cryptsetup, "token", "add", "--disable-locks", "--key-description", "dmfs:token", path], check=True,
                   timeout=300)
    luks.refuse("open", path, "v", "--token-only", match="no token gives a key")
    command = f"{keyctl} add user dmfs:token sesame @s >&2 && exec {luks.program} -m {luks.fs.mountpoint} open"
    done = subprocess.run([keyctl, "session", "-", "sh", "-c", f'{command} --token-only "$1" v', "sh", path],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    luks.run("close", "v")
    luks.open(path, "v", given=b"sesame")   # without it, the passphrase
    luks.run("close", "v")


def test_damaged_headers(luks, work):
    """Refused or opened, never more: a byte at a time is another in the header (not of the iterations, which take long)."""
    path, bad = os.path.join(work, "v.img"), os.path.join(work, "bad.img")
    luks.format(path, "--type", "luks1", size="4M")
    with open(path, "rb") as f:
        good = f.read()
    for at in (0, 6, 7, 8, 40, 72, 104, 108, 112, 168, 208, 248, 252, 4096):
        data = bytearray(good)
        data[at] ^= 0xFF
        with open(bad, "wb") as f:
            f.write(data)
        done = luks.open(bad, "v", check=False)
        assert done.returncode in (0, 1, 2), done
        if done.returncode == 0:
            luks.run("close", "v")
    assert "version" in os.listdir(luks.fs.mountpoint)


def test_key_files_slots_and_headers(luks, work):
    path, header, key = (os.path.join(work, n) for n in ("data.img", "header", "key"))
    with open(key, "wb") as f:
        f.write(b"junk" + bytes(range(256)) + b"more")
    window = ["--key-file", key, "--keyfile-offset", "4", "--keyfile-size", "256"]
    luks.format(path, "--header", header, "--key-slot", "3", *window, size="4M")
    with open(path, "rb") as f:
        assert f.read() == bytes(4 << 20)
    luks.refuse("open", path, "v", *window, match="has no LUKS or BitLocker header")
    luks.refuse("open", path, "v", "--header", header, "--key-file", key, match="no key is available")
    luks.refuse("open", path, "v", "--header", header, "--key-slot", "2", *window, match=".")
    dev = luks.open(path, "v", "--header", header, "--key-slot", "3", *window)
    assert dev.size() == 4 << 20
    dev.pwrite(b"x" * 4096, 0, sync=True)
    luks.run("close", "v")
    with open(key, "rb") as f:
        f.seek(4)
        part = f.read(256)
    dev = luks.open(path, "v", "--header", header, "--key-file", "-", given=part)
    assert dev.pread(4096, 0) == b"x" * 4096
    luks.run("close", "v")


def test_discards(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path)
    dev = luks.open(path, "v", "--allow-discards")
    assert "allow_discards" in dev.table()
    dev.pwrite(b"x" * 8192, 0, sync=True)
    dev.discard(0, 8192)
    offset = int(dev.table().split()[7]) * SECTOR
    with open(path, "rb") as f:
        f.seek(offset)
        assert f.read(8192) == bytes(8192)
    luks.run("close", "v")


def test_where_the_mount_is(luks, work, dmfs):
    """-m, $DMFS_MOUNT, or the only one; with two, it must be named."""
    path = os.path.join(work, "v.img")
    luks.format(path)
    luks.run("open", path, "v", given=b"sesame\n", mount=False, env={"DMFS_MOUNT": luks.fs.mountpoint})
    luks.run("status", "v", mount=False, env={"DMFS_MOUNT": luks.fs.mountpoint})
    luks.run("close", "v")
    dmfs()
    luks.refuse("open", path, "v", mount=False, match=r"\d+ dmfs are mounted, at .*: name one")
    luks.refuse("open", path, "v", mount=False, env={"DMFS_MOUNT": work}, match="is not a mounted dmfs")


def test_key_is_in_no_argument_or_environment(luks, work):
    """While it waits for the passphrase of a slow key slot, and after: only its own memory could tell."""
    path = os.path.join(work, "v.img")
    luks.format(path)
    process = subprocess.Popen([luks.program, "-m", luks.fs.mountpoint, "open", path, "v"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open(f"/proc/{process.pid}/cmdline", "rb") as f:
        assert b"sesame" not in f.read()
    out = process.communicate(b"sesame\n", timeout=300)
    assert process.returncode == 0, out
    assert os.listdir(work) == ["v.img"]
    luks.run("close", "v")


def test_recipe(luks, work, tool, sh):
    """The README's, from end to end: format, open, mkfs, mount with fuse2fs, write, close, open again."""
    fuse2fs, mkfs = tool("fuse2fs"), tool("mke2fs")
    path, mnt = os.path.join(work, "private.img"), os.path.join(work, "mnt")
    os.mkdir(mnt)
    luks.format(path, size="64M")
    dev = luks.open(path, "private")
    sh(f'{mkfs} -q -t ext4 -E root_owner=$(id -u):$(id -g) "$1"', dev.image)
    text = stream("recipe", 3 << 20)
    for turn in range(2):
        process = subprocess.Popen([fuse2fs, "-f", "-o", "fakeroot", dev.image, mnt], stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        assert wait_mount(mnt, process), process.communicate()[0]
        name = os.path.join(mnt, "file")
        if turn == 0:
            with open(name, "wb") as f:
                f.write(text)
        else:
            with open(name, "rb") as f:
                assert f.read() == text
        assert unmount(mnt).returncode == 0
        process.communicate(timeout=300)
        luks.run("close", "private")
        with open(path, "rb") as f:
            assert text[:64] not in f.read()
        dev = luks.open(path, "private")
    assert sh(f'{tool("e2fsck")} -fn "$1"', dev.image).returncode == 0
    luks.run("close", "private")


def test_seed_example(luks, backing, sh):
    path = backing(40 << 11)
    env = {"DMFS_MOUNT": luks.fs.mountpoint, "PATH": os.path.dirname(luks.program) + ":" + os.environ["PATH"]}
    sh(f'echo sesame | {TOP}/contrib/examples/crypt-luks "$1"', path, **env)
    assert Device(luks.fs, "crypt1").size() > 1 << 20
    luks.run("close", "crypt1")
