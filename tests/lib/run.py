# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs made for the kernel's device mapper, under dmfs-run."""

import os
import re
import shutil
import subprocess

import pytest

from mounted import pattern

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
# what LVM says to everybody who is not root, and says of descriptors it inherits
HARMLESS = re.compile(r"^\s*WARNING: Running as a non-root user\. Functionality may be unavailable\.\n"
                      r"|^File descriptor .* leaked on .*\n", re.M)
FAST = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


class Run:
    """run("dmsetup", "ls") runs it with disks as /dev/NAME; it must succeed and say nothing on stderr."""

    def __init__(self, fs, program, work, disks=()):
        self.fs, self.program, self.disks = fs, program, list(disks)
        self.runtime = os.path.join(work, "runtime")
        os.makedirs(self.runtime, mode=0o700, exist_ok=True)
        self.env = os.environ | {"PATH": PATH, "LC_ALL": "C", "XDG_RUNTIME_DIR": self.runtime, "TERM": "dumb",
                                 "LVM_SUPPRESS_FD_WARNINGS": "1"}

    def argv(self, *command):
        return [self.program, "-m", self.fs.mountpoint, *(w for d in self.disks for w in ("-d", d)), "--", *command]

    def raw(self, *command, given=None, **kw):
        kw = {"capture_output": True, "timeout": 120, "env": self.env} | kw
        if given is None and "stdin" not in kw:
            kw["stdin"] = subprocess.DEVNULL
        given = given.encode() if isinstance(given, str) else given
        done = subprocess.run(self.argv(*command), input=given, **kw)
        done.stdout, done.stderr = (out.decode("utf-8", "replace") for out in (done.stdout, done.stderr))
        return done

    def __call__(self, *command, given=None, quiet=True, **kw):
        if not shutil.which(command[0], path=PATH):
            pytest.skip(f"no {command[0]} here")
        done = self.raw(*command, given=given, **kw)
        said = HARMLESS.sub("", done.stderr)
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stdout}{done.stderr}"
        assert not (quiet and said), f"{' '.join(command)}: says {said}"
        return done.stdout

    def fails(self, *command, match, given=None):
        done = self.raw(*command, given=given)
        assert done.returncode != 0, done.stdout + done.stderr
        assert re.search(match, done.stdout + done.stderr), done.stdout + done.stderr
        return done.stderr

    def python(self, program, *args, **kw):
        """A Python program of the system: it calls libc as any program does."""
        return self("/usr/bin/python3", "-c", program, *args, **kw)


def needs(*programs):
    for name in programs:
        if not shutil.which(name, path=PATH):
            pytest.skip(f"no {name} here")


def needs_targets(fs, *types):
    there = {line.split()[0] for line in fs.read("targets").splitlines()}
    for name in types:
        if name not in there:
            pytest.skip(f"this dmfs has no {name} target")


def fields(text):
    """What a status of cryptsetup and its like says, by names."""
    return dict(re.findall(r"^\s+([\w ]+):\s+(.*)$", text, re.M))


def filled(run, name, sectors=512):
    """Writes a pattern to /dev/mapper/NAME by its name, and returns it."""
    data = pattern(sectors, 7)
    run.python("import sys; f = open(sys.argv[1], 'r+b'); f.write(sys.stdin.buffer.read())", f"/dev/mapper/{name}",
               given=data)
    return data
