"""`vlkd zoo publish`: a bundle becomes an entry that the zoo can resolve and verify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vlkd
from vlkd.engine.bundle import load_bundle, save_bundle
from vlkd.engine.cli import main
from vlkd.engine.hub import Zoo, resolve
from vlkd.models.classifier import build_classifier


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


def test_a_classifier_is_published_and_classifies(zoo: Path, tmp_path: Path) -> None:
    classifier = build_classifier("resnet8", 3).eval()
    variance = next(value for name, value in classifier.named_buffers() if name.endswith("running_var"))
    variance[0] = 1e6  # beyond float16
    card = {
        "kind": "classifier",
        "name": "run",
        "architecture": classifier.architecture,
        "input_spec": classifier.spec.to_dict(),
        "class_names": ["cat", "dog", "owl"],
        "scores": {"score/accuracy": 0.5},
    }
    tensors = {f"student.{name}": value for name, value in classifier.state_dict().items()}
    assert publish(save_bundle(tmp_path / "student.safetensors", card, tensors), "accuracy") == 0
    entry = Zoo.open().entries["toy"]
    assert (entry.kind, entry.input, entry.score) == ("classifier", "32x32", "accuracy 0.5000")
    assert 0.4 < (entry.size or 0) / (tmp_path / "student.safetensors").stat().st_size < 0.8
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    found = vlkd.load("toy")(image)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    assert np.allclose(found.scores, logits.softmax(0)[found.indices.tolist()], atol=0.01)
