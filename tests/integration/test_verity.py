# SPDX-License-Identifier: GPL-2.0-or-later
"""verity through the mount: what is read, what is not, and who is told."""

import errno
import mmap
import os
import random
import select
import signal
import stat
import threading

import pytest

import mounted
from mounted import SECTOR, quote
from verity import BLOCK, Tree, ZeroTree, damage, fails, images, load, log_of, read, status

BLOCKS = 1200               # ten hash blocks below the root


@pytest.fixture
def image(backing):
    return images(backing, BLOCKS)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_reads_what_is_there(fs, image):
    tree = image()
    dev = load(fs, tree)
    assert status(dev) == "V"
    assert dev.pread(len(tree.data), 0) == tree.data                    # buffered
    assert read(dev, 0, len(tree.data) // 4) == tree.data[:len(tree.data) // 4]
    for at, length in ((0, 1), (4095, 2), (123457, 70001), (len(tree.data) - 5, 100)):
        assert dev.pread(length, at) == tree.data[at:at + length]
    with open(dev.image, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        assert m[7 * BLOCK:9 * BLOCK] == tree.data[7 * BLOCK:9 * BLOCK]
    assert dev.table() == tree.line(tree.data_path, tree.hash_path) + "\n"
    assert status(dev) == "V"


def test_small_reads_from_many_threads(fs, image):
    tree = image()
    dev = load(fs, tree)
    wrong = []

    def some(start):
        for n in range(start, BLOCKS, 7):
            if read(dev, n * BLOCK) != tree.data[n * BLOCK:(n + 1) * BLOCK]:
                wrong.append(n)

    threads = [threading.Thread(target=some, args=(i,)) for i in range(7)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("blocks", [1, 2, 128, 129])
def test_few_blocks(fs, image, blocks):
    """A tree of one block is its digest, and has no hash blocks."""
    tree = image(blocks=blocks)
    dev = load(fs, tree)
    assert dev.pread(len(tree.data), 0) == tree.data
    damage(tree.data_path, (blocks - 1) * BLOCK)
    assert fails(dev, (blocks - 1) * BLOCK)


@pytest.mark.parametrize("algorithm", ["blake2b-256", "blake2b-512", "sm3", "ripemd160", "whirlpool", "blake2s-256"])
def test_hashes_the_guest_kernel_has_not(fs, image, algorithm):
    """(The others are compared with the kernel's.)"""
    tree = image(blocks=200, algorithm=algorithm)
    dev = load(fs, tree)
    assert dev.pread(len(tree.data), 0) == tree.data
    assert f" {algorithm} " in dev.table()


def test_digests_behind_the_data(fs, image, backing):
    tree = image()
    both = backing((len(tree.data) + len(tree.area)) // SECTOR, tree.data + tree.area)
    dev = load(fs, tree, data=both, hashes=both, start=BLOCKS)
    assert dev.size() == len(tree.data)
    assert dev.pread(len(tree.data) + 1, 0) == tree.data


def test_a_table_shorter_than_the_data(fs, image):
    tree = image()
    dev = load(fs, tree, sectors=80)
    assert dev.pread(len(tree.data), 0) == tree.data[:80 * SECTOR]


def test_on_devices_of_dmfs(fs, image):
    """Data and digests lie on other devices, the data in pieces; verity stands below another."""
    tree = image()
    half = BLOCKS // 2 * BLOCK
    low = fs.mkdir("low", f"0 {half // SECTOR} linear {quote(tree.data_path)} 0",
                   f"{half // SECTOR} {half // SECTOR} linear {quote(tree.data_path)} {half // SECTOR}")
    hashes = fs.mkdir("hashes", f"0 {len(tree.area) // SECTOR} linear {quote(tree.hash_path)} 0")
    dev = load(fs, tree, data="low", hashes="hashes")
    top = fs.mkdir("top")
    top.write("readonly", "1")
    top.load(f"0 {len(tree.data) // SECTOR} linear v 0")
    assert top.pread(len(tree.data), 0) == tree.data
    assert " low hashes " in dev.table()
    damage(tree.data_path, 1000 * BLOCK)
    assert fails(top, 1000 * BLOCK)
    assert read(top, 999 * BLOCK) == tree.data[999 * BLOCK:1000 * BLOCK]
    assert low.size() and hashes.size()


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_image_cannot_be_written(fs, image):
    tree = image()
    dev = load(fs, tree)
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError) as e:
            os.open(dev.image, flags)
        assert e.value.errno == errno.EROFS
    with open(tree.data_path, "rb") as f:
        assert f.read() == tree.data


def test_a_writeable_device_is_refused(fs, image):
    tree = image()
    dev = fs.mkdir("v")
    dev.refuse(tree.line(tree.data_path, tree.hash_path) + "\n", match="verity: Device must be readonly")


def test_backing_files_need_not_be_writeable(dmfs, image, work):
    tree = image()
    for path in (tree.data_path, tree.hash_path):
        os.chmod(path, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    dev = load(dmfs(), tree)
    assert read(dev, 0) == tree.data[:BLOCK]


def any_image(rnd, backing, n):
    """A tree of any format, some blocks of zeroes in its data, and its line's devices: two or one."""
    size, blocks = rnd.choice([512, 1024, 2048, 4096]), rnd.choice([1, 2, 15, 16, 17, rnd.randrange(1, 300)])
    data = bytearray(rnd.randbytes(blocks * size))
    for b in rnd.sample(range(blocks), blocks // 4):
        data[b * size:(b + 1) * size] = bytes(size)
    tree = Tree(bytes(data), version=rnd.randrange(2), data_block=size, hash_block=rnd.choice([512, 1024, 4096, 8192]),
                algorithm=rnd.choice(["sha256", "sha256", "sha1", "sha512"]), salt=rnd.randbytes(rnd.choice([0, 1, 32, 55, 256])))
    tree.data, tree.start = bytes(data), 0
    if rnd.randrange(2):
        tree.data_path = backing(len(data) // SECTOR, tree.data, name=f"data{n}")
        tree.hash_path = backing(-(-len(tree.area) // SECTOR) or 1, tree.area, name=f"hash{n}")
    else:
        tree.start = -(-len(data) // tree.hash_block) + rnd.randrange(3)
        whole = tree.data.ljust(tree.start * tree.hash_block, b"?") + tree.area
        tree.data_path = tree.hash_path = backing(-(-len(whole) // SECTOR), whole, name=f"both{n}")
    return tree


@pytest.mark.parametrize("seed", range(4))
def test_any_read_of_any_image(fs, backing, seed):
    """Reads of one block and of many, with damage here and there: what is read is what was there, or the read fails."""
    rnd = random.Random(seed)
    for n in range(8):
        tree = any_image(rnd, backing, n)
        size = tree.data_block
        options = [w for w in ("ignore_corruption", "ignore_zero_blocks", "check_at_most_once") if not rnd.randrange(3)]
        expected = [tree.data[b * size:(b + 1) * size] for b in range(tree.blocks)]
        for b in rnd.sample(range(tree.blocks), min(tree.blocks, rnd.choice([0, 1, 5]))):
            with open(tree.data_path, "r+b") as f:
                os.pwrite(f.fileno(), b"?!", b * size + rnd.randrange(size - 1))
                bad = os.pread(f.fileno(), size, b * size)
            if "ignore_zero_blocks" not in options or any(expected[b]):
                expected[b] = bad if "ignore_corruption" in options else None
        dev = load(fs, tree, f"v{n}", f"{len(options)} {' '.join(options)}" if options else "", start=tree.start)
        for _ in range(60):
            first = rnd.randrange(tree.blocks)
            count = min(rnd.choice([1, 2, 4, 15, 16, 17, 33, 300]), tree.blocks - first)
            wanted = expected[first:first + count]
            if None in wanted:
                assert fails(dev, first * size, count * size), (n, first, count)
            else:
                assert read(dev, first * size, count * size) == b"".join(wanted), (n, first, count)
        dev.remove()


# --- corruption ------------------------------------------------------------------------------------------------------


@pytest.fixture
def events():
    made = []

    def open_events(dev):
        made.append(os.open(dev.file("events"), os.O_RDONLY | os.O_NONBLOCK))

        def lines():
            out = b""
            while True:
                try:
                    got = os.read(made[-1], 65536)
                except BlockingIOError:
                    return out.decode().splitlines()
                out += got
                if not got:
                    return out.decode().splitlines()

        return lines

    yield open_events
    for fd in made:
        os.close(fd)


def test_a_bad_data_block_fails_alone(fs, image, events):
    tree = image()
    dev = load(fs, tree)
    lines, number = events(dev), dev.info()["Event number"]
    damage(tree.data_path, 100 * BLOCK + 9)
    assert fails(dev, 100 * BLOCK)
    assert status(dev) == "C"
    assert read(dev, 99 * BLOCK) + read(dev, 101 * BLOCK) == tree.data[99 * BLOCK:100 * BLOCK] + \
        tree.data[101 * BLOCK:102 * BLOCK]
    assert fails(dev, 96 * BLOCK, 32 * BLOCK)       # and the read it is part of
    told = log_of(fs, "is corrupted")
    assert len(told) == 2 and all(t.endswith(f"verity: {tree.data_path}: data block 100 is corrupted") for t in told)
    got = lines()
    assert len(got) == 2 and all(" DM_VERITY_ERR_BLOCK_NR=0,100 " in line for line in got), got
    assert dev.info()["Event number"] == number     # it is a uevent and no dm event
    damage(tree.data_path, 100 * BLOCK + 9, tree.data[100 * BLOCK + 9:100 * BLOCK + 12])
    assert read(dev, 100 * BLOCK) == tree.data[100 * BLOCK:101 * BLOCK]
    assert status(dev) == "C"


def test_a_buffered_read_fails_at_the_bad_block_only(fs, image):
    tree = image()
    dev = load(fs, tree)
    damage(tree.data_path, 50 * BLOCK)
    with dev.open(os.O_RDONLY) as fd:
        got = b""
        with pytest.raises(OSError):
            while part := os.pread(fd, BLOCK, len(got)):
                got += part
        assert got == tree.data[:50 * BLOCK]
        assert os.pread(fd, BLOCK, 51 * BLOCK) == tree.data[51 * BLOCK:52 * BLOCK]


def test_a_bad_hash_block_fails_what_is_below_it(fs, image, events):
    tree = image()
    dev = load(fs, tree)
    lines = events(dev)
    damage(tree.hash_path, 3 * BLOCK + 4000)        # the root is block 0
    for n in (2 * 128, 2 * 128 + 127):
        assert fails(dev, n * BLOCK)
    for n in (2 * 128 - 1, 3 * 128):
        assert read(dev, n * BLOCK) == tree.data[n * BLOCK:(n + 1) * BLOCK]
    assert status(dev) == "C"
    assert all(" DM_VERITY_ERR_BLOCK_NR=1,3 " in line for line in lines())
    assert log_of(fs, f"verity: {tree.data_path}: metadata block 3 is corrupted")
    damage(tree.hash_path, 3 * BLOCK + 4000, tree.area[3 * BLOCK + 4000:3 * BLOCK + 4003])
    assert read(dev, 256 * BLOCK) == tree.data[256 * BLOCK:257 * BLOCK]     # it was not kept


def test_a_bad_root_block_fails_everything(fs, image):
    tree = image()
    dev = load(fs, tree)
    damage(tree.hash_path, 0)
    assert fails(dev, 0) and fails(dev, (BLOCKS - 1) * BLOCK)


@pytest.mark.parametrize("what", ["root", "salt", "version"])
def test_a_wrong_line_fails_at_the_first_read(fs, image, what):
    tree = image()
    if what == "root":
        tree.root = "0" * 64
    elif what == "salt":
        tree.salt = b"another"
    else:
        tree.version = 0
    dev = load(fs, tree)
    assert status(dev) == "V"
    assert fails(dev, 0)
    assert status(dev) == "C"
    assert log_of(fs, "metadata block 0 is corrupted")


def test_after_a_hundred_it_is_silent(fs, image, events):
    tree = image()
    dev = load(fs, tree)
    lines = events(dev)
    for n in range(150):
        damage(tree.data_path, n * BLOCK)
    assert all(fails(dev, n * BLOCK) for n in range(150))
    assert len(log_of(fs, "is corrupted")) == 100
    assert len(log_of(fs, f"verity: {tree.data_path}: reached maximum errors")) == 1
    assert len([line for line in lines() if "DM_VERITY_ERR_BLOCK_NR" in line]) == 100
    assert status(dev) == "C"
    assert read(dev, 150 * BLOCK) == tree.data[150 * BLOCK:151 * BLOCK]


def test_devices_that_end_too_early(fs, image):
    """Nobody looks at the whole when it is loaded, but what is not there is an error for what needs it."""
    tree = image()
    dev = load(fs, tree)
    os.truncate(tree.data_path, 600 * BLOCK)
    os.truncate(tree.hash_path, 4 * BLOCK)
    assert read(dev, 128 * BLOCK) == tree.data[128 * BLOCK:129 * BLOCK]
    assert fails(dev, 600 * BLOCK)
    assert fails(dev, 3 * 128 * BLOCK)
    assert status(dev) == "V"                       # it was not wrong, it was not there
    assert read(dev, 129 * BLOCK) == tree.data[129 * BLOCK:130 * BLOCK]


# --- options ---------------------------------------------------------------------------------------------------------


def test_ignore_corruption(fs, image):
    tree = image()
    dev = load(fs, tree, options="1 ignore_corruption")
    damage(tree.data_path, 7 * BLOCK)
    damage(tree.hash_path, 5 * BLOCK)
    with open(tree.data_path, "rb") as f:
        lies = f.read()
    assert dev.pread(len(lies), 0) == lies
    assert read(dev, 0, 64 * BLOCK) == lies[:64 * BLOCK]
    assert status(dev) == "C"
    assert log_of(fs, "data block 7 is corrupted") and log_of(fs, "metadata block 5 is corrupted")


def test_ignore_zero_blocks(fs, image):
    data = bytearray(os.urandom(300 * BLOCK))
    data[10 * BLOCK:20 * BLOCK] = bytes(10 * BLOCK)
    tree = image(bytes(data))
    damage(tree.data_path, 12 * BLOCK)
    plain = load(fs, tree, "plain")
    assert fails(plain, 12 * BLOCK)
    dev = load(fs, tree, options="1 ignore_zero_blocks")
    assert dev.pread(len(data), 0) == bytes(data)
    assert status(dev) == "V"
    once = load(fs, tree, "once", options="2 ignore_zero_blocks check_at_most_once")
    assert [read(once, 12 * BLOCK) for _ in range(2)] == [bytes(BLOCK)] * 2


def test_check_at_most_once(fs, image):
    tree = image()
    dev = load(fs, tree, options="1 check_at_most_once")
    damage(tree.data_path, 3 * BLOCK)
    assert fails(dev, 3 * BLOCK)
    assert read(dev, 5 * BLOCK) == tree.data[5 * BLOCK:6 * BLOCK]
    damage(tree.data_path, 5 * BLOCK)
    assert read(dev, 5 * BLOCK)[:3] == b"\xff\x00\xff"          # it was good once
    assert fails(dev, 3 * BLOCK)                                # it never was
    damage(tree.data_path, 3 * BLOCK, tree.data[3 * BLOCK:3 * BLOCK + 3])
    assert read(dev, 3 * BLOCK) == tree.data[3 * BLOCK:4 * BLOCK]
    dev.load(dev.table().strip())                               # loaded again it is looked at again
    assert fails(dev, 5 * BLOCK)


@pytest.mark.parametrize("mode", ["restart", "panic"])
def test_failing_for_good(fs, image, mode):
    """Instead of taking the machine down: this device fails, others do not, and a new table helps."""
    tree = image()
    dev, other = load(fs, tree, options=f"1 {mode}_on_corruption"), load(fs, tree, "other")
    assert read(dev, 0) == tree.data[:BLOCK]
    damage(tree.data_path, 9 * BLOCK)
    assert fails(dev, 9 * BLOCK)
    assert fails(dev, 0)
    assert read(other, 0) == tree.data[:BLOCK]
    assert log_of(fs, f"it fails from now on ({mode}_on_corruption)")
    dev.load(dev.table().strip())
    assert read(dev, 0) == tree.data[:BLOCK]


# --- the command -----------------------------------------------------------------------------------------------------


def wait_for_lines(path, n):
    """Of a fifo."""
    out, p = b"", select.poll()
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    p.register(fd, select.POLLIN)
    try:
        while out.count(b"\n") < n:
            assert p.poll(20000), f"only {out!r} came"
            out += os.read(fd, 65536)
        return out.decode().splitlines()
    finally:
        os.close(fd)


@pytest.fixture
def fifo(work):
    path = os.path.join(work, "fifo")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)       # so that nobody waits for the other end
    yield path
    os.close(fd)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        main = f.read().split()
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as f:
                main += f.read().split()
        except FileNotFoundError:
            pass
    return main


def test_the_command_is_told_what_happened(dmfs, image, fifo):
    command = ("on-corruption=/bin/sh -c 'echo \"$DM_NAME\" $DM_VERITY_ERR_BLOCK_NR $DM_VERITY_MODE \"$1\" >\"$0\"' "
               f"{fifo} 'a b; $(exit)'")
    fs = dmfs(options=command)
    tree = image()
    dev = load(fs, tree, "a name", options="1 panic_on_corruption")
    damage(tree.data_path, 9 * BLOCK)
    assert fails(dev, 9 * BLOCK)
    assert wait_for_lines(fifo, 1) == ["a name 0,9 panic a b; $(exit)"]
    eio = load(fs, tree, "b")
    damage(tree.hash_path, 2 * BLOCK)
    assert fails(eio, 130 * BLOCK)
    assert wait_for_lines(fifo, 1) == ["b 1,2 eio a b; $(exit)"]


def test_a_hanging_command_keeps_nobody_waiting(dmfs, image, work, fifo):
    """It is one process, reads go on, and it is no zombie when it ends; the mount ends with it running."""
    gate = os.path.join(work, "gate")
    os.mkfifo(gate)
    fs = dmfs(options=f"on-corruption=/bin/sh -c 'echo $$ >{fifo}; read x <{gate}'")
    tree = image()
    dev = load(fs, tree)
    for n in (1, 2, 3):
        damage(tree.data_path, n * BLOCK)
        assert fails(dev, n * BLOCK)
    pid = wait_for_lines(fifo, 1)[0]
    assert children(fs.pid) == [pid]
    assert read(dev, 0) == tree.data[:BLOCK]
    with open(gate, "w", encoding="ascii") as f:        # the first ends, the second runs
        f.write("\n")
    second = wait_for_lines(fifo, 1)[0]
    assert second != pid and children(fs.pid) == [second]
    fs.unmount()
    os.kill(int(second), signal.SIGKILL)


@pytest.mark.parametrize("command, why", [("''", "No such file"), ("/nonexistent/x y", "No such file"),
                                          ("/bin/false", "exit status 1")])
def test_a_command_that_fails_is_logged(dmfs, image, command, why):
    fs = dmfs(options=f"on-corruption={command}")
    tree = image()
    dev = load(fs, tree)
    damage(tree.data_path, 0)
    assert fails(dev, 0)
    with open(fs.path("log"), "rb") as f:
        for _ in range(1000):
            if log_of(fs, "on-corruption command"):
                break
            select.select([], [], [], 0.02)
        assert why in log_of(fs, "on-corruption command")[0], f.read()
    assert read(dev, BLOCK) == tree.data[BLOCK:2 * BLOCK]


def test_options_of_the_mount_that_are_wrong(dmfs, work):
    for options, why in (("on-corruption='", "on-corruption="), ("on-corruption=", "on-corruption="),
                         ("verity-keys=/nonexistent", "verity-keys=/nonexistent"),
                         ("verity-keys=/dev/null", "no certificates in PEM format")):
        with pytest.raises(RuntimeError, match=why):
            dmfs(options=options)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_hash_block_is_read_once_for_many(fs, image):
    """Eight readers wait for the same hash blocks, which a slow device brings: each is read from it once."""
    tree = image()
    sectors = len(tree.area) // SECTOR
    fs.mkdir("slow", f"0 {sectors} delay {quote(tree.hash_path)} 0 200")
    stats = fs["slow"]
    region = stats.message(f"@stats_create - {sectors}").strip()
    dev = load(fs, tree, hashes="slow")
    got = [None] * 8

    def one(i):
        got[i] = read(dev, (i * 3) * BLOCK)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [tree.data[i * 3 * BLOCK:(i * 3 + 1) * BLOCK] for i in range(8)]
    counters = stats.message(f"@stats_print {region}").split()
    reads, sectors_read = int(counters[1]), int(counters[3])
    assert reads <= 2 and sectors_read == sectors     # the root, and all of the level below it in one
    assert read(dev, (BLOCKS - 1) * BLOCK) == tree.data[-BLOCK:]
    assert stats.message(f"@stats_print {region}").split()[1] == counters[1]


def test_memory_is_bounded(dmfs, backing, work):
    """A sparse image of 1 TiB, read at places all over it, with every block remembered as checked."""
    blocks, hashes = 1 << 28, os.path.join(work, "hashes")
    touched = [n * 521 % (blocks // 128) for n in range(4000)]
    tree, data = ZeroTree(blocks, touched, hashes), backing(blocks * 8, name="data")
    fs = dmfs()
    before = fs.rss_kib()
    dev = load(fs, tree, data=data, hashes=hashes, options="1 check_at_most_once")
    buf = mmap.mmap(-1, 8 * BLOCK)
    fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
    try:
        for n in touched:
            assert os.preadv(fd, [buf], n * 128 * BLOCK) == 8 * BLOCK
    finally:
        os.close(fd)
    assert status(dev) == "V"
    if not mounted.sanitized():
        assert fs.rss_kib() - before < 32 * 1024


def test_suspend_and_swap_while_reading(fs, image):
    tree = image()
    dev = load(fs, tree)
    over, wrong = threading.Event(), []

    def reader(seed):
        n = seed
        while not over.is_set():
            n = (n * 7 + 11) % (BLOCKS - 16)
            if read(dev, n * BLOCK, 16 * BLOCK) != tree.data[n * BLOCK:(n + 16) * BLOCK]:
                wrong.append(n)

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for i in range(30):
        dev.load(tree.line(tree.data_path, tree.hash_path, options=("", "1 check_at_most_once")[i % 2]))
        dev.suspend(noflush=i % 3 == 0)
        dev.resume()
    over.set()
    for t in threads:
        t.join()
    assert not wrong


def test_removed_while_it_reads_ahead(fs, image):
    """The hash device is slow: the device is removed while reads of it are under way that nobody waits for."""
    tree = image(blocks=20000)
    fs.mkdir("slow", f"0 {len(tree.area) // SECTOR} delay {quote(tree.hash_path)} 0 20")
    for _ in range(3):
        dev = load(fs, tree, hashes="slow")
        assert read(dev, 0) == tree.data[:BLOCK]
        assert read(dev, 9000 * BLOCK) == tree.data[9000 * BLOCK:9001 * BLOCK]
        dev.remove()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_lines_that_are_refused(fs, image):
    """(What the kernel refuses, and takes, is compared with it line by line; here what the texts say.)"""
    tree = image()
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    good = tree.line(tree.data_path, tree.hash_path).split(" ")
    for n, word, why in (
            (3, "2", r"Invalid version '2', 0 or 1"),
            (4, "/nonexistent", "No such file"),
            (6, "8192", r"Invalid data device block size '8192': a power of two from 512 to 4096"),
            (7, "1000", r"Invalid hash device block size '1000'"),
            (8, "x", "Invalid data blocks 'x'"), (8, "99", "Data device is too small"),
            (8, "18446744073709551616", "Invalid data blocks"), (8, str(1 << 60), "Invalid data blocks"),
            (8, "0", "Invalid data blocks: there are none"),
            (8, str((1 << 51) - 1), "Hash device is too small|overflow"),
            (9, str(1 << 60), "Invalid hash start"), (9, str((1 << 51) - 1), "overflow"),
            (9, "2", "Hash device is too small: the tree ends at hash block"),
            (10, "rot13", "hash 'rot13' is not one of"), (10, "hmac(sha256)", "needs a key"),
            (11, "ab", "64 hexadecimal digits are needed for sha256"), (11, "zz" * 32, "Invalid root digest"),
            (12, "abc", "Invalid salt 'abc': an even number"), (12, "xy", "Invalid salt"),
            (1, "9608", "Data device is too small: 9608 sectors"), (1, "7", "not a multiple of 8 sectors")):
        words = list(good)
        words[n] = word
        text = dev.refuse(" ".join(words) + "\n", code=(errno.EINVAL, errno.ENOENT, errno.E2BIG, errno.ENODEV), match=why)
        assert text.startswith("1: verity: ")
    for options, why in (("x", "Invalid number of feature args 'x'"), ("1", "0 words follow"),
                         ("1 rot13", "Unrecognized verity feature request: rot13"),
                         ("2 ignore_corruption panic_on_corruption", "Conflicting error handling"),
                         ("1 fec_roots", "require a value"), ("1 root_hash_sig_key_desc", "not specified")):
        dev.refuse(" ".join(good) + f" {options}\n", match=why)
    dev.load(" ".join(good))
    dev.refuse(f"0 {len(tree.data) // SECTOR} zero\n", match="immutable|mixed|cannot")
    assert dev.pread(len(tree.data), 0) == tree.data


def test_others_beside_it_are_refused(fs, image):
    tree = image()
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    dev.refuse(tree.line(tree.data_path, tree.hash_path) + f"\n{len(tree.data) // SECTOR} 8 zero\n",
               match="immutable target type cannot be mixed")


def test_it_comes_back_with_the_state(dmfs, image, work):
    tree = image()
    state = os.path.join(work, "state")
    fs = dmfs(state)
    load(fs, tree, options="1 ignore_zero_blocks")
    fs.unmount()
    fs = dmfs(state)
    dev = fs["v"]
    assert dev.pread(len(tree.data), 0) == tree.data
    with pytest.raises(OSError):
        os.open(dev.image, os.O_RDWR)
