# SPDX-License-Identifier: GPL-2.0-or-later
"""multipath beside the kernel's: tables, messages, failures and what status says of them."""

import re
import subprocess
import sys

from mounted import quote

LINES = [
    "0 0 1 1 round-robin 0 2 1 $D0 1 $D1 1",
    "0 0 1 1 round-robin 0 2 0 $D0 $D1",
    "0 0 1 1 round-robin 1 9 2 1 $D0 7 $D1 0",
    "0 0 1 1 queue-length 0 2 1 $D0 128 $D1 128",
    "0 0 1 1 queue-length 0 1 0 $D0",
    "0 0 1 1 service-time 0 2 2 $D0 1 4 $D1 1 0",
    "0 0 1 1 service-time 0 2 1 $D0 1 $D1 1",
    "0 0 1 1 service-time 0 2 0 $D0 $D1",
    "0 0 1 1 service-time 0 1 2 $D0 1 100",
    "0 0 2 1 round-robin 0 1 1 $D0 1 service-time 0 1 2 $D1 1 3",
    "0 0 2 2 round-robin 0 1 1 $D0 1 queue-length 0 1 1 $D1 1",
    "0 0 1 2 round-robin 0 1 1 $D0 1",
    "0 0 1 1 round-robin 0 2 0 $D0 $D0",
    "0 0 0 0",
    "1 queue_if_no_path 0 1 1 round-robin 0 1 0 $D0",
    "1 QUEUE_IF_NO_PATH 0 1 1 round-robin 0 1 0 $D0",
    "5 queue_mode bio pg_init_delay_msecs 7 queue_if_no_path 0 1 1 round-robin 0 1 0 $D0",
    "2 queue_mode bio 0 1 1 round-robin 0 1 0 $D0",
    "2 queue_mode rq 0 1 1 round-robin 0 1 0 $D0",
    "2 queue_mode mq 0 1 1 round-robin 0 1 0 $D0",
    "2 pg_init_retries 50 0 1 1 round-robin 0 1 0 $D0",
    "4 pg_init_delay_msecs 60000 pg_init_retries 1 0 1 1 round-robin 0 1 0 $D0",
    "1 retain_attached_hw_handler 0 1 1 round-robin 0 1 0 $D0",
    "2 queue_mode bio 1 alua 1 1 round-robin 0 1 0 $D0",
    "2 pg_init_retries 0 0 1 1 round-robin 0 1 0 $D0",
    "2 pg_init_retries 51 0 1 1 round-robin 0 1 0 $D0",
    "2 pg_init_delay_msecs 60001 0 1 1 round-robin 0 1 0 $D0",
    "1 pg_init_retries 0 1 1 round-robin 0 1 0 $D0",
    "1 nonsense 0 1 1 round-robin 0 1 0 $D0",
    "2 queue_mode fast 0 1 1 round-robin 0 1 0 $D0",
    "20 queue_if_no_path 0 1 1 round-robin 0 1 0 $D0",
    "0 0 1 0 round-robin 0 1 0 $D0",
    "0 0 0 1",
    "0 0 2 1 round-robin 0 1 0 $D0",
    "0 0 1 1 round-robin 0 1 0 $D0 rest",
    "0 0 1 1 round-robin 0 0 0",
    "0 0 1 1 round-robin 0 1 1 $D0 x",
    "0 0 1 1 round-robin 0 1 2 $D0 1 2",
    "0 0 1 1 round-robin 0 2 1 $D0 1 $D1",
    "0 0 1 1 queue-length 0 1 2 $D0 1 2",
    "0 0 1 1 service-time 0 1 2 $D0 1 101",
    "0 0 1 1 service-time 0 1 3 $D0 1 1 1",
    "0 0 1 1 nonsense 0 1 0 $D0",
    "0 0 1 1 round-robin 0 1 0 /nonexistent",
    "0 0 1025 1",
    "0 0 1",
    "0 0",
    "0",
    "",
]


def test_lines(kernel, fs, backing):
    kernel.compare(fs, [f"0 4096 multipath {line}" for line in LINES] +
                   ["0 8200 multipath 0 0 1 1 round-robin 0 1 0 $D0"], [backing(8192), backing(8192)])


def squeeze(text):
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


# Steps, each a shell command; after each the status and the table are looked at.  p0, p1 and p2 are linear devices.
READ = "dd if=$M of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null || echo EIO"
STEPS = [
    ("read", ""), ("message", "fail_path p0"), ("read", ""), ("read", ""), ("message", "fail_path p0"),
    ("message", "fail_path p1"), ("read", ""), ("message", "reinstate_path p0"), ("read", ""),
    ("message", "switch_group 3"), ("read", ""), ("message", "disable_group 3"), ("read", ""),
    ("message", "disable_group 1"), ("read", ""), ("message", "disable_group 2"), ("read", ""),
    ("message", "enable_group 3"), ("read", ""), ("message", "switch_group 2"), ("read", ""),
    ("message", "reinstate_path p1"), ("read", ""), ("message", "switch_group 0"), ("message", "switch_group 4"),
    ("message", "nonsense"), ("message", "nonsense p0"), ("message", "fail_path other"), ("message", "queue_if_no_path x y"),
    ("message", "queue_if_no_path"), ("message", "fail_if_no_path"), ("break", "p2"), ("message", "switch_group 3"),
    ("read", ""), ("message", "fail_path p0"), ("message", "fail_path p1"), ("read", ""),
]
LINE = "0 4096 multipath 2 queue_mode bio 0 3 1 round-robin 0 1 1 p0 1 queue-length 0 1 1 p1 1 service-time 0 1 2 p2 1 5"

QUEUEING = "0 4096 multipath 3 queue_if_no_path queue_mode {mode} 0 1 1 round-robin 0 1 0 {path}"
MODES = ("rq", "bio")
THEIRS = """
dmsetup create m --table "{line}"
dmsetup message m 0 fail_path $D0
dd if=/dev/zero of=/dev/mapper/m bs=4096 count=1 oflag=direct 2>/dev/null & W=$!
until dmsetup status m | grep -q "multipath 2 0"; do :; done
timeout 60 dmsetup suspend --noflush m || echo hangs
dmsetup table m; dmsetup status m
dmsetup message m 0 reinstate_path $D0 2>/dev/null || echo refused
dmsetup resume m; dmsetup table m
dmsetup suspend --noflush m
echo "0 4096 error" | dmsetup load m || echo refused
dmsetup resume m
wait $W && echo written || echo EIO
dmsetup table m; dmsetup remove m; echo ===
"""


def check_queueing(fs, path, answers):
    """A noflush suspension ends at once in both modes, and errors may take multipath's place, for what waits as well."""
    for mode, theirs in zip(MODES, answers, strict=True):
        dev, ours = fs.mkdir("m", QUEUEING.format(mode=mode, path=quote(path))), []
        dev.message(f"fail_path {quote(path)}")
        code = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY | os.O_SYNC), bytes(4096), 0)"
        with subprocess.Popen([sys.executable, "-c", code, dev.image], stderr=subprocess.DEVNULL) as writer:
            while "multipath 2 0" not in dev.status():      # the write has come
                assert writer.poll() is None
            dev.suspend(noflush=True)
            ours += [dev.table(), dev.status()]
            try:
                dev.message(f"reinstate_path {quote(path)}")
            except OSError:
                ours.append("refused\n")
            dev.resume()
            ours.append(dev.table())
            dev.suspend(noflush=True)
            dev.load("0 4096 error", to="inactive")
            dev.resume()
            ours += ["written\n" if writer.wait(300) == 0 else "EIO\n", dev.table()]
        dev.remove()
        assert squeeze("".join(ours).replace(quote(path), "P")) == squeeze(re.sub(r"\b98:0\b", "P", theirs)), mode


def test_messages_and_failures(kernel, fs, backing):
    """The same steps give the same answers, status and table lines, and numbers of events."""
    path, theirs = backing(8192), backing(8192)
    script = ["set -e"]
    for name in ("p0", "p1", "p2", "other"):
        script.append(f'dmsetup create {name} --table "0 4096 linear $D0 0"')
    line = re.sub(r"\bp(\d)", r"/dev/mapper/p\1", LINE)
    script.append(f'dmsetup create m --table "{line}"; M=/dev/mapper/m')
    say = 'dmsetup status m; dmsetup table m; dmsetup info -c --noheadings -o events m; echo ==='
    for kind, text in STEPS:
        text = re.sub(r"\b(p\d|other)\b", r"/dev/mapper/\1", text)
        if kind == "read":
            script.append(READ)
        elif kind == "message":
            script.append(f"dmsetup message m 0 {text} 2>/dev/null || echo refused")
        else:
            script.append(f"echo '0 4096 error' | dmsetup load {text}; dmsetup resume {text}")
        script.append(say)
    script.append('for i in p0 p1 p2; do echo "$i $(dmsetup info -c --noheadings -o major,minor $i)"; done; dmsetup remove m; echo ===')
    script += [THEIRS.replace("{line}", QUEUEING.format(mode=mode, path="$D0")) for mode in MODES]
    answers = kernel.run("\n".join(script), [theirs]).out.split("===\n")
    kernels, names, queueing = answers[:len(STEPS)], answers[len(STEPS)], answers[len(STEPS) + 1:-1]
    for name, dev in re.findall(r"^(p\d) (\d+:\d+)$", names, re.M):
        kernels = [re.sub(rf"(?<!\S){dev}(?!\S)", name, k) for k in kernels]

    for name in ("p0", "p1", "p2", "other"):
        fs.mkdir(name, f"0 4096 linear {quote(path)} 0")
    dev = fs.mkdir("m", LINE)
    for (kind, text), theirs_say in zip(STEPS, kernels):
        said = ""
        try:
            if kind == "read":
                dev.pread(4096, 0)
            elif kind == "message":
                dev.message(text)
            else:
                fs[text.removeprefix("/dev/mapper/")].load("0 4096 error")
        except OSError:
            said = "EIO\n" if kind == "read" else "refused\n"
        events = dev.info()["Event number"]
        ours = f"{said}{dev.status()}{dev.table()}{events}\n"
        assert squeeze(ours) == squeeze(theirs_say), (kind, text)
    dev.remove()
    check_queueing(fs, path, queueing)
