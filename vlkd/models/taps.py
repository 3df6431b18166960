"""Taps: what inner modules of a network return or are given during one pass, by module path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlkd.errors import UserError

_INPUT = ":input"


def check_taps(network: nn.Module, paths: Iterable[str]) -> None:
    """Raise UserError naming the nearest module paths when `network` has no module of such a path."""
    known = [name for name, _ in network.named_modules() if name]
    for path in paths:
        name = path.removesuffix(_INPUT)
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        top = [child for child, _ in network.named_children()]
        there = f"nearest: {', '.join(near)}; " if near else ""
        raise UserError(
            f"tap {path!r}: {type(network).__name__} has no such module; {there}"
            f"its top modules are {', '.join(top[:12])}"
        )


class Taps:
    """Context in which `network` is run once; afterwards `values` holds a tensor for every path.

    A path names a module whose output is wanted, "layer1", or with ":input" its first argument,
    "layer1.2.relu2:input", which is how a value before its activation is reached. Of a module that is called
    several times the last call counts. Hooks are removed on leaving. Raises UserError for paths that do not
    exist, that are not reached, that give no tensor, or whose value is overwritten in place later on.
    """

    def __init__(self, network: nn.Module, paths: Iterable[str]) -> None:
        self.network, self.paths = network, tuple(paths)
        self.values: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Any, int]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Taps:
        if self.paths:
            check_taps(self.network, self.paths)
        for path in self.paths:
            module = self.network.get_submodule(path.removesuffix(_INPUT))
            hook = self._input_hook(path) if path.endswith(_INPUT) else self._output_hook(path)
            register = (
                module.register_forward_pre_hook if path.endswith(_INPUT) else module.register_forward_hook
            )
            self._handles.append(register(hook))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            self.values = {path: self._checked(path) for path in self.paths}
        self._seen.clear()

    def _output_hook(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(path, output)

        return hook

    def _input_hook(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            self._keep(path, inputs)
            if getattr(module, "inplace", False) and inputs and isinstance(inputs[0], Tensor):
                # The module works on a copy, so that what was tapped stays as it was.
                return (inputs[0].clone(), *inputs[1:])
            return None

        return hook

    def _keep(self, path: str, value: Any) -> None:
        tensor = first_tensor(value)
        self._seen[path] = (tensor, _version(tensor))

    def _checked(self, path: str) -> Tensor:
        if path not in self._seen:
            raise UserError(f"tap {path!r}: the module is not called in a forward pass; tap another one")
        tensor, version = self._seen[path]
        if tensor is None:
            raise UserError(f"tap {path!r}: the module gives no tensor; tap one that does")
        if _version(tensor) != version:
            raise UserError(
                f"tap {path!r}: its value is overwritten by a later in-place operation; "
                "tap the activation that follows, or that activation's ':input'"
            )
        return tensor


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first element of a tuple or list of which it is a tensor."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _version(tensor: Tensor | None) -> int:
    # Inference tensors keep no count of in-place changes.
    return 0 if tensor is None or tensor.is_inference() else tensor._version
