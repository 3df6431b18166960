"""The video half of VidLanKD's teacher: features of a video's seconds to one unit vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.losses.precision import full
from vlkd.models.language import bert_arguments
from vlkd.models.weights import fit_weights
from vlkd.text.word_ids import transformers_library

Pool = Literal["mean", "first", "frames"]


@dataclass(frozen=True)
class VideoSize:
    """The video tower beside the text tower's own layers and width.

    hidden: width between the two linear maps of the features. positions: the longest video, in frames. pool:
    the mean of the valid frames, the first frame as released, or none (`frames`: a token is compared with the
    frame that is most like it). dropout: before the last linear map. embed_twice: positions, type and
    LayerNorm are applied two times, as released.
    """

    hidden: int = 1024
    positions: int = 384
    pool: Pool = "mean"
    dropout: float = 0.3
    embed_twice: bool = False

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "first", "frames"):
            raise UserError(f"model.video.pool={self.pool}: expected mean, first or frames")
        if self.hidden < 1 or self.positions < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.video: hidden {self.hidden}, positions {self.positions}, dropout {self.dropout}; "
                "expected widths and positions of at least 1, and a dropout in [0, 1)"
            )


class VideoTower(nn.Module):
    """Features of frames (B,T,C) -> unit vectors: two linear maps, a BERT, pooling, a two-layer MLP.

    `config`: BertConfig of the text tower; the video's BERT has its layers and width, words aside.
    Source: VidLanKD (arXiv 2107.02681), zinengtang/VidLanKD@46bae35, `vteacher/model.py`.
    """

    def __init__(self, features: int, config: Any, size: VideoSize = VideoSize()) -> None:
        super().__init__()
        library = transformers_library()
        arguments = bert_arguments(config)
        # Words are not read; the smallest table that BERT can have is frozen below.
        arguments |= {"vocab_size": 1, "pad_token_id": 0, "max_position_embeddings": size.positions}
        arguments["type_vocab_size"] = max(2, config.type_vocab_size)
        self.features, self.size = features, size
        self.input = nn.Sequential(
            nn.Linear(features, size.hidden), nn.Linear(size.hidden, config.hidden_size)
        )
        self.bert: Any = library.BertModel(
            library.BertConfig(**arguments), add_pooling_layer=size.pool == "first"
        )
        self.bert.embeddings.word_embeddings.weight.requires_grad_(False)
        width = config.hidden_size
        self.output = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(size.dropout), nn.Linear(width, width)
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """What `video_tower_of` builds the same network from, beside the text tower's config."""
        return {"features": self.features, **asdict(self.size)}

    def forward(self, video: Tensor, mask: Tensor) -> Tensor:
        """Features (B,T,C), mask (B,T) of the valid frames -> unit (B,D), or (B,T,D) with pool "frames".

        A video without a valid frame is read as if all were valid: let it take no part. Raises UserError for
        features of another width and more frames than positions.
        """
        if video.ndim != 3 or video.shape[2] != self.features or mask.shape != video.shape[:2]:
            raise UserError(
                f"video {tuple(video.shape)}, mask {tuple(mask.shape)}: expected (B,T,{self.features}) and "
                "(B,T); give the features that the tower was built for"
            )
        if video.shape[1] > self.size.positions:
            raise UserError(
                f"video of {video.shape[1]} frames, the tower has {self.size.positions} positions; let the "
                "data take fewer, or raise model.video.positions"
            )
        mask = mask.bool() | ~mask.bool().any(1, keepdim=True)
        found = self.bert(
            inputs_embeds=self._embedded(video), attention_mask=mask.long(), **self._type(video)
        )
        return F.normalize(full(self.output(self._pooled(found, mask))), dim=-1)

    def _embedded(self, video: Tensor) -> Tensor:
        embedded = self.input(video.to(next(self.input.parameters()).dtype))
        if not self.size.embed_twice:
            return embedded
        return self.bert.embeddings(inputs_embeds=embedded, **self._type(video))

    def _type(self, video: Tensor) -> dict[str, Tensor]:
        """Token type 1 everywhere."""
        return {"token_type_ids": torch.ones(video.shape[:2], dtype=torch.long, device=video.device)}

    def _pooled(self, found: Any, mask: Tensor) -> Tensor:
        if self.size.pool == "first":
            return found.pooler_output
        if self.size.pool == "frames":
            return found.last_hidden_state
        weight = mask[:, :, None].to(found.last_hidden_state.dtype)
        return (found.last_hidden_state * weight).sum(1) / weight.sum(1)


def video_tower_of(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], config: Any, source: str = "bundle"
) -> VideoTower:
    """The video tower of a bundle, in eval mode; `config` is of its text tower. Raises UserError for none."""
    arguments = dict(card["architecture"].get("video") or {})
    if not arguments:
        raise UserError(f"{source}: holds a {card['kind']} without a video tower; give the bundle of stage 1")
    features = arguments.pop("features")
    with torch.random.fork_rng(devices=[]):
        found = VideoTower(features, config, VideoSize(**arguments))
    state = {key.removeprefix("video."): x for key, x in tensors.items() if key.startswith("video.")}
    fit_weights(found, state, source)
    return found.eval()
