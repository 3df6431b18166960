"""Which words are hidden: a function of seed, epoch, sequence and place, whatever the batch is."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK, _RANDOM = 0.8, 0.9  # of the hidden words: up to here the mask, up to here a random word, else itself


def uniform(seed: int, epoch: int, indices: Tensor, length: int, draw: int) -> Tensor:
    """Numbers in [0,1) for sequences (B,) at `length` places -> (B,L) float64; `draw` tells several apart.

    Source: splitmix64 (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195) over what it depends on.
    """
    places = torch.arange(length, device=indices.device)
    state = _mixed(torch.full_like(indices.long(), seed))
    for part in (epoch, indices.long()):
        state = _mixed(state ^ part)
    state = _mixed(_mixed(state[:, None] ^ places) ^ draw)
    return _shifted(state, 11).double() / 2.0**53


def hide_words(
    input_ids: Tensor,
    attention_mask: Tensor,
    indices: Tensor,
    ordinary: Tensor,
    mask_id: int,
    seed: int,
    epoch: int,
    rate: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Ids (B,L) with words hidden, and which were (B,L) bool; each word alone with probability `rate`.

    80 % become the mask, 10 % one of the ids in `ordinary` (V,), 10 % stay. Padding and special tokens, those
    that are not in `ordinary`, are never hidden. Source: BERT (arXiv 1810.04805), section 3.1.
    """
    choice, kind, word = (uniform(seed, epoch, indices, input_ids.shape[1], draw) for draw in range(3))
    hidden = (choice < rate) & attention_mask.bool() & torch.isin(input_ids, ordinary)
    random = ordinary[(word * len(ordinary)).long()]
    replaced = torch.where(kind < _MASK, mask_id, torch.where(kind < _RANDOM, random, input_ids))
    return torch.where(hidden, replaced, input_ids), hidden


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's step of int64 numbers, which wrap around."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
