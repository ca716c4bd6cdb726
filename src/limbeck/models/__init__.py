"""Networks by name: the zoo, timm, torchvision, one's own; their weights; their summary."""

from limbeck.models.create import MODELS, create_model, open_model
from limbeck.models.published import published_network
from limbeck.models.ready import make_ready
from limbeck.models.summary import LayerSummary, ModelSummary, count_macs, summarise
from limbeck.models.vision_zoo import OpenedModel, is_vision_name
from limbeck.models.weights import (
    fill_network,
    load_weights,
    read_weights,
    save_weights,
    without_prefix,
)

__all__ = [
    "MODELS",
    "LayerSummary",
    "ModelSummary",
    "OpenedModel",
    "count_macs",
    "create_model",
    "fill_network",
    "is_vision_name",
    "load_weights",
    "make_ready",
    "open_model",
    "published_network",
    "read_weights",
    "save_weights",
    "summarise",
    "without_prefix",
]
