# SPDX-License-Identifier: GPL-2.0-or-later
"""Thousands wait for events: they cost nothing while nothing happens, all are woken, and none holds up another."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mounted import alive

# Every process waits with so many files in epoll, and with a thread in read(2) for each of some more.
PROCESSES, FILES, THREADS = 10, 400, 100

CHILD = r"""
import os, select, sys, threading
path, files, threads, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
threading.stack_size(64 << 10)
fds = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for _ in range(files)]
blocking = [os.open(path, os.O_RDONLY) for _ in range(threads)]

def read(fd):
    got = b""
    while last not in got:
        got = (got + os.read(fd, 65536))[-65536:]

readers = [threading.Thread(target=read, args=[fd]) for fd in blocking]
for r in readers:
    r.start()
with select.epoll() as e:
    for fd in fds:
        e.register(fd, select.EPOLLIN)
    print("up", flush=True)
    left, seen = set(fds), {fd: b"" for fd in fds}
    while left:
        for fd, _ in e.poll():
            if fd not in left:
                continue
            try:
                seen[fd] += os.read(fd, 65536)
            except BlockingIOError:
                continue
            if last in seen[fd]:
                left.remove(fd)
                e.unregister(fd)
for r in readers:
    r.join()
print("done", flush=True)
"""


@pytest.fixture
def waiters(fs):
    """waiters(PATH, LAST): a process that waits on many open files until each has read LAST; it is up."""
    made = []

    def make(path, last, files=FILES, threads=THREADS):
        p = subprocess.Popen([sys.executable, "-c", CHILD, path, str(files), str(threads), last],
                             stdout=subprocess.PIPE, text=True)
        made.append(p)
        return p

    yield make
    for p in made:
        p.kill()
        p.wait()
        p.stdout.close()


def blocked(pid, wanted):
    """Waits until so many threads of a process sleep in a read of the mount."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        states = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii") as f:
                states.append(f.read().rsplit(")", 1)[1].split()[0])
        if len(states) >= wanted and set(states) == {"S"}:
            return
        time.sleep(0.01)
    raise AssertionError("the readers do not all wait")


def threads_of(fs):
    return len(os.listdir(f"/proc/{fs.pid}/task"))


def test_five_thousand_waiters(fs, waiters):
    v = fs.mkdir("v", "0 8 zero")
    few = threads_of(fs)
    processes = [waiters(v.file("events") if i % 2 else fs.path("events"), "DM_NAME=last") for i in range(PROCESSES)]
    for p in processes:
        assert p.stdout.readline() == "up\n"
        blocked(p.pid, THREADS + 1)
    # nothing happens; on a slow machine the daemon may still be at what has
    end, before, now = time.monotonic() + 300, 0, 1000
    while now - before > 2:
        assert time.monotonic() < end, "waiters cost processor time while nothing happens"
        before = fs.cpu_ticks()
        time.sleep(0.5)
        now = fs.cpu_ticks()
    assert threads_of(fs) <= few + 16, "a waiting read holds a thread"
    print(f"{threads_of(fs)} threads, {fs.rss_kib() / 1024:.0f} MiB for {PROCESSES * (FILES + THREADS)} waiters")
    # other work goes on, one of them is stopped and one is dead
    os.kill(processes[0].pid, signal.SIGSTOP)
    processes[1].kill()
    start = time.monotonic()
    assert len(v.pread(4096, 0)) == 4096
    v.load("0 16 zero")
    os.rename(v.path, fs.path("last"))
    for p in processes[2:]:
        assert p.stdout.readline() == "done\n"
    print(f"all were woken in {time.monotonic() - start:.2f} s")
    assert alive(processes[0].pid)
    os.kill(processes[0].pid, signal.SIGCONT)
    assert processes[0].stdout.readline() == "done\n"


def test_a_stopped_reader_is_told_what_it_missed(fs, waiters):
    """It waits in read(2), is stopped, and there are more events than are kept meanwhile."""
    code = ("import os, sys\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "print('up', flush=True)\n"
            "text = b''\n"
            "while b'DM_NAME=last' not in text:\n"
            "    text += os.read(fd, 65536)\n"
            "    print(text.count(b'\\n'), flush=True)\n"
            "lost = [l for l in text.split(b'\\n') if l.startswith(b'ACTION=lost')]\n"
            "print('lost', sum(int(l.split(b'=')[-1]) for l in lost), 'read', text.count(b'\\n') - len(lost))\n")
    v = fs.mkdir("v")
    slow = subprocess.Popen([sys.executable, "-c", code, v.file("events")], stdout=subprocess.PIPE, text=True)
    try:
        assert slow.stdout.readline() == "up\n"
        slow.send_signal(signal.SIGSTOP)
        quick = waiters(v.file("events"), "DM_NAME=last", 20, 20)
        assert quick.stdout.readline() == "up\n"
        total = 5000
        for i in range(total - 1):
            os.rename(fs.path(f"v{i - 1}" if i else "v"), fs.path(f"v{i}"))
        os.rename(fs.path(f"v{total - 2}"), fs.path("last"))
        assert quick.stdout.readline() == "done\n", "nobody waits for the one that is stopped"
        slow.send_signal(signal.SIGCONT)
        words = slow.stdout.read().split()
        lost, read = int(words[words.index("lost") + 1]), int(words[-1])
        assert lost > 0 and lost + read == total
    finally:
        slow.kill()
        slow.wait()
        slow.stdout.close()
