# SPDX-License-Identifier: GPL-2.0-or-later
"""VeraCrypt volumes, made with crypt devices of a mounted dmfs (VeraCrypt User Guide, "Volume Format Specification")."""

import hashlib
import os
import struct
import zlib

from crypt_combos import stream
from mounted import SECTOR, Device, quote

SALT = bytes(range(64))
GROUP = 128 << 10       # of headers, at each end of the file


def encrypt(fs, work, ciphers, key, data, iv_offset=0):
    """data as a cascade of xts ciphers writes it, done by dmfs: the last one named is the outermost."""
    path = os.path.join(work, "layer")
    with open(path, "wb") as f:
        f.truncate(len(data))
    below = quote(path)
    for i in reversed(range(len(ciphers))):
        part = key[i * 64:i * 64 + 64].hex()
        fs.mkdir(f"layer{i}", f"0 {len(data) // SECTOR} crypt {ciphers[i]}-xts-plain64 {part} {iv_offset} {below} 0")
        below = f"layer{i}"
    fs_dev = Device(fs, "layer0")
    fs_dev.pwrite(data, 0, sync=True)
    for i in range(len(ciphers)):
        Device(fs, f"layer{i}").remove()
    with open(path, "rb") as f:
        return f.read()


def header(fs, work, ciphers, passphrase, master, size, offset, pim):
    keys = master.ljust(256, b"\0")
    fields = struct.pack(">4sHHI16xQQQQII", b"VERA", 5, 0x10B, zlib.crc32(keys), 0, size, offset, size, 0, 512)
    head = fields.ljust(188, b"\0")
    plain = head + struct.pack(">I", zlib.crc32(head)) + keys
    derived = hashlib.pbkdf2_hmac("sha512", passphrase, SALT, 15000 + 1000 * pim if pim else 500000,
                                  64 * len(ciphers))
    # the header key of a cascade: all first halves, then all second halves
    n = len(ciphers)
    key = b"".join(derived[i * 32:i * 32 + 32] + derived[(n + i) * 32:(n + i) * 32 + 32] for i in range(n))
    return SALT + encrypt(fs, work, ciphers, key, plain.ljust(512, b"\0"))[:448]


def volume(fs, work, ciphers, passphrase, data, pim=0):
    """The path of a volume that holds data."""
    n = len(ciphers)
    master = stream("master", 64 * n)
    volume_key = b"".join(master[i * 32:i * 32 + 32] + master[(n + i) * 32:(n + i) * 32 + 32] for i in range(n))
    path = os.path.join(work, "vera.hc")
    head = header(fs, work, ciphers, passphrase, master, len(data), GROUP, pim)
    with open(path, "wb") as f:
        f.write(head)
        f.seek(GROUP)
        f.write(encrypt(fs, work, ciphers, volume_key, data, iv_offset=GROUP // SECTOR))
        f.truncate(2 * GROUP + len(data))
    return path
