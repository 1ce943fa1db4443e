#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random operations on a few devices of all targets, by several threads at once, then SIGTERM in the midst of it.

What comes out of an operation does not matter here.  What matters is that the daemon lives, ends on the signal with
status 0 while devices are suspended and I/O waits, and that no sanitizer has anything to say.  A seed gives each thread the
same operations every time; how they meet is up to the machine.

    make random SAN=thread RANDOM_SEEDS="1 2 3"
"""

import argparse
import collections
import itertools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from mounted import Dmfs  # noqa: E402

SECTORS = 16384
NAMES = [f"d{i}" for i in range(9)]
KEY = "00112233445566778899aabbccddeeff"
FILES = 14

# F: a file or a device; G: another file than the other G of the line; M: a new one; L: a length; V, W, R: an image, its hashes, their root;
# Z: zones
TABLES = """
0 L linear F 0
0 8 linear F 0|8 L linear F 8
0 L striped 2 8 F 0 F 0
0 L striped 4 2 F 0 F 0 F 4096 F 4096
0 L zero
0 L error
0 L delay F 0 20
0 L delay F 0 0 F 0 1
0 L flakey F 0 1 1
0 L flakey F 0 2 1 1 drop_writes
0 L flakey F 0 0 1 5 corrupt_bio_byte 32 r 1 0
0 L dust F 0 512
0 L unstriped 2 8 1 F 0
0 L switch 2 64 0 F 0 F 0
0 L log-writes F F
0 L snapshot F F P 16
0 L snapshot F F N 8
0 L snapshot-origin F
0 L snapshot-merge F F P 16
0 L mirror core 1 64 2 F 0 F 0
0 L mirror disk 2 F 1024 2 F 0 F 0 1 handle_errors
0 L thin-pool F F 128 0
0 L thin-pool F F 128 0 1 skip_block_zeroing
0 L thin D 0
0 L thin D 1 F
0 L clone F F F 8
0 L clone F F F 8 1 no_hydration
0 L crypt aes-xts-plain64 K 0 F 0 1 allow_discards
0 L crypt aes-xts-plain64 K 0 F 0 2 same_cpu_crypt no_read_workqueue
0 1024 crypt capi:gcm(aes)-random K 0 D 0 1 integrity:28:aead
0 1024 integrity F 0 28 D 1 fix_padding
0 1024 integrity F 0 28 J 2 fix_padding journal_sectors:64
0 1024 integrity F 0 - J 3 internal_hash:crc32c recalculate fix_padding
0 1024 integrity F 0 - B 2 internal_hash:sha256 sectors_per_bit:64
0 L writecache s F M 4096 4 high_watermark 20 low_watermark 10
0 L writecache p F F 512 0
0 L cache M F F 64 1 writeback smq 0
0 L cache M G G 64 1 writethrough default 2 migration_threshold 4096
0 L cache M G G 128 2 passthrough metadata2 cleaner 0
0 L cache G G G 128 1 metadata2 smq 0
0 L era M F 64
0 L era G G 8
0 L multipath 0 0 1 1 service-time 0 2 0 F F
0 L multipath 1 queue_if_no_path 0 2 1 queue-length 0 1 0 F round-robin 0 2 1 F 1 F 1
0 L multipath 3 queue_if_no_path queue_mode bio 0 1 1 historical-service-time 0 2 1 G 1 G 1
0 8192 verity 1 V W 4096 4096 1024 0 sha256 R -
0 8192 verity 1 V W 4096 4096 1024 0 sha256 R - 2 check_at_most_once ignore_zero_blocks
0 8192 verity 1 F G 4096 4096 1024 0 sha256 R -
0 L raid raid0 1 8 2 - G - G
0 L raid raid1 3 0 region_size 64 2 M G M G
0 L raid raid1 7 0 region_size 64 write_mostly 1 max_write_behind 100 3 M G M G M G
0 L raid raid10 3 8 raid10_format far 4 M G M G M G M G
0 L raid raid10 5 8 raid10_copies 2 raid10_format offset 4 M G M G M G M F
0 L raid raid4 3 8 region_size 64 3 M G M G M G
0 L raid raid5_ls 3 8 region_size 64 3 M G M G M F
0 L raid raid5_n 3 8 region_size 64 3 G G G G G G
0 L raid raid6_zr 2 8 sync 4 M G M G M G M G
0 L raid raid6_nc 5 8 journal_dev M region_size 64 4 M G M G M F M F
0 L raid raid5_la 5 8 journal_dev G journal_mode writeback 3 M G M G M G
0 L mirror userspace 3 a clustered-core 64 2 F 0 F 0
0 L zoned Z
0 131072 linear Z 0
0 L bogus
0 L linear F
8 L zero
""".strip().split("\n")

MESSAGES = """
create_thin 0|create_thin 1|create_snap 2 0|delete 1|delete 2|set_transaction_id 0 1|reserve_metadata_snap
release_metadata_snap|addbadblock 5|removebadblock 5|queryblock 5|clearbadblocks|countbadblocks|listbadblocks|enable|disable
mark hello|set_region_mappings 0:1 1:0|set_region_mappings R0,10|enable_hydration|disable_hydration|hydration_threshold 4
hydration_batch_size 2|flush|flush_on_suspend|cleaner|clear_stats|key set K|key wipe|wipe 0|wipe 8|nonsense|@cancel_deferred_remove|@stats_create - /100|@stats_create 0+64 8
idle|frozen|resync|recover|check|repair|checkpoint|take_metadata_snap|drop_metadata_snap|migration_threshold 2048
invalidate_cblocks 0-10|fail_path F|reinstate_path F|disable_group 1|enable_group 1|switch_group 2|fail_if_no_path
queue_if_no_path|reclaim|mixed_band 1|@stats_list|@stats_print 0|@stats_delete 0|@stats_clear 0
""".strip().replace("\n", "|").split("|")

DEVICE_FILES = ["table", "inactive", "suspend", "status", "message", "error", "info", "deps", "dev", "uuid", "readonly", "events"]
ROOT_FILES = ["control", "targets", "version", "concise", "log"]


class Actor:
    """One thread's operations."""

    def __init__(self, d, work, root, seed):
        self.d, self.work, self.root = d, work, root
        self.random = random.Random(seed)
        self.done = collections.Counter()
        # what to do, and how often
        weights = {self.mkdir: 4, self.rmdir: 1, self.load: 9, self.suspend: 4, self.message: 5, self.read: 2, self.rename: 1,
                   self.control: 1, self.concise: 1, self.readonly: 1, self.truncate: 1, self.io: 9}
        self.operations = [op for op, weight in weights.items() for _ in range(weight)]

    def run(self, until):
        while time.monotonic() < until:
            operation = self.random.choice(self.operations)
            try:
                operation(self.random.choice(NAMES))
                self.done["done"] += 1
            except OSError as e:
                self.done[e.strerror] += 1

    def file(self):
        path = f"{self.work}/f{self.random.randrange(FILES)}"
        return self.random.choice([path, path, self.random.choice(NAMES)])

    def new_file(self):
        fd, path = tempfile.mkstemp(dir=self.work)
        os.truncate(fd, 4 << 20)
        os.close(fd)
        return path

    def fill_in(self, template):
        length = self.random.choice([SECTORS, SECTORS, SECTORS // 2, 1024, 8])
        files = self.random.sample(range(FILES), FILES)
        words = {"L": lambda: str(length), "F": self.file, "G": lambda: f"{self.work}/f{files.pop()}", "M": self.new_file,
                 "D": lambda: self.random.choice(NAMES), "K": lambda: KEY * 2, "V": lambda: f"{self.work}/v",
                 "W": lambda: f"{self.work}/w", "R": lambda: self.root, "Z": lambda: f"{self.work}/z"}
        return " ".join(words.get(word, lambda word=word: word)() for word in template.split(" "))

    def mkdir(self, name):
        os.mkdir(self.d.path(name))

    def rmdir(self, name):
        os.rmdir(self.d.path(name))

    def load(self, name):
        lines = self.random.choice(TABLES).split("|")
        self.d.write(f"{name}/readonly", str(int("verity" in lines[0])))
        self.d.write(f"{name}/{self.random.choice(['table', 'table', 'table', 'inactive'])}",
                     "".join(self.fill_in(line) + "\n" for line in lines))
        if "thin-pool" in lines[0]:
            self.d.write(f"{name}/message", "0 create_thin 0")

    def suspend(self, name):
        self.d.write(f"{name}/suspend", self.random.choice(["1", "1 noflush", "0", "0", "0"]))

    def message(self, name):
        self.d.write(f"{name}/message", self.fill_in(self.random.choice(MESSAGES)))

    def read(self, name):
        path = self.random.choice([f"{name}/{f}" for f in DEVICE_FILES] + ROOT_FILES)
        fd = os.open(self.d.path(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(fd, 65536)
        finally:
            os.close(fd)

    def rename(self, name):
        os.rename(self.d.path(name), self.d.path(self.random.choice(NAMES)))

    def control(self, name):
        other = self.random.choice(NAMES)
        self.d.write("control", self.random.choice([f"create {name}", f"remove {name}", f"rename {name} {other}",
                                                    f"remove {name} deferred"]))

    def concise(self, name):
        self.d.write("concise", f"{name},,,rw,0 8 linear {self.work}/f0 0;{self.random.choice(NAMES)},,,ro,0 64 zero")

    def readonly(self, name):
        self.d.write(f"{name}/readonly", self.random.choice("01"))

    def truncate(self, name):
        os.truncate(f"{self.work}/f{self.random.randrange(FILES)}", self.random.choice([1, 2, 2]) * SECTORS * 512)

    def io(self, name):
        flags = self.random.choice([os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_RDONLY, os.O_RDWR | os.O_DSYNC])
        fd = os.open(self.d.path(name, "image"), flags)
        try:
            for _ in range(self.random.randrange(1, 12)):
                self.one_io(fd, flags & os.O_DIRECT)
        finally:
            os.close(fd)

    def one_io(self, fd, direct):
        length = self.random.choice([512, 4096, 65536, 1 << 20] if direct else [1, 511, 513, 4096, 70000, 1 << 20])
        offset = self.random.randrange(SECTORS) * 512 + (0 if direct else self.random.randrange(512))
        buffer = memoryview(mmap.mmap(-1, max(length, 4096)))[:length]
        self.random.choice([lambda: os.preadv(fd, [buffer], offset), lambda: os.pwritev(fd, [buffer], offset),
                            lambda: os.fsync(fd)])()


def go_on(d, until):
    """Else after a while everybody waits for a suspended device, or for one that has lost its paths."""
    while time.monotonic() < until:
        for name, (file, text) in itertools.product(NAMES, {"suspend": "0", "message": "fail_if_no_path"}.items()):
            try:
                d.write(f"{name}/{file}", text)
            except OSError:
                pass        # there is none, or its table does not want to
        time.sleep(0.2)


def special_files(build, work):
    """An image with a hash tree, whose root digest is returned, and a zoned disk."""
    with open(f"{work}/v", "wb") as f:
        f.write(random.Random(1).randbytes(4 << 20))
    text = subprocess.run([f"{build}/dmfs-verity", "--no-superblock", "-s", "-", "format", f"{work}/v", f"{work}/w"], check=True,
                          capture_output=True, text=True).stdout
    subprocess.run([f"{build}/dmfs-zone", "format", "-s", "64M", "-z", "1M", "-C", "8", f"{work}/z"], check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run([f"{build}/dmfs-zone", "dm-format", "--seq=4", f"{work}/z"], check=True, stdout=subprocess.DEVNULL)
    return next(word for word in text.split() if len(word) == 64)


def run(build, seed, seconds, threads):
    work = tempfile.mkdtemp(prefix="dmfs-random-")
    d = None
    try:
        for i in range(FILES):
            with open(f"{work}/f{i}", "wb") as f:
                f.truncate(2 * SECTORS * 512)
        root = special_files(build, work)
        d = Dmfs(build=build, state=f"{work}/state.db" if seed % 2 else None)
        until = time.monotonic() + seconds
        actors = [Actor(d, work, root, seed * 1000 + i) for i in range(threads)]
        running = [threading.Thread(target=a.run, args=[until], daemon=True) for a in actors]
        running.append(threading.Thread(target=go_on, args=[d, until], daemon=True))
        for t in running:
            t.start()
        while time.monotonic() < until and d.process.poll() is None:
            time.sleep(0.1)
        d.signal(signal.SIGTERM)
        if d.wait():
            raise AssertionError(f"seed {seed}: exit status {d.process.returncode}\n{d.stderr()[-20000:]}")
        for t in running:
            t.join()
        print(f"seed {seed}:", *(f"{what} {n}," for what, n in sum((a.done for a in actors), collections.Counter()).most_common(6)),
              flush=True)
    finally:
        if d:
            d.kill()
            d.close()
        shutil.rmtree(work, ignore_errors=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--build", default="build", help="the build directory")
    ap.add_argument("--seconds", type=float, default=10, help="for each seed (default 10)")
    ap.add_argument("--threads", type=int, default=6)
    ap.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    args = ap.parse_args()
    for seed in args.seeds:
        run(os.path.abspath(args.build), seed, args.seconds, args.threads)


if __name__ == "__main__":
    main()
