# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of the kernel's keyrings under dmfs-run: cryptsetup's volume keys and tokens, logon keys, verity's signatures."""

import ctypes
import os
import re
import struct

import pytest

from log_server import content
from mounted import quote
from run import FAST, Run, fields, filled

RAW = bytes(range(0x40, 0x60))


@pytest.fixture
def logon(run):
    """logon(NAME, DATA) adds a logon key with keyctl under dmfs-run; removed at the end."""
    made = []

    def add(name, data):
        done = run.raw("keyctl", "padd", "logon", name, "@u", given=data)
        if done.returncode:
            pytest.skip(f"keyctl: {done.stderr}")
        made.append(done.stdout.strip())
        return made[-1]

    yield add
    for key in made:
        run.raw("keyctl", "unlink", key, "@u")


def volume_key(crypt, disk, work):
    """The bytes that must be nowhere."""
    path = os.path.join(work, "volume-key")
    crypt("luksDump", "--dump-volume-key", "--volume-key-file", path, disk)
    key = content(path)
    os.unlink(path)
    return key


def in_table(run, name, digest):
    return re.search(rf" crypt aes-xts-plain64 :64:logon:cryptsetup:[-0-9a-f]{{36}}-d{digest} 0 ", run.fs[name].table())


def test_a_token_opens_resizes_and_resumes(run, crypt, keyring, work):
    keyring("dmfs-test:token", b"sesame")
    disk = run.disk("t.img", 40)
    crypt("luksFormat", "--type", "luks2", *FAST, disk)
    run("cryptsetup", "token", "add", "--key-description", "dmfs-test:token", disk)
    run("cryptsetup", "open", "--token-only", disk, "vol")
    data = filled(run, "vol")
    assert fields(run("cryptsetup", "status", "vol"))["key location"] == "keyring"
    assert in_table(run, "vol", 0)
    run("cryptsetup", "resize", "vol", "--size", "1024")
    assert run.fs["vol"].size() == 1024 * 512 and in_table(run, "vol", 0)
    run("cryptsetup", "resize", "vol")
    run("cryptsetup", "luksSuspend", "vol")
    assert run.fs["vol"].suspended() and " :64:" not in run.fs["vol"].table()
    crypt("luksResume", "vol")
    assert run.fs["vol"].pread(len(data), 0) == data and in_table(run, "vol", 0)
    run("cryptsetup", "close", "vol")
    for how in (["--token-id", "0"], ["--token-type", "luks2-keyring"], []):
        run("cryptsetup", "open", *how, disk, "vol")
        assert run.fs["vol"].pread(len(data), 0) == data
        run("cryptsetup", "close", "vol")
    run("cryptsetup", "token", "add", "--key-description", "dmfs-test:not-there", "--token-id", "1", disk)
    run.fails("cryptsetup", "open", "--token-only", "--token-id", "1", disk, "vol", match="")
    assert not run.fs.devices()


def test_reencryption_while_it_is_open(run, crypt, keyring, work):
    keyring("dmfs-test:token", b"sesame")
    disk = run.disk("r.img", 40)
    crypt("luksFormat", "--type", "luks2", *FAST, disk)
    crypt("open", disk, "vol")
    data = filled(run, "vol")
    old = volume_key(crypt, disk, work)
    crypt("reencrypt", disk, *FAST)
    assert in_table(run, "vol", 1) and run.fs["vol"].pread(len(data), 0) == data
    assert volume_key(crypt, disk, work) != old
    crypt("close", "vol")
    run("cryptsetup", "token", "add", "--key-description", "dmfs-test:token", disk)
    run("cryptsetup", "open", "--token-only", disk, "vol")
    assert run.fs["vol"].pread(len(data), 0) == data


def test_keys_are_told_nowhere(dmfs, tool, backing, work):
    """Not by the table, with keys or without, and not in a file; the state has none either."""
    state = os.path.join(work, "state")
    fs = dmfs(state)
    run = Run(fs, tool("dmfs-run"), work, [backing(40 * 2048, name="s.img")])
    path = os.path.join(work, "pass")
    with open(path, "wb") as f:
        f.write(b"sesame")

    def crypt(*args):
        return run("cryptsetup", "-q", "--key-file", path, *args)

    crypt("luksFormat", "--type", "luks2", *FAST, "/dev/s.img")
    crypt("open", "/dev/s.img", "vol")
    if not in_table(run, "vol", 0):
        pytest.skip("no keyrings here")
    data = filled(run, "vol")
    key = volume_key(crypt, "/dev/s.img", work)
    told = [run("dmsetup", "table", "--showkeys", "vol"), fs["vol"].table(), fs.read("log"), fs["vol"].error()]
    assert " :64:logon:cryptsetup:" in told[0]
    fs.unmount()
    files = [os.path.join(top, name) for top, _, names in os.walk(work) for name in names]
    texts = [t.encode() for t in told] + [content(f) for f in files if not f.endswith(".img") and os.path.isfile(f)]
    for text in texts:
        assert key not in text and key.hex().encode() not in text.lower()
    fs = dmfs(state)
    assert fs["vol"].table() == "" and "key" in fs["vol"].error()
    run = Run(fs, tool("dmfs-run"), work, run.disks)
    run("dmsetup", "remove", "vol")
    crypt("open", "/dev/s.img", "vol")
    assert fs["vol"].pread(len(data), 0) == data


def test_logon_keys(run, logon, work):
    disk = run.disk("l.img", 1)
    made = logon("dmfs-test:logon", RAW)
    assert re.search(r"^user;.*;dmfs-test:logon$", run("keyctl", "rdescribe", made), re.M) is None
    assert re.search(r"^logon;.*;dmfs-test:logon$", run("keyctl", "rdescribe", made), re.M)
    assert run("keyctl", "request", "logon", "dmfs-test:logon").strip() == made
    run.fails("keyctl", "print", made, match="not supported")

    def table(key):
        return f"0 2048 crypt aes-xts-plain64 {key} 0 {disk} 0"

    run("dmsetup", "create", "c", "--table", table(":32:logon:dmfs-test:logon"))
    assert run.fs["c"].table() == f"0 2048 crypt aes-xts-plain64 :32:logon:dmfs-test:logon 0 {quote(run.disks[0])} 0\n"
    data = filled(run, "c")
    run("dmsetup", "load", "c", "--table", table(RAW.hex()))
    run("dmsetup", "resume", "c")
    assert run.fs["c"].pread(len(data), 0) == data
    run("dmsetup", "suspend", "c")
    run("dmsetup", "message", "c", "0", "key wipe")
    run("dmsetup", "message", "c", "0", "key set :32:logon:dmfs-test:logon")
    run("dmsetup", "resume", "c")
    assert run.fs["c"].pread(len(data), 0) == data
    before = run.fs["c"].table()
    for key in (":32:logon:dmfs-test:not-there", ":32:logon:no-prefix", ":16:logon:dmfs-test:logon"):
        run.fails("dmsetup", "load", "c", "--table", table(key), match="not available|Invalid argument")
        assert run.fs["c"].table() == before and run.fs["c"].read("inactive") == ""


def test_it_is_the_key_of_the_program_not_of_the_daemon(run, keyring, work):
    """Both have one of this name; the table is that of who loads it, as with the kernel."""
    disk = run.disk("u.img", 1)
    keyring("dmfs-test:both", bytes(32))
    script = ('keyctl padd user dmfs-test:both @s <"$0" >&2 &&'
              f' dmsetup create c --table "0 2048 crypt aes-xts-plain64 :32:user:dmfs-test:both 0 {disk} 0"')
    path = os.path.join(work, "raw")
    with open(path, "wb") as f:
        f.write(RAW)
    run("keyctl", "session", "-", "sh", "-c", script, path, quiet=False)
    assert " :32:user:dmfs-test:both " in run.fs["c"].table()
    data = filled(run, "c")
    run.fs["c"].load(f"0 2048 crypt aes-xts-plain64 {RAW.hex()} 0 {quote(run.disks[0])} 0")
    assert run.fs["c"].pread(len(data), 0) == data


# --- a container that forbids keyrings -------------------------------------------------------------------

def no_keyrings():
    """As a container's seccomp filter does: EPERM for add_key(2), request_key(2), keyctl(2)."""
    numbers = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[os.uname().machine]
    load, jump, ret = 0x20, 0x15, 0x06
    code = [(load, 0, 0, 0)] + [(jump, len(numbers) - i, 0, nr) for i, nr in enumerate(numbers)]
    code += [(ret, 0, 0, 0x7fff0000), (ret, 0, 0, 0x00050000 | 1)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def test_without_keyrings_the_key_comes_in_the_table(run, crypt, keyring, work):
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("no numbers of system calls for this machine")
    keyring("dmfs-test:token", b"sesame")
    disk = run.disk("n.img", 40)
    forbid = {"preexec_fn": no_keyrings}
    crypt("luksFormat", "--type", "luks2", *FAST, disk, **forbid)
    crypt("open", disk, "vol", **forbid)
    data = filled(run, "vol")
    assert fields(crypt("status", "vol", **forbid))["key location"] == "dm-crypt"
    assert "0" * 128 in run.fs["vol"].table()
    run("cryptsetup", "resize", "vol", "--size", "1024", **forbid)      # it reads the key back from the table
    run("cryptsetup", "resize", "vol", **forbid)
    crypt("reencrypt", disk, *FAST, **forbid)
    assert run.fs["vol"].pread(len(data), 0) == data
    run("cryptsetup", "token", "add", "--key-description", "dmfs-test:token", disk)
    crypt("close", "vol")
    done = run.raw("cryptsetup", "open", "--token-only", disk, "vol", **forbid)
    assert done.returncode != 0 and not run.fs.devices()
    crypt("open", disk, "vol", **forbid)
    assert run.fs["vol"].pread(len(data), 0) == data
