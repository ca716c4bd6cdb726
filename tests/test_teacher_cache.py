import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch

from limbeck.core.errors import CacheError, RunFolderError, SettingsError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch
from limbeck.teacher_cache import (
    CARD_FILE,
    UNFINISHED_FILE,
    CacheCard,
    CachedTeacher,
    Storage,
    answers_file,
    draw_name,
    read_card,
)

CLASSES, TRAIN, VAL = 7, 12, 5


def fields_of(rows):
    return {name: torch.from_numpy(rows[name].copy()) for name in rows.dtype.names}


def stored(logits, **storage):
    """Logits after they went through a file's rows."""
    rows = Storage(**storage).encode(logits)
    return Storage.decode(fields_of(rows), logits.shape[1])


@pytest.fixture
def logits(generator):
    return 6 * torch.randn(20, CLASSES, generator=generator)


# -- rows --------------------------------------------------------------------------------------


def test_float32_gives_back_every_bit(logits):
    assert torch.equal(stored(logits), logits)


def test_float16_keeps_eleven_bits(logits):
    found = stored(logits, dtype="float16")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits, rtol=2**-11, atol=2**-24)
    assert not torch.equal(found, logits)


@pytest.mark.parametrize("temperature", [None, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [1, 3, CLASSES - 1])
def test_the_highest_keep_their_probability_and_the_others_share_the_rest(
    logits, top_k, temperature
):
    """Row by row in Python: what the softmax of the stored logits must be."""
    t = temperature or 1.0
    kept_logits = stored(logits, top_k=top_k, temperature=temperature)
    found = (kept_logits.double() / t).softmax(dim=1)
    for ours, row in zip(found.tolist(), logits.tolist(), strict=True):
        total = math.fsum(math.exp(z / t) for z in row)
        p = [math.exp(z / t) / total for z in row]
        kept = sorted(range(CLASSES), key=lambda k: -p[k])[:top_k]
        rest = math.fsum(p[k] for k in range(CLASSES) if k not in kept)
        for k in range(CLASSES):
            wanted = p[k] if k in kept else rest / (CLASSES - top_k)
            assert ours[k] == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_the_highest_logits_themselves_are_kept(logits):
    found = stored(logits, top_k=2)
    assert torch.equal(found.topk(2).values, logits.topk(2).values)
    assert torch.equal(found.topk(2).indices, logits.topk(2).indices)


def test_a_gap_of_200_stays_finite():
    found = stored(torch.tensor([[200.0, 0.0, -200.0, -200.0]]), top_k=1, dtype="float16")
    torch.testing.assert_close(found[0, 0], torch.tensor(200.0))
    torch.testing.assert_close(found[0, 1:], torch.full((3,), -math.log(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_classes", [256, 257, 32_768, 32_769])
def test_the_last_class_has_a_number_however_many_there_are(num_classes):
    logits = torch.zeros(2, num_classes)
    logits[0, -1], logits[1, 3] = 9.0, 9.0
    assert stored(logits, top_k=1).argmax(dim=1).tolist() == [num_classes - 1, 3]


def test_a_temperature_is_of_the_classes_left_out():
    with pytest.raises(SettingsError, match="all logits are right at every temperature"):
        Storage(temperature=4.0)


@pytest.mark.parametrize("top_k", [CLASSES, CLASSES + 1])
def test_keeping_all_classes_is_not_keeping_the_highest(top_k):
    with pytest.raises(SettingsError, match=f"below the number of classes, 7; got {top_k}"):
        Storage(top_k=top_k).row(CLASSES)


# -- files -------------------------------------------------------------------------------------


def write(path, logits, storage=None, *, num_images=None, parts=3):
    storage = storage or Storage()
    num_images = len(logits) if num_images is None else num_images
    with answers_file(path, storage, num_images=num_images, num_classes=logits.shape[1]) as append:
        for part in logits.chunk(parts):
            append(part)


@pytest.mark.parametrize("storage", [Storage(), Storage(dtype="float16"), Storage(top_k=2)])
def test_a_file_is_an_array_that_numpy_reads(logits, tmp_path, storage):
    write(tmp_path / "a.npy", logits, storage)
    rows = np.load(tmp_path / "a.npy")
    assert rows.dtype == storage.row(CLASSES)
    assert rows.tobytes() == storage.encode(logits).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_that_was_left_halfway_is_not_there(logits, tmp_path, error):
    def leave():
        how = {"num_images": len(logits), "num_classes": CLASSES}
        with answers_file(tmp_path / "a.npy", Storage(), **how) as append:
            append(logits[:3])
            raise error

    with pytest.raises(error):
        leave()
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_are_our_mistake(logits, tmp_path):
    with pytest.raises(AssertionError):
        write(tmp_path / "a.npy", logits, num_images=21)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path, full_disk):
    with full_disk(), pytest.raises(RunFolderError, match=r"a\.npy could not be written"):
        write(tmp_path / "a.npy", torch.zeros(2000, CLASSES))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "dtype", "advice"),
    [(1e5, "float16", "store float32"), (math.nan, "float32", "its weights")],
)
def test_logits_that_are_not_finite_name_the_image(logits, tmp_path, value, dtype, advice):
    logits[13, 2] = value
    with pytest.raises(CacheError, match=rf"image 13 are not finite in {dtype}; .*{advice}"):
        write(tmp_path / "a.npy", logits, Storage(dtype=dtype))
    assert list(tmp_path.iterdir()) == []


# -- the whole ---------------------------------------------------------------------------------


def card_of(**changes):
    values = {
        "version": "1",
        "teacher": "net",
        "teacher_hash": "ab" * 32,
        "normalization": Normalization(),
        "classes": None,
        "amp_dtype": "float32",
        "num_classes": CLASSES,
        "num_images": {"train": TRAIN, "val": VAL},
        "split_hashes": {"train": "t", "val": "v"},
        "augment": {"flip": True},
        "seed": 0,
        "draws": 2,
        "views": ("strong",),
    }
    return CacheCard(**(values | changes))


@pytest.fixture
def cache(tmp_path, generator):
    """``(folder, logits by file)`` of a whole cache, its card written by hand."""
    card, arrays, files = card_of(), {}, {}
    for name, (count, storage) in card.rows().items():
        arrays[name] = torch.randn(count, CLASSES, generator=generator)
        write(tmp_path / f"{name}.npy", arrays[name], storage)
        content = (tmp_path / f"{name}.npy").read_bytes()
        files[f"{name}.npy"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(card.changed(files=files).plain())
    (tmp_path / CARD_FILE).write_text(text)
    return tmp_path, arrays


def batch_of(index, views=()):
    image = torch.zeros(len(index), 1, 2, 2)
    label = torch.zeros(len(index), dtype=torch.int64)
    return Batch(
        index=torch.tensor(index), image=image, label=label, views=dict.fromkeys(views, image)
    )


def test_the_files_are_those_that_the_card_counts():
    assert list(card_of().rows()) == [
        "val",
        "train-0000",
        "train-strong-0000",
        "train-0001",
        "train-strong-0001",
    ]
    assert card_of().num_bytes() == (4 * TRAIN + VAL) * CLASSES * 4


@pytest.mark.parametrize("epoch", range(5))
def test_an_answer_is_the_row_of_each_image_in_the_epochs_draw(cache, epoch):
    folder, arrays = cache
    index = [7, 0, 11, 7]
    outputs = CachedTeacher(folder).answer(batch_of(index, ("strong",)), epoch)
    assert torch.equal(outputs.logits, arrays[draw_name("", epoch % 2)][index])
    assert torch.equal(
        outputs.views["strong"].logits, arrays[draw_name("strong", epoch % 2)][index]
    )


def test_a_run_may_go_through_fewer_draws_than_there_are(cache):
    folder, arrays = cache
    teacher = CachedTeacher(folder).placed(torch.device("cpu"), cycle=1)
    assert torch.equal(teacher.answer(batch_of([3]), 5).logits, arrays["train-0000"][[3]])


def test_a_view_that_nobody_asks_for_is_not_read(cache):
    folder, _ = cache
    for path in folder.glob("train-strong-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert CachedTeacher(folder).answer(batch_of([1]), 0).views == {}


def test_files_are_memory_mapped_on_the_host(cache):
    folder, _ = cache
    teacher = CachedTeacher(folder)
    teacher.answer(batch_of([0]), 0)
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
        assert str(folder / "train-0000.npy") in maps.read()


def test_nothing_that_is_done_with_an_answer_reaches_the_file(cache):
    folder, arrays = cache
    teacher = CachedTeacher(folder)
    teacher.answer(batch_of([2]), 0).logits.fill_(9)
    assert torch.equal(teacher.answer(batch_of([2]), 0).logits, arrays["train-0000"][[2]])


def test_held_out_answers_are_given_for_the_very_images(cache):
    folder, arrays = cache
    teacher = CachedTeacher(folder)
    assert torch.equal(teacher.logits_of("val", "v"), arrays["val"])
    for split, fingerprint in (("val", "w"), ("test", "v"), ("train", "t")):
        with pytest.raises(CacheError, match=f"no logits of these {split} images"):
            teacher.logits_of(split, fingerprint)


def test_the_hash_is_of_the_content_and_not_of_its_place(cache, tmp_path):
    card = read_card(cache[0])
    assert card.changed(settings={"data.fraction": 1}).hash() == card.hash()
    other = {**card.files, "val.npy": "0" * 64}
    assert card.changed(files=other).hash() != card.hash()


# -- what is no cache --------------------------------------------------------------------------


def test_a_folder_without_one_says_how_to_make_it(tmp_path):
    with pytest.raises(CacheError, match=r"there is no cache\.json; make one with `limbeck cache"):
        CachedTeacher(tmp_path)


def test_what_is_not_finished_is_no_cache(cache):
    folder, _ = cache
    (folder / CARD_FILE).rename(folder / UNFINISHED_FILE)
    with pytest.raises(CacheError, match="not finished; the `limbeck cache` command"):
        CachedTeacher(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "mapping"),
        ('{"teacher": 3}', "version: required"),
    ],
)
def test_a_card_of_something_else_is_refused(cache, text, reason):
    folder, _ = cache
    (folder / CARD_FILE).write_text(text)
    with pytest.raises(CacheError, match=re.escape(f"{CARD_FILE} is not what")) as error:
        CachedTeacher(folder)
    assert reason in str(error.value)


def test_another_format_is_refused(cache):
    folder, _ = cache
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, "schema_number": 99}))
    with pytest.raises(CacheError, match="format 99, and this version reads 1"):
        CachedTeacher(folder)


@pytest.mark.parametrize("name", ["val.npy", "train-0001.npy"])
def test_a_file_that_is_missing_or_short_is_found_at_the_start(cache, name):
    folder, _ = cache
    path = folder / name
    content = path.read_bytes()
    for kept in (0, 50, 200, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(CacheError, match=f"{name} is cut short or damaged"):
            CachedTeacher(folder)
    write(path, torch.zeros(3, CLASSES))
    with pytest.raises(CacheError, match=f"{name} holds .*delete the folder and cache again"):
        CachedTeacher(folder)
    path.unlink()
    with pytest.raises(CacheError, match=f"{name} is missing"):
        CachedTeacher(folder)


def test_a_flipped_bit_is_found_before_it_teaches(cache):
    folder, _ = cache
    path = folder / "train-0001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    teacher = CachedTeacher(folder)
    teacher.answer(batch_of([0]), 0)
    with pytest.raises(CacheError, match=r"train-0001\.npy is damaged: its SHA-256"):
        teacher.answer(batch_of([0]), 1)
