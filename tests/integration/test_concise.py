# SPDX-License-Identifier: GPL-2.0-or-later
"""dm-init strings through `concise` and --create."""

import errno
import hashlib
import os
import signal
import subprocess

import pytest

import mounted
from mounted import memory

TWO = "a,,,rw,0 8 zero,8 8 error;b,uu-1,7,ro,0 16 linear a 0"


def test_all_devices_of_a_string(fs):
    fs.write("concise", TWO)
    assert fs.devices() == ["a", "b"]
    assert fs["a"].table() == "0 8 zero\n8 8 error\n"
    b = fs["b"]
    assert (b.table(), b.read("uuid"), b.read("dev")) == ("0 16 linear a 0\n", "uu-1\n", "0:7\n")
    assert b.read("readonly") == "1\n" and fs["a"].read("readonly") == "0\n"
    assert fs.read("concise") == "a,,0,rw,0 8 zero,8 8 error\nb,uu-1,7,ro,0 16 linear a 0\n"


def test_what_is_printed_loads_again(dmfs, backing):
    path = backing(64, name="odd, name;with\\all")
    first, second = dmfs(), dmfs()
    quoted = path.replace("\\", "\\\\").replace(" ", "\\ ")
    first.mkdir("n,a;m e", f"0 64 linear {quoted} 0")
    text = first.read("concise")
    second.write("concise", text.replace("\n", ";"))
    assert second.read("concise") == text
    assert second["n,a;m e"].table() == first["n,a;m e"].table()


@pytest.mark.parametrize("text", [
    "dm-mod.create=x,,,rw,0 8 zero",
    "x,,,rw,\n  0 4 zero,\n  4 4 zero;\n",
    "  x , , ,rw, 0 8 zero ; ",
])
def test_forms_that_are_taken(fs, text):
    fs.write("concise", text)
    assert fs["x"].size() == 4096


@pytest.mark.parametrize("text, code", [
    ("ok,,,rw,0 8 zero;x,,,rw,0 8 nonesuch", errno.EINVAL),
    ("ok,,,rw,0 8 zero;ok,,,rw,0 8 zero", errno.EEXIST),
    ("ok,,,rw,0 8 zero;x,,,wr,0 8 zero", errno.EINVAL),
    ("ok,,3,rw,0 8 zero;x,,3,rw,0 8 zero", errno.EBUSY),
    ("ok,u,,rw,0 8 zero;x,u,,rw,0 8 zero", errno.EBUSY),
    ("ok,,,rw,0 8 zero;x,,-1,rw,0 8 zero", errno.EINVAL),
    ("ok,,,rw,0 8 zero;x,,,rw", errno.EINVAL),
    ("ok,,,rw,0 8 zero;x,,,rw,", errno.EINVAL),
    ("ok,,,rw,0 8 zero;,,,rw,0 8 zero", errno.EINVAL),
    ("ok,,,rw,0 8 zero;x y,,,rw,0 8 zero", errno.EINVAL),
    ("ok,,,rw,0 8 zero;events,,,rw,0 8 zero", errno.EEXIST),
    ("ok,,,rw,0 8 zero;" + "n" * 128 + ",,,rw,0 8 zero", errno.ENAMETOOLONG),
    ("ok,,,rw,0 8 linear x 0;x,,,rw,0 8 zero", errno.ENOENT),
    ("a,,,rw,0 8 zero;b,,,rw,0 8 linear a 0;c,,,rw,4 8 zero", errno.EINVAL),
])
def test_all_or_none(fs, text, code):
    fs.mkdir("here", "0 8 zero")
    with pytest.raises(OSError) as e:
        fs.write("concise", text)
    assert e.value.errno == code
    assert fs.devices() == ["here"]
    assert fs.read("log").splitlines()[-1].split("device-mapper: ")[1].startswith("concise: ")


def test_a_string_longer_than_one_write(fs):
    text = ";".join(f"device-{i},,,rw,0 8 zero" for i in range(3000))
    assert len(text) > 65536
    with open(fs.path("concise"), "wb", buffering=0) as f:
        data = text.encode()
        for i in range(0, len(data), 4096):
            f.write(data[i:i + 4096])
    assert len(fs.devices()) == 3000


GOOD = ["a,,,rw,0 8 zero;", "b,,,rw,0 4 zero,", "4 4 error;", "n\\", "l,,,rw,0 8 linear a 0"]
BAD = GOOD[:-1] + ["l,,,rw,0 8 nonesuch"]
SHELLS = {
    "redirected once": '{ for line in "$@"; do printf "%s\\n" "$line"; done; } >"$0"',
    "a descriptor kept open": 'exec 3>"$0"; for line in "$@"; do echo "$line" >&3 || s=1; done; exec 3>&- && exit $s',
    "appended": '{ for line in "$@"; do echo "$line"; done; } >>"$0"',
}


def shell(fs, script, lines):
    return subprocess.run(["/bin/bash", "-c", script, fs.path("concise"), *lines], stderr=subprocess.PIPE, timeout=300,
                          check=False)


@pytest.mark.parametrize("how", SHELLS)
def test_a_shell_writes_line_by_line(fs, how):
    """What ends in a separator or a backslash is not complete: all lines are one text, all or none."""
    done = shell(fs, SHELLS[how], BAD)
    assert fs.devices() == [] and (done.returncode or how != "redirected once")
    assert not shell(fs, SHELLS[how], GOOD).returncode
    assert fs.devices() == ["a", "b", "n\nl"]
    assert fs["b"].table() == "0 4 zero\n4 4 error\n" and fs["n\nl"].read("deps") == "a\n"


@pytest.mark.parametrize("end, complete", [
    ("", True), ("\n", True), (" ", True), (";", False), (";\n", False), ("; \t\n\n", False), (",", False),
    ("\\", False), ("\\\n", False), ("\\\\", True), ("\\\\\n", True), ("\\;", True), ("\\,\n", True),
    ("\\\\;", False), ("\\\\,", False), ("\\\\\\;", True),
])
def test_what_is_complete(fs, end, complete):
    """It acts at its write (here it is refused there), or waits and is taken as it is at close."""
    fd = os.open(fs.path("concise"), os.O_WRONLY)
    text = b"x,,,rw,0 8 nonesuch a" + end.encode()
    if complete:
        with pytest.raises(OSError):
            os.write(fd, text)
        os.close(fd)
    else:
        assert os.write(fd, text) == len(text)
        with pytest.raises(OSError):
            os.close(fd)
    assert fs.devices() == []


def test_what_waits_is_taken_at_close(fs):
    fd = os.open(fs.path("concise"), os.O_WRONLY)
    os.write(fd, b"x,,,rw,0 8 zero;\n")
    assert fs.devices() == []
    os.close(fd)
    assert fs.devices() == ["x"]
    # a length that is a multiple of a page only as a whole is none that goes on
    fd = os.open(fs.path("concise"), os.O_WRONLY)
    first = b"y,,,rw,0 8 zero;"
    os.write(fd, first)
    os.write(fd, b"z,,,rw,0 8 zero".rjust(4096 - len(first)))
    assert fs.devices() == ["x", "y", "z"]
    os.close(fd)


def test_a_killed_writer_makes_nothing(fs):
    done = subprocess.run(["/bin/bash", "-c", 'exec >"$0"; echo "x,,,rw,0 8 zero;"; kill -9 $$', fs.path("concise")],
                          timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL and fs.devices() == []


def test_create_on_the_command_line(dmfs):
    d = dmfs(args=["--create", TWO])
    assert d.devices() == ["a", "b"]
    with pytest.raises(RuntimeError, match="nonesuch: unknown target type"):
        dmfs(args=["--create=x,,,rw,0 8 nonesuch"])


@pytest.mark.root
@pytest.mark.skipif("address" in mounted.sanitized() or "thread" in mounted.sanitized(),
                    reason="sanitizers keep freed memory")
@pytest.mark.parametrize("text", [
    "{half},,,rw,0 8 zero,8 8 nonsense",
    "{key}{key}{key},,,rw,0 8 zero",
    "vol,{half},,rw,0 8 zero,8 8 nonsense",
    "vol,{half},,rw,0 8 zero;{half},,,rw,0 8 linear nowhere 0",
    "vol,{key}{key}{key}",
    "vol,u {key},,rw,0 8 zero",
    "vol,,{key},rw,0 8 zero",
    "vol,,,{key},0 8 zero",
    "vol,,,rw {key},0 8 zero",
    "vol,,,rw,{key} 8 zero",
    "vol,,,rw,0 8 {key}",
    "vol,,,rw,0 8 crypt aes-xts-plain64 0 {key} /nowhere 0",
    "vol,,,rw,0 8 zero;other,,,{key}",
])
def test_a_key_in_the_wrong_field(dmfs, text):
    """It is neither in an error text nor in the log, nor left in memory."""
    key = hashlib.sha512(text.encode()).hexdigest()
    d = dmfs()
    with pytest.raises(OSError):
        d.write("concise", text.format(key=key, half=key[:64]))
    assert d.devices() == []
    assert key[:16] not in d.read("log")
    assert not [name for name, part in memory(d.pid) if key[:24].encode() in part]
