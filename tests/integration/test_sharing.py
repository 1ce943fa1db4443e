# SPDX-License-Identifier: GPL-2.0-or-later
"""allow_other: two users try every way in."""

import os
import pwd
import subprocess

import pytest

pytestmark = pytest.mark.root

OTHER = "nobody"


def as_other(*command):
    who = pwd.getpwnam(OTHER)
    return subprocess.run(command, user=who.pw_uid, group=who.pw_gid, extra_groups=[], capture_output=True, text=True,
                          timeout=60)


def test_a_private_mount_keeps_others_out(fs):
    fs.mkdir("v", "0 8 zero")
    os.chmod(fs.dir, 0o755)
    for path in ("", "targets", "v", "v/image", "v/table"):
        assert as_other("stat", fs.path(path)).returncode, path


@pytest.fixture
def shared(dmfs):
    d = dmfs(options="allow_other")
    os.chmod(d.dir, 0o755)
    return d


def test_control_files_are_the_owners_alone(shared):
    shared.mkdir("v", "0 8 zero")
    os.chmod(shared["v"].image, 0o666)
    for name in ("control", "concise", "log", "events"):
        assert as_other("sh", "-c", f"cat {shared.path(name)}").returncode, name
        assert as_other("sh", "-c", f"echo x >{shared.path(name)}").returncode, name
    for name in os.listdir(shared["v"].path):
        if name == "image":
            continue
        path = shared["v"].file(name)
        assert as_other("sh", "-c", f"cat {path}").returncode, name
        assert as_other("sh", "-c", f": >{path}").returncode, name
        assert as_other("sh", "-c", f": >>{path}").returncode, name
        assert as_other("chmod", "666", path).returncode, name
        assert as_other("truncate", "-s0", path).returncode, name
    assert as_other("mkdir", shared.path("mine")).returncode
    assert as_other("rmdir", shared.path("v")).returncode
    assert as_other("mv", shared.path("v"), shared.path("w")).returncode
    assert as_other("chown", OTHER, shared["v"].image).returncode
    assert shared["v"].table() == "0 8 zero\n"
    assert as_other("cat", shared.path("targets")).returncode == 0
    assert as_other("ls", shared["v"].path).returncode == 0


def test_the_owner_cannot_give_control_files_away(shared):
    shared.mkdir("v", "0 8 zero")
    for name in ("table", "status", "info"):
        with pytest.raises(PermissionError):
            os.chmod(shared["v"].file(name), 0o666)
    with pytest.raises(PermissionError):
        os.chmod(shared["v"].path, 0o777)


def test_an_image_is_shared_by_mode_and_owner(shared, backing):
    v = shared.mkdir("v", f"0 8 linear {backing(8)} 0")
    read = ("sh", "-c", f"cat {v.image} >/dev/null")
    write = ("sh", "-c", f"echo hello >{v.image}")
    assert as_other(*read).returncode and as_other(*write).returncode
    os.chmod(v.image, 0o604)
    assert not as_other(*read).returncode and as_other(*write).returncode
    os.chmod(v.image, 0o600)
    who = pwd.getpwnam(OTHER)
    os.chown(v.image, who.pw_uid, who.pw_gid)
    assert not as_other(*read).returncode and not as_other(*write).returncode
    assert v.pread(6, 0) == b"hello\n"
    st = os.stat(v.image)
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (who.pw_uid, who.pw_gid, 0o600)
    assert os.stat(v.file("table")).st_uid == 0


def test_owner_and_mode_are_kept_in_the_state(dmfs, work):
    state = os.path.join(work, "state")
    who = pwd.getpwnam(OTHER)
    d = dmfs(state=state, options="allow_other")
    d.mkdir("v", "0 8 zero")
    os.chown(d["v"].image, who.pw_uid, who.pw_gid)
    os.chmod(d["v"].image, 0o640)
    d.unmount()
    d = dmfs(state=state, options="allow_other")
    st = os.stat(d["v"].image)
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (who.pw_uid, who.pw_gid, 0o640)
