# SPDX-License-Identifier: GPL-2.0-or-later
"""log-writes through the mount, the format of its log, and dmfs-replay-log."""

import errno
import os
import pty
import struct
import subprocess

import pytest

import mounted
from mounted import SECTOR, pattern

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
MAGIC = 0x6a736677736872
SIZE = 4096     # sectors of the logged device


def read_log(path, block=SECTOR):
    """The log's entries: (flags, sector, data), a discard's data being its length, a mark's its text."""
    with open(path, "rb") as f:
        log = f.read()
    magic, version, count, size = struct.unpack_from("<QQQI", log)
    assert (magic, version, size) == (MAGIC, 1, block)
    entries, at = [], block
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", log, at)
        data = log[at + block:at + block + sectors * block]
        if flags & MARK:
            data = log[at + 32:at + 32 + length].decode()
            assert not log[at + 32 + length:at + block].strip(b"\0")
        elif flags & DISCARD:
            data = sectors
        at += block + (0 if flags & DISCARD else sectors * block)
        entries.append((flags, sector, data))
    return entries


@pytest.fixture
def logged(fs, backing):
    """A logged device: (device, its file, the log's file)."""
    data, log = backing(SIZE, name="data"), backing(8 * SIZE, name="log")
    return fs.mkdir("vol", f"0 {SIZE} log-writes {data} {log}"), data, log


@pytest.fixture
def replay(tool):
    program = tool("dmfs-replay-log")

    def run(*args, code=0):
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, timeout=300,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == code, f"{args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run


def entries_of(dev, log):
    dev.remove()
    entries = read_log(log)
    assert entries[-1] == (MARK, 0, "dm-log-writes-end")
    return entries[:-1]


def test_order(logged, replay, backing):
    """Writes are logged at the next flush, FUA writes at once, marks where they were sent, discards as writes."""
    dev, data, log = logged
    a, b, c, d = (pattern(8, seed=i) for i in range(4))
    with dev.open() as fd, dev.open(os.O_RDWR | os.O_DSYNC) as sync_fd:
        os.pwrite(fd, a, 0)
        os.pwrite(fd, b, 8192)
        dev.message("mark first")
        os.fsync(fd)
        dev.message("MARK second")
        os.pwrite(fd, c, 0)
        mounted.fallocate(fd, mounted.FALLOC_PUNCH_HOLE | mounted.FALLOC_KEEP_SIZE, 0, 8192)
        os.pwrite(sync_fd, d, 65536)    # some kernels send a flush after it
        os.fsync(fd)
    entries = entries_of(dev, log)
    if entries[-2][0] == FLUSH:
        entries.pop()
    assert entries == [
        (MARK, 0, "first"), (0, 0, a), (0, 16, b), (FLUSH, 0, b""), (MARK, 0, "second"),
        (FUA, 128, d), (0, 0, c), (DISCARD, 0, 16), (FLUSH, 0, b"")]
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy)
    assert same(copy, data)


def test_unflushed_writes_are_logged_at_the_end(logged):
    dev, data, log = logged
    a = pattern(3)
    dev.pwrite(a, 512)
    assert dev.status().split()[3:] == ["0", "0"]
    assert entries_of(dev, log) == [(0, 1, a)]


def test_zeroes_are_logged_as_writes(logged):
    dev, data, log = logged
    dev.zero(4096, 8192)
    assert entries_of(dev, log) == [(0, 8, bytes(8192))]


def test_status_and_table(logged):
    dev, data, log = logged
    assert dev.table() == f"0 {SIZE} log-writes {data} {log}\n"
    assert dev.status().rstrip() == f"0 {SIZE} log-writes 0 0"
    dev.message("mark x")
    assert dev.status().rstrip() == f"0 {SIZE} log-writes 1 1"
    dev.pwrite(pattern(8), 0, sync=True)
    dev.message("mark y")
    assert dev.status().rstrip() == f"0 {SIZE} log-writes 4 12"


def test_long_mark_is_cut(logged):
    dev, data, log = logged
    dev.message("mark " + "x" * 600)
    assert entries_of(dev, log) == [(MARK, 0, "x" * (SECTOR - 32 - 1))]


@pytest.mark.parametrize("text", ["mark", "mark two words", "unmark x", "nothing"])
def test_bad_messages(logged, text):
    dev, data, log = logged
    with pytest.raises(OSError) as e:
        dev.message(text)
    assert e.value.errno == errno.EINVAL
    assert "log-writes: " in dev.error()
    assert entries_of(dev, log) == []


def test_bad_tables(fs, backing):
    data, log = backing(SIZE), backing(SIZE)
    dev = fs.mkdir("vol")
    dev.refuse(f"0 {SIZE} log-writes\n", match="Invalid argument count")
    dev.refuse(f"0 {SIZE} log-writes {data}\n", match="Invalid argument count")
    dev.refuse(f"0 {SIZE} log-writes {data}.x {log}\n", code=errno.ENOENT)
    dev.refuse(f"0 {SIZE} log-writes {data} {log}.x\n", code=errno.ENOENT)
    dev.refuse(f"0 {SIZE + 1} log-writes {data} {log}\n", match="too small")


def test_full_log(fs, backing):
    """A full log is left as it is; I/O goes on."""
    data, log = backing(SIZE), backing(16, name="log")
    dev = fs.mkdir("vol", f"0 {SIZE} log-writes {data} {log}")
    old = pattern(8)
    dev.pwrite(old, 0, sync=True)
    dev.message("mark fits")
    dev.pwrite(pattern(8, seed=1), 8192, sync=True)
    dev.message("mark late")
    assert dev.status().rstrip().endswith("logging_disabled")
    dev.pwrite(pattern(8, seed=2), 8192, sync=True)
    assert dev.pread(4096, 8192) == pattern(8, seed=2)
    assert "Ran out of space" in fs.read("log")
    dev.remove()
    assert read_log(log) == [(0, 0, old), (FLUSH, 0, b""), (MARK, 0, "fits")]
    assert os.path.getsize(log) == 16 * SECTOR


def test_failing_log(fs, backing):
    """So it is when the log cannot be written."""
    data, log = backing(SIZE), backing(16, name="log")
    bad = fs.mkdir("bad", f"0 4 linear {log} 0", "4 4 error", f"8 2000 linear {backing(3000)} 0")
    dev = fs.mkdir("vol", f"0 {SIZE} log-writes {data} bad")
    dev.pwrite(pattern(8), 0, sync=True)
    dev.message("mark x")
    assert dev.status().rstrip().endswith("logging_disabled")
    assert dev.pread(4096, 0) == pattern(8)
    dev.remove()
    bad.remove()


@pytest.mark.root
def test_large_blocks(fs, backing, loop, replay):
    """Of a device with blocks of 4 KiB, the log has such blocks too."""
    data, log = backing(SIZE, name="data"), backing(8 * SIZE, name="log")
    dev = fs.mkdir("vol", f"0 {SIZE} log-writes {loop(data, '-b', '4096')} {log}")
    dev.pwrite(pattern(16), 8192, sync=True)
    dev.discard(8192, 4096)
    dev.message("mark x")
    dev.remove()
    assert read_log(log, 4096) == [
        (0, 2, pattern(16)), (FLUSH, 0, b""), (MARK, 0, "x"), (DISCARD, 2, 1), (MARK, 0, "dm-log-writes-end")]
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy)
    assert mounted.pread_all(os.open(copy, os.O_RDONLY), 16384, 8192) == bytes(4096) + pattern(16)[4096:] + bytes(8192)


# --- dmfs-replay-log ----------------------------------------------------------------

def same(a, b):
    with open(a, "rb") as x, open(b, "rb") as y:
        return x.read() == y.read()


def write_log(path, entries):
    """A log as the document's format has it, made without dmfs; takes what read_log() returns."""
    log = bytearray(struct.pack("<QQQI", MAGIC, 1, len(entries), SECTOR).ljust(SECTOR, b"\0"))
    for flags, sector, data in entries:
        mark = data.encode() if flags & MARK else b""
        sectors = data if flags & DISCARD else 0 if flags & MARK else len(data) // SECTOR
        log += (struct.pack("<QQQQ", sector, sectors, flags, len(mark)) + mark).ljust(SECTOR, b"\0")
        if not flags & (MARK | DISCARD):
            log += data
    with open(path, "wb") as f:
        f.write(log)


def play(entries, image=bytes(SIZE * SECTOR)):
    image = bytearray(image)
    for flags, sector, data in entries:
        if not flags & MARK:
            data = bytes(data * SECTOR) if flags & DISCARD else data
            image[sector * SECTOR:sector * SECTOR + len(data)] = data
    return bytes(image)


ENTRIES = [
    (0, 0, pattern(100)),
    (0, 8, pattern(8, seed=1)),
    (FLUSH, 0, b""),
    (FUA, 160, pattern(8, seed=2)),
    (MARK, 0, "middle"),
    (0, 40, pattern(50, seed=3)),
    (DISCARD, 8, 16),
    (FLUSH, 0, b""),
    (MARK, 0, "dm-log-writes-end"),
]


@pytest.fixture
def sample(backing):
    """A log: (its file, the file it replays to, the contents at the mark)."""
    log = backing(1, name="log")
    write_log(log, ENTRIES)
    return log, backing(SIZE, play(ENTRIES), name="data"), play(ENTRIES[:4])


def test_replay(sample, replay, backing):
    log, data, middle = sample
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy, "--end-mark", "middle")
    with open(copy, "rb") as f:
        assert f.read() == middle
    replay("--log", log, "--replay", copy, "--start-mark", "middle")
    assert same(copy, data)
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy)
    assert same(copy, data)
    copy = backing(SIZE, name="copy")
    for entry in range(9):
        replay("--log", log, "--replay", copy, "--start-entry", entry, "--limit", 1)
    assert same(copy, data)


def test_replay_without_discards(sample, replay, backing):
    log, data, middle = sample
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy, "--no-discard")
    with open(copy, "rb") as f:
        assert f.read()[4096:8192] == pattern(8, seed=1)


def test_replay_part_of_the_device(sample, replay, backing):
    log, data, middle = sample
    copy = backing(SIZE, name="copy")
    replay("--log", log, "--replay", copy, "--start-sector", 160, "--end-sector", 170)
    with open(copy, "rb") as f:
        assert f.read().strip(b"\0") == pattern(8, seed=2).strip(b"\0")


def test_find(sample, replay):
    log = sample[0]

    def find(*args, code=0):
        return replay("--log", log, "--find", *args, code=code).stdout

    assert find("--end-mark", "middle").split("@")[0] == "4"
    assert find("--end-mark", "dm-log-writes-end") .split("@")[0] == "8"
    assert find("--next-flush").split("@")[0] == "2"
    assert find("--next-flush", "--start-entry", 3).split("@")[0] == "7"
    assert find("--next-fua").split("@")[0] == "3"
    assert find("--next-flush", "--start-mark", "middle").split("@")[0] == "7"
    assert find("--next-fua", "--start-mark", "middle", code=1) == ""
    assert find("--end-mark", "nosuch", code=1) == ""
    assert find("--limit", 3).split("@")[0] == "2"
    assert replay("--log", log, "--num-entries").stdout == "9\n"
    assert replay("--log", log).stdout == "Log version=1, sectorsize=512, entries=9\n"


def test_replay_up_to(sample, replay, backing):
    log = sample[0]
    for option, last in (("--next-flush", 2), ("--next-fua", 3)):
        out = replay("--log", log, "--replay", backing(SIZE), option, "-v").stdout
        assert out.splitlines()[-1].startswith(f"replaying {last}@")
        assert len(out.splitlines()) == last + 1
    out = replay("--log", log, "--replay", backing(SIZE), "-vv", "--start-entry", 2).stdout.splitlines()
    assert out[0].startswith("seeking 0@2: sector 0, size 51200, flags 0x0(NONE)")
    assert out[4].endswith("flags 0x8(MARK) 'middle'")
    assert out[6].endswith("sector 8, size 8192, flags 0x4(DISCARD)")


@pytest.mark.parametrize("when, times", [("1", 9), ("4", 2), ("flush", 2), ("fua", 1)])
def test_fsck(sample, replay, backing, work, when, times):
    log = sample[0]
    replay("--log", log, "--replay", backing(SIZE), "--fsck", f"echo x >>{work}/checks", "--check", when)
    with open(os.path.join(work, "checks"), encoding="utf-8") as f:
        assert len(f.readlines()) == times


def test_fsck_sees_what_was_replayed_and_stops(sample, replay, backing, work):
    log, data, middle = sample
    copy = backing(SIZE, name="copy")
    done = replay("--log", log, "--replay", copy, "--fsck", f"cp {copy} {work}/seen; exit 3", "--check", "fua", code=1)
    assert "exit status 3" in done.stderr and "entry 3" in done.stderr
    with open(os.path.join(work, "seen"), "rb") as f:
        assert f.read() == middle


def patch(path, offset, fmt, *values):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(struct.pack(fmt, *values))


@pytest.mark.parametrize("offset, fmt, value, says", [
    (0, "<Q", 1, "magic"),
    (8, "<Q", 2, "version"),
    (24, "<I", 513, "block size"),
    (24, "<I", 0, "block size"),
    (24, "<I", 1 << 31, "block size"),
    (16, "<Q", 1 << 40, "truncated|empty"),
    (512, "<Q", 1 << 60, "impossible"),
    (520, "<Q", 1 << 50, "truncated"),
    (520, "<Q", (1 << 64) - 1, "impossible"),
    (528, "<Q", 0x100, "unknown flags"),
    (528, "<Q", MARK, "unknown flags|empty|impossible|truncated|magic|mark"),
])
def test_corrupt_logs(sample, replay, backing, offset, fmt, value, says):
    import re
    log = sample[0]
    patch(log, offset, fmt, value)
    if value == MARK:
        patch(log, 536, "<Q", 481)
    done = replay("--log", log, "--replay", backing(SIZE), code=1)
    assert re.search(says, done.stderr), done.stderr


@pytest.mark.parametrize("length", [0, 27, 512, 513, 1024, 30000, 52223, 52224 + 4095])
def test_truncated_logs(sample, replay, backing, length):
    log = sample[0]
    os.truncate(log, length)
    done = replay("--log", log, "--replay", backing(SIZE), code=1)
    assert "truncated" in done.stderr or "is no log" in done.stderr


def test_bad_options(sample, replay, backing):
    log = sample[0]
    copy = backing(SIZE)
    for args in (["--start-entry", "9"], ["--start-entry", "x"], ["--start-mark", "nosuch"], ["--end-mark", "nosuch"],
                 ["--limit", "-1"], ["--fsck", "true"], ["--check", "flush"], ["--check", "0", "--fsck", "true"],
                 ["--start-entry", "1", "--start-mark", "middle"], ["extra"]):
        done = replay("--log", log, "--replay", copy, *args, code=1)
        assert done.stderr.startswith("dmfs-replay-log: "), done.stderr
    assert "usage" in replay("--nosuch", code=2).stderr
    assert "usage" in replay(code=2).stderr
    replay("--log", log, "--replay", copy + ".x", code=1)
    replay("--log", log + ".x", code=1)
    replay("--log", log, "--find", code=1)


def test_progress(sample, backing, tool):
    """A bar on a terminal, nothing elsewhere."""
    log = sample[0]
    master, slave = pty.openpty()
    try:
        subprocess.run([tool("dmfs-replay-log"), "--log", log, "--replay", backing(SIZE)], stderr=slave, check=True,
                       timeout=300)
        os.close(slave)
        text = os.read(master, 65536).decode()
    finally:
        os.close(master)
    assert "100% 9 of 9 entries" in text


# --- the document's scripts ------------------------------------------------------------

@pytest.fixture
def example(fs, sh, tool):
    def run(name, *args, **env):
        path = os.path.dirname(tool("dmfs-replay-log")) + ":" + os.environ["PATH"]
        return sh(f'exec {TOP}/contrib/examples/{name} "$@"', *args, DMFS_MOUNT=fs.mountpoint, PATH=path, **env).stdout

    return run


def test_example_fsync(example, backing, tool):
    tool("mke2fs")
    if os.geteuid():
        tool("fuse2fs")
    assert "the file is there" in example("log-writes-fsync", backing(32768), backing(131072))


@pytest.mark.root
def test_example_fsck(example, backing, tool):
    """ext4 is consistent after each of its writes."""
    tool("mke2fs")
    out = example("log-writes-fsck", backing(32768), backing(131072), CHECK="1")
    moments = int(out.split("all of ")[1].split()[0])
    assert moments > 50
