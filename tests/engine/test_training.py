import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from vlkd.engine.bundle import load_bundle
from vlkd.engine.cli import main
from vlkd.engine.curves import draw_curves, join


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of the toy method."""
    folder = tmp_path_factory.mktemp("training")
    config = folder / "toy.yaml"
    config.write_text(
        "model: {class_path: toy_method.Toy, init_args: {weights: {ce: 1.0, kd: 0.0}, lr: 0.05}}\n"
        "data: {class_path: toy_method.ToyData}\n"
        "trainer: {max_epochs: 8, accelerator: cpu, log_every_n_steps: 1, enable_model_summary: false}\n"
    )
    assert main(["train", str(config), "--run", str(folder / "run"), "--trainer.max_epochs=9"]) == 0
    return folder / "run"


def test_run_folder_tells_everything(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 9  # the override
    assert config["model"]["init_args"]["width"] == 8  # a default
    versions = json.loads((run / "versions.json").read_text())
    assert versions["torch"] and versions["seed"] == 0 and "git" in versions and versions["command"]
    assert list((run / "tensorboard").glob("events*"))
    with Image.open(run / "curves.png") as picture:
        assert picture.width > 600
    assert not [path for path in run.iterdir() if "tmp" in path.name]


def test_training_learns(run: Path) -> None:
    rows = join(run)
    losses = [float(row["loss/ce"]) for row in rows if row["loss/ce"]]
    assert len(losses) == 9 * 6
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


@pytest.mark.parametrize("other, scales", [(20.0, ["log", "log"]), (0.5, ["log"])])
def test_perplexity_does_not_press_fractions_flat(tmp_path: Path, monkeypatch, other, scales) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,loss/ce,score/P1,score/other\n1,2.0,0.9,{other}\n")
    drawn: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_yscale", lambda axes, scale: drawn.append(scale))
    draw_curves(tmp_path)
    assert drawn == scales


def test_checkpoint_is_safe_and_without_teacher(run: Path) -> None:
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["global_step"] == 54
    assert {name.split(".")[0] for name in state["state_dict"]} == {"student"}


def test_bundle_holds_student_scores_and_protocol(run: Path) -> None:
    (path,) = run.glob("student-*.safetensors")
    card, tensors = load_bundle(path)
    assert card["scores"].keys() == {"accuracy", "images"}
    assert card["protocol"]["checkpoint"].startswith("last step")
    assert card["config"]["model"]["class_path"] == "toy_method.Toy"
    assert card["command"]
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_bundle_and_checkpoint_are_scored_alike(run: Path, tmp_path: Path) -> None:
    (bundle,) = run.glob("student-*.safetensors")
    expected = load_bundle(bundle)[0]["scores"]
    targets = [
        [str(bundle)],
        [str(run / "config.yaml"), "--ckpt", str(run)],
        [str(run / "config.yaml"), "--ckpt", str(bundle)],
    ]
    for place, words in enumerate(targets):
        out = tmp_path / str(place)
        assert main(["test", *words, "--out", str(out)]) == 0
        record = json.loads((out / "record.json").read_text())
        assert record["scores"] == pytest.approx(expected)
        assert record["protocol"]["checkpoint"] and record["config"]["data"]


def test_scores_on_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle,) = run.glob("student-*.safetensors")
    assert main(["test", str(bundle), "--out", str(tmp_path), "--data.batch_size=2"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"]["data"]["init_args"]["batch_size"] == 2
    assert main(["test", str(bundle), "--data.batch=2"]) == 2
    assert "did you mean data.init_args.batch_size?" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle,) = run.glob("student-*.safetensors")
    for weights in (run, bundle):
        words = ["test", str(run / "config.yaml"), "--ckpt", str(weights), "--model.width=9"]
        assert main(words) == 2
        assert "student." in capsys.readouterr().err


def test_damaged_checkpoint_is_one_line(
    toy_config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = toy_config.parent / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text((run / "config.yaml").read_text())
    (broken / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    assert main(["train", "--resume", str(broken)]) == 2
    assert "last.ckpt: damaged or unsafe checkpoint" in capsys.readouterr().err


def test_pickled_code_is_not_run(toy_config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsafe = toy_config.parent / "unsafe"
    unsafe.mkdir()
    (unsafe / "config.yaml").write_text((run / "config.yaml").read_text())
    torch.save({"state_dict": {}, "code": Path("x")}, unsafe / "last.ckpt")
    assert main(["train", "--resume", str(unsafe)]) == 2
    assert "damaged or unsafe" in capsys.readouterr().err


def test_resume_can_train_longer(toy_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", str(toy_config), "--run", str(run), "--trainer.max_epochs=1"]) == 0
    assert main(["train", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 12
    steps = [int(row["step"]) for row in join(run) if row.get("score/accuracy")]
    assert steps == [5, 11]  # the log of the first part is still there
    assert not list(run.glob("metrics.*.csv"))


def test_interruption_says_how_to_go_on(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    interrupt = '{"class_path": "exactness.InterruptAt", "init_args": {"step": 2}}'
    assert main(["train", str(toy_config), "--run", str(run), f"--trainer.callbacks+={interrupt}"]) == 130
    assert capsys.readouterr().out.splitlines()[-1] == f"vlkd train --resume {run}"
    assert not list(run.glob("student-*"))


def test_second_run_in_the_same_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(run / "config.yaml"), "--run", str(run)]) == 2
    assert f"--resume {run}" in capsys.readouterr().err


def test_default_folder_is_named_after_the_config_and_its_folder(
    toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        assert main(["train", str(toy_config), "--trainer.max_steps=1"]) == 0
    found = sorted(path.name for path in (tmp_path / "runs" / f"{tmp_path.name}-toy").iterdir())
    assert found == ["20260101-000000", "20260101-000000-2"]


def test_check_lists_problems(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(toy_config), "--check"]) == 0
    assert capsys.readouterr().out == "no problems found\n"
    assert main(["train", str(toy_config), "--check", "--data.broken=2"]) == 1
    out = capsys.readouterr().out
    assert out == "item0.png: truncated\nitem1.png: truncated\n2 problems found\n"
