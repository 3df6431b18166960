import pytest
import torch
import torch.nn.functional as F

from vlkd.errors import UserError
from vlkd.models.postprocess import (
    binary_masks,
    class_probabilities,
    label_probabilities,
    panoptic_segments,
    semantic_labels,
    semantic_map,
)


def blobs(queries: int, classes: int, height: int, width: int, seed: int = 0):
    """Regions with soft borders that tile the plane, plus as many weak queries that lean to no-object."""
    g = torch.Generator().manual_seed(seed)
    real = queries // 2
    field = F.interpolate(torch.randn(1, real, 5, 7, generator=g), (height, width), mode="bicubic")[0]
    best = field.topk(2, 0).values
    masks = (field - torch.where(field == best[0], best[1], best[0])) * 15
    junk = F.interpolate(torch.randn(1, queries - real, 5, 7, generator=g), (height, width), mode="bicubic")[
        0
    ]
    logits = torch.randn(queries, classes + 1, generator=g)
    logits[torch.arange(real), torch.randint(classes, (real,), generator=g)] += 8
    logits[torch.arange(real), torch.randint(classes, (real,), generator=g)] += 6
    logits[real:, -1] += 8
    return logits, torch.cat([masks, junk * 4 - 2])


def reference(class_logits, mask_logits, size):
    masks = F.interpolate(mask_logits[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    return torch.einsum("qk,qhw->khw", class_logits.softmax(-1)[:, :-1], masks)


@pytest.mark.parametrize("size", [(160, 192), (131, 77), (20, 24), (1, 1)])
def test_exact_when_nothing_is_left_out(size):
    class_logits, mask_logits = blobs(12, 9, 40, 48)
    maps = reference(class_logits, mask_logits, size)
    labels = semantic_labels(class_logits, mask_logits, size, topk=9, live=0.0, rival=0.0, tile=32)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, maps.argmax(0))
    assert torch.equal(semantic_labels(class_logits, mask_logits, size, form="full"), maps.argmax(0))


@pytest.mark.parametrize("classes", [2, 150, 847])
def test_strips_agree_with_full_on_blobs(classes):
    class_logits, mask_logits = blobs(60, classes, 64, 80)
    full = semantic_labels(class_logits, mask_logits, (256, 320), form="full")
    strips = semantic_labels(class_logits, mask_logits, (256, 320))
    assert (full == strips).float().mean() > 0.998
    assert len(full.unique()) >= min(classes, 8)


def test_half_precision_and_tile_size_do_not_matter():
    class_logits, mask_logits = blobs(20, 30, 32, 32)
    labels = semantic_labels(class_logits, mask_logits, (128, 128))
    other = semantic_labels(class_logits, mask_logits, (128, 128), tile=50)
    assert (labels == other).float().mean() > 0.998
    half = semantic_labels(class_logits.bfloat16(), mask_logits.bfloat16(), (128, 128))
    assert (labels == half).float().mean() > 0.97


def test_scores_and_probabilities():
    class_logits, mask_logits = blobs(20, 30, 32, 40)
    maps = reference(class_logits, mask_logits, (100, 120))
    expected = maps / maps.sum(0).clamp(min=1)
    full = semantic_map(class_logits, mask_logits, (100, 120), "full", scores=True, probabilities=True)
    exact = semantic_map(class_logits, mask_logits, (100, 120), scores=True, probabilities=True)
    quick = semantic_map(class_logits, mask_logits, (100, 120), scores=True)
    for result in (full, exact):
        torch.testing.assert_close(result.probabilities, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.scores, expected.amax(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(exact.labels, maps.argmax(0))
    assert quick.probabilities is None
    assert (quick.scores - expected.amax(0)).abs().mean() < 0.02
    assert exact.probabilities.sum(0).max() <= 1 + 1e-5


def test_strips_never_hold_a_map_per_class():
    class_logits, mask_logits = blobs(20, 400, 64, 64)
    largest = []
    original = torch.Tensor.__matmul__
    torch.Tensor.__matmul__ = lambda a, b: largest.append(r := original(a, b)) or r
    try:
        semantic_labels(class_logits, mask_logits, (256, 256))
    finally:
        torch.Tensor.__matmul__ = original
    assert max(r.numel() for r in largest) < 256 * 256 * 400 / 100


def test_panoptic_matches_the_rule_by_hand():
    mask_logits = torch.full((5, 8, 8), -9.0)
    mask_logits[0, :, :4] = 9  # thing, left half
    mask_logits[1, :4, 4:] = 9  # stuff, upper right
    mask_logits[2, 4:, 4:] = 9  # same stuff, lower right
    mask_logits[3, :, :4] = 5  # weaker duplicate of 0: overlap rule drops it
    mask_logits[4] = 9  # no-object
    class_logits = torch.zeros(5, 3)
    class_logits[0, 0] = class_logits[1, 1] = class_logits[2, 1] = class_logits[4, 2] = 9
    class_logits[3, 0] = 3
    segments, info = panoptic_segments(class_logits, mask_logits, (8, 8), [True, False], tile=4)
    assert segments.dtype == torch.int32
    assert [(s.category, s.isthing, s.area) for s in info] == [(0, True, 32), (1, False, 32)]
    assert (segments[:, :4] == info[0].id).all() and (segments[:, 4:] == info[1].id).all()
    assert all(0.9 < s.score <= 1 for s in info)


def test_a_segment_knows_its_row():
    mask_logits = torch.full((5, 8, 8), -9.0)
    mask_logits[0] = 9  # no-object
    mask_logits[2, :4] = mask_logits[4, 4:, :4] = mask_logits[3, 4:, 4:] = 9
    class_logits = 9 * torch.eye(3)[[2, 2, 1, 0, 1]]
    _, info = panoptic_segments(class_logits, mask_logits, (8, 8), [True, False])
    assert {s.query: (s.category, s.area) for s in info} == {2: (1, 48), 3: (0, 16)}


def test_labels_of_probabilities_at_mask_resolution():
    generator = torch.Generator().manual_seed(0)
    maps = (4 * torch.randn(9, 12, 16, generator=generator)).softmax(0)
    large = F.interpolate(maps[None], (45, 70), mode="bilinear", align_corners=False)[0]
    for form, agree in (("full", 1.0), ("strips", 0.999)):
        found = label_probabilities(maps, (45, 70), form, scores=True, tile=16)
        assert (found.labels == large.argmax(0)).float().mean() >= agree
        assert torch.allclose(found.scores, large.gather(0, found.labels[None])[0], atol=1e-5)


def test_class_probabilities_are_those_of_the_full_form():
    class_logits, mask_logits = blobs(12, 9, 40, 48)
    size = (mask_logits.shape[1], mask_logits.shape[2])
    exact = semantic_map(class_logits, mask_logits, size, "full", probabilities=True).probabilities
    assert torch.allclose(class_probabilities(class_logits, mask_logits), exact, atol=1e-5)


def test_binary_masks_are_turned_round():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(logits[None], (20, 30), mode="bilinear", align_corners=False)[0].sigmoid() > 0.5
    assert torch.equal(binary_masks(logits, (20, 30)).transpose(1, 2), masks)


def test_panoptic_of_unsure_queries_is_void():
    segments, info = panoptic_segments(torch.zeros(3, 4), torch.zeros(3, 4, 4), (9, 7), [True] * 3)
    assert segments.shape == (9, 7) and not segments.any() and info == []


@pytest.mark.parametrize(
    ("class_shape", "mask_shape", "size", "form", "says"),
    [
        ((4, 3), (4, 5, 5), (9, 9), "strip", "form 'strip'"),
        ((4, 3), (5, 5, 5), (9, 9), "strips", "do not fit"),
        ((1, 4, 3), (4, 5, 5), (9, 9), "full", "do not fit"),
        ((4, 1), (4, 5, 5), (9, 9), "strips", "at least one class"),
        ((4, 3), (4, 5, 5), (0, 9), "strips", "one pixel"),
    ],
)
def test_wrong_input_is_one_line(class_shape, mask_shape, size, form, says):
    with pytest.raises(UserError, match=says) as error:
        semantic_labels(torch.zeros(class_shape), torch.zeros(mask_shape), size, form)
    assert "\n" not in str(error.value)


def test_panoptic_refuses_isthing_of_another_length():
    with pytest.raises(UserError, match="2 entries for 3 classes"):
        panoptic_segments(torch.zeros(3, 4), torch.zeros(3, 4, 4), (9, 7), [True, False])
