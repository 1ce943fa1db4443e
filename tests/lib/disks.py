# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-open, run on a mounted dmfs; and md superblocks by hand (linux/raid/md_p.h)."""

import hashlib
import json
import os
import random
import struct
import subprocess

from mounted import SECTOR

MD_MAGIC = 0xa92b4efc


class Opened:
    def __init__(self, fs, text, stderr):
        self.fs, self.stderr = fs, stderr
        self.devices = {d["name"]: d for d in json.loads(text)["devices"]}

    def __getitem__(self, name):
        return self.devices[name]

    def types(self):
        return {d["name"]: d["fstype"] for d in self.devices.values()}

    def read(self, name):
        with open(self[name]["image"], "rb") as f:
            return f.read()

    def of_type(self, kind):
        return [d for d in self.devices.values() if d["type"] == kind]


class Opener:
    """Opens images that cannot be written, and sees that nothing was."""

    def __init__(self, program, fs):
        self.program, self.fs, self.sums = program, fs, {}

    def run(self, *args, given=b"", check=True, env=None):
        done = subprocess.run([self.program, *map(str, args)], input=given, capture_output=True, timeout=300,
                              env=os.environ | {"DMFS_MOUNT": self.fs.mountpoint} | (env or {}))
        if check is True:
            assert done.returncode == 0, f"{args}: {done.returncode}: {done.stderr.decode()}"
        elif check is not False:
            assert done.returncode == check, f"{args}: {done.returncode}: {done.stderr.decode()}"
        return done

    def open(self, *args, given=b"", check=True, write=False):
        images = [a for a in args if os.path.isfile(str(a)) and not str(a).endswith(".key")]
        for image in images:
            if not write:
                os.chmod(image, 0o444)
                self.sums.setdefault(image, digest(image))
        done = self.run("--json", *(["-w"] if write else []), *args, given=given, check=check)
        return Opened(self.fs, done.stdout, done.stderr.decode())

    def close(self, *images):
        self.run("--close", *images)
        if not images:
            assert self.fs.devices() == []
        for image, before in self.sums.items():
            assert digest(image) == before, f"{image} was written to"


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha1").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha1(f.read()).hexdigest()


# --- md ---------------------------------------------------------------------------------------------


def _sum(block, at, odd=b""):
    words = struct.unpack(f"<{len(block) // 4}I", block[:len(block) // 4 * 4])
    total = sum(words) - words[at // 4] + sum(block[len(block) // 4 * 4:][0:1] + odd)
    tail = block[len(block) // 4 * 4:]
    if len(tail) >= 2:
        total += struct.unpack("<H", tail[:2])[0] - tail[0]
    return ((total & 0xffffffff) + (total >> 32)) & 0xffffffff


def md_super(role, disks, level, size, *, layout=0, chunk=128, data_offset=2048, data_size=None, events=10, number=None,
             features=0, at=8, roles=None, name=b"host:arr", uuid=bytes(range(16)), resync=2**64 - 1):
    """A superblock of version 1.x; role and layout and all sizes in md's units, sectors."""
    roles = list(range(disks)) if roles is None else roles
    sb = bytearray(256 + 2 * len(roles))
    struct.pack_into("<IIII16s32sQ", sb, 0, MD_MAGIC, 1, features, 0, uuid, name, 0)
    struct.pack_into("<iIQIII", sb, 72, level, layout, size, chunk, disks, 0)
    struct.pack_into("<QQQ", sb, 128, data_offset, size if data_size is None else data_size, at)
    struct.pack_into("<I", sb, 160, role if number is None else number)
    struct.pack_into("<QQIII", sb, 200, events, resync, 0, len(roles), 0)
    struct.pack_into(f"<{len(roles)}H", sb, 256, *roles)
    struct.pack_into("<I", sb, 216, _sum(sb, 216))
    return bytes(sb)


def md_member(path, data, sb, at=8, data_offset=2048, tail=64):
    """A member's file: its superblock, and its data."""
    with open(path, "wb") as f:
        f.seek(at * SECTOR)
        f.write(sb)
        f.seek(data_offset * SECTOR)
        f.write(data)
        f.truncate(data_offset * SECTOR + len(data) + tail * SECTOR)
    return path


def content(length, seed):
    return random.Random(seed).randbytes(length)


def same(a, b):
    """Whether they are equal, without pytest printing where not."""
    return len(a) == len(b) and hashlib.sha1(a).digest() == hashlib.sha1(b).digest()


def put(path, contents):
    with open(path, "r+b") as f:
        for sector, data in contents.items():
            f.seek(sector * SECTOR)
            f.write(data)


def raid5(work, disks=3, chunks=6, bad=None, **kw):
    """Members of a left-symmetric raid5 and what it holds; bad(n): changes of member n's superblock."""
    chunk = 8 * SECTOR
    data = content(chunk * chunks * (disks - 1), 9)
    members = [bytearray() for _ in range(disks)]
    for row in range(chunks):
        parts = [data[(row * (disks - 1) + k) * chunk:(row * (disks - 1) + k + 1) * chunk] for k in range(disks - 1)]
        parity = bytes(a ^ b for a, b in zip(*parts)) if disks == 3 else None
        p = disks - 1 - row % disks
        for d in range(disks):
            members[d] += parity if d == p else parts[(d - p - 1) % disks]
    paths = []
    for n, body in enumerate(members):
        sb = md_super(n, disks, 5, chunks * 8, layout=2, chunk=8, **(kw | (bad(n) if bad else {})))
        paths.append(md_member(os.path.join(work, f"m{n}"), body, sb))
    return paths, data
