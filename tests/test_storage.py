"""Files are whole or not there, one process writes a folder, and the file before is kept."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from metaopt import UserError, storage
from metaopt.storage import (
    keep_previous,
    locked,
    remove_leftovers,
    user_path,
    write_atomically,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


def fail(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A file that takes some bytes and then no more."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        fail()


FAILURES = {
    "replace": fail,
    "fsync": fail,
    "open": lambda path, mode, real=open: FullDisk(real(path, mode)),
}


@pytest.mark.parametrize("old", [b"old content", None], ids=["over an old file", "new file"])
@pytest.mark.parametrize("step", FAILURES)
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(
    path, monkeypatch, step, old
):
    if old is not None:
        path.write_bytes(old)
    place = storage if step == "open" else storage.os
    monkeypatch.setattr(place, step, FAILURES[step], raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new content")
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old
    write_atomically(path, b"new content")
    assert path.read_bytes() == b"new content"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            storage.os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1]
        )
    write_atomically(path, b"content")
    assert calls == ["fsync", "replace", "fsync"]


def test_the_previous_file_is_kept_whole_under_its_own_name(path, tmp_path):
    previous = tmp_path / "before.bin"
    keep_previous(path, previous)
    assert not previous.exists()
    for content in (b"1", b"2", b"3"):
        keep_previous(path, previous)
        write_atomically(path, content)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before.bin", "file.bin"]


def test_the_previous_file_is_copied_where_there_are_no_links(path, tmp_path, monkeypatch):
    path.write_bytes(b"1")

    def refuse(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(storage.os, "link", refuse)
    keep_previous(path, tmp_path / "before.bin")
    path.write_bytes(b"2")
    assert (tmp_path / "before.bin").read_bytes() == b"1"


def test_a_killed_link_is_replaced(path, tmp_path):
    path.write_bytes(b"1")
    (tmp_path / ".before.bin.link.tmp").write_bytes(b"stale")
    keep_previous(path, tmp_path / "before.bin")
    assert (tmp_path / "before.bin").read_bytes() == b"1"
    assert not (tmp_path / ".before.bin.link.tmp").exists()


def test_leftovers_of_these_files_alone_are_removed(tmp_path):
    stale = (".a[1].bin.x1.tmp", ".a[1].bin.link.tmp")
    others = (".a1.bin.x1.tmp", ".b.bin.x1.tmp", "a[1].bin", "a[1].bin.x1.tmp", ".a[1].bin.mine")
    for name in (*stale, *others):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path, ("a[1].bin",))
    assert {p.name for p in tmp_path.iterdir()} == set(others)


def test_leftovers_are_the_temporary_files_of_a_write(path, monkeypatch):
    monkeypatch.setattr(storage.os, "replace", fail)
    monkeypatch.setattr(storage.Path, "unlink", lambda *args, **options: None)  # it was killed
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"content")
    monkeypatch.undo()
    assert len(list(path.parent.iterdir())) == 1
    remove_leftovers(path.parent, (path.name,))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002, 0o022])
def test_files_are_for_those_that_the_umask_says(path, tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(path, b"1")
        keep_previous(path, tmp_path / "previous")
        write_atomically(path, b"2")
        with locked(tmp_path / "new"):
            pass
    finally:
        os.umask(before)
    for made in (path, tmp_path / "previous", tmp_path / "new" / ".lock"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("name", ["n" * 255, "字" * 85, "é" * 127, "n" * 251 + ".bin"])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path, name):
    path = tmp_path / name
    for content in (b"1", b"2"):
        keep_previous(path, tmp_path / "p".ljust(255, "p"))
        write_atomically(path, content)
    assert path.read_bytes() == b"2"
    assert (tmp_path / "p".ljust(255, "p")).read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_home_folder_is_meant_by_a_tilde_at_the_start_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    assert user_path("~/a") == user_path(Path("~") / "a") == Path("/somewhere/a")
    assert user_path("~") == Path("/somewhere")
    for path in ("a/~/b", "a~", "~nobody_of_this_name/a", ""):
        assert user_path(path) == Path(path)


HOLD = """
import sys, time
from pathlib import Path
from metaopt.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_does(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="no other run writes"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path), pytest.raises(UserError), locked(tmp_path):
        pass
    with locked(tmp_path):  # and once more, after it was let go
        pass


def test_keeping_the_same_file_twice_leaves_nothing_else(path, tmp_path):
    path.write_bytes(b"1")
    for _ in range(2):
        keep_previous(path, tmp_path / "before.bin")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before.bin", "file.bin"]
