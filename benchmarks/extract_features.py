"""The feature extractor against a naive per-frame loop: described frames and seconds of video a second.

    python benchmarks/extract_features.py [VIDEOS] [--rounds 5]

Without VIDEOS: the eight clips of ../shared/data/video_small.tar. A small timm network with random weights,
at 1 and at 8 frames a second. The naive loop converts each frame of the video to RGB, takes those that are
due, and sends them one by one through PIL's resizing and the network, one after the other; it keeps float32
rows and saves them. Both use one thread for the network; the extractor's decoding has its own. Without a
second core (taskset) its gain is that of less work alone. The two take turns; the median of the rounds'
ratios is reported, and how well the features agree.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine
from PIL import Image

from vlkd.infer.features import Stream, extract
from vlkd.infer.features_cli import find_videos
from vlkd.infer.video import VideoFile
from vlkd.models.frame_features import FrameFeatures, image_features

RESULT = Path(__file__).parent / "results" / "extract_features.md"
PACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "video_small.tar"
NETWORK, RATES = "timm:mobilenetv3_small_050", (1.0, 8.0)
MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def naive(video: Path, tower: FrameFeatures, rate: float, out: Path) -> int:
    """As written first: every frame to RGB, those that are due through PIL and the network, one by one."""
    rows: list[np.ndarray] = []

    def describe(pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels).resize(tower.crop[::-1], MODES[tower.mode])
        found = tower(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
        rows.append(torch.nn.functional.normalize(found, dim=1)[0].numpy())

    before = None
    for frame in VideoFile(video):
        while before is not None and len(rows) / rate < frame.time - 1e-6:
            describe(before)
        before = frame.image
        last = frame.time
    if before is not None and len(rows) / rate <= last:
        describe(before)
    np.save(out / f"{video.stem}.npy", np.stack(rows))
    return len(rows)


def measure(videos: list[Path], tower: FrameFeatures, rate: float, rounds: int) -> dict[str, list[float]]:
    """Frames a second of both forms in each round, and the cosine of their rows."""
    found: dict[str, list[float]] = {"naive": [], "ours": [], "cosine": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        stream = Stream("image", tower, rate)
        for _ in range(rounds):
            start = time.perf_counter()
            count = sum(naive(video, tower, rate, out) for video in videos)
            found["naive"].append(count / (time.perf_counter() - start))
            start = time.perf_counter()
            rows = [extract(video, [stream], out, video.stem)["image"]["rows"] for video in videos]
            found["ours"].append(sum(rows) / (time.perf_counter() - start))
        for video in videos:
            first = np.load(out / f"{video.stem}.npy")
            second = np.load(out / f"{video.stem}.image.npy").astype(np.float32)
            shared = min(len(first), len(second))
            found["cosine"] += (first[:shared] * second[:shared]).sum(1).tolist()
    return found


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tower = image_features(NETWORK, "random")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        if not options.videos:
            with tarfile.open(PACK) as tar:
                tar.extractall(folder, filter="data")
        videos, problems = find_videos(
            options.videos or [f"{folder}/video_small/clips"], Path(folder) / "out"
        )
        if problems or not videos:
            raise SystemExit("\n".join(problems) or "no video")
        sources = [VideoFile(video) for video in videos]
        seconds = sum((source.frames or 0) / source.fps for source in sources)
        for rate in RATES:
            found = measure(videos, tower, rate, options.rounds)
            slow, fast = statistics.median(found["naive"]), statistics.median(found["ours"])
            ratios = [b / a for a, b in zip(found["naive"], found["ours"], strict=True)]
            lines.append(
                f"| {rate:g} | {slow:.1f} | {fast:.1f} | {fast / rate:.0f} | {statistics.median(ratios):.2f} "
                f"| {min(ratios):.2f} to {max(ratios):.2f} "
                f"| {statistics.mean(found['cosine']):.5f}, {min(found['cosine']):.5f} |"
            )
    text = "\n".join(
        [
            "# Feature extraction against a naive per-frame loop",
            "",
            f"{machine()} {len(videos)} videos of {seconds:.0f} s in all, {NETWORK} with random weights at "
            f"{tower.crop[0]}x{tower.crop[1]}, one thread for the network; {options.rounds} rounds, medians.",
            "",
            "| features a second of video | naive, frames/s | ours, frames/s | ours, s of video/s | ratio "
            "| ratio, all rounds | cosine: mean, least |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
