# SPDX-License-Identifier: GPL-2.0-or-later
"""mirror beside linear, and its resync beside cp."""

import time

from benchlib import BUFFERED, DIRECT, Limit, cp_speed, device, row, subject, wait_status
from log_server import Logd
from mounted import quote

REGION = 4096       # what LVM takes


def legs(b, name):
    return " ".join(f"{quote(b.file(f'{name}{i}.img'))} 0" for i in range(2))


@subject("mirror")
def mirror(b):
    """Two legs in sync, and a disk log."""
    log = b.file("mirror.log", 1 << 20, filled=False)
    yield from device(b, "mirror", f"0 {b.sectors()} mirror disk 3 {quote(log)} {REGION} nosync 2 {legs(b, 'leg')}")


@row("mirror")
def mirror_row(b):
    """two legs and a disk log; regions become dirty as they are written to"""
    b.compare(["mirror", "linear"], DIRECT + BUFFERED,
              [Limit("*read*", "mirror", "linear", 0.9), Limit("write 4k d16", "mirror", "linear", 0.6)])


@subject("mirror-userspace")
def mirror_userspace(b):
    """The same with the log at a dmfs-logd, as other hosts would share it."""
    server = Logd(build=b.build)
    b.stack.callback(server.close)
    log, d = b.file("clustered.log", 1 << 20, filled=False), b.own_dmfs(options=f"log_server={server.socket}")
    dev = d.mkdir("m", f"0 {b.sectors()} mirror userspace 6 u integrated_flush clustered-disk {quote(log)} {REGION} nosync 2 "
                       f"{legs(b, 'leg')}")
    yield dev.image
    dev.remove()


@row("mirror-userspace")
def mirror_userspace_row(b):
    """a log that hosts share: each read asks the server, a write to a dirty region does not"""
    b.compare(["mirror-userspace", "mirror"], DIRECT[:4], [Limit("write 4k d16", "mirror-userspace", "mirror", 0.6)])


def in_sync(words):
    done, _, total = words[6].partition("/")
    return done == total


@row("mirror-resync")
def resync(b):
    """copying a leg, beside cp; while nothing else happens"""
    source, target = b.file("leg0.img"), b.file("leg1.img")
    size = min(b.size, 256 << 20)
    dev = b.dmfs().mkdir("resync")

    def sync():
        begin = time.monotonic()
        dev.load(f"0 {size // 512} mirror core 1 {REGION} 2 {quote(source)} 0 {quote(target)} 0")
        wait_status(dev, in_sync)
        return size / (time.monotonic() - begin) / 1e6

    b.beside_cp("resync", sync, lambda: cp_speed(b, source, size), at_least=0.5)
    dev.remove()
