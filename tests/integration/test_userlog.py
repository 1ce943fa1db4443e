# SPDX-License-Identifier: GPL-2.0-or-later
"""Userspace dirty logs: mirrors of several daemons on one store, servers that die and servers that misbehave."""

import errno
import functools
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

import mounted
from log_server import Client, Gate, Logd, NAMES, Server
from mounted import SECTOR, pattern, quote

REGION = 64
TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


@pytest.fixture
def logd(dmfs):
    """logd(*ARGS): a dmfs-logd that runs."""
    made = []

    def start(*args):
        made.append(Logd(*args))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def server(dmfs):
    """server(...): one in Python (log_server.Server)."""
    made = []

    def start(**kw):
        made.append(Server(**kw))
        return made[-1]

    yield start
    for s in made:
        s.close()


@pytest.fixture
def gate(dmfs):
    """gate(SERVER, HOLD): before a server (log_server.Gate)."""
    made = []

    def start(server, hold):
        made.append(Gate(server.socket, hold))
        return made[-1]

    yield start
    for g in made:
        g.close()


def line(legs, sectors, log, features=""):
    words = len(re.findall(r"(?:\\.|\S)+", log))
    return f"0 {sectors} mirror userspace {words} {log} {len(legs)} " + \
        " ".join(f"{quote(leg)} 0" for leg in legs) + " " + features


def content(path):
    with open(path, "rb") as f:
        return f.read()


def assert_same(legs):
    """Says which blocks differ, and of which regions they are."""
    a, b = map(content, legs)
    blocks = [] if a == b else [i for i in range(len(a) // 4096) if a[i * 4096:][:4096] != b[i * 4096:][:4096]]
    assert not blocks, f"blocks that differ: {blocks}, of regions {sorted({i * 8 // REGION for i in blocks})}"
    assert len(a) == len(b)


wait_status = functools.partial(mounted.wait_status, deadline=300, every=0.2)     # counts change without an event


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


class Load(threading.Thread):
    """Writes its own stripe of sectors at random, one of every `of` 8-sector blocks, and knows what it should hold."""

    def __init__(self, dev, sectors, which, of, seed):
        super().__init__()
        self.dev, self.of, self.which, self.rand = dev, of, which, random.Random(seed)
        self.blocks = range(which, sectors // 8, of)
        self.holds, self.error, self.over, self.done = {}, None, threading.Event(), 0
        self.at = None      # the block of the last write

    def run(self):
        buf = mmap.mmap(-1, 4096)
        try:
            with self.dev.open(os.O_RDWR | os.O_DIRECT) as fd:
                while not self.over.is_set():
                    block = self.rand.choice(self.blocks)
                    if block in self.holds and self.rand.random() < 0.3:
                        os.preadv(fd, [buf], block * 4096)
                        assert buf[:] == self.holds[block], f"block {block} reads something else"
                        continue
                    self.at = block
                    data = struct.pack("=QQ", block, self.rand.getrandbits(60)) * 256
                    buf[:] = data
                    os.pwrite(fd, buf, block * 4096)
                    self.holds[block] = data
                    self.done += 1
        except BaseException as e:
            self.error = e

    def check(self, path):
        data = content(path)
        for block, want in self.holds.items():
            assert data[block * 4096:(block + 1) * 4096] == want, f"{path}: block {block}"


def end(loads):
    for load in loads:
        load.over.set()
    for load in loads:
        load.join(300)
        assert not load.is_alive() and load.error is None, load.error


def wait_done(loads, more):
    """Until each load has done so many more writes."""
    want = [(load, load.done + more) for load in loads]
    deadline = time.monotonic() + 300
    while any(load.done < n for load, n in want):
        assert all(load.error is None for load in loads), [load.error for load in loads]
        assert time.monotonic() < deadline, [(load.done, n) for load, n in want]
        time.sleep(0.01)        # looks again


# --- two daemons on one store ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clustered-core", "clustered-disk"])
def test_two_daemons_under_load(dmfs, logd, backing, kind):
    """Both write during the resync, to the same regions; afterwards the legs are the same and hold what was written."""
    sectors = 32768
    legs = [backing(sectors, pattern(sectors)), backing(sectors, pattern(sectors, 7))]
    server = logd()
    log = f"cluster {'integrated_flush ' if kind == 'clustered-disk' else ''}{kind} " + \
        (f"{quote(backing(64))} {REGION}" if kind == "clustered-disk" else f"{REGION}")
    devs = [dmfs(options=f"log_server={server.socket}").mkdir("m") for _ in range(2)]
    for dev in devs:
        dev.load(line(legs, sectors, log))
        dev.message("raid1_resync_throttle 30")
    loads = [Load(dev, sectors, i, 2, i) for i, dev in enumerate(devs)]
    for load in loads:
        load.start()
    wait_done(loads, 200)
    for dev in devs:
        dev.message("raid1_resync_throttle 100")
        wait_status(dev, f" 512/512 1 AA [13] {kind}")
    wait_done(loads, 100)
    end(loads)
    for dev in devs:
        dev.remove()
    assert_same(legs)
    for load in loads:
        load.check(legs[0])
    assert "refused" not in server.stderr()


def test_copied_between_two_questions(dmfs, logd, gate, backing):
    """A write finds its region out of sync; another host is through with the copy before it asks whose it is: to all legs."""
    sectors, mine = 2048, threading.Event()
    legs = [backing(sectors, pattern(sectors)), backing(sectors, pattern(sectors))]
    server = logd()
    other = Client(server.socket, luid=1).begin(f"{sectors} clustered-core {REGION}")
    region = other.work()
    before = gate(server, lambda m: mine.is_set() and m.name == "IS_REMOTE_RECOVERING" and m.regions() == (region,))
    dev = dmfs(options=f"log_server={before.socket}").mkdir("m", line(legs, sectors, f"u clustered-core {REGION}"))
    mine.set()
    t = threading.Thread(target=direct, args=(dev, b"w" * 4096, region * REGION))
    t.start()
    assert before.held.wait(30)
    assert other.set_sync(region, 1) == b"" and other.region("CLEAR_REGION", region) == b""
    mine.clear()
    before.open()
    t.join(30)
    assert not t.is_alive()
    assert content(legs[0])[region * REGION * SECTOR:][:4096] == b"w" * 4096
    wait_status(dev, f" {sectors // REGION}/{sectors // REGION} 1 AA ")
    assert_same(legs)
    dev.remove()
    other.close()


def test_each_region_is_copied_by_one(dmfs, logd, backing):
    """Two resyncs at once: every region goes to one of them, and both take part."""
    sectors = 65536
    legs = [backing(sectors, pattern(sectors)), backing(sectors)]
    server = logd()
    mounts = [dmfs(options=f"log_server={server.socket}") for _ in range(2)]
    for m in mounts:
        m.mkdir("leg", f"0 {sectors} delay {quote(legs[1])} 0 0 {quote(legs[1])} 0 30").message("@stats_create - 65536")
    for m in mounts:
        m.mkdir("m", f"0 {sectors} mirror userspace 3 u clustered-core 256 2 {quote(legs[0])} 0 leg 0")
    for m in mounts:
        wait_status(m["m"], " 256/256 1 AA ")
    assert content(legs[0]) == content(legs[1])
    written = [int(m["leg"].message("@stats_print 0").split()[7]) for m in mounts]      # sectors
    assert sum(written) == sectors and all(written), written


def test_who_may_have_what(dmfs, logd, backing):
    """Legs are anybody's.  A log's device is one server's, or one daemon's; what claims a shared mirror has it alone."""
    legs, log, more = [backing(2048), backing(2048)], backing(64), [backing(64), backing(64)]
    alone, second = dmfs(), dmfs()
    text = line(legs, 2048, f"u clustered-disk {quote(log)} {REGION}") + "\n"
    alone.mkdir("m").load(text)
    wait_status(alone["m"], " 32/32 1 AA 3 clustered-disk ")
    second.mkdir("m").refuse(text, code=errno.EBUSY, match="log device is in use by another program")
    server = logd()
    hosts = [dmfs(options=f"log_server={server.socket}") for _ in range(2)]
    hosts[0].mkdir("m").refuse(text, match="refused CTR")
    assert "it is locked" in server.stderr()
    alone["m"].remove()
    for host in hosts:
        host["m"].load(text) if host is hosts[0] else host.mkdir("m", text)
    upper = f"0 64 mirror disk 3 m 64 nosync 2 {quote(more[0])} 0 {quote(more[1])} 0\n"
    hosts[0].mkdir("upper", upper)
    hosts[1].mkdir("upper").refuse(upper, code=errno.EBUSY, match="is locked")
    hosts[0]["upper"].remove()
    hosts[1]["upper"].load(upper)


def dies_while_it_writes(dev, data, sector):
    with pytest.raises(OSError):
        direct(dev, data, sector)


def test_a_dead_daemon_s_regions(dmfs, logd, backing):
    """What it was writing to is out of sync for the other, which copies that and no more."""
    sectors = 4096
    legs = [backing(sectors, pattern(sectors)), backing(sectors, pattern(sectors))]
    server = logd()
    log = f"u clustered-core {REGION} nosync"
    first, second = (dmfs(options=f"log_server={server.socket}") for _ in range(2))
    first.mkdir("slow", f"0 {sectors} linear {quote(legs[1])} 0")
    first.mkdir("m", line([legs[0], "slow"], sectors, log))
    second.mkdir("m", line(legs, sectors, log))
    wait_status(second["m"], " 64/64 1 AA ")
    # the second leg of the first does not answer, so that the region stays dirty
    first["slow"].suspend()
    writer = threading.Thread(target=dies_while_it_writes, args=(first["m"], b"x" * 4096, 10 * REGION))
    writer.start()
    while content(legs[0])[10 * REGION * SECTOR:][:4096] != b"x" * 4096:
        time.sleep(0.01)        # looks again
    first.kill()
    first.wait()
    writer.join()
    with open(legs[1], "r+b") as f:     # as if the second leg had not got it, and had rubbish elsewhere
        f.write(b"!" * 4096)
        f.seek(10 * REGION * SECTOR)
        f.write(b"?" * 4096)
    assert direct(second["m"], bytes(4096), 10 * REGION, write=False) == b"x" * 4096
    deadline = time.monotonic() + 300
    while content(legs[1])[10 * REGION * SECTOR:][:4096] != b"x" * 4096:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wait_status(second["m"], " 64/64 1 AA ")
    assert content(legs[1])[:4096] == b"!" * 4096


# --- the server dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clustered-core", "clustered-disk"])
def test_server_killed_under_load(dmfs, logd, backing, kind):
    """Writes wait for the next one; nothing is lost, and the legs are the same in the end."""
    sectors = 16384
    legs = [backing(sectors), backing(sectors)]
    server = logd("--grace", "1.5")
    log = f"u {kind} {quote(backing(64)) + ' ' if kind == 'clustered-disk' else ''}{REGION}"
    devs = [dmfs(options=f"log_server={server.socket},log_timeout=0.5").mkdir("m", line(legs, sectors, log))
            for _ in range(2)]
    loads = [Load(dev, sectors, i, 2, i) for i, dev in enumerate(devs)]
    for load in loads:
        load.start()
    for _ in range(2 if kind == "clustered-disk" else 1):
        wait_done(loads, 30)
        server.kill()
        for dev in devs:
            wait_status(dev, "userspace 1 COM_FAILURE")
        server.start()
    wait_done(loads, 50)
    end(loads)
    for dev in devs:
        wait_status(dev, f" 256/256 1 AA [13] {kind}")
        assert "reconnected" in dev.mount.read("log")
        dev.remove()
    assert content(legs[0]) == content(legs[1])
    for load in loads:
        load.check(legs[1])


def test_everything_dies(dmfs, logd, backing):
    """The server, then a daemon, then a table, again and again (USERLOG_ROUNDS) under load, each in its own time."""
    sectors, rand = 16384, random.Random(int(os.environ.get("USERLOG_SEED", "1")))
    legs, log = [backing(sectors), backing(sectors)], backing(64)
    server = logd("--grace", "1.5")
    text = line(legs, sectors, f"u integrated_flush clustered-disk {quote(log)} {REGION}")
    begin = {}          # what of a stripe is known to be there, over its daemons' deaths

    def start(i):
        mount = dmfs(options=f"log_server={server.socket},log_timeout=0.5")
        load = Load(mount.mkdir("m", text), sectors, i, 3, rand.random())
        load.holds = begin.get(i, {})
        load.start()
        return mount, load

    hosts = [start(i) for i in range(3)]
    for _ in range(int(os.environ.get("USERLOG_ROUNDS", "1"))):
        wait_done([load for _, load in hosts], rand.randrange(20))
        server.kill()
        if rand.random() < 0.5:
            time.sleep(rand.random())       # so that they notice, or do not
        i = rand.randrange(3)
        mount, load = hosts[i]
        if rand.random() < 0.5:
            server.start()
        mount.kill()
        mount.wait()
        load.over.set()
        load.join(300)
        assert isinstance(load.error, OSError) or load.error is None, load.error
        begin[i] = {b: d for b, d in load.holds.items() if b != load.at}        # of that nobody knows
        if server.process.poll() is not None:
            server.start()
        wait_done([load for k, (_, load) in enumerate(hosts) if k != i], 20)
        hosts[i] = start(i)
        dev = hosts[(i + 1) % 3][0]["m"]
        dev.suspend(noflush=rand.random() < 0.5)
        dev.resume()
        wait_done([load for _, load in hosts], 20)
    end([load for _, load in hosts])
    for mount, _ in hosts:
        wait_status(mount["m"], " 256/256 1 AA 3 clustered-disk")
        mount["m"].remove()
    assert content(legs[0]) == content(legs[1])
    for _, load in hosts:
        load.check(legs[0])


def test_without_the_server(dmfs, logd, backing):
    """Reads and writes wait: who is killed leaves at once, noflush gets them out, the daemon ends."""
    sectors = 2048
    legs = [backing(sectors), backing(sectors)]
    server = logd()
    fs = dmfs(options=f"log_server={server.socket}")
    dev = fs.mkdir("m", line(legs, sectors, f"u clustered-core {REGION} nosync"))
    other = fs.mkdir("other", f"0 {sectors} linear {quote(legs[0])} 0")
    wait_status(dev, " 32/32 1 AA ")
    server.kill()
    script = "import os, mmap; os.pwrite(os.open({!r}, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096), {})"
    for sig in (signal.SIGKILL, None):
        writer = subprocess.Popen([sys.executable, "-c", script.format(dev.image, 0)], stderr=subprocess.DEVNULL)
        mounted.wait_until_waiting(writer)
        assert writer.poll() is None
        wait_status(dev, "COM_FAILURE")
        if sig:
            writer.send_signal(sig)
            assert writer.wait(300) == -sig
    assert direct(other, b"o" * 4096, 1000)      # nobody else waits
    dev.write("inactive", f"0 {sectors} linear {quote(legs[1])} 0\n")
    dev.suspend(noflush=True)
    dev.resume()
    assert writer.wait(300) == 0
    assert dev.table().split()[2] == "linear"
    dev.load(f"0 {sectors} linear {quote(legs[0])} 0")
    # and the end of the daemon with a mirror that waits
    server.start()
    dev.load(line(legs, sectors, f"u clustered-core {REGION} nosync"))
    server.kill()
    writer = subprocess.Popen([sys.executable, "-c", script.format(dev.image, 0)], stderr=subprocess.DEVNULL)
    mounted.wait_until_waiting(writer)
    fs.signal(signal.SIGTERM)
    assert fs.wait(300) == 0
    assert writer.wait(300) == 1


# --- the kernel's requests -----------------------------------------------------------------------------


def without_polls(names):
    """GET_SYNC_COUNT and STATUS_INFO come when time passes."""
    return [n for n in names if n not in ("GET_SYNC_COUNT", "STATUS_INFO")]


@pytest.mark.parametrize("integrated", [False, True])
def test_requests_are_the_kernel_s(dmfs, server, backing, integrated):
    sectors = 2048
    legs = [backing(sectors, pattern(sectors)), backing(sectors)]
    s = server(in_sync=False)
    s.sync = set(range(1, 32))
    fs = dmfs(options=f"log_server={s.socket}")
    flag = "integrated_flush " if integrated else ""
    dev = fs.mkdir("m", line(legs, sectors, f"my\\ uuid {flag}clustered-core {REGION} what\\ ever"))
    wait_status(dev, " 32/32 1 AA 1 clustered-core")
    s.wait_for(lambda seen: seen[-1].name == "STATUS_INFO" and any(m.name == "FLUSH" for m in seen))
    names = without_polls(s.names())
    assert names[:7] == ["CTR", "GET_REGION_SIZE", "RESUME", "GET_RESYNC_WORK", "IN_SYNC", "GET_RESYNC_WORK",
                         "SET_REGION_SYNC"], names
    assert names[-2:] == ["CLEAR_REGION", "FLUSH"] and set(names[7:-2]) <= {"GET_RESYNC_WORK"}, names
    first = s.seen[0]
    assert first.data == f"{sectors} clustered-core {REGION} what\\ ever".encode()
    assert {(m.luid, m.uuid, m.version, m.error) for m in s.seen} == {(first.luid, b"my uuid", 3, 0)}
    seqs = [m.seq for m in s.seen]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert dev.table().rstrip().endswith(f" {quote(legs[0])} 0 {quote(legs[1])} 0")
    assert f" userspace {5 if integrated else 4} my\\ uuid {flag}clustered-core {REGION} what\\ ever 2 " in dev.table()
    # a write: asked before and after the mark
    n, begin = len(s.seen), time.monotonic()
    direct(dev, b"w" * 4096, 5 * REGION)
    got = s.seen[n:]
    names = without_polls(m.name for m in got)
    want = ["IN_SYNC", *([] if integrated else ["MARK_REGION"]), "FLUSH", "IN_SYNC"]
    assert names[:len(want)] == want and set(names[len(want):]) <= {"CLEAR_REGION", "FLUSH"}, names
    assert [m.regions() for m in got if m.name == ("FLUSH" if integrated else "MARK_REGION")][0] == (5,)
    # a dirty region costs no request, a read always one
    n = len(s.seen)
    direct(dev, b"w" * 4096, 5 * REGION)
    direct(dev, bytes(4096), 5 * REGION, write=False)
    names = without_polls(m.name for m in s.seen[n:])
    assert names == ["IN_SYNC"] or time.monotonic() - begin > 0.5, names       # later it may be clean again
    n = len(s.seen)
    dev.suspend()
    names = [x for x in without_polls(m.name for m in s.seen[n:]) if x != "FLUSH"]
    assert names == ["PRESUSPEND", "CLEAR_REGION", "POSTSUSPEND"] or time.monotonic() - begin > 0.5, names
    assert not s.marked
    dev.resume()
    dev.remove()
    s.wait_for(lambda seen: seen[-1].name == "DTR")
    assert without_polls(s.names())[-3:] == ["PRESUSPEND", "POSTSUSPEND", "DTR"]


def in_pwrite(task):
    """Whether this thread of ours waits in a pwrite(2) for the daemon."""
    try:
        with open(f"/proc/self/task/{task}/wchan", encoding="ascii") as f:
            waits = f.read().startswith("request_wait_answer")
        with open(f"/proc/self/task/{task}/syscall", encoding="ascii") as f:
            return waits and f.read().split()[0] in ("18", "68")       # x86-64, others
    except OSError:
        return False


def test_marks_are_sent_in_groups(dmfs, server, backing):
    """What comes while the log is busy goes with the next message, 32 regions at most."""
    sectors, held = 64 * 256, threading.Event()
    legs = [backing(sectors), backing(sectors)]

    def hold_the_first(s, conn, m):
        if m.name == "MARK_REGION" and m.regions() == (255,):
            held.wait()

    s = server(regions=256, twist=hold_the_first)
    dev = dmfs(options=f"log_server={s.socket}").mkdir("m", line(legs, sectors, "u x 64"))
    writers = [threading.Thread(target=direct, args=(dev, b"w" * 512, r * REGION)) for r in (255, *range(100))]
    writers[0].start()
    s.wait_for(lambda seen: any(m.name == "MARK_REGION" for m in seen))
    for t in writers[1:]:
        t.start()
    try:
        while sum(in_pwrite(task) for task in os.listdir("/proc/self/task")) < len(writers):
            time.sleep(0.01)
        time.sleep(0.3)     # from there to the log; with fewer that have come the groups are smaller
    finally:
        held.set()
    for t in writers:
        t.join()
    marks = [m.regions() for m in s.seen if m.name == "MARK_REGION"]
    assert marks[0] == (255,) and max(map(len, marks)) <= 32 and len(marks) < 60
    assert sorted(r for m in marks[1:] for r in m) == list(range(100))


def others_have(remote):
    """A server that gives nothing out to be copied, and says of these regions that another host has them."""
    def twist(s, conn, m):
        if m.name not in ("IS_REMOTE_RECOVERING", "GET_RESYNC_WORK"):
            return False
        s.reply(conn, m, struct.pack("=qQ", m.name[0] == "I" and m.regions()[0] in remote, 0))
        return True
    return twist


def test_another_host_copies(dmfs, server, backing):
    """A write to a region that the server says another host copies waits; one that nobody copies goes to the first leg."""
    sectors = 2048
    legs = [backing(sectors), backing(sectors)]
    remote = {3}

    s = server(twist=others_have(remote))
    s.sync -= {3, 4}
    dev = dmfs(options=f"log_server={s.socket}").mkdir("m", line(legs, sectors, "u x 64"))
    direct(dev, b"4" * 4096, 4 * REGION)
    assert content(legs[0])[4 * REGION * SECTOR:][:4096] == b"4" * 4096
    assert content(legs[1])[4 * REGION * SECTOR:][:4096] == bytes(4096)
    t = threading.Thread(target=direct, args=(dev, b"3" * 4096, 3 * REGION))
    t.start()
    s.wait_for(lambda seen: sum(m.name == "IS_REMOTE_RECOVERING" and m.regions() == (3,) for m in seen) >= 2)
    assert t.is_alive() and content(legs[0])[3 * REGION * SECTOR:][:4096] == bytes(4096)
    s.sync.add(3)       # it is through
    t.join(300)
    assert not t.is_alive()
    assert content(legs[0])[3 * REGION * SECTOR:][:4096] == content(legs[1])[3 * REGION * SECTOR:][:4096] == b"3" * 4096


def test_what_is_got_is_not_given_back(dmfs, server, backing):
    """A clear that was noted before the region was handed out is not sent after that."""
    legs, fails, given = [backing(2048), backing(2048)], threading.Event(), []

    def twist(s, conn, m):
        if m.name == "GET_RESYNC_WORK":     # so that it stays out of sync
            s.reply(conn, m, bytes(16))
            return True
        if m.name == "IS_REMOTE_RECOVERING":
            given.append(len(s.seen))
        if m.name == "IN_SYNC" and 3 in s.marked and fails.is_set():
            fails.clear()
            s.sync.discard(3)
            s.reply(conn, m, error=-errno.EIO)
            return True
        return False

    s = server(twist=twist)
    dev = dmfs(options=f"log_server={s.socket}").mkdir("m", line(legs, 2048, "u x 64"))
    fails.set()
    with pytest.raises(OSError):
        direct(dev, b"3" * 4096, 3 * REGION)
    direct(dev, b"4" * 4096, 3 * REGION)
    polls = s.names().count("STATUS_INFO")
    s.wait_for(lambda seen: sum(m.name == "STATUS_INFO" for m in seen) >= polls + 2)
    assert given and not [m for m in s.seen[given[0]:] if m.name == "CLEAR_REGION" and 3 in m.regions()]
    assert content(legs[0])[3 * REGION * SECTOR:][:4096] == b"4" * 4096


def test_without_an_answer_nothing_is_written(dmfs, server, backing):
    """To a region that is marked, either: it may be another host's by the time there is a server again; then that counts."""
    legs = [backing(2048), backing(2048)]
    silent, remote = threading.Event(), set()
    told = others_have(remote)

    def twist(s, conn, m):
        return told(s, conn, m) or silent.is_set()

    def on_disk(region):
        return content(legs[0])[region * REGION * SECTOR:][:4096]

    s = server(twist=twist)
    dev = dmfs(options=f"log_server={s.socket},log_timeout=0.5").mkdir("m", line(legs, 2048, "u x 64"))
    for _ in range(20):     # on a busy machine the first may be clean again before the server falls silent
        for region in (5, 6):
            direct(dev, b"a" * 4096, region * REGION)
        silent.set()
        if {5, 6} <= s.marked:
            break
        silent.clear()
    assert {5, 6} <= s.marked
    wait_status(dev, "COM_FAILURE")
    writers = [threading.Thread(target=direct, args=(dev, b"b" * 4096, region * REGION)) for region in (5, 6)]
    for w in writers:
        w.start()
    # a request of theirs has gone unanswered by now, and is sent again
    s.wait_for(lambda seen: sum(m.name == "IN_SYNC" for m in seen[-4:]) >= 2)
    assert on_disk(5) == on_disk(6) == b"a" * 4096
    s.sync.discard(5)       # there has been a crash, and another host copies 5 by now
    remote.add(5)
    n = len(s.seen)
    silent.clear()
    for conn in list(s.conns):
        conn.shutdown(2)
    writers[1].join(300)
    assert not writers[1].is_alive() and on_disk(6) == b"b" * 4096
    s.wait_for(lambda seen: sum(m.name == "IS_REMOTE_RECOVERING" for m in seen[n:]) >= 3)
    assert writers[0].is_alive() and on_disk(5) == b"a" * 4096
    names = [m.name for m in s.seen[n:]]
    assert names.index("CTR") < names.index("RESUME") < names.index("MARK_REGION") < names.index("FLUSH")
    assert {5, 6} <= {r for m in s.seen[n:] if m.name == "MARK_REGION" for r in m.regions()}
    assert any(m.name == "CLEAR_REGION" and 5 in m.regions() for m in s.seen[n:])
    s.sync.add(5)
    writers[0].join(300)
    assert not writers[0].is_alive() and on_disk(5) == b"b" * 4096


# --- servers that misbehave --------------------------------------------------------------------------------


def raw(data):
    def send(s, conn, m):
        conn.send(data)
    return send


def answer(**kw):
    def send(s, conn, m):
        s.reply(conn, m, **{"data": s.answer(m), **kw})
    return send


# What a server does instead of answering (CTR and GET_REGION_SIZE), and what the table's writer gets to know
CTR = {
    "refuses": ("CTR", answer(error=-errno.EPERM, data=b""), errno.EPERM, "refused CTR '2048 x 64'"),
    "a positive error": ("CTR", answer(error=5), errno.ETIMEDOUT, "did not answer to CTR"),
    "silence": ("CTR", lambda *_: None, errno.ETIMEDOUT, "did not answer to CTR, 2 times"),
    "too short": ("CTR", raw(b"x" * 159), errno.ETIMEDOUT, "did not answer"),
    "too long": ("CTR", raw(b"\1" * 20000), errno.ETIMEDOUT, "did not answer"),
    "empty": ("CTR", raw(b""), errno.ETIMEDOUT, "did not answer"),
    "another size": ("CTR", answer(size=7), errno.ETIMEDOUT, "did not answer"),
    "another uuid": ("CTR", answer(uuid=b"other"), errno.ETIMEDOUT, "did not answer"),
    "a uuid without end": ("CTR", answer(uuid=b"u" * 129), errno.ETIMEDOUT, "did not answer"),
    "another version": ("CTR", answer(version=4), errno.ETIMEDOUT, "did not answer"),
    "another type": ("CTR", answer(type=99), errno.ETIMEDOUT, "did not answer"),
    "another seq": ("CTR", answer(seq=12345), errno.ETIMEDOUT, "did not answer"),
    "another luid": ("CTR", answer(luid=12345), errno.ETIMEDOUT, "did not answer"),
    "again and again": ("CTR", answer(error=-errno.EAGAIN, data=b""), errno.EAGAIN, "refused|did not"),
    "hangs up": ("CTR", lambda s, conn, m: conn.shutdown(2), errno.ESRCH, "closed the connection"),
    "a device that is not": ("CTR", answer(data=b"/nonexistent\0"), errno.ENOENT, "/nonexistent"),
    "a device without end": ("CTR", answer(data=b"/dev/null"), errno.EINVAL, "does not end"),
    "region size 0": ("GET_REGION_SIZE", answer(data=bytes(8)), errno.EINVAL, "region size 0"),
    "region size 3": ("GET_REGION_SIZE", answer(data=struct.pack("=Q", 3)), errno.EINVAL, "region size 3"),
    "a huge region size": ("GET_REGION_SIZE", answer(data=struct.pack("=Q", 1 << 40)), errno.EINVAL, "region size 1099511627776"),
    "region size in 4 bytes": ("GET_REGION_SIZE", answer(data=bytes(4)), errno.EINVAL, "in 4 bytes"),
}


def test_bad_answers_refuse_the_table(dmfs, server, backing):
    legs = [backing(2048), backing(2048)]
    now = [None, None]

    def twist(s, conn, m):
        if m.name != now[0]:
            return False
        now[1](s, conn, m)
        return True

    s = server(twist=twist)
    dev = dmfs(options=f"log_server={s.socket},log_timeout=0.5").mkdir("m", f"0 2048 linear {quote(legs[0])} 0")
    text = line(legs, 2048, "u x 64") + "\n"
    slow = {"silence"}      # two seconds: the others of its kind together
    for name, (now[0], now[1], code, match) in CTR.items():
        if code == errno.ETIMEDOUT and name not in slow:
            continue
        if code == errno.EAGAIN:
            code = errno.ETIMEDOUT if "did not answer" in str(try_load(dev, text)) else errno.EAGAIN
            continue
        dev.refuse(text, code=code, match=match)
    # the rest sends its nonsense before the right answer, which counts
    now[0] = "CTR"

    def all_nonsense(s, conn, m):
        for name, (_, send, code, _) in CTR.items():
            if code == errno.ETIMEDOUT and name != "silence":
                send(s, conn, m)
        s.reply(conn, m)
        s.reply(conn, m)        # and twice

    now[1] = all_nonsense
    dev.load(text)
    assert dev.table().split()[2] == "mirror"
    for what in ("shorter than its header", "too long", "empty message", "not as long", "another log", "does not end",
                 "version", "type is not known", "late, or was never asked for", "no errno"):
        assert what in dev.mount.read("log"), what
    s.close = lambda close=s.close: close()


def try_load(dev, text):
    try:
        dev.write("table", text)
    except OSError:
        return dev.read("error")
    return ""


def test_no_server(dmfs, backing, work):
    legs = [backing(2048), backing(2048)]
    dev = dmfs(options=f"log_server={work}/nobody").mkdir("m")
    dev.refuse(line(legs, 2048, "u clustered-core 64") + "\n", code=errno.ESRCH, match="userspace log server not found: .*/nobody")


def bad_later(name, send):
    """A server that misbehaves in one kind of request once the mirror is up."""
    armed = threading.Event()

    def twist(s, conn, m):
        if not armed.is_set() or m.name != name:
            return False
        send(s, conn, m)
        return True

    return armed, twist


@pytest.mark.parametrize("name, send, fails", [
    ("IN_SYNC", answer(data=struct.pack("=q", 7)), True),
    ("IN_SYNC", answer(data=b""), True),
    ("IN_SYNC", answer(error=-errno.EIO, data=b""), True),
    ("MARK_REGION", answer(error=-errno.EIO), True),
    ("FLUSH", answer(error=-errno.ENOSPC), True),
    ("FLUSH", answer(data=b"nobody asked"), False),
])
def test_bad_answers_fail_the_write(dmfs, server, backing, name, send, fails):
    """With a reason in the log, and the data of a write that failed is on no leg."""
    legs = [backing(2048), backing(2048)]
    armed, twist = bad_later(name, send)
    s = server(twist=twist)
    fs = dmfs(options=f"log_server={s.socket}")
    dev = fs.mkdir("m", line(legs, 2048, "u x 64"))
    direct(dev, b"a" * 4096, 0)
    armed.set()
    if fails:
        with pytest.raises(OSError) as e:
            direct(dev, b"b" * 4096, 5 * REGION)
        assert e.value.errno == errno.EIO
        assert content(legs[0])[5 * REGION * SECTOR:][:4096] == bytes(4096)
        assert name in fs.read("log") or "flush failed" in fs.read("log")
    else:
        direct(dev, b"b" * 4096, 5 * REGION)
    try:
        direct(dev, b"c" * 4096, 8)         # what is marked goes on
    except OSError:         # on a slow machine it is not marked any more
        assert any(m.name == "CLEAR_REGION" and 0 in m.regions() for m in s.seen)
    else:
        assert direct(dev, bytes(4096), 8, write=False) == b"c" * 4096
    armed.clear()
    direct(dev, b"d" * 4096, 9 * REGION)


def test_lies_about_the_resync(dmfs, server, backing):
    """Regions that are not there, the same one for ever, more in sync than there are: the mirror goes on."""
    legs = [backing(2048, pattern(2048)), backing(2048)]
    lies = iter([struct.pack("=qQ", 1, 1 << 60), struct.pack("=qQ", 1, 32), b"", b"x" * 17, struct.pack("=qQ", 1, 5),
                 struct.pack("=qQ", 1, 5), struct.pack("=qQ", 1, 5)])
    counts = iter([1 << 50, 33])

    def twist(s, conn, m):
        data = next({"GET_RESYNC_WORK": lies, "GET_SYNC_COUNT": counts}.get(m.name, iter(())), None)
        if m.name == "STATUS_INFO":
            data = b"1 bad\n\x1bstatus" + b"x" * 8000
        if data is None:
            return False
        s.reply(conn, m, struct.pack("=Q", data) if isinstance(data, int) else data)
        return True

    s = server(in_sync=False, twist=twist)
    fs = dmfs(options=f"log_server={s.socket}")
    dev = fs.mkdir("m", line(legs, 2048, "u x 64"))
    wait_status(dev, r" 32/32 1 AA 1 bad\?\?statusx+$")
    assert content(legs[0]) == content(legs[1])
    assert "there is no such region" in fs.read("log")


def test_late_and_lost_answers(dmfs, server, backing):
    """Each kind of request goes unanswered once, and the answer comes after the next: sent again, nothing is done twice."""
    sectors = 2048
    legs = [backing(sectors, pattern(sectors)), backing(sectors)]
    lost, due = set(), []

    def twist(s, conn, m):
        while due:
            s.reply(conn, *due.pop())
        if m.name in lost or m.name in ("CTR", "GET_REGION_SIZE", "STATUS_INFO", "GET_SYNC_COUNT"):
            return False
        lost.add(m.name)
        due.append((m, s.answer(m)))
        return True

    s = server(in_sync=False, twist=twist)
    fs = dmfs(options=f"log_server={s.socket},log_timeout=0.5")
    dev = fs.mkdir("m", line(legs, sectors, "u x 64"))
    wait_status(dev, " 32/32 1 AA ")
    s.wait_for(lambda seen: sum(m.name == "CLEAR_REGION" and 5 in m.regions() for m in seen) == 2)
    s.wait_for(lambda seen: seen[-1].name in ("GET_SYNC_COUNT", "STATUS_INFO"))
    data = b"w" * 4096
    direct(dev, data, 5 * REGION)
    assert content(legs[0]) == content(legs[1])
    assert direct(dev, bytes(4096), 5 * REGION, write=False) == data
    assert {"RESUME", "GET_RESYNC_WORK", "IN_SYNC", "MARK_REGION", "FLUSH", "SET_REGION_SYNC"} <= lost
    assert "timed out: retrying" in fs.read("log")


# --- dmfs-logd alone --------------------------------------------------------------------------------------


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
