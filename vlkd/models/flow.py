"""Optical flow between two frames by torchvision's RAFT with weights from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlkd.models.weights import fit_weights, read_weights

_LEAST = 128  # RAFT's correlation pyramid needs this many pixels of each side
_UPDATES = 20  # as VSPW's evaluator


def build_flow(
    weights: str | Path, device: str | torch.device = "cpu"
) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    """flow(image (H,W,3) uint8, next image) -> (H,W,2) float32, (dx, dy) in pixels of where pixels went.

    `weights`: file of torchvision's raft_small or raft_large (torchvision's Raft_Large_Weights.C_T_V1 are the
    RAFT authors' raft-things, which VSPW's evaluator uses). Raises UserError for another file.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    state = read_weights(weights)
    gates = any("convgru2" in name for name in state)  # raft_large has two recurrent blocks
    network = (raft_large if gates else raft_small)()
    fit_weights(network, state, str(weights))
    network.eval().requires_grad_(False).to(device)

    def flow(image: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
        pair = [_prepared(frame).to(device) for frame in (image, following)]
        with torch.inference_mode():
            found = network(*pair, num_flow_updates=_UPDATES)[-1][0]
        height, width = image.shape[:2]
        return found[:, :height, :width].permute(1, 2, 0).cpu().numpy()

    return flow


def _prepared(frame: NDArray[np.uint8]) -> Tensor:
    """(1,3,h,w) in [-1, 1], its borders repeated below and right to multiples of 8."""
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1
    height, width = frame.shape[:2]
    below, right = (max(_LEAST, -(-side // 8) * 8) - side for side in (height, width))
    return F.pad(image, (0, right, 0, below), mode="replicate")
