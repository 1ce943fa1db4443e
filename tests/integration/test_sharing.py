# SPDX-License-Identifier: GPL-2.0-or-later
"""allow_other: two users try every way in."""

import errno
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys

import pytest

from mounted import SECTOR, alive, quote

pytestmark = pytest.mark.root

OTHER = "nobody"
GROUP = 54321       # nobody's own, and no group of OTHER


def as_other(*command, groups=(), **kw):
    who = pwd.getpwnam(OTHER)
    return subprocess.run(command, user=who.pw_uid, group=who.pw_gid, extra_groups=groups, capture_output=True,
                          text=True, timeout=300, **kw)


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


def test_an_image_is_shared_with_a_group(shared, backing, work):
    """One that a user has besides its own, or by a setgid program."""
    v = shared.mkdir("v", f"0 8 linear {backing(8)} 0")
    os.chown(v.image, 0, GROUP)
    os.chmod(v.image, 0o660)
    read, write = ("cat", v.image), ("sh", "-c", f"echo hello >{v.image}")
    assert as_other(*read).returncode and as_other(*write).returncode
    assert not as_other(*read, groups=[GROUP]).returncode and not as_other(*write, groups=[GROUP]).returncode
    assert v.pread(6, 0) == b"hello\n"
    for name in ("table", "message", "status"):
        assert as_other("cat", v.file(name), groups=[GROUP]).returncode, "the group's is the image alone"
    if os.statvfs(work).f_flag & os.ST_NOSUID:
        return
    os.chmod(work, 0o755)
    program = os.path.join(work, "setgid-cat")
    shutil.copy(shutil.which("cat"), program)
    os.chown(program, 0, GROUP)
    os.chmod(program, 0o2755)
    assert not as_other(program, v.image).returncode
    assert as_other(program, v.file("table")).returncode


def test_what_another_may_do_to_a_shared_image_is_read_and_write(shared):
    v = shared.mkdir("v", "0 8 zero")
    os.chmod(v.image, 0o666)
    before = os.stat(v.image)
    new = os.path.join(v.path, "new")
    for command in (["rm", "-f", v.image], ["mv", v.image, new], ["ln", v.image, new], ["ln", "-s", v.image, new],
                    ["touch", new], ["mkdir", new], ["mknod", new, "p"], ["chmod", "600", v.image],
                    ["chown", OTHER, v.image], ["chgrp", str(GROUP), v.image], ["rm", "-rf", v.path],
                    ["mv", v.path, shared.path("w")], ["mkdir", shared.path("w")], ["touch", shared.path("w")],
                    ["ln", "-s", "/", shared.path("w")], ["setfattr", "-n", "user.x", "-v", "y", v.image]):
        if shutil.which(command[0]):
            assert as_other(*command, groups=[GROUP]).returncode, command
    assert sorted(os.listdir(shared.mountpoint)) == sorted(["v", "concise", "control", "events", "log", "targets", "version"])
    after = os.stat(v.image)
    assert (after.st_uid, after.st_mode, after.st_size) == (before.st_uid, before.st_mode, 8 * SECTOR)
    # what a block device takes, too, and does nothing
    assert not as_other("truncate", "-s0", v.image).returncode
    assert v.size() == 8 * SECTOR


def test_an_images_owner_gets_nothing_but_the_image(shared):
    who = pwd.getpwnam(OTHER)
    v = shared.mkdir("v", "0 8 zero")
    os.chmod(v.image, 0o600)
    os.chown(v.image, who.pw_uid, who.pw_gid)
    assert not as_other("chmod", "644", v.image).returncode, "it is its owner's"
    assert as_other("chown", "root", v.image).returncode and as_other("chgrp", str(GROUP), v.image).returncode
    assert not as_other("chgrp", str(GROUP), v.image, groups=[GROUP]).returncode, "a group of its own"
    assert not as_other("chmod", "6755", v.image).returncode
    assert stat.S_IMODE(os.stat(v.image).st_mode) == 0o755, "there are no set-user-id images"
    assert as_other("rm", "-f", v.image).returncode and as_other("sh", "-c", f": >>{v.file('table')}").returncode
    assert as_other("cat", v.file("info")).returncode


def test_what_is_open_stays_open_and_opens_no_more(shared):
    """A descriptor that was handed over works as with any file; a path through /proc is checked again."""
    v = shared.mkdir("v", "0 8 zero")
    with v.open(os.O_RDONLY) as fd:
        assert as_other("cat", f"/proc/{os.getpid()}/fd/{fd}").returncode, "another's process"
        assert as_other("cat", f"/proc/self/fd/{fd}", pass_fds=[fd]).returncode, "a new open"
        got = as_other(sys.executable, "-c", f"import os; print(len(os.pread({fd}, 4096, 0)))", pass_fds=[fd])
        assert got.stdout == "4096\n"


# As root it opens `table`, then is the other user and writes into it; says what came of that.
WRITER = """
import os, sys
path, uid, gid, groups, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
fd = os.open(path, os.O_WRONLY)
if sys.argv[6:]:
    os.chdir(sys.argv[6])
os.setgroups([int(g) for g in groups.split(",") if g])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
try:
    os.write(fd, text.encode())
    print("ok")
except OSError as e:
    print(e.errno)
os._exit(0)
"""


@pytest.fixture
def written(shared):
    """written(WORD): what a line with this device says if the other user writes it into a table that root opened."""
    who = pwd.getpwnam(OTHER)
    v = shared.mkdir("v")

    def write(word, gid=who.pw_gid, groups=(), cwd=None):
        done = subprocess.run([sys.executable, "-c", WRITER, v.file("inactive"), str(who.pw_uid), str(gid),
                               ",".join(map(str, groups)), f"0 8 linear {word} 0\n", *([cwd] if cwd else [])],
                              stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout.strip()
        v.write("inactive", "")
        return done if done == "ok" else errno.errorcode[int(done)]

    return write


def test_a_backing_file_is_opened_with_the_writers_rights(written, backing, work):
    os.chmod(work, 0o755)
    path = backing(8)
    os.chmod(path, 0o600)
    assert written(quote(path)) == "EACCES"
    os.chmod(path, 0o644)
    assert written(quote(path)) == "EACCES", "a table writes"
    os.chmod(path, 0o666)
    assert written(quote(path)) == "ok"
    os.chown(path, 0, GROUP)
    os.chmod(path, 0o660)
    assert written(quote(path)) == "EACCES"
    assert written(quote(path), groups=[GROUP]) == "ok", "a supplementary group"
    assert written(quote(path), gid=GROUP) == "ok", "the group"
    who = pwd.getpwnam(OTHER)
    os.chown(path, who.pw_uid, 0)
    os.chmod(path, 0o600)
    assert written(quote(path)) == "ok", "the writer's own"


def test_a_file_that_another_has_in_use_is_no_way_in(shared, written, backing, work):
    """The daemon has it open already, for root's table."""
    os.chmod(work, 0o755)
    path = backing(8)
    os.chmod(path, 0o600)
    shared.mkdir("roots", f"0 8 linear {quote(path)} 0")
    assert written(quote(path)) == "EACCES"


def test_links_lead_nowhere_new(shared, written, backing, work):
    """Symlinks of the writer's, and the links of /proc: to files in directories that it may not enter."""
    os.chmod(work, 0o755)
    secret, mine = os.path.join(work, "secret"), os.path.join(work, "mine")
    os.mkdir(secret, 0o700)
    os.mkdir(mine)
    who = pwd.getpwnam(OTHER)
    os.chown(mine, who.pw_uid, who.pw_gid)
    path = os.path.join(secret, "file")
    with open(path, "wb") as f:
        f.truncate(8 * SECTOR)
    os.chmod(path, 0o666)
    shared.mkdir("roots", f"0 8 linear {quote(path)} 0")
    fds = [fd for fd in os.listdir(f"/proc/{shared.pid}/fd")
           if os.readlink(f"/proc/{shared.pid}/fd/{fd}") == path]
    assert fds, "the daemon has it open"
    words = [path, "../secret/file", *(f"/proc/{p}/fd/{fds[0]}" for p in ("self", "thread-self", shared.pid)),
             f"/dev/fd/{fds[0]}"]
    for i, word in enumerate(words):
        assert written(quote(word), cwd=mine) in ("EACCES", "ELOOP", "ENOENT"), word
        os.symlink(word, os.path.join(mine, f"link{i}"))
        assert written(f"link{i}", cwd=mine) in ("EACCES", "ELOOP", "ENOENT"), f"a link to {word}"
    os.chmod(secret, 0o755)
    assert written("link0", cwd=mine) == "ok" and written("../secret/file", cwd=mine) == "ok"


def test_a_group_given_up_between_two_writes_counts_no_more(shared, backing, work):
    os.chmod(work, 0o755)
    who = pwd.getpwnam(OTHER)
    path = backing(16)
    os.chown(path, 0, GROUP)
    os.chmod(path, 0o660)
    code = """if 1:
        import os, sys
        fd = os.open(sys.argv[1], os.O_WRONLY)
        uid, gid, group, line = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
        os.setgroups([])
        os.setresgid(group, group, gid)
        os.setresuid(uid, uid, uid)
        os.write(fd, f"0 8 {line} 0\\n".encode())
        os.setresgid(gid, gid, gid)
        try:
            os.write(fd, f"8 8 {line} 8\\n".encode())
            print("ok")
        except OSError as e:
            print(e.errno)
        os._exit(0)
        """
    v = shared.mkdir("v")
    done = subprocess.run([sys.executable, "-c", code, v.file("table"), str(who.pw_uid), str(who.pw_gid), str(GROUP),
                           f"linear {quote(path)}"], stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert done.stdout.strip() == str(errno.EACCES)
    assert v.table() == ""


def test_a_socket_is_connected_to_with_the_writers_rights(shared, written, work):
    """nbd+unix://: the daemon may connect anywhere."""
    os.chmod(work, 0o755)
    path = os.path.join(work, "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        os.chmod(path, 0o600)
        server.listen()
        server.settimeout(0)
        assert written(f"nbd+unix:///?socket={path}") != "ok"
        with pytest.raises(BlockingIOError):
            server.accept()
    assert alive(shared.pid)
