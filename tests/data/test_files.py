import os
import pickle
import threading
import zipfile

import pytest

from limbeck.core.errors import DataError
from limbeck.data.files import DirectoryFiles, ZipFiles, open_files


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("a/1.txt", "a/b/2.txt", "c.txt", ".hidden/3.txt", "a/.4.txt", "__MACOSX/5.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "empty").mkdir()
    return root


@pytest.fixture
def packed(tree):
    path = tree.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(tree.rglob("*")):
            archive.write(name, name.relative_to(tree))
    return path


def pack(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_zip_is_listed_and_read_as_its_directory(tree, packed):
    for files in (open_files(tree), open_files(packed)):
        listing = files.list()
        assert list(listing.files) == ["a/1.txt", "a/b/2.txt", "c.txt"]
        assert sorted(listing.folders) == ["a", "a/b", "empty"]
        for name in listing.files:
            with files.open(name) as stream:
                assert stream.read().decode() == name


def test_folders_of_a_zip_are_known_from_its_files_alone(tmp_path):
    files = ZipFiles(pack(tmp_path / "x.zip", {"a/b/c.txt": b""}))
    assert files.list().folders == ("a", "a/b")


@pytest.mark.parametrize("stored", ["./a/b.txt", "a//b.txt", "a/./b.txt"])
def test_a_name_in_a_zip_is_read_as_it_is_listed(tmp_path, stored):
    files = ZipFiles(pack(tmp_path / "x.zip", {stored: b"here"}))
    assert list(files.list().files) == ["a/b.txt"]
    assert files.list().folders == ("a",)
    with files.open("a/b.txt") as stream:
        assert stream.read() == b"here"


def test_numbers_beside_the_names_are_sizes_or_checksums(tree, packed):
    assert open_files(tree).list().files["a/1.txt"] == len("a/1.txt")
    with zipfile.ZipFile(packed) as archive:
        assert open_files(packed).list().files["a/1.txt"] == archive.getinfo("a/1.txt").CRC


def test_links_in_a_circle_end(tree):
    (tree / "a" / "up").symlink_to(tree, target_is_directory=True)
    (tree / "a" / "self").symlink_to(tree / "a" / "self")
    (tree / "a" / "gone").symlink_to(tree / "nowhere")
    listing = DirectoryFiles(tree).list()
    assert sorted(listing.files) == ["a/1.txt", "a/b/2.txt", "a/gone", "a/self", "c.txt"]
    for name in ("a/gone", "a/self"):
        with pytest.raises(OSError, match=name):
            DirectoryFiles(tree).open(name)


def test_links_to_other_folders_are_followed(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "6.txt").write_text("there")
    (tree / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "linked/6.txt" in DirectoryFiles(tree).list().files


def test_what_is_no_file_is_not_opened(tree):
    os.mkfifo(tree / "pipe.png")
    with pytest.raises(DataError, match="no regular file"):
        DirectoryFiles(tree).open("pipe.png")


def test_nothing_at_the_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no directory or zip at .*check data_dir"):
        open_files(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/etc/passwd", "a\\..\\out.txt"])
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path, name):
    path = pack(tmp_path / "evil.zip", {"good.txt": b"", name: b"x"})
    with pytest.raises(DataError, match=r"lead out of it, .*(out\.txt|passwd)"):
        ZipFiles(path).list()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_zip_is_an_error(tmp_path, data):
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.zip is no readable zip"):
        open_files(tmp_path / "x.zip")


def test_a_member_that_unpacks_to_far_more_is_refused(tmp_path):
    bomb = pack(
        tmp_path / "bomb.zip", {"big.bmp": bytes(8 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(DataError, match="unpack to 8,388,608; refused"):
        ZipFiles(bomb).open("big.bmp")


def test_small_or_honest_members_are_not_taken_for_bombs(tmp_path):
    path = pack(
        tmp_path / "x.zip",
        {"small.bmp": bytes(1 << 20), "honest.bmp": os.urandom(64) * (1 << 15)},
        compression=zipfile.ZIP_DEFLATED,
    )
    files = ZipFiles(path)
    assert len(files.open("small.bmp").read()) == 1 << 20
    with pytest.raises(DataError, match="refused"):
        files.open("honest.bmp")  # 2 MiB that repeat: as suspicious as zeros


def test_files_larger_than_any_picture_are_refused(tree):
    with (tree / "huge.png").open("wb") as stream:
        stream.truncate((1 << 28) + 1)
    with pytest.raises(DataError, match="268,435,457 bytes"):
        DirectoryFiles(tree).open("huge.png")


def test_a_password_is_an_error_when_listing(tmp_path):
    path = pack(tmp_path / "x.zip", {"a.png": b"data"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"password for 'a\.png'"):
        ZipFiles(path).list()


def test_a_zip_can_be_sent_to_another_process(packed):
    copy = pickle.loads(pickle.dumps(open_files(packed)))
    assert copy.list() == open_files(packed).list()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_with_a_handle_of_its_own(packed):
    """Child and parent read at once; a shared reading position would mix their bytes up."""
    files = open_files(packed)
    handle = files.open("a/1.txt")
    child = os.fork()
    if child == 0:
        ok = files.open("a/b/2.txt").read() == b"a/b/2.txt"
        os._exit(0 if ok and files._opened[0] == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert handle.read() == b"a/1.txt"


def test_many_threads_can_read_one_zip(tmp_path):
    members = {f"{n}.bin": bytes([n]) * 5000 for n in range(50)}
    files = ZipFiles(pack(tmp_path / "x.zip", members))
    wrong = []

    def read():
        wrong.extend(n for n, data in members.items() if files.open(n).read() != data)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
