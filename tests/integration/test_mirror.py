# SPDX-License-Identifier: GPL-2.0-or-later
"""mirror through the mount: resync under load, failing legs, what is refused, and a live pvmove."""

import errno
import mmap
import os
import struct
import subprocess
import threading

import pytest

from mounted import SECTOR, is_mounted, pattern, pwrite_all, quote, unmount, wait_status

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


def mirror(legs, sectors=2048, log="core 2 64 nosync", features=""):
    names = " ".join(f"{leg if '/' not in leg else quote(leg)} 0" for leg in legs)
    return f"0 {sectors} mirror {log} {len(legs)} {names} {features}"


def content(path):
    with open(path, "rb") as f:
        return f.read()


# --- resync ------------------------------------------------------------------------


def test_comes_in_sync_and_says_so(fs, backing):
    legs = [backing(40000, pattern(40000)), backing(40000)]
    dev = fs.mkdir("m")
    before = int(dev.info()["Event number"])
    dev.load(mirror(legs, 40000, "core 1 1024"))
    wait_status(dev, r" 40/40 1 AA 1 core")
    assert content(legs[1]) == content(legs[0])
    assert int(dev.info()["Event number"]) == before + 1


def test_nine_legs_and_more(fs, backing):
    for n in (2, 3, 9, 10, 20):
        legs = [backing(1000, pattern(1000, n)), *(backing(1000) for _ in range(n - 1))]
        dev = fs.mkdir(f"m{n}", mirror(legs, 1000, "core 1 64"))
        wait_status(dev, rf" 16/16 1 {'A' * n} ")
        dev.pwrite(b"x" * 5000, 3000, sync=True)
        dev.remove()
        assert len({content(leg) for leg in legs}) == 1


def test_many_writers_during_the_resync(fs, backing):
    """Overlapping writes from several threads while it is copied: afterwards the legs are the same."""
    sectors = 16384
    legs = [backing(sectors, pattern(sectors)), backing(sectors, pattern(sectors, 3)), backing(sectors)]
    dev = fs.mkdir("m", mirror(legs, sectors, f"disk 3 {quote(backing(64))} 64 sync"))
    dev.message("raid1_resync_throttle 30")
    errors = []

    def write(seed):
        import random
        rand = random.Random(seed)
        buf = mmap.mmap(-1, 65536)
        try:
            with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
                for i in range(150):
                    length = rand.randrange(1, 129) * SECTOR
                    buf[:length] = bytes([rand.randrange(256)]) * length
                    at = rand.randrange(0, (1 << 20) // SECTOR) * SECTOR
                    os.pwrite(fd, memoryview(buf)[:length], at)
                    if i % 50 == 0:
                        os.fsync(fd)
        except OSError as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    dev.message("raid1_resync_throttle 100")
    wait_status(dev, r" 256/256 1 AAA 3 disk \S+ A")
    data = dev.pread(sectors * SECTOR, 0)
    assert content(legs[0]) == content(legs[1]) == content(legs[2]) == data
    dev.remove()


def test_mirror_of_mirrors(fs, backing):
    files = [backing(2048) for _ in range(4)]
    for i in range(2):
        fs.mkdir(f"half{i}", mirror(files[2 * i:2 * i + 2]))
    dev = fs.mkdir("whole", mirror(["half0", "half1"]))
    data = pattern(2048, 4)
    dev.pwrite(data, 0, sync=True)
    assert all(content(f) == data for f in files)
    assert dev.table().rstrip() == "0 2048 mirror core 2 64 nosync 2 half0 0 half1 0"
    assert sorted(dev.read("deps").split()) == ["half0", "half1"]


def test_discard_and_zero_reach_all_legs(fs, backing):
    legs = [backing(8192, pattern(8192)) for _ in range(2)]
    dev = fs.mkdir("m", mirror(legs, 8192))
    dev.discard(4096 * 10, 4096 * 300)
    dev.zero(4096 * 500, 4096 * 100)
    want = bytearray(pattern(8192))
    want[40960:40960 + 1228800] = bytes(1228800)
    want[2048000:2048000 + 409600] = bytes(409600)
    assert content(legs[0]) == content(legs[1]) == bytes(want)
    with dev.open(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 40960
        assert os.lseek(fd, 40960, os.SEEK_DATA) == 40960 + 1228800


def test_what_fsync_covered_survives_the_daemon(dmfs, backing):
    sectors = 4096
    legs, log = [backing(sectors), backing(sectors)], backing(64)
    for round in range(3):
        mount = dmfs()
        dev = mount.mkdir("m", mirror(legs, sectors, f"disk 2 {quote(log)} 64"))
        if not round:
            wait_status(dev, " 64/64 1 AA ")
        data = pattern(64, round)
        dev.pwrite(data, round * 100 * SECTOR, sync=True)
        dev.pwrite(b"?" * 9000, 3000 * SECTOR)
        mount.kill()
        mount.wait()
    mount = dmfs()
    dev = mount.mkdir("m", mirror(legs, sectors, f"disk 2 {quote(log)} 64"))
    wait_status(dev, " 64/64 1 AA ")
    for round in range(3):
        assert dev.pread(64 * SECTOR, round * 100 * SECTOR) == pattern(64, round)
    dev.remove()
    assert content(legs[0]) == content(legs[1])


def test_it_grows_and_shrinks_with_its_log(fs, backing):
    """What was in sync stays so, what is new is copied; others than the live table may not."""
    legs = [backing(4096), backing(4096)]
    log = backing(16)
    line = lambda sectors, sync="": f"0 {sectors} mirror disk {2 + bool(sync)} {log} 1024 {sync} " \
        f"2 {legs[0]} 0 {legs[1]} 0".replace("  ", " ")
    dev = fs.mkdir("m", line(2048, "nosync"))
    dev.pwrite(b"n" * 4096, 2040 * 512, sync=True)
    dev.load(line(4096))
    wait_status(dev, " 4/4 ")
    for leg in legs:
        with open(leg, "rb") as f:
            f.seek(2040 * 512)
            assert f.read(4096) == b"n" * 4096
    dev.load(line(1024))
    assert " 1/1 " in dev.status()
    os.rmdir(dev.path)
    with pytest.raises(OSError):
        fs.mkdir("m").load(line(2048))


def test_read_only_touches_nothing(fs, backing):
    legs = [backing(2048, pattern(2048, i)) for i in range(2)]
    log = log_file(backing, regions=32)
    with open(log, "r+b") as f:
        f.seek(1024)
        f.write(b"\xfe\xff\xff\xff\0\0\0\0")      # region 0 is out of sync
    before = [content(f) for f in (*legs, log)]
    dev = fs.mkdir("m")
    dev.write("readonly", "1")
    dev.load(mirror(legs, 2048, f"disk 2 {quote(log)} 64"))
    assert " 31/32 1 AA 3 disk " in dev.status()
    assert dev.pread(64 * SECTOR, 0) == pattern(2048)[:64 * SECTOR]
    with pytest.raises(OSError):
        os.close(os.open(dev.image, os.O_RDWR))
    dev.remove()
    assert [content(f) for f in (*legs, log)] == before


# --- failing legs --------------------------------------------------------------------


def error(sectors=2048):
    return f"0 {sectors} error"


def linear(path, sectors=2048):
    return f"0 {sectors} linear {quote(path)} 0"


def test_a_leg_fails_and_is_replaced(fs, backing):
    files = [backing(2048, pattern(2048)) for _ in range(2)]
    log = backing(64)
    leg = fs.mkdir("leg", linear(files[1]))
    dev = fs.mkdir("m", mirror([files[0], "leg"], 2048, f"disk 3 {quote(log)} 64 nosync", "2 handle_errors keep_log"))
    before = int(dev.info()["Event number"])
    leg.load(error())
    dev.pwrite(b"x" * 4096, 0, sync=True)
    status = wait_status(dev, " 31/32 1 A[DF] 3 disk ")
    assert int(dev.info()["Event number"]) > before
    assert dev.pread(4096, 0) == b"x" * 4096
    assert "leg" in status
    # the same leg again: what it missed is in the log
    leg.load(linear(files[1]))
    dev.load(mirror([files[0], "leg"], 2048, f"disk 2 {quote(log)} 64", "2 handle_errors keep_log"))
    wait_status(dev, " 32/32 1 AA ")
    assert content(files[1])[:4096] == b"x" * 4096
    # another one: sync copies all of it
    new = backing(2048)
    dev.load(mirror([files[0], new], 2048, f"disk 3 {quote(log)} 64 sync", "2 handle_errors keep_log"))
    wait_status(dev, " 32/32 1 AA ")
    assert content(new) == content(files[0]) == content(files[1])
    dev.remove()
    leg.remove()


@pytest.mark.parametrize("how", ["block_on_error", "handle_errors"])
def test_a_write_waits_until_somebody_decides(fs, backing, how):
    files = [backing(2048) for _ in range(2)]
    leg = fs.mkdir("leg", linear(files[1]))
    if how == "block_on_error":
        dev = fs.mkdir("m", mirror([files[0], "leg"], log="core 3 64 nosync block_on_error"))
    else:
        dev = fs.mkdir("m", mirror([files[0], "leg"], features="1 handle_errors"))
    assert dev.table().rstrip().endswith(" 1 handle_errors")
    leg.load(error())
    result = []

    def write():
        try:
            with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
                buf = mmap.mmap(-1, 4096)
                buf[:] = b"w" * 4096
                result.append(os.pwrite(fd, buf, 8192))
        except OSError as e:
            result.append(e)

    writer = threading.Thread(target=write)
    writer.start()
    wait_status(dev, " 31/32 1 AD ")
    assert writer.is_alive() and not result
    dev.write("inactive", linear(files[0]) + "\n")
    dev.suspend(noflush=True)
    assert not result
    dev.resume()
    writer.join()
    assert result == [4096]
    assert dev.pread(4096, 8192) == b"w" * 4096 and dev.table().split()[2] == "linear"


# --- what is refused -------------------------------------------------------------------


def log_file(backing, magic=0x4d695272, version=2, regions=32, sectors=16):
    return backing(sectors, struct.pack("<IIQ", magic, version, regions) + bytes(1008) + b"\xff" * 8)


def test_refused(fs, backing):
    a, b, short = backing(2048), backing(2048), backing(2047)
    dev = fs.mkdir("m", mirror([a, b]))
    ends = f"2 {quote(a)} 0 {quote(b)} 0"

    def log(*args, **kw):
        return f"0 2048 mirror disk 2 {quote(log_file(backing, *args, **kw))} 64 {ends}\n"

    dev.refuse(log(sectors=3 - 1), match="too small: need 1536 bytes")
    dev.refuse(log(magic=0x12345678), match="magic 0x12345678")
    dev.refuse(log(version=3), match="version 3")
    dev.refuse(log(regions=31), match="31 regions")
    dev.refuse(log(regions=1 << 63), match="9223372036854775808 regions")
    dev.refuse(mirror([a, short]) + "\n", match="too small")
    dev.refuse(f"0 2048 mirror core 2 64 nosync 2 {quote(a)} 0 {quote(b)} 1\n", match="too small")
    dev.refuse("0 2048 mirror core 2 64 nosync 0\n", match="number of mirrors '0'")
    dev.refuse(f"0 2048 mirror core 2 64 nosync 1 {quote(a)} 0\n", match="number of mirrors '1'")
    dev.refuse(f"0 2048 mirror core 2 64 nosync 99999 {quote(a)} 0\n", match="number of mirrors '99999'")
    dev.refuse(f"0 2048 mirror clustered 2 64 nosync {ends}\n", match="unknown log type 'clustered'")
    dev.refuse(f"0 2048 mirror userspace 4 u 64 clustered-core 1 {ends}\n", match="unknown userspace log type '64'")
    dev.refuse(f"0 2048 mirror userspace 2 u clustered-core {ends}\n", match="Too few arguments to userspace dirty log")
    dev.refuse(f"0 2048 mirror userspace 3 {'u' * 129} clustered-core 64 {ends}\n", match="UUID argument too long")
    dev.refuse(f"0 2048 mirror core 2 100 nosync {ends}\n", match="region size '100'")
    dev.refuse(f"0 2048 mirror core 2 4096 nosync {ends}\n", match="region size '4096'.*2048")
    dev.refuse(f"0 2048 mirror core 9 64 nosync {ends}\n", match="Insufficient")
    dev.refuse(f"0 2048 mirror core 2 64 nosync {ends} 1 keep_log\n", match="requires")
    dev.refuse(f"0 2048 mirror core 2 64 nosync {ends} 1 what\n", match="'what'")
    dev.refuse(f"0 2048 mirror core 2 64 nosync 2 {quote(a)} 0 {quote(a)}.not 0\n", code=errno.ENOENT)
    dev.refuse(f"0 2048 mirror disk 2 {quote(a)}.not 64 {ends}\n", code=errno.ENOENT)
    dev.refuse("raid1_resync_throttle 0", to="message", match="throttle", flags=0)
    dev.refuse("raid1_resync_throttle 101", to="message", match="throttle", flags=0)
    dev.refuse("faster", to="message", match="'faster'", flags=0)


# --- pvmove ---------------------------------------------------------------------------------


def run_pvmove(fs, sh, *args, check=True):
    return sh(f'exec {TOP}/contrib/examples/pvmove "$@"', *args, check=check, DMFS_MOUNT=fs.mountpoint)


class FileSystem:
    """An ext4 in an image, mounted by the kernel through a loop device (root) or by fuse2fs."""

    def __init__(self, image, directory):
        self.dir = directory
        os.makedirs(directory, exist_ok=True)
        # fuse2fs lets go of the image some time after the unmount: it has this pipe as long as it lives
        self.alive, hers = os.pipe()
        if os.geteuid() == 0:
            cmd = ["mount", "-t", "ext4", "-o", "loop", image, directory]
        else:
            cmd = ["fuse2fs", "-o", "fakeroot", image, directory]
        try:
            done = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  timeout=300, pass_fds=[hers], check=False)
        except FileNotFoundError:
            pytest.skip(f"no {cmd[0]}")
        finally:
            os.close(hers)
        if done.returncode:
            pytest.skip(f"{' '.join(cmd)}: exit {done.returncode}")

    def close(self):
        if is_mounted(self.dir):
            done = unmount(self.dir)
            assert done.returncode == 0, done.stderr
        while os.read(self.alive, 1):
            pass
        os.close(self.alive)


def test_pvmove(fs, backing, sh, work, tool):
    """A mounted file system moves to another file while it is written to."""
    sectors = 400000
    old, new = backing(sectors, name="old disk"), os.path.join(work, "new#disk")
    open(new, "wb").close()
    dev = fs.mkdir("vol", f"0 {sectors - 5000} linear {quote(old)} 5000")
    subprocess.run([tool("mke2fs"), "-q", "-F", "-t", "ext4", dev.image], check=True, timeout=300)
    disk = FileSystem(dev.image, os.path.join(work, "mnt"))
    written, over = {}, threading.Event()

    def write():
        i = 0
        while not over.is_set() or i < 30:
            name, data = f"file{i % 200}", pattern(1 + i % 60, i)
            with open(os.path.join(disk.dir, name), "wb") as f:
                f.write(data)
                f.flush()
                if i % 5 == 0:
                    os.fsync(f.fileno())
            written[name] = data
            i += 1

    writer = threading.Thread(target=write)
    try:
        writer.start()
        run_pvmove(fs, sh, "vol", old, new)
    finally:
        over.set()
        writer.join()
        disk.close()
    assert dev.table().rstrip() == f"0 {sectors - 5000} linear {new} 0"
    with open(old, "r+b") as f:
        pwrite_all(f.fileno(), b"\xee" * (4 << 20), 0)     # nobody needs it any more
    done = subprocess.run([tool("e2fsck"), "-fn", new], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    disk = FileSystem(dev.image, disk.dir)
    try:
        assert len(written) >= 30
        for name, data in written.items():
            assert content(os.path.join(disk.dir, name)) == data, name
    finally:
        disk.close()


def test_pvmove_of_a_part(fs, backing, sh):
    files = [backing(1000, pattern(1000, i)) for i in range(3)]
    lines = [f"0 500 linear {quote(files[0])} 7", "500 3 zero", f"503 400 linear {quote(files[1])} 0",
             f"903 3 linear {quote(files[0])} 900"]
    dev = fs.mkdir("vol", *lines)
    before = dev.pread(906 * SECTOR, 0)
    run_pvmove(fs, sh, "vol", files[0], files[2])
    assert dev.table().splitlines() == [f"0 500 linear {files[2]} 0", *lines[1:3], f"903 3 linear {files[2]} 903"]
    assert dev.pread(906 * SECTOR, 0) == before


def test_pvmove_to_a_disk_that_fails(fs, backing, sh):
    old = backing(2000, pattern(2000))
    dev = fs.mkdir("vol", f"0 2000 linear {quote(old)} 0")
    bad = fs.mkdir("bad", f"0 1000 linear {quote(backing(1000))} 0", "1000 1000 error")
    table = dev.table()
    done = run_pvmove(fs, sh, "vol", old, bad.image, check=False)
    assert done.returncode == 1 and "on" in done.stderr and dev.table() == table
    assert dev.pread(2000 * SECTOR, 0) == pattern(2000) and not dev.suspended()
