"""Leakage audit: whether text alone tells what a noun hides, measured on the text itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vlkd.data.lexicon.words import ATTRIBUTES, Lexicon
from vlkd.metrics.probes import linear_probe


def audit(lexicon: Lexicon, blocks: Sequence[str]) -> list[str]:
    """Lines on what the blocks of a corpus (sentences, " . " between those of one block) tell of the nouns.

    First how many sentences name a noun and an attribute; then, for each attribute, how often it is guessed
    right for a noun: by the value that occurs most beyond chance in the noun's blocks (naive Bayes), by a
    linear probe on all words of the noun's blocks, and by one on the noun's letters. Chance is 0.25; the
    linear probes are scored on nouns that they were not fitted on.
    """
    nouns = {name: k for k, name in enumerate(lexicon.names)}
    hidden = {word for words in ATTRIBUTES.values() for word in words}
    sentences = [sentence.split() for block in blocks for sentence in block.split(" . ")]
    both = sum(bool(nouns.keys() & set(words)) and bool(hidden & set(words)) for words in sentences)
    named = Counter(word for words in sentences for word in words if word in nouns)
    lines = [
        f"{len(sentences)} sentences in {len(blocks)} blocks: {both} name a noun and an attribute",
        f"{len(named)} of {len(nouns)} nouns occur, {min(named.values(), default=0)} to "
        f"{max(named.values(), default=0)} times",
    ]
    counts, letters = _neighbours(lexicon, blocks), _letters(lexicon.names)
    vocabulary = lexicon.vocabulary()
    train = len(lexicon) * 2 // 3
    for k, (attribute, words) in enumerate(ATTRIBUTES.items()):
        labels = torch.from_numpy(lexicon.labels[:, k])
        table = counts[:, [vocabulary.index(word) for word in words]]
        bayes = float((_beyond_chance(table).argmax(1) == labels).double().mean())
        text = linear_probe(counts.log1p(), labels, train)
        spelling = linear_probe(letters, labels, train)
        lines.append(
            f"{attribute}: naive Bayes {bayes:.3f}, linear probe of the words around {text:.3f}, of the "
            f"spelling {spelling:.3f} (chance {1 / len(words):.2f})"
        )
    return lines


def _neighbours(lexicon: Lexicon, blocks: Sequence[str]) -> Tensor:
    """How often each word stands in the blocks of each noun (N,V)."""
    vocabulary = {word: k for k, word in enumerate(lexicon.vocabulary())}
    nouns = {name: k for k, name in enumerate(lexicon.names)}
    counts = np.zeros((len(nouns), len(vocabulary)))
    for block in blocks:
        words = block.split()
        places = [vocabulary[word] for word in words]
        for word in words:
            if word in nouns:
                np.add.at(counts[nouns[word]], places, 1)
                counts[nouns[word], vocabulary[word]] -= 1
    return torch.from_numpy(counts)


def _beyond_chance(table: Tensor) -> Tensor:
    """Counts (N,K) against those of independent rows and columns, as log ratios with one added to each."""
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum().clamp(min=1)
    return ((table + 1) / (expected + 1)).log()


def _letters(names: Sequence[str]) -> Tensor:
    """Which letters and pairs of letters each name has (N,V)."""
    found = [{*name, *("".join(pair) for pair in pairwise(name))} for name in names]
    known = sorted(set().union(*found))
    return torch.tensor([[float(part in parts) for part in known] for parts in found])
