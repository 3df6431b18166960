"""The video scores as their formulas read, in plain numpy: what benchmarks/video_metrics.py compares with."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

OFFSET = 1 << 32


def counts(keys: np.ndarray) -> dict[int, int]:
    values, number = np.unique(keys, return_counts=True)
    return dict(zip(values.tolist(), number.tolist(), strict=True))


def vc(videos: list[Any], n: int) -> float:
    """Each window by itself: its frames compared with its first."""
    found = []
    for gt, pred in videos:
        for i in range(len(gt) - n):
            steady = (gt[i : i + n] == gt[i]).all(0)
            kept = (pred[i : i + n] == pred[i]).all(0)
            found.append((steady & kept).sum() / steady.sum() if steady.any() else np.nan)
    return float(np.nanmean(found))


def vpq(videos: list[Any], windows: tuple[int, ...], num_classes: int) -> float:
    """Each window by itself: np.unique of the joint ids of its frames, then pairs of segments."""
    means = []
    for k in windows:
        iou, tp, fp, fn = np.zeros((4, num_classes))
        for gt, pred, gt_categories, pred_categories in videos:
            for i in range(len(gt) - k + 1):
                g_map, p_map = gt[i : i + k].astype(np.int64), pred[i : i + k].astype(np.int64)
                g_area, p_area, both = counts(g_map), counts(p_map), counts(g_map * OFFSET + p_map)
                matched = set()
                for pair, inter in both.items():
                    g, p = divmod(pair, OFFSET)
                    if not g or not p or gt_categories[g] != pred_categories[p]:
                        continue
                    union = g_area[g] + p_area[p] - inter - both.get(p, 0)
                    if inter / union > 0.5:
                        iou[gt_categories[g]] += inter / union
                        tp[gt_categories[g]] += 1
                        matched |= {("g", g), ("p", p)}
                for g in g_area:
                    if g and ("g", g) not in matched:
                        fn[gt_categories[g]] += 1
                for p in p_area:
                    if p and ("p", p) not in matched and both.get(p, 0) / p_area[p] <= 0.5:
                        fp[pred_categories[p]] += 1
        present = tp + fp + fn > 0
        means.append(100 * (iou / (tp + fp / 2 + fn / 2 + ~present))[present].mean())
    return float(np.mean(means))


def stq(videos: list[Any], num_classes: int, things: list[int], ignore: int) -> float:
    """Frame by frame: np.unique of tube ids and of their joint ids, summed in dictionaries."""
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    association, tubes = 0.0, 0
    for video in videos:
        g_area: Counter[int] = Counter()
        p_area: Counter[int] = Counter()
        both: Counter[int] = Counter()
        for maps in zip(*video, strict=True):
            g_class, g_id, p_class, p_id = (m.astype(np.int64) for m in maps)
            g_class = np.where(g_class == ignore, num_classes, g_class)
            p_class = np.where(p_class == ignore, num_classes, p_class)
            joint = g_class * (num_classes + 1) + p_class
            confusion += np.bincount(joint.ravel(), minlength=confusion.size).reshape(confusion.shape)
            truth, guess = np.isin(g_class, things), np.isin(p_class, things)
            crowd = truth & (g_id == 0)
            truth, guess = truth & ~crowd, guess & ~crowd
            g_tube, p_tube = (g_class << 16) + g_id, (p_class << 16) + p_id
            g_area.update(counts(g_tube[truth]))
            p_area.update(counts(p_tube[guess]))
            both.update(counts(g_tube[truth & guess] * OFFSET + p_tube[truth & guess]))
        for pair, inter in both.items():
            g, p = divmod(pair, OFFSET)
            association += inter * (inter / (g_area[g] + p_area[p] - inter)) / g_area[g]
        tubes += len(g_area)
    confusion[num_classes] = 0
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return math.sqrt((hits[union > 0] / union[union > 0]).mean() * association / tubes)


def tube_iou(one: list[Any], other: list[Any]) -> float:
    inter = union = 0.0
    for a, b in zip(one, other, strict=True):
        if a and b:
            inter += rle.area(rle.merge([a, b], True))
            union += rle.area(rle.merge([a, b], False))
        elif a or b:
            union += rle.area(a or b)
    return inter / union if union else 0.0


def greedy(ious: list[list[float]], threshold: float) -> list[bool]:
    free, hits = set(range(len(ious[0]) if ious else 0)), []
    for row in ious:
        best = max((g for g in free if row[g] >= threshold), key=lambda g: (row[g], g), default=None)
        free.discard(best)
        hits.append(best is not None)
    return hits


def track_ap(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Category by category, video by video, threshold by threshold; intersections of pairs of masks."""
    tracks: defaultdict[tuple[int, int], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, items in enumerate((truth["annotations"], results)):
        for item in items:
            tracks[item["category_id"], item["video_id"]][side].append(item)
    found = []
    for category in sorted({item["category_id"] for item in truth["annotations"]}):
        cells = []
        for video in sorted(v["id"] for v in truth["videos"]):
            gt, dt = tracks[category, video]
            dt = sorted(dt, key=lambda d: -d["score"])[:100]
            ious = [[tube_iou(d["segmentations"], g["segmentations"]) for g in gt] for d in dt]
            cells.append((gt, dt, ious))
        total = sum(len(gt) for gt, _, _ in cells)
        score = np.array([d["score"] for _, dt, _ in cells for d in dt])
        order = np.argsort(-score, kind="stable")
        for threshold in np.linspace(0.5, 0.95, 10):
            hit = np.array([h for _, _, ious in cells for h in greedy(ious, threshold)], dtype=bool)[order]
            tp, fp = np.cumsum(hit), np.cumsum(~hit)
            precision = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
            at = np.searchsorted(tp / total, np.linspace(0, 1, 101), side="left")
            found += [precision[i] if i < len(precision) else 0.0 for i in at]
    return float(np.mean(found))


def hota(videos: list[Any], categories: list[int]) -> float:
    """Each category by itself: IoU matrices of its masks in each frame, one assignment a frame."""
    alphas, found = np.arange(0.05, 0.99, 0.05), []
    for category in categories:
        tp, joint, truth, guess = np.zeros(19), np.zeros(19), 0, 0
        for gt, pred, gt_categories, pred_categories in videos:
            gs = [i for i, c in gt_categories.items() if c == category]
            ps = [i for i, c in pred_categories.items() if c == category]
            ious, g_seen, p_seen = [], np.zeros(len(gs)), np.zeros(len(ps))
            agreed = np.zeros((len(gs), len(ps)))
            for g_map, p_map in zip(gt, pred, strict=True):
                g_masks, p_masks = [g_map == i for i in gs], [p_map == i for i in ps]
                iou = np.array([[(g & p).sum() / max((g | p).sum(), 1) for p in p_masks] for g in g_masks])
                iou = iou.reshape(agreed.shape)
                either = iou.sum(0)[None] + iou.sum(1)[:, None] - iou
                agreed += np.divide(iou, either, out=np.zeros_like(iou), where=either > 0)
                g_seen += [g.any() for g in g_masks]
                p_seen += [p.any() for p in p_masks]
                ious.append(iou)
            score = agreed / np.maximum(g_seen[:, None] + p_seen - agreed, 1e-9)
            met = np.zeros((19, *agreed.shape))
            for iou in ious:
                for i, j in zip(*linear_sum_assignment(-(score * iou)), strict=True):
                    met[:, i, j] += iou[i, j] >= alphas - np.finfo(float).eps
            tp += met.sum((1, 2))
            joint += (met * met / np.maximum(g_seen[:, None] + p_seen - met, 1)).sum((1, 2))
            truth, guess = truth + g_seen.sum(), guess + p_seen.sum()
        if truth + guess:
            found.append(np.sqrt(tp / np.maximum(truth + guess - tp, 1) * joint / np.maximum(tp, 1)).mean())
    return float(np.mean(found))
