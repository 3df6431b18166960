import pytest
import torch

from vlkd.losses.mask import dice, mask_bce, mask_losses, sample_points, uncertain_points


def test_sample_points_reads_cell_centres_and_interpolates_between_them():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    centre = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [1 / 3, 0.25], [1 / 6, 0.5]]])
    assert torch.allclose(sample_points(features, centre), torch.tensor([[[0.0, 5.0, 0.5, 1.5]]]), atol=1e-6)


def test_bce_and_dice_match_the_formulas_pair_by_pair():
    logits, labels = torch.randn(3, 50), (torch.rand(3, 50) > 0.5).float()
    p = logits.sigmoid()
    bce = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean(1).sum() / 4
    overlap = 1 - (2 * (p * labels).sum(1) + 1) / (p.sum(1) + labels.sum(1) + 1)
    assert torch.allclose(mask_bce(logits, labels, 4), bce, atol=1e-6)
    assert torch.allclose(dice(logits, labels, 4), overlap.sum() / 4, atol=1e-6)


def test_uncertain_points_gather_at_the_boundary():
    columns = torch.linspace(-20, 20, 64)
    logits = columns.expand(2, 1, 64, 64).contiguous()
    coords = uncertain_points(logits, 400, generator=torch.Generator().manual_seed(0))
    assert coords.shape == (2, 400, 2)
    distance = (coords[..., 0] - 0.5).abs()
    # 300 of 1200 uniform candidates: those within 1/8 of the boundary at x = 0.5.
    assert (distance < 0.16).float().mean() > 0.75
    assert (distance > 0.3).float().mean() > 0.05


def test_losses_fall_from_wrong_to_right_masks_of_another_size():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, :, 16:] = True, True
    small = masks[:, ::4, ::4].float() * 40 - 20
    good = mask_losses(small, masks, 2, points=500)
    bad = mask_losses(-small, masks, 2, points=500)
    # Bilinear samples of the coarse logits blur the boundary a little.
    assert good["mask"] < 0.3 < 3 < bad["mask"]
    assert good["dice"] < 0.2 < 0.7 < bad["dice"]


def test_generator_makes_losses_repeatable_and_seed_matters():
    logits, masks = torch.randn(2, 16, 16), torch.rand(2, 64, 64) > 0.5

    def loss(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return mask_losses(logits, masks, 2, points=100, generator=generator)["mask"].item()

    assert loss(1) == loss(1) != loss(2)


def test_no_masks_give_zero_with_a_gradient():
    logits = torch.randn(0, 8, 8, requires_grad=True)
    losses = mask_losses(logits, torch.zeros(0, 32, 32, dtype=torch.bool), 1)
    assert losses["mask"] == 0 and losses["dice"] == 0
    sum(losses.values()).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_float32_inside_autocast(dtype):
    masks = torch.rand(2, 32, 32) > 0.5
    logits = torch.randn(2, 8, 8).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        losses = mask_losses(logits, masks, 2, points=64, generator=torch.Generator().manual_seed(0))
    plain = mask_losses(logits.float(), masks, 2, points=64, generator=torch.Generator().manual_seed(0))
    assert losses["mask"].dtype == torch.float32
    assert torch.equal(losses["mask"], plain["mask"]) and torch.equal(losses["dice"], plain["dice"])
