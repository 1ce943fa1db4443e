# SPDX-License-Identifier: GPL-2.0-or-later
"""Userspace dirty logs: servers that are not there, that misbehave, and that answer late."""

import errno
import struct
import threading

import pytest

from log_server import REGION, content, direct, line, wait_status
from mounted import SECTOR, pattern, quote


# --- servers that misbehave --------------------------------------------------------------------------------


def raw(data):
    def send(s, conn, m):
        conn.send(data)
    return send


def answer(**kw):
    def send(s, conn, m):
        s.reply(conn, m, **{"data": s.answer(m), **kw})
    return send


# What a server does instead of answering (CTR and GET_REGION_SIZE), and what the table's writer gets to know
CTR = {
    "refuses": ("CTR", answer(error=-errno.EPERM, data=b""), errno.EPERM, "refused CTR '2048 x 64'"),
    "a positive error": ("CTR", answer(error=5), errno.ETIMEDOUT, "did not answer to CTR"),
    "silence": ("CTR", lambda *_: None, errno.ETIMEDOUT, "did not answer to CTR, 2 times"),
    "too short": ("CTR", raw(b"x" * 159), errno.ETIMEDOUT, "did not answer"),
    "too long": ("CTR", raw(b"\1" * 20000), errno.ETIMEDOUT, "did not answer"),
    "empty": ("CTR", raw(b""), errno.ETIMEDOUT, "did not answer"),
    "another size": ("CTR", answer(size=7), errno.ETIMEDOUT, "did not answer"),
    "another uuid": ("CTR", answer(uuid=b"other"), errno.ETIMEDOUT, "did not answer"),
    "a uuid without end": ("CTR", answer(uuid=b"u" * 129), errno.ETIMEDOUT, "did not answer"),
    "another version": ("CTR", answer(version=4), errno.ETIMEDOUT, "did not answer"),
    "another type": ("CTR", answer(type=99), errno.ETIMEDOUT, "did not answer"),
    "another seq": ("CTR", answer(seq=12345), errno.ETIMEDOUT, "did not answer"),
    "another luid": ("CTR", answer(luid=12345), errno.ETIMEDOUT, "did not answer"),
    "again and again": ("CTR", answer(error=-errno.EAGAIN, data=b""), errno.EAGAIN, "refused|did not"),
    "hangs up": ("CTR", lambda s, conn, m: conn.shutdown(2), errno.ESRCH, "closed the connection"),
    "a device that is not": ("CTR", answer(data=b"/nonexistent\0"), errno.ENOENT, "/nonexistent"),
    "a device without end": ("CTR", answer(data=b"/dev/null"), errno.EINVAL, "does not end"),
    "region size 0": ("GET_REGION_SIZE", answer(data=bytes(8)), errno.EINVAL, "region size 0"),
    "region size 3": ("GET_REGION_SIZE", answer(data=struct.pack("=Q", 3)), errno.EINVAL, "region size 3"),
    "a huge region size": ("GET_REGION_SIZE", answer(data=struct.pack("=Q", 1 << 40)), errno.EINVAL, "region size 1099511627776"),
    "region size in 4 bytes": ("GET_REGION_SIZE", answer(data=bytes(4)), errno.EINVAL, "in 4 bytes"),
}


def test_bad_answers_refuse_the_table(dmfs, server, backing):
    legs = [backing(2048), backing(2048)]
    now = [None, None]

    def twist(s, conn, m):
        if m.name != now[0]:
            return False
        now[1](s, conn, m)
        return True

    s = server(twist=twist)
    dev = dmfs(options=f"log_server={s.socket},log_timeout=0.5").mkdir("m", f"0 2048 linear {quote(legs[0])} 0")
    text = line(legs, 2048, "u x 64") + "\n"
    slow = {"silence"}      # two seconds: the others of its kind together
    for name, (now[0], now[1], code, match) in CTR.items():
        if code == errno.ETIMEDOUT and name not in slow:
            continue
        if code == errno.EAGAIN:
            code = errno.ETIMEDOUT if "did not answer" in str(try_load(dev, text)) else errno.EAGAIN
            continue
        dev.refuse(text, code=code, match=match)
    # the rest sends its nonsense before the right answer, which counts
    now[0] = "CTR"

    def all_nonsense(s, conn, m):
        for name, (_, send, code, _) in CTR.items():
            if code == errno.ETIMEDOUT and name != "silence":
                send(s, conn, m)
        s.reply(conn, m)
        s.reply(conn, m)        # and twice

    now[1] = all_nonsense
    dev.load(text)
    assert dev.table().split()[2] == "mirror"
    for what in ("shorter than its header", "too long", "empty message", "not as long", "another log", "does not end",
                 "version", "type is not known", "late, or was never asked for", "no errno"):
        assert what in dev.mount.read("log"), what
    s.close = lambda close=s.close: close()


def try_load(dev, text):
    try:
        dev.write("table", text)
    except OSError:
        return dev.read("error")
    return ""


def test_no_server(dmfs, backing, work):
    legs = [backing(2048), backing(2048)]
    dev = dmfs(options=f"log_server={work}/nobody").mkdir("m")
    dev.refuse(line(legs, 2048, "u clustered-core 64") + "\n", code=errno.ESRCH, match="userspace log server not found: .*/nobody")


def bad_later(name, send):
    """A server that misbehaves in one kind of request once the mirror is up."""
    armed = threading.Event()

    def twist(s, conn, m):
        if not armed.is_set() or m.name != name:
            return False
        send(s, conn, m)
        return True

    return armed, twist


@pytest.mark.parametrize("name, send, fails", [
    ("IN_SYNC", answer(data=struct.pack("=q", 7)), True),
    ("IN_SYNC", answer(data=b""), True),
    ("IN_SYNC", answer(error=-errno.EIO, data=b""), True),
    ("MARK_REGION", answer(error=-errno.EIO), True),
    ("FLUSH", answer(error=-errno.ENOSPC), True),
    ("FLUSH", answer(data=b"nobody asked"), False),
])
def test_bad_answers_fail_the_write(dmfs, server, backing, name, send, fails):
    """With a reason in the log, and the data of a write that failed is on no leg."""
    legs = [backing(2048), backing(2048)]
    armed, twist = bad_later(name, send)
    s = server(twist=twist)
    fs = dmfs(options=f"log_server={s.socket}")
    dev = fs.mkdir("m", line(legs, 2048, "u x 64"))
    direct(dev, b"a" * 4096, 0)
    armed.set()
    if fails:
        with pytest.raises(OSError) as e:
            direct(dev, b"b" * 4096, 5 * REGION)
        assert e.value.errno == errno.EIO
        assert content(legs[0])[5 * REGION * SECTOR:][:4096] == bytes(4096)
        assert name in fs.read("log") or "flush failed" in fs.read("log")
    else:
        direct(dev, b"b" * 4096, 5 * REGION)
    try:
        direct(dev, b"c" * 4096, 8)         # what is marked goes on
    except OSError:         # on a slow machine it is not marked any more
        assert any(m.name == "CLEAR_REGION" and 0 in m.regions() for m in s.seen)
    else:
        assert direct(dev, bytes(4096), 8, write=False) == b"c" * 4096
    armed.clear()
    direct(dev, b"d" * 4096, 9 * REGION)


def test_lies_about_the_resync(dmfs, server, backing):
    """Regions that are not there, the same one for ever, more in sync than there are: the mirror goes on."""
    legs = [backing(2048, pattern(2048)), backing(2048)]
    lies = iter([struct.pack("=qQ", 1, 1 << 60), struct.pack("=qQ", 1, 32), b"", b"x" * 17, struct.pack("=qQ", 1, 5),
                 struct.pack("=qQ", 1, 5), struct.pack("=qQ", 1, 5)])
    counts = iter([1 << 50, 33])

    def twist(s, conn, m):
        data = next({"GET_RESYNC_WORK": lies, "GET_SYNC_COUNT": counts}.get(m.name, iter(())), None)
        if m.name == "STATUS_INFO":
            data = b"1 bad\n\x1bstatus" + b"x" * 8000
        if data is None:
            return False
        s.reply(conn, m, struct.pack("=Q", data) if isinstance(data, int) else data)
        return True

    s = server(in_sync=False, twist=twist)
    fs = dmfs(options=f"log_server={s.socket}")
    dev = fs.mkdir("m", line(legs, 2048, "u x 64"))
    wait_status(dev, r" 32/32 1 AA 1 bad\?\?statusx+$")
    assert content(legs[0]) == content(legs[1])
    assert "there is no such region" in fs.read("log")


def test_late_and_lost_answers(dmfs, server, backing):
    """Each kind of request goes unanswered once, and the answer comes after the next: sent again, nothing is done twice."""
    sectors = 2048
    legs = [backing(sectors, pattern(sectors)), backing(sectors)]
    lost, due = set(), []

    def twist(s, conn, m):
        while due:
            s.reply(conn, *due.pop())
        if m.name in lost or m.name in ("CTR", "GET_REGION_SIZE", "STATUS_INFO", "GET_SYNC_COUNT"):
            return False
        lost.add(m.name)
        due.append((m, s.answer(m)))
        return True

    s = server(in_sync=False, twist=twist)
    fs = dmfs(options=f"log_server={s.socket},log_timeout=0.5")
    dev = fs.mkdir("m", line(legs, sectors, "u x 64"))
    wait_status(dev, " 32/32 1 AA ")
    s.wait_for(lambda seen: sum(m.name == "CLEAR_REGION" and 5 in m.regions() for m in seen) == 2)
    s.wait_for(lambda seen: seen[-1].name in ("GET_SYNC_COUNT", "STATUS_INFO"))
    data = b"w" * 4096
    direct(dev, data, 5 * REGION)
    assert content(legs[0]) == content(legs[1])
    assert direct(dev, bytes(4096), 5 * REGION, write=False) == data
    assert {"RESUME", "GET_RESYNC_WORK", "IN_SYNC", "MARK_REGION", "FLUSH", "SET_REGION_SYNC"} <= lost
    assert "timed out: retrying" in fs.read("log")
