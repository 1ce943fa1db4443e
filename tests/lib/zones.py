# SPDX-License-Identifier: GPL-2.0-or-later
"""Zoned disks that are files, for tests: made and looked at with dmfs-zone."""

import os
import re
import subprocess

from mounted import SECTOR, build_dir

LINE = re.compile(r"  start: 0x([0-9a-f]{9,}), len 0x([0-9a-f]{6,}), cap 0x([0-9a-f]{6,}), wptr 0x([0-9a-f]{6,}) reset:0 "
                  r"non-seq:0, zcond:([ \d]\d)\((\w\w)\) \[type: (\d)\((\w+)\)\]")


class Zone:
    def __init__(self, line):
        found = LINE.fullmatch(line)
        assert found, line
        self.start, self.len, self.cap, self.wptr = (int(found.group(i), 16) for i in range(1, 5))
        self.condition, self.type = found.group(6), int(found.group(7))


def run(*args, check=True, **kw):
    done = subprocess.run([os.path.join(build_dir(), "dmfs-zone"), *map(str, args)], capture_output=True, text=True,
                          timeout=300, **kw)
    if check:
        assert done.returncode == 0, f"dmfs-zone {args}: {done.stdout}{done.stderr}"
    return done


def make(path, zones, zone_sectors, conventional, *options):
    """A zoned disk of so many zones; its path."""
    run("format", path, f"--size={zones * zone_sectors * SECTOR}", f"--zone-size={zone_sectors * SECTOR}",
        f"--conventional={conventional}", *options)
    return path


def parse(text):
    return [Zone(line) for line in text.splitlines() if line and not line.startswith("#")]


def report(target, *options, **kw):
    return parse(run("report", target, *options, **kw).stdout)
