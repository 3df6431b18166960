"""The bundle: one safetensors file that holds a student, its class vectors and its card.

The card is JSON under one key of the safetensors header, so it can be read without reading the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CARD_KEY = "vlkd_card"
REQUIRED = ("kind", "name", "architecture")
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself


def save_bundle(
    path: str | Path, card: Mapping[str, Any], tensors: Mapping[str, Tensor], half: bool = False
) -> Path:
    """Writes card and tensors to `path`, whole or not at all; `half` stores floating tensors as float16.

    Raises UserError when the card lacks a required key or cannot be written as JSON.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    missing = [key for key in REQUIRED if key not in card]
    if missing:
        raise UserError(f"{path}: the bundle's card lacks {', '.join(missing)}")
    try:
        text = json.dumps({"format": FORMAT, **card})
    except (TypeError, ValueError) as problem:
        raise UserError(f"{path}: the bundle's card is not plain JSON ({problem})") from None

    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if half and tensor.is_floating_point():
            tensor = tensor.to(torch.float16)
        stored[name] = tensor.clone(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(stored, temporary, metadata={CARD_KEY: text})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a bundle; no tensor is read. Raises UserError for a damaged, foreign or newer file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise UserError(f"{path}: not a bundle: the file is only {len(head)} bytes long")
            size = struct.unpack("<Q", head)[0]
            if size > MAX_HEADER:
                raise UserError(f"{path}: not a safetensors file, so not a bundle")
            header = json.loads(file.read(size).decode("utf-8"))
            actual = file.seek(0, os.SEEK_END)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path}: damaged or not a safetensors file; fetch it again") from None
    return _checked_card(path, header, actual - 8 - size)


def load_bundle(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of a bundle, on the CPU. Raises UserError for a damaged, foreign or newer file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(path)
    try:
        return card, load_file(path, device="cpu")
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path}: damaged bundle ({problem}); fetch it again") from None


def bundle_name(stem: str, tensors: Mapping[str, Tensor]) -> str:
    """`stem-<hash8>.safetensors`, where the hash is that of the tensors' names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{stem}-{digest.hexdigest()[:8]}.safetensors"


def _checked_card(path: Path, header: Any, data_bytes: int) -> dict[str, Any]:
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if CARD_KEY not in metadata:
        raise UserError(f"{path}: a safetensors file without a vlkd card; expected a bundle written by vlkd")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if max(ends, default=0) != data_bytes:
        raise UserError(f"{path}: damaged: {data_bytes} bytes of tensors, expected {max(ends, default=0)}")
    card = json.loads(metadata[CARD_KEY])
    if card.get("format") != FORMAT:
        raise UserError(f"{path}: bundle format {card.get('format')}, expected {FORMAT}; use a matching vlkd")
    return card
