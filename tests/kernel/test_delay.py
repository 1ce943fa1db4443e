# SPDX-License-Identifier: GPL-2.0-or-later
"""delay beside the kernel's."""

from mounted import SECTOR, pattern, quote

OVER = 1 << 64


def test_lines(kernel, fs, backing):
    wrapped = [f"0 100 delay $D0 {OVER} 1", f"0 100 delay $D0 0 {1 << 32}"]
    kernel.compare(fs, [
        "0 100 delay $D0 0 0",
        "0 100 delay $D0 0 500",
        "0 100 delay $D0 17 4294967295",
        "0 100 delay $D0 0 0 $D1 0 500",
        "0 100 delay $D0 1 2 $D1 3 4 $D2 5 6",
        "0 100 delay $D0 1 2 $D0 3 4 $D0 5 6",
        "0 8192 delay $D0 0 1 $D1 0 1 $D2 0 1",
        "0 8192 delay $D0 0 1 $D1 1 1 $D2 0 1",     # the second is too small
        "0 8192 delay $D0 0 1 $D1 0 1 $D2 1 1",
        "0 8193 delay $D0 0 1",
        "0 50 delay $D0 0 1\n50 50 delay $D1 0 2 $D0 0 3",
        "0 100 delay",
        "0 100 delay $D0",
        "0 100 delay $D0 0",
        "0 100 delay $D0 0 0 $D1",
        "0 100 delay $D0 0 0 $D1 0",
        "0 100 delay $D0 0 0 $D1 0 0 $D2",
        "0 100 delay $D0 0 0 $D1 0 0 $D2 0",
        "0 100 delay $D0 0 0 $D1 0 0 $D2 0 0 0",
        "0 100 delay $D0 0 -1",
        "0 100 delay $D0 0 +1",
        "0 100 delay $D0 +0 1",
        "0 100 delay $D0 x 1",
        "0 100 delay $D0 0 1x",
        "0 100 delay $D0 0 1.5",
        "0 100 delay /nonexistent 0 1",
        "0 100 delay $D0 0 0 /nonexistent 0 0",
        *wrapped,
    ], [backing(8192), backing(8192), backing(8192)], except_for=wrapped)


def test_same_bytes(kernel, fs, backing, work):
    """Reads and writes go to devices of their own, on both sides alike; each reads the other's."""
    old = [pattern(600, seed=20 + i) for i in range(2)]
    ours, theirs = [backing(600, d) for d in old], [backing(600, d) for d in old]
    new = pattern(100, seed=3)
    with open(f"{work}/new", "wb") as f:
        f.write(new)
    dev = fs.mkdir("d", f"0 400 delay {quote(ours[0])} 7 1 {quote(ours[1])} 200 2 {quote(ours[0])} 0 3")
    dev.pwrite(new, 50 * SECTOR, sync=True)
    kernel.run("""set -e
        dmsetup create t --table "0 400 delay $D0 7 1 $D1 200 2 $D0 0 3"
        dd if=$DIR/new of=/dev/mapper/t bs=512 seek=50 oflag=direct conv=notrunc,fsync 2>/dev/null
        dd if=/dev/mapper/t of=$DIR/read bs=512 iflag=direct 2>/dev/null
        dmsetup remove --retry t""", theirs, env={"DIR": work})
    with open(f"{work}/read", "rb") as f:
        assert f.read() == dev.pread(400 * SECTOR, 0)
    for a, b in zip(ours, theirs):
        with open(a, "rb") as f, open(b, "rb") as g:
            assert f.read() == g.read()


def test_status_of_what_is_held(kernel, fs, backing):
    """Both count a held write and a held read, and suspend lets them go at once: an hour would be too long to wait."""
    line = "0 100 delay {} 0 3600000"
    told = kernel.run(f"""set -e
        dmsetup create t --table "{line.format('$D0')}"
        dd if=/dev/zero of=/dev/mapper/t bs=512 count=1 oflag=direct 2>/dev/null & w=$!
        dd if=/dev/mapper/t of=/dev/null bs=512 count=1 skip=8 iflag=direct 2>/dev/null & r=$!
        until dmsetup status t | grep 'delay 1 1 0'; do :; done
        dmsetup suspend t
        wait $w; wait $r
        dmsetup status t
        dmsetup resume t
        dmsetup remove --retry t""", [backing(100)]).out.splitlines()
    assert [t.rstrip() for t in told] == ["0 100 delay 1 1 0", "0 100 delay 0 0 0"]
