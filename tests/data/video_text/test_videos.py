import numpy as np
import pytest
import torch
import yaml
from exactness import assert_resume_is_exact
from toy_video_text import WORDS, tokenizer_file, write_captions, write_features

from vlkd.data import VideoTextData
from vlkd.errors import UserError


def spoken(count):
    """A word a second, two in a segment: segment k is said from 2 k to 2 k + 2."""
    return [(2.0 * k, 2.0 * k + 2, f"{WORDS[2 * k]} {WORDS[2 * k + 1]}") for k in range(count)]


@pytest.fixture
def made(tmp_path):
    """Function (options) that opens six videos of 10 segments, 20 words and 20 seconds each."""
    captions = write_captions(tmp_path / "c.json", {f"v{k}": spoken(10) for k in range(6)})
    features = write_features(tmp_path / "f", {f"v{k}": 20 for k in range(6)})
    given = {"captions": captions, "features": features, "tokenizer": tokenizer_file(tmp_path)}
    common = {"length": 8, "frames": 12, "batch_size": 2, "num_workers": 0}

    def make(**options):
        data = VideoTextData(**{**given, **common, **options})
        data.setup()
        return data

    return make


def said(data, batch, k):
    return data.tokenizer.decode(batch["input_ids"][k][batch["attention_mask"][k] == 1]).split()[1:-1]


@pytest.mark.parametrize("windows", ["random", "fixed", "first"])
def test_words_and_seconds_belong_together(made, windows):
    data = made(windows=windows)
    assert data.video_width == 4
    seen = set()
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch["video"].shape == (2, 12, 4) and batch["video"].dtype == torch.float32
            assert batch["video_mask"].dtype == torch.bool and batch["input_ids"].dtype == torch.int64
            for k in range(2):
                # The word numbers are seconds, and so are the values of the rows.
                first = int(said(data, batch, k)[0][1:])
                rows = batch["video"][k, batch["video_mask"][k], 0].tolist()
                assert rows[0] == first and rows == list(range(first, first + len(rows)))
                assert (
                    len(rows) == min(6, 20 - first)
                    and (batch["video"][k, ~batch["video_mask"][k]] == 0).all()
                )
                assert said(data, batch, k)[:3] == [WORDS[first], WORDS[first + 1], "."][: len(rows)]
                seen.add(first)
    assert seen == {"random": seen, "fixed": {0, 6, 12, 18}, "first": {0}}[windows]
    assert len(data.train_set) == {"random": 6, "fixed": 24, "first": 6}[windows]
    if windows == "random":
        assert len(seen) > 4


def test_a_row_of_zeros_is_no_padding(made, tmp_path):
    np.save(tmp_path / "f" / "v0.npy", np.zeros((20, 4), np.float16))
    data = made(windows="first")
    item = data.train_set[0, 0]
    assert item["video_mask"].sum() == 6 and (item["video"] == 0).all()


def test_long_windows_are_thinned_out(made):
    item = made(windows="first", length=30, frames=5).train_set[0, 0]
    assert item["video"][:, 0].tolist() == [0, 4, 9, 14, 19] and item["video_mask"].all()


@pytest.mark.parametrize("windows", ["random", "fixed", "first"])
def test_a_window_of_one_segment(made, windows):
    data = made(windows=windows, words=1, held_out=2)
    assert len(data.train_set) == {"random": 4, "fixed": 40, "first": 4}[windows]
    items = [data.train_set[epoch, k] for epoch in range(4) for k in range(4)]
    items += [data.val_set[k, False] for k in range(len(data.val_set))]
    for item in items:
        # [CLS], the two words of a segment, [SEP], and the two seconds in which they are said.
        assert item["attention_mask"].sum() == 4 and item["video_mask"].sum() == 2
        assert data.tokenizer.decode(item["input_ids"][1:2]) == WORDS[int(item["video"][0, 0])]
    starts = {int(item["video"][0, 0]) for item in items[:16]}
    assert len(starts) > 4 if windows == "random" else starts <= {0, 2, 4, 6}
    assert data.val_fingerprint() != made(windows=windows, held_out=2).val_fingerprint()
    with pytest.raises(UserError, match=r"data\.words=0"):
        made(words=0)


def test_resumed_loaders_give_the_same_batches(made):
    data = made()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    whole = list(loader)
    again = data.train_dataloader()
    again.load_state_dict({"epoch": 3, "batches": 1})
    again.sampler.set_epoch(3)
    for found, expected in zip(list(again), whole[1:], strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_splits(made, tmp_path):
    (tmp_path / "val.txt").write_text("v4\nv1\nnone\n")
    data = made(val_ids=str(tmp_path / "val.txt"))
    assert [c.video for c in data.val_set.captions] == ["v1", "v4"] and len(data.train_set) == 4
    assert data.problems == [f"{tmp_path / 'val.txt'}: video 'none' has no captions or no features"]
    first, second, other = (made(held_out=2, split_seed=s) for s in (0, 0, 1))
    held = [[c.video for c in d.val_set.captions] for d in (first, second, other)]
    assert held[0] == held[1] != held[2] and len(first.train_set) == 4
    assert first.val_fingerprint() == second.val_fingerprint() != other.val_fingerprint()
    (tmp_path / "train.txt").write_text("v1\nv2\n")
    with pytest.raises(UserError, match="'v1' is also in"):
        made(train_ids=str(tmp_path / "train.txt"), val_ids=str(tmp_path / "val.txt"))
    kept = made(train_ids=str(tmp_path / "train.txt"), held_out=2)
    assert [c.video for c in kept.train_set.captions] == ["v1", "v2"] and len(kept.val_set) == 2
    with pytest.raises(UserError, match="only 4 videos"):
        made(train_ids=str(tmp_path / "train.txt"), held_out=5)
    batch = next(iter(first.val_dataloader()))
    assert batch["indices"].tolist() == [0, 1] and said(first, batch, 0)[0] == "w0"
    assert made().val_dataloader() == []


def test_what_does_not_pair_is_listed_and_the_rest_goes_on(made, tmp_path, capsys):
    rows = {f"v{k}": spoken(10) for k in range(6)}
    rows |= {"unseen": spoken(3), "mute": [(0.0, 1.0, " ")], "late": [(50.0, 51.0, "w1")]}
    captions = write_captions(tmp_path / "d.json", rows)
    write_features(tmp_path / "f", {"silent": 5, "late": 20})
    write_features(tmp_path / "f", {"v5": 20}, 7)
    np.save(tmp_path / "f" / "v0.npy", np.full((20, 4), np.nan, np.float16))
    data = made(captions=captions, windows="first")
    assert [c.video for c in data.train_set.captions if c.video != "late"] == ["v0", "v1", "v2", "v3", "v4"]
    assert len(data.train_set) == 5
    err = capsys.readouterr().err.splitlines()
    for says in (
        "video 'mute' has no caption with text",
        "unseen.npy: no such feature file",
        "v5.npy: features of width 7, expected 4",
        "video 'late': its captions begin after its features end",
    ):
        assert sum(says in line for line in err) == 1
    problems = data.check()
    assert len(problems) == 6 and "v0.npy: holds values that are not finite" in problems[4]
    assert problems[5] == f"{tmp_path / 'f' / 'silent.npy'}: a video without captions; not used"


def test_bad_input_is_one_line(made, tmp_path):
    captions = write_captions(tmp_path / "other.json", {"x": spoken(2)})
    late = write_captions(tmp_path / "late.json", {"v0": [(99.0, 100.0, "w1")]})
    for options, says in (
        ({"captions": captions}, "x.npy: no such feature file"),
        ({"captions": late}, "no video to train on is left"),
        ({"windows": "randm"}, "random"),
        ({"frames": 0}, "data.frames must be"),
        ({"held_out": 1, "val_ids": "a.txt"}, "held_out at least 0"),
        ({"widths": [9]}, "features of width 4, expected 9"),
        ({"tokenizer": str(tmp_path)[:-3]}, "holds no tokenizer"),
    ):
        with pytest.raises(UserError) as error:
            made(**options)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_one_line(made, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install .vlkd\[language\]"):
        made()


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_runs_resume_exactly_in_the_middle_of_an_epoch(made, tmp_path, stage):
    made()
    (tmp_path / "t.txt").write_text(" ".join(WORDS))
    tokenizer = str(tmp_path / "tokenizer.json")
    common = {"tokenizer": tokenizer, "length": 8, "batch_size": 2, "num_workers": 0}
    if stage == "teacher":
        model = {"class_path": "vlkd.methods.vidlankd.VideoTextTeacher", "init_args": {"language": "tiny"}}
        paths = {"captions": str(tmp_path / "c.json"), "features": str(tmp_path / "f"), "held_out": 2}
        data = {"class_path": "vlkd.data.VideoTextData", "init_args": {**common, **paths, "frames": 6}}
    else:
        options = {"language": "tiny", "weights": {"mlm": 1.0}}
        model = {"class_path": "vlkd.methods.vidlankd.VidLanKD", "init_args": options}
        paths = {"train": str(tmp_path / "t.txt"), "val": str(tmp_path / "t.txt")}
        data = {"class_path": "vlkd.data.TextBlocksData", "init_args": {**common, **paths, "batch_size": 16}}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    assert_resume_is_exact(config, tmp_path / stage, 3)
