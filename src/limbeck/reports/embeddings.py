"""What the students' embeddings are worth, where a method teaches one."""

from __future__ import annotations

from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import Cell, Column, Section, Table, amount
from limbeck.reports.spread import spread

__all__ = ["embeddings"]

_NETWORKS = {"before": "before training", "last": "after it", "teacher": "the teacher"}
_JUDGES = {"linear_top1": "linear probe", "knn_top1": "nearest neighbours"}


def embeddings(evidence: Evidence) -> Section | None:
    """The vectors before the classifier, by a linear probe and by nearest neighbours."""
    rows = []
    for label, row in evidence.rows.items():
        found = [run.embedding for run in row.records.values() if run.embedding]
        if not found:
            continue
        cells = [evidence.name_cell(label), Cell(text=str(len(found)), value=len(found))]
        for judge in _JUDGES:
            for network in _NETWORKS:
                splits = [one.get(network, {}).get("test", {}) for one in found]
                cells.append(_cell([split[judge] for split in splits if judge in split]))
        rows.append(tuple(cells))
    if not rows:
        return None
    columns = [
        Column(title=f"{judge}, {network}", note="test %, mean ± sd over seeds")
        for judge in _JUDGES.values()
        for network in _NETWORKS.values()
    ]
    return Section(
        name="embeddings",
        title="Embeddings",
        text=(
            "Methods that teach an embedding are judged by it, whether they teach class scores or "
            "not: top-1 accuracy of logistic regression, and of the 20 nearest neighbours, on the "
            f"vectors before the classifier, fitted on labelled training images; on "
            f"{evidence.test_images}. The student before training says what chance gives.",
        ),
        tables=(
            Table(
                caption=f"Embeddings after the last epoch; {evidence.seeds}.",
                columns=(
                    Column(title="taught by", numeric=False),
                    Column(title="n", note="seeds"),
                    *columns,
                ),
                rows=tuple(rows),
            ),
        ),
    )


def _cell(values: list[float]) -> Cell:
    if not values:
        return Cell(text="")
    found = spread(values)
    text = amount(found.mean, 1, scale=100)
    if found.sd is not None:
        text += f" ± {amount(found.sd, 1, scale=100)}"
    return Cell(text=text, value=found.mean)
