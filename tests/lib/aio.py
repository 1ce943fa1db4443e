# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's asynchronous I/O, for requests by the thousand that wait without a thread each."""

import ctypes
import mmap
import os
import platform
import time

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_libc = ctypes.CDLL(None, use_errno=True)
READ, WRITE = 0, 1


class Iocb(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_uint32),
                ("opcode", ctypes.c_uint16), ("prio", ctypes.c_int16), ("fd", ctypes.c_uint32),
                ("buf", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("offset", ctypes.c_int64),
                ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("resfd", ctypes.c_uint32)]


class Event(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("obj", ctypes.c_uint64), ("res", ctypes.c_int64), ("res2", ctypes.c_int64)]


class Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def available():
    return platform.machine() in _NUMBERS


def _call(which, *args):
    done = _libc.syscall(_NUMBERS[platform.machine()][which], *args)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


class Aio:
    """A context for up to `room` requests at a time, each of `size` bytes, all from or to one buffer."""

    def __init__(self, room, size=4096):
        self.context = ctypes.c_ulong(0)
        self.size, self.under_way = size, 0
        self.buf = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buf))
        _call(0, ctypes.c_long(room), ctypes.byref(self.context))

    def submit(self, fd, offsets, op=READ):
        blocks = [Iocb(opcode=op, fd=fd, buf=self.address, bytes=self.size, offset=o) for o in offsets]
        pointers = (ctypes.POINTER(Iocb) * len(blocks))(*(ctypes.pointer(b) for b in blocks))
        done = 0
        while done < len(blocks):
            part = ctypes.cast(ctypes.byref(pointers, done * ctypes.sizeof(ctypes.c_void_p)), ctypes.c_void_p)
            done += _call(3, self.context, ctypes.c_long(len(blocks) - done), part)
        self.under_way += done

    def reap(self, least, deadline=300):
        """At least so many results (bytes, or a negative errno), fewer only at the deadline."""
        results = []
        end = time.monotonic() + deadline
        while len(results) < least and self.under_way:
            left = max(end - time.monotonic(), 0)
            events = (Event * min(self.under_way, 1024))()
            got = _call(2, self.context, ctypes.c_long(1 if left else 0), ctypes.c_long(len(events)), events,
                        ctypes.byref(Timespec(int(left), int(left % 1 * 1e9))))
            self.under_way -= got
            results += [e.res for e in events[:got]]
            if not got and not left:
                break
        return results

    def close(self):
        """Waits for what is under way."""
        if self.context.value:
            _call(1, self.context)
            self.context.value = 0
