"""A GKC training step with stored teacher regions against one that asks the teacher again each time:

python benchmarks/teacher_cache.py [--teacher clip-world-m] [--steps 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from machine import machine

from vlkd.data import WorldSegmentationData
from vlkd.data.regions import crop_regions
from vlkd.methods.gkc import GKC
from vlkd.methods.gkc.criterion import MaskCriterion
from vlkd.models.segmentor import Segmentor


class Recomputing(GKC):
    """Crops and encodes the batch's regions at every step, both views, as code without a store must."""

    recompute = True

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.recompute:
            samples = self.trainer.datamodule.train_dataset  # type: ignore[attr-defined]
            numbers = [int(name.rsplit("/", 1)[1]) for name in batch["ids"]]
            teacher = self.held("teacher")
            with torch.inference_mode():
                for masked in (True, False):
                    crops = [crop_regions(samples[n], teacher.spec.size, masked=masked)[0] for n in numbers]
                    teacher.encode_image(torch.cat(crops).float() / 255)
        return super().compute_losses(batch)


def seconds(method: Recomputing, data: WorldSegmentationData, steps: int) -> list[float]:
    """Wall time of each step after the first three."""
    marks: list[float] = []
    method.on_train_batch_end = lambda *args: marks.append(time.perf_counter())  # type: ignore[method-assign]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps + 4, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(method, datamodule=data)
    return [b - a for a, b in pairwise(marks[3:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="clip-world-m")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(2):  # interleaved, so that a slow minute hits both
        for recompute in times:
            torch.manual_seed(0)
            student = Segmentor("clip:clip-world-s", text_width=128, embedding="sum", size=(128, 128))
            method = Recomputing(student, teacher=arguments.teacher, criterion=MaskCriterion(points=784))
            method.recompute = recompute
            data = WorldSegmentationData(train_scenes=200, val_scenes=1, batch_size=8, scale=(0.8, 1.3))
            times[recompute] += seconds(method, data, arguments.steps)
    again, stored = (statistics.median(times[key]) for key in (True, False))
    line = (
        f"Median step of 8 images of 128 px: teacher asked again {again * 1e3:.0f} ms, stored regions "
        f"{stored * 1e3:.0f} ms: {again / stored:.2f} times as fast. Teacher {arguments.teacher}. {machine()}"
    )
    print(line)
    target = Path(__file__).parent / "results" / f"teacher_cache-{arguments.teacher}.md"
    target.parent.mkdir(exist_ok=True)
    command = f"python benchmarks/teacher_cache.py --teacher {arguments.teacher}"
    target.write_text(f"# Stored teacher regions\n\n`{command}`\n\n{line}\n")


if __name__ == "__main__":
    main()
