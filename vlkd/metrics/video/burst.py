"""BURST's rule on classes that are not labelled exhaustively: what nobody can judge is not counted.

Source: Athar et al. 2023 (BURST), evaluation code @77442a3, which follows Dave et al. 2020 (TAO).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.metrics.video.hota import EPS, assigned
from vlkd.metrics.video.shared import Maps, frame_table, grouped, same_shape


def judged(
    gt: Maps,
    pred: Maps,
    gt_categories: Mapping[int, int],
    pred_categories: Mapping[int, int],
    negative: Collection[int],
    not_exhaustive: Collection[int],
) -> NDArray[Any]:
    """Predicted ids (T,H,W) for HOTAMetric.update without the masks that the annotation cannot judge.

    In each frame masks of one category are paired where IoU >= 0.5. A predicted mask without partner goes if
    its category is in `not_exhaustive` (of the video), or if the frame has no true mask of it and it is not
    in `negative`. Ids as for HOTAMetric. Raises UserError for shapes that disagree.
    """
    truth, guess = same_shape(0, **{"ground truth": gt, "prediction": pred})
    frame, gt_id, pred_id, pixels = frame_table(truth, guess)
    gt_class = np.array([gt_categories.get(int(id), -1) for id in gt_id])
    pred_class = np.array([pred_categories.get(int(id), -1) for id in pred_id])
    ids, p = np.unique(pred_id, return_inverse=True)
    masks, p_at, pred_area = grouped(frame * len(ids) + p, pixels)
    _, g_at, gt_area = grouped(frame * (int(gt_id.max()) + 1) + gt_id, pixels)

    iou = pixels / (gt_area[g_at] + pred_area[p_at] - pixels)
    close = np.flatnonzero((gt_class == pred_class) & (gt_class >= 0) & (iou >= 0.5 - EPS))
    matched = np.zeros(len(masks), dtype=bool)
    matched[p_at[close[assigned(frame[close], g_at[close], p_at[close], iou[close])]]] = True

    shown = set(zip(frame.tolist(), gt_class.tolist(), strict=True))
    category = np.empty(len(masks), dtype=np.int64)
    category[p_at] = pred_class
    unseen = np.array([place not in shown for place in zip(masks // len(ids), category, strict=True)])
    unjudged = np.isin(category, list(not_exhaustive)) | (unseen & ~np.isin(category, list(negative)))
    gone = ~matched & unjudged & (category >= 0)
    kept = guess.copy()
    for t in np.unique(masks[gone] // len(ids)):
        own = gone & (masks // len(ids) == t)
        kept[t][np.isin(kept[t], ids[masks[own] % len(ids)])] = 0
    return kept
