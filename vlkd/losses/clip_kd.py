"""A small CLIP learns from a large one: its vectors, contrast with them, and tables of similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.contrastive import negatives_only
from vlkd.losses.logit import kd
from vlkd.losses.precision import full


def feature_mimicry(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of B vectors (B,D), made unit inside: summed over D, mean over B; in [0,4].

    The teacher gets no gradient. UserError when the shapes differ.
    Source: FD of CLIP-KD (arXiv 2307.12732).
    """
    s, t = _vectors("feature_mimicry", student, teacher)
    with torch.autocast(s.device.type, enabled=False):
        return (F.normalize(s, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean()


def interactive_contrastive(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Tensor | float,
    same_text: Tensor | None = None,
) -> Tensor:
    """Contrast of the student's images with the teacher's texts and of its texts with the teacher's images.

    All (B,D) unit vectors of B pairs, scale the logit factor; mean of the two cross entropies, in nats.
    same_text (B,B) bool marks pairs with an identical text; they are no negatives of each other. The teacher
    gets no gradient. UserError when the shapes differ. Source: ICL of CLIP-KD (arXiv 2307.12732).
    """
    name = "interactive_contrastive"
    s_image, t_text = _vectors(name, student_image, teacher_text)
    s_text, t_image = _vectors(name, student_text, teacher_image)
    with torch.autocast(s_image.device.type, enabled=False):
        target = torch.arange(len(s_image), device=s_image.device)
        logits = (scale * s_image @ t_text.T, scale * s_text @ t_image.T)
        return torch.stack([F.cross_entropy(negatives_only(x, same_text), target) for x in logits]).mean()


def affinity_mimicry(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    student_scale: Tensor | float,
    teacher_scale: Tensor | float,
    temperature: float = 1.0,
) -> Tensor:
    """KL of the student's image-text affinities from the teacher's, both directions, mean of the two.

    An affinity is the softmax of scale x cosine / temperature over the B texts of an image, or the B images
    of a text; (B,D) unit vectors, student and teacher each of their own D. As in `kd` times temperature^2.
    The paper has the cross entropy, which differs by the teacher's entropy: same gradient, but equal
    affinities give exactly 0. The teacher gets no gradient. UserError when the shapes differ.
    Source: TinyCLIP (arXiv 2309.12314), affinity mimicking; the same is CRD of CLIP-KD (arXiv 2307.12732).
    """
    s_image, s_text = _vectors("affinity_mimicry", student_image, student_text, frozen=False)
    t_image, t_text = _vectors("affinity_mimicry", teacher_image, teacher_text)
    with torch.autocast(s_image.device.type, enabled=False):
        student = student_scale * s_image @ s_text.T
        teacher = torch.as_tensor(teacher_scale).detach() * t_image.detach() @ t_text.T
        return (kd(student, teacher, temperature) + kd(student.T, teacher.T, temperature)) / 2


def _vectors(name: str, first: Tensor, second: Tensor, frozen: bool = True) -> tuple[Tensor, Tensor]:
    """Both in full precision, the second without gradient where it is `frozen`."""
    if first.ndim != 2 or first.shape != second.shape:
        raise UserError(
            f"{name}: vectors {tuple(first.shape)} and {tuple(second.shape)}, expected two (batch, width) of "
            "one shape; project the student to the teacher's width first"
        )
    return full(first), full(second.detach() if frozen else second)
