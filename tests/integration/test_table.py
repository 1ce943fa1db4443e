# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing a table, naming a device in it, suspending and swapping."""

import errno
import os
import signal
import subprocess
import threading

import pytest

from mounted import SECTOR, pattern, quote


def start(dev, name="table", flags=os.O_TRUNC):
    return os.open(dev.file(name), os.O_WRONLY | flags)


def test_a_table_is_live_at_close(fs):
    dev = fs.mkdir("vol")
    fd = start(dev)
    os.write(fd, b"0 8 zero\n")
    assert dev.table() == "" and dev.inactive() == "" and dev.size() == 0
    os.write(fd, b"8 8 error\n")
    os.close(fd)
    assert dev.table() == "0 8 zero\n8 8 error\n" and dev.inactive() == "" and dev.size() == 8192


def test_a_line_may_come_in_pieces(fs):
    dev = fs.mkdir("vol")
    fd = start(dev)
    for byte in b"0 8 zero\n8 1":
        os.write(fd, bytes([byte]))
    for byte in b"6 error":        # no newline: taken at close
        os.write(fd, bytes([byte]))
    os.close(fd)
    assert dev.table() == "0 8 zero\n8 16 error\n"


def test_the_bad_line_gets_the_error(fs):
    """... from that very write(2), and nothing has changed."""
    dev = fs.mkdir("vol", "0 8 zero")
    fd = start(dev)
    os.write(fd, b"0 8 zero\n8 8 zero\n")
    with pytest.raises(OSError) as e:
        os.write(fd, b"16 8 linear /nonexistent 0\n")
    assert e.value.errno == errno.ENOENT
    assert dev.error().startswith("3: ") and "/nonexistent" in dev.error()
    try:
        os.close(fd)
    except OSError:
        pass
    assert dev.table() == "0 8 zero\n" and dev.inactive() == ""


def test_a_bad_last_line_without_newline_fails_the_close(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    fd = start(dev)
    os.write(fd, b"0 16 zero\n16 8 nosuch")
    with pytest.raises(OSError) as e:
        os.close(fd)
    assert e.value.errno == errno.EINVAL
    assert dev.error().startswith("2: ")
    assert dev.table() == "0 8 zero\n" and dev.inactive() == ""


def test_error_is_empty_after_a_success(fs):
    dev = fs.mkdir("vol")
    dev.refuse("0 8 nosuch\n")
    dev.load("0 8 zero")
    assert dev.error() == ""


def test_the_shell_sees_it(fs, sh):
    dev = fs.mkdir("vol", "0 8 zero")
    done = sh('echo 0 8 nosuch >"$1"/table; echo "status $?"; cat "$1"/error', dev.path, shell="/bin/bash")
    assert "status 1" in done.stdout and "1: " in done.stdout and "Invalid argument" in done.stderr
    done = sh("""set -e; cd "$1"
        { echo 0 8 zero; echo 8 8 zero; } >table; cat table
        (echo 0 8 error; printf '8 8 zero') >table; cat table
        printf '0 24 zero' | tee table >/dev/null; cat table
        exec 3>table; echo 0 32 zero >&3; cat table; exec 3>&-; cat table""", dev.path)
    # (echo's own duplicate of descriptor 3 is closed after it, which loads)
    assert done.stdout.splitlines() == ["0 8 zero", "8 8 zero", "0 8 error", "8 8 zero", "0 24 zero", "0 32 zero",
                                        "0 32 zero"]


def test_a_draft_goes_on_after_a_flush(fs):
    """FLUSH comes at each close of a duplicate: it acts only if the draft has grown, which can go on growing."""
    dev = fs.mkdir("vol", "0 8 error")
    fd = start(dev)
    os.close(os.dup(fd))                    # before the first byte: nothing
    assert dev.table() == "0 8 error\n"
    os.write(fd, b"0 8 zero\n")
    os.close(os.dup(fd))
    assert dev.table() == "0 8 zero\n"
    os.close(os.dup(fd))
    os.write(fd, b"8 8 zero\n")
    assert dev.table() == "0 8 zero\n"
    os.close(fd)
    assert dev.table() == "0 8 zero\n8 8 zero\n"


def test_a_write_must_append(fs):
    dev = fs.mkdir("vol", "0 8 error")
    fd = start(dev)
    with pytest.raises(OSError) as e:
        os.pwrite(fd, b"0 8 zero\n", 5)
    assert e.value.errno == errno.EINVAL
    os.pwrite(fd, b"0 8 zero\n", 0)
    with pytest.raises(OSError) as e:
        os.pwrite(fd, b"0 8 zero\n", 0)
    assert e.value.errno == errno.EINVAL
    try:
        os.close(fd)
    except OSError:
        pass


def test_a_close_with_nothing_written_changes_nothing(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.load("0 16 zero", to="inactive")
    for flags in (0, os.O_TRUNC, os.O_APPEND):
        os.close(start(dev, flags=flags))
    os.close(start(dev, "inactive", 0))
    assert dev.table() == "0 8 zero\n" and dev.inactive() == "0 16 zero\n"
    os.close(start(dev, "inactive"))        # truncated to nothing: cleared
    assert dev.table() == "0 8 zero\n" and dev.inactive() == ""
    dev.load("0 16 zero", to="inactive")
    os.truncate(dev.file("inactive"), 0)
    assert dev.inactive() == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_writer_that_dies_loads_nothing(fs, number):
    dev = fs.mkdir("vol", "0 8 zero")
    for name in ("table", "inactive"):
        # (not `echo >&3`: the shell's duplicate of 3 is closed after it, which loads)
        script = 'exec >"$1"; echo "0 8 error"; echo "8 8 error"; kill -%d $$; sleep 100' % number
        done = subprocess.run(["/bin/bash", "-c", script, "sh", dev.file(name)], timeout=300, check=False)
        assert done.returncode == -number
        assert dev.table() == "0 8 zero\n" and dev.inactive() == ""


def test_two_writers_have_a_draft_each(fs):
    dev = fs.mkdir("vol", "0 8 error")
    one, two = start(dev), start(dev)
    os.write(one, b"0 8 zero\n")
    os.write(two, b"0 16 zero\n")
    os.write(one, b"8 8 error\n")
    os.write(two, b"16 16 error\n")
    os.close(one)
    assert dev.table() == "0 8 zero\n8 8 error\n"
    os.close(two)
    assert dev.table() == "0 16 zero\n16 16 error\n"


def test_many_writers_at_once(fs):
    """Whoever closes last has won, whole."""
    dev = fs.mkdir("vol", "0 8 zero")
    tables = ["".join(f"{i * 8} 8 {kind}\n" for i in range(200)) for kind in ("zero", "error")]
    failures = []

    def writer(text):
        for _ in range(10):
            try:
                dev.write("table", text)
            except OSError as e:
                failures.append(e)

    threads = [threading.Thread(target=writer, args=(t,)) for t in tables * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert dev.table() in tables


def test_comments_and_quotes(fs, backing):
    path = backing(64, name='a "b" c\\d#e\tf')
    dev = fs.mkdir("vol", "# comment", "", "   ", "\t# more", f"0 8 linear {quote(path)} 0", "", "8\t8   zero")
    text = dev.table()
    assert len(text.splitlines()) == 2 and text.endswith("\n8 8 zero\n")
    again = fs.mkdir("again")
    again.write("table", text)              # what is printed loads again and means the same
    assert again.table() == text
    assert again.read("deps") == dev.read("deps")


def test_comments_behind_words(fs):
    """A comment may follow a line, as dmsetup's do; in it a backslash does not join the next line to it."""
    dev = fs.mkdir("vol", "0 8 zero # one", "8 8 zero\t#", "# a path: C:\\", "16 8 zero #\\")
    assert dev.table() == "0 8 zero\n8 8 zero\n16 8 zero\n"
    dev.write("table", "0 8 zero # no newline\\")
    assert dev.table() == "0 8 zero\n"
    fs.mkdir("#1", "0 8 zero")
    dev.load("0 8 linear \\#1 0 # on a device whose name begins like a comment")
    text = dev.table()
    assert dev.read("deps") and text != "0 8 zero\n"
    dev.load("0 8 zero")
    dev.write("table", text)
    assert dev.table() == text
    dev.remove()


def test_plus_before_a_number(fs, backing):
    """Where dmsetup and the kernel read a '+', dmfs does, and nowhere else."""
    a, b = quote(backing(64)), quote(backing(64))
    dev = fs.mkdir("vol", f"+0 +64 striped 2 +8 {a} 0 {b} 0")
    assert dev.table() == f"0 64 striped 2 8 {a} 0 {b} 0\n"
    dev.load(f"0 64 snapshot {a} {b} N +8")
    assert dev.table() == f"0 64 snapshot {a} {b} N 8\n"
    for line in (f"0 64 linear {a} +0", f"0 64 striped +2 8 {a} 0 {b} 0", "++0 64 zero", "0 + zero", "0 +-8 zero"):
        dev.refuse(line + "\n")


def test_odd_file_names(fs, backing):
    for name in ("new\nline", "tab\tname", "two  blanks ", "trail\\", "quo'te\"s", "ünicode", "a,b;c", "\r\v\f"):
        path = backing(64, pattern(64, 9), name=name)
        dev = fs.mkdir("vol")
        dev.write("table", f"0 64 linear {quote(path)} 0\n")
        text = dev.table()
        assert dev.pread(64 * SECTOR, 0) == pattern(64, 9), name
        dev.load("0 8 zero")
        dev.write("table", text)
        assert dev.table() == text and dev.pread(SECTOR, 0) == pattern(1, 9), name
        dev.remove()


def test_inactive_then_resume(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.load("0 16 error", to="inactive")
    assert (dev.table(), dev.inactive(), dev.size()) == ("0 8 zero\n", "0 16 error\n", 4096)
    dev.load("0 24 error", to="inactive")   # replaces it
    assert dev.inactive() == "0 24 error\n"
    dev.resume()
    assert (dev.table(), dev.inactive(), dev.size()) == ("0 24 error\n", "", 24 * SECTOR)
    dev.resume()                            # nothing to swap: nothing happens
    assert dev.table() == "0 24 error\n"


def test_loading_with_an_inactive_table_there(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.load("0 16 error", to="inactive")
    dev.load("0 24 zero")
    assert (dev.table(), dev.inactive()) == ("0 24 zero\n", "")


def test_resume_of_a_device_without_a_table(fs):
    dev = fs.mkdir("vol")
    try:
        dev.resume()
    except OSError as e:
        assert e.errno in (errno.EINVAL, errno.ENXIO)
    assert dev.table() == ""


def test_suspend(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    for noflush in (False, True):
        dev.suspend(noflush)
        assert dev.suspended()
        dev.suspend(noflush)                # again is fine
        assert dev.status().rstrip() == "0 8 zero"      # never blocks
        assert dev.table() == "0 8 zero\n"
        dev.resume()
        assert not dev.suspended()
    for bad in ("2", "x", "1 flush", "0 1", "", " ", "1 noflush noflush", "-1", "01x"):
        if bad:
            with pytest.raises(OSError) as e:
                dev.write("suspend", bad + "\n")
            assert e.value.errno == errno.EINVAL, bad
        assert not dev.suspended()


@pytest.mark.parametrize("noflush", [False, True])
def test_io_waits_while_suspended(fs, backing, noflush):
    one, two = backing(64, bytes(64 * SECTOR)), backing(64, bytes(64 * SECTOR))
    dev = fs.mkdir("vol", f"0 64 linear {quote(one)} 0")
    dev.suspend(noflush)
    done = []
    threads = []
    for i in range(8):
        def io(i=i):
            dev.pwrite(bytes([i + 1]) * SECTOR, i * SECTOR)
            done.append(i)
        threads.append(threading.Thread(target=io))
    for t in threads:
        t.start()
    dev.load(f"0 64 linear {quote(two)} 0", to="inactive")      # the waiting I/O goes to the new table
    assert dev.suspended() and not done
    with open(one, "rb") as f:
        assert f.read() == bytes(64 * SECTOR)
    dev.resume()
    for t in threads:
        t.join()
    assert sorted(done) == list(range(8))
    with open(one, "rb") as f:
        assert f.read() == bytes(64 * SECTOR)
    with open(two, "rb") as f:
        assert f.read(8 * SECTOR) == b"".join(bytes([i + 1]) * SECTOR for i in range(8))


def test_a_table_written_while_suspended_resumes(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.suspend()
    dev.load("0 16 zero")
    assert not dev.suspended() and dev.table() == "0 16 zero\n"


def test_a_refused_table_leaves_it_suspended(fs):
    dev = fs.mkdir("vol", "0 8 zero")
    dev.suspend()
    dev.refuse("0 8 nosuch\n")
    assert dev.suspended()
    dev.resume()


def test_unmount_with_a_suspended_device_and_waiting_io(dmfs):
    """It does not hang: what waits gets an answer."""
    d = dmfs()
    dev = d.mkdir("vol", "0 8 zero")
    dev.suspend()
    got = []

    def io():
        try:
            dev.pwrite(bytes(SECTOR), 0)
            got.append(None)
        except OSError as e:
            got.append(e)

    t = threading.Thread(target=io)
    t.start()
    d.signal(signal.SIGTERM)
    assert d.wait() == 0
    t.join()
    assert len(got) == 1


# --- naming a device --------------------------------------------------------------


def test_ways_to_name_a_dmfs_device(fs, backing):
    data = pattern(64)
    fs.mkdir("low", f"0 64 linear {quote(backing(64, data))} 0")
    for name in ("low", fs["low"].read("dev").strip(), fs.path("low"), fs.path("low", "image")):
        dev = fs.mkdir("top", f"0 32 linear {quote(name)} 16")
        assert dev.table() == "0 32 linear low 16\n"
        assert dev.read("deps").splitlines() == ["low"]
        assert dev.pread(32 * SECTOR, 0) == data[16 * SECTOR:48 * SECTOR]
        dev.remove()
    fs["low"].remove()


def test_a_device_goes_before_a_file(fs, sh, backing, work):
    backing(64, b"f" * 64 * SECTOR, name="vol")
    fs.mkdir("vol", "0 64 zero")
    dev = fs.mkdir("top")
    sh('echo 0 64 linear vol 0 >"$1"', dev.file("table"))
    assert dev.pread(SECTOR, 0) == bytes(SECTOR)
    sh('echo 0 64 linear ./vol 0 >"$1"', dev.file("table"))
    assert dev.pread(SECTOR, 0) == b"f" * SECTOR
    assert dev.table() in (f"0 64 linear {work}/vol 0\n", f"0 64 linear {work}/./vol 0\n")


def test_a_relative_path_is_the_writers(fs, sh, backing, work):
    backing(64, b"w" * 64 * SECTOR, name="file")
    dev = fs.mkdir("top")
    sh('mkdir -p sub && cd sub && echo 0 64 linear ../file 0 >"$1"', dev.file("table"))
    assert dev.pread(SECTOR, 0) == b"w" * SECTOR
    assert dev.table().split()[3] in (f"{work}/file", f"{work}/sub/../file")


def test_a_symbolic_link(fs, backing, work):
    path = backing(64, b"s" * 64 * SECTOR)
    link = os.path.join(work, "link")
    os.symlink(path, link)
    dev = fs.mkdir("top", f"0 64 linear {quote(link)} 0")
    assert dev.pread(SECTOR, 0) == b"s" * SECTOR


def test_a_removed_backing_file_stays_in_use(fs, backing):
    path = backing(64, pattern(64))
    dev = fs.mkdir("vol", f"0 64 linear {quote(path)} 0")
    os.unlink(path)
    assert dev.pread(64 * SECTOR, 0) == pattern(64)


@pytest.mark.root
def test_block_devices(fs, backing, loop):
    path = backing(1024, pattern(1024))
    dev_path = loop(path)
    st = os.stat(dev_path)
    numbers = f"{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}"
    dev = fs.mkdir("vol")
    for name in (dev_path, numbers):
        dev.load(f"0 1000 linear {name} 24")
        assert dev.pread(1000 * SECTOR, 0) == pattern(1024)[24 * SECTOR:]
        assert dev.table().startswith("0 1000 linear /dev/loop")
    dev.pwrite(b"x" * SECTOR, 0, sync=True)
    with open(path, "rb") as f:
        f.seek(24 * SECTOR)
        assert f.read(SECTOR) == b"x" * SECTOR
    dev.refuse(f"0 1025 linear {dev_path} 0\n", errno.EINVAL)
    dev.refuse("0 8 linear 7:99999 0\n", {errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EINVAL})
    dev.discard(0, 512 * SECTOR)
    dev.load("0 8 zero")


@pytest.mark.root
def test_a_loop_device_on_our_own_image(fs, loop, backing):
    """A dmfs device used through a loop device on its image goes through FUSE twice, and must not deadlock."""
    low = fs.mkdir("low", f"0 1024 linear {quote(backing(1024, pattern(1024)))} 0")
    dev = loop(low.image)
    top = fs.mkdir("top", f"0 1000 linear {dev} 24")
    assert top.pread(1000 * SECTOR, 0) == pattern(1024)[24 * SECTOR:]
    top.pwrite(pattern(100, 5), 0, sync=True)
    assert low.pread(100 * SECTOR, 24 * SECTOR) == pattern(100, 5)
    top.remove()


# --- stacks and loops -------------------------------------------------------------


def test_loops_are_refused(fs):
    a = fs.mkdir("a", "0 8 zero")
    b = fs.mkdir("b", "0 8 linear a 0")
    c = fs.mkdir("c", "0 8 linear b 0")
    for dev, on in ((a, "a"), (a, "b"), (a, "c"), (b, "c"), (b, "b")):
        dev.refuse(f"0 8 linear {on} 0\n", errno.ELOOP, line=1)
        dev.refuse(f"0 8 linear {on} 0\n", errno.ELOOP, to="inactive")
    assert c.pread(4096, 0) == bytes(4096)
    # an inactive table counts too
    x, y = fs.mkdir("x", "0 8 zero"), fs.mkdir("y", "0 8 zero")
    x.load("0 8 linear y 0", to="inactive")
    y.refuse("0 8 linear x 0\n", errno.ELOOP)


def test_a_device_never_stands_on_its_own_name(fs, backing, work):
    """Its own name and number in its own table are the file of that name, relative to the writer."""
    path = backing(64, pattern(64), name="vol")
    here, cwd = f"0 64 linear {quote(path)} 0\n", os.getcwd()
    vol, other = fs.mkdir("vol"), fs.mkdir("other", "0 8 zero")
    number = vol.read("dev").strip()
    backing(64, pattern(64, 1), name=number)
    try:
        os.chdir(work)
        for to in ("table", "inactive"):
            vol.load("0 64 linear vol 0", to=to)
            assert vol.read(to) == here and vol.read("deps") == path + "\n"
        assert vol.pread(64 * SECTOR, 0) == pattern(64)
        vol.resume()                            # what is printed loads again and means the same
        vol.load(vol.table().strip())
        assert vol.table() == here
        other.load("0 64 linear vol 0")         # in another's table it is the device
        assert other.read("deps") == "vol\n"
        vol.load(f"0 64 linear {number} 0")
        assert vol.pread(64 * SECTOR, 0) == pattern(64, 1)
        fs.write("concise", f"{os.path.basename(path)}2,,,rw,0 64 linear vol 0;new,,,rw,0 64 linear ./vol 0")
        assert fs["vol2"].read("deps") == "vol\n" and os.path.samefile(fs["new"].read("deps").rstrip("\n"), path)
        for name in ("vol", number):
            os.unlink(os.path.join(work, name))
            text = vol.refuse(f"0 64 linear {name} 0\n", errno.ELOOP, "this very device", 1)
            assert f"./{name}" in text and work in text
        vol.refuse("0 64 linear ./vol 0\n", errno.ENOENT, line=1)
        for name in (vol.path, vol.image, os.path.relpath(vol.image)):  # a path into the mount is no file's
            vol.refuse(f"0 64 linear {quote(name)} 0\n", errno.ELOOP, "this very device", 1)
    finally:
        os.chdir(cwd)


def test_a_tall_stack(fs, backing):
    data = pattern(64)
    path = backing(64, data)
    fs.mkdir("s0", f"0 64 linear {quote(path)} 0")
    for i in range(1, 60):
        fs.mkdir(f"s{i}", f"0 64 linear s{i - 1} 0")
    top = fs["s59"]
    assert top.pread(64 * SECTOR, 0) == data
    top.pwrite(pattern(64, 3), 0, sync=True)
    with open(path, "rb") as f:
        assert f.read() == pattern(64, 3)
    # removed from the top in order, never from below
    with pytest.raises(OSError):
        fs["s58"].remove()
    for i in range(59, -1, -1):
        fs[f"s{i}"].remove()


def test_a_stack_is_swapped_below(fs, backing):
    one, two = backing(64, pattern(64, 1)), backing(64, pattern(64, 2))
    low = fs.mkdir("low", f"0 64 linear {quote(one)} 0")
    top = fs.mkdir("top", "0 64 linear low 0")
    with top.open() as fd:
        assert os.pread(fd, 64 * SECTOR, 0) == pattern(64, 1)
        low.load(f"0 64 linear {quote(two)} 0")
    assert top.pread(64 * SECTOR, 0) == pattern(64, 2)
    low.suspend()                       # what goes through the top waits at the bottom
    got = []
    t = threading.Thread(target=lambda: got.append(top.pread(SECTOR, 0)))
    t.start()
    low.resume()
    t.join()
    assert got == [pattern(64, 2)[:SECTOR]]


def test_a_device_below_that_shrinks(fs):
    low = fs.mkdir("low", "0 64 zero")
    top = fs.mkdir("top", "0 64 linear low 0")
    low.load("0 32 zero")
    assert top.pread(32 * SECTOR, 0) == bytes(32 * SECTOR)
    with pytest.raises(OSError) as e:
        top.pread(SECTOR, 40 * SECTOR)
    assert e.value.errno == errno.EIO
    low.load("0 64 zero")
    assert top.pread(SECTOR, 40 * SECTOR) == bytes(SECTOR)
    top.refuse("0 65 linear low 0\n", errno.EINVAL)
