from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd.data import Segment, SegmentationSample, TrainTransform, collate
from vlkd.data.transforms import drop_vanished, resize_short_side


def painted(height=60, width=90, count=6, seed=0):
    """Every segment has its own grey value, so that image and map can be compared after any geometry."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, count + 1, (height // 10, width // 10))
    segments = np.kron(coarse, np.ones((10, 10))).astype(np.int32)
    image = np.repeat((segments * 30).astype(np.uint8)[..., None], 3, 2)
    info = [Segment(int(i), int(i) - 1, True) for i in np.unique(segments) if i]
    return SegmentationSample(f"p{seed}", image, segments, info, "a caption")


@pytest.mark.parametrize("seed", range(8))
def test_image_and_segments_stay_aligned(seed):
    rng = np.random.default_rng(seed)
    out = TrainTransform((40, 50), (0.7, 3.0))(painted(seed=seed), rng)
    height, width = out.segments.shape
    assert height <= 40 and width <= 50 and out.image.shape == (height, width, 3)
    assert np.mean(np.abs(out.image[..., 0].astype(int) - out.segments * 30) <= 2) > 0.6
    assert {s.id for s in out.info} == set(np.unique(out.segments).tolist()) - {0}


def test_unscaled_uncropped_transform_is_the_identity_or_its_mirror():
    sample = painted()
    same = TrainTransform((60, 90), (1, 1), flip=0)(sample, np.random.default_rng(0))
    assert np.array_equal(same.image, sample.image) and np.array_equal(same.segments, sample.segments)
    mirror = TrainTransform((60, 90), (1, 1), flip=1)(sample, np.random.default_rng(0))
    assert np.array_equal(mirror.image, sample.image[:, ::-1])
    assert np.array_equal(mirror.segments, sample.segments[:, ::-1])


def test_scale_range_is_kept_and_only_the_generator_decides():
    transform = TrainTransform((32, 32), (0.5, 0.5))
    assert transform(painted(), np.random.default_rng(1)).segments.shape == (16, 24)
    transform = TrainTransform((32, 32), colour_jitter=0.5)
    first, again, other = (transform(painted(), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.segments, again.segments)
    assert not np.array_equal(first.image, other.image)


def test_crop_looks_for_labelled_pixels():
    segments = np.zeros((64, 64), np.int32)
    segments[:48, :48] = 1
    sample = SegmentationSample("s", np.zeros((64, 64, 3), np.uint8), segments, [Segment(1, 0, True)])
    crops = [TrainTransform((16, 16), (4, 4))(sample, np.random.default_rng(i)) for i in range(40)]
    assert sum(len(crop.info) for crop in crops) >= 38  # one draw alone would miss in four of ten


def test_jitter_changes_colours_and_nothing_else():
    sample = painted()
    out = TrainTransform((60, 90), (1, 1), flip=0, colour_jitter=0.4)(sample, np.random.default_rng(3))
    assert np.array_equal(out.segments, sample.segments) and out.image.dtype == np.uint8
    assert not np.array_equal(out.image, sample.image)


def test_resize_short_side():
    out = resize_short_side(painted(), 30)
    assert out.segments.shape == (30, 45) and out.image.shape == (30, 45, 3)
    assert np.array_equal(out.segments, painted().segments[1::2, 1::2])
    sample = painted()
    assert resize_short_side(sample, None) is sample and resize_short_side(sample, 60) is sample


def test_collate_pads_and_names_regions():
    small, large = painted(20, 40, seed=1), painted(30, 30, seed=2)
    large.info.append(Segment(999, 2, True, crowd=True))
    large.segments[0, 0] = 999
    large = drop_vanished(large)
    batch = collate([small, large])
    assert batch["images"].shape == (2, 3, 30, 40) and batch["images"].dtype == torch.float32
    assert batch["images"].min() >= 0 and batch["images"].max() <= 1
    assert batch["sizes"].tolist() == [[20, 40], [30, 30]]
    assert torch.equal(batch["images"][0, 0, :20], torch.from_numpy(small.image[..., 0]) / 255)
    assert batch["images"][0, :, 20:].sum() == 0 and batch["semantic"].dtype == torch.int64
    assert (batch["semantic"][0, 20:] == 255).all() and (batch["semantic"][1, :, 30:] == 255).all()
    assert np.array_equal(batch["semantic"][1, :, :30], large.semantic())
    assert batch["semantic"][1, 0, 0] == 2
    assert batch["ids"] == ["p1", "p2"] and batch["captions"] == ["a caption"] * 2
    for sample, target in zip((small, large), batch["targets"], strict=True):
        singles = [s for s in sample.info if not s.crowd]
        assert target["regions"] == [f"{sample.id}/{s.id}" for s in singles]
        assert target["labels"].tolist() == [s.category for s in singles]
        assert target["masks"].dtype == torch.bool and target["masks"].shape == (len(singles), 30, 40)
        h, w = sample.segments.shape
        for mask, segment in zip(target["masks"], singles, strict=True):
            assert mask.any() and np.array_equal(mask[:h, :w], sample.segments == segment.id)
            assert not mask[h:].any() and not mask[:, w:].any()


def test_collate_of_an_image_without_segments():
    sample = SegmentationSample("e", np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int32))
    target = collate([sample])["targets"][0]
    assert target["masks"].shape == (0, 4, 5) and target["labels"].shape == (0,) and target["regions"] == []
