"""`vlkd test`: scores a bundle, or the checkpoint of a run, on the validation data of its config.

A config with the section `benchmark` is a video benchmark: vlkd.engine.video_benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.engine.experiment import Experiment
    from vlkd.methods.base import Distiller

CONFIG_SUFFIXES = (".yaml", ".yml")


def test(argv: Sequence[str]) -> int:
    """Prints the scores with their protocol and writes record.json."""
    arguments, overrides = _parser().parse_known_args(argv)
    if _is_benchmark(arguments):
        from vlkd.engine.video_benchmark.run import run_benchmark

        return run_benchmark(arguments, overrides)
    is_config = Path(arguments.target).suffix in CONFIG_SUFFIXES
    if is_config and not arguments.ckpt:
        raise UserError(
            f"{arguments.target}: a config has no weights; add --ckpt with a run folder or a bundle"
        )
    if is_config:
        experiment, method, weights = _from_config(Path(arguments.target), arguments.ckpt, overrides)
    else:
        experiment, method, weights = _from_bundle(arguments.ckpt or arguments.target, overrides)

    trainer = experiment.build_trainer([], logger=False)
    data = experiment.build_data()
    trainer.validate(method, datamodule=data, verbose=False)
    scores = {
        key.removeprefix("score/"): float(value)
        for key, value in trainer.callback_metrics.items()
        if key.startswith("score/")
    }
    if not scores:
        raise UserError(
            f"{arguments.target}: {type(method).__name__} logged no score on {type(data).__name__}"
        )
    if trainer.is_global_zero:
        _report(arguments, experiment, method, weights, scores)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd test",
        allow_abbrev=False,
        usage="%(prog)s BUNDLE|NAME [--out DIR] [--key=value ...]\n       "
        "%(prog)s CONFIG --ckpt RUN|BUNDLE [--out DIR] [--key=value ...]\n       "
        "%(prog)s BENCHMARK (--model BUNDLE|NAME | --predictions DIR) [--check] [--key=value ...]",
        description="Scores a student on the validation data of its config, or on --data.KEY=value; or on a "
        "video benchmark (configs/ovvs, docs/video-benchmark.md).",
    )
    parser.add_argument("target", metavar="CONFIG|BUNDLE", help="config, bundle file or zoo name")
    parser.add_argument("--ckpt", metavar="RUN", help="run folder or bundle whose weights are scored")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for record.json (default: runs/test/<name>/<time>), or for a benchmark's report and "
        "predictions (default: runs/ovvs/<config>/<model>)",
    )
    only = parser.add_argument_group("benchmarks only").add_argument
    only("--model", metavar="BUNDLE|NAME", help="predict with this segmentor, then score")
    only("--predictions", metavar="DIR", help="score predictions that are there (docs/predictions.md)")
    only("--check", action="store_true", help="list what is wrong with data, predictions or model, and end")
    only("--overwrite", action="store_true", help="predict again what was predicted with other settings")
    return parser


def _is_benchmark(arguments: argparse.Namespace) -> bool:
    """Whether the target is a benchmark's config. Raises UserError for options of the other kind."""
    from vlkd.engine.config_errors import read_config
    from vlkd.engine.video_benchmark.settings import is_benchmark

    path = Path(arguments.target)
    benchmark = path.suffix in CONFIG_SUFFIXES and is_benchmark(read_config(path))
    if benchmark and arguments.ckpt:
        raise UserError(f"{path}: a benchmark; pass the bundle as --model {arguments.ckpt}")
    given = [name for name in ("model", "predictions", "check", "overwrite") if getattr(arguments, name)]
    if given and not benchmark:
        instead = "; weights are given with --ckpt" if given[0] == "model" else ""
        raise UserError(f"--{given[0]}: for video benchmarks (configs/ovvs), and {path} is none{instead}")
    return benchmark


def _from_config(config: Path, weights: str, overrides: Sequence[str]) -> tuple[Experiment, Distiller, Path]:
    from vlkd.engine.bundle import load_bundle
    from vlkd.engine.experiment import Experiment, check_checkpoint
    from vlkd.engine.stages import refuse_words, take_teacher

    experiment = Experiment(config, overrides)
    path = Path(weights)
    if experiment.staged:
        refuse_words(overrides, "scoring trains no teacher")
        take_teacher(experiment, path if path.is_dir() else path.parent)
    if path.is_dir():
        path = path / "last.ckpt"
    if path.suffix == ".ckpt":
        state = check_checkpoint(path).get("state_dict")
        method = experiment.build_method()
        try:
            method.load_state_dict(state or {})
        except RuntimeError as problem:
            lines = str(problem).splitlines()
            raise UserError(
                f"{path}: does not fit {config}: {lines[min(1, len(lines) - 1)].strip()[:200]}"
            ) from None
        return experiment, method, path

    from vlkd.engine.hub import resolve

    path = resolve(weights)
    method = experiment.build_method()
    method.load_student(load_bundle(path)[1], str(path))
    return experiment, method, path


def _from_bundle(target: str, overrides: Sequence[str]) -> tuple[Experiment, Distiller, Path]:
    import yaml

    from vlkd.engine.bundle import read_card
    from vlkd.engine.experiment import Experiment
    from vlkd.engine.hub import resolve
    from vlkd.engine.stages import refuse_words
    from vlkd.methods import list_methods, method_class
    from vlkd.methods.base import Distiller

    path = resolve(target)
    card = read_card(path)
    config, name = card.get("config"), card.get("method")
    if not config:
        raise UserError(f"{path}: the card holds no config; score it with: vlkd test CONFIG --ckpt {path}")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "config.yaml"
        written.write_text(yaml.safe_dump(config), encoding="utf-8")
        experiment = Experiment(written, overrides, shown_as=f"{path} (card)")
    if experiment.staged:
        refuse_words(overrides, "scoring trains no teacher")
    return experiment, (method_class(name) if name in list_methods() else Distiller).from_bundle(path), path


def _report(
    arguments: argparse.Namespace,
    experiment: Experiment,
    method: Distiller,
    weights: Path,
    scores: dict[str, float],
) -> None:
    from vlkd.engine.download import sha256
    from vlkd.engine.records.scores import print_scores
    from vlkd.engine.run_folder import command_line, write_text, write_versions

    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(arguments.out or Path("runs") / "test" / Path(arguments.target).stem / stamp)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "weights": os.fspath(weights),
        "sha256": sha256(weights),
        "scores": scores,
        "protocol": method.protocol,
        "command": command_line(),
        "config": experiment.merged(),
    }
    print_scores(str(weights), scores, method.protocol)
    write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")
    write_versions(folder / "versions.json", experiment.seed, command_line())
    print(f"done: {folder / 'record.json'}", flush=True)
