"""Networks: the zoo, creating one by name, its weights, published weights, its summary."""

from limbeck.models.create import MODELS, create_model
from limbeck.models.published import published_network
from limbeck.models.summary import LayerSummary, ModelSummary, summarise
from limbeck.models.weights import load_weights, save_weights

__all__ = [
    "MODELS",
    "LayerSummary",
    "ModelSummary",
    "create_model",
    "load_weights",
    "published_network",
    "save_weights",
    "summarise",
]
