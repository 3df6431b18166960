"""The picture of a report: one panel for each score, a bar for each experiment."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd.engine.records.collect import Group
from vlkd.engine.records.seeds import with_spread

MAX_PANELS = 6
MAX_NAME = 60  # characters of an experiment's name
BAR, INK, PAPER = "#8fb3d9", "#1f3d5c", "#c8502d"


def draw_report(groups: Sequence[Group], path: Path) -> Path:
    """Bars at the mean with ± sd, a dot for each seed, a diamond at the paper's number; writes a PNG.

    Panels are the first scores of the records, no more than six.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = list(dict.fromkeys(score for group in groups for score in group.scores))[:MAX_PANELS]
    height = 1.4 + 0.42 * len(groups)
    figure = Figure(figsize=(3.2 + 3.8 * len(scores), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, score in zip(panels, scores, strict=True):
        _draw_score(axes, groups, score)
    names = [_shortened(group.name) for group in groups]
    panels[0].set_yticks(range(len(groups)), names, fontsize=8)
    panels[0].invert_yaxis()
    shown = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    known = {handle.get_label(): handle for handle in shown}
    if known:
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
    return path


def _draw_score(axes: Any, groups: Sequence[Group], score: str) -> None:
    found = [(place, group.scores[score]) for place, group in enumerate(groups) if score in group.scores]
    paper = [(g.paper[score]["value"], place) for place, g in enumerate(groups) if score in g.paper]
    seeds = [(value, place + 0.2) for place, spread in found for value in spread["values"].values()]
    spreads = [(s["mean"], place - 0.1, s["sd"]) for place, s in found if s["sd"] is not None]

    axes.barh([place for place, _ in found], [s["mean"] for _, s in found], height=0.7, color=BAR)
    for place, spread in found:
        # Inside the bar at its foot, where neither seeds nor the paper's mark lie.
        axes.text(0, place, f"  {with_spread(spread)}", va="center", fontsize=7.5, color=INK)
    if spreads:
        means, places, deviations = zip(*spreads, strict=True)
        axes.errorbar(means, places, xerr=deviations, fmt="none", color=INK, capsize=3, label="± sd")
        axes.scatter(*zip(*seeds, strict=True), s=8, color=INK, zorder=3, label="seed")
    if paper:
        axes.scatter(*zip(*paper, strict=True), marker="D", s=30, color=PAPER, zorder=4, label="paper")
    axes.set_title(score, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    known = [x for x, *_ in [*seeds, *paper] if math.isfinite(x)]
    if known and min(known) >= 0:
        axes.set_xlim(0, 1.08 * max(known) or 1.0)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
