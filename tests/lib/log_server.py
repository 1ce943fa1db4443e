# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers of userspace dirty logs: dmfs-logd as a process, and one in Python that can be told to misbehave.

The messages are struct dm_ulog_request of linux/dm-log-userspace.h, a packet each.
"""

import errno
import functools
import mmap
import os
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import mounted
from mounted import REPORTS, SECTOR, build_dir, quote

NAMES = ("? CTR DTR PRESUSPEND POSTSUSPEND RESUME GET_REGION_SIZE IS_CLEAN IN_SYNC FLUSH MARK_REGION CLEAR_REGION "
         "GET_RESYNC_WORK SET_REGION_SYNC GET_SYNC_COUNT STATUS_INFO STATUS_TABLE IS_REMOTE_RECOVERING").split()
HEADER = struct.Struct("=Q129s3xIiIII")
assert HEADER.size == 160


class Message:
    def __init__(self, luid=1, uuid=b"u", error=0, seq=0, type=1, data=b"", version=3, size=None):
        self.luid, self.uuid, self.error, self.seq, self.type = luid, uuid, error, seq, type
        self.data, self.version, self.size = data, version, size

    @classmethod
    def parse(cls, raw):
        luid, uuid, version, error, seq, kind, size = HEADER.unpack_from(raw)
        assert size == len(raw) - HEADER.size
        return cls(luid, uuid.split(b"\0")[0], error, seq, kind, raw[HEADER.size:], version)

    @property
    def name(self):
        return NAMES[self.type & 255]

    def pack(self):
        size = len(self.data) if self.size is None else self.size
        return HEADER.pack(self.luid, self.uuid, self.version, self.error, self.seq, self.type, size) + self.data

    def regions(self):
        return struct.unpack(f"={len(self.data) // 8}Q", self.data)


class Logd:
    """dmfs-logd on a socket in a directory of its own."""

    def __init__(self, *args, build=None):
        self.program = os.path.join(build or build_dir(), "dmfs-logd")
        self.dir = tempfile.mkdtemp(prefix="dmfs-logd-")
        self.socket = os.path.join(self.dir, "socket")
        self.args, self.process = args, None
        self.start()

    def start(self, *args):
        """Until it listens.  A socket that a killed one left behind is replaced, so another inode is waited for."""
        old = os.stat(self.socket).st_ino if os.path.exists(self.socket) else None
        with open(os.path.join(self.dir, "stderr"), "ab") as err:
            self.process = subprocess.Popen([self.program, *self.args, *args, self.socket],
                                            stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd="/")
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"dmfs-logd: exit {self.process.returncode}: {self.stderr()}")
            if os.path.exists(self.socket) and (old is None or os.stat(self.socket).st_ino != old or self._answers()):
                if self._answers():
                    return
            select.select([], [], [], 0.01)     # looks again
        raise TimeoutError("dmfs-logd does not listen")

    def _answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            try:
                s.connect(self.socket)
            except OSError:
                return False
        return True

    def stderr(self):
        with open(os.path.join(self.dir, "stderr"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def kill(self):
        self.process.kill()
        self.process.wait(300)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)

    def close(self):
        code = 0
        if self.process.poll() is None:
            code = self.terminate()
        text = self.stderr()
        for name in os.listdir(self.dir):
            os.unlink(os.path.join(self.dir, name))
        os.rmdir(self.dir)
        assert code in (0, -9) and not REPORTS.search(text), f"dmfs-logd: exit {code}: {text}"


class Client:
    """Speaks to a server as a daemon would; one log."""

    def __init__(self, path, uuid=b"u", luid=1, timeout=300):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.uuid, self.luid, self.seq = uuid, luid, 0

    def ask(self, name, data=b"", **kw):
        """The answer's data, or the negative errno."""
        self.seq += 1
        self.sock.send(Message(**{"luid": self.luid, "uuid": self.uuid, "seq": self.seq, "type": NAMES.index(name),
                                  "data": data, **kw}).pack())
        answer = Message.parse(self.sock.recv(20000))
        assert (answer.seq, answer.luid, answer.uuid, answer.name) == (self.seq, self.luid, self.uuid, name)
        return answer.error or answer.data

    def region(self, name, *regions):
        return self.ask(name, struct.pack(f"={len(regions)}Q", *regions))

    def number(self, name, *regions):
        data = self.region(name, *regions)
        return data if isinstance(data, int) else struct.unpack("=q", data)[0]

    def work(self):
        any_, region = struct.unpack("=qQ", self.ask("GET_RESYNC_WORK"))
        return region if any_ else None

    def remote(self, region):
        return struct.unpack("=qQ", self.region("IS_REMOTE_RECOVERING", region))[0]

    def set_sync(self, region, in_sync):
        return self.ask("SET_REGION_SYNC", struct.pack("=Qq", region, in_sync))

    def begin(self, words):
        for name, data in (("CTR", words.encode() + b"\0"), ("RESUME", b"")):
            answer = self.ask(name, data)
            assert not isinstance(answer, int), (name, errno.errorcode[-answer])
        return self

    def close(self):
        self.sock.close()


class Server:
    """A server in a thread: one log of `regions`, all in sync unless said otherwise; what it was asked is in `seen`.

    twist(server, connection, message) may answer itself (with server.reply) and return True; what is left is answered as
    it should be.
    """

    def __init__(self, region_sectors=64, regions=32, in_sync=True, twist=None, path=None):
        self.dir = tempfile.mkdtemp(prefix="dmfs-log-server-")
        self.socket = path or os.path.join(self.dir, "socket")
        self.region_sectors, self.regions = region_sectors, regions
        self.sync = set(range(regions)) if in_sync else set()
        self.given, self.marked = set(), set()
        self.twist, self.seen, self.errors = twist, [], []
        self.changed = threading.Condition()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.socket)
        self.listener.listen(8)
        self.wake, self._wake = os.pipe()
        self.conns = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while True:
            ready, _, _ = select.select([self.listener, self.wake, *self.conns], [], [])
            if self.wake in ready:
                return
            for s in ready:
                if s is self.listener:
                    self.conns.append(s.accept()[0])
                    continue
                try:
                    raw = s.recv(20000)
                except OSError:
                    raw = b""
                if not raw:
                    s.close()
                    self.conns.remove(s)
                    continue
                try:
                    self._take(s, Message.parse(raw))
                except Exception as e:      # a client that has gone, or a test's own mistake
                    self.errors.append(e)

    def _take(self, s, m):
        with self.changed:
            self.seen.append(m)
            self.changed.notify_all()
        if not (self.twist and self.twist(self, s, m)):
            self.reply(s, m, self.answer(m))

    def reply(self, s, m, data=b"", **kw):
        s.send(Message(**{"luid": m.luid, "uuid": m.uuid, "seq": m.seq, "type": m.type, "data": data, **kw}).pack())

    def answer(self, m):
        if m.name == "GET_REGION_SIZE":
            return struct.pack("=Q", self.region_sectors)
        if m.name in ("IN_SYNC", "IS_CLEAN"):
            return struct.pack("=q", m.regions()[0] in self.sync)
        if m.name == "GET_SYNC_COUNT":
            return struct.pack("=Q", len(self.sync))
        if m.name in ("FLUSH", "MARK_REGION"):
            self.marked |= set(m.regions())
        elif m.name == "CLEAR_REGION":
            self.marked -= set(m.regions())
        elif m.name == "SET_REGION_SYNC":
            region, in_sync = struct.unpack("=Qq", m.data)
            (self.sync.add if in_sync else self.sync.discard)(region)
        elif m.name == "GET_RESYNC_WORK":
            left = sorted(set(range(self.regions)) - self.sync - self.given)
            self.given |= set(left[:1])
            return struct.pack("=qQ", bool(left), left[0] if left else 0)
        elif m.name == "STATUS_INFO":
            return b"1 clustered-core\0"
        elif m.name == "IS_REMOTE_RECOVERING":
            return struct.pack("=qQ", 0, 0)
        return b""

    def names(self):
        with self.changed:
            return [m.name for m in self.seen]

    def wait_for(self, what, deadline=300):
        """Until what(messages seen) is true."""
        with self.changed:
            assert self.changed.wait_for(lambda: what(self.seen), deadline), [m.name for m in self.seen]

    def close(self):
        os.write(self._wake, b"x")
        self.thread.join(300)
        for s in (self.listener, *self.conns):
            s.close()
        os.close(self.wake)
        os.close(self._wake)
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        os.rmdir(self.dir)


class Gate:
    """Stands before a server and passes all on; a request that hold(message) is true of only after open()."""

    def __init__(self, server, hold):
        self.server, self.hold = server, hold
        self.dir = tempfile.mkdtemp(prefix="dmfs-log-gate-")
        self.socket = os.path.join(self.dir, "socket")
        self.held, self.opened = threading.Event(), threading.Event()
        self.socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        self.socks[0].bind(self.socket)
        self.socks[0].listen(8)
        self.threads = []
        self._start(self._accept)

    def _start(self, fn, *args):
        self.threads.append(threading.Thread(target=fn, args=args, daemon=True))
        self.threads[-1].start()

    def _accept(self):
        while True:
            try:
                client = self.socks[0].accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.socks += [client, server]
            server.connect(self.server)
            self._start(self._pass, client, server, True)
            self._start(self._pass, server, client, False)

    def _pass(self, source, to, requests):
        try:
            while raw := source.recv(20000):
                if requests and self.hold(Message.parse(raw)):
                    self.held.set()
                    self.opened.wait()
                to.send(raw)
        except OSError:
            pass
        try:
            to.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def open(self):
        self.opened.set()

    def close(self):
        self.open()
        for s in list(self.socks):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for t in list(self.threads):
            t.join(10)
        for s in self.socks:
            s.close()
        os.unlink(self.socket)
        os.rmdir(self.dir)


# --- mirrors with such a log ---------------------------------------------------------------------------

REGION = 64         # sectors
wait_status = functools.partial(mounted.wait_status, deadline=300, every=0.2)     # counts change without an event


def line(legs, sectors, log, features=""):
    words = len(re.findall(r"(?:\\.|\S)+", log))
    return f"0 {sectors} mirror userspace {words} {log} {len(legs)} " + \
        " ".join(f"{quote(leg)} 0" for leg in legs) + " " + features


def direct(dev, data, sector, write=True):
    """One direct write, or a read of as many bytes."""
    buf = mmap.mmap(-1, len(data))
    buf[:] = data
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        if write:
            assert os.pwrite(fd, buf, sector * SECTOR) == len(data)
        else:
            assert os.preadv(fd, [buf], sector * SECTOR) == len(data)
    return buf[:]


def content(path):
    with open(path, "rb") as f:
        return f.read()


# --- the kernel's side, in a guest -----------------------------------------------------------

NETLINK_CONNECTOR, CN_IDX_DM = 11, 7
NL, CN = struct.Struct("=IHHII"), struct.Struct("=IIIIHH")


def serve_netlink(out, region_sectors, regions, out_of_sync):
    """Answers the kernel, as Server does; appends "NAME UUID DATA" of each request to a file."""
    server = Server.__new__(Server)
    server.region_sectors, server.regions = region_sectors, regions
    server.sync, server.given, server.marked = set(range(out_of_sync, regions)), set(), set()
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
    s.bind((0, 1 << (CN_IDX_DM - 1)))
    s.setsockopt(270, 1, CN_IDX_DM)     # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
    with open(out, "a", encoding="ascii") as f:
        print("READY", file=f, flush=True)
        while True:
            raw = s.recv(65536)
            idx, val, seq, _, size, _ = CN.unpack_from(raw, NL.size)
            m = Message.parse(raw[NL.size + CN.size:][:size])
            print(m.name, m.uuid.hex(), m.data.hex() or "-", file=f, flush=True)
            body = Message(m.luid, m.uuid, 0, m.seq, m.type, server.answer(m)).pack()
            cn = CN.pack(idx, val, seq, 0, len(body), 0) + body
            s.send(NL.pack(NL.size + len(cn), 3, 0, seq, os.getpid()) + cn)


if __name__ == "__main__":
    import sys
    serve_netlink(sys.argv[1], *map(int, sys.argv[2:5]))
