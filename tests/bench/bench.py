#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures dmfs beside its peers and says which required ratios hold.

    bench.py --build DIR [--quick] [--only ROW]... [--jobs GLOB] [--rounds N] [--seconds S] [--list]

Rows live in rows_*.py, one file a topic; see benchlib.py.
"""

import argparse
import fnmatch
import glob
import importlib.util
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [here, os.path.join(here, "../lib")]

import benchlib     # noqa: E402
import mounted      # noqa: E402


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--build", default="build", help="the build directory")
    ap.add_argument("--quick", action="store_true", help="one short round: shows that it runs, says nothing else")
    ap.add_argument("--only", action="append", metavar="ROW", help="only the rows that match this glob (may be repeated)")
    ap.add_argument("--jobs", metavar="GLOB", help="only the fio jobs that match, such as '*4k*'")
    ap.add_argument("--rounds", type=int, default=5, help="rounds to take the medians of (default 5)")
    ap.add_argument("--seconds", type=float, default=1.5, help="length of a direct job (default 1.5)")
    ap.add_argument("--json", help="where the numbers go (default bench.json in the build directory)")
    ap.add_argument("--list", action="store_true", help="lists the rows")
    args = ap.parse_args()

    for path in sorted(glob.glob(os.path.join(here, "rows_*.py"))):
        spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if args.list:
        for name, fn in benchlib.ROWS.items():
            print(f"{name:20} {(fn.__doc__ or '').strip().splitlines()[0]}")
        return 0
    rows = {n: fn for n, fn in benchlib.ROWS.items()
            if not args.only or any(fnmatch.fnmatch(n, o) for o in args.only)}
    if not rows:
        ap.error(f"no row matches {' '.join(args.only)}: --list lists them")

    os.environ["DMFS_BUILD"] = os.path.abspath(args.build)
    why = mounted.why_no_mount()
    if why:
        print(f"*** SKIPPED: the whole bench: {why}")
        return 1
    benchlib.program("fio", "fio")
    load = os.getloadavg()[0]
    if load > 0.7:
        print(f"*** The load is {load:.1f}: something else is running, the numbers will be worth little.")
    bench = benchlib.Bench(args.build, args.quick, args.rounds, args.seconds, only_jobs=args.jobs)
    try:
        for name, fn in rows.items():
            bench.row = name
            print(f"\n{name}: {(fn.__doc__ or '').strip().splitlines()[0]}", flush=True)
            try:
                fn(bench)
            except benchlib.Skip as e:
                bench.skip(name, e)
        for name, fn in bench.at_end:
            bench.row = name
            fn(bench)
        good = bench.report(args.json or os.path.join(args.build, "bench.json"))
    finally:
        bench.close()
    return 0 if good or args.quick else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except benchlib.Skip as e:
        sys.exit(f"*** SKIPPED: {e}")
