# SPDX-License-Identifier: GPL-2.0-or-later
"""What statistics cost a linear device's I/O."""

from benchlib import DIRECT_4K, Limit, device, linear_line, row, subject


def regions(b, name, *messages):
    for image in device(b, name, linear_line(b, b.file("linear.img"))):
        for m in messages:
            b.dmfs()[name].message(m)
        yield image


@subject("linear, a region of 100 areas")
def one_region(b):
    yield from regions(b, "stats-100", "@stats_create - /100")


@subject("linear, its region deleted")
def none_left(b):
    """No region, as a device is that never had one, after the way through creating and deleting it."""
    yield from regions(b, "stats-0", "@stats_create - /100", "@stats_delete 0")


@row("stats")
def stats(b):
    """statistics: 100 areas, and none any more"""
    b.compare(["linear, a region of 100 areas", "linear, its region deleted", "linear"], DIRECT_4K,
              [Limit("*", "linear, a region of 100 areas", "linear", 0.95),
               Limit("*", "linear, its region deleted", "linear", 0.99)])
