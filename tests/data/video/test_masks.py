from __future__ import annotations

import numpy as np
import pytest

from vlkd.data.video.masks import decode_mask, encode_mask
from vlkd.errors import UserError

MASK = np.random.default_rng(0).random((4, 6)) < 0.4


def test_three_forms_of_a_mask():
    stored = encode_mask(MASK)
    assert stored["size"] == [4, 6] and isinstance(stored["counts"], str)
    assert np.array_equal(decode_mask(stored, (4, 6)), MASK)
    flat = MASK.flatten(order="F")  # run lengths go down the columns, the first is of zeros
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    assert np.array_equal(decode_mask({"size": [4, 6], "counts": runs}, (4, 6)), MASK)
    square = decode_mask([[1, 1, 4, 1, 4, 3, 1, 3]], (4, 6))
    assert square.dtype == bool and square.sum() == 6 and square[1:3, 1:4].all()
    two = decode_mask([[1, 1, 4, 1, 4, 3, 1, 3], [5, 0, 6, 0, 6, 1, 5, 1]], (4, 6))
    assert two.sum() == 7 and two[0, 5]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"size": [6, 4], "counts": encode_mask(MASK)["counts"]},
            "an RLE of 4x6 pixels, but its video has 6x4",
        ),
        ({"size": [4, 6], "counts": [3, 99]}, "neither an RLE nor"),
        ({"size": [4, 6], "counts": "nonsense"}, "neither an RLE nor"),
        ({"size": [4, 6]}, "neither an RLE nor"),
        ([[1, 2]], "neither an RLE nor"),
        (["x"], "neither an RLE nor"),
        (5, "neither an RLE nor"),
    ],
)
def test_damaged_masks_are_one_line(stored, message):
    with pytest.raises(UserError, match=message) as caught:
        decode_mask(stored, (4, 6))
    assert "\n" not in str(caught.value)
