# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are zoned disks: what a host-managed disk enforces, what is kept, and who may have one."""

import errno
import os
import re
import shutil

import pytest

import zones
from mounted import SECTOR, pattern, quote

ZONE = 256              # sectors
BYTES = ZONE * SECTOR
N = 8


@pytest.fixture
def disk(work):
    """disk(*OPTIONS): the path of a zoned disk of 8 zones, 2 of them conventional."""
    return lambda *options, name="disk": zones.make(os.path.join(work, name), N, ZONE, 2, *options)


def linear(fs, path, name="z"):
    return fs.mkdir(name, f"0 {N * ZONE} linear {quote(path)} 0")


def refused(dev, zone, offset=0, code=errno.EIO, sectors=8):
    with pytest.raises(OSError) as e:
        dev.pwrite(pattern(sectors, 9), zone * BYTES + offset * SECTOR)
    assert e.value.errno == code


def test_writes_at_the_write_pointer_only(fs, disk):
    dev = linear(fs, disk())
    data = pattern(24, 1)
    dev.pwrite(data[:8 * SECTOR], 3 * BYTES)
    refused(dev, 3)                     # once more at the begin
    refused(dev, 3, 16)                 # beyond
    dev.pwrite(data[8 * SECTOR:], 3 * BYTES + 8 * SECTOR)
    assert dev.pread(len(data), 3 * BYTES) == data
    assert dev.pread(4096, 3 * BYTES + len(data)) == bytes(4096)
    dev.pwrite(data, BYTES + 4096)      # conventional: anywhere
    dev.pwrite(data, 0)
    found = zones.report(dev.image)
    assert [z.condition for z in found] == ["nw", "nw", "em", "oi", "em", "em", "em", "em"]
    assert found[3].wptr == 24 and found[1].wptr == 0
    dev.pwrite(pattern(ZONE - 24, 2), 3 * BYTES + len(data))
    assert zones.report(dev.image)[3].condition == "fu"
    refused(dev, 3)
    with pytest.raises(OSError) as e:
        dev.discard(0, BYTES)
    assert e.value.errno == errno.EOPNOTSUPP


def test_a_write_over_a_border_is_two(fs, disk):
    dev = linear(fs, disk())
    data = pattern(2 * ZONE, 5)
    dev.pwrite(data, 3 * BYTES)
    assert dev.pread(len(data), 3 * BYTES) == data
    assert [z.condition for z in zones.report(dev.image)][3:5] == ["fu", "fu"]


def test_commands(fs, disk):
    dev = linear(fs, disk())
    env = {"env": os.environ | {"DMFS_MOUNT": fs.mountpoint}}
    dev.pwrite(pattern(8, 1), 2 * BYTES)
    zones.run("open", "-o", 3 * ZONE, "-c", 2, "z", **env)
    assert [z.condition for z in zones.report(dev.path)][2:6] == ["oi", "oe", "oe", "em"]
    zones.run("close", "-o", 2 * ZONE, "-l", 2 * ZONE, dev.image)
    zones.run("finish", "-o", 5 * ZONE, "-c", 1, dev.image)
    found = zones.report("z", "-o", 2 * ZONE, "-c", 4, **env)
    assert [z.condition for z in found] == ["cl", "em", "oe", "fu"] and found[0].start == 2 * ZONE
    assert dev.pread(BYTES, 5 * BYTES) == bytes(BYTES)
    assert zones.run("capacity", dev.image).stdout == f"0x{N * ZONE:09x}\n"
    zones.run("reset", dev.image)
    assert [z.condition for z in zones.report(dev.image)] == ["nw"] * 2 + ["em"] * 6
    assert dev.pread(4096, 2 * BYTES) == bytes(4096)
    dev.pwrite(pattern(8, 3), 2 * BYTES)
    assert dev.message(f"@zone report {2 * ZONE} 1").startswith(f"  start: 0x{2 * ZONE:09x}, len 0x000100, cap 0x000100, "
                                                              "wptr 0x000008")


@pytest.mark.parametrize("text, code", [
    ("@zone", errno.EINVAL), ("@zone erase", errno.EINVAL), ("@zone report x", errno.EINVAL),
    (f"@zone report {N * ZONE}", errno.EINVAL), ("@zone report 0 1 2", errno.EINVAL), (f"@zone report 1 {N * ZONE}", errno.EINVAL),
    ("@zone report 0 0", errno.EINVAL), ("@zone reset 513", errno.EINVAL), ("@zone reset 512 1", errno.EINVAL),
    ("@zone reset 0 256", errno.EIO), ("@zone open 256 256", errno.EIO)])
def test_bad_messages(fs, disk, text, code):
    linear(fs, disk()).refuse(text, code, "@zone", to="message", flags=0)


def test_a_device_without_zones(fs, backing):
    dev = fs.mkdir("z", f"0 64 linear {quote(backing(64))} 0")
    dev.refuse("@zone report", errno.EOPNOTSUPP, "no zones", to="message", flags=0)


def test_bounds_of_open_and_active_zones(fs, disk):
    dev = linear(fs, disk("--max-open=2", "--max-active=3"))
    for zone in 2, 3, 4:        # the third closes the first, which was opened by a write alone
        dev.pwrite(pattern(8, zone), zone * BYTES)
    assert [z.condition for z in zones.report(dev.image)][2:] == ["cl", "oi", "oi", "em", "em", "em"]
    refused(dev, 5, code=errno.EOVERFLOW)
    zones.run("open", "-o", 3 * ZONE, "-c", 2, dev.image)
    refused(dev, 2, 8, code=errno.ETOOMANYREFS)
    zones.run("finish", "-o", 3 * ZONE, "-c", 1, dev.image)
    dev.pwrite(pattern(8, 1), 5 * BYTES)


def test_capacity_and_constrained_reads(fs, disk):
    dev = linear(fs, disk(f"--zone-capacity={BYTES // 2}", "--constrained-reads"))
    dev.pwrite(pattern(ZONE // 2, 1), 2 * BYTES)
    assert zones.report(dev.image)[2].condition == "fu"
    refused(dev, 2, ZONE // 2)
    with pytest.raises(OSError) as e:
        dev.pread(4096, 3 * BYTES)
    assert e.value.errno == errno.EIO


def test_host_aware_zones_may_be_written_anywhere(fs, disk):
    dev = linear(fs, disk("--model=host-aware"))
    dev.pwrite(pattern(8, 1), 2 * BYTES + 8192)
    dev.pwrite(pattern(8, 2), 2 * BYTES)
    assert dev.pread(4096, 2 * BYTES) == pattern(8, 2) and zones.report(dev.image)[2].wptr == 24
    assert zones.report(dev.image)[2].type == 3


def test_what_is_kept_is_a_report(dmfs, disk):
    path = disk()
    fs = dmfs()
    dev = linear(fs, path)
    dev.pwrite(pattern(8, 1), 2 * BYTES, sync=True)
    with open(path + ".zones", encoding="ascii") as f:
        text = f.read()
    assert re.search(r"\n# commit 1 [0-9a-f]{16}\n$", text), text[-200:]
    dev.pwrite(pattern(8, 2), 3 * BYTES)
    dev.remove()
    with open(path + ".zones", encoding="ascii") as f:
        text = f.read()
    found = zones.parse(text)
    assert len(found) == N and [z.wptr for z in found][2:4] == [8, 8]
    assert [z.condition for z in found][2:5] == ["oi", "oi", "em"]
    assert [z.condition for z in zones.report(path)][2:5] == ["cl", "cl", "em"]     # as after a power cycle


def test_a_killed_daemon_keeps_what_a_flush_promised(dmfs, disk):
    path = disk()
    fs = dmfs()
    dev = linear(fs, path)
    dev.pwrite(pattern(8, 1), 2 * BYTES)
    dev.pwrite(pattern(8, 2), 3 * BYTES, sync=True)
    dev.pwrite(pattern(8, 3), 3 * BYTES + 4096)
    zones.run("reset", "-o", 2 * ZONE, "-c", 1, dev.image)     # is kept at once
    fs.kill()
    fs.wait()
    fs.close()
    dev = linear(dmfs(), path)
    found = zones.report(dev.image)
    assert found[2].wptr == 0 and found[3].wptr in (8, 16)
    assert dev.pread(4096, 3 * BYTES) == pattern(8, 2)
    dev.pwrite(pattern(8, 4), 2 * BYTES)


def test_one_writer_alone(dmfs, disk, work):
    path = disk()
    a, b = dmfs(), dmfs()
    dev = linear(a, path)
    other = b.mkdir("z")
    other.refuse(f"0 {N * ZONE} linear {quote(path)} 0\n", errno.EBUSY, "in use by another program")
    assert "in use" in zones.run("reset", path, check=False).stderr
    assert "in use" in zones.run("format", path, f"--zone-size={BYTES}", "--force", check=False).stderr
    # by other names in one daemon it is one disk
    os.link(path, os.path.join(work, "hard"))
    os.symlink(path, os.path.join(work, "soft"))
    second = linear(a, os.path.join(work, "hard"), "second")
    linear(a, os.path.join(work, "soft"), "third")
    dev.pwrite(pattern(8, 1), 2 * BYTES)
    for name in "second", "third":
        assert zones.report(a[name].image)[2].wptr == 8
        refused(a[name], 2)
    second.remove()
    a["third"].remove()
    dev.remove()
    other.load(f"0 {N * ZONE} linear {quote(os.path.join(work, 'soft'))} 0")
    assert zones.report(other.image)[2].wptr == 8


def change(old, new, count=1):
    return lambda text: text.replace(old, new, count)


@pytest.mark.parametrize("bad, match", [
    (change("# dmfs zones 1", "# dmfs zones 2"), "version '2' is not 1"),
    (change("host-managed", "drive-managed"), "model 'drive-managed'"),
    (change("host-managed", "host-aware"), "no host-aware disk has"),
    (change("max-open 0", "max-open many"), "max-open 'many'"),
    (change("logical-block 512", "logical-block 513"), "logical blocks of 513"),
    (lambda text: text[:-300], r"has 2048 sectors, the zones of .* (1536|1280)"),
    (lambda text: "", "has no zones"),
    (lambda text: "\x00" * 4096, "has no zones"),
    (lambda text: "PNG\n" + text, "is no line of `blkzone report`: 'PNG'"),
    (change("start: 0x000000300", "start: 0x000000380"), "one before ends at 0x300"),
    (change("len 0x000100", "len 0x000300"), "power of two"),
    (change("len 0x000100", "len 0xffffffffffffffffff"), "is no line"),
    (change("cap 0x000100", "cap 0x000101"), "a capacity of 0x101"),
    (change("wptr 0x000000 reset:0 non-seq:0, zcond: 1", "wptr 0x000008 reset:0 non-seq:0, zcond: 1"), "an empty zone whose"),
    (change("zcond: 1(em)", "zcond: 7(x7)"), "zone condition 7"),
    (change("zcond: 0(nw)", "zcond: 1(em)"), "a conventional zone of condition 1"),
    (change("type: 2(", "type: 9("), "zone type 9"),
    (lambda text: text + "# commit 1 0123456789abcdef\n", "no zone was changed"),
])
def test_bad_zones_files(fs, disk, bad, match):
    path = disk()
    with open(path + ".zones", encoding="ascii") as f:
        text = f.read()
    with open(path + ".zones", "w", encoding="ascii") as f:
        f.write(bad(text))
    fs.mkdir("z").refuse(f"0 {N * ZONE} linear {quote(path)} 0\n", errno.EINVAL, match)
    with open(path + ".zones", encoding="ascii") as f:
        assert f.read() == bad(text)


def test_a_report_alone_and_batches_cut_short(fs, disk):
    path = disk()
    with open(path + ".zones", encoding="ascii") as f:
        text = "".join(line for line in f if not line.startswith("#"))
    for tail in "  start: 0x0000", text.splitlines(True)[3], text.splitlines(True)[3] + "# commit 1 0123456789abcdef\n", "\0" * 700:
        with open(path + ".zones", "w", encoding="ascii") as f:
            f.write(text + tail)
        dev = linear(fs, path)
        dev.pwrite(pattern(8, 1), 2 * BYTES, sync=True)
        dev.remove()
        assert len(zones.report(path)) == N


def test_a_file_of_another_length(fs, disk):
    path = disk()
    os.truncate(path, (N * ZONE - 8) * SECTOR)
    fs.mkdir("z").refuse(f"0 {ZONE} linear {quote(path)} 0\n", errno.EINVAL, "has 2040 sectors")


def test_targets_pass_zones_on_or_refuse(fs, disk, backing):
    low = linear(fs, disk(), "low")
    top = fs.mkdir("top", f"0 {4 * ZONE} linear low {2 * ZONE}")
    top.pwrite(pattern(8, 1), BYTES)
    assert zones.report(low.image)[3].wptr == 8 and zones.report(top.image)[1].wptr == 8
    assert len(zones.report(top.image)) == 4
    top.refuse(f"0 {ZONE} linear low 8\n", errno.EINVAL, "not aligned to the h/w zone size")
    top.refuse(f"0 {ZONE} mirror core 1 64 2 low 0 {quote(backing(ZONE))} 0\n", errno.EINVAL, "zoned model is not consistent")


@pytest.mark.parametrize("args, match", [
    (["--zone-size=64K"], "--size makes a new one"),
    (["--size=1M"], "--zone-size is needed"),
    (["--size=1M", "--zone-size=96K"], "power of two"),
    (["--size=1M", "--zone-size=64K", "--conventional=17"], "0 to the 16 zones"),
    (["--size=1M", "--zone-size=64K", "--model=smr"], "host-managed or host-aware"),
    (["--size=1M", "--zone-size=64K", "--zone-capacity=128K"], "up to the zone size"),
    (["--size=1M", "--zone-size=64K", "--block-size=100"], "512, 1024"),
    (["--size=1000", "--zone-size=64K"], "multiple of 4096"),
    (["--size=1X", "--zone-size=64K"], "K, M, G or T"),
    (["--size=1M", "--zone-size=64K", "--count=3"], "only for report"),
    (["--size=1M", "--zone-size=64K", "--max-open=3", "--max-active=2"], "not more open than active")])
def test_bad_format(work, args, match):
    done = zones.run("format", os.path.join(work, "new"), *args, check=False)
    assert done.returncode and match in done.stderr
    assert os.listdir(work) == []


def test_format_takes_nothing_away_unasked(work, disk):
    path = os.path.join(work, "full")
    with open(path, "wb") as f:
        f.write(pattern(N * ZONE, 1))
    assert "--force" in zones.run("format", path, f"--zone-size={BYTES}", check=False).stderr
    zones.run("format", path, f"--zone-size={BYTES}", "-C", 1, "--force")
    with open(path, "rb") as f:
        assert f.read(BYTES) == pattern(N * ZONE, 1)[:BYTES] and not f.read().strip(b"\0")
    other = disk()
    assert "--force" in zones.run("format", other, f"--zone-size={BYTES}", check=False).stderr


def test_many_changes_are_written_anew(fs, disk):
    """The batches do not grow without end."""
    path = disk()
    dev = linear(fs, path)
    with dev.open() as fd:
        for i in range(120):
            for zone in range(2, N):
                os.pwrite(fd, pattern(2, i), zone * BYTES + i * 2 * SECTOR)
            os.fsync(fd)
    assert os.stat(path + ".zones").st_size < 80000
    dev.remove()
    assert [z.wptr for z in zones.report(path)][2:] == [240] * 6
    assert sorted(os.listdir(os.path.dirname(path))) == ["disk", "disk.zones"]


def test_names_too_long_for_a_zones_file(fs, work):
    path = os.path.join(work, "n" * 252)
    with open(path, "wb") as f:
        f.truncate(64 * SECTOR)
    fs.mkdir("z", f"0 64 linear {quote(path)} 0")


def test_a_directory_where_nothing_can_be_made(dmfs, disk, work):
    if not os.geteuid():
        pytest.skip("root may")
    path = disk()
    fs = dmfs()
    dev = linear(fs, path)
    os.chmod(work, 0o500)
    try:
        dev.pwrite(pattern(8, 1), 2 * BYTES, sync=True)
        dev.remove()
        assert zones.report(path)[2].wptr == 8
    finally:
        os.chmod(work, 0o700)


def test_a_copy_is_a_disk(fs, disk, work):
    path = disk()
    dev = linear(fs, path)
    dev.pwrite(pattern(8, 1), 2 * BYTES, sync=True)
    dev.remove()
    for suffix in "", ".zones":
        shutil.copy(path + suffix, os.path.join(work, "copy" + suffix))
    assert linear(fs, os.path.join(work, "copy")).pread(4096, 2 * BYTES) == pattern(8, 1)
