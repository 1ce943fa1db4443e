# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's kernel under qemu's emulation, for what user-mode Linux lacks: zoned block devices and dm-zoned.

Its root is this machine's file system, read-only (9p), but for a work directory, so a script in the guest sees the programs of the
host.  It needs no privileges and no KVM; a boot takes some ten seconds of a processor.
"""

import glob
import os
import re
import shutil
import subprocess

MODULES = ["virtio_pci", "9pnet_virtio", "9p", "configfs", "null_blk", "dm-zoned", "fuse"]
INIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qemu_init.c")


def find_kernel():
    """(vmlinuz, modules' directory) of an installed kernel that has all modules, or None."""
    for image in sorted(glob.glob("/boot/vmlinuz-*"), reverse=True):
        modules = "/lib/modules/" + image[len("/boot/vmlinuz-"):]
        if os.access(image, os.R_OK) and glob.glob(f"{modules}/kernel/drivers/md/dm-zoned.ko*"):
            return image, modules
    return None


def why_not():
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("blkzone", "util-linux"), ("dmsetup", "dmsetup"),
                             ("cc", "gcc")):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return f"no {program} (package {package})"
    if not find_kernel():
        return "no kernel with dm-zoned in /boot and /lib/modules that can be read (package linux-image-amd64)"
    return None


def _module_files(directory):
    """Paths of the modules and of what they need, in the order to load them."""
    needs, order = {}, []
    with open(os.path.join(directory, "modules.dep"), encoding="ascii") as f:
        for line in f:
            name, rest = line.split(":")
            needs[re.sub(r"\.ko.*", "", os.path.basename(name)).replace("_", "-")] = [name, *reversed(rest.split())]
    for module in MODULES:
        found = needs.get(module.replace("_", "-"))     # else it is built in
        for path in (found[1:] + found[:1] if found else []):
            if path not in order:
                order.append(path)
    return [os.path.join(directory, path) for path in order]


def _cpio(entries):
    """A newc archive of {name: (mode, bytes)}."""
    out = bytearray()

    def add(ino, name, mode, data):
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0")
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        out.extend(bytes(-len(out) % 4))

    for i, (name, (mode, data)) in enumerate(entries.items()):
        add(i + 1, name, mode, data)
    add(0, "TRAILER!!!", 0, b"")
    return bytes(out)


def _archive(work, modules):
    init = os.path.join(work, "init")
    subprocess.run(["cc", "-O1", "-static", "-D_GNU_SOURCE", INIT, "-o", init], check=True, timeout=600)
    entries = {"modules": (0o40755, b""), "work": (0o100644, work.encode())}
    with open(init, "rb") as f:
        entries["init"] = (0o100755, f.read())
    os.unlink(init)
    names = []
    for path in _module_files(modules):
        names.append("/modules/" + os.path.basename(path))
        with open(path, "rb") as f:
            entries[names[-1][1:]] = (0o100644, f.read())
    entries["modules/order"] = (0o100644, "\n".join(names).encode() + b"\n")
    with open(os.path.join(work, "initrd"), "wb") as f:
        f.write(_cpio(entries))


def run(script, work, timeout=600, memory=768):
    """Runs a bash script in a guest, in the directory work, where it can write.  What it printed; AssertionError if it failed."""
    image, modules = find_kernel()
    work = os.path.realpath(work)
    _archive(work, modules)
    with open(os.path.join(work, "script"), "w", encoding="utf-8") as f:
        f.write(f"exec >{work}/out 2>&1\nset -ex\n{script}")
    shares = [word for tag, path, more in (("root", "/", ",readonly=on"), ("work", work, ""))
              for word in ("-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{more}",
                           "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")]
    done = subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", str(memory), "-nographic",
         "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", image, "-initrd", os.path.join(work, "initrd"),
         "-append", "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on", *shares],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    os.unlink(os.path.join(work, "initrd"))
    console = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
    out = ""
    if os.path.exists(os.path.join(work, "out")):
        with open(os.path.join(work, "out"), encoding="utf-8", errors="replace") as f:
            out = f.read()
    assert os.path.exists(os.path.join(work, "status")), f"the guest did not come to its end:\n{console}\n{out}"
    with open(os.path.join(work, "status"), encoding="ascii") as f:
        assert f.read() == "0\n", f"the script failed:\n{out}\n{console[-3000:]}"
    return out
