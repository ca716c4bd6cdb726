"""Choosing each method's few named settings on validation, with as many trials for each.

The space of a method is a row of a literal table below: what its paper or its users turn, and the
learning rate, since the best rate of one loss is not that of another. The baseline has a space
too: a baseline that nobody tuned is the commonest way of making a method look good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from limbeck.core.errors import NonFiniteError, RunFolderError, SettingsError
from limbeck.core.settings import Settings
from limbeck.methods.combine import method_names
from limbeck.runs.compare import TEACHER, CompareConfig
from limbeck.runs.config import RunConfig
from limbeck.runs.summary import RunSummary

__all__ = [
    "SEARCH_SPACES",
    "Dimension",
    "Span",
    "Trial",
    "Tuned",
    "check_tunable",
    "search",
    "space",
]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting that is tuned.

    Attributes:
        name: of the setting, dotted.
        low: the smallest value; with ``times``, as a multiple of what the recipe has.
        high: the largest, likewise.
        log: drawn evenly in the logarithm.
        times: whether the ends are multiples.
    """

    name: str
    low: float
    high: float
    log: bool = True
    times: bool = False


class Span(Settings):
    """A dimension with its ends in the setting's own unit."""

    low: float
    high: float
    log: bool


_LR = Dimension(name="optim.lr", low=0.2, high=5.0, times=True)
_TEMPERATURE = Dimension(name="method.temperature", low=1.0, high=16.0)
_KD_SHARE = Dimension(name="method.kd_share", low=0.05, high=1.0, log=False)  # as TAKD's authors


def _weight(name: str) -> Dimension:
    return Dimension(name=f"method.{name}", low=0.1, high=10.0, times=True)


SEARCH_SPACES: Final[Mapping[str, tuple[Dimension, ...]]] = MappingProxyType(
    {
        "ce": (
            _LR,
            Dimension(name="optim.weight_decay", low=0.1, high=10.0, times=True),
            Dimension(name="method.label_smoothing", low=0.0, high=0.3, log=False),
        ),
        "at": (_LR, _weight("at_weight")),
        "bkd": (_LR, _TEMPERATURE, _weight("kd_weight")),
        "born_again": (_LR, _TEMPERATURE),
        "cat_kd": (_LR, _weight("cat_weight")),
        "cc": (_LR, _weight("cc_weight")),
        "cc_kernel": (_LR, _weight("cc_weight"), _weight("kd_weight")),
        "cka": (_LR, _weight("cka_weight")),
        "crd": (_LR, _weight("crd_weight")),
        "ctkd": (_LR, _weight("temperature_range"), _weight("kd_weight")),
        "dgkd": (_LR, _TEMPERATURE, _KD_SHARE),
        "dist": (_LR, _weight("inter_weight"), _weight("intra_weight")),
        "dkd": (_LR, _TEMPERATURE, _weight("beta")),
        "dml": (_LR, _weight("mutual_weight")),
        "fitnet": (_LR, _weight("hint_weight"), _TEMPERATURE),
        "fitnet_one_stage": (_LR, _weight("hint_weight")),
        "foundation": (_LR, _weight("tokens_weight"), _weight("mse_weight")),
        "fsp": (_LR, _weight("fsp_weight")),
        "hard_label": (_LR, _weight("hard_weight")),
        "irg": (_LR, _weight("edge_weight"), _weight("transformation_weight")),
        "kd": (_LR, _TEMPERATURE, _weight("kd_weight")),
        "london": (_LR, _weight("ofd_weight"), _weight("lipschitz_weight")),
        "lskd": (_LR, _TEMPERATURE, _weight("kd_weight")),
        "mlkd": (_LR, _weight("kd_weight")),
        "multi_teacher": (_LR, _TEMPERATURE, _weight("kd_weight"), _weight("hint_weight")),
        "noise_label": (_LR, _weight("temperature")),
        "ofd": (_LR, _weight("ofd_weight")),
        "pkt": (_LR, _weight("pkt_weight")),
        "relation": (_LR, _weight("relation_weight")),
        "reviewkd": (_LR, _weight("review_weight")),
        "rkd": (_LR, _weight("distance_weight"), _weight("angle_weight")),
        "simkd": (_LR, _weight("feature_weight")),
        "sinkhorn_logit": (_LR, _TEMPERATURE, _weight("transport_weight")),
        "soft_label": (_LR, _TEMPERATURE, _weight("kd_weight")),
        "sp": (_LR, _weight("sp_weight")),
        "takd": (_LR, _TEMPERATURE, _KD_SHARE),
        "vid": (_LR, _weight("vid_weight")),
        "vrm": (_LR, _weight("sample_weight"), _weight("class_weight")),
        "wkd_feature": (_LR, _weight("wkd_weight"), _weight("mean_weight")),
        "wkd_logit": (_LR, _TEMPERATURE, _weight("transport_weight")),
    }
)


class Trial(Settings):
    """One trial.

    Attributes:
        number: 0-based.
        values: setting to value.
        val_top1: on validation after the last epoch; 0 where the run diverged.
        val_loss: the same loss in nats; None where the run diverged.
        seconds: of training; 0 where the run diverged.
        failure: why it has no accuracy; None for a trial that was whole.
    """

    number: int
    values: dict[str, float]
    val_top1: float
    val_loss: float | None
    seconds: float
    failure: str | None = None


class Tuned(Settings):
    """What the trials of one row chose: ``tuned.json``.

    Attributes:
        values: setting to value, of the best trial.
        best: its number: highest validation accuracy, then lowest loss, then the earlier one.
        space: what was searched.
        trials: all of them.
        seconds: of training, over all trials.
    """

    values: dict[str, float]
    best: int
    space: dict[str, Span]
    trials: tuple[Trial, ...]
    seconds: float


def space(config: CompareConfig, label: str) -> dict[str, Span]:
    """What is searched for one row, in the settings' own units.

    Raises:
        SettingsError: if its method has no space, or teaches no class scores.
    """
    spans = {}
    start = config.run_config(label, config.seeds[0])
    wanted = [stage.method.needs(stage.config) for stage in start.stages()]
    if not any(needs.student_scores for needs in wanted):
        raise SettingsError(
            f"{label!r} cannot be tuned: trials are judged by the student's class scores, which "
            f"it does not teach; give labels a weight (--method-set {label}.ce_weight=1), or "
            "leave --tune out"
        )
    for dimension in _dimensions(label, config.contenders[label].name):
        base = _value(start, dimension.name) if dimension.times else 1.0
        if base > 0:  # a weight of 0 switches its term off, and stays 0
            low, high = dimension.low * base, dimension.high * base
            spans[dimension.name] = Span(low=low, high=high, log=dimension.log)
    return spans


def _dimensions(label: str, method: str) -> Iterator[Dimension]:
    """A method's row of the table; of a combination, all its methods' rows, a setting once."""
    names = method_names(method)
    for name in names:
        if name not in SEARCH_SPACES:
            known = ", ".join(SEARCH_SPACES)
            raise SettingsError(
                f"{label!r} cannot be tuned: method {name!r} has no search space (there is one "
                f"for {known}); add a row to SEARCH_SPACES, or leave --tune out"
            )
        for dimension in SEARCH_SPACES[name]:
            owner, _, setting = dimension.name.partition(".")
            own = owner == "method" and len(names) > 1
            yield replace(dimension, name=f"method.{name}.{setting}") if own else dimension


def check_tunable(config: CompareConfig) -> None:
    """Refuse what would fail after hours.

    Raises:
        SettingsError: if Optuna is not installed, there is no validation split to choose on, or
            a method has no space.
    """
    if config.tuning is None:
        return
    _optuna()
    if config.shared.data.val_fraction == 0:
        raise SettingsError(
            "tuning chooses on validation, and val_fraction is 0; hold images out "
            "(--val-fraction 0.1), or leave --tune out"
        )
    for label, row in config.contenders.items():
        if row.role != "reference":
            space(config, label)


def search(
    config: CompareConfig,
    label: str,
    run_trial: Callable[[int, RunConfig], RunSummary],
    *,
    teacher_run: str = TEACHER,
) -> Tuned:
    """Try as many settings as the comparison asks for, and choose on validation.

    Tried are first the settings the row starts from, then what Optuna's tree-structured Parzen
    estimator asks for, from a generator with the tuning's own seed. What it asks depends on its
    seed and on the results so far alone; so a search that was interrupted is gone through again
    from the start, and finished trials are read and not repeated.

    Args:
        config: the comparison.
        label: the row.
        run_trial: carries out a trial, given its number and settings, or reads it if it is there.
        teacher_run: where the teacher lies that the comparison trains.

    Returns:
        All trials, and the best.

    Raises:
        SettingsError: as :func:`check_tunable`.
        RunFolderError: if a trial that is there had other settings.

    Source:
        Bergstra, Bardenet, Bengio, Kégl, "Algorithms for Hyper-Parameter Optimization", NIPS
        2011; Akiba et al., "Optuna", KDD 2019, https://arxiv.org/abs/1907.10902.
    """
    assert config.tuning is not None
    optuna = _optuna()
    spans = space(config, label)
    start = config.run_config(label, config.tuning.seed)
    sampler = optuna.samplers.TPESampler(seed=config.tuning.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(
        {n: min(max(_value(start, n), span.low), span.high) for n, span in spans.items()}
    )
    distributions = {
        name: optuna.distributions.FloatDistribution(span.low, span.high, log=span.log)
        for name, span in spans.items()
    }
    trials = []
    for number in range(config.tuning.trials):
        asked = study.ask(distributions)
        values = {name: float(value) for name, value in asked.params.items()}
        run = config.run_config(
            label, config.tuning.seed, teacher_run=teacher_run, tuned=dict(values)
        )
        trials.append(_carry_out(number, values, run, run_trial))
        study.tell(asked, trials[-1].val_top1)
    best = min(trials, key=lambda trial: (-trial.val_top1, _loss(trial), trial.number))
    return Tuned(
        values=best.values,
        best=best.number,
        space=spans,
        trials=tuple(trials),
        seconds=round(sum(trial.seconds for trial in trials), 3),
    )


def _carry_out(
    number: int,
    values: dict[str, float],
    run: RunConfig,
    run_trial: Callable[[int, RunConfig], RunSummary],
) -> Trial:
    try:
        summary = run_trial(number, run)
    except NonFiniteError as error:  # a rate that is too high is a result, and counts as a trial
        return Trial(
            number=number, values=values, val_top1=0, val_loss=None, seconds=0, failure=str(error)
        )
    val = summary.last.val
    if val is None:
        raise RunFolderError("a trial was not judged on validation; there is no such split")
    return Trial(
        number=number,
        values=values,
        val_top1=val["top1"],
        val_loss=val["loss"],
        seconds=summary.seconds,
    )


def _loss(trial: Trial) -> float:
    return float("inf") if trial.val_loss is None else trial.val_loss


def _value(config: RunConfig, name: str) -> float:
    place: Any = config.plain()
    for part in name.split("."):
        place = place[part]
    return float(place)


def _optuna() -> Any:  # noqa: ANN401  (a module that may be missing)
    try:
        import optuna
    except ImportError as error:
        raise SettingsError(
            f"--tune needs Optuna, which does not import ({error}); install it with "
            "pip install 'limbeck[hpo]', or leave --tune out"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
