"""Networks by name: own CIFAR families, timm, any nn.Module by import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from vlkd.errors import UserError
from vlkd.models.cifar import NETWORKS

# Arguments that are ours, not the constructor's: paths of the last linear layer and of the last map.
OWN_ARGUMENTS = ("head", "features")
_CIFAR = {
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
}


def is_network(name: str) -> bool:
    """Whether the name has the form of those that build_network knows."""
    return name in NETWORKS or (":" in name and not name.startswith("hf-hub:"))


def build_network(
    name: str, num_classes: int, size: tuple[int, int] | None, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and its preset {mean, std, input_size, interpolation}.

    name: of a CIFAR network, "timm:NAME" or "package.module:Class". size: (H, W), for networks whose weights
    depend on it. Raises UserError for unknown names, classes and arguments.
    """
    given = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    kind, _, rest = name.partition(":")
    if name in NETWORKS:
        if given:
            raise UserError(f"{name}: takes no arguments, got {', '.join(given)}")
        return NETWORKS[name](num_classes), _CIFAR
    if kind == "timm" and rest:
        return _from_timm(rest, num_classes, size, given)
    if kind and rest:
        return _imported(name, num_classes, given), _CIFAR
    near = difflib.get_close_matches(name, NETWORKS, 3) or sorted(NETWORKS)
    raise UserError(
        f"classifier {name!r}: expected one of {', '.join(near)}, 'timm:NAME' or 'package.module:Class'"
    )


def _from_timm(
    name: str, num_classes: int, size: tuple[int, int] | None, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{_nearest(name.split('.')[0], timm.list_models())}")
    if "checkpoint_path" in arguments:
        raise UserError(f"timm:{name}: checkpoint_path is not read; give the file as `weights`")
    pretrained = arguments.pop("pretrained", False)
    if isinstance(pretrained, str):
        name = f"{name.split('.')[0]}.{pretrained}"
    # Only transformers have an image size to be told.
    attempts: list[dict[str, Any]] = [{}]
    if size is not None and "img_size" not in arguments:
        attempts = [{"img_size": size}, {}]
    for i, extra in enumerate(attempts):
        try:
            options = {**arguments, **extra}
            model: Any = timm.create_model(name, bool(pretrained), num_classes=num_classes, **options)
            return model, model.pretrained_cfg
        except TypeError as error:
            if i + 1 == len(attempts):
                raise UserError(f"timm:{name}: {error}") from error
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            hint = "; fetch its file elsewhere and give it as `weights`" if pretrained else ""
            raise UserError(f"timm:{name}: could not be built ({reason}){hint}") from error
    raise AssertionError


def _imported(name: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        scope = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{name}: cannot import {module} ({error})") from error
    found = getattr(scope, attribute, None)
    # A bundle may name a class too: nothing but the making of a module is ever called.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [key for key, value in vars(scope).items() if isinstance(value, type)]
        what = "no such class" if found is None else "not a class derived from torch.nn.Module"
        raise UserError(f"{name}: {what}{_nearest(attribute, classes)}")
    parameters = inspect.signature(found).parameters
    if "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        arguments = {"num_classes": num_classes, **arguments}
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}; give what its constructor needs in the arguments") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
