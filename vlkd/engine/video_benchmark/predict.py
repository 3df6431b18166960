"""Predictions of a bundle for every video of a benchmark, continued where they were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd.data.predictions import FORMS
from vlkd.data.sample import void_label
from vlkd.data.video.record import Form
from vlkd.engine.video_benchmark.settings import FORM_OF, Benchmark
from vlkd.engine.video_benchmark.videos import ahead, label_type

if TYPE_CHECKING:
    from vlkd.data.predictions import PredictionWriter
    from vlkd.data.video import VideoDataset, VideoRecord
    from vlkd.infer.video_predictor import VideoPredictor


PREDICTED_ON = "predicted on"  # the header's entry


def predicted_on(settings: Benchmark) -> str:
    """The data but for their place: videos of another split, or of another world, may have the same ids."""
    facts = asdict(settings.world) if settings.world.videos else {}
    world = f", the world of {', '.join(f'{key} {value}' for key, value in facts.items())}" if facts else ""
    return f"{settings.dataset.kind} {settings.dataset.split}{world}"


class Asked:
    """The classes that a prediction may name, and what the model's answers mean in those of the data set."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.indices = sorted(dataset.candidates)
        self.names = [dataset.names[k] for k in self.indices]
        self.isthing = [dataset.isthing[k] for k in self.indices]
        self._table = np.array(self.indices, label_type(void_label(len(dataset.names))))

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Class indices (H,W) of the data set."""
        return self._table[labels]

    def category(self, index: int) -> int:
        """Class index of the data set."""
        return self.indices[index]


def load_model(path: Path, settings: Benchmark, asked: Asked) -> VideoPredictor:
    """The bundle's predictor, having encoded the names.

    Raises UserError for other bundles, names it has no vectors for, and options that it cannot take.
    """
    from vlkd.infer.video_predictor import VideoPredictor

    predictor = VideoPredictor.from_bundle(
        path,
        tracking=settings.tracking,
        smoothing=settings.smoothing,
        object_threshold=settings.object_threshold,
        size=settings.size,
        templates=settings.templates,
        device=settings.device,
    )
    predictor.start(asked.names, asked.isthing)
    return predictor


def how_predicted(path: Path, predictor: VideoPredictor, settings: Benchmark, asked: Asked) -> dict[str, Any]:
    """What the predictions depend on, but for the classes' number and the place of the data."""
    from vlkd.engine.download import sha256

    return {
        PREDICTED_ON: predicted_on(settings),
        "predicted subset": settings.dataset.subset or "none",
        "model": str(predictor.predictor.card.get("name", path.stem)),
        "weights sha256": sha256(path),
        "prompts": ", ".join(predictor.predictor.templates),
        "short side": predictor.predictor.size,
        "tracking": predictor.tracking,
        "smoothing": settings.smoothing,
        "object threshold": settings.object_threshold,
        "asked": asked.names,
    }


def forms_of(names: Sequence[str]) -> tuple[Form, ...]:
    """The forms of predictions that what is measured needs."""
    needed = {FORM_OF[name] for name in names}
    return tuple(form for form in FORMS if form in needed)


def predict(
    dataset: VideoDataset,
    predictor: VideoPredictor,
    writer: PredictionWriter,
    settings: Benchmark,
    forms: tuple[Form, ...],
    asked: Asked,
) -> int:
    """Predict the videos that are not done yet; how many were.

    Ctrl-C leaves the finished videos; the one that was begun is done again.
    """
    from vlkd.infer.cli import interrupted, progress_bars

    todo = [record for record in dataset if not writer.is_done(record)]
    if len(todo) < len(dataset):
        print(f"{len(dataset) - len(todo)} of {len(dataset)} videos were predicted before", flush=True)
    with progress_bars() as progress:
        bar = progress.add_task("predicting", total=sum(len(record) for record in todo))
        for done, record in enumerate(todo):
            try:
                times = _predict_video(
                    record, predictor, writer, settings, forms, asked, lambda: progress.advance(bar)
                )
            except KeyboardInterrupt:
                interrupted(progress, len(dataset) - len(todo) + done, len(dataset))
                raise
            speed = f", {median(times):.1f} ms a frame" if times else ""
            print(f"{record.id}: {len(times)} frames{speed}", flush=True)
    return len(todo)


def _predict_video(
    record: VideoRecord,
    predictor: VideoPredictor,
    writer: PredictionWriter,
    settings: Benchmark,
    forms: tuple[Form, ...],
    asked: Asked,
    advance: Any,
) -> list[float]:
    """Milliseconds (T,) of the video's frames."""
    session = predictor.start(asked.names, asked.isthing, forms)
    times = []
    with writer.video(record) as sink:
        frames = ahead(record.frame, range(len(record)), settings.readers, 2 * settings.readers)
        for t, image in enumerate(frames):
            found = session(image)
            times.append(found.ms)
            sink.frame(
                t,
                asked.labels(found.labels),
                found.segments,
                {id: asked.category(index) for id, index in found.categories.items()},
                found.ms,
            )
            advance()
        if "tracks" in forms:
            tracks = session.tracks()
            sink.tracks([(asked.category(x.category), x.score, x.segmentations) for x in tracks])
    return times
