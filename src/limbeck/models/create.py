"""A network from its name: one of the zoo, of timm or torchvision, or the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

import torch
from torch import nn

from limbeck.core.errors import ModelError, nearest_names
from limbeck.models.cifar_resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32_option_a,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.models.imagenet_resnet import resnet18, resnet34, resnet50
from limbeck.models.mobilenetv2 import mobilenetv2
from limbeck.models.plane_cnn import (
    plane2,
    plane2_cifar10,
    plane3,
    plane4,
    plane4_cifar10,
    plane5,
    plane6,
    plane6_cifar10,
    plane7,
    plane8,
    plane8_cifar10,
    plane9,
    plane10,
    plane10_cifar10,
)
from limbeck.models.shufflenetv1 import shufflev1
from limbeck.models.shufflenetv2 import shufflev2
from limbeck.models.vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from limbeck.models.vision_zoo import OpenedModel, is_vision_name, open_vision, unknown_model
from limbeck.models.wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = ["MODELS", "create_model", "open_model"]

# Names as the tables of the benchmark write them; each function has its name in lower case.
MODELS: Final[Mapping[str, Callable[..., nn.Module]]] = MappingProxyType(
    {
        "digits_cnn": digits_cnn,
        "digits_cnn_tiny": digits_cnn_tiny,
        "MobileNetV2": mobilenetv2,
        "plane2": plane2,
        "plane2_cifar10": plane2_cifar10,
        "plane3": plane3,
        "plane4": plane4,
        "plane4_cifar10": plane4_cifar10,
        "plane5": plane5,
        "plane6": plane6,
        "plane6_cifar10": plane6_cifar10,
        "plane7": plane7,
        "plane8": plane8,
        "plane8_cifar10": plane8_cifar10,
        "plane9": plane9,
        "plane10": plane10,
        "plane10_cifar10": plane10_cifar10,
        "resnet8": resnet8,
        "resnet8x4": resnet8x4,
        "resnet14": resnet14,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet32_option_a": resnet32_option_a,
        "resnet32x4": resnet32x4,
        "resnet44": resnet44,
        "resnet56": resnet56,
        "resnet110": resnet110,
        "ResNet18": resnet18,
        "ResNet34": resnet34,
        "ResNet50": resnet50,
        "ShuffleV1": shufflev1,
        "ShuffleV2": shufflev2,
        "vgg8": vgg8,
        "vgg11": vgg11,
        "vgg13": vgg13,
        "vgg16": vgg16,
        "vgg19": vgg19,
        "wrn_16_1": wrn_16_1,
        "wrn_16_2": wrn_16_2,
        "wrn_40_1": wrn_40_1,
        "wrn_40_2": wrn_40_2,
    }
)


def create_model(
    name: str, *, num_classes: int, in_chans: int = 3, seed: int = 0, allow_code: bool = False
) -> nn.Module:
    """A new network, its weights drawn from the seed.

    The caller's random streams stay where they are.

    Args:
        name: one of :data:`MODELS`; ``timm/NAME`` or ``torchvision/NAME``, and timm's
            ``hf-hub:OWNER/NAME`` and ``local-dir:FOLDER``; or ``file.py:function`` or
            ``module:function``, a function that is called with ``num_classes`` (and ``in_chans``,
            if it takes that) and returns an ``nn.Module``. What it imports is looked up beside
            the file, or for a module in the current folder, as Python itself would.
        num_classes: outputs, ``>= 1``.
        in_chans: channels of the images, ``>= 1``.
        seed: of the weights.
        allow_code: whether ``name`` may be a function. True only where the user gave the name
            here and now; never for a name that stands in a file.

    Raises:
        UnknownNameError: with the nearest names, if there is no such network.
        ModelError: if the function may not run, is not there, fails, or returns something else;
            or if timm or torchvision are needed and cannot be used.

    Example:
        >>> network = create_model("resnet20", num_classes=100)
        >>> sum(p.numel() for p in network.parameters())
        278324
    """
    opened = open_model(
        name, num_classes=num_classes, in_chans=in_chans, seed=seed, allow_code=allow_code
    )
    return opened.network


def open_model(
    name: str,
    *,
    num_classes: int | None,
    in_chans: int | None = 3,
    data_size: tuple[int, int] | None = None,
    img_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    own_size: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    allow_code: bool = False,
) -> OpenedModel:
    """What :func:`create_model` gives, and what the network wants of its images.

    Args:
        name: see :func:`create_model`.
        num_classes: outputs; None for those of the published weights.
        in_chans: channels; None for those of the published weights.
        data_size: height and width of the images there are.
        img_size: height and width to feed it; None decides by the network and its weights.
        pretrained: with the weights that timm or torchvision publish.
        own_size: feed it what it was published for; see
            :func:`limbeck.models.vision_zoo.open_vision`.
        model_kwargs: further arguments of timm's or torchvision's function.
        seed: of the weights that are not published.
        allow_code: see :func:`create_model`.

    Raises:
        UnknownNameError: with the nearest names, if there is no such network.
        ModelError: as for :func:`create_model`; or if there are no weights, or none in reach.
    """
    if (num_classes is not None and num_classes < 1) or (in_chans is not None and in_chans < 1):
        raise ModelError(
            "a network needs at least one class and one channel; got "
            f"num_classes={num_classes}, in_chans={in_chans}"
        )
    # The CPU's stream alone is used: forking CUDA's would start CUDA in every process.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if is_vision_name(name):
            return open_vision(
                name,
                num_classes=num_classes,
                in_chans=in_chans,
                data_size=data_size,
                img_size=img_size,
                pretrained=pretrained,
                own_size=own_size,
                model_kwargs=model_kwargs,
                zoo=MODELS,
            )
        if pretrained or model_kwargs or num_classes is None or in_chans is None:
            raise ModelError(
                f"model {name!r} has no published weights of its own and takes no model_kwargs; "
                "these are for timm's and torchvision's networks (timm/NAME, torchvision/NAME). "
                "Give a file of weights instead"
            )
        if ":" in name:
            network = _create_own(name, num_classes, in_chans, allow_code=allow_code)
        elif name in MODELS:
            network = MODELS[name](num_classes=num_classes, in_chans=in_chans)
        elif name.endswith(".py"):
            raise ModelError(
                f"model {name!r} is a file; name the function in it that builds the network as "
                f"well, as in {name}:make_student"
            )
        else:
            raise unknown_model(name, MODELS)
    return OpenedModel(network, None, img_size, in_chans, num_classes)


def _create_own(name: str, num_classes: int, in_chans: int, *, allow_code: bool) -> nn.Module:
    source, _, attribute = name.rpartition(":")
    if source == "python":
        raise ModelError(
            f"{name!r} stands for a module that was passed in Python and cannot be made from its "
            "name; pass the module again, or put a function that builds it into a file and name "
            "that: file.py:function"
        )
    if not allow_code:
        raise ModelError(
            f"model {name!r} is code, and is not run: no settings file, run folder or checkpoint "
            "names code. If you trust it, name it yourself on the command line, with "
            f"`--student {name}` or `--teacher-model {name}`"
        )
    is_file = source.endswith(".py")
    folder = Path(source).resolve().parent if is_file else Path.cwd()
    with _importing_from(folder):
        module = _load_file(Path(source), name) if is_file else _load_module(source, name)
        return _call(_find(module, attribute, name), name, num_classes, in_chans)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """``folder`` in front of Python's path, for as long as the user's code runs."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # the files may be younger than the last look
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have changed the path itself
            sys.path.remove(str(folder))


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"model {name!r}: there is no file {path} in {Path.cwd()}")
    # Known to Python under a name of its own, which dataclasses and pickle need.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_limbeck_{path.stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise _failed(name, f"running {path}", error) from error
    return module


def _load_module(source: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{source}.".startswith(f"{error.name}."):
            raise ModelError(
                f"model {name!r}: Python finds no module {error.name!r}, neither in {Path.cwd()} "
                "nor installed; for a file give its path, as in file.py:function"
            ) from None
        raise _failed(name, f"importing {source}", error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, f"importing {source}", error) from error


def _find(module: ModuleType, attribute: str, name: str) -> Callable[..., Any]:
    found = getattr(module, attribute, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    own = [key for key, value in vars(module).items() if callable(value) and key[:1] != "_"]
    near = nearest_names(attribute, own)
    what = "nothing" if not hasattr(module, attribute) else f"a {type(found).__name__}"
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(own) or 'none'}"
    raise ModelError(
        f"model {name!r} should name a function that builds a network; {attribute!r} is {what} "
        f"there; {hint}"
    )


def _call(function: Callable[..., Any], name: str, num_classes: int, in_chans: int) -> nn.Module:
    arguments = {"num_classes": num_classes, "in_chans": in_chans}
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some that are written in C
        raise ModelError(
            f"model {name!r} does not tell its arguments; name a Python function that takes "
            "num_classes"
        ) from None
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "in_chans" not in parameters and not takes_any:
        del arguments["in_chans"]
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ModelError(
            f"model {name!r} is called with {given}, and its arguments are {signature} ({error}); "
            "let it take num_classes, and give every argument but num_classes and in_chans a "
            "default"
        ) from None
    try:
        network = function(**arguments)
    except (Exception, SystemExit) as error:
        raise _failed(name, "calling it", error) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"model {name!r} should return a torch.nn.Module, and returned "
            f"{type(network).__name__}; return the network itself"
        )
    return network


def _failed(name: str, doing: str, error: BaseException) -> ModelError:
    place = ""
    if error.__traceback__ is not None:
        last = inspect.getinnerframes(error.__traceback__)[-1]
        place = f", in {last.filename} line {last.lineno}"
    return ModelError(
        f"model {name!r}: {doing} raised {type(error).__name__}: {error}{place}; mend it there"
    )
