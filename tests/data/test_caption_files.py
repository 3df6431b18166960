"""Image-text pairs from tables and COCO's JSON: order, augmentation, every fault in one line."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import assert_resume_is_exact
from PIL import Image

from vlkd.data import CaptionFilesData
from vlkd.data.caption_files import read_captions
from vlkd.errors import UserError


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for k in range(8):
        picture(tmp_path / "pictures" / f"{k}.png", k)
    for k, name in enumerate(("palm_tree", "car")):
        picture(tmp_path / "labelled" / name / "a.png", 20 + k)
    rows = [{"image": f"pictures/{k}.png", "caption": f"number {k}"} for k in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "val.jsonl").write_text(
        json.dumps({"image": "pictures/1.png", "caption": ["one", "  eins\t und "]})
        + "\n"
        + json.dumps({"image": "pictures/0.png", "caption": "zero"})
        + "\n"
        + json.dumps({"image": "pictures/1.png", "caption": "uno"})
    )
    return tmp_path


def make(root: Path, **options: Any) -> CaptionFilesData:
    small = {"size": 16, "batch_size": 4, "num_workers": 0, "val": str(root / "val.jsonl")}
    return CaptionFilesData(str(root / "train.jsonl"), **{**small, **options})


def test_all_kinds_of_files_say_the_same(root: Path) -> None:
    rows = [("pictures/1.png", 'a "quoted", word'), ("pictures/0.png", "zero"), ("pictures/1.png", "uno")]
    (root / "a.jsonl").write_text("\n".join(json.dumps({"image": i, "caption": c}) for i, c in rows))
    (root / "b.tsv").write_text("caption\timage\n" + "\n".join(f"{c}\t{i}" for i, c in rows))
    quoted = [f'{i},"{c.replace(chr(34), chr(34) * 2)}"' for i, c in rows]
    (root / "c.csv").write_text("image,caption\n" + "\n".join(quoted))
    coco = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 3, "file_name": "0.png"}],
        "annotations": [{"image_id": {"1": 7, "0": 3}[i[9]], "caption": c} for i, c in rows],
    }
    (root / "d.json").write_text(json.dumps(coco))
    tables = [read_captions(root / name) for name in ("a.jsonl", "b.tsv", "c.csv")]
    tables.append(read_captions(root / "d.json", root / "pictures"))
    for table in tables:
        assert table.images == (root / "pictures" / "1.png", root / "pictures" / "0.png")
        assert table.captions == (('a "quoted", word', "uno"), ("zero",))
    assert len({table.fingerprint() for table in tables}) == 1


def test_own_columns_and_root(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "x.csv").write_text("filepath,title\n3.png,three\n")
    table = read_captions(root / "lists" / "x.csv", root / "pictures", "filepath", "title")
    assert table.captions == (("three",),) and table.images == (root / "pictures" / "3.png",)


def test_training_batches_depend_on_seed_and_epoch_alone(root: Path) -> None:
    def epoch(number: int, **options: Any) -> list[dict[str, Any]]:
        data = make(root, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return list(loader)

    first, again, workers = epoch(0), epoch(0), epoch(0, num_workers=1)
    for a, b, c in zip(first, again, workers, strict=True):
        assert a["images"].shape == (4, 3, 16, 16) and 0 <= a["images"].min() < a["images"].max() <= 1
        assert torch.equal(a["images"], b["images"]) and torch.equal(a["images"], c["images"])
        assert a["captions"] == b["captions"] == c["captions"]
    texts = [text for batch in first for text in batch["captions"]]
    assert sorted(texts) == [f"number {k}" for k in range(8)]
    assert texts != [text for batch in epoch(1) for text in batch["captions"]]
    assert texts != [text for batch in epoch(0, seed=1) for text in batch["captions"]]


def test_each_caption_of_an_image_is_drawn(root: Path) -> None:
    data = CaptionFilesData(str(root / "val.jsonl"), size=8)
    data.setup("fit")
    assert data.train_set is not None
    assert {data.train_set[epoch, 0][1] for epoch in range(30)} == {"one", "eins und", "uno"}


def test_pairs_and_labelled_images_of_validation(root: Path) -> None:
    data = make(root, classes=str(root / "labelled"))
    data.setup("validate")
    (batch,) = data.pair_batches()
    assert batch["captions"] == [["one", "eins und", "uno"], ["zero"]]
    source = Image.open(root / "pictures" / "1.png")
    square = np.asarray(source.resize((16, 16), Image.Resampling.BILINEAR, (5, 0, 35, 30)))
    assert np.abs(batch["images"][0].permute(1, 2, 0).numpy() * 255 - square).max() <= 1
    assert len(next(data.pair_batches())["images"]) == 2
    assert data.names == ("car", "palm tree") and data.train_set is None
    (labelled,) = data.val_dataloader()
    assert labelled["labels"].tolist() == [0, 1] and labelled["images"].shape == (2, 3, 16, 16)
    (one,) = make_validated(root, val_pairs=1).pair_batches()
    assert one["captions"] == [["one", "eins und", "uno"]]
    assert make_validated(root, val_pairs=1).val_fingerprint() != data.val_fingerprint()
    named = make_validated(root, classes=str(root / "labelled"), class_names=["automobile", "palm"])
    assert named.names == ("automobile", "palm")


def make_validated(root: Path, **options: Any) -> CaptionFilesData:
    data = make(root, **options)
    data.setup("validate")
    return data


def test_without_labels_there_is_one_empty_batch(root: Path) -> None:
    data = make_validated(root)
    assert [len(batch["images"]) for batch in data.val_dataloader()] == [0] and data.names == ()
    with pytest.raises(UserError, match=r"nothing to score; give data.val"):
        make_validated(root, val=None)
    quiet = make(root, val=None)
    quiet.setup("fit")
    assert list(quiet.pair_batches()) == []


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"image": "pictures/0.png", "caption": "x"}\n{"image": ', r"a.jsonl:2: broken JSON"),
        ("a.jsonl", "[1]", r"a.jsonl:1: expected an object"),
        (
            "a.jsonl",
            '{"image": "pictures/0.png", "captoin": "x"}',
            r"a.jsonl:1: no column 'caption'.*captoin",
        ),
        ("a.jsonl", '{"image": 3, "caption": "x"}', r"a.jsonl:1: image must be text"),
        ("a.jsonl", '\n{"image": "pictures/0.png", "caption": " "}', r"a.jsonl:2: .* empty caption"),
        ("a.jsonl", '{"image": "pictures/0.png", "caption": []}', r"a.jsonl:1: .* empty caption"),
        ("a.jsonl", '{"image": "pictures/99.png", "caption": "x"}', r"a.jsonl:1: image .*99.png not found"),
        ("a.jsonl", "\n", r"a.jsonl: no image with a caption"),
        ("a.csv", "filepath,caption\n", r"a.csv:1: no column 'image'.*data.image_column"),
        ("a.csv", "image,caption\npictures/0.png\n", r"a.csv:2: expected 2 columns"),
        ("a.csv", "image,caption\npictures/0.png,x\npictures/1.png,\n", r"a.csv:3: .* empty caption"),
        ("a.tsv", "", r"a.tsv: empty"),
        ("a.json", '{"images": [],\n "annotations": [}', r"a.json:2: broken JSON"),
        ("a.json", '{"images": []}', r"a.json: not a COCO captions JSON"),
        ("a.json", '{"images": [], "annotations": [{"image_id": 4, "caption": "x"}]}', r"not a COCO.*4"),
        ("a.txt", "x", r"a.txt: unknown kind of file"),
    ],
)
def test_faults_are_one_line(root: Path, name: str, content: str, line: str) -> None:
    (root / name).write_text(content)
    with pytest.raises(UserError, match=line) as caught:
        read_captions(root / name)
    assert "\n" not in str(caught.value)


def test_missing_files_and_doubtful_options(root: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl: no such file"):
        read_captions(root / "nowhere.jsonl")
    with pytest.raises(UserError, match="the captions' images"):
        read_captions(root / "val.jsonl", root / "nowhere")
    for options in ({"size": 0}, {"batch_size": 0}, {"val_pairs": 0}):
        with pytest.raises(UserError, match="at least 1"):
            make(root, **options)
    with pytest.raises(UserError, match=r"data.scale=\[0, 1\]"):
        make(root, scale=(0, 1))


def test_an_image_that_breaks_later_is_one_line_from_a_worker_too(root: Path) -> None:
    for workers in (0, 1):
        data = make(root, num_workers=workers)
        data.setup("fit")
        (root / "pictures" / "1.png").write_bytes(b"no image")
        assert any("1.png: image cannot be read" in line for line in data.check())
        for batches in (data.train_dataloader(), data.pair_batches()):
            with pytest.raises(UserError, match=r"1.png: image cannot be read") as caught:
                list(batches)
            assert "\n" not in str(caught.value)
        picture(root / "pictures" / "1.png", 1)
        assert data.check() == []


def test_training_on_files_resumes_exactly(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    text = f"""
    model:
      class_path: vlkd.methods.clip.CLIP
      init_args: {{architecture: vlkd-clip-s, warmup_steps: 2}}
    data:
      class_path: vlkd.data.CaptionFilesData
      init_args: {{train: {root}/train.jsonl, val: {root}/val.jsonl, size: 32, batch_size: 2, num_workers: 1}}
    trainer: {{max_epochs: 2, accelerator: cpu, enable_model_summary: false}}
    """
    config.write_text(textwrap.dedent(text))
    assert_resume_is_exact(config, tmp_path, 5)
    record = json.loads((tmp_path / "whole" / "record.json").read_text())
    assert set(record["scores"]) == {
        f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    assert record["protocol"]["retrieval gallery"] == "2 images, 4 captions"
