"""Losses of features against recorded numbers, the formulas written out, and properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses import at, fitnet, nd, neuron_mmd, nst, ofd, review_kd, vid

Case = dict[str, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stages(case: Case, side: str, count: int) -> list[Tensor]:
    return [case[f"{side}{i}"] for i in range(count)]


def test_at_golden() -> None:
    case = read("mdistiller_at_p2")
    assert_golden(lambda d: at(stages(d, "s", 3), stages(d, "t", 3), 2), case, ["s0", "s1", "s2"])


def test_nst_golden() -> None:
    case = read("mdistiller_at_p2") | read("mdistiller_nst_outputs")
    assert_golden(lambda d: nst(stages(d, "s", 3), stages(d, "t", 3)), case, ["s0", "s1", "s2"])


def test_fitnet_golden() -> None:
    def loss(d: Case) -> Tensor:
        regressed = F.conv2d(d["f_s"], d["conv_weight"], d["conv_bias"])
        regressed = F.batch_norm(
            regressed, None, None, d["bn_weight"], d["bn_bias"], training=True, eps=d["bn_eps"].item()
        )
        return fitnet(regressed.relu(), d["f_t"])

    assert_golden(loss, read("mdistiller_fitnet"), ["f_s"])


def test_vid_golden() -> None:
    def loss(d: Case) -> Tensor:
        x = F.conv2d(F.conv2d(d["f_s"], d["reg_w0"]).relu(), d["reg_w1"]).relu()
        return vid(F.conv2d(x, d["reg_w2"]), d["f_t"], d["log_scale"], d["eps"].item())

    assert_golden(loss, read("mdistiller_vid"), ["f_s", "log_scale"])


def test_ofd_golden() -> None:
    assert_golden(
        lambda d: ofd(d["source"], d["target"], d["margin"]), read("mdistiller_ofd_featloss"), ["source"]
    )


def test_review_kd_golden() -> None:
    case = read("mdistiller_reviewkd_hcl")
    assert_golden(lambda d: review_kd(stages(d, "s", 2), stages(d, "t", 2)), case, ["s0", "s1"])
    deep = read("nd_reviewkd_hcl_deep")
    for level in (2, 3):
        value = review_kd(deep[f"s{level}"], deep[f"t{level}"])
        torch.testing.assert_close(value, deep["per_level"][level], rtol=1e-5, atol=0)


def test_nd_golden() -> None:
    case = read("nd_loss_1")
    inputs = case["s_emb"], case["t_emb"], case["centers"], case["labels"]
    factor = case["nd_loss_factor"].item()
    assert_golden(
        lambda d: factor * nd(d["s_emb"], d["t_emb"], d["centers"], d["labels"]),
        case | {"loss64": case["loss_f64"]},
        ["s_emb"],
    )
    torch.testing.assert_close(nd(*inputs, per_sample=True), case["per_sample"], rtol=1e-5, atol=1e-6)
    double = nd(*(x.double() if x.is_floating_point() else x for x in inputs), per_sample=True)
    torch.testing.assert_close(double, case["per_sample_f64"], rtol=1e-7, atol=0)


def test_nd_golden_edge_cases() -> None:
    case = read("nd_loss_edge")
    assert_golden(lambda d: nd(d["s_emb"], d["t_emb"], d["centers"], d["labels"]), case, ["s_emb"])
    values = nd(case["s_emb"], case["t_emb"], case["centers"], case["labels"], per_sample=True)
    torch.testing.assert_close(values, case["per_sample"], rtol=1e-5, atol=1e-6)


def test_nd_golden_with_mixed_centres() -> None:
    case = read("nd_deit_mixup")
    factor = case["nd_loss_factor"].item()
    assert_golden(lambda d: factor * nd(d["s_emb"], d["t_emb"], d["mixed_centers"]), case, ["s_emb"])


def test_nd_without_any_norm_is_finite() -> None:
    s = torch.zeros(2, 3, requires_grad=True)
    values = nd(s, torch.zeros(2, 3), torch.eye(3), torch.tensor([0, 2]), per_sample=True)
    assert values.tolist() == [1.0, 1.0]
    values.sum().backward()
    assert s.grad is not None and s.grad.isfinite().all() and s.grad.abs().max() <= 1
    no_centre = nd(torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([0]))
    assert no_centre == 1


def test_neuron_mmd_without_teacher_term_golden() -> None:
    case = read("vidlankd_nst")
    s, t = case["gen_fm_s"].double().requires_grad_(), case["gen_fm_t"].double()
    loss = neuron_mmd(s, t, teacher_term=False).mean()
    torch.testing.assert_close(loss.detach(), case["gen_loss_f64"], rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(gradient, case["gen_grad_s_f64"], rtol=1e-9, atol=1e-12)
    hidden, teacher = (F.normalize(case[key].double(), dim=2) for key in ("use_student", "use_teacher_raw"))
    found = neuron_mmd(hidden.mT, teacher.mT, teacher_term=False)
    torch.testing.assert_close(found, case["use_per_sample_f64"], rtol=1e-9, atol=0)
    full = neuron_mmd(hidden.mT, teacher.mT)
    torch.testing.assert_close(full, case["use_gram_full_mmd_f64"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("teacher_term", [True, False])
@pytest.mark.parametrize("pixels", [3, 40])
def test_neuron_mmd_both_forms_are_the_sum_over_pairs(pixels: int, teacher_term: bool) -> None:
    s, t = random(2, 6, pixels), random(2, 9, pixels, seed=1)
    a, b = F.normalize(s, dim=2), F.normalize(t, dim=2)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([((p[:, None] * q[None]).sum(-1) ** 2).mean() for p, q in zip(x, y, strict=True)])

    expected = kernel(a, a) - 2 * kernel(a, b) + teacher_term * kernel(b, b)
    torch.testing.assert_close(neuron_mmd(s, t, teacher_term), expected)


@pytest.mark.parametrize("p", [2, 4])
def test_at_by_definition_with_the_larger_grid_pooled(p: int) -> None:
    s, t = random(2, 3, 8, 4), random(2, 5, 4, 4, seed=1)
    pooled = s.unflatten(2, (4, 2)).mean(3)
    total = torch.zeros(())
    for a, b in zip(pooled, t, strict=True):
        a, b = (a**p).sum(0) / 3, (b**p).sum(0) / 5
        total = total + ((a / a.norm() - b / b.norm()) ** 2).sum()
    torch.testing.assert_close(at([s], [t], p), total / (2 * 16))
    torch.testing.assert_close(at([s, s], [t, s], p), at(s, t, p))


def test_vid_is_the_gaussian_density_without_its_constant() -> None:
    mean, target, scale = random(4, 3, 2, 2), random(4, 3, 2, 2, seed=1), random(3, seed=2)
    variance = (1 + scale.exp()).log() + 1e-5
    density = torch.distributions.Normal(mean, variance.sqrt()[:, None, None]).log_prob(target).mean()
    constant = torch.tensor(2 * torch.pi).log() / 2
    torch.testing.assert_close(vid(mean, target, scale), -density - constant)
    torch.testing.assert_close(vid(mean[:, :, 0, 0], target[:, :, 0, 0], scale).shape, torch.Size([]))


def test_ofd_by_definition() -> None:
    s, t, margin = random(3, 4, 5, 5), random(3, 4, 5, 5, seed=1), -random(4, seed=2).abs()
    total = 0.0
    for i, place in enumerate(t.flatten().tolist()):
        low, mine = margin[i // 25 % 4].item(), s.flatten()[i].item()
        target = max(place, low)
        total += (mine - target) ** 2 if place > 0 or mine > target else 0.0
    assert ofd(s, t, margin).item() == pytest.approx(total / 3)


def test_review_kd_by_definition() -> None:
    s, t = random(2, 3, 7, 7), random(2, 3, 7, 7, seed=1)
    parts = [F.mse_loss(*(F.adaptive_avg_pool2d(x, side) for x in (s, t))) for side in (7, 4, 2, 1)]
    expected = sum(value / 2**i for i, value in enumerate(parts)) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    torch.testing.assert_close(review_kd([s], [t]), expected)
    pooled = random(2, 9, 1, 1), random(2, 9, 1, 1, seed=1)
    torch.testing.assert_close(review_kd([s, pooled[0]], [t, pooled[1]]), expected + F.mse_loss(*pooled))


@pytest.mark.parametrize(
    "loss",
    [
        at,
        nst,
        review_kd,
        fitnet,
        lambda s, t: vid(s, t, torch.zeros(4)),
        lambda s, t: ofd(s, t, -torch.ones(4)),
        lambda s, t: nd(s[:, :, 0, 0], t[:, :, 0, 0], torch.ones(3, 4), torch.tensor([0, 2])),
    ],
)
def test_float32_inside_autocast(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    s, t = random(2, 4, 6, 6).bfloat16(), random(2, 4, 6, 6, seed=1).bfloat16()
    expected = loss(s.float(), t.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t)
        torch.testing.assert_close(loss(s.float(), t.float()), expected)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: at([random(2, 3, 4, 4)], []), "at: 1 maps of the student and 0 of the teacher"),
        (lambda: nst([random(2, 3, 4)], [random(2, 3, 4, 4)]), r"nst: maps of student \(2, 3, 4\)"),
        (lambda: at([random(2, 3, 4, 4)], [random(3, 3, 4, 4)]), "expected .B,C,h,w. of one batch"),
        (lambda: review_kd([random(2, 3, 4, 4)], [random(2, 3, 2, 2)]), "review_kd: .* must have one shape"),
        (lambda: fitnet(random(2, 3), random(2, 4)), "fitnet: student .2, 3. and teacher .2, 4."),
        (lambda: vid(random(2, 3), random(2, 3), random(2)), "expected .3,.: one a channel"),
        (lambda: nd(random(2, 3), random(2, 3), random(4, 5), torch.tensor([0, 1])), r"class means \(4, 5\)"),
        (lambda: nd(random(2, 3), random(2, 3), random(4, 3)), "one row a sample without"),
    ],
)
def test_shapes_that_do_not_fit(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
