"""Frozen networks that describe frames and clips: timm, CLIP image towers, torchvision's video networks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.clip import build_clip, quiet_and_quick, weights_identity
from vlkd.models.networks import build_network
from vlkd.models.spec import InputSpec
from vlkd.models.weights import fit_weights, read_weights

RANDOM = "random"
_SEED = 0
_HEADS = ("fc", "head", "classifier")  # what torchvision's video networks end in


@dataclass
class FrameFeatures:
    """A network that makes a vector of `frames` frames; it knows its own input.

    `run` takes (B,3,*crop) in [0,1], or (B,T,3,*crop) of a video network, and gives (B,C). Frames are resized
    to `resize` (H, W), or to that short side with the aspect kept, and cut to the centre `crop`. `identity`:
    name@hash16 of the weights. `width` C. `module` holds the weights.
    """

    name: str
    identity: str
    width: int
    crop: tuple[int, int]
    resize: tuple[int, int] | int
    mode: str
    frames: int
    module: nn.Module
    run: Callable[[Tensor], Tensor]

    def shrink(self, image: np.ndarray) -> Tensor:
        """A frame (H,W,3) uint8 of any size -> (3,*crop) uint8, antialiased."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        height, width = image.shape[:2]
        size = self.resize
        if isinstance(size, int):
            scale = size / min(height, width)
            size = (max(self.crop[0], round(height * scale)), max(self.crop[1], round(width * scale)))
        if (height, width) != size:
            pixels = F.interpolate(pixels, size, mode=self.mode, align_corners=False, antialias=True)
        top, left = (size[0] - self.crop[0]) // 2, (size[1] - self.crop[1]) // 2
        return pixels[0, :, top : top + self.crop[0], left : left + self.crop[1]].contiguous()

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """(B,3,*crop) or (B,T,3,*crop) uint8 on the CPU -> (B,C) float32 on the CPU."""
        device = next(self.module.parameters()).device
        return self.run(frames.to(device).float() / 255).float().cpu()

    def to(self, device: str | torch.device) -> FrameFeatures:
        """Itself, its weights on the device."""
        self.module.to(device)
        return self


def image_features(name: str, weights: str | None = None) -> FrameFeatures:
    """2D features: "timm:NAME", or a CLIP model as for build_clip (open_clip name, hub id, zoo name, bundle).

    weights: local file (of open_clip also a tag), "random" for a fixed random start, None for the model's own
    published ones. The classification layer is left off. Raises UserError for unknown names, weights that do
    not fit or cannot be fetched, and an open_clip architecture without weights.
    """
    if name.startswith("timm:"):
        with _fixed_start(), quiet_and_quick():
            network, preset = build_network(name, 0, None, {} if weights else {"pretrained": True})
        if weights not in (None, RANDOM):
            # timm names the layer; a few networks have two.
            heads = preset.get("classifier") or ()
            _load_headless(network, str(weights), (heads,) if isinstance(heads, str) else tuple(heads))
        size = (int(preset["input_size"][1]), int(preset["input_size"][2]))
        mode = "bilinear" if preset.get("interpolation") == "bilinear" else "bicubic"
        spec = InputSpec(size, preset["mean"], preset["std"], mode)
        identity = weights_identity(name, network.state_dict())
        return _image(name, identity, network, spec, lambda x: network(spec.normalise(x)))
    import open_clip

    if name in open_clip.list_models() and weights is None:
        raise UserError(
            f"{name}: is an architecture without weights; give a file or tag as its weights, or {RANDOM!r}"
        )
    with _fixed_start():
        tower = build_clip(name, None if weights == RANDOM else weights)
    return _image(name, tower.identity, tower, tower.spec, tower.embed_image)


def video_features(name: str, weights: str | None = None, frames: int = 16) -> FrameFeatures:
    """3D features of clips of `frames` frames: a video network of torchvision, such as r3d_18 or mvit_v2_s.

    weights: as of `image_features`. Raises UserError likewise, and for a number of frames that the network
    does not take.
    """
    from torchvision import models

    known = models.list_models(module=models.video)
    if name not in known:
        near = difflib.get_close_matches(name, known, 2) or known
        more = "timm has no video networks; " if name.startswith("timm:") else ""
        raise UserError(f"video network {name!r}: {more}expected one of torchvision's, as {', '.join(near)}")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    with _fixed_start():
        network = _fetched(name) if weights is None else models.get_model(name, weights=None)
    head = next(part for part in _HEADS if hasattr(network, part))
    setattr(network, head, nn.Identity())
    if weights not in (None, RANDOM):
        _load_headless(network, str(weights), (head,))
    crop, short = int(preset.crop_size[0]), int(min(preset.resize_size))
    spec = InputSpec((crop, crop), preset.mean, preset.std, "bilinear")

    def run(clips: Tensor) -> Tensor:
        normal = spec.normalise(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return network(normal.transpose(1, 2))

    network.eval().requires_grad_(False)
    identity = weights_identity(name, network.state_dict())
    found = FrameFeatures(name, identity, 0, spec.size, short, "bilinear", frames, network, run)
    try:
        found.width = found(torch.zeros(1, frames, 3, *spec.size, dtype=torch.uint8)).shape[1]
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name}: does not take clips of {frames} frames ({reason}); try 16") from None
    return found


def _image(
    name: str, identity: str, module: nn.Module, spec: InputSpec, run: Callable[[Tensor], Tensor]
) -> FrameFeatures:
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    found = FrameFeatures(
        *(name, identity, 0, spec.size, spec.size, spec.interpolation, 1),
        module,
        lambda x: run(x.contiguous(memory_format=torch.channels_last)),
    )
    found.width = found(torch.zeros(1, 3, *spec.size, dtype=torch.uint8)).shape[1]
    return found


def _load_headless(network: nn.Module, path: str, heads: tuple[str, ...]) -> None:
    """Load a file into a network whose last layers `heads` were taken off."""
    state = read_weights(Path(path))
    names = "|".join(re.escape(head) for head in heads)
    off = re.compile(rf"(^|\.)({names})\.(\d+\.)?(weight|bias)$") if heads else None
    fit_weights(network, {k: v for k, v in state.items() if off is None or not off.search(k)}, path)


def _fetched(name: str) -> Any:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        return models.get_model(name, weights=weights)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: its weights cannot be fetched ({reason}); get {weights.url} on a machine with access "
            f"and give the file, or {RANDOM!r}"
        ) from None


class _fixed_start:
    """Random weights made inside are the same each time; the global generator goes on as before."""

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(_SEED)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
