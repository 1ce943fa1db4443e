# SPDX-License-Identifier: GPL-2.0-or-later
"""integrity's modes, with crc32c, beside linear on a file of the same size."""

from benchlib import DIRECT, MIB, Limit, device, linear_line, row, subject
from mounted import quote

BLOCK = 4096


def volume(b, mode):
    """A volume whose sectors all have tags."""
    path, sectors = b.file(f"integrity-{mode}.img", b.size + b.size // 8), b.sectors()
    with open(path, "r+b") as f:                # the superblock's place
        f.write(bytes(4096))
    line = f"0 {sectors} integrity {quote(path)} 0 - {mode} 3 block_size:{BLOCK} fix_padding internal_hash:crc32c"
    for image in device(b, f"integrity-{mode}", line):
        zeroes = bytes(MIB)
        with open(image, "r+b", buffering=0) as f:
            for _ in range(sectors // 2048):
                f.write(zeroes)
        yield image


@subject("integrity D")
def direct(b):
    yield from volume(b, "D")


@subject("integrity B")
def bitmap(b):
    yield from volume(b, "B")


@subject("integrity J")
def journal(b):
    yield from volume(b, "J")


@subject("integrity linear")
def linear(b):
    yield from device(b, "integrity-linear", linear_line(b, b.file("integrity-linear.img")))


LIMITS = {"D": (0.6, 0.4), "B": (0.65, 0.4), "J": (0.4, 0.3)}


@row("integrity")
def integrity(b):
    """crc32c, blocks of 4 KiB, each mode beside linear"""
    limits = []
    for mode, (large, small) in LIMITS.items():
        name = f"integrity {mode}"
        limits += [Limit("read 1M", name, "integrity linear", 0.7), Limit("write 1M", name, "integrity linear", large),
                   Limit("read 4k d16", name, "integrity linear", 0.7),
                   Limit("write 4k d16", name, "integrity linear", small)]
    b.compare(["integrity linear", "integrity D", "integrity B", "integrity J"], DIRECT, limits)
