# SPDX-License-Identifier: GPL-2.0-or-later
"""snapshot beside linear and beside qcow2 with a backing file."""

import json
import os
import random
import statistics
import struct
import subprocess
import time

from benchlib import MIB, Job, Limit, Skip, cp_speed, device, program, row, served, subject, write_all
from mounted import SECTOR, quote

CHUNK = 16                      # sectors
READ_4K = Job("randread 4k d16", "randread", 4096, 16)
WRITE_4K = Job("randwrite 4k d16", "randwrite", 4096, 16)


def cow_file(b, name, size=None):
    """An empty COW file with room for all of the origin, allocated."""
    path = b.file(name, (size or b.size) + (size or b.size) // 256 + 4 * MIB)
    with open(path, "r+b") as f:
        f.write(bytes(4096))
    return path


def snapshot_line(b, origin, cow, kind="P", chunk=CHUNK):
    return f"0 {b.sectors()} snapshot {quote(origin)} {quote(cow)} {kind} {chunk}"


@subject("snapshot unchanged")
def unchanged(b):
    yield from device(b, "snap-unchanged", snapshot_line(b, b.file("linear.img"), cow_file(b, "unchanged.cow")))


@subject("snapshot copied")
def copied(b):
    for path in device(b, "snap-copied", snapshot_line(b, b.file("linear.img"), cow_file(b, "copied.cow"))):
        write_all(path, b.size)
        yield path


@row("snapshot-reads")
def reads(b):
    """4 KiB reads of chunks that are unchanged, and of chunks that were copied"""
    b.compare(["snapshot unchanged", "linear"], [READ_4K], [Limit("*", "snapshot unchanged", "linear", 0.9)])
    b.compare(["snapshot copied", "linear"], [READ_4K], [Limit("*", "snapshot copied", "linear", 0.9)])


@row("snapshot-rewrites")
def rewrites(b):
    """4 KiB writes to chunks that were copied"""
    b.compare(["snapshot copied", "linear"], [WRITE_4K], [Limit("*", "snapshot copied", "linear", 0.9)])


# --- first writes: each needs a fresh snapshot ---------------------------------------------

def first_writes(b, path):
    """Each 4 KiB block at most once, an eighth of them, at random; IOPS."""
    done = subprocess.run([program("fio", "fio"), "--name=first", f"--filename={path}", "--rw=randwrite", "--bs=4096",
                           "--iodepth=16", "--ioengine=libaio", "--direct=1", f"--size={b.size}",
                           f"--io_size={b.size // 8}", "--output-format=json"], capture_output=True, text=True,
                          timeout=300)
    if done.returncode:
        raise Skip(f"fio on {path}: {(done.stderr or done.stdout).strip()[-300:]}")
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["write"]["iops"]


def first_writes_snapshot(b):
    name = "snap-first"
    dev = b.dmfs().mkdir(name, snapshot_line(b, b.file("linear.img"), cow_file(b, "first.cow")))
    try:
        return first_writes(b, dev.image)
    finally:
        dev.remove()


def first_writes_qcow2(b, cluster):
    image, mountpoint = os.path.join(b.dir, "first.qcow2"), os.path.join(b.dir, "first.export")
    subprocess.run([program("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}",
                    "-F", "raw", "-b", b.file("linear.img"), image], check=True)
    with open(mountpoint, "wb"):
        pass
    cmd = [program("qemu-storage-daemon", "qemu-system-common"),
           "--blockdev", f"driver=file,node-name=base-file,filename={b.file('linear.img')},read-only=on",
           "--blockdev", "driver=raw,node-name=base,file=base-file,read-only=on",
           "--blockdev", f"driver=file,node-name=file,filename={image}",
           "--blockdev", "driver=qcow2,node-name=top,file=file,backing=base",
           "--export", f"type=fuse,id=e,node-name=top,mountpoint={mountpoint},writable=on"]
    try:
        with served(b, f"qcow2-{cluster}", cmd, mountpoint):
            return first_writes(b, mountpoint)
    finally:
        os.unlink(image)


@row("snapshot-first-writes")
def first(b):
    """first writes of 4 KiB at depth 16, 16-sector chunks, beside qcow2 with a backing file; no FLUSH on either side"""
    sides = {"snapshot": first_writes_snapshot,
             "qcow2 64k": lambda b: first_writes_qcow2(b, 65536), "qcow2 8k": lambda b: first_writes_qcow2(b, 8192)}
    seen = {name: [] for name in sides}
    for _ in range(b.rounds):
        for name, fn in sides.items():
            seen[name].append(fn(b))
    for name, values in seen.items():
        b.measure(f"first writes, {name}", statistics.median(values), "IOPS")
    for name in ("qcow2 64k", "qcow2 8k"):
        ratio = statistics.median(x / y for x, y in zip(seen["snapshot"], seen[name]))
        b.measure(f"first writes, snapshot / {name}", ratio, "", at_least=1.5)


# --- origins -----------------------------------------------------------------------------------

def origin_with(b, count):
    size = min(b.size, 64 * MIB)
    sectors = size // SECTOR
    origin = b.file(f"origin{count}.img", size)
    fs = b.dmfs()
    base = fs.mkdir(f"origin-of-{count}", f"0 {sectors} snapshot-origin {quote(origin)}")
    snaps = [fs.mkdir(f"snap{i}-of-{count}", f"0 {sectors} snapshot {quote(origin)} "
                      f"{quote(cow_file(b, f'origin{count}-{i}.cow', size))} P {CHUNK}") for i in range(count)]
    write_all(base.image, size)          # copied in all of them
    yield base.image
    for dev in (*snaps, base):
        dev.remove()


@subject("origin of 1")
def origin_of_1(b):
    yield from origin_with(b, 1)


@subject("origin of 8")
def origin_of_8(b):
    yield from origin_with(b, 8)


@row("snapshot-origin")
def origins(b):
    """4 KiB writes to an origin with 1 and with 8 snapshots, all chunks copied"""
    size = min(b.size, 64 * MIB)
    b.compare(["origin of 8", "origin of 1"], [WRITE_4K], [Limit("*", "origin of 8", "origin of 1", 1 / 1.5)],
              spans={"origin of 8": size, "origin of 1": size})


# --- merging --------------------------------------------------------------------------------------

def fill_scattered(path, size):
    """The same with chunks in a random order, so that neighbours of the origin are none on the COW store."""
    subprocess.run([program("fio", "fio"), "--name=fill", f"--filename={path}", "--rw=randwrite", "--bs=8k",
                    "--iodepth=16", "--ioengine=libaio", "--direct=1", f"--size={size}", "--output-format=json"],
                   check=True, capture_output=True)


def merge_speed(b, size, how=write_all):
    fs = b.dmfs()
    origin, cow = b.file("merge.img", size), cow_file(b, "merge.cow", size)
    line = f"0 {size // SECTOR} snapshot{{}} {quote(origin)} {quote(cow)} P {CHUNK}"
    dev = fs.mkdir("merge", line.format(""))
    how(dev.image, size)
    dev.remove()
    dev = fs.mkdir("merge")
    began = time.monotonic()
    with open(dev.file("events"), "rb", buffering=0) as events:
        dev.load(line.format("-merge"))
        while True:
            words = dev.status().split()
            if words[3].split("/")[0] == words[4]:
                break
            events.read(65536)
    seconds = time.monotonic() - began
    dev.remove()
    return size / seconds / 1e6


@row("snapshot-merge")
def merging(b):
    """a merge beside a copy of the same data with cp's block size"""
    size = min(b.size, 256 * MIB)

    def cp():
        return cp_speed(b, b.file("merge.img", size), size, 131072)

    b.beside_cp("merge", lambda: merge_speed(b, size), cp, at_least=0.5)
    b.beside_cp("merge of scattered chunks", lambda: merge_speed(b, size, fill_scattered), cp)


# --- a large store -----------------------------------------------------------------------------------

def large_store(path, count):
    """A store of so many exceptions, scattered, of chunks of 16 sectors; the file is sparse."""
    per_area = CHUNK * SECTOR // 16
    order = list(range(count))
    random.Random(1).shuffle(order)
    with open(path, "wb") as f:
        f.write(struct.pack("<IIII", 0x70416e53, 1, 1, CHUNK))
        for area in range(count // per_area + 1):
            f.seek((1 + area * (per_area + 1)) * CHUNK * SECTOR)
            part = order[area * per_area:(area + 1) * per_area]
            f.write(b"".join(struct.pack("<QQ", 2 * old, 2 + n + n // per_area)
                             for n, old in enumerate(part, area * per_area)).ljust(CHUNK * SECTOR, b"\0"))
        f.truncate((count + count // per_area + 8) * CHUNK * SECTOR)


@row("snapshot-million")
def million(b):
    """a store of a million exceptions: how long it takes to open, what it takes of memory, and reads of it"""
    count = 1000000
    path, origin = os.path.join(b.dir, "million.cow"), os.path.join(b.dir, "million.img")
    large_store(path, count)
    sectors = 2 * count * CHUNK
    with open(origin, "wb") as f:
        f.truncate(sectors * SECTOR)
    fs = b.own_dmfs()
    fs.mkdir("small", f"0 {sectors} snapshot {quote(origin)} {quote(cow_file(b, 'small.cow', MIB))} N {CHUNK}")
    before = fs.rss_kib()
    dev = fs.mkdir("large")
    began = time.monotonic()
    dev.load(f"0 {sectors} snapshot {quote(origin)} {quote(path)} P {CHUNK}")
    b.measure("a million exceptions open in", time.monotonic() - began, "s", at_most=1)
    b.measure("memory an exception", (fs.rss_kib() - before) * 1024 / count, "bytes", at_most=32)
    fs.close()
    os.unlink(path)
    os.unlink(origin)
