# SPDX-License-Identifier: GPL-2.0-or-later
"""contrib/examples: each runs in a directory with a blank in its name, and one that fails leaves no device behind.

What they show is tested beside their targets.
"""

import hashlib
import os
import re
import shutil
import subprocess

import pytest

import lvm
import mounted
import nbd_server
import zones
from mounted import SECTOR, pattern, unmount

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../contrib/examples")
M = 2048        # sectors of a MiB


@pytest.fixture
def example(fs, work, sh, tool):
    """example(NAME, *ARGS) runs one in DIR, work/a #dir; example.file(NAME, SECTORS) makes a file there."""
    where = os.path.join(work, "a #dir")
    os.mkdir(where)
    os.symlink(os.path.realpath(EXAMPLES), os.path.join(where, "the examples"))
    path = f"{os.path.dirname(tool('dmfsctl'))}:{os.environ['PATH']}:/usr/sbin:/sbin"

    def run(name, *args, check=True, stdin="", **env):
        return sh(f'{f"echo {stdin} | " if stdin else ""}"./the examples/{name}" "$@"', *args, check=check, cwd=where,
                  DMFS_MOUNT=fs.mountpoint, PATH=path, **env)

    def file(name, sectors, data=b""):
        with open(os.path.join(where, name), "wb") as f:
            f.write(data)
            f.truncate(sectors * SECTOR)
        return name

    run.file, run.dir = file, where
    return run


def fails(example, fs, name, *args, before=(), **kw):
    done = example(name, *args, check=False, **kw)
    assert done.returncode, f"{name} {args} did not fail: {done.stdout}{done.stderr}"
    assert fs.devices() == sorted(before), f"{name} {args} left a device: {done.stderr}"


def one_file(name, dev, sectors=2 * M, *args):
    def case(example, fs):
        f = example.file("a file", sectors)
        example(name, f, *args)
        assert "/a\\ #dir/a\\ file " in fs[dev].table()
        fs[dev].remove()
        fails(example, fs, name, "no such file", *args)
    return case


def delay_write(example, fs):
    example("delay-write", example.file("a", M), example.file("b", M))
    fs["delayed"].remove()
    fails(example, fs, "delay-write", "a", example.file("short", 1))


def crypt_keyring(example, fs):
    keyctl = subprocess.run(["keyctl", "padd", "user", "my_prefix:my_key", "@u"], input=b"k" * 32, timeout=60,
                            check=False, capture_output=True)
    if keyctl.returncode:
        pytest.skip("no keyring")
    try:
        example("crypt-keyring", example.file("a file", M))
        fs["crypt2"].remove()
    finally:
        subprocess.run(["keyctl", "unlink", keyctl.stdout.decode().strip(), "@u"], timeout=60, check=False,
                       capture_output=True)
    fails(example, fs, "crypt-keyring", "no such file")


def crypt_luks(example, fs):
    example("crypt-luks", example.file("a file", 40 * M), stdin="sesame")
    assert fs["crypt1"].size() > 1 << 20
    example.file("a file", 8)
    fs["crypt1"].remove()
    fails(example, fs, "crypt-luks", "a file", stdin="sesame")


def crypt_aead(example, fs):
    example("crypt-aead", example.file("a file", 40 * M), stdin="sesame")
    fs["crypt1"].pwrite(pattern(8), 0, sync=True)
    assert fs["crypt1"].pread(8 * 512, 0) == pattern(8)
    example.file("a file", 8)
    fs["crypt1"].remove()
    fs["crypt1_dif"].remove()
    fails(example, fs, "crypt-aead", "a file", stdin="sesame")


def dust_session(example, fs):
    assert "badblock added at block 60" in example("dust-session", example.file("a file", M)).stdout
    assert fs.devices() == []
    fails(example, fs, "dust-session", "a file", "513")


def snapshot_lvm(example, fs):
    """And snapshot-lvm-merge."""
    base, cow = example.file("the base", M, pattern(M)), example.file("the cow", 2 * M)
    fails(example, fs, "snapshot-lvm", base, "no such file")
    fails(example, fs, "snapshot-lvm", base, example.file("tiny", 1))
    fs.mkdir("base", f"0 {M} zero")
    fails(example, fs, "snapshot-lvm", base, "tiny", before=["base"])
    assert not fs["base"].suspended() and fs["base"].inactive() == ""
    fs["base"].remove()
    example("snapshot-lvm", base, cow)
    fs["snap"].pwrite(b"s" * 4096, 8192)
    example("snapshot-lvm-merge")
    assert fs.devices() == ["base"] and fs["base"].pread(4096, 8192) == b"s" * 4096
    assert "a\\ #dir/the\\ base 0" in fs["base"].table()
    fails(example, fs, "snapshot-lvm-merge", before=["base"])


def snapshot_merge_wait(example, fs):
    fs.mkdir("d", "0 8 zero")
    fails(example, fs, "snapshot-merge-wait", "d", before=["d"])


def snapshot_sparse(example, fs):
    example("snapshot-sparse", example.file("a cow", 4 * M))
    fs["sparse1"].remove()
    fs["zero1"].remove()
    fails(example, fs, "snapshot-sparse", example.file("tiny", 1))


def switch_volumes(example, fs):
    files = [example.file(f"volume {i}", 0x1012 * 128) for i in range(3)]
    example("switch-volumes", *files)
    fs["switch"].remove()
    fails(example, fs, "switch-volumes", *(example.file(f"short {i}", 1280) for i in range(3)))


def thin(example, fs):
    """thin-pool, thin-volume, thin-snapshot, thin-grow."""
    meta, data = example.file("the meta", 4096), example.file("the data", 20 * 128)
    fails(example, fs, "thin-pool", meta, data, 100)
    example("thin-pool", meta, data, 128, 2)
    fails(example, fs, "thin-volume", "thin", 0, "nothing", before=["pool"])
    fails(example, fs, "thin-volume", "thin", 0, 1280, "no such file", before=["pool"])
    example("thin-volume", "thin", 0, 12800)
    fails(example, fs, "thin-volume", "again", 0, 12800, before=["pool", "thin"])
    example("thin-volume", "image", 2, 1280, example.file("the origin", 128))
    fails(example, fs, "thin-snapshot", "snap", 2, "thin", 0, before=["image", "pool", "thin"])
    assert not fs["thin"].suspended()
    example("thin-snapshot", "snap", 1, "thin", 0)
    daemon = subprocess.Popen(["./the examples/thin-grow"], env=os.environ | {"DMFS_MOUNT": fs.mountpoint},
                              stdout=subprocess.PIPE, text=True, cwd=example.dir)
    try:
        fs["thin"].pwrite(pattern(30 * 128, seed=8), 0, sync=True)
        for name in ("snap", "image", "thin", "pool"):
            fs[name].remove()
        out = daemon.communicate(timeout=120)[0]
        assert "a #dir/the data: 22 blocks" in out
    finally:
        daemon.kill()
        daemon.wait()


def unstriped_members(example, fs):
    assert "4 of 4" in example("unstriped-members", MEMBER_SIZE=4 << 20).stdout
    assert fs.devices() == [] and os.listdir(example.dir) == ["the examples"]
    fails(example, fs, "unstriped-members", MEMBER_SIZE=1000 * 512)
    assert os.listdir(example.dir) == ["the examples"]


def unstriped_nvme(example, fs):
    example("unstriped-nvme", example.file("a file", 4096))
    fs["nvmset0"].remove()
    fails(example, fs, "unstriped-nvme", "a file", before=["nvmset1"])      # which is there already


def unstriped_raid(example, fs):
    fs.mkdir("a stripe", "0 4096 zero")
    for striped in ("a stripe", example.file("a file", 4096)):
        example("unstriped-raid", striped)
        for i in range(4):
            fs[f"raid_disk{i}"].remove()
    fails(example, fs, "unstriped-raid", example.file("tiny", 1), before=["a stripe"])


def pvmove(example, fs):
    old, new = example.file("the old", M, pattern(M)), example.file("the new", M)
    dev = fs.mkdir("vol", f"0 {M} linear {mounted.quote(os.path.join(example.dir, old))} 0")
    example("pvmove", "vol", old, new)
    assert "a\\ #dir/the\\ new 0" in dev.table() and dev.pread(M * SECTOR, 0) == pattern(M)
    fails(example, fs, "pvmove", "vol", old, new, before=["vol"])


def log_writes_fsync(example, fs):
    assert "the file is there" in example("log-writes-fsync", example.file("a file", 16 * M),
                                          example.file("a log", 64 * M)).stdout
    fails(example, fs, "log-writes-fsync", "a file", "no such file")


def log_writes_fsck(example, fs):
    need_root()
    assert "consistent at all" in example("log-writes-fsck", example.file("a file", 16 * M),
                                          example.file("a log", 64 * M)).stdout
    fails(example, fs, "log-writes-fsck", "a file", "no such file")


def verity_table(example, fs):
    data, hashes = example.file("the data", 8 * 262144), example.file("the hashes", 8 * 4096)
    made = subprocess.run([os.path.join(mounted.build_dir(), "dmfs-verity"), "format", data, hashes], cwd=example.dir,
                          capture_output=True, text=True, timeout=240, check=True).stdout
    root, salt = (re.search(rf"^{key}:\s*(\S+)", made, re.M).group(1) for key in ("Root hash", "Salt"))
    example("verity-table", data, hashes, root, salt)
    assert fs["vroot"].pread(4096, 0) == bytes(4096)
    fs["vroot"].remove()
    fails(example, fs, "verity-table", data, "no such file", root, salt)


def integrity_format(example, fs):
    f = example.file("a file", 8 * M, b"something else")
    example("integrity-format", f, "safe", "B")
    assert fs["safe"].size() == 15944 * SECTOR
    fs["safe"].pwrite(pattern(8), 4096, sync=True)
    fs["safe"].remove()
    fails(example, fs, "integrity-format", "no such file", "safe")


def verity_setup(example, fs):
    data, hashes = example.file("the data", M, pattern(M)), example.file("the hashes", M)
    example("verity-setup", data, hashes)
    assert fs["vroot"].pread(4096, 0) == pattern(8)
    fs["vroot"].remove()
    fails(example, fs, "verity-setup", data, "/no such/file")


def era_backup(example, fs):
    for name in ("the meta", "the origin"):
        example.file(name, M, pattern(M) if name == "the origin" else b"")
    tool_path("era_invalidate")
    meta, origin = (mounted.quote(os.path.join(example.dir, name)) for name in ("the meta", "the origin"))
    fs.mkdir("an era", f"0 {M} era {meta} {origin} 128")
    for _ in range(2):
        example("era-backup", "an era", "the meta", "the copy")
    with open(os.path.join(example.dir, "the copy"), "rb") as f:
        assert f.read() == pattern(M)
    fails(example, fs, "era-backup", "an era", "no such file", "the copy", before=["an era"])
    fs["an era"].message("take_metadata_snap")      # the one that failed has given up its own


def era_snapshot(example, fs):
    for name, size in {"the meta": M, "cache meta": 4 * M, "fast": M, "the storage": M}.items():
        example.file(name, size, pattern(M) if name == "the storage" else b"")
    tool_path("era_invalidate")
    tool_path("cache_dump")
    meta, cache_meta, fast, origin = (mounted.quote(os.path.join(example.dir, name))
                                      for name in ("the meta", "cache meta", "fast", "the storage"))
    fs.mkdir("a cache", f"0 {M} cache {cache_meta} {fast} {origin} 64 1 writethrough default 0")
    dev = fs.mkdir("an era", f"0 {M} era {meta} a\\ cache 128")
    example("era-snapshot", "take", "an era", "a snapshot")
    dev.pwrite(pattern(8, 7), 4096, sync=True)
    example("era-snapshot", "rollback", "an era", "a snapshot")
    assert dev.pread(M * SECTOR, 0) == pattern(M) and "writethrough default" in fs["a cache"].table()
    fails(example, fs, "era-snapshot", "rollback", "an era", "no snapshot", before=["a cache", "an era"])
    for name in ("an era", "a cache"):
        fs[name].remove()


def writecache_remove(example, fs):
    for name in ("the origin", "the cache"):
        example.file(name, M)
    origin, cache = (mounted.quote(os.path.join(example.dir, name)) for name in ("the origin", "the cache"))
    line = f"0 {M} writecache s {origin} {cache} 4096 0"
    dev = fs.mkdir("a vol", line)
    dev.pwrite(pattern(M), 0)
    with dev.open():        # it is in use
        example("writecache-remove", "a vol")
    assert re.fullmatch(rf"0 {M} linear /\S+/a\\ #dir/the\\ origin 0\n", dev.table())
    assert dev.pread(M * SECTOR, 0) == pattern(M)
    with open(os.path.join(example.dir, "the origin"), "rb") as f:
        assert f.read() == pattern(M)
    fails(example, fs, "writecache-remove", "a vol", before=["a vol"])
    fs.mkdir("slow", f"0 {M} linear {origin} 0")
    dev.load(line.replace(origin, "slow"))
    dev.pwrite(pattern(8, 7), 0, sync=True)
    fs["slow"].load(f"0 {M} error")     # what cannot be written back stays in the cache
    fails(example, fs, "writecache-remove", "a vol", before=["a vol", "slow"])
    assert dev.table().startswith(f"0 {M} writecache") and not dev.suspended() and dev.pread(4096, 0) == pattern(8, 7)
    for name in ("a vol", "slow"):
        fs[name].remove()


def zoned_format(example, fs):
    for name in "a disk", "another":
        zones.make(os.path.join(example.dir, name), 16, 512, 5)
    example("zoned-format", "a disk")
    assert fs["dmz-a_disk"].status().split()[2:4] == ["zoned", "16"]
    example("zoned-format", "another", example.file("a file", 8 * 512))
    assert fs["dmz-another"].status().split()[2:6] == ["zoned", "24", "zones", "6/6"]
    fails(example, fs, "zoned-format", "no such file", before=["dmz-a_disk", "dmz-another"])
    fs["dmz-a_disk"].remove()
    fs["dmz-another"].remove()


def multipath_nbd(example, fs):
    done = example("multipath-nbd", os.path.join(example.dir, "disk image"), check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert fs.devices() == []


def cache_nbd(example, fs):
    """The cache is taken away under a mounted file system, and the server's file alone has all that was written."""
    need_root()
    disk, fast = (os.path.join(example.dir, example.file(name, n)) for name, n in (("the disk", 32 * M), ("the fast", 4 * M)))
    tool_path("nbdinfo")
    subprocess.run([tool_path("mke2fs"), "-q", "-F", "-t", "ext4", disk], timeout=60, check=True)
    os.mkdir(os.path.join(example.dir, "a mnt"))
    sock = os.path.join(os.path.dirname(example.dir), "sock")
    server = nbd_server.Server([nbd_server.program("nbdkit"), "-f", "-U", sock, "file", disk], sock).start()
    try:
        done = example("cache-nbd", server.uri, "the fast", "a mnt", "sh", "-c",
                       'head -c 3000000 /dev/urandom >"a mnt/new"; md5sum <"a mnt/new"; cat "$DMFS_MOUNT/cache/status"', check=False)
        if "mount" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
        assert "smq" in done.stdout and "linear nbd" in fs["cache"].table()
        assert not os.path.exists(fast + ".meta")
        assert unmount(os.path.join(example.dir, "a mnt")).returncode == 0
        fs["cache"].remove()
        digest = done.stdout.split()[0]
        subprocess.run([tool_path("debugfs"), "-R", "dump new back", disk], timeout=60, check=True, capture_output=True,
                       cwd=example.dir)
        with open(os.path.join(example.dir, "back"), "rb") as f:
            assert hashlib.md5(f.read()).hexdigest() == digest
        fails(example, fs, "cache-nbd", server.uri, "no such file", "a mnt")
    finally:
        server.kill()


def clone(example, fs):
    """clone-filesystem and clone-slow; without a file system, they fail where they mount it."""
    need_root()
    files = example.file("the meta", 8192), example.file("the dest", M), example.file("the source", M)
    os.mkdir(os.path.join(example.dir, "a mnt"))
    fails(example, fs, "clone-filesystem", "the meta", "the dest", "no such file", "a mnt")
    fails(example, fs, "clone-filesystem", *files, "a mnt")
    fails(example, fs, "clone-slow", 1, *files, "a mnt")
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert fs.mountpoint not in loops
    for name in files:
        example.file(name, 8192)
    done = subprocess.run([tool_path("mke2fs"), "-q", "-F", "-t", "ext4", "the source"], cwd=example.dir, timeout=60,
                          check=False)
    assert done.returncode == 0
    done = example("clone-slow", 1, *files, "a mnt", "ls", "a mnt", check=False)
    if "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0 and "lost+found" in done.stdout, done.stderr
    assert unmount(os.path.join(example.dir, "a mnt")).returncode == 0
    assert "a\\ #dir/the\\ dest 0" in fs["clone"].table() and "linear" in fs["clone"].table()


def raid(example, fs):
    """raid-replace and raid-grow; a wrong file leaves the array as it was."""
    files = [example.file(f"the {kind}{i}", 88 if kind == "meta" else M) for i in range(4) for kind in ("meta", "data")]
    paths = [mounted.quote(os.path.realpath(os.path.join(example.dir, f))) for f in files]
    for i in range(3):
        fs.mkdir(f"leg{i}", f"0 {M} linear {paths[2 * i + 1]} 0")
    fs.mkdir("array", f"0 {2 * M} raid raid5_ls 1 64 3 " + " ".join(f"{paths[2 * i]} leg{i}" for i in range(3)))
    fails(example, fs, "raid-replace", "array", 1, "no such file", "nor this", before=["array", "leg0", "leg1", "leg2"])
    before = fs["leg0"].table(), fs["array"].table()
    fs["array"].pwrite(pattern(200), 0, sync=True)
    fails(example, fs, "raid-grow", "array", "no such file", "the new", before=["array", "leg0", "leg1", "leg2"])
    short = example.file("too short", 1)
    fails(example, fs, "raid-grow", "array", short, "the new", before=["array", "leg0", "leg1", "leg2"])
    assert (fs["leg0"].table(), fs["array"].table()) == before and not fs["array"].suspended()
    assert fs["array"].pread(200 * SECTOR, 0) == pattern(200)
    example("raid-grow", "array", files[6], "the new data")
    assert fs["array"].size() == 3 * M * SECTOR
    example("raid-replace", "array", 1, example.file("meta again", 88), example.file("data again", M + 1024))
    assert "meta\\ again" in fs["array"].table()


def tool_path(name):
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    return path or pytest.skip(f"no {name}")


def need_root():
    if os.geteuid():
        pytest.skip("needs root")


def mirror_cluster(example, fs):
    """Has its own mounts, in its own temporary directory, and leaves none."""
    for name in ("leg a", "leg#b"):
        example.file(name, 16 * M, pattern(2000, len(name)))
    done = example("mirror-cluster", "leg a", "leg#b", TMPDIR=example.dir)
    assert "the legs are the same" in done.stdout and done.stdout.count(" 256/256 1 AA 1 clustered-core") == 2
    assert example("mirror-cluster", "leg a", "nobody", check=False, TMPDIR=example.dir).returncode
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        assert not re.search(os.path.basename(os.path.dirname(example.dir)) + r"/\S+/mnt[12] ", f.read())


def run_lvm(example, fs):
    for name in ("lvm", "lsblk", "mkfs.ext4", "thin_check"):
        tool_path(name)
    env = {"XDG_RUNTIME_DIR": example.dir}
    done = example("run-lvm", "group0", example.file("pv0.img", 64 * M), example.file("pv1.img", 64 * M), **env)
    assert "group0-home" in done.stdout and "group0-yesterday" not in fs.devices()
    assert fs["group0-home"].pread(2, 1024 + 56) == b"\x53\xef"
    subprocess.run([os.path.join(mounted.build_dir(), "dmfs-run"), "-m", fs.mountpoint, "lvm", "vgchange", "-an", "group0"],
                   check=True, timeout=60, capture_output=True,
                   env=os.environ | env | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    fails(example, fs, "run-lvm", "group1", "no such file", **env)


def run_cryptsetup(example, fs):
    for name in ("cryptsetup", "mkfs.ext4"):
        tool_path(name)
    env = {"XDG_RUNTIME_DIR": example.dir}
    done = example("run-cryptsetup", example.file("disk.img", 40 * M), "vol", example.file("a key", 1, b"k" * 512), **env)
    assert re.search(r"type: +LUKS2", done.stdout)
    assert fs["vol"].pread(2, 1024 + 56) == b"\x53\xef"
    fs["vol"].remove()
    fails(example, fs, "run-cryptsetup", "no such file", "vol", "a key", **env)


def open_disk(example, fs):
    if not shutil.which("jq") or not os.access(os.path.join(mounted.build_dir(), "dmfs-open"), os.X_OK):
        pytest.skip("no jq, or no dmfs-open")
    lvm.make(os.path.join(example.dir, "a disk"), 0, lvm.group({"a": lvm.linear(3, 5), "b": lvm.linear(2, 20)}),
             data=bytes(20 * 4096) + b"here")
    done = example("open-disk", "a disk")
    assert "vg-a - 12288\nvg-b - 8192\n" in done.stdout and fs.devices() == []
    with open(os.path.join(example.dir, "vg-b.start"), "rb") as f:
        assert f.read(5) == b"here\0"
    fails(example, fs, "open-disk", "no such file")


CASES = {
    "run-lvm": run_lvm, "run-cryptsetup": run_cryptsetup,
    "crypt-aes-cbc": one_file("crypt-aes-cbc", "crypt1"),
    "delay-rw": one_file("delay-rw", "delayed"),
    "flakey-corrupt": one_file("flakey-corrupt", "flakey"),
    "delay-write": delay_write, "crypt-keyring": crypt_keyring, "crypt-luks": crypt_luks,
    "crypt-aead": crypt_aead,
    "dust-session": dust_session, "snapshot-lvm": snapshot_lvm, "snapshot-lvm-merge": None,
    "snapshot-merge-wait": snapshot_merge_wait, "snapshot-sparse": snapshot_sparse,
    "switch-volumes": switch_volumes, "thin-pool": thin, "thin-volume": None, "thin-snapshot": None,
    "thin-grow": None, "unstriped-members": unstriped_members, "unstriped-nvme": unstriped_nvme,
    "unstriped-raid": unstriped_raid, "pvmove": pvmove, "log-writes-fsync": log_writes_fsync,
    "log-writes-fsck": log_writes_fsck, "multipath-nbd": multipath_nbd, "verity-table": verity_table,
    "verity-setup": verity_setup, "raid-replace": raid, "raid-grow": None, "era-backup": era_backup,
    "era-snapshot": era_snapshot,
    "writecache-remove": writecache_remove, "zoned-format": zoned_format,
    "clone-filesystem": clone, "clone-slow": None, "cache-nbd": cache_nbd,
    "mirror-cluster": mirror_cluster, "integrity-format": integrity_format, "open-disk": open_disk,
}


def test_each_example_is_here():
    assert sorted(CASES) == sorted(set(os.listdir(EXAMPLES)) - {"common"})


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case])
def test_in_a_directory_with_a_blank(example, fs, name):
    CASES[name](example, fs)
