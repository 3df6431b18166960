"""Scores of downstream language tasks: GLUE's for classes and similarities, SQuAD's for answers in words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlkd.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def label_accuracy(guesses: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of guesses (N,) that are the label (N,). Raises UserError for shapes that do not fit."""
    x, y = _pair(guesses, labels)
    return float((x == y).mean())


def f1(guesses: ArrayLike, labels: ArrayLike, positive: int = 1) -> float:
    """Harmonic mean of precision and recall of the class `positive`; 0 where it is never hit.

    Guesses and labels (N,). Raises UserError for shapes that do not fit.
    """
    x, y = (found == positive for found in _pair(guesses, labels))
    return float(2 * (x & y).sum() / max(1, x.sum() + y.sum()))


def matthews(guesses: ArrayLike, labels: ArrayLike) -> float:
    """Matthews' correlation of guesses and labels (N,), of any number of classes; 0 where either is constant.

    For more than two classes Gorodkin's R_K (2004), as GLUE scores its diagnostics. Raises UserError for
    shapes that do not fit.
    """
    x, y = _pair(guesses, labels)
    classes = np.unique(np.concatenate([x, y]))
    one_x, one_y = ((found[:, None] == classes).astype(np.float64) for found in (x, y))
    one_x, one_y = one_x - one_x.mean(0), one_y - one_y.mean(0)
    return _correlation(one_x, one_y)


def pearson(guesses: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's correlation of numbers (N,); 0 where either is constant. Raises UserError as `f1`."""
    x, y = (found.astype(np.float64) for found in _pair(guesses, labels))
    if x.min() == x.max() or y.min() == y.max():
        return 0.0  # the mean may be off by a rounding, which would then be the whole correlation
    return _correlation(x - x.mean(), y - y.mean())


def spearman(guesses: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's: `pearson` of the ranks, equal numbers having the mean of their ranks."""
    return pearson(*(_ranks(found) for found in _pair(guesses, labels)))


def normalised_answer(text: str) -> str:
    """As SQuAD compares answers: lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_scores(
    guesses: Sequence[str], answers: Sequence[Sequence[str]], no_answer: bool = False
) -> dict[str, float]:
    """{"exact", "f1"} of N guesses, each against the accepted answers that it is most like.

    no_answer: SQuAD 2.0's scores. A question without answers is right when the guess is empty; there are then
    HasAns_exact, HasAns_f1 and NoAns_exact of the questions of either kind. Raises UserError for lists of
    different lengths and, without `no_answer`, a question without answers.
    Source: rajpurkar.github.io/SQuAD-explorer, evaluate-v1.1 and evaluate-v2.0.
    """
    if len(guesses) != len(answers) or not len(guesses):
        raise UserError(f"SQuAD: {len(guesses)} guesses for {len(answers)} questions; expected as many")
    if not no_answer and not all(answers):
        raise UserError("SQuAD: a question without answers; score it as version 2.0 (no_answer)")
    exact, overlap, answerable = [], [], []
    for guess, accepted in zip(guesses, answers, strict=True):
        answerable.append(bool(accepted))
        if no_answer:
            # Answers that are articles and punctuation only do not count as such.
            accepted = [answer for answer in accepted if normalised_answer(answer)]
        exact.append(max(float(normalised_answer(guess) == normalised_answer(a)) for a in accepted or [""]))
        overlap.append(max(_word_f1(guess, a, no_answer) for a in accepted or [""]))
    found = {"exact": float(np.mean(exact)), "f1": float(np.mean(overlap))}
    if not no_answer:
        return found
    has = np.array(answerable)
    if has.any():
        found |= {
            "HasAns_exact": float(np.array(exact)[has].mean()),
            "HasAns_f1": float(np.array(overlap)[has].mean()),
        }
    return found | ({"NoAns_exact": float(np.array(exact)[~has].mean())} if not has.all() else {})


def _word_f1(guess: str, answer: str, no_answer: bool) -> float:
    mine, theirs = normalised_answer(guess).split(), normalised_answer(answer).split()
    same = sum((Counter(mine) & Counter(theirs)).values())
    if not same:
        return float(no_answer and not mine and not theirs)
    return 2 * same / (len(mine) + len(theirs))


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of centred numbers of one shape."""
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def _ranks(x: NDArray) -> NDArray[np.float64]:
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _pair(guesses: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    x, y = np.asarray(guesses), np.asarray(labels)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise UserError(f"guesses {x.shape}, labels {y.shape}: expected both (N,), N at least 1")
    return x, y
