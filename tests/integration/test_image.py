# SPDX-License-Identifier: GPL-2.0-or-later
"""`image` behaves like a block device."""

import errno
import mmap
import os
import random
import subprocess
import threading

import pytest

from mounted import (FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, SECTOR, fallocate, pattern, pread_all,
                     pwrite_all, quote, unmount, wait_mount)


def linear(path, sectors, start=0, offset=0):
    return f"{start} {sectors} linear {quote(path)} {offset}"


def content(path):
    with open(path, "rb") as f:
        return f.read()


@pytest.fixture
def vol(fs, backing):
    """A device of 1024 sectors on one file, and the file."""
    path = backing(1024, pattern(1024))
    return fs.mkdir("vol", linear(path, 1024)), path


def test_size_and_ends(vol):
    dev, path = vol
    end = 1024 * SECTOR
    assert dev.size() == end
    with dev.open() as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == end
        assert os.pread(fd, 100, end) == b""
        assert os.pread(fd, 100, end + (1 << 50)) == b""
        assert pread_all(fd, 1000, end - 10) == pattern(1024)[-10:]
        for offset in (end, end + 1, end + (1 << 40)):
            with pytest.raises(OSError) as e:
                os.pwrite(fd, b"x", offset)
            assert e.value.errno == errno.ENOSPC
        # what fits of a write across the end may be written, the rest never
        try:
            assert os.pwrite(fd, b"y" * 1024, end - 512) == 512
        except OSError as e:
            assert e.errno == errno.ENOSPC
        assert os.fstat(fd).st_size == end
    assert dev.size() == end and len(content(path)) == end
    assert content(path)[:-512] == pattern(1024)[:-512]


def test_append(vol):
    dev, path = vol
    with dev.open(os.O_WRONLY | os.O_APPEND) as fd:
        with pytest.raises(OSError) as e:
            os.write(fd, b"x")
        assert e.value.errno == errno.ENOSPC
    assert content(path) == pattern(1024)


@pytest.mark.parametrize("options", [None, "writeback"])
def test_truncating(dmfs, backing, options):
    """To the size or less changes nothing; to more is refused, as who asks for more would count on it."""
    path = backing(1024, pattern(1024))
    fs = dmfs(options=options)
    dev, size = fs.mkdir("vol", linear(path, 1024)), 1024 * SECTOR
    with dev.open(os.O_RDWR | os.O_TRUNC) as fd:
        for length in (0, 1, size - 1, size):
            os.ftruncate(fd, length)
            assert os.fstat(fd).st_size == size
        for length in (size + 1, size + 4096, 1 << 40, (1 << 63) - 1):
            for call in (lambda: os.ftruncate(fd, length), lambda: os.truncate(dev.image, length)):
                with pytest.raises(OSError) as e:
                    call()
                assert e.value.errno == errno.ENOSPC
            assert os.fstat(fd).st_size == size and dev.size() == size
        assert pread_all(fd, size, 0) == pattern(1024)
    os.truncate(dev.image, 0)
    assert dev.size() == size
    assert content(path) == pattern(1024)
    with pytest.raises(OSError) as e:
        os.truncate(fs.mkdir("empty").image, 1)     # without a table the size is 0
    assert e.value.errno == errno.ENOSPC


def test_resizing_with_the_tools(vol, sh, tool):
    dev, path = vol
    qemu = tool("qemu-img")
    for script in ('truncate -s +4096 "$1"', f'{qemu} resize -q -f raw "$1" +1M'):
        done = sh(script, dev.image, check=False)
        assert done.returncode and "No space left" in done.stderr
    sh(f'truncate -s -4096 "$1"; truncate -s 0 "$1"; {qemu} resize -q --shrink -f raw "$1" 64K', dev.image)
    assert dev.size() == 1024 * SECTOR and content(path) == pattern(1024)


def test_with_the_tools(vol, sh, work):
    dev, path = vol
    new = pattern(1024, 5)
    with open(os.path.join(work, "new"), "wb") as f:
        f.write(new)
    sh('cp new "$1"', dev.image)
    assert content(path) == new
    sh('dd if=/dev/zero of="$1" bs=4k count=3 seek=1 status=none', dev.image)
    assert content(path) == new[:4096] + bytes(3 * 4096) + new[4 * 4096:]
    sh('cat new >"$1"', dev.image)
    assert content(path) == new
    sh('dd if=new of="$1" bs=64k conv=fsync status=none; cmp new "$1"; cp "$1" copy; cmp new copy', dev.image)
    done = sh('cat new new >"$1"', dev.image, check=False)
    assert done.returncode and "No space left" in done.stderr


def test_without_a_table(fs):
    dev = fs.mkdir("vol")
    assert dev.size() == 0 and dev.pread(1, 0) == b""
    with dev.open() as fd:
        with pytest.raises(OSError) as e:
            os.pwrite(fd, b"x", 0)
        assert e.value.errno in (errno.ENOSPC, errno.EIO, errno.ENXIO)


TABLES = {
    "linear": lambda f: [linear(f[0], 2048)],
    "pieces": lambda f: [linear(f[0], 7, 0, 100), linear(f[1], 1, 7, 3), linear(f[2], 900, 8, 1000),
                         linear(f[0], 1140, 908, 500)],
    "striped": lambda f: [f"0 2048 striped 2 8 {quote(f[0])} 0 {quote(f[1])} 5"],
    "striped by threes": lambda f: [f"0 2043 striped 3 3 {quote(f[0])} 1 {quote(f[1])} 0 {quote(f[2])} 7",
                                    linear(f[0], 5, 2043, 1900)],
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_any_offset_and_length(fs, backing, name, direct):
    """Reads and writes of any alignment, against a plain copy in memory."""
    files = [backing(2048, pattern(2048, i)) for i in range(3)]
    dev = fs.mkdir("vol", *TABLES[name](files))
    model = bytearray(dev.pread(2048 * SECTOR, 0))
    assert len(model) == 2048 * SECTOR
    rnd = random.Random(name)
    flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
    buf = mmap.mmap(-1, 1 << 19)
    with dev.open(flags) as fd:
        for i in range(300):
            if i % 3 == 0:      # whole sectors
                at, length = rnd.randrange(2048) * SECTOR, rnd.choice((1, 2, 7, 8, 64, 300)) * SECTOR
            else:
                at, length = rnd.randrange(len(model)), int(rnd.expovariate(1 / 3000)) + 1
            length = min(length, len(model) - at, len(buf))
            if rnd.random() < 0.5:
                data = rnd.randbytes(length)
                buf[:length] = data
                assert os.pwritev(fd, [memoryview(buf)[:length]], at) == length
                model[at:at + length] = data
            else:
                assert os.preadv(fd, [memoryview(buf)[:length]], at) == length
                assert buf[:length] == model[at:at + length], (at, length)
        os.fsync(fd)
    assert dev.pread(len(model), 0) == model


def test_large_requests_over_many_lines(fs, backing):
    files = [backing(8192, pattern(8192, i)) for i in range(2)]
    lines = [linear(files[i % 2], 3, i * 3, (i * 7919) % 8000) for i in range(5000)]
    dev = fs.mkdir("vol", *lines)
    want = b"".join(pattern_part(i % 2, (i * 7919) % 8000) for i in range(5000))
    with dev.open() as fd:
        assert pread_all(fd, 5000 * 3 * SECTOR, 0) == want


def pattern_part(seed, sector, _all={}):
    if seed not in _all:
        _all[seed] = pattern(8192, seed)
    return _all[seed][sector * SECTOR:(sector + 3) * SECTOR]


def test_large_reads_go_in_parts(fs, backing):
    """Over the ends of lines, at odd offsets, up to the end; and where one part fails, the read does."""
    data = pattern(9001)
    path = backing(9001, data)
    dev = fs.mkdir("vol", f"{linear(path, 3001)}\n{linear(path, 6000, 3001, 3001)}")
    with dev.open() as fd, dev.open(os.O_RDONLY | os.O_DIRECT) as direct:
        for offset, length in ((0, 1 << 20), (777, 1 << 20), (512 * 2000 - 3, 600001), (512 * 7001 + 1, 1 << 20)):
            assert os.pread(fd, length, offset) == data[offset:offset + length]
        buf = mmap.mmap(-1, 1 << 20)
        for sector in (0, 1, 2047, 9001 - 1500):
            n = os.preadv(direct, [buf], sector * SECTOR)
            assert buf[:n] == data[sector * SECTOR:(sector << 9) + (1 << 20)] and n
        dev.load(f"{linear(path, 3001)}\n3001 1 error\n{linear(path, 5999, 3002, 3002)}")
        for sector in (1000, 2999, 3001):
            with pytest.raises(OSError) as e:
                os.preadv(direct, [buf], sector * SECTOR)
            assert e.value.errno == errno.EIO
        assert os.preadv(direct, [buf], 3002 * SECTOR) == 1 << 20
        assert buf[:] == data[3002 * SECTOR:(3002 << 9) + (1 << 20)]



@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_neighbours_in_one_sector(vol, direct):
    """Writers of parts of the same sectors never undo each other: a sector's read-modify-write is atomic."""
    dev, path = vol
    lanes, sectors, rounds = 8, 4, 40
    width = SECTOR // lanes
    failures = []

    def writer(lane):
        try:
            with dev.open(os.O_WRONLY | (os.O_DIRECT if direct else 0)) as fd:
                for r in range(rounds):
                    for s in range(sectors):
                        os.pwrite(fd, bytes([lane * 16 + r % 16]) * width, s * SECTOR + lane * width)
        except OSError as e:
            failures.append(e)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(lanes)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    want = b"".join(bytes([lane * 16 + (rounds - 1) % 16]) * width for lane in range(lanes)) * sectors
    assert dev.pread(len(want), 0) == want
    assert content(path) == want + pattern(1024)[len(want):]


def test_sync_writes(vol):
    dev, path = vol
    for flags in (os.O_DSYNC, os.O_SYNC, os.O_DSYNC | os.O_DIRECT):
        with dev.open(os.O_RDWR | flags) as fd:
            buf = mmap.mmap(-1, 4096)
            buf[:] = os.urandom(4096)
            assert os.pwritev(fd, [buf], 8192) == 4096
            assert content(path)[8192:12288] == buf[:]
            os.fsync(fd)
            os.fdatasync(fd)


# --- discard, zeroes, holes -----------------------------------------------------


def allocated(path):
    return os.stat(path).st_blocks * 512


def test_discard_frees_the_space(vol):
    dev, path = vol
    before = allocated(path)
    dev.discard(64 * SECTOR, 512 * SECTOR)
    assert allocated(path) <= before - 256 * SECTOR
    assert dev.size() == 1024 * SECTOR and os.path.getsize(path) == 1024 * SECTOR
    want = pattern(1024)[:64 * SECTOR] + bytes(512 * SECTOR) + pattern(1024)[576 * SECTOR:]
    assert dev.pread(1024 * SECTOR, 0) == want and content(path) == want


def test_odd_discards_and_zeroes_keep_the_neighbours(vol):
    """Of an unaligned range a discard may leave the ends; zeroing must zero every byte of it (or refuse)."""
    dev, path = vol
    model = bytearray(pattern(1024))
    with dev.open() as fd:
        for mode, at, length in ((FALLOC_PUNCH_HOLE, 1000, 9000), (FALLOC_PUNCH_HOLE, 33000, 100),
                                 (FALLOC_ZERO_RANGE, 50001, 7777), (FALLOC_ZERO_RANGE, 70000, 10),
                                 (FALLOC_ZERO_RANGE, 80 * SECTOR * 2, 3 * SECTOR)):
            try:
                fallocate(fd, mode | FALLOC_KEEP_SIZE, at, length)
            except OSError as e:
                assert e.errno in (errno.EINVAL, errno.EOPNOTSUPP) and (at % SECTOR or length % SECTOR)
            now = pread_all(fd, len(model), 0)
            assert now[:at] == model[:at] and now[at + length:] == model[at + length:]
            if mode == FALLOC_ZERO_RANGE and now[at:at + length] != model[at:at + length]:
                assert now[at:at + length] == bytes(length)
            model = bytearray(now)
    assert content(path) == model


def test_zero_range(vol):
    dev, path = vol
    with dev.open() as fd:
        pread_all(fd, 1024 * SECTOR, 0)     # now in the page cache
        fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 100 * SECTOR, 800 * SECTOR)
        want = pattern(1024)[:100 * SECTOR] + bytes(800 * SECTOR) + pattern(1024)[900 * SECTOR:]
        assert pread_all(fd, 1024 * SECTOR, 0) == want
    assert content(path) == want


def test_other_fallocates_are_refused(vol):
    dev, path = vol
    with dev.open() as fd:
        for mode in (8, 32, 64 | FALLOC_KEEP_SIZE):     # collapse, insert, unshare
            with pytest.raises(OSError) as e:
                fallocate(fd, mode, 0, 8 * SECTOR)
            assert e.value.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC)
        for at, length in ((1024 * SECTOR, 4096), (1 << 60, 4096)):
            try:
                fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, at, length)
            except OSError as e:
                assert e.errno in (errno.EINVAL, errno.ENOSPC, errno.EFBIG)
        try:
            fallocate(fd, FALLOC_ZERO_RANGE, 1020 * SECTOR, 1 << 40)
        except OSError as e:
            assert e.errno in (errno.EINVAL, errno.ENOSPC, errno.EFBIG)
    assert dev.size() == 1024 * SECTOR == os.path.getsize(path)
    assert content(path)[:1020 * SECTOR] == pattern(1024)[:1020 * SECTOR]


def test_provisioning_within_the_size(fs, backing, sh):
    """fallocate without a mode is what a target can do for it: mostly nothing, at once.  Beyond the end is no space."""
    sectors = 64 << 20      # 32 GiB: posix_fallocate would write to each 4 KiB of it
    path, data = backing(sectors), pattern(64)
    with open(path, "r+b") as f:
        f.write(data)
    blocks = os.stat(path).st_blocks
    for name, table in {
            "linear": [linear(path, sectors)],
            "lines": [linear(path, 5000), f"5000 {sectors - 5000} zero"],
            "striped": [f"0 {sectors} striped 2 8 {quote(path)} 0 {quote(path)} {sectors // 2}"],
            "delay": [f"0 {sectors} delay {quote(path)} 0 1"],
            "crypt": [f"0 {sectors} crypt aes-xts-plain64 {'11' * 32} 0 {quote(path)} 0"],
            "switch": [f"0 {sectors} switch 1 1024 0 {quote(path)} 0"],
            "mirror": [f"0 {sectors} mirror core 2 1024 nosync 2 {quote(path)} 0 {quote(backing(sectors))} 0"],
            "log-writes": [f"0 {sectors} log-writes {quote(path)} {quote(backing(2048))}"],
            "dust": [f"0 {sectors} dust {quote(path)} 0 512"],
    }.items():
        dev, end = fs.mkdir(name, *table), sectors * SECTOR
        with dev.open() as fd:
            for offset, length in ((0, end), (1, end - 1), (4095, 2), (end - 1, 1)):
                for mode in (0, FALLOC_KEEP_SIZE):
                    fallocate(fd, mode, offset, length)
                os.posix_fallocate(fd, offset, length)
            for offset, length in ((0, end + 1), (end - 1, 2), (end, 1), (1 << 62, (1 << 62) - 1)):
                for mode in (0, FALLOC_KEEP_SIZE):
                    with pytest.raises(OSError) as e:
                        fallocate(fd, mode, offset, length)
                    assert e.value.errno == errno.ENOSPC, (name, offset, length, mode)
            assert os.fstat(fd).st_size == end
        with dev.open(os.O_RDONLY) as fd, pytest.raises(OSError) as e:
            fallocate(fd, 0, 0, 4096)
        assert e.value.errno == errno.EBADF
        sh('fallocate -l "$2" "$1"; fallocate -x -l "$2" "$1"; fallocate -n -o 512 -l 4k "$1"', dev.image, end)
        dev.remove()
    assert os.stat(path).st_blocks == blocks and content_head(path, len(data)) == data


def content_head(path, length):
    with open(path, "rb") as f:
        return f.read(length)


# --- what it takes ------------------------------------------------------------------


def sparse(backing, sectors, data, name=None):
    path = backing(sectors, name=name)
    with open(path, "r+b") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return path


def blocks(dev):
    path = dev if isinstance(dev, str) else dev.image
    return os.stat(path).st_blocks


MIB = 2048      # sectors


@pytest.mark.parametrize("name, table, data", [
    ("zero", "0 {n} zero", False),
    ("linear", "0 {n} linear {a} 0", True),
    ("a part", "0 {half} linear {a} 1000", True),
    ("delay", "0 {n} delay {a} 0 0", True),
    ("log-writes", "0 {n} log-writes {a} {b}", True),
    ("dust", "0 {n} dust {a} 0 512", True),
    ("switch", "0 {n} switch 2 1024 0 {a} 0 {a} 0", True),
    ("mirror", "0 {n} mirror core 2 1024 nosync 2 {a} 0 {b} 0", True),
    ("unstriped", "0 {half} unstriped 2 8 1 {a} 0", True),
    ("stack", "0 {n} linear below 0", True),
    ("multipath", "0 {n} multipath 0 0 1 1 round-robin 0 2 0 {a} below", True),
    ("era", "0 {n} era {c} {a} 128", True),
    ("writecache", "0 {n} writecache s {a} {c} 4096 0", True),
    ("snapshot-origin", "0 {n} snapshot-origin below", True),
])
def test_blocks_are_what_is_provisioned(fs, backing, name, table, data):
    n = 1024 * MIB
    a, b = sparse(backing, n, os.urandom(MIB * SECTOR)), backing(n)
    fs.mkdir("below", linear(a, n))
    c = backing(8192)
    dev = fs.mkdir("vol", table.format(n=n, half=n // 2, a=quote(a), b=quote(b), c=quote(c)))
    assert blocks(dev) == (blocks(a) if data else 0)
    with dev.open(os.O_RDONLY):
        assert blocks(dev) == (blocks(a) if data else 8)    # there may be pages that only the kernel has


def test_blocks_of_several_lines(fs, backing):
    n = 64 * MIB
    a, b = sparse(backing, n, b"x" * (MIB * SECTOR)), sparse(backing, n, b"y" * (2 * MIB * SECTOR))
    dev = fs.mkdir("vol", linear(a, n), f"{n} {n} zero", linear(b, n, 2 * n), f"{3 * n} 100 error")
    assert blocks(dev) == blocks(a) + blocks(b) + 100
    assert blocks(fs.mkdir("striped", f"0 {2 * n} striped 2 8 {quote(a)} 0 {quote(b)} 0")) == blocks(a) + blocks(b)
    # what cannot tell counts in full, and nothing more than its length
    assert blocks(fs.mkdir("crypt", f"0 {n} crypt aes-xts-plain64 {'11' * 32} 0 {quote(a)} 0")) == n
    assert blocks(fs.mkdir("tiny", linear(b, 100))) == 100
    assert blocks(fs.mkdir("empty")) == 0


@pytest.mark.parametrize("options", [None, "writeback"])
def test_blocks_follow_writes_and_discards(dmfs, backing, options):
    fs, n = dmfs(options=options), 64 * MIB
    path = backing(n)
    low = fs.mkdir("low", linear(path, n))
    top = fs.mkdir("top", f"0 {n} linear low 0")

    def refresh():      # with writeback the kernel remembers attributes for a second
        for dev in (top, low):
            os.truncate(dev.image, 0)

    assert blocks(top) == blocks(low) == (8 if options else 0)
    top.pwrite(b"x" * (MIB * SECTOR), MIB * SECTOR, sync=True)
    refresh()
    assert blocks(top) == blocks(low) == blocks(path) >= MIB
    low.discard(0, n * SECTOR)
    refresh()
    assert blocks(path) == 0 and blocks(top) == blocks(low) == (8 if options else 0)


def test_blocks_of_data_that_only_the_kernel_has(dmfs, backing, tool, work):
    """Without blocks a file is not read, so there are some while pages may be dirty."""
    fs = dmfs(options="writeback")
    dev = fs.mkdir("vol", linear(backing(64 * MIB), 64 * MIB))
    with dev.open() as fd:
        os.pwrite(fd, b"x" * 4096, 5 * MIB * SECTOR)
        assert os.fstat(fd).st_blocks
        with mmap.mmap(fd, 1 << 20) as m:
            m[8192:12288] = b"y" * 4096
            assert os.fstat(fd).st_blocks
            archive = os.path.join(work, "archive")
            subprocess.run([tool("tar"), "-cSf", archive, "-C", dev.path, "image"], check=True, timeout=300)
    os.mkdir(os.path.join(work, "out"))
    subprocess.run([tool("tar"), "-xSf", archive, "-C", os.path.join(work, "out")], check=True, timeout=300)
    assert content(os.path.join(work, "out", "image")) == dev.pread(64 * MIB * SECTOR, 0)


def test_sparse_copies_of_the_tools(fs, backing, sh, work):
    n, data = 1024 * MIB, os.urandom(256 << 10)
    dev = fs.mkdir("vol", linear(sparse(backing, n, data), n))
    sh('cp "$1" copy; tar -cSf archive -C "${1%/*}" image; mkdir out; tar -xSf archive -C out', dev.image)
    for name in ("copy", "out/image"):
        path = os.path.join(work, name)
        assert os.path.getsize(path) == n * SECTOR and blocks(path) * SECTOR < 2 << 20
        assert content_head(path, len(data)) == data
    assert os.path.getsize(os.path.join(work, "archive")) < 1 << 20
    sh('cmp "$1" copy', dev.image, timeout=300)


def test_blocks_where_there_are_very_many_ways_down(fs, backing):
    """A stack of devices that have each two lines on the one below: 2^60 ways."""
    path = backing(1 << 10)
    fs.mkdir("d0", linear(path, 1 << 10))
    for i in range(1, 61):
        dev = fs.mkdir(f"d{i}", f"0 512 linear d{i - 1} 0", f"512 512 linear d{i - 1} 0")
    os.stat(dev.image)
    dev.load(*(f"{i} 1 zero" for i in range(100000)))
    assert 0 <= blocks(dev) <= 100000


def test_discard_on_striped_reaches_each_part(fs, backing):
    files = [backing(1024, pattern(1024, i)) for i in range(3)]
    dev = fs.mkdir("vol", "0 2880 striped 3 32 " + " ".join(f"{quote(f)} 0" for f in files))
    before = dev.pread(2880 * SECTOR, 0)
    dev.discard(0, 2880 * SECTOR)
    assert [allocated(f) for f in files] == [64 * SECTOR] * 3
    assert dev.pread(2880 * SECTOR, 0) == bytes(2880 * SECTOR)
    dev.pwrite(before, 0)
    dev.discard(96 * SECTOR, 200 * SECTOR)          # from inside one row of chunks to inside another
    want = before[:96 * SECTOR] + bytes(200 * SECTOR) + before[296 * SECTOR:]
    assert dev.pread(2880 * SECTOR, 0) == want


def runs(fd, size):
    """The data and holes of a file as SEEK_DATA and SEEK_HOLE tell them: a list of (start, end) of data."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        assert at > start
        found.append((start, at))
    return found


def test_seek_data_and_hole(fs, backing):
    page = 4096
    path = backing(1024)
    with open(path, "r+b") as f:
        for at in (16, 17, 40, 127):
            f.seek(at * page)
            f.write(b"x" * page)
    dev = fs.mkdir("vol", linear(path, 1024))
    with dev.open(os.O_RDONLY) as fd:
        assert runs(fd, dev.size()) == [(16 * page, 18 * page), (40 * page, 41 * page), (127 * page, 128 * page)]
        assert os.lseek(fd, 17 * page + 5, os.SEEK_DATA) == 17 * page + 5
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        for at in (dev.size(), dev.size() + 1):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                with pytest.raises(OSError) as e:
                    os.lseek(fd, at, whence)
                assert e.value.errno == errno.ENXIO
    top = fs.mkdir("top", "0 512 linear vol 128", "512 8 zero", "520 8 linear vol 320")
    with top.open(os.O_RDONLY) as fd:
        assert runs(fd, top.size()) == [(0, 2 * page), (24 * page, 25 * page), (65 * page, 66 * page)]
    dev.pwrite(b"y" * page, 2 * page)
    with top.open(os.O_RDONLY) as fd, dev.open(os.O_RDONLY) as low:
        assert runs(low, dev.size())[0] == (2 * page, 3 * page)
        assert runs(fd, top.size())[0] == (0, 2 * page)
    striped = fs.mkdir("striped", f"0 1024 striped 2 8 {quote(backing(512))} 0 {quote(path)} 0")
    with striped.open(os.O_RDONLY) as fd:
        got = runs(fd, striped.size())
        assert got == [(at, at + page) for at in ((2 * i + 1) * page for i in (2, 16, 17, 40))]


# --- zero and error ---------------------------------------------------------------


def test_zero(fs):
    dev = fs.mkdir("vol", "0 2048 zero")
    assert dev.pread(2048 * SECTOR, 0) == bytes(2048 * SECTOR)
    for flags in (0, os.O_DIRECT):
        with dev.open(os.O_RDWR | flags) as fd:
            buf = mmap.mmap(-1, 8192)
            buf[:] = b"x" * 8192
            assert os.pwritev(fd, [buf], 4096) == 8192
            os.fsync(fd)
    dev.discard(0, 2048 * SECTOR)
    dev.zero(0, 2048 * SECTOR)
    assert dev.pread(2048 * SECTOR, 0) == bytes(2048 * SECTOR)
    with dev.open() as fd:
        assert runs(fd, dev.size()) == []


def test_error(fs):
    dev = fs.mkdir("vol", "0 8 zero", "8 8 error", "16 8 zero")
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        buf = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buf], 0) == 4096
        assert os.preadv(fd, [buf], 8192) == 4096
        for call in (lambda: os.preadv(fd, [buf], 4096), lambda: os.pwritev(fd, [buf], 4096),
                     lambda: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 4096, 4096),
                     lambda: fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 4096, 4096)):
            with pytest.raises(OSError) as e:
                call()
            assert e.value.errno == errno.EIO
        os.pwritev(fd, [buf], 8192)
    with dev.open(os.O_RDWR) as fd:     # through the page cache
        with pytest.raises(OSError) as e:
            os.pread(fd, 1, 5000)
        assert e.value.errno == errno.EIO
        with pytest.raises(OSError) as e:
            os.pwrite(fd, b"x", 5000)
            os.fsync(fd)
        assert e.value.errno == errno.EIO


# --- mmap, page cache, swaps ----------------------------------------------------------


def test_mmap(vol):
    dev, path = vol
    with dev.open() as fd:
        m = mmap.mmap(fd, 1024 * SECTOR)
        assert m[:] == pattern(1024)
        m[1000:1010] = b"0123456789"
        m.flush()
        assert content(path)[1000:1010] == b"0123456789"
        m.close()
        m = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        m[0] = 0
        m.close()
    assert content(path)[:4] == pattern(1)[:4]


def test_open_files_see_a_new_table(fs, backing):
    files = [backing(256, pattern(256, i)) for i in range(3)]
    dev = fs.mkdir("vol", linear(files[0], 256))
    with dev.open() as fd:
        m = mmap.mmap(fd, 256 * SECTOR, prot=mmap.PROT_READ)
        for i in (1, 2, 0):
            dev.load(linear(files[i], 256))
            assert pread_all(fd, 256 * SECTOR, 0) == pattern(256, i)
            assert m[:] == pattern(256, i)
        m.close()


def test_open_files_see_the_size_change(fs, backing):
    path = backing(4096, pattern(4096))
    dev = fs.mkdir("vol", linear(path, 1024))
    with dev.open() as fd:
        for sectors in (2048, 4096, 8, 1000, 1, 3000):
            dev.load(linear(path, sectors))
            assert os.fstat(fd).st_size == sectors * SECTOR == dev.size()
            assert os.lseek(fd, 0, os.SEEK_END) == sectors * SECTOR
            assert pread_all(fd, 4096 * SECTOR, 0) == pattern(4096)[:sectors * SECTOR]
            with pytest.raises(OSError) as e:
                os.pwrite(fd, b"x", sectors * SECTOR)
            assert e.value.errno == errno.ENOSPC
    assert content(path) == pattern(4096)


def test_a_fresh_open_sees_what_is_beneath(vol):
    """As with a block device, the page cache belongs to those who have it open."""
    dev, path = vol
    assert dev.pread(4096, 0) == pattern(1024)[:4096]
    with open(path, "r+b") as f:
        f.write(b"beneath!")
    assert dev.pread(8, 0) == b"beneath!"


@pytest.mark.root
def test_a_loop_device_sees_growing_and_shrinking(fs, backing, loop):
    path = backing(8192, pattern(8192))
    dev = fs.mkdir("vol", linear(path, 2048))
    lo = loop(dev.image)

    def size():
        return int(subprocess.run(["blockdev", "--getsz", lo], capture_output=True, text=True, check=True).stdout)

    assert size() == 2048
    for sectors in (8192, 1024, 4096):
        dev.load(linear(path, sectors))
        subprocess.run(["losetup", "-c", lo], check=True)
        assert size() == sectors
        with open(lo, "rb") as f:
            assert f.read() == pattern(8192)[:sectors * SECTOR]


@pytest.mark.root
def test_a_filesystem_through_a_loop_device(fs, backing, loop, sh, work):
    files = [backing(32768) for _ in range(2)]
    dev = fs.mkdir("vol", f"0 65536 striped 2 128 {quote(files[0])} 0 {quote(files[1])} 0")
    sh('mke2fs -q -t ext4 "$1" && mkdir mnt', dev.image)
    mnt = os.path.join(work, "mnt")
    lo = loop(dev.image, "--direct-io=on")
    sh('mount "$1" mnt', lo)
    try:
        data = pattern(4096, 3)
        for i in range(4):
            with open(os.path.join(mnt, f"f{i}"), "wb") as f:
                f.write(data)
        os.unlink(os.path.join(mnt, "f0"))
        sh("fstrim mnt; sync", check=False)
        # a table swap under a mounted filesystem
        dev.load(f"0 65536 striped 2 128 {quote(files[0])} 0 {quote(files[1])} 0")
        for i in range(1, 4):
            assert content(os.path.join(mnt, f"f{i}")) == data
    finally:
        sh("umount mnt")
    sh('e2fsck -fn "$1"', dev.image)


def test_a_filesystem_by_fuse2fs(fs, backing, sh, tool, work):
    tool("fuse2fs")
    tool("mke2fs")
    files = [backing(32768) for _ in range(2)]
    dev = fs.mkdir("vol", linear(files[0], 32768), linear(files[1], 32768, 32768))
    sh('mke2fs -q -t ext4 -E root_owner=$(id -u):$(id -g) "$1" && mkdir mnt', dev.image,
       PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    mnt = os.path.join(work, "mnt")
    server = subprocess.Popen([tool("fuse2fs"), "-f", "-o", "fakeroot,rw", dev.image, mnt], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not wait_mount(mnt, server):
        pytest.skip(f"fuse2fs: {server.stderr.read().strip()}")
    try:
        with open(os.path.join(work, "mnt", "file"), "wb") as f:
            f.write(pattern(8192))
        assert content(os.path.join(work, "mnt", "file")) == pattern(8192)
    finally:
        unmount(mnt)
        server.communicate(timeout=300)     # it writes back until then
    sh('e2fsck -fn "$1"', dev.image, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")


# --- read-only -----------------------------------------------------------------------


def test_readonly(fs, backing):
    path = backing(64, pattern(64))
    os.chmod(path, 0o400)
    dev = fs.mkdir("vol")
    dev.write("readonly", "1\n")
    dev.load(linear(path, 64))
    assert dev.read("readonly").strip() == "1"
    for flags in (os.O_RDWR, os.O_WRONLY):
        with pytest.raises(OSError) as e:
            os.open(dev.image, flags)
        assert e.value.errno == errno.EROFS
    assert dev.pread(64 * SECTOR, 0) == pattern(64)
    dev.write("readonly", "0\n")
    os.chmod(path, 0o600)
    dev.load(linear(path, 64))
    dev.pwrite(b"x", 0)


def test_readonly_takes_0_and_1_alone(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    for bad in ("2", "x", "11", "1 1", "-1"):
        with pytest.raises(OSError) as e:
            dev.write("readonly", bad + "\n")
        assert e.value.errno == errno.EINVAL, bad
        assert dev.read("readonly").strip() == "0"


def test_pwrite_all_is_not_atomic_but_complete(vol):
    """A write larger than any FUSE request."""
    dev, path = vol
    data = os.urandom(1024 * SECTOR)
    with dev.open() as fd:
        pwrite_all(fd, data, 0)
    assert content(path) == data
