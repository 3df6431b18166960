"""Where things that are computed or fetched once are kept: one folder, files addressed by their key."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def cache_folder() -> Path:
    """VLKD_CACHE or ~/.cache/vlkd."""
    return Path(os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd").expanduser()


def cache_key(**parts: Any) -> str:
    """Hex digest of everything that a stored result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def store(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file into the cache, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(dict(tensors), part, metadata=metadata)
    os.replace(part, path)
