"""ClassPredictor: a classifier and its class names, from image, file or video to the likeliest classes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.inputs import Classes, ImageLike, fold, parse_classes, pixels_of, shortened, usable_device
from vlkd.infer.words import Words
from vlkd.text.class_vectors import ClassVectors, TextEncoder
from vlkd.text.names import nearest_hint

_READERS = max(1, min(8, (os.cpu_count() or 1) - 1))  # threads that decode files


class Network(Protocol):
    """What a ClassPredictor needs of vlkd.models.classifier.Classifier."""

    spec: Any

    def __call__(self, images01: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Classification:
    """The most probable classes of one image, best first.

    names (T,); scores (T,) float32 probabilities, which sum to 1 over all the classes to choose among;
    indices (T,) int64 into the bundle's class list, of an open classifier into the list that was asked for.
    From a video also frame (H,W,3) uint8, time in seconds.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    indices: np.ndarray
    frame: np.ndarray | None = None
    time: float | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.names[0]

    @property
    def score(self) -> float:
        """Its probability."""
        return float(self.scores[0])


@dataclass(frozen=True)
class Choice:
    """The S classes to choose among: their names, and of each its index (S,) or its class vector (S,D)."""

    names: tuple[str, ...]
    columns: Tensor


class ClassPredictor:
    """Says which of its fixed classes an image shows.

    `names`: the classifier's K classes in order; `batch_size`: images that go through the network together;
    `dtype` e.g. torch.bfloat16; `compile` runs torch.compile. Raises UserError for an unusable device.
    """

    def __init__(
        self,
        classifier: Network,
        names: Sequence[str],
        card: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected 1 or more")
        self.device, self.dtype, self.batch_size = usable_device(device), dtype, batch_size
        self.classifier = classifier
        if isinstance(classifier, torch.nn.Module):
            classifier.eval().requires_grad_(False).to(self.device, dtype)
            self.classifier = torch.compile(classifier) if compile else classifier  # type: ignore[assignment]
        self.class_names, self.card, self.spec = tuple(names), dict(card or {}), classifier.spec

    @classmethod
    def from_bundle(cls, path: str | os.PathLike[str], **options: Any) -> ClassPredictor:
        """ClassPredictor of a bundle file or zoo name; options as in the constructor. Raises UserError."""
        from vlkd.models.classifier import load_classifier

        classifier, card = load_classifier(str(path))
        names = card.get("class_names") or [f"class {i}" for i in range(classifier.num_classes)]
        if len(names) != classifier.num_classes:
            raise UserError(
                f"{path}: the card names {len(names)} classes, the network has {classifier.num_classes}: "
                "write the bundle again with the data's class names"
            )
        return cls(classifier, names, card, **options)

    @overload
    def __call__(
        self, image: list[Any], classes: Classes | None = None, top: int = 5
    ) -> list[Classification]: ...

    @overload
    def __call__(self, image: ImageLike, classes: Classes | None = None, top: int = 5) -> Classification: ...

    def __call__(
        self, image: ImageLike | list[Any], classes: Classes | None = None, top: int = 5
    ) -> Classification | list[Classification]:
        """The `top` most probable classes of an image, or of each image of a list.

        `image`: path, PIL image, RGB array (H,W,3) uint8, or tensor (3,H,W) float in [0,1]. `classes`: the
        ones to choose among (default all), as a list or a string with commas; their probabilities sum to 1.
        Raises UserError for an unreadable image and for a class that the classifier does not have.
        """
        chosen = self._chosen(classes, top)
        if not isinstance(image, list):
            return self._classify([self._prepared(image)], chosen, top)[0]
        prepared = (self._prepared(one) for one in image)
        return [found for batch in self._batches(prepared) for found in self._classify(batch, chosen, top)]

    def files(
        self, paths: Iterable[str | os.PathLike[str]], classes: Classes | None = None, top: int = 5
    ) -> Iterator[tuple[Path, Classification | UserError]]:
        """Each file with its classes, or with the error that tells why it cannot be read; in order.

        Files are decoded in threads, one batch ahead. Raises UserError for `classes` as a call does.
        """
        chosen = self._chosen(classes, top)
        with closing(_read_ahead(paths, self._prepared, 2 * self.batch_size)) as read:
            for batch in self._batches(read):
                images = [image for _, image in batch if not isinstance(image, UserError)]
                found = iter(self._classify(images, chosen, top) if images else ())
                for path, image in batch:
                    yield path, image if isinstance(image, UserError) else next(found)

    def video(
        self, path: str | os.PathLike[str], classes: Classes | None = None, top: int = 5, *, every: int = 1
    ) -> Iterator[Classification]:
        """Classify every n-th frame in constant memory. Raises UserError as VideoFile and a call do."""
        from vlkd.infer.video import every_nth

        chosen = self._chosen(classes, top)
        with closing(every_nth(path, every)) as frames:
            # Whole frames wait in a batch, so few of them go together.
            for batch in self._batches((frame for _, frame in frames), most=8):
                found = self._classify([self._prepared(frame.image) for frame in batch], chosen, top)
                for one, frame in zip(found, batch, strict=True):
                    yield replace(one, frame=frame.image, time=frame.time)

    def names(self, classes: Classes | None = None) -> tuple[str, ...]:
        """The class names that a call with `classes` would choose among. Raises UserError as a call does."""
        return self._chosen(classes, 1).names

    def _chosen(self, classes: Classes | None, top: int) -> Choice:
        if top < 1:
            raise UserError(f"top={top}: expected 1 or more")
        return self.choice(classes)

    def choice(self, classes: Classes | None) -> Choice:
        """What a call with `classes` chooses among. Raises UserError as a call does."""
        if classes is None:
            return Choice(self.class_names, torch.arange(len(self.class_names)))
        wanted = {fold(name): name for name in parse_classes(classes)}
        known = {fold(name) for name in self.class_names}
        for folded, name in wanted.items():
            if folded not in known:
                raise UserError(
                    f'classes: "{name}" is not among the {len(self.class_names)} classes of this classifier'
                    f"{nearest_hint(name, self.class_names)}; they are fixed, and a list only chooses some "
                    f"of them: {shortened(self.class_names)}"
                )
        kept = [i for i, name in enumerate(self.class_names) if fold(name) in wanted]
        return Choice(tuple(self.class_names[i] for i in kept), torch.tensor(kept))

    def logits(self, images01: Tensor, choice: Choice) -> Tensor:
        """(B,3,H,W) in [0,1] on the device -> logits (B,S) of the classes to choose among."""
        return self.classifier(images01)[:, choice.columns.to(images01.device)]

    def indices(self, choice: Choice) -> Tensor:
        """Indices (S,) that results give of the classes to choose among."""
        return choice.columns

    def _prepared(self, image: ImageLike) -> Tensor:
        """(3,H,W) float32 in [0,1]: the largest central part of the classifier's shape, at its size."""
        pixels = pixels_of(image)
        (height, width), (rows, columns) = pixels.shape[-2:], self.spec.size
        tall = max(1, min(height, round(width * rows / columns)))
        wide = max(1, min(width, round(height * columns / rows)))
        top, left = (height - tall) // 2, (width - wide) // 2
        pixels = pixels[:, top : top + tall, left : left + wide]
        if tuple(pixels.shape[-2:]) != self.spec.size:
            pixels = F.interpolate(
                pixels[None], self.spec.size, mode=self.spec.interpolation, antialias=True
            )[0]
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)

    def _batches(self, items: Iterable[Any], most: int | None = None) -> Iterator[list[Any]]:
        items = iter(items)
        while batch := list(islice(items, min(self.batch_size, most or self.batch_size))):
            yield batch

    @torch.inference_mode()
    def _classify(self, images: Sequence[Tensor], chosen: Choice, top: int) -> list[Classification]:
        logits = self.logits(torch.stack(list(images)).to(self.device, self.dtype), chosen).float().cpu()
        if not logits.isfinite().all():
            raise UserError(
                "the classifier's answer is not a finite number: its weights or dtype are unusable"
            )
        scores, places = logits.softmax(1).topk(min(top, len(chosen.names)))
        indices = self.indices(chosen)[places].numpy()
        return [
            Classification(tuple(chosen.names[i] for i in best), values, row)
            for best, values, row in zip(places.tolist(), scores.numpy(), indices, strict=True)
        ]


class OpenClassPredictor(ClassPredictor):
    """Says which of any classes an image shows: words are vectors that the image is compared with.

    `class_vectors`: of the bundle's classes; `text`: an encoder for other words, or a function that fetches
    it; `templates`: prompts for those. Else as ClassPredictor.
    """

    def __init__(
        self,
        classifier: Any,
        class_vectors: ClassVectors,
        text: TextEncoder | Callable[[], TextEncoder] | None = None,
        card: Mapping[str, Any] | None = None,
        *,
        templates: str | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(classifier, class_vectors.names, card, **options)
        self.words = Words(class_vectors, text, templates or class_vectors.templates, self.device)
        self.templates = self.words.templates

    @classmethod
    def from_bundle(cls, path: str | os.PathLike[str], **options: Any) -> OpenClassPredictor:
        """Predictor of a bundle file or zoo name; options as in the constructor. Raises UserError."""
        from vlkd.engine.bundle import load_bundle
        from vlkd.engine.hub import resolve
        from vlkd.models.open_classifier import open_classifier_from_card
        from vlkd.models.prompted import text_encoder

        file = resolve(str(path))
        card, tensors = load_bundle(file)
        if card["kind"] != "open_classifier":
            raise UserError(f"{path}: holds a {card['kind']}, expected a bundle of kind 'open_classifier'")
        vectors = ClassVectors.of_bundle(card, tensors)
        if vectors is None:
            raise UserError(f"{path}: holds no class vectors; it was not written by vlkd train")
        model = open_classifier_from_card(card, tensors, str(file))
        text = card.get("text")
        if options.get("templates") and "context" in (text or {}):
            raise UserError(f"templates: {path} has learned its own prompts for words; leave them out")
        fetch = partial(text_encoder, text, tensors, str(file)) if text else None
        return cls(model, vectors, fetch, card, **options)

    def choice(self, classes: Classes | None) -> Choice:
        """Any words where the bundle has a text half, else those that it knows; else UserError.

        "@base" and "@novel" are the bundle's base and novel classes.
        """
        return Choice(*self.words(None if classes is None else self._spelt_out(parse_classes(classes))))

    def _spelt_out(self, classes: Sequence[str]) -> list[str]:
        """The list with the names of a half in place of the word for it."""
        novel = set(self.card.get("novel", ()))
        halves = {"@base": [n for n in self.class_names if n not in novel], "@novel": sorted(novel)}
        for word in classes:
            if word.startswith("@") and not halves.get(word):
                known = "@base" + (" and @novel" if novel else "; the bundle has no novel classes")
                raise UserError(f"classes: {word!r} is no half of the bundle's classes; there is {known}")
        return [name for word in classes for name in halves.get(word, [word])]

    def logits(self, images01: Tensor, choice: Choice) -> Tensor:
        """(B,3,H,W) in [0,1] on the device -> logits (B,S) of the classes to choose among."""
        return self.classifier(images01, choice.columns)  # type: ignore[call-arg]

    def indices(self, choice: Choice) -> Tensor:
        """Indices (S,) that results give of the classes to choose among."""
        return torch.arange(len(choice.names))


def _read_ahead(paths: Iterable[Any], read: Any, depth: int) -> Generator[tuple[Path, Tensor | UserError]]:
    """What `read` makes of each path, or its UserError, in order; at most `depth` are held."""
    waiting: deque[tuple[Path, Future[Tensor]]] = deque()
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="vlkd-read")

    def first() -> tuple[Path, Tensor | UserError]:
        path, task = waiting.popleft()
        try:
            return path, task.result()
        except UserError as error:
            return path, error

    try:
        for path in map(Path, paths):
            waiting.append((path, pool.submit(read, path)))
            if len(waiting) >= depth:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)
