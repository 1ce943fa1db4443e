# SPDX-License-Identifier: GPL-2.0-or-later
"""Who asks for I/O in which way: through the tree, through a directory of images, and beside what FUSE can do at least."""

import os

from benchlib import Job, Limit, linear_line, row, subject

FIO = [Job(f"{name} {op}", f"rand{op}", 4096, depth, engine=engine, threads=threads)
       for name, engine, depth, threads in (("io_uring d16", "io_uring", 16, 1), ("io_uring d64", "io_uring", 64, 1),
                                            ("libaio d16", "libaio", 16, 1), ("libaio d64", "libaio", 64, 1),
                                            ("16 threads", "psync", 1, 16))
       for op in ("read", "write")]
VM = [Job(f"VM aio={aio} {op}", op, 4096, 16, engine=f"qemu:{aio}") for aio in ("threads", "native", "io_uring")
      for op in ("read", "write")]


@subject("images")
def images(b):
    """The file that `linear` is on, in a directory of images."""
    path = os.path.join(b.dir, "images")
    os.mkdir(path)
    d = b.own_dmfs(options=f"images={path}")
    dev = d.mkdir("vol", linear_line(b, b.file("linear.img")))
    yield os.path.join(path, "vol")
    dev.remove()
    d.close()


@row("engines")
def engines(b):
    """fio's engines on one file, direct: through -o images=DIR, through the tree (io_uring polls there), passthrough_ll"""
    b.compare(["images", "linear", "passthrough_ll"], FIO, [Limit("*", "images", "passthrough_ll", 0.95)])


@row("vm")
def vm(b):
    """a virtual machine's aio= modes, as qemu-img bench has them"""
    b.compare(["images", "linear", "passthrough_ll"], VM, [Limit("*", "images", "passthrough_ll", 0.95)])
