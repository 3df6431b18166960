"""CLIP towers: any open_clip model, by name, hub id, zoo name or file; images in [0, 1], texts as strings."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.spec import InputSpec
from vlkd.models.tokenizer import Tokenizer, build_tokenizer

_OWN_CONFIGS = Path(__file__).parent / "configs"
_OWN_PREPROCESS: dict[str, dict[str, Any]] = {  # where it is not CLIP's own
    "vlkd-clip-s": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"},
}
_TEXT_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Inner features of an image tower: map (B,C,h,w) and pooled (B,D) unit embedding."""

    map: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """The text half of a CLIP model: strings to unit vectors."""

    model: Any  # open_clip's classes differ in what they have

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, architecture: dict[str, Any], identity: str
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.identity = identity

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before the softmax (already exponentiated)."""
        return float(self.model.logit_scale.detach().exp())

    def encode_text(self, texts: list[str]) -> Tensor:
        """(K,D) unit vectors of K strings."""
        return F.normalize(self.embed_text(texts), dim=-1)

    def embed_text(self, texts: list[str]) -> Tensor:
        """(K,D) float32 of K strings, before they are made unit."""
        device = self.model.logit_scale.device
        ids = self.tokenizer(list(texts)).to(device)
        return torch.cat([self.model.encode_text(part) for part in ids.split(_TEXT_BATCH)]).float()


class CLIPTower(TextEncoder):
    """A whole CLIP model that knows its own input: encode_image, encode_text, inner features."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        architecture: dict[str, Any],
        spec: InputSpec,
        identity: str = "",
    ) -> None:
        super().__init__(model, tokenizer, architecture, identity)
        self.spec = spec
        self.name = architecture["name"]
        if not identity:
            self.refresh_identity()

    def encode_image(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,D) unit vectors; resizing and normalisation happen here."""
        return F.normalize(self.embed_image(images01), dim=-1)

    def embed_image(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,D) float32, before it is made unit."""
        return self.model.encode_image(self._prepare(images01)).float()

    def _prepare(self, images01: Tensor) -> Tensor:
        return prepared(self.spec, images01)

    def features(self, images01: Tensor) -> Features:
        """Last feature map (B,C,h,w) at the tower's own size, and the pooled unit embedding (B,D)."""
        images, visual = self._prepare(images01), self.model.visual
        if hasattr(visual, "forward_intermediates"):
            out = visual.forward_intermediates(images, indices=1, output_fmt="NCHW")
            return Features(
                out["image_intermediates"][-1], F.normalize(out["image_features"].float(), dim=-1)
            )
        x = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        return Features(x, F.normalize(visual.attnpool(x).float(), dim=-1))

    def refresh_identity(self) -> None:
        """Recompute the identity after the weights changed (training)."""
        # The activation has no weights, and the same weights with another are another model.
        activation = "+quickgelu" if self.architecture["model_cfg"].get("quick_gelu") else ""
        self.identity = weights_identity(self.name + activation, self.model.state_dict())

    def text_tensors(self) -> dict[str, Tensor]:
        """Weights of the text half alone, for a bundle that ships without the image tower."""
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith("visual.")}


def prepared(spec: InputSpec, images01: Tensor) -> Tensor:
    """(B,3,H,W) in [0,1] -> what a tower of this spec takes, channels last."""
    # Convolutions on a CPU run up to twice as fast in this layout; values are the same.
    return spec.prepare(images01).contiguous(memory_format=torch.channels_last)


def weights_identity(name: str, state: dict[str, Tensor]) -> str:
    """name@hash16 of the weights in half precision, so that storing them in half keeps the identity."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        half = value.to(torch.float16) if value.is_floating_point() else value
        digest.update(key.encode() + half.detach().cpu().contiguous().numpy().tobytes())
    return f"{name}@{digest.hexdigest()[:16]}"


@lru_cache(maxsize=1)
def register_own_configs() -> tuple[str, ...]:
    """Make the packaged tiny architectures known to open_clip; returns their names."""
    import open_clip

    open_clip.add_model_config(_OWN_CONFIGS)
    return tuple(sorted(path.stem for path in _OWN_CONFIGS.glob("*.json")))


def _spec(preprocess: dict[str, Any], width: int, patch: int | None) -> InputSpec:
    size = preprocess["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    return InputSpec(size, preprocess["mean"], preprocess["std"], preprocess["interpolation"], width, patch)


def from_architecture(architecture: dict[str, Any], identity: str = "") -> CLIPTower:
    """Build a tower with fresh weights from its description {name, model_cfg, preprocess}."""
    from open_clip.model import CLIP, CustomTextCLIP

    cfg = copy.deepcopy(architecture["model_cfg"])
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    model = (CustomTextCLIP if custom else CLIP)(**cfg)
    spec = _spec(architecture["preprocess"], cfg["embed_dim"], cfg["vision_cfg"].get("patch_size"))
    tokenizer = build_tokenizer(architecture["name"], cfg["text_cfg"])
    return CLIPTower(model.eval(), tokenizer, architecture, spec, identity)


def text_from_card(card: dict[str, Any], tensors: dict[str, Tensor]) -> TextEncoder:
    """Text encoder of a bundle: card {name, model_cfg, preprocess, identity}, tensors as of text_tensors."""
    tower = from_architecture(card, identity=card["identity"])
    model = tower.model
    model.visual = nn.Identity()
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=True
    )
    return TextEncoder(model.eval(), tower.tokenizer, card, card["identity"])


def _describe(name: str, model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    import open_clip

    config = json.loads(json.dumps(config))
    preprocess = open_clip.get_model_preprocess_cfg(model)
    kept = {k: preprocess[k] for k in ("size", "mean", "std", "interpolation")}
    return {"name": name, "model_cfg": config, "preprocess": kept}


def build_clip(name: str, pretrained: str | None = None) -> CLIPTower:
    """CLIP tower by open_clip architecture name, "hf-hub:ORG/REPO", model-zoo name or bundle file.

    pretrained: tag or local file, with an architecture name. Raises UserError for unknown names, unreadable
    files and unreachable hubs.
    """
    import open_clip

    register_own_configs()
    from_hub = name.startswith("hf-hub:")
    if pretrained and (from_hub or name not in open_clip.list_models()):
        raise UserError(f"{name}: pretrained={pretrained!r} needs the name of an open_clip architecture")
    if not from_hub and name not in open_clip.list_models():
        return _from_bundle(name)
    # open_clip only warns where a tag's weights were trained with another activation than the architecture's.
    quick_gelu = bool(_tag(name, pretrained).get("quick_gelu"))
    with _fetching(name, pretrained):
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            require_pretrained=from_hub,
            weights_only=True,
        )
        config = _config(name)
        tokenizer = build_tokenizer(name, config["text_cfg"])
    if quick_gelu:
        config["quick_gelu"] = True
    architecture = _describe(name, model, config)
    architecture["preprocess"].update(_OWN_PREPROCESS.get(name, {}))
    spec = _spec(architecture["preprocess"], config["embed_dim"], config["vision_cfg"].get("patch_size"))
    return CLIPTower(model.eval(), tokenizer, architecture, spec)


def _config(name: str) -> dict[str, Any]:
    import open_clip

    if name.startswith("hf-hub:"):
        return open_clip.factory._get_hf_config(name.removeprefix("hf-hub:"))["model_cfg"]
    return open_clip.get_model_config(name)


def _tag(name: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip knows of a tag, nothing for a file. Raises UserError when it is neither."""
    import open_clip

    if not pretrained or Path(pretrained).is_file():
        return {}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        near = difflib.get_close_matches(pretrained, tags, 1) or tags[:3]
        raise UserError(
            f"{name}: pretrained={pretrained!r} is neither a file nor a tag of open_clip; "
            f"near: {', '.join(near) or 'no tag exists'}"
        )
    return open_clip.get_pretrained_cfg(name, pretrained)


@contextmanager
def _fetching(name: str, pretrained: str | None) -> Iterator[None]:
    """One UserError for whatever goes wrong while weights, config or tokenizer are fetched and read."""
    try:
        with quiet_and_quick():
            yield
    except ImportError as error:
        raise UserError(f"{name}: needs a further package; pip install {error.name}") from error
    except Exception as error:
        if pretrained and Path(pretrained).is_file() and not isinstance(error, OSError):
            raise UserError(f"{pretrained}: not weights of {name} ({_first_line(error)})") from error
        raise UserError(
            f"{name}: cannot be downloaded ({_first_line(error)}); {_offline_hint(name, pretrained)}"
        ) from error


def _offline_hint(name: str, pretrained: str | None) -> str:
    tag = _tag(name, pretrained)
    source = (tag.get("hf_hub") or "").rstrip("/") or tag.get("url") or name.removeprefix("hf-hub:")
    how = "its architecture as the name and " if name.startswith("hf-hub:") else ""
    if tag.get("quick_gelu") and not name.endswith("-quickgelu"):
        how = (
            f"{name}-quickgelu as the name and "  # a file does not tell which activation it was trained with
        )
    return (
        f"fetch the weights of {source} on a machine with access "
        f"and pass {how}their file: pretrained=/path/to/weights"
    )


@contextmanager
def quiet_and_quick() -> Iterator[None]:
    """No log lines from open_clip, and no minute of retries where the hub's host does not even resolve."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        constants.HF_HUB_OFFLINE = offline


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _from_bundle(name: str) -> CLIPTower:
    import open_clip

    from vlkd.engine.bundle import load_bundle
    from vlkd.engine.hub import Zoo, resolve

    zoo = [] if Path(name).exists() else sorted(Zoo.open().entries)
    if not Path(name).exists() and name not in zoo:
        known = [*zoo, *open_clip.list_models()]
        near = difflib.get_close_matches(name, known, 3)
        raise UserError(
            f"CLIP model {name!r}: not a file, a zoo name or an open_clip architecture; "
            f"near: {', '.join(near) or 'see open_clip.list_models()'}"
        )
    card, tensors = load_bundle(resolve(name))
    if card["kind"] != "clip":
        raise UserError(f"{name}: holds a {card['kind']}, expected a CLIP bundle")
    tower = from_architecture(card["architecture"])
    tower.model.load_state_dict(
        {k.removeprefix("model."): v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    tower.refresh_identity()
    return tower
