"""Classifiers of every origin: what one pass gives, rebuilding, bundles, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.models.classifier import (
    Classifier,
    build_classifier,
    classifier_from_architecture,
    list_classifiers,
    load_classifier,
)


class Plain(nn.Module):
    """A network without timm's protocol; two linear layers, its pooling inside a container."""

    def __init__(self, num_classes: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 5, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.neck = nn.Linear(5, 4)
        self.last = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.neck(self.body(self.stem(x)).flatten(1)))


class Tokens(nn.Module):
    """Patch tokens behind a class token."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))[:, 0])


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mean((2, 3)))


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 9, 1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("toy_networks")
    for item in (Plain, Tokens, Fixed, Headless):
        setattr(module, item.__name__, item)
    module.make = lambda **_: Fixed()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_networks", module)


def test_own_network() -> None:
    torch.manual_seed(0)
    classifier = build_classifier("resnet8", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    out = classifier.outputs(images, ["layer1", "layer3"])
    assert torch.equal(out.logits, classifier(images))
    assert torch.equal(classifier.head(out.pooled), out.logits)
    assert out.map is not None and torch.allclose(out.map.mean((2, 3)), out.pooled, atol=1e-6)
    assert torch.equal(out.taps["layer3"], out.map)
    assert out.taps["layer1"].shape == (2, 16, 32, 32)
    assert out.tokens is None
    assert classifier.grid == (8, 8)
    assert classifier.spec.width == 64 == classifier.head.in_features
    assert classifier.num_classes == 10
    assert "resnet8" in list_classifiers()


def test_images_are_normalised_and_resized_by_the_classifier_itself() -> None:
    classifier = build_classifier("resnet8", 10, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(
        classifier(images), classifier.network((images - mean) / std), rtol=1e-4, atol=1e-5
    )
    assert classifier.outputs(torch.rand(2, 3, 50, 40)).map.shape[-2:] == (8, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "size", "arguments", "grid", "tokens"),
    [
        ("timm:resnet18", 64, {}, (2, 2), None),
        ("timm:mobilenetv3_small_050", 64, {}, (2, 2), None),
        ("timm:vit_tiny_patch16_224", 32, {"depth": 1}, (2, 2), 4),
        ("timm:vit_small_patch14_reg4_dinov2", (28, 42), {"depth": 1}, (2, 3), 6),
        (
            "timm:swin_tiny_patch4_window7_224",
            64,
            {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8},
            (8, 8),
            None,
        ),
    ],
)
def test_timm(
    name: str, size: Any, arguments: dict[str, Any], grid: tuple[int, int], tokens: int | None
) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(name, 5, size, arguments=arguments).eval()
    images = torch.rand(2, 3, *classifier.spec.size)
    out = classifier.outputs(images)
    torch.testing.assert_close(out.logits, classifier(images))
    torch.testing.assert_close(classifier.head(out.pooled), out.logits)
    assert classifier.grid == grid
    assert out.map is not None and out.map.shape[-2:] == grid
    if tokens is None:
        assert out.tokens is None
    else:
        assert out.tokens is not None and out.tokens.shape == (2, tokens, classifier.spec.width)
        assert torch.equal(out.map.flatten(2).transpose(1, 2), out.tokens)
    again = classifier_from_architecture(json.loads(json.dumps(classifier.architecture))).eval()
    again.load_state_dict(classifier.state_dict())
    assert torch.equal(again(images), out.logits)


def test_timm_preset() -> None:
    classifier = build_classifier("timm:test_vit", 5)
    assert classifier.spec.size == (160, 160)
    assert classifier.spec.mean == tuple(classifier.network.pretrained_cfg["mean"])


def test_two_heads_give_what_the_network_gives() -> None:
    torch.manual_seed(0)
    classifier = build_classifier(
        "timm:deit_tiny_distilled_patch16_224", 5, 32, arguments={"depth": 1}
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    out = classifier.outputs(images)
    assert torch.equal(out.logits, classifier(images))
    assert out.tokens is not None and out.tokens.shape == (2, 4, 192)
    with pytest.raises(UserError, match="ends in a tuple, not a Linear"):
        _ = classifier.head


def test_any_module_by_hooks() -> None:
    torch.manual_seed(0)
    classifier = build_classifier("toy_networks:Plain", 7, arguments={"width": 8}).eval()
    images = torch.rand(2, 3, 32, 32)
    out = classifier.outputs(images, ["stem"])
    network = classifier.network
    assert torch.equal(out.logits, classifier(images))
    assert out.pooled.shape == (2, 4) and torch.equal(classifier.head(out.pooled), out.logits)
    assert out.map is not None and torch.equal(out.map, network.body[:2](out.taps["stem"]))
    assert classifier.grid == (8, 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_head_and_features_can_be_named() -> None:
    classifier = build_classifier(
        "toy_networks:Plain", 7, arguments={"head": "last", "features": "stem"}
    ).eval()
    assert classifier.grid == (16, 16)
    with pytest.raises(UserError, match="nearest: stem"):
        build_classifier("toy_networks:Plain", 7, arguments={"features": "stm"})


def test_tokens_by_hooks() -> None:
    classifier = build_classifier("toy_networks:Tokens", 7).eval()
    out = classifier.outputs(torch.rand(2, 3, 32, 32))
    assert out.tokens is not None and out.tokens.shape == (2, 16, 6)
    assert out.map is not None and out.map.shape == (2, 6, 4, 4)


def test_gradients_reach_the_student_through_every_output() -> None:
    classifier = build_classifier("toy_networks:Plain", 7)
    out = classifier.outputs(torch.rand(2, 3, 32, 32), ["stem"])
    assert out.map is not None
    for value in (out.logits, out.pooled, out.map, out.taps["stem"]):
        classifier.zero_grad()
        value.square().sum().backward(retain_graph=True)
        assert classifier.network.stem[0].weight.grad.abs().sum() > 0


def test_autocast_and_no_grad() -> None:
    classifier = build_classifier("resnet8", 10).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = classifier.outputs(torch.rand(2, 3, 32, 32), ["layer1"])
    assert out.logits.dtype == torch.bfloat16
    assert not out.taps["layer1"].requires_grad


def test_identity_follows_the_weights() -> None:
    classifier = build_classifier("resnet8", 10)
    before = classifier.identity
    assert before.startswith("resnet8@") and len(before) == len("resnet8@") + 16
    classifier.half().float()
    assert classifier.identity == before
    with torch.no_grad():
        classifier.head.bias[0] += 1
    assert classifier.identity != before


def test_batch_of_one() -> None:
    classifier = build_classifier("mobilenetv2", 10, 16)
    one = torch.rand(1, 3, 16, 16)
    for run in (classifier, classifier.outputs):
        with pytest.raises(
            UserError, match=r"batch of one with BatchNorm.*batch_size of at least 2.*drop_last"
        ):
            run(one)
    assert classifier.eval()(one).shape == (1, 10)
    assert build_classifier("resnet8", 10)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet32x5", {}, "expected one of .*resnet32x4"),
        ("resnet8", {"width": 3}, "takes no arguments, got width"),
        ("timm:resnet81", {}, "timm has no model 'resnet81'; nearest: .*resnet18"),
        ("timm:resnet18", {"depht": 3}, "timm:resnet18: .*depht"),
        ("timm:resnet18", {"checkpoint_path": "x"}, "give the file as `weights`"),
        ("no_such_package.x:Net", {}, "cannot import no_such_package.x"),
        ("toy_networks:Plian", {}, "no such class; nearest: Plain"),
        ("toy_networks:make", {}, "not a class derived from torch.nn.Module"),
        ("os:system", {"command": "false"}, "not a class derived from torch.nn.Module"),
        ("toy_networks:Plain", {"depth": 3}, "depth"),
        ("toy_networks:Fixed", {}, "has 9 outputs, num_classes is 7"),
        ("toy_networks:Headless", {}, "has no nn.Linear"),
        ("toy_networks:Plain", {"width": torch.tensor(3)}, "plain values"),
    ],
)
def test_errors_in_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_classifier(name, 7, 32, arguments=arguments)
    assert "\n" not in str(caught.value)


def test_wrong_tap_names_the_nearest() -> None:
    classifier = build_classifier("resnet8", 10)
    classifier.check_taps(["layer1", "layer3.0.relu2:input"])
    with pytest.raises(UserError, match=r"tap 'layer4'.*nearest: .*layer3"):
        classifier.check_taps(["layer1", "layer4"])
    with pytest.raises(UserError, match="tap 'layer4'"):
        classifier.outputs(torch.rand(2, 3, 32, 32), ["layer4"])


def test_weights_of_other_classes(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    source = build_classifier("resnet8", 100)
    torch.save({"model": source.network.state_dict(), "epoch": 240}, file)
    assert build_classifier("resnet8", 100, weights=str(file)).identity == source.identity
    with pytest.raises(UserError, match=r"teacher\.pth: weights of 100 classes, the network has 10"):
        build_classifier("resnet8", 10, weights=str(file))


def bundle(path: Path, classifier: Classifier, **card: Any) -> Path:
    card = {
        "kind": "classifier",
        "name": "toy",
        "architecture": classifier.architecture,
        "input_spec": classifier.spec.to_dict(),
        "class_names": [str(k) for k in range(classifier.num_classes)],
    } | card
    return save_bundle(path, card, {f"student.{k}": v for k, v in classifier.state_dict().items()}, half=True)


@pytest.mark.parametrize("name", ["resnet8", "timm:test_vit", "toy_networks:Plain"])
def test_bundle(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    source = build_classifier(name, 4, 32, mean=(0.1, 0.2, 0.3)).eval()
    path = bundle(tmp_path / "toy.safetensors", source)
    loaded, card = load_classifier(str(path))
    assert card["class_names"] == ["0", "1", "2", "3"]
    assert not loaded.training
    assert loaded.identity == source.identity
    assert loaded.spec == source.spec
    assert loaded.head.weight.dtype == torch.float32
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), source(images), rtol=0.02, atol=0.02)
    assert build_classifier(name, 4, 32, weights=str(path)).identity == source.identity


def test_bundle_errors(tmp_path: Path) -> None:
    source = build_classifier("resnet8", 4)
    path = bundle(tmp_path / "a.safetensors", source, kind="segmentor")
    with pytest.raises(UserError, match="holds a segmentor, expected a bundle of kind 'classifier'"):
        load_classifier(str(path))
    architecture = {**source.architecture, "num_classes": 9}
    path = bundle(tmp_path / "b.safetensors", source, architecture=architecture)
    with pytest.raises(UserError, match=r"of another shape network\.fc.weight"):
        load_classifier(str(path))
    with pytest.raises(UserError, match="neither a file nor a model of the zoo"):
        load_classifier("no-such-model")
