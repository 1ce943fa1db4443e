# SPDX-License-Identifier: GPL-2.0-or-later
"""LVM2's metadata by hand: physical volumes with a text, after lvm2's own description of its formats."""

import struct

SECTOR, MDA, MDA_BYTES, PE_START = 512, 4096, (1 << 20) - 4096, 2048
_table = []


def crc(data):
    if not _table:
        for n in range(256):
            for _ in range(8):
                n = n >> 1 ^ (0xedb88320 if n & 1 else 0)
            _table.append(n)
    value = 0xf597a6cf
    for byte in data:
        value = value >> 8 ^ _table[(value ^ byte) & 255]
    return value


def dashed(n, kind="p"):
    """An id as LVM writes it."""
    text = f"{kind}{n}".ljust(32, "x")
    return "-".join([text[:6], *(text[i:i + 4] for i in range(6, 26, 4)), text[26:]])


def pv_id(n):
    return dashed(n, "p")


def group(lvs, pvs=1, name="vg", extent=8, pe_count=1000, seqno=1, extra="", pe_start=PE_START):
    """The text of a group; lvs: {name: body or (body, status)}; extent in sectors."""
    parts = [f'{name} {{\nid = "{dashed(0, name[:3])}"\nseqno = {seqno}\nformat = "lvm2"\nstatus = ["RESIZEABLE", "READ", "WRITE"]\n'
             f"flags = []\nextent_size = {extent}\nmax_lv = 0\nmax_pv = 0\n{extra}\nphysical_volumes {{\n"]
    for n in range(pvs):
        parts.append(f'pv{n} {{\nid = "{pv_id(n)}"\ndevice = "/dev/sd{n}"\nstatus = ["ALLOCATABLE"]\nflags = []\n'
                     f"dev_size = {pe_start + pe_count * extent}\npe_start = {pe_start}\npe_count = {pe_count}\n}}\n")
    parts.append("}\nlogical_volumes {\n")
    for n, (lv, body) in enumerate(lvs.items()):
        body, status = body if isinstance(body, tuple) else (body, '"READ", "WRITE", "VISIBLE"')
        parts.append(f'{lv} {{\nid = "{dashed(n, "l")}"\nstatus = [{status}]\nflags = []\n{body}\n}}\n')
    parts.append("}\n}\n# Generated\ncontents = \"Text Format Volume Group\"\nversion = 1\n")
    return "".join(parts)


HIDDEN = '"READ", "WRITE"'


def segments(*bodies):
    """Segments from (extents, text)."""
    out, at = [f"segment_count = {len(bodies)}"], 0
    for n, (extents, text) in enumerate(bodies, 1):
        out.append(f"segment{n} {{\nstart_extent = {at}\nextent_count = {extents}\n{text}\n}}")
        at += extents
    return "\n".join(out)


def linear(extents, pe, pv="pv0"):
    return segments((extents, f'type = "striped"\nstripe_count = 1\nstripes = ["{pv}", {pe}]'))


def header(n, sectors, text, mda_bytes=MDA_BYTES, wrap=0, damage=None):
    """The first bytes of physical volume number n: label, metadata area and text; wrap: so much of the text is at the area's end."""
    text = text.encode() + b"\0" if text is not None else b""
    label = bytearray(SECTOR)
    ident = pv_id(n).replace("-", "").encode()
    areas = struct.pack("<QQQQ", PE_START * SECTOR, 0, 0, 0)
    areas += struct.pack("<QQQQ", MDA, mda_bytes, 0, 0) if text else struct.pack("<QQ", 0, 0)
    struct.pack_into("<8sQII8s", label, 0, b"LABELONE", 1, 0, 32, b"LVM2 001")
    label[32:32 + 40 + len(areas)] = ident + struct.pack("<Q", sectors * SECTOR) + areas
    struct.pack_into("<I", label, 16, crc(label[20:]))
    out = bytearray(MDA + mda_bytes if text else PE_START * SECTOR)
    out[SECTOR:2 * SECTOR] = label
    if text:
        at = mda_bytes - wrap if wrap else SECTOR
        first = text[:mda_bytes - at]
        out[MDA + at:MDA + at + len(first)] = first
        out[MDA + SECTOR:MDA + SECTOR + len(text) - len(first)] = text[len(first):]
        area = bytearray(SECTOR)
        struct.pack_into("<16sIQQQQII", area, 4, b" LVM2 x[5A%r0N*>", 1, MDA, mda_bytes, at, len(text), crc(text), 0)
        struct.pack_into("<I", area, 0, crc(area[4:]))
        out[MDA:MDA + SECTOR] = area
    if damage is not None:
        out[damage] ^= 0xff
    return bytes(out)


def make(path, n, text, pe_count=1000, extent=8, data=b"", **kw):
    """A physical volume in a file; data: from its first extent on."""
    sectors = PE_START + pe_count * extent
    with open(path, "wb") as f:
        f.write(header(n, sectors, text, **kw))
        f.seek(PE_START * SECTOR)
        f.write(data)
        f.truncate(sectors * SECTOR)
    return path
