"""Every wrong config is one line on stderr that names the key, and exit code 2."""

from pathlib import Path

import pytest
from commands import assert_one_line

from vlkd.engine.cli import main

WORLD = Path(__file__).resolve().parents[2] / "configs" / "gkc" / "world.yaml"

OVERRIDES = [
    ("--trainer.max_epoch=1", "--trainer.max_epoch: unknown key; did you mean trainer.max_epochs?"),
    ("--model.init_args.lrr=1", "--model.init_args.lrr: unknown key; did you mean model.init_args.lr?"),
    ("--model.lrr=1", "did you mean model.init_args.lr?"),
    ("--lr=1", "--lr: unknown key; did you mean model.init_args.lr?"),
    ("--data.bach_size=3", "did you mean data.init_args.batch_size?"),
    ("--trainer.max_epochs=abc", "trainer.max_epochs: expected int or null, got 'abc'"),
    ("--model.lr=abc", "model.init_args.lr: expected float, got 'abc'"),
    ("--model.weights.ce=x", "model.init_args.weights: expected float, got 'x'"),
    ("--data.batch_size=2.5", "data.init_args.batch_size: expected int, got '2.5'"),
    (
        "--model.schedule=cosin",
        "model.init_args.schedule: expected Literal['cosine', 'poly', 'linear', 'step', 'constant']",
    ),
    ("--seed_everything=x", "seed_everything: expected bool or int, got 'x'"),
    ("--model.class_path=toy_method.Toi", "model.class_path: no class 'toy_method.Toi'"),
    ("--trainer.accelerator=foo", "trainer: You selected an invalid accelerator"),
    ("--data.broken=-1", "data.broken: expected at least 0"),
    ("--model.weights={ce: 1.0}", "model.weights.kd: missing; the method has the losses ['ce', 'kd']"),
    ("--model.weights={ce: 1.0, kd: 1.0, x: 1.0}", "model.weights.x: no such loss"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_overrides(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["train", str(toy_config), "--run", str(tmp_path / "run"), override]) == 2
    assert_one_line(capsys.readouterr().err, message)


FILES = [
    ("  max_epochs: 3", "  max_epoch: 3", "trainer.max_epoch: unknown key; did you mean trainer.max_epochs?"),
    ("trainer:", "trainr:", "trainr.max_epochs: unknown key; did you mean trainer.max_epochs?"),
    ("weights:", "wights:", "model.init_args.wights.ce: unknown key; did you mean model.init_args.weights"),
    ("ce: 1.0", "ce: x", "model.init_args.weights: expected float, got 'x'"),
    ("    weights: {ce: 1.0, kd: 0.5}\n", "", "model.init_args.weights: missing"),
    ("  max_epochs: 3", "  max_epochs: [", "toy.yaml:13: not valid YAML"),
    ("data:\n  class_path: toy_method.ToyData\n", "", "data.class_path: missing"),
    ("toy_method.ToyData", "toy_method.Toy", "data.class_path: toy_method.Toy is no LightningDataModule"),
    ("toy_method.Toy\n", "toymethod.Toy\n", "model.class_path: no class 'toymethod.Toy'"),
]


@pytest.mark.parametrize(("old", "new", "message"), FILES)
def test_files(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = toy_config.read_text()
    assert old in text
    toy_config.write_text(text.replace(old, new))
    assert main(["train", str(toy_config), "--run", str(tmp_path / "run")]) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    for name, message in [
        ("absent.yaml", "absent.yaml: cannot be read: No such file"),
        ("list.yaml", "list.yaml: expected keys and values"),
        ("binary.yaml", "binary.yaml: not a text file"),
    ]:
        assert main(["train", str(tmp_path / name)]) == 2
        assert_one_line(capsys.readouterr().err, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "a config is missing"),
        (["train", "a.yaml", "--resume", "run"], "--resume takes its config from the run"),
        (["train", "--resume", "nowhere"], "nowhere/config.yaml: missing"),
        (["test", "a.yaml"], "a.yaml: cannot be read"),
        (["test", str(WORLD)], "add --ckpt"),
        (["test", "no/such.safetensors"], "no such file"),
        (["trian"], "trian: unknown command"),
    ],
)
def test_wrong_commands(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    assert_one_line(capsys.readouterr().err, message)
