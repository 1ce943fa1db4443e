# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O statistics by message."""

import errno
import os
import threading

import pytest


@pytest.fixture
def vol(fs, backing):
    return fs.mkdir("v", f"0 1000 linear {backing(1000)} 0")


def counters(dev, region):
    return [[int(n) for n in line.split()[1:14]] for line in dev.message(f"@stats_print {region}\n").splitlines()]


def direct(dev, op, sectors, count, start=0):
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd:
        for i in range(count):
            at = (start + i * sectors) * 512
            if op == "read":
                import mmap
                buf = mmap.mmap(-1, sectors * 512)
                assert os.preadv(fd, [buf], at) == sectors * 512
            else:
                import mmap
                buf = mmap.mmap(-1, sectors * 512)
                assert os.pwritev(fd, [buf], at) == sectors * 512


def test_regions_are_created_listed_and_deleted(vol):
    assert vol.message("@stats_create - /100\n") == "0\n"
    assert vol.message("@stats_create - 300") == "1\n"
    assert vol.message("@stats_create 100+200 /3 prog aux") == "2\n"
    assert vol.message("@stats_create 100+200 50 2 precise_timestamps histogram:1,20,300 prog aux\\ x") == "3\n"
    assert vol.message("@stats_create - /7 1 histogram:5") == "4\n"
    listing = ("0: 0+1000 10 - -\n1: 0+1000 300 - -\n2: 100+200 67 prog aux\n"
               "3: 100+200 50 prog aux x precise_timestamps histogram:1,20,300\n4: 0+1000 143 - - histogram:5\n")
    assert vol.message("@stats_list") == listing
    assert vol.message("@stats_list prog") == "".join(listing.splitlines(True)[2:4])
    assert vol.message("@stats_set_aux 2 foo\\ bar") == ""
    assert "2: 100+200 67 prog foo bar\n" in vol.message("@stats_list")
    vol.message("@stats_delete 1")
    assert vol.message("@stats_create - 500") == "1\n", "the lowest free number"


def test_a_large_read_counts_as_one(fs, backing):
    dev = fs.mkdir("large", f"0 4096 linear {backing(4096)} 0")
    dev.message("@stats_create - 4096")
    direct(dev, "read", 2048, 2)
    assert counters(dev, 0)[0][0] == 2


def test_counters(vol):
    vol.message("@stats_create - 500")
    vol.message("@stats_create 4+8 8 1 histogram:1000000")
    direct(vol, "read", 8, 10)
    direct(vol, "write", 16, 5, start=496)
    first, second = counters(vol, 0)
    assert (first[0], first[2]) == (10, 80)
    assert (first[4], first[6]) == (1, 4), "a bio over two areas counts in both"
    assert (second[4], second[6]) == (5, 76)
    assert first[8] == second[8] == 0, "nothing is in flight"
    (area,) = counters(vol, 1)
    assert (area[0], area[2]) == (2, 8)
    assert vol.message("@stats_print 1").split()[-1] == "2:0"
    vol.message("@stats_clear 1")
    assert counters(vol, 1)[0][:7] == [0] * 7


def test_print_clear_loses_nothing_under_load(vol):
    vol.message("@stats_create - /4 1 precise_timestamps")
    total = 400
    done = threading.Event()

    def load():
        direct(vol, "write", 1, total)
        done.set()

    t = threading.Thread(target=load)
    t.start()
    seen = 0
    while True:
        last = done.is_set()
        seen += sum(int(line.split()[5]) for line in vol.message("@stats_print_clear 0").splitlines())
        if last:
            break
    t.join()
    assert seen == total


def test_lines_of_a_print(vol):
    vol.message("@stats_create - /100")
    assert [line.split()[0] for line in vol.message("@stats_print 0 2 3").splitlines()] == ["20+10", "30+10", "40+10"]
    assert len(vol.message("@stats_print 0 99 3").splitlines()) == 1
    assert vol.message("@stats_print 0 200 3") == ""


@pytest.mark.parametrize("text, code", [
    ("@stats_create", errno.EINVAL), ("@stats_create -", errno.EINVAL), ("@stats_create - 0", errno.EINVAL),
    ("@stats_create - /0", errno.EINVAL), ("@stats_create 0+0 10", errno.EINVAL), ("@stats_create 5 10", errno.EINVAL),
    ("@stats_create 5+ 10", errno.EINVAL), ("@stats_create 18446744073709551615+2 10", errno.EINVAL),
    ("@stats_create - /10 1 foo", errno.EINVAL), ("@stats_create - /10 1 histogram:3,2", errno.EINVAL),
    ("@stats_create - /10 1 histogram:", errno.EINVAL), ("@stats_create - /10 5 histogram:1", errno.EINVAL),
    ("@stats_create - /10 0 a b c", errno.EINVAL), ("@stats_create 0+18446744073709551615 1", errno.EOVERFLOW),
    ("@stats_create 0+2305843009213693953 1", errno.EOVERFLOW), ("@stats_create 0+281474976710656 1", errno.ENOMEM),
    ("@stats_list a b", errno.EINVAL), ("@stats_print", errno.EINVAL), ("@stats_print 1 1", errno.EINVAL),
    ("@stats_print 0 x 3", errno.EINVAL), ("@stats_print 77", errno.ENOENT), ("@stats_clear 99", errno.ENOENT),
    ("@stats_set_aux 99 a", errno.ENOENT), ("@stats_delete 5", errno.ENOENT), ("@stats_delete", errno.EINVAL),
    ("@stats_foo", errno.EINVAL), ("@foo", errno.EINVAL), ("hello", errno.EINVAL), ("", errno.EINVAL),
    ("9999999 hello", errno.EINVAL),
])
def test_bad_messages(vol, text, code):
    vol.message("@stats_create - /2")
    with pytest.raises(OSError) as e:
        vol.message(text or "\n")
    assert e.value.errno == code
    assert vol.error().startswith("0: ")
    assert vol.message("@stats_list") == "0: 0+1000 500 - -\n"
    assert vol.error() == ""


def test_statistics_outlive_a_table(vol):
    vol.message("@stats_create - /2")
    vol.load("0 2000 zero")
    direct(vol, "read", 8, 3)
    assert counters(vol, 0)[0][0] == 3


def test_what_was_refused_takes_nothing_from_the_memory(vol):
    """Numbers of areas whose bytes overflow in every way; a region of a fair size fits after them as before."""
    fair = "@stats_create - /1000"
    for shift in range(40, 64):
        for more in (-1, 0, 1, 7):
            with pytest.raises(OSError) as e:
                vol.message(f"@stats_create 0+{(1 << shift) + more} 1 1 histogram:1,2,3")
            assert e.value.errno in (errno.ENOMEM, errno.EOVERFLOW)
    for _ in range(20):
        assert vol.message(fair) == "0\n"
        vol.message("@stats_delete 0")


def test_discards_count_as_writes_and_flushes_do_not(vol):
    vol.message("@stats_create - /1")
    vol.discard(0, 16 * 512)
    vol.zero(0, 8 * 512)
    with vol.open() as fd:
        os.fsync(fd)
    got = counters(vol, 0)[0]
    assert [got[i] for i in (0, 2, 4, 6)] == [0, 0, 2, 24]
