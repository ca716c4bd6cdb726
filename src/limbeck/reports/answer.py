"""The question of a comparison and its answer, a sentence each."""

from __future__ import annotations

from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import count, isolated, listed, points
from limbeck.reports.statistics import PairedDifference

__all__ = ["answer", "basis", "question"]

_MOST = 3  # methods named for each verdict; the table has the others


def question(evidence: Evidence) -> str:
    """What was compared, and at what."""
    compared = evidence.compared
    methods = [k for k, facts in compared.facts.items() if facts.role == "method"]
    names = [evidence.name(label) for label in methods]
    if len(names) > 2 * _MOST:
        names = [f"{len(names)} methods"]
    do = "Do" if len(methods) > 1 else "Does"
    return (
        f"{do} {listed(names or ['distillation'])} make {isolated(compared.student)} more "
        f"accurate on {isolated(compared.task)} than the same training without a teacher, with "
        f"{count(len(compared.seeds), 'seed')} each?"
    )


def answer(evidence: Evidence) -> str:
    """What the intervals over seeds allow to say, and no more."""
    compared = evidence.compared
    if evidence.baseline is None:
        return (
            "There is no answer: the baseline has no finished run, and a gain needs one to be "
            "measured against."
        )
    found: dict[str, list[tuple[str, PairedDifference]]] = {}
    silent, untaught = [], []
    for label, facts in compared.facts.items():
        if facts.role != "method":
            continue
        row = evidence.rows.get(label)
        if row is not None and not row.scores_taught:
            untaught.append(evidence.name(label))
        elif row is None or row.over_baseline is None:
            silent.append(evidence.name(label))
        else:
            found.setdefault(row.over_baseline.verdict, []).append((label, row.over_baseline))
    parts = []
    for verdict, said in (
        ("better", "yes with"),
        ("worse", "it loses accuracy with"),
        ("cannot tell", "it cannot be told with"),
    ):
        if found.get(verdict):
            parts.append(f"{said} {_told(evidence, found[verdict])}")
    if silent:
        parts.append(f"there is no paired run of {listed(silent)}")
    if untaught:
        parts.append(f"accuracy says nothing of {listed(untaught)}: no class scores were taught")
    if not parts:
        return "There is no answer: nothing is compared with the baseline."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def basis(evidence: Evidence) -> str:
    """What the answer rests on."""
    over = [row.over_baseline for row in evidence.rows.values() if row.over_baseline is not None]
    tests = sum(difference.p_value is not None for difference in over)
    how = "no interval, since there is no spread over seeds to make one of"
    if tests:
        how = "in brackets the 95 % interval of the mean gain over seeds"
    if tests > 1:
        how += f"; verdicts are Holm-corrected for {tests} tests, intervals are not"
    return (
        f"Points of test accuracy after the last epoch, paired by seed, on {evidence.test_images} "
        f"that every run read once; {how}."
    )


def _told(evidence: Evidence, rows: list[tuple[str, PairedDifference]]) -> str:
    rows = sorted(rows, key=lambda row: -abs(row[1].mean or 0))
    told = []
    for label, over in rows[:_MOST]:
        gain = points(over.mean, over.interval, evidence.decimals)
        seeds = count(len(over.by_seed), "seed")
        told.append(f"{evidence.name(label)} ({gain} points, n = {seeds})")
    if len(rows) > _MOST:
        told.append(f"{len(rows) - _MOST} more")
    return listed(told)
