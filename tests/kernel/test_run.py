# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume group that the kernel's LVM made is activated under dmfs-run, changed, and goes back.

(What the real dmsetup prints under dmfs-run is in test_dmsetup_language.py.)
"""

import os

import pytest

import uml
from crypt_combos import stream
from run import needs

VOLUMES = ["lin", "str", "base", "snap", "r1", "thin", "tsnap"]
DATA = stream("lvm", 256 << 10)
OTHER = stream("lvm, changed", 256 << 10)
MORE = stream("lvm, changed again", 256 << 10)
# what each volume holds when the kernel, and then dmfs, is done with it
BEFORE = dict.fromkeys(VOLUMES, DATA) | {"base": OTHER, "thin": OTHER}

PRELUDE = r"""
exec </dev/null
export LVM_SYSTEM_DIR=$WORK/lvm
mkdir -p $WORK/lvm $WORK/lock
cat >$WORK/lvm/lvm.conf <<END
devices { dir = "/dev"
	scan = [ "/dev" ]
	obtain_device_list_from_udev = 0
	use_devicesfile = 0
	hints = "none" }
backup { backup = 0
	archive = 0 }
global { locking_dir = "$WORK/lock"
	use_lvmpolld = 0 }
activation { udev_sync = 0
	udev_rules = 0
	monitoring = 0 }
END
# a /dev of its own: that of the host has no nodes for these disks
mount -t tmpfs none /dev
mknod /dev/null c 1 3
mknod /dev/zero c 1 5
mknod /dev/random c 1 8
mknod /dev/urandom c 1 9
mknod /dev/ubda b 98 0
mknod /dev/ubdb b 98 16
mkdir /dev/mapper
mknod /dev/mapper/control c 10 236
lvm() { command lvm "$@" 2>&1 | grep -v 'WARNING\|leaked'; return ${PIPESTATUS[0]}; }
put() { dd if=$1 of=/dev/vg/$2 bs=64k conv=fsync status=none; }
"""

MAKE = PRELUDE + r"""
set -e
lvm pvcreate -y /dev/ubda /dev/ubdb
lvm vgcreate -s 1m vg /dev/ubda /dev/ubdb
lvm lvcreate -y -n lin -L 4m vg
lvm lvcreate -y -n str -i 2 -L 4m vg
lvm lvcreate -y -n base -L 4m vg
lvm lvcreate -y --type raid1 -m 1 -n r1 -L 4m vg
lvm lvcreate -y --type thin-pool -n pool -L 8m vg
lvm lvcreate -y -V 16m -T vg/pool -n thin
for v in lin str base r1 thin; do put $data $v; done
lvm lvcreate -y -s -n snap -L 4m vg/base
lvm lvcreate -y -s -n tsnap vg/thin
put $other base
put $other thin
lvm vgchange -an vg
"""

COMPARE = PRELUDE + r"""
lvm vgchange -ay -K vg
for v in $volumes; do
	cmp -n $size $more /dev/vg/$v && echo "$v more"
	cmp -s -n $size $data /dev/vg/$v && echo "$v data"
done
lvm vgchange -an vg
"""


def test_a_group_there_and_back(run, fs, backing, work):
    why = uml.why_not()
    if why:
        pytest.skip(why)
    needs("lvm", "thin_check")
    env = {"volumes": " ".join(VOLUMES), "size": len(DATA)}
    for name, content in (("data", DATA), ("other", OTHER), ("more", MORE)):
        env[name] = os.path.join(work, name)
        with open(env[name], "wb") as f:
            f.write(content)
    run.disks = [backing(64 * 2048, name=name) for name in ("pv0", "pv1")]
    uml.run(MAKE, run.disks, env=env, timeout=600)

    run("lvm", "vgchange", "-ay", "-K", "vg")
    for name in VOLUMES:
        assert fs[f"vg-{name}"].pread(len(DATA), 0) == BEFORE[name], name
    # all but the snapshots get something new, which these must not see
    for name in ("lin", "str", "base", "r1", "thin"):
        fs[f"vg-{name}"].pwrite(MORE, 0, sync=True)
    run("lvm", "vgchange", "-an", "vg")
    assert not fs.devices()

    said = uml.run(COMPARE, run.disks, env=env, timeout=600, check=False).out.splitlines()
    for name in VOLUMES:
        assert f"{name} {'data' if name in ('snap', 'tsnap') else 'more'}" in said, "\n".join(said)
