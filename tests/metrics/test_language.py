"""Downstream scores against cases by hand and, where it has them, scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlkd.errors import UserError
from vlkd.metrics.language import (
    f1,
    label_accuracy,
    matthews,
    normalised_answer,
    pearson,
    spearman,
    squad_scores,
)


def test_classes_by_hand() -> None:
    guesses, labels = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    assert label_accuracy(guesses, labels) == pytest.approx(4 / 6)
    assert f1(guesses, labels) == pytest.approx(2 / 3)  # precision 2/3, recall 2/3
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 2 - 1 1) / sqrt(3 3 3 3)
    assert matthews(guesses, labels) == pytest.approx(3 / 9)


def test_f1_is_of_the_positive_class_and_not_of_the_mean() -> None:
    guesses, labels = [1, 0, 0, 0], [1, 1, 1, 0]
    assert f1(guesses, labels) == pytest.approx(0.5)  # precision 1, recall 1/3
    assert f1(guesses, labels, positive=0) == pytest.approx(0.5)  # precision 1/3, recall 1
    assert f1([0, 0], [1, 0]) == 0
    assert f1([0, 0], [0, 0]) == 0


def test_matthews_of_three_classes_is_gorodkins() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    guesses = np.where(rng.random(200) < 0.5, labels, rng.integers(3, size=200))
    table = np.zeros((3, 3))
    np.add.at(table, (labels, guesses), 1)
    s, c = table.sum(), np.trace(table)
    p, t = table.sum(0), table.sum(1)
    expected = (c * s - p @ t) / np.sqrt((s**2 - p @ p) * (s**2 - t @ t))
    assert matthews(guesses, labels) == pytest.approx(expected)
    assert matthews(labels, labels) == pytest.approx(1)
    assert matthews([1, 1, 1], [0, 1, 2]) == 0


def test_correlations_equal_scipys() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=50), rng.integers(6, size=50) / 2  # with ties
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(np.exp(y), y) == pytest.approx(1)
    assert pearson(-y, y) == pytest.approx(-1)


def test_a_constant_has_no_correlation() -> None:
    assert pearson([0.1] * 3, [1.0, 2.0, 4.0]) == 0
    assert spearman([0.1] * 3, [1.0, 2.0, 4.0]) == 0


def test_other_shapes_are_refused() -> None:
    for score in (label_accuracy, f1, matthews, pearson, spearman):
        with pytest.raises(UserError, match=r"expected both \(N,\)"):
            score([1, 2], [1])
        with pytest.raises(UserError, match=r"expected both \(N,\)"):
            score([], [])


def test_answers_are_compared_without_case_punctuation_articles_and_spaces() -> None:
    assert normalised_answer("The  Eiffel-Tower, an \ticon!") == "eiffeltower icon"
    assert normalised_answer("a theatre") == "theatre"
    assert normalised_answer("The.") == ""


def test_squad_1_by_hand() -> None:
    found = squad_scores(["the red car", "in 1999"], [["Red car!", "car"], ["1999", "in May 1999"]])
    assert found["exact"] == 0.5
    # in 1999 against 1999: precision 1/2, recall 1; against in May 1999: precision 1, recall 2/3
    assert found["f1"] == pytest.approx((1 + 0.8) / 2)
    assert squad_scores(["the"], [["a"]]) == {"exact": 1.0, "f1": 0.0}  # as the official script has it


def test_squad_2_by_hand() -> None:
    found = squad_scores(["", "no", "red car", ""], [[], [], ["car"], ["car"]], no_answer=True)
    assert found == pytest.approx(
        {
            "exact": 1 / 4,
            "f1": (1 + 0 + 2 / 3 + 0) / 4,
            "HasAns_exact": 0,
            "HasAns_f1": 1 / 3,
            "NoAns_exact": 1 / 2,
        }
    )


def test_squad_refuses_what_it_cannot_score() -> None:
    with pytest.raises(UserError, match="1 guesses for 2 questions"):
        squad_scores(["a"], [["a"], ["b"]])
    with pytest.raises(UserError, match="without answers"):
        squad_scores(["a"], [[]])
