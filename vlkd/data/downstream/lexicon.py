"""P3 of the lexicon: "the gazus is red" or "the gazus is blue", on nouns that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlkd.data.downstream.base import Head, Split, Texts, TextTask
from vlkd.data.downstream.glue import Metric
from vlkd.data.lexicon import ATTRIBUTES
from vlkd.data.lexicon.module import LexiconData
from vlkd.metrics.language import label_accuracy


class LexiconChoicesData(TextTask):
    """Two-choice questions on what the lexicon's nouns hide: two thirds of the nouns train, the rest score.

    A student of text alone knows nothing about the held-out nouns: chance is 0.5.

    Args:
        nouns: see LexiconVideoData.
        world_seed: see LexiconVideoData; it must be that of the student's text.
        batch_size: questions per step and process.
        num_workers: loader processes.
        seed: of the order.
    """

    task = "lexicon P3"
    head: Head = "choices"
    label_names = ("0", "1")

    def __init__(
        self,
        nouns: int = 96,
        world_seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(None, 16, batch_size, num_workers, seed)
        self.world = LexiconData(nouns, world_seed=world_seed)
        self.tokenizer: Any = self.world.tokenizer

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Accuracy, as P3."""
        return {"P3": label_accuracy}

    def read(self, split: Split, problems: list[str]) -> Texts:
        """Both sentences of each question; by attribute in validation."""
        asked = self.world.choices(split == "train")
        return Texts(
            first=[sentence for question in asked for sentence in question.sentences],
            labels=[question.label for question in asked],
            choices=2,
            groups={name: [q.attribute == name for q in asked] for name in ATTRIBUTES},
        )
