"""DFND against the numbers of its official functions."""

from __future__ import annotations

import pytest
import torch
from golden_cases import read

from vlkd.errors import UserError
from vlkd.losses import kd
from vlkd.methods.kd3.dfnd import NoiseAdaptation, self_cross_entropy
from vlkd.methods.kd3.selection import most_confident


def adaptation() -> tuple[dict[str, torch.Tensor], NoiseAdaptation]:
    case = read("dfnd_losses")
    noise = NoiseAdaptation(10, float(case["teacher_acc"]))
    with torch.no_grad():
        noise.free.copy_(case["noise_adaptation"])
    return case, noise


def test_official_selection() -> None:
    case, _ = adaptation()
    value = self_cross_entropy(case["logits_t"])
    torch.testing.assert_close(value, case["selection_value"], rtol=1e-5, atol=1e-7)
    assert most_confident(-value, 5).tolist() == sorted(case["selected_5"].tolist())


def test_official_matrix() -> None:
    case, noise = adaptation()
    torch.testing.assert_close(noise.matrix(), case["noise_matrix"], rtol=1e-5, atol=0)
    torch.testing.assert_close(noise.matrix().sum(1), torch.ones(10))


def test_official_losses_and_gradients() -> None:
    case, noise = adaptation()
    logits = case["logits_s"].clone().requires_grad_()
    noisy = noise(logits, case["pseudo_label"])
    torch.testing.assert_close(noisy, case["loss_noisy_nll"], rtol=1e-5, atol=0)
    plain = kd(logits, case["logits_t"], 4.0)
    torch.testing.assert_close(plain, case["loss_kd_T4"], rtol=1e-5, atol=0)
    found = torch.autograd.grad(noisy + plain, [logits, noise.free])
    for grad, key in zip(found, ("grad_logits_s", "grad_noise_adaptation"), strict=True):
        expected = case[key]
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def test_confident_logits_stay_finite() -> None:
    noise = NoiseAdaptation(3, 1.0)
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = noise(logits, torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_accuracy_is_a_fraction() -> None:
    with pytest.raises(UserError, match=r"model\.teacher_accuracy=95\.2: expected a fraction"):
        NoiseAdaptation(10, 95.2)
