# SPDX-License-Identifier: GPL-2.0-or-later
"""zoned beside the kernel's dm-zoned, on a zoned null_blk: each reads and goes on with what the other has written.

A zoned disk goes from one to the other as its content and a report: conventional zones whole, the others up to their write
pointers, in order.
"""

import hashlib
import os

import pytest

import mounted
import qemu_guest
import zones
from mounted import SECTOR, pattern, quote

MIB = 2048              # sectors
ZONE = MIB
N, CONVENTIONAL = 40, 12

# restore NAME: a null_blk with the zones, and the content, of a file; its name becomes $dev.  dump DEV NAME: the reverse.
SHELL = r"""
nr=0
restore() {
    local dir=/sys/kernel/config/nullb/n$nr i=0 start len wptr kind conventional
    conventional=$(grep -c CONVENTIONAL $1.zones)
    mkdir $dir
    echo 1 >$dir/memory_backed; echo 1 >$dir/zoned; echo 1 >$dir/zone_size; echo $conventional >$dir/zone_nr_conv
    echo 4096 >$dir/blocksize; echo $(($(stat -c %s $1) >> 20)) >$dir/size; echo 1 >$dir/power
    dev=/dev/n$nr
    [ -b $dev ] || dev=/dev/nullb$(cat $dir/index) # its name on older kernels
    nr=$((nr + 1))
    grep start: $1.zones | sed 's/.*start: \(0x[0-9a-f]*\), len \(0x[0-9a-f]*\),.*wptr \(0x[0-9a-f]*\).*type: \([0-9]\).*/\1 \2 \3 \4/' |
        while read -r start len wptr kind; do
            [ $kind = 1 ] && wptr=$len
            [ $((wptr)) = 0 ] || dd if=$1 of=$dev bs=4k skip=$((start / 8)) seek=$((start / 8)) count=$((wptr / 8)) \
                iflag=fullblock oflag=direct conv=notrunc status=none
        done
}
dump() { dd if=$1 of=$2 bs=1M iflag=direct status=none; blkzone report $1 >$2.zones; }
"""


# The same disk here, in the guest: a zoned block device.  Then a report and a reset, of the device's own zones.
OURS = r"""
mkdir /run/m
BUILD/dmfs /run/m
mkdir /run/m/v /run/m/w
echo "0 $(blockdev --getsize $dev) zoned $dev" >/run/m/v/table
sha256sum </run/m/v/image >digest3
dd if=/dev/zero of=/run/m/v/image bs=4k seek=3000 count=3 oflag=direct conv=notrunc,fsync status=none
echo reclaim >/run/m/v/message
rmdir /run/m/v
BUILD/dmfs-zone dm-check $dev
echo "0 $(blockdev --getsize $dev) linear $dev 0" >/run/m/w/table
BUILD/dmfs-zone report /run/m/w >report1
blkzone report $dev >report2
cmp report1 report2
start=$(grep SEQ report1 | grep -v 'wptr 0x000000' | head -1 | sed 's/.*start: \(0x[0-9a-f]*\),.*/\1/')
! dd if=/dev/urandom of=/run/m/w/image bs=4k seek=$((start / 8)) count=1 oflag=direct conv=notrunc status=none
BUILD/dmfs-zone reset /run/m/w -o $((start)) -c 1
dd if=/dev/urandom of=/run/m/w/image bs=4k seek=$((start / 8)) count=5 oflag=direct conv=notrunc,fsync status=none
blkzone report -o $((start)) -c 1 $dev | grep 'wptr 0x000028 reset:0 non-seq:0, zcond: 2(oi)'
dd if=/run/m/w/image of=part1 bs=4k skip=$((start / 8)) count=5 status=none
dd if=$dev of=part2 bs=4k skip=$((start / 8)) count=5 status=none
cmp part1 part2
rmdir /run/m/w
umount /run/m
"""


@pytest.fixture
def guest(dmfs, work):
    why = qemu_guest.why_not()
    if why:
        pytest.skip(why)
    return lambda script: qemu_guest.run(SHELL + script.replace("BUILD", mounted.build_dir()), work)


def digest(dev):
    h = hashlib.sha256()
    with dev.open(os.O_RDONLY) as fd:
        for at in range(0, dev.size(), MIB * SECTOR):
            h.update(os.pread(fd, MIB * SECTOR, at))
    return h.hexdigest()


def fill(dev):
    """Chunks in order, at random, with buffers on either side of a write pointer, discarded and part of one."""
    chunk = ZONE * SECTOR
    dev.pwrite(pattern(ZONE, 1), 0)
    dev.pwrite(pattern(ZONE // 2, 2), chunk)
    dev.pwrite(pattern(24, 3), chunk + chunk * 3 // 4)
    dev.pwrite(pattern(8, 4), 8192)
    dev.pwrite(pattern(16, 5), 3 * chunk + 40960)
    dev.pwrite(pattern(ZONE, 6), 4 * chunk)
    dev.discard(4 * chunk, chunk)
    dev.pwrite(pattern(ZONE // 4, 7), 5 * chunk, sync=True)


@pytest.mark.parametrize("version", (2, 1))
def test_there_and_back(dmfs, work, guest, version):
    path = zones.make(os.path.join(work, "disk"), N, ZONE, CONVENTIONAL, "--block-size=4096")
    sectors = int(zones.run("dm-format", path, f"--dm-version={version}").stdout)
    line = f"0 {sectors} zoned {quote(path)}"
    fs = dmfs()
    dev = fs.mkdir("v", line)
    fill(dev)
    ours, status = digest(dev), dev.status()
    dev.remove()
    zones.run("dm-check", path)
    out = guest(rf"""
restore disk
dmsetup create --noudevsync z --table "0 {sectors} zoned $dev"
dmsetup mknodes
dmsetup status z >status1
sha256sum </dev/mapper/z >digest1
dd if=/dev/urandom of=/dev/mapper/z bs=4k seek=3000 count=300 oflag=direct status=none
dd if=/dev/urandom of=/dev/mapper/z bs=4k seek=7 count=9 oflag=direct status=none
dd if=/dev/urandom of=/dev/mapper/z bs=1M seek=9 count=2 oflag=direct conv=fsync status=none
blkdiscard -o $((5 << 20)) -l $((1 << 20)) /dev/mapper/z
sync /dev/mapper/z
sha256sum </dev/mapper/z >digest2
dmsetup message z 0 reclaim
dmsetup remove --noudevsync z
dump $dev back
{OURS if version == 2 else ""}
""")

    def read(name):
        with open(os.path.join(work, name), encoding="ascii") as f:
            return f.read()

    assert read("status1") == status, out
    assert read("digest1").split()[0] == ours, out
    assert version != 2 or read("digest3") == read("digest2"), out
    back = os.path.join(work, "back")
    zones.run("dm-check", back)
    dev = fs.mkdir("v", f"0 {sectors} zoned {quote(back)}")
    assert digest(dev) == read("digest2").split()[0]
    dev.pwrite(pattern(8, 9), 3000 * 4096)
    dev.message("reclaim")
    dev.remove()
    zones.run("dm-check", back)
