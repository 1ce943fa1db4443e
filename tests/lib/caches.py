# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache for tests: its three files, its table line, its status, and what the tools say of its metadata."""

import mmap
import os
import re
import subprocess

from mounted import SECTOR, pattern, quote, until

BLOCK = 64                  # sectors
BYTES = BLOCK * SECTOR
FAST = 32                   # blocks
ALIGNED = mmap.mmap(-1, 4096)
SECTORS = 16384             # of the origin: 256 blocks


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class Status:
    """The words of an info line."""

    def __init__(self, line):
        w = line.split()
        assert w[2] == "cache", line
        self.used, self.total = (int(n) for n in w[4].split("/"))
        self.resident, self.blocks = (int(n) for n in w[6].split("/"))
        (self.read_hits, self.read_misses, self.write_hits, self.write_misses, self.demotions, self.promotions,
         self.dirty) = (int(n) for n in w[7:14])
        n = int(w[14])
        self.features, rest = w[15:15 + n], w[15 + n:]
        self.threshold, self.policy, self.mode, self.check = rest[2], rest[3], rest[-2], rest[-1]


class Cache:
    """cache.load(FEATURES, POLICY): the device; cache.st(): its status; cache.until(CONDITION) waits for one."""

    def __init__(self, fs, backing, tool):
        self.tool = tool
        self.meta, self.fast, self.origin = backing(4096), backing(FAST * BLOCK), backing(SECTORS)
        self.dev = fs.mkdir("c")

    def line(self, features="", policy="smq 0", sectors=SECTORS, block=BLOCK, meta=None, fast=None, origin=None):
        devs = " ".join(quote(d) for d in (meta or self.meta, fast or self.fast, origin or self.origin))
        return f"0 {sectors} cache {devs} {block} {len(features.split())} {features} {policy}".replace("  ", " ")

    def load(self, *args, **kw):
        self.dev.load(self.line(*args, **kw))
        return self.dev

    def st(self):
        return Status(self.dev.status())

    def until(self, condition, deadline=300):
        until(lambda: condition(self.st()), self.dev.status, deadline)
        return self.st()

    def write(self, block, seed, blocks=1):
        self.dev.pwrite(pattern(BLOCK * blocks, seed), block * BYTES, sync=True)

    def dump(self):
        """The metadata of a moment when nothing is written."""
        self.dev.suspend()
        xml = run(self.tool("cache_dump"), self.meta)
        self.dev.resume()
        return xml

    def check(self):
        """The metadata, if there are any."""
        if os.path.getsize(self.meta) and open(self.meta, "rb").read(4096) != bytes(4096):
            run(self.tool("cache_check"), self.meta)

    def close(self):
        self.dev.remove()
        run(self.tool("cache_check"), self.meta)
        return run(self.tool("cache_dump"), self.meta)


def at(path, block, blocks=1):
    with open(path, "rb") as f:
        f.seek(block * BYTES)
        return f.read(blocks * BYTES)


def mappings(xml):
    return {int(o): (int(c), d == "true") for c, o, d in
            re.findall(r'cache_block="(\d+)" origin_block="(\d+)" dirty="(\w+)"', xml)}


def keep_dirty(cache):
    cache.dev.message("migration_threshold 0")


def warm(cache, blocks):
    """Reads these until all of them are in the cache."""
    def resident(st):
        with cache.dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
            for b in blocks:
                os.preadv(fd, [ALIGNED], b * BYTES)
        return st.resident >= len(blocks)
    cache.until(resident)
