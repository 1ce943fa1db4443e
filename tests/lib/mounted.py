# SPDX-License-Identifier: GPL-2.0-or-later
"""A mounted dmfs and its devices, for tests and the bench.

The daemon runs in the foreground as our child, so its exit status and what it
printed (a sanitizer's report, above all) are known.  Nothing here sleeps to
wait for something: mounts are seen through poll(2) on /proc/self/mountinfo,
ends of processes through a pidfd.  (Only an unmount that finds the mount busy
is tried again after a while.)
"""

import contextlib
import ctypes
import errno
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time

SECTOR = 512
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
REPORTS = re.compile(
    r"ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|ThreadSanitizer:|runtime error:"
    r"|Assertion .* failed|\bCRITICAL \*\*|GLib.*-(CRITICAL|WARNING)|stack smashing|(double|invalid) free")
FILES = ("table", "inactive", "suspend", "status", "readonly")


def build_dir():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.path.abspath(os.environ.get("DMFS_BUILD") or os.path.join(top, "build"))


def sanitized():
    """The sanitizers of the build under test, '' for none."""
    name = os.path.basename(build_dir())
    return name[len("build-"):] if name.startswith("build-") else ""


def why_no_mount():
    """Why no FUSE file system can be mounted here, or None."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as e:
        return f"/dev/fuse: {e.strerror}"
    if os.geteuid() and not shutil.which("fusermount3"):
        return "no fusermount3 (package fuse3)"
    if not os.access(os.path.join(build_dir(), "dmfs"), os.X_OK):
        return f"no dmfs in {build_dir()} (make)"
    return None


def _unescape(word):
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), word)


def is_mounted(path, mountinfo=None):
    if mountinfo is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            mountinfo = f.read()
    return any(_unescape(line.split()[4]) == path for line in mountinfo.splitlines())


def is_dead(path):
    """Whether this is a mount point whose daemon has gone."""
    try:
        os.stat(path)
    except OSError as e:
        return e.errno == errno.ENOTCONN
    return False


def wait_mount(path, process, deadline=300, mounted=True):
    """Waits until path is (or is no longer) a mount point; False if the process ended first."""
    end = time.monotonic() + deadline
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as info:
        poller = select.poll()
        poller.register(info, select.POLLPRI | select.POLLERR)
        pidfd = os.pidfd_open(process.pid)
        try:
            poller.register(pidfd, select.POLLIN)
            while True:
                info.seek(0)
                if is_mounted(path, info.read()) == mounted and not (mounted and is_dead(path)):
                    return True
                if process.poll() is not None:
                    return False
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{path}: not {'mounted' if mounted else 'unmounted'} after {deadline} s")
                poller.poll(left * 1000)
        finally:
            os.close(pidfd)


def patiently(cmd):
    """Runs what unmounts, again for a while where the mount is busy; the CompletedProcess.

    Programs that look at every dmfs in sight (dmfs-luks, those of tests that run beside this one) may be in it for a
    moment, and nothing tells when they have left.
    """
    end = time.monotonic() + 300
    while True:
        done = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
        if not done.returncode or "busy" not in done.stderr or time.monotonic() > end:
            return done
        time.sleep(0.02)


def unmount(path, lazy=False, patient=True):
    """umount as root, fusermount3 otherwise; the CompletedProcess.  patient: a mount that is busy is tried again."""
    if os.geteuid() == 0:
        cmd = ["umount"] + (["-l"] if lazy else []) + [path]
    else:
        cmd = ["fusermount3", "-u"] + (["-z"] if lazy else []) + [path]
    return patiently(cmd) if patient else subprocess.run(cmd, capture_output=True, text=True, timeout=300)


def quote(path):
    """A path as a word of a table line: a backslash quotes the next character."""
    return re.sub(r'([\\\s"\'#])', r"\\\1", str(path))


class Device:
    """A directory of the control tree."""

    def __init__(self, mount, name):
        self.mount, self.name = mount, name

    @property
    def path(self):
        return os.path.join(self.mount.mountpoint, self.name)

    @property
    def image(self):
        return self.file("image")

    def file(self, name):
        return os.path.join(self.path, name)

    def read(self, name):
        with open(self.file(name), "rb") as f:
            return f.read().decode("utf-8", "surrogateescape")

    def write(self, name, data, flags=os.O_TRUNC):
        """One open, write(2) until all is taken, one close; raises the OSError of whichever failed."""
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        fd = os.open(self.file(name), os.O_WRONLY | flags)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def load(self, *lines, to="table"):
        self.write(to, "".join(f"{line}\n" for line in lines))
        return self

    def table(self):
        return self.read("table")

    def inactive(self):
        return self.read("inactive")

    def status(self):
        return self.read("status")

    def error(self):
        return self.read("error")

    def suspended(self):
        return self.read("suspend").strip() == "1"

    def suspend(self, noflush=False):
        self.write("suspend", "1 noflush\n" if noflush else "1\n")

    def resume(self):
        self.write("suspend", "0\n")

    def message(self, text):
        """Sends a message and returns its reply, through one open file."""
        with open(self.file("message"), "r+b", buffering=0) as f:
            f.write(text.encode())
            f.seek(0)
            return f.read().decode()

    def info(self):
        """info's lines as a dictionary."""
        pairs = (line.split(":", 1) for line in self.read("info").splitlines() if ":" in line)
        return {key.strip(): value.strip() for key, value in pairs}

    def size(self):
        return os.stat(self.image).st_size

    @contextlib.contextmanager
    def open(self, flags=os.O_RDWR):
        fd = os.open(self.image, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def held(self, flags="<"):
        """Its image is open in another process, by a shell's redirection (<, <> or >).

        No other process inherits it and, closing it, looks as if the last one did.
        """
        with subprocess.Popen(["/bin/sh", "-c", f'exec 3{flags}"$0" && echo open && read line', self.image],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"open\n"
            yield
            process.stdin.close()
            process.wait(300)

    def pread(self, length, offset):
        with self.open(os.O_RDONLY) as fd:
            return pread_all(fd, length, offset)

    def pwrite(self, data, offset, sync=False):
        with self.open(os.O_WRONLY) as fd:
            pwrite_all(fd, data, offset)
            if sync:
                os.fsync(fd)

    def discard(self, offset, length):
        with self.open() as fd:
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)

    def zero(self, offset, length):
        with self.open() as fd:
            fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, offset, length)

    def remove(self):
        os.rmdir(self.path)

    def state(self):
        """All that a refused command must leave as it was."""
        return {name: self.read(name) for name in FILES} | {"size": self.size()}

    def refuse(self, data, code=errno.EINVAL, match=None, line=None, to="table", flags=os.O_TRUNC):
        """Writes something bad and checks the whole promise: the errno, a line in `error`, and all else as before.

        code: an errno or several; match: a regular expression the error text must contain; line: its line number.
        Returns the error text.
        """
        codes = code if isinstance(code, (tuple, set, list)) else (code,)
        before = self.state()
        try:
            self.write(to, data, flags)
        except OSError as e:
            assert e.errno in codes, f"{e.strerror} instead of {[os.strerror(c) for c in codes]} for {data[:200]!r}"
        else:
            raise AssertionError(f"accepted: {data[:200]!r}")
        text = self.error()
        assert re.match(r"\d+: \S", text), f"`error` says {text!r} for {data[:200]!r}"
        if match:
            assert re.search(match, text), f"`error` says {text!r}, not {match}"
        if line is not None:
            assert text.startswith(f"{line}: "), f"`error` says {text!r}, not line {line}"
        assert self.state() == before
        return text


class Dmfs:
    """A daemon and its mount.  Make it through the `dmfs` fixture, which cleans up."""

    def __init__(self, state=None, options=None, user=None, args=(), mountpoint=None, env=None, wait=True,
                 build=None, stdin=None):
        self.dir = tempfile.mkdtemp(prefix="dmfs-test-")
        self.mountpoint = mountpoint or os.path.join(self.dir, "mnt")
        self.own_mountpoint = mountpoint is None
        self.stderr_path = os.path.join(self.dir, "stderr")
        self.pid = None
        self.killed = False       # by the test or the watchdog: an exit status other than 0 is fine
        self.expect_report = False
        if self.own_mountpoint:
            os.mkdir(self.mountpoint)
        who = pwd.getpwnam(user) if user else None
        if who:
            os.chmod(self.dir, 0o755)
            os.chown(self.mountpoint, who.pw_uid, who.pw_gid)
        cmd = [os.path.join(build or build_dir(), "dmfs"), "-f"]
        if options:
            cmd += ["-o", options if isinstance(options, str) else ",".join(options)]
        cmd += list(args)
        if state:
            cmd.append(str(state))
        cmd.append(self.mountpoint)
        creds = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if who else {}
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(cmd, stdin=stdin or subprocess.DEVNULL, stdout=err, stderr=err, cwd="/",
                                            env=os.environ | env if env else None, **creds)
        self.pid = self.process.pid
        if wait:
            try:
                up = wait_mount(self.mountpoint, self.process)
            except BaseException:
                self.kill()
                self.close(check=False)
                raise
            if not up:
                text = self.stderr()
                code = self.process.returncode
                self.close(check=False)
                raise RuntimeError(f"{' '.join(cmd)}: exit {code}: {text}")

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def path(self, *parts):
        return os.path.join(self.mountpoint, *parts)

    def read(self, name):
        with open(self.path(name), "rb") as f:
            return f.read().decode("utf-8", "surrogateescape")

    def write(self, name, text):
        with open(self.path(name), "wb", buffering=0) as f:
            f.write(text.encode())

    def __getitem__(self, name):
        return Device(self, name)

    def mkdir(self, name, *lines):
        """A new device, with a table if lines are given."""
        dev = Device(self, name)
        os.mkdir(dev.path)
        if lines:
            dev.load(*lines)
        return dev

    def devices(self):
        return sorted(e.name for e in os.scandir(self.mountpoint) if e.is_dir(follow_symlinks=False))

    def rss_kib(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

    def cpu_ticks(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """SIGSTOP, until no thread of it runs; go() is the end of that."""
        self.signal(signal.SIGSTOP)
        while any(_state(self.pid, task) not in "Tt" for task in os.listdir(f"/proc/{self.pid}/task")):
            time.sleep(0.001)       # looks again

    def go(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        """SIGKILL: power loss for the daemon.  Blocked system calls on the mount return then."""
        self.killed = True
        if self.process.poll() is None:
            self.process.kill()

    def wait(self, deadline=300):
        return self.process.wait(deadline)

    def unmount(self, patient=True):
        """Unmounts as a user would and returns the daemon's exit status; EBUSY is an OSError."""
        done = unmount(self.mountpoint, patient=patient)
        if done.returncode:
            raise OSError(errno.EBUSY if "busy" in done.stderr else errno.EINVAL, done.stderr.strip())
        return self.wait()

    def close(self, check=True):
        """Unmounts whatever happened before, ends the daemon, removes the directory, then complains."""
        if not self.dir:
            return
        complaints = []
        if self.process.poll() is None:
            done = unmount(self.mountpoint)
            if done.returncode:
                if is_mounted(self.mountpoint):
                    complaints.append(f"unmount: {done.stderr.strip()}")
                    unmount(self.mountpoint, lazy=True)
                self.process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                complaints.append("the daemon did not end within 120 s of the unmount")
                self.kill()
                self.wait()
        elif is_mounted(self.mountpoint):
            unmount(self.mountpoint, lazy=True)     # left dead by a killed daemon
        text = self.stderr()
        if self.process.returncode and not self.killed:
            complaints.append(f"the daemon's exit status is {self.process.returncode}")
        report = REPORTS.search(text)
        if report and not self.expect_report:
            complaints.append(f"the daemon reported {report.group(0)!r}")
        if self.own_mountpoint:
            with contextlib.suppress(OSError):
                os.rmdir(self.mountpoint)
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir = None
        if check and complaints:
            raise AssertionError("; ".join(complaints) + "\n--- the daemon's stderr:\n" + text[-20000:])


def wait_status(dev, want, deadline=300, every=None):
    """Waits, by poll on `status`, until it matches the pattern, and returns it.

    every: for counts, which change without an event: seconds after which it looks in any case.
    """
    poller, end = select.poll(), time.monotonic() + deadline
    with open(dev.file("status"), "rb", buffering=0) as f:
        poller.register(f, select.POLLIN | select.POLLPRI)
        while True:
            f.seek(0)
            text = f.read().decode()
            if re.search(want, text):
                return text
            left = end - time.monotonic()
            assert left > 0, f"{text!r}, not {want}"
            poller.poll(min(left, every or left) * 1000)


def until(done, what=None, deadline=300):
    """Looks until done() is true; what may be a text or a function that makes one."""
    end = time.monotonic() + deadline
    while not done():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.01)


def pread_all(fd, length, offset):
    """length bytes, fewer only at the end of the file."""
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def pwrite_all(fd, data, offset):
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd, mode, offset, length):
    """fallocate(2): Python has only posix_fallocate."""
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_FILLER = bytes((i * 31 + (i >> 8) * 7) & 255 for i in range(65536)) * 2


def pattern(sectors, seed=0):
    """Data that says of every sector which one it is, and of which pattern: misplaced sectors show."""
    parts = []
    for n in range(sectors):
        at = (n * 977 + seed * 131) & 65535
        parts.append(b"%016x %016x " % (seed, n) + _FILLER[at:at + SECTOR - 34])
    return b"".join(parts)


def memory(pid):
    """Every readable range of a process: (its name if it is not locked, its bytes)."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as f:
        ranges = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (r.*)(?:.|\n)*?^VmFlags: (.*)$", f.read(), re.M)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for begin, end, name, flags in ranges:
            at, end = int(begin, 16), int(end, 16)
            try:
                while at < end:
                    mem.seek(at)
                    part = mem.read(min(end - at, 1 << 24))
                    if not part:
                        break
                    yield "" if "lo" in flags.split() else f"{begin} {name}", part
                    at += len(part)
            except OSError:
                pass


def _state(pid, task):
    try:
        with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"      # it has ended meanwhile


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


_WAITS = ("request_wait_answer", "folio_", "__folio_lock", "io_schedule", "wait_on_page", "__lock_page", "rwsem_")


# what a program calls on its way to its I/O, and may be waiting in for a moment (x86-64): open, stat, fstat, lstat,
# openat, newfstatat, statx, and execve, which reads it
_ON_ITS_WAY = {"2", "4", "5", "6", "59", "257", "262", "332"} if os.uname().machine == "x86_64" else {}


def _waits(task):
    with open(f"{task}/wchan", encoding="ascii") as f:
        if not f.read().startswith(_WAITS):
            return False
    try:
        with open(f"{task}/syscall", encoding="ascii") as f:
            return f.read().split()[0] not in _ON_ITS_WAY
    except PermissionError:     # as it is in execve(2); or never, where nobody may look at another process
        return None


def wait_until_waiting(process):
    """Until one of its threads waits for an answer of the daemon, or for a page that is being read, or it is done.

    It has opened its file by then.
    """
    hidden = 0
    while process.poll() is None and hidden < 200:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            looks = [_waits(f"/proc/{process.pid}/task/{task}") for task in os.listdir(f"/proc/{process.pid}/task")]
            if any(looks):
                return
            hidden = hidden + 1 if None in looks else 0
        time.sleep(0.01)        # looks again


def interrupted(argv, path, length, **kw):
    """Runs a program that fills a file, and interrupts it when so many bytes are there; status and standard error."""
    made = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, **kw)
    try:
        end = time.monotonic() + 240
        while made.poll() is None and not (os.path.exists(path) and os.stat(path).st_blocks * SECTOR > length):
            assert time.monotonic() < end
            os.sched_yield()
        made.send_signal(signal.SIGINT)
        text = made.communicate(timeout=240)[1]
    finally:
        made.kill()
        made.wait()
    return made.returncode, text


def run_as(user, argv, **kw):
    """subprocess.run() as another user (needs root)."""
    who = pwd.getpwnam(user)
    kw = {"capture_output": True, "text": True, "timeout": 120, "cwd": "/"} | kw
    return subprocess.run(argv, user=who.pw_uid, group=who.pw_gid, extra_groups=[], **kw)


def interrupt_main(handler_signal=signal.SIGUSR2):
    import threading
    signal.pthread_kill(threading.main_thread().ident, handler_signal)
