# SPDX-License-Identifier: GPL-2.0-or-later
"""linear, striped and zero beside what FUSE can do at least and beside the peers."""

import glob
import os
import subprocess

from benchlib import (BUFFERED, DIRECT, DIRECT_4K, DIRECT_BIG, Limit, Skip, device, linear_line, nbd_fuse, program,
                      qemu_export, row, served, subject)
from mounted import quote


@subject("linear")
def linear(b):
    yield from device(b, "linear", linear_line(b, b.file("linear.img")))


@subject("striped")
def striped(b):
    files = [quote(b.file(f"stripe{i}.img")) for i in range(2)]
    yield from device(b, "striped", f"0 {b.sectors()} striped 2 128 {files[0]} 0 {files[1]} 0")


@subject("zero")
def zero(b):
    yield from device(b, "zero", f"0 {b.sectors()} zero")


@subject("passthrough_ll")
def passthrough_ll(b):
    """libfuse's example: its source comes with libfuse3-dev."""
    places = [os.environ.get("PASSTHROUGH_LL", ""), *glob.glob("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c*")]
    source = next((p for p in places if os.path.exists(p)), None)
    if not source:
        raise Skip("no passthrough_ll.c (libfuse3-dev's examples)")
    binary = os.path.join(b.dir, "passthrough_ll")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    text = os.path.join(b.dir, "passthrough_ll.c")
    with open(text, "wb") as f:
        subprocess.run(["zcat", "-f", source], stdout=f, check=True)
    done = subprocess.run(["cc", "-O2", "-w", "-pthread", f"-I{os.path.dirname(source)}", text, "-o", binary,
                           *flags.stdout.split()], capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"passthrough_ll.c does not compile: {done.stderr[-500:]}")
    source_dir, mountpoint = os.path.join(b.dir, "pt.src"), os.path.join(b.dir, "pt")
    os.mkdir(source_dir)
    os.mkdir(mountpoint)
    os.rename(b.file("pt.img"), os.path.join(source_dir, "img"))
    with served(b, "passthrough_ll", [binary, "-f", "-o", f"source={source_dir}", mountpoint], mountpoint):
        yield os.path.join(mountpoint, "img")


@subject("qemu raw")
def qemu_raw(b):
    yield from qemu_export(b, "qemu-raw", b.file("qemu.img"), "driver=raw,node-name=top,file=file")


@subject("nbdkit file")
def nbdkit_file(b):
    yield from nbd_fuse(b, "nbd-file", "file", b.file("nbd.img"))


QEMU = [Limit("* 4k d16", "linear", "qemu raw", 3.0), Limit("*", "linear", "qemu raw", 1.2)]


@row("linear")
def linear_direct(b):
    """one file, direct I/O"""
    b.compare(["linear", "passthrough_ll", "qemu raw", "nbdkit file"], DIRECT,
              [Limit("* 4k d*", "linear", "passthrough_ll", 0.95), Limit("write 1M", "linear", "passthrough_ll", 0.95),
               Limit("read 1M", "linear", "passthrough_ll", 3.0), *QEMU])


@row("linear-buffered")
def linear_buffered(b):
    """one file, through the page cache (cold): to look at, as most of it is the kernel's filling of that cache"""
    b.compare(["linear", "passthrough_ll", "qemu raw", "nbdkit file"], BUFFERED)


@row("striped")
def striped_row(b):
    """two files, 64 KiB chunks"""
    b.compare(["striped", "linear"], DIRECT + BUFFERED, [Limit("*", "striped", "linear", 0.9)])


@row("zero")
def zero_row(b):
    """no file at all: what FUSE alone costs"""
    b.compare(["zero", "linear"], DIRECT + BUFFERED)


def loop_on(b, name):
    if os.geteuid():
        raise Skip("a loop device needs root")
    image = b.open(name)
    done = subprocess.run([program("losetup", "mount"), "--find", "--show", "--direct-io=on", image],
                          capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"losetup: {done.stderr.strip()}")
    loop = done.stdout.strip()
    try:
        yield loop
    finally:
        subprocess.run(["losetup", "-d", loop], check=False)


@subject("loop on linear")
def loop_on_linear(b):
    yield from loop_on(b, "linear")


@subject("loop on passthrough_ll")
def loop_on_passthrough(b):
    yield from loop_on(b, "passthrough_ll")


@subject("loop on qemu raw")
def loop_on_qemu(b):
    yield from loop_on(b, "qemu raw")


@row("loop")
def loop_row(b):
    """a loop device with direct I/O on the image"""
    b.compare(["loop on linear", "loop on passthrough_ll", "loop on qemu raw"], DIRECT_4K + DIRECT_BIG)


@subject("stack of 4")
def stack(b):
    d = b.dmfs()
    devs = [d.mkdir("stack0", linear_line(b, b.file("linear.img")))]
    for i in range(1, 4):
        devs.append(d.mkdir(f"stack{i}", f"0 {b.sectors()} linear stack{i - 1} 0"))
    yield devs[-1].image
    for dev in reversed(devs):
        dev.remove()


@row("stack")
def stack_row(b):
    """four linear devices on top of each other, beside one"""
    b.compare(["stack of 4", "linear"], DIRECT, [Limit("*", "stack of 4", "linear", 0.9)])
