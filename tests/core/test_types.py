import dataclasses

import pytest
import torch

from limbeck.core.errors import MissingOutputError
from limbeck.core.types import (
    UNLABELLED,
    Batch,
    Classifier,
    LossTerms,
    Outputs,
    Progress,
    keyed_generator,
)


def make_batch(**changes):
    values = {
        "index": torch.arange(3),
        "image": torch.zeros(3, 2, 4, 4),
        "label": torch.tensor([0, UNLABELLED, 1]),
        "views": {"strong": torch.ones(3, 2, 4, 4)},
    }
    return Batch(**(values | changes))


def test_a_batch_is_as_long_as_its_images_and_cannot_be_changed():
    batch = make_batch()
    assert len(batch) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.label = torch.zeros(3)
    with pytest.raises(TypeError):
        make_batch(views=Batch.__dataclass_fields__["views"].default_factory()).views["x"] = 1


def test_a_moved_batch_takes_everything_along():
    batch = make_batch(
        teacher_image=torch.zeros(3, 1, 4, 4),
        other_label=torch.arange(3),
        label_share=torch.ones(3),
    )
    moved = batch.to(torch.device("meta"))
    tensors = [moved.index, moved.image, moved.label, moved.teacher_image, *moved.views.values()]
    tensors += [moved.other_label, moved.label_share]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert make_batch().to(torch.device("cpu")).teacher_image is None


def test_the_memory_format_is_of_every_image():
    batch = make_batch(teacher_image=torch.zeros(3, 2, 4, 4))
    moved = batch.to(torch.device("cpu"), memory_format=torch.channels_last)
    for image in (moved.image, moved.teacher_image, moved.views["strong"]):
        assert image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.label, batch.label)


def test_logits_that_were_not_made_are_an_error_that_says_why():
    outputs = Outputs(missing="the pass stopped after 'layer2'")
    assert not outputs.has_logits
    with pytest.raises(MissingOutputError, match="no logits: the pass stopped after 'layer2'"):
        _ = outputs.logits


def test_outputs_start_without_extras():
    logits = torch.zeros(2, 3)
    outputs = Outputs(logits)
    assert outputs.has_logits
    assert outputs.logits is logits
    assert (dict(outputs.features), dict(outputs.views), outputs.members) == ({}, {}, ())
    assert outputs.classifier is None
    assert Classifier(logits).bias is None


def test_parts_of_a_loss_are_for_the_log_alone():
    weight = torch.tensor(2.0, requires_grad=True)
    terms = LossTerms(total=weight * 3, parts={"ce": weight * 3})
    assert terms.total.requires_grad
    assert not terms.parts["ce"].requires_grad


def draws(generator):
    return torch.randint(2**31, (8,), generator=generator).tolist()


def test_randomness_depends_on_seed_epoch_step_and_purpose_and_on_nothing_else():
    here = Progress(seed=1, epoch=2, step=3)
    others = [
        here.replace(seed=2).generator("crop"),
        here.replace(epoch=3).generator("crop"),
        here.replace(step=4).generator("crop"),
        here.generator("flip"),
    ]
    first = draws(here.generator("crop"))
    assert all(draws(other) != first for other in others)
    longer = here.replace(num_epochs=99, num_steps=999)
    assert draws(longer.generator("crop")) == first


def test_the_global_stream_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    draws(Progress().generator("crop"))
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_are_told_apart_where_they_meet():
    keys = [("a", "bc"), ("ab", "c"), ("abc",), (1, 23), (12, 3), (123,)]
    assert len({tuple(draws(keyed_generator(*key))) for key in keys}) == len(keys)


def test_a_key_gives_the_same_seed_on_every_machine():
    """From `printf '0\\x1fcrop' | sha256sum`: who changes this changes every run."""
    assert keyed_generator(0, "crop").initial_seed() == 0x85B1_7244_C099_43D1 >> 1
