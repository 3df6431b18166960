"""tools/demo.py: what it renders, and that it goes on where an earlier demo stopped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from vlkd.infer.video import VideoFile

TOOL = Path(__file__).resolve().parents[1] / "tools" / "demo.py"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "demo_out")
    monkeypatch.setattr(module, "FRAMES", 3)
    monkeypatch.setattr(module, "PICTURES", 2)
    return module


def commands(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, makes_bundle: bool = True) -> list[list[str]]:
    """What the demo asks of the command line, with nothing really trained."""
    asked: list[list[str]] = []

    def answer(words: list[str]) -> int:
        asked.append(words)
        if words[0] == "train" and makes_bundle:
            (demo.OUT / "run").mkdir(parents=True, exist_ok=True)
            (demo.OUT / "run" / "student-0.safetensors").touch()
        return 0 if words[0] != "train" or makes_bundle else 130

    monkeypatch.setattr(demo, "vlkd", answer)
    code = demo.main()
    assert code == (0 if makes_bundle else 130)
    return asked


def test_first_run(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    train, names, words = commands(demo, monkeypatch)
    assert train == ["train", "configs/gkc/world.yaml", "--run", str(demo.OUT / "run")]
    assert names[:3] == ["infer", "--model", str(demo.OUT / "run" / "student-0.safetensors")]
    assert "motorcar" in words[words.index("--classes") + 1] and "--classes" not in names
    assert Image.open(demo.OUT / "input" / "scene1.png").size == (256, 256)
    assert len(list(VideoFile(demo.OUT / "input" / "moving.mp4"))) == 3


def test_goes_on_after_ctrl_c_and_does_not_train_twice(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(commands(demo, monkeypatch, makes_bundle=False)) == 1
    (demo.OUT / "run").mkdir(parents=True)
    (demo.OUT / "run" / "last.ckpt").touch()
    assert commands(demo, monkeypatch)[0] == ["train", "--resume", str(demo.OUT / "run")]
    assert [words[0] for words in commands(demo, monkeypatch)] == ["infer", "infer"]
