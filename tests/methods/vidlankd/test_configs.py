"""The configs of the paper run dry on made files in the true layouts, with a small language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, assert_one_line
from toy_video_text import WORDS, tokenizer_file, write_captions, write_features

from vlkd.engine.bundle import save_bundle
from vlkd.engine.cli import main
from vlkd.methods.vidlankd.teacher import language_bundle
from vlkd.models.language import build_language_model
from vlkd.text.word_ids import load_tokenizer

CONFIGS = ROOT / "configs" / "vidlankd"
SMALL = ["--data.num_workers=0", "--trainer.precision=32", "--trainer.accelerator=cpu", "--data.batch_size=4"]
DRY = ["--model.language=tiny", "--dry-run", "--no-gate", *SMALL]


@pytest.mark.parametrize(
    ("name", "language"), [("howto100m_teacher", "base"), ("howto100m_teacher_small", "small")]
)
def test_teachers_read_two_kinds_of_features(name: str, language: str, tmp_path: Path) -> None:
    config = CONFIGS / f"{name}.yaml"
    assert yaml.safe_load(config.read_text())["model"]["init_args"]["language"] == language
    said = {f"v{k}": [(0.0, 3.0, "w1 w2 w3"), (3.0, 6.0, "w4 w5")] for k in range(12)}
    words = [
        f"--data.captions={write_captions(tmp_path / 'captions.json', said)}",
        f"--data.tokenizer={tokenizer_file(tmp_path)}",
        "--data.held_out=2",
    ]
    folders = [
        write_features(tmp_path / kind, dict.fromkeys(said, rows), 2048)
        for kind, rows in (("2d", 6), ("3d", 9))
    ]
    words.append(f"--data.features={folders}")
    assert main(["train", str(config), "--run", str(tmp_path / "run"), *DRY, *words]) == 0
    assert "x 4096" in (tmp_path / "run" / "dry_run.md").read_text()


@pytest.mark.parametrize(
    ("name", "losses"), [("wiki_student", {"mlm", "nst"}), ("wiki103_student", {"mlm", "nst", "crd"})]
)
def test_students_read_blocks(
    name: str, losses: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, drawn = tokenizer_file(tmp_path), np.random.default_rng(0)
    said = [" ".join(drawn.choice(WORDS, 200)) for _ in range(12)]
    form = "<doc id='1'>\nTitle\n\n{}\n</doc>\n" if name == "wiki_student" else " = Title = \n\n {} \n\n"
    text = tmp_path / "train.txt"
    text.write_text("".join(form.format(line) for line in said))
    with torch.random.fork_rng():
        card, tensors = language_bundle(build_language_model("tiny", load_tokenizer(tokens)))
    teacher = save_bundle(tmp_path / "teacher.safetensors", {"name": "toy", **card}, tensors)
    words = [f"--data.tokenizer={tokens}", f"--data.train={text}", f"--data.val={text}"]
    given = ["train", str(CONFIGS / f"{name}.yaml"), "--run", str(tmp_path / "run"), *DRY, *words]
    if "crd" in losses:
        given.append("--model.options={crd: {negatives: 8}}")
    assert main([*given, f"--model.teacher={teacher}"]) == 0
    table = (tmp_path / "run" / "dry_run.md").read_text().partition("Losses of one batch")[2]
    assert {line.split("|")[1].strip() for line in table.splitlines()[4:]} >= losses
    capsys.readouterr()
    assert main(given) == 2
    assert_one_line(
        capsys.readouterr().err, "model.teacher: missing; give the run folder or bundle of stage 1"
    )
