# SPDX-License-Identifier: GPL-2.0-or-later
"""clone beside linear, and its hydration beside cp; NBD stores beside nbdfuse."""

import os
import statistics
import subprocess
import time

from benchlib import DIRECT_4K, MIB, Job, Limit, device, nbd_fuse, program, row, subject
from mounted import SECTOR, quote

READ_4K = Job("randread 4k d16", "randread", 4096, 16)
READS = [Job("randread 4k d1", "randread", 4096), READ_4K, Job("read 128k d8", "randread", 131072, 8)]
REGION = 128                    # sectors


def fresh(b, name, size):
    """A file of zeroes, allocated: metadata that will be formatted, or a destination."""
    path = os.path.join(b.dir, name)
    with open(path, "wb") as f:
        for _ in range(0, size, MIB):
            f.write(bytes(MIB))
    return path


def clone_line(b, name, size=None, rest="", region=REGION):
    size = size or b.size
    return (f"0 {size // SECTOR} clone {quote(fresh(b, name + '.meta', 4 * MIB))} {quote(fresh(b, name + '.dest', size))} "
            f"{quote(b.file('linear.img'))} {region} {rest}").rstrip()


def wait_hydrated(dev, events):
    while True:
        hydrated, total = dev.status().split()[6].split("/")
        if hydrated == total:
            return
        events.read(65536)


@subject("clone, hydrated")
def hydrated(b):
    name = "clone-hydrated"
    dev = b.dmfs().mkdir(name)
    with open(dev.file("events"), "rb", buffering=0) as events:
        dev.load(clone_line(b, name, rest="0 4 hydration_threshold 64 hydration_batch_size 16"))
        wait_hydrated(dev, events)
    yield dev.image
    dev.remove()


@subject("clone, cold")
def cold(b):
    yield from device(b, "clone-cold", clone_line(b, "clone-cold", rest="1 no_hydration"))


@row("clone-hydrated")
def over(b):
    """a clone that is hydrated"""
    b.compare(["clone, hydrated", "linear"], DIRECT_4K, [Limit("*", "clone, hydrated", "linear", 0.9)])


@row("clone-cold-reads")
def cold_reads(b):
    """reads of regions that are not hydrated"""
    b.compare(["clone, cold", "linear"], READS, [Limit("*", "clone, cold", "linear", 0.9)])


# --- hydration ------------------------------------------------------------------------------

def hydration_speed(b, size):
    name = "clone-speed"
    dev = b.dmfs().mkdir(name)
    line = clone_line(b, name, size, "0 4 hydration_threshold 64 hydration_batch_size 16")
    with open(dev.file("events"), "rb", buffering=0) as events:
        began = time.monotonic()
        dev.load(line)
        wait_hydrated(dev, events)
        seconds = time.monotonic() - began
    dev.remove()
    return size / seconds / 1e6


def cp_speed(b, size):
    dest = fresh(b, "clone-cp", size)
    began = time.monotonic()
    subprocess.run(["dd", f"if={b.file('linear.img')}", f"of={dest}", "bs=1M", f"count={size // MIB}", "conv=notrunc",
                    "status=none"], check=True)
    seconds = time.monotonic() - began
    os.unlink(dest)
    return size / seconds / 1e6


@row("clone-hydration")
def hydration(b):
    """the background hydration of an idle clone, 64 regions of 64 KiB at a time, beside a copy of the same data"""
    size = min(b.size, 256 * MIB)
    pairs = [(hydration_speed(b, size), cp_speed(b, size)) for _ in range(b.rounds)]
    b.measure("hydration", statistics.median(h for h, _ in pairs), "MB/s")
    b.measure("cp", statistics.median(c for _, c in pairs), "MB/s")
    b.measure("hydration / cp", statistics.median(h / c for h, c in pairs), "", at_least=0.6)


# --- NBD -------------------------------------------------------------------------------------

@subject("linear on NBD")
def nbd(b):
    sock = os.path.join(b.dir, "bench.sock")
    server = subprocess.Popen([program("nbdkit", "nbdkit"), "-f", "-U", sock, "file", b.file("linear.img")],
                              stdin=subprocess.DEVNULL)
    try:
        while not os.path.exists(sock):
            if server.poll() is not None:
                raise RuntimeError(f"nbdkit has ended with {server.returncode}")
            time.sleep(0.01)
        yield from device(b, "on-nbd", f"0 {b.sectors()} linear nbd+unix:///?socket={sock} 0")
    finally:
        server.kill()
        server.wait()


@subject("nbdfuse")
def nbdfuse(b):
    yield from nbd_fuse(b, "plain", "file", b.file("linear.img"))


@row("nbd")
def stores(b):
    """a linear device on nbdkit beside nbdfuse on the same"""
    b.compare(["linear on NBD", "nbdfuse"], DIRECT_4K, [Limit("*", "linear on NBD", "nbdfuse", 1.0)])
