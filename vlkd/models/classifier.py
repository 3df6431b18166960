"""Classifiers: a network of any origin that knows its own input, and what it computes on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.cifar import NETWORKS
from vlkd.models.clip import weights_identity
from vlkd.models.networks import OWN_ARGUMENTS, build_network
from vlkd.models.projector import batch_of_one
from vlkd.models.spec import InputSpec
from vlkd.models.taps import Taps, check_taps, first_tensor
from vlkd.models.weights import fit_weights, load_weights

_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool1d)


@dataclass
class Outputs:
    """One pass of a classifier.

    `logits` (B,K); `pooled` (B,D), the input of the last linear layer; `map` (B,C,h,w), the last one before
    pooling, also of a vision transformer whose tokens fill a grid; `tokens` (B,N,D) of a vision transformer,
    without class, distillation and register tokens; `taps`, the tensor of each path that was asked for.
    """

    logits: Tensor
    pooled: Tensor
    map: Tensor | None = None
    tokens: Tensor | None = None
    taps: dict[str, Tensor] = field(default_factory=dict)


class Classifier(nn.Module):
    """A network that knows its own input: images in [0, 1] in, logits and inner features out.

    `network` follows timm's protocol (forward_features, forward_head, get_classifier) or is read by hooks at
    its last linear layer and at its last map. `architecture`: plain values, enough to rebuild it; its
    arguments "head" and "features" name these two modules where a dry pass would choose wrongly.
    """

    def __init__(
        self, network: nn.Module, spec: InputSpec, num_classes: int, architecture: dict[str, Any]
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.spec = spec
        self.num_classes = num_classes
        self.architecture = architecture
        chosen = architecture.get("arguments", {})
        self._paths = {key: chosen[key] for key in OWN_ARGUMENTS if key in chosen}
        self.check_taps(self._paths.values())
        self._protocol = not self._paths and all(
            hasattr(network, name) for name in ("forward_features", "forward_head", "get_classifier")
        )
        width: Any = getattr(self.last_layer, "in_features", None) or self.network.num_features
        self.spec = replace(spec, width=int(width))

    def forward(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> logits (B,K). Raises UserError where BatchNorm is given a single value."""
        with batch_of_one():
            return self.network(self._prepare(images01))

    def outputs(self, images01: Tensor, taps: Sequence[str] = ()) -> Outputs:
        """(B,3,H,W) in [0,1] -> everything of one pass; `taps` as in `vlkd.models.taps.Taps`."""
        images = self._prepare(images01)
        with batch_of_one(), Taps(self.network, taps) as tapped:
            logits, pooled, last = self._by_protocol(images) if self._protocol else self._by_hooks(images)
        map_, tokens = self._map_and_tokens(last)
        return Outputs(logits, pooled.flatten(1), map_, tokens, tapped.values)

    def check_taps(self, paths: Iterable[str]) -> None:
        """Raise UserError naming the nearest module paths of the network when one does not exist."""
        check_taps(self.network, paths)

    @property
    def identity(self) -> str:
        """name@hash16 of the present weights."""
        return weights_identity(self.architecture["name"], self.network.state_dict())

    @property
    def head(self) -> nn.Linear:
        """The last linear layer. Raises UserError for networks that end otherwise."""
        found = self.last_layer
        if not isinstance(found, nn.Linear):
            raise UserError(f"{self.architecture['name']}: ends in a {type(found).__name__}, not a Linear")
        return found

    @property
    def last_layer(self) -> Any:
        """What makes the logits: almost always `head`, else a convolution or a tuple of layers."""
        if self._protocol:
            return self.network.get_classifier()
        return self.network.get_submodule(self.head_path)

    @property
    def head_path(self) -> str:
        """Module path of `last_layer`, "" for a tuple of layers."""
        if not self._protocol:
            return self._linear_path
        last = self.last_layer
        return next((name for name, module in self.network.named_modules() if module is last), "")

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the last map or of the tokens, for an image of the nominal size."""
        output = self._dry(self.outputs)
        if output.map is None:
            raise UserError(f"{self.architecture['name']}: has neither a map nor tokens on a grid")
        return output.map.shape[-2], output.map.shape[-1]

    def _prepare(self, images01: Tensor) -> Tensor:
        images = self.spec.prepare(images01)
        # On a CPU thin convolutions run about 1.4 times as fast in this layout; values are the same.
        return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images

    # --- how the network is read ---------------------------------------------------------------------------

    def _by_protocol(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        last = self.network.forward_features(images)
        pooled = self.network.forward_head(last, pre_logits=True)
        head = self.network.get_classifier()
        # Two heads (distilled transformers) or a convolution: only the network knows how they are used.
        logits = head(pooled) if isinstance(head, nn.Linear) else self.network.forward_head(last)
        return logits, pooled, first_tensor(last)

    def _by_hooks(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        head, features = f"{self._linear_path}:input", self._features_path
        with Taps(self.network, [head, features] if features else [head]) as inner:
            logits = self.network(images)
        return logits, inner.values[head], inner.values.get(features)

    def _map_and_tokens(self, last: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if last is None or last.ndim not in (3, 4):
            return None, None
        if last.ndim == 4:
            channels_last = self.spec.width not in (last.shape[1], 0) and last.shape[3] == self.spec.width
            channels_last |= str(getattr(self.network, "output_fmt", "")).endswith("NHWC")
            return (last.permute(0, 3, 1, 2) if channels_last else last), None
        prefix = getattr(self.network, "num_prefix_tokens", None)
        if prefix is None:
            prefix = 0 if _square(last.shape[1]) or not _square(last.shape[1] - 1) else 1
        tokens = last[:, prefix:]
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None) or ()
        if math.prod(grid) != tokens.shape[1]:
            grid = (math.isqrt(tokens.shape[1]),) * 2
        if math.prod(grid) != tokens.shape[1]:
            return None, tokens
        return tokens.transpose(1, 2).unflatten(2, tuple(grid)), tokens

    @cached_property
    def _linear_path(self) -> str:
        if "head" in self._paths:
            return self._paths["head"]
        linear = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(f"{self.architecture['name']}: has no nn.Linear to take the features at")
        return linear[-1]

    @cached_property
    def _features_path(self) -> str:
        """The last module before the head that returns a map or tokens and pools nothing; "" if none."""
        if "features" in self._paths:
            return self._paths["features"]
        calls: list[tuple[str, nn.Module, Tensor]] = []

        def note(name: str, module: nn.Module, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (3, 4):
                calls.append((name, module, output))

        handles = [
            module.register_forward_hook(lambda m, _, out, name=name: note(name, m, out))
            for name, module in self.network.named_modules()
            if name
        ]
        try:
            self._dry(self.forward)
        finally:
            for handle in handles:
                handle.remove()
        # A container that ends in its pooling returns the pooling's own tensor.
        pooled = {id(output) for _, module, output in calls if isinstance(module, _POOLING)}
        kept = [name for name, _, output in calls if id(output) not in pooled]
        return kept[-1] if kept else ""

    def _dry(self, run: Any) -> Any:
        """`run` on an empty image in eval mode, without gradients."""
        weight = next(self.network.parameters())
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                return run(torch.zeros(1, 3, *self.spec.size, device=weight.device, dtype=weight.dtype))
        finally:
            self.network.train(training)


def _square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def list_classifiers() -> list[str]:
    """Names of the CIFAR networks."""
    return sorted(NETWORKS)


def build_classifier(
    name: str,
    num_classes: int,
    size: int | Sequence[int] | None = None,
    weights: str | None = None,
    arguments: dict[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Classifier by the name of a CIFAR network, "timm:NAME", or "package.module:Class" of an nn.Module.

    size: side in pixels or (H, W); by default 32, for timm the model's own. weights: file, see
    `vlkd.models.weights.read_weights`. arguments: for timm's create_model ("pretrained" among them) or the
    class; "head" and "features" name the modules that `Classifier` reads. mean, std: of images in [0, 1], by
    default CIFAR-100's, for timm the model's own. Raises UserError for unknown names, modules and arguments,
    and for weights that do not fit.
    """
    arguments = dict(arguments or {})
    side = None if size is None else _pair(size)
    network, preset = build_network(name, num_classes, side, arguments)
    height, width = side or tuple(preset["input_size"][1:])
    architecture = {
        "name": name,
        "num_classes": num_classes,
        "size": [height, width],
        "arguments": {key: value for key, value in arguments.items() if key != "pretrained"},
        "mean": [float(value) for value in mean or preset["mean"]],
        "std": [float(value) for value in std or preset["std"]],
        "interpolation": "bilinear" if preset.get("interpolation") == "bilinear" else "bicubic",
    }
    try:
        json.dumps(architecture)
    except TypeError:
        raise UserError(f"{name}: arguments must be plain values, got {arguments}") from None
    classifier = _assembled(network, architecture)
    if weights is not None:
        load_weights(network, weights, classifier.head_path)
    return classifier


def classifier_from_architecture(architecture: dict[str, Any]) -> Classifier:
    """A classifier with fresh weights from `Classifier.architecture`."""
    network, _ = build_network(
        architecture["name"],
        architecture["num_classes"],
        _pair(architecture["size"]),
        dict(architecture["arguments"]),
    )
    return _assembled(network, architecture)


def load_classifier(name_or_path: str) -> tuple[Classifier, dict[str, Any]]:
    """Classifier in eval mode and card of a bundle file or zoo model of kind "classifier".

    Raises UserError for another kind and for tensors that do not fit the card.
    """
    from vlkd.engine.bundle import load_bundle
    from vlkd.engine.hub import resolve

    card, tensors = load_bundle(resolve(name_or_path))
    if card["kind"] != "classifier":
        raise UserError(f"{name_or_path}: holds a {card['kind']}, expected a bundle of kind 'classifier'")
    classifier = classifier_from_architecture(card["architecture"])
    fit_weights(classifier, {k.removeprefix("student."): v for k, v in tensors.items()}, str(name_or_path))
    return classifier.eval(), card


def _assembled(network: nn.Module, architecture: dict[str, Any]) -> Classifier:
    spec = InputSpec(
        architecture["size"], architecture["mean"], architecture["std"], architecture["interpolation"]
    )
    classifier = Classifier(network, spec, architecture["num_classes"], architecture)
    last = classifier.last_layer
    found = getattr(last, "out_features", architecture["num_classes"])
    if found != architecture["num_classes"]:
        raise UserError(
            f"{architecture['name']}: its last linear layer has {found} outputs, "
            f"num_classes is {architecture['num_classes']}; set it in the arguments"
        )
    return classifier


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
