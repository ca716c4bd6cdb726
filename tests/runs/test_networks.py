import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.core.errors import CheckpointError, ModelError, RunFolderError
from limbeck.core.normalization import Normalization
from limbeck.models.digits_cnn import digits_cnn_tiny
from limbeck.runs.config import StudentConfig, TeacherConfig
from limbeck.runs.networks import build_student, build_teacher, join_teachers, load_student
from limbeck.teacher import state_hash

TINY = StudentConfig(name="digits_cnn_tiny")


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def bundle(small):
    return small.parts(small.config()).data


def test_the_students_weights_depend_on_the_seed_alone(bundle):
    torch.manual_seed(1)
    first = build_student(TINY, bundle, seed=3)
    torch.manual_seed(2)
    assert equal(state(first.network), state(build_student(TINY, bundle, seed=3).network))
    assert not equal(state(first.network), state(build_student(TINY, bundle, seed=4).network))
    assert first.normalization == bundle.normalization


def test_a_student_can_start_from_a_file(small, bundle, tmp_path):
    weights = state(build_student(TINY, bundle, seed=9).network)
    save_file(weights, tmp_path / "start.safetensors")
    config = TINY.changed(initial_checkpoint=str(tmp_path / "start.safetensors"))
    assert equal(state(build_student(config, bundle, seed=3).network), weights)


def test_a_students_own_normalisation_goes_before_the_datas(bundle):
    own = Normalization(mean=(0.1,), std=(0.2,))
    found = build_student(TINY.changed(normalization=own), bundle, seed=0)
    assert found.normalization == own


def test_code_runs_only_for_a_name_that_was_typed(small, bundle):
    config = StudentConfig(name=small.student)
    with pytest.raises(ModelError, match="is code, and is not run"):
        build_student(config, bundle, seed=0)
    assert build_student(config, bundle, seed=0, typed=small.typed).name == small.student


def test_a_teacher_from_a_run_has_its_weights_and_normalisation(small, bundle):
    found = build_teacher(TeacherConfig(run=small.teacher), bundle)
    loaded, card = load_student(small.teacher)
    assert equal(state(found.network), state(loaded.network))
    assert found.normalization == card.normalization
    own = Normalization(mean=(0.1,), std=(0.2,))
    changed = TeacherConfig(run=small.teacher, normalization=own)
    assert build_teacher(changed, bundle).normalization == own


def test_a_teacher_from_a_file_is_that_file(small, bundle):
    config = TeacherConfig(
        name="digits_cnn_tiny", checkpoint=f"{small.teacher}/student.safetensors"
    )
    loaded, _ = load_student(small.teacher)
    assert equal(state(build_teacher(config, bundle).network), state(loaded.network))


def test_a_teacher_without_its_weights_is_an_error_and_never_a_random_one(bundle, tmp_path):
    config = TeacherConfig(name="digits_cnn_tiny", checkpoint=str(tmp_path / "gone.safetensors"))
    with pytest.raises(CheckpointError, match="is not there"):
        build_teacher(config, bundle)
    with pytest.raises(RunFolderError, match="is missing"):
        build_teacher(TeacherConfig(run=str(tmp_path)), bundle)


def test_a_module_passed_in_python_cannot_be_made_from_its_name(bundle):
    for build in (
        lambda: build_teacher(TeacherConfig(name="python:Net"), bundle),
        lambda: build_student(StudentConfig(name="python:Net"), bundle, seed=0),
    ):
        with pytest.raises(ModelError, match=r"passed in Python.*pass the module again"):
            build()


def test_a_teacher_of_other_classes_is_refused_by_their_names(small):
    with pytest.raises(ModelError, match=r"trained on 10 classes \(.*\), the data has 4 \(class 0"):
        build_teacher(TeacherConfig(run=small.teacher), small.bundle())


def test_without_scores_a_teachers_classes_may_be_any(small, tmp_path):
    """Of a run; and of a file: with another classifier, or none."""
    other = small.bundle()
    loaded, _ = load_student(small.teacher)
    found = build_teacher(TeacherConfig(run=small.teacher), other, scores=False)
    assert equal(state(found.network), state(loaded.network))
    whole = Path(small.teacher) / "student.safetensors"
    config = TeacherConfig(name="digits_cnn_tiny", checkpoint=str(whole))
    with pytest.raises(CheckpointError):
        build_teacher(config, other)
    assert equal(state(build_teacher(config, other, scores=False).network), state(loaded.network))
    backbone = {k: v for k, v in loaded.network.state_dict().items() if not k.startswith("fc.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    config = TeacherConfig(
        name="digits_cnn_tiny", checkpoint=str(tmp_path / "backbone.safetensors")
    )
    with pytest.raises(CheckpointError, match=r"missing in the file \(2\): fc.weight, fc.bias"):
        build_teacher(config, other)
    bare = build_teacher(config, other, scores=False).network.state_dict()
    assert all(torch.equal(bare[name], value) for name, value in backbone.items())


def test_a_file_of_a_timm_backbone_needs_no_classifier(small, tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=1)
    assert network.num_classes == 0
    save_file(network.state_dict(), tmp_path / "tower.safetensors")
    config = TeacherConfig(
        name="timm/vit_small_patch14_dinov2",
        checkpoint=str(tmp_path / "tower.safetensors"),
        img_size=28,
        in_chans=3,
        model_kwargs={"depth": 1},
    )
    found = build_teacher(config, small.bundle(), scores=False)
    assert equal(state(found.network), state(network))


def test_several_teachers_are_each_what_they_are_alone_and_answer_by_their_mean(small, bundle):
    found = build_teacher(TeacherConfig(members=small.several), bundle)
    assert found.name == "digits_cnn_tiny + digits_cnn"
    image = bundle.test.images[:5].float() / 255
    answers = []
    for one, member in zip(small.several, found.each, strict=True):
        alone = build_teacher(TeacherConfig(**one), bundle)
        assert equal(state(member.network), state(alone.network))
        assert member.normalization == alone.normalization
        answers.append(alone.answering().eval()(image).softmax(dim=1))
    together = found.answering()(image)
    torch.testing.assert_close(together.exp(), torch.stack(answers).mean(dim=0))
    assert not any(p.requires_grad for p in found.network.parameters())


def test_one_network_is_its_own_and_only_member(bundle):
    alone = build_student(TINY, bundle, seed=0)
    assert alone.each == (alone,)


def test_the_same_teacher_twice_is_refused_whatever_its_path(small, bundle):
    by_file = {"name": "digits_cnn_tiny", "checkpoint": f"{small.teacher}/student.safetensors"}
    config = TeacherConfig(members=[*small.several, by_file])
    with pytest.raises(ModelError, match="teachers 1 and 3 are the same: digits_cnn_tiny"):
        build_teacher(config, bundle)


def test_the_same_weights_with_another_normalisation_are_another_teacher(small, bundle):
    one = build_teacher(TeacherConfig(run=small.teacher), bundle)
    own = Normalization(mean=(0.1,), std=(0.2,))
    other = build_teacher(TeacherConfig(run=small.teacher, normalization=own), bundle)
    assert len(join_teachers([one, other]).members) == 2


def test_of_several_teachers_the_one_of_other_classes_is_named(small):
    config = TeacherConfig(members=[small.several[0], {"run": small.teacher, "class_map": [0, 1]}])
    with pytest.raises(ModelError, match=rf"teacher {small.teacher} was trained on 10 classes"):
        build_teacher(config, small.bundle())


def test_a_grey_teacher_sees_colour_images_as_grey(small):
    colour = small.parts(small.config("ce", data={"in_chans": 3})).data
    teacher = build_teacher(TeacherConfig(run=small.teacher), colour)
    assert teacher.normalization.in_chans == 1
    assert (
        teacher.network.state_dict().keys()
        == load_student(small.teacher)[0].network.state_dict().keys()
    )


def test_a_finished_runs_student_is_loaded_in_eval_mode_last_or_best(small):
    last, card = load_student(small.teacher)
    best, _ = load_student(small.teacher, best=True)
    assert not last.network.training
    assert (card.model, card.num_classes, card.in_chans) == ("digits_cnn_tiny", 10, 1)
    assert card.image_size == (8, 8)
    assert card.class_names == tuple("0123456789")
    assert last.network.state_dict().keys() == best.network.state_dict().keys()


def write_card(folder, **changes):
    card = {
        "model": "digits_cnn_tiny",
        "num_classes": 10,
        "in_chans": 1,
        "image_size": [8, 8],
        "class_names": list("0123456789"),
        "normalization": {"mean": [0.0], "std": [1.0]},
    }
    (folder / "student.json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("best", "reason"), [(False, "the run is not finished"), (True, "no validation split")]
)
def test_weights_that_are_missing_are_explained(tmp_path, best, reason):
    write_card(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        load_student(tmp_path, best=best)


def test_a_run_of_a_module_passed_in_python_says_how_to_load_it(tmp_path):
    write_card(tmp_path, model="python:Net")
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(ModelError, match=r"limbeck.models.load_weights"):
        load_student(tmp_path)


def test_a_run_whose_student_is_code_is_loaded_only_if_it_was_typed(small, tmp_path):
    write_card(tmp_path, model=small.student)
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(ModelError, match="is code, and is not run"):
        load_student(tmp_path)


def test_a_reused_classifier_comes_back_whole_and_in_plain_torch(small, tmp_path):
    """SimKD: what is judged, counted, written and read again is the same network."""
    config = small.config("simkd", epochs=2, student="digits_cnn_tiny")
    parts = small.parts(config)
    summary = small.run(config, tmp_path / "run", parts=parts)
    loaded, card = load_student(tmp_path / "run")
    best, _ = load_student(tmp_path / "run", best=True)
    assert not equal(state(best.network), state(loaded.network)) or (
        summary.best_on_validation.epoch == summary.last.epoch
    )
    assert state_hash(loaded.network) == summary.student_hash
    assert summary.num_parameters == sum(p.numel() for p in loaded.network.parameters())

    image = parts.data.test.gather(torch.arange(len(parts.data.test))).float() / 255
    image = (image - torch.tensor(card.normalization.mean)) / torch.tensor(card.normalization.std)
    weights = load_file(tmp_path / "run" / "student.safetensors")
    given = {
        part: {
            name.removeprefix(f"{part}."): value
            for name, value in weights.items()
            if name.startswith(f"{part}.")
        }
        for part in ("backbone", "projector", "classifier")
    }
    backbone = digits_cnn_tiny().eval()
    backbone.load_state_dict(
        given["backbone"] | {f"fc.{n}": v for n, v in backbone.fc.state_dict().items()}
    )
    settings = card.reused_classifier
    own, inside, theirs = settings.channels
    projector = nn.Sequential(
        nn.Conv2d(own, inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, inside, 3, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, theirs, 1, bias=False),
        nn.BatchNorm2d(theirs),
        *([nn.ReLU()] if settings.relu else []),
    ).eval()
    projector.load_state_dict(given["projector"])
    classifier = nn.Linear(theirs, 10)
    classifier.load_state_dict(given["classifier"])
    with torch.no_grad():
        x = backbone.halve(backbone.stage2(backbone.halve(backbone.stage1(image))))
        logits = classifier(projector(backbone.stage3(x)).mean(dim=(2, 3)))
        torch.testing.assert_close(loaded.network(image), logits)
    judged = load_file(tmp_path / "run" / "predictions.safetensors")["test.last"]
    torch.testing.assert_close(judged, logits)  # as the run's last evaluation had them
    top1 = (logits.argmax(1) == parts.data.test.labels).float().mean().item()
    assert summary.test.last["top1"] == pytest.approx(top1)


def test_a_student_of_simkd_can_be_a_teacher(small, tmp_path):
    small.run(small.config("simkd", epochs=1, student="digits_cnn_tiny"), tmp_path / "first")
    config = small.config("fitnet_one_stage", epochs=1, teacher={"run": str(tmp_path / "first")})
    assert small.run(config, tmp_path / "second").teacher_val is not None
