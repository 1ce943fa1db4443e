# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfsctl: what it says, does and leaves behind.  That it says what dmsetup says is tests/kernel/test_dmsetup_language.py's."""

import fcntl
import json
import os
import pty
import re
import signal
import string
import struct
import subprocess
import termios

import pytest

from mounted import quote


@pytest.fixture
def ctl(fs, tool, work):
    """ctl(*ARGS, stdin=None) runs dmfsctl on fs and returns the CompletedProcess; ctl.ok(*ARGS) its output."""
    program = tool("dmfsctl")
    env = os.environ | {"DMFS_MOUNT": fs.mountpoint, "LC_ALL": "C"}

    def run(*args, stdin="", cwd=work, **extra):
        return subprocess.run([program, *map(str, args)], input=stdin, text=True, capture_output=True, timeout=300,
                              cwd=cwd, env=env | extra)

    def ok(*args, **kw):
        done = run(*args, **kw)
        assert done.returncode == 0 and not done.stderr, f"{args}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout

    def fails(*args, match=None, **kw):
        done = run(*args, **kw)
        assert done.returncode == 1, f"{args}: {done.returncode} {done.stdout}"
        assert match is None or re.search(match, done.stderr), f"{args}: {done.stderr!r}, not {match!r}"
        return done.stderr

    run.ok, run.fails, run.program, run.env = ok, fails, program, env
    return run


# --- which mount ------------------------------------------------------------------------------

def test_mount_from_option_environment_and_mountinfo(ctl, fs, dmfs, work):
    other = dmfs()
    fs.mkdir("here")
    other.mkdir("there")
    assert ctl.ok("ls") == "here\t(0:0)\n"
    assert ctl.ok("-m", other.mountpoint, "ls") == "there\t(0:0)\n"
    assert ctl.ok("ls", "--mount", other.mountpoint) == "there\t(0:0)\n"
    assert ctl.ok("ls", DMFS_MOUNT=other.mountpoint) == "there\t(0:0)\n"
    assert ctl.ok("-m", os.path.basename(other.mountpoint), "ls", cwd=os.path.dirname(other.mountpoint)) \
        == "there\t(0:0)\n"
    # two are mounted (at least: other tests' may be, too): it does not choose
    err = ctl.fails("ls", DMFS_MOUNT="")
    assert "are mounted" in err and fs.mountpoint in err and other.mountpoint in err
    ctl.fails("-m", work, "ls", match="no dmfs is mounted there")
    ctl.fails("-m", work + "/nosuch", "ls", match="No such file")
    ctl.fails("ls", DMFS_MOUNT=work, match="DMFS_MOUNT")


def test_the_only_mount_is_found(ctl, fs):
    """In a mount namespace of its own, where no other dmfs is."""
    unshare = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    if unshare.returncode:
        pytest.skip("no user namespaces")
    script = 'awk \'$0 ~ / - fuse.dmfs / && $5 != "%s" { print $5 }\' /proc/self/mountinfo | while read m; do ' \
             'umount -l "$m" || exit 9; done; exec "$0" ls' % fs.mountpoint
    done = subprocess.run(["unshare", "-m", "/bin/sh", "-c", script, ctl.program], capture_output=True, text=True,
                          env=ctl.env | {"DMFS_MOUNT": ""}) if os.geteuid() == 0 else None
    if done is None or done.returncode == 9:
        pytest.skip("needs root to unmount the others'")
    assert done.returncode == 0 and done.stdout == "No devices found\n", done.stderr


def test_other_names_of_a_device(ctl, fs, backing):
    dev = fs.mkdir("vol", "0 8 zero")
    for name in ("vol", dev.path, dev.image, "/dev/mapper/vol"):
        assert ctl.ok("table", name) == "0 8 zero \n"
    assert ctl.ok("table", "./vol/image", cwd=fs.mountpoint) == "0 8 zero \n"
    assert ctl.ok("table", "-j", "0", "-m", "0") == "0 8 zero \n"
    ctl.fails("table", "/dev/mapper/nosuch", match="not found")
    ctl.fails("table", "/etc/passwd", match="not found")
    odd = "a b\\c'd"
    ctl.ok("create", odd, "--manglename", "none", "--table", "0 9 zero")
    assert odd in fs.devices()
    assert ctl.ok("table", "--manglename", "none", odd) == "0 9 zero \n"
    ctl.ok("create", "x y", "--table", "0 9 zero")
    assert ctl.ok("table", r"x\x20y") == "0 9 zero \n"


# --- names and paths with any byte in them -----------------------------------------------------

BYTES = [bytes([b]) for b in range(1, 256) if b != ord("/")]


def bquote(path):
    return re.sub(rb'([\\\s"\'#])', rb"\\\1", path)


@pytest.fixture
def raw(ctl, work):
    """dmfsctl with bytes: raw(*ARGS, stdin=b"") gives its output."""
    def run(*args, stdin=b""):
        done = subprocess.run([ctl.program, *args], input=stdin, capture_output=True, timeout=300, cwd=work,
                              env=ctl.env)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.fixture
def every_file(work):
    """Files with each byte as the first, the last and a middle one of their names, and alone: [path]."""
    paths = []
    os.mkdir(os.path.join(work, "files"))
    for b in BYTES:
        for name in (b, b + b"x", b"x" + b, b"x" + b + b"y", b"\\" + b, b"x#" + b):
            path = os.path.join(work.encode(), b"files", name)
            if name not in (b".", b"..") and path not in paths:
                with open(path, "wb") as f:
                    f.truncate(8 * 512)
                paths.append(path)
    return paths


def test_tables_go_round_with_every_file_name(ctl, raw, fs, every_file, sh):
    text = b"".join(b"%d 8 linear %s 0\n" % (8 * i, bquote(path)) for i, path in enumerate(every_file))
    raw("create", "v", stdin=text)
    with open(fs["v"].file("table"), "rb") as f:
        table = f.read()
    assert len(raw("deps", "v").split(b" (")) == len(every_file) + 1
    out = raw("table", "v")
    assert out == table
    raw("create", "w", stdin=out)
    raw("create", "x", "--table", out)
    sh('"$1" create y --table "$("$1" table v)" && "$1" load v --table "$("$1" table v)" && "$1" resume v', ctl.program,
       **ctl.env)
    raw("create", "--concise", raw("table", "--concise", "v").replace(b"v,,0,", b"z,,,", 1).rstrip(b"\n"))
    for name in "vwxyz":
        with open(fs[name].file("table"), "rb") as f:
            assert f.read() == table, name
    assert raw("status", "v").count(b"\n") == len(every_file)
    assert raw("info", "-c", "--noheadings", "-o", "segments", "v").strip() == b"%d" % len(every_file)
    raw("clear", "v")
    raw("load", "v", stdin=table)
    assert raw("info", "--inactive", "-c", "--noheadings", "-o", "segments", "v").strip() == b"%d" % len(every_file)
    raw("wipe_table", "v")
    assert raw("table", "v") == b"0 %d error \n" % (8 * len(every_file))


def test_paths_are_shown_in_one_line(ctl, raw, fs, work):
    path = os.path.join(work, "a\nb\tc d")
    with open(path, "wb") as f:
        f.truncate(4096)
    shown = work + r"/a\x0ab\x09c d"
    raw("create", "v", "--table", f"0 8 linear {quote(path)} 0")
    assert raw("deps", "v").decode() == f"1 dependencies\t: ({shown})\n"
    assert shown in raw("ls", "--tree").decode() and len(raw("ls", "--tree").splitlines()) == 2
    assert shown.replace("\\", "\\\\") in raw("graph").decode()
    assert raw("info", "-c", "--noheadings", "-o", "devnos_used", "v").decode() == shown + "\n"
    # a mirror's status names its devices
    raw("create", "m", "--table", f"0 8 mirror core 2 8 nosync 2 {quote(path)} 0 v 0")
    raw("wait", "--progress", "m")


def test_names_with_every_byte(ctl, raw, fs):
    """Shown on one line, and what is shown names the device."""
    names = []
    for b in BYTES:
        for name in (b, b"x" + b, b"x" + b + b"y"):
            if name not in names and not name.startswith(b"."):
                os.mkdir(os.path.join(fs.mountpoint.encode(), name))
                names.append(name)
    lines = raw("ls").split(b"\n")[:-1]
    assert len(lines) == len(names)
    for line in lines:
        shown, number = line.rsplit(b"\t", 1)
        assert not re.search(rb"[\x00-\x1f\x7f]", shown), shown
        found = raw("info", "-c", "--noheadings", "-o", "minor", shown)
        assert found == number[3:-1] + b"\n", (shown, found)
    assert len(raw("info", "-c", "--noheadings", "-o", "name").splitlines()) == len(names)
    assert len(raw("deps").splitlines()) == len(raw("status").splitlines()) == len(names)
    assert len(raw("ls", "--tree").splitlines()) == len(names)
    assert raw("info").count(b"Name:  ") == len(names)
    raw("remove_all")
    assert fs.devices() == []


def test_a_name_that_looks_like_lines_of_info(ctl, raw, fs):
    name = "a\nState:             SUSPENDED\nMajor, minor:      0, 99"
    ctl.ok("create", "--manglename", "none", "-j", "0", "-m", "7", name, "--table", "0 8 zero")
    assert ctl.ok("info", "-c", "--noheadings", "-o", "minor,attr,suspended") == "7:L--w:Active\n"
    info = fs[name].read("info").splitlines()
    assert info[0].startswith(r"Name:              a\x0aState:\x20") and info[1] == "State:             ACTIVE"
    ctl.ok("rename", info[0].split()[1], "b")
    assert fs.devices() == ["b"]
    ctl.ok("create", "c", "-u", "u\tv", "--notable")
    assert fs["c"].read("uuid") == "u\tv\n" and fs["c"].info()["UUID"] == r"u\x09v"
    assert ctl.ok("info", "-c", "--noheadings", "-o", "name", "-u", "u\tv") == "c\n"


def test_blanks_of_all_kinds_in_a_table(ctl, fs, backing):
    path = backing(16)
    ctl.ok("create", "v", "--table", f"0\t8\flinear\t{path}\r0\n\f\n8 8 zero")
    assert fs["v"].table() == f"0 8 linear {path} 0\n8 8 zero\n"
    ctl.fails("create", "w", "--table", "0 8\vzero")     # to the daemon that is no blank


# --- create and load ---------------------------------------------------------------------------

def test_create_from_argument_file_and_stdin(ctl, fs, backing, work):
    path = backing(100)
    ctl.ok("create", "a", "--table", f"0 100 linear {path} 0")
    with open(os.path.join(work, "table"), "w") as f:
        f.write(f"# two\n\n0 50 linear {os.path.basename(path)} 0\n50 50 linear a 7\n")
    ctl.ok("create", "b", "table", "-u", "uuid-b")
    ctl.ok("create", "c", "-r", stdin="0 8 zero\n")
    assert fs["b"].table() == f"0 50 linear {path} 0\n50 50 linear a 7\n"
    assert fs["b"].read("uuid") == "uuid-b\n"
    assert "READ-ONLY" in fs["c"].read("info") and "READ-ONLY" not in fs["b"].read("info")
    with pytest.raises(OSError):
        fs["c"].pwrite(b"x" * 512, 0)
    ctl.ok("create", "d", "-j", "0", "-m", "77", "--notable")
    assert fs["d"].read("dev") == "0:77\n"
    ctl.ok("create", "e", "--table", "0 8 zero", "-M", "0640")
    assert os.stat(fs["e"].image).st_mode & 0o777 == 0o640


@pytest.mark.parametrize("args", [
    ["--table", "0 8 nosuch"], ["--table", "0 8 linear /nonexistent 0"], ["--table", "1 8 zero"],
    ["--table", "0 8 zero\n9 8 zero"], ["--table", "0 8 linear"], ["--table", "0 8"], ["/nonexistent"],
    ["-u", "u" * 129, "--table", "0 8 zero"], ["-u", "taken", "--table", "0 8 zero"],
    ["-j", "0", "-m", "0", "--table", "0 8 zero"],
])
def test_a_device_that_cannot_be_made_does_not_remain(ctl, fs, args):
    fs.mkdir("first").write("uuid", "taken")
    ctl.fails("create", "vol", *args)
    assert fs.devices() == ["first"]


def test_error_file_is_told(ctl, fs):
    err = ctl.fails("create", "vol", "--table", "0 8 zero\n8 8 linear /nonexistent 0")
    assert re.search(r"^device-mapper: reload ioctl on vol \(0:0\) failed: No such device$", err, re.M)
    assert re.search(r"^dmfs: vol: 2: linear: .*/nonexistent", err, re.M)
    assert err.endswith("Command failed.\n")
    fs.mkdir("vol", "0 8 zero")
    ctl.fails("message", "vol", "0", "foo", match=r"(?m)^dmfs: vol: \S")


def test_a_failed_load_changes_nothing(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.load("0 9 zero", to="inactive")
    before = dev.state()
    ctl.fails("load", "vol", "--table", "0 8 nosuch")
    ctl.fails("load", "vol", "-r", "--table", "0 8 zero\n9 1 zero")
    ctl.fails("load", "vol", stdin="")
    ctl.fails("load", "vol", stdin="0 8\n")
    assert dev.state() == before


def test_tables_of_scripts_made_for_dmsetup(ctl, fs, work):
    """/dev/mapper/NAME in a table is the dmfs device, but only if there is one."""
    fs.mkdir("dmfs test base", "0 8 zero")
    ctl.ok("create", "top", "--table", r"0 8 linear /dev/mapper/dmfs\ test\ base 0")
    assert fs["top"].read("deps").strip().replace("\\", "") == "dmfs test base"
    err = ctl.fails("create", "other", "--table", "0 8 linear /dev/mapper/dmfs-test-nosuch 0")
    assert "/dev/mapper/dmfs-test-nosuch" in err
    # in its own table too: never the file of that name
    with open(os.path.join(work, "top"), "wb") as f:
        f.truncate(8 * 512)
    err = ctl.fails("load", "top", "--table", "0 8 linear /dev/mapper/top 0", cwd=work)
    assert "this very device" in err


def test_concise_goes_round(ctl, fs, backing):
    path = backing(100)
    ctl.ok("create", "a,b;c", "--table", f"0 8 zero\n8 8 linear {quote(path)} 0")
    ctl.ok("create", "plain", "-u", "uu", "-r", "--table", "0 8 linear a,b;c 0")
    text = ctl.ok("table", "--concise")
    order = text.strip().split(";plain")
    assert len(order) == 2
    ctl.ok("remove_all")
    ctl.ok("create", "--concise", text)
    assert ctl.ok("table", "--concise") == text


def test_keys_are_not_told(ctl, fs, backing, tool):
    if "crypt" not in fs.read("targets"):
        pytest.skip("no crypt target")
    ctl.ok("create", "k", "--table", f"0 8 crypt aes-xts-plain64 {'ab' * 32} 0 {backing(8)} 0")
    fs.mkdir("z", "0 8 zero")
    assert "ab" * 8 not in ctl.ok("table", "k")
    # zeros that look like a key would be loaded as one
    assert "0000" not in ctl("table", "--showkeys", "k").stdout
    ctl.fails("table", "--showkeys", "k", match="keys")
    assert ctl.ok("table", "--showkeys", "z") == "0 8 zero \n"


# --- remove -------------------------------------------------------------------------------------

def test_remove_and_remove_all(ctl, fs):
    base = fs.mkdir("base", "0 8 zero")
    fs.mkdir("a-top", "0 8 linear base 0")
    fs.mkdir("z-top", "0 8 linear a-top 0")
    ctl.fails("remove", "base", match="resource busy")
    assert len(fs.devices()) == 3
    with base.held():
        ctl.ok("remove_all")
        assert fs.devices() == ["base"]
        ctl.fails("remove_all", "-f", match="Unable to remove 1 device")
        assert base.table().split() == ["0", "8", "error"]
        process = start(ctl, "remove", "--retry", "base")
        asleep_in_poll(process)
    assert finish(process) == (0, "", "")
    assert fs.devices() == []


def test_remove_force(ctl, fs):
    base = fs.mkdir("base", "0 8 zero")
    fs.mkdir("top", "0 8 linear base 0")
    ctl.ok("remove", "-f", "top")
    with base.held():
        ctl.fails("remove", "-f", "base", match="busy")
        assert base.table().split() == ["0", "8", "error"]
    fs.mkdir("none")
    assert ctl("remove", "-f", "none").returncode == 0      # there is nothing to wipe, which it says
    assert "none" not in fs.devices()


def ends(ctl, name):
    """Waits until the device is removed; that it is already is no error here."""
    done = ctl("wait", name, "0")
    assert done.returncode == 0 or "No such device" in done.stderr, done.stderr


def test_deferred_remove_of_an_open_image(ctl, fs, backing):
    dev = fs.mkdir("vol", f"0 8 linear {backing(8)} 0")
    with dev.held("<>"):
        ctl.fails("remove", "vol", match="busy")
        ctl.ok("remove", "--deferred", "vol")
        assert "State:             ACTIVE (DEFERRED REMOVE)\n" in ctl.ok("info", "vol")
        dev.pwrite(b"x" * 512, 0, sync=True)            # it goes on, and may be opened again
        assert dev.pread(512, 0) == b"x" * 512
        ctl.fails("remove", "vol", match="busy")
        assert fs.devices() == ["vol"]
    ends(ctl, "vol")
    assert fs.devices() == []
    fs.mkdir("vol", "0 8 zero")                         # the name is free again


def test_deferred_remove_of_a_stack(ctl, fs):
    fs.mkdir("a", "0 8 zero")
    for name, below in ("b", "a"), ("c", "b"), ("d", "c"):
        fs.mkdir(name, f"0 8 linear {below} 0")
    ctl.ok("remove", "--deferred", "a", "b", "c")
    assert len(fs.devices()) == 4
    ctl.ok("remove", "d")                               # takes the others along
    assert fs.devices() == []
    # one that gets another table lets go, too
    base = fs.mkdir("base", "0 8 zero")
    top = fs.mkdir("top", "0 8 linear base 0")
    ctl.ok("remove", "--deferred", "base")
    top.load("0 8 zero")
    ends(ctl, "base")
    assert fs.devices() == ["top"]
    base = fs.mkdir("base", "0 8 zero")
    top.load("0 8 linear base 0", to="inactive")
    ctl.ok("remove", "--deferred", "base")
    assert "DEFERRED" in base.read("info")
    ctl.ok("clear", "top")
    ends(ctl, "base")
    assert fs.devices() == ["top"]


def test_deferred_remove_can_be_cancelled(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    with dev.held():
        ctl.ok("remove", "--deferred", "vol")
        ctl.fails("message", "vol", "0", "@cancel_deferred_remove", "now")
        ctl.ok("message", "vol", "0", "@cancel_deferred_remove")
        assert "DEFERRED" not in dev.read("info")
    ctl.ok("remove", "vol")
    ctl.fails("remove", "--deferred", "vol", match="No such device or address")


def test_remove_all_deferred(ctl, fs):
    open_one = fs.mkdir("open", "0 8 zero")
    fs.mkdir("a", "0 8 linear open 0")
    fs.mkdir("z", "0 8 linear a 0")
    with open_one.held():
        ctl.ok("remove_all", "--deferred")
        assert fs.devices() == ["open"]
    ends(ctl, "open")
    assert fs.devices() == []


def test_a_thousand_devices(ctl, fs):
    text = ";".join(f"d{i:03},uuid-{i},,,0 8 zero" if not i % 2 else f"d{i:03},,,,0 8 linear d{i - 1:03} 0"
                    for i in range(1000))
    ctl.ok("create", "--concise", stdin=text + "\n")
    names = [f"d{i:03}" for i in range(1000)]
    assert ctl.ok("info", "-c", "--noheadings", "-o", "name").split() == names
    assert ctl.ok("table", "-u", "uuid-998") == "0 8 zero \n"
    ctl.ok("remove_all", "-f")
    assert fs.devices() == []


# --- wait ----------------------------------------------------------------------------------------

def asleep_in_poll(process):
    """Until the process waits in poll(2) or has ended: it looks at its system call, and never sleeps itself."""
    while process.poll() is None:
        with open(f"/proc/{process.pid}/syscall") as f:
            if f.read().split()[0] in ("7", "271", "73"):      # poll, ppoll
                return
        os.sched_yield()


def start(ctl, *args):
    return subprocess.Popen([ctl.program, *args], env=ctl.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_wait_ends_with_an_event(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    process = start(ctl, "wait", "-v", "vol", "0")
    asleep_in_poll(process)
    dev.load("0 16 zero")               # a resume is no event that counts
    dev.suspend()
    dev.resume()
    asleep_in_poll(process)
    assert process.poll() is None
    os.rename(dev.path, fs.path("other"))
    code, out, err = finish(process)
    assert code == 0 and not err
    assert "Name:              other\n" in out and "Event number:      1\n" in out


def test_wait_with_another_number_returns_at_once(ctl, fs):
    fs.mkdir("vol", "0 8 zero")
    assert ctl.ok("wait", "vol", "5") == ""
    ctl.fails("wait", "vol", "x", match="event number")
    ctl.fails("wait", "vol", "-1")


def test_wait_ends_with_the_device(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    process = start(ctl, "wait", "vol")
    asleep_in_poll(process)
    dev.remove()
    assert finish(process) == (0, "", "")


def test_wait_progress_of_a_mirror(ctl, fs, backing):
    dev = fs.mkdir("m", f"0 8192 mirror core 1 64 2 {backing(8192)} 0 {backing(8192)} 0")
    out = ctl.ok("wait", "--progress", "m")
    assert out.endswith("m: resync 100 %\n")
    assert " 128/128 " in dev.status()
    numbers = [int(n) for n in re.findall(r"(\d+) %", out)]
    assert numbers == sorted(set(numbers))
    fs.mkdir("z", "0 8 zero")
    ctl.fails("wait", "--progress", "z", match="nothing in its table")


def test_progress_bar_on_a_terminal(ctl, fs, backing):
    fs.mkdir("m", f"0 8192 mirror core 2 64 nosync 2 {backing(8192)} 0 {backing(8192)} 0")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([ctl.program, "wait", "--progress", "m"], env=ctl.env, stdout=theirs, stdin=theirs)
    os.close(theirs)
    text = read_terminal(ours, process)
    assert process.returncode == 0
    assert re.search(r"\rm: resync \[#{40}\] 100\.0 %", text)


def read_terminal(fd, process, until=None, send=None):
    text = b""
    try:
        while part := os.read(fd, 65536):
            text += part
            if until and re.search(until, text):
                os.write(fd, send)
                until = None
    except OSError:         # the other side is closed
        pass
    process.wait(300)
    os.close(fd)
    return text.decode("utf-8", "replace")


# --- top, graph, stats, losetup -------------------------------------------------------------------

def test_top_counts_and_cleans_up(ctl, fs, backing):
    dev = fs.mkdir("vol", f"0 100 linear {backing(100)} 0")
    fs.mkdir("empty")
    regions = lambda: dev.message("@stats_list")
    code, out, err = finish(start(ctl, "top", "--count", "2", "--interval", "0.1"))
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["Name", "Stat", "R/s", "W/s"]
    assert len([line for line in lines if line.startswith("vol ")]) == 2
    assert regions() == ""
    process = start(ctl, "top", "--count", "100000", "--interval", "0.3")
    written = 0
    while not written:
        dev.pwrite(b"x" * 4096, 0, sync=True)
        line = process.stdout.readline()
        assert line, "it ended by itself"
        written = line.startswith("vol ") and float(line.split()[3])
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 0
    assert regions() == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_top_cleans_up_after_a_signal(ctl, fs, signum):
    dev = fs.mkdir("vol", "0 8 zero")
    process = start(ctl, "top", "--interval", "1000")
    while process.poll() is None and not dev.message("@stats_list"):
        os.sched_yield()
    process.send_signal(signum)
    assert finish(process)[0] == 0
    assert dev.message("@stats_list") == ""


def test_top_on_a_terminal_ends_with_q(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 120, 0, 0))
    process = subprocess.Popen([ctl.program, "top", "--interval", "0.1"], env=ctl.env, stdout=theirs, stdin=theirs)
    os.close(theirs)
    text = read_terminal(ours, process, until=rb"vol +L--w +\d", send=b"q")
    assert process.returncode == 0 and "\033[?1049l" in text
    assert dev.message("@stats_list") == ""


def test_graph(ctl, fs, backing):
    path = backing(8)
    fs.mkdir('a"b', f"0 8 linear {quote(path)} 0")
    fs.mkdir("top", "0 4 linear a\\\"b 0\n4 4 zero")
    out = ctl.ok("graph")
    assert out.startswith("digraph dmfs {\n") and out.endswith("}\n")
    assert f'\t"a\\"b" -> "{path}";\n' in out
    assert '\t"top" -> "a\\"b";\n' in out
    assert 'label="top\\nlinear, zero"' in out


def test_stats_report_tells_rates(ctl, fs, backing):
    dev = fs.mkdir("vol", f"0 100 linear {backing(100)} 0")
    ctl.ok("stats", "create", "vol", "--areas", "2")
    dev.pwrite(b"x" * 512, 99 * 512, sync=True)
    assert ctl.ok("stats", "list", "--noheadings", "-o", "region_id,area_count,region_len,program_id") \
        == "0:2:50.00k:dmstats\n"
    process = start(ctl, "stats", "report", "--interval", "0.3", "--count", "1", "--area", "--noheadings",
                    "-o", "name,area_id,write_count", "vol")
    code, out, err = finish(process)
    assert code == 0 and not err
    assert out == "vol:0:0\nvol:1:0\n"      # that write was before
    text = ctl.ok("stats", "print", "--allregions", "vol")
    assert [line.split()[5] for line in text.splitlines()] == ["0", "1"]
    ctl.ok("stats", "delete", "--allregions", "vol")
    assert dev.message("@stats_list") == ""


def test_stats_of_a_group_add_up(ctl, fs, backing):
    dev = fs.mkdir("vol", f"0 50 linear {backing(50)} 0\n50 50 linear {backing(50)} 0")
    ctl.ok("stats", "create", "vol", "--segments", "--alias", "both", "--bounds", "1s")
    fields = ["--noheadings", "-o", "stats_name,obj_type,region_id,write_count,hist_count"]
    process = start(ctl, "stats", "report", "--interval", "0.5", *fields)
    out = ""
    while process.poll() is None and not re.search(r"both:group:0-1:[1-9]", out):
        dev.pwrite(b"x" * 512, 0, sync=True)
        dev.pwrite(b"x" * 512, 99 * 512, sync=True)
        out = "".join(process.stdout.readline() for _ in range(4))
    process.terminate()
    finish(process)
    counts = {line.split(":")[2]: [int(n) for n in line.split(":")[3:]] for line in out.splitlines() if line}
    assert counts["0-1"] == [a + b for a, b in zip(counts["0"], counts["1"])]
    assert counts["0-1"][0] == sum(counts["0-1"][1:])       # the histogram's bins
    ctl.ok("stats", "delete", "--groupid", "0", "vol")
    assert dev.message("@stats_list") == ""


def test_a_region_leaves_its_group(ctl, fs):
    dev = fs.mkdir("vol", "0 8 zero")
    for start_at in "0", "2", "4":
        ctl.ok("stats", "create", "vol", "--start", start_at, "--length", "2", "--userdata", "u" + start_at)
    ctl.ok("stats", "group", "vol", "--regions", "0-2", "--alias", "g:h")
    assert dev.message("@stats_list").splitlines()[0].endswith("dmstats DMS_GROUP=g:h:0-2#u0")
    ctl.ok("stats", "delete", "vol", "--regionid", "1")
    assert dev.message("@stats_list").splitlines()[0].endswith("dmstats DMS_GROUP=g:h:0,2#u0")
    rows = ctl.ok("stats", "list", "--noheadings", "-o", "name,stats_name,group_id,region_id,userdata").splitlines()
    assert rows == ["vol:g:h:0:0:u0", "vol:g:h:0:2:u4", "vol:g:h:0:0,2:"]
    assert ctl.ok("stats", "list", "--regionid", "2", "--noheadings", "-o", "region_id") == "2\n"
    ctl.ok("stats", "delete", "vol", "--regionid", "0")         # the group goes with its first region
    assert ctl.ok("stats", "list", "--noheadings", "-o", "group_id,region_id") == "-:2\n"
    for alias in "a b", "a#b":
        ctl.fails("stats", "group", "vol", "--regions", "2", "--alias", alias, match="Invalid alias")


def test_called_as_dmsetup_and_dmstats(ctl, fs, work):
    fs.mkdir("vol", "0 8 zero")
    for name, args, out in (("dmsetup", ["ls"], "vol\t(0:0)\n"),
                            ("dmstats", ["create", "vol"], "vol: Created new region with 1 area(s) as region ID 0\n"),
                            ("dmstats", ["list", "--noheadings", "-o", "region_id"], "0\n")):
        link = os.path.join(work, name)
        if not os.path.lexists(link):
            os.symlink(ctl.program, link)
        done = subprocess.run([link, *args], capture_output=True, text=True, env=ctl.env)
        assert (done.returncode, done.stdout, done.stderr) == (0, out, "")
    assert "dmstats" in subprocess.run([link, "help"], capture_output=True, text=True, env=ctl.env).stderr


def test_status_and_deps_of_the_inactive_table(ctl, fs, backing):
    path = backing(8)
    fs.mkdir("low", "0 8 zero")
    dev = fs.mkdir("vol", "0 8 linear low 0")
    assert dev.message("@inactive deps") == dev.message("@inactive status") == ""
    dev.load(f"0 8 mirror core 1 4 2 low 0 {path} 0", to="inactive")
    assert dev.message("@inactive deps").split() == [path, "low"]
    assert dev.message("@inactive status").startswith("0 8 mirror 2 ")
    assert ctl.ok("status", "--inactive", "vol") == dev.message("@inactive status")
    assert ctl.ok("deps", "--inactive", "-o", "devname", "vol") == f"2 dependencies\t: ({path}) (low)\n"
    assert ctl.ok("deps", "-o", "devname", "vol") == "1 dependencies\t: (low)\n"
    for wrong in "@inactive", "@inactive table", "@inactive deps now":
        with pytest.raises(OSError):
            dev.message(wrong)


@pytest.mark.root
def test_losetup(ctl, fs, backing):
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices")
    fs.mkdir("vol", f"0 256 linear {backing(256)} 0")
    fs.mkdir("top", "0 256 linear vol 0")
    for name, readonly in (("top", False), ("vol", True)):
        done = ctl("losetup", *(["-r"] if readonly else []), name)
        if done.returncode:
            pytest.skip(f"losetup: {done.stderr}")
        loop = done.stdout.strip()
        try:
            info = json.loads(subprocess.run(["losetup", "--json", "--list", "-O", "BACK-FILE,DIO,RO,LOG-SEC", loop],
                                             capture_output=True, text=True, check=True).stdout)["loopdevices"][0]
            assert info["back-file"] == fs[name].image
            assert info["dio"] and bool(info["ro"]) == readonly and int(info["log-sec"]) == 512
        finally:
            subprocess.run(["losetup", "-d", loop], check=True, timeout=300)
    ctl.fails("losetup", "nosuch", match="does not exist")


@pytest.mark.root
def test_losetup_takes_the_sector_size_below(ctl, fs, backing):
    if not os.path.exists("/dev/loop-control") or "crypt" not in fs.read("targets"):
        pytest.skip("no loop devices, or no crypt target")
    fs.mkdir("k", f"0 256 crypt aes-xts-plain64 {'ab' * 32} 0 {backing(256)} 0 1 sector_size:4096")
    fs.mkdir("top", "0 256 linear k 0")
    done = ctl("losetup", "top")
    if done.returncode:
        pytest.skip(f"losetup: {done.stderr}")
    loop = done.stdout.strip()
    try:
        with open(f"/sys/block/{os.path.basename(loop)}/queue/logical_block_size") as f:
            assert f.read().strip() == "4096"
    finally:
        subprocess.run(["losetup", "-d", loop], check=True, timeout=300)


@pytest.mark.root
def test_losetup_takes_discards_if_the_device_does(ctl, fs, backing, tool):
    path = backing(4096)
    crypt = f"0 4096 crypt aes-xts-plain64 {'11' * 32} 0 {path} 0"
    for name, line, takes in (("a", f"0 4096 linear {path} 0", True), ("b", crypt, False),
                              ("c", f"{crypt} 1 allow_discards", True), ("d", "0 4096 linear b 0", False)):
        fs.mkdir(name, line)
        done = ctl("losetup", name)
        if done.returncode:
            pytest.skip(f"losetup: {done.stderr}")
        loop = done.stdout.strip()
        try:
            with open(f"/sys/block/{os.path.basename(loop)}/queue/discard_max_bytes", encoding="ascii") as f:
                assert bool(int(f.read())) == takes, name
            done = subprocess.run([tool("blkdiscard"), "-f", "-l", "1M", loop], capture_output=True, text=True, timeout=300)
            assert (done.returncode == 0) == takes and ("not supported" in done.stderr) != takes, done.stderr
        finally:
            subprocess.run(["losetup", "-d", loop], check=True, timeout=300)


# --- the rest ----------------------------------------------------------------------------------------

def test_help_and_usage(ctl, fs):
    done = ctl("help")
    assert done.returncode == 0 and "create --concise" in done.stderr
    assert "device_ref_count" in ctl("help", "-c").stderr
    done = ctl()
    assert done.returncode == 1 and done.stderr.startswith("Usage:")
    assert ctl("nosuch").stderr.startswith("Unknown command.\nUsage:")
    version = ctl.ok("version")
    assert re.search(r"^Library version: +1\.02\.\d+ \(dmfs ", version, re.M)
    assert re.search(r"^Driver version: +4\.\d+\.\d+$", version, re.M)
    assert ctl.ok("targets") == fs.read("targets")


def test_nothing_is_ignored_in_silence(ctl, fs):
    fs.mkdir("vol", "0 8 zero")
    for args in (["stats", "create", "vol", "--filemap"], ["stats", "create", "vol", "--alias", "a", "--nogroup"],
                 ["wait", "--progress", "vol", "3"], ["create", "--concise", "-u", "x", "a,,,,0 1 zero"]):
        ctl.fails(*args)
    done = ctl("create", "r", "--readahead", "8", "--table", "0 8 zero")
    assert done.returncode == 0 and "--readahead 8" in done.stderr
    done = ctl("setgeometry", "vol", "1", "2", "3", "0")
    assert done.returncode == 0 and "no geometry" in done.stderr


def test_output_that_cannot_be_written_is_an_error(ctl, fs):
    fs.mkdir("vol", "0 8 zero")
    with open("/dev/full", "w") as full:
        done = subprocess.run([ctl.program, "ls"], stdout=full, stderr=subprocess.PIPE, text=True, env=ctl.env)
    assert done.returncode == 1 and "No space left" in done.stderr


def test_ls_exec(ctl, fs):
    fs.mkdir("a", "0 8 zero")
    fs.mkdir("b", "0 8 error")
    assert ctl.ok("ls", "--exec", "echo  x") == f"x {fs['a'].image}\nx {fs['b'].image}\n"
    assert ctl.ok("ls", "--target", "error", "--exec", "stat -c %s") == "4096\n"


# --- bash completion -------------------------------------------------------------------------------------

def complete(ctl, *words):
    """What bash would offer for the last of the words."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dmfsctl; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script, os.path.join(top, "contrib/completion/dmfsctl"), "dmfsctl", *words],
                          capture_output=True, text=True, timeout=300,
                          env=ctl.env | {"PATH": os.path.dirname(ctl.program) + ":" + os.environ["PATH"]})
    assert not done.stderr
    return sorted(done.stdout.split("\n")[:-1])


def test_completion(ctl, fs, dmfs):
    fs.mkdir("first", "0 8 zero")
    fs.mkdir("a b")
    assert complete(ctl, "rem") == ["remove", "remove_all"]
    assert complete(ctl, "table", "") == ["a\\ b", "first"]
    assert complete(ctl, "remove", "first", "f") == ["first"]
    assert complete(ctl, "wait", "--p") == ["--progress"]
    assert complete(ctl, "info", "-c", "-o", "name,uu") == ["name,uuid"]
    assert complete(ctl, "ls", "--tree", "-o", "compact,inv") == ["compact,inverted"]
    assert complete(ctl, "ls", "-o", "devn") == ["devname", "devno"]
    assert complete(ctl, "ls", "--target", "lin") == ["linear"]
    assert complete(ctl, "stats", "re") == ["report"]
    other = dmfs()
    other.mkdir("elsewhere")
    assert complete(ctl, "-m", other.mountpoint, "table", "") == ["elsewhere"]


def test_completion_knows_every_command_and_long_option(ctl):
    offered = complete(ctl, "")
    usage = ctl("help").stderr
    commands = set(re.findall(r"^\t(\w[\w-]*)(?= |$)", usage, re.M))
    assert commands <= set(offered), commands - set(offered)
    assert len(offered) == len(set(offered)) and set(offered) <= commands
    # getopt tells the options that begin with a letter, for it is ambiguous; of these there is one each
    options = {"--deferred", "--yes"}
    for letter in string.ascii_lowercase:
        options |= set(re.findall(r"'(--\w\w+)'", ctl("--" + letter).stderr))
    assert {"--table", "--exec", "--groupid"} <= options
    options -= {"--checks", "--noopencount", "--noudevrules", "--noudevsync", "--udevcookie",
                "--verifyudev"}     # they do nothing
    got = {option for command in offered for option in complete(ctl, command, "--")}
    assert options <= got, options - got


def test_completion_knows_every_field(ctl, fs):
    fs.mkdir("vol")
    for command in ["info", "-c"], ["stats", "list"]:
        fields = set(re.findall(r"^  (\w+) +- ", ctl(*command, "-o", "help").stderr, re.M))
        assert len(fields) > 20 and fields <= set(complete(ctl, *command, "-o", ""))
