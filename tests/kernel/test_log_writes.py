# SPDX-License-Identifier: GPL-2.0-or-later
"""log-writes beside the kernel's: the same tables and texts, the same log of the same I/O, logs read across."""

import os
import struct
import subprocess
import sys

import pytest

import mounted
from mounted import SECTOR, pattern

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZE = 2048
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

# What to do: an op, a sector and sectors; or a mark
IO = [
    ("write", 0, 8), ("write", 64, 128), ("write", 4, 2),
    ("mark", "first"),
    ("fsync", 200, 8),
    ("dsync", 304, 16),
    ("write", 8, 8), ("discard", 0, 16), ("write", 8, 1),
    ("mark", "second"),
    ("dsync", 312, 8), ("dsync", 312, 8),
    ("fsync", 1000, 256),
    ("discard", 1024, 64),
    ("write", 2040, 8),
]


def read_log(path):
    """The log, entry by entry: (flags, sector, sectors, data or mark)."""
    with open(path, "rb") as f:
        log = f.read()
    magic, version, count, size = struct.unpack_from("<QQQI", log)
    assert (magic, version, size) == (0x6a736677736872, 1, SECTOR)
    entries, at = [], SECTOR
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", log, at)
        kept = 0 if flags & DISCARD else sectors * SECTOR
        data = log[at + 32:at + 32 + length] if flags & MARK else log[at + SECTOR:at + SECTOR + kept]
        entries.append((flags, sector, sectors, data))
        at += SECTOR + kept
    return entries


def data_of(i, sectors):
    return pattern(sectors, seed=i)


def kernel_io(work):
    """The same I/O as a shell script for /dev/mapper/t; its data in files."""
    script = []
    for i, (op, *args) in enumerate(IO):
        if op == "mark":
            script.append(f"dmsetup message t 0 mark {args[0]}")
            continue
        sector, sectors = args
        if op == "discard":
            script.append(f"blkdiscard -o {sector * SECTOR} -l {sectors * SECTOR} /dev/mapper/t")
            continue
        with open(os.path.join(work, f"data{i}"), "wb") as f:
            f.write(data_of(i, sectors))
        flags = {"write": "", "fsync": ",fsync", "dsync": ""}[op]
        script.append(f"dd if=$DIR/data{i} of=/dev/mapper/t bs={sectors * SECTOR} count=1 seek={sector * SECTOR} "
                      f"oflag=direct,seek_bytes{',dsync' if op == 'dsync' else ''} conv=notrunc{flags} status=none")
    return "\n".join(script)


def own_io(dev):
    for i, (op, *args) in enumerate(IO):
        if op == "mark":
            dev.message(f"mark {args[0]}")
            continue
        sector, sectors = args
        if op == "discard":
            dev.discard(sector * SECTOR, sectors * SECTOR)
            continue
        with dev.open(os.O_RDWR | (os.O_DSYNC if op == "dsync" else 0)) as fd:
            mounted.pwrite_all(fd, data_of(i, sectors), sector * SECTOR)
            if op == "fsync":
                os.fsync(fd)


def content(path):
    with open(path, "rb") as f:
        return f.read()


def test_lines(kernel, fs, backing):
    # the kernel lets two targets write one log, each over the other's entries
    one_log = "0 100 log-writes $D0 $D1\n100 1 log-writes $D2 $D1"
    kernel.compare(fs, [
        f"0 {SIZE} log-writes $D0 $D1",
        "0 100 log-writes $D0 $D1",
        "0 100 log-writes $D0 $D1 extra",
        "0 100 zero\n100 100 log-writes $D0 $D1",
        one_log,
        "0 100 log-writes",
        "0 100 log-writes $D0",
        "0 100 log-writes $D0 /nonexistent",
        "0 100 log-writes /nonexistent $D0",
        f"0 {SIZE + 1} log-writes $D0 $D1",
        "0 100 log_writes $D0 $D1",
    ], [backing(SIZE), backing(SIZE), backing(SIZE)], except_for=[one_log])


def test_same_log(kernel, fs, backing, work, tool):
    """The same I/O makes the same log, entry by entry; each replays to what its side has on the disk."""
    ours, our_log = backing(SIZE, name="ours"), backing(8 * SIZE, name="our_log")
    theirs, their_log = backing(SIZE, name="theirs"), backing(8 * SIZE, name="their_log")
    out = kernel.run(f"""set -e
        dmsetup create t --table "0 {SIZE} log-writes $D0 $D1"
        {kernel_io(work)}
        dmsetup message t 0 mark {'x' * 600}
        dmsetup status t
        dmsetup remove --retry t""", [theirs, their_log], env={"DIR": work}).out
    dev = fs.mkdir("t", f"0 {SIZE} log-writes {ours} {our_log}")
    own_io(dev)
    dev.message("mark " + "x" * 600)
    status = dev.status()
    dev.remove()
    assert content(ours) == content(theirs)

    def without_double_flushes(entries):
        return [e for i, e in enumerate(entries) if e[0] != FLUSH or not i or entries[i - 1][0] != FLUSH]

    theirs_entries = read_log(their_log)
    assert {e[0] for e in theirs_entries} == {0, FLUSH, FUA, DISCARD, MARK}
    assert without_double_flushes(read_log(our_log)) == without_double_flushes(theirs_entries)
    if len(read_log(our_log)) == len(theirs_entries):
        assert status.rstrip() == out.strip().splitlines()[-1].rstrip()

    for log in our_log, their_log:
        copy = backing(SIZE, name="copy")
        subprocess.run([tool("dmfs-replay-log"), "--log", log, "--replay", copy], check=True, timeout=600)
        assert content(copy) == content(theirs), log
    # and up to a mark
    copies = [backing(SIZE), backing(SIZE)]
    for log, copy in zip((our_log, their_log), copies):
        subprocess.run([tool("dmfs-replay-log"), "--log", log, "--replay", copy, "--end-mark", "second"], check=True,
                       timeout=600)
    assert content(copies[0]) == content(copies[1]) != content(theirs)


def test_full_log(kernel, fs, backing):
    """A full log: the same status, the same entries."""
    ours, our_log = backing(SIZE, name="ours"), backing(32, name="our_log")
    theirs, their_log = backing(SIZE, name="theirs"), backing(32, name="their_log")
    out = kernel.run(f"""set -e
        dmsetup create t --table "0 {SIZE} log-writes $D0 $D1"
        for i in 0 1 2 3 4 5; do
            dd if=/dev/zero of=/dev/mapper/t bs=4096 count=1 seek=$i oflag=direct conv=notrunc,fsync status=none
            dmsetup message t 0 mark $i
        done
        dmsetup status t
        dmsetup remove --retry t""", [theirs, their_log]).out
    dev = fs.mkdir("t", f"0 {SIZE} log-writes {ours} {our_log}")
    for i in range(6):
        dev.pwrite(bytes(4096), i * 4096, sync=True)
        dev.message(f"mark {i}")
    assert dev.status().rstrip() == out.strip().splitlines()[-1].rstrip()
    dev.remove()
    # the kernel counts in the super block at marks and FUA writes only
    ours, theirs = read_log(our_log), read_log(their_log)
    assert ours[:len(theirs)] == theirs and len(theirs) >= 6


BAD_MESSAGES = ["mark", "mark a b", "nothing x", "marks x"]


def test_bad_messages(kernel, fs, backing):
    disks = [backing(SIZE), backing(SIZE)]
    script = [f'dmsetup create t --table "0 {SIZE} log-writes $D0 $D1"']
    script += [f"dmsetup message t 0 {text} 2>/dev/null; echo status $?" for text in BAD_MESSAGES]
    assert kernel.run("\n".join(script), disks).out.count("status 1") == len(BAD_MESSAGES)
    dev = fs.mkdir("t", f"0 {SIZE} log-writes {disks[0]} {disks[1]}")
    for text in BAD_MESSAGES:
        with pytest.raises(OSError):
            dev.message(text)


WORKLOAD = """
mount -t ext4 $D0 /mnt && cd /mnt || exit 1
for i in 1 2 3 4 5 6; do
    mkdir $i && for k in 1 2 3; do head -c $((i * k * 1500)) /dev/urandom >$i/$k; done
    sync $i/2
    [ $i -lt 3 ] || rm -r $((i - 2))
    mv $i/1 moved
done
cd / && umount /mnt
"""


def test_ext4_at_every_write(kernel, fs, backing, sh, work, tool):
    """The document's cookbook, without root: a kernel mounts the ext4 in an image above linear, each prefix is checked."""
    tool("mke2fs")
    command = os.path.join(work, "workload")
    with open(command, "w", encoding="utf-8") as f:
        f.write(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {os.path.join(TOP, 'tests/lib')!r})\n"
                f"import uml\nprint(uml.run({WORKLOAD!r}, [sys.argv[1]], timeout=600).out)\n")
    os.chmod(command, 0o755)
    low = fs.mkdir("low", f"0 32768 linear {backing(40000)} 5000")
    out = sh(f'exec {TOP}/contrib/examples/log-writes-fsck "$@"', low.image, backing(262144), command,
             DMFS_MOUNT=fs.mountpoint, CHECK="1",
             PATH=os.path.dirname(tool("dmfs-replay-log")) + ":" + os.environ["PATH"]).stdout
    assert int(out.split("all of ")[1].split()[0]) > 50
