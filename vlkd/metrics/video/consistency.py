"""Video consistency VC_n: how much of what stays the same in the truth stays the same in the prediction.

Source: Miao et al. 2021 (VSPW), by the rule of its evaluator VC_perclip.py (spec gkc.md section 11). It
compares the prediction with itself only: one that never changes scores 1 whatever its labels. The scores with
"correct" in their name ask for the right labels and are not official.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.video.shared import Maps, VideoMetric, same_shape


def video_consistency(
    gt_videos: Iterable[Maps], pred_videos: Iterable[Maps], n: int, include_last: bool = False
) -> float:
    """VC_n: mean over the windows of all videos; lists (or generators) of label maps (T,H,W).

    A window is n consecutive frames: of the pixels whose true label is the same in all of them (void too),
    the fraction whose predicted label is the same in all. The official rule leaves out the last window of
    each video, so a video needs more than n frames; `include_last` takes it in. Windows without such a pixel
    do not count; nan if none counts. Raises UserError for shapes that disagree and lists of unequal length.
    """
    return _scored(gt_videos, pred_videos, n, include_last)[f"VC{n}"]


def correct_consistency(
    gt_videos: Iterable[Maps],
    pred_videos: Iterable[Maps],
    n: int,
    include_last: bool = False,
    void: int | None = None,
) -> float:
    """As video_consistency, of pixels whose predicted label is the true one in all n frames; not official.

    Pixels whose true label is `void` are left out.
    """
    return _scored(gt_videos, pred_videos, n, include_last, void)[f"VC{n}_correct"]


class ConsistencyMetric(VideoMetric):
    """Video consistency over a whole split, in one pass over the frames; memory of two frames.

    compute() gives VC<n>, as video_consistency, and VC<n>_correct, as correct_consistency, for each window.

    Args:
        windows: lengths n, in frames.
        include_last: count the last window of a video too, which the official rule leaves out.
        void: true label of pixels that the correct form leaves out; the official form counts them.
    """

    total: Tensor
    correct: Tensor
    counted: Tensor
    correct_counted: Tensor

    def __init__(
        self,
        windows: Sequence[int] = (8, 16),
        include_last: bool = False,
        void: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not windows or min(windows) < 1:
            raise UserError(f"windows={list(windows)}: expected lengths of 1 frame or more")
        self.windows, self.include_last, self.void = tuple(windows), include_last, void
        self.settings = (self.windows, include_last, void)
        zeros = torch.zeros(len(windows))
        self.add_state("total", default=zeros.double(), dist_reduce_fx="sum")
        self.add_state("correct", default=zeros.double(), dist_reduce_fx="sum")
        self.add_state("counted", default=zeros.long(), dist_reduce_fx="sum")
        self.add_state("correct_counted", default=zeros.long(), dist_reduce_fx="sum")

    def update(self, gt: Maps, pred: Maps) -> None:
        """Add one video: label maps (T,H,W)."""
        truth, guess = same_shape(self.video, **{"ground truth": gt, "prediction": pred})
        frames = len(truth) - (not self.include_last)
        # For each pixel the first frame of its present label, and the frame after its last error.
        number = np.min_scalar_type(len(truth)).type
        gt_since, pred_since, right_since = np.zeros((3, *truth.shape[1:]), dtype=number)
        for t in range(frames):
            if t:
                np.maximum(gt_since, (truth[t] != truth[t - 1]) * number(t), out=gt_since)
                np.maximum(pred_since, (guess[t] != guess[t - 1]) * number(t), out=pred_since)
            np.maximum(right_since, (truth[t] != guess[t]) * number(t + 1), out=right_since)
            for i, start in enumerate(t - n + 1 for n in self.windows):
                if start < 0:
                    continue
                steady = gt_since <= start
                if area := np.count_nonzero(steady):
                    self.counted[i] += 1
                    self.total[i] += np.count_nonzero(steady & (pred_since <= start)) / area
                if self.void is not None:
                    steady &= truth[t] != self.void
                    area = np.count_nonzero(steady)
                if area:
                    self.correct_counted[i] += 1
                    self.correct[i] += np.count_nonzero(steady & (right_since <= start)) / area

    def compute(self) -> dict[str, float]:
        """Scores of the videos so far, fractions in [0, 1]."""
        scores = {}
        for i, n in enumerate(self.windows):
            scores[f"VC{n}"] = float(self.total[i] / self.counted[i])
            scores[f"VC{n}_correct"] = float(self.correct[i] / self.correct_counted[i])
        return scores


def _scored(
    gt: Iterable[Maps], pred: Iterable[Maps], n: int, include_last: bool, void: int | None = None
) -> dict[str, float]:
    metric = ConsistencyMetric([n], include_last, void, sync_on_compute=False)
    for truth, guess in zip_longest(gt, pred):
        if truth is None or guess is None:
            raise UserError("ground truth and prediction have different numbers of videos")
        metric.update(truth, guess)
    return metric.compute()
