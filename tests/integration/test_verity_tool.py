# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-verity and veritysetup: an image made by either verifies with the other, and opens here."""

import errno
import os
import re
import struct
import subprocess

import pytest

from mounted import SECTOR, quote
from verity import BLOCK, Tree, damage, digest, parity, read, status

BLOCKS = 600


class Tool:
    def __init__(self, program, fs, work):
        self.program, self.fs, self.work = program, fs, work

    def run(self, *args):
        return subprocess.run([self.program, *map(str, args)], capture_output=True, text=True, timeout=300, cwd=self.work,
                              env=os.environ | {"DMFS_MOUNT": self.fs.mountpoint, "LC_ALL": "C"}, check=False)

    def ok(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def refuses(self, *args, code=1, match=""):
        done = self.run(*args)
        assert done.returncode == code, f"{args}: exit {done.returncode}: {done.stdout}{done.stderr}"
        assert re.search(match, done.stderr), done.stderr
        return done.stderr


@pytest.fixture
def ours(fs, work, tool):
    return Tool(tool("dmfs-verity"), fs, work)


@pytest.fixture
def theirs(fs, work, tool):
    return Tool(tool("veritysetup"), fs, work)


@pytest.fixture
def data(work):
    content = os.urandom(BLOCKS * BLOCK)
    with open(os.path.join(work, "data"), "wb") as f:
        f.write(content)
    return content


def root_of(text):
    return re.search(r"Root hash:\s+([0-9a-f]+)", text).group(1)


COMBINATIONS = [
    "", "--hash sha512", "--hash sha1 --format 0", "--data-block-size 512 --hash-block-size 512 --salt -",
    "--data-block-size 1024 --hash-block-size 4096 --salt " + "ab" * 256, "--data-block-size 4096 --hash-block-size 1024",
    "--data-blocks 321", "--hash-offset 8192", "--hash-offset 512 --hash sha384",
    "--no-superblock --salt aabb", "--no-superblock --hash-offset 40960 --format 0 --salt 00 --hash sha224",
    "--fec-device fec", "--fec-device fec --fec-roots 24 --fec-offset 8192", "--no-superblock --salt 77 --fec-device fec --fec-roots 5",
]


@pytest.mark.parametrize("options", COMBINATIONS)
def test_either_makes_it_both_take_it(ours, theirs, data, options, fs):
    """Made with the same options the images are the same, but for what is random."""
    words = options.split()
    roots = {}
    for maker, hashes in ((ours, "h-ours"), (theirs, "h-theirs")):
        own = [w.replace("fec", f"fec-{hashes}") if w == "fec" else w for w in words]
        out = maker.ok("format", "data", hashes, *own)
        roots[hashes] = root_of(out)
        needed = own if "--no-superblock" in own else [w for n, w in enumerate(own) if any(
            x in (own[n], own[n - 1]) for x in ("--hash-offset", "--fec-device", "--fec-roots", "--fec-offset"))]
        assert maker.ok("verify", "data", hashes, *needed, roots[hashes]) == ""
        other = theirs if maker is ours else ours
        other.ok("verify", "data", hashes, *needed, roots[hashes])
        assert ours.ok("open", "data", hashes, hashes, *needed, roots[hashes]) == f"{fs.path(hashes, 'image')}\n"
        dev = fs[hashes]
        size = dev.size()
        assert size in (len(data), 321 * BLOCK) and dev.pread(size, 0) == data[:size]
        if "--fec-device" in own:
            assert " use_fec_from_device " in dev.table()
            damage(f"{ours.work}/data", 100 * BLOCK, b"damage")
            damage(f"{ours.work}/{hashes}", (3 if "--no-superblock" in own else 4) * BLOCK, os.urandom(BLOCK))
            assert read(dev, 100 * BLOCK) == data[100 * BLOCK:101 * BLOCK]
            assert dev.pread(size, 0) == data and status(dev) == "V"
            ours.ok("verify", "data", hashes, *needed, roots[hashes])
            damage(f"{ours.work}/data", 100 * BLOCK, data[100 * BLOCK:100 * BLOCK + 6])
        ours.ok("close", hashes)
        if "--no-superblock" not in own:
            dump = [w for w in needed]
            strip = lambda text: [line for line in text.splitlines() if "header information" not in line]     # noqa: E731
            assert strip(ours.ok("dump", hashes, *dump)) == strip(theirs.ok("dump", hashes, *dump))
    if "--salt" in words and "-" not in words:
        assert roots["h-ours"] == roots["h-theirs"]


def test_everything_in_one_file(ours, theirs, work, fs):
    """Data, superblock, tree, parity behind each other: parity covers what lies between tree and parity."""
    content = os.urandom(BLOCKS * BLOCK)
    for maker in (ours, theirs):
        path = os.path.join(work, "all")
        with open(path, "wb") as f:
            f.write(content)
            f.truncate((BLOCKS + 40) * BLOCK)
        words = ("--data-blocks", BLOCKS, "--hash-offset", BLOCKS * BLOCK, "--fec-device", "all", "--fec-offset",
                 (BLOCKS + 20) * BLOCK, "--fec-roots", 4)
        root = root_of(maker.ok("format", "all", "all", *words))
        needed = words[2:]
        for one in (ours, theirs):
            one.ok("verify", "all", "all", *needed, root)
        ours.ok("open", "all", "v", "all", *needed, root)
        dev = fs["v"]
        for n in (3, 77, BLOCKS + 2, BLOCKS + 19):
            damage(path, n * BLOCK + 5)
        assert dev.pread(len(content) + 1, 0) == content
        assert status(dev) == "V"
        assert f" fec_blocks {BLOCKS + 19} fec_start {BLOCKS + 20} fec_roots 4" in dev.table()
        ours.ok("close", "v")


def test_the_line(ours, data, fs, work):
    root = root_of(ours.ok("format", "data", "hashes", "--salt", "0123", "--uuid", "11111111-2222-3333-4444-555555555555",
                           "--fec-device", "fec", "--root-hash-file", "root"))
    with open(os.path.join(work, "root"), encoding="ascii") as f:
        assert f.read() == root
    ours.ok("open", "data", "v", "hashes", "--root-hash-file", "root", "--fec-device", "fec", "--ignore-zero-blocks",
            "--check-at-most-once", "--panic-on-corruption", "--use-tasklets")
    dev = fs["v"]
    tree = Tree(data, salt=b"\x01\x23")
    q = {n: quote(os.path.join(work, n)) for n in ("data", "hashes", "fec")}
    assert tree.root == root
    assert dev.table() == (
        f"0 {BLOCKS * 8} verity 1 {q['data']} {q['hashes']} 4096 4096 {BLOCKS} 1 sha256 {root} 0123 12 panic_on_corruption "
        f"ignore_zero_blocks check_at_most_once try_verify_in_tasklet use_fec_from_device {q['fec']} "
        f"fec_blocks {BLOCKS + 6} fec_start 0 fec_roots 2\n")
    assert dev.read("uuid").strip() == "CRYPT-VERITY-11111111222233334444555555555555-v"
    assert dev.read("readonly") == "1\n"
    with open(os.path.join(work, "hashes"), "rb") as f:
        assert f.read()[BLOCK:] == tree.area
    with open(os.path.join(work, "fec"), "rb") as f:
        assert f.read() == parity(data + tree.area, 2)
    assert ours.ok("status", "v") == f"""{dev.image} is active.
  type:        VERITY
  status:      verified
  hash type:   1
  data block:  4096
  hash block:  4096
  hash name:   sha256
  salt:        0123
  data device: {work}/data
  size:        {BLOCKS * 8} sectors
  mode:        readonly
  hash device: {work}/hashes
  hash offset: 8 sectors
  FEC device:  {work}/fec
  FEC offset:  0 sectors
  FEC roots:   2
  root hash:   {root}
  flags:       panic_on_corruption ignore_zero_blocks check_at_most_once try_verify_in_tasklet """.rstrip(" ") + " \n"
    ours.ok("close", "v")
    assert "v" not in fs.devices()
    ours.refuses("status", "v", code=4)


def test_verify_says_which(ours, theirs, data, work):
    root = root_of(ours.ok("format", "data", "hashes"))
    for n in (5, 6, 400):
        damage(os.path.join(work, "data"), n * BLOCK)
    text = ours.refuses("verify", "data", "hashes", root, code=2,
                        match="verification failed: of 600 data blocks 3 cannot be read")
    assert [f"data block {n} is corrupted" in text for n in (5, 6, 7, 400)] == [True, True, False, True]
    theirs.refuses("verify", "data", "hashes", root, code=2)
    damage(os.path.join(work, "hashes"), 2 * BLOCK)
    ours.refuses("verify", "data", "hashes", root, code=2, match="128 cannot be read|129|130")
    ours.refuses("verify", "data", "hashes", "00" * 32, code=2, match="600 cannot be read")


def test_verify_mends(ours, data, work):
    root = root_of(ours.ok("format", "data", "hashes", "--fec-device", "fec"))
    damage(os.path.join(work, "data"), 9 * BLOCK)
    done = ours.run("verify", "data", "hashes", "--fec-device", "fec", root)
    assert done.returncode == 0 and "1 blocks or more were mended" in done.stderr
    ours.refuses("verify", "data", "hashes", root, code=2)


def test_a_signature(dmfs, data, work, tool, sh):
    sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert.pem -days 2 -subj /CN=x 2>/dev/null")
    fs = dmfs(options=f"verity-keys={work}/cert.pem")
    ours = Tool(tool("dmfs-verity"), fs, work)
    root = root_of(ours.ok("format", "data", "hashes", "--root-hash-file", "root"))
    sh("openssl smime -sign -nocerts -noattr -binary -in root -inkey key -signer cert.pem -outform DER -out sig")
    ours.refuses("open", "data", "v", "hashes", root, match="takes signed root hashes only")
    ours.ok("open", "data", "v", "hashes", root, "--root-hash-signature", "sig")
    assert fs["v"].pread(len(data), 0) == data
    assert f"root hash signature: {work}/sig" in ours.ok("status", "v")


def test_close(ours, data, fs, work):
    root = root_of(ours.ok("format", "data", "hashes"))
    ours.refuses("close", "v", code=4, match="there is no device v")
    fs.mkdir("w", f"0 8 linear {quote(os.path.join(work, 'data'))} 0")
    ours.refuses("close", "w", match="was not opened by dmfs-verity")
    ours.ok("open", "data", "v", "hashes", root)
    ours.refuses("open", "data", "v", "hashes", root, code=5, match="there is a device v already")
    dev = fs["v"]
    with dev.held():
        ours.refuses("close", "v", code=5, match="v is in use")
        ours.ok("close", "v", "--deferred")
        assert "DEFERRED REMOVE" in dev.read("info")
        ours.ok("close", "v", "--cancel-deferred")
        assert "DEFERRED REMOVE" not in dev.read("info")
        ours.ok("close", "v", "--deferred")
    for _ in range(200):
        if "v" not in fs.devices():
            break
        os.sched_yield()
    else:
        with pytest.raises(FileNotFoundError):      # the last close is told to the daemon by the kernel, when it likes
            os.stat(dev.path)


def test_what_is_refused(ours, data, work):
    root = root_of(ours.ok("format", "data", "hashes"))
    for args, code, why in (
            ((), 1, "a command is needed"), (("rot13",), 1, "a command is needed"), (("open", "data"), 1, "usage: dmfs-verity open"),
            (("open", "data", "v", "hashes"), 1, "the root hash is needed"),
            (("open", "data", "v", "hashes", "abcd"), 1, "64 hexadecimal digits are needed for sha256"),
            (("open", "data", "v", "hashes", root, "--root-hash-file", "x"), 1, "one of them is enough"),
            (("open", "data", ".v", "hashes", root), 1, "device name '.v'"),
            (("open", "nope", "v", "hashes", root), 1, "nope: No such file"),
            (("open", "data", "v", "nope", root), 4, "nope: No such file"),
            (("open", "data", "v", "data", root), 1, "there is no verity superblock"),
            (("open", "data", "v", "/dev/null", root), 4, "is neither a file nor a block device"),
            (("open", "data", "v", "hashes", root, "--hash-offset", "100"), 1, "a multiple of 512"),
            (("open", "data", "v", "hashes", root, "--hash", "sha1"), 1, "only for format, and where there is no superblock"),
            (("open", "data", "v", "hashes", root, "--deferred"), 1, "only for close"),
            (("open", "data", "v", "hashes", root, "--fec-roots", "2"), 1, "only with --fec-device"),
            (("open", "data", "v", "hashes", root, "--fec-device", "data", "--fec-roots", "25"), 1, "--fec-roots=25: 2 to 24"),
            (("open", "data", "v", "hashes", root, "--fec-device", "data", "--fec-offset", "100"), 1, "a multiple of the block size"),
            (("open", "data", "v", "hashes", root, "--fec-device", "hashes"), 1, "the parity must be behind the hash area"),
            (("open", "data", "v", "hashes", root, "--ignore-corruption", "--panic-on-corruption"), 1, "one of them"),
            (("verify", "data", "hashes", root, "--check-at-most-once"), 1, "only for open"),
            (("dump", "data"), 1, "there is no verity superblock"), (("dump", "hashes", "--salt", "-"), 1, "only for format"),
            (("format", "nope", "h"), 1, "nope"), (("format", "data", "h", "--hash", "rot13"), 1, "rot13"),
            (("format", "data", "h", "--salt", "xyz"), 1, "--salt=xyz"), (("format", "data", "h", "--format", "2"), 1, "0 or 1"),
            (("format", "data", "h", "--data-block-size", "3000"), 1, "--data-block-size=3000"),
            (("format", "data", "h", "--data-blocks", "-1"), 1, "must not be negative"),
            (("format", "data", "h", "--no-superblock", "--uuid", "x"), 1, "--uuid: only for format, with a superblock"),
            (("format", "data", "/nonexistent/h"), 1, "No such file"), (("--rot13",), 1, "rot13")):
        if code == 1:
            done = ours.run(*args)
            assert done.returncode in (1, 4) and why in done.stderr, f"{args}: {done.returncode} {done.stderr}"
        else:
            ours.refuses(*args, code=code, match=why)
        assert "Traceback" not in why and not os.path.exists(os.path.join(work, "h"))
    assert ours.fs.devices() == []


def test_hostile_superblocks(ours, data, work, fs):
    """Each field with values that cannot be: refused with a text, or a device that gives EIO and nothing else."""
    root = root_of(ours.ok("format", "data", "hashes"))
    with open(os.path.join(work, "hashes"), "rb") as f:
        good = f.read()
    for at, kind, values in ((0, "8s", [b"verity\0x", b"VERITY\0\0", bytes(8)]), (8, "<I", [0, 2, 0xffffffff]),
                             (12, "<I", [2, 0xffffffff]), (32, "32s", [b"", b"x" * 32, b"sha\xff", b"rot13", b"sha 1", b"hmac(sha1)"]),
                             (64, "<I", [0, 1, 513, 256, 8192, 0x80000000, 0xffffffff]),
                             (68, "<I", [0, 3, 256, 0x80000000, 0xffffffff]),
                             (72, "<Q", [0, 1 << 51, 1 << 63, (1 << 64) - 1, (1 << 51) - 1, 1 << 40]), (80, "<H", [257, 0xffff])):
        for value in values:
            block = bytearray(good)
            struct.pack_into(kind, block, at, value)
            with open(os.path.join(work, "bad"), "wb") as f:
                f.write(block)
            done = ours.run("open", "data", "v", "bad", root)
            assert done.returncode in (1, 4) and done.stderr.startswith("dmfs-verity: "), (at, value, done)
            assert ours.run("dump", "bad").returncode in (0, 1)
    for at, value in ((88, b"another salt"), (12, b"\0")):
        block = bytearray(good)
        block[at:at + len(value)] = value
        with open(os.path.join(work, "bad"), "wb") as f:
            f.write(block)
        ours.ok("open", "data", "v", "bad", root)
        with pytest.raises(OSError) as e:
            read(fs["v"], 0)
        assert e.value.errno == errno.EIO
        ours.ok("close", "v")
    assert digest("sha256", b"")


def test_an_ordinary_file_system(ours, work, tool, fs, sh):
    """The job: an image with a file system, made, opened, read, by an ordinary user."""
    sh(f"truncate -s 8M fs.img && {tool('mkfs.ext4')} -q -F fs.img && {tool('debugfs')} -w -R 'write /bin/sh sh' fs.img")
    root = root_of(ours.ok("format", "fs.img", "fs.hash"))
    ours.ok("open", "fs.img", "v", "fs.hash", root)
    out = os.path.join(work, "sh")
    sh(f"{tool('debugfs')} -R 'dump sh {out}' '{fs['v'].image}'")
    with open(out, "rb") as f, open("/bin/sh", "rb") as g:
        assert f.read() == g.read()
    assert fs["v"].size() == 8 << 20 and SECTOR == 512


def test_completion(ours, fs, data):
    """bash offers every command and every option, where it may stand, and the devices there are."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dmfs_verity; printf "%s\\n" "${COMPREPLY[@]}"'

    def offers(*words):
        done = subprocess.run(["bash", "-c", script, f"{top}/contrib/completion/dmfs-verity", "dmfs-verity", *words],
                              capture_output=True, text=True, timeout=300, cwd=ours.work,
                              env=os.environ | {"DMFS_MOUNT": fs.mountpoint}, check=True)
        assert not done.stderr
        return sorted(done.stdout.split("\n")[:-1])

    fs.mkdir("first")
    assert offers("") == sorted(["format", "verify", "open", "close", "status", "dump"])
    assert offers("close", "f") == ["first"] and offers("-m", fs.mountpoint, "status", "") == ["first"]
    assert offers("format", "da") == ["data"] and offers("open", "data", "") == [""]
    assert offers("open", "data", "v", "da") == ["data"]
    every = set(re.findall(r"(--[a-z-]+)", ours.ok("--help")))
    got = {option for command in offers("") for option in offers(command, "--")}
    assert every - {"--help-all"} <= got | {"--help"}, every - got
    assert "--deferred" not in offers("open", "--") and "--salt" not in offers("close", "--")


def test_seed_examples(ours, work, tool, fs, sh):
    """The document's: a tree made with either program, and a device of 262144 blocks by its table."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {"DMFS_MOUNT": fs.mountpoint, "PATH": os.path.dirname(tool("dmfs-verity")) + ":" + os.environ["PATH"] + ":/usr/sbin"}
    sh("truncate -s 1G sda1")
    salt = "1234" + "0" * 60
    root = root_of(ours.ok("format", "sda1", "sda2", "--salt", salt))
    sh(f'{top}/contrib/examples/verity-table sda1 sda2 {root} {salt}', **env)
    dev = fs["vroot"]
    assert dev.size() == 1 << 30 and read(dev, 262143 * BLOCK) == bytes(BLOCK)
    assert dev.table().endswith(f" 4096 4096 262144 1 sha256 {root} {salt}\n")
    dev.remove()
    sh("head -c 1M /dev/urandom >sda1; rm sda2")
    for program in ("dmfs-verity", tool("veritysetup")):
        done = sh(f"{top}/contrib/examples/verity-setup sda1 sda2 {program}", **env)
        assert "Root hash:" in done.stderr
        with open(os.path.join(work, "sda1"), "rb") as f:
            assert dev.pread(1 << 20, 0) == f.read()
        ours.ok("close", "vroot")
