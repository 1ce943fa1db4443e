# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-open on what LVM2 and mdadm themselves made, with the kernel's own md and device mapper.

Each is one boot; the sums of what the kernel reads are those of what dmfs reads, and nothing is written to the files.
"""

import hashlib
import itertools
import os
import random
import re
import shutil
import struct

import pytest

from disks import MD_MAGIC, Opener
from raid import wait_whole

MIB = 1 << 20

# A /dev of the guest's own, and what LVM writes elsewhere goes to memory.
BEGIN = r"""
mount -t devtmpfs dev /dev 2>/dev/null; mount -t tmpfs run /run
for m in md-mod linear raid0 raid1 raid10 raid456 loop; do modprobe -q $m; done
"""

LVM = BEGIN + r"""
set -e
mkdir -p /run/etc /run/lock/lvm
export LVM_SYSTEM_DIR=/run/etc LVM_SUPPRESS_FD_WARNINGS=1
cat >/run/etc/lvm.conf <<'END'
devices { dir="/dev" scan=["/dev"] filter=["a|ubd|","r|.*|"] use_devicesfile=0 obtain_device_list_from_udev=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=0 }
global { use_lvmpolld=0 locking_dir="/run/lock/lvm" }
backup { backup=0 archive=0 }
END
lv() { lvcreate -q -y "$@" >/run/log 2>&1 || { cat /run/log; exit 1; }; }
fill() { dd if=/dev/urandom of=/dev/vg/$1 bs=256k status=none "${@:2}" 2>/dev/null || true; }
pvcreate -q -ff -y $D0 $D1 $D2 $D3 >/dev/null
vgcreate -q -s 1M vg $D0 $D1 $D2 $D3 >/dev/null
lv -L 4M -n lin vg
lv -L 6M -i 3 -I 64k -n str vg
lv --type mirror --mirrorlog core -m1 -L 4M -n mir vg
lv --type raid1 -m1 -L 4M -n r1 vg
lv --type raid5 -i 2 -L 4M -n r5 vg
lv --type raid4 -i 2 -L 4M -n r4 vg
lv --type raid10 -i 2 -m1 -L 4M -n r10 vg
lv --type raid0 -i 2 -L 4M -n r0 vg
for l in lin str mir r1 r5 r4 r10 r0; do fill $l; done
lv -L 4M -n or-ig vg; fill or-ig
lv -s -L 2M -n snap vg/or-ig; fill or-ig count=2 seek=3; fill snap count=1 seek=9
lv --type thin-pool -L 8M --poolmetadatasize 2M -n pool vg
lv -V 32M -T vg/pool -n thin1; fill thin1 count=8 seek=20
lv -s -n thin2 vg/thin1 -kn; vgchange -q -ay vg >/dev/null 2>&1; fill thin2 count=2 seek=22
lv -L 4M -n cached vg; fill cached
lv --type cache-pool -L 8M --poolmetadatasize 8M -n cp vg
lvconvert -q -y --type cache --cachepool cp --cachemode writethrough vg/cached >/dev/null 2>&1
sync
for l in lin str mir r1 r5 r4 r10 r0 or-ig snap thin1 thin2 cached; do
    n=$(echo $l | sed 's/-/--/')
    echo "SUM vg-$n $(sha1sum </dev/vg/$l)"
done
vgchange -q -an vg >/dev/null 2>&1
"""


def sums(out):
    return {line.split()[1]: line.split()[2] for line in out.splitlines() if line.startswith("SUM ")}


@pytest.fixture
def opener(fs, tool):
    return Opener(tool("dmfs-open"), fs)


def digest(opened, name):
    return hashlib.sha1(opened.read(name)).hexdigest()


@pytest.mark.timeout(400)
def test_lvm(kernel, opener, tool, backing):
    tool("lvm")
    disks = [backing(64 * 2048, name=f"pv{n}") for n in range(4)]
    want = sums(kernel.run(LVM, disks, timeout=300).out)
    assert len(want) == 13
    got = opener.open(*reversed(disks))
    assert {name: digest(got, name) for name in want} == want
    assert all(d["ro"] for d in got.devices.values() if d["type"] not in ("thin-pool", "overlay"))
    opener.close()
    # without one, what can bear it is whole, and the rest is named
    got = opener.open(*disks[1:], check=6)
    for name in ("vg-r1", "vg-r5", "vg-r4", "vg-r10"):
        assert digest(got, name) == want[name]
    assert "degraded" in got.stderr and "is missing: reads as errors" in got.stderr
    opener.close()


ARRAYS = [  # name, metadata, level, devices, chunk in KiB, more for mdadm
    ("one090", "0.90", 1, 2, 0, ""), ("one10", "1.0", 1, 2, 0, ""), ("one12", "1.2", 1, 2, 0, ""),
    ("five090", "0.90", 5, 3, 64, ""), ("five12", "1.2", 5, 4, 64, ""), ("five-la", "1.2", 5, 3, 64, "--layout=la"),
    ("five-ra", "1.2", 5, 3, 64, "--layout=ra"), ("five-rs", "1.0", 5, 3, 64, "--layout=rs"),
    ("five-first", "1.2", 5, 3, 64, "--layout=parity-first"), ("four", "1.2", 4, 3, 64, ""), ("six090", "0.90", 6, 4, 64, ""), ("six-ls", "1.2", 6, 5, 64, ""),
    ("six-la", "1.2", 6, 5, 64, "--layout=la"), ("six-ra", "1.2", 6, 4, 64, "--layout=ra"),
    ("six-rs", "1.1", 6, 5, 64, "--layout=rs"), ("six-zr", "1.2", 6, 4, 64, "--layout=ddf-zero-restart"),
    ("six-nr", "1.2", 6, 4, 64, "--layout=ddf-N-restart"), ("six-nc", "1.2", 6, 4, 64, "--layout=ddf-N-continue"),
    ("six-ls6", "1.2", 6, 4, 64, "--layout=left-symmetric-6"), ("ten-n2", "1.2", 10, 4, 64, ""),
    ("ten-n2-3", "1.2", 10, 3, 64, ""), ("ten-n3", "1.2", 10, 4, 64, "--layout=n3"), ("ten-f2", "1.2", 10, 4, 64, "--layout=f2"),
    ("ten-f2-3", "1.0", 10, 3, 64, "--layout=f2"), ("ten-o2", "1.2", 10, 4, 64, "--layout=o2"),
    ("ten-o2-3", "0.90", 10, 3, 64, "--layout=o2"), ("zero", "1.0", 0, 2, 16, ""), ("zones", "1.2", 0, 3, 64, ""),
    ("lin", "1.2", "linear", 3, 64, ""), ("lin090", "0.90", "linear", 3, 0, ""),
]
SIZES = {"zones": (4, 5, 7), "lin": (4, 5, 7), "lin090": (4, 5, 7)}
BEARS = {1: lambda n: n - 1, 4: lambda n: 1, 5: lambda n: 1, 6: lambda n: 2, 10: lambda n: 1}

MD = BEGIN + r"""
echo 500000 >/proc/sys/dev/raid/speed_limit_min
mk() {
    name=$1 metadata=$2 level=$3 n=$4 chunk=$5; shift 5
    loops=; for i in $(seq 0 $((n - 1))); do loops="$loops $(losetup -f --show $FILES/$name.$i)"; done
    options=; [ $chunk = 0 ] || options=--chunk=$chunk
    case $level in
    0 | linear) ;;
    1 | 10) options="$options --bitmap=none --assume-clean" ;; # all of it is written below
    *) options="$options --bitmap=none" ;;
    esac
    mdadm --create /dev/md7 --run --force --homehost=any --name=$name --metadata=$metadata --level=$level --raid-devices=$n \
        $options "$@" $loops </dev/null >log 2>&1 || { cat log; exit 1; }
    case $level in 4 | 5 | 6) mdadm --wait /dev/md7 >/dev/null 2>&1 ;; esac
    dd if=/dev/urandom of=/dev/md7 bs=256k status=none 2>/dev/null; sync
    echo "SUM $name $(sha1sum </dev/md7)"
    mdadm --stop /dev/md7 >/dev/null 2>&1
    for l in $loops; do losetup -d $l; done
}
"""


@pytest.mark.timeout(400)
def test_md(kernel, opener, tool, work):
    """Every layout, whole, and without each member, or every other pair, that it can bear the loss of."""
    tool("mdadm")
    files = {}
    for name, _, _, n, _, _ in ARRAYS:
        files[name] = [os.path.join(work, f"{name}.{i}") for i in range(n)]
        for i, path in enumerate(files[name]):
            with open(path, "wb") as f:
                f.truncate(SIZES.get(name, (4,) * n)[i] * MIB)
    script = MD + "".join(f"mk {' '.join(map(str, a))}\n" for a in ARRAYS)
    want = sums(kernel.run(script, env={"FILES": work}, timeout=300).out)
    assert sorted(want) == sorted(files)
    bad = []
    for name, _, level, n, _, _ in ARRAYS:
        for lost in range(BEARS[level](n) + 1 if level in BEARS else 1):
            for missing in list(itertools.combinations(range(n), lost))[::lost or 1]:
                got = opener.open(*(path for i, path in enumerate(files[name]) if i not in missing))
                array = [d for d in got.devices.values() if d["type"] in ("linear", *(f"raid{i}" for i in (0, 1, 4, 5, 6, 10)))]
                if len(array) != 1 or digest(got, array[0]["name"]) != want[name] or ("degraded" in got.stderr) != bool(lost):
                    bad.append((name, missing, got.stderr))
                opener.run("--close")
    assert not bad
    opener.close()


# --- md, written to ---------------------------------------------------------------------------------------

B = "--bitmap=internal --bitmap-chunk=64K"
# name, metadata, level, devices, spares, chunk in KiB, more for mdadm; what is done to copies of it, and what besides with
# OPEN_MD_ALL
WRITTEN = [
    ("one090b", "0.90", 1, 2, 0, 0, B, "crash", "ok less"), ("one12b", "1.2", 1, 3, 0, 0, B, "ok less", "again"),
    ("one10", "1.0", 1, 2, 1, 0, "", "ok", "crash"), ("five090", "0.90", 5, 3, 1, 64, "", "less", "ok"),
    ("five12b", "1.2", 5, 4, 0, 64, B, "ok crash again", "less"), ("four11", "1.1", 4, 3, 0, 64, "", "", "ok"),
    ("six12b", "1.2", 6, 5, 1, 64, B, "ok", "crash"), ("ten-n2-3", "1.2", 10, 3, 0, 64, "", "ok", ""),
    ("ten-n2b", "1.0", 10, 4, 0, 64, B, "", "crash less"), ("ten-f2", "1.2", 10, 4, 0, 64, "--layout=f2", "", "ok"),
]
REFUSED = [("journal", "1.2", 5, 3, 0, 64, "--write-journal $J", "no", ""), ("ppl", "1.2", 5, 3, 0, 64, "--consistency-policy=ppl", "no", "")]

# few processes: each takes long in there
LOOPS = r"""
loops() {
    loops=()
    for ((i = 0; i < $2; i++)); do loops+=("$(losetup -f --show $FILES/$1.$i)"); done
}
settled() {
    for ((i = 0; i < 300; i++)); do
        [[ "$(<$m/sync_action) $(<$m/resync_start) $(<$m/degraded)" != "idle none 0" ]] || return
        mdadm --wait /dev/md7 >/dev/null 2>&1
    done
}
"""
MD_MAKE = BEGIN + LOOPS + r"""
mk() {
    name=$1 metadata=$2 level=$3 n=$4 spares=$5 chunk=$6; shift 6
    loops $name $((n + spares)); options=; [ $chunk = 0 ] || options=--chunk=$chunk
    [ $spares = 0 ] || options="$options --spare-devices=$spares"
    case "$*" in *bitmap* | *journal* | *ppl*) ;; *) options="$options --bitmap=none" ;; esac
    mdadm --create /dev/md7 --run --force --homehost=any --name=$name --metadata=$metadata --level=$level --raid-devices=$n \
        $options "$@" ${loops[@]} </dev/null >log 2>&1 || { cat log; exit 1; }
    m=/sys/block/md7/md; settled
    dd if=/dev/urandom of=/dev/md7 bs=256k status=none 2>/dev/null
    mdadm --stop /dev/md7 >/dev/null 2>&1; losetup -D
}
"""

# STATE: what it is when it begins; WHOLE: what it is then, its copies and parities compared, all devices added
MD_CHECK = BEGIN + LOOPS + r"""
echo 500000 >/proc/sys/dev/raid/speed_limit_min
ck() {
    name=$1; loops $1 $2; m=/sys/block/md7/md; dmesg -C; shift 2
    mdadm --assemble --readonly --run /dev/md7 ${loops[@]} >log 2>&1 || cat log
    spares=0; for d in $m/dev-*; do [[ $(<$d/state) != *spare* ]] || let spares++; done
    echo "STATE $name start=$(<$m/resync_start) degraded=$(<$m/degraded) spares=$spares"
    mdadm --readwrite /dev/md7
    for i in "$@"; do mdadm --add /dev/md7 ${loops[$i]} >log 2>&1 || cat log; done
    settled; echo check >$m/sync_action; settled
    echo "WHOLE $name $(<$m/mismatch_cnt) $(<$m/degraded) $(dmesg | grep -c 'bitmap file is out of date, doing full')"
    dd if=/dev/md7 of=$FILES/$name.data bs=256k status=none
    mdadm --stop /dev/md7 >/dev/null 2>&1; losetup -D
}
"""


def the_array(got):
    return next(d for d in got.devices.values() if d["type"].startswith("raid") and not d["name"].endswith("-rows"))


def write_all_over(device, rng):
    """Random writes to the array, and what it holds then."""
    assert not device["ro"], device["notes"]
    with open(device["image"], "rb") as f:
        model = bytearray(f.read())
    with open(device["image"], "r+b", buffering=0) as f:
        for _ in range(25):
            data = rng.randbytes(rng.choice((1, 8, 100, 128, 300)) * 512)
            at = rng.randrange((len(model) - len(data)) // 512) * 512
            f.seek(at)
            assert f.write(data) == len(data)
            model[at:at + len(data)] = data
        os.fsync(f.fileno())
    return model


def tear(path):
    """What a crash may do to the end of a member's data."""
    size = os.path.getsize(path)
    end = (size & ~65535) - 65536   # 0.90
    with open(path, "r+b") as f:
        for place in (4096, (size // 512 - 16) // 8 * 8 * 512):
            f.seek(place)
            head = f.read(256)
            if struct.unpack_from("<I", head)[0] == MD_MAGIC:
                end = (struct.unpack_from("<Q", head, 128)[0] + struct.unpack_from("<Q", head, 80)[0]) * 512
        f.seek(end - 65536)
        f.write(os.urandom(65536))


@pytest.mark.timeout(500)
def test_md_written(kernel, dmfs, tool, work):
    """Arrays of md's, written with -w: closed, md finds them clean and does nothing; after a crash it synchronises them; without
    a member, that is rebuilt in full."""
    tool("mdadm")
    rng = random.Random(24)
    files = lambda name, n: [os.path.join(work, f"{name}.{i}") for i in range(n)]
    arrays, script, check, models = [], MD_MAKE, MD_CHECK, {}
    for name, *rest, variants, more in WRITTEN + REFUSED:
        variants += f" {more}" if os.environ.get("OPEN_MD_ALL") else ""
        if not variants:
            continue
        for path in files(name, rest[2] + rest[3] + (name == "journal")):
            with open(path, "wb") as f:
                f.truncate(12 * MIB if variants == "no" else 4 * MIB)
        if name == "journal":
            script += f"J=$(losetup --show /dev/loop9 {path})\n"
        script += f"mk {name} {' '.join(map(str, rest))}\n"
        arrays += [(name, what, rest[1], rest[2], rest[3]) for what in variants.split()]
    kernel.run(script, env={"FILES": work}, timeout=300)
    for array, what, level, n, spares in arrays:
        fs, name = dmfs(), f"{array}-{what}"
        opener, paths = Opener(tool("dmfs-open"), fs), files(name, n + spares)
        for one, other in zip(files(array, n + spares), paths):
            shutil.copy(one, other)
        got = opener.open(*(p for i, p in enumerate(paths) if what != "less" or i != 1), write=True)
        if what == "no":
            assert the_array(got)["ro"] and "which only md can do with" in got.stderr, got.stderr
            opener.close()
            continue
        models[name] = write_all_over(the_array(got), rng)
        if what in ("crash", "again"):
            with open(the_array(got)["image"], "r+b", buffering=0) as f:
                f.seek(-128 * 1024 * n, 2)
                f.write(os.urandom(128 * 1024 * n))
            fs.kill()
            fs.wait()
            models[name] = models[name][:-128 * 1024 * n]
            tear(paths[1])
        if what == "again":     # synchronised here
            fs = dmfs()
            opener = Opener(tool("dmfs-open"), fs)
            wait_whole(fs[the_array(opener.open(*paths, write=True))["name"]])
        if what != "crash":
            opener.close()
        check += f"ck {name} {n + spares}{' 1' if what == 'less' else ''}\n"
    out = kernel.run(check, env={"FILES": work}, timeout=300).out
    bad = []
    for array, what, level, n, spares in arrays:
        name = f"{array}-{what}"
        if what == "no":
            continue
        state = re.search(rf"^STATE {name} start=(\S+) degraded=(\d) spares=(\d)", out, re.M).groups()
        want = ("0" if what == "crash" else "none", str(int(what == "less")), str(spares))
        if state != want:
            bad.append((name, "state", state, want))
        if f"WHOLE {name} 0 0 {int(what == 'crash' and array.endswith('b'))}\n" not in out:
            bad.append((name, re.findall(rf"^WHOLE {name}.*", out, re.M)))
        with open(os.path.join(work, f"{name}.data"), "rb") as f:
            if f.read(len(models[name])) != models[name]:
                bad.append((name, "data"))
    assert not bad, bad
