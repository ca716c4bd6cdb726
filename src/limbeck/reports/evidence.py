"""All that a report's sections are made of, read at most once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limbeck.reports.compared import Compared, ComparedRow
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.export import comparison_cells
from limbeck.reports.findings import Findings, read_findings
from limbeck.reports.layout import Cell, count, isolated
from limbeck.reports.pictures import Kind
from limbeck.reports.predictions import Answers, read_answers

__all__ = ["Evidence"]

_FINE = 2000  # test images from which on a hundredth of a percent means something
_KINDS: Mapping[str, Kind] = {"output": "output", "feature": "feature", "relation": "relation"}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A comparison and, once somebody asks, what its runs answered.

    Attributes:
        compared: read from its folder.
    """

    compared: Compared

    @cached_property
    def cells(self) -> Mapping[str, Mapping[str, Any]]:
        """Label to its line of ``comparison.csv``, of every row, also without a finished run."""
        lines = comparison_cells(self.compared.rows, compared=self.compared)
        return {line["row"]: line for line in lines}

    @cached_property
    def answers(self) -> Mapping[str, Mapping[int, Answers]]:
        """Label to seed to the student's answers after the last epoch, of runs that kept any.

        Raises:
            RunFolderError: if a file of answers is damaged.
        """
        return {
            label: {
                seed: found
                for seed, run in records.items()
                if (found := read_answers(run.folder)) is not None
            }
            for label, records in self.compared.records.items()
        }

    @cached_property
    def teacher(self) -> Answers | None:
        """The teacher's answers, from one of the runs; None where none kept them.

        Raises:
            RunFolderError: if a file of answers is damaged.
        """
        for records in self.compared.records.values():
            for run in records.values():
                found = read_answers(run.folder, "teacher")
                if found is not None:
                    return found
        return None

    @cached_property
    def findings(self) -> Mapping[str, Findings]:
        """Label to what ``limbeck analyse`` found of it, of rows that were analysed.

        Raises:
            RunFolderError: if one of its files is damaged.
        """
        base = {} if self.baseline is None else self.compared.records[self.baseline]
        hashes = {f"independent {seed}": run.student_hash for seed, run in base.items()}
        found = {}
        for label, records in self.compared.records.items():
            own = {f"distilled {seed}": run.student_hash for seed, run in records.items()}
            findings = read_findings(self.compared.folder / "analysis" / label, hashes | own)
            if findings.found or findings.stale:
                found[label] = findings
        return found

    @property
    def rows(self) -> dict[str, ComparisonRow]:
        """Label to row, of those that have a finished run."""
        return {self.compared.label_of(row): row for row in self.compared.rows}

    @property
    def baseline(self) -> str | None:
        """The label of the row that gains are measured against, if it has a finished run."""
        return next((k for k, row in self.rows.items() if row.role == "baseline"), None)

    @property
    def num_test(self) -> int | None:
        """Test images; None where no run says."""
        for records in self.compared.records.values():
            for run in records.values():
                if "test" in run.split_sizes:
                    return run.split_sizes["test"]
        return None

    @property
    def decimals(self) -> int:
        """Of accuracies in percent: no finer than the test split."""
        return 1 if self.num_test is not None and self.num_test < _FINE else 2

    @property
    def test_images(self) -> str:
        """Their number in words."""
        return "the test images" if self.num_test is None else count(self.num_test, "test image")

    @property
    def seeds(self) -> str:
        """The number of seeds in words; of the row that has the fewest, too."""
        finished = {len(records) for records in self.compared.records.values() if records}
        planned = count(len(self.compared.seeds), "seed")
        if finished <= {len(self.compared.seeds)}:
            return planned
        return f"{min(finished)} to {max(finished)} of {planned}"

    def facts(self, label: str) -> ComparedRow:
        """What the comparison says of a row."""
        return self.compared.facts[label]

    def kind(self, label: str) -> Kind:
        """What a row looks like in a picture."""
        facts = self.facts(label)
        return "reference" if facts.role == "reference" else _KINDS.get(facts.family, "none")

    def name(self, label: str) -> str:
        """Of a row, for a sentence."""
        return isolated(self.compared.names[label])

    def name_cell(self, label: str) -> Cell:
        """Of a row, for a table."""
        name = self.compared.names[label]
        return Cell(text=name, value=name)
