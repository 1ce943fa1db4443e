# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks, run on a mounted dmfs."""

import hashlib
import json
import os
import re
import struct
import subprocess

from mounted import Device

SILENT = re.compile(r"^.*: whether it is in use there is not known, as these do not answer: .*\n", re.M)
QUICK = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


class Luks:
    def __init__(self, program, fs):
        self.program, self.fs = program, fs

    def run(self, *args, given=b"", check=True, mount=True, env=None):
        cmd = [self.program, *(["-m", self.fs.mountpoint] if mount else []), *map(str, args)]
        done = subprocess.run(cmd, input=given, capture_output=True, timeout=300,
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
        # it looks at every mount of this machine, and a test beside this one may have stopped one
        text = SILENT.sub("", done.stderr.decode())
        assert done.returncode in ([code] if code else [1, 2, 4, 5]), f"{args}: {done.returncode}: {text}"
        assert re.search(match, text), f"{args}: {text}"
        assert text.count("\n") == 1 and b"sesame" not in done.stderr, text
        assert sorted(os.listdir(self.fs.mountpoint)) == before
        return text


def cryptsetup(tool, command, *args, given=b"", check=True):
    """Without locks, which are root's; quick where it derives a key."""
    quick = QUICK if command in ("luksFormat", "luksAddKey", "reencrypt") else []
    return subprocess.run([tool("cryptsetup"), command, "-q", "--disable-locks", *quick, *map(str, args)], input=given,
                          capture_output=True, check=check, timeout=300)


def edit_luks2(path, change):
    """Lets change(metadata) alter both copies of a LUKS2 header's metadata, with checksums that are right."""
    with open(path, "r+b") as f:
        size = struct.unpack(">8xQ", f.read(16))[0]
        for at in (0, size):
            f.seek(at)
            header = bytearray(f.read(size))
            metadata = json.loads(header[4096:].split(b"\0")[0])
            change(metadata)
            header[4096:] = json.dumps(metadata, separators=(",", ":")).encode().ljust(size - 4096, b"\0")
            header[448:512] = bytes(64)
            header[448:480] = hashlib.sha256(header).digest()
            f.seek(at)
            f.write(header)
