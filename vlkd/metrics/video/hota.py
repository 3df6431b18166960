"""Higher order tracking accuracy, and its open-world form OWTA, of tracks given as id maps.

Source: Luiten et al. 2021 (HOTA), equations 7 to 15 and TrackEval's hota.py; Liu et al. 2022 (Opening up open
world tracking) for OWTA; Athar et al. 2023 (BURST) uses both (spec gkc.md section 10).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlkd.metrics.video.shared import Ints, Maps, VideoMetric, frame_table, grouped, id_classes, same_shape

ALPHAS = np.linspace(0.05, 0.95, 19)
EPS = np.finfo(np.float64).eps
STATES = ("tp", "truth", "guess", "joint", "recall", "precision")


def hota(
    videos: Iterable[tuple[Any, ...]],
    categories: Collection[int],
    groups: Mapping[str, Collection[int]] | None = None,
    agnostic: bool = False,
) -> dict[str, float]:
    """Scores of HOTAMetric of videos (gt ids (T,H,W), predicted ids, gt and predicted {id: category}).

    `categories`, `groups`, `agnostic` and errors as for HOTAMetric.
    """
    metric = HOTAMetric(categories, groups, agnostic, sync_on_compute=False)
    for video in videos:
        metric.update(*video)
    return metric.compute()


class HOTAMetric(VideoMetric):
    """HOTA, DetA, AssA, DetRe, DetPr, AssRe, AssPr and OWTA over a whole split, fractions in [0, 1].

    In each frame true and predicted masks of one category are matched once, by the assignment that is best
    for IoU times the agreement of the two tracks over the video; at each alpha = 0.05..0.95 the matches with
    IoU >= alpha count. HOTA = sqrt(DetA AssA), OWTA = sqrt(DetRe AssA), averaged over alpha, then over the
    categories that occur in ground truth or prediction. Masks of one map do not overlap.
    BURST leaves out what its annotation cannot judge (vlkd.metrics.video.burst.judged) and means over the
    categories with ground truth.

    Args:
        categories: all categories.
        groups: further means, for BURST {"common": [...], "uncommon": [...]}; scores get the name as suffix.
        agnostic: match whatever the categories, as OWTA is meant; every object is of one category.
        of_truth: means are over the categories that occur in the ground truth only.
    """

    def __init__(
        self,
        categories: Collection[int],
        groups: Mapping[str, Collection[int]] | None = None,
        agnostic: bool = False,
        of_truth: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.categories, self.agnostic, self.of_truth = sorted(categories), agnostic, of_truth
        self.groups = {name: np.isin(self.categories, list(group)) for name, group in (groups or {}).items()}
        self.settings = (tuple(self.categories), agnostic, of_truth, str(self.groups))
        for name in STATES:
            whole = name in ("truth", "guess")
            shape = (len(self.categories),) if whole else (len(self.categories), len(ALPHAS))
            empty = np.zeros(shape, np.int64 if whole or name == "tp" else np.float64)
            self.add_state(name, default=torch.from_numpy(empty), dist_reduce_fx="sum")

    def update(
        self, gt: Maps, pred: Maps, gt_categories: Mapping[int, int], pred_categories: Mapping[int, int]
    ) -> None:
        """Add one video: ids (T,H,W) of its annotated frames, 0 = no object, {id: category}.

        Raises UserError, naming the video, for shapes that disagree, ids without a category and unknown
        categories.
        """
        truth, guess = same_shape(self.video, **{"ground truth": gt, "prediction": pred})
        frame, gt_ids, pred_ids, pixels = frame_table(truth, guess)
        ids, g = np.unique(gt_ids, return_inverse=True)
        gt_class = id_classes(self.video, "ground truth", ids, gt_categories, self.categories)
        ids, p = np.unique(pred_ids, return_inverse=True)
        pred_class = id_classes(self.video, "prediction", ids, pred_categories, self.categories)
        if self.agnostic:
            gt_class, pred_class = np.minimum(gt_class, 0), np.minimum(pred_class, 0)
        for name, value in _counts(frame, g, p, pixels, gt_class, pred_class, len(self.categories)).items():
            state: Tensor = getattr(self, name)
            state += torch.from_numpy(value).to(state.device)

    def compute(self) -> dict[str, float]:
        """Scores of the videos so far; nan where no category occurs."""
        tp, truth, guess, joint, recall, precision = (getattr(self, name).cpu().numpy() for name in STATES)
        present = truth > 0 if self.of_truth else truth + guess > 0
        truth, guess, found = truth[:, None], guess[:, None], np.maximum(tp, 1)
        scores = {
            "DetA": tp / np.maximum(truth + guess - tp, 1),
            "AssA": joint / found,
            "DetRe": tp / np.maximum(truth, 1),
            "DetPr": tp / np.maximum(guess, 1),
            "AssRe": recall / found,
            "AssPr": precision / found,
        }
        scores["HOTA"] = np.sqrt(scores["DetA"] * scores["AssA"])
        scores["OWTA"] = np.sqrt(scores["DetRe"] * scores["AssA"])
        means = {}
        for suffix, chosen in {"": present, **{f"_{n}": present & g for n, g in self.groups.items()}}.items():
            for name, values in scores.items():
                means[name + suffix] = float(values[chosen].mean()) if chosen.any() else float("nan")
        return means


def _counts(
    frame: Ints, g: Ints, p: Ints, pixels: Ints, gt_class: Ints, pred_class: Ints, num_classes: int
) -> dict[str, NDArray[Any]]:
    """What a video adds to each state; frame, places of ids and pixels (R,) of what meets in each frame."""
    gt_mask, g_at, gt_area = grouped(frame * len(gt_class) + g, pixels)
    pred_mask, p_at, pred_area = grouped(frame * len(pred_class) + p, pixels)
    gt_length = np.bincount(gt_mask % len(gt_class), minlength=len(gt_class))
    pred_length = np.bincount(pred_mask % len(pred_class), minlength=len(pred_class))

    same = (gt_class[g] == pred_class[p]) & (gt_class[g] >= 0)
    frame, g, p, g_at, p_at, pixels = (x[same] for x in (frame, g, p, g_at, p_at, pixels))
    iou = pixels / (gt_area[g_at] + pred_area[p_at] - pixels)
    # How far two tracks agree over the video (TrackEval's global alignment score).
    share = iou / (np.bincount(g_at, iou)[g_at] + np.bincount(p_at, iou)[p_at] - iou)
    pairs, pair = np.unique(g * len(pred_class) + p, return_inverse=True)
    length = gt_length[pairs // len(pred_class)] + pred_length[pairs % len(pred_class)]
    agreed = np.bincount(pair, share, len(pairs))
    match = assigned(frame, g_at, p_at, (agreed / (length - agreed))[pair] * iou)

    hit = iou[match, None] >= ALPHAS - EPS
    met = np.zeros((len(pairs), len(ALPHAS)))
    np.add.at(met, pair[match], hit)
    pair_class = gt_class[pairs // len(pred_class)]

    def by_class(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((num_classes, len(ALPHAS)))
        np.add.at(total, pair_class, values)
        return total

    return {
        "tp": by_class(met).astype(np.int64),
        "truth": np.bincount(gt_class[gt_class >= 0], gt_length[gt_class >= 0], num_classes).astype(np.int64),
        "guess": np.bincount(pred_class[pred_class >= 0], pred_length[pred_class >= 0], num_classes).astype(
            np.int64
        ),
        "joint": by_class(met * met / np.maximum(length[:, None] - met, 1)),
        "recall": by_class(met * met / gt_length[pairs // len(pred_class), None]),
        "precision": by_class(met * met / pred_length[pairs % len(pred_class), None]),
    }


def assigned(frame: Ints, g_at: Ints, p_at: Ints, score: NDArray[np.float64]) -> Ints:
    """Rows (R',) of the overlaps (R,), in order of frames, that the best assignment of each frame takes."""
    taken = []
    starts = np.flatnonzero(np.diff(frame, prepend=-1, append=-1))
    for first, last in pairwise(starts):
        rows, columns = g_at[first:last] - g_at[first:last].min(), p_at[first:last] - p_at[first:last].min()
        table = np.zeros((rows.max() + 1, columns.max() + 1))
        index = np.full(table.shape, -1)
        table[rows, columns], index[rows, columns] = score[first:last], np.arange(first, last)
        chosen = index[linear_sum_assignment(table, maximize=True)]
        taken.append(chosen[chosen >= 0])
    return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)
