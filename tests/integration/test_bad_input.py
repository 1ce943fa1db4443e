# SPDX-License-Identifier: GPL-2.0-or-later
"""Each with the right errno, a line in `error`, and everything as before."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import threading

import pytest

import mounted
from mounted import SECTOR, pattern, quote

E = errno
OVER = 1 << 64


@pytest.fixture
def vol(fs, backing):
    """A device that works, to see that it still does: 64 sectors on a file, an inactive table beside."""
    path = backing(64, pattern(64))
    dev = fs.mkdir("vol", f"0 64 linear {quote(path)} 0")
    dev.load("0 8 error", to="inactive")
    yield dev
    assert dev.pread(64 * SECTOR, 0) == pattern(64)
    dev.load("0 8 zero")


def f(text, backing):
    """$D: a file of 64 sectors."""
    return text.replace("$D", quote(backing(64)))


@pytest.mark.parametrize("text, line, says", [
    ("0 8 nosuch", 1, "nosuch"),
    ("0 8 zero\n8 8 nosuch a b", 2, "nosuch"),
    ("0 8 linear", 1, "linear"),
    ("0 8 linear $D", 1, "linear"),
    ("0 8 linear $D 0 0", 1, "linear"),
    ("0 8 zero 1", 1, "zero"),
    ("0 16 striped 2 8 $D 0 $D", 1, "striped"),
    ("0 16 striped 2 8 $D 0 $D 0 1", 1, "striped"),
    ("0 8", 1, "."), ("0", 1, "."), ("zero", 1, "."),
    ("x 8 zero", 1, "x"), ("0 x zero", 1, "x"), ("0 8x zero", 1, "8x"), ("-0 8 zero", 1, "-0"),
    ("0 -8 zero", 1, "-8"), ("0 ++8 zero", 1, r"\+8"), ("0 0x8 zero", 1, "0x8"), ("0 8.0 zero", 1, "8.0"),
    ("0 8 linear $D x", 1, "linear.*x"), ("0 8 linear $D 1x", 1, "linear.*1x"), ("0 8 linear $D -1", 1, "linear.*-1"),
    ("0 8 linear $D \\ ", 1, "linear"),
    (f"0 {OVER} zero", 1, str(OVER)), (f"0 {OVER + 8} zero", 1, str(OVER + 8)), (f"{OVER} 8 zero", 1, str(OVER)),
    (f"0 {OVER - 1} zero", 1, str(OVER - 1)),
    (f"0 {1 << 55} zero", 1, str(1 << 55)),                 # more bytes than an off_t holds
    (f"0 {(1 << 54) - 8} zero\n{(1 << 54) - 8} {1 << 54} zero", 2, "."),
    (f"0 8 zero\n8 {OVER - 8} zero", 2, "."),
    (f"0 8 linear $D {OVER}", 1, f"linear.*{OVER}"), (f"0 8 linear $D {OVER - 1}", 1, f"linear.*{OVER - 1}"),
    ("0 8 linear $D " + "9" * 300, 1, "linear"),
    ("0 8 zero\n16 8 zero", 2, "."), ("0 8 zero\n4 8 zero", 2, "."), ("8 8 zero", 1, "."),
    ("0 0 zero", 1, "."), ("0 8 zero\n8 0 zero", 2, "."), ("0 0 linear $D 0", 1, "."),
    ("0 65 linear $D 0", 1, "linear|too small"), ("0 64 linear $D 1", 1, "linear|too small"),
    ("0 130 striped 2 65 $D 0 $D 0", 1, "striped|too small"),
    ("0 9 striped 2 8 $D 0 $D 0", 1, "striped.*9"),
    ("0 961 striped 3 96 $D 0 $D 0 $D 0", 1, "striped.*961"),
    ("0 16 striped 0 8 $D 0 $D 0", 1, "striped.*0"), ("0 16 striped 2 0 $D 0 $D 0", 1, "striped.*0"),
    ("0 16 striped x 8 $D 0 $D 0", 1, "striped.*x"), ("0 16 striped 2 y $D 0 $D 0", 1, "striped.*y"),
    ("0 16 striped 4294967298 8 $D 0 $D 0", 1, "striped.*4294967298"),
    ("0 16 striped 2 4294967304 $D 0 $D 0", 1, "striped.*4294967304"),
    ("0 16 striped 4294967295 8 $D 0 $D 0", 1, "striped"), ("0 16 striped 1000000 8 $D 0 $D 0", 1, "striped"),
    ("0 16 striped 2 8 $D z $D 0", 1, "striped.*z"), (f"0 16 striped 2 8 $D 0 $D {OVER}", 1, f"striped.*{OVER}"),
])
def test_lines(vol, backing, text, line, says):
    codes = {E.EINVAL, E.EOVERFLOW}     # EOVERFLOW: more than an off_t holds
    for to in ("table", "inactive"):
        vol.refuse(f(text, backing) + "\n", codes, says, line, to)
    vol.refuse(f(text, backing), codes, says, line)       # without the newline: refused at close


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_very_long_line(vol, backing, length):
    start = "0 8 zero "
    vol.refuse(start + "x" * (length - len(start)) + "\n", {E.EINVAL, E.E2BIG, E.EFBIG}, line=1)
    vol.refuse("x" * length, {E.EINVAL, E.E2BIG, E.EFBIG}, line=1)
    vol.refuse("0 8 linear " + "/a" * (length // 2) + " 0\n", {E.EINVAL, E.E2BIG, E.EFBIG, E.ENAMETOOLONG}, line=1)


def test_a_long_comment_is_a_comment_or_refused(vol):
    with contextlib.suppress(OSError):
        vol.write("inactive", "#" + "x" * 200000 + "\n0 8 error\n")
    assert vol.inactive() == "0 8 error\n"


def test_a_line_of_a_million_words(vol):
    vol.refuse("0 8 striped" + " 1" * 500000 + "\n", {E.EINVAL, E.E2BIG, E.EFBIG}, line=1)
    vol.refuse("0 8 striped 200000 8" + " /dev/null 1" * 50000 + "\n", {E.EINVAL, E.E2BIG, E.EFBIG}, line=1)


def test_a_table_of_100_mib(vol):
    """Refused at a limit that the error states; the daemon's memory is its own again."""
    before = vol.mount.rss_kib()
    line = b"%012d 000000000008 zero\n"
    size = 0

    def parts():
        at = 0
        while True:
            yield b"".join(line % (at + i * 8) for i in range(30000))
            at += 30000 * 8

    state = vol.state()
    fd = os.open(vol.file("table"), os.O_WRONLY | os.O_TRUNC)
    code = None
    try:
        for part in parts():
            if size > 104 << 20:
                break
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view):]
            size += len(part)
    except OSError as e:
        code = e.errno
    with contextlib.suppress(OSError):
        os.close(fd)
    assert code in (E.EFBIG, E.E2BIG, E.EINVAL), f"errno {code} after {size} bytes"
    text = vol.error()
    assert any(c.isdigit() for c in text.split(":", 1)[1]), f"{text!r} does not state the limit"
    assert vol.state() == state
    if not mounted.sanitized():
        assert vol.mount.rss_kib() - before < 64 << 10


@pytest.mark.parametrize("seed", range(6))
def test_binary_garbage(vol, seed):
    rnd = random.Random(seed)
    for length in (1, 7, 100, 5000, 200000):
        data = rnd.randbytes(length)
        if seed >= 3:       # looks like a table at first
            data = b"0 8 zero\n8 8 " + data
        vol.refuse(data, {E.EINVAL, E.E2BIG, E.EFBIG, E.ENOENT, E.ENAMETOOLONG})


@pytest.mark.parametrize("data", [b"\0", b"\0\n", b"0 8 zero\0\n", b"0 8\0 zero\n", b"0 8 zero\n\0\n", b"0 8 ze\0ro\n",
                                  b"0 8 linear /dev\0/zero 0\n", b"0 8 zero\n8 8 zero\0"])
def test_nul_bytes(vol, data):
    vol.refuse(data)


def test_odd_bytes_come_back_harmless(vol):
    """Whatever a writer puts into a line, `error` stays lines of text."""
    text = vol.refuse(b"0 8 no\x1b[31msuch\x07\xff\xfe\n")
    assert all(c.isprintable() or c == "\n" or 0xdc80 <= ord(c) <= 0xdcff for c in text)
    assert len(text.splitlines()) == 1


def test_files_that_will_not_do(vol, backing, work):
    os.mkfifo(os.path.join(work, "fifo"))
    os.symlink("circle", os.path.join(work, "circle"))
    empty = backing(0)
    for path, codes in ((f"{work}/missing", E.ENOENT), (f"{work}/missing/more", E.ENOENT), (work, {E.EISDIR, E.ENOTBLK, E.EINVAL}),
                        ("/dev/null", {E.ENOTBLK, E.EINVAL, E.ENXIO}), (f"{work}/fifo", {E.ENOTBLK, E.EINVAL, E.ENXIO}),
                        (f"{work}/circle", E.ELOOP), (empty, E.EINVAL), (f"{empty}/x", E.ENOTDIR),
                        ("/" + "n" * 300, E.ENAMETOOLONG), ("/x" * 3000, E.ENAMETOOLONG),
                        ("nosuchdevice", E.ENOENT), ("999:1", {E.ENOENT, E.ENXIO, E.ENODEV}), ("0:99999", {E.ENOENT, E.ENXIO, E.ENODEV}),
                        ("1:3", {E.ENOENT, E.ENXIO, E.ENODEV, E.ENOTBLK, E.EINVAL, E.EACCES}),
                        ("99999999999:1", {E.ENOENT, E.EINVAL, E.ENXIO, E.ENODEV}), ("", E.EINVAL),
                        ("/proc/self/mem", {E.ENOTBLK, E.EINVAL, E.ENXIO, E.EACCES}), ("/dev/tty", {E.ENOTBLK, E.EINVAL, E.ENXIO, E.EACCES, E.ENOENT})):
        vol.refuse(f"0 8 linear {quote(path)} 0\n", codes, line=1)
        vol.refuse(f"0 8 zero\n8 8 striped 1 8 {quote(path)} 0\n", codes, line=2)


def test_an_unreadable_file(vol, backing):
    path = backing(64)
    os.chmod(path, 0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything; test_tree.py has this for another user")
    vol.refuse(f"0 8 linear {quote(path)} 0\n", E.EACCES, "ermission", 1)
    os.chmod(path, 0o400)       # readable is not enough for a device that is written to
    vol.refuse(f"0 8 linear {quote(path)} 0\n", E.EACCES, "ermission", 1)


def test_itself(vol):
    for name in ("vol", vol.path, vol.image, vol.read("dev").strip()):
        vol.refuse(f"0 8 linear {quote(name)} 0\n", E.ELOOP, "this very device", 1)


def test_control_files_as_a_device(vol, fs):
    for name in (vol.file("table"), fs.path("control"), fs.mountpoint, fs.path("version")):
        vol.refuse(f"0 8 linear {quote(name)} 0\n",
                   {E.EINVAL, E.ELOOP, E.EISDIR, E.ENOENT, E.ENOTBLK, E.ENXIO}, line=1)


def test_a_writer_killed_half_way(vol):
    for name in ("table", "inactive"):
        state = vol.state()
        # >>, for > is a truncation, and that of `inactive` clears it
        script = 'exec >>"$1"; printf "0 8 zero\\n8 8 ze"; kill -9 $$'
        done = subprocess.run(["/bin/bash", "-c", script, "sh", vol.file(name)], stderr=subprocess.DEVNULL, timeout=300,
                              check=False)
        assert done.returncode == -signal.SIGKILL
        assert vol.state() == state


def test_two_writers_one_bad(vol, fs):
    other = fs.mkdir("other")
    good, bad = (os.open(other.file("table"), os.O_WRONLY) for _ in range(2))
    os.write(good, b"0 8 zero\n")
    with pytest.raises(OSError):
        os.write(bad, b"0 8 nosuch\n")
    os.write(good, b"8 8 zero\n")
    with contextlib.suppress(OSError):
        os.close(bad)
    os.close(good)
    assert other.table() == "0 8 zero\n8 8 zero\n"


def test_many_errors_do_not_pile_up(vol):
    for i in range(300):
        vol.refuse(f"0 8 nosuch{i}\n", E.EINVAL, f"nosuch{i}\\b", 1)
    assert len(vol.mount.read("log")) < 4 << 20


def test_reload_while_io_runs(vol, backing):
    """A refused reload is not seen by I/O; an accepted one is seen whole."""
    stop, failures, done = threading.Event(), [], []

    def reader():
        try:
            with vol.open() as fd:
                while not stop.is_set():
                    at = random.randrange(64) * SECTOR
                    assert os.pread(fd, SECTOR, at) == pattern(64)[at:at + SECTOR]
                    done.append(1)
        except Exception as e:          # noqa: BLE001: whatever it is, the test must see it
            failures.append(e)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    table = vol.table()
    for t in threads:
        t.start()
    for _ in range(30):
        vol.refuse("0 64 nosuch\n")
        vol.refuse("0 64 linear /nonexistent 0\n", E.ENOENT)
        vol.write("table", table)
        vol.load("0 8 error", to="inactive")
    stop.set()
    for t in threads:
        t.join()
    assert not failures and done


def small_disk(work, sh, size="2M"):
    path = os.path.join(work, "small")
    os.mkdir(path)
    done = sh(f"mount -t tmpfs -o size={size} none small", check=False)
    if done.returncode:
        pytest.skip(f"mount: {done.stderr.strip()}")
    return path


@pytest.mark.root
def test_disk_full(fs, backing, work, sh):
    """ENOSPC to that I/O only."""
    path = small_disk(work, sh)
    try:
        file = os.path.join(path, "file")
        with open(file, "wb") as f2:
            f2.truncate(8 << 20)
        other = backing(1024)
        dev = fs.mkdir("vol", f"0 16384 linear {quote(file)} 0", f"16384 1024 linear {quote(other)} 0")
        written = 0
        with dev.open() as fd:
            with pytest.raises(OSError) as e:
                for i in range(128):
                    os.pwrite(fd, bytes([i + 1]) * 65536, i * 65536)
                    os.fsync(fd)
                    written += 1
            assert e.value.errno == E.ENOSPC and 8 <= written < 40
            os.pwrite(fd, b"fine", 16384 * SECTOR)
            for i in range(written):
                assert os.pread(fd, 65536, i * 65536) == bytes([i + 1]) * 65536
            mounted.fallocate(fd, 3, 0, 8 * 65536)      # a discard makes room again
            os.pwrite(fd, b"z" * 65536, 100 * 65536)
            os.fsync(fd)
        assert dev.status().startswith("0 16384 linear")
        dev.remove()
    finally:
        sh("umount -l small")


def test_backing_file_truncated_while_in_use(fs, backing):
    """EIO to the I/O that misses its file, and to no other."""
    cut, whole = backing(128, pattern(128)), backing(128, pattern(128, 2))
    dev = fs.mkdir("vol", f"0 128 linear {quote(cut)} 0", f"128 128 linear {quote(whole)} 0")
    with dev.open() as fd:
        os.truncate(cut, 64 * SECTOR)
        assert os.pread(fd, 32 * SECTOR, 0) == pattern(128)[:32 * SECTOR]
        with pytest.raises(OSError) as e:
            os.pread(fd, 8 * SECTOR, 96 * SECTOR)
        assert e.value.errno == E.EIO
        assert os.pread(fd, 128 * SECTOR, 128 * SECTOR) == pattern(128, 2)
        direct = os.open(dev.image, os.O_RDWR | os.O_DIRECT)
        try:
            for start in (120, 64, 60):     # beyond the end, and across it (where a buffered write may do a part)
                for writer in (fd, direct) if start >= 64 else (direct,):
                    with pytest.raises(OSError) as e:
                        os.pwrite(writer, b"x" * 8 * SECTOR, start * SECTOR)
                    assert e.value.errno == E.EIO
                for mode in (mounted.FALLOC_ZERO_RANGE, mounted.FALLOC_PUNCH_HOLE | mounted.FALLOC_KEEP_SIZE):
                    with pytest.raises(OSError) as e:
                        mounted.fallocate(fd, mode, start * SECTOR, 8 * SECTOR)
                    assert e.value.errno == E.EIO
            assert os.pread(direct, 4 * SECTOR, 60 * SECTOR) == pattern(128)[60 * SECTOR:64 * SECTOR]
        finally:
            os.close(direct)
        assert os.path.getsize(cut) == 64 * SECTOR      # no write made it longer
        os.pwrite(fd, b"y" * SECTOR, 200 * SECTOR)
        os.pwrite(fd, b"y" * SECTOR, 10 * SECTOR)
        os.truncate(cut, 128 * SECTOR)
        assert os.pread(fd, 8 * SECTOR, 96 * SECTOR) == bytes(8 * SECTOR)
        assert os.pwrite(fd, b"x" * 8 * SECTOR, 120 * SECTOR) == 8 * SECTOR


def test_unknown_messages(vol):
    for text in ("frobnicate", "0 frobnicate", "63 frobnicate 1 2", "64 frobnicate", "99999 x", "-1 x", "@cancel x",
                 f"{OVER} x", "", " ", "\0", "\0x", "x" * 100000):
        if "message" not in os.listdir(vol.path):
            pytest.skip("no messages here")
        if text:
            vol.refuse(text + "\n", {E.EINVAL, E.E2BIG, E.ENOTTY, E.EOPNOTSUPP, E.ENOTSUP, E.EFBIG}, to="message", flags=0)


def test_writes_to_files_that_are_only_read(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    for path in (dev.file("status"), dev.file("info"), dev.file("deps"), dev.file("dev"), dev.file("error"),
                 fs.path("targets"), fs.path("version"), fs.path("log")):
        with pytest.raises(OSError):
            with open(path, "wb", buffering=0) as file:
                file.write(b"x")
    assert dev.table() == "0 8 zero\n"
