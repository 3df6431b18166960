from itertools import permutations

import pytest
import torch

from vlkd.errors import UserError
from vlkd.losses.mask import dice, mask_bce, random_points, sample_points
from vlkd.losses.matching import mask_cost, match, match_batch, match_clip


def _case(queries=5, segments=3, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=g)
    mask_logits = 3 * torch.randn(queries, 8, 8, generator=g)
    labels = torch.randint(classes, (segments,), generator=g)
    masks = torch.rand(segments, 32, 32, generator=g) > 0.5
    return class_logits, mask_logits, labels, masks


def test_pair_costs_are_the_mask_losses_of_each_pair():
    logits, truth = torch.randn(4, 60), (torch.rand(3, 60) > 0.4).float()
    bce, dice_cost = mask_cost(logits, truth)
    for q in range(4):
        for m in range(3):
            assert torch.allclose(bce[q, m], mask_bce(logits[q : q + 1], truth[m : m + 1], 1), atol=1e-5)
            assert torch.allclose(dice_cost[q, m], dice(logits[q : q + 1], truth[m : m + 1], 1), atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_cheapest_of_all(seed):
    class_logits, mask_logits, labels, masks = _case(seed=seed)
    rows, columns = match(*_case(seed=seed), points=300, generator=torch.Generator().manual_seed(seed))
    coords = random_points(1, 300, torch.device("cpu"), torch.Generator().manual_seed(seed))
    values, truth = (sample_points(x[None].float(), coords)[0] for x in (mask_logits, masks))
    probability = class_logits.softmax(-1)

    def cost(q: int, m: int) -> float:
        pair = values[q : q + 1], truth[m : m + 1]
        return float(-2 * probability[q, labels[m]] + 5 * mask_bce(*pair, 1) + 5 * dice(*pair, 1))

    best = min(permutations(range(5), 3), key=lambda order: sum(cost(q, m) for m, q in enumerate(order)))
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == dict(enumerate(best))


def test_class_decides_between_equal_masks_and_weights_switch_terms_off():
    class_logits = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]])
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    mask_logits = torch.zeros(2, 4, 4)
    rows, columns = match(class_logits, mask_logits, torch.tensor([0, 1]), masks, points=20)
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 0}
    masks[0, :4] = False
    mask_logits = masks[:, ::2, ::2].float() * 10 - 5
    rows, columns = match(
        class_logits, mask_logits, torch.tensor([0, 1]), masks, weights=(0, 5, 5), points=50
    )
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 0, 1: 1}


def test_no_segments_and_more_segments_than_queries():
    class_logits, mask_logits, _, _ = _case()
    none = torch.zeros(0, dtype=torch.long), torch.zeros(0, 32, 32, dtype=torch.bool)
    rows, columns = match(class_logits, mask_logits, *none)
    assert len(rows) == len(columns) == 0 and rows.dtype == torch.long
    rows, columns = match(*_case(queries=2, segments=6), points=50)
    assert len(rows) == len(columns) == 2


def test_nan_is_a_clear_error():
    class_logits, mask_logits, labels, masks = _case()
    mask_logits[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        match(class_logits, mask_logits, labels, masks, points=2000)


def test_batch_equals_single_images_and_is_repeatable():
    cases = [_case(seed=s, segments=n) for s, n in ((0, 3), (1, 0), (2, 5))]
    targets = [{"labels": labels, "masks": masks} for _, _, labels, masks in cases]
    logits, masks = torch.stack([c[0] for c in cases]), torch.stack([c[1] for c in cases])
    pairs = [
        match_batch(logits, masks, targets, points=99, generator=torch.Generator().manual_seed(7))
        for _ in "ab"
    ]
    generator = torch.Generator().manual_seed(7)
    for case, first, second in zip(cases, *pairs, strict=True):
        alone = match(*case, points=99, generator=generator)
        assert all(
            torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(alone, first, second, strict=True)
        )


def test_a_clip_is_matched_once_over_its_tube():
    cases = [_case(seed=seed) for seed in (0, 1)]
    class_logits, mask_logits = (torch.stack([case[k] for case in cases]) for k in (0, 1))
    labels, masks = cases[0][2], torch.stack([case[3] for case in cases])
    present = torch.tensor([[True, True, False], [True, True, True]])
    masks[0, 2] = False
    generator = torch.Generator().manual_seed(3)
    rows, columns = match_clip(
        class_logits, mask_logits, labels, masks, present, points=200, generator=generator
    )
    coords = random_points(2, 200, torch.device("cpu"), torch.Generator().manual_seed(3))
    values, truth = (sample_points(x.float(), coords) for x in (mask_logits, masks))
    probability = class_logits.softmax(-1)

    def cost(q: int, m: int) -> float:
        pair = values[:, q].flatten()[None], truth[:, m].flatten()[None]
        seen = [float(probability[t, q, labels[m]]) for t in (0, 1) if present[t, m]]
        return -2 * sum(seen) / len(seen) + 5 * float(mask_bce(*pair, 1)) + 5 * float(dice(*pair, 1))

    best = min(permutations(range(5), 3), key=lambda order: sum(cost(q, m) for m, q in enumerate(order)))
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == dict(enumerate(best))
