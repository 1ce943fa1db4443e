# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs.1: nothing is lost or left open in it, and its examples work, in a directory with a blank in its name."""

import os
import re
import shutil
import subprocess

import pytest

from mounted import SECTOR, build_dir

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
PAGE = os.path.join(TOP, "dmfs.1")

# What an example needs that is not here; its own tests run what it shows.
NOT_HERE = {"clone": "a file system to mount and an NBD server", "crypt": "a key in the keyring",
            "log-writes": "a file system", "multipath": "NBD servers", "verity": "a root digest",
            "snapshot-merge": "the quartet that contrib/examples makes"}


def plain(line):
    line = re.sub(r"\\f.", "", line)
    return line.replace(r"\-", "-").replace(r"\&", "").replace(r"\(aq", "'").replace(r"\e", "\\")


def sections():
    """{target: [lines]} of TARGETS."""
    with open(PAGE, encoding="utf-8") as f:
        text = f.read().split("\n.SH TARGETS\n")[1].split("\n.SH ")[0]
    parts = re.split(r"^\.SS (.*)$", text, flags=re.M)
    return {plain(name): body.split("\n") for name, body in zip(parts[1::2], parts[2::2])}


def examples():
    """(target, lines) of each text that is set as it is after the word Example."""
    for target, lines in sections().items():
        found, block = False, None
        for line in lines:
            found |= line.startswith("Example")
            if line == ".nf" and found:
                block = []
            elif line == ".fi" and block is not None:
                yield target, block
                block = None
            elif block is not None:
                block.append(plain(line.strip()))


def test_nothing_is_left_open():
    with open(PAGE, encoding="utf-8") as f:
        lines = f.read().split("\n")
    depth = 0
    for nr, line in enumerate(lines, 1):
        depth += (line == ".nf") - (line == ".fi")
        assert depth in (0, 1), f"line {nr}: .nf and .fi"
        assert not (line.startswith((".SS", ".SH")) and depth), f"line {nr}: a heading in an example"
    for target, body in sections().items():
        last = [line for line in body if line and line != ".PP"][-1]
        assert last in (".fi", ".RE") or re.search(r"[.:)]$", plain(last)), f"{target} ends with {last!r}"
        words = " ".join(plain(line) for line in body)
        assert not re.search(r"\bor (After|Messages|Metadata|Example)\b|; *$", words), f"{target}: a sentence has no end"


@pytest.mark.skipif(not shutil.which("man"), reason="no man")
def test_man_has_no_warnings():
    done = subprocess.run(["man", "-l", "--warnings", PAGE], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          timeout=300, check=True, env=os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "100"})
    assert done.stderr == ""


@pytest.mark.parametrize("target", sorted({target for target, _ in examples()} - set(NOT_HERE)))
def test_examples(fs, work, target):
    where = os.path.join(work, "a dir")
    os.mkdir(where)
    os.symlink(fs.mountpoint, os.path.join(where, "mnt"))
    for name, sectors in {"a": 1 << 19, "b": 1 << 19, "c": 1 << 19, "d": 1 << 19, "disk": 1 << 19, "disk.img": 1 << 19,
                          "base": 1 << 21, "cow": 1 << 20}.items():
        with open(os.path.join(where, name), "wb") as f:
            f.truncate(sectors * SECTOR)
    if target == "unstriped":
        fs.mkdir("striped", "0 524288 zero")
    for name, lines in examples():
        if name == target or (name, target) == ("thin-pool", "thin"):
            run(fs, where, [line.replace("/home/me/", "./") for line in lines])


def run(fs, where, lines):
    if re.match(r"\d+ \d+ [a-z]", lines[0]):        # a table
        script = "mkdir mnt/x && cat >mnt/x/table"
        text = "\n".join(lines) + "\n"
    else:
        made = {name for line in lines for name in re.findall(r"mnt/([\w-]+)/", line)} - set(fs.devices())
        made -= {name for line in lines if "mkdir" in line for name in re.findall(r"mnt/([\w-]+)", line)}
        script, text = "\n".join(["set -e", *(f"mkdir mnt/{name}" for name in sorted(made)), *lines]), ""
    done = subprocess.run(["/bin/sh", "-c", script], input=text, cwd=where, capture_output=True, text=True, timeout=300,
                          check=False, env=os.environ | {"PATH": f"{build_dir()}:{os.environ['PATH']}"})
    assert done.returncode == 0, f"{script}\n{text}\n{done.stdout}{done.stderr}"
    assert fs.devices()
