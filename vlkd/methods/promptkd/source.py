"""Where stage 2 gets its teacher: prompts of stage 1, any CLIP model, or an open classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.engine.hub import Zoo, resolve
from vlkd.errors import UserError
from vlkd.methods.classifier import bundle_of
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.models.open_classifier import OpenClassifier, open_classifier_from_card
from vlkd.models.prompt import PromptedTower
from vlkd.models.prompted import prompted_from_card
from vlkd.text import ClassVectors


@dataclass
class Source:
    """A teacher, its card ({} for an open_clip model), and the class vectors that it brings, if any."""

    model: PromptedTower | CLIPTower | OpenClassifier
    card: dict[str, Any] = field(default_factory=dict)
    vectors: ClassVectors | None = None


def load_source(name: str, pretrained: str | None = None) -> Source:
    """The teacher of that name: bundle, run folder, zoo name, or CLIP model as for build_clip.

    Raises UserError for bundles of another kind, and as the loaders do.
    """
    path = bundle_of(name)
    if pretrained or not (Path(path).is_file() or path in Zoo.open().entries):
        return Source(build_clip(path, pretrained))
    file = resolve(path)
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
    return Source(model, card, ClassVectors.of_bundle(card, tensors))
