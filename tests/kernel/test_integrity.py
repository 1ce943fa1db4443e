# SPDX-License-Identifier: GPL-2.0-or-later
"""integrity beside the kernel's: the lines taken, the text printed, the bytes written, and volumes handed back and forth."""

import mmap
import os
import re
import subprocess


from mounted import SECTOR, build_dir, pattern, quote

SLICE = 16384       # sectors of a volume's device

# Each formats a device of its own: the volume begins before all that were formatted before it.
FRESH = [
    "4 J 1 internal_hash:crc32c", "- J 1 internal_hash:sha256", "- B 1 internal_hash:hmac(sha256):00112233",
    "- D 2 internal_hash:crc32c block_size:4096", "16 J 0", "28 D 2 block_size:4096 fix_padding", "32 J 1 fix_padding",
    "128 J 2 internal_hash:sha512 block_size:1024", "129 D 1 internal_hash:sha512", "2 J 1 internal_hash:crc32c",
    "40 J 1 internal_hash:sha256", "255 D 0", "1 J 1 internal_hash:crc32", "- J 2 internal_hash:xxhash64 buffer_sectors:100",
    "- J 3 internal_hash:crc32c journal_sectors:1000 interleave_sectors:1000",
    "- J 3 internal_hash:crc32c journal_watermark:37 commit_time:77", "- J 2 internal_hash:crc32c journal_sectors:0",
    "- B 3 internal_hash:crc32c sectors_per_bit:1000 bitmap_flush_interval:777",
    "- B 3 internal_hash:crc32c sectors_per_bit:0 interleave_sectors:8192",
    "- J 2 internal_hash:crc32c allow_discards", "- J 2 internal_hash:crc32c journal_mac:crc32c",
    "- J 2 internal_hash:crc32c journal_mac:hmac(sha256):55aa", "- J 2 internal_hash:sha1 journal_mac:hmac(sha512):01",
    "- J 2 internal_hash:crc32c journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:cbc(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:ecb(aes):000102030405060708090a0b0c0d0e0f",
    "- J 2 internal_hash:crc32c journal_crypt:chacha20:" + "5a" * 32,
    "- J 3 internal_hash:crc32c journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f journal_mac:sha256",
    "- J 2 internal_hash:crc32c buffer_sectors:1", "- J 2 internal_hash:hmac(sha256):00 legacy_recalculate",
    "- J 2 internal_hash:hmac(sha1):00 recalculate",
    "- J 1 internal_hash:cmac(aes):000102030405060708090a0b0c0d0e0f", "- D 1 internal_hash:sha384",
    "- B 2 internal_hash:hmac(sha512):00 block_size:2048", "- J 1 internal_hash:sha224",
    "- J 2 internal_hash:crc32c journal_mac:cmac(aes):000102030405060708090a0b0c0d0e0f",
    "- J 1 internal_hash:hmac(sha384):01",
]
# How far these have come when they are asked is a matter of time.
RECALCULATED = ["- B 2 internal_hash:crc32c recalculate", "- J 2 internal_hash:crc32c recalculate",
                "- D 2 internal_hash:crc32c reset_recalculate", "- J 3 internal_hash:crc32c fix_padding fix_hmac",
                "- J 3 internal_hash:hmac(sha1):00 recalculate legacy_recalculate",
                "- J 4 internal_hash:hmac(sha256):00 recalculate fix_hmac journal_mac:hmac(sha256):01"]
# Nothing is written by these.
REFUSED = [
    "0 8 integrity $D0", "0 8 integrity $D0 0 4 J", "0 8 integrity $D0 x 4 J 1 internal_hash:crc32c",
    "0 8 integrity $D0 0 0 J 1 internal_hash:crc32c", "0 8 integrity $D0 0 256 J 0", "0 8 integrity $D0 0 - J 0",
    "0 8 integrity $D0 0 4 X 0", "0 8 integrity $D0 0 4 JJ 0", "0 8 integrity $D0 0 4 J 19 internal_hash:crc32c",
    "0 8 integrity $D0 0 4 J 2 internal_hash:crc32c", "0 8 integrity $D0 0 4 J 1 rubbish",
    "0 8 integrity $D0 0 4 J 1 journal_watermark:101", "0 8 integrity $D0 0 4 J 1 block_size:256",
    "0 8 integrity $D0 0 4 J 1 block_size:8192", "0 8 integrity $D0 0 4 J 1 block_size:1000", "0 8 integrity $D0 0 4 B 0",
    "0 8 integrity $D0 0 4 J 1 allow_discards", "0 8 integrity $D0 0 4 J 1 recalculate",
    "0 8 integrity $D0 0 4 J 1 internal_hash:nonsense", "0 8 integrity $D0 0 4 J 1 internal_hash:crc32c:0",
    "0 8 integrity $D0 0 4 J 1 internal_hash:hmac(sha256)", "0 8 integrity $D0 0 4 J 1 internal_hash:sha256:00",
    "0 8 integrity $D0 0 4 J 1 journal_mac:nonsense", "0 8 integrity $D0 0 4 J 1 journal_crypt:nonsense:00",
    "0 8 integrity $D0 0 4 J 1 meta_device:/nonexistent", "0 8 integrity /nonexistent 0 4 J 0",
    "0 8 integrity $D0 16380 4 J 0", "0 8 integrity $D0 99999999 4 J 0", "0 99999 integrity $D0 0 4 J 0",
    "0 8 integrity $D1 0 4 J 1 internal_hash:crc32c",
]




def printed(answer):
    """What is printed: the metadata device's number made a name, keys zeroes as here, how far a recalculation has come N."""
    table = re.sub(r"meta_device:(98:16|\S*/\S+)", "meta_device:D1", answer.table)
    return answer.accepted, re.sub(r" \d+$", " N", answer.status, flags=re.M), table


def test_lines_and_bytes(kernel, fs, backing):
    start = [64 * (len(FRESH) - i) for i in range(len(FRESH))]
    lines = [f"0 8 integrity $D0 {s} {rest}" for s, rest in zip(start, FRESH)]
    lines += [f"0 {n} integrity $D2 {s} {rest}" for n, s, rest in [
        (8, 640, "4 J 2 internal_hash:crc32c meta_device:$D1"),
        (8, 384, "- D 3 internal_hash:sha256 meta_device:$D1 block_size:4096"),
        (8, 128, "- B 3 internal_hash:crc32c meta_device:$D1 buffer_sectors:2048"),
        (2000, 0, "16 J 3 internal_hash:crc32c meta_device:$D1 journal_sectors:8000".replace("internal_hash:crc32c ", "")
         .replace("J 3", "J 2"))]]
    lines += [line.replace("$D0", "$D3") for line in REFUSED]
    lines += [f"0 8 integrity $D4 {64 * (len(RECALCULATED) - i)} {rest}" for i, rest in enumerate(RECALCULATED)]
    theirs, ours = ([backing(SLICE), backing(8192), backing(4096), backing(64, b"rubbish" + bytes(4089)), backing(SLICE)]
                    for _ in range(2))
    k, d = kernel.tables(lines, theirs, timeout=250), kernel.tables_dmfs(fs, lines, ours)
    wrong = [(line, a, b) for line, a, b in zip(lines, k, d) if printed(a) != printed(b)]
    assert not wrong, "\n".join(f"{line}\n kernel {a!r}\n dmfs   {b!r}" for line, a, b in wrong)
    assert sum(a.accepted for a in k) >= 38
    for n, (a, b) in enumerate(zip(theirs[:4], ours)):
        with open(a, "rb") as f, open(b, "rb") as g:
            x, y = f.read(), g.read()
        differ = [i // SECTOR for i in range(0, len(x), SECTOR) if x[i:i + SECTOR] != y[i:i + SECTOR]]
        assert not differ, f"D{n}: {len(differ)} sectors differ, {differ[:20]}"


# Tag size, mode, words; each a volume on a slice of one file.  meta: with a slice for its metadata.
VOLUMES = [
    ("-", "J", ["internal_hash:crc32c"]),
    ("-", "J", ["internal_hash:sha256", "block_size:4096", "fix_padding"]),
    ("-", "J", ["internal_hash:crc32c", "journal_sectors:64", "interleave_sectors:512", "fix_padding"]),
    ("-", "J", ["internal_hash:hmac(sha256):0123456789abcdef", "fix_hmac", "journal_mac:hmac(sha256):aabb", "meta"]),
    ("-", "J", ["internal_hash:crc32", "journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f", "journal_mac:crc32c"]),
    ("-", "J", ["internal_hash:sha1", "journal_crypt:cbc(aes):000102030405060708090a0b0c0d0e0f", "block_size:2048"]),
    ("7", "B", ["internal_hash:sha256", "block_size:1024", "sectors_per_bit:256"]),
    ("-", "B", ["internal_hash:crc32c", "meta", "interleave_sectors:1024"]),
    ("40", "D", ["internal_hash:sha256", "block_size:4096", "interleave_sectors:2048", "fix_padding"]),
    ("-", "J", ["internal_hash:crc32c", "recalculate", "half"]),
]
META = 2048                 # sectors of a metadata slice
PIECE = 1 << 18              # bytes that one side or the other has written


def line_of(nr, device, meta, sectors):
    tag, mode, words = VOLUMES[nr]
    words = [f"meta_device:{meta}" if w == "meta" else w for w in words if w != "half"]
    return f"0 {sectors} integrity {device} 0 {tag} {mode} {len(words)} {' '.join(words)}"


def superblock_at(nr):
    return (len(VOLUMES) * SLICE + nr * META if "meta" in VOLUMES[nr][2] else nr * SLICE) * SECTOR


def provided(path, nr):
    with open(path, "rb") as f:
        f.seek(superblock_at(nr))
        sb = f.read(32)
    assert sb[:8] == b"integrt\0"
    return int.from_bytes(sb[16:24], "little")


def open_all(fs, path, sizes):
    """Ours: linear slices, and a volume on each."""
    for i in range(len(VOLUMES)):
        fs.mkdir(f"s{i}", f"0 {SLICE} linear {quote(path)} {i * SLICE}")
        fs.mkdir(f"m{i}", f"0 {META} linear {quote(path)} {len(VOLUMES) * SLICE + i * META}")
        dev = fs.mkdir(f"v{i}", line_of(i, f"s{i}", f"m{i}", sizes.get(i, 8)))
        if i not in sizes:
            sizes[i] = provided(path, i)
            dev.load(line_of(i, f"s{i}", f"m{i}", sizes[i]))


def half_recalculated(path):
    """Of the last volume: its position half way, all tags behind it gone."""
    nr = len(VOLUMES) - 1
    with open(path, "r+b") as f:
        f.seek(superblock_at(nr) + 32)
        f.write((8192).to_bytes(8, "little"))
        f.seek((nr * SLICE + 8 + 176) * SECTOR + 8192 * 4)
        f.write(bytes(131072 - 8192 * 4))


def contents(i, sizes, turn):
    """What volume i holds: one side's writes, then the other's over every third piece of it."""
    base = pattern(sizes[i], 100 + i)
    if turn:
        new = pattern(sizes[i], 200 + i)
        base = b"".join((new if n % 3 == 0 else base)[at:at + PIECE] for n, at in enumerate(range(0, len(base), PIECE)))
    return base


def write_aligned(dev, data):
    page = mmap.mmap(-1, 1 << 20)
    with dev.open() as fd:
        for at in range(0, len(data), len(page)):
            part = data[at:at + len(page)]
            page[:len(part)] = part
            assert os.pwrite(fd, memoryview(page)[:len(part)], at) == len(part)
        os.fsync(fd)


def tool(*args):
    subprocess.run([os.path.join(build_dir(), "dmfs-integrity"), *map(str, args)], capture_output=True, check=True, timeout=60)


def test_there_and_back(kernel, dmfs, backing, work, monkeypatch):
    """Ours is killed with journals full and bits set, the kernel goes on and is switched off, ours goes on."""
    path = backing(len(VOLUMES) * (SLICE + META))
    sizes = {}
    fs = dmfs()
    monkeypatch.setenv("DMFS_MOUNT", fs.mountpoint)
    open_all(fs, path, sizes)
    for i in range(len(VOLUMES)):
        write_aligned(fs[f"v{i}"], contents(i, sizes, 0))
    made, theirs, key = backing(SLICE), backing(SLICE), os.path.join(work, "key")
    with open(key, "wb") as f:
        f.write(bytes(range(32)))
    tool("format", made, "-I", "sha256", "-s", 4096)
    tool("open", made, "made", "-I", "sha256")
    write_aligned(fs["made"], contents(0, sizes, 0)[:1 << 20])
    tool("close", "made")
    fs.kill()
    half_recalculated(path)

    files = {}
    script = ["set -e"]
    for i in range(len(VOLUMES)):
        for turn in (0, 1):
            files[i, turn] = os.path.join(work, f"v{i}.{turn}")
            with open(files[i, turn], "wb") as f:
                f.write(contents(i, sizes, turn))
        line = line_of(i, f"/dev/mapper/s{i}", f"/dev/mapper/m{i}", sizes[i])
        script.append(f"""
            dmsetup create s{i} --table "0 {SLICE} linear $D0 {i * SLICE}"
            dmsetup create m{i} --table "0 {META} linear $D0 {len(VOLUMES) * SLICE + i * META}"
            dmsetup create v{i} --table "{line}"
            if [ {i} = {len(VOLUMES) - 1} ]; then
                until [ "$(dmsetup status v{i} | cut -d' ' -f6)" = {sizes[i]} ]; do :; done
            fi
            cmp {files[i, 0]} /dev/mapper/v{i}
            n=$(stat -c %s {files[i, 0]})
            for at in $(seq 0 {3 * PIECE} $((n - 1))); do
                dd if={files[i, 1]} of=/dev/mapper/v{i} bs=4096 skip=$((at / 4096)) seek=$((at / 4096)) count={PIECE // 4096} conv=notrunc 2>/dev/null
            done
            sync /dev/mapper/v{i}
            [ $(dmsetup status v{i} | cut -d' ' -f4) = 0 ]""")
    # integritysetup opens what dmfs-integrity has made, and the other way round
    script.append(f"""
        integritysetup open /dev/ubdb ours -I sha256 >/dev/null
        cmp {files[0, 0]} /dev/mapper/ours -n {1 << 20}
        dd if={files[0, 1]} of=/dev/mapper/ours bs=4096 count=64 conv=notrunc,fsync 2>/dev/null
        integritysetup close ours
        integritysetup format -q --no-wipe /dev/ubdc -I hmac-sha256 --integrity-key-file {key} --integrity-key-size 32 >/dev/null
        integritysetup open /dev/ubdc theirs -I hmac-sha256 --integrity-key-file {key} --integrity-key-size 32
        dd if={files[0, 1]} of=/dev/mapper/theirs bs=4096 count=64 conv=notrunc,fsync 2>/dev/null
        integritysetup close theirs""")
    script.append("echo 0 >rc; sync -f rc; echo o >/proc/sysrq-trigger; sleep 60")
    kernel.run("\n".join(script), [path, made, theirs], check=False, timeout=250)
    half_recalculated(path)

    fs = dmfs()
    open_all(fs, path, sizes)
    with fs[f"v{len(VOLUMES) - 1}"].held():
        while fs[f"v{len(VOLUMES) - 1}"].status().split()[5] != str(sizes[len(VOLUMES) - 1]):
            pass
    for i in range(len(VOLUMES)):
        dev = fs[f"v{i}"]
        assert dev.pread(sizes[i] * SECTOR, 0) == contents(i, sizes, 1), VOLUMES[i]
        assert dev.status().split()[3] == "0", (VOLUMES[i], dev.status())
    assert "replayed from the journal" in fs.read("log")
    monkeypatch.setenv("DMFS_MOUNT", fs.mountpoint)
    tool("open", made, "made", "-I", "sha256")
    tool("open", theirs, "theirs", "-I", "hmac-sha256", "--integrity-key-file", key, "--integrity-key-size", 32)
    for name in ("made", "theirs"):
        assert fs[name].pread(1 << 18, 0) == contents(0, sizes, 1)[:1 << 18]
