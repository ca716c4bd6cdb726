"""A finished run's networks judged by their embeddings: the vectors before the classifier.

N images, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import LimbeckError
from limbeck.core.types import UNLABELLED, keyed_generator
from limbeck.data import ImageSource, eval_batches
from limbeck.engine.config import TrainConfig
from limbeck.features import ObservedNetwork
from limbeck.methods.adapters import LayoutConfig, find_layout
from limbeck.metrics.embedding import LabelledFeatures, judge_embedding
from limbeck.runs.networks import NamedNetwork

__all__ = ["MOST_KNOWN", "Embedded", "embed", "judge_embeddings"]

MOST_KNOWN = 20_000  # training images that probe and neighbours see
_LAYER = "penultimate"
_KNOWN = "known"  # what is fitted on, beside the splits' names


class Embedded(NamedTuple):
    """What networks make of images.

    Attributes:
        vectors: by name, ``(N, D)`` float32 on the host; of maps and tokens the mean over places.
        faults: of those that have no such layer, or nothing that can be read as a vector: why.
    """

    vectors: dict[str, Tensor]
    faults: dict[str, str]


def judge_embeddings(
    networks: Mapping[str, NamedNetwork],
    train: ImageSource,
    judged: Mapping[str, ImageSource],
    *,
    config: TrainConfig,
    device: torch.device,
    seed: int,
) -> tuple[dict[str, dict[str, dict[str, float]]], list[str]]:
    """Accuracy of a linear probe and of nearest neighbours on each network's vectors.

    Both are fitted on the labelled training images, as they are; of more than
    :data:`MOST_KNOWN`, on so many of them.

    Args:
        networks: by name.
        train: what is fitted on.
        judged: by name of the split.
        config: precision and batch size.
        device: where the networks are.
        seed: which training images are taken.

    Returns:
        Network to split to "linear_top1" and "knn_top1"; and a sentence for what could not be
        judged, or was not judged by all.
    """
    known = (train.labels != UNLABELLED).nonzero().squeeze(1).cpu()
    if not len(known):
        return {}, ["the embedding is not judged: no training image has a label"]
    notes = []
    if len(known) > MOST_KNOWN:
        notes.append(f"the embedding is judged by {MOST_KNOWN:,} of {len(known):,} labelled images")
        generator = keyed_generator(seed, "probe")
        known = known[torch.randperm(len(known), generator=generator)[:MOST_KNOWN].sort().values]
    labelled = {_KNOWN: train.subset(known)}
    for name, source in judged.items():
        there = (source.labels != UNLABELLED).nonzero().squeeze(1).cpu()
        if len(there):
            labelled[name] = source.subset(there)
    taken: dict[str, dict[str, LabelledFeatures]] = {}
    for split, source in labelled.items():
        embedded = embed(networks, source, config=config, device=device)
        label = source.labels.cpu().numpy()
        taken[split] = {n: LabelledFeatures(v.numpy(), label) for n, v in embedded.vectors.items()}
    notes += [f"the embedding of {n} is not judged: {why}" for n, why in embedded.faults.items()]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in embedded.vectors:
        splits = {split: found[name] for split, found in taken.items()}
        try:
            judgement = judge_embedding(splits.pop(_KNOWN), splits)
        except LimbeckError as error:  # a network that has diverged, of a run that is done
            notes.append(f"the embedding of {name} is not judged: {error}")
            continue
        scores[name] = {
            split: {"linear_top1": each.linear_top1, "knn_top1": each.knn_top1}
            for split, each in judgement.items()
        }
        if not all(each.converged for each in judgement.values()):
            notes.append(f"the linear probe of {name} was stopped before it had converged")
    return scores, notes


@torch.no_grad()
def embed(
    networks: Mapping[str, NamedNetwork],
    source: ImageSource,
    *,
    config: TrainConfig,
    device: torch.device,
) -> Embedded:
    """The vectors before each network's classifier; every image is read once for all of them.

    Args:
        networks: by name; in eval mode afterwards.
        source: the images, taken as they are.
        config: precision and batch size.
        device: where to compute.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in networks}
    faults: dict[str, str] = {}
    with ExitStack() as taps:
        observed = {}
        for name, named in networks.items():
            observed[name] = ObservedNetwork(
                named.network, normalization=named.normalization, layers=(_LAYER,), scores=False
            ).to(device)
            observed[name].eval()
            taps.callback(observed[name].tap.close)
        for batch in eval_batches(source, config.eval_batch_size, workers=config.workers):
            moved = batch.to(device, memory_format=config.memory_format)
            for name in observed.keys() - faults.keys():
                try:
                    with config.autocast(device):
                        feature = observed[name](moved.image).features[_LAYER]
                    layout = find_layout(feature, LayoutConfig(), whose=name)
                except LimbeckError as error:
                    faults[name] = str(error)
                    continue
                parts[name].append(layout.as_vector(feature).float().cpu())
    vectors = {name: torch.cat(found) for name, found in parts.items() if name not in faults}
    return Embedded(vectors, faults)
