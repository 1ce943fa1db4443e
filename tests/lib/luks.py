# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks, run on a mounted dmfs."""

import os
import re
import subprocess

from mounted import Device

QUICK = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


class Luks:
    def __init__(self, program, fs):
        self.program, self.fs = program, fs

    def run(self, *args, given=b"", check=True, mount=True, env=None):
        cmd = [self.program, *(["-m", self.fs.mountpoint] if mount else []), *map(str, args)]
        done = subprocess.run(cmd, input=given, capture_output=True, timeout=240,
                              env={k: v for k, v in os.environ.items() if k != "DMFS_MOUNT"} | (env or {}))
        if check:
            assert done.returncode == 0, f"{cmd}: {done.stderr.decode()}"
        return done

    def open(self, path, name, *args, given=b"sesame\n", check=True):
        done = self.run("open", path, name, *args, given=given, check=check)
        return Device(self.fs, name) if check else done

    def format(self, path, *args, given=b"sesame\n", size="20M"):
        self.run("format", path, *(["--size", size] if size else []), *QUICK, *args, given=given)

    def refuse(self, *args, match, given=b"sesame\n", code=None, **kw):
        before = sorted(os.listdir(self.fs.mountpoint))
        done = self.run(*args, given=given, check=False, **kw)
        text = done.stderr.decode()
        assert done.returncode in ([code] if code else [1, 2, 4, 5]), f"{args}: {done.returncode}: {text}"
        assert re.search(match, text), f"{args}: {text}"
        assert text.count("\n") == 1 and b"sesame" not in done.stderr
        assert sorted(os.listdir(self.fs.mountpoint)) == before
        return text
