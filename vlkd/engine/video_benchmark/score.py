"""Scores of a data set's predictions, one video in memory at a time; those of each video are kept too."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlkd.engine.video_benchmark.measures import MEASURES, Semantic, rule_of
from vlkd.engine.video_benchmark.settings import FORM_OF, Benchmark
from vlkd.engine.video_benchmark.videos import Pair, ahead
from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.data.predictions import Predictions
    from vlkd.data.video import VideoDataset

RULES = {"ytvis": "YouTube-VIS", "lvvis": "LV-VIS", "burst": "BURST, annotated frames"}
PER_VIDEO = re.compile(r"mIoU|VC\d+|TC|VPQ|STQ|AP|HOTA")  # scores kept for each video


class Scorer:
    """All that is measured on a data set, and on each of its videos.

    Args:
        names: what is measured, of MEASURES.
    """

    def __init__(self, dataset: VideoDataset, settings: Benchmark, names: Sequence[str]) -> None:
        self.dataset, self.settings = dataset, settings
        self.measures = {name: MEASURES[name](dataset, settings) for name in names}
        self.videos: dict[str, dict[str, float]] = {}

    def add(self, pair: Pair) -> None:
        """Count one video. Raises UserError, naming it, for predictions that do not fit its labels."""
        found: dict[str, float] = {}
        for name, total in self.measures.items():
            own = MEASURES[name](self.dataset, self.settings)
            try:
                own.add(pair)
            except UserError as error:
                text = str(error).removeprefix("video 0: ").removeprefix(f"video {pair.number}: ")
                named = text.startswith(f"video {pair.record.id}")
                raise UserError(text if named else f"video {pair.record.id}: {text}") from None
            total.merge(own)
            found |= {k: v for k, v in own.scores().items() if PER_VIDEO.fullmatch(k)}
        self.videos[pair.record.id] = found

    def scores(self) -> dict[str, float]:
        """Of all videos so far."""
        return {k: v for measure in self.measures.values() for k, v in measure.scores().items()}

    def classes(self) -> list[dict[str, Any]]:
        """As Semantic.classes; none where labels are no classes of pixels."""
        semantic = self.measures.get("mIoU")
        return semantic.classes() if isinstance(semantic, Semantic) else []


def score(
    dataset: VideoDataset, predictions: Predictions, settings: Benchmark, names: Sequence[str]
) -> Scorer:
    """Scores of all annotated videos, the next ones being read meanwhile; progress on a terminal."""
    from vlkd.infer.cli import progress_bars

    scorer = Scorer(dataset, settings, names)
    forms = sorted({FORM_OF[name] for name in names})
    chosen = [number for number, record in enumerate(dataset) if record.annotated and record.labelled]

    def load(number: int) -> Pair:
        return Pair(number, dataset[number], predictions).load(forms)

    with progress_bars() as progress:
        pairs = ahead(load, chosen, settings.readers, settings.readers)
        for pair in progress.track(pairs, total=len(chosen), description="scoring"):
            scorer.add(pair)
    return scorer


def protocol(
    dataset: VideoDataset, settings: Benchmark, names: Sequence[str], how: Mapping[str, Any]
) -> dict[str, Any]:
    """What the scores hold for; `how` are the settings under which the predictions were made."""
    data = settings.dataset
    flags: dict[str, Any] = {
        "data": data.kind + (f" (the world, seed {settings.world.seed})" if settings.world.videos else ""),
        "split": data.split,
        "subset": data.subset or "none: all labels",
        "videos": len(dataset),
        "frames": sum(len(record) for record in dataset),
        "classes": f"{len(dataset.names)}, of which {len(dataset.candidates)} may be predicted",
    }
    if dataset.novel:
        flags["base / novel"] = f"{len(dataset.base)} / {len(dataset.novel)}"
    flags |= how
    flags |= _rules(settings, names)
    return flags


def _rules(settings: Benchmark, names: Collection[str]) -> dict[str, str]:
    rules = {
        "mIoU": "mean over classes in the ground truth, one confusion matrix for the split",
        "VC": "official rule: compared with itself, last window of each video left out",
        "TC": f"official rule, all videos, flow by {settings.flow}",
        "VPQ": f"percent, mean over windows of {', '.join(map(str, settings.vpq_windows))} frames",
        "STQ": "official rule, instances numbered from 1",
        "AP": f"rule of {RULES[rule_of(settings)]}",
        "HOTA": f"rule of BURST, highest score on top, scores from {settings.hota_floor}",
    }
    return {name: rule for name, rule in rules.items() if name in names}
