"""Benchmarks with a model: predicted, stopped, continued, scored; what is said before any hour is spent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import assert_one_line
from torch.nn.functional import normalize

from vlkd.data.predictions import Predictions
from vlkd.data.world import NAMES
from vlkd.engine.bundle import save_bundle
from vlkd.engine.cli import main
from vlkd.engine.video_benchmark.settings import open_benchmark, read_settings

SIZE = [40, 56]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A segmentor of random weights with random vectors for the world's names."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny.safetensors")


def write_bundle(path, names=NAMES, memory=False, **changes):
    from vlkd.models.segmentor import Segmentor

    torch.manual_seed(0)
    tiny = {"channels": 16, "queries": 6, "layers": 1, "heads": 2, "text_width": 8, "encoder_layers": 1}
    student = Segmentor("timm:test_resnet", **tiny, memory=memory)
    card = {
        "kind": "segmentor",
        "name": "tiny",
        "architecture": student.arguments,
        "class_names": list(names),
        "class_vectors": {"templates": ["{}"], "encoder": "none@1", "logit_scale": 100.0},
        **changes,
    }
    vectors = normalize(torch.randn(len(names), 8), dim=1)
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    return save_bundle(path, card, state | {"class_vectors": vectors})


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny_world.yaml"
    world = {"videos": 3, "frames": 4, "size": SIZE}
    section = {"dataset": {"kind": "vipseg"}, "world": world, "size": 64}
    path.write_text(json.dumps({"benchmark": section | {"vc_windows": [2], "vpq_windows": [1, 2]}}))
    return path


def run(capsys, *words):
    code = main(["test", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def scores_in(out):
    return json.loads((out / "scores.json").read_text())


def test_predicts_scores_and_reports(tmp_path, capsys, config, bundle):
    out = tmp_path / "out"
    code, text, err = run(capsys, config, "--model", bundle, "--out", out)
    assert code == 0, err
    found = scores_in(out)
    assert {"mIoU", "mIoU_base", "mIoU_novel", "VC2", "VPQ", "VPQ1", "STQ", "AP"} <= set(found["scores"])
    assert found["title"] == "tiny_world: tiny" and found["speed"]["frames"] == 11  # the first warms up
    flags = found["protocol"]
    assert flags["short side"] == 64 and flags["tracking"] == "match" and flags["prompts"] == "{}"
    assert len(flags["weights sha256"]) == 64 and flags["asked"] == "46 names"
    assert "frames/s" in text and "1000002: 4 frames" in text
    assert {f.name for f in out.iterdir()} == {
        "predictions", "report.html", "report.md", "scores.json", "versions.json",
    }  # fmt: skip
    again = tmp_path / "again"
    assert run(capsys, config, "--predictions", out / "predictions", "--out", again)[0] == 0
    assert scores_in(again)["scores"] == found["scores"] and scores_in(again)["protocol"] == flags


def test_a_student_with_memory_propagates(tmp_path, capsys, config):
    path = write_bundle(tmp_path / "video.safetensors", memory=True)
    code, _, err = run(capsys, config, "--model", path, "--out", tmp_path / "out")
    assert code == 0, err
    assert scores_in(tmp_path / "out")["protocol"]["tracking"] == "propagate"
    words = ("--benchmark.tracking=match", "--benchmark.scores=[AP]")
    code, _, err = run(capsys, config, "--model", path, "--out", tmp_path / "match", *words)
    assert code == 0, err
    assert scores_in(tmp_path / "match")["protocol"]["tracking"] == "match"
    assert not (tmp_path / "match" / "predictions" / "semantic").exists()


def test_stopped_and_continued_is_the_same(tmp_path, capsys, config, bundle, monkeypatch):
    from vlkd.infer.video_predictor import VideoSession

    assert run(capsys, config, "--model", bundle, "--out", tmp_path / "whole")[0] == 0
    real, seen = VideoSession.__call__, []

    def stopping(self, image):
        seen.append(1)
        if len(seen) == 7:  # in the second video
            raise KeyboardInterrupt
        return real(self, image)

    out = tmp_path / "parts"
    monkeypatch.setattr(VideoSession, "__call__", stopping)
    code, _, err = run(capsys, config, "--model", bundle, "--out", out)
    assert code == 130 and "interrupted: 1 done, 2 left; run the same command again" in err
    assert not (out / "scores.json").exists()
    first = sorted((out / "predictions" / "semantic" / "1000000").glob("*.png"))
    written = [file.stat().st_mtime_ns for file in first]
    code, text, _ = run(capsys, config, "--model", bundle, "--out", out)
    assert code == 0 and "1 of 3 videos were predicted before" in text and "1000000: " not in text
    assert [file.stat().st_mtime_ns for file in first] == written and len(first) == 4
    assert scores_in(out)["scores"] == scores_in(tmp_path / "whole")["scores"]
    assert scores_in(out)["videos"] == scores_in(tmp_path / "whole")["videos"]


def test_other_settings_do_not_mix(tmp_path, capsys, config, bundle):
    out = tmp_path / "out"
    words = (config, "--model", bundle, "--out", out, "--benchmark.scores=[mIoU]")
    assert run(capsys, *words)[0] == 0
    before = scores_in(out)["scores"]
    code, _, err = run(capsys, *words, "--benchmark.smoothing=0.5")
    assert code == 2
    assert_one_line(err, "smoothing was 0.0 and is 0.5")
    assert "--overwrite" in err and scores_in(out)["scores"] == before
    assert run(capsys, *words, "--benchmark.smoothing=0.5", "--overwrite")[0] == 0
    assert scores_in(out)["protocol"]["smoothing"] == 0.5
    assert not (out / "predictions" / "panoptic").exists()


@pytest.mark.parametrize("change", ["world.seed=1", "world.frames=5", "dataset.split=train"])
def test_other_videos_of_the_same_ids_do_not_mix(tmp_path, capsys, config, bundle, change):
    out = tmp_path / "out"
    words = (config, "--out", out, "--benchmark.scores=[mIoU]")
    assert run(capsys, *words, "--model", bundle)[0] == 0
    code, _, err = run(capsys, *words, "--model", bundle, f"--benchmark.{change}")
    assert code == 2
    assert_one_line(err, "predicted on was 'vipseg val, the world of videos 3, frames 4")
    code, _, err = run(
        capsys, config, "--predictions", out / "predictions", f"--benchmark.{change}", "--out", tmp_path / "x"
    )
    assert code == 2
    assert_one_line(err, "but the benchmark is vipseg")


def test_another_subset_is_not_continued_but_scored(tmp_path, capsys, config, bundle):
    words = (config, "--out", tmp_path / "out", "--benchmark.scores=[mIoU]")
    assert run(capsys, *words, "--model", bundle, "--benchmark.dataset.subset=ignore")[0] == 0
    other = "--benchmark.dataset.subset=val_base"  # asks for the same names, may drop other frames
    code, _, err = run(capsys, *words, "--model", bundle, other)
    assert code == 2
    assert_one_line(err, "predicted subset was 'ignore' and is 'val_base'")
    assert run(capsys, *words, "--predictions", tmp_path / "out" / "predictions", other)[0] == 0


def test_videos_without_a_frame_do_not_stop_it(tmp_path, capsys, config, bundle):
    dataset = open_benchmark(read_settings(config))
    first, *others = (record.categories() for record in dataset)
    only = next(k for k in sorted(set().union(*others)) if k not in first)
    words = ("--benchmark.dataset.subset=ignore", f"--benchmark.dataset.base=[{dataset.names[only]}]")
    novel = [name for name in dataset.names if name != dataset.names[only]]
    words = (*words, f"--benchmark.dataset.novel=[{','.join(novel)}]")
    code, text, err = run(capsys, config, "--model", bundle, "--out", tmp_path / "out", *words)
    assert code == 0, err
    assert "1000000: 0 frames\n" in text and "1000000" not in scores_in(tmp_path / "out")["videos"]


def test_speed_is_of_the_device_and_the_machine_that_predicted(tmp_path, capsys, config, bundle, monkeypatch):
    import platform

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card that was not used")
    words = (config, "--model", bundle, "--out", tmp_path / "out", "--benchmark.scores=[mIoU]")
    assert run(capsys, *words)[0] == 0
    before = scores_in(tmp_path / "out")["speed"]
    assert before["machine"]["device"] == platform.machine()
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert run(capsys, *words)[0] == 0  # nothing is left to be predicted
    assert scores_in(tmp_path / "out")["speed"] == before


def test_val_novel_asks_for_the_novel_names_alone(tmp_path, capsys, config, bundle):
    out, subset = tmp_path / "out", "--benchmark.dataset.subset=val_novel"
    code, _, err = run(capsys, config, "--model", bundle, "--out", out, subset)
    assert code == 0, err
    dataset = open_benchmark(read_settings(config, [subset]))
    predictions = Predictions(out / "predictions", dataset)
    novel = sorted(dataset.novel)
    assert predictions.header["settings"]["asked"] == [dataset.names[k] for k in novel]
    labels = np.concatenate([np.unique(predictions.semantic(record)) for record in dataset])
    assert set(labels.tolist()) <= set(novel)
    ids = {dataset.vocabulary.ids[k] for k in novel}
    assert {row["category_id"] for record in dataset for row in predictions.results(record)} <= ids
    scores = scores_in(out)["scores"]
    assert scores["mIoU"] == scores["mIoU_novel"] and scores["mIoU_base"] is None
    assert scores["AP_base"] is None


def test_a_video_of_unequal_frames_stops_with_its_name(tmp_path, capsys, config, bundle):
    from PIL import Image

    dataset = open_benchmark(read_settings(config))
    frame = dataset[1].frame_files[2]
    kept = frame.read_bytes()
    try:
        Image.open(frame).resize((20, 20)).save(frame)
        code, _, err = run(capsys, config, "--model", bundle, "--out", tmp_path / "out")
        assert code == 2
        assert_one_line(err, "video 1000001: ")
        assert "20x20" in err
        code, out, _ = run(capsys, config, "--model", bundle, "--check")
        assert code == 1 and str(frame) in out
    finally:
        frame.write_bytes(kept)


def test_check_tries_the_model(tmp_path, capsys, config, bundle):
    assert run(capsys, config, "--model", bundle, "--check")[:2] == (0, "nothing is wrong\n")
    other = write_bundle(tmp_path / "clip.safetensors", kind="clip")
    few = write_bundle(tmp_path / "few.safetensors", names=NAMES[:5])
    (tmp_path / "torn.safetensors").write_bytes(bundle.read_bytes()[:5000])
    for path, said in (
        (other, "expected a segmentor"),
        (few, "is not among the 5 model classes"),
        (tmp_path / "torn.safetensors", "torn.safetensors: damaged"),
        (tmp_path / "none.safetensors", "no such file"),
    ):
        code, out, _ = run(capsys, config, "--model", path, "--check")
        assert code == 1 and said in out and out.count("\n") == 1, out
        code, _, err = run(capsys, config, "--model", path, "--out", tmp_path / "out")
        assert code == 2
        assert_one_line(err, said)
        assert not (tmp_path / "out").exists()
    code, out, _ = run(capsys, config, "--model", bundle, "--check", "--benchmark.tracking=propagate")
    assert code == 1 and "no memory" in out


def test_the_folder_has_the_names_of_config_and_model(tmp_path, capsys, config, bundle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run(capsys, config, "--model", bundle, "--benchmark.scores=[mIoU]")
    assert code == 0 and "runs/ovvs/tiny_world/tiny/report.html" in text
    assert (tmp_path / "runs/ovvs/tiny_world/tiny/predictions/predictions.json").is_file()
    code, text, _ = run(capsys, config, "--predictions", "runs/ovvs/tiny_world/tiny/predictions")
    assert code == 0 and "runs/ovvs/tiny_world/tiny/report.html" in text
