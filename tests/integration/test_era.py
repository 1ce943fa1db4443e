# SPDX-License-Identifier: GPL-2.0-or-later
"""era through the mount; era_check judges the metadata after every test, era_dump and era_invalidate say what it holds."""

import errno
import mmap
import os
import pty
import re
import shutil
import struct
import subprocess
import threading
import time

import pytest

from mounted import SECTOR, pattern, quote

BLOCK = 128                 # sectors
BLOCKS = 64
SECTORS = BLOCK * BLOCKS
TOOLS = os.environ["PATH"] + ":/usr/sbin:/sbin"
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def of_snapshot(tool, dev):
    """era_invalidate's option for the metadata snapshot: since version 1 it is told where."""
    said = subprocess.run([tool("era_invalidate"), "--help"], capture_output=True, text=True, timeout=60)
    where = f"={dev.status().split()[-1]}" if "--metadata-snapshot <" in said.stdout + said.stderr else ""
    return f"--metadata-snapshot{where}"


def written_since(tool, meta, number, *options):
    out = run(tool("era_invalidate"), *options, "--written-since", str(number), meta)
    found = {int(b) for b in re.findall(r'<block block="(\d+)"', out)}
    for begin, end in re.findall(r'<range begin="(\d+)" end\s*=\s*"(\d+)"', out):
        found |= set(range(int(begin), int(end)))
    return found


@pytest.fixture
def era(fs, backing, tool):
    """era.dev: a device of BLOCKS blocks, written to with era.write(BLOCK); era.since(ERA): blocks written since then."""

    class Era:
        def __init__(self):
            self.meta, self.origin = backing(2048), backing(SECTORS)
            self.line = f"0 {SECTORS} era {quote(self.meta)} {quote(self.origin)} {BLOCK}"
            self.dev = fs.mkdir("e", self.line)

        def words(self):
            return self.dev.status().split()

        def era(self):
            return int(self.words()[5])

        def write(self, block, count=1):
            self.dev.pwrite(pattern(count * BLOCK, block), block * BLOCK * SECTOR, sync=True)

        def next(self):
            self.dev.message("checkpoint")
            return self.era()

        def since(self, number, *options):
            return written_since(tool, self.meta, number, *options)

        def live(self, number):
            """The same of the device in use, by a metadata snapshot."""
            self.dev.message("take_metadata_snap")
            try:
                return self.since(number, of_snapshot(tool, self.dev))
            finally:
                self.dev.message("drop_metadata_snap")

    e = Era()
    yield e
    if "e" in fs.devices():
        e.dev.remove()
        run(tool("era_check"), e.meta)


def test_status_table_and_eras(era):
    assert era.dev.table() == era.line + "\n"
    assert era.dev.status() == f"0 {SECTORS} era 8 9/256 1 -\n"
    assert era.next() == 2
    era.dev.message("TAKE_METADATA_SNAP")
    words = era.words()
    assert words[5] == "3" and int(words[6]) > 0
    era.dev.message("drop_metadata_snap")
    assert era.words()[5:] == ["3", "-"]
    era.dev.load(era.dev.table())
    assert era.era() == 4, "each resume begins one"


def test_what_was_written_is_recorded(era):
    era.write(3)
    second = era.next()
    era.write(5, 2)
    third = era.next()
    era.write(3)
    era.dev.discard(20 * BLOCK * SECTOR, 3 * BLOCK * SECTOR)
    era.dev.zero(30 * BLOCK * SECTOR + 512, 1024)
    era.dev.pread(SECTORS * SECTOR, 0)
    assert era.live(second) == {3, 5, 6, 20, 21, 22, 30}
    assert era.live(third) == {3, 20, 21, 22, 30}
    assert era.live(1) == {3, 5, 6, 20, 21, 22, 30}
    era.dev.remove()
    assert era.since(third) == {3, 20, 21, 22, 30}


def test_data_is_the_origins(era):
    era.write(0, BLOCKS)
    with open(era.origin, "rb") as f:
        assert f.read() == era.dev.pread(SECTORS * SECTOR, 0)
    with era.dev.open() as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0


def test_growing_and_shrinking(fs, era, tool):
    era.write(1)
    os.truncate(era.origin, 2 * SECTORS * SECTOR)
    era.dev.load(era.line.replace(f"0 {SECTORS}", f"0 {2 * SECTORS}", 1))
    before = era.next()
    era.write(BLOCKS + 10)
    assert era.live(before) == {BLOCKS + 10}
    era.dev.load(era.line)
    now = era.era()
    era.write(3)
    assert era.live(now) == {3}


def test_many_threads(era):
    """Each writes blocks of its own while eras pass: all that was written since an era began is in it."""
    begin, errors = era.era(), []

    def work(i):
        try:
            for n in range(20):
                era.write((i * 8 + n % 8) % BLOCKS)
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for _ in range(5):
        era.next()
    for t in threads:
        t.join()
    assert not errors
    assert era.live(begin) == set(range(64))


def test_messages(era):
    for text in ("nonsense", "checkpoint now", "drop_metadata_snap", "take_metadata_snap 1"):
        with pytest.raises(OSError) as e:
            era.dev.message(text)
        assert e.value.errno == errno.EINVAL, text
    era.dev.message("take_metadata_snap")
    with pytest.raises(OSError) as e:
        era.dev.message("take_metadata_snap")
    assert e.value.errno == errno.EINVAL and "metadata snapshot" in era.dev.error()
    era.dev.message("drop_metadata_snap")
    era.dev.suspend()
    assert era.words()[2] == "era", "the status of a suspended device answers"
    with pytest.raises(OSError) as e:
        era.dev.message("checkpoint")
    assert e.value.errno == errno.EBUSY
    era.dev.resume()


def test_crash(dmfs, backing, tool, work):
    """A killed daemon: what had been written is recorded, and the next start goes on."""
    meta, origin = backing(2048), backing(SECTORS)
    line = f"0 {SECTORS} era {quote(meta)} {quote(origin)} {BLOCK}"
    one = dmfs()
    dev = one.mkdir("e", line)
    dev.pwrite(pattern(8), 7 * BLOCK * SECTOR)
    one.kill()
    two = dmfs()
    dev = two.mkdir("e", line)
    assert dev.status().split()[5] == "2"
    dev.message("take_metadata_snap")
    assert '<block block="7"/>' in run(tool("era_invalidate"), of_snapshot(tool, dev), "--written-since", "1", meta)
    dev.message("drop_metadata_snap")
    dev.remove()
    run(tool("era_check"), meta)


def test_a_snapshot_outlives_a_crash(dmfs, backing, tool):
    meta, origin = backing(2048), backing(SECTORS)
    line = f"0 {SECTORS} era {quote(meta)} {quote(origin)} {BLOCK}"
    one = dmfs()
    dev = one.mkdir("e", line)
    dev.pwrite(pattern(8), 7 * BLOCK * SECTOR, sync=True)
    dev.message("take_metadata_snap")
    held = dev.status().split()[6]
    dev.pwrite(pattern(8), 9 * BLOCK * SECTOR, sync=True)
    one.kill()
    two = dmfs()
    dev = two.mkdir("e", line)
    assert dev.status().split()[5:] == ["3", held]
    assert '<block block="7"/>' in run(tool("era_invalidate"), of_snapshot(tool, dev), "--written-since", "1", meta)
    with open(meta, "rb") as f:     # its era, and no writeset of it, which would not stay where it was
        f.seek(int(held) * 4096 + 184)
        assert struct.unpack("<IIQ", f.read(16)) == (2, 0, 0)
    dev.message("drop_metadata_snap")
    dev.remove()
    run(tool("era_check"), meta)
    assert '<block block="9"/>' in run(tool("era_invalidate"), "--written-since", "2", meta)


def test_a_second_user(era, fs, backing):
    fs.mkdir("other").refuse(f"0 {SECTORS} era {quote(era.meta)} {quote(backing(SECTORS))} {BLOCK}\n", errno.EBUSY,
                             match="metadata device")
    fs["other"].remove()


def test_full_metadata(fs, backing, tool):
    """No room for a bitset: refused.  No room for more eras beside a snapshot: messages and first writes fail, nothing is lost."""
    blocks = 1 << 17
    origin, small, meta = backing(8 * blocks), backing(12 * 8), backing(40 * 8)
    fs.mkdir("e").refuse(f"0 {8 * blocks} era {quote(small)} {quote(origin)} 8\n", errno.ENOSPC)
    fs["e"].remove()
    line = f"0 {8 * blocks} era {quote(meta)} {quote(origin)} 8"
    with pytest.raises(OSError) as e:
        fs.mkdir("e", line)
    assert e.value.errno == errno.ENOSPC
    fs["e"].remove()
    meta = backing(300 * 8)
    line = f"0 {8 * blocks} era {quote(meta)} {quote(origin)} 8"
    dev = fs.mkdir("e", line)
    dev.pwrite(pattern(8), 0, sync=True)
    dev.message("take_metadata_snap")
    written = {0}
    with pytest.raises(OSError) as e:
        for n in range(100):
            for b in range(0, blocks, 1021):
                dev.pwrite(pattern(8, n), b * 4096, sync=True)
                written.add(b)
            dev.message("checkpoint")
    assert e.value.errno in (errno.ENOSPC, errno.EIO)
    with pytest.raises(OSError):
        dev.pwrite(pattern(8), 5 * 4096, sync=True)
    assert dev.pread(4096, 1021 * 4096) in (pattern(8, n), pattern(8, n - 1))
    dev.remove()
    run(tool("era_check"), meta)
    assert written <= written_since(tool, meta, 1)


def test_metadata_restored_by_the_tools(fs, era, tool, work):
    era.write(9)
    era.next()
    era.dev.remove()
    xml = os.path.join(work, "xml")
    run(tool("era_dump"), "-o", xml, era.meta)
    with open(era.meta, "r+b") as f:
        f.write(b"\xff" * 8192)
    run(tool("era_restore"), "-i", xml, "-o", era.meta)
    era.dev = fs.mkdir("e", era.line)
    assert era.era() == 3
    assert 9 in era.live(1)


def test_failing_metadata(fs, backing):
    """No write passes that cannot be recorded; those recorded before do, and reads."""
    meta, origin = backing(2048), backing(SECTORS)
    fs.mkdir("meta", f"0 2048 linear {quote(meta)} 0")
    dev = fs.mkdir("e", f"0 {SECTORS} era meta {quote(origin)} {BLOCK}")
    dev.pwrite(pattern(8), 0, sync=True)
    fs["meta"].load("0 2048 error")
    dev.pwrite(pattern(8, 2), 0, sync=True)
    with pytest.raises(OSError) as e:
        dev.pwrite(pattern(8), BLOCK * SECTOR, sync=True)
    assert e.value.errno == errno.EIO
    assert dev.pread(4096, 0) == pattern(8, 2)
    assert dev.status().startswith(f"0 {SECTORS} era 8 ")
    with open(origin, "rb") as f:
        f.seek(BLOCK * SECTOR)
        assert f.read(4096) == bytes(4096)


@pytest.mark.parametrize("args,why", [
    ("", "argument count"), ("{m} {o}", "argument count"), ("{m} {o} 128 x", "argument count"),
    ("/nonexistent {o} 128", "metadata device"), ("{m} /nonexistent 128", "data device"), ("{m} {o} x", "'x'"),
    ("{m} {o} 0", "max io"), ("{m} {o} 7", "7"), ("{m} {o} 4294967296", "4294967296"), ("{foreign} {o} 128", "metadata"),
    ("{short} {o} 128", "metadata"), ("{m} {short} 128", "small"), ("{other} {o} 128", "256"),
])
def test_refused(fs, backing, args, why):
    m, o, short = backing(2048), backing(SECTORS), backing(8)
    foreign = backing(2048, os.urandom(8192))
    other = backing(2048)
    fs.mkdir("first", f"0 {SECTORS} era {quote(other)} {quote(o)} 256")
    fs["first"].remove()
    dev = fs.mkdir("e")
    with pytest.raises(OSError):
        dev.load(f"0 {SECTORS} era " + args.format(m=quote(m), o=quote(o), short=quote(short), foreign=quote(foreign),
                                                   other=quote(other)))
    assert why in dev.error()
    assert dev.table() == ""


@pytest.mark.parametrize("mode,block", [("writethrough", 128), ("writeback", 64), ("metadata2 writeback", 256)])
def test_example_snapshot(fs, backing, sh, work, tool, mode, block):
    """The storage is rolled back under a cache: what was written since has gone from it, and nothing else."""
    if not shutil.which("cache_dump", path=TOOLS):
        pytest.skip("no cache_dump (package thin-provisioning-tools)")
    tool("era_invalidate")
    names = "the storage", "fast", "cache meta", "era meta"
    origin, fast, meta, era_meta = (backing(n, name=name) for n, name in zip((SECTORS, SECTORS, 4096, 2048), names))
    features = f"{len(mode.split())} {mode}"
    line = f"0 {SECTORS} cache {quote(meta)} {quote(fast)} {quote(origin)} 64 {features} smq 0"
    below = fs.mkdir("the cache", line)
    dev = fs.mkdir("an era", f"0 {SECTORS} era {quote(era_meta)} the\\ cache {block}")

    def resident():
        return int(below.status().split()[6].split("/")[0])

    def warm(blocks):
        end = time.monotonic() + 120
        with below.open(os.O_RDONLY | os.O_DIRECT) as fd:
            buf = mmap.mmap(-1, 4096)
            while resident() < len(blocks):
                assert time.monotonic() < end, below.status()
                for b in blocks:
                    os.preadv(fd, [buf], b * 64 * SECTOR)

    def example(*args, check=True):
        return sh(f'exec {TOP}/contrib/examples/era-snapshot "$@"', *args, check=check, DMFS_MOUNT=fs.mountpoint,
                  PATH=f"{os.path.dirname(tool('dmfsctl'))}:{TOOLS}")

    before = pattern(SECTORS, 1)
    with open(origin, "r+b") as f:
        f.write(before)
    per = max(block // 64, 1)       # blocks of the cache in one of the era's
    written = {b for first in (0, 40, 41, 100) for b in range(first // per * per, first // per * per + per)}
    kept = {20, 60, 90}
    warm(written | kept)
    dev.pwrite(pattern(1, 5), 0, sync=True)
    before = pattern(1, 5) + before[SECTOR:]
    snapshot = os.path.join(work, "the snapshot")
    example("take", "an era", snapshot)
    with open(origin, "rb") as f:
        assert f.read() == before, "all of it was on the storage"
    for b in (0, 40, 41, 100):
        dev.pwrite(pattern(1, 1000 + b), b * 64 * SECTOR, sync=True)
    assert dev.pread(SECTORS * SECTOR, 0) != before
    said = example("rollback", "an era", snapshot).stderr
    assert f"{len(written)} blocks dropped" in said and resident() >= len(kept)
    assert dev.pread(SECTORS * SECTOR, 0) == before
    assert below.table() == line + "\n" and dev.status().split()[6] == "-"
    assert not dev.suspended() and not below.suspended()
    assert "is no era device" in example("take", "the cache", snapshot, check=False).stderr
    assert example("rollback", "an era", "no such snapshot", check=False).returncode and not dev.suspended()
    os.unlink(snapshot)             # the storage fails to roll back: nobody reads what the cache has of it
    dev.pwrite(pattern(1, 7), 0, sync=True)
    assert example("rollback", "an era", snapshot, check=False).returncode and not dev.suspended()
    assert "passthrough" in below.table()
    for d in dev, below:
        d.remove()


def read_all(terminal):
    said = b""
    try:
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:     # nobody has it open any more
        pass
    os.close(terminal)
    return said


def test_example_backup(fs, backing, sh, work, tool):
    """An incremental backup: what changed since the last one, and nothing else, is copied."""
    tool("era_invalidate")
    script = f'exec {TOP}/contrib/examples/era-backup "$@"'
    meta, origin = backing(2048, name="meta data"), backing(SECTORS, pattern(SECTORS, 4), name="the origin")
    copy = os.path.join(work, "the copy")
    dev = fs.mkdir("e", f"0 {SECTORS} era {quote(meta)} {quote(origin)} {BLOCK}")
    env = {"DMFS_MOUNT": fs.mountpoint, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    first = sh(script, "e", meta, copy, **env)
    assert f"{BLOCKS} of {BLOCKS} blocks" in first.stderr
    dev.pwrite(pattern(8, 9), 11 * BLOCK * SECTOR, sync=True)
    second = sh(script, "e", meta, copy, **env)
    assert f"1 of {BLOCKS} blocks" in second.stderr
    third = sh(script, "e", meta, copy, **env)
    assert f"0 of {BLOCKS} blocks" in third.stderr
    with open(copy, "rb") as f:
        assert f.read() == dev.pread(SECTORS * SECTOR, 0)
    os.truncate(origin, 2 * SECTORS * SECTOR - SECTOR)
    with open(origin, "r+b") as f:
        f.seek(SECTORS * SECTOR)
        f.write(pattern(100, 3))    # the device grows by something that was never written to it
    dev.load(dev.table().replace(f"0 {SECTORS}", f"0 {2 * SECTORS - 1}", 1))
    dev.pwrite(pattern(8, 10), 5 * BLOCK * SECTOR, sync=True)
    master, terminal = pty.openpty()
    with subprocess.Popen(["bash", "-c", script, "-", "e", meta, copy], env={**os.environ, **env}, stderr=terminal,
                          stdin=subprocess.DEVNULL) as running:
        os.close(terminal)
        shown = read_all(master).decode()
        assert running.wait(60) == 0, shown
    assert f"{BLOCKS + 1} of {2 * BLOCKS} blocks" in shown
    assert f"0 of {2 * BLOCKS} blocks" in sh(script, "e", meta, copy, **env).stderr
    assert re.search(r"\[#+ *\] +\d+ %", shown) and f"[{50 * '#'}] 100 %" in shown
    with open(copy, "rb") as f:
        assert f.read() == dev.pread((2 * SECTORS - 1) * SECTOR, 0)
