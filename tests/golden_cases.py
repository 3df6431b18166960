"""Comparison with recorded numbers (tests/golden/README.md says where each file comes from)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def read(name: str) -> dict[str, Tensor]:
    """Numeric arrays of tests/golden/<name>.npz."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.as_tensor(value) for key, value in file.items() if value.dtype.kind in "fiub"}


def assert_golden(
    loss: Callable[[dict[str, Tensor]], Tensor], case: dict[str, Tensor], trained: Sequence[str]
) -> None:
    """Value in float32 and float64, and the gradients with regard to the inputs named in `trained`."""
    single = case | {key: case[key].clone().requires_grad_() for key in trained}
    value = loss(single)
    torch.testing.assert_close(value.detach(), case["loss"], rtol=1e-5, atol=0)
    for key, found in zip(trained, torch.autograd.grad(value, [single[key] for key in trained]), strict=True):
        expected = case[f"grad_{key}"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())
    if "loss64" in case:
        double = {key: x.double() if x.is_floating_point() else x for key, x in case.items()}
        torch.testing.assert_close(loss(double), case["loss64"], rtol=1e-7, atol=0)
