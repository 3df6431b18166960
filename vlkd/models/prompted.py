"""Prompted CLIP models as files: the prompts alone, and which CLIP model they belong to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower, TextEncoder, build_clip, text_from_card
from vlkd.models.prompt import PromptedTower, TextPrompts, VisualPrompts
from vlkd.models.weights import read_weights

_PREFIX = "prompts."
_DEEP = r"transformer\.resblocks\.(\d+)\.VPT_shallow"  # a layer's prompts in released checkpoints


@dataclass(frozen=True)
class PromptSize:
    """length: tokens in each prompted layer. depth: number of prompted layers, from the first on."""

    length: int = 4
    depth: int = 9


def build_prompted(
    tower: CLIPTower, visual: PromptSize | None, text: PromptSize | None, words: str | None = "a photo of a"
) -> PromptedTower:
    """A tower with fresh prompts. Raises UserError where it does not take them, see vlkd.models.prompt."""
    if visual is None and text is None:
        raise UserError("model.visual and model.text: both null; give at least one of them, or no stage 1")
    return PromptedTower(
        tower,
        None if visual is None else VisualPrompts(tower.model.visual, visual.length, visual.depth),
        None if text is None else TextPrompts(tower, text.length, text.depth, words),
    )


def prompt_card(model: PromptedTower, name: str, pretrained: str | None) -> dict[str, Any]:
    """What the card of a bundle of prompts says of its CLIP model, which does not travel along."""
    sizes = {key: asdict(_size(part)) for key, part in model.prompts.items()}
    return {
        "kind": "prompts",
        "architecture": {
            "clip": {"name": name, "pretrained": pretrained, "identity": model.tower.identity},
            **{key: sizes.get(key) for key in ("visual", "text")},
        },
        "input_spec": model.spec.to_dict(),
    }


def prompted_from_card(card: dict[str, Any], tensors: dict[str, Tensor], source: str) -> PromptedTower:
    """The CLIP model that a bundle of prompts names, with these prompts.

    Raises UserError where its weights are others than the prompts were learned with, and where the prompts do
    not have the depth, length and width that the card tells.
    """
    architecture = card["architecture"]
    clip = architecture["clip"]
    tower = build_clip(clip["name"], clip["pretrained"])
    if tower.identity != clip["identity"]:
        raise UserError(
            f"{source}: its prompts were learned with the CLIP model {clip['identity']}, {clip['name']} is "
            f"now {tower.identity}; fetch those weights, or train the prompts again"
        )
    visual, text = (architecture[key] and PromptSize(**architecture[key]) for key in ("visual", "text"))
    model = build_prompted(tower, visual, text, words=None)
    model.load_prompts({key.removeprefix(_PREFIX): x for key, x in tensors.items()}, source)
    return model.eval().requires_grad_(False)


def released_prompts(path: str | Path, clip: str, pretrained: str | None = None) -> PromptedTower:
    """Prompts of a checkpoint of the authors' code (PromptKD stage 1), on the CLIP model they belong to.

    Reads "prompt_learner.ctx", "image_encoder.VPT" and each layer's "VPT_shallow"; its copy of the CLIP model
    and its class names are passed over. Raises UserError where these are missing or do not fit.
    Source of the names: zhengli97/PromptKD@ec244f7.
    """
    state = {key.removeprefix("module."): x for key, x in read_weights(path).items()}
    tensors = {}
    for key, first, tower in (
        ("visual", "image_encoder.VPT", "image_encoder"),
        ("text", "prompt_learner.ctx", "text_encoder"),
    ):
        found = {int(m[1]): x for k, x in state.items() if (m := re.fullmatch(rf"{tower}\.{_DEEP}", k))}
        if first not in state or sorted(found) != [*range(1, len(found) + 1)]:
            raise UserError(
                f"{path}: no {first} with the layers above it; expected a checkpoint of PromptKD's stage 1"
            )
        tensors[f"{key}.values"] = torch.stack([state[first], *(found[k] for k in sorted(found))]).float()
    depths = {key: PromptSize(len(x[0]), len(x)) for key, x in tensors.items()}
    model = build_prompted(
        build_clip(clip, pretrained), depths["visual.values"], depths["text.values"], words=None
    )
    model.load_prompts(tensors, str(path))
    return model.eval().requires_grad_(False)


def text_card(model: PromptedTower | CLIPTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of the text half with its prompts, to travel with a student ("text.", "context.")."""
    tower = model.tower if isinstance(model, PromptedTower) else model
    card = {**tower.architecture, "identity": tower.identity}
    tensors = {f"text.{key}": x for key, x in tower.text_tensors().items()}
    if isinstance(model, PromptedTower) and "text" in model.prompts:
        card["context"] = asdict(_size(model.prompts["text"]))
        tensors["context.values"] = model.prompt_tensors()["text.values"]
    return card, tensors


def text_encoder(
    card: dict[str, Any], tensors: dict[str, Tensor], source: str
) -> TextEncoder | PromptedTower:
    """Inverse of text_card; other tensors are passed over. Raises UserError where card and tensors differ."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}

    card = dict(card)
    context = card.pop("context", None)
    encoder = text_from_card(card, part("text."))
    if context is None:
        return encoder
    model = PromptedTower(encoder, text=TextPrompts(encoder, **context, words=None))
    model.load_prompts({f"text.{key}": x.float() for key, x in part("context.").items()}, source)
    return model.eval()


def learns_context(model: Any) -> bool:
    """Whether the text half has prompts of its own, so that it takes bare names and no templates."""
    return isinstance(model, PromptedTower) and "text" in model.prompts


def _size(prompts: Any) -> PromptSize:
    return PromptSize(prompts.length, prompts.depth)
