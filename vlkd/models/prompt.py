"""Deep prompts: learned tokens in the first layers of frozen CLIP towers. PromptKD (CVPR 2024), IVLP."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlkd.errors import UserError
from vlkd.models.clip import _TEXT_BATCH, CLIPTower, TextEncoder, prepared
from vlkd.models.spec import InputSpec

_STD = 0.02
_TRAINED_BATCH = 128  # names whose activations are held at once


class DeepPrompts(nn.Module):
    """Tokens (depth, length, width): those of layer i take the prompts' places before layer i runs."""

    def __init__(self, transformer: Any, length: int, depth: int, kind: str) -> None:
        super().__init__()
        layers, width = len(transformer.resblocks), transformer.width
        if length < 1:
            raise UserError(f"{kind} prompts: length {length}; expected at least 1 token")
        if not 1 <= depth <= layers:
            raise UserError(
                f"{kind} prompts: depth {depth}; this tower has {layers} layers, give 1 to {layers}"
            )
        self.values = nn.Parameter(torch.randn(depth, length, width) * _STD)

    @property
    def depth(self) -> int:
        """Number of layers with tokens of their own; the prompts' outputs flow on through later ones."""
        return self.values.shape[0]

    @property
    def length(self) -> int:
        """Number of tokens per layer."""
        return self.values.shape[1]

    def _tokens(self, layer: int, x: Tensor) -> Tensor:
        return self.values[layer].to(x.dtype).expand(len(x), -1, -1)

    def _layers(self, transformer: Any, x: Tensor, start: int, mask: Tensor | None = None) -> Tensor:
        """(B,N,width) -> (B,N,width), prompts at start .. start + length - 1, those of layer 0 already in."""
        saves_memory = transformer.grad_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(transformer.resblocks):
            if 0 < i < self.depth:
                x = torch.cat([x[:, :start], self._tokens(i, x), x[:, start + self.length :]], dim=1)
            if saves_memory:
                x = checkpoint(block, x, attn_mask=mask, use_reentrant=False)
            else:
                x = block(x, attn_mask=mask)
        return x


class VisualPrompts(DeepPrompts):
    """Prompts at the end of an open_clip ViT's tokens, N(0, 0.02). PromptKD@ec244f7.

    Raises UserError for other image towers and for a length or depth out of bounds.
    """

    def __init__(self, visual: nn.Module, length: int = 4, depth: int = 9) -> None:
        from open_clip.transformer import VisionTransformer

        if not isinstance(visual, VisionTransformer):
            trunk = type(getattr(visual, "trunk", visual)).__name__
            raise UserError(
                f"visual prompts: {trunk} is no ViT of open_clip; choose one such as ViT-B-16 "
                "(ResNet, ConvNeXt and timm trunks take no prompts)"
            )
        super().__init__(visual.transformer, length, depth, "visual")

    def forward(self, visual: Any, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised, of the tower's size -> (B,D), not normalised."""
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = visual.patch_dropout(x + visual.positional_embedding.to(x.dtype))
        places = x.shape[1]
        x = visual.ln_pre(torch.cat([x, self._tokens(0, x)], dim=1))
        x = self._layers(visual.transformer, x, start=places)
        # Without effect where CLS is read; towers that average or attend must see patches only.
        pooled, _ = visual._pool(x[:, :places])
        return pooled if visual.proj is None else pooled @ visual.proj


class TextPrompts(DeepPrompts):
    """One context for all classes, right after the start token: "<context> <name>.". PromptKD@ec244f7.

    Layer 0 starts from the embeddings of `words` (None: N(0, 0.02) as the other layers). Raises UserError
    for text towers other than open_clip's own, a length or depth out of bounds, and words of another number
    of tokens than `length`.
    """

    def __init__(
        self, encoder: TextEncoder, length: int = 4, depth: int = 9, words: str | None = "a photo of a"
    ) -> None:
        text = _text_tower(encoder.model)
        super().__init__(text.transformer, length, depth, "text")
        context = encoder.tokenizer(["x"]).shape[1]
        self.start = _first_place(encoder)
        if self.start + length + 2 > context:
            raise UserError(
                f"text prompts: length {length} leaves no room for a class name in {context} tokens; "
                f"give at most {context - self.start - 2}"
            )
        self._known: tuple[list[str], Tensor] | None = None
        if words is not None:
            found = _number_of_tokens(encoder, words, self.start)
            if found != length:
                raise UserError(
                    f"text prompts: {words!r} is {found} tokens in this vocabulary, length is {length}; "
                    f"choose other words, length: {found}, or no words"
                )
            ids = encoder.tokenizer([words]).to(text.token_embedding.weight.device)
            with torch.no_grad():
                self.values[0] = text.token_embedding(ids)[0, self.start : self.start + length].float()

    def forward(self, encoder: TextEncoder, names: list[str]) -> Tensor:
        """(K,D), not normalised, of K class names, "_" read as a space; longer names are cut."""
        ids = self._tokenised(encoder, names).to(self.values.device)
        if not torch.is_grad_enabled() or len(ids) <= _TRAINED_BATCH:
            return torch.cat([self.features(encoder, part) for part in ids.split(_TEXT_BATCH)])
        # A thousand names through a large tower do not fit into memory with what their gradients need.
        parts = ids.split(_TRAINED_BATCH)
        return torch.cat([checkpoint(self.features, encoder, part, use_reentrant=False) for part in parts])

    def _tokenised(self, encoder: TextEncoder, names: list[str]) -> Tensor:
        """Ids (K,N) of the names behind placeholders; those of the last list are kept, for training."""
        if self._known is None or self._known[0] != names:
            placeholders = " ".join("x" * self.length)
            texts = [f"{placeholders} {name.replace('_', ' ')}." for name in names]
            self._known = list(names), encoder.tokenizer(texts)
        return self._known[1]

    def features(self, encoder: TextEncoder, ids: Tensor) -> Tensor:
        """Token ids (K,N) with placeholders where the prompts go -> (K,D), not normalised."""
        text = _text_tower(encoder.model)
        x, mask = _embedded(text, ids)
        start, stop = self.start, self.start + self.length
        context = self._tokens(0, x) + text.positional_embedding[start:stop].to(x.dtype)
        x = torch.cat([x[:, :start], context, x[:, stop:]], dim=1)
        return _pooled(text, self._layers(text.transformer, x, start, mask), ids)


class PromptedTower(nn.Module):
    """A CLIP model with prompts on its image tower, its text tower or both; the prompts alone are trained.

    The weights of `tower` are frozen in place and stay in eval mode. A tower without prompts works as before.
    """

    def __init__(
        self,
        tower: CLIPTower | TextEncoder,
        visual: VisualPrompts | None = None,
        text: TextPrompts | None = None,
    ) -> None:
        super().__init__()
        self.tower: Any = tower.requires_grad_(False).eval()
        self.prompts = nn.ModuleDict(
            {key: part for key, part in (("visual", visual), ("text", text)) if part is not None}
        ).to(tower.model.logit_scale.device)

    def train(self, mode: bool = True) -> PromptedTower:
        """As of nn.Module; the frozen tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return self.tower.name

    @property
    def spec(self) -> InputSpec:
        """What the image tower expects of its input."""
        return self.tower.spec

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before the softmax (already exponentiated), that of the frozen tower."""
        return self.tower.logit_scale

    @property
    def identity(self) -> str:
        """Identity of the frozen tower and a hash of the prompts as they are now, in half precision."""
        digest = hashlib.sha256()
        for key, values in sorted(self.prompt_tensors().items()):
            half = values.to(torch.float16).cpu().contiguous()
            digest.update(f"{key}{tuple(half.shape)}".encode() + half.numpy().tobytes())
        return f"{self.tower.identity}+prompts@{digest.hexdigest()[:16]}"

    def encode_image(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,D) unit vectors; resizing and normalisation happen here."""
        if "visual" not in self.prompts:
            return self.tower.encode_image(images01)
        pooled = self.prompts["visual"](self.tower.model.visual, prepared(self.tower.spec, images01))
        return F.normalize(pooled.float(), dim=-1)

    def encode_text(self, names: list[str]) -> Tensor:
        """(K,D) unit vectors of K class names (with text prompts: names only, the context is learned)."""
        if "text" not in self.prompts:
            return self.tower.encode_text(names)
        return F.normalize(self.prompts["text"](self.tower, list(names)).float(), dim=-1)

    def prompt_tensors(self) -> dict[str, Tensor]:
        """All that was learned, to store: "visual.values" and "text.values" (depth, length, width)."""
        return {key: values.detach() for key, values in self.prompts.state_dict().items()}

    def load_prompts(self, tensors: dict[str, Tensor], source: str = "prompts") -> None:
        """Inverse of prompt_tensors. Raises UserError where towers, depth, length or width differ."""
        expected = {key: tuple(x.shape) for key, x in self.prompt_tensors().items()}
        found = {key: tuple(x.shape) for key, x in tensors.items()}
        if found != expected:
            raise UserError(
                f"{source}: prompts (depth, length, width) {found}, this model has {expected}; "
                "build the towers with the same depth and length"
            )
        self.prompts.load_state_dict(tensors, strict=True)


def _text_tower(model: Any) -> Any:
    """What holds the token embedding and the layers: the model itself, or its `text`."""
    text = getattr(model, "text", model)
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        raise UserError(
            f"text prompts: {type(text).__name__} is no text tower of open_clip's own; choose a CLIP "
            "whose text tower is not a Hugging Face model"
        )
    return text


def _embedded(text: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """(K,N) ids -> (K,N,width) with positions added, and the attention mask."""
    if hasattr(text, "_embeds"):
        return text._embeds(ids)
    dtype = text.transformer.get_cast_dtype()
    return text.token_embedding(ids).to(dtype) + text.positional_embedding.to(dtype), text.attn_mask


def _pooled(text: Any, x: Tensor, ids: Tensor) -> Tensor:
    """(K,N,width) after the last layer -> (K,D). CoCa's class token is the last one, and overrides."""
    from open_clip.transformer import text_global_pool

    if getattr(text, "cls_emb", None) is not None:
        pooled = text.ln_final(x[:, -1])
    else:
        kind = text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type
        end = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
        pooled = text_global_pool(text.ln_final(x), ids, kind, eos_token_id=end)
    projection = text.text_projection
    if projection is None or isinstance(projection, nn.Linear):
        return pooled if projection is None else projection(pooled)
    return pooled @ projection


def _first_place(encoder: TextEncoder) -> int:
    """1 behind a start token, 0 for tokenizers that have none."""
    one, other = encoder.tokenizer(["x", "y"])
    return int(one[0] == other[0])


def _number_of_tokens(encoder: TextEncoder, words: str, start: int) -> int:
    """Tokens of `words` alone: up to where one word more makes the first difference."""
    alone, longer = encoder.tokenizer([words, f"{words} x"])
    differs = (alone != longer).nonzero()
    return (int(differs[0]) if len(differs) else len(alone)) - start
