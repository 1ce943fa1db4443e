# SPDX-License-Identifier: GPL-2.0-or-later
"""Large tables, many devices, memory, and doing nothing."""

import os
import random
import subprocess
import time

from benchlib import DIRECT_4K, Limit, linear_line, row, subject
from mounted import quote

LINES = 1_000_000
LINE_SECTORS = 8


def million_lines(path, backing_sectors):
    """A table of single pages of the file in random order."""
    order = list(range(backing_sectors // LINE_SECTORS))
    random.Random(1).shuffle(order)
    name = quote(path)
    return "".join(f"{i * LINE_SECTORS} {LINE_SECTORS} linear {name} {order[i % len(order)] * LINE_SECTORS}\n"
                   for i in range(LINES)).encode()


def resident(daemon):
    return daemon.rss_kib() * 1024


@subject("1,000,000 lines")
def million(b):
    # its own daemon: what it takes is measured
    d = b.own_dmfs()
    text = million_lines(b.file("linear.img"), b.sectors())
    dev = d.mkdir("million")
    before = resident(d)
    start = time.monotonic()
    dev.write("table", text)
    took = time.monotonic() - start
    assert dev.size() == LINES * LINE_SECTORS * 512
    b.measure("loading 1,000,000 lines", took, "s", at_most=3)
    b.measure("memory a line", (resident(d) - before) / LINES, "bytes", at_most=200)
    yield dev.image
    dev.remove()
    d.close()


@subject("one line")
def one_line(b):
    d = b.own_dmfs()
    dev = d.mkdir("one", linear_line(b, b.file("linear.img")))
    yield dev.image
    dev.remove()
    d.close()


@row("million")
def million_row(b):
    """a random read or write through a table of a million lines"""
    b.compare(["1,000,000 lines", "one line"], DIRECT_4K, [Limit("*", "1,000,000 lines", "one line", 0.9)],
              spans={"1,000,000 lines": LINES * LINE_SECTORS * 512})


def many(b, count):
    """Creates, lists and removes so many devices in a daemon of their own; the seconds of each, and bytes a device."""
    d = b.own_dmfs()
    path = quote(b.file("linear.img"))
    before = resident(d)
    start = time.monotonic()
    for i in range(count):
        d.mkdir(f"dev{i}", f"0 8 linear {path} {i * 8}")
    created = time.monotonic()
    listing = subprocess.run(["ls", d.mountpoint], capture_output=True, text=True, check=True)
    listed = time.monotonic()
    subprocess.run(["ls", "-l", d.mountpoint], capture_output=True, check=True)
    listed_long = time.monotonic()
    assert sum(name.startswith("dev") for name in listing.stdout.split()) == count
    each = (resident(d) - before) / count
    removing = time.monotonic()
    for i in range(count):
        os.rmdir(d.path(f"dev{i}"))
    removed = time.monotonic()
    d.close()
    return {"create": created - start, "ls": listed - created, "ls -l": listed_long - listed,
            "remove": removed - removing}, each


@row("devices")
def devices_row(b):
    """1,000 and 10,000 devices, created, listed and removed"""
    few, _ = many(b, 1000)
    lots, each = many(b, 10000)
    for what in ("create", "remove"):
        b.measure(f"{what} one of 1,000", few[what] / 1000 * 1e6, "us")
        b.measure(f"{what} one of 10,000", lots[what] / 10000 * 1e6, "us")
        # in proportion: the time a device takes does not grow with their number (half as much again for noise)
        b.measure(f"{what}: one of 10,000 against one of 1,000", lots[what] / few[what] / 10, "times", at_most=1.5)
    b.measure("ls of 1,000", few["ls"], "s")
    b.measure("ls of 10,000", lots["ls"], "s", at_most=1)
    b.measure("ls -l of 10,000", lots["ls -l"], "s")
    b.measure("memory of an idle device", each / 1024, "KiB", at_most=16)


def switches(daemon):
    """How often any of its threads has been put to sleep or taken off a CPU: a poller would show."""
    total = 0
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        with open(f"/proc/{daemon.pid}/task/{task}/status", encoding="ascii") as f:
            total += sum(int(line.split()[1]) for line in f if "ctxt_switches" in line)
    return total


@row("idle")
def idle_row(b):
    """a freshly mounted daemon doing nothing"""
    d = b.own_dmfs()
    os.listdir(d.mountpoint)
    time.sleep(0.5)
    ticks, switched = d.cpu_ticks(), switches(d)
    seconds = 2 if b.quick else 10
    time.sleep(seconds)
    b.measure(f"CPU in {seconds} s", (d.cpu_ticks() - ticks) * 1000 / os.sysconf("SC_CLK_TCK"), "ms", at_most=0)
    b.measure(f"wake-ups in {seconds} s", switches(d) - switched, "", at_most=0)
    b.measure("resident when fresh", resident(d) / (1 << 20), "MiB", at_most=12)
    d.close()


def after(b):
    b.measure("resident after all this", resident(b.dmfs()) / (1 << 20), "MiB", at_most=64)


@row("memory")
def memory_row(b):
    """the shared daemon's memory after the whole bench (at its end)"""
    b.dmfs()
    b.at_end.append((b.row, after))
