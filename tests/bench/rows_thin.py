# SPDX-License-Identifier: GPL-2.0-or-later
"""thin beside linear and qcow2; and pools with 10 million mappings.

Those have a data device of zeroes: it takes no memory, and what is left to measure is the metadata.
"""

import contextlib
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import threading
import time

from benchlib import MIB, Job, Limit, Skip, program, row, served, subject, write_all
from mounted import quote

BLOCK = 128                     # sectors
BLOCK_BYTES = BLOCK * 512
MANY, FEW, SPARE = 10_000_000, 1_000, 90_000
READ_4K = Job("randread 4k d16", "randread", 4096, 16)
WRITE_4K = Job("randwrite 4k d16", "randwrite", 4096, 16)


class Pool:
    """A pool of the shared daemon over files in memory, with one volume of the bench's size."""

    def __init__(self, b, name, blocks=None):
        self.b, self.name, self.devices = b, name, []
        self.blocks = blocks or b.size // BLOCK_BYTES
        meta = b.file(f"{name}.meta", 64 * MIB, filled=False)
        with open(meta, "r+b") as f:
            f.write(bytes(4096))
        # room for a snapshot that is written all over
        data = b.file(f"{name}.data", 2 * self.blocks * BLOCK_BYTES)
        self.dev = b.dmfs().mkdir(name, f"0 {2 * self.blocks * BLOCK} thin-pool {quote(meta)} {quote(data)} {BLOCK} 0 1 "
                                  "skip_block_zeroing")
        self.dev.message("create_thin 0")

    def volume(self, ident=0):
        dev = self.b.dmfs().mkdir(f"{self.name}-{ident}", f"0 {self.blocks * BLOCK} thin {self.name} {ident}")
        self.devices.append(dev)
        return dev

    def close(self):
        for dev in (*self.devices, self.dev):
            dev.remove()


@subject("thin provisioned")
def provisioned(b):
    pool = Pool(b, "thin-provisioned")
    dev = pool.volume()
    write_all(dev.image, b.size)
    yield dev.image
    pool.close()


@row("thin-provisioned")
def provisioned_row(b):
    """4 KiB reads and writes of blocks that are mapped, blocks of 64 KiB"""
    b.compare(["thin provisioned", "linear"], [READ_4K, WRITE_4K], [Limit("*", "thin provisioned", "linear", 0.85)])


# --- first writes, and writes that break sharing: each needs a fresh volume ---------------------

def one_write_a_block(b, path):
    """4 KiB into each block at depth 16; IOPS."""
    done = subprocess.run([program("fio", "fio"), "--name=first", f"--filename={path}",
                           f"--rw=write:{BLOCK_BYTES - 4096}", "--bs=4096", "--iodepth=16", "--ioengine=libaio",
                           "--direct=1", f"--size={b.size}", f"--io_size={b.size // BLOCK_BYTES * 4096}",
                           "--output-format=json"], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Skip(f"fio on {path}: {(done.stderr or done.stdout).strip()[-300:]}")
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["write"]["iops"]


def thin_first(b):
    pool = Pool(b, "thin-first")
    try:
        return one_write_a_block(b, pool.volume().image)
    finally:
        pool.close()


def thin_sharing(b):
    pool = Pool(b, "thin-sharing")
    try:
        dev = pool.volume()
        write_all(dev.image, b.size)
        pool.dev.message("create_snap 1 0")
        return one_write_a_block(b, dev.image)
    finally:
        pool.close()


def qcow2(b, backing):
    image, mountpoint = os.path.join(b.dir, "thin.qcow2"), os.path.join(b.dir, "thin.export")
    cmd = [program("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "-o", f"cluster_size={BLOCK_BYTES}"]
    top = "driver=qcow2,node-name=top,file=file"
    nodes = ["--blockdev", f"driver=file,node-name=file,filename={image}"]
    if backing:
        base = b.file("linear.img")
        cmd += ["-F", "raw", "-b", base, image]
        nodes += ["--blockdev", f"driver=file,node-name=base-file,filename={base},read-only=on",
                  "--blockdev", "driver=raw,node-name=base,file=base-file,read-only=on"]
        top += ",backing=base"
    else:
        cmd += [image, str(b.size)]
    subprocess.run(cmd, check=True)
    with open(mountpoint, "wb"):
        pass
    serve = [program("qemu-storage-daemon", "qemu-system-common"), *nodes, "--blockdev", top,
             "--export", f"type=fuse,id=e,node-name=top,mountpoint={mountpoint},writable=on"]
    try:
        with served(b, "thin-qcow2", serve, mountpoint):
            return one_write_a_block(b, mountpoint)
    finally:
        os.unlink(image)


def beside_qcow2(b, what, thin, backing, at_least):
    seen = {"thin": [], "qcow2": []}
    for _ in range(b.rounds):
        seen["thin"].append(thin(b))
        seen["qcow2"].append(qcow2(b, backing))
    for name, values in seen.items():
        b.measure(f"{what}, {name}", statistics.median(values), "IOPS")
    ratio = statistics.median(x / y for x, y in zip(seen["thin"], seen["qcow2"]))
    b.measure(f"{what}, thin / qcow2", ratio, "", at_least=at_least)


@row("thin-first-writes")
def first_row(b):
    """one 4 KiB write into each unmapped block at depth 16, beside qcow2 with clusters of 64 KiB; no zeroing, no FLUSH"""
    beside_qcow2(b, "first writes", thin_first, False, 2)


@row("thin-sharing")
def sharing_row(b):
    """one 4 KiB write into each block after a snapshot, beside qcow2 with a backing file, clusters of 64 KiB"""
    beside_qcow2(b, "breaking sharing", thin_sharing, True, 1.5)


# --- 10 million mappings --------------------------------------------------------------------------

def large_metadata(b):
    """Volume 1 with many mappings, volume 2 with few; made once."""
    path = os.path.join(b.dir, "large.meta")
    if os.path.exists(path):
        return path
    devices, begin = "", 0
    for ident, count in ((1, MANY), (2, FEW)):
        devices += (f'<device dev_id="{ident}" mapped_blocks="{count}" transaction="0" creation_time="0" snap_time="0">'
                    f'<range_mapping origin_begin="0" data_begin="{begin}" length="{count}" time="0"/></device>\n')
        begin += count
    xml = os.path.join(b.dir, "large.xml")
    with open(xml, "w", encoding="ascii") as f:
        f.write(f'<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="{BLOCK}" '
                f'nr_data_blocks="{begin + SPARE}">\n{devices}</superblock>\n')
    with open(path, "wb") as f:
        f.truncate(400 * MIB)
    subprocess.run([program("thin_restore", "thin-provisioning-tools"), "-q", "-i", xml, "-o", path], check=True,
                   capture_output=True)
    return path


@contextlib.contextmanager
def large_pool(b):
    """A daemon of its own with that pool; its metadata is a copy."""
    meta, d = os.path.join(b.dir, "large.copy"), b.own_dmfs()
    shutil.copyfile(large_metadata(b), meta)
    sectors = (MANY + FEW + SPARE) * BLOCK
    d.mkdir("zeroes", f"0 {sectors} zero")
    try:
        start = time.monotonic()
        pool = d.mkdir("pool", f"0 {sectors} thin-pool {quote(meta)} zeroes {BLOCK} 0 1 skip_block_zeroing")
        yield d, pool, time.monotonic() - start
    finally:
        d.close()
        os.unlink(meta)


def thin(d, ident, blocks):
    return d.mkdir(f"thin{ident}", f"0 {blocks * BLOCK} thin pool {ident}")


@row("thin-large")
def large_row(b):
    """a pool with 10 million mappings: opening, snapshots, random I/O over all of it, memory"""
    with large_pool(b) as (d, pool, opened):
        b.measure("opening the pool", opened, "s", at_most=1)
        before = d.rss_kib()
        big, small = thin(d, 1, MANY), thin(d, 2, FEW)
        b.opened.update({"10,000,000 mappings": big.image, "1,000 mappings": small.image})
        b.compare(["10,000,000 mappings", "1,000 mappings"], [READ_4K, WRITE_4K],
                  [Limit("*", "10,000,000 mappings", "1,000 mappings", 0.5)],
                  spans={"10,000,000 mappings": MANY * BLOCK_BYTES, "1,000 mappings": FEW * BLOCK_BYTES})
        b.measure("memory after that", (d.rss_kib() - before) / 1024, "MiB", at_most=64)
        took = {1: [], 2: []}
        for turn in range(5):
            for ident, times in took.items():
                new = 10 + 10 * turn + ident
                start = time.monotonic()
                pool.message(f"create_snap {new} {ident}")
                times.append(time.monotonic() - start)
        for ident, what in ((1, "10,000,000"), (2, "1,000")):
            b.measure(f"create_snap of {what} mappings", statistics.median(took[ident]) * 1e3, "ms")
        b.measure("create_snap of 10,000,000 / of 1,000", statistics.median(took[1]) / statistics.median(took[2]), "times",
                  at_most=3)


class Stalls:
    """4 KiB requests to a volume, one after another: reads of mapped blocks, and first writes."""

    def __init__(self, dev):
        self.stop, self.longest = threading.Event(), {"read": 0, "first write": 0}
        self.path = dev.image
        self.threads = [threading.Thread(target=self.run, args=(kind,)) for kind in self.longest]

    def run(self, kind):
        buf, block = mmap.mmap(-1, 4096), FEW
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            while not self.stop.is_set():
                start = time.monotonic()
                if kind == "read":
                    os.preadv(fd, [buf], random.randrange(FEW) * BLOCK_BYTES)
                else:
                    os.pwritev(fd, [buf], block * BLOCK_BYTES)
                    block = block + 1 if block + 1 < FEW + SPARE else FEW
                self.longest[kind] = max(self.longest[kind], time.monotonic() - start)
        finally:
            os.close(fd)

    def during(self, fn):
        for t in self.threads:
            t.start()
        start = time.monotonic()
        fn()
        took = time.monotonic() - start
        self.stop.set()
        for t in self.threads:
            t.join()
        return took


@row("thin-delete")
def delete_row(b):
    """the longest other requests wait while a volume of 10 million mappings is deleted"""
    rounds = min(b.rounds, 3)
    took, longest, idle = [], {}, {}
    for _ in range(rounds):
        with large_pool(b) as (d, pool, _opened):
            small = thin(d, 2, FEW + SPARE)
            before = Stalls(small)
            before.during(lambda: time.sleep(1))
            stalls = Stalls(small)
            took.append(stalls.during(lambda p=pool: p.message("delete 1")))
            for kind, seconds in stalls.longest.items():
                longest.setdefault(kind, []).append(seconds)
                idle.setdefault(kind, []).append(before.longest[kind])
    b.measure("deleting it", statistics.median(took), "s")
    for kind, values in longest.items():
        b.measure(f"longest {kind} of a second without", statistics.median(idle[kind]) * 1e3, "ms")
        b.measure(f"longest {kind} meanwhile", statistics.median(values) * 1e3, "ms", at_most=50)
