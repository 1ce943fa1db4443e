# SPDX-License-Identifier: GPL-2.0-or-later
"""dust beside the kernel's: lines, messages, replies, log lines, and what is written around bad blocks."""

import os
import re

import pytest

from mounted import SECTOR, pattern, quote

OVER = 1 << 64
BIG = 4 * 1024 * 1024       # sectors: 2 GiB, sparse


def test_lines(kernel, fs, backing):
    wrapped = [f"0 1000 dust $D0 {OVER} 512"]
    kernel.compare(fs, [
        "0 1000 dust $D0 0 512",
        "0 1000 dust $D0 17 4096",
        "0 1000 dust $D0 0 +512",
        "0 1000 dust $D0 +0 512",
        f"0 {BIG} dust $D0 0 1073741824",
        f"0 {BIG} dust $D0 0 2147483648",
        "0 1000 dust $D0 0 262144",
        "0 1000 dust $D0 0 524288",             # more than the target has
        "0 1 dust $D0 0 512",
        "0 1 dust $D0 0 1024",
        "0 1001 dust $D0 0 4096",
        f"0 {BIG} dust $D0 0 512",
        f"0 {BIG} dust $D0 1 512",
        "0 1000 dust $D0 0 0",
        "0 1000 dust $D0 0 256",
        "0 1000 dust $D0 0 511",
        "0 1000 dust $D0 0 513",
        "0 1000 dust $D0 0 1536",
        "0 1000 dust $D0 0 4294967296",
        "0 1000 dust $D0 0 -512",
        "0 1000 dust $D0 0 512x",
        "0 1000 dust $D0 0 x",
        "0 1000 dust $D0 x 512",
        "0 1000 dust $D0 -1 512",
        "0 1000 dust $D0 0",
        "0 1000 dust $D0",
        "0 1000 dust",
        "0 1000 dust $D0 0 512 1",
        "0 1000 dust /nonexistent 0 512",
        *wrapped,
    ], [backing(BIG)], except_for=wrapped)


MESSAGES = """
    countbadblocks
    listbadblocks
    clearbadblocks
    addbadblock 60
    addbadblock 67
    addbadblock 72 3
    0 addbadblock 87 0
    addbadblock 60
    addbadblock 60 1
    addbadblock 73 255
    addbadblock 74 256
    addbadblock 74 -1
    addbadblock 74 x
    addbadblock 74 1 1
    queryblock 60
    queryblock 61
    queryblock 72
    queryblock 60 1
    queryblock x
    countbadblocks
    listbadblocks
    removebadblock 61
    removebadblock 67
    removebadblock 67
    removebadblock 67 1
    addbadblock 1024
    addbadblock 1025
    queryblock 1025
    removebadblock 18446744073709551615
    addbadblock 18446744073709551615
    addbadblock -1
    addbadblock +1
    addbadblock 1x
    addbadblock 010
    listbadblocks
    ADDBADBLOCK 5
    QueryBlock 5
    COUNTBADBLOCKS
    addbadblock
    removebadblock
    queryblock
    nosuch
    nosuch 1
    nosuch 1 2
    nosuch 1 2 3
    enable 1
    enable
    enable
    disable
    quiet
    addbadblock 6
    addbadblock 6
    removebadblock 6
    removebadblock 6
    queryblock 6
    countbadblocks
    nosuch
    quiet
    addbadblock 6
    clearbadblocks
    clearbadblocks
    countbadblocks
    QUIET
    Enable
    """.split("\n")


def kernel_log(text):
    """The target's own lines, without what is different by design."""
    return [m.group(1) for m in re.finditer(r"device-mapper: (dust: .*)", text)]


def test_messages(kernel, fs, backing):
    """Every message: taken or refused alike, the same reply, the same status, the same lines in the log."""
    messages = [m.strip() for m in MESSAGES if m.strip()]
    ours, theirs = backing(8192), backing(8192)
    script = 'dmsetup create t --table "0 4000 dust $D0 8 4096"\n'
    for m in messages:
        script += f"""if r=$(dmsetup message t {m if m.startswith('0 ') else '0 ' + m} 2>/dev/null); then echo "ok $r"; else echo refused; fi
            echo "$(dmsetup status t)"; echo ===\n"""
    script += "echo; dmesg"
    out, log = kernel.run(script, [theirs]).out.split("\n\n", 1)
    told = [part.strip() for part in out.replace("98:0", "D0").split("===\n")]
    told[-1] = told[-1].removesuffix("===").strip()
    dev = fs.mkdir("t", f"0 4000 dust {quote(ours)} 8 4096")
    for m, want in zip(messages, told, strict=True):
        try:
            got = f"ok {dev.message(m)}"
        except OSError:
            assert dev.error()
            got = "refused"
        status = dev.status().replace(quote(ours), "D0")
        assert [*f"{got}\n{status}".split()] == want.split(), m
    # dm-dust.txt's lines about queries, counts and clearing are logged here as well
    mine = [line for line in kernel_log(fs.read("log"))
            if not re.match(r"dust: (queryblock|countbadblocks|clearbadblocks): ", line)]
    assert mine == kernel_log(log)


SCENES = {
    # table, messages, I/O (what, sector, sectors), on a device of 256 sectors
    "blocks of 512": ("0 200 dust {} 0 512", ["addbadblock 10", "addbadblock 12", "addbadblock 40 2"],
                      [("r", 0, 10), ("r", 8, 8), ("r", 13, 3), ("w", 8, 8), ("r", 8, 8), ("w", 40, 1), ("r", 40, 1),
                       ("w", 36, 8), ("w", 36, 8), ("r", 36, 8), ("w", 40, 1), ("r", 40, 1)]),
    "blocks of 4096": ("0 200 dust {} 0 4096", ["addbadblock 2", "addbadblock 5 1"],
                       [("r", 15, 1), ("r", 16, 1), ("r", 23, 1), ("r", 24, 1), ("w", 17, 1), ("r", 16, 8),
                        ("w", 32, 24), ("r", 40, 8), ("w", 44, 8), ("r", 40, 8)]),
    "an offset of whole blocks": ("0 200 dust {} 16 4096", ["addbadblock 2", "addbadblock 3"],
                                  [("r", 0, 8), ("r", 8, 8), ("w", 0, 8), ("r", 0, 8), ("r", 8, 8), ("r", 16, 8)]),
    "an odd offset": ("0 200 dust {} 3 4096", ["addbadblock 2", "addbadblock 4"],
                      [("r", s, n) for s in range(8, 48) for n in (1, 4)] +
                      [("w", 12, 2), ("r", 12, 2), ("r", 13, 2), ("w", 26, 4), ("w", 30, 10), ("r", 24, 24)]),
}


@pytest.mark.parametrize("name", SCENES)
def test_reads_and_writes(kernel, fs, backing, work, name):
    """The same reads and writes fail, the same blocks become good, and the same bytes are written."""
    line, messages, ios = SCENES[name]
    old = pattern(256, seed=1)
    ours, theirs = backing(256, old), backing(256, old)
    script = f'set -e\ndmsetup create t --table "{line.format("$D0")}"\n'
    for m in [*messages, "enable"]:
        script += f"dmsetup message t 0 {m}\n"
    for i, (what, sector, sectors) in enumerate(ios):
        with open(f"{work}/data{i}", "wb") as f:
            f.write(pattern(sectors, seed=100 + i))
        place = f"if=/dev/mapper/t of=$DIR/read skip={sector} iflag=direct" if what == "r" else \
            f"if=$DIR/data{i} of=/dev/mapper/t seek={sector} oflag=direct conv=notrunc"
        # one I/O, not one for each sector
        place = place.replace(f"skip={sector} iflag=direct", f"skip={sector * SECTOR} iflag=direct,skip_bytes")
        place = place.replace(f"seek={sector} oflag=direct", f"seek={sector * SECTOR} oflag=direct,seek_bytes")
        script += f"dd {place} bs={sectors * SECTOR} count=1 2>/dev/null && echo ok || echo no\n"
        script += "dmsetup message t 0 listbadblocks | tr '\\n' ' '; echo\n"
    script += "dmsetup remove --retry t"
    told = kernel.run(script, [theirs], env={"DIR": work}).out.splitlines()
    assert len(told) == 2 * len(ios)
    dev = fs.mkdir("t", line.format(quote(ours)))
    for m in [*messages, "enable"]:
        dev.message(m)
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        for i, (what, sector, sectors) in enumerate(ios):
            try:
                if what == "r":
                    assert len(os.pread(fd, sectors * SECTOR, sector * SECTOR)) == sectors * SECTOR
                else:
                    os.pwrite(fd, pattern(sectors, seed=100 + i), sector * SECTOR)
                got = "ok"
            except OSError:
                got = "no"
            assert (i, ios[i], got) == (i, ios[i], told[2 * i])
            assert (i, dev.message("listbadblocks").split()) == (i, told[2 * i + 1].split())
    with open(ours, "rb") as f, open(theirs, "rb") as g:
        a, b = f.read(), g.read()
    assert a == b, [s for s in range(256) if a[s * SECTOR:][:SECTOR] != b[s * SECTOR:][:SECTOR]]
