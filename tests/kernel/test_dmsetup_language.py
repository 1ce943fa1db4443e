# SPDX-License-Identifier: GPL-2.0-or-later
"""One script, spoken to the kernel by dmsetup and to dmfs by dmfsctl called as dmsetup: the same output, errors, codes.

What must differ is made equal first: the kernel's major number is any and ours 0, it prints MAJ:MIN for a device in a
table where we print names and paths, and we add what `error` says ("dmfs: ..." on stderr).  Where dmstats 1.02.185 is plainly wrong (it prints uninitialised
numbers for a region's area, and crashes on some reports) we do not follow it, and do not ask it.
"""

import os
import re
import subprocess
import tempfile

import pytest

import uml
from dmsetup_scripts import SCRIPTS
from equal_texts import difference, kernel_text, our_text, split
from mounted import SECTOR

PRELUDE = r"""
n=0
show() {        # no more processes than must be: the guest is slow at making them
    local rc=$? lines line
    mapfile -t lines <"$WORK/so"
    for line in "${lines[@]}"; do printf '1|%s\n' "$line"; done
    mapfile -t lines <"$WORK/se"
    for line in "${lines[@]}"; do
        [[ $line != Usage: ]] || break
        printf '2|%s\n' "$line"
    done
    echo "= $rc"
}
t() {
    printf '$ %d %s\n' $((++n)) "$*"
    "$@" >"$WORK/so" 2>"$WORK/se" </dev/null
    show
}
d() { t dmsetup "$@"; }
# the first word is the standard input
p() {
    local text=$1; shift
    printf '$ %d %s <<< %s\n' $((++n)) "$*" "$text"
    printf "$text" | dmsetup "$@" >"$WORK/so" 2>"$WORK/se"
    show
}
"""


@pytest.fixture(scope="module")
def theirs():
    """What the kernel says to each script: one boot for all of them."""
    why = uml.why_not()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="dmfs-language-") as work:
        disks = [os.path.join(work, f"disk{i}") for i in range(2)]
        for disk in disks:
            with open(disk, "wb") as f:
                f.truncate(8192 * SECTOR)
        all_scripts = "".join(f"""echo '=== {name}'
mkdir "$WORK/{name}"; cd "$WORK/{name}"
( WORK=$PWD
{PRELUDE}{text} )
dmsetup remove_all
""" for name, (text, _) in SCRIPTS.items())
        major = "MAJOR=$(awk '$2 == \"device-mapper\" { print $1 }' /proc/devices)\necho \"=== major\n$MAJOR\"\n"
        out = uml.run(major + all_scripts + "exit 0\n", disks, timeout=600).out
    parts = re.split(r"^=== (\w+)\n", out, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def library_version():
    done = subprocess.run(["dmsetup", "version"], text=True, capture_output=True,
                          env=os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    return tuple(int(n) for n in re.search(r"Library version:\s*([\d.]+)", done.stdout).group(1).split("."))


@pytest.mark.parametrize("name", SCRIPTS)
def test_language(name, theirs, fs, tool, backing, work):
    text, minors = SCRIPTS[name]
    if name == "statistics_groups" and library_version() > (1, 2, 185):
        pytest.skip("this dmsetup names a group's regions by their numbers and quotes the alias; ours is 1.02.185's way")
    disks = [backing(8192) for _ in range(2)]
    bindir = os.path.join(work, "bin")
    os.mkdir(bindir)
    for called in "dmsetup", "dmstats":
        os.symlink(tool("dmfsctl"), os.path.join(bindir, called))
    done = subprocess.run(["/bin/bash", "-c", PRELUDE + text + "exit 0\n"], cwd=work, text=True, capture_output=True,
                          timeout=600, stdin=subprocess.DEVNULL,
                          env=os.environ | {"PATH": bindir + ":" + os.environ["PATH"], "LC_ALL": "C", "WORK": work,
                                            "DMFS_MOUNT": fs.mountpoint, "MAJOR": "0", "D0": disks[0], "D1": disks[1]})
    assert done.returncode == 0, done.stderr
    kernel, ours = split(kernel_text(theirs[name], theirs["major"].strip())), split(our_text(done.stdout, disks, minors))
    wrong = [difference(k, o) for k, o in zip(kernel, ours) if k != o]
    assert not wrong, "\n".join(wrong)
    assert len(kernel) == len(ours) > 10, done.stderr


def through_run(text, majors, n_disks=2):
    """What the real dmsetup printed under dmfs-run, as the kernel's; majors: of the device mapper and of disks."""
    for i in range(n_disks):
        text = re.sub(rf"\b{majors[1]}:{i}\b", f"D{i}", text)
        text = re.sub(rf"\b{majors[1]}, {i}\b", f"D{i}", text)
    return kernel_text(text, majors[0])


@pytest.mark.parametrize("name", SCRIPTS)
def test_language_of_dmsetup_itself(name, theirs, fs, tool, backing, work):
    """The same scripts through the real dmsetup under dmfs-run: nothing may differ."""
    disks = [backing(8192, name=f"ubd{letter}") for letter in "ab"]
    run = [tool("dmfs-run"), "-m", fs.mountpoint, *(word for disk in disks for word in ("-d", disk))]
    env = os.environ | {"PATH": uml.PATH, "LC_ALL": "C", "WORK": work, "D0": "/dev/ubda", "D1": "/dev/ubdb"}
    numbers = "awk '/^Block/ { b = 1 } b && /device-mapper/ { d = $1 } b && /ramdisk/ { r = $1 } END { print d, r }' " \
              "/proc/devices"
    majors = subprocess.run([*run, "sh", "-c", numbers], text=True, capture_output=True, timeout=600, env=env,
                            check=True).stdout.split()
    done = subprocess.run([*run, "/bin/bash", "-c", PRELUDE + SCRIPTS[name][0] + "exit 0\n"], cwd=work, text=True,
                          capture_output=True, timeout=600, stdin=subprocess.DEVNULL, env=env | {"MAJOR": majors[0]})
    assert done.returncode == 0, done.stderr
    kernel, ours = split(kernel_text(theirs[name], theirs["major"].strip())), split(through_run(done.stdout, majors))
    wrong = [difference(k, o) for k, o in zip(kernel, ours) if k != o]
    assert not wrong, "\n".join(wrong)
    assert len(kernel) == len(ours) > 10, done.stderr
