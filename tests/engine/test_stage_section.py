"""The section `teacher` of a config: what stage 1 has different, in the file and on the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import assert_one_line
from toy_stages import CONFIG

from vlkd.engine.cli import main
from vlkd.engine.experiment import Experiment
from vlkd.engine.stages import composed, first_stage

CALLBACK = '--trainer.callbacks+={"class_path": "exactness.InterruptAt", "init_args": {"step": 2}}'


def train(config: Path, run: Path, *words: str) -> int:
    return main(["train", str(config), "--run", str(run), *words])


def merged_stages(config: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merged configs of stage 1 and of the run."""
    experiment = Experiment(config, words)
    first = first_stage(experiment)
    assert first is not None
    return first.merged(), experiment.merged()


def test_overrides_of_the_section_stay_in_it(two_stages: Path) -> None:
    words = [
        "--teacher.model.lr=1e-3",
        "--teacher.model.weights.kd=0.25",
        "--teacher.data.init_args.shuffle=false",
        "--teacher.trainer.max_steps",
        "7",
        "--teacher.seed_everything=4",
        "--model.lr=0.3",
    ]
    first, run = merged_stages(two_stages, *words)
    assert first["model"]["init_args"]["lr"] == 1e-3 and run["model"]["init_args"]["lr"] == 0.3
    assert first["data"]["init_args"] == {"batch_size": 6, "shuffle": False, "workers": 0, "broken": 0}
    assert run["data"]["init_args"]["shuffle"] is True
    assert first["seed_everything"] == 4 and run["seed_everything"] == 0
    section = run["teacher"]
    assert section == {
        "model": {
            "class_path": "toy_method.Toy",
            "init_args": {"weights": {"ce": 1.0, "kd": 0.25}, "width": 16, "lr": 1e-3},
        },
        "data": {"init_args": {"batch_size": 6, "shuffle": False}},
        "trainer": {"max_epochs": 2, "max_steps": 7},
        "seed_everything": 4,
    }
    # What is written is enough: the resumed run describes the same stages.
    two_stages.write_text(yaml.safe_dump(run))
    assert merged_stages(two_stages) == (first, run)


def test_main_overrides_reach_stage_1_unless_it_sets_the_key(two_stages: Path) -> None:
    first, run = merged_stages(
        two_stages,
        "--data.workers=1",
        "--data.batch_size=3",
        "--trainer.max_epochs=9",
        "--trainer.max_steps=5",
        "--seed_everything=2",
    )
    assert first["data"]["init_args"]["workers"] == 1 and first["data"]["init_args"]["batch_size"] == 6
    assert first["trainer"]["max_epochs"] == 2 and first["trainer"]["max_steps"] == 5
    assert run["data"]["init_args"]["batch_size"] == 3 and run["trainer"]["max_epochs"] == 9
    assert first["seed_everything"] == 2 and "seed_everything" not in run["teacher"]


def test_class_overrides_replace_their_section(two_stages: Path) -> None:
    first, run = merged_stages(
        two_stages, "--teacher.model.class_path=toy_method.Graded", "--teacher.model.recorded=0.5"
    )
    assert first["model"] == run["teacher"]["model"]
    assert first["model"]["class_path"] == "toy_method.Graded"
    assert first["model"]["init_args"]["recorded"] == 0.5 and first["model"]["init_args"]["width"] == 16
    _, run = merged_stages(two_stages, "--model.class_path=toy_stages.Prudent")
    assert run["model"]["class_path"] == "toy_stages.Prudent" and "teacher" in run


def test_null_is_kept(two_stages: Path) -> None:
    first, run = merged_stages(two_stages, CALLBACK, "--teacher.trainer.callbacks=null")
    assert first["trainer"].get("callbacks") is None and run["trainer"]["callbacks"]
    assert run["teacher"]["trainer"] == {"max_epochs": 2, "callbacks": None}


def test_data_of_another_class_replace_the_section(two_stages: Path) -> None:
    two_stages.write_text(
        CONFIG.replace("{init_args: {batch_size: 6}}", "{class_path: toy_stages.SeededData}").replace(
            "data: {class_path: toy_method.ToyData}",
            "data: {class_path: toy_stages.SeededData, init_args: {workers: 1}}",
        )
    )
    first, run = merged_stages(two_stages, "--data.seed=3", "--data.batch_size=5")
    assert first["data"]["init_args"]["workers"] == 0 and first["data"]["init_args"]["batch_size"] == 4
    assert first["data"]["init_args"]["seed"] == 3  # of the run
    assert "seed" not in run["teacher"]["data"].get("init_args", {})
    first, _ = merged_stages(two_stages, "--data.seed=3", "--teacher.data.seed=8")
    assert first["data"]["init_args"]["seed"] == 8


def test_composed_takes_over_key_by_key() -> None:
    run = {
        "seed_everything": 1,
        "data": {"class_path": "D", "init_args": {"a": 1, "options": {"x": 1}}},
        "trainer": {"max_epochs": 3, "precision": 32},
        "model": {"class_path": "M"},
    }
    section = {"model": {"class_path": "T"}, "data": {"init_args": {"options": {"y": 2}}}}
    assert composed({**run, "teacher": section}) == {
        "seed_everything": 1,
        "model": {"class_path": "T"},
        "data": {"class_path": "D", "init_args": {"a": 1, "options": {"y": 2}}},
        "trainer": {"max_epochs": 3, "precision": 32},
    }


ERRORS = [
    (
        "--teacher.trainer.max_epoch=1",
        "--teacher.trainer.max_epoch: unknown key; did you mean teacher.trainer.max_epochs?",
    ),
    ("--teacher.model.lrr=1", "--teacher.model.lrr: unknown key; did you mean teacher.model.init_args.lr?"),
    ("--teacher.modle.lr=1", "--teacher.modle.lr: unknown key; did you mean teacher.model.init_args.lr?"),
    ("--teacher.data.bach_size=1", "did you mean teacher.data.init_args.batch_size?"),
    ("--teacher.trainer.max_epochs=abc", "yaml: teacher.trainer.max_epochs: expected int or null, got 'abc'"),
    (
        "--teacher.model.class_path=toy_method.Toi",
        "yaml: teacher.model.class_path: no class 'toy_method.Toi'",
    ),
    ("--teacher.teacher.model.lr=1", "--teacher.teacher.model.lr: unknown key"),
    ("--teacher.trainer.devices=2", "yaml: teacher.trainer.devices: both stages run in the same processes"),
    ("--model.class_path=toy_method.Toy", "two.yaml: teacher: Toy takes no teacher; leave the section out"),
    ("--model.lrr=1", "--model.lrr: unknown key; did you mean model.init_args.lr?"),
    ("--trainer.max_epochs=abc", "two.yaml: trainer.max_epochs: expected int or null"),
]


@pytest.mark.parametrize(("override", "message"), ERRORS)
def test_wrong_overrides(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert train(two_stages, tmp_path / "run", override) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "run").exists()


EPOCHS, DATA, CLASS = (
    "trainer: {max_epochs: 2}",
    "{init_args: {batch_size: 6}}",
    "class_path: toy_method.Toy, ",
)
FILES = [
    (
        EPOCHS,
        "trainer: {max_epoch: 2}",
        "trainer.max_epoch: unknown key; did you mean teacher.trainer.max_epochs?",
    ),
    (
        EPOCHS,
        "trainr: {max_epochs: 2}",
        "trainr.max_epochs: unknown key; did you mean teacher.trainer.max_epochs?",
    ),
    (EPOCHS, "trainer: {accelerator: tpuu}", "trainer.accelerator: both stages run in the same processes"),
    (
        DATA,
        "{init_args: {bach_size: 6}}",
        "data.init_args.bach_size: unknown key; did you mean teacher.data.init_args.b",
    ),
    (
        DATA,
        "{batch_size: 6}",
        "data.batch_size: unknown key; did you mean teacher.data.init_args.batch_size?",
    ),
    (DATA, "{init_args: {batch_size: x}}", "data.init_args.batch_size: expected int, got 'x'"),
    ("weights: {ce: 1.0, kd: 0.0}, width", "width", "model.init_args.weights: missing"),
    (CLASS, "", "model.class_path: missing; expected the path of a class"),
    (CLASS, "class_path: toy_method.ToyData, ", "model.class_path: toy_method.ToyData is no Distiller"),
]


@pytest.mark.parametrize(("old", "new", "message"), FILES)
def test_wrong_files(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in CONFIG
    two_stages.write_text(CONFIG.replace(old, new, 1))
    assert train(two_stages, tmp_path / "run") == 2
    assert_one_line(capsys.readouterr().err, f"two.yaml: teacher.{message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: runs/x\n", "two.yaml: teacher: expected dict, got 'runs/x'"),
        ("teacher: {}\n", "two.yaml: teacher.model.class_path: missing"),
    ],
)
def test_sections_that_are_none(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    two_stages.write_text(text + CONFIG[CONFIG.index("model: {class_path: toy_stages") :])
    assert train(two_stages, tmp_path / "run") == 2
    assert_one_line(capsys.readouterr().err, message)


def test_a_teacher_beside_the_section_is_refused(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_stages.write_text(CONFIG.replace("{ce: 1.0, kd: 0.5}", "{ce: 1.0, kd: 0.5}, teacher: runs/x"))
    assert train(two_stages, tmp_path / "run") == 2
    assert_one_line(
        capsys.readouterr().err, "model.init_args.teacher: 'runs/x' beside a section teacher; leave one"
    )


def test_printed_config_is_a_config(two_stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = merged_stages(two_stages)
    with pytest.raises(SystemExit):
        main(["train", str(two_stages), "--print_config"])
    two_stages.write_text(capsys.readouterr().out)
    assert merged_stages(two_stages) == before


def test_without_the_section_nothing_is_known_of_it(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(toy_config, tmp_path / "run", "--teacher.trainer.max_epochs=1") == 2
    assert_one_line(capsys.readouterr().err, "--teacher.trainer.max_epochs: unknown key")
    assert first_stage(Experiment(toy_config)) is None
    assert "teacher" not in Experiment(toy_config).merged()


def test_dry_run_is_of_stage_1(two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(two_stages), "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "stage 2: needs the teacher that stage 1 trains" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["dry_run.md"]


def test_check_reads_the_data_of_both(two_stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(two_stages), "--check", "--data.broken=1", "--teacher.data.broken=2"]) == 1
    assert capsys.readouterr().out == (
        "item0.png: truncated\nitem1.png: truncated\n2 problems found\n"
        "item0.png: truncated\n1 problems found\n"
    )
    assert main(["train", str(two_stages), "--check", "--data.batch_size=6"]) == 0  # the same data: read once
    assert capsys.readouterr().out == "no problems found\n"
