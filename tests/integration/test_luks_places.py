# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: a volume's data is never on its own header or another's, nor where something else writes."""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess

import pytest

import bitlocker
from luks import QUICK, Luks, cryptsetup, edit_luks2
from mounted import SECTOR, pattern, quote
from thinpool import BS, Pool

MIB = 1 << 20


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


@pytest.fixture
def detached(luks, work, tool):
    """(header, data) of a volume whose header is in a file of its own, made by cryptsetup."""
    def make(kind):
        header, data = os.path.join(work, f"{kind}.header"), os.path.join(work, f"{kind}.data")
        with open(data, "wb") as f:
            f.truncate(20 * MIB)
        cryptsetup(tool, "luksFormat", "--type", kind, "--header", header, data, given=b"sesame")
        return header, data

    return make


def content(path):
    with open(path, "rb") as f:
        return f.read()


ON_HEADER = r"within its own header, which ends at byte \d+: it seems to be a detached header; name the file that holds"
SAME = "both are the same storage; name the file that holds the data"


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_detached_header_is_no_volume(luks, detached, work, kind):
    """By its path, twice, by a symbolic or a hard link, for reading too; nothing of it is written."""
    header, data = detached(kind)
    before = content(header)
    soft, hard = os.path.join(work, "soft"), os.path.join(work, "hard")
    os.symlink(header, soft)
    os.link(header, hard)
    for path in (header, soft, hard):
        luks.refuse("open", path, "v", match=ON_HEADER)
        luks.refuse("open", path, "v", "--readonly", match=ON_HEADER)
        luks.refuse("open", path, "v", "--type", kind, "--shared", match=ON_HEADER)
        luks.refuse("open", header, "v", "--header", path, match=SAME if path == hard else ON_HEADER)
        luks.refuse("open", path, "v", "--header", header, match=SAME if path == hard else ON_HEADER)
    luks.refuse("open", "luks.header/..//" + os.path.basename(header), "v", match="No such file|Not a directory")
    assert content(header) == before
    luks.open(data, "v", "--header", soft).pwrite(pattern(8), 0, sync=True)
    luks.run("close", "v")
    assert content(header) == before


def test_header_through_devices(luks, detached):
    """A dmfs device above the header, or above a part of it; two devices that do not overlap are all right."""
    header, data = detached("luks1")
    sectors = os.stat(header).st_size // SECTOR
    before = content(header)
    whole = luks.fs.mkdir("whole", f"0 {sectors} linear {quote(header)} 0")
    shifted = luks.fs.mkdir("shifted", f"0 {sectors - 64} linear {quote(header)} 64")
    luks.fs.mkdir("below", f"0 {sectors} linear whole 0")
    split = luks.fs.mkdir("split", f"0 8 zero\n8 {sectors - 8} linear below 8")
    striped = luks.fs.mkdir("striped", f"0 {sectors // 16 * 16} striped 1 16 {quote(header)} 0")
    for dev in (whole, shifted, split, striped):
        luks.refuse("open", dev.image, "v", "--header", header, match="the same storage|within its own header")
        luks.refuse("open", dev.image, "v", "--header", header, "--shared", "-r", match="the same storage")
    luks.refuse("open", header, "v", "--header", whole.image, match="the same storage")
    luks.refuse("open", whole.image, "v", match=ON_HEADER)
    assert content(header) == before
    # one file, header in front, data behind
    both = data + ".both"
    with open(both, "wb") as f:
        f.write(before)
        f.truncate(len(before) + 4 * MIB)
    luks.fs.mkdir("front", f"0 {sectors} linear {quote(both)} 0")
    luks.fs.mkdir("back", f"0 8192 linear {quote(both)} {sectors}")
    front, back = (os.path.join(luks.fs.mountpoint, n, "image") for n in ("front", "back"))
    dev = luks.open(back, "v", "--header", front)
    dev.pwrite(pattern(8192), 0, sync=True)
    luks.run("close", "v")
    assert content(both)[:len(before)] == before
    luks.open(back, "v", "--header", front)
    luks.run("close", "v")


def test_header_by_an_unknown_way(luks, detached, work):
    """What nobody can see is the same storage has the same header in it: a copy, too."""
    for kind in ("luks1", "luks2"):
        header, _ = detached(kind)
        copy = os.path.join(work, "copy")
        shutil.copyfile(header, copy)
        luks.refuse("open", copy, "v", "--header", header,
                    match=f"copy has the very header of .*{kind}.header at byte 0")
        assert content(copy) == content(header)


def test_header_of_another_volume(luks, detached, work):
    """The wrong file beside --header: another header, a volume with its header, a BitLocker volume."""
    header, data = detached("luks2")
    other, _ = detached("luks1")
    volume = os.path.join(work, "volume")
    luks.format(volume)
    bde = bitlocker.Volume(luks.fs, work).path
    for path, kind in ((other, "LUKS1"), (volume, "LUKS2"), (bde, "BitLocker")):
        before = content(path)
        luks.refuse("open", path, "v", "--header", header,
                    match=f"has a {kind} header of its own where the data of .* would be, "
                    "which would destroy it: name the file that holds the data")
        assert content(path) == before
    luks.open(data, "v", "--header", header)
    luks.run("close", "v")


def test_header_backup(luks, work, tool):
    """A backup of the header opens the volume that it is of, and is no volume itself."""
    path, backup = os.path.join(work, "v"), os.path.join(work, "backup")
    luks.format(path)
    luks.open(path, "v").pwrite(pattern(8, 3), 0, sync=True)
    luks.run("close", "v")
    cryptsetup(tool, "luksHeaderBackup", path, "--header-backup-file", backup)
    dev = luks.open(path, "v", "--header", backup)
    assert dev.pread(8 * SECTOR, 0) == pattern(8, 3)
    luks.run("close", "v")
    luks.refuse("open", backup, "v", "-r", match="16777216 bytes|too small|too few for data .* from sector 32768 on")


@pytest.mark.parametrize("change,match", [
    (lambda s: s.update(offset="0"), ON_HEADER),
    (lambda s: s.update(offset=str(8 * MIB)), "not a valid LUKS device: .*(too large|[Dd]ata offset)"),
    (lambda s: s.update(offset=str(20 * MIB)), "too few for data of 1 from sector 40960 on: was it cut short"),
    (lambda s: s.update(offset=str(1 << 50)), "too few for data"),
    (lambda s: s.update(offset=str((1 << 63) + 512)), "too few for data|not a valid"),
    (lambda s: s.update(size=str(5 * MIB)), "too few for data of 10240 from sector 32768"),
    (lambda s: s.update(size=str((1 << 64) - 4096)), "too few for data|not a valid|has a size of"),
    (lambda s: s.update(size="0"), "has a size of 0|not a valid"),
    (lambda s: s.update(size="1000"), "has a size of 1000, not of sectors of 4096 bytes|not a valid"),
    (lambda s: s.update(size="4096x"), "has a size of 0|not a valid"),
    (lambda s: s.update(sector_size=8192), "sectors have 8192 bytes|not a valid"),
    (lambda s: s.update(sector_size=256), "sectors have 256 bytes|not a valid"),
    (lambda s: s.update(iv_tweak="x"), "no iv_tweak that is a number|not a valid"),
])
def test_segments(luks, work, change, match):
    """LUKS2 metadata (with right checksums) whose data is somewhere it cannot be."""
    path = os.path.join(work, "v")
    luks.format(path)
    edit_luks2(path, lambda m: change(m["segments"]["0"]))
    before = content(path)
    luks.refuse("open", path, "v", match=match)
    assert content(path) == before


@pytest.mark.parametrize("offset", [0, 8, 4000])
def test_luks1_payload(luks, work, tool, offset):
    """A LUKS1 header whose payload begins at itself, or among its key slots."""
    path = os.path.join(work, "v")
    luks.format(path, "--type", "luks1")
    with open(path, "r+b") as f:
        f.seek(104)
        f.write(struct.pack(">I", offset))
    before = content(path)
    luks.refuse("open", path, "v",
                match=ON_HEADER if not offset else "LUKS keyslot [07] is invalid|within its own header")
    assert content(path) == before
    with open(path, "r+b") as f:
        f.seek(104)
        f.write(struct.pack(">I", 0xFFFFFFFF))
    luks.refuse("open", path, "v", match="too few for data|not a valid")


def test_iv_tweak_and_size(luks, work):
    """LUKS2's segment says where IVs begin and how long it is; both are in the table."""
    path = os.path.join(work, "v")
    luks.format(path, "--sector-size", "512")
    edit_luks2(path, lambda m: m["segments"]["0"].update(iv_tweak="1234567", size=str(2 * MIB)))
    words = luks.open(path, "v").table().split()
    assert words[1] == "4096" and words[5] == "1234567" and words[7] == "32768"
    luks.run("close", "v")


# --- in use --------------------------------------------------------------------------------------

def busy(luks, path, *options,
         match=r"is in use: .*/v writes to it; close that first, or use it beside that one with --shared"):
    done = luks.open(path, "w", *options, check=False)
    assert done.returncode == 5 and re.search(match, done.stderr.decode()), done


def test_opened_twice(luks, work, dmfs, tool):
    """By the same path, a link, a device above it, in another dmfs; reading is all right, and so is --shared."""
    path, soft, hard = (os.path.join(work, n) for n in ("v.img", "soft", "hard"))
    luks.format(path)
    os.symlink(path, soft)
    os.link(path, hard)
    luks.open(path, "v")
    other = Luks(luks.program, dmfs())
    for l in (luks, other):
        for name in (path, soft, hard):
            busy(l, name)
    for options in (["--readonly"], ["--shared"]):
        luks.open(path, "w", *options)
        luks.run("close", "w")
    luks.run("close", "v")
    # a device that is there already, and the volume above it: the table of the one is no reason for the other
    luks.fs.mkdir("lin", f"0 {os.stat(path).st_size // SECTOR} linear {quote(path)} 0")
    image = os.path.join(luks.fs.mountpoint, "lin", "image")
    busy(luks, path, match="is in use: .*/lin writes to it")
    luks.open(image, "v")
    busy(luks, image)
    busy(luks, path, match="is in use: .*/(lin|v) writes to it")
    luks.run("close", "v")
    luks.open(path, "v", "--readonly")      # who only reads is in nobody's way
    luks.run("close", "v")


def test_a_directory_of_images(work, dmfs, tool, backing):
    """DIR/NAME of -o images=DIR is the device NAME, wherever it matters that it is."""
    images, file = os.path.join(work, "images"), os.path.join(work, "v.img")
    os.mkdir(images)
    luks = Luks(tool("dmfs-luks"), dmfs(options=f"images={images}"))
    luks.format(file)
    sectors = os.stat(file).st_size // SECTOR
    disk = luks.fs.mkdir("disk", f"0 {sectors} linear {quote(file)} 0")
    luks.fs.mkdir("other", f"0 {sectors} linear {quote(backing(sectors))} 0")
    flat = os.path.join(images, "disk")
    dev = luks.open(flat, "x")
    assert dev.table().split()[6] == "disk"
    dev.pwrite(pattern(8), 0, sync=True)
    for path in (flat, disk.image, file):
        luks.refuse("open", path, "y", match=rf"in use: {luks.fs.mountpoint}/(x|disk) writes to it", code=5)
    luks.refuse("format", flat, *QUICK, "--batch", match=f"in use: {luks.fs.mountpoint}/x writes to it", code=5)
    luks.run("close", "x")
    assert luks.open(disk.image, "x").pread(4096, 0) == pattern(8)
    luks.refuse("open", flat, "y", match="in use", code=5)
    luks.run("close", "x")
    luks.refuse("format", disk.image, *QUICK, "--batch", "--header", flat, match="same storage")
    luks.format(os.path.join(images, "other"), size=None)
    luks.open(os.path.join(images, "other"), "o")
    luks.run("close", "o")


def test_another_dmfs_hangs(luks, work, dmfs):
    """Its daemon is stopped: what it uses is not known, which is told, and nothing else waits for it."""
    path, other = os.path.join(work, "v.img"), dmfs()
    luks.format(path)
    other.signal(signal.SIGSTOP)
    try:
        done = luks.run("open", path, "v", given=b"sesame\n")
        assert re.search(f"v.img: whether it is in use there is not known, as these do not answer: .*{other.mountpoint}",
                         done.stderr.decode())
        busy(luks, path)
        luks.run("close", "v")
    finally:
        other.signal(signal.SIGCONT)


def side_by_side(luks, images):
    for i, image in enumerate(images):
        luks.run("format", image, *QUICK, given=b"sesame")
        luks.open(image, f"v{i}")
    for i, image in enumerate(images):
        luks.refuse("open", image, "w", match=f"is in use: .*/v{i} writes to it", code=5)
        luks.run("close", f"v{i}")


def test_parts_of_a_disk_side_by_side(luks, work):
    disk = os.path.join(work, "disk")
    with open(disk, "wb") as f:
        f.truncate(50 * MIB)
    side_by_side(luks, [luks.fs.mkdir(f"part{i}", f"0 40960 linear {quote(disk)} {i * 51200}").image for i in range(2)])
    luks.fs.mkdir("above", "0 40960 linear part0 0")
    luks.refuse("open", disk, "v", match="has no LUKS|is in use")
    luks.refuse("open", os.path.join(luks.fs.mountpoint, "part0", "image"), "v",
                match="is in use: .*/above writes to it")


def test_thin_volumes_side_by_side(luks, backing):
    pool = Pool(luks.fs, backing, blocks=700)
    side_by_side(luks, [pool.thin(i, 40960 // BS).image for i in range(2)])
    luks.refuse("format", pool.data, "-q", *QUICK, match="is in use: .*/pool writes to it", code=5)
    luks.refuse("format", pool.meta, "-q", *QUICK, match="is in use: .*/pool writes to it", code=5)


def test_two_at_the_same_time(luks, work):
    """While one waits for its passphrase, another is refused; when it has ended, it is not."""
    path = os.path.join(work, "v.img")
    luks.format(path)
    first = subprocess.Popen([luks.program, "-m", luks.fs.mountpoint, "open", path, "v"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open("/proc/locks", encoding="ascii") as locks:
        while str(os.stat(path).st_ino) not in locks.read():
            assert first.poll() is None
            locks.seek(0)
    busy(luks, path, match="is being opened or locked by another program")
    out = first.communicate(b"sesame\n", timeout=240)
    assert first.returncode == 0, out
    luks.run("close", "v")
    luks.open(path, "v")
    luks.run("close", "v")


class Flock(ctypes.Structure):
    _fields_ = [("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_int64), ("len", ctypes.c_int64),
                ("pid", ctypes.c_int)]


def test_locked_by_another_program(luks, work):
    """As qemu locks bytes 100 and up of an image."""
    path = os.path.join(work, "v.img")
    luks.format(path)
    with open(path, "rb") as f:
        fcntl.fcntl(f, 37, bytes(Flock(fcntl.F_RDLCK, 0, 100, 1, 0)))      # F_OFD_SETLK
        busy(luks, path, match="is in use: another program has locked it")
        luks.refuse("format", path, "-q", *QUICK, match="another program has locked it", code=5)
        luks.open(path, "v", "--shared")
        luks.run("close", "v")
        luks.open(path, "v", "--readonly")
        luks.run("close", "v")
    luks.open(path, "v")
    luks.run("close", "v")


@pytest.mark.root
def test_loop_devices(luks, work, loop, detached):
    """A loop device of the file, of a part of it, of an image; and a header by one."""
    header, data = detached("luks2")
    before = content(header)
    device = loop(header)
    luks.refuse("open", device, "v", match=ON_HEADER)
    luks.refuse("open", device, "v", "--header", header, match="the same storage")
    luks.refuse("open", header, "v", "--header", device, match="the same storage")
    part = loop(header, "-o", str(4 * MIB))
    luks.refuse("open", part, "v", "--header", header, match="the same storage")
    dev = luks.open(data, "v", "--header", device)
    above = loop(data)
    busy(luks, above, "--header", header)
    busy(luks, data, "--header", header)
    luks.run("close", "v")
    busy(luks, data, "--header", header, match=f"is in use: {above} writes to it")
    luks.open(above, "v", "--header", header)       # which is its own
    luks.run("close", "v")
    # a loop device on an image, by which the way leads back
    whole = luks.fs.mkdir("whole", f"0 {len(before) // SECTOR} linear {quote(header)} 0")
    luks.refuse("open", loop(whole.image), "v", "--header", header, match="the same storage")
    assert content(header) == before
    readonly = loop(data, "-r")
    subprocess.run(["losetup", "-d", above], check=True, timeout=60)
    luks.open(data, "v", "--header", header)        # who only reads is in nobody's way
    luks.run("close", "v")
    luks.refuse("open", readonly, "v", "--header", header, match="cannot be written .*: -r opens it for reading only")
    assert dev.name == "v"


@pytest.mark.root
def test_mounted(luks, work, loop, sh, tool):
    """A block device that is mounted."""
    path, mnt = os.path.join(work, "v.img"), os.path.join(work, "mnt")
    os.mkdir(mnt)
    with open(path, "wb") as f:
        f.truncate(32 * MIB)
    sh(f'{tool("mke2fs")} -q -F "$1"', path)
    device = loop(path)
    mounted = subprocess.run(["mount", device, mnt], capture_output=True, text=True, timeout=60)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr}")
    try:
        luks.refuse("format", device, "-q", *QUICK, match="is in use: it is mounted", code=5)
        luks.refuse("format", path, "-q", *QUICK, match=f"is in use: {device} writes to it; close that first", code=5)
        luks.refuse("open", device, "v", match="is in use: it is mounted", code=5)
    finally:
        subprocess.run(["umount", mnt], check=True, timeout=60)
    luks.run("format", device, "-q", *QUICK, given=b"sesame")
    luks.open(device, "v")
    luks.run("close", "v")


@pytest.mark.root
def test_bind_mount(luks, detached, work):
    """The header under another name, by a bind mount."""
    header, _ = detached("luks1")
    place = os.path.join(work, "place")
    with open(place, "wb"):
        pass
    bound = subprocess.run(["mount", "--bind", header, place], capture_output=True, text=True, timeout=60)
    if bound.returncode:
        pytest.skip(f"mount --bind: {bound.stderr}")
    try:
        luks.refuse("open", place, "v", "--header", header, match="the same storage")
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


def test_file_that_cannot_be_written(luks, work):
    if not os.geteuid():
        pytest.skip("root may write everything")
    path = os.path.join(work, "v.img")
    luks.format(path)
    os.chmod(path, 0o400)
    luks.refuse("open", path, "v", match=r"cannot be written \(Permission denied\): -r opens it for reading only")
    luks.open(path, "v", "-r")
    luks.run("close", "v")
    luks.refuse("format", path, "-q", *QUICK, match="Permission denied")
    os.chmod(path, 0)
    luks.refuse("open", path, "v", "-r", match="Permission denied")


# --- format --------------------------------------------------------------------------------------

def test_format_of_what_is_in_use(luks, work):
    """An open volume, or what is below one, whatever --batch says; nothing is written."""
    path, header = os.path.join(work, "v.img"), os.path.join(work, "header")
    luks.format(path)
    dev = luks.open(path, "v")
    dev.pwrite(pattern(8), 0, sync=True)
    before = content(path)
    luks.refuse("format", path, "-q", *QUICK, match="is in use: .*/v writes to it; close that first$", code=5)
    luks.refuse("format", path, "-q", "--header", header, *QUICK, match="is in use: .*/v writes", code=5)
    other = os.path.join(work, "other")
    luks.refuse("format", other, "-q", "--size", "4M", "--header", path, *QUICK,
                match="v.img is in use: .*/v writes", code=5)
    luks.refuse("format", path, "-q", "--shared", match="only for open")
    assert content(path) == before and not os.path.exists(header) and not os.path.exists(other)
    luks.run("close", "v")


def test_format_with_the_header_on_the_data(luks, work):
    path, soft, hard = (os.path.join(work, n) for n in ("v.img", "soft", "hard"))
    with open(path, "wb") as f:
        f.truncate(20 * MIB)
    os.symlink(path, soft)
    os.link(path, hard)
    dev = luks.fs.mkdir("lin", f"0 2048 linear {quote(path)} 8")
    for header in (path, soft, hard, dev.image):
        luks.refuse("format", path, "--header", header, "-q", *QUICK, match="are the same storage: leave --header out")
    assert not any(content(path))


@pytest.mark.parametrize("options,match", [
    (["--cipher", "no-such-cipher"], "."),
    (["--key-size", "24"], "."),
    (["--hash", "md6"], r"hash 'md6' is not one of sha1, .*, stribog512"),
    (["--uuid", "not a uuid"], "."),
    (["--sector-size", "1000"], "."),
    (["--key-slot", "32"], "there is no key slot 32: a LUKS2 header has 0 to 31"),
    (["--pbkdf", "md5"], "pbkdf 'md5'"),
    (["--type", "luks1", "--key-slot", "8"], "there is no key slot 8: a LUKS1 header has 0 to 7"),
    (["--key-file", "/no/such"], "no/such"),
])
def test_format_that_is_refused_changes_nothing(luks, work, options, match):
    path, new = os.path.join(work, "data"), os.path.join(work, "new")
    with open(path, "wb") as f:
        f.write(pattern(64))
        f.truncate(20 * MIB)
    before = content(path)
    text = luks.refuse("format", path, "-q", *QUICK, *options, match=match)
    assert "/proc/self/fd" not in text
    luks.refuse("format", path, "-q", "--size", "30M", *QUICK, *options, match=match)
    luks.refuse("format", new, "-q", "--size", "30M", *QUICK, *options, match=match)
    luks.refuse("format", new, "-q", "--size", "30M", "--header", new + ".header", *QUICK, *options, match=match)
    assert content(path) == before and os.listdir(work) == ["data"]


def test_format_of_what_is_too_short(luks, work):
    path = os.path.join(work, "data")
    for options, room in (([], 16384), (["--type", "luks1"], 2020)):
        with open(path, "wb") as f:
            f.write(pattern(64))
        luks.refuse("format", path, "-q", *QUICK, *options,
                    match=f"has no room for data behind the {room}|too small|no room")
        assert content(path) == pattern(64)


@pytest.mark.parametrize("at", [0, 1 << 16, 8 * MIB, 40 * MIB - 512])
def test_format_asks_before_data_is_lost(luks, work, at):
    """Where file systems begin (btrfs at 64 KiB), and what is at the end (a backup of a partition table)."""
    path = os.path.join(work, "data")
    with open(path, "wb") as f:
        f.seek(at)
        f.write(b"_BHRfS_M")
        f.truncate(40 * MIB)
    luks.refuse("format", path, *QUICK, match="holds data: --batch overwrites it")
    luks.refuse("format", path, "--header", path + ".header", *QUICK, match="holds data: --batch overwrites it")
    luks.format(path, "--batch", size=None)


def test_format_forgets_old_headers(luks, work):
    """Data that had a LUKS header of its own, and gets a detached one."""
    path, header = os.path.join(work, "data"), os.path.join(work, "header")
    luks.format(path)
    luks.format(path, "--header", header, "--batch", size=None)
    luks.refuse("open", path, "v", match="has no LUKS or BitLocker header")
    luks.open(path, "v", "--header", header).pwrite(pattern(8), 0, sync=True)
    luks.run("close", "v")


def test_closing_takes_only_its_own(luks, work):
    """NAME_1 may be another volume."""
    paths = [os.path.join(work, f"{i}.img") for i in range(2)]
    for path, name in zip(paths, ("v", "v_1")):
        luks.format(path)
        luks.open(path, name)
    luks.run("close", "v")
    assert luks.fs.devices() == ["v_1"]
    luks.run("close", "v_1")
