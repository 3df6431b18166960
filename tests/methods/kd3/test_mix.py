"""MixDistribution, the embedding and the weighted feature loss against the official code's numbers."""

from __future__ import annotations

import pytest
import torch
from golden_cases import assert_golden, read
from torch import Tensor

from vlkd.errors import UserError
from vlkd.methods.kd3 import mix_distribution, weighted_feature_loss
from vlkd.methods.kd3.mix import Embedding, draw_mix, even, find_weighting, sigmoid_distance


def test_official_mix() -> None:
    case = read("kd3_mixdistribution_random")
    for lam in (case["lmda"], case["lmda"].flatten()):
        found = mix_distribution(case["x"], case["perm"], lam)
        torch.testing.assert_close(found, case["y"], rtol=1e-5, atol=2e-6)


def test_mixed_images_have_the_mixed_distribution() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16) * torch.tensor([1.0, 0.2, 0.5, 0.8]).view(4, 1, 1, 1)
    order, lam = torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.0, 0.5, 0.3])
    mixed = mix_distribution(images, order, lam)
    torch.testing.assert_close(mixed[0], images[0])
    means, other = images.mean((2, 3)), images[order].mean((2, 3))
    torch.testing.assert_close(mixed.mean((2, 3)), lam[:, None] * means + (1 - lam[:, None]) * other)
    torch.testing.assert_close(mixed[1].std((1, 2)), images[2].std((1, 2)), rtol=1e-3, atol=0)


def test_draws_repeat_with_the_seed() -> None:
    torch.manual_seed(3)
    order, lam = draw_mix(500, 0.1)
    assert order.sort().values.tolist() == list(range(500)) and order.tolist() != list(range(500))
    # Beta(0.1, 0.1) has its mass at both ends.
    assert 0.8 < float(((lam < 0.1) | (lam > 0.9)).float().mean()) < 1 and 0.4 < float(lam.mean()) < 0.6
    torch.manual_seed(3)
    again = draw_mix(500, 0.1)
    assert torch.equal(order, again[0]) and torch.equal(lam, again[1])


def _loss(case: dict[str, Tensor]) -> Tensor:
    return weighted_feature_loss(case["trans_feat_s"], case["feat_t"], case["logits_s"], case["logits_t"])


def test_official_feature_loss() -> None:
    case = read("kd3_weighted_mse")
    assert_golden(_loss, case, ["trans_feat_s"])
    found = sigmoid_distance(case["logits_s"], case["logits_t"])
    torch.testing.assert_close(found, case["weight"], rtol=1e-5, atol=0)


def test_no_gradient_through_weights_or_teacher() -> None:
    case = {key: value.clone().requires_grad_() for key, value in read("kd3_weighted_mse").items()}
    _loss(case).backward()
    assert case["trans_feat_s"].grad is not None
    assert all(case[key].grad is None for key in ("feat_t", "logits_s", "logits_t"))


def test_full_precision_inside_autocast() -> None:
    case = read("kd3_weighted_mse")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            _loss(case).item() == _loss(case).float().item() == pytest.approx(case["loss"].item(), rel=1e-6)
        )
    half = {key: value.bfloat16() for key, value in case.items()}
    assert _loss(half).dtype == torch.float32


def double(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.full((len(student),), 2.0)


def test_weightings() -> None:
    case = read("kd3_weighted_mse")
    arguments = [case[key] for key in ("trans_feat_s", "feat_t", "logits_s", "logits_t")]
    plain = (arguments[0] - arguments[1]).square().mean()
    assert find_weighting("sigmoid_distance") is sigmoid_distance and find_weighting("none") is even
    torch.testing.assert_close(weighted_feature_loss(*arguments, weighting=even), plain)
    torch.testing.assert_close(weighted_feature_loss(*arguments, weighting=double), 2 * plain)
    assert find_weighting("torch:dist") is torch.dist
    for wrong in ("sigmoid", "torch:nothing", "no.such.module:f", ":", "torch:__name__"):
        with pytest.raises(UserError, match=r"model.weighting=.*package.module:function"):
            find_weighting(wrong)


def test_maps_of_different_shape_are_one_line() -> None:
    logits = torch.zeros(2, 5)
    with pytest.raises(UserError, match=r"student map \(2, 3, 8, 8\), teacher map \(2, 3, 4, 4\)"):
        weighted_feature_loss(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4), logits, logits)


def test_official_embedding() -> None:
    case = read("kd3_embed")
    embed = Embedding(64, 128)
    embed.load_state_dict({"weight": case["weight"], "bias": case["bias"]})
    torch.testing.assert_close(embed(case["feat"]), case["out"], rtol=1e-5, atol=1e-7)
