"""Tasks that ask which of several endings or solutions is right: SWAG and PIQA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkd.data.downstream.base import Head, Split, Texts, TextTask, usable
from vlkd.data.downstream.glue import ACCURACY, Metric
from vlkd.data.downstream.lines import csv_rows, json_rows, lines
from vlkd.errors import UserError


class ChoiceTask(TextTask):
    """A task whose questions have the same number of choices each."""

    head: Head = "choices"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Accuracy."""
        return ACCURACY

    def add(
        self,
        found: Texts,
        first: str,
        choices: list[str],
        label: str,
        place: str,
        bad: list[str],
        split: Split,
    ) -> None:
        """Add a question, or say in `bad` why not; an empty text is only left out of training."""
        if label not in self.label_names:
            bad.append(f"{place}: label {label[:40]!r}, expected one of {', '.join(self.label_names)}")
        elif split == "train" and not all([first, *choices]):
            bad.append(f"{place}: an empty text")
        else:
            assert found.second is not None
            found.first += [first] * len(choices)
            found.second += choices
            found.labels.append(self.label_names.index(label))


class SwagData(ChoiceTask):
    """SWAG: which of four endings follows, from train.csv and val.csv of the regular data set.

    Args:
        root: folder of the two files.
        length: see DownstreamData.
        batch_size: see DownstreamData.
        kwargs: see DownstreamData.
    """

    task = "SWAG"
    label_names = ("0", "1", "2", "3")

    def __init__(self, root: str, length: int = 80, batch_size: int = 16, **kwargs: Any) -> None:
        super().__init__(length=length, batch_size=batch_size, **kwargs)
        self.root = Path(root).expanduser()

    def read(self, split: Split, problems: list[str]) -> Texts:
        """The context is the first text of a pair; the next sentence, with an ending, the other."""
        endings = [f"ending{k}" for k in range(4)]
        found, path = Texts(second=[], choices=4), self.root / f"{split}.csv"
        for place, row in csv_rows(path, ["sent1", "sent2", *endings, "label"], problems):
            choices = [f"{row['sent2']} {row[ending]}".strip() for ending in endings]
            self.add(found, row["sent1"].strip(), choices, row["label"].strip(), place, problems, split)
        return usable(found, str(path), problems)


class PiqaData(ChoiceTask):
    """PIQA: which of two solutions reaches a goal.

    From train.jsonl and train-labels.lst; for validation valid (or dev) likewise.

    Args:
        root: folder of the files.
        kwargs: see DownstreamData.
    """

    task = "PIQA"
    label_names = ("0", "1")

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()

    def read(self, split: Split, problems: list[str]) -> Texts:
        """The goal is the first text of a pair, a solution the other."""
        dev = (self.root / "dev.jsonl").is_file() and not (self.root / "valid.jsonl").is_file()
        name = "train" if split == "train" else "dev" if dev else "valid"
        path, answers = self.root / f"{name}.jsonl", self.root / f"{name}-labels.lst"
        labels = lines(answers, "a label (0 or 1) a line")
        questions = len(lines(path, "a JSON object a line"))
        if questions != len(labels):
            raise UserError(f"{answers}: {len(labels)} labels for the {questions} lines of {path}")
        found = Texts(second=[], choices=2)
        for place, row in json_rows(path, ("goal", "sol1", "sol2"), problems):
            number = int(place.rsplit(":", 1)[1])
            choices = [row["sol1"].strip(), row["sol2"].strip()]
            place = f"{answers}:{number}" if labels[number - 1].strip() not in self.label_names else place
            self.add(found, row["goal"].strip(), choices, labels[number - 1].strip(), place, problems, split)
        return usable(found, str(path), problems)
