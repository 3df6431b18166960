"""What each part of GKC brings on the procedural world: python benchmarks/gkc_world.py [--seeds 0,1,2]

Trains configs/gkc/world.yaml four ways for each seed and writes benchmarks/results/gkc_world.md after every
run; finished runs are read back from benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from machine import machine

from vlkd.engine.bundle import read_card
from vlkd.engine.cli import main as vlkd

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "gkc" / "world.yaml"
ROWS = {
    "no KD, no synonyms": ["--model.kd.form=none", "--model.diversify.mode=none"],
    "vanilla KD": ["--model.kd.form=vanilla", "--model.diversify.mode=none"],
    "text-guided KD": ["--model.kd.form=inner", "--model.diversify.mode=none"],
    "text-guided KD + synonyms": ["--model.kd.form=inner", "--model.diversify.mode=thresRand"],
}
COLUMNS = {
    "mIoU seen": "mIoU_seen",
    "mIoU unseen": "mIoU_unseen",
    "seen, held-out synonyms": "mIoU_seen_synonyms",
    "unseen, held-out synonyms": "mIoU_unseen_synonyms",
}


def train(row: str, seed: int, extra: list[str]) -> dict[str, float]:
    """Scores of one run at its last step, trained unless its bundle is there already."""
    run = HERE / "runs" / f"gkc_world-{list(ROWS).index(row)}-{seed}"
    if not list(run.glob("student-*.safetensors")):
        resume = (run / "last.ckpt").exists()
        start = ["--resume", str(run)] if resume else [str(CONFIG), "--run", str(run)]
        options = [] if resume else [*ROWS[row], f"--seed_everything={seed}", f"--data.seed={seed}", *extra]
        begun = time.perf_counter()
        if code := vlkd(["train", *start, *options]):
            raise SystemExit(code)
        (run / "seconds.json").write_text(json.dumps(time.perf_counter() - begun))
    scores = read_card(next(run.glob("student-*.safetensors")))["scores"]
    return {key.removeprefix("score/"): value for key, value in scores.items()}


def cell(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def write(found: dict[str, list[dict[str, float]]], seeds: list[int], extra: list[str]) -> None:
    """The table as far as it has come."""
    lines = [
        "# GKC on the procedural world",
        "",
        f"`{' '.join(['python benchmarks/gkc_world.py --seeds', ','.join(map(str, seeds)), *extra])}`, "
        "config `configs/gkc/world.yaml`, last step, all 46 names as candidates, mean and range over the "
        f"seeds that are done. {machine()}",
        "",
        f"| training | runs | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for row, scores in found.items():
        cells = [cell([s[key] for s in scores]) for key in COLUMNS.values()]
        lines.append(f"| {row} | {len(scores)} | {' | '.join(cells)} |")
    target = HERE / "results" / "gkc_world.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    arguments, extra = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed in seeds:
        for row in ROWS:
            found[row].append(train(row, seed, extra))
            write(found, seeds, extra)


if __name__ == "__main__":
    main()
