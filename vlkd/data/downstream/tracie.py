"""TRACIE: whether an event that a story implies starts or ends before another, or after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vlkd.data.downstream.base import Head, Split, Texts, TextTask, usable
from vlkd.data.downstream.glue import ACCURACY, Metric
from vlkd.data.downstream.lines import json_rows, lines

_ANSWERS = {"positive": "entailment", "negative": "contradiction"}


class TracieData(TextTask):
    """TRACIE, from the text files of its authors or the leaderboard's JSON lines.

    .txt: `event: QUERY story: STORY TAB answer: positive|negative` a line (github.com/allenai/tracie, data/).
    .jsonl: {"query", "story", "gold_label": "entailment"|"contradiction"} (allenai/aristo-leaderboard).
    Scores as the authors': accuracy of all, of questions about starts and about ends, and `story`, the
    fraction of stories all of whose questions are answered right.

    Args:
        train: file to train on.
        val: file to score on.
        kwargs: see DownstreamData.
    """

    task = "TRACIE"
    head: Head = "classes"
    label_names = ("contradiction", "entailment")

    def __init__(self, train: str, val: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.files: dict[Split, Path] = {"train": Path(train).expanduser(), "val": Path(val).expanduser()}

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Accuracy."""
        return ACCURACY

    def read(self, split: Split, problems: list[str]) -> Texts:
        """The event is the first text of a pair, the story the other."""
        path = self.files[split]
        rows = _objects(path, problems) if path.suffix == ".jsonl" else _lines(path, problems)
        found, starts = Texts(second=[]), []
        for place, query, story, label in rows:
            if label not in self.label_names:
                expected = " or ".join(_ANSWERS.values() if path.suffix == ".jsonl" else _ANSWERS)
                problems.append(f"{place}: label {label[:40]!r}, expected {expected}")
            elif not query or (split == "train" and not story):
                problems.append(f"{place}: an empty event or story")
            else:
                assert found.second is not None
                found.first.append(query)
                found.second.append(story)
                found.labels.append(self.label_names.index(label))
                starts.append("starts before" in query or "starts after" in query)
        found.groups = {"start": starts, "end": [not start for start in starts]}
        return usable(found, str(path), problems)

    def scores(self, answers: Tensor, seen: Tensor) -> dict[str, float]:
        """As in the base, and `story`."""
        asked, known = self._asked["val"], seen.numpy()
        right = answers.argmax(1).numpy() == np.array(asked.labels)
        stories: dict[str, bool] = {}
        for story, hit, counts in zip(asked.second, right, known, strict=True):
            if counts:
                stories[story] = stories.get(story, True) and bool(hit)
        return super().scores(answers, seen) | {"story": float(np.mean(list(stories.values())))}


Question = tuple[str, str, str, str]  # place, event, story, label


def _objects(path: Path, problems: list[str]) -> Iterator[Question]:
    for place, row in json_rows(path, ("query", "story", "gold_label"), problems):
        yield place, row["query"].removeprefix("event:").strip(), row["story"].strip(), row["gold_label"]


def _lines(path: Path, problems: list[str]) -> Iterator[Question]:
    form = "'event: ... story: ... TAB answer: positive|negative'"
    for number, line in enumerate(lines(path, f"lines of the form {form}"), 1):
        text, _, answer = line.partition("\t")
        event, found, story = text.partition("story:")
        if not event.startswith("event:") or not found or not answer.startswith("answer:"):
            problems.append(f"{path}:{number}: not of the form {form}")
            continue
        label = answer.removeprefix("answer:").strip()
        yield (
            f"{path}:{number}",
            event.removeprefix("event:").strip(),
            story.strip(),
            _ANSWERS.get(label, label),
        )
