"""Probes: what can be read off the states of words, and which clip a token is most like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.metrics.retrieval import rank_before


def linear_probe(
    states: Tensor, labels: Tensor, train: int, splits: int = 6, seed: int = 0, ridge: float = 0.01
) -> float:
    """P1: accuracy of a linear classifier of states (N,D) on items that it was not fitted on.

    labels (N,) from 0. In each of `splits` random splits `train` items are fitted and the others scored; the
    mean over splits is returned. The classifier is ridge regression on one-hot labels: states centred on the
    fitted items, penalty `ridge` times the mean of their kernel's diagonal, which makes it the same for any
    scale of the states. Raises UserError for shapes that do not fit.
    """
    if states.ndim != 2 or labels.shape != states.shape[:1]:
        raise UserError(
            f"probe: states {tuple(states.shape)}, labels {tuple(labels.shape)}: expected (N,D) and (N,)"
        )
    if not 1 < train < len(states) or splits < 1:
        raise UserError(
            f"probe: {train} of {len(states)} items to fit in {splits} splits; expected 2 or more, some left "
            "to score, and at least 1 split"
        )
    x, one_hot = states.detach().double().cpu(), F.one_hot(labels.cpu().long()).double()
    drawn = torch.Generator().manual_seed(seed)
    hits = []
    for _ in range(splits):
        order = torch.randperm(len(x), generator=drawn)
        hits.append(_fit_and_score(x, one_hot, order[:train], order[train:], ridge))
    return float(torch.cat(hits).double().mean())


def _fit_and_score(x: Tensor, one_hot: Tensor, fit: Tensor, score: Tensor, ridge: float) -> Tensor:
    """Hits (n,) of the items `score`, by a classifier of the items `fit`."""
    centre, prior = x[fit].mean(0), one_hot[fit].mean(0)
    known = x[fit] - centre
    kernel = known @ known.T
    # 1 where all states are equal: then the kernel is 0 and the prior decides.
    penalty = ridge * kernel.diagonal().mean()
    penalty = torch.where(penalty > 0, penalty, 1.0)
    dual = torch.linalg.solve(kernel + penalty * torch.eye(len(fit)).double(), one_hot[fit] - prior)
    guessed = (x[score] - centre) @ known.T @ dual + prior
    return guessed.argmax(1) == one_hot[score].argmax(1)


def zero_shot_probe(states: Tensor, words: Tensor, labels: Tensor) -> float:
    """P2: fraction of states (N,D) that have the highest cosine with the word (K,D) of their label (N,).

    Nothing is fitted. A tie, and a cosine that is not a number, is no hit. Raises UserError for shapes
    that do not fit.
    """
    if states.ndim != 2 or words.ndim != 2 or states.shape[1] != words.shape[1]:
        raise UserError(
            f"probe: states {tuple(states.shape)}, words {tuple(words.shape)}: expected (N,D) and (K,D)"
        )
    own = labels[:, None].to(states.device) == torch.arange(len(words), device=states.device)
    return float((token_ranks(states, words, own) == 0).double().mean())


def token_ranks(tokens: Tensor, clips: Tensor, own: Tensor) -> Tensor:
    """P5: how many wrong clips (M,D) come before the best own one of each token (N,D): (N,) int64, from 0.

    By cosine; own (N,M) bool says which clips show what the token names. What scores as high as the best own
    one comes before it, so that states without information do not win by their order. Raises UserError for
    shapes that do not fit and a token without a clip of its own.
    """
    if tokens.ndim != 2 or clips.shape[1:] != tokens.shape[1:] or own.shape != (len(tokens), len(clips)):
        raise UserError(
            f"probe: tokens {tuple(tokens.shape)}, clips {tuple(clips.shape)}, own {tuple(own.shape)}: "
            "expected (N,D), (M,D) and (N,M)"
        )
    lonely = ~own.any(1)
    if lonely.any():
        raise UserError(f"probe: token {int(lonely.nonzero()[0])} has no clip of its own")
    unit_tokens, unit_clips = (F.normalize(x.detach().double(), dim=1) for x in (tokens, clips))
    return rank_before(unit_tokens, unit_clips, own.to(tokens.device))
