"""Where stage 2 gets its teacher: prompts of stage 1, any CLIP model, or an open classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.engine.hub import Zoo, resolve
from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.models.open_classifier import OpenClassifier, open_classifier_from_card
from vlkd.models.prompt import PromptedTower
from vlkd.models.prompted import learns_context, prompted_from_card, text_card
from vlkd.text import ClassVectors
from vlkd.text.templates import templates


@dataclass
class Source:
    """A teacher, its card ({} for an open_clip model), class vectors and text half that its bundle brings."""

    model: PromptedTower | CLIPTower | OpenClassifier
    card: dict[str, Any] = field(default_factory=dict)
    vectors: ClassVectors | None = None
    text: dict[str, Tensor] = field(default_factory=dict)


def load_source(name: str, pretrained: str | None = None) -> Source:
    """The teacher of that name: bundle, run folder, zoo name, or CLIP model as for build_clip.

    Raises UserError for bundles of another kind, and as the loaders do.
    """
    if pretrained or not (Path(name).expanduser().exists() or name in Zoo.open().entries):
        return Source(build_clip(name, pretrained))
    file = resolve(name)
    card = read_card(file)
    if card["kind"] == "clip":
        return Source(build_clip(str(file)), card)
    if card["kind"] not in ("prompts", "open_classifier"):
        raise UserError(
            f"model.teacher {name}: holds a {card['kind']}; expected prompts of stage 1, a CLIP model or an "
            "open classifier"
        )
    card, tensors = load_bundle(file)
    if card["kind"] == "prompts":
        return Source(prompted_from_card(card, tensors, str(file)), card)
    model = open_classifier_from_card(card, tensors, str(file))
    text = {key: x for key, x in tensors.items() if key.startswith(("text.", "context."))}
    return Source(model, card, ClassVectors.of_bundle(card, tensors), text)


def text_of(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Card and tensors of the teacher's text half, to travel with a student; None where it has none."""
    if isinstance(source.model, OpenClassifier):
        return (source.card["text"], source.text) if "text" in source.card else None
    return text_card(source.model)


def class_vectors_of(
    source: Source | None,
    given: ClassVectors | None,
    names: tuple[str, ...],
    template_set: str | None,
    device: torch.device,
) -> ClassVectors:
    """Class vectors of `names`, in this order: those given, the teacher's own, or made by its text half.

    Raises UserError for given ones of another encoder, for a name that stored ones lack, for templates where
    the teacher has learned its own prompts, and where there is nothing to take them from.
    """
    stored = given
    if source is None:
        if given is None:
            raise UserError("model.class_vectors: missing; give them, or a teacher to make them")
    elif isinstance(source.model, OpenClassifier):
        assert source.vectors is not None, "bundles of open classifiers hold their class vectors"
        stored = given or source.vectors
        stored.check(encoder=source.vectors.encoder)
    elif given:
        given.check(encoder=source.model.identity)
    if stored is None:
        assert source is not None and not isinstance(source.model, OpenClassifier)
        return ClassVectors.build(names, source.model.to(device), _prompts(source, template_set), cache=True)
    found = stored.select(names)
    # By the data's own spelling of the names: that is what the bundle goes by.
    return ClassVectors(found.vectors, names, found.templates, found.encoder, found.logit_scale)


def _prompts(source: Source, template_set: str | None) -> tuple[str, ...]:
    """Templates of the class vectors: given, those that stage 1 was scored with, or the bare name."""
    if not learns_context(source.model):
        of_stage1 = tuple(source.card.get("templates", ("{}",)))
        return templates(template_set) if template_set else of_stage1
    if template_set:
        raise UserError("model.template_set: the teacher has learned its own prompts; set it to null")
    return ("{}",)
