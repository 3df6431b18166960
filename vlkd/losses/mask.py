"""Point-sampled mask losses of PointRend (arXiv 1912.08193) and Mask2Former (arXiv 2112.01527)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(features: Tensor, coords: Tensor) -> Tensor:
    """Bilinear values of features (M, C, h, w) at coords (M, P, 2), x and y in [0, 1] -> (M, C, P)."""
    grid = 2 * coords[:, :, None].to(features.dtype) - 1
    return F.grid_sample(features, grid, align_corners=False)[..., 0]


def random_points(count: int, points: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform coordinates (count, points, 2) in [0, 1); drawn where the generator lives, so reproducible."""
    source = generator.device if generator is not None else device
    return torch.rand(count, points, 2, generator=generator, device=source).to(device)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coordinates (M, P, 2) drawn mostly where mask logits (M, 1, h, w) are near zero.

    Of `oversample` x P uniform points the `importance` x P most uncertain are kept, the rest is uniform
    (PointRend, section 3.2).
    """
    masks = logits.shape[0]
    candidates = random_points(masks, int(num_points * oversample), logits.device, generator)
    certainty = sample_points(logits, candidates)[:, 0].abs()
    kept = int(importance * num_points)
    index = certainty.topk(kept, dim=1, largest=False).indices
    chosen = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, random_points(masks, num_points - kept, logits.device, generator)], dim=1)


def mask_bce(logits: Tensor, labels: Tensor, num_masks: float) -> Tensor:
    """Sigmoid cross entropy of logits and labels (M, P): mean over points, sum over masks / `num_masks`."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return loss.mean(1).sum() / num_masks


def dice(logits: Tensor, labels: Tensor, num_masks: float) -> Tensor:
    """1 - (2 py + 1) / (p + y + 1), p = sigmoid(logits), y = labels (M, P), sum over masks / `num_masks`."""
    probability, labels = logits.float().sigmoid(), labels.float()
    overlap = 2 * (probability * labels).sum(1) + 1
    total = probability.sum(1) + labels.sum(1) + 1
    return (1 - overlap / total).sum() / num_masks


def mask_losses(
    mask_logits: Tensor,
    masks: Tensor,
    num_masks: float,
    points: int = 12544,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """{"mask", "dice"} of matched mask logits (M, h, w) and masks (M, H, W), float32 also under autocast.

    `num_masks` is the number of masks the sums are divided by (of the whole batch, averaged over processes);
    M = 0 gives zeros that still carry a gradient.
    """
    if len(mask_logits) == 0:
        zero = mask_logits.float().sum() * 0.0
        return {"mask": zero, "dice": zero}
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = mask_logits[:, None].float()
        coords = uncertain_points(logits.detach(), points, oversample, importance, generator)
        with torch.no_grad():
            labels = sample_points(masks[:, None].float(), coords)[:, 0]
        values = sample_points(logits, coords)[:, 0]
        return {"mask": mask_bce(values, labels, num_masks), "dice": dice(values, labels, num_masks)}
