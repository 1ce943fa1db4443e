# SPDX-License-Identifier: GPL-2.0-or-later
"""multipath through the mount: groups, selectors, paths that fail and come back, waiting, and real NBD servers."""

import contextlib
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from mounted import SECTOR, build_dir, pattern, quote, wait_until_waiting

SECTORS = 2048
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KILLS = int(os.environ.get("MULTIPATH_KILLS", "8"))


@pytest.fixture
def paths(fs, backing):
    """paths(N): N devices p0, p1, ... on one file of random bytes; paths.fail(I), paths.mend(I), paths.file."""

    class Paths:
        def __init__(self):
            self.file = backing(SECTORS, pattern(SECTORS, 1))

        def __call__(self, count):
            for i in range(count):
                fs.mkdir(f"p{i}", self.line())
            return self

        def line(self):
            return f"0 {SECTORS} linear {quote(self.file)} 0"

        def fail(self, i):
            fs[f"p{i}"].load(f"0 {SECTORS} error")

        def mend(self, i):
            fs[f"p{i}"].load(self.line())

        def content(self):
            with open(self.file, "rb") as f:
                return f.read()

    return Paths()


def simple(count, features="0", selector="round-robin", args=""):
    each = " ".join(f"p{i} {args}".strip() for i in range(count))
    return f"0 {SECTORS} multipath {features} 0 1 1 {selector} 0 {count} {len(args.split())} {each}"


def fails(dev, i=0):
    """The state and count of failures of p<i>."""
    words = dev.status().split()
    at = words.index(f"p{i}")
    return words[at + 1], int(words[at + 2])


@contextlib.contextmanager
def reading(path, flags=0):
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


class Waiting:
    """A read or write in a thread that is expected to wait."""

    def __init__(self, work):
        self.error = None
        self.thread = threading.Thread(target=self.run, args=(work,))
        self.thread.start()

    def run(self, work):
        try:
            work()
        except OSError as e:
            self.error = e.errno

    def waits(self):
        self.thread.join(0.2)
        return self.thread.is_alive()

    def over(self):
        self.thread.join(300)
        assert not self.thread.is_alive()
        return self.error


def test_data_goes_through_and_both_ways_print_alike(fs, paths):
    paths(2)
    dev = fs.mkdir("m", simple(2, args="1"))
    assert dev.pread(SECTORS * SECTOR, 0) == paths.content()
    new = pattern(40, 7)
    dev.pwrite(new, 5 * SECTOR, sync=True)
    assert paths.content()[5 * SECTOR:45 * SECTOR] == new
    assert dev.table() == simple(2, args="1") + "\n"
    dev.load(dev.table())
    assert dev.status() == f"0 {SECTORS} multipath 2 1 0 0 1 1 E 0 2 0 p0 A 0 p1 A 0\n"
    dev.discard(0, 1 << 19)
    dev.zero(1 << 19, 1 << 16)
    assert dev.pread(1 << 16, 1 << 19) == bytes(1 << 16)


def test_a_failing_path_costs_no_error(fs, paths):
    paths(3)
    dev = fs.mkdir("m", simple(3))
    with reading(fs.path("m", "events"), os.O_NONBLOCK) as events:
        paths.fail(1)
        for i in range(12):
            assert dev.pread(4096, i * 4096) == paths.content()[i * 4096:(i + 1) * 4096]
        assert fails(dev, 1) == ("F", 1) and fails(dev, 0) == ("A", 0)
        line = os.read(events, 65536).decode()
        assert " DM_TARGET=multipath DM_ACTION=PATH_FAILED DM_PATH=p1 DM_NR_VALID_PATHS=2 " in line
        paths.mend(1)
        dev.pread(4096, 0)
        assert fails(dev, 1) == ("F", 1), "nobody has reinstated it"
        dev.message("reinstate_path p1")
        dev.message("reinstate_path p1")
        line = os.read(events, 65536).decode()
        assert line.count("DM_ACTION=PATH_REINSTATED DM_PATH=p1 DM_NR_VALID_PATHS=3") == 1
        assert fails(dev, 1) == ("A", 1)


@pytest.mark.parametrize("name,failed", [("ENOSPC", "A"), ("EINVAL", "A"), ("EPERM", "A"), ("EIO", "F")])
def test_an_error_of_the_medium_is_the_callers(fs, serve, backing, name, failed):
    """What every path would answer alike does not fail the path; an I/O error does."""
    server = serve.nbdkit("--filter=error", "file", backing(SECTORS), f"error={name}", "error-pwrite-rate=100%")
    dev = fs.mkdir("m", f"0 {SECTORS} multipath 0 0 1 1 round-robin 0 1 0 {quote(server.uri)}")
    with pytest.raises(OSError) as e:
        dev.pwrite(bytes(4096), 0, sync=True)
    assert e.value.errno == getattr(errno, name)
    state = dev.status().split()
    assert state[state.index(quote(server.uri)) + 1] == failed


def test_all_paths_gone(fs, paths):
    paths(2)
    dev = fs.mkdir("m", simple(2))
    paths.fail(0)
    paths.fail(1)
    with pytest.raises(OSError) as e:
        dev.pread(4096, 0)
    assert e.value.errno == errno.EIO
    assert fails(dev, 0) == fails(dev, 1) == ("F", 1)
    with dev.open() as fd, pytest.raises(OSError):
        os.write(fd, bytes(4096))
        os.fsync(fd)


@pytest.mark.parametrize("mode", ["bio", "rq"])
@pytest.mark.parametrize("ends", ["reinstate", "message", "suspend", "noflush", "noflush resume", "wipe", "end"])
def test_queueing_without_a_path(fs, paths, mode, ends):
    paths(1)
    dev = fs.mkdir("m", simple(1, f"3 queue_if_no_path queue_mode {mode}"))
    dev.message("fail_path p0")
    data = pattern(8, 5)
    write = Waiting(lambda: dev.pwrite(data, 0, sync=True))
    assert write.waits()
    if ends == "reinstate":
        dev.message("reinstate_path p0")
        assert write.over() is None and paths.content()[:4096] == data
    elif ends == "message":
        dev.message("fail_if_no_path")
        assert write.over() == errno.EIO
        assert "queue_if_no_path" not in dev.table()
        dev.message("queue_if_no_path")
        assert "queue_if_no_path" in dev.table()
    elif ends == "suspend":
        dev.suspend()
        assert write.over() == errno.EIO
        assert "queue_if_no_path" not in dev.table()
        dev.resume()
        assert "queue_if_no_path" in dev.table()
    elif ends == "noflush":
        dev.suspend(noflush=True)
        assert ("queue_if_no_path" in dev.table()) == (mode == "rq"), "as the kernel says"
        assert write.waits()
        dev.load(simple(1))
        dev.resume()
        assert write.over() is None and paths.content()[:4096] == data
    elif ends == "noflush resume":
        dev.suspend(noflush=True)
        dev.resume()
        assert write.waits(), "it queues again"
        dev.message("reinstate_path p0")
        assert write.over() is None and paths.content()[:4096] == data
    elif ends == "wipe":    # as dmsetup wipe_table --noflush: what was queued meets the new table
        dev.load(f"0 {SECTORS} error", to="inactive")
        dev.write("suspend", "0 noflush\n")
        assert write.over() == errno.EIO
        dev.load(paths.line())
        dev.pwrite(data, 4096, sync=True)
        assert paths.content()[:8192] == pattern(SECTORS, 1)[:4096] + data
    else:
        fs.signal(15)
        assert write.over() in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
        assert fs.wait() == 0


@pytest.mark.parametrize("removal", ["at once", "deferred"])
def test_removal_while_queueing(fs, paths, removal):
    """As long as somebody waits the device is in use; when he is killed it can go, or goes by itself."""
    paths(1)
    dev = fs.mkdir("m", simple(1, "1 queue_if_no_path"))
    dev.message("fail_path p0")
    code = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR | os.O_SYNC), b'n' * 4096, 0)"
    with reading(fs.path("events")) as events, subprocess.Popen([sys.executable, "-c", code, dev.image]) as p:
        try:
            wait_until_waiting(p)
            if removal == "at once":
                with pytest.raises(OSError) as e:
                    dev.remove()
                assert e.value.errno == errno.EBUSY
            else:
                fs.write("control", "remove m deferred\n")
            assert p.poll() is None and "m" in fs.devices()
        finally:
            p.kill()
        assert p.wait(300) == -signal.SIGKILL
        if removal == "deferred":
            seen = b""
            while b"ACTION=remove DM_NAME=m " not in seen:
                seen += os.read(events, 65536)
        else:
            dev.remove()
    assert "m" not in fs.devices()
    assert paths.content() == pattern(SECTORS, 1), "what was killed has changed nothing"
    fs["p0"].remove()


def test_a_forced_removal_while_queueing(fs, paths):
    """remove --force gives who waits errors, and takes the device when he has closed it."""
    paths(1)
    dev = fs.mkdir("m", simple(1, "1 queue_if_no_path"))
    dev.message("fail_path p0")
    with dev.open() as fd:
        write = Waiting(lambda: os.fsync(fd))
        assert write.waits()
        done = subprocess.run([os.path.join(build_dir(), "dmfsctl"), "remove", "--force", "m"], capture_output=True, text=True,
                              timeout=300, check=False, env=os.environ | {"DMFS_MOUNT": fs.mountpoint})
        assert done.returncode == 1 and "busy" in done.stderr, done
        assert write.over() == errno.EIO
        assert dev.table() == f"0 {SECTORS} error\n"
    dev.remove()
    assert paths.content() == pattern(SECTORS, 1)


def test_groups(fs, paths):
    paths(3)
    dev = fs.mkdir("m", f"0 {SECTORS} multipath 0 0 3 2 round-robin 0 1 0 p0 queue-length 0 1 1 p1 1 service-time 0 1 2 p2 1 3")
    groups = lambda: dev.status().split()[8]    # the group that is, or will be, current
    assert groups() == "2"
    dev.pread(512, 0)
    assert " 3 2 E 0 1 0 p0 A 0 A 0 1 1 p1 A 0 0 E 0 1 2 p2 A 0 0 3" in dev.status()
    dev.message("switch_group 3")
    assert groups() == "3" and " A 0 1 2 p2" not in dev.status()
    dev.pread(512, 0)
    assert " A 0 1 2 p2" in dev.status()
    dev.message("disable_group 3")
    assert " D 0 1 2 p2" in dev.status()
    dev.pread(512, 0)
    assert groups() == "1"
    dev.message("disable_group 1")
    dev.message("disable_group 2")
    dev.pread(512, 0)
    assert groups() == "1", "when all are bypassed the first is used all the same"
    dev.message("enable_group 2")
    dev.pread(512, 0)
    assert groups() == "2"
    paths.fail(1)
    dev.pread(512, 0)
    assert groups() == "1", "bypassed ones come last"


@pytest.mark.parametrize("selector,args", [("round-robin", ""), ("queue-length", "1"), ("service-time", "1 4"),
                                           ("historical-service-time", "")])
def test_idle_paths_take_turns(fs, backing, selector, args):
    """One read at a time: each file is read by its own path, as the counters of the devices below tell."""
    data = [bytes([i]) * 4096 for i in range(3)]
    for i in range(3):
        fs.mkdir(f"p{i}", f"0 8 linear {quote(backing(8, data[i]))} 0")
    dev = fs.mkdir("m", simple(3, selector=selector, args=args).replace(f"0 {SECTORS}", "0 8", 1))
    seen = []
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        for _ in range(9):
            assert os.preadv(fd, [buf], 0) == 4096
            seen.append(buf[0])
    if selector == "historical-service-time":   # by what they took; but an idle path is tried
        assert set(seen[:3]) == {0, 1, 2}
    else:
        assert seen == [0, 1, 2] * 3


def test_a_slow_path_gets_little(fs, backing):
    """service-time: a path that is ten times slower gets a fifth of the requests at most."""
    path = backing(8192)
    for i, ms in enumerate((20, 2)):
        fs.mkdir(f"p{i}", f"0 8192 delay {quote(path)} 0 {ms}")
        fs[f"p{i}"].message("@stats_create - /1")
    dev = fs.mkdir("m", "0 8192 multipath 0 0 1 1 service-time 0 2 1 p0 1 p1 1")

    def read(seed):
        rnd = random.Random(seed)
        with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
            buf = mmap.mmap(-1, 4096)
            for _ in range(60):
                os.preadv(fd, [buf], rnd.randrange(1024) * 4096)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    counts = []
    for i in range(2):
        fs[f"p{i}"].message("@stats_print 0")
        counts.append(int(fs[f"p{i}"].read("message").split()[1]))
    assert sum(counts) >= 480 and counts[0] <= sum(counts) / 5, counts


def test_messages(fs, paths):
    paths(2)
    dev = fs.mkdir("m", simple(2))
    fs.mkdir("other", paths.line())
    for text in ("nonsense", "fail_path", "fail_path p0 p1", "queue_if_no_path 1", "switch_group 0", "switch_group 2",
                 "switch_group 1x", "disable_group -1", "enable_group", "fail_path other"):
        with pytest.raises(OSError) as e:
            dev.message(text)
        assert e.value.errno == errno.EINVAL, text
    with pytest.raises(OSError) as e:
        dev.message("fail_path /nonexistent")
    assert e.value.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
    dev.message("Fail_Path p0")
    dev.message("FAIL_PATH p0")
    assert fails(dev, 0) == ("F", 1)
    dev.message("reinstate_path p0")
    dev.suspend()
    with pytest.raises(OSError) as e:
        dev.message("fail_path p0")
    assert e.value.errno == errno.EBUSY
    dev.resume()


REFUSED = [
    ("0 0 1 1 x 0 1 0 p0", "unknown path selector"), ("0 0 1 2 x", "not enough priority group"), ("", "feature args"), ("9 a b c d e f g h i", "feature args"),
    ("1 nonsense 0 0 0", "nonsense"), ("2 pg_init_retries 0 0 0 0", "pg_init_retries"),
    ("2 pg_init_retries 51 0 0 0", "51"), ("2 pg_init_delay_msecs 60001 0 0 0", "60001"),
    ("1 pg_init_retries 0 0 0", "pg_init_retries"), ("2 queue_mode fast 0 0 0", "fast"), ("5 queue_if_no_path", "args"),
    ("0 2 alua", "hardware handler"), ("0 0", "missing"), ("0 0 1", "missing"), ("0 0 1025 1", "1025"),
    ("0 0 1 0", "initial priority group"), ("0 0 0 1", "initial priority group"), ("0 0 1 1", "count mismatch"),
    ("0 0 1 1 round-robin", "not enough priority group"), ("0 0 1 1 round-robin 1", "path selector args"),
    ("0 0 1 1 round-robin 0", "number of paths"), ("0 0 1 1 round-robin 0 0 0", "paths"),
    ("0 0 1 1 round-robin 0 1", "path args"), ("0 0 1 1 round-robin 0 1 0", "not enough path parameters"),
    ("0 0 1 1 round-robin 0 2 1 p0 1", "not enough path parameters"), ("0 0 1 1 round-robin 0 1 1 p0 x", "'x'"),
    ("0 0 1 1 round-robin 0 1 2 p0 1 2", "round-robin"), ("0 0 1 1 service-time 0 1 2 p0 1 101", "101"),
    ("0 0 1 1 service-time 0 1 3 p0 1 1 1", "service-time"), ("0 0 1 1 io-affinity 0 1 0 p0", "io-affinity"),
    ("0 0 1 1 io-affinity 0 1 1 p0 0", "io-affinity"), ("0 0 1 1 io-affinity 0 1 1 p0 g", "io-affinity"),
    ("0 0 1 1 historical-service-time 1 1024 1 0 p0", "1024"),
    ("0 0 1 1 round-robin 0 1 0 p0 rest", "not enough priority group"),
    ("0 0 2 1 round-robin 0 1 0 p0", "count mismatch"), ("0 0 1 1 round-robin 0 1 0 /nonexistent", "error getting device"),
    ("0 0 1 1 round-robin 0 1 0 m", "error getting device"),
    ("0 0 1 1 round-robin 0 1 0 small", "small"), ("-1 0 0 0", "feature args"),
]


@pytest.mark.parametrize("args,why", REFUSED)
def test_refused(fs, paths, args, why):
    paths(1)
    fs.mkdir("small", "0 8 zero")
    dev = fs.mkdir("m")
    with pytest.raises(OSError):
        dev.load(f"0 {SECTORS} multipath {args}")
    assert why in dev.error()
    assert dev.table() == ""


def test_only_target_and_forever(fs, paths):
    """Nothing beside it and nothing after it, but errors, as the kernel has it: wipe_table is to work."""
    paths(1)
    dev = fs.mkdir("m")
    with pytest.raises(OSError):
        dev.load(simple(1) + f"\n{SECTORS} 8 zero")
    dev.load(simple(1))
    with pytest.raises(OSError):
        dev.load(paths.line())
    assert "immutable" in dev.error()
    dev.load(f"0 8 linear p0 0\n8 {SECTORS - 8} error")
    dev.load(paths.line())


def test_path_check(dmfs, backing):
    fs = dmfs(options="path-check=1")
    path = backing(SECTORS, pattern(SECTORS, 1))
    fs.mkdir("p0", f"0 {SECTORS} linear {quote(path)} 0")
    dev = fs.mkdir("m", simple(1, "1 queue_if_no_path"))
    fs["p0"].load(f"0 {SECTORS} error")
    read = Waiting(lambda: dev.pread(4096, 0))
    assert read.waits()
    fs["p0"].load(f"0 {SECTORS} linear {quote(path)} 0")
    assert read.over() is None
    assert fails(dev) == ("A", 1)


def two_servers(serve, backing, sectors):
    path = backing(sectors, os.urandom(sectors * SECTOR))
    return path, [serve.nbdkit("file", path, "cache=none") for _ in range(2)]


def nbd_line(sectors, servers, features="0"):
    uris = " ".join(quote(s.uri) for s in servers)
    return f"0 {sectors} multipath {features} 0 1 1 queue-length 0 {len(servers)} 0 {uris}"


def test_servers_die_in_turns_under_load(dmfs, serve, backing):
    """One of two real servers is killed and started again, over and over: no error, nothing lost, data verified."""
    sectors = 8192
    fs = dmfs(options="path-check=1")
    path, servers = two_servers(serve, backing, sectors)
    dev = fs.mkdir("m", nbd_line(sectors, servers))
    with open(path, "rb") as f:
        expected = bytearray(f.read())
    span, errors, stop = sectors * SECTOR // 4, [], threading.Event()
    rounds = [0] * 4

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
                    if rounds[i] % 50 == 0:
                        os.fsync(fd)
        except BaseException as e:  # the thread has no other way to tell
            errors.append(e)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    try:
        for n in range(KILLS):
            victim = servers[n % 2]
            with reading(fs.path("m", "events")) as events:
                victim.kill()
                while b"PATH_FAILED" not in os.read(events, 65536):
                    pass
                before = list(rounds)
                victim.start()
                while b"PATH_REINSTATED" not in os.read(events, 65536):
                    pass
                assert not errors, errors
                assert any(a > b for a, b in zip(rounds, before)), "the other path carried on"
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors, errors
    with dev.open() as fd:
        os.fsync(fd)
    with open(path, "rb") as f:
        assert f.read() == expected


def test_a_server_that_hangs(dmfs, serve, backing):
    """What it has got and does not answer within nbd_timeout is sent again, reads and writes."""
    fs = dmfs(options="nbd_timeout=3")
    path, servers = two_servers(serve, backing, SECTORS)
    with open(path, "rb") as f:
        expected = bytearray(f.read())
    dev = fs.mkdir("m", nbd_line(SECTORS, servers))
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        servers[0].process.send_signal(signal.SIGSTOP)
        try:
            for i in range(8):
                buf[:] = expected[i * 4096:(i + 1) * 4096] = bytes([i + 1]) * 4096
                assert os.pwritev(fd, [buf], i * 4096) == 4096
                assert os.preadv(fd, [buf], (8 + i) * 4096) == 4096
                assert buf[:] == expected[(8 + i) * 4096:(9 + i) * 4096]
            os.fsync(fd)
            words = dev.status().split()
            assert [words[words.index(quote(s.uri)) + 1] for s in servers] == ["F", "A"]
        finally:
            servers[0].process.send_signal(signal.SIGCONT)
    assert dev.pread(SECTORS * SECTOR, 0) == expected


def test_fsync_without_a_path(fs, paths):
    """A FLUSH waits for a path as any request does, and none of its parts says that it is done."""
    paths(2)
    dev = fs.mkdir("m", simple(2, "1 queue_if_no_path"))
    with dev.open() as fd:
        os.pwrite(fd, bytes(4096), 0)
        os.fsync(fd)
        os.pwrite(fd, bytes(4096), 0)
        for i in range(2):
            dev.message(f"fail_path p{i}")
        flush = Waiting(lambda: os.fsync(fd))
        assert flush.waits()
        dev.message("reinstate_path p1")
        assert flush.over() is None


def test_flush_covers_all_paths(fs, serve, backing, work):
    """A FLUSH reaches every server that has taken a write, not only one of them."""
    path = backing(SECTORS)
    logs = [os.path.join(work, f"log{i}") for i in range(2)]
    servers = [serve.nbdkit("--filter=log", "file", path, f"logfile={log}") for log in logs]
    uris = " ".join(quote(s.uri) for s in servers)
    dev = fs.mkdir("m", f"0 {SECTORS} multipath 0 0 1 1 round-robin 0 2 0 {uris}")
    count = lambda what: [open(log, encoding="utf-8").read().count(what) for log in logs]
    with dev.open(os.O_RDWR | os.O_DSYNC) as fd:
        pass
    with dev.open() as fd:
        for i in range(4):
            os.pwrite(fd, bytes([i + 1]) * 4096, i * 4096)
        os.fsync(fd)
        assert all(count(" Write ")), "both took writes"
        assert all(count(" Flush ")), "both were flushed"
        before = sum(count(" Flush "))
        os.fsync(fd)
        assert sum(count(" Flush ")) <= before + 2


def test_example(fs, serve, backing, sh, work):
    """One image through two servers, one killed while a filesystem on it is written to."""
    out = sh(f'exec {TOP}/contrib/examples/multipath-nbd "$1"', os.path.join(work, "disk image"), DMFS_MOUNT=fs.mountpoint,
             PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", check=False)
    if out.returncode == 77:
        pytest.skip(out.stderr.strip())
    assert out.returncode == 0, out.stdout + out.stderr
    assert "PATH_FAILED" in out.stdout and "clean" in out.stdout
    assert "m" not in fs.devices()
