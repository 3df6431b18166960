"""The report of a benchmark: scores.json, report.md, report.html, and tables for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from vlkd.engine.tables import Table

GROUPS = ("base", "novel", "thing", "stuff")
PERCENT = "VPQ"  # scores of this name are percent, the others fractions


@dataclass
class Result:
    """All that a report says.

    `scores` by name, a group's with its name as suffix; `classes` as Semantic.classes; `videos` {id: scores};
    `facts` for scores.json alone (settings, command, versions).
    """

    title: str
    scores: dict[str, float]
    protocol: dict[str, Any]
    speed: dict[str, Any] | None
    classes: list[dict[str, Any]]
    videos: dict[str, dict[str, float]]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """A row for each score, columns for its groups of classes."""
        rows: dict[str, dict[str, Any]] = {}
        for key, value in self.scores.items():
            name, _, group = key.rpartition("_")
            if group not in GROUPS:
                name, group = key, "all"
            rows.setdefault(name, {"score": name})[group] = _digits(name, value)
        shown = [g for g in ("all", *GROUPS) if any(g in row for row in rows.values())]
        return Table(
            "", ["score", *shown], [[row.get(k) for k in ("score", *shown)] for row in rows.values()]
        )

    @property
    def speed_line(self) -> str:
        """Milliseconds a frame, and the machine."""
        if not self.speed:
            return "speed: not recorded with these predictions"
        facts = self.speed["machine"] or {}
        where = f"{facts.get('device', '?')}, threads {facts.get('threads', '?')}, torch {facts.get('torch')}"
        return (
            f"speed: {self.speed['ms_median']:.1f} ms a frame (median; mean {self.speed['ms_mean']:.1f}), "
            f"{self.speed['fps']:.1f} frames/s, network and post-processing, on {where}"
        )

    def markdown(self) -> str:
        """Table, protocol and speed."""
        flags = Table("", ["protocol", ""], [[key, str(value)] for key, value in self.protocol.items()])
        parts = [f"# {self.title}", self.table.markdown(), flags.markdown(), self.speed_line, *self.notes]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def show(self) -> None:
        """Prints what the Markdown says."""
        table = self.table
        table.title = self.title
        table.show()
        Table("", ["protocol", ""], [[key, str(value)] for key, value in self.protocol.items()]).show()
        for line in [self.speed_line, *self.notes]:
            print(line, flush=True)

    def plain(self) -> dict[str, Any]:
        """Everything as JSON has it: null where a score does not exist."""
        content = {
            "title": self.title,
            "scores": self.scores,
            "protocol": self.protocol,
            "speed": self.speed,
            "classes": self.classes,
            "videos": self.videos,
            "notes": self.notes,
            **self.facts,
        }
        return _without_nan(content)


def speed_of(times: Sequence[Sequence[float]], machine: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Speed from the milliseconds of each video's frames; None where nothing was timed.

    The first frame of the first video warms up caches and is left out where there are others.
    """
    every = [ms for video in times for ms in video if ms > 0]
    if not every:
        return None
    counted = every[1:] or every
    return {
        "ms_median": median(counted),
        "ms_mean": mean(counted),
        "fps": 1000 / mean(counted),
        "frames": len(counted),
        "machine": dict(machine or {}) or None,
    }


def write_report(result: Result, page: str, out: Path) -> None:
    """Writes scores.json, report.md and report.html below `out`, scores.json last."""
    from vlkd.engine.run_folder import write_text

    write_text(out / "report.md", result.markdown())
    write_text(out / "report.html", page)
    write_text(out / "scores.json", json.dumps(result.plain(), indent=1, ensure_ascii=False) + "\n")


def _digits(name: str, value: float) -> str | None:
    """A score as shown: percent with two digits, fractions with four."""
    if not math.isfinite(value):
        return None
    return f"{value:.2f} %" if name.startswith(PERCENT) else f"{value:.4f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
