"""Invented nouns, what each of them hides, and the sentences that name nouns or attributes, never both."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.errors import UserError
from vlkd.text.names import nearest_hint
from vlkd.text.word_ids import build_tokenizer

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "green", "blue", "yellow"),
    "shape": ("round", "square", "pointed", "starry"),
    "motion": ("drifts", "bounces", "spins", "swells"),
}
NOUN, ATTRIBUTE = 0, 1  # families of sentences
SENTENCES = (
    (
        "here is a {noun}",
        "look at the {noun}",
        "there is a {noun} again",
        "this one is a {noun}",
        "the {noun} is here now",
        "now look , a {noun}",
    ),
    (
        "here is a {colour} and {shape} thing , it {motion}",
        "this one is {shape} and {colour} and {motion}",
        "look , it {motion} , a {colour} {shape} thing",
        "there it {motion} again , {shape} and {colour}",
        "a {shape} {colour} thing {motion} here",
        "now it {motion} , the {colour} and {shape} one",
    ),
)
CHOICES = {
    "colour": "the {noun} is {value}",
    "shape": "the {noun} is {value}",
    "motion": "the {noun} {value}",
}
_MOST = 1024
_STREAMS = ("nouns", "attributes", "corpus", "choices")


@dataclass(frozen=True)
class Choice:
    """Two sentences of which one is true: `label` 0 or 1 says which; noun (index) and attribute asked for."""

    sentences: tuple[str, str]
    label: int
    noun: int
    attribute: str


class Lexicon:
    """Invented nouns and their attributes; the same for a seed on every machine.

    names: N nouns. labels (N,3) int64: index of the value of each of ATTRIBUTES. Where N is a multiple of 32
    every value, and every pair of values of two attributes, has equally many nouns, so that no attribute says
    anything about another. Raises UserError for a number of nouns that is not.
    """

    def __init__(self, nouns: int = 96, seed: int = 0) -> None:
        if nouns % 32 or not 0 < nouns <= _MOST:
            raise UserError(f"data.nouns={nouns}: expected a multiple of 32 up to {_MOST}, for balance")
        self.seed = seed
        self.names = tuple(_invent(self.rng("nouns"), nouns))
        self.labels = _balanced(self.rng("attributes"), nouns)

    def __len__(self) -> int:
        return len(self.names)

    def rng(self, stream: str, *numbers: int) -> np.random.Generator:
        """Random stream of one purpose."""
        return np.random.default_rng([self.seed, _STREAMS.index(stream), *numbers])

    def values(self, noun: int) -> dict[str, str]:
        """{attribute: word} of a noun."""
        return {
            name: words[k] for (name, words), k in zip(ATTRIBUTES.items(), self.labels[noun], strict=True)
        }

    def sentence(self, noun: int, family: int, wording: int) -> str:
        """What is said of an object of that noun: its name, or its attributes."""
        known = {"noun": self.names[noun]} if family == NOUN else self.values(noun)
        return SENTENCES[family][wording].format(**known)

    def examples(self) -> list[str]:
        """Five sentences of both families."""
        return [self.sentence(*said) for said in ((0, 0, 1), (1, 0, 4), (0, 1, 0), (1, 1, 1), (2, 1, 3))]

    def corpus(self, sentences: int, part: int = 0) -> list[str]:
        """Text alone: sentences of both families, of objects drawn independently; `part` acts as a seed."""
        rng = self.rng("corpus", part)
        nouns, families = rng.integers(len(self), size=sentences), rng.integers(2, size=sentences)
        wordings = rng.integers(len(SENTENCES[0]), size=sentences)
        return [
            self.sentence(int(n), int(f), int(w)) for n, f, w in zip(nouns, families, wordings, strict=True)
        ]

    def vocabulary(self) -> list[str]:
        """Every word there is: in sentences and choices, attributes and nouns."""
        forms = itertools.chain(*SENTENCES, CHOICES.values())
        plain = {word for form in forms for word in form.split() if not word.startswith("{")}
        return [*sorted(plain | {"."}), *itertools.chain(*ATTRIBUTES.values()), *self.names]

    def tokenizer(self) -> Any:
        """Tokenizer with one token for each word of the vocabulary and the special ones."""
        return build_tokenizer(self.vocabulary(), "words")

    def choices(self, nouns: Iterable[int]) -> list[Choice]:
        """Two-choice questions (P3): each attribute of each noun against each wrong value, places drawn.

        Trained on some nouns and scored on others they ask for what text alone does not tell; chance is 0.5.
        """
        return list(self._choices(nouns))

    def _choices(self, nouns: Iterable[int]) -> Iterator[Choice]:
        for noun in nouns:
            rng = self.rng("choices", noun)
            for (attribute, words), true in zip(ATTRIBUTES.items(), self.labels[noun], strict=True):
                for wrong in [k for k in range(len(words)) if k != true]:
                    label = int(rng.integers(2))
                    order = (wrong, int(true)) if label else (int(true), wrong)
                    form = CHOICES[attribute]
                    first, second = (form.format(noun=self.names[noun], value=words[k]) for k in order)
                    yield Choice((first, second), label, noun, attribute)


def read_sentences(path: str | Path, lexicon: Lexicon) -> list[str]:
    """The lines of a text file. Raises UserError for a word that the lexicon does not have, and for none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read as text ({problem})") from None
    known = lexicon.vocabulary()
    for number, line in enumerate(lines, 1):
        if strange := [word for word in line.split() if word not in known]:
            raise UserError(
                f"{path}:{number}: {strange[0]!r} is no word of this lexicon{nearest_hint(strange[0], known)}"
            )
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: holds no sentence; write one on each line")
    return [line for line in lines if line.strip()]


def _invent(rng: np.random.Generator, count: int) -> list[str]:
    """Words of two syllables, drawn without repetition."""
    parts = ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou", "kmnprstx")
    total = int(np.prod([len(part) for part in parts]))
    picked = rng.choice(total, 4 * count, replace=False)
    places = np.unravel_index(picked, [len(part) for part in parts])
    words = ["".join(part[k] for part, k in zip(parts, at, strict=True)) for at in zip(*places, strict=True)]
    taken = {word for words in ATTRIBUTES.values() for word in words}
    # Different beginnings, so that a reader can tell the nouns apart.
    chosen = {word[:3]: word for word in reversed(words) if word not in taken}
    return list(chosen.values())[:count] if len(chosen) >= count else words[:count]


def _balanced(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Labels (N,3): blocks of 32 of the 64 combinations, even and odd sums in turn, shuffled together."""
    table = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    halves = [table[table.sum(1) % 2 == odd] for odd in (0, 1)]
    labels = np.concatenate([halves[k % 2] for k in range(count // 32)])
    return rng.permutation(labels).astype(np.int64)
