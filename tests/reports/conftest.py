"""Run folders written by hand, field by field as a run writes them."""

import json

import pytest
from matplotlib.figure import Figure


def _score(top1):
    return {"top1": top1, "loss": 0.25}


@pytest.fixture
def write_run(tmp_path):
    """Writes a finished run's folder; ``summary`` and ``config`` replace single fields."""

    def write(name="run", *, method="kd", seed=0, top1=0.95, best=None, summary=(), config=()):
        folder = tmp_path / name
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
def write_compared(tmp_path, write_run):
    """Writes a comparison's folder: label to seed to test accuracy, or to why the run failed."""

    def write(results, *, rows=(), name="comparison", summary=(), **fields):
        folder = tmp_path / name
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


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is drawn, for reading what stands in them."""
    made = []
    plain = Figure.add_subplot
    monkeypatch.setattr(
        Figure, "add_subplot", lambda self, *args: made.append(plain(self, *args)) or made[-1]
    )
    return made
