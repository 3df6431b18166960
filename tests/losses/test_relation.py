"""Text-guided distillation against the formula written out as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlkd.losses import text_guided_kd


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
