# SPDX-License-Identifier: GPL-2.0-or-later
"""dmfs-run itself; and programs that have nothing to do with devices, which run under it as they do without."""

import os
import re
import shutil
import subprocess

import pytest

from run import PATH, needs

PROGRAM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void *thread(void *path)
{
	struct stat st;

	for (int i = 0; i < 2000; i++) {
		int fd = open(path, O_RDONLY);

		if (fd < 0 || fstat(fd, &st) || stat(path, &st) || !S_ISREG(st.st_mode) || access("/dev/null", R_OK))
			return "thread";
		close(fd);
	}
	return NULL;
}

static int status(pid_t pid)
{
	int s;

	return waitpid(pid, &s, 0) == pid && WIFEXITED(s) ? WEXITSTATUS(s) : -1;
}

int main(int argc, char **argv)
{
	char *none[] = {NULL}, *show[] = {"sh", "-c", "test -b /dev/mapper/vol", NULL};
	pthread_t t[4];
	struct stat st;
	struct statx x;
	void *failed;
	pid_t pid;
	int fd;

	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, thread, argv[0]);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], &failed);
		if (failed)
			return puts(failed), 1;
	}
	/* children see the same, also with an environment of their own, and from vfork */
	if (!(pid = fork()))
		execve("/bin/sh", show, none);
	printf("fork %d\n", status(pid));
	if (!(pid = vfork())) {
		execve("/bin/sh", show, none);
		_exit(99);
	}
	printf("vfork %d\n", status(pid));
	posix_spawn(&pid, "/bin/sh", NULL, NULL, show, none);
	printf("spawn %d\n", status(pid));
	printf("dlopen %d\n", !dlopen("libm.so.6", RTLD_NOW));
	/* the many names of one call */
	fd = fstatat(AT_FDCWD, "/dev/mapper/vol", &st, 0) || stat("/dev/mapper/vol", &st);
	printf("%d %d\n", fd, S_ISBLK(st.st_mode));
	fd = statx(AT_FDCWD, "/dev/mapper/vol", 0, STATX_SIZE, &x);
	printf("%d %d\n", fd, S_ISBLK(x.stx_mode));
	fd = (int)syscall(SYS_openat, AT_FDCWD, "/dev/mapper/vol", O_RDONLY);
	printf("%d %d\n", fd >= 0, fstat(fd, &st) || !S_ISBLK(st.st_mode));
	fd = open("/dev/mapper/none", O_RDONLY);
	printf("%d %d\n", fd, errno == ENOENT);
	return 0;
}
"""


@pytest.fixture
def compiled(run, work):
    """The compiler runs under dmfs-run, too."""
    needs("cc")
    source, program = os.path.join(work, "p.c"), os.path.join(work, "p")
    with open(source, "w", encoding="ascii") as f:
        f.write(PROGRAM)
    run("cc", "-pthread", source, "-o", program, "-ldl", quiet=False)
    return program


@pytest.mark.parametrize("defines", [[], ["-D_FILE_OFFSET_BITS=64"], ["-D_FILE_OFFSET_BITS=64", "-D_TIME_BITS=64"],
                                     ["-O2", "-D_FORTIFY_SOURCE=2"]])
def test_a_program_built_and_run(run, compiled, work, defines):
    run("dmsetup", "create", "vol", "--table", "0 8 zero")
    run("cc", "-pthread", *defines, os.path.join(work, "p.c"), "-o", compiled, "-ldl", quiet=False)
    assert run(compiled).splitlines() == ["fork 0", "vfork 0", "spawn 0", "dlopen 0", "0 1", "0 1", "1 0", "-1 1"]


SHELL = r"""
cd "$1" && mkdir -p a/b && for i in 1 2 3; do echo $i >a/b/$i; done
ls -lR --time-style=+ a; find a -type f | sort | xargs cat; tar -cf - a | tar -tf -; cp -r a c; mv c d; rm -r d
ln -s b a/link; readlink -f a/link | sed "s,$1,,"; stat -c '%F %s' a/b/1; test -c /dev/null && echo null
(echo x; cat) </dev/null | tr x y; kill -l 9; ulimit -c 0; exit 7
"""


def test_a_script_prints_the_same(run, work):
    out = []
    for name, runner in ("with", run.argv), ("without", lambda *a: list(a)):
        where = os.path.join(work, name)
        os.mkdir(where)
        done = subprocess.run(runner("bash", "-c", SHELL, "sh", where), capture_output=True, text=True, timeout=300,
                              env=run.env, stdin=subprocess.DEVNULL)
        assert done.returncode == 7 and not done.stderr, done.stderr
        out.append(re.sub(r"^total \d+$", "total", done.stdout, flags=re.M))
    assert out[0] == out[1]


@pytest.mark.parametrize("command", ["modprobe dm-crypt", "/sbin/modprobe -q dm_thin_pool dm-raid", "exec modprobe dm_mod"])
def test_the_device_mappers_modules_are_there(run, command):
    needs("modprobe")
    run("sh", "-c", command)
    run("bash", "-c", command)
    run.python("import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1]])", command)


def test_other_modules_are_left_to_modprobe(run):
    needs("modprobe")
    for name in "dm-no-such", "dm-", "no_such_dm-mod":
        assert run.raw("modprobe", name).returncode != 0, name


def test_real_devices_are_where_they_were(run):
    run("sh", "-c", "echo >/dev/null && head -c 1 /dev/zero >/dev/shm/dmfs-run-$$ && rm /dev/shm/dmfs-run-$$ && "
        "test -c /dev/tty")
    assert run("cat", "/proc/self/mountinfo")
    assert run("sh", "-c", "ls /sys/class >/dev/null && ls /sys/kernel | wc -l") != "0\n"


def test_exit_status_and_signals(run):
    assert run.raw("sh", "-c", "exit 42").returncode == 42
    assert run.raw("sh", "-c", "kill -TERM $$").returncode == -15
    assert run.raw("no-such-program").returncode == 127
    assert "command not found" in run.raw("no-such-program").stderr


def test_what_cannot_be_preloaded_is_refused(run, work):
    """Static and setuid programs, also behind a script's #!, are refused with a sentence."""
    needs("cc")
    static = os.path.join(work, "static")
    done = subprocess.run(["cc", "-static", "-x", "c", "-", "-o", static], input="int main(void) { return 0; }",
                          text=True, capture_output=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip("no static C library here")
    script = os.path.join(work, "script")
    with open(script, "w", encoding="ascii") as f:
        f.write(f"#!{static}\n")
    os.chmod(script, 0o755)
    for path in static, script:
        assert run.raw(path).returncode == 126
        run.fails(path, match="static is statically linked: such a program takes no preloaded library")
    for name in "su", "mount", "fusermount3":
        path = shutil.which(name, path=PATH)
        if path and os.geteuid() and os.stat(path).st_mode & 0o4000:
            run.fails(path, match="is setuid or setgid: such a program takes no preloaded library")
            break


def test_arguments(run, fs, tool, work):
    def fails(*args, match, env=None):
        done = subprocess.run([tool("dmfs-run"), *args], capture_output=True, text=True, timeout=300,
                              env=run.env | (env or {}), stdin=subprocess.DEVNULL)
        assert done.returncode == 126 and re.search(match, done.stderr), (done.returncode, done.stderr)

    fails(match="usage: dmfs-run")
    fails("-x", "true", match="usage: dmfs-run")
    fails("-m", work, "true", match="no dmfs is mounted there")
    fails("-m", fs.mountpoint, "-d", os.path.join(work, "none"), "true", match="none: No such file")
    fails("-m", fs.mountpoint, "-d", work, "true", match="a disk is a regular file")
    # a directory in /tmp that somebody else could have prepared
    other = os.path.join(work, "other")
    os.mkdir(other)
    os.mkdir(os.path.join(other, "dmfs-run"))
    os.chmod(os.path.join(other, "dmfs-run"), 0o777)
    fails("-m", fs.mountpoint, "true", match="is not a directory that is this user's alone",
          env={"XDG_RUNTIME_DIR": other})
    assert subprocess.run([tool("dmfs-run"), "true"], env=run.env | {"DMFS_MOUNT": fs.mountpoint}, timeout=300,
                          check=False).returncode == 0


def test_one_within_another(run, dmfs, tool):
    """The inner one is of its own mount; LVM too."""
    other = dmfs()
    other.mkdir("inner", "0 8 zero")
    run.fs.mkdir("outer", "0 8 zero")
    out = run("sh", "-c", f"{tool('dmfs-run')} -m {other.mountpoint} sh -c 'ls /dev/mapper; echo $LVM_SYSTEM_DIR'; "
              "ls /dev/mapper; echo $LVM_SYSTEM_DIR").split()
    assert out[:2] == ["control", "inner"] and out[3:5] == ["control", "outer"] and out[2] != out[5]


def test_an_ordinary_path_is_enough(run):
    run.env = run.env | {"PATH": "/usr/bin:/bin"}
    assert run("dmsetup", "ls") == "No devices found\n"


def test_disks_stay_and_names_differ(run, backing, work):
    os.mkdir(os.path.join(work, "more"))
    first, second = backing(8, name="same"), backing(16, name="more/same")
    run.disks = [first]
    run("true")
    run.disks = [second, first]
    assert run("sh", "-c", "cat /sys/block/same/size /sys/block/same-2/size") == "8\n16\n"
    run.disks = []
    assert run("lsblk", "-bdrno", "NAME,SIZE") == "same 4096\nsame-2 8192\n"
    os.unlink(first)
    run("dmsetup", "create", "x", "--notable")      # something changes
    assert run("ls", "/sys/block") == "same-2\n"


def test_the_shadow_of_a_dead_mount_goes(run, dmfs):
    run("true")
    where = os.path.join(run.runtime, "dmfs-run")
    assert len(os.listdir(where)) == 1
    run.fs.unmount()
    run.fs = dmfs()
    run("true")
    assert len(os.listdir(where)) == 1


def test_the_end_of_a_disk(run):
    disk = run.disk("small.img", 1)
    done = run.raw("dd", "if=/dev/zero", f"of={disk}", "bs=300k")
    assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
    assert os.path.getsize(run.disks[0]) == 1 << 20
    run.fails("python3", "-c", f"import os; os.pwritev(os.open('{disk}', os.O_WRONLY), [b'x'], 1 << 20)",
              match="No space left")


def test_the_readers_first_example(run, work):
    """That of dmfs(1)."""
    needs("lvm", "lsblk")
    run.disk("disk.img", 64)
    for command in ("pvcreate /dev/disk.img", "vgcreate vg /dev/disk.img", "lvcreate -n home -L 16M vg"):
        run("lvm", *command.split())
    run("mkfs.ext4", "-q", "/dev/vg/home")
    assert "vg-home" in run("lsblk")
    run("lvm", "vgchange", "-an", "vg")
