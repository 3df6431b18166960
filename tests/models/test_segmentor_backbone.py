import json
import sys
import types

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file

from vlkd.errors import UserError
from vlkd.models.backbone import build_backbone

RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16},
}
TIMM = {
    "embed_dim": 24,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 64},
}


@pytest.fixture
def clip_tower(monkeypatch):
    """Make "clip:NAME" yield a tower built from a vision config; returns the open_clip image tower."""

    def install(config):
        torch.manual_seed(3)
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], False).eval()
        for module in visual.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                torch.nn.init.normal_(module.weight, 1.0, 0.1)
        tower = types.SimpleNamespace(
            model=types.SimpleNamespace(visual=visual),
            architecture={"name": "tiny", "model_cfg": config},
            spec=types.SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
        )
        fake = types.ModuleType("vlkd.models.clip")
        fake.build_clip = lambda name, pretrained=None: tower
        monkeypatch.setitem(sys.modules, "vlkd.models.clip", fake)
        return visual

    return install


@pytest.mark.parametrize(
    "spec",
    [
        "timm:test_resnet",
        "timm:test_convnext",
        "timm:test_efficientnet",
        "timm:test_vit",
        "timm:mobilenetv4_conv_small",
        {"name": "open_clip:tiny", "config": RESNET},
        {"name": "open_clip:tiny", "config": VIT},
        {"name": "open_clip:tiny", "config": {**VIT, "vision_cfg": {**VIT["vision_cfg"], "patch_size": 14}}},
    ],
    ids=str,
)
def test_maps_at_four_strides_for_any_size(spec):
    backbone = build_backbone(spec)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    sum(m.sum() for m in maps).backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert not without, "parameters outside the graph break DDP"


def test_hierarchical_transformer_on_meta():
    with torch.device("meta"):
        backbone = build_backbone("timm:swin_tiny_patch4_window7_224")
        maps = backbone(torch.randn(1, 3, 96, 160))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 24, 40), (192, 12, 20), (384, 6, 10), (768, 3, 5)]


def test_network_of_one_size_says_so():
    backbone = build_backbone("timm:test_coatnet").eval()
    assert backbone(torch.randn(1, 3, 160, 160))[0].shape[-2:] == (40, 40)
    with pytest.raises(UserError, match=r"test_coatnet refuses images of 96 x 64"):
        backbone(torch.randn(1, 3, 96, 64))


def test_normalisation_is_the_models_own():
    assert build_backbone("timm:test_resnet").mean == tuple(timm.get_pretrained_cfg("test_resnet").mean)
    assert build_backbone({"name": "open_clip:tiny", "config": RESNET}).std[0] == pytest.approx(0.26862954)
    assert build_backbone({"name": "timm:test_resnet", "mean": [0, 0, 0]}).mean == (0, 0, 0)


def test_timm_tower_of_clip_keeps_its_weights(clip_tower):
    visual = clip_tower(TIMM)
    backbone = build_backbone("clip:tiny").eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        last = backbone(x)[-1]
        assert torch.allclose(last, visual.trunk.forward_features(x), atol=1e-6)
        weight, bias = backbone.clip_projection
        assert bias is None
        assert torch.allclose(last.mean((2, 3)) @ weight.T, visual(x), atol=1e-4)
    assert backbone.mean == (0.1, 0.2, 0.3) and backbone.arguments["name"] == "timm:test_resnet"


def test_clip_resnet_without_attention_pool(clip_tower):
    visual = clip_tower(RESNET)
    pool = visual.attnpool
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
        backbone = build_backbone("clip:tiny").eval()
        assert torch.allclose(backbone(x)[-1], expected, atol=1e-6)
        weight, bias = backbone.clip_projection
        constant = torch.randn(1, 256, 1, 1).expand(1, 256, 2, 2)
        pool.positional_embedding.zero_()
        assert torch.allclose(pool(constant), constant[:, :, 0, 0] @ weight.T + bias, atol=1e-5)
    assert not any("attnpool" in name for name in backbone.state_dict())


def test_clip_vit_tokens_at_nominal_size(clip_tower):
    visual = clip_tower(VIT)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = visual.forward_intermediates(x, indices=[1], normalize_intermediates=True)
        backbone = build_backbone("clip:tiny").eval()
        assert torch.allclose(backbone(x)[2], expected["image_intermediates"][0], atol=1e-5)
    assert backbone.clip_projection[0].shape == (24, 32)


@pytest.mark.parametrize("config", [RESNET, VIT, TIMM], ids=["resnet", "vit", "timm"])
def test_arguments_rebuild_without_the_teacher(clip_tower, monkeypatch, config):
    clip_tower(config)
    first = build_backbone("clip:tiny").eval()
    monkeypatch.setitem(sys.modules, "vlkd.models.clip", None)
    second = build_backbone(json.loads(json.dumps(first.arguments))).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 64, 32)
    assert all(torch.equal(a, b) for a, b in zip(first(x), second(x), strict=True))
    assert (first.mean, first.std) == (second.mean, second.std)


def test_local_timm_weights(tmp_path):
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        backbone = build_backbone({"name": "timm:test_resnet", "pretrained": str(tmp_path / file)})
        assert torch.equal(backbone.model.conv1[0].weight, model.conv1[0].weight)
    with pytest.raises(UserError, match=r"w\.pth: weights do not fit"):
        build_backbone({"name": "timm:test_convnext", "pretrained": str(tmp_path / "w.pth")})
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"bad\.safetensors: not a readable"):
        build_backbone({"name": "timm:test_resnet", "pretrained": str(tmp_path / "bad.safetensors")})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet5O", "resnet50"),
        ("open_clip:RN5O", "RN50"),
        ("resnet50", "expected 'timm:NAME'"),
        ("torchvision:resnet50", "expected 'timm:NAME'"),
        ({"name": "timm:resnet50", "pretrainde": True}, "nearest: pretrained"),
    ],
)
def test_unknown_names_say_what_is_near(spec, message):
    with pytest.raises(UserError, match=message):
        build_backbone(spec)


def test_registered_open_clip_name():
    with torch.device("meta"):
        backbone = build_backbone("open_clip:RN50")
    assert backbone.channels == (256, 512, 1024, 2048)
    assert backbone.arguments["config"]["embed_dim"] == open_clip.get_model_config("RN50")["embed_dim"]
