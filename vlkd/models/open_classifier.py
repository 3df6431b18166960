"""Open classifiers: an image tower of any kind, a projector, and any list of class vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.classifier import Classifier, build_classifier, classifier_from_architecture
from vlkd.models.clip import CLIPTower, build_clip, from_architecture, prepared, weights_identity
from vlkd.models.networks import is_network
from vlkd.models.projector import PromptProjector
from vlkd.models.prompt import VisualPrompts
from vlkd.models.prompted import PromptSize
from vlkd.models.spec import InputSpec
from vlkd.models.weights import fit_weights

_SCALE = 100.0  # of cosines, where a tower brings none: that of the released CLIP models


@dataclass(frozen=True)
class ProjectorSize:
    """layers: 1 to 3 linear maps. hidden: width between them; None for the class vectors' own."""

    layers: int = 2
    hidden: int | None = None


class ImageTower(nn.Module):
    """The image half of a CLIP model: (B,3,H,W) in [0,1] -> (B,D), with or without prompts."""

    def __init__(self, clip: CLIPTower, prompts: VisualPrompts | None = None) -> None:
        super().__init__()
        self.visual: Any = clip.model.visual
        self.prompts = prompts
        self.spec: InputSpec = clip.spec
        self.architecture = {"kind": "clip", **clip.architecture}

    def forward(self, images01: Tensor) -> Tensor:
        """(B,D) float32, not made unit; resizing and normalisation happen here."""
        images = prepared(self.spec, images01)
        found = self.visual(images) if self.prompts is None else self.prompts(self.visual, images)
        # CoCa's image towers give their tokens too.
        return (found[0] if isinstance(found, tuple) else found).float()


class PooledFeatures(nn.Module):
    """A classifier's features before its last layer: (B,3,H,W) in [0,1] -> (B,D)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.spec = classifier.spec
        self.architecture = {"kind": "classifier", **classifier.architecture}
        for parameter in classifier.head.parameters():
            parameter.requires_grad_(False)  # nothing reads its logits

    def forward(self, images01: Tensor) -> Tensor:
        """(B,D) float32, not made unit."""
        return self.classifier.outputs(images01).pooled.float()


class OpenClassifier(nn.Module):
    """Images in, cosines with class vectors out: what PromptKD trains, ships and uses.

    `tower`: ImageTower or PooledFeatures; `projector`: to the class vectors' width, None where the widths are
    one; `logit_scale`: factor on the cosines, fixed.
    """

    def __init__(
        self,
        tower: ImageTower | PooledFeatures,
        projector: PromptProjector | None = None,
        logit_scale: float = _SCALE,
        size: ProjectorSize | None = None,
    ) -> None:
        super().__init__()
        self.tower: Any = tower
        self.projector = projector
        self.logit_scale = logit_scale
        self.size = size

    @property
    def spec(self) -> InputSpec:
        """What the image tower expects of its input."""
        return self.tower.spec

    @property
    def width(self) -> int:
        """D of the class vectors that it is compared with."""
        return self.spec.width if self.projector is None else self.projector[-1].out_features  # type: ignore[return-value]

    @property
    def identity(self) -> str:
        """name@hash16 of the present weights."""
        return weights_identity(self.tower.architecture["name"], self.state_dict())

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values, enough to rebuild it."""
        prompts = getattr(self.tower, "prompts", None)
        return {
            "tower": self.tower.architecture,
            "prompts": prompts and asdict(PromptSize(prompts.length, prompts.depth)),
            "projector": self.size and asdict(self.size),
            "width": self.width,
            "logit_scale": self.logit_scale,
        }

    def train(self, mode: bool = True) -> OpenClassifier:
        """As of nn.Module; a tower of which nothing but prompts is trained stays in eval mode."""
        super().train(mode)
        if not any(p.requires_grad for n, p in self.tower.named_parameters() if not n.startswith("prompts.")):
            self.tower.eval()
        return self

    def forward(self, images01: Tensor, vectors: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1], class vectors (K,D) unit -> logits (B,K)."""
        return class_logits(self.encode_image(images01), vectors, self.logit_scale)

    def encode_image(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,D) unit vectors in the class vectors' space."""
        return self.project(self.tower(images01))

    def project(self, embedded: Tensor) -> Tensor:
        """What the tower gives (B,D') -> (B,D) unit vectors."""
        found = embedded if self.projector is None else self.projector(embedded)
        return F.normalize(found.float(), dim=-1)


def class_logits(images: Tensor, vectors: Tensor, scale: float) -> Tensor:
    """Unit vectors (B,D) and (K,D) -> scale times their cosines (B,K), float32 also inside autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * images.float() @ vectors.float().T


def build_open_classifier(
    name: str,
    width: int,
    pretrained: str | None = None,
    prompts: PromptSize | None = None,
    projector: ProjectorSize | None = None,
    image_size: int | None = None,
    arguments: dict[str, Any] | None = None,
) -> OpenClassifier:
    """Open classifier of an image tower, to class vectors of `width`.

    name: a CLIP model as for build_clip, or a network as for build_classifier ("timm:NAME", a CIFAR family
    name, "package.module:Class"). pretrained: of a CLIP model; weights file of another network. prompts: of a
    ViT of open_clip. Raises UserError for unknown names, for prompts that the tower does not take, and for
    widths that differ without projector.
    """
    tower: ImageTower | PooledFeatures
    scale = _SCALE
    if is_network(name):
        if prompts is not None:
            raise UserError(
                f"model.student {name}: takes no prompts; set model.prompts: null, and model.trained to "
                "projector or all"
            )
        tower = PooledFeatures(build_classifier(name, 1, image_size, pretrained, arguments))
    else:
        if image_size is not None or arguments:
            raise UserError(
                f"model.student {name}: a CLIP model; image_size and arguments are for other networks"
            )
        clip = build_clip(name, pretrained)
        scale = clip.logit_scale
        tower = ImageTower(clip, _prompts(clip, prompts))
    if projector is None and tower.spec.width != width:
        raise UserError(
            f"model.student {name}: its vectors have width {tower.spec.width}, the class vectors {width}; "
            "give a projector"
        )
    return OpenClassifier(tower, _projector(tower.spec.width, width, projector), scale, projector)


def open_classifier_from_card(
    card: dict[str, Any], tensors: dict[str, Tensor], source: str
) -> OpenClassifier:
    """The classifier of a bundle, in eval mode. Raises UserError for tensors that do not fit the card."""
    architecture = card["architecture"]
    tower = dict(architecture["tower"])
    prompts = architecture["prompts"] and PromptSize(**architecture["prompts"])
    projector = architecture["projector"] and ProjectorSize(**architecture["projector"])
    built: ImageTower | PooledFeatures
    if tower.pop("kind") == "clip":
        clip = from_architecture(tower)
        built = ImageTower(clip, _prompts(clip, prompts))
    else:
        built = PooledFeatures(classifier_from_architecture(tower))
    head = _projector(built.spec.width, architecture["width"], projector)
    model = OpenClassifier(built, head, architecture["logit_scale"], projector)
    own = {k.removeprefix("student."): x for k, x in tensors.items() if k.startswith("student.")}
    fit_weights(model, own, source)
    return model.eval()


def _prompts(clip: CLIPTower, size: PromptSize | None) -> VisualPrompts | None:
    return None if size is None else VisualPrompts(clip.model.visual, size.length, size.depth)


def _projector(own: int, width: int, size: ProjectorSize | None) -> PromptProjector | None:
    return None if size is None else PromptProjector(own, width, size.layers, size.hidden)
