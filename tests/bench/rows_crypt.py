# SPDX-License-Identifier: GPL-2.0-or-later
"""crypt beside linear and beside those who open the same LUKS1 volume: qemu's luks driver and nbdkit's luks filter."""

import os
import subprocess

from benchlib import DIRECT, MIB, Limit, Skip, device, nbd_fuse, qemu_export, row, subject
from mounted import quote

KEY = "%0128x" % int("2718281828459045235360287471352662497757247093699959574966967627" * 2, 16)


def crypt_line(b, name, options):
    return f"0 {b.sectors()} crypt aes-xts-plain64 {KEY} 0 {quote(b.file(name))} 0{options}"


@subject("crypt")
def crypt(b):
    yield from device(b, "crypt", crypt_line(b, "crypt.img", ""))


@subject("crypt 4k")
def crypt_4k(b):
    yield from device(b, "crypt4k", crypt_line(b, "crypt4k.img", " 1 sector_size:4096"))


def dmfs_luks(b, *args):
    program = os.path.join(b.build, "dmfs-luks")
    if not os.access(program, os.X_OK):
        raise Skip("no dmfs-luks in the build (libcryptsetup-dev)")
    done = subprocess.run([program, *args], input=b"bench\n", capture_output=True)
    if done.returncode:
        raise Skip(done.stderr.decode())


def luks_file(b, name):
    """A LUKS1 volume whose data has its place in memory already."""
    path = b.file(name, b.size + 4 * MIB)
    dmfs_luks(b, "format", "--type", "luks1", "--batch", "-i", "10", path)
    return path


@subject("luks gcm")
def luks_gcm(b):
    """With room for journal and tags; filled, so that all of it can be read."""
    path = b.file("luks-gcm.img", b.size + b.size // 16 + 24 * MIB)
    dmfs_luks(b, "format", "--batch", "-i", "10", "--pbkdf", "pbkdf2", "--integrity", "aead", path)
    where = ["-m", b.dmfs().mountpoint]
    dmfs_luks(b, *where, "open", path, "luksgcm")
    yield b.dmfs()["luksgcm"].image
    dmfs_luks(b, *where, "close", "luksgcm")


@subject("qemu luks")
def qemu_luks(b):
    yield from qemu_export(b, "qemu-luks", luks_file(b, "qemu-luks.img"), "driver=luks,node-name=top,file=file,key-secret=s",
                           objects=["secret,id=s,data=bench"])


@subject("nbdkit luks")
def nbdkit_luks(b):
    yield from nbd_fuse(b, "nbd-luks", "--filter=luks", "file", luks_file(b, "nbd-luks.img"), "passphrase=bench")


PEERS = [Limit("* 1M", "crypt", "qemu luks", 5), Limit("* 1M", "crypt", "nbdkit luks", 5),
         Limit("* 4k d16", "crypt", "qemu luks", 3), Limit("* 4k d16", "crypt", "nbdkit luks", 3)]


@row("crypt")
def crypt_row(b):
    """aes-xts-plain64, sectors of 512 bytes"""
    b.compare(["crypt", "linear", "qemu luks", "nbdkit luks"], DIRECT,
              [Limit("* 1M", "crypt", "linear", 0.55), Limit("* 4k d16", "crypt", "linear", 0.8), *PEERS])


@row("crypt-4k")
def crypt_4k_row(b):
    """aes-xts-plain64, sectors of 4096 bytes"""
    b.compare(["crypt 4k", "linear"], DIRECT,
              [Limit("* 1M", "crypt 4k", "linear", 0.7), Limit("* 4k d16", "crypt 4k", "linear", 0.8)])


@row("crypt-aead")
def crypt_aead_row(b):
    """LUKS2 with aes-gcm-random, sectors of 4096 bytes, on integrity with its journal"""
    b.compare(["luks gcm", "linear"], DIRECT, [Limit("* 1M", "luks gcm", "linear", 0.35)])
