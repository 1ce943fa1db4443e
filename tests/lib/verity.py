# SPDX-License-Identifier: GPL-2.0-or-later
"""verity's hash tree and its Reed-Solomon parity made by hand, after verity.rst, as a second opinion; and table lines."""

import ctypes
import ctypes.util
import errno
import hashlib
import mmap
import os
import struct

from mounted import SECTOR, quote

BLOCK = 4096

GCRYPT_NAMES = {"rmd160": "RIPEMD160", "wp512": "WHIRLPOOL", "wp384": "WHIRLPOOL", "wp256": "WHIRLPOOL",
                "ripemd160": "RIPEMD160", "whirlpool": "WHIRLPOOL", "streebog256": "STRIBOG256",
                "streebog512": "STRIBOG512", "md4": "MD4", "sm3": "SM3", "blake2b-256": "BLAKE2B_256",
                "blake2b-512": "BLAKE2B_512", "blake2b-160": "BLAKE2B_160", "blake2b-384": "BLAKE2B_384",
                "blake2s-256": "BLAKE2S_256"}
CUT = {"wp384": 48, "wp256": 32}
_gcrypt = None
_crc32c_table = None


def _crc32c(data):
    global _crc32c_table
    if not _crc32c_table:
        _crc32c_table = []
        for n in range(256):
            for _ in range(8):
                n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
            _crc32c_table.append(n)
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ _crc32c_table[(crc ^ byte) & 255]
    return struct.pack("<I", crc ^ 0xffffffff)


def _by_gcrypt(name, data):
    global _gcrypt
    if not _gcrypt:
        _gcrypt = ctypes.CDLL(ctypes.util.find_library("gcrypt") or "libgcrypt.so.20")
        _gcrypt.gcry_check_version(None)
    algo = _gcrypt.gcry_md_map_name(GCRYPT_NAMES[name].encode())
    out = ctypes.create_string_buffer(_gcrypt.gcry_md_get_algo_dlen(algo))
    _gcrypt.gcry_md_hash_buffer(algo, out, data, ctypes.c_size_t(len(data)))
    return out.raw[:CUT.get(name, 64)]


def digest(name, data):
    """The digest of a hash by the kernel's name."""
    if name == "crc32c":
        return _crc32c(data)
    if name in GCRYPT_NAMES:
        return _by_gcrypt(name, data)
    return hashlib.new(name.replace("sha3-", "sha3_"), data).digest()


def power_of_two(n):
    """The largest that is not larger than n."""
    return 1 << (n.bit_length() - 1)


class Tree:
    """The digests of data: area (bytes, root block first), root (hexadecimal), starts (hash block of each level)."""

    def __init__(self, data, version=1, data_block=4096, hash_block=4096, algorithm="sha256", salt=b"\x5a" * 32):
        self.version, self.data_block, self.hash_block = version, data_block, hash_block
        self.algorithm, self.salt, self.blocks = algorithm, salt, len(data) // data_block
        digests = [self.hash(data[i:i + data_block]) for i in range(0, self.blocks * data_block, data_block)]
        self.digest_size = len(digests[0])
        self.per_block = power_of_two(hash_block // self.digest_size)
        self.step = hash_block // self.per_block if version else self.digest_size
        levels = []
        while len(digests) > 1:
            blocks = [self.pack(digests[i:i + self.per_block]) for i in range(0, len(digests), self.per_block)]
            levels.append(blocks)
            digests = [self.hash(b) for b in blocks]
        self.root = digests[0].hex()
        self.levels = levels        # level 0 first
        self.area = b"".join(b"".join(level) for level in reversed(levels))
        self.starts, at = {}, 0     # relative to hash_start
        for n in reversed(range(len(levels))):
            self.starts[n] = at
            at += len(levels[n])

    def hash(self, block):
        return digest(self.algorithm, self.salt + block if self.version else block + self.salt)

    def pack(self, digests):
        block = b"".join(d.ljust(self.step, b"\0") for d in digests)
        return block.ljust(self.hash_block, b"\0")

    def line(self, data, hashes, start=0, options="", root=None, sectors=None, blocks=None, quoted=True):
        """The table line; data, hashes: paths."""
        q = quote if quoted else str
        if sectors is None:
            sectors = self.blocks * self.data_block // SECTOR
        return (f"0 {sectors} verity {self.version} {q(data)} {q(hashes)} {self.data_block} {self.hash_block} "
                f"{self.blocks if blocks is None else blocks} {start} {self.algorithm} {root or self.root} "
                f"{self.salt.hex() or '-'}{' ' if options else ''}{options}")


# --- Reed-Solomon parity -----------------------------------------------------------------------------------------

_power, _log = [1] * 510, [0] * 256
for _i in range(1, 510):
    _x = _power[_i - 1] << 1
    _power[_i] = _x ^ 0x11d if _x & 256 else _x
for _i in range(255):
    _log[_power[_i]] = _i


def _mul(a, b):
    return _power[_log[a] + _log[b]] if a and b else 0


def parity(area, roots, block=4096):
    """The parity of an area of whole blocks, as it lies on the FEC device."""
    generator = [1]
    for i in range(roots):      # the coefficient of the highest power first
        generator = [a ^ _mul(b, _power[i]) for a, b in zip(generator + [0], [0] + generator)]
    data = 255 - roots
    rounds = -(-(len(area) // block) // data)
    area = area.ljust(rounds * data * block, b"\0")
    # times[c] multiplies every byte by the generator's coefficient c
    times = [bytes(_mul(c, b) for b in range(256)) for c in generator[1:]]
    width = rounds * block      # codewords
    rest = [bytes(width)] * roots
    for j in range(data):
        member = area[j * width:(j + 1) * width]
        out = _xor(member, rest[0])
        rest = [_xor(r, out.translate(t)) for r, t in zip(rest[1:] + [bytes(width)], times)]
    whole = bytearray(width * roots)
    for i, r in enumerate(rest):
        whole[i::roots] = r
    return bytes(whole)


def _xor(a, b):
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def fec_options(device, blocks, roots, start=0, more=""):
    words = (f"use_fec_from_device {quote(device)} fec_blocks {blocks} fec_start {start} fec_roots {roots} "
             f"{more}").split(" ")
    words = [w for w in words if w]
    return f"{len(words)} {' '.join(words)}"


class ZeroTree(Tree):
    """The tree of very many blocks of zeroes, of which only the hash blocks above some data blocks are written.

    touched: leaf hash blocks, each for 128 data blocks; path: a sparse file, made here.
    """

    def __init__(self, blocks, touched, path):
        super().__init__(bytes(128 * BLOCK))
        leaf = self.levels[0][0]
        sizes = [-(-blocks // 128)]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 128))
        starts = [sum(sizes[level + 1:]) for level in range(len(sizes))]
        self.blocks = blocks
        with open(path, "wb") as f:
            f.truncate(sum(sizes) * BLOCK)
            for n in touched:
                os.pwrite(f.fileno(), leaf, (starts[0] + n) * BLOCK)
            below = {n: self.hash(leaf) for n in touched}
            for level in range(1, len(sizes)):
                above = {}
                for n, d in below.items():
                    above.setdefault(n // 128, bytearray(BLOCK))[n % 128 * 32:n % 128 * 32 + 32] = d
                for n, content in above.items():
                    os.pwrite(f.fileno(), content, (starts[level] + n) * BLOCK)
                below = {n: self.hash(bytes(content)) for n, content in above.items()}
        self.root = below[0].hex()


# --- images and devices ------------------------------------------------------------------------------------------


def images(backing, default_blocks):
    """make(data=None, blocks=…, ...): a Tree whose data is in tree.data_path and whose digests are in tree.hash_path."""
    count = 0

    def make(data=None, blocks=default_blocks, **kw):
        nonlocal count
        count += 1
        data = data or os.urandom(blocks * BLOCK)
        tree = Tree(data, **kw)
        tree.data = data
        tree.data_path = backing(len(data) // SECTOR, data, name=f"data{count}")
        tree.hash_path = backing(-(-len(tree.area) // SECTOR), tree.area, name=f"hash{count}")
        return tree

    return make


def load(fs, tree, name="v", options="", **kw):
    """A read-only device with the tree's line."""
    dev = fs.mkdir(name)
    dev.write("readonly", "1")
    kw = {"data": getattr(tree, "data_path", None), "hashes": getattr(tree, "hash_path", None)} | kw
    dev.load(tree.line(options=options, **kw))
    return dev


def damage(path, at, data=b"\xff\x00\xff"):
    with open(path, "r+b") as f:
        f.seek(at)
        assert f.read(len(data)) != data
        f.seek(at)
        f.write(data)


def read(dev, at, length=BLOCK):
    """With direct I/O, so that nothing comes from the page cache."""
    buf = mmap.mmap(-1, length)
    fd = os.open(dev.image, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(fd, [buf], at) == length
        return bytes(buf)
    finally:
        os.close(fd)


def fails(dev, at, length=BLOCK):
    """Whether reading gives EIO; any other error is raised."""
    try:
        read(dev, at, length)
    except OSError as e:
        if e.errno == errno.EIO:
            return True
        raise
    return False


def status(dev):
    return dev.status().split()[3]


def log_of(fs, text):
    return [line for line in fs.read("log").splitlines() if text in line]
