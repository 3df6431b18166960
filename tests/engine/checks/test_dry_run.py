from pathlib import Path

import pytest
import torch
from exactness import assert_equal, losses
from toy_method import Remembering, Toy

from vlkd.engine.checks.dry_run import parts, run_dry
from vlkd.engine.cli import main

WEIGHTS = {"ce": 1.0, "kd": 0.5}
REMEMBERING = [
    "--model.class_path=toy_method.Remembering",
    "--model.weights={ce: 1.0, kd: 0.5, far: 0.1}",
    "--trainer.log_every_n_steps=1",
]


def batch() -> dict[str, torch.Tensor]:
    return {"images": torch.randn(6, 4), "labels": torch.randint(2, (6,))}


def test_dry_run_changes_nothing_in_training(toy_config: Path, tmp_path: Path) -> None:
    for name, words in {"with": [], "without": ["--no-dry-run"]}.items():
        assert main(["train", str(toy_config), "--run", str(tmp_path / name), *REMEMBERING, *words]) == 0
    assert (tmp_path / "with" / "dry_run.md").exists() and not (tmp_path / "without" / "dry_run.md").exists()
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("with", "without"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(one[part], two[part], part)
    assert_equal(losses(tmp_path / "with"), losses(tmp_path / "without"), "losses")


def test_method_comes_back_as_it_was() -> None:
    method = Remembering({**WEIGHTS, "far": 1.0})
    logged = []
    method.log = log = lambda *a, **k: logged.append(a)  # outside a trainer
    # Once for real: the state to keep is not the initial one.
    given = batch()
    method.compute_losses(dict(given))
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    kept = (method.steps, list(method.history), method.plain.clone(), method.latest["mean"].clone())
    random, own, bank = torch.get_rng_state(), method.generator.get_state(), method.bank
    before = {name: tensor.clone() for name, tensor in given.items()}
    run_dry(method, given)
    assert_equal(dict(method.state_dict()), state, "state")
    assert_equal((method.steps, method.history, method.plain, method.latest["mean"]), kept, "attributes")
    assert method.bank is bank
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(method.generator.get_state(), own)
    assert_equal(given, before, "batch")
    assert all(parameter.grad is None for parameter in method.parameters())
    assert logged == [("seen", 1.0)]  # by the real call, not by the dry run
    assert vars(method)["log"] is log and "log_dict" not in vars(method)


def test_method_comes_back_also_after_an_error() -> None:
    method = Remembering(WEIGHTS)  # a loss without weight
    with pytest.raises(Exception, match=r"model\.weights\.far: missing"):
        run_dry(method, batch())
    assert method.steps == 0 and not method.bank.any() and "log" not in vars(method)


def test_tables_tell_what_trains() -> None:
    method = Remembering({**WEIGHTS, "far": 1.0})
    method.norm.bias.requires_grad_(False)
    (part, features, loss), warnings = run_dry(method, batch())
    rows = {row[0]: row[1:] for row in part.rows}
    # Linear(4, 8), LayerNorm(8), Linear(8, 2); columns: parameters, trainable, with gradient, buffers.
    assert rows["student"] == [40 + 16 + 18, 74, 74, 0]
    assert rows["norm"] == [8, 4, 4, 9]
    assert rows["idle"] == [9, 9, 0, 0]
    assert rows["teacher (held, frozen)"] == [10, 0, 0, 0]
    assert rows["(own)"] == [4, 0, 0, 0]
    assert features.columns == ["part", "width", "grid"] and features.rows[1] == ["teacher", None, "1x1"]
    assert [row[0] for row in loss.rows] == ["ce", "kd", "far"]
    assert loss.rows[1][3] == pytest.approx(0.5 * loss.rows[1][1])
    assert warnings == ["trainable, but without gradient: idle.weight, idle.bias"]


def test_a_loss_that_is_no_number_is_named() -> None:
    method = Toy(WEIGHTS)
    method.held("teacher").bias.fill_(float("inf"))
    assert run_dry(method, batch())[1] == ["not a finite number: loss kd"]


def test_all_frozen() -> None:
    method = Toy(WEIGHTS)
    method.requires_grad_(False)
    (part, _), warnings = run_dry(method, batch())
    assert part.rows[0] == ["student", 74, 0, 0, 0] and not warnings


def test_lists_of_modules_are_opened_once() -> None:
    method = Toy(WEIGHTS)
    method.terms = torch.nn.ModuleDict({"kd": torch.nn.Linear(1, 1), "nd": torch.nn.Linear(1, 2)})
    method.hold("text", method.held("teacher"))
    assert [*parts(method)] == ["student", "terms.kd", "terms.nd", "teacher (held, frozen)"]


def test_dry_run_only(toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(toy_config), "--run", str(run), "--dry-run", *REMEMBERING]) == 0
    out = capsys.readouterr().out
    assert (
        "| idle | 9 | 9 | 0 | 0 |" in out and "warning: trainable, but without gradient: idle.weight" in out
    )
    assert [path.name for path in run.iterdir()] == ["dry_run.md"]
    text = (run / "dry_run.md").read_text()
    assert "## Parts" in text and "| student | 8 | - |" in text and "- trainable, but without" in text
    # Nothing was trained there: the folder is free.
    assert main(["train", str(toy_config), "--run", str(run), "--trainer.max_epochs=1"]) == 0


def test_resumed_run_is_not_run_dry(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(toy_config), "--run", str(run), "--trainer.max_epochs=1"]) == 0
    assert "## Losses of one batch" in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert "## Losses of one batch" not in capsys.readouterr().out


def test_dry_run_takes_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path), "--dry-run"]) == 2
    assert "--seeds and --dry-run take a config" in capsys.readouterr().err
