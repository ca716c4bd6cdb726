"""The pages that `make docs` writes: those in the repository are those of the code as it is."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from limbeck.methods import METHODS

ROOT = Path(__file__).parents[1]
GOLDEN = {"kd": {"a": {"from": "x/y@1 KD.py"}, "b": {"from": "x/y@1 KD.py"}, "c": {"from": "z"}}}
ROWS = [
    {"task": "digits", "method": "kd", "seed": str(seed), "metric": "top1", "value": value}
    for seed, value in enumerate(["0.5", "0.7", ""])
]


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh(docs):
    golden = json.loads(docs.GOLDEN.read_text("utf-8"))
    return docs.pages(golden, docs.read_results(docs.RESULTS))


def test_the_pages_in_the_repository_are_those_of_the_code(docs, fresh):
    """Where this fails, `make docs` and commit what it wrote."""
    there = {path.name: path.read_text("utf-8") for path in docs.PAGES.glob("*.md")}
    assert there.keys() == fresh.keys()
    assert [name for name in fresh if there[name] != fresh[name]] == []


def test_the_table_of_networks_is_that_of_the_code_and_has_the_published_counts(docs):
    """Counts: RepDistiller's and mdistiller's networks."""
    there = docs.NETWORKS.read_text("utf-8")
    assert there == docs.models_page()
    assert "| `resnet8x4` | 100 | 1,233,540 | 177,071,104 | " in there
    assert "| `resnet20` | 100 | 278,324 | " in there


def test_every_method_has_its_page_and_the_index_links_to_it(fresh):
    assert fresh.keys() == {"README.md", *(f"{name}.md" for name in METHODS)}
    linked = re.findall(r"\]\((\w+)\.md\)", fresh["README.md"])
    assert sorted(linked) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_formula_source_and_every_default_and_no_foreign_markup(name, fresh):
    text = fresh[f"{name}.md"]
    assert text.startswith(f"# `{name}`\n")
    assert "```math\n" in text
    for heading in ("Source", "Defaults", "Differs from the source"):
        assert f"\n**{heading}:** " in text
    for field, value in METHODS[name].config().plain().items():
        assert f"\n| `{field}` | `{json.dumps(value)}` | " in text
    for foreign in (".. math", ":class:", ":func:", "````", "None |"):
        assert foreign not in text
    assert text.count("```") % 2 == 0
    assert all(line == line.rstrip() for line in text.split("\n"))
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n") if line[:1] == "|"}
    assert columns <= {4, 7}


CARD = r"""Title: a * b.

.. math:: a \, b
    + c
where x < y of :class:`~a.b.C` and ``code * here``:

- one
  and more;
- two.

Source: Somebody, https://example.org/~a_b|c,
    page 3.
Defaults: none.
"""
MARKDOWN = r"""Title: a \* b.

```math
a \, b + c
```

where x \< y of `C` and `code * here`:

- one and more;
- two.

**Source:** Somebody, https://example.org/~a_b|c, page 3.

**Defaults:** none."""


def test_a_card_becomes_markdown(docs):
    assert docs.card_markdown(CARD) == MARKDOWN


def test_golden_numbers_are_counted_and_their_sources_named_once(docs):
    text = docs.pages(GOLDEN, {})["kd.md"]
    assert "3 numbers that the tests repeat, from:\n\n- x/y@1 KD.py\n- z\n" in text
    assert "## Checked against" not in docs.pages(GOLDEN, {})["rkd.md"]


def test_results_are_a_line_for_all_seeds(docs):
    rows = [row | {"commit": "0123456789ab", "machine": f"m{row['seed']}"} for row in ROWS]
    text = docs.pages({}, {"table.csv": rows})["kd.md"]
    line = "| `table.csv` | task digits, metric top1 | 0.6 | 0.1414 | 2 | `012345678` |"
    assert f"\n{line}\n" in text
    assert "## Results" not in docs.pages({}, {"table.csv": rows})["ce.md"]


def test_tables_without_values_by_method_and_seed_are_left_alone(docs, tmp_path):
    (tmp_path / "a.csv").write_text("method,seed,value\nkd,0,1.5\n")
    (tmp_path / "b.csv").write_text("method,top1\nkd,1.5\n")
    (tmp_path / "c.csv").write_text("")
    assert docs.read_results(tmp_path) == {"a.csv": [{"method": "kd", "seed": "0", "value": "1.5"}]}
    assert docs.read_results(tmp_path / "none") == {}


def test_a_page_of_a_method_that_is_gone_goes(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    (tmp_path / "gone.md").write_text("old")
    docs.main()
    assert {path.stem for path in tmp_path.iterdir()} == {"README", *METHODS}
