# SPDX-License-Identifier: GPL-2.0-or-later
"""The control tree: its files, making, removing and renaming devices, and the program around it."""

import contextlib
import errno
import os
import re
import signal
import stat
import subprocess
import threading

import pytest

import mounted
from mounted import Device, pattern, quote, run_as

ROOT_FILES = {"control", "targets", "version", "log"}
DEVICE_FILES = {"image", "table", "inactive", "suspend", "status", "error", "info", "deps", "dev", "uuid", "readonly"}


def fails(code, call, *args):
    with pytest.raises(OSError) as e:
        call(*args)
    codes = code if isinstance(code, set) else {code}
    assert e.value.errno in codes, f"{e.value} is none of {[os.strerror(c) for c in codes]}"


def test_root_files(fs):
    names = set(os.listdir(fs.mountpoint))
    assert ROOT_FILES <= names
    for name in names:
        st = os.stat(fs.path(name))
        assert stat.S_ISREG(st.st_mode) and st.st_size == 0, name
        assert st.st_uid == os.getuid(), name


def test_device_files(fs):
    dev = fs.mkdir("vol")
    names = set(os.listdir(dev.path))
    assert DEVICE_FILES <= names
    for name in names:
        st = os.stat(dev.file(name))
        assert stat.S_ISREG(st.st_mode) and st.st_size == 0, name
        assert not st.st_mode & 0o077, f"{name} is open to others"


def test_of_a_new_device(fs):
    dev = fs.mkdir("vol")
    assert dev.table() == "" and dev.inactive() == "" and dev.status() == "" and dev.error() == ""
    assert dev.size() == 0
    assert not dev.suspended()
    assert dev.read("readonly").strip() == "0"
    assert dev.read("uuid").strip() == ""
    assert re.fullmatch(r"0:\d+\n", dev.read("dev"))
    assert dev.pread(512, 0) == b""


def test_targets_and_version(fs):
    lines = fs.read("targets").splitlines()
    names = {}
    for line in lines:
        m = re.fullmatch(r"(\S+) +v(\d+\.\d+\.\d+)", line)
        assert m, line
        names[m.group(1)] = m.group(2)
    assert {"linear", "striped", "zero", "error"} <= set(names)
    assert "io-err" not in names
    assert re.search(r"\d+\.\d+", fs.read("version"))


def test_control_lists_its_commands(fs):
    lines = fs.read("control").splitlines()
    for command in ("create", "remove", "rename"):
        assert any(command in line for line in lines), command


def test_deferred_remove(fs):
    dev = fs.mkdir("a b", "0 8 zero")
    assert "remove NAME [deferred]\n" in fs.read("control")
    for wrong in "remove a\\ b now", "remove a\\ b deferred more", "remove nosuch deferred":
        with pytest.raises(OSError):
            fs.write("control", wrong + "\n")
    with dev.held():
        fs.write("control", "remove a\\ b deferred\n")
        assert fs.devices() == ["a b"]
        assert "DEFERRED" in dev.read("info")
    # the end of its events is the end of the device: it may have been before they could be opened
    with contextlib.suppress(OSError), open(dev.file("events"), encoding="utf-8") as events:
        events.read()
    assert fs.devices() == []
    fs.mkdir("c")
    fs.write("control", "remove c deferred\n")
    assert "c" not in fs.devices()


def test_a_text_is_read_in_parts(fs, backing):
    """A read at offset 0 takes a fresh text, the reads after it continue that one."""
    path = backing(1000)
    dev = fs.mkdir("vol", *(f"{i * 8} 8 linear {quote(path)} {i}" for i in range(500)))
    whole = dev.table()
    fd = os.open(dev.file("table"), os.O_RDONLY)
    try:
        got = os.read(fd, 7)
        dev.load("0 8 zero")
        while part := os.read(fd, 1000):
            got += part
        assert got.decode() == whole
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.read(fd, 1000) == b"0 8 zero\n"
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", sorted(ROOT_FILES))
def test_taken_names(fs, name):
    fails(errno.EEXIST, os.mkdir, fs.path(name))
    dev = fs.mkdir("vol")
    fails({errno.EEXIST, errno.ENOTDIR}, os.rename, dev.path, fs.path(name))
    assert fs.devices() == ["vol"]


def test_names(fs):
    long = "n" * 127
    fs.mkdir(long, "0 8 zero")
    assert fs.devices() == [long]
    fails(errno.ENAMETOOLONG, os.mkdir, fs.path("n" * 128))
    fails(errno.ENAMETOOLONG, os.rename, fs.path(long), fs.path("m" * 128))
    fails(errno.ENAMETOOLONG, os.mkdir, fs.path("ü" * 64))
    fails({errno.EINVAL, errno.EPERM}, os.mkdir, fs.path(".hidden"))
    fails({errno.EINVAL, errno.EPERM}, os.rename, fs.path(long), fs.path(".hidden"))
    assert fs.devices() == [long]
    odd = "a b\tc'd\"e#f\\g"
    dev = fs.mkdir(odd, "0 8 zero")
    top = fs.mkdir("top", f"0 8 linear {quote(odd)} 0")
    assert fs[odd].size() == 4096
    again = fs.mkdir("again", *top.table().splitlines())    # what is printed loads again
    assert again.table() == top.table()
    for d in (again, top, dev):
        d.remove()


def test_nothing_else_can_be_made(fs, work):
    dev = fs.mkdir("vol")
    for call, *args in ((os.mkdir, dev.file("sub")), (os.mknod, fs.path("node")), (os.symlink, "x", fs.path("link")),
                        (os.unlink, dev.file("table")), (os.unlink, fs.path("control")), (os.rmdir, fs.path("control")),
                        (os.unlink, dev.path), (os.rename, dev.file("table"), dev.file("tafel")),
                        (os.rename, fs.path("control"), fs.path("kontrol")), (os.link, dev.file("image"), fs.path("hard")),
                        (os.rename, dev.path, os.path.join(work, "x")), (os.open, fs.path("file"), os.O_CREAT | os.O_WRONLY),
                        (os.open, dev.file("file"), os.O_CREAT | os.O_WRONLY)):
        with pytest.raises(OSError):
            call(*args)
    fails(errno.ENOENT, os.rmdir, fs.path("none"))
    fails(errno.EEXIST, os.mkdir, dev.path)
    assert DEVICE_FILES <= set(os.listdir(dev.path))
    assert ROOT_FILES | {"vol"} <= set(os.listdir(fs.mountpoint))


def test_rmdir(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    with dev.open():
        fails(errno.EBUSY, os.rmdir, dev.path)
        assert dev.table() == "0 8 zero\n"
    top = fs.mkdir("top", "0 8 linear vol 0")
    fails(errno.EBUSY, os.rmdir, dev.path)
    top.load("0 8 zero", to="inactive")     # the live table still uses it
    fails(errno.EBUSY, os.rmdir, dev.path)
    top.resume()
    dev.remove()
    fs.mkdir("vol", "0 8 zero")
    top.load("0 8 linear vol 0", to="inactive")
    fails(errno.EBUSY, os.rmdir, fs.path("vol"))    # an inactive one uses it as well
    top.write("inactive", "")
    fs["vol"].remove()
    top.remove()
    assert fs.devices() == []


def test_rmdir_right_after_close(fs):
    """The kernel tells of a close only after close(2) has returned: that must not make a device busy."""
    failures = []

    def work(me):
        try:
            for i in range(100):
                dev = fs.mkdir(f"d{me}-{i}", "0 8 zero")
                for flags in (os.O_RDWR, os.O_RDONLY | os.O_DIRECT):
                    fd = os.open(dev.image, flags)
                    os.close(os.dup(fd))
                    os.close(fd)
                os.rmdir(dev.path)
        except OSError as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_rmdir_with_an_inherited_image(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    fd = os.open(dev.image, os.O_RDWR)
    os.close(os.dup(fd))            # as if closing, but it is not
    fails(errno.EBUSY, os.rmdir, dev.path)
    fails(errno.EBUSY, fs.write, "control", "remove vol\n")
    os.pread(fd, 1, 0)
    os.close(fd)
    dev.remove()


def test_rmdir_with_control_files_open(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    fds = [os.open(dev.file(name), os.O_RDONLY) for name in ("table", "status", "info", "error")]
    dev.remove()
    for fd in fds:
        try:
            os.pread(fd, 100, 0)        # its last words or an error, but an answer
        except OSError:
            pass
        os.close(fd)
    assert fs.mkdir("vol").table() == ""


def test_control_files_of_a_removed_device(fs):
    """A draft, a command and a message that were open go nowhere, above all not to a new device of that name."""
    dev = fs.mkdir("vol", "0 8 zero")
    names = {"table": "0 16 zero\n", "inactive": "0 16 zero\n", "suspend": "1\n", "message": "@stats_list\n"}
    fds = {name: os.open(dev.file(name), os.O_RDWR) for name in names}
    dev.remove()
    new = fs.mkdir("vol", "0 24 zero")
    before = new.state()
    for name, text in names.items():
        with pytest.raises(OSError) as e:       # a draft fails at its close
            os.write(fds[name], text.encode())
            os.close(fds.pop(name))
        assert e.value.errno == errno.ENXIO, name
    for fd in fds.values():
        os.close(fd)
    assert new.state() == before


def test_image_of_a_removed_device_is_gone(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.remove()
    fails(errno.ENOENT, os.stat, dev.image)


def test_rename(fs, backing):
    path = backing(64, pattern(64))
    dev = fs.mkdir("one", f"0 64 linear {quote(path)} 0")
    top = fs.mkdir("top", "0 64 linear one 0")
    number = dev.read("dev")
    with dev.open() as fd:
        os.rename(fs.path("one"), fs.path("two"))
        assert os.pread(fd, 512, 512) == pattern(64)[512:1024]
        os.pwrite(fd, b"x" * 512, 512)
    two = fs["two"]
    assert fs.devices() == ["top", "two"]
    assert two.read("dev") == number
    assert top.table() == "0 64 linear two 0\n"
    assert top.read("deps").splitlines() == ["two"]
    assert two.info()["Name"] == "two"
    assert top.pread(512, 512) == b"x" * 512
    fs.mkdir("three")
    fails({errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY}, os.rename, fs.path("two"), fs.path("three"))
    fails(errno.ENOENT, os.rename, fs.path("one"), fs.path("four"))
    assert fs.devices() == ["three", "top", "two"]


def test_control_file(fs):
    fs.write("control", "create a\n")
    fs.write("control", "create b 77\n")
    assert fs["b"].read("dev") == "0:77\n"
    fs.write("control", "rename a c")
    assert fs.devices() == ["b", "c"]
    fs.write("control", "remove b\n")
    assert fs.devices() == ["c"]
    fs["c"].load("0 8 zero")
    with fs["c"].open():
        fails(errno.EBUSY, fs.write, "control", "remove c\n")
    for bad, code in (("create c\n", errno.EEXIST), ("remove nosuch\n", {errno.ENOENT, errno.ENXIO}),
                      ("rename nosuch x\n", {errno.ENOENT, errno.ENXIO}), ("rename c\n", errno.EINVAL),
                      ("create\n", errno.EINVAL), ("create x y\n", errno.EINVAL), ("create x 1 2\n", errno.EINVAL),
                      ("create x -1\n", errno.EINVAL), ("create x 99999999999\n", errno.EINVAL),
                      ("create x 1048576\n", errno.EINVAL),
                      ("create .x\n", {errno.EINVAL, errno.EPERM}), ("create a/b\n", errno.EINVAL),
                      (f"create {'n' * 128}\n", errno.ENAMETOOLONG), ("frobnicate c\n", errno.EINVAL),
                      ("create version\n", errno.EEXIST), ("\0\0\n", errno.EINVAL), ("remove\n", errno.EINVAL)):
        fails(code, fs.write, "control", bad)
        assert fs.devices() == ["c"], bad
    fs.write("control", "create d 5\n")
    fails({errno.EBUSY, errno.EEXIST}, fs.write, "control", "create e 5\n")
    assert fs.devices() == ["c", "d"]


def test_minors_are_reused_and_differ(fs):
    devs = [fs.mkdir(f"d{i}") for i in range(20)]
    assert len({d.read("dev") for d in devs}) == 20
    for d in devs:
        d.remove()


def test_info(fs, backing):
    dev = fs.mkdir("vol")
    info = dev.info()
    assert info["Name"] == "vol" and info["Tables present"] == "None" and info["Open count"] == "0"
    dev.load("0 8 zero", "8 8 error")
    info = dev.info()
    minor = dev.read("dev").split(":")[1].strip()
    assert info["State"] == "ACTIVE"
    assert info["Tables present"] == "LIVE"
    assert info["Number of targets"] == "2"
    assert info["Event number"] == "0"
    assert re.fullmatch(rf"0, *{minor}", info["Major, minor"])
    dev.load("0 8 zero", to="inactive")
    assert dev.info()["Tables present"] == "LIVE & INACTIVE"
    with dev.open(), dev.open(os.O_RDONLY):
        assert dev.info()["Open count"] == "2"
    dev.suspend()
    assert dev.info()["State"] == "SUSPENDED"
    dev.resume()
    dev.write("uuid", "TEST-1\n")
    assert dev.info()["UUID"] == "TEST-1"
    dev.write("readonly", "1\n")
    dev.load("0 8 zero")
    assert "READ-ONLY" in dev.info()["State"]


def test_uuid(fs):
    a, b = fs.mkdir("a"), fs.mkdir("b")
    fails({errno.EINVAL, errno.E2BIG, errno.EFBIG, errno.ENAMETOOLONG}, a.write, "uuid", "u" * 129)
    assert a.read("uuid").strip() == ""
    a.write("uuid", "u" * 128)
    assert a.read("uuid").strip() == "u" * 128
    fails({errno.EINVAL, errno.EBUSY, errno.EEXIST}, a.write, "uuid", "other\n")
    assert a.read("uuid").strip() == "u" * 128
    fails({errno.EBUSY, errno.EEXIST}, b.write, "uuid", "u" * 128)
    assert b.read("uuid").strip() == ""


def test_deps(fs, backing):
    one, two = backing(64), backing(64)
    fs.mkdir("low", f"0 64 linear {quote(one)} 0")
    dev = fs.mkdir("top", "0 8 zero", f"8 8 linear {quote(two)} 0", "16 8 linear low 0", f"24 8 linear {quote(two)} 9")
    assert sorted(dev.read("deps").splitlines()) == sorted([two, "low"])


def test_log_keeps_the_last_errors(fs):
    dev = fs.mkdir("vol")
    with pytest.raises(OSError):
        dev.load("0 8 nosuchtarget")
    assert "nosuchtarget" in fs.read("log")


# --- the program ----------------------------------------------------------------


def dmfs_program(*args, **kw):
    return subprocess.run([os.path.join(mounted.build_dir(), "dmfs"), *args], capture_output=True, text=True,
                          timeout=300, **kw)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(dmfs, backing, number):
    d = dmfs()
    path = backing(2048)
    dev = d.mkdir("vol", f"0 2048 linear {quote(path)} 0")
    data = pattern(2048)
    dev.pwrite(data, 0)
    d.signal(number)
    assert d.wait() == 0
    assert not mounted.is_mounted(d.mountpoint)
    with open(path, "rb") as f:
        assert f.read() == data


def test_unmount_ends_it(dmfs):
    d = dmfs()
    d.mkdir("a", "0 8 zero")
    d.mkdir("b", "0 8 linear a 0")
    d.mkdir("c", "0 8 linear b 0")
    assert d.unmount() == 0


def test_unmount_while_busy(dmfs):
    d = dmfs()
    dev = d.mkdir("vol", "0 8 zero")
    with dev.open() as fd:
        with pytest.raises(OSError) as e:
            d.unmount(patient=False)
        assert e.value.errno == errno.EBUSY
        assert os.pread(fd, 512, 0) == bytes(512)
    assert dev.table() == "0 8 zero\n"
    assert d.unmount() == 0


def test_a_dead_mountpoint_is_taken_over(dmfs):
    d = dmfs()
    mountpoint = d.mountpoint
    d.kill()
    d.wait()
    fails(errno.ENOTCONN, os.listdir, mountpoint)
    e = dmfs(mountpoint=mountpoint)
    assert e.mkdir("vol", "0 8 zero").size() == 4096
    assert e.unmount() == 0


def test_in_the_background(work):
    """Without -f it returns when the mount is up, and lives on."""
    why = mounted.why_no_mount()
    if why:
        pytest.skip(why)
    mountpoint = os.path.join(work, "mnt")
    os.mkdir(mountpoint)
    done = dmfs_program(mountpoint, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    try:
        assert mounted.is_mounted(mountpoint)
        os.mkdir(os.path.join(mountpoint, "vol"))
    finally:
        assert mounted.unmount(mountpoint).returncode == 0


@pytest.mark.parametrize("args, says", [
    ([], "usage|MOUNTPOINT"),
    (["/nonexistent/mountpoint"], "nonexistent.*No such"),
    (["/dev/null"], "null"),
    (["-o", "frobnicate", "MNT"], "frobnicate"),
    (["--frobnicate", "MNT"], "frobnicate"),
    (["a", "b", "c", "MNT"], "usage|argument|too many"),
])
def test_bad_command_lines(work, args, says):
    mountpoint = os.path.join(work, "mnt")
    os.mkdir(mountpoint)
    done = dmfs_program(*[mountpoint if a == "MNT" else a for a in args])
    try:
        assert done.returncode != 0
        assert re.search(says, done.stderr, re.I), done.stderr
    finally:
        if mounted.is_mounted(mountpoint):
            mounted.unmount(mountpoint)


def test_help_and_version():
    assert "MOUNTPOINT" in (h := dmfs_program("--help")).stdout and h.returncode == 0
    assert re.search(r"\d+\.\d+", (v := dmfs_program("--version")).stdout) and v.returncode == 0


# --- who may ---------------------------------------------------------------------


@pytest.mark.root
def test_the_mount_is_private(dmfs):
    d = dmfs(user="nobody")
    done = run_as("daemon", ["ls", d.mountpoint])
    assert done.returncode != 0 and "Permission denied" in done.stderr
    done = run_as("nobody", ["sh", "-c", f"cd {d.mountpoint} && mkdir v && echo 0 8 zero >v/table && cat v/status"])
    assert done.returncode == 0 and done.stdout.strip() == "0 8 zero", done.stderr


@pytest.mark.root
def test_control_files_are_the_owners_alone(dmfs):
    d = dmfs(options="allow_other")
    os.chmod(d.dir, 0o755)
    dev = d.mkdir("vol", "0 8 zero")
    for script in (f"cat {dev.file('table')}", f"echo 0 8 error >{dev.file('table')}", f"mkdir {d.path('mine')}",
                   f"rmdir {dev.path}", f"cat {dev.image}", f"mv {dev.path} {d.path('x')}",
                   f"echo create x >{d.path('control')}", f"echo 1 >{dev.file('suspend')}"):
        done = run_as("nobody", ["sh", "-c", script])
        assert done.returncode != 0, script
        assert "ermission denied" in done.stderr or "not permitted" in done.stderr, done.stderr
    assert dev.table() == "0 8 zero\n"
    os.chmod(dev.image, 0o644)
    assert run_as("nobody", ["cat", dev.image], text=False).stdout == bytes(4096)
    assert run_as("nobody", ["sh", "-c", f": <>{dev.image}"]).returncode != 0
    os.chown(dev.image, 65534, -1)
    assert run_as("nobody", ["sh", "-c", f": <>{dev.image}"]).returncode == 0
    assert run_as("nobody", ["sh", "-c", f"cat {dev.file('table')}"]).returncode != 0


@pytest.mark.root
def test_an_unreadable_file(dmfs, backing, work):
    """A device is opened with the writer's credentials."""
    d = dmfs(user="nobody")
    os.chmod(work, 0o755)
    secret = backing(64)
    os.chmod(secret, 0o600)
    done = run_as("nobody", ["sh", "-c", f"cd {d.mountpoint} && mkdir v && echo 0 64 linear {secret} 0 >v/table; "
                             "echo $?; cat v/error v/table"])
    assert done.stdout.splitlines()[0] != "0"
    assert re.search(r"^1: .*Permission denied", done.stdout, re.M), done.stdout
    assert len(done.stdout.splitlines()) == 2
