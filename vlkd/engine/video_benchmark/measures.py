"""What can be measured on a data set's predictions, each in one pass over the videos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.sample import void_label
from vlkd.engine.video_benchmark.settings import Benchmark
from vlkd.metrics import (
    ConsistencyMetric,
    FlowConsistencyMetric,
    HOTAMetric,
    STQMetric,
    TrackAPMetric,
    VPQMetric,
    confusion_matrix,
    fwiou,
    macc,
    miou,
    pacc,
    per_class_iou,
)
from vlkd.metrics.video.burst import judged

if TYPE_CHECKING:
    from vlkd.data.video import VideoDataset
    from vlkd.engine.video_benchmark.videos import Pair
    from vlkd.metrics.video.shared import VideoMetric


class Measure(ABC):
    """Some scores of a data set: add() videos, merge() what another process counted, scores()."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        self.dataset, self.settings = dataset, settings
        self.groups: dict[str, frozenset[int]] = (
            {"base": dataset.base, "novel": dataset.novel} if dataset.novel else {}
        )

    @abstractmethod
    def add(self, pair: Pair) -> None:
        """Count one video."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add all that `other` has counted."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """By name; a group's have its name as suffix."""


class Semantic(Measure):
    """mIoU, fwIoU, mACC, pACC; `confusion` (K,K+1) holds the counts."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        count = len(dataset.names)
        self.confusion: NDArray[np.int64] = np.zeros((count, count + 1), np.int64)

    def add(self, pair: Pair) -> None:
        count = len(self.dataset.names)
        for truth, guess in zip(*pair.semantic, strict=True):
            self.confusion += confusion_matrix(truth, guess, count, void_label(count), void_column=True)

    def merge(self, other: Semantic) -> None:
        self.confusion += other.confusion

    def scores(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, measure in {"mIoU": miou, "fwIoU": fwiou, "mACC": macc, "pACC": pacc}.items():
            found[name] = measure(self.confusion)
            found |= {f"{name}_{group}": measure(self.confusion, c) for group, c in self.groups.items()}
        return found | {"mIoU_union": miou(self.confusion, convention="union")}

    def classes(self) -> list[dict[str, Any]]:
        """Name, group, IoU (nan where in neither map) and share of the labelled pixels of every class."""
        truth = self.confusion.sum(1)
        shares = truth / max(1, truth.sum())
        return [
            {
                "name": name,
                "group": next((g for g, members in self.groups.items() if k in members), None),
                "iou": float(iou),
                "share": float(shares[k]),
            }
            for k, (name, iou) in enumerate(
                zip(self.dataset.names, per_class_iou(self.confusion), strict=True)
            )
        ]


class MetricMeasure(Measure):
    """A measure whose counts, and scores unless told otherwise, are those of one metric."""

    metric: VideoMetric

    def merge(self, other: MetricMeasure) -> None:
        self.metric.merge(other.metric)

    def scores(self) -> dict[str, float]:
        return self.metric.compute()


class Consistency(MetricMeasure):
    """VC_n by the official rule, and its correct form."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        void = void_label(len(dataset.names))
        self.metric = ConsistencyMetric(settings.vc_windows, void=void, sync_on_compute=False)

    def add(self, pair: Pair) -> None:
        self.metric.update(*pair.semantic)


class FlowConsistency(MetricMeasure):
    """TC by the official rule, but over all videos."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        self.metric = FlowConsistencyMetric(len(dataset.names), sync_on_compute=False)

    def add(self, pair: Pair) -> None:
        assert self.settings.flow
        frames = map(pair.record.frame, pair.record.labelled)
        self.metric.update(pair.semantic[1], frames, flow_of(self.settings.flow, self.settings.device))


@lru_cache(maxsize=1)
def flow_of(weights: str, device: str) -> Any:
    """The optical flow of a file of weights, see build_flow; the last one is kept. Raises UserError."""
    from vlkd.infer import build_flow

    return build_flow(weights, device)


class Panoptic(MetricMeasure):
    """VPQ over the windows, and of each window."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        self.metric = VPQMetric(dataset.isthing, settings.vpq_windows, **self.groups, sync_on_compute=False)

    def add(self, pair: Pair) -> None:
        truth, guess = pair.panoptic
        self.metric.update(truth.ids, guess.ids, truth.categories, guess.categories, truth.crowd)

    def scores(self) -> dict[str, float]:
        found = self.metric.compute()
        windows = found.pop("windows")
        named = {"VPQ": found} | {f"VPQ{k}": scores for k, scores in windows.items()}
        return {
            name if group == "all" else f"{name}_{group}": value
            for name, scores in named.items()
            for group, value in scores.items()
        }


class Tracking(MetricMeasure):
    """STQ, AQ, SQ."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        count = len(dataset.names)
        things = [k for k, thing in enumerate(dataset.isthing) if thing]
        self.metric = STQMetric(count, things, void_label(count), sync_on_compute=False)

    def add(self, pair: Pair) -> None:
        truth, guess = pair.panoptic
        instances = (
            np.where(np.isin(truth.ids, list(truth.crowd)), 0, truth.ids) if truth.crowd else truth.ids
        )
        self.metric.update(pair.true_classes, instances, guess.semantic(pair.void), guess.ids)


class TrackAP(MetricMeasure):
    """AP, AP50, AP75, AR1, AR10, AR100 of tracks."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        ids = dataset.vocabulary.ids
        groups = {name: [ids[k] for k in members] for name, members in self.groups.items()}
        self.metric = TrackAPMetric(
            [{"id": id} for id in ids], rule_of(settings), **groups, sync_on_compute=False
        )

    def add(self, pair: Pair) -> None:
        height, width = pair.record.size
        facts: dict[str, Any] = {
            "id": pair.number,
            "height": height,
            "width": width,
            "length": len(pair.record),
        }
        truth, guess = pair.tracks
        if self.settings.dataset.kind == "burst":
            ids, times = pair.record.vocabulary.ids, pair.record.labelled
            negative, partly = ([ids[k] for k in sorted(group)] for group in pair.labelled_in_part)
            facts |= {"length": len(times), "neg_category_ids": negative}
            facts |= {"not_exhaustive_category_ids": partly}
            truth, guess = (_at(rows, times) for rows in (truth, guess))
        self.metric.update(facts, truth, guess)

    def scores(self) -> dict[str, float]:
        found = self.metric.compute()
        return {k: v for k, v in found.items() if self.groups or k not in ("AP_base", "AP_novel")}


def _at(rows: Sequence[Mapping[str, Any]], times: Sequence[int]) -> list[dict[str, Any]]:
    """Tracks of some frames alone."""
    return [{**row, "segmentations": [row["segmentations"][t] for t in times]} for row in rows]


class Hota(Measure):
    """HOTA, DetA, AssA by category, by BURST's rules, and OWTA, whatever the category."""

    def __init__(self, dataset: VideoDataset, settings: Benchmark) -> None:
        super().__init__(dataset, settings)
        every = range(len(dataset.names))
        self.by_class = HOTAMetric(every, self.groups, of_truth=True, sync_on_compute=False)
        self.open_world = HOTAMetric(every, agnostic=True, sync_on_compute=False)

    def add(self, pair: Pair) -> None:
        truth, guess = pair.painted(self.settings.hota_floor)
        known = truth.categories, guess.categories
        self.open_world.update(truth.ids, guess.ids, *known)
        self.by_class.update(truth.ids, judged(truth.ids, guess.ids, *known, *pair.labelled_in_part), *known)

    def merge(self, other: Hota) -> None:
        self.by_class.merge(other.by_class)
        self.open_world.merge(other.open_world)

    def scores(self) -> dict[str, float]:
        found = self.by_class.compute()
        kept = {k: v for k, v in found.items() if k.partition("_")[0] in ("HOTA", "DetA", "AssA")}
        return kept | {"OWTA": self.open_world.compute()["OWTA"]}


MEASURES: dict[str, type[Measure]] = {
    "mIoU": Semantic,
    "VC": Consistency,
    "TC": FlowConsistency,
    "VPQ": Panoptic,
    "STQ": Tracking,
    "AP": TrackAP,
    "HOTA": Hota,
}


def rule_of(settings: Benchmark) -> Any:
    """The rule of track AP: LV-VIS and BURST have their own."""
    return settings.dataset.kind if settings.dataset.kind in ("lvvis", "burst") else "ytvis"
