# SPDX-License-Identifier: GPL-2.0-or-later
"""Who takes discards: a table whose targets all do, in the kernel and here."""

import errno
import os

from mounted import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, SECTOR, fallocate, pattern, quote

N = 16384
KEY = "00112233445566778899aabbccddeeff" * 2
CRYPT = f"crypt aes-xts-plain64 {KEY} 0"
TABLES = [
    ("linear", "0 {n} linear $D0 0"),
    ("striped", "0 {n} striped 2 8 $D0 0 $D1 0"),
    ("delay", "0 {n} delay $D0 0 0"),
    ("flakey", "0 {n} flakey $D0 0 100 0"),
    ("dust", "0 {n} dust $D0 0 512"),
    ("switch", "0 {n} switch 1 128 0 $D0 0"),
    ("mirror", "0 {n} mirror core 2 128 nosync 2 $D0 0 $D1 0"),
    ("log-writes", "0 {n} log-writes $D0 $D1"),
    ("snapshot-origin", "0 {n} snapshot-origin $D0"),
    ("crypt", f"0 {{n}} {CRYPT} $D0 0"),
    ("crypt allowed", f"0 {{n}} {CRYPT} $D0 0 1 allow_discards"),
    ("a part that takes none", f"0 {{h}} linear $D0 0\n{{h}} {{h}} {CRYPT} $D0 {{h}}"),
    ("first none", f"0 {{h}} {CRYPT} $D0 0\n{{h}} {{h}} linear $D0 {{h}}"),
    ("both take them", f"0 {{h}} linear $D0 0\n{{h}} {{h}} {CRYPT} $D0 {{h}} 1 allow_discards"),
]
# The first sectors of each part, and a range across the two.
RANGES = [(0, 1 << 20), (N // 2 * SECTOR, 1 << 20), ((N // 2 - 1024) * SECTOR, 1 << 20)]
GUEST = """
while read -r line; do
    printf '%b\\n' "$line" | sed "s|\\$D0|$D0|g; s|\\$D1|$D1|g" | dmsetup create d || exit 9
    for r in {ranges}; do
        blkdiscard -f -o ${{r%:*}} -l ${{r#*:}} /dev/mapper/d >/dev/null 2>{error} && echo yes || {{
            grep -q 'not supported' {error} && echo no || cat {error}; }}
    done
    dmsetup remove d || exit 9
done <{lines}
"""


def test_which_tables_take_discards(kernel, fs, backing, work):
    disks = [backing(N, pattern(N)), backing(N)]
    lines = os.path.join(work, "lines")
    with open(lines, "w", encoding="ascii") as f:
        for _, table in TABLES:
            f.write(table.format(n=N, h=N // 2).replace("\n", "\\n") + "\n")
    out = kernel.run(GUEST.format(lines=lines, error=os.path.join(work, "error"), ranges=" ".join(f"{a}:{b}" for a, b in RANGES)),
                     [backing(N), backing(N)]).out.split("\n")
    ours = []
    for name, table in TABLES:
        with open(disks[0], "r+b") as f:
            f.write(pattern(N))
        text = table.format(n=N, h=N // 2)
        for i, disk in enumerate(disks):
            text = text.replace(f"$D{i}", quote(disk))
        dev = fs.mkdir("d", *text.split("\n"))
        with dev.open() as fd:
            for offset, length in RANGES:
                try:
                    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
                    ours.append("yes")
                except OSError as e:
                    assert e.errno == errno.EOPNOTSUPP, name
                    ours.append("no")
        dev.remove()
        if ours[-1] == "no":        # not even a part of it was done
            with open(disks[0], "rb") as f:
                assert f.read() == pattern(N), name
    assert ours == out[:len(ours)], list(zip([n for n, _ in TABLES for _ in RANGES], ours, out))
