# SPDX-License-Identifier: GPL-2.0-or-later
"""Userspace dirty logs: mirrors of several daemons on one store, servers that die, and what is asked of them."""

import errno
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

import mounted
from log_server import Client, REGION, content, direct, line, wait_status
from mounted import SECTOR, pattern, quote


def assert_same(legs):
    """Says which blocks differ, and of which regions they are."""
    a, b = map(content, legs)
    blocks = [] if a == b else [i for i in range(len(a) // 4096) if a[i * 4096:][:4096] != b[i * 4096:][:4096]]
    assert not blocks, f"blocks that differ: {blocks}, of regions {sorted({i * 8 // REGION for i in blocks})}"
    assert len(a) == len(b)


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
