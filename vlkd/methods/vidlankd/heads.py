"""What lies between the student's states and the teacher's: a head for each objective, off after training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.weights import fit_weights

HeadKind = Literal["mlp", "linear", "none"]
_EPSILON = 1e-12  # of BERT's LayerNorms, which the released heads share


def build_head(kind: HeadKind, student_width: int, teacher_width: int, same_width: bool = True) -> nn.Module:
    """States (...,student_width) -> (...,teacher_width), not made unit.

    mlp: Linear, GELU, LayerNorm, Linear, as released; linear: a bridge; none: the states as they are, which
    needs equal widths where the loss compares them (`same_width`). Raises UserError otherwise.
    Source: VidLanKD (arXiv 2107.02681), appendix; zinengtang/VidLanKD@46bae35.
    """
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(student_width, student_width),
            nn.GELU(),
            nn.LayerNorm(student_width, eps=_EPSILON),
            nn.Linear(student_width, teacher_width),
        )
    if kind == "linear":
        return nn.Linear(student_width, teacher_width)
    if same_width and student_width != teacher_width:
        raise UserError(
            f"model.head=none: the student is {student_width} wide, the teacher {teacher_width}; choose mlp, "
            "or linear as the bridge"
        )
    return nn.Identity()


def build_heads(
    names: Iterable[str], kind: HeadKind, student_width: int, teacher_width: int
) -> nn.ModuleDict:
    """One head for each objective. Raises UserError as `build_head`."""
    # NST compares tokens with tokens, so widths may differ without a head.
    return nn.ModuleDict(
        {name: build_head(kind, student_width, teacher_width, name != "nst") for name in names}
    )


def heads_of(card: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str = "bundle") -> nn.ModuleDict:
    """The heads of a student's bundle, in eval mode; empty where it has none."""
    facts = card["architecture"].get("heads") or {"names": [], "kind": "none", "student": 0, "teacher": 0}
    heads = build_heads(facts["names"], facts["kind"], facts["student"], facts["teacher"])
    load_heads(heads, tensors, source)
    return heads.eval()


def load_heads(heads: nn.ModuleDict, tensors: Mapping[str, Tensor], source: str) -> None:
    """Take the heads' weights from a bundle's tensors. Raises UserError where they do not fit."""
    state = {key.removeprefix("heads."): x for key, x in tensors.items() if key.startswith("heads.")}
    if heads.state_dict():
        fit_weights(heads, state, source)
