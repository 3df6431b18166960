"""Video panoptic quality over windows of frames, by the rules of VIPSeg's and Cityscapes-VPS's evaluators.

Source: Kim et al. 2020 (VPS), eval_vpq.py; Miao et al. 2022 (VIPSeg), eval_vpq_vspw.py (spec gkc.md section
11).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.panoptic import PanopticCounts
from vlkd.metrics.video.shared import (
    Ints,
    Maps,
    VideoMetric,
    frame_table,
    grouped,
    id_classes,
    pair_table,
    same_shape,
    split_groups,
    totals,
)

VIPSEG_WINDOWS = (1, 2, 4, 6, 8)  # frames; Cityscapes-VPS averages 1, 2, 3, 4


def vpq(
    videos: Iterable[tuple[Any, ...]],
    windows: Sequence[int],
    isthing: Sequence[bool] | Mapping[int, bool],
    base: Collection[int] | None = None,
    novel: Collection[int] | None = None,
) -> dict[str, Any]:
    """Video panoptic quality in percent of videos (gt ids, predicted ids, gt and predicted {id: category}).

    Ids (T,H,W) are constant over a video, 0 is void; a fifth item of a video names its crowd ids. `isthing`
    is by category. Gives "windows": {k: {"all", "thing", "stuff"}} and the means over the windows under the
    same three names; "base" and "novel" too when either list is given. nan where no category occurs, so also
    in the mean when no video has k frames. Raises UserError as VPQMetric.update.
    """
    metric = VPQMetric(isthing, windows, base, novel, sync_on_compute=False)
    for video in videos:
        metric.update(*video)
    return metric.compute()


class VPQMetric(VideoMetric):
    """Video panoptic quality over a whole split; compute() as for vpq.

    A segment is all pixels of one id within a window of k frames. Pairs of one category match when their
    IoU is above 0.5, the prediction's void pixels taken out of the union; crowds and what lies on void
    count as in panoptic_quality. Sums are over all windows, stride 1, of all videos. Each frame's pixels are
    counted once; windows are sums over the few pairs of ids that meet.

    Args:
        isthing: whether a category is a thing, in the order of the categories or by category.
        windows: lengths k of windows in frames.
        base: categories of the score "base"; all but `novel` if not given.
        novel: categories of the score "novel"; all but `base` if not given.
    """

    iou: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor

    def __init__(
        self,
        isthing: Sequence[bool] | Mapping[int, bool],
        windows: Sequence[int] = VIPSEG_WINDOWS,
        base: Collection[int] | None = None,
        novel: Collection[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not windows or min(windows) < 1:
            raise UserError(f"windows={list(windows)}: expected lengths of 1 frame or more")
        flags = dict(isthing) if isinstance(isthing, Mapping) else dict(enumerate(isthing))
        self.windows, self.categories = tuple(windows), sorted(flags)
        things = {c for c, thing in flags.items() if thing}
        groups = {"all": set(flags), "thing": things, "stuff": set(flags) - things}
        groups |= split_groups(flags, base, novel)
        self.groups = {
            name: [self.categories.index(c) for c in sorted(group)] for name, group in groups.items()
        }
        self.settings = (self.windows, tuple(self.categories), str(self.groups))
        for name in ("iou", "tp", "fp", "fn"):
            empty = np.zeros((len(self.windows), len(flags)), np.float64 if name == "iou" else np.int64)
            self.add_state(name, default=torch.from_numpy(empty), dist_reduce_fx="sum")

    def update(
        self,
        gt: Maps,
        pred: Maps,
        gt_categories: Mapping[int, int],
        pred_categories: Mapping[int, int],
        crowd: Collection[int] = (),
    ) -> None:
        """Add one video: ids (T,H,W), 0 = void, {id: category}, the ids of the truth that are crowds.

        Raises UserError, naming the video, for shapes that disagree, ids without a category, and categories
        that `isthing` does not have.
        """
        truth, guess = same_shape(self.video, **{"ground truth": gt, "prediction": pred})
        frame, gt_ids, pred_ids, pixels = frame_table(truth, guess)
        ids, g = np.unique(gt_ids, return_inverse=True)
        gt_class = id_classes(self.video, "ground truth", ids, gt_categories, self.categories)
        is_crowd = np.isin(ids, list(crowd))
        ids, p = np.unique(pred_ids, return_inverse=True)
        pred_class = id_classes(self.video, "prediction", ids, pred_categories, self.categories)
        for i, k in enumerate(self.windows):
            if len(truth) < k:
                continue
            tubes = _window_sums(frame, g * len(pred_class) + p, pixels, k, len(truth))
            counts = _matches(*tubes, gt_class, pred_class, is_crowd, len(self.categories))
            for name in ("iou", "tp", "fp", "fn"):
                getattr(self, name)[i] += torch.from_numpy(getattr(counts, name)).to(self.iou.device)

    def compute(self) -> dict[str, Any]:
        """Scores of the videos so far, in percent."""
        states = [getattr(self, name).cpu().numpy() for name in ("iou", "tp", "fp", "fn")]
        scores: dict[int, dict[str, float]] = {}
        for k, *counts in zip(self.windows, *states, strict=True):
            quality = PanopticCounts(*counts).quality
            scores[k] = {name: 100 * quality(group)["PQ"] for name, group in self.groups.items()}
        means = {name: sum(scores[k][name] for k in self.windows) / len(self.windows) for name in self.groups}
        return {"windows": scores} | means


def _window_sums(frame: Ints, pair: Ints, pixels: Ints, k: int, frames: int) -> tuple[Ints, Ints, Ints]:
    """Pixels (S,) of each pair in each window of k frames: first frame (S,), pair (S,), sum (S,).

    Frame, pair and pixels (R,) list what meets in each frame: a row counts in the k windows over its frame.
    """
    first = frame[:, None] - np.arange(k)
    row, offset = np.nonzero((first >= 0) & (first <= frames - k))
    return pair_table(first[row, offset], pair[row], pixels[row])


def _matches(
    window: Ints,
    pair: Ints,
    overlap: Ints,
    gt_class: Ints,
    pred_class: Ints,
    is_crowd: NDArray[np.bool_],
    num_classes: int,
) -> PanopticCounts:
    """Counts by class (K,) over windows: overlaps (S,) of the pair g * len(pred_class) + p in a window."""
    g, p = np.divmod(pair, len(pred_class))
    gt_tube, g_at, gt_area = grouped(window * len(gt_class) + g, overlap)
    pred_tube, p_at, pred_area = grouped(window * len(pred_class) + p, overlap)
    tube_gt, tube_pred = gt_tube % len(gt_class), pred_tube % len(pred_class)
    on_void, same = gt_class[g] < 0, (gt_class[g] == pred_class[p]) & (gt_class[g] >= 0)

    void = totals(p_at, overlap * on_void, len(pred_tube))
    iou = overlap / np.maximum(gt_area[g_at] + pred_area[p_at] - overlap - void[p_at], 1)
    match = same & ~is_crowd[g] & (iou > 0.5)
    excuse = totals(p_at, overlap * (on_void | (same & is_crowd[g])), len(pred_tube))

    missed = (gt_class[tube_gt] >= 0) & ~is_crowd[tube_gt]
    missed[g_at[match]] = False
    wrong = (pred_class[tube_pred] >= 0) & ~(excuse * 2 > pred_area)
    wrong[p_at[match]] = False

    def by_class(classes: Ints, weights: NDArray[np.float64] | None = None) -> NDArray[Any]:
        return np.bincount(classes, weights, num_classes)

    return PanopticCounts(
        by_class(gt_class[g[match]], iou[match]).astype(np.float64),
        by_class(gt_class[g[match]]),
        by_class(pred_class[tube_pred[wrong]]),
        by_class(gt_class[tube_gt[missed]]),
    )
