"""Where things that are computed or fetched once are kept: one folder, files addressed by their key."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """VLKD_CACHE or ~/.cache/vlkd."""
    return Path(os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd").expanduser()


def cache_key(**parts: Any) -> str:
    """Hex digest of everything that a stored result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
