"""PromptKD and its parts on night pictures of the drawn world: python benchmarks/promptkd_world.py

Zero-shot student and teacher, prompts of the student alone (stage 1 on its own CLIP model), PromptKD with and
without stage 1. Writes benchmarks/results/promptkd_world.md after every run; finished runs are read back from
benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
import yaml
from cifar_table import CONFIGS, HERE, train
from machine import machine

from vlkd.data import WorldClassificationData
from vlkd.methods.promptkd.base import score
from vlkd.methods.promptkd.scores import SplitHits
from vlkd.models.clip import build_clip
from vlkd.models.open_classifier import class_logits
from vlkd.text import ClassVectors

RUNS = HERE / "runs" / "promptkd_world"
WORLD = CONFIGS / "promptkd" / "world.yaml"
SCORES = ("accuracy_base", "accuracy_novel", "harmonic_mean", "accuracy")
TEACHER, STUDENT = "clip-world-vit", "clip-world-vit-s"


def zero_shot(name: str, config: dict[str, Any]) -> dict[str, float]:
    """Scores of a CLIP model with its own class vectors, bare names."""
    data, tower = WorldClassificationData(**config["data"]["init_args"]), build_clip(name)
    data.setup("validate")
    vectors = ClassVectors.build(data.names, tower).vectors
    hits = SplitHits(len(data.names), data.novel)
    logits = lambda images: class_logits(tower.encode_image(images), vectors, tower.logit_scale)  # noqa: E731
    return score(logits, data.val_dataloader(), hits, torch.device("cpu"))


def prompts_alone(config: dict[str, Any], seed: int) -> dict[str, float]:
    """Stage 1 on the student's CLIP model, scored itself."""
    stage = config["teacher"]
    init = {**config["data"]["init_args"], **stage["data"]["init_args"]}
    alone = {
        "model": {**stage["model"], "init_args": {**stage["model"]["init_args"], "clip": STUDENT}},
        "data": {**config["data"], "init_args": init},
        "trainer": stage["trainer"],
    }
    path = RUNS / "prompts_alone.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(alone))
    seeds = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    return train(path, RUNS / f"prompts-alone-{seed}", seeds)["scores"]


def cell(values: list[float]) -> str:
    """Mean ± sd, and the worst, in percent."""
    numbers = [100 * value for value in values]
    if len(numbers) == 1:
        return f"{numbers[0]:.1f}"
    return f"{statistics.fmean(numbers):.1f} ± {statistics.stdev(numbers):.1f} ({min(numbers):.1f})"


def write(rows: dict[str, list[dict[str, float]]], seeds: list[int]) -> None:
    """The table as far as it has come."""
    command = f"python benchmarks/promptkd_world.py --seeds {','.join(map(str, seeds))}"
    lines = [
        "# PromptKD on night pictures of the drawn world, two cores",
        "",
        f"`{command}`: `configs/promptkd/world.yaml`, 26 base and 8 novel classes, 1,000 validation "
        "pictures, the last epoch; percent, mean ± sd over the seeds (worst seed). Base and novel images are "
        "told apart within their half, `all` among the 34 classes. A seed decides initial weights, order, "
        "augmentation, and which 16 pictures a class stage 1 sees. "
        f"Teacher `{TEACHER}`, student `{STUDENT}`. {machine()}",
        "",
        "| | base | novel | harmonic mean | all |",
        "|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        if found:
            cells = [cell([scores[name] for scores in found]) for name in SCORES]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    (HERE / "results" / "promptkd_world.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    config = yaml.safe_load(WORLD.read_text())
    rows: dict[str, list[dict[str, float]]] = {
        "student, zero-shot": [zero_shot(STUDENT, config)],
        "student, its own prompts learned (16 labelled a base class)": [],
        "student, PromptKD without stage 1": [],
        "student, PromptKD": [],
        "teacher, zero-shot": [zero_shot(TEACHER, config)],
        "teacher after stage 1": [],
    }
    for seed in seeds:
        options = [f"--seed_everything={seed}", f"--data.seed={seed}"]
        whole = train(WORLD, RUNS / f"promptkd-{seed}", options)
        rows["student, PromptKD"].append(whole["scores"])
        rows["teacher after stage 1"].append(whole["stages"]["teacher"]["scores"])
        rows["student, its own prompts learned (16 labelled a base class)"].append(
            prompts_alone(config, seed)
        )
        without = train(WORLD, RUNS / f"no-stage1-{seed}", [f"--model.teacher={TEACHER}", *options])
        rows["student, PromptKD without stage 1"].append(without["scores"])
        write(rows, seeds)


if __name__ == "__main__":
    main()
