"""Average precision of tracks by the rules of YouTube-VIS, LV-VIS and BURST.

Source: Yang et al. 2019 (Video Instance Segmentation), ytvoseval.py; Wang et al. 2023 (LV-VIS), lvviseval.py
(spec gkc.md section 11); Athar et al. 2023 (BURST), track_map.py @77442a3. All are COCO's rules with the IoU
of a pair summed over the frames of the video.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.video.shared import Ints, VideoMetric, split_groups

Rule = Literal["lvvis", "ytvis", "burst"]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = (1, 10, 100)  # detections of one category in one video that count; the last for all precisions
NOVEL_PARTITIONS = (2, 3)  # of LV-VIS; 0 and 1 are base


def track_ap(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    rule: Rule = "ytvis",
    base: Collection[int] | None = None,
    novel: Collection[int] | None = None,
) -> dict[str, float]:
    """{"AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AP_base", "AP_novel"} of a data set and its results.

    `ground_truth` is the content of an annotation file (videos, annotations, categories), `results` that of
    a result file: {video_id, category_id, score, segmentations: one RLE, polygon list or null a frame}.
    Base and novel are lists of category ids, by default the "partition" of LV-VIS. Fractions in [0, 1]; nan
    where no category has ground truth. Raises UserError as TrackAPMetric.update, and for unknown videos.
    """
    if ground_truth.get("annotations") is None:
        raise UserError("the ground truth has no annotations (a test split?); scores need them")
    metric = TrackAPMetric(ground_truth["categories"], rule, base, novel, sync_on_compute=False)
    tracks: dict[int, tuple[list[Any], list[Any]]] = {v["id"]: ([], []) for v in ground_truth["videos"]}
    for side, items in enumerate((ground_truth["annotations"], results)):
        for track in items:
            if (video_id := track.get("video_id")) not in tracks:
                what = ("an annotation", "a result")[side]
                raise UserError(f"{what} is for video {video_id}, which the ground truth does not list")
            tracks[video_id][side].append(track)
    for video in sorted(ground_truth["videos"], key=lambda video: video["id"]):
        metric.update(video, *tracks[video["id"]])
    return metric.compute()


class TrackAPMetric(VideoMetric):
    """Average precision of tracks over a whole split; compute() as for track_ap.

    In each video and category detections take, in order of score, the best free track whose IoU reaches the
    threshold; IoU is intersection over union, each summed over all frames, a missing mask being empty.
    Precision is made monotone and read at 101 recalls. Means are over the categories with ground truth. A
    crowd may be met by several detections: "ytvis" counts neither it nor them, "lvvis" all as any track.
    "burst" has no limit of 100, leaves out detections of categories that a video neither shows nor lists in
    "neg_category_ids", and does not count unmatched ones of its "not_exhaustive_category_ids".
    State: one row for each detection (112 bytes), as exact precision needs all scores; masks are not kept.

    Args:
        categories: [{"id": ..., "partition": ...}] as in the annotation file.
        rule: "ytvis", "lvvis" or "burst".
        base: ids of the base categories.
        novel: ids of the novel categories.
    """

    truth: Tensor
    rows: list[Tensor]

    def __init__(
        self,
        categories: Sequence[Mapping[str, Any]],
        rule: Rule = "ytvis",
        base: Collection[int] | None = None,
        novel: Collection[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rule not in ("ytvis", "lvvis", "burst"):
            raise UserError(f"rule {rule!r}: expected 'ytvis', 'lvvis' or 'burst'")
        self.rule, self.index = rule, {c["id"]: i for i, c in enumerate(categories)}
        if base is None and novel is None and categories and all("partition" in c for c in categories):
            novel = [c["id"] for c in categories if c["partition"] in NOVEL_PARTITIONS]
        groups = split_groups(self.index, base, novel)
        self.groups = {name: sorted(self.index[c] for c in group) for name, group in groups.items()}
        self.settings = (rule, tuple(self.index), str(self.groups))
        self.add_state("truth", torch.zeros(len(categories), dtype=torch.int64), dist_reduce_fx="sum")
        # Score, category, video, rank in its category and video; the outcome at each threshold (see _match).
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        super().reset()
        # A process without a video must have something to send to the others.
        self.rows = [torch.zeros(0, 4 + len(THRESHOLDS), dtype=torch.float64, device=self.truth.device)]

    def update(
        self,
        video: Mapping[str, Any],
        truth: Sequence[Mapping[str, Any]],
        results: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add one video: its record (id, height, width, length), its annotations and its results.

        Raises UserError, naming the video, for unknown categories, segmentations that are not one a frame,
        masks of another size, scores that are no number, and a video id that is none.
        """
        if not isinstance(video["id"], int):
            raise UserError(f"video {video['id']!r}: expected a whole number as id")
        gt_class = self._classes(video, truth, ("category_id", "segmentations"))
        if self.rule == "burst":
            known = {t["category_id"] for t in truth} | set(video.get("neg_category_ids") or ())
            results = [result for result in results if result.get("category_id") in known]
        pred_class = self._classes(video, results, ("category_id", "segmentations", "score"))
        gt_masks = _Masks(video, truth, np.isin(gt_class, pred_class))
        pred_masks = _Masks(video, results, np.isin(pred_class, gt_class))
        scores = np.array([track["score"] for track in results], dtype=np.float64)
        if not np.isfinite(scores).all():
            raise UserError(f"video {video['id']}: a result's score is not a finite number")
        crowd = np.array([bool(track.get("iscrowd", 0)) for track in truth], dtype=bool)
        ignored = crowd if self.rule == "ytvis" else np.zeros_like(crowd)
        device = self.truth.device
        self.truth += torch.from_numpy(np.bincount(gt_class[~ignored], minlength=len(self.index))).to(device)
        order = np.lexsort((-scores, pred_class))
        rank = np.arange(len(order)) - np.searchsorted(pred_class[order], pred_class[order])
        if self.rule != "burst":
            order, rank = order[rank < MOST[-1]], rank[rank < MOST[-1]]
        iou = _tube_iou(pred_masks, gt_masks, pred_class, gt_class)[order]
        outcome = _match(iou, crowd, ignored)
        if self.rule == "burst":
            partly = {self.index.get(id) for id in video.get("not_exhaustive_category_ids") or ()}
            outcome[
                np.isin(pred_class[order], [k for k in partly if k is not None])[:, None] & (outcome == 0)
            ] = 2
        columns = (scores[order], pred_class[order], np.full(len(order), video["id"]), rank)
        rows = np.column_stack([*columns, outcome]).astype(np.float64)
        self.rows.append(torch.from_numpy(rows).to(device))

    def compute(self) -> dict[str, float]:
        """Scores of the videos so far."""
        truth = self.truth.cpu().numpy()
        precision, recall = self._curves(truth)
        present = truth > 0

        def mean(values: NDArray[np.float64], classes: Any = slice(None)) -> float:
            chosen = values[classes][present[classes]]
            return float(chosen.mean()) if chosen.size else float("nan")

        scores = {"AP": mean(precision), "AP50": mean(precision[:, 0]), "AP75": mean(precision[:, 5])}
        scores |= {f"AR{most}": mean(recall[:, i]) for i, most in enumerate(MOST)}
        return scores | {
            f"AP_{name}": mean(precision, self.groups.get(name, [])) for name in ("base", "novel")
        }

    def _classes(
        self, video: Mapping[str, Any], tracks: Sequence[Mapping[str, Any]], keys: tuple[str, ...]
    ) -> Ints:
        for track in tracks:
            if lost := [key for key in keys if key not in track]:
                raise UserError(f"video {video['id']}: a track has no {lost[0]!r}; expected {list(keys)}")
        if odd := sorted({track["category_id"] for track in tracks} - set(self.index)):
            raise UserError(f"video {video['id']}: categories {odd[:6]} are not in the ground truth's list")
        return np.array([self.index[track["category_id"]] for track in tracks], dtype=np.int64)

    def _curves(self, truth: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Precision (K,10,101) at each threshold and recall level, recall (K,3,10) for each of MOST."""
        precision = np.zeros((len(truth), len(THRESHOLDS), len(RECALLS)))
        recall = np.zeros((len(truth), len(MOST), len(THRESHOLDS)))
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows  # after synchronisation
        score, category, video, rank, *outcomes = rows.cpu().numpy().T
        hit = np.stack(outcomes, 1)
        # Ties as in the official code: by video, then by rank in it, whatever order videos were added in.
        order = np.lexsort((rank, video, -score, category))
        category, rank, hit = category[order].astype(np.int64), rank[order], hit[order]
        enough = np.maximum(truth, 1)
        needed = _needed(enough)
        for t in range(len(THRESHOLDS)):
            for m, most in enumerate(MOST):
                found = np.bincount(category[(hit[:, t] == 1) & (rank < most)], minlength=len(truth))
                recall[:, m, t] = found / enough
            precision[:, t] = _precision(category, hit[:, t], needed)
        return precision, recall


def _needed(truth: Ints) -> Ints:
    """The least number (K,101) of right detections whose recall, as a float, reaches each level."""
    tracks = truth[:, None]
    needed = np.maximum(np.ceil(RECALLS * tracks) - 1, 1)
    needed += needed / tracks < RECALLS
    needed += needed / tracks < RECALLS
    return needed.astype(np.int64)


def _precision(category: Ints, hit: NDArray[np.float64], needed: Ints) -> NDArray[np.float64]:
    """Precision (K,101) where `needed` (K,101) are right; detections (N,) by category, then falling score."""
    num_classes = len(needed)
    before = np.searchsorted(category, np.arange(num_classes))
    right = np.flatnonzero(hit == 1)
    of = category[right]
    if not len(right):
        return np.zeros((num_classes, len(RECALLS)))
    first = np.searchsorted(of, np.arange(num_classes))
    count = np.bincount(of, minlength=num_classes)
    wrong = np.concatenate(([0], np.cumsum(hit == 0)))
    tp = np.arange(len(right)) - first[of] + 1
    precision = tp / (wrong[right] - wrong[before[of]] + tp + np.spacing(1))

    # Best precision from here to the end of the category: ranks are whole numbers, so that a step between the
    # categories that keeps them apart loses nothing.
    values, ranks = np.unique(precision, return_inverse=True)
    stepped = ranks + (num_classes - of) * len(values)
    best = np.maximum.accumulate(stepped[::-1])[::-1] - (num_classes - of) * len(values)

    reached = needed <= count[:, None]
    at = np.where(reached, first[:, None] + needed - 1, 0)
    return np.where(reached, values[best][at], 0.0)


class _Masks:
    """RLEs of the wanted ones of N tracks: for each frame a list of N, None without a mask; areas (T,N)."""

    def __init__(
        self, video: Mapping[str, Any], tracks: Sequence[Mapping[str, Any]], wanted: NDArray[np.bool_]
    ) -> None:
        length, size = video["length"], [video["height"], video["width"]]
        self.rles: list[list[dict[str, Any] | None]] = [[None] * len(tracks) for _ in range(length)]
        for i, track in enumerate(tracks):
            if (count := len(track["segmentations"])) != length:
                raise UserError(
                    f"video {video['id']}: a track has {count} segmentations, expected one for each of "
                    f"{length} frames, null where there is no mask"
                )
            for frame, segmentation in zip(self.rles, track["segmentations"], strict=True):
                if segmentation:
                    mask = _rle(video, segmentation, size)
                    frame[i] = mask if wanted[i] else None
        self.areas = np.zeros((length, len(tracks)))
        for areas, frame in zip(self.areas, self.rles, strict=True):
            at = [i for i, mask in enumerate(frame) if mask]
            areas[at] = rle.area([frame[i] for i in at])


def _rle(video: Mapping[str, Any], segmentation: Any, size: list[int]) -> dict[str, Any]:
    """Compressed RLE of an RLE, compressed or not, or of a list of polygons."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, *size))
    if segmentation["size"] != size and list(segmentation["size"]) != size:
        raise UserError(f"video {video['id']}: a mask of size {list(segmentation['size'])}, expected {size}")
    return rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation


def _tube_iou(one: _Masks, other: _Masks, one_class: Ints, other_class: Ints) -> NDArray[np.float64]:
    """IoU (N,M) of tracks over all frames, -1 for two categories; 0 for a pair without any pixel."""
    overlap = np.zeros((len(one_class), len(other_class)))
    for shared in np.intersect1d(one_class, other_class):
        ours, theirs = (np.flatnonzero(classes == shared).tolist() for classes in (one_class, other_class))
        for t, (left, right) in enumerate(zip(one.rles, other.rles, strict=True)):
            rows, columns = [i for i in ours if left[i]], [i for i in theirs if right[i]]
            if rows and columns:
                iou = rle.iou([left[i] for i in rows], [right[i] for i in columns], [0] * len(columns))
                area = one.areas[t, rows][:, None] + other.areas[t, columns]
                # pycocotools gives i / (a - i) with a the sum of the areas; i is a whole number.
                overlap[np.ix_(rows, columns)] += np.rint(iou * area / (1 + iou))
    union = one.areas.sum(0)[:, None] + other.areas.sum(0) - overlap
    return np.where(one_class[:, None] == other_class, overlap / np.maximum(union, 1), -1.0)


def _match(
    iou: NDArray[np.float64], crowd: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """Outcome (N,10) of detections in order of score: 0 wrong, 1 right, 2 neither; iou (N,M) with M tracks.

    A detection takes the best free track, one that counts before one that is ignored; of equals the later.
    """
    hit = np.zeros((len(iou), len(THRESHOLDS)), dtype=np.int8)
    free = np.ones((len(THRESHOLDS), iou.shape[1]), dtype=bool)
    each = np.arange(len(THRESHOLDS))
    for i in np.flatnonzero((iou >= THRESHOLDS[0]).any(1)):
        rank = np.empty(iou.shape[1], dtype=np.int64)
        rank[np.lexsort((iou[i], ~ignored))] = np.arange(len(rank))
        open_ = (iou[i] >= THRESHOLDS[:, None]) & (free | crowd)
        best = np.where(open_, rank, -1).argmax(1)
        met = open_.any(1)
        free[each[met], best[met]] = False
        hit[i] = np.where(met, 1 + ignored[best], 0)
    return hit
