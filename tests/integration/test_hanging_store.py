# SPDX-License-Identifier: GPL-2.0-or-later
"""A file of a server that does not answer holds up whoever uses it, and nobody else: not other devices, not control
files, not the daemon's end.  The server here is another dmfs, stopped by a signal."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import aio
import mounted
from mounted import is_mounted, quote

SECTORS = 16384
BLOCK = 4096
REQUESTS = 300          # more than there are workers for images
SYNC = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT); os.fsync(fd)"
SEEK = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.lseek(fd, 0, os.SEEK_HOLE)"


@pytest.fixture
def server(dmfs, backing):
    """Another dmfs with a volume."""
    d = dmfs()
    d.mkdir("vol", f"0 {SECTORS} linear {quote(backing(SECTORS, mounted.pattern(SECTORS)))} 0")
    yield d
    d.go()


@pytest.fixture
def fs(dmfs, server, backing, work):
    """far is on the other's image, near on a file of its own; it keeps a state."""
    d = dmfs(state=os.path.join(work, "state"))
    d.mkdir("near", f"0 {SECTORS} linear {quote(backing(SECTORS, mounted.pattern(SECTORS, 1)))} 0")
    d.mkdir("far", f"0 {SECTORS} linear {quote(server['vol'].image)} 0")
    return d


@contextlib.contextmanager
def requests_to(dev, n=REQUESTS, op=aio.READ):
    if not aio.available():
        pytest.skip("no numbers of the AIO system calls for this machine")
    a, fd = aio.Aio(n), os.open(dev.image, os.O_RDWR | os.O_DIRECT)
    a.submit(fd, [i % (SECTORS // 8) * BLOCK for i in range(n)], op)
    try:
        yield a
    finally:
        a.close()
        os.close(fd)


def seconds(fn):
    start = time.monotonic()
    fn()
    return time.monotonic() - start


def look_around(d):
    """All that must go on meanwhile, timed by whoever calls."""
    assert d["near"].pread(SECTORS * 512, 0) == mounted.pattern(SECTORS, 1)
    for name in ("near", "far"):
        for file in ("table", "status", "info", "deps", "suspend", "error"):
            d[name].read(file)
    d.mkdir("more", "0 8 zero")
    os.rename(d.path("more"), d.path("less"))
    d["less"].pread(BLOCK, 0)
    d["less"].remove()
    d["near"].suspend()
    d["near"].resume()
    assert d.read("version")


@pytest.mark.parametrize("op", [aio.READ, aio.WRITE], ids=["reads", "writes"])
def test_others_are_served(fs, server, op):
    server.stop()
    with requests_to(fs["far"], op=op) as a:
        try:
            assert seconds(lambda: look_around(fs)) < 60
            assert not a.reap(1, 0)
            assert len(os.listdir(f"/proc/{fs.pid}/task")) < 150, "a hanging store holds so many threads, and no more"
        finally:
            server.go()
        assert a.reap(REQUESTS) == [BLOCK] * REQUESTS


@pytest.mark.parametrize("code", [SYNC, SEEK], ids=["fsync", "lseek"])
def test_others_are_served_beside_calls_without_data(fs, server, code):
    """The kernel has one of each at a time for a file; so there are as many files of the server as callers."""
    started = []
    many = 40
    for i in range(many):
        server.mkdir(f"v{i}", f"0 {SECTORS // many // 8 * 8} linear vol 0")
        fs.mkdir(f"f{i}", f"0 {SECTORS // many // 8 * 8} linear {quote(server[f'v{i}'].image)} 0").pwrite(b"x" * BLOCK, 0)
    server.stop()
    try:
        started = [subprocess.Popen([sys.executable, "-c", code, fs[f"f{i}"].image]) for i in range(many)]
        for p in started:
            mounted.wait_until_waiting(p)
        assert seconds(lambda: look_around(fs)) < 60
    finally:
        server.go()
        for p in started:
            assert p.wait(300) == 0


def test_its_own_table_can_be_replaced_once_its_io_is_over(fs, server, backing):
    """A load that waits for I/O of the device does not wait for ever: it is interrupted."""
    server.stop()
    other = quote(backing(SECTORS, mounted.pattern(SECTORS, 2)))
    with requests_to(fs["far"]) as a:
        try:
            writer = subprocess.Popen(["sh", "-c", f'echo "0 {SECTORS} linear {other} 0" >"$0"', fs["far"].file("table")],
                                      stderr=subprocess.DEVNULL)
            mounted.wait_until_waiting(writer)
            assert seconds(lambda: look_around(fs)) < 60
            writer.terminate()
            assert writer.wait(300)
        finally:
            server.go()
        assert a.reap(REQUESTS) == [BLOCK] * REQUESTS
    fs["far"].load(f"0 {SECTORS} linear {other} 0")
    assert fs["far"].pread(BLOCK, 0) == mounted.pattern(SECTORS, 2)[:BLOCK]


def wait_until_given_up(d, seconds):
    """What the kernel does not let go of may keep its process until the server is back; all it had is free."""
    end = time.monotonic() + seconds
    while "does not answer: ending" not in d.stderr():
        assert time.monotonic() < end
        time.sleep(0.05)        # looks again
    assert not is_mounted(d.mountpoint)


def test_a_signal_unmounts_and_a_second_one_ends_it(fs, server, dmfs, work):
    table = fs["near"].table()
    fs.mkdir("other", "0 8 zero")
    reader = None
    server.stop()
    try:
        reader = subprocess.Popen(["dd", f"if={fs['far'].image}", "iflag=direct", "bs=4096", "count=1000"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        mounted.wait_until_waiting(reader)
        fs.killed = True
        fs.signal(signal.SIGTERM)
        with subprocess.Popen(["sleep", "600"]) as clock:
            assert mounted.wait_mount(fs.mountpoint, clock, mounted=False)
            clock.kill()
        assert fs.process.poll() is None, "it waits for what is under way"
        fs.signal(signal.SIGTERM)
        wait_until_given_up(fs, 300)
        assert server["vol"].image in fs.stderr()
        assert reader.wait(300) != 0
        # The state is free: a next one has it, and once the server is back all devices.
        server.go()
        again = dmfs(state=os.path.join(work, "state"))
        assert again["near"].table() == table and again["other"].table() == "0 8 zero\n"
        assert again["far"].pread(BLOCK, 0) == mounted.pattern(SECTORS)[:BLOCK]
        assert fs.wait(300) == 1
    finally:
        server.go()
        if reader:
            reader.kill()
            reader.communicate()


@pytest.mark.parametrize("what", ["requests", "flush"])
def test_without_a_second_signal_it_gives_up_in_the_end(fs, server, what):
    fs["far"].pwrite(b"x" * BLOCK, 0)
    server.stop()
    reader = None
    try:
        if what == "requests":
            reader = subprocess.Popen(["dd", f"if={fs['far'].image}", "iflag=direct", "bs=4096", "count=1000"],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            mounted.wait_until_waiting(reader)
        fs.killed = True
        fs.signal(signal.SIGTERM)
        wait_until_given_up(fs, 300)
        server.go()
        assert fs.wait(300) == 1
    finally:
        server.go()
        if reader:
            reader.wait(300)


def test_two_signals_and_no_hanging_store(dmfs, backing, work):
    """An impatient user loses nothing."""
    d = dmfs(state=os.path.join(work, "state"))
    path = backing(SECTORS)
    d.mkdir("vol", f"0 {SECTORS} linear {quote(path)} 0").pwrite(b"x" * BLOCK, 0)
    d.signal(signal.SIGTERM)
    d.signal(signal.SIGTERM)
    assert d.wait() == 0 and not is_mounted(d.mountpoint)
    with open(path, "rb") as f:
        assert f.read(BLOCK) == b"x" * BLOCK
