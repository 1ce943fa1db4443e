# SPDX-License-Identifier: GPL-2.0-or-later
"""switch beside the kernel's: lines, messages, and on which path every region then is."""

from mounted import SECTOR, pattern, quote

OVER = 1 << 64


def test_lines(kernel, fs, backing):
    wrapped = [f"0 100 switch 2 8 0 $D0 {OVER} $D1 0", f"0 100 switch {(1 << 32) + 2} 8 0 $D0 0 $D1 0",
               f"0 100 switch 2 {(1 << 32) + 8} 0 $D0 0 $D1 0"]
    kernel.compare(fs, [
        "0 100 switch 2 8 0 $D0 0 $D1 0",
        "0 100 switch 1 8 0 $D0 0",
        "0 100 switch 3 7 0 $D0 0 $D1 5 $D0 100",
        "0 100 switch 2 1 0 $D0 +0 $D1 +7",
        "0 100 switch 2 4294967295 0 $D0 0 $D1 0",
        "0 8192 switch 2 8 0 $D0 0 $D1 0",
        "0 8192 switch 2 8 0 $D0 0 $D1 1",
        "0 8193 switch 2 8 0 $D0 0 $D1 0",
        "0 100 switch 33 8 0" + " $D0 0" * 33,
        "0 100 switch 0 8 0",
        "0 100 switch 2 0 0 $D0 0 $D1 0",
        "0 100 switch 2 8 1 $D0 0 $D1 0",
        "0 100 switch 2 8 1 x $D0 0 $D1 0",
        "0 100 switch 2 8 $D0 0 $D1 0",
        "0 100 switch 2 8 0 $D0 0 $D1",
        "0 100 switch 2 8 0 $D0 0",
        "0 100 switch 2 8 0",
        "0 100 switch 2 8 0 $D0 0 $D1 0 $D1 0",
        "0 100 switch 2 8 0 $D0 x $D1 0",
        "0 100 switch 2 8 0 $D0 -1 $D1 0",
        "0 100 switch +2 8 0 $D0 0 $D1 0",
        "0 100 switch x 8 0 $D0 0 $D1 0",
        "0 100 switch 2 x 0 $D0 0 $D1 0",
        "0 100 switch 2 8 x $D0 0 $D1 0",
        "0 100 switch 4294967295 8 0 $D0 0 $D1 0",
        "0 100 switch 2 8 0 $D0 0 /nonexistent 0",
        "0 100 switch",
        "0 100 switch 2",
        "0 100 switch 2 8",
        *wrapped,
    ], [backing(8192), backing(8192)], except_for=wrapped)


REGIONS, PATHS = 200, 5

# What is refused changes nothing here; the kernel may have done the words before the bad one, so such words come first.
MESSAGES = """
    0:0 :1 :2 :0 :1 :2 :1
    10:1 :2 R2,10
    20:4 R1,5
    40:3 :2 :1 :0 R4,3
    R1,3
    :4 :3
    a:1 A:2 b:3 :4
    c7:4
    c8:4
    c6:1 :2 :3
    5:5
    5:10
    5:4 :0 3:1 :2 R1,0
    0:1 R1,c6
    0:2 R1,c7
    R0,1
    R2,1
    1:2 R2,2
    1:2 R3,2
    r1,3
    R,1
    R1
    R1,
    R1,x
    Rx,1
    R1,1x
    :
    5
    5:
    5:x
    5:1x
    x:1
    -1:1
    0x5:1
    +5:1
    5:-1
    05:02
    0000000000000000000000005:0000000000000000000000003
    ffffffffffffffff:1
    R1,ffffffffffffffff
    5::1
    5:1,2
    """.split("\n")


def test_messages(kernel, fs, backing, work):
    """After every message the same regions are on the same paths."""
    messages = ["set_region_mappings " + m.strip() for m in MESSAGES if m.strip()]
    messages += ["set_region_mappings", "SET_REGION_MAPPINGS 3:3", "nosuch", "nosuch 0:1", "1:1"]
    disks = [backing(REGIONS, b"".join(bytes([p]) * SECTOR for _ in range(REGIONS))) for p in range(PATHS)]
    line = f"0 {REGIONS} switch {PATHS} 1 0 " + " ".join(f"{{{p}}} 0" for p in range(PATHS))
    kernel_line = line.format(*(f"$D{p}" for p in range(PATHS)))
    script = f'dmsetup create t --table "{kernel_line}"\n'
    look = "dd if=/dev/mapper/t bs=512 iflag=direct 2>/dev/null | od -An -v -tx1 -w512 | cut -c3 | tr -d '\\n'; echo\n"
    script += look
    for m in messages:
        script += f"dmsetup message t 0 {m} 2>/dev/null && echo ok || echo refused\n" + look
    told = kernel.run(script, disks).out.splitlines()
    assert len(told) == 2 * len(messages) + 1

    dev = fs.mkdir("t", line.format(*map(quote, disks)))

    def paths():
        data = dev.pread(REGIONS * SECTOR, 0)
        return "".join(str(data[r * SECTOR]) for r in range(REGIONS))

    assert paths() == told[0]
    for i, m in enumerate(messages):
        try:
            dev.message("0 " + m)
            got = "ok"
        except OSError:
            assert dev.error()
            got = "refused"
        assert (m, got) == (m, told[2 * i + 1])
        if got == "refused":
            # the kernel does what stands before the bad word; ours does all or nothing
            if len(m.split()) > 2:
                dev.message(f"0 set_region_mappings 0:{told[2 * i + 2][0]} "
                            + " ".join(f":{p}" for p in told[2 * i + 2][1:]))
        assert (m, paths()) == (m, told[2 * i + 2])


def test_same_bytes(kernel, fs, backing, work):
    """Offsets of the paths, and regions of no power of two."""
    line = "0 600 switch 3 13 0 {} 0 {} 100 {} 7"
    ours, theirs = [[backing(700, pattern(700, seed=p)) for p in range(3)] for _ in range(2)]
    new = pattern(600, seed=9)
    with open(f"{work}/new", "wb") as f:
        f.write(new)
    message = "set_region_mappings 0:2 :2 :1 R3,10 2d:0 :1"
    dev = fs.mkdir("t", line.format(*map(quote, ours)))
    dev.message(message)
    dev.pwrite(new, 0, sync=True)
    kernel.run(f"""set -e
        dmsetup create t --table "{line.format('$D0', '$D1', '$D2')}"
        dmsetup message t 0 {message}
        dd if=$DIR/new of=/dev/mapper/t bs=512 oflag=direct 2>/dev/null
        dmsetup remove --retry t""", theirs, env={"DIR": work})
    for a, b in zip(ours, theirs):
        with open(a, "rb") as f, open(b, "rb") as g:
            assert f.read() == g.read()
    assert dev.pread(600 * SECTOR, 0) == new
