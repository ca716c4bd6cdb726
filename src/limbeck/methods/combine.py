r"""Combination: several methods in one run, with one cross-entropy.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + \sum_m \mathcal{L}_m \big|_{w_{ce} = 0}

Every method keeps its own loss, weights, adapters and passes over the data; both networks run once
for all of them. All bring a cross-entropy with the labels: that of the first counts, with its
weight, and that of the others has weight 0. A term is logged as METHOD.TERM.

Source: sums of distillation losses are as old as Romero et al., "FitNets", ICLR 2015,
    https://arxiv.org/abs/1412.6550; published ones are CRD + KD (Tian et al., ICLR 2020) and
    WKD-L + WKD-F (Lv et al., NeurIPS 2024).
Defaults: those of each method. Weights that were tuned alone are rarely right together; where a
    combination was published, the methods' cards name its weights.
Differs from the source: methods that train in several stages, or deploy another network than the
    student, are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, Final, Self

from pydantic import Field, create_model, model_validator
from torch import Tensor, nn

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.methods.base import Method, MethodConfig, MethodEntry, Needs, Probe, Stage

__all__ = ["SEPARATOR", "Combination", "CombinationConfig", "combined_entry", "method_names"]

SEPARATOR: Final = "+"  # between the methods' names
_CE = "ce"  # what methods call their cross-entropy among the terms
_CE_WEIGHT = "ce_weight"


class CombinationConfig(MethodConfig):
    """Settings of :class:`Combination`; each method's own stand under its name.

    Attributes:
        entries: rows of the methods, in the order of their names.
    """

    entries: ClassVar[Mapping[str, MethodEntry]] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_cross_entropy(cls, values: Any) -> Any:  # noqa: ANN401  (not yet checked)
        if not isinstance(values, Mapping):
            return values
        off = {
            name: {_CE_WEIGHT: 0.0, **values[name]}
            for name in list(cls.entries)[1:]
            if isinstance(values.get(name), Mapping)
        }
        return {**values, **off}

    @model_validator(mode="after")
    def _nothing_counts_twice(self) -> Self:
        first = next(iter(self.entries), None)
        for name in self.entries:
            own = getattr(self, name)
            if name != first and getattr(own, _CE_WEIGHT):
                raise ValueError(
                    f"{name}.{_CE_WEIGHT} must be 0, got {getattr(own, _CE_WEIGHT)}: a combination "
                    f"has one cross-entropy, that of its first method; set {first}.{_CE_WEIGHT}"
                )
            if own.label_smoothing:
                raise ValueError(
                    f"{name}.label_smoothing must be 0, got {own.label_smoothing}: one smoothing "
                    "is for all methods of a combination; set label_smoothing without a name"
                )
        return self

    def parts(self) -> dict[str, Stage]:
        """Each method's class and settings, as it would train alone.

        Raises:
            SettingsError: if a method cannot be combined.
        """
        smoothing = self.label_smoothing
        return {
            name: _only_stage(name, entry, getattr(self, name).changed(label_smoothing=smoothing))
            for name, entry in self.entries.items()
        }


class Combination(Method[CombinationConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        methods: by name, in their order.
    """

    def __init__(self, config: CombinationConfig, *, methods: Mapping[str, Method[Any]]) -> None:
        super().__init__(config)
        self.methods = nn.ModuleDict(methods)
        self.takes_mixed = all(method.takes_mixed for method in methods.values())
        self.buffers_kept_equal = tuple(
            f"methods.{name}.{buffer}"
            for name, method in methods.items()
            for buffer in method.buffers_kept_equal
        )

    @classmethod
    def needs(cls, config: CombinationConfig) -> Needs:
        """What any of the methods needs."""
        wanted = [part.method.needs(part.config) for part in config.parts().values()]
        united: dict[str, Any] = {}
        for field in dataclasses.fields(Needs):
            asked = [getattr(needs, field.name) for needs in wanted]
            united[field.name] = (
                tuple(dict.fromkeys(chain.from_iterable(asked)))
                if isinstance(asked[0], tuple)
                else any(asked)
            )
        return Needs(**united)

    @classmethod
    def from_probe(cls, config: CombinationConfig, probe: Probe) -> Self:
        """Build every method."""
        return cls(
            config,
            methods={
                name: part.method.from_probe(part.config, probe)
                for name, part in config.parts().items()
            },
        )

    def _each(self) -> Iterable[tuple[str, Method[Any]]]:
        for name, method in self.methods.items():
            assert isinstance(method, Method)
            yield name, method

    def prepare(self, teacher: Callable[[Tensor], Outputs], batches: Iterable[Batch]) -> None:
        """Each method's own pass, for those that have one."""
        for _, method in self._each():
            method.prepare(teacher, batches)

    def describe(self) -> tuple[str, ...]:
        """Whose cross-entropy counts, and each method's lines."""
        first, *others = self.methods
        weight = getattr(getattr(self.config, first), _CE_WEIGHT)
        lines = [
            f"one cross-entropy: that of {first}, weight {weight:g}; in {', '.join(others)} its "
            "weight is 0"
        ]
        lines += [f"{name}: {line}" for name, method in self._each() for line in method.describe()]
        return tuple(lines)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """The sum of all losses."""
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for number, (name, method) in enumerate(self._each()):
            terms = method(batch, student, teacher, progress)
            total = terms.total if total is None else total + terms.total
            parts |= {
                f"{name}.{term}": value
                for term, value in terms.parts.items()
                if number == 0 or term != _CE
            }
        assert total is not None
        return LossTerms(total=total, parts=parts)


def method_names(name: str) -> tuple[str, ...]:
    """The names that ``name`` joins; one that joins none is the only one.

    Raises:
        SettingsError: if a name is empty or there twice.

    Example:
        >>> method_names("kd+at")
        ('kd', 'at')
    """
    names = tuple(name.split(SEPARATOR))
    if len(names) > 1 and not all(names):
        raise SettingsError(
            f"a combination reads 'kd+at', the methods' names with {SEPARATOR!r} between them; "
            f"got {name!r}"
        )
    twice = sorted({part for part in names if names.count(part) > 1})
    if twice:
        raise SettingsError(
            f"{name!r} names {', '.join(twice)} more than once; name each method once"
        )
    return names


def combined_entry(entries: Mapping[str, MethodEntry]) -> MethodEntry:
    """The row that rows of the table make together.

    Args:
        entries: by name, two at least; the cross-entropy is that of the first.

    Raises:
        SettingsError: if one of them cannot be combined.
    """
    joined = SEPARATOR.join(entries)
    for name, entry in entries.items():
        _only_stage(name, entry, entry.config())
    first = next(iter(entries))
    fields: dict[str, Any] = {
        name: (
            entry.config,
            Field(entry.config() if name == first else entry.config(**{_CE_WEIGHT: 0.0})),
        )
        for name, entry in entries.items()
    }
    meanings = [
        f"        {name}: settings of {name}; its card is `limbeck methods {name}`."
        for name in entries
    ]
    config = create_model(
        joined,
        __base__=CombinationConfig,
        __doc__="\n".join([f"Settings of {joined}.", "", "    Attributes:", *meanings, "    "]),
        **fields,
    )
    config.entries = dict(entries)
    return MethodEntry(family="combined", config=config, stages=_stages, card=__name__)


def _stages(config: CombinationConfig) -> tuple[Stage, ...]:
    config.parts()  # a method that cannot be combined with these settings is refused here
    return (Stage(name="train", method=Combination, config=config),)


def _only_stage(name: str, entry: MethodEntry, config: MethodConfig) -> Stage:
    """A method's class and settings.

    Raises:
        SettingsError: if it cannot be combined.
    """
    stages = entry.stages(config)
    stage = stages[0]
    plain = Stage(name=stage.name, method=stage.method, config=stage.config)
    if entry.required:
        raise SettingsError(
            f"{name} cannot be combined: it trains {' and '.join(entry.required)} in stages of "
            "their own, and a combination has one stage. Train with it alone"
        )
    if len(stages) > 1 or stage != plain:
        trains = ", then ".join(stage.name for stage in stages)
        raise SettingsError(
            f"{name} cannot be combined: it trains in stages of its own ({trains}), and a "
            "combination in one. `limbeck methods` lists each method's stages"
        )
    if stage.method.deployed is not Method.deployed:
        raise SettingsError(
            f"{name} cannot be combined: it deploys another network than the student, whose own "
            f"classifier the others would train for nothing. Train with {name} alone, or leave "
            "it out"
        )
    if _CE_WEIGHT not in type(config).model_fields:
        raise SettingsError(
            f"{name} cannot be combined: it has no {_CE_WEIGHT}, since its loss is the "
            "cross-entropy that every method brings, or stands in its place. Leave it out, and set "
            f"the first method's {_CE_WEIGHT}, as --set method.kd.{_CE_WEIGHT}=1"
        )
    return stage
