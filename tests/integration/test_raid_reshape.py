# SPDX-License-Identifier: GPL-2.0-or-later
"""raid4/5/6 of another shape through the mount: layouts, chunks, more and fewer devices, while it is used."""

import shutil

import pytest

from mounted import SECTOR, pattern, quote
from raid import NONE, change_superblock, check, content, scribble, status, wait_status, wait_whole

GAP = 256
# from, to, chunk before and after, devices before and after
RESHAPES = [("raid5_ls", "raid5_ra", 64, 64, 3, 3), ("raid5_n", "raid5_ls", 64, 64, 4, 4),
            ("raid6_zr", "raid6_nc", 32, 32, 5, 5), ("raid5_ls", "raid5_ls", 64, 128, 4, 4),
            ("raid5_ls", "raid5_ls", 64, 16, 4, 4), ("raid5_ls", "raid5_ls", 64, 64, 3, 4),
            ("raid6_ls_6", "raid6_ls_6", 32, 32, 4, 6), ("raid5_n", "raid5_n", 64, 64, 4, 2),
            SHRINK := ("raid5_ra", "raid5_ra", 64, 64, 4, 3)]


# so that it is seen on a machine that is busy; and so that it comes to its end while it is used
SLOW, STEADY = "min_recovery_rate 1 max_recovery_rate 20", "min_recovery_rate 4000 max_recovery_rate 6000"


def shape(kind, chunk, data, pairs, size, *params):
    words = " ".join(params)
    devs = " ".join(f"{quote(m)} {quote(d)}" for m, d in pairs)
    return f"0 {data * size} raid {kind} {1 + len(words.split())} {chunk} {words} {len(pairs)} {devs}"


def begin_reshape(fs, backing, r, size=3840, name="r"):
    """An array with content and room for a reshape; its files, model, and the lines to begin and to go on with it."""
    old, new, chunk, new_chunk, before, after = r
    parity = 2 if old.startswith("raid6") else 1
    most = max(before, after)
    pairs = [(backing(88, name=f"{name}m{i}"), backing(size + GAP, name=f"{name}d{i}")) for i in range(most)]
    front = after > before      # data is at the offset before, at 0 afterwards
    dev = fs.mkdir(name, shape(old, chunk, before - parity, pairs[:before], size))
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.remove()
    if front:       # as LVM does: the room is put before the data
        for _, data in pairs[:before]:
            old_content = content(data)[:size * SECTOR]
            with open(data, "r+b") as f:
                f.write(bytes(GAP * SECTOR) + old_content)
    params = [f"delta_disks {after - before}"] if after != before else []
    params.append(f"data_offset {GAP}")
    # the kernel takes the length of all the devices given
    length = most - parity
    first = shape(new, new_chunk, length, pairs, size, *params)
    second = shape(new, new_chunk, length, pairs, size)
    return pairs, model, first, second


def reshape_ids(r):
    return f"{r[0]}-{r[1]}-{r[2]}-{r[3]}-{r[4]}-{r[5]}"


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "kernel's"])
def test_spares_join_in_a_reshape(fs, backing, theirs):
    """As LVM does: first a line with devices to be rebuilt that the array has not yet, then the one that adds them."""
    size = 3840
    pairs = [(backing(88, name=f"m{i}"), backing(size + GAP, name=f"d{i}")) for i in range(4)]
    dev = fs.mkdir("r", shape("raid5_ls", 64, 2, pairs[:3], size))
    wait_whole(dev)
    model = scribble(dev, 1)
    dev.refuse(shape("raid5_ls", 64, 3, pairs, size, "rebuild 2", "rebuild 3") + "\n", match="3 devices, 4 are given")
    dev.load(shape("raid5_ls", 64, 3, pairs, size, "rebuild 3"))
    assert status(dev)["disks"] == "3" and status(dev)["health"] == "AAAa" and status(dev)["action"] == "idle"
    assert dev.size() == 3 * size * SECTOR and dev.pread(len(model), 0) == model
    with pytest.raises(OSError):
        dev.pread(4096, len(model) + 64 * SECTOR)
    dev.remove()
    for _, data in pairs[:3]:
        moved = bytes(GAP * SECTOR) + content(data)[:size * SECTOR]
        with open(data, "r+b") as f:
            f.write(moved)
    if theirs:
        shutil.copy(pairs[0][0], pairs[3][0])
        change_superblock(pairs[3][0], index=(1 << 32) - 1, resync=NONE, recovery=0)
    dev = fs.mkdir("r", shape("raid5_ls", 64, 3, pairs, size, "delta_disks 1", f"data_offset {GAP}"))
    dev.load(shape("raid5_ls", 64, 3, pairs, size))
    wait_status(dev, " idle ")
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model and check(dev) == 0


def test_the_room_of_a_reshape_is_taken_away(fs, backing):
    """As LVM does: the devices begin behind the room from now on, and the line says data_offset 0."""
    size, r = 3840, ("raid5_ls", "raid5_n", 64, 64, 3, 3)
    pairs, model, first, second = begin_reshape(fs, backing, r, size)
    dev = fs.mkdir("r", first)
    dev.load(second)
    wait_status(dev, " idle ")
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert status(dev)["offset"] == str(GAP) and dev.pread(len(model), 0) == model
    legs = [fs.mkdir(f"leg{i}", f"0 {size} linear {quote(data)} {GAP}") for i, (_, data) in enumerate(pairs)]
    moved = [(meta, leg.name) for (meta, _), leg in zip(pairs, legs)]
    dev.refuse(shape("raid5_n", 64, 2, moved, size) + "\n", match="too small")
    dev.load(shape("raid5_n", 64, 2, moved, size, "data_offset 0"))
    assert status(dev)["offset"] == "0" and dev.pread(len(model), 0) == model
    scribble(dev, 7, model=model, size=len(model))
    dev.load(shape("raid5_n", 64, 2, moved, size))
    assert dev.pread(len(model), 0) == model and check(dev) == 0


@pytest.mark.parametrize("r", RESHAPES, ids=reshape_ids)
def test_reshape(fs, backing, r):
    """In use all the way; content and parity are right at the end, and after the next load."""
    size = 3840
    old, new, chunk, new_chunk, before, after = r
    parity = 2 if old.startswith("raid6") else 1
    pairs, model, first, second = begin_reshape(fs, backing, r, size)
    held = (min(before, after) - parity) * size * SECTOR
    model = model[:held]
    dev = fs.mkdir("r", first)
    assert status(dev)["action"] == "reshape" and set(status(dev)["health"]) == {"a"}
    assert dev.pread(held, 0) == model
    scribble(dev, 3, model=model, size=held, count=20)
    dev.load(second.replace(f" {new} 1 {new_chunk}", f" {new} 5 {new_chunk} {SLOW}"))
    assert status(dev)["action"] == "reshape"
    for turn in range(3):
        scribble(dev, 10 + turn, model=model, size=held, count=10)
        assert dev.pread(held, 0) == model
    dev.load(second.replace(f" {new} 1 {new_chunk}", f" {new} 5 {new_chunk} {STEADY}"))
    turn = 100
    while status(dev)["action"] == "reshape":
        scribble(dev, turn, model=model, size=held, count=10)
        assert dev.pread(held, 0) == model
        turn += 1
    wait_status(dev, " idle ")
    assert dev.pread(held, 0) == model
    scribble(dev, 5, model=model, size=held)
    dev.suspend()
    dev.resume()
    wait_whole(dev) if after >= before else wait_status(dev, " idle ")
    assert dev.pread(held, 0) == model
    if after > before:
        whole = (after - parity) * size * SECTOR
        dev.pwrite(pattern(64, 3), whole - 64 * SECTOR, sync=True)
        assert dev.pread(64 * SECTOR, whole - 64 * SECTOR) == pattern(64, 3)
    assert check(dev) == 0
    dev.remove()
    dev = fs.mkdir("again", shape(new, new_chunk, after - parity, pairs[:after], size))
    assert status(dev)["action"] == "idle"
    assert status(dev)["offset"] == ("0" if after > before else str(GAP))
    assert dev.pread(held, 0) == model
    assert check(dev) == 0


@pytest.mark.parametrize("r", RESHAPES, ids=reshape_ids)
def test_reshape_goes_on_after_a_kill(dmfs, backing, r):
    size = 3840
    old, new, chunk, new_chunk, before, after = r
    parity = 2 if old.startswith("raid6") else 1
    fs = dmfs()
    pairs, model, first, second = begin_reshape(fs, backing, r, size)
    held = (min(before, after) - parity) * size * SECTOR
    model = model[:held]
    fs.mkdir("r", first).remove()
    slow = second.replace(f" {new} 1 {new_chunk}", f" {new} 5 {new_chunk} {SLOW}")
    for turn in range(3):
        dev = fs.mkdir("r", slow)
        scribble(dev, turn, model=model, size=held, count=20)
        fs.kill()
        fs.wait()
        fs = dmfs()
    dev = fs.mkdir("r", second)
    wait_status(dev, " idle ")
    assert dev.pread(held, 0) == model
    dev.remove()
    dev = fs.mkdir("again", shape(new, new_chunk, after - parity, pairs[:after], size))
    wait_whole(dev)
    assert dev.pread(held, 0) == model
    assert check(dev) == 0


def test_a_device_that_goes_fails_before(fs, backing):
    """What is to be removed is needed until all has moved: that it failed is remembered like of the others."""
    pairs, model, first, second = begin_reshape(fs, backing, SHRINK)
    model = model[:2 * 3840 * SECTOR]
    leg = f"0 {3840 + GAP} linear {quote(pairs[3][1])} 0"
    fs.mkdir("leg", leg)
    dev = fs.mkdir("r", first.replace(quote(pairs[3][1]), "leg"))
    fs["leg"].load(f"0 {3840 + GAP} error")
    scribble(dev, 2, model=model, size=len(model))
    assert status(dev)["health"] == "aaaD"
    dev.remove()
    fs["leg"].load(leg)
    dev = fs.mkdir("r", second.replace(quote(pairs[3][1]), "leg"))
    assert dev.pread(len(model), 0) == model
    wait_status(dev, " idle ")
    assert dev.pread(len(model), 0) == model
    dev.remove()
    dev = fs.mkdir("bad")
    with pytest.raises(OSError):
        dev.load(first)
    dev.load(shape("raid5_ra", 64, 2, pairs[:3], 3840))
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model and check(dev) == 0


def test_a_device_back_during_a_reshape(dmfs, backing):
    """It lacks what was written meanwhile: it is rebuilt when all has moved, and not believed before, also after a kill."""
    fs = dmfs()
    pairs, model, first, second = begin_reshape(fs, backing, RESHAPES[0])
    fs.mkdir("r", first).remove()
    leg = f"0 {3840 + GAP} linear {quote(pairs[1][1])} 0"
    line = second.replace(quote(pairs[1][1]), "leg").replace("raid5_ra 1 64", f"raid5_ra 5 64 {SLOW}")
    fs.mkdir("leg", leg)
    dev = fs.mkdir("r", line)
    fs["leg"].load(f"0 {3840 + GAP} error")
    scribble(dev, 2, model=model, size=len(model))
    assert status(dev)["health"] == "aDa"
    fs["leg"].load(leg)
    dev.suspend()
    dev.resume()
    scribble(dev, 3, model=model, size=len(model))
    assert status(dev)["health"] == "aaa" and status(dev)["action"] == "reshape"
    fs.kill()
    fs.wait()
    fs = dmfs()
    fs.mkdir("leg", leg)
    dev = fs.mkdir("r", line)
    assert dev.pread(len(model), 0) == model
    dev.load(line.replace("max_recovery_rate 20", "max_recovery_rate 0"))
    wait_status(dev, " idle ")
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert dev.pread(len(model), 0) == model
    assert check(dev) == 0


@pytest.mark.parametrize("r", [r for r in RESHAPES if r[5] > r[4]], ids=reshape_ids)
def test_a_reshape_whose_new_devices_do_not_know_of_it(fs, backing, r):
    """The power failed while the superblocks were written for the first time; they join.  Not so later."""
    size = 3840
    old, new, chunk, new_chunk, before, after = r
    pairs, model, first, second = begin_reshape(fs, backing, r, size)
    fs.mkdir("r", first).remove()
    for meta, _ in pairs[before:]:
        with open(meta, "r+b") as f:
            f.write(bytes(4096))
    dev = fs.mkdir("r", second)
    wait_status(dev, " idle ")
    assert dev.pread(len(model), 0) == model
    dev.suspend()
    dev.resume()
    wait_whole(dev)
    assert check(dev) == 0
    dev.remove()
    with open(pairs[before][0], "r+b") as f:
        f.write(bytes(4096))
    dev = fs.mkdir("r")
    with pytest.raises(OSError):
        dev.load(second)
    assert "new device(s) injected" in dev.error()
