# SPDX-License-Identifier: GPL-2.0-or-later
"""STATE: what survives an unmount, a killed daemon, and what is refused."""

import hashlib
import os
import resource
import sqlite3
import threading
import time

import pytest

from mounted import quote


@pytest.fixture
def state(work):
    return os.path.join(work, "state")


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def make_set(d, backing):
    low = d.mkdir("low", f"0 1000 linear {backing(1000, name='file')} 0")
    high = d.mkdir("high", "0 500 linear low 0", "500 8 error")
    high.load("0 16 zero", to="inactive")
    high.write("uuid", "the-uuid\n")
    d.write("control", "create numbered 77\n")
    ro = d.mkdir("ro")
    ro.write("readonly", "1\n")
    ro.load("0 100 linear low 0")
    os.chmod(high.image, 0o640)
    os.rename(low.path, d.path("lowest"))


def everything(d):
    out = {}
    for name in d.devices():
        dev = d[name]
        out[name] = [dev.read(f) for f in ("table", "inactive", "uuid", "dev", "readonly", "error")]
        out[name].append(os.stat(dev.image).st_mode)
        out[name].append(dev.size())
    return out


def test_deferred_removes(dmfs, state):
    """One that has happened is stored, the wish for one is not."""
    d = dmfs(state=state)
    d.mkdir("base", "0 8 zero")
    d.mkdir("top", "0 8 linear base 0")
    d.mkdir("other", "0 8 zero")
    d.mkdir("user", "0 8 linear other 0")
    for name in "base", "other":
        d.write("control", f"remove {name} deferred\n")
    d["top"].remove()
    assert d.devices() == ["other", "user"]
    d.kill()
    d.wait()
    d.close()
    e = dmfs(state=state)
    assert e.devices() == ["other", "user"]
    assert "DEFERRED" not in e["other"].read("info")
    e["user"].remove()
    assert e.devices() == ["other"]


@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_devices_come_back(dmfs, state, backing, end):
    d = dmfs(state=state)
    make_set(d, backing)
    before = everything(d)
    assert before["high"][0].startswith("0 500 linear lowest 0\n")
    if end == "kill":
        d.kill()
        d.wait()
        d.close()
    else:
        assert d.unmount() == 0
    e = dmfs(state=state)
    assert everything(e) == before
    with pytest.raises(OSError):
        os.open(e["ro"].image, os.O_RDWR)


@pytest.mark.parametrize("limit", [0, 4096, 16384])
def test_what_cannot_be_saved_has_not_happened(dmfs, state, backing, limit):
    """STATE cannot grow any more: every call that changes what is kept fails, and nothing has changed."""
    d = dmfs(state=state)
    make_set(d, backing)
    d.mkdir("dust", f"0 64 dust {backing(64, name='dust-file')} 0 512").message("addbadblock 3")
    high = d["high"]
    big = "".join(f"{i * 8} 8 error\n" for i in range(20000)) # of more pages than the file has free
    calls = {
        "table": lambda: high.write("table", big),
        "inactive": lambda: high.write("inactive", big),
        "clear": lambda: high.write("inactive", ""),
        "resume": lambda: high.write("suspend", "0\n"),
        "message": lambda: d["dust"].message("addbadblock 9"),
        "uuid": lambda: d["lowest"].write("uuid", "another\n"),
        "readonly": lambda: high.write("readonly", "1\n"),
        "chmod": lambda: os.chmod(high.image, 0o604),
        "rename": lambda: os.rename(high.path, d.path("higher")),
        "mkdir": lambda: d.mkdir("new"),
        "create": lambda: d.write("control", "create new 99\n"),
        "rmdir": lambda: high.remove(),
        "concise": lambda: d.write("concise", "new,,,rw," + big.replace("\n", ",").rstrip(",")),
    }
    before = everything(d)
    suffer = ("table", "inactive", "concise") if limit == 16384 else tuple(calls)
    resource.prlimit(d.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for what in suffer:
        with pytest.raises(OSError):
            calls[what]()
        now = everything(d)
        assert {k: [v[:5], v[6:]] for k, v in now.items()} == {k: [v[:5], v[6:]] for k, v in before.items()}, what
        assert "9" not in d["dust"].message("listbadblocks")
    d.kill()
    d.wait()
    d.close()
    d = dmfs(state=state)
    assert everything(d) == before
    assert d["dust"].message("listbadblocks") == "3\n"
    high = d["high"]
    for what in ("resume", "uuid", "chmod", "rename", "mkdir"): # there is room again
        calls[what]()
    assert "higher" in d.devices() and "new" in d.devices()


def test_what_is_removed_stays_away(dmfs, state):
    d = dmfs(state=state)
    d.mkdir("a", "0 8 zero")
    d.mkdir("b", "0 8 zero").load("0 9 zero", to="inactive")
    d["a"].remove()
    d["b"].write("inactive", "")
    d.unmount()
    e = dmfs(state=state)
    assert e.devices() == ["b"]
    assert e["b"].inactive() == ""


def test_a_device_that_cannot_come_back_says_why_and_is_not_lost(dmfs, state, backing):
    path = backing(64)
    d = dmfs(state=state)
    d.mkdir("low", f"0 64 linear {path} 0")
    d.mkdir("high", "0 64 linear low 0")
    d.mkdir("other", "0 8 zero")
    d.unmount()
    os.rename(path, path + ".away")
    d = dmfs(state=state)
    assert d["low"].table() == d["high"].table() == ""
    assert path in d["low"].error()
    assert "too small" in d["high"].error()
    assert d["other"].table() == "0 8 zero\n"
    os.rename(d["low"].path, d.path("lower"))
    d.unmount()
    os.rename(path + ".away", path)
    d = dmfs(state=state)
    assert d["lower"].table() == f"0 64 linear {path} 0\n"
    assert d["high"].table() == "0 64 linear lower 0\n"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_it_is_the_owners_alone(dmfs, state, umask):
    """The database holds names, paths and bad blocks; its journal too."""
    before = os.umask(umask)
    try:
        d = dmfs(state=state)
    finally:
        os.umask(before)
    d.mkdir("v", "0 8 zero")
    assert {name: os.stat(os.path.join(os.path.dirname(state), name)).st_mode & 0o7777
            for name in os.listdir(os.path.dirname(state))} == {"state": 0o600, "state-journal": 0o600}


def test_a_second_daemon_is_refused(dmfs, state):
    d = dmfs(state=state)
    d.mkdir("v", "0 8 zero")
    with pytest.raises(RuntimeError, match="in use by another daemon"):
        dmfs(state=state)
    d.mkdir("w")
    d.unmount()
    assert dmfs(state=state).devices() == ["v", "w"]


def bad_text(path):
    with open(path, "w", encoding="ascii") as f:
        f.write("this is no database\n" * 100)


def bad_short(path):
    with open(path, "wb") as f:
        f.write(b"SQLite format 3\0")


def bad_foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()


def bad_newer(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA application_id=1684891251")
        db.execute("PRAGMA user_version=99")
        db.execute("CREATE TABLE t (x)")
    db.close()


def bad_tables(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA application_id=1684891251")
        db.execute("PRAGMA user_version=1")
        db.execute("CREATE TABLE device (x)")
    db.close()


@pytest.mark.parametrize("make, text", [
    (bad_text, "not a state database"), (bad_short, "not a state database"), (bad_foreign, "not a state database"),
    (bad_newer, "newer dmfs"), (bad_tables, "damaged"),
])
def test_a_file_that_is_no_state_is_left_alone(dmfs, state, make, text):
    make(state)
    before = digest(state)
    with pytest.raises(RuntimeError, match=text):
        dmfs(state=state)
    assert digest(state) == before
    assert os.listdir(os.path.dirname(state)) == ["state"]


def test_a_damaged_database_is_left_alone(dmfs, state):
    d = dmfs(state=state)
    d.write("concise", ";".join(f"d{i},,,rw,0 8 zero" for i in range(300)))
    d.unmount()
    with open(state, "r+b") as f:
        f.seek(8192)
        f.write(os.urandom(8192))
    before = digest(state)
    with pytest.raises(RuntimeError, match="damaged"):
        dmfs(state=state)
    assert digest(state) == before


def test_hostile_rows_do_no_harm(dmfs, state):
    d = dmfs(state=state)
    d.mkdir("good", "0 8 zero")
    d.unmount()
    with sqlite3.connect(state) as db:
        row = list(db.execute("SELECT * FROM device").fetchone())
        for i, (name, table) in enumerate([("a/b", "0 8 zero\n"), ("events", "0 8 zero\n"), ("loop", "0 8 linear 0:13 0\n"),
                                           ("big", "0 18446744073709551615 zero\n"), ("nul", "0 8 ze\0ro\n"),
                                           ("junk", "\\\\\n \\")], 11):
            db.execute(f"INSERT INTO device VALUES ({','.join('?' * len(row))})",
                       [i, name] + row[2:4] + [table] + row[5:])
        db.execute(f"INSERT INTO device VALUES ({','.join('?' * len(row))})", [-5, "minus"] + row[2:])
        db.execute(f"INSERT INTO device VALUES ({','.join('?' * len(row))})", [30, "uuid", "u" * 129] + row[3:])
    db.close()
    d = dmfs(state=state)
    assert d["good"].table() == "0 8 zero\n"
    assert "a/b" not in d.devices() and "uuid" not in d.devices()
    for name in ("loop", "big", "junk"):
        assert d[name].table() == "" and d[name].error()


def test_a_hostile_word(dmfs, state):
    """A word of 100 MB is refused at a limit that is told, and stays out of the log; a megabyte is still looked at."""
    d = dmfs(state=state)
    for name in "good", "huge", "large", "name", "uuid":
        d.mkdir(name, "0 8 zero")
    d.unmount()
    with sqlite3.connect(state) as db:
        db.execute("UPDATE device SET live=? WHERE name='huge'", ["0 8 zero " + "x" * 100_000_000])
        db.execute("UPDATE device SET live=? WHERE name='large'", ["0 8 zero " + "\\x" * 500_000])
        db.execute("UPDATE device SET name=? WHERE name='name'", ["n" * 10_000_000])
        db.execute("UPDATE device SET uuid=? WHERE name='uuid'", ["u" * 10_000_000])
    db.close()
    d = dmfs(state=state)
    assert d.devices() == ["good", "huge", "large"]
    assert d["huge"].error() == "0: a word of its table has 100000000 bytes, 1048576 are the most\n"
    assert d["huge"].table() == "" and "zero: " in d["large"].error()
    assert len(d.read("log")) < 10000
    assert d["good"].table() == "0 8 zero\n"


@pytest.mark.parametrize("rounds", [6])
def test_killed_at_any_moment_it_is_the_old_or_the_new(dmfs, state, rounds):
    """Devices change without pause while the daemon is killed; what came back must be what was last done, or next."""
    for i in range(rounds):
        d = dmfs(state=state)
        known = {name: d[name].table() for name in d.devices()}
        doing = [dict(known)]

        def work():
            n = 0
            try:
                while True:
                    n += 1
                    name, lines = f"d{n % 5}", f"0 {n} zero\n"
                    now = dict(doing[-1])
                    if n % 11 == 0 and name in now:
                        del now[name]
                        doing.append(now)
                        d[name].remove()
                        continue
                    if name not in now:
                        now[name] = ""
                        doing.append(dict(now))
                        d.mkdir(name)
                    now[name] = lines
                    doing.append(dict(now))
                    d[name].load(lines.strip())
            except OSError:
                pass

        t = threading.Thread(target=work)
        t.start()
        while len(doing) < 20 + 13 * i and t.is_alive():
            t.join(0.001)
        d.kill()
        t.join(300)
        d.close()
        e = dmfs(state=state)
        back = {name: e[name].table() for name in e.devices()}
        assert back in doing[-2:], f"neither the last state nor the one before: {back}"
        e.unmount()


def test_a_killed_concise_is_there_as_a_whole_or_not_at_all(dmfs, state):
    """The daemon is killed while texts of many devices are written."""
    text = ";".join(f"{{0}}-{i},uuid-{{0}}-{i},,rw,0 8 zero,8 {8 + i} error" for i in range(100))
    for moment in range(4):
        d = dmfs(state=state)
        written = []

        def work():
            try:
                while True:
                    d.write("concise", text.format(f"c{moment}-{len(written)}"))
                    written.append(True)
            except OSError:
                pass

        t = threading.Thread(target=work)
        t.start()
        while len(written) < 2 + moment and t.is_alive():
            t.join(0.001)
        d.kill()
        t.join(300)
        d.close()
        d = dmfs(state=state)
        sizes = {}
        for name in d.devices():
            sizes[name.rsplit("-", 1)[0]] = sizes.get(name.rsplit("-", 1)[0], 0) + 1
        assert len(written) <= len(sizes) <= len(written) + 1, sizes
        assert set(sizes.values()) == {100}, sizes
        for name in d.devices()[::37]:
            assert d[name].table().startswith("0 8 zero\n8 ") and d[name].read("uuid") == f"uuid-{name}\n"
        d.write("control", "".join(f"remove {name}\n" for name in d.devices()))
        d.unmount()


def test_names_and_minors_that_go_round_are_stored_for_the_right_device(dmfs, state):
    """Threads take the names and minors that others give up at this moment: the state is what was last there."""
    d = dmfs(state=state)
    over = threading.Event()

    def work(me):
        while not over.is_set():
            for old, new in ((f"mine{me}", "shared"), ("shared", f"mine{me}")):
                try:
                    os.rename(d.path(old), d.path(new))
                except OSError:
                    pass
            for act in (lambda: d.mkdir(f"new{me}", f"0 {8 + me} zero"), lambda: d[f"new{me}"].remove()):
                try:
                    act()
                except OSError:
                    pass

    for me in range(6):
        d.mkdir(f"mine{me}")
    threads = [threading.Thread(target=work, args=[me]) for me in range(6)]
    for t in threads:
        t.start()
    threads[0].join(1)
    over.set()
    for t in threads:
        t.join(300)
    before = {name: (d[name].table(), d[name].read("dev")) for name in d.devices()}
    assert len(before) >= 6
    d.kill()
    d.close()
    d = dmfs(state=state)
    assert {name: (d[name].table(), d[name].read("dev")) for name in d.devices()} == before


def test_none_means_no_state(dmfs, work):
    d = dmfs(state="none")
    d.mkdir("v", "0 8 zero")
    d.unmount()
    assert os.listdir(work) == []
    assert not os.path.exists("/none")


STACKS, HIGH = 2000, 5


def test_ten_thousand_devices_come_back_in_seconds(dmfs, state, backing):
    """Stacks, stored with the highest device first; and one more change costs no more than with a few devices."""
    path = backing(8 * STACKS)
    d = dmfs(state=state)
    d.mkdir("model", f"0 8 linear {quote(path)} 0")
    d.unmount()
    with sqlite3.connect(state) as db:
        model = list(db.execute("SELECT * FROM device").fetchone())
        model[4] = None
        rows = []
        for i in range(STACKS):
            for level in range(HIGH):
                minor = 1 + i * HIGH + HIGH - 1 - level
                line = f"0 8 linear 0:{minor + 1} 0\n" if level else f"0 8 linear {quote(path)} {8 * i}\n"
                rows.append([minor, f"s{i}-{level}", f"uuid-{minor}", model[3], line, minor, *model[6:]])
        db.executemany(f"INSERT INTO device VALUES ({','.join('?' * len(model))})", rows)
    db.close()
    start = time.monotonic()
    d = dmfs(state=state)
    took = time.monotonic() - start
    print(f"{len(rows)} devices came back in {took:.2f} s, {d.rss_kib() / 1024:.0f} MiB")
    assert took < 120      # some seconds; minutes if each cost more than the one before
    assert len(d.devices()) == len(rows) + 1
    assert not d.read("log")
    for i in (0, 777, STACKS - 1):
        top = d[f"s{i}-{HIGH - 1}"]
        assert top.table() == f"0 8 linear s{i}-{HIGH - 2} 0\n"
        top.pwrite(b"%-512d" % i, 0, sync=True)
        with open(path, "rb") as f:
            assert os.pread(f.fileno(), 512, i * 4096) == b"%-512d" % i
    top = d[f"s5-{HIGH - 1}"]
    top.load("0 8 zero")
    top.remove()
    start = time.monotonic()
    assert d.unmount() == 0
    print(f"unmounted in {time.monotonic() - start:.2f} s")
