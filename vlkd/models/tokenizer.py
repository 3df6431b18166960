"""Tokenizers: open_clip's own, or a short prefix of CLIP's BPE merges for the project's small configs."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

Tokenizer = Callable[[list[str]], Tensor]
FULL_VOCABULARY = 49408
_BYTES_AND_SPECIAL = 2 * 256 + 2


def build_tokenizer(architecture: str, text_cfg: dict[str, Any]) -> Tokenizer:
    """Tokenizer of an open_clip architecture; text_cfg.vocab_size below CLIP's own keeps that many tokens."""
    import open_clip

    size = text_cfg.get("vocab_size", FULL_VOCABULARY)
    if text_cfg.get("hf_tokenizer_name") or size >= FULL_VOCABULARY:
        return open_clip.get_tokenizer(architecture)
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as merges:
        kept = [next(merges) for _ in range(1 + size - _BYTES_AND_SPECIAL)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        with gzip.open(path, "wt", encoding="utf-8") as out:
            out.write("".join(kept).rstrip("\n"))
        return SimpleTokenizer(str(path), context_length=text_cfg.get("context_length", 77))
