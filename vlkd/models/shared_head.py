"""A student that is classified by its teacher's last layer: backbone, projector and head as one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.classifier import Classifier, build_classifier, classifier_from_architecture
from vlkd.models.projector import SharedHeadProjector

_NO_NORMALISATION = {"mean": [0.0] * 3, "std": [1.0] * 3}


class SharedHead(nn.Module):
    """Backbone without its own last layer, SharedHeadProjector and a linear head; follows timm's protocol.

    backbone: architecture of a Classifier; channels: of its last map; width: what the head takes; grid:
    (h, w) of the teacher's map, to which a larger one of the backbone is pooled; factor: see
    SharedHeadProjector. Source: the student of KD3 and SimKD (arXiv 2203.14001).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: dict[str, Any],
        channels: int,
        width: int,
        grid: Sequence[int],
        factor: int = 2,
    ) -> None:
        super().__init__()
        # Images arrive normalised by the classifier around this network.
        self.backbone = classifier_from_architecture({**backbone, **_NO_NORMALISATION})
        _remove_head(self.backbone)
        self.projector = SharedHeadProjector(channels, width, factor)
        self.head = nn.Linear(width, num_classes)
        self.num_features = width
        self._grid = grid

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B,3,H,W) -> projected map (B,width,h,w)."""
        map_ = self.backbone.outputs(x).map
        assert map_ is not None
        return self.projector.project(map_, self._grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Projected map (B,width,h,w) -> logits (B,K), or with `pre_logits` their input (B,width)."""
        return x.mean((2, 3)) if pre_logits else self.projector.classify(x, self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B,3,H,W) -> logits (B,K)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """The shared head."""
        return self.head


def share_head(student: Classifier, teacher: Classifier, factor: int = 2, share: bool = True) -> Classifier:
    """The student with its weights, a fresh projector and the teacher's frozen head; its own if not `share`.

    Raises UserError when one of them has no map, or the teacher's head does not take its map's channels.
    """
    channels, width = _map_shape(student)[0], _map_shape(teacher)[0]
    if teacher.head.in_features != width:
        raise UserError(
            f"model.teacher {teacher.architecture['name']}: its last map has {width} channels, its head "
            f"takes {teacher.head.in_features}; to share it, take a teacher that pools its last map directly"
        )
    if share:
        _check_head(teacher)
    if not 1 <= factor <= width:
        raise UserError(f"model.factor={factor}: expected 1 to {width}, the channels of the teacher's map")
    arguments = {
        "backbone": student.architecture,
        "channels": channels,
        "width": width,
        "grid": list(teacher.grid),
        "factor": factor,
    }
    shared = build_classifier(
        f"{SharedHead.__module__}:{SharedHead.__name__}",
        student.num_classes,
        student.spec.size,
        arguments=arguments,
        mean=student.spec.mean,
        std=student.spec.std,
    )
    network: SharedHead = shared.network
    weights = student.state_dict()
    network.backbone.load_state_dict({name: weights[name] for name in network.backbone.state_dict()})
    if share:
        network.head.load_state_dict(teacher.head.state_dict())
        network.head.requires_grad_(False)
    return shared


def _check_head(teacher: Classifier) -> None:
    """Raises UserError where the head takes anything else than the mean of the last map."""
    weight = next(teacher.parameters())
    images = torch.rand(2, 3, *teacher.spec.size, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        seen = teacher.outputs(images)
        assert seen.map is not None
        alike = torch.allclose(teacher.head(seen.map.mean((2, 3))), seen.logits, rtol=1e-3, atol=1e-3)
    if not alike:
        raise UserError(
            f"model.teacher {teacher.architecture['name']}: its head does not classify the mean of its last "
            "map (a class token, or a layer between pooling and head); set model.share_head=false"
        )


def _map_shape(classifier: Classifier) -> tuple[int, ...]:
    """(C,h,w) of the last map. Raises UserError where there is none."""
    grid = classifier.grid
    weight = next(classifier.parameters())
    training = classifier.training
    classifier.eval()
    with torch.no_grad():
        empty = torch.zeros(1, 3, *classifier.spec.size, device=weight.device, dtype=weight.dtype)
        map_ = classifier.outputs(empty).map
    classifier.train(training)
    assert map_ is not None
    return map_.shape[1], *grid


def _remove_head(classifier: Classifier) -> None:
    """Puts nothing in the place of the last linear layer, which would be neither trained nor used."""
    assert isinstance(classifier.head, nn.Linear)  # else UserError
    parent, _, name = classifier.head_path.rpartition(".")
    setattr(classifier.network.get_submodule(parent), name, nn.Identity())
