"""What data of downstream tasks share: reading, token ids, batches filled up to their longest, scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vlkd.cache import cache_key
from vlkd.data.tokens import TokenLoaders
from vlkd.data.video_text.base import Split, say
from vlkd.errors import UserError
from vlkd.text.word_ids import load_tokenizer

Head = Literal["classes", "regression", "choices", "spans"]
Sequence1 = tuple[NDArray[np.int32], NDArray[np.int32]]  # ids (L,) and the segment (0, 1) of each
Item = dict[str, Any]
_CHUNK = 10_000  # texts given to the tokenizer at once


@dataclass
class Texts:
    """N questions: a text or a pair of texts for each of C choices, and N labels.

    first and second: N C texts, those of one question after one another; second is None for single texts.
    groups: named parts of the questions (N,) bool that are scored by themselves.
    """

    first: list[str] = field(default_factory=list)
    second: list[str] | None = None
    labels: list[float] = field(default_factory=list)
    choices: int = 1
    groups: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short hash of what is asked."""
        return cache_key(first=self.first, second=self.second, labels=self.labels)[:16]


class TokenRows(Dataset):
    """Questions as token ids, addressed by (epoch, index) or, `first`, by (index, repeated)."""

    labels: Tensor

    def __init__(self, first: bool) -> None:
        self.first = first

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def sequences(self, index: int) -> list[Sequence1]:
        """Ids and segments of a question, one of each choice."""

    def __getitem__(self, address: tuple[int, int]) -> Item:
        index = int(address[0] if self.first else address[1])
        return {"sequences": self.sequences(index), "labels": self.labels[index], "indices": index}


def parts(count: int) -> Iterator[slice]:
    """Slices of `count` texts to tokenise at once; a bar on stderr where there are several."""
    slices = [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]
    if len(slices) < 2:
        yield from slices
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(slices, f"tokens of {count:,} texts", console=Console(stderr=True), transient=True)


class TextRows(TokenRows):
    """Rows of Texts, their ids one after another in one array."""

    def __init__(self, texts: Texts, tokenizer: Any, length: int, first: bool, labels: torch.dtype) -> None:
        super().__init__(first)
        self.labels, self.choices = torch.tensor(texts.labels, dtype=labels), texts.choices
        ids: list[NDArray[np.int32]] = []
        segments: list[NDArray[np.int32]] = []
        for part in parts(len(texts.first)):
            found = tokenizer(
                texts.first[part],
                texts.second[part] if texts.second is not None else None,
                truncation=True,
                max_length=length,
                return_token_type_ids=True,
                return_attention_mask=False,
            )
            ids += [np.array(x, np.int32) for x in found["input_ids"]]
            segments += [np.array(x, np.int32) for x in found["token_type_ids"]]
        self.ends = np.cumsum([0, *(len(x) for x in ids)])
        self.ids, self.segments = np.concatenate(ids), np.concatenate(segments)

    def sequences(self, index: int) -> list[Sequence1]:
        """Ids and segments of each choice."""
        places = [index * self.choices + k for k in range(self.choices)]
        spans = [slice(self.ends[k], self.ends[k + 1]) for k in places]
        return [(self.ids[span], self.segments[span]) for span in spans]


def filled_up(items: Sequence[Item], pad: int, choices: bool) -> dict[str, Tensor]:
    """A batch: input_ids, token_type_ids, attention_mask (B,L) or (B,C,L) int64, labels, indices (B,)."""
    rows = [sequence for item in items for sequence in item["sequences"]]
    longest = max(len(ids) for ids, _ in rows)
    batch = {
        key: torch.full((len(rows), longest), value)
        for key, value in (("input_ids", pad), ("token_type_ids", 0), ("attention_mask", 0))
    }
    for k, (ids, segments) in enumerate(rows):
        batch["input_ids"][k, : len(ids)] = torch.from_numpy(ids)
        batch["token_type_ids"][k, : len(ids)] = torch.from_numpy(segments)
        batch["attention_mask"][k, : len(ids)] = 1
    if choices:
        batch = {key: x.unflatten(0, (len(items), -1)) for key, x in batch.items()}
    batch["labels"] = torch.stack([item["labels"] for item in items])
    return batch | {"indices": torch.tensor([item["indices"] for item in items])}


class DownstreamData(TokenLoaders):
    """A task with labels: what `FineTune` trains on and is scored by (see its README for the contract).

    Bad lines of training files are told and left out; one of a validation file ends the run, because scores
    on fewer questions would not compare. A subclass says what it asks (`task`, `head`, `label_names`), and
    gives `read`, `encoded` and `scores`.

    Args:
        tokenizer: transformers folder, or tokenizer.json; null: the one that the model brings.
        length: token ids of a sequence at most, special ones included.
        batch_size: questions per step and process.
        num_workers: loader processes.
        seed: of the order.
    """

    task: str
    head: Head
    label_names: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: str | None = None,
        length: int = 126,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if length < 8 or batch_size < 1 or num_workers < 0:
            raise UserError(
                f"data.length={length}, batch_size={batch_size}, num_workers={num_workers}: "
                "expected at least 8, 1 and 0"
            )
        self.length = length
        self.tokenizer: Any = load_tokenizer(tokenizer) if tokenizer else None
        self._asked: dict[Split, Any] = {}

    # --- what a task gives ---------------------------------------------------------------------------------

    @abstractmethod
    def read(self, split: Split, problems: list[str]) -> Any:
        """What a split's files ask; bad lines go to `problems`. Raises UserError for unreadable files."""

    @abstractmethod
    def encoded(self, asked: Any, split: Split) -> TokenRows:
        """What `read` gave as token ids of `tokenizer`."""

    @abstractmethod
    def scores(self, answers: Tensor, seen: Tensor) -> dict[str, float]:
        """Official scores of answers (N, *answer_shape) to the validation questions that were seen (N,)."""

    @property
    @abstractmethod
    def answer_shape(self) -> tuple[int, ...]:
        """Of one answer, filled up: (K,) logits of classes or choices, (1,), or (2,L) of a span's ends."""

    # --- the data module -----------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs. Raises UserError for bad validation files, and for no usable line."""
        splits: tuple[Split, ...] = ("train", "val") if stage in (None, "fit") else ("val",)
        for split in splits:
            if split not in self._asked:
                self._asked[split] = self._read(split)
        if self.tokenizer is not None:
            self._encode()

    def take_tokenizer(self, tokenizer: Any) -> None:
        """Use the model's tokenizer where the data have none of their own; after `setup`."""
        if self.tokenizer is None:
            self.tokenizer = tokenizer
            self._encode()

    def _read(self, split: Split) -> Any:
        problems: list[str] = []
        asked = self.read(split, problems)
        if problems and split == "val":
            more = f" (and {len(problems) - 1} more; --check lists them all)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}; scores need every question of the validation file{more}")
        say([f"{line}; left out" for line in problems])
        return asked

    def _encode(self) -> None:
        if self.train_set is None and "train" in self._asked:
            self.train_set = self.encoded(self._asked["train"], "train")
        if self.val_set is None:
            self.val_set = self.encoded(self._asked["val"], "val")
        self.collate_fn = partial(filled_up, pad=self.tokenizer.pad_token_id, choices=self.head == "choices")

    def check(self) -> list[str]:
        """Every problem of both splits, one line each (none when all is well)."""
        problems: list[str] = []
        splits: tuple[Split, ...] = ("train", "val")
        for split in splits:
            try:
                self.read(split, problems)
            except UserError as error:
                problems.append(str(error))
        return problems

    def val_fingerprint(self) -> str:
        """Short hash of the validation questions."""
        return self._asked["val"].key


class TextTask(DownstreamData):
    """A task whose questions are Texts, scored by metrics of guesses and labels."""

    overall = True  # scored as a whole too, beside the groups

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Callable[[NDArray, NDArray], float]]:
        """{name: function of guesses (N,) and labels (N,)}."""

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """As many logits as labels, one number for a similarity."""
        return (max(1, len(self.label_names)),)

    def encoded(self, asked: Texts, split: Split) -> TokenRows:
        """Texts as ids, cut at `length`, the longer of a pair first."""
        kind = torch.float32 if self.head == "regression" else torch.int64
        return TextRows(asked, self.tokenizer, self.length, split == "val", kind)

    def scores(self, answers: Tensor, seen: Tensor) -> dict[str, float]:
        """Each metric of all, and of each group as `metric_group`."""
        asked, known = self._asked["val"], seen.numpy()
        guesses = (answers[:, 0] if self.head == "regression" else answers.argmax(1)).numpy()
        labels = np.array(asked.labels)
        groups = {"": np.ones(len(labels), bool)} if self.overall else {}
        groups |= {f"_{name}": np.array(mask) for name, mask in asked.groups.items()}
        return {
            f"{metric}{name}": score(guesses[mask & known], labels[mask & known])
            for name, mask in groups.items()
            for metric, score in self.metrics.items()
            if (mask & known).any()
        }


def usable(texts: Texts, source: str, problems: Sequence[str]) -> Texts:
    """The texts themselves. Raises UserError where there are none, with the first of the problems."""
    if not texts.labels:
        raise UserError(f"{source}: holds no usable line{first_of(problems)}")
    return texts


def first_of(problems: Sequence[str]) -> str:
    """The first of the problems after a semicolon, nothing where there are none."""
    return f"; {problems[0]}" if problems else ""
