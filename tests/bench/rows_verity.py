# SPDX-License-Identifier: GPL-2.0-or-later
"""verity beside linear and libgcrypt's SHA-256, and dmfs-verity beside veritysetup."""

import ctypes
import mmap
import os
import statistics
import subprocess
import threading
import time

from benchlib import MIB, Job, Limit, Skip, device, linear_line, program, row, subject
from mounted import quote
from verity import ZeroTree

RANDOM_4K = Job("read 4k d16", "randread", 4096, 16)
READ_1M = Job("read 1M d4", "read", MIB, 4)


class Image:
    """Data, digests, and the root hash, made once."""

    def __init__(self, b):
        self.tool = os.path.join(b.build, "dmfs-verity")
        if not os.access(self.tool, os.X_OK):
            raise Skip("no dmfs-verity in the build (libcryptsetup-dev)")
        self.data, self.hashes, root = b.file("verity.img"), os.path.join(b.dir, "verity.hash"), os.path.join(b.dir, "root")
        if not os.path.exists(root):
            subprocess.run([self.tool, "format", self.data, self.hashes, "--salt", "5a" * 32, "--root-hash-file", root],
                           check=True, capture_output=True)
        with open(root, encoding="ascii") as f:
            self.root = f.read()

    def line(self, b, options=""):
        return (f"0 {b.sectors()} verity 1 {quote(self.data)} {quote(self.hashes)} 4096 4096 {b.sectors() // 8} 1 sha256 "
                f"{self.root} {'5a' * 32}{options}")


def verity_device(b, name, options=""):
    dev = b.dmfs().mkdir(name)
    dev.write("readonly", "1")
    dev.load(Image(b).line(b, options))
    return dev


@subject("verity linear")
def linear(b):
    yield from device(b, "verity-linear", linear_line(b, Image(b).data))


def subject_of(name, options):
    @subject(name)
    def make(b):
        dev = verity_device(b, name.replace(" ", "-"), options)
        with open(dev.image, "rb") as f:        # so that the tree is warm, or every block is known
            while f.read(MIB):
                pass
        yield dev.image
        dev.remove()


subject_of("verity", "")
subject_of("verity once", " 1 check_at_most_once")


def sha256_rate(seconds=0.4):
    """libgcrypt's, bytes a second, on all cores."""
    lib = ctypes.CDLL("libgcrypt.so.20")
    lib.gcry_check_version(None)
    lib.gcry_md_hash_buffer.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    end, done = time.monotonic() + seconds, []

    def run():
        buf, out, n = ctypes.create_string_buffer(os.urandom(MIB // 8), MIB // 8), ctypes.create_string_buffer(32), 0
        while time.monotonic() < end:
            lib.gcry_md_hash_buffer(8, out, buf, len(buf))
            n += len(buf)
        done.append(n)

    threads = [threading.Thread(target=run) for _ in range(os.cpu_count())]
    start = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sum(done) / (time.monotonic() - start)


def once_through(b, path, depth=4):
    """MB/s of one sequential pass with reads of 1 MiB."""
    job = Job("pass", "read", MIB, depth)
    return b.fio(path, job, extra=["--time_based=0", "--runtime=0", "--ramp_time=0", f"--io_size={b.size}"])


@row("verity-cold")
def cold(b):
    """1 MiB sequential reads at depth 4 with a cold tree, beside linear and the hash itself"""
    dev, beside, ratios = verity_device(b, "cold"), b.open("verity linear"), []
    line = Image(b).line(b)
    for _ in range(1 if b.quick else 2 * b.rounds + 1):
        dev.load(line)                          # a new tree
        rate, one = sha256_rate() / 1e6, once_through(b, beside)
        mine = once_through(b, dev.image)
        ratios.append((mine / min(rate, one), mine, rate, one))
    dev.remove()
    ratio, mine, rate, one = statistics.median_low(ratios)
    print(f"  verity {mine:,.0f} MB/s, SHA-256 on all cores {rate:,.0f} MB/s, linear {one:,.0f} MB/s")
    b.measure("of the lesser of SHA-256 and linear, cold, 1 MiB reads", ratio, "", at_least=0.8)


@row("verity-warm")
def warm(b):
    """4 KiB random reads, all digests in memory"""
    b.compare(["verity", "verity linear"], [RANDOM_4K, READ_1M], [Limit(RANDOM_4K.name, "verity", "verity linear", 0.6)])


@row("verity-once")
def once(b):
    """check_at_most_once, when every block was read before"""
    b.compare(["verity once", "verity linear"], [RANDOM_4K, READ_1M], [Limit("*", "verity once", "verity linear", 0.95)],
              shorter=3)


@row("verity-tool")
def tool(b):
    """dmfs-verity verify beside veritysetup verify"""
    im, theirs, ratios = Image(b), program("veritysetup", "cryptsetup-bin"), []

    def seconds(name):
        start = time.monotonic()
        subprocess.run([name, "verify", im.data, im.hashes, im.root], check=True, capture_output=True)
        return time.monotonic() - start

    for _ in range(1 if b.quick else b.rounds):
        ratios.append(seconds(theirs) / seconds(im.tool))
    b.measure("as fast as veritysetup verify", statistics.median(ratios), "times", at_least=1.6)


@row("verity-memory")
def memory(b):
    """the daemon's memory after reads all over a sparse image of 1 TiB"""
    blocks, hashes = 1 << 28, os.path.join(b.dir, "sparse.hash")
    touched = [n * 521 % (blocks // 128) for n in range(500 if b.quick else 8000)]
    tree, data = ZeroTree(blocks, touched, hashes), b.file("sparse.img", blocks * 4096, filled=False)
    d = b.own_dmfs()
    dev = d.mkdir("sparse")
    dev.write("readonly", "1")
    dev.load(tree.line(data, hashes, options="1 check_at_most_once"))
    buf = mmap.mmap(-1, MIB // 2)
    fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
    for n in touched:
        os.preadv(fd, [buf], n * len(buf))
    os.close(fd)
    b.measure("memory of the daemon, 1 TiB", d.rss_kib() / 1024, "MiB", at_most=32)
    dev.remove()
    d.close()
