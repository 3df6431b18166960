"""`vlkd train`: from a config to a run folder with checkpoint, curves and the student's bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
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
    if not (arguments.resume or arguments.config):
        raise UserError("a config is missing; try: python tools/train.py configs/gkc/world.yaml")
    if stray and "=" in "".join(overrides[: overrides.index(stray[0])][-1:]):
        raise UserError(f"{stray[0]}: unexpected word; write overrides as --key=value")

    from vlkd.engine.experiment import Experiment
    from vlkd.engine.run_folder import new_run_folder, run_to_resume

    resumed = run_to_resume(arguments.resume) if arguments.resume else None
    config = resumed / "config.yaml" if resumed else Path(arguments.config)
    experiment = Experiment(config, overrides)
    if arguments.check:
        return _check(experiment)
    run = resumed or new_run_folder(config, arguments.run)
    return _fit(experiment, run, resumed is not None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd train",
        allow_abbrev=False,
        usage="%(prog)s CONFIG [--run DIR] [--check] [--key=value ...]\n       "
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
        "--check", action="store_true", help="read all data once, list every problem, train nothing"
    )
    return parser


def _fit(experiment: Any, run: Path, resuming: bool) -> int:
    import yaml

    from vlkd.engine.callbacks import LAST, Interrupted, Stop
    from vlkd.engine.curves import set_aside
    from vlkd.engine.experiment import fit
    from vlkd.engine.run_folder import command_line, is_first_process, write_text, write_versions

    config = experiment.merged()
    stop = Stop()
    trainer, method, data = experiment.build(run, stop)
    if is_first_process():
        write_text(run / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_versions(run / "versions.json", experiment.seed, command_line())
        set_aside(run)
        print(f"run folder: {run}", flush=True)
    try:
        with stop.listening():
            fit(trainer, method, data, run / LAST if resuming else None)
            if method.scored_at != trainer.global_step:
                trainer.validate(method, data, verbose=False)
    except Interrupted:
        if is_first_process():
            print(
                f"\nstopped; everything is saved in {run / LAST}. Continue with:\n{_resume_command(run)}",
                flush=True,
            )
        return INTERRUPTED
    if is_first_process():
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("score/")}
        scores = {name.removeprefix("score/"): value for name, value in logged.items()}
        _finish(method, config, run, scores)
    return 0


def _finish(method: Distiller, config: dict[str, Any], run: Path, scores: dict[str, float]) -> None:
    from vlkd.engine.bundle import bundle_name, save_bundle
    from vlkd.engine.curves import draw_curves
    from vlkd.engine.report import print_scores
    from vlkd.engine.run_folder import first_command

    card, tensors = method.bundle()
    common = {
        "name": run.name,
        "method": type(method).__module__.removeprefix("vlkd.methods.").split(".")[0],
        "config": config,
        "scores": scores,
        "protocol": method.protocol,
        "data": config["data"]["class_path"],
        "command": first_command(run / "versions.json"),
    }
    path = save_bundle(run / bundle_name("student", tensors), {**common, **card}, tensors)
    draw_curves(run)
    if scores:
        print_scores(str(run), scores, method.protocol)
    print(f"done: bundle {path}, curves {run / 'curves.png'}, log {run / 'metrics.csv'}", flush=True)


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


def _resume_command(run: Path) -> str:
    program = sys.argv[0]
    start = f"python {program}" if program.endswith("train.py") else "vlkd train"
    return f"{start} --resume {run}"
