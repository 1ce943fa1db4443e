# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes of dmfs-luks in the kernel's own cryptsetup, and the other way round."""

import os
import subprocess

import pytest

import bitlocker
import veracrypt
from crypt_combos import stream
from mounted import Device

DATA = stream("volume", 1 << 20)
OTHER = stream("other", 1 << 20)

# name: how each side makes it
MADE = {
    "luks2-4096": "--type luks2 --sector-size 4096",
    "luks2-512": "--type luks2 --sector-size 512 --key-size 256",
    "luks2-essiv": "--type luks2 --sector-size 512 --cipher aes-cbc-essiv:sha256",
    "luks1": "--type luks1",
    "luks1-cbc": "--type luks1 --cipher aes-cbc-plain64 --hash sha512",
    # key slots in these ciphers, too: of libgcrypt here, of the kernel's crypto interface there
    "serpent": "--type luks2 --cipher serpent-xts-plain64",
    "twofish": "--type luks2 --sector-size 512 --cipher twofish-cbc-essiv:sha256 --key-size 256",
}
KERNELS = {
    "null": "--type luks2 --cipher cipher_null-ecb",
}
QUICK = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"


@pytest.fixture
def files(work, tool):
    """Input for the guest, which has no pipes of ours; and the programs' names."""
    tool("cryptsetup")
    for name, content in (("data", DATA), ("other", OTHER), ("key", b"sesame")):
        with open(os.path.join(work, name), "wb") as f:
            f.write(content)
    return work


@pytest.fixture
def luks(fs, tool, files):
    program = tool("dmfs-luks")

    def run(command, *args):
        done = subprocess.run([program, "-m", fs.mountpoint, command, *args, *(
            ["--key-file", f"{files}/key"] if command in ("open", "format") else [])], capture_output=True, text=True,
            timeout=600)
        assert done.returncode == 0, f"{command} {args}: {done.stderr}"

    return run


def image(work, name, size=None):
    path = os.path.join(work, f"{name}.img")
    if size:
        with open(path, "wb") as f:
            f.truncate(size)
    return path


def in_guest(kernel, work, script, disks):
    kernel.run(f"""set -e
for m in serpent_generic twofish_generic algif_skcipher fuse crypto_null; do modprobe -q $m || true; done
cryptsetup() {{ command cryptsetup --disable-locks --key-file {work}/key "$@"; }}
cd {work}
{script}""", disks, timeout=600)


def test_ours_in_the_kernel(kernel, luks, fs, files):
    paths = [image(files, name) for name in MADE]
    for path, options in zip(paths, MADE.values()):
        luks("format", path, "--size", "20M", *options.split(), *QUICK.split())
        luks("open", path, "v")
        Device(fs, "v").pwrite(DATA, 0, sync=True)
        luks("close", "v")
    in_guest(kernel, files, "".join(f"""
cryptsetup open $D{i} v
cmp -n {len(DATA)} data /dev/mapper/v
dd if=other of=/dev/mapper/v oflag=direct bs=1M status=none
blockdev --getsize64 /dev/mapper/v >{name}.size
cryptsetup close v
""" for i, name in enumerate(MADE)), paths)
    for name, path in zip(MADE, paths):
        luks("open", path, "v")
        assert Device(fs, "v").pread(len(OTHER), 0) == OTHER, name
        with open(os.path.join(files, f"{name}.size"), encoding="ascii") as f:
            assert Device(fs, "v").size() == int(f.read()), name
        luks("close", "v")


def test_the_kernels_in_ours(kernel, luks, fs, files):
    made = MADE | KERNELS
    paths = [image(files, name, 20 << 20) for name in made]
    in_guest(kernel, files, "".join(f"""
cryptsetup luksFormat -q $D{i} {options} {QUICK}
cryptsetup open $D{i} v
dd if=data of=/dev/mapper/v oflag=direct bs=1M status=none
blockdev --getsize64 /dev/mapper/v >{name}.size
cryptsetup close v
""" for i, (name, options) in enumerate(made.items())), paths)
    for name, path in zip(made, paths):
        luks("open", path, "v")
        assert Device(fs, "v").pread(len(DATA), 0) == DATA, name
        with open(os.path.join(files, f"{name}.size"), encoding="ascii") as f:
            assert Device(fs, "v").size() == int(f.read()), name
        luks("close", "v")


def test_veracrypt(kernel, fs, files, tool):
    """The kernel's cryptsetup opens the volumes that dmfs-luks opens, with the same size and what it wrote."""
    paths = []
    for ciphers in (["aes"], ["twofish", "aes"], ["serpent", "twofish", "aes"]):
        path = veracrypt.volume(fs, files, ciphers, b"sesame", DATA, pim=1)
        paths.append(os.path.join(files, f"{'-'.join(ciphers)}.hc"))
        os.rename(path, paths[-1])
        done = subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, "open", "--type", "tcrypt", "--veracrypt-pim", "1",
                               paths[-1], "v"], input=b"sesame", capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        dev = Device(fs, "v")
        assert dev.pread(len(DATA), 0) == DATA and dev.size() == len(DATA)
        dev.pwrite(OTHER, 0, sync=True)
        assert subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, "close", "v"], timeout=600).returncode == 0
    in_guest(kernel, files, """
for disk in $D0 $D1 $D2; do
    cat key | command cryptsetup open --disable-locks --type tcrypt --veracrypt --veracrypt-pim 1 --hash sha512 $disk v
    cmp other /dev/mapper/v
    cryptsetup close v
done
""", paths)


def test_encrypted_system(kernel, fs, files, tool):
    """The kernel's cryptsetup maps a system's partition from the same sector, with the same IVs, and reads the same."""
    ciphers = ["twofish", "aes"]
    disk, part = veracrypt.system(fs, files, ciphers, b"sesame", DATA)
    ours = {}
    for name, path, options in (("disk", disk, []), ("partition", part, ["--header", disk])):
        done = subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, "open", "--type", "tcrypt", "--tcrypt-system",
                               "--veracrypt-pim", "1", path, "v", *options], input=b"sesame", capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert Device(fs, "v").pread(2 * len(DATA), 0) == DATA
        ours[name] = fs["v_1"].table().split()
        assert subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, "close", "v"], timeout=600).returncode == 0
    in_guest(kernel, files, """
options="--disable-locks --veracrypt --veracrypt-pim 1 --hash sha256 --tcrypt-system"
open() {
    cat key | command cryptsetup open --type tcrypt $options "$@" v
    cmp data /dev/mapper/v || echo "$1 reads otherwise" >>odd
    blockdev --getsize64 /dev/mapper/v >size
    dmsetup table v_1 >table
    cryptsetup close v
}
test -b ${D0}1
open ${D0}1
cat key | command cryptsetup tcryptDump $options $D0 >dump
""", [disk])
    assert not os.path.exists(os.path.join(files, "odd"))
    with open(os.path.join(files, "table"), encoding="ascii") as f:
        theirs = f.read().split()
    with open(os.path.join(files, "size"), encoding="ascii") as f:
        assert int(f.read()) == len(DATA)
    # length, cipher, first IV; the partition's node begins where its image does
    for i in (1, 3, 5):
        assert ours["partition"][i] == ours["disk"][i] == theirs[i]
    assert ours["partition"][7] == theirs[7] == "0"
    with open(os.path.join(files, "dump"), encoding="ascii") as f:
        dump = dict(line.split(":", 1) for line in f.read().splitlines() if ":" in line)
    assert int(ours["disk"][7]) * 512 == int(dump["MK offset"])


def test_bitlocker(kernel, luks, fs, files, tool):
    """The kernel's cryptsetup opens the volumes with the same table, and reads what dmfs-luks wrote."""
    made = []
    for method, sector_size, protection in ((0x8000, 512, bitlocker.STARTUP), (0x8003, 4096, bitlocker.STARTUP),
                                            (0x8004, 512, bitlocker.PASSPHRASE), (0x8005, 512, bitlocker.RECOVERY)):
        work = os.path.join(files, f"{method:x}")
        os.mkdir(work)
        volume = bitlocker.Volume(fs, work, method=method, sector_size=sector_size, protections=[protection])
        key = os.path.join(work, "key")
        with open(key, "w", encoding="ascii") as f:
            f.write(bitlocker.RECOVERY_PASSWORD if protection == bitlocker.RECOVERY else "sesame")
        if protection == bitlocker.STARTUP:
            os.replace(volume.bek, key)
        done = subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, "open", volume.path, "v", "--key-file", key],
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        dev = Device(fs, "v")
        content = bytearray(volume.plain)
        for at in (0, 400 << 10, 700 << 10):
            content[at:at + 4096] = OTHER[at:at + 4096]
            dev.pwrite(bytes(content[at:at + 4096]), at, sync=True)
        with open(os.path.join(work, "plain"), "wb") as f:
            f.write(content)
        made.append((volume.path, work, dev.table()))
        luks("close", "v")
    in_guest(kernel, files, "".join(f"""
command cryptsetup bitlkOpen --disable-locks --key-file {work}/key $D{i} v
cmp {work}/plain /dev/mapper/v
dmsetup table v >{work}/table
cryptsetup close v
""" for i, (_, work, _) in enumerate(made)), [path for path, _, _ in made])
    for path, work, ours in made:
        with open(os.path.join(work, "table"), encoding="ascii") as f:
            theirs = f.read()
        assert [comparable(line) for line in ours.splitlines()] == [comparable(line) for line in theirs.splitlines()], path


def comparable(line):
    """Without the device, and with the options in order."""
    word = line.split()
    return word[:6] + word[7:9] + sorted(word[9:]) if word[2] == "crypt" else word
