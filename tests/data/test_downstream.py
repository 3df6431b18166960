"""Downstream tasks from tiny files in their true formats: what is read, as which ids, scored how."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_downstream import ANSWERS, CONTEXT, TASKS, build, data, glue, piqa, squad, tokenizer, tsv, write

from vlkd.data import LexiconChoicesData
from vlkd.data.downstream.base import DownstreamData
from vlkd.data.downstream.squad import Windows, best_span
from vlkd.errors import UserError


def ready(task: str, folder: Path, **more: object) -> DownstreamData:
    found = build(write(task, folder), **more)
    found.setup()
    found.take_tokenizer(tokenizer())
    return found


def perfect(found: DownstreamData) -> Tensor:
    """Answers (N, *answer_shape) that are the labels."""
    labels = found.val_set.labels  # type: ignore[union-attr]
    answers = torch.zeros(len(labels), *found.answer_shape)
    if found.head == "regression":
        return labels[:, None].float()
    return answers.scatter(-1, labels[..., None], 10.0)


def everything(found: DownstreamData) -> Tensor:
    return torch.ones(len(found.val_set), dtype=torch.bool)  # type: ignore[arg-type]


EXPECTED = {
    "glue_cola": {"mcc"},
    "glue_sst2": {"accuracy"},
    "glue_mrpc": {"accuracy", "f1"},
    "glue_qqp": {"accuracy", "f1"},
    "glue_stsb": {"pearson", "spearman"},
    "glue_mnli": {"accuracy_matched", "accuracy_mismatched"},
    "glue_ax": {
        *("mcc", "mcc_lexical_semantics", "mcc_logic", "mcc_knowledge"),
        *("mcc_world_knowledge", "mcc_common_sense"),
    },
    "squad": {"exact", "f1"},
    "squad2": {"exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact"},
    "tracie": {"accuracy", "accuracy_start", "accuracy_end", "story"},
    "tracie_jsonl": {"accuracy", "accuracy_start", "accuracy_end", "story"},
}


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_one_and_wrong_ones_less(task: str, tmp_path: Path) -> None:
    found = ready(task, tmp_path)
    answers = perfect(found)
    scores = found.scores(answers, everything(found))
    assert scores.keys() == EXPECTED.get(task, {"accuracy"})
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    wrong = found.scores(answers.roll(1, 0), everything(found))
    assert all(wrong[name] < 1 for name in scores if name != "NoAns_exact"), wrong


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_filled_up_to_their_longest(task: str, tmp_path: Path) -> None:
    found = ready(task, tmp_path)
    batch = next(iter(found.val_dataloader()))
    ids, mask, segments = (batch[key] for key in ("input_ids", "attention_mask", "token_type_ids"))
    choices = {"swag": (4,), "piqa": (2,)}.get(task, ())
    assert ids.shape == mask.shape == segments.shape and ids.shape[1:-1] == choices
    assert mask.sum(-1).max() == ids.shape[-1] <= found.length
    assert (ids[mask == 0] == found.tokenizer.pad_token_id).all()
    assert (ids[..., 0] == found.tokenizer.cls_token_id).all()
    assert segments.max() == int(task not in ("glue_cola", "glue_sst2"))
    assert batch["indices"].tolist() == list(range(len(ids)))
    assert len(next(iter(found.train_dataloader()))["labels"]) == found.batch_size


def words(found: DownstreamData, split: str, index: int) -> list[str]:
    rows = found.val_set if split == "val" else found.train_set
    return [found.tokenizer.decode(ids) for ids, _ in rows.sequences(index)]  # type: ignore[union-attr]


def test_texts_are_those_of_the_files(tmp_path: Path) -> None:
    found = ready("glue_qqp", tmp_path / "glue")
    assert words(found, "val", 1) == ['[CLS] the dog is " red [SEP] the fish is " red [SEP]']
    assert found.val_set.labels.tolist() == [0, 1, 0, 1, 0, 1]  # type: ignore[union-attr]
    assert len(found.train_set) == 8  # type: ignore[arg-type]
    found = ready("glue_stsb", tmp_path / "glue")
    assert found.val_set.labels.tolist() == pytest.approx([0, 2.4, 5] * 2)  # type: ignore[union-attr]
    found = ready("glue_ax", tmp_path / "glue")
    assert len(found.train_set) == 8 and len(found.val_set) == 12  # type: ignore[arg-type]
    found = ready("swag", tmp_path / "swag")
    expected = '[CLS] the dog, " red ", slept. [SEP] it is a fish, not red. [SEP]'
    assert words(found, "val", 1)[2].replace(" ,", ",").replace(" .", ".") == expected
    found = ready("piqa", tmp_path / "piqa")
    assert words(found, "val", 1)[1] == '[CLS] the dog is " red [SEP] the fish is " red [SEP]'
    txt, jsonl = (ready(f"tracie{kind}", tmp_path / f"t{kind}") for kind in ("", "_jsonl"))
    for split in ("train", "val"):
        for k in range(6):
            assert words(txt, split, k) == words(jsonl, split, k)
    assert txt.val_set.labels.tolist() == jsonl.val_set.labels.tolist() == [1, 0, 1, 0, 1, 0]  # type: ignore[union-attr]
    assert words(txt, "val", 0)[0].startswith("[CLS] cat slept ends before he ran [SEP] tom saw")


def test_a_line_ends_where_the_file_says_and_quotes_mean_nothing(tmp_path: Path) -> None:
    root = glue(tmp_path)
    path = root / "SST-2" / "dev.tsv"
    text = 'sentence\tlabel\r\n"the cat\x85\u2028 slept\t1\r\nthe dog" is "red\t0\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    found = ready("glue_sst2", tmp_path / "other", root=str(root))
    assert found.val_set.labels.tolist() == [1, 0]  # type: ignore[union-attr]
    assert words(found, "val", 1) == ['[CLS] the dog " is " red [SEP]']


def test_piqa_calls_validation_valid_or_dev(tmp_path: Path) -> None:
    one, other = (build(data("PiqaData", root=str(piqa(tmp_path / name, name)))) for name in ("valid", "dev"))
    for found in (one, other):
        found.setup("validate")
    assert one.val_fingerprint() == other.val_fingerprint()


# --- windows of SQuAD --------------------------------------------------------------------------------------


def test_windows_hold_their_answers_and_cover_the_context(tmp_path: Path) -> None:
    found = ready("squad", tmp_path)
    windows = found.train_set
    assert isinstance(windows, Windows) and len(windows) > 2
    held = set()
    for k in range(len(windows)):
        ((ids, segments),) = windows.sequences(k)
        assert len(ids) <= found.length and segments.tolist() == sorted(segments)
        first, last = windows.labels[k].tolist()
        if first:
            begin = int(segments.argmax())
            assert windows.text(k, first - begin, last - begin) == ANSWERS[windows.question[k]][1]
            held.add(int(windows.question[k]))
    assert held == {0, 1}
    mine = windows.question == 1
    starts, counts = windows.start[mine], windows.count[mine]
    assert (np.diff(starts) == 6).all()  # data.stride
    assert set(np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])) == set(
        range(len(windows.contexts[0]))
    )


def test_an_answer_is_the_characters_of_the_context(tmp_path: Path) -> None:
    """Words that the tokenizer changes come back as they were written."""
    files = squad(tmp_path, "1.1")
    content = json.loads(Path(files["val"]).read_text())
    context = f"¿Über  naïve CAFÉ? {CONTEXT}"
    answer = {"text": "naïve CAFÉ", "answer_start": context.index("naïve")}
    asked = [{"id": "u", "question": "Who ?", "answers": [answer]}]
    content["data"][0]["paragraphs"] = [{"context": context, "qas": asked}]
    Path(files["val"]).write_text(json.dumps(content))
    found = ready("squad", tmp_path / "other", **files)
    windows = found.val_set
    assert isinstance(windows, Windows)
    logits = perfect(found).double().numpy()
    assert found.answer(windows, np.arange(len(windows)), logits) == "naïve CAFÉ"  # type: ignore[attr-defined]


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 18):
        start, end = rng.normal(size=(2, size))
        pairs = [(start[i] + end[j], i, j) for i in range(size) for j in range(i, min(size, i + 3))]
        assert best_span(start, end, 3) == max(pairs)
    assert best_span(np.zeros(0), np.zeros(0), 3)[0] == -np.inf


def test_no_answer_needs_to_be_better_by_the_threshold(tmp_path: Path) -> None:
    found = ready("squad2", tmp_path)
    answers = perfect(found)
    answers[..., 0] += 15.0  # "no answer" now wins everywhere
    scores = found.scores(answers, everything(found))
    assert scores["NoAns_exact"] == 1 and scores["HasAns_exact"] == 0
    patient = ready("squad2", tmp_path, threshold=15.0)
    assert patient.scores(answers, everything(patient))["HasAns_exact"] == 1


def test_questions_not_wholly_seen_are_not_scored(tmp_path: Path) -> None:
    found = ready("squad", tmp_path)
    windows = found.val_set
    assert isinstance(windows, Windows)
    seen = torch.from_numpy(windows.question == 0)
    seen[windows.question.tolist().index(1)] = True
    assert found.scores(perfect(found), seen)["exact"] == 1
    assert not found.scores(perfect(found), ~everything(found))


# --- the lexicon -------------------------------------------------------------------------------------------


def test_p3_asks_about_other_nouns_than_it_trains_on() -> None:
    found = LexiconChoicesData(nouns=32)
    found.setup()
    nouns = [
        {
            name
            for name in found.world.lexicon.names
            if any(name in words(found, split, k)[0] for k in range(n))
        }
        for split, n in (("train", len(found.train_set)), ("val", len(found.val_set)))  # type: ignore[arg-type]
    ]
    assert [len(names) for names in nouns] == [21, 11] and not nouns[0] & nouns[1]
    scores = found.scores(perfect(found), everything(found))
    assert scores == dict.fromkeys(("P3", "P3_colour", "P3_shape", "P3_motion"), 1.0)


# --- bad files ---------------------------------------------------------------------------------------------


def spoil(path: Path, number: int, line: str) -> None:
    rows = path.read_text(encoding="utf-8").split("\n")
    rows[number - 1] = line
    path.write_text("\n".join(rows), encoding="utf-8")


BAD = [
    ("glue_sst2", "SST-2/{}.tsv", 3, "no tab", "values, expected 2"),
    ("glue_sst2", "SST-2/{}.tsv", 3, "the cat\tgood", "label 'good', expected 0 or 1"),
    ("glue_cola", "CoLA/{}.tsv", 1, "x\t2\t\tthe cat", "label '2', expected 0 or 1"),
    ("glue_stsb", "STS-B/{}.tsv", 2, "0\t" * 9 + "nan", "score 'nan', expected a number"),
    ("swag", "{}.csv", 2, "1,2,3", "3 values, expected 12"),
    ("piqa", "{}-labels.lst", 2, "7", "label '7', expected one of 0, 1"),
    ("piqa", "{}.jsonl", 2, "{", "not a JSON object"),
    ("piqa", "{}.jsonl", 2, "[]", "no text goal, sol1, sol2"),
    ("tracie", "{}.txt", 2, "event: a\tanswer: positive", "not of the form 'event"),
    (
        "tracie",
        "{}.txt",
        2,
        "event: a story: b\tanswer: maybe",
        "label 'maybe', expected positive or",
    ),
    ("tracie_jsonl", "{}.jsonl", 2, '{"query": "a", "story": "b", "gold_label": "-"}', "label '-', expected"),
]


@pytest.mark.parametrize(("task", "name", "number", "line", "message"), BAD)
def test_a_bad_line_is_left_out_of_training_and_refused_in_validation(
    task: str,
    name: str,
    number: int,
    line: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = write(task, tmp_path)
    whole = build(section)
    whole.setup()
    path = tmp_path / name.format("train")
    spoil(path, number, line)
    found = build(section)
    found.setup()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{path}:{number}: ") and message in said and said.endswith("; left out")
    assert len(found._asked["train"].labels) == len(whole._asked["train"].labels) - 1
    assert found.check() == [said.removesuffix("; left out")]

    val = {"piqa": "valid", "swag": "val", "tracie": "val", "tracie_jsonl": "val"}.get(task, "dev")
    spoil(tmp_path / name.format(val), number, line)
    with pytest.raises(UserError, match=f"{val}.*:{number}: .*scores need every question"):
        build(section).setup("validate")
    assert len(build(section).check()) == 2


def test_an_empty_sentence_is_left_out_of_training_and_scored(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        tsv(tmp_path / "SST-2" / f"{split}.tsv", ["sentence", "label"], [["", 1], ["the cat", 0]])
    found = ready("glue_sst2", tmp_path / "other", root=str(tmp_path))
    assert len(found.train_set) == 1 and len(found.val_set) == 2  # type: ignore[arg-type]
    root = piqa(tmp_path / "piqa")
    for name in ("train", "valid"):
        spoil(root / f"{name}.jsonl", 2, '{"goal": "a", "sol1": "b", "sol2": " "}')
    found = ready("piqa", tmp_path / "other", root=str(root))
    assert len(found.train_set) == 5 and len(found.val_set) == 5  # type: ignore[arg-type]


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RTE/train\.tsv: not found; expected a TSV with the columns"):
        build(data("GlueData", root=str(tmp_path), task="rte")).setup()
    root = glue(tmp_path)
    tsv(root / "RTE" / "dev.tsv", ["index", "sentence1", "sentence2"], [[0, "a", "b"]])
    with pytest.raises(UserError, match=r"dev\.tsv:1: no column label; the header has index, sentence1"):
        build(data("GlueData", root=str(root), task="rte")).setup("validate")
    tsv(root / "RTE" / "dev.tsv", ["index", "sentence1", "sentence2", "label"], [])
    with pytest.raises(UserError, match=r"RTE \(val\): holds no usable line"):
        build(data("GlueData", root=str(root), task="rte")).setup("validate")
    with pytest.raises(UserError, match=r'data.task=mnl: no task of GLUE \(nearest: "mnli"\)'):
        build(data("GlueData", root=str(root), task="mnl"))
    piqa(tmp_path / "piqa")
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n")
    with pytest.raises(UserError, match="1 labels for the 5 lines of"):
        build(data("PiqaData", root=str(tmp_path / "piqa"))).setup("validate")


def test_bad_questions_of_squad_are_named(tmp_path: Path) -> None:
    files = squad(tmp_path, "2.0")
    with pytest.raises(UserError, match=r"question 'dev-n': has no answer; set data\.no_answer: true"):
        build(data("SquadData", **files)).setup("validate")
    content = json.loads(Path(files["val"]).read_text())
    asked = content["data"][0]["paragraphs"][0]["qas"]
    asked[0]["answers"][0]["answer_start"] = 1
    asked[1] = "nothing"
    Path(files["val"]).write_text(json.dumps(content))
    lines = build(data("SquadData", **files, no_answer=True)).check()
    assert len(lines) == 2
    assert "question 'dev-0': the answer 'the old dog' does not stand at character 1" in lines[0]
    assert "question '2': not of the form" in lines[1]
    Path(files["val"]).write_text("{")
    with pytest.raises(UserError, match=r"dev-v2\.0\.json:1: not a JSON file"):
        build(data("SquadData", **files)).setup("validate")
    Path(files["val"]).write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(UserError, match="not SQuAD's JSON; expected"):
        build(data("SquadData", **files)).setup("validate")


def test_a_file_without_a_usable_line_says_why(tmp_path: Path) -> None:
    """A wrong file is wrong in every line: the first tells which mistake it was."""
    section = write("tracie_jsonl", tmp_path)
    path = tmp_path / "val.jsonl"
    path.write_text(path.read_text().replace("entailment", "-").replace("contradiction", "-"))
    with pytest.raises(UserError, match=r"holds no usable line; .*val\.jsonl:1: label '-', expected"):
        build(section).setup("validate")
    files = squad(tmp_path, "1.1")
    content = json.loads(Path(files["val"]).read_text())
    for asked in content["data"][0]["paragraphs"][0]["qas"]:
        asked["answers"] = []
    Path(files["val"]).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no usable question; .*set data\.no_answer: true"):
        build(data("SquadData", **files)).setup("validate")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_broken_lines_of_qqp_are_left_out(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published file has questions with a line end in them, of which no reader makes a question."""
    section = write("glue_qqp", tmp_path)
    path = tmp_path / "QQP" / f"{split}.tsv"
    path.write_text(path.read_text() + '8\t16\t17\t"the cat\n\tthe dog is red\t0\n')
    found = build(section)
    found.setup()
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        said.startswith(f"{path}:") and "4 values, expected 6" in said and "2 broken line(s) left out" in said
    )
    assert [len(found._asked[name].labels) for name in ("train", "val")] == [8, 6]
    spoil(path, 2, "1\t2\t3\ta\tb\tyes")
    assert len(build(section).check()) == 1  # another mistake is one


def test_a_quote_that_is_not_closed_takes_no_other_line_with_it(tmp_path: Path) -> None:
    section = write("swag", tmp_path)
    spoil(tmp_path / "train.csv", 3, '1,v,1,"open,a,b,gold,a,b,c,d,0')
    with pytest.raises(UserError, match=r"train\.csv:3: not a CSV"):
        build(section).setup()
