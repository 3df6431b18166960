import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from vlkd.errors import UserError
from vlkd.infer.video import VideoFile, VideoWriter, prefetched

# Reads a file in a fresh process and prints the growth of resident memory, in MB, from frame 100 to the end.
GROWTH = """
import sys
from vlkd.infer.video import VideoFile, prefetched
def rss():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
for count, frame in enumerate(prefetched(VideoFile(sys.argv[1])), start=1):
    if count == 100:
        early = rss()
print(count, rss() - early)
"""


def moving(count: int, height: int = 64, width: int = 96):
    for i in range(count):
        image = np.full((height, width, 3), 60, np.uint8)
        image[:, : 1 + i * (width - 1) // count] = (200, 80, 40)
        image[:8] = 230  # a bright top, to see how the frame is turned
        yield image


def growth(path: Path) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(path)], capture_output=True, text=True, check=True, timeout=300
    )
    count, grown = done.stdout.split()
    return int(count), float(grown)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_frames_times_and_pixels(tmp_path, write_video, reader):
    write_video(tmp_path / "a.mp4", moving(20))
    video = VideoFile(tmp_path / "a.mp4", reader)
    frames = list(video)
    assert (video.frames, video.fps, len(frames)) == (20, 10.0, 20)
    assert [f.time for f in frames] == pytest.approx([i / 10 for i in range(20)], abs=1e-4)
    for frame, expected in zip(frames, moving(20), strict=True):
        assert frame.image.shape == (64, 96, 3) and frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - expected).mean() < 12
    assert len(list(video)) == 20  # again from the start


def test_av1_falls_to_pyav(tmp_path, write_video):
    codec = next((c for c in ("libsvtav1", "libaom-av1") if c in av.codecs_available), None)
    if codec is None:
        pytest.skip("this PyAV has no AV1 encoder")
    write_video(tmp_path / "a.mp4", moving(5), codec)
    video = VideoFile(tmp_path / "a.mp4")
    assert len(list(video)) == 5 and video.reader == "pyav"


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Put a rotation into the track header of an MP4 (16.16 fixed point, ISO 14496-12)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    a, b, c, d = (v.to_bytes(4, "big", signed=True) for v in (x << 16 for x in matrix))
    data[at : at + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_stored_rotation_is_applied(tmp_path, write_video, matrix, turns, reader):
    write_video(tmp_path / "a.mp4", moving(3))
    rotate(tmp_path / "a.mp4", matrix)
    frame = next(iter(VideoFile(tmp_path / "a.mp4", reader))).image
    expected = np.rot90(next(moving(3)), turns)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 12


def test_bad_files_are_one_line(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", moving(30))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("these are words " * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, says in {
        "cut.mp4": "not a video",
        "empty.mp4": "empty",
        "words.mp4": "not a video",
        "sound.mp4": "no video stream",
        "absent.mp4": "no such file",
    }.items():
        with pytest.raises(UserError, match=says) as error:
            list(VideoFile(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_a_cut_stream_is_told_after_its_frames(tmp_path, write_video, reader):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mkv", rng.integers(0, 255, (60, 64, 96, 3), np.uint8))
    frames = [av.VideoFrame.from_ndarray(f.image, format="rgb24") for f in VideoFile(tmp_path / "a.mkv")]
    with av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "fast.mp4").write_bytes(whole[: len(whole) // 2])
    seen = 0
    with pytest.raises(UserError, match="damaged"):
        for _ in VideoFile(tmp_path / "fast.mp4", reader):
            seen += 1
    assert 0 < seen < 55


def test_writer(tmp_path):
    with VideoWriter(tmp_path / "sub" / "out.mp4", fps=10) as writer:
        for i, image in enumerate(moving(12, 63, 95)):
            writer.write(image, i / 10 + (0.5 if i > 5 else 0))
    frames = list(VideoFile(tmp_path / "sub" / "out.mp4"))
    assert len(frames) == 12 and frames[0].image.shape == (64, 96, 3)
    assert frames[11].time == pytest.approx(1.6, abs=1e-3)
    assert np.abs(frames[8].image[:63, :95].astype(int) - list(moving(12, 63, 95))[8]).mean() < 10
    with av.open(str(tmp_path / "sub" / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_a_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", fps=10) as writer:
        writer.write(next(moving(1)), 0.0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_prefetched_is_bounded_carries_errors_and_ends():
    made = []

    def numbers():
        for i in range(100):
            made.append(i)
            yield i
        raise UserError("the end")

    ahead = prefetched(numbers(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name == "vlkd-prefetch"]
    seen = []
    with pytest.raises(UserError, match="the end"):
        for i in prefetched(numbers()):
            seen.append(i)
    assert seen == list(range(100))
    assert list(prefetched(iter("abc"))) == ["a", "b", "c"]


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_frames(tmp_path, write_video, count):
    write_video(tmp_path / "a.mp4", moving(count, 240, 320))
    seen, grown = growth(tmp_path / "a.mp4")
    assert seen == count
    assert grown < 12, f"{grown:.1f} MB more after {count} frames"  # 200 frames kept would be 46 MB


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_sampled_frames_are_those_shown_at_the_times(tmp_path, write_video, reader):
    write_video(tmp_path / "a.mp4", moving(25))
    everything = list(VideoFile(tmp_path / "a.mp4", reader))  # 10 a second
    found = list(VideoFile(tmp_path / "a.mp4", reader).sampled([1.0, 24.0]))
    slow, fast = ([f for place, f in found if place == k] for k in (0, 1))
    assert [f.time for f in slow] == [0, 1, 2] and len(fast) == 60  # 2.5 s
    for frame in (*slow, *fast):
        shown = max(k for k in range(25) if k / 10 <= frame.time + 1e-6)
        assert np.array_equal(frame.image, everything[shown].image)
    assert [f.time for _, f in found] == sorted(f.time for _, f in found)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_sampling_tells_of_a_cut_stream(tmp_path, write_video, reader):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (60, 64, 96, 3), np.uint8)
    with av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "fast.mp4").read_bytes()
    for part in (0.5, 0.8):
        (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(UserError, match="damaged"):
            list(VideoFile(tmp_path / "cut.mp4", reader).sampled([1.0]))


def test_frames_of_a_narrow_video_have_three_channels(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", moving(3, 16, 24))
    for frame, expected in zip(VideoFile(tmp_path / "a.mp4"), moving(3, 16, 24), strict=True):
        assert frame.image.shape == (16, 24, 3)
        assert np.abs(frame.image.astype(int) - expected).mean() < 12
