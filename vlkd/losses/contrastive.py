"""Contrast: of images (or regions) with texts, of two views, of a student with all that a teacher said."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkd.errors import UserError
from vlkd.losses.memory import CRDMemory, similarities, weighted_rows
from vlkd.losses.precision import full


def clip_loss(image: Tensor, text: Tensor, scale: Tensor | float, same_text: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy of B image-text pairs: image, text (B,D) unit vectors, scale the logit factor.

    same_text (B,B) bool marks pairs with an identical text; they are no negatives of each other.
    Source: CLIP (Radford et al. 2021), figure 3.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = negatives_only(scale * image.float() @ text.float().T, same_text)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def negatives_only(logits: Tensor, same_text: Tensor | None) -> Tensor:
    """Logits (B,B) with -inf off the diagonal where same_text (B,B) bool says that two texts are one."""
    if same_text is None:
        return logits
    others = same_text & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return logits.masked_fill(others, float("-inf"))


def grounding_loss(
    regions: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor, scale: Tensor | float
) -> Tensor:
    """Caption grounding of B images: regions (B,R,D) and words (B,W,D) unit vectors with masks (B,R), (B,W).

    Each image is compared with each caption by soft alignment (word to region, region to word) of the scaled
    cosines; both scores are contrasted over images and over captions, the mean of the four cross entropies is
    returned. Images without regions or words take no part; fewer than two leave a zero.
    Source: OVR-CNN (Zareian et al. 2021) as used in yongliu20/GKC@21313c8.
    """
    used = region_mask.any(1) & word_mask.any(1)
    if int(used.sum()) < 2:
        return regions.float().sum() * 0.0
    with torch.autocast(regions.device.type, enabled=False):
        r, w, rm, wm = regions[used].float(), words[used].float(), region_mask[used], word_mask[used]
        score = scale * torch.einsum("brd,cwd->bcrw", r, w)
        allowed_r, allowed_w = rm[:, None, :, None], wm[None, :, None, :]
        by_word = score.masked_fill(~allowed_r, float("-inf")).softmax(2).nan_to_num(0.0)
        by_region = score.masked_fill(~allowed_w, float("-inf")).softmax(3).nan_to_num(0.0)
        word_score = ((by_word * score).sum(2) * wm[None]).sum(2) / wm.sum(1)
        region_score = ((by_region * score).sum(3) * rm[:, None]).sum(2) / rm.sum(1)[:, None]
        target = torch.arange(len(r), device=r.device)
        return torch.stack(
            [F.cross_entropy(s, target) for s in (word_score, word_score.T, region_score, region_score.T)]
        ).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrast of B pairs: a, b (B,D), made unit inside -> scalar in nats, mean over 2B anchors.

    Each of the 2B vectors has its counterpart as positive, the other 2B-2 as negatives; cosine / temperature.
    UserError when the shapes differ. Source: SimCLR (arXiv 2002.05709), Eq. 1; tangjialiang97/KD3@91e2d4c.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise UserError(
            f"nt_xent: {tuple(a.shape)} and {tuple(b.shape)}, expected two (batch, width) of one shape"
        )
    with torch.autocast(a.device.type, enabled=False):
        z = F.normalize(torch.cat([full(a), full(b)]), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


def crd(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor,
    memory: CRDMemory,
    contrast: Tensor | None = None,
    generator: torch.Generator | None = None,
    update: bool = True,
) -> Tensor:
    """Contrastive representation distillation of B unit vectors (B,D) with a memory -> scalar in nats.

    Each side's vectors are told from K negatives in the other side's bank: 1 + K decisions summed, mean over
    B, both sides added. indices (B,): the samples' places in the training set, each at most once; contrast
    (B,1+K): places to compare with, the own one first, else drawn by `generator`. In training mode the memory
    then takes the batch in: call once a step, and again on the same batch only with update=False.
    UserError when shapes or indices do not fit the memory. Differentiable once.
    Source: CRD (arXiv 1910.10699), Eq. 10-18; megvii-research/mdistiller@a08d46f.
    """
    _check_memory(student, teacher, indices, memory)
    with torch.autocast(student.device.type, enabled=False):
        s, t = full(student), full(teacher)
        if contrast is None:
            contrast = memory.draw(indices, generator)
        known, temperature = memory.log_partition, memory.temperature
        s_loss, s_partition = _NoiseContrast.apply(s, memory.teacher, contrast, known[0], temperature)
        t_loss, t_partition = _NoiseContrast.apply(t, memory.student, contrast, known[1], temperature)
        if memory.training and update:
            memory.fix(torch.stack([s_partition, t_partition]))
            memory.update(s, t, indices)
        return s_loss + t_loss


class _NoiseContrast(torch.autograd.Function):
    """One side of CRD. The gradient is made with the loss: the bank may then change before backward."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, bank: Tensor, contrast: Tensor, log_partition: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        bank = bank.to(vectors.dtype)
        logits = similarities(vectors, bank, contrast) / temperature
        first = logits.flatten().logsumexp(0) + math.log(len(bank) / logits.numel())
        log_partition = torch.where(log_partition.isnan(), first, log_partition.to(first))
        with torch.enable_grad():
            leaf = logits.requires_grad_()
            loss = _decisions(leaf - log_partition, len(bank))
            (weights,) = torch.autograd.grad(loss, leaf)
        ctx.save_for_backward(weighted_rows(weights / temperature, bank, contrast))
        ctx.mark_non_differentiable(log_partition)
        return loss.detach(), log_partition

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _decisions(log_density: Tensor, items: int, eps: float = 1e-7) -> Tensor:
    """-log D of the first column and -log(1 - D) of the others, noise K / items: (B,1+K) -> mean over B."""
    noise = (log_density.shape[1] - 1) / items
    odds = log_density - math.log(noise + eps)
    total = F.softplus(-odds[:, 0]).sum() + F.softplus(odds[:, 1:]).sum()
    return total / len(odds) + (log_density.shape[1] - 1) * math.log1p(eps / noise)


def _check_memory(student: Tensor, teacher: Tensor, indices: Tensor, memory: CRDMemory) -> None:
    expected = (len(indices), memory.student.shape[1])
    if student.shape != expected or teacher.shape != expected:
        raise UserError(
            f"crd: student {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected {expected}: a "
            "vector of the memory's width for each index"
        )
    # On a GPU the check would cost a wait for the device.
    if (
        indices.device.type == "cpu"
        and len(indices)
        and not 0 <= indices.min() <= indices.max() < memory.items
    ):
        raise UserError(
            f"crd: indices {int(indices.min())} to {int(indices.max())} in a memory of {memory.items} "
            "samples; the memory must be as long as the training set"
        )
