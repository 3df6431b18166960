"""record.json: what a finished run was, how it scored, how fast it ran, on which machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkd.engine.config_errors import read_config
from vlkd.engine.run_folder import write_text
from vlkd.errors import UserError

RECORD = "record.json"
PAPER = "paper.yaml"


def paper_numbers(config: str | Path) -> dict[str, dict[str, Any]] | None:
    """What the paper reports for a config: score -> {"value", "source"}, from paper.yaml beside it.

    That file maps the config's name without suffix to scores, each a number in the unit of ours or {value,
    source}. None where the file or the entry is not there. Raises UserError when the entry cannot be read.
    """
    config = Path(config)
    path = config.parent / PAPER
    if not path.is_file():
        return None
    entry = read_config(path).get(config.stem)
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {config.stem}: expected scores and their numbers")
    numbers = {}
    for score, given in entry.items():
        number = given if isinstance(given, dict) else {"value": given}
        if isinstance(number.get("value"), bool) or not isinstance(number.get("value"), int | float):
            raise UserError(
                f"{path}: {config.stem}.{score}: expected a number or {{value: number, source: text}}"
            )
        numbers[score] = {"value": float(number["value"]), "source": str(number.get("source", ""))}
    return numbers


def write_record(run: Path, record: Mapping[str, Any]) -> Path:
    """Writes RUN/record.json."""
    write_text(run / RECORD, json.dumps(record, indent=2) + "\n")
    return run / RECORD


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked for what tables need. Raises UserError for a damaged or foreign file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path}: damaged, not JSON") from None
    if not isinstance(record, dict) or not {"method", "config", "scores", "seed"} <= record.keys():
        raise UserError(f"{path}: not the record of a training run")
    scores = record["scores"]
    if not isinstance(scores, dict) or not all(isinstance(v, int | float) for v in scores.values()):
        raise UserError(f"{path}: damaged, its scores are not numbers")
    if not isinstance(record["config"], dict):
        raise UserError(f"{path}: damaged, its config is not a mapping")
    return record


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A merged config without what tells seeds apart: `seed_everything` and `data.seed`."""
    rest = {key: value for key, value in config.items() if key != "seed_everything"}
    data = dict(rest.get("data") or {})
    if isinstance(data.get("init_args"), dict):
        data["init_args"] = {key: value for key, value in data["init_args"].items() if key != "seed"}
    return {**rest, "data": data}
