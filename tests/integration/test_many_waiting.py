# SPDX-License-Identifier: GPL-2.0-or-later
"""Thousands of requests that wait for some devices hold up nothing else: other devices, control files, closes."""

import contextlib
import errno
import mmap
import os
import subprocess

import pytest

import aio
import mounted
from mounted import quote

DEVICES = 8
SECTORS = 16384
BLOCK = 4096


def kernel_limit():
    """How many asynchronous requests the kernel lets a mount of this user have under way."""
    if os.geteuid() == 0:
        return 65535
    with open("/sys/module/fuse/parameters/max_user_bgreq", encoding="ascii") as f:
        return int(f.read())


EACH = min(2000, (kernel_limit() - 256) // DEVICES) if not mounted.why_no_mount() else 2000


@pytest.fixture
def requests():
    """requests(device, n, op): so many direct requests of a page each, waiting; resumed or not, they end with the test."""
    if not aio.available():
        pytest.skip("no numbers of the AIO system calls for this machine")
    made = []

    def make(dev, n, op=aio.READ, size=BLOCK):
        a = aio.Aio(n, size)
        made.append((dev, a, os.open(dev.image, os.O_RDWR | os.O_DIRECT)))
        a.submit(made[-1][2], [i * size % (SECTORS * 512) for i in range(n)], op)
        return a

    yield make
    for dev, a, fd in made:
        with contextlib.suppress(OSError):      # it is gone, or its daemon; else closing would wait
            dev.resume()
        a.close()
        os.close(fd)


def suspended_with_requests(fs, requests, path, n, op=aio.READ):
    devices = [fs.mkdir(f"s{i}", f"0 {SECTORS} linear {path} 0") for i in range(DEVICES)]
    for dev in devices:
        dev.suspend()
    return devices, [requests(dev, n, op) for dev in devices]


def read_all(dev, flags):
    """A thousand reads."""
    buf = mmap.mmap(-1, BLOCK)
    with dev.open(os.O_RDONLY | flags) as fd:
        if not flags:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for i in range(1000):
            assert os.preadv(fd, [buf], i * BLOCK) == BLOCK


@pytest.mark.parametrize("op", [aio.READ, aio.WRITE], ids=["reads", "writes"])
def test_a_ninth_device_goes_on(dmfs, backing, requests, op):
    path = quote(backing(SECTORS, mounted.pattern(SECTORS)))
    fs = dmfs()
    ninth = fs.mkdir("ninth", f"0 {SECTORS} linear {path} 0")
    memory, files = fs.rss_kib(), len(os.listdir(f"/proc/{fs.pid}/fd"))
    devices, waiting = suspended_with_requests(fs, requests, path, EACH, op)
    for flags in (os.O_DIRECT, 0):      # how fast, compared with a daemon where nothing waits: row `waiting` of the bench
        read_all(ninth, flags)

    # A buffered read of pages that nobody has read yet: read-ahead is asynchronous, too.
    last = fs.mkdir("last", f"0 {SECTORS} linear {path} 0")
    assert last.pread(SECTORS * 512, 0) == mounted.pattern(SECTORS)
    # Its close has come, so it can be removed at once; RELEASE is asynchronous.
    last.remove()
    assert ninth.table() and fs.read("version")
    each = (fs.rss_kib() - memory) / (DEVICES * EACH)
    assert each < (24 if mounted.sanitized() else 12), f"{each} KiB for each request that waits"
    for dev, a in zip(devices, waiting):
        assert not a.reap(1, 0)
        dev.resume()
        assert a.reap(EACH) == [BLOCK] * EACH
    assert len(os.listdir(f"/proc/{fs.pid}/fd")) < files + 32


@pytest.mark.root
def test_loop_devices_on_suspended_volumes(fs, backing, loop, requests):
    """As when people take a consistent snapshot of several: each has a file system on a loop device."""
    path = quote(backing(SECTORS, mounted.pattern(SECTORS)))
    devices = [fs.mkdir(f"v{i}", f"0 {SECTORS} linear {path} 0") for i in range(4)]
    loops = [loop(dev.image, "--direct-io=on") for dev in devices]
    for dev in devices[:3]:
        dev.suspend()
    if not aio.available():
        pytest.skip("no AIO here")
    waiting = []
    for dev in loops[:3]:
        a, fd = aio.Aio(96), os.open(dev, os.O_RDONLY | os.O_DIRECT)
        waiting.append((a, fd))
        a.submit(fd, [i * BLOCK for i in range(96)])
    try:
        for flags in (os.O_DIRECT, 0):
            fd = os.open(loops[3], os.O_RDONLY | flags)
            assert os.preadv(fd, [mmap.mmap(-1, BLOCK)], 40 * BLOCK) == BLOCK
            os.close(fd)
        other = fs.mkdir("other", f"0 {SECTORS} linear {path} 0")
        other.pread(BLOCK, 0)
        other.remove()
        assert not any(a.reap(1, 0) for a, _ in waiting)
    finally:
        for dev in devices[:3]:
            dev.resume()
        for a, fd in waiting:
            a.close()
            os.close(fd)


def test_the_data_of_waiting_writes_is_bounded(dmfs, backing, requests):
    """-o max_waiting: what is beyond fails with ENOMEM, and nothing else does."""
    d = dmfs(options="max_waiting=8")
    path = quote(backing(SECTORS))
    dev, other = (d.mkdir(name, f"0 {SECTORS} linear {path} 0") for name in ("dev", "other"))
    dev.suspend()
    a = requests(dev, 200, aio.WRITE, 65536)
    refused = a.reap(200 - 128, 60)
    assert refused == [-errno.ENOMEM] * len(refused) and 60 <= len(refused) <= 72
    # reads need no room, and control files, and what is small enough is written
    b = requests(dev, 200, aio.READ, 65536)
    assert not b.reap(1, 0)
    assert other.pread(1 << 20, 0) == bytes(1 << 20)
    assert "max_waiting" in d.read("log")
    with pytest.raises(OSError) as e:
        with other.open(os.O_WRONLY | os.O_DIRECT) as fd:
            os.pwritev(fd, [mmap.mmap(-1, 1 << 20)], 0)
    assert e.value.errno == errno.ENOMEM
    dev.resume()
    assert a.reap(200) == [65536] * (200 - len(refused))
    assert b.reap(200) == [65536] * 200
    with other.open(os.O_WRONLY | os.O_DIRECT) as fd:
        assert os.pwritev(fd, [mmap.mmap(-1, 1 << 20)], 0) == 1 << 20


def test_unaligned_writes_that_wait_are_bounded_too(dmfs, backing):
    d = dmfs(options="max_waiting=1")
    path = quote(backing(SECTORS))
    dev = d.mkdir("dev", f"0 {SECTORS} linear {path} 0")
    dev.suspend()
    writers = [subprocess.Popen(["dd", "if=/dev/zero", f"of={dev.image}", "bs=200001", "count=1", "oflag=seek_bytes,direct",
                                 f"seek={i * 300000 + 1}", "conv=notrunc"], stderr=subprocess.PIPE, text=True)
               for i in range(5)]
    try:
        for w in writers:
            mounted.wait_until_waiting(w)
        late = subprocess.run(["dd", "if=/dev/zero", f"of={dev.image}", "bs=200001", "count=1", "oflag=direct",
                               "conv=notrunc"], stderr=subprocess.PIPE, text=True)
        assert late.returncode and "Cannot allocate memory" in late.stderr
        dev.resume()
        for w in writers:
            assert w.wait(300) == 0
    finally:
        if dev.suspended():
            dev.resume()
        for w in writers:
            w.kill()
            w.communicate()
