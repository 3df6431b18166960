"""Panoptic quality by the official rules (Kirillov et al. 2019; panopticapi), without loops over segments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vlkd.errors import UserError

VOID_ID = 0


@dataclass
class PanopticCounts:
    """Per class (K,): sum of matched IoUs, matched pairs, unmatched predictions, unmatched truth."""

    iou: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]

    def quality(self, classes: Collection[int] | None = None) -> dict[str, float]:
        """PQ, SQ and RQ: means over those of `classes` (default all) that occur; nan if none does."""
        present = self.tp + self.fp + self.fn > 0
        if classes is not None:
            present &= np.isin(np.arange(len(self.tp)), list(classes))
        if not present.any():
            return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
        iou, tp = self.iou[present], self.tp[present]
        weight = tp + 0.5 * self.fp[present] + 0.5 * self.fn[present]
        segmentation = iou / np.maximum(tp, 1)
        return {
            "PQ": float((iou / weight).mean()),
            "SQ": float(segmentation.mean()),
            "RQ": float((tp / weight).mean()),
        }


def panoptic_quality(
    gt: NDArray[Any] | Tensor,
    pred: NDArray[Any] | Tensor,
    gt_categories: Mapping[int, int],
    pred_categories: Mapping[int, int],
    num_classes: int,
    crowd: Collection[int] = (),
) -> PanopticCounts:
    """Matches of one image: segment maps (H,W), 0 = void, {segment id: class}, the truth's crowd ids.

    A pair of one class matches when IoU > 0.5, the prediction's void pixels taken out of the union. Unmatched
    crowds are no misses; an unmatched prediction is no error when more than half of it is void or crowd of
    its class.
    Raises UserError for unequal shapes, and for ids without a class or not on the map.
    """
    truth, guess = _as_ids(gt), _as_ids(pred)
    if truth.shape != guess.shape:
        raise UserError(f"ground truth {truth.shape} and prediction {guess.shape} differ in shape")
    gt_ids, gt_index = np.unique(truth, return_inverse=True)
    pred_ids, pred_index = np.unique(guess, return_inverse=True)
    pairs = np.bincount(
        gt_index.ravel() * len(pred_ids) + pred_index.ravel(), minlength=len(gt_ids) * len(pred_ids)
    )
    overlap = pairs.reshape(len(gt_ids), len(pred_ids))
    gt_class = _classes(gt_ids, gt_categories, num_classes, "ground truth")
    pred_class = _classes(pred_ids, pred_categories, num_classes, "prediction")
    is_crowd = np.isin(gt_ids, list(crowd))
    void = overlap[gt_ids == VOID_ID].sum(0)
    area = overlap.sum(0)

    union = overlap.sum(1)[:, None] + area - overlap - void
    iou = overlap / np.maximum(union, 1)
    same = (gt_class[:, None] == pred_class) & (gt_class >= 0)[:, None]
    matched = same & ~is_crowd[:, None] & (iou > 0.5)

    own_crowd = (overlap * (same & is_crowd[:, None])).sum(0)
    excused = (void + own_crowd) * 2 > area
    missed = (gt_class >= 0) & ~is_crowd & ~matched.any(1)
    wrong = (pred_class >= 0) & ~matched.any(0) & ~excused
    rows, columns = np.nonzero(matched)
    return PanopticCounts(
        np.bincount(gt_class[rows], weights=iou[rows, columns], minlength=num_classes).astype(np.float64),
        np.bincount(gt_class[rows], minlength=num_classes),
        np.bincount(pred_class[wrong], minlength=num_classes),
        np.bincount(gt_class[missed], minlength=num_classes),
    )


class PanopticMetric(Metric):
    """Panoptic quality over a whole split, summed over processes.

    compute() gives PQ, SQ, RQ over all classes, with suffix _things and _stuff by `isthing` (K,), and with
    `novel` classes _seen and _unseen. Fractions in [0, 1].
    """

    full_state_update = False
    iou: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor

    def __init__(self, isthing: Sequence[bool], novel: Collection[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = len(isthing)
        things = {c for c, thing in enumerate(isthing) if thing}
        every = set(range(self.num_classes))
        self.groups: dict[str, set[int]] = {"": every, "_things": things, "_stuff": every - things}
        if novel:
            self.groups |= {"_seen": every - set(novel), "_unseen": set(novel)}
        for name in ("iou", "tp", "fp", "fn"):
            kind = torch.float64 if name == "iou" else torch.int64
            self.add_state(name, default=torch.zeros(self.num_classes, dtype=kind), dist_reduce_fx="sum")

    def update(
        self,
        gt: NDArray[Any] | Tensor,
        pred: NDArray[Any] | Tensor,
        gt_categories: Mapping[int, int],
        pred_categories: Mapping[int, int],
        crowd: Collection[int] = (),
    ) -> None:
        """Add one image; arguments as for panoptic_quality."""
        counts = panoptic_quality(gt, pred, gt_categories, pred_categories, self.num_classes, crowd)
        for name in ("iou", "tp", "fp", "fn"):
            state = getattr(self, name)
            state += torch.from_numpy(getattr(counts, name)).to(state.device)

    def compute(self) -> dict[str, float]:
        """All scores of the split so far."""
        counts = PanopticCounts(*(getattr(self, name).cpu().numpy() for name in ("iou", "tp", "fp", "fn")))
        return {
            f"{measure}{suffix}": value
            for suffix, classes in self.groups.items()
            for measure, value in counts.quality(classes).items()
        }


def _as_ids(segments: NDArray[Any] | Tensor) -> NDArray[np.int64]:
    array = segments.detach().cpu().numpy() if isinstance(segments, Tensor) else np.asarray(segments)
    return array.astype(np.int64)


def _classes(
    ids: NDArray[np.int64], categories: Mapping[int, int], count: int, what: str
) -> NDArray[np.int64]:
    """Class (S,) of every id on the map, -1 for void."""
    on_map = set(ids.tolist()) - {VOID_ID}
    if on_map != set(categories):
        odd = sorted(on_map ^ set(categories))[:6]
        raise UserError(
            f"{what}: segment ids {odd} are either on the map or in the category table, not in both"
        )
    if wrong := [c for c in categories.values() if not 0 <= c < count]:
        raise UserError(f"{what}: class {wrong[0]} is not one of 0..{count - 1}")
    return np.array([categories.get(id, -1) for id in ids.tolist()], dtype=np.int64)
