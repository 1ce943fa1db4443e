# SPDX-License-Identifier: GPL-2.0-or-later
"""mirror beside the kernel's: the lines taken, the text printed, and the disk log handed back and forth."""

import mmap
import os
import re
import struct

import pytest

from mounted import SECTOR, pattern, quote, wait_status

BIG = 8192
A, B = "$D0 0", "$D1 0"


def test_lines(kernel, fs, backing):
    # where we take more than this kernel: the older name of handle_errors, and more legs than kcopyd's nine
    kernel.compare(fs, [
        f"0 1024 mirror core 2 64 nosync 2 {A} {B}",
        f"0 1024 mirror core 2 1024 nosync 2 {A} $D0 4096 0",
        f"0 1024 mirror core 2 1024 nosync 2 {A} $D0 4096 0 handle_errors",
        f"0 1024 mirror core 2 2 nosync 3 {A} {B} $D2 7",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 1 handle_errors",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 2 handle_errors keep_log",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 2 keep_log handle_errors",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 2 handle_errors handle_errors",
        f"0 1000 mirror core 2 128 nosync 9 " + " ".join(f"$D{i % 3} {i * 256}" for i in range(9)),
        f"0 1000 mirror disk 3 $D3 128 nosync 2 {A} {B}",
        f"100 924 mirror core 2 64 nosync 2 {A} {B}",
        f"0 100 zero\n100 924 mirror core 2 64 nosync 2 {A} {B}",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 1 keep_log",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 1 nosuch",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 1",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 2 handle_errors",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} 0 handle_errors",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} x",
        f"0 1000 mirror core 2 128 nosync 2 {A} {B} handle_errors",
        "0 1000 mirror",
        "0 1000 mirror core",
        "0 1000 mirror core 1",
        "0 1000 mirror core 1 128",
        "0 1000 mirror core 1 128 2",
        f"0 1000 mirror core 0 2 {A} {B}",
        f"0 1000 mirror core x 128 2 {A} {B}",
        f"0 1000 mirror core -1 128 2 {A} {B}",
        f"0 1000 mirror core 99 128 2 {A} {B}",
        f"0 1000 mirror core 4294967295 128 2 {A} {B}",
        f"0 1000 mirror core 3 128 nosync nosync 2 {A} {B}",
        f"0 1000 mirror core 2 128 maybe 2 {A} {B}",
        f"0 1000 mirror core 1 0 2 {A} {B}",
        f"0 1000 mirror core 1 1 2 {A} {B}",
        f"0 1000 mirror core 1 3 2 {A} {B}",
        f"0 1000 mirror core 1 100 2 {A} {B}",
        f"0 1000 mirror core 1 1024 2 {A} {B}",
        f"0 1000 mirror core 1 512k 2 {A} {B}",
        f"0 1000 mirror core 2 128 nosync 0",
        f"0 1000 mirror core 2 128 nosync 1 {A}",
        f"0 1000 mirror core 2 128 nosync 3 {A} {B}",
        f"0 1000 mirror core 2 128 nosync 2 {A} $D1",
        f"0 1000 mirror core 2 128 nosync x {A} {B}",
        f"0 1000 mirror core 2 128 nosync -2 {A} {B}",
        f"0 1000 mirror core 2 128 nosync 2 {A} $D1 x",
        f"0 1000 mirror core 2 128 nosync 2 {A} $D1 -1",
        f"0 1000 mirror core 2 128 nosync 2 {A} /nonexistent 0",
        f"0 8192 mirror core 2 128 nosync 2 {A} $D1 1",         # the second leg too short
        f"0 8200 mirror core 2 128 nosync 2 {A} {B}",
        f"0 1000 mirror nosuch 2 128 nosync 2 {A} {B}",
        f"0 1000 mirror userspace 4 uuid 128 nosync 1 2 {A} {B}",
        f"0 1000 mirror disk 1 $D3 2 {A} {B}",
        f"0 1000 mirror disk 2 /nonexistent 128 2 {A} {B}",
        f"0 1000 mirror disk 3 $D3 128 maybe 2 {A} {B}",
        f"0 1000 mirror disk 4 $D3 128 nosync sync 2 {A} {B}",
        f"0 1000 mirror disk 3 $D4 128 nosync 2 {A} {B}",         # two sectors: no room for a log
        f"0 8192 mirror disk 3 $D5 2 nosync 2 {A} {B}",           # three sectors: 4096 bits
    ], [backing(BIG), backing(BIG), backing(BIG), backing(16), backing(2), backing(3)])


# --- the disk log ---------------------------------------------------------------

SECTORS, REGION = 4000, 64
REGIONS = -(-SECTORS // REGION)
BITS = (REGIONS + 63) // 64 * 8


def make_log(dirty, regions=REGIONS, magic=0x4d695272, version=2):
    bits = bytearray(BITS)
    for r in range(regions):
        if r not in dirty:
            bits[r // 8] |= 1 << r % 8
    return struct.pack("<IIQ", magic, version, regions).ljust(1024, b"\x5a") + bits


def read_log(path):
    """The regions that are not clean, and the rest of the log."""
    with open(path, "rb") as f:
        data = f.read()
    magic, version, regions = struct.unpack("<IIQ", data[:16])
    assert (magic, version, regions) == (0x4d695272, 2, REGIONS)
    bits = data[1024:1024 + BITS]
    assert not any(bits[r // 8] >> r % 8 & 1 for r in range(regions, BITS * 8))
    return {r for r in range(regions) if not bits[r // 8] >> r % 8 & 1}, data


def region(data, r):
    return data[r * REGION * SECTOR:(r + 1) * REGION * SECTOR]


def content(path, offset=0):
    with open(path, "rb") as f:
        return f.read()[offset * SECTOR:]


@pytest.mark.parametrize("dirty", [set(), {0}, {3, 4, 17, 61, 62}, set(range(REGIONS))], ids=len)
def test_both_copy_what_the_log_calls_dirty(kernel, fs, backing, work, dirty):
    """From the same log and legs, both leave the same log and legs: what is dirty is copied, no more."""
    a, b = pattern(SECTORS, 1), pattern(SECTORS, 2)
    sides = {}
    for side in ("theirs", "ours"):
        sides[side] = [backing(SECTORS + 5, a, f"{side}0"), backing(SECTORS + 7, bytes(7 * SECTOR) + b, f"{side}1"),
                       backing(16, make_log(dirty), f"{side}2")]
    line = f"0 {SECTORS} mirror disk 2 {{2}} {REGION} 2 {{0}} 0 {{1}} 7"
    kernel.run(f"""set -e
        echo '{line.format("$D0", "$D1", "$D2")}' | sed "s#.D0#$D0#;s#.D1#$D1#;s#.D2#$D2#" >t
        dmsetup create m t
        while ! dmsetup status m | grep -q ' {REGIONS}/{REGIONS} '; do sleep 0.1; done
        dmsetup remove --retry m""", sides["theirs"])
    dev = fs.mkdir("m", line.format(*map(quote, sides["ours"])))
    wait_status(dev, f" {REGIONS}/{REGIONS} 1 AA 3 disk .* A")
    dev.remove()
    for path in sides.values():
        assert read_log(path[2])[0] == set()
        after = content(path[1], 7)
        for r in range(REGIONS):
            assert region(after, r) == region(a if r in dirty else b, r), f"region {r}"
        assert content(path[0])[:SECTORS * SECTOR] == a
    assert content(sides["ours"][2]) == content(sides["theirs"][2])


def test_a_new_log_is_the_same(kernel, fs, backing):
    """On zeroes, and on rubbish with nosync or sync."""
    for how in ("nosync", "sync", ""):
        logs = [backing(16, bytes(5000) if not how else pattern(10, 3), f"log{i}{how}") for i in range(2)]
        legs = [backing(SECTORS, name=f"leg{i}{how}") for i in range(4)]
        line = f"0 {SECTORS} mirror disk {3 if how else 2} {{}} {REGION} {how} 2 {{}} 0 {{}} 0"
        script = line.format("$D0", "$D1", "$D2")
        kernel.run(f"""set -e
            dmsetup create m --table "{script}"
            while ! dmsetup status m | grep -q ' {REGIONS}/{REGIONS} '; do sleep 0.1; done
            dmsetup remove --retry m""", [logs[0], legs[0], legs[1]])
        dev = fs.mkdir("m" + how, line.format(*map(quote, [logs[1], legs[2], legs[3]])))
        wait_status(dev, f" {REGIONS}/{REGIONS} 1 AA ")
        dev.remove()
        assert content(logs[0]) == content(logs[1]), how


def test_what_a_killed_daemon_leaves(kernel, dmfs, backing):
    """The regions that were being written when it died are dirty; the kernel copies those and no other."""
    a = pattern(SECTORS, 1)
    legs = [backing(SECTORS, a, "leg0"), backing(SECTORS, a, "leg1")]
    log = backing(16, make_log(set()), "log")
    mount = dmfs()
    dev = mount.mkdir("m", f"0 {SECTORS} mirror disk 2 {quote(log)} {REGION} 2 {quote(legs[0])} 0 {quote(legs[1])} 0")
    written = {2, 30, 31}
    for r in written:
        dev.pwrite(pattern(3, 9), (r * REGION + 5) * SECTOR)
    mount.kill()
    mount.wait()
    dirty, _ = read_log(log)
    # a region that is not written to any more is cleaned a second or two later, so on a slow machine fewer
    assert dirty and dirty <= written
    # as if the second leg had missed all of it, and had rubbish elsewhere
    with open(legs[1], "r+b") as f:
        f.write(pattern(SECTORS, 5))
    want = content(legs[0])
    rubbish = content(legs[1])
    kernel.run(f"""set -e
        dmsetup create m --table "0 {SECTORS} mirror disk 2 $D2 {REGION} 2 $D0 0 $D1 0"
        while ! dmsetup status m | grep -q ' {REGIONS}/{REGIONS} '; do sleep 0.1; done
        dmsetup remove --retry m""", [*legs, log])
    after = content(legs[1])
    for r in range(REGIONS):
        assert region(after, r) == region(want if r in dirty else rubbish, r), f"region {r}"
    assert content(legs[0]) == want and read_log(log)[0] == set()


def test_kernel_lost_a_leg(kernel, fs, backing):
    """What the kernel's log says after a leg failed is what we copy when it is back."""
    a = pattern(SECTORS, 1)
    legs = [backing(SECTORS, a, "leg0"), backing(SECTORS, a, "leg1")]
    log = backing(16, make_log(set()), "log")
    out = kernel.run(f"""set -e
        dmsetup create leg --table "0 {SECTORS} linear $D1 0"
        dmsetup create m --table "0 {SECTORS} mirror disk 2 $D2 {REGION} 2 $D0 0 /dev/mapper/leg 0"
        dmsetup suspend leg; dmsetup load leg --table "0 {SECTORS} error"; dmsetup resume leg
        dd if=/dev/urandom of=/dev/mapper/m bs=512 seek=1300 count=90 oflag=direct 2>/dev/null
        dmsetup status m
        dmsetup suspend leg; dmsetup load leg --table "0 {SECTORS} linear $D1 0"; dmsetup resume leg
        dmsetup remove --retry m; dmsetup remove --retry leg""", [*legs, log]).out
    assert re.search(r" 1 A[DF] ", out), out
    dirty, _ = read_log(log)
    assert {20, 21} <= dirty
    dev = fs.mkdir("m", f"0 {SECTORS} mirror disk 2 {quote(log)} {REGION} 2 {quote(legs[0])} 0 {quote(legs[1])} 0")
    wait_status(dev, f" {REGIONS}/{REGIONS} 1 AA ")
    dev.remove()
    assert content(legs[0]) == content(legs[1]) != a
    assert read_log(log)[0] == set()


# --- status of failing legs -------------------------------------------------------

# (log and its parameters, legs that fail, what then happens, features)
FAILURES = {
    "write, second leg": ("core 2 64 nosync", "1", "write 100", ""),
    "write, first leg": ("core 2 64 nosync", "0", "write 100", ""),
    "write, second leg, keep_log": ("core 2 64 nosync", "1", "write 100", "2 handle_errors keep_log"),
    "write, both legs": ("core 2 64 nosync", "01", "write 100", ""),
    "write, both legs, keep_log": ("core 2 64 nosync", "01", "write 100", "2 handle_errors keep_log"),
    "read, first leg": ("core 2 64 nosync", "0", "read 0", ""),
    "read, first leg, handle_errors": ("core 2 64 nosync", "0", "read 0", "1 handle_errors"),
    "read, the other leg": ("core 2 64 nosync", "1", "read 0", ""),
    "copy to the second leg": ("core 1 1024", "1", "nothing", "1 handle_errors"),
    "copy from the first leg": ("core 1 1024", "0", "nothing", "1 handle_errors"),
}


SECTORS_L = 1024


def leg_table(i, broken, disk):
    return f"0 {SECTORS_L} error" if str(i) in broken else f"0 {SECTORS_L} linear {disk} 0"


def kernel_script(log, broken, what, features):
    first = broken if what == "nothing" else ""     # else they fail once the mirror is up
    lines = [f'dmsetup create leg{i} --table "{leg_table(i, first, f"$D{i}")}"' for i in range(2)]
    lines.append(f'dmsetup create m --table "0 {SECTORS_L} mirror {log} 2 /dev/mapper/leg0 0 /dev/mapper/leg1 0 {features}"')
    for i in range(2):
        lines.append(f'dmsetup suspend leg{i}; dmsetup load leg{i} --table "{leg_table(i, broken, f"$D{i}")}"; '
                     f"dmsetup resume leg{i}")
    verb, _, sector = what.partition(" ")
    if verb == "write":
        lines.append(f"dd if=/dev/zero of=/dev/mapper/m bs=512 count=1 seek={sector} oflag=direct 2>/dev/null "
                     "&& echo ok || echo failed")
    elif verb == "read":
        lines.append(f"dd if=/dev/mapper/m of=/dev/null bs=512 count=1 skip={sector} iflag=direct 2>/dev/null "
                     "&& echo ok || echo failed")
    else:
        lines.append("dmsetup wait m 0; echo ok")
    lines.append(r"dmsetup status m | sed -E 's/[0-9]+:[0-9]+/X/g'; dmsetup remove --retry m")
    lines.append("dmsetup remove --retry leg0; dmsetup remove --retry leg1; echo ====")
    return "\n".join(lines)


def on_dmfs(fs, disks, log, broken, what, features):
    first = broken if what == "nothing" else ""
    legs = [fs.mkdir(f"leg{i}", leg_table(i, first, quote(disks[i]))) for i in range(2)]
    dev = fs.mkdir("m", f"0 {SECTORS_L} mirror {log} 2 leg0 0 leg1 0 {features}")
    for i in range(2):
        legs[i].load(leg_table(i, broken, quote(disks[i])))
    verb, _, sector = what.partition(" ")
    result = "ok"
    try:
        with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
            if verb == "write":
                os.pwrite(fd, mmap.mmap(-1, SECTOR), int(sector) * SECTOR)
            elif verb == "read":
                os.preadv(fd, [mmap.mmap(-1, SECTOR)], int(sector) * SECTOR)
    except OSError:
        result = "failed"
    if verb == "nothing":
        wait_status(dev, "S")
    text = result + "\n" + re.sub(r"\bleg\d\b", "X", dev.status())
    dev.remove()
    for leg in legs:
        leg.remove()
    return text


def test_letters(kernel, fs, backing):
    """A leg that fails in each way: the same result of the I/O and the same status line."""
    disks = [backing(SECTORS_L) for _ in range(2)]
    theirs = kernel.run("set -e\n" + "\n".join(kernel_script(*case) for case in FAILURES.values()), disks).out
    theirs = theirs.split("====\n")
    assert len(theirs) == len(FAILURES) + 1
    wrong = []
    for (name, case), want in zip(FAILURES.items(), theirs):
        got = on_dmfs(fs, disks, *case)
        if [line.rstrip() for line in got.splitlines()] != [line.rstrip() for line in want.splitlines()]:
            wrong.append(f"{name}\n  kernel: {want!r}\n  dmfs:   {got!r}")
        assert re.match(r"(ok|failed)\n0 1024 mirror 2 X X \d+/\d+ 1 [ADSRF]{2} 1 core", want), want
    assert not wrong, "\n".join(wrong)
