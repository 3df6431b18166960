"""Agreement of class scores: what a student copies is the teacher's answer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.precision import full


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    reduction: Literal["batchmean", "mean"] = "batchmean",
) -> Tensor:
    """T^2 KL(teacher || student) of softened answers: logits (B,K) -> scalar in nats x T^2.

    "batchmean" divides the sum by B, "mean" by B x K. UserError when the shapes differ.
    Source: Hinton et al. 2015, section 2; "batchmean" megvii-research/mdistiller@a08d46f; "mean" PromptKD
    (zhengli97/PromptKD@ec244f7).
    """
    s, t = (F.log_softmax(x, 1) for x in _pair(student_logits, teacher_logits, temperature))
    if reduction not in ("batchmean", "mean"):
        raise UserError(f"kd: reduction {reduction!r} is unknown; use 'batchmean' or 'mean'")
    return _kl(s, t) * (temperature**2 / (len(s) if reduction == "batchmean" else s.numel()))


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation T^2 (alpha TCKD + beta NCKD): logits (B,K), labels (B,) int64 -> scalar.

    TCKD is the KL of (label, all others), NCKD the KL among the K-1 others; both are averaged over B.
    Labels must lie in [0, K); a check would cost a wait for the device. UserError when shapes do not fit.
    Source: Zhao et al. 2022 (arXiv 2203.08679), Eq. 7; megvii-research/mdistiller@a08d46f.
    """
    s, t = _pair(student_logits, teacher_logits, temperature)
    if labels.shape != s.shape[:1]:
        raise UserError(f"dkd: labels have shape {_text(labels)}, expected ({len(s)},): one class a sample")
    s_label, s_others = _decouple(s, labels)
    t_label, t_others = _decouple(t, labels)
    total = alpha * _kl(s_label, t_label) + beta * _kl(s_others, t_others)
    return total * (temperature**2 / len(s))


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 (beta inter + gamma intra), each one minus Pearson's correlation of probabilities: (B,K) -> scalar.

    inter correlates the classes of each sample (mean over B), intra the samples of each class (mean over K).
    UserError when the shapes differ. Source: Huang et al. 2022 (arXiv 2205.10536);
    hunto/image_classification_sota@6f7a70a (1e-8 is added to the product of the norms).
    """
    p, q = (x.softmax(1) for x in _pair(student_logits, teacher_logits, temperature))
    inter, intra = (1 - _pearson(p, q, dim).mean() for dim in (1, 0))
    return temperature**2 * (beta * inter + gamma * intra)


def logit_standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of each sample's logits, (..., K) -> (..., K); feed both sides of a logit loss with it.

    The spread is the unbiased one, eps is added to it; the loss divides by its temperature afterwards.
    Source: Sun et al. 2024 (arXiv 2403.01427), Algorithm 1; sunshangquan/logit-standardization-KD.
    """
    z = full(logits)
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + eps)


def sinkhorn(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Entropic transport cost between the B student and B teacher answers of a batch: logits (B,K) -> scalar.

    The cost of moving student i to teacher j is |p_i - q_j|_1; the plan exp(-cost / epsilon) is scaled to
    row and column sums of one, `iterations` times rows then columns, in log space: a small epsilon does not
    underflow. Gradients pass through the scaling. "sum" adds cost x plan as the authors' code does, before
    their factor of 0.001; "mean" divides by B, the cost under uniform marginals 1/B.
    UserError when the shapes differ.
    Source: Cui et al. 2024 (arXiv 2402.17110), batch-wise form; 2018cx/SinKD@2b91a8e.
    """
    p, q = (x.softmax(1) for x in _pair(student_logits, teacher_logits, temperature))
    if reduction not in ("sum", "mean"):
        raise UserError(f"sinkhorn: reduction {reduction!r} is unknown; use 'sum' or 'mean'")
    cost = torch.cdist(p, q, p=1)
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(1).log_softmax(0)
    total = (log_plan.exp() * cost).sum()
    return total if reduction == "sum" else total / len(p)


def _pair(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise UserError(
            f"logits of student {_text(student)} and teacher {_text(teacher)} must have one shape (batch, "
            "classes); check that both know the same classes"
        )
    return full(student) / temperature, full(teacher) / temperature


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label, any other) (B,2), and of each class among the others (B,K)."""
    # A finite stand-in for -inf at the label: its probability is exactly 0, and 0 x (low - low) is no NaN.
    others = logits.scatter(1, labels[:, None], torch.finfo(logits.dtype).min / 2)
    mass = others.logsumexp(1, keepdim=True)
    return F.log_softmax(torch.cat([logits.gather(1, labels[:, None]), mass], 1), 1), others - mass


def _kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    # From both logarithms, equal answers give exactly 0; cross entropy minus entropy leaves rounding error.
    return F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)


def _text(x: Tensor) -> str:
    return str(tuple(x.shape))
