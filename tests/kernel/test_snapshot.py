# SPDX-License-Identifier: GPL-2.0-or-later
"""snapshot beside the kernel's: lines, status, and exception stores that move between the two."""

import os
import random

import pytest

from mounted import SECTOR, pattern, quote

SIZE = 4096     # sectors of an origin


def test_lines(kernel, fs, backing):
    """Each line meets a COW device whose store the one before may have made."""
    kernel.compare(fs, [
        "0 1000 snapshot $D0 $D1 N 8",
        "0 1000 snapshot $D0 $D1 n 8",
        "0 1000 snapshot $D0 $D1 N 1",
        "0 1000 snapshot $D0 $D1 N 256",
        "0 1000 snapshot $D0 $D1 NO 8",
        "0 1000 snapshot $D0 $D1 N 0",
        "0 1000 snapshot $D0 $D1 N 8 0",
        "0 1000 snapshot $D0 $D1 N 8 1 discard_zeroes_cow",
        "0 1000 snapshot $D0 $D1 N 8 2 discard_zeroes_cow discard_passdown_origin",
        "0 1000 snapshot $D0 $D1 N 8 2 discard_passdown_origin DISCARD_ZEROES_COW",
        "0 1000 snapshot $D0 $D1 N 8 1 discard_passdown_origin",
        "0 1000 snapshot $D0 $D1 N 8 1",
        "0 1000 snapshot $D0 $D1 N 8 3 discard_zeroes_cow discard_passdown_origin x",
        "0 1000 snapshot $D0 $D1 N 8 1 nosuch",
        "0 1000 snapshot $D0 $D1 N 8 x",
        "0 1000 snapshot $D0 $D1 N 7",
        "0 1000 snapshot $D0 $D1 N 24",
        "0 1000 snapshot $D0 $D1 N x",
        "0 1000 snapshot $D0 $D1 N -8",
        "0 1000 snapshot $D0 $D1 N 4194304",
        "0 1000 snapshot $D0 $D1 N",
        "0 1000 snapshot $D0 $D1",
        "0 1000 snapshot $D0",
        "0 1000 snapshot",
        "0 1000 snapshot $D0 $D1 X 8",
        "0 1000 snapshot $D0 $D0 N 8",
        "0 1000 snapshot $D0 /nonexistent N 8",
        "0 1000 snapshot /nonexistent $D1 N 8",
        "0 4097 snapshot $D0 $D1 N 8",
        "0 1000 snapshot $D0 $D1 P 8",
        "0 1000 snapshot $D0 $D1 PO 8",
        "0 1000 snapshot $D0 $D1 po 8",
        "0 1000 snapshot $D0 $D1 Px 8",
        "0 1000 snapshot $D0 $D1 POx 8",
        "0 1000 snapshot $D0 $D1 P 16",             # the store's own chunk size holds
        "0 1000 snapshot $D0 $D1 P 0",
        "0 1000 snapshot $D0 $D2 P 0",              # a new store with the default
        "0 1000 snapshot $D0 $D3 PO 128 1 discard_zeroes_cow",
        "0 1000 snapshot-merge $D0 $D1 P 8",
        "0 1000 snapshot-merge $D0 $D1 PO 8",
        "0 1000 snapshot-merge $D0 $D0 P 8",
        "0 1000 snapshot-merge $D0 $D3 P 8 1 discard_zeroes_cow",
        "0 1000 snapshot-merge $D0 $D1 P",
        "0 1000 snapshot-origin $D0",
        "0 1000 snapshot-origin $D0 0",
        "0 1000 snapshot-origin",
        "0 4097 snapshot-origin $D0",
        "0 1000 snapshot-origin /nonexistent",
    ], [backing(SIZE), backing(SIZE), backing(SIZE), backing(SIZE)])


# --- stores that move ----------------------------------------------------------------

def writes(seed, count=24, size=SIZE):
    """(which, sector, data): writes to the snapshot and to the origin, in turn, of odd sizes in odd places."""
    rng = random.Random(seed)
    for n in range(count):
        at = rng.randrange(size - 64)
        yield ("snap", "base")[n % 2], at, random.Random(seed * 1000 + n).randbytes(rng.choice((1, 7, 8, 33, 64)) * SECTOR)


class Model:
    def __init__(self, old):
        self.base, self.snap = bytearray(old), bytearray(old)

    def write(self, which, at, data):
        getattr(self, which)[at * SECTOR:at * SECTOR + len(data)] = data


def write_files(work, tag, seed):
    """The writes as files and a script that makes them in the guest."""
    lines = []
    for n, (which, at, data) in enumerate(writes(seed)):
        path = os.path.join(work, f"{tag}{n}")
        with open(path, "wb") as f:
            f.write(data)
        lines.append(f"dd if={path} of=/dev/mapper/{which} bs=512 seek={at} conv=notrunc oflag=direct 2>/dev/null")
    return "\n".join(lines)


def guest_setup(chunk, kind="P", features=""):
    return f"""set -e
        dmsetup create base --table "0 {SIZE} linear $D0 0"
        dmsetup create snap --table "0 {SIZE} snapshot $D0 $D1 {kind} {chunk}{features}"
        echo "0 {SIZE} snapshot-origin $D0" | dmsetup load base
        dmsetup resume base
        """


GUEST_READ = """
        for d in base snap; do dd if=/dev/mapper/$d of=$DIR/$d.read bs=1M iflag=direct 2>/dev/null; done
        dmsetup status snap >$DIR/status
        dmsetup table snap >$DIR/table
        dmsetup remove snap; dmsetup remove base
        """

GUEST_MERGE_WAIT = """
        while :; do
            s=$(dmsetup status base)
            set -- $s
            [ "${4%/*}" = "$5" ] && break
            sleep 0.05
        done
        """


def ours_setup(fs, origin, cow, chunk, kind="P"):
    fs.mkdir("base", f"0 {SIZE} linear {quote(origin)} 0")
    fs.mkdir("snap", f"0 {SIZE} snapshot {quote(origin)} {quote(cow)} {kind} {chunk}")
    fs["base"].load(f"0 {SIZE} snapshot-origin {quote(origin)}")


def ours_write(fs, seed):
    for which, at, data in writes(seed):
        fs[which].pwrite(data, at * SECTOR, sync=True)


def ours_read(fs):
    return fs["base"].pread(SIZE * SECTOR, 0), fs["snap"].pread(SIZE * SECTOR, 0)


def ours_remove(fs):
    fs["snap"].remove()
    fs["base"].remove()


def slurp(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


@pytest.mark.parametrize("chunk", [1, 8, 16, 64, 512])
def test_stores_are_the_same_byte_for_byte(kernel, fs, backing, work, chunk):
    """The same writes, one at a time, make the same store."""
    old = pattern(SIZE, seed=2)
    theirs = [backing(SIZE, old), backing(4 * SIZE)]
    ours = [backing(SIZE, old), backing(4 * SIZE)]
    kernel.run(guest_setup(chunk) + write_files(work, "w", chunk) + GUEST_READ, theirs, {"DIR": work})
    ours_setup(fs, *ours, chunk)
    ours_write(fs, chunk)
    status = fs["snap"].status()
    base, snap = ours_read(fs)
    assert slurp(work, "status").decode().split() == status.split()
    assert slurp(work, "base.read") == base and slurp(work, "snap.read") == snap
    ours_remove(fs)
    assert slurp(ours[0]) == slurp(theirs[0])
    a, b = slurp(ours[1]), slurp(theirs[1])
    assert a == b, next((i // SECTOR for i in range(0, len(a), SECTOR) if a[i:i + SECTOR] != b[i:i + SECTOR]))


@pytest.mark.parametrize("chunk", [1, 8, 16, 128])
def test_back_and_forth(kernel, fs, backing, work, chunk):
    """A store the kernel makes, we go on with, the kernel goes on with, and we merge; and the other way round."""
    old = pattern(SIZE, seed=3)
    disks = [backing(SIZE, old), backing(8 * SIZE)]
    others = [backing(SIZE, old), backing(8 * SIZE)]
    model = Model(old)
    # ours begins with the second pair
    ours_setup(fs, *others, chunk)
    ours_write(fs, 1)
    assert ours_read(fs)
    ours_remove(fs)
    # the kernel begins with the first pair, and goes on with the second
    guest = guest_setup(chunk) + write_files(work, "a", 1) + GUEST_READ
    guest += guest_setup(chunk).replace("$D0", "$D2").replace("$D1", "$D3") + write_files(work, "b", 2) + \
        GUEST_READ.replace("$DIR/", "$DIR/other.")
    kernel.run(guest, disks + others, {"DIR": work})
    for w in writes(1):
        model.write(*w)
    assert slurp(work, "base.read") == model.base and slurp(work, "snap.read") == model.snap
    # ours goes on with the first pair
    ours_setup(fs, *disks, chunk)
    assert fs["snap"].status().split() == slurp(work, "status").decode().split()
    assert ours_read(fs) == (model.base, model.snap)
    ours_write(fs, 2)
    for w in writes(2):
        model.write(*w)
    assert ours_read(fs) == (model.base, model.snap)
    assert slurp(work, "other.base.read") == model.base and slurp(work, "other.snap.read") == model.snap
    ours_remove(fs)
    # the kernel goes on with ours once more, and merges it; ours merges the kernel's
    for w in writes(3):
        model.write(*w)
    kernel.run(guest_setup(chunk) + write_files(work, "c", 3) + f"""
        dmsetup suspend snap
        echo "0 {SIZE} snapshot-merge $D0 $D1 P {chunk}" | dmsetup load base
        dmsetup resume base
        {GUEST_MERGE_WAIT}
        dmsetup status base >$DIR/merged
        dd if=/dev/mapper/base of=$DIR/base.read bs=1M iflag=direct 2>/dev/null
        dmsetup resume snap; dmsetup remove snap; dmsetup remove base
        """, disks, {"DIR": work})
    assert slurp(work, "base.read") == model.snap
    assert slurp(disks[0]) == model.snap
    merge = fs.mkdir("base", f"0 {SIZE} snapshot-merge {quote(others[0])} {quote(others[1])} P {chunk}")
    wait_merged(merge)
    assert merge.status().split() == slurp(work, "merged").decode().split()
    model = Model(old)
    for seed in (1, 2):
        for w in writes(seed):
            model.write(*w)
    assert merge.pread(SIZE * SECTOR, 0) == model.snap
    assert slurp(others[0]) == model.snap


def wait_merged(dev):
    import select
    with open(dev.file("events"), "rb", buffering=0) as events, open(dev.file("status"), encoding="ascii") as status:
        poller = select.poll()
        poller.register(events, select.POLLIN)
        while True:
            status.seek(0)
            words = status.read().split()
            if words[3].split("/")[0] == words[4]:
                return
            poller.poll()
            events.read(65536)


@pytest.mark.parametrize("chunk", [4, 8])
def test_half_merged(kernel, fs, backing, work, chunk):
    """A merge that one side began and was interrupted in, the other one ends."""
    old = pattern(SIZE, seed=4)
    disks = [backing(SIZE, old), backing(8 * SIZE)]
    others = [backing(SIZE, old), backing(8 * SIZE)]
    for pair in (disks, others):
        ours_setup(fs, *pair, chunk)
        model = Model(old)
        order = list(range(0, SIZE // chunk, 2))
        random.Random(chunk).shuffle(order)
        for block in order:
            w = ("snap", block * chunk, random.Random(block).randbytes(4096))
            fs["snap"].pwrite(w[2], w[1] * SECTOR)
            model.write(*w)
        ours_remove(fs)
    # The kernel over a slow origin, suspended when something has been merged.
    kernel.run(f"""set -e
        dmsetup create slow --table "0 {SIZE} delay $D0 0 2 $D0 0 10"
        dmsetup create base --table "0 {SIZE} snapshot-merge /dev/mapper/slow $D1 P {chunk}"
        first=$(dmsetup status base)
        while [ "$(dmsetup status base)" = "$first" ]; do sleep 0.01; done
        dmsetup suspend base
        dmsetup status base >$DIR/half
        dmsetup remove base
        dmsetup remove slow""", disks, {"DIR": work})
    half = slurp(work, "half").decode().split()
    assert half[3].split("/")[0] != half[4], "the kernel was too fast: it is not half"
    merge = fs.mkdir("base", f"0 {SIZE} snapshot-merge {quote(disks[0])} {quote(disks[1])} P {chunk}")
    wait_merged(merge)
    assert merge.pread(SIZE * SECTOR, 0) == model.snap
    merge.remove()
    assert slurp(disks[0]) == model.snap

    # The other way round.
    fs.mkdir("slow", f"0 {SIZE} delay {quote(others[0])} 0 2 {quote(others[0])} 0 200")
    merge = fs.mkdir("base", f"0 {SIZE} snapshot-merge slow {quote(others[1])} P {chunk}")
    first = merge.status()
    while merge.status() == first:
        pass
    merge.suspend()
    half = merge.status().split()
    assert half[3].split("/")[0] != half[4], "we were too fast: it is not half"
    merge.remove()
    kernel.run(f"""set -e
        dmsetup create base --table "0 {SIZE} snapshot-merge $D0 $D1 P {chunk}"
        {GUEST_MERGE_WAIT}
        dd if=/dev/mapper/base of=$DIR/base.read bs=1M iflag=direct 2>/dev/null
        dmsetup remove base""", others, {"DIR": work})
    assert slurp(work, "base.read") == model.snap
    assert slurp(others[0]) == model.snap


@pytest.mark.parametrize("kind", ["P", "PO", "N"])
def test_full(kernel, fs, backing, work, kind):
    """What is said when the store is full, by a write to either side."""
    old = pattern(SIZE, seed=5)
    said = {}
    for side in ("theirs", "ours"):
        for which in ("snap", "base"):
            disks = [backing(SIZE, old), backing(8 * 20)]
            if side == "theirs":
                kernel.run(guest_setup(8, kind) + f"""
                    dd if=/dev/zero of=/dev/mapper/{which} bs=4096 count=30 oflag=direct 2>/dev/null || true
                    dmsetup status snap >$DIR/status
                    dmsetup remove snap; dmsetup remove base""", disks, {"DIR": work})
                status = slurp(work, "status").decode().split()
            else:
                ours_setup(fs, *disks, 8, kind)
                with fs[which].open() as fd:
                    for n in range(30):
                        try:
                            os.pwrite(fd, bytes(4096), n * 4096)
                            os.fsync(fd)
                        except OSError:
                            break
                status = fs["snap"].status().split()
                ours_remove(fs)
            said[side, which] = status, slurp(disks[0]), slurp(disks[1])[:4096] if kind != "N" else None
    for which in ("snap", "base"):
        assert said["ours", which] == said["theirs", which]
