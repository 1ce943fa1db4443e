# SPDX-License-Identifier: GPL-2.0-or-later
"""verity's forward error correction: what comes back, what does not, and that it is never something else.

The parity is made by hand (tests/lib/verity.py); what veritysetup makes is in test_verity_tool.py.
"""

import errno
import os
import threading

import pytest

from mounted import SECTOR, quote
from verity import BLOCK, Tree, damage, fails, fec_options, images, load, log_of, parity, read, status

BLOCKS = 500        # (the parity is made slowly)


@pytest.fixture
def image(backing):
    """An image with parity in tree.fec_path; tree.rounds: blocks between neighbours in a codeword."""
    make = images(backing, BLOCKS)

    def with_parity(roots=2, **kw):
        tree = make(**kw)
        area = tree.data + tree.area
        tree.roots, tree.fec_blocks = roots, len(area) // BLOCK
        tree.rounds = -(-tree.fec_blocks // (255 - roots))
        content = parity(area, roots)
        tree.fec_path = backing(len(content) // SECTOR, content, name=f"fec{roots}")
        tree.fec = fec_options(tree.fec_path, tree.fec_blocks, roots)
        return tree

    return with_parity


def block(tree, n):
    return tree.data[n * BLOCK:(n + 1) * BLOCK]


def lose(path, first, count=1):
    damage(path, first * BLOCK, os.urandom(count * BLOCK))


def everything_is_right(dev, tree):
    return dev.pread(len(tree.data), 0) == tree.data


@pytest.mark.parametrize("roots", [2, 24])
def test_a_byte(fs, image, roots):
    tree = image(roots)
    dev = load(fs, tree, options=tree.fec)
    damage(tree.data_path, 100 * BLOCK + 7)
    assert read(dev, 100 * BLOCK) == block(tree, 100)
    assert status(dev) == "V"
    assert not log_of(fs, "is corrupted")
    told = log_of(fs, "verity-fec")
    assert told and told[-1].endswith(
        f"verity-fec: {tree.data_path}: FEC {100 % tree.rounds * BLOCK}: corrected 3 errors")
    with open(tree.data_path, "rb") as f:
        f.seek(100 * BLOCK + 7)
        assert f.read(3) == b"\xff\x00\xff"         # nothing is written
    assert dev.table() == tree.line(tree.data_path, tree.hash_path, options=tree.fec) + "\n"


@pytest.mark.parametrize("roots", [2, 3, 24])
@pytest.mark.parametrize("first", [0, 333, BLOCKS - 5])
def test_a_run_as_long_as_can_be_mended(fs, image, roots, first):
    """In data, and from the data's end into the tree, root block and all."""
    tree = image(roots)
    dev = load(fs, tree, options=tree.fec)
    count = min(tree.rounds * roots, tree.fec_blocks - first)
    for n in range(first, first + count):
        if n < BLOCKS:
            lose(tree.data_path, n)
        else:
            lose(tree.hash_path, n - BLOCKS)
    assert everything_is_right(dev, tree)
    assert status(dev) == "V"


def test_one_block_more_is_lost(fs, image):
    tree = image(2)
    dev = load(fs, tree, options=tree.fec)
    lose(tree.data_path, 300, 2 * tree.rounds + 1)
    lost = {300, 300 + tree.rounds, 300 + 2 * tree.rounds}
    for n in range(290, 300 + 2 * tree.rounds + 10):
        if n in lost:
            assert fails(dev, n * BLOCK)
        else:
            assert read(dev, n * BLOCK) == block(tree, n)
    assert status(dev) == "C"
    assert log_of(fs, "failed to correct (2 erasures)") and log_of(fs, "data block 300 is corrupted")


@pytest.mark.parametrize("roots, blocks", [(2, 4096), (24, 300)])
def test_the_whole_tree(fs, image, roots, blocks):
    tree = image(roots, blocks=blocks)
    lose(tree.hash_path, 0, len(tree.area) // BLOCK)
    dev = load(fs, tree, options=tree.fec)
    assert everything_is_right(dev, tree)
    assert status(dev) == "V"


def test_scattered_damage(fs, image):
    """A bit of every block of a codeword's set but few in the same codeword; and scattered whole blocks."""
    tree = image(4)
    dev = load(fs, tree, options=tree.fec)
    for i, n in enumerate(range(0, BLOCKS, tree.rounds)):
        damage(tree.data_path, n * BLOCK + i * 16, b"\x01\x02")
    for n in (7, 111, 250, 401):
        lose(tree.data_path, n)
    assert everything_is_right(dev, tree)


def test_blocks_that_cannot_be_read(fs, image):
    """Data and digests on devices with holes: an error for a block is an erasure for its codewords."""
    tree = image(2)
    hole, sectors = 200 * 8, len(tree.data) // SECTOR
    for name, path, at, size in (("data", tree.data_path, hole, sectors), ("hashes", tree.hash_path, 3 * 8,
                                                                         len(tree.area) // SECTOR)):
        fs.mkdir(name, f"0 {at} linear {quote(path)} 0", f"{at} 8 error",
                 f"{at + 8} {size - at - 8} linear {quote(path)} {at + 8}")
    dev = load(fs, tree, data="data", hashes="hashes", options=tree.fec)
    assert read(dev, 200 * BLOCK) == block(tree, 200)
    assert read(dev, 192 * BLOCK, 32 * BLOCK) == tree.data[192 * BLOCK:224 * BLOCK]
    assert everything_is_right(dev, tree)
    assert status(dev) == "V"
    plain = load(fs, tree, "plain", data="data", hashes="hashes")
    assert fails(plain, 200 * BLOCK) and fails(plain, 2 * 128 * BLOCK)
    assert read(plain, 199 * BLOCK) == block(tree, 199)
    assert status(plain) == "V"


@pytest.mark.parametrize("version, size, algorithm", [(0, 4096, "sha1"), (1, 1024, "sha512"), (1, 512, "sha256")])
def test_other_formats(fs, backing, version, size, algorithm):
    data = os.urandom(300 * size)
    tree = Tree(data, version, size, size, algorithm)
    tree.data = data
    area = data + tree.area
    tree.data_path, tree.hash_path = backing(len(data) // SECTOR, data), backing(len(tree.area) // SECTOR, tree.area)
    content = parity(area, 6, size)
    fec = backing(-(-len(content) // SECTOR), content)
    dev = load(fs, tree, options=fec_options(fec, len(area) // size, 6))
    damage(tree.data_path, 33 * size, os.urandom(5 * size))
    damage(tree.hash_path, 0, os.urandom(2 * size))
    assert dev.pread(len(data), 0) == data


@pytest.mark.parametrize("start", [0, 3])
def test_everything_on_one_device(fs, backing, start):
    """Data, digests, something else, parity that covers all of it: as veritysetup lays it out."""
    data = os.urandom(BLOCKS * BLOCK)
    tree = Tree(data)
    behind = os.urandom(start * BLOCK)
    area = data + tree.area + behind
    whole = area + parity(area, 2)
    path = backing(len(whole) // SECTOR, whole)
    tree.data = data
    dev = load(fs, tree, data=path, hashes=path, start=BLOCKS,
               options=fec_options(path, len(area) // BLOCK, 2, len(area) // BLOCK))
    damage(path, 50 * BLOCK, os.urandom(BLOCK))
    damage(path, (BLOCKS + 1) * BLOCK, os.urandom(2 * BLOCK))
    assert dev.pread(len(data), 0) == data


def test_foreign_parity_makes_nothing_else_of_it(fs, image, backing):
    tree = image(2)
    foreign = backing(os.path.getsize(tree.fec_path) // SECTOR, os.urandom(os.path.getsize(tree.fec_path)))
    dev = load(fs, tree, options=fec_options(foreign, tree.fec_blocks, 2))
    for n in (3, 5):
        damage(tree.data_path, n * BLOCK)
    damage(tree.hash_path, 4 * BLOCK)
    assert fails(dev, 3 * BLOCK) and fails(dev, 5 * BLOCK) and fails(dev, 3 * 128 * BLOCK)
    assert read(dev, 4 * BLOCK) == block(tree, 4)
    assert status(dev) == "C"


def test_with_the_other_options(fs, image):
    tree = image(2)
    lose(tree.data_path, 10, 2)
    once = load(fs, tree, "once", options=fec_options(tree.fec_path, tree.fec_blocks, 2, more="check_at_most_once"))
    for _ in range(2):                              # it was mended, it is not good
        assert read(once, 10 * BLOCK) == block(tree, 10)
    damage(tree.data_path, 10 * BLOCK, tree.data[10 * BLOCK:12 * BLOCK])
    lose(tree.data_path, 30, 2 * tree.rounds + 1)
    with open(tree.data_path, "rb") as f:
        f.seek(30 * BLOCK)
        lies = f.read(BLOCK)
    ignoring = load(fs, tree, "ignoring", options=fec_options(tree.fec_path, tree.fec_blocks, 2,
                                                             more="ignore_corruption"))
    assert read(ignoring, 31 * BLOCK) == block(tree, 31)
    assert read(ignoring, 30 * BLOCK) == lies
    panicking = load(fs, tree, "panicking", options=fec_options(tree.fec_path, tree.fec_blocks, 2,
                                                               more="panic_on_corruption"))
    assert read(panicking, 31 * BLOCK) == block(tree, 31)
    assert fails(panicking, 30 * BLOCK) and fails(panicking, 0)


def test_zero_blocks(fs, backing, image):
    """With ignore_zero_blocks what is there instead of zeroes does not count as damage."""
    data = bytearray(os.urandom(BLOCKS * BLOCK))
    for n in range(0, BLOCKS, 2):
        data[n * BLOCK:(n + 1) * BLOCK] = bytes(BLOCK)
    tree = image(2, data=bytes(data))
    for n in range(0, BLOCKS, 2):
        lose(tree.data_path, n)
    lose(tree.data_path, 301)
    dev = load(fs, tree, options=fec_options(tree.fec_path, tree.fec_blocks, 2, more="ignore_zero_blocks"))
    assert everything_is_right(dev, tree)
    assert status(dev) == "V"


def test_many_readers_of_what_is_lost(fs, image):
    """Data and, in other codewords, most of the tree."""
    tree = image(2, blocks=4096)
    last = tree.rounds - 4096 % tree.rounds     # of the tree before the next round
    lose(tree.data_path, 4096 % tree.rounds, last)
    lose(tree.hash_path, 0, last)
    dev = load(fs, tree, options=tree.fec)
    wrong = []

    def some(start):
        for n in range(start, 40):
            if read(dev, n * BLOCK) != block(tree, n):
                wrong.append(n)

    threads = [threading.Thread(target=some, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and status(dev) == "V"


def test_lines_that_are_refused(fs, image, backing):
    tree = image(2)
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    line, fec, n = tree.line(tree.data_path, tree.hash_path), quote(tree.fec_path), tree.fec_blocks
    short = quote(backing(8))
    for options, why, code in (
            (f"6 use_fec_from_device {fec} fec_blocks {n} fec_start 0", "Missing fec_roots", errno.EINVAL),
            (f"4 use_fec_from_device {fec} fec_roots 2", "Missing fec_blocks", errno.EINVAL),
            (f"6 use_fec_from_device {fec} fec_roots 2 fec_blocks 0", "Missing fec_blocks", errno.EINVAL),
            (f"6 use_fec_from_device {fec} fec_roots 2 fec_blocks {n - 1}", f"Invalid fec_blocks {n - 1}", errno.EINVAL),
            (f"6 use_fec_from_device {fec} fec_roots 2 fec_blocks 18446744073709551615", "Invalid fec_blocks", errno.EINVAL),
            (f"6 use_fec_from_device {fec} fec_roots 2 fec_blocks {1 << 50}", "Hash device is too small for fec_blocks",
             errno.E2BIG),
            (f"6 use_fec_from_device {fec} fec_roots 2 fec_blocks {n + 1}", "Hash device is too small for fec_blocks",
             errno.E2BIG),
            (f"6 use_fec_from_device {fec} fec_roots 3 fec_blocks {n}", "FEC device is too small", errno.E2BIG),
            (f"6 use_fec_from_device {short} fec_roots 2 fec_blocks {n}", "FEC device is too small", errno.E2BIG),
            (f"8 use_fec_from_device {fec} fec_roots 2 fec_blocks {n} fec_start 1", "FEC device is too small", errno.E2BIG),
            (f"8 use_fec_from_device {fec} fec_roots 2 fec_blocks {n} fec_start {(1 << 51) - 1}", "FEC device is too small",
             errno.E2BIG),
            (f"8 use_fec_from_device {fec} fec_roots 2 fec_blocks {n} fec_start {1 << 60}", "Invalid fec_start", errno.EINVAL),
            ("2 fec_roots 1", "Invalid fec_roots '1': a number from 2 to 24", errno.EINVAL),
            ("2 fec_roots 25", "Invalid fec_roots", errno.EINVAL), ("2 fec_blocks x", "Invalid fec_blocks", errno.EINVAL),
            ("2 use_fec_from_device /nonexistent", "No such file", (errno.ENOENT, errno.ENODEV)),
            ("1 use_fec_from_device", "require a value", errno.EINVAL)):
        dev.refuse(f"{line} {options}\n", code=code, match=why)
    small = Tree(tree.data, hash_block=1024)
    hashes = backing(len(small.area) // SECTOR, small.area)
    dev.refuse(f"{small.line(tree.data_path, hashes)} 6 use_fec_from_device {fec} fec_roots 2 fec_blocks 5000\n",
               match="Block sizes must match to use FEC: they are 4096 and 1024")
    dev.load(f"{line} 6 fec_roots 2 fec_start 5 fec_blocks 1")     # without a device they mean nothing
    assert dev.table() == line + "\n"
    shuffled = f"8 FEC_roots 2 fec_start 0 USE_FEC_FROM_DEVICE {fec} fec_blocks {n}"
    dev.load(f"{line} {shuffled}")
    assert dev.table() == f"{line} {tree.fec}\n"
