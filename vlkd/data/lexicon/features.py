"""Frame features of the lexicon's videos: appearance of a frame ("2D") and change to the one before ("3D").

Fixed descriptors of pixels, nothing learned: they are told no attribute. The place of the object is where
pixels have a colour, the background being grey.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.lexicon.clips import Film, film_all, plan, read_mp4, videos
from vlkd.errors import UserError

FEATURES = 1  # raise when the descriptors change: stored features are keyed by it
APPEARANCE, MOTION = 44, 9
WIDTH = APPEARANCE + MOTION
_HUES, _RINGS, _SECTORS, _ORDERS, _GRID = 8, 8, 24, 6, 4
Floats = NDArray[np.float32]


def describe(frames: NDArray[np.uint8]) -> Floats:
    """Frames (T,H,W,3) -> descriptors (T,C): APPEARANCE numbers, then MOTION.

    The first frame has the change of the second.

    Appearance: hues and chromaticity of the coloured pixels, how they lie around their centre (rings, and the
    strength of 1 to 6 fold symmetry: both the same for any angle and size), where they are, a coarse grid.
    Motion: change of place, of size, of angle (by the phase of how dark each sector is), of the whole frame.
    """
    rgb = frames.astype(np.float32) / np.float32(255)
    count, height, width = rgb.shape[:3]
    high, low = rgb.max(3), rgb.min(3)
    weight = np.clip((high - low - 0.12) / 0.12, 0, 1)
    mass = weight.sum((1, 2)) + 1e-3
    y, x = (np.arange(n, dtype=np.float32) + 0.5 for n in (height, width))
    cy = (weight.sum(2) * y).sum(1) / mass
    cx = (weight.sum(1) * x).sum(1) / mass
    dy, dx = y[None, :, None] - cy[:, None, None], x[None, None] - cx[:, None, None]
    radius = np.sqrt(mass / np.pi)
    ring = np.hypot(dy, dx) / radius[:, None, None]
    sector = np.floor((np.arctan2(dy, dx) / (2 * np.pi)) % 1 * _SECTORS).astype(np.int64) % _SECTORS
    rings = _histogram((ring * _RINGS / 2).astype(np.int64), weight, _RINGS + 1)[:, :_RINGS] / mass[:, None]
    around = _histogram(sector, weight, _SECTORS)
    folds = np.abs(np.fft.rfft(around / mass[:, None], axis=1))[:, 1 : _ORDERS + 1]
    hues = _histogram((_hue(rgb) * _HUES).astype(np.int64) % _HUES, weight, _HUES) / mass[:, None]
    chroma = (rgb * weight[..., None]).sum((1, 2)) / mass[:, None]
    chroma /= chroma.sum(1, keepdims=True) + 1e-3
    place = np.stack([cx / width, cy / height, np.log(radius / width)], 1)
    grid = weight[:, : height // _GRID * _GRID, : width // _GRID * _GRID]
    grid = grid.reshape(count, _GRID, height // _GRID, _GRID, width // _GRID).mean((2, 4)).reshape(count, -1)
    appearance = np.concatenate([hues, chroma, rings, folds, place, grid], 1)
    bright = _histogram(sector, weight * rgb.sum(3), _SECTORS) / (around + 1e-3)
    turn = np.fft.rfft(bright, axis=1)[:, 1]
    motion = _change(place, turn, rgb.mean(3))
    return np.concatenate([appearance, motion], 1).astype(np.float32)


def _change(place: Floats, turn: NDArray[np.complexfloating], grey: Floats) -> Floats:
    """Descriptors (T,MOTION) of the change from the frame before."""
    steps = np.abs(np.diff(place, axis=0))
    turned = np.abs(np.angle(turn[1:] * turn[:-1].conj()))[:, None] / np.pi
    raw = np.concatenate([steps, turned], 1)
    energy = np.abs(np.diff(grey, axis=0)).mean((1, 2))[:, None]
    found = np.concatenate([raw, np.tanh(raw / (0.03, 0.03, 0.08, 0.08)), energy], 1)
    return np.concatenate([found[:1], found])


def _histogram(cell: NDArray[np.int64], weight: Floats, cells: int) -> Floats:
    """Sums of weight (T,H,W) by cell (T,H,W), those beyond in the last: (T,cells)."""
    count = len(cell)
    place = np.minimum(cell, cells - 1) + cells * np.arange(count)[:, None, None]
    summed = np.bincount(place.ravel(), weight.ravel(), count * cells)
    return summed.reshape(count, cells).astype(np.float32)


def _hue(rgb: Floats) -> Floats:
    """Hue in [0, 1) of RGB (...,3)."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high = rgb.max(-1)
    span = np.maximum(high - rgb.min(-1), np.float32(1e-3))
    hue = np.where(
        high == red,
        (green - blue) / span,
        np.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    return (hue / 6 % 1).astype(np.float32)


def mix(descriptors: Tensor, val: Tensor) -> Tensor:
    """Clips (N,T,C) -> features (N,T,C): standardised by the training clips, then turned at random.

    Appearance and motion are turned apart, by a fixed orthogonal matrix each, so that no single number is a
    descriptor and the motion part can be left out.
    """
    known = descriptors[~val].double().flatten(0, 1)
    scaled = (descriptors.double() - known.mean(0)) / known.std(0).clamp(min=1e-3)
    drawn = np.random.default_rng(FEATURES)
    parts = [
        part @ torch.from_numpy(np.linalg.qr(drawn.standard_normal((part.shape[2],) * 2))[0])
        for part in scaled.split([APPEARANCE, MOTION], 2)
    ]
    return torch.cat(parts, 2).half()


def load_features(film: Film, still: bool = False, jitter: float = 0.0) -> Tensor:
    """Features (N,T,C) float16 of all clips; made on all cores from the videos, then read from the cache.

    still: each clip's first frame instead of all, its motion part 0. jitter: the clips are cut up to so many
    seconds too early or too late, as spoken captions are. Raises UserError for a negative jitter.
    """
    if jitter < 0:
        raise UserError(f"data.jitter={jitter}: expected seconds, 0 or more")
    key = cache_key(film=film.key, features=FEATURES, still=still, jitter=jitter)
    path = cache_folder() / "lexicon" / f"{key[:24]}.safetensors"
    if not path.is_file():
        from rich.console import Console
        from rich.progress import track

        files, clips = film_all(film), plan(film)
        jobs = list(zip(files, videos(film, clips.val), strict=True))
        with ProcessPoolExecutor() as pool:
            work = pool.map(partial(_describe_video, film, still, jitter), jobs, chunksize=4)
            title = f"features of {len(jobs)} videos"
            parts = list(track(work, title, len(jobs), console=Console(stderr=True), transient=True))
        features = mix(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(clips.val))
        if still:
            features[..., APPEARANCE:] = 0
        store(path, {"features": features}, {})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("features")


def _describe_video(film: Film, still: bool, jitter: float, job: tuple[Path, NDArray[np.int64]]) -> Floats:
    """Descriptors (clips,T,C) of a video's clips."""
    path, clips = job
    frames = read_mp4(path, len(clips) * film.frames)
    found = []
    for k, number in enumerate(clips):
        late = np.random.default_rng([film.seed, 3, int(number)]).uniform(-jitter, jitter)
        start = int(np.clip(k * film.frames + round(late * film.fps), 0, len(frames) - film.frames))
        clip = frames[start : start + film.frames]
        found.append(describe(np.repeat(clip[:1], film.frames, 0) if still else clip))
    return np.stack(found)
