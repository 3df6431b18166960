import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vlkd.infer.cli as cli
from vlkd.infer.predictor import Predictor
from vlkd.infer.video import VideoFile

ARGS = ["--model", "colours", "--classes", "red, green, blue"]


@pytest.fixture
def run(parts, monkeypatch, tmp_path, capsys):
    """Function that runs the command with the colour student and returns (code, stdout, stderr)."""

    def predictor(args):
        options = {"size": args.size, "templates": args.templates}
        return Predictor(parts.student, None, parts.text, **options)

    monkeypatch.setattr(cli, "_predictor", predictor)
    monkeypatch.chdir(tmp_path)

    def call(*argv, expect=0):
        code = cli.main([*map(str, argv), *ARGS, "--out", "out"])
        output = capsys.readouterr()
        assert code == expect, output
        return output.out, output.err

    return call


@pytest.fixture
def photo(tmp_path, stripes):
    (tmp_path / "in").mkdir()
    Image.fromarray(stripes).save(tmp_path / "in" / "photo.png")
    return tmp_path / "in" / "photo.png"


def test_image(run, photo, tmp_path, stripes):
    out, err = run(photo)
    labels = Image.open(tmp_path / "out" / "photo.png")
    assert labels.mode == "P" and (np.array(labels) == stripes.argmax(-1)).mean() > 0.98
    record = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert record["file"] == str(photo) and (record["width"], record["height"]) == (120, 96)
    assert {c["name"] for c in record["classes"]} == {"red", "green", "blue"}
    assert sum(c["area"] for c in record["classes"]) == pytest.approx(1, abs=1e-4)
    assert record["settings"]["model"] == "colours" and record["ms"] > 0
    assert Image.open(tmp_path / "out" / "photo.overlay.jpg").width == 480
    assert "images/s" in out and out.rstrip().endswith("Results are in out") and err == ""
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_folders_globs_and_equal_stems(run, photo, tmp_path, stripes):
    (tmp_path / "in" / "deep").mkdir()
    for name, image in (("photo.jpg", stripes), ("deep/photo.png", 255 - stripes), ("deep/x.webp", stripes)):
        Image.fromarray(image).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not media")
    out, _ = run("in", "in/*.jpg")
    stems = {p.stem for p in (tmp_path / "out").glob("*.json")}
    assert len(stems) == 4 and {"photo", "x"} < stems
    files = {json.loads(p.read_text())["file"] for p in (tmp_path / "out").glob("*.json")}
    assert len(files) == 4 and out.splitlines()[-1].startswith("4 done")


def test_results_of_another_file_are_not_overwritten(run, photo, tmp_path):
    run(photo)
    (tmp_path / "other").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "other" / "photo.png")
    run("other", "--overwrite")
    assert json.loads((tmp_path / "out" / "photo.json").read_text())["file"] == str(photo)
    assert json.loads((tmp_path / "out" / "photo_png.json").read_text())["width"] == 40


def test_finished_work_is_skipped(run, photo, tmp_path, parts):
    run(photo)
    calls = len(parts.student.sizes)
    out, _ = run(photo)
    assert len(parts.student.sizes) == calls and "1 finished before" in out
    run(photo, "--overwrite")
    assert len(parts.student.sizes) == calls + 1
    _, err = run(photo, "--size", 96, expect=2)
    assert "made with other size" in err and err.count("\n") == 1


def test_bad_inputs_do_not_stop_the_others(run, photo, tmp_path):
    (tmp_path / "in" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "words.mp4").write_text("words")
    out, err = run("in", "absent.png", expect=1)
    assert len(err.splitlines()) == 4
    for name in ("cut.jpg", "empty.png", "words.mp4", "absent.png"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert "1 done" in out and "4 failed" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"photo.png", "photo.json", "photo.overlay.jpg"}


def test_nothing_to_do(run, tmp_path):
    (tmp_path / "in").mkdir()
    out, err = run("in", expect=1)
    assert err == "in: no image or video in it\n" and "0 done; 1 failed" in out


def test_video(run, stripes, tmp_path, write_video, parts):
    write_video(tmp_path / "clip.mp4", [stripes] * 7)
    run("clip.mp4", "--every", 2, "--masks")
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.json").read_text().splitlines()]
    assert lines[0]["file"].endswith("clip.mp4") and lines[-1] == {"complete": True, "frames": 4}
    assert [line["frame"] for line in lines[1:-1]] == [0, 2, 4, 6]
    assert [line["time"] for line in lines[1:-1]] == pytest.approx([0, 0.2, 0.4, 0.6], abs=1e-3)
    assert {c["name"] for c in lines[1]["classes"]} == {"red", "green", "blue"}
    masks = sorted((tmp_path / "out" / "clip").iterdir())
    assert [p.name for p in masks] == ["000000.png", "000002.png", "000004.png", "000006.png"]
    assert (np.array(Image.open(masks[1])) == stripes.argmax(-1)).mean() > 0.95
    video = VideoFile(tmp_path / "out" / "clip.mp4")
    frames = list(video)
    assert (
        len(frames) == 4 and video.fps == pytest.approx(5) and frames[1].time == pytest.approx(0.2, abs=1e-3)
    )
    calls = len(parts.student.sizes)
    out, _ = run("clip.mp4", "--every", 2, "--masks")
    assert len(parts.student.sizes) == calls and "1 finished before" in out


def test_masks_are_made_up_for(run, stripes, tmp_path, write_video):
    write_video(tmp_path / "clip.mp4", [stripes] * 3)
    run("clip.mp4")
    run("clip.mp4", "--masks")
    (tmp_path / "out" / "clip" / "000001.png").unlink()  # as after Ctrl-C
    run("clip.mp4", "--masks")
    assert len(list((tmp_path / "out" / "clip").iterdir())) == 3
    out, _ = run("clip.mp4")
    assert "1 finished before" in out


def test_a_damaged_video_keeps_its_frames_and_is_done_again(run, tmp_path, write_video, stripes, monkeypatch):
    write_video(tmp_path / "clip.mp4", [stripes] * 30)
    original = VideoFile._decoded

    def breaks(self):
        for index, frame in enumerate(original(self)):
            if index == 5:
                raise RuntimeError("bad packet")
            yield frame

    monkeypatch.setattr(VideoFile, "_decoded", breaks)
    out, err = run("clip.mp4", expect=1)
    assert "damaged after frame 5" in err and "the 5 before are in clip.mp4" in err and err.count("\n") == 1
    monkeypatch.setattr(VideoFile, "_decoded", original)
    assert len(list(VideoFile(tmp_path / "out" / "clip.mp4"))) == 5
    out, _ = run("clip.mp4")
    assert (
        out.splitlines()[-1].startswith("1 done")
        and len(list(VideoFile(tmp_path / "out" / "clip.mp4"))) == 30
    )


def test_interrupt_leaves_whole_files_and_goes_on(run, photo, tmp_path, stripes, monkeypatch, parts):
    for name in ("a.png", "z.png"):
        Image.fromarray(stripes).save(tmp_path / "in" / name)
    forward = parts.student.forward

    def interrupted(images):
        if len(parts.student.sizes) == 1:
            raise KeyboardInterrupt
        return forward(images)

    monkeypatch.setattr(parts.student, "forward", interrupted)
    _, err = run("in", expect=130)
    assert "1 done, 2 left" in err and "same command again" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "a.json", "a.overlay.jpg"}
    monkeypatch.setattr(parts.student, "forward", forward)
    out, _ = run("in")
    assert "2 done" in out and "1 finished before" in out


def test_classes_file(parts, monkeypatch, tmp_path, photo):
    monkeypatch.setattr(cli, "_predictor", lambda args: Predictor(parts.student, None, parts.text))
    (tmp_path / "words.txt").write_text("# colours\nred\n\nblue|green  # two in one\n", encoding="utf-8")
    argv = [str(photo), "--model", "m", "--out", str(tmp_path / "out"), "--classes-file"]
    assert cli.main([*argv, str(tmp_path / "words.txt")]) == 0
    record = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert record["settings"]["classes"] == ["red", "blue|green"]
    assert cli.main([*argv, str(tmp_path / "absent.txt")]) == 2


@pytest.mark.parametrize(
    "extra",
    [
        ["--every", "0"],
        ["--classes", "red,red"],
        ["--size", "3"],
        ["--out", "in/photo.png"],
        ["--templates", "x"],
    ],
)
def test_wrong_use_is_one_line_and_2(run, photo, capsys, extra):
    code = cli.main([str(photo), *ARGS, *extra])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [[], ["x.png"], ["x.png", "--modle", "m"], ["x.png", "--model", "m", "--every", "two"]]
)
def test_wrong_flags_are_one_line_and_2(capsys, argv):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_help_needs_no_torch():
    code = (
        "import sys; from vlkd.infer.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'av', 'decord', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--classes" in done.stdout
