"""Run folders written by hand, field by field as a run writes them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from limbeck.metrics.scorecard import scorecard
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.svg import draw_svg
from limbeck.reports.table import printable


def _score(top1):
    return {"top1": top1, "loss": 0.25}


@pytest.fixture
def write_run(tmp_path):
    """Writes a finished run's folder; ``summary`` and ``config`` replace single fields."""
    return _run_writer(tmp_path)


def _run_writer(place):
    def write(name="run", *, method="kd", seed=0, top1=0.95, best=None, summary=(), config=()):
        folder = place / name
        folder.mkdir(parents=True)
        settings = {
            "seed": seed,
            "data": {"dataset": "digits"},
            "teacher": None if method == "none" else {"model": "digits_cnn"},
            "student": {"model": "digits_cnn_tiny"},
            "method": {"name": method},
            "optim": {"lr": 0.1},
            "schedule": {"epochs": 30},
            "train": {"batch_size": 64},
        }
        result = {
            "version": "0.1.0",
            "method": method,
            "seed": seed,
            "student": "digits_cnn_tiny",
            "teacher": None if method == "none" else "digits_cnn",
            "config_hash": f"c{seed}",
            "data_hash": f"d{seed}",
            "num_parameters": 1702,
            "num_macs": 12000,
            "last": {"epoch": 29, "val": _score(0.9)},
            "best_on_validation": None if best is None else {"epoch": 7, "val": _score(0.92)},
            "test": {
                "last": _score(top1),
                "best_on_validation": None if best is None else _score(best),
            },
            "teacher_val": None,
            "teacher_test": _score(0.99),
            "teacher_hash": "t",
            "seconds": 2.0 + seed,
            "images_per_second": 9000.0,
            "notices": [],
        }
        (folder / "config.json").write_text(json.dumps(settings | dict(config)))
        (folder / "summary.json").write_text(json.dumps(result | dict(summary)))
        return folder

    return write


@pytest.fixture
def write_compared(tmp_path):
    """Writes a comparison's folder: label to seed to test accuracy, or to why the run failed."""
    return _comparison_writer(tmp_path)


def _comparison_writer(place):
    write_run = _run_writer(place)

    def write(results, *, rows=(), name="comparison", summary=(), **fields):
        folder = place / name
        folder.mkdir()
        facts = {
            label: {
                "title": label,
                "role": "baseline" if label == "ce" else "method",
                "method": label,
                "family": "none" if label == "ce" else "output",
                "chosen": {},
                **dict(rows).get(label, {}),
            }
            for label in results
        }
        seeds = sorted({seed for found in results.values() for seed in found})
        shared = {"data": {"dataset": "digits"}, "student": {"name": "digits_cnn_tiny"}}
        record = {
            "settings": {"seeds": seeds, "shared": shared, "tuning": None},
            "rows": facts,
            "code": {"limbeck": "0.1.0"},
            "data": {label: {"test": "t"} for label in results},
            **fields,
        }
        (folder / "comparison.json").write_text(json.dumps(record))
        (folder / "failures").mkdir()
        for label, found in results.items():
            for seed, top1 in found.items():
                if isinstance(top1, float):
                    method = "none" if label == "ce" else label
                    write_run(
                        f"{name}/runs/{label}-seed{seed}",
                        method=method,
                        seed=seed,
                        top1=top1,
                        best=top1,
                        summary=summary,
                    )
                elif top1 is not None:
                    task = f"{label}-seed{seed}"
                    failure = {"task": task, "reason": top1, "traceback": "...", "when": ""}
                    (folder / "failures" / f"{task}.json").write_text(json.dumps(failure))
        return folder

    return write


# Label to seed to how many of 120 test images are right, or to why there is no run.
HITS = {
    "ce": {0: 78, 1: 81, 2: 84},
    "kd": {0: 96, 1: 98, 2: 103},
    "fitnet": {0: 88, 1: 79, 2: 97},
    "rkd": {0: 90, 1: 92, 2: 89},
    "full": {0: 105, 1: 106, 2: 108},
}
# As `limbeck inspect --lipschitz` writes them, of a teacher with one stage more.
PROFILES = {
    "split": "val",
    "num_images": 50,
    "notices": [],
    "networks": {
        name: {
            "name": f"net_{name}",
            "parts": [
                {
                    "first": f"pre_activation:stage{stage}",
                    "second": f"pre_activation:stage{stage + 1}",
                    "sigma_mean": scale * stage,
                    "sigma_sd": 0.25 * scale,
                    "num_layers": 3,
                    "log10_layer_product": -1.5,
                }
                for stage in range(1, stages)
            ],
            "num_layers": 9,
            "log10_layer_product": 4.25,
        }
        for name, stages, scale in (("teacher", 4, 10.0), ("student", 3, 1.0))
    },
}
FAMILIES = {"ce": "none", "fitnet": "feature", "rkd": "relation", "full": "none"}


@pytest.fixture
def write_full(tmp_path):
    """Writes a comparison whose runs kept answers, epochs, costs and where they were made."""
    return _full_writer(tmp_path)


@pytest.fixture(scope="session")
def write_full_once(tmp_path_factory):
    """The same, for what several tests only read."""
    return _full_writer(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="session")
def full(write_full_once):
    """Such a comparison of three methods and a reference, three seeds each; to be read alone."""
    return write_full_once(name="full")


@pytest.fixture(scope="session")
def evidence(full):
    """What is read from it."""
    return Evidence(compared=read_comparison(full))


def _full_writer(place):
    write_compared = _comparison_writer(place)

    def write(
        hits=None,
        *,
        titles=(),
        class_names=None,
        layer_names=None,
        num_images=120,
        num_classes=6,
        epochs=5,
        **fields,
    ):
        hits = HITS if hits is None else hits
        rows = {
            label: {
                "title": dict(titles).get(label, label),
                "family": FAMILIES.get(label, "output"),
                "role": {"ce": "baseline", "full": "reference"}.get(label, "method"),
                "method": "ce" if label == "full" else label,
            }
            for label in hits
        }
        results = {
            label: {
                seed: value / num_images if isinstance(value, int) else value
                for seed, value in found.items()
            }
            for label, found in hits.items()
        }
        folder = write_compared(results, rows=rows, **fields)
        generator = np.random.default_rng(0)
        label = np.arange(num_images) % num_classes
        teacher = _logits(label, num_images - 4, num_classes, generator)
        for run in sorted((folder / "runs").glob("*-seed*")):
            name, _, seed = run.name.rpartition("-seed")
            logits = _logits(label, hits[name][int(seed)], num_classes, generator)
            answers = {"test.label": label, "test.last": logits, "test.teacher": teacher}
            save_file(answers, run / "predictions.safetensors")
            card = scorecard(logits, label, validation=(logits, label), teacher_logits=teacher)
            last = {key: None if np.isnan(value) else value for key, value in card.items()}
            values = json.loads((run / "summary.json").read_text())
            values |= {
                "scores": {"last": last, "teacher": scorecard(teacher, label)},
                "split_sizes": {"train": 600, "val": 50, "test": num_images},
                "notices": [f"reads layer stage2 of {name}", "teacher: 96 %"],
                "floor_images_per_second": 12000.0,
                "peak_memory_bytes": 2**20 * (100 + len(name)),
                "deployed_bytes": 7056,
                "student_hash": f"{int(seed):064x}",
            }
            if name == "fitnet":
                judged = {"test": {"linear_top1": 0.5 + float(seed) / 8, "knn_top1": 0.5}}
                values["embedding"] = {"last": judged}
            (run / "summary.json").write_text(json.dumps(values))
            names = class_names or [f"class {k}" for k in range(num_classes)]
            (run / "student.json").write_text(json.dumps({"class_names": list(names)}))
            machine = {"device": "cpu", "device_name": "x86_64", "threads": 1, "cpus": 2}
            (run / "environment.json").write_text(json.dumps(machine))
            rows = [
                {"stage": "train", "epoch": epoch, "val": {"top1": min(0.9, 0.2 + 0.1 * epoch)}}
                for epoch in range(epochs)
            ]
            lines = [json.dumps(row) + "\n" for row in rows]
            (run / "metrics.jsonl").write_text("".join(lines))
            if run.name == "kd-seed0":
                (run / "lipschitz.json").write_text(json.dumps(PROFILES))
        for run in sorted((folder / "runs").glob("*-seed0")):
            names = layer_names or ("stem", "stage1", "stage2")
            alike = {
                "student": "digits_cnn_tiny",
                "teacher": "digits_cnn",
                "split": "val",
                "num_images": 50,
                "student_layers": {name: f"body.{name}" for name in names[:2]},
                "teacher_layers": {name: name for name in names},
                "values": [[0.875, 0.5, -0.0625], [0.25, 0.75, 0.375]],
            }
            (run / "cka.json").write_text(json.dumps(alike))
        return folder

    return write


def _logits(label, num_right, num_classes, generator):
    """Of images of which the first ``num_right`` in a random order are answered rightly."""
    answer = label.copy()
    wrong = generator.permutation(len(label))[num_right:]
    answer[wrong] = (answer[wrong] + 1) % num_classes
    logits = generator.normal(size=(len(label), num_classes)).clip(-1, 1)
    logits[np.arange(len(label)), answer] += 3
    return logits.astype(np.float32)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is drawn, for reading what stands in them."""
    made = []
    plain = Figure.add_subplot
    monkeypatch.setattr(
        Figure, "add_subplot", lambda self, *args: made.append(plain(self, *args)) or made[-1]
    )
    return made


PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@pytest.fixture
def write_finding():
    """``write_finding(folder, label, key, ...)``: one experiment's files."""
    return _write_finding


@pytest.fixture(scope="session")
def write_finding_once():
    """The same, for what several tests only read."""
    return _write_finding


def _write_finding(folder, label, key, *, text="", readings=None, students=(), **fields):
    """With one text wherever a name or a sentence stands."""
    place = folder / "analysis" / label
    place.mkdir(parents=True, exist_ok=True)
    reading = {
        "name": f"agreement {text}",
        "items": f"images {text}",
        "unit": "fraction",
        "nearer": "higher",
        "words": ["nearer to its teacher", "further from its teacher"],
        "chance": None,
        "teacher": 0.9,
        "independent_by_seed": {"0": 0.5},
        "distilled_by_seed": {"0": 0.75},
        "independent": 0.5,
        "distilled": 0.75,
        "difference": 0.25,
        "seed_interval": [0.125, 0.375],
        "item_interval": [0.2, 0.3],
        "num_seeds": 3,
        "num_items": 120,
        "verdict": "nearer",
        "sentence": f"The student is nearer. {text}",
    }
    pictures = []
    if key != "why":
        svg = draw_svg(
            "drawn", lambda figure: figure.add_subplot().set_title(printable(text)), height=1
        )
        for name, content in (("drawn.svg", svg.encode()), ("shot.png", PNG)):
            (place / f"{key}-{name}").write_bytes(content)
            words = {
                "caption": f"A picture. {text}",
                "alt": f"A picture in a good many words {text}.",
            }
            pictures.append({"file": f"{key}-{name}", **words})
    values = {
        "key": key,
        "title": f"Title of {key} {text}",
        "question": f"Is it so? {text}",
        "source": f"https://example.org {text}",
        "place": {"why": 0}.get(key, 1),
        "inputs": "hash",
        "about": {"students": dict(students), "num_images": 120, "quick": True, "method": label},
        "skipped": None,
        "seconds": 1.0,
        "readings": [reading | one for one in ([{}] if readings is None else readings)],
        "pictures": pictures,
        "tables": {
            f"A table {text}": [
                ["what", "here", "what it usually means", "source"],
                [f"capacity {text}", f"12 {text}", f"It is large. {text}", f"Somebody {text}"],
            ]
        },
        "notes": [f"A note. {text}"],
        "settings": {"epsilon": [0.01, 0.03]},
    }
    path = place / f"{key}.json"
    path.write_text(json.dumps(values | fields))
    return path
