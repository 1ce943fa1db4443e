# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rows of the bench are made of.

A *row* is a function in a rows_*.py that measures one thing; bench.py finds
and runs them.  A *subject* is something fio can be pointed at: a device of
ours or a peer's file, opened the first time a row wants it and closed at the
end.  compare() runs fio jobs on several subjects in interleaved rounds, so that
whatever else the machine does meets all of them alike, and takes medians.
"""

import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from mounted import Dmfs, quote, unmount, wait_mount
from nbd_server import Server

MIB = 1 << 20
ROWS, SUBJECTS = {}, {}


class Skip(Exception):
    """Raised by a subject or a row that cannot be run here: said loudly, and the rest goes on."""


def row(name):
    def register(fn):
        assert name not in ROWS, name
        ROWS[name] = fn
        return fn
    return register


def subject(name):
    """Decorates a generator: given the Bench, it yields the path of a file or device, and cleans up after."""
    def register(fn):
        assert name not in SUBJECTS, name
        SUBJECTS[name] = contextlib.contextmanager(fn)
        return fn
    return register


@dataclasses.dataclass(frozen=True)
class Job:
    """A fio job.  Buffered ones go through their bytes once, with a cold cache; direct ones run for a time."""
    name: str
    rw: str                 # read, write, randread, randwrite
    bs: int
    depth: int = 1
    direct: bool = True
    span: int = 0           # of the file, 0: all
    engine: str = ""        # fio's; by default libaio with a depth, else psync; "qemu:AIO": qemu-img bench
    threads: int = 1

    @property
    def unit(self):
        return "IOPS" if self.bs < 65536 else "MB/s"


DIRECT_4K = [Job(f"{op} 4k d{d}", f"rand{op}", 4096, d) for d in (1, 16) for op in ("read", "write")]
DIRECT_BIG = [Job("read 128k d8", "randread", 131072, 8), Job("write 128k d8", "randwrite", 131072, 8),
              Job("read 1M", "read", MIB), Job("write 1M", "write", MIB)]
DIRECT = DIRECT_4K + DIRECT_BIG
BUFFERED = [Job("buffered read 4k", "randread", 4096, direct=False), Job("buffered write 4k", "randwrite", 4096, direct=False),
            Job("buffered read 1M", "read", MIB, direct=False), Job("buffered write 1M", "write", MIB, direct=False)]


@dataclasses.dataclass
class Limit:
    """In the jobs whose names match, subject `of` must reach `minimum` times subject `to`."""
    jobs: str
    of: str
    to: str
    minimum: float


class Bench:
    def __init__(self, build, quick=False, rounds=5, seconds=1.5, size=None, only_jobs=None):
        self.build, self.quick = os.path.abspath(build), quick
        self.rounds, self.seconds = (1, 0.4) if quick else (rounds, seconds)
        self.only_jobs = only_jobs
        self.stack = contextlib.ExitStack()
        shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.dir = self.stack.enter_context(_tempdir(shm))
        room = shutil.disk_usage(self.dir).free
        self.size = size or min(512, max(64, room // (16 * MIB))) * MIB
        self.opened, self.unavailable = {}, {}
        self.values, self.ratios, self.measures, self.skipped = [], [], [], []
        self.row, self.at_end = None, []
        self._dmfs = None
        self.side_by_side = False

    # --- what rows use ---------------------------------------------------------

    def dmfs(self):
        """The daemon most subjects share; its memory is measured at the end of it all."""
        if not self._dmfs:
            self._dmfs = self.own_dmfs()
        return self._dmfs

    def own_dmfs(self, **kw):
        """A daemon of its own, until the end of the bench or its close()."""
        d = Dmfs(build=self.build, **kw)
        self.stack.callback(d.close)
        return d

    # The files that subjects beside each other use, and their sizes in parts of `size`.  They are written in turns,
    # a MiB each: which memory a file lies in makes up to a fifth of its speed, and the one written later is the faster.
    SIDE_BY_SIDE = {"linear.img": 1, "stripe0.img": 2, "stripe1.img": 2, "pt.img": 1, "qemu.img": 1, "nbd.img": 1}

    def file(self, name, size=None, filled=True):
        """A backing file in memory, written once so that later writes allocate nothing."""
        path = os.path.join(self.dir, name)
        if os.path.exists(path):
            return path
        if name in self.SIDE_BY_SIDE and not self.side_by_side:
            self.side_by_side = True
            write_in_turns({os.path.join(self.dir, n): self.size // part for n, part in self.SIDE_BY_SIDE.items()})
        elif filled:
            write_in_turns({path: size or self.size})
        else:
            with open(path, "wb") as f:
                f.truncate(size or self.size)
        return path

    def sectors(self):
        return self.size // 512

    def fio(self, path, job, span=None, seconds=None, extra=(), under=()):
        """Runs one job and returns its IOPS or MB/s.  extra: more arguments, of another job in the same run, too.

        under: a command that runs fio.
        """
        span = span or job.span or self.size
        if job.engine.startswith("qemu:"):
            return self.qemu_bench(path, job, span)
        cmd = ["fio", "--name=job", f"--filename={path}", f"--rw={job.rw}", f"--bs={job.bs}", f"--size={span}",
               f"--direct={int(job.direct)}", f"--iodepth={job.depth}", "--output-format=json", "--thread",
               "--gtod_reduce=1", "--randrepeat=0", "--overwrite=1", "--invalidate=1", "--fallocate=none",
               f"--ioengine={job.engine or ('libaio' if job.depth > 1 else 'psync')}"]
        if job.threads > 1:
            cmd += [f"--numjobs={job.threads}", "--group_reporting"]
        if job.direct:
            cmd += ["--time_based", f"--runtime={int((seconds or self.seconds) * 1000)}ms", "--ramp_time=200ms",
                    "--norandommap"]
        else:
            once = span if job.bs >= 65536 else min(span, 64 * MIB)
            cmd += [f"--io_size={once // 8 if self.quick else once}"]
        done = subprocess.run([*under, *cmd, *extra], capture_output=True, text=True, timeout=300, check=False, cwd=self.dir)
        if done.returncode:
            raise Skip(f"fio on {path}: {(done.stderr or done.stdout).strip()[-300:]}")
        result = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        side = result["read" if "read" in job.rw else "write"]
        return side["iops"] if job.unit == "IOPS" else side["bw_bytes"] / 1e6

    def qemu_bench(self, path, job, span):
        """What a virtual machine's disk does: sequential requests, for about as long as a job of fio's."""
        count = int(60000 * self.seconds)
        cmd = [program("qemu-img", "qemu-utils"), "bench", "-t", "none", "-i", job.engine.split(":")[1], "-f", "raw",
               "-d", str(job.depth), "-s", str(job.bs), "-c", str(count), *(["-w"] if "write" in job.rw else []), path]
        assert span >= job.bs
        done = subprocess.run(cmd, capture_output=True, text=True, timeout=300, check=False)
        took = re.search(r"completed in ([0-9.]+) seconds", done.stdout)
        if done.returncode or not took:
            raise Skip(f"qemu-img bench on {path}: {(done.stderr or done.stdout).strip()[-300:]}")
        return count / float(took.group(1))

    def open(self, name):
        """The path of a subject, opened now if it was not; Skip if it cannot be had here."""
        if name in self.unavailable:
            raise Skip(self.unavailable[name])
        if name not in self.opened:
            try:
                self.opened[name] = self.stack.enter_context(SUBJECTS[name](self))
            except (Skip, FileNotFoundError) as e:
                self.unavailable[name] = str(e)
                self.skip(name, e)
                raise Skip(str(e)) from e
        return self.opened[name]

    def skip(self, what, why):
        print(f"\n*** SKIPPED: {what}: {why}\n", flush=True)
        self.skipped.append({"what": what, "why": str(why)})

    def compare(self, subjects, jobs, limits=(), spans=None, shorter=1):
        """Measures every job on every subject, prints a table, checks the limits.

        shorter: so many times as many rounds, each as much shorter: for what hardly differs.
        """
        shorter = 1 if self.quick else shorter
        paths = {}
        for name in subjects:
            with contextlib.suppress(Skip):
                paths[name] = self.open(name)
        if self.only_jobs:
            jobs = [j for j in jobs if fnmatch.fnmatch(j.name, self.only_jobs)]
        spans = spans or {}
        seen = {(j, s): [] for j in jobs for s in paths}
        names = list(paths)
        for turn in range(self.rounds * shorter):
            for job in jobs:
                for i in range(len(names)):
                    name = names[(i + turn) % len(names)]
                    if seen[job, name] is None:
                        continue
                    try:
                        seen[job, name].append(self.fio(paths[name], job, spans.get(name), self.seconds / shorter))
                    except (Skip, subprocess.TimeoutExpired) as e:
                        self.skip(f"{name}, {job.name}", e)
                        seen[job, name] = None
            _progress(f"{self.row}: round {turn + 1} of {self.rounds * shorter}")
        _progress("")
        median = {k: statistics.median(v) for k, v in seen.items() if v}
        for (job, name), value in median.items():
            self.values.append({"row": self.row, "job": job.name, "subject": name, "unit": job.unit, "median": value,
                                "all": seen[job, name]})

        def paired(job, a, b):
            # each round by itself: what slows the machine down for a while slows down both
            return statistics.median(x / y for x, y in zip(seen[job, a], seen[job, b]))

        first, *others = subjects
        lines = [["", *(f"{s}" for s in names), *(f"/ {s}" for s in others if s in paths)]]
        for job in jobs:
            cells = [f"{median[job, s]:,.0f} {job.unit}" if (job, s) in median else "-" for s in names]
            ratio = [f"{paired(job, first, s):.2f}" if (job, first) in median and (job, s) in median
                     else "-" for s in others if s in paths]
            lines.append([job.name, *cells, *ratio])
        _print_table(lines)
        for limit in limits:
            for job in jobs:
                if not fnmatch.fnmatch(job.name, limit.jobs):
                    continue
                if (job, limit.of) not in median or (job, limit.to) not in median:
                    continue
                ratio = paired(job, limit.of, limit.to)
                self.ratios.append({"row": self.row, "job": job.name, "of": limit.of, "to": limit.to, "ratio": ratio,
                                    "minimum": limit.minimum, "pass": ratio >= limit.minimum})
        return median

    def measure(self, name, value, unit, at_most=None, at_least=None):
        """Records a number that is not a fio job's, and what it must not pass."""
        ok = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        self.measures.append({"row": self.row, "name": name, "value": value, "unit": unit, "at_most": at_most,
                              "at_least": at_least, "pass": ok})
        limit = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}" if at_least is not None else ""
        print(f"  {name}: {value:,.4g} {unit}" + (f"  ({limit}: {'pass' if ok else 'FAIL'})" if limit else ""), flush=True)
        return ok

    def beside_cp(self, what, speed, cp, at_least=None):
        """Measures speed() and cp(), both MB/s, in turns; what the first reaches of the second."""
        pairs = [(speed(), cp()) for _ in range(self.rounds)]
        self.measure(what, statistics.median(s for s, _ in pairs), "MB/s")
        self.measure(f"{what}: cp", statistics.median(c for _, c in pairs), "MB/s")
        self.measure(f"{what} / cp", statistics.median(s / c for s, c in pairs), "", at_least=at_least)

    # --- the end -----------------------------------------------------------------

    def report(self, path):
        """Prints the verdict, writes the JSON, and returns whether all limits hold."""
        checked = [r for r in self.ratios] + [m for m in self.measures if m["at_most"] is not None or m["at_least"] is not None]
        if self.ratios:
            print("\nRatios that are required:")
            _print_table([["row", "job", "of", "to", "ratio", "required", ""]] + [
                [r["row"], r["job"], r["of"], r["to"], f"{r['ratio']:.2f}", f"{r['minimum']:.2f}",
                 "pass" if r["pass"] else "FAIL"] for r in self.ratios])
        if self.measures:
            print("\nOther numbers:")
            _print_table([["row", "what", "value", "required", ""]] + [
                [m["row"], m["name"], f"{m['value']:,.4g} {m['unit']}",
                 f"<= {m['at_most']:g}" if m["at_most"] is not None else
                 f">= {m['at_least']:g}" if m["at_least"] is not None else "",
                 ("pass" if m["pass"] else "FAIL") if m["at_most"] is not None or m["at_least"] is not None else ""]
                for m in self.measures])
        for s in self.skipped:
            print(f"SKIPPED: {s['what']}: {s['why']}")
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"quick": self.quick, "rounds": self.rounds, "seconds": self.seconds, "file_size": self.size,
                       "cpus": os.cpu_count(), "kernel": os.uname().release, "values": self.values,
                       "ratios": self.ratios, "measures": self.measures, "skipped": self.skipped}, f, indent=1)
        failed = [c for c in checked if not c["pass"]]
        print(f"\n{len(checked) - len(failed)} of {len(checked)} requirements hold"
              + (f", {len(self.skipped)} things were skipped" if self.skipped else "")
              + (" (--quick: one short round, no verdict)" if self.quick else "") + f"; all numbers are in {path}")
        return not failed

    def close(self):
        self.stack.close()


@contextlib.contextmanager
def _tempdir(where):
    path = tempfile.mkdtemp(prefix="dmfs-bench-", dir=where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print_table(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip(),
              flush=True)


# --- running peers -----------------------------------------------------------------


def program(name, package):
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not path:
        raise Skip(f"no {name} (package {package}; contrib/bench installs it)")
    return path


def write_in_turns(sizes):
    """Makes files of these sizes, by path, all full: what each has of the next MiB of the longest, then the next."""
    longest, block = max(sizes.values()), os.urandom(MIB)
    with contextlib.ExitStack() as stack:
        files = {stack.enter_context(open(path, "wb", buffering=0)): size for path, size in sizes.items()}
        for end in range(MIB, longest + MIB, MIB):
            for f, size in files.items():
                part = min(end, longest) * size // longest - f.tell()
                f.write(block[:part])


def write_all(path, size):
    """Writes a device from begin to end and flushes it, so that all of it is mapped, or copied."""
    with open(path, "r+b", buffering=0) as f:
        block = os.urandom(MIB)
        for _ in range(0, size, MIB):
            f.write(block)
        os.fsync(f.fileno())


def write_zeroes(path, size):
    """A file of zeroes, allocated."""
    with open(path, "wb") as f:
        for _ in range(0, size, MIB):
            f.write(bytes(MIB))
    return path


def cp_speed(bench, source, size, block=MIB):
    """MB/s of a copy of so many bytes, in blocks, into a file that is there."""
    dest = write_zeroes(os.path.join(bench.dir, "cp.img"), size)
    began = time.monotonic()
    subprocess.run(["dd", f"if={source}", f"of={dest}", f"bs={block}", f"count={size // block}", "conv=notrunc", "status=none"],
                   check=True)
    seconds = time.monotonic() - began
    os.unlink(dest)
    return size / seconds / 1e6


def wait_status(dev, done):
    """Waits until done() is true of the words of the device's status: looks after each event, and each second."""
    poller = select.poll()
    with open(dev.file("status"), "rb", buffering=0) as f:
        poller.register(f, select.POLLPRI)
        while True:
            f.seek(0)
            if done(f.read().decode().split()):
                return
            poller.poll(1000)


@contextlib.contextmanager
def served(bench, name, cmd, mountpoint):
    """A peer that mounts something at mountpoint (a directory or a file) while it runs in the foreground."""
    log = os.path.join(bench.dir, f"{name}.log")
    with open(log, "wb") as out:
        process = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        if not wait_mount(mountpoint, process):
            with open(log, encoding="utf-8", errors="replace") as f:
                raise Skip(f"{' '.join(cmd)}: {f.read().strip()[-500:]}")
        yield
    finally:
        unmount(mountpoint)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        unmount(mountpoint, lazy=True)


def qemu_export(b, name, image, *blockdev, objects=()):
    """A FUSE export of qemu-storage-daemon; the last blockdev is called `top`."""
    qsd = program("qemu-storage-daemon", "qemu-system-common")
    mountpoint = os.path.join(b.dir, f"{name}.export")
    with open(mountpoint, "wb"):
        pass
    cmd = [qsd, *(word for o in objects for word in ("--object", o)), "--blockdev", f"driver=file,node-name={'top' if not blockdev else 'file'},filename={image}"]
    for option in blockdev:
        cmd += ["--blockdev", option]
    cmd += ["--export", f"type=fuse,id=e,node-name=top,mountpoint={mountpoint},writable=on"]
    with served(b, name, cmd, mountpoint):
        yield mountpoint


def nbd_fuse(b, name, *nbdkit):
    """nbdkit with these arguments, seen through nbdfuse."""
    fuse, kit = program("nbdfuse", "libnbd-bin"), program("nbdkit", "nbdkit")
    mountpoint = os.path.join(b.dir, f"{name}.nbd")
    with open(mountpoint, "wb"):
        pass
    with served(b, name, [fuse, mountpoint, "[", kit, "--exit-with-parent", *nbdkit, "]"], mountpoint):
        yield mountpoint


def nbdkit(bench, name, path):
    """A server of a file, to be started and killed."""
    sock = os.path.join(bench.dir, f"{name}.sock")
    return Server([program("nbdkit", "nbdkit"), "-f", "-U", sock, "file", path], sock)


def device(bench, name, *lines):
    """A device of the shared daemon, as a subject's path; for `yield from`."""
    dev = bench.dmfs().mkdir(name, *lines)
    yield dev.image
    dev.remove()


def linear_line(bench, path, sectors=None, offset=0):
    return f"0 {sectors or bench.sectors()} linear {quote(path)} {offset}"
