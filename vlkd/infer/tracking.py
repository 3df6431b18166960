"""Which object a query is from frame to frame, the ids that panoptic maps give it, and tracks with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlkd.models.postprocess import binary_masks

_PATIENCE = 5  # frames of "no object" after which a slot is free for another object
_MOMENTUM = 0.5  # part of a slot's memory that stays when its object is seen again
_FLOOR = 0.05  # class probability below which a track has no mask in a frame
_TOP = 10  # (track, class) pairs of a video, as Mask2Former-VIS and MinVIS answer
_AT_ONCE = 8  # masks that are held at full resolution together


@dataclass(frozen=True)
class TrackPrediction:
    """One object through a video: class index, score in [0,1], and its mask in each frame.

    `segmentations`: COCO RLE {"size": [H, W], "counts": str} per frame, None where it is not seen.
    """

    category: int
    score: float
    segmentations: list[dict[str, Any] | None]


class Tracker:
    """Gives the Q queries of each frame to Q slots, and says which track a slot holds.

    With `match`, slots and queries are paired by the largest sum of cosine similarities (Hungarian method, as
    in MinVIS) to an exponential mean of the queries that the slot held; else query i is slot i. A slot begins
    a track with an object, and is free again after `patience` frames of "no object".
    """

    def __init__(self, match: bool, *, patience: int = _PATIENCE, momentum: float = _MOMENTUM) -> None:
        self.match, self.patience, self.momentum = match, patience, momentum
        self.tracks: NDArray[np.int64] = np.zeros(0, np.int64)
        self._absent: NDArray[np.int64] = self.tracks
        self._memory: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._last = 0

    def __call__(self, queries: Tensor, objectness: Tensor) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(query of each slot (Q,), slots that began a track in this frame (Q,)); see `tracks` after it.

        queries (Q,C); objectness (Q,): 1 - probability of "no object". `tracks` (Q,) are numbered from 1, 0
        is a free slot.
        """
        if not len(self.tracks):
            self.tracks = np.zeros(len(queries), np.int64)
            self._absent = np.full(len(queries), self.patience, np.int64)
        order = self._matched(queries) if self.match else np.arange(len(queries))
        present = objectness.cpu().numpy()[order] >= 0.5
        self._absent = np.where(present, 0, self._absent + 1)
        self.tracks[self._absent >= self.patience] = 0
        began = present & (self.tracks == 0)
        self.tracks[began] = self._last + 1 + np.arange(began.sum())
        self._last += int(began.sum())
        if self.match:
            self._remember(queries, order, present, began)
        return order, began

    def _matched(self, queries: Tensor) -> NDArray[np.int64]:
        if not len(self._memory):
            return np.arange(len(queries))
        return linear_sum_assignment(self._memory @ _unit(queries).T, maximize=True)[1]

    def _remember(
        self, queries: Tensor, order: NDArray[np.int64], present: NDArray[np.bool_], began: NDArray[np.bool_]
    ) -> None:
        new = _unit(queries)[order]
        if not len(self._memory):
            self._memory = new
            return
        # What a slot's query is while its object is hidden says nothing about the object.
        kept = np.where(present, self.momentum, 1.0)
        kept[began | (self.tracks == 0)] = 0
        mixed = kept[:, None] * self._memory + (1 - kept[:, None]) * new
        self._memory = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True).clip(1e-6)).astype(np.float32)


class SegmentIds:
    """Panoptic ids of a video: one per track and class of things, one per class of stuff, from 1."""

    def __init__(self, isthing: Sequence[bool]) -> None:
        self.isthing = tuple(isthing)
        self._ids: dict[tuple[int, int], int] = {}
        self._last = 0

    def __call__(self, track: int, category: int) -> int:
        """The id of a track while it is of a class; `track` is not looked at for stuff."""
        key = (int(track) if self.isthing[category] else 0, category)
        if key not in self._ids:
            self._last += 1
            self._ids[key] = self._last
        return self._ids[key]

    def keep(self, tracks: NDArray[np.int64]) -> None:
        """Forget the tracks that ended: all but `tracks`."""
        alive = {0, *tracks.tolist()}
        if any(track not in alive for track, _ in self._ids):
            self._ids = {key: value for key, value in self._ids.items() if key[0] in alive}


@dataclass
class _Track:
    """Sum of the class probabilities of the things where it has a mask, and those masks' run lengths."""

    total: Tensor
    masks: dict[int, bytes] = field(default_factory=dict)


class TrackTable:
    """The tracks of a video, added frame by frame; grows by their run lengths alone.

    A track has a mask in a frame where its likeliest thing has a probability of at least `floor`, and some
    pixel more than 0.5 of the mask. Its score for a class is the mean of the class's probability over all
    frames of the video, 0 where it has no mask (MinVIS). The `top` best pairs of track and class are the
    answer, and of the tracks that ended no others are kept.
    """

    def __init__(self, isthing: Sequence[bool], *, floor: float = _FLOOR, top: int = _TOP) -> None:
        self.things = torch.tensor([i for i, thing in enumerate(isthing) if thing], dtype=torch.int64)
        self.floor, self.top, self.frames = floor, top, 0
        self._size = (0, 0)
        self._open: dict[int, _Track] = {}
        self._ended: list[tuple[list[tuple[float, int]], dict[int, bytes]]] = []

    def add(
        self, tracks: NDArray[np.int64], class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]
    ) -> None:
        """The next frame: tracks (Q,), 0 = none, with class_logits (Q,K+1) and mask_logits (Q,h,w)."""
        self._size = size
        probs = class_logits.float().softmax(-1).cpu()[:, self.things]
        if len(self.things):
            likely = (probs.amax(-1) >= self.floor).numpy() & (tracks > 0)
            rows: list[int] = np.flatnonzero(likely).tolist()
            for row, counts in zip(rows, _run_lengths(mask_logits, rows, size), strict=True):
                if counts is not None:
                    track = self._open.setdefault(int(tracks[row]), _Track(torch.zeros(len(self.things))))
                    track.total += probs[row]
                    track.masks[self.frames] = counts
        for number in [n for n in self._open if n not in tracks]:
            ended = self._open.pop(number)
            self._ended.append((self._best(ended), ended.masks))
            self._ended = sorted(self._ended, key=lambda pair: -pair[0][0][0])[: self.top]
        self.frames += 1

    def results(self) -> list[TrackPrediction]:
        """The video's best (track, class) pairs, best first; a track may come with several classes."""
        found = [*self._ended, *((self._best(track), track.masks) for track in self._open.values())]
        pairs = sorted((-total, place, k) for place, (best, _) in enumerate(found) for total, k in best)
        pairs = pairs[: self.top]
        rows = {place: self._segmentations(found[place][1]) for place in {place for _, place, _ in pairs}}
        return [TrackPrediction(k, -total / self.frames, rows[place]) for total, place, k in pairs]

    def _best(self, track: _Track) -> list[tuple[float, int]]:
        """(sum, class) of the likeliest classes: of one track no more can be in the answer."""
        totals, places = track.total.topk(min(self.top, len(self.things)))
        return list(zip(totals.tolist(), self.things[places].tolist(), strict=True))

    def _segmentations(self, masks: dict[int, bytes]) -> list[dict[str, Any] | None]:
        size = list(self._size)
        row: list[dict[str, Any] | None] = [None] * self.frames
        for t, counts in masks.items():
            row[t] = {"size": size, "counts": counts.decode("ascii")}
        return row


def _run_lengths(mask_logits: Tensor, rows: list[int], size: tuple[int, int]) -> list[bytes | None]:
    """Compressed run lengths of some rows' masks at (H,W), None where one has no pixel."""
    counts: list[bytes | None] = []
    for start in range(0, len(rows), _AT_ONCE):
        masks = binary_masks(mask_logits[rows[start : start + _AT_ONCE]], size).cpu()
        # Turned round, the memory lies column by column, as the encoder wants it: no copy is made.
        encoded = coco.encode(masks.numpy().view(np.uint8).transpose(2, 1, 0))
        some = masks.flatten(1).any(1).tolist()
        counts += [rle["counts"] if seen else None for rle, seen in zip(encoded, some, strict=True)]
    return counts


def _unit(queries: Tensor) -> NDArray[np.float32]:
    return torch.nn.functional.normalize(queries.float(), dim=-1).cpu().numpy()
