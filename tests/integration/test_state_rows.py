# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets' rows in STATE by the million: they load in seconds, and a change of one writes one."""

import mmap
import os
import sqlite3
import time

import pytest

from mounted import SECTOR, quote

MILLION = 1_000_000
PAGE = 4096
SECONDS = 120       # a second or two is usual, and minutes if a row cost more the more there are


@pytest.fixture
def state(work):
    return os.path.join(work, "state")


def pages(path):
    with open(path, "rb") as f:
        data = f.read()
    return [data[i:i + PAGE] for i in range(0, len(data), PAGE)]


def pages_changed(path, act):
    before = pages(path)
    act()
    after = pages(path)
    return sum(a != b for a, b in zip(before, after)) + abs(len(after) - len(before))


def test_a_million_bad_blocks(dmfs, state, backing):
    path = backing(8 * MILLION)
    d = dmfs(state=state)
    dev = d.mkdir("dust", f"0 {8 * MILLION} dust {quote(path)} 0 512")
    dev.message("addbadblock 0")
    dev.message("enable")
    few = pages_changed(state, lambda: dev.message("addbadblock 3"))
    d.unmount()
    with sqlite3.connect(state) as db:
        table, begin, name, _, value = db.execute("SELECT * FROM row WHERE name = 'bad-blocks'").fetchone()
        db.execute(f"""INSERT INTO row WITH RECURSIVE bad(block) AS
                       (SELECT 100 UNION ALL SELECT block + 7 FROM bad LIMIT {MILLION - 2})
                       SELECT ?, ?, ?, block + ?, ? FROM bad""", [table, begin, name, -1 << 63, value])
    db.close()

    start = time.monotonic()
    d = dmfs(state=state)
    took = time.monotonic() - start
    dev = d["dust"]
    assert dev.message("countbadblocks") == f"countbadblocks: {MILLION} badblock(s) found\n"
    print(f"a million bad blocks came back in {took:.2f} s, {d.rss_kib() / 1024:.0f} MiB")
    assert took < SECONDS
    with dev.open(os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, SECTOR) as buf:
        assert os.preadv(fd, [buf], SECTOR) == SECTOR
        with pytest.raises(OSError):
            os.preadv(fd, [buf], 107 * SECTOR)

    def messages():
        dev.message("addbadblock 50")
        dev.message("removebadblock 114")

    many = pages_changed(state, messages)
    assert many <= 2 * few + 8, f"{many} pages for two rows of a million, {few} for one of two"
    d.kill()
    d.close()
    dev = dmfs(state=state)["dust"]
    assert dev.message("queryblock 50").endswith("found in badblocklist\n")
    assert dev.message("queryblock 114").endswith("not found in badblocklist\n")


def test_a_million_mappings(dmfs, state, backing):
    path = backing(MILLION)
    d = dmfs(state=state)
    dev = d.mkdir("s", f"0 {MILLION} switch 16 1 0 " + " ".join([f"{quote(path)} 0"] * 16))
    words = "set_region_mappings 0:f" + "".join(f" :{i * i % 16:x}" for i in range(1, MILLION))
    start = time.monotonic()
    dev.write("message", words + "\n", flags=0)
    took = time.monotonic() - start
    print(f"a million mappings were set and stored in {took:.2f} s, {os.path.getsize(state) >> 10} KiB")
    assert took < SECONDS
    assert os.path.getsize(state) < 1 << 20
    changed = pages_changed(state, lambda: dev.message("set_region_mappings 7a120:3"))
    assert changed <= 8, f"{changed} pages for one region"
    before = pages(state)
    d.kill()
    d.close()
    start = time.monotonic()
    d = dmfs(state=state)
    print(f"they came back in {time.monotonic() - start:.2f} s")
    assert pages(state) == before
    assert d["s"].table().startswith(f"0 {MILLION} switch 16 1 0 ")
    assert d["s"].error() == ""
