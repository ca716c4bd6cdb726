"""Which batch-norm gives a layer its values: what methods before the ReLU ask of the teacher.

B batch, C channels, H W spatial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.features import LayerAddress
from limbeck.methods.base import BatchNormInfo

__all__ = ["find_batch_norms"]


def find_batch_norms(
    network: nn.Module, addresses: Mapping[str, str], image: Tensor
) -> dict[str, BatchNormInfo]:
    """The batch-norm before each of some layers, by one dry forward pass.

    The one whose output the layer's tensor is. Where it is a sum, as at the end of a residual
    block, the last one that ran in that block, the shortcut's aside: a batch-norm directly in the
    module that holds the activation, or, for the output of a module, the last one inside it.

    Args:
        network: in the mode to run it in; nothing of it changes but running statistics, where it
            trains.
        addresses: as :attr:`~limbeck.features.FeatureTap.addresses` has them.
        image: ``(B, C, H, W)`` as the network takes it.

    Returns:
        By what was asked for; without the layers that have no batch-norm of their width before
        them.
    """
    run = _Run(network, addresses)
    try:
        with torch.no_grad():
            network(image)
    finally:
        run.close()
    return run.found


class _Run:
    """Hooks that write down, in one pass, which batch-norms ran before each layer was read."""

    def __init__(self, network: nn.Module, addresses: Mapping[str, str]) -> None:
        self.found: dict[str, BatchNormInfo] = {}
        self._ran: list[tuple[str, nn.modules.batchnorm._BatchNorm, Tensor]] = []
        self._calls = dict.fromkeys(addresses, 0)
        self._handles: list[RemovableHandle] = []
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._handles.append(module.register_forward_hook(self._record(name)))
        for asked, text in addresses.items():
            address = LayerAddress.parse(text)
            module = network.get_submodule(address.module)
            hook = self._read(asked, address)
            self._handles.append(
                module.register_forward_pre_hook(hook)
                if address.takes_input
                else module.register_forward_hook(hook)
            )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._ran.clear()

    def _record(self, name: str) -> Any:  # noqa: ANN401  (a hook)
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ANN401
            del inputs
            assert isinstance(module, nn.modules.batchnorm._BatchNorm)
            self._ran.append((name, module, output))

        return hook

    def _read(self, asked: str, address: LayerAddress) -> Any:  # noqa: ANN401  (a hook)
        def hook(module: nn.Module, *values: Any) -> None:  # noqa: ANN401
            del module
            self._calls[asked] += 1
            if self._calls[asked] != (address.call or 1):
                return
            value = values[-1][0] if address.takes_input else values[-1]
            info = self._before(address, value)
            if info is not None:
                self.found[asked] = info

        return hook

    def _before(self, address: LayerAddress, value: Tensor) -> BatchNormInfo | None:
        """The batch-norm of ``value``, among those that ran up to now."""
        same = [entry for entry in self._ran if entry[2] is value]
        block = address.module
        inside = []
        if address.takes_input:
            block = block.rpartition(".")[0]
            inside = [entry for entry in self._ran if entry[0].rpartition(".")[0] == block]
        elif bool((value < 0).any()):  # else an activation ends the module, and cut the values
            inside = [entry for entry in self._ran if entry[0].startswith(f"{block}.")]
        for name, module, output in reversed(same or inside):
            if output.shape == value.shape:
                return _info(name, module)
        return None


def _info(name: str, module: nn.modules.batchnorm._BatchNorm) -> BatchNormInfo:
    """Gamma and beta; 1 and 0 for one that does not scale."""
    channels = module.num_features
    weight = torch.ones(channels) if module.weight is None else module.weight.detach().clone()
    bias = torch.zeros(channels) if module.bias is None else module.bias.detach().clone()
    return BatchNormInfo(name=name, weight=weight, bias=bias)
