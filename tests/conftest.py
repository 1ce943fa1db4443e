# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share: a mounted dmfs, backing files, loop devices, and a watchdog."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest

import mounted
import nbd_server
from caches import Cache
from disks import Opener, put
from log_server import Gate, Logd, Server
from mounted import SECTOR
from run import Run, needs
from thinpool import Pool

running = set()     # daemons of the current test, for the watchdog


def pytest_collection_modifyitems(items):
    if os.geteuid():
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_configure(config):
    # a terminated run cleans up its mounts and guests too
    def terminated(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)


class OutOfTime(Exception):
    pass


def _on_signal(number, frame):
    raise OutOfTime("out of time: its daemons were killed")


@pytest.fixture(autouse=True)
def watchdog(request):
    """A hanging daemon must not hang the run: killing it makes the test's system calls return.

    Only for hangs: it allows far more than a machine needs that is ten times slower, or as busy.
    """
    marker = request.node.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else 900
    old = signal.signal(signal.SIGUSR2, _on_signal)
    over, barked = threading.Event(), threading.Event()

    def bark():
        if over.is_set():
            return
        barked.set()
        for d in list(running):
            d.kill()
        mounted.interrupt_main()

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    yield
    over.set()
    timer.cancel()
    signal.signal(signal.SIGUSR2, old)
    if barked.is_set():     # pytest may have swallowed OutOfTime
        pytest.fail(f"out of time after {seconds} s: its daemons were killed", pytrace=False)


@pytest.fixture
def work():
    """A temporary directory, removed at the end (backing files are large)."""
    path = tempfile.mkdtemp(prefix="dmfs-work-")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def dmfs(request, watchdog, work):
    """dmfs(state=None, options=None, user=None, args=(), mountpoint=None, ...) mounts one and returns its Dmfs.

    At the end each is unmounted; an exit status other than 0 or a sanitizer's report fails the test.
    """
    why = mounted.why_no_mount()
    if why:
        pytest.skip(why)
    made = []

    def mount(*args, **kw):
        d = mounted.Dmfs(*args, **kw)
        made.append(d)
        running.add(d)
        return d

    yield mount
    complaints = []
    for d in reversed(made):
        try:
            d.close()
        except AssertionError as e:
            complaints.append(str(e))
        running.discard(d)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def fs(dmfs):
    """A dmfs mounted without options."""
    return dmfs()


@pytest.fixture
def backing(work):
    """backing(sectors, data=None, name=None) makes a backing file, sparse unless data is given, and returns its path."""
    count = 0

    def make(sectors, data=None, name=None):
        nonlocal count
        path = os.path.join(work, name or f"backing{count}")
        count += 1
        with open(path, "wb") as f:
            if data:
                f.write(data)
            f.truncate(sectors * SECTOR)
        return path

    return make


@pytest.fixture
def run(fs, tool, work, backing):
    """run("dmsetup", "ls") under dmfs-run (run.py); run.disk(NAME, mib) makes a disk image that is /dev/NAME."""
    r = Run(fs, tool("dmfs-run"), work)

    def disk(name, mib):
        r.disks.append(backing(mib * 2048, name=name))
        return f"/dev/{name}"

    r.disk = disk
    return r


@pytest.fixture
def crypt(run, work):
    """crypt(ARGS) is cryptsetup under dmfs-run, with the passphrase sesame."""
    needs("cryptsetup")
    with open(os.path.join(work, "key"), "wb") as f:
        f.write(b"sesame")

    def cryptsetup(*args, **kw):
        return run("cryptsetup", "-q", "--key-file", os.path.join(work, "key"), *args, **kw)

    return cryptsetup


@pytest.fixture
def loop(dmfs):
    """loop(path, *options) attaches a loop device (root only), detached at the end, and returns its path."""
    made = []

    def attach(path, *options):
        done = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True,
                              timeout=300)
        if done.returncode:
            pytest.skip(f"losetup: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield attach
    for dev in reversed(made):
        subprocess.run(["losetup", "-d", dev], timeout=300, check=False)


@pytest.fixture
def sh(work):
    """sh(SCRIPT, *ARGS, check=True, **ENV) runs a shell script in the work directory; the CompletedProcess."""

    def run(script, *args, check=True, shell="/bin/sh", cwd=None, timeout=300, **env):
        done = subprocess.run([shell, "-c", script, shell, *map(str, args)], cwd=cwd or work, text=True,
                              capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env=os.environ | {k: str(v) for k, v in env.items()})
        if check:
            assert done.returncode == 0, f"{script}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run


@pytest.fixture
def tool():
    """tool(NAME): the path of a program of the build (dmfsctl, ...), or of the system; skips if there is none."""

    def find(name):
        own = os.path.join(mounted.build_dir(), name)
        path = own if os.access(own, os.X_OK) else shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        if not path:
            pytest.skip(f"no {name} here")
        return path

    return find


@pytest.fixture
def serve(work):
    """serve.nbdkit(ARGS...), serve.qemu(FILE, ARGS...): a Server that runs."""
    servers = []

    class Serve:
        @staticmethod
        def start(argv, sock):
            servers.append(nbd_server.Server(argv, sock))
            return servers[-1].start()

        @staticmethod
        def nbdkit(*args):
            sock = os.path.join(work, f"nbdkit{len(servers)}.sock")
            return Serve.start([nbd_server.program("nbdkit"), "-f", "-U", sock, *args], sock)

        @staticmethod
        def qemu(path, *args):
            sock = os.path.join(work, f"qemu{len(servers)}.sock")
            return Serve.start([nbd_server.program("qemu-nbd"), "-k", sock, "-t", "-e", "8", "-f", "raw", *args, path], sock)

    yield Serve
    for server in servers:
        server.kill()


@pytest.fixture
def keyring():
    """
    keyring(NAME, DATA) adds a user key to the user's keyring; removed at the end.  All tests of a user share it, and the
    names: one test at a time has it.
    """
    if not shutil.which("keyctl"):
        pytest.skip("no keyctl (package keyutils)")
    made = []

    def add(name, data):
        done = subprocess.run(["keyctl", "padd", "user", name, "@u"], input=data, capture_output=True)
        if done.returncode:
            pytest.skip(f"keyctl: {done.stderr.decode().strip()}")
        made.append(done.stdout.decode().strip())

    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield add
        for key in made:
            subprocess.run(["keyctl", "unlink", key, "@u"], capture_output=True, check=False)


@pytest.fixture
def opener(fs, tool):
    return Opener(tool("dmfs-open"), fs)


@pytest.fixture
def disk(tool, work):
    """disk(SIZE, SCRIPT, {first sector: bytes}): an image that sfdisk partitioned, its path."""

    def make(size, script, contents=None, name="disk.img"):
        path = os.path.join(work, name)
        with open(path, "wb") as f:
            f.truncate(size)
        if script:
            subprocess.run([tool("sfdisk"), "-q", path], input=script, text=True, check=True, timeout=300,
                           stdout=subprocess.DEVNULL)
        put(path, contents or {})
        return path

    return make


@pytest.fixture
def pool(fs, backing):
    """pool(...) makes a Pool; at the end each is taken down and checked."""
    made = []

    def make(**kw):
        made.append(Pool(kw.pop("fs", fs), backing, **kw))
        return made[-1]

    yield make
    for p in made:
        if p.fs.process.poll() is None and p.dev.name in p.fs.devices():
            p.close()


@pytest.fixture
def cache(fs, backing, tool):
    """A cache named c (caches.Cache); cache_check judges its metadata at the end."""
    c = Cache(fs, backing, tool)
    yield c
    if "c" in fs.devices():
        c.dev.remove()
    c.check()


def each(make):
    """What a fixture gives: make, of which all that it has made is closed at the end."""
    made = []

    def start(*args, **kw):
        made.append(make(*args, **kw))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def logd(dmfs):
    """logd(*ARGS): a dmfs-logd that runs."""
    yield from each(Logd)


@pytest.fixture
def server(dmfs):
    """server(...): one in Python (log_server.Server)."""
    yield from each(Server)


@pytest.fixture
def gate(dmfs):
    """gate(SERVER, HOLD): before a server (log_server.Gate)."""
    yield from each(lambda server, hold: Gate(server.socket, hold))
