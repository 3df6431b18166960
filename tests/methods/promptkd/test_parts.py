"""The loss, the rate, the average, the scores: recorded numbers and literal forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from golden_cases import read

from vlkd.errors import UserError
from vlkd.methods.promptkd import kd_loss
from vlkd.methods.promptkd.base import rate_factor
from vlkd.methods.promptkd.scores import SplitHits
from vlkd.methods.promptkd.teacher import Averaging
from vlkd.metrics import harmonic_mean
from vlkd.models.open_classifier import class_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_that_of_promptkd(dtype: torch.dtype) -> None:
    case = read("promptkd_loss_1")
    raw = case["student_feat_raw"].to(dtype).requires_grad_()
    unit, vectors = F.normalize(raw, dim=1), case["class_vectors"].to(dtype)
    logits = case["logit_scale_student"].item() * unit @ vectors.T
    loss = kd_loss(
        logits, case["teacher_logits"].to(dtype), case["temperature"].item(), case["kd_weight"].item()
    )
    torch.testing.assert_close(loss.double().detach(), case["loss"].double(), rtol=1e-5, atol=0)
    (found,) = torch.autograd.grad(loss, raw)
    expected = case["grad_student_feat"]
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_loss_divides_by_batch_and_classes() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = sum(p[b, n] * (p[b, n] / q[b, n]).log() for b in range(3) for n in range(5))
    torch.testing.assert_close(kd_loss(student, teacher, 2.0, 7.0), 7 * 4 * expected / 15)
    assert kd_loss(student, student).item() == 0
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, teacher), student.requires_grad_())
    with pytest.raises(UserError, match="one shape"):
        kd_loss(student, teacher[:, :4])


def test_half_precision_logits_do_not_underflow() -> None:
    """In half precision the division by batch and classes comes before the weight, and the loss is zero."""
    torch.manual_seed(0)
    student = torch.randn(8, 100, dtype=torch.float16)
    teacher = student + 1e-2 * torch.randn(8, 100).half()
    exact = kd_loss(student.double(), teacher.double())
    torch.testing.assert_close(kd_loss(student, teacher).double(), exact, rtol=1e-3, atol=0)


def test_inference_is_that_of_promptkd() -> None:
    case = read("promptkd_inference")
    logits = class_logits(F.normalize(case["student_feat"], dim=1), case["class_vectors"], 100.0)
    base = math.ceil(int(case["n_cls"]) / 2)
    for name, found in (
        ("base2novel_val", logits[:, :base]),
        ("base2novel_test", logits[:, base:]),
        ("cross_val", logits),
        ("cross_test", logits),
    ):
        torch.testing.assert_close(found, case[name], rtol=1e-4, atol=1e-4)


def test_logits_stay_in_full_precision_inside_autocast() -> None:
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(4, 32), dim=1), F.normalize(torch.randn(5, 32), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = class_logits(a, b, 100.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 100 * a @ b.T)


def test_the_rate_follows_the_published_epochs() -> None:
    rates = [0.005 * rate_factor(epoch, 20, 1, 1e-5 / 0.005) for epoch in range(20)]
    assert rates[0] == pytest.approx(1e-5) and rates[1] == pytest.approx(0.005)
    assert rates[2] == pytest.approx(0.0025 * (1 + math.cos(math.pi / 20)))
    assert rates[-1] == pytest.approx(0.000122, abs=5e-7)


def test_the_average_is_a_gaussian_over_the_epochs() -> None:
    weights = [Averaging(15, 1).weight(epoch, 20) for epoch in range(1, 21)]
    assert sum(weights) == pytest.approx(1)
    assert weights.index(max(weights)) == 14
    assert weights[15] / weights[14] == pytest.approx(math.exp(-0.5))
    assert Averaging(1000, 1).weight(3, 3) == pytest.approx(1)  # far from the run: its nearest epoch


def test_scores_of_the_halves_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, labels, novel = torch.randn(200, 7), torch.randint(-1, 7, (200,)), frozenset({2, 5, 6})
    hits = SplitHits(7, novel)
    hits.update(logits[:90], labels[:90])
    hits.update(logits[90:], labels[90:])
    counts = {"base": [0, 0], "novel": [0, 0], "all": [0, 0]}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        half = [k for k in range(7) if (k in novel) == (label in novel)]
        name = "novel" if label in novel else "base"
        counts[name][0] += max(half, key=lambda k: row[k]) == label
        counts["all"][0] += max(range(7), key=lambda k: row[k]) == label
        counts[name][1] += 1
        counts["all"][1] += 1
    expected = {name: right / total for name, (right, total) in counts.items()}
    found = hits.scores()
    assert found["accuracy"] == pytest.approx(expected["all"])
    assert found["accuracy_base"] == pytest.approx(expected["base"])
    assert found["accuracy_novel"] == pytest.approx(expected["novel"])
    assert found["harmonic_mean"] == pytest.approx(harmonic_mean(expected["base"], expected["novel"]))
    doubled = hits.scores(lambda counts: 2 * counts)  # what another process with the same images adds
    assert doubled == pytest.approx(found)


def test_scores_without_novel_classes_or_images() -> None:
    hits = SplitHits(3)
    hits.update(torch.eye(3), torch.tensor([0, 1, 0]))
    assert hits.scores() == pytest.approx({"accuracy": 2 / 3, "accuracy_top5": 1.0})
    only_base = SplitHits(3, frozenset({2}))
    only_base.update(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert set(only_base.scores()) == {"accuracy", "accuracy_top5", "accuracy_base"}
