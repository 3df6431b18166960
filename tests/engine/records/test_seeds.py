import json
import statistics
from pathlib import Path

import pytest
import torch
from exactness import assert_equal

from vlkd.engine.cli import main
from vlkd.engine.records.seeds import flat, parse_seeds, scores_of, seed_overrides, spread
from vlkd.errors import UserError

SHORT = ["--trainer.max_epochs=1"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def seeds(config: Path, run: Path, *words: str, which: str = "0,1") -> int:
    return main(["train", str(config), "--seeds", which, "--run", str(run), *SHORT, *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and folder of two finished seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    config = folder / "toy.yaml"
    config.write_text(
        "model: {class_path: toy_method.Toy, init_args: {weights: {ce: 1.0, kd: 0.5}, lr: 0.01}}\n"
        "data: {class_path: toy_method.ToyData}\n"
        "trainer: {accelerator: cpu, enable_model_summary: false}\n"
    )
    assert seeds(config, folder / "run") == 0
    return config, folder / "run"


def test_scores_are_put_together(finished: tuple[Path, Path]) -> None:
    _, run = finished
    found = json.loads((run / "seeds.json").read_text())
    records = [json.loads((run / f"seed{k}" / "record.json").read_text()) for k in (0, 1)]
    assert all(record["overrides"] == SHORT for record in records)
    assert [record["seed"] for record in records] == found["seeds"] == [0, 1]
    values = [record["scores"]["accuracy"] for record in records]
    accuracy = found["scores"]["accuracy"]
    assert accuracy["values"] == {"0": values[0], "1": values[1]}
    assert accuracy["mean"] == pytest.approx(sum(values) / 2)
    assert accuracy["sd"] == pytest.approx(statistics.stdev(values))
    assert accuracy["worst"] == min(values)


def test_a_seed_equals_a_run_of_its_own(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = finished
    words = ["--run", str(tmp_path / "alone"), "--seed_everything=1", *SHORT]
    assert main(["train", str(config), *words]) == 0
    assert_equal(weights(run / "seed1"), weights(tmp_path / "alone"), "seed1")
    assert not torch.equal(
        weights(run / "seed0")["student.0.weight"], weights(run / "seed1")["student.0.weight"]
    )


def test_finished_seeds_are_not_run_again(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = finished
    before = (run / "seed0" / "last.ckpt").stat().st_mtime_ns
    assert seeds(config, run) == 0
    out = capsys.readouterr().out
    assert f"{run / 'seed0'}: finished before" in out and "2 seeds" in out
    assert (run / "seed0" / "last.ckpt").stat().st_mtime_ns == before


def test_another_config_is_refused(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, run = finished
    assert seeds(config, run, "--model.lr=0.5") == 2
    err = capsys.readouterr().err
    assert "seed0: was begun with model.init_args.lr=0.01, now it is 0.5" in err


def test_interrupted_seeds_go_on_exactly(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, whole = finished
    run = tmp_path / "run"
    interrupt = '--trainer.callbacks+={"class_path": "exactness.InterruptAt", "init_args": {"step": 2}}'
    assert seeds(config, run, interrupt) == 130  # in seed 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"vlkd train {config} --seeds 0,1 --run {run}")
    assert not (run / "seed1").exists()
    assert seeds(config, run, interrupt) == 130  # seed 0 ends, seed 1 is interrupted
    assert (run / "seed0" / "record.json").exists() and not (run / "seeds.json").exists()
    assert seeds(config, run, interrupt) == 0
    for seed in ("seed0", "seed1"):
        assert_equal(weights(run / seed), weights(whole / seed), seed)
    assert json.loads((run / "seeds.json").read_text())["scores"].keys() == {"accuracy", "images"}


def test_teacher_is_scored_once(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = finished
    assert seeds(config, tmp_path / "run", "--model.class_path=toy_method.Graded") == 0
    lines = [row for row in capsys.readouterr().out.splitlines() if row.startswith("teacher ")]
    plain = "teacher oracle: accuracy 1.0000 (recorded 1.0000)"
    assert lines == [plain, f"{plain} (scored in an earlier seed)"]


def test_data_with_a_seed_of_its_own_gets_it() -> None:
    assert seed_overrides({"data": {"init_args": {"seed": 0}}}, 3) == ["--seed_everything=3", "--data.seed=3"]
    assert seed_overrides({"data": {"init_args": {"world_seed": 0}}}, 3) == ["--seed_everything=3"]
    assert seed_overrides({"data": {"class_path": "Data"}}, 3) == ["--seed_everything=3"]


def test_spread() -> None:
    assert spread({0: 0.5, 1: 0.7, 2: 0.6}) == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.1),
        "worst": 0.5,
        "worst_seed": 0,
    }
    assert spread({4: 0.5}) == {"mean": 0.5, "sd": None, "worst": 0.5, "worst_seed": 4}
    assert spread({0: 0.5, 1: float("nan")})["worst_seed"] == 1
    records = {0: {"scores": {"a": 1.0}}, 1: {"scores": {"a": 3.0, "b": 2.0}}}
    assert scores_of(records)["a"]["mean"] == 2.0 and scores_of(records)["b"]["values"] == {"1": 2.0}


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


@pytest.mark.parametrize("text", ["", "a", "0,1,", "0;1", "1,1", "-1,2", "0.5"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,1", "--seed_everything=3"], "--seeds sets the seed"),
        (["--seeds", "0,1", "--dry-run"], "use --check and --dry-run without it"),
        (
            ["--seeds", "0", "--run", "unused", "--trainer.devices=2", "--trainer.strategy=ddp"],
            "runs on one device, the config uses 2",
        ),
        (["--seeds", "x"], "expected whole numbers"),
    ],
)
def test_wrong_commands(
    toy_config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["train", str(toy_config), *words]) == 2
    assert message in capsys.readouterr().err
