"""Relations between items: what a student copies is how far apart things are, not where they are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.precision import full

KDForm = Literal["inner", "distance", "vanilla"]


def text_guided_kd(
    student: Tensor,
    teacher: Tensor,
    text: Tensor,
    image_ids: Tensor,
    alpha: Tensor | float = 1.0,
    form: KDForm = "inner",
) -> Tensor:
    """Text-guided distillation of N regions: student, teacher (N,D), text (N,E), image_ids (N,) -> scalar.

    All vectors are made unit inside. Over ordered pairs i, j of the same image (i = j included):
    "inner" (alpha^2 t_i.t_j - v_i.c_j)^2; "distance" (|v_i - c_j| - alpha |t_i - t_j|)^2. These and the plain
    terms |v_i - c_i|^2 are averaged together; "vanilla" has the plain terms alone. N = 0 gives a zero that
    still carries a gradient. Source: GKC (arXiv 2303.09181), loss_text_kd of yongliu20/GKC@21313c8
    ("inner"); the published distance form as restated in arXiv 2404.07448, supplement Eq. 3.
    """
    if form not in ("inner", "distance", "vanilla"):
        raise ValueError(f"form {form!r}: expected inner, distance or vanilla")
    if len(student) == 0:
        return student.float().sum() * 0.0
    with torch.autocast(student.device.type, enabled=False):
        v, c = _unit(student), _unit(teacher)
        plain = (v - c).square().sum(-1)
        if form == "vanilla":
            return plain.mean()
        t = _unit(text)
        same = image_ids[:, None] == image_ids[None]
        if form == "inner":
            pair = (alpha**2 * (t @ t.T) - v @ c.T).square()
        else:
            pair = (_distance(v, c) - alpha * _distance(t, t)).square()
        total = (pair * same).sum() + plain.sum()
        return total / (same.sum() + len(plain))


def rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relations of B items: distances of pairs, angles of triplets; student (B,D), teacher (B,E) -> scalar.

    Distances are divided by their mean over the B(B-1) pairs; the angle of triplet i, j, k is the cosine at
    i. Both go through smooth L1 (delta 1), averaged over B^2 pairs and B^3 triplets, zeros included.
    UserError when the batches differ. Source: Park et al. 2019 (arXiv 1904.05068), section 3.2;
    megvii-research/mdistiller@a08d46f.
    """
    with torch.autocast(student.device.type, enabled=False):
        (s, s_distance), (t, t_distance) = map(_layout, _items("rkd", student, teacher))
        total = s.new_zeros(())
        if distance_weight:
            total = total + distance_weight * F.smooth_l1_loss(_by_mean(s_distance), _by_mean(t_distance))
        if angle_weight:
            total = total + angle_weight * F.smooth_l1_loss(_angles(s, s_distance), _angles(t, t_distance))
        return total


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss of B items: features or maps (B,...) of any widths -> scalar.

    Mean square difference of the B x B inner products of the flattened items, rows made unit.
    UserError when the batches differ. Source: Tung & Mori 2019 (arXiv 1907.09682);
    megvii-research/mdistiller@a08d46f.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = (F.normalize(x @ x.T) for x in _items("sp", student, teacher))
        return F.mse_loss(s, t)


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer of B items: student (B,...), teacher (B,...) -> scalar.

    Cosines moved to [0, 1] and divided by their row sum are probabilities; the B^2 terms of
    KL(teacher || student) are averaged. UserError when the batches differ.
    Source: Passalis & Tefas 2018 (arXiv 1803.10837); megvii-research/mdistiller@a08d46f.
    """
    with torch.autocast(student.device.type, enabled=False):
        p, q = (_neighbours(x, eps) for x in _items("pkt", student, teacher))
        return (q * ((q + eps) / (p + eps)).log()).mean()


def _items(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if len(student) != len(teacher) or min(student.ndim, teacher.ndim) < 2:
        raise UserError(
            f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be features "
            "(batch, ...) of the same batch"
        )
    return full(student).flatten(1), full(teacher).flatten(1)


def _layout(x: Tensor) -> tuple[Tensor, Tensor]:
    # Only differences matter; without the common part, inner products keep more digits of them.
    x = x - x.mean(0)
    return x, _distance(x, x)


def _by_mean(distance: Tensor) -> Tensor:
    n = len(distance)
    return distance / (distance.sum() / max(n * (n - 1), 1)).clamp(min=1e-6)


def _angles(x: Tensor, distance: Tensor) -> Tensor:
    """Cosines (B,B,B) of x_j - x_i and x_k - x_i, without the B x B x D differences; 0 where one is 0."""
    gram = x @ x.T
    product = gram - gram[:, :, None]
    product -= gram[:, None]
    product += gram.diagonal()[:, None, None]
    inverse = distance.masked_fill(distance == 0, torch.inf).reciprocal()
    return product * inverse[:, :, None] * inverse[:, None]


def _neighbours(x: Tensor, eps: float) -> Tensor:
    x = x / (x.norm(dim=1, keepdim=True) + eps)
    similar = (x @ x.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(full(x), dim=-1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # Through the inner product, equal vectors would be sqrt(rounding error) = 3e-4 apart in float32.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
