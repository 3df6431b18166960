"""Text as blocks of token ids of one length: tokenised once per file and tokenizer, cut in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.video_text.documents import Format, documents
from vlkd.errors import UserError
from vlkd.text.word_ids import tokenizer_text

_VERSION = 1  # raise when the ids of a file change: stored ids are keyed by it
_CHUNK = 256  # documents tokenised at once


@dataclass(frozen=True)
class TokenFile:
    """Ids (N,) int32 of all documents one after the other, without special tokens; ends (M,) of each."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    key: str


def tokenise(path: str | Path, tokenizer: Any, format: Format = "auto", headings: bool = False) -> TokenFile:
    """The tokens of a file, from the cache where the same bytes met the same tokenizer before.

    Raises UserError as `documents`, and for a file without text.
    """
    path = Path(path).expanduser()
    key = cache_key(
        version=_VERSION,
        file=_hash(path),
        tokenizer=tokenizer_text(tokenizer),
        format=format,
        headings=headings,
    )
    cached = cache_folder() / "tokens" / f"{key[:24]}.safetensors"
    if not cached.is_file():
        parts, ends = [], []
        for found in _tokenised(path, tokenizer, format, headings):
            parts.append(np.asarray(found, np.int32))
            ends.append(len(found))
        if not sum(ends):
            raise UserError(f"{path}: holds no text")
        tensors = {
            "ids": torch.from_numpy(np.concatenate(parts)),
            "ends": torch.from_numpy(np.cumsum(ends, dtype=np.int64)),
        }
        store(cached, tensors, {"file": str(path)})
    with safe_open(cached, framework="np") as stored:
        return TokenFile(stored.get_tensor("ids"), stored.get_tensor("ends"), key)


def _tokenised(path: Path, tokenizer: Any, format: Format, headings: bool) -> Iterator[list[int]]:
    from rich.console import Console
    from rich.progress import track

    texts = documents(path, format, headings)
    batches = iter(lambda: list(islice(texts, _CHUNK)), [])
    for batch in track(batches, f"tokens of {path.name}", console=Console(stderr=True), transient=True):
        # The backend itself: the wrapper warns that a document is longer than a model takes.
        for found in tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False):
            if found.ids:
                yield found.ids


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such text file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


class Blocks:
    """Token ids of files in blocks of `length`, [CLS] and [SEP] among them.

    A block holds one document's words alone, and the last of a document is filled up; one of fewer than
    `shortest` tokens is left out. With `across`, documents are joined in an order drawn by `seed`, blocks
    cross their borders, and what does not fill a last block is left out.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        tokenizer: Any,
        length: int,
        across: bool = False,
        shortest: int = 8,
        seed: int = 0,
    ) -> None:
        body = length - 2
        offsets = np.cumsum([0, *(len(f.ids) for f in files)])
        self.ids = np.concatenate([f.ids for f in files])
        ends = np.concatenate([f.ends + at for f, at in zip(files, offsets[:-1], strict=True)])
        starts = np.concatenate([[0], ends[:-1]])
        if across:
            order = np.random.default_rng(seed).permutation(len(ends))
            self.ids = np.concatenate([self.ids[starts[k] : ends[k]] for k in order])
            starts, ends, shortest = np.array([0]), np.array([len(self.ids)]), body
        counts = -(-(ends - starts) // body)
        first = np.repeat(starts, counts)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = first + number * body
        end = np.minimum(begin + body, np.repeat(ends, counts))
        kept = end - begin >= min(shortest, body)
        self.spans = np.stack([begin[kept], end[kept]], 1)
        self.length = length
        self.special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        self.key = cache_key(
            files=[f.key for f in files], length=length, across=across, kept=len(self), seed=seed
        )

    def __len__(self) -> int:
        return len(self.spans)

    def row(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """input_ids (L,) and attention_mask (L,) of a block."""
        begin, end = self.spans[index]
        first, last, padding = self.special
        ids = np.full(self.length, padding, np.int64)
        count = int(end - begin) + 2
        ids[0], ids[1 : count - 1], ids[count - 1] = first, self.ids[begin:end], last
        return ids, (np.arange(self.length) < count).astype(np.int64)
