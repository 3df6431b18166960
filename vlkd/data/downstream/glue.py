"""GLUE from its TSV files: one sentence or a pair, classes or a similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vlkd.data.downstream.base import Head, Split, Texts, TextTask, usable
from vlkd.data.downstream.lines import tsv_rows
from vlkd.data.video_text.base import say
from vlkd.errors import UserError
from vlkd.metrics.language import f1, label_accuracy, matthews, pearson, spearman
from vlkd.text.names import nearest_hint

Metric = Callable[[NDArray, NDArray], float]
ACCURACY: dict[str, Metric] = {"accuracy": label_accuracy}
_BOOL = ("0", "1")
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILS = ("entailment", "not_entailment")
_FIRST_TWO = ("sentence1", "sentence2")
_CATEGORIES = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge")  # of diagnostics


@dataclass(frozen=True)
class Task:
    """Where a task's texts and labels stand. labels: as written in the files, none for a similarity.

    val: file of each part of the validation. header: of files that have none. torn: the published files hold
    lines broken in two, which other readers leave out too.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: Mapping[str, Metric]
    val: tuple[tuple[str, str], ...] = (("", "dev.tsv"),)
    header: tuple[str, ...] | None = None
    torn: bool = False


TASKS = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        "label",
        _BOOL,
        {"mcc": matthews},
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task("SST-2", ("sentence",), "label", _BOOL, ACCURACY),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", _BOOL, ACCURACY | {"f1": f1}),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", _BOOL, ACCURACY | {"f1": f1}, torn=True),
    "stsb": Task("STS-B", _FIRST_TWO, "score", (), {"pearson": pearson, "spearman": spearman}),
    "mnli": Task(
        "MNLI",
        _FIRST_TWO,
        "gold_label",
        _NLI,
        ACCURACY,
        val=(("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
    ),
    "qnli": Task("QNLI", ("question", "sentence"), "label", _ENTAILS, ACCURACY),
    "rte": Task("RTE", _FIRST_TWO, "label", _ENTAILS, ACCURACY),
    "wnli": Task("WNLI", _FIRST_TWO, "label", _BOOL, ACCURACY),
    # Trained on MNLI, scored on the diagnostic sentences that were published with their labels.
    "ax": Task(
        "diagnostic",
        ("Premise", "Hypothesis"),
        "Label",
        _NLI,
        {"mcc": matthews},
        val=(("", "diagnostic-full.tsv"),),
    ),
}


class GlueData(TextTask):
    """A task of GLUE, from the files as they are distributed (docs/downstream.md).

    Validation is the public development set. "ax" trains on MNLI and is scored on the diagnostics, by
    category too.

    Args:
        root: folder that holds CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE, WNLI, diagnostic.
        task: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli or ax.
        kwargs: see DownstreamData.
    """

    def __init__(self, root: str, task: str = "sst2", **kwargs: Any) -> None:
        if task not in TASKS:
            raise UserError(
                f"data.task={task}: no task of GLUE{nearest_hint(task, TASKS)}; there are {', '.join(TASKS)}"
            )
        super().__init__(**kwargs)
        self.root, self.files = Path(root).expanduser(), TASKS[task]
        self.task, self.label_names = f"GLUE {task}", self.files.labels
        self.head: Head = "classes" if self.label_names else "regression"
        self.overall = len(self.files.val) == 1

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Of the task, as GLUE has them."""
        return self.files.metrics

    def read(self, split: Split, problems: list[str]) -> Texts:
        """Texts and labels of the split's files."""
        task = TASKS["mnli"] if self.files is TASKS["ax"] and split == "train" else self.files
        found = Texts(second=[] if len(task.texts) == 2 else None)
        parts = (("", "train.tsv"),) if split == "train" else task.val
        counts = [self._read_file(task, split, file, found, problems) for _, file in parts]
        if len(parts) > 1:
            for k, (name, _) in enumerate(parts):
                found.groups[name] = [k == j for j, count in enumerate(counts) for _ in range(count)]
        return usable(found, f"{self.root / task.folder} ({split})", problems)

    def _read_file(self, task: Task, split: Split, file: str, found: Texts, problems: list[str]) -> int:
        """Adds a file's questions to those found; how many."""
        path, before = self.root / task.folder / file, len(found.labels)
        tagged = _CATEGORIES if task.folder == "diagnostic" else ()
        columns = (*task.texts, task.label, *tagged)
        torn: list[str] = []
        for place, row in tsv_rows(path, columns, torn if task.torn else problems, task.header):
            texts = [row[name].strip() for name in task.texts]
            label = _label(row[task.label].strip(), task.labels)
            if label is None:
                problems.append(
                    f"{place}: {task.label} {row[task.label][:40]!r}, expected "
                    f"{' or '.join(task.labels) or 'a number'}"
                )
            elif split == "train" and not all(texts):
                problems.append(f"{place}: an empty {task.texts[texts.index('')]}")
            else:
                found.first.append(texts[0])
                if found.second is not None:
                    found.second.append(texts[1])
                found.labels.append(label)
                _tag(found, {name: row[name] for name in tagged})
        if torn:
            say([f"{torn[0]}; {len(torn)} broken line(s) left out, as by other readers of {task.folder}"])
        return len(found.labels) - before


def _label(text: str, labels: tuple[str, ...]) -> float | None:
    if labels:
        return labels.index(text) if text in labels else None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _tag(found: Texts, tags: dict[str, str]) -> None:
    """Put the last question into the groups of its tags: each category, and each kind of knowledge."""
    names = [_plain(category) for category, kinds in tags.items() if kinds.strip()]
    names += [_plain(kind) for kind in tags.get("Knowledge", "").split(";") if kind.strip()]
    for name in dict.fromkeys([*found.groups, *names]):
        group = found.groups.setdefault(name, [])
        group += [False] * (len(found.labels) - 1 - len(group)) + [name in names]


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
