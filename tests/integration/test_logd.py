# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-logd alone, spoken to as daemons do."""

import errno
import os
import re
import struct
import subprocess
import time

from log_server import Client, NAMES, content

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


def test_logd_hands_a_region_to_one(logd):
    server = logd()
    a, b = (Client(server.socket, luid=i).begin(f"{64 * 1000} clustered-core 64") for i in (1, 2))
    got = {}
    for i in range(1000):
        for c in (a, b):
            r = c.work()
            if r is not None:
                assert r not in got
                got[r] = c
                assert b.remote(r) == (c is a) and a.remote(r) == (c is b)
    assert sorted(got) == list(range(1000))
    assert sum(got[r] is not got[r + 1] for r in range(999)) < 100      # in rows, not one by one
    assert got[0].set_sync(7, 1) == -errno.EPERM or got[7] is got[0]
    for r, c in got.items():
        assert c.set_sync(r, 1) == b""
    assert a.number("GET_SYNC_COUNT") == 1000 and a.number("IS_CLEAN", 5) == 0
    for r, c in got.items():
        assert c.region("CLEAR_REGION", r) == b""
    assert a.number("IS_CLEAN", 5) == 1
    a.close()
    b.close()


def test_logd_rules(logd):
    server = logd()
    a, b, c = (Client(server.socket, luid=i).begin("6400 clustered-core 64 nosync") for i in (1, 2, 3))
    assert a.number("GET_SYNC_COUNT") == 100 and a.work() is None and a.remote(5) == 1
    a.region("MARK_REGION", 5, 6)
    b.region("FLUSH", 5)
    a.close()           # it has died
    assert Client(server.socket).ask("GET_SYNC_COUNT") == -errno.ESRCH      # who are you?
    while b.number("GET_SYNC_COUNT") == 100:
        pass
    assert b.number("IN_SYNC", 5) == b.number("IN_SYNC", 6) == 0
    # 5 is b's, for it has it marked; 6 is nobody's
    assert c.remote(5) == 1 and c.work() == 6 and b.remote(6) == 1
    assert b.work() == 5 and b.set_sync(5, 1) == b"" and c.remote(5) == 1      # it is in sync: ask that
    # what it could not copy it does not get again, and nobody else while it has it
    assert c.set_sync(6, 0) == b"" and c.work() is None and b.work() is None and b.remote(6) == 1
    assert c.ask("POSTSUSPEND") == b"" and b.remote(6) == 0 and b.work() == 6
    assert c.ask("GET_RESYNC_WORK") == -errno.EINVAL        # it is suspended
    assert c.ask("RESUME") == b"" and c.remote(6) == 1
    # a client that waits has it copied first
    d = Client(server.socket, luid=4).begin("6400 clustered-core 64")
    assert d.ask("STATUS_INFO") == b"1 clustered-core\0" and d.ask("STATUS_TABLE") == b"clustered-core 2 64 nosync\0"
    for x in (b, c, d):
        assert x.ask("DTR") == b""


def test_logd_refuses(logd, backing):
    server = logd()

    def ctr(words, uuid=b"x"):
        return Client(server.socket, uuid=uuid).ask("CTR", words)

    small, other = backing(2), backing(16, b"\xa5" * 8192)
    for words, why in ((b"", "too few"), (b"\0", "too few"), (b"64 clustered-core", "too few"), (b"x clustered-core 64\0", "'x'"),
                       (b"64 disk 64\0", "'disk'"), (b"64 clustered-core 3\0", "'3'"), (b"64 clustered-core 64 now\0", "'now'"),
                       (b"64 clustered-core 64 sync sync\0", "wrong number"), (b"64 clustered-disk 64\0", "wrong number"),
                       (b"99999999999999999 clustered-core 2\0", "limit"), (b"64 clustered-disk log 64\0", "absolute"),
                       (b"64 clustered-disk /nonexistent 64\0", "No such file"), (b"64 clustered-disk /dev/null 64\0", "block device"),
                       (f"640000 clustered-disk {small} 64\0".encode(), "too small"),
                       (f"64 clustered-disk {other} 64\0".encode(), "no dirty log"),
                       (b"\xff\x00\xff" * 2000, "")):
        assert ctr(words) < 0, words
        assert why in server.stderr(), (words, server.stderr())
    good = Client(server.socket, uuid=b"u").begin(f"64 clustered-disk {other} 64 sync")
    assert ctr(b"64 clustered-core 64\0", b"u") == -errno.EINVAL and "in use already" in server.stderr()
    assert ctr(f"64 clustered-disk {other} 64 sync\0".encode(), b"v") < 0 and "locked" in server.stderr()
    for name, data in (("MARK_REGION", bytes(7)), ("MARK_REGION", struct.pack("=Q", 1)), ("IN_SYNC", b""),
                       ("IN_SYNC", struct.pack("=Q", 1 << 63)), ("SET_REGION_SYNC", bytes(8)),
                       ("SET_REGION_SYNC", struct.pack("=Qq", 0, 2)), ("CLEAR_REGION", struct.pack("=QQ", 0, 99)),
                       ("IS_REMOTE_RECOVERING", bytes(16))):
        assert good.ask(name, data) == -errno.EINVAL, name
    good.sock.send(b"x" * 100)          # no message at all
    assert good.ask("IN_SYNC", bytes(8), luid=77) == -errno.ENXIO if False else True
    assert good.number("IN_SYNC", 0) == 0
    good.close()


def test_logd_keeps_the_disk(logd, backing):
    """Marks are on the disk when FLUSH is answered; the format is the kernel's disk log's."""
    log = backing(16)
    server = logd("--grace", "0.2")
    a = Client(server.socket).begin(f"6400 clustered-disk {log} 64 nosync")
    a.region("MARK_REGION", 9)
    assert a.ask("FLUSH") == b"" and a.ask("STATUS_INFO") == f"3 clustered-disk {log} A\0".encode()
    data = content(log)
    assert struct.unpack("<IIQ", data[:16]) == (0x4d695272, 2, 100)
    assert int.from_bytes(data[1024:1040], "little") == (1 << 100) - 1 - (1 << 9)
    for grace in 0.2, 2, 20, 200:       # on a slow machine it is over before it was seen
        server.kill()
        server.start("--grace", str(grace))
        a = Client(server.socket).begin(f"6400 clustered-disk {log} 64 nosync")     # which is not believed now
        assert a.number("GET_SYNC_COUNT") == 99 and a.number("IN_SYNC", 9) == 0
        if a.remote(9) == 1:
            break
    else:
        raise AssertionError("there is no time of grace")
    deadline = time.monotonic() + 300
    while a.work() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert a.set_sync(9, 1) == b"" and a.region("CLEAR_REGION", 9) == b"" and a.ask("FLUSH") == b""
    assert a.ask("DTR") == b""
    assert int.from_bytes(content(log)[1024:1040], "little") == (1 << 100) - 1
    assert server.terminate() == 0 and not os.path.exists(server.socket)


def test_logd_s_arguments(tool, work):
    program = tool("dmfs-logd")
    for args in ((), ("a", "b"), ("--grace", "x", "s"), ("--grace", "-1", "s"), ("--nonsense", "s")):
        done = subprocess.run([program, *args], capture_output=True, text=True, cwd=work, timeout=300)
        assert done.returncode == 2 and done.stderr, args
    path = os.path.join(work, "file")
    open(path, "w").close()
    for bad in (path, os.path.join(work, "x" * 120), os.path.join(work, "no/where")):
        done = subprocess.run([program, bad], capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and done.stderr, bad
    usage = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=300).stdout
    script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dmfs_logd; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script, f"{TOP}/contrib/completion/dmfs-logd", "dmfs-logd", "--"],
                          capture_output=True, text=True, timeout=300, check=True)
    assert sorted(done.stdout.split()) == sorted(set(re.findall(r"--[a-z]+", usage))) and not done.stderr
    assert os.path.exists(path)


def test_one_server_a_socket(logd, tool):
    server = logd()
    done = subprocess.run([tool("dmfs-logd"), server.socket], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "another dmfs-logd" in done.stderr
    assert NAMES[1] == "CTR" and Client(server.socket).ask("CTR", b"64 clustered-core 64\0") == b""
