"""Augmentation of single images, and the central square."""

from __future__ import annotations

import numpy as np
import pytest

from vlkd.data.images.files import FileAugment, centre, collate


def ramp(height: int, width: int) -> np.ndarray:
    """Rows in red, columns in green."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(height)[:, None], np.arange(width)
    return image


def test_random_crop_keeps_the_size_and_shows_the_border() -> None:
    image, augment = ramp(8, 8) + 1, FileAugment(8, None, 0.0, crop=2)
    seen = set()
    for seed in range(60):
        done = augment(image, np.random.default_rng(seed))
        assert done.shape == (8, 8, 3)
        inside = done[2:-2, 2:-2, :2].astype(int)
        offset = inside[0, 0] - (3, 3)
        assert np.array_equal(inside, ramp(4, 4)[..., :2] + 3 + offset)
        seen.add(tuple(offset))
    assert {o for pair in seen for o in pair} == {-2, -1, 0, 1, 2}


def test_random_part_has_the_area_and_lies_within() -> None:
    image, augment = ramp(90, 120), FileAugment(32, (0.25, 0.5), 0.0)
    for seed in range(50):
        done = augment(image, np.random.default_rng(seed)).astype(float)
        assert done.shape == (32, 32, 3)
        tall, wide = np.ptp(done[..., 0]) * 32 / 31, np.ptp(done[..., 1]) * 32 / 31
        assert 0.2 < tall * wide / (90 * 120) < 0.55 and 0.65 < wide / tall < 1.5
    flipped = FileAugment(32, (0.25, 0.5), 1.0)(image, np.random.default_rng(3))
    assert np.array_equal(flipped[:, ::-1], augment(image, np.random.default_rng(3)))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_central_square(shape: tuple[int, int]) -> None:
    done = centre(ramp(*shape), 20, 0.5).astype(float)
    assert done.shape == (20, 20, 3)
    rows, columns = done[..., 0].mean(), done[..., 1].mean()
    assert abs(rows - (shape[0] - 1) / 2) < 0.6 and abs(columns - (shape[1] - 1) / 2) < 0.6
    assert np.ptp(done[..., 0]) == pytest.approx(19, abs=1) and np.ptp(done[..., 1]) == pytest.approx(
        19, abs=1
    )
    square = ramp(20, 20)
    assert centre(square, 20, 0.875) is square


def test_batches_are_in_the_unit_range() -> None:
    from vlkd.data.images.files import as_tensor

    batch = collate([(as_tensor(np.full((2, 3, 3), v, np.uint8)), k, 7 + k) for k, v in enumerate((0, 255))])
    assert batch["images"].shape == (2, 3, 2, 3) and batch["images"].amax((1, 2, 3)).tolist() == [0, 1]
    assert batch["labels"].tolist() == [0, 1] and batch["indices"].tolist() == [7, 8]
