import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.export import comparison_csv, comparison_markdown, runs_csv
from limbeck.reports.page import SECTIONS, report_page

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></table><h1>{{ 7 * 7 }}{% raw %}",
    "' onmouseover=alert(1) ' $x_1$ [red]x[/red]",
    "=1+1\r\n\ttwo\nlines",
    "\U0001f600 \u05e9\u05dc\u05d5\u05dd \u202eabc",
]
VOID = {"meta", "link", "br", "img", "hr", "input", "col"}


class Page(HTMLParser):
    """Tags with the names of their attributes, in order; text; scripts and styles as they stand."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.structure, self.attributes, self.text, self.raw = [], [], [], "", {}
        self.images = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.structure.append((len(self.open), tag, tuple(name for name, _ in attributes)))
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.text += data


class Tables(HTMLParser):
    """Every table: for a column that names its source, the row's name to the cell's value."""

    def __init__(self, text):
        super().__init__()
        self.found, self.columns, self.place, self.row = [], [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "table":
            self.columns = []
        if tag == "th" and values.get("scope") == "col":
            self.columns.append(values.get("data-source"))
        if tag == "th" and values.get("scope") == "row":
            self.row, self.place = values.get("data-value"), 0
        if tag == "td":
            self.place += 1
            source = self.columns[self.place]
            if source is not None:
                self.found.append((self.row, source, values.get("data-value")))


def page_of(folder):
    return report_page(read_comparison(folder))


@pytest.fixture(scope="module")
def page(full):
    """The report of a whole comparison, parsed; ``source`` is its text."""
    text = page_of(full)
    found = Page(text)
    found.source = text
    return found


def poisoned(write_full, write_finding, text, *, name="comparison"):
    """A comparison with one text wherever a name or a sentence comes from a file."""
    hits = {
        "ce": {0: 78, 1: 81, 2: 84},
        "kd": {0: 96, 1: 98, 2: 103},
        "fitnet": {0: 88, 1: text, 2: 97},
        "full": {0: 105, 1: 106, 2: None},
    }
    folder = write_full(
        hits,
        titles={label: f"{text} {label}" for label in hits},
        class_names=[f"{text} {k}" for k in range(6)],
        layer_names=[f"{text} {k}" for k in range(3)],
        name=name,
        command=["limbeck", text],
        begun=text,
        code={"commit": text},
    )
    for path in (folder / "runs").glob("*/summary.json"):
        values = json.loads(path.read_text()) | {"notices": [f"warning: {text}"]}
        path.write_text(json.dumps(values | {"teacher": text, "student": text}))
    for path in (folder / "runs").glob("*/lipschitz.json"):
        values = json.loads(path.read_text()) | {"split": text}
        for profile in values["networks"].values():
            profile["name"] = profile["parts"][0]["first"] = text
        path.write_text(json.dumps(values))
    record = json.loads((folder / "comparison.json").read_text())
    record["settings"]["shared"] = {"data": {"dataset": text}, "student": {"name": text}}
    (folder / "comparison.json").write_text(json.dumps(record))
    for label, key in (("kd", "why"), ("kd", "fidelity"), ("fitnet", "fidelity")):
        write_finding(folder, label, key, text=text)
    return folder


@pytest.fixture(scope="module")
def harmless(write_full_once, write_finding_once):
    """The structure of a page of harmless names."""
    folder = poisoned(write_full_once, write_finding_once, "name", name="harmless")
    return Page(page_of(folder)).structure


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_changes_the_pages_structure_and_each_is_read_as_it_stands(
    write_full, write_finding, harmless, text
):
    found = page_of(poisoned(write_full, write_finding, text))
    page = Page(found)
    assert not page.open
    assert page.structure == harmless
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert page.text.count(shown) > 20
    isolates = {"\u2068", "\u2069"}
    assert {c for c in found if not c.isprintable()} <= {"\n", *isolates}


@pytest.fixture(scope="module")
def analysed(write_full_once, write_finding_once):
    """The same with findings of an analysis."""
    folder = write_full_once(name="analysed")
    for label in ("kd", "rkd"):
        for key in ("why", "fidelity", "boundaries"):
            write_finding_once(folder, label, key)
    text = page_of(folder)
    found = Page(text)
    found.source = text
    return found


def test_every_part_that_a_reader_needs_is_there(page):
    anchors = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    expected = (
        "setting table gains epochs embeddings costs calibration agreement classes layers "
        "lipschitz families"
    )
    assert anchors == [*expected.split(), "notices", "failures", "reproduce", "definitions"]
    links = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert {f"#{anchor}" for anchor in anchors} <= links
    assert len(anchors) == len(SECTIONS) - 2  # nobody analysed it


def test_what_was_found_is_on_the_page_and_why_comes_first(analysed):
    anchors = [v for tag, name, v in analysed.attributes if (tag, name) == ("section", "id")]
    assert anchors[:4] == ["why", "why-1", "why-2", "setting"]
    after = anchors.index("distilled")
    assert anchors[after - 1] == "lipschitz"
    assert anchors[after + 1 : after + 3] == ["distilled-1", "distilled-2"]
    assert analysed.text.index("Why did it (not) help?") < analysed.text.index("The setting")


def test_small_pictures_are_in_the_file_and_have_words_for_them(analysed):
    images = [dict(a) for a in analysed.images]
    assert len(images) == 4
    assert {image["src"] for image in images} == {
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    }
    assert all(len(image["alt"]) > 20 for image in images)
    labels = [v for _, name, v in analysed.attributes if name == "aria-label"]
    assert sum(len(label) > 20 for label in labels) == sum(
        t == "svg" for _, t, _ in analysed.structure
    )
    names = [value for _, name, value in analysed.attributes if name == "id"]
    assert len(set(names)) == len(names)


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(page):
    (policy,) = [
        value
        for tag, name, value in page.attributes
        if name == "content" and "default-src" in value
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    own = {"style-src", "script-src", "img-src"}
    assert rules.keys() == own | {"default-src", "base-uri", "form-action"}
    assert rules["img-src"] == "data:"
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert sum(found[1] == tag for found in page.structure) == 1
    names = {name for _, name, _ in page.attributes}
    assert "style" not in names
    assert not any(name.startswith("on") for name in names)


def test_nothing_is_fetched_from_anywhere(page):
    """Addresses are places on the page, or files that are in it."""
    addresses = [
        v for _, n, v in page.attributes if n in ("href", "src", "srcset", "action", "data")
    ]
    assert all(address.startswith(("#", "data:text/")) for address in addresses)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "image"} & {
        tag for _, tag, _ in page.structure
    }
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    assert not re.search(r"fetch|XMLHttp|import|location|innerHTML|eval", page.raw["script"])


def test_numbers_are_those_of_the_csv(page, full):
    compared = read_comparison(full)
    lines = csv.DictReader(io.StringIO(comparison_csv(compared.rows, compared=compared)))
    cells = {line["label"]: line for line in lines}
    found = Tables(page.source).found
    assert {source for _, source, _ in found} >= {
        "test_top1_mean",
        "gain_mean",
        "gain_holm_p",
        "best_on_validation_test_top1_mean",
        "test_ece_mean",
        "test_agreement_mean",
        "mean_seconds",
        "mean_step_over_floor",
        "num_parameters",
    }
    for row, source, value in found:
        assert (value or "") == cells[row][source], (row, source)


def test_the_tables_can_be_taken_out_of_the_page(page, full):
    compared = read_comparison(full)
    files = [v.partition(",")[2] for _, n, v in page.attributes if n == "href" and "base64" in v]
    assert [base64.b64decode(file).decode() for file in files] == [
        comparison_csv(compared.rows, compared=compared),
        runs_csv(compared),
        comparison_markdown(compared, title="digits_cnn_tiny on digits"),
    ]


def test_every_picture_has_words_for_it(page):
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    pictures = sum(tag == "svg" for _, tag, _ in page.structure)
    assert pictures >= 5
    assert sum(len(label) > 40 for label in labels) == pictures


def test_identifiers_are_there_once(page):
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(names)) == len(names)


def test_one_seed_has_no_intervals_and_the_page_says_so(write_full):
    page = Page(page_of(write_full({"ce": {0: 78}, "kd": {0: 96}})))
    assert "One seed: there are no intervals" in page.text
    assert "no interval, since there is no spread over seeds" in page.text
    about_seeds, _, _ = page.text.partition("Another question, not to be mixed")
    assert "+15.0" in about_seeds
    assert not re.search(r"\+15\.0 \[", about_seeds)


def test_failed_and_missing_runs_are_said_before_anything_else(write_full):
    hits = {"ce": {0: 78, 1: 80}, "kd": {0: "NonFiniteError: at step 3", 1: None}}
    text = Page(page_of(write_full(hits))).text
    for sentence in ("kd, seed 0, failed: NonFiniteError: at step 3", "1 run is still missing."):
        assert text.index(sentence) < text.index("The setting")


@pytest.mark.parametrize("hits", [{"ce": {0: None}, "kd": {0: None}}, {"ce": {0: "it failed"}}])
def test_a_comparison_without_any_run_is_a_page_too(write_full, hits):
    assert "There is no answer" in Page(page_of(write_full(hits))).text


def test_runs_of_an_older_version_are_a_page_too(write_compared):
    """Without answers, epochs, scores, sizes and class names."""
    folder = write_compared({"ce": {0: 0.8, 1: 0.82}, "kd": {0: 0.9, 1: 0.91}})
    assert "kd" in Page(page_of(folder)).text


def test_a_page_is_small(page):
    assert len(page.source.encode()) < 500_000


@pytest.mark.slow
def test_a_large_comparison_stays_under_three_megabytes(write_full):
    """Twelve methods, five seeds, 240 epochs, 100 classes: more than any table here."""
    methods = [f"method{k}" for k in range(12)]
    hits = {"ce": {seed: 700 + seed for seed in range(5)}}
    hits |= {name: {s: 800 + 7 * s + k for s in range(5)} for k, name in enumerate(methods)}
    folder = write_full(hits, num_images=2000, num_classes=100, epochs=240)
    assert len(page_of(folder).encode()) < 3_000_000
