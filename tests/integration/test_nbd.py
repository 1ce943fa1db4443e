# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores on NBD servers: real ones, nbdkit and qemu-nbd."""

import errno
import os
import random
import re
import subprocess
import threading
import time

import pytest

import mounted
from mounted import SECTOR

SECTORS = 8192
SIZE = SECTORS * SECTOR


@pytest.fixture(params=["nbdkit", "qemu"])
def served(request, serve, backing):
    """A file full of data, and a server of it."""
    path = backing(SECTORS, os.urandom(SIZE))
    server = serve.nbdkit("file", path) if request.param == "nbdkit" else serve.qemu(path, "--discard=unmap")
    return path, server


def linear(uri, sectors=SECTORS, at=0):
    return f"0 {sectors} linear {uri} {at}"


def content(path):
    with open(path, "rb") as f:
        return f.read()


def scatter(dev, expected, rnd, count, sync=False):
    for _ in range(count):
        at, n = rnd.randrange(SIZE - 70000), rnd.choice([1, 511, 512, 4096, 65537])
        data = rnd.randbytes(n)
        dev.pwrite(data, at, sync=sync)
        expected[at:at + n] = data


def test_data(fs, served):
    path, server = served
    expected = bytearray(content(path))
    dev = fs.mkdir("n", linear(server.uri))
    assert dev.pread(SIZE, 0) == expected
    scatter(dev, expected, random.Random(1), 60)
    assert dev.pread(SIZE, 0) == expected
    with dev.open() as fd:
        os.fsync(fd)
    assert content(path) == expected


def test_the_table_prints_the_uri_and_loads_again(fs, served):
    _, server = served
    dev = fs.mkdir("n", linear(server.uri, SECTORS - 8, 8))
    assert dev.table() == linear(server.uri, SECTORS - 8, 8) + "\n"
    dev.load(dev.table())
    assert dev.size() == SIZE - 8 * SECTOR


def test_trim_and_zeroes(fs, served):
    path, server = served
    expected = bytearray(content(path))
    dev = fs.mkdir("n", linear(server.uri))
    before = os.stat(path).st_blocks
    dev.discard(1 << 20, 1 << 20)
    expected[1 << 20:2 << 20] = bytes(1 << 20)
    dev.zero(4096 + 512, 3 * 512)
    expected[4096 + 512:4096 + 4 * 512] = bytes(3 * 512)
    with dev.open() as fd:
        os.fsync(fd)
    assert dev.pread(SIZE, 0) == expected
    assert content(path) == expected
    assert os.stat(path).st_blocks <= before - (1 << 20) // 512 + 16, "the server has given the space back"


def test_holes_are_seen(fs, serve, backing):
    path = backing(SECTORS)
    with open(path, "r+b") as f:
        f.seek(2 << 20)
        f.write(os.urandom(65536))
    dev = fs.mkdir("n", linear(serve.nbdkit("file", path).uri))
    with dev.open(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 2 << 20
        assert os.lseek(fd, 2 << 20, os.SEEK_HOLE) == (2 << 20) + 65536
        with pytest.raises(OSError) as e:
            os.lseek(fd, (2 << 20) + 65536, os.SEEK_DATA)
        assert e.value.errno == errno.ENXIO


def logged(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def test_flush_and_fua_reach_the_server(fs, serve, backing, work):
    log = os.path.join(work, "log")
    server = serve.nbdkit("--filter=log", "file", backing(SECTORS), f"logfile={log}")
    dev = fs.mkdir("n", linear(server.uri))
    dev.pwrite(b"x" * 4096, 0)
    assert " Flush " not in logged(log) and "fua=1" not in logged(log)
    with dev.open() as fd:
        os.fsync(fd)
    assert " Flush " in logged(log)
    dev.pwrite(b"y" * 4096, 8192, sync=True)
    text = logged(log)
    assert re.search(r" Write .*offset=0x2000 .*fua=1", text) or re.search(r"offset=0x2000.*Flush", text, re.S), text


def test_without_trim_zero_flush_and_fua(fs, serve, backing):
    """What the server cannot do is done another way, or refused."""
    path = backing(SECTORS, os.urandom(SIZE))
    server = serve.nbdkit("--filter=nozero", "--filter=fua", "--filter=noextents", "file", path, "zeromode=notrim",
                          "fuamode=emulate")
    expected = bytearray(content(path))
    dev = fs.mkdir("n", linear(server.uri))
    dev.zero(1 << 20, 65536)
    expected[1 << 20:(1 << 20) + 65536] = bytes(65536)
    dev.pwrite(b"z" * 4096, 0, sync=True)
    expected[:4096] = b"z" * 4096
    assert dev.pread(SIZE, 0) == expected
    assert content(path) == expected
    with dev.open(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0


def test_killed_and_restarted_under_load(fs, served):
    """Requests wait for the server and are repeated: nobody sees an error, nothing is lost."""
    path, server = served
    dev = fs.mkdir("n", linear(server.uri))
    expected, errors = bytearray(content(path)), []
    rounds, span = [0] * 4, SIZE // 4

    def load(i):
        rnd = random.Random(i)
        try:
            with dev.open() as fd:
                while not stop.is_set():
                    at, data = i * span + rnd.randrange(span // 4096) * 4096, rnd.randbytes(4096)
                    os.pwrite(fd, data, at)
                    expected[at:at + 4096] = data
                    assert os.pread(fd, 4096, at) == data
                    rounds[i] += 1
                os.fsync(fd)
        except BaseException as e:     # the thread has no other way to tell
            errors.append(e)

    stop = threading.Event()
    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    try:
        for _ in range(3):
            goal = [n + 20 for n in rounds]
            while not errors and any(n < g for n, g in zip(rounds, goal)):
                time.sleep(0.01)
            server.kill()
            server.start()
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors
    assert dev.pread(SIZE, 0) == expected
    assert content(path) == expected


def test_a_server_that_stays_away(dmfs, served):
    """After nbd_timeout requests fail; when it is back they work again."""
    path, server = served
    fs = dmfs(options="nbd_timeout=2")
    dev = fs.mkdir("n", linear(server.uri))
    server.kill()
    with pytest.raises(OSError) as e:
        dev.pread(4096, 0)
    assert e.value.errno == errno.EIO
    with pytest.raises(OSError) as e:
        dev.pwrite(bytes(4096), 0, sync=True)
    assert e.value.errno == errno.EIO
    server.start()
    end = time.monotonic() + 300
    while True:
        try:
            assert dev.pread(SIZE, 0) == content(path)
            return
        except OSError:
            assert time.monotonic() < end, "it has not come back"
            time.sleep(0.05)


def test_a_read_only_export(fs, serve, backing):
    path = backing(SECTORS, os.urandom(SIZE))
    server = serve.nbdkit("-r", "file", path)
    dev = fs.mkdir("n")
    dev.refuse(linear(server.uri), errno.EROFS, match="read-only")
    dev.write("readonly", "1")
    dev.load(linear(server.uri))
    assert dev.pread(SIZE, 0) == content(path)
    with pytest.raises(OSError) as e:
        dev.pwrite(b"x", 0)
    assert e.value.errno == errno.EROFS


def test_wrong_uris(fs, serve, backing, work):
    dev = fs.mkdir("n")
    some = tuple(errno.errorcode)       # which one is the library's choice; the text counts
    dev.refuse(linear(f"nbd+unix:///?socket={work}/none"), some, match=f"{work}/none")
    dev.refuse(linear("nbd+unix:///"), some, match="nbd")
    dev.refuse(linear("nbd://localhost:1/"), some, match="localhost:1")
    dev.refuse(linear("nbx://localhost/"), some)
    server = serve.qemu(backing(SECTORS), "-x", "disk")
    dev.refuse(linear(f"nbd+unix:///other?socket={server.sock}"), some, match="other")
    dev.load(linear(f"nbd+unix:///disk?socket={server.sock}"))
    dev.refuse(linear(f"nbd+unix:///disk?socket={server.sock}", SECTORS + 1), errno.EINVAL)


def test_a_clone_of_a_remote_source(fs, serve, backing):
    """The source is behind NBD, the destination a file: what clone is for."""
    source = backing(SECTORS, os.urandom(SIZE))
    server = serve.nbdkit("-r", "file", source)
    dest = backing(SECTORS)
    dev = fs.mkdir("c", f"0 {SECTORS} clone {backing(8192)} {dest} {server.uri} 64")
    assert dev.pread(65536, 4096) == content(source)[4096:4096 + 65536]
    while " 128/128 " not in dev.status():
        time.sleep(0.01)
    dev.remove()
    assert content(dest) == content(source)


def test_a_clone_goes_on_when_its_source_is_back(dmfs, served, backing):
    path, server = served
    dest = backing(SECTORS)
    fs = dmfs(options="nbd_timeout=2")
    dev = fs.mkdir("c", f"0 {SECTORS} clone {backing(8192)} {dest} {server.uri} 64 1 no_hydration")
    dev.pwrite(b"mine", 70000)
    server.kill()
    with open(dev.file("events"), "rb", buffering=0) as events:
        dev.message("enable_hydration")
        while b"HYDRATION_STOPPED" not in events.read(65536):
            pass
        assert "hydration_stopped" in dev.status() and dev.pread(4, 70000) == b"mine"
        server.start()
        while " 128/128 " not in dev.status():
            dev.message("enable_hydration")     # until it has connected again
            time.sleep(0.05)
    expected = bytearray(content(path))
    expected[70000:70004] = b"mine"
    assert dev.pread(SIZE, 0) == expected
    dev.remove()
    assert content(dest) == expected


def test_tls_that_the_server_has_not_is_refused(fs, serve, backing):
    server = serve.nbdkit("file", backing(SECTORS))
    fs.mkdir("n").refuse(linear(f"nbds+unix:///?socket={server.sock}"), tuple(errno.errorcode), match="nbds")


@pytest.mark.parametrize("option", ["nbd_timeout", "threads"])
@pytest.mark.parametrize("value", ["0", "-1", "1000001", "4x", "", "x", "4294967297", "99999999999999999999", " 4", "4.5"])
def test_wrong_numbers_of_options(option, value, work):
    done = subprocess.run([os.path.join(mounted.build_dir(), "dmfs"), "-f", "-o", f"{option}={value}", work],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"{option}={value}: a number from 1 to" in done.stderr
