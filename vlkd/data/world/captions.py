"""Captions of a scene: what is seen, in everyday words and their WordNet synonyms."""

from __future__ import annotations

import numpy as np

from vlkd.data.world.names import world_synonyms

_OPENINGS = ("", "a photo of ", "a picture of ", "this is ", "there is ", "a view of ")
_LINKS = (" with ", " in front of ", " and ", " near ", " by ")


def word(rng: np.random.Generator, name: str) -> str:
    """The name itself half of the time, else one of its synonyms."""
    others = world_synonyms(name)
    return name if rng.random() < 0.5 else others[int(rng.integers(len(others)))]


def phrase(rng: np.random.Generator, name: str, colour: str = "") -> str:
    """A noun phrase such as "a red automobile"."""
    noun = word(rng, name)
    if colour and rng.random() < 0.5:
        noun = f"{colour} {noun}"
    if noun.endswith(("glasses", "spectacles")) or rng.random() < 0.2:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(rng: np.random.Generator, things: list[tuple[str, str]], stuff: list[str]) -> str:
    """One sentence that names every (name, colour) thing and, mostly, the backgrounds."""
    parts = [phrase(rng, name, colour) for name, colour in things]
    behind = [word(rng, name) for name in stuff if not things or rng.random() < 0.8]
    rng.shuffle(parts)
    rng.shuffle(behind)
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    link = _LINKS[int(rng.integers(len(_LINKS)))] if parts and behind else ""
    return opening + ", ".join(parts) + link + " and ".join(behind)
