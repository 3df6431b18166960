"""A run whose first stage trains its teacher: the same to the last bit wherever it is stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import assert_one_line, train_in_processes
from exactness import assert_equal, losses
from toy_stages import CONFIG

from vlkd.engine.bundle import load_bundle
from vlkd.engine.cli import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages that was never stopped."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "two.yaml").write_text(CONFIG)
    assert train(folder / "two.yaml", folder / "run") == 0
    return folder / "run"


def train(config: Path, run: Path, *words: str) -> int:
    return main(["train", str(config), "--run", str(run), "--no-dry-run", *words])


def resume(run: Path, *words: str) -> int:
    return main(["train", "--resume", str(run), "--no-dry-run", *words])


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "record.json").read_text())


def written(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def interrupt(step: int, during: str = "training") -> str:
    return (
        '.callbacks+={"class_path": "exactness.InterruptAt", '
        f'"init_args": {{"step": {step}, "during": "{during}"}}}}'
    )


def assert_same_run(found: Path, expected: Path, logged: bool = True) -> None:
    """Checkpoints and scores of both stages, and their logged losses."""
    for stage in ("teacher", "."):
        one, other = (torch.load(run / stage / "last.ckpt", weights_only=True) for run in (found, expected))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_equal(one[part], other[part], f"{stage}.{part}")
        if logged:
            assert_equal(losses(found / stage), losses(expected / stage), f"{stage}.losses")
        assert record(found / stage)["scores"] == record(expected / stage)["scores"]


# --- both stages from one command --------------------------------------------------------------------------


def test_both_stages_are_whole_runs(whole: Path) -> None:
    files = {"config.yaml", "versions.json", "last.ckpt", "metrics.csv", "curves.png", "record.json"}
    for stage in (whole, whole / "teacher"):
        assert files <= {path.name for path in stage.iterdir()}
        assert len(list(stage.glob("student-*.safetensors"))) == 1
    assert written(whole / "teacher")["model"]["class_path"] == "toy_method.Toy"
    assert written(whole / "teacher")["trainer"]["max_epochs"] == 2
    assert written(whole / "teacher")["trainer"]["log_every_n_steps"] == 1  # of the main section
    assert torch.load(whole / "teacher" / "last.ckpt", weights_only=True)["global_step"] == 2 * 4
    assert torch.load(whole / "last.ckpt", weights_only=True)["global_step"] == 3 * 6
    assert [
        json.loads((p / "versions.json").read_text()).get("resumed") for p in (whole, whole / "teacher")
    ] == [
        None,
        None,
    ]


def test_config_keeps_the_section_and_no_path(whole: Path) -> None:
    config = written(whole)
    assert config["teacher"] == yaml.safe_load(CONFIG.replace("5e-2", "0.05"))["teacher"]
    assert "teacher" not in config["model"]["init_args"]
    (bundle,) = whole.glob("student-*.safetensors")
    assert load_bundle(bundle)[0]["config"] == config


def test_record_keeps_the_scores_of_stage_1(whole: Path) -> None:
    first, second = record(whole / "teacher"), record(whole)
    assert second["stages"] == {
        "teacher": {
            "scores": first["scores"],
            "protocol": first["protocol"],
            "bundle": f"teacher/{first['bundle']}",
        }
    }
    assert first["stage"] == "teacher" and "stages" not in first and "stage" not in second
    # The gate scored the bundle of stage 1 on the data of stage 2.
    assert second["teacher"]["recorded"]["accuracy"] == first["scores"]["accuracy"]


def test_stage_2_equals_a_run_with_that_bundle(two_stages: Path, whole: Path, tmp_path: Path) -> None:
    bundle = whole / "teacher" / record(whole / "teacher")["bundle"]
    assert train(two_stages, tmp_path / "run", f"--model.teacher={bundle}") == 0
    one, other = (torch.load(run / "last.ckpt", weights_only=True) for run in (tmp_path / "run", whole))
    assert_equal(one["state_dict"], other["state_dict"], "state_dict")


def test_lines_tell_the_stages(two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(two_stages, run, "--trainer.max_epochs=1", "--teacher.trainer.max_epochs=1") == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (
        lines.index(f"stage 1: teacher, in {run / 'teacher'}"),
        lines.index(f"stage 2: student, in {run}"),
    )
    assert first < lines.index(f"run folder: {run / 'teacher'}") < second < lines.index(f"run folder: {run}")


def test_report_has_a_row_for_each_stage(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(whole), "--out", str(tmp_path), "--format", "md"]) == 0
    rows = [
        line.split(" | ")[0] for line in (tmp_path / "report.md").read_text().splitlines() if "two" in line
    ]
    place = f"| {whole.parent.name}/two"
    assert rows == [place, f"{place}/teacher"]


def test_any_method_with_a_teacher(tmp_path: Path) -> None:
    """KD on the drawn world, its teacher as in configs/kd/world_teacher.yaml."""
    path = tmp_path / "kd.yaml"
    path.write_text(
        "teacher:\n"
        "  model: {class_path: vlkd.methods.kd.KD, init_args: "
        "{student: resnet20, num_classes: 34, weights: {ce: 1.0}, lr: 0.1}}\n"
        "model: {class_path: vlkd.methods.kd.KD, init_args: "
        "{student: resnet8, weights: {ce: 0.1, kd: 0.9}, lr: 0.1}}\n"
        "data: {class_path: vlkd.data.WorldClassificationData, init_args: "
        "{train_images: 32, val_images: 32, batch_size: 16}}\n"
        "trainer: {max_steps: 1, accelerator: cpu}\n"
    )
    assert train(path, tmp_path / "run") == 0
    gate = record(tmp_path / "run")["teacher"]
    assert gate["compared"] and gate["scores"]["accuracy"] == pytest.approx(gate["recorded"]["accuracy"])
    shutil.rmtree(tmp_path / "run" / "teacher")
    bundle = tmp_path / "run" / record(tmp_path / "run")["bundle"]
    assert main(["test", str(bundle), "--out", str(tmp_path / "test")]) == 0


# --- stopped and resumed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "step", "during"),
    [
        pytest.param("teacher", 3, "training", id="stage 1"),
        pytest.param("teacher", 4, "validation", id="validation of stage 1"),
        pytest.param("teacher", 8, "training", id="last step of stage 1"),
        pytest.param(".", 1, "training", id="first step of stage 2"),
        pytest.param(".", 9, "training", id="stage 2"),
    ],
)
def test_resume_is_exact(
    two_stages: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    step: int,
    during: str,
) -> None:
    run = tmp_path / "run"
    # The callbacks of the main section reach stage 1 as well, so there they are taken back.
    words = ["--teacher.trainer" + interrupt(step, during)]
    if stage == ".":
        words = ["--trainer" + interrupt(step, during), "--teacher.trainer.callbacks=null"]
    assert train(two_stages, run, *words) == 130
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"stopped; everything is saved in {run / stage / 'last.ckpt'}. Continue with:",
        f"vlkd train --resume {run}",
    ]
    assert torch.load(run / stage / "last.ckpt", weights_only=True)["global_step"] == step
    assert (run / "last.ckpt").exists() == (run / "teacher" / "record.json").exists() == (stage == ".")
    assert resume(run) == 0
    # Of a run stopped at its very last step, of two stages or one, the log has no losses of that step.
    assert_same_run(run, whole, logged=(stage, step) != ("teacher", 8))
    out = capsys.readouterr().out
    assert f"stage 1: teacher, in {run / 'teacher'}{': finished before' if stage == '.' else ''}\n" in out
    assert record(run)["overrides"] == words
    assert Path(record(run / "teacher")["source"]) == Path(record(run)["source"]) == two_stages


def test_stage_1_without_a_checkpoint_begins_again(two_stages: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(two_stages, run, "--teacher.trainer" + interrupt(3)) == 130
    (run / "teacher" / "last.ckpt").unlink()
    assert resume(run, "--teacher.trainer.callbacks=null") == 0
    assert_same_run(run, whole)
    assert Path(record(run / "teacher")["source"]) == two_stages
    assert len(record(run / "teacher")["overrides"]) == 2


def test_ctrl_c_between_the_stages_says_how_to_go_on(
    two_stages: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"

    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vlkd.engine.stages.take_teacher", ctrl_c)
        assert train(two_stages, run) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["stopped. Continue with:", f"vlkd train --resume {run}"]
    assert resume(run) == 0
    assert_same_run(run, whole)


def test_stopped_between_the_stages(two_stages: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in [run / "last.ckpt", run / "record.json", run / "metrics.csv", *run.glob("student-*")]:
        path.unlink()
    before = (run / "teacher" / "last.ckpt").stat().st_mtime_ns
    assert resume(run) == 0
    assert_same_run(run, whole)
    assert (run / "teacher" / "last.ckpt").stat().st_mtime_ns == before
    assert len(json.loads((run / "versions.json").read_text())["resumed"]) == 1


def test_finished_stage_takes_no_overrides(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert resume(run, "--teacher.model.lr=0.5") == 2
    assert_one_line(capsys.readouterr().err, "--teacher.model.lr=0.5: stage 1 is finished; leave it out")
    assert resume(run, "--trainer.max_epochs=4") == 0  # stage 2 alone trains longer
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4 * 6
    assert torch.load(run / "teacher" / "last.ckpt", weights_only=True)["global_step"] == 2 * 4


def test_a_run_of_one_stage_needs_its_checkpoint(
    two_stages: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole / "teacher", run)
    (run / "last.ckpt").unlink()
    assert resume(run) == 2
    assert_one_line(capsys.readouterr().err, f"{run / 'last.ckpt'}: missing; --resume expects the folder")


def test_lost_teacher_is_one_line(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    bundle = run / "teacher" / record(run / "teacher")["bundle"]
    bundle.unlink()
    assert resume(run) == 2
    assert_one_line(capsys.readouterr().err, f"{bundle}: missing; it is the teacher that stage 1 trained")


def test_run_folder_with_a_teacher_is_refused(
    two_stages: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "teacher", tmp_path / "run" / "teacher")
    assert train(two_stages, tmp_path / "run") == 2
    assert_one_line(capsys.readouterr().err, f"{tmp_path / 'run' / 'teacher'}: already holds a run; choose")


def test_a_stage_1_that_fails_leaves_the_folder_free(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(two_stages, tmp_path / "run", "--teacher.data.broken=-1") == 2
    assert_one_line(capsys.readouterr().err, "data.broken: expected at least 0")
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert train(two_stages, tmp_path / "run", "--trainer.max_epochs=1") == 0
    assert record(tmp_path / "run")["overrides"] == ["--trainer.max_epochs=1"]


def test_a_stage_2_that_fails_keeps_the_teacher(
    two_stages: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--data.broken=-1", "--teacher.data.broken=0"]
    assert train(two_stages, run, *words) == 2
    assert_one_line(capsys.readouterr().err, "data.broken: expected at least 0")
    assert resume(run, "--data.broken=0") == 0
    assert_same_run(run, whole)


# --- stage 1 left out, several seeds, checks ---------------------------------------------------------------


def test_a_given_teacher_skips_stage_1(
    two_stages: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = whole / "teacher" / record(whole / "teacher")["bundle"]
    run = tmp_path / "run"
    words = [f"--model.teacher={bundle}", "--trainer.max_epochs=1"]
    assert train(two_stages, run, *words) == 0
    out = capsys.readouterr().out
    assert f"stage 1: left out, model.teacher is given: {bundle}" in out and "stage 2" not in out
    assert not (run / "teacher").exists() and "teacher" not in written(run)
    assert written(run)["model"]["init_args"]["teacher"] == str(bundle)
    assert "stages" not in record(run)
    assert resume(run, "--trainer.max_epochs=2") == 0  # an ordinary run from here on


def test_seeds_have_teachers_of_their_own(
    two_stages: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # Stopped in stage 1 of seed 0, then in stage 1 of seed 1: there, the callback stands in the config.
    words = ["--seeds", "0,1", "--teacher.trainer" + interrupt(3)]
    assert train(two_stages, run, *words) == 130
    assert not (run / "seed0" / "last.ckpt").exists()
    assert train(two_stages, run, *words) == 130
    assert (run / "seed0" / "record.json").exists() and (run / "seed1" / "teacher" / "last.ckpt").exists()
    assert train(two_stages, run, *words) == 0
    assert f"{run / 'seed0'}: finished before" in capsys.readouterr().out
    assert_same_run(run / "seed0", whole)
    one, other = (
        torch.load(run / seed / "teacher" / "last.ckpt", weights_only=True) for seed in ("seed0", "seed1")
    )
    assert not torch.equal(one["state_dict"]["student.0.weight"], other["state_dict"]["student.0.weight"])
    assert record(run / "seed1" / "teacher")["seed"] == 1
    assert json.loads((run / "seeds.json").read_text())["scores"].keys() == {"accuracy", "images"}
    assert main(["report", str(run), "--out", str(tmp_path / "report"), "--format", "md"]) == 0
    rows = [
        line.split(" | ")[1]
        for line in (tmp_path / "report" / "report.md").read_text().splitlines()
        if "two" in line
    ]
    assert rows == ["2", "2"]  # seeds of stage 2 and of stage 1
    assert train(two_stages, run, *words, "--teacher.model.lr=0.5") == 2
    assert "was begun with teacher.model.init_args.lr=0.05, now it is 0.5" in capsys.readouterr().err


def test_gate_options_are_those_of_both(
    two_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--teacher.model.class_path=toy_method.Graded", "--teacher.model.wrong=true"]
    assert train(two_stages, tmp_path / "run", *words) == 2
    assert "teacher oracle: accuracy 0.0000, recorded 1.0000" in capsys.readouterr().err
    assert train(two_stages, tmp_path / "run", *words, "--no-gate") == 0
    assert record(tmp_path / "run" / "teacher")["teacher"] is None is record(tmp_path / "run")["teacher"]


# --- scored ------------------------------------------------------------------------------------------------


def test_bundle_is_scored_without_the_teacher(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "teacher")
    (bundle,) = run.glob("student-*.safetensors")
    assert main(["test", str(bundle), "--out", str(tmp_path / "test")]) == 0
    assert json.loads((tmp_path / "test" / "record.json").read_text())["scores"] == record(run)["scores"]
    assert main(["test", str(bundle), "--teacher.data.batch_size=3"]) == 2
    assert_one_line(capsys.readouterr().err, "--teacher.data.batch_size=3: scoring trains no teacher")
    assert main(["test", str(run / "config.yaml"), "--ckpt", str(run)]) == 2
    assert_one_line(
        capsys.readouterr().err, "record.json: missing, stage 1 is not finished; give --model.teacher"
    )


def test_checkpoint_is_scored_with_the_teacher_of_its_run(whole: Path, tmp_path: Path) -> None:
    for weights in (whole, whole / record(whole)["bundle"]):
        words = ["--ckpt", str(weights), "--out", str(tmp_path / weights.name)]
        assert main(["test", str(whole / "config.yaml"), *words]) == 0
        found = json.loads((tmp_path / weights.name / "record.json").read_text())
        assert found["scores"] == record(whole)["scores"]


# --- several processes -------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_run_both_stages(two_stages: Path, tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--no-dry-run", "--no-gate"]
    train_in_processes(two_stages, tmp_path / "run", *two)
    assert torch.load(tmp_path / "run" / "teacher" / "last.ckpt", weights_only=True)["global_step"] == 2 * 2
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3 * 3
    assert record(tmp_path / "run")["scores"]["images"] == 9
    assert record(tmp_path / "run")["stages"]["teacher"]["scores"]["images"] == 9
