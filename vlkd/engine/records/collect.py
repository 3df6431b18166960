"""Run records found below folders, put together by config: what a row of a report holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkd.engine.records.record import RECORD, read_record, without_seed
from vlkd.engine.records.seeds import flat, scores_of
from vlkd.errors import UserError

# Where a run was computed, and how it is watched, does not make it another experiment.
NOT_TOLD = ("trainer.logger", "trainer.enable_progress_bar", "trainer.default_root_dir")
MAX_DIFFERENCES = 4
SEEDS = ("seed_everything", "data.seed", "data.init_args.seed")


@dataclass
class Group:
    """The runs of one config: their records by seed."""

    records: dict[int, dict[str, Any]]
    name: str = ""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def first(self) -> dict[str, Any]:
        """The record of the lowest seed."""
        return self.records[min(self.records)]

    @property
    def paper(self) -> dict[str, dict[str, Any]]:
        """Score -> {"value", "source"} of the paper."""
        return self.first.get("paper") or {}

    def mean_speed(self, key: str) -> float | None:
        """Mean over the runs of "images_per_second" or "minutes"."""
        values = [(record.get("speed") or {}).get(key) for record in self.records.values()]
        known = [value for value in values if isinstance(value, int | float)]
        return sum(known) / len(known) if known else None


def collect(places: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Groups of the records below folders (or record files), and a line for each that was left out.

    Raises UserError for a place that is not there and where no record is found at all.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    notes: list[str] = []
    for path in _files(places):
        try:
            found.append((path, read_record(path)))
        except UserError as problem:
            notes.append(str(problem))
    notes += _unfinished(places)
    if not found:
        more = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"{', '.join(places)}: no {RECORD} of a finished run{more}; expected folders that vlkd train made"
        )
    grouped: dict[str, dict[int, tuple[Path, dict[str, Any]]]] = {}
    for path, record in sorted(found, key=lambda item: item[0].stat().st_mtime):
        key = json.dumps([record["method"], _told(record)], sort_keys=True)
        runs = grouped.setdefault(key, {})
        seed = record["seed"]
        if seed in runs:
            notes.append(f"{runs[seed][0]}: seed {seed} was run again in {path.parent}; the later run counts")
        runs[seed] = (path, record)
    groups = [Group({seed: runs[seed][1] for seed in sorted(runs)}) for runs in grouped.values()]
    for group in groups:
        group.scores = scores_of(group.records)
    _name(groups)
    return sorted(groups, key=lambda group: group.name), notes


def common_protocol(groups: Sequence[Group]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Protocol flags that all groups share, and for each group its others."""
    flags = [dict(group.first.get("protocol") or {}) for group in groups]
    shared = {k: v for k, v in flags[0].items() if all(k in other and other[k] == v for other in flags)}
    return shared, [{k: v for k, v in own.items() if k not in shared} for own in flags]


def _files(places: Iterable[str]) -> list[Path]:
    files: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"{place}: no such file or folder; expected run folders")
        paths = [place] if place.is_file() else sorted(place.rglob(RECORD))
        files |= dict.fromkeys(path.resolve() for path in paths)
    return [_short(path) for path in files]


def _unfinished(places: Iterable[str]) -> list[str]:
    folders = dict.fromkeys(
        path.parent
        for place in map(Path, places)
        if place.is_dir()
        for path in sorted(place.rglob("last.ckpt"))
    )
    return [f"{folder}: not finished, no {RECORD}" for folder in folders if not (folder / RECORD).is_file()]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    config = flat(without_seed(record["config"]))
    return {key: value for key, value in config.items() if not key.startswith(NOT_TOLD)}


def _name(groups: Sequence[Group]) -> None:
    """Config and the overrides that not all its groups share; then the options that equal names differ in."""
    by_place: dict[str, list[Group]] = {}
    for group in groups:
        by_place.setdefault(_place(group.first), []).append(group)
    by_name: dict[str, list[Group]] = {}
    for place, beside in by_place.items():
        words = [_overrides(group) for group in beside]
        shared = set.intersection(*map(set, words)) if len(beside) > 1 else set()
        for group, own in zip(beside, words, strict=True):
            group.name = _abridged([place, *(word for word in own if word not in shared)])
            by_name.setdefault(group.name, []).append(group)
    for same in by_name.values():
        configs = [_told(group.first) for group in same]
        keys = sorted({key for config in configs for key in config})
        apart = [key for key in keys if len({json.dumps(c.get(key), sort_keys=True) for c in configs}) > 1]
        for group, config in zip(same, configs, strict=True):
            differing = [f"{key.replace('.init_args', '')}={config.get(key)}" for key in apart]
            group.name = _abridged([group.name, *differing])


def _overrides(group: Group) -> list[str]:
    words = [word.removeprefix("--") for word in group.first.get("overrides") or ()]
    return [word for word in words if not word.startswith(SEEDS)]


def _place(record: Mapping[str, Any]) -> str:
    """The config's path below configs/, else its folder and name, without suffix; then the stage, if any."""
    source = Path(str(record.get("source") or record["method"])).with_suffix("")
    parts = source.parts
    first = len(parts) - parts[::-1].index("configs") if "configs" in parts else -2
    return "/".join([*parts[first:], *([record["stage"]] if record.get("stage") else [])])


def _abridged(words: Sequence[str]) -> str:
    more = len(words) - 1 - MAX_DIFFERENCES
    return " ".join(words[: MAX_DIFFERENCES + 1]) + (f" and {more} more" if more > 0 else "")
