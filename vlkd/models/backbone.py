"""Backbones of the segmentor: feature maps at strides 4, 8, 16, 32 from timm models and CLIP image towers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError

STRIDES = (4, 8, 16, 32)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SPEC_KEYS = ("name", "pretrained", "mean", "std", "config")


class Backbone(nn.Module):
    """A network with `channels` (C4, C8, C16, C32), the `mean` and `std` it expects, and the `arguments`
    that `build_backbone` rebuilds it from (without fetching weights).

    `clip_projection` is (weight (D, C32), bias (D,) or None) where the weights came from a CLIP tower whose
    projection is linear in the last map, else None.
    """

    channels: tuple[int, ...]

    def __init__(self, name: str, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.mean, self.std = _three(mean), _three(std)
        self.arguments: dict[str, Any] = {"name": name, "mean": list(self.mean), "std": list(self.std)}
        self.clip_projection: tuple[Tensor, Tensor | None] | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W), sides multiples of 32 -> maps (B, C, H/s, W/s), s = 4 to 32."""
        raise NotImplementedError


class TimmBackbone(Backbone):
    """Any timm model with intermediate features; plain ViTs get a `FeaturePyramid` on their last map."""

    def __init__(self, name: str, pretrained: bool | str = False, mean: Any = None, std: Any = None) -> None:
        model = _create_timm(name, pretrained)
        default = model.pretrained_cfg
        super().__init__(f"timm:{name}", mean or default["mean"], std or default["std"])
        reductions = [info["reduction"] for info in model.feature_info]
        channels = [info["num_chs"] for info in model.feature_info]
        self.plain = len(reductions) > 1 and len(set(reductions)) == 1
        if self.plain:
            # One stride throughout: only the last, normalised map is of use.
            indices = [len(reductions) - 1]
            self.stride = reductions[-1]
        else:
            indices = sorted({_nearest_stride(reductions, stride) for stride in STRIDES})
        chosen = [_nearest_stride([reductions[i] for i in indices], stride) for stride in STRIDES]
        self.chosen = [0] if self.plain else chosen
        kept = [channels[i] for i in indices]
        if hasattr(model, "prune_intermediate_layers"):
            indices = model.prune_intermediate_layers(indices, prune_norm=not self.plain)
        else:
            model.reset_classifier(0)
        self.indices = list(indices)
        self.model = model
        self.pyramid = FeaturePyramid(kept[-1], self.stride) if self.plain else None
        self.channels = (kept[-1],) * 4 if self.plain else tuple(kept[i] for i in chosen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        height, width = images.shape[-2:]
        if self.pyramid is not None:
            images = self.pyramid.resize_input(images)
        try:
            maps = self.model.forward_intermediates(
                images, indices=self.indices, norm=self.plain, output_fmt="NCHW", intermediates_only=True
            )
        except (AssertionError, RuntimeError) as error:
            nominal = tuple(self.model.pretrained_cfg["input_size"][1:])
            if nominal == (height, width) or not self.model.pretrained_cfg.get("fixed_input_size"):
                raise
            raise UserError(
                f"{self.arguments['name']} refuses images of {height} x {width}, its size is fixed at "
                f"{nominal}; take a convolutional backbone, a Swin or a plain ViT"
            ) from error
        if self.pyramid is not None:
            return self.pyramid(maps[-1], (height, width))
        sizes = [(height // stride, width // stride) for stride in STRIDES]
        return [_resize(maps[index], size) for index, size in zip(self.chosen, sizes, strict=True)]


class ModifiedResNetBackbone(Backbone):
    """CLIP's own ResNet (RN50, RN101, RN50x4 ...) without its attention pool."""

    visual: Any

    def __init__(self, name: str, visual: Any, config: dict[str, Any], mean: Any, std: Any) -> None:
        super().__init__(name, mean, std)
        self.arguments["config"] = config
        visual.attnpool = nn.Identity()
        self.visual = visual
        width = visual.conv1.out_channels * 2
        self.channels = (width * 4, width * 8, width * 16, width * 32)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        visual, maps = self.visual, []
        x = visual.stem(images)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class CLIPViTBackbone(Backbone):
    """open_clip's own vision transformer at any input size, its last map spread over four strides."""

    def __init__(self, name: str, visual: Any, config: dict[str, Any], mean: Any, std: Any) -> None:
        super().__init__(name, mean, std)
        self.arguments["config"] = config
        self.conv = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre, self.transformer, self.ln_post = visual.ln_pre, visual.transformer, visual.ln_post
        self.grid = tuple(visual.grid_size)
        width = self.conv.out_channels
        if visual.attn_pool is not None:
            self.ln_post = nn.Identity()
        self.pyramid = FeaturePyramid(width, self.conv.stride[0])
        self.channels = (width,) * 4

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        size = (images.shape[-2], images.shape[-1])
        x = self.conv(self.pyramid.resize_input(images))
        batch, width, height, columns = x.shape
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = self.ln_pre(x + self._positions(height, columns))
        x = self.ln_post(self.transformer(x))[:, 1:]
        return self.pyramid(x.transpose(1, 2).reshape(batch, width, height, columns), size)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == self.grid:
            return self.positional_embedding
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = rest.T.reshape(1, -1, *self.grid).float()
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([first, grid[0].flatten(1).T.to(rest.dtype)])


class FeaturePyramid(nn.Module):
    """Four strides from the one map of a plain vision transformer, as in ViTDet (arXiv 2203.16527)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.patch = stride
        self.stride = stride if stride in (8, 16, 32) else 16
        self.to4 = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.GroupNorm(1, channels),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )
        self.to8 = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def resize_input(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) resized so that patches of 14 (or any odd) pixels lie on the stride-16 grid."""
        if self.patch == self.stride:
            return images
        height, width = (side // self.stride * self.patch for side in images.shape[-2:])
        return F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)

    def forward(self, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Last map (B, C, h, w) of an image of `size` (H, W) -> maps at strides 4, 8, 16, 32."""
        x = _resize(x, (size[0] // 16, size[1] // 16))
        return [self.to4(x), self.to8(x), x, F.max_pool2d(x, 2)]


def build_backbone(spec: str | dict[str, Any]) -> Backbone:
    """Backbone from "timm:NAME", "open_clip:NAME" or "clip:NAME_OR_BUNDLE", or a dict with such a `name`.

    Further keys: `pretrained` (timm: true, tag or file; open_clip: tag or file), `mean`, `std` (override),
    `config` (open_clip's embed_dim, vision_cfg, quick_gelu; rebuilds a tower whose name is not registered).
    "clip:" takes the image tower, with its weights, of `vlkd.models.clip.build_clip`. Raises UserError for
    unknown names and keys.
    """
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    for key in spec:
        if key not in _SPEC_KEYS:
            raise UserError(f"backbone: unknown key {key!r}{_nearest(key, _SPEC_KEYS)}")
    kind, _, name = str(spec.get("name", "")).partition(":")
    pretrained, mean, std = spec.get("pretrained", False), spec.get("mean"), spec.get("std")
    if kind == "timm" and name:
        return TimmBackbone(name, pretrained, mean, std)
    if kind == "clip" and name:
        return _from_clip_tower(name, pretrained or None, mean, std)
    if kind == "open_clip" and name:
        if pretrained:
            return _from_clip_tower(name, pretrained, mean, std)
        config = spec.get("config") or _open_clip_config(name)
        return _from_visual(name, _build_visual(config), config, mean or _CLIP_MEAN, std or _CLIP_STD)
    raise UserError(
        f"backbone {spec.get('name')!r}: expected 'timm:NAME', 'open_clip:NAME' or 'clip:NAME_OR_BUNDLE'"
    )


def _from_clip_tower(name: str, pretrained: Any, mean: Any, std: Any) -> Backbone:
    from vlkd.models.clip import build_clip

    tower = build_clip(name, pretrained)
    visual: Any = tower.model.visual
    projection = _clip_projection(visual)
    config = tower.architecture["model_cfg"]
    backbone = _from_visual(name, visual, config, mean or tower.spec.mean, std or tower.spec.std)
    backbone.clip_projection = projection
    return backbone


def _from_visual(name: str, visual: Any, config: dict[str, Any], mean: Any, std: Any) -> Backbone:
    """Backbone that takes over the modules (timm: the weights) of an open_clip image tower."""
    if hasattr(visual, "trunk"):
        backbone = TimmBackbone(config["vision_cfg"]["timm_model_name"], False, mean, std)
        _load(backbone.model, visual.trunk.state_dict(), f"the image tower of {name}")
        return backbone
    kept: dict[str, Any] = {
        key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config
    }
    form = ModifiedResNetBackbone if hasattr(visual, "layer4") else CLIPViTBackbone
    return form(f"open_clip:{name}", visual, kept, mean, std)


def _clip_projection(visual: Any) -> tuple[Tensor, Tensor | None] | None:
    """(weight (D, C), bias (D,)) that takes the last map of an open_clip image tower into the CLIP space."""
    if hasattr(visual, "attnpool"):
        # The attention pool of a constant map is this one linear map (MaskCLIP, arXiv 2112.01071).
        value, output = visual.attnpool.v_proj, visual.attnpool.c_proj
        weight, bias = output.weight @ value.weight, output.weight @ value.bias + output.bias
        return weight.detach(), bias.detach()
    if hasattr(visual, "trunk"):
        layer = getattr(visual.head, "proj", None)
        if not isinstance(layer, nn.Linear) or hasattr(visual.head, "pool"):
            return None
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if visual.attn_pool is not None or visual.proj is None:
        return None
    return visual.proj.detach().T.contiguous(), None


def _open_clip_config(name: str) -> dict[str, Any]:
    import open_clip

    from vlkd.models.clip import register_own_configs

    register_own_configs()
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"open_clip has no model {name!r}{_nearest(name, open_clip.list_models())}")
    return config


def _build_visual(config: dict[str, Any]) -> nn.Module:
    # open_clip builds a tower without its text half only through this function.
    from open_clip.model import _build_vision_tower

    return _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))


def _create_timm(name: str, pretrained: bool | str) -> Any:
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError(f"timm has no model {name!r}{_nearest(name.split('.')[0], known)}")
    file = Path(pretrained) if isinstance(pretrained, str) and Path(pretrained).is_file() else None
    fetch = bool(pretrained) and file is None
    if isinstance(pretrained, str) and fetch:
        name = f"{name.split('.')[0]}.{pretrained}"
    # Vision transformers accept sizes other than their nominal one only when asked to.
    attempts: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {})
    for options in attempts:
        try:
            model = timm.create_model(name, pretrained=fetch, num_classes=0, **options)
            break
        except TypeError:
            if not options:
                raise
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"timm model {name!r} could not be built{' with its weights' if fetch else ''} ({reason})"
                + ("; download its model.safetensors elsewhere and give `pretrained: FILE`" if fetch else "")
            ) from error
    if file is not None:
        _load(model, _read_weights(file), str(file))
    return model


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{file}: not a readable safetensors or torch weights file") from error
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    return state


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all weights of `model` from `state`; what `state` has besides (heads, pools) is left out."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    wrong = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or wrong:
        raise UserError(
            f"{source}: weights do not fit the backbone ({len(missing)} missing, {len(wrong)} of another "
            f"shape, first {(missing + wrong)[0]!r}); name the architecture that the file was made for"
        )
    model.load_state_dict({key: state[key] for key in wanted})


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _nearest_stride(reductions: list[int], stride: int) -> int:
    """Index of the last map whose stride is nearest to `stride`."""
    return min(reversed(range(len(reductions))), key=lambda i: abs(math.log2(reductions[i] / stride)))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
