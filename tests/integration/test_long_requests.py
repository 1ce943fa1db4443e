# SPDX-License-Identifier: GPL-2.0-or-later
"""One request for a whole huge disk: it ends when its caller dies, when the daemon ends, and after the first error."""

import errno
import os
import select
import signal
import subprocess
import time

import pytest

from mounted import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, SECTOR, fallocate, quote

T10 = 10 << 31          # sectors of 10 TiB
EIB8 = (1 << 54) - 128  # nearly 8 EiB, in whole blocks
ZERO, PUNCH = FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def crypt(fs, backing):
    fs.mkdir("below", f"0 {T10} zero")
    return fs.mkdir("vol", f"0 {T10} crypt aes-xts-plain64 {'11' * 32} 0 below 0 1 allow_discards"), ZERO


def log_writes(fs, backing):
    fs.mkdir("below", f"0 {T10} zero")
    fs.mkdir("journal", f"0 {EIB8} zero")
    return fs.mkdir("vol", f"0 {T10} log-writes below journal"), ZERO


def mirror(fs, backing):
    fs.mkdir("a", f"0 {T10} zero")
    fs.mkdir("b", f"0 {T10} zero")
    return fs.mkdir("vol", f"0 {T10} mirror core 2 131072 nosync 2 a 0 b 0"), ZERO


def snapshot_origin(fs, backing):
    fs.mkdir("below", f"0 {EIB8} zero")
    return fs.mkdir("vol", f"0 {EIB8} snapshot-origin below"), ZERO


def thin(fs, backing, mode=ZERO):
    fs.mkdir("data", f"0 {T10} zero")
    fs.mkdir("pool", f"0 {T10} thin-pool {quote(backing(1 << 18))} data 128 0").message("create_thin 0")
    return fs.mkdir("vol", f"0 {EIB8} thin pool 0"), mode


def thin_provision(fs, backing):
    return thin(fs, backing, 0)


def snapshot(fs, backing):
    """Its COW is full, or it is, long before the end."""
    fs.mkdir("below", f"0 {T10} zero")
    fs.mkdir("cow", f"0 {T10} zero")
    return fs.mkdir("vol", f"0 {T10} snapshot below cow N 128 1 discard_zeroes_cow"), ZERO


def several_lines(fs, backing):
    """A table of many lines, each of which takes its part."""
    fs.mkdir("below", f"0 {T10} zero")
    fs.mkdir("crypt", f"0 {T10} crypt aes-xts-plain64 {'11' * 32} 0 below 0")
    return fs.mkdir("vol", *(f"{i << 30} {1 << 30} linear crypt {i << 30}" for i in range(16))), ZERO


LONG = [crypt, log_writes, mirror, snapshot_origin, thin, thin_provision, snapshot, several_lines]
SCRIPT = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *a: None)
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
fd = os.open(sys.argv[1], os.O_RDWR)
print("now", flush=True)
sys.exit(libc.fallocate(fd, int(sys.argv[2]), 0, int(sys.argv[3])) and ctypes.get_errno())
"""


@pytest.fixture
def caller():
    """caller(DEV, MODE, LENGTH): a process that is in fallocate(2); killed at the end."""
    made = []

    def start(dev, mode, length=None):
        p = subprocess.Popen(["/usr/bin/python3", "-c", SCRIPT, dev.image, str(mode), str(length or dev.size())],
                             stdout=subprocess.PIPE)
        made.append(p)
        assert p.stdout.readline() == b"now\n"
        return p

    yield start
    for p in made:
        p.kill()
        p.wait(300)
        p.stdout.close()


def busy(fs, ticks=3):
    """Waits until the daemon has computed for a while: it is in the middle of it."""
    begun, end = fs.cpu_ticks(), time.monotonic() + 300
    while fs.cpu_ticks() < begun + ticks:
        assert time.monotonic() < end
        select.select([], [], [], 0.005)


def ended_soon(process, seconds=60):
    """A second is promised, it would take hours, and this machine may be a slow one."""
    begun = time.monotonic()
    code = process.wait(300)
    assert time.monotonic() - begun < seconds
    return code


@pytest.mark.parametrize("make", LONG)
def test_it_ends_with_its_caller(fs, backing, caller, make):
    dev, mode = make(fs, backing)
    p = caller(dev, mode)
    busy(fs)
    if p.poll() is None:
        p.kill()
        assert ended_soon(p) == -signal.SIGKILL
    else:
        assert make is snapshot and p.returncode
    dev.pread(4096, 0)
    dev.remove()        # nobody uses it any more


def test_other_signals_do_not_end_it(fs, backing, caller):
    dev, mode = crypt(fs, backing)
    p = caller(dev, mode, 1 << 30)
    p.send_signal(signal.SIGUSR1)
    assert p.wait(300) == 0
    p = caller(dev, mode)
    busy(fs)
    p.send_signal(signal.SIGUSR1)       # the only one that FUSE tells of
    busy(fs)
    assert p.poll() is None
    p.kill()
    assert ended_soon(p) == -signal.SIGKILL


@pytest.mark.parametrize("make", LONG)
def test_it_ends_with_the_daemon(dmfs, backing, caller, make):
    d = dmfs()
    dev, mode = make(d, backing)
    p = caller(dev, mode)
    busy(d)
    d.signal(signal.SIGTERM)
    begun = time.monotonic()
    d.wait(300)
    assert time.monotonic() - begun < 60
    assert p.wait(300)


@pytest.mark.parametrize("mode", [ZERO, PUNCH])
def test_it_ends_with_the_first_error(fs, caller, mode):
    """Not hours later."""
    fs.mkdir("error", f"0 {EIB8} error")
    key = f"crypt aes-xts-plain64 {'11' * 32} 0 error 0 1 allow_discards"
    for dev in (fs.mkdir("c", f"0 {EIB8} {key}"), fs.mkdir("m", f"0 {T10} mirror core 2 131072 nosync 2 error 0 c 0"),
                fs.mkdir("lines", *(f"{i << 33} {1 << 33} linear error 0" for i in range(1000)))):
        assert ended_soon(caller(dev, mode)) == errno.EIO, dev.name


def test_many_of_them_leave_others_alone(fs, backing, caller):
    dev, mode = crypt(fs, backing)
    other = fs.mkdir("other", "0 8 zero")
    callers = [caller(fs.mkdir(f"top{i}", f"0 {T10} linear vol 0"), mode) for i in range(8)]
    callers += [caller(dev, mode) for _ in range(8)]        # one after the other: the kernel locks a file for it
    busy(fs, 20)
    begun = time.monotonic()
    assert other.status() == "0 8 zero\n" and other.pread(4096, 0) == bytes(4096)
    assert time.monotonic() - begun < 60
    for p in callers:
        p.kill()
    for p in callers:
        assert p.wait(300) == -signal.SIGKILL


def test_a_range_is_done_as_a_whole_if_nobody_minds(fs, backing):
    """A discard and zeroes through a stack, of more parts than are under way at once."""
    path = backing(1 << 19, data=b"x" * (1 << 20))
    fs.mkdir("a", f"0 {1 << 19} linear {quote(path)} 0")
    dev = fs.mkdir("vol", f"0 {1 << 19} striped 1 8 a 0")
    with dev.open() as fd:
        fallocate(fd, ZERO, 0, (1 << 19) * SECTOR)
        assert os.pread(fd, 1 << 20, 0) == bytes(1 << 20)
        fallocate(fd, PUNCH, 0, (1 << 19) * SECTOR)
    assert os.stat(path).st_blocks == 0
