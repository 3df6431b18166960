"""What data of texts in files share: the tokenizer, faults that are told and left out."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vlkd.data.tokens import TokenLoaders
from vlkd.errors import UserError
from vlkd.text.word_ids import load_tokenizer

Split = Literal["train", "val"]
Item = dict[str, Tensor]
_SHOWN = 5  # faults that a run prints; --check prints all


class TokenData(TokenLoaders):
    """A tokenizer from files, and the loaders of token ids."""

    def __init__(self, tokenizer: str, length: int, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__(batch_size, num_workers, seed)
        if length < 3 or batch_size < 1 or num_workers < 0:
            raise UserError(
                f"data.length={length}, batch_size={batch_size}, num_workers={num_workers}: "
                "expected at least 3, 1 and 0"
            )
        self.source, self.length = tokenizer, length

    @cached_property
    def tokenizer(self) -> Any:
        """Of the folder or file. Raises UserError where it, or the package transformers, is not there."""
        found = load_tokenizer(self.source)
        if found.cls_token_id is None or found.sep_token_id is None:
            raise UserError(
                f"{self.source}: a tokenizer without cls_token or sep_token; expected one as of BERT"
            )
        return found


@rank_zero_only
def say(problems: list[str]) -> None:
    """Print the first few on stderr, and how many more there are."""
    for line in problems[:_SHOWN]:
        print(line, file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"and {len(problems) - _SHOWN} more of this kind; --check lists them all", file=sys.stderr)
