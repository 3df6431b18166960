"""Feature files from tiny videos, with a network that tells a frame's mean colour."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn

import vlkd.infer.features_cli as cli
from vlkd.errors import UserError
from vlkd.infer.features import FeatureIndex, Stream, extract
from vlkd.models.frame_features import FrameFeatures

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ["--image", "timm:test_efficientnet.r160_in1k", "--image-weights", "random"]
GROWTH = """
import sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from vlkd.infer.features import Stream, extract
from test_features import colours
torch.set_num_threads(1)
def rss():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
early = []
def follow(seconds, total):
    if seconds >= 20 and not early:
        early.append(rss())
found = extract(Path(sys.argv[1]), [Stream("image", colours(), 10.0)], Path(sys.argv[2]), "a", 4, follow)
print(found["image"]["rows"], rss() - early[0])
"""


class Mean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[:, :width])

    def forward(self, images01):
        return images01.flatten(3 if images01.ndim == 5 else 2).mean(-1) @ self.weight


def colours(frames: int = 1, name: str = "mean", width: int = 3) -> FrameFeatures:
    """Mean colour of a frame; of a clip, that of all its frames."""
    module = Mean(width)
    run = module if frames == 1 else lambda clips: module(clips).mean(1)
    return FrameFeatures(name, f"{name}@{width}", width, (8, 8), 8, "bilinear", frames, module, run)


def ramp(count: int, height: int = 16, width: int = 24):
    """Frames that get brighter by the same step."""
    for k in range(count):
        yield np.full((height, width, 3), (k * 200 // count, 100, 200 - k * 200 // count), np.uint8)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Function that runs the command with the colour networks and returns (code, stdout, stderr)."""

    def streams(args):
        found = []
        if args.image:
            found.append(Stream("image", colours(name=args.image), args.fps, not args.raw))
        if args.video:
            found.append(Stream("video", colours(args.clip_frames, args.video), args.clip_fps, not args.raw))
        return found

    monkeypatch.setattr(cli, "_streams", streams)
    monkeypatch.chdir(tmp_path)

    def call(*argv, expect=0):
        code = cli.main([*map(str, argv), "--out", "out"])
        output = capsys.readouterr()
        assert code == expect, output
        return output.out, output.err

    return call


def test_features_of_frames_and_clips(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", ramp(25))  # 2.5 s
    streams = [Stream("image", colours(), 2.0, unit=False), Stream("video", colours(4), 8.0)]
    found = extract(tmp_path / "a.mp4", streams, tmp_path / "out", "a", batch_size=2)
    image, video = (np.load(tmp_path / "out" / f"a.{k}.npy") for k in ("image", "video"))
    assert image.dtype == video.dtype == np.float16 and image.shape == (5, 3) and video.shape == (5, 3)
    assert found["image"] == {"rows": 5, "times": [0, 0.5, 1.0, 1.5, 2.0]}
    assert found["video"] == {"rows": 5, "times": [0, 0.5, 1.0, 1.5, 2.0]} and found["seconds"] == 2.5
    frames = np.array([f.reshape(-1, 3)[0] for f in ramp(25)]) / 255
    assert np.abs(image - frames[::5]).max() < 0.03
    shown = frames[[int(k / 8 * 10 + 1e-6) for k in range(20)]].reshape(5, 4, 3).mean(1)
    assert np.abs(video - shown / np.linalg.norm(shown, axis=1, keepdims=True)).max() < 0.04
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.image.npy", "a.video.npy"]


@pytest.mark.parametrize(("count", "rows"), [(3, 1), (8, 1), (11, 1), (12, 2), (16, 2)])
def test_a_last_clip_is_filled_up_where_half_of_it_is_there(tmp_path, write_video, count, rows):
    write_video(tmp_path / "a.mp4", ramp(count))
    found = extract(tmp_path / "a.mp4", [Stream("video", colours(8), 10.0)], tmp_path, "a")
    assert found["video"]["rows"] == rows == len(np.load(tmp_path / "a.video.npy"))


def test_folders_lists_and_equal_stems(run, tmp_path, write_video):
    for name in ("in/a.mp4", "in/deep/a.mp4", "in/b.mkv", "in/[c] d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / name, ramp(10))
    (tmp_path / "in" / "x.jpg").write_bytes(b"no video")
    (tmp_path / "in" / "list.txt").write_text("# two\n[c] d.mp4\n" + str(tmp_path / "in" / "b.mkv") + "\n")
    out, err = run("in/list.txt", "--image", "m")
    assert out.splitlines()[-1].startswith("2 done") and out.endswith("Results are in out\n") and err == ""
    out, _ = run("in", "--image", "m")
    assert "2 done" in out and "2 finished before" in out
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert set(index["videos"]) == {"[c] d", "b", "a", "deep-a"} or len(index["videos"]) == 4
    assert len({v["file"] for v in index["videos"].values()}) == 4
    assert all((tmp_path / "out" / f"{id}.image.npy").is_file() for id in index["videos"])


def test_finished_videos_are_skipped_and_another_model_is_refused(run, tmp_path, write_video):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", ramp(10))
    run("a.mp4", "--image", "one")
    stamp = os.stat("out/a.image.npy").st_mtime_ns
    out, _ = run("*.mp4", "--image", "one")
    assert out.splitlines()[-1].startswith("1 done") and os.stat("out/a.image.npy").st_mtime_ns == stamp
    for change in (["--image", "two"], ["--image", "one", "--fps", 3], ["--image", "one", "--raw"]):
        _, err = run("b.mp4", *change, expect=2)
        assert "made with other" in err and err.count("\n") == 1 and "--overwrite" in err
    out, _ = run("*.mp4", "--video", "clips", "--clip-frames", 4)
    assert out.splitlines()[-1].startswith("2 done") and os.stat("out/a.image.npy").st_mtime_ns == stamp
    run("b.mp4", "--image", "two", "--overwrite")
    index = json.loads(Path("out/index.json").read_text())
    assert "image" not in index["videos"]["a"] and not Path("out/a.image.npy").exists()
    assert index["kinds"]["image"]["model"] == "two" and {"image", "video"} < set(index["videos"]["b"])
    Path("out/b.image.npy").unlink()
    out, _ = run("b.mp4", "--image", "two")
    assert out.splitlines()[-1].startswith("1 done")


def test_broken_videos_are_listed_and_the_others_done(run, tmp_path, write_video):
    write_video(tmp_path / "good.mp4", ramp(20))
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("words " * 50)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out, err = run(".", "absent.mp4", "--image", "m", expect=1)
    assert "1 done" in out and "5 failed" in out
    for name in ("cut", "empty", "words", "sound", "absent"):
        assert sum(f"{name}.mp4" in line for line in err.splitlines()) == 1
    videos = json.loads(Path("out/index.json").read_text())["videos"]
    assert {id for id, v in videos.items() if v["status"] == "failed"} == {"cut", "empty", "words", "sound"}
    assert "no video stream" in videos["sound"]["error"] and videos["good"]["status"] == "done"
    assert sorted(p.name for p in Path("out").iterdir()) == ["good.image.npy", "index.json"]
    write_video(tmp_path / "empty.mp4", ramp(5))
    run("empty.mp4", "--image", "m")
    assert "error" not in json.loads(Path("out/index.json").read_text())["videos"]["empty"]


def test_ctrl_c_keeps_what_is_whole(run, tmp_path, write_video, monkeypatch):
    import vlkd.infer.features as features

    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", ramp(10))
    whole = features.extract

    def stopped(video, *others, **more):
        if video.stem == "b":
            # In the middle of the video, as from the keyboard.
            monkeypatch.setattr(
                features._Sink, "end", lambda self: (_ for _ in ()).throw(KeyboardInterrupt())
            )
        return whole(video, *others, **more)

    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", stopped)
        end = features._Sink.end
        _, err = run("a.mp4", "b.mp4", "c.mp4", "--image", "m", expect=130)
    monkeypatch.setattr(features._Sink, "end", end)
    assert "1 done, 2 left" in err
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.image.npy", "index.json"]
    out, _ = run("a.mp4", "b.mp4", "c.mp4", "--image", "m")
    assert out.splitlines()[-1].startswith("2 done") and "1 finished before" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a model"),
        (["--image", "m", "--video", "v", "--weights", "w"], "of which model"),
        (["--image", "m", "--video-weights", "w"], "without --video"),
        (["--image", "m", "--fps", "0"], "--fps 0.0: expected more than 0"),
        (["--image", "m", "--batch-size", "-1"], "--batch-size -1"),
    ],
)
def test_wrong_usage_is_one_line(run, words, says):
    _, err = run("a.mp4", *words, expect=2)
    assert says in err and err.count("\n") == 1


def test_other_indices_and_values_beyond_float16_are_refused(tmp_path, write_video):
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(UserError, match="not the index of a feature folder"):
        FeatureIndex(tmp_path, [Stream("image", colours(), 1.0)])
    write_video(tmp_path / "a.mp4", ramp(5))
    large = colours()
    large.module.weight.data *= 1e6
    with pytest.raises(UserError, match="float16"):
        extract(tmp_path / "a.mp4", [Stream("image", large, 1.0, unit=False)], tmp_path, "a")
    assert not list(tmp_path.glob("*.npy"))


def test_memory_does_not_grow_with_the_length(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", ramp(600, 480, 640))
    words = [
        sys.executable,
        "-c",
        GROWTH,
        str(tmp_path / "a.mp4"),
        str(tmp_path / "out"),
        str(Path(__file__).parent),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    rows, grown = done.stdout.split()
    assert int(rows) == 600
    assert float(grown) < 40, f"{grown} MB more"  # the other 400 frames would be 369 MB


def test_the_tool_goes_on_after_it_was_stopped(tmp_path, write_video):
    for k in range(12):
        write_video(tmp_path / f"{k:02d}.mp4", ramp(200, 240, 320))
    command = [sys.executable, str(ROOT / "tools" / "extract_features.py"), str(tmp_path), *NETWORK]
    command += ["--out", str(tmp_path / "out"), "--fps", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    began = time.monotonic()
    while not list((tmp_path / "out").glob("[0-9]*.npy")) and time.monotonic() - began < 60:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and "run the same command again" in err
    assert not list((tmp_path / "out").glob(".*"))
    left = list((tmp_path / "out").glob("*.npy"))
    assert 0 < len(left) < 12 and all(np.load(p).shape[0] == 200 for p in left)
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert second.returncode == 0, second.stderr
    assert (
        f"{len(left)} finished before" in second.stdout and len(list((tmp_path / "out").glob("*.npy"))) == 12
    )
    assert second.stdout.rstrip().endswith(f"Results are in {tmp_path / 'out'}")


@pytest.mark.realdata
def test_real_videos(tmp_path, shared_data, capsys):
    with tarfile.open(shared_data / "video_small.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    clips = tmp_path / "video_small" / "clips"
    assert cli.main([str(clips), "--out", str(tmp_path / "out"), *NETWORK]) == 0
    meta = {Path(c["file"]).stem: c for c in json.loads((clips.parent / "meta.json").read_text())["clips"]}
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert set(index["videos"]) == {p.stem for p in clips.iterdir()}
    for id, record in index["videos"].items():
        rows = np.load(tmp_path / "out" / f"{id}.image.npy")
        top, _, bottom = meta[id]["fps"].partition("/")
        seconds = meta[id]["frames"] * int(bottom or 1) / int(top)
        assert rows.shape == (record["image"]["rows"], index["kinds"]["image"]["width"])
        assert abs(len(rows) - seconds) <= 1.01
        assert np.abs(np.linalg.norm(rows.astype(np.float32), axis=1) - 1).max() < 2e-3
    assert "8 done" in capsys.readouterr().out
