"""What each part of CLIPKD brings on the procedural world: python benchmarks/clipkd_world.py [--seeds 0,1]

Trains configs/clipkd/world.yaml with other weights for each row and seed, for the same steps, pictures and
batch, and writes benchmarks/results/clipkd_world.md after every run; finished runs are read back from
benchmarks/runs/, so an interrupted table goes on where it stopped. Further words are overrides of the config.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from machine import machine

from vlkd.engine.bundle import read_card
from vlkd.engine.cli import main as vlkd

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "clipkd" / "world.yaml"
ROWS = {
    "from scratch": "{contrastive: 1}",
    "feature": "{feature: 4}",
    "feature + contrastive": "{contrastive: 1, feature: 4}",
    "contrastive + feature + interactive + affinity": (
        "{contrastive: 1, feature: 4, interactive: 1, affinity: 1}"
    ),
}
SCORES = ("accuracy", *(f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)))


def train(row: str, seed: int, extra: list[str]) -> dict[str, float]:
    """Scores of one run at its last step, trained unless its bundle is there already."""
    run = HERE / "runs" / f"clipkd_world-{list(ROWS).index(row)}-{seed}"
    if not list(run.glob("student-*.safetensors")):
        resume = (run / "last.ckpt").exists()
        start = ["--resume", str(run)] if resume else [str(CONFIG), "--run", str(run), "--no-gate"]
        own = [f"--model.weights={ROWS[row]}", f"--seed_everything={seed}", f"--data.seed={seed}", *extra]
        if code := vlkd(["train", *start, *([] if resume else own)]):
            raise SystemExit(code)
    return read_card(next(run.glob("student-*.safetensors")))["scores"]


def write(found: dict[str, list[dict[str, float]]], seeds: list[int], extra: list[str]) -> None:
    """The table as far as it has come."""
    command = " ".join(["python benchmarks/clipkd_world.py --seeds", ",".join(map(str, seeds)), *extra])
    heads = [name.replace("image_to_text_", "i→t ").replace("text_to_image_", "t→i ") for name in SCORES]
    lines = [
        "# CLIPKD on the procedural world",
        "",
        f"`{command}`, config `configs/clipkd/world.yaml` (clip-world-m -> vlkd-clip-s), last step; "
        "zero-shot accuracy on grey-masked regions of 200 unseen scenes (46 names, bare), retrieval among "
        f"500 unseen scenes of one caption; mean (range) over the seeds that are done. {machine()}",
        "",
        f"| training | runs | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for row, scores in found.items():
        cells = [_cell([s[key] for s in scores]) for key in SCORES]
        lines.append(f"| {row} | {len(scores)} | {' | '.join(cells)} |")
    target = HERE / "results" / "clipkd_world.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1")
    arguments, extra = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed in seeds:
        for row in ROWS:
            found[row].append(train(row, seed, extra))
            write(found, seeds, extra)


if __name__ == "__main__":
    main()
