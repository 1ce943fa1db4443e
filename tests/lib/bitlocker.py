# SPDX-License-Identifier: GPL-2.0-or-later
"""BitLocker volumes, small ones (libbde, "BitLocker Drive Encryption (BDE) format specification").

The data is encrypted with a crypt device of a mounted dmfs; the keys with libgcrypt's AES-CCM.
"""

import ctypes
import hashlib
import os
import struct
import zlib

from crypt_combos import stream
from mounted import SECTOR, Device, quote

METADATA = 64 << 10     # bytes of each copy
CIPHERS = {             # method: cipher, bytes of key, how the key is stored
    0x8000: ("aes-cbc-elephant", 32, lambda k: k[:16] + bytes(16) + k[16:] + bytes(16)),
    0x8001: ("aes-cbc-elephant", 64, bytes),
    0x8002: ("aes-cbc-eboiv", 16, bytes),
    0x8003: ("aes-cbc-eboiv", 32, bytes),
    0x8004: ("aes-xts-plain64", 32, bytes),
    0x8005: ("aes-xts-plain64", 64, bytes),
}
NORMAL = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
ON_WRITE = bytes.fromhex("3b4da89280dd0e4d9e4eb1e3284eaed8")
CLEAR, STARTUP, RECOVERY, PASSPHRASE = 0x0000, 0x0200, 0x0800, 0x2000
RECOVERY_KEY = stream("recovery", 16)
RECOVERY_PASSWORD = "-".join(f"{n * 11:06}" for n in struct.unpack("<8H", RECOVERY_KEY))


def ccm(key, nonce, data):
    """MAC and ciphertext."""
    lib = ctypes.CDLL("libgcrypt.so.20")
    handle, mac, out = ctypes.c_void_p(), ctypes.create_string_buffer(16), ctypes.create_string_buffer(len(data))
    lib.gcry_check_version(None)
    size = ctypes.c_size_t
    lengths = (ctypes.c_uint64 * 3)(len(data), 0, 16)
    for result in (lib.gcry_cipher_open(ctypes.byref(handle), 9, 8, 0),     # AES256, CCM
                   lib.gcry_cipher_setkey(handle, key, size(len(key))),
                   lib.gcry_cipher_setiv(handle, nonce, size(len(nonce))),
                   lib.gcry_cipher_ctl(handle, 69, lengths, size(24)),      # SET_CCM_LENGTHS
                   lib.gcry_cipher_encrypt(handle, out, size(len(data)), data, size(len(data))),
                   lib.gcry_cipher_gettag(handle, mac, size(16))):
        assert result == 0
    lib.gcry_cipher_close(handle)
    return mac.raw + out.raw


def entry(kind, value, content):
    return struct.pack("<HHHH", 8 + len(content), kind, value, 1) + content


def sealed(kind, key, secret, method):
    nonce = stream(f"nonce{len(secret)}{method}", 12)
    return entry(kind, 5, nonce + ccm(key, nonce, struct.pack("<HHII", 12 + len(secret), 1, 1, method) + secret))


def stretch(initial, salt):
    last = bytes(32)
    for i in range(0x100000):
        last = hashlib.sha256(last + initial + salt + struct.pack("<Q", i)).digest()
    return last


def master_key_entry(protection, passphrase, master):
    """And what opens it: (entry, .BEK's content or None)."""
    guid, time, salt = stream(f"guid{protection}", 16), bytes(8), stream(f"salt{protection}", 16)
    salted, key, bek = entry(0, 3, struct.pack("<I", 0x1001) + salt), stream(f"key{protection}", 32), None
    properties = b""
    if protection == PASSPHRASE:
        once = hashlib.sha256(passphrase.encode("utf-16-le")).digest()
        key, properties = stretch(hashlib.sha256(once).digest(), salt), salted
    elif protection == RECOVERY:
        key, properties = stretch(hashlib.sha256(RECOVERY_KEY).digest(), salt), salted
    elif protection == CLEAR:
        properties = entry(0, 1, struct.pack("<I", 0x2002) + key)
    else:
        external = entry(6, 9, guid + time + entry(0, 1, struct.pack("<I", 0x2002) + key))
        size = 48 + len(external)
        bek = struct.pack("<IIII16sII8s", size, 1, 48, size, guid, 1, 0, time) + external
    return entry(2, 8, guid + time + struct.pack("<HH", 1, protection) + properties +
                 sealed(0, key, master, 0x2003)), bek


class Volume:
    """A volume of plain's content in the file path; metadata: the byte offsets of its copies.

    Its first header_bytes bytes are at header_at; what reads as zeroes is so in self.plain.
    """

    def __init__(self, fs, work, *, method=0x8004, sector_size=512, protections=(STARTUP,), passphrase="sesame",
                 size=1 << 20, metadata=(256 << 10, 512 << 10, 928 << 10), header=(320 << 10, 8192), state=4,
                 guid=NORMAL, to_go=False):
        self.cipher, key_len, stored = CIPHERS[method]
        key, master = stream(f"volume{method}", key_len), stream("master", 32)
        entries, self.bek = b"", os.path.join(work, "key.BEK")
        for protection in protections:
            part, bek = master_key_entry(protection, passphrase, master)
            entries += part
            if bek:
                with open(self.bek, "wb") as f:
                    f.write(bek)
        entries += sealed(3, master, stored(key), method) + entry(15, 15, struct.pack("<QQ", *header))
        block_size = (112 + len(entries) + 15) // 16
        block = struct.pack("<8sHHHHQII3QQ", b"-FVE-FS-", block_size, 2, state, state, size, 0, header[1] // SECTOR, *metadata,
                            header[0])
        size_of = 48 + len(entries)
        block += struct.pack("<IIII16sIII", size_of, 1, 48, size_of, stream("guid", 16), 1, method, 0) + bytes(4) + entries
        block = block.ljust(block_size * 16, b"\0")
        self.metadata, self.block = metadata, block
        # offsets in the block, of the keys' nonces, authentication tags and bytes: the first and last of each
        self.sealed = []
        for kind in (0, 3):
            at = next(i for i in range(112, len(block)) if block[i + 2:i + 6] == struct.pack("<HH", kind, 5))
            end = at + struct.unpack_from("<H", block, at)[0]
            self.sealed += [at + 8, at + 19, at + 20, at + 35, at + 36, end - 1]
        block += struct.pack("<HHI", 8, 2, zlib.crc32(block))    # the validation
        boot = bytearray(SECTOR)
        boot[:13] = b"\xeb\x58\x90" + (b"MSWIN4.1" if to_go else b"-FVE-FS-") + struct.pack("<H", sector_size)
        at = 424 if to_go else 160
        boot[at:at + 40] = guid + struct.pack("<3Q", *metadata)
        boot[510:] = b"\x55\xaa"
        self._encrypt(fs, work, key, sector_size, size, metadata, header, bytes(boot), block)

    def _encrypt(self, fs, work, key, sector_size, size, metadata, header, boot, block):
        plain = bytearray(stream(f"{self.cipher}{sector_size}", size))
        at, length = header
        on_disk = bytearray(plain)
        on_disk[at:at + length] = plain[:length]
        for start, count in [(m, METADATA) for m in metadata] + [header]:
            plain[start:start + count] = bytes(count)
        self.path, self.plain = os.path.join(work, "bitlocker.img"), bytes(plain)
        with open(self.path, "wb") as f:
            f.truncate(size)
        options = f"2 iv_large_sectors sector_size:{sector_size}" if sector_size > SECTOR else ""
        fs.mkdir("raw", f"0 {size // SECTOR} crypt {self.cipher} {key.hex()} 0 {quote(self.path)} 0 {options}")
        raw = Device(fs, "raw")
        raw.pwrite(bytes(on_disk), 0, sync=True)
        raw.remove()
        with open(self.path, "r+b") as f:
            f.write(boot)
            for start in metadata:
                f.seek(start)
                f.write(block.ljust(METADATA, b"\0"))

    def damage(self, at):
        """Flips a bit in all copies of the metadata, whose checksums are right again."""
        block = bytearray(self.block)
        block[at] ^= 1
        block += struct.pack("<HHI", 8, 2, zlib.crc32(block))
        with open(self.path, "r+b") as f:
            for start in self.metadata:
                f.seek(start)
                f.write(block)
