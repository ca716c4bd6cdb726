"""Networks of timm and torchvision by name, with their own input size and normalisation.

``timm/NAME`` and ``timm/NAME.TAG``, ``hf-hub:OWNER/NAME`` and ``local-dir:FOLDER`` are timm's;
``torchvision/NAME`` and ``torchvision/NAME.WEIGHTS`` are torchvision's classifiers. Both packages
are imported when a name asks for them and not before.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limbeck.core.errors import ModelError, UnknownNameError, nearest_names
from limbeck.core.normalization import Normalization
from limbeck.models.pretrained import (
    check_reachable,
    hub_offline,
    hub_snapshot_file,
    torch_hub_file,
)
from limbeck.models.vision import vision_state

__all__ = ["OpenedModel", "is_vision_name", "open_vision", "unknown_model"]

_TIMM = ("timm/", "hf-hub:", "local-dir:")
_TORCHVISION = ("torchvision/",)
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Arguments that settings have names of their own for, or that would read files or change outputs.
_RESERVED = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "features_only",
        "image_size",
        "img_size",
        "in_chans",
        "input_size",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "progress",
        "weights",
    }
)
# What fixes the input size of torchvision's networks, by the beginning of their names.
_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
# Both with auxiliary classifiers that only training by cross-entropy uses, both with published
# weights that expect another scale of the input: alike whether the weights are loaded or not, so
# that a network made again by its name computes the same.
_INCEPTION = ("googlenet", "inception_v3")
_SUGGESTED = 4  # names in a message
_FEWEST = 3  # letters that count as the beginning of a name
_ELSEWHERE = "give a file of weights: --teacher-checkpoint or --initial-checkpoint"


@dataclass(frozen=True)
class OpenedModel:
    """A network by name, and what it wants of its images.

    Attributes:
        network: with weights as asked for.
        normalization: its own mean and deviation; None where it has none.
        image_size: height and width that it must be fed; None where it takes them as they come.
        in_chans: channels that it takes.
        num_classes: outputs.
        notes: what the user should know.
    """

    network: nn.Module
    normalization: Normalization | None
    image_size: tuple[int, int] | None
    in_chans: int
    num_classes: int
    notes: tuple[str, ...] = ()


def is_vision_name(name: str) -> bool:
    """Whether a name is timm's or torchvision's.

    Example:
        >>> is_vision_name("timm/resnet18.a1_in1k"), is_vision_name("resnet20")
        (True, False)
    """
    return name.startswith((*_TIMM, *_TORCHVISION))


def open_vision(
    name: str,
    *,
    num_classes: int | None,
    in_chans: int | None,
    data_size: tuple[int, int] | None = None,
    img_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    own_size: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    zoo: Iterable[str] = (),
) -> OpenedModel:
    """A network of timm or torchvision.

    Args:
        name: see the module.
        num_classes: outputs; None for those of its own weights.
        in_chans: channels; None for its own. torchvision's networks always have three.
        data_size: height and width of the images there are.
        img_size: height and width to feed it; None decides by the rest.
        pretrained: with its published weights; a head of another number of classes is new.
        own_size: feed it what it was published for, as with ``pretrained``, since weights from
            elsewhere come later. Otherwise fresh weights take images as they come, unless the
            network is made for one size.
        model_kwargs: further arguments of the library's function, such as ``patch_size``.
        zoo: other names that could have been meant.

    Raises:
        UnknownNameError: with the nearest names of all libraries, if there is no such network.
        ModelError: if the library is absent or broken, has no weights or cannot reach them, or
            cannot build the network.
    """
    kwargs = dict(model_kwargs or {})
    reserved = sorted(_RESERVED & kwargs.keys())
    if reserved:
        raise ModelError(
            f"model {name!r}: model_kwargs cannot hold {', '.join(reserved)}; classes and channels "
            "are the data's, and size and weights have settings of their own (img_size, "
            "pretrained, checkpoint)"
        )
    timm = name.startswith(_TIMM)
    library = _library("timm" if timm else "torchvision", name)
    if not _is_known(library, name):
        raise unknown_model(name, zoo)
    make = _open_timm if timm else _open_torchvision
    return make(
        library,
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        data_size=data_size,
        img_size=img_size,
        pretrained=pretrained,
        own_size=own_size or pretrained,
        kwargs=kwargs,
    )


def unknown_model(name: str, zoo: Iterable[str]) -> UnknownNameError:
    """The error for a name that nobody knows, with the nearest of all that can be used here."""
    zoo = list(zoo)
    known = [*zoo, *_listed("torchvision"), *_listed("timm")]
    library, _, _ = name.rpartition("/")
    homes: dict[str, list[str]] = {}
    for full in known:
        homes.setdefault(full.rpartition("/")[2].casefold(), []).append(full)
    bare = name.rpartition("/")[2].partition(".")[0]
    # Half a name, as vit_small, is what its whole forms begin with before it is a slip of others.
    longer = [
        short for short in homes if len(bare) >= _FEWEST and short.startswith(bare.casefold())
    ]
    shorts = dict.fromkeys([*sorted(longer, key=len)[:2], *nearest_names(bare, list(homes))])
    near = [full for short in shorts for full in homes[short]]
    return UnknownNameError(
        "model",
        name,
        [full for full in known if full.rpartition("/")[0] == library] or known,
        hint="For a network of your own give file.py:function.",
        near=near[:_SUGGESTED],
    )


def _listed(package: Literal["timm", "torchvision"]) -> list[str]:
    """Its networks' names, where it can be imported."""
    if vision_state(package).remedy is not None:
        return []
    library: Any = importlib.import_module(package)
    names = (
        library.list_models()
        if package == "timm"
        else library.models.list_models(module=library.models)
    )
    return [f"{package}/{name}" for name in names]


def _is_known(library: Any, name: str) -> bool:  # noqa: ANN401  (the module)
    """Whether the library has the network; of a folder or repository it is not for it to say."""
    package, _, ident = name.partition("/")
    arch = ident.partition(".")[0]
    if package == "timm":
        return bool(library.is_model(arch))
    if package == "torchvision":
        return arch in library.models.list_models(module=library.models)
    return True


def _library(package: Literal["timm", "torchvision"], name: str) -> Any:  # noqa: ANN401
    state = vision_state(package)
    if state.remedy is not None:
        what = "is not installed" if state.version is None else state.problem
        raise ModelError(f"model {name!r} needs {package}, which {what}. {state.remedy}")
    return importlib.import_module(package)


# -- timm --------------------------------------------------------------------------------------


def _open_timm(
    timm: Any,  # noqa: ANN401  (the module)
    name: str,
    *,
    num_classes: int | None,
    in_chans: int | None,
    data_size: tuple[int, int] | None,
    img_size: tuple[int, int] | None,
    pretrained: bool,
    own_size: bool,
    kwargs: dict[str, Any],
) -> OpenedModel:
    ident, config, weights = _timm_source(timm, name, pretrained=pretrained)
    native = (int(config["input_size"][1]), int(config["input_size"][2]))
    least = config.get("min_input_size")
    fixed = bool(config.get("fixed_input_size")) and not kwargs.get("dynamic_img_size")
    size = img_size
    if size is None and (fixed or own_size):
        size = native
    if size is None and least and data_size and min(data_size) < min(least[1:]):
        size = (int(least[1]), int(least[2]))
    arguments = dict(kwargs)
    if fixed and size is not None:
        arguments["img_size"] = size
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if in_chans is not None:
        arguments["in_chans"] = in_chans
    if weights is not None:
        arguments["pretrained_cfg_overlay"] = {"file": str(weights)}
    try:
        network: nn.Module = timm.create_model(ident, pretrained=pretrained, **arguments)
    except Exception as error:
        raise _not_built("timm", name, arguments, error) from error
    found = timm.data.resolve_model_data_config(network)
    channels = in_chans or int(config["input_size"][0])
    notes = []
    theirs = config.get("num_classes")
    if pretrained and num_classes not in (None, theirs):
        notes.append(f"{name}: a new head of {num_classes} classes; its own weights have {theirs}")
    return OpenedModel(
        network,
        Normalization(mean=_fitted(found["mean"], channels), std=_fitted(found["std"], channels)),
        size,
        channels,
        int(getattr(network, "num_classes", num_classes or 0)),
        tuple(notes),
    )


def _timm_source(
    timm: Any,  # noqa: ANN401
    name: str,
    *,
    pretrained: bool,
) -> tuple[str, Mapping[str, Any], Path | None]:
    """What to call it for ``timm.create_model``, its configuration, its weights in the cache."""
    source, _, rest = name.partition(":")
    if source == "local-dir":
        return name, _read_config(name, Path(rest) / "config.json"), None
    if source == "hf-hub":
        return _hub_source(name, rest, pretrained=pretrained)
    ident = name.removeprefix("timm/")
    try:
        config = timm.models.get_pretrained_cfg(ident)
    except RuntimeError:  # a tag that the network has not
        arch = ident.partition(".")[0]
        tags = [f"timm/{full}" for full in timm.models.get_arch_pretrained_cfgs(arch)]
        raise UnknownNameError("model", name, tags) from None
    if config is None:
        config = timm.models.PretrainedCfg()
    weights = _timm_weights(timm, name, ident, config) if pretrained else None
    return ident, config.to_dict(), weights


def _timm_weights(timm: Any, name: str, ident: str, config: Any) -> Path | None:  # noqa: ANN401
    """The weights' file in a cache; None where timm has to fetch it, and can."""
    if not config.has_weights:
        arch = ident.partition(".")[0]
        found = timm.models.get_arch_pretrained_cfgs(arch)
        tags = [full for full, each in found.items() if each.has_weights]
        there = f"it has them as {', '.join(tags)}" if tags else "choose another network"
        raise ModelError(f"timm has no weights for {name!r}: {there}, or give a checkpoint")
    if not config.hf_hub_id:
        _check_address(name, config.url)
        return None
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_WEIGHTS
    cached = hub_snapshot_file(config.hf_hub_id, names)
    if cached is not None and not config.custom_load:
        return cached  # and timm need not ask the hub whether there is a newer one
    if cached is None:
        _check_hub(f"the weights of {name!r}", config.hf_hub_id)
    return None


def _hub_source(
    name: str, repository: str, *, pretrained: bool
) -> tuple[str, Mapping[str, Any], None]:
    """A repository's folder in the cache, if it has all that is needed; else its own name."""
    if not repository:
        raise ModelError(f"model {name!r}: give the repository, as in hf-hub:OWNER/NAME")
    config = hub_snapshot_file(repository, ("config.json",))
    weights = hub_snapshot_file(repository, _HUB_WEIGHTS)
    if config is not None and (weights is not None or not pretrained):
        return f"local-dir:{config.parent}", _read_config(name, config), None
    _check_hub(f"{name!r}", repository)
    from huggingface_hub import hf_hub_download

    owner_and_name, _, revision = repository.partition("@")
    try:
        fetched = hf_hub_download(owner_and_name, "config.json", revision=revision or None)
    except Exception as error:
        raise _not_built("timm", name, {}, error) from error
    return name, _read_config(name, Path(fetched)), None


def _read_config(name: str, path: Path) -> Mapping[str, Any]:
    """What a ``config.json`` of timm says of the network's input and classes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = dict(content.get("pretrained_cfg", content))
        built = content.get("model_args", {})
        channels, *size = config.get("input_size") or (3, 224, 224)
        given = built.get("img_size", size)
        size = [given, given] if isinstance(given, int) else list(given)
        config["input_size"] = (built.get("in_chans", channels), *size)
        config["num_classes"] = content.get("num_classes", config.get("num_classes"))
    except OSError:
        raise ModelError(
            f"model {name!r}: {path} cannot be read; give a folder that timm saved, with "
            "config.json and weights"
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"model {name!r}: {path} is no configuration of timm; give a folder that timm saved"
        ) from None
    return config


def _check_hub(wanted: str, repository: str) -> None:
    from huggingface_hub import constants

    check_reachable(
        constants.ENDPOINT,
        wanted=wanted,
        remedy=f"Where there is a network, `hf download {repository.partition('@')[0]}` fetches "
        f"it; copy its folder into {constants.HF_HUB_CACHE} here. Or {_ELSEWHERE}",
        forbidden=hub_offline(),
    )


def _check_address(name: str, address: str) -> None:
    if torch_hub_file(address) is None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        check_reachable(
            address,
            wanted=f"the weights of {name!r}",
            remedy=f"Where there is a network, download {address} and copy the file into {folder} "
            f"here. Or {_ELSEWHERE}",
        )


# -- torchvision -------------------------------------------------------------------------------


def _open_torchvision(
    torchvision: Any,  # noqa: ANN401  (the module)
    name: str,
    *,
    num_classes: int | None,
    in_chans: int | None,
    data_size: tuple[int, int] | None,
    img_size: tuple[int, int] | None,
    pretrained: bool,
    own_size: bool,
    kwargs: dict[str, Any],
) -> OpenedModel:
    del in_chans  # always three
    models = torchvision.models
    arch, _, tag = name.removeprefix("torchvision/").partition(".")
    choices = models.get_model_weights(arch)
    if tag and tag not in choices.__members__:
        raise UnknownNameError(
            "model", name, [f"torchvision/{arch}.{each}" for each in choices.__members__]
        )
    weights = choices[tag] if tag else choices.DEFAULT
    wanted = weights.transforms()
    side = int(wanted.crop_size[0])
    argument = next((each for start, each in _SIZED.items() if arch.startswith(start)), None)
    least = min(weights.meta.get("min_size", (1, 1)))
    size = img_size
    if size is None and (argument is not None or own_size):
        size = (side, side)
    # Of some it is the weights' own size, which says nothing of the least that would do.
    if size is None and data_size is not None and min(data_size) < least < side:
        size = (least, least)
    classes = len(weights.meta["categories"])
    arguments = dict(kwargs)
    if argument is not None and size is not None:
        if size[0] != size[1]:
            raise ModelError(f"{name} takes square images; got {size[0]} x {size[1]}")
        arguments[argument] = size[0] if argument == "image_size" else size
    if arch in _INCEPTION:
        arguments = {"aux_logits": False, "transform_input": True, **arguments}
        if not pretrained:
            arguments = {"init_weights": True, **arguments}
    if not pretrained:
        arguments["num_classes"] = classes if num_classes is None else num_classes
    else:
        _check_address(name, weights.url)
    try:
        network: nn.Module = models.get_model(
            arch, weights=weights if pretrained else None, **arguments
        )
    except Exception as error:
        raise _not_built("torchvision", name, arguments, error) from error
    notes = []
    if pretrained and num_classes not in (None, classes):
        assert num_classes is not None
        _replace_head(network, classes, num_classes)
        notes.append(f"{name}: a new head of {num_classes} classes; its own weights have {classes}")
    normalization = Normalization(mean=tuple(wanted.mean), std=tuple(wanted.std))
    return OpenedModel(network, normalization, size, 3, num_classes or classes, tuple(notes))


def _replace_head(network: nn.Module, classes: int, num_classes: int) -> None:
    """Put a fresh layer of the same kind in the classifier's place."""
    for name, module in reversed(list(network.named_modules())):
        fresh: nn.Module
        if isinstance(module, nn.Linear) and module.out_features == classes:
            fresh = nn.Linear(module.in_features, num_classes, bias=module.bias is not None)
        elif isinstance(module, nn.Conv2d) and module.out_channels == classes:
            fresh = nn.Conv2d(module.in_channels, num_classes, module.kernel_size)  # type: ignore[arg-type]
        else:
            continue
        network.set_submodule(name, fresh)
        return
    raise AssertionError(f"{type(network).__name__} has no layer of {classes} outputs")


# -- both --------------------------------------------------------------------------------------


def _fitted(values: Iterable[float], channels: int) -> tuple[float, ...]:
    """Constants for another number of channels: their mean for each."""
    given = tuple(float(value) for value in values)
    if len(given) == channels:
        return given
    return (sum(given) / len(given),) * channels


def _not_built(
    library: str, name: str, arguments: Mapping[str, Any], error: Exception
) -> ModelError:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ModelError(
        f"model {name!r}: {library} could not build it with {given or 'its own arguments'} "
        f"({type(error).__name__}: {reason}); mend model_kwargs and img_size, or choose another "
        "network"
    )
