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


def keyfile_pool(passphrase, keyfiles):
    """What takes the passphrase's place with key files (user guide, "Keyfiles")."""
    pool = bytearray(128 if len(passphrase) > 64 else 64)
    for content in keyfiles:
        crc, at = 0xFFFFFFFF, 0
        for i in range(min(len(content), 1 << 20)):
            crc = zlib.crc32(content[i:i + 1], crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
            for byte in struct.pack(">I", crc):
                pool[at] = (pool[at] + byte) & 255
                at = (at + 1) % len(pool)
    for i, byte in enumerate(passphrase):
        pool[i] = (pool[i] + byte) & 255
    return bytes(pool)


def header(fs, work, ciphers, passphrase, master, size, offset, pim, digest="sha512", hidden=False, system=False,
           encrypted=None, flags=None):
    keys = master.ljust(256, b"\0")
    fields = struct.pack(">4sHHI16xQQQQII", b"VERA", 5, 0x10B, zlib.crc32(keys), size if hidden else 0, size, offset,
                         size if encrypted is None else encrypted, int(system) if flags is None else flags, 512)
    head = fields.ljust(188, b"\0")
    plain = head + struct.pack(">I", zlib.crc32(head)) + keys
    iterations = 2048 * pim if system else 15000 + 1000 * pim
    derived = hashlib.pbkdf2_hmac(digest, passphrase, SALT, iterations if pim else 200000 if system else 500000,
                                  64 * len(ciphers))
    # the header key of a cascade: all first halves, then all second halves
    n = len(ciphers)
    key = b"".join(derived[i * 32:i * 32 + 32] + derived[(n + i) * 32:(n + i) * 32 + 32] for i in range(n))
    return SALT + encrypt(fs, work, ciphers, key, plain.ljust(512, b"\0"))[:448]


def master_key(name, ciphers):
    """As a header has it (all first halves, then all second halves), and as the layers have it."""
    n, master = len(ciphers), stream(name, 64 * len(ciphers))
    return master, b"".join(master[i * 32:i * 32 + 32] + master[(n + i) * 32:(n + i) * 32 + 32] for i in range(n))


def volume(fs, work, ciphers, passphrase, data, pim=0, digest="sha512", hidden=None):
    """The path of a volume that holds data; hidden: (passphrase, data) of a hidden volume at its end."""
    path = os.path.join(work, "vera.hc")
    end = GROUP + len(data)
    with open(path, "wb") as f:
        f.truncate(end + GROUP)
        inner = [(*hidden, 64 << 10, end - len(hidden[1]))] if hidden else []
        for secret, content, head_at, offset in [(passphrase, data, 0, GROUP), *inner]:
            master, key = master_key(f"master{head_at}", ciphers)
            head = header(fs, work, ciphers, secret, master, len(content), offset, pim, digest, head_at > 0)
            for at in (head_at, end + head_at):     # and the backup
                f.seek(at)
                f.write(head)
            f.seek(offset)
            f.write(encrypt(fs, work, ciphers, key, content, iv_offset=offset // SECTOR))
    return path


def system(fs, work, ciphers, passphrase, data, start=2048, behind=2048, pim=1, whole=False, **header_options):
    """A disk with an encrypted system: the path, and that of an image of the partition alone.

    The partition, of data, begins at sector start; behind it is another, of sectors that all hold the letter P; at the
    end the disk has a sector of B.  whole: the header tells of all of the disk behind the boot loader, 63 sectors.
    """
    path, part = os.path.join(work, "disk"), os.path.join(work, "partition")
    sectors = len(data) // SECTOR
    master, key = master_key("system", ciphers)
    area = 63 if whole else start
    size = (start + sectors + behind - area) * SECTOR if whole else len(data)
    head = header(fs, work, ciphers, passphrase, master, size, area * SECTOR, pim, "sha256", system=True, **header_options)
    crypted = encrypt(fs, work, ciphers, key, data, iv_offset=start)
    table = b"".join(struct.pack("<B3xB3xII", 0x80 * (not i), 7, *where) for i, where in
                     enumerate([(start, sectors), (start + sectors, behind)]))
    with open(path, "wb") as f:
        f.seek(446)
        f.write(table)
        f.seek(510)
        f.write(b"\x55\xaa")
        f.seek(62 * SECTOR)
        f.write(head)
        f.seek(start * SECTOR)
        f.write(crypted + b"P" * (behind - 1) * SECTOR + b"B" * SECTOR)
    with open(part, "wb") as f:
        f.write(crypted)
    return path, part
