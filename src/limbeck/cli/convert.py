"""``convert``: published weights, checked and written as safetensors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from torch import nn

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import CheckpointError
from limbeck.models import published_network, save_weights

__all__ = ["convert_weights"]


def convert_weights(file: Path, model: str, output: Path | None, *, as_json: bool) -> None:
    """Read ``file`` as weights of ``model``, write them, and say what they are.

    Args:
        file: as RepDistiller and mdistiller publish them.
        model: the zoo's name of the network.
        output: what to write; None is ``file`` with the ending ``.safetensors``.
        as_json: print one JSON object.

    Raises:
        CheckpointError: if ``file`` cannot be used, or there is an ``output`` already.
    """
    if output is None:
        output = file.with_suffix(".safetensors")
    if output.exists():
        raise CheckpointError(f"{output} exists; name another with --output, or remove it")
    network = published_network(file, model)
    save_weights(network.state_dict(), output)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    classes, channels = _num_classes(network), _num_channels(network)
    if as_json:
        values = {
            "model": model,
            "output": str(output),
            "num_classes": classes,
            "in_chans": channels,
            "num_parameters": parameters,
        }
        print(json.dumps(values))  # noqa: T201
        return
    console = make_console()
    console.print(
        f"{model}: {parameters:,} parameters, {channels} channels, {classes} classes. Every weight "
        f"found its place; written to {printable(str(output))}"
    )
    console.print(
        "To learn from it: limbeck distill "
        f"--teacher {model} --teacher-checkpoint {printable(shlex.quote(str(output)))} ..."
    )


def _num_classes(network: nn.Module) -> int:
    return [part.out_features for part in network.modules() if isinstance(part, nn.Linear)][-1]


def _num_channels(network: nn.Module) -> int:
    return next(part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))
