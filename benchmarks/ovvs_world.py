"""Students on videos of the procedural world: python benchmarks/ovvs_world.py [--seeds 0,1,2] [--rows 0,1]

For each seed an image student (configs/gkc/world.yaml, twice its epochs) is trained on to a video student,
and, as a control, on single frames of the same videos for as many steps of as many frames. Scores by
configs/ovvs/world.yaml go to benchmarks/results/ovvs_world.md after every run; finished runs are read back
from benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from cifar_table import CONFIGS, HERE, train
from machine import machine

from vlkd.engine.cli import main as vlkd
from vlkd.engine.video_benchmark.settings import open_benchmark, read_settings
from vlkd.infer import VideoPredictor

RUNS = HERE / "runs" / "ovvs_world"
WORLD = "--benchmark.world.seed=100"  # videos of a world that nothing was chosen on
VIDEO = CONFIGS / "gkc" / "world_video.yaml"
OVVS = CONFIGS / "ovvs" / "world.yaml"
# Row -> the student and what its test has different.
ROWS: dict[str, tuple[str, list[str]]] = {
    "image student": ("image", []),
    "image student, smoothed": ("image", ["--benchmark.smoothing=0.5"]),
    "image student, on single frames": ("single", []),
    "video student": ("video", []),
    "video student, queries matched": ("video", ["--benchmark.tracking=match"]),
}
MORE = {
    "video": [],
    "single": [
        "--model.student.init_args.memory=false",
        "--data.frames=1",
        "--data.batch_size=12",
        "--trainer.max_epochs=24",
        "--trainer.check_val_every_n_epoch=24",
    ],
}
COLUMNS = {
    "mIoU base": "mIoU_base",
    "mIoU novel": "mIoU_novel",
    "VC8": "VC8",
    "VC16": "VC16",
    "VC8 correct": "VC8_correct",
    "VPQ %": "VPQ",
    "STQ": "STQ",
    "AP base": "AP_base",
    "AP novel": "AP_novel",
}


def student(name: str, seed: int) -> Path:
    """Bundle of a student, trained unless it is there."""
    seeds = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    if name == "image":
        config, options = CONFIGS / "gkc" / "world.yaml", ["--trainer.max_epochs=8"]
    else:
        config, options = VIDEO, [f"--model.init={student('image', seed)}", *MORE[name]]
    run = RUNS / f"{name}-{seed}"
    train(config, run, [*seeds, *options])
    return next(run.glob("student-*.safetensors"))


def scored(row: str, seed: int) -> dict[str, Any]:
    """The content of scores.json of a row."""
    name, options = ROWS[row]
    out = RUNS / f"test-{list(ROWS).index(row)}-{seed}"
    if not (out / "scores.json").is_file():
        model = ["--model", str(student(name, seed)), "--out", str(out)]
        if code := vlkd(["test", str(OVVS), *model, *options, WORLD]):
            raise SystemExit(code)
    return json.loads((out / "scores.json").read_text())


def speeds(rows: list[str], seed: int) -> dict[str, float]:
    """Frames a second of each row, all forms of predictions: in turn on one video, median of the frames."""
    settings = read_settings(OVVS)
    dataset = open_benchmark(settings)
    frames = list(dataset[0].frames())
    predictors, times = {}, {row: list[float]() for row in rows}
    for row in rows:
        name, options = ROWS[row]
        given = read_settings(OVVS, options)
        predictors[row] = VideoPredictor.from_bundle(
            student(name, seed),
            tracking=given.tracking,
            smoothing=given.smoothing,
            object_threshold=given.object_threshold,
        )
    for _ in range(5):
        for row, predictor in predictors.items():
            session = predictor.start(dataset.names, dataset.isthing)
            times[row] += [session(frame).ms for frame in frames][1:]
    return {row: 1000 / statistics.median(found) for row, found in times.items()}


def cell(values: list[float]) -> str:
    """Mean and range."""
    digits = 1 if max(values) > 2 else 3
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def write(found: dict[str, list[dict[str, Any]]], fps: dict[str, float]) -> None:
    """The table as far as it has come."""
    lines = [
        "# Students on videos of the procedural world",
        "",
        "`python benchmarks/ovvs_world.py`: `configs/ovvs/world.yaml`, world seed 100, 24 videos of 24 "
        "frames at 160 x 128, all 46 names as candidates, 10 of them novel; object threshold 0.5, smoothing "
        "0.5; mean (range) over the seeds that are done. Speed: one thread, all forms of predictions, rows "
        f"in turn on one video, median of the frames. {machine()}",
        "",
        f"| student | seeds | {' | '.join(COLUMNS)} | frames a second |",
        f"|---|---|{'---|' * len(COLUMNS)}---|",
    ]
    for row, results in found.items():
        if results:
            cells = [cell([result["scores"][key] for result in results]) for key in COLUMNS.values()]
            speed = f"{fps[row]:.0f}" if row in fps else ""
            lines.append(f"| {row} | {len(results)} | {' | '.join(cells)} | {speed} |")
    (HERE / "results" / "ovvs_world.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(map(str, range(len(ROWS)))))
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for seed in map(int, arguments.seeds.split(",")):
        for number in map(int, arguments.rows.split(",")):
            row = list(ROWS)[number]
            found[row].append(scored(row, seed))
            write(found, {})
    torch.set_num_threads(1)
    write(found, speeds([row for row in found if found[row]], int(arguments.seeds.split(",")[0])))


if __name__ == "__main__":
    main()
