# SPDX-License-Identifier: GPL-2.0-or-later
"""delay, flakey, dust, unstriped and switch beside linear."""

import contextlib
import mmap
import os
import statistics
import threading
import time

import aio
from benchlib import DIRECT, DIRECT_4K, DIRECT_BIG, Job, Limit, device, linear_line, program, row, served, subject
from mounted import quote

MILLION = 1_000_000


# --- dust ----------------------------------------------------------------------------


@subject("dust, 1,000,000 bad blocks")
def dust(b):
    """The bad blocks lie apart, behind what is read and written."""
    path = b.file("dust.img")
    os.truncate(path, b.size + MILLION * 20011 * 512)
    d = b.own_dmfs()
    before = d.rss_kib()
    dev = d.mkdir("dust", f"0 {os.path.getsize(path) // 512} dust {quote(path)} 0 512")
    dev.message("quiet")
    start = time.monotonic()
    with open(dev.file("message"), "wb", buffering=0) as f:
        for i in range(MILLION):
            f.write(b"addbadblock %d" % (b.sectors() + i * 20011))
    b.measure("adding a bad block", (time.monotonic() - start) / MILLION * 1e6, "us")
    dev.message("enable")
    assert dev.message("countbadblocks") == f"countbadblocks: {MILLION} badblock(s) found\n"
    b.measure("memory a bad block", (d.rss_kib() - before) * 1024 / MILLION, "bytes")
    yield dev.image
    dev.remove()
    d.close()


@row("dust")
def dust_row(b):
    """good I/O with a million bad blocks about, blocks of 512 bytes"""
    b.compare(["dust, 1,000,000 bad blocks", "linear"], DIRECT, [Limit("*", "dust, 1,000,000 bad blocks", "linear", 0.9)])


# --- switch -----------------------------------------------------------------------------


REGION = 4096       # sectors: large I/O is not split


@subject("switch")
def switch(b):
    path = quote(b.file("linear.img"))
    yield from device(b, "switch", f"0 {b.sectors()} switch 16 {REGION} 0 " + " ".join([f"{path} 0"] * 16))


@contextlib.contextmanager
def changing(b):
    """Mappings of the switch that change all the time."""
    b.open("switch")
    regions, over = b.sectors() // REGION, threading.Event()

    def change():
        with open(b.dmfs().path("switch", "message"), "wb", buffering=0) as f:
            i = 0
            while not over.wait(0.001):
                f.write(b"set_region_mappings %x:%x" % (i * 7 % regions, i % 16))
                i += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@row("switch")
def switch_row(b):
    """16 paths, while a thousand mappings a second change"""
    with changing(b):
        b.compare(["switch", "linear"], DIRECT_4K, [Limit("*", "switch", "linear", 0.95)])


@row("switch-load")
def switch_load(b):
    """a million regions over 16 paths: all mappings in one message"""
    path = b.file("linear.img")
    with open(path + ".sparse", "wb") as f:
        f.truncate(MILLION * 512)
    d = b.own_dmfs()
    d.mkdir("first", "0 8 zero")
    before = d.rss_kib()
    dev = d.mkdir("switch", f"0 {MILLION} switch 16 1 0 " + " ".join([f"{quote(path)}.sparse 0"] * 16))
    b.measure("memory of the region table", (d.rss_kib() - before) / 1024, "MiB")
    text = "set_region_mappings 0:f" + "".join(f" :{i * 7 % 16:x}" for i in range(1, MILLION)) + "\n"
    start = time.monotonic()
    dev.write("message", text, flags=0)
    b.measure("a message of 1,000,000 mappings", time.monotonic() - start, "s", at_most=1)
    dev.remove()
    d.close()


# --- the others ----------------------------------------------------------------------------


@subject("flakey, up")
def flakey(b):
    yield from device(b, "flakey", f"0 {b.sectors()} flakey {quote(b.file('linear.img'))} 0 1 0 1 drop_writes")


@subject("delay of 0 ms")
def delay_0(b):
    yield from device(b, "delay0", f"0 {b.sectors()} delay {quote(b.file('linear.img'))} 0 0")


@subject("unstriped")
def unstriped(b):
    yield from device(b, "unstriped", f"0 {b.sectors()} unstriped 1 2048 0 {quote(b.file('linear.img'))} 0")


@row("misbehave")
def others_row(b):
    """flakey while up, a delay of nothing, and one stripe"""
    b.compare(["linear", "flakey, up", "delay of 0 ms", "unstriped"], DIRECT_4K + DIRECT_BIG[:1])


@subject("delay of 1 ms")
def delay_1(b):
    yield from device(b, "delay1", f"0 {b.sectors()} delay {quote(b.file('linear.img'))} 0 1")


@subject("nbdkit delay of 1 ms")
def nbdkit_delay(b):
    fuse, kit = program("nbdfuse", "libnbd-bin"), program("nbdkit", "nbdkit")
    mountpoint = os.path.join(b.dir, "nbd-delay.nbd")
    with open(mountpoint, "wb"):
        pass
    with served(b, "nbdkit delay", [fuse, mountpoint, "[", kit, "--exit-with-parent", "--filter=delay", "file",
                                    b.file("nbd.img"), "delay-read=1ms", "delay-write=1ms", "]"], mountpoint):
        yield mountpoint


@row("delay")
def delay_row(b):
    """a delay of a millisecond: at depth 1 a thousand IOPS are the most there can be"""
    jobs = DIRECT_4K + [Job("read 4k d64", "randread", 4096, 64)]
    b.compare(["delay of 1 ms", "nbdkit delay of 1 ms"], jobs, [Limit("*", "delay of 1 ms", "nbdkit delay of 1 ms", 1.0)])


@row("delay-time")
def delay_time(b):
    """how far behind its time a delayed read comes"""
    dev = b.dmfs().mkdir("delay10", linear_line(b, b.file("linear.img")).replace(" linear ", " delay ") + " 10")
    late = []
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        for i in range(20 if b.quick else 200):
            start = time.monotonic()
            os.preadv(fd, [buf], i * 4096)
            late.append((time.monotonic() - start) * 1000 - 10)
    dev.remove()
    assert min(late) >= 0
    b.measure("behind, median", statistics.median(late), "ms", at_most=1)
    b.measure("behind, worst", max(late), "ms")


# --- others that wait -------------------------------------------------------------------


WAITING, EACH = 8, 1000     # devices, and requests that wait for each


def thousand_reads(dev):
    """How long they take."""
    buf = mmap.mmap(-1, 4096)
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        start = time.monotonic()
        for i in range(1000):
            os.preadv(fd, [buf], i * 4096)
        return time.monotonic() - start


def beside_waiting(b, path):
    """The quickest thousand reads of a daemon where nothing waits, over those of one with thousands that wait."""
    line = linear_line(b, path)
    busy, idle = b.own_dmfs(), b.own_dmfs()
    ninth, alone = (d.mkdir("ninth", line) for d in (busy, idle))
    devices = [busy.mkdir(f"waiting{i}", line) for i in range(WAITING)]
    with contextlib.ExitStack() as stack:
        for dev in devices:
            dev.suspend()
            requests = aio.Aio(EACH)
            fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, fd)
            stack.callback(requests.close)
            stack.callback(dev.resume)
            requests.submit(fd, [i * 4096 for i in range(EACH)])
        times = [(thousand_reads(alone), thousand_reads(ninth)) for _ in range(20)]
    busy.close()
    idle.close()
    return min(a for a, _ in times) / min(n for _, n in times)


@row("waiting")
def waiting_row(b):
    """direct reads of a device while thousands of requests wait for eight others, beside a daemon where none does"""
    path = b.file("linear.img")
    # a daemon's threads keep to a CPU, or not, for as long as it lives: which of two is the quicker is its luck
    ratios = [beside_waiting(b, path) for _ in range(1 if b.quick else 5 * b.rounds)]
    b.measure("reads beside those that wait", statistics.median(ratios), "", at_least=1 / 1.5)
