r"""A network's Lipschitz profile: how its stages' maps go together, and how far its layers stretch.

For each pair of consecutive stages, with their maps before the ReLU, it has

- sigma, LONDON's number: the largest singular value of each image's matrix :math:`A B^\top / HW`
  of the two maps, A and B; see :func:`~limbeck.methods.relation.london.spectral_norms`. It depends
  on the images and grows with either map.
- the product of the spectral norms of the layers in between, of their weights alone, as if they
  stood in one row.

Neither bounds the network's Lipschitz constant.

N images, B of one batch, C channels, H W spatial.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, ShapeError
from limbeck.features import LayerAddress
from limbeck.methods.adapters import LayoutConfig, find_layout
from limbeck.methods.relation.london import spectral_norms
from limbeck.runs.networks import NamedNetwork
from limbeck.teacher import Teacher

__all__ = ["PROFILE_LAYERS", "LipschitzPart", "LipschitzProfile", "layer_norm", "lipschitz_profile"]

PROFILE_LAYERS = "pre_activation:stage*"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class LipschitzPart:
    """What lies between two consecutive stages.

    Attributes:
        first: the layer where it begins.
        second: the layer where it ends.
        sigma_mean: over images, ``>= 0``.
        sigma_sd: over images, with divisor N - 1; None for a single image.
        num_layers: that have a spectral norm, each as often as it runs.
        log10_layer_product: of their product; None where that is 0.
    """

    first: str
    second: str
    sigma_mean: float
    sigma_sd: float | None
    num_layers: int
    log10_layer_product: float | None


@dataclass(frozen=True, kw_only=True)
class LipschitzProfile:
    """One network.

    Attributes:
        name: of the network.
        parts: in the order of the forward pass.
        num_layers: from image to logits.
        log10_layer_product: of their product; None where that is 0.
    """

    name: str
    parts: tuple[LipschitzPart, ...]
    num_layers: int
    log10_layer_product: float | None


def layer_norm(layer: nn.Module) -> float | None:
    r"""A layer's spectral norm: the most by which its weight, as a matrix, lengthens a vector.

    Of a convolution the matrix is ``(out, in * height * width)`` of its kernel, as in
    ``torch.nn.utils.parametrizations.spectral_norm``, and the largest of its groups' counts. The
    convolution as a map from image to image may stretch more, at stride 1 by no more than the root
    of the number of the kernel's places. Of a batch-norm in eval mode it is the largest
    :math:`|\gamma_c| / \sqrt{v_c + \epsilon}`.

    Returns:
        The norm, ``>= 0``; None for layers of another kind.

    Source:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", ICLR 2018, https://arxiv.org/abs/1802.05957; the bound for convolutions as in
        Tsuzuku, Sato, Sugiyama, NeurIPS 2018, https://arxiv.org/abs/1802.04034.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> layer_norm(layer), layer_norm(nn.ReLU())
        (3.0, None)
    """
    if isinstance(layer, _BATCH_NORMS):
        if layer.running_var is None:  # the batch at hand decides
            return None
        scale = (layer.running_var + layer.eps).rsqrt()
        return float((scale if layer.weight is None else scale * layer.weight).abs().max())
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
        return None
    groups = layer.groups if isinstance(layer, _CONVOLUTIONS) else 1
    weight = layer.weight.detach().float()
    matrices = weight.reshape(groups, len(weight) // groups, -1)
    return float(torch.linalg.matrix_norm(matrices, ord=2).max())


def lipschitz_profile(
    named: NamedNetwork, images: Iterable[Tensor], *, device: torch.device
) -> LipschitzProfile:
    """Sigma of each part over all images, and the products of its layers' spectral norms.

    Args:
        named: the network; it is frozen and put into eval mode.
        images: batches ``(B, C, H, W)`` in [0, 1], one at least.
        device: where to compute.

    Raises:
        ModelError: if it has fewer than two stages, one of them gives no maps, or a value is not
            finite.
    """
    network = Teacher(named.network, normalization=named.normalization, layers=[PROFILE_LAYERS]).to(
        device
    )
    found: list[Tensor] = []
    segments: list[list[float]] = []
    names: list[str] = []
    for batch in images:
        batch = batch.to(device)
        features = network(batch).features
        if not segments:
            names = list(features)
            _check_stages(names, named.name)
            addresses = [network.observed.tap.addresses[name] for name in names]
            segments = _norms_between(network, addresses, batch[:1])
        maps = [_as_map(feature, name, named.name) for name, feature in features.items()]
        sigmas = [spectral_norms(*pair, iterations="exact") for pair in pairwise(maps)]
        found.append(torch.stack(sigmas).double().cpu())
    sigma = torch.cat(found, dim=1)  # (parts, N)
    parts = tuple(
        LipschitzPart(
            first=first,
            second=second,
            sigma_mean=values.mean().item(),
            sigma_sd=values.std().item() if len(values) > 1 else None,
            num_layers=len(norms),
            log10_layer_product=_log10_product(norms),
        )
        for (first, second), values, norms in zip(
            pairwise(names), sigma, segments[1:-1], strict=True
        )
    )
    norms = [norm for segment in segments for norm in segment]
    return LipschitzProfile(
        name=named.name,
        parts=parts,
        num_layers=len(norms),
        log10_layer_product=_log10_product(norms),
    )


def _check_stages(names: Sequence[str], network: str) -> None:
    if len(names) < 2:
        raise ModelError(
            f"{network}: a Lipschitz profile is of what lies between two stages; this network has "
            f"{len(names)}. `limbeck inspect MODEL` lists what is known as a stage; a network of "
            "your own says it in its layer_aliases"
        )


def _as_map(feature: Tensor, layer: str, network: str) -> Tensor:
    """Any layout that a rule can read, as ``(B, C, H, W)``."""
    try:
        found = find_layout(feature, LayoutConfig(), whose="network").as_map(feature)
    except ShapeError:
        raise ModelError(
            f"{network}: a Lipschitz profile needs maps (batch, channels, height, width), or "
            f"tokens that form a square; {layer} gives {tuple(feature.shape)}. A network of your "
            "own can name other layers as its stages in layer_aliases"
        ) from None
    if not torch.isfinite(found).all():
        raise ModelError(
            f"{network}: {layer} gives values that are not finite, so that nothing can be said of "
            "how far it stretches; has its training diverged?"
        )
    return found


def _norms_between(teacher: Teacher, addresses: Sequence[str], image: Tensor) -> list[list[float]]:
    """Spectral norms of the layers in the order in which they run, cut at each address."""
    segments: list[list[float]] = [[]]
    calls: Counter[str] = Counter()

    def ran(norm: float) -> None:
        segments[-1].append(norm)

    def cut(text: str, call: int) -> None:
        calls[text] += 1
        if calls[text] == call:
            segments.append([])

    # A layer's own hook comes before the cut behind it.
    handles = [
        layer.register_forward_hook(lambda *_, norm=norm: ran(norm))
        for layer in teacher.network.modules()
        if (norm := layer_norm(layer)) is not None
    ]
    for text in addresses:
        address = LayerAddress.parse(text)
        module = teacher.network.get_submodule(address.module)
        register = (
            module.register_forward_pre_hook
            if address.takes_input
            else module.register_forward_hook
        )
        handles.append(register(lambda *_, at=(text, address.call or 1): cut(*at)))
    teacher(image)
    for handle in handles:
        handle.remove()
    return segments


def _log10_product(norms: Sequence[float]) -> float | None:
    return sum(map(math.log10, norms)) if all(norms) else None
