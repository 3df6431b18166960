"""Segmentor: mask classification in the text space of a CLIP teacher, which is not needed at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.backbone import STRIDES, build_backbone
from vlkd.models.deformable import MSDeformDecoder
from vlkd.models.mask_decoder import DecoderLevel, MaskDecoder
from vlkd.models.pixel_decoder import FPN
from vlkd.models.spec import InputSpec

_MASKED_LOGIT = -1e4  # exp() of it is 0 in every float type, and it stays finite in float16
_MAX_LOG_SCALE = math.log(100.0)


@dataclass
class Prediction:
    """What one decoder level says.

    `mask_logits` (B, Q, ceil(H/4), ceil(W/4)); `queries` (B, Q, C), the features before ReLU and projection;
    `embeddings` (B, Q, D), unit vectors in the text space; `memory` (B, Q, C), the decoder's state, which the
    final level hands to the next frame of the same video.
    """

    mask_logits: Tensor
    queries: Tensor
    embeddings: Tensor
    memory: Tensor


@dataclass
class Features:
    """What the pixel decoder hands to the mask decoder.

    `masks` (B, C', h, w) at stride 4; `scales` at strides 32, 16, 8; `valids` at strides 4, 8, 16, 32;
    `semantic` (B, D, h, w) in text space, if any; `size` (h, w) of the masks without padding.
    """

    masks: Tensor
    scales: Sequence[Tensor]
    valids: list[Tensor | None]
    semantic: Tensor | None
    size: tuple[int, int]

    def every(self, step: int, first: int) -> Features:
        """Those of the images first, first + step, ..."""
        part = slice(first, None, step)
        return Features(
            self.masks[part],
            [scale[part] for scale in self.scales],
            [None if valid is None else valid[part] for valid in self.valids],
            None if self.semantic is None else self.semantic[part],
            self.size,
        )


class Segmentor(nn.Module):
    """Backbone, pixel decoder, masked-attention decoder, an embedding head per level (GKC, arXiv 2303.09181).

    `backbone`: see `vlkd.models.backbone.build_backbone`. `mask_channels` defaults to `channels`, `ffn` to
    4 x `channels`. `embedding`: "query" projects the query, "pooled" projects the backbone's last map
    averaged under the query's mask (starting from the CLIP projection where the backbone has one of that
    width), "sum" adds both. `size` is the nominal (H, W); any size works. `memory`: whether queries can start
    from their state in the frame before, so that query i is object i through a video. Raises UserError for
    arguments that do not fit together.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any] = "timm:resnet18",
        pixel_decoder: Literal["fpn", "msdeform"] = "fpn",
        channels: int = 64,
        mask_channels: int | None = None,
        queries: int = 20,
        layers: int = 3,
        heads: int = 8,
        ffn: int | None = None,
        encoder_layers: int = 6,
        text_width: int = 512,
        embedding: Literal["query", "pooled", "sum"] = "query",
        size: Sequence[int] = (512, 512),
        memory: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(pixel_decoder, channels, queries, layers, heads, embedding)
        mask_channels, ffn = mask_channels or channels, ffn or 4 * channels
        self.backbone = build_backbone(backbone)
        self.arguments: dict[str, Any] = {
            "backbone": self.backbone.arguments,
            "pixel_decoder": pixel_decoder,
            "channels": channels,
            "mask_channels": mask_channels,
            "queries": queries,
            "layers": layers,
            "heads": heads,
            "ffn": ffn,
            "encoder_layers": encoder_layers,
            "text_width": text_width,
            "embedding": embedding,
            "size": [int(side) for side in size],
            "memory": memory,
        }
        self.spec = InputSpec(
            size=(int(size[0]), int(size[1])),
            mean=self.backbone.mean,
            std=self.backbone.std,
            interpolation="bilinear",
            width=text_width,
            patch=None,
        )
        inputs = self.backbone.channels
        self.pixel_decoder: nn.Module = (
            FPN(inputs, channels, mask_channels)
            if pixel_decoder == "fpn"
            else MSDeformDecoder(inputs, channels, mask_channels, encoder_layers, heads)
        )
        self.decoder = MaskDecoder(channels, mask_channels, queries, layers, heads, ffn, memory)
        self.query_head = nn.Linear(channels, channels)
        self.projections = nn.ModuleList(
            [nn.Linear(channels, text_width) for _ in range(layers + 1 if embedding != "pooled" else 0)]
        )
        self.pooled = nn.Linear(inputs[-1], text_width) if embedding != "query" else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.no_object = nn.Parameter(torch.randn(text_width) * text_width**-0.5)
        self._take_clip_projection()
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images01: Tensor,
        valid: Tensor | None = None,
        all_levels: bool | None = None,
        memory: Tensor | None = None,
    ) -> list[Prediction]:
        """images01 (B, 3, H, W), valid (B, H, W) bool (True = image, False = padding right or below).

        `memory` (B, Q, C): what the final Prediction of the frame before holds; None for images and first
        frames. Returns one Prediction per decoder level, final last; in eval mode only the final one unless
        `all_levels`. Raises UserError for a memory that does not fit.
        """
        features = self._encode(images01, valid)
        return self._decode(features, all_levels, memory)

    def clip(
        self, images01: Tensor, frames: int, valid: Tensor | None = None, all_levels: bool | None = None
    ) -> list[Prediction]:
        """Clips of T = `frames` frames in order, images01 (B * T, 3, H, W), valid (B * T, H, W).

        Each frame is given the memory of the one before, with its gradient, where the segmentor has one.
        Returns the Predictions of `forward` for the B * T frames.
        """
        features = self._encode(images01, valid)
        found: list[list[Prediction]] = []
        for t in range(frames):
            memory = found[-1][-1].memory if found and self.arguments["memory"] else None
            found.append(self._decode(features.every(frames, t), all_levels, memory))
        return [_interleaved(level) for level in zip(*found, strict=True)]

    @property
    def scale(self) -> Tensor:
        """The learned factor on cosines, at most 100."""
        return self.logit_scale.clamp(max=_MAX_LOG_SCALE).exp()

    def class_logits(self, embeddings: Tensor, vectors: Tensor, present: Tensor | None = None) -> Tensor:
        """exp(s) * cosine: embeddings (B, Q, D), vectors (K, D) or (B, K, D) -> (B, Q, K+1), no-object last.

        `present` (K,) or (B, K) bool: classes outside it get a logit of -1e4. Raises UserError where widths
        differ.
        """
        if vectors.shape[-1] != embeddings.shape[-1]:
            raise UserError(
                f"class vectors have width {vectors.shape[-1]}, the segmentor's embeddings "
                f"{embeddings.shape[-1]}; encode the names with the segmentor's own text tower"
            )
        # Scaled by up to 100, cosines in half precision would blur neighbouring classes.
        with torch.autocast(embeddings.device.type, enabled=False):
            vectors = F.normalize(vectors.float(), dim=-1)
            rows = torch.cat([vectors, self._no_object(vectors)], dim=-2)
            scale = self.scale
            logits = scale * (embeddings.float() @ rows.transpose(-1, -2))
        if present is None:
            return logits
        absent = F.pad(~present, (0, 1), value=False)
        return logits.masked_fill(absent if absent.dim() == 1 else absent[:, None], _MASKED_LOGIT)

    def init_pooled(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Start the pooled projection from a CLIP one: weight (D, C of the last map), bias (D,) or zeros."""
        if self.pooled is None or weight.shape != self.pooled.weight.shape:
            wanted = "embedding='pooled' or 'sum'" if self.pooled is None else tuple(self.pooled.weight.shape)
            raise UserError(f"init_pooled: a weight of shape {tuple(weight.shape)} was given, needs {wanted}")
        with torch.no_grad():
            self.pooled.weight.copy_(weight)
            self.pooled.bias.zero_() if bias is None else self.pooled.bias.copy_(bias)

    def _check_memory(self, memory: Tensor | None, batch: int) -> None:
        if memory is None:
            return
        if not self.arguments["memory"]:
            raise UserError(
                "this segmentor takes no memory of the frame before: expected memory=None, or a segmentor "
                "built with memory=True"
            )
        wanted = (batch, self.arguments["queries"], self.arguments["channels"])
        if tuple(memory.shape) != wanted:
            raise UserError(f"memory of shape {tuple(memory.shape)} was given, needs {wanted}")

    def _take_clip_projection(self) -> None:
        projection, self.backbone.clip_projection = self.backbone.clip_projection, None
        if self.pooled is not None and projection and projection[0].shape == self.pooled.weight.shape:
            self.init_pooled(*projection)
            # Start from what CLIP says of the masked pixels; the queries learn to correct it.
            for parameter in self.projections.parameters():
                nn.init.zeros_(parameter)

    def _no_object(self, vectors: Tensor) -> Tensor:
        row = F.normalize(self.no_object.to(vectors.dtype), dim=-1)
        return row.expand(*vectors.shape[:-2], 1, -1)

    def _pad(self, images: Tensor, valid: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """Images padded to multiples of 32 with the mean colour, valid masks at strides 4, 8, 16, 32."""
        height, width = images.shape[-2:]
        below, right = -height % STRIDES[-1], -width % STRIDES[-1]
        if valid is None and not (below or right):
            return images, [None] * len(STRIDES)
        if valid is None:
            valid = torch.ones(images.shape[0], height, width, dtype=torch.bool, device=images.device)
        images = F.pad(images * valid[:, None].to(images.dtype), (0, right, 0, below))
        valid = F.pad(valid, (0, right, 0, below), value=False)
        # Padding lies right and below, so a cell holds image exactly where its first pixel does.
        return images, [valid[:, ::stride, ::stride] for stride in STRIDES]

    def _encode(self, images01: Tensor, valid: Tensor | None) -> Features:
        height, width = images01.shape[-2:]
        images, valids = self._pad(self.spec.normalise(images01), valid)
        # Convolutions on a CPU run faster in this layout; values are the same.
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        mask_features, scales = self.pixel_decoder(maps, valids)
        semantic = None if self.pooled is None else self._text_map(maps[-1])
        return Features(mask_features, scales, valids, semantic, (-(-height // 4), -(-width // 4)))

    def _decode(self, features: Features, all_levels: bool | None, memory: Tensor | None) -> list[Prediction]:
        self._check_memory(memory, len(features.masks))
        final_only = not (self.training if all_levels is None else all_levels)
        levels = self.decoder(features.masks, features.scales, features.valids[:0:-1], final_only, memory)
        first = len(self.decoder.layers) + 1 - len(levels)
        return [self._predict(level, first + i, features) for i, level in enumerate(levels)]

    def _predict(self, level: DecoderLevel, index: int, features: Features) -> Prediction:
        queries = self.query_head(level.queries)
        embeddings: Tensor | float = 0.0
        if len(self.projections):
            embeddings = self.projections[index](F.relu(queries))
        if features.semantic is not None:
            logits = level.mask_logits.detach()
            embeddings = embeddings + pool_under_masks(features.semantic, logits, features.valids[0])
        assert isinstance(embeddings, Tensor)
        masks = level.mask_logits[..., : features.size[0], : features.size[1]]
        return Prediction(masks, queries, F.normalize(embeddings.float(), dim=-1), level.queries)

    def _text_map(self, last: Tensor) -> Tensor:
        """Last map (B, C, h, w) at stride 32 -> text space (B, D, 2h, 2w) at stride 16."""
        assert self.pooled is not None
        # A linear map commutes with the pooling to come, and is cheaper on the small map.
        projected = self.pooled(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(projected, scale_factor=2.0, mode="bilinear", align_corners=False)


def _interleaved(frames: Sequence[Prediction]) -> Prediction:
    """Predictions of frames (T of (B, ...)) as one (B * T, ...), clip by clip."""
    names = [field.name for field in fields(Prediction)]
    parts = [torch.stack([getattr(frame, name) for frame in frames], 1).flatten(0, 1) for name in names]
    return Prediction(*parts)


def pool_under_masks(features: Tensor, mask_logits: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of features (B, D, h, w) under masks (B, Q, 4h, 4w), inside valid (B, 4h, 4w) -> (B, Q, D)."""
    masks = mask_logits.float().sigmoid()
    if valid is not None:
        masks = masks * valid[:, None]
    weights = F.avg_pool2d(masks, 4).flatten(2)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("bqn,bdn->bqd", weights.to(features.dtype), features.flatten(2))


def _check_arguments(
    pixel_decoder: str, channels: int, queries: int, layers: int, heads: int, embedding: str
) -> None:
    if pixel_decoder not in ("fpn", "msdeform"):
        raise UserError(f"pixel_decoder {pixel_decoder!r}: expected 'fpn' or 'msdeform'")
    if embedding not in ("query", "pooled", "sum"):
        raise UserError(f"embedding {embedding!r}: expected 'query', 'pooled' or 'sum'")
    if channels % heads or channels % 4:
        raise UserError(f"channels={channels}: expected a multiple of heads={heads} and of 4")
    if queries < 1 or layers < 1:
        raise UserError(f"queries={queries}, layers={layers}: expected at least 1 of each")
