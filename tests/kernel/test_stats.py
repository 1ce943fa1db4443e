# SPDX-License-Identifier: GPL-2.0-or-later
"""@stats_ messages beside the kernel's: the same replies and errors, and the same counts after the same I/O."""

import mmap
import os

from mounted import SECTOR, quote

LENGTH = 8192

MESSAGES = """
    create - /1
    create - /10
    create - 4096
    create 100+200 /3
    create 100+200 64 prog
    create 100+200 64 prog aux
    create 100+200 64 0 prog aux
    create 8000+1000 /2
    create 9000+1000 /2
    create - 020
    create - 99999999999
    create 0+18446744073709551615 18446744073709551615
    create - /8 1 precise_timestamps
    create - /8 1 precise_timestamps precise
    create - /8 2 precise_timestamps precise_timestamps
    create - /8 1 histogram:1
    create - /8 2 histogram:1,20,300 precise_timestamps prog 7
    create - /8 1 histogram:18446744073709551615
    create - /8 0
    create - /8 00 7 8
    create - /8 0 5
    create
    create -
    create - 0
    create - /0
    create - /x
    create - x
    create - /+2
    create - +2
    create - 0x20
    create 8 4
    create 8+ 4
    create +8 4
    create 0+0 4
    create 0+8+8 4
    create 5++8 4
    create 18446744073709551615+2 10
    create 0+18446744073709551615 1
    create 0+2305843009213693953 1
    create 0+281474976710656 1
    create - /8 1
    create - /8 5 histogram:1
    create - /8 1 foo
    create - /8 1 histogram
    create - /8 1 histogram:
    create - /8 1 histogram:1,1
    create - /8 1 histogram:2,1
    create - /8 1 histogram:1,
    create - /8 1 histogram:,1
    create - /8 1 histogram:x
    create - /8 1 histogram:18446744073709551616
    create - /8 2 histogram:1 histogram:2
    create - /8 prog aux more
    list
    list prog
    list nosuch
    list prog more
    print 1
    print 1 5 2
    print 1 8 9
    print 1 20 5
    print 1 9 18446744073709551615
    print 1 18446744073709551615 5
    print 16
    print 0 5
    print 1 +5 2
    print 1 1 1 1
    print
    print x
    print 77
    print_clear 1 2 3
    print_clear 1
    print_clear 77
    print_clear
    clear 1
    clear
    clear 0 1
    clear 77
    set_aux 2 other
    set_aux 2
    set_aux 2 a b
    set_aux 77 a
    list
    delete 3
    delete 3
    delete
    delete x
    delete 1 1
    create - 512 again
    LIST
    nosuch
    """


# What kernels after 6.1 answer.
LATER = {"@stats_create 0+281474976710656 1": "Value too large for defined data type\n"}


def test_messages(kernel, fs, backing):
    """Nothing is read or written meanwhile, so that all that is printed is the same."""
    messages = ["@stats_" + m.strip() for m in MESSAGES.split("\n") if m.strip()] + ["@STATS_LIST", "@foo"]
    disk = backing(LENGTH)
    script = f'dmsetup create t --table "0 {LENGTH} linear $D0 0"\n'
    for i, m in enumerate(messages):
        script += f"echo '=== {i}'; dmsetup message t 0 {m} 2>&1 | sed -e 's/.*failed: //' -e '/^Command failed/d'\n"
    told = kernel.run(script, [disk]).out.split("=== ")[1:]
    assert len(told) == len(messages)

    dev = fs.mkdir("t", f"0 {LENGTH} linear {quote(disk)} 0")
    wrong = []
    for i, (m, theirs) in enumerate(zip(messages, told)):
        try:
            ours = dev.message("0 " + m)
        except OSError as e:
            ours = e.strerror + "\n"
        theirs = theirs[len(f"{i}\n"):]
        if ours != theirs and LATER.get(m) != theirs:
            wrong.append(f"{m}\n  kernel: {theirs!r}\n  dmfs:   {ours!r}")
    assert not wrong, "\n".join(wrong)


# (operation, sectors of each, how many, first sector)
IO = [("read", 8, 10, 0), ("write", 16, 5, 496), ("write", 8, 100, 800), ("read", 64, 7, 4090), ("read", 512, 3, 1000),
      ("write", 1, 20, 8000), ("discard", 64, 1, 448), ("discard", 8, 1, 0)]

# Times are the machine's; a bound that no bio reaches, and one that all do.
REGIONS = ["- /1", "- 500", "100+900 /7 1 precise_timestamps", "4+8 8 1 histogram:1000000",
           "- 1000 2 precise_timestamps histogram:1,100000000000", "8100+500 100"]


def ours_do(dev, op, sectors, count, first):
    if op == "discard":
        dev.discard(first * SECTOR, sectors * count * SECTOR)
        return
    with dev.open(os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, sectors * SECTOR) as buf:
        for i in range(count):
            at = (first + i * sectors) * SECTOR
            assert (os.preadv if op == "read" else os.pwritev)(fd, [buf], at) == sectors * SECTOR


def theirs_do(op, sectors, count, first):
    if op == "discard":
        return f"blkdiscard -f -o {first * SECTOR} -l {sectors * count * SECTOR} /dev/mapper/t"
    blocks = f"bs={sectors * SECTOR} count={count}"
    if op == "read":
        return f"dd if=/dev/mapper/t of=/dev/null {blocks} iflag=direct,skip_bytes skip={first * SECTOR}"
    return f"dd if=/dev/zero of=/dev/mapper/t {blocks} oflag=direct,seek_bytes seek={first * SECTOR} conv=notrunc"


def counts(text):
    """Of every area: its range, reads, sectors read, writes, sectors written, in flight, and the histogram."""
    words = [line.split() for line in text.splitlines()]
    return [[w[0], w[1], w[3], w[5], w[7], w[9], *w[14:]] for w in words]


def test_counts(kernel, fs, backing):
    disk = backing(LENGTH)
    script = f'set -e; dmsetup create t --table "0 {LENGTH} linear $D0 0"\n'
    script += "".join(f"dmsetup message t 0 @stats_create {r}\n" for r in REGIONS)
    script += "".join(f"{theirs_do(*io)} 2>/dev/null\nsync /dev/mapper/t\n"
                      + "".join(f"echo '==='; dmsetup message t 0 @stats_print_clear {i}\n" for i in range(len(REGIONS)))
                      for io in IO)
    told = kernel.run(script, [disk]).out.split("===\n")[1:]

    dev = fs.mkdir("t", f"0 {LENGTH} linear {quote(disk)} 0")
    for r in REGIONS:
        dev.message(f"@stats_create {r}")
    for n, io in enumerate(IO):
        ours_do(dev, *io)
        for i, r in enumerate(REGIONS):
            ours, theirs = counts(dev.message(f"@stats_print_clear {i}")), counts(told[n * len(REGIONS) + i])
            assert ours == theirs, f"after {io}, region {r}"
