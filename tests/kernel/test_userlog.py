# SPDX-License-Identifier: GPL-2.0-or-later
"""userspace dirty logs beside the kernel's: the same requests with the same data, the same texts."""

import collections
import mmap
import os
import shlex
import sys

import pytest

import log_server
from log_server import Server
from mounted import SECTOR, pattern, quote

SECTORS, REGION, REGIONS, OUT_OF_SYNC = 2000, 64, 32, 3
POLLED = {"GET_SYNC_COUNT", "STATUS_INFO"}      # how often depends on time
# What is in order in the one is not always in the other, and a question may be asked again
ORDERED = {"CTR", "GET_REGION_SIZE", "RESUME", "PRESUSPEND", "POSTSUSPEND", "DTR"}
WORDS = "{}clustered-core 64 nosync what else"


def on_kernel(kernel, disks, flags):
    """[(status, table, [(name, uuid, data)])] for each flag of the log, in one guest."""
    server = shlex.quote(log_server.__file__)
    script = ["set -e", "export PYTHONPATH=" + shlex.quote(os.path.dirname(log_server.__file__))]
    for i, flag in enumerate(flags):
        words = WORDS.format(flag)
        n = len(words.split()) + 1
        script.append(f"""
            python3 {server} seen{i} {REGION} {REGIONS} {OUT_OF_SYNC} & server=$!
            until grep -qs READY seen{i}; do sleep 0.05; done
            dmsetup create m --table "0 {SECTORS} mirror userspace {n} my-uuid {words} 2 $D{2 * i} 0 $D{2 * i + 1} 0"
            until [ $(grep -c SET_REGION_SYNC seen{i}) = {OUT_OF_SYNC} ]; do sleep 0.05; done
            dd if=/dev/zero of=/dev/mapper/m bs=512 seek={20 * REGION} count=1 oflag=direct 2>/dev/null
            dd if=/dev/mapper/m of=/dev/null bs=512 skip={25 * REGION} count=1 iflag=direct 2>/dev/null
            echo "=status"; dmsetup status m; echo "=table"; dmsetup table m
            dmsetup remove --retry m
            kill $server; wait $server || true
            echo "=seen"; grep -v READY seen{i}; echo "=end" """)
    out = kernel.run("\n".join(script), disks).out
    results = []
    for part in out.split("=status\n")[1:]:
        status, rest = part.split("=table\n")
        table, rest = rest.split("=seen\n")
        seen = [tuple(line.split()) for line in rest.split("=end")[0].splitlines() if line.strip()]
        results.append((status, table, [s for s in seen if len(s) == 3]))
    return results


def on_dmfs(dmfs, disks, flag):
    s = Server(region_sectors=REGION, regions=REGIONS)
    s.sync -= set(range(OUT_OF_SYNC))
    try:
        words = WORDS.format(flag)
        dev = dmfs(options=f"log_server={s.socket}").mkdir(
            "m", f"0 {SECTORS} mirror userspace {len(words.split()) + 1} my-uuid {words} 2 "
                 + " ".join(f"{quote(d)} 0" for d in disks))
        s.wait_for(lambda seen: sum(m.name == "SET_REGION_SYNC" for m in seen) == OUT_OF_SYNC)
        buf = mmap.mmap(-1, SECTOR)
        with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
            os.pwrite(fd, buf, 20 * REGION * SECTOR)
            os.preadv(fd, [buf], 25 * REGION * SECTOR)
        s.wait_for(lambda seen: seen[-1].name == "STATUS_INFO")
        status, table = dev.status(), dev.table()
        dev.remove()
        s.wait_for(lambda seen: seen[-1].name == "DTR")
        return status, table, [(m.name, m.uuid.hex(), m.data.hex() or "-") for m in s.seen]
    finally:
        s.close()


def payloads(seen):
    """{name: the regions, or data, it was ever sent with}."""
    found = collections.defaultdict(set)
    for name, _, data in seen:
        if name in ("MARK_REGION", "CLEAR_REGION", "FLUSH") and data != "-":
            found[name] |= {data[i:i + 16] for i in range(0, len(data), 16)}    # groups differ
        elif name not in POLLED:
            found[name].add(data)
    return found


def test_requests(kernel, dmfs, backing):
    flags = ("", "integrated_flush ")
    theirs = on_kernel(kernel, [backing(SECTORS, pattern(SECTORS, i)) for i in range(4)], flags)
    assert len(theirs) == len(flags)
    for flag, (status, table, seen) in zip(flags, theirs):
        ours = on_dmfs(dmfs, [backing(SECTORS, pattern(SECTORS, i)) for i in range(2)], flag)
        assert {u for _, u, _ in ours[2]} == {u for _, u, _ in seen}
        assert [n for n, _, _ in ours[2] if n in ORDERED] == [n for n, _, _ in seen if n in ORDERED]
        want, got = payloads(seen), payloads(ours[2])
        assert set(got) == set(want), (sorted(got), sorted(want))
        for name in want:
            # the kernel asks about regions when it writes and copies; we do when we read, too
            if name in ("IN_SYNC", "FLUSH"):
                assert got[name] >= want[name] - {"-"}, name
            else:
                assert got[name] == want[name], name
        assert ours[1].split(" 2 /")[0] == table.split(" 2 98:")[0]
        assert ours[0].split()[6:] == status.split()[6:], (ours[0], status)


@pytest.mark.skipif(sys.byteorder != "little", reason="the kernel's numbers are the host's")
def test_lines_are_refused_alike(kernel, fs, backing):
    """Those that need no server to be wrong."""
    kernel.compare(fs, [f"0 2000 mirror userspace {args} 2 $D0 0 $D1 0" for args in (
        "0", "1 uuid", "2 uuid clustered-core", f"3 {'u' * 129} clustered-core 64", "9 uuid clustered-core 64")],
        [backing(2000), backing(2000)])
