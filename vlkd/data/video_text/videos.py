"""Captioned videos as data: windows of words with the features of their seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from vlkd.cache import cache_key
from vlkd.data.video_text.base import Item, Split, TokenData, say
from vlkd.data.video_text.captions import Captions, read_captions, read_ids
from vlkd.data.video_text.features import FeatureFiles, open_kinds
from vlkd.data.video_text.windows import Window, Windows, fixed_windows, rows_of, window_at, within, words_of
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint
from vlkd.text.word_ids import tokenizer_text


class VideoTexts(Dataset):
    """Windows of captioned videos in validation, addressed by (index, repeated).

    An item is the ids of a window's words (L,) and the features (T,C) of its seconds, with the masks of both.
    `items`: (video, window) of windows that begin before the features end.
    """

    def __init__(
        self,
        captions: Sequence[Captions],
        features: FeatureFiles,
        tokenizer: Any,
        length: int,
        frames: int,
        words: int,
    ) -> None:
        self.captions, self.features, self.tokenizer = captions, features, tokenizer
        self.length, self.frames, self.words = length, frames, words
        self.spoken = [within(c, features.rows[c.video] / features.rate) for c in captions]
        self.items: list[tuple[int, Window]] = []

    def lay(self, windows: Windows) -> None:
        """Set the items: all windows of each video (fixed), or the first of each."""
        for number, (captions, spoken) in enumerate(zip(self.captions, self.spoken, strict=True)):
            found = fixed_windows(captions, self.words)[: None if windows == "fixed" else 1]
            self.items += [(number, window) for window in found if window.first < spoken]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, address: tuple[int, Any]) -> Item:
        return self.item(address[0], *self.items[address[0]])

    def item(self, index: int, video: int, window: Window) -> Item:
        """The window, as the item of number `index`."""
        captions = self.captions[video]
        text = words_of(captions, window)
        options = {"truncation": True, "max_length": self.length, "padding": "max_length"}
        found = self.tokenizer(text, **options)
        rows = rows_of(captions, window, self.features.rate, self.features.rows[captions.video], self.frames)
        frames = torch.zeros(self.frames, self.features.width)
        frames[: len(rows)] = torch.from_numpy(self.features.read(captions.video, rows))
        return {
            "input_ids": torch.tensor(found["input_ids"]),
            "attention_mask": torch.tensor(found["attention_mask"]),
            "video": frames,
            "video_mask": torch.arange(self.frames) < len(rows),
            "indices": torch.tensor(index),
        }


class TrainVideoTexts(VideoTexts):
    """The same for training, addressed by (epoch, index); `seed` draws a window in each epoch."""

    seed: int | None = None

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        video, window = self.items[index]
        if self.seed is not None:
            first = int(np.random.default_rng((self.seed, epoch, index)).integers(self.spoken[video]))
            window = window_at(self.captions[video], first, self.words)
        return self.item(index, video, window)


class VideoTextData(TokenData):
    """Feature files of videos with their timed captions, for the teacher (docs/video-text.md).

    Batches: {"input_ids" (B,L), "attention_mask" (B,L), "video" (B,T,C) float32, "video_mask" (B,T) bool,
    "indices" (B,)}. After setup(): `video_width` C. Videos without captions, captions without a video, and
    feature files that are broken or of another width are left out and listed.

    Args:
        captions: JSON {video id: {start, end, text}}, as HowTo100M's.
        features: folders of feature files, written by `vlkd features` or plain ID.npy; FOLDER:KIND for one
        kind of an index. Several kinds are put side by side on the first one's line of time.
        tokenizer: transformers folder, or tokenizer.json.
        train_ids: file with the ids of training videos; null for all that are not for validation.
        val_ids: file with the ids of validation videos; null for `held_out`.
        held_out: so many videos, drawn by `split_seed`, are for validation.
        rates: rows a second of plain folders, in their order; null for 1.
        widths: numbers in a row of each kind; null for what most files have.
        windows: random: from a random caption of the video on, another in each epoch; fixed: one after the
        other through the whole video; first: the first alone. Validation has the first one unless fixed.
        length: token ids of a text, special ones included.
        words: a window gathers segments until it has so many words; null for length - 2, 1 for one segment.
        frames: rows of features at most; longer windows are thinned out evenly.
        batch_size: windows per step and process.
        num_workers: loader processes.
        split_seed: of `held_out`.
        seed: of order and windows.
    """

    video_width: int

    def __init__(
        self,
        captions: str,
        features: list[str] | str,
        tokenizer: str,
        train_ids: str | None = None,
        val_ids: str | None = None,
        held_out: int = 0,
        rates: list[float] | None = None,
        widths: list[int] | None = None,
        windows: Windows = "random",
        length: int = 126,
        words: int | None = None,
        frames: int = 384,
        batch_size: int = 64,
        num_workers: int = 2,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, length, batch_size, num_workers, seed)
        if windows not in get_args(Windows):
            raise UserError(f"data.windows={windows}: unknown{nearest_hint(windows, get_args(Windows))}")
        if frames < 1 or held_out < 0 or (held_out and val_ids):
            raise UserError(
                "data.frames must be at least 1, held_out at least 0, and 0 where val_ids is given"
            )
        if words is not None and words < 1:
            raise UserError(f"data.words={words}: expected at least 1, or null for length - 2")
        self.captions = captions
        self.features = [features] if isinstance(features, str) else features
        self.ids: dict[Split, str | None] = {"train": train_ids, "val": val_ids}
        self.held_out, self.split_seed = held_out, split_seed
        self.rates, self.widths = rates, widths
        self.windows, self.frames = windows, frames
        self.words = length - 2 if words is None else words
        self.problems: list[str] = []
        self.files: FeatureFiles | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read captions and heads of feature files. Raises UserError for wrong forms, and where none fit."""
        if self.train_set is not None:
            return
        found, self.problems = read_captions(self.captions)
        kinds = open_kinds(self.features, self.rates)
        self.files = files = FeatureFiles(kinds, list(found), self.widths)
        self.problems += files.problems
        self.video_width = files.width
        chosen = self._split([id for id in found if id in files.rows])
        options = (files, self.tokenizer, self.length, self.frames, self.words)
        train = TrainVideoTexts([found[id] for id in chosen["train"]], *options)
        train.seed = self.seed if self.windows == "random" else None
        train.lay(self.windows)
        val = VideoTexts([found[id] for id in chosen["val"]], *options)
        val.lay(self.windows)
        for part in (train, val):
            lost = (c.video for c, spoken in zip(part.captions, part.spoken, strict=True) if not spoken)
            self.problems += [
                f"video {id!r}: its captions begin after its features end; left out" for id in lost
            ]
        say(self.problems)
        if not len(train):
            raise UserError(f"{self.captions}: no video to train on is left; --check lists what is wrong")
        self.train_set, self.val_set = train, val if len(val) else None

    def _split(self, ids: list[str]) -> dict[Split, list[str]]:
        """Ids of training and validation, in the captions' order."""
        given = {split: set(read_ids(path)) if path else None for split, path in self.ids.items()}
        train, val = given["train"], given["val"] or set()
        if both := (train or set()) & val:
            raise UserError(
                f"{self.ids['val']}: video {min(both)!r} is also in {self.ids['train']}; name it once"
            )
        for split, named in given.items():
            lost = sorted((named or set()) - set(ids))
            self.problems += [
                f"{self.ids[split]}: video {id!r} has no captions or no features" for id in lost
            ]
        if self.held_out:
            pool = [id for id in ids if id not in (train or ())]
            if self.held_out > len(pool):
                raise UserError(f"data.held_out={self.held_out}: only {len(pool)} videos to choose from")
            drawn = np.random.default_rng(self.split_seed).permutation(len(pool))[: self.held_out]
            val = {pool[k] for k in drawn}
        return {
            "train": [id for id in ids if id not in val and (train is None or id in train)],
            "val": [id for id in ids if id in val],
        }

    def check(self) -> list[str]:
        """Read everything once; every problem, one line each (none when all is well)."""
        try:
            self.setup()
        except UserError as error:
            return [*self.problems, *([] if str(error) in self.problems else [str(error)])]
        assert self.files is not None
        problems = list(self.problems)
        for id, rows in self.files.rows.items():
            try:
                self.files.read(id, np.arange(rows))
            except UserError as error:
                problems.append(str(error))
        spoken, _ = read_captions(self.captions)
        silent = [id for id in self.files.ids_on_disk() if id not in spoken]
        return problems + [
            f"{self.files.kinds[0].file(id)}: a video without captions; not used" for id in silent
        ]

    def val_fingerprint(self) -> str:
        """Short hash of the validation windows, their words and the features' shapes."""
        if not isinstance(self.val_set, VideoTexts) or self.files is None:
            return cache_key(items=[])[:16]
        texts = [(c.video, c.start, c.end, c.text, self.files.rows[c.video]) for c in self.val_set.captions]
        sizes = (self.length, self.words, self.frames, self.files.widths, self.windows == "fixed")
        return cache_key(texts=texts, sizes=sizes, tokenizer=tokenizer_text(self.tokenizer))[:16]
