"""The Lipschitz profiles that `limbeck inspect --lipschitz` left in runs' folders, as a section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from limbeck.core.errors import RunFolderError
from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import Cell, Column, Section, Table, count, isolated

__all__ = ["Profile", "ProfilePart", "Profiles", "lipschitz", "read_profiles"]

_FILE = "lipschitz.json"

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Exponent = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class ProfilePart:
    """What lies between two consecutive stages.

    Attributes:
        first: the layer where it begins.
        second: the layer where it ends.
        sigma_mean: over images.
        sigma_sd: over images; None for a single one.
        num_layers: that have a spectral norm.
        log10_layer_product: of their product; None where that is 0.
    """

    first: str
    second: str
    sigma_mean: Amount
    sigma_sd: Amount | None
    num_layers: NonNegativeInt
    log10_layer_product: Exponent | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One network: its name, its parts in the order of the forward pass, and all its layers."""

    name: str
    parts: tuple[ProfilePart, ...]
    num_layers: NonNegativeInt
    log10_layer_product: Exponent | None


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """The networks of one run on the same images.

    Attributes:
        split: of the images.
        num_images: that each network saw.
        networks: "teacher", "student" and "independent", as far as they are there.
    """

    split: str
    num_images: PositiveInt
    networks: dict[str, Profile]


_PROFILES = TypeAdapter(Profiles)


def read_profiles(run: Path) -> Profiles | None:
    """What ``lipschitz.json`` in a run's folder holds; None where there is none.

    Raises:
        RunFolderError: if the file is damaged.
    """
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        return _PROFILES.validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'all of it'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise RunFolderError(
            f"{path} is not what `limbeck inspect --lipschitz` writes ({faults}); make it again, "
            "or remove it: the report is then made without it"
        ) from None


def lipschitz(evidence: Evidence) -> Section | None:
    """How teacher, student and untaught student stretch the same images, where somebody asked.

    Raises:
        RunFolderError: if a profile's file is damaged.
    """
    tables = [
        _table(f"{evidence.name(label)}, seed {seed}", found)
        for label, records in evidence.compared.records.items()
        for seed, run in records.items()
        if (found := read_profiles(run.folder)) is not None
    ]
    if not tables:
        return None
    return Section(
        name="lipschitz",
        title="Lipschitz profile",
        text=(
            "Sigma is the largest singular value of A Bᵀ / HW, where A and B are two consecutive "
            "stages' maps of one image before the ReLU, as matrices of channels by places. It "
            "depends on the images and grows with either map: compare networks of one "
            "architecture, such as the student with the independent one, which nobody taught.",
            "The product is that of the spectral norms of the layers in between, with their number "
            "in brackets, and depends on weights alone. Neither number is a bound on the network's "
            "Lipschitz constant.",
        ),
        tables=tuple(tables),
    )


def _table(whose: str, found: Profiles) -> Table:
    """The networks side by side, their last parts in one row."""
    profiles = found.networks.values()
    backwards = list(zip_longest(*(reversed(profile.parts) for profile in profiles)))
    rows = []
    for place, parts in enumerate(reversed(backwards)):
        names = dict.fromkeys(_name(part) for part in parts if part is not None)
        name = Cell(text=" / ".join(names), value=place)
        rows.append((name, *_cells(parts, _sigma), *_cells(parts, _product)))
    whole = Cell(text="image to logits", value=len(rows))
    rows.append((whole, *(Cell(text="") for _ in profiles), *map(_product, profiles)))
    networks = [f"{role} ({isolated(profile.name)})" for role, profile in found.networks.items()]
    return Table(
        caption=(
            f"{whose}: sigma, mean ± standard deviation over "
            f"{count(found.num_images, 'image')} ({isolated(found.split)}), and the product of the "
            "layers' spectral norms."
        ),
        columns=(
            Column(title="between"),
            *(Column(title=f"sigma, {network}") for network in networks),
            *(Column(title=f"product, {network}") for network in networks),
        ),
        rows=tuple(rows),
    )


def _cells(
    parts: tuple[ProfilePart | None, ...], cell: Callable[[ProfilePart], Cell]
) -> list[Cell]:
    return [Cell(text="") if part is None else cell(part) for part in parts]


def _name(part: ProfilePart) -> str:
    ends = (isolated(end.removeprefix("pre_activation:")) for end in (part.first, part.second))
    return " to ".join(ends)


def _sigma(part: ProfilePart) -> Cell:
    spread = "" if part.sigma_sd is None else f" ± {part.sigma_sd:.3g}"
    return Cell(text=f"{part.sigma_mean:.3g}{spread}", value=part.sigma_mean)


def _product(part: ProfilePart | Profile) -> Cell:
    exponent = part.log10_layer_product
    size = "0" if exponent is None else f"10^{exponent:.1f}".replace("-", "\u2212")
    return Cell(text=f"{size} ({part.num_layers})", value=exponent)
