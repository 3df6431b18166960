"""Losses compared on CIFAR with two cores: python benchmarks/cifar_table.py [--sets cifar10] [--data FOLDER]

Trains a teacher for each data set, then the same student with each loss and seed, and writes
benchmarks/results/cifar_table.md after every run. Finished runs are read back from benchmarks/runs/, so an
interrupted table goes on where it stopped; two processes may each do one data set.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from machine import machine

from vlkd.engine.cli import main as vlkd

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
RUNS = HERE / "runs" / "cifar_table"
# Size of a student's run: the teacher has seen all 50,000 labels, students get two fifths of them.
SIZE = ["--data.limit=20000", "--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=4"]
# The weights are those of the papers; nothing was tuned on this pair. The papers let some losses rise over
# the first twelfth of the run; rows with WARM leave them out of the first of four epochs, the others do not.
WARM = " (warm-up)"
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("kd", {"ce": 1.0}, {}),
    "KD": ("kd", {"ce": 0.1, "kd": 0.9}, {}),
    "DKD": ("kd", {"ce": 1.0, "dkd": 1.0}, {"dkd": {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}}),
    "DIST": ("kd", {"ce": 1.0, "dist": 2.0}, {"dist": {"temperature": 4.0}}),
    "KD++": ("nd", {"ce": 1.0, "kd": 1.0, "nd": 2.0}, {}),
    "DKD++": (
        "nd",
        {"ce": 1.0, "dkd": 1.0, "nd": 3.5},
        {"dkd": {"alpha": 2.5, "beta": 4.0, "temperature": 4.0}},
    ),
    "TRG": ("trg", {"ce": 1.0, "trg_local": 100.0, "trg_global": 2.0, "trg_contextual": 25.0}, {}),
    "TRG + KD": (
        "trg",
        {"ce": 0.1, "kd": 0.9, "trg_local": 100.0, "trg_global": 2.0, "trg_contextual": 25.0},
        {},
    ),
}
ROWS |= {f"{row}{WARM}": ROWS[row] for row in ("DKD", "DIST", "DKD++")}


def train(config: Path, run: Path, options: list[str]) -> dict[str, Any]:
    """Record of a run, trained unless it is finished."""
    record = run / "record.json"
    if not record.is_file():
        start = ["--resume", str(run)] if (run / "last.ckpt").exists() else [str(config), "--run", str(run)]
        if code := vlkd(["train", *start, *([] if start[0] == "--resume" else options)]):
            raise SystemExit(code)
    return json.loads(record.read_text())


def teacher(name: str, data: Path, extra: list[str]) -> dict[str, Any]:
    """Record of the data set's teacher."""
    root = f"--data.root={data / name}.npz"
    return train(CONFIGS / "kd" / f"{name}_teacher.yaml", RUNS / f"{name}-teacher", [root, *extra])


def student(name: str, row: str, seed: int, data: Path, extra: list[str]) -> dict[str, Any]:
    """Record of one run of the table."""
    method, weights, loss_options = ROWS[row]
    run = RUNS / f"{name}-{list(ROWS).index(row)}-{seed}"
    options = [
        f"--data.root={data / name}.npz",
        f"--model.teacher={RUNS / f'{name}-teacher'}",
        f"--model.weights={json.dumps(weights)}",
        f"--model.options={json.dumps(loss_options)}",
        *([f"--model.warmup={json.dumps(dict.fromkeys(loss_options, 1))}"] if WARM in row else []),
        f"--seed_everything={seed}",
        f"--data.seed={seed}",
        *SIZE,
        *extra,
    ]
    return train(CONFIGS / method / f"{name}.yaml", run, options)


def finished(sets: list[str], seeds: list[int]) -> dict[str, dict[str, list[float]]]:
    """Accuracy in percent by data set and row, of the runs that are done."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in sets:
        for k, row in enumerate(ROWS):
            records = [RUNS / f"{name}-{k}-{seed}" / "record.json" for seed in seeds]
            values = [json.loads(r.read_text())["scores"]["accuracy"] for r in records if r.is_file()]
            found.setdefault(name, {})[row] = [100 * value for value in values]
    return found


def write(seeds: list[int]) -> None:
    """The table as far as it has come, both data sets."""
    sets = ["cifar10", "cifar100"]
    found = finished(sets, seeds)
    teachers = []
    for name in sets:
        record = RUNS / f"{name}-teacher" / "record.json"
        if record.is_file():
            teachers.append(f"{name} {100 * json.loads(record.read_text())['scores']['accuracy']:.2f}")
    lines = [
        "# Classification losses on CIFAR, two cores",
        "",
        "`python benchmarks/cifar_table.py`: the student of `configs/kd/cifar10.yaml`, its teacher of "
        "`configs/kd/cifar10_teacher.yaml` (and the same for cifar100), the last epoch on the full test set, "
        f"top-1 in percent, mean ± sd (runs). Students: `{' '.join(SIZE)}`. Short runs on purpose, so the "
        "whole table takes less than three hours; published figures need 240 epochs and larger networks. "
        f"Teachers (all 50,000 images): {', '.join(teachers)}. {machine()}",
        "",
        "CIFAR-100 was re-encoded as JPEG (about 34 dB), see `shared/data/README.md`.",
        "",
        "| losses | CIFAR-10 | CIFAR-100 |",
        "|---|---|---|",
        *(f"| {row} | {' | '.join(cell(found[name][row]) for name in sets)} |" for row in ROWS),
    ]
    target = HERE / "results" / "cifar_table.md"
    target.write_text("\n".join(lines) + "\n")


def cell(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds, and their number."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="cifar10,cifar100")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    arguments, extra = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    sets = arguments.sets.split(",")
    for name in sets:
        teacher(name, arguments.data, extra)
    for seed in seeds:
        for name in sets:
            for row in ROWS:
                student(name, row, seed, arguments.data, extra)
                write(seeds)


if __name__ == "__main__":
    main()
