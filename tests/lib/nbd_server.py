# SPDX-License-Identifier: GPL-2.0-or-later
"""Real NBD servers for tests: nbdkit and qemu-nbd, each on a Unix socket of its own."""

import os
import shutil
import socket
import subprocess
import time


def program(name):
    import pytest           # the bench has use for servers without it
    return shutil.which(name) or pytest.skip(f"no {name}")


class Server:
    """An NBD server on a socket; ends with the test."""

    def __init__(self, argv, sock):
        self.argv, self.sock, self.process = argv, sock, None

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.sock}"

    def start(self):
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        while not self.answers():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.argv}: {self.process.stderr.read().decode()}")
            time.sleep(0.01)
        return self

    def answers(self):
        """Whether somebody listens: the file alone is there a moment before."""
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(self.sock)
                return True
            except OSError:
                return False

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()
            self.process.stderr.close()
            self.process = None
