# SPDX-License-Identifier: GPL-2.0-or-later
"""linear, striped, zero and error beside the kernel's: the same lines taken, the same text printed, the same bytes."""

import os

import pytest

from mounted import SECTOR, pattern, quote

BIG = 8192          # sectors of a disk
OVER = (1 << 64)


def test_linear_lines(kernel, fs, backing):
    wrapped = [f"0 100 linear $D0 {OVER + 1}"]
    kernel.compare(fs, [
        "0 100 linear $D0 0",
        "0 100 linear $D0 17",
        "0 1 linear $D0 8191",
        "0 8192 linear $D0 0",
        "0 100 linear $D0 8092\n100 100 linear $D1 0\n200 1 linear $D0 5",
        "0 2 linear $D0 8191",                  # one sector too many
        "0 8193 linear $D0 0",
        "0 1 linear $D0 8192",
        "0 1 linear $D0 9223372036854775807",
        "0 1 linear $D0 18446744073709551615",
        "0 100 linear",
        "0 100 linear $D0",
        "0 100 linear $D0 0 0",
        "0 100 linear $D0 x",
        "0 100 linear $D0 1x",
        "0 100 linear $D0 -1",
        "0 100 linear $D0 +1",
        "0 100 linear $D0 0x10",
        "0 100 linear $D0 1.5",
        "0 100 linear $D0 010",                 # decimal all the same
        "0 100 linear /nonexistent/file 0",
        "0 100 linear / 0",
        "0 100 linear 0:77777 0",
        "0 100 LINEAR $D0 0",
        *wrapped,
    ], [backing(BIG), backing(BIG)], except_for=wrapped)


def test_striped_lines(kernel, fs, backing):
    wrapped = [f"0 128 striped {(1 << 32) + 2} 8 $D0 0 $D1 0", f"0 128 striped 2 {(1 << 32) + 8} $D0 0 $D1 0",
               f"0 128 striped 2 8 $D0 {OVER} $D1 0"]
    kernel.compare(fs, [
        "0 128 striped 2 8 $D0 0 $D1 0",
        "0 128 striped 2 8 $D0 0 $D0 64",
        "0 128 striped 1 8 $D0 0",
        "0 128 striped 1 128 $D0 8064",
        "0 144 striped 3 24 $D0 0 $D1 0 $D2 5",
        "0 96 striped 3 16 $D0 1 $D1 2 $D2 3\n96 4 zero\n100 64 striped 2 32 $D0 500 $D1 600",
        "0 90 striped 2 9 $D0 0 $D1 0",         # chunks need be no power of two
        "0 54 striped 3 9 $D0 0 $D1 0 $D2 0",
        "0 30 striped 2 5 $D0 0 $D1 0",
        "0 2 striped 2 1 $D0 0 $D1 0",
        "0 6 striped 3 2 $D0 0 $D1 0 $D2 0",
        "0 129 striped 2 8 $D0 0 $D1 0",        # not a multiple of the stripes
        "0 100 striped 2 8 $D0 0 $D1 0",        # ... of the chunks
        "0 100 striped 3 10 $D0 0 $D1 0 $D2 0",
        "0 24 striped 2 8 $D0 0 $D1 0",
        "0 8 striped 2 8 $D0 0 $D1 0",
        "0 16384 striped 2 8 $D0 0 $D1 0",
        "0 16384 striped 2 8 $D0 0 $D1 1",      # the second too small
        "0 16400 striped 2 8 $D0 0 $D1 0",
        "0 128 striped 2 0 $D0 0 $D1 0",
        "0 128 striped 0 8",
        "0 128 striped 0 8 $D0 0",
        "0 128 striped",
        "0 128 striped 2",
        "0 128 striped 2 8",
        "0 128 striped 2 8 $D0",
        "0 128 striped 2 8 $D0 0",
        "0 128 striped 2 8 $D0 0 $D1",
        "0 128 striped 2 8 $D0 0 $D1 0 $D2 0",
        "0 128 striped 2 8 $D0 0 $D1 0 extra",
        "0 128 striped 2 8 $D0 x $D1 0",
        "0 128 striped 2 8 $D0 0 $D1 1y",
        "0 128 striped x 8 $D0 0 $D1 0",
        "0 128 striped 2 x $D0 0 $D1 0",
        "0 128 striped -2 8 $D0 0 $D1 0",
        "0 128 striped 2 -8 $D0 0 $D1 0",
        "0 128 striped 4294967295 8 $D0 0 $D1 0",
        "0 128 striped 2147483648 8 $D0 0 $D1 0",
        "0 128 striped 2 4294967295 $D0 0 $D1 0",
        "0 128 striped 2 2147483648 $D0 0 $D1 0",
        "0 128 striped 2 8 $D0 0 /nonexistent 0",
        *wrapped,
    ], [backing(BIG), backing(BIG), backing(BIG)], except_for=wrapped)


def test_zero_and_error_lines(kernel, fs, backing):
    kernel.compare(fs, [
        "0 1 zero",
        "0 100 zero",
        "0 20000000000 zero",                   # ten terabytes of nothing
        "0 100 zero 0",
        "0 100 zero x y",
        "0 1 error",
        "0 100 error",
        "0 100 error 1 2 3",                    # its constructor looks at nothing
        "0 100 error $D0 0",
        "0 10 zero\n10 10 error\n20 10 linear $D0 0",
    ], [backing(BIG)])


def test_tables(kernel, fs, backing):
    wrapped = [f"0 {OVER + 5} zero", f"{OVER} 5 zero"]
    kernel.compare(fs, [
        "0 10 zero\n10 10 zero",
        "0 10 zero\n11 10 zero",                # a gap
        "0 10 zero\n9 10 zero",                 # an overlap
        "0 10 zero\n0 10 zero",
        "10 10 zero\n0 10 zero",
        "1 10 zero",
        "0 0 zero",
        "0 10 zero\n10 0 zero",
        "0 0 linear $D0 0",
        "0 10 nosuch",
        "0 10 nosuch 1 2 3",
        "0 10 zero\n10 10 nosuch",
        "0 10",
        "0",
        "x 10 zero",
        "0 x zero",
        "# a comment\n\n0 10 zero\n   # another\n10 5 zero\n",
        "  0   10\tzero  ",
        *wrapped,
    ], [backing(BIG)], except_for=wrapped)


def test_old_name_of_error(fs):
    """`io-err`, the seed's name, loads too and prints as `error`: only an old kernel knows it."""
    dev = fs.mkdir("e", "0 10 io-err")
    assert dev.table() == "0 10 error\n"
    assert dev.status().rstrip() == "0 10 error"


# --- the same bytes at the same places ------------------------------------------

DISK = 3000     # sectors

TABLES = {
    "linear": "0 1000 linear $D0 0",
    "linear with offsets": "0 100 linear $D0 700\n100 37 linear $D1 3\n137 1000 linear $D0 1501\n1137 1 linear $D2 2999",
    "striped": "0 1024 striped 2 8 $D0 0 $D1 0",
    "striped, chunks of a page and offsets": "0 1536 striped 3 8 $D0 5 $D1 13 $D2 1",
    "striped, 3 sectors a chunk": "0 1800 striped 3 3 $D0 0 $D1 7 $D2 0",
    "striped, 7 sectors a chunk": "0 1792 striped 2 7 $D1 100 $D0 200",
    "striped, 1 sector a chunk": "0 900 striped 3 1 $D0 0 $D1 0 $D2 0",
    "striped, large chunks": "0 2048 striped 2 1024 $D0 9 $D1 0",
    "all of them": "0 100 linear $D0 900\n100 640 striped 2 64 $D1 0 $D2 9\n740 60 zero\n800 90 striped 1 9 $D0 0",
}


def sectors_of(table):
    start, length = table.splitlines()[-1].split()[:2]
    return int(start) + int(length)


def disk_tables(mount, disks, table):
    for i, disk in enumerate(disks):
        table = table.replace(f"$D{i}", quote(disk))
    return table.split("\n")


def contents(disks):
    parts = []
    for disk in disks:
        with open(disk, "rb") as f:
            parts.append(f.read())
    return parts


def first_difference(a, b):
    for disk, (x, y) in enumerate(zip(a, b)):
        if x != y:
            at = next(i for i in range(0, len(x), SECTOR) if x[i:i + SECTOR] != y[i:i + SECTOR])
            return f"disk {disk} sector {at // SECTOR}: {x[at:at + 40]} here, {y[at:at + 40]} there"
    return None


@pytest.mark.parametrize("name", TABLES)
def test_same_bytes(kernel, fs, backing, work, name):
    """What each side writes stands at the same places, and the other side reads it."""
    table = TABLES[name]
    sectors = sectors_of(table)
    old = [pattern(DISK, seed=90 + i) for i in range(3)]
    theirs = [backing(DISK, d, f"theirs{i}") for i, d in enumerate(old)]
    ours = [backing(DISK, d, f"ours{i}") for i, d in enumerate(old)]
    new = pattern(sectors, seed=7)
    part = pattern(sectors, seed=8)[100 * SECTOR:331 * SECTOR]     # overwrites a part, in odd places
    offset = 53
    for name, data in (("new", new), ("part", part)):
        with open(os.path.join(work, name), "wb") as f:
            f.write(data)

    kernel_table = table
    for i in range(3):
        kernel_table = kernel_table.replace(f"$D{i}", f"/dev/ubd{'abc'[i]}")
    with open(os.path.join(work, "kernel.table"), "w", encoding="utf-8") as f:
        f.write(kernel_table + "\n")

    # ours writes
    dev = fs.mkdir("d", *disk_tables(fs, ours, table))
    dev.pwrite(new, 0)
    dev.pwrite(part, offset * SECTOR, sync=True)
    # theirs writes, and reads what ours wrote
    kernel.run("""set -e
        dmsetup create t $DIR/kernel.table
        dd if=$DIR/new of=/dev/mapper/t bs=64k conv=notrunc,fsync 2>/dev/null
        dd if=$DIR/part of=/dev/mapper/t bs=512 seek=$OFFSET conv=notrunc,fsync 2>/dev/null
        dd if=/dev/mapper/t of=$DIR/theirs.read bs=1M 2>/dev/null
        dmsetup remove --retry t
        sed -i s/ubda/ubdd/g\\;s/ubdb/ubde/g\\;s/ubdc/ubdf/g $DIR/kernel.table
        dmsetup create t $DIR/kernel.table
        dd if=/dev/mapper/t of=$DIR/ours.read bs=1M 2>/dev/null
        dmsetup remove --retry t""", theirs + ours, env={"DIR": work, "OFFSET": offset})
    assert contents(ours) == contents(theirs), first_difference(contents(ours), contents(theirs))
    with open(os.path.join(work, "theirs.read"), "rb") as f:
        want = f.read()
    with open(os.path.join(work, "ours.read"), "rb") as f:
        assert f.read() == want, "the kernel reads something else from our disks"
    # ours reads what theirs wrote
    dev = fs.mkdir("r", *disk_tables(fs, theirs, table))
    assert dev.pread(sectors * SECTOR, 0) == want
