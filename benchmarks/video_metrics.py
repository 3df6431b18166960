"""Time and memory of the video scores against the formulas as they read: python benchmarks/video_metrics.py

Made videos: 30 moving regions, about half of them things, one void, and a prediction with bent borders, wrong
classes, changes of id and specks; each predicted thing is ten results, two of its class. Both forms score
every video and must agree.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import naive_video_metrics as naive
import numpy as np
import torch
from machine import machine
from pycocotools import mask as rle

from vlkd.metrics import ConsistencyMetric, HOTAMetric, STQMetric, TrackAPMetric, VPQMetric

RESULT = Path(__file__).parent / "results" / "video_metrics.md"
FRAMES, HEIGHT, WIDTH = 40, 480, 720
CLASSES, THINGS, VOID, REGIONS = 124, 58, 255, 30
WINDOWS = (1, 2, 4, 6, 8)


class Video(NamedTuple):
    """One video in the forms that the scores take."""

    semantic: tuple[np.ndarray, np.ndarray]
    instance: tuple[np.ndarray, np.ndarray]
    ids: tuple[np.ndarray, np.ndarray]
    categories: tuple[dict[int, int], dict[int, int]]
    things: tuple[Any, ...]
    record: dict[str, Any]
    tracks: list[dict[str, Any]]
    results: list[dict[str, Any]]


def regions(points: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Index (H,W) of the nearest of the points (R,2), seen through a bend (2,H/2,W/2) of the plane."""
    y, x = np.mgrid[:HEIGHT:2, :WIDTH:2].astype(np.float32) + bend
    nearest, best = np.zeros(y.shape, np.uint8), np.full(y.shape, np.inf, np.float32)
    for i, (py, px) in enumerate(points):
        distance = (y - py) ** 2 + (x - px) ** 2
        closer = distance < best
        nearest[closer], best[closer] = i, distance[closer]
    return nearest.repeat(2, 0).repeat(2, 1)


def made_video(index: int) -> Video:
    rng = np.random.default_rng(index)
    points = (rng.random((REGIONS, 2)) * (HEIGHT, WIDTH)).astype(np.float32)
    speed = rng.normal(0, 2, (REGIONS, 2)).astype(np.float32)
    steps = np.linspace(0, 6.28, WIDTH // 2, dtype=np.float32)
    truth, guess = np.empty((2, FRAMES, HEIGHT, WIDTH), np.uint8)
    for t in range(FRAMES):
        truth[t] = regions(points + speed * t, np.zeros((2, 1, 1), np.float32))
        waves = 4 * np.sin(rng.integers(3, 9) * steps[None, None] + steps[None, : HEIGHT // 2, None] * 5 + t)
        guess[t] = regions(points + speed * t + rng.normal(0, 2, points.shape).astype(np.float32), waves)
        specks = rng.integers(0, HEIGHT * WIDTH, HEIGHT * WIDTH // 1000)
        guess[t].reshape(-1)[specks] = rng.integers(0, REGIONS, len(specks))
    changed = rng.random(REGIONS) < 0.2  # regions whose id changes in the middle of the video
    half = FRAMES // 2
    guess[half:] += (changed[guess[half:]] * REGIONS).astype(np.uint8)

    # Region 0 is void; one of five predicted classes is wrong.
    spread = rng.integers(0, THINGS, REGIONS)
    gt_class = np.where(rng.random(REGIONS) < 0.5, spread, THINGS + spread)
    gt_class[0] = VOID
    pred_class = np.where(rng.random(REGIONS) < 0.2, rng.integers(0, CLASSES, REGIONS), gt_class)
    pred_class[0] = VOID
    pred_class = np.tile(pred_class, 2)
    gt_ids = np.append(0, rng.choice(1 << 24, REGIONS - 1) + 1).astype(np.int32)
    pred_ids = np.append(0, rng.choice(1 << 24, 2 * REGIONS - 1) + 1).astype(np.int32)
    pred_ids[REGIONS] = 0
    numbers = np.arange(2 * REGIONS, dtype=np.uint8)
    tables = [
        dict(zip(i.tolist(), c.tolist(), strict=True))
        for i, c in ((gt_ids, gt_class), (pred_ids, pred_class))
    ]
    for table in tables:
        table.pop(0)
    record = {"id": index, "height": HEIGHT, "width": WIDTH, "length": FRAMES}
    return Video(
        (gt_class.astype(np.uint8)[truth], pred_class.astype(np.uint8)[guess]),
        (numbers[truth], numbers[guess]),
        (gt_ids[truth], pred_ids[guess]),
        (tables[0], tables[1]),
        things((gt_ids[truth], pred_ids[guess]), tables),
        record,
        tracks(index, truth, gt_class, None),
        tracks(index, guess, pred_class, rng),
    )


def things(maps: tuple[np.ndarray, ...], tables: list[dict[int, int]]) -> tuple[Any, ...]:
    """Ids (T,H,W) of things, 0 elsewhere, and their classes."""
    kept = [{i: c for i, c in table.items() if c < THINGS} for table in tables]
    return *(np.where(np.isin(m, list(k)), m, 0) for m, k in zip(maps, kept, strict=True)), *kept


def tracks(
    video: int, labels: np.ndarray, classes: np.ndarray, rng: np.random.Generator | None
) -> list[dict[str, Any]]:
    """Things as tracks of RLE masks; with a generator ten results for each, two of its class, with scores."""
    found = []
    for i in np.flatnonzero(classes < THINGS):
        masks = [rle.encode(np.asfortranarray(frame == i, dtype=np.uint8)) for frame in labels]
        segmentations = [mask if rle.area(mask) else None for mask in masks]
        track = {"video_id": video, "category_id": int(classes[i]), "segmentations": segmentations}
        if rng is None:
            found.append(track)
            continue
        for category in (classes[i], classes[i], *rng.integers(0, THINGS, 8)):
            found.append(track | {"category_id": int(category), "score": float(rng.random())})
    return found


def ours_vc(videos: list[Video]) -> float:
    metric = ConsistencyMetric([8, 16])
    for video in videos:
        metric.update(*video.semantic)
    scores = metric.compute()
    return (scores["VC8"] + scores["VC16"]) / 2


def naive_vc(videos: list[Video]) -> float:
    maps = [video.semantic for video in videos]
    return (naive.vc(maps, 8) + naive.vc(maps, 16)) / 2


def ours_vpq(videos: list[Video]) -> float:
    metric = VPQMetric([c < THINGS for c in range(CLASSES)], WINDOWS)
    for video in videos:
        metric.update(*video.ids, *video.categories)
    return metric.compute()["all"]


def naive_vpq(videos: list[Video]) -> float:
    return naive.vpq([(*video.ids, *video.categories) for video in videos], WINDOWS, CLASSES)


def stq_maps(video: Video) -> tuple[np.ndarray, ...]:
    (gt_class, pred_class), (gt_id, pred_id) = video.semantic, video.instance
    return gt_class, gt_id, pred_class, pred_id


def ours_stq(videos: list[Video]) -> float:
    metric = STQMetric(CLASSES, range(THINGS), VOID)
    for video in videos:
        metric.update(*stq_maps(video))
    return metric.compute()["STQ"]


def naive_stq(videos: list[Video]) -> float:
    return naive.stq([stq_maps(video) for video in videos], CLASSES, list(range(THINGS)), VOID)


def ours_ap(videos: list[Video]) -> float:
    metric = TrackAPMetric([{"id": c} for c in range(CLASSES)])
    for video in videos:
        metric.update(video.record, video.tracks, video.results)
    return metric.compute()["AP"]


def naive_ap(videos: list[Video]) -> float:
    truth = {"videos": [v.record for v in videos], "annotations": [t for v in videos for t in v.tracks]}
    return naive.track_ap(truth, [r for v in videos for r in v.results])


def ours_hota(videos: list[Video]) -> float:
    metric = HOTAMetric(range(THINGS))
    for video in videos:
        metric.update(*video.things)
    return metric.compute()["HOTA"]


def naive_hota(videos: list[Video]) -> float:
    return naive.hota([video.things for video in videos], list(range(THINGS)))


FORMS: dict[str, tuple[Callable[..., float], Callable[..., float]]] = {
    "VC8 and VC16": (naive_vc, ours_vc),
    "VPQ (1, 2, 4, 6, 8)": (naive_vpq, ours_vpq),
    "STQ": (naive_stq, ours_stq),
    "AP": (naive_ap, ours_ap),
    "HOTA": (naive_hota, ours_hota),
}


def seconds(form: Callable[..., float], videos: list[Video]) -> tuple[float, float]:
    start = time.process_time()
    value = form(videos)
    return value, time.process_time() - start


def peak(form: Callable[..., float], videos: list[Video]) -> float:
    """Highest MB that Python and numpy hold above the inputs."""
    tracemalloc.start()
    form(videos)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=50)
    count = parser.parse_args().videos
    torch.set_num_threads(1)
    spent = {name: [0.0, 0.0] for name in FORMS}
    for index in range(count):
        video = made_video(index)
        for name, forms in FORMS.items():
            (wanted, slow), (found, quick) = (seconds(form, [video]) for form in forms)
            if not abs(found - wanted) <= 1e-9 * abs(wanted):
                raise SystemExit(f"{name}, video {index}: {found!r}, naive {wanted!r}")
            spent[name][0] += slow
            spent[name][1] += quick
    lines = [
        "# Video scores: ours against the formula as it reads",
        "",
        f"`python benchmarks/video_metrics.py --videos {count}`. {machine()} {count} made videos of {FRAMES} "
        f"frames, {WIDTH} x {HEIGHT}, {CLASSES} classes, in one process. CPU seconds for all videos; the "
        "scores of every video agree to 1e-9. Memory: highest that numpy and Python hold above one video's "
        "maps (pycocotools' own is not in it).",
        "",
        "| score | naive s | ours s | faster | naive MB | ours MB | leaner |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (slow, quick) in spent.items():
        large, small = (peak(form, [video]) for form in FORMS[name])
        lines.append(
            f"| {name} | {slow:.2f} | {quick:.2f} | {slow / quick:.1f}x | {large:.1f} | {small:.2f} "
            f"| {large / small:.1f}x |"
        )
    print("\n".join(lines))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
