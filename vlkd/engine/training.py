"""`vlkd train`: from a config to a run folder with checkpoint, curves and the student's bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

    from vlkd.engine.experiment import Experiment
    from vlkd.methods.base import Distiller

INTERRUPTED = 130


def train(argv: Sequence[str]) -> int:
    """Trains, resumes or checks; the exit code is 130 after Ctrl-C and 1 when a check finds problems."""
    arguments, overrides = _parser().parse_known_args(argv)
    stray = [item for item in overrides if not item.startswith("-")]
    if arguments.resume and arguments.config:
        raise UserError(
            f"{arguments.config}: --resume takes its config from the run; write overrides as --key=value"
        )
    if arguments.resume and arguments.run:
        raise UserError(f"--run {arguments.run}: --resume goes on in the run's own folder; leave --run out")
    if arguments.resume and (arguments.seeds or arguments.dry_run):
        raise UserError("--resume: goes on with training; --seeds and --dry-run take a config")
    if arguments.seeds and (arguments.check or arguments.dry_run):
        raise UserError("--seeds: trains; use --check and --dry-run without it")
    if not (arguments.resume or arguments.config):
        raise UserError("a config is missing; try: python tools/train.py configs/gkc/world.yaml")
    if stray and "=" in "".join(overrides[: overrides.index(stray[0])][-1:]):
        raise UserError(f"{stray[0]}: unexpected word; write overrides as --key=value")

    if arguments.seeds:
        return _train_seeds(arguments, overrides, argv)

    from vlkd.engine.experiment import Experiment
    from vlkd.engine.run_folder import is_first_process, new_run_folder, run_to_resume
    from vlkd.engine.stages import first_stage, other_data, train_stages

    resumed = run_to_resume(arguments.resume) if arguments.resume else None
    config = resumed / "config.yaml" if resumed else Path(arguments.config)
    experiment = Experiment(config, overrides)
    first = first_stage(experiment)
    if arguments.check:
        return max(_check(one) for one in [*other_data(first, experiment), experiment])
    run = resumed or new_run_folder(config, arguments.run)
    go_on = f"{_program()} --resume {run}"
    one = partial(_fit, arguments=arguments, go_on=go_on)
    try:
        return train_stages(experiment, first, run, resumed is not None, one, arguments.dry_run)
    except KeyboardInterrupt:
        if first is None or not (run / "config.yaml").is_file():
            raise
        if is_first_process():
            print(f"\nstopped. Continue with:\n{go_on}", flush=True)  # between steps: all is saved
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd train",
        allow_abbrev=False,
        usage="%(prog)s CONFIG [--run DIR] [--check | --dry-run | --seeds 0,1,2] [--key=value ...]\n       "
        "%(prog)s --resume RUN [--key=value ...]",
        description="Trains what a config describes. Every key of the config can be set as --key=value, "
        "for example --trainer.max_epochs=3 or --model.lr=1e-3; CONFIG --print_config shows them all.",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="YAML file, for example configs/gkc/world.yaml"
    )
    parser.add_argument("--resume", metavar="RUN", help="run folder to continue exactly where it stopped")
    parser.add_argument(
        "--run", metavar="DIR", help="run folder to make (default: runs/<folder>-<config>/<time>)"
    )
    parser.add_argument(
        "--seeds", metavar="N,N", help="one run for each, in RUN/seed<n>; again with the same --run: the rest"
    )
    parser.add_argument(
        "--check", action="store_true", help="read all data once, list every problem, train nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="one batch, a table of parts and losses, no training"
    )
    parser.add_argument("--no-dry-run", action="store_true", help="leave that out before the first step")
    parser.add_argument("--no-gate", action="store_true", help="train without scoring the teacher first")
    parser.add_argument(
        "--gate-tolerance",
        type=_tolerance,
        default=0.01,
        metavar="X",
        help="how much lower than recorded the teacher may score (default: %(default)s)",
    )
    return parser


def _tolerance(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--gate-tolerance {text}: expected a number such as 0.01") from None


def _train_seeds(arguments: argparse.Namespace, overrides: list[str], argv: Sequence[str]) -> int:
    from vlkd.engine.callbacks import LAST
    from vlkd.engine.config_errors import read_config
    from vlkd.engine.experiment import Experiment
    from vlkd.engine.records.record import RECORD, read_record
    from vlkd.engine.records.seeds import check_same, parse_seeds, run_seeds, seed_overrides
    from vlkd.engine.run_folder import SEED_OPTIONS, new_run_folder
    from vlkd.engine.stages import first_stage, train_stages

    seeds, config = parse_seeds(arguments.seeds), Path(arguments.config)
    for override in overrides:
        if override.split("=")[0] in SEED_OPTIONS:
            raise UserError(f"{override}: --seeds sets the seed; leave it out")
    run = Path(arguments.run) if arguments.run else new_run_folder(config)
    whole = Experiment(config, overrides)
    first_stage(whole)
    merged = whole.merged()
    go_on = f"{_program()} {shlex.join([*argv, *([] if arguments.run else ['--run', str(run)])])}"
    teacher: dict[str, Any] | None = None

    def one(seed: int, folder: Path) -> int:
        nonlocal teacher
        begun = (folder / "config.yaml").is_file()
        if begun:
            check_same(folder, read_config(folder / "config.yaml"), merged)
        code = 0
        if (folder / RECORD).is_file():
            print(f"{folder}: finished before", flush=True)
        else:
            experiment = Experiment(config, [*overrides, *seed_overrides(merged, seed)])
            first = first_stage(experiment)
            fit = partial(_fit, arguments=arguments, go_on=go_on, teacher=teacher)
            code = train_stages(experiment, first, folder, begun or (folder / LAST).is_file(), fit)
        if not code and not whole.staged:  # else each seed has a teacher of its own
            teacher = teacher or read_record(folder / RECORD).get("teacher")
        return code

    try:
        return run_seeds(seeds, run, one)
    except KeyboardInterrupt:
        print(f"\nstopped. Continue with:\n{go_on}", flush=True)
        return INTERRUPTED


def _fit(
    experiment: Experiment,
    run: Path,
    resuming: bool,
    arguments: argparse.Namespace,
    go_on: str,
    teacher: dict[str, Any] | None = None,
) -> int:
    """Trains in the run folder; `go_on` is the command after an interruption, `teacher` a gate's result."""
    from vlkd.engine.callbacks import LAST, Interrupted, Stop
    from vlkd.engine.checks.dry_run import DryRun, DryRunDone
    from vlkd.engine.checks.gate import TeacherGate
    from vlkd.engine.curves import set_aside
    from vlkd.engine.experiment import fit
    from vlkd.engine.records.record import paper_numbers
    from vlkd.engine.records.speed import Speed
    from vlkd.engine.run_folder import all_overrides, first_config, is_first_process

    config = experiment.merged()
    if not (resuming or experiment.staged) and is_first_process():
        (run / "versions.json").unlink(missing_ok=True)  # of an attempt that trained nothing
    source = first_config(run / "versions.json") or experiment.source
    paper = None if experiment.within else paper_numbers(source)
    gate, speed, stop = TeacherGate(config["data"], arguments.gate_tolerance, teacher), Speed(), Stop()
    checks: list[Any] = [] if arguments.no_dry_run else [DryRun(run, arguments.dry_run)]
    # A resumed run does not score the teacher again; the gate then only carries its result.
    if resuming or not (arguments.no_gate or arguments.dry_run):
        checks.insert(0, gate)
    trainer, method, data = experiment.build(run, stop, [*checks, speed], logged=not arguments.dry_run)
    if arguments.seeds and trainer.world_size > 1:
        raise UserError(
            f"--seeds: runs on one device, the config uses {trainer.world_size}; give --trainer.devices=1 or "
            "start a run for each seed with --seed_everything"
        )
    if is_first_process() and not arguments.dry_run:
        for one, folder in [*([experiment.within] if experiment.within else []), (experiment, run)]:
            _write_down(one, folder)
        set_aside(run)
        print(f"run folder: {run}", flush=True)
    try:
        with stop.listening():
            fit(trainer, method, data, run / LAST if resuming else None)
            if method.scored_at != trainer.global_step:
                trainer.validate(method, data, verbose=False)
    except DryRunDone:
        return 0
    except Interrupted:
        if is_first_process():
            print(f"\nstopped; everything is saved in {run / LAST}. Continue with:\n{go_on}", flush=True)
        return INTERRUPTED
    except UserError:
        if is_first_process() and not ((run / LAST).exists() or experiment.staged):
            (run / "config.yaml").unlink(missing_ok=True)  # nothing was trained: the folder may be used again
        raise
    if is_first_process():
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("score/")}
        facts = {
            "source": str(source),
            "overrides": all_overrides(run / "versions.json"),
            "config": config,
            "scores": {name.removeprefix("score/"): value for name, value in logged.items()},
            "protocol": method.protocol,
            "seed": experiment.seed,
            "speed": speed.measured(),
            "teacher": gate.result,
            "paper": paper,
            **experiment.notes,
        }
        _finish(method, data, run, facts)
    return 0


def _write_down(experiment: Experiment, run: Path) -> None:
    """config.yaml and versions.json of a run, once."""
    import yaml

    from vlkd.engine.run_folder import command_line, first_config, write_text, write_versions

    if experiment.written:
        return
    source = first_config(run / "versions.json") or experiment.source
    write_text(run / "config.yaml", yaml.safe_dump(experiment.merged(), sort_keys=False))
    write_versions(run / "versions.json", experiment.seed, command_line(), source, experiment.overrides)
    experiment.written = True


def _finish(method: Distiller, data: LightningDataModule, run: Path, facts: dict[str, Any]) -> None:
    """Bundle, curves, and last the record: where it lies, the run is finished."""
    from vlkd.engine.bundle import bundle_name, save_bundle
    from vlkd.engine.checks.gate import validation_images
    from vlkd.engine.curves import draw_curves
    from vlkd.engine.records.machine import machine
    from vlkd.engine.records.record import write_record
    from vlkd.engine.records.scores import print_scores
    from vlkd.engine.run_folder import first_command

    card, tensors = method.bundle()
    name = type(method).__module__.removeprefix("vlkd.methods.").split(".")[0]
    section = facts["config"]["data"]
    common = {
        "name": f"{run.parent.name}-{run.name}" if "stage" in facts else run.name,
        "method": name,
        **{key: facts[key] for key in ("config", "scores", "protocol")},
        "data": section["class_path"],
        "validation": validation_images(section, data),
        "command": first_command(run / "versions.json"),
    }
    path = save_bundle(run / bundle_name("student", tensors), {**common, **card}, tensors)
    draw_curves(run)
    if facts["scores"]:
        print_scores(str(run), facts["scores"], facts["protocol"])
    record = write_record(run, {"method": name, **facts, "machine": machine(), "bundle": path.name})
    print(
        f"done: bundle {path}, record {record}, curves {run / 'curves.png'}, log {run / 'metrics.csv'}",
        flush=True,
    )


def _check(experiment: Any) -> int:
    data = experiment.build_data()
    check = getattr(data, "check", None)
    if check is None:
        raise UserError(
            f"{type(data).__name__}: has no check(); --check works with the data modules of vlkd.data"
        )
    problems = list(check())
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems found" if problems else "no problems found")
    return int(bool(problems))


def _program() -> str:
    program = sys.argv[0]
    return f"python {program}" if program.endswith("train.py") else "vlkd train"
