"""Whole runs: two stages by one config, exact resumption of both, the transformers folder, scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml
from exactness import assert_equal, assert_resume_is_exact, losses
from toy_language import batch

from vlkd.engine.bundle import read_card
from vlkd.engine.cli import main
from vlkd.methods.vidlankd import VidLanKD
from vlkd.models.language import load_language_model

TRAINER = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False, "gradient_clip_val": 1.0}
TEACHER = {
    "model": {
        "class_path": "vlkd.methods.vidlankd.VideoTextTeacher",
        "init_args": {"language": "tiny", "video": {"hidden": 12, "positions": 6}, "warmup_steps": 2},
    },
    "data": {"class_path": "toy_language.VideoTextData"},
}
STUDENT = {
    "class_path": "vlkd.methods.vidlankd.VidLanKD",
    "init_args": {
        "language": "tiny",
        "weights": {"mlm": 1.0, "nst": 1.0, "contrastive": 1.0, "crd": 0.5},
        "options": {"crd": {"negatives": 8}},
        "lr": 1e-3,
    },
}
DATA = {"class_path": "toy_language.TextData"}


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("step", [3, 6])
def test_stage_1_resumes_exactly(step: int, tmp_path: Path) -> None:
    assert_resume_is_exact(write(tmp_path / "t.yaml", {**TEACHER, "trainer": TRAINER}), tmp_path, step)


@pytest.mark.parametrize("step", [3, 6])
def test_stage_2_resumes_exactly(step: int, tmp_path: Path, stage1: str) -> None:
    model = {**STUDENT, "init_args": {**STUDENT["init_args"], "teacher": stage1}}  # type: ignore[dict-item]
    config = write(tmp_path / "s.yaml", {"model": model, "data": DATA, "trainer": TRAINER})
    assert_resume_is_exact(config, tmp_path, step)


def test_one_config_runs_both_stages_and_scores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    teacher = {**TEACHER, "trainer": {"max_epochs": 1}}
    config = {"teacher": teacher, "model": STUDENT, "data": DATA, "trainer": TRAINER}
    run = tmp_path / "run"
    path = write(tmp_path / "two.yaml", config)
    assert main(["train", str(path), "--run", str(run), "--trainer.log_every_n_steps=1"]) == 0
    assert read_card(next((run / "teacher").glob("student-*.safetensors")))["kind"] == "video_text"
    (bundle,) = run.glob("student-*.safetensors")
    card = read_card(bundle)
    assert card["kind"] == "language" and card["protocol"]["teacher"] == "run-teacher"
    assert losses(run)[0].keys() >= {"loss/mlm", "loss/nst", "loss/contrastive", "loss/crd", "loss/total"}

    model = load_language_model(bundle)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(str(run / "transformers")).eval()
    given = batch()
    with torch.no_grad():
        expected = model.words(model(given["input_ids"], given["attention_mask"]))
        found = theirs(given["input_ids"], attention_mask=given["attention_mask"]).logits
    assert_equal(found, expected, "transformers folder")
    assert not (run / "teacher" / "transformers").exists()

    from_bundle = VidLanKD.from_bundle(bundle)
    assert from_bundle.protocol == card["protocol"]
    assert main(["test", str(bundle), "--out", str(tmp_path / "a")]) == 0
    assert main(["test", str(path), "--ckpt", str(run), "--out", str(tmp_path / "b")]) == 0
    assert main(["test", str(path), "--ckpt", str(bundle), "--out", str(tmp_path / "d")]) == 0
    assert (
        main(["test", str(next((run / "teacher").glob("*.safetensors"))), "--out", str(tmp_path / "c")]) == 0
    )
    by = {n: yaml.safe_load((tmp_path / n / "record.json").read_text())["scores"] for n in "abcd"}
    assert by["a"] == pytest.approx(card["scores"], rel=1e-5)
    assert by["b"] == pytest.approx(card["scores"], rel=1e-5)
    assert by["d"] == by["a"]
    assert by["c"] == pytest.approx(
        read_card(next((run / "teacher").glob("*.safetensors")))["scores"], rel=1e-5
    )


def test_what_is_wrong_in_stage_2_is_said_before_stage_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**STUDENT, "init_args": {"language": "tiny", "weights": {"mlm": 1.0, "nts": 1.0}}}
    config = {"teacher": TEACHER, "model": model, "data": DATA, "trainer": TRAINER}
    assert main(["train", str(write(tmp_path / "w.yaml", config)), "--run", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert "model.weights.nts: no such loss" in captured.err + captured.out
    assert not list(tmp_path.glob("run/teacher/*.ckpt"))
