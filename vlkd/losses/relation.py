"""Relations between items: what a student copies is how far apart things are, not where they are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # Through the inner product, equal vectors would be sqrt(rounding error) = 3e-4 apart in float32.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
