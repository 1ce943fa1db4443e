# SPDX-License-Identifier: GPL-2.0-or-later
"""-o images=DIR: the images alone in a flat directory, by a second connection; the same files as the tree's."""

import errno
import mmap
import os
import random
import select
import signal
import stat
import subprocess
import threading
import time

import pytest

import mounted
from mounted import is_mounted, pattern, quote

SECTORS = 4096
SIZE = SECTORS * 512
PAGE = 4096


@pytest.fixture
def both(dmfs, work):
    """A daemon with a directory of images, .images."""
    path = os.path.join(work, "images")
    os.mkdir(path)
    d = dmfs(options=f"images={path}", state=os.path.join(work, "state"))
    d.images = path
    yield d
    if is_mounted(path):
        mounted.unmount(path, lazy=True)


@pytest.fixture
def vol(both, backing):
    path = backing(SECTORS, pattern(SECTORS))
    dev = both.mkdir("vol", f"0 {SECTORS} linear {quote(path)} 0")
    dev.flat, dev.backing = os.path.join(both.images, "vol"), path
    return dev


def refused(code, fn, *args):
    with pytest.raises(OSError) as e:
        fn(*args)
    assert e.value.errno == code, e.value


def content(path):
    with open(path, "rb") as f:
        return f.read()


# --- the same files ---------------------------------------------------------------------


def test_what_is_there(both, vol):
    assert os.listdir(both.images) == ["vol"]
    assert content(vol.flat) == pattern(SECTORS)
    for name in (vol.image, vol.flat):
        st = os.stat(name)
        assert (st.st_size, st.st_mode, st.st_uid) == (SIZE, stat.S_IFREG | 0o600, os.geteuid())
    assert os.stat(vol.flat).st_ino == os.stat(vol.image).st_ino
    assert stat.S_ISDIR(os.stat(both.images).st_mode)
    both.mkdir("empty")
    assert sorted(os.listdir(both.images)) == ["empty", "vol"] and content(os.path.join(both.images, "empty")) == b""
    refused(errno.ENOENT, os.stat, os.path.join(both.images, "control"))
    refused(errno.ENAMETOOLONG, os.stat, os.path.join(both.images, "x" * 128))


def test_mode_and_owner_are_the_same(both, vol):
    os.chmod(vol.flat, 0o640)
    assert os.stat(vol.image).st_mode & 0o777 == 0o640
    os.chmod(vol.image, 0o604)
    assert os.stat(vol.flat).st_mode & 0o777 == 0o604
    os.truncate(vol.flat, 0)
    os.truncate(vol.flat, SIZE)
    refused(errno.ENOSPC, os.truncate, vol.flat, SIZE + 512)
    assert os.stat(vol.flat).st_size == SIZE


def test_devices_are_made_in_the_tree(both, vol):
    for fn, code in ((os.mkdir, errno.EEXIST), (os.rmdir, errno.ENOTDIR), (os.unlink, errno.EPERM)):
        refused(code, fn, vol.flat)
    refused(errno.EPERM, os.mkdir, os.path.join(both.images, "new"))
    refused(errno.EPERM, os.rename, vol.flat, os.path.join(both.images, "new"))
    refused(errno.EPERM, os.open, os.path.join(both.images, "new"), os.O_CREAT | os.O_RDWR)
    assert vol.table()


def test_the_tree_shows_at_once(both, vol):
    with open(vol.flat, "rb") as f:
        os.rename(vol.path, both.path("other"))
        refused(errno.ENOENT, os.stat, vol.flat)
        assert os.stat(os.path.join(both.images, "other")).st_size == SIZE
        assert f.read() == pattern(SECTORS)
        refused(errno.EBUSY, os.rmdir, both.path("other"))
        assert both["other"].info()["Open count"] == "1"
    os.rmdir(both.path("other"))
    assert os.listdir(both.images) == []
    for i in range(50):
        both.mkdir(f"d{i}", "0 8 zero")
        assert os.stat(os.path.join(both.images, f"d{i}")).st_size == PAGE
        both[f"d{i}"].remove()
        refused(errno.ENOENT, os.stat, os.path.join(both.images, f"d{i}"))


def test_a_new_table_shows(both, vol, backing):
    other = backing(2 * SECTORS, pattern(2 * SECTORS, 3))
    with open(vol.flat, "rb", buffering=0) as f:
        assert f.read(PAGE) == pattern(SECTORS)[:PAGE]
        vol.load(f"0 {2 * SECTORS} linear {quote(other)} 0")
        assert os.fstat(f.fileno()).st_size == 2 * SIZE
        assert os.pread(f.fileno(), PAGE, 0) == pattern(2 * SECTORS, 3)[:PAGE]
    assert content(vol.flat) == pattern(2 * SECTORS, 3)


def test_read_only(both, backing):
    dev = both.mkdir("ro")
    dev.write("readonly", "1\n")
    dev.load(f"0 8 linear {quote(backing(8))} 0")
    refused(errno.EROFS, os.open, os.path.join(both.images, "ro"), os.O_RDWR)
    assert content(os.path.join(both.images, "ro")) == bytes(PAGE)


def test_a_name_there_is_a_device(both, vol):
    top = both.mkdir("top", f"0 8 linear {quote(vol.flat)} 8", f"8 8 linear {quote(both.images)}/./vol 16")
    assert top.table() == "0 8 linear vol 8\n8 8 linear vol 16\n"
    link = vol.backing + ".link"
    os.symlink(vol.flat, link)
    assert both.mkdir("linked", f"0 8 linear {quote(link)} 0").table() == "0 8 linear vol 0\n"
    top.remove()
    both["linked"].remove()


def test_the_rest_of_an_image(both, vol):
    with open(vol.flat, "r+b", buffering=0) as f:
        fd = f.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN | select.POLLOUT)
        assert poller.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
        os.pwrite(fd, b"x" * 1000, 500)
        os.fsync(fd)
        mounted.fallocate(fd, mounted.FALLOC_ZERO_RANGE, 8192, 4096)
        mounted.fallocate(fd, mounted.FALLOC_PUNCH_HOLE | mounted.FALLOC_KEEP_SIZE, 65536, 65536)
        assert os.lseek(fd, 16384, os.SEEK_HOLE) == 65536
        refused(errno.ENOSPC, os.pwrite, fd, b"x", SIZE)
    want = bytearray(pattern(SECTORS))
    want[500:1500] = b"x" * 1000
    want[8192:12288] = bytes(4096)
    want[65536:131072] = bytes(65536)
    assert content(vol.backing) == want


@pytest.mark.root
def test_it_is_shared_with_others(dmfs, work, backing):
    images = os.path.join(work, "images")
    os.mkdir(images)
    os.chmod(work, 0o755)
    d = dmfs(options=f"allow_other,images={images}")
    d.mkdir("vol", f"0 {SECTORS} linear {quote(backing(SECTORS))} 0")
    assert mounted.run_as("nobody", ["cat", f"{images}/vol"]).returncode != 0
    os.chmod(d["vol"].image, 0o644)
    assert mounted.run_as("nobody", ["cat", f"{images}/vol"]).returncode == 0
    assert mounted.run_as("nobody", ["sh", "-c", f"echo x >{images}/vol"]).returncode != 0
    mounted.unmount(images)


# --- the same pages -------------------------------------------------------------------------


WRITERS = {
    "buffered": lambda fd, data, at: os.pwrite(fd, data, at),
    "direct": lambda fd, data, at: os.pwrite(fd, data, at),
    "odd": lambda fd, data, at: os.pwrite(fd, data[:1001], at + 3),
    "zeroes": lambda fd, data, at: mounted.fallocate(fd, mounted.FALLOC_ZERO_RANGE, at, len(data)),
    "discard": lambda fd, data, at: mounted.fallocate(fd, mounted.FALLOC_PUNCH_HOLE | mounted.FALLOC_KEEP_SIZE, at,
                                                      len(data)),
}


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("through", ["tree", "flat"])
def test_what_is_written_through_one_is_read_through_the_other(vol, through, how):
    writer, reader = (vol.image, vol.flat) if through == "tree" else (vol.flat, vol.image)
    flags = os.O_DIRECT if how == "direct" else 0
    out, back = os.open(writer, os.O_RDWR | flags), os.open(reader, os.O_RDONLY)
    seen = mmap.mmap(back, SIZE, prot=mmap.PROT_READ)
    try:
        assert seen[:] == pattern(SECTORS) and os.pread(back, SIZE, 0) == pattern(SECTORS)
        buf = mmap.mmap(-1, 8 * PAGE)
        for i in range(20):
            buf[:] = bytes([i + 1]) * len(buf)
            at = i * 3 * PAGE
            WRITERS[how](out, buf, at)
            now = content(vol.backing)
            assert os.pread(back, len(buf), at) == now[at:at + len(buf)]
            assert seen[at:at + len(buf)] == now[at:at + len(buf)]
        assert os.pread(back, SIZE, 0) == content(vol.backing) and seen[:] == content(vol.backing)
    finally:
        seen.close()
        os.close(out)
        os.close(back)


def test_many_writers_of_the_same_pages_do_not_wait_for_each_other(vol):
    """Buffered writes hold their pages until they are answered, and each has to drop those of the other connection."""
    stop, failures, rounds = threading.Event(), [], [0] * 8

    def write(me):
        try:
            fd = os.open(vol.image if me % 2 else vol.flat, os.O_RDWR)
            rnd = random.Random(me)
            while not stop.is_set():
                n, at = rnd.choice([1, 2, 16]) * PAGE, rnd.randrange(32) * PAGE
                if rnd.random() < 0.2:
                    os.pread(fd, n, at)
                else:
                    os.pwrite(fd, bytes([me + 1]) * (n - rnd.choice([0, 0, 7])), at)
                rounds[me] += 1
            os.close(fd)
        except OSError as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(rounds))]
    for t in threads:
        t.start()
    while not failures and min(rounds) < 100:       # they have met by then
        time.sleep(0.01)
    stop.set()
    for t in threads:
        t.join()
    assert not failures
    # What is dropped after an answer has no one to wait for it.
    end, tries = time.monotonic() + 300, 0
    while True:
        want = content(vol.backing)
        with open(vol.image, "rb") as a, open(vol.flat, "rb") as b:
            if a.read() == want and b.read() == want:
                break
        tries += 1
        assert time.monotonic() < end, tries


# --- comings and goings ---------------------------------------------------------------------------


def test_unmounting_it_leaves_the_tree(both, vol, work):
    with open(vol.flat, "rb") as f:
        assert f.read(16)
        assert mounted.unmount(both.images, patient=False).returncode
    assert mounted.unmount(both.images).returncode == 0
    assert vol.pread(SIZE, 0) == pattern(SECTORS)
    vol.pwrite(b"x" * 700, 100)
    vol.load(f"0 {SECTORS} linear {quote(vol.backing)} 0")
    # it is a directory as any other now
    assert os.listdir(both.images) == []
    link = os.path.join(both.images, "vol")
    os.link(vol.backing, link)
    assert both.mkdir("top", f"0 8 linear {quote(link)} 0").table() == f"0 8 linear {quote(link)} 0\n"
    both["top"].remove()
    vol.remove()
    assert both.unmount() == 0


def test_the_tree_takes_it_along(both, vol):
    assert content(vol.flat)
    assert both.unmount() == 0
    assert not is_mounted(both.images)


def test_an_image_in_use_is_served_until_it_is_closed(both, vol, dmfs, work):
    """Below a mounted file system, say.  Nobody can open it any more."""
    fd = os.open(vol.flat, os.O_RDWR | os.O_DIRECT)
    try:
        assert mounted.unmount(both.mountpoint).returncode == 0
        with subprocess.Popen(["sleep", "600"]) as clock:
            assert mounted.wait_mount(both.images, clock, mounted=False)
            clock.kill()
        assert both.process.poll() is None
        buf = mmap.mmap(-1, SIZE)
        assert os.preadv(fd, [buf], 0) == SIZE and buf[:] == pattern(SECTORS)
        buf[:] = b"y" * SIZE
        assert os.pwritev(fd, [buf], 0) == SIZE
        os.fsync(fd)
        assert content(vol.backing) == b"y" * SIZE
    finally:
        os.close(fd)
    assert both.wait() == 0
    again = dmfs(state=os.path.join(work, "state"))
    assert again["vol"].pread(SIZE, 0) == b"y" * SIZE


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_signal_ends_both(both, vol, busy):
    fd = os.open(vol.flat, os.O_RDONLY)
    if not busy:
        os.close(fd)
    both.signal(signal.SIGTERM)
    assert both.wait() == 0
    assert not is_mounted(both.images) and not is_mounted(both.mountpoint)
    if busy:
        refused(errno.ENOTCONN, os.close, fd)


@pytest.mark.root
@pytest.mark.parametrize("which", ["tree", "images"])
def test_one_connection_is_aborted(both, vol, work, which):
    control = os.path.join(work, "fusectl")
    os.mkdir(control)
    vol.suspend()
    reader = subprocess.Popen(["dd", f"if={vol.flat}", "iflag=direct", "bs=4096", "count=1"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mounted.wait_until_waiting(reader)
    number = os.minor(os.stat(both.mountpoint if which == "tree" else both.images).st_dev)
    subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
    try:
        with open(os.path.join(control, str(number), "abort"), "w", encoding="ascii") as f:
            f.write("1")
    finally:
        subprocess.run(["umount", control], check=False)
    if which == "tree":
        # nobody can resume it, but it can be ended
        assert both.process.poll() is None
        both.signal(signal.SIGTERM)
        assert both.wait() == 0
    else:
        assert reader.wait(300) != 0
        vol.resume()
        assert vol.pread(SIZE, 0) == pattern(SECTORS)
        with subprocess.Popen(["sleep", "600"]) as clock:
            assert mounted.wait_mount(both.images, clock, mounted=False), "a dead mount is no use"
            clock.kill()
        assert both.unmount() == 0
    reader.kill()
    reader.wait()


def test_what_is_refused(work):
    dmfs = os.path.join(mounted.build_dir(), "dmfs")
    mnt = os.path.join(work, "mnt")
    os.makedirs(os.path.join(mnt, "below"))
    with open(os.path.join(work, "file"), "wb"):
        pass
    for bad in ("none", "file", "mnt", "mnt/below", ".", "mnt/"):
        done = subprocess.run([dmfs, "-o", f"images={work}/{bad}", mnt], capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and work in done.stderr, (bad, done)
        assert not is_mounted(mnt)


def test_a_name_with_a_comma(dmfs, work):
    images = os.path.join(work, "a,b")
    os.mkdir(images)
    d = dmfs(options="images=" + images.replace(",", "\\,"))
    d.mkdir("vol", "0 8 zero")
    assert os.listdir(images) == ["vol"]
    assert d.unmount() == 0


def test_nobody_is_asked_for_poll_there(dmfs, work, backing):
    """The kernel asks once, and knows from then on that there is none; so io_uring need not wait for an answer each time."""
    images = os.path.join(work, "images")
    os.mkdir(images)
    d = dmfs(options=f"debug,images={images}")
    dev = d.mkdir("vol", f"0 8 linear {quote(backing(8))} 0")
    for name, asked in ((os.path.join(images, "vol"), 1), (dev.image, 0)):
        before = d.stderr().count("opcode: POLL")
        fd = os.open(name, os.O_RDWR)
        for _ in range(5):
            poller = select.poll()
            poller.register(fd, select.POLLIN | select.POLLOUT)
            assert poller.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
        os.close(fd)
        # those for the tree's images are answered before libfuse sees them
        assert d.stderr().count("opcode: POLL") - before == asked
    assert d.unmount() == 0
