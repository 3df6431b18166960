"""What data of token ids share: the tokenizer, loaders that resume, faults that are told and left out."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd.data.loader import EpochSampler, EvalSampler, ResumableLoader
from vlkd.errors import UserError
from vlkd.text.word_ids import load_tokenizer

Split = Literal["train", "val"]
Item = dict[str, Tensor]
_SHOWN = 5  # faults that a run prints; --check prints all


class TokenData(L.LightningDataModule):
    """A tokenizer from files, and loaders that go on in the middle of an epoch."""

    def __init__(self, tokenizer: str, length: int, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if length < 3 or batch_size < 1 or num_workers < 0:
            raise UserError(
                f"data.length={length}, batch_size={batch_size}, num_workers={num_workers}: "
                "expected at least 3, 1 and 0"
            )
        self.source, self.length = tokenizer, length
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """Of the folder or file. Raises UserError where it, or the package transformers, is not there."""
        found = load_tokenizer(self.source)
        if found.cls_token_id is None or found.sep_token_id is None:
            raise UserError(
                f"{self.source}: a tokenizer without cls_token or sep_token; expected one as of BERT"
            )
        return found

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch)."""
        assert self.train_set is not None, "setup() comes first"
        sampler = EpochSampler(self.train_set, self.seed, *self._place())  # type: ignore[arg-type]
        return ResumableLoader(
            self.train_set,
            sampler,
            self.batch_size,
            trainer=self.trainer,
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader | list:
        """In order; nothing where there is no validation data."""
        if self.val_set is None:
            return []
        sampler = EvalSampler(self.val_set, *self._place())  # type: ignore[arg-type]
        return DataLoader(self.val_set, self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def _place(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)


@rank_zero_only
def say(problems: list[str]) -> None:
    """Print the first few on stderr, and how many more there are."""
    for line in problems[:_SHOWN]:
        print(line, file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"and {len(problems) - _SHOWN} more of this kind; --check lists them all", file=sys.stderr)
