import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from limbeck.core.errors import DataError
from limbeck.data.cifar import load_cifar

FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVE = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
NAMES = {"cifar10": ["airplane", "automobile", "bird"], "cifar100": ["apple", "baby", "can"]}
PER_FILE = 4  # images


def of_python2(value):
    """Protocol 2 as Python 2 and the numpy of its time wrote it: text is ``str``, that is bytes."""

    def text(data):
        short = len(data) < 256
        return (b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data

    def number(whole):
        return b"K" + bytes([whole]) if 0 <= whole < 256 else b"J" + struct.pack("<i", whole)

    def written(value):
        match value:
            case dict():
                items = b"".join(written(key) + written(item) for key, item in value.items())
                return b"}(" + items + b"u"
            case list():
                return b"](" + b"".join(map(written, value)) + b"e"
            case str():
                return written(value.encode())
            case bytes():
                return text(value) + b"r" + struct.pack("<I", 7)
            case int():
                return number(value)
            case np.ndarray():
                dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
                dtype += b"(K\x03" + text(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb"
                shape = b"".join(map(number, value.shape)) + b"\x86"
                empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
                state = b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"t"
                return empty + text(b"b") + b"\x87R" + state + b"b"
        raise TypeError(value)

    return b"\x80\x02" + written(value) + b"."


def of_python3(protocol):
    def dump(value):
        return pickle.dumps(value, protocol)

    return dump


def old_numpy(value):
    """Protocol 2 of Python 3 with the module names of numpy 1."""
    return pickle.dumps(value, 2).replace(b"numpy._core", b"numpy.core")


WRITERS = {
    "python 2": of_python2,
    "numpy 1, protocol 2": old_numpy,
    **{f"numpy 2, protocol {number}": of_python3(number) for number in (2, 4, 5)},
}


def tables(dataset, seed=0):
    """What the official files hold, with few images: file name to dictionary."""
    rng = np.random.default_rng(seed)
    names = [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]
    found = {}
    for file in names if dataset == "cifar10" else ("train", "test"):
        labels = [int(label) for label in rng.integers(0, len(NAMES[dataset]), PER_FILE)]
        found[file] = {
            "batch_label": f"batch {file}",
            # Few levels, so that an archive has more than stored blocks.
            "data": rng.integers(0, 5, (PER_FILE, 3072), dtype=np.uint8) * 63,
            "filenames": [f"{number}.png" for number in range(PER_FILE)],
        }
        if dataset == "cifar10":
            found[file]["labels"] = labels
        else:
            found[file] |= {"fine_labels": labels, "coarse_labels": [0] * PER_FILE}
    if dataset == "cifar10":
        found["batches.meta"] = {"label_names": NAMES[dataset], "num_vis": 3072}
    else:
        found["meta"] = {"fine_label_names": NAMES[dataset], "coarse_label_names": ["thing"]}
    return found


def files_of(dataset, dump=of_python2, **changes):
    """File name to bytes; ``changes`` replace the bytes of a file, None leaves it out."""
    files = {name: dump(table) for name, table in tables(dataset).items()} | changes
    return {name: data for name, data in files.items() if data is not None}


def unpacked(root, dataset, files):
    folder = root / FOLDER[dataset]
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def packed(root, dataset, files, mode="w:gz"):
    path = root / ARCHIVE[dataset]
    with tarfile.open(path, mode) as archive:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{FOLDER[dataset]}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def expected(dataset):
    """Pixels ``(N, 3, 32, 32)`` and labels of train and test, by plain loops over the bytes."""
    found = tables(dataset)
    key = "labels" if dataset == "cifar10" else "fine_labels"
    train = [name for name in found if name == "train" or name.startswith("data_batch")]
    for names in (train, ["test_batch" if dataset == "cifar10" else "test"]):
        pixels = [
            [[[row[1024 * c + 32 * y + x] for x in range(32)] for y in range(32)] for c in range(3)]
            for name in names
            for row in found[name]["data"]
        ]
        yield pixels, [label for name in names for label in found[name][key]]


def check(splits, dataset):
    for split, (pixels, labels) in zip(splits, expected(dataset), strict=True):
        assert split.images.tolist() == pixels
        assert split.labels.tolist() == labels
        assert split.class_names == tuple(NAMES[dataset])


# -- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", FOLDER)
@pytest.mark.parametrize("writer", WRITERS)
def test_pixels_labels_and_names_are_those_of_the_files(tmp_path, dataset, writer):
    unpacked(tmp_path, dataset, files_of(dataset, WRITERS[writer]))
    check(load_cifar(dataset, tmp_path), dataset)


@pytest.mark.parametrize("dataset", FOLDER)
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_is_read_in_place(tmp_path, dataset, mode):
    packed(tmp_path, dataset, files_of(dataset), mode)
    check(load_cifar(dataset, tmp_path), dataset)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE[dataset]]


@pytest.mark.parametrize("dataset", FOLDER)
@pytest.mark.parametrize("make", [unpacked, packed])
def test_the_folder_or_archive_itself_can_be_named(tmp_path, dataset, make):
    place = make(tmp_path, dataset, files_of(dataset))
    check(load_cifar(dataset, place), dataset)
    check(load_cifar(dataset, str(place.rename(tmp_path / "renamed"))), dataset)


def test_the_unpacked_folder_is_preferred(tmp_path):
    packed(tmp_path, "cifar100", {"train": b"damaged"})
    unpacked(tmp_path, "cifar100", files_of("cifar100"))
    check(load_cifar("cifar100", tmp_path), "cifar100")


def test_keys_may_be_bytes_as_python_3_reads_and_writes_them_again(tmp_path):
    files = {
        name: pickle.dumps({key.encode(): value for key, value in table.items()})
        for name, table in tables("cifar10").items()
    }
    unpacked(tmp_path, "cifar10", files)
    check(load_cifar("cifar10", tmp_path), "cifar10")


def test_what_the_loader_has_no_use_for_is_no_fault(tmp_path):
    more = {**tables("cifar100")["train"], "notes": [None, 1.5, ("a", True)], 7: "seven"}
    files = files_of("cifar100", train=pickle.dumps(more, 2), extra=b"not a pickle")
    unpacked(tmp_path, "cifar100", files)
    check(load_cifar("cifar100", tmp_path), "cifar100")


# -- what is missing or of another shape --------------------------------------------------------


def test_nothing_there_is_an_error_that_says_what_was_wanted(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"neither cifar-10-batches-py/ nor cifar-10-python"):
            load_cifar("cifar10", place)


def test_the_other_data_set_is_not_taken_for_this_one(tmp_path):
    place = packed(tmp_path, "cifar10", files_of("cifar10"))
    with pytest.raises(DataError, match="lacks train, test, meta"):
        load_cifar("cifar100", place)
    with pytest.raises(DataError, match="holds neither cifar-100-python/"):
        load_cifar("cifar100", tmp_path)


@pytest.mark.parametrize("make", [unpacked, packed])
@pytest.mark.parametrize("dataset", FOLDER)
def test_every_missing_file_is_named(tmp_path, dataset, make):
    missing = [name for name in tables(dataset) if name not in ("train", "data_batch_1")]
    make(tmp_path, dataset, files_of(dataset, **dict.fromkeys(missing)))
    with pytest.raises(DataError, match=f"lacks {', '.join(missing)}"):
        load_cifar(dataset, tmp_path)


def test_folders_and_links_in_an_archive_are_no_files(tmp_path):
    path = tmp_path / ARCHIVE["cifar100"]
    files = files_of("cifar100")
    (tmp_path / "secret").write_bytes(files["test"])
    with tarfile.open(path, "w:gz") as archive:
        for name in ("train", "meta"):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("test")
            member.type, member.linkname = kind, str(tmp_path / "secret")
            archive.addfile(member)
    with pytest.raises(DataError, match="lacks test;"):
        load_cifar("cifar100", tmp_path)


PIXELS = np.zeros((PER_FILE, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": PIXELS[:, :-1]}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": PIXELS.reshape(PER_FILE, 3, 1024)}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": PIXELS.astype(np.float32)}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": np.asfortranarray(PIXELS)}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": PIXELS.tobytes()}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": None}, r"no 'data' of shape \(n, 3072\)"),
        ({"data": PIXELS[:-1]}, r"no list 'fine_labels' of 3 whole numbers in \[0, 3\)"),
        ({"fine_labels": [0, 1]}, r"no list 'fine_labels' of 4 whole numbers in \[0, 3\)"),
        ({"fine_labels": [0, 1, 2, 3]}, "no list 'fine_labels'"),
        ({"fine_labels": [0, 1, 2, -1]}, "no list 'fine_labels'"),
        ({"fine_labels": [0, 1, 2, 2**80]}, "no list 'fine_labels'"),
        ({"fine_labels": [0, 1, 2, 0.0]}, "no list 'fine_labels'"),
        ({"fine_labels": [0, 1, 2, "0"]}, "no list 'fine_labels'"),
        ({"fine_labels": (0, 1, 2, 0)}, "no list 'fine_labels'"),
        ({"fine_labels": None}, "no list 'fine_labels'"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_wrong_pixels_or_labels_are_told_with_their_file(tmp_path, change, message, protocol):
    table = tables("cifar100")["test"] | change
    unpacked(tmp_path, "cifar100", files_of("cifar100", test=pickle.dumps(table, protocol)))
    with pytest.raises(DataError, match=f"cifar-100-python: test has {message}"):
        load_cifar("cifar100", tmp_path)


@pytest.mark.parametrize("names", [None, [], "apple", ["apple", 1], [["apple"]]])
def test_names_of_classes_are_a_list_of_text(tmp_path, names):
    meta = pickle.dumps({"fine_label_names": names}, 2)
    unpacked(tmp_path, "cifar100", files_of("cifar100", meta=meta))
    with pytest.raises(DataError, match="meta has no list of fine_label_names"):
        load_cifar("cifar100", tmp_path)


def test_names_that_are_no_utf8_are_read_all_the_same(tmp_path):
    meta = of_python2({"fine_label_names": [b"caf\xe9", b"baby", b"can"]})
    unpacked(tmp_path, "cifar100", files_of("cifar100", meta=meta))
    assert load_cifar("cifar100", tmp_path).train.class_names == ("caf\ufffd", "baby", "can")


def test_a_pickle_of_something_else_is_an_error(tmp_path):
    unpacked(tmp_path, "cifar100", files_of("cifar100", train=pickle.dumps([1, 2], 2)))
    with pytest.raises(DataError, match="train holds a list, and a dictionary was wanted"):
        load_cifar("cifar100", tmp_path)


# -- what is damaged ----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x1f\x8b", b"\x1f\x8bnot gzip" * 100])
def test_a_file_that_is_no_archive_is_an_error(tmp_path, data):
    (tmp_path / ARCHIVE["cifar10"]).write_bytes(data)
    with pytest.raises(DataError, match=r"damaged or cut short .*fetch it again"):
        load_cifar("cifar10", tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99, 0.9999])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_that_is_cut_short_is_an_error(tmp_path, share, mode):
    path = packed(tmp_path, "cifar10", files_of("cifar10"), mode)
    data = path.read_bytes()
    whole = len(data) if mode == "w:gz" else len(data.rstrip(b"\0"))  # the end of a tar is zeros
    path.write_bytes(data[: int(whole * share)])
    with pytest.raises(DataError, match=r"damaged or cut short|lacks"):
        load_cifar("cifar10", tmp_path)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path):
    """Most flips unpack without complaint to other pixels; gzip's checksum tells them."""
    path = packed(tmp_path, "cifar100", files_of("cifar100"))
    whole = path.read_bytes()
    good = [split.fingerprint() for split in load_cifar("cifar100", tmp_path)]
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = load_cifar("cifar100", tmp_path)
        except DataError:
            refused += 1
        else:  # a flip in gzip's own header: a date or a name
            assert [split.fingerprint() for split in found] == good
    assert refused > 380


@pytest.mark.parametrize("writer", WRITERS)
def test_flipped_bytes_in_a_pickle_are_a_data_error_or_other_values(tmp_path, writer):
    files = files_of("cifar100", WRITERS[writer])
    folder = unpacked(tmp_path, "cifar100", files)
    rng = random.Random(0)
    refused = 0
    for turn in range(150):
        name = ("train", "test", "meta")[turn % 3]
        data = bytearray(files[name])
        # Near either end, where the structure is; in the middle there are pixels.
        place = rng.choice((rng.randrange(200), -rng.randrange(1, 200))) % len(data)
        data[place] = rng.randrange(256)
        (folder / name).write_bytes(data if turn % 4 else data[:place])
        try:
            load_cifar("cifar100", tmp_path)
        except DataError:
            refused += 1
        (folder / name).write_bytes(files[name])
    assert refused > 30


@pytest.mark.parametrize("make", [unpacked, packed])
def test_a_file_larger_than_any_of_the_set_is_refused_unread(tmp_path, make):
    place = make(tmp_path, "cifar100", files_of("cifar100"))
    if place.is_dir():
        with (place / "train").open("wb") as stream:
            stream.truncate((1 << 30) + 1)  # a hole: it takes no room on the disk
    else:
        member = tarfile.TarInfo("train")
        member.size = (1 << 30) + 1
        place.write_bytes(member.tobuf() + bytes(512))
    with pytest.raises(DataError, match=r"train has 1,073,741,825 bytes.*refused"):
        load_cifar("cifar100", tmp_path)


def test_a_number_in_a_pickle_reserves_no_memory(tmp_path):
    """Python's reader in C makes its memo as long as the largest number: here 256 MiB."""
    files = files_of("cifar100")
    memo = b"r" + struct.pack("<I", 7)
    assert files["meta"].count(memo) > 3
    files["meta"] = files["meta"].replace(memo, b"r" + struct.pack("<I", 1 << 24), 1)
    unpacked(tmp_path, "cifar100", files)
    tracemalloc.start()
    splits = load_cifar("cifar100", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    check(splits, "cifar100")
    assert peak < 20 << 20


# -- what is hostile ----------------------------------------------------------------------------


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(marker):
    """Pickles that make a file, each in another way."""
    command = f"touch {marker}"
    quoted = repr(command).encode()
    python = repr(f"__import__('os').system({command!r})").encode()
    return {
        **{f"reduce, protocol {p}": pickle.dumps(Evil(command), p) for p in range(6)},
        "within a dictionary": pickle.dumps({"data": Evil(command)}, 2),
        "as a key": pickle.dumps({"data": [{"a": Evil(command)}]}, 4),
        "eval": b"cbuiltins\neval\n(S" + python + b"\ntR.",
        "old builtins": b"c__builtin__\neval\n(S" + python + b"\ntR.",
        "instance": b"(S" + quoted + b"\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS" + quoted + b"\no.",
        "new object": b"\x80\x02csubprocess\nPopen\n(S" + quoted + b"\nt\x81.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.",
        "numpy's exec": b"cnumpy.testing._private.utils\nrunstring\n(S" + python + b"\n}tR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x16ndarray.__class__.__base__\x93.",
        "codecs": b"c_codecs\nlookup\n(S'x'\ntR.",
        "copyreg": b"ccopyreg\n_reconstructor\n(S'x'\ntR.",
        "stand-in called": b"\x80\x02c_codecs\nencode\n(" + b"cos\nsystem\nN" + b"tR.",
        "persistent": b"Psystem\n.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("attack", attacks("x"))
@pytest.mark.parametrize("make", [unpacked, packed])
@pytest.mark.parametrize("file", ["train", "meta"])
def test_nothing_in_a_hostile_pickle_is_run(tmp_path, attack, make, file):
    marker = tmp_path / "marker"
    data = attacks(marker)[attack]
    make(tmp_path, "cifar100", files_of("cifar100", **{file: data}))
    with pytest.raises(DataError, match=f"{file} cannot be read as CIFAR data .*nothing in it was"):
        load_cifar("cifar100", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("attack", ["reduce, protocol 2", "eval", "instance", "object"])
def test_the_attacks_would_work_on_pickle_itself(tmp_path, attack):
    pickle.loads(attacks(tmp_path / "marker")[attack])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "known",
    [
        b"c_codecs\nencode\n",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy._core.numeric\n_frombuffer\n",
    ],
)
def test_a_pickle_cannot_change_what_later_ones_are_read_with(tmp_path, known):
    """BUILD sets attributes of whatever lies on the stack, functions and classes included."""
    states = (b"}S'__call__'\nNs", b"N}S'__call__'\nNs\x86", b"N}S'__defaults__'\n)s\x86")
    for number, state in enumerate(states):
        data = b"\x80\x02" + known + state + b"b0}."
        root = tmp_path / str(number)
        unpacked(root, "cifar100", files_of("cifar100", train=data))
        with pytest.raises(DataError, match="train cannot be read as CIFAR data"):
            load_cifar("cifar100", root)
