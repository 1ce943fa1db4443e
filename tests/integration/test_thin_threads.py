# SPDX-License-Identifier: GPL-2.0-or-later
"""thin-pool and thin: many at once, and what waits."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading

import pytest

from mounted import pattern, quote
from thinpool import BLOCK, BS, Pool, tool


# --- many at once -------------------------------------------------------------------------------------


def test_threads_on_shared_blocks(pool):
    """Writers of the same blocks, snapshots meanwhile: every write is there, every snapshot one moment's image."""
    p = pool(blocks=3000)
    t = p.thin(0, blocks=64)
    slots = 64 * BLOCK // 4096
    errors = []

    def writer(k):
        rng = random.Random(k)
        try:
            with t.open() as fd:
                for n in range(300):
                    at = rng.randrange(k, slots, 4)
                    os.pwrite(fd, bytes([n & 255]) * 4096, at * 4096)
                    if os.pread(fd, 4096, at * 4096) != bytes([n & 255]) * 4096:
                        errors.append((k, n))
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=writer, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    snaps = [p.snap(i, 0, t, blocks=64) for i in range(1, 6)]
    for thread in threads:
        thread.join()
    assert not errors
    for s in snaps:
        image = s.pread(64 * BLOCK, 0)
        assert image == s.pread(64 * BLOCK, 0)
        for i in range(slots):
            page = image[i * 4096:(i + 1) * 4096]
            assert page == page[:1] * 4096


def test_discards_and_writes_at_once(pool):
    p = pool(blocks=100)
    t = p.thin(0, blocks=64)
    stop = threading.Event()

    def discard():
        rng = random.Random(4)
        while not stop.is_set():
            t.discard(rng.randrange(32) * BLOCK, BLOCK * rng.randrange(1, 32))

    thread = threading.Thread(target=discard)
    thread.start()
    try:
        with t.open() as fd:
            for n in range(400):
                at = n % 60 * BLOCK
                os.pwrite(fd, bytes([n & 255]) * 8192, at + 4096)
                got = os.pread(fd, 8192, at + 4096)
                assert got in (bytes(8192), bytes([n & 255]) * 8192)
    finally:
        stop.set()
        thread.join()


def test_reload_while_blocks_come_from_another_volume_of_the_pool(pool):
    """Who copies a block reads the origin; a pool that stops must let it."""
    p = pool(blocks=800)
    origin = p.thin(0, blocks=300)
    origin.pwrite(pattern(300 * BS), 0, sync=True)
    t = p.thin(1, blocks=300, extra=" thin0")
    errors = []

    def write(first):
        try:
            with t.open() as fd:
                for block in range(first, 300, 3):
                    os.pwrite(fd, b"z" * 4096, block * BLOCK)
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        p.reload()
    for thread in threads:
        thread.join()
    assert not errors
    want = bytearray(pattern(300 * BS))
    for block in range(300):
        want[block * BLOCK:block * BLOCK + 4096] = b"z" * 4096
    assert t.pread(len(want), 0) == want
    t.remove()          # before its origin


def test_suspend_and_reload_under_load(pool):
    p = pool(blocks=600)
    t = p.thin(0, blocks=256)
    stop = threading.Event()
    errors = []

    def load():
        rng = random.Random(8)
        try:
            with t.open() as fd:
                while not stop.is_set():
                    at = rng.randrange(256 * BLOCK // 4096) * 4096
                    os.pwrite(fd, b"z" * 4096, at)
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(20):
        if i % 3 == 0:
            p.reload()
        elif i % 3 == 1:
            t.suspend(noflush=i % 2)
            t.resume()
        else:
            p.dev.suspend()
            p.dev.resume()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


def test_deleting_a_big_volume(pool):
    p = pool(blocks=20000, features="1 skip_block_zeroing", meta_sectors=16384)
    t = p.thin(0, blocks=20000)
    with t.open() as fd:
        for i in range(8000):
            os.pwrite(fd, b"d" * 512, i * BLOCK)
    t.remove()
    other = p.thin(1)
    p.message("delete 0")
    assert p.used() == 0
    other.pwrite(pattern(BS), 0, sync=True)
    with pytest.raises(OSError) as e:
        p.thin(0, create=False)
    assert e.value.errno == errno.ENODATA
    p.fs["thin0"].remove()


# --- what waits ------------------------------------------------------------------------------------

WRITERS = 300

# Each thread writes 4 KiB into a block of its own.  "up" when all are about to; then how many could.
MANY_WRITERS = """
import mmap, os, sys, threading
path, n, block = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd, buf, done = os.open(path, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096), []
buf[:] = b"w" * 4096
ready = threading.Barrier(n + 1)
def write(i):
    ready.wait()
    try:
        done.append(os.pwrite(fd, buf, i * block) == 4096)
    except OSError:
        done.append(False)
threads = [threading.Thread(target=write, args=(i,)) for i in range(n)]
for t in threads:
    t.start()
ready.wait()
print("up", flush=True)
for t in threads:
    t.join()
print(sum(done))
"""


@pytest.fixture
def stacked(fs, backing):
    """A pool whose data device is a dmfs device with this line above a file."""
    made = []

    def make(line, blocks):
        path, on = backing(blocks * BS), iter([backing(8192), "data"])
        data = fs.mkdir("data", f"0 {blocks * BS} {line.format(quote(path))}")
        made.append(Pool(fs, lambda *_, **__: next(on), blocks=blocks))
        return made[-1], data

    yield make
    for p in made:
        names = [name for name in fs.devices() if name not in (p.dev.name, "data")]
        fs["data"].resume()
        for name in names + [p.dev.name, "data"]:
            fs[name].remove()


def test_first_writes_that_wait_hold_up_nobody(fs, stacked):
    """The data device is suspended: what waits for it costs no thread, and everything else goes on."""
    p, data = stacked("linear {} 0", 2 * WRITERS)
    t = p.thin(0, blocks=2 * WRITERS)
    t.pwrite(b"m" * 4096, (2 * WRITERS - 1) * BLOCK, sync=True)
    other = fs.mkdir("other", "0 8 zero")
    data.suspend()
    before = len(os.listdir(f"/proc/{fs.pid}/task"))
    writers = subprocess.Popen([sys.executable, "-c", MANY_WRITERS, t.image, str(WRITERS), str(BLOCK)],
                               stdout=subprocess.PIPE, text=True)
    try:
        assert writers.stdout.readline() == "up\n"
        states = [] # until all of them wait
        while set(states) - {"S", "D"} or len(states) != WRITERS + 1:
            states = [open(f"/proc/{writers.pid}/task/{n}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()[0]
                      for n in os.listdir(f"/proc/{writers.pid}/task")]
            assert writers.poll() is None
        assert other.pread(4096, 0) == bytes(4096)
        assert other.table().strip() == "0 8 zero"
        assert "thin0" in fs.devices() and t.status()
        assert len(os.listdir(f"/proc/{fs.pid}/task")) <= before + 16, "a write that waits parks a thread"
        data.resume()
        assert writers.communicate(timeout=300)[0] == f"{WRITERS}\n"
    finally:
        writers.kill()
        writers.communicate()
    assert p.used() == WRITERS + 1
    for i in (0, WRITERS - 1):
        assert t.pread(8192, i * BLOCK) == b"w" * 4096 + bytes(4096)


def test_a_volume_written_in_parallel_is_in_one_piece(pool, loop):
    """The loop device sends many requests at once, and they come in any order: blocks are allocated in theirs."""
    blocks = 2048
    p = pool(blocks=blocks + 10)
    t = p.thin(0, blocks=blocks)
    dev = loop(t.image, "--direct-io=on")
    subprocess.run(["dd", "if=/dev/zero", f"of={dev}", "bs=128M", "count=1", "oflag=direct", "status=none"], check=True,
                   timeout=300)
    subprocess.run(["losetup", "-d", dev], check=True, timeout=300)
    assert p.used() == blocks
    p.close()
    dump = tool("thin_dump", p.meta).stdout
    pieces = len(re.findall("<(?:range|single)_mapping", dump))
    print(f"{pieces} mappings")
    assert pieces <= blocks // 32, "a few; how many is up to how busy the machine is"


def later(fn):
    """Runs fn in a thread; what it returned or raised is in the thread's `result`."""
    thread = threading.Thread(target=lambda: result(thread))

    def result(thread):
        try:
            thread.result = fn()
        except OSError as e:
            thread.result = e.errno
    thread.start()
    return thread


@pytest.mark.parametrize("noflush", (False, True))
def test_a_volume_stays_as_it_is_while_its_pool_is_suspended(pool, noflush):
    """As in the kernel: suspend and resume of the volume wait for the resume of the pool; status does not."""
    p = pool()
    t, s = p.thin(0), p.thin(1)
    s.suspend()
    p.dev.suspend()
    t.resume()      # it is not suspended: nothing to wait for
    s.suspend()     # it is already
    threads = [later(lambda: t.suspend(noflush=noflush)), later(s.resume)]
    for thread in threads:
        thread.join(0.3)
        assert thread.is_alive()
    assert not t.suspended() and s.suspended() and t.status()
    p.dev.resume()
    for thread in threads:
        thread.join(300)
        assert thread.result is None
    assert t.suspended() and not s.suspended()
    t.resume()
    p.dev.suspend()
    s.remove()      # goes at once
    p.dev.resume()


def test_waiting_for_the_pool_is_interruptible(pool):
    p = pool()
    t = p.thin(0)
    p.dev.suspend()
    waiting = subprocess.Popen(["sh", "-c", 'echo 1 >"$1"', "sh", t.file("suspend")])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.3)
    waiting.terminate()
    assert waiting.wait(300) == -signal.SIGTERM
    p.dev.resume()
    assert not t.suspended()
    t.pwrite(b"x" * 4096, 0, sync=True)
