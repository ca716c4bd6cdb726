import pytest
import torch
from torch import nn

from limbeck.analysis.base import Given, NotApplicableError
from limbeck.analysis.bias import BIAS, read_groups
from limbeck.core.errors import DataError

LABELS = torch.arange(40) % 2
GROUPS = ["b" if place % 4 == 0 else "a" if place < 30 else "c" for place in range(40)]


class Wrong(nn.Module):
    """Right but for the images whose numbers, in their pixels, are given."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = torch.tensor(sorted(wrong))

    def forward(self, image):
        number = (image[:, 0, 0, 0] * 255).round().long()
        label = number % 2
        said = torch.where(torch.isin(number, self.wrong), 1 - label, label)
        return torch.nn.functional.one_hot(said, 2).float() * 9


IMAGES = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 2, 2)
WEAK_ON_B = {place for place in range(40) if place % 4 == 0 and place < 24} | {1}


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "groups.csv"
        path.write_text(text)
        return path

    return make


@pytest.fixture
def table(write):
    rows = "".join(f"{place},{group}\n" for place, group in enumerate(GROUPS))
    return write(f"index,group\n{rows}")


def accuracy(wrong, members):
    members = list(members)
    return 1 - len(set(members) & set(wrong)) / len(members)


def by_hand(wrong, group):
    inside = [place for place in range(40) if GROUPS[place] == group]
    outside = [place for place in range(40) if GROUPS[place] != group]
    return accuracy(wrong, outside) - accuracy(wrong, inside)


def test_the_gap_is_that_of_the_teachers_weakest_group(make_case, table):
    case = make_case(
        Wrong(WEAK_ON_B), Wrong({0, 4, 8, 2}), Wrong({2, 3, 4}), IMAGES, LABELS,
        given=Given(groups=table),
    )  # fmt: skip
    found = BIAS.measure(case)
    (reading,) = found.readings
    assert reading.name == "gap of accuracy between the others and 'b'"
    assert reading.teacher == pytest.approx(by_hand(WEAK_ON_B, "b"))
    assert reading.distilled[0].mean() == pytest.approx(by_hand({0, 4, 8, 2}, "b"))
    assert reading.independent[0].mean() == pytest.approx(by_hand({2, 3, 4}, "b"))
    assert reading.nearer == "higher"
    assert found.settings["groups"] == {"a": 22, "b": 10, "c": 8}


def test_the_table_has_every_group(make_case, table):
    case = make_case(
        Wrong(WEAK_ON_B), [Wrong({0}), Wrong({0, 1, 2})], Wrong(()), IMAGES, LABELS,
        given=Given(groups=table),
    )  # fmt: skip
    (rows,) = BIAS.measure(case).tables.values()
    assert [row[:2] for row in rows[1:]] == [("a", "22"), ("b", "10"), ("c", "8")]
    assert rows[2][2:5] == ("40.0%", "90.0%", "100.0%")
    mean = (by_hand({0}, "a") + by_hand({0, 1, 2}, "a")) / 2
    assert rows[1][6] == f"{100 * mean:+.1f} points"


def test_groups_are_of_places_in_the_whole_test_split(make_case, table):
    """The case holds every third image; places are those of all of them."""
    places = torch.arange(0, 40, 3)
    case = make_case(
        Wrong({0, 12}), Wrong({0}), Wrong(()), IMAGES[places], LABELS[places],
        positions=places, given=Given(groups=table),
    )  # fmt: skip
    found = BIAS.measure(case)
    chosen = places.tolist()
    assert found.settings["groups"]["b"] == sum(GROUPS[place] == "b" for place in chosen)
    assert found.readings[0].name.endswith("'b'")


def test_an_empty_group_is_said_and_images_without_one_are_counted(make_case, write):
    rows = "".join(f"{place},{'ab'[place % 3 == 0]}\n" for place in range(36))
    table = write(f"index,group,more\n{rows}90,nobody\n38,\n")
    case = make_case(Wrong({0}), Wrong({1}), Wrong(()), IMAGES, LABELS, given=Given(groups=table))
    found = BIAS.measure(case)
    assert "No image looked at is of 'nobody'." in found.notes
    assert "4 images have no group or no label." in found.notes
    (rows,) = found.tables.values()
    assert [row[0] for row in rows[1:]] == ["a", "b"]


def test_images_without_a_label_are_left_out(make_case, table):
    labels = torch.where(torch.arange(40) < 30, LABELS, -1)
    case = make_case(Wrong({0}), Wrong({1}), Wrong(()), IMAGES, labels, given=Given(groups=table))
    assert sum(BIAS.measure(case).settings["groups"].values()) == 30


@pytest.mark.parametrize("text", ["index,group\n0,a\n1,a\n", "index,group\n900,a\n901,b\n"])
def test_one_group_alone_has_no_gap(make_case, write, text):
    case = make_case(
        Wrong({0}), Wrong({1}), Wrong(()), IMAGES, LABELS, given=Given(groups=write(text))
    )
    with pytest.raises(NotApplicableError, match="a gap is between groups"):
        BIAS.measure(case)


def test_without_a_table_it_says_what_to_give(make_case):
    case = make_case(Wrong({0}), Wrong({1}), Wrong(()), IMAGES, LABELS)
    with pytest.raises(NotApplicableError, match="with --groups"):
        BIAS.measure(case)


def test_a_teacher_that_tells_nothing_apart_is_refused(make_case, table):
    teacher = Wrong({place for place in range(40) if place % 2})
    case = make_case(teacher, Wrong({1}), Wrong(()), IMAGES, LABELS, given=Given(groups=table))
    with pytest.raises(NotApplicableError, match="gives all test images the answer 'a'"):
        BIAS.measure(case)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("place,group\n0,a\n", "has no column 'index' but"),
        ("", "has no column 'index'"),
        ("index,group\n0,a\n0,b\n", "line 3: index '0' stands there twice"),
        ("index,group\n-1,a\n", "line 2: index '-1' is no place"),
        ("index,group\n1.5,a\n", "index '1.5' is no place"),
        ("index,group\n,a\n", "index '' is no place"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(write, text, message):
    with pytest.raises(DataError, match=message):
        read_groups(write(text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_groups(path)


def test_spaces_around_and_a_mark_at_the_front_do_no_harm(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes(b"\xef\xbb\xbfindex,group\r\n 3 , a b \r\n4,\r\n")
    assert read_groups(path) == {3: "a b"}
