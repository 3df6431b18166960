"""Several seeds of one config: one run after the other, each resumable, then mean, spread and worst."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd.errors import UserError

SEEDS = "seeds.json"


def parse_seeds(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]. Raises UserError for anything else and for a seed given twice."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: expected whole numbers with commas between, as in 0,1,2") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text}: expected different numbers, none below zero")
    return seeds


def seed_overrides(config: Mapping[str, Any], seed: int) -> list[str]:
    """Overrides that give a merged config its seed: everywhere, and in the data module where it has one."""
    found = [f"--seed_everything={seed}"]
    if "seed" in (config.get("data", {}).get("init_args") or {}):
        found.append(f"--data.seed={seed}")
    return found


def run_seeds(seeds: Sequence[int], run: Path, one: Callable[[int, Path], int]) -> int:
    """Calls one(seed, RUN/seed<n>) for each seed until one fails, then puts the records together."""
    for seed in seeds:
        code = one(seed, run / f"seed{seed}")
        if code:
            return code
    _put_together(seeds, run)
    return 0


def check_same(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises UserError when a seed that was begun earlier has another config than the one given now."""
    from vlkd.engine.records.record import without_seed

    before, now = flat(without_seed(found)), flat(without_seed(expected))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder}: was begun with {key}={before.get(key)}, now it is {now.get(key)}; "
                "give the same config or choose another --run"
            )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def spread(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one seed), least value and its seed; higher is better."""
    numbers = list(values.values())
    finite = all(map(math.isfinite, numbers))
    worst = min(values, key=lambda seed: -math.inf if math.isnan(values[seed]) else values[seed])
    return {
        "mean": statistics.fmean(numbers),
        "sd": None if len(numbers) < 2 else statistics.stdev(numbers) if finite else math.nan,
        "worst": values[worst],
        "worst_seed": worst,
    }


def scores_of(records: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Score -> spread over the records' seeds, and the values themselves."""
    names = dict.fromkeys(name for record in records.values() for name in record["scores"])
    found = {}
    for name in names:
        values = {
            seed: record["scores"][name] for seed, record in records.items() if name in record["scores"]
        }
        found[name] = {**spread(values), "values": {str(seed): value for seed, value in values.items()}}
    return found


def with_spread(value: Mapping[str, Any]) -> str:
    """0.7612 ± 0.0031."""
    return f"{value['mean']:.4f}" + (f" ± {value['sd']:.4f}" if value["sd"] is not None else "")


def _put_together(seeds: Sequence[int], run: Path) -> None:
    import json

    from vlkd.engine.records.record import RECORD, read_record
    from vlkd.engine.run_folder import is_first_process, write_text
    from vlkd.engine.tables import Table

    if not is_first_process():
        return
    records = {seed: read_record(run / f"seed{seed}" / RECORD) for seed in seeds}
    scores = scores_of(records)
    content = {"source": records[seeds[0]].get("source"), "seeds": list(seeds), "scores": scores}
    write_text(run / SEEDS, json.dumps(content, indent=2) + "\n")
    rows = [
        [name, with_spread(value), f"{value['worst']:.4f} (seed {value['worst_seed']})"]
        for name, value in scores.items()
    ]
    Table(f"{run}: {len(seeds)} seeds", ["score", "mean ± sd", "worst"], rows).show()
    print(f"done: {run / SEEDS}", flush=True)
