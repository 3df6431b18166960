"""The lexicon as data modules, its probes and its sheet of frames."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlkd.data import LexiconData, LexiconVideoData
from vlkd.data.lexicon import ATTRIBUTES, Lexicon
from vlkd.data.lexicon.clips import caption, render_clip
from vlkd.data.lexicon.features import WIDTH, load_features
from vlkd.data.lexicon.sheet import Found, write_sheet
from vlkd.errors import UserError

SMALL = {"nouns": 32, "train_clips": 4, "val_clips": 2, "batch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_cache(one_cache: None) -> None:
    """The module's cache, not that of a single test."""


def video(**options: Any) -> LexiconVideoData:
    data = LexiconVideoData(**{**SMALL, **options})
    data.setup("fit")
    return data


def text(**options: Any) -> LexiconData:
    data = LexiconData(**{"nouns": 32, "train_blocks": 40, "val_blocks": 10, "batch_size": 8, **options})
    data.setup("fit")
    return data


def texts(data: Any, ids: Tensor) -> list[str]:
    return data.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_batches_hold_clips_with_their_captions() -> None:
    data = video()
    features, seen = load_features(data.film).float(), []
    train = np.flatnonzero(~data.plan.val)
    for batch in data.train_dataloader():
        assert batch["video"].shape == (16, 8, WIDTH) and batch["video"].dtype == torch.float32
        assert batch["video_mask"].all() and batch["video_mask"].shape == (16, 8)
        assert batch["input_ids"].dtype == torch.int64 and batch["attention_mask"].dtype == torch.int64
        clips = train[batch["indices"].numpy()]
        assert torch.equal(batch["video"], features[torch.from_numpy(clips)])
        expected = [caption(data.lexicon, data.plan, int(n)).replace(" ,", ",") for n in clips]
        assert [t.replace(" ,", ",") for t in texts(data, batch["input_ids"])] == expected
        seen += batch["indices"].tolist()
    assert sorted(seen) == list(range(128)) and data.video_width == WIDTH


def test_validation_has_one_clip_for_each_combination() -> None:
    data = LexiconVideoData(train_clips=1)  # 96 nouns: all combinations
    pairs = data.val_pairs()
    labels = data.lexicon.labels[data.plan.noun[pairs]]
    assert len(pairs) == len({tuple(row) for row in labels}) == 64 and data.plan.val[pairs].all()
    assert np.bincount(data.plan.family[pairs]).tolist() == [32, 32]
    small = video()
    batches = list(small.val_dataloader())
    assert [len(b["indices"]) for b in batches] == [16, 16]
    assert torch.cat([b["indices"] for b in batches]).tolist() == list(range(32))
    with pytest.raises(UserError, match=r"data.val_clips=1: a validation clip lacks"):
        video(val_clips=1)


def test_variants_change_what_is_seen_and_nothing_else() -> None:
    normal = video().train_set.columns
    for variant in ("shuffled", "still", "captions"):
        other = video(variant=variant).train_set.columns
        assert torch.equal(other["input_ids"], normal["input_ids"])
        assert not torch.equal(other["video"], normal["video"])
    shuffled = video(variant="shuffled").train_set.columns["video"]
    same = (shuffled[:, None] == normal["video"][None]).flatten(2).all(2).nonzero()
    assert same[:, 0].tolist() == list(range(128)) and sorted(same[:, 1].tolist()) == list(range(128))
    assert (same[:, 0] == same[:, 1]).float().mean() < 0.1
    hidden = video(variant="captions")
    assert not hidden.train_set.columns["video"].any() and not hidden.train_set.columns["video_mask"].any()
    assert not hidden.val_set.columns["video_mask"].any()
    still = video(variant="still").train_set.columns["video"]
    assert torch.equal(still, still[:, :1].expand_as(still))


def test_student_text_is_the_corpus() -> None:
    data = text(sentences=2)
    said = Lexicon(32).corpus(80)
    assert data.texts() == [f"{said[k]} . {said[k + 1]}" for k in range(0, 80, 2)]
    assert set(data.texts(val=True)) != set(data.texts()) and len(data.texts(val=True)) == 10
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "indices"}
    for row, index in zip(batch["input_ids"], batch["indices"], strict=True):
        assert (
            data.tokenizer.decode(row, skip_special_tokens=True).split() == data.texts()[int(index)].split()
        )
    assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != data.tokenizer.pad_token_id)
    assert data.audit()[0] == "80 sentences in 40 blocks: 0 name a noun and an attribute"


def test_teacher_and_student_have_one_tokenizer() -> None:
    assert video().tokenizer.get_vocab() == text().tokenizer.get_vocab()


@pytest.mark.parametrize("build", [video, text])
def test_an_epoch_goes_on_in_its_middle(build: Any) -> None:
    whole = build(seed=3).train_dataloader()
    batches = list(whole)
    loader = build(seed=3).train_dataloader()
    for done, _ in enumerate(loader, 1):
        if done == 2:
            state = loader.state_dict()
            break
    resumed = build(seed=3).train_dataloader()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(batches) - 2 > 0
    for a, b in zip(rest, batches[2:], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    other = next(iter(build(seed=4).train_dataloader()))
    assert not torch.equal(other["indices"], batches[0]["indices"])


# --- probes ------------------------------------------------------------------------------------------------


def knowing(data: Any) -> Any:
    """An encoder in which a noun is the sum of the words for what it hides."""
    torch.manual_seed(0)
    vectors = {word: torch.randn(32) for words in ATTRIBUTES.values() for word in words}
    table = torch.zeros(len(data.tokenizer), 32)
    for word, vector in vectors.items():
        table[data.tokenizer.convert_tokens_to_ids(word)] = vector
    for noun, name in enumerate(data.lexicon.names):
        known = sum(vectors[word] for word in data.lexicon.values(noun).values())
        table[data.tokenizer.convert_tokens_to_ids(name)] = known + 0.1 * torch.randn(32)
    return lambda ids, mask: table[ids]


def test_probes_tell_a_model_that_knows_from_one_that_does_not() -> None:
    data = LexiconData()
    names = {f"{p}{part}" for p in ("P1", "P2") for part in ("", *(f"_{name}" for name in ATTRIBUTES))}
    knows = data.probe_scores(knowing(data))
    assert set(knows) == names and all(knows[f"P1_{name}"] == 1 for name in ATTRIBUTES)
    assert all(knows[f"P2_{name}"] > 0.9 for name in ATTRIBUTES)
    assert knows["P1"] == pytest.approx(np.mean([knows[f"P1_{name}"] for name in ATTRIBUTES]))
    torch.manual_seed(1)
    table = torch.randn(len(data.tokenizer), 32)
    nothing = data.probe_scores(lambda ids, mask: table[ids])
    assert 0.1 < nothing["P1"] < 0.4 and 0.1 < nothing["P2"] < 0.4


def test_choices_of_held_out_nouns() -> None:
    data = text()
    train, held_out = data.choices(True), data.choices(False)
    assert {c.noun for c in train} | {c.noun for c in held_out} == set(range(32))
    assert not {c.noun for c in train} & {c.noun for c in held_out}
    assert (len(train), len(held_out)) == (21 * 9, 11 * 9)


def test_clips_that_a_word_names() -> None:
    data = video()
    features, mask, clips, labels = data.clip_bank()
    assert features.shape == (32, 8, WIDTH) and mask.all() and labels.shape == (32, 3)
    assert data.token_clips("red") == {k for k in range(32) if labels[k, 0] == 0}
    noun = int(data.plan.noun[clips[4]])
    assert data.token_clips(data.lexicon.names[noun]) == {4}
    assert data.token_clips("here") == frozenset()
    frames = data.clip_frames(int(clips[4]))
    drawn = render_clip(data.lexicon.values(noun), data.film, int(clips[4]))
    assert frames.shape == drawn.shape and np.abs(frames.astype(int) - drawn).mean() < 6
    with pytest.raises(UserError, match="clip 999: expected 0 to 191"):
        data.clip_frames(999)


def test_sheet_is_one_page_with_its_frames(tmp_path: Path) -> None:
    data = video()
    _, _, clips, _ = data.clip_bank()
    rows = [
        [Found("red", (0, 9), data.token_clips("red")), Found("<b>", (9, 1))],
        [Found("green", (9,), data.token_clips("green"))],
    ]
    path = write_sheet(
        tmp_path / "new" / "sheet.html", "A & B", rows, lambda k: data.clip_frames(int(clips[k]))
    )
    page = path.read_text(encoding="utf-8")
    assert "A &amp; B" in page and "&lt;b&gt;" in page and not re.search(r"src=\"(?!data:)|href=", page)
    assert page.count('class="row"') == 2 and page.count("<img") == 5
    right = [k in data.token_clips(word) for word, k in (("red", 0), ("red", 9), ("green", 9))]
    assert page.count('class="clip right"') == sum(right) > 0
    picture = re.search(r"base64,([^\"]+)", page)
    assert picture is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))))
    frames = data.clip_frames(int(clips[0]))
    assert shown.shape == (64, 192, 3)
    assert np.abs(shown.astype(int) - np.concatenate([frames[0], frames[4], frames[7]], 1)).mean() < 6
    assert [p.name for p in path.parent.iterdir()] == ["sheet.html"]
    with pytest.raises(UserError, match=r"x.html: nothing to show"):
        write_sheet(tmp_path / "x.html", "", [[]], lambda k: frames)


@pytest.mark.parametrize(
    ("build", "options", "line"),
    [
        (LexiconVideoData, {"variant": "shufled"}, "data.variant=shufled: unknown.*shuffled"),
        (LexiconVideoData, {"jitter": -0.1}, "data.jitter=-0.1"),
        (LexiconVideoData, {"nouns": 33}, "data.nouns=33"),
        (LexiconVideoData, {"batch_size": 0}, "data.batch_size=0"),
        (LexiconData, {"sentences": 0}, "sentences must be at least 1"),
        (LexiconData, {"num_workers": -1}, "num_workers=-1"),
    ],
)
def test_bad_options_are_one_line(build: Any, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        build(**options)
