"""Nouns of a caption: the longest words of a known vocabulary that occur in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")


@lru_cache(maxsize=8)
def _lexicon(words: tuple[str, ...]) -> tuple[frozenset[str], int]:
    return frozenset(words), max((word.count(" ") + 1 for word in words), default=0)


def caption_nouns(caption: str, vocabulary: Iterable[str]) -> list[str]:
    """Words of the vocabulary in a caption, in order, each once; longer ones win, plural -s is understood."""
    known, longest = _lexicon(tuple(vocabulary))
    tokens = _WORD.findall(caption.lower())
    found: list[str] = []
    at = 0
    while at < len(tokens):
        for length in range(min(longest, len(tokens) - at), 0, -1):
            phrase = " ".join(tokens[at : at + length])
            word = (
                phrase
                if phrase in known
                else phrase.removesuffix("s")
                if phrase.removesuffix("s") in known
                else None
            )
            if word:
                if word not in found:
                    found.append(word)
                at += length
                break
        else:
            at += 1
    return found
