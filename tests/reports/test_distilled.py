import pytest

from limbeck.reports.compared import read_comparison
from limbeck.reports.distilled import distilled, why
from limbeck.reports.evidence import Evidence


def evidence_of(folder):
    return Evidence(compared=read_comparison(folder))


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def titles(table):
    return [column.title for column in table.columns]


@pytest.fixture
def folder(write_full):
    return write_full()


def test_nothing_was_analysed(folder):
    assert why(evidence_of(folder)) is None
    assert distilled(evidence_of(folder)) is None


def test_why_has_a_part_for_each_method_with_number_meaning_and_source(folder, write_finding):
    for label in ("kd", "rkd"):
        write_finding(folder, label, "why")
    section = why(evidence_of(folder))
    assert [part.title for part in section.parts] == ["kd", "rkd"]
    (fact,) = section.parts[0].facts
    assert fact == ("capacity ", ("12 ", "It is large. ", "Somebody "))
    assert "The student is nearer. " in section.parts[0].text


def test_why_repeats_the_verdict_of_all_rows_together(folder, write_finding):
    write_finding(folder, "rkd", "why")
    evidence = evidence_of(folder)
    sentence = evidence.rows["rkd"].over_baseline.sentence
    assert why(evidence).parts[0].text[0] == f"In the table of all methods: {sentence}"


def test_a_question_that_was_not_asked_says_why(folder, write_finding):
    write_finding(folder, "kd", "why", skipped="no label", readings=[], tables={})
    write_finding(folder, "kd", "fidelity", skipped="no label", readings=[], tables={}, pictures=[])
    evidence = evidence_of(folder)
    assert why(evidence).parts[0].text == ("Not asked: no label",)
    section = distilled(evidence)
    assert texts(section.tables[0])[0][1] == "not asked"
    assert "not asked: no label" in section.parts[0].items


def test_the_overview_has_a_line_for_each_question_and_a_column_for_each_method(
    folder, write_finding
):
    further = {"verdict": "further", "difference": -0.25, "words": ["flatter", "sharper"]}
    write_finding(folder, "kd", "fidelity")
    write_finding(folder, "rkd", "fidelity", readings=[further])
    write_finding(folder, "kd", "zones", place=2)
    (overview,) = distilled(evidence_of(folder)).tables
    assert titles(overview) == ["question", "kd", "rkd", "what was measured"]
    assert texts(overview) == [
        ["Title of fidelity ", "nearer, +25.0 points", "sharper, \u221225.0 points", "agreement "],
        ["Title of zones ", "nearer, +25.0 points", "", "agreement "],
    ]
    assert [cell.mark for cell in overview.rows[0]] == [None, "better", "worse", None]


def test_readings_have_both_students_the_interval_and_its_n(folder, write_finding):
    nats = {"unit": "nats", "seed_interval": None, "teacher": None, "verdict": "cannot tell"}
    write_finding(folder, "kd", "fidelity", readings=[{}, nats])
    (part,) = distilled(evidence_of(folder)).parts
    table = part.tables[0]
    assert titles(table) == [
        "taught by", "what was measured", "verdict", "difference", "distilled", "independent",
        "teacher", "over",
    ]  # fmt: skip
    assert texts(table) == [
        ["kd", "agreement ", "nearer", "+25.0 points [+12.5, +37.5]", "75.0 %", "50.0 %", "90.0 %",
         "3 seeds; 120 images "],
        ["kd", "agreement ", "cannot tell", "+0.250 [+0.200, +0.300]", "0.750 nats", "0.500 nats",
         "", "items of one pair; 120 images "],
    ]  # fmt: skip


def test_tables_are_folded_and_sorted_as_numbers_where_they_are(folder, write_finding):
    rows = [["class", "gain", "most with"], ["a", "+1.5", "b (2.0%)"], ["b", "12.5%", "a"]]
    write_finding(folder, "kd", "classes", tables={"Do they gain?": rows, "Empty": [["x"]]})
    (part,) = distilled(evidence_of(folder)).parts
    (table,) = part.tables[1:]
    assert (table.caption, table.folded) == ("Do they gain?", True)
    assert [column.numeric for column in table.columns] == [False, True, False]
    assert [row[1].value for row in table.rows] == [1.5, 12.5]


def test_pictures_and_tables_say_whose_they_are_where_there_are_several(folder, write_finding):
    for label in ("kd", "rkd"):
        write_finding(folder, label, "fidelity")
    (part,) = distilled(evidence_of(folder)).parts
    assert [picture.caption[:3] for picture in part.pictures] == ["kd:", "kd:", "rkd", "rkd"]
    assert [table.caption[:3] for table in part.tables[1:]] == ["kd:", "rkd"]
    assert part.items == ("A note. ",)
    assert ("settings", "epsilon: 0.01 and 0.03") in part.facts


def test_pictures_beyond_their_room_are_named_instead(folder, write_finding, monkeypatch):
    write_finding(folder, "kd", "fidelity")
    monkeypatch.setattr("limbeck.reports.distilled._MOST_BYTES", 10)
    (part,) = distilled(evidence_of(folder)).parts
    assert part.pictures == ()
    assert "left out for its size: fidelity-shot.png; A picture in" in part.items[1]


def test_what_was_found_of_other_networks_is_left_out_and_said(folder, write_finding):
    write_finding(folder, "kd", "fidelity", students={"distilled 0": "gone"})
    section = distilled(evidence_of(folder))
    assert section.parts == ()
    assert "Title of fidelity" in section.text[-1]
    assert "Run `limbeck analyse` again" in section.text[-1]


def test_the_page_says_of_how_many_images_and_how_thoroughly(folder, write_finding):
    write_finding(folder, "kd", "fidelity")
    said = distilled(evidence_of(folder)).text[1]
    assert "120 images; asked with --quick" in said
    write_finding(folder, "kd", "zones", about={"num_images": 400})
    said = distilled(evidence_of(folder)).text[1]
    assert "120 to 400 images; 1 of 2 asked with --quick" in said


@pytest.mark.parametrize(("images", "said"), [(100, True), (120, False), (None, False)])
def test_an_analysis_of_fewer_images_than_the_tables_says_so(folder, write_finding, images, said):
    write_finding(folder, "kd", "why", about={"num_images": images})
    text = " ".join(why(evidence_of(folder)).parts[0].text)
    assert ("took 100 of the 120 test images" in text) is said
