"""Temporal consistency TC: whether labels move as the pixels do.

Source: Miao et al. 2021 (VSPW), by the rule of its evaluator TC_cal.py (CVPR2021_VSPW_Implement @65a5ea0). It
asks nothing of the truth: any labelling that moves with the flow scores 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.semantic import confusion_matrix, miou
from vlkd.metrics.video.shared import Maps, VideoMetric, same_shape

Flow = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.floating]]


class FlowConsistencyMetric(VideoMetric):
    """TC over a whole split: mIoU between each frame's labels and the next frame's, warped back by the flow.

    One confusion matrix for all pairs of frames; the mean is over the classes that the first frames name.

    Args:
        num_classes: K.
        parity: as the official code: its grid is stretched by W / (W - 1) and moved by half a pixel, and what
            flows in from outside is class 0. Otherwise the exact place counts, and such pixels do not.
    """

    counts: Tensor

    def __init__(self, num_classes: int, parity: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.parity = num_classes, parity
        self.settings = (num_classes, parity)
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=empty, dist_reduce_fx="sum")

    def update(self, pred: Maps, frames: Iterable[NDArray[np.uint8]], flow: Flow) -> None:
        """Add one video: labels (T,H,W), its T images (H,W,3), flow(image, next image) -> (H,W,2) in pixels.

        flow[y, x] = (dx, dy): pixel (x, y) of the image is at (x + dx, y + dy) in the next. Labels of K or
        more are void. Raises UserError where the numbers of frames or the sizes disagree.
        """
        (labels,) = same_shape(self.video, prediction=pred)
        seen = 0
        for t, (image, following) in enumerate(pairwise(frames)):
            seen = t + 1
            if seen == len(labels):
                break
            moved = warped(labels[t + 1], flow(image, following), self.parity)
            void = self.num_classes
            both = (labels[t] < void) & (moved >= 0) & (moved < void)
            first = np.where(both, labels[t].astype(np.int64), void)
            table = confusion_matrix(first, np.where(both, moved, void), void, void)
            self.counts += torch.from_numpy(table).to(self.counts.device)
        if seen != len(labels) - 1:
            raise UserError(
                f"video {self.video}: {len(labels)} label maps, but another number of frames; "
                "give every frame of the video"
            )

    def compute(self) -> dict[str, float]:
        """{"TC"}; nan before any pair of frames."""
        return {"TC": float(miou(self.counts.cpu()))}


def warped(labels: NDArray[Any], flow: NDArray[np.floating], parity: bool = True) -> NDArray[np.int64]:
    """The labels (H,W) that the pixels flow (H,W,2) to, the nearest ones; -1 outside (0 with `parity`).

    Raises UserError for a flow of another size.
    """
    if flow.shape != (*labels.shape, 2):
        raise UserError(f"a flow of shape {flow.shape} for labels {labels.shape}: expected (H,W,2)")
    height, width = labels.shape
    x = np.arange(width, dtype=np.float64) + flow[..., 0]
    y = np.arange(height, dtype=np.float64)[:, None] + flow[..., 1]
    if parity:
        x, y = x * width / max(width - 1, 1) - 0.5, y * height / max(height - 1, 1) - 0.5
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = labels[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].astype(np.int64)
    return np.where(inside, found, 0 if parity else -1)
