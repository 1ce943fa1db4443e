# SPDX-License-Identifier: GPL-2.0-or-later
"""era through the mount; era_check judges the metadata after every test, era_dump and era_invalidate say what it holds."""

import errno
import os
import re
import subprocess
import threading

import pytest

from mounted import SECTOR, pattern, quote

BLOCK = 128                 # sectors
BLOCKS = 64
SECTORS = BLOCK * BLOCKS
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def of_snapshot(tool, dev):
    """era_invalidate's option for the metadata snapshot: since version 1 it is told where."""
    said = subprocess.run([tool("era_invalidate"), "--help"], capture_output=True, text=True, timeout=300)
    where = f"={dev.status().split()[-1]}" if "--metadata-snapshot <" in said.stdout + said.stderr else ""
    return f"--metadata-snapshot{where}"


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
            out = run(tool("era_invalidate"), *options, "--written-since", str(number), self.meta)
            found = {int(b) for b in re.findall(r'<block block="(\d+)"', out)}
            for begin, end in re.findall(r'<range begin="(\d+)" end\s*=\s*"(\d+)"', out):
                found |= set(range(int(begin), int(end)))
            return found

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
