"""Benchmarks of predictions that are there: scores, report, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_line
from PIL import Image
from toy_predictions import SIZE, give_truth, world, write_truth

from vlkd.data.predictions import Predictions, PredictionWriter
from vlkd.data.video import open_dataset, write_world
from vlkd.data.video.masks import encode_mask
from vlkd.engine.cli import main
from vlkd.engine.video_benchmark.score import Scorer, score
from vlkd.engine.video_benchmark.settings import Benchmark, DatasetChoice, read_settings
from vlkd.engine.video_benchmark.videos import Pair, ahead
from vlkd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "ovvs").glob("*.yaml"))


def config_of(folder, kind, **more):
    """A benchmark of `folder`/data: its config file."""
    dataset = {"kind": kind, "root": str(folder / "data"), **more.pop("dataset", {})}
    path = folder / "bench.yaml"
    path.write_text(json.dumps({"benchmark": {"dataset": dataset, "vc_windows": [2], **more}}))
    return path


def run(capsys, *words):
    code = main(["test", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def scored(capsys, config, folder, out, *words):
    code, text, err = run(capsys, config, "--predictions", folder, "--out", out, *words)
    assert code == 0, err
    return json.loads((out / "scores.json").read_text()), text


PERFECT = {
    "vspw": ("mIoU", "mIoU_base", "fwIoU", "VC2", "VC2_correct"),
    "camvid": ("mIoU", "VC2"),
    "vipseg_720p": ("mIoU", "VC2", "STQ", "SQ", "AQ", "AP", "AP50", "AP75"),
    "lvvis": ("AP", "AP50", "AP75", "AP_base", "AP_novel"),
    "youtube_vis_2021": ("AP",),
    "burst": ("HOTA", "DetA", "AssA", "OWTA", "AP"),
}


@pytest.mark.parametrize("kind", PERFECT)
def test_perfect_predictions_have_perfect_scores(tmp_path, capsys, kind):
    write_truth(world(kind, tmp_path), tmp_path / "pred")
    novel = {} if kind in ("lvvis", "camvid", "burst") else {"dataset": {"novel": ["bus", "hat", "fir"]}}
    config = config_of(tmp_path, kind.removesuffix("_720p"), vpq_windows=[1, 3], **novel)
    found, text = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    for name in PERFECT[kind]:
        assert found["scores"][name] == pytest.approx(1.0), name
    if kind == "vipseg_720p":
        names = ("VPQ", "VPQ_thing", "VPQ_stuff", "VPQ_base", "VPQ1", "VPQ3")
        assert [found["scores"][name] for name in names] == [100.0] * 6
    else:
        assert not any(name.startswith(("VPQ", "STQ")) for name in found["scores"])
    assert len(found["videos"]) == 2 and f"| {PERFECT[kind][0]} | 1.0000 |" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == 2 and page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page and ('class="bars"' in page) == ("mIoU" in found["scores"])
    assert PERFECT[kind][0] in (tmp_path / "out" / "report.md").read_text()


def test_wrong_predictions_score_less_and_are_pictured(tmp_path, capsys):
    dataset = world("vipseg_720p", tmp_path, videos=3)
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("semantic", "panoptic", "tracks"))
    for number, record in enumerate(dataset):
        with writer.video(record) as sink:
            if number != 1:
                give_truth(sink, record, ("semantic", "panoptic", "tracks"))
                continue
            for t in range(len(record)):
                sink.frame(t, np.full(SIZE, 3), np.ones(SIZE, np.int32), {1: 3})
            sink.tracks([])
    config = config_of(tmp_path, "vipseg", vpq_windows=[1])
    found, _ = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    for name in ("mIoU", "VPQ", "STQ", "AP", "VC2_correct"):
        assert found["scores"][name] < (99 if name == "VPQ" else 0.99), name
    assert found["scores"]["VC2"] < 1.0 + 1e-12 and found["videos"]["1000001"]["VC2"] == 1.0
    assert sum(entry["share"] for entry in found["classes"]) == pytest.approx(1.0)
    page = (tmp_path / "out" / "report.html").read_text()
    worst = page[page.index("Worst videos") :]
    assert worst.index("1000001, frame") < worst.index("1000000, frame")
    assert f"</span>{dataset.names[3]}<" in worst.replace(' <span class="mark">', "<")
    assert found["speed"]["ms_median"] == pytest.approx(12.0)
    assert "1000001" in page[page.index("<h2>Videos") :]


def test_a_single_video_shows_its_best_and_its_worst_frame(tmp_path, capsys):
    dataset = world("camvid", tmp_path, videos=1)
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("semantic",))
    with writer.video(dataset[0]) as sink:
        for t in range(5):
            sink.frame(t, dataset[0].semantic(t) if t == 3 else np.full(SIZE, t))
    scored(capsys, config_of(tmp_path, "camvid"), tmp_path / "pred", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    best, worst = page[page.index("Best videos") :].split("Worst videos")
    assert "frame 00003: mIoU 1 in this frame" in best
    assert "frame 00003" not in worst and "(truth only)" in worst


def test_base_and_novel_are_those_of_the_classes(tmp_path, capsys):
    dataset = world("vspw", tmp_path)
    present = sorted(set.union(*(set(record.categories()) for record in dataset)))
    novel = present[::2]
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("semantic",))
    for record in dataset:  # novel classes are never found
        with writer.video(record) as sink:
            for t in range(len(record)):
                labels = record.semantic(t)
                sink.frame(t, np.where(np.isin(labels, novel), present[1], labels))
    names = [dataset.names[k] for k in novel]
    config = config_of(tmp_path, "vspw", dataset={"novel": names})
    found, text = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    scores = found["scores"]
    assert scores["mIoU_novel"] == 0.0 < scores["mIoU"] < scores["mIoU_base"] < 1.0
    assert {e["name"] for e in found["classes"] if e["group"] == "novel"} == set(names)
    assert f"| base / novel | {46 - len(novel)} / {len(novel)} |" in text
    columns = next(line for line in text.splitlines() if line.startswith("| score"))
    assert columns == "| score | all | base | novel |"


def test_val_novel_labels_novel_classes_alone(tmp_path, capsys):
    whole = world("vspw", tmp_path)
    novel = [whole.names[k] for k in sorted(whole[0].categories())[:2]]
    dataset = open_dataset("vspw", tmp_path / "data", "val", "val_novel", novel=novel)
    write_truth(dataset, tmp_path / "pred")
    config = config_of(tmp_path, "vspw", dataset={"novel": novel, "subset": "val_novel"})
    found, _ = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    assert found["scores"]["mIoU"] == found["scores"]["mIoU_novel"] == 1.0
    assert found["scores"]["mIoU_base"] is None  # not nan: the file is JSON
    assert found["protocol"]["classes"] == "46, of which 2 may be predicted"
    assert {e["name"] for e in found["classes"] if e["share"]} <= set(novel)


def test_only_what_is_asked_for_is_scored(tmp_path, capsys):
    dataset = world("vipseg_720p", tmp_path)
    write_truth(dataset, tmp_path / "pred")
    config = config_of(tmp_path, "vipseg")
    one = "--benchmark.scores=[STQ]"
    found, _ = scored(capsys, config, tmp_path / "pred", tmp_path / "out", one)
    assert set(found["scores"]) == {"STQ", "AQ", "SQ"}
    shutil.rmtree(tmp_path / "pred" / "semantic")
    for name, count in (("VPQ", 2), ("AP", 2), ("STQ", 2)):  # drawn from what is there
        words = (f"--benchmark.scores=[{name}]", "--benchmark.vpq_windows=[1]")
        scored(capsys, config, tmp_path / "pred", tmp_path / "out", *words)
        assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == count
    shutil.rmtree(tmp_path / "pred" / "panoptic")
    code, _, err = run(capsys, config, "--predictions", tmp_path / "pred", one)
    assert code == 2
    assert_one_line(err, "this benchmark needs panoptic")
    found, text = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    assert "VC (no semantic predictions), VPQ (no panoptic predictions)" in text
    assert found["scores"]["AP"] == pytest.approx(1.0) and len(found["scores"]) == 6


def test_protocol_says_how_it_was_predicted(tmp_path, capsys):
    dataset = world("vspw", tmp_path)
    writer = PredictionWriter(
        tmp_path / "pred",
        {"settings": {"model": "mine", "smoothing": 0.5, "asked": ["a", "b"]}, "machine": {"device": "pear"}},
        dataset,
        ("semantic",),
    )
    for record in dataset:
        with writer.video(record) as sink:
            give_truth(sink, record, ("semantic",))
    found, text = scored(capsys, config_of(tmp_path, "vspw"), tmp_path / "pred", tmp_path / "out")
    flags = found["protocol"]
    assert (flags["model"], flags["smoothing"], flags["asked"]) == ("mine", 0.5, "2 names")
    assert flags["videos"] == 2 and flags["frames"] == 10 and flags["split"] == "val"
    assert "on pear" in text and found["title"] == "bench: mine"


def test_pictures_are_of_what_is_scored(tmp_path, capsys):
    write_truth(world("vipseg_720p", tmp_path), tmp_path / "pred")
    shutil.rmtree(tmp_path / "pred" / "semantic" / "1000001")  # not asked for, so not looked at
    config = config_of(tmp_path, "vipseg", scores=["VPQ", "AP"], vpq_windows=[9])
    found, _ = scored(capsys, config, tmp_path / "pred", tmp_path / "out")
    assert found["scores"]["VPQ"] is None  # videos have five frames
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == 2 and "Best videos by AP" in page


def test_a_subset_that_leaves_no_label_is_said(tmp_path, capsys):
    dataset = world("vspw", tmp_path)
    absent = next(k for k in range(46) if not any(k in record.categories() for record in dataset))
    choice = {"subset": "ignore", "base": [dataset.names[absent]]}
    write_truth(dataset, tmp_path / "pred")
    config = config_of(tmp_path, "vspw", dataset=choice)
    code, _, err = run(capsys, config, "--predictions", tmp_path / "pred", "--out", tmp_path / "out")
    assert code == 2
    assert_one_line(err, "no frame with labels is left")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_said(tmp_path, capsys):
    write_truth(world("camvid", tmp_path), tmp_path / "pred")
    config = config_of(tmp_path, "camvid")
    code, _, err = run(capsys, config, "--predictions", tmp_path / "pred", "--out", config)
    assert code == 2
    assert_one_line(err, f"{config}: cannot be made")


def test_withheld_labels_are_said(tmp_path, capsys):
    write_world("vspw", tmp_path / "data", "test", 1, 3, SIZE)
    dataset = open_dataset("vspw", tmp_path / "data", "test")
    with PredictionWriter(tmp_path / "pred", {}, dataset, ("semantic",)).video(dataset[0]) as sink:
        for t in range(3):
            sink.frame(t, np.zeros(SIZE, np.int64))
    config = config_of(tmp_path, "vspw", dataset={"split": "test"})
    code, out, _ = run(capsys, config, "--predictions", tmp_path / "pred", "--out", tmp_path / "out")
    assert code == 0 and "withheld" in out
    command = out[out.index("vlkd data submit") :].split()[1:]
    assert main([*command[:-1], str(tmp_path / "sent.zip")]) == 0 and (tmp_path / "sent.zip").is_file()
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_split_without_videos_is_refused(tmp_path, capsys):
    world("lvvis", tmp_path)
    source = tmp_path / "data" / "val" / "val_instances.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"videos": [], "annotations": []}))
    code, _, err = run(capsys, config_of(tmp_path, "lvvis"), "--predictions", tmp_path)
    assert code == 2
    assert_one_line(err, "has no videos")


def test_merged_scorers_are_one(tmp_path):
    dataset = world("vipseg_720p", tmp_path, videos=3)
    predictions = write_truth(dataset, tmp_path / "pred")
    settings = Benchmark(DatasetChoice("vipseg"), vc_windows=(2,), vpq_windows=(2,))
    names = ["mIoU", "VC", "VPQ", "STQ", "AP"]
    whole = score(dataset, predictions, settings, names).scores()
    parts = [Scorer(dataset, settings, names) for _ in range(2)]
    for number, record in enumerate(dataset):
        parts[number % 2].add(Pair(number, record, predictions))
    for name, measure in parts[0].measures.items():
        measure.merge(parts[1].measures[name])
    assert parts[0].scores() == pytest.approx(whole, nan_ok=True)


def test_overlapping_tracks_show_the_surer_one(tmp_path):
    dataset = world("burst", tmp_path, videos=1)
    record = dataset[0]
    whole, half = np.ones(SIZE, bool), np.zeros(SIZE, bool)
    half[:, :10] = True
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("tracks",))
    with writer.video(record) as sink:
        tracks = [(4, 0.5, whole), (2, 0.9, half), (1, 0.05, whole)]
        sink.tracks([(c, s, [encode_mask(m)] * len(record)) for c, s, m in tracks])
    pair = Pair(0, record, Predictions(tmp_path / "pred", dataset))
    _, guess = pair.painted(0.1)
    assert len(guess.ids) == len(record.labelled) == 2 < len(record)
    classes = np.array([guess.categories[id] for id in guess.ids[0, 0].tolist()])
    assert (classes[:10] == 2).all() and (classes[10:] == 4).all()


def test_burst_counts_what_its_annotation_can_judge(tmp_path, capsys):
    dataset = world("burst", tmp_path, videos=1)
    record = dataset[0]
    absent = next(k for k in range(34) if k not in record.categories())
    free = np.ones(SIZE, bool)
    for track in record.tracks:
        for t in record.labelled:
            free &= ~track.mask(t) if t in track.times else True
    assert free.sum() > 50
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("tracks",))
    with writer.video(record) as sink:
        found = []
        for track in record.tracks:
            masks = [track.mask(t) for t in range(len(record))]
            found.append((track.category, 0.9, [None if m is None else encode_mask(m) for m in masks]))
        sink.tracks([*found, (absent, 0.99, [encode_mask(free)] * len(record))])
    config = config_of(tmp_path, "burst")
    scores = scored(capsys, config, tmp_path / "pred", tmp_path / "out")[0]["scores"]
    assert [scores[name] for name in ("HOTA", "AP", "OWTA")] == pytest.approx([1.0] * 3)
    source = tmp_path / "data" / "annotations" / "val" / "all_classes.json"
    content = json.loads(source.read_text())
    # Now the class is said to be certainly absent, but no score is a mean over it: it has no truth.
    content["sequences"][0]["neg_category_ids"] = [dataset.vocabulary.ids[absent]]
    source.write_text(json.dumps(content))
    scores = scored(capsys, config, tmp_path / "pred", tmp_path / "out")[0]["scores"]
    assert scores["HOTA"] == pytest.approx(1.0)
    shown = record.tracks[0].category
    rows = json.loads((tmp_path / "pred" / "tracks" / f"{record.id}.json").read_text())
    rows[-1]["category_id"] = dataset.vocabulary.ids[shown]
    (tmp_path / "pred" / "tracks" / f"{record.id}.json").write_text(json.dumps(rows))
    wrong = scored(capsys, config, tmp_path / "pred", tmp_path / "out")[0]["scores"]
    assert wrong["HOTA"] < 1 and wrong["AP"] < 1
    content["sequences"][0]["not_exhaustive_category_ids"] = [dataset.vocabulary.ids[shown]]
    source.write_text(json.dumps(content))
    excused = scored(capsys, config, tmp_path / "pred", tmp_path / "out")[0]["scores"]
    assert [excused[name] for name in ("HOTA", "AP")] == pytest.approx([1.0] * 2)


def test_flow_consistency_with_weights(tmp_path, capsys, monkeypatch):
    import vlkd.models.flow

    asked = []
    still = np.zeros((*SIZE, 2), np.float32)
    monkeypatch.setattr(
        vlkd.models.flow, "build_flow", lambda *given: asked.append(given) or (lambda one, other: still)
    )
    dataset = world("vspw", tmp_path)
    writer = PredictionWriter(tmp_path / "pred", {}, dataset, ("semantic",))
    for record in dataset:
        with writer.video(record) as sink:
            for t in range(len(record)):
                sink.frame(t, np.full(SIZE, t % 2))
    weights = tmp_path / "raft.pth"
    words = (f"--benchmark.flow={weights}", "--benchmark.scores=[TC]")
    code, _, err = run(capsys, config_of(tmp_path, "vspw"), "--predictions", tmp_path / "pred", *words)
    assert code == 2
    assert_one_line(err, "raft.pth: no such file")
    weights.touch()
    with monkeypatch.context() as patch:

        def refused(*given):
            raise UserError("raft.pth: not weights")

        patch.setattr(vlkd.models.flow, "build_flow", refused)
        config = config_of(tmp_path, "vspw")
        code, out, _ = run(capsys, config, "--predictions", tmp_path / "pred", "--check", *words)
        assert (code, out) == (1, "raft.pth: not weights\n")
    found, _ = scored(capsys, config_of(tmp_path, "vspw"), tmp_path / "pred", tmp_path / "out", *words)
    # What flows in at the border is class 0 by the official rule, so that a little agrees.
    assert set(found["scores"]) == {"TC"} and 0 < found["scores"]["TC"] < 0.05
    assert asked == [(str(weights), "cpu")]
    assert "raft.pth" in found["protocol"]["TC"]


def test_a_prediction_of_another_shape_names_its_video(tmp_path):
    dataset = world("vspw", tmp_path, videos=1)
    predictions = write_truth(dataset, tmp_path / "pred")
    pair = Pair(0, dataset[0], predictions)
    truth, guess = pair.semantic
    pair.__dict__["semantic"] = (truth, guess[:, :-1])
    with pytest.raises(UserError, match=r"^video 1000000: "):
        Scorer(dataset, Benchmark(DatasetChoice("vspw")), ["mIoU"]).add(pair)


def test_frames_are_read_in_order_and_errors_come_through(tmp_path):
    record = world("vspw", tmp_path, frames=9, videos=1)[0]
    frames = list(ahead(record.frame, range(9), 3, 6))
    assert len(frames) == 9
    for t, image in enumerate(frames):
        assert np.array_equal(image, record.frame(t))
    record.frame_files[5].write_bytes(b"")
    seen = 0
    with pytest.raises(UserError, match="frame 5"):
        for _ in ahead(record.frame, range(9), 2, 4):
            seen += 1
    assert seen == 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_read(path):
    settings = read_settings(path)
    assert settings.dataset.root or settings.world.videos
    assert len(path.read_text().splitlines()) <= 12


def test_every_kind_of_data_has_a_config():
    from vlkd.data.video import KINDS

    assert {read_settings(path).dataset.kind for path in CONFIGS} == set(KINDS)


def test_the_world_is_written_once(tmp_path, capsys, monkeypatch):
    from vlkd.engine.video_benchmark.settings import open_benchmark

    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "w.yaml"
    config.write_text("benchmark: {dataset: {kind: vipseg}, world: {videos: 2, frames: 2, size: [32, 48]}}")
    dataset = open_benchmark(read_settings(config))
    assert "writing 2 videos" in capsys.readouterr().out
    assert len(dataset) == 2 and dataset[0].size == (32, 48) and dataset[0].form == "panoptic"
    assert (len(dataset.base), len(dataset.novel)) == (36, 10)
    written = [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").rglob("*.png"))]
    open_benchmark(read_settings(config))
    assert "writing" not in capsys.readouterr().out
    assert written == [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").rglob("*.png"))]
    other = replace(read_settings(config), dataset=DatasetChoice("lvvis"))
    assert open_benchmark(other)[0].form == "tracks" and len(open_benchmark(other).novel) == 8
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.fixture
def vipseg(tmp_path):
    """A world with perfect predictions, and its config."""
    write_truth(world("vipseg_720p", tmp_path), tmp_path / "pred")
    return config_of(tmp_path, "vipseg")


def damage_frame(folder):
    next((folder / "pred" / "semantic" / "1000001").glob("*.png")).unlink()


def damage_size(folder):
    file = next((folder / "pred" / "semantic" / "1000001").glob("*.png"))
    Image.open(file).crop((0, 0, 20, 20)).save(file)


def damage_ids(folder):
    file = folder / "pred" / "panoptic" / "1000000.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["segments_info"] = entry["segments_info"][1:]
    file.write_text(json.dumps(content))


def damage_unknown(folder):
    shutil.copytree(folder / "pred" / "semantic" / "1000000", folder / "pred" / "semantic" / "77")


def damage_names(folder):
    file = folder / "pred" / "predictions.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"names": ["a", "b"]}))


DAMAGES = {
    "1000001": damage_frame,
    "20x20": damage_size,
    "1000000": damage_ids,
    "77": damage_unknown,
    "classes": damage_names,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_damaged_predictions_are_one_line(tmp_path, capsys, vipseg, said):
    DAMAGES[said](tmp_path)
    words = (vipseg, "--predictions", tmp_path / "pred", "--out", tmp_path / "out")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert_one_line(err, said)
    code, out, _ = run(capsys, *words, "--check")
    assert code == 1 and said in out and "Traceback" not in out
    assert not (tmp_path / "out").exists()


def test_check_finds_nothing_or_the_damaged_frame(tmp_path, capsys, vipseg):
    words = (vipseg, "--predictions", tmp_path / "pred", "--check")
    assert run(capsys, *words)[:2] == (0, "nothing is wrong\n")
    frame = tmp_path / "data" / "images" / "1000001" / "00000002.jpg"
    frame.write_bytes(b"")
    code, out, _ = run(capsys, *words)
    assert code == 1 and out.count("\n") == 1 and str(frame) in out and "video 1000001" in out


WRONG = [
    (("--benchmark.dataset.rot=x",), "did you mean benchmark.dataset.root?"),
    (("--benchmark.smothing=0.1",), "did you mean benchmark.smoothing?"),
    (("--benchmark.scores=[VPK]",), "did you mean VPQ?"),
    (("--benchmark.size=large",), "benchmark.size: expected int or null"),
    (("--benchmark.readers=0",), "benchmark.readers: expected 1 or more"),
    (("--benchmark.object_threshold=5",), "benchmark.object_threshold: expected 0 to 1"),
    (("--benchmark.hota_floor=-1",), "benchmark.hota_floor: expected 0 to 1"),
    (("--benchmark.world.videos=-1",), "benchmark.world: expected 0 videos or more"),
    (("--benchmark.world.size=[0, 5]",), "of 1 pixel or more"),
    (("--benchmark.scores=[HOTA]",), "benchmark.scores: HOTA needs labels that vipseg does not have"),
    (("--benchmark.scores=[TC]",), "benchmark.scores: TC needs benchmark.flow"),
    (("--benchmark.dataset.split=vall",), "no split 'vall'"),
    (("--benchmark.dataset.subset=val_nvel",), "unknown subset 'val_nvel'"),
    (("--benchmark.dataset.kind=vipsg",), "unknown kind of video data set 'vipsg'"),
    (("--benchmark.dataset.novel=[bus]", "--benchmark.dataset.base=[bus, car]"), "both base and novel: bus"),
    (("--benchmark.dataset.root=null",), "benchmark.dataset.root: missing"),
    (("--benchmark.dataset.root=/none/there",), "/none/there"),
    (("--ckpt", "x"), "pass the bundle as --model x"),
    (("--model", "x"), "pass --model BUNDLE|NAME to predict and score, or --predictions DIR"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[said[:24] for _, said in WRONG])
def test_wrong_usage_is_one_line(tmp_path, capsys, vipseg, words, said):
    code, _, err = run(capsys, vipseg, "--predictions", tmp_path / "pred", "--out", tmp_path / "out", *words)
    assert code == 2
    assert_one_line(err, said)
    assert not (tmp_path / "out").exists()


def test_options_of_the_other_kind_of_config(capsys, toy_config):
    code, _, err = run(capsys, toy_config, "--model", "x")
    assert code == 2
    assert_one_line(err, "--model: for video benchmarks")
    assert "weights are given with --ckpt" in err
    code, _, err = run(capsys, "x.safetensors", "--check")
    assert code == 2
    assert_one_line(err, "--check: for video benchmarks")
