# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that is killed while its I/O waits leaves at once; what had not begun has changed nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import mounted
from mounted import quote

SECTORS = 8192
BLOCK = 4096
HOUR = 3600000

PREPARE = """
import ctypes, mmap, os, sys, threading
sys.path.insert(0, sys.argv[2])
import aio
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
buf = mmap.mmap(-1, 65536)
buf.write(b'n' * 65536)
def fallocate(mode, offset, length):
    ctypes.CDLL(None).fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
def buffered():
    return os.open(sys.argv[1], os.O_RDWR)
"""
# What waits, and whether it would change something
ASKERS = {
    "read": ("os.preadv(fd, [buf], 0)", False),
    "buffered read": ("os.pread(buffered(), 4096, 0)", False),
    "unaligned read": ("os.pread(fd, 700, 300)", False),
    "large read": ("os.preadv(fd, [mmap.mmap(-1, 1 << 20)], 0)", False),
    "write": ("os.pwritev(fd, [buf], 0)", True),
    "buffered write": ("os.pwrite(buffered(), bytes(buf), 0)", True),
    "unaligned write": ("os.pwrite(fd, b'n' * 700, 300)", True),
    "write behind an unaligned one": (
        "threading.Thread(target=os.pwrite, args=(fd, b'n' * 700, 300)).start()\n"
        "threading.Thread(target=os.pwrite, args=(fd, b'n' * 700, 400)).start()\n"
        "os.pwritev(fd, [buf], 0)", True),
    "fsync": ("os.fsync(fd)", False),
    "discard": ("fallocate(3, 0, 65536)", True),
    "zeroes": ("fallocate(16, 0, 65536)", True),
    "many threads": ("for i in range(20): threading.Thread(target=os.preadv, args=(fd, [buf], 0)).start()", False),
    "asynchronous reads": ("a = aio.Aio(64, 65536); a.submit(fd, [0] * 64); print('sent', flush=True); a.reap(1, 3600)",
                           False),
    "asynchronous writes": ("a = aio.Aio(64, 65536); a.buf[:] = b'n' * 65536\\n"
                            "a.submit(fd, [0] * 64, aio.WRITE); print('sent', flush=True); a.reap(1, 3600)", True),
    "asynchronous reads of a thread": (
        "a = aio.Aio(64, 65536)\\n"
        "def run(): a.submit(fd, [0] * 64); print('sent', flush=True); a.reap(1, 3600)\\n"
        "threading.Thread(target=run).start()", False),
}


@contextlib.contextmanager
def asker(dev, what):
    code = PREPARE + "print('going', flush=True)\n" + ASKERS[what][0].replace("\\n", "\n")
    lib = os.path.join(os.path.dirname(mounted.__file__))
    with subprocess.Popen([sys.executable, "-c", code, dev.image, lib], stdout=subprocess.PIPE, text=True) as p:
        try:
            assert p.stdout.readline() == "going\n"
            if "asynchronous" in what:
                assert p.stdout.readline() == "sent\n"
            else:
                mounted.wait_until_waiting(p)
                assert p.poll() is None, "it did not wait"
            yield p
        finally:
            p.kill()
            try:
                p.wait(300)
            except subprocess.TimeoutExpired:
                dev.mount.kill()        # so that the test can end


def leaves_at_once(p, seconds=60):
    """A second is promised, what it waits for takes an hour, and this machine may be a slow one."""
    start = time.monotonic()
    p.send_signal(signal.SIGKILL)
    assert p.wait(300) == -signal.SIGKILL
    assert time.monotonic() - start < seconds, f"{time.monotonic() - start} s"


@pytest.fixture
def data():
    return mounted.pattern(SECTORS)


@pytest.mark.parametrize("what", ASKERS)
def test_it_waits_for_a_suspended_device(fs, backing, data, what):
    path = backing(SECTORS, data)
    below = fs.mkdir("below", f"0 {SECTORS} linear {quote(path)} 0")
    # a little of everything that a bio goes through
    fs.mkdir("middle", f"0 {SECTORS // 2} linear below 0", f"{SECTORS // 2} {SECTORS // 2} linear below {SECTORS // 2}")
    dev = fs.mkdir("vol", f"0 {SECTORS} linear middle 0")
    for suspended in (dev, below):
        suspended.suspend()
        with asker(dev, what) as p:
            leaves_at_once(p)
        suspended.resume()
        if ASKERS[what][1]:
            with open(path, "rb") as f:
                assert f.read() == data
        assert dev.pread(SECTORS * 512, 0) == data
    dev.pwrite(b"x" * 700, 300)
    assert dev.pread(700, 300) == b"x" * 700
    for name in ("vol", "middle", "below"):
        fs[name].remove()


def test_a_handled_signal_is_no_death(fs, backing, data):
    """The kernel tells of it just so, but the I/O goes on; a later SIGKILL, of which it tells no more, is found out."""
    dev = fs.mkdir("vol", f"0 {SECTORS} linear {quote(backing(SECTORS, data))} 0")
    code = ("import mmap, os, signal, sys\n"
            "signal.signal(signal.SIGUSR1, lambda *a: None)\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
            "buf = mmap.mmap(-1, 4096)\n"
            "assert os.preadv(fd, [buf], 0) == 4096\n"
            "os.write(1, bytes(buf))\n")
    for killed in (False, True):
        dev.suspend()
        with subprocess.Popen([sys.executable, "-c", code, dev.image], stdout=subprocess.PIPE) as p:
            mounted.wait_until_waiting(p)
            p.send_signal(signal.SIGUSR1)
            time.sleep(1.2)     # two looks at it: nothing is to happen
            assert p.poll() is None
            if killed:
                leaves_at_once(p)
            dev.resume()
            if not killed:
                assert p.stdout.read() == data[:BLOCK] and p.wait(300) == 0


def test_a_process_that_exits_by_itself_has_its_writes(fs, backing, data):
    """It does not wait for its asynchronous writes, and so is not killed: they are made."""
    path = backing(SECTORS, data)
    dev = fs.mkdir("vol", f"0 {SECTORS} linear {quote(path)} 0")
    dev.suspend()
    code = PREPARE + "a = aio.Aio(4, 65536); a.buf[:] = b'n' * 65536; a.submit(fd, [0, 65536], aio.WRITE); os._exit(0)"
    with subprocess.Popen([sys.executable, "-c", code, dev.image, os.path.dirname(mounted.__file__)]) as p:
        time.sleep(1.5)         # looks at it
        dev.resume()
        assert p.wait(300) == 0
    with open(path, "rb") as f:
        assert f.read() == b"n" * 131072 + data[131072:]


def test_others_that_wait_for_the_same_go_on(fs, backing, data):
    dev = fs.mkdir("vol", f"0 {SECTORS} linear {quote(backing(SECTORS, data))} 0")
    dev.suspend()
    with asker(dev, "read") as dies, asker(dev, "read") as lives, asker(dev, "buffered read") as too:
        leaves_at_once(dies)
        time.sleep(0.6)
        assert lives.poll() is None and too.poll() is None
        dev.resume()
        assert lives.wait(300) == 0 and too.wait(300) == 0


def delayed(d, backing, serve, path):
    return d.mkdir("vol", f"0 {SECTORS} delay {quote(path)} 0 {HOUR}"), None


def server_gone(d, backing, serve, path):
    server = serve.qemu(path)
    dev = d.mkdir("vol", f"0 {SECTORS} linear {server.uri} 0")
    assert dev.pread(BLOCK, 0)
    server.kill()
    return dev, server


WRITES = ["write", "unaligned write", "asynchronous writes"]
KINDS = [(delayed, "read"), (delayed, "fsync"), *((delayed, w) for w in WRITES), (delayed, "discard"),
         (server_gone, "read"), (server_gone, "fsync"), (server_gone, "asynchronous reads"), *((server_gone, w) for w in WRITES),
         (server_gone, "discard"), (server_gone, "zeroes")]


@pytest.mark.parametrize("kind,what", KINDS, ids=lambda p: getattr(p, "__name__", p))
def test_it_waits_for_something_else(dmfs, backing, serve, data, kind, what):
    d = dmfs()
    path = backing(SECTORS, data)
    dev, server = kind(d, backing, serve, path)
    with asker(dev, what) as p:
        leaves_at_once(p)
    with open(path, "rb") as f:
        assert f.read() == data
    if server:
        server.start()
        assert dev.pread(SECTORS * 512, 0) == data


def test_a_write_on_its_way_to_a_server_is_not_broken_off(fs, backing, serve):
    """Nobody knows whether it was done: so it is done, and whoever asked waits for that."""
    path = backing(SECTORS)
    gate = path + ".open"
    server = serve.nbdkit(
        "eval", f"get_size=echo {SECTORS * 512}", "can_flush=true", f"flush=sync {path}",
        f"pread=dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes 2>/dev/null",
        f"pwrite=touch {path}.begun; until [ -e {gate} ]; do sleep 0.02; done; "
        f"dd of={path} seek=$4 conv=notrunc oflag=seek_bytes 2>/dev/null")
    dev = fs.mkdir("vol", f"0 {SECTORS} linear {server.uri} 0")
    try:
        with asker(dev, "write") as p:
            while not os.path.exists(path + ".begun"):
                time.sleep(0.01)        # looks again
            p.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                p.wait(1.2)             # two looks at it
            open(gate, "w", encoding="ascii").close()
            p.wait(300)
            with open(path, "rb") as f:
                assert f.read(65536) == b"n" * 65536
    finally:
        open(gate, "w", encoding="ascii").close()


@pytest.mark.parametrize("what", ["read", "fsync", "asynchronous reads"])
def test_it_waits_for_a_store_that_hangs(dmfs, backing, data, what):
    """A read is answered; it goes on inside without anybody, and until it ends the device is in use."""
    server, d = dmfs(), dmfs()
    server.mkdir("vol", f"0 {SECTORS} linear {quote(backing(SECTORS, data))} 0")
    dev = d.mkdir("far", f"0 {SECTORS} linear {quote(server['vol'].image)} 0")
    dev.pwrite(b"x" * BLOCK, 0)
    server.stop()
    try:
        with asker(dev, what) as p:
            leaves_at_once(p)
        with pytest.raises(OSError):
            dev.remove()
    finally:
        server.go()
    assert dev.pread(BLOCK, 0) == b"x" * BLOCK
    end = time.monotonic() + 300
    while True:
        try:
            dev.remove()
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)        # looks again


# --- targets that keep bios ------------------------------------------------------------------------

def pool_without_space(fs, pool, data):
    pool.message("create_thin 1")
    other = fs.mkdir("other", f"0 {SECTORS} thin pool 1")
    other.pwrite(bytes(SECTORS * 512), 0, sync=True)    # all there is
    return lambda: other.discard(0, SECTORS * 512)


def pool_suspended(fs, pool, data):
    pool.suspend()
    return pool.resume


def data_suspended(fs, pool, data):
    data.suspend()
    return data.resume


@pytest.mark.parametrize("way", (pool_without_space, pool_suspended, data_suspended), ids=lambda f: f.__name__)
@pytest.mark.parametrize("what", ("write", "unaligned write", "asynchronous writes"))
def test_it_waits_in_a_pool(fs, backing, way, what):
    """Nothing is mapped for who is dead, and others go on."""
    data = fs.mkdir("data", f"0 {SECTORS} linear {quote(backing(SECTORS))} 0")
    pool = fs.mkdir("pool", f"0 {SECTORS} thin-pool {quote(backing(8192))} data 128 0")
    pool.message("create_thin 0")
    dev = fs.mkdir("vol", f"0 {SECTORS} thin pool 0")
    go_on = way(fs, pool, data)
    with asker(dev, what) as p:
        with asker(dev, "write") as lives:
            leaves_at_once(p)
            assert lives.poll() is None
            go_on()
            assert lives.wait(300) == 0
    assert dev.status().split()[3] == "128"
    assert dev.pread(65536, 0) == b"n" * 65536


@pytest.mark.parametrize("what", ("write", "asynchronous writes"))
def test_it_waits_in_a_mirror(fs, backing, what):
    """A leg has failed: writes are kept until somebody looks at it."""
    good = backing(SECTORS)
    fs.mkdir("leg", f"0 {SECTORS} error")
    dev = fs.mkdir("vol", f"0 {SECTORS} mirror core 2 128 nosync 2 {quote(good)} 0 leg 0 1 handle_errors")
    with asker(dev, what) as p:
        leaves_at_once(p)
    with asker(dev, "write") as p:
        leaves_at_once(p)
    dev.load(f"0 {SECTORS} linear {quote(good)} 0")
    dev.pwrite(b"x" * BLOCK, 0, sync=True)
