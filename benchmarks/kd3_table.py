"""KD3, its parts, its baselines, CIFAR-10 being private: python benchmarks/kd3_table.py [--data FOLDER]

The teacher is that of benchmarks/cifar_table.py. The pool is CIFAR-100, an ImageNet sample and Caltech-101 at
the networks' 16 px. Writes benchmarks/results/kd3_table.md after every run; finished runs are read back from
benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from cifar_table import CONFIGS, HERE, cell, teacher, train
from cifar_table import RUNS as TEACHERS
from machine import machine

RUNS = HERE / "runs" / "kd3_table"
POOL, KEPT, EPOCHS = 20000, 10000, 8
ROWS: dict[str, dict[str, Any]] = {
    "random selection, KD": {"objective": "kd", "selection.mode": "random", "selection.keep_count": KEPT},
    "DFND": {"objective": "dfnd", "selection.mode": "dfnd", "selection.keep_count": KEPT},
    "KD3": {},
    "KD3 without dynamic selection (all images)": {"selection.mode": "all"},
    "KD3 without the shared classifier": {"share_head": "false"},
    "KD3 without MixDistribution": {"contrast.weight": 0.0},
}


def options(row: str, seed: int, data: Path) -> list[str]:
    """Overrides of configs/kd3/cifar10.yaml for one run."""
    pool = [str(data / f"{name}.npz") for name in ("cifar100", "imagenet1k_sample", "caltech101_subset")]
    return [
        f"--model.teacher={TEACHERS / 'cifar10-teacher'}",
        *(f"--model.{key}={value}" for key, value in ROWS[row].items()),
        f"--data.pool={json.dumps(pool)}",
        f"--data.private.init_args.root={data / 'cifar10.npz'}",
        f"--data.limit={POOL}",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.check_val_every_n_epoch={EPOCHS}",
        f"--seed_everything={seed}",
        f"--data.seed={seed}",
    ]


def kept(run: Path) -> str:
    """Images kept in the first and in the last epoch that chose."""
    path = run / "selection.csv"
    if not path.is_file():
        return str(POOL)
    counts: dict[str, int] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            counts[line["epoch"]] = counts.get(line["epoch"], 0) + int(line["kept"])
    values = list(counts.values())
    return str(values[0]) if len(set(values)) == 1 else f"{values[0]} to {values[-1]}"


def write() -> None:
    """The table as far as it has come."""
    record = json.loads((TEACHERS / "cifar10-teacher" / "record.json").read_text())
    teacher_score = 100 * record["scores"]["accuracy"]
    lines = [
        "# KD3 and its parts, two cores",
        "",
        f"`python benchmarks/kd3_table.py`: CIFAR-10 is private (teacher {teacher_score:.2f}), the pool has "
        f"{POOL} images of CIFAR-100, an ImageNet sample and Caltech-101 at 16 px, {EPOCHS} epochs, "
        "`configs/kd3/cifar10.yaml`; the last epoch on the full CIFAR-10 test set, top-1 in percent, mean ± "
        f"sd (runs). Rows see different numbers of images, as their methods have it. {machine()}",
        "",
        "| training | accuracy | images an epoch |",
        "|---|---|---|",
    ]
    for k, row in enumerate(ROWS):
        runs = sorted(record.parent for record in RUNS.glob(f"{k}-*/record.json"))
        scores = [100 * json.loads((run / "record.json").read_text())["scores"]["accuracy"] for run in runs]
        lines.append(f"| {row} | {cell(scores)} | {kept(runs[0]) if runs else ''} |")
    (HERE / "results" / "kd3_table.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    arguments, extra = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    teacher("cifar10", arguments.data, [])
    for seed in seeds:
        for k, row in enumerate(ROWS):
            run = RUNS / f"{k}-{seed}"
            train(CONFIGS / "kd3" / "cifar10.yaml", run, [*options(row, seed, arguments.data), *extra])
            write()


if __name__ == "__main__":
    main()
