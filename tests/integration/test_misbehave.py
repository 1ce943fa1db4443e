# SPDX-License-Identifier: GPL-2.0-or-later
"""delay, flakey, dust, unstriped and switch through the mount: the seeds' examples, the recipes of README, the state."""

import errno
import os
import re
import shutil
import threading

import pytest

from mounted import SECTOR, Device, pattern, quote

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLES = os.path.join(TOP, "contrib/examples")
HOUR = 3600000      # in milliseconds


def content(path, sectors, at=0):
    with open(path, "rb") as f:
        f.seek(at * SECTOR)
        return f.read(sectors * SECTOR)


def wait_status(dev, text):
    """Reads the status until it says so (a hang is the watchdog's)."""
    while text not in dev.status():
        pass


# --- delay ---------------------------------------------------------------------------


@pytest.mark.parametrize("what, status", [("read", "1 0 0"), ("write", "0 1 0"), ("flush", "0 0 1")])
def test_delayed_io_waits_and_suspend_lets_it_go(fs, backing, what, status):
    path = backing(800)
    dev = fs.mkdir("d", f"0 800 delay {quote(path)} 0 {HOUR}")
    assert dev.status() == "0 800 delay 0 0 0\n"
    got = []

    def act():
        with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
            if what == "read":
                got.append(len(os.pread(fd, 4096, 8192)))
            elif what == "write":
                got.append(os.pwrite(fd, bytes(4096), 0))
            else:
                os.fsync(fd)
                got.append(4096)

    thread = threading.Thread(target=act)
    thread.start()
    wait_status(dev, f"0 800 delay {status}\n")
    assert not got
    dev.suspend()
    thread.join()
    assert got == [4096]
    assert dev.status() == "0 800 delay 0 0 0\n"


def test_a_delayed_device_can_be_given_another_table(fs, backing):
    path = backing(800, pattern(800))
    dev = fs.mkdir("d", f"0 800 delay {quote(path)} 0 {HOUR}")
    got = []
    reader = threading.Thread(target=lambda: got.append(dev.pread(SECTOR, 0)))
    reader.start()
    wait_status(dev, "delay 1 0 0")
    dev.load(f"0 800 linear {quote(path)} 0")
    reader.join()
    assert got == [pattern(1)]


# --- dust ----------------------------------------------------------------------------


def dust(fs, path, blksz=512, name="d", start=0):
    return fs.mkdir(name, f"0 {os.path.getsize(path) // SECTOR - start} dust {quote(path)} {start} {blksz}")


def test_reads_fail_and_writes_mend(fs, backing):
    dev = dust(fs, backing(1000, pattern(1000)))
    assert dev.status().endswith(" bypass verbose\n")
    dev.message("addbadblock 60")
    assert dev.pread(1000 * SECTOR, 0) == pattern(1000)
    dev.message("enable")
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        with pytest.raises(OSError) as e:
            os.pread(fd, 4096, 56 * SECTOR)
        assert e.value.errno == errno.EIO
        os.pwrite(fd, bytes(4096), 56 * SECTOR)
        os.fsync(fd)
        assert os.pread(fd, 4096, 56 * SECTOR) == bytes(4096)
    assert dev.message("countbadblocks") == "countbadblocks: 0 badblock(s) found\n"
    assert "dust: block 60 removed from badblocklist by write" in fs.read("log")


def test_buffered_reads_meet_bad_blocks_too(fs, backing):
    dev = dust(fs, backing(1000, pattern(1000)), 4096)
    dev.message("addbadblock 10")
    dev.message("enable")
    with dev.open(os.O_RDONLY) as fd:
        assert os.pread(fd, 4096, 9 * 4096) == pattern(1000)[9 * 4096:10 * 4096]
        with pytest.raises(OSError):
            os.pread(fd, 4096, 10 * 4096)
        assert os.pread(fd, 4096, 11 * 4096) == pattern(1000)[11 * 4096:12 * 4096]


def test_a_flush_touches_no_block(fs, backing):
    """Block 0 stays bad (the kernel's dust takes a flush for a write to it)."""
    dev = dust(fs, backing(1000))
    dev.message("addbadblock 0")
    dev.message("enable")
    with dev.open(os.O_WRONLY) as fd:
        os.fsync(fd)
    assert dev.message("listbadblocks") == "0\n"


def test_list_and_mode_survive(dmfs, backing, work):
    path, state = backing(4000), os.path.join(work, "state")
    fs = dmfs(state=state)
    dev = dust(fs, path, 4096)
    for m in ("addbadblock 5", "addbadblock 6 3", "addbadblock 7", "addbadblock 100", "addbadblock 300",
              "removebadblock 7", "enable", "quiet"):
        dev.message(m)
    dev.pwrite(bytes(4096), 100 * 4096, sync=True)                  # made good by a write
    with dev.open(os.O_WRONLY | os.O_DIRECT) as fd, pytest.raises(OSError):
        os.pwrite(fd, bytes(4096), 6 * 4096)                        # two of the three are left
    before = dev.status(), dev.message("listbadblocks")
    assert before[1] == "5\n6\n300\n"
    fs.kill()
    fs.close()
    fs = dmfs(state=state)
    dev = fs["d"]
    assert (dev.status(), dev.message("listbadblocks")) == before
    assert dev.status().endswith(" fail_read_on_bad_block quiet\n")
    for ok in (False, False, True):
        with dev.open(os.O_WRONLY | os.O_DIRECT) as fd:
            try:
                os.pwrite(fd, bytes(4096), 6 * 4096)
                assert ok
            except OSError:
                assert not ok
    dev.message("clearbadblocks")
    dev.message("disable")
    fs.unmount()
    fs.close()
    fs = dmfs(state=state)
    dev = fs["d"]
    assert dev.status().endswith(" bypass quiet\n")
    assert dev.message("listbadblocks") == "No blocks in badblocklist\n"
    # a table that a user loads begins with none
    dev.message("addbadblock 1")
    dev.load(f"0 4000 dust {quote(path)} 0 4096")
    assert dev.message("countbadblocks") == "countbadblocks: 0 badblock(s) found\n"
    assert dev.status().endswith(" bypass verbose\n")


def test_refused_messages_change_nothing(fs, backing):
    dev = dust(fs, backing(1000))
    dev.message("addbadblock 5")
    for m in ("addbadblock 5", "addbadblock 1001", "addbadblock", "addbadblock x", "addbadblock 6 256", "removebadblock 6",
              "nosuch", "enable 1", "a b c d", "addbadblock 99999999999999999999"):
        dev.refuse(m + "\n", to="message", flags=0, match="^0: (dust: |message)")
    assert dev.message("listbadblocks") == "5\n"


def test_a_refused_message_has_no_reply(fs, backing):
    """An open file reads the reply to its own last message, not an older one's or another's."""
    dev = dust(fs, backing(1000))
    assert dev.message("queryblock 5").endswith("block 5 not found in badblocklist\n")
    with open(dev.file("message"), "r+b", buffering=0) as f:
        assert f.read() == b"dust_query_block: block 5 not found in badblocklist\n"     # the device's last
        f.write(b"countbadblocks\n")
        for refused in (b"queryblock 1001\n", b"nosuch\n"):
            with pytest.raises(OSError):
                f.write(refused)
            assert os.pread(f.fileno(), 100, 0) == b""
    with open(dev.file("message"), "r+b", buffering=0) as f:
        with pytest.raises(OSError):
            f.write(b"nosuch\n")
        assert os.pread(f.fileno(), 100, 0) == b""
    assert dev.read("message") == "countbadblocks: 0 badblock(s) found\n"


# --- switch ----------------------------------------------------------------------------


def switch(fs, paths, sectors, region=8, name="s"):
    return fs.mkdir(name, f"0 {sectors} switch {len(paths)} {region} 0 " + " ".join(f"{quote(p)} 0" for p in paths))


def regions(dev, n, region=8):
    data = dev.pread(n * region * SECTOR, 0)
    return [data[r * region * SECTOR] for r in range(n)]


def numbered(backing, paths, sectors):
    return [backing(sectors, bytes([p]) * (sectors * SECTOR)) for p in range(paths)]


def test_mappings_survive(dmfs, backing, work):
    state = os.path.join(work, "state")
    fs = dmfs(state=state)
    paths = numbered(backing, 5, 8000)
    dev = switch(fs, paths, 8000)
    dev.message("set_region_mappings 0:4 :3 R2,20 3e7:1")
    dev.message("set_region_mappings 5:0")
    dev.refuse("set_region_mappings 6:0 7:5\n", to="message", flags=0, match="device: 5 >= 5")
    before = regions(dev, 1000)
    assert before[:8] == [4, 3, 4, 3, 4, 0, 4, 3] and before[34:40] == [4, 0, 1, 2, 3, 4] and before[999] == 1
    fs.kill()
    fs.close()
    fs = dmfs(state=state)
    assert regions(fs["s"], 1000) == before


def test_a_damaged_state_is_not_believed(dmfs, backing, work):
    """A region on a path that is not there: the device comes up without a table, and says why."""
    import sqlite3
    state = os.path.join(work, "state")
    fs = dmfs(state=state)
    dev = switch(fs, numbered(backing, 5, 800), 800)
    dev.message("set_region_mappings 0:4")
    fs.unmount()
    fs.close()
    db = sqlite3.connect(state)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    changed = 0
    for table in tables:
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        if "value" in columns and "key" in columns:
            changed += db.execute(f"UPDATE {table} SET value = ? WHERE length(value) > 8",
                                  (b"\xff" * (100 // 16 * 8 + 8),)).rowcount
    db.commit()
    db.close()
    assert changed == 1
    fs = dmfs(state=state)
    assert fs["s"].table() == "" and "switch: " in fs["s"].error()


def test_a_million_mappings_in_one_message(fs, backing):
    n = 1_000_000
    path = backing(n)
    dev = fs.mkdir("s", f"0 {n} switch 16 1 0 " + " ".join([f"{quote(path)} 0"] * 16))
    words = "set_region_mappings 0:f" + "".join(f" :{i % 16:x}" for i in range(1, n))
    assert len(words) > 2 << 20         # more than one request
    dev.write("message", words + "\n", flags=0)
    dev.refuse(words + f" {n:x}:0\n", to="message", flags=0, match="region number: 1000000 >= 1000000")


# --- the seeds' examples and our recipes ---------------------------------------------------


def test_delay_examples(fs, backing, sh):
    a, b = backing(100, pattern(100, 1)), backing(100, pattern(100, 2))
    sh(f"{EXAMPLES}/delay-rw {a}", DMFS_MOUNT=fs.mountpoint)
    dev = Device(fs, "delayed")
    assert dev.table() == f"0 100 delay {a} 0 500\n"
    assert dev.pread(SECTOR, 0) == pattern(1, 1)
    dev.remove()
    sh(f"{EXAMPLES}/delay-write {a} {b}", DMFS_MOUNT=fs.mountpoint)
    assert dev.table() == f"0 100 delay {a} 0 0 {b} 0 500\n"
    dev.pwrite(bytes(SECTOR), 0, sync=True)
    assert content(a, 100) == pattern(100, 1) and content(b, 1) == bytes(SECTOR)


def test_flakey_examples(fs, backing, sh):
    a = backing(100, pattern(100))
    sh(f"{EXAMPLES}/flakey-corrupt {a}", DMFS_MOUNT=fs.mountpoint)
    dev = Device(fs, "flakey")
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd:
        data = os.pread(fd, 4096, 0)
    assert data == pattern(8)[:31] + b"\1" + pattern(8)[32:]
    dev.remove()
    sh(f"{EXAMPLES}/flakey-corrupt {a} corrupt_bio_byte 224 w 0 32", DMFS_MOUNT=fs.mountpoint)
    assert dev.table() == f"0 100 flakey {a} 0 0 1 5 corrupt_bio_byte 224 w 0 32\n"


@pytest.mark.parametrize("blksz", [512, 4096])
def test_dust_example(fs, backing, sh, blksz):
    a = backing(4096)
    done = sh(f"{EXAMPLES}/dust-session {a} {blksz} 2>&1", DMFS_MOUNT=fs.mountpoint)
    said = done.stdout
    assert said.count("fail_read_on_bad_block verbose\n") == 2
    assert said.count("fail_read_on_bad_block quiet\n") == 1
    assert said.count("Input/output error") == 1
    assert said.count("Invalid argument") + said.count("I/O error") == 2     # what is there already, or is not
    for line in ("countbadblocks: 4 badblock(s) found", "countbadblocks: 1 badblock(s) found",
                 "dust_query_block: block 88 found in badblocklist", "dust_query_block: block 72 not found in badblocklist",
                 "dust_clear_badblocks: badblocks cleared", "dust_clear_badblocks: no badblocks found"):
        assert line in said.split("\n"), line
    for line in ("badblock added at block 60", "enabling read failures on bad sectors",
                 "block 60 removed from badblocklist by write", "block 87 removed from badblocklist by write",
                 "block 88 already in badblocklist", "block 87 not found in badblocklist",
                 "countbadblocks: 4 badblock(s) found", "queryblock: block 88 found in badblocklist",
                 "clearbadblocks: badblocks cleared", "clearbadblocks: no badblocks found"):
        assert re.search(rf"device-mapper: dust: (\w+: )?{re.escape(line)}", said), line
    assert fs.devices() == []


def test_unstriped_script(fs, sh):
    done = sh(f"{EXAMPLES}/unstriped-members", DMFS_MOUNT=fs.mountpoint, MEMBER_SIZE=16 << 20)
    assert done.stdout == "4 of 4 members are the same\n"
    assert fs.devices() == []


def test_unstriped_examples(fs, backing, sh):
    data = pattern(4096)
    a = backing(4096, data)
    sh(f"{EXAMPLES}/unstriped-nvme {a}", DMFS_MOUNT=fs.mountpoint)
    sh(f"{EXAMPLES}/unstriped-raid {a}", DMFS_MOUNT=fs.mountpoint)
    chunk = 256 * SECTOR
    for n, name in ((2, "nvmset"), (4, "raid_disk")):
        for i in range(n):
            want = data[i * chunk:][:chunk] + data[(n + i) * chunk:][:chunk]
            assert Device(fs, f"{name}{i}").pread(1 << 20, 0) == want


def test_switch_example(fs, backing, sh):
    sectors = 0x1012 * 128
    volumes = [backing(sectors) for _ in range(3)]
    for p, path in enumerate(volumes):
        with open(path, "r+b") as f:
            for r in range(0x1012):
                f.seek(r * 65536)
                f.write(bytes([p]))
    sh(f"{EXAMPLES}/switch-volumes {' '.join(volumes)}", DMFS_MOUNT=fs.mountpoint)
    dev = Device(fs, "switch")
    with dev.open(os.O_RDONLY) as fd:
        def at(r):
            return os.pread(fd, 1, r * 65536)[0]
        assert [at(r) for r in range(7)] == [0, 1, 2, 0, 1, 2, 1]
        assert [at(0x1000 + i) for i in range(18)] == [1, 2] * 9


def recipe(title):
    """The indented lines below a heading of README."""
    with open(os.path.join(TOP, "README"), encoding="utf-8") as f:
        part = f.read().split(f"\n{title}\n", 1)[1]
    lines = []
    for line in part.split("\n"):
        if line.startswith("    "):
            lines.append(line[4:])
        elif lines and line:
            break
    return "\n".join(lines)


@pytest.mark.parametrize("title, says", [
    ("A filesystem on a flaky disk", ["clean", "not found", "WARNING: Filesystem still has errors"]),
    ("Bad sectors on a disk of 10 TB", ["1000000", "Input/output error", "0 badblock(s) found"]),
])
def test_recipes(fs, sh, work, title, says):
    for tool in ("mkfs.ext4", "e2fsck", "debugfs", "badblocks"):
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"no {tool} (package e2fsprogs)")
    os.symlink(fs.mountpoint, os.path.join(work, "mnt"))
    done = sh(recipe(title) + "\n", check=False, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    out = done.stdout + done.stderr
    for line in says:
        assert line in out, out
