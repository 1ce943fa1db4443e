# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGTERM while requests wait for something that will not happen: the daemon ends all the same, and cleanly."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mounted import is_mounted, quote

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


# What stands on `low` by the name of `up`, and what is written to.
def straight(d, file):
    return "low"


def linear(d, file):
    d.mkdir("between", "0 4096 linear low 0")
    d.mkdir("up", "0 4096 linear between 0")
    return "up"


def striped(d, file):
    d.mkdir("up", f"0 8192 striped 2 8 low 0 {file(4096)} 0")
    return "up"


def crypt(d, file):
    d.mkdir("up", f"0 4096 crypt aes-xts-plain64 {'12' * 64} 0 low 0")
    return "up"


def snapshot(d, file):
    d.mkdir("up", f"0 4096 snapshot low {file(4096)} P 16")
    return "up"


def exception_store(d, file):
    d.mkdir("up", f"0 2048 snapshot {file(2048)} low P 16")
    return "up"


def origin(d, file):
    d.mkdir("snap", f"0 4096 snapshot low {file(8192)} P 16")
    d.mkdir("up", "0 4096 snapshot-origin low")
    return "up"


def mirror(d, file):
    d.mkdir("up", f"0 4096 mirror core 2 1024 nosync 2 low 0 {file(4096)} 0 1 handle_errors")
    return "up"


def mirror_log(d, file):
    d.mkdir("up", f"0 4096 mirror disk 2 low 1024 2 {file(4096)} 0 {file(4096)} 0")
    return "up"


def pool_data(d, file):
    d.mkdir("pool", f"0 4096 thin-pool {file(4096)} low 128 0")
    d["pool"].write("message", "create_thin 0")
    d.mkdir("up", "0 4096 thin pool 0")
    return "up"


def pool_metadata(d, file):
    d.mkdir("pool", f"0 4096 thin-pool low {file(4096)} 128 0")
    d["pool"].write("message", "create_thin 0")
    d.mkdir("up", "0 4096 thin pool 0")
    return "up"


def volume_of_suspended_pool(d, file):
    pool_data(d, file)
    d["pool"].write("suspend", "1")
    return "up"


def clone(d, file):
    d.mkdir("up", f"0 4096 clone {file(4096)} {file(4096)} low 8 1 no_hydration")
    return "up"


def log_writes(d, file):
    d.mkdir("up", f"0 4096 log-writes {file(4096)} low")
    return "up"


def start(*args):
    return subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until_waiting(process):
    """Until the process waits for an answer of the daemon, or is done."""
    while process.poll() is None:
        with open(f"/proc/{process.pid}/wchan", encoding="ascii") as f:
            where = f.read()
        if where.startswith("request_wait_answer"):
            return
        time.sleep(0.01)        # looks again


@pytest.mark.parametrize("waiter", ["", "suspend", "stats"])
@pytest.mark.parametrize("upper", [straight, linear, striped, crypt, snapshot, exception_store, origin, mirror, mirror_log,
                                   pool_data, pool_metadata, volume_of_suspended_pool, clone, log_writes])
@pytest.mark.parametrize("lower", [low_suspended, low_delayed, low_full])
def test_it_ends(dmfs, backing, lower, upper, waiter):
    d = dmfs()
    block = lower(d, lambda sectors: quote(backing(sectors)))
    up = d[upper(d, lambda sectors: quote(backing(sectors)))]
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
            process.wait(120)
    finally:
        d.kill()
        for process in started:
            process.wait()
