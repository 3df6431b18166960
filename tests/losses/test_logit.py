"""Losses of logits against recorded numbers, the formulas written out, and properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read
from scipy.optimize import linear_sum_assignment

from vlkd.errors import UserError
from vlkd.losses import dist, dkd, kd, logit_standardise, sinkhorn


def logits(rows: int = 6, classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return 3 * torch.randn(rows, classes, dtype=torch.float64), 3 * torch.randn(
        rows, classes, dtype=torch.float64
    )


def test_kd_golden() -> None:
    assert_golden(lambda d: kd(d["logits_s"], d["logits_t"], 4.0), read("mdistiller_kd_T4"), ["logits_s"])


def test_dkd_golden() -> None:
    assert_golden(
        lambda d: dkd(d["logits_s"], d["logits_t"], d["target"], 1.0, 8.0, 4.0),
        read("mdistiller_dkd_a1_b8_T4"),
        ["logits_s"],
    )


def test_dist_golden() -> None:
    case = read("dist_tau1")
    assert_golden(lambda d: dist(d["logits_s"], d["logits_t"]), case, ["logits_s"])
    s, t = case["logits_s"], case["logits_t"]
    torch.testing.assert_close(dist(s, t, gamma=0.0), case["inter"], rtol=1e-5, atol=0)
    torch.testing.assert_close(dist(s, t, beta=0.0), case["intra"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_by_definition(temperature: float) -> None:
    s, t = logits()
    q, p = (t / temperature).softmax(1), (s / temperature).softmax(1)
    total = temperature**2 * (q * (q / p).log()).sum()
    torch.testing.assert_close(kd(s, t, temperature), total / 6)
    torch.testing.assert_close(kd(s, t, temperature, reduction="mean"), total / 60)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(0.8, 0.5, 1.0), (1.0, 2.0, 4.0), (2.5, 4.0, 4.0)]
)
def test_dkd_by_definition(alpha: float, beta: float, temperature: float) -> None:
    s, t = logits()
    labels = torch.tensor([0, 9, 3, 3, 5, 1])
    terms = []
    for a, b, y in zip((s / temperature).softmax(1), (t / temperature).softmax(1), labels, strict=True):
        rest = torch.arange(10) != y
        label = b[y] * (b[y] / a[y]).log() + (1 - b[y]) * ((1 - b[y]) / (1 - a[y])).log()
        q, p = b[rest] / b[rest].sum(), a[rest] / a[rest].sum()
        terms.append(temperature**2 * (alpha * label + beta * (q * (q / p).log()).sum()))
    torch.testing.assert_close(dkd(s, t, labels, alpha, beta, temperature), torch.stack(terms).mean())


def test_dkd_of_a_certain_teacher_is_finite() -> None:
    s, t = torch.tensor([[90.0, -90.0, 0.0]], requires_grad=True), torch.tensor([[300.0, 1.0, 0.0]])
    loss = dkd(s, t, torch.tensor([0]), temperature=1.0)
    loss.backward()
    assert loss.isfinite() and loss > 0 and s.grad is not None and s.grad.isfinite().all()


def test_dist_ignores_scale_and_shift_of_probabilities() -> None:
    t = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    s = 0.5 * t + 0.5 / 3
    assert dist(s.log(), t.log(), gamma=0.0) < 1e-5
    assert dist(s.log(), t.log().roll(1, 1), gamma=0.0) > 0.5


def test_equal_answers_cost_nothing() -> None:
    s = logits()[0].float()
    assert kd(s, s) == 0
    assert dkd(s, s, torch.arange(6)) == 0
    assert dist(s, s) < 1e-4  # not 0: the published 1e-8 beside the norms counts where a class is rare


def test_logit_standardise() -> None:
    s, _ = logits()
    z = logit_standardise(s)
    torch.testing.assert_close(z.mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(z.std(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(logit_standardise(7 * s + 3), z)
    flat = torch.ones(2, 4, requires_grad=True)
    logit_standardise(flat).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_sinkhorn_by_scaling() -> None:
    s, t = logits()
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    cost = torch.stack([torch.stack([(a - b).abs().sum() for b in q]) for a in p])
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    torch.testing.assert_close(sinkhorn(s, t), (plan * cost).sum())
    torch.testing.assert_close(sinkhorn(s, t, reduction="mean"), (plan * cost).sum() / 6)


def test_sinkhorn_with_small_epsilon_is_the_best_assignment() -> None:
    s, t = (x.float().requires_grad_() for x in logits())
    cost = torch.cdist((s / 2).softmax(1), (t / 2).softmax(1), p=1).detach().numpy()
    best = cost[linear_sum_assignment(cost)].sum()
    loss = sinkhorn(s, t, epsilon=1e-3, iterations=500)
    loss.backward()
    assert loss.item() == pytest.approx(best, rel=1e-3)
    assert s.grad is not None and s.grad.isfinite().all()


def test_sinkhorn_does_not_care_for_order() -> None:
    s, t = logits()
    torch.testing.assert_close(sinkhorn(s, t.flip(0), iterations=200), sinkhorn(s, t, iterations=200))


def test_gradients() -> None:
    s, t = logits(4, 5)
    s.requires_grad_()
    for loss in (kd, dist, sinkhorn, lambda a, b: dkd(a, b, torch.tensor([0, 1, 1, 4]))):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(logit_standardise(x), t), (s,))


@pytest.mark.parametrize("loss", [kd, dist, sinkhorn, lambda s, t: dkd(s, t, torch.arange(6))])
def test_half_precision_is_raised_to_float32(loss: Callable[..., torch.Tensor]) -> None:
    s, t = (x.bfloat16() for x in logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(s.float(), t.float()))


def test_clear_errors() -> None:
    s = torch.zeros(3, 10)
    with pytest.raises(UserError, match=r"student \(3, 10\) and teacher \(3, 100\).*same classes"):
        kd(s, torch.zeros(3, 100))
    with pytest.raises(UserError, match=r"labels have shape \(3, 10\), expected \(3,\)"):
        dkd(s, s, F.one_hot(torch.arange(3), 10))
    with pytest.raises(UserError, match="'batchmean' or 'mean'"):
        kd(s, s, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'sum' or 'mean'"):
        sinkhorn(s, s, reduction="batchmean")  # type: ignore[arg-type]
