import csv

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.core.sources import source_hash
from limbeck.reports.reproduced import published_figures, read_results, results_page

MODULE = "limbeck.methods.output.kd"


def line(recipe, seed, top1, **changes):
    values = {
        "recipe": recipe,
        "protocol": "published",
        "seed": str(seed),
        "top1": str(top1),
        "teacher_top1": "" if "/ce/" in recipe else "0.7900",
        "epochs": "240",
        "date": "2026-01-01",
        "commit": "0123456789abcdef",
        "method_module": MODULE,
        "method_sources": source_hash(MODULE),
        "machine": "one card, 4 threads",
        "seconds": "100.0",
        "images_per_second": "1000",
    }
    return values | changes


@pytest.fixture
def written(tmp_path):
    """``written(*lines)``: what they are read as."""

    def write(*lines):
        path = tmp_path / "results.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return read_results(path)

    return write


KD = "cifar100/kd/resnet32x4-resnet8x4"
CE = "cifar100/ce/resnet8x4"
VRM = "cifar100/vrm/resnet32x4-resnet8x4"


def cells(page, start):
    """The cells of the table's line that starts with ``start``."""
    (found,) = [row for row in page.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_published_figures_are_those_of_the_tables():
    figures = {(figure.pair, figure.recipe): figure for figure in published_figures()}
    assert len(figures) == 305
    kd = figures["resnet32x4->resnet8x4", "kd"]
    assert (kd.top1, kd.protocol) == (73.33, "last epoch")
    assert figures["resnet32x4->resnet8x4", "dkd"].protocol == "best epoch on test"
    assert figures["resnet32x4->resnet8x4", "teacher"].top1 == 79.42
    assert figures["resnet56->resnet20", "dist"].sd == 0.30
    assert {f.protocol for f in figures.values()} == {
        "last epoch",
        "best epoch on test",
        "not stated",
    }


def test_a_line_of_the_page_is_mean_spread_gain_and_difference(written):
    page = results_page(
        written(
            line(KD, 0, 0.73), line(KD, 1, 0.74), line(CE, 0, 0.71), line(CE, 1, 0.73),
            line(CE, 2, 0.99),
        )
    )  # fmt: skip
    recipe, top1, seeds, gain, published, of, difference, *_ = cells(page, "kd")
    assert (recipe, top1, seeds) == ("kd", "73.50 ± 0.71", "0, 1")
    assert gain == "+1.50 (n = 2)"  # over the seeds that both have
    assert (published, of, difference) == ("73.33", "last epoch", "+0.17")
    assert "The teacher here: 79.00; the published tables' teacher: 79.42." in page
    assert cells(page, "resnet8x4")[3] == "72.50 (last epoch)"


def test_one_run_has_no_spread_and_no_published_figure_leaves_its_cells_empty(written):
    page = results_page(written(line(VRM, 3, 0.7)))
    assert cells(page, "vrm")[1:7] == ["70.00", "3", "", "", "", ""]


def test_the_smaller_task_is_compared_with_nothing_published(written):
    page = results_page(written(line("cifar100_small/kd/resnet56-resnet20", 0, 0.4)))
    assert "A smaller task" in page
    assert "| published |" not in page
    assert cells(page, "kd")[1] == "40.00"


def test_a_line_is_marked_once_the_methods_code_has_changed(written):
    (fresh,) = written(line(KD, 0, 0.73))
    assert not fresh.is_stale
    (stale,) = written(line(KD, 0, 0.73, method_sources="0" * 64))
    assert stale.is_stale
    page = results_page([stale])
    assert cells(page, "kd")[1] == "73.00*"
    assert "The method's code has changed" in page
    (gone,) = written(line(KD, 0, 0.73, method_module="limbeck.methods.gone"))
    assert gone.is_stale


def test_a_later_run_of_the_same_seed_takes_the_place_of_an_earlier_one(written):
    (result,) = written(line(KD, 0, 0.5), line(KD, 0, 0.75))
    assert result.top1 == {0: 75.0}


def test_protocols_are_never_averaged(written):
    first, second = written(line(KD, 0, 0.5), line(KD, 1, 0.75, protocol="held-out"))
    assert (first.protocol, second.protocol) == ("held-out", "published")
    assert (first.mean, second.mean) == (75.0, 50.0)


def test_what_is_no_file_of_results_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no such file; `limbeck reproduce`"):
        read_results(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match="is not a file of results: 'recipe'"):
        read_results(tmp_path / "other.csv")
