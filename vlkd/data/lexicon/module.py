"""The lexicon as data modules: captioned clips for the teacher, text alone for the student."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vlkd.data.lexicon.audit import audit
from vlkd.data.lexicon.clips import Film, caption, film_all, plan, read_mp4, videos
from vlkd.data.lexicon.features import WIDTH, load_features
from vlkd.data.lexicon.probing import clip_scores, probe_scores, shows
from vlkd.data.lexicon.words import Choice, Lexicon
from vlkd.data.tokens import TokenLoaders
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

Variant = Literal["normal", "shuffled", "still", "captions"]
Item = dict[str, Tensor]
Encode = Callable[[Tensor, Tensor], Tensor]
_PROBED = 2 / 3  # of the nouns are fitted by P1 and trained on by P3, the others scored


class Rows(Dataset):
    """Rows of tensors, each with its own number; a subclass knows how the sampler addresses them."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def row(self, index: int) -> Item:
        """One row, with its own number."""
        return {key: x[index] for key, x in self.columns.items()} | {"indices": torch.tensor(index)}


class TrainRows(Rows):
    """Rows addressed by (epoch, index)."""

    def __getitem__(self, address: tuple[int, int]) -> Item:
        return self.row(address[1])


class EvalRows(Rows):
    """Rows addressed by (index, repeated); that a row is repeated the method knows from its place."""

    def __getitem__(self, address: tuple[int, bool]) -> Item:
        return self.row(address[0])


class LexiconModule(TokenLoaders):
    """What both modules share: nouns, tokenizer, probes."""

    train_set: TrainRows | None
    val_set: EvalRows | None

    def __init__(self, nouns: int, world_seed: int, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__(batch_size, num_workers, seed)
        if batch_size < 1 or num_workers < 0:
            raise UserError(
                f"data.batch_size={batch_size}, num_workers={num_workers}: expected at least 1 and 0"
            )
        self.lexicon = Lexicon(nouns, world_seed)

    @cached_property
    def tokenizer(self) -> Any:
        """One token for each word of the lexicon, and the special ones."""
        return self.lexicon.tokenizer()

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        """{"input_ids" (N,L) int64, "attention_mask" (N,L) int64}, filled up to the longest."""
        found = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    # --- probes --------------------------------------------------------------------------------------------

    def probe_scores(self, encode: Encode) -> dict[str, float]:
        """P1 and P2 by attribute and on average; `encode(ids (B,L), mask (B,L))` gives states (B,L,D)."""
        return probe_scores(self.lexicon, self.tokenizer, encode, int(len(self.lexicon) * _PROBED))

    def choices(self, train: bool) -> list[Choice]:
        """P3: two-choice questions on the nouns that a fine-tune trains on, or on the held-out others."""
        order = np.random.default_rng([self.lexicon.seed, 4]).permutation(len(self.lexicon))
        cut = int(len(order) * _PROBED)
        return self.lexicon.choices([int(n) for n in (order[:cut] if train else order[cut:])])


class LexiconVideoData(LexiconModule):
    """Clips of objects with invented names and a caption each, for the teacher; filmed on first use.

    Half of the captions name the object, the others its colour, shape and motion; no caption does both.
    Validation has one clip for each of the 64 combinations of attributes, half with either kind of caption,
    so that every caption fits one clip only.

    Args:
        nouns: invented nouns, a multiple of 32.
        train_clips: clips of each noun to train on.
        val_clips: clips of each noun for validation and retrieval.
        variant: normal; shuffled: each clip with the caption of any other; still: one frame of each clip;
        captions: no video at all (all frames masked).
        jitter: seconds by which captions come too early or too late, at most.
        per_video: clips in one video file.
        frames: frames of a clip.
        fps: frames a second.
        size: height and width in pixels.
        batch_size: clips per step and process.
        num_workers: loader processes.
        world_seed: of nouns, attributes and clips.
        seed: of the order.
    """

    video_width = WIDTH

    def __init__(
        self,
        nouns: int = 96,
        train_clips: int = 24,
        val_clips: int = 4,
        variant: Variant = "normal",
        jitter: float = 0.0,
        per_video: int = 6,
        frames: int = 8,
        fps: int = 4,
        size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        world_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(nouns, world_seed, batch_size, num_workers, seed)
        if variant not in get_args(Variant):
            raise UserError(
                f"data.variant={variant}: unknown{nearest_hint(variant, get_args(Variant))}; "
                f"expected one of {', '.join(get_args(Variant))}"
            )
        if jitter < 0:
            raise UserError(f"data.jitter={jitter}: expected seconds, 0 or more")
        self.film = Film(nouns, world_seed, train_clips, val_clips, per_video, frames, fps, size)
        self.variant, self.jitter = variant, jitter
        self.plan = plan(self.film)

    def setup(self, stage: str | None = None) -> None:
        """Film, or read from the cache, what the stage needs."""
        if self.val_set is not None:
            return
        features = load_features(self.film, self.variant == "still", self.jitter)
        train, val = np.flatnonzero(~self.plan.val), self.val_pairs()
        shown = train
        if self.variant == "shuffled":
            shown = train[np.random.default_rng([self.film.seed, 5]).permutation(len(train))]
        self.train_set = TrainRows(self._columns(train, features[torch.from_numpy(shown)]))
        self.val_set = EvalRows(self._columns(val, features[torch.from_numpy(val)]))

    def val_pairs(self) -> NDArray[np.int64]:
        """Clips of validation (64,): one for each combination of attributes, captions of either kind in turn.

        Fewer where a combination has no noun. Raises UserError where a noun has no clip with that caption.
        """
        codes = self.lexicon.labels @ (16, 4, 1)
        chosen = []
        for k, code in enumerate(np.unique(codes)):
            fits = self.plan.val & (codes[self.plan.noun] == code) & (self.plan.family == k % 2)
            if not fits.any():
                raise UserError(
                    f"data.val_clips={self.film.val_clips}: a validation clip lacks the caption it needs; "
                    "set 2 or more"
                )
            chosen.append(int(np.flatnonzero(fits)[0]))
        return np.array(chosen)

    def _columns(self, clips: NDArray[np.int64], video: Tensor) -> dict[str, Tensor]:
        texts = [caption(self.lexicon, self.plan, int(n)) for n in clips]
        mask = torch.full(video.shape[:2], self.variant != "captions")
        return {
            **self.encode_texts(texts),
            "video": video.float() * mask[..., None],
            "video_mask": mask,
        }

    # --- the clips themselves, for sheets of frames --------------------------------------------------------

    def clip_bank(self) -> tuple[Tensor, Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Validation clips for P5: video (M,T,C), mask (M,T), number (M,) and attributes (M,3) of each."""
        self.setup()
        assert self.val_set is not None
        clips, columns = self.val_pairs(), self.val_set.columns
        return columns["video"], columns["video_mask"], clips, self.lexicon.labels[self.plan.noun[clips]]

    def clip_frames(self, number: int) -> NDArray[np.uint8]:
        """Frames (T,H,W,3) of a clip, decoded from its video file."""
        length, files = self.film.frames, film_all(self.film)
        for path, clips in zip(files, videos(self.film, self.plan.val), strict=True):
            if number in clips:
                start = int(np.flatnonzero(clips == number)[0]) * length
                return read_mp4(path, len(clips) * length)[start : start + length]
        raise UserError(f"clip {number}: expected 0 to {len(self.plan.noun) - 1}")

    def clip_scores(self, likeness: Encode) -> dict[str, float]:
        """P5 on the bank; `likeness(ids (B,L), mask (B,L))` says how like each clip a token is (B,L,M)."""
        return clip_scores(self.lexicon, self.tokenizer, likeness, self.clip_bank()[3])

    def token_clips(self, word: str) -> frozenset[int]:
        """Clips of the bank that show what a word names, as the places in it; none for other words."""
        labels = self.lexicon.labels[self.plan.noun[self.val_pairs()]]
        return frozenset(int(k) for k in np.flatnonzero(shows(self.lexicon, word, labels)))


class LexiconData(LexiconModule):
    """Text about the objects of the lexicon, for the student: the same kinds of sentences, and no video.

    Sentences are drawn independently of one another and of the teacher's clips, so that text does not tell
    which attributes a noun has; `audit()` measures it.

    Args:
        nouns: see LexiconVideoData.
        train_blocks: blocks of sentences to train on.
        val_blocks: blocks for perplexity.
        sentences: of a block.
        batch_size: blocks per step and process.
        num_workers: loader processes.
        world_seed: see LexiconVideoData; of the text too.
        seed: of the order.
    """

    def __init__(
        self,
        nouns: int = 96,
        train_blocks: int = 4000,
        val_blocks: int = 200,
        sentences: int = 3,
        batch_size: int = 64,
        num_workers: int = 0,
        world_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(nouns, world_seed, batch_size, num_workers, seed)
        if min(train_blocks, val_blocks, sentences) < 1:
            raise UserError("data.train_blocks, val_blocks and sentences must be at least 1")
        self.blocks = (train_blocks, val_blocks)
        self.sentences = sentences

    def texts(self, val: bool = False) -> list[str]:
        """The blocks of training or validation, " . " between the sentences."""
        count = self.blocks[val]
        said = self.lexicon.corpus(count * self.sentences, part=int(val))
        return [" . ".join(said[k : k + self.sentences]) for k in range(0, len(said), self.sentences)]

    def setup(self, stage: str | None = None) -> None:
        """Write the text and its ids."""
        if self.train_set is None:
            self.train_set = TrainRows(self.encode_texts(self.texts()))
            self.val_set = EvalRows(self.encode_texts(self.texts(val=True)))

    def audit(self) -> list[str]:
        """Lines on whether the training text tells what a noun hides."""
        return audit(self.lexicon, self.texts())
