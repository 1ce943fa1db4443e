# SPDX-License-Identifier: GPL-2.0-or-later
"""era beside linear: writes in an era that has them, first writes of an era, and checkpoints of many blocks."""

import mmap
import os
import threading
import time

from benchlib import DIRECT_4K, Limit, device, row, subject
from mounted import quote

BLOCK = 128     # sectors, as the document's tools take


@subject("era")
def era(b):
    meta = b.file("era.meta", 16 << 20, filled=False)
    yield from device(b, "era", f"0 {b.sectors()} era {quote(meta)} {quote(b.file('era.img'))} {BLOCK}")


@row("era")
def era_row(b):
    """4 KiB, in an era whose blocks have all been written: the fio jobs do that in their first round"""
    b.compare(["era", "linear"], DIRECT_4K, [Limit("* 4k d16", "era", "linear", 0.9)])


def write_all(dev, step, size, threads=16):
    """4 KiB at each step, by many threads; seconds."""
    def work(i):
        with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
            buf = mmap.mmap(-1, 4096)
            for at in range(i * step, size - 4096, threads * step):
                os.pwrite(fd, buf, at)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    begin = time.monotonic()
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return time.monotonic() - begin


@row("era-first")
def first_writes(b):
    """each write the first of its block in this era, beside the same writes to linear"""
    size = min(b.size, 256 << 20)
    meta, files = b.file("era-first.meta", 16 << 20, filled=False), [b.file(f"era{i}.img") for i in range(2)]
    dm = b.dmfs()
    lin = dm.mkdir("era-linear", f"0 {size // 512} linear {quote(files[0])} 0")
    dev = dm.mkdir("era-first", f"0 {size // 512} era {quote(meta)} {quote(files[1])} 8")
    ratios = []
    for _ in range(b.rounds):
        plain = write_all(lin, 4096 * 8, size)
        dev.message("checkpoint")
        ratios.append(plain / write_all(dev, 4096 * 8, size))
    dev.remove()
    lin.remove()
    b.measure("first writes of an era, of linear's", sorted(ratios)[len(ratios) // 2], "", at_least=0.4)


@row("era-checkpoint")
def checkpoint(b):
    """10 million blocks: how long a checkpoint keeps a write waiting"""
    blocks = 10_000_000
    meta, origin = b.file("era-big.meta", 256 << 20, filled=False), b.file("era-big.img", blocks * 4096, filled=False)
    dev = b.dmfs().mkdir("era-big", f"0 {blocks * 8} era {quote(meta)} {quote(origin)} 8")
    stop, worst = threading.Event(), [0.0]

    def write():
        with dev.open() as fd:
            n = 0
            while not stop.is_set():
                begin = time.monotonic()
                os.pwrite(fd, bytes(4096), n % 1000 * 4096)
                worst[0] = max(worst[0], time.monotonic() - begin)
                n += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(10):
        dev.message("checkpoint")
    stop.set()
    writer.join()
    dev.remove()
    b.measure("longest write beside checkpoints of 10 million blocks", worst[0] * 1000, "ms", at_most=50)
