# SPDX-License-Identifier: GPL-2.0-or-later
"""unstriped beside the kernel's."""

from mounted import SECTOR, pattern, quote

OVER = 1 << 64


def test_lines(kernel, fs, backing):
    wrapped = [f"0 104 unstriped {(1 << 32) + 4} 8 0 $D0 0", f"0 104 unstriped 4 {(1 << 32) + 8} 0 $D0 0",
               f"0 104 unstriped 4 8 0 $D0 {OVER}"]
    kernel.compare(fs, [
        "0 104 unstriped 4 8 0 $D0 0",
        "0 104 unstriped 4 8 3 $D0 0",
        "0 104 unstriped 4 8 3 $D0 17",
        "0 104 unstriped 4 8 4 $D0 0",              # one too large, and taken
        "0 104 unstriped 4 8 5 $D0 0",
        "0 104 unstriped 1 8 7 $D0 0",              # with one stripe, anything
        "0 104 unstriped 1 8 0 $D0 0",
        "0 104 unstriped 2 13 1 $D0 0",
        "0 104 unstriped 3 1 1 $D0 0",
        "0 104 unstriped 2147483647 8 0 $D0 0",     # above, the kernel prints a negative number
        "0 104 unstriped +4 +8 +3 $D0 0",
        "0 104 unstriped 4 8 3 $D0 +1",
        "0 8192 unstriped 1 8 0 $D0 0",
        "0 8192 unstriped 1 8 0 $D0 8",             # the device ends too early
        "0 8200 unstriped 1 8 0 $D0 0",
        "0 8192 unstriped 4 8 0 $D0 0",             # it does so here too, but nobody looks
        "0 100 unstriped 4 8 0 $D0 0",
        "0 1 unstriped 4 256 0 $D0 0",
        "0 104 unstriped 0 8 0 $D0 0",
        "0 104 unstriped 4 0 0 $D0 0",
        "0 104 unstriped -4 8 0 $D0 0",
        "0 104 unstriped 4 8 -1 $D0 0",
        "0 104 unstriped 4 8 x $D0 0",
        "0 104 unstriped 4x 8 0 $D0 0",
        "0 104 unstriped 4 8 0 $D0 x",
        "0 104 unstriped 4 8 0 $D0 1x",
        "0 104 unstriped 4 8 0 /nonexistent 0",
        "0 104 unstriped 4 8 0 $D0",
        "0 104 unstriped 4 8 0 $D0 0 0",
        "0 104 unstriped",
        *wrapped,
    ], [backing(8192)], except_for=wrapped)


def test_same_bytes(kernel, fs, backing, work):
    """The kernel's unstriped reads what ours wrote, stripe by stripe, and the other way round."""
    lines = {"a": "0 300 unstriped 3 20 1 {} 7", "b": "0 126 unstriped 2 9 0 {} 1200"}
    ours, theirs = backing(3000, pattern(3000, 1)), backing(3000, pattern(3000, 1))
    script = "set -e\n"
    for name, line in lines.items():
        size = int(line.split()[1])
        data = pattern(size, seed=ord(name))
        dev = fs.mkdir(name, line.format(quote(ours)))
        dev.pwrite(data, 0, sync=True)
        with open(f"{work}/{name}", "wb") as f:
            f.write(data)
        script += f"""dmsetup create {name} --table "{line.format('$D0')}"
            dd if=$DIR/{name} of=/dev/mapper/{name} bs=512 oflag=direct 2>/dev/null
            dmsetup remove --retry {name}
            dmsetup create {name} --table "{line.format('$D1')}"
            cmp $DIR/{name} /dev/mapper/{name}
            dmsetup remove --retry {name}
            """
    kernel.run(script, [theirs, ours], env={"DIR": work})
    with open(ours, "rb") as f, open(theirs, "rb") as g:
        assert f.read() == g.read()
    for name, line in lines.items():
        dev = fs.mkdir(f"{name}2", line.format(quote(theirs)))
        with open(f"{work}/{name}", "rb") as f:
            assert dev.pread(int(line.split()[1]) * SECTOR, 0) == f.read()
