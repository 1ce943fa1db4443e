# SPDX-License-Identifier: GPL-2.0-or-later
"""raid beside striped and linear on files of the same kind; resync and rebuild beside cp."""

import os
import statistics
import subprocess
import threading
import time

from benchlib import Job, Limit, device, row, subject, wait_status
from mounted import quote

CHUNK = 128
READS = [Job("read 4k d16", "randread", 4096, 16), Job("read 1M", "read", 1 << 20)]
WRITES = [Job("write 4k d16", "randwrite", 4096, 16), Job("write 1M", "write", 1 << 20)]
ROWS4 = [Job("write rows", "write", 768 << 10, 4)]      # whole rows of three chunks
ROWS6 = [Job("write rows", "write", 1 << 20, 4)]        # of four


def per_disk(b):
    """Sectors of a device: a quarter of the volume, in whole chunks."""
    return b.sectors() // 4 // CHUNK * CHUNK


def leg(b, i):
    return quote(b.file(f"raid{i}.img", per_disk(b) * 512))


def meta(b, name, i):
    return quote(b.file(f"{name}.meta{i}", 1 << 20, filled=False))


def striped(b, disks):
    files = " ".join(f"{leg(b, i)} 0" for i in range(disks))
    yield from device(b, f"rstriped{disks}", f"0 {disks * per_disk(b)} striped {disks} {CHUNK} {files}")


def raid(b, name, kind, disks, data, params="nosync", missing=()):
    devs = " ".join("- -" if i in missing else f"{meta(b, name, i)} {leg(b, i)}" for i in range(disks))
    count = 1 + len(params.split())
    chunk = 0 if kind == "raid1" else CHUNK
    return f"0 {data * per_disk(b)} raid {kind} {count} {chunk} {params} {disks} {devs}"


for n in (3, 4):
    def make(b, n=n):
        yield from striped(b, n)
    subject(f"striped({n})")(make)

for title, args in {"raid0(3)": ("r0", "raid0", 3, 3, ""), "raid1(2)": ("r1", "raid1", 2, 1),
                    "raid10(4)": ("r10", "raid10", 4, 2), "raid5(4)": ("r5", "raid5_ls", 4, 3),
                    "raid6(6)": ("r6", "raid6_zr", 6, 4, "")}.items():
    def make_raid(b, args=args):
        yield from device(b, args[0], raid(b, *args))
    subject(title)(make_raid)


@subject("one leg")
def one_leg(b):
    yield from device(b, "rleg", f"0 {per_disk(b)} linear {leg(b, 0)} 0")


@subject("raid5(4) degraded")
def degraded(b):
    name = "r5d"
    dev = b.dmfs().mkdir(name, raid(b, name, "raid5_ls", 4, 3))
    dev.load(raid(b, name, "raid5_ls", 4, 3, params="", missing=(1,)))
    yield dev.image
    dev.remove()



@row("raid0")
def raid0(b):
    """three devices, beside striped"""
    sizes = {"raid0(3)": 3 * per_disk(b) * 512, "striped(3)": 3 * per_disk(b) * 512}
    b.compare(["raid0(3)", "striped(3)"], READS + WRITES, [Limit("*", "raid0(3)", "striped(3)", 0.95)], sizes)


@row("raid1")
def raid1(b):
    """two legs with a bitmap, beside linear"""
    sizes = {"raid1(2)": per_disk(b) * 512, "one leg": per_disk(b) * 512}
    b.compare(["raid1(2)", "one leg"], READS + WRITES,
              [Limit("read*", "raid1(2)", "one leg", 0.9), Limit("write*", "raid1(2)", "one leg", 0.55)], sizes)


@row("raid10")
def raid10(b):
    """four devices, two copies, beside striped"""
    size = 2 * per_disk(b) * 512
    b.compare(["raid10(4)", "striped(4)"], READS + WRITES,
              [Limit("read*", "raid10(4)", "striped(4)", 0.85), Limit("write*", "raid10(4)", "striped(4)", 0.5)],
              {"raid10(4)": size, "striped(4)": size})


def whole(words):
    done, _, total = words[6].partition("/")
    return done == total and words[7] == "idle" and "a" not in words[5]


@row("raid5")
def raid5(b):
    """four devices, beside striped over three and linear"""
    size = 3 * per_disk(b) * 512
    sizes = {"raid5(4)": size, "striped(3)": size, "raid5(4) degraded": size}
    b.compare(["raid5(4)", "striped(3)"], ROWS4 + READS,
              [Limit("write rows", "raid5(4)", "striped(3)", 0.45), Limit("read*", "raid5(4)", "striped(3)", 0.85)], sizes)
    b.compare(["raid5(4)", "one leg"], WRITES[:1], [Limit("write 4k d16", "raid5(4)", "one leg", 0.2)], sizes)
    b.compare(["raid5(4) degraded", "striped(3)"], READS, [Limit("read*", "raid5(4) degraded", "striped(3)", 0.4)], sizes)


@row("raid6")
def raid6(b):
    """six devices, beside striped over four"""
    size = 4 * per_disk(b) * 512
    open_dev = b.open("raid6(6)")
    wait_status(b.dmfs()[os.path.basename(os.path.dirname(open_dev))], whole)
    b.compare(["raid6(6)", "striped(4)"], ROWS6 + READS,
              [Limit("write rows", "raid6(6)", "striped(4)", 0.35), Limit("read*", "raid6(6)", "striped(4)", 0.85)],
              {"raid6(6)": size, "striped(4)": size})


@row("raid-sync")
def sync(b):
    """resync of raid1 and raid5 and a rebuild, of cp's speed; reads meanwhile"""
    size = per_disk(b) * 512
    part = b.file("cp.img", size, filled=False)
    took = {"cp": [], "resync raid1": [], "resync raid5": [], "rebuild raid5": []}
    lines = {"resync raid1": raid(b, "rs1", "raid1", 2, 1, ""), "resync raid5": raid(b, "rs5", "raid5_ls", 4, 3, ""),
             "rebuild raid5": raid(b, "rs5", "raid5_ls", 4, 3, "rebuild 2")}
    for _ in range(b.rounds):
        begin = time.monotonic()
        subprocess.run(["dd", f"if={b.file('raid0.img')}", f"of={part}", "bs=1M", "conv=notrunc", "status=none"], check=True)
        took["cp"].append(time.monotonic() - begin)
        for name, line in lines.items():
            if name != "rebuild raid5":
                for i in range(4):
                    meta_path = b.file(f"{'rs1' if '1' in name else 'rs5'}.meta{i}", 1 << 20, filled=False)
                    with open(meta_path, "r+b") as f:
                        f.write(bytes(8192))
            begin = time.monotonic()
            dev = b.dmfs().mkdir("rsync", line)
            wait_status(dev, whole)
            took[name].append(time.monotonic() - begin)
            dev.remove()
    cp = statistics.median(took["cp"])
    for name in lines:
        # of the same bytes: what is read and written of each device
        b.measure(f"{name}, of cp's speed", cp / statistics.median(took[name]) * (4 if "5" in name else 1), "",
                  at_least=0.5)
    os.unlink(part)


@row("raid-reads-during-resync")
def reads_during(b):
    """4 KiB reads at depth 16 while a resync goes on that nothing holds back but them"""
    dev = b.dmfs().mkdir("rdur", raid(b, "rdur", "raid1", 2, 1, ""))
    job = READS[0]
    span = per_disk(b) * 512
    ratios = []
    wait_status(dev, whole)
    for _ in range(b.rounds):
        alone = b.fio(dev.image, job, span)
        stop = threading.Event()

        def again():
            while not stop.is_set():
                try:
                    dev.message("repair")
                except OSError:
                    time.sleep(0.01)    # it is at it

        thread = threading.Thread(target=again)
        thread.start()
        try:
            ratios.append(b.fio(dev.image, job, span) / alone)
        finally:
            stop.set()
            thread.join()
    dev.message("idle")
    dev.remove()
    b.measure("reads during a repair, of their speed alone", statistics.median(ratios), "", at_least=0.5)


@row("raid-bitmap")
def bitmap(b):
    """writes with a bitmap whose regions are dirty, beside an array without metadata"""
    dev = b.dmfs().mkdir("rbm", raid(b, "rbm", "raid1", 2, 1))
    plain = b.dmfs().mkdir("rnobm", f"0 {per_disk(b)} raid raid1 2 0 nosync 2 - {leg(b, 0)} - {leg(b, 1)}")
    span, ratios = per_disk(b) * 512, []
    for _ in range(b.rounds):
        b.fio(dev.image, WRITES[1], span)
        ratios.append(b.fio(dev.image, WRITES[0], span) / b.fio(plain.image, WRITES[0], span))
    for d in (dev, plain):
        d.remove()
    b.measure("writes with a bitmap, of those without", statistics.median(ratios), "", at_least=0.9)
