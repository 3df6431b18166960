"""Probes against literal versions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics import linear_probe, token_ranks, zero_shot_probe


def slow_probe(states: Tensor, labels: Tensor, train: int, splits: int, seed: int, ridge: float) -> float:
    """Ridge regression in its primal form: (X'X + l I) W = X'Y."""
    drawn, hits, total = torch.Generator().manual_seed(seed), 0, 0
    for _ in range(splits):
        order = torch.randperm(len(states), generator=drawn).tolist()
        fit, score = order[:train], order[train:]
        centre = states[fit].double().mean(0)
        x = states[fit].double() - centre
        y = torch.stack([(labels[fit] == k).double() for k in range(int(labels.max()) + 1)], 1)
        penalty = ridge * float((x**2).sum()) / train
        weight = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1]).double()) @ x.T @ (y - y.mean(0))
        for i in score:
            guess = int(((states[i].double() - centre) @ weight + y.mean(0)).argmax())
            hits, total = hits + (guess == int(labels[i])), total + 1
    return hits / total


@pytest.mark.parametrize("width", [3, 40])
def test_linear_probe_is_ridge_regression(width: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (30,))
    states = torch.randn(30, width) + 0.8 * torch.randn(4, width)[labels]
    for seed, ridge in ((0, 0.01), (3, 1.0)):
        expected = slow_probe(states, labels, 20, 5, seed, ridge)
        assert linear_probe(states, labels, 20, 5, seed, ridge) == pytest.approx(expected)
        assert 0.25 < expected < 1
    # The same for any scale and place of the states.
    assert linear_probe(7 * states + 3, labels, 20) == linear_probe(states, labels, 20)


def test_linear_probe_finds_what_is_there_and_nothing_else() -> None:
    torch.manual_seed(0)
    labels = torch.arange(96) % 4
    hidden = torch.nn.functional.one_hot(labels, 4).float() @ torch.randn(4, 64)
    assert linear_probe(hidden + 0.3 * torch.randn(96, 64), labels, 64) == 1
    chance = [linear_probe(torch.randn(96, 64), labels, 64, seed=seed) for seed in range(20)]
    assert sum(chance) / 20 == pytest.approx(0.25, abs=0.03)
    assert linear_probe(torch.ones(96, 64), labels, 64) <= 0.25


def test_zero_shot_probe_is_the_highest_cosine() -> None:
    torch.manual_seed(1)
    words, labels = torch.randn(4, 6), torch.randint(4, (50,))
    states = words[labels] + 1.2 * torch.randn(50, 6)
    guesses = [
        max(range(4), key=lambda k, x=x: float(torch.cosine_similarity(x, words[k], dim=0))) for x in states
    ]
    expected = sum(g == int(k) for g, k in zip(guesses, labels, strict=True)) / 50
    assert 0.4 < expected < 1
    assert zero_shot_probe(states, words, labels) == pytest.approx(expected)
    assert zero_shot_probe(torch.ones(5, 6), torch.ones(4, 6), torch.arange(5) % 4) == 0  # ties
    broken = states.clone()
    broken[0] = float("nan")
    hit = guesses[0] == int(labels[0])
    assert zero_shot_probe(broken, words, labels) == pytest.approx(expected - hit / 50)


def test_token_ranks_count_the_wrong_clips_before_the_best_own_one() -> None:
    torch.manual_seed(2)
    tokens, clips = torch.randn(20, 5), torch.randn(12, 5)
    own = torch.rand(20, 12) < 0.2
    own[:, 0] |= ~own.any(1)
    table = torch.nn.functional.normalize(tokens, dim=1) @ torch.nn.functional.normalize(clips, dim=1).T
    expected = []
    for row, mine in zip(table, own, strict=True):
        order = row.argsort(descending=True).tolist()
        expected.append(next(k for k, clip in enumerate(order) if mine[clip]))
    assert token_ranks(tokens, clips, own).tolist() == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: linear_probe(torch.rand(4, 2), torch.zeros(3), 2), r"states \(4, 2\), labels \(3,\)"),
        (lambda: linear_probe(torch.rand(4, 2), torch.zeros(4), 4), "4 of 4 items to fit"),
        (lambda: linear_probe(torch.rand(4, 2), torch.zeros(4), 2, splits=0), "in 0 splits"),
        (lambda: zero_shot_probe(torch.rand(4, 2), torch.rand(4, 3), torch.zeros(4)), r"words \(4, 3\)"),
        (lambda: token_ranks(torch.rand(2, 3), torch.rand(4, 3), torch.ones(2, 3).bool()), r"own \(2, 3\)"),
        (lambda: token_ranks(torch.rand(2, 3), torch.rand(4, 3), torch.eye(2, 4) > 1), "token 0 has no clip"),
    ],
)
def test_what_does_not_fit_is_one_line(call, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=line):
        call()
