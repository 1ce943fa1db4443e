# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting: the events files, and poll on events and status."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading

import pytest

WAIT_MS = 20000


def parse(line):
    pairs = dict(word.split("=", 1) for word in line.split(" "))
    return {k: v.encode().decode("unicode_escape") for k, v in pairs.items()}


class Reader:
    """An open events file, from the moment of open."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.rest = b""

    def lines(self):
        """What there is now, without waiting."""
        out = []
        while True:
            try:
                got = os.read(self.fd, 65536)
            except BlockingIOError:
                return out
            if not got:
                return out
            out += [parse(line) for line in got.decode().splitlines()]

    def wait(self):
        p = select.poll()
        p.register(self.fd, select.POLLIN)
        assert p.poll(WAIT_MS), "no event came"
        return self.lines()

    def close(self):
        os.close(self.fd)


@pytest.fixture
def reader():
    made = []

    def make(path):
        made.append(Reader(path))
        return made[-1]

    yield make
    for r in made:
        r.close()


def test_what_happens_to_devices_is_told(fs, reader):
    root = reader(fs.path("events"))
    v = fs.mkdir("v")
    own = reader(v.file("events"))
    v.load("0 8 zero")
    os.rename(v.path, fs.path("w"))
    fs["w"].load("0 8 error")
    os.rmdir(fs["w"].path)
    lines = root.lines()
    assert [(e["ACTION"], e["DM_NAME"]) for e in lines] == [
        ("add", "v"), ("change", "v"), ("change", "w"), ("change", "w"), ("remove", "w")]
    assert [int(e["DM_SEQNUM"]) for e in lines] == [1, 2, 3, 4, 5]
    assert all(e["DM_UUID"] == "" for e in lines)
    assert own.lines() == lines[1:]
    assert os.read(own.fd, 100) == b"", "a removed device's events end"


def test_an_open_file_sees_only_what_comes_after(fs, reader):
    fs.mkdir("before")
    r = reader(fs.path("events"))
    assert r.lines() == []
    fs.mkdir("after")
    assert [e["DM_NAME"] for e in r.lines()] == ["after"]


def test_blanks_in_names_are_quoted(fs, reader):
    r = reader(fs.path("events"))
    fs.mkdir("a b\\c")
    (e,) = r.lines()
    assert e["DM_NAME"] == "a b\\c"


def test_a_blocking_read_waits_and_is_interrupted(fs):
    code = ("import os, sys, signal\n"
            "signal.signal(signal.SIGUSR1, lambda *a: sys.exit(7))\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "print('up', flush=True)\n"
            "os.read(fd, 100)\n"
            "print('line', flush=True)\n"
            "os.read(fd, 100)\n")
    child = subprocess.Popen([sys.executable, "-c", code, fs.path("events")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "up\n"
        fs.mkdir("v")
        assert child.stdout.readline() == "line\n"
        child.send_signal(signal.SIGUSR1)
        assert child.wait(300) == 7
    finally:
        child.kill()
        child.wait()
    assert fs.mkdir("w").read("dev") == "0:1\n"


def test_a_waiting_read_ends_with_the_device(fs):
    v = fs.mkdir("v")
    got = []
    opened = threading.Event()

    def read():
        with open(v.file("events"), "rb", buffering=0) as f:
            opened.set()
            while data := f.read(4096):
                got.append(data)

    t = threading.Thread(target=read)
    t.start()
    opened.wait()
    v.remove()
    t.join(300)
    assert not t.is_alive()
    assert b"ACTION=remove" in b"".join(got)


def test_poll_on_status(fs):
    v = fs.mkdir("v", "0 8 zero")
    fd = os.open(v.file("status"), os.O_RDONLY)
    try:
        p = select.poll()
        p.register(fd, select.POLLIN | select.POLLPRI)
        assert p.poll(0) == [(fd, select.POLLIN | select.POLLPRI)], "nothing was read yet"
        assert os.pread(fd, 100, 0) == b"0 8 zero\n"
        assert p.poll(0) == []
        timer = threading.Timer(0.05, v.load, ["0 16 error"])
        timer.start()
        assert p.poll(WAIT_MS) == [(fd, select.POLLIN | select.POLLPRI)]
        timer.join()
        assert os.pread(fd, 100, 0) == b"0 16 error\n"
        assert p.poll(0) == []
    finally:
        os.close(fd)


def test_poll_on_events_is_quiet_until_there_is_one(fs, reader):
    r = reader(fs.path("events"))
    p = select.poll()
    p.register(r.fd, select.POLLIN | select.POLLPRI)
    assert p.poll(0) == []
    fs.mkdir("v")
    assert p.poll(WAIT_MS)
    assert len(r.lines()) == 1
    assert p.poll(0) == []


def test_epoll_wakes_every_waiter(fs):
    v = fs.mkdir("v")
    fds = [os.open(v.file("events"), os.O_RDONLY) for _ in range(200)]
    try:
        with select.epoll() as e:
            for fd in fds:
                e.register(fd, select.EPOLLIN)
            before = fs.cpu_ticks()
            assert e.poll(0.3) == []
            assert fs.cpu_ticks() - before <= 2, "waiters cost processor time while nothing happens"
            v.load("0 8 zero")
            seen = set()
            while len(seen) < len(fds):
                ready = e.poll(20)
                assert ready, f"{len(seen)} of {len(fds)} were woken"
                for fd, _ in ready:
                    if fd not in seen:
                        assert b"ACTION=change" in os.read(fd, 4096)
                    seen.add(fd)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_slow_reader_is_told_what_it_missed(fs, reader):
    v = fs.mkdir("v")
    slow, quick = reader(v.file("events")), reader(v.file("events"))
    total = 5000
    seen = []
    for i in range(total):
        os.rename(fs.path(f"v{i - 1}" if i else "v"), fs.path(f"v{i}"))
        if i % 1000 == 999:
            seen += quick.lines()
    assert len(seen) == total and not [e for e in seen if e["ACTION"] == "lost"]
    lines = slow.lines()
    assert lines[0]["ACTION"] == "lost"
    assert int(lines[0]["DM_COUNT"]) + len(lines) - 1 == total
    assert lines[-1]["DM_NAME"] == f"v{total - 1}"


def test_the_event_number_counts_renames_not_resumes(fs):
    v = fs.mkdir("v", "0 8 zero")
    v.suspend()
    v.resume()
    assert v.info()["Event number"] == "0"
    os.rename(v.path, fs.path("w"))
    assert fs["w"].info()["Event number"] == "1"


def test_events_cannot_be_written(fs):
    with pytest.raises(OSError) as e:
        fs.write("events", "x")
    assert e.value.errno in (errno.EACCES, errno.EINVAL)
