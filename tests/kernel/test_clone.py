# SPDX-License-Identifier: GPL-2.0-or-later
"""clone beside the kernel's: the lines taken, the text printed, and half-hydrated clones handed back and forth."""

import os
import random

import pytest

from mounted import SECTOR

SECTORS = 8192
TIMEOUT = 600


def content(path):
    with open(path, "rb") as f:
        return f.read()


def test_lines(kernel, fs, backing):
    disks = [backing(8192), backing(SECTORS), backing(SECTORS)]
    start = f"0 {SECTORS} clone $D0 $D1 $D2"
    # no_hydration everywhere: how far a running hydration has come is a matter of time
    kernel.compare(fs, [
        f"{start} 8 1 no_hydration",
        f"{start} 8 2 no_hydration no_discard_passdown",
        f"{start} 8 2 no_discard_passdown no_hydration 4 hydration_batch_size 3 hydration_threshold 9",
        f"{start} 8 1 no_hydration 0",
        f"{start} 8 1 no_hydration 2 hydration_threshold 0",
        f"{start} 8 0 2 hydration_threshold 0",
        f"{start} 8 1 foo", f"{start} 8 3 no_hydration", f"{start} 8 2 no_hydration", f"{start} 8 x",
        f"{start} 8 0 1 hydration_threshold", f"{start} 8 0 2 foo 3", f"{start} 8 0 2 hydration_threshold x",
        f"{start} 8 0 6 hydration_threshold 1", f"{start} 4", f"{start} 12", f"{start} 16 1 no_hydration", f"{start} x",
        f"{start} 4194304", start, f"0 {SECTORS} clone $D0 $D1", "0 8 clone",
        f"0 4096 clone $D0 $D1 $D2 8 1 no_hydration", f"0 {SECTORS + 8} clone $D0 $D1 $D2 8 1 no_hydration",
        f"0 {SECTORS} clone $D0 $D1 /nonexistent 8",
    ], disks, timeout=TIMEOUT)


def test_odd_sizes_give_the_same_status(kernel, fs, backing):
    for length, region in ((8191, 8), (1000, 64), (1, 8)):
        disks = [backing(8192), backing(SECTORS), backing(SECTORS)]
        kernel.compare(fs, [f"0 {length} clone $D0 $D1 $D2 {region} 1 no_hydration"], disks, timeout=TIMEOUT)


@pytest.mark.parametrize("region", [8, 64])  # larger ones the disks of the guest cannot discard
def test_a_half_hydrated_clone_goes_there_and_back(kernel, fs, backing, work, region):
    rnd = random.Random(region)
    source = rnd.randbytes(SECTORS * SECTOR)
    expected = bytearray(source)
    disks = [backing(8192), backing(SECTORS, os.urandom(SECTORS * SECTOR)), backing(SECTORS, source)]
    line = f"0 {SECTORS} clone {disks[0]} {disks[1]} {disks[2]} {region} 1 no_hydration"

    def scatter(write, count):
        for _ in range(count):
            at, n = rnd.randrange(SECTORS - 64), rnd.choice([1, 3, 8, 64])
            data = rnd.randbytes(n * SECTOR)
            write(at, data)
            expected[at * SECTOR:(at + n) * SECTOR] = data

    def in_the_kernel(count):
        data = os.path.join(work, "data")
        script = ["set -e", f'dmsetup create c --table "0 {SECTORS} clone $D0 $D1 $D2 {region} 1 no_hydration"',
                  "dmsetup status c"]
        with open(data, "wb") as f:
            def write(at, piece):
                script.append(f"dd if={data} of=/dev/mapper/c bs=512 skip={f.tell() // SECTOR} seek={at} "
                              f"count={len(piece) // SECTOR} conv=fsync oflag=direct 2>/dev/null")
                f.write(piece)
            scatter(write, count)
        script += ["dmsetup status c", "dd if=/dev/mapper/c bs=1M iflag=direct 2>/dev/null | sha256sum", "dmsetup remove c"]
        return kernel.run("\n".join(script) + "\n", disks, timeout=TIMEOUT).out.splitlines()

    def digest():
        import hashlib
        return hashlib.sha256(bytes(expected)).hexdigest()

    def ours(count):
        dev = fs.mkdir("c", line)
        before = dev.status()
        scatter(lambda at, data: dev.pwrite(data, at * SECTOR, sync=True), count)
        assert dev.pread(SECTORS * SECTOR, 0) == bytes(expected)
        after = dev.status()
        dev.remove()
        return before.strip(), after.strip()

    _, status = ours(20)
    out = in_the_kernel(20)
    assert out[0] == status, "the kernel sees what we left"
    assert out[2].split()[0] == digest()
    before, status = ours(20)
    assert before == out[1], "and we what it left"
    total = -(-SECTORS // region)
    kernel.run(f"""set -e
        dmsetup create c --table "0 {SECTORS} clone $D0 $D1 $D2 {region} 0 2 hydration_threshold 64"
        until case "$(dmsetup status c)" in *" {total}/{total} "*) true;; *) false;; esac do sleep 0.1; done
        dmsetup remove c""", disks, timeout=TIMEOUT)
    assert content(disks[1]) == bytes(expected), "the kernel has finished our clone"
    dev = fs.mkdir("c", line)
    assert f" {total}/{total} " in dev.status()


def test_we_finish_a_clone_of_the_kernels(kernel, fs, backing):
    source = random.Random(5).randbytes(SECTORS * SECTOR)
    disks = [backing(8192), backing(SECTORS, os.urandom(SECTORS * SECTOR)), backing(SECTORS, source)]
    kernel.run(f"""set -e
        dmsetup create c --table "0 {SECTORS} clone $D0 $D1 $D2 8 1 no_hydration"
        dd if=/dev/zero of=/dev/mapper/c bs=4k count=3 seek=5 oflag=direct 2>/dev/null
        dmsetup message c 0 hydration_threshold 8
        dmsetup message c 0 enable_hydration
        while case "$(dmsetup status c)" in *" 3/1024 "*) true;; *) false;; esac do sleep 0.02; done
        dmsetup remove c""", disks, timeout=TIMEOUT)
    dev = fs.mkdir("c", f"0 {SECTORS} clone {disks[0]} {disks[1]} {disks[2]} 8")
    while " 1024/1024 " not in dev.status():
        pass
    dev.remove()
    assert content(disks[1]) == source[:5 * 4096] + bytes(3 * 4096) + source[8 * 4096:]


@pytest.mark.parametrize("broken, mode", [("error", "Fail"), ("flakey {} 0 0 60 1 error_writes", "ro")])
def test_failing_metadata_prints_the_same(kernel, fs, backing, broken, mode):
    def disks():
        return [backing(8192), backing(SECTORS), backing(SECTORS)]

    theirs = disks()
    out = kernel.run(f"""
        dmsetup create meta --table "0 8192 linear $D0 0"
        dmsetup create c --table "0 {SECTORS} clone /dev/mapper/meta $D1 $D2 8 1 no_hydration"
        dd if=/dev/zero of=/dev/mapper/c bs=4k count=3 conv=fsync oflag=direct 2>/dev/null
        dmsetup status c
        dmsetup suspend --noflush meta
        dmsetup load meta --table "0 8192 {broken.format('$D0')}"
        dmsetup resume meta
        dd if=/dev/zero of=/dev/mapper/c bs=4k seek=5 count=2 conv=fsync oflag=direct 2>/dev/null
        dmsetup status c
        dmsetup remove c
        dmsetup remove meta""", theirs, timeout=TIMEOUT).out.splitlines()
    ours = disks()
    meta = fs.mkdir("meta", f"0 8192 linear {ours[0]} 0")
    dev = fs.mkdir("c", f"0 {SECTORS} clone meta {ours[1]} {ours[2]} 8 1 no_hydration")
    dev.pwrite(bytes(3 * 4096), 0, sync=True)
    assert dev.status().strip() == out[0]
    meta.load(f"0 8192 {broken.format(ours[0])}")
    with pytest.raises(OSError):
        dev.pwrite(bytes(2 * 4096), 5 * 4096, sync=True)
    assert dev.status().strip() == out[1]
    assert out[1].endswith(mode)
