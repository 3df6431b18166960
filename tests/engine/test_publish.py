"""`vlkd zoo publish`: a bundle becomes an entry that the zoo can resolve and verify."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlkd.engine.bundle import load_bundle, save_bundle
from vlkd.engine.cli import main
from vlkd.engine.hub import Zoo, resolve


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("models: []\n")
    monkeypatch.setenv("VLKD_ZOO", str(folder))
    return folder


def bundle(folder: Path, value: float) -> Path:
    card = {
        "kind": "clip",
        "name": "run",
        "architecture": {},
        "input_spec": {"size": [48, 64]},
        "scores": {"mIoU": 0.25},
        "command": "python tools/train.py CONFIG",
    }
    return save_bundle(folder / f"student-{value}.safetensors", card, {"w": torch.full((3,), value)})


def publish(path: Path, score: str = "mIoU") -> int:
    return main(
        ["zoo", "publish", str(path), "--name", "toy", "--score", score, "--config", "configs/toy.yaml"]
    )


def test_publish_and_replace(zoo: Path, tmp_path: Path) -> None:
    assert publish(bundle(tmp_path, 0.1)) == 0
    first = resolve("toy")
    card, tensors = load_bundle(first)
    assert card["name"] == "toy" and card["licence"] == "Apache-2.0" and tensors["w"].dtype == torch.float16
    entry = Zoo.open().entries["toy"]
    assert (entry.input, entry.score, entry.command) == (
        "48x64",
        "mIoU 0.2500",
        "python tools/train.py CONFIG",
    )
    assert publish(bundle(tmp_path, 0.2)) == 0
    second = resolve("toy")
    assert second != first and not first.exists() and len(Zoo.open().entries) == 1
    assert main(["zoo", "verify"]) == 0


def test_unknown_score_changes_nothing(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(bundle(tmp_path, 0.1), "accuracy") == 2
    assert "--score accuracy: the card has mIoU" in capsys.readouterr().err
    assert sorted(p.name for p in zoo.iterdir()) == ["manifest.yaml"]
