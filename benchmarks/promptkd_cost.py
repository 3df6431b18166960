"""A PromptKD step at its real size, text features made again each step, stored, and the teacher's images too:

python benchmarks/promptkd_cost.py [--rounds 3] [--classes 100,400] [--threads 1]

Teacher ViT-L/14 with prompts of 4 x 9 in both towers, student ViT-B/16 with prompts of 4 x 9 and projector,
batch 8, 224 px, float32 on the CPU, random weights. The variants take turns step by step within one run of
the Trainer. Writes benchmarks/results/promptkd_cost.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from machine import machine
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlkd.data.images.device import DeviceImages
from vlkd.data.images.module import ClassificationModuleBase
from vlkd.methods.promptkd import PromptKD
from vlkd.methods.promptkd.source import Source
from vlkd.models.open_classifier import class_logits
from vlkd.models.prompted import PromptSize, build_prompted

RESULT = Path(__file__).parent / "results" / "promptkd_cost.md"
TEACHER, STUDENT, BATCH, SIDE = "ViT-L-14", "ViT-B-16", 8, 224
AGAIN, STORED, CACHED, ALONE = "a", "b", "c", "d"
TARGET, USERS = 3, 5  # the and what users measured, of a / b
TITLES = {
    AGAIN: "text features of all classes made again",
    STORED: "stored class vectors",
    CACHED: "stored class vectors, cached teacher image features",
    ALONE: "the student's own forward and backward",
}


class Tower(NamedTuple):
    """Layers of `width` over `tokens`: of open_clip's configs, with prompts and class token."""

    width: int
    layers: int
    tokens: int


TEACHER_IMAGE = Tower(1024, 24, 256 + 1 + 4)
TEACHER_TEXT = Tower(768, 12, 77)
STUDENT_IMAGE = Tower(768, 12, 196 + 1 + 4)


def flops(tower: Tower) -> float:
    """Of one forward pass of one image or text, in GFLOP: 24 N D^2 + 4 N^2 D a layer, 2 to a multiply-add."""
    width, layers, tokens = tower
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width) / 1e9


class Images(ClassificationModuleBase):
    """One batch of noise; class names are words of the right number only."""

    def __init__(self, classes: int) -> None:
        super().__init__(pipeline="device", batch_size=BATCH, val_batch_size=BATCH, views=1)
        self.classes = classes

    def build(self, split: str) -> DeviceImages:
        pixels = torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
        words = ("red", "small", "wooden", "old", "round", "plastic", "tall", "striped", "wet", "broken")
        names = tuple(
            itertools.islice((f"{a} thing {i}" for i in itertools.count() for a in words), self.classes)
        )
        return DeviceImages(pixels.to(torch.uint8), torch.zeros(BATCH, dtype=torch.long), names)


class Turns(PromptKD):
    """PromptKD whose step `k` is the variant `order[k]`; CPU time of each, memory of the first `profiled`."""

    def __init__(self, order: list[str], profiled: int) -> None:
        # At this rate the sum in place of a loss leaves the weights finite; the optimiser works as ever.
        super().__init__(STUDENT, teacher=TEACHER, cache_teacher=True, lr=1e-9, warmup_lr=1e-9)
        assert self.teacher is not None
        prompted = build_prompted(self.teacher.model, PromptSize(), PromptSize())
        self.teacher = Source(self.hold("teacher", prompted))
        self.order, self.profiled = order, profiled
        self.seconds: list[float] = []
        self.memory: dict[str, int] = {}

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        variant = self.order[self.global_step]
        if variant == ALONE:
            unit = self.student.project(self.student.tower(batch["images"]))
            return {"kd": class_logits(unit, self._table, self.student.logit_scale).sum()}
        table, features = self._table, self.features
        if variant == AGAIN:
            with torch.no_grad():
                self._table = self.held("teacher").encode_text(list(self.names))
        if variant != CACHED:
            self.features = None
        try:
            return super().compute_losses(batch)
        finally:
            self._table, self.features = table, features

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._record = None
        if self.global_step < self.profiled:
            self._record = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._record.start()
        self._start = time.process_time()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        spent, variant = time.process_time() - self._start, self.order[len(self.seconds)]
        self.seconds.append(spent)
        if self._record is not None:
            self._record.stop()
            self.memory[variant] = peak(self._record)
        print(f"step {len(self.seconds)}/{len(self.order)} {variant}: {spent:.1f} s", flush=True)


def peak(record: Any) -> int:
    """Highest sum of what torch allocated, in bytes."""
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    ordered = sorted(events, key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in ordered), initial=0))


def measure(classes: int, variants: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each measured step and peak bytes, by variant; the first round warms up and is profiled."""
    torch.manual_seed(0)
    method = Turns([*variants] * (rounds + 1), profiled=len(variants))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=len(method.order),
        limit_val_batches=0,
        enable_model_summary=False,
        accelerator="cpu",
        **quiet,
    )
    trainer.fit(method, datamodule=Images(classes))
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant, spent in list(zip(method.order, method.seconds, strict=True))[len(variants) :]:
        times[variant].append(spent)
    return times, method.memory


def rows(classes: int, times: dict[str, list[float]], memory: dict[str, int]) -> Iterator[str]:
    for variant, spent in times.items():
        span = f"{min(spent):.1f} to {max(spent):.1f}"
        yield (
            f"| {classes} | ({variant}) {TITLES[variant]} | {statistics.median(spent):.1f} | {span} "
            f"| {memory[variant] / 2**20:.0f} |"
        )


def ratios(classes: int, times: dict[str, list[float]]) -> Iterator[str]:
    middle = {variant: statistics.median(spent) for variant, spent in times.items()}
    speedup = middle[AGAIN] / middle[STORED]
    met = "met" if speedup >= TARGET else "not met"
    yield (
        f"{classes} classes: a/b = {speedup:.2f} (target {TARGET}: {met}; users report about {USERS})"
        + (f", a/c = {middle[AGAIN] / middle[CACHED]:.2f}" if CACHED in middle else "")
        + "."
    )
    if {CACHED, ALONE} <= set(middle):
        over = middle[CACHED] / middle[ALONE] - 1
        yield f"{classes} classes: c is {over:+.1%} against d (target: within 10 %)."


def arithmetic() -> str:
    """What the ratios should be where every FLOP takes as long."""
    text, image, student = (flops(tower) for tower in (TEACHER_TEXT, TEACHER_IMAGE, STUDENT_IMAGE))
    rest = BATCH * (image + 2 * student)
    need = {factor: (factor - 1) * rest / text for factor in (TARGET, USERS)}
    again, whole, own = 100 * text, BATCH * image, 2 * BATCH * student
    return (
        f"Arithmetic, in GFLOP of the transformer layers: the teacher's text tower {text:.1f} a class, so "
        f"{again:.0f} for 100; its image tower {image:.1f} an image, so {whole:.0f} for {BATCH}; the student "
        f"{student:.1f} forward and about as much backward (its weights are frozen, only gradients of "
        f"activations and prompts are made), so {own:.0f} for {BATCH}. Step b is then {rest:.0f}, step a at "
        f"100 classes {rest + again:.0f}: a/b = {1 + again / rest:.2f}, a/c = {(rest + again) / own:.2f}. "
        f"Where FLOPs decide, a/b is {TARGET} from {need[TARGET]:.0f} classes on and {USERS} from "
        f"{need[USERS]:.0f} on. (The accuracies in the users' report are of ImageNet, 1000 classes.)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", default="100,400")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, found = [], []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VLKD_CACHE"] = cache  # the weights are random: nothing of them is worth keeping
        for k, classes in enumerate(int(number) for number in arguments.classes.split(",")):
            times, memory = measure(classes, "abcd" if k == 0 else "ab", arguments.rounds)
            lines += rows(classes, times, memory)
            found += ratios(classes, times)
            print("\n".join([*lines, *found]), flush=True)
            write(lines, found, arguments)


def write(lines: list[str], found: list[str], arguments: Any) -> None:
    """The results as far as they have come."""
    text = [
        "# Cost of a PromptKD step",
        "",
        f"`python benchmarks/promptkd_cost.py --rounds {arguments.rounds} --classes {arguments.classes} "
        f"--threads {arguments.threads}`: teacher {TEACHER} and student {STUDENT} with random weights, "
        f"prompts of 4 tokens in 9 layers, {BATCH} images of {SIDE} px, float32, "
        f"{arguments.threads} thread(s). Forward, backward and optimiser step under the Trainer; variants in "
        "turns, one step each; median CPU time (other work ran on the machine) of "
        f"{arguments.rounds} steps after one of warm-up. {machine()}",
        "",
        "| classes | step | CPU seconds | range | peak MiB |",
        "|---|---|---|---|---|",
        *lines,
        "",
        "Peak: highest sum of what torch allocated within the step (profiled in the warm-up step), above the "
        "weights of both models, which stay in memory in all variants.",
        "",
        *(f"- {line}" for line in found),
        "",
        arithmetic(),
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
