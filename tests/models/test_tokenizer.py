"""The short tokenizer: a prefix of CLIP's merges, complete for every string."""

from __future__ import annotations

import open_clip
import pytest

from vlkd.data.world import NAMES
from vlkd.models.tokenizer import build_tokenizer


@pytest.mark.parametrize("size", [600, 4610])
def test_short_vocabulary(size: int) -> None:
    tokenizer = build_tokenizer("any", {"vocab_size": size, "context_length": 40})
    ids = tokenizer([*NAMES, "über-ärgerlich?! 日本 🚗", ""])
    assert ids.shape == (len(NAMES) + 2, 40) and int(ids.max()) == size - 1  # the last id marks the end
    assert (ids[:, 0] == size - 2).all() and (ids.argmax(1) == (ids != 0).sum(1) - 1).all()
    assert len({tuple(row.tolist()) for row in ids}) == len(ids)  # no two strings are the same


def test_nothing_is_lost() -> None:
    tokenizer = build_tokenizer("any", {"vocab_size": 700, "context_length": 60})
    row = tokenizer(["A palm tree, über alles"])[0].tolist()
    inside = row[1 : row.index(699)]
    assert tokenizer.decode(inside).split() == ["a", "palm", "tree", ",", "über", "alles"]  # type: ignore[attr-defined]


def test_longer_vocabulary_makes_shorter_sequences() -> None:
    short, long = (build_tokenizer("any", {"vocab_size": v, "context_length": 77}) for v in (600, 4610))
    text = ["a photo of a helicopter above the mountain"]
    assert (short(text) != 0).sum() > (long(text) != 0).sum()


def test_too_long_texts_keep_their_end_mark() -> None:
    tokenizer = build_tokenizer("any", {"vocab_size": 600, "context_length": 8})
    ids = tokenizer(["a very long caption that does not fit"])
    assert ids.shape == (1, 8) and ids[0, -1] == 599


def test_full_vocabulary_is_that_of_open_clip() -> None:
    own = build_tokenizer("RN50", {"vocab_size": 49408, "context_length": 77})
    assert own(["a car"]).equal(open_clip.get_tokenizer("RN50")(["a car"]))
