"""Text files as data: blocks of token ids."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from vlkd.cache import cache_key
from vlkd.data.video_text.base import Item, Split, TokenData
from vlkd.data.video_text.blocks import Blocks, tokenise
from vlkd.data.video_text.documents import Format
from vlkd.errors import UserError


class BlockRows(Dataset):
    """Blocks of text, addressed by (epoch, index) or, `first`, by (index, repeated)."""

    def __init__(self, blocks: Blocks, first: bool) -> None:
        self.blocks, self.first = blocks, first

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        index = address[0] if self.first else address[1]
        ids, mask = (torch.from_numpy(x) for x in self.blocks.row(index))
        return {"input_ids": ids, "attention_mask": mask, "indices": torch.tensor(index)}


class TextBlocksData(TokenData):
    """Blocks of text files, for the student (docs/video-text.md).

    Batches: {"input_ids" (B,L), "attention_mask" (B,L), "indices" (B,)}. Token ids are kept in the cache, by
    the file's bytes and the tokenizer.

    Args:
        tokenizer: transformers folder, or tokenizer.json.
        train: text files, one or several.
        val: text files for validation; null for none.
        format: wikitext, wikiextractor (<doc> elements), paragraphs (blank lines between documents), lines
        (each a document), or auto: what the first lines look like.
        headings: keep lines with titles.
        across: let blocks cross the borders of documents, which are joined in an order drawn by `seed`.
        shortest: blocks of fewer tokens, at the end of a document, are left out.
        length: token ids of a block, special ones included.
        batch_size: blocks per step and process.
        num_workers: loader processes.
        seed: of the order.
    """

    def __init__(
        self,
        tokenizer: str,
        train: list[str] | str,
        val: list[str] | str | None = None,
        format: Format = "auto",
        headings: bool = False,
        across: bool = False,
        shortest: int = 8,
        length: int = 128,
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, length, batch_size, num_workers, seed)
        if shortest < 1:
            raise UserError(f"data.shortest={shortest}: expected at least 1")
        self.files: dict[Split, list[str]] = {"train": _listed(train), "val": _listed(val)}
        if not self.files["train"]:
            raise UserError("data.train: names no text file")
        self.format, self.headings, self.across, self.shortest = format, headings, across, shortest

    def setup(self, stage: str | None = None) -> None:
        """Tokenise, or read from the cache. Raises UserError for files with too little text for a block."""
        if self.train_set is None:
            self.train_set = BlockRows(self._blocks("train"), first=False)
        if self.val_set is None and self.files["val"]:
            self.val_set = BlockRows(self._blocks("val"), first=True)

    def _blocks(self, split: Split) -> Blocks:
        found = [tokenise(file, self.tokenizer, self.format, self.headings) for file in self.files[split]]
        # Validation is the same whatever the seed of training.
        seed = self.seed if split == "train" else 0
        blocks = Blocks(found, self.tokenizer, self.length, self.across, self.shortest, seed)
        if not len(blocks):
            raise UserError(
                f"{', '.join(self.files[split])}: too little text for a block of {self.length} tokens; "
                "set data.length or data.shortest lower"
            )
        return blocks

    def check(self) -> list[str]:
        """Every problem, one line each (none when all is well)."""
        problems = []
        for split in ("train", "val"):
            for file in self.files[split]:
                try:
                    tokenise(file, self.tokenizer, self.format, self.headings)
                except UserError as error:
                    problems.append(str(error))
        return problems

    def val_fingerprint(self) -> str:
        """Short hash of the validation blocks."""
        return (
            self.val_set.blocks.key[:16] if isinstance(self.val_set, BlockRows) else cache_key(items=[])[:16]
        )


def _listed(files: list[str] | str | None) -> list[str]:
    return [files] if isinstance(files, str) else list(files or ())
