"""Two gloo processes learn and score what one process does on the same data."""

import csv
from pathlib import Path

import pytest
import torch
from commands import train_in_processes

from vlkd.engine.cli import main


def scores(run: Path) -> list[float]:
    return column(run, "score/accuracy") + column(run, "score/images")


def losses(run: Path) -> list[float]:
    return column(run, "loss/total")


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_equal_one(toy_config: Path, tmp_path: Path) -> None:
    common = ["--data.shuffle=false", "--model.dropout=0", "--model.lr=0.05"]
    alone = [*common, "--data.batch_size=8", "--trainer.log_every_n_steps=1"]
    assert main(["train", str(toy_config), "--run", str(tmp_path / "one"), *alone]) == 0
    train_in_processes(
        toy_config,
        tmp_path / "two",
        *common,
        "--data.batch_size=4",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    )
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 9
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=1e-5, rtol=1e-4)
    assert scores(tmp_path / "two") == pytest.approx(scores(tmp_path / "one"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert scores(tmp_path / "two")[-1] == 9  # nine images on two processes: none is counted twice
    assert len(list((tmp_path / "two").glob("student-*.safetensors"))) == 1
