"""Two processes learn what one does with the whole batch, BatchNorm of the projector included; resumption."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from commands import train_in_processes
from exactness import assert_equal, assert_resume_is_exact
from toy_clip import save_clip, tiny_clip

from vlkd.engine.cli import main

STUDENT = """
model:
  class_path: vlkd.methods.promptkd.PromptKD
  init_args:
    student: {student}
    teacher: {teacher}
    prompts: {{length: 2, depth: 2}}
    lr: 0.05
    warmup_epochs: 0
data:
  class_path: vlkd.data.WorldClassificationData
  init_args: {{train_images: 64, val_images: 30, size: 16, domain: night, novel: world, batch_size: 16}}
trainer: {{max_epochs: 2, accelerator: cpu}}
"""
TEACHER = """
teacher:
  model:
    class_path: vlkd.methods.promptkd.PromptTeacher
    init_args:
      clip: {teacher}
      visual: {{length: 2, depth: 2}}
      text: {{length: 3, depth: 2}}
      words: null
      template_set: bare
      averaging: {{mean: 2, std: 1}}
  data:
    init_args: {{classes: base, shots: 1, batch_size: 8}}
  trainer: {{max_epochs: 3}}
"""


@pytest.fixture
def towers(tmp_path: Path) -> dict[str, str]:
    return {
        "student": save_clip(tmp_path / "student.safetensors"),
        "teacher": save_clip(tmp_path / "teacher.safetensors", tiny_clip(40, 24, seed=1)),
    }


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_equal_one(towers: dict[str, str], tmp_path: Path) -> None:
    config = write(tmp_path, STUDENT.format(**towers))
    # Whole epochs of the same images in the same batches, whatever their order within a batch.
    common = ["--data.train_images=16", "--trainer.max_epochs=4", "--no-dry-run"]
    assert main(["train", str(config), "--run", str(tmp_path / "one"), *common]) == 0
    train_in_processes(
        config,
        tmp_path / "two",
        *common,
        "--data.batch_size=8",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    )
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        (5, ()),
        (3, ("--model.cache_teacher=true", "--data.views=2")),
        (5, ("--model.choose=held_out", "--data.holdout=0.2", "--trainer.max_epochs=3")),
    ],
)
def test_resumption_of_the_student_is_exact(
    towers: dict[str, str], tmp_path: Path, step: int, overrides: tuple[str, ...]
) -> None:
    assert_resume_is_exact(write(tmp_path, STUDENT.format(**towers)), tmp_path, step, overrides=overrides)


def test_resumption_of_the_teacher_is_exact(towers: dict[str, str], tmp_path: Path) -> None:
    config = write(
        tmp_path, (STUDENT + TEACHER).format(**towers).replace(f"    teacher: {towers['teacher']}\n", "")
    )
    stop = '{"class_path": "exactness.InterruptAt", "init_args": {"step": 3}}'
    assert main(["train", str(config), "--run", str(tmp_path / "whole")]) == 0
    pieces = str(tmp_path / "pieces")
    assert main(["train", str(config), "--run", pieces, f"--teacher.trainer.callbacks+={stop}"]) == 130
    assert not (tmp_path / "pieces" / "last.ckpt").exists()
    assert main(["train", "--resume", pieces]) == 0
    for part in ("teacher", "."):
        one, two = (
            torch.load(tmp_path / n / part / "last.ckpt", weights_only=True) for n in ("whole", "pieces")
        )
        assert_equal(two["state_dict"], one["state_dict"], part)
        assert_equal(two.get("average"), one.get("average"), part)
