# SPDX-License-Identifier: GPL-2.0-or-later
"""era beside the kernel's: the lines taken, the text printed, and metadata handed back and forth."""

import os
import re
import shutil
import subprocess

import pytest

from mounted import SECTOR, pattern, quote

SECTORS, BLOCK = 8192, 64


def test_lines(kernel, fs, backing):
    # each fresh: the n-th line finds what the one before has left
    lines = [f"0 {SECTORS} era $D0 $D1 64", f"0 {SECTORS} era $D0 $D1 64", f"0 4096 era $D2 $D1 8",
             f"0 {SECTORS} era $D2 $D1 8", f"0 {SECTORS} era $D0 $D1 128", "0 4096 era $D0 $D1 64",
             f"0 {SECTORS} era $D0 $D1", f"0 {SECTORS} era $D0 $D1 64 x", f"0 {SECTORS} era $D0 $D1 0",
             f"0 {SECTORS} era $D0 $D1 12", f"0 {SECTORS} era $D0 $D1 x", f"0 {SECTORS} era $D0 $D1 -8",
             f"0 {SECTORS} era /nonexistent $D1 64", f"0 {SECTORS} era $D0 /nonexistent 64",
             "0 8 era"]
    theirs = [backing(2048), backing(SECTORS), backing(2048)]
    ours = [backing(2048), theirs[1], backing(2048)]
    answers = list(zip(lines, kernel.tables(lines, theirs), kernel.tables_dmfs(fs, lines, ours)))
    for line, k, d in answers:
        assert k.accepted == d.accepted and k.table == d.table, (line, k, d)
        # how much metadata is in use is a matter of when old eras are digested
        used = [re.sub(r" 8 \d+/", " 8 N/", a.status) for a in (k, d)]
        assert used[0] == used[1], (line, k, d)


def era_of_blocks(meta):
    tool = shutil.which("era_dump", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not tool:
        pytest.skip("no era_dump (package thin-provisioning-tools)")
    subprocess.run([tool.replace("era_dump", "era_check"), meta], check=True, capture_output=True, timeout=60)
    out = subprocess.run([tool, "--logical", meta], check=True, capture_output=True, text=True, timeout=60).stdout
    return dict(re.findall(r'<era block="(\d+)" era="(\d+)"', out)), re.search(r'current_era="(\d+)"', out).group(1)


def test_there_and_back(kernel, fs, backing):
    """Writes and checkpoints by turns: each side goes on with the other's eras, and drops the other's metadata snapshot."""
    meta, origin = backing(2048), backing(SECTORS)
    expected = {}

    def ours(blocks, era):
        dev = fs.mkdir("e", f"0 {SECTORS} era {quote(meta)} {quote(origin)} {BLOCK}")
        assert dev.status().split()[5] == str(era)
        for b in blocks:
            dev.pwrite(pattern(8, b), b * BLOCK * SECTOR, sync=True)
            expected[b] = era
        dev.message("checkpoint")
        dev.pwrite(pattern(8, 1), 0, sync=True)
        expected[0] = era + 1
        if dev.status().split()[6] != "-":
            dev.message("drop_metadata_snap")
        dev.message("take_metadata_snap")
        dev.remove()

    def theirs(blocks, era):
        writes = "".join(f"dd if=/dev/urandom of=/dev/mapper/e bs=512 count=8 seek={b * BLOCK} oflag=direct conv=notrunc "
                         "2>/dev/null\n" for b in blocks)
        kernel.run(f"""set -e
            dmsetup create e --table "0 {SECTORS} era $D0 $D1 {BLOCK}"
            [ $(dmsetup status e | cut -d' ' -f6) = {era} ]
            {writes}
            dmsetup message e 0 checkpoint
            dmsetup message e 0 drop_metadata_snap
            dmsetup message e 0 take_metadata_snap
            dmsetup remove --retry e""", [meta, origin])
        expected.update({b: era for b in blocks})

    ours([3, 5, 127], 1)
    theirs([5, 6], 4)
    ours([6, 7], 7)
    eras, current = era_of_blocks(meta)
    assert current == "9"
    assert {int(b): int(e) for b, e in eras.items() if e != "0"} == expected


def test_a_crash_of_the_kernels(kernel, fs, backing):
    """Power off with a writeset that is not archived: ours archives it."""
    meta, origin = backing(2048), backing(SECTORS)
    kernel.run(f"""set -e
        dmsetup create e --table "0 {SECTORS} era $D0 $D1 {BLOCK}"
        dd if=/dev/urandom of=/dev/mapper/e bs=512 count=8 seek={9 * BLOCK} oflag=direct conv=notrunc 2>/dev/null
        sync; echo $? >rc; echo o >/proc/sysrq-trigger; sleep 60""", [meta, origin], check=False)
    fs.mkdir("e", f"0 {SECTORS} era {quote(meta)} {quote(origin)} {BLOCK}").remove()
    eras, current = era_of_blocks(meta)
    assert eras["9"] == "1" and current == "2"
