# SPDX-License-Identifier: GPL-2.0-or-later
"""crypt's authenticated modes above integrity, and LUKS2 volumes of them, beside the kernel's."""

import json
import os
import subprocess


from aead_combos import COMBOS, MODULES, table
from crypt_combos import BYTES, PLAIN, stream
from mounted import SECTOR, Device, quote

SLICE = 2048  # sectors of a disk for each combination
LENGTH = 128
DATA, OTHER = stream("volume", 1 << 20), stream("other", 1 << 20)
ZERO = "00" * 32

# What neither takes, above a device that stores 28 bytes beside sectors of 512.
REFUSED = [
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 2 integrity:28:aead sector_size:4096",
    f"capi:gcm(aes)-plain64 {ZERO} 0 {{}} 0 1 integrity:16:aead",
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 1 integrity:24:aead",
    f"capi:gcm(aes)-plain64 {ZERO} 0 {{}} 0 1 integrity:28:aead",  # a tag of 28 bytes
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0",
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 1 integrity:28:none",
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 1 integrity:0:aead",
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 1 integrity:481:aead",
    f"capi:gcm(aes)-random {ZERO} 0 {{}} 0 1 integrity:28:foo",
    f"capi:gcm(aes)-random {ZERO[:-2]} 0 {{}} 0 1 integrity:28:aead",
    f"aes-gcm-random {ZERO} 0 {{}} 0 1 integrity:28:aead",
    f"aes-xts-plain64 {ZERO} 0 {{}} 0 1 integrity:28:aead",
    f"aes-cbc-random {ZERO} 0 {{}} 0 1 integrity:28:none",
    f"aes-cbc-random {ZERO} 0 {{}} 0",
    f"capi:xts(aes)-random {ZERO}{ZERO} 0 {{}} 0 1 integrity:28:aead",
    f"capi:rfc7539(chacha20,poly1305)-plain64 {ZERO} 0 {{}} 0 1 integrity:28:aead",
    f"capi:authenc(hmac(sha256),xts(aes))-plain64 {ZERO[:48]} 0 {{}} 0 1 integrity:28:aead",
    f"capi:authenc(hmac(sha256),xts(aes))-eboiv {ZERO * 3} 0 {{}} 0 1 integrity:28:aead",
    f"capi:authenc(hmac(sha1),cbc(aes))-plain64 {ZERO}{ZERO[:40]} 0 {{}} 0 1 integrity:28:aead",  # longer than its MAC
]

GUEST = r"""
import json, mmap, os, subprocess, sys
job = json.load(open(sys.argv[1]))
for m in job["modules"]:
    subprocess.run(["modprobe", "-q", m])
plain = open(job["plain"], "rb").read()

def make(lines):
    text = ";".join(f"{name},,,rw," + line.replace(",", "\\,") for name, line in lines)
    done = subprocess.run(["dmsetup", "create", "--concise", text], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"dmsetup: {done.stderr}")

def transfer(name, op):
    fd, buf = os.open(f"/dev/mapper/{name}", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, len(plain))
    try:
        if op == "write":
            buf[:] = plain
            return os.pwrite(fd, buf, 0) == len(plain)
        return os.preadv(fd, [buf], 0) == len(plain) and buf[:] == plain
    except OSError as e:
        return str(e)
    finally:
        os.close(fd)

result = {"read": [], "tables": [], "taken": []}
make(job["ours"])
for i in range(job["combos"]):
    result["read"].append(transfer(f"c{i}", "read"))
subprocess.run(["dmsetup", "remove_all"], check=True)
make(job["theirs"])
for i in range(job["combos"]):
    assert transfer(f"c{i}", "write") is True, i
result["tables"] = subprocess.run(["dmsetup", "table", "--target", "crypt"], capture_output=True, text=True).stdout
for line in job["refused"]:
    if not subprocess.run(["dmsetup", "create", "x", "--table", line], capture_output=True).returncode:
        subprocess.run(["dmsetup", "remove", "x"], check=True)
        result["taken"].append(line)
subprocess.run(["dmsetup", "remove_all"], check=True)
json.dump(result, open(job["result"], "w"))
"""


def stack(disk, dev, journal):
    """Lines of all combinations' devices: a slice of the disk, integrity on it, crypt on that."""
    lines = []
    for i, c in enumerate(COMBOS):
        mode = "J" if i % 2 == journal else "D"
        lines += [(f"s{i}", f"0 {SLICE} linear {disk} {i * SLICE}"),
                  (f"d{i}", f"0 {LENGTH} integrity {dev(f's{i}')} 0 {c.meta} {mode} 2 block_size:{c.sector_size} "
                            "interleave_sectors:256"),
                  (f"c{i}", table(c, dev(f"d{i}"), LENGTH))]
    return lines


def load_all(fs, lines):
    for name, line in lines:
        fs.mkdir(name, line)


def remove_all(fs):
    for i in range(len(COMBOS)):
        for kind in "cds":
            fs[f"{kind}{i}"].remove()


def options_of(line):
    """A line of crypt without its length and the device."""
    words = line.split()
    at = words.index("crypt")
    return words[at:at + 4] + words[at + 5:]


def test_every_combination_both_ways(kernel, fs, backing, work):
    """The kernel reads what dmfs has written, dmfs what the kernel has; the same lines are printed, and refused."""
    size = len(COMBOS) * SLICE
    theirs, ours = backing(size, name="theirs"), backing(size, name="ours")
    load_all(fs, stack(quote(ours), lambda name: name, 0))
    for i in range(len(COMBOS)):
        fs[f"c{i}"].pwrite(PLAIN, 0, sync=True)
    for line in REFUSED:
        fs.mkdir("x").refuse(f"0 8 crypt {line.format('d0')}\n", match="crypt: ")
        fs["x"].remove()
    remove_all(fs)
    paths = {name: os.path.join(work, name) for name in ("plain", "job", "result", "guest.py")}
    dev = "/dev/mapper/{}".format
    with open(paths["plain"], "wb") as f:
        f.write(PLAIN)
    with open(paths["guest.py"], "w", encoding="utf-8") as f:
        f.write(GUEST)
    with open(paths["job"], "w", encoding="utf-8") as f:
        json.dump({"modules": MODULES, "combos": len(COMBOS), "plain": paths["plain"], "result": paths["result"],
                   "theirs": stack("/dev/ubda", dev, 1), "ours": stack("/dev/ubdb", dev, 0),
                   "refused": [f"0 8 crypt {line.format(dev('d0'))}" for line in REFUSED]}, f)
    kernel.run(f"exec /usr/bin/python3 {paths['guest.py']} {paths['job']}", [theirs, ours], timeout=600)
    with open(paths["result"], encoding="utf-8") as f:
        result = json.load(f)
    wrong = [f"the kernel does not read what dmfs wrote ({r}): {c}"
             for c, r in zip(COMBOS, result["read"]) if r is not True]
    wrong += [f"the kernel takes {line}" for line in result["taken"]]
    load_all(fs, stack(quote(theirs), lambda name: name, 1))
    printed = dict(line.split(": ", 1) for line in result["tables"].splitlines())
    for i, c in enumerate(COMBOS):
        with fs[f"c{i}"].open(os.O_RDONLY) as fd:
            try:
                if os.pread(fd, BYTES, 0) != PLAIN:
                    wrong.append(f"dmfs reads something else than what the kernel wrote: {c}")
            except OSError as e:
                wrong.append(f"dmfs does not read what the kernel wrote ({e}): {c}")
        if options_of(printed[f"c{i}"]) != options_of(fs[f"c{i}"].table()):
            wrong.append(f"the kernel prints {printed[f'c{i}']}, dmfs {fs[f'c{i}'].table()}")
    remove_all(fs)
    assert not wrong, "\n".join(wrong)


LUKS = {
    "gcm": "--cipher aes-gcm-random --key-size 256 --integrity aead",
    "chacha": "--cipher chacha20-random --key-size 256 --integrity poly1305 --sector-size 4096",
    "hmac": "--cipher aes-xts-random --key-size 512 --integrity hmac-sha256 --sector-size 512",
    "essiv": "--cipher aes-cbc-essiv:sha256 --key-size 256 --integrity hmac-sha512 --sector-size 512",
}
QUICK = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"


def test_luks_both_ways(kernel, fs, work, tool):
    """cryptsetup and its kernel open, read and write what dmfs-luks has made, and the other way round."""
    tool("cryptsetup")
    for name, content in (("data", DATA), ("other", OTHER), ("key", b"sesame")):
        with open(os.path.join(work, name), "wb") as f:
            f.write(content)

    def luks(command, *args):
        given = ["--key-file", f"{work}/key"] if command in ("open", "format") else []
        done = subprocess.run([tool("dmfs-luks"), "-m", fs.mountpoint, command, *args, *given], capture_output=True,
                              text=True, timeout=600)
        assert done.returncode == 0, f"{command} {args}: {done.stderr}"

    ours, theirs = ([os.path.join(work, f"{side}-{name}.img") for name in LUKS] for side in ("ours", "theirs"))
    for name, path in zip(LUKS, ours):
        later = ["--integrity-wipe-later"] if name == "gcm" else []
        luks("format", path, "--size", "24M", *LUKS[name].split(), *QUICK.split(), *later)
        luks("open", path, "v", "--integrity-no-wipe")
        Device(fs, "v").pwrite(DATA, 0, sync=True)
        luks("close", "v")
    for path in theirs:
        with open(path, "wb") as f:
            f.truncate(24 << 20)
    n = len(LUKS)
    kernel.run(f"""set -e
for m in algif_aead algif_skcipher {" ".join(MODULES)}; do modprobe -q $m || true; done
cryptsetup() {{ command cryptsetup --disable-locks --key-file {work}/key "$@"; }}
cd {work}
""" + "".join(f"""
cryptsetup open $D{i} v
cmp -n {len(DATA)} data /dev/mapper/v
dd if=other of=/dev/mapper/v oflag=direct bs=1M status=none
dmsetup table >{name}.ours
cryptsetup close v
cryptsetup luksFormat -q --type luks2 $D{n + i} {options} {QUICK}
cryptsetup open $D{n + i} v
dd if=data of=/dev/mapper/v oflag=direct bs=1M status=none
dmsetup table >{name}.theirs
cryptsetup close v
""" for i, (name, options) in enumerate(LUKS.items())), ours + theirs, timeout=600)
    for side, paths, content in (("ours", ours, OTHER), ("theirs", theirs, DATA)):
        for name, path in zip(LUKS, paths):
            luks("open", path, "v")
            assert Device(fs, "v").pread(len(content), 0) == content, f"{side}: {name}"
            with open(os.path.join(work, f"{name}.{side}"), encoding="ascii") as f:
                printed = dict(line.split(": ", 1) for line in f.read().splitlines())
            # but for the devices' names, and the key, which theirs has in the keyring
            for device, apart in (("v", (4, 6)), ("v_dif", (3,))):
                mine, kernels = fs[device].table().split(), printed[device].split()
                for i in apart:
                    mine[i] = kernels[i] = ""
                assert mine == kernels, f"{side}: {name}"
            size = Device(fs, "v").size()
            luks("wait-wipe", "v")  # which has nothing to wait for but where neither has wiped it
            assert size == int(fs["v"].table().split()[1]) * SECTOR
            Device(fs, "v").pread(4096, size - 4096)  # the zeroes reach to the end
            luks("close", "v")
