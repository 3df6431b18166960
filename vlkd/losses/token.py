"""Relations between tokens: neighbours across a batch, positives among all, attention within an image."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlkd.errors import UserError
from vlkd.losses.precision import full

Edges = tuple[Tensor, Tensor]
Kernel = Literal["rbf", "cosine"]
Reading = Literal["literal_KLst", "literal_KLts", "literal_raw", "tknn", "masked"]

_LIMIT = 2**22  # elements of a temporary: 16 MiB in float32


def patch_tokens(feature_map: Tensor, patch: int = 1) -> Tensor:
    """Patches of `patch` x `patch` cells as tokens: (B,C,h,w) -> (B, h w / patch^2, C patch^2).

    Row by row; within a token channel first, then row, then column. UserError when patch does not divide the
    map. Source: TRG (arXiv 2306.12442), order as torch.nn.functional.unfold.
    """
    if patch < 1 or any(side % patch for side in feature_map.shape[-2:]):
        raise UserError(
            f"patch of {patch} cells does not divide a map of {tuple(feature_map.shape[-2:])} cells"
        )
    return F.pixel_unshuffle(feature_map, patch).flatten(2).transpose(1, 2)


@torch.no_grad()
def knn_edges(tokens: Tensor, k: int) -> Edges:
    """Edges from the k nearest (Euclidean) tokens to each: (P,D) or (B,N,D) -> (source, target), two (P k,).

    A token is not its own neighbour; grouped by target, nearest source first. UserError unless k < P.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        x = _nodes(tokens)
        count = len(x)
        if not 0 <= k < count:
            raise UserError(f"k={k} nearest neighbours among {count} tokens: expected at most {count - 1}")
        # Only differences matter; without the common part, inner products keep more digits of them.
        x = x - x.mean(0)
        half_square, own = x.square().sum(1) / 2, torch.arange(count, device=x.device)
        found = []
        for rows in own.split(max(1, _LIMIT // count)):
            near = (half_square - x[rows] @ x.T).scatter(1, rows[:, None], float("inf"))
            found.append(near.topk(k, largest=False).indices)
        return torch.cat(found).flatten(), own.repeat_interleave(k)


def trg_local(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    edges: Edges,
    kernel: Kernel = "rbf",
    reduction: Literal["nodes", "edges", "sum"] = "nodes",
    sigma: float = 1.0,
) -> Tensor:
    """KL(teacher || student) of each token's distribution over its neighbours -> scalar in nats.

    Tokens (P,D) or (B,N,D), taken as given, of any two widths; edges (source, target), two (E,): the softmax
    runs over the sources of each target, of exp(-d^2 / (2 sigma)) or of the cosine. The sum is divided by P
    ("nodes"), by E ("edges") or not. Only E x D values are looked at, a chunk at a time. UserError for an
    unknown option or unequal tokens. Source: local structure preserving loss (arXiv 2003.10477) as in
    chaitjo/efficient-gnns@f0b079d; TRG (arXiv 2306.12442) restricted to the teacher's neighbours.
    """
    if kernel not in ("rbf", "cosine") or reduction not in ("nodes", "edges", "sum"):
        raise UserError(
            f"trg_local: kernel {kernel!r}, reduction {reduction!r}; expected rbf or cosine; nodes, "
            "edges or sum"
        )
    s, t = _pair("trg_local", student_tokens, teacher_tokens)
    log_s, log_t = (
        _log_softmax_by_target(_affinity(x, edges, kernel, sigma), edges[1], len(x)) for x in (s, t)
    )
    total = _kl(log_t, log_s).sum()
    return total / {"nodes": len(s), "edges": max(1, len(edges[0])), "sum": 1}[reduction]


def trg_local_dense(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    k: int,
    sigma: float = 1.0,
    mode: Reading = "literal_KLst",
) -> Tensor:
    """The readings of TRG's local loss, summed over the P nodes: tokens (P,D) or (B,N,D) -> scalar in nats.

    A_ij = exp(-d_ij^2 / (2 sigma)) where j is among the k nearest of i, else 0; softmax over all P tokens j.
    "literal_KLst" KL(student || teacher), each on its own neighbours, as printed; "literal_KLts" the same
    with KL(teacher || student); "literal_raw" its name where tokens are not projected; "tknn" with the
    teacher's neighbours on both sides; "masked" besides with the softmax over neighbours only (trg_local).
    Makes P x P matrices except for "masked". UserError for an unknown mode.
    Source: TRG (arXiv 2306.12442) after third parties' notes; see docs/trg.md for what is not confirmed.
    """
    readings = ("literal_KLst", "literal_KLts", "literal_raw", "tknn", "masked")
    if mode not in readings:
        raise UserError(f"reading {mode!r} of TRG's local loss is unknown; there are {', '.join(readings)}")
    s, t = _pair("trg_local_dense", student_tokens, teacher_tokens)
    edges = knn_edges(t, k)
    if mode == "masked":
        return trg_local(s, t, edges, reduction="sum", sigma=sigma)
    log_t = _graph(t, edges, sigma).log_softmax(1)
    log_s = _graph(s, edges if mode == "tknn" else knn_edges(s, k), sigma).log_softmax(1)
    return (_kl(log_s, log_t) if mode == "literal_KLst" else _kl(log_t, log_s)).sum()


def trg_global(student_tokens: Tensor, teacher_tokens: Tensor, temperature: float) -> Tensor:
    """Each student token finds its teacher token among all P: (P,D) or (B,N,D), one width -> scalar in nats.

    Cross entropy of cosines / temperature, mean over P; the student's tokens are already projected.
    UserError when the shapes differ. Source: TRG (arXiv 2306.12442); chaitjo/efficient-gnns@f0b079d.
    """
    if student_tokens.shape != teacher_tokens.shape:
        raise UserError(
            f"trg_global: student tokens {tuple(student_tokens.shape)}, teacher tokens "
            f"{tuple(teacher_tokens.shape)}; project the student's to the teacher's width"
        )
    with torch.autocast(student_tokens.device.type, enabled=False):
        s, t = (F.normalize(_nodes(x), dim=1) for x in (student_tokens, teacher_tokens))
        return F.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))


def trg_contextual(student_tokens: Tensor, teacher_tokens: Tensor) -> Tensor:
    """Mean square difference over B,N,N of softmax(F F' / sqrt(D)): tokens (B,N,D), any two widths -> scalar.

    UserError when B or N differ. Source: TRG (arXiv 2306.12442), inner-instance loss.
    """
    if student_tokens.ndim != 3 or student_tokens.shape[:2] != teacher_tokens.shape[:2]:
        raise UserError(
            f"trg_contextual: student tokens {tuple(student_tokens.shape)}, teacher tokens "
            f"{tuple(teacher_tokens.shape)}; expected (B,N,D) with the same B and N"
        )
    with torch.autocast(student_tokens.device.type, enabled=False):
        return F.mse_loss(_attention(full(student_tokens)), _attention(full(teacher_tokens)))


def trg_temperature(
    progress: float,
    start: float = 0.5,
    end: float = 0.07,
    shape: Literal["cosine", "linear", "constant"] = "cosine",
) -> float:
    """Temperature of trg_global at `progress` (fraction of training) from start to end; "constant" is start.

    UserError for an unknown shape. Source: TRG (arXiv 2306.12442), whose end points and shape are not known.
    """
    done = min(max(progress, 0.0), 1.0)
    shares = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    if shape not in shares:
        raise UserError(f"temperature shape {shape!r} is unknown; there are {', '.join(shares)}")
    return end + (start - end) * shares[shape]


def _attention(tokens: Tensor) -> Tensor:
    return (tokens @ tokens.mT / tokens.shape[2] ** 0.5).softmax(2)


def _affinity(tokens: Tensor, edges: Edges, kernel: Kernel, sigma: float) -> Tensor:
    """Kernel values (E,) of tokens (P,D) along edges; differences, because inner products lose near ones."""
    if kernel == "cosine":
        tokens = F.normalize(tokens, dim=1)

    def values(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        a, b = x.index_select(0, source), x.index_select(0, target)
        return (a * b).sum(1) if kernel == "cosine" else ((a - b).square().sum(1) / (-2 * sigma)).exp()

    size = max(1, _LIMIT // tokens.shape[1])
    if len(edges[0]) <= size:
        return values(tokens, *edges)
    chunks = zip(*(side.split(size) for side in edges), strict=True)
    # Recomputed in backward: kept, the gathered tokens of all chunks would be E x D after all.
    return torch.cat([checkpoint(values, tokens, *chunk, use_reentrant=False) for chunk in chunks])


def _graph(tokens: Tensor, edges: Edges, sigma: float) -> Tensor:
    source, target = edges
    empty = tokens.new_zeros(len(tokens), len(tokens))
    return empty.index_put((target, source), _affinity(tokens, edges, "rbf", sigma))


def _log_softmax_by_target(values: Tensor, target: Tensor, count: int) -> Tensor:
    # Kernel values lie in [-1, 1]: no maximum has to be taken off first.
    total = values.new_zeros(count).index_add(0, target, values.exp())
    return values - total.log().index_select(0, target)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # The q - p in each term sums to zero, but it cancels the rounding error that a small KL drowns in.
    difference = log_q - log_p
    return log_p.exp() * (difference.expm1() - difference)


def _pair(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise UserError(
            f"{name}: student tokens {tuple(student.shape)}, teacher tokens {tuple(teacher.shape)}; expected "
            "as many of both: sample the same places, pool the larger grid to the smaller"
        )
    return _nodes(student), _nodes(teacher)


def _nodes(tokens: Tensor) -> Tensor:
    return full(tokens).flatten(0, -2)
