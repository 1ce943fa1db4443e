# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: where passphrases come from, and where keys must not go."""

import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading

import pytest

from luks import Luks
from mounted import SECTOR, pattern

KEY = bytes(range(64))      # a volume key that is known


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


@pytest.fixture
def volume(luks, work):
    path = os.path.join(work, "v.img")
    luks.format(path)
    return path


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)    # a shell's background jobs ignore it
                os.execv(command[0], command)
            finally:
                os._exit(127)
        self.text, self.seen = b"", 0       # all that it printed; up to where expect() has looked

    def expect(self, what):
        while what not in self.text[self.seen:]:
            assert select.select([self.fd], [], [], 120)[0], self.text
            self.text += os.read(self.fd, 4096)
        self.seen = self.text.index(what, self.seen) + len(what)

    def say(self, text):
        """When the echo is off, as it is while it asks."""
        while termios.tcgetattr(self.fd)[3] & termios.ECHO:
            select.select([], [], [], 0.01)
        os.write(self.fd, text)

    def end(self):
        try:
            while chunk := os.read(self.fd, 4096):
                self.text += chunk
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_terminal(luks, volume):
    """It asks without echo, three times at most."""
    t = Terminal(luks.program, "-m", luks.fs.mountpoint, "open", volume, "v")
    for answer in (b"wrong\n", b"sesame\n"):
        t.expect(b"Passphrase for " + volume.encode() + b": ")
        t.say(answer)
    assert t.end() == 0 and b"sesame" not in t.text and b"No key is available" in t.text
    assert f"{luks.fs.mountpoint}/v/image".encode() in t.text
    luks.run("close", "v")
    t = Terminal(luks.program, "-m", luks.fs.mountpoint, "open", "--tries", "2", volume, "v")
    for _ in range(2):
        t.expect(b": ")
        t.say(b"wrong\n")
    assert t.end() == 2 and b"no key is available" in t.text


def test_terminal_interrupted(luks, volume):
    """Ctrl-C: the echo is on again, and there is no device."""
    t = Terminal(luks.program, "-m", luks.fs.mountpoint, "open", volume, "v")
    t.expect(b": ")
    t.say(b"\x03")
    assert t.end() == -signal.SIGINT
    assert not luks.fs.devices()


def test_new_passphrase_on_terminal(luks, work):
    path = os.path.join(work, "new.img")
    for second, code in ((b"other\n", 2), (b"new one\n", 0)):
        t = Terminal(luks.program, "format", "-q", "--size", "20M", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
                     path)
        t.expect(b"New passphrase for ")
        t.say(b"new one\n")
        t.expect(b"The same again")
        t.say(second)
        assert t.end() == code, t.text
    luks.open(path, "v", given=b"new one")
    luks.run("close", "v")


def test_pipes_and_key_files(luks, volume, work):
    """A line of a pipe is taken without its newline, a key file as it is."""
    key, newline, fifo = (os.path.join(work, n) for n in ("key", "newline", "fifo"))
    for name, content in ((key, b"sesame"), (newline, b"sesame\n")):
        with open(name, "wb") as f:
            f.write(content)

    def opens(*options, given):
        luks.open(volume, "v", *options, given=given)
        luks.run("close", "v")

    opens(given=b"sesame")
    opens(given=b"sesame\n")
    opens(given=b"sesame\nmore\n")
    opens("--key-file", "-", given=b"sesame")
    opens("--key-file", key, given=b"")
    opens("--key-file", newline, "--keyfile-size", "6", given=b"")
    for options, given in (([], b"sesame \n"), (["--key-file", "-"], b"sesame\n"), (["--key-file", newline], b"")):
        luks.refuse("open", volume, "v", *options, given=given, match="no key is available", code=2)
    luks.refuse("open", volume, "v", "--key-file", os.path.join(work, "none"), match="key file|No such file")
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: open(fifo, "wb", buffering=0).write(b"sesame"))
    writer.start()
    opens("--key-file", fifo, given=b"")
    writer.join()


def readable(work, fs):
    """What others might read."""
    for root, _, names in os.walk(work):
        for name in names:
            with open(os.path.join(root, name), "rb") as f:
                yield os.path.join(root, name), f.read()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as f:
                    yield f"/proc/{pid}/{name}", f.read()
            except OSError:
                pass    # it has gone, or is another's
    for name in ("log", "concise"):
        with open(os.path.join(fs.mountpoint, name), "rb") as f:
            yield name, f.read()


@pytest.mark.alone
def test_volume_key_is_nowhere(luks, work, tool, dmfs):
    """Not in the state database, an argument, the environment, a log or a control file."""
    cryptsetup, path, key = tool("cryptsetup"), os.path.join(work, "v.img"), os.path.join(work, "key")
    state = os.path.join(work, "state.db")
    with open(key, "wb") as f:
        f.write(KEY)
    with open(path, "wb") as f:
        f.truncate(20 << 20)
    subprocess.run([cryptsetup, "luksFormat", "-q", "--disable-locks", "--volume-key-file", key, "--pbkdf", "pbkdf2",
                    "--pbkdf-force-iterations", "1000", path], input=b"sesame", check=True, timeout=300)
    os.unlink(key)
    luks = Luks(luks.program, dmfs(state))
    dev = luks.open(path, "v")
    dev.pwrite(pattern(8, 1), SECTOR, sync=True)
    forms = [KEY, KEY.hex().encode(), KEY.hex().upper().encode(), KEY[:32].hex().encode(), KEY[32:], b"sesame"]
    seen = 0
    for name, content in readable(work, luks.fs):
        seen += name.startswith("/proc/")
        assert not any(form in content for form in forms), name
    assert seen > 1 and os.path.exists(state)
    for name in ("table", "status", "info", "error", "message"):
        assert KEY.hex() not in dev.read(name)
    assert re.search(" 0{128} ", dev.table())
    luks.run("close", "v")


def test_killed_in_the_middle(luks, volume):
    """While it waits for the passphrase: nothing is left, and the next one opens it."""
    process = subprocess.Popen([luks.program, "-m", luks.fs.mountpoint, "open", volume, "v"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"ses")
    process.stdin.flush()
    process.kill()
    process.communicate(timeout=300)
    assert not luks.fs.devices()
    luks.open(volume, "v")
    luks.run("close", "v")
