"""The command: opens the data, checks, predicts with --model, scores, and writes the report."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.engine.video_benchmark.settings import (
    Benchmark,
    measured,
    novel_of,
    open_benchmark,
    place,
    read_settings,
)
from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.data.video import VideoDataset

PREDICTIONS = "predictions"  # folder below OUT
ASKED = "asked"  # the header's list of names, too long for a protocol


def run_benchmark(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs it; 0, or 1 when --check finds anything. Raises UserError."""
    config = Path(arguments.target)
    settings = read_settings(config, overrides)
    if bool(arguments.model) == bool(arguments.predictions):
        raise UserError(
            f"{config}: a benchmark; pass --model BUNDLE|NAME to predict and score, or --predictions DIR to "
            "score what is there"
        )
    if arguments.check:
        return _check(arguments, settings)
    dataset = open_benchmark(settings)
    names = measured(settings, dataset[0])
    _try_flow(settings, names)
    out = _out(arguments, config)
    if arguments.model:
        folder = out / PREDICTIONS
        _predict(arguments, settings, dataset, names, folder)
    else:
        folder = Path(arguments.predictions)
        problems = _folder_problems(folder, settings, dataset, names)
        if problems:
            more = f" (and {len(problems) - 1} more: --check lists all)" if len(problems) > 1 else ""
            raise UserError(problems[0] + more)
    return _score(config, settings, dataset, names, folder, out)


def _predict(
    arguments: argparse.Namespace,
    settings: Benchmark,
    dataset: VideoDataset,
    names: Sequence[str],
    folder: Path,
) -> None:
    from vlkd.data.predictions import PredictionWriter
    from vlkd.engine.hub import resolve
    from vlkd.engine.records.machine import machine
    from vlkd.engine.video_benchmark.predict import Asked, forms_of, how_predicted, load_model, predict

    asked, path = Asked(dataset), resolve(arguments.model)
    predictor = load_model(path, settings, asked)
    how = how_predicted(path, predictor, settings, asked)
    facts = machine()
    if settings.device == "cpu":  # whatever else the machine has
        facts["device"] = platform.machine()
    _make(folder)
    header = {"settings": how, "machine": facts, "bundle": str(path)}
    forms = forms_of(names)
    writer = PredictionWriter(folder, header, dataset, forms, overwrite=arguments.overwrite)
    predict(dataset, predictor, writer, settings, forms, asked)


def _score(
    config: Path, settings: Benchmark, dataset: VideoDataset, names: Sequence[str], folder: Path, out: Path
) -> int:
    from vlkd.data.predictions import Predictions
    from vlkd.engine.run_folder import command_line, write_versions
    from vlkd.engine.video_benchmark.html import page
    from vlkd.engine.video_benchmark.pictures import best_and_worst
    from vlkd.engine.video_benchmark.predict import forms_of
    from vlkd.engine.video_benchmark.report import Result, speed_of, write_report
    from vlkd.engine.video_benchmark.score import protocol, score

    predictions = Predictions(folder, dataset)
    names, notes = _scored(names, predictions.forms)
    if not any(record.annotated for record in dataset):
        print(f"labels of this split are withheld, nothing to score; predictions: {folder}")
        kind, root, split, _ = place(settings)
        command = f"python -m vlkd data submit {kind} {root} {split} --predictions {folder} --out sent.zip"
        print(f"a file to submit: {command}")
        return 0
    if not any(record.labelled for record in dataset):
        raise UserError(f"{dataset.source}: no frame with labels is left, so there is nothing to score")
    _make(out)
    scorer = score(dataset, predictions, settings, names)
    how = dict(predictions.header.get("settings", {}))
    if isinstance(how.get(ASKED), list):
        how[ASKED] = f"{len(how[ASKED])} names"
    times = [predictions.ms(record) for record in dataset]
    result = Result(
        title=f"{config.stem}: {how.get('model', folder)}",
        scores=scorer.scores(),
        protocol=protocol(dataset, settings, names, how),
        speed=speed_of(times, predictions.header.get("machine")),
        classes=scorer.classes(),
        videos=scorer.videos,
        notes=notes,
        facts={
            "predictions": str(folder),
            "config": str(config),
            "settings": settings.plain(),
            "command": command_line(),
        },
    )
    pictures = best_and_worst(dataset, predictions, settings, forms_of(names), scorer.videos)
    write_report(result, page(result, *pictures), out)
    write_versions(out / "versions.json", settings.world.seed, command_line())
    result.show()
    print(f"done: {out / 'report.html'}, {out / 'report.md'}, {out / 'scores.json'}", flush=True)
    return 0


def _check(arguments: argparse.Namespace, settings: Benchmark) -> int:
    """Lists all that is wrong with data, predictions or model; nothing is predicted or scored."""
    from vlkd.data.video import check

    kind, root, split, subset = place(settings)
    problems = check(kind, root, split, subset, base=settings.dataset.base, novel=novel_of(settings))
    try:
        dataset = open_benchmark(settings)
        names = measured(settings, dataset[0])
        _try_flow(settings, names)
        if arguments.model:
            problems += _model_problems(arguments.model, settings, dataset)
        else:
            problems += _folder_problems(Path(arguments.predictions), settings, dataset, names)
    except UserError as error:
        problems += [] if str(error).partition(" (and ")[0] in problems else [str(error)]
    print("\n".join(problems) or "nothing is wrong")
    return 1 if problems else 0


def _try_flow(settings: Benchmark, names: Sequence[str]) -> None:
    """Reads the weights of TC, so that wrong ones are said before anything is predicted."""
    from vlkd.engine.video_benchmark.measures import flow_of

    if "TC" in names and settings.flow:
        flow_of(settings.flow, settings.device)


def _model_problems(model: str, settings: Benchmark, dataset: VideoDataset) -> list[str]:
    from vlkd.engine.hub import resolve
    from vlkd.engine.video_benchmark.predict import Asked, load_model

    try:
        load_model(resolve(model), settings, Asked(dataset))
    except UserError as error:
        return [str(error)]
    return []


def _folder_problems(
    folder: Path, settings: Benchmark, dataset: VideoDataset, names: Sequence[str]
) -> list[str]:
    """What is wrong with predictions, one line each."""
    from vlkd.data.predictions import Predictions, check_predictions
    from vlkd.engine.video_benchmark.predict import PREDICTED_ON, forms_of, predicted_on

    predictions = Predictions(folder, dataset)
    ours = predicted_on(settings)
    if (theirs := predictions.header.get("settings", {}).get(PREDICTED_ON, ours)) != ours:
        return [f"{folder}: predictions for {theirs}, but the benchmark is {ours}"]
    scored, _ = _scored(names, predictions.forms)
    return check_predictions(folder, dataset, forms_of(scored))


def _scored(names: Sequence[str], forms: Sequence[str]) -> tuple[list[str], list[str]]:
    """What can be scored with these forms of predictions, and a note on what cannot.

    Raises UserError when nothing can.
    """
    from vlkd.engine.video_benchmark.settings import FORM_OF

    kept = [name for name in names if FORM_OF[name] in forms]
    if not kept:
        needed = sorted({FORM_OF[name] for name in names})
        raise UserError(
            f"predictions of the form {', '.join(forms)}: this benchmark needs {' or '.join(needed)} "
            "(docs/predictions.md)"
        )
    lost = [f"{name} (no {FORM_OF[name]} predictions)" for name in names if name not in kept]
    return kept, [f"not scored: {', '.join(lost)}"] if lost else []


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --out") from None


def _out(arguments: argparse.Namespace, config: Path) -> Path:
    """--out, or a folder named by config and model, the same again, so that work goes on."""
    if arguments.out:
        return Path(arguments.out)
    given = Path(arguments.model or arguments.predictions).resolve()
    name = given.parent.name if given.name == PREDICTIONS else given.name
    return Path("runs") / "ovvs" / config.stem / name.removesuffix(".safetensors")
