"""Work done on a method that leaves no trace in it: buffers, memories and random states come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.engine.resume import random_state, set_random_state

Undo = Callable[[], Any]


@contextmanager
def untouched(module: nn.Module, *frozen: nn.Module) -> Iterator[None]:
    """Restores, at the end of the block, the random states and all that the modules hold.

    That is parameters (of `module` only), buffers and plain tensors by value; dicts, lists, sets and deques
    by their items; generators by their state; other attributes by reference.
    """
    random = random_state()
    inner = {id(part): part for outer in (module, *frozen) for part in outer.modules()}
    undo = [step for part in inner.values() for step in _undo_of(vars(part))]
    undo += [_undo_tensor(parameter) for parameter in module.parameters()]
    try:
        yield
    finally:
        # Tensors made in inference mode can be written to in that mode only, others in any.
        with torch.inference_mode():
            for step in undo:
                step()
        set_random_state(random)


def _undo_of(value: Any, depth: int = 0) -> Iterator[Undo]:
    """Steps that give containers, and tensors up to two containers deep, their present content back."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        yield _undo_tensor(value)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: value.set_state(state)
    elif isinstance(value, dict | list | set | deque):
        yield _undo_container(value)
        if depth < 2:
            for item in value.values() if isinstance(value, dict) else value:
                yield from _undo_of(item, depth + 1)


def _undo_tensor(value: Tensor) -> Undo:
    saved = value.detach().clone()
    return lambda: None if torch.equal(value, saved) else _write(value, saved)


def _undo_container(value: Any) -> Undo:
    before = value.copy()

    def refill() -> None:
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(before)

    return refill


def _write(value: Tensor, saved: Tensor) -> None:
    value.copy_(saved)
