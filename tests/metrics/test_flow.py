"""TC against grid_sample, as the official evaluator computes it, and on motions that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd.errors import UserError
from vlkd.metrics import FlowConsistencyMetric
from vlkd.metrics.video.flow import warped

RNG = np.random.default_rng(0)


def sampled(labels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The warp in the official form: a grid scaled by W - 1, sampled with align_corners=False."""
    height, width = labels.shape
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float64) + flow
    grid = 2 * grid / np.array([width - 1, height - 1]) - 1
    image = torch.from_numpy(labels).double()[None, None]
    found = torch.nn.functional.grid_sample(
        image, torch.from_numpy(grid)[None], mode="nearest", align_corners=False
    )
    return found[0, 0].long().numpy()


def test_warp_with_parity_is_grid_sample() -> None:
    for shape in ((7, 9), (16, 5), (33, 40)):
        labels, flow = RNG.integers(0, 6, shape), RNG.normal(0, 3, (*shape, 2))
        np.testing.assert_array_equal(warped(labels, flow), sampled(labels, flow))


def test_warp_follows_the_flow() -> None:
    labels = np.arange(12).reshape(3, 4)
    flow = np.zeros((3, 4, 2))
    flow[..., 0] = 1
    np.testing.assert_array_equal(
        warped(labels, flow, parity=False), [[1, 2, 3, -1], [5, 6, 7, -1], [9, 10, 11, -1]]
    )


def test_labels_that_move_with_the_pixels_are_consistent() -> None:
    wide = RNG.integers(0, 4, (12, 30))
    labels = np.stack([wide[:, 5 - t : 25 - t] for t in range(5)])
    images = [np.zeros((12, 20, 3), np.uint8)] * 5
    right, still = np.zeros((12, 20, 2)), np.zeros((12, 20, 2))
    right[..., 0] = 1
    scores = []
    for flow in (right, still):
        metric = FlowConsistencyMetric(4, parity=False)
        metric.update(labels, images, lambda a, b, flow=flow: flow)
        scores.append(metric.compute()["TC"])
    assert scores[0] == 1
    assert scores[1] < 0.4


def test_score_is_the_mean_iou_of_all_pairs_and_merges() -> None:
    videos = [RNG.integers(0, 3, (t, 6, 8)).astype(np.uint8) for t in (2, 4)]
    flows = [RNG.normal(0, 1, (6, 8, 2)) for _ in range(4)]
    whole, parts = FlowConsistencyMetric(3), [FlowConsistencyMetric(3) for _ in videos]
    counts = np.zeros((3, 3))
    for labels, part in zip(videos, parts, strict=True):
        images = [np.full((6, 8, 3), t, np.uint8) for t in range(len(labels))]
        for metric in (whole, part):
            metric.update(labels, iter(images), lambda a, b: flows[a[0, 0, 0]])
        for t in range(len(labels) - 1):
            np.add.at(counts, (labels[t], sampled(labels[t + 1], flows[t])), 1)
    hits = np.diag(counts)
    expected = np.mean(hits / (counts.sum(0) + counts.sum(1) - hits))
    assert whole.compute()["TC"] == pytest.approx(expected, abs=1e-12)
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()


def test_void_takes_no_part_and_more_than_255_classes_work() -> None:
    labels = np.array([[[300, 65535, 2]], [[300, 7, 65535]]], dtype=np.uint16)
    metric = FlowConsistencyMetric(400, parity=False)
    metric.update(labels, [np.zeros((1, 3, 3), np.uint8)] * 2, lambda a, b: np.zeros((1, 3, 2)))
    assert metric.counts.sum() == 1
    assert metric.compute()["TC"] == 1


def test_numbers_of_frames_must_agree() -> None:
    labels, zero = np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 2))
    for count in (2, 4):
        with pytest.raises(UserError, match="3 label maps"):
            FlowConsistencyMetric(2).update(
                labels, [np.zeros((4, 4, 3), np.uint8)] * count, lambda a, b: zero
            )
    with pytest.raises(UserError, match=r"flow of shape \(3, 4, 2\)"):
        FlowConsistencyMetric(2).update(labels, [np.zeros((4, 4, 3))] * 3, lambda a, b: zero[:3])
