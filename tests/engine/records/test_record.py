import json
import time
from pathlib import Path

import pytest
import torch

from vlkd.engine.bundle import read_card
from vlkd.engine.cli import main
from vlkd.engine.records.record import paper_numbers, read_record, without_seed
from vlkd.engine.records.speed import Speed
from vlkd.errors import UserError


def test_record_of_a_run(toy_config: Path, tmp_path: Path) -> None:
    (toy_config.parent / "paper.yaml").write_text(
        "toy:\n  accuracy: {value: 0.9, source: Table 1}\n  images: 9\nother: {}\n"
    )
    run = tmp_path / "run"
    assert main(["train", str(toy_config), "--run", str(run), "--trainer.max_epochs=1"]) == 0
    record = read_record(run / "record.json")
    assert record["method"] == "toy_method" and record["source"] == str(toy_config) and record["seed"] == 0
    assert record["config"]["model"]["init_args"]["lr"] == 0.01
    assert record["paper"] == {
        "accuracy": {"value": 0.9, "source": "Table 1"},
        "images": {"value": 9.0, "source": ""},
    }
    (bundle,) = run.glob("student-*.safetensors")
    card = read_card(bundle)
    assert record["bundle"] == bundle.name and record["scores"] == card["scores"]
    assert card["validation"] == {"class_path": "toy_method.ToyData"}
    assert record["machine"]["torch"] == torch.__version__ and record["machine"]["threads"] >= 1
    speed = record["speed"]
    # 24 images in less than the whole time, validation and loading included.
    assert speed["images_per_second"] > 24 / (60 * speed["minutes"]) > 0


def test_speed_and_source_go_over_resumptions(toy_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", str(toy_config), "--run", str(run), "--trainer.max_epochs=1"]) == 0
    first = read_record(run / "record.json")
    assert main(["train", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    second = read_record(run / "record.json")
    assert second["source"] == first["source"] == str(toy_config)
    assert second["overrides"] == ["--trainer.max_epochs=1", "--trainer.max_epochs=2"]
    assert second["speed"]["minutes"] > first["speed"]["minutes"]
    saved = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["Speed"]
    assert saved["images"] == 48


class _Trainer:
    world_size = 2


def test_speed_counts_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 15.0, 115.0, 118.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    speed, trainer, batch = Speed(), _Trainer(), torch.zeros(5, 1)
    assert speed.measured() == {"images_per_second": None, "minutes": 0.0}
    speed.on_train_start(trainer, None)  # 0
    speed.on_train_batch_start(trainer, None, batch, 0)  # 10: behind the dry run
    speed.on_train_batch_end(trainer, None, None, batch, 0)  # 12
    speed.on_train_batch_start(trainer, None, batch, 1)
    speed.on_train_batch_end(trainer, None, None, batch, 1)  # 15
    speed.on_validation_end(trainer, None)  # 115
    speed.on_train_batch_end(trainer, None, None, batch, 2)  # 118
    measured = speed.measured()
    assert measured["images_per_second"] == pytest.approx(2 * 15 / (2 + 3 + 3))
    assert measured["minutes"] == pytest.approx(118 / 60)


def test_paper_numbers(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    assert paper_numbers(config) is None
    paper = tmp_path / "paper.yaml"
    paper.write_text("b: {accuracy: 0.5}\n")
    assert paper_numbers(config) is None
    for wrong in ("a: 0.5\n", "a: {accuracy: high}\n", "a: {accuracy: {source: Table 1}}\n"):
        paper.write_text(wrong)
        with pytest.raises(UserError, match=r"paper\.yaml: a[\w.]*: expected (a number|scores)"):
            paper_numbers(config)


def test_wrong_paper_numbers_stop_a_run_before_it_begins(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy_config.parent / "paper.yaml").write_text("toy: {accuracy: high}\n")
    assert main(["train", str(toy_config), "--run", str(tmp_path / "run")]) == 2
    assert "paper.yaml: toy.accuracy: expected a number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_damaged_records(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    good = {"method": "m", "config": {}, "scores": {"a": 1.0}, "seed": 0}
    path.write_text(json.dumps(good))
    assert read_record(path) == good
    for text in (
        "{",
        "[]",
        json.dumps({"scores": {}}),
        json.dumps({**good, "scores": {"a": "x"}}),
        json.dumps({**good, "config": None}),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"record\.json: (damaged|not the record)"):
            read_record(path)


def test_without_seed() -> None:
    config = {"seed_everything": 1, "data": {"class_path": "D", "init_args": {"seed": 1, "world_seed": 2}}}
    assert without_seed(config) == {"data": {"class_path": "D", "init_args": {"world_seed": 2}}}
