"""A tiny file in the true format of every downstream task."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlkd.text.word_ids import build_tokenizer

NOUNS = ("cat", "dog", "fish", "bird")
NLI = ("entailment", "neutral", "contradiction")
ENTAILS = ("entailment", "not_entailment")
STORY = 'Tom saw a cat . "He ran home ." The dog slept .'
CONTEXT = "The cat sat on the red mat while the old dog slept , and the bird sang in the tall tree ."
ANSWERS = (("Who slept ?", "the old dog"), ("Where did the bird sing ?", "in the tall tree"))
WORDS = f"a the is not red who where did sing event starts before after he {STORY} {CONTEXT}"


@cache
def tokenizer() -> Any:
    """Pieces, so that every word has tokens."""
    return build_tokenizer([WORDS.lower(), " ".join(NOUNS)] * 3, "pieces", size=200)


def tsv(path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([header] if header else []), *rows]
    path.write_text("".join("\t".join(str(x) for x in line) + "\n" for line in lines), encoding="utf-8")


def sentence(k: int) -> str:
    """Quotes are not closed, as in the published files."""
    return f'the {NOUNS[k % 4]} is "red' if k % 3 else f"the {NOUNS[k % 4]} slept"


def pairs(labels: Sequence[Any], count: int) -> list[list[Any]]:
    """index, two sentences, label."""
    return [[k, sentence(k), sentence(k + 1), labels[k % len(labels)]] for k in range(count)]


def glue(root: Path, train: int = 8, val: int = 6) -> Path:
    """All folders of GLUE."""
    for split, count in (("train", train), ("dev", val)):
        rows = [["gj04", k % 2, "*" if not k % 2 else "", sentence(k)] for k in range(count)]
        tsv(root / "CoLA" / f"{split}.tsv", None, rows)
        rows = [[sentence(k), k % 2] for k in range(count)]
        tsv(root / "SST-2" / f"{split}.tsv", ["sentence", "label"], rows)
        rows = [[label, 10 + k, 20 + k, a, b] for k, a, b, label in pairs((0, 1), count)]
        header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        tsv(root / "MRPC" / f"{split}.tsv", header, rows)
        rows = [[k, 2 * k, 2 * k + 1, a, b, label] for k, a, b, label in pairs((0, 1), count)]
        header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
        tsv(root / "QQP" / f"{split}.tsv", header, rows)
        scores = ("0.000", "2.400", "5.000")
        rows = [[k, "g", "f", "y", k, "s", "s", a, b, label] for k, a, b, label in pairs(scores, count)]
        header = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
        tsv(root / "STS-B" / f"{split}.tsv", [*header, "sentence1", "sentence2", "score"], rows)
        tsv(root / "QNLI" / f"{split}.tsv", ["index", "question", "sentence", "label"], pairs(ENTAILS, count))
        for name, labels in (("RTE", ENTAILS), ("WNLI", (0, 1))):
            header = ["index", "sentence1", "sentence2", "label"]
            tsv(root / name / f"{split}.tsv", header, pairs(labels, count))
    for file, votes, count in (("train", 1, train), ("dev_matched", 5, val), ("dev_mismatched", 5, val + 1)):
        header = ["index", "promptID", "pairID", "genre"]
        header += [f"sentence{k}_{kind}" for kind in ("binary_parse", "parse") for k in (1, 2)]
        header += ["sentence1", "sentence2", *(f"label{k + 1}" for k in range(votes)), "gold_label"]
        rows = [
            [k, k, f"{k}n", "fiction", *"()()", a, b, *["neutral"] * votes, label]
            for k, a, b, label in pairs(NLI, count)
        ]
        tsv(root / "MNLI" / f"{file}.tsv", header, rows)
    header = ["Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain"]
    kinds = ("World knowledge", "", "Common sense", "")
    rows = [
        ["Factivity" if k % 2 else "", "", "Negation", kinds[k % 4], "News", a, b, label]
        for k, a, b, label in pairs(NLI, 2 * val)
    ]
    tsv(root / "diagnostic" / "diagnostic-full.tsv", [*header, "Premise", "Hypothesis", "Label"], rows)
    return root


def squad(folder: Path, version: str) -> dict[str, str]:
    """train and dev JSON; of version 2.0 with a question that has no answer."""
    for name in ("train", "dev"):
        asked: list[dict[str, Any]] = [
            {
                "id": f"{name}-{k}",
                "question": question,
                "answers": [{"text": text, "answer_start": CONTEXT.index(text)}],
            }
            for k, (question, text) in enumerate(ANSWERS)
        ]
        if version == "2.0":
            asked = [{**entry, "is_impossible": False} for entry in asked]
            plausible = [{"text": "red mat", "answer_start": CONTEXT.index("red mat")}]
            impossible = {"is_impossible": True, "plausible_answers": plausible}
            asked.append({"id": f"{name}-n", "question": "Who ran ?", "answers": [], **impossible})
        articles = [{"title": "Cats", "paragraphs": [{"context": CONTEXT, "qas": asked}]}]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-v{version}.json").write_text(json.dumps({"version": version, "data": articles}))
    return {
        key: str(folder / f"{name}-v{version}.json") for key, name in (("train", "train"), ("val", "dev"))
    }


def swag(folder: Path) -> Path:
    """With commas and quotes in the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    header = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
    for name, count in (("train", 6), ("val", 5)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*header, *(f"ending{k}" for k in range(4)), "label"])
            for k in range(count):
                first = f'The {NOUNS[k % 4]}, "red", slept.'
                endings = [f"is a {noun}, not red." for noun in NOUNS]
                writer.writerow([k, "v", k, f"{first} It", first, "It", "gold", *endings, k % 4])
    return folder


def piqa(folder: Path, val: str = "valid") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 6), (val, 5)):
        rows = [{"goal": sentence(k), "sol1": "the dog ran", "sol2": sentence(k + 1)} for k in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}-labels.lst").write_text("".join(f"{k % 2}\n" for k in range(count)))
    return folder


def tracie(folder: Path, kind: str) -> dict[str, str]:
    """The authors' lines (txt) or the leaderboard's objects (jsonl); two stories in validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        lines = []
        for k in range(6):
            query = (
                f"{NOUNS[k % 4]} slept {'starts' if k % 3 else 'ends'} {('before', 'after')[k % 2]} he ran"
            )
            story = STORY if k < 3 else STORY.replace("Tom", "He")
            answer = {"query": f"event: {query}", "story": story, "gold_label": NLI[::2][k % 2]}
            line = f"event: {query} story: {story}\tanswer: {('positive', 'negative')[k % 2]}"
            lines.append(json.dumps(answer) if kind == "jsonl" else line)
        (folder / f"{name}.{kind}").write_text("\n".join(lines) + "\n")
    return {name: str(folder / f"{name}.{kind}") for name in ("train", "val")}


GLUE_TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax")
SQUAD = {"length": 24, "stride": 6, "query_length": 8}
TASKS = (
    *(f"glue_{name}" for name in GLUE_TASKS),
    "squad",
    "squad2",
    "swag",
    "piqa",
    "tracie",
    "tracie_jsonl",
)


def write(task: str, folder: Path) -> dict[str, Any]:
    """Files of a task; class_path and init_args of its data module, without a tokenizer."""
    kind, _, rest = task.partition("_")
    if kind == "glue":
        return data("GlueData", root=str(glue(folder)), task=rest, batch_size=4)
    if kind.startswith("squad"):
        version = {"squad": "1.1", "squad2": "2.0"}[kind]
        return data("SquadData", **squad(folder, version), no_answer=version == "2.0", batch_size=4, **SQUAD)
    if kind == "tracie":
        return data("TracieData", **tracie(folder, rest or "txt"), batch_size=3)
    root = {"swag": swag, "piqa": piqa}[kind](folder)  # type: ignore[operator]
    return data({"swag": "SwagData", "piqa": "PiqaData"}[kind], root=str(root), batch_size=3)


def data(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"vlkd.data.{name}", "init_args": arguments}


def build(section: dict[str, Any], **more: Any) -> Any:
    """The data module."""
    import vlkd.data

    cls = getattr(vlkd.data, section["class_path"].rsplit(".", 1)[1])
    return cls(**{**section["init_args"], **more})
