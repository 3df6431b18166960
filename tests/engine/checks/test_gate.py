import json
from pathlib import Path

import pytest
import torch

from vlkd.engine.checks.gate import line, refuse, same_images, validation_images
from vlkd.engine.cli import main

GRADED = "--model.class_path=toy_method.Graded"


def train(config: Path, run: Path, *words: str) -> int:
    return main(["train", str(config), "--run", str(run), GRADED, "--trainer.max_epochs=1", *words])


def teacher_lines(text: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith("teacher ")]


def test_teacher_as_recorded_passes_and_is_kept(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(toy_config, tmp_path / "run") == 0
    assert teacher_lines(capsys.readouterr().out) == ["teacher oracle: accuracy 1.0000 (recorded 1.0000)"]
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["teacher"]["scores"] == {"accuracy": 1.0} and record["teacher"]["compared"]


def test_teacher_below_its_record_ends_the_run(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(toy_config, run, "--model.wrong=true") == 2
    out = capsys.readouterr()
    (error,) = [row for row in out.err.splitlines() if row.startswith("error: ")]
    assert "teacher oracle: accuracy 0.0000, recorded 1.0000" in error
    assert all(word in error for word in ("normalisation", "image size", "class order", "--no-gate"))
    assert not (run / "last.ckpt").exists()
    # The folder holds no run, so that the next attempt may use it.
    assert train(toy_config, run, "--model.wrong=true", "--no-gate") == 0
    assert not teacher_lines(capsys.readouterr().out)
    record = json.loads((run / "record.json").read_text())
    assert record["teacher"] is None and record["overrides"].count("--model.wrong=true") == 1


def test_tolerance(toy_config: Path, tmp_path: Path) -> None:
    words = ["--model.wrong=true", "--model.recorded=0.3"]
    assert train(toy_config, tmp_path / "run", *words, "--gate-tolerance=0.29") == 2
    assert train(toy_config, tmp_path / "run", *words, "--gate-tolerance=0.31") == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.recorded=null"], "teacher oracle: accuracy 0.0000 (unrecorded)"),
        (
            ["--model.data=other.Data"],
            "teacher oracle: accuracy 0.0000 (recorded 1.0000); "
            "not compared: recorded on other images, other.Data",
        ),
        (
            ["--trainer.limit_val_batches=1"],
            "teacher oracle: accuracy 0.0000 (recorded 1.0000); "
            "not compared: only a part of the validation images was scored",
        ),
        (["--trainer.limit_val_batches=0"], "teacher oracle: not scored (this run has no validation)"),
    ],
)
def test_what_is_not_comparable_is_only_printed(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert train(toy_config, tmp_path / "run", "--model.wrong=true", *words) == 0
    assert teacher_lines(capsys.readouterr().out) == [expected]


def test_method_that_cannot_score_says_so(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(toy_config), "--run", str(tmp_path / "run"), "--trainer.max_epochs=1"]) == 0
    assert "teacher: not scored (Toy has no score for it on ToyData)" in capsys.readouterr().out


def test_gate_leaves_no_trace_and_is_not_repeated(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in {"with": [], "without": ["--no-gate"]}.items():
        assert train(toy_config, tmp_path / name, *words) == 0
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("with", "without"))
    assert all(torch.equal(one["state_dict"][k], value) for k, value in two["state_dict"].items())
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "with"), "--trainer.max_epochs=2"]) == 0
    assert not teacher_lines(capsys.readouterr().out)
    record = json.loads((tmp_path / "with" / "record.json").read_text())
    assert record["teacher"]["name"] == "oracle"  # carried over from the first part


def test_same_images() -> None:
    section = {"class_path": "a.Data", "init_args": {"kind": "cifar10", "val_limit": None, "batch_size": 4}}
    found = validation_images(section, object())
    assert found == {"class_path": "a.Data", "kind": "cifar10", "val_limit": None}
    assert same_images({"validation": found}, found) and same_images({"data": "a.Data"}, found)
    assert same_images({}, found)  # nothing speaks against it
    assert not same_images({"validation": {**found, "kind": "cifar100"}}, found)
    assert not same_images({"data": "b.Data"}, found)

    class Fingerprinted:
        def val_fingerprint(self) -> str:
            return "12"

    known = validation_images(section, Fingerprinted())
    assert known["fingerprint"] == "12"
    # A fingerprint decides alone: the same images may be read by another class.
    assert same_images({"validation": known}, {**known, "class_path": "b.Data"})
    assert not same_images({"validation": known}, {**known, "fingerprint": "13"})


def test_refusal_is_one_sided_and_takes_no_nan() -> None:
    result = {"name": "t", "recorded": {"a": 0.5}, "compared": True, "reason": None}
    refuse({**result, "scores": {"a": 0.9}}, 0.01)
    refuse({**result, "scores": {"a": 0.491}}, 0.01)
    for low in (0.48, float("nan")):
        with pytest.raises(Exception, match=r"recorded 0\.5"):
            refuse({**result, "scores": {"a": low}}, 0.01)
    assert line({**result, "scores": {"a": 0.25, "b": 1.0}}) == (
        "teacher t: a 0.2500 (recorded 0.5000), b 1.0000 (unrecorded)"
    )


def test_wrong_tolerance(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(toy_config), "--gate-tolerance=much"]) == 2
    assert "--gate-tolerance much: expected a number" in capsys.readouterr().err
