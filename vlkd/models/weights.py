"""Weights of classifiers from files: safetensors, torch checkpoints of other projects, our own bundles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.errors import UserError

_WRAPPERS = ("model", "state_dict", "student")
_PREFIXES = ("module.", "student.", "network.", "model.", "_orig_mod.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of a torch file, also inside {"model": ...} and the like.

    Nothing is unpickled but tensors and plain values. Raises UserError for files that are not such.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: not readable as safetensors or plain torch weights ({reason})") from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UserError(f"{path}: holds no weights by name; expected a state dict or {{'model': state dict}}")
    return tensors


def load_weights(network: nn.Module, path: str | Path, head: str = "") -> None:
    """Load all weights of `network` from a file, see `read_weights`.

    Prefixes as "module." are dropped, names of other projects' checkpoints translated by the network's
    RENAMES. `head`: path of the last linear layer, to say it when only the number of classes differs. Raises
    UserError in one line for missing, unexpected and misshapen weights.
    """
    fit_weights(network, read_weights(path), str(path), head)


def fit_weights(network: nn.Module, state: dict[str, Tensor], source: str, head: str = "") -> None:
    """As `load_weights`, from tensors in memory that came from `source`."""
    wanted = network.state_dict()
    given = _translated(state, wanted, getattr(network, "RENAMES", ()))
    classes = f"{head}.weight"
    if head and classes in given and classes in wanted and len(given[classes]) != len(wanted[classes]):
        raise UserError(
            f"{source}: weights of {len(given[classes])} classes, the network has {len(wanted[classes])}; "
            "give the same num_classes"
        )
    problems = [
        _some("missing", [key for key in wanted if key not in given]),
        _some("unexpected", [key for key in given if key not in wanted]),
        _some("of another shape", [k for k in wanted if k in given and given[k].shape != wanted[k].shape]),
    ]
    if any(problems):
        raise UserError(
            f"{source}: not weights of this {type(network).__name__}: {'; '.join(filter(None, problems))}"
        )
    network.load_state_dict(given)


def _translated(
    state: dict[str, Tensor], wanted: dict[str, Tensor], renames: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    changed = True
    while changed and not wanted.keys() & state.keys():
        changed = False
        for prefix in _PREFIXES:
            if state and all(key.startswith(prefix) for key in state):
                state, changed = {key.removeprefix(prefix): value for key, value in state.items()}, True
    # One step after the other: a rename may prepare the next.
    for pattern, replacement in renames:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    # Checkpoints from before torch 0.4.1 do not count batches.
    counts = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    return {**counts, **state}


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}"
