"""What the teacher says of every labelled region: computed once, from the un-augmented image, and stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.errors import UserError
from vlkd.models.clip import CLIPTower

_BATCH = 256


class RegionSource(Protocol):
    """What a data module's train_regions() gives (vlkd.data.regions.Regions)."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...

    def crops(self, size: tuple[int, int], masked: bool) -> Iterator[tuple[list[str], Tensor]]: ...


class RegionBank:
    """Teacher embeddings (R,D) of regions by key "sample id/segment id"."""

    def __init__(self, keys: Sequence[str], vectors: Tensor, source: str = "") -> None:
        self.vectors = vectors
        self.source = source
        self._rows = {key: k for k, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, keys: Iterable[str]) -> Tensor:
        """Row of each region. Raises UserError naming a region that was not there when the bank was made."""
        try:
            return torch.tensor([self._rows[key] for key in keys], dtype=torch.long)
        except KeyError as missing:
            raise UserError(
                f"region {missing.args[0]}: not among the teacher's stored regions; "
                f"the data changed since, remove {self.source}"
            ) from None

    @classmethod
    def build(cls, source: RegionSource, teacher: CLIPTower, masked: bool = True) -> RegionBank:
        """Stored embeddings of all regions of the un-augmented data, or compute and store them.

        masked: everything outside the segment grey (the distillation target); else the plain box (the synonym
        filter). The key holds the teacher's weights, the crop and the data's fingerprint.
        """
        key = cache_key(
            format=1,
            teacher=teacher.identity,
            size=teacher.spec.size,
            masked=masked,
            data=source.fingerprint(),
        )
        path = cache_folder() / "regions" / f"{key[:24]}.safetensors"
        if not path.is_file():
            keys, vectors = _encode(source, teacher, masked)
            store(path, {"vectors": vectors.contiguous()}, {"keys": json.dumps(keys)})
        with safe_open(path, framework="pt") as stored:
            return cls(json.loads(stored.metadata()["keys"]), stored.get_tensor("vectors"), str(path))


@torch.inference_mode()
def _encode(source: RegionSource, teacher: CLIPTower, masked: bool) -> tuple[list[str], Tensor]:
    from rich.progress import track

    device = next(teacher.parameters()).device
    keys: list[str] = []
    waiting: list[Tensor] = []
    vectors: list[Tensor] = []

    def flush() -> None:
        images = torch.cat(waiting).to(device).float() / 255
        vectors.extend(teacher.encode_image(part).cpu() for part in images.split(_BATCH))
        waiting.clear()

    title = f"teacher regions ({'grey' if masked else 'box'})"
    for names, crops in track(source.crops(teacher.spec.size, masked), title, len(source)):
        keys.extend(names)
        waiting.append(crops)
        if sum(map(len, waiting)) >= _BATCH:
            flush()
    if waiting:
        flush()
    return keys, torch.cat(vectors) if vectors else torch.zeros(0, teacher.spec.width)
