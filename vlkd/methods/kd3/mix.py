"""MixDistribution (perturbed images of a new distribution), its contrast, the weighted feature alignment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.losses.precision import full

Weighting = Callable[[Tensor, Tensor], Tensor]


@dataclass
class ContrastOptions:
    """Contrast between images and their MixDistribution.

    weight: factor of each contrastive loss, 0 for none of them (and no second pass). temperature: of NT-Xent.
    width: of the embeddings. concentration: of the Beta distribution of the mixing share. parity: also
    contrast the frozen teacher's features, as released, which trains the teacher's embedding only. cross:
    also contrast the student's images with the teacher's mixed images.
    """

    weight: float = 0.001
    temperature: float = 0.3
    width: int = 128
    concentration: float = 0.1
    parity: bool = True
    cross: bool = False


class Embedding(nn.Linear):
    """Linear map of pooled features to unit vectors: (B,D) -> (B,width)."""

    def forward(self, pooled: Tensor) -> Tensor:
        """(B,D) -> (B,width), length one."""
        return F.normalize(full(super().forward(pooled)), dim=1)


def mix_distribution(images: Tensor, permutation: Tensor, lam: Tensor) -> Tensor:
    """Images (B,C,H,W) whose channel means and deviations are mixed with those of other images.

    permutation (B,): the partner of each image; lam (B,) or (B,1,1,1): the image's own share of mean and
    deviation. Source: tangjialiang97/KD3@91e2d4c, which is MixStyle (arXiv 2104.02008) on input images.
    """
    with torch.no_grad():
        variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
        deviation = (variance + 1e-6).sqrt()
        lam = lam.to(images).view(-1, 1, 1, 1)
        new_mean = lam * mean + (1 - lam) * mean[permutation]
        new_deviation = lam * deviation + (1 - lam) * deviation[permutation]
    return (images - mean) / deviation * new_deviation + new_mean


def draw_mix(
    batch: int, concentration: float = 0.1, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """A random partner (B,) and share lam ~ Beta(concentration, concentration) (B,) for each image."""
    # Drawn on the CPU: its random state is in every checkpoint, and the same on any device.
    lam = torch.distributions.Beta(concentration, concentration).sample((batch,))
    return torch.randperm(batch).to(device), lam.to(device)


def sigmoid_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Weights (B,) in [0.5,1) from logits (B,K): sigmoid of their distance |z_S - z_T + 1e-6|, no gradient.

    The more the networks disagree, the more the image counts. Source: tangjialiang97/KD3@91e2d4c.
    """
    return F.pairwise_distance(student_logits.detach(), teacher_logits.detach(), eps=1e-6).sigmoid()


def even(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Weights (B,) of one: every image counts the same."""
    return student_logits.new_ones(len(student_logits))


def find_weighting(name: str) -> Weighting:
    """ "sigmoid_distance", "none" or "package.module:function". Raises UserError when there is none such."""
    own = {"sigmoid_distance": sigmoid_distance, "none": even}
    if name in own:
        return own[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise UserError(
            f"model.weighting={name}: expected {', '.join(own)} or package.module:function, a function of "
            "student and teacher logits (B,K) to weights (B,)"
        )
    return found


def weighted_feature_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    weighting: Weighting = sigmoid_distance,
) -> Tensor:
    """Mean over all elements of w_i (h_i - f_i)^2: maps (B,C,h,w), logits (B,K) -> scalar.

    No gradient flows through the weights or to the teacher. Source: tangjialiang97/KD3@91e2d4c.
    Raises UserError when the maps differ in shape.
    """
    if student_map.shape != teacher_map.shape:
        raise UserError(
            f"student map {tuple(student_map.shape)}, teacher map {tuple(teacher_map.shape)}: expected the "
            "same; project the student's channels and pool the larger grid first"
        )
    with torch.autocast(student_map.device.type, enabled=False):
        weights = weighting(full(student_logits), full(teacher_logits)).detach()
        squares = (full(student_map) - full(teacher_map.detach())).square()
        return (weights.view(-1, *[1] * (squares.ndim - 1)) * squares).mean()
