# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-open: a disk with 128 partitions, a group with 2,000 volumes."""

import os
import statistics
import subprocess
import time

import lvm
from benchlib import MIB, Skip, program, row


def opened(b, path, count):
    """Seconds that opening takes, each time anew."""
    tool, mount, took = os.path.join(b.build, "dmfs-open"), b.dmfs().mountpoint, []
    if not os.access(tool, os.X_OK):
        raise Skip("no dmfs-open in the build (libblkid-dev)")
    for _ in range(1 if b.quick else b.rounds):
        start = time.monotonic()
        out = subprocess.run([tool, "-m", mount, path], check=True, capture_output=True, text=True).stdout
        took.append(time.monotonic() - start)
        assert out.count("\n") == count + 2
        subprocess.run([tool, "-m", mount, "--close", path], check=True)
    return statistics.median(took)


@row("open-partitions")
def partitions(b):
    """a GPT with 128 partitions"""
    path = os.path.join(b.dir, "partitions.img")
    with open(path, "wb") as f:
        f.truncate(160 * MIB)
    subprocess.run([program("sfdisk", "fdisk"), "-q", path], input="label: gpt\n" + "size=1M\n" * 128, text=True, check=True)
    b.measure("seconds to open it", opened(b, path, 128), "s", at_most=2)
    os.unlink(path)


@row("open-volumes")
def volumes(b):
    """LVM2: a group with 2,000 volumes"""
    path = os.path.join(b.dir, "volumes.img")
    lvs = {f"lv{n}": lvm.linear(1, n) for n in range(2000)}
    lvm.make(path, 0, lvm.group(lvs, pe_count=2000), pe_count=2000)
    b.measure("seconds to open it", opened(b, path, 2000), "s", at_most=2)
    os.unlink(path)
