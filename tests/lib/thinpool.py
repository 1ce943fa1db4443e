# SPDX-License-Identifier: GPL-2.0-or-later
"""Thin pools for tests: a pool with its backing files, and userspace's tools that judge its metadata."""

import os
import shutil
import subprocess

import pytest

from mounted import SECTOR, quote

BS = 128                    # sectors of a block
BLOCK = BS * SECTOR
TOOLS = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def tool(name, *args, check=True):
    path = shutil.which(name, path=TOOLS)
    if not path:
        pytest.skip(f"no {name} (package thin-provisioning-tools)")
    done = subprocess.run([path, *map(str, args)], capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, f"{name} {args}: {done.stdout}{done.stderr}"
    return done


class Pool:
    """A pool device, its backing files, and thin devices in it."""

    def __init__(self, fs, backing, blocks=200, meta_sectors=8192, features="", low=0, bs=BS, fill=None, name="pool"):
        self.fs, self.blocks, self.bs, self.features, self.low = fs, blocks, bs, features, low
        self.meta = backing(meta_sectors)
        self.data = backing(blocks * bs, data=fill)
        self.dev = fs.mkdir(name, self.line())

    def line(self, blocks=None, features=None):
        return (f"0 {(blocks or self.blocks) * self.bs} thin-pool {quote(self.meta)} {quote(self.data)} {self.bs} "
                f"{self.low} {self.features if features is None else features}")

    def reload(self, **kw):
        self.dev.load(self.line(**kw))

    def message(self, text):
        return self.dev.message(text)

    def thin(self, ident, blocks=100, create=True, name=None, extra="", fs=None):
        if create:
            self.message(f"create_thin {ident}")
        return (fs or self.fs).mkdir(name or f"thin{ident}", f"0 {blocks * self.bs} thin {self.dev.name} {ident}{extra}")

    def snap(self, ident, origin, dev=None, blocks=100):
        if dev:
            dev.suspend()
        self.message(f"create_snap {ident} {origin}")
        if dev:
            dev.resume()
        return self.thin(ident, blocks, create=False)

    def status(self):
        words = self.dev.status().split()
        keys = ("start", "length", "type", "transaction", "meta", "data", "held", "mode", "discard", "no_space", "check",
                "meta_low")
        return dict(zip(keys, words[:12]))

    def used(self):
        return int(self.status()["data"].split("/")[0])

    def close(self):
        """Removes all devices; then the metadata must be clean."""
        for name in self.fs.devices():
            if name != self.dev.name:
                self.fs[name].remove()
        self.dev.remove()
        tool("thin_check", self.meta)
