# SPDX-License-Identifier: GPL-2.0-or-later
"""Signed root hashes: which are taken, and which are not."""

import errno
import os
import re

import pytest

from mounted import pattern, quote
from run import Run, fields
from verity import Tree, images, load

REFUSED = (errno.EKEYREJECTED, errno.EINVAL, errno.EBADMSG, errno.ENOKEY, errno.EIO)


@pytest.fixture
def image(backing):
    return images(backing, 16)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Certificates a and b of two people, ca of an authority, and c, which it has signed; each with NAME.key."""
    import shutil
    import subprocess
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    path = tmp_path_factory.mktemp("pki")
    path.chmod(0o755)

    def openssl(*args):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, cwd=path, timeout=300)

    for name in ("a", "b", "ca"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-days", 30, "-subj", f"/CN={name}")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "c.key", "-out", "c.csr", "-subj", "/CN=c")
    openssl("x509", "-req", "-in", "c.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "c.pem",
            "-days", 30)
    return path


@pytest.fixture
def sign(pki, sh, work):
    """sign(TEXT, WHO="a", OPTIONS=…): the path of a signature as the kernel's documentation has it made."""
    count = 0

    def make(text, who="a", options="-nocerts -noattr -binary", form="DER"):
        nonlocal count
        count += 1
        out = os.path.join(work, f"signature{count}")
        with open(f"{out}.text", "w", encoding="ascii") as f:
            f.write(text)
        sh(f"openssl smime -sign {options} -in {out}.text -inkey {pki}/{who}.key -signer {pki}/{who}.pem "
           f"-outform {form} -out {out}")
        return out

    return make


def signed(path):
    return f"2 root_hash_sig_key_desc {quote(path)}"


def test_a_signature_in_a_file(dmfs, image, pki, sign):
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    tree = image()
    path = sign(tree.root)
    dev = load(fs, tree, options=signed(path))
    assert dev.pread(len(tree.data), 0) == tree.data
    assert dev.table().endswith(f" 2 root_hash_sig_key_desc {quote(path)}\n")
    dev.load(dev.table().strip())


def test_a_signature_in_a_user_key(dmfs, image, pki, sign, keyring):
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    tree = image()
    with open(sign(tree.root), "rb") as f:
        keyring("dmfs-test:signature", f.read())
    dev = load(fs, tree, options=signed("dmfs-test:signature"))
    assert dev.pread(len(tree.data), 0) == tree.data
    assert dev.table().endswith(" 2 root_hash_sig_key_desc dmfs-test:signature\n")
    dev.refuse(tree.line(tree.data_path, tree.hash_path, options=signed("dmfs-test:another")) + "\n", code=errno.ENOKEY,
               match="Invalid key specified: user key 'dmfs-test:another'")


def test_a_signature_that_comes_with_its_name(dmfs, image, pki, sign, work):
    """As dmfs-run hands over what its program has in a keyring of its own: not found again, so not restored."""
    fs = dmfs(f"{work}/state", options=f"verity-keys={pki}/a.pem")
    tree = image()
    with open(sign(tree.root), "rb") as f:
        signature = f.read().hex()
    dev = load(fs, tree, options=f"2 root_hash_sig_key_desc {signature}:user:dmfs-test:mine")
    assert dev.pread(len(tree.data), 0) == tree.data
    before = dev.table()
    assert before.endswith(" 2 root_hash_sig_key_desc dmfs-test:mine\n")
    for bad in (f"{signature[2:]}:user:dmfs-test:mine", "00:user:x", "0:user:x", "00:user:", ":user:x"):
        dev.refuse(tree.line(tree.data_path, tree.hash_path, options=f"2 root_hash_sig_key_desc {bad}") + "\n", code=REFUSED,
                   match="verity: ")
    assert dev.table() == before
    fs.unmount()
    fs = dmfs(f"{work}/state", options=f"verity-keys={pki}/a.pem")
    assert fs[dev.name].table() == "" and "key" in fs[dev.name].error()


def test_veritysetup_with_a_signature(dmfs, tool, backing, pki, sign, work):
    """It puts the signature into a keyring of its own, which the daemon cannot read."""
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    data = pattern(2048, 3)
    run = Run(fs, tool("dmfs-run"), work, [backing(2048, data, name="data.img"), backing(2048, name="hash.img")])
    said = run("veritysetup", "format", "/dev/data.img", "/dev/hash.img")
    root = re.search(r"Root hash:\s+(\w+)", said).group(1)
    done = run.raw("veritysetup", "open", "/dev/data.img", "v", "/dev/hash.img", root, "--root-hash-signature", sign(root))
    if "keyring" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert fields(run("veritysetup", "status", "v"))["status"] == "verified (with signature)"
    assert " root_hash_sig_key_desc cryptsetup:" in fs["v"].table() and fs["v"].pread(len(data), 0) == data
    run("veritysetup", "close", "v")
    run.fails("veritysetup", "open", "/dev/data.img", "v", "/dev/hash.img", root, "--root-hash-signature",
              sign(root[::-1]), match="")
    assert not fs.devices()


def test_it_is_of_the_digits_as_they_stand_there(dmfs, image, pki, sign):
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    tree = image()
    tree.root = tree.root.upper()
    dev = load(fs, tree, options=signed(sign(tree.root)))
    assert dev.pread(len(tree.data), 0) == tree.data
    dev.refuse(tree.line(tree.data_path, tree.hash_path, root=tree.root.lower(), options=signed(sign(tree.root))) + "\n",
               code=REFUSED, match="Root hash verification failed")


def test_certificates_of_several(dmfs, image, pki, sign, work):
    """Any of them; of an authority too, if what it has signed comes with the signature."""
    with open(f"{work}/all.pem", "wb") as out:
        for name in ("b", "a", "ca"):
            with open(f"{pki}/{name}.pem", "rb") as f:
                out.write(f.read())
    fs = dmfs(options=f"verity-keys={work}/all.pem")
    tree = image()
    for who, options in (("a", "-nocerts -noattr -binary"), ("b", "-nocerts -binary"), ("c", "-binary"), ("a", "-noattr -binary")):
        dev = load(fs, tree, f"by-{who}-{options.count('no')}", options=signed(sign(tree.root, who, options)))
        assert dev.pread(len(tree.data), 0) == tree.data
    dev.refuse(tree.line(tree.data_path, tree.hash_path, options=signed(sign(tree.root, "c"))) + "\n", code=REFUSED,
               match="is no signature of this root hash by any of the 3 certificates")


def test_signatures_that_are_refused(dmfs, image, pki, sign, work, backing):
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    tree, other = image(), Tree(os.urandom(4096 * 16))
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    cut = os.path.join(work, "cut")
    with open(sign(tree.root), "rb") as f, open(cut, "wb") as g:
        good = f.read()
        g.write(good[:-20])
    flipped = os.path.join(work, "flipped")
    with open(flipped, "wb") as g:
        g.write(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    huge = backing(4096)
    for path, why in (
            (sign(tree.root, "b"), "is no signature of this root hash by any of the 1 certificates"),
            (sign(other.root), "is no signature of this root hash"),
            (sign(tree.root + "\n"), "is no signature of this root hash"),
            (sign(tree.root, options="-nocerts -noattr -binary -nodetach"), "is not detached"),
            (sign(tree.root, form="PEM"), "holds no PKCS#7 signature in DER format"),
            (flipped, "is no signature of this root hash"),
            (cut, "holds no PKCS#7 signature in DER format"),
            ("/dev/null", "/dev/null is not a regular file"), (huge, "has more than 1048576 bytes"),
            (work, "is not a regular file"), ("/nonexistent", "No such file"), (fs.path("log"), "is a file of this mount")):
        dev.refuse(tree.line(tree.data_path, tree.hash_path, options=signed(path)) + "\n",
                   code=REFUSED + (errno.ENOENT, errno.EFBIG), match=why)


def test_with_certificates_every_line_needs_one(dmfs, image, pki):
    fs = dmfs(options=f"verity-keys={pki}/a.pem")
    tree = image()
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    dev.refuse(tree.line(tree.data_path, tree.hash_path) + "\n", code=errno.ENOKEY,
               match="Root hash verification failed: this mount takes signed root hashes only")


def test_without_certificates_none_can_be_checked(fs, image, sign):
    tree = image()
    dev = fs.mkdir("v")
    dev.write("readonly", "1")
    dev.refuse(tree.line(tree.data_path, tree.hash_path, options=signed(sign(tree.root))) + "\n", code=errno.ENOKEY,
               match="no certificates to check a signature with")
