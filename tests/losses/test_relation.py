"""Relational losses against recorded numbers and the formulas written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read

from vlkd.errors import UserError
from vlkd.losses import pkt, rkd, sp, text_guided_kd


def by_loops(v, c, t, ids, alpha, form):
    v, c, t = (F.normalize(x.double(), dim=-1) for x in (v, c, t))
    terms = [((v[i] - c[i]) ** 2).sum() for i in range(len(v))]
    for i in range(len(v)):
        for j in range(len(v)):
            if ids[i] != ids[j] or form == "vanilla":
                continue
            if form == "inner":
                terms.append((alpha**2 * t[i] @ t[j] - v[i] @ c[j]) ** 2)
            else:
                terms.append(((v[i] - c[j]).norm() - alpha * (t[i] - t[j]).norm()) ** 2)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("form", ["inner", "distance", "vanilla"])
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_formula(form: str, alpha: float) -> None:
    torch.manual_seed(0)
    v, c, t = torch.randn(9, 16), torch.randn(9, 16), torch.randn(9, 12)
    ids = torch.tensor([0, 0, 0, 1, 2, 2, 0, 1, 3])
    assert torch.allclose(
        text_guided_kd(v, c, t, ids, alpha, form).double(), by_loops(v, c, t, ids, alpha, form), rtol=1e-5
    )


@pytest.mark.parametrize("form", ["inner", "distance", "vanilla"])
def test_gradient(form: str) -> None:
    torch.manual_seed(1)
    v = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    c, t = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    alpha = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda x, a: text_guided_kd(x, c, t, ids, a, form), (v, alpha))


def test_images_do_not_mix() -> None:
    torch.manual_seed(2)
    v, c, t = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8)
    apart = text_guided_kd(v, c, t, torch.arange(4))
    diagonal = [(1 - F.cosine_similarity(v[i], c[i], dim=0)) ** 2 for i in range(4)]
    plain = [2 - 2 * F.cosine_similarity(v[i], c[i], dim=0) for i in range(4)]
    assert torch.allclose(apart, torch.stack(diagonal + plain).mean(), atol=1e-6)


def test_no_region_gives_a_zero_with_gradient() -> None:
    v = torch.zeros(0, 8, requires_grad=True)
    loss = text_guided_kd(v, torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0 and v.grad is not None


def test_equal_vectors_have_a_finite_gradient() -> None:
    v = torch.eye(3)[:2].clone().requires_grad_()
    text_guided_kd(v, torch.eye(3)[:2], torch.eye(3)[[0, 0]], torch.zeros(2), form="distance").backward()
    assert torch.isfinite(v.grad).all()


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="inner, distance or vanilla"):
        text_guided_kd(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1), form="cosine")  # type: ignore[arg-type]


def test_rkd_golden() -> None:
    case = read("mdistiller_rkd_d25_a50")
    assert_golden(lambda d: rkd(d["f_s"], d["f_t"], 25, 50), case, ["f_s"])


def test_sp_golden() -> None:
    assert_golden(lambda d: sp(d["s2"], d["t2"]), read("mdistiller_sp"), ["s2"])


def test_pkt_golden() -> None:
    assert_golden(lambda d: pkt(d["f_s"], d["f_t"]), read("mdistiller_pkt"), ["f_s"])


def differences(x: torch.Tensor) -> torch.Tensor:
    return x[None] - x[:, None]


def test_rkd_parts_by_definition() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(7, 5, dtype=torch.float64) + 3, torch.randn(7, 9, dtype=torch.float64) - 2

    def angles(x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(differences(x), dim=2)
        return torch.einsum("ijd,ikd->ijk", unit, unit)

    def distances(x: torch.Tensor) -> torch.Tensor:
        d = differences(x).square().sum(2).sqrt()
        return d / d[d > 0].mean()

    torch.testing.assert_close(rkd(s, t, 0, 2), 2 * F.smooth_l1_loss(angles(s), angles(t)))
    torch.testing.assert_close(rkd(s, t, 3, 0), 3 * F.smooth_l1_loss(distances(s), distances(t)))
    assert rkd(s, t, 0, 0) == 0


def test_rkd_keeps_its_digits_far_from_the_origin() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(8, 6), torch.randn(8, 6)
    torch.testing.assert_close(rkd(s + 100, t + 100), rkd(s, t), rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [rkd, sp, pkt])
def test_degenerate_batches_have_finite_gradients(loss: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    repeated = torch.randn(3, 4)[[0, 0, 1, 2]]
    for s in (repeated, torch.zeros(4, 4), torch.ones(1, 4)):
        s = s.clone().requires_grad_()
        value = loss(s, torch.randn(len(s), 6))
        value.backward()
        assert value.isfinite() and s.grad is not None and s.grad.isfinite().all()


@pytest.mark.parametrize("loss", [rkd, sp, pkt])
def test_relations_of_equal_features_cost_nothing(loss: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    t = torch.randn(6, 8)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    assert loss(t @ turn, t).abs() < 1e-6
    assert loss(torch.randn(6, 8), t) > 1e-4


@pytest.mark.parametrize("loss", [rkd, sp, pkt])
def test_relations_in_half_precision(loss: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(6, 8).bfloat16(), torch.randn(6, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(s.float(), t.float()))


@pytest.mark.parametrize("loss", [rkd, sp, pkt])
def test_batches_of_different_size(loss: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(UserError, match=r"student \(3, 4\) and teacher \(2, 4\).*same batch"):
        loss(torch.ones(3, 4), torch.ones(2, 4))
