"""Backbone, projector and the teacher's head as one classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy_pool import tiny

from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.models.classifier import Classifier, build_classifier, classifier_from_architecture, load_classifier
from vlkd.models.shared_head import share_head
from vlkd.models.spec import InputSpec


def images(size: int = 16) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def make(student: Classifier, teacher: Classifier, **options: bool) -> Classifier:
    torch.manual_seed(1)
    return share_head(student, teacher, **options).eval()


@pytest.mark.parametrize(("strides", "grid"), [((2, 2), (4, 4)), ((1, 2), (4, 4)), ((2, 1), (4, 4))])
def test_equals_its_parts_in_a_row(strides: tuple[int, int], grid: tuple[int, int]) -> None:
    student, teacher = tiny(stride=strides[0]).eval(), tiny(first=8, second=16, stride=strides[1]).eval()
    shared = make(student, teacher)
    map_ = student.outputs(images()).map
    assert map_ is not None
    aligned, target, logits = shared.network.projector(map_, teacher.outputs(images()).map, teacher.head)
    outputs = shared.outputs(images())
    torch.testing.assert_close(shared(images()), logits)
    torch.testing.assert_close(outputs.map, aligned)
    torch.testing.assert_close(outputs.pooled, aligned.mean((2, 3)))
    assert shared.grid == grid == tuple(target.shape[-2:])
    assert shared.spec.width == 16 and shared.num_classes == 4


def test_head_is_the_teachers_and_frozen_and_the_backbones_own_is_gone() -> None:
    student, teacher = tiny(), tiny(first=8, second=16)
    shared = make(student, teacher)
    assert torch.equal(shared.head.weight, teacher.head.weight)
    assert {n for n, p in shared.named_parameters() if not p.requires_grad} == {
        "network.head.weight",
        "network.head.bias",
    }
    assert not any("linear" in name for name in shared.state_dict())
    assert sum(isinstance(module, nn.Linear) for module in shared.modules()) == 1
    assert isinstance(student.head, nn.Linear)  # the given one is left as it was
    own = make(student, teacher, share=False)
    assert own.head.weight.requires_grad and not torch.equal(own.head.weight, teacher.head.weight)


@pytest.mark.parametrize("name", ["resnet8", "timm:test_resnet", "timm:test_vit"])
def test_bundle_gives_the_same_classifier(name: str, tmp_path: Path) -> None:
    arguments = {"img_size": 32, "patch_size": 8} if name == "timm:test_vit" else None
    student = build_classifier(name, 4, 32, arguments=arguments).eval()
    shared = make(student, tiny(size=32, first=8, second=16).eval())
    card = {"kind": "classifier", "name": "s", "architecture": shared.architecture}
    path = save_bundle(
        tmp_path / "s.safetensors", card, {f"student.{k}": v for k, v in shared.state_dict().items()}
    )
    loaded, _ = load_classifier(str(path))
    assert torch.equal(loaded(images(32)), shared(images(32)))
    assert loaded.spec == shared.spec and loaded.spec.mean == student.spec.mean
    assert loaded.identity == shared.identity
    fresh = classifier_from_architecture(shared.architecture)
    assert fresh.state_dict().keys() == shared.state_dict().keys()


def test_pretrained_weights_come_along() -> None:
    student = tiny()
    shared = make(student, tiny(first=8, second=16))
    assert torch.equal(shared.network.backbone.network.body[0].weight, student.network.body[0].weight)


class Flat(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class Wider(nn.Module):
    """Pools, then widens before its last layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 32)
        self.linear = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.wide(self.conv(x).mean((2, 3))))


def wrapped(network: nn.Module) -> Classifier:
    spec = InputSpec((16, 16), (0.5,) * 3, (0.25,) * 3)
    return Classifier(network, spec, 4, {"name": type(network).__name__, "arguments": {}})


def test_networks_that_cannot_share_are_one_line() -> None:
    with pytest.raises(UserError, match="Flat: has neither a map nor tokens on a grid"):
        share_head(tiny(), wrapped(Flat(4)))
    with pytest.raises(UserError, match="Flat: has neither a map nor tokens on a grid"):
        share_head(wrapped(Flat(4)), tiny())
    with pytest.raises(UserError, match="teacher Wider: its last map has 8 channels, its head takes 32"):
        share_head(tiny(), wrapped(Wider(4)))
