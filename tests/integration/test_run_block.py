# SPDX-License-Identifier: GPL-2.0-or-later
"""Images and disks look like block devices under dmfs-run, and the device mapper is there."""

import os
import re
import subprocess

import pytest

from mounted import SECTOR, pattern
from run import needs

IOCTL = r"""
import array, ctypes, errno, fcntl, os, stat, struct, sys
BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKRAGET, BLKROGET = 0x80081272, 0x1268, 0x127b, 0x1263, 0x125e
BLKIOMIN, BLKIOOPT, BLKFLSBUF, BLKDISCARD, BLKZEROOUT, BLKGETSIZE, BLKALIGNOFF = (
    0x1278, 0x1279, 0x1261, 0x1277, 0x127f, 0x1260, 0x127a)
def number(fd, request, size=8):
    buf = bytearray(size)
    fcntl.ioctl(fd, request, buf)
    return int.from_bytes(buf, "little")
def code(fn, *args):
    try:
        fn(*args)
    except OSError as e:
        return errno.errorcode[e.errno]
    return "ok"
"""


@pytest.fixture
def vol(run):
    disk = run.disk("disk.img", 4)
    run("dmsetup", "create", "vol", "--table", f"0 2048 linear {disk} 8")
    return disk


def test_stat_says_block_special(run, vol):
    out = run("stat", "-L", "-c", "%F %t:%T %s", "/dev/mapper/vol", vol, "/dev/dm-0", run.fs["vol"].image, run.disks[0])
    numbers = run.python("import os; print(*(f'{os.major(s.st_rdev):x}:{os.minor(s.st_rdev):x}' for s in "
                         "map(os.stat, ('/dev/mapper/vol', '/dev/disk.img'))))").split()
    assert out.splitlines() == [f"block special file {n} 0" for n in
                                (numbers[0], numbers[1], numbers[0], numbers[0], numbers[1])]
    assert numbers[0] != numbers[1]
    # a descriptor that was inherited, and one that was opened before by another name
    with open(run.disks[0], "rb") as f:
        assert run.python("import os, stat; print(stat.S_ISBLK(os.fstat(0).st_mode))", stdin=f) == "True\n"
    control = run("stat", "-c", "%F %t:%T", "/dev/mapper/control")
    assert control == "character special file a:ec\n"
    assert "device-mapper" in run("cat", "/proc/devices") and "236 device-mapper" in run("cat", "/proc/misc")
    listing = run("ls", "/dev/mapper", "/dev")
    assert "vol" in listing and "disk.img" in listing and "null" in listing
    assert run("sh", "-c", "cd /dev/mapper && pwd && ls") == "/dev/mapper\ncontrol\nvol\n"
    assert run("readlink", "-f", "/dev/mapper/vol") == "/dev/mapper/vol\n"


def test_read_ahead(run, vol):
    """It is kept for each device, by whatever way it is set; nothing is read ahead by it."""
    needs("blockdev")

    def all_say(kb, path="/dev/mapper/vol", number="dm-0"):
        assert run("blockdev", "--getra", path) == f"{kb * 2}\n"
        assert run("cat", f"/sys/block/{number}/queue/read_ahead_kb").strip() == str(kb)

    all_say(128)
    run("blockdev", "--setra", "0", "/dev/mapper/vol")
    all_say(0)
    assert run("dmsetup", "info", "-c", "--noheadings", "-o", "read_ahead", "vol").strip() == "0"
    run("blockdev", "--setra", "2055", "/dev/mapper/vol")   # whole pages
    run("dmsetup", "rename", "--setuuid", "vol", "an-id")
    run("dmsetup", "rename", "vol", "other")
    all_say(1024, "/dev/mapper/other")
    run("sh", "-c", "echo 8 > /sys/dev/block/$(cat /sys/block/dm-0/dev)/bdi/read_ahead_kb")
    all_say(8, "/dev/mapper/other")
    run("blockdev", "--setra", "512", vol)
    all_say(256, vol, "disk.img")
    run("dmsetup", "remove", "other")
    run("dmsetup", "create", "vol", "--readahead", "none", "--table", f"0 2048 linear {vol} 8")
    all_say(0)
    run("dmsetup", "remove", "vol")
    run("dmsetup", "create", "vol", "--table", f"0 2048 linear {vol} 8")
    all_say(128)


def test_ioctls(run, vol):
    out = run.python(IOCTL + r"""
for path in "/dev/mapper/vol", "/dev/disk.img":
    fd = os.open(path, os.O_RDWR)
    print(number(fd, BLKGETSIZE64), number(fd, BLKGETSIZE), number(fd, BLKSSZGET, 4), number(fd, BLKPBSZGET, 4),
          number(fd, BLKRAGET), number(fd, BLKROGET, 4), number(fd, BLKALIGNOFF, 4), number(fd, BLKIOOPT, 4))
    os.pwrite(fd, b"x" * 16384, 0)
    fcntl.ioctl(fd, BLKFLSBUF, 0)
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 0, 4096))
    fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", 4096, 4096))
    print(os.pread(fd, 8192, 0) == bytes(8192), os.pread(fd, 8192, 8192) == b"x" * 8192)
    print(code(fcntl.ioctl, fd, BLKDISCARD, struct.pack("QQ", 0, 511)),
          code(fcntl.ioctl, fd, BLKDISCARD, struct.pack("QQ", 512, 2**64 - 512)),
          code(fcntl.ioctl, fd, BLKZEROOUT, struct.pack("QQ", 0, 2**40)),
          code(fcntl.ioctl, fd, 0x1299), code(os.ftruncate, fd, 0), code(os.truncate, path, 0))
    ro = os.open(path, os.O_RDONLY)
    print(code(fcntl.ioctl, ro, BLKDISCARD, struct.pack("QQ", 0, 4096)), os.lseek(ro, 0, os.SEEK_END))
""")
    for i, size in enumerate((2048 * SECTOR, 4 << 20)):
        lines = out.splitlines()[4 * i:4 * i + 4]
        assert lines[0].split()[:2] == [str(size), str(size // SECTOR)]
        assert lines[0].split()[2:3] + lines[0].split()[4:7] == ["512", "256", "0", "0"]
        assert lines[1:] == ["True True", "EINVAL EINVAL EINVAL ENOTTY EINVAL EINVAL", f"EBADF {size}"]


def test_a_disk_is_never_cut_off(run, vol):
    """O_TRUNC, fopen "w" and dd are for a device as for a device."""
    size = os.path.getsize(run.disks[0])
    run("sh", "-c", f"echo x > {vol}; dd if=/dev/zero of={vol} bs=4096 count=1 status=none; : > {run.disks[0]}")
    run.python("open('/dev/disk.img', 'w').close()")
    assert os.path.getsize(run.disks[0]) == size


def test_exclusive(run, vol):
    out = run.python(IOCTL + r"""
print(code(os.open, "/dev/disk.img", os.O_RDWR | os.O_EXCL))        # a table stands on it
fd = os.open("/dev/mapper/vol", os.O_RDWR | os.O_EXCL)
print(code(os.open, "/dev/mapper/vol", os.O_RDONLY | os.O_EXCL), code(os.open, "/dev/mapper/vol", os.O_RDONLY))
copy = os.dup(fd)
os.close(fd)
print(code(os.open, "/dev/mapper/vol", os.O_RDONLY | os.O_EXCL))
os.close(copy)
print(code(os.open, "/dev/mapper/vol", os.O_RDONLY | os.O_EXCL))
""")
    assert out.splitlines() == ["EBUSY", "EBUSY ok", "EBUSY", "ok"]


def test_sysfs(run, vol):
    out = run("sh", "-c", "cd /sys/block/dm-0 && cat size ro dm/name dm/suspended queue/logical_block_size && "
              "ls slaves && cat slaves/*/size && ls slaves/*/holders && readlink /sys/dev/block/$(cat dev)")
    assert out.splitlines() == ["2048", "0", "vol", "0", "512", "disk.img", "8192", "dm-0",
                                "../../devices/virtual/block/dm-0"]
    # what others do is seen at the next look
    run.fs["vol"].load("0 1000 zero", "1000 24 error")
    run.fs["vol"].suspend()
    assert run("sh", "-c", "cd /sys/block/dm-0; cat size dm/suspended; ls slaves") == "1024\n1\n"
    run.fs["vol"].resume()
    os.rename(run.fs["vol"].path, run.fs.path("other"))
    assert run("cat", "/sys/block/dm-0/dm/name") == "other\n"
    os.rmdir(run.fs.path("other"))
    assert run("sh", "-c", "ls /sys/block; ls /dev/mapper") == "disk.img\ncontrol\n"
    assert re.search(r" 4096 disk\.img$", run("cat", "/proc/partitions"), re.M)


def test_kpartx_and_sfdisk(run):
    needs("kpartx", "sfdisk")
    disk = run.disk("parts.img", 16)
    run("sfdisk", "-q", disk, given="label: gpt\nsize=2M\nsize=4M\n", quiet=False)
    run("kpartx", "-a", disk)
    first, second = sorted(run.fs.devices())
    assert run.fs[second].size() == 4 << 20
    assert run.fs[first].size() == 2 << 20
    run("mkfs.ext4", "-q", f"/dev/mapper/{first}")
    assert 'TYPE="ext4"' in run("blkid", "-p", f"/dev/mapper/{first}")
    run("fsck.ext4", "-fn", f"/dev/mapper/{first}", quiet=False)
    run("kpartx", "-d", disk)
    assert not run.fs.devices()


def test_dmstats(run, vol):
    needs("dmstats")
    assert "region ID 0" in run("dmstats", "create", "vol")
    run.fs["vol"].pread(65536, 0)
    assert re.search(r"^vol .*1\.00m", run("dmstats", "list"), re.M | re.I)
    assert "vol" in run("dmstats", "report", "--count", "1", "--interval", "1")
    run("dmstats", "delete", "--allregions", "vol")


def test_a_message_with_a_reply_and_a_wait(run, vol):
    assert run("dmsetup", "message", "vol", "0", "@stats_create - /10").strip() == "0"
    waiting = subprocess.Popen(run.argv("dmsetup", "wait", "vol"), env=run.env, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run("dmsetup", "rename", "vol", "--setuuid", "UU")      # it ends the wait, be it before or after its beginning
    said = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, said
    assert run("dmsetup", "info", "-c", "--noheadings", "-o", "events", "vol").strip() == "1"


def test_poll_of_control(run, vol):
    """DM_DEV_ARM_POLL, then poll(2): only what came since is told."""
    out = run.python(r"""
import fcntl, os, select, struct, subprocess
fd = os.open("/dev/mapper/control", os.O_RDWR)
p = select.poll()
p.register(fd, select.POLLIN)
def arm():
    head = bytearray(struct.pack("IIIII", 4, 0, 0, 312, 312).ljust(312, b"\0"))
    fcntl.ioctl(fd, 0xc138fd10, head)
arm()
print(p.poll(0) == [])
subprocess.run(["dmsetup", "create", "more", "--table", "0 8 zero"], check=True)
print(len(p.poll(60000)))
arm()
print(p.poll(0) == [])
head = bytearray(struct.pack("IIIII", 4, 0, 0, 312, 312).ljust(312, b"\0"))
fcntl.ioctl(fd, 0xc138fd00, head)
print(struct.unpack_from("III", head))
""")
    assert out.splitlines() == ["True", "1", "True", "(4, 47, 0)"]


@pytest.mark.parametrize("engine", ["libaio", "io_uring", "psync"])
def test_asynchronous_io(run, vol, engine):
    needs("fio")
    for path in "/dev/mapper/vol", vol:
        done = run("fio", "--name=x", f"--filename={path}", "--rw=randwrite", "--bs=4k", f"--ioengine={engine}",
                   "--size=1M", "--iodepth=8", "--verify=crc32c", "--verify_state_save=0", "--minimal",
                   quiet=False)
        assert done.split(";")[4] == "0", done          # the error


def test_a_table_on_files_by_path(run, backing):
    """What the mount's own users loaded is shown with numbers, and every file has one."""
    path = backing(100, name="some file")
    run.fs.mkdir("a", f"0 100 linear {path.replace(' ', chr(92) + ' ')} 0")
    run.fs.mkdir("b", "0 100 linear a 0")
    table = dict(re.findall(r"^(\w): (.*)$", run("dmsetup", "table"), re.M))
    a, b = re.fullmatch(r"0 100 linear (\d+:\d+) 0", table["a"]), re.fullmatch(r"0 100 linear (\d+):0 0", table["b"])
    assert a and b
    run("dmsetup", "load", "b", "--table", table["a"])      # and means the same when it is loaded
    run("dmsetup", "resume", "b")
    data = pattern(100, 5)
    run.fs["b"].pwrite(data, 0)
    with open(path, "rb") as f:
        assert f.read() == data
    assert "(some file)" in run("dmsetup", "deps", "-o", "devname", "b")


def test_many_at_once(run):
    """Programs that make and remove devices beside each other, each seeing its own in /dev and /sys at every moment."""
    script = r"""
for i in 1 2 3 4 5; do
    n=v$1-$i
    dmsetup create $n --table "0 8 zero" || { echo "create: $?"; exit 1; }
    dm=$(dmsetup info -c --noheadings -o minor $n)
    [ -b /dev/mapper/$n ] && [ -b /dev/dm-$dm ] && [ "$(cat /sys/block/dm-$dm/dm/name)" = $n ] &&
        ls /sys/block | grep -qx dm-$dm && ls /dev/mapper | grep -qx $n || { echo "$n: dm-$dm is not seen"; exit 1; }
    dmsetup remove $n || { echo "remove: $?"; exit 1; }
    [ ! -e /dev/mapper/$n ] || { echo "$n: still there"; exit 1; }
done
"""
    all_of_them = [subprocess.Popen(run.argv("sh", "-c", script, "sh", str(i)), env=run.env, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(4)]
    for process in all_of_them:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and not out, out
    assert run("sh", "-c", "ls /sys/block; ls /dev/mapper") == "control\n"


def test_a_daemon_that_dies(run, vol):
    """Programs are told, and do not hang."""
    run.fs.kill()
    run.fs.process.wait(300)
    assert run.raw("dmsetup", "ls").returncode == 126
    assert "no dmfs is mounted there" in run.raw("true").stderr


@pytest.mark.root
def test_the_kernels_own_devices_have_holders(run, loop, backing):
    """Who looks for what stands on a device finds it, on the kernel's own, too; they are gone with the table."""
    device = loop(backing(4096))
    run("dmsetup", "create", "high", "--table", f"0 4096 linear {device} 0")
    base = os.path.basename(device)
    number = run("cat", f"/sys/block/{base}/dev").strip()
    for path in f"/sys/block/{base}", f"/sys/class/block/{base}", f"/sys/dev/block/{number}":
        assert run("ls", f"{path}/holders") == "dm-0\n"
        assert run("cat", f"{path}/size") == "4096\n" and run("test", "-d", f"{path}/queue") == ""
    assert re.search(rf"^{base} .*\n.*high ", run("lsblk", "-o", "NAME,SIZE"), re.M)
    run("dmsetup", "remove", "high")
    assert base not in run("ls", "/sys/class/block")
    assert run("cat", f"/sys/dev/block/{number}/size") == "4096\n"
