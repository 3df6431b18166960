"""The probes put to a language model: which states are asked, and what they should know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd.data.lexicon.words import ATTRIBUTE, ATTRIBUTES, NOUN, SENTENCES, Lexicon
from vlkd.metrics.probes import linear_probe, token_ranks, zero_shot_probe

_CHUNK = 256  # sentences encoded at once
_CONTEXTS = 16  # combinations of the other two attributes that an attribute word is read with


def probe_scores(
    lexicon: Lexicon, tokenizer: Any, encode: Callable[[Tensor, Tensor], Tensor], train: int
) -> dict[str, float]:
    """{"P1_colour", ..., "P1", "P2_colour", ..., "P2"}: accuracies, their mean over the attributes last.

    A noun's state is the mean over the wordings that name it, an attribute's over wordings and over the
    values of the other two attributes. P1 fits `train` nouns and scores the others (metrics.linear_probe);
    P2 takes the value whose state has the highest cosine with the noun's (metrics.zero_shot_probe).
    """
    names = list(lexicon.names)
    nouns = word_states(
        tokenizer, encode, [(form.format(noun=name), name) for name in names for form in SENTENCES[NOUN]]
    )
    nouns = nouns.unflatten(0, (len(names), -1)).mean(1)
    found: dict[str, float] = {}
    for k, (attribute, words) in enumerate(ATTRIBUTES.items()):
        labels = torch.from_numpy(lexicon.labels[:, k])
        asked = [(text, word) for word in words for text in _attribute_texts(attribute, word)]
        states = word_states(tokenizer, encode, asked).unflatten(0, (len(words), -1)).mean(1)
        found[f"P1_{attribute}"] = linear_probe(nouns, labels, train)
        found[f"P2_{attribute}"] = zero_shot_probe(nouns, states, labels)
    means = {p: float(np.mean([found[f"{p}_{name}"] for name in ATTRIBUTES])) for p in ("P1", "P2")}
    return found | means


def word_states(
    tokenizer: Any, encode: Callable[[Tensor, Tensor], Tensor], asked: list[tuple[str, str]]
) -> Tensor:
    """State (N,D) on the CPU of a word in its text, for N pairs (text, word)."""
    parts = []
    for start in range(0, len(asked), _CHUNK):
        texts, words = zip(*asked[start : start + _CHUNK], strict=True)
        found = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
        own = torch.tensor(tokenizer.convert_tokens_to_ids(list(words)))
        place = (found["input_ids"] == own[:, None]).long().argmax(1)
        states = encode(found["input_ids"], found["attention_mask"]).cpu()
        parts.append(states[torch.arange(len(place)), place])
    return torch.cat(parts)


def clip_scores(
    lexicon: Lexicon, tokenizer: Any, likeness: Callable[[Tensor, Tensor], Tensor], labels: NDArray[np.int64]
) -> dict[str, float]:
    """{"P5_noun_R@1", "P5_noun_median_rank", "P5_attribute_R@1", ...}: tokens against clips of labels (M,3).

    Each noun is read in each wording that names it, each attribute word in 16 sentences; every such token
    searches for itself. `likeness(ids (B,L), mask (B,L))` gives (B,L,M), how much a token is like a clip. The
    rank is that of the best right clip, from 1; a noun without a clip is not asked.
    """
    attributes = [(name, word) for name, words in ATTRIBUTES.items() for word in words]
    asked = {
        "noun": [(form.format(noun=name), name) for name in lexicon.names for form in SENTENCES[NOUN]],
        "attribute": [(text, word) for name, word in attributes for text in _attribute_texts(name, word)],
    }
    found: dict[str, float] = {}
    for kind, pairs in asked.items():
        own = torch.from_numpy(np.stack([shows(lexicon, word, labels) for _, word in pairs]))
        there = own.any(1)
        tables = word_states(tokenizer, likeness, pairs)[there]
        # Rows of the table as vectors and clips as axes: the order by cosine is the order of the table.
        ranks = 1 + token_ranks(tables, torch.eye(len(labels)), own[there])
        found[f"P5_{kind}_R@1"] = float((ranks == 1).double().mean())
        found[f"P5_{kind}_median_rank"] = float(ranks.double().quantile(0.5))
    return found


def chance(lexicon: Lexicon, labels: NDArray[np.int64] | None = None) -> dict[str, float]:
    """What states without information score on average, named as the scores; P5 where clips are given."""
    values = len(next(iter(ATTRIBUTES.values())))
    found = {f"{p}{name}": 1 / values for p in ("P1", "P2") for name in (*(f"_{a}" for a in ATTRIBUTES), "")}
    if labels is None:
        return found
    first = next(word for word in lexicon.names if shows(lexicon, word, labels).any())
    for kind, word in (("noun", first), ("attribute", ATTRIBUTES["colour"][0])):
        right, clips = int(shows(lexicon, word, labels).sum()), len(labels)
        missed = np.cumprod([(clips - right - k) / (clips - k) for k in range(clips - right)] + [0.0])
        found[f"P5_{kind}_R@1"] = right / clips
        found[f"P5_{kind}_median_rank"] = 1.0 + int(np.flatnonzero(missed <= 0.5)[0])
    return found


def shows(lexicon: Lexicon, word: str, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which clips, of attributes (M,3), look like what a word names (M,); none where it names nothing.

    For a noun these are the clips of its combination: another noun may have the same.
    """
    if word in lexicon.names:
        return (labels == lexicon.labels[lexicon.names.index(word)]).all(1)
    for k, words in enumerate(ATTRIBUTES.values()):
        if word in words:
            return labels[:, k] == words.index(word)
    return np.zeros(len(labels), bool)


def _attribute_texts(attribute: str, word: str) -> list[str]:
    """Sentences that say the word, with every combination of the other attributes, wordings in turn."""
    others = [name for name in ATTRIBUTES if name != attribute]
    texts = []
    for k in range(_CONTEXTS):
        values = {name: ATTRIBUTES[name][k // 4**j % 4] for j, name in enumerate(others)} | {attribute: word}
        form = SENTENCES[ATTRIBUTE][k % len(SENTENCES[ATTRIBUTE])]
        texts.append(form.format(**values))
    return texts
