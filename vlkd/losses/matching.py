"""One-to-one assignment of queries to ground-truth segments (arXiv 2005.12872, 2112.01527)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.mask import random_points, sample_points

Pair = tuple[Tensor, Tensor]


def mask_cost(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice of every pair of logits (Q, P) and masks (M, P) in [0, 1] -> two (Q, M)."""
    masks = masks.to(logits.dtype)
    # bce(x, y) = softplus(x) - x y, so that only the product with y depends on the pair.
    bce = (F.softplus(logits).sum(1, keepdim=True) - logits @ masks.T) / logits.shape[1]
    probability = logits.sigmoid()
    overlap = 2 * (probability @ masks.T) + 1
    total = probability.sum(1, keepdim=True) + masks.sum(1) + 1
    return bce, 1 - overlap / total


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
    points: int = 12544,
    generator: torch.Generator | None = None,
) -> Pair:
    """Cheapest assignment for one image -> (query indices (N,), segment indices (N,)), N = min(Q, M).

    class_logits (Q, K+1), mask_logits (Q, h, w), labels (M,), masks (M, H, W). Cost = `weights` over
    -p(class), point-sampled cross entropy and dice; one set of `points` serves all pairs. Raises UserError
    where the cost is not finite.
    """
    return match_clip(
        class_logits[None], mask_logits[None], labels, masks[None], None, weights, points, generator
    )


@torch.no_grad()
def match_clip(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    present: Tensor | None = None,
    weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
    points: int = 12544,
    generator: torch.Generator | None = None,
) -> Pair:
    """`match` of queries to objects through T frames, one assignment for all (Mask2Former-VIS, 2112.10764).

    class_logits (T, Q, K+1), mask_logits (T, Q, h, w), labels (M,), masks (T, M, H, W), present (T, M) bool:
    where an object is seen, everywhere by default. p(class) is the mean over the frames in which the object
    is seen; cross entropy and dice are those of the whole tube.
    """
    if len(labels) == 0:
        empty = torch.empty(0, dtype=torch.long, device=mask_logits.device)
        return empty, empty
    with torch.autocast(mask_logits.device.type, enabled=False):
        coords = random_points(len(masks), points, mask_logits.device, generator)
        values = sample_points(mask_logits.float(), coords).transpose(0, 1).flatten(1)
        truth = sample_points(masks.float(), coords).transpose(0, 1).flatten(1)
        bce, dice = mask_cost(values, truth)
        seen = torch.ones(masks.shape[:2], device=bce.device) if present is None else present.float()
        probability = class_logits.float().softmax(-1)[..., labels]
        probability = (probability * seen[:, None]).sum(0) / seen.sum(0).clamp(min=1)
        cost = -weights[0] * probability + weights[1] * bce + weights[2] * dice
    if not bool(torch.isfinite(cost).all()):
        raise UserError(
            "matching: class or mask logits hold NaN or infinite values; the training has diverged: "
            "lower the learning rate, clip gradients or train in float32"
        )
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    device = mask_logits.device
    return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)


def match_batch(
    class_logits: Tensor | Sequence[Tensor],
    mask_logits: Tensor,
    targets: Sequence[dict[str, Tensor]],
    weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
    points: int = 12544,
    generator: torch.Generator | None = None,
) -> list[Pair]:
    """`match` per image: class_logits (B, Q, K+1), mask_logits (B, Q, h, w), targets "labels", "masks"."""
    return [
        match(c, m, t["labels"], t["masks"], weights, points, generator)
        for c, m, t in zip(class_logits, mask_logits, targets, strict=True)
    ]
