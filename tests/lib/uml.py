# SPDX-License-Identifier: GPL-2.0-or-later
"""The real device mapper, as an ordinary process: user-mode Linux.

Debian's package user-mode-linux is a whole kernel in a program, linux.uml.
Its root is this machine's file system (hostfs), so a script in the guest sees
the files and the programs of the host; our images are its disks (ubd), as
/dev/ubda, /dev/ubdb, ... and in the script's environment as $D0, $D1, ...
It boots in seconds and needs no privileges.
"""

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile

MODULES = """
    aes_generic cbc xts ecb ctr essiv gcm ccm sha1_generic sha256_generic sha512_generic hmac cmac crc32_generic
    crc32c_generic authenc chacha20_generic encrypted-keys loop raid0 raid1 raid10
    dm-mod dm-crypt dm-snapshot dm-zero dm-thin-pool dm-raid dm-integrity dm-verity dm-cache dm-cache-smq dm-era
    dm-clone dm-dust dm-log-writes dm-writecache dm-multipath dm-switch dm-unstripe dm-flakey dm-delay dm-mirror
    dm-log-userspace dm-queue-length dm-service-time dm-round-robin""".split()
MODULE_DIR = "/usr/lib/uml/modules"
UBD_MAJOR, UBD_MINORS = 98, 16
MAX_DISKS = 8
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"


def why_not():
    """Why no guest can be run here, or None."""
    for program, package in (("linux.uml", "user-mode-linux"), ("dmsetup", "dmsetup"), ("modprobe", "kmod")):
        if not shutil.which(program, path=PATH):
            return f"no {program} (package {package})"
    if not os.path.isdir(MODULE_DIR):
        return f"no kernel modules in {MODULE_DIR} (package user-mode-linux)"
    return None


def _large_state():
    """Whether the processor's extended state (AMX) is larger than linux.uml knows."""
    AT_MINSIGSTKSZ = 51     # it goes with that state: at most 3.6 KiB with AVX-512, 12 KiB with AMX
    return ctypes.CDLL(None).getauxval(AT_MINSIGSTKSZ) > 4096


def _environment(work):
    """The guest's environment: what lets it run on this processor."""
    if not _large_state():
        return None
    library = os.path.join(work, "uml_xstate.so")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "uml_xstate.c")
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": library}


class Result:
    def __init__(self, code, out):
        self.code, self.out = code, out


class GuestFailed(Exception):
    pass


def run(script, disks=(), env=None, timeout=120, check=True):
    """Boots a guest, runs a bash script in it with the disks, and returns its Result (out: stdout and stderr).

    With check a status other than 0 is an error.  The guest itself failing, or running out of time, always is.
    """
    disks = [os.path.realpath(d) for d in disks]
    assert len(disks) <= MAX_DISKS
    work = tempfile.mkdtemp(prefix="dmfs-uml-")
    try:
        # modprobe -d wants lib/modules below its directory
        os.makedirs(os.path.join(work, "m/lib"))
        os.symlink(MODULE_DIR, os.path.join(work, "m/lib/modules"))
        with open(os.path.join(work, "script"), "w", encoding="utf-8", errors="surrogateescape") as f:
            f.write(script)
        exports = {f"D{i}": f"/dev/ubd{chr(97 + i)}" for i in range(len(disks))}
        exports |= {k: str(v) for k, v in (env or {}).items()} | {"WORK": work}
        lines = [
            "#!/bin/bash",
            "export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1 LC_ALL=C",
            f"export MODPROBE_OPTIONS={shlex.quote('-d ' + work + '/m')}",
            "mount -t proc proc /proc; mount -t sysfs sys /sys",
            f"for m in {' '.join(MODULES)}; do modprobe -q $m; done",
            *(f"export {k}={shlex.quote(v)}" for k, v in exports.items()),
            f"cd {shlex.quote(work)}",
            "/bin/bash ./script >out 2>&1",
            "echo $? >rc; sync",
            # (small systems have no poweroff)
            "poweroff -f 2>/dev/null; echo o >/proc/sysrq-trigger",
        ]
        init = os.path.join(work, "init")
        with open(init, "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
        os.chmod(init, 0o755)
        boot = [shutil.which("linux.uml", path=PATH), "mem=768M", "rootfstype=hostfs", "rootflags=/", "rw", "quiet",
                f"init={init}", "con=null", "con0=fd:0,fd:1", f"uml_dir={work}",
                *(f"ubd{chr(97 + i)}={d}" for i, d in enumerate(disks))]
        with open(os.path.join(work, "console"), "wb") as console:
            # its own session: what is left of the guest's processes can then be ended as a group
            guest = subprocess.Popen(boot, stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd=work,
                                     start_new_session=True, env=_environment(work))
            late = False
            try:
                guest.wait(timeout)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                try:
                    os.killpg(guest.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                guest.wait()
        out = _read(work, "out")
        code = _read(work, "rc").strip()
        if late or not code:
            raise GuestFailed(f"the guest {'ran out of time' if late else 'did not finish'}; it printed:\n{out}\n"
                              f"the end of its console:\n{_read(work, 'console')[-3000:]}")
        result = Result(int(code), out)
        if check and result.code:
            raise GuestFailed(f"the script's status is {result.code}; it printed:\n{out}")
        return result
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(work, name):
    try:
        with open(os.path.join(work, name), encoding="utf-8", errors="surrogateescape") as f:
            return f.read()
    except FileNotFoundError:
        return ""


class Answer:
    """What one side said of a table: whether it took it, and then its status and table text, disks as D0, D1, ..."""

    def __init__(self, accepted, status="", table="", why=""):
        self.accepted, self.status, self.table, self.why = accepted, status, table, why

    def __eq__(self, other):
        return (self.accepted, self.status, self.table) == (other.accepted, other.status, other.table)

    def __repr__(self):
        if not self.accepted:
            return f"refused ({self.why.strip()})"
        return f"accepted\n    status: {self.status!r}\n    table:  {self.table!r}"


def _squeeze(text):
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


def tables(lines, disks, timeout=120, readonly=False):
    """Loads each table (text with $D0, $D1, ... for the disks) in the kernel, one after the other; the Answers."""
    create = "dmsetup create -r" if readonly else "dmsetup create"
    script = []
    for i, text in enumerate(lines):
        path_text = re.sub(r"\$D(\d)", lambda m: f"/dev/ubd{chr(97 + int(m.group(1)))}", text)
        script.append(f"cat >t{i} <<'END_OF_TABLE'\n{path_text}\nEND_OF_TABLE\n"
                      f"echo '=table {i}=' >/dev/kmsg\n"
                      f"if {create} t t{i} >why{i} 2>&1; then\n"
                      f"dmsetup status t >status{i} && dmsetup table t >table{i} && echo yes >accepted{i}\n"
                      "dmsetup remove --retry t; fi")
    # what the kernel said, to each table's file
    script.append(r"""dmesg | awk '/=table [0-9]+=/ { match($0, /=table [0-9]+/); n = substr($0, RSTART + 7, RLENGTH - 7) }
        /device-mapper: [a-z]/ && n != "" { print >>("why" n) }'""")
    script.append(r"""
for i in $(seq 0 %d); do
    for f in accepted status table why; do
        echo "=== $i $f"; [ ! -e $f$i ] || cat $f$i
    done
done""" % (len(lines) - 1))
    out = run("\n".join(script), disks, timeout=timeout).out
    parts = re.split(r"^=== (\d+) (\w+)\n", out, flags=re.M)
    got = {}
    for n, name, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        got[int(n), name] = _disk_names(text, len(disks))
    assert len(got) == 4 * len(lines), out[:3000]
    return [Answer(got[i, "accepted"].strip() == "yes", _squeeze(got[i, "status"]), _squeeze(got[i, "table"]),
                   got[i, "why"]) for i in range(len(lines))]


def _disk_names(text, count):
    """The kernel prints MAJ:MIN for a device; the n-th ubd disk is 98:16n."""
    for i in range(count):
        text = re.sub(rf"(?<!\S){UBD_MAJOR}:{UBD_MINORS * i}(?!\S)", f"D{i}", text)
    return text


def tables_dmfs(mount, lines, disks, readonly=False):
    """The same tables on a mounted dmfs."""
    from mounted import quote
    answers = []
    for text in lines:
        dev = mount.mkdir("t")
        if readonly:
            dev.write("readonly", "1")
        try:
            dev.write("table", re.sub(r"\$D(\d)", lambda m: quote(disks[int(m.group(1))]), text) + "\n")
        except OSError as e:
            answers.append(Answer(False, why=f"{e.strerror}: {dev.error()}"))
        else:
            got = [dev.status(), dev.table()]
            for i, disk in enumerate(disks):
                got = [re.sub(rf"(?<!\S){re.escape(quote(disk))}(?!\S)", f"D{i}", t) for t in got]
            answers.append(Answer(True, _squeeze(got[0]), _squeeze(got[1]), dev.error()))
        dev.remove()
    return answers


def compare(mount, lines, disks, except_for=(), timeout=120, later=None, readonly=False):
    """Asserts that dmfs says of each table what the kernel says.

    except_for: tables where we know better (a number that overflows, which the kernel wraps): dmfs must refuse them.
    readonly: devices are made read-only.
    later: turns what kernels after 6.1 print of a table into what 6.1 prints, as dmfs does.
    """
    kernel = tables([*lines], disks, timeout=timeout, readonly=readonly)
    for k in kernel:
        k.table = later(k.table) if later else k.table
    ours = tables_dmfs(mount, [*lines], disks, readonly=readonly)
    wrong = []
    for text, k, d in zip(lines, kernel, ours):
        if text in except_for:
            if d.accepted:
                wrong.append(f"{text!r}\n  dmfs should refuse it: {d!r}")
        elif k != d:
            wrong.append(f"{text!r}\n  kernel: {k!r}\n  dmfs:   {d!r}")
    assert not wrong, "\n".join(wrong)
    return kernel
