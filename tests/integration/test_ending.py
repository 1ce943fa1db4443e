# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGTERM while requests wait for something that will not happen: the daemon ends all the same, and cleanly."""

import signal
import subprocess
import sys

import pytest

from mounted import is_mounted, quote, wait_until_waiting

HOUR = 3600000
WRITER = "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT); os.pwrite(fd, mmap.mmap(-1, 65536), 0)"


def low_suspended(d, file):
    """A device that is suspended once the tables above are loaded."""
    d.mkdir("low", f"0 4096 linear {file(4096)} 0")
    return lambda: d["low"].write("suspend", "1")


def low_delayed(d, file):
    d.mkdir("low", f"0 4096 linear {file(4096)} 0")
    return lambda: d["low"].load(f"0 4096 delay {file(4096)} 0 {HOUR}")


def low_full(d, file):
    """A volume of a pool without any space, which waits for some."""
    d.mkdir("full", f"0 128 thin-pool {file(4096)} {file(128)} 128 0 1 skip_block_zeroing")
    d["full"].write("message", "create_thin 0")
    d.mkdir("taken", "0 128 thin full 0")
    d["taken"].pwrite(b"x" * 65536, 0)
    d["full"].write("message", "create_thin 1")
    d.mkdir("low", f"0 4096 linear {file(4096)} 0")
    return lambda: d["low"].load("0 4096 thin full 1")


# What stands on `low` by the name of `up` (if nothing does, low is written to): tables of devices and what is
# written to their files.  FILE: a file of 4096 sectors.
POOL = [("pool", "table", "0 4096 thin-pool FILE low 128 0"), ("pool", "message", "create_thin 0"),
        ("up", "table", "0 4096 thin pool 0")]
UPPERS = {
    "nothing": [],
    "linear": [("between", "table", "0 4096 linear low 0"), ("up", "table", "0 4096 linear between 0")],
    "striped": [("up", "table", "0 8192 striped 2 8 low 0 FILE 0")],
    "crypt": [("up", "table", f"0 4096 crypt aes-xts-plain64 {'12' * 64} 0 low 0")],
    "snapshot": [("up", "table", "0 4096 snapshot low FILE P 16")],
    "exception store": [("up", "table", "0 2048 snapshot FILE low P 16")],
    "origin": [("snap", "table", "0 4096 snapshot low FILE P 16"), ("up", "table", "0 4096 snapshot-origin low")],
    "mirror": [("up", "table", "0 4096 mirror core 2 1024 nosync 2 low 0 FILE 0 1 handle_errors")],
    "mirror log": [("up", "table", "0 4096 mirror disk 2 low 1024 2 FILE 0 FILE 0")],
    "pool data": POOL,
    "pool metadata": [("pool", "table", "0 4096 thin-pool low FILE 128 0"), *POOL[1:]],
    "suspended pool": [*POOL, ("pool", "suspend", "1")],
    "clone": [("up", "table", "0 4096 clone FILE FILE low 8 1 no_hydration")],
    "log-writes": [("up", "table", "0 4096 log-writes FILE low")],
}


def make_upper(d, file, steps):
    for name, where, text in steps:
        while "FILE" in text:
            text = text.replace("FILE", file(4096), 1)
        if where == "table":
            d.mkdir(name, text)
        else:
            d[name].write(where, text)
    return d["up"] if steps else d["low"]


def start(*args):
    return subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("waiter", ["", "suspend", "stats"])
@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("lower", [low_suspended, low_delayed, low_full])
def test_it_ends(dmfs, backing, lower, upper, waiter):
    d = dmfs()

    def file(sectors):
        return quote(backing(sectors))

    block = lower(d, file)
    up = make_upper(d, file, UPPERS[upper])
    block()
    started = [start(sys.executable, "-c", WRITER, up.file("image"))]
    try:
        wait_until_waiting(started[0])
        if waiter == "suspend":
            started.append(start("sh", "-c", 'echo 1 > "$0"', up.file("suspend")))
        elif waiter == "stats":
            started.append(start("sh", "-c", 'echo "@stats_create - /1" > "$0"', up.file("message")))
        wait_until_waiting(started[-1])
        d.signal(signal.SIGTERM)
        assert d.wait() == 0
        assert not is_mounted(d.mountpoint)
        for process in started:
            process.wait(300)
    finally:
        d.kill()
        for process in started:
            process.wait()
