"""What every predictor takes: images of any kind, class lists, a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.image_io import read_image, to_rgb

Classes: TypeAlias = str | Sequence[str]
ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"


def parse_classes(classes: Classes) -> tuple[str, ...]:
    """Class names of a list, or of a comma-separated string; "|" joins words of one class.

    Raises UserError for an empty list, an empty name or word, a name that is not a string, and a name given
    twice.
    """
    given = [c for c in classes.split(",") if c.strip()] if isinstance(classes, str) else list(classes)
    if not given:
        raise UserError('classes: the list is empty: name at least one, for example "car, tree, road"')
    seen: dict[str, str] = {}
    for name in given:
        if not isinstance(name, str) or not all(word.strip(" _\t\n") for word in name.split("|")):
            raise UserError(
                f"classes: {name!r} is no class name: expected words, with | between those of one class"
            )
        folded = fold(name)
        if folded in seen:
            raise UserError(
                f'classes: "{name.strip()}" and "{seen[folded]}" are the same class: name it once'
            )
        seen[folded] = name.strip()
    return tuple(seen.values())


def fold(name: str) -> str:
    """The name without what makes no difference: case, underscores, more than one space."""
    return "|".join(" ".join(word.replace("_", " ").split()).casefold() for word in name.split("|"))


def pixels_of(image: ImageLike) -> Tensor:
    """(3,H,W) uint8, or float in [0,1] where a tensor was given. Raises UserError for anything unreadable."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
            raise UserError(
                f"image tensor {tuple(image.shape)} {image.dtype}: expected (3, H, W) float in [0, 1]"
            )
        if not (image.amin() >= -1e-3 and image.amax() <= 1 + 1e-3):
            raise UserError(
                "image tensor: values outside [0, 1] or not finite: divide by 255, do not normalise"
            )
        return image.float()
    if isinstance(image, (str, os.PathLike)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"image of type {type(image).__name__}: expected a path, PIL image, array or tensor")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(f"image array {image.shape} {image.dtype}: expected (H, W, 3) uint8 RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, tried out. Raises UserError when it cannot be used here."""
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen


def shortened(names: Sequence[str], most: int = 12) -> str:
    """The first names and how many more, for an error message."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f", and {rest} more" if rest > 0 else "")
