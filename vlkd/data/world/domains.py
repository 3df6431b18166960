"""Other looks of the world's pictures: night, pencil sketch, infrared; seeded, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

DOMAINS = ("plain", "night", "sketch", "infrared")
RENDERER = 1  # raise when the pixels change: stored pictures are keyed by it
_CHUNK = 256  # pictures in work at once
Floats = NDArray[np.float32]


def need_domain(domain: str) -> None:
    """Raises UserError for an unknown domain, with the nearest."""
    if domain not in DOMAINS:
        raise UserError(
            f"data.domain={domain}: unknown{nearest_hint(domain, DOMAINS)}; "
            f"expected one of {', '.join(DOMAINS)}"
        )


def shift(images: Tensor, domain: str, seed: int, first: int = 0) -> Tensor:
    """Pictures (N,3,S,S) uint8 as they look in a domain; "plain" leaves them as they are.

    Noise belongs to (seed, domain, number of the picture), the numbers counting from `first`: any part of the
    pictures has the pixels that it has among all. Raises UserError for an unknown domain.
    """
    need_domain(domain)
    if domain == "plain":
        return images
    parts = []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK].numpy().astype(np.float32) / np.float32(255)
        done = _LOOKS[domain](part, _uniform(part.shape, domain, seed, first + start))
        parts.append(np.floor(np.clip(done, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    return torch.from_numpy(np.concatenate(parts)) if parts else images


def _uniform(shape: tuple[int, ...], domain: str, seed: int, first: int) -> Floats:
    """Numbers (N,6,S,S) in [0,1) of the pictures from number `first`."""
    count, channels, *side = shape
    each = 2 * channels * side[0] * side[1]
    # A double takes one step of PCG64, so the stream can begin at any picture.
    bits = np.random.PCG64(np.random.SeedSequence([seed, DOMAINS.index(domain)])).advance(first * each)
    drawn = np.random.Generator(bits).random(count * each).astype(np.float32)
    return drawn.reshape(count, 2 * channels, *side)


def _night(images: Floats, drawn: Floats) -> Floats:
    """Dark and bluish, with less contrast; one patch of light, and the noise of a sensor."""
    pale = 0.2 * _luminance(images) + 0.8 * images
    tint = np.array((0.75, 0.85, 1.1), np.float32)[:, None, None]
    side = images.shape[-1]
    place = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
    x, y = (0.2 + 0.6 * drawn[:, c : c + 1, :1, :1] for c in (3, 4))
    lamp = 1 / (1 + 9 * ((place - x) ** 2 + (place[:, None] - y) ** 2))
    return (0.05 + 0.6 * pale) * tint * (0.6 + 0.4 * lamp) + 0.03 * _noise(drawn)


def _sketch(images: Floats, drawn: Floats) -> Floats:
    """Grey strokes where brightness or colour changes, on white paper with a pale wash of the colours."""
    padded = np.pad(_blurred(images), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    stroke = np.clip(np.sqrt(across**2 + down**2).max(1, keepdims=True) - 0.2, 0, 0.5)
    wash = 0.5 * _luminance(images) + 0.5 * images
    return 0.2 + 0.8 * wash - stroke + 0.02 * _noise(drawn)[:, :1]


def _infrared(images: Floats, drawn: Floats) -> Floats:
    """One blurred channel: warmest at three quarters of full brightness, and where it is red."""
    warm = _blurred(images[:, :1] - images[:, 2:])
    heat = 1 - 1.6 * np.abs(_blurred(_luminance(images)) - 0.75) + 0.2 * warm
    return np.repeat(heat + 0.03 * _noise(drawn)[:, :1], 3, 1)


_LOOKS = {"night": _night, "sketch": _sketch, "infrared": _infrared}


def _luminance(images: Floats) -> Floats:
    """(N,1,S,S) by ITU-R BT.601."""
    red, green, blue = (images[:, c : c + 1] for c in range(3))
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _noise(drawn: Floats) -> Floats:
    """(N,3,S,S) of triangular density on [-1,1]."""
    return drawn[:, :3] - drawn[:, 3:]


def _blurred(images: Floats) -> Floats:
    """1-2-1 along both sides."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    done = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return done.astype(np.float32, copy=False)
