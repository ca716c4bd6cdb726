"""Parts of a student that stay as they are: no gradient, and batch-norm statistics at rest."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from limbeck.core.errors import ModelError, UnknownNameError

__all__ = ["freeze_parts", "match_parts", "rest_parts"]


def match_parts(network: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of modules and parameters that one of the patterns fits.

    A module stands for all it holds. In a pattern ``*`` is any text, dots too, ``?`` any one
    character.

    Raises:
        UnknownNameError: with the nearest names, for a pattern that fits nothing.
        ModelError: if nothing would be left to train.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> match_parts(network, ["0*", "1.bias"])
        ('0', '0.weight', '0.bias', '1.bias')
    """
    modules = [name for name, _ in network.named_modules() if name]
    parameters = [name for name, _ in network.named_parameters()]
    trainable = [name for name, value in network.named_parameters() if value.requires_grad]
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [name for name in (*modules, *parameters) if fnmatchcase(name, pattern)]
        if not fitting:
            raise UnknownNameError(
                "part to freeze",
                pattern,
                (*modules, *parameters),
                hint="A pattern is a name, with * for any text. `limbeck inspect MODEL` lists the "
                "layers.",
            )
        found.update(dict.fromkeys(fitting))
    names = tuple(sorted(found, key=(*modules, *parameters).index))
    inside = tuple(f"{name}." for name in names)
    if trainable and all(name in found or name.startswith(inside) for name in trainable):
        raise ModelError(
            f"freezing {', '.join(map(repr, patterns))} leaves nothing to train; freeze less"
        )
    return names


def freeze_parts(network: nn.Module, names: Sequence[str]) -> None:
    """Take the gradient from parts by name."""
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    for name in names:
        (modules[name] if name in modules else parameters[name]).requires_grad_(False)


def rest_parts(network: nn.Module, names: Sequence[str]) -> None:
    """Put those parts into eval mode that are modules: no statistics move, nothing drops out."""
    modules = dict(network.named_modules())
    for name in names:
        if name in modules:
            modules[name].eval()
