# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's device mapper beside ours."""

import types

import pytest

import uml


@pytest.fixture
def kernel(dmfs):
    """kernel.run(SCRIPT, disks=[FILE, ...]) runs bash in a guest with the real device mapper: see tests/lib/uml.py.

    kernel.tables(LINES, disks) loads tables there; kernel.compare(MOUNT, LINES, disks) loads them on both sides and
    asserts that both accept and refuse the same and print the same status and table.
    """
    why = uml.why_not()
    if why:
        pytest.skip(why)
    return types.SimpleNamespace(run=uml.run, tables=uml.tables, tables_dmfs=uml.tables_dmfs, compare=uml.compare)
