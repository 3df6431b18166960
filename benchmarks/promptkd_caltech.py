"""PromptKD on Caltech-101 with real CLIP class vectors: python benchmarks/promptkd_caltech.py [--seeds 0,1]

The teacher's image tower is a MobileNetV2 with ImageNet weights and a projector learned from base classes. A
small student from scratch learns either from labels of base classes, or from the teacher without labels.
Writes benchmarks/results/promptkd_caltech.md after every run; finished runs are read back from
benchmarks/runs/, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

from cifar_table import HERE, train
from machine import machine
from promptkd_caltech_data import LISTS, RENAMED, CaltechData, caltech_names, class_vectors, matches

from vlkd.data.images.select import class_range

RUNS = HERE / "runs" / "promptkd_caltech"
VECTORS = RUNS / "class_vectors.safetensors"
TEACHER_SIDE, STUDENT_SIDE, PIXELS = 128, 32, 96
TEACHER_EPOCHS, EPOCHS, VIEWS, BATCH = 8, 18, 3, 32
STUDENT, KD_WEIGHT = "resnet20", 1000.0
TEACHER_LR, LR = 1e-3, 2e-3
TRIED = (
    "- Settings were chosen on a fifth of the training images kept back (`--data.tuning=true`), before a "
    "test image was scored. Teacher, on stored features without augmentation: projectors of one and two "
    "layers, SGD and AdamW at several rates, 128 and 160 px (base 93 to 98, novel 8 to 23, these of all "
    "training images of novel classes); under the Trainer: SGD 0.01 for 4 epochs at 160 px (80.4, 5.4), "
    "AdamW 0.001 for 12 epochs at 128 px (95.5, 22.3). Distilled student, 16 epochs of 2 crops: SGD 0.05 "
    "(11.6, 3.6), AdamW 0.002 (25.0, 7.1). The weight of kd stayed at 1000. The student with labels was not "
    "tuned. Few epochs throughout, for time."
)
READING = (
    "Reading (seeds 0 and 1): without any label the student comes within about three points of labels on "
    "base, and stays below them. On novel the two differ by less than the standard error, both lie little "
    "above guessing: here distillation shows no gain. Two likely causes, not tested one by one. The teacher "
    "itself reaches only 12.6 on novel, and places nearly all novel images among base classes (its score "
    "over all classes is half its base score). And the student is still far from its teacher when the run "
    "ends (weighted kd from 91 to 99 before the first step to 26 to 29 after the last)."
)
SCORES = ("accuracy_base", "accuracy_novel", "harmonic_mean", "accuracy")


def config(**parts: Any) -> dict[str, Any]:
    """A config of PromptKD over the class vectors; `parts` of model, data and trainer."""
    model = {"class_vectors": str(VECTORS), "prompts": None, "optimizer": "adamw", "weight_decay": 0.05}
    data = {"pipeline": "device", "image_size": PIXELS, "resized_crop": [0.4, 1.0], "batch_size": BATCH}
    trainer = {"check_val_every_n_epoch": parts["trainer"]["max_epochs"], **parts["trainer"]}
    return {
        "model": {
            "class_path": "vlkd.methods.promptkd.PromptKD",
            "init_args": {**model, **parts["model"]},
        },
        "data": {
            "class_path": "promptkd_caltech_data.CaltechData",
            "init_args": {**data, **parts["data"]},
        },
        "trainer": trainer,
    }


def teacher() -> dict[str, Any]:
    """The projector of the ImageNet backbone, from labelled images of base classes."""
    return config(
        model={
            "student": "promptkd_caltech_data:MobileNet",
            "image_size": TEACHER_SIDE,
            "trained": "projector",
            "weights": {"ce": 1.0},
            "lr": TEACHER_LR,
        },
        data={"classes": "base"},
        trainer={"max_epochs": TEACHER_EPOCHS},
    )


def student(distilled: bool) -> dict[str, Any]:
    """The small network: from the teacher on all images, or from labels of base classes, in as many steps."""
    common = {"student": STUDENT, "image_size": STUDENT_SIDE, "trained": "all", "lr": LR}
    if distilled:
        return config(
            model={
                **common,
                "teacher": str(RUNS / "teacher"),
                "weights": {"kd": KD_WEIGHT},
                "cache_teacher": True,
            },
            data={"classes": "all", "views": VIEWS},
            trainer={"max_epochs": EPOCHS},
        )
    # Half the images: twice the epochs are the same number of steps.
    return config(
        model={**common, "weights": {"ce": 1.0}},
        data={"classes": "base", "views": 2 * VIEWS},
        trainer={"max_epochs": 2 * EPOCHS},
    )


def run(name: str, settings: dict[str, Any], seed: int, extra: list[str]) -> None:
    """Train `name` unless it is finished."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{name}.yaml"
    path.write_text(json.dumps(settings, indent=2) + "\n")  # JSON is YAML
    train(path, RUNS / name, [f"--seed_everything={seed}", f"--data.seed={seed}", *extra])


def scores(name: str) -> dict[str, float] | None:
    """Scores of a run in percent, None where it is not done."""
    record = RUNS / name / "record.json"
    if not record.is_file():
        return None
    return {key: 100 * value for key, value in json.loads(record.read_text())["scores"].items()}


def row(title: str, runs: list[dict[str, float]]) -> str:
    """One line of the table: mean over the runs, and their range where there are several."""
    cells = []
    for key in SCORES:
        values = [found[key] for found in runs]
        span = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{span}" if values else "")
    return f"| {title} | {len(runs)} | {' | '.join(cells)} |"


def chance(count: int) -> str:
    """What guessing gives, classes being equally frequent."""
    halves = [100 / len(class_range(count, half)) for half in ("base", "novel")]
    values = [*halves, statistics.harmonic_mean(halves), 100 / count]
    return f"| guessing | | {' | '.join(f'{value:.1f}' for value in values)} |"


def counts(split: Any, classes: Any) -> tuple[int, int]:
    """Images of base and of novel classes."""
    data = CaltechData(classes=classes).build(split)
    novel = int((data.labels >= len(class_range(len(data.names), "base"))).sum())
    return len(data) - novel, novel


def write() -> None:
    """The table as far as it has come."""
    found = matches()
    base, novel = (class_range(len(found), half) for half in ("base", "novel"))
    by_list = {key: sum(key == where for where, _, _ in found.values()) for key in LISTS}
    names = list(found)
    left_out = [name for name in caltech_names() if name not in found]
    several = {
        kind: [x for path in sorted(RUNS.glob(f"{kind}-*")) if (x := scores(path.name))]
        for kind in ("labels", "distilled")
    }
    tests, images = counts("val", "all"), counts("train", "all")
    steps = 2 * EPOCHS * (images[0] // BATCH), EPOCHS * (sum(images) // BATCH)
    errors = [100 * math.sqrt(p * (1 - p) / n) for p, n in zip((0.4, 0.07), tests, strict=True)]
    shown = [f"{name} ({found[name][1]})" if name in RENAMED else name for name in names]
    lines = [
        "# PromptKD on Caltech-101 with real CLIP class vectors",
        "",
        f"`python benchmarks/promptkd_caltech.py`. {machine()}",
        "",
        "| model | runs | base | novel | harmonic mean | all classes |",
        "|---|---|---|---|---|---|",
        row(f"a. teacher: MobileNetV2 (ImageNet) at {TEACHER_SIDE} px, projector", [scores("teacher") or {}]),
        row(f"b. {STUDENT} at {STUDENT_SIDE} px from scratch, labels of base classes", several["labels"]),
        row("c. the same network, distilled from a without labels", several["distilled"]),
        chance(len(found)),
        "",
        "Top-1 in percent on the pack's test images, mean (range) over seeds. Base and novel: among the "
        "classes of the image's own half; all classes: among all of them. Last epoch, chosen by no score. "
        f"Training images: {images[0]} base, {images[1]} novel. Test images: {tests[0]} base, {tests[1]} "
        f"novel; of one run, 40 % on base have a standard error of {errors[0]:.1f} points, 7 % on novel "
        f"{errors[1]:.1f}.",
        "",
        f"Classes: {len(found)} of Caltech's 101 have a CLIP ViT-B/32 text vector of the same name or of one "
        f"of {len(RENAMED)} listed renamings ({', '.join(f'{k}: {n}' for k, n in by_list.items())}); "
        'these lists share encoder and prompt ("a NAME"), where they share a name in one word their vectors '
        "agree (cosine above 0.99999). LVIS comes last because its names of several words were encoded with "
        "underscores (cosine down to 0.92 to the others).",
        "",
        f"- Base ({len(base)}): {', '.join(shown[k] for k in base)}.",
        f"- Novel ({len(novel)}): {', '.join(shown[k] for k in novel)}.",
        f"- Left out ({len(left_out)}): {', '.join(left_out)}.",
        "",
        READING,
        "",
        "What to keep in mind:",
        "",
        "- The teacher's backbone was trained on ImageNet with labels, and has so seen most of the novel "
        "classes, or things like them, with labels. Novel here means: no such label was trained "
        "on in this benchmark; choosing the settings looked at some (below).",
        f"- c sees all training images, base and novel, without labels (transductive); b sees the base half "
        f"with labels. Batch ({BATCH}) and optimiser (AdamW, {LR}, decay 0.05) are the same, steps nearly so "
        f"(b {steps[0]}, c {steps[1]}), and each crop is seen equally often: c {EPOCHS} epochs of {VIEWS} "
        f"stored crops, b {2 * EPOCHS} of {2 * VIEWS} on half the images.",
        "- One teacher for all seeds; a seed changes the students' first weights, order and crops.",
        TRIED,
    ]
    (HERE / "results" / "promptkd_caltech.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1")
    arguments, extra = parser.parse_known_args()
    if not VECTORS.is_file():
        class_vectors().save(VECTORS)
    run("teacher", teacher(), 0, extra)
    write()
    for seed in (int(number) for number in arguments.seeds.split(",")):
        run(f"labels-{seed}", student(distilled=False), seed, extra)
        run(f"distilled-{seed}", student(distilled=True), seed, extra)
        write()


if __name__ == "__main__":
    main()
