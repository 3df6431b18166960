"""Nouns of captions."""

from __future__ import annotations

import pytest

from vlkd.text.nouns import caption_nouns

WORDS = ("car", "palm", "palm tree", "bus", "glasses", "all-day sucker", "child's toy", "blue sky", "sky")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Car, near a palm.", ["car", "palm"]),
        ("two palm trees and a palm", ["palm tree", "palm"]),  # the longest word wins, plural understood
        ("a car with a car and cars", ["car"]),
        ("scar, busy, carpet, palms", ["palm"]),  # whole words only
        ("a bus by glasses", ["bus", "glasses"]),  # their own s stays
        ("an all-day sucker and a child's toy", ["all-day sucker", "child's toy"]),
        ("wide blue sky; sky", ["blue sky", "sky"]),
        ("", []),
        ("nothing known", []),
    ],
)
def test_words_of_a_caption(caption: str, expected: list[str]) -> None:
    assert caption_nouns(caption, WORDS) == expected


def test_any_iterable_is_a_vocabulary() -> None:
    assert caption_nouns("a car", (w for w in ("car",))) == caption_nouns("a car", ["car"]) == ["car"]
    assert caption_nouns("a car", []) == []
