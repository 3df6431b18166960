"""Segmentation and tracking quality over whole videos.

Source: Weber et al. 2021 (STEP), by the evaluator of deeplab2 that VIPSeg uses (spec gkc.md section 11).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.video.shared import Ints, Maps, VideoMetric, grouped, pair_table, runs, same_shape, totals

MOST_IDS = 1 << 32


def stq(
    videos: Iterable[tuple[Maps, Maps, Maps, Maps]],
    num_classes: int,
    things: Collection[int],
    ignore: int = 255,
    parity: bool = True,
) -> dict[str, float]:
    """{"STQ", "AQ", "SQ"} of videos (gt_semantic, gt_instance, pred_semantic, pred_instance), each (T,H,W).

    Classes, `parity` and errors as for STQMetric.
    """
    metric = STQMetric(num_classes, things, ignore, parity, sync_on_compute=False)
    for video in videos:
        metric.update(*video)
    return metric.compute()


class STQMetric(VideoMetric):
    """STQ = sqrt(SQ AQ) over a whole split, fractions in [0, 1].

    SQ is the mean IoU over the classes in ground truth or prediction. AQ is the mean over the true tubes g
    of things, of all videos, of 1/|g| sum_p |p and g| IoU(p, g); a tube is the pixels of one class AND
    instance in a video, so a change of class breaks a track. Things predicted on void count in |p|.

    Args:
        num_classes: classes 0..K-1.
        things: classes with instances; instance ids of the others do not matter.
        ignore: label of void; such ground truth has no part in SQ.
        parity: as the official code: void predicted on labelled pixels is one more class, of IoU 0;
            instance 0 of a true thing is a crowd, its pixels left out of AQ; AQ is 0 without tubes. Otherwise
            void is no class, 0 is an instance as any other, and AQ is nan.
    """

    confusion: Tensor
    association: Tensor
    tubes: Tensor

    def __init__(
        self, num_classes: int, things: Collection[int], ignore: int = 255, parity: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.things, self.ignore, self.parity = num_classes, set(things), ignore, parity
        if odd := sorted(c for c in self.things if not 0 <= c < num_classes or c == ignore):
            raise UserError(f"things {odd[:6]}: expected classes of 0..{num_classes - 1}, void aside")
        self.void = ignore if 0 <= ignore < num_classes else num_classes
        self.settings = (num_classes, tuple(sorted(self.things)), ignore, parity)
        side = num_classes + 1
        self.add_state("confusion", default=torch.zeros(side, side, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("association", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tubes", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, gt_semantic: Maps, gt_instance: Maps, pred_semantic: Maps, pred_instance: Maps) -> None:
        """Add one video: classes and instance ids (T,H,W), ids from 0 to 2^32 - 1.

        Raises UserError, naming the video, for shapes that disagree and values that are no class or id.
        """
        names = ("gt_semantic", "gt_instance", "pred_semantic", "pred_instance")
        maps = (gt_semantic, gt_instance, pred_semantic, pred_instance)
        arrays = same_shape(self.video, **dict(zip(names, maps, strict=True)))
        tables = []
        for frame in zip(*arrays, strict=True):
            (gt_class, gt_id, pred_class, pred_id), lengths = runs(*frame)
            gt_tube = self._tubes(gt_class, gt_id, "ground truth")
            tables.append(pair_table(gt_tube, self._tubes(pred_class, pred_id, "prediction"), lengths))
        gt_tube, pred_tube, pixels = pair_table(*(np.concatenate(c) for c in zip(*tables, strict=True)))

        side = self.num_classes + 1
        joint = gt_tube % side * side + pred_tube % side
        table = totals(joint, pixels, side * side).reshape(side, side)
        table[self.void] = 0
        self.confusion += torch.from_numpy(table).to(self.confusion.device)
        association, tubes = self._association(gt_tube, pred_tube, pixels)
        self.association += association
        self.tubes += tubes

    def compute(self) -> dict[str, float]:
        """Scores of the videos so far."""
        cm = self.confusion.cpu().numpy()
        hits = cm.diagonal()
        union = cm.sum(0) + cm.sum(1) - hits
        present = union > 0
        if not self.parity:
            present[self.void] = False
        sq = float((hits[present] / union[present]).mean()) if present.any() else float("nan")
        none = 0.0 if self.parity else float("nan")
        aq = float(self.association / self.tubes) if self.tubes else none
        return {"STQ": float(np.sqrt(sq * aq)), "AQ": aq, "SQ": sq}

    def _tubes(self, classes: Ints, ids: Ints, what: str) -> Ints:
        """Keys (R,), instance * (K+1) + class; void has the class `self.void`."""
        wrong = (classes != self.ignore) & ((classes < 0) | (classes >= self.num_classes))
        if wrong.any():
            raise UserError(
                f"video {self.video}: {what} has the class {int(classes[wrong][0])}; expected "
                f"0..{self.num_classes - 1}, or the ignored label {self.ignore}"
            )
        if ids.min() < 0 or ids.max() >= MOST_IDS:
            odd = ids[(ids < 0) | (ids >= MOST_IDS)]
            raise UserError(
                f"video {self.video}: {what} has the instance {int(odd[0])}; expected 0..2^32 - 1"
            )
        return np.where(classes == self.ignore, self.void, classes) + ids * (self.num_classes + 1)

    def _association(self, gt_tube: Ints, pred_tube: Ints, pixels: Ints) -> tuple[float, int]:
        """Sum of AQ's term over the true tubes of a video, and their number; pairs of tubes (S,)."""
        truth, guess = self._is_thing(gt_tube), self._is_thing(pred_tube)
        if self.parity:
            crowd = truth & (gt_tube <= self.num_classes)
            truth, guess = truth & ~crowd, guess & ~crowd
        _, g, gt_area = grouped(gt_tube, pixels * truth)
        _, p, pred_area = grouped(pred_tube, pixels * guess)
        both = truth & guess
        g, p, overlap = g[both], p[both], pixels[both]
        iou = overlap / (gt_area[g] + pred_area[p] - overlap)
        return float((overlap * iou / gt_area[g]).sum()), int(np.count_nonzero(gt_area))

    def _is_thing(self, tube: Ints) -> NDArray[np.bool_]:
        return np.isin(tube % (self.num_classes + 1), list(self.things))
