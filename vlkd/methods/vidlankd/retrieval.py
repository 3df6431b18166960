"""Texts against videos: which video a sentence, or a single token, is most like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_ELEMENTS = 2**24  # of cosines that exist at once


@dataclass
class Pairs:
    """N texts and their videos: unit tokens (N,L,D), mask (N,L), unit videos (N,T,D), frames (N,T)."""

    text: Tensor
    mask: Tensor
    video: Tensor
    frames: Tensor

    @classmethod
    def joined(cls, parts: list[Pairs]) -> Pairs:
        """All of them; shorter texts and videos are filled up."""
        return cls(
            *(_joined([getattr(x, key) for x in parts]) for key in ("text", "mask", "video", "frames"))
        )


def retrieval_scores(pairs: Pairs) -> dict[str, float]:
    """R@1, R@5 and median rank (from 1) of texts to videos and back, and R@1 of single tokens.

    A text and a video are as alike as the text's tokens and the video on average. What scores as high as the
    own one ranks before it. Source: VidLanKD (arXiv 2107.02681); issue 5.
    """
    blocks = list(_blocks(pairs))
    scores, hits = torch.cat([x for x, _ in blocks]), sum(int(x) for _, x in blocks)
    found = {"token_to_video_R@1": hits / max(1, int(pairs.mask.sum()))}
    for name, table in (("text_to_video", scores), ("video_to_text", scores.T)):
        ranks = _ranks(table, torch.arange(len(table), device=table.device))
        found |= {f"{name}_R@{k}": float((ranks <= k).double().mean()) for k in (1, 5)}
        found[f"{name}_median_rank"] = float(ranks.double().quantile(0.5))
    return found


def best_cosines(tokens: Tensor, video: Tensor, frames: Tensor) -> Tensor:
    """Unit tokens (N,D) with unit videos (M,T,D), valid frames (M,T): the most like frame's cosine (N,M)."""
    cosines = (tokens @ video.flatten(0, 1).T).unflatten(1, frames.shape)
    return cosines.masked_fill(~frames, float("-inf")).amax(2)


def _blocks(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    """For some texts at a time: scores (n,N), and how many of their tokens rank their own video first."""
    count, length = pairs.mask.shape
    size = max(1, _ELEMENTS // (length * pairs.frames.numel()))
    for first in range(0, count, size):
        text, mask = pairs.text[first : first + size], pairs.mask[first : first + size]
        best = best_cosines(text.flatten(0, 1), pairs.video, pairs.frames).unflatten(0, text.shape[:2])
        own = torch.arange(first, first + len(text), device=best.device)
        ranks = _ranks(best.flatten(0, 1), own.repeat_interleave(length))
        weight = mask.to(best.dtype)
        mean = torch.einsum("nlv,nl->nv", best, weight) / weight.sum(1, keepdim=True).clamp(min=1)
        yield mean, ((ranks == 1) & mask.flatten()).sum()


def _ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Rank (N,) of column own (N,) in its row of scores (N,M), from 1; ties count against it."""
    # Not "scores >= own": one that is no number would rank behind.
    return (~(scores < scores.gather(1, own[:, None]))).sum(1)


def _joined(parts: list[Tensor]) -> Tensor:
    longest = max(x.shape[1] for x in parts)
    return torch.cat([F.pad(x, (0, 0) * (x.ndim - 2) + (0, longest - x.shape[1])) for x in parts])
