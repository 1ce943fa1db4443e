# SPDX-License-Identifier: GPL-2.0-or-later
"""clone beside linear, and its hydration beside cp; NBD stores beside nbdfuse."""

import os
import statistics
import time

from benchlib import DIRECT_4K, MIB, Job, Limit, cp_speed, device, nbd_fuse, nbdkit, row, subject, write_zeroes
from mounted import SECTOR, quote

READ_4K = Job("randread 4k d16", "randread", 4096, 16)
READS = [Job("randread 4k d1", "randread", 4096), READ_4K, Job("read 128k d8", "randread", 131072, 8)]
REGION = 128                    # sectors


def fresh(b, name, size):
    """Metadata that will be formatted, or a destination."""
    return write_zeroes(os.path.join(b.dir, name), size)


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


@row("clone-hydration")
def hydration(b):
    """the background hydration of an idle clone, 64 regions of 64 KiB at a time, beside a copy of the same data"""
    size = min(b.size, 256 * MIB)
    b.beside_cp("hydration", lambda: hydration_speed(b, size), lambda: cp_speed(b, b.file("linear.img"), size), at_least=0.6)


def reads_beside_hydration(b, dev, job, hydrating):
    """What the job reads in a short time; the hydration, if any, begins under it and outlasts it."""
    for _ in range(3 if hydrating else 1):
        dev.load(clone_line(b, "clone-beside", rest="1 no_hydration 4 hydration_threshold 64 hydration_batch_size 16"))
        start, stop = (f"(echo {w}able_hydration > {dev.file('message')})" if hydrating else "true"
                       for w in ("en", "dis"))
        value = b.fio(dev.image, job, seconds=0.3, extra=[
            f"--exec_postrun={stop}", "--name=starter", "--startdelay=150ms", f"--exec_prerun={start}", f"--filename={dev.image}", "--rw=read",
            "--bs=4k", "--size=4k", "--thread"])
        done, total = map(int, dev.status().split()[6].split("/"))
        if not hydrating or 0 < done < total:
            return value, done / total
    return None, 1


@row("clone-reads-beside-hydration")
def beside(b):
    """4 KiB reads while the background hydration runs, beside the same without it"""
    dev = b.dmfs().mkdir("clone-beside")
    for job in (READS[0], READ_4K):
        ratios, shares = [], []
        for _ in range(b.rounds):
            alone, _ = reads_beside_hydration(b, dev, job, False)
            beside_it, share = reads_beside_hydration(b, dev, job, True)
            if beside_it:
                ratios.append(beside_it / alone)
                shares.append(share)
        if not ratios:
            b.skip(job.name, "the hydration is always over before the reads are")
            continue
        b.measure(f"{job.name}: of its speed without", statistics.median(ratios), "", at_least=0.7)
        b.measure(f"{job.name}: hydrated meanwhile", statistics.median(shares) * b.size / 0.35 / 1e6, "MB/s")
    dev.remove()


@row("clone-1tib")
def terabyte(b):
    """a clone of 1 TiB in 4 KiB regions, all of it holes: how long it takes to open, what it takes of memory"""
    regions, files = 1 << 28, [os.path.join(b.dir, f"tib.{n}") for n in ("meta", "dest", "source")]
    for path, size in zip(files, (128 * MIB, 1 << 40, 1 << 40)):
        with open(path, "wb") as f:
            f.truncate(size)
    line = f"0 {1 << 31} clone {' '.join(map(quote, files))} 8 1 no_hydration"
    fs = b.own_dmfs()
    fs.mkdir("first", line).remove()        # formats the metadata, and the allocator has its arenas
    before = fs.rss_kib()
    dev = fs.mkdir("tib")
    began = time.monotonic()
    dev.load(line)
    b.measure("opens in", time.monotonic() - began, "s", at_most=1)
    b.measure("memory a region", (fs.rss_kib() - before) * 1024 * 8 / regions, "bits", at_most=2)
    with open(dev.file("events"), "rb", buffering=0) as events:
        began = time.monotonic()
        dev.message("enable_hydration")
        wait_hydrated(dev, events)
        b.measure("its holes are hydrated in", time.monotonic() - began, "s")
    began = time.monotonic()
    dev.remove()
    b.measure("and committed in", time.monotonic() - began, "s")
    fs.close()
    for path in files:
        os.unlink(path)


# --- NBD -------------------------------------------------------------------------------------

@subject("linear on NBD")
def nbd(b):
    server = nbdkit(b, "bench", b.file("linear.img"))
    try:
        server.start()
        yield from device(b, "on-nbd", f"0 {b.sectors()} linear {server.uri} 0")
    finally:
        server.kill()


@subject("nbdfuse")
def nbdfuse(b):
    yield from nbd_fuse(b, "plain", "file", b.file("linear.img"))


@row("nbd")
def stores(b):
    """a linear device on nbdkit beside nbdfuse on the same"""
    b.compare(["linear on NBD", "nbdfuse"], DIRECT_4K, [Limit("*", "linear on NBD", "nbdfuse", 1.0)])
