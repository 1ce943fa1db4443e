# SPDX-License-Identifier: GPL-2.0-or-later
"""Every mount option works, or is refused before anything is mounted; when the mount is gone, so is the daemon."""

import contextlib
import ctypes
import errno
import os
import re
import select
import signal
import subprocess
import time

import pytest

import mounted
from mounted import Dmfs, is_mounted, quote

PR_SET_CHILD_SUBREAPER = 36

# An option, and what mountinfo's per-mount or per-filesystem options, type or source show of it
WORK = {
    "default_permissions": "default_permissions", "fsname=some\\,name": "some,name", "subtype=other": "fuse.other",
    "ro": r" ro,", "rw": " rw,", "nosuid": "nosuid", "nodev": "nodev", "exec": "", "noexec": "noexec",
    "async": "", "sync": r"\bsync\b", "atime": "relatime", "noatime": "noatime", "dirsync": "dirsync",
    "suid": "", "dev": "", "auto_unmount": "",
    "max_read=0": "", "max_read=1": "max_read=4096", "max_read=4096": "max_read=4096", "max_read=8192": "max_read=8192",
    "max_read=131072": "max_read=131072", "max_read=1048576": "max_read=1048576", "max_read=4294967295": "",
    "writeback": "", "threads=1": "", "threads=128": "", "nbd_timeout=1": "", "log_server=/nobody": "", "log_timeout=1": "", "log_timeout=0.5": "",
    "missing-snapshots=wait": "", "missing-snapshots=invalidate": "",
}
REFUSED = """
    rootmode=40000 blkdev blksize=4096 fd=3 user_id=0 group_id=0 max_read= max_read=x max_read=-1 max_read=4294967296
    kernel_cache auto_cache umask=077 uid=1 gid=1 entry_timeout=1 negative_timeout=1 attr_timeout=1 ac_attr_timeout=1
    noforget remember=1 modules=iconv modules=subdir,subdir=/tmp from_code=UTF-8 setuid=nobody drop_privileges
    intr use_ino readdir_ino direct_io hard_remove nopath nonempty large_read
    clone_fd max_idle_threads=3 max_threads=3 max_write=4096 max_readahead=4096 max_background=3
    congestion_threshold=3 async_read sync_read atomic_o_trunc no_remote_lock no_remote_flock no_remote_posix_lock
    splice_read no_splice_read splice_write splice_move auto_inval_data no_auto_inval_data readdirplus=no async_dio
    no_async_dio writeback_cache no_writeback_cache time_gran=1
    context=a fscontext=a remount bind nonsense threads=0 threads=129 threads=x nbd_timeout=0 log_timeout=0 log_timeout=nan log_timeout=1000001 log_timeout=x log_server=
    missing-snapshots= missing-snapshots=x
""".split()


def children():
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):     # a thread that has ended since
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as f:
                found += [int(word) for word in f.read().split()]
    return found


class Background:
    """A dmfs that goes into the background; whatever process it leaves behind becomes our child."""

    def __init__(self, work, options=None, state=None, mountpoint=None, cmd=None):
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self.mountpoint = mountpoint or os.path.join(work, "mnt")
        os.makedirs(self.mountpoint, exist_ok=True)
        self.state = state or os.path.join(work, "state")
        before = set(children())
        cmd = cmd or [os.path.join(mounted.build_dir(), "dmfs"), *(["-o", options] if options else []), self.state,
                      self.mountpoint]
        done = subprocess.run(cmd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        self.code, self.text = done.returncode, done.stdout + done.stderr
        self.left = set(children()) - before

    def line(self):
        """Its line of mountinfo."""
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            return "".join(line for line in f if line.split()[4] == self.mountpoint)

    def wait_end(self, seconds=60):
        """Until all that it has left has ended; the exit statuses that are not 0."""
        bad = []
        for pid in self.left:
            fd = os.pidfd_open(pid)
            try:
                assert select.select([fd], [], [], seconds)[0], f"{pid} is still there after {seconds} s"
            finally:
                os.close(fd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            bad += [status] if status else []
        self.left = set()
        return bad

    def close(self):
        if is_mounted(self.mountpoint):
            mounted.unmount(self.mountpoint, lazy=True)
        for pid in self.left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


@pytest.fixture
def background(work):
    why = mounted.why_no_mount()
    if why:
        pytest.skip(why)
    made = []

    def make(*args, **kw):
        made.append(Background(work, *args, **kw))
        return made[-1]

    yield make
    for b in made:
        b.close()


def use(d, path):
    """Control files, and an image: buffered, large and small."""
    os.mkdir(os.path.join(d.mountpoint, "vol"))
    dev = mounted.Device(d, "vol")
    dev.load(f"0 4096 linear {quote(path)} 0")
    data = mounted.pattern(4096)
    dev.pwrite(data, 0, sync=True)
    assert dev.pread(len(data), 0) == data
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        import mmap
        buf = mmap.mmap(-1, len(data))
        assert os.preadv(fd, [buf], 0) == len(data) and buf[:] == data
    assert dev.table() == f"0 4096 linear {path} 0\n"


@pytest.mark.parametrize("option", WORK)
def test_an_option_works(background, backing, option):
    d = background(option)
    assert d.code == 0, d.text
    line = d.line()
    assert line.count("\n") == 1 and re.search(WORK[option], line.replace("\\054", ",")), line
    if option == "ro":
        assert "dmfs" in subprocess.run(["ls", d.mountpoint], capture_output=True, text=True).stdout or \
            os.listdir(d.mountpoint)
        with pytest.raises(OSError) as e:
            os.mkdir(os.path.join(d.mountpoint, "vol"))
        assert e.value.errno == errno.EROFS
    else:
        use(d, backing(4096))
    if option == "suid" and os.geteuid() == 0:
        assert "nosuid" not in line
    if option == "dev" and os.geteuid() == 0:
        assert "nodev" not in line
    assert mounted.unmount(d.mountpoint).returncode == 0
    assert d.wait_end() == []
    assert not is_mounted(d.mountpoint)


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_is_refused(background, option):
    d = background(option)
    assert d.code != 0
    assert re.search(r"dmfs|fuse", d.text), d.text
    assert not is_mounted(d.mountpoint) and not d.left
    if "context" not in option:     # which the kernel judges, when it mounts
        assert not os.path.exists(d.state), "refused before anything is opened"


def test_options_are_refused_before_devices_are_made(background, backing, work):
    """A table of --create, or of the state, is not activated for a mount that will not be."""
    d = background("nonsense", cmd=[os.path.join(mounted.build_dir(), "dmfs"), "-o", "nonsense", "--create",
                                    "vol,,,rw,0 8 no-such-target", os.path.join(work, "mnt")])
    assert d.code != 0 and "nonsense" in d.text and "no-such-target" not in d.text


@pytest.mark.root
def test_allow_root_and_allow_other(background):
    for option, others in (("allow_root", False), ("allow_other", True), ("default_permissions", False)):
        d = background(option)
        assert d.code == 0, d.text
        assert os.listdir(d.mountpoint)
        os.chmod(os.path.dirname(d.mountpoint), 0o755)
        done = mounted.run_as("nobody", ["ls", d.mountpoint])
        assert (done.returncode == 0) == others, (option, done)
        assert mounted.unmount(d.mountpoint).returncode == 0
        assert d.wait_end() == []


def test_debug_stays_in_the_foreground(dmfs):
    d = dmfs(options="debug")
    os.listdir(d.mountpoint)
    assert "opcode: INIT" in d.stderr() and "opcode: OPENDIR" in d.stderr()


@pytest.mark.root       # fusermount3 3.14 does not do it for others
def test_auto_unmount_frees_the_mountpoint_of_a_killed_daemon(dmfs):
    d = dmfs(options="auto_unmount")
    d.kill()
    d.wait()
    with subprocess.Popen(["sleep", "600"]) as clock:
        assert mounted.wait_mount(d.mountpoint, clock, mounted=False)
        clock.kill()


# --- when the mount is gone ------------------------------------------------------------


def umount(d):
    assert mounted.unmount(d.mountpoint).returncode == 0


def umount_lazily(d):
    assert mounted.unmount(d.mountpoint, lazy=True).returncode == 0


def fusermount(*args):
    def run(d):
        assert mounted.patiently(["fusermount3", *args, d.mountpoint]).returncode == 0
    return run


def umount_lazily_in_use(d):
    """It goes when the last file is closed."""
    with open(os.path.join(d.mountpoint, "version"), "rb") as f:
        umount_lazily(d)
        assert f.read().startswith(b"")
        assert all(mounted.alive(pid) for pid in d.left)


def signalled(number):
    return lambda d: [os.kill(pid, number) for pid in d.left]


WAYS = {"umount": umount, "umount -l": umount_lazily, "fusermount3 -u": fusermount("-u"),
        "fusermount3 -u -z": fusermount("-u", "-z"), "umount -l in use": umount_lazily_in_use,
        "SIGTERM": signalled(signal.SIGTERM), "SIGINT": signalled(signal.SIGINT), "SIGHUP": signalled(signal.SIGHUP)}


def take_state_over(background, d, path):
    """The state is free, and holds what it held."""
    other = background(state=d.state)
    assert other.code == 0, other.text
    assert mounted.Device(other, "vol").table() == f"0 4096 linear {path} 0\n"
    umount(other)
    assert other.wait_end() == []


@pytest.mark.parametrize("way", WAYS)
def test_the_daemon_goes_with_its_mount(background, backing, way):
    d, path = background(), backing(4096)
    use(d, path)
    WAYS[way](d)
    assert d.wait_end() == []
    assert not is_mounted(d.mountpoint)
    take_state_over(background, d, path)


@pytest.mark.root
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_daemon_goes_when_its_connection_is_aborted(background, backing, work, busy):
    """Its mount point is freed as well: nothing can be done with it any more."""
    control = os.path.join(work, "fusectl")
    os.mkdir(control)
    subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
    reader = None
    try:
        d, path = background(), backing(4096)
        use(d, path)
        if busy:
            mounted.Device(d, "vol").suspend()
            reader = subprocess.Popen(["dd", f"if={d.mountpoint}/vol/image", "iflag=direct", "count=8"],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            mounted.wait_until_waiting(reader)
        number = os.stat(d.mountpoint).st_dev
        with open(os.path.join(control, str(os.minor(number)), "abort"), "w", encoding="ascii") as f:
            f.write("1")
        assert d.wait_end() == []
        assert not is_mounted(d.mountpoint)
        if reader:
            assert reader.wait(300) != 0
        take_state_over(background, d, path)
    finally:
        if reader:
            reader.kill()
            reader.communicate()
        subprocess.run(["umount", control], check=False)


@pytest.mark.root
def test_the_daemon_goes_with_the_last_mount_namespace(background, backing):
    """Unmounted here, it is mounted in another namespace still, until that one's last process is killed."""
    d, path = background(), backing(4096)
    use(d, path)
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", "echo up; exec sleep 3600"],
                          stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"up\n"
            umount(d)
            assert all(mounted.alive(pid) for pid in d.left)
            with open(f"/proc/{other.pid}/root{d.mountpoint}/vol/table", encoding="ascii") as f:
                assert f.read() == f"0 4096 linear {path} 0\n"
        finally:
            other.kill()
    assert d.wait_end() == []
    take_state_over(background, d, path)


def test_a_daemon_in_a_namespace_of_its_own(background, backing, work):
    """As in a container: a user and mount namespace, whose every process but the daemon is killed."""
    mnt, state, ready = (os.path.join(work, name) for name in ("mnt", "state", "ready"))
    os.mkdir(mnt)
    os.mkfifo(ready)
    script = f'"{os.path.join(mounted.build_dir(), "dmfs")}" "{state}" "{mnt}" && echo up >"{ready}" && exec sleep 3600'
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = set(children())
    shell = subprocess.Popen(["unshare", "-Urm", "sh", "-c", script], stderr=subprocess.PIPE, text=True)
    left = set()
    try:
        fd = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
        try:
            end = time.monotonic() + 300
            while not select.select([fd], [], [], 0.05)[0] or not os.read(fd, 3):
                if shell.poll() is not None:
                    pytest.skip(f"no namespace here: {shell.stderr.read().strip()}")
                assert time.monotonic() < end
        finally:
            os.close(fd)
        left = set(children()) - before - {shell.pid}
        assert len(left) == 1
        shell.kill()
        # Its own namespace holds the mount.  A signal ends it.
        assert all(mounted.alive(pid) for pid in left)
        for pid in left:
            os.kill(pid, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        left = set()
    finally:
        shell.kill()
        shell.communicate()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.root
def test_drop_privileges(background, backing, work):
    """mount.fuse3 mounts, and gives the daemon a descriptor in place of a mount point."""
    mount_fuse = next((p for p in ("/sbin/mount.fuse3", "/usr/sbin/mount.fuse3") if os.path.exists(p)), None)
    if not mount_fuse:
        pytest.skip("no mount.fuse3 (package fuse3)")
    state, mnt = os.path.join(work, "state"), os.path.join(work, "mnt")
    d = background(cmd=[mount_fuse, f"{os.path.join(mounted.build_dir(), 'dmfs')}#{state}", mnt, "-o",
                        "drop_privileges"])
    assert d.code == 0, d.text
    path = backing(4096)
    use(d, path)
    # a name below the mount point is a device, though nobody told where it is
    os.mkdir(os.path.join(mnt, "top"))
    top = mounted.Device(d, "top").load(f"0 4096 linear {mnt}/vol/image 0")
    assert top.table() == "0 4096 linear vol 0\n"
    umount(d)
    assert d.wait_end() == []


@pytest.mark.parametrize("options", ["", "max_read=4096"])
def test_a_mount_that_fails_leaves_nothing(work, options):
    """The file system is not told ready before the kernel has taken its first answer."""
    with pytest.raises(RuntimeError):
        Dmfs(options=f"{options},nonsense".strip(","))
    assert not [p for p in children() if "dmfs" in open(f"/proc/{p}/comm", encoding="ascii").read()]


