# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-luks: VeraCrypt volumes (TrueCrypt's differ in the derivation of the key, and are not made here)."""

import os
import stat
import subprocess

import pytest

import veracrypt
from crypt_combos import stream
from luks import Luks
from mounted import SECTOR, pattern

TCRYPT = ["--type", "tcrypt"]
DATA = pattern(2048, 4)
PIM = ["--veracrypt-pim", "1"]      # which is quick


@pytest.fixture
def luks(fs, tool):
    return Luks(tool("dmfs-luks"), fs)


def check(luks, path, data, *options, given=b"sesame\n", layers=1):
    dev = luks.open(path, "v", *TCRYPT, *options, given=given)
    assert dev.size() == len(data)
    assert dev.pread(len(data), 0) == data
    assert dev.read("uuid").startswith("CRYPT-TCRYPT-")
    assert len(luks.fs.devices()) == layers
    luks.run("close", "v")
    assert not luks.fs.devices()


@pytest.mark.parametrize("ciphers", [["aes"], ["serpent"], ["twofish"], ["camellia"], ["twofish", "aes"],
                                     ["serpent", "camellia"], ["aes", "twofish", "serpent"]])
def test_ciphers(luks, work, ciphers):
    """A cascade is layers of devices, closed as one."""
    path = veracrypt.volume(luks.fs, work, ciphers, b"sesame", DATA, pim=1)
    check(luks, path, DATA, *PIM, layers=len(ciphers))


def test_default_iterations(luks, work):
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA)
    check(luks, path, DATA)
    luks.refuse("open", path, "v", match="has no LUKS or BitLocker header .* use --type tcrypt")
    luks.refuse("open", path, "v", *TCRYPT, "--disable-veracrypt", code=2,
                match=r"no header can be read with this passphrase, or the volume is another .*; or it is of a kind that is not "
                r"supported \(LRW, .*Kuznyechik, Argon2id: see dmfs\(1\)\)")


@pytest.mark.parametrize("digest", ["sha256", "blake2s"])
def test_hashes(luks, work, digest):
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA, pim=1, digest=digest)
    check(luks, path, DATA, *PIM)
    check(luks, path, DATA, *PIM, "--hash", "blake2s-256" if digest == "blake2s" else digest)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--hash", "sha512", match="no header can be read", code=2)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--hash", "md5",
                match="hash 'md5' is not one of TrueCrypt's or VeraCrypt's: sha512, sha256, ")


def test_hidden_and_backup(luks, work):
    hidden = stream("hidden", 64 << 10)
    path = veracrypt.volume(luks.fs, work, ["twofish", "aes"], b"sesame", DATA, pim=1, hidden=(b"deep", hidden))
    outer = DATA[:-len(hidden)]
    dev = luks.open(path, "v", *TCRYPT, *PIM)
    assert dev.size() == len(DATA) and dev.pread(len(outer), 0) == outer
    luks.run("close", "v")
    for options in (["--tcrypt-hidden"], ["--tcrypt-hidden", "--tcrypt-backup"]):
        check(luks, path, hidden, *PIM, *options, given=b"deep\n", layers=2)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--tcrypt-hidden", match="no header can be read", code=2)
    with open(path, "r+b") as f:
        f.write(bytes(512))
    luks.refuse("open", path, "v", *TCRYPT, *PIM, match="no header can be read", code=2)
    luks.open(path, "v", *TCRYPT, *PIM, "--tcrypt-backup")
    luks.run("close", "v")
    os.truncate(path, 200 << 10)
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "--tcrypt-hidden", given=b"deep\n",
                match="too few .* was it cut short")


@pytest.mark.parametrize("passphrase", [b"", b"sesame", b"long" * 20])
def test_key_files(luks, work, passphrase):
    contents = [stream("one", 100), stream("two", 3000)]
    paths = [os.path.join(work, f"key {i}") for i in range(2)]
    for name, content in zip(paths, contents):
        with open(name, "wb") as f:
            f.write(content)
    secret = veracrypt.keyfile_pool(passphrase, contents)
    path = veracrypt.volume(luks.fs, work, ["aes"], secret, DATA, pim=1)
    check(luks, path, DATA, *PIM, "-d", paths[0], "-d", paths[1], given=passphrase + b"\n")
    luks.refuse("open", path, "v", *TCRYPT, *PIM, "-d", paths[0], given=passphrase + b"\n", match="no header", code=2)


def test_spellings_of_hashes(luks, work):
    """cryptsetup's, too."""
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA, pim=1)
    for spelled in ("SHA512", "SHA-512", "sha_512", "sha512"):
        check(luks, path, DATA, *PIM, "--hash", spelled)
    for other in ("stribog512", "streebog", "RIPEMD-160", "blake2s-256", "BLAKE2s", "whirlpool", "sha1"):
        luks.refuse("open", path, "v", *TCRYPT, *PIM, "--hash", other, match="no header can be read", code=2)


# --- encrypted systems ---------------------------------------------------------------------------

SYSTEM = [*TCRYPT, "--tcrypt-system", *PIM]


def head_of(disk, work):
    """The first 63 sectors, as people keep them."""
    path = os.path.join(work, "head")
    with open(disk, "rb") as f, open(path, "wb") as out:
        out.write(f.read(63 * SECTOR))
    return path


@pytest.mark.parametrize("ciphers", [["aes"], ["aes", "twofish", "serpent"]])
def test_system_partition_of_a_disk(luks, work, ciphers):
    """As long as the header says: what is behind it, another partition and a backup of the table, is not touched."""
    disk, _ = veracrypt.system(luks.fs, work, ciphers, b"sesame", DATA)
    with open(disk, "rb") as f:
        before = f.read()
    dev = luks.open(disk, "v", *SYSTEM)
    assert dev.size() == len(DATA) and dev.pread(2 * len(DATA), 0) == DATA
    words = luks.fs[f"v_{len(ciphers) - 1}" if len(ciphers) > 1 else "v"].table().split()
    assert (words[1], words[5], words[7]) == (str(len(DATA) // SECTOR), "2048", "2048")
    with pytest.raises(OSError):
        dev.pwrite(b"x" * SECTOR, len(DATA))
    dev.pwrite(bytes(len(DATA)), 0, sync=True)
    luks.run("close", "v")
    with open(disk, "rb") as f:
        after = f.read()
    end = 2048 * SECTOR + len(DATA)
    assert after[:2048 * SECTOR] == before[:2048 * SECTOR] and after[end:] == before[end:] and after != before
    assert after[end:end + SECTOR] == b"P" * SECTOR and after[-SECTOR:] == b"B" * SECTOR
    assert not luks.fs.devices()


def test_system_partition_beside_the_disks_header(luks, work):
    """Data from 0 on, IVs from the partition's sector on; by the disk, or its first 63 sectors."""
    disk, part = veracrypt.system(luks.fs, work, ["aes"], b"sesame", DATA)
    for header in (disk, head_of(disk, work)):
        dev = luks.open(part, "v", *SYSTEM, "--header", header)
        assert dev.pread(2 * len(DATA), 0) == DATA
        words = dev.table().split()
        assert (words[1], words[5], words[7]) == (str(len(DATA) // SECTOR), "2048", "0")
        luks.run("close", "v")
    with open(part, "ab") as f:
        f.write(b"P" * 8192)    # more than the partition
    dev = luks.open(part, "v", *SYSTEM, "--header", disk)
    assert dev.size() == len(DATA)
    luks.run("close", "v")
    os.truncate(part, len(DATA) - SECTOR)
    luks.refuse("open", part, "v", *SYSTEM, "--header", disk,
                match="too few for data of 2048 from sector 0 on: was it cut short")
    os.truncate(disk, 2048 * SECTOR + len(DATA) - 1)
    luks.refuse("open", disk, "v", *SYSTEM, match="too few for data of 2048 from sector 2048 on: was it cut short")


def test_disk_taken_for_its_partition(luks, work):
    """With --header, the file is the partition: a disk is refused, by its header or what is at its place."""
    disk, _ = veracrypt.system(luks.fs, work, ["aes"], b"sesame", DATA, behind=4096)
    with open(disk, "rb") as f:
        before = f.read()
    soft = os.path.join(work, "soft")
    os.symlink(disk, soft)
    luks.refuse("open", disk, "v", *SYSTEM, "--header", disk, match="within its own header, which ends at byte 32256")
    luks.refuse("open", soft, "v", *SYSTEM, "--header", disk, match="within its own header, which ends at byte 32256")
    luks.refuse("open", disk, "v", *SYSTEM, "--header", head_of(disk, work),
                match="has the very header of .* at byte 31744")
    with open(disk, "rb") as f:
        assert f.read() == before


def test_system_that_is_encrypted_in_part(luks, work):
    disk, part = veracrypt.system(luks.fs, work, ["aes"], b"sesame", DATA, encrypted=len(DATA) // 2)
    luks.refuse("open", disk, "v", *SYSTEM,
                match=f"only {len(DATA) // 2} of its {len(DATA)} bytes are encrypted: let TrueCrypt or")
    luks.refuse("open", part, "v", *SYSTEM, "--header", disk, match="or open it with -r")
    dev = luks.open(disk, "v", *SYSTEM, "-r")
    assert dev.pread(len(DATA), 0) == DATA
    luks.run("close", "v")


def test_whole_disk_system(luks, work):
    """Encrypted is all behind the boot loader; IVs count from the disk's begin."""
    disk, part = veracrypt.system(luks.fs, work, ["aes"], b"sesame", DATA, whole=True)
    dev = luks.open(disk, "v", *SYSTEM)
    assert dev.table().split()[5:8:2] == ["63", "63"]
    assert dev.size() == os.stat(disk).st_size - 63 * SECTOR
    assert dev.pread(len(DATA), (2048 - 63) * SECTOR) == DATA
    luks.run("close", "v")
    luks.refuse("open", part, "v", *SYSTEM, "--header", disk, match="too few for data")


@pytest.fixture
def partition(work, loop, tool):
    """partition(DEVICE, NUMBER, START, SECTORS): a node of one, whether or not this kernel reads partition tables."""
    made = []

    def make(device, number, start, sectors):
        name, path = os.path.basename(device), os.path.join(work, f"p{number}")
        subprocess.run([tool("addpart"), device, str(number), str(start), str(sectors)], check=True, timeout=300)
        made.append((device, str(number)))
        with open(f"/sys/block/{name}/{name}p{number}/dev", encoding="ascii") as f:
            os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(*map(int, f.read().split(":"))))
        try:
            os.close(os.open(path, os.O_RDONLY))
        except OSError as e:
            pytest.skip(f"nodes of block devices in {work}: {e}")
        return path

    yield make
    for device, number in made:
        subprocess.run([tool("delpart"), device, number], timeout=300, check=False)


@pytest.mark.root
@pytest.mark.parametrize("whole", [False, True])
def test_system_on_block_devices(luks, work, loop, partition, whole):
    """A partition's node tells where it starts; its header is on its disk."""
    disk, part = veracrypt.system(luks.fs, work, ["aes"], b"sesame", DATA, whole=whole)
    device = loop(disk)
    first, second = (partition(device, i, 2048 * i, 2048) for i in (1, 2))
    for path, options in ((first, []), (first, ["--header", disk]), (first, ["--header", device]), (part, ["--header", first])):
        dev = luks.open(path, "v", *SYSTEM, *options)
        words = dev.table().split()
        assert (words[1], words[5], words[7]) == (str(len(DATA) // SECTOR), "2048", "0")
        assert dev.pread(2 * len(DATA), 0) == DATA
        luks.run("close", "v")
    if whole:
        luks.open(second, "v", *SYSTEM)
        luks.run("close", "v")
    else:
        luks.refuse("open", second, "v", *SYSTEM,
                    match="the partition starts at sector 4096 of its disk, but what is encrypted are "
                    "sectors 2048 to 4095")


def test_hidden_beside_its_outer_volume(luks, work):
    """Both at once would write the same sectors."""
    path = veracrypt.volume(luks.fs, work, ["aes"], b"sesame", DATA, pim=1, hidden=(b"deep", stream("hidden", 64 << 10)))
    luks.open(path, "v", *TCRYPT, *PIM)
    luks.refuse("open", path, "w", *TCRYPT, *PIM, "--tcrypt-hidden", given=b"deep\n",
                match="is in use: .*/v writes to it", code=5)
    luks.run("close", "v")
    luks.open(path, "v", *TCRYPT, *PIM, "--tcrypt-hidden", given=b"deep\n")
    luks.refuse("open", path, "w", *TCRYPT, *PIM, match="is in use: .*/v writes to it", code=5)
    luks.run("close", "v")
