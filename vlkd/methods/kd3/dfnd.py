"""DFND, the baseline that KD3 is compared with: certain images once and for all, a noisy-label classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError


def self_cross_entropy(teacher_logits: Tensor) -> Tensor:
    """Cross entropy (N,) of the teacher's logits (N,K) to its own decision: low where it is certain.

    DFND keeps the images with the lowest. Source: huawei-noah/Efficient-Computing@225ddd2.
    """
    return F.cross_entropy(teacher_logits.float(), teacher_logits.argmax(1), reduction="none")


class NoiseAdaptation(nn.Module):
    """Learnable matrix Q of how the teacher's decisions err: row = true class, column = decided class.

    Its diagonal is the teacher's accuracy, each row's rest is shared out by a softmax of free values.
    Source: DFND (CVPR 2021), huawei-noah/Efficient-Computing@225ddd2.
    Raises UserError when `accuracy` lies outside (0,1].
    """

    def __init__(self, num_classes: int, accuracy: float) -> None:
        super().__init__()
        if not 0 < accuracy <= 1:
            raise UserError(f"model.teacher_accuracy={accuracy}: expected a fraction above 0, at most 1")
        self.accuracy = accuracy
        self.free = nn.Parameter(torch.zeros(num_classes, num_classes - 1))

    def matrix(self) -> Tensor:
        """Q (K,K); rows sum to one."""
        classes = len(self.free)
        off_diagonal = ~torch.eye(classes, dtype=torch.bool, device=self.free.device)
        wrong = self.free.new_zeros(classes, classes).masked_scatter(off_diagonal, self.free.softmax(1))
        return wrong * (1 - self.accuracy) + (~off_diagonal) * self.accuracy

    def forward(self, student_logits: Tensor, decisions: Tensor) -> Tensor:
        """Mean negative log of softmax(z_S) Q at the teacher's decisions: (B,K), (B,) -> scalar."""
        with torch.autocast(student_logits.device.type, enabled=False):
            noisy = student_logits.float().softmax(1) @ self.matrix()
            return F.nll_loss(noisy.clamp(min=torch.finfo(noisy.dtype).tiny).log(), decisions)
