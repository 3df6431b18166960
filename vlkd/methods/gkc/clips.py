"""Objects through the frames of a clip: one query each, and how far a student keeps to that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.losses.matching import match_clip
from vlkd.methods.gkc.criterion import MaskCriterion, Matches
from vlkd.models.segmentor import Prediction


@dataclass
class ClipTargets:
    """The M objects of a clip of T frames: masks (T,M,H,W), empty where an object is not seen.

    labels (M,), present (T,M), and of every frame which objects its segments are.
    """

    masks: Tensor
    labels: Tensor
    present: Tensor
    tracks: list[Tensor]

    @classmethod
    def of(cls, targets: Sequence[dict[str, Any]]) -> ClipTargets:
        """From the targets of the T frames, in which "tracks" (M_t,) tells the object of each segment."""
        tracks = [target["tracks"] for target in targets]
        objects = 1 + max((int(t.max()) for t in tracks if len(t)), default=-1)
        first = targets[0]["masks"]
        masks = first.new_zeros(len(targets), objects, *first.shape[-2:])
        labels = tracks[0].new_zeros(objects)
        present = masks.new_zeros(len(targets), objects, dtype=torch.bool)
        for t, (target, track) in enumerate(zip(targets, tracks, strict=True)):
            masks[t, track], labels[track], present[t, track] = target["masks"], target["labels"], True
        return cls(masks, labels, present, tracks)


def match_clips(
    criterion: MaskCriterion,
    logits: Tensor,
    prediction: Prediction,
    targets: list[dict[str, Any]],
    count: float,
) -> tuple[Matches, dict[str, Tensor]]:
    """One assignment for each clip; logits (B*T,Q,K+1), a target for each frame that tells its clip.

    Returns which queries found the segments of each frame, and the mask losses; in a frame in which its
    object is not seen a query is taught an empty mask.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    everywhere: list[tuple[Tensor, Tensor]] = []
    truth: list[dict[str, Any]] = []
    for _, members in groupby(range(len(targets)), lambda frame: targets[frame]["clip"]):
        numbers = list(members)
        part = slice(numbers[0], numbers[-1] + 1)
        clip = ClipTargets.of(targets[part])
        queries, objects = match_clip(
            logits[part].detach(),
            prediction.mask_logits[part].detach(),
            clip.labels,
            clip.masks,
            clip.present,
            criterion.cost,
            criterion.points,
        )
        query_of = torch.full_like(clip.labels, -1)
        query_of[objects] = queries
        for masks, track in zip(clip.masks, clip.tracks, strict=True):
            segments = (query_of[track] >= 0).nonzero()[:, 0]
            seen.append((query_of[track[segments]], segments))
            everywhere.append((queries, objects))
            truth.append({"masks": masks})
    losses = criterion.masks(prediction, Matches.of(everywhere, logits.device), truth, count)
    return Matches.of(seen, logits.device), losses


class TrackSteadiness:
    """How often the query that finds a thing is the one of the frame before; not a benchmark's score.

    A thing is found where a mask's IoU with it is 0.5 or more.
    counts (2,): pairs of consecutive frames in which a thing is found, those with one query, and all.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64)

    def update(self, mask_logits: Tensor, targets: Sequence[dict[str, Any]], isthing: Tensor) -> None:
        """Add one video: mask_logits (T,Q,h,w), a target for each frame, isthing (K,) bool."""
        before: dict[int, int] = {}
        for logits, target in zip(mask_logits, targets, strict=True):
            now: dict[int, int] = {}
            things = isthing[target["labels"]]
            if bool(things.any()):
                small = F.adaptive_avg_pool2d(target["masks"][things].float()[None], logits.shape[-2:])[0]
                iou, best = _overlap(small.flatten(1), (logits > 0).float().flatten(1)).max(1)
                found = iou >= 0.5
                now = dict(zip(target["tracks"][things][found].tolist(), best[found].tolist(), strict=True))
            both = now.keys() & before.keys()
            self.counts += torch.tensor([sum(now[k] == before[k] for k in both), len(both)])
            before = now


def _overlap(truth: Tensor, masks: Tensor) -> Tensor:
    """IoU (M,Q) of truth (M,N) and masks (Q,N), both in [0, 1]."""
    both = truth @ masks.T
    return both / (truth.sum(1, keepdim=True) + masks.sum(1) - both).clamp(min=1e-6)
