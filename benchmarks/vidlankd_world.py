"""VidLanKD in the world of invented nouns: python benchmarks/vidlankd_world.py [--seeds 0,1,2] [--rows 0,1,2]

Students that read text alone, taught by teachers of captioned clips, of shuffled or still ones, or of
captions alone, and with other objectives. Writes benchmarks/results/vidlankd_world.md after every run;
finished runs are read back from benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from cifar_table import CONFIGS, HERE, train
from machine import machine

RUNS = HERE / "runs" / "vidlankd_world"
WORLD = CONFIGS / "vidlankd" / "world.yaml"
SCORES = ("P1_colour", "P1_shape", "P1_motion", "P1", "P2", "perplexity")
# Row -> the clips that its teacher saw, or the options of a student of the teacher of normal clips.
ROWS: dict[str, str | list[str]] = {
    "text alone": ["--model.weights={mlm: 1.0}"],
    "contrastive": "normal",
    "contrastive, teacher of shuffled clips": "shuffled",
    "contrastive, teacher of still clips": "still",
    "contrastive, teacher of captions alone": "captions",
    "hidden (L2)": ["--model.weights={mlm: 1.0, hidden: 1.0}"],
    "soft label": ["--model.weights={mlm: 1.0, soft_label: 1.0}"],
    "NST": ["--model.weights={mlm: 1.0, nst: 10.0}"],
    "NST + CRD": ["--model.weights={mlm: 1.0, nst: 10.0, crd: 0.8}"],
    "compat repo": ["--model.compat=repo", "--model.weights={mlm: 1.0, nst: 1.0, crd: 1.0}"],
}


def run(number: int, seed: int) -> dict[str, Any]:
    """Record of a row's run; a teacher of normal clips is trained with the contrastive row."""
    what = list(ROWS.values())[number]
    options = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    if isinstance(what, str):
        return train(WORLD, RUNS / f"{what}-{seed}", [*options, f"--teacher.data.variant={what}"])
    taught = run(list(ROWS.values()).index("normal"), seed)
    teacher = RUNS / f"normal-{seed}" / taught["stages"]["teacher"]["bundle"]
    return train(WORLD, RUNS / f"{number}-{seed}", [*options, f"--model.teacher={teacher}", *what])


def cells(found: list[dict[str, float]]) -> str:
    """Mean (range) of each score."""
    texts = []
    for name in SCORES:
        values = [scores[name] for scores in found if name in scores]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        texts.append(f"{statistics.fmean(values):.2f}{spread}" if values else "")
    return f"{len(found)} | {' | '.join(texts)}"


def records(pattern: str) -> list[dict[str, Any]]:
    """Finished runs of that name."""
    return [json.loads(path.read_text()) for path in sorted(RUNS.glob(f"{pattern}/record.json"))]


def seconds() -> float:
    """What all runs took, both stages, training with its validations."""
    found = [json.loads(path.read_text())["speed"] for path in RUNS.rglob("record.json")]
    return 60 * sum(speed["minutes"] for speed in found)


def write() -> None:
    """The table as far as it has come."""
    lines = [
        "# VidLanKD in the world of invented nouns, two cores",
        "",
        "`python benchmarks/vidlankd_world.py`: `configs/vidlankd/world.yaml`, 96 nouns whose colour, shape "
        "and motion only clips tell; the student reads text that names no attribute beside a noun. P1: "
        "linear probe on held-out nouns, P2: zero-shot cosine, chance 0.25 (docs/lexicon.md); mean (range) "
        "over the seeds that are done, last step. All students take the same number of steps. "
        f"{machine()}",
        "",
        f"| student | seeds | {' | '.join(SCORES)} |",
        "|---|---|" + "---|" * len(SCORES),
    ]
    for number, (row, what) in enumerate(ROWS.items()):
        pattern = f"{what}-*" if isinstance(what, str) else f"{number}-*"
        if found := [record["scores"] for record in records(pattern)]:
            lines.append(f"| {row} | {cells(found)} |")
    names = ("text_to_video_R@1", "text_to_video_median_rank", "P1_colour", "P1_shape", "P1_motion", "P1")
    lines += ["", f"| teacher | seeds | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for clips in ("normal", "shuffled", "still", "captions"):
        found = [record["stages"]["teacher"]["scores"] for record in records(f"{clips}-*")]
        if found:
            values = [[scores.get(name) for scores in found] for name in names]
            means = [
                f"{statistics.fmean(v):.2f} ({min(v):.2f} to {max(v):.2f})"
                if all(x is not None for x in v)
                else ""
                for v in values
            ]
            lines.append(f"| of {clips} clips | {len(found)} | {' | '.join(means)} |")
    lines += ["", f"All runs of both tables, training and validation: {seconds():,.0f} s."]
    (HERE / "results" / "vidlankd_world.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(map(str, range(len(ROWS)))))
    arguments = parser.parse_args()
    for seed in map(int, arguments.seeds.split(",")):
        for number in map(int, arguments.rows.split(",")):
            run(number, seed)
            write()
    print(f"all runs, training and validation: {seconds():,.0f} s. {machine()}")


if __name__ == "__main__":
    main()
