"""The pictures of a report: the frames that went best and worst, each as frame, truth and prediction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlkd.engine.video_benchmark.settings import Benchmark
from vlkd.engine.video_benchmark.videos import Maps, Pair
from vlkd.infer.draw import overlay, palette
from vlkd.metrics import confusion_matrix, miou

if TYPE_CHECKING:
    from vlkd.data.predictions import Predictions
    from vlkd.data.video import VideoDataset

RANKED_BY = ("mIoU", "VPQ", "STQ", "AP", "HOTA")  # the first that a set has says which videos are best
LARGEST = 360  # pixels of a panel's long side
SMALLEST = 240
GREY = (120, 120, 120)  # of pixels without a label
GAP = 6


@dataclass(frozen=True)
class Strip:
    """One frame: picture (h,w,3) uint8 of three panels, what is said of it, and its legend.

    The legend has class name, colour, and where it is seen, "" for in both.
    """

    picture: NDArray[np.uint8]
    caption: str
    legend: list[tuple[str, tuple[int, ...], str]]


def best_and_worst(
    dataset: VideoDataset,
    predictions: Predictions,
    settings: Benchmark,
    forms: Collection[str],
    videos: dict[str, dict[str, float]],
    count: int = 3,
) -> tuple[str, list[Strip], list[Strip]]:
    """The score that ranks, and a frame of each of the `count` best and worst videos.

    Of a video the frame is shown that is best, or worst; where labels are tracks, the fullest one. Of the
    predictions only `forms` are looked at: others may be there and not be whole.
    """
    score = next((s for s in RANKED_BY if any(np.isfinite(v.get(s, np.nan)) for v in videos.values())), "")
    at = {record.id: i for i, record in enumerate(dataset)}
    values = {id: found[score] for id, found in videos.items() if np.isfinite(found.get(score, np.nan))}
    order = sorted(values, key=lambda id: values[id])
    # Few videos are not shown twice, a single one with its best and its worst frame.
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = [id for id in reversed(order) if id not in worst][:count] or worst

    def strips(ids: Sequence[str], choose: Callable[[Any], Any]) -> list[Strip]:
        pairs = [Pair(at[id], dataset[at[id]], predictions) for id in ids]
        return [
            _strip(pair, forms, settings, f"{score} {values[id]:.3g}", choose)
            for id, pair in zip(ids, pairs, strict=True)
        ]

    return score, strips(best, np.nanargmax), strips(worst, np.nanargmin)


def _strip(
    pair: Pair, forms: Collection[str], settings: Benchmark, score: str, choose: Callable[[Any], Any]
) -> Strip:
    if pair.record.form == "tracks" or "semantic" not in forms:
        of_segments = pair.record.form == "panoptic" and "panoptic" in forms
        maps = pair.panoptic if of_segments else pair.painted(settings.hota_floor)
        i = int(np.argmax([np.count_nonzero(frame) for frame in maps[0].ids]))
        segments = [(m.ids[i], m.categories) for m in maps]
        said = f"{score} in this video"
    else:
        truth, guess = pair.semantic
        frames = zip(truth, guess, strict=True)
        each = np.array([_frame_miou(t, g, len(pair.record.names), pair.void) for t, g in frames])
        i = int(choose(each)) if np.isfinite(each).any() else 0
        segments = [_by_class(labels[i], pair.void) for labels in (truth, guess)]
        said = f"mIoU {each[i]:.3g} in this frame, {score} in its video"
    t = pair.record.labelled[i]
    seen = [{categories[id] for id in np.unique(ids).tolist() if id} for ids, categories in segments]
    # Few classes are in one frame: colours of their own are easier to tell apart than some of hundreds.
    order = sorted(seen[0] | seen[1])
    colour_of = dict(zip(order, palette(len(order)), strict=True))
    image = pair.record.frame(t)
    # On grey the tint keeps its hue, so that it is the legend's.
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2).astype(np.uint8)
    drawn = [overlay(grey, *_coloured(*found, colour_of), strength=0.7) for found in segments]
    legend = _legend(seen[0], seen[1], pair.record.names, colour_of)
    if any((ids == 0).any() for ids, _ in segments):
        legend.append(("no label", GREY, ""))
    caption = f"{pair.record.id}, frame {pair.record.frame_files[t].stem}: {said}"
    return Strip(_side_by_side([image, *drawn]), caption, legend)


def _frame_miou(truth: Maps, guess: Maps, count: int, void: int) -> float:
    return miou(confusion_matrix(truth, guess, count, void, void_column=True))


def _by_class(labels: Maps, void: int) -> tuple[Maps, dict[int, int]]:
    """Labels (H,W) as segments, one for each class: ids, 0 = void, and their classes."""
    ids = np.where(labels == void, 0, labels.astype(np.int32) + 1)
    return ids, {id: id - 1 for id in np.unique(ids).tolist() if id}


def _coloured(ids: Maps, categories: dict[int, int], colour_of: dict[int, Any]) -> tuple[Maps, Maps]:
    """Places (H,W) of segments in a table of colours (S,3)."""
    distinct, places = np.unique(ids, return_inverse=True)
    colours = [colour_of[categories[id]] if id else GREY for id in distinct.tolist()]
    return places.reshape(ids.shape), np.array(colours, np.uint8)


def _legend(
    truth: set[int], guess: set[int], names: Sequence[str], colour_of: dict[int, Any]
) -> list[tuple[str, tuple[int, ...], str]]:
    marks = dict.fromkeys(truth & guess, "") | dict.fromkeys(truth - guess, "truth only")
    marks |= dict.fromkeys(guess - truth, "prediction only")
    order = sorted(marks, key=lambda k: (marks[k], k))
    return [(names[k], tuple(colour_of[k].tolist()), marks[k]) for k in order]


def _side_by_side(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels of one size beside each other, white between them, enlarged or reduced to a readable size."""
    from PIL import Image

    height, width = panels[0].shape[:2]
    longest = max(height, width)
    scale = min(1.0, LARGEST / longest) if longest > SMALLEST else -(-SMALLEST // longest)
    size = round(width * scale), round(height * scale)
    small = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in panels]
    gap = np.full((size[1], GAP, 3), 255, np.uint8)
    return np.concatenate([small[0], gap, small[1], gap, small[2]], axis=1)
