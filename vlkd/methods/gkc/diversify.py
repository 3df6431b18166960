"""Text diversification: which words may stand for a class, for a region, and in an image's class list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlkd.text import ClassVectors
from vlkd.text.nouns import caption_nouns

Diversification = Literal["none", "thresRand", "clusterMax", "clusterAvg"]


@dataclass
class ClassList:
    """One class list per image of a batch: rows (B,K') of word indices, present (B,K') bool.

    Per image also the slots (M,) and word indices (M,) of its segments.
    """

    rows: Tensor
    present: Tensor
    slots: list[Tensor]
    words: list[Tensor]


class WordTable:
    """All names and synonyms of a vocabulary with their vectors: the text encoder runs once for all of them.

    words (S,), vectors (S,D), category (S,) class of each word; words 0..K-1 are the class names themselves.
    """

    def __init__(self, words: Sequence[str], category: Tensor, vectors: Tensor, classes: int) -> None:
        self.words, self.category, self.vectors, self.classes = list(words), category, vectors, classes

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        synonyms: Callable[[str], Sequence[str]],
        encode: Callable[[Sequence[str]], ClassVectors],
    ) -> WordTable:
        """Encode every name and synonym; a synonym shared by two classes or equal to a name is left out."""
        owners: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            for word in synonyms(name):
                owners.setdefault(word, []).append(k)
        taken = {name.lower() for name in names}
        extra = [
            (word, ks[0]) for word, ks in owners.items() if len(set(ks)) == 1 and word.lower() not in taken
        ]
        words = [*names, *(word for word, _ in extra)]
        category = torch.tensor([*range(len(names)), *(k for _, k in extra)])
        return cls(words, category, encode(words).vectors, len(names))

    def to(self, device: torch.device) -> WordTable:
        """The same table on another device."""
        self.category, self.vectors = self.category.to(device), self.vectors.to(device)
        return self

    def probabilities(self, regions: Tensor, labels: Tensor, scale: float = 100.0) -> Tensor:
        """Softmax of scaled cosines over the words of the own class: regions (N,D), labels (N,) -> (N,S)."""
        logits = scale * regions @ self.vectors.T
        return logits.masked_fill(self.category[None] != labels[:, None], float("-inf")).softmax(-1)

    def sample(self, regions: Tensor, labels: Tensor, threshold: float = 0.1) -> Tensor:
        """A word (N,) for each region, uniform among those of its class that pass the threshold.

        The class name itself where none passes.
        """
        allowed = self.probabilities(regions, labels) > threshold
        allowed[torch.arange(len(labels)), labels] |= ~allowed.any(1)
        return torch.multinomial(allowed.float(), 1)[:, 0] if len(labels) else labels

    def class_lists(self, labels: Sequence[Tensor], words: Sequence[Tensor], base: Tensor) -> ClassList:
        """Class list of each image: the base class names (base (K,) bool) with the sampled words among them.

        The first word of a class replaces its name; further words of the class are appended, each once. Lists
        shorter than the longest are padded with absent rows, which no softmax sees.
        """
        lists, slots = [], []
        for image_labels, image_words in zip(labels, words, strict=True):
            entries, where = _one_list(image_labels.tolist(), image_words.tolist(), self.classes)
            lists.append(entries)
            slots.append(torch.tensor(where, dtype=torch.long, device=base.device))
        width = max(map(len, lists))
        rows = torch.tensor([entries + [0] * (width - len(entries)) for entries in lists], device=base.device)
        present = torch.zeros(rows.shape, dtype=torch.bool, device=base.device)
        present[:, : self.classes] = base
        for k, entries in enumerate(lists):
            present[k, self.classes : len(entries)] = True
        return ClassList(rows, present, slots, list(words))

    def reduce(self, logits: Tensor, how: Literal["clusterMax", "clusterAvg"]) -> Tensor:
        """Logits of words and no-object (B,Q,S+1) -> of classes and no-object (B,Q,K+1), by max or mean."""
        index = self.category.expand(*logits.shape[:-1], -1)
        empty = logits.new_zeros(*logits.shape[:-1], self.classes)
        reduced = empty.scatter_reduce(
            -1, index, logits[..., :-1], "amax" if how == "clusterMax" else "mean", include_self=False
        )
        return torch.cat([reduced, logits[..., -1:]], dim=-1)


def noun_vectors(
    vectors: Tensor, lexicon: Mapping[str, int], captions: Sequence[str], limit: int
) -> tuple[Tensor, Tensor]:
    """Vectors of up to `limit` nouns per caption, a quarter dropped: (B,W,D) and mask (B,W).

    `lexicon` has the row in `vectors` (S,D) of each word that counts as a noun.
    """
    vocabulary = tuple(lexicon)
    chosen = [[lexicon[w] for w in caption_nouns(text, vocabulary)] for text in captions]
    keep = torch.rand(len(chosen), max(map(len, chosen), default=0) + 1) >= 0.25
    picked = [[k for n, k in enumerate(row) if keep[b, n]][:limit] for b, row in enumerate(chosen)]
    width = max([len(row) for row in picked] + [1])
    index = torch.tensor([row + [0] * (width - len(row)) for row in picked], device=vectors.device)
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in picked])[:, None]
    return vectors[index], mask.to(vectors.device)


def _one_list(labels: list[int], words: list[int], classes: int) -> tuple[list[int], list[int]]:
    entries = list(range(classes))
    taken: dict[int, int] = {}
    slots = []
    for label, word in zip(labels, words, strict=True):
        if word not in taken:
            if entries[label] == label and label not in taken.values():
                entries[label], taken[word] = word, label
            else:
                taken[word] = len(entries)
                entries.append(word)
        slots.append(taken[word])
    return entries, slots
