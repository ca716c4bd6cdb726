"""What was distilled, from what ``limbeck analyse`` left in a comparison's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from limbeck.reports.evidence import Evidence
from limbeck.reports.findings import Found, FoundReading, read_picture
from limbeck.reports.layout import (
    Cell,
    Column,
    Picture,
    Section,
    Table,
    amount,
    count,
    listed,
)
from limbeck.reports.statistics import Interval

__all__ = ["distilled", "why"]

_WHY = "why"
_MOST_BYTES = 3_000_000  # of pictures: the page stays below 8 MB with all that is around them
_UNITS = {"fraction": " %", "1": "", "nats": " nats"}
_MARKS: Mapping[str, Literal["better", "worse", "cannot tell"]] = {
    "nearer": "better",
    "further": "worse",
    "cannot tell": "cannot tell",
}


def why(evidence: Evidence) -> Section | None:
    """The page that a practitioner reads first; None where nobody analysed the comparison."""
    parts = []
    for number, (label, found) in enumerate(_of(evidence, _WHY).items(), 1):
        if found.skipped is not None:
            parts.append(
                Section(
                    name=f"why-{number}",
                    title=evidence.name(label),
                    text=(f"Not asked: {found.skipped}",),
                )
            )
            continue
        parts.append(
            Section(
                name=f"why-{number}",
                title=evidence.name(label),
                text=(
                    *_in_the_table(evidence, label),
                    *(reading.sentence for reading in found.readings),
                    *_of_fewer(evidence, found),
                    *found.notes,
                ),
                facts=tuple(
                    (what, tuple(lines))
                    for rows in found.tables.values()
                    for what, *lines in rows[1:]
                ),
            )
        )
    if not parts:
        return None
    return Section(
        name="why",
        title="Why did it (not) help?",
        text=(
            "Each line is one number of these networks, what such a number usually means, and who "
            "says so; none of them proves a cause. An independent student is one of the same "
            "architecture and settings that never saw the teacher.",
        ),
        parts=tuple(parts),
    )


def _in_the_table(evidence: Evidence, label: str) -> tuple[str, ...]:
    """The comparison's own verdict, which is of all rows together."""
    row = evidence.rows.get(label)
    if row is None or row.over_baseline is None:
        return ()
    return (f"In the table of all methods: {row.over_baseline.sentence}",)


def _of_fewer(evidence: Evidence, found: Found) -> tuple[str, ...]:
    """Where it is not of all test images, as the table of the comparison is."""
    images, total = found.num_images, evidence.num_test
    if images is None or total is None or images >= total:
        return ()
    return (
        f"The analysis took {images:,} of the {total:,} test images, so its accuracies differ a "
        "little from the table's.",
    )


def distilled(evidence: Evidence) -> Section | None:
    """Every experiment, all rows together; None where nobody analysed the comparison."""
    every = {key: _of(evidence, key) for key in _keys(evidence) if key != _WHY}
    stale = [
        f"Of {evidence.name(label)}, these are of networks that are not the comparison's any more, "
        f"and are left out: {listed(findings.stale)}. Run `limbeck analyse` again."
        for label, findings in evidence.findings.items()
        if findings.stale
    ]
    if not every and not stale:
        return None
    room = [_MOST_BYTES]
    parts = [
        _experiment(evidence, f"distilled-{number}", found, room)
        for number, found in enumerate(every.values(), 1)
    ]
    text = [
        "Two good networks agree without having met. So every number of a distilled student stands "
        "beside that of the independent student, and what counts is the difference. Nearer to the "
        "teacher is not better: students inherit faults as well."
    ]
    if every:
        text.append(_extent(every))
    return Section(
        name="distilled",
        title="What was distilled?",
        text=(*text, *stale),
        tables=(_overview(evidence, every),) if every else (),
        parts=tuple(parts),
    )


def _of(evidence: Evidence, key: str) -> dict[str, Found]:
    """Label to one experiment's finding, of rows that have it."""
    return {
        label: found
        for label, findings in evidence.findings.items()
        for found in findings.found
        if found.key == key
    }


def _keys(evidence: Evidence) -> list[str]:
    """Of all experiments that a row has, in the order of the report."""
    places = {
        found.key: found.place
        for findings in evidence.findings.values()
        for found in findings.found
    }
    return sorted(places, key=lambda key: (places[key], key))


def _extent(every: Mapping[str, Mapping[str, Found]]) -> str:
    """Of how many images all of this is."""
    findings = [found for by_label in every.values() for found in by_label.values()]
    images = sorted({found.num_images for found in findings if found.num_images is not None})
    text = "All of it is of the test split"
    if images:
        span = " to ".join(f"{number:,}" for number in dict.fromkeys((images[0], images[-1])))
        text += f", {span} images"
    quick = sum(found.quick for found in findings)
    if quick:
        text += (
            "; "
            + ("asked" if quick == len(findings) else f"{quick} of {len(findings)} asked")
            + " with --quick, which takes fewer images, planes and changes"
        )
    return (
        f"{text}. Intervals are of 95 %: over seeds where there are two or more, else over items "
        "of the one pair of networks. They are not corrected for the number of questions."
    )


def _overview(evidence: Evidence, every: Mapping[str, Mapping[str, Found]]) -> Table:
    """Each experiment's headline, a column for each row of the comparison."""
    labels = [k for k in evidence.findings if any(k in by_label for by_label in every.values())]
    rows = []
    for by_label in every.values():
        one = next(iter(by_label.values()))
        headline = next((f.readings[0].name for f in by_label.values() if f.readings), "")
        rows.append(
            (
                Cell(text=one.title, value=one.title),
                *(_headline(by_label.get(label)) for label in labels),
                Cell(text=headline, value=headline),
            )
        )
    return Table(
        caption="The first number of each question: distilled less independent student.",
        columns=(
            Column(title="question", numeric=False),
            *(Column(title=evidence.name(label), numeric=False) for label in labels),
            Column(title="what was measured", numeric=False),
        ),
        rows=tuple(rows),
    )


def _headline(found: Found | None) -> Cell:
    if found is None:
        return Cell(text="")
    if found.skipped is not None:
        return Cell(text="not asked")
    if not found.readings:
        return Cell(text="see below")
    return _verdict(found.readings[0], with_number=True)


def _experiment(
    evidence: Evidence, name: str, found: Mapping[str, Found], room: list[int]
) -> Section:
    one = next(iter(found.values()))
    several = len(found) > 1
    items = []
    pictures: list[Picture] = []
    tables: list[Table] = []
    readings = [(label, r) for label, f in found.items() for r in f.readings]
    if readings:
        tables.append(_readings_table(evidence, readings))
    for number, (label, finding) in enumerate(found.items(), 1):
        whose = f"{evidence.name(label)}: " if several else ""
        if finding.skipped is not None:
            items.append(f"{whose}not asked: {finding.skipped}")
        for place, picture in enumerate(finding.pictures, 1):
            drawn = read_picture(finding, picture, name=f"{name}-{number}-{place}", caption=whose)
            room[0] -= len(drawn.png or drawn.svg)
            if room[0] < 0:
                items.append(f"{whose}left out for its size: {picture.file}; {picture.alt}")
            else:
                pictures.append(drawn)
        tables += _tables(finding, whose)
    notes = dict.fromkeys(note for finding in found.values() for note in finding.notes)
    settings = dict.fromkeys(_settings(finding) for finding in found.values())
    facts = [("source", one.source)]
    facts += [("settings", text) for text in settings if text]
    return Section(
        name=name,
        title=one.title,
        text=(one.question,),
        items=(*items, *notes),
        pictures=tuple(pictures),
        tables=tuple(tables),
        facts=tuple(facts),
    )


def _settings(found: Found) -> str:
    def text(value: object) -> str:
        return listed(map(str, value)) if isinstance(value, list) and value else str(value)

    return "; ".join(f"{name}: {text(value)}" for name, value in found.settings.items())


def _readings_table(evidence: Evidence, readings: Sequence[tuple[str, FoundReading]]) -> Table:
    rows = []
    for label, reading in readings:
        interval = reading.seed_interval or reading.item_interval
        over = (
            count(reading.num_seeds, "seed")
            if reading.seed_interval is not None
            else "items of one pair"
        )
        rows.append(
            (
                evidence.name_cell(label),
                Cell(text=reading.name, value=reading.name),
                _verdict(reading, with_number=False),
                Cell(text=_difference(reading, interval), value=reading.difference),
                _number(reading, reading.distilled),
                _number(reading, reading.independent),
                _number(reading, reading.teacher),
                _number(reading, reading.chance),
                Cell(text=f"{over}; {reading.num_items:,} {reading.items}"),
            )
        )
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="what was measured", numeric=False),
        Column(title="verdict", numeric=False),
        Column(title="difference", note="95 % interval"),
        Column(title="distilled"),
        Column(title="independent"),
        Column(title="teacher"),
        Column(title="chance"),
        Column(title="over", numeric=False),
    )
    there = [place for place in range(len(columns)) if any(row[place].text for row in rows)]
    return Table(
        caption="Distilled and independent student; means over seeds and items.",
        columns=tuple(columns[place] for place in there),
        rows=tuple(tuple(row[place] for place in there) for row in rows),
    )


def _number(reading: FoundReading, value: float | None) -> Cell:
    if value is None:
        return Cell(text="")
    fraction = reading.unit == "fraction"
    text = amount(value, 1 if fraction else 3, scale=100 if fraction else 1)
    return Cell(text=text + _UNITS[reading.unit], value=value)


def _difference(
    reading: FoundReading, interval: tuple[float | None, float | None] | Interval | None
) -> str:
    """In points, or in the reading's own unit."""
    fraction = reading.unit == "fraction"
    scale, decimals = (100, 1) if fraction else (1, 3)
    text = amount(reading.difference, decimals, scale=scale, sign="+")
    if fraction:
        text += " points"
    if interval is None:
        return text
    low, high = (amount(end, decimals, scale=scale, sign="+") for end in interval)
    return f"{text} [{low}, {high}]"


def _verdict(reading: FoundReading, *, with_number: bool) -> Cell:
    word = {
        "nearer": reading.words[0],
        "further": reading.words[1],
        "cannot tell": "cannot tell",
    }[reading.verdict]
    word = word.removesuffix(" to its teacher").removesuffix(" from its teacher")
    text = f"{word}, {_difference(reading, None)}" if with_number else word
    return Cell(text=text, value=reading.difference, mark=_MARKS[reading.verdict])


def _tables(found: Found, whose: str) -> Iterator[Table]:
    for title, rows in found.tables.items():
        if len(rows) < 2:
            continue
        head, *lines = rows
        numeric = [
            all(_is_number(line[place]) for line in lines if place < len(line))
            for place in range(len(head))
        ]
        yield Table(
            caption=f"{whose}{title}{'' if title.endswith('?') else '.'}",
            columns=tuple(
                Column(title=name, numeric=number)
                for name, number in zip(head, numeric, strict=True)
            ),
            rows=tuple(
                tuple(
                    Cell(text=text, value=_value(text) if number else text)
                    for text, number in zip(line, numeric, strict=False)
                )
                for line in lines
            ),
            folded=True,
        )


def _is_number(text: str) -> bool:
    return not text or _value(text) is not None


def _value(text: str) -> float | None:
    """Of "12.5%", "1,234", "+0.3", "+0.1 to +0.4" (its lower end); None for other text."""
    first = text.partition(" to ")[0].replace(",", "").removesuffix("%")
    try:
        return float(first)
    except ValueError:
        return None
