"""Agreement of features: maps stage by stage, and pooled features with a class' mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.precision import full

Maps = Sequence[Tensor] | Tensor


def at(student_maps: Maps, teacher_maps: Maps, p: int = 2) -> Tensor:
    """Attention transfer: lists of maps (B,C,h,w), any C -> scalar, summed over stages.

    A stage's attention is the channel mean of x^p, flattened and made unit; mean square difference over B and
    pixels. The larger grid is average-pooled to the smaller. UserError when stages or batches do not match.
    Source: Zagoruyko & Komodakis 2017 (arXiv 1612.03928), section 3.1; megvii-research/mdistiller@a08d46f.
    """
    stages = _stages("at", student_maps, teacher_maps)
    return _sum(F.mse_loss(_attention(s, p), _attention(t, p)) for s, t in stages)


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of features (B,...), the student's already regressed to the teacher's shape.

    UserError when the shapes differ. Source: Romero et al. 2015 (arXiv 1412.6550), Eq. 3;
    megvii-research/mdistiller@a08d46f.
    """
    return F.mse_loss(*_alike("fitnet", student, teacher))


def nst(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Neuron selectivity transfer: lists of maps (B,C,h,w), any C -> scalar, mean over B, summed over stages.

    See neuron_mmd; the larger grid is average-pooled to the smaller. UserError when stages or batches do not
    match. Source: Huang & Wang 2017 (arXiv 1707.01219), Eq. 5 and 7; megvii-research/mdistiller@a08d46f.
    """
    return _sum(
        neuron_mmd(s.flatten(2), t.flatten(2)).mean() for s, t in _stages("nst", student_maps, teacher_maps)
    )


def neuron_mmd(student: Tensor, teacher: Tensor, teacher_term: bool = True) -> Tensor:
    """Squared MMD of neurons under the kernel (a.b)^2: student (B,C,N), teacher (B,D,N) -> (B,).

    mean_ij (s_i.s_j)^2 - 2 mean_ij (s_i.t_j)^2 + mean_ij (t_i.t_j)^2, a neuron being its N values made unit.
    Without the last, constant term (teacher_term) it may be negative. Source: arXiv 1707.01219, Eq. 5 and 7.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = F.normalize(full(student), dim=2), F.normalize(full(teacher), dim=2)
        (c, n), d = s.shape[1:], t.shape[1]
        if n * (c + d) < c * c + d * d + c * d:
            # The sum of (a.b)^2 is the inner product of N x N Grams: no pair of neurons is formed.
            gram_s, gram_t = s.mT @ s / c, t.mT @ t / d
            value = (gram_s - gram_t).square().sum((1, 2))
            return value if teacher_term else value - gram_t.square().sum((1, 2))
        value = (s @ s.mT).square().mean((1, 2)) - 2 * (s @ t.mT).square().mean((1, 2))
        return value + (t @ t.mT).square().mean((1, 2)) if teacher_term else value


def vid(predicted: Tensor, teacher: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Variational information distillation: mean over all elements of half the Gaussian negative log density.

    predicted, teacher (B,C,...): the mean regressed from the student and the teacher's features; the variance
    of channel c is softplus(log_scale_c) + eps, log_scale (C,). The constant log(2 pi) is left out.
    UserError when the shapes differ. Source: Ahn et al. 2019 (arXiv 1904.05835), Eq. 4-5;
    megvii-research/mdistiller@a08d46f.
    """
    mean, target = _alike("vid", predicted, teacher)
    if log_scale.shape != mean.shape[1:2]:
        raise UserError(f"vid: log_scale {_text(log_scale)}, expected ({mean.shape[1]},): one a channel")
    variance = (F.softplus(full(log_scale)) + eps).view(-1, *[1] * (mean.ndim - 2))
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 of maps before the ReLU, (B,C,h,w) of one shape -> scalar: summed over C,h,w, mean over B.

    The target is max(teacher, margin), margin (C,) or (1,C,1,1) and not positive; where it is not positive,
    only a student above it pays. UserError when the shapes differ.
    Source: Heo et al. 2019 (arXiv 1904.01866), Eq. 2-3; megvii-research/mdistiller@a08d46f.
    """
    s, t = _alike("ofd", student, teacher)
    target = torch.maximum(t, margin.to(t).reshape(1, -1, 1, 1))
    pays = (s > target) | (target > 0)
    return ((s - target).square() * pays).sum() / len(s)


def review_kd(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Pyramid loss of ReviewKD: lists of maps (B,C,h,w), alike level by level -> scalar, summed over levels.

    Mean square difference on the full grid and on those of 4, 2 and 1 cells a side that are smaller, weighted
    1, 1/2, 1/4, 1/8 as far as they go and divided by the sum of weights. UserError when levels do not match.
    Source: Chen et al. 2021 (arXiv 2104.09044), section 3.4; megvii-research/mdistiller@a08d46f.
    """
    levels = zip(*_lists("review_kd", student_maps, teacher_maps), strict=True)
    return _sum(_pyramid(*_alike("review_kd", s, t)) for s, t in levels)


def nd(
    student: Tensor,
    teacher: Tensor,
    class_means: Tensor,
    labels: Tensor | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Norm and direction of features (B,D): mean over B, or (B,) with per_sample, of 1 - s.e / max(|s|,|t|).

    e is the unit vector of the teacher's class mean: class_means (K,D) at labels (B,) int64 in [0,K), or
    (B,D) one for each sample without labels. Values lie in [0,2]; samples without any norm give 1.
    UserError when shapes do not fit. Source: Wang et al. 2023 (arXiv 2305.17007);
    WangYZ1608/Knowledge-Distillation-via-ND@fc6f3f9.
    """
    s, t = _alike("nd", student, teacher)
    centres = class_means if labels is None else class_means[labels]
    if centres.shape != s.shape:
        raise UserError(
            f"nd: class means {_text(class_means)} do not fit features {_text(s)}; expected (classes, width) "
            "with labels, or one row a sample without; project the student to the teacher's width first"
        )
    direction = F.normalize(full(centres), dim=1).to(s.dtype)
    s_norm, t_norm = torch.linalg.vector_norm(s, dim=1), torch.linalg.vector_norm(t, dim=1)
    # On a tie the gradient goes through the student's norm whole; torch.maximum would halve it.
    norm = torch.where(s_norm >= t_norm, s_norm, t_norm)
    values = 1 - (s * direction).sum(1) / norm.where(norm > 0, 1)
    return values if per_sample else values.mean()


def _attention(x: Tensor, p: int) -> Tensor:
    return F.normalize(x.pow(p).mean(1).flatten(1))


def _pyramid(student: Tensor, teacher: Tensor) -> Tensor:
    # Pooling is linear: one pooled difference serves instead of two pooled maps.
    difference = student - teacher
    sides = [side for side in (4, 2, 1) if side < min(difference.shape[-2:])]
    total = difference.square().mean()
    for power, side in enumerate(sides, 1):
        total = total + F.adaptive_avg_pool2d(difference, side).square().mean() / 2**power
    return total / (2 - 0.5 ** len(sides))


def _sum(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _lists(name: str, student_maps: Maps, teacher_maps: Maps) -> tuple[list[Tensor], list[Tensor]]:
    student, teacher = ([x] if isinstance(x, Tensor) else list(x) for x in (student_maps, teacher_maps))
    if len(student) != len(teacher) or not student:
        raise UserError(
            f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher; "
            "tap as many of both"
        )
    return student, teacher


def _stages(name: str, student_maps: Maps, teacher_maps: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    """Stages on the smaller of both grids."""
    for s, t in zip(*_lists(name, student_maps, teacher_maps), strict=True):
        if s.ndim != 4 or t.ndim != 4 or len(s) != len(t):
            raise UserError(
                f"{name}: maps of student {_text(s)} and teacher {_text(t)}, expected (B,C,h,w) of one batch"
            )
        size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
        yield pooled_to(full(s), size), pooled_to(full(t), size)


def pooled_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B,C,h,w) average-pooled to the grid `size`; as they are where they have it."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.adaptive_avg_pool2d(x, (size[0], size[1]))


def _alike(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise UserError(
            f"{name}: student {_text(student)} and teacher {_text(teacher)} must have one shape; bring the "
            "student to the teacher's width and grid first"
        )
    return full(student), full(teacher)


def _text(x: Tensor) -> str:
    return str(tuple(x.shape))
