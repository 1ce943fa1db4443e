# SPDX-License-Identifier: GPL-2.0-or-later
"""snapshot beside the kernel's: lines, status, and exception stores that move between the two."""

import os
import random

import pytest

from mounted import SECTOR, pattern, quote

SIZE = 4096     # sectors of an origin


def test_lines(kernel, fs, backing):
    """Each line meets a COW device whose store the one before may have made."""
    kernel.compare(fs, [
        "0 1000 snapshot $D0 $D1 N 8",
        "0 1000 snapshot $D0 $D1 n 8",
        "0 1000 snapshot $D0 $D1 N 1",
        "0 1000 snapshot $D0 $D1 N 256",
        "0 1000 snapshot $D0 $D1 NO 8",
        "0 1000 snapshot $D0 $D1 N 0",
        "0 1000 snapshot $D0 $D1 N 8 0",
        "0 1000 snapshot $D0 $D1 N 8 1 discard_zeroes_cow",
        "0 1000 snapshot $D0 $D1 N 8 2 discard_zeroes_cow discard_passdown_origin",
        "0 1000 snapshot $D0 $D1 N 8 2 discard_passdown_origin DISCARD_ZEROES_COW",
        "0 1000 snapshot $D0 $D1 N 8 1 discard_passdown_origin",
        "0 1000 snapshot $D0 $D1 N 8 1",
        "0 1000 snapshot $D0 $D1 N 8 3 discard_zeroes_cow discard_passdown_origin x",
        "0 1000 snapshot $D0 $D1 N 8 1 nosuch",
        "0 1000 snapshot $D0 $D1 N 8 x",
        "0 1000 snapshot $D0 $D1 N 7",
        "0 1000 snapshot $D0 $D1 N 24",
        "0 1000 snapshot $D0 $D1 N x",
        "0 1000 snapshot $D0 $D1 N -8",
        "0 1000 snapshot $D0 $D1 N 4194304",
        "0 1000 snapshot $D0 $D1 N",
        "0 1000 snapshot $D0 $D1",
        "0 1000 snapshot $D0",
        "0 1000 snapshot",
        "0 1000 snapshot $D0 $D1 X 8",
        "0 1000 snapshot $D0 $D0 N 8",
        "0 1000 snapshot $D0 /nonexistent N 8",
        "0 1000 snapshot /nonexistent $D1 N 8",
        "0 4097 snapshot $D0 $D1 N 8",
        "0 1000 snapshot $D0 $D1 P 8",
        "0 1000 snapshot $D0 $D1 PO 8",
        "0 1000 snapshot $D0 $D1 po 8",
        "0 1000 snapshot $D0 $D1 Px 8",
        "0 1000 snapshot $D0 $D1 POx 8",
        "0 1000 snapshot $D0 $D1 P 16",             # the store's own chunk size holds
        "0 1000 snapshot $D0 $D1 P 0",
        "0 1000 snapshot $D0 $D2 P 0",              # a new store with the default
        "0 1000 snapshot $D0 $D3 PO 128 1 discard_zeroes_cow",
        "0 1000 snapshot-merge $D0 $D1 P 8",
        "0 1000 snapshot-merge $D0 $D1 PO 8",
        "0 1000 snapshot-merge $D0 $D0 P 8",
        "0 1000 snapshot-merge $D0 $D3 P 8 1 discard_zeroes_cow",
        "0 1000 snapshot-merge $D0 $D1 P",
        "0 1000 snapshot-origin $D0",
        "0 1000 snapshot-origin $D0 0",
        "0 1000 snapshot-origin",
        "0 4097 snapshot-origin $D0",
        "0 1000 snapshot-origin /nonexistent",
    ], [backing(SIZE), backing(SIZE), backing(SIZE), backing(SIZE)])
