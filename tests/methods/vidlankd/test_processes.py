"""Two processes learn what one does with the whole batch: videos and memories of all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import train_in_processes

from vlkd.engine.bundle import read_card
from vlkd.engine.cli import main

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
TEACHER = {
    "class_path": "vlkd.methods.vidlankd.VideoTextTeacher",
    "init_args": {
        "language": "tiny",
        "dropout": 0.0,
        "video": {"hidden": 12, "positions": 6, "dropout": 0.0},
        "weights": {"contrast": 1.0},
        "lr": 1e-3,
    },
}
TRAINER = {"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False}


def train(tmp_path: Path, model: dict[str, Any], data: str) -> list[Path]:
    """The run on one process and on two, 12 items in one batch."""
    init = {"batch_size": 12, "items": 12}
    config = tmp_path / "config.yaml"
    content = {"model": model, "data": {"class_path": f"toy_language.{data}", "init_args": init}}
    config.write_text(yaml.safe_dump({**content, "trainer": TRAINER}))
    assert main(["train", str(config), "--run", str(tmp_path / "one"), "--no-dry-run"]) == 0
    more = ("--data.batch_size=6", "--trainer.devices=2", "--trainer.strategy=ddp", "--no-dry-run")
    train_in_processes(config, tmp_path / "two", *more)
    return [tmp_path / "one", tmp_path / "two"]


def test_the_contrast_is_with_the_videos_of_all_processes(tmp_path: Path) -> None:
    runs = train(tmp_path, TEACHER, "VideoTextData")
    one, two = (torch.load(run / "last.ckpt", weights_only=True) for run in runs)
    assert one["global_step"] == two["global_step"] == 3
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=2e-5, rtol=1e-3)
    cards = [read_card(next(run.glob("student-*.safetensors"))) for run in runs]
    assert cards[0]["scores"] == pytest.approx(cards[1]["scores"], abs=1e-6)
    assert cards[1]["protocol"]["retrieval gallery"] == "10 videos, one text each"


def test_memories_remember_the_sequences_of_all_processes(tmp_path: Path, stage1: str) -> None:
    arguments = {"teacher": stage1, "language": "tiny", "dropout": 0.0, "head": "none", "lr": 0.0}
    model = {
        "class_path": "vlkd.methods.vidlankd.VidLanKD",
        "init_args": {**arguments, "weights": {"crd": 1.0}, "options": {"crd": {"negatives": 8}}},
    }
    one, two = (
        torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        for run in train(tmp_path, model, "TextData")
    )
    for name in ("memory.student", "memory.teacher"):
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-3)
