"""SQuAD 1.1 and 2.0 from their JSON files: where in a text the answer to a question stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.cache import cache_key
from vlkd.data.downstream.base import DownstreamData, Head, Sequence1, Split, TokenRows, first_of, parts
from vlkd.data.files import read_text
from vlkd.errors import UserError
from vlkd.metrics.language import squad_scores

_BEST = 20  # beginnings and ends of a window that are tried
_FORM = '{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'


@dataclass(frozen=True)
class Question:
    """A question to a context (its number); answers as (text, first character), none where there is none."""

    id: str
    text: str
    context: int
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Questions:
    """What a file asks: contexts, and questions to them."""

    contexts: list[str]
    questions: list[Question]

    @property
    def key(self) -> str:
        """Short hash of what is asked."""
        return cache_key(contexts=self.contexts, questions=[str(q) for q in self.questions])[:16]


class Windows(TokenRows):
    """Questions with a part of their context each: [CLS] question [SEP] part [SEP].

    question (N,): number of each window's question; start (N,) and count (N,): its tokens of the context.
    labels (N,2): first and last token of the answer in the sequence, 0 where the window does not hold it.
    """

    def __init__(
        self, asked: Questions, tokenizer: Any, length: int, stride: int, query_length: int, first: bool
    ) -> None:
        super().__init__(first)
        self.asked, self.ends = asked, (tokenizer.cls_token_id, tokenizer.sep_token_id)
        # verbose: a context may be longer than the model reads, which is what windows are for.
        plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        self.contexts: list[NDArray[np.int32]] = []
        self.offsets: list[NDArray[np.int32]] = []
        for part in parts(len(asked.contexts)):
            found = tokenizer(asked.contexts[part], return_offsets_mapping=True, **plain)
            self.contexts += [np.array(x, np.int32) for x in found["input_ids"]]
            self.offsets += [np.array(x, np.int32).reshape(-1, 2) for x in found["offset_mapping"]]
        self.asks: list[NDArray[np.int32]] = []
        for part in parts(len(asked.questions)):
            asks = tokenizer([q.text for q in asked.questions[part]], **plain)["input_ids"]
            self.asks += [np.array(x[:query_length], np.int32) for x in asks]
        rows = []
        for k, question in enumerate(asked.questions):
            answer = self._answer(question)
            room = length - len(self.asks[k]) - 3
            for start, count in _parts(len(self.contexts[question.context]), room, stride):
                rows.append((k, start, count, *self._place(k, answer, start, count)))
        table = np.array(rows, np.int64).reshape(-1, 5)
        self.question, self.start, self.count = table[:, 0], table[:, 1], table[:, 2]
        self.labels = torch.from_numpy(table[:, 3:])

    def sequences(self, index: int) -> list[Sequence1]:
        """Ids and segments of a window."""
        number, start = self.question[index], self.start[index]
        context = self.contexts[self.asked.questions[number].context]
        ask, part = self.asks[number], context[start : start + self.count[index]]
        cls, sep = self.ends
        ids = np.concatenate([[cls], ask, [sep], part, [sep]]).astype(np.int32)
        return [(ids, (np.arange(len(ids)) >= len(ask) + 2).astype(np.int32))]

    def text(self, index: int, first: int, last: int) -> str:
        """The context's characters from token `first` to token `last` of a window's part."""
        context = self.asked.questions[self.question[index]].context
        offsets = self.offsets[context][self.start[index] :]
        return self.asked.contexts[context][offsets[first, 0] : offsets[last, 1]]

    def _answer(self, question: Question) -> tuple[int, int] | None:
        """First and last token of the first answer in the whole context."""
        if not question.answers:
            return None
        text, begin = question.answers[0]
        offsets = self.offsets[question.context]
        inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < begin + len(text)))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None

    def _place(self, number: int, answer: tuple[int, int] | None, start: int, count: int) -> tuple[int, int]:
        if answer is None or answer[0] < start or answer[1] >= start + count:
            return 0, 0
        before = len(self.asks[number]) + 2 - start
        return answer[0] + before, answer[1] + before


class SquadData(DownstreamData):
    """SQuAD 1.1 or 2.0: the words of a context that answer a question, or that nothing does.

    Long contexts are read in windows; the best span of all windows is the answer, as characters of the
    context. Scores: `exact` and `f1` as of the official script, for 2.0 also of either kind of question.

    Args:
        train: train-v1.1.json or train-v2.0.json.
        val: dev-v1.1.json or dev-v2.0.json.
        no_answer: the files are of version 2.0.
        tokenizer: see DownstreamData.
        length: see DownstreamData.
        stride: context tokens from the beginning of a window to that of the next.
        query_length: tokens of a question at most.
        answer_length: tokens of an answer at most.
        threshold: how much better than the best span "no answer" must be.
        batch_size: windows per step and process.
        num_workers: see DownstreamData.
        seed: see DownstreamData.
    """

    head: Head = "spans"

    def __init__(
        self,
        train: str,
        val: str,
        no_answer: bool = False,
        tokenizer: str | None = None,
        length: int = 384,
        stride: int = 128,
        query_length: int = 64,
        answer_length: int = 30,
        threshold: float = 0.0,
        batch_size: int = 12,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, length, batch_size, num_workers, seed)
        if min(stride, query_length, answer_length) < 1 or length < query_length + 4:
            raise UserError(
                f"data.length={length}, stride={stride}, query_length={query_length}, "
                f"answer_length={answer_length}: expected 1 or more, and room for a question, a part of the "
                "context and 3 special tokens"
            )
        self.files: dict[Split, Path] = {"train": Path(train).expanduser(), "val": Path(val).expanduser()}
        self.no_answer, self.stride, self.query_length = no_answer, stride, query_length
        self.answer_length, self.threshold = answer_length, threshold
        self.task = f"SQuAD {'2.0' if no_answer else '1.1'}"

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Logits of beginning and end at each place."""
        return (2, self.length)

    def read(self, split: Split, problems: list[str]) -> Questions:
        """Contexts and questions of the split's file."""
        path = self.files[split]
        found = Questions([], [])
        for context, questions in _paragraphs(path):
            found.contexts.append(context)
            for number, entry in enumerate(questions, 1):
                name = entry.get("id", number) if isinstance(entry, dict) else number
                where = f"{path}: question {str(name)!r}"
                try:
                    question = _question(entry, len(found.contexts) - 1)
                except (KeyError, TypeError, ValueError, AttributeError):
                    problems.append(
                        f"{where}: not of the form {{id, question, answers: [{{text, answer_start}}]}}"
                    )
                    continue
                if problem := self._problem(question, context, split):
                    problems.append(f"{where}: {problem}")
                else:
                    found.questions.append(question)
        if not found.questions:
            raise UserError(f"{path}: holds no usable question{first_of(problems)}")
        return found

    def _problem(self, question: Question, context: str, split: Split) -> str:
        if split == "train" and not (question.text.strip() and context.strip()):
            return "an empty question or context"
        if not question.answers and not self.no_answer:
            return "has no answer; set data.no_answer: true for version 2.0"
        for text, start in question.answers:
            if context[start : start + len(text)] != text or not text:
                return f"the answer {text[:40]!r} does not stand at character {start} of its context"
        return ""

    def encoded(self, asked: Questions, split: Split) -> Windows:
        """Windows of the questions."""
        return Windows(
            asked, self.tokenizer, self.length, self.stride, self.query_length, first=split == "val"
        )

    def scores(self, answers: Tensor, seen: Tensor) -> dict[str, float]:
        """Of the questions all of whose windows were seen."""
        windows = self.val_set
        assert isinstance(windows, Windows)
        logits, known = answers.double().numpy(), seen.numpy()
        questions = windows.asked.questions
        cuts = np.searchsorted(windows.question, np.arange(1, len(questions)))
        rows_of = np.split(np.arange(len(windows)), cuts)
        whole = [(q, rows) for q, rows in zip(questions, rows_of, strict=True) if known[rows].all()]
        if not whole:
            return {}
        guesses = [self.answer(windows, rows, logits) for _, rows in whole]
        accepted = [[text for text, _ in question.answers] for question, _ in whole]
        return squad_scores(guesses, accepted, self.no_answer)

    def answer(self, windows: Windows, rows: NDArray[np.int64], logits: NDArray[np.float64]) -> str:
        """The best span of a question's windows `rows`, "" for none; logits (N,2,L) of all windows."""
        best, words, nothing = -np.inf, "", np.inf
        for row in rows:
            begin, count = len(windows.asks[windows.question[row]]) + 2, int(windows.count[row])
            part = logits[row, :, begin : begin + count]
            nothing = min(nothing, float(logits[row, :, 0].sum()))
            score, first, last = best_span(part[0], part[1], self.answer_length)
            if score > best:
                best, words = score, windows.text(int(row), first, last)
        return "" if self.no_answer and nothing - best > self.threshold else words


def best_span(start: NDArray[np.float64], end: NDArray[np.float64], longest: int) -> tuple[float, int, int]:
    """Highest start[i] + end[j], i <= j < i + longest, among the 20 best of each (L,): the sum, i and j."""
    firsts, lasts = (np.argsort(-x, kind="stable")[:_BEST] for x in (start, end))
    gap = lasts[None] - firsts[:, None]
    total = np.where((gap >= 0) & (gap < longest), start[firsts][:, None] + end[lasts][None], -np.inf)
    if not np.isfinite(total).any():
        return -np.inf, 0, 0
    i, j = np.unravel_index(int(total.argmax()), total.shape)
    return float(total[i, j]), int(firsts[i]), int(lasts[j])


def _parts(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """First token and number of tokens of each window of a context."""
    found, start = [], 0
    while True:
        found.append((start, min(room, tokens - start)))
        if start + room >= tokens:
            return found
        start += min(stride, room)


def _question(entry: dict[str, Any], context: int) -> Question:
    answers = [] if entry.get("is_impossible") else entry["answers"]
    pairs = tuple((str(answer["text"]), int(answer["answer_start"])) for answer in answers)
    return Question(str(entry["id"]), str(entry["question"]), context, pairs)


def _paragraphs(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    text = read_text(path, f"not found; expected SQuAD's JSON {_FORM}")
    try:
        return [
            (str(paragraph["context"]), list(paragraph["qas"]))
            for article in json.loads(text)["data"]
            for paragraph in article["paragraphs"]
        ]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not a JSON file ({error.msg})") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not SQuAD's JSON; expected {_FORM}") from None
