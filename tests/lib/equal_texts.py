# SPDX-License-Identifier: GPL-2.0-or-later
"""What dmsetup prints beside the kernel and beside dmfs, made equal where it must differ (test_dmsetup_language.py)."""

import difflib
import re


def kernel_text(text, major):
    """The kernel's output as ours would be; major: the device mapper's number there."""
    text = re.sub(r"^2\|/dev/mapper/.+: open failed: No such file or directory\n", "", text, flags=re.M)
    for i in range(2):
        text = re.sub(rf"\b98:{16 * i}\b", f"D{i}", text)
        text = re.sub(rf"\b98, {16 * i}\b", f"D{i}", text)
        text = text.replace(f"/dev/ubd{'ab'[i]}", f"D{i}").replace(f"ubd{'ab'[i]}", f"D{i}")
    text = re.sub(rf"\b{major}(?=[:,])", "0", text)
    # 6.1 answers ENODEV for a path that is not there, later kernels ENOENT
    text = re.sub(r"(ioctl on .* failed: )No such file or directory", r"\1No such device", text)
    text = text.replace(f"-j {major}", "-j 0")
    text = re.sub(rf"(?<= ){major}(?=  ? ?\d)", "  0", text)       # a column
    return re.sub(rf"='{major}'", "='0'", text)


def our_text(text, disks, minors):
    text = re.sub(r"^2\|dmfs: .*\n", "", text, flags=re.M)
    for i, disk in enumerate(disks):
        text = text.replace(disk, f"D{i}")
    # a table names devices
    for name, minor in minors.items():
        text = re.sub(rf"(?<=linear ){name}(?= \d)", f"0:{minor}", text)
    return text


def split(text):
    parts = re.split(r"^(?=\$ \d+ )", text, flags=re.M)
    # compact trees are indented by the width of names, with the major number in it
    return [re.sub(" +", " ", part) if "compact" in part.split("\n", 1)[0] else part for part in parts]


def difference(theirs, ours):
    return theirs.split("\n", 1)[0] + "\n" + "\n".join(difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), "kernel", "dmfs", lineterm=""))
