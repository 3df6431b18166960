"""CLIP towers: own input of each, files and names, offline machines, bundles, inner features."""

from __future__ import annotations

import logging
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file

from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower, build_clip, from_architecture, text_from_card

WORDS = ["car", "a photo of a palm tree", "all-day sucker"]
PREPROCESS = {"size": 32, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "interpolation": "bilinear"}
TEXT = {"context_length": 12, "vocab_size": 900, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}


def tiny(vision: dict[str, Any], size: int | tuple[int, int] = 32) -> CLIPTower:
    torch.manual_seed(0)
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    return from_architecture(
        {"name": "tiny", "model_cfg": config, "preprocess": {**PREPROCESS, "size": size}}
    )


@pytest.fixture(scope="module")
def small() -> CLIPTower:
    torch.manual_seed(1)
    return build_clip("vlkd-clip-s")


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


# --- each tower knows its input ----------------------------------------------------------------------------


def test_own_configs() -> None:
    medium = build_clip("vlkd-clip-m")
    assert medium.spec.size == (48, 48) and medium.spec.width == 128
    assert medium.spec.interpolation == "bicubic" and medium.spec.mean == pytest.approx(
        open_clip.OPENAI_DATASET_MEAN
    )
    small = build_clip("vlkd-clip-s")
    assert small.spec.size == (64, 64) and small.spec.interpolation == "bilinear"
    assert small.spec.mean == (0.485, 0.456, 0.406) and small.spec.width == 128
    for tower in (medium, small):
        assert not tower.model.training and tower.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
        assert tower.identity.startswith(f"{tower.name}@")
    assert {p.stem for p in (Path(build_clip.__code__.co_filename).parent / "configs").glob("*.json")} == {
        medium.name,
        small.name,
        "vlkd-clip-vit",
        "vlkd-clip-vit-s",
    }


def test_teacher_and_student_that_differ_in_everything_take_the_same_input() -> None:
    teacher, student = build_clip("vlkd-clip-m"), tiny(VIT)
    a, b = teacher.spec, student.spec
    assert a.size != b.size and a.mean != b.mean and a.std != b.std and a.interpolation != b.interpolation
    assert teacher.tokenizer(WORDS).shape == (3, 32) and student.tokenizer(WORDS).shape == (3, 12)
    assert teacher.tokenizer(WORDS).max() >= 4608 > 900 > student.tokenizer(WORDS).max()
    images = torch.rand(2, 3, 50, 70)
    for tower, width in ((teacher, 128), (student, 24)):
        texts, found = tower.encode_text(WORDS), tower.encode_image(images)
        assert texts.shape == (3, width) and found.shape == (2, width)
        assert torch.allclose(texts.norm(dim=1), torch.ones(3), atol=1e-5)
        assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
        spec = tower.spec
        resized = F.interpolate(images, spec.size, mode=spec.interpolation, antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
        by_hand = tower.model.encode_image((resized - mean) / std, normalize=True)
        assert torch.allclose(found, by_hand, atol=1e-5)
        assert not torch.allclose(found, tower.model.encode_image(resized, normalize=True), atol=1e-3)


def test_size_need_not_be_square() -> None:
    tower = tiny({**VIT, "image_size": [24, 32]}, (24, 32))
    assert tower.spec.size == (24, 32)
    assert tower.features(torch.rand(1, 3, 40, 40)).map.shape == (1, 64, 3, 4)


def test_many_texts_are_encoded_in_parts(small: CLIPTower) -> None:
    texts = [f"number {k}" for k in range(300)]
    together = small.encode_text(texts)
    assert together.shape == (300, 128)
    assert torch.allclose(together[[0, 299]], small.encode_text([texts[0], texts[299]]), atol=1e-5)


# --- inner features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "size", "shape"),
    [
        pytest.param(VIT, 32, (64, 4, 4), id="ViT"),
        pytest.param(RESNET, 64, (256, 2, 2), id="ModifiedResNet"),
        pytest.param(
            {
                "timm_model_name": "test_resnet",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 64,
            },
            64,
            (96, 2, 2),
            id="timm",
        ),
    ],
)
def test_features(vision: dict[str, Any], size: int, shape: tuple[int, int, int]) -> None:
    tower, images = tiny(vision, size), torch.rand(2, 3, 80, 60)
    found = tower.features(images)
    assert found.map.shape == (2, *shape)
    assert torch.allclose(found.pooled, tower.encode_image(images), atol=1e-5)


# --- weights from files, tags and hubs ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_local_file(small: CLIPTower, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {name: value.contiguous() for name, value in small.model.state_dict().items()}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    again = build_clip("vlkd-clip-s", pretrained=str(path))
    assert again.identity == small.identity != build_clip("vlkd-clip-s").identity
    assert torch.equal(again.encode_text(WORDS), small.encode_text(WORDS))
    with pytest.raises(UserError, match="not weights of vlkd-clip-m") as error:
        build_clip("vlkd-clip-m", pretrained=str(path))
    assert str(path) in one_line(error)


def test_a_file_that_holds_no_weights_is_one_line_and_runs_nothing(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "harm.pt").write_bytes(pickle.dumps(Harm(), protocol=2))
    for name in ("text.pt", "harm.pt"):
        with pytest.raises(UserError, match=f"{name}: not weights of vlkd-clip-s") as error:
            build_clip("vlkd-clip-s", pretrained=str(tmp_path / name))
        one_line(error)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "pretrained", "expected"),
    [
        ("vlkd-clip-n", None, "near: vlkd-clip-"),
        ("ViT-B-23", None, "ViT-B-32"),
        ("RN50", "openia", "near: openai"),
        ("vlkd-clip-m", "laion2b", "no tag exists"),
        ("hf-hub:laion/x", "weights.pt", "needs the name of an open_clip architecture"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, pretrained: str | None, expected: str) -> None:
    with pytest.raises(UserError) as error:
        build_clip(name, pretrained)
    assert expected in one_line(error) and (pretrained or name) in one_line(error)


@pytest.mark.parametrize(
    ("name", "pretrained"), [("RN50", "openai"), ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)]
)
def test_unreachable_hub_is_one_line_with_the_way_out(
    name: str, pretrained: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown_host(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    offline, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"{name}: cannot be downloaded") as error:
        build_clip(name, pretrained)
    assert time.perf_counter() - start < 15  # the first such call in a process also imports libraries
    assert "pass" in one_line(error) and "pretrained=/path/to/weights" in one_line(error)
    assert offline == constants.HF_HUB_OFFLINE and disabled == logging.root.manager.disable


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "create_model", needs)
    with pytest.raises(UserError, match="pip install transformers"):
        build_clip("vlkd-clip-s")


def test_the_activation_of_a_tag_is_used_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["openai"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": True})
    monkeypatch.setattr(
        open_clip, "create_model", lambda name, pretrained, **options: create(name, **options)
    )
    tower = build_clip("vlkd-clip-s", "openai")
    assert any(type(module).__name__ == "QuickGELU" for module in tower.model.modules())
    again = from_architecture(tower.architecture)
    again.model.load_state_dict(tower.model.state_dict())
    assert torch.equal(again.encode_text(WORDS), tower.encode_text(WORDS))


# --- bundles -----------------------------------------------------------------------------------------------


def save(tower: CLIPTower, path: Path, kind: str = "clip") -> Path:
    card = {"kind": kind, "name": "t", "architecture": tower.architecture}
    tensors = {f"model.{name}": value for name, value in tower.model.state_dict().items()}
    return save_bundle(path, card, tensors, half=True)


@pytest.mark.parametrize(
    "make", [lambda: build_clip("vlkd-clip-s"), lambda: tiny(VIT), lambda: tiny(RESNET, 64)]
)
def test_half_precision_bundle_keeps_vectors_and_identity(make: Any, tmp_path: Path) -> None:
    tower = make()
    again = build_clip(str(save(tower, tmp_path / "clip.safetensors")))
    images = torch.rand(2, 3, 48, 48)
    assert again.identity == tower.identity and again.spec == tower.spec and not again.model.training
    assert torch.allclose(again.encode_text(WORDS), tower.encode_text(WORDS), atol=3e-3)
    assert torch.allclose(again.encode_image(images), tower.encode_image(images), atol=3e-3)


def test_other_bundles_are_refused(small: CLIPTower, tmp_path: Path) -> None:
    path = save(small, tmp_path / "seg.safetensors", kind="segmentor")
    with pytest.raises(UserError, match=r"holds a segmentor, expected a CLIP bundle"):
        build_clip(str(path))


def test_identity_follows_the_weights(small: CLIPTower) -> None:
    tower = from_architecture(small.architecture)
    tower.model.load_state_dict(small.model.state_dict())
    tower.refresh_identity()
    assert tower.identity == small.identity
    with torch.no_grad():
        tower.model.ln_final.bias[3] += 1
    tower.refresh_identity()
    assert tower.identity != small.identity


def test_text_half_travels_alone(small: CLIPTower) -> None:
    tensors = small.text_tensors()
    assert not any(name.startswith("visual.") for name in tensors)
    alone = text_from_card({**small.architecture, "identity": small.identity}, tensors)
    assert alone.identity == small.identity and alone.logit_scale == small.logit_scale
    assert torch.equal(alone.encode_text(WORDS), small.encode_text(WORDS))
    assert sum(p.numel() for p in alone.parameters()) == sum(
        p.numel() for n, p in small.model.named_parameters() if not n.startswith("visual.")
    )
