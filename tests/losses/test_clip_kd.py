"""Losses between two CLIP models against the literal formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from vlkd.errors import UserError
from vlkd.losses import affinity_mimicry, clip_loss, feature_mimicry, interactive_contrastive


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def four(b: int = 4, d: int = 6) -> list[torch.Tensor]:
    return [unit(b, d, seed=k) for k in range(4)]


def test_feature_mimicry_by_loops() -> None:
    student, teacher = 3 * unit(5, 4), 0.2 * unit(5, 4, seed=1)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += sum(float((a / s.norm() - b / t.norm()) ** 2) for a, b in zip(s, t, strict=True))
    assert feature_mimicry(student, teacher).item() == pytest.approx(total / 5, rel=1e-12)
    assert feature_mimicry(student, 7 * student).item() == pytest.approx(0, abs=1e-30)
    assert feature_mimicry(student, -student).item() == pytest.approx(4)


def test_interactive_contrastive_by_loops() -> None:
    s_image, s_text, t_image, t_text = four()
    total = 0.0
    for anchor, gallery in ((s_image, t_text), (s_text, t_image)):
        for k in range(4):
            scores = torch.tensor([10 * float(anchor[k] @ gallery[j]) for j in range(4)], dtype=torch.double)
            total -= float(scores[k] - scores.logsumexp(0))
    found = interactive_contrastive(s_image, s_text, t_image, t_text, 10.0)
    assert found.item() == pytest.approx(total / 8, rel=1e-12)


def test_equal_towers_make_the_interactive_loss_the_contrastive_one() -> None:
    image, text = (x.float() for x in four()[:2])
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    found = interactive_contrastive(image, text, image, text, 5.0, same)
    torch.testing.assert_close(found, clip_loss(image, text, 5.0, same))
    assert found < interactive_contrastive(image, text, image, text, 5.0)  # the same caption was a negative


def test_affinity_mimicry_by_loops() -> None:
    s_image, s_text, t_image, t_text = four()
    total = 0.0
    for transpose in (False, True):
        s, t = 8 * s_image @ s_text.T / 2, 20 * t_image @ t_text.T / 2
        s, t = (s.T, t.T) if transpose else (s, t)
        for k in range(4):
            p, q = t[k].softmax(0), s[k].softmax(0)
            total += sum(float(p[j] * (p[j] / q[j]).log()) for j in range(4)) * 4 / 4  # T^2 over B
    found = affinity_mimicry(s_image, s_text, t_image, t_text, 8.0, 20.0, temperature=2.0)
    assert found.item() == pytest.approx(total / 2, rel=1e-10)


def test_affinity_gradient_is_that_of_the_cross_entropy() -> None:
    s_image, s_text, t_image, t_text = four()
    s_image.requires_grad_()
    affinity_mimicry(s_image, s_text, t_image, t_text, 8.0, 20.0).backward()
    found, s_image.grad = s_image.grad, None
    s, t = 8 * s_image @ s_text.T, 20 * t_image @ t_text.T
    paper = (F.cross_entropy(s, t.softmax(1)) + F.cross_entropy(s.T, t.T.softmax(1))) / 2
    paper.backward()
    torch.testing.assert_close(found, s_image.grad)


def test_equal_affinities_give_exactly_zero_at_other_widths() -> None:
    image, text = unit(5, 3), unit(5, 3, seed=1)
    wide = [torch.cat([x, torch.zeros(5, 4, dtype=x.dtype)], 1) for x in (image, text)]
    assert affinity_mimicry(image, text, image, text, 9.0, 9.0).item() == 0
    assert affinity_mimicry(image, text, *wide, 9.0, 9.0).item() == pytest.approx(0, abs=1e-15)


def test_gradients() -> None:
    s_image, s_text, t_image, t_text = four(3, 4)
    student = [x.requires_grad_() for x in (s_image, s_text)]
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    gradcheck = partial(torch.autograd.gradcheck, raise_exception=True)
    assert gradcheck(lambda s: feature_mimicry(s, t_image), (s_image,))
    assert gradcheck(lambda i, t, k: interactive_contrastive(i, t, t_image, t_text, k), (*student, scale))
    assert gradcheck(lambda i, t, k: affinity_mimicry(i, t, t_image, t_text, k, 7.0), (*student, scale))


def test_the_teacher_gets_no_gradient() -> None:
    s_image, s_text, t_image, t_text = (x.requires_grad_() for x in four())
    scale = torch.tensor(7.0, dtype=torch.double, requires_grad=True)
    total = feature_mimicry(s_image, t_image) + feature_mimicry(s_text, t_text)
    total = total + interactive_contrastive(s_image, s_text, t_image, t_text, 7.0)
    (total + affinity_mimicry(s_image, s_text, t_image, t_text, 7.0, scale)).backward()
    assert t_image.grad is None and t_text.grad is None and scale.grad is None
    assert s_image.grad is not None and s_text.grad is not None


def test_full_precision_inside_autocast() -> None:
    vectors = [x.float() for x in four(8, 16)]
    double = [x.double() for x in vectors]

    def all_three(v: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            feature_mimicry(v[0], v[2]),
            interactive_contrastive(*v, 50.0),
            affinity_mimicry(*v, 50.0, 50.0),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        found = all_three(vectors)
    for value, exact in zip(found, all_three(double), strict=True):
        assert value.dtype == torch.float32 and exact.dtype == torch.float64
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_one_pair_has_nothing_to_contrast() -> None:
    vectors = four(1)
    assert interactive_contrastive(*vectors, 10.0).item() == 0
    assert affinity_mimicry(*vectors, 10.0, 3.0).item() == 0


def test_other_shapes_are_one_line() -> None:
    a, b = unit(4, 6), unit(4, 5)
    with pytest.raises(UserError, match=r"feature_mimicry: vectors \(4, 6\) and \(4, 5\), expected two"):
        feature_mimicry(a, b)
    with pytest.raises(UserError, match=r"interactive_contrastive: .*project the student"):
        interactive_contrastive(a, a, a, b, 1.0)
    with pytest.raises(UserError, match=r"affinity_mimicry: vectors \(4, 6\) and \(4, 5\)"):
        affinity_mimicry(a, a, a, b, 1.0, 1.0)
