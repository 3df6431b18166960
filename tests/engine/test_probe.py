"""vlkd probe: bundles of both stages to P1, P2, P5 and the sheet of clips, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import assert_one_line
from toy_language import TextData, fit

from vlkd.data import LexiconData, LexiconVideoData
from vlkd.engine.bundle import load_bundle, save_bundle
from vlkd.engine.cli import main
from vlkd.methods.vidlankd import VideoTextTeacher, VidLanKD
from vlkd.methods.vidlankd.heads import heads_of
from vlkd.models.video_text import VideoSize

FILM = {"nouns": 32, "train_clips": 4, "val_clips": 2}
TEXT = {"nouns": 32, "train_blocks": 64, "val_blocks": 8}
SIZE = {"language": "tiny", "dropout": 0.0}


def save(method: Any, path: Path, data: Any, given: dict[str, Any]) -> Path:
    """The method as a bundle whose card says what it learned on."""
    fit(method, data, limit_train_batches=1, limit_val_batches=0)
    card, tensors = method.bundle()
    section = {"class_path": f"vlkd.data.{type(data).__name__}", "init_args": given}
    common = {"name": path.stem, "method": "vidlankd", "config": {"data": section}}
    return save_bundle(path, {**common, "protocol": method.protocol, **card}, tensors)


def teacher(path: Path, pool: str = "mean", **options: Any) -> Path:
    torch.manual_seed(1)
    method = VideoTextTeacher(**SIZE, video=VideoSize(hidden=12, positions=8, pool=pool))  # type: ignore[arg-type]
    given = {**FILM, **options}
    return save(method, path, LexiconVideoData(**given), given)


def student(path: Path, taught_by: Path | None, weights: dict[str, float], **options: Any) -> Path:
    torch.manual_seed(2)
    given = {**TEXT, **options}
    method = VidLanKD(str(taught_by) if taught_by else None, **SIZE, weights=weights)
    return save(method, path, LexiconData(**given), given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """teacher, student (contrastive) and alone (text only) as bundles; one cache for the clips."""
    made = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLKD_CACHE", str(made / "cache"))
        taught_by = teacher(made / "teacher.safetensors")
        student(made / "student.safetensors", taught_by, {"mlm": 1.0, "nst": 1.0, "contrastive": 1.0})
        student(made / "alone.safetensors", None, {"mlm": 1.0})
        yield made


@pytest.fixture
def run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs the command: exit code, stdout, stderr, the results."""
    monkeypatch.setenv("VLKD_CACHE", str(folder / "cache"))

    def probe(*words: str | Path) -> tuple[int, str, str, dict[str, Any]]:
        capsys.readouterr()
        code = main(["probe", *map(str, words), "--out", str(tmp_path / "out")])
        path = tmp_path / "out" / "probes.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return code, *capsys.readouterr(), found

    return probe


def test_scores_of_both_and_the_sheet(run: Any, folder: Path, tmp_path: Path) -> None:
    given = folder / "student.safetensors", folder / "teacher.safetensors"
    code, out, _, found = run(given[0], "--teacher", given[1])
    assert code == 0 and "note" not in out
    assert found["student"]["head"] == "contrastive" and found["world"]["variant"] == "normal"
    method = VidLanKD.from_bundle(given[0]).eval()
    plain = LexiconData(**TEXT).probe_scores(lambda ids, mask: method.language(ids, mask).detach())  # type: ignore[operator]
    assert {key: found["student"]["scores"][key] for key in plain} == pytest.approx(plain)
    assert found["student"]["scores"].keys() == found["teacher"]["scores"].keys() == found["chance"].keys()
    assert found["chance"]["P5_noun_R@1"] == pytest.approx(1 / 32)
    assert found["chance"]["P5_attribute_R@1"] == pytest.approx(1 / 4)
    page = (tmp_path / "out" / "sheet.html").read_text(encoding="utf-8")
    assert page.count('<div class="row">') == 10 and page.count("<i>student</i>") == 5
    assert "<b>[CLS]</b>" not in page and 'class="clip right"' in page


@pytest.mark.parametrize("pool", ["mean", "frames"])
def test_words_search_the_clips_through_the_head(pool: str, run: Any, folder: Path, tmp_path: Path) -> None:
    taught_by = (
        teacher(tmp_path / "t.safetensors", pool) if pool == "frames" else folder / "teacher.safetensors"
    )
    path = folder / "student.safetensors"
    (tmp_path / "s.txt").write_text("\nlook , it spins , a red round thing\n")
    assert run(path, "--teacher", taught_by, "--sentences", tmp_path / "s.txt")[0] == 0
    data = LexiconVideoData(**FILM)  # type: ignore[arg-type]
    video, mask, _, labels = data.clip_bank()
    see: Any = VideoTextTeacher.from_bundle(taught_by).eval()
    read: Any = VidLanKD.from_bundle(path).eval()
    head = heads_of(*load_bundle(path))["contrastive"]
    given = data.encode_texts(["look , it spins , a red round thing"])
    words = data.tokenizer.convert_ids_to_tokens(given["input_ids"][0])
    with torch.no_grad():
        unit = F.normalize(head(read.language(**given)), dim=2)[0]
        vectors = see.video(video, mask)
    table = unit @ vectors.flatten(0, -2).T
    if pool == "frames":
        table = table.unflatten(1, (32, 8)).amax(2)
    expected = [int(k) for row in table[1:-1] for k in row.topk(2).indices]
    page = (tmp_path / "out" / "sheet.html").read_text(encoding="utf-8")
    rows = page.split('<div class="row">')[1:]
    assert [int(k) for k in re.findall(r'alt="clip (\d+)"', rows[0])] == expected
    assert rows[0].count("<b>") == len(words) - 2 == 9
    (red,) = re.findall(r"<b>red</b>(.*?)</div></div>", rows[0])
    best = expected[2 * (words.index("red") - 1) :][:2]
    right = [part == " right" for part in re.findall(r'class="clip( right)?"', red)]
    assert right == list(labels[best, 0] == 0)


def test_ranks_of_likeness_that_is_known(run: Any) -> None:
    data = LexiconVideoData(**FILM)  # type: ignore[arg-type]
    vocabulary = data.tokenizer.get_vocab()
    table = torch.zeros(len(vocabulary), 32)
    for word, place in vocabulary.items():
        table[place, list(data.token_clips(word))] = 1.0
    perfect = data.clip_scores(lambda ids, mask: table[ids])
    assert set(perfect.values()) == {1.0}
    nothing = data.clip_scores(lambda ids, mask: torch.ones(*ids.shape, 32))
    assert nothing["P5_noun_R@1"] == nothing["P5_attribute_R@1"] == 0
    assert nothing["P5_noun_median_rank"] == 32 and nothing["P5_attribute_median_rank"] == 25


def test_chance_is_that_of_random_order() -> None:
    from vlkd.data.lexicon.probing import chance

    data = LexiconVideoData(**FILM)  # type: ignore[arg-type]
    labels = data.lexicon.labels
    found, drawn = chance(data.lexicon, labels), np.random.default_rng(0)
    for kind, right in (("noun", 1), ("attribute", 8)):
        firsts = np.array([1 + np.flatnonzero(drawn.permutation(32) < right)[0] for _ in range(4000)])
        assert found[f"P5_{kind}_R@1"] == pytest.approx((firsts == 1).mean(), abs=0.03)
        assert found[f"P5_{kind}_median_rank"] == pytest.approx(np.median(firsts), abs=1)
    assert "P5_noun_R@1" not in chance(data.lexicon)


@pytest.mark.parametrize("weights", [{"mlm": 1.0}, {"mlm": 1.0, "nst": 1.0}])
def test_a_student_that_reaches_no_video(weights: Any, run: Any, folder: Path, tmp_path: Path) -> None:
    taught_by = folder / "teacher.safetensors"
    path = student(tmp_path / "s.safetensors", taught_by if "nst" in weights else None, weights)
    code, out, _, found = run(path, "--teacher", taught_by)
    assert code == 0 and "no P5 of the student: no head of it reaches the videos" in out
    assert "P5_noun_R@1" in found["teacher"]["scores"] and "P5_noun_R@1" not in found["student"]["scores"]
    assert "P1" in found["student"]["scores"] and (tmp_path / "out" / "sheet.html").is_file()


def test_without_a_teacher_and_of_captions_alone(run: Any, folder: Path, tmp_path: Path) -> None:
    code, out, _, found = run(folder / "student.safetensors")
    assert code == 0 and "give --teacher" in out and "P5_noun_R@1" not in found["chance"]
    assert not (tmp_path / "out" / "sheet.html").exists()
    blind = teacher(tmp_path / "blind.safetensors", variant="captions")
    code, out, _, found = run(blind)
    assert (
        code == 0
        and "saw captions alone" in out
        and found["teacher"]["scores"].keys() == found["chance"].keys()
    )


def test_another_teacher_is_noted(run: Any, folder: Path, tmp_path: Path) -> None:
    other = teacher(tmp_path / "other.safetensors", variant="still")
    code, out, _, found = run(folder / "student.safetensors", "--teacher", other)
    assert code == 0 and "says that teacher taught it, this teacher is other" in out
    assert found["world"]["variant"] == "still" and found["notes"]


def test_what_does_not_fit_is_told_in_one_line(run: Any, folder: Path, tmp_path: Path) -> None:
    one, two = folder / "student.safetensors", folder / "teacher.safetensors"
    card = {"kind": "classifier", "name": "x", "architecture": {}}
    foreign = save_bundle(tmp_path / "foreign.safetensors", card, {"a": torch.zeros(1)})
    toy = save(VidLanKD(**SIZE, weights={"mlm": 1.0}), tmp_path / "toy.safetensors", TextData(), {})
    elsewhere = student(tmp_path / "elsewhere.safetensors", None, {"mlm": 1.0}, world_seed=7)
    strange = tmp_path / "strange.txt"
    strange.write_text("here is a red zebra\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    long = tmp_path / "long.txt"
    long.write_text("a red thing\n" + "a red thing " * 43 + "\n")
    for words, message in (
        ((foreign,), "holds a classifier, expected a bundle of vidlankd"),
        ((toy,), "learned on vlkd.data.TextData; the probes ask for words of the lexicon"),
        ((two, "--teacher", two), "is a teacher itself"),
        ((one, "--teacher", folder / "alone.safetensors"), "holds a language without a video tower"),
        ((elsewhere, "--teacher", two), "is not that of"),
        ((one, "--sentences", strange), "strange.txt:1: 'zebra' is no word of this lexicon"),
        ((one, "--sentences", empty), "holds no sentence"),
        ((one, "--sentences", long), "long.txt: a sentence of 129 words, "),
        ((one, "--sentences", tmp_path / "none.txt"), "none.txt: cannot be read"),
        ((tmp_path / "none.safetensors",), "no such file"),
    ):
        code, _, err, found = run(*words)
        assert code == 2 and not found, message
        assert_one_line(err, message)


def test_results_do_not_go_where_a_file_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    code = main(["probe", str(folder / "alone.safetensors"), "--out", str(tmp_path / "file")])
    assert code == 2 and (tmp_path / "file").read_text() == "kept"
    assert_one_line(capsys.readouterr().err, "file: is a file; give a folder")


def test_sentences_may_have_a_byte_order_mark(run: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbfhere is a red thing\r\n")
    assert run(folder / "student.safetensors", "--sentences", tmp_path / "s.txt")[0] == 0
