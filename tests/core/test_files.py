import os

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.core.files import fsync_file, fsync_folder, open_durably, write_durably


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_the_name_points_to_it(tmp_path, monkeypatch):
    """The order is the promise: content flushed, renamed, folder flushed."""
    path = tmp_path / "a"
    write_durably(path, b"one")
    seen = []
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: PTH112
        seen.append(("folder" if is_folder else "file", path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_durably(path, b"two")
    assert seen == [("file", b"one"), ("folder", b"two")]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path, full_disk):
    path = tmp_path / "a"
    write_durably(path, b"old")
    wanted = r"a could not be written: File too large\. Free space"
    with full_disk(), pytest.raises(RunFolderError, match=wanted):
        write_durably(path, b"x" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_that_was_not_written_to_its_end_is_not_there(tmp_path, error):
    path = tmp_path / "a"
    write_durably(path, b"old")

    def fail_halfway():
        with open_durably(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/a", "file/a"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=f"{place} could not be written"):
        write_durably(tmp_path / place, b"x")


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        write_durably(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_flushing_leaves_everything_as_it_is(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    fsync_file(path)
    fsync_folder(tmp_path)
    assert path.read_bytes() == b"x"
