"""Reading video frame by frame with bounded memory, and writing H.264."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vlkd.errors import UserError
from vlkd.infer.image_io import whole_file

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv"}
)
T = TypeVar("T")


def is_video(path: Path) -> bool:
    """Whether the suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class Frame(NamedTuple):
    """One upright frame: image (H,W,3) uint8 and its time in seconds from the first frame."""

    image: np.ndarray
    time: float


class VideoFile:
    """A video to iterate over once or more; `frames` is the container's count (None where it tells none).

    decord reads; PyAV reads what decord cannot open (AV1), and videos below 64 pixels wide or high. Both
    apply the rotation that phones store. Raises UserError for files that are missing, empty, damaged, without
    a video stream or not media, on opening or, for files damaged further on, while iterating.
    """

    def __init__(self, path: str | os.PathLike[str], reader: str | None = None) -> None:
        self.path = Path(path)
        self.frames, self.fps, codec, side = _probe(self.path)
        # decord takes the bytes that fill up a row for a fourth channel where they are as many as its pixels.
        self.reader = reader or ("pyav" if codec == "av1" or side < 64 else "decord")

    def __iter__(self) -> Iterator[Frame]:
        start, count = 0.0, 0
        try:
            for image, time in self._decoded():
                start = start if count else time
                count += 1
                yield Frame(image, time - start)
        except _decoding_errors() as error:
            raise self._damaged(error, count) from None
        self._check_count(count)

    def sampled(self, rates: Sequence[float]) -> Iterator[tuple[int, Frame]]:
        """(place in `rates`, the frame shown at 0, 1/rate, 2/rate, ... seconds), in the order of time.

        `frame.time` is that multiple of 1/rate. Frames that are shown at none of these times are decoded but
        not converted to RGB. Raises UserError as iterating does.
        """
        start, count, given = 0.0, 0, [0] * len(rates)
        try:
            for begin, end, convert in self._shown():
                start = start if count else begin
                due = []
                for place, rate in enumerate(rates):
                    # A millionth of a second: times are rounded to the container's clock.
                    while given[place] / rate < end - start - 1e-6:
                        due.append((given[place] / rate, place))
                        given[place] += 1
                # Past what may be missing at the end, decord tells of a cut file only when it must convert.
                checked = self.frames is not None and count == int(0.9 * (self.frames - 1))
                image = convert() if due or checked else None
                count += 1
                for time, place in sorted(due):
                    assert image is not None
                    yield place, Frame(image, time)
        except StopIteration:
            pass
        except _decoding_errors() as error:
            raise self._damaged(error, count) from None
        self._check_count(count)

    def _damaged(self, error: Exception, count: int) -> UserError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return UserError(f"{self.path}: the video is damaged after frame {count}: {reason}")

    def _check_count(self, count: int) -> None:
        if not count:
            raise UserError(f"{self.path}: the video has no frame that can be decoded")
        # An edit list may hide a few of the frames that the container counts; a cut file lacks many.
        if self.frames and count < 0.9 * self.frames:
            raise UserError(
                f"{self.path}: the video is damaged: only {count} of its {self.frames} frames are there"
            )

    def _decoded(self) -> Iterator[tuple[np.ndarray, float]]:
        source = self._opened()
        return _frames_pyav(self.path, self.fps) if source is None else _frames_decord(source)

    def _shown(self) -> Iterator[tuple[float, float, Callable[[], np.ndarray]]]:
        source = self._opened()
        return _shown_pyav(self.path, self.fps) if source is None else _shown_decord(source)

    def _opened(self) -> Any:
        """decord's reader, or None where PyAV is to read."""
        if self.reader == "decord":
            try:
                return _open_decord(self.path)
            except _decoding_errors():
                self.reader = "pyav"
        return None


class VideoWriter:
    """Writes frames (H,W,3) uint8 of one size as H.264 (yuv420p) MP4; the file appears when all is written.

    Odd sizes gain a copied row or column. Frames carry their own times, so variable rates stay in step.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self.path = Path(path)
        self.fps = fps
        self._whole = whole_file(self.path)
        self._container: Any = None
        self._stream: Any = None
        self._pts = -1

    def __enter__(self) -> VideoWriter:
        import av

        self._part = self._whole.__enter__()
        self._container = av.open(str(self._part), "w")
        return self

    def write(self, image: np.ndarray, time: float) -> None:
        """Append a frame (H,W,3) uint8 shown from `time` seconds on."""
        import av

        image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            rate = Fraction(self.fps).limit_denominator(1001)
            options = {"preset": "veryfast", "crf": "20"}
            self._stream = self._container.add_stream("h264", rate=rate, options=options)
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, 90_000)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._pts = max(self._pts + 1, round(time * 90_000))
        frame.pts, frame.time_base = self._pts, Fraction(1, 90_000)
        self._container.mux(self._stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()
            self._whole.__exit__(kind, error, trace)


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made in a thread at most `depth` ahead; its exceptions are raised here.

    The thread ends with the items, or when this generator is closed.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not closed.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, daemon=True, name="vlkd-prefetch")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()


def every_nth(path: str | os.PathLike[str], every: int = 1) -> Generator[tuple[int, Frame]]:
    """Index and frame of a video's every n-th frame, decoded ahead; close it to end the decoding.

    Raises UserError as VideoFile does, and for `every` below 1.
    """
    if every < 1:
        raise UserError(f"every={every}: expected 1 or more")
    yield from prefetched((i, frame) for i, frame in enumerate(VideoFile(path)) if i % every == 0)


def _probe(path: Path) -> tuple[int | None, float, str, int]:
    """(frames or None, frames per second, codec, shorter side in pixels) from the container's head."""
    import av

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty: expected a video")
    av.logging.set_level(av.logging.PANIC)
    try:
        with av.open(str(path)) as container:
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                raise UserError(f"{path}: there is no video stream in it (audio only?)")
            rate = streams[0].average_rate or streams[0].guessed_rate or 25
            return (
                streams[0].frames or None,
                float(rate),
                streams[0].codec_context.name.replace("libdav1d", "av1"),
                min(streams[0].width, streams[0].height),
            )
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{path}: not a video that can be read: {reason}") from None


def _open_decord(path: Path) -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path), num_threads=1)


def _frames_decord(source: Any) -> Iterator[tuple[np.ndarray, float]]:
    for index in range(len(source)):
        try:
            image = source.next()
        except StopIteration:
            return
        yield image.asnumpy(), float(source.get_frame_timestamp(index)[0])


def _frames_pyav(path: Path, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            yield _upright(frame), index / fps if frame.time is None else frame.time


def _upright(frame: Any) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


# Begin and end in seconds of each frame, and what converts it, to be called before the next is asked for.


def _shown_decord(source: Any) -> Iterator[tuple[float, float, Callable[[], np.ndarray]]]:
    skipped = 0

    def convert() -> np.ndarray:
        nonlocal skipped
        if skipped > 1:
            source.skip_frames(skipped - 1)
        skipped = 0
        return source.next().asnumpy()

    times = source.get_frame_timestamp(range(len(source)))
    for index, (begin, end) in enumerate(times):
        skipped += 1
        later = times[index + 1][0] if index + 1 < len(times) else end
        yield float(begin), float(later), convert


def _shown_pyav(path: Path, fps: float) -> Iterator[tuple[float, float, Callable[[], np.ndarray]]]:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        before: tuple[float, Any] | None = None
        for index, frame in enumerate(container.decode(video=0)):
            time = index / fps if frame.time is None else frame.time
            if before is not None:
                yield before[0], time, partial(_upright, before[1])
            before = time, frame
        if before is not None:
            yield before[0], before[0] + 1 / fps, partial(_upright, before[1])


def _decoding_errors() -> tuple[type[Exception], ...]:
    import av
    import decord

    return (av.FFmpegError, decord.DECORDError, RuntimeError, IndexError, OSError)
