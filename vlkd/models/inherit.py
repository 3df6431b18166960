"""A student CLIP starts from its teacher's weights: even layers, leading heads, channels and units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower
from vlkd.models.tokenizer import FULL_VOCABULARY

PARTS = ("visual", "text")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_PATCH = "conv1.weight"


@dataclass
class Inherited:
    """What one half of a student took over: numbers of values, and the names of tensors it did not."""

    part: str
    copied: int = 0
    sliced: int = 0
    kept: int = 0
    kept_names: list[str] = field(default_factory=list)


@torch.no_grad()
def inherit_weights(
    student: CLIPTower, teacher: CLIPTower, parts: Sequence[str] = PARTS
) -> dict[str, Inherited]:
    """Overwrites the named halves of the student with weights of the teacher, where shapes allow.

    Transformers of open_clip: layers spread evenly over the teacher's, first and last among them; of each the
    first heads (of each head the first channels), the first units of the MLP, and the first channels of the
    residual stream and of the embedding. Another grid of patches: positions interpolated as open_clip does.
    Other networks: tensors of equal name and shape. What does not fit (another vocabulary or patch size, a
    student that is wider) keeps its values and is listed. An identical architecture is copied exactly.
    Raises UserError for an unknown part.
    Source: manual weight inheritance of TinyCLIP (arXiv 2309.12314), with leading instead of chosen channels.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"inherit: {part!r} is unknown; expected {' or '.join(PARTS)}")
    return {part: _inherit(part, student, teacher) for part in parts}


def _inherit(part: str, student: CLIPTower, teacher: CLIPTower) -> Inherited:
    from open_clip.model import resize_pos_embed

    own, given = (_tensors(tower, part) for tower in (student, teacher))
    blocks = [_blocks(tower, part) for tower in (student, teacher)]
    report = Inherited(part)
    for name, tensor in own.items():
        value = _fitted(name, tensor, given, *blocks) if all(blocks) else given.get(name)
        if part == "visual" and name == "positional_embedding" and value is not None:
            state = {"visual.positional_embedding": value}
            resize_pos_embed(state, student.model)
            value = state["visual.positional_embedding"]
        if name == "token_embedding.weight" and _vocabulary(student) != _vocabulary(teacher):
            value = None
        if value is None or value.shape != tensor.shape:
            report.kept += tensor.numel()
            report.kept_names.append(name)
            continue
        source = given.get(_source(name, blocks[0], blocks[1]) or "")
        if source is not None and source.shape == tensor.shape:
            report.copied += tensor.numel()
        else:
            report.sliced += tensor.numel()
        tensor.copy_(value)
    return report


def _tensors(tower: CLIPTower, part: str) -> dict[str, Tensor]:
    """The half's own tensors, named alike in both of open_clip's CLIP classes."""
    state = tower.model.state_dict()
    if part == "visual":
        return {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    return {k.removeprefix("text."): v for k, v in state.items() if not k.startswith("visual.")}


def _blocks(tower: CLIPTower, part: str) -> list[Any]:
    """Layers of the half's transformer; empty where it is none of open_clip's plain ones."""
    model = tower.model
    half = model.visual if part == "visual" else getattr(model, "text", model)
    blocks = getattr(getattr(half, "transformer", None), "resblocks", [])
    plain = all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
    return list(blocks) if plain else []


def _source(name: str, own: list[Any], given: list[Any]) -> str | None:
    """The teacher's name of a student's tensor; None for a layer beyond the teacher's."""
    found = _BLOCK.fullmatch(name)
    if found is None or not (own and given):
        return name
    layer, last = int(found[1]), len(own) - 1
    if len(own) > len(given):
        chosen = layer if layer < len(given) else None
    else:
        chosen = round(layer * (len(given) - 1) / last) if last else 0
    return None if chosen is None else f"transformer.resblocks.{chosen}.{found[2]}"


def _fitted(
    name: str, tensor: Tensor, given: dict[str, Tensor], own: list[Any], blocks: list[Any]
) -> Tensor | None:
    """The teacher's tensor cut to the student's shape (positions of images aside); None where none fits."""
    value = given.get(_source(name, own, blocks) or "")
    if value is None or value.ndim != tensor.ndim:
        return None
    if value.shape == tensor.shape and not name.endswith(
        ("in_proj_weight", "in_proj_bias", "out_proj.weight")
    ):
        return value
    if name == _PATCH and value.shape[2:] != tensor.shape[2:]:
        return None
    attends = ".attn." in name
    inside = _head_channels(own[0], blocks[0]) if attends else None
    if attends and inside is None:
        return None
    if inside is not None and "in_proj" in name:
        width = len(value) // 3
        value = value[torch.cat([block * width + inside for block in range(3)])]
    elif inside is not None and name.endswith("out_proj.weight"):
        value = value[:, inside]
    # The grid of image positions is not cut but interpolated, later; a special token comes first.
    keep_rows = name == "positional_embedding" and "class_embedding" in given
    for axis, size in enumerate(tensor.shape):
        if axis == 0 and keep_rows:
            continue
        if value.shape[axis] < size:
            return None
        value = value.narrow(axis, 0, size)
    return value


def _head_channels(own: Any, given: Any) -> Tensor | None:
    """Places in the teacher's attention of the student's channels, head by head; None where it is larger."""
    heads, width = own.attn.num_heads, own.attn.head_dim
    t_heads, t_width = given.attn.num_heads, given.attn.head_dim
    if heads > t_heads or width > t_width:
        return None
    return (torch.arange(heads)[:, None] * t_width + torch.arange(width)).flatten()


def _vocabulary(tower: CLIPTower) -> tuple[object, ...]:
    text = tower.architecture["model_cfg"]["text_cfg"]
    keys = ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs")
    return (text.get("vocab_size", FULL_VOCABULARY), *(str(text.get(key)) for key in keys))
