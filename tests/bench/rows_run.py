# SPDX-License-Identifier: GPL-2.0-or-later
"""What dmfs-run costs the programs that run under it."""

import os
import statistics
import subprocess
import time

from benchlib import DIRECT_4K, row

DIRECTORIES, FILES = 500, 100


def tree(b):
    top = os.path.join(b.dir, "tree")
    for i in range(DIRECTORIES if not b.quick else 10):
        os.makedirs(os.path.join(top, f"d{i // 20}", f"d{i}"), exist_ok=True)
        for j in range(FILES):
            with open(os.path.join(top, f"d{i // 20}", f"d{i}", f"f{j}"), "wb"):
                pass
    return top


def seconds(*command):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return time.monotonic() - begin


def in_turns(rounds, one, other):
    """The median of one()/other(), measured beside each other; who is first takes turns, for the second has it warm."""
    ratios = []
    for turn in range(rounds + rounds % 2):
        if turn % 2:
            below = other()
            ratios.append(one() / below)
        else:
            ratios.append(one() / other())
    return statistics.median(ratios)


@row("run")
def run(b):
    """dmfs-run: a listing of 50,000 files, and I/O on an image and on a disk, beside the same without"""
    d = b.own_dmfs()
    disk = b.file("run.img")
    d.mkdir("run", f"0 {b.sectors()} linear {disk} 0")
    under = [os.path.join(b.build, "dmfs-run"), "-m", d.mountpoint, "-d", disk]
    rounds = 1 if b.quick else b.rounds
    turns = 2 if b.quick else 2 * rounds
    top = tree(b)
    for options in "-R", "-lR":
        ratio = in_turns(3 * rounds, lambda o=options: seconds(*under, "ls", o, top),
                         lambda o=options: seconds("ls", o, top))
        b.measure(f"ls {options}: of the time without", ratio, "", at_most=1.1)
    for name, path in ("image", d["run"].image), ("disk", disk):
        for job in DIRECT_4K:
            # many short ones: a run's speed differs from the next one's by more than what is asked for
            ratio = in_turns(turns, lambda p=path, j=job: b.fio(p, j, seconds=b.seconds / 2, under=under),
                             lambda p=path, j=job: b.fio(p, j, seconds=b.seconds / 2))
            b.measure(f"{job.name} on {name}: of the speed without", ratio, "", at_least=0.98)
