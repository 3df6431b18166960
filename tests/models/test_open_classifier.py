"""Open classifiers: towers of any kind, widths, what a bundle rebuilds, the text half as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_clip import save_clip, tiny_clip

from vlkd.errors import UserError
from vlkd.models.clip import build_clip
from vlkd.models.open_classifier import (
    OpenClassifier,
    ProjectorSize,
    build_open_classifier,
    open_classifier_from_card,
)
from vlkd.models.prompted import (
    PromptSize,
    build_prompted,
    learns_context,
    released_prompts,
    text_card,
    text_encoder,
)

TOWERS: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": PromptSize(2, 2)},
    "clip": {},
    "resnet8": {"image_size": 16},
    "timm:test_vit": {"image_size": 64, "arguments": {"img_size": 64}},
}


@pytest.fixture
def make(tmp_path: Any) -> Any:
    clip = save_clip(tmp_path / "clip.safetensors")

    def build(kind: str, width: int = 12, **options: Any) -> OpenClassifier:
        torch.manual_seed(0)
        name = clip if kind in ("prompts", "clip") else kind
        given = {"projector": ProjectorSize(), **TOWERS[kind], **options}
        return build_open_classifier(name, width, **given).eval()

    return build


@pytest.mark.parametrize("kind", TOWERS)
def test_it_is_rebuilt_from_its_card(make: Any, kind: str) -> None:
    model, images = make(kind), torch.rand(3, 3, 20, 30)
    vectors = F.normalize(torch.randn(5, 12), dim=1)
    card = {"architecture": model.architecture}
    tensors = {f"student.{k}": v for k, v in model.state_dict().items()}
    again = open_classifier_from_card(card, {**tensors, "class_vectors": vectors}, "file")
    assert not again.training and again.identity == model.identity
    assert again.logit_scale == model.logit_scale and again.width == 12
    with torch.no_grad():
        found, expected = again(images, vectors), model(images, vectors)
    torch.testing.assert_close(found, expected)
    unit = model.encode_image(images)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(expected, model.logit_scale * unit @ vectors.T)


def test_a_tower_without_projector_is_the_clip_model_itself(make: Any, tmp_path: Any) -> None:
    model, tower = make("clip", 24, projector=None), build_clip(str(tmp_path / "clip.safetensors"))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model.encode_image(images), tower.encode_image(images))
    assert model.logit_scale == tower.logit_scale


def test_a_frozen_tower_stays_in_eval_mode(make: Any) -> None:
    model = make("resnet8")
    model.tower.requires_grad_(False)
    model.train()
    assert not any(m.training for m in model.tower.modules()) and model.projector.training
    model.tower.classifier.network.requires_grad_(True)
    model.train()
    assert all(m.training for m in model.tower.classifier.network.modules())


def test_a_card_that_does_not_fit_is_one_line(make: Any) -> None:
    model = make("prompts")
    tensors = {f"student.{k}": v for k, v in model.state_dict().items()}
    for change in ({"prompts": {"length": 2, "depth": 3}}, {"width": 13}, {"projector": None, "width": 24}):
        with pytest.raises(UserError, match="file: not weights of this OpenClassifier") as error:
            open_classifier_from_card({"architecture": model.architecture | change}, tensors, "file")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("resnet8", {"prompts": PromptSize()}, "takes no prompts; set model.prompts: null"),
        ("clip", {"projector": None}, "its vectors have width 24, the class vectors 12; give a projector"),
        ("clip", {"image_size": 32}, "a CLIP model; image_size and arguments are for other networks"),
        ("prompts", {"prompts": PromptSize(2, 9)}, "depth 9; this tower has 3 layers"),
        ("timm:test_vit", {"arguments": {"dept": 2}}, "dept"),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(kind, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("context", [True, False])
def test_the_text_half_travels_alone(context: bool) -> None:
    tower = tiny_clip()
    model = build_prompted(
        tower, None if context else PromptSize(2, 2), PromptSize(3, 2) if context else None, None
    )
    assert learns_context(model) is context and not learns_context(tower)
    with torch.no_grad():
        for values in model.prompts.parameters():
            values.normal_()
    card, tensors = text_card(model)
    assert not any("visual" in name for name in tensors)
    again = text_encoder(card, tensors, "file")
    names = ["car", "palm tree"]
    torch.testing.assert_close(again.encode_text(names), model.encode_text(names))
    assert learns_context(again) is context
    if context:
        tensors["context.values"] = tensors["context.values"][:, :2]
        with pytest.raises(UserError, match=r"file: prompts \(depth, length, width\)"):
            text_encoder(card, tensors, "file")


def released(path: Path, model: Any, **changes: Any) -> Path:
    """A checkpoint as the authors' code writes it: prompts, a copy of the CLIP model, class-token buffers."""
    visual, text = (model.prompts[key].values.detach() for key in ("visual", "text"))
    state = {"prompt_learner.ctx": text[0], "image_encoder.VPT": visual[0], "logit_scale": torch.ones(())}
    for tower, values in (("image_encoder", visual), ("text_encoder", text)):
        state |= {f"{tower}.transformer.resblocks.{k}.VPT_shallow": values[k] for k in range(1, len(values))}
    state |= {
        "prompt_learner.token_prefix": torch.zeros(5, 1, 32),
        "image_encoder.conv1.weight": torch.ones(2),
    }
    state = {key: x for key, x in (state | changes).items() if x is not None}
    torch.save({"state_dict": state, "epoch": 20, "val_result": 80.0}, path)
    return path


def test_released_prompts_are_read_by_their_names(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip.safetensors")
    torch.manual_seed(3)
    model = build_prompted(build_clip(clip), PromptSize(2, 3), PromptSize(3, 2), words=None)
    found = released_prompts(released(tmp_path / "model-best.pth.tar", model), clip)
    assert found.identity == model.identity
    torch.testing.assert_close(found.encode_text(["car"]), model.encode_text(["car"]))
    lacking = {"image_encoder.transformer.resblocks.1.VPT_shallow": None}
    with pytest.raises(UserError, match=r"model-best.pth.tar: no image_encoder.VPT with the layers"):
        released_prompts(released(tmp_path / "model-best.pth.tar", model, **lacking), clip)
    wide = {
        "prompt_learner.ctx": torch.zeros(3, 33),
        "text_encoder.transformer.resblocks.1.VPT_shallow": None,
    }
    with pytest.raises(UserError, match=r"prompts \(depth, length, width\)"):
        released_prompts(released(tmp_path / "model-best.pth.tar", model, **wide), clip)
